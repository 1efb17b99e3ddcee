"""Degrades a folder of pictures, and records what was done to each so that it can be repeated."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bench.config import read_preset
from bench.data.workers import ending_at_once, ignoring_interrupts
from bench.degradation.contact_sheet import CONTACT_SHEET, contact_sheet
from bench.degradation.pipeline import DegradationPipeline, Theta, operator_versions, replay
from bench.degradation.records import RECORDS, Record, appending, check_versions, new_record, read_records, record_line
from bench.errors import BenchError, IncompleteError, UsageError
from bench.files import sha256_bytes, sha256_file, write_bytes, write_text
from bench.image import decode_image, encode_png, is_picture, write_png
from bench.progress import Progress
from bench.protocol.card import natural_key
from bench.seeds import derive_seed


@dataclass
class FolderResult:
    """What `degrade_folder` did.

    Attributes:
        output: The folder written to.
        written: Pictures made now.
        kept: Pictures that were there already, with a record that holds.
        removed: PNGs of an earlier call whose picture is gone or failed now.
        failed: Pictures that could not be degraded and folders that could not be read, and why.
    """

    output: Path
    written: int = 0
    kept: int = 0
    removed: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def degrade_folder(
    folder: Path,
    output: Path,
    preset: str,
    seed: int = 0,
    size: int | None = None,
    records: dict[str, Record] | None = None,
    workers: int = 1,
) -> FolderResult:
    """Degrades every picture of a folder as the frozen protocols do: on the CPU, in double precision, one by one.

    The seed of a picture comes from preset, declared seed and its path in the folder, so that no
    picture depends on which others lie beside it, nor on the number of workers. `theta.jsonl` in the
    output holds one line per picture: `path`, `output`, `size` [H, W], `theta`, the versions of its
    operators, and the SHA-256 of the picture and of what became of it. A second call makes only what is
    missing or out of date, and removes the PNGs of pictures that are gone. Files that no record names
    are never overwritten.

    Args:
        folder: Pictures, possibly in subfolders.
        output: Where PNGs of the same relative paths go; it must not lie inside `folder`.
        preset: Name of a degradation preset.
        seed: Declared seed.
        size: Side in pixels that the preset's blur and downscale ranges are scaled to (they are
            written for 512 px); None takes the shorter side of each picture.
        records: Records to replay, by path, from `read_records`; None samples.
        workers: Processes that degrade. 1 degrades in this process. Records are written here alone.

    Returns:
        Counts, and the reason for each picture that failed.

    Raises:
        UsageError: Unknown preset, no pictures, fewer than one worker, folders that overlap, or an output that is
            a file.
        IncompleteError: A worker process died, or the output cannot be written.
    """
    if workers < 1:
        raise UsageError(f"The number of workers must be at least 1, got {workers}.")
    steps = [] if records is not None else read_preset("degradation", preset)["steps"]
    paths, unreadable = _pictures_of(folder)
    if records is not None and not set(paths) & set(records):
        raise UsageError(f"The records to replay name no picture of {folder}.")
    targets = output_paths(paths)
    _check_output(folder, output, targets.values())
    earlier = read_records(output / RECORDS, needed=False) if (output / RECORDS).is_file() else {}
    earlier = {path: record for path, record in earlier.items() if "problem" not in record}
    result, lines = FolderResult(output, failed=dict(unreadable)), {}
    job = _Job(folder, output, preset, steps, seed, size, records is not None)
    named = {record.get("output") for record in earlier.values()}
    tasks = [
        _Task(path, targets[path], targets[path] in named, earlier.get(path), (records or {}).get(path))
        for path in paths
    ]
    progress = Progress("degraded", len(tasks))
    with _writing(output):
        output.mkdir(parents=True, exist_ok=True)
        with appending(output / RECORDS) as stream, closing(_outcomes(job, tasks, workers)) as outcomes:
            for outcome in outcomes:
                if outcome.line is None:
                    result.failed[outcome.path] = outcome.reason
                else:
                    lines[outcome.path] = outcome.line
                if outcome.line is not None and outcome.kept:
                    result.kept += 1
                elif outcome.line is not None:
                    stream.write(record_line(outcome.line))
                    stream.flush()
                    result.written += 1
                progress.advance()
        result.removed = _remove_dropped(output, earlier.values(), lines.values())
        # What was appended may hold stale or half-written lines of an earlier call.
        write_text(output / RECORDS, "".join(record_line(lines[path]) for path in paths if path in lines))
        if lines:
            write_png(output / CONTACT_SHEET, contact_sheet(folder, output, list(lines.values())))
    return result


def _pictures_of(folder: Path) -> tuple[list[str], dict[str, str]]:
    """`list_pictures` of a folder that must hold some."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder. Give a folder of pictures.")
    paths, unreadable = list_pictures(folder)
    if not paths and unreadable:
        raise UsageError(f"No picture of {folder} can be reached: {next(iter(unreadable.values()))}")
    if not paths:
        raise UsageError(f"{folder} holds no pictures (png, jpg, bmp, pgm, ppm, tif, webp).")
    return paths, unreadable


