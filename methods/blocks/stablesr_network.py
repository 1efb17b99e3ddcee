"""StableSR's denoiser: a stock UNet that reads the LQ latent through SFT. Methods build on it by attaching more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from bench.errors import unknown_name
from methods.blocks.adapted_unet import AdaptedUNet, Maps, compile_regions
from methods.blocks.base_models import BaseModel
from methods.blocks.latent_diffusion import build_unet
from methods.blocks.lq_encoder import LqEncoder
from methods.blocks.spatial_feature_transform import sft_adapters


class StableSRNetwork(nn.Module):
    """UNet, time-aware encoder of the LQ latent, SFT in every ResBlock (StableSR, Wang et al., IJCV 2024, Sec. 3.1).

    Attributes:
        PARTS: Prefix of parameter names -> part of the network, for stages of training.
        STAGES: Stage of training -> parts that it trains.

    Args:
        base: Base model: its UNet, and the width of its text tokens.
        options: `lq_encoder` and `sft`: arguments of the module of that name.
    """

    PARTS: ClassVar[Mapping[str, str]] = {
        "adapted.unet.": "unet",
        "adapted.adapters.sft.": "sft",
        "lq_encoder.": "lq_encoder",
    }
    STAGES: ClassVar[Mapping[str, tuple[str, ...]]] = {"base": ("unet", "lq_encoder", "sft")}

    def __init__(self, base: BaseModel, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.adapted = AdaptedUNet(build_unet(base))
        self.lq_encoder = LqEncoder(in_channels=base.latent_channels, **options["lq_encoder"])
        maps = options["lq_encoder"]["map_channels"]
        self.adapted.attach("sft", sft_adapters(self.adapted.unet, maps, **options["sft"]))

    def lq_maps(self, lq_latent: Tensor, timestep: Tensor) -> Maps:
        """Maps of LQ latents (B, C, h, w) at timesteps (B,)."""
        maps: Maps = self.lq_encoder(lq_latent, timestep)
        return maps

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes activations in the backward pass instead of keeping them: less memory, a slower step."""
        self.adapted.enable_gradient_checkpointing()
        self.lq_encoder.enable_gradient_checkpointing()

    def compile_regions(self, **options: Any) -> None:
        """Compiles the blocks of UNet and LQ encoder in place; arguments as `torch.compile`."""
        self.adapted.compile_regions(**options)
        compile_regions(self.lq_encoder, **options)

    @classmethod
    def part_of(cls, parameter: str) -> str:
        """To which part of `STAGES` a parameter belongs, by its name.

        Raises:
            ValueError: To none.
        """
        for prefix, part in cls.PARTS.items():
            if parameter.startswith(prefix):
                return part
        raise ValueError(f"{parameter} belongs to no part of this network")

    @property
    def left_out(self) -> set[str]:
        """Parts of `STAGES` that the settings left out."""
        return set()

    def train_only(self, stage: str) -> list[nn.Parameter]:
        """Freezes everything but the parts of a stage, and returns these.

        Raises:
            UsageError: There is no such stage.
        """
        if stage not in self.STAGES:
            raise unknown_name("value of method.training.stage", stage, self.STAGES)
        chosen = []
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self.part_of(name) in self.STAGES[stage])
            if parameter.requires_grad:
                chosen.append(parameter)
        return chosen
