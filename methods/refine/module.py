"""ReFine as a Lightning module: trains the network, and restores with it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bench.batch import FaceBatch
from bench.degradation.pipeline import replay
from bench.errors import MissingError, UsageError, unknown_name
from bench.method import MethodSpec, RestorationMethod
from bench.seeds import derive_seed
from bench.weights.method_weights import read_weights, weights_path
from methods.blocks.recogniser import build_recogniser
from methods.blocks.stylegan2 import StyleGAN2Discriminator
from methods.refine import losses
from methods.refine.distances import AlignedFaceDistance
from methods.refine.landmark_network import LandmarkNetwork, landmark_loss
from methods.refine.network import ReFineNetwork
from methods.refine.warp import warp_reference

REFERENCE_CHOICES = ("first", "closest_pose", "none")


class RestorationNetworks(nn.Module):
    """What the weights file holds: the restoration network and the landmark network."""

    def __init__(self, settings: dict[str, Any], identity_dim: int) -> None:
        super().__init__()
        self.network = ReFineNetwork(
            settings["native_size"],
            identity_dim=identity_dim,
            use_warped_reference=settings["use_warped_reference"],
            use_identity=settings["use_identity"],
            **settings["network"],
        )
        self.landmarks = LandmarkNetwork()


class ReFine(RestorationMethod):
    """ReFine (Chong et al., WACV 2025).

    Training follows Sec. 3.3 and Sec. 4 of the paper: spatial minimum loss, cycle consistency through
    the recorded degradation, identity and adversarial loss with R1, Adam with two learning rates. The
    landmark network, the paper's fine-tuned detector, learns beside it on the same degraded pictures
    and shares nothing with it.

    Args:
        settings: The composed `configs/method/refine.yaml` with one of its sizes merged in.
    """

    spec = MethodSpec(
        name="refine",
        title="ReFine",
        references="one",
        paper="Chong et al., Copy or Not? Reference-Based Face Image Restoration with Fine Details, WACV 2025",
        licence="Apache-2.0 (this implementation); no weights were published",
        variants={
            "+blind": ("method.reference=none",),
            "+unwarped": ("method.use_warped_reference=false",),
            "+no-identity": ("method.use_identity=false",),
        },
        without_reference="+blind",
    )
    architecture_keys = ("native_size", "identity", "network", "use_warped_reference", "use_identity")
    optimizer_steps_per_batch = 2

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        if settings["reference"] not in REFERENCE_CHOICES:
            raise unknown_name("value of method.reference", settings["reference"], REFERENCE_CHOICES)
        self.automatic_optimization = False
        self.native_size = int(settings["native_size"])
        self.size = settings["size"]
        self.recogniser = build_recogniser(settings["identity"])
        self.networks = RestorationNetworks(settings, self.recogniser.embedding_size)
        self.batches_done = 0
        self.discriminator: nn.Module | None = None
        self.averaged: nn.Module | None = None

    def conditions(self) -> dict[str, str]:
        """Hash of the recogniser that conditions the network."""
        return {"recogniser": self.recogniser.short_hash()}

    @property
    def label(self) -> str:
        """Name of the row, with what an ablation leaves out: `refine+blind@demo`."""
        left_out = []
        if self.settings["reference"] == "none":
            left_out.append("blind")
        else:
            left_out += ["unwarped"] if not self.settings["use_warped_reference"] else []
            left_out += ["no-identity"] if not self.settings["use_identity"] else []
        return "+".join([self.spec.name, *left_out]) + f"@{self.size}"

    # Restoration -------------------------------------------------------------------------------

    def restore(self, batch: FaceBatch) -> Tensor:
        """Restores pictures with one reference each; without one, blindly."""
        networks: Any = self.averaged if self.averaged is not None else self.networks
        lq = (batch.lq * 2 - 1).contiguous(memory_format=torch.channels_last)
        target_points = networks.landmarks(lq)
        present, reference, points = self._choose_reference(batch, target_points, networks.landmarks)
        warped, validity = self._warp(reference * 2 - 1, points, target_points)
        identity = self.recogniser.embed(reference, points) * present[:, None].to(reference.dtype)
        restored: Tensor = networks.network(lq, warped, validity, identity, reference_present=present)
        return restored.add(1).div(2).clamp(0, 1)

    def _choose_reference(
        self, batch: FaceBatch, target_points: Tensor, find_points: nn.Module
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Whether there is a reference (B,), the reference (B, 3, H, W), its points (B, 5, 2)."""
        count, most = batch.reference_mask.shape
        if most == 0 or self.settings["reference"] == "none":
            absent = torch.zeros(count, dtype=torch.bool, device=batch.lq.device)
            return absent, torch.zeros_like(batch.lq), target_points
        if self.settings["reference"] == "first":
            chosen = batch.reference_mask.float().argmax(dim=1)
            reference = batch.references[torch.arange(count), chosen]
            return batch.reference_mask.any(dim=1), reference, find_points(reference * 2 - 1)
        flat = batch.references.flatten(0, 1)
        points = find_points(flat * 2 - 1).view(count, most, -1, 2)
        difference = pose(points) - pose(target_points)[:, None]
        distance = difference.square().sum(-1).masked_fill(~batch.reference_mask, torch.inf)
        chosen = distance.argmin(dim=1)
        rows = torch.arange(count, device=chosen.device)
        return batch.reference_mask.any(dim=1), batch.references[rows, chosen], points[rows, chosen]

    def _warp(self, reference: Tensor, points: Tensor, target_points: Tensor) -> tuple[Tensor, Tensor]:
        return warp_reference(reference, points, target_points, self.settings["warp"])

    # Training ----------------------------------------------------------------------------------

    def prepare_training(self) -> None:
        """Builds what only training needs: the discriminator, the average, the prior's weights."""
        settings = self.settings
        torch.manual_seed(derive_seed(settings.get("seed", 0), "initial weights") % 2**32)
        self.networks = RestorationNetworks(settings, self.recogniser.embedding_size)
        self.discriminator = StyleGAN2Discriminator(self.native_size or 0, **settings["discriminator"])
        if settings["prior"]:
            from bench.weights import catalogue

            state = torch.load(catalogue.locate(settings["prior"]), weights_only=True)["params_ema"]
            self.networks.network.prior.load_state_dict(state)
        if source := settings["training"]["landmarks_from"]:
            self._take_over_landmarks(source)
        self.averaged = copy.deepcopy(self.networks).requires_grad_(False)

    def _take_over_landmarks(self, source: str) -> None:
        """Loads the landmark network of trained weights and freezes it: trainings may then differ in the rest alone."""
        path = weights_path(self.spec.name, self.size or "demo", None if source == "shipped" else source)
        if path is None:
            raise MissingError(f"method.training.landmarks_from=shipped: no weights of refine@{self.size} are here.")
        state, _ = read_weights(path)
        prefix = "landmarks."
        found = {name.removeprefix(prefix): value.float() for name, value in state.items() if name.startswith(prefix)}
        wanted = self.networks.landmarks.state_dict()
        if {name: value.shape for name, value in found.items()} != {n: v.shape for n, v in wanted.items()}:
            raise UsageError(f"method.training.landmarks_from={source}: {path} holds no landmark network of ReFine.")
        self.networks.landmarks.load_state_dict(found)
        self.networks.landmarks.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        """Adam for the networks (two learning rates) and Adam for the discriminator."""
        options = self.settings["optimiser"]
        betas = tuple(options["betas"])
        groups = [
            {"params": list(self.networks.network.new_parameters()), "lr": options["learning_rate"]},
            {"params": list(self.networks.network.prior_parameters()), "lr": options["prior_learning_rate"]},
            {"params": list(self.networks.landmarks.parameters()), "lr": 2e-3},
        ]
        assert self.discriminator is not None
        generator = torch.optim.Adam(groups, betas=betas)
        discriminator = torch.optim.Adam(
            self.discriminator.parameters(), lr=options["discriminator_learning_rate"], betas=betas
        )
        for optimiser in (generator, discriminator):
            for group in optimiser.param_groups:
                group["initial_lr"] = group["lr"]
        return [generator, discriminator]

    def training_step(self, batch: FaceBatch, batch_idx: int) -> None:
        """One batch: networks first, then the discriminator on the same pictures."""
        assert batch.gt is not None and batch.landmarks is not None and batch.reference_landmarks is not None
        rng = torch.Generator().manual_seed(derive_seed(batch.seeds[0], "training step", self.batches_done))
        generator, discriminator = self.optimizers()  # type: ignore[attr-defined]
        self._decay_learning_rates(generator, discriminator)
        if self.batches_done >= self._landmarks_alone_from():
            self._landmark_step(batch, generator, discriminator)
            return
        restored, terms = self._generator_terms(batch, rng)
        total = torch.stack(list(terms.values())).sum()
        generator.zero_grad()
        self.manual_backward(total)
        self._finite_or_stop(total)
        nn.utils.clip_grad_norm_(self.networks.parameters(), 10.0)
        generator.step()
        adversarial = self._adversarial()
        if adversarial:
            terms |= self._discriminator_step(batch.gt * 2 - 1, restored.detach(), discriminator)
        else:
            discriminator.zero_grad()
            discriminator.step()
        self._finish_batch(len(batch), terms, total)

    def _finish_batch(self, pictures: int, terms: dict[str, Tensor], total: Tensor | None = None) -> None:
        self._average(pictures)
        self.batches_done += 1
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        if total is not None:
            self.log("train/total", total.detach(), prog_bar=True)

    def _landmarks_alone_from(self) -> int:
        """Batch from which on only the landmark network learns: it is small and needs more of them."""
        training = self.settings["training"]
        if training["landmarks_from"]:
            return int(training["max_steps"])
        return min(training["max_steps"], training.get("landmarks_alone_from") or training["max_steps"])

    def _landmark_step(self, batch: FaceBatch, generator: Any, discriminator: Any) -> None:
        generator.zero_grad()
        loss = self._landmark_term(batch)
        self.manual_backward(loss)
        generator.step()
        discriminator.zero_grad()
        discriminator.step()
        self._finite_or_stop(loss)
        self._finish_batch(len(batch), {"landmarks": loss})

    def _landmark_term(self, batch: FaceBatch) -> Tensor:
        """The landmark network's loss on degraded pictures and on their clean references."""
        assert batch.landmarks is not None and batch.reference_landmarks is not None
        faces = torch.cat([batch.lq, batch.references[:, 0]]) * 2 - 1
        points = torch.cat([batch.landmarks, batch.reference_landmarks[:, 0]])
        return landmark_loss(self.networks.landmarks(faces), points, batch.lq.shape[-1])

    def _loss_weights(self) -> dict[str, Any]:
        """Weights of this batch: those of the last phase from its first batch on."""
        weights, last = self.settings["losses"], self.settings.get("last_phase")
        if last is None or self.batches_done < last["from"]:
            return weights
        return weights | last["losses"]

    def _generator_terms(self, batch: FaceBatch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        weights = self._loss_weights()
        assert batch.gt is not None and batch.landmarks is not None and batch.reference_landmarks is not None
        side = batch.lq.shape[-1]

        def jittered(points: Tensor) -> Tensor:
            noise = torch.randn(points.shape, generator=rng).to(points)
            return points + noise * (self.settings["landmark_jitter"] * side)

        lq = (batch.lq * 2 - 1).contiguous(memory_format=torch.channels_last)
        truth = batch.gt * 2 - 1
        reference, reference_points = batch.references[:, 0], batch.reference_landmarks[:, 0]
        present = torch.rand(len(batch), generator=rng).to(lq.device) >= self.settings["reference_dropout"]
        if self.settings["reference"] == "none":
            present = torch.zeros_like(present)
        warped, validity = self._warp(reference * 2 - 1, jittered(reference_points), jittered(batch.landmarks))
        with torch.no_grad():
            identity = self.recogniser.embed(reference, reference_points)
        restored = self.networks.network(lq, warped, validity, identity, reference_present=present)

        distance = self._distance(batch.landmarks)
        if isinstance(distance, AlignedFaceDistance):
            distance.remember(restored, truth, warped)
        # Without its reference a picture has nothing but the truth to be near to.
        reach = validity * present[:, None, None, None].to(validity.dtype)
        if weights["target"] == "minimum":
            pixel_term = losses.spatial_minimum_loss(restored, truth, warped, distance, reach)
        else:
            pixel_term = distance(restored, truth).mean()
        terms = {"minimum": weights["minimum"] * pixel_term}
        if weights["cycle"]:
            again = replay(restored.add(1).div(2), batch.degradation or []) * 2 - 1
            cycle_distance = self._distance(batch.landmarks, cycle=True)
            terms["cycle"] = weights["cycle"] * losses.cycle_consistency_loss(again, lq, cycle_distance)
        if weights["identity"]:
            embedding = (
                distance.embedding(restored)
                if isinstance(distance, AlignedFaceDistance)
                else self.recogniser.embed(restored.add(1).div(2), batch.landmarks)
            )
            terms["identity"] = weights["identity"] * losses.identity_loss(embedding, identity, present)
        if self._adversarial():
            assert self.discriminator is not None
            self.discriminator.requires_grad_(False)
            terms["adversarial"] = weights["adversarial"] * losses.adversarial_generator_loss(
                self.discriminator(restored)
            )
            self.discriminator.requires_grad_(True)
        trained = not self.settings["training"]["landmarks_from"]
        if trained and self.batches_done % self.settings["landmark_every"] == 0:
            terms["landmarks"] = self._landmark_term(batch)
        return restored, terms

    def _distance(self, points: Tensor, cycle: bool = False) -> losses.ElementwiseDistance:
        name = self.settings["cycle_distance" if cycle else "distance"]
        if name == "l1":
            return losses.absolute_distance
        if name == "sface_l1":
            return AlignedFaceDistance(self.recogniser.sface(), points)
        if name in ("lpips_vgg", "lpips_alex"):
            if not hasattr(self, "_lpips"):
                # A list keeps the frozen network out of the module's own parameters.
                self._lpips = [losses.lpips_distance(name.removeprefix("lpips_"))]
            return self._lpips[0]
        raise unknown_name("value of method.distance", name, ("l1", "sface_l1", "lpips_vgg", "lpips_alex"))

    def _adversarial(self) -> bool:
        weights = self.settings["losses"]
        return bool(weights["adversarial"]) and self.batches_done >= weights["adversarial_start"]

    def _discriminator_step(self, real: Tensor, fake: Tensor, optimiser: Any) -> dict[str, Tensor]:
        weights = self.settings["losses"]
        assert self.discriminator is not None
        regularised = self.batches_done % weights["r1_every"] == 0
        real = real.detach().requires_grad_(regularised)
        logits = self.discriminator(real)
        loss = losses.adversarial_discriminator_loss(logits, self.discriminator(fake))
        terms = {"discriminator": loss}
        if regularised:
            penalty = losses.r1_penalty(logits, real)
            terms["r1"] = penalty
            loss = loss + weights["r1"] / 2 * weights["r1_every"] * penalty
        optimiser.zero_grad()
        self.manual_backward(loss)
        optimiser.step()
        return terms

    def _decay_learning_rates(self, *optimisers: Any) -> None:
        """Constant, then linearly down to a twentieth from `decay_after` of each phase on."""
        start = self.settings["optimiser"]["decay_after"]
        last_phase = self.settings.get("last_phase")
        ends = {self._landmarks_alone_from(), self.settings["training"]["max_steps"]}
        if last_phase is not None:
            ends.add(last_phase["from"])
        first = max((end for end in ends if end <= self.batches_done), default=0)
        last = min((end for end in ends if end > self.batches_done), default=self.settings["training"]["max_steps"])
        done = (self.batches_done - first) / max(1, last - first)
        factor = 1.0 if start >= 1 or done <= start else max(0.05, 1 - (done - start) / (1 - start))
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * factor

    @torch.no_grad()
    def _average(self, pictures: int) -> None:
        """Exponential moving average, its half-life in pictures, as GPEN's training code."""
        assert self.averaged is not None
        halflife = self.settings["ema_halflife_pictures"]
        pictures *= self._processes()
        decay = min(0.5 ** (pictures / halflife), (1 + self.batches_done) / (10 + self.batches_done))
        pairs: list[tuple[Any, Any]] = [(self.averaged, self.networks)]
        if self.batches_done >= self._landmarks_alone_from():
            # The generator stands still now; its average must not drift to where it stopped.
            pairs = [(self.averaged.landmarks, self.networks.landmarks)]
        for means, values in pairs:
            for mean, value in zip(means.parameters(), values.parameters(), strict=True):
                mean.lerp_(value.to(mean), 1 - decay)

    def _processes(self) -> int:
        attached = getattr(self, "_trainer", None)
        return int(attached.world_size) if attached is not None else 1

    def _finite_or_stop(self, total: Tensor) -> None:
        if not torch.isfinite(total):
            raise UsageError(
                f"The loss became {total.item()} at batch {self.batches_done}. Lower "
                "method.optimiser.learning_rate, or train in float32 (trainer.precision=32-true)."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps how many batches were trained on."""
        checkpoint["batches_done"] = self.batches_done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on where the training stopped."""
        self.batches_done = checkpoint["batches_done"]

    # Weights -----------------------------------------------------------------------------------

    def weights_state(self) -> dict[str, Tensor]:
        """The averaged networks, without what the prior never uses (mapping network, noise)."""
        source = self.averaged if self.averaged is not None else self.networks
        assert isinstance(source, nn.Module)
        state = source.state_dict()
        return {name: state[name].detach().cpu().contiguous() for name in self._published_names()}

    def load_weights_state(self, state: dict[str, Tensor]) -> None:
        """Loads a weights file; every published tensor must be there, and no other."""
        wanted = set(self._published_names())
        if missing := sorted(wanted - set(state)):
            raise UsageError(f"The weights lack {len(missing)} tensors of ReFine ({', '.join(missing[:3])}, …).")
        if surplus := sorted(set(state) - wanted):
            raise UsageError(
                f"The weights hold {len(surplus)} tensors ReFine does not know ({', '.join(surplus[:3])}, …)."
            )
        self.networks.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)

    def _published_names(self) -> list[str]:
        unused = ("network.prior.style_mlp.", "network.prior.noises.")
        return [
            name
            for name in self.networks.state_dict()
            if not name.startswith(unused) and not (name.startswith("network.prior.") and ".blur" in name)
        ]


def pose(points: Tensor) -> Tensor:
    """How a head is turned, from (..., 5, 2) points: nose offset from the eyes' middle, in eye distances."""
    left, right, nose, mouth = points[..., 0, :], points[..., 1, :], points[..., 2, :], points[..., 3:, :].mean(-2)
    across = right - left
    length = across.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    middle = (left + right) / 2
    along = across / length
    up = torch.stack([-along[..., 1], along[..., 0]], dim=-1)
    return torch.cat(
        [((part - middle) * axis).sum(-1, keepdim=True) / length for part in (nose, mouth) for axis in (along, up)],
        dim=-1,
    )


method_class = ReFine
