"""RestorerID's training: published size, what each stage learns and leaves alone, and one stage after another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cli.main import main
from bench.config import compose, method_settings
from bench.errors import UsageError
from bench.weights.method_weights import read_weights, write_weights
from methods.blocks.base_models import base_model
from methods.blocks.checkpoints.stable_diffusion import UNET_PREFIX, unet_part
from methods.blocks.checkpoints.stablesr import lq_encoder_part, sft_part
from methods.restorerid.checkpoint import PROJECTION_PREFIX, fir_part, identity_part, projection_part
from methods.restorerid.module import RestorerID
from methods.restorerid.network import STAGES, RestorerIDNetwork
from tests.unit.test_restorerid_module import SMALL, latents

PARITY = Path(__file__).parents[1] / "parity"


# The published size ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> RestorerIDNetwork:
    """The network of size=paper, on the meta device."""
    settings = method_settings(compose("train", ["method=restorerid", "size=paper"])["method"], "paper")
    with torch.device("meta"):
        return RestorerIDNetwork(base_model(settings["base"]), settings["network"])


def test_published_network_has_the_released_names_and_shapes(published: RestorerIDNetwork) -> None:
    unet, adapters = published.adapted.unet, published.adapted.adapters
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    assert published.projection is not None
    parts = {
        "unet": unet_part(unet),
        "sft": sft_part(unet, adapters["sft"]),
        "identity": identity_part(unet, adapters["identity"]),
        "fir": fir_part(unet, adapters["fir"]),
        "lq_encoder": lq_encoder_part(published.lq_encoder),
        "projection": projection_part(published.projection),
    }
    listed: dict[str, tuple[int, ...]] = {}
    for file, prefix in (("full", ""), ("adapter", "Adapter.")):
        rows = json.loads((PARITY / f"keys_restorerid_{file}.json").read_text("utf-8"))
        listed |= {prefix + name: tuple(shape) for name, shape, _ in rows}
    # What the network holds beside the released file's schedule, autoencoder and encoders of text and image.
    encoder = next(iter(parts["lq_encoder"].released_shapes())).split(".")[0]
    own = {name: shape for name, shape in listed.items() if name.startswith((UNET_PREFIX, encoder, PROJECTION_PREFIX))}
    ours = {name: tuple(shape) for part in parts.values() for name, shape in part.released_shapes().items()}
    assert ours == own
    numbers = {
        name: sum(p.numel() for n, p in published.named_parameters() if published.part_of(n) == name) for name in parts
    }
    assert sum(numbers.values()) == sum(p.numel() for p in published.parameters())
    assert sum(numbers.values()) == sum(torch.Size(shape).numel() for shape in own.values())


# The demo's size, with narrow adapters ---------------------------------------------------------------


def demo(*words: str) -> RestorerID:
    return RestorerID(method_settings(compose("train", ["method=restorerid", *words])["method"], "demo"))


def small(*words: str) -> RestorerID:
    # Groups of one channel would hide every bias before them.
    return demo(*SMALL, "method.network.lq_encoder.groups=4", *words)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights file of a whole small network that has learnt nothing but its ID model's values."""
    file = tmp_path_factory.mktemp("start") / "demo.safetensors"
    method = small()
    with_id_model(method)
    write_weights(file, method, "float32", {})
    return str(file)


@torch.no_grad()
def with_id_model(method: RestorerID) -> None:
    """Gives the identity something to say, which new weights have not."""
    for name, value in method.network.named_parameters():
        if name.endswith("identity_value.weight"):
            value.normal_(std=0.02, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ("base", {"lq_encoder", "sft"}),
        ("fir", {"fir"}),
        ("single", {"lq_encoder", "sft", "fir"}),
        ("joint", {"lq_encoder", "sft", "projection", "identity", "fir"}),
    ],
)
def test_published_training_leaves_the_unet_alone(stage: str, trained: set[str], start: str) -> None:
    settings = method_settings(compose("train", ["method=restorerid", "size=paper"])["method"], "paper")
    method = small()
    # The published training of the small network; a whole one of the published size is too large here.
    method.settings["training"] = settings["training"] | {"stage": stage, "start_from": start}
    method.prepare_training()
    parts = {id(value): method.network.part_of(name) for name, value in method.network.named_parameters()}
    (group,) = method.configure_optimizers().param_groups
    assert {parts[id(value)] for value in group["params"]} == trained
    assert {parts[id(value)] for value in method.network.parameters() if value.requires_grad} == trained


@torch.no_grad()
def test_new_adapters_leave_the_demos_base_bit_identical() -> None:
    network = demo().network.eval()
    batch, generator = latents(), torch.Generator().manual_seed(2)
    latent, timestep = batch["latent"], torch.tensor([3, 900])
    text = torch.randn(2, 5, 64, generator=generator)
    tokens, scale = torch.randn(2, 4, 64, generator=generator), torch.tensor([0.75, 2.0])
    adapted = network(latent, timestep, text, network.lq_maps(batch["lq_latent"], timestep), tokens, scale)
    stock = network.adapted.release()(latent, timestep, text, return_dict=False)[0]
    assert torch.equal(adapted, stock)


