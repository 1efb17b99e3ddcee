"""AuthFace's published size in small: two text encoders, a released autoencoder, captions of files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.batch import FaceBatch
from bench.config import compose, method_settings
from bench.errors import MissingError, UsageError
from bench.weights.method_weights import write_weights
from methods.authface.captioner import caption_folder
from methods.authface.module import AuthFace
from methods.authface.prompts import absent_encoders, prompt_states
from methods.authface.timing import FACE, PlainPipeline
from methods.blocks.base_models import base_model
from methods.blocks.latent_diffusion import build_vae
from methods.blocks.latent_space import StableDiffusionSpace
from methods.blocks.optimisers import adamw
from tests.unit.test_authface_network import SMALL
from tests.unit.test_authface_prompts import folder

__all__ = ["folder"]
VAE = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}
BASE: dict[str, Any] = {**SMALL, "unet": {**SMALL["unet"], "cross_attention_dim": 24 + 32}, "vae": VAE}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))


@pytest.fixture
def released(folder: Path) -> Path:
    """The encoders' folder with an autoencoder."""
    torch.manual_seed(0)
    build_vae(base_model(BASE)).save_pretrained(folder / "vae")
    return folder


def settings(released: Path, *words: str) -> dict[str, Any]:
    small = ["method.native_size=64", "method.network.condition_channels=[8,8,8,16]", "method.discriminator.width=8"]
    config = compose("train", ["method=authface", "size=paper", *small, "method.sampling.steps=3", *words])
    return method_settings(config["method"], "paper") | {"seed": 0, "base": BASE, "autoencoder": str(released)}


def batch(count: int = 2) -> FaceBatch:
    generator = torch.Generator().manual_seed(0)
    return FaceBatch(
        lq=torch.rand(count, 3, 64, 64, generator=generator),
        references=torch.zeros(count, 0, 3, 64, 64),
        reference_mask=torch.zeros(count, 0, dtype=torch.bool),
        image_ids=[f"woman/woman_{row}.png" for row in range(count)],
        identities=["someone"] * count,
        seeds=list(range(count)),
        gt=torch.rand(count, 3, 64, 64, generator=generator),
        landmarks=64 * torch.tensor(FACE).expand(count, -1, -1),
    )


def stepping(method: AuthFace) -> AuthFace:
    optimiser = method.configure_optimizers()
    method.__dict__.update(optimizers=lambda: optimiser, log=lambda *_, **__: None)
    return method


def test_stage_prior_learns_with_captions_of_files(released: Path, tmp_path: Path) -> None:
    method = stepping(AuthFace(settings(released, "method.training.stage=prior", "method.dropout.caption=0")))
    method.freeze_unchanged()
    method._captions = {"woman/woman_0.png": "smiling", "woman/woman_1.png": "soft light"}
    loss: Any = method.training_step(batch(), 0)
    loss.backward()
    method._captions = {"woman/woman_0.png": "smiling", "woman/woman_1.png": "crying"}
    other: Any = method.training_step(batch(), 0)
    assert torch.isfinite(loss) and float(loss) != float(other), "the caption of a picture decides its loss"
    assert all(value.grad is None for value in method.network.controlnet.parameters())


def test_stage_control_reads_no_prompt_and_learns(released: Path, tmp_path: Path) -> None:
    prior = tmp_path / "prior.safetensors"
    write_weights(prior, AuthFace(settings(released)), "float32", {"method": "authface"})
    method = AuthFace(settings(released, f"method.training.start_from={prior}"))
    method.begin_training()
    stepping(method)
    method._captions = {"woman/woman_0.png": "never read"}
    loss: Any = method.training_step(batch(), 0)
    loss.backward()
    assert method.network.controlnet.controlnet_mid_block.weight.grad is not None
    assert all(value.grad is None for value in method.network.unet.parameters())


def test_sdxl_itself_is_a_prior_too(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"method\.prior=sdxl"):
        AuthFace(settings(released)).begin_training()
    with pytest.raises(UsageError, match="leave out"):
        AuthFace(settings(released, "method.prior=sdxl", "method.training.start_from=x")).begin_training()
    method = AuthFace(settings(released, "method.prior=sdxl"))
    other = AuthFace(settings(released) | {"seed": 1}).network.unet
    asked: list[Any] = []

    def load(base: Any, folder: Any, parts: Any) -> dict[str, Any]:
        asked.append((base.hub_ids, folder, parts))
        return {"unet": other}

    monkeypatch.setattr("methods.authface.module.load_base", load)
    method.begin_training()
    # Not from the folder of autoencoder and text encoders, which may be AuthFace's with its tuned UNet.
    assert asked == [(("stabilityai/stable-diffusion-xl-base-1.0",), None, ("unet",))]
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in method.network.unet.state_dict().items())


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("method.sampling.preset=authface_released_code", "method.prompts=released"),
        ("method.sampling.preset=fast", "method.prompts=released", "method.sampling.guided_share=1"),
    ],
)
def test_restores_as_diffusers_pipeline_does(released: Path, words: tuple[str, ...]) -> None:
    words = tuple(word.replace("method.sampling.guided", "+method.sampling.guided") for word in words)
    method = AuthFace(settings(released, *words)).eval().requires_grad_(False)
    for parameter in method.network.controlnet.parameters():
        if not parameter.any():
            parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = method.restore(batch()), PlainPipeline(method).restore(batch())
    assert ours.std() > 0.01
    assert (ours - theirs).abs().max() < 2e-3


