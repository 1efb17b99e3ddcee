"""The ID model: a face embedding and the image states of a face crop become a few context tokens.

Source: RestorerID (arXiv 2411.14125), Sec. 3.3, which takes the FaceID-Plus model of IP-Adapter as it
is. The projection is diffusers' class; what is added here is a call without hidden state, the two
kinds of face encoder (published and demo) and the unconditional tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.models.embeddings import IPAdapterFaceIDPlusImageProjection
from torch import Tensor, nn

from bench.errors import UsageError
from bench.faces.sface import EMBEDDING_SIZE, SFace, crop_faces
from bench.weights import catalogue
from methods.restorerid.position_code import CODE_WIDTH, position_code

CLIP_SIDE = 224
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
#: CLIP ViT-H/14 as released with IP-Adapter (laion2B-s32B-b79K).
VIT_H: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": CLIP_SIDE,
    "projection_dim": 1024,
    "hidden_act": "gelu",
}


@dataclass(frozen=True)
class FaceFeatures:
    """What a face encoder reads from a picture.

    Attributes:
        identity: Face embeddings of length 1, (B, D); zeros where there is no identity.
        image_states: States of an image encoder on the face crop, (B, N, C).
    """

    identity: Tensor
    image_states: Tensor


class IdentityProjection(IPAdapterFaceIDPlusImageProjection):
    """Face embedding and image states to identity tokens (FaceID-Plus, v1).

    Two linear layers and a normalisation make the queries from the face embedding; a perceiver reads
    the image states with them.

    Args:
        identity_dim: Width of the face embedding.
        image_dim: Width of the image states.
        width: Width of the tokens, that of the UNet's context.
        tokens: Number of tokens.
        depth: Layers of the perceiver.
        heads: Attention heads; None for `width // head_width`.
        head_width: Width of a head.
        expansion: Factor of the hidden width in the perceiver's feed-forward layers.
        shortcut: Whether the queries are added to the result (v2; the paper's model has none).
        shortcut_scale: Weight of the perceiver beside the shortcut.
        patches: Whether the image states follow as tokens of their own, one for each, and every token ends in the code
            of its place (zeros for the perceiver's). Not in the paper: for the demo, see the card.

    Raises:
        ValueError: A shortcut with patches.
    """

    def __init__(
        self,
        identity_dim: int = 512,
        image_dim: int = 1280,
        width: int = 768,
        tokens: int = 4,
        depth: int = 4,
        heads: int | None = None,
        head_width: int = 64,
        expansion: float = 4,
        shortcut: bool = False,
        shortcut_scale: float = 1.0,
        patches: bool = False,
    ) -> None:
        if shortcut and patches:
            raise ValueError("a projection has a shortcut or patches, not both")
        content = width - CODE_WIDTH if patches else width
        super().__init__(
            embed_dims=width,
            output_dims=content,
            hidden_dims=image_dim,
            id_embeddings_dim=identity_dim,
            depth=depth,
            dim_head=head_width,
            heads=heads or width // head_width,
            num_tokens=tokens,
            ffn_ratio=expansion,
        )
        self.shortcut, self.shortcut_scale = shortcut, shortcut_scale
        self.patches = nn.Sequential(nn.Linear(image_dim, content), nn.LayerNorm(content)) if patches else None

    def forward(self, identity: Tensor, image_states: Tensor) -> Tensor:  # type: ignore[override]
        """Makes the tokens.

        Args:
            identity: (B, identity_dim), of length 1.
            image_states: (B, N, image_dim).

        Returns:
            (B, tokens, width); with patches (B, tokens + N, width).
        """
        queries = self.proj(identity.to(image_states.dtype)).unflatten(-1, (self.num_tokens, self.embed_dim))
        queries = self.norm(queries)
        states, latents = self.proj_in(image_states), queries
        for layer in self.layers:
            latents = layer(states, latents, latents)
        tokens: Tensor = self.norm_out(self.proj_out(latents))
        if self.patches is not None:
            return self._with_patches(tokens, image_states)
        return queries + self.shortcut_scale * tokens if self.shortcut else tokens

    def _with_patches(self, tokens: Tensor, image_states: Tensor) -> Tensor:
        assert self.patches is not None
        side = math.isqrt(image_states.shape[1])
        if side * side != image_states.shape[1]:
            raise UsageError(
                f"network.projection.patches needs image states in a square, not {image_states.shape[1]} of them: set "
                "it to false for this face encoder."
            )
        code = position_code(side, side, like=tokens)
        content = torch.cat([tokens, self.patches(image_states)], 1)
        places = torch.cat([code.new_zeros(tokens.shape[1], CODE_WIDTH), code])
        return torch.cat([content, places.expand(len(content), -1, -1)], -1)


class FaceEncoder(Protocol):
    """Reads identity and image states from pictures with located faces."""

    identity_dim: int
    image_dim: int

    @property
    def digest(self) -> str:
        """Names everything that decides its features: networks, hashes of their weights, options."""
        ...

    def encode(self, images: Tensor, points: Tensor) -> FaceFeatures:
        """Reads faces.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            points: (B, 5, 2) x, y in pixels: eyes, nose, mouth corners.
        """
        ...

    def embed(self, images: Tensor, points: Tensor) -> Tensor:
        """Face embeddings alone, (B, D) of length 1, with gradients to the images; arguments as `encode`."""
        ...

    def unconditional(self, count: int, device: torch.device | str) -> FaceFeatures:
        """Zero embeddings and the image states of a zero image, `count` times."""
        ...


class ClipImageStates(nn.Module):
    """CLIP image encoder read at its last layer but one, frozen.

    Args:
        settings: Sizes for `transformers.CLIPVisionConfig`; CLIP ViT-H/14 by default.

    Raises:
        MissingError: transformers is not installed.
    """

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        try:
            from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
        except ImportError as error:
            from bench.errors import MissingError

            raise MissingError(
                "The image encoder of RestorerID at its published size needs the Python package transformers. "
                'Install it with: pip install "face-restoration-bench[full]"'
            ) from error
        configuration = CLIPVisionConfig(**(settings or VIT_H))
        self.image_dim = int(configuration.hidden_size)
        self.side = int((settings or VIT_H)["image_size"])
        self.digest = "clip, weights unnamed"
        self.image_encoder = CLIPVisionModelWithProjection(configuration).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ClipImageStates:
        """Stays in evaluation mode; the encoder is frozen."""
        return super().train(False)

    def load_weights(self, path: Path) -> None:
        """Loads a file in transformers' layout, every key accounted for.

        Args:
            path: Safetensors or torch file of the encoder alone (as in IP-Adapter's folder `image_encoder`); that of a
                whole RestorerID checkpoint goes through `methods.restorerid.checkpoint`.

        Raises:
            MissingError: There is no such file.
            UsageError: It is no file of this encoder.
        """
        from methods.blocks.checkpoints.accounting import convert, part_of, read_checkpoint
        from methods.blocks.tensor_cache import file_digest

        part = part_of("image_encoder", "", self.image_encoder, lambda name: name)
        found = convert(
            read_checkpoint(path),
            [part],
            expected="the image encoder CLIP ViT-H/14 of IP-Adapter, as transformers stores it",
            source=str(path),
            left_out={r"vision_model\.embeddings\.position_ids": "positions are counted"},
        )
        self.image_encoder.load_state_dict(found.states["image_encoder"], strict=True)
        self.digest = f"clip {file_digest(path)[:12]}"

    def forward(self, crops: Tensor, bgr_compat: bool = True) -> Tensor:
        """Reads face crops.

        Args:
            crops: (B, 3, 224, 224) RGB in [0, 1].
            bgr_compat: Whether the channels are handed over in the order blue, green, red, as the
                released code and IP-Adapter's demonstration do, so that the weights expect it.

        Returns:
            (B, 257, 1280), without gradient.
        """
        if bgr_compat:
            crops = crops.flip(1)
        mean, std = (crops.new_tensor(numbers).view(1, 3, 1, 1) for numbers in (CLIP_MEAN, CLIP_STD))
        return self._states((crops - mean) / std)

    def unconditional(self, count: int = 1) -> Tensor:
        """States of an image that is zero after normalisation, (count, 257, 1280)."""
        weight = self.image_encoder.visual_projection.weight
        zero = torch.zeros(1, 3, self.side, self.side, device=weight.device)
        return self._states(zero).expand(count, -1, -1)

    @torch.no_grad()
    def _states(self, pixels: Tensor) -> Tensor:
        dtype = next(self.image_encoder.parameters()).dtype
        states: Tensor = self.image_encoder(pixels.to(dtype), output_hidden_states=True).hidden_states[-2]
        return states.to(pixels.dtype)


class PublishedFaceEncoder:
    """ArcFace on the 112 px crop and CLIP on the 224 px crop, as published.

    Args:
        recogniser: Maps pictures (B, 3, H, W) and points (B, 5, 2) to unit embeddings (B, 512):
            insightface's w600k_r50.
        clip: Image encoder.
        bgr_compat: See `ClipImageStates.forward`.
    """

    identity_dim = 512

    def __init__(self, recogniser: _Recogniser, clip: ClipImageStates, bgr_compat: bool = True) -> None:
        self.recogniser, self.clip, self.bgr_compat = recogniser, clip, bgr_compat
        self.image_dim = clip.image_dim

    @property
    def digest(self) -> str:
        """See `FaceEncoder.digest`."""
        order = "blue, green, red" if self.bgr_compat else "red, green, blue"
        return f"{self.recogniser.short_hash()}, {self.clip.digest} at {self.clip.side} px, {order}"

    @torch.no_grad()
    def encode(self, images: Tensor, points: Tensor) -> FaceFeatures:
        """Reads faces; see `FaceEncoder.encode`."""
        crops = crop_faces(images, points, self.clip.side)
        clip = self.clip.to(images.device)
        return FaceFeatures(self.embed(images, points), clip(crops, self.bgr_compat))

    def embed(self, images: Tensor, points: Tensor) -> Tensor:
        """See `FaceEncoder.embed`."""
        return self.recogniser.embed(images, points)

    def unconditional(self, count: int, device: torch.device | str) -> FaceFeatures:
        """See `FaceEncoder.unconditional`."""
        states = self.clip.to(device).unconditional(count)
        return FaceFeatures(torch.zeros(count, self.identity_dim, device=device), states)


class DemoFaceEncoder:
    """SFace in both roles, for the demo: its embedding, and its map at stride 8 as 7 x 7 image states.

    Args:
        network: The recogniser; loaded from the catalogue on first use if None.

    Raises:
        MissingError: SFace's weights are absent (on first use).
    """

    identity_dim = EMBEDDING_SIZE
    image_dim = 512

    def __init__(self, network: SFace | None = None) -> None:
        self._network = network

    @property
    def digest(self) -> str:
        """See `FaceEncoder.digest`."""
        return f"sface {catalogue.short_hash('sface')}, embedding and map at stride 8 in 7 x 7 cells"

    @property
    def network(self) -> SFace:
        """SFace, frozen."""
        if self._network is None:
            self._network = SFace()
        return self._network

    @torch.no_grad()
    def encode(self, images: Tensor, points: Tensor) -> FaceFeatures:
        """Reads faces; see `FaceEncoder.encode`."""
        embedding, features = self.network.to(images.device).embedding_and_features(self._crops(images, points))
        return FaceFeatures(embedding, self._image_states(features))

    def embed(self, images: Tensor, points: Tensor) -> Tensor:
        """See `FaceEncoder.embed`."""
        embedding: Tensor = self.network.to(images.device)(self._crops(images, points))
        return embedding

    @staticmethod
    def _crops(images: Tensor, points: Tensor) -> Tensor:
        # On a CPU SFace takes 1.7 times as long in the other layout.
        return crop_faces(images, points).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def unconditional(self, count: int, device: torch.device | str) -> FaceFeatures:
        """See `FaceEncoder.unconditional`; zero after normalisation is mid-grey."""
        features = self.network.to(device).features(torch.full((1, 3, 112, 112), 0.5, device=device))
        states = self._image_states(features).expand(count, -1, -1)
        return FaceFeatures(torch.zeros(count, self.identity_dim, device=device), states)

    @staticmethod
    def _image_states(features: list[Tensor]) -> Tensor:
        cells = nn.functional.adaptive_avg_pool2d(features[2], 7).flatten(2).transpose(1, 2)
        # Channels of one cell differ in size by far more than one channel does between faces.
        return nn.functional.layer_norm(cells, cells.shape[-1:])


class _Recogniser(Protocol):
    def embed(self, images: Tensor, points: Tensor) -> Tensor: ...

    def short_hash(self) -> str: ...
