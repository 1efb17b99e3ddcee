"""RestorerID's published training takes the ID model ready-made and starts from Stable Diffusion's UNet."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.errors import MissingError, UsageError
from bench.weights.method_weights import write_tensors, write_weights
from methods.blocks.base_models import base_model
from methods.blocks.checkpoints.accounting import restore
from methods.blocks.latent_diffusion import build_unet
from methods.blocks.latent_samples import LatentBatch
from methods.restorerid.checkpoint import ip_adapter_parts
from methods.restorerid.module import RestorerID
from methods.restorerid.network import RestorerIDNetwork
from tests.unit.test_restorerid_checkpoint import small_settings

#: Part of the network -> what the names of its tensors begin with.
PLACES = {"identity": "adapted.adapters.identity.", "projection": "projection."}
States = dict[str, dict[str, Tensor]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home"


@pytest.fixture
def stock(home: Path) -> dict[str, Tensor]:
    """Tensors of a small Stable Diffusion's UNet, which lies in the weights folder."""
    torch.manual_seed(11)
    unet = build_unet(base_model(composed()["base"]))
    unet.save_pretrained(home / "weights" / "stable-diffusion-v1-5" / "unet")
    return unet.state_dict()


@functools.cache
def composed() -> dict[str, Any]:
    """Settings of the published size in small; not to be changed."""
    return small_settings()


def published(stage: str, training: Mapping[str, object] | None = None, **changes: object) -> RestorerID:
    """The published size in small, in a stage of training, with other settings of it or of the method."""
    settings = copy.deepcopy(composed())
    given = {key: str(value) if isinstance(value, Path) else value for key, value in (training or {}).items()}
    own = {"stage": stage, **given}
    assert own.keys() <= settings["training"].keys()
    assert changes.keys() <= settings.keys()
    return RestorerID(settings | {"training": settings["training"] | own} | changes)


def ready_made(text_width: int = 8) -> tuple[States, dict[str, Tensor]]:
    """An ID model in half precision, under our names and under those of FaceID-Plus."""
    settings = copy.deepcopy(composed())
    settings["base"]["unet"]["cross_attention_dim"] = text_width
    with torch.device("meta"):
        network: Any = RestorerIDNetwork(base_model(settings["base"]), settings["network"])
    parts = ip_adapter_parts(network.adapted.unet, network.adapted.adapters["identity"], network.projection)
    generator = torch.Generator().manual_seed(12)
    states = {
        part.name: {name: torch.randn(shape, generator=generator).half() for name, shape in part.shapes.items()}
        for part in parts
    }
    return states, restore(states, parts)


def write_id_model(path: Path, tensors: dict[str, Tensor]) -> Path:
    """Writes FaceID-Plus in the layout of the file's suffix: nested groups in .bin, flat in .safetensors."""
    if path.suffix == ".safetensors":
        save_file(tensors, path)
        return path
    groups: States = {}
    for name, tensor in tensors.items():
        group, _, own = name.partition(".")
        groups.setdefault(group, {})[own] = tensor
    assert groups.keys() == {"image_proj", "ip_adapter"}
    torch.save(groups, path)
    return path


def assert_has_id_model(state: dict[str, Tensor], expected: States) -> None:
    for part, place in PLACES.items():
        found = {name.removeprefix(place): tensor for name, tensor in state.items() if name.startswith(place)}
        assert found.keys() == expected[part].keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[part][name].float()), f"{part}.{name}"


# The ID model ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stock")
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_the_whole_id_model_goes_into_the_network(suffix: str, tmp_path: Path) -> None:
    states, tensors = ready_made()
    path = write_id_model(tmp_path / f"faceid{suffix}", tensors)
    method = published("base", {"id_model": path}, ema_halflife_pictures=10)
    before = {name: value.clone() for name, value in method.network.state_dict().items()}
    method.prepare_training()
    assert_has_id_model(method.network.state_dict(), states)
    assert_has_id_model(method.weights_state(), states)
    for name, value in method.network.state_dict().items():
        part = method.network.part_of(name)
        assert part in (*PLACES, "unet") or torch.equal(value, before[name]), f"{name} is no tensor of the ID model"
    # Names of the released file, written out: down, up and mid, each block's self- before its cross-attention.
    own = method.network.state_dict()
    cross = "adapted.adapters.identity.down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    key, value = tensors["image_proj.perceiver_resampler.layers.0.0.to_kv.weight"].float().chunk(2)
    for name, expected in (
        (f"{cross}.identity_key.weight", tensors["ip_adapter.1.to_k_ip.weight"]),
        (f"{cross}.identity_value.weight", tensors["ip_adapter.1.to_v_ip.weight"]),
        (f"{cross}.lora.out.up.weight", tensors["ip_adapter.1.to_out_lora.up.weight"]),
        (f"{cross.replace('attn2', 'attn1')}.lora.q.down.weight", tensors["ip_adapter.0.to_q_lora.down.weight"]),
        ("projection.layers.0.attn.to_k.weight", key),
        ("projection.layers.0.attn.to_v.weight", value),
        ("projection.proj_in.bias", tensors["image_proj.perceiver_resampler.proj_in.bias"]),
    ):
        assert torch.equal(own[name], expected.float()), name


