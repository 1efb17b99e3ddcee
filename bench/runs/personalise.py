"""The stage before restoration for methods that are tuned for each identity: everyone is learnt once, and kept."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from bench.errors import BenchError, UsageError
from bench.faces.same_person import odd_references
from bench.method import RestorationMethod
from bench.personal_state import (
    PersonalSource,
    PersonalState,
    UnfinishedError,
    read_state,
    require_state,
    state_path,
    unfinished_path,
    write_state,
)
from bench.progress import Progress
from bench.protocol.card import DatasetCard, load_card
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.protocol import ProtocolImage, ProtocolMismatchError, ProtocolPhoto
from bench.runs.journal import Journal, read_journals
from bench.runs.plan import RunPlan
from bench.weights.method_weights import read_weights, write_tensors


@dataclass
class Person:
    """One set of references, and the pictures that are restored with it.

    Attributes:
        identity: Whose they are.
        references: The photographs.
        image_ids: The pictures.
    """

    identity: str
    references: Sequence[ProtocolPhoto]
    image_ids: list[str]


def people(images: Sequence[ProtocolImage]) -> list[Person]:
    """The persons of some pictures, in the order they first appear; other references are another person."""
    found: dict[tuple[Any, ...], Person] = {}
    for image in images:
        photos = tuple((photo.path, photo.matrix.tobytes(), repr(photo.marks)) for photo in image.references)
        person = found.setdefault((image.identity, photos), Person(image.identity, image.references, []))
        person.image_ids.append(image.image_id)
    return list(found.values())


class Personaliser(Callback):
    """Learns the persons of a protocol before its pictures are restored, shared between the processes.

    A person whose state is kept already is not learnt again. What was begun and stopped goes on where it stopped. A
    person who cannot be learnt stops no other: their pictures fail, and say why.

    Args:
        plan: The run.
    """

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Learns this process's share, waits for the others, and reads everyone's state."""
        plan, method = self.plan, self.plan.method
        method.to(trainer.strategy.root_device)
        rank, world_size = trainer.global_rank, trainer.world_size
        persons, card = people(plan.protocol.images), load_card(plan.protocol.card)
        precision = str(plan.config["trainer"]["precision"])
        seed = int(plan.config["seed"])
        # What everyone's learning needs and is absent stops the run before anybody's pictures fail.
        method.personal_settings()
        keys: dict[int, str | BenchError] = {}
        for number, person in enumerate(persons):
            try:
                keys[number] = source_of(plan.pictures, person, seed, card).key(method, precision)
            except ProtocolMismatchError:
                raise
            except BenchError as error:
                keys[number] = error
        todo = [number for number, key in keys.items() if isinstance(key, str) and not is_kept(state_path(method, key))]
        # One process says who is left: another run may be learning the same people meanwhile.
        todo = trainer.strategy.broadcast(todo)
        journal = Journal(plan.run_dir / "journal" / "personalise", rank)
        mine = todo[rank::world_size]
        progress = Progress("learning persons: iterations", len(mine) * method.personal_iterations())
        for place, number in enumerate(mine, 1):
            started, reason = time.perf_counter(), None

            def advance(count: int, resumed: bool, note: str = f"person {place}/{len(mine)}") -> None:
                # Those of an earlier call tell nothing of the time that is left.
                progress.first += count if resumed else 0
                progress.advance(count, note)

            try:
                source = source_of(plan.pictures, persons[number], seed, card)
                _warn(persons[number], source)
                with trainer.precision_plugin.forward_context():
                    learn(method, source, source.key(method, precision), advance)
            except BenchError as error:
                reason = str(error)
            except RuntimeError as error:
                reason = f"{type(error).__name__}: {error}"
            journal.append({"key": str(keys[number]), "seconds": time.perf_counter() - started, "reason": reason})
        trainer.strategy.barrier("personalised")
        reasons = {
            entry["key"]: entry["reason"]
            for entry in read_journals(plan.run_dir / "journal" / "personalise")
            if entry["reason"]
        }
        found = {number: _place_of(method, persons[number], key, reasons) for number, key in keys.items()}
        method.persons = KeptStates(
            {image_id: found[number] for number, person in enumerate(persons) for image_id in person.image_ids}
        )
        if rank == 0:
            _say_what_failed(persons, found)


