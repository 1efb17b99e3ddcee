"""What the methods share that denoise latents: frozen networks, noising, averaging, checkpoints of a training.

A method of this kind says what its network is, what a training sample holds, and what the loss of noisy latents is.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from bench.batch import FaceBatch
from bench.errors import UsageError, unknown_name
from bench.method import RestorationMethod
from bench.seeds import derive_seed
from methods.blocks.base_models import BaseModel, base_model
from methods.blocks.colour_fix import COLOUR_FIXES
from methods.blocks.counted_training import CountedTraining
from methods.blocks.diffusion_objective import NoisyLatents, add_noise
from methods.blocks.earlier_weights import in_float32
from methods.blocks.inference_network import InferenceNetwork
from methods.blocks.latent_diffusion import locate_base, weights_file
from methods.blocks.latent_samples import LatentBatch, LatentSamples
from methods.blocks.latent_space import LatentSpace, latent_space
from methods.blocks.sampling import Sampler, sampling_preset
from methods.blocks.staged_network import StagedNetwork
from methods.blocks.tensor_cache import file_digest
from methods.blocks.text_conditioning import text_tokens

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

    from bench.data.training import TrainingPairs


#: Levels of the wavelet fix reach 2 ** levels pixels.
MOST_LEVELS = 10


def require_number(key: str, value: Any, least: float, most: float = math.inf, whole: bool = False) -> None:
    """Checks a setting `method.<key>`.

    Raises:
        UsageError: It is no number, or out of range.
    """
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
        number = "a whole number" if whole else "a number"
        limits = f"from {least:g} on" if most == math.inf else f"from {least:g} to {most:g}"
        raise UsageError(f"method.{key} must be {number} {limits}, got {value!r}.")


def require_betas(key: str, betas: Any) -> None:
    """Checks the setting `method.<key>.betas` of an Adam.

    Raises:
        UsageError: It is not two numbers below 1.
    """
    if not isinstance(betas, list) or len(betas) != 2:
        raise UsageError(f"method.{key}.betas must be two numbers, such as [0.9,0.99]: {betas!r}.")
    for beta in betas:
        require_number(f"{key}.betas", beta, 0, 0.999999)


class LatentDiffusionMethod(CountedTraining, RestorationMethod):
    """A method whose network denoises latents.

    Attributes:
        base: The base model (`settings["base"]`).
        network: The denoiser.
        sampler: Turns the denoiser into latents (`settings["sampling"]`).
        averaged: Running mean of the network while it is trained, if the settings ask for one.
        frozen: Networks and tensors that are loaded on first use, kept out of the module so that they are never saved
            with it.

    Args:
        settings: The composed configuration of the method with one of its sizes merged in.
    """

    architecture_keys: ClassVar[tuple[str, ...]] = ("native_size", "base", "network")
    not_in_revision: ClassVar[tuple[str, ...]] = ("autoencoder", "dropout", "ema_halflife_pictures", "weights_dtype")

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        if settings["colour_fix"] not in COLOUR_FIXES:
            raise unknown_name("value of method.colour_fix", settings["colour_fix"], COLOUR_FIXES)
        require_number("colour_fix_levels", settings["colour_fix_levels"], 1, MOST_LEVELS, whole=True)
        self.native_size = int(settings["native_size"])
        self.size = settings["size"]
        self.base: BaseModel = base_model(settings["base"])
        torch.manual_seed(derive_seed(settings.get("seed", 0), "initial weights") % 2**32)
        self.network = self.build_network()
        options = {key: value for key, value in settings["sampling"].items() if value is not None}
        preset = options.pop("preset")
        self.sampler = Sampler(sampling_preset(preset, prediction=self.base.prediction, **options))
        self.inference_network = InferenceNetwork(settings, preset)
        last = self.sampler.settings.train_timesteps - 1
        require_number("training.least_timestep", settings["training"]["least_timestep"], 0, last, whole=True)
        self._batch_pictures = 0
        self.averaged: nn.Module | None = None
        self.frozen: dict[str, Any] = {}

    def build_network(self) -> StagedNetwork:
        """The denoiser with new weights."""
        raise NotImplementedError

    # What is frozen ----------------------------------------------------------------------------

    @property
    def space(self) -> LatentSpace:
        """The autoencoder."""
        if "space" not in self.frozen:
            with torch.inference_mode(False):  # a loss on pictures takes gradients through it
                self.frozen["space"] = latent_space(
                    self.base, self.settings["autoencoder"], self.settings.get("autoencoder_dtype", "float32")
                )
        space: Any = self.frozen["space"].to(self.device)
        return cast(LatentSpace, space)

    def text(self, count: int, prompt: str) -> Tensor:
        """Text tokens (count, T, width) of a prompt, encoded once."""
        key = f"text {prompt}"
        if key not in self.frozen:
            with torch.inference_mode(False), torch.no_grad():
                self.frozen[key] = text_tokens(self.base, [prompt], self.settings["autoencoder"]).clone()
        tokens: Tensor = self.frozen[key].to(self.device)
        return tokens.expand(count, -1, -1)

    def conditions(self) -> dict[str, str]:
        """Hashes of autoencoder and text encoder, which decide the pictures too."""
        found = {"autoencoder": self.space.digest}
        if self.base.text is not None:
            path = locate_base(self.base, self.settings["autoencoder"], ("text",))
            found["text"] = file_digest(weights_file(self.base, path, "text"))
        return found

    # Restoration -------------------------------------------------------------------------------

    @property
    def trained_network(self) -> StagedNetwork:
        """The network whose weights count: the averaged one where there is one."""
        return cast(StagedNetwork, self.averaged if self.averaged is not None else self.network)

    def network_for_inference(self) -> Any:
        """The network as restoration runs it; while it is being trained it is left as it is."""
        source = self.trained_network
        if self.averaged is not None or any(parameter.requires_grad for parameter in source.parameters()):
            return source
        return self.inference_network.of(source, self.device)

    # Training ----------------------------------------------------------------------------------

    def begin_training(self) -> None:
        """Reads the weights that the training starts from, and freezes what it leaves alone.

        Raises:
            MissingError: Weights are absent.
            UsageError: The settings do not fit.
        """
        raise NotImplementedError

    def prepare_training(self) -> None:
        """See `begin_training`; also turns on checkpointing and the running mean, as the settings say."""
        self.begin_training()
        self._checkpoint_as_set()
        if self.settings["ema_halflife_pictures"]:
            # What is not trained is shared, not copied.
            shared = {id(own): own for own in self.network.parameters() if not own.requires_grad}
            self.averaged = copy.deepcopy(self.network, shared).requires_grad_(False)

    def prepare_timed_training(self) -> None:
        """For `bench perf`: what training prepares, without reading anything."""
        self.freeze_unchanged()
        self._checkpoint_as_set()

    def freeze_unchanged(self) -> None:
        """Leaves to training what it trains.

        Raises:
            UsageError: It trains what the settings left out.
        """
        self.network.train_only(self.settings["training"]["stage"])

    def _checkpoint_as_set(self) -> None:
        if self.settings["training"]["checkpointing"]:
            self.network.enable_gradient_checkpointing()

    def configure_optimizers(self) -> Any:
        """AdamW over what is trained."""
        options = self.settings["optimiser"]
        return torch.optim.AdamW(
            [parameter for parameter in self.network.parameters() if parameter.requires_grad],
            lr=options["learning_rate"],
            betas=tuple(options["betas"]),
            weight_decay=options["weight_decay"],
        )

    def sample_identity(self) -> dict[str, Any]:
        """All that decides what `encoded` makes, by name: the cache of training samples is kept by it."""
        return {"space": self.space.digest}

    def training_stream(self, pairs: TrainingPairs) -> IterableDataset[Any]:
        """Pictures, or latents made of them once (`method.training.cached_samples`)."""
        count = int(self.settings["training"]["cached_samples"])
        if not count:
            return pairs
        return LatentSamples(pairs, self.encoded, self.sample_identity(), count)

    def encoded(self, batch: FaceBatch) -> dict[str, Tensor]:
        """What a training step reads of a batch: latents of ground truth and LQ, (B, C, h, w)."""
        batch = batch.to(self.device)
        assert batch.gt is not None
        with torch.no_grad():
            latents = self.space.encode(torch.cat([batch.gt, batch.lq]) * 2 - 1)
        return {"latent": latents[: len(batch)], "lq_latent": latents[len(batch) :]}

    def training_loss(self, tensors: dict[str, Tensor], noised: NoisyLatents, generator: torch.Generator) -> Tensor:
        """The loss of one batch.

        Args:
            tensors: What `encoded` made.
            noised: The latents with noise.
            generator: Of the CPU, for whatever else is drawn.

        Returns:
            One number.
        """
        raise NotImplementedError

    def training_step(self, batch: LatentBatch | FaceBatch, batch_idx: int) -> Tensor:
        """One batch with noise of random timesteps; every draw comes from the seed of its first row."""
        self._batch_pictures = len(batch)
        tensors = batch.tensors if isinstance(batch, LatentBatch) else self.encoded(batch)
        self.set_learning_rate()
        rng = torch.Generator().manual_seed(derive_seed(batch.seeds[0], "diffusion step", self.batches_done))
        alphas, least = self.sampler.alphas_cumprod, int(self.settings["training"]["least_timestep"])
        noised = add_noise(tensors["latent"], alphas, self.sampler.settings.prediction, rng, least)
        loss = self.training_loss(tensors, noised, rng)
        self.require_finite(loss)
        self.log("train/total", loss.detach(), prog_bar=True)
        return loss

    def drop_lq(self, lq_latent: Tensor, generator: torch.Generator) -> Tensor:
        """LQ latents (B, C, h, w) of which some, drawn with probability `dropout.lq`, are nulled."""
        without = torch.rand(len(lq_latent), generator=generator) < self.settings["dropout"]["lq"]
        return torch.where(without.to(lq_latent.device)[:, None, None, None], 0.0, lq_latent)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Steps, counts the batch and moves the average: before `on_train_batch_end`, where checkpoints are written."""
        super().optimizer_step(*arguments, **options)
        self._move_average()
        self.batches_done += 1

    @torch.no_grad()
    def _move_average(self) -> None:
        if self.averaged is not None:
            pictures = self._batch_pictures * int(self.trainer.world_size)
            decay = 0.5 ** (pictures / self.settings["ema_halflife_pictures"])
            decay = min(decay, (1 + self.batches_done) / (10 + self.batches_done))
            for mean, value in zip(self.averaged.parameters(), self.network.parameters(), strict=True):
                if value.requires_grad:
                    mean.lerp_(value, 1 - decay)

    # Weights -----------------------------------------------------------------------------------

    def weights_state(self) -> dict[str, Tensor]:
        """The averaged network."""
        return {name: value.detach().cpu().contiguous() for name, value in self.trained_network.state_dict().items()}

    def load_weights_state(self, state: dict[str, Tensor]) -> None:
        """Loads a weights file; tensors of parts that the settings leave out are passed over.

        Raises:
            UsageError: A tensor is missing, or belongs to no part of the network.
        """
        wanted, title = set(self.network.state_dict()), self.spec.title
        try:
            surplus = {self.network.part_of(name) for name in set(state) - wanted} - self.network.left_out
        except ValueError as error:
            raise UsageError(f"These are no weights of {title}: {error}.") from error
        if missing := sorted(wanted - set(state)):
            raise UsageError(
                f"The weights lack {len(missing)} tensors of {title} ({', '.join(missing[:3])}, …): those of "
                f"{', '.join(sorted({self.network.part_of(name) for name in missing}))}."
            )
        if surplus:
            raise UsageError(f"The weights hold tensors of {', '.join(sorted(surplus))} that this network has not.")
        self.network.load_state_dict({name: in_float32(state[name]) for name in wanted}, assign=True)