def test_the_folder_of_the_encoders_is_in_the_revision(released: Path) -> None:
    found = AuthFace(settings(released)).conditions()
    assert {"autoencoder", "text_encoder/model.safetensors", "tokenizer_2/vocab.json"} <= set(found)
    assert set(AuthFace.absent(settings(released))) == set()
    (released / "tokenizer_2/merges.txt").rename(released / "kept")
    try:
        assert "hf download" in AuthFace.absent(settings(released))["tokenizer_2"]
    finally:
        (released / "kept").rename(released / "tokenizer_2/merges.txt")


def test_captions_are_read_encoded_once_and_given_to_their_pictures(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "woman").mkdir()
    texts = ["smiling", "soft light, " + "x" * 200]
    for row, text in enumerate(texts):
        (tmp_path / f"woman/woman_{row}.txt").write_text(text)
    paths = [f"woman/woman_{row}.png" for row in (0, 1)]
    pairs: Any = SimpleNamespace(root=tmp_path, photos=[SimpleNamespace(photo=SimpleNamespace(path=p)) for p in paths])
    method = stepping(AuthFace(settings(released, "method.training.stage=prior", "method.dropout.caption=0")))
    assert method.training_stream(pairs) is pairs
    assert "1 of 3 captions are longer than the text encoders read" in capsys.readouterr().err
    monkeypatch.setattr("methods.authface.prompts._encode", lambda *_: pytest.fail("encoded again"))
    read: list[Any] = []
    states = prompt_states

    def noting(folder: Path, prompts: list[str], repository: str) -> Any:
        read.append(prompts)
        return states(folder, prompts, repository)

    monkeypatch.setattr("methods.authface.module.prompt_states", noting)
    method.training_step(batch(), 0)
    assert read == [texts]


def test_encoders_in_half_precision_are_read(released: Path) -> None:
    wanted = prompt_states(released, ["soft light"], "someone/sdxl")
    for name in ("text_encoder", "text_encoder_2"):
        (released / name / "model.safetensors").rename(released / name / "model.fp16.safetensors")
    try:
        assert absent_encoders(released, "someone/sdxl") == {}
        found = prompt_states(released, ["soft light"], "someone/sdxl")
    finally:
        for name in ("text_encoder", "text_encoder_2"):
            (released / name / "model.fp16.safetensors").rename(released / name / "model.safetensors")
    assert torch.allclose(found.tokens, wanted.tokens)


def test_the_row_says_when_the_released_prompts_are_read(released: Path) -> None:
    both = ("method.prompts=released", "method.sampling.preset=authface_released_code")
    assert AuthFace(settings(released, *both)).label == "authface+prompts@paper"
    # Without guidance the negative prompt is never read, and without prompts guidance changes nothing.
    assert AuthFace(settings(released, both[0])).label == "authface@paper"
    assert not AuthFace(settings(released, both[1])).guided


def test_cached_samples_keep_no_captions(released: Path) -> None:
    method = AuthFace(settings(released, "method.training.stage=prior", "method.training.cached_samples=4"))
    with pytest.raises(UsageError, match="Cached samples keep no captions"):
        method.training_stream(None)  # type: ignore[arg-type]


def test_an_autoencoder_that_overflows_in_float16_is_noticed(released: Path) -> None:
    vae = build_vae(base_model(BASE)).to(torch.float16)
    space = StableDiffusionSpace(vae, "small")
    with torch.no_grad():
        assert space.encode(torch.rand(1, 3, 64, 64)).dtype == torch.float32
        vae.encoder.conv_in.weight.fill_(6e4)
        with pytest.raises(UsageError, match=r"NaN in float16.*sdxl-vae-fp16-fix"):
            space.encode(torch.rand(1, 3, 64, 64))
        vae.decoder.conv_in.weight.fill_(6e4)
        with pytest.raises(UsageError, match="NaN in float16"):
            space.decode(torch.rand(1, 4, 8, 8))


@pytest.mark.parametrize("mixed", [torch.float16, torch.bfloat16])
def test_mixed_precision_leaves_the_autoencoder_alone(mixed: torch.dtype) -> None:
    space = StableDiffusionSpace(build_vae(base_model(BASE)), "small")
    pictures = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = space.encode(pictures)
        with torch.autocast("cpu", mixed):
            assert torch.equal(space.encode(pictures), wanted)


def test_fused_adamw_steps_alike_and_8bit_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"learning_rate": 1e-2, "betas": [0.9, 0.99], "weight_decay": 0.1}
    ends = []
    for kind in ("adamw", "fused"):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 12))
        optimiser = adamw([{"params": [weight]}], {**options, "kind": kind})
        for _ in range(3):
            optimiser.zero_grad()
            weight.square().sum().backward()
            optimiser.step()
        ends.append(weight.detach())
    assert torch.allclose(*ends, atol=1e-6)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingError, match="pip install bitsandbytes"):
        adamw([{"params": [torch.nn.Parameter(torch.zeros(1))]}], {**options, "kind": "8bit"})


def test_a_captioner_skips_what_is_described_and_names_what_cannot_be(tmp_path: Path) -> None:
    root = tmp_path / "portraits"
    (root / "woman").mkdir(parents=True)
    for name in ("a.png", "woman/b.png", "woman/c.jpg", "d.png"):
        (root / name).write_bytes(b"picture")
    (root / "d.txt").write_text("known")
    said: list[str] = []

    def describe(picture: Path) -> str:
        if picture.name == "c.jpg":
            raise ValueError("no picture")
        return f" tags of\n{picture.stem} "

    assert caption_folder(root, describe, said.append) == (2, 1)
    assert (root / "woman/b.txt").read_text() == "tags of b\n"
    assert (root / "d.txt").read_text() == "known"
    assert len(said) == 1 and "c.jpg: no picture" in said[0]
    with pytest.raises(MissingError, match="no pictures"):
        caption_folder(tmp_path / "portraits/none", describe)
