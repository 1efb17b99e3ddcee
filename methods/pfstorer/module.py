"""PFStorer as a Lightning module: trains the Base Model, learns persons, and restores them."""

from __future__ import annotations

import copy
import functools
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.batch import FaceBatch
from bench.config import read_preset
from bench.degradation.pipeline import DegradationPipeline
from bench.errors import UsageError, unknown_name
from bench.files import sha256_bytes
from bench.method import MethodSpec
from bench.seeds import derive_seed
from methods.blocks.absent_parts import absent_base_parts
from methods.blocks.base_models import base_model
from methods.blocks.colour_fix import colour_fix
from methods.blocks.diffusion_objective import NoisyLatents
from methods.blocks.earlier_weights import read_earlier_weights
from methods.blocks.latent_diffusion import load_base
from methods.blocks.latent_diffusion_method import LatentDiffusionMethod, require_betas, require_number
from methods.blocks.personal_samples import PersonalSamples
from methods.blocks.sampling import ModelCall
from methods.blocks.self_ensemble import mean_over_mirror
from methods.blocks.tiling import Tiling, Window, pad_to_multiple, tiled_decode, tiled_encode
from methods.pfstorer.learnt_text import new_text
from methods.pfstorer.network import Personalised, PersonalParts, PFStorerNetwork, ReferenceTokens
from methods.pfstorer.personal_training import PersonalTraining
from methods.pfstorer.personalisation_block import Form, LearntText

if TYPE_CHECKING:
    from bench.personal_state import PersonalState
    from methods.pfstorer.timing import PlainPersonalTraining

#: What a personal state's form depends on; `references` is asked when restoring.
BLOCK_SETTINGS = ("tunes", "form", "feed_forward", "gamma", "sites", "mask")
TUNES = ("blocks", "unet", "nothing")
REFERENCES = ("first", "all")
NORMS = ("squared", "printed")
NULL_LQ = ("zeros", "grey")
#: What RestorerID has beyond StableSR's network: a training may start from its weights.
RESTORERID_OWN = ("adapted.adapters.identity.", "adapted.adapters.fir.", "projection.")
#: lambda_gen of the paper's experiments.
GENERATIVE = 0.1
#: Persons whose blocks are kept ready.
READY = 8
#: Steps of a sampling whose reference tokens are kept; those of a long one would be gigabytes.
KEPT_STEPS = 8
#: Of the learning: another number wherever the same settings give something else. States and rows of 1 name none.
LEARNING_VERSION = 1


@dataclass(frozen=True)
class Person:
    """A personal state, ready for the network.

    Attributes:
        network: The network that restores the person: the method's own, or a tuned copy.
        parts: Blocks; None where the network itself was tuned.
        references: Latents that the blocks look at, (R, C, h, w).
        text: The learnt text; None where the blocks read none.
        tokens: The references' tokens by timestep, as they are made.
    """

    network: PFStorerNetwork
    parts: PersonalParts | None
    references: Tensor | None
    text: LearntText | None
    tokens: dict[float, dict[str, Tensor]]


