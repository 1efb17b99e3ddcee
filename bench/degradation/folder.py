"""Degrades a folder of pictures, and records what was done to each so that it can be repeated."""

from __future__ import annotations

import json
import signal
import threading
import unicodedata
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bench.config import read_preset
from bench.degradation.pipeline import DegradationPipeline, Theta, replay
from bench.errors import BenchError, IncompleteError, UsageError
from bench.files import sha256_bytes, sha256_file, write_bytes, write_text
from bench.image import decode_image, encode_png, is_picture, read_image, write_png
from bench.progress import Progress
from bench.protocol.card import natural_key
from bench.seeds import derive_seed

RECORDS = "theta.jsonl"
CONTACT_SHEET = "contact_sheet.png"
SHEET_PAIRS = 24
SHEET_COLUMNS = 4
SHEET_SIDE = 128


@dataclass
class FolderResult:
    """What `degrade_folder` did.

    Attributes:
        output: The folder written to.
        written: Pictures made now.
        kept: Pictures that were there already, with a record that holds.
        failed: Pictures that could not be degraded, and why.
    """

    output: Path
    written: int = 0
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def degrade_folder(
    folder: Path,
    output: Path,
    preset: str,
    seed: int = 0,
    size: int | None = None,
    records: dict[str, dict[str, Any]] | None = None,
    workers: int = 1,
) -> FolderResult:
    """Degrades every picture of a folder as the frozen protocols do: on the CPU, in double precision, one by one.

    The seed of a picture comes from preset, declared seed and its path in the folder, so that no
    picture depends on which others lie beside it, nor on the number of workers. `theta.jsonl` in the
    output holds one line per picture: `path`, `output`, `size` [H, W], `theta`, and the SHA-256 of the
    picture and of what became of it. A second call makes only what is missing or out of date.

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
        UsageError: Unknown preset, no pictures, fewer than one worker, or folders that overlap.
        IncompleteError: A worker process died.
    """
    if workers < 1:
        raise UsageError(f"The number of workers must be at least 1, got {workers}.")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder. Give a folder of pictures.")
    steps = [] if records is not None else read_preset("degradation", preset)["steps"]
    paths = list_pictures(folder)
    if not paths:
        raise UsageError(f"{folder} holds no pictures (png, jpg, bmp, pgm, ppm, tif, webp).")
    targets = output_paths(paths)
    inside = folder.resolve()
    for target in (RECORDS, CONTACT_SHEET, *targets.values()):
        if (output / target).resolve().is_relative_to(inside):
            raise UsageError(f"The output {output} overlaps with {folder}. Choose a folder outside of it with -o.")
    output.mkdir(parents=True, exist_ok=True)
    earlier = read_records(output / RECORDS) if (output / RECORDS).is_file() else {}
    result, lines = FolderResult(output), {}
    job = _Job(folder, output, preset, steps, seed, size, records is not None)
    tasks = [_Task(path, targets[path], earlier.get(path), (records or {}).get(path)) for path in paths]
    progress = Progress("degraded", len(tasks))
    with (output / RECORDS).open("a", encoding="utf-8") as stream, closing(_outcomes(job, tasks, workers)) as outcomes:
        for outcome in outcomes:
            if outcome.line is None:
                result.failed[outcome.path] = outcome.reason
            else:
                lines[outcome.path] = outcome.line
            if outcome.line is not None and outcome.kept:
                result.kept += 1
            elif outcome.line is not None:
                stream.write(_line(outcome.line))
                stream.flush()
                result.written += 1
            progress.advance()
    # What was appended may hold stale or half-written lines of an earlier call.
    write_text(output / RECORDS, "".join(_line(lines[path]) for path in paths if path in lines))
    if lines:
        write_png(output / CONTACT_SHEET, contact_sheet(folder, output, list(lines.values())))
    return result


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
    """One picture: its path and that of its PNG, its record of an earlier call, and the record to replay."""

    path: str
    target: str
    earlier: dict[str, Any] | None
    record: dict[str, Any] | None


