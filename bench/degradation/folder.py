"""Degrades a folder of pictures, and records what was done to each so that it can be repeated."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bench.config import read_preset
from bench.degradation.pipeline import DegradationPipeline, Theta, replay
from bench.errors import BenchError, UsageError
from bench.files import sha256_bytes, sha256_file, write_bytes, write_text
from bench.image import decode_image, encode_png, is_picture, read_image, write_png
from bench.progress import counted
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
) -> FolderResult:
    """Degrades every picture of a folder as the frozen protocols do: on the CPU, in double precision, one by one.

    The seed of a picture comes from preset, declared seed and its path in the folder, so that no
    picture depends on which others lie beside it. `theta.jsonl` in the output holds one line per
    picture: `path`, `output`, `size` [H, W], `theta`, and the SHA-256 of the picture and of what
    became of it. A second call makes only what is missing or out of date.

    Args:
        folder: Pictures, possibly in subfolders.
        output: Where PNGs of the same relative paths go; it must not lie inside `folder`.
        preset: Name of a degradation preset.
        seed: Declared seed.
        size: Side in pixels that the preset's blur and downscale ranges are scaled to (they are
            written for 512 px); None takes the shorter side of each picture.
        records: Records to replay, by path, from `read_records`; None samples.

    Returns:
        Counts, and the reason for each picture that failed.

    Raises:
        UsageError: Unknown preset, no pictures, or folders that overlap.
    """
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
    for path in counted(paths, "degraded"):
        try:
            path.encode("utf-8")
            content = _read(folder / path)
            digest = sha256_bytes(content)
            theta = _theta_of(path, digest, earlier.get(path), preset, steps, seed, size, records)
            if theta is not None and _holds(earlier[path], targets[path], digest, theta, output):
                lines[path] = earlier[path]
                result.kept += 1
                continue
            image = decode_image(content, str(folder / path))
            theta = _theta(path, image.shape[:2], digest, preset, steps, seed, size, records)
            png = encode_png(degrade_picture(image, theta))
        except UnicodeEncodeError:
            result.failed[repr(path)] = "The file's name is not valid UTF-8."
            continue
        except BenchError as error:
            result.failed[path] = str(error)
            continue
        write_bytes(output / targets[path], png)
        lines[path] = {
            "path": path,
            "output": targets[path],
            "size": list(image.shape[:2]),
            "sha256": digest,
            "output_sha256": sha256_bytes(png),
            "theta": theta,
        }
        with (output / RECORDS).open("a", encoding="utf-8") as stream:
            stream.write(_line(lines[path]))
        result.written += 1
    # What was appended may hold stale or half-written lines of an earlier call.
    write_text(output / RECORDS, "".join(_line(lines[path]) for path in paths if path in lines))
    if lines:
        write_png(output / CONTACT_SHEET, contact_sheet(folder, output, list(lines.values())))
    return result


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


def _theta_of(path: str, digest: str, earlier: dict[str, Any] | None, *rest: Any) -> Theta | None:
    """What θ would be for a picture whose size is known from an earlier record; None without one."""
    if earlier is None or earlier.get("sha256") != digest or len(earlier.get("size", ())) != 2:
        return None
    return _theta(path, tuple(earlier["size"]), digest, *rest)


def _theta(
    path: str,
    shape: tuple[int, ...],
    digest: str,
    preset: str,
    steps: list[dict[str, Any]],
    seed: int,
    size: int | None,
    records: dict[str, dict[str, Any]] | None,
) -> Theta:
    height, width = shape
    if records is not None:
        record = records.get(path)
        if record is None:
            raise UsageError("The records to replay have no line for this picture.")
        if record.get("sha256", digest) != digest or list(record.get("size", shape)) != list(shape):
            raise UsageError("This is not the picture that its record was made for (SHA-256 or size differs).")
        return dict(record["theta"])
    pipeline = DegradationPipeline(preset, steps, size or min(height, width))
    # One file has one seed on every file system, also where accents are stored in two characters.
    own_seed = derive_seed(preset, seed, unicodedata.normalize("NFC", path))
    return pipeline.sample([own_seed], (height, width))[0]


def _holds(line: dict[str, Any], target: str, digest: str, theta: Theta, output: Path) -> bool:
    """Whether an earlier record still tells how the file in the output was made from this picture."""
    made = output / target
    same = (line.get("output"), line.get("sha256"), line["theta"]) == (target, digest, theta)
    return same and made.is_file() and sha256_file(made) == line.get("output_sha256")


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
