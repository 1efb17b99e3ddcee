"""What `bench perf` needs of AuthFace: stand-ins for what is absent, and diffusers' own pipeline and training step."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.batch import FaceBatch
from bench.errors import MissingError
from bench.seeds import derive_seed
from methods.authface.conditions import PromptStates, picture_times
from methods.authface.network import AuthFaceNetwork
from methods.blocks.colour_fix import colour_fix
from methods.blocks.latent_samples import LatentBatch
from methods.blocks.sampling import image_generators, image_noise
from methods.blocks.self_ensemble import mean_over_mirror
from methods.blocks.timing_substitutes import fill_zeros, first_line, random_space

if TYPE_CHECKING:
    from methods.authface.module import AuthFace

#: Five points of a face in the middle, in sides of the picture.
FACE = ((0.34, 0.46), (0.66, 0.46), (0.50, 0.64), (0.37, 0.82), (0.63, 0.82))
PATTERN = """\
pipe = StableDiffusionXLControlNetPipeline(unet=unet, controlnet=controlnet, scheduler={scheduler}, ...)
pipe(prompt_embeds=..., pooled_prompt_embeds=..., negative_prompt_embeds=..., negative_pooled_prompt_embeds=...,
     image=lq, num_inference_steps={steps}, guidance_scale={guidance:g}, latents=noise, output_type="latent")
image = vae.decode(latents / scaling_factor).sample  # then the colour fix of the settings"""
TRAINING_PATTERN = """\
latents = vae.encode(pixels).latent_dist.mode() * scaling_factor
noisy = noise_scheduler.add_noise(latents, noise, timesteps)
down, mid = controlnet(noisy, timesteps, prompt, controlnet_cond=lq, added_cond_kwargs=added)
predicted = unet(noisy, timesteps, prompt, down_block_additional_residuals=down, mid_block_additional_residual=mid)
loss = mse_loss(predicted, target); loss.backward(); optimizer.step()"""


def prepare_for_timing(method: AuthFace, random_weights: bool) -> list[str]:
    """Makes a method restore random pictures at its full cost, whatever is absent; nothing of it can be scored.

    Args:
        method: The method, on the CPU. Changed in place.
        random_weights: Whether its own weights are random: what starts at zero is then filled too.

    Returns:
        What was replaced, in words.
    """
    notes = []
    if random_weights:
        fill_zeros(method.network)
    try:
        _ = method.space
    except MissingError as error:
        method.frozen["space"] = random_space(method.base)
        notes.append(f"random autoencoder: {first_line(error)}")
    for text in sorted({"", *method.prompts.values()}):
        try:
            method.prompt(1, text)
        except MissingError as error:
            generator = torch.Generator().manual_seed(len(text))
            tokens = torch.randn(1, 77, method.base.text_width, generator=generator)
            pooled = torch.randn(1, method.base.pooled_width, generator=generator)
            method.frozen[f"text {text}"] = PromptStates(tokens, pooled)
            notes.append(f"random text: {first_line(error)}")
    return list(dict.fromkeys(notes))


def training_batch(method: AuthFace, count: int) -> LatentBatch | FaceBatch:
    """Random latents, pictures and faces for a training step; pictures alone where the settings cache no latents."""
    size = cast(int, method.native_size)
    side = size // method.base.downscale
    generator = torch.Generator().manual_seed(0)
    if not method.settings["training"]["cached_samples"]:
        return FaceBatch(
            lq=torch.rand(count, 3, size, size, generator=generator),
            references=torch.zeros(count, 0, 3, size, size),
            reference_mask=torch.zeros(count, 0, dtype=torch.bool),
            image_ids=[f"random/{row}" for row in range(count)],
            identities=["random"] * count,
            seeds=list(range(count)),
            gt=torch.rand(count, 3, size, size, generator=generator),
            landmarks=size * torch.tensor(FACE).expand(count, -1, -1),
        )
    tensors = {
        "latent": torch.randn(count, method.base.latent_channels, side, side, generator=generator),
        "lq": torch.rand(count, 3, size, size, generator=generator),
        "points": size * torch.tensor(FACE).expand(count, -1, -1),
    }
    if method.reads_tags:
        tensors["tags"] = torch.ones(count, 1)
    return LatentBatch(tensors, list(range(count)))


