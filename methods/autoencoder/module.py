"""The small VAE that the demo sizes of the latent-diffusion methods share, trained and measured by itself."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.batch import FaceBatch
from bench.faces.sface import crop_faces, shared_sface
from bench.method import MethodSpec, RestorationMethod
from bench.seeds import derive_seed
from methods.blocks.counted_training import CountedTraining

FACTOR = 8


class Autoencoder(CountedTraining, RestorationMethod):
    """A KL autoencoder of faces (Rombach et al., CVPR 2022, Sec. 3.1), as small as the demo needs it.

    As a method it hands the LQ picture through encoder and decoder: the row says what a latent-diffusion
    method loses or gains by its VAE alone, before any restoration.

    Args:
        settings: The composed `configs/method/autoencoder.yaml` with its size merged in.
    """

    spec = MethodSpec(
        name="autoencoder",
        title="Autoencoder alone",
        references="none",
        paper="Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022 (the VAE)",
    )
    architecture_keys = ("native_size", "network")

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        from diffusers import AutoencoderKL

        self.native_size = int(settings["native_size"])
        self.size = settings["size"]
        torch.manual_seed(derive_seed(settings.get("seed", 0), "initial weights") % 2**32)
        self.vae: Any = AutoencoderKL(**settings["network"])
        channels = int(settings["network"]["latent_channels"])
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_deviation", torch.ones(channels))

    # Coding ------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Tensor:
        """Latents of pictures, each channel with mean 0 and deviation 1 over the training pictures.

        Args:
            images: (B, 3, H, W) in [-1, 1], H and W multiples of 8.

        Returns:
            The mode of the posterior, (B, C, H/8, W/8).
        """
        mode = self.vae.encode(images).latent_dist.mode()
        return (mode - self._column(self.latent_mean)) / self._column(self.latent_deviation)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, 8h, 8w), about [-1, 1], of latents (B, C, h, w)."""
        scaled = latents * self._column(self.latent_deviation) + self._column(self.latent_mean)
        return cast(Tensor, self.vae.decode(scaled).sample)

    @staticmethod
    def _column(numbers: Any) -> Tensor:
        return cast(Tensor, numbers).view(1, -1, 1, 1)

    def restore(self, batch: FaceBatch) -> Tensor:
        """The LQ pictures, coded and decoded."""
        return self.decode(self.encode(batch.lq * 2 - 1)).add(1).div(2).clamp(0, 1)

    # Training ----------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """AdamW over encoder and decoder."""
        options = self.settings["optimiser"]
        return torch.optim.AdamW(
            self.vae.parameters(), lr=options["learning_rate"], betas=tuple(options["betas"]), weight_decay=1e-4
        )

    def training_step(self, batch: FaceBatch, batch_idx: int) -> Tensor:
        """One batch: ground truth, references and LQ pictures alike have to come back."""
        assert batch.gt is not None and batch.landmarks is not None and batch.reference_landmarks is not None
        rng = torch.Generator().manual_seed(derive_seed(batch.seeds[0], "autoencoder step", self.batches_done))
        options, weights = self.settings["training"], self.settings["losses"]
        self.set_learning_rate()
        images = torch.cat([batch.gt, batch.references[:, 0], batch.lq])
        points = torch.cat([batch.landmarks, batch.reference_landmarks[:, 0], batch.landmarks])
        images = coloured(images, options["coloured"], rng)
        whole = self.batches_done >= options["whole_from"]
        if not whole:
            images = random_crops(images, options["crop"], rng)
        posterior = self.vae.encode(images * 2 - 1).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=rng).to(posterior.mean)
        restored = cast(Tensor, self.vae.decode(posterior.mean + posterior.std * noise).sample).add(1).div(2)
        terms = {
            "absolute": (restored - images).abs().mean(),
            "structure": 1 - structural_similarity(restored, images),
            "divergence": posterior.kl().sum() / images.numel(),
        }
        if whole:
            terms["features"] = feature_distance(restored, images, points)
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        self.require_finite(total)
        self._measure_latents(posterior.mean.detach())
        self.batches_done += 1
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        self.log("train/total", total.detach(), prog_bar=True)
        return total

    @torch.no_grad()
    def _measure_latents(self, means: Tensor) -> None:
        """Follows mean and deviation of each latent channel, over about the last hundred batches."""
        share = max(0.01, 1 / (self.batches_done + 1))
        mean, deviation = cast(Tensor, self.latent_mean), cast(Tensor, self.latent_deviation)
        mean.lerp_(means.mean((0, 2, 3)), share)
        deviation.lerp_(means.std((0, 2, 3)), share)

    def load_weights_state(self, state: dict[str, Tensor]) -> None:
        """Loads a weights file; every tensor must be there, and no other."""
        self.load_state_dict({name: value.float() for name, value in state.items()}, strict=True)


def coloured(images: Tensor, chance: float, rng: torch.Generator) -> Tensor:
    """Gives some pictures smooth random colours, so that an autoencoder of grey photographs keeps those of others.

    Args:
        images: (B, 3, H, W) in [0, 1].
        chance: Share of pictures that are changed.
        rng: Generator of this step.

    Returns:
        Pictures of the same shape, in [0, 1].
    """
    gains = torch.randn(len(images), 3, 3, 3, generator=rng) * 0.35
    gains = F.interpolate(gains, size=images.shape[-2:], mode="bicubic", align_corners=False).exp()
    chosen = torch.rand(len(images), 1, 1, 1, generator=rng) < chance
    return torch.where(chosen.to(images.device), images * gains.to(images), images).clamp(0, 1)


def random_crops(images: Tensor, side: int, rng: torch.Generator) -> Tensor:
    """One square crop of each picture, (B, 3, side, side)."""
    height, width = images.shape[-2:]
    tops = torch.randint(height - side + 1, (len(images),), generator=rng).tolist()
    lefts = torch.randint(width - side + 1, (len(images),), generator=rng).tolist()
    return torch.stack(
        [image[:, top : top + side, left : left + side] for image, top, left in zip(images, tops, lefts, strict=True)]
    )


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Mean SSIM of pictures in [0, 1], differentiable."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    return cast(Tensor, structural_similarity_index_measure(a, b, data_range=1.0))


def feature_distance(a: Tensor, b: Tensor, points: Tensor) -> Tensor:
    """Mean |difference| of SFace's normalised features on the aligned faces of (B, 3, H, W) in [0, 1]."""
    recogniser = shared_sface().to(a.device)
    distances = []
    for one, other in zip(
        recogniser.features(crop_faces(a, points)),
        recogniser.features(crop_faces(b, points)),
        strict=True,
    ):
        scale = other.square().mean(1, keepdim=True).add(1e-6).rsqrt()
        distances.append(((one - other) * scale).abs().mean())
    return torch.stack(distances).mean()


method_class = Autoencoder
