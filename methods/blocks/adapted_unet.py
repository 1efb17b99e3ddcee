"""A stock diffusers UNet with small modules attached to it, which can be taken off again.

An adapter is a plain module with parameters of its own. It is attached to a named module of the UNet (its site) at one
of three places:

- `residual`: a `ResnetBlock2D`; called with the residual branch after `conv2`, before the skip is added (StableSR's
  SFT, Wang et al., IJCV 2024, Sec. 3.1);
- `output`: any module; called with its output (RestorerID's FIR adapter after each `ResnetBlock2D`, PFStorer's block
  after a transformer);
- `attention`: an `Attention`; takes the place of its processor (identity tokens in cross-attention).

Nothing of diffusers is copied or subclassed: forward hooks and `Attention.set_processor` do the work. The UNet's class
and the names of its state stay as they are while adapters are attached, and after `release` its output is bit by bit
that of the stock network.

What an adapter needs to know of a call (LQ maps, identity tokens, a scale per picture) is given to
`AdaptedUNet.forward` by name and handed to every adapter as `conditions`. It is kept for the duration of the call in a
holder that belongs to the `AdaptedUNet`. Gradient checkpointing captures the conditions of its own call and puts them
back while it recomputes, on whichever thread that happens, so gradients do not depend on other calls in between.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch.utils.hooks import RemovableHandle

Place = Literal["residual", "output", "attention"]
Conditions = Mapping[str, Any]
Maps = Mapping[tuple[int, int], Tensor]

# An Attention by itself, as in the LQ encoder, is a region of its own; in a transformer block it is part of that one.
COMPILED_REGIONS: tuple[type[nn.Module], ...] = (ResnetBlock2D, BasicTransformerBlock, Attention)
MAX_VARIANTS_OF_A_REGION = 64


@dataclass(frozen=True)
class BlockSite:
    """A `ResnetBlock2D` of a UNet.

    Attributes:
        name: Its path in the UNet (`down_blocks.0.resnets.1`).
        channels: Channels of its output.
    """

    name: str
    channels: int


@dataclass(frozen=True)
class AttentionSite:
    """An `Attention` of a UNet's transformer blocks.

    Attributes:
        name: Its path in the UNet (`down_blocks.0.attentions.0.transformer_blocks.0.attn2`).
        channels: Width of its queries and output.
        context_channels: Width of the tokens that keys and values come from.
        inner_channels: Heads times head width.
        heads: Number of heads.
        is_cross: Whether it attends to the text rather than to the picture itself.
    """

    name: str
    channels: int
    context_channels: int
    inner_channels: int
    heads: int
    is_cross: bool


def block_sites(unet: UNet2DConditionModel) -> list[BlockSite]:
    """Every `ResnetBlock2D` of a UNet, in the order down, up, mid."""
    return [
        BlockSite(name, int(module.conv2.out_channels))
        for name, module in unet.named_modules()
        if isinstance(module, ResnetBlock2D)
    ]


def attention_sites(unet: UNet2DConditionModel) -> list[AttentionSite]:
    """Every `Attention` of a UNet, in the order down, up, mid (that of diffusers' `attn_processors`)."""
    return [
        AttentionSite(
            name,
            channels=int(module.query_dim),
            context_channels=int(module.cross_attention_dim),
            inner_channels=int(module.inner_dim),
            heads=int(module.heads),
            is_cross=name.endswith("attn2"),
        )
        for name, module in unet.named_modules()
        if isinstance(module, Attention)
    ]


class AdapterSet(nn.Module):
    """Adapters of one kind, one for each site of a UNet.

    The state has the UNet's own names: `down_blocks.0.resnets.1.gamma.weight` belongs to the adapter at
    `down_blocks.0.resnets.1`.

    What an adapter's `forward` takes depends on the place:

    - `residual` and `output`: `(features: Tensor, conditions: Mapping[str, Any]) -> Tensor`;
    - `attention`: `(attention: Attention, hidden_states: Tensor, context: Tensor | None, attention_mask: Tensor | None,
      conditions: Mapping[str, Any]) -> Tensor`, everything a diffusers attention processor does, `to_out` included.
    """

    def __init__(self, place: Place, adapters: Mapping[str, nn.Module]) -> None:
        """Takes the adapters over as submodules.

        Args:
            place: Where at its site each adapter is attached.
            adapters: Adapter by the site's name.
        """
        super().__init__()
        self.place = place
        self.sites = tuple(adapters)
        for site, adapter in adapters.items():
            _put(self, site, adapter)

    @classmethod
    def for_blocks(
        cls, unet: UNet2DConditionModel, build: Callable[[BlockSite], nn.Module], place: Place = "residual"
    ) -> AdapterSet:
        """One adapter for every `ResnetBlock2D`, made by `build(site)`."""
        return cls(place, {site.name: build(site) for site in block_sites(unet)})

    @classmethod
    def for_attention(
        cls, unet: UNet2DConditionModel, build: Callable[[AttentionSite], nn.Module | None]
    ) -> AdapterSet:
        """One adapter for every `Attention` for which `build(site)` gives one; the others keep their processor."""
        built = {site.name: build(site) for site in attention_sites(unet)}
        return cls("attention", {name: adapter for name, adapter in built.items() if adapter is not None})

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        """Pairs of site name and adapter."""
        for site in self.sites:
            yield site, self.get_submodule(site)


class AdaptedUNet(nn.Module):
    """A stock UNet and the adapters attached to it.

    Attributes:
        unet: The stock network.
        adapters: The attached sets by name.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Wraps a UNet; nothing is attached yet."""
        super().__init__()
        self.unet = unet
        self.adapters = nn.ModuleDict()
        self._holder = _Holder()
        self._hooks: dict[str, list[RemovableHandle]] = {}
        self._processors: dict[str, dict[str, Any]] = {}

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor | float,
        text: Tensor,
        *,
        unet_arguments: Mapping[str, Any] | None = None,
        **conditions: Any,
    ) -> Tensor:
        """The UNet's prediction.

        Args:
            latent: Noisy latents, (B, C, H, W).
            timestep: Diffusion timestep, a number or (B,).
            text: Text tokens, (B, N, context width).
            unet_arguments: Further arguments of the UNet's own `forward` (residuals of a ControlNet, SDXL's
                `added_cond_kwargs`).
            **conditions: What adapters read, by name. Names in use: `lq_maps`, a mapping from (height, width) to
                (B, channels, height, width); `identity_tokens`, (B, N, width); `identity_scale`, (B,) (a tensor, since
                compiled blocks take every new number for a new case).

        Returns:
            The prediction (noise or velocity, as the UNet was trained), (B, C, H, W).
        """
        with self._holder.installed(conditions):
            prediction = self.unet(latent, timestep, text, return_dict=False, **(unet_arguments or {}))[0]
        return cast(Tensor, prediction)

    def attach(self, name: str, adapters: AdapterSet) -> AdapterSet:
        """Attaches a set of adapters; at one site those attached first are called first.

        Args:
            name: Name of the set, also the first part of its parameters' names (`adapters.<name>.<site>...`).
            adapters: The set.

        Returns:
            The same set.

        Raises:
            UsageError: The name is taken, a site does not exist or has another type, or an attention has an adapter
                already.
        """
        if name in self.adapters:
            raise UsageError(f"Adapters named {name!r} are attached already. Detach them first, or take another name.")
        taken = {site for processors in self._processors.values() for site in processors}
        modules = dict(self.unet.named_modules())
        for site in adapters.sites:
            _check_site(site, modules, adapters.place, taken)
        self.uncompile()
        self.adapters[name] = adapters
        self._hooks[name], self._processors[name] = [], {}
        for site, adapter in adapters.items():
            module = modules[site]
            if adapters.place == "attention":
                attention = cast(Attention, module)
                self._processors[name][site] = attention.processor
                attention.set_processor(cast(Any, _AdapterProcessor(adapter, self._holder)))
            else:
                target = module if adapters.place == "output" else cast(ResnetBlock2D, module).conv2
                self._hooks[name].append(target.register_forward_hook(_AdapterHook(adapter, self._holder)))
        return adapters

    def detach(self, name: str) -> AdapterSet:
        """Takes a set of adapters off and returns it, ready to be attached again.

        Raises:
            UsageError: No set of this name is attached.
        """
        if name not in self.adapters:
            raise unknown_name("adapters", name, self.adapters)
        self.uncompile()
        for hook in self._hooks.pop(name):
            hook.remove()
        for site, processor in self._processors.pop(name).items():
            cast(Attention, self.unet.get_submodule(site)).set_processor(processor)
        adapters = cast(AdapterSet, self.adapters[name])
        del self.adapters[name]
        return adapters

    def release(self) -> UNet2DConditionModel:
        """Takes everything off and returns the stock UNet."""
        for name in list(self.adapters):
            self.detach(name)
        self.uncompile()
        if self.unet.is_gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        return self.unet

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes the blocks' activations in the backward pass instead of keeping them, adapters included."""
        self.unet.enable_gradient_checkpointing(self._checkpoint)

    def disable_gradient_checkpointing(self) -> None:
        """Keeps all activations again."""
        self.unet.disable_gradient_checkpointing()

    def compile_regions(self, **options: Any) -> None:
        """Compiles every residual and transformer block in place, with the adapters attached now.

        Sets of adapters attached or detached afterwards undo it.

        Args:
            **options: Arguments of `torch.compile`; shapes are static unless `dynamic` says otherwise.
        """
        compile_regions(self.unet, **options)

    def uncompile(self) -> None:
        """Undoes `compile_regions`."""
        for module in _regions(self.unet):
            module._compiled_call_impl = None

    def _checkpoint(self, module: Callable[..., Any], *inputs: Any) -> Any:
        conditions = self._holder.current

        def run(*inputs: Any) -> Any:
            with self._holder.installed(conditions):
                return module(*inputs)

        return checkpoint(run, *inputs, use_reentrant=False)