class PFStorer(LatentDiffusionMethod):
    """PFStorer (Varanka et al., CVPR 2024).

    A StableSR model fine-tuned on faces, the Base Model, restores; blocks in its decoder, learnt for one person from a
    few references, personalise it (Eq. 3) and leave the Base Model as it is.

    Args:
        settings: The composed `configs/method/pfstorer.yaml` with one of its sizes merged in.
    """

    spec = MethodSpec(
        name="pfstorer",
        title="PFStorer",
        references="several",
        tuning="per_identity",
        paper="Varanka et al., PFStorer: Personalized Face Restoration and Super-Resolution, CVPR 2024",
        licence="Apache-2.0 (this implementation); no weights were published",
        variants={
            "+base": ("method.personalisation.tunes=nothing",),
            "+dreambooth": ("method.personalisation.tunes=unet",),
            "+vico": ("method.personalisation.gamma=false",),
        },
        numbered_variants={"+gen": "method.personalisation.generative"},
        without_reference="+base",
    )
    not_in_revision: ClassVar[tuple[str, ...]] = (*LatentDiffusionMethod.not_in_revision, "tiles_per_call")
    any_size = True
    network: PFStorerNetwork

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        _require_mappings(settings)
        own = settings["personalisation"]
        for key, known in (
            ("tunes", TUNES),
            ("references", REFERENCES),
            ("norm", NORMS),
            ("null_lq", NULL_LQ),
            ("form", get_args(Form)),
        ):
            if own[key] not in known:
                raise unknown_name(f"value of method.personalisation.{key}", str(own[key]), known)
        self.network.sites(own["sites"])
        last = self.sampler.settings.train_timesteps - 1
        for key, least in (("iterations", 1), ("batch_size", 1), ("samples", 0), ("feed_forward", 1)):
            require_number(f"personalisation.{key}", own[key], least, whole=True)
        require_number("personalisation.least_timestep", own["least_timestep"], 0, last, whole=True)
        for key in ("generative", "attention", "weight_decay"):
            require_number(f"personalisation.{key}", own[key], 0)
        for key, rate in own["learning_rates"].items():
            require_number(f"personalisation.learning_rates.{key}", rate, 0)
        require_number("personalisation.schedule.warm_up", own["schedule"]["warm_up"], 0, whole=True)
        require_number("personalisation.schedule.decay_after", own["schedule"]["decay_after"], 0, 1)
        require_betas("personalisation", own["betas"])
        require_number("tiles_per_call", settings["tiles_per_call"], 1, whole=True)
        if not isinstance(own["degradation"], str):
            raise UsageError(
                f"method.personalisation.degradation must be the name of a preset, got {own['degradation']!r}."
            )
        for key in ("gamma", "mask", "flip"):
            if not isinstance(own[key], bool):
                raise UsageError(f"method.personalisation.{key} must be true or false, got {own[key]!r}.")
        self._ready: OrderedDict[str, Person] = OrderedDict()

    def build_network(self) -> PFStorerNetwork:
        """See `LatentDiffusionMethod.build_network`."""
        return PFStorerNetwork(self.base, self.settings["network"])

    @classmethod
    def absent(cls, settings: dict[str, Any]) -> dict[str, str]:
        """See `RestorationMethod.absent`."""
        return absent_base_parts(base_model(settings["base"]), settings["autoencoder"], [""])

    @property
    def label(self) -> str:
        """Name of the row, with what a comparison changes: `pfstorer+base@demo`."""
        own = self.settings["personalisation"]
        changed = {"nothing": ["base"], "unet": ["dreambooth"], "blocks": [] if own["gamma"] else ["vico"]}[
            own["tunes"]
        ]
        if self.personalises and own["generative"] != GENERATIVE:
            changed = [*changed, f"gen{own['generative']:g}"]
        return "+".join([self.spec.name, *changed]) + f"@{self.size}"

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
            "blocks": {key: own[key] for key in BLOCK_SETTINGS},
        }

    def personal_settings(self) -> dict[str, Any]:
        """See `RestorationMethod.personal_settings`."""
        left_out = (*BLOCK_SETTINGS, "references")
        own = {key: value for key, value in self.settings["personalisation"].items() if key not in left_out}
        return own | {"degradation": self.degradation.specification()} | _learning_version()

    def personal_iterations(self) -> int:
        """See `RestorationMethod.personal_iterations`."""
        return int(self.settings["personalisation"]["iterations"])

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

    @property
    def frozen_network(self) -> PFStorerNetwork:
        """The Base Model; nothing of a person is in it."""
        return cast(PFStorerNetwork, self.trained_network)

    def new_parts(self) -> PersonalParts:
        """New blocks, which change nothing yet."""
        own = self.settings["personalisation"]
        network = self.frozen_network
        sites, gamma, width = network.sites(own["sites"]), bool(own["gamma"]), int(own["feed_forward"])
        return PersonalParts(network, sites, own["form"], gamma, width, self.base.text_width)

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

        The tensors, in float16: `parts.*` and `text.*` of what was learnt and `references`, their latents; or `unet.*`,
        a tuned UNet (method.personalisation.tunes=unet).
        """
        with torch.inference_mode(False):
            training = self.personal_training(references, seed)
            if unfinished is not None:
                training.go_on(unfinished)
            training.run(keep, advance)
            return training.result()

    def personal_training(self, references: Tensor, seed: int) -> PersonalTraining:
        """The learning of a person, before its first iteration; arguments as of `personalise`."""
        own, side = self.settings["personalisation"], cast(int, self.native_size)
        with torch.inference_mode(False):
            pictures = references.clone().to(self.device)
            if pictures.shape[-2:] != (side, side):
                resized = F.interpolate(pictures, (side, side), mode="bicubic", align_corners=False, antialias=True)
                pictures = resized.clamp(0, 1)
            fresh = not own["samples"]
            count = int(own["samples"]) or int(own["iterations"]) * int(own["batch_size"])
            samples = PersonalSamples(
                pictures, count, seed, self.degradation, self.space, bool(own["flip"]), forget=fresh
            )
            # Restoring lays the network out anew, and in another layout the last bits are others.
            self.frozen_network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            self.inference_network.forget()
            text = None
            if own["tunes"] == "blocks" and own["form"] != "vico":
                text = new_text(self.base, self.settings["autoencoder"])
            return PersonalTraining(self, samples, text, seed)

    def null_lq(self, like: Tensor) -> Tensor:
        """The empty set of Eq. 4 for LQ latents (B, C, h, w): zeros, or the latent of mid-grey."""
        if self.settings["personalisation"]["null_lq"] == "zeros":
            return torch.zeros_like(like)
        if "grey" not in self.frozen:
            side = cast(int, self.native_size)
            with torch.inference_mode(False), torch.no_grad():
                self.frozen["grey"] = self.space.encode(torch.zeros(1, 3, side, side, device=self.device)).clone()
        grey: Tensor = self.frozen["grey"]
        return grey.to(like).expand_as(like)

    def reference_tokens(self, network: PFStorerNetwork, latents: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        """Tokens of clean references at every site with a block: F_ref of Eq. 3.

        Args:
            network: The network; what it holds is frozen.
            latents: (B, C, h, w).
            timestep: (B,).

        Returns:
            (B, M, channels) by site.
        """
        sites = network.sites(self.settings["personalisation"]["sites"])
        latents = latents.to(next(network.parameters()))
        text = self.text(len(latents), "").to(latents)
        with torch.no_grad():
            # A reference has no LQ of its own: its own latent stands in for it.
            maps = network.lq_maps(latents, timestep)
            return ReferenceTokens(sites).read(lambda visitor: network(latents, timestep, text, maps, visitor))

    def _person(self, state: PersonalState) -> Person:
        """A state made ready, once for all its pictures."""
        network = cast(PFStorerNetwork, self.network_for_inference())
        person = self._ready.get(state.key)
        if person is not None and (person.parts is None or person.network is network):
            self._ready.move_to_end(state.key)
            return person
        try:
            person = self._made_ready(state, network)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"The personal state {state.key} does not fit {self.label}: {reason}") from error
        self._ready[state.key] = person
        while len(self._ready) > (READY if person.parts is not None else 1):
            self._ready.popitem(last=False)
        return person

    def _made_ready(self, state: PersonalState, network: PFStorerNetwork) -> Person:
        like = next(network.parameters())
        tensors = {name: own.to(like.device) for name, own in state.tensors.items()}
        if self.settings["personalisation"]["tunes"] == "unet":
            with torch.inference_mode(False):
                tuned = copy.deepcopy(network)
                unet = {name.removeprefix("unet."): own for name, own in tensors.items() if name.startswith("unet.")}
                tuned.adapted.unet.load_state_dict(unet)
            return Person(tuned, None, None, None, {})
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            parts = self.new_parts().to(like.device)
            own = {name.removeprefix("parts."): own for name, own in tensors.items() if name.startswith("parts.")}
            parts.load_state_dict({name: value.float() for name, value in own.items()})
            parts.to(like.dtype).requires_grad_(False).eval()
        text = None
        if "text.tokens" in tensors:
            text = LearntText(tensors["text.tokens"][None].to(like), tensors["text.placeholder"], tensors["text.end"])
        references = tensors["references"].to(like)
        if self.settings["personalisation"]["references"] == "first":
            references = references[:1]
        return Person(network, parts, references, text, {})

    def _visitor(self, person: Person, timestep: float) -> Personalised | None:
        """What stands at the sites at a timestep."""
        if person.parts is None or person.references is None:
            return None
        if timestep not in person.tokens:
            if self.sampler.settings.steps > KEPT_STEPS:
                person.tokens.clear()
            steps = torch.full((len(person.references),), timestep, device=person.references.device)
            found = self.reference_tokens(person.network, person.references, steps)
            # The tokens of several references are attended to as those of one.
            person.tokens[timestep] = {site: own.flatten(0, 1)[None] for site, own in found.items()}
        own = self.settings["personalisation"]
        return Personalised(person.parts.by_site(), person.tokens[timestep], person.text, bool(own["mask"]))

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
            return self._restore_person(batch, None)
        states = [self.personal_state(image_id) for image_id in batch.image_ids]
        restored = torch.empty_like(batch.lq)
        for key in dict.fromkeys(state.key for state in states):
            rows = [row for row, state in enumerate(states) if state.key == key]
            chosen = torch.tensor(rows, device=batch.lq.device)
            one = replace(
                batch,
                lq=batch.lq[chosen],
                references=batch.references[chosen],
                reference_mask=batch.reference_mask[chosen],
                image_ids=[batch.image_ids[row] for row in rows],
                identities=[batch.identities[row] for row in rows],
                seeds=[batch.seeds[row] for row in rows],
            )
            restored[chosen] = self._restore_person(one, self._person(states[rows[0]])).to(restored)
        return restored

    def _restore_person(self, batch: FaceBatch, person: Person | None) -> Tensor:
        network = person.network if person is not None else cast(PFStorerNetwork, self.network_for_inference())
        side, factor = cast(int, self.native_size), self.space.factor
        lq, padding = pad_to_multiple(batch.lq, factor * 2 ** (self.base.levels - 1), side)
        tile = side // factor
        tiling = Tiling(tile, tile // 2, batch=int(self.settings["tiles_per_call"]))
        lq_latent = tiled_encode(lambda picture, _: self.space.encode(picture), lq * 2 - 1, tiling, factor)
        latent = self._sampled(network, lq_latent, batch.seeds, person, tiling)
        restored = tiled_decode(lambda own, _: self.space.decode(own), latent, tiling, factor)
        restored = padding.cut(restored.add(1).div(2).clamp(0, 1))
        return colour_fix(restored, batch.lq, self.settings["colour_fix"], levels=self.settings["colour_fix_levels"])

    def _sampled(
        self, network: PFStorerNetwork, lq_latent: Tensor, seeds: list[int], person: Person | None, tiling: Tiling
    ) -> Tensor:
        dtype = next(network.parameters()).dtype
        structure = lq_latent.to(dtype)

        def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
            windows: tuple[Window, ...] = call.windows
            maps = network.lq_maps(torch.cat([window.crop(structure) for window in windows]), timestep)
            visitor = None if person is None else self._visitor(person, float(timestep[0]))
            return network(latent, timestep, self.text(len(latent), "").to(latent), maps, visitor)

        return self.sampler.sample(
            predict,
            [derive_seed(seed, "diffusion noise") for seed in seeds],
            shape=lq_latent.shape[1:],
            lq_latent=lq_latent,
            tiling=tiling,
            branches_agree=True,
            device=self.device,
            dtype=dtype,
        )

    # Timing ------------------------------------------------------------------------------------

    def prepare_for_timing(self, random_weights: bool) -> list[str]:
        """For `bench perf`: replaces what is absent by random networks, and returns what, in words."""
        from methods.pfstorer.timing import prepare_for_timing

        return prepare_for_timing(self, random_weights)

    def plain_personalisation(self, references: Tensor, seed: int) -> PlainPersonalTraining:
        """The same learning without any saving, to time ours against; arguments as of `personalise`."""
        from methods.pfstorer.timing import PlainPersonalTraining

        return PlainPersonalTraining(self, references, seed)

    # Training of the Base Model ------------------------------------------------------------------

    def begin_training(self) -> None:
        """Starts from StableSR's weights, or from Stable Diffusion's UNet (Sec. 3.3).

        Raises:
            MissingError: They are absent.
            UsageError: They are of another network.
        """
        training = self.settings["training"]
        self.freeze_unchanged()
        if training["start_from"]:
            read_earlier_weights(self.network, training["start_from"], PFStorerNetwork.STAGES["base"], RESTORERID_OWN)
        elif self.base.hub_ids:
            loaded = load_base(self.base, self.settings["autoencoder"], ("unet",))["unet"]
            self.network.adapted.unet.load_state_dict(loaded.state_dict())

    def freeze_unchanged(self) -> None:
        """See `LatentDiffusionMethod.freeze_unchanged`: StableSR trains SFT and LQ encoder."""
        super().freeze_unchanged()
        if not self.settings["training"]["train_unet"]:
            self.network.adapted.unet.requires_grad_(False)

    def training_loss(self, tensors: dict[str, Tensor], noised: NoisyLatents, generator: torch.Generator) -> Tensor:
        """The squared error of the prediction (Eq. 2 without a reference)."""
        lq_latent = self.drop_lq(tensors["lq_latent"], generator)
        maps = self.network.lq_maps(lq_latent, noised.timestep)
        text = self.text(len(lq_latent), "").to(tensors["latent"])
        predicted = self.network(noised.noisy, noised.timestep, text, maps)
        return F.mse_loss(predicted.float(), noised.target.float())


def _require_mappings(settings: dict[str, Any]) -> None:
    own = settings["personalisation"]
    groups = {"personalisation": own}
    if isinstance(own, dict):
        groups |= {f"personalisation.{key}": own[key] for key in ("learning_rates", "schedule")}
    for key, group in groups.items():
        if not isinstance(group, dict):
            raise UsageError(f"method.{key} holds settings of its own, such as method.{key}.KEY=VALUE; got {group!r}.")


def _learning_version() -> dict[str, str]:
    return {} if LEARNING_VERSION == 1 else {"learning": str(LEARNING_VERSION)}


method_class = PFStorer
