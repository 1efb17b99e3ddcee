"""Sweeps the weight of the identity, draws the curves of the paper's Fig. 5 and fits alpha and beta of Eq. 9.

`python -m methods.restorerid.calibrate_scale --output FOLDER [KEY=VALUE ...]` degrades photographs of training
identities with the presets of `PRESETS`, restores each with every lambda and the same noise, and writes the sweep,
`curves.png` and `fit.json` into the folder. A sweep that was interrupted goes on where it stopped, if weights and
settings are still the same; one that is whole is only read. `--commit` puts alpha and beta into `quality_demo.json`,
from which the demo takes them.

Source: RestorerID (arXiv 2411.14125), Sec. 3.4 and Fig. 5: 150 LQ pictures, lambda from 0 to 2 in steps of 0.04. The
similarity is that of the recogniser which conditions the method, never of the one that judges it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from bench.config import compose
from bench.data.training import TrainingPairs, TrainingSettings
from bench.errors import BenchError, UsageError
from bench.files import atomic_path, sha256_bytes, write_json
from bench.protocol.protocol import DataSettings
from bench.runs.plan import build_method
from methods.restorerid import quality
from methods.restorerid.adaptive_scale import (
    IntervalCurve,
    ScaleFit,
    adaptive_id_scale,
    fit_alpha_beta,
    interval_curves,
    quality_edges,
    sweep_scales,
)
from methods.restorerid.module import RestorerID
from methods.restorerid.scale_sweep import read_sweep, sweep, write_sweep

if TYPE_CHECKING:
    from torch import Tensor

    from bench.batch import FaceBatch
    from methods.restorerid.adaptive_scale import SweepRow

#: From hopeless to nearly clean, so that every interval of quality has pictures.
PRESETS = ("heavy", "light", "restorerid")
BATCH = 10


def training_pictures(words: Sequence[str], count: int, side: int) -> Iterator[FaceBatch]:
    """Degraded photographs of training identities, the presets in turn, with unique image ids.

    Args:
        words: Settings that choose the data (`data=...`).
        count: Number of pictures, rounded up to whole batches of each preset.
        side: Side in pixels.

    Yields:
        Batches of `BATCH` pictures with ground truth, landmarks and one reference each.
    """
    for number, preset in enumerate(PRESETS):
        config = compose("run", ["method=restorerid", *words, f"data.degradation={preset}"])
        settings = TrainingSettings(batch_size=BATCH, references=1, seed=number, size=side)
        pairs = TrainingPairs(DataSettings(**config["data"]), settings)
        for step in range(math.ceil(count / len(PRESETS) / BATCH)):
            batch = pairs.batch(step)
            names = [f"{preset} {step * BATCH + row} {name}" for row, name in enumerate(batch.image_ids)]
            yield replace(batch, image_ids=names)


def draw_curves(path: Path, curves: Sequence[IntervalCurve], fit: ScaleFit | None, estimator: str) -> None:
    """Draws similarity over lambda for each interval of quality, and the best lambdas with the curve fitted to them.

    Args:
        path: PNG file.
        curves: One for each interval.
        fit: Alpha and beta; None where they could not be fitted.
        estimator: Name of the quality on the axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for curve in curves:
        (line,) = left.plot(
            curve.scales,
            curve.similarities,
            label=f"{curve.low:.0f} to {curve.high:.0f} ({curve.pictures} pictures)",
        )
        best = curve.scales.index(curve.best_scale)
        left.plot(curve.best_scale, curve.similarities[best], "o", color=line.get_color())
        right.plot(curve.quality, curve.best_scale, "o", color=line.get_color())
    left.set(xlabel="lambda", ylabel="mean identity similarity to the ground truth")
    left.legend(title="quality of the LQ", fontsize=8)
    right.set(xlabel=f"quality: {estimator}", ylabel="best lambda")
    right.xaxis.label.set_fontsize(8)
    if fit is not None:
        low, high = curves[0].low, curves[-1].high
        grid = [low + (high - low) * step / 200 for step in range(201)]
        right.plot(
            grid,
            [adaptive_id_scale(value, fit.alpha, fit.beta) for value in grid],
            color="0.4",
            label=f"exp(({fit.alpha:.4g} - quality) / {fit.beta:.4g})",
        )
        right.legend(fontsize=8)
        right.set_ylim(bottom=-0.05, top=max(max(curve.scales) for curve in curves) + 0.05)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def swept(method: RestorerID, batches: Iterator[FaceBatch], scales: Sequence[float], table: Path) -> list[SweepRow]:
    """The sweep, written after every batch; pictures that the table already holds are not restored again.

    Raises:
        UsageError: The table was made with other lambdas.
    """
    rows = read_sweep(table) if table.is_file() else []
    if rows and {row.scale for row in rows} != set(scales):
        raise UsageError(f"{table} holds a sweep of other lambdas. Choose another --output, or remove it.")
    done = {row.image_id for row in rows}

    def restore(batch: FaceBatch, scale: float) -> Tensor:
        method.settings["id_scale"] = scale
        return method.restore(batch)

    for batch in batches:
        if not done.issuperset(batch.image_ids):
            rows.extend(sweep(restore, [batch], method.quality, method.face_encoder, scales))
            write_sweep(table, rows)
            sys.stderr.write(f"{len({row.image_id for row in rows})} pictures swept\n")
    return rows