def compile_regions(network: nn.Module, **options: Any) -> None:
    """Compiles every residual block, transformer block and attention that stands alone, in place.

    Regions of one kind and shape share their code, which a network compiled as a whole does not.

    Args:
        network: Any network made of diffusers' blocks.
        **options: Arguments of `torch.compile`; shapes are static unless `dynamic` says otherwise.
    """
    options = {"dynamic": False, **options}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options.setdefault("recompile_limit", MAX_VARIANTS_OF_A_REGION)
    for module in _regions(network):
        module.compile(**options)


def _regions(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, COMPILED_REGIONS):
        yield module
        return
    for child in module.children():
        yield from _regions(child)


def map_of_size(maps: Maps, features: Tensor) -> Tensor:
    """The map as high and wide as the features.

    Args:
        maps: Maps (B', C, H, W) by (H, W).
        features: (B, C', H, W).

    Returns:
        The map of (H, W).

    Raises:
        UsageError: There is none of this size.
    """
    size = (int(features.shape[-2]), int(features.shape[-1]))
    if size not in maps:
        known = ", ".join(f"{height}x{width}" for height, width in maps)
        raise UsageError(
            f"No condition map is {size[0]}x{size[1]} (height x width); there are {known or 'none'}. "
            "Make them from a latent as large as the one that is denoised."
        )
    return maps[size]


