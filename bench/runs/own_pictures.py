"""Restores pictures of one's own: no protocol, no ground truth, nothing scored."""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional as F

from bench.batch import FaceBatch
from bench.degradation.folder import list_pictures, output_paths
from bench.errors import BenchError, MissingError, UsageError
from bench.image import MAXIMUM_PIXELS, SUFFIXES, encode_png, read_image
from bench.method import RestorationMethod
from bench.progress import Progress
from bench.runs.own_results import write_result
from bench.runs.performance import resident_peak_mb
from bench.runs.trainer import trainer_options
from bench.seeds import derive_seed


def say(sentence: str) -> None:
    """Tells the user something beside the result."""
    print(f"bench: {sentence}", file=sys.stderr)  # noqa: T201


class Workplace:
    """Device and precision that the trainer's settings ask for, in this process alone.

    Args:
        settings: The composed `trainer` group.

    Raises:
        UsageError: The settings do not work here, or ask for several processes.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        options = trainer_options(settings, training=False)
        try:
            trainer = Trainer(**options, logger=False, enable_checkpointing=False)
        except (ValueError, MisconfigurationException) as error:
            raise UsageError(f"The trainer settings do not work here: {error}") from error
        if trainer.world_size > 1:
            raise UsageError("One process does this: leave out trainer=ddp, and give trainer.devices=1.")
        self.device = trainer.strategy.root_device
        self.precision = trainer.precision_plugin
        self.precision_name = str(settings["precision"])

    def peak_memory_mb(self) -> float:
        """Peak memory in MB: of the GPU if this is one, else of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        return resident_peak_mb()


# Reading ------------------------------------------------------------------------------------------


def read_picture(path: Path) -> Tensor:
    """A picture file as (3, H, W) RGB in [0, 1].

    Raises:
        UnreadableImageError: It cannot be decoded.
    """
    return torch.from_numpy(read_image(path)).permute(2, 0, 1).float().div(255)


def resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture (3, H, W) brought to another size bicubically, in [0, 1]; one of that size as it is."""
    if tuple(picture.shape[-2:]) == size:
        return picture
    scaled = F.interpolate(picture[None], size=size, mode="bicubic", align_corners=False, antialias=True)
    return scaled[0].clamp(0.0, 1.0)


def size_text(picture: Tensor) -> str:
    """`300x200`, width first."""
    return f"{picture.shape[-1]}x{picture.shape[-2]}"


def read_references(paths: Sequence[Path]) -> list[Tensor]:
    """Reads reference pictures, and says which of them are the same.

    Args:
        paths: Aligned square pictures of any size.

    Returns:
        (3, H, H) each.

    Raises:
        UnreadableImageError: One cannot be decoded; the message names it.
        UsageError: One is not square; the message names it.
    """
    pictures: list[Tensor] = []
    for path, picture in ((path, read_picture(path)) for path in paths):
        if picture.shape[-1] != picture.shape[-2]:
            raise UsageError(
                f"The reference {path} has {size_text(picture)} px. Aligned square pictures of the face are wanted: "
                "cut the face out first, eyes and mouth where they are in the pictures to restore."
            )
        for earlier, other in zip(paths, pictures, strict=False):
            if torch.equal(picture, other):
                say(f"warning: the reference {path} is the same picture as {earlier}; it teaches nothing more.")
                break
        pictures.append(picture)
    return pictures


def at_side(pictures: Sequence[Tensor], paths: Sequence[Path], side: int) -> Tensor:
    """Square references at the size a method works at; says which of them had to be enlarged.

    Args:
        pictures: From `read_references`.
        paths: Their files.
        side: In pixels.

    Returns:
        (R, 3, side, side), of 8 bits per channel, so that their digests name all that they hold.
    """
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape[-1] < side:
            say(
                f"warning: the reference {path} is enlarged from {size_text(picture)} to {side}x{side} px; a larger "
                "one shows more of the person."
            )
    brought = torch.stack([resized(picture, (side, side)) for picture in pictures])
    return brought.mul(255).round().div(255)


# Where the results go -------------------------------------------------------------------------------


@dataclass
class Task:
    """A picture to restore.

    Attributes:
        path: Its file.
        target: The picture to write.
    """

    path: Path
    target: Path

    @property
    def name(self) -> str:
        """Name of the file: the picture's id, from which its seed comes wherever it lies."""
        return unicodedata.normalize("NFC", self.path.name)


