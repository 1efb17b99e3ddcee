"""AuthFace as a Lightning module: tunes the prior, trains the ControlNet, and restores with both."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.batch import FaceBatch
from bench.errors import UsageError
from bench.method import MethodSpec
from bench.seeds import derive_seed
from methods.authface.captions import read_captions
from methods.authface.conditions import PromptStates, picture_times
from methods.authface.losses import FacialLoss, inside, predicted_latent
from methods.authface.network import AuthFaceNetwork
from methods.authface.prompts import encode_prompts, prompt_states, text_digests
from methods.authface.requirements import absent_parts
from methods.authface.settings import RELEASED_PROMPTS, read_prompts, require_settings
from methods.authface.tags import LIMITS, TAGS, measured_tags, tag_numbers
from methods.blocks.base_models import base_model
from methods.blocks.colour_fix import colour_fix
from methods.blocks.diffusion_objective import NoisyLatents
from methods.blocks.earlier_weights import read_earlier_weights
from methods.blocks.latent_diffusion import load_base, locate_base
from methods.blocks.latent_diffusion_method import LatentDiffusionMethod
from methods.blocks.optimisers import adamw
from methods.blocks.sampling import Branch, ModelCall
from methods.blocks.self_ensemble import mean_over_mirror
from methods.blocks.tiling import Tiling, pad_to_multiple, tiled_decode

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

    from bench.data.training import TrainingPairs
    from methods.authface.timing import PlainPipeline, PlainTraining
    from methods.blocks.latent_samples import LatentBatch


class AuthFace(LatentDiffusionMethod):
    """AuthFace (Liang et al., ACM MM 2025).

    SDXL's UNet, tuned on portraits with tags (stage `prior`), is frozen; a ControlNet that reads the degraded picture
    steers it (stage `control`), trained with an additional loss on eyes and mouth (Eqs. 1-4).

    Args:
        settings: The composed `configs/method/authface.yaml` with one of its sizes merged in.
    """

    spec = MethodSpec(
        name="authface",
        title="AuthFace",
        references="none",
        paper="Liang et al., AuthFace: Towards Authentic Blind Face Restoration with Face-oriented Generative "
        "Diffusion Prior, ACM MM 2025",
        licence="Apache-2.0 (this implementation and the released code)",
        variants={"+prompts": ("method.prompts=released", "method.sampling.preset=authface_released_code")},
    )
    not_in_revision: ClassVar[tuple[str, ...]] = (
        *LatentDiffusionMethod.not_in_revision,
        *("tiles_per_call", "prior", "captions", "discriminator"),
    )
    any_size = True
    network: AuthFaceNetwork

    def __init__(self, settings: dict[str, Any]) -> None:
        require_settings(settings)
        super().__init__(settings)
        self.prompts = read_prompts(settings["prompts"])
        if self.reads_tags:
            tag_numbers(list(self.prompts.values()))
        self.facial: FacialLoss | None = None
        self._captions: dict[str, str] | None = None
        self._batch_prompts: list[str] | None = None

    def build_network(self) -> AuthFaceNetwork:
        """See `LatentDiffusionMethod.build_network`."""
        return AuthFaceNetwork(self.base, **self.settings["network"])

    @classmethod
    def absent(cls, settings: dict[str, Any]) -> dict[str, str]:
        """See `RestorationMethod.absent`."""
        return absent_parts(settings)

    @property
    def label(self) -> str:
        """Name of the row; `authface+prompts@paper` with prompts and guidance of the released code."""
        changed = ["prompts"] if self.prompts == RELEASED_PROMPTS and self.guided else []
        return "+".join([self.spec.name, *changed]) + f"@{self.size}"

    def conditions(self) -> dict[str, str]:
        """Hashes of autoencoder and text encoders, which decide the pictures too."""
        found = super().conditions()
        if not self.reads_tags:
            found |= text_digests(self._text_folder(), self.base.hub_ids[0])
        return found

    # Prompts -----------------------------------------------------------------------------------

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is read: not where it is the positive one too, or guidance is 1."""
        return self.prompts["positive"] != self.prompts["negative"] and self.sampler.settings.guidance != 1

    @property
    def reads_tags(self) -> bool:
        """Whether prompts are tags, read by an encoder within the network."""
        return bool(self.settings["network"]["tag_encoder"])

    def prompt(self, count: int, text: str) -> PromptStates:
        """States of one prompt for `count` pictures; encoded once where the encoders are frozen."""
        if self.reads_tags:
            return self._tags([text]).rows(count)
        key = f"text {text}"
        if key not in self.frozen:
            with torch.inference_mode(False):
                self.frozen[key] = prompt_states(self._text_folder(), [text], self.base.hub_ids[0])
        states: PromptStates = self.frozen[key]
        return states.to(self._like).rows(count)

    def _tags(self, prompts: list[str]) -> PromptStates:
        encoder = cast(AuthFaceNetwork, self.trained_network).tag_encoder
        assert encoder is not None
        return cast(PromptStates, encoder(tag_numbers(prompts).to(self._like.device)))

    @property
    def _like(self) -> Tensor:
        return next(self.network.parameters())

    def _text_folder(self) -> Path:
        folder = locate_base(self.base, self.settings["autoencoder"], ("text",))
        if folder.is_file():
            raise UsageError(
                f"{folder} is a file. AuthFace has two text encoders: give a diffusers folder with "
                "method.autoencoder=FOLDER."
            )
        return folder

    # Restoration -------------------------------------------------------------------------------

    def restore(self, batch: FaceBatch) -> Tensor:
        """Restores pictures of any size; references are not looked at."""
        if self.settings["self_ensemble"]:
            return mean_over_mirror(self._restore_once, batch)
        return self._restore_once(batch)

    def _restore_once(self, batch: FaceBatch) -> Tensor:
        side, factor = cast(int, self.native_size), self.space.factor
        lq, padding = pad_to_multiple(batch.lq, factor * 2 ** (self.base.levels - 1), side)
        tile = side // factor
        tiling = Tiling(tile, tile // 2, batch=int(self.settings["tiles_per_call"]))
        latent = self._sampled(cast(AuthFaceNetwork, self.network_for_inference()), lq, batch.seeds, tiling)
        restored = tiled_decode(lambda own, _: self.space.decode(own), latent, tiling, factor)
        restored = padding.cut(restored.add(1).div(2).clamp(0, 1))
        return colour_fix(restored, batch.lq, self.settings["colour_fix"], levels=self.settings["colour_fix_levels"])

    def _sampled(self, network: AuthFaceNetwork, lq: Tensor, seeds: list[int], tiling: Tiling) -> Tensor:
        like = next(network.parameters())
        pictures, count, factor = lq.to(like.dtype), len(lq), self.space.factor
        states: dict[Branch, PromptStates] = {
            "conditional": self.prompt(count, self.prompts["positive"]).to(like),
            "unconditional": self.prompt(count, self.prompts["negative"]).to(like),
        }
        size, scale = cast(int, self.native_size), float(self.settings["control_scale"])
        kept: dict[Any, tuple[PromptStates, Tensor, Tensor]] = {}

        def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
            if call.layout not in kept:
                prompt = PromptStates(
                    call.by_branch({branch: own.tokens for branch, own in states.items()}),
                    call.by_branch({branch: own.pooled for branch, own in states.items()}),
                )
                seen = call.by_window(lambda window: window.scaled(factor).crop(pictures))
                kept[call.layout] = (prompt, picture_times(len(seen), size, lq.device), seen)
            return network(latent, timestep, *kept[call.layout], scale)

        with network.sampling():
            return self.sampler.sample(
                predict,
                [derive_seed(seed, "diffusion noise") for seed in seeds],
                shape=(self.space.channels, lq.shape[-2] // factor, lq.shape[-1] // factor),
                tiling=tiling,
                branches_agree=not self.guided,
                device=lq.device,
                dtype=like.dtype,
            )

    # Weights -----------------------------------------------------------------------------------

    def load_weights_state(self, state: dict[str, Tensor]) -> None:
        """See `LatentDiffusionMethod.load_weights_state`.

        Raises:
            UsageError: They are those of stage `prior`, which look at no picture, or do not fit.
        """
        super().load_weights_state(state)
        if not self.network.controls:
            raise UsageError(
                "These are weights of AuthFace's stage prior, which sees no degraded picture. Train stage control from "
                "them: bench train method=authface method.training.start_from=FILE."
            )

    # Timing ------------------------------------------------------------------------------------

    def prepare_for_timing(self, random_weights: bool) -> list[str]:
        """For `bench perf`: replaces what is absent by random networks, and returns what, in words."""
        from methods.authface.timing import prepare_for_timing

        return prepare_for_timing(self, random_weights)

    def plain_pipeline(self) -> PlainPipeline:
        """The same model in the loop of diffusers' documentation, to time ours against."""
        from methods.authface.timing import PlainPipeline

        return PlainPipeline(self)

    def random_training_batch(self, count: int) -> LatentBatch | FaceBatch:
        """Random samples for timing a training step: latents where the settings cache them, else pictures."""
        from methods.authface.timing import training_batch

        return training_batch(self, count)

    def plain_training(self, count: int) -> PlainTraining | None:
        """ControlNet's training step as diffusers documents it, to time ours against; None in another stage."""
        from methods.authface.timing import PlainTraining

        return PlainTraining(self, count) if self._controls else None

    def prepare_timed_training(self) -> None:
        """See `LatentDiffusionMethod.prepare_timed_training`."""
        super().prepare_timed_training()
        self._build_facial_loss()
        self._lay_out()

    # Training ----------------------------------------------------------------------------------

    @property
    def _controls(self) -> bool:
        return bool(self.settings["training"]["stage"] == "control")

    def begin_training(self) -> None:
        """Reads SDXL's UNet or an earlier stage, and freezes what this stage leaves alone.

        Raises:
            MissingError: Weights are absent.
            UsageError: Stage `control` has no prior to go on from, or has one that the settings exclude.
        """
        training = self.settings["training"]
        self.freeze_unchanged()
        if training["start_from"]:
            if self._controls and self.settings["prior"] == "sdxl":
                raise UsageError("method.prior=sdxl takes SDXL as it is: leave out method.training.start_from.")
            read_earlier_weights(self.network, training["start_from"], AuthFaceNetwork.STAGES["prior"])
        elif self.base.small_autoencoder:
            if self._controls:
                raise UsageError(
                    "method.training.stage=control goes on from stage prior: give its weights with "
                    "method.training.start_from=FILE. At the demo size there is no other prior."
                )
        elif self._controls and self.settings["prior"] == "face":
            raise UsageError(
                "method.training.stage=control goes on from stage prior: give its weights with "
                "method.training.start_from=FILE, or train on SDXL as it is with method.prior=sdxl."
            )
        else:
            # Never the UNet beside the autoencoder, which may be AuthFace's own.
            sdxl = replace(self.base, hub_ids=base_model("sdxl").hub_ids)
            self.network.unet.load_state_dict(load_base(sdxl, training["sdxl"], ("unet",))["unet"].state_dict())
        if self._controls:
            if not self.network.controls:
                self.network.begin_control()
            self._build_facial_loss()
        self._lay_out()

    def _lay_out(self) -> None:
        if self.settings["channels_last"]:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _build_facial_loss(self) -> None:
        options, own = self.settings["losses"], self.settings["discriminator"]
        if not (self._controls and options["facial"]):
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.settings.get("seed", 0), "initial discriminators") % 2**32)
            self.facial = FacialLoss(
                self.base.latent_channels,
                own["width"],
                options["discriminative"],
                options["style"],
                options["weighting"],
                options["mean"],
                options["deviation"],
                options["saturating"],
                own["patch"],
            ).to(self.device)

    def configure_optimizers(self) -> Any:
        """AdamW over what is trained; the discriminators have rate, momenta and decay of their own.

        Adam's steps are by parameter, so that a group of its own is an optimiser of its own.
        """
        options, own = self.settings["optimiser"], self.settings["discriminator"]
        groups: list[dict[str, Any]] = [{"params": [p for p in self.network.parameters() if p.requires_grad]}]
        if self.facial is not None:
            groups.append(
                {
                    "params": list(self.facial.parameters()),
                    "lr": own["learning_rate"],
                    "betas": tuple(own["betas"]),
                    "weight_decay": 0.0,
                }
            )
        return adamw(groups, options)

    def set_learning_rate(self) -> None:
        """See `CountedTraining.set_learning_rate`; that of the discriminators stays what it is."""
        super().set_learning_rate()
        for group in cast(torch.optim.Optimizer, self.optimizers()).param_groups[1:]:
            group["lr"] = self.settings["discriminator"]["learning_rate"]

    def sample_identity(self) -> dict[str, Any]:
        """See `LatentDiffusionMethod.sample_identity`."""
        tags = [list(TAGS), dict(LIMITS)] if self.reads_tags else None
        own = {"captions": self.settings["captions"], "tags": tags, "dtype": self.settings["autoencoder_dtype"]}
        return super().sample_identity() | {"lq_pictures": True, **own}

    def training_stream(self, pairs: TrainingPairs) -> IterableDataset[Any]:
        """See `LatentDiffusionMethod.training_stream`; reads the captions that stage `prior` learns with.

        Raises:
            MissingError: A picture has none.
            UsageError: Samples are cached, which keep no captions of files.
        """
        if not self._controls and self.settings["captions"] == "files":
            if self.settings["training"]["cached_samples"]:
                raise UsageError("Cached samples keep no captions of files: set method.training.cached_samples=0.")
            self._captions = read_captions(pairs.root, [own.photo.path for own in pairs.photos])
            if not self.reads_tags:
                prompts = sorted({"", *self._captions.values()})
                if cut := encode_prompts(self._text_folder(), prompts, self.base.hub_ids[0]):
                    print(  # noqa: T201
                        f"bench: {cut} of {len(prompts)} captions are longer than the text encoders read, and were cut",
                        file=sys.stderr,
                    )
        return super().training_stream(pairs)

    def encoded(self, batch: FaceBatch) -> dict[str, Tensor]:
        """What a training step reads: latents of the ground truth, degraded pictures, five points, numbers of tags."""
        batch = batch.to(self.device)
        assert batch.gt is not None and batch.landmarks is not None
        with torch.no_grad():
            made = {"latent": self.space.encode(batch.gt * 2 - 1), "lq": batch.lq, "points": batch.landmarks}
        if self.reads_tags:
            made["tags"] = tag_numbers(self._described(batch)).to(made["latent"])
        return made

    def _described(self, batch: FaceBatch) -> list[str]:
        """The prompt of each ground truth."""
        if self._captions is not None:
            return [self._captions[image_id] for image_id in batch.image_ids]
        if self.settings["captions"] == "measured":
            assert batch.gt is not None and batch.landmarks is not None
            return measured_tags(batch.gt, batch.landmarks)
        return [""] * len(batch)

    def training_step(self, batch: LatentBatch | FaceBatch, batch_idx: int) -> Tensor:
        """See `LatentDiffusionMethod.training_step`."""
        described = isinstance(batch, FaceBatch) and not (self._controls or self.reads_tags)
        self._batch_prompts = self._described(cast(FaceBatch, batch)) if described else None
        return super().training_step(batch, batch_idx)

    def _training_prompt(self, tensors: dict[str, Tensor], generator: torch.Generator) -> PromptStates:
        count = len(tensors["latent"])
        if self._controls:
            return self.prompt(count, "")
        without = torch.rand(count, generator=generator) < self.settings["dropout"]["caption"]
        if self.reads_tags:
            encoder = self.network.tag_encoder
            assert encoder is not None
            kept = torch.where(without.to(self.device)[:, None], 0, tensors["tags"].long())
            return cast(PromptStates, encoder(kept))
        described = self._batch_prompts or [""] * count  # samples without captions, as in `bench perf`
        prompts = ["" if off else own for off, own in zip(without.tolist(), described, strict=True)]
        return prompt_states(self._text_folder(), prompts, self.base.hub_ids[0]).to(tensors["latent"])

    def training_loss(self, tensors: dict[str, Tensor], noised: NoisyLatents, generator: torch.Generator) -> Tensor:
        """L_noise (Eq. 1), in stage `control` with L_facial and what its discriminators learn.

        Where the base model predicts velocities, L_noise is of the predicted velocity.
        """
        count = len(noised.latent)
        prompt = self._training_prompt(tensors, generator)
        times = picture_times(count, cast(int, self.native_size), noised.latent.device)
        lq = tensors["lq"] if self._controls else None
        predicted = self.network(noised.noisy, noised.timestep, prompt, times, lq).float()
        loss = F.mse_loss(predicted, noised.target.float())
        if self.facial is None:
            return loss
        self.log("train/noise", loss.detach())
        seen = inside(tensors["points"], cast(int, self.native_size))
        self.log("train/without_face", (~seen).float().sum())
        clean = predicted_latent(noised.noisy, noised.predicted_noise(predicted), noised.alpha.flatten())
        t = noised.timestep.float() / self.sampler.settings.train_timesteps
        facial, judged, terms = self.facial(clean, noised.latent, tensors["points"], t, self.space.factor, seen)
        for name, value in (*terms.items(), ("discriminators", judged.detach())):
            self.log(f"train/{name}", value)
        return loss + float(self.settings["losses"]["facial"]) * facial + judged


method_class = AuthFace
