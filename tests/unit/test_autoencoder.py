"""The small autoencoder: coding, training, colours; and the latent space that methods see of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.config import compose, method_settings
from bench.errors import MissingError, UsageError
from bench.weights.method_weights import write_weights
from methods.autoencoder.module import Autoencoder, coloured, random_crops
from methods.blocks.base_models import base_model
from methods.blocks.latent_space import latent_space
from tests.unit.test_refine_module import trainable, training_batch

SMALL = ["method.network.block_out_channels=[8,8,16,16]", "method.training.whole_from=1"]


def settings(*words: str) -> dict[str, Any]:
    return method_settings(compose("train", ["method=autoencoder", *words])["method"], "demo")


def test_a_step_with_crops_and_one_with_whole_pictures(orl_root: Path) -> None:
    method = Autoencoder(settings(*SMALL))
    optimiser = method.configure_optimizers()
    logged = trainable(method)
    method.optimizers = lambda: optimiser  # type: ignore[method-assign]
    batch = training_batch(128, 2)
    for step in range(2):
        optimiser.zero_grad()
        method.training_step(batch, step).backward()
        optimiser.step()
    assert "train/features" not in logged[0]
    assert logged[1]["train/features"] > 0
    assert method.latent_deviation.min() > 0
    assert not torch.equal(method.latent_deviation, torch.ones(8))


def test_latents_are_normalised_and_decoded_back() -> None:
    method = Autoencoder(settings(*SMALL)).eval()
    images = torch.rand(2, 3, 64, 96) * 2 - 1
    with torch.inference_mode():
        plain = method.encode(images)
        method.latent_mean.fill_(0.5)
        method.latent_deviation.fill_(2.0)
        normalised = method.encode(images)
        assert normalised.shape == (2, 8, 8, 12)
        assert torch.allclose(normalised * 2 + 0.5, plain, atol=1e-6)
        assert torch.allclose(method.decode(normalised), method.vae.decode(plain).sample, atol=1e-5)


def test_colouring_keeps_range_and_leaves_the_others() -> None:
    grey = torch.full((64, 3, 16, 16), 0.4)
    result = coloured(grey, 0.5, torch.Generator().manual_seed(0))
    changed = (result != grey).flatten(1).any(1)
    assert 16 < changed.sum() < 48
    assert result.min() >= 0
    assert result.max() <= 1
    assert (result[changed][:, 0] != result[changed][:, 1]).any()


def test_crops_are_windows_of_their_picture() -> None:
    images = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    for image, crop in zip(images, random_crops(images, 4, torch.Generator().manual_seed(1)), strict=True):
        assert crop.shape == (3, 4, 4)
        row, column = divmod(int(crop[0, 0, 0] - image[0, 0, 0]), 8)
        assert torch.equal(crop, image[:, row : row + 4, column : column + 4])


def test_the_latent_space_reads_weights_and_stays_frozen(tmp_path: Path) -> None:
    method = Autoencoder(settings(*SMALL)).eval()
    file = tmp_path / "vae.safetensors"
    write_weights(file, method, "float32", {"settings": method.settings})
    space = latent_space(base_model("demo"), str(file))
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(space.encode(images), method.encode(images))
    assert not space.train().training
    assert not any(parameter.requires_grad for parameter in space.parameters())
    assert (space.channels, space.factor, len(space.digest)) == (8, 8, 64)
    with pytest.raises(MissingError, match=r"method\.autoencoder=.*not a file"):
        latent_space(base_model("demo"), str(tmp_path / "absent"))
    for metadata in ({"method": "refine", "settings": {}}, {}):
        write_weights(file, method, "float32", metadata)
        with pytest.raises(UsageError, match="not of the small autoencoder"):
            latent_space(base_model("demo"), str(file))


def test_reading_the_latent_space_draws_nothing(tmp_path: Path) -> None:
    method = Autoencoder(settings(*SMALL))
    write_weights(tmp_path / "vae.safetensors", method, "float32", {"settings": method.settings})
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    latent_space(base_model("demo"), str(tmp_path / "vae.safetensors"))
    assert torch.equal(torch.rand(3), expected)