def tasks_of(given: Sequence[Path], output: Path, keep_format: bool = False) -> tuple[list[Task], dict[str, str]]:
    """Which pictures to restore, and where each result goes.

    Args:
        given: Files, and folders whose pictures are taken with their subfolders.
        output: A picture file for one picture, else a folder: a picture of a folder keeps its path inside, a file its
            name.
        keep_format: Whether results are of the format of their pictures; else they are PNGs.

    Returns:
        The tasks, and the folders inside that cannot be read with the reason.

    Raises:
        UsageError: No pictures, an output that does not suit them, or one inside a folder that is read.
    """
    labels: dict[Path, str] = {}
    unreadable: dict[str, str] = {}
    for place in given:
        if not place.is_dir():
            labels.setdefault(place, place.name)
            continue
        found, failed = list_pictures(place)
        unreadable |= {f"{place / name}/": reason for name, reason in failed.items()}
        if not found and not failed:
            raise UsageError(f"{place} holds no pictures (png, jpg, bmp, pgm, ppm, tif, webp).")
        if output.resolve().is_relative_to(place.resolve()):
            raise UsageError(f"The output {output} overlaps with {place}. Choose one outside of it with -o.")
        for name in found:
            labels.setdefault(place / name, name)
    if len(set(labels.values())) < len(labels):
        # Files of one name from several folders: each keeps its path below the folder that holds them all.
        absolute = {path: Path(os.path.abspath(path)) for path in labels}  # noqa: PTH100
        top = os.path.commonpath([path.parent for path in absolute.values()])
        labels = {path: own.relative_to(top).as_posix() for path, own in absolute.items()}
    if output.suffix.lower() in SUFFIXES and not output.is_dir():
        return _single_task(list(labels), output, keep_format), unreadable
    if output.exists() and not output.is_dir():
        kind = "a file of a picture" if keep_format else "a new file that ends in .png"
        raise UsageError(f"The output {output} is a file. Choose a folder with -o, or {kind}.")
    names = {label: label for label in labels.values()} if keep_format else output_paths(list(labels.values()))
    return [Task(path, output / names[label]) for path, label in labels.items()], unreadable


def _single_task(paths: Sequence[Path], output: Path, keep_format: bool) -> list[Task]:
    if len(paths) != 1:
        raise UsageError(f"The output {output} is one file for {len(paths)} pictures. Give a folder with -o.")
    if output.suffix.lower() != ".png" and not keep_format:
        raise UsageError(f"Restored aligned pictures are written as PNG: -o {output.with_suffix('.png')}")
    return [Task(paths[0], output)]


