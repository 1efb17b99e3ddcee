"""PFStorer's network: StableSR's, whose decoder can be personalised while a call lasts.

The network itself holds nothing personal. At each site of its decoder stands a module without parameters that hands
the tokens to whatever the call brought along as its condition `personal`: a person's blocks, or what reads the tokens
of a reference. Without one a call is StableSR's, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from bench.errors import unknown_name
from methods.blocks.adapted_unet import AdapterSet, Conditions, Maps, attention_sites, repeat_to_batch
from methods.blocks.base_models import BaseModel
from methods.blocks.stablesr_network import StableSRNetwork
from methods.pfstorer.personalisation_block import (
    Form,
    LearntText,
    PersonalisationBlock,
    TextMaps,
    otsu_mask,
    text_maps_of,
)

SiteChoice = Literal["every_second", "all"]


class Visitor(Protocol):
    """What a call brings along for the sites."""

    def __call__(self, site: str, tokens: Tensor) -> Tensor:
        """What takes the place of a site's tokens (B, L, C)."""
        ...


class PersonalSite(nn.Module):
    """Hands the tokens of its transformer block to the call's visitor.

    Args:
        name: Path of the transformer block in the UNet.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, tokens: Tensor, conditions: Conditions) -> Tensor:
        """The visitor's tokens, or the same."""
        visitor: Visitor | None = conditions.get("personal")
        return tokens if visitor is None else visitor(self.name, tokens)


class PFStorerNetwork(StableSRNetwork):
    """Denoiser of PFStorer (Varanka et al., CVPR 2024, Sec. 3.2, Fig. 3).

    Attributes:
        site_channels: Width of the tokens at every site of the decoder, by its path in the UNet, in the order that a
            call comes to them.
        site_heads: Number of heads there.

    Args:
        base: Base model: its UNet, and the width of its text tokens.
        options: `lq_encoder` and `sft`: arguments of the module of that name.
    """

    def __init__(self, base: BaseModel, options: Mapping[str, Any]) -> None:
        super().__init__(base, options)
        sites = [site for site in attention_sites(self.adapted.unet) if site.name.startswith("up_blocks.")]
        own = [site for site in sites if not site.is_cross]
        names = [site.name.removesuffix(".attn1") for site in own]
        self.site_channels = dict(zip(names, (site.channels for site in own), strict=True))
        self.site_heads = dict(zip(names, (site.heads for site in own), strict=True))
        self.adapted.attach("personal", AdapterSet("output", {name: PersonalSite(name) for name in names}))

    def sites(self, choice: SiteChoice) -> tuple[str, ...]:
        """Where blocks stand: at every second transformer of the decoder, as ViCo's four, or at all.

        Raises:
            UsageError: There is no such choice.
        """
        if choice not in get_args(SiteChoice):
            raise unknown_name("value of method.personalisation.sites", choice, get_args(SiteChoice))
        names = tuple(self.site_channels)
        return names if choice == "all" else names[1::2]

    def forward(
        self, latent: Tensor, timestep: Tensor, text: Tensor, lq_maps: Maps, personal: Visitor | None = None
    ) -> Tensor:
        """Predicts the noise.

        Args:
            latent: Noisy latents, (B, C, h, w).
            timestep: (B,).
            text: Text tokens, (B, T, width).
            lq_maps: See `lq_maps`.
            personal: What stands at the sites; nothing by default.

        Returns:
            (B, C, h, w).
        """
        return self.adapted(latent, timestep, text, lq_maps=lq_maps, personal=personal)


class _EnoughError(Exception):
    """Every site that is asked for was visited: the rest of the call would be for nothing."""


class ReferenceTokens:
    """Reads the tokens of references at the sites and ends the call there (F_ref, Eq. 3).

    Args:
        sites: Which.
    """

    def __init__(self, sites: Iterable[str]) -> None:
        self.wanted = set(sites)
        self.found: dict[str, Tensor] = {}

    def __call__(self, site: str, tokens: Tensor) -> Tensor:
        """Notes the tokens."""
        if site in self.wanted:
            self.found[site] = tokens
            if len(self.found) == len(self.wanted):
                raise _EnoughError
        return tokens

    @torch.no_grad()
    def read(self, call: Callable[[ReferenceTokens], object]) -> dict[str, Tensor]:
        """The tokens, (B, M, C) by site.

        Args:
            call: Calls the network with this as its visitor.
        """
        try:
            call(self)
        except _EnoughError:
            return self.found
        raise RuntimeError(f"no call came to {sorted(self.wanted - self.found.keys())}")


class PersonalParts(nn.Module):
    """All that is learnt of a person: the blocks with their gamma, and the text.

    Args:
        network: The network that is personalised.
        sites: Where blocks stand.
        form: See `PersonalisationBlock`.
        use_gamma: See `PersonalisationBlock`.
        feed_forward: See `PersonalisationBlock`.
        text_width: Width of the learnt text's tokens.
    """

    def __init__(
        self,
        network: PFStorerNetwork,
        sites: Iterable[str],
        form: Form,
        use_gamma: bool,
        feed_forward: int,
        text_width: int,
    ) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.blocks = nn.ModuleList(
            PersonalisationBlock(
                network.site_channels[site], network.site_heads[site], text_width, form, use_gamma, feed_forward
            )
            for site in self.sites
        )

    def by_site(self) -> dict[str, PersonalisationBlock]:
        """The blocks."""
        return dict(zip(self.sites, self.blocks, strict=True))  # type: ignore[arg-type]


class Personalised:
    """A person's blocks at the sites of one call.

    Attributes:
        maps: Where the reference's tokens attend to the learnt text, by site; of the last call.

    Args:
        blocks: By site.
        references: The reference's tokens by site, (B', M, C), for all pictures of the call or for a part that repeats.
        text: The learnt text.
        mask: Whether only those tokens of the reference are attended to that its person is on (ViCo).
    """

    def __init__(
        self,
        blocks: Mapping[str, PersonalisationBlock],
        references: Mapping[str, Tensor],
        text: LearntText | None,
        mask: bool,
    ) -> None:
        self.blocks, self.references, self.text, self.mask = blocks, references, text, mask
        self.maps: dict[str, TextMaps] = {}

    def __call__(self, site: str, tokens: Tensor) -> Tensor:
        """The personalised tokens; unchanged where no block stands."""
        block = self.blocks.get(site)
        if block is None:
            return tokens
        reference = self.references[site].to(tokens)
        text, chosen = None, None
        if block.text is not None and self.text is not None:
            text = self.text.rows(len(tokens))
            self.maps[site] = text_maps_of(block.text, reference, self.text.rows(len(reference)))
            if self.mask:
                chosen = repeat_to_batch(otsu_mask(self.maps[site].placeholder), len(tokens))
        personalised: Tensor = block(tokens, repeat_to_batch(reference, len(tokens)), text, chosen)
        return personalised
