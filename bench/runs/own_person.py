"""Learns a person from one's own reference pictures, and restores one's own aligned pictures of that person."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.errors import UsageError
from bench.faces.same_person import odd_references
from bench.method import RestorationMethod
from bench.personal_state import PersonalSource, PersonalState, read_state, write_state
from bench.progress import Progress
from bench.registry import load_method, method_targets
from bench.runs.own_pictures import (
    Restored,
    Workplace,
    at_side,
    read_references,
    require_no_input,
    restore_all,
    say,
    tasks_of,
)
from bench.runs.own_results import require_replaceable
from bench.runs.personalise import learn
from bench.runs.plan import build_method
from bench.runs.reference_photographs import crops_of, read_and_tell


@dataclass(frozen=True)
class Learnt:
    """A person who was learnt.

    Attributes:
        state: What was learnt.
        seconds: How long this call took for it.
        iterations: Iterations of this call; 0 where the person was known.
    """

    state: PersonalState
    seconds: float
    iterations: int


def personalising_methods() -> list[str]:
    """Names of the methods that learn a person before they restore."""
    return [name for name in method_targets() if load_method(name).spec.tuning == "per_identity"]


def require_personalising(method: RestorationMethod | type[RestorationMethod], what: str) -> None:
    """Refuses a method that learns no one.

    Args:
        method: A method; of a class it is only asked whether its settings may turn that on.
        what: What cannot be done with it, for the message.

    Raises:
        UsageError: It learns no one, or not with these settings.
    """
    name = method.spec.name
    if method.spec.tuning == "none":
        raise UsageError(f"{name} learns nothing of a person: {what}. Methods that do: {_listed_methods()}.")
    if isinstance(method, RestorationMethod) and not method.personalises:
        raise UsageError(
            f"{method.label} learns nothing of a person with these settings: {what}. Leave out the words that turn it "
            f"off. Methods that do: {_listed_methods()}."
        )


def _listed_methods() -> str:
    return ", ".join(personalising_methods()) or "none here"


def learn_person(
    method: RestorationMethod, workplace: Workplace, pictures: Tensor, seed: int, class_word: str = "person"
) -> Learnt:
    """Learns a person, or finds what an earlier call with the same references, seed and settings learnt.

    Args:
        method: A method that personalises; it is moved to the workplace's device.
        workplace: Where it runs.
        pictures: References, (R, 3, H, W) at the method's native size.
        seed: Of the run.
        class_word: What the person is called.

    Raises:
        BenchError: Nothing can be learnt from these references, or with these settings or this device.
    """
    if len(pictures) == 1:
        say("one reference only: that works, but methods that learn a person are made for 3 to 5.")
    method.to(workplace.device)
    source = PersonalSource(pictures, seed, class_word)
    key = source.key(method, workplace.precision_name)
    progress = Progress("learning the person: iterations", method.personal_iterations())

    def advance(count: int, resumed: bool) -> None:
        if resumed:
            # Those of the call that was stopped tell nothing of the time that is left.
            say(f"going on after iteration {count}, where an earlier call was stopped.")
            progress.first = count
        progress.advance(count)

    started = time.perf_counter()
    try:
        with workplace.precision.forward_context():
            state = learn(method, source, key, advance)
    except RuntimeError as error:  # out of memory, or a precision that something cannot work in
        raise UsageError(f"The person could not be learnt: {type(error).__name__}: {error}") from error
    return Learnt(state, time.perf_counter() - started, progress.done - progress.first)


def personalise(
    config: dict[str, Any],
    references: Sequence[Path],
    output: Path,
    aligned: bool = False,
    class_word: str = "person",
) -> dict[str, Any]:
    """Learns a person and writes the state to a file.

    Args:
        config: The composed `configs/run.yaml`.
        references: Photographs of the person.
        output: The file, which must end in .safetensors.
        aligned: Whether the references are aligned square pictures of the face, which are taken as they are.
        class_word: What the person is called, such as "man"; methods that are told by text read it.

    Returns:
        `method`, `key`, `base`, `references`, `seed`, `known` (whether nothing had to be learnt), `iterations` and
        `seconds` of this call, `bytes` and `file`.

    Raises:
        UsageError: The method learns no one, a reference cannot be used, or the output cannot be written.
        MissingError: Weights are absent.
    """
    if output.is_dir():
        raise UsageError(f"--output {output} is a folder. Give a file: {output / 'person.safetensors'}")
    if output.suffix != ".safetensors":
        raise UsageError(f"--output {output} would be a safetensors file and must be named so: {output}.safetensors")
    why = "there is nothing to write"
    require_personalising(load_method(config["method"]["name"]), why)
    read = read_references(references) if aligned else []
    photographs = [] if aligned else read_and_tell(references)
    require_no_input([output], references)
    workplace = Workplace(config["trainer"])
    method, _, _ = build_method(config)
    require_personalising(method, why)
    pictures = _checked(read, references, method) if aligned else crops_of(method, photographs)
    _require_writable(output)
    learnt = learn_person(method, workplace, pictures, int(config["seed"]), class_word)
    write_state(output, learnt.state)
    return {
        "method": method.label,
        "key": learnt.state.key,
        "base": learnt.state.base,
        "references": len(pictures),
        "seed": learnt.state.seed,
        "known": learnt.iterations == 0,
        "iterations": learnt.iterations,
        "seconds": learnt.seconds,
        "bytes": output.stat().st_size,
        "file": str(output),
    }


def restore_own(
    config: dict[str, Any],
    pictures: Sequence[Path],
    output: Path,
    personal: Path | None = None,
    references: Sequence[Path] = (),
    scale: float = 1.0,
    class_word: str = "person",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Restores aligned pictures with whatever the method needs of the person on them.

    Args:
        config: The composed `configs/run.yaml`.
        pictures: Files and folders.
        output: A PNG for one picture, else a folder.
        personal: A state that `personalise` wrote, for a method that learns persons.
        references: Pictures of the person, for a method that reads or learns them.
        scale: How much the pictures are enlarged first, bicubically.
        class_word: What a person who is learnt is called.
        overwrite: Whether files that are no earlier results may be replaced.

    Returns:
        `method`, `method_revision`, `seed`, `person` (key of the state, or None), `pictures` (see
        `own_pictures.Restored`), `failed`, `peak_memory_mb` and `output`.

    Raises:
        UsageError: The inputs do not suit the method, or an output would overwrite one or another file.
        MissingError: Weights are absent.
    """
    if personal is not None:
        require_personalising(load_method(config["method"]["name"]), "leave out --personal")
    if personal is not None and references:
        raise UsageError("--personal and --reference are both given. A person is learnt already, or from references.")
    tasks, unreadable = tasks_of(pictures, output)
    inputs = [*(task.path for task in tasks), *references, *([personal] if personal is not None else [])]
    targets = [task.target for task in tasks]
    require_no_input(targets, inputs)
    require_replaceable(targets, overwrite)
    state = read_state(personal) if personal is not None else None
    read = read_references(references)
    workplace = Workplace(config["trainer"])
    method, revision, _ = build_method(config)
    if state is not None:
        require_personalising(method, "leave out --personal")
        state.require_made_for(method, str(personal))
    shown: Sequence[Tensor] = []
    seed = int(config["seed"])
    if method.personalises:
        state = state or _learnt_here(method, workplace, read, references, seed, class_word)
        method.persons = {task.name: state for task in tasks}
    elif method.spec.references == "none":
        if read:
            say(f"warning: {method.label} reads no reference; --reference changes nothing.")
    elif read:
        shown = list(_checked(read, references, method)) if method.native_size else read
    elif method.spec.tuning == "none":
        say(f"{method.label} gets no reference here; --reference FILE ... gives it some.")
    result = restore_all(method, workplace, tasks, shown, seed, scale) if tasks else Restored()
    return {
        "method": method.label,
        "method_revision": revision,
        "seed": seed,
        "person": state.key if state is not None else None,
        "pictures": result.written,
        "failed": unreadable | result.failed,
        "peak_memory_mb": workplace.peak_memory_mb(),
        "output": str(output),
    }


def _learnt_here(
    method: RestorationMethod,
    workplace: Workplace,
    read: Sequence[Tensor],
    paths: Sequence[Path],
    seed: int,
    class_word: str,
) -> PersonalState:
    if not paths:
        raise UsageError(
            f"{method.label} restores no one it does not know. Give pictures of the person with --reference FILE ..., "
            f"or --personal FILE, made with: bench personalise method={method.spec.name} --reference FILE ... -o FILE"
        )
    pictures = _checked(read, paths, method)
    return learn_person(method, workplace, pictures, seed, class_word).state


def _checked(read: Sequence[Tensor], paths: Sequence[Path], method: RestorationMethod) -> Tensor:
    """References at the method's size, (R, 3, H, H); says what is strange about them."""
    side = method.native_size or max(picture.shape[-1] for picture in read)
    pictures = at_side(read, paths, side)
    for sentence in odd_references(pictures, [str(path) for path in paths]):
        say(f"warning: {sentence}")
    return pictures


def _require_writable(output: Path) -> None:
    """Asks before the learning whether the file can be written after it; makes the folder."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"Cannot write {output}: {error.strerror or error}. Give a path in a folder that can be written to."
        ) from error
