"""Pictures to latents and back: Stable Diffusion's autoencoder, or the small one of the demo sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from bench.errors import MissingError, UsageError
from bench.files import sha256_file
from bench.weights.method_weights import read_weights, weights_path
from methods.blocks.base_models import BaseModel
from methods.blocks.latent_diffusion import load_base, locate_base, weights_file
from methods.blocks.tensor_cache import file_digest

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL


#: Pixels that are encoded in one call: the first layers keep 128 maps of a picture's size.
PIXELS_AT_ONCE = 16 * 512**2


class LatentSpace(Protocol):
    """Where a latent-diffusion method works.

    Attributes:
        channels: Channels of a latent.
        factor: Pixels per latent position along a side.
        digest: Names the weights: two spaces with one digest give the same latents.
    """

    channels: int
    factor: int
    digest: str

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, channels, H / factor, W / factor) of pictures (B, 3, H, W) in [-1, 1]; deviation about 1."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), about [-1, 1], of latents."""
        ...


class StableDiffusionSpace(nn.Module):
    """Stable Diffusion's autoencoder, frozen; latents are the posterior's mode times the scaling factor.

    It runs in its own type, whatever a mixed precision asks for: in half precision latents lose what a network could
    learn, and SDXL's overflows.

    Args:
        vae: The autoencoder.
        digest: See `LatentSpace`.
    """

    def __init__(self, vae: AutoencoderKL, digest: str) -> None:
        super().__init__()
        self.vae: Any = vae.requires_grad_(False).eval()
        self.channels = int(vae.config["latent_channels"])
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.scale = float(vae.config["scaling_factor"])
        self.digest = digest

    def train(self, mode: bool = True) -> StableDiffusionSpace:
        """Stays in evaluation mode; the autoencoder is frozen."""
        return super().train(False)

    def encode(self, images: Tensor) -> Tensor:
        """See `LatentSpace.encode`."""
        at_once = max(1, PIXELS_AT_ONCE // (images.shape[-1] * images.shape[-2]))
        with torch.autocast(images.device.type, enabled=False):
            parts = [self.vae.encode(part).latent_dist.mode() for part in images.to(self.vae.dtype).split(at_once)]
        return self._finite(torch.cat(parts) * self.scale)

    def decode(self, latents: Tensor) -> Tensor:
        """See `LatentSpace.decode`."""
        with torch.autocast(latents.device.type, enabled=False):
            pictures = self.vae.decode((latents / self.scale).to(self.vae.dtype)).sample
        return self._finite(pictures)

    def _finite(self, made: Tensor) -> Tensor:
        """What was made, in float32.

        Raises:
            UsageError: It overflowed in float16, as that of SDXL does.
        """
        if self.vae.dtype != torch.float16:
            return made
        if not torch.isfinite(made).all():
            raise UsageError(
                "The autoencoder gave NaN in float16. Run it in float32 (method.autoencoder_dtype=float32), or take "
                "one that does not overflow, such as madebyollin/sdxl-vae-fp16-fix in the folder's vae."
            )
        return made.float()


class DemoSpace(nn.Module):
    """The small autoencoder of `methods/autoencoder`, frozen, with its shipped weights.

    Raises:
        MissingError: Its weights are nowhere.
        UsageError: The file holds the weights of something else.
    """

    def __init__(self, given: str | None = None) -> None:
        super().__init__()
        from methods.autoencoder.module import FACTOR, Autoencoder

        train = "Train it with: bench train method=autoencoder data=orl_heavy"
        if given and not Path(given).expanduser().is_file():
            raise MissingError(f"method.autoencoder={given} is not a file. {train}.")
        path = weights_path("autoencoder", "demo", given)
        if path is None:
            raise MissingError(
                f"The small autoencoder of the demo sizes has no weights here. {train}, then give the file: "
                "method.autoencoder=FILE."
            )
        state, metadata = read_weights(path)
        if metadata.get("method", "autoencoder") != "autoencoder" or "settings" not in metadata:
            raise UsageError(
                f"{path} holds the weights of {metadata.get('method', 'something else')}, not of the small autoencoder "
                f"(method.autoencoder). {train}."
            )
        # Building it draws initial weights, which must not change what the caller draws.
        with torch.random.fork_rng(devices=[]):
            self.autoencoder = Autoencoder(json.loads(metadata["settings"]))
        self.autoencoder.load_weights_state(state)
        self.autoencoder.requires_grad_(False).eval()
        self.channels = int(self.autoencoder.settings["network"]["latent_channels"])
        self.factor = FACTOR
        self.digest = sha256_file(path)

    def train(self, mode: bool = True) -> DemoSpace:
        """Stays in evaluation mode; the autoencoder is frozen."""
        return super().train(False)

    def encode(self, images: Tensor) -> Tensor:
        """See `LatentSpace.encode`."""
        return self.autoencoder.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """See `LatentSpace.decode`."""
        return self.autoencoder.decode(latents)


def latent_space(base: BaseModel, given: str | None = None, dtype: str = "float32") -> DemoSpace | StableDiffusionSpace:
    """The latent space of a base model, with its weights.

    Args:
        base: The base model; those of the demo sizes have the small autoencoder.
        given: Weights of the autoencoder (demo), diffusers folder or single file (others), or None to look them up.
        dtype: `float32`, or `float16` for a released autoencoder that bears it.

    Raises:
        MissingError: The weights are nowhere.
    """
    if base.small_autoencoder:
        return DemoSpace(given)
    path = locate_base(base, given)
    vae = cast("AutoencoderKL", load_base(base, given, ("vae",), getattr(torch, dtype))["vae"])
    return StableDiffusionSpace(vae, file_digest(weights_file(base, path, "vae")))
