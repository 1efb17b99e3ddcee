"""SFace in torch: a differentiable face recogniser for losses and for conditioning.

It judges nothing: identity is scored by an independent recogniser (`bench.faces.dlib_judge`).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import MissingError
from bench.faces.geometry import ARCFACE_112
from bench.weights import catalogue

EMBEDDING_SIZE = 128
INPUT_SIZE = 112


class _Layer(NamedTuple):
    """A convolution with its batch normalisation folded in, followed by a PReLU."""

    name: str
    stride: int
    padding: int
    groups: int


class SFace(nn.Module):
    """SFace (Zhong et al. 2021), the float32 form of the OpenCV model zoo's file.

    The network is MobileNet v1 up to 7×7×1024, one linear layer and a batch normalisation. All
    normalisations are folded into their neighbours, so training and evaluation mode are the same.
    Its tensors are frozen and never part of a state dict: a method that uses SFace does not ship it.

    Raises:
        MissingError: The weights, or the `onnx` package that reads them, are absent.
    """

    #: Where `features` reads: the last output at strides 2, 4, 8 and 16 of the 112 px crop.
    FEATURE_LAYERS = ("conv_4", "conv_6", "conv_12", "conv_14")

    def __init__(self) -> None:
        super().__init__()
        # Made outside inference mode wherever it is first asked for: a loss in the same process needs gradients.
        with torch.inference_mode(False):
            tensors, self._layers = _converted_network()
            for name, tensor in tensors.items():
                self.register_parameter(name, nn.Parameter(tensor.clone(), requires_grad=False))

    def forward(self, images: Tensor) -> Tensor:
        """Embeds aligned faces.

        Args:
            images: (B, 3, 112, 112) RGB in [0, 1], aligned to the ArcFace template (`crop_faces`).

        Returns:
            (B, 128) embeddings of length 1.
        """
        return self._embed(self.features(images)[-1])

    def features(self, images: Tensor) -> list[Tensor]:
        """Intermediate feature maps for a perceptual distance, shallow to deep.

        Args:
            images: As for `forward`.

        Returns:
            (B, 128, 56, 56), (B, 256, 28, 28), (B, 512, 14, 14) and (B, 1024, 7, 7).
        """
        if images.shape[-2:] != (INPUT_SIZE, INPUT_SIZE):
            raise ValueError(f"SFace takes aligned 112 px crops, got {tuple(images.shape)}; use crop_faces")
        x = (images * 255.0 - 127.5) * 0.0078125
        outputs = []
        for layer in self._layers:
            weight, bias = getattr(self, f"{layer.name}_weight"), getattr(self, f"{layer.name}_bias")
            x = F.conv2d(x, weight, bias, layer.stride, layer.padding, groups=layer.groups)
            x = F.prelu(x, getattr(self, f"{layer.name}_slope"))
            if layer.name in self.FEATURE_LAYERS:
                outputs.append(x)
        return outputs

    def embedding_and_features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`forward` and `features` in one pass."""
        features = self.features(images)
        return self._embed(features[-1]), features

    def train(self, mode: bool = True) -> SFace:
        """Stays in evaluation mode; the network is frozen."""
        return super().train(False)

    def _embed(self, deepest: Tensor) -> Tensor:
        weight, bias = self.get_parameter("linear_weight"), self.get_parameter("linear_bias")
        return F.normalize(F.linear(deepest.flatten(1), weight, bias), dim=1)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Leaves the frozen weights out: they come from the catalogue."""

    def _load_from_state_dict(self, *_: Any) -> None:
        """Nothing to load: the frozen weights come from the catalogue."""


@cache
def shared_sface() -> SFace:
    """One SFace on the CPU per process, for scoring."""
    return SFace()


def crop_faces(images: Tensor, points: Tensor, size: int = INPUT_SIZE) -> Tensor:
    """Crops faces by the similarity that brings five points nearest to the ArcFace template.

    Differentiable in `images`. Equals `cv2.warpAffine` with bilinear interpolation and a black
    border (insightface's `norm_crop`), pixel centres at whole numbers.

    Args:
        images: (B, 3, H, W) RGB in [0, 1].
        points: (B, 5, 2) x, y in pixels: the eye on the left of the picture, the other eye, nose,
            left and right mouth corner.
        size: Side of the crops; the template is scaled from 112.

    Returns:
        (B, 3, size, size).
    """
    template = torch.tensor(ARCFACE_112, dtype=torch.float64, device=images.device) * (size / 112.0)
    source = torch.view_as_complex(points.detach().to(images.device, torch.float64).contiguous())
    target = torch.view_as_complex(template).expand_as(source)
    # A similarity of the plane is z -> turn * z + shift in complex numbers, and the least-squares one
    # (Umeyama 1991 without reflections) has a closed form. Here it maps the crop to the picture.
    source_centre, target_centre = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    centred_source, centred_target = source - source_centre, target - target_centre
    forward_turn = (centred_source.conj() * centred_target).sum(1, keepdim=True)
    turn = centred_source.abs().square().sum(1, keepdim=True) / forward_turn
    along = torch.arange(size, dtype=torch.float64, device=images.device)
    pixels = torch.complex(along[None, :].expand(size, size), along[:, None].expand(size, size))
    where = turn[..., None] * (pixels[None] - target_centre[..., None]) + source_centre[..., None]
    height, width = images.shape[-2:]
    grid = torch.stack([where.real * 2 / (width - 1) - 1, where.imag * 2 / (height - 1) - 1], dim=-1)
    return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=True)


@cache
def _converted_network() -> tuple[dict[str, Tensor], tuple[_Layer, ...]]:
    """Reads the quantised ONNX file, dequantises it and folds the normalisations."""
    try:
        import onnx
    except ImportError as error:
        raise MissingError(
            'SFace needs the Python package onnx. Install it with: pip install "face-restoration-bench[demo]"'
        ) from error
    graph = onnx.load(str(catalogue.locate("sface"))).graph
    values = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    consumer = {name: node for node in graph.node for name in node.input}
    tensors: dict[str, Tensor] = {}
    layers: list[_Layer] = []

    def attributes(node: Any) -> dict[str, Any]:
        return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}

    def value(name: str) -> Tensor:
        return torch.from_numpy(values[name].astype("float64"))

    def normalisation(node: Any) -> tuple[Tensor, Tensor]:
        gamma, beta, mean, variance = (value(name) for name in node.input[1:5])
        scale = gamma / torch.sqrt(variance + attributes(node)["epsilon"])
        return scale, beta - mean * scale

    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            axis, block = attributes(node)["axis"], attributes(node)["block_size"]
            quantised, scales, zeros = (values[name].astype("float32") for name in node.input)
            values[node.output[0]] = (quantised - zeros.repeat(block, axis)) * scales.repeat(block, axis)
        elif node.op_type == "Reshape":
            values[node.output[0]] = values[node.input[0]].reshape(values[node.input[1]])
        elif node.op_type == "Conv":
            batch_norm = consumer[node.output[0]]
            activation = consumer[batch_norm.output[0]]
            scale, shift = normalisation(batch_norm)
            settings = attributes(node)
            name = node.output[0].removesuffix("_conv2d")
            tensors[f"{name}_weight"] = value(node.input[1]) * scale[:, None, None, None]
            tensors[f"{name}_bias"] = shift
            tensors[f"{name}_slope"] = value(activation.input[1]).flatten()
            layers.append(_Layer(name, settings["strides"][0], settings["pads"][0], settings["group"]))
        elif node.op_type == "Gemm":
            weight, bias = value(node.input[1]), value(node.input[2])

    by_output = {name: node for node in graph.node for name in node.output}
    before, before_shift = normalisation(by_output["bn1"])
    after, after_shift = normalisation(by_output["fc1"])
    cells = weight.shape[1] // len(before)
    bias = bias + weight @ before_shift.repeat_interleave(cells)
    tensors["linear_weight"] = weight * before.repeat_interleave(cells) * after[:, None]
    tensors["linear_bias"] = bias * after + after_shift
    return {name: tensor.float() for name, tensor in tensors.items()}, tuple(layers)
