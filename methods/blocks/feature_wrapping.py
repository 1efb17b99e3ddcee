"""Controllable feature wrapping (CFW): encoder features of the LQ image let into a VAE decoder, by a weight.

Source: Wang et al., "Exploiting Diffusion Prior for Real-World Image Super-Resolution" (StableSR), IJCV 2024, Sec. 3.2,
Eq. 3: out = decoded + w E([encoded; decoded]), with E = residual block (2C to C), two residual-in-residual dense
blocks (Wang et al., ESRGAN, 2018; growth 32), residual block (C to C), at every resolution of the decoder apart from
the lowest and the highest (128 and 256 of 512 pixels).

`FeatureWrapping` owns the fusion layers alone. The autoencoder stays a stock diffusers `AutoencoderKL`, given at each
call and left as it is: features are arguments of the call and not a state of the model, so nothing has to be removed,
and gradients are right whatever runs in between. Parameters are named as in the release (`fusion_layer_1.encode_enc_1.
norm1.weight`, ...); `load_released` reads its checkpoint, which holds the autoencoder as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bench.errors import UsageError

Autoencoder = Any
"""diffusers' `AutoencoderKL`, of which type checkers see no members."""
RESIDUAL_SCALE = 0.2
IGNORED_PREFIXES = ("loss.",)
"""What a released checkpoint holds of its training (perceptual network and discriminator), left out on purpose."""


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice, plus the input; (B, in, H, W) to (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.conv_out = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Residual of (B, in, H, W) added to it."""
        residual = self.conv1(F.silu(self.norm1(features)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        return residual + (self.conv_out(features) if hasattr(self, "conv_out") else features)


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees what all before it gave; (B, C, H, W) to the same (ESRGAN, Fig. 4)."""

    def __init__(self, channels: int, growth: int = 32) -> None:
        super().__init__()
        for index in range(1, 6):
            convolution = nn.Conv2d(channels + (index - 1) * growth, growth if index < 5 else channels, 3, padding=1)
            if convolution.weight.device.type != "meta":
                nn.init.kaiming_normal_(convolution.weight)
                convolution.weight.data.mul_(0.1)
                nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            self.add_module(f"conv{index}", convolution)

    def forward(self, features: Tensor) -> Tensor:
        """Scaled result added to (B, C, H, W)."""
        seen = [features]
        for index in range(1, 5):
            seen.append(F.leaky_relu(self.get_submodule(f"conv{index}")(torch.cat(seen, 1)), 0.2))
        return features + RESIDUAL_SCALE * self.get_submodule("conv5")(torch.cat(seen, 1))


class ResidualDenseBlocks(nn.Module):
    """Three dense blocks, scaled and added to their input (ESRGAN's RRDB)."""

    def __init__(self, channels: int, growth: int = 32) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(channels, growth)
        self.rdb2 = DenseBlock(channels, growth)
        self.rdb3 = DenseBlock(channels, growth)

    def forward(self, features: Tensor) -> Tensor:
        """Scaled result added to (B, C, H, W)."""
        result: Tensor = self.rdb3(self.rdb2(self.rdb1(features)))
        return features + RESIDUAL_SCALE * result


class FusionLayer(nn.Module):
    """E of Eq. 3 and the weighted sum, at one resolution."""

    def __init__(self, channels: int, blocks: int = 2, growth: int = 32, groups: int = 32) -> None:
        super().__init__()
        self.encode_enc_1 = ResidualBlock(2 * channels, channels, groups)
        self.encode_enc_2 = nn.Sequential(*(ResidualDenseBlocks(channels, growth) for _ in range(blocks)))
        self.encode_enc_3 = ResidualBlock(channels, channels, groups)

    def forward(self, encoded: Tensor, decoded: Tensor, weight: float = 1.0) -> Tensor:
        """Sum decoded + weight E([encoded; decoded]); all (B, C, H, W)."""
        features = self.encode_enc_1(torch.cat([encoded, decoded], 1))
        return decoded + weight * self.encode_enc_3(self.encode_enc_2(features))


class FeatureWrapping(nn.Module):
    """Fusion layers for a diffusers `AutoencoderKL`, which decode with features of the encoder.

    Args:
        channels: `block_out_channels` of the autoencoder; levels 1 to len - 2 have a fusion layer each.
        blocks: Residual-in-residual dense blocks per layer.
        growth: Of their dense blocks.
        groups: Of every GroupNorm.
        checkpointing: Recompute the decoder's levels in the backward pass instead of keeping their activations.
    """

    def __init__(
        self,
        channels: Sequence[int] = (128, 256, 512, 512),
        blocks: int = 2,
        growth: int = 32,
        groups: int = 32,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.levels = tuple(range(1, len(channels) - 1))
        self.checkpointing = checkpointing
        for level in reversed(self.levels):
            self.add_module(f"fusion_layer_{level}", FusionLayer(channels[level], blocks, growth, groups))

    def encode(self, autoencoder: Autoencoder, image: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Parameters of the posterior as `autoencoder` computes them, and the features that `decode` takes.

        Args:
            autoencoder: Not changed.
            image: (B, 3, H, W) in [-1, 1], sides multiples of 8 (of 2 ** (levels - 1)).

        Returns:
            (B, 2 * latent channels, H / 8, W / 8), of which diffusers' `DiagonalGaussianDistribution` takes mode or
            sample, and by level l the features (B, channels[l], H / 2**l, W / 2**l) before that level's halving.
        """
        encoder: Any = autoencoder.encoder
        features: dict[int, Tensor] = {}
        hidden = encoder.conv_in(image)
        for level, block in enumerate(encoder.down_blocks):
            for layer in block.resnets:
                hidden = layer(hidden, temb=None)
            if level in self.levels:
                features[level] = hidden
            for layer in block.downsamplers or ():
                hidden = layer(hidden)
        hidden = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(hidden))))
        return (hidden if autoencoder.quant_conv is None else autoencoder.quant_conv(hidden)), features

    def decode(
        self, autoencoder: Autoencoder, latent: Tensor, features: Mapping[int, Tensor], weight: float = 1.0
    ) -> Tensor:
        """Decodes with the encoder's features let in.

        Args:
            autoencoder: Not changed.
            latent: (B, C, h, w) as for `autoencoder.decode`, that is, divided by the scaling factor.
            features: From `encode`, of an image of 8 h x 8 w pixels (for tiles: of the same window).
            weight: w of Eq. 3; 1 in training, 0.5 in the release's general recipe, 0 in its recipe for faces. With 0
                the result is `autoencoder.decode`'s own, bit by bit.

        Returns:
            (B, 3, 8 h, 8 w), nominally in [-1, 1], not clamped.

        Raises:
            UsageError: Features of a level are missing or of another size.
        """
        if weight == 0:
            plain: Tensor = autoencoder.decode(latent).sample
            return plain
        decoder: Any = autoencoder.decoder
        hidden = latent if autoencoder.post_quant_conv is None else autoencoder.post_quant_conv(latent)
        hidden = decoder.mid_block(decoder.conv_in(hidden), None)
        for position, block in enumerate(decoder.up_blocks):
            level = len(decoder.up_blocks) - 1 - position
            encoded = self._feature(features, level, hidden) if level in self.levels else None
            if self.checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(self._level, block, level, hidden, encoded, weight, use_reentrant=False)
            else:
                hidden = self._level(block, level, hidden, encoded, weight)
        result: Tensor = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(hidden)))
        return result

    def _level(self, block: Any, level: int, hidden: Tensor, encoded: Tensor | None, weight: float) -> Tensor:
        for layer in block.resnets:
            hidden = layer(hidden, temb=None)
        if encoded is not None:
            hidden = self.get_submodule(f"fusion_layer_{level}")(encoded, hidden, weight)
        for layer in block.upsamplers or ():
            hidden = layer(hidden)
        return hidden

    def _feature(self, features: Mapping[int, Tensor], level: int, hidden: Tensor) -> Tensor:
        if level not in features:
            raise UsageError(
                f"Feature wrapping needs the encoder's features of levels {list(self.levels)}, but level {level} is "
                f"missing (given: {sorted(features)}): take them from `FeatureWrapping.encode`."
            )
        feature = features[level]
        if feature.shape[0] != hidden.shape[0] or feature.shape[-2:] != hidden.shape[-2:]:
            raise UsageError(
                f"The encoder's features of level {level} are {tuple(feature.shape)}, but the decoder is at "
                f"{tuple(hidden.shape)}: encode an image of the size that is decoded."
            )
        return feature


@dataclass(frozen=True)
class LoadReport:
    """What became of a released checkpoint's tensors.

    Attributes:
        autoencoder: How many went into the autoencoder.
        fusion: How many went into the fusion layers.
        ignored: Names left out on purpose (see `IGNORED_PREFIXES`).
    """

    autoencoder: int
    fusion: int
    ignored: tuple[str, ...]


def released_name(name: str, levels: int = 4) -> str:
    """A diffusers `AutoencoderKL` parameter's name in the layout of latent diffusion's checkpoints.

    Args:
        name: For instance `decoder.up_blocks.0.resnets.1.conv_shortcut.weight`.
        levels: Resolutions of the autoencoder: the release counts the decoder's from the highest, diffusers from the
            lowest.
    """
    name = re.sub(r"^encoder\.down_blocks\.(\d+)\.", r"encoder.down.\1.", name)
    name = re.sub(r"^decoder\.up_blocks\.(\d+)\.", lambda found: f"decoder.up.{levels - 1 - int(found[1])}.", name)
    for ours, theirs in (
        (".mid_block.resnets.0.", ".mid.block_1."),
        (".mid_block.resnets.1.", ".mid.block_2."),
        (".mid_block.attentions.0.", ".mid.attn_1."),
        (".resnets.", ".block."),
        (".downsamplers.0.", ".downsample."),
        (".upsamplers.0.", ".upsample."),
        (".conv_shortcut.", ".nin_shortcut."),
        (".conv_norm_out.", ".norm_out."),
        (".group_norm.", ".norm."),
        (".to_q.", ".q."),
        (".to_k.", ".k."),
        (".to_v.", ".v."),
        (".to_out.0.", ".proj_out."),
    ):
        name = name.replace(ours, theirs)
    return name


def to_released(autoencoder: Autoencoder, wrapping: FeatureWrapping) -> dict[str, Tensor]:
    """Both modules' tensors under the names and in the shapes of StableSR's CFW checkpoint (no copies)."""
    levels = len(autoencoder.decoder.up_blocks)
    state = {
        released_name(name, levels): tensor[:, :, None, None] if _is_attention_matrix(name) else tensor
        for name, tensor in autoencoder.state_dict().items()
    }
    return state | {f"decoder.{name}": tensor for name, tensor in wrapping.state_dict().items()}


def load_released(
    autoencoder: Autoencoder, wrapping: FeatureWrapping, state: Mapping[str, Tensor], source: str = "checkpoint"
) -> LoadReport:
    """Loads StableSR's CFW checkpoint (its `state_dict`), accounting for every tensor before anything is changed.

    Args:
        autoencoder: Takes `encoder`, `decoder`, `quant_conv` and `post_quant_conv`.
        wrapping: Takes `decoder.fusion_layer_*`.
        state: Released names to tensors.
        source: The file's name, for the message.

    Raises:
        UsageError: Tensors are missing, unknown or of another shape; the message names them.
    """
    ignored = tuple(name for name in state if name.startswith(IGNORED_PREFIXES))
    given = {name: tensor for name, tensor in state.items() if name not in ignored}
    expected = to_released(autoencoder, wrapping)
    wrong_shape = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    problems = {
        "missing": [name for name in expected if name not in given],
        "unknown": [name for name in given if name not in expected],
        "of another shape": wrong_shape,
    }
    found = [f"{len(names)} {kind} ({_some(names)})" for kind, names in problems.items() if names]
    if found:
        raise UsageError(
            f"{source} is not a checkpoint of StableSR's autoencoder with feature wrapping "
            f"(vqgan_cfw_00011.ckpt is expected): tensors {', '.join(found)}."
        )
    levels = len(autoencoder.decoder.up_blocks)
    autoencoder_state = {}
    for name in autoencoder.state_dict():
        tensor = given[released_name(name, levels)]
        autoencoder_state[name] = tensor[:, :, 0, 0] if _is_attention_matrix(name) else tensor
    wrapping_state = {name: given[f"decoder.{name}"] for name in wrapping.state_dict()}
    autoencoder.load_state_dict(autoencoder_state, strict=True)
    wrapping.load_state_dict(wrapping_state, strict=True)
    return LoadReport(len(autoencoder_state), len(wrapping_state), ignored)


def _is_attention_matrix(name: str) -> bool:
    """Whether diffusers holds a matrix (linear layer) where the release holds a 1x1 convolution."""
    return ".attentions." in name and name.endswith(".weight") and "group_norm" not in name


def _some(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (f", and {len(names) - count} more" if len(names) > count else "")
