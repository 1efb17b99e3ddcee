"""A picture of pairs: what went into a degradation and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.image import read_image

CONTACT_SHEET = "contact_sheet.png"
SHEET_PAIRS = 24
SHEET_COLUMNS = 4
SHEET_SIDE = 128


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
