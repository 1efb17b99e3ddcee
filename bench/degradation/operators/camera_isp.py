"""Noise as a camera makes it: added to the sensor's mosaic, and shaped by the processing after it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bench.degradation import camera
from bench.degradation.operator import Operator, Parameters, by_shape, check_names, check_range
from bench.errors import UsageError

MODES = ("default", "raw", "released_code")
RESPONSE_CURVES = ("none", "gamma_polynomial")
GAIN_RANGE = (0.75, 1.0)
# a0 is the curve's exponent in the dark, a0 + a1 its slope at white.
DARK_EXPONENT = (0.45, 1.0)
WHITE_SLOPE = (0.2, 1.0)


class CameraISP(Operator):
    """Shot and read noise of a camera's Bayer mosaic, as its processing shapes it; by default the noise alone is raw.

    In the mode `default` the picture is mosaicked and demosaiced as it is, in encoded colours, and only the noise
    passes raw light. That it then loses no more than Malvar's demosaicing alone (34.6 dB to the input on scikit-image's
    512 px astronaut) holds by construction and says nothing about the colour chain. The physical order, mosaic and
    demosaicing of the picture in raw colours, is the mode `raw`: 30.1 dB on the same picture.

    The chain is that of CBDNet (Guo et al., "Toward Convolutional Blind Denoising of Real Photographs", CVPR 2019,
    section 3.1) as in RestorerID's released code: inverse response curve, sRGB decoding, camera colours of a random
    mix of four cameras, Bayer mosaic, gains of red and blue from U[0.75, 1], noise of variance `shot * I + read`, and
    all of it back with Malvar's demosaicing. RestorerID draws shot from U[5e-5, 5e-4] and read from U[5e-6, 5e-5];
    CBDNet draws shot from [1e-4, 0.16] and read from [1e-4, 0.06], log-uniformly.

    The 201 measured response curves of both may not be passed on. `gamma_polynomial` draws curves from a published
    parametric family instead, f(x) = x^(a0 + a1 x) (Ng, Chang & Tsui, "Using geometry invariants for camera response
    function estimation", CVPR 2007). Its ranges are this project's choice: a0 from U[0.45, 1], and the slope at white,
    a0 + a1, from U[0.2, 1], so that every curve rises everywhere, from the straight line to strong compression of the
    highlights.

    Args:
        shot: Range of the variance per unit of light, for pictures in [0, 1].
        read: Range of the variance in the dark.
        log_uniform: Whether both are drawn log-uniformly.
        patterns: Bayer patterns to draw from: RGGB, BGGR, GRBG, GBRG.
        response_curve: `none` or `gamma_polynomial`.
        mode: `default` lets picture and noise pass Malvar's linear demosaicing apart: the picture as it is, the noise
            as raw light. `raw` lets both pass it together, as raw light. In both borders are mirrored, curves
            interpolated, and colours not clamped before the noise. `released_code` repeats the released code, the
            physical order too, which loses more by zeros beyond the border, tables and clamps.
    """

    name = "camera_isp"

    def __init__(
        self,
        shot: Sequence[float],
        read: Sequence[float],
        log_uniform: bool = False,
        patterns: Sequence[str] = camera.BAYER_PATTERNS,
        response_curve: str = "none",
        mode: str = "default",
    ) -> None:
        self.shot = check_range(self.name, "shot", shot)
        self.read = check_range(self.name, "read", read)
        if not isinstance(log_uniform, bool):
            raise UsageError(f"{self.name}.log_uniform must be true or false, got {log_uniform!r}.")
        self.log_uniform = log_uniform
        if self.log_uniform and min(self.shot[0], self.read[0]) <= 0:
            raise UsageError(f"{self.name}: log_uniform needs shot and read above 0, got {list(shot)}, {list(read)}.")
        self.patterns = list(check_names(self.name, "patterns", patterns, camera.BAYER_PATTERNS))
        self.response_curve = _one_of("response_curve", response_curve, RESPONSE_CURVES)
        self.mode = _one_of("mode", mode, MODES)

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """Draws noise strengths, camera, pattern, gains, curve and the seed of the noise field."""
        mix = rng.random(4)
        record: Parameters = {
            "shot": self._strength(rng, self.shot),
            "read": self._strength(rng, self.read),
            "mix": [float(weight) for weight in mix / mix.sum()],
            "pattern": self.patterns[int(rng.integers(len(self.patterns)))],
            "gains": [float(gain) for gain in rng.uniform(*GAIN_RANGE, size=2)],
            "curve": None,
            "mode": self.mode,
            "seed": int(rng.integers(2**31)),
        }
        if self.response_curve == "gamma_polynomial":
            dark, white = float(rng.uniform(*DARK_EXPONENT)), float(rng.uniform(*WHITE_SLOPE))
            record["curve"] = [dark, white - dark]
        return record

    def apply(self, images: Sequence[Tensor], parameters: Sequence[Parameters]) -> list[Tensor]:
        """Sends every picture through its own camera, those of one size and pattern at once."""

        def work(positions: list[int]) -> Tensor:
            results: dict[int, Tensor] = {}
            kinds = {position: _kind(parameters[position]) for position in positions}
            for kind in sorted(set(kinds.values())):
                rows = [position for position in positions if kinds[position] == kind]
                stack = torch.stack([images[row] for row in rows])
                results.update(zip(rows, through_camera(stack, [parameters[row] for row in rows]), strict=True))
            return torch.stack([results[position] for position in positions])

        return by_shape(images, work)

    def _strength(self, rng: np.random.Generator, bounds: tuple[float, float]) -> float:
        if self.log_uniform:
            return math.exp(rng.uniform(math.log(bounds[0]), math.log(bounds[1])))
        return float(rng.uniform(*bounds))


def through_camera(pictures: Tensor, records: Sequence[Parameters]) -> Tensor:
    """Adds camera noise to pictures whose records share pattern, mode and whether there is a curve.

    Args:
        pictures: (B, 3, H, W) RGB in [0, 1].
        records: One per picture, from `CameraISP.sample`.

    Returns:
        (B, 3, H, W) RGB in [0, 1].
    """
    pattern, mode, curved = _kind(records[0])
    released = mode == "released_code"
    numbers = {
        name: torch.tensor([record[name] for record in records], dtype=torch.float64).to(pictures)
        for name in ("mix", "gains", "shot", "read")
    }
    cameras = camera.camera_matrices(numbers["mix"])
    forward = inverse = None
    if curved:
        exponents = torch.tensor([record["curve"] for record in records], dtype=torch.float64)
        tables = [table.to(pictures) for table in camera.gamma_polynomial_curves(exponents, released)]
        forward, inverse = (tables[0], tables[1]), (tables[2], tables[3])
    height, width = pictures.shape[2:]
    gains = camera.site_gains(numbers["gains"], pattern, height, width)
    if mode == "default":
        # Malvar's filters are made for encoded pictures: on linear raw colours they lose another 2 to 5 dB.
        pictures = camera.demosaic(camera.mosaic(pictures.clamp(0, 1), pattern), pattern).clamp(0, 1)
    raw = camera.unprocess(pictures, cameras, inverse, released)
    sites = camera.mosaic(raw, pattern) * gains
    # NumPy's generator gives the same bits on every processor; torch.randn does not.
    fields = [np.random.default_rng(record["seed"]).standard_normal((1, height, width)) for record in records]
    normal = torch.from_numpy(np.stack(fields)).to(pictures)
    noisy = camera.add_sensor_noise(sites, normal, numbers["shot"], numbers["read"], released)
    if released:
        raw = camera.demosaic((noisy / gains).clamp(0, 1), pattern, zero_border=True).clamp(0, 1)
    elif mode == "raw":
        raw = camera.demosaic(noisy / gains, pattern)
    else:
        raw = raw + camera.demosaic((noisy - sites) / gains, pattern)
    return camera.process(raw, cameras, forward, released)


def _kind(record: Parameters) -> tuple[str, str, bool]:
    """What pictures processed together must share: pattern, mode, whether with a curve."""
    return record["pattern"], _one_of("mode", record["mode"], MODES), record["curve"] is not None


def _one_of(argument: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise UsageError(f"camera_isp.{argument} must be one of {', '.join(allowed)}, got {value!r}.")
    return value
