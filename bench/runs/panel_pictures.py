"""What the panel's benchmark scores: drawn pictures, and the parameters that pyiqa would download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def write_pictures(root: Path, images: int, size: int, distinct: int) -> None:
    """Writes `truth/*.png` and `restored/*.png`: drawn scenes with texture, and blurred, noisy copies."""
    import cv2
    import numpy as np

    from bench.image import write_png

    for side in ("truth", "restored"):
        (root / side).mkdir()
    for index in range(images):
        pair = [root / side / f"{index:05d}.png" for side in ("truth", "restored")]
        if index >= distinct:
            for path in pair:
                path.hardlink_to(path.with_name(f"{index % distinct:05d}.png"))
            continue
        rng = np.random.default_rng(index)
        truth = _scene(rng, size)
        blurred = cv2.GaussianBlur(truth, (0, 0), float(rng.uniform(0.6, 2.5)))
        noisy = blurred + rng.normal(0, rng.uniform(0, 4), truth.shape)
        for path, picture in zip(pair, (truth, noisy), strict=True):
            write_png(path, np.clip(np.rint(picture), 0, 255).astype(np.uint8))


def _scene(rng: np.random.Generator, size: int) -> np.ndarray:
    """A picture with the falling spectrum of photographs, some shapes with edges, and fine grain; float64."""
    import cv2
    import numpy as np

    scene = np.full((size, size, 3), rng.uniform(80, 160, 3))
    for octave in range(1, 8):
        side = max(2, size >> (8 - octave))
        coarse = rng.normal(0, 40 / 2 ** (octave / 2), (side, side, 3))
        scene += cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        place = tuple(int(v) for v in rng.integers(0, size, 2))
        axes = tuple(int(v) for v in rng.integers(size // 40 + 1, size // 4, 2))
        cv2.ellipse(scene, place, axes, float(rng.uniform(0, 180)), 0, 360, rng.uniform(20, 235, 3).tolist(), -1)
    return np.clip(cv2.GaussianBlur(scene, (0, 0), 0.7) + rng.normal(0, 1.5, scene.shape), 0, 255)


def write_parameters(root: Path) -> dict[str, str]:
    """Writes the parameters of NIQE and BRISQUE in pyiqa's layouts, so that it downloads nothing."""
    import numpy as np
    import scipy.io
    import torch

    from bench.metrics.no_reference import read_support_vectors
    from bench.weights import catalogue

    files = {}
    if not catalogue.missing("niqe_pris"):
        files["niqe"] = str(root / "niqe.mat")
        with np.load(catalogue.locate("niqe_pris"), allow_pickle=False) as stored:
            content = {"mu_prisparam": stored["mu_pris_param"], "cov_prisparam": stored["cov_pris_param"]}
        scipy.io.savemat(files["niqe"], content)
    if not catalogue.missing("brisque_allmodel"):
        files["brisque"] = str(root / "brisque.pth")
        coefficients, vectors, _, _ = read_support_vectors(catalogue.locate("brisque_allmodel"))
        torch.save((torch.from_numpy(coefficients).float(), torch.from_numpy(vectors).float()), files["brisque"])
    return files