def steps(method: RestorerID, count: int, text_tokens: int | None) -> tuple[set[str], set[str]]:
    """Trained tensors without any gradient in so many steps, and those among them that stand where they began."""
    method.prepare_training()
    if text_tokens is not None:
        tokens = torch.randn(1, text_tokens, 64, generator=torch.Generator().manual_seed(6))
        method.text = lambda count, _: tokens.expand(count, -1, -1)  # type: ignore[method-assign]
    optimiser = method.configure_optimizers()
    method.optimizers = lambda: optimiser  # type: ignore[method-assign]
    method.log = lambda *_, **__: None  # type: ignore[method-assign]
    before = {name: value.detach().clone() for name, value in method.network.named_parameters()}
    trained = {name: value for name, value in method.network.named_parameters() if value.requires_grad}
    largest = dict.fromkeys(trained, 0.0)
    for step in range(count):
        optimiser.zero_grad()
        method.training_step(latents(), step).backward()
        for name, value in trained.items():
            if value.grad is not None:
                largest[name] = max(largest[name], float(value.grad.abs().max()))
        optimiser.step()
        method.batches_done += 1  # there is no trainer here, whose call of `optimizer_step` counts
    for name, value in method.network.named_parameters():
        assert name in trained or torch.equal(value, before[name]), f"{name} is frozen and has moved"
    # Gradients of rounding size are none: AdamW makes full steps of them, and its decay moves tensors without any.
    without = {name for name, size in largest.items() if size < 1e-12}
    return without, {name for name in without if torch.equal(trained[name], before[name])}


# Ten where everything is trained; elsewhere one more than the chains of tensors that start at zero need.
@pytest.mark.parametrize(("stage", "count"), [("joint", 10), ("base", 3), ("identity", 3), ("fir", 3), ("single", 3)])
def test_few_steps_move_every_adapter_tensor(stage: str, count: int, start: str) -> None:
    later = [f"method.training.start_from={start}"] if stage in ("identity", "fir", "single") else []
    method = small(f"method.training.stage={stage}", *later)
    without, _ = steps(method, count, text_tokens=7)
    # The softmax does not see what is added to all keys alike.
    assert {name for name in without if not name.endswith("to_k.bias")} == set()


def test_the_demos_text_of_zeros_leaves_its_own_keys_and_values_unused(start: str) -> None:
    method = small("method.training.stage=identity", f"method.training.start_from={start}")
    without, still = steps(method, 4, text_tokens=None)
    assert {name.split("transformer_blocks.0.")[1] for name in without} == {
        f"attn2.lora.{name}.{layer}.weight" for name in "kv" for layer in ("down", "up")
    }
    assert still == {name for name in without if ".up." in name}


