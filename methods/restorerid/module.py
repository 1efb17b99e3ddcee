"""RestorerID as a Lightning module: trains the network in stages, and restores with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.batch import FaceBatch
from bench.errors import UsageError, unknown_name
from bench.method import MethodSpec
from bench.seeds import derive_seed
from methods.blocks.base_models import base_model
from methods.blocks.colour_fix import colour_fix
from methods.blocks.diffusion_objective import NoisyLatents
from methods.blocks.latent_diffusion_method import LatentDiffusionMethod, require_number
from methods.blocks.latent_samples import LatentBatch
from methods.blocks.sampling import Branch, ModelCall
from methods.blocks.self_ensemble import mean_over_mirror
from methods.restorerid.adaptive_scale import adaptive_id_scale
from methods.restorerid.face_encoders import build_face_encoder
from methods.restorerid.identity_tokens import FaceFeatures
from methods.restorerid.network import RestorerIDNetwork
from methods.restorerid.quality import QualityEstimator, build_quality
from methods.restorerid.reference_faces import ON_MISSING_FACE, ReferenceFaces, choose_references
from methods.restorerid.stages import begin_stage, freeze

if TYPE_CHECKING:
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


class RestorerID(LatentDiffusionMethod):
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
        variants={
            "+base": ("method.use_identity=false", "method.use_fir=false"),
            "+blind": ("method.reference=none",),
            "+no-fir": ("method.use_fir=false",),
        },
        numbered_variants={"+scale": "method.id_scale"},
        without_reference="+blind",
    )
    architecture_keys: ClassVar[tuple[str, ...]] = (*LatentDiffusionMethod.architecture_keys, "face_encoder")
    network: RestorerIDNetwork

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        if settings["reference"] not in REFERENCE_CHOICES:
            raise unknown_name("value of method.reference", settings["reference"], REFERENCE_CHOICES)
        if settings["on_missing_face"] not in ON_MISSING_FACE:
            raise unknown_name("value of method.on_missing_face", settings["on_missing_face"], ON_MISSING_FACE)
        scale = settings["id_scale"]
        if scale != "adaptive" and not (isinstance(scale, int | float) and 0 <= scale < math.inf):
            raise UsageError(f"method.id_scale must be adaptive or a number from 0 on, got {scale!r}.")
        require_number("losses.identity", settings["losses"]["identity"], 0)
        require_number("losses.identity_pictures", settings["losses"]["identity_pictures"], 0, whole=True)
        if settings["losses"]["identity"] and not settings["losses"]["identity_pictures"]:
            raise UsageError(
                "method.losses.identity needs pictures to look at: set method.losses.identity_pictures to 1 or more."
            )
        if settings["losses"]["identity"] and base_model(settings["base"]).prediction != "v_prediction":
            raise UsageError(
                "method.losses.identity is for base models that predict velocities: the clean picture that predicted "
                "noise means is out of range where there is most noise. Set it to 0."
            )
        self.find_references = choose_references

    def build_network(self) -> RestorerIDNetwork:
        """See `LatentDiffusionMethod.build_network`."""
        settings = self.settings
        return RestorerIDNetwork(self.base, settings["network"], settings["use_identity"], settings["use_fir"])

    # What is frozen ----------------------------------------------------------------------------

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

    def conditions(self) -> dict[str, str]:
        """Hashes of the frozen networks that decide the pictures."""
        found = super().conditions()
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
        faces = self.reference_faces(batch)
        if not self.settings["self_ensemble"]:
            return self._restore_once(batch, faces)
        # The detector is asked once: on a mirror image it may find what it does not find on the picture.
        both = faces and faces.with_mirror_images()
        return mean_over_mirror(lambda mirrored: self._restore_once(mirrored, both), batch)

    def _restore_once(self, batch: FaceBatch, faces: ReferenceFaces | None) -> Tensor:
        lq_latent = self.space.encode(batch.lq * 2 - 1)
        conditions = self.sampling_conditions(batch, faces)
        latent = self._sampled(self.network_for_inference(), lq_latent, conditions, batch.seeds)
        restored = self.space.decode(latent).add(1).div(2).clamp(0, 1)
        return colour_fix(restored, batch.lq, self.settings["colour_fix"], levels=self.settings["colour_fix_levels"])

    def reference_faces(self, batch: FaceBatch) -> ReferenceFaces | None:
        """The references' faces; None where nothing asks for them."""
        wanted = self.settings["use_identity"] and self.settings["reference"] != "none"
        if not wanted or not batch.references.shape[1]:
            return None
        return self.find_references(
            batch.references, batch.reference_mask, batch.image_ids, self.settings["on_missing_face"]
        )

    def sampling_conditions(self, batch: FaceBatch, faces: ReferenceFaces | None) -> SamplingConditions:
        """What a sampling reads beside the LQ latent, none of which changes over its steps.

        Args:
            batch: The pictures.
            faces: Their references' faces; None to restore without identity.
        """
        prompts = self.settings["prompts"]
        text: dict[Branch, Tensor] = {
            "conditional": self.text(len(batch), prompts["positive"]),
            "unconditional": self.text(len(batch), prompts["negative"]),
        }
        tokens, scale = self._identity(self._network, batch, faces)
        same_identity = tokens is None or tokens["conditional"] is tokens["unconditional"]
        return SamplingConditions(text, tokens, scale, same_identity and prompts["positive"] == prompts["negative"])

    @property
    def _network(self) -> RestorerIDNetwork:
        return cast(RestorerIDNetwork, self.trained_network)

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

    def _identity(
        self, network: RestorerIDNetwork, batch: FaceBatch, faces: ReferenceFaces | None
    ) -> tuple[dict[Branch, Tensor] | None, Tensor | None]:
        """Identity tokens of both branches, each (B, N, width), and the weight of the identity (B,)."""
        if not self.settings["use_identity"]:
            return None, None
        count = len(batch)
        nobody = network.identity_tokens(self._no_face()).expand(count, -1, -1)
        tokens: dict[Branch, Tensor] = {"conditional": nobody, "unconditional": nobody}
        if faces is not None and faces.present.any():
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

    def random_training_batch(self, count: int) -> LatentBatch:
        """Random latents for timing a training step."""
        from methods.restorerid.timing import training_batch

        return training_batch(self, count)

    # Training ----------------------------------------------------------------------------------

    def freeze_unchanged(self) -> None:
        """See `LatentDiffusionMethod.freeze_unchanged`."""
        freeze(self.network, self.settings["training"])

    def begin_training(self) -> None:
        """Reads the weights of the stage before, and freezes what this stage leaves alone.

        Raises:
            UsageError: The stage needs another's weights, or trains what the settings left out.
        """
        begin_stage(self.network, self.settings["training"], self.base, self.settings["autoencoder"])

    def sample_identity(self) -> dict[str, Any]:
        """See `LatentDiffusionMethod.sample_identity`."""
        identity: dict[str, Any] = super().sample_identity() | {"face_encoder": self.face_encoder.digest}
        if self._identity_loss:
            identity["own_faces"] = True
        return identity

    def encoded(self, batch: FaceBatch) -> dict[str, Tensor]:
        """What a training step reads of a batch: latents of ground truth and LQ, the reference's face.

        References stay in the row of their ground truth (the released second stage mixes them up).
        """
        batch = batch.to(self.device)
        made = super().encoded(batch)
        assert batch.gt is not None and batch.reference_landmarks is not None
        with torch.no_grad():
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

    def training_loss(self, tensors: dict[str, Tensor], noised: NoisyLatents, generator: torch.Generator) -> Tensor:
        """The squared error of the predicted noise (Eqs. 1 and 8).

        Where the base model predicts velocities (Salimans and Ho, ICLR 2022), of the predicted velocity.
        """
        latent, options = noised.latent, self.settings["training"]
        count = len(latent)
        lq_latent = self.drop_lq(tensors["lq_latent"], generator)
        without_identity = torch.rand(count, generator=generator) < self.settings["dropout"]["identity"]
        tokens, scale, base_only = None, None, options["stage"] == "base"
        if self.network.projection is not None and not base_only:
            tokens = self._training_tokens(tensors, without_identity.to(latent.device))
            scale = torch.full((count,), float(options["id_scale"]), device=latent.device)
        maps = self.network.lq_maps(lq_latent, noised.timestep)
        text = self.text(count, "").to(tensors["latent"])
        predicted = self.network(noised.noisy, noised.timestep, text, maps, tokens, scale, base_only=base_only)
        loss = F.mse_loss(predicted.float(), noised.target.float())
        if self._identity_loss:
            distance = self._identity_distance(noised, predicted, tensors)
            self.log("train/identity", distance.detach())
            loss = loss + self._identity_loss * distance
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


method_class = RestorerID