@pytest.mark.usefixtures("stock")
def test_another_file_is_refused_with_the_name_of_the_right_one(tmp_path: Path) -> None:
    _, tensors = ready_made()
    lacking = {name: tensor for name, tensor in tensors.items() if name != "image_proj.norm.weight"}
    for name, content, problem in (
        ("lacking.bin", lacking, f"1 of {len(tensors)} keys are missing: image_proj.norm.weight"),
        ("wider.bin", ready_made(16)[1], "image_proj.norm.weight is (16,) instead of (8,)"),
        ("more.safetensors", tensors | {"ip_adapter.x": torch.ones(1)}, "1 keys are unexpected: ip_adapter.x"),
    ):
        path = write_id_model(tmp_path / name, content)
        with pytest.raises(UsageError) as error:
            published("base", {"id_model": path}).prepare_training()
        message = str(error.value)
        assert f"{path} is not the expected checkpoint" in message
        assert "IP-Adapter's FaceID-Plus" in message
        assert "ip-adapter-faceid-plus_sd15.bin" in message
        assert problem in message
    with pytest.raises(MissingError, match=r"nowhere\.bin is not there"):
        published("base", {"id_model": tmp_path / "nowhere.bin"}).prepare_training()


@pytest.mark.usefixtures("stock")
def test_an_id_model_needs_a_network_that_has_one(tmp_path: Path) -> None:
    path = write_id_model(tmp_path / "faceid.bin", ready_made()[1])
    with pytest.raises(UsageError, match=r"id_model is of no use with method\.use_identity=false"):
        published("base", {"id_model": path}, use_identity=False, use_fir=False).prepare_training()


# Stage base --------------------------------------------------------------------------------------


def test_stage_base_trains_beside_stable_diffusions_unet_and_a_ready_made_id_model(
    stock: dict[str, Tensor], tmp_path: Path
) -> None:
    states, tensors = ready_made()
    method = published("base", {"id_model": write_id_model(tmp_path / "faceid.bin", tensors)})
    unet: Any = method.network.adapted.unet
    assert not torch.equal(unet.state_dict()["conv_in.weight"], stock["conv_in.weight"]), "it has weights of its own"
    method.prepare_training()
    named = dict(method.network.named_parameters())
    part_of = {id(value): method.network.part_of(name) for name, value in named.items()}
    (group,) = method.configure_optimizers().param_groups
    assert {part_of[id(value)] for value in group["params"]} == {"lq_encoder", "sft"}
    before = {name: value.detach().clone() for name, value in named.items()}
    take_steps(method)
    moved = {part_of[id(value)] for name, value in named.items() if not torch.equal(value, before[name])}
    assert moved == {"lq_encoder", "sft"}
    assert unet.state_dict().keys() == stock.keys()
    assert all(torch.equal(value, stock[name]) for name, value in unet.state_dict().items())
    assert_has_id_model(method.network.state_dict(), states)


def take_steps(method: Any, count: int = 2) -> None:
    """Training steps on random latents; stage base reads no faces."""
    generator = torch.Generator().manual_seed(13)
    tensors = {name: torch.randn(2, 4, 8, 8, generator=generator) for name in ("latent", "lq_latent")}
    text = torch.randn(1, 3, 8, generator=generator)
    optimiser = method.configure_optimizers()
    method.optimizers = lambda: optimiser
    method.log = lambda *_, **__: None
    method.text = lambda count, _: text.expand(count, -1, -1)
    for step in range(count):
        optimiser.zero_grad()
        method.training_step(LatentBatch(tensors, [0, 1]), step).backward()
        optimiser.step()
        method.batches_done += 1


def test_stage_base_trains_the_unet_where_it_is_told_to(stock: dict[str, Tensor]) -> None:
    method = published("base", {"train_unet": True})
    method.prepare_training()
    unet: Any = method.network.adapted.unet
    assert all(torch.equal(value, stock[name]) for name, value in unet.state_dict().items())
    assert all(value.requires_grad for value in unet.parameters())


def test_stage_base_needs_stable_diffusions_unet_unless_it_goes_on_from_weights(tmp_path: Path) -> None:
    method = published("base")
    with pytest.raises(MissingError, match=r"hf download \S*stable-diffusion-v1-5 --include 'unet/\*'"):
        method.prepare_training()
    file = tmp_path / "own.safetensors"
    state = {name: value + 1 for name, value in method.weights_state().items()}
    write_tensors(file, state, {})
    later = published("base", {"start_from": file})
    later.prepare_training()
    assert all(torch.equal(value, state[name]) for name, value in later.network.state_dict().items())


# Stage fir ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stock")
def test_stage_fir_goes_on_from_stage_base_only_with_an_id_model(tmp_path: Path) -> None:
    states, tensors = ready_made()
    path = write_id_model(tmp_path / "faceid.bin", tensors)
    files = {}
    for name, options in (("with", {"id_model": path}), ("without", {})):
        base = published("base", options)
        base.prepare_training()
        files[name] = tmp_path / f"{name}.safetensors"
        # Metadata as `bench train` writes them.
        write_weights(files[name], base, "float32", {"settings": base.settings})

    def fir(file: Path, **options: object) -> RestorerID:
        method = published("fir", {"start_from": file, **options})
        method.prepare_training()
        return method

    kept = fir(files["with"]).network
    assert_has_id_model(kept.state_dict(), states)
    assert {kept.part_of(name) for name, value in kept.named_parameters() if value.requires_grad} == {"fir"}
    moved = path.rename(tmp_path / "moved.bin")
    assert_has_id_model(fir(files["with"]).network.state_dict(), states)
    assert_has_id_model(fir(files["without"], id_model=moved).network.state_dict(), states)
    plain = published("base", use_identity=False, use_fir=False)
    plain.prepare_training()
    write_weights(tmp_path / "plain.safetensors", plain, "float32", {"settings": plain.settings})
    assert_has_id_model(fir(tmp_path / "plain.safetensors", id_model=moved).network.state_dict(), states)
    with pytest.raises(UsageError, match=r"plain\.safetensors is no earlier stage of this network: it lacks identity"):
        fir(tmp_path / "plain.safetensors")
    with pytest.raises(UsageError, match=r"without\.safetensors has none that was ever trained"):
        fir(files["without"])
