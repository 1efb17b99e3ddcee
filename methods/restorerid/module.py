"""RestorerID as a Lightning module: trains the network in stages, and restores with it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.batch import FaceBatch
from bench.errors import UsageError, unknown_name
from bench.method import MethodSpec, RestorationMethod
from bench.seeds import derive_seed
from bench.weights.method_weights import read_weights
from methods.blocks.base_models import base_model
from methods.blocks.colour_fix import colour_fix
from methods.blocks.latent_samples import LatentBatch, LatentSamples
from methods.blocks.latent_space import LatentSpace, latent_space
from methods.blocks.sampling import Branch, ModelCall, Sampler, sampling_preset
from methods.blocks.text_conditioning import text_tokens
from methods.restorerid.adaptive_scale import adaptive_id_scale
from methods.restorerid.face_encoders import build_face_encoder, encoder_digest
from methods.restorerid.identity_tokens import FaceFeatures
from methods.restorerid.network import STAGES, RestorerIDNetwork
from methods.restorerid.quality import QualityEstimator, build_quality
from methods.restorerid.reference_faces import choose_references

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

    from bench.data.training import TrainingPairs
    from methods.restorerid.identity_tokens import FaceEncoder

REFERENCE_CHOICES = ("first", "none")


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

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        if settings["reference"] not in REFERENCE_CHOICES:
            raise unknown_name("value of method.reference", settings["reference"], REFERENCE_CHOICES)
        self.native_size = int(settings["native_size"])
        self.size = settings["size"]
        self.base = base_model(settings["base"])
        torch.manual_seed(derive_seed(settings.get("seed", 0), "initial weights") % 2**32)
        self.network = RestorerIDNetwork(self.base, settings["network"], settings["use_identity"], settings["use_fir"])
        options = {key: value for key, value in settings["sampling"].items() if value is not None}
        self.sampler = Sampler(sampling_preset(options.pop("preset"), **options))
        self.batches_done = 0
        self.averaged: nn.Module | None = None
        # Frozen networks, loaded on first use and kept out of the module so that they are never saved with it.
        self._frozen: dict[str, Any] = {}

    # What is frozen ----------------------------------------------------------------------------

    @property
    def space(self) -> LatentSpace:
        """The autoencoder."""
        if "space" not in self._frozen:
            self._frozen["space"] = latent_space(self.base, self.settings["autoencoder"])
        space: Any = self._frozen["space"].to(self.device)
        return cast(LatentSpace, space)

    @property
    def face_encoder(self) -> FaceEncoder:
        """What reads the reference's face."""
        if "face_encoder" not in self._frozen:
            self._frozen["face_encoder"] = build_face_encoder(self.settings["face_encoder"])
        return cast("FaceEncoder", self._frozen["face_encoder"])

    @property
    def quality(self) -> QualityEstimator:
        """What rates the LQ picture for the adaptive ID-scale."""
        if "quality" not in self._frozen:
            self._frozen["quality"] = build_quality(self.settings["quality"])
        return cast(QualityEstimator, self._frozen["quality"])

    def _text(self, count: int, prompt: str) -> Tensor:
        key = f"text {prompt}"
        if key not in self._frozen:
            self._frozen[key] = text_tokens(self.base, [prompt], self.settings["autoencoder"])
        tokens: Tensor = self._frozen[key].to(self.device)
        return tokens.expand(count, -1, -1)

    def conditions(self) -> dict[str, str]:
        """Hashes of the frozen networks that decide the pictures."""
        found = {"autoencoder": self.space.digest}
        if self.settings["use_identity"]:
            found["face_encoder"] = encoder_digest(self.settings["face_encoder"])
        if self._adaptive:
            found["quality"] = self.quality.name
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
        elif self.settings["reference"] == "none":
            changed.append("blind")
        else:
            changed += [] if self.settings["use_fir"] else ["no-fir"]
            changed += [] if self._adaptive else [f"scale{self.settings['id_scale']:g}"]
        return "+".join([self.spec.name, *changed]) + f"@{self.size}"

    # Restoration -------------------------------------------------------------------------------

    def restore(self, batch: FaceBatch) -> Tensor:
        """Restores pictures with one reference each; without one, with the tokens of no identity."""
        network = cast(RestorerIDNetwork, self.averaged if self.averaged is not None else self.network)
        lq_latent = self.space.encode(batch.lq * 2 - 1)
        text: dict[Branch, Tensor] = {
            "conditional": self._text(len(batch), self.settings["prompts"]["positive"]),
            "unconditional": self._text(len(batch), self.settings["prompts"]["negative"]),
        }
        tokens, scale = self._identity(network, batch)

        def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
            shared = torch.cat([window.crop(lq_latent) for window in call.windows])
            maps = network.lq_maps(shared, timestep[: len(shared)])
            return network(
                latent,
                timestep,
                call.by_branch(text),
                maps,
                None if tokens is None else call.by_branch(tokens),
                None if scale is None else scale.repeat(len(call.windows)),
            )

        seeds = [derive_seed(seed, "diffusion noise") for seed in batch.seeds]
        latent = self.sampler.sample(predict, seeds, shape=lq_latent.shape[1:], lq_latent=lq_latent, device=self.device)
        restored = self.space.decode(latent).add(1).div(2).clamp(0, 1)
        return colour_fix(restored, batch.lq, self.settings["colour_fix"])

    def _identity(
        self, network: RestorerIDNetwork, batch: FaceBatch
    ) -> tuple[dict[Branch, Tensor] | None, Tensor | None]:
        """Identity tokens of both branches, each (B, N, width), and the weight of the identity (B,)."""
        if not self.settings["use_identity"]:
            return None, None
        count = len(batch)
        nobody = network.identity_tokens(self.face_encoder.unconditional(count, self.device))
        tokens: dict[Branch, Tensor] = {"conditional": nobody, "unconditional": nobody}
        if self.settings["reference"] != "none" and batch.references.shape[1]:
            faces = choose_references(
                batch.references, batch.reference_mask, batch.image_ids, self.settings["on_missing_face"]
            )
            if faces.present.any():
                found = network.identity_tokens(self.face_encoder.encode(faces.images, faces.points))
                tokens["conditional"] = torch.where(faces.present[:, None, None], found, nobody)
        return tokens, self.id_scale(batch.lq)

    def id_scale(self, lq: Tensor) -> Tensor:
        """Weight of the identity for each picture (Eq. 9, or the fixed number of the settings).

        Args:
            lq: (B, 3, H, W) RGB in [0, 1].

        Returns:
            (B,).
        """
        if not self._adaptive:
            return torch.full((len(lq),), float(self.settings["id_scale"]), device=lq.device)
        alpha = self.settings["alpha"] if self.settings["alpha"] is not None else self.quality.alpha
        beta = self.settings["beta"] if self.settings["beta"] is not None else self.quality.beta
        if alpha is None or beta is None:
            raise UsageError(
                f"The quality estimator {self.quality.name!r} has no calibration. Give method.alpha and method.beta, "
                "or a fixed method.id_scale."
            )
        return adaptive_id_scale(self.quality(lq), alpha, beta, self.settings["id_scale_max"])

    # Training ----------------------------------------------------------------------------------

    def prepare_training(self) -> None:
        """Reads the weights of the stage before, and freezes what this stage leaves alone.

        Raises:
            UsageError: The stage needs another's weights, or trains what the settings left out.
        """
        training = self.settings["training"]
        stage = training["stage"]
        if stage not in STAGES:
            raise unknown_name("value of method.training.stage", stage, STAGES)
        if training["start_from"]:
            self._read_stage(training["start_from"])
        elif stage in ("identity", "fir"):
            raise UsageError(
                f"method.training.stage={stage} goes on from the stage before: give its weights with "
                "method.training.start_from=FILE."
            )
        self.network.train_only(stage)
        if not training["train_unet"]:
            self.network.adapted.unet.requires_grad_(False)
        if self.settings["ema_halflife_pictures"]:
            self.averaged = copy.deepcopy(self.network).requires_grad_(False)

    def _read_stage(self, path: str) -> None:
        from pathlib import Path

        state, _ = read_weights(Path(path).expanduser())
        missing, surplus = self.network.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
        absent = sorted({self.network.part_of(name) for name in missing} & set(STAGES["base"]))
        if absent or surplus:
            raise UsageError(
                f"{path} is no earlier stage of this network: it lacks {', '.join(absent) or 'nothing'} and has "
                f"{len(surplus)} tensors more."
            )

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
        identity = {"space": self.space.digest, "face_encoder": encoder_digest(self.settings["face_encoder"])}
        return LatentSamples(pairs, self.encoded, identity, count)

    def encoded(self, batch: FaceBatch) -> dict[str, Tensor]:
        """What a training step reads of a batch: latents of ground truth and LQ, the reference's face.

        References stay in the row of their ground truth (the released second stage mixes them up).
        """
        assert batch.gt is not None and batch.reference_landmarks is not None
        with torch.no_grad():
            latents = self.space.encode(torch.cat([batch.gt, batch.lq]) * 2 - 1)
            face = self.face_encoder.encode(batch.references[:, 0], batch.reference_landmarks[:, 0])
        return {
            "latent": latents[: len(batch)],
            "lq_latent": latents[len(batch) :],
            "identity": face.identity,
            "image_states": face.image_states,
        }

    def training_step(self, batch: LatentBatch | FaceBatch, batch_idx: int) -> Tensor:
        """One batch: the squared error of the predicted noise (Eqs. 1 and 8)."""
        tensors = batch.tensors if isinstance(batch, LatentBatch) else self.encoded(batch)
        latent = tensors["latent"]
        count, options = len(latent), self.settings["training"]
        self._set_learning_rate()
        rng = torch.Generator().manual_seed(derive_seed(batch.seeds[0], "diffusion step", self.batches_done))
        timestep = torch.randint(self.sampler.settings.train_timesteps, (count,), generator=rng).to(latent.device)
        noise = torch.randn(latent.shape, generator=rng).to(latent)
        without_lq = torch.rand(count, generator=rng) < self.settings["dropout"]["lq"]
        without_identity = torch.rand(count, generator=rng) < self.settings["dropout"]["identity"]
        alpha = self.sampler.alphas_cumprod.to(latent)[timestep].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latent + (1 - alpha).sqrt() * noise
        lq_latent = torch.where(without_lq.to(latent.device)[:, None, None, None], 0.0, tensors["lq_latent"])
        tokens, scale = None, None
        if self.network.projection is not None and options["stage"] != "base":
            tokens = self._training_tokens(tensors, without_identity.to(latent.device))
            scale = torch.full((count,), float(options["id_scale"]), device=latent.device)
        elif self.network.projection is not None:
            # The base is trained without its ID model, whose weight is therefore nothing.
            tokens = latent.new_zeros(count, self.network.projection.num_tokens, self.base.text_width)
            scale = torch.zeros(count, device=latent.device)
        maps = self.network.lq_maps(lq_latent, timestep)
        text = self._text(count, "").to(latent)
        predicted = self.network(noisy, timestep, text, maps, tokens, scale)
        loss = F.mse_loss(predicted.float(), noise.float())
        if not torch.isfinite(loss):
            raise UsageError(
                f"The loss became {loss.item()} at batch {self.batches_done}. Lower "
                "method.optimiser.learning_rate, or train in float32 (trainer.precision=32-true)."
            )
        self.log("train/total", loss.detach(), prog_bar=True)
        return loss

    def _training_tokens(self, tensors: dict[str, Tensor], without: Tensor) -> Tensor:
        tokens = self.network.identity_tokens(FaceFeatures(tensors["identity"], tensors["image_states"]))
        nobody = self.network.identity_tokens(self.face_encoder.unconditional(1, tokens.device))
        return torch.where(without[:, None, None], nobody, tokens)

    @torch.no_grad()
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts the batch, and moves the exponential average towards the weights."""
        if self.averaged is not None:
            pictures = len(batch) * int(self.trainer.world_size)
            decay = 0.5 ** (pictures / self.settings["ema_halflife_pictures"])
            decay = min(decay, (1 + self.batches_done) / (10 + self.batches_done))
            for mean, value in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
                if value.requires_grad:
                    mean.lerp_(value, 1 - decay)
        self.batches_done += 1

    def _set_learning_rate(self) -> None:
        """Rises linearly over the first batches, then falls along a cosine to a hundredth."""
        options, last = self.settings["optimiser"], self.settings["training"]["max_steps"]
        first = options["decay_after"] * last
        done = min(1.0, max(0.0, (self.batches_done - first) / max(1.0, last - first)))
        fallen = 0.01 + 0.99 * (1 + torch.cos(torch.tensor(torch.pi * done)).item()) / 2
        factor = min(1.0, (self.batches_done + 1) / max(1, options["warm_up"])) * fallen
        for group in cast(torch.optim.Optimizer, self.optimizers()).param_groups:
            group["lr"] = options["learning_rate"] * factor

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
        left_out = {"identity", "projection"} if not self.settings["use_identity"] else set()
        left_out |= {"fir"} if not self.settings["use_fir"] else set()
        try:
            surplus = {self.network.part_of(name) for name in set(state) - wanted} - left_out
        except ValueError as error:
            raise UsageError(f"These are no weights of RestorerID: {error}.") from error
        if missing := sorted(wanted - set(state)):
            raise UsageError(
                f"The weights lack {len(missing)} tensors of RestorerID ({', '.join(missing[:3])}, …): those of "
                f"{', '.join(sorted({self.network.part_of(name) for name in missing}))}."
            )
        if surplus:
            raise UsageError(f"The weights hold tensors of {', '.join(sorted(surplus))} that this network has not.")
        self.network.load_state_dict({name: state[name].float() for name in wanted})


method_class = RestorerID