def require_no_input(targets: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Refuses to overwrite what is read, also under another name or through a link.

    Raises:
        UsageError: A target is an input.
    """
    own = {(stat.st_dev, stat.st_ino): path for path in inputs if path.exists() for stat in [path.stat()]}
    for target in targets:
        if target.exists() and (stat := target.stat()) and (stat.st_dev, stat.st_ino) in own:
            raise UsageError(
                f"The output {target} is the input {own[stat.st_dev, stat.st_ino]}, which would be overwritten. "
                "Choose another with -o."
            )


# Restoring ----------------------------------------------------------------------------------------


@dataclass
class Restored:
    """What became of some pictures.

    Attributes:
        written: File, PNG, width and height in pixels, and seconds of each restored picture.
        failed: Why the others were not restored, by file.
    """

    written: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def restore_all(
    method: RestorationMethod,
    workplace: Workplace,
    tasks: Sequence[Task],
    references: Sequence[Tensor],
    seed: int,
    scale: float = 1.0,
) -> Restored:
    """Restores pictures one by one; one that fails stops no other.

    Args:
        method: The method, with the persons of the pictures where it learns such.
        workplace: Where it runs.
        tasks: The pictures.
        references: (3, H, H) each, for every picture.
        seed: Of the run.
        scale: How much the pictures are enlarged first.

    Raises:
        MissingError: Something that every picture needs is absent.
    """
    method = workplace.precision.convert_module(method.to(workplace.device))  # type: ignore[assignment]
    result, progress = Restored(), Progress("restored", len(tasks))
    for task in tasks:
        try:
            lq = enlarged(read_picture(task.path), scale)
            _require_size(method, task.path, lq)
            batch = own_batch(task.name, lq, references, seed, method.native_size)
            started = time.perf_counter()
            picture = restored_picture(method, workplace, batch)
            seconds = time.perf_counter() - started
        except MissingError:
            raise
        except BenchError as error:
            result.failed[str(task.path)] = str(error)
        except Exception as error:
            result.failed[str(task.path)] = f"Restoration failed: {type(error).__name__}: {error}"
        else:
            pixels = picture.mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            write_result(task.target, encode_png(pixels))
            result.written.append(
                {
                    "picture": str(task.path),
                    "file": str(task.target),
                    "width": picture.shape[-1],
                    "height": picture.shape[-2],
                    "seconds": seconds,
                }
            )
        progress.advance()
    return result


def enlarged(picture: Tensor, scale: float) -> Tensor:
    """A picture (3, H, W) at `scale` times its size.

    Raises:
        UsageError: That is more than is read of any picture, or nothing.
    """
    height, width = (round(side * scale) for side in picture.shape[-2:])
    if not 0 < height * width <= MAXIMUM_PIXELS:
        raise UsageError(f"--scale {scale:g} makes {width}x{height} px of it; at most {MAXIMUM_PIXELS:,} are made.")
    return resized(picture, (height, width))


def own_batch(name: str, lq: Tensor, references: Sequence[Tensor], seed: int, side: int | None) -> FaceBatch:
    """A picture as a batch of one.

    Args:
        name: Its id.
        lq: (3, H, W).
        references: (3, h, w) each.
        seed: Of the run.
        side: The method's native size, to which references are brought; None takes that of the picture.
    """
    height, width = (side, side) if side is not None else tuple(lq.shape[-2:])
    own = [resized(reference, (height, width)) for reference in references]
    return FaceBatch(
        lq=lq[None],
        references=torch.stack(own)[None] if own else torch.zeros(1, 0, 3, height, width),
        reference_mask=torch.ones(1, len(own), dtype=torch.bool),
        image_ids=[name],
        identities=[name],
        seeds=[derive_seed(seed, name, "restoration")],
    )


def _require_size(method: RestorationMethod, path: Path, lq: Tensor) -> None:
    if not method.any_size and lq.shape[-1] != lq.shape[-2]:
        raise UsageError(
            f"{path} has {size_text(lq)} px. {method.label} restores aligned square pictures of a face: cut the face "
            "out first."
        )


def restored_picture(method: RestorationMethod, workplace: Workplace, batch: FaceBatch) -> Tensor:
    """The restored picture, (3, H, W) in [0, 1], on the CPU.

    Raises:
        UsageError: It holds NaN or infinite values.
    """
    height, width = batch.lq.shape[-2:]
    # A face that is smaller than what the network works on is one that was scaled down, not a part of a larger picture.
    small = height == width and width <= (method.native_size or 0)
    directly = method.any_size and not small
    batch = workplace.precision.convert_input(batch.to(workplace.device))
    with torch.inference_mode(), workplace.precision.forward_context():
        restored = method.restore(batch).clamp(0.0, 1.0) if directly else method.restore_at_native_size(batch)
        picture = restored[0].float().cpu()
    if not torch.isfinite(picture).all():
        raise UsageError("The result holds NaN or infinite values.")
    return picture
