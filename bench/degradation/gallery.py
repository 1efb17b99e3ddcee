"""Writes the page of all degradations, `configs/degradation/README.md`, with a strip of pictures and figures for each.

`python -m bench.degradation.gallery` draws the strips, measures every preset anew and writes the page; with
`--only PRESET...` the others keep their pictures and figures. The page is a pure function of the configurations and of
`strips/measured.json`, so that a test can tell whether it is up to date without measuring again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.config import group_choices, read_preset
from bench.degradation.pipeline import DegradationPipeline
from bench.degradation.words import in_words
from bench.errors import BenchError, MissingError, unknown_name
from bench.files import sha256_bytes, write_bytes, write_text
from bench.paths import resource_root
from bench.seeds import derive_seed

METRICS = ("psnr_y", "ssim_y", "id")
DRAWS, COLUMNS = 10, 5
LARGEST_STRIP = 60_000
#: Rows and columns of scikit-image's astronaut (NASA, public domain) that hold her face.
FACE = (slice(8, 176), slice(144, 312))
ORL_SIZE = 128
BINS = {"psnr_y": (10.0, 40.0, 30), "ssim_y": (0.0, 1.0, 25), "id": (-0.4, 1.0, 28)}
TITLES = {"psnr_y": "PSNR-Y (dB)", "ssim_y": "SSIM-Y", "id": "ID"}
DECIMALS = {"psnr_y": 2, "ssim_y": 3, "id": 3}
PFSTORER_INPUT = {"psnr_y": 22.56, "ssim_y": 0.719, "id": 0.2185}
INTRODUCTION = """# Degradations

<!-- Written by python -m bench.degradation.gallery; edit the YAML files instead. -->

One YAML file for each degradation: the published chains, and `light` and `heavy`, which the protocols use. A file is a
list of steps; each step names an operator (`bench/degradation/operators/`) and its ranges. `bench degrade FOLDER -o OUT
--preset NAME` applies one to a folder of pictures.

**Sizes.** Lengths are written for pictures of 512 px. For a native size N blur widths and downscale factors are
multiplied by N/512, and no picture is ever made smaller than 16 px; `bicubic_x*` is excepted from both: a factor of
super-resolution is the same at every size. A kernel that reaches further than its picture is cut off there. Noise
strengths and JPEG qualities are not scaled: a chain that adds noise before its last reduction (the second-order ones)
looks noisier on small pictures than on large ones, where the reduction averages it out. Every chain ends at the size
it started from.

**JPEG.** Qualities are drawn evenly and lose their fraction, as in BasicSR's loaders: the upper end of a range is never
drawn (BSRGAN and ReDegNet draw whole numbers, which include it).

**Camera noise** (`camera_isp`). In its default mode only the noise passes raw light; the picture itself is mosaicked
and demosaiced in encoded colours, so that without noise it is, by construction, what Malvar's demosaicing alone makes
of it (34.6 dB to the input on a 512 px photograph). The physical order, mosaic and demosaicing in raw colours, is
`mode: raw`: 30.1 dB on the same picture.

