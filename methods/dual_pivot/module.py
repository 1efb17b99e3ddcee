"""Dual-Pivot Tuning as a Lightning module: trains the base model, tunes it to persons, and restores them."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.batch import FaceBatch
from bench.config import read_preset
from bench.degradation.pipeline import DegradationPipeline
from bench.errors import UsageError
from bench.files import sha256_bytes
from bench.method import MethodSpec
from bench.protocol.card import load_card
from bench.seeds import derive_seed
from methods.blocks.colour_fix import colour_fix
from methods.blocks.diffusion_objective import NoisyLatents
from methods.blocks.earlier_weights import read_earlier_weights
from methods.blocks.latent_diffusion import load_base
from methods.blocks.latent_diffusion_method import LatentDiffusionMethod
from methods.blocks.sampling import Branch, ModelCall
from methods.blocks.self_ensemble import mean_over_mirror
from methods.blocks.tiling import Tiling, pad_to_multiple, tiled_decode, tiled_encode
from methods.dual_pivot.network import DualPivotNetwork
from methods.dual_pivot.personal_tuning import PersonalTuning
from methods.dual_pivot.prompts import CLASS_WORDS, class_number, class_prompt, personal_prompt, small_text
from methods.dual_pivot.requirements import absent_parts, generic_identity, generic_pairs, uses_generic_faces
from methods.dual_pivot.settings import require_settings

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

    from bench.data.training import TrainingPairs
    from bench.personal_state import PersonalState
    from methods.blocks.latent_samples import LatentBatch


#: Of the learning: another number wherever the same settings give something else. States and rows of 1 name none.
LEARNING_VERSION = 1


@dataclass(frozen=True)
class Person:
    """A personal state, ready to restore with.

    Attributes:
        key: Of the state.
        source: The network that was tuned.
        network: Its copy with the person's tensors.
        text: Tokens of the person's text, (1, T, width).
    """

    key: str
    source: DualPivotNetwork
    network: DualPivotNetwork
    text: Tensor


class DualPivot(LatentDiffusionMethod):
    """Dual-Pivot Tuning (Chari et al., arXiv 2312.17234) of DiffBIR (Lin et al., ECCV 2024).

    A cleaner takes the worst off the LQ picture, and a ControlNet steers Stable Diffusion by what is left. For a
    person the denoiser is tuned around a fixed text (the textual pivot), and then the ControlNet with that denoiser
    frozen (the model pivot).

    Args:
        settings: The composed `configs/method/dual_pivot.yaml` with one of its sizes merged in.
    """

    spec = MethodSpec(
        name="dual_pivot",
        title="Dual-Pivot Tuning",
        references="several",
        tuning="per_identity",
        paper="Chari et al., Personalized Restoration via Dual-Pivot Tuning, arXiv 2312.17234",
        licence="Apache-2.0 (this implementation and DiffBIR's weights)",
        variants={
            "+base": ("method.personalisation.tunes=nothing",),
            "+textual": ("method.personalisation.tunes=textual",),
            "+out_of_context": ("method.personalisation.textual.where=out_of_context",),
            "+personal": ("method.personalisation.model.faces=personal",),
        },
        without_reference="+base",
    )
    not_in_revision: ClassVar[tuple[str, ...]] = (*LatentDiffusionMethod.not_in_revision, "tiles_per_call")
    any_size = True
    reads_class_word = True
    network: DualPivotNetwork

    def __init__(self, settings: dict[str, Any]) -> None:
        require_settings(settings)
        super().__init__(settings)
        self._person: Person | None = None
        self._class_word: Callable[[str], str] | None = None

    def build_network(self) -> DualPivotNetwork:
        """See `LatentDiffusionMethod.build_network`."""
        return DualPivotNetwork(self.base, self.settings["network"])

    @classmethod
    def absent(cls, settings: dict[str, Any]) -> dict[str, str]:
        """See `RestorationMethod.absent`."""
        return absent_parts(settings)

    @property
    def label(self) -> str:
        """Name of the row, with what a comparison changes: `dual_pivot+textual@demo`."""
        own = self.settings["personalisation"]
        changed = {"nothing": ["base"], "textual": ["textual"], "both": []}[own["tunes"]]
        if self.personalises and own["textual"]["where"] == "out_of_context":
            changed.append("out_of_context")
        if own["tunes"] == "both" and own["model"]["faces"] == "personal":
            changed.append("personal")
        return "+".join([self.spec.name, *changed]) + f"@{self.size}"

    # Texts -------------------------------------------------------------------------------------

    def text(self, count: int, prompt: str) -> Tensor:
        """Text tokens (count, T, width) of a prompt."""
        if self.base.text is not None:
            return super().text(count, prompt)
        key = f"text {prompt}"
        if key not in self.frozen:
            with torch.inference_mode(False):
                self.frozen[key] = small_text(prompt, self.base.text_width)[None]
        tokens: Tensor = self.frozen[key].to(self.device)
        return tokens.expand(count, -1, -1)

    def personal_text(self, class_word: str) -> str:
        """What the person is tuned around."""
        return personal_prompt(self.settings["personalisation"]["token"], class_word)

    # Persons -----------------------------------------------------------------------------------

    @property
    def personalises(self) -> bool:
        """See `RestorationMethod.personalises`."""
        return bool(self.settings["personalisation"]["tunes"] != "nothing")

    def personal_base(self) -> dict[str, Any]:
        """See `RestorationMethod.personal_base`."""
        own = self.settings["personalisation"]
        return {
            **super().conditions(),
            "base": self.settings["base"],
            "network": self.settings["network"],
            "native_size": self.native_size,
            "tunes": own["tunes"],
            **({"tensors": own["model"]["tensors"]} if own["tunes"] == "both" else {}),
        }

    def personal_settings(self) -> dict[str, Any]:
        """See `RestorationMethod.personal_settings`."""
        left_out = {"tunes", "generic_data", "generic_samples"}
        own = {key: value for key, value in self.settings["personalisation"].items() if key not in left_out}
        if self.settings["personalisation"]["tunes"] == "textual":
            del own["model"]
        if own["textual"]["where"] == "in_context":
            own["textual"] = {key: value for key, value in own["textual"].items() if not key.startswith("class_")}
        if uses_generic_faces(self.settings):
            count = self.settings["personalisation"]["generic_samples"]
            own["generic"] = {**generic_identity(self.settings), "count": count}
        own |= _learning_version()
        if own["timesteps"] == "sampling":
            own["timesteps"] = list(self.sampler.call_timesteps)
        return own | {"degradation": self.degradation.specification()}

    def personal_iterations(self) -> int:
        """See `RestorationMethod.personal_iterations`."""
        own = self.settings["personalisation"]
        return int(own["textual"]["iterations"]) + (int(own["model"]["iterations"]) if own["tunes"] == "both" else 0)

    def conditions(self) -> dict[str, str]:
        """See `RestorationMethod.conditions`."""
        found = super().conditions()
        if self.personalises:
            content = json.dumps(self.degradation.specification(), sort_keys=True)
            found |= {"degradation": sha256_bytes(content.encode("utf-8")), **_learning_version()}
        return found

    @functools.cached_property
    def degradation(self) -> DegradationPipeline:
        """What makes the LQ pictures that a person is learnt from."""
        preset = read_preset("degradation", self.settings["personalisation"]["degradation"])
        return DegradationPipeline(preset["name"], preset["steps"], cast(int, self.native_size))

    def personalise(
        self,
        references: Tensor,
        seed: int,
        unfinished: dict[str, Tensor] | None = None,
        keep: Callable[[dict[str, Tensor]], None] | None = None,
        advance: Callable[[int, bool], None] | None = None,
        class_word: str = "person",
    ) -> dict[str, Tensor]:
        """See `RestorationMethod.personalise`.

        The tensors, in float16: `unet.*`, the whole tuned denoiser; `controlnet.*`, those of the ControlNet that were
        tuned; `text`, tokens of the person's text.
        """
        with torch.inference_mode(False):
            tuning = self.personal_tuning(references, seed, class_word)
            if unfinished is not None:
                tuning.go_on(unfinished)
            tuning.run(keep, advance)
            return tuning.result()

    def personal_tuning(self, references: Tensor, seed: int, class_word: str = "person") -> PersonalTuning:
        """The tuning to a person, before its first iteration; arguments as of `personalise`."""
        side = cast(int, self.native_size)
        with torch.inference_mode(False):
            pictures = references.clone().to(self.device)
            if pictures.shape[-2:] != (side, side):
                resized = F.interpolate(pictures, (side, side), mode="bicubic", align_corners=False, antialias=True)
                pictures = resized.clamp(0, 1)
            # Restoring lays the network out anew, and in another layout the last bits are others.
            self.base_network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            self.inference_network.forget()
            return PersonalTuning(self, pictures, seed, class_word)

    @property
    def base_network(self) -> DualPivotNetwork:
        """The base model; nothing of a person is in it."""
        return cast(DualPivotNetwork, self.trained_network)

    def generic_samples(self) -> dict[str, Tensor]:
        """Faces of other people: `latent`, `hint`, and `class`, the number of a word; the same for every person.

        Raises:
            MissingError: Their data set is not here.
        """
        if "generic" not in self.frozen:
            from methods.blocks.latent_samples import LatentSamples

            pairs = generic_pairs(self.settings, cast(int, self.native_size))
            count = int(self.settings["personalisation"]["generic_samples"])
            with torch.inference_mode(False):
                identity = super().sample_identity() | {"cleaner": self.cleaner_digest, "kind": "generic faces"}
                word = load_card(pairs.data.card).class_word

                def encoded(batch: FaceBatch) -> dict[str, Tensor]:
                    numbers = torch.tensor([class_number(word(own)) for own in batch.identities])
                    return {**self._latents(batch), "class": numbers}

                self.frozen["generic"] = LatentSamples(pairs, encoded, identity, count).tensors
        samples: dict[str, Tensor] = self.frozen["generic"]
        return samples

    def _ready(self, state: PersonalState) -> Person:
        """A state made ready; only that of the last person is kept, since networks are large."""
        source = cast(DualPivotNetwork, self.network_for_inference())
        if self._person is None or self._person.key != state.key or self._person.source is not source:
            self._person = None
            try:
                self._person = self._made_ready(state, source)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, KeyError) as error:
                reason = str(error).splitlines()[0]
                raise UsageError(f"The personal state {state.key} does not fit {self.label}: {reason}") from error
        return self._person

    def _made_ready(self, state: PersonalState, source: DualPivotNetwork) -> Person:
        like = next(source.parameters())
        tensors = {name: own.to(like.device) for name, own in state.tensors.items()}
        text = tensors.pop("text")[None].to(like)
        with torch.inference_mode(False):
            network = copy.deepcopy(source, {id(source.cleaner): source.cleaner})
            _, unexpected = network.load_state_dict({name: own.to(like) for name, own in tensors.items()}, strict=False)
        if unexpected or not tensors.keys() >= {f"unet.{name}" for name in source.unet.state_dict()}:
            raise KeyError(f"it holds other tensors ({', '.join(unexpected[:3]) or 'too few'})")
        return Person(state.key, source, network, text)

    # Restoration -------------------------------------------------------------------------------

    def restore(self, batch: FaceBatch) -> Tensor:
        """Restores pictures of any size; each with the state of the person it shows, where persons are learnt.

        Raises:
            UsageError: The person on a picture was never learnt, or the state does not fit.
        """
        if self.settings["self_ensemble"]:
            return mean_over_mirror(self._restore_once, batch)
        return self._restore_once(batch)

    def _restore_once(self, batch: FaceBatch) -> Tensor:
        if not self.personalises:
            network = cast(DualPivotNetwork, self.network_for_inference())
            return self._restored(batch.lq, batch.seeds, network, self.text(1, ""))
        states = [self.personal_state(image_id) for image_id in batch.image_ids]
        restored = torch.empty_like(batch.lq)
        for key in dict.fromkeys(state.key for state in states):
            rows = [row for row, state in enumerate(states) if state.key == key]
            chosen = torch.tensor(rows, device=batch.lq.device)
            person = self._ready(states[rows[0]])
            seeds = [batch.seeds[row] for row in rows]
            restored[chosen] = self._restored(batch.lq[chosen], seeds, person.network, person.text).to(restored)
        return restored

    def _restored(self, given: Tensor, seeds: list[int], network: DualPivotNetwork, text: Tensor) -> Tensor:
        side, factor = cast(int, self.native_size), self.space.factor
        lq, padding = pad_to_multiple(given, factor * 2 ** (self.base.levels - 1), side)
        like = next(network.parameters())
        cleaned = tiled_decode(
            lambda own, _: network.clean(own.to(like.dtype)).float(), lq, Tiling(side, side // 2), factor=1
        )
        tiling = Tiling(side // factor, side // factor // 2, batch=int(self.settings["tiles_per_call"]))
        hint = tiled_encode(lambda picture, _: self.space.encode(picture), cleaned * 2 - 1, tiling, factor)
        latent = self._sampled(network, hint, seeds, text, tiling)
        restored = tiled_decode(lambda own, _: self.space.decode(own), latent, tiling, factor)
        restored = padding.cut(restored.add(1).div(2).clamp(0, 1))
        like_cleaned = padding.cut(cleaned)
        return colour_fix(
            restored, like_cleaned, self.settings["colour_fix"], levels=self.settings["colour_fix_levels"]
        )

    def _sampled(
        self, network: DualPivotNetwork, hint: Tensor, seeds: list[int], text: Tensor, tiling: Tiling
    ) -> Tensor:
        like, count = next(network.parameters()), len(hint)
        hint, none = hint.to(like.dtype), self.text(count, "").to(like)
        texts: dict[Branch, Tensor] = {"conditional": text.to(like).expand(count, -1, -1), "unconditional": none}
        scale = float(self.settings["control_scale"])
        kept: dict[Any, tuple[Tensor, Tensor, Tensor]] = {}

        def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
            if call.layout not in kept:
                own = call.by_branch(texts)
                seen = call.by_window(lambda window: window.crop(hint))
                kept[call.layout] = own, seen, none[:1].expand(len(seen), -1, -1)
            own, seen, control_text = kept[call.layout]
            return network(latent, timestep, own, seen, control_text, scale)

        return self.sampler.sample(
            predict,
            [derive_seed(seed, "diffusion noise") for seed in seeds],
            shape=hint.shape[1:],
            tiling=tiling,
            branches_agree=not self.personalises,
            device=hint.device,
            dtype=like.dtype,
        )

    # Weights -----------------------------------------------------------------------------------

    def load_weights_state(self, state: dict[str, Tensor]) -> None:
        """See `LatentDiffusionMethod.load_weights_state`.

        Raises:
            UsageError: They are those of an earlier stage, which look at no picture, or do not fit.
        """
        super().load_weights_state(state)
        if not self.network.controls:
            raise UsageError(
                "These are weights of an earlier stage, whose ControlNet was never trained. Train stage control from "
                "them: bench train method=dual_pivot method.training.start_from=FILE."
            )

    # Timing ------------------------------------------------------------------------------------

    def prepare_for_timing(self, random_weights: bool) -> list[str]:
        """For `bench perf`: replaces what is absent by random networks, and returns what, in words."""
        from methods.dual_pivot.timing import prepare_for_timing

        return prepare_for_timing(self, random_weights)

    # Training of the base model -------------------------------------------------------------------

    @property
    def _stage(self) -> str:
        return str(self.settings["training"]["stage"])

    def begin_training(self) -> None:
        """Reads Stable Diffusion's UNet or an earlier stage, and freezes what this stage leaves alone.

        Raises:
            MissingError: Weights are absent.
            UsageError: The weights given are of another network.
        """
        training = self.settings["training"]
        self.freeze_unchanged()
        if training["start_from"]:
            read_earlier_weights(self.network, training["start_from"], ("unet", "cleaner", "controlnet"))
        elif self.base.hub_ids:
            loaded = load_base(self.base, self.settings["autoencoder"], ("unet",))["unet"]
            self.network.unet.load_state_dict(loaded.state_dict())
        if self._stage == "control" and not self.network.controls:
            self.network.begin_control()

    @property
    def cleaner_digest(self) -> str:
        """Names the cleaner's weights."""
        parts = [tensor.detach().cpu().float().numpy().tobytes() for tensor in self.base_network.cleaner.parameters()]
        return sha256_bytes(b"".join(parts))[:16]

    def sample_identity(self) -> dict[str, Any]:
        """See `LatentDiffusionMethod.sample_identity`."""
        found = super().sample_identity() | {"stage": self._stage}
        if self._stage == "control":
            found["cleaner"] = self.cleaner_digest
        return found

    def training_stream(self, pairs: TrainingPairs) -> IterableDataset[Any]:
        """See `LatentDiffusionMethod.training_stream`; the data set's card says what people are called."""
        self._class_word = load_card(pairs.data.card).class_word
        return super().training_stream(pairs)

    def encoded(self, batch: FaceBatch) -> dict[str, Tensor]:
        """What a step reads: pictures (`cleaner`), latents and numbers of classes (`prior`), latents of both."""
        batch = batch.to(self.device)
        assert batch.gt is not None
        if self._stage == "cleaner":
            return {"gt": batch.gt, "lq": batch.lq}
        if self._stage == "prior":
            words = [self._class_word(identity) if self._class_word else "" for identity in batch.identities]
            numbers = torch.tensor([class_number(word) for word in words], dtype=torch.float32)
            with torch.no_grad():
                return {"latent": self.space.encode(batch.gt * 2 - 1), "class": numbers.to(self.device)}
        return self._latents(batch)

    def _latents(self, batch: FaceBatch) -> dict[str, Tensor]:
        """Latents of ground truth and of cleaned LQ pictures, (B, C, h, w)."""
        batch = batch.to(self.device)
        assert batch.gt is not None
        with torch.no_grad():
            cleaned = self.base_network.clean(batch.lq)
            latents = self.space.encode(torch.cat([batch.gt, cleaned]) * 2 - 1)
        return {"latent": latents[: len(batch)], "hint": latents[len(batch) :]}

    def training_step(self, batch: LatentBatch | FaceBatch, batch_idx: int) -> Tensor:
        """See `LatentDiffusionMethod.training_step`; the cleaner learns to give the ground truth, by squared error."""
        if self._stage != "cleaner":
            return super().training_step(batch, batch_idx)
        self._batch_pictures = len(batch)
        tensors = self.encoded(batch) if isinstance(batch, FaceBatch) else batch.tensors
        self.set_learning_rate()
        loss = F.mse_loss(self.network.cleaner(tensors["lq"]), tensors["gt"])
        self.require_finite(loss)
        self.log("train/total", loss.detach(), prog_bar=True)
        return loss

    def training_loss(self, tensors: dict[str, Tensor], noised: NoisyLatents, generator: torch.Generator) -> Tensor:
        """The squared error of the prediction: of the UNet alone, or steered by the ControlNet (DiffBIR, Eq. 2)."""
        count, hint = len(noised.latent), None
        text = self.text(count, "").to(noised.latent)
        if self._stage == "prior":
            without = torch.rand(count, generator=generator) < self.settings["dropout"]["caption"]
            numbers = torch.where(without, 0, tensors["class"].long().cpu())
            text = torch.cat([self.text(1, class_prompt(CLASS_WORDS[number])) for number in numbers]).to(text)
        else:
            hint = tensors["hint"]
        predicted = self.network(noised.noisy, noised.timestep, text, hint)
        return F.mse_loss(predicted.float(), noised.target.float())


def _learning_version() -> dict[str, str]:
    return {} if LEARNING_VERSION == 1 else {"learning": str(LEARNING_VERSION)}


method_class = DualPivot
