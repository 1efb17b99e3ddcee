"""How PFStorer learns a person (Varanka et al., CVPR 2024, Sec. 3.2, Eqs. 2-5)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UsageError
from bench.personal_state import UnfinishedError
from bench.seeds import derive_seed
from methods.blocks.diffusion_objective import NoisyLatents, add_noise
from methods.blocks.frozen_encoder import EncoderFeatures, FrozenEncoder
from methods.blocks.learning_rate import learning_rate
from methods.blocks.optimisers import copied, load_optimiser_tensors, optimiser_tensors
from methods.blocks.personal_samples import PersonalSamples
from methods.pfstorer.network import Personalised, PersonalParts, PFStorerNetwork
from methods.pfstorer.personalisation_block import attention_regulariser

if TYPE_CHECKING:
    from methods.blocks.adapted_unet import Maps
    from methods.pfstorer.learnt_text import DemoText, EncodedText
    from methods.pfstorer.module import PFStorer

Keep = Callable[[dict[str, Tensor]], None]
#: Samples whose encoder features are made in one call.
TOGETHER = 8
#: After how many iterations what a stopped learning needs is written down, by what is tuned: a UNet is gigabytes.
KEEP_EVERY = {"blocks": 25, "unet": 100}


class PersonalTraining:
    """One person's learning.

    Everything that an iteration draws comes from the seed and the iteration's number, so that a learning which goes on
    from `unfinished` ends with the bits of one that was never stopped.

    Args:
        method: The method; it stays as it is.
        samples: What is learnt from.
        text: The text whose word is learnt; None where nothing of it is.
        seed: Of the person.
    """

    def __init__(
        self, method: PFStorer, samples: PersonalSamples, text: DemoText | EncodedText | None, seed: int
    ) -> None:
        self.options: dict[str, Any] = method.settings["personalisation"]
        self.method, self.samples, self.seed = method, samples, seed
        self.iteration = 0
        self.network: PFStorerNetwork = method.frozen_network
        self.parts: PersonalParts | None = None
        self.text = text
        rates = self.options["learning_rates"]
        if self.options["tunes"] == "unet":
            self.network = copy.deepcopy(self.network)
            self.network.adapted.unet.requires_grad_(True)
            groups = [(list(self.network.adapted.unet.parameters()), rates["unet"])]
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(seed, "initial blocks") % 2**32)
                self.parts = method.new_parts()
            gammas = [value for name, value in self.parts.named_parameters() if name.endswith("gamma")]
            others = [value for name, value in self.parts.named_parameters() if not name.endswith("gamma")]
            groups = [(others, rates["blocks"])] + ([(gammas, rates["gamma"])] if gammas else [])
            if text is not None:
                groups.append((list(text.parameters()), rates["text"]))
        self.modules: dict[str, nn.Module] = {
            name: module
            for name, module in (("parts", self.parts), ("text", text), ("unet", self._own_unet))
            if module is not None
        }
        for module in self.modules.values():
            module.to(method.device).requires_grad_(True)
        betas, decay = self.options["betas"], self.options["weight_decay"]
        self.optimiser = torch.optim.AdamW(
            [{"params": parameters, "lr": rate, "height": rate} for parameters, rate in groups],
            betas=tuple(betas),
            weight_decay=decay,
        )
        self._encoder = FrozenEncoder(self.network.adapted) if self.options["tunes"] != "unet" else None
        self._kept: dict[int, tuple[EncoderFeatures, Maps]] = {}
        self._kept_tokens: dict[int, dict[str, Tensor]] = {}

    @property
    def _own_unet(self) -> nn.Module | None:
        return self.network.adapted.unet if self.options["tunes"] == "unet" else None

    # Going on ----------------------------------------------------------------------------------

    def unfinished(self) -> dict[str, Tensor]:
        """All that going on needs, on the CPU."""
        found = {"iteration": torch.tensor(self.iteration)}
        for name, module in self.modules.items():
            found |= {f"{name}.{key}": copied(value) for key, value in module.state_dict().items()}
        return found | optimiser_tensors(self.optimiser)

    def go_on(self, unfinished: Mapping[str, Tensor]) -> None:
        """Goes on from what `unfinished` gave.

        Raises:
            UnfinishedError: It is of another learning.
        """
        try:
            for name, module in self.modules.items():
                prefix = f"{name}."
                module.load_state_dict(
                    {k.removeprefix(prefix): v for k, v in unfinished.items() if k.startswith(prefix)}
                )
            load_optimiser_tensors(self.optimiser, unfinished)
            self.iteration = int(unfinished["iteration"])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UnfinishedError(f"This is no unfinished learning of these settings: {reason}") from error

    # Learning ----------------------------------------------------------------------------------

    def run(self, keep: Keep | None = None, advance: Callable[[int, bool], None] | None = None) -> None:
        """Learns to the end.

        Args:
            keep: Takes what going on needs, see `KEEP_EVERY`.
            advance: See `RestorationMethod.personalise`.
        """
        last, often = int(self.options["iterations"]), KEEP_EVERY[self.options["tunes"]]
        if advance is not None and self.iteration:
            advance(self.iteration, True)
        with torch.inference_mode(False), torch.enable_grad():
            while self.iteration < last:
                self.step()
                if keep is not None and self.iteration % often == 0 and self.iteration < last:
                    keep(self.unfinished())
                if advance is not None:
                    advance(1, False)

    def step(self) -> Tensor:
        """One iteration; returns the loss."""
        share = learning_rate(
            {**self.options["schedule"], "learning_rate": 1.0}, self.iteration, int(self.options["iterations"])
        )
        for group in self.optimiser.param_groups:
            group["lr"] = group["height"] * share
        loss = self.loss(self.iteration)
        if not torch.isfinite(loss):
            raise UsageError(
                f"The loss of the personalisation became {loss.item()} at iteration {self.iteration}. Lower "
                "method.personalisation.learning_rates."
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.iteration += 1
        return loss.detach()

    def loss(self, iteration: int) -> Tensor:
        """L of Eq. 5 for the samples of an iteration: L_diff + lambda_gen L_gen + lambda_pers L_pers."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "personal iteration", iteration) % 2**63)
        rows = self._rows(iteration)
        noised = self._noised(rows, generator)
        shown = self.samples.draw_references(rows, generator)
        predicted, person = self._predict(rows, noised, shown, with_null=self.options["generative"] > 0)
        return self._sum(predicted, noised.target, person)

    def _sum(self, predicted: Tensor, target: Tensor, person: Personalised | None) -> Tensor:
        """The terms of Eq. 5, weighted; predictions with the LQ come first, then those with the null LQ, if any."""
        loss = self.distance(predicted[: len(target)], target)
        if len(predicted) > len(target):
            loss = loss + float(self.options["generative"]) * self.distance(predicted[len(target) :], target)
        weight = float(self.options["attention"])
        if person is not None and person.maps and weight:
            loss = loss + weight * torch.stack([attention_regulariser(maps) for maps in person.maps.values()]).sum()
        return loss

    def distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Of Eqs. 2 and 4: squared as RestorerID and AuthFace have it, or as they are printed."""
        if self.options["norm"] == "printed":
            return (predicted.float() - target.float()).flatten(1).norm(dim=1).mean()
        return F.mse_loss(predicted.float(), target.float())

    def _rows(self, iteration: int) -> Tensor:
        """Samples of an iteration: new ones, or of those that are used again, each pass in an order of its own."""
        size, count = int(self.options["batch_size"]), len(self.samples)
        if not self.options["samples"]:
            return torch.arange(iteration * size, (iteration + 1) * size)
        rows = []
        for number in range(iteration * size, (iteration + 1) * size):
            turn, position = divmod(number, count)
            seed = derive_seed(self.seed, "order of personal samples", turn) % 2**63
            rows.append(int(torch.randperm(count, generator=torch.Generator().manual_seed(seed))[position]))
        return torch.tensor(rows)

    @property
    def _keeps(self) -> bool:
        """Whether a sample keeps its noise and timestep, and with them what the encoder makes of it."""
        return bool(self.options["samples"]) and self._encoder is not None

    def _noised(self, rows: Tensor, generator: torch.Generator) -> NoisyLatents:
        sampler, least = self.method.sampler, int(self.options["least_timestep"])
        alphas, prediction = sampler.alphas_cumprod, sampler.settings.prediction
        latent, _ = self.samples.latents(rows)
        if not self._keeps:
            return add_noise(latent, alphas, prediction, generator, least)
        found = []
        for row, own in zip(rows.tolist(), latent, strict=True):
            fixed = torch.Generator().manual_seed(derive_seed(self.seed, "noise of personal sample", row) % 2**63)
            found.append(add_noise(own[None], alphas, prediction, fixed, least))
        return NoisyLatents(
            latent.float(),
            torch.cat([one.noise for one in found]),
            torch.cat([one.timestep for one in found]),
            torch.cat([one.alpha for one in found]),
            prediction,
        )

    def _predict(
        self, rows: Tensor, noised: NoisyLatents, shown: Tensor, with_null: bool
    ) -> tuple[Tensor, Personalised | None]:
        """Predictions with the LQ, then those with the null LQ; the reference is the same for both."""
        method, network = self.method, self.network
        person: Personalised | None = None
        if self.parts is not None:
            text = self.text() if self.text is not None else None
            tokens = self._reference_tokens(shown, noised.timestep)
            person = Personalised(self.parts.by_site(), tokens, text, bool(self.options["mask"]))
        parts = 2 if with_null else 1
        noisy, timestep = noised.noisy.repeat(parts, 1, 1, 1), noised.timestep.repeat(parts)
        given = method.text(len(noisy), "").to(noisy)
        if self._keeps and self._encoder is not None:
            features, maps = self._features(rows, with_null)
            predicted = self._encoder.decode(features, noisy, timestep, given, lq_maps=maps, personal=person)
            return predicted, person
        _, lq = self.samples.latents(rows)
        lq = torch.cat([lq, self.method.null_lq(lq)]) if with_null else lq
        with torch.no_grad():
            maps = network.lq_maps(lq, timestep)
        return network(noisy, timestep, given, maps, person), person

    def _features(self, rows: Tensor, with_null: bool) -> tuple[EncoderFeatures, Maps]:
        """What the frozen encoders make of samples, and then of the same with the null LQ; made once for each."""
        for row in rows.tolist():
            if row not in self._kept:
                self._keep_together(torch.arange(row - row % TOGETHER, len(self.samples))[:TOGETHER])
        found = [self._kept[row] for row in rows.tolist()]
        order = (
            torch.arange(2 * len(found)).view(-1, 2).T.flatten() if with_null else torch.arange(0, 2 * len(found), 2)
        )
        joined = EncoderFeatures.join([features for features, _ in found])[order]
        sizes = found[0][1].keys()
        return joined, {size: torch.cat([maps[size] for _, maps in found])[order] for size in sizes}

    @torch.no_grad()
    def _keep_together(self, rows: Tensor) -> None:
        """Keeps samples that always share a call, since in other company their last bits are others."""
        assert self._encoder is not None
        noised, (_, lq) = self._noised(rows, torch.Generator()), self.samples.latents(rows)
        noisy, timestep = noised.noisy.repeat(2, 1, 1, 1), noised.timestep.repeat(2)
        maps = self.network.lq_maps(torch.cat([lq, self.method.null_lq(lq)]), timestep)
        text = self.method.text(len(noisy), "").to(noisy)
        features = self._encoder.read(noisy, timestep, text, lq_maps=maps, personal=None)
        for place, row in enumerate(rows.tolist()):
            both = torch.tensor([place, place + len(rows)])
            self._kept[row] = features[both], {size: own[both] for size, own in maps.items()}

    def _reference_tokens(self, shown: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        """Tokens of references at timesteps; where there is one timestep, those of each reference are made once."""
        last = self.method.sampler.settings.train_timesteps - 1
        if int(self.options["least_timestep"]) != last:
            return self.method.reference_tokens(self.network, self.samples.references[shown], timestep)
        for number, step in zip(shown.tolist(), timestep, strict=True):
            if number not in self._kept_tokens:
                latent = self.samples.references[number][None]
                self._kept_tokens[number] = self.method.reference_tokens(self.network, latent, step[None])
        found = [self._kept_tokens[number] for number in shown.tolist()]
        return {site: torch.cat([tokens[site] for tokens in found]) for site in found[0]}

    # The result --------------------------------------------------------------------------------

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """What restoration reads: see `PFStorer.personalise`."""
        kind = torch.float16
        if self.parts is None:
            unet = self.network.adapted.unet.state_dict()
            return {f"unet.{name}": value.detach().to("cpu", kind) for name, value in unet.items()}
        found = {f"parts.{name}": value.to("cpu", kind) for name, value in self.parts.state_dict().items()}
        found["references"] = self.samples.references.to("cpu", kind)
        if self.text is not None:
            text = self.text()
            found |= {
                "text.word": self.text.word.detach().to("cpu", kind),
                "text.tokens": text.tokens[0].to("cpu", kind),
                "text.placeholder": text.placeholder.cpu(),
                "text.end": text.end.cpu(),
            }
        return found
