"""What `bench perf` needs of PFStorer: stand-ins for what is absent, and a person's learning without any saving."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.personal_state import PersonalSource, PersonalState
from methods.blocks.diffusion_objective import NoisyLatents, add_noise
from methods.blocks.personal_samples import PersonalSamples
from methods.blocks.timing_substitutes import fill_zeros, substitute_absent
from methods.pfstorer.network import Personalised
from methods.pfstorer.personal_training import PersonalTraining
from methods.pfstorer.personalisation_block import attention_regulariser

if TYPE_CHECKING:
    from methods.pfstorer.module import PFStorer

#: After so many the same samples come again.
PLAIN_ITERATIONS = 1000
PLAIN_STEP = """\
for iteration in range(iterations):
    hq = random_flip(references[pick()]); lq = degrade(hq); ref = references[pick_another()]
    z, z_lq, z_ref = vae.encode(hq), vae.encode(lq), vae.encode(ref)
    z_t = add_noise(z, noise, t)
    tokens = unet(z_ref, t, lq_maps=lq_encoder(z_ref, t))               # no gradients
    diff = mse(unet(z_t, t, lq_maps=lq_encoder(z_lq, t), blocks(tokens)), target)
    gen = mse(unet(z_t, t, lq_maps=lq_encoder(null, t), blocks(tokens)), target)
    (diff + lambda_gen * gen + lambda_pers * pers).backward(); optimiser.step()"""


def prepare_for_timing(method: PFStorer, random_weights: bool) -> list[str]:
    """Makes a method restore random pictures at its full cost, whatever is absent; nothing of it can be scored.

    Args:
        method: The method, on the CPU. Changed in place.
        random_weights: Whether its own weights are random.

    Returns:
        What was replaced, in words.
    """
    if random_weights:
        fill_zeros(method.network)
    notes = substitute_absent(method, [""])
    if method.personalises:
        method.persons = _AnyPerson(method)
        notes.append("nobody was learnt: the blocks of a new person are timed")
    return notes


class _AnyPerson(Mapping[str, PersonalState]):
    """One new person on every picture."""

    def __init__(self, method: PFStorer) -> None:
        parts = {f"parts.{name}": value for name, value in method.new_parts().state_dict().items()}
        side = (method.native_size or 128) // method.space.factor
        generator = torch.Generator().manual_seed(0)
        references = torch.randn(1, method.space.channels, side, side, generator=generator)
        tokens = torch.randn(3, method.base.text_width, generator=generator)
        text = {"text.tokens": tokens, "text.placeholder": torch.tensor([1]), "text.end": torch.tensor([2])}
        unet = {f"unet.{name}": value for name, value in method.network.adapted.unet.state_dict().items()}
        tuned = method.settings["personalisation"]["tunes"] == "unet"
        tensors = unet if tuned else {**parts, **text, "references": references}
        self.state = PersonalSource(torch.zeros(1, 3, 8, 8), 0).state(method, "random", tensors)

    def __getitem__(self, image_id: str) -> PersonalState:
        return self.state

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class PlainPersonalTraining:
    """The same learning, written down as the paper tells it: each iteration makes everything it needs.

    A reference is degraded and encoded in every iteration, the whole UNet runs for the LQ, the null LQ and the
    reference, and nothing is kept.

    Args:
        method: The method.
        references: (R, 3, S, S) RGB in [0, 1] at the native size.
        seed: Of the person.
    """

    pattern = PLAIN_STEP

    def __init__(self, method: PFStorer, references: Tensor, seed: int) -> None:
        self.method, self.seed = method, seed
        # Blocks, text and optimiser are those of the learning itself.
        self.own: PersonalTraining = method.personal_training(references, seed)
        count = int(self.own.options["batch_size"])
        pictures = references.to(method.device)
        self.pictures = pictures
        # A sample is made when its iteration comes, and with no other iteration's.
        self.samples = PersonalSamples(
            pictures, PLAIN_ITERATIONS * count, seed, method.degradation, method.space,
            bool(self.own.options["flip"]), together=count, forget=True,
        )  # fmt: skip

    def draw(self) -> tuple[Tensor, Tensor, Tensor, NoisyLatents]:
        """What an iteration is made of: its samples (B,), latents of their LQ and of a reference each, and noise."""
        options = self.own.options
        count, iteration = int(options["batch_size"]), self.own.iteration % PLAIN_ITERATIONS
        generator = torch.Generator().manual_seed((self.seed + iteration) % 2**63)
        rows = torch.arange(iteration * count, (iteration + 1) * count)
        latent, lq_latent = self.samples.latents(rows)
        references = self.samples.encoded(self.pictures[self.samples.draw_references(rows, generator)])
        sampler, least = self.method.sampler, int(options["least_timestep"])
        noised = add_noise(latent, sampler.alphas_cumprod, sampler.settings.prediction, generator, least)
        return rows, lq_latent, references, noised

    def loss(self, lq_latent: Tensor, references: Tensor, noised: NoisyLatents) -> Tensor:
        """L of Eq. 5, one term after the other; arguments from `draw`."""
        method, own, options = self.method, self.own, self.own.options
        text = method.text(len(lq_latent), "").to(lq_latent)
        tokens = method.reference_tokens(own.network, references, noised.timestep)
        null = method.null_lq(lq_latent)
        loss, person = torch.zeros((), device=lq_latent.device), None
        terms = [(lq_latent, 1.0), (null, float(options["generative"]))]
        for lq, weight in (term for term in terms if term[1]):
            if own.parts is not None:
                learnt = own.text() if own.text is not None else None
                person = Personalised(own.parts.by_site(), tokens, learnt, bool(options["mask"]))
            maps = own.network.lq_maps(lq, noised.timestep)
            predicted = own.network(noised.noisy, noised.timestep, text, maps, person)
            loss = loss + weight * own.distance(predicted, noised.target)
        if person is not None and person.maps:
            loss = loss + options["attention"] * sum(attention_regulariser(maps) for maps in person.maps.values())
        return loss

    def step(self) -> Tensor:
        """One iteration; returns the loss."""
        with torch.inference_mode(False), torch.enable_grad():
            loss = self.loss(*self.draw()[1:])
            self.own.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.own.optimiser.step()
        self.own.iteration += 1
        return loss.detach()
