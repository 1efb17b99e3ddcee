"""Restores one's own photographs: finds the faces, restores the ones that are meant, and puts them back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import BenchError, MissingError, UsageError
from bench.faces.detector import Face
from bench.image import MAXIMUM_PIXELS, SUFFIXES
from bench.method import RestorationMethod
from bench.personal_state import PersonalState, read_state
from bench.photographs.before_after import Page, Pair, ShownFace
from bench.photographs.blend import change, grey_of, put_back
from bench.photographs.face_crop import FaceCrop, face_crop
from bench.photographs.face_mask import face_mask
from bench.photographs.found_faces import RESEMBLING, embeddings, find_faces, likeness, matching_face
from bench.photographs.photograph import Photograph, encode_photograph, read_photograph
from bench.photographs.references import Reference
from bench.progress import Progress
from bench.protocol.alignment import TEMPLATES
from bench.registry import load_method
from bench.runs.own_person import learn_person, require_personalising
from bench.runs.own_pictures import (
    Restored,
    Task,
    Workplace,
    own_batch,
    require_no_input,
    resized,
    restored_picture,
    say,
    tasks_of,
)
from bench.runs.own_results import page_path, require_replaceable, write_result
from bench.runs.plan import build_method
from bench.runs.reference_photographs import crops_of, read_and_tell, working_side

FACES = ("all", "largest", "matching")
PAGE = "before_after.html"


@dataclass(frozen=True)
class Wish:
    """What is to be done with the photographs.

    Attributes:
        faces: Whom to restore: `all`, `largest`, `matching`, or None for what suits the method and what it is given.
        scale: How much the photographs are enlarged.
        background: The composed configuration of the method that restores the rest of a photograph, or None.
        class_word: What a person who is learnt is called.
        overwrite: Whether files that are no earlier results may be replaced.
    """

    faces: str | None = None
    scale: float = 1.0
    background: dict[str, Any] | None = None
    class_word: str = "person"
    overwrite: bool = False


@dataclass
class _Person:
    """Whoever the references or the state show.

    Attributes:
        references: Their photographs.
        embeddings: (R, 128) of their faces, or None.
        crops: (R, 3, N, N) for a method that reads references, or None.
        state: What was learnt of them, or None.
    """

    references: list[Reference] = field(default_factory=list)
    embeddings: Tensor | None = None
    crops: Tensor | None = None
    state: PersonalState | None = None


@dataclass(frozen=True)
class _FaceToRestore:
    face: Face
    crop: FaceCrop
    is_the_person: bool
    note: str


def restore_photographs(
    config: dict[str, Any],
    pictures: Sequence[Path],
    output: Path,
    personal: Path | None,
    references: Sequence[Path],
    wish: Wish,
) -> dict[str, Any]:
    """Restores photographs as they come from a camera or a scanner.

    Args:
        config: The composed `configs/run.yaml`.
        pictures: Files and folders.
        output: A file for one photograph, else a folder.
        personal: A state that `bench personalise` wrote, for a method that learns persons.
        references: Photographs of the person, for a method that reads or learns them, or to say whom to restore.
        wish: All else.

    Returns:
        As `own_person.restore_own`; each of `pictures` has `faces` too (`box`: left, top, width, height in pixels,
        `restored`, `as_the_person`, and `likeness` to the references or None), and `page` is the page with all of
        them, or None.

    Raises:
        UsageError: The inputs do not suit the method, or an output would overwrite one or another file.
        MissingError: Weights are absent.
    """
    if personal is not None:
        require_personalising(load_method(config["method"]["name"]), "leave out --personal")
    if personal is not None and references:
        raise UsageError("--personal and --reference are both given. A person is learnt already, or from references.")
    tasks, unreadable = tasks_of(pictures, output, keep_format=True)
    targets = [task.target for task in tasks]
    page = page_path(_page_path(tasks, output), targets, wish.overwrite)
    inputs = [*(task.path for task in tasks), *references, *([personal] if personal is not None else [])]
    require_no_input([*targets, page], inputs)
    require_replaceable(targets, wish.overwrite)
    person = _Person(state=read_state(personal) if personal is not None else None)
    shown = read_and_tell(references)
    workplace = Workplace(config["trainer"])
    method, revision, _ = build_method(config)
    if person.state is not None:
        require_personalising(method, "leave out --personal")
        person.state.require_made_for(method, str(personal))
    background = _background_method(wish.background, workplace) if wish.background is not None else None
    seed = int(config["seed"])
    faces = _whose_faces(method, wish.faces, bool(shown), personal is not None)
    if shown:
        person.references = shown
        person.embeddings = torch.stack([reference.embedding for reference in shown])
    _meet(method, workplace, person, seed, wish.class_word)
    shown_page = Page(method.label, method.training_faces.caution, background.label if background is not None else "")
    run = _Run(method, background, workplace, person, faces, wish.scale, seed, shown_page)
    result = run.restore_all(tasks)
    if result.written:
        write_result(page, run.page.html().encode(), targets)
    return {
        "method": method.label,
        "method_revision": revision,
        "seed": seed,
        "person": person.state.key if person.state is not None else None,
        "pictures": result.written,
        "failed": unreadable | result.failed,
        "peak_memory_mb": workplace.peak_memory_mb(),
        "output": str(output),
        "page": str(page) if result.written else None,
    }


def _page_path(tasks: Sequence[Task], output: Path) -> Path:
    if len(tasks) == 1 and tasks[0].target == output:
        return output.with_name(f"{output.stem}_{PAGE}")
    return output / PAGE


def _background_method(config: dict[str, Any], workplace: Workplace) -> RestorationMethod:
    method, _, _ = build_method(config)
    if not method.any_size or method.spec.references != "none":
        raise UsageError(f"{method.label} restores faces, not whole photographs. Try: --background realesrgan")
    if workplace.device.type == "cpu":
        say(f"{method.label} restores whole photographs, which takes minutes each without a GPU.")
    return workplace.precision.convert_module(method.to(workplace.device))  # type: ignore[return-value]


def _whose_faces(method: RestorationMethod, wished: str | None, references: bool, state: bool) -> str:
    """Whom to restore where a photograph shows several people.

    Whoever gives references of somebody wants that person. A personal state holds no picture to know the person by: on
    most photographs one has of somebody, theirs is the largest face. Without either nobody is meant more than another.
    """
    if wished == "matching" and not references:
        raise UsageError("--faces matching finds the person of the references: give --reference FILE ... too.")
    if wished == "all" and method.personalises:
        say(f"{method.label} restores the person it has learnt and nobody else: other faces stay as they are.")
        wished = None
    if wished is not None:
        return wished
    return "matching" if references else "largest" if state else "all"


def _meet(method: RestorationMethod, workplace: Workplace, person: _Person, seed: int, class_word: str) -> None:
    """Brings the references into the method's form, and learns the person where it learns persons.

    Raises:
        UsageError: It restores no one it does not know, and nobody is given.
    """
    needs = method.personalises or method.spec.references != "none"
    if person.references and needs and person.state is None:
        crops = crops_of(method, person.references)
        if method.personalises:
            person.state = learn_person(method, workplace, crops, seed, class_word).state
        else:
            person.crops = crops
    elif person.references and not needs:
        say(f"warning: {method.label} reads no reference; --reference only says whom to restore.")
    elif method.personalises and person.state is None:
        raise UsageError(
            f"{method.label} restores no one it does not know. Give photographs of the person with --reference FILE "
            f"..., or --personal FILE, made with: bench personalise method={method.spec.name} --reference FILE ... "
            "-o FILE"
        )
    elif method.spec.tuning == "none" and method.spec.references != "none":
        say(f"{method.label} gets no reference here; --reference FILE ... gives it some.")


@dataclass(frozen=True)
class _Done:
    """A restored photograph.

    Attributes:
        record: What `restore_photographs` returns of it, without the seconds.
        content: Of its file.
        pair: What the page shows of it.
    """

    record: dict[str, Any]
    content: bytes
    pair: Pair


@dataclass
class _Run:
    """What restores one photograph after the other.

    Attributes:
        method: With its weights.
        background: The method for the rest of the photograph, or None.
        workplace: Where both run.
        person: Whom references or state show.
        faces: Whom to restore.
        scale: How much photographs are enlarged.
        seed: Of the run.
        page: Takes the pictures.
    """

    method: RestorationMethod
    background: RestorationMethod | None
    workplace: Workplace
    person: _Person
    faces: str
    scale: float
    seed: int
    page: Page

    def restore_all(self, tasks: Sequence[Task]) -> Restored:
        """Restores photographs one by one; one that fails stops no other."""
        method = self.method.to(self.workplace.device)
        self.method = self.workplace.precision.convert_module(method)  # type: ignore[assignment]
        result, progress = Restored(), Progress("restored", len(tasks))
        for task in tasks:
            try:
                started = time.perf_counter()
                done = self._restore(task)
                seconds = time.perf_counter() - started
            except MissingError:
                raise
            except BenchError as error:
                result.failed[str(task.path)] = str(error)
            except Exception as error:
                result.failed[str(task.path)] = f"Restoration failed: {type(error).__name__}: {error}"
            else:
                write_result(task.target, done.content)
                self.page.add(done.pair)
                result.written.append(done.record | {"seconds": seconds})
            progress.advance()
        return result

    def _restore(self, task: Task) -> _Done:
        if task.target.suffix.lower() not in SUFFIXES:
            raise UsageError(f"It has no known picture suffix, so the result would have none: {task.path.name}.")
        photograph = read_photograph(task.path)
        if photograph.pages > 1:
            raise UsageError(
                f"It holds {photograph.pages} pages or frames, and the result would hold one. Split it first: "
                f"magick {task.path.name} {task.path.stem}-%d.png"
            )
        if photograph.bits > 8:
            say(f"warning: {task.path} has {photograph.bits} bits per channel; the result has 8.")
        faces = find_faces(photograph.pixels)
        chosen, alike = self._chosen(task, photograph, faces)
        plain, canvas = self._canvas(task, photograph)
        stretch = (plain.shape[0] / photograph.size[0], plain.shape[1] / photograph.size[1])
        grey = self.method.training_faces.grey
        todo = [
            self._face(photograph, faces[number], is_the_person, None if alike is None else float(alike[number]))
            for number, is_the_person in chosen.items()
        ]
        for number, own in zip(chosen, todo, strict=True):
            crop = own.crop.cut(photograph.pixels)
            image_id = f"{task.name}/{number}" if number else task.name
            restored = self._restored_crop(image_id, grey_of(crop) if grey else crop, own.is_the_person)
            placed = own.crop.of_enlarged(stretch, plain.shape[:2])
            others = [_enlarged_points(faces[other], stretch) for other in range(len(faces)) if other != number]
            mask = face_mask(placed, _enlarged_points(own.face, stretch), others)
            put_back(canvas, plain, placed, change(crop, restored, grey), mask)
        if photograph.colourless:
            canvas = grey_of(canvas)
        result = photograph.with_pixels(canvas)
        record = {
            "picture": str(task.path),
            "file": str(task.target),
            "width": canvas.shape[1],
            "height": canvas.shape[0],
            "faces": [
                {
                    "box": [round(float(value), 1) for value in face.box],
                    "restored": number in chosen,
                    "as_the_person": chosen.get(number, False),
                    "likeness": None if alike is None else round(float(alike[number]), 3),
                }
                for number, face in enumerate(faces)
            ],
        }
        return _Done(record, encode_photograph(result, task.target.suffix), self._pair(task, photograph, result, todo))

    def _chosen(
        self, task: Task, photograph: Photograph, faces: Sequence[Face]
    ) -> tuple[dict[int, bool], np.ndarray | None]:
        """Numbers of the faces to restore, and whether each is the person; how alike each is, or None."""
        alike = None
        if self.person.embeddings is not None:
            alike = likeness(embeddings(photograph.pixels, faces), self.person.embeddings)
        known = self.person.embeddings is not None or self.person.state is not None
        if self.faces == "largest":
            if alike is not None and alike[0] < RESEMBLING:
                say(
                    f"warning: {task.path}: the face looks little like the references (cosine {alike[0]:.2f}); it is "
                    "restored as theirs all the same."
                )
            if alike is None and known and len(faces) > 1:
                say(f"{task.path} shows {len(faces)} faces; the largest is taken for the person who was learnt.")
            return {0: known}, alike
        if self.faces == "matching" and alike is not None:
            if len(faces) == 1 and alike[0] < RESEMBLING and not self.method.personalises:
                say(
                    f"{task.path}: the face does not look like the references (cosine {alike[0]:.2f}); it is restored "
                    "without them. If it is the person all the same, add --faces largest."
                )
                return {0: False}, alike
            best, doubt = matching_face(alike)
            if doubt:
                say(f"warning: {task.path}: {doubt}")
            return {best: True}, alike
        the_person = -1
        if alike is not None and alike.max() >= RESEMBLING:
            the_person = int(alike.argmax())
        elif alike is not None:
            say(f"{task.path}: nobody looks like the references (cosine {alike.max():.2f}): all are restored without.")
        return {number: number == the_person for number in range(len(faces))}, alike

    def _canvas(self, task: Task, photograph: Photograph) -> tuple[np.ndarray, np.ndarray]:
        """The photograph at the size of the result, and the same with its background restored, to be written to."""
        height, width = (max(1, round(side * self.scale)) for side in photograph.size)
        if height * width > MAXIMUM_PIXELS:
            raise UsageError(
                f"--scale {self.scale:g} makes {width}x{height} px of it; at most {MAXIMUM_PIXELS:,} are made."
            )
        plain = photograph.pixels
        if (height, width) != photograph.size:
            plain = _pixels(resized(_tensor(plain), (height, width)))
        if self.background is None:
            return plain, plain.copy()
        return plain, self._restored_background(self.background, task, photograph.pixels, (height, width))

    def _restored_background(
        self, method: RestorationMethod, task: Task, pixels: np.ndarray, size: tuple[int, int]
    ) -> np.ndarray:
        """The whole photograph as the method for the background restores it, (H, W, 3) uint8 of this size."""
        batch = own_batch(f"{task.name}/background", _tensor(pixels), [], self.seed, method.native_size)
        batch = self.workplace.precision.convert_input(batch.to(self.workplace.device))
        with torch.inference_mode(), self.workplace.precision.forward_context():
            restored = method.restore_to(batch, size)[0].float().cpu()
        if not torch.isfinite(restored).all():
            raise UsageError("The restored background holds NaN or infinite values.")
        return _pixels(restored)

    def _face(self, photograph: Photograph, face: Face, is_the_person: bool, alike: float | None) -> _FaceToRestore:
        template = TEMPLATES[self.method.training_faces.template]
        crop = face_crop(face.points, template, working_side(self.method), photograph.size)
        note = ""
        if alike is not None and not is_the_person:
            note = f"Restored without references: the cosine to them is {alike:.2f}."
        elif alike is not None and alike < RESEMBLING:
            note = f"Restored as the person of the references, though the cosine to them is only {alike:.2f}."
        return _FaceToRestore(face, crop, is_the_person, note)

    def _restored_crop(self, image_id: str, lq: np.ndarray, is_the_person: bool) -> np.ndarray:
        """(N, N, 3) float32 in [0, 255]."""
        references: Sequence[Tensor] = []
        if is_the_person and self.person.crops is not None:
            references = list(self.person.crops)
        if self.person.state is not None:
            self.method.persons = {image_id: self.person.state}
        batch = own_batch(image_id, _tensor(lq), references, self.seed, self.method.native_size)
        restored = restored_picture(self.method, self.workplace, batch)
        return restored.permute(1, 2, 0).mul(255).numpy()

    def _pair(self, task: Task, before: Photograph, after: Photograph, faces: Sequence[_FaceToRestore]) -> Pair:
        stretch = (after.size[0] / before.size[0], after.size[1] / before.size[1])
        shown = [
            ShownFace(own.crop, own.crop.of_enlarged(stretch, after.size), own.is_the_person, own.note) for own in faces
        ]
        references = [
            (reference.crop(self.method.training_faces.template, working_side(self.method)), reference.pixels)
            for reference in self.person.references
        ]
        return Pair(task.name, before.pixels, after.pixels, shown, references)


def _enlarged_points(face: Face, stretch: tuple[float, float]) -> np.ndarray:
    down, across = stretch
    points: np.ndarray = (face.points + 0.5) * (across, down) - 0.5
    return points


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float().div(255)


def _pixels(picture: Tensor) -> np.ndarray:
    return picture.mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
