"""What `bench perf` needs of RestorerID: stand-ins for what is absent, and the same model run the documented way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.batch import FaceBatch
from bench.errors import MissingError, UsageError
from bench.seeds import derive_seed
from methods.blocks.colour_fix import colour_fix
from methods.blocks.latent_samples import LatentBatch
from methods.blocks.pipeline_benchmark import DOCUMENTED_LOOP, documented_loop
from methods.blocks.sampling import image_generators, image_noise
from methods.blocks.self_ensemble import mean_over_mirror
from methods.blocks.timing_substitutes import fill_zeros, first_line, substitute_absent
from methods.restorerid.identity_tokens import FaceFeatures
from methods.restorerid.network import RestorerIDNetwork
from methods.restorerid.reference_faces import ReferenceFaces, locate_face

if TYPE_CHECKING:
    from methods.restorerid.module import RestorerID

PLAIN_CALL = """\
maps = lq_encoder(torch.cat([lq_latents] * 2), t)
    noise = unet(model_input, t, torch.cat([negative, positive]), lq_maps=maps,
                 identity_tokens=torch.cat([no_identity, identity]), identity_scale=scale)"""
IMAGE_STATES = {"sface": 49, "arcface_clip": 257}
FACE = ((0.34, 0.46), (0.66, 0.46), (0.50, 0.64), (0.37, 0.82), (0.63, 0.82))
TIMED_SCALE = 0.75


def prepare_for_timing(method: RestorerID, random_weights: bool) -> list[str]:
    """Makes a method restore random pictures at its full cost, whatever is absent; nothing of it can be scored.

    Args:
        method: The method, on the CPU. Changed in place.
        random_weights: Whether its own weights are random: what starts at zero is then filled too, so that every part
            changes the pictures.

    Returns:
        What was replaced, in words.
    """
    notes = []
    if random_weights:
        fill_zeros(method.network)
    if method.settings["use_identity"]:
        method.find_references = _faces_in_the_middle
        notes.append("random references show no face: the detector runs, the points of the face are given")
        try:
            method.face_encoder.unconditional(1, "cpu")
        except MissingError as error:
            method.frozen["face_encoder"] = _RandomFaceEncoder(method.settings)
            notes.append(f"random face encoder: {first_line(error)}")
        try:
            method.id_scale(torch.rand(1, 3, method.native_size or 128, method.native_size or 128))
        except (MissingError, UsageError) as error:
            method.settings["id_scale"] = TIMED_SCALE
            notes.append(f"identity at the fixed weight {TIMED_SCALE}: {first_line(error)}")
    notes += substitute_absent(method, {*method.settings["prompts"].values(), ""})
    return list(dict.fromkeys(notes))


def training_batch(method: RestorerID, count: int) -> LatentBatch:
    """Random latents and faces for a training step."""
    side = (method.native_size or 128) // method.base.downscale
    generator = torch.Generator().manual_seed(0)
    projection = method.settings["network"]["projection"]
    shape = (count, method.base.latent_channels, side, side)
    states = (count, IMAGE_STATES[method.settings["face_encoder"]], projection["image_dim"])
    tensors = {
        "latent": torch.randn(shape, generator=generator),
        "lq_latent": torch.randn(shape, generator=generator),
        "identity": nn.functional.normalize(torch.randn(count, projection["identity_dim"], generator=generator)),
        "image_states": torch.randn(states, generator=generator),
    }
    if method.settings["losses"]["identity"]:
        size = float(method.native_size or 128)
        tensors["points"] = size * torch.tensor(FACE).expand(count, -1, -1)
        tensors["own_identity"] = tensors["identity"].flip(0)
    return LatentBatch(tensors, list(range(count)))


class PlainPipeline:
    """The same weights, solver, steps and noise in the loop of diffusers' documentation.

    Nothing is kept from step to step, nothing shared by the branches of guidance, no layer is merged, laid out or
    compiled in any special way.

    Args:
        method: The method whose weights and settings it takes.
    """

    def __init__(self, method: RestorerID) -> None:
        self.method = method
        self.dtype = next(method.network_for_inference().parameters()).dtype
        network: RestorerIDNetwork = copy.deepcopy(method.network)
        self.network = network.to(self.dtype, memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    @property
    def pattern(self) -> str:
        """The loop as text."""
        settings = self.method.sampler.settings
        extra = f", eta={settings.eta:g}" if settings.solver == "ddim" else ""
        return DOCUMENTED_LOOP.format(
            steps=settings.steps,
            scheduler=type(self.method.sampler.make_scheduler()).__name__,
            call=PLAIN_CALL,
            guidance=settings.guidance,
            extra=extra,
        )

    @torch.no_grad()
    def restore(self, batch: FaceBatch) -> Tensor:
        """Restores pictures (B, 3, H, W), as `RestorerID.restore` does."""
        faces = self.method.reference_faces(batch)
        if not self.method.settings["self_ensemble"]:
            return self._restore_once(batch, faces)
        both = faces and faces.with_mirror_images()
        return mean_over_mirror(lambda mirrored: self._restore_once(mirrored, both), batch)

    def _restore_once(self, batch: FaceBatch, faces: ReferenceFaces | None) -> Tensor:
        method, network, dtype = self.method, self.network, self.dtype
        lq_latent = method.space.encode(batch.lq * 2 - 1)
        conditions = method.sampling_conditions(batch, faces)
        text = torch.cat([conditions.text["unconditional"], conditions.text["conditional"]]).to(dtype)
        tokens, scale = None, None
        if conditions.identity is not None and conditions.scale is not None:
            tokens = torch.cat([conditions.identity["unconditional"], conditions.identity["conditional"]]).to(dtype)
            scale = torch.cat([conditions.scale] * 2)
        lq = torch.cat([lq_latent] * 2).to(dtype)

        def call(model_input: Tensor, timestep: Tensor) -> Tensor:
            steps = timestep.expand(len(model_input))
            maps = network.lq_maps(lq, steps)
            return network(model_input.to(dtype), steps, text, maps, tokens, scale).float()

        sampler = method.sampler
        generators = image_generators([derive_seed(seed, "diffusion noise") for seed in batch.seeds])
        noise = image_noise(generators, lq_latent.shape[1:], lq_latent.device)
        extra: dict[str, Any] = {} if sampler.settings.solver == "unipc" else {"generator": generators}
        if sampler.settings.solver == "ddim":
            extra["eta"] = sampler.settings.eta
        if sampler.settings.start == "lq":
            noise = sampler.noised(lq_latent, noise)
        latent = documented_loop(
            sampler.make_scheduler(), call, noise, sampler.settings.guidance, sampler.call_timesteps, **extra
        )
        restored = method.space.decode(latent).add(1).div(2).clamp(0, 1)
        return colour_fix(
            restored, batch.lq, method.settings["colour_fix"], levels=method.settings["colour_fix_levels"]
        )


class _RandomFaceEncoder:
    """Face encoder with random weights: CLIP ViT-H/14 at its size, and an embedding read off the crop."""

    digest = "random"

    def __init__(self, settings: dict[str, Any]) -> None:
        from methods.restorerid.identity_tokens import ClipImageStates

        projection = settings["network"]["projection"]
        self.identity_dim, self.image_dim = int(projection["identity_dim"]), int(projection["image_dim"])
        self.clip = ClipImageStates() if settings["face_encoder"] == "arcface_clip" else None
        self.states = IMAGE_STATES[settings["face_encoder"]]

    def encode(self, images: Tensor, points: Tensor) -> FaceFeatures:
        """Features of the pictures' pixels."""
        cells = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), (16, self.identity_dim // 16))
        identity = nn.functional.normalize(cells.flatten(1) - cells.mean(), dim=1)
        return FaceFeatures(identity, self._image_states(nn.functional.interpolate(images, (224, 224))))

    def embed(self, images: Tensor, points: Tensor) -> Tensor:
        """Embeddings of the pictures' pixels."""
        return self.encode(images, points).identity

    def unconditional(self, count: int, device: torch.device | str) -> FaceFeatures:
        """Features of zeros."""
        zero = torch.zeros(count, 3, 224, 224, device=device)
        return FaceFeatures(torch.zeros(count, self.identity_dim, device=device), self._image_states(zero))

    def _image_states(self, crops: Tensor) -> Tensor:
        if self.clip is not None:
            return self.clip.to(crops.device)(crops)
        grid = nn.functional.adaptive_avg_pool2d(crops.mean(1, keepdim=True), (self.states, 1)).flatten(1)
        return grid[..., None].expand(-1, -1, self.image_dim)


def _faces_in_the_middle(
    references: Tensor, mask: Tensor, names: Sequence[str], on_missing_face: str = "error"
) -> ReferenceFaces:
    images = references[:, 0]
    for image, name in zip(images, names, strict=True):
        locate_face(image, name)
    points = images.new_tensor(FACE) * images.shape[-1]
    return ReferenceFaces(images, points.expand(len(images), -1, -1), mask[:, 0])
