"""ReFine as a Lightning module: paper size with the public prior, ablations, channel order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.batch import FaceBatch
from bench.config import compose, method_settings
from bench.data.training import TrainingPairs, TrainingSettings
from bench.errors import UsageError
from bench.protocol.protocol import DataSettings
from bench.weights.method_weights import read_weights
from methods.refine import module
from methods.refine.module import ReFine, pose

SHIPPED = Path(module.__file__ or "").parent / "weights" / "demo.safetensors"
KEYS = Path(__file__).parents[1] / "parity" / "keys_stylegan2_512_basicsr_cmul1.json"


def settings(size: str, *words: str) -> dict[str, Any]:
    return method_settings(compose("train", ["method=refine", f"size={size}", *words])["method"], size)


def trainable(method: ReFine) -> list[dict[str, float]]:
    """Lets a module take training steps without a trainer; returns what it logs."""
    logged: list[dict[str, float]] = []
    optimisers = method.configure_optimizers()
    method.optimizers = lambda: optimisers  # type: ignore[method-assign]
    method.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    method.log = lambda *_, **__: None  # type: ignore[method-assign]
    method.log_dict = lambda values: logged.append({k: float(v) for k, v in values.items()})  # type: ignore[method-assign]
    return logged


def training_batch(size: int, count: int = 1) -> FaceBatch:
    data = DataSettings(**compose("train", ["method=refine", "data=orl_heavy"])["data"])
    return TrainingPairs(data, TrainingSettings(batch_size=count, size=size)).batch(0)


@pytest.mark.slow
def test_paper_size_loads_the_public_prior_restores_and_trains(orl_root: Path) -> None:
    from bench.weights import catalogue

    generator = torch.Generator().manual_seed(1)
    listed = json.loads(KEYS.read_text("utf-8"))
    prior = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape, _ in listed}
    file = catalogue.weights_folder() / catalogue.entry("stylegan2_ffhq_512").file
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"params_ema": prior}, file)
    # LPIPS and ArcFace weights cannot be had without a network: the rest is the paper's size.
    method = ReFine(
        settings("paper", "method.identity=sface", "method.distance=l1", "method.cycle_distance=l1") | {"size": "paper"}
    )
    method.prepare_training()
    loaded = method.networks.network.prior.state_dict()
    assert loaded.keys() == prior.keys()
    name = "style_convs.0.modulated_conv.weight"
    assert torch.equal(loaded[name], prior[name])
    batch = training_batch(512)
    logged = trainable(method)
    before = {name: value.detach().clone() for name, value in method.networks.named_parameters() if value.requires_grad}
    method.training_step(batch, 0)
    assert all(torch.isfinite(torch.tensor(value)) for value in logged[0].values())
    assert {"train/minimum", "train/cycle", "train/identity", "train/adversarial", "train/discriminator"} <= logged[
        0
    ].keys()
    still = [
        name
        for name, value in method.networks.named_parameters()
        if value.requires_grad and torch.equal(value, before[name])
    ]
    assert not still, still[:5]
    with torch.inference_mode():
        assert method.restore(batch.for_restoration()).shape == (1, 3, 512, 512)


class Answer(nn.Module):
    """Stands in for the network: returns one of its inputs, so that everything around it can be seen."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which

    def forward(
        self, lq: Tensor, warped: Tensor, validity: Tensor, identity: Tensor, reference_present: Tensor
    ) -> Tensor:
        return lq if self.which == "lq" else warped


@pytest.mark.parametrize("which", ["lq", "reference"])
def test_channels_stay_in_order_around_the_network(which: str) -> None:
    method = ReFine(settings("demo")).eval()
    method.networks.network = Answer(which)
    colour = torch.tensor([0.9, 0.5, 0.1]).view(1, 3, 1, 1).expand(1, 3, 128, 128).contiguous()
    other = torch.tensor([0.2, 0.4, 0.8]).view(1, 3, 1, 1).expand(1, 3, 128, 128).contiguous()
    batch = FaceBatch(colour, other.unsqueeze(1), torch.ones(1, 1, dtype=torch.bool), ["a/1"], ["a"], [0])
    with torch.inference_mode():
        middle = method.restore(batch)[0, :, 64, 64]
    expected = [0.9, 0.5, 0.1] if which == "lq" else [0.2, 0.4, 0.8]
    assert middle.tolist() == pytest.approx(expected, abs=2e-2)


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["method.losses.cycle=0"], "train/cycle"),
        (["method.losses.identity=0"], "train/identity"),
        (["method.losses.adversarial=0"], "train/adversarial"),
        (["method.losses.target=truth"], None),
        (["method.reference=none"], None),
        (["method.use_warped_reference=false"], None),
        (["method.use_identity=false"], None),
    ],
)
def test_every_ablation_trains(words: list[str], absent: str | None, orl_root: Path) -> None:
    small = ["method.network.narrow=0.0625", "method.network.style_dim=16", "method.discriminator.narrow=0.0625"]
    method = ReFine(settings("demo", *small, "method.losses.adversarial_start=0", *words))
    method.prepare_training()
    logged = trainable(method)
    method.training_step(training_batch(128, 2), 0)
    assert absent not in logged[0]
    assert all(torch.isfinite(torch.tensor(value)) for value in logged[0].values())


def test_a_landmark_network_taken_over_stays_as_it_is(orl_root: Path, tmp_path: Path) -> None:
    small = ["method.network.narrow=0.0625", "method.network.style_dim=16", "method.discriminator.narrow=0.0625"]
    method = ReFine(settings("demo", *small, "method.training.landmarks_from=shipped") | {"size": "demo"})
    method.prepare_training()
    shipped = read_weights(SHIPPED)[0]
    logged = trainable(method)
    before = method.networks.network.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    method.training_step(training_batch(128, 2), 0)
    assert "train/landmarks" not in logged[0]
    assert any(not torch.equal(before[name], value) for name, value in method.networks.network.state_dict().items())
    for name, value in method.weights_state().items():
        if name.startswith("landmarks."):
            assert torch.equal(value, shipped[name].float()), name

    other = tmp_path / "other.safetensors"
    save_file({"landmarks.weight": torch.zeros(2)}, other)
    method = ReFine(settings("demo", *small, f"method.training.landmarks_from={other}") | {"size": "demo"})
    with pytest.raises(UsageError, match="holds no landmark network"):
        method.prepare_training()


def test_pose_ignores_place_and_scale() -> None:
    points = torch.tensor([[40.0, 50.0], [80.0, 52.0], [61.0, 75.0], [45.0, 95.0], [78.0, 96.0]])
    angle = torch.tensor(0.3)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    assert torch.allclose(pose(points), pose(points @ turn.T * 1.7 + 5), atol=1e-5)
    turned = points.clone()
    turned[2, 0] += 8
    assert (pose(points) - pose(turned)).abs().max() > 0.1


def test_the_landmarks_of_a_degraded_face_come_from_the_network_alone(orl_root: Path) -> None:
    """The reference is warped to what the landmark network sees, wherever the true points are."""
    method = ReFine(settings("demo")).eval()
    batch = training_batch(128, 1)
    with torch.inference_mode():
        blind = method.restore(batch.for_restoration())
        batch.landmarks = torch.zeros(1, 5, 2)
        assert torch.equal(blind, method.restore(batch))
