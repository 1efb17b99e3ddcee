"""The pictures of a protocol: cut out, degraded, and checked against their hashes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from bench.degradation.pipeline import Theta
from bench.errors import MissingError
from bench.files import sha256_bytes
from bench.image import read_image
from bench.protocol.alignment import warp
from bench.protocol.probe import SEPARATOR, base_image_id, paint
from bench.protocol.protocol import Protocol, ProtocolImage, ProtocolMismatchError, ProtocolPhoto
from bench.seeds import derive_seed


class ProtocolPictures:
    """The pictures of a protocol, decoded once each and checked against their hashes.

    Args:
        protocol: A protocol.
        root: Folder of its data set.
    """

    def __init__(self, protocol: Protocol, root: Path) -> None:
        self.protocol, self.root = protocol, root
        self._pipeline = lru_cache(maxsize=None)(protocol.pipeline)
        self.photo = lru_cache(maxsize=64)(self._photo)

    def _photo(self, path: str) -> np.ndarray:
        return read_image(self.root / path)

    def crop(self, photo: ProtocolPhoto) -> np.ndarray:
        """Aligned crop of a photograph with the marks a probe paints on it, (size, size, 3) uint8 RGB."""
        return paint(warp(self.photo(photo.path), photo.matrix, self.protocol.size), photo.marks)

    def truth(self, image: ProtocolImage) -> np.ndarray:
        """Ground truth, (size, size, 3) uint8 RGB.

        Raises:
            MissingError: There is none.
            ProtocolMismatchError: It does not decode to the pixels the protocol was frozen with.
        """
        if image.source is None:
            raise MissingError(f"{image.image_id} is a real degraded picture: no ground truth exists.")
        pixels = self.crop(image.source)
        _check(image.gt_sha256, pixels, f"the ground truth of {image.image_id}", "image decoder or alignment")
        return pixels

    def lq(self, image: ProtocolImage, truth: np.ndarray | None = None) -> np.ndarray:
        """Degraded picture, (size, size, 3) uint8 RGB; always made on the CPU, alone, in double precision.

        Raises:
            ProtocolMismatchError: It is not the picture the protocol was frozen with.
        """
        if image.lq is not None:
            given = self.crop(image.lq)
            _check(image.lq_sha256, given, f"the LQ picture of {image.image_id}", "image decoder")
            return given
        pipeline, theta = self._pipeline(image.degradation), self.theta(image)
        if pipeline is None or theta is None:
            raise MissingError(f"The protocol {self.protocol.name} neither brings nor makes an LQ of {image.image_id}.")
        import torch

        pixels: np.ndarray = self.truth(image) if truth is None else truth
        clean = torch.tensor(pixels).permute(2, 0, 1).double().div(255).unsqueeze(0)
        with torch.inference_mode():
            degraded = pipeline.apply(clean, [theta])
        lq = degraded[0].mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        versions = ", ".join(f"{name} v{v}" for name, v in pipeline.specification()["versions"].items())
        _check(
            image.lq_sha256,
            lq,
            f"the LQ picture of {image.image_id}",
            f"one of the operators ({versions}), cv2 or NumPy",
        )
        return lq

    def theta(self, image: ProtocolImage) -> Theta | None:
        """Parameters of the picture's degradation; None where the data set brings the LQ pictures."""
        pipeline = self._pipeline(image.degradation)
        if pipeline is None:
            return None
        return pipeline.sample([self.degradation_seed(image)], (self.protocol.size, self.protocol.size))[0]

    def degradation_seed(self, image: ProtocolImage) -> int:
        """Seed of the picture's degradation; the variants of a probe share it."""
        name = image.photograph if self.protocol.probe is None else base_image_id(image.photograph)
        if image.degradation is not None:
            name += SEPARATOR + image.degradation
        return derive_seed(self.protocol.name, self.protocol.seed, name, "degradation")


def _check(expected: str | None, pixels: np.ndarray, what: str, suspects: str) -> None:
    if expected is not None and (found := sha256_bytes(pixels.tobytes())) != expected:
        raise ProtocolMismatchError(
            f"The pixels of {what} are not those the protocol was frozen with (SHA-256 {found[:12]}…, expected "
            f"{expected[:12]}…). Most likely another version of the {suspects} is installed; the versions in "
            "constraints.txt are those it was frozen with."
        )
