"""A figure as papers have it: some pictures, one below the other, and what each method made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError, UsageError, unknown_name
from bench.files import write_bytes
from bench.report.content import Run, case_metric, leading, ranked_metrics, read_runs
from bench.report.pictures import Pictures, rankings

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
ROWS = 4
GAP, TITLE = 6, 22
#: Titles of the columns that are no method's.
LQ, REFERENCE, TRUTH = "LQ", "reference", "ground truth"


def write_figure(
    run_dirs: Sequence[Path],
    output: Path,
    images: Sequence[str] = (),
    rows: int = ROWS,
    pictures: Callable[[Path], Pictures] | None = None,
) -> list[str]:
    """Writes pictures side by side: LQ, the first reference, each run's, ground truth.

    Args:
        run_dirs: Folders of finished runs of one protocol.
        output: Picture to write.
        images: Which images; else as many as `rows`, spread evenly from the leading run's worst to its best, so that
            nobody has to choose.
        rows: How many.
        pictures: Opens a run's pictures; by default `bench.runs.pictures.RunPictures`.

    Returns:
        Ids of the images shown.

    Raises:
        UsageError: There is no such image, or the output has no suffix of a picture.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--figure {output} must be a picture: {', '.join(SUFFIXES)}.")
    if rows < 1:
        raise UsageError(f"--rows must be at least 1, got {rows}.")
    runs = read_runs([Path(folder) for folder in run_dirs])
    # The input's pictures are the LQ column.
    methods = [run for run in runs if run.summary["method"] != "input"]
    lead = methods[0] if methods else leading(runs)
    known = list(dict.fromkeys(lead.scores["image_id"]))
    for image in images:
        if image not in known:
            raise unknown_name("image", image, known)
    shown = list(images) or _spread(runs, lead, known, rows)
    opened = {run.index: (pictures or _open_pictures)(run.folder) for run in [lead, *methods]}
    own = opened[lead.index]
    side = int(own.lq(shown[0]).shape[0])
    titles: list[str] = []
    lines = []
    for image in shown:
        columns: dict[str, np.ndarray | None] = {LQ: own.lq(image)}
        if references := list(own.references(image)):
            columns[REFERENCE] = references[0]
        for run in methods:
            columns[run.label] = _restored(opened[run.index], image)
        if own.has_truth(image):
            columns[TRUTH] = own.truth(image)
        lines.append(columns)
        titles += [title for title in columns if title not in titles]
    # What one image lacks, such as a reference, leaves its place empty.
    titles.sort(key=lambda title: (title == TRUTH, title not in (LQ, REFERENCE)))
    _write(_drawn(titles, lines, side), output)
    return shown


def _open_pictures(folder: Path) -> Pictures:
    from bench.runs.pictures import RunPictures

    return RunPictures(folder)


def _spread(runs: Sequence[Run], lead: Run, known: Sequence[str], rows: int) -> list[str]:
    """Images from the worst to the best of the leading run by its first metric."""
    metric = case_metric(runs)
    ordered = rankings(runs, lead, metric)[0] if metric in ranked_metrics(lead) and metric else list(known)
    count = min(rows, len(ordered))
    return [ordered[round(place * (len(ordered) - 1) / max(1, count - 1))] for place in range(count)]


def _restored(source: Pictures, image: str) -> np.ndarray | None:
    try:
        return source.restored(image)
    except (BenchError, OSError, KeyError):
        return None


def _drawn(titles: Sequence[str], lines: Sequence[dict[str, np.ndarray | None]], side: int) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    size = max(10, round(side / 10))
    height = TITLE if size < TITLE - 4 else size + 8
    sheet = Image.new(
        "RGB", (len(titles) * (side + GAP) - GAP, height + len(lines) * (side + GAP) - GAP), (255, 255, 255)
    )
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        fitting = next(
            (n for n in range(size, 5, -1) if draw.textlength(title, font=ImageFont.load_default(n)) <= side), 6
        )
        middle = column * (side + GAP) + side // 2
        draw.text((middle, height // 2), title, fill="black", font=ImageFont.load_default(fitting), anchor="mm")
    for row, columns in enumerate(lines):
        for column, title in enumerate(titles):
            pixels = columns.get(title)
            if pixels is not None:
                picture = Image.fromarray(pixels)
                if picture.size != (side, side):
                    picture = picture.resize((side, side), Image.Resampling.LANCZOS)
                sheet.paste(picture, (column * (side + GAP), height + row * (side + GAP)))
    return sheet


def _write(sheet: Image, output: Path) -> None:
    import io

    from PIL import Image

    stream = io.BytesIO()
    kind = Image.registered_extensions()[output.suffix.lower()]
    sheet.save(stream, kind, **({"quality": 92, "subsampling": 0} if kind == "JPEG" else {}))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, stream.getvalue())
