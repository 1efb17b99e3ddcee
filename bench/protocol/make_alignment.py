"""Detects five points in every photograph of a data set once, and writes its alignment file.

`python -m bench.protocol.make_alignment orl` made `datasets/orl/alignment.json`. The file is committed
and read ever after; protocols never detect again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import UsageError
from bench.files import sha256_file, write_json
from bench.image import read_image
from bench.paths import resource_root
from bench.protocol.alignment import TEMPLATES, alignment_matrix
from bench.protocol.card import data_root, load_card
from bench.protocol.layout import list_photos


def make_alignment(card_name: str, template_name: str, root: str | None = None) -> dict[str, Any]:
    """Detects and aligns every photograph of a data set.

    Raises:
        UsageError: A photograph shows no face.
    """
    from bench.faces.detector import detect_main_face, detector_identity

    card = load_card(card_name)
    folder = data_root(card, root)
    template = TEMPLATES[template_name]
    photos: dict[str, Any] = {}
    for photo in list_photos(card, folder):
        path = folder / photo.path
        image = read_image(path)
        face = detect_main_face(image)
        if face is None:
            raise UsageError(f"No face found in {path}.")
        points = np.round(face.points, 3)
        matrix = alignment_matrix(points, template, image.shape[:2])
        photos[photo.path] = {
            "sha256": sha256_file(path),
            "points": points.tolist(),
            "matrix": matrix.tolist(),
        }
    return {"template": template.as_dict(), "detector": detector_identity(), "photos": photos}


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card")
    parser.add_argument("--template", default="orl_tight")
    parser.add_argument("--root", default=None)
    parser.add_argument("-o", "--output", type=Path, default=None)
    arguments = parser.parse_args()
    output = arguments.output or resource_root() / "datasets" / arguments.card / "alignment.json"
    write_json(output, make_alignment(arguments.card, arguments.template, arguments.root))


if __name__ == "__main__":
    main()
