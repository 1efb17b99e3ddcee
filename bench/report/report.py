"""Writes the HTML report: one self-contained file that opens from disk without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bench.leaderboard
from bench.errors import BenchError
from bench.files import write_text
from bench.report.content import (
    Run,
    case_metric,
    interval_notes,
    leading,
    missing_values,
    read_runs,
    title_of,
    told,
)
from bench.report.data import embedded, page_data
from bench.report.pictures import Pictures
from bench.report.tables import (
    has_consistency,
    has_planted_marks,
    identities,
    missing_table,
    scores_table,
    seconds_text,
    set_table,
    without_values,
)

TEMPLATES = Path(__file__).parent / "templates"
# Boards and reports share one look and one way of sorting.
BOARDS = Path(str(bench.leaderboard.__file__)).parent / "templates"
SCRIPTS = ("common.js", "cases.js", "people.js", "plots.js", "images.js")


def write_report(
    run_dirs: Sequence[Path],
    output: Path,
    metric: str | None = None,
    pictures: Callable[[Path], Pictures] | None = None,
) -> list[str]:
    """Writes a report about one run, or one that compares several of the same protocol.

    Args:
        run_dirs: Folders of finished runs. If the `input` row is among several, each other run is
            tested against it.
        output: HTML file to write.
        metric: Metric that is chosen when the page opens; by default ID, else HaarPSI.
        pictures: Opens a run's pictures; by default `bench.runs.pictures.RunPictures`.

    Returns:
        What is missing in it and why, a line each. These may name folders of this machine; the file does not.

    Raises:
        UsageError: A folder is no finished run, the protocols differ, or images cannot be sorted by `metric`.
    """
    runs = read_runs([Path(folder) for folder in run_dirs])
    chosen = case_metric(runs, metric)
    data, pictures_missing = _data(runs, chosen, pictures or _open_pictures)
    remarks = _remarks(runs, data, pictures_missing)
    for case in data["cases"].values():
        case["unreadable"] = {index: told(reason) for index, reason in case["unreadable"].items()}
    lead = leading(runs)
    text = render(
        "report.html",
        title=title_of(runs),
        runs=runs,
        lead=lead,
        scores=scores_table(runs),
        sets=set_table(runs),
        missing=missing_table(runs),
        intervals=interval_notes(runs),
        absent=without_values(runs) if len(runs) > 1 else [],
        tested=len(runs) > 1 and any(run.summary["method"] == "input" for run in runs),
        marks=has_planted_marks(runs),
        consistency=has_consistency(runs),
        facts=[(run, _facts(run)) for run in runs],
        identities=identities(runs),
        pictures_missing=pictures_missing and told(pictures_missing),
        data=embedded(data),
        scripts=SCRIPTS,
    )
    write_text(output, text)
    return remarks


def _remarks(runs: Sequence[Run], data: dict[str, Any], pictures_missing: str | None) -> list[str]:
    lines = [pictures_missing] if pictures_missing else []
    for run in runs:
        found = {
            i: case["unreadable"][run.index]
            for i, case in sorted(data["cases"].items())
            if run.index in case["unreadable"]
        }
        if found:
            image, reason = next(iter(found.items()))
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            lines.append(f"{run.label}: restored picture of {data['images'][image]}{more} unreadable: {reason}")
    for one in missing_values(runs):
        # What the page says in short.
        lines += [f"{', '.join(one.metrics) or 'failed'}: {full}" for full in one.full if full != one.reason]
    return lines


def render(template: str, **content: Any) -> str:
    """A page of the templates, with style and scripts inside.

    Args:
        template: Its file name.
        content: What the template names; `scripts` are the files that follow the tables' own, and `data` is
            text that `embedded` made.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    # Our own files, which hold neither `</style>` nor `</script>`.
    style = [(folder / name).read_text("utf-8") for folder, name in ((BOARDS, "board.css"), (TEMPLATES, "report.css"))]
    scripts = [(TEMPLATES / name).read_text("utf-8") for name in content.pop("scripts", ())]
    script = "\n".join(["{\n" + (BOARDS / "board.js").read_text("utf-8") + "}", *scripts])
    content |= {"style": Markup("\n".join(style)), "script": Markup(script)}
    if "data" in content:
        content["data"] = Markup(content["data"])
    text: str = environment.get_template(template).render(**content)
    return text.rstrip("\n") + "\n"


def _open_pictures(run_dir: Path) -> Pictures:
    from bench.runs.pictures import RunPictures

    opened: Pictures = RunPictures(run_dir)
    return opened


def _data(runs: list[Run], metric: str | None, opener: Callable[[Path], Pictures]) -> tuple[dict[str, Any], str | None]:
    """The script's data, and the reason why there are no pictures: a report without pictures is still a report."""
    try:
        return page_data(runs, metric, [opener(run.folder) for run in runs]), None
    except (BenchError, OSError) as error:
        reason = str(error)
    except (KeyError, TypeError, ValueError) as error:
        reason = (
            f"a run folder's protocol.json or config.yaml is not what a run writes ({type(error).__name__}: {error})"
        )
    return page_data(runs, metric, None), f"The pictures could not be read: {reason}"


def _facts(run: Run) -> list[tuple[str, str]]:
    """What identifies a run, as pairs of name and value."""
    summary = run.summary
    parameters, memory = summary.get("parameters"), summary.get("peak_memory_mb")
    facts = [
        ("method", f"{summary['method_title']} ({summary['method']})"),
        ("revision", summary["method_revision"]),
        ("seed", str(summary["seed"])),
        ("images", f"{summary['images']} of {summary['of']}"),
        ("seconds per image", seconds_text(summary.get("seconds_per_image"))),
        ("peak memory", "n/a" if memory is None else f"{memory:.0f} MB"),
        ("parameters", _millions(parameters)),
        ("hardware", _joined(summary.get("hardware"))),
        ("versions", _joined(summary.get("versions"))),
        ("code", summary.get("code_revision") or "unknown"),
        ("licence", summary.get("licence") or ""),
        ("paper", summary.get("paper") or ""),
        ("created", summary["created"]),
        ("folder", run.folder.name),
    ]
    return [(name, value) for name, value in facts if value]


def _millions(parameters: float | None) -> str:
    if parameters is None:
        return "n/a"
    return f"{parameters / 1e6:.2f} M" if parameters else "none"


def _joined(values: dict[str, Any] | None) -> str:
    known = {key: value for key, value in (values or {}).items() if value not in (None, "", [], {})}
    words = {key: " + ".join(map(str, value)) if isinstance(value, list) else value for key, value in known.items()}
    return ", ".join(f"{key} {value}" for key, value in words.items())
