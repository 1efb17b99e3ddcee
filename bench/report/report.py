"""Writes the HTML report: one self-contained file that opens from disk without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.files import write_text
from bench.report.content import (
    Case,
    Pictures,
    Run,
    case_metric,
    choose_images,
    leading,
    make_case,
    metric_rows,
    missing_values,
    read_runs,
)
from bench.report.plots import dot_plot
from bench.report.terminal import number

TEMPLATES = Path(__file__).parent / "templates"
LARGE = 256


def write_report(
    run_dirs: Sequence[Path],
    output: Path,
    metric: str | None = None,
    pictures: Callable[[Path], Pictures] | None = None,
) -> None:
    """Writes a report about one run, or one that compares several of the same protocol.

    Args:
        run_dirs: Folders of finished runs. If the `input` row is among several, each other run is
            tested against it.
        output: HTML file to write.
        metric: Metric that says which images are the best, median and worst; by default ID, else HaarPSI.
        pictures: Opens a run's pictures; by default `bench.runs.pictures.RunPictures`.

    Raises:
        UsageError: A folder is no finished run, the protocols differ, or images cannot be sorted by `metric`.
    """
    import jinja2

    runs = read_runs([Path(folder) for folder in run_dirs])
    chosen = case_metric(runs, metric)
    cases, pictures_missing = _cases(runs, chosen, pictures or _open_pictures)
    lead = leading(runs)
    names = list(dict.fromkeys(name for run in runs for name in run.summary["metrics"]))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("report.html").render(
        title=f"{' and '.join(run.label for run in runs)} on {lead.summary['protocol']}",
        runs=runs,
        lead=lead,
        rows=metric_rows(runs),
        tested=len(runs) > 1 and any(run.summary["method"] == "input" for run in runs),
        facts=[_facts(run) for run in runs],
        chosen=lead.summary["metrics"][chosen]["title"] if chosen else None,
        cases=cases,
        pictures_missing=pictures_missing,
        plots=[(name, svg) for name in names if (svg := dot_plot(name, runs))],
        missing=missing_values(runs),
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "report.js").read_text(encoding="utf-8"),
    )
    write_text(output, text)


def _open_pictures(run_dir: Path) -> Pictures:
    from bench.runs.pictures import RunPictures

    opened: Pictures = RunPictures(run_dir)
    return opened


def _cases(runs: list[Run], metric: str | None, opener: Callable[[Path], Pictures]) -> tuple[list[Case], str | None]:
    """Images to look at, or the reason why there are none: a report without pictures is still a report."""
    if metric is None:
        return [], "No metric with a direction has a value, so no image is the best or the worst."
    lead = leading(runs)
    facts = lead.summary["metrics"]
    shown = [name for name, one in facts.items() if one["mean"] is not None]
    try:
        opened = [opener(run.folder) for run in runs]
        values = lead.values(metric)
        large = opened[lead.index].lq(values.index[0]).shape[0] > LARGE
        images = choose_images(values, bool(facts[metric]["higher_is_better"]), 1 if large else 2)
        return [make_case(kind, image_id, runs, opened, shown) for kind, image_id in images], None
    except (BenchError, OSError) as error:
        return [], f"The pictures could not be read: {error}"


def _facts(run: Run) -> list[tuple[str, str]]:
    """What identifies a run, as pairs of name and value."""
    summary = run.summary
    parameters, memory = summary.get("parameters"), summary.get("peak_memory_mb")
    facts = [
        ("method", f"{summary['method_title']} ({summary['method']})"),
        ("revision", summary["method_revision"]),
        ("seed", str(summary["seed"])),
        ("images", f"{summary['images']} of {summary['of']}"),
        ("seconds per image", number(summary.get("seconds_per_image"), 3)),
        ("peak memory", "n/a" if memory is None else f"{memory:.0f} MB"),
        ("parameters", "n/a" if parameters is None else f"{parameters / 1e6:.2f} M"),
        ("hardware", _joined(summary.get("hardware"))),
        ("versions", _joined(summary.get("versions"))),
        ("code", summary.get("code_revision") or "unknown"),
        ("licence", summary.get("licence") or ""),
        ("paper", summary.get("paper") or ""),
        ("created", summary["created"]),
        ("folder", run.folder.name),
    ]
    return [(name, value) for name, value in facts if value]


def _joined(values: dict[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (values or {}).items() if value not in (None, ""))
