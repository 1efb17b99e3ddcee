"""Sampling of latent diffusion models in one place: solvers of diffusers, seeds by image, guidance, tiles.

The solvers are diffusers' own schedulers; here is what stands around them: noise that depends on an image's seed
alone (one generator per image on the CPU, so neither batch, order nor device changes it), classifier-free guidance as
one batched call, the start from pure noise or from the noised LQ latent, tiles for large latents, and the schedules of
released code as presets.

Sources: DDIM, Song et al., ICLR 2021, Eq. 12 and 16; DDPM, Ho et al., NeurIPS 2020, Eq. 6-7, on spaced steps as in
Nichol and Dhariwal, ICML 2021; DPM-Solver++, Lu et al., 2022; UniPC, Zhao et al., NeurIPS 2023; guidance, Ho and
Salimans, 2022.

Quirk of RestorerID's released DDIM (`restorerid_released_code`): the network is called at timesteps spread evenly
over 0..999 ({0, 20, 41, ..., 999} for 50 steps) while the update takes its alphas at multiples of the stride ({0, 20,
40, ..., 980}). The release lists one alpha for each multiple below 1000, which is more than there are calls where the
number of steps does not divide 1000; the surplus at the noisy end is never used.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import torch

from bench.errors import UsageError, unknown_name
from methods.blocks.tiling import Blend, Tiling, Window, make_blend

if TYPE_CHECKING:
    from torch import Tensor

Solver = Literal["ddim", "ddpm", "dpm_solver++", "unipc"]
Prediction = Literal["epsilon", "v_prediction"]
Start = Literal["noise", "lq"]
Spacing = Literal["leading", "linspace", "trailing"]
Calls = Literal["solver", "linspace"]
Branch = Literal["unconditional", "conditional"]


@dataclass(frozen=True)
class SamplingSettings:
    """Everything that decides a sampling trajectory apart from network and seeds.

    Attributes:
        solver: One of diffusers' schedulers. `ddpm` with `linspace` is spaced DDPM with respaced betas.
        steps: Calls of the network (of one batch; tiles multiply them).
        eta: Noise of DDIM between 0 (deterministic) and 1 (the variance of DDPM).
        guidance: Scale s of classifier-free guidance, unconditional + s (conditional - unconditional); 1 calls the
            conditional branch alone.
        guided_share: Share of the steps, from the noisy end, that are guided; the others call the conditional branch
            alone. Guidance matters least at low noise (Kynkäänniemi et al., NeurIPS 2024).
        prediction: What the network returns.
        start: `noise`, or `lq`: the LQ latent noised to the last timestep, as StableSR does.
        spacing: Timesteps of the solver: `leading` (multiples of the stride, plus `offset`), `linspace` (even over
            0..999), `trailing` (counted from the end).
        offset: Added to `leading` timesteps; 1 in Stable Diffusion's own configuration, 0 in StableSR and RestorerID.
        calls: Timesteps told to the network: those of the `solver`, or `linspace` whatever the solver uses.
        karras: Noise levels of Karras et al., 2022 (DPM-Solver++ and UniPC only).
        train_timesteps: Length of the training schedule.
        beta_start: First beta; betas are linear in their square roots.
        beta_end: Last beta.
    """

    solver: Solver = "ddim"
    steps: int = 50
    eta: float = 0.0
    guidance: float = 1.0
    guided_share: float = 1.0
    prediction: Prediction = "epsilon"
    start: Start = "noise"
    spacing: Spacing = "leading"
    offset: int = 1
    calls: Calls = "solver"
    karras: bool = False
    train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        choices: dict[str, Any] = {
            "solver": Solver,
            "prediction": Prediction,
            "start": Start,
            "spacing": Spacing,
            "calls": Calls,
        }
        for name, known in choices.items():
            if getattr(self, name) not in get_args(known):
                raise unknown_name(f"value of sampling.{name}", str(getattr(self, name)), get_args(known))
        if not 1 <= self.steps <= self.train_timesteps:
            raise UsageError(f"sampling.steps is {self.steps}: it must lie between 1 and {self.train_timesteps}.")
        if not 0 <= self.guided_share <= 1:
            raise UsageError(f"sampling.guided_share is {self.guided_share}: it must lie between 0 and 1.")
        if not 0 <= self.eta <= 1:
            raise UsageError(f"sampling.eta is {self.eta}: it must lie between 0 and 1.")
        if self.eta and self.solver != "ddim":
            raise UsageError(f"sampling.eta belongs to the solver ddim; {self.solver} has no such setting: leave it 0.")
        if self.solver == "ddim" and self.spacing == "linspace":
            raise UsageError(
                "diffusers' DDIM steps back by a constant stride, which timesteps rounded from linspace are not: use "
                "spacing leading or trailing (calls=linspace tells the network others)."
            )
        if self.karras and self.solver not in ("dpm_solver++", "unipc"):
            raise UsageError(f"sampling.karras belongs to dpm_solver++ and unipc, not to {self.solver}.")


PRESETS: dict[str, SamplingSettings] = {
    # Stable Diffusion's own configuration. The paper names 50 steps of DDIM and guidance 7.5 (Sec. 4.1) but no eta:
    # DDIM's 0.
    "restorerid_paper": SamplingSettings(guidance=7.5),
    "restorerid_released_code": SamplingSettings(eta=1.0, guidance=4.0, offset=0, calls="linspace"),
    "stablesr_released_code": SamplingSettings(solver="ddpm", steps=200, start="lq", spacing="linspace", offset=0),
    "stablesr_turbo": SamplingSettings(solver="ddpm", steps=4, start="lq", spacing="linspace", offset=0),
    # SDXL's own configuration, from pure noise; the paper names neither solver nor steps: those of the released code.
    "authface_paper": SamplingSettings(solver="ddpm", steps=50),
    "authface_released_code": SamplingSettings(solver="ddpm", steps=50, guidance=8.0),
    # DiffBIR's spaced DDPM from pure noise; guidance 1 reads no negative prompt.
    "dual_pivot_released_code": SamplingSettings(solver="ddpm", spacing="linspace", offset=0),
    # The last steps only sharpen what is there: guidance does little in them (Kynkäänniemi et al., NeurIPS 2024).
    "fast": SamplingSettings(
        solver="dpm_solver++", steps=20, guidance=7.5, guided_share=0.7, spacing="linspace", offset=0
    ),
    # The mean of what the LQ allows, guided: for networks too small to draw one face out of the many it allows.
    "one_step": SamplingSettings(solver="dpm_solver++", steps=1, guidance=2.0, spacing="linspace", offset=0),
}


def sampling_preset(name: str, **changes: Any) -> SamplingSettings:
    """Settings of a preset with some of them changed.

    Raises:
        UsageError: No such preset, or no such setting.
    """
    if name not in PRESETS:
        raise unknown_name("sampling preset", name, PRESETS)
    known = {field.name for field in dataclasses.fields(SamplingSettings)}
    for change in changes:
        if change not in known:
            raise unknown_name("sampling setting", change, known)
    return dataclasses.replace(PRESETS[name], **changes)


@dataclass(frozen=True)
class ModelCall:
    """What the batch of one call of the network holds: branch by branch, in it window by window, in it image by image.

    Attributes:
        branches: ("unconditional", "conditional") under guidance, else ("conditional",).
        windows: Rectangles of the latent, all of one size; one with the whole latent where nothing is tiled.
        images: Images in the batch.
        step: Number of the step, from 0.
    """

    branches: tuple[Branch, ...]
    windows: tuple[Window, ...]
    images: int
    step: int

    @property
    def layout(self) -> tuple[tuple[Branch, ...], tuple[Window, ...]]:
        """Hashable key of everything that repeats from step to step, under which conditions may be kept."""
        return self.branches, self.windows

    def by_branch(self, conditions: Mapping[Branch, Tensor]) -> Tensor:
        """Conditions that branches do not share (text, identity tokens), each (images, ...), laid out as the batch."""
        tiles = len(self.windows)
        return torch.cat([torch.cat([conditions[branch]] * tiles) for branch in self.branches])

    def by_window(self, condition: Callable[[Window], Tensor]) -> Tensor:
        """Conditions that windows do not share (the LQ latent), each (images, ...), laid out as the batch."""
        return torch.cat([condition(window) for window in self.windows] * len(self.branches))


class Predict(Protocol):
    """The network, called once a step (more often with tiles).

    Takes the latents (n, C, h, w), the timesteps (n,) int64 and the layout of the batch; returns the prediction
    (n, C, h, w). n = branches x windows x images.
    """

    def __call__(self, latent: Tensor, timestep: Tensor, call: ModelCall, /) -> Tensor:
        """Prediction of noise or velocity."""


@dataclass(frozen=True)
class SamplingStep:
    """What `on_step` is told: number of the step, the latent after it, and the clean latent as the solver sees it."""

    index: int
    latent: Tensor
    predicted_clean: Tensor | None


def spaced_timesteps(steps: int, train_timesteps: int = 1000) -> list[int]:
    """Timesteps spread evenly from 0 to the last one, both included, ascending.

    The position is a running sum of strides that is rounded, as in the released code: where it lies half way between
    two timesteps, the sum's own rounding decides, and diffusers' `linspace` may choose the other one (21 steps: 499
    here, 500 there).
    """
    stride = (train_timesteps - 1) / (steps - 1) if steps > 1 else 1.0
    return [round(position) for position in itertools.accumulate([0.0] + [stride] * (steps - 1))]


def image_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per image on the CPU: what it draws depends on that image's seed alone."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def image_noise(generators: list[torch.Generator], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (B, *shape), float32, each image from its own generator; drawn on the CPU."""
    noise = torch.stack([torch.randn(*shape, generator=generator) for generator in generators])
    return noise.to(device)


