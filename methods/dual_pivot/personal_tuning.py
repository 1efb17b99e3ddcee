"""How Dual-Pivot Tuning learns a person: the textual pivot, then the model pivot (Chari et al., arXiv 2312.17234)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.errors import UsageError
from bench.personal_state import UnfinishedError
from bench.seeds import derive_seed
from methods.blocks.diffusion_objective import NoisyLatents, add_noise
from methods.blocks.learning_rate import learning_rate
from methods.blocks.optimisers import copied, load_optimiser_tensors, optimiser_tensors
from methods.blocks.personal_samples import PersonalSamples
from methods.blocks.sampling import ModelCall, Sampler, sampling_preset
from methods.blocks.tensor_cache import cached_tensors
from methods.dual_pivot.network import DualPivotNetwork
from methods.dual_pivot.prompts import CLASS_WORDS, class_prompt, known_word
from methods.dual_pivot.released_order import first_tensors

if TYPE_CHECKING:
    from methods.dual_pivot.module import DualPivot

Keep = Callable[[dict[str, Tensor]], None]
#: After how many iterations what a stopped tuning needs is written down: a UNet is gigabytes.
KEEP_EVERY = 100
#: Latents of class pictures that are sampled in one call.
TOGETHER = 16


@dataclass(frozen=True)
class Pivot:
    """One of the two tunings.

    Attributes:
        name: `textual` or `model`, also the name of its settings.
        parameters: What it moves, by name in the network.
    """

    name: str
    parameters: dict[str, torch.nn.Parameter]


@dataclass(frozen=True)
class Told:
    """What the denoiser is told of some latents.

    Attributes:
        noised: The latents with noise.
        text: Tokens of their text, (1, T, width) for all or (B, T, width).
        hint: Latents of their cleaned LQ pictures; None leaves the ControlNet out.
    """

    noised: NoisyLatents
    text: Tensor
    hint: Tensor | None


class PersonalTuning:
    """One person's tuning.

    Everything that an iteration draws comes from the seed and the iteration's number, so that a tuning which goes on
    from `unfinished` ends with the bits of one that was never stopped. The textual pivot moves the UNet alone, the
    model pivot the ControlNet alone, or its first tensors: whatever else there is keeps every bit.

    Args:
        method: The method; it stays as it is.
        pictures: References, (R, 3, S, S) RGB in [0, 1] at the native size, where the method is.
        seed: Of the person.
        class_word: What the person is called: `man`, `woman`, `person`.
    """

    def __init__(self, method: DualPivot, pictures: Tensor, seed: int, class_word: str) -> None:
        self.options: dict[str, Any] = method.settings["personalisation"]
        self.method, self.pictures, self.seed = method, pictures, seed
        self.class_word = class_word if method.base.text is not None else known_word(class_word)
        base = method.base_network
        self.network: DualPivotNetwork = copy.deepcopy(base, {id(base.cleaner): base.cleaner})
        self.text = method.text(1, method.personal_text(self.class_word)).clone()
        named = dict(self.network.named_parameters())
        self.pivots = [Pivot("textual", {name: own for name, own in named.items() if name.startswith("unet.")})]
        if self.options["tunes"] == "both":
            count = self.options["model"]["tensors"]
            chosen = [f"controlnet.{name}" for name in first_tensors(self.network.controlnet, count)]
            self.pivots.append(Pivot("model", {name: named[name] for name in chosen}))
        self.position = 0
        self.iteration = 0
        self._samples: dict[str, PersonalSamples] = {}
        self._begin()

    @property
    def pivot(self) -> Pivot:
        """The tuning that is under way."""
        return self.pivots[self.position]

    @property
    def own(self) -> dict[str, Any]:
        """Its settings."""
        found: dict[str, Any] = self.options[self.pivot.name]
        return found

    def _begin(self) -> None:
        """Frees what the pivot moves, and nothing else; gradients of the one before go."""
        self.network.zero_grad(set_to_none=True)
        self.network.requires_grad_(False)
        for parameter in self.pivot.parameters.values():
            parameter.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(
            list(self.pivot.parameters.values()),
            lr=float(self.own["learning_rate"]),
            betas=tuple(self.options["betas"]),
            weight_decay=float(self.options["weight_decay"]),
        )

    # Going on ----------------------------------------------------------------------------------

    def unfinished(self) -> dict[str, Tensor]:
        """All that going on needs, on the CPU."""
        found = {"pivot": torch.tensor(self.position), "iteration": torch.tensor(self.iteration)}
        for pivot in self.pivots[: self.position + 1]:
            found |= {f"network.{name}": copied(value) for name, value in pivot.parameters.items()}
        return found | optimiser_tensors(self.optimiser)

    def go_on(self, unfinished: Mapping[str, Tensor]) -> None:
        """Goes on from what `unfinished` gave.

        Raises:
            UnfinishedError: It is of another tuning.
        """
        try:
            self.position = int(unfinished["pivot"])
            self._begin()
            with torch.no_grad():
                for pivot in self.pivots[: self.position + 1]:
                    for name, parameter in pivot.parameters.items():
                        parameter.copy_(unfinished[f"network.{name}"])
            load_optimiser_tensors(self.optimiser, unfinished)
            self.iteration = int(unfinished["iteration"])
        except (RuntimeError, KeyError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise UnfinishedError(f"This is no unfinished tuning of these settings: {reason}") from error

    # Tuning ------------------------------------------------------------------------------------

    def run(self, keep: Keep | None = None, advance: Callable[[int, bool], None] | None = None) -> None:
        """Tunes to the end.

        Args:
            keep: Takes what going on needs, see `KEEP_EVERY`.
            advance: See `RestorationMethod.personalise`.
        """
        done = self.iteration + sum(int(self.options[one.name]["iterations"]) for one in self.pivots[: self.position])
        if advance is not None and done:
            advance(done, True)
        with torch.inference_mode(False), torch.enable_grad():
            while not self.finished:
                self.step()
                done += 1
                if keep is not None and done % KEEP_EVERY == 0 and not self.finished:
                    keep(self.unfinished())
                if advance is not None:
                    advance(1, False)

    @property
    def finished(self) -> bool:
        """Whether both pivots are done."""
        return self.position == len(self.pivots) - 1 and self.iteration == int(self.own["iterations"])

    def step(self) -> Tensor:
        """One iteration; returns the loss. The first one after a pivot's last begins the next pivot."""
        if self.iteration == int(self.own["iterations"]):
            self.position, self.iteration = self.position + 1, 0
            self._begin()
        rate = learning_rate(
            {**self.options["schedule"], "learning_rate": self.own["learning_rate"]},
            self.iteration,
            int(self.own["iterations"]),
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        parts = int(self.own["accumulate"])
        total = torch.zeros((), device=self.pictures.device)
        for part in range(parts):
            loss = self.loss(self.iteration * parts + part) / parts
            if not torch.isfinite(loss):
                raise UsageError(
                    f"The loss of the {self.pivot.name} pivot became {loss.item()} at iteration {self.iteration}. "
                    f"Lower method.personalisation.{self.pivot.name}.learning_rate."
                )
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.optimiser.step()
        self.iteration += 1
        return total

    def loss(self, number: int) -> Tensor:
        """The squared error of what the denoiser predicts for one batch of a pivot.

        Args:
            number: Of the batch within the pivot.
        """
        name = self.pivot.name
        generator = torch.Generator().manual_seed(derive_seed(self.seed, name, "iteration", number) % 2**63)
        if name == "model":
            return self._model_loss(number, generator)
        in_context = self.own["where"] == "in_context"
        latent, hint = self._personal(number, with_hint=in_context)
        told = [Told(self._noised(latent, generator), self.text, hint)]
        weight = float(self.own["prior"])
        if weight:
            told.append(self._generic(number, generator) if in_context else self._of_class(len(latent), generator))
        errors = self._errors(told)
        return errors[0] + weight * errors[1] if weight else errors[0]

    def _model_loss(self, number: int, generator: torch.Generator) -> Tensor:
        if self.own["faces"] == "personal":
            latent, hint = self._personal(number, with_hint=True)
            return self._errors([Told(self._noised(latent, generator), self.text, hint)])[0]
        told = self._generic(number, generator)
        if (text := self.own["text"]) != "class":
            told = replace(told, text=self.text if text == "personal" else self.method.text(1, ""))
        return self._errors([told])[0]

    def _errors(self, told: Sequence[Told]) -> list[Tensor]:
        """The squared error of each part of a batch; the denoiser is called once for all."""
        counts = [len(one.noised.latent) for one in told]
        text = torch.cat([one.text.expand(count, -1, -1) for one, count in zip(told, counts, strict=True)])
        hints = [one.hint for one in told if one.hint is not None]
        noisy = torch.cat([one.noised.noisy for one in told])
        timestep = torch.cat([one.noised.timestep for one in told])
        none = self.method.text(len(noisy), "")
        predicted = self.network(noisy, timestep, text, torch.cat(hints) if hints else None, none).float()
        parts = zip(predicted.split(counts), told, strict=True)
        return [F.mse_loss(own, one.noised.target.float()) for own, one in parts]

    def _noised(self, latent: Tensor, generator: torch.Generator) -> NoisyLatents:
        sampler = self.method.sampler
        among = sampler.call_timesteps if self.options["timesteps"] == "sampling" else ()
        return add_noise(latent, sampler.alphas_cumprod, sampler.settings.prediction, generator, among=among)

    # What is learnt from -----------------------------------------------------------------------

    def _rows(self, number: int, count: int) -> Tensor:
        """Samples of a batch, of those that are used again: each pass in an order of its own."""
        size, rows = int(self.own["batch_size"]), []
        for position in range(number * size, (number + 1) * size):
            turn, place = divmod(position, count)
            seed = derive_seed(self.seed, self.pivot.name, "order of samples", turn) % 2**63
            rows.append(int(torch.randperm(count, generator=torch.Generator().manual_seed(seed))[place]))
        return torch.tensor(rows)

    def _personal(self, number: int, with_hint: bool) -> tuple[Tensor, Tensor | None]:
        """Latents of references, and of their cleaned LQ pictures."""
        method, size = self.method, int(self.own["batch_size"])
        again = int(self.own["samples"])
        if self.pivot.name not in self._samples:
            count = again or int(self.own["iterations"]) * int(self.own["accumulate"]) * size
            self._samples[self.pivot.name] = PersonalSamples(
                self.pictures, count, derive_seed(self.seed, self.pivot.name), method.degradation, method.space,
                flip=bool(self.options["flip"]), forget=not again, clean=self.network.clean,
                degrade=with_hint,
            )  # fmt: skip
        rows = self._rows(number, again) if again else torch.arange(number * size, (number + 1) * size)
        latent, hint = self._samples[self.pivot.name].latents(rows)
        return latent, hint if with_hint else None

    def _generic(self, number: int, generator: torch.Generator) -> Told:
        """Other people's faces with their LQ pictures, each under the word of its own class."""
        samples = self.method.generic_samples()
        rows = self._rows(number, len(samples["latent"]))
        latent, hint = (samples[key][rows].float().to(self.pictures.device) for key in ("latent", "hint"))
        words = [CLASS_WORDS[int(place)] for place in samples["class"][rows]]
        text = torch.cat([self.method.text(1, class_prompt(word)) for word in words])
        return Told(self._noised(latent, generator), text, hint)

    def _of_class(self, count: int, generator: torch.Generator) -> Told:
        """Pictures of the person's class, without any LQ picture."""
        chosen = torch.randint(len(self.class_latents), (count,), generator=generator)
        kept = self.class_latents[chosen].to(self.pictures.device)
        return Told(self._noised(kept, generator), self.method.text(1, class_prompt(self.class_word)), None)

    @property
    def class_latents(self) -> Tensor:
        """Pictures of the class as the untuned denoiser draws them (DreamBooth's prior preservation), (N, C, h, w)."""
        key = f"class {self.class_word}"
        if key not in self.method.frozen:
            self.method.frozen[key] = self._kept_class()
        latents: Tensor = self.method.frozen[key]
        return latents

    def _kept_class(self) -> Tensor:
        """What was sampled for an earlier person; nothing is kept for weights that are no file."""
        if (weights := self.method.weights_sha256) is None:
            return self._sampled_class()
        content = {
            "weights": weights,
            "sampling": self.own["class_sampling"],
            "count": self.own["class_pictures"],
            "word": self.class_word,
            "size": self.pictures.shape[-1],
        }
        return cached_tensors("class_pictures", content, lambda: {"latent": self._sampled_class()})["latent"]

    def _sampled_class(self) -> Tensor:
        method, base = self.method, self.method.base_network
        options = {key: value for key, value in self.own["class_sampling"].items() if value is not None}
        sampler = Sampler(sampling_preset(options.pop("preset"), prediction=method.base.prediction, **options))
        count, side = int(self.own["class_pictures"]), self.pictures.shape[-1] // method.space.factor
        seeds = [derive_seed("class picture", self.class_word, number) for number in range(count)]
        text, none = method.text(1, class_prompt(self.class_word)), method.text(1, "")

        def predict(latent: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
            texts = {
                "conditional": text.expand(call.images, -1, -1),
                "unconditional": none.expand(call.images, -1, -1),
            }
            return base(latent, timestep, call.by_branch(texts))  # type: ignore[arg-type, no-any-return]

        parts = [
            sampler.sample(
                predict, seeds[first : first + TOGETHER], shape=(method.space.channels, side, side),
                device=self.pictures.device,
            )
            for first in range(0, count, TOGETHER)
        ]  # fmt: skip
        return torch.cat(parts)

    # The result --------------------------------------------------------------------------------

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """What restoration reads: see `DualPivot.personalise`."""
        kind = torch.float16
        found = {f"unet.{name}": value.to("cpu", kind) for name, value in self.network.unet.state_dict().items()}
        for pivot in self.pivots[1:]:
            found |= {name: value.detach().to("cpu", kind) for name, value in pivot.parameters.items()}
        return found | {"text": self.text[0].to("cpu", kind)}
