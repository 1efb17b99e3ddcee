"""What the tests of `bench personalise` and `bench restore` share: small weights, few iterations, aligned pictures."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from bench.config import compose, method_settings
from bench.registry import load_method
from bench.weights.method_weights import write_weights


def new_weights(path: Path, seed: int = 0) -> Path:
    """A weights file of PFStorer's demo size with a new network."""
    settings = method_settings(compose("run", ["method=pfstorer"])["method"], "demo")
    method = load_method("pfstorer")({**settings, "seed": seed})
    write_weights(path, method, "float16", {"settings": settings, "size": "demo"})
    return path


def few(weights: Path, iterations: int = 2) -> list[str]:
    """Words that make PFStorer learn a person in a second."""
    return [
        "method=pfstorer",
        f"method.weights={weights}",
        f"method.personalisation.iterations={iterations}",
        "method.personalisation.samples=4",
    ]


def aligned(folder: Path, root: Path, *files: str, side: int = 128) -> list[str]:
    """Square pictures of ORL photographs, such as s1/2; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file in files:
        photo = Image.open(root / f"{file}.pgm").convert("RGB").crop((0, 10, 92, 102))
        path = folder / f"{file.replace('/', '_')}.png"
        photo.resize((side, side), Image.Resampling.BICUBIC).save(path)
        paths.append(str(path))
    return paths
