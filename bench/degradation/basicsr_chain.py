"""Recorded degradations through BasicSR's and OpenCV's functions: what ours is compared with, in values and in time."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from bench.degradation.operator import Step
from bench.errors import MissingError

Picture = np.ndarray
INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


class BasicsrChain:
    """Applies records of θ as GFPGAN's and Real-ESRGAN's loaders do: (H, W, 3) BGR float32 pictures in [0, 1].

    Blurs are `cv2.filter2D` with BasicSR's kernels, sizes change by `cv2.resize` (area by torch, as in Real-ESRGAN),
    noise and JPEG are BasicSR's, colours OpenCV's and torchvision's; the median is OpenCV's, which takes windows above
    5 px on 8 bits only.

    Args:
        recorded_noise: Whether noise is the recorded one, for comparing values; else BasicSR draws its own.

    Raises:
        MissingError: BasicSR or torchvision is absent or cannot be imported.
    """

    def __init__(self, recorded_noise: bool = False) -> None:
        self.recorded_noise = recorded_noise
        self.degradations = import_basicsr("basicsr.data.degradations")
        self.usm_sharp = import_basicsr("basicsr.utils.img_process_util").usm_sharp
        self.imresize = import_basicsr("basicsr.utils.matlab_functions").imresize
        self.functional = importlib.import_module("torchvision.transforms.functional")
        self.functions: dict[str, Callable[[Picture, Step], Picture]] = {
            "gaussian_blur": self._gaussian_blur,
            "kernel_blur": self._kernel_blur,
            "median_blur": self._median_blur,
            "downscale": self._resize,
            "resize": self._resize,
            "resize_back": self._resize,
            "bicubic_downscale": lambda picture, step: self.imresize(picture, 1 / step["factor"]).astype(np.float32),
            "gaussian_noise": self._gaussian_noise,
            "poisson_noise": self._poisson_noise,
            "jpeg": lambda picture, step: self.degradations.add_jpg_compression(picture, step["quality"]),
            "usm_sharpen": lambda picture, step: self.usm_sharp(
                picture, step["weight"], step["kernel_size"], step["threshold"]
            ),
            "colour_shift": lambda picture, step: np.clip(picture + np.float32(step["shift"][::-1]) / 255, 0, 1),
            "grey": lambda picture, step: np.tile(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[:, :, None], (1, 1, 3)),
            "colour_jitter": self._colour_jitter,
            "quantise": lambda picture, step: np.clip((picture * 255.0).round(), 0, 255) / np.float32(255.0),
        }

    def supports(self, step: Step) -> bool:
        """Whether there is a counterpart of a recorded step."""
        if step["operator"] == "poisson_noise" and "photons" in step:
            return False
        return step["operator"] in self.functions and step.get("interpolation") != "bicubic_antialiased"

    def apply(self, picture: Picture, steps: Sequence[Step]) -> Picture:
        """Degrades one picture by the steps of its θ, all of which must be supported."""
        for step in steps:
            picture = self.functions[step["operator"]](picture, step)
        return picture

    def work(self, picture: Picture, step: Step) -> Callable[[], object]:
        """What is timed of one step: resizing by area takes the torch tensor that Real-ESRGAN has at that point."""
        if step.get("interpolation") == "area" and picture.shape[:2] != (step["height"], step["width"]):
            import torch
            import torch.nn.functional as F

            stack = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).unsqueeze(0)
            return lambda: F.interpolate(stack, size=(step["height"], step["width"]), mode="area")
        return lambda: self.apply(picture, [step])

    def _gaussian_blur(self, picture: Picture, step: Step) -> Picture:
        return self._filtered(picture, self._gaussian(step, step["sigma_x"] == step["sigma_y"]))

    def _gaussian(self, step: Step, isotropic: bool) -> np.ndarray:
        widths = (step["sigma_x"], step["sigma_y"], step["angle"])
        kernel: np.ndarray = self.degradations.bivariate_Gaussian(step["kernel_size"], *widths, isotropic=isotropic)
        return kernel

    def _kernel_blur(self, picture: Picture, step: Step) -> Picture:
        family, side = step["kernel"], step["kernel_size"]
        if family == "sinc":
            return self._filtered(picture, self.degradations.circular_lowpass_kernel(step["cutoff"], side))
        isotropic = not family.endswith("anisotropic")
        if family in ("isotropic", "anisotropic"):
            return self._filtered(picture, self._gaussian(step, isotropic))
        function = (
            self.degradations.bivariate_plateau
            if family.startswith("plateau")
            else self.degradations.bivariate_generalized_Gaussian
        )
        shape = (side, step["sigma_x"], step["sigma_y"], step["angle"], step["beta"])
        return self._filtered(picture, function(*shape, isotropic=isotropic))

    @staticmethod
    def _filtered(picture: Picture, kernel: np.ndarray) -> Picture:
        return cv2.filter2D(picture, -1, kernel)

    @staticmethod
    def _median_blur(picture: Picture, step: Step) -> Picture:
        if step["kernel_size"] <= 5:
            return cv2.medianBlur(picture, step["kernel_size"])
        levels = np.clip((picture * 255.0).round(), 0, 255).astype(np.uint8)
        return cv2.medianBlur(levels, step["kernel_size"]).astype(np.float32) / np.float32(255.0)

    @staticmethod
    def _resize(picture: Picture, step: Step) -> Picture:
        size, interpolation = (step["height"], step["width"]), step.get("interpolation", "bilinear")
        if picture.shape[:2] == size:
            return picture
        if interpolation == "area":
            import torch
            import torch.nn.functional as F

            stack = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))).unsqueeze(0)
            return F.interpolate(stack, size=size, mode="area")[0].permute(1, 2, 0).contiguous().numpy()
        return cv2.resize(picture, size[::-1], interpolation=INTERPOLATIONS[interpolation])

    def _gaussian_noise(self, picture: Picture, step: Step) -> Picture:
        if not self.recorded_noise:
            noisy: Picture = self.degradations.add_gaussian_noise(picture, step["sigma"], gray_noise=step["grey"])
            return noisy
        channels = 1 if step["grey"] else 3
        normal = np.random.default_rng(step["seed"]).standard_normal((channels, *picture.shape[:2]))
        field = normal[::-1].transpose(1, 2, 0).astype(np.float32)
        return np.clip(picture + field * np.float32(step["sigma"] / 255.0), 0, 1)

    def _poisson_noise(self, picture: Picture, step: Step) -> Picture:
        if not self.recorded_noise:
            noisy: Picture = self.degradations.add_poisson_noise(picture, step["scale"], gray_noise=step["grey"])
            return noisy.astype(np.float32)
        from scipy.stats import poisson

        source = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[:, :, None] if step["grey"] else picture
        levels = np.clip((source * 255.0).round(), 0, 255) / 255.0
        photons = 2 ** np.ceil(np.log2(len(np.unique(levels))))
        shape = (levels.shape[2], *levels.shape[:2])
        uniform = np.random.default_rng(step["seed"]).random(shape)[::-1].transpose(1, 2, 0)
        field = poisson.ppf(uniform, levels * photons) / photons - levels
        return np.clip(picture + field * step["scale"], 0, 1).astype(np.float32)

    def _colour_jitter(self, picture: Picture, step: Step) -> Picture:
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(picture[:, :, ::-1].transpose(2, 0, 1)))
        for name in step["order"]:
            tensor = getattr(self.functional, f"adjust_{name}")(tensor, step[name])
        return np.ascontiguousarray(tensor.permute(1, 2, 0).numpy()[:, :, ::-1])


def import_basicsr(module: str) -> Any:
    """Imports a module of BasicSR, whose release 1.4.2 asks torchvision for a module that has been renamed.

    The old name stands for the new module only while BasicSR is imported.

    Raises:
        MissingError: It or torchvision is absent or cannot be imported.
    """
    old_name = "torchvision.transforms.functional_tensor"
    before = sys.modules.get(old_name)
    try:
        sys.modules[old_name] = before or importlib.import_module("torchvision.transforms.functional")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingError(
            f"BasicSR cannot be imported ({error}). Install torchvision, then BasicSR without its dependencies, which "
            "would replace OpenCV: pip install --no-deps --no-build-isolation basicsr"
        ) from error
    finally:
        if before is None:
            sys.modules.pop(old_name, None)