class PlainPipeline:
    """The same weights, solver, steps and noise in diffusers' own pipeline.

    Args:
        method: The method whose weights and settings it takes.
    """

    def __init__(self, method: AuthFace) -> None:
        from diffusers import StableDiffusionXLControlNetPipeline

        self.method = method
        like = next(method.network_for_inference().parameters())
        network: AuthFaceNetwork = copy.deepcopy(method.network)
        network = network.to(like.device, like.dtype, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        kind: Any = StableDiffusionXLControlNetPipeline
        self.pipeline = kind(
            vae=None,
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=network.unet,
            controlnet=network.controlnet,
            scheduler=method.sampler.make_scheduler(),
            add_watermarker=False,
        )
        self.pipeline.set_progress_bar_config(disable=True)

    @property
    def pattern(self) -> str:
        """The call as text."""
        settings = self.method.sampler.settings
        scheduler = type(self.pipeline.scheduler).__name__
        guidance = settings.guidance if self.method.guided else 1.0
        return PATTERN.format(scheduler=scheduler, steps=settings.steps, guidance=guidance)

    @torch.no_grad()
    def restore(self, batch: FaceBatch) -> Tensor:
        """Restores pictures (B, 3, H, W) of the network's own size, as `AuthFace.restore` does."""
        if self.method.settings["self_ensemble"]:
            return mean_over_mirror(self._restore_once, batch)
        return self._restore_once(batch)

    def _restore_once(self, batch: FaceBatch) -> Tensor:
        method, like = self.method, next(self.pipeline.unet.parameters())
        settings, count = method.sampler.settings, len(batch)
        positive = method.prompt(count, method.prompts["positive"]).to(like)
        negative = method.prompt(count, method.prompts["negative"]).to(like)
        generators = image_generators([derive_seed(seed, "diffusion noise") for seed in batch.seeds])
        side = batch.lq.shape[-1] // method.space.factor
        noise = image_noise(generators, (method.space.channels, side, side), batch.lq.device)
        latent = self.pipeline(
            prompt_embeds=positive.tokens,
            pooled_prompt_embeds=positive.pooled,
            negative_prompt_embeds=negative.tokens,
            negative_pooled_prompt_embeds=negative.pooled,
            image=batch.lq.to(like.dtype),
            height=batch.lq.shape[-2],
            width=batch.lq.shape[-1],
            num_inference_steps=settings.steps,
            # A negative prompt that is the positive one changes nothing: the pipeline is not made to compute it.
            guidance_scale=settings.guidance if method.guided else 1.0,
            controlnet_conditioning_scale=float(method.settings["control_scale"]),
            generator=generators,
            latents=noise.to(like.dtype),
            output_type="latent",
        ).images
        restored = method.space.decode(latent.float()).add(1).div(2).clamp(0, 1)
        return colour_fix(
            restored, batch.lq, method.settings["colour_fix"], levels=method.settings["colour_fix_levels"]
        )


class PlainTraining:
    """ControlNet's training step as diffusers' example script writes it; L_facial is no part of it.

    Source: examples/controlnet/train_controlnet_sdxl.py of diffusers: pictures are encoded in every step, text is
    encoded beforehand, AdamW.

    Args:
        method: The method whose weights, batch and rate it takes, ready to be trained.
        count: Pictures of a batch.
    """

    pattern: str = TRAINING_PATTERN

    def __init__(self, method: AuthFace, count: int) -> None:
        from diffusers import DDPMScheduler

        if method.settings["training"]["cached_samples"]:
            self.pattern = f"{TRAINING_PATTERN}\n# ours reads latents of the pictures that were made once"
        self.method, self.count = method, count
        network: Any = copy.deepcopy(method.network)
        self.network: AuthFaceNetwork = network.to(memory_format=torch.contiguous_format)
        self.network.train_only("control")
        options, settings = method.settings["optimiser"], method.sampler.settings
        self.optimiser = torch.optim.AdamW(
            self.network.controlnet.parameters(),
            lr=options["learning_rate"],
            betas=tuple(options["betas"]),
            weight_decay=options["weight_decay"],
        )
        self.scheduler: Any = DDPMScheduler(
            num_train_timesteps=settings.train_timesteps,
            beta_start=settings.beta_start,
            beta_end=settings.beta_end,
            beta_schedule="scaled_linear",
            prediction_type=settings.prediction,
        )
        size, device = cast(int, method.native_size), method.device
        self.generator = torch.Generator(device).manual_seed(0)
        self.pixels = torch.rand(count, 3, size, size, device=device)
        self.lq = torch.rand(count, 3, size, size, device=device)

    def loss(self) -> Tensor:
        """The loss of a batch."""
        method, scheduler, device = self.method, self.scheduler, self.lq.device
        with torch.no_grad():
            latent = method.space.encode(self.pixels * 2 - 1).float()
            prompt = method.prompt(self.count, "")
        noise = torch.randn(latent.shape, generator=self.generator, device=device)
        timestep = torch.randint(
            0, scheduler.config.num_train_timesteps, (self.count,), generator=self.generator, device=device
        )
        noisy = scheduler.add_noise(latent, noise, timestep)
        velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latent, noise, timestep) if velocity else noise
        times = picture_times(self.count, cast(int, method.native_size), device)
        return F.mse_loss(self.network(noisy, timestep, prompt, times, self.lq).float(), target.float())