def test_gradients_of_a_training_step_are_those_with_checkpointing() -> None:
    """Also when another forward with other conditions runs before the gradients are taken."""
    checkpointed_parts: list[str] = []

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        method = small("method.training.stage=joint", f"method.training.checkpointing={str(checkpointing).lower()}")
        generator = torch.Generator().manual_seed(8)
        with torch.no_grad():
            for value in method.network.parameters():
                value.add_(0.02 * torch.randn(value.shape, generator=generator))
        method.prepare_training()
        optimiser = method.configure_optimizers()
        method.optimizers = lambda: optimiser  # type: ignore[method-assign]
        method.log = lambda *_, **__: None  # type: ignore[method-assign]
        loss = method.training_step(latents(), 0)
        if checkpointing:
            for name, module in method.network.named_modules():
                if getattr(module, "gradient_checkpointing", False):
                    checkpointed_parts.append(name)
            other = latents(3)
            other.tensors["lq_latent"].mul_(-2)
            method.training_step(other, 1)
        loss.backward()
        return {name: value.grad for name, value in method.network.named_parameters() if value.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert any(name.startswith("adapted.unet.down_blocks") for name in checkpointed_parts)
    assert any(name.startswith("lq_encoder") for name in checkpointed_parts), checkpointed_parts
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


# One stage after another, by the command -----------------------------------------------------------


def train(folder: Path, stage: str, *words: str) -> int:
    return main(
        [
            "train",
            "method=restorerid",
            "data=orl_heavy",
            "batch_size=2",
            "trainer.train_threads=1",
            "trainer.max_steps=2",
            "method.training.cached_samples=8",
            "method.optimiser.decay_after=1.0",
            *[word for word in SMALL if "sampling" not in word],
            f"method.training.stage={stage}",
            f"run_dir={folder}",
            *words,
        ]
    )


def parts(file: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors of a weights file by the part they belong to."""
    state, _ = read_weights(file)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        found.setdefault(RestorerIDNetwork.part_of(name), {})[name] = value
    return found


@pytest.mark.slow
def test_stages_follow_each_other_and_keep_what_was_learnt(
    tmp_path: Path, orl_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "base", "base") == 0
    files = {"base": tmp_path / "base/demo.safetensors"}
    longer = ["trainer.max_steps=3", "checkpoint_every=2"]
    for stage, before in (("identity", "base"), ("fir", "identity")):
        words = [f"method.training.start_from={files[before]}"]
        assert train(tmp_path / stage, stage, *words, *(longer if stage == "fir" else ())) == 0
        files[stage] = tmp_path / stage / "demo.safetensors"
        old, new = parts(files[before]), parts(files[stage])
        assert old.keys() == new.keys() == set(STAGES["joint"])
        for part, tensors in new.items():
            assert tensors.keys() == old[part].keys()
            moved = [name for name, value in tensors.items() if not torch.equal(value, old[part][name])]
            assert bool(moved) == (part in STAGES[stage]), (stage, part, moved[:3])
        # The network itself and not only its average, which the weights file holds.
        state = torch.load(tmp_path / stage / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for part, tensors in old.items():
            for name, value in tensors.items() if part not in STAGES[stage] else ():
                assert torch.equal(state[f"network.{name}"], value.float()), name
                assert torch.equal(state[f"averaged.{name}"], value.float()), name

    # The folder of one stage is no place for another.
    capsys.readouterr()
    assert (
        train(tmp_path / "base", "identity", f"method.training.start_from={files['base']}", "trainer.max_steps=4") == 2
    )
    assert "other settings (training)" in capsys.readouterr().err

    # A stage goes on like any training: from its checkpoint, not once more from the weights of the stage before.
    (kept,) = (tmp_path / "fir/checkpoints").glob("step=*.ckpt")
    (tmp_path / "stopped/checkpoints").mkdir(parents=True)
    shutil.copy(kept, tmp_path / "stopped/checkpoints/last.ckpt")
    words = [f"method.training.start_from={files['identity']}", *longer]
    assert train(tmp_path / "stopped", "fir", *words) == 0
    one, other = (
        torch.load(tmp_path / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("fir", "stopped")
    )
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []
    one, other = (read_weights(tmp_path / run / "demo.safetensors")[0] for run in ("fir", "stopped"))
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


def test_stages_whose_parts_are_left_out_are_refused() -> None:
    for stage, words in (("fir", ["method.use_fir=false"]), ("identity", ["method.use_identity=false"])):
        method = small(f"method.training.stage={stage}", "method.use_fir=false", *words)
        with pytest.raises(UsageError, match=f"stage={stage} trains what the settings left out"):
            method.prepare_training()


def test_an_ablation_goes_on_from_weights_of_the_whole(start: str) -> None:
    words = ["method.use_fir=false", "method.training.stage=identity", f"method.training.start_from={start}"]
    method = small(*words)
    method.prepare_training()
    state, _ = read_weights(Path(start))
    own = method.network.state_dict()
    assert {name for name in state if name not in own} == {name for name in state if "adapters.fir." in name}
    assert all(torch.equal(own[name], state[name].float()) for name in own)


@pytest.mark.parametrize("stage", ["fir", "single"])
def test_an_id_model_that_was_never_trained_is_no_start(stage: str, tmp_path: Path) -> None:
    write_weights(tmp_path / "new.safetensors", small(), "float32", {})
    with pytest.raises(UsageError, match=r"new\.safetensors has none that was ever trained.*id_model=FILE"):
        small(
            f"method.training.stage={stage}", f"method.training.start_from={tmp_path / 'new.safetensors'}"
        ).prepare_training()


def test_fir_goes_on_from_weights_with_the_id_model(tmp_path: Path) -> None:
    base = small("method.use_identity=false", "method.use_fir=false")
    write_weights(tmp_path / "base.safetensors", base, "float32", {})
    start_from = f"method.training.start_from={tmp_path / 'base.safetensors'}"
    small("method.training.stage=identity", start_from).prepare_training()
    with pytest.raises(UsageError, match="identity"):
        small("method.training.stage=fir", start_from).prepare_training()


def test_pictures_and_cached_samples_train_alike(orl_root: Path) -> None:
    """The two streams of `method.training.cached_samples` hand the same tensors to a step."""
    from bench.data.training import TrainingPairs, TrainingSettings
    from bench.protocol.protocol import DataSettings

    data = DataSettings(**compose("train", ["method=restorerid", "data=orl_heavy"])["data"])
    method = small("method.training.cached_samples=2", "method.losses.identity=0.1")
    pairs = TrainingPairs(data, TrainingSettings(batch_size=2, size=128))
    direct: dict[str, Any] = method.encoded(pairs.batch(0))
    stream = method.training_stream(pairs)
    assert stream is not pairs
    assert {"points", "own_identity"} < direct.keys()
    for name, rows in stream.tensors.items():  # type: ignore[attr-defined]
        torch.testing.assert_close(rows.float(), direct[name], rtol=1e-3, atol=1e-3)
    method.settings["training"]["cached_samples"] = 0
    assert method.training_stream(pairs) is pairs