def source_of(pictures: ProtocolPictures, person: Person, seed: int, card: DatasetCard) -> PersonalSource:
    """The person's references, and what the data set's card calls the person.

    Raises:
        BenchError: There are none, or one cannot be read.
    """
    if not person.references:
        raise UsageError(f"{person.identity} has no reference to be learnt from.")
    crops = [torch.tensor(pictures.crop(photo)).permute(2, 0, 1).float().div(255) for photo in person.references]
    return PersonalSource(torch.stack(crops), seed, card.class_word(person.identity))


def is_kept(path: Path) -> bool:
    """Whether a whole state is there."""
    try:
        require_state(path)
    except UsageError:
        return False
    return True


def _place_of(
    method: RestorationMethod, person: Person, key: str | BenchError, reasons: Mapping[str, str]
) -> Path | BenchError:
    """Where a person's state is kept; or why there is none."""
    if isinstance(key, BenchError):
        return UsageError(f"{person.identity} could not be learnt: {key}")
    path = state_path(method, key)
    try:
        require_state(path)
    except UsageError as error:
        return UsageError(f"{person.identity} could not be learnt: {reasons.get(key, error)}")
    return path


class KeptStates(Mapping[str, "PersonalState | BenchError"]):
    """States by image id, read when they are asked for: a tuned UNet of each person would fill the memory.

    Args:
        places: Where the state of the person on each picture is kept, or why there is none.
    """

    def __init__(self, places: Mapping[str, Path | BenchError]) -> None:
        self._places = places
        # The pictures of a person follow one another.
        self._read = lru_cache(maxsize=1)(read_state)

    def __getitem__(self, image_id: str) -> PersonalState | BenchError:
        place = self._places[image_id]
        return place if isinstance(place, BenchError) else self._read(place)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _warn(person: Person, source: PersonalSource) -> None:
    """Says which references seem to show somebody else."""
    for sentence in odd_references(source.references, [photo.path for photo in person.references]):
        print(f"bench: warning: {person.identity}: {sentence}", file=sys.stderr)  # noqa: T201


def _say_what_failed(persons: Sequence[Person], found: Mapping[int, Path | BenchError]) -> None:
    for number, person in enumerate(persons):
        if isinstance(found[number], BenchError):
            print(f"bench: {found[number]} {len(person.image_ids)} pictures fail.", file=sys.stderr)  # noqa: T201


def learn(
    method: RestorationMethod,
    source: PersonalSource,
    key: str,
    advance: Callable[[int, bool], None] | None = None,
) -> PersonalState:
    """Learns a person, or goes on where an earlier call was stopped, and keeps the state.

    Args:
        method: The method, where it runs.
        source: The references.
        key: Of the state, see `PersonalSource.key`.
        advance: See `RestorationMethod.personalise`.

    Raises:
        BenchError: Nothing can be learnt from these references, or with these settings.
    """
    path = state_path(method, key)
    unfinished = unfinished_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two runs that want the same person: the second waits, and finds the state.
    with FileLock(str(path.with_suffix(".lock"))):
        if is_kept(path):
            return read_state(path)
        before: dict[str, Tensor] | None = None
        if unfinished.is_file():
            try:
                before, metadata = read_weights(unfinished)
                before = before if metadata.get("key") == key else None
            except UsageError:
                before = None

        def keep(tensors: dict[str, Tensor]) -> None:
            found = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            write_tensors(unfinished, found, {"key": key})

        of_person = source.references, source.own_seed
        try:
            tensors = method.personalise(*of_person, before, keep, advance, source.class_word)
        except UnfinishedError:
            # It is of an earlier version, or not whole.
            tensors = method.personalise(*of_person, None, keep, advance, source.class_word)
        if broken := [name for name, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]:
            raise UsageError(f"What was learnt holds NaN or infinite values ({', '.join(broken[:3])}).")
        state = source.state(method, key, tensors)
        write_state(path, state)
        unfinished.unlink(missing_ok=True)
    return state