class Sampler:
    """Turns a network that predicts noise (or velocity) into latents.

    Args:
        settings: See `SamplingSettings` and `PRESETS`.
    """

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings
        scheduler = self.make_scheduler()
        self.solver_timesteps: tuple[int, ...] = tuple(scheduler.timesteps.tolist())
        """Timesteps whose alphas enter the updates, in order of use (descending)."""
        self.alphas_cumprod: Tensor = scheduler.alphas_cumprod
        """alpha-bar of every training timestep, (train_timesteps,) float32."""
        self.call_timesteps = self.solver_timesteps
        """Timesteps told to the network, in order of use."""
        if settings.calls == "linspace":
            ascending = spaced_timesteps(len(self.solver_timesteps), settings.train_timesteps)
            self.call_timesteps = tuple(reversed(ascending))

    def make_scheduler(self) -> Any:
        """A fresh scheduler of diffusers with its timesteps set (they hold state, so every sampling has its own)."""
        from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

        settings = self.settings
        common: dict[str, Any] = {
            "num_train_timesteps": settings.train_timesteps,
            "beta_start": settings.beta_start,
            "beta_end": settings.beta_end,
            "beta_schedule": "scaled_linear",
            "prediction_type": settings.prediction,
            "timestep_spacing": settings.spacing,
            "steps_offset": settings.offset,
        }
        classes: dict[Solver, tuple[Any, dict[str, bool]]] = {
            "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
            "ddpm": (DDPMScheduler, {"clip_sample": False}),
            "dpm_solver++": (DPMSolverMultistepScheduler, {"use_karras_sigmas": settings.karras}),
            "unipc": (UniPCMultistepScheduler, {"use_karras_sigmas": settings.karras}),
        }
        build, own = classes[settings.solver]
        scheduler = build(**own, **common)
        if settings.solver == "ddpm" and settings.spacing == "linspace":
            scheduler.set_timesteps(timesteps=spaced_timesteps(settings.steps, settings.train_timesteps)[::-1])
        else:
            scheduler.set_timesteps(settings.steps)
        return scheduler

    def noised(self, latent: Tensor, noise: Tensor, timestep: int | None = None) -> Tensor:
        """q(z_t | z_0): sqrt(alpha-bar) latent + sqrt(1 - alpha-bar) noise, (B, C, h, w).

        Args:
            latent: Clean or LQ latent, scaled as the network expects it.
            noise: Standard normal, of the same shape.
            timestep: The training schedule's last one if not given (999, as StableSR starts).
        """
        last = self.settings.train_timesteps - 1 if timestep is None else timestep
        alpha = float(self.alphas_cumprod[last])
        return alpha**0.5 * latent + (1 - alpha) ** 0.5 * noise

    def sample(
        self,
        predict: Predict,
        seeds: Sequence[int],
        *,
        shape: Sequence[int] | None = None,
        lq_latent: Tensor | None = None,
        start_latent: Tensor | None = None,
        step_noise: Tensor | None = None,
        tiling: Tiling | None = None,
        branches_agree: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        on_step: Callable[[SamplingStep], None] | None = None,
    ) -> Tensor:
        """Runs all steps without gradients.

        Args:
            predict: The network, see `Predict`.
            seeds: One per image (`bench.seeds.derive_seed`). An image's generator first draws its start, then the
                noise of each step.
            shape: (C, h, w) of a latent; needed where neither latent below is given.
            lq_latent: (B, C, h, w), scaled as the network expects it; the start where `start` is `lq`.
            start_latent: (B, C, h, w) that replaces the start altogether (nothing is drawn for it).
            step_noise: (steps, B, C, h, w) that replaces the noise drawn in DDIM with eta, to replay a trajectory.
            tiling: In latent pixels. Predictions of overlapping windows are averaged at every step, then the solver
                takes one step of the whole latent. A latent no larger than a tile is not tiled.
            branches_agree: Whether both branches of guidance have the same conditions: their predictions are then
                the same, guidance changes nothing, and the conditional branch alone is called.
            device: Where latents live; that of a given latent, else the CPU.
            dtype: Type of the latents given to the network. Solvers compute in float32.
            on_step: Told of every step.

        Returns:
            (B, C, h, w) float32 on `device`, an ordinary tensor (not one of inference mode).

        Raises:
            UsageError: Nothing says how large a latent is, sizes or numbers do not match, or `lq_latent` is missing.
        """
        start = self._start(seeds, shape, lq_latent, start_latent, step_noise)
        device = device or (start.device if isinstance(start, torch.Tensor) else "cpu")
        with torch.inference_mode():
            generators = image_generators(seeds)
            if start_latent is not None:
                latent = start_latent.to(device, torch.float32)
            else:
                size = start.shape[1:] if isinstance(start, torch.Tensor) else start
                latent = image_noise(generators, size, device)
                if self.settings.start == "lq" and lq_latent is not None:
                    latent = self.noised(lq_latent.to(device, torch.float32), latent)
            scheduler = self.make_scheduler()
            guidance = 1.0 if branches_agree else self.settings.guidance
            guided_steps = round(self.settings.guided_share * len(self.solver_timesteps))
            network = _TiledNetwork(predict, guidance, guided_steps, latent, tiling, dtype)
            timesteps = torch.tensor(self.call_timesteps, device=latent.device)
            for index, timestep in enumerate(self.solver_timesteps):
                prediction = network(latent, timesteps[index], index)
                arguments: dict[str, Any] = {}
                if self.settings.solver == "ddim":
                    arguments["eta"] = self.settings.eta
                if step_noise is not None:
                    arguments["variance_noise"] = step_noise[index].to(latent)
                elif self.settings.solver != "unipc":
                    arguments["generator"] = generators
                outcome = scheduler.step(prediction, timestep, latent, **arguments)
                latent = outcome.prev_sample
                if on_step is not None:
                    on_step(SamplingStep(index, latent, getattr(outcome, "pred_original_sample", None)))
        return latent.clone()

    def _start(
        self,
        seeds: Sequence[int],
        shape: Sequence[int] | None,
        lq_latent: Tensor | None,
        start_latent: Tensor | None,
        step_noise: Tensor | None,
    ) -> Tensor | Sequence[int]:
        """The latent or the shape that says how large a latent is, after checking what was given."""
        if self.settings.start == "lq" and lq_latent is None and start_latent is None:
            raise UsageError("sampling.start is lq: the LQ latent must be given (lq_latent).")
        known = start_latent if start_latent is not None else lq_latent
        if known is None and shape is None:
            raise UsageError("Nothing says how large a latent is: give shape, lq_latent or start_latent.")
        if known is not None and len(known) != len(seeds):
            raise UsageError(f"{len(seeds)} seeds for {len(known)} latents: one seed per image is needed.")
        if known is not None and shape is not None and tuple(known.shape[1:]) != tuple(shape):
            raise UsageError(f"shape is {tuple(shape)}, but the latents given are {tuple(known.shape[1:])}.")
        if step_noise is not None and self.settings.solver != "ddim":
            raise UsageError(f"step_noise replays DDIM; the solver is {self.settings.solver}.")
        if step_noise is not None and len(step_noise) < len(self.solver_timesteps):
            raise UsageError(f"step_noise holds {len(step_noise)} steps of {len(self.solver_timesteps)}.")
        return known if known is not None else tuple(shape or ())