def main(words: Sequence[str] | None = None) -> int:
    """Sweeps, draws and fits; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m methods.restorerid.calibrate_scale", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for bench run (default: data=orl_heavy)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the table, the curves and the fit")
    parser.add_argument("--pictures", type=int, default=150)
    parser.add_argument("--largest", type=float, default=2.0, help="largest lambda")
    parser.add_argument("--step", type=float, default=0.04, help="step of lambda")
    parser.add_argument("--intervals", type=int, default=5, help="intervals of quality, of equally many pictures")
    parser.add_argument("--commit", action="store_true", help="write alpha and beta into quality_demo.json")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    # With a fixed lambda the revision names all that decides the sweep, and no calibration.
    given = ["data=orl_heavy", *arguments.overrides, "method.id_scale=0"]
    built, revision, _ = build_method(compose("run", ["method=restorerid", *given]))
    method = cast(RestorerID, built)
    chosen = [word for word in arguments.overrides if word.startswith("data")] or ["data=orl_heavy"]
    batches = training_pictures(chosen, arguments.pictures, int(method.native_size or 0))
    table = arguments.output / f"sweep-{revision}-{sha256_bytes(repr(chosen).encode())[:8]}.csv"
    rows = swept(method, batches, sweep_scales(arguments.largest, arguments.step), table)
    curves = interval_curves(rows, quality_edges([row.quality for row in rows], arguments.intervals))
    for curve in curves:
        sys.stdout.write(
            f"quality {curve.low:.1f} to {curve.high:.1f}, {curve.pictures} pictures: best lambda "
            f"{curve.best_scale:g} with {max(curve.similarities):.4f} (without identity {curve.similarities[0]:.4f})\n"
        )
    fit, problem = None, ""
    try:
        fit = fit_alpha_beta(curves)
    except UsageError as error:
        problem = str(error)
    draw_curves(arguments.output / "curves.png", curves, fit, method.quality.name)
    if fit is None:
        raise UsageError(f"{problem} The curves are in {arguments.output / 'curves.png'}.")
    sys.stdout.write(f"alpha {fit.alpha:.4g}, beta {fit.beta:.4g}, residual of lambda {fit.residual:.3f}\n")
    write_json(arguments.output / "fit.json", {**asdict(fit), "quality": method.quality.name})
    if arguments.commit:
        _commit(method, fit)
    return 0


def _commit(method: RestorerID, fit: ScaleFit) -> None:
    if not isinstance(method.quality, quality.BandQuality):
        raise UsageError("--commit writes the demo's calibration; this is another estimator.")
    target = Path(quality.__file__).with_name("quality_demo.json")
    stored = json.loads(target.read_text(encoding="utf-8"))
    write_json(target, {**stored, "alpha": round(fit.alpha, 3), "beta": round(fit.beta, 3)})


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