def _check_output(folder: Path, output: Path, targets: Iterable[str]) -> None:
    """Refuses an output that is a file, overlaps with the folder, or holds a contact sheet of something else."""
    inside = folder.resolve()
    for target in (RECORDS, CONTACT_SHEET, *targets):
        if (output / target).resolve().is_relative_to(inside):
            raise UsageError(f"The output {output} overlaps with {folder}. Choose a folder outside of it with -o.")
    if output.exists() and not output.is_dir():
        raise UsageError(f"The output {output} is a file. Choose a folder with -o.")
    if (output / CONTACT_SHEET).exists() and not (output / RECORDS).exists():
        raise UsageError(f"{output / CONTACT_SHEET} is none of ours: there is no {RECORDS}. Choose another folder.")


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Explains why the output cannot be written."""
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise IncompleteError(
            f"Cannot write to {output}{place}: {error.strerror or error}. What was finished stays; once there is room "
            "and permission, the same command goes on from there."
        ) from error


def _remove_dropped(output: Path, earlier: Iterable[Record], kept: Iterable[Record]) -> int:
    """Removes PNGs that an earlier call made and no record names any more; returns how many."""
    still = {record["output"] for record in kept}
    removed = 0
    for record in earlier:
        name = record.get("output", "")
        path = output / name
        inside = name.endswith(".png") and path.resolve().is_relative_to(output.resolve())
        if name not in still and inside and path.is_file() and sha256_file(path) == record.get("output_sha256"):
            path.unlink()
            removed += 1
    return removed


@dataclass(frozen=True)
class _Job:
    """What is the same for every picture; it travels to each worker once."""

    folder: Path
    output: Path
    preset: str
    steps: list[dict[str, Any]]
    seed: int
    size: int | None
    replays: bool


@dataclass(frozen=True)
class _Task:
    """One picture.

    Attributes:
        path: The picture.
        target: Its PNG.
        named: Whether a record of an earlier call names that PNG.
        earlier: The picture's own record of an earlier call.
        record: The record to replay.
    """

    path: str
    target: str
    named: bool
    earlier: Record | None
    record: Record | None


@dataclass(frozen=True)
class _Outcome:
    """What became of one picture: its record, or the reason why there is none."""

    path: str
    line: Record | None = None
    kept: bool = False
    reason: str = ""


def _outcomes(job: _Job, tasks: Sequence[_Task], workers: int) -> Generator[_Outcome, None, None]:
    """Outcomes in the order of the tasks."""
    if min(workers, len(tasks)) == 1:
        for task in tasks:
            yield _degrade_one(job, task)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)), get_context("spawn"), initializer=_start_worker, initargs=(job,)
    )
    with pool, ending_at_once(pool):
        try:
            # Workers inherit what is ignored here: Ctrl-C is this process's to handle.
            with ignoring_interrupts():
                waiting = [pool.submit(_degrade_in_worker, task) for task in tasks]
            for future in waiting:
                yield future.result()
        except BrokenProcessPool as error:
            raise IncompleteError(
                f"A worker process died (out of memory?); {job.output} holds what was finished. "
                "The same command goes on from there; try fewer --workers."
            ) from error


_worker_job: _Job


def _start_worker(job: _Job) -> None:
    import cv2
    import torch

    global _worker_job  # noqa: PLW0603
    _worker_job = job
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _degrade_in_worker(task: _Task) -> _Outcome:
    return _degrade_one(_worker_job, task)


def _degrade_one(job: _Job, task: _Task) -> _Outcome:
    try:
        task.path.encode("utf-8")
        content = _read(job.folder / task.path)
        digest = sha256_bytes(content)
        theta = _theta_of(job, task, digest)
        if theta is not None and task.earlier and _holds(job, task, digest, theta):
            return _Outcome(task.path, task.earlier, kept=True)
        image = decode_image(content, str(job.folder / task.path))
        theta = _theta(job, task, image.shape[:2], digest)
        png = encode_png(degrade_picture(image, theta))
        _check_result(job, task, png)
    except UnicodeEncodeError:
        return _Outcome(repr(task.path), reason="The file's name is not valid UTF-8.")
    except BenchError as error:
        return _Outcome(task.path, reason=str(error))
    with _writing(job.output):
        write_bytes(job.output / task.target, png)
    return _Outcome(task.path, new_record(task.path, task.target, image.shape[:2], (digest, sha256_bytes(png)), theta))


def _check_result(job: _Job, task: _Task, png: bytes) -> None:
    """Checks a PNG before it is written.

    Raises:
        UsageError: It is not what the replayed record tells of, or would replace a file that is none of ours.
    """
    expected = task.record.get("output_sha256") if task.record is not None else None
    if expected is not None and sha256_bytes(png) != expected:
        raise UsageError(
            f"The record of {task.path} gives another picture than the one it was written for (output_sha256 differs): "
            "the record was edited, or this is another version of OpenCV, NumPy, torch or Pillow. Nothing was written; "
            "without output_sha256 in the record the picture is made all the same."
        )
    target = job.output / task.target
    if not task.named and target.exists() and not (target.is_file() and sha256_file(target) == sha256_bytes(png)):
        raise UsageError(f"{target} is there already and no record names it. Move it away, or choose another folder.")


def degrade_picture(image: np.ndarray, theta: Theta) -> np.ndarray:
    """T(x, θ) of an (H, W, 3) uint8 RGB picture, in double precision on the CPU; same shape and type."""
    import torch

    clean = torch.from_numpy(np.array(image)).permute(2, 0, 1).double().div(255).unsqueeze(0)
    with torch.inference_mode():
        degraded = replay(clean, [theta])[0]
    pixels: np.ndarray = degraded.mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels


def list_pictures(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Paths of all pictures of a folder, relative, with "/" between their parts, in natural order.

    Returns:
        The paths, and the folders inside that cannot be read with the reason.
    """
    found, unreadable = [], {}

    def note(error: OSError) -> None:
        place = Path(error.filename or folder)
        unreadable[place.relative_to(folder).as_posix() + "/"] = f"Cannot read {place}: {error.strerror or error}."

    for parent, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in names]
        found += [path.relative_to(folder).as_posix() for path in paths if is_picture(path)]
    return sorted(found, key=lambda path: (natural_key(path), path)), unreadable