class _TiledNetwork:
    """The guided prediction for a whole latent, from one call or from a few over its windows."""

    def __init__(
        self,
        predict: Predict,
        guidance: float,
        guided_steps: int,
        latent: Tensor,
        tiling: Tiling | None,
        dtype: torch.dtype,
    ) -> None:
        self._predict = predict
        self._guidance = guidance
        self._guided_steps = 0 if guidance == 1 else guided_steps
        self._dtype = dtype
        height, width = latent.shape[-2:]
        self._batches: list[tuple[Window, ...]] = [(Window(0, 0, height, width),)]
        self._blend: Blend | None = None
        if tiling is not None and max(height, width) > tiling.tile:
            windows = tiling.windows(height, width)
            self._batches = [windows[i : i + tiling.batch] for i in range(0, len(windows), tiling.batch)]
            self._blend = make_blend(tiling, height, width, latent.device)

    def __call__(self, latent: Tensor, timestep: Tensor, step: int) -> Tensor:
        content = latent.to(self._dtype)
        branches: tuple[Branch, ...] = ("unconditional", "conditional")
        if step >= self._guided_steps:
            branches = ("conditional",)
        if self._blend is None:
            return self._guided(content, timestep, ModelCall(branches, self._batches[0], len(latent), step))
        for windows in self._batches:
            tiles = torch.cat([window.crop(content) for window in windows])
            guided = self._guided(tiles, timestep, ModelCall(branches, windows, len(latent), step))
            for window, tile in zip(windows, guided.split(len(latent)), strict=True):
                self._blend.add(window, tile)
        return self._blend.result()

    def _guided(self, content: Tensor, timestep: Tensor, call: ModelCall) -> Tensor:
        batch = torch.cat([content] * len(call.branches)) if len(call.branches) > 1 else content
        prediction = self._predict(batch, timestep.expand(len(batch)), call).float()
        if len(call.branches) == 1:
            return prediction
        unconditional, conditional = prediction.chunk(2)
        return unconditional + self._guidance * (conditional - unconditional)