@dataclass(frozen=True)
class _Outcome:
    """What became of one picture: its record, or the reason why there is none."""

    path: str
    line: dict[str, Any] | None = None
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
    with pool:
        try:
            # Workers inherit what is ignored here: Ctrl-C is this process's to handle.
            with _ignoring_interrupts():
                waiting = [pool.submit(_degrade_in_worker, task) for task in tasks]
            for future in waiting:
                yield future.result()
        except BrokenProcessPool as error:
            raise IncompleteError(
                f"A worker process died (out of memory?); {job.output} holds what was finished. "
                "The same command goes on from there; try fewer --workers."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
        if theta is not None and task.earlier and _holds(task.earlier, task.target, digest, theta, job.output):
            return _Outcome(task.path, task.earlier, kept=True)
        image = decode_image(content, str(job.folder / task.path))
        theta = _theta(job, task, image.shape[:2], digest)
        png = encode_png(degrade_picture(image, theta))
    except UnicodeEncodeError:
        return _Outcome(repr(task.path), reason="The file's name is not valid UTF-8.")
    except BenchError as error:
        return _Outcome(task.path, reason=str(error))
    write_bytes(job.output / task.target, png)
    line = {
        "path": task.path,
        "output": task.target,
        "size": list(image.shape[:2]),
        "sha256": digest,
        "output_sha256": sha256_bytes(png),
        "theta": theta,
    }
    return _Outcome(task.path, line)


def degrade_picture(image: np.ndarray, theta: Theta) -> np.ndarray:
    """T(x, θ) of an (H, W, 3) uint8 RGB picture, in double precision on the CPU; same shape and type."""
    import torch

    clean = torch.from_numpy(np.array(image)).permute(2, 0, 1).double().div(255).unsqueeze(0)
    try:
        with torch.inference_mode():
            degraded = replay(clean, [theta])[0]
    except (KeyError, TypeError) as error:
        raise UsageError(f"The record of this picture is not a degradation this version knows: {error!r}.") from error
    pixels: np.ndarray = degraded.mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels


def list_pictures(folder: Path) -> list[str]:
    """Paths of all pictures of a folder, relative, with "/" between their parts, in natural order."""
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if is_picture(path) and not any(part.startswith(".") for part in relative.parts):
            found.append(relative.as_posix())
    return sorted(found, key=lambda path: (natural_key(path), path))


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


def read_records(path: Path) -> dict[str, dict[str, Any]]:
    """Reads a `theta.jsonl`: records by path; the last line of a path counts.

    Raises:
        UsageError: The file is missing or holds no record.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(
            f"Cannot read {path}: {error.strerror or error}. Give the theta.jsonl of an earlier output."
        ) from error
    records = {}
    for line in lines:
        try:
            record = json.loads(line)
            records[str(record["path"])] = {**record, "theta": dict(record["theta"])}
        except (ValueError, KeyError, TypeError):
            continue
    if not records and lines:
        raise UsageError(f"{path} holds no degradation records (one JSON object with path and theta a line).")
    return records


def contact_sheet(folder: Path, output: Path, lines: Sequence[dict[str, Any]]) -> np.ndarray:
    """Pairs of original and degraded picture, up to 24, as (H, W, 3) uint8 RGB."""
    from PIL import Image, ImageDraw

    shown = lines[:SHEET_PAIRS]
    columns = min(SHEET_COLUMNS, len(shown))
    width, height = 2 * SHEET_SIDE + 12, SHEET_SIDE + 24
    sheet = Image.new("RGB", (columns * width, -(-len(shown) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for position, line in enumerate(shown):
        left, top = position % columns * width + 4, position // columns * height + 4
        for offset, path in ((0, folder / line["path"]), (SHEET_SIDE + 2, output / line["output"])):
            picture = Image.fromarray(read_image(path))
            picture.thumbnail((SHEET_SIDE, SHEET_SIDE))
            sheet.paste(picture, (left + offset, top))
        draw.text((left, top + SHEET_SIDE + 2), line["path"][-40:], fill="black")
    return np.asarray(sheet)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read the picture {path}: {error.strerror or error}.") from error


def _theta_of(job: _Job, task: _Task, digest: str) -> Theta | None:
    """What θ would be for a picture whose size is known from an earlier record; None without one."""
    earlier = task.earlier
    if earlier is None or earlier.get("sha256") != digest or len(earlier.get("size", ())) != 2:
        return None
    return _theta(job, task, tuple(earlier["size"]), digest)


def _theta(job: _Job, task: _Task, shape: tuple[int, ...], digest: str) -> Theta:
    height, width = shape
    if job.replays:
        record = task.record
        if record is None:
            raise UsageError("The records to replay have no line for this picture.")
        if record.get("sha256", digest) != digest or list(record.get("size", shape)) != list(shape):
            raise UsageError("This is not the picture that its record was made for (SHA-256 or size differs).")
        return dict(record["theta"])
    pipeline = DegradationPipeline(job.preset, job.steps, job.size or min(height, width))
    # One file has one seed on every file system, also where accents are stored in two characters.
    own_seed = derive_seed(job.preset, job.seed, unicodedata.normalize("NFC", task.path))
    return pipeline.sample([own_seed], (height, width))[0]


def _holds(line: dict[str, Any], target: str, digest: str, theta: Theta, output: Path) -> bool:
    """Whether an earlier record still tells how the file in the output was made from this picture."""
    made = output / target
    same = (line.get("output"), line.get("sha256"), line["theta"]) == (target, digest, theta)
    return same and made.is_file() and sha256_file(made) == line.get("output_sha256")


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