def repeat_to_batch(tensor: Tensor, batch: int) -> Tensor:
    """Repeats (B', ...) to (batch, ...) as a whole, so that the branches of one guided call share their conditions.

    Raises:
        UsageError: The batch is not a multiple of B'.
    """
    if tensor.shape[0] == batch:
        return tensor
    if batch % tensor.shape[0]:
        raise UsageError(f"Conditions of {tensor.shape[0]} pictures do not fit a batch of {batch} latents.")
    return tensor.repeat(batch // tensor.shape[0], *([1] * (tensor.dim() - 1)))


class _Holder:
    """The conditions of the call in progress; None between calls."""

    def __init__(self) -> None:
        self.current: Conditions | None = None

    @contextmanager
    def installed(self, conditions: Conditions | None) -> Iterator[None]:
        before = self.current
        self.current = conditions
        try:
            yield
        finally:
            self.current = before

    def read(self) -> Conditions:
        if self.current is None:
            raise RuntimeError("This UNet has adapters attached: call the AdaptedUNet, or release() the UNet first.")
        return self.current


class _AdapterHook:
    """Forward hook that puts an adapter's output in the place of the features."""

    def __init__(self, adapter: nn.Module, holder: _Holder) -> None:
        self.adapter = adapter
        self.holder = holder

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (self.adapter(output[0], self.holder.read()), *output[1:])
        return self.adapter(output, self.holder.read())


class _AdapterProcessor:
    """Attention processor that hands the work to an adapter; no module, so that the UNet's state keeps its names."""

    def __init__(self, adapter: nn.Module, holder: _Holder) -> None:
        self.adapter = adapter
        self.holder = holder

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        adapted = self.adapter(attn, hidden_states, encoder_hidden_states, attention_mask, self.holder.read())
        return cast(Tensor, adapted)


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if not hasattr(root, name):
            root.add_module(name, nn.Module())
        root = getattr(root, name)
    root.add_module(last, module)


def _check_site(site: str, modules: Mapping[str, nn.Module], place: Place, taken: set[str]) -> None:
    if site not in modules:
        raise unknown_name("module of the UNet", site, modules)
    wanted = {"residual": ResnetBlock2D, "output": nn.Module, "attention": Attention}[place]
    if not isinstance(modules[site], wanted):
        raise UsageError(f"{site} is a {type(modules[site]).__name__}; adapters at {place!r} need a {wanted.__name__}.")
    if place == "attention" and site in taken:
        raise UsageError(f"{site} has an attention adapter already. Detach that set first.")
