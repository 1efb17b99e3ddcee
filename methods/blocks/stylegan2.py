"""StyleGAN2 generator and discriminator in plain torch, without compiled operators.

Parameter names and shapes of the generator are those of the public FFHQ prior in BasicSR's layout
(`style_mlp.1`, `style_convs.0.modulated_conv.weight`, `noises.noise0`, ...), so that its
`params_ema` loads strictly. Source: Karras et al., "Analyzing and Improving the Image Quality of
StyleGAN", CVPR 2020 (modulated convolution: Sec. 2.2, Eq. 1-3; skip generator and residual
discriminator: Sec. 4.1).

Modulation is done on activations instead of weights: scale the input channels, convolve the whole
batch with one shared weight, scale the output channels. The result is the same and no convolution
is grouped by picture, which is what makes it quick on a CPU. Every operator is differentiable twice
(R1 needs that).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FIR_TAPS = (1.0, 3.0, 3.0, 1.0)


def channels_by_resolution(channel_multiplier: float = 1, narrow: float = 1) -> dict[int, int]:
    """Number of feature channels at each resolution, shared by generator, encoder and discriminator."""
    wide = {4: 512, 8: 512, 16: 512, 32: 512}
    tapered = {64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}
    return {side: max(1, int(width * narrow)) for side, width in wide.items()} | {
        side: max(1, int(width * channel_multiplier * narrow)) for side, width in tapered.items()
    }


def fir_kernel(taps: Sequence[float] = FIR_TAPS) -> Tensor:
    """Separable low-pass kernel, (len(taps), len(taps)), normalised to sum 1."""
    line = torch.tensor(taps, dtype=torch.float32)
    kernel = torch.outer(line, line)
    return kernel / kernel.sum()


def fir_blur(image: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """Depthwise low-pass filter of (B, C, H, W) with the same padding on all sides."""
    channels = image.shape[1]
    weight = kernel.to(image.dtype).expand(channels, 1, *kernel.shape)
    return F.conv2d(image, weight, padding=padding, groups=channels)


def fir_upsample(image: Tensor, kernel: Tensor) -> Tensor:
    """Doubles the side of (B, C, H, W): zeros between pixels, then the low-pass filter times four."""
    channels = image.shape[1]
    weight = (kernel * 4).to(image.dtype).expand(channels, 1, *kernel.shape)
    return F.conv_transpose2d(image, weight, stride=2, padding=kernel.shape[0] // 2 - 1, groups=channels)


def biased_leaky_relu(features: Tensor, bias: Tensor, slope: float = 0.2) -> Tensor:
    """leaky_relu(x + bias) times sqrt(2), which keeps the variance; bias (C,), channels in dimension 1."""
    gain = math.sqrt(2)
    shape = (1, -1) + (1,) * (features.ndim - 2)
    bias = (bias * gain).to(features.dtype).view(shape)
    return F.leaky_relu(torch.add(bias, features, alpha=gain), slope)


class FusedLeakyReLU(nn.Module):
    """Bias, leaky ReLU of slope 0.2 and gain sqrt(2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Applies bias and activation to (B, C, ...)."""
        return biased_leaky_relu(features, self.bias)


class EqualLinear(nn.Module):
    """Linear layer with equalised learning rate, optionally followed by the biased leaky ReLU.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias_init: Start value of the bias.
        rate_multiplier: Factor on the learning rate of weight and bias.
        activate: Whether the leaky ReLU follows.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias_init: float = 0.0,
        rate_multiplier: float = 1.0,
        activate: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / rate_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init)))
        self.scale = rate_multiplier / math.sqrt(in_features)
        self.rate_multiplier = rate_multiplier
        self.activate = activate

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, in_features) to (B, out_features)."""
        bias = self.bias * self.rate_multiplier
        if self.activate:
            return biased_leaky_relu(F.linear(features, self.weight * self.scale), bias)
        return F.linear(features, self.weight * self.scale, bias)


class EqualConv2d(nn.Module):
    """Convolution without bias, with equalised learning rate."""

    def __init__(self, in_channels: int, out_channels: int, side: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, side, side))
        self.scale = 1 / math.sqrt(in_channels * side**2)
        self.stride = stride
        self.padding = padding

    def forward(self, features: Tensor) -> Tensor:
        """Convolves (B, C, H, W)."""
        return F.conv2d(features, self.weight * self.scale, stride=self.stride, padding=self.padding)


class Blur(nn.Module):
    """Low-pass filter; the kernel stands in the state dict, as in GPEN."""

    kernel: Tensor

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.register_buffer("kernel", fir_kernel())
        self.padding = padding

    def forward(self, features: Tensor) -> Tensor:
        """Filters (B, C, H, W)."""
        return fir_blur(features, self.kernel, self.padding)


class ConvLayer(nn.Sequential):
    """[low-pass filter,] convolution [, biased leaky ReLU]; the side is halved if `downsample`."""

    def __init__(
        self, in_channels: int, out_channels: int, side: int, downsample: bool = False, activate: bool = True
    ) -> None:
        layers: list[nn.Module] = []
        if downsample:
            layers.append(Blur(padding=(len(FIR_TAPS) - 2 + side - 1) // 2))
            layers.append(EqualConv2d(in_channels, out_channels, side, stride=2))
        else:
            layers.append(EqualConv2d(in_channels, out_channels, side, padding=side // 2))
        if activate:
            layers.append(FusedLeakyReLU(out_channels))
        super().__init__(*layers)


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style and whose output is renormalised.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        side: Side of the kernel.
        style_dim: Width of the style code.
        demodulate: Whether output channels are brought back to unit variance.
        upsample: Whether the side of the picture is doubled (transposed convolution, low-pass filter).
    """

    kernel: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        side: int,
        style_dim: int,
        *,
        demodulate: bool = True,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.modulation = EqualLinear(style_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, side, side))
        self.scale = 1 / math.sqrt(in_channels * side**2)
        self.demodulate = demodulate
        self.upsample = upsample
        if upsample:
            self.register_buffer("kernel", fir_kernel(), persistent=False)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """Convolves features (B, C, H, W) under style (B, style_dim)."""
        style = self.modulation(style)
        weight = self.weight[0] * self.scale
        features = features * style[:, :, None, None]
        if self.upsample:
            features = F.conv_transpose2d(features, weight.transpose(0, 1), stride=2)
            features = fir_blur(features, self.kernel * 4, padding=1)
        else:
            features = F.conv2d(features, weight, padding=weight.shape[-1] // 2)
        if self.demodulate:
            energy = weight.float().square().sum(dim=(2, 3))
            gain = torch.rsqrt(F.linear(style.float().square(), energy) + 1e-8)
            features = features * gain.to(features.dtype)[:, :, None, None]
        return features


Injection = Callable[[Tensor], Tensor]


class StyleConv(nn.Module):
    """Modulated 3x3 convolution, an injection (noise by default), bias and leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, style_dim: int, upsample: bool = False) -> None:
        super().__init__()
        self.modulated_conv = ModulatedConv2d(in_channels, out_channels, 3, style_dim, upsample=upsample)
        self.weight = nn.Parameter(torch.zeros(1))
        self.activate = FusedLeakyReLU(out_channels)

    def forward(
        self, features: Tensor, style: Tensor, noise: Tensor | None = None, inject: Injection | None = None
    ) -> Tensor:
        """Convolves (B, C, H, W) under style (B, style_dim).

        Args:
            features: Input features.
            style: Style codes.
            noise: Noise map (B or 1, 1, H, W) of the output's size; drawn anew if absent.
            inject: Replaces the noise: takes and returns the convolution's output.

        Returns:
            Features after activation.
        """
        out = self.modulated_conv(features, style)
        if inject is not None:
            out = inject(out)
        else:
            if noise is None:
                noise = torch.randn_like(out[:, :1])
            out = out + self.weight * noise
        return self.activate(out)


class ToRGB(nn.Module):
    """Features to a picture, added to the upsampled picture of the resolution below."""

    kernel: Tensor

    def __init__(self, in_channels: int, style_dim: int) -> None:
        super().__init__()
        self.modulated_conv = ModulatedConv2d(in_channels, 3, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.register_buffer("kernel", fir_kernel(), persistent=False)

    def forward(self, features: Tensor, style: Tensor, below: Tensor | None = None) -> Tensor:
        """Maps (B, C, H, W) to (B, 3, H, W); `below` is (B, 3, H/2, W/2)."""
        image = self.modulated_conv(features, style) + self.bias
        return image if below is None else image + fir_upsample(below, self.kernel)


class ConstantInput(nn.Module):
    """The learned 4x4 start of the generator."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, count: int) -> Tensor:
        """Repeats the constant for `count` pictures."""
        return self.weight.expand(count, -1, -1, -1)


class NormStyleCode(nn.Module):
    """Brings codes (B, style_dim) to unit mean square."""

    def forward(self, code: Tensor) -> Tensor:
        """Normalises the codes."""
        return code * torch.rsqrt(code.square().mean(dim=1, keepdim=True) + 1e-8)


class StyleGAN2Generator(nn.Module):
    """StyleGAN2 generator with skip connections.

    Args:
        out_size: Side of the picture, a power of two from 8 to 1024.
        style_dim: Width of the style code.
        mlp_layers: Depth of the mapping network (8 in the public prior; 0 leaves it out).
        channel_multiplier: Factor on the channels at 64 px and above.
        narrow: Factor on all channels.
    """

    def __init__(
        self,
        out_size: int,
        style_dim: int = 512,
        mlp_layers: int = 8,
        channel_multiplier: float = 2,
        narrow: float = 1,
    ) -> None:
        super().__init__()
        levels = int(math.log2(out_size))
        if 2**levels != out_size or not 8 <= out_size <= 1024:
            raise ValueError(f"out_size must be a power of two from 8 to 1024, got {out_size}")
        channels = channels_by_resolution(channel_multiplier, narrow)
        self.out_size = out_size
        self.style_dim = style_dim
        self.latents = 2 * levels - 2
        mapping = [EqualLinear(style_dim, style_dim, rate_multiplier=0.01, activate=True) for _ in range(mlp_layers)]
        self.style_mlp = nn.Sequential(NormStyleCode(), *mapping)
        self.constant_input = ConstantInput(channels[4])
        self.style_conv1 = StyleConv(channels[4], channels[4], style_dim)
        self.to_rgb1 = ToRGB(channels[4], style_dim)
        self.style_convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        self.noises = nn.Module()
        self.noises.register_buffer("noise0", torch.randn(1, 1, 4, 4))
        for level in range(3, levels + 1):
            side = 2**level
            below, here = channels[side // 2], channels[side]
            self.style_convs.append(StyleConv(below, here, style_dim, upsample=True))
            self.style_convs.append(StyleConv(here, here, style_dim))
            self.to_rgbs.append(ToRGB(here, style_dim))
            for index in (2 * level - 5, 2 * level - 4):
                self.noises.register_buffer(f"noise{index}", torch.randn(1, 1, side, side))

    @property
    def noise_buffers(self) -> list[Tensor]:
        """Stored noise maps in the order of the convolutions, each (1, 1, side, side)."""
        return [cast(Tensor, getattr(self.noises, f"noise{index}")) for index in range(self.latents - 1)]

    def map_styles(
        self,
        codes: Sequence[Tensor],
        inject_index: int | None = None,
        truncation: float = 1.0,
        truncation_latent: Tensor | None = None,
    ) -> Tensor:
        """Turns one or two random codes into one latent per layer.

        Args:
            codes: One or two codes z, (B, style_dim).
            inject_index: First latent that comes from the second code.
            truncation: 1 keeps the latents; less pulls them towards `truncation_latent`.
            truncation_latent: Mean latent, (1, style_dim).

        Returns:
            Latents W, (B, latents, style_dim).

        Raises:
            ValueError: Two codes without `inject_index`, or truncation without its latent.
        """
        styles = [self.style_mlp(code) for code in codes]
        if truncation < 1:
            if truncation_latent is None:
                raise ValueError("truncation below 1 needs truncation_latent")
            styles = [truncation_latent + truncation * (style - truncation_latent) for style in styles]
        if len(styles) == 1:
            return styles[0][:, None].expand(-1, self.latents, -1)
        if inject_index is None:
            raise ValueError("two codes need inject_index")
        first = styles[0][:, None].expand(-1, inject_index, -1)
        second = styles[1][:, None].expand(-1, self.latents - inject_index, -1)
        return torch.cat([first, second], dim=1)

    def synthesise(
        self,
        latents: Tensor,
        noise: Sequence[Tensor | None] | None = None,
        inject: Sequence[Injection] | None = None,
    ) -> Tensor:
        """Draws pictures from latents.

        Args:
            latents: W codes, (B, latents, style_dim), or (B, style_dim) for the same one everywhere.
            noise: One map per convolution (4x4 first, then two per resolution); drawn anew if absent.
            inject: One function per convolution that replaces its noise.

        Returns:
            Pictures (B, 3, out_size, out_size), about [-1, 1], not clamped.
        """
        if latents.ndim == 2:
            latents = latents[:, None].expand(-1, self.latents, -1)
        maps: Sequence[Tensor | None] = noise if noise is not None else [None] * (self.latents - 1)
        functions: Sequence[Injection | None] = inject if inject is not None else [None] * (self.latents - 1)
        features = self.constant_input(latents.shape[0])
        features = self.style_conv1(features, latents[:, 0], maps[0], functions[0])
        image = self.to_rgb1(features, latents[:, 1])
        for level, to_rgb in enumerate(self.to_rgbs):
            index = 2 * level + 1
            for step in (index, index + 1):
                features = self.style_convs[step - 1](features, latents[:, step], maps[step], functions[step])
            image = to_rgb(features, latents[:, index + 2], image)
        return image

    def forward(
        self,
        codes: Sequence[Tensor],
        noise: Sequence[Tensor | None] | None = None,
        *,
        randomize_noise: bool = True,
        inject_index: int | None = None,
        truncation: float = 1.0,
        truncation_latent: Tensor | None = None,
    ) -> Tensor:
        """Draws pictures from random codes; see `map_styles` and `synthesise`."""
        latents = self.map_styles(codes, inject_index, truncation, truncation_latent)
        if noise is None and not randomize_noise:
            noise = self.noise_buffers
        return self.synthesise(latents, noise)


class ResidualBlock(nn.Module):
    """Residual block of the discriminator; halves the side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(in_channels, in_channels, 3)
        self.conv2 = ConvLayer(in_channels, out_channels, 3, downsample=True)
        self.skip = ConvLayer(in_channels, out_channels, 1, downsample=True, activate=False)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C', H/2, W/2)."""
        return (self.conv2(self.conv1(features)) + self.skip(features)) / math.sqrt(2)


def minibatch_deviation(features: Tensor, group: int = 4) -> Tensor:
    """Appends the deviation over groups of pictures as one constant channel, (B, C+1, H, W).

    The group is the largest divisor of the batch size up to `group`.
    """
    batch, channels, height, width = features.shape
    size = next(count for count in range(min(group, batch), 0, -1) if batch % count == 0)
    grouped = features.reshape(size, batch // size, channels, height, width)
    deviation = torch.sqrt(grouped.var(dim=0, unbiased=False) + 1e-8).mean(dim=(1, 2, 3))
    return torch.cat([features, deviation.repeat(size).view(-1, 1, 1, 1).expand(-1, 1, height, width)], dim=1)


class StyleGAN2Discriminator(nn.Module):
    """Residual StyleGAN2 discriminator with minibatch deviation.

    Args:
        size: Side of the pictures, a power of two from 8 to 1024.
        channel_multiplier: Factor on the channels at 64 px and above.
        narrow: Factor on all channels.
        in_channels: Channels of the pictures.
    """

    def __init__(self, size: int, channel_multiplier: float = 2, narrow: float = 1, in_channels: int = 3) -> None:
        super().__init__()
        levels = int(math.log2(size))
        if 2**levels != size or not 8 <= size <= 1024:
            raise ValueError(f"size must be a power of two from 8 to 1024, got {size}")
        channels = channels_by_resolution(channel_multiplier, narrow)
        body: list[nn.Module] = [ConvLayer(in_channels, channels[size], 1)]
        for level in range(levels, 2, -1):
            body.append(ResidualBlock(channels[2**level], channels[2 ** (level - 1)]))
        self.conv_body = nn.Sequential(*body)
        self.final_conv = ConvLayer(channels[4] + 1, channels[4], 3)
        self.final_linear = nn.Sequential(
            EqualLinear(channels[4] * 16, channels[4], activate=True), EqualLinear(channels[4], 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Scores pictures (B, 3, size, size) in [-1, 1]; returns logits (B, 1), higher for real."""
        features = minibatch_deviation(self.conv_body(image))
        return self.final_linear(self.final_conv(features).flatten(1))
