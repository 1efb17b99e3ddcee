"""RestorerID as a Lightning module: trains the network in stages, and restores with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.batch import FaceBatch
from bench.errors import UsageError, unknown_name
from bench.method import MethodSpec, RestorationMethod
from bench.seeds import derive_seed
from methods.blocks.base_models import base_model
from methods.blocks.colour_fix import COLOUR_FIXES, colour_fix
from methods.blocks.diffusion_objective import NoisyLatents, add_noise
from methods.blocks.inference_network import InferenceNetwork
from methods.blocks.latent_samples import LatentBatch, LatentSamples
from methods.blocks.latent_space import LatentSpace, latent_space
from methods.blocks.learning_rate import learning_rate
from methods.blocks.sampling import Branch, ModelCall, Sampler, sampling_preset
from methods.blocks.self_ensemble import mean_over_mirror
from methods.blocks.text_conditioning import text_tokens
from methods.restorerid.adaptive_scale import adaptive_id_scale
from methods.restorerid.face_encoders import build_face_encoder
from methods.restorerid.identity_tokens import FaceFeatures
from methods.restorerid.network import RestorerIDNetwork
from methods.restorerid.quality import QualityEstimator, build_quality
from methods.restorerid.reference_faces import ON_MISSING_FACE, choose_references
from methods.restorerid.stages import begin_stage, freeze

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

    from bench.data.training import TrainingPairs
    from methods.restorerid.identity_tokens import FaceEncoder
    from methods.restorerid.timing import PlainPipeline

REFERENCE_CHOICES = ("first", "none")


@dataclass(frozen=True)
class SamplingConditions:
    """What every step of a sampling reads.

    Attributes:
        text: Text tokens of both branches, each (B, T, width).
        identity: Identity tokens of both branches, each (B, N, width); None without ID model.
        scale: Weight of the identity, (B,).
        branches_agree: Whether both branches are given the same, so that guidance changes nothing.
    """

    text: dict[Branch, Tensor]
    identity: dict[Branch, Tensor] | None
    scale: Tensor | None
    branches_agree: bool

    def to(self, dtype: torch.dtype) -> SamplingConditions:
        """The same in another type."""
        identity = self.identity and {branch: tokens.to(dtype) for branch, tokens in self.identity.items()}
        text = {branch: tokens.to(dtype) for branch, tokens in self.text.items()}
        return SamplingConditions(
            text, identity, None if self.scale is None else self.scale.to(dtype), self.branches_agree
        )


class RestorerID(RestorationMethod):
    """RestorerID (Ying et al., arXiv 2411.14125).

    A latent diffusion model reads the LQ latent through SFT (StableSR), the reference's identity through
    decoupled cross-attention (Eq. 2), and rebalances both with FIR-Adapters (Eqs. 4-7); the weight of the
    identity follows from the quality of the LQ picture (Eq. 9).

    Args:
        settings: The composed `configs/method/restorerid.yaml` with one of its sizes merged in.
    """

    spec = MethodSpec(
        name="restorerid",
        title="RestorerID",
        references="one",
        paper="Ying et al., RestorerID: Towards Tuning-Free Face Restoration with ID Preservation, arXiv 2411.14125",
        licence="Apache-2.0 (this implementation); the released weights name Apache-2.0 in their README",
    )
    architecture_keys = ("native_size", "base", "network", "face_encoder")
    not_in_revision = ("autoencoder", "dropout", "ema_halflife_pictures", "weights_dtype")

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        if settings["reference"] not in REFERENCE_CHOICES:
            raise unknown_name("value of method.reference", settings["reference"], REFERENCE_CHOICES)
        for key, known in (("on_missing_face", ON_MISSING_FACE), ("colour_fix", COLOUR_FIXES)):
            if settings[key] not in known:
                raise unknown_name(f"value of method.{key}", settings[key], known)
        scale = settings["id_scale"]
        if scale != "adaptive" and not (isinstance(scale, int | float) and 0 <= scale < math.inf):
            raise UsageError(f"method.id_scale must be adaptive or a number from 0 on, got {scale!r}.")
        if settings["losses"]["identity"] and settings["losses"]["identity_pictures"] < 1:
            raise UsageError(
                "method.losses.identity needs pictures to look at: set method.losses.identity_pictures to 1 or more."
            )
        if settings["losses"]["identity"] and base_model(settings["base"]).prediction != "v_prediction":
            raise UsageError(
                "method.losses.identity is for base models that predict velocities: the clean picture that predicted "
                "noise means is out of range where there is most noise. Set it to 0."
            )
        self.native_size = int(settings["native_size"])
        self.size = settings["size"]
        self.base = base_model(settings["base"])
        torch.manual_seed(derive_seed(settings.get("seed", 0), "initial weights") % 2**32)
        self.network = RestorerIDNetwork(self.base, settings["network"], settings["use_identity"], settings["use_fir"])
        options = {key: value for key, value in settings["sampling"].items() if value is not None}
        preset = options.pop("preset")
        self.sampler = Sampler(sampling_preset(preset, prediction=self.base.prediction, **options))
        self.inference_network = InferenceNetwork(settings, preset)
        least, all_timesteps = settings["training"]["least_timestep"], self.sampler.settings.train_timesteps
        if not 0 <= least < all_timesteps:
            raise UsageError(f"method.training.least_timestep must be from 0 to {all_timesteps - 1}, got {least}.")
        self.batches_done = 0
        self._batch_pictures = 0
        self.averaged: nn.Module | None = None
        # Frozen networks, loaded on first use and kept out of the module so that they are never saved with it.
        self.frozen: dict[str, Any] = {}
        self.find_references = choose_references

    # What is frozen ----------------------------------------------------------------------------

    @property
    def space(self) -> LatentSpace:
        """The autoencoder."""
        if "space" not in self.frozen:
            with torch.inference_mode(False):  # the identity loss takes gradients through it
                self.frozen["space"] = latent_space(self.base, self.settings["autoencoder"])
        space: Any = self.frozen["space"].to(self.device)
        return cast(LatentSpace, space)

    @property
    def face_encoder(self) -> FaceEncoder:
        """What reads the reference's face."""
        if "face_encoder" not in self.frozen:
            with torch.inference_mode(False):
                self.frozen["face_encoder"] = build_face_encoder(self.settings["face_encoder"])
        return cast("FaceEncoder", self.frozen["face_encoder"])

    @property
    def quality(self) -> QualityEstimator:
        """What rates the LQ picture for the adaptive ID-scale."""
        if "quality" not in self.frozen:
            self.frozen["quality"] = build_quality(self.settings["quality"])
        return cast(QualityEstimator, self.frozen["quality"])

    @classmethod
    def absent(cls, settings: dict[str, Any]) -> dict[str, str]:
        """See `RestorationMethod.absent`."""
        from methods.restorerid.requirements import absent_parts

        return absent_parts(settings)

    def text(self, count: int, prompt: str) -> Tensor:
        """Text tokens (count, T, width) of a prompt, encoded once."""
        key = f"text {prompt}"
        if key not in self.frozen:
            with torch.inference_mode(False), torch.no_grad():
                self.frozen[key] = text_tokens(self.base, [prompt], self.settings["autoencoder"]).clone()
        tokens: Tensor = self.frozen[key].to(self.device)
        return tokens.expand(count, -1, -1)

    def conditions(self) -> dict[str, str]:
        """Hashes of the frozen networks that decide the pictures."""
        found = {"autoencoder": self.space.digest}
        if self.settings["use_identity"]:
            found["face_encoder"] = self.face_encoder.digest
        if self._adaptive:
            alpha, beta = self._calibration()
            found["quality"] = f"{self.quality.digest}, alpha {alpha:g}, beta {beta:g}"
        return found

    @property
    def _adaptive(self) -> bool:
        return bool(self.settings["use_identity"]) and self.settings["id_scale"] == "adaptive"

    @property
    def label(self) -> str:
        """Name of the row, with what an ablation changes: `restorerid+base@demo`."""
        changed = []
        if not self.settings["use_identity"]:
            changed.append("base")
        else:
            changed += ["blind"] if self.settings["reference"] == "none" else []
            changed += [] if self.settings["use_fir"] else ["no-fir"]
            changed += [] if self._adaptive else [f"scale{self.settings['id_scale']:g}"]
        return "+".join([self.spec.name, *changed]) + f"@{self.size}"

    # Restoration -------------------------------------------------------------------------------

    def restore(self, batch: FaceBatch) -> Tensor:
        """Restores pictures with one reference each; without one, with the tokens of no identity."""
        if self.settings["self_ensemble"]:
            return mean_over_mirror(self._restore_once, batch)
        return self._restore_once(batch)

    def _restore_once(self, batch: FaceBatch) -> Tensor:
        lq_latent = self.space.encode(batch.lq * 2 - 1)
        conditions = self.sampling_conditions(batch)
        latent = self._sampled(self.network_for_inference(), lq_latent, conditions, batch.seeds)
        restored = self.space.decode(latent).add(1).div(2).clamp(0, 1)
        return colour_fix(restored, batch.lq, self.settings["colour_fix"], levels=self.settings["colour_fix_levels"])

    def sampling_conditions(self, batch: FaceBatch) -> SamplingConditions:
        """What a sampling reads beside the LQ latent, none of which changes over its steps."""
        prompts, source = self.settings["prompts"], self._source
        text: dict[Branch, Tensor] = {
            "conditional": self.text(len(batch), prompts["positive"]),
            "unconditional": self.text(len(batch), prompts["negative"]),
        }
        tokens, scale = self._identity(source, batch)
        same_identity = tokens is None or tokens["conditional"] is tokens["unconditional"]
        return SamplingConditions(text, tokens, scale, same_identity and prompts["positive"] == prompts["negative"])

    def _sampled(
        self, network: RestorerIDNetwork, lq_latent: Tensor, conditions: SamplingConditions, seeds: Sequence[int]
    ) -> Tensor:
        dtype = next(network.parameters()).dtype
        given = conditions.to(dtype)
        structure = lq_latent.to(dtype)
        layout, text, tokens = None, lq_latent, None

        def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
            nonlocal layout, text, tokens
            if call.layout != layout:
                layout, text = call.layout, call.by_branch(given.text)
                tokens = None if given.identity is None else call.by_branch(given.identity)
                network.keep(text, tokens)
            shared = torch.cat([window.crop(structure) for window in call.windows])
            maps = network.lq_maps(shared, timestep[: len(shared)])
            scale = None if given.scale is None else given.scale.repeat(len(call.windows))
            return network(latent, timestep, text, maps, tokens, scale, use_kept=True)

        with network.sampling():
            return self.sampler.sample(
                predict,
                [derive_seed(seed, "diffusion noise") for seed in seeds],
                shape=lq_latent.shape[1:],
                lq_latent=lq_latent,
                branches_agree=given.branches_agree,
                device=self.device,
                dtype=dtype,
            )

    @property
    def _source(self) -> RestorerIDNetwork:
        return cast(RestorerIDNetwork, self.averaged if self.averaged is not None else self.network)

    def network_for_inference(self) -> RestorerIDNetwork:
        """The network as restoration runs it; while it is being trained it is left as it is."""
        source = self._source
        if self.averaged is not None or any(parameter.requires_grad for parameter in source.parameters()):
            return source
        return self.inference_network.of(source, self.device)

    def _identity(
        self, network: RestorerIDNetwork, batch: FaceBatch
    ) -> tuple[dict[Branch, Tensor] | None, Tensor | None]:
        """Identity tokens of both branches, each (B, N, width), and the weight of the identity (B,)."""
        if not self.settings["use_identity"]:
            return None, None
        count = len(batch)
        nobody = network.identity_tokens(self._no_face()).expand(count, -1, -1)
        tokens: dict[Branch, Tensor] = {"conditional": nobody, "unconditional": nobody}
        if self.settings["reference"] != "none" and batch.references.shape[1]:
            faces = self.find_references(
                batch.references, batch.reference_mask, batch.image_ids, self.settings["on_missing_face"]
            )
            if faces.present.any():
                found = network.identity_tokens(self.face_encoder.encode(faces.images, faces.points))
                tokens["conditional"] = torch.where(faces.present[:, None, None], found, nobody)
        return tokens, self.id_scale(batch.lq)

    def _no_face(self) -> FaceFeatures:
        """What the face encoder reads where there is no identity, for one picture; encoded once."""
        if "no face" not in self.frozen:
            # Restoration runs in inference mode, and training could not use a tensor made there.
            with torch.inference_mode(False), torch.no_grad():
                found = self.face_encoder.unconditional(1, self.device)
                self.frozen["no face"] = FaceFeatures(found.identity.clone(), found.image_states.clone())
        features: FaceFeatures = self.frozen["no face"]
        return FaceFeatures(features.identity.to(self.device), features.image_states.to(self.device))

    def id_scale(self, lq: Tensor) -> Tensor:
        """Weight of the identity for each picture (Eq. 9, or the fixed number of the settings).

        Args:
            lq: (B, 3, H, W) RGB in [0, 1].

        Returns:
            (B,).
        """
        if not self._adaptive:
            return torch.full((len(lq),), float(self.settings["id_scale"]), device=lq.device)
        alpha, beta = self._calibration()
        return adaptive_id_scale(self.quality(lq), alpha, beta, self.settings["id_scale_max"])

    def _calibration(self) -> tuple[float, float]:
        """Alpha and beta of Eq. 9: those of the settings, or those the quality estimator was calibrated with."""
        alpha = self.settings["alpha"] if self.settings["alpha"] is not None else self.quality.alpha
        beta = self.settings["beta"] if self.settings["beta"] is not None else self.quality.beta
        if alpha is None or beta is None:
            raise UsageError(
                f"The quality estimator {self.quality.name!r} has no calibration. Give method.alpha and method.beta, "
                "or a fixed method.id_scale."
            )
        return float(alpha), float(beta)

    # Timing ------------------------------------------------------------------------------------

    def prepare_for_timing(self, random_weights: bool) -> list[str]:
        """For `bench perf`: replaces what is absent by random networks, and returns what, in words."""
        from methods.restorerid.timing import prepare_for_timing

        return prepare_for_timing(self, random_weights)

    def plain_pipeline(self) -> PlainPipeline:
        """The same model in the loop of diffusers' documentation, to time ours against."""
        from methods.restorerid.timing import PlainPipeline

        return PlainPipeline(self)

    def prepare_timed_training(self) -> None:
        """Freezes what a stage leaves alone, as `prepare_training`, and reads nothing."""
        freeze(self.network, self.settings["training"])

    def random_training_batch(self, count: int) -> LatentBatch:
        """Random latents for timing a training step."""
        from methods.restorerid.timing import training_batch

        return training_batch(self, count)

    # Training ----------------------------------------------------------------------------------

    def prepare_training(self) -> None:
        """Reads the weights of the stage before, and freezes what this stage leaves alone.

        Raises:
            UsageError: The stage needs another's weights, or trains what the settings left out.
        """
        begin_stage(self.network, self.settings["training"], self.base, self.settings["autoencoder"])
        if self.settings["training"]["checkpointing"]:
            self.network.enable_gradient_checkpointing()
        if self.settings["ema_halflife_pictures"]:
            self.averaged = copy.deepcopy(self.network).requires_grad_(False)

    def configure_optimizers(self) -> Any:
        """AdamW over what the stage trains."""
        options = self.settings["optimiser"]
        return torch.optim.AdamW(
            [parameter for parameter in self.network.parameters() if parameter.requires_grad],
            lr=options["learning_rate"],
            betas=tuple(options["betas"]),
            weight_decay=options["weight_decay"],
        )

    def training_stream(self, pairs: TrainingPairs) -> IterableDataset[Any]:
        """Pictures, or latents made of them once (`method.training.cached_samples`)."""
        count = int(self.settings["training"]["cached_samples"])
        if not count:
            return pairs
        identity: dict[str, Any] = {"space": self.space.digest, "face_encoder": self.face_encoder.digest}
        if self._identity_loss:
            identity["own_faces"] = True
        return LatentSamples(pairs, self.encoded, identity, count)

    def encoded(self, batch: FaceBatch) -> dict[str, Tensor]:
        """What a training step reads of a batch: latents of ground truth and LQ, the reference's face.

        References stay in the row of their ground truth (the released second stage mixes them up).
        """
        batch = batch.to(self.device)
        assert batch.gt is not None and batch.reference_landmarks is not None
        with torch.no_grad():
            latents = self.space.encode(torch.cat([batch.gt, batch.lq]) * 2 - 1)
            made = {"latent": latents[: len(batch)], "lq_latent": latents[len(batch) :]}
            if self._reads_faces:
                face = self.face_encoder.encode(batch.references[:, 0], batch.reference_landmarks[:, 0])
                made |= {"identity": face.identity, "image_states": face.image_states}
            if self._identity_loss:
                assert batch.landmarks is not None
                made |= {"points": batch.landmarks, "own_identity": self.face_encoder.embed(batch.gt, batch.landmarks)}
        return made

    @property
    def _identity_loss(self) -> float:
        """Weight of the identity loss; 0 leaves it out."""
        return float(self.settings["losses"]["identity"])

    @property
    def _reads_faces(self) -> bool:
        """Whether training samples need faces: stage `base` reads none, but shares its cache with the others."""
        training = self.settings["training"]
        return training["stage"] != "base" or bool(training["cached_samples"])

    def training_step(self, batch: LatentBatch | FaceBatch, batch_idx: int) -> Tensor:
        """One batch: the squared error of the predicted noise (Eqs. 1 and 8).

        Where the base model predicts velocities (Salimans and Ho, ICLR 2022), of the predicted velocity.
        """
        self._batch_pictures = len(batch)
        tensors = batch.tensors if isinstance(batch, LatentBatch) else self.encoded(batch)
        latent = tensors["latent"]
        count, options = len(latent), self.settings["training"]
        self._set_learning_rate()
        rng = torch.Generator().manual_seed(derive_seed(batch.seeds[0], "diffusion step", self.batches_done))
        alphas, least = self.sampler.alphas_cumprod, int(options["least_timestep"])
        noised = add_noise(latent, alphas, self.sampler.settings.prediction, rng, least)
        without_lq = torch.rand(count, generator=rng) < self.settings["dropout"]["lq"]
        without_identity = torch.rand(count, generator=rng) < self.settings["dropout"]["identity"]
        lq_latent = torch.where(without_lq.to(latent.device)[:, None, None, None], 0.0, tensors["lq_latent"])
        tokens, scale, base_only = None, None, options["stage"] == "base"
        if self.network.projection is not None and not base_only:
            tokens = self._training_tokens(tensors, without_identity.to(latent.device))
            scale = torch.full((count,), float(options["id_scale"]), device=latent.device)
        maps = self.network.lq_maps(lq_latent, noised.timestep)
        text = self.text(count, "").to(latent)
        predicted = self.network(noised.noisy, noised.timestep, text, maps, tokens, scale, base_only=base_only)
        loss = F.mse_loss(predicted.float(), noised.target.float())
        if self._identity_loss:
            distance = self._identity_distance(noised, predicted, tensors)
            self.log("train/identity", distance.detach())
            loss = loss + self._identity_loss * distance
        if not torch.isfinite(loss):
            raise UsageError(
                f"The loss became {loss.item()} at batch {self.batches_done}. Lower "
                "method.optimiser.learning_rate, or train in float32 (trainer.precision=32-true)."
            )
        self.log("train/total", loss.detach(), prog_bar=True)
        return loss

    def _identity_distance(self, noised: NoisyLatents, predicted: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """1 - cosine between the faces of the predicted clean pictures and of their ground truth.

        The noisiest pictures of the batch stand for all: decoding costs more than the network, and where there is
        little noise the face is seen already.
        """
        noisiest = noised.alpha.flatten().argsort()[: int(self.settings["losses"]["identity_pictures"])]
        pictures = self.space.decode(noised[noisiest].clean(predicted[noisiest])).add(1).div(2).clamp(0, 1)
        found = self.face_encoder.embed(pictures, tensors["points"][noisiest])
        return 1 - F.cosine_similarity(found, tensors["own_identity"][noisiest], dim=1).mean()

    def _training_tokens(self, tensors: dict[str, Tensor], without: Tensor) -> Tensor:
        tokens = self.network.identity_tokens(FaceFeatures(tensors["identity"], tensors["image_states"]))
        nobody = self.network.identity_tokens(self._no_face())
        return torch.where(without[:, None, None], nobody, tokens)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Steps, counts the batch and moves the average: before `on_train_batch_end`, where checkpoints are written."""
        super().optimizer_step(*arguments, **options)
        self._move_average()
        self.batches_done += 1

    @torch.no_grad()
    def _move_average(self) -> None:
        if self.averaged is not None:
            pictures = self._batch_pictures * int(self.trainer.world_size)
            decay = 0.5 ** (pictures / self.settings["ema_halflife_pictures"])
            decay = min(decay, (1 + self.batches_done) / (10 + self.batches_done))
            for mean, value in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
                if value.requires_grad:
                    mean.lerp_(value, 1 - decay)

    def _set_learning_rate(self) -> None:
        rate = learning_rate(self.settings["optimiser"], self.batches_done, self.settings["training"]["max_steps"])
        for group in cast(torch.optim.Optimizer, self.optimizers()).param_groups:
            group["lr"] = rate

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps how many batches were trained on."""
        checkpoint["batches_done"] = self.batches_done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on where the training stopped."""
        self.batches_done = checkpoint["batches_done"]

    # Weights -----------------------------------------------------------------------------------

    def weights_state(self) -> dict[str, Tensor]:
        """The averaged network."""
        source = self.averaged if self.averaged is not None else self.network
        assert isinstance(source, nn.Module)
        return {name: value.detach().cpu().contiguous() for name, value in source.state_dict().items()}

    def load_weights_state(self, state: dict[str, Tensor]) -> None:
        """Loads a weights file; tensors of parts that the settings leave out are passed over.

        Raises:
            UsageError: A tensor is missing, or belongs to no part of RestorerID.
        """
        wanted = set(self.network.state_dict())
        try:
            surplus = {self.network.part_of(name) for name in set(state) - wanted} - self.network.left_out
        except ValueError as error:
            raise UsageError(f"These are no weights of RestorerID: {error}.") from error
        if missing := sorted(wanted - set(state)):
            raise UsageError(
                f"The weights lack {len(missing)} tensors of RestorerID ({', '.join(missing[:3])}, …): those of "
                f"{', '.join(sorted({self.network.part_of(name) for name in missing}))}."
            )
        if surplus:
            raise UsageError(f"The weights hold tensors of {', '.join(sorted(surplus))} that this network has not.")
        self.network.load_state_dict({name: state[name].float() for name in wanted}, assign=True)


method_class = RestorerID