**Strips.** Ten draws on one face of 168 px (NASA's astronaut Eileen Collins, public domain, from scikit-image):

![the face]({face})

**Figures.** Measured on all {n} photographs of the {people} training identities of ORL, aligned, 128 px; the test
identities are not looked at. The photographs are grey: what a chain does to colours shows in the strips only. PSNR and
SSIM are those of the luma; ID is the centred cosine between degraded and clean face of dlib's recogniser, the judge of
the boards. Each figure is the median, with the quartiles behind it; metric identities stand at the end.
"""


def preset_names() -> list[str]:
    """Every preset in alphabetical order, `light` and `heavy` first."""
    return sorted(
        group_choices("degradation"), key=lambda name: (name not in ("light", "heavy"), name != "light", name)
    )


def steps_hash(name: str) -> str:
    """Twelve digits of the SHA-256 of a preset's steps and of its operators' versions, whatever its name."""
    specification = DegradationPipeline(name, read_preset("degradation", name)["steps"]).specification()
    del specification["size"], specification["name"]
    return sha256_bytes(json.dumps(specification, sort_keys=True).encode())[:12]


def remarks(name: str) -> str:
    """The comment at the head of a preset's file, in one line."""
    lines = group_choices("degradation")[name].read_text("utf-8").splitlines()
    comment = [line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")]]
    return " ".join(comment)


def face() -> np.ndarray:
    """The face of the strips, (168, 168, 3) uint8 RGB.

    Raises:
        MissingError: scikit-image is absent.
    """
    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise MissingError("The gallery needs scikit-image: pip install scikit-image.") from error
    picture: np.ndarray = astronaut()[FACE]
    return picture


@cache
def _pipeline(name: str, size: int) -> DegradationPipeline:
    return DegradationPipeline(name, read_preset("degradation", name)["steps"], size)


def degraded(picture: np.ndarray, name: str, seed: int) -> np.ndarray:
    """A picture under one draw of a preset at its native size; (H, W, 3) uint8 RGB, as `bench degrade` makes it."""
    from bench.degradation.folder import degrade_picture

    height, width = picture.shape[:2]
    return degrade_picture(picture, _pipeline(name, min(height, width)).sample([seed], (height, width))[0])


def strip(name: str) -> np.ndarray:
    """Ten draws of a preset on the face, two rows of five; (336, 840, 3) uint8 RGB."""
    draws = [degraded(face(), name, derive_seed("gallery", "strip", draw)) for draw in range(DRAWS)]
    rows = [np.concatenate(draws[start : start + COLUMNS], axis=1) for start in range(0, DRAWS, COLUMNS)]
    return np.concatenate(rows, axis=0)


def training_photos(per_identity: int | None = None) -> Any:
    """ORL's training photographs, aligned, as a `ScoringBatch` whose restored pictures are the truth.

    Args:
        per_identity: How many of each identity; None for all.
    """
    from bench.image import read_image
    from bench.metrics.metric import ScoringBatch
    from bench.protocol.alignment import valid_region, warp
    from bench.protocol.card import data_root, load_card
    from bench.protocol.protocol import DataSettings
    from bench.protocol.selection import plan_images

    root = data_root(load_card("orl"))
    settings = DataSettings("gallery", "", "orl", {}, "train", ORL_SIZE, 0, 0, per_identity, None)
    sources = [(image.image_id, image.source) for image in plan_images(settings, root) if image.source is not None]
    photos = [read_image(root / source.path) for _, source in sources]
    truth = np.stack([warp(photo, s.matrix, ORL_SIZE) for photo, (_, s) in zip(photos, sources, strict=True)])
    valid = [valid_region(s.matrix, p.shape[:2], ORL_SIZE) for p, (_, s) in zip(photos, sources, strict=True)]
    return ScoringBatch(
        image_ids=[image_id for image_id, _ in sources],
        restored=truth,
        truth=truth,
        references=[[]] * len(sources),
        landmarks=np.stack([source.points for _, source in sources if source.points is not None]),
        reference_landmarks=None,
        valid=np.stack(valid),
    )


def measure(name: str, photos: Any, metrics: Sequence[str] = METRICS) -> dict[str, np.ndarray]:
    """Scores of the degraded photographs, (n,) for each metric; one seed per photograph, the same for every preset.

    Args:
        name: Preset.
        photos: From `training_photos`.
        metrics: Names of metrics.
    """
    from dataclasses import replace

    from bench.registry import load_metric

    lq = [
        degraded(truth, name, derive_seed("gallery", image_id))
        for truth, image_id in zip(photos.truth, photos.image_ids, strict=True)
    ]
    batch = replace(photos, restored=np.stack(lq))
    found = {}
    for metric in metrics:
        scores = load_metric(metric)().score_batch(batch)
        if missing := [score.reason for score in scores if score.value is None]:
            raise MissingError(f"{metric} cannot be measured: {missing[0]}.")
        found[metric] = np.array([score.value for score in scores], dtype=np.float64)
    return found


def summary(name: str, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """What is kept of a preset's scores: minimum, quartiles and maximum, and the counts of a histogram."""
    kept: dict[str, Any] = {"steps": steps_hash(name)}
    for metric, scores in values.items():
        low, high, bins = BINS[metric]
        counts, _ = np.histogram(np.clip(scores, low, high - 1e-9), bins=bins, range=(low, high))
        five = np.percentile(scores, (0, 25, 50, 75, 100))
        kept[metric] = {"five": [round(float(v), 4) for v in five], "histogram": counts.tolist()}
    return kept


def distributions(measured: dict[str, Any]) -> np.ndarray:
    """Histograms of every preset, one row each, as (H, W, 3) uint8 RGB."""
    from PIL import Image, ImageDraw

    row, column, left, top = 26, 220, 130, 34
    names = [name for name in preset_names() if name in measured["presets"]]
    sheet = Image.new("RGB", (left + len(METRICS) * (column + 16), top + row * len(names) + 6), "white")
    draw = ImageDraw.Draw(sheet)
    for position, metric in enumerate(METRICS):
        low, high, bins = BINS[metric]
        start = left + position * (column + 16)
        draw.text((start, 4), f"{TITLES[metric]}   {low:g} to {high:g}", fill="black")
        for place in np.linspace(0, column, 6):
            draw.line([(start + place, top - 8), (start + place, sheet.height - 6)], fill=(232, 232, 232))
        for line, name in enumerate(names):
            counts = measured["presets"][name][metric]["histogram"]
            floor = top + row * (line + 1) - 4
            for place, count in enumerate(counts):
                height = round((row - 6) * count / max(counts))
                edge = start + place * column / bins
                if count:
                    draw.rectangle([edge, floor - max(1, height), edge + column / bins - 1, floor], fill=(70, 110, 160))
            middle = (
                start + (np.clip(measured["presets"][name][metric]["five"][2], low, high) - low) / (high - low) * column
            )
            draw.line([(middle, floor - row + 6), (middle, floor)], fill=(200, 60, 30), width=2)
    for line, name in enumerate(names):
        draw.text((4, top + row * line + 8), name, fill="black")
    return np.asarray(sheet)


def page(measured: dict[str, Any]) -> str:
    """The page as Markdown, from the configurations and the measured figures."""
    presets = measured["presets"]
    introduction = INTRODUCTION.format(face="strips/face.png", n=measured["n"], people=measured["identities"])
    lines = [introduction, f"| preset | {' | '.join(TITLES[metric] for metric in METRICS)} |", "|---|---|---|---|"]
    for name in preset_names():
        cells = " | ".join(_quartiles(presets[name], metric) for metric in METRICS)
        lines.append(f"| [`{name}`](#{name}) | {cells} |")
    lines += ["", "![histograms of every preset](strips/distributions.png)", "", "The red lines are the medians.", ""]
    lines += [_calibration(measured), ""]
    for name in preset_names():
        content = read_preset("degradation", name)
        lines += [f"## {name}", "", f"Source: {content['source']}.", ""]
        lines += [f"{remarks(name)}\n"] if remarks(name) else []
        lines += [*in_words(content["steps"]), "", f"![ten draws of {name}](strips/{name}.jpg)", ""]
        figures = ", ".join(f"{TITLES[metric]} {_quartiles(presets[name], metric)}" for metric in METRICS)
        lines += [f"ORL: {figures}. Steps `{steps_hash(name)}`.", ""]
    lines += ["## Metric identities", "", *(f"- `{identity}`" for identity in measured["metrics"].values()), ""]
    return "\n".join(lines)


def _calibration(measured: dict[str, Any]) -> str:
    presets, n = measured["presets"], measured["n"]
    rows = [
        f"| `{name}` on ORL, {ORL_SIZE} px | {' | '.join(_quartiles(presets[name], m) for m in METRICS)} |"
        for name in ("light", "heavy")
    ]
    published = " | ".join(f"{PFSTORER_INPUT[metric]:g}" for metric in METRICS)
    counts = ", ".join(f"{TITLES[m]} {measured['light_above_heavy'][m]}" for m in METRICS)
    return "\n".join(
        [
            "## Calibration of light and heavy",
            "",
            "Neither PFStorer nor RestorerID says what its light and heavy sets are. Ours are FFHQ-Ref's moderate and",
            "severe. `light` lies above `heavy` in every measure, at all three quartiles; of equal photographs under",
            f"the same seeds it is the better one in: {counts} (of {n}).",
            "",
            f"| | {' | '.join(TITLES[metric] for metric in METRICS)} |",
            "|---|---|---|---|",
            *rows,
            f"| PFStorer, input of its heavy set (Tables 1 and 2) | {published} |",
            "| RestorerID, input | not printed | not printed | not printed |",
            "",
            "PFStorer's figures are of CelebRef-HQ, its recogniser and colour space are not stated (ID is printed as",
            "21.85 %), so that they say how strong a degradation is meant, not what ours must reach.",
        ]
    )


def _quartiles(preset: dict[str, Any], metric: str) -> str:
    _, first, median, third, _ = preset[metric]["five"]
    digits = DECIMALS[metric]
    return f"{median:.{digits}f} ({first:.{digits}f} to {third:.{digits}f})"


def folder() -> Path:
    """Where the page lies."""
    return resource_root() / "configs" / "degradation"


def read_measured() -> dict[str, Any]:
    """The figures of the page.

    Raises:
        MissingError: They were never measured.
    """
    path = folder() / "strips" / "measured.json"
    if not path.is_file():
        raise MissingError(f"{path} is not there. Run python -m bench.degradation.gallery.")
    measured: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return measured


def _write_strip(name: str) -> None:
    import io

    from PIL import Image

    picture = Image.fromarray(strip(name))
    for quality in range(85, 10, -5):
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=quality, optimize=True)
        if len(buffer.getvalue()) <= LARGEST_STRIP:
            break
    write_bytes(folder() / "strips" / f"{name}.jpg", buffer.getvalue())


def main(words: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    import cv2
    import torch

    from bench.image import write_png
    from bench.progress import counted
    from bench.registry import load_metric

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=None, metavar="PRESET", help="presets to draw and measure anew")
    parser.add_argument("--page", action="store_true", help="write the page alone, from the figures that are there")
    arguments = parser.parse_args(words)
    chosen = [] if arguments.page else arguments.only or preset_names()
    if unknown := sorted(set(chosen) - set(preset_names())):
        raise unknown_name("degradation preset", unknown[0], preset_names())
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    measured = read_measured() if arguments.page or arguments.only else {"presets": {}}
    measured["presets"] = {name: kept for name, kept in measured["presets"].items() if name in preset_names()}
    if chosen:
        photos = training_photos()
        values: dict[str, dict[str, np.ndarray]] = {}
        for name in counted(chosen, "measured"):
            _write_strip(name)
            alike = [other for other in values if steps_hash(other) == steps_hash(name)]
            values[name] = values[alike[0]] if alike else measure(name, photos)
            measured["presets"][name] = summary(name, values[name])
        measured["n"] = len(photos)
        measured["identities"] = len({image_id.split("/")[0] for image_id in photos.image_ids})
        measured["metrics"] = {metric: load_metric(metric)().identity for metric in METRICS}
        if {"light", "heavy"} <= set(values):
            measured["light_above_heavy"] = {
                metric: int((values["light"][metric] > values["heavy"][metric]).sum()) for metric in METRICS
            }
        write_png(folder() / "strips" / "face.png", face())
        measured["presets"] = dict(sorted(measured["presets"].items()))
        write_text(folder() / "strips" / "measured.json", json.dumps(measured) + "\n")
        write_png(folder() / "strips" / "distributions.png", distributions(measured))
    write_text(folder() / "README.md", page(measured))


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        raise SystemExit(f"gallery: {error}") from None