def output_paths(paths: Sequence[str]) -> dict[str, str]:
    """PNG path of each picture: its own with another suffix, or with `.png` added where two would meet."""
    simple = {path: PurePosixPath(path).with_suffix(".png").as_posix() for path in paths}
    uses = Counter(name.casefold() for name in simple.values())
    reserved = {RECORDS, CONTACT_SHEET}
    chosen = {
        path: name if uses[name.casefold()] == 1 and name not in reserved else f"{path}.png"
        for path, name in simple.items()
    }
    if len({name.casefold() for name in chosen.values()}) < len(chosen):
        chosen = {path: f"{path}.png" for path in paths}
    return chosen


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read the picture {path}: {error.strerror or error}.") from error


def _theta_of(job: _Job, task: _Task, digest: str) -> Theta | None:
    """What θ would be for a picture whose size is known from an earlier record; None without one."""
    earlier = task.earlier
    if earlier is None or earlier.get("sha256") != digest or "size" not in earlier:
        return None
    return _theta(job, task, tuple(earlier["size"]), digest)


def _theta(job: _Job, task: _Task, shape: tuple[int, ...], digest: str) -> Theta:
    height, width = shape
    if job.replays:
        record = task.record
        if record is None:
            raise UsageError("The records to replay have no line for this picture.")
        if "problem" in record:
            raise UsageError(record["problem"])
        check_versions(record)
        if record.get("sha256", digest) != digest or list(record.get("size", shape)) != list(shape):
            raise UsageError("This is not the picture that its record was made for (SHA-256 or size differs).")
        return dict(record["theta"])
    pipeline = DegradationPipeline(job.preset, job.steps, job.size or min(height, width))
    # One file has one seed on every file system, also where accents are stored in two characters.
    own_seed = derive_seed(job.preset, job.seed, unicodedata.normalize("NFC", task.path))
    return pipeline.sample([own_seed], (height, width))[0]


def _holds(job: _Job, task: _Task, digest: str, theta: Theta) -> bool:
    """Whether the earlier record still tells how the file in the output was made from this picture."""
    earlier, made = task.earlier or {}, job.output / task.target
    told = [earlier.get(key) for key in ("output", "sha256", "theta", "versions")]
    if told != [task.target, digest, theta, operator_versions(theta)] or not made.is_file():
        return False
    expected = earlier.get("output_sha256")
    return (task.record or {}).get("output_sha256", expected) == expected == sha256_file(made)
