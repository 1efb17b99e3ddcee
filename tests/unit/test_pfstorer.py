"""PFStorer learns a person beside a base that stays as it is."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.batch import FaceBatch
from bench.config import compose, method_settings
from bench.errors import UsageError
from bench.image import read_image
from bench.leaderboard.variants import variant_suffix, variant_words
from bench.personal_state import (
    PersonalSource,
    PersonalState,
    UnfinishedError,
    base_id,
    read_state,
    state_path,
    unfinished_path,
    write_state,
)
from bench.runs.personalise import KeptStates, learn
from bench.runs.plan import build_method
from bench.weights.method_weights import write_tensors
from methods.blocks.frozen_encoder import FrozenEncoder
from methods.blocks.personal_samples import PersonalSamples
from methods.blocks.tiling import Tiling
from methods.pfstorer.module import PFStorer
from methods.pfstorer.network import Personalised

SIDE = 128
QUICK = [
    "method.personalisation.iterations=20",
    "method.personalisation.samples=8",
    "method.personalisation.schedule.warm_up=0",
]


#: Samples that are used again and keep their noise, as at the demo size, or new ones at any timestep, as published.
WAYS = [(), ("method.personalisation.samples=0", "method.personalisation.least_timestep=0")]


def built(*words: str) -> PFStorer:
    method, _, _ = build_method(compose("run", ["method=pfstorer", "size=demo", *QUICK, *words]))
    assert isinstance(method, PFStorer)
    return method


@pytest.fixture(scope="module")
def references(orl_root: Path) -> Tensor:
    """Three photographs of one person, (3, 3, 128, 128)."""
    photos = [torch.from_numpy(read_image(orl_root / f"s1/{number}.pgm")).permute(2, 0, 1) for number in (1, 2, 3)]
    pictures = torch.stack(photos).float() / 255
    return torch.nn.functional.interpolate(pictures, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)


@pytest.fixture(scope="module")
def method() -> PFStorer:
    return built()


@pytest.fixture(scope="module")
def state(method: PFStorer, references: Tensor) -> dict[str, Tensor]:
    return method.personalise(references, seed=7)


def batch_of(picture: Tensor, references: Tensor, count: int = 1) -> FaceBatch:
    return FaceBatch(
        lq=picture.expand(count, -1, -1, -1).contiguous(),
        references=references[None].expand(count, -1, -1, -1, -1),
        reference_mask=torch.ones(count, len(references), dtype=torch.bool),
        image_ids=[f"p/{number}" for number in range(count)],
        identities=["p"] * count,
        seeds=list(range(count)),
    )


def blurred(pictures: Tensor) -> Tensor:
    small = torch.nn.functional.avg_pool2d(pictures, 8)
    return torch.nn.functional.interpolate(small, scale_factor=8, mode="bicubic").clamp(0, 1)


def restored(method: PFStorer, batch: FaceBatch, tensors: dict[str, Tensor] | None, references: Tensor) -> Tensor:
    if tensors is not None:
        made = PersonalSource(references, 0).state(
            method, repr(float(sum(t.float().sum() for t in tensors.values()))), tensors
        )
        method.persons = dict.fromkeys(batch.image_ids, made)
    with torch.inference_mode():
        return method.restore(batch).clone()


# The base stays ---------------------------------------------------------------------------------


def test_a_new_person_changes_no_bit(method: PFStorer, references: Tensor) -> None:
    training = method.personal_training(references, seed=7)
    batch = batch_of(blurred(references[:1]), references)
    base = restored(built("method.personalisation.tunes=nothing"), batch, None, references)
    assert torch.equal(restored(method, batch, training.result(), references), base)


@pytest.mark.parametrize("words", WAYS, ids=["kept", "fresh"])
def test_twenty_iterations_move_all_that_is_personal_and_nothing_else(
    words: tuple[str, ...], references: Tensor
) -> None:
    method = built(*words)
    before = copy.deepcopy(method.network.state_dict())
    training = method.personal_training(references, seed=7)
    first = {name: value.clone() for module in training.modules.values() for name, value in module.named_parameters()}
    training.run()
    now = {name: value for module in training.modules.values() for name, value in module.named_parameters()}
    assert [name for name, value in now.items() if torch.equal(value, first[name])] == []
    assert any(name.endswith("gamma") for name in now)
    after = method.network.state_dict()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    assert not any(parameter.requires_grad for parameter in method.network.parameters())


def test_a_person_changes_the_pictures_and_leaving_restores_the_base(
    method: PFStorer, references: Tensor, state: dict[str, Tensor]
) -> None:
    batch = batch_of(blurred(references[:1]), references)
    base = restored(built("method.personalisation.tunes=nothing"), batch, None, references)
    assert (restored(method, batch, state, references) - base).abs().max() > 1 / 255
    new = method.personal_training(references, seed=1).result()
    assert torch.equal(restored(method, batch, new, references), base)


def test_dreambooth_tunes_a_copy(references: Tensor) -> None:
    words = ["method.personalisation.tunes=unet", "method.personalisation.iterations=2"]
    method = built(*words, "method.personalisation.generative=0")
    before = copy.deepcopy(method.network.state_dict())
    tuned = method.personalise(references, seed=7)
    assert {name.partition(".")[0] for name in tuned} == {"unet"}
    after = method.network.state_dict()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    batch = batch_of(blurred(references[:1]), references)
    base = restored(built("method.personalisation.tunes=nothing"), batch, None, references)
    assert (restored(method, batch, tuned, references) - base).abs().max() > 0


# The loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("null_lq", ["zeros", "grey"])
@pytest.mark.parametrize("words", WAYS, ids=["kept", "fresh"])
def test_the_generative_regulariser_does_not_see_the_lq(
    words: tuple[str, ...], null_lq: str, references: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions with the null LQ stay while the LQ changes; those with the LQ change."""
    method = built(*words, f"method.personalisation.null_lq={null_lq}")
    found = []
    latents = PersonalSamples.latents
    for change in (0.0, 1.0):

        def changed(self: PersonalSamples, rows: Tensor, change: float = change) -> tuple[Tensor, Tensor]:
            clean, lq = latents(self, rows)
            return clean, lq + change

        monkeypatch.setattr(PersonalSamples, "latents", changed)
        training = method.personal_training(references, seed=7)
        rows, generator = torch.tensor([0, 1]), torch.Generator().manual_seed(0)
        noised = training._noised(rows, generator)
        predicted, _ = training._predict(rows, noised, torch.tensor([1, 2]), with_null=True)
        found.append(predicted.detach())
    assert torch.equal(found[0][2:], found[1][2:])
    assert not torch.equal(found[0][:2], found[1][:2])


def test_the_loss_is_the_papers_sum(method: PFStorer, references: Tensor) -> None:
    def loss(**changes: Any) -> float:
        training = method.personal_training(references, seed=7)
        training.options = {**training.options, **changes}
        return float(training.loss(0))

    alone = loss(generative=0, attention=0)
    generative, attention = loss(generative=1, attention=0) - alone, loss(generative=0, attention=1) - alone
    assert generative > 0
    assert attention > 0
    assert loss(generative=0.1, attention=5e-4) == pytest.approx(alone + 0.1 * generative + 5e-4 * attention, rel=1e-5)


def test_the_printed_norm_is_not_squared(method: PFStorer, references: Tensor) -> None:
    training = method.personal_training(references, seed=7)
    one, other = torch.randn(3, 8, 4, 4), torch.randn(3, 8, 4, 4)
    training.options = {**training.options, "norm": "printed"}
    by_hand = sum(float(((a - b) ** 2).sum()) ** 0.5 for a, b in zip(one, other, strict=True)) / 3
    assert float(training.distance(one, other)) == pytest.approx(by_hand, rel=1e-5)


def test_what_is_kept_of_the_encoder_changes_no_prediction(method: PFStorer, references: Tensor) -> None:
    training = method.personal_training(references, seed=7)
    with torch.no_grad():  # a block that does something
        for block in training.parts.blocks:  # type: ignore[union-attr]
            block.gamma.fill_(0.3)
    rows = torch.tensor([3, 1, 3])
    noised = training._noised(rows, torch.Generator().manual_seed(0))
    shown = training.samples.draw_references(rows, torch.Generator().manual_seed(0))
    kept, person = training._predict(rows, noised, shown, with_null=True)
    assert isinstance(person, Personalised)
    _, lq = training.samples.latents(rows)
    lq, timestep = torch.cat([lq, torch.zeros_like(lq)]), noised.timestep.repeat(2)
    tokens = method.reference_tokens(method.network, training.samples.references[shown], noised.timestep)
    fresh = Personalised(training.parts.by_site(), tokens, training.text(), True)  # type: ignore[union-attr,misc]
    plain = method.network(
        noised.noisy.repeat(2, 1, 1, 1),
        timestep,
        method.text(6, ""),
        method.network.lq_maps(lq, timestep),
        fresh,
    )
    assert (kept - plain).abs().max() < 1e-4


def test_gradients_of_the_decoder_are_those_of_the_whole_network(method: PFStorer, references: Tensor) -> None:
    network = copy.deepcopy(method.network).requires_grad_(False)
    network.adapted.unet.up_blocks.requires_grad_(True)
    latent, timestep, text = torch.randn(2, 8, 16, 16), torch.tensor([999, 400]), torch.zeros(2, 1, 64)
    maps = network.lq_maps(torch.randn(2, 8, 16, 16), timestep)
    encoder = FrozenEncoder(network.adapted)
    found = []
    for way in ("whole", "kept"):
        network.zero_grad()
        if way == "whole":
            predicted = network(latent, timestep, text, maps)
        else:
            features = encoder.read(latent, timestep, text, lq_maps=maps, personal=None)
            predicted = encoder.decode(features, latent, timestep, text, lq_maps=maps, personal=None)
        predicted.square().mean().backward()
        found.append([p.grad.clone() for p in network.adapted.unet.up_blocks.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 100
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


# Samples ----------------------------------------------------------------------------------------


def test_samples_show_every_reference_and_read_another(method: PFStorer, references: Tensor) -> None:
    samples = method.personal_training(references, seed=7).samples
    counts = torch.bincount(samples.shown, minlength=3)
    assert counts.max() - counts.min() <= 1
    rows = torch.arange(len(samples))
    for seed in range(20):
        read = samples.draw_references(rows, torch.Generator().manual_seed(seed))
        assert not (read == samples.shown).any()
    again = method.personal_training(references, seed=7).samples
    assert torch.equal(samples.latents(rows)[1], again.latents(rows)[1])
    other = method.personal_training(references, seed=8).samples
    assert not torch.equal(samples.latents(rows)[1], other.latents(rows)[1])


def test_fresh_samples_are_made_once(references: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.blocks.personal_samples.PIXELS_TOGETHER", SIDE**2)
    made: list[slice] = []
    make = PersonalSamples._made

    def counted(self: PersonalSamples, rows: slice) -> tuple[Tensor, Tensor]:
        made.append(rows)
        return make(self, rows)

    monkeypatch.setattr(PersonalSamples, "_made", counted)
    training = built(*WAYS[1], "method.personalisation.iterations=3").personal_training(references, seed=7)
    training.run()
    assert [rows.start for rows in made] == list(range(3 * 4))
    assert len(training.samples._groups) == 4


def test_samples_do_not_depend_on_which_are_asked_for_first(method: PFStorer, references: Tensor) -> None:
    one, other = (
        PersonalSamples(references, 10, 3, method.degradation, method.space, together=4, forget=True) for _ in range(2)
    )
    backwards = {row: one.latents(torch.tensor([row])) for row in range(9, -1, -1)}
    for row in range(10):
        for mine, theirs in zip(backwards[row], other.latents(torch.tensor([row])), strict=True):
            assert torch.equal(mine, theirs)


def test_one_reference_is_enough(method: PFStorer, references: Tensor) -> None:
    training = method.personal_training(references[:1], seed=7)
    assert set(training.samples.shown.tolist()) == {0}
    assert torch.isfinite(training.step())


def test_small_references_are_brought_to_the_native_size(method: PFStorer, references: Tensor) -> None:
    small = torch.nn.functional.interpolate(references, (64, 64), mode="area")
    assert method.personal_training(small, seed=7).samples.references.shape[-2:] == (16, 16)


# Stopped and gone on ----------------------------------------------------------------------------


@pytest.mark.parametrize("words", [*WAYS, ("method.personalisation.gamma=false",)], ids=["kept", "fresh", "vico"])
def test_a_stopped_learning_ends_with_the_same_bits(words: tuple[str, ...], references: Tensor) -> None:
    method = built(*words, "method.personalisation.iterations=30")
    kept: list[dict[str, Tensor]] = []
    whole = method.personalise(references, seed=3, keep=kept.append)
    assert int(kept[0]["iteration"]) == 25
    told: list[tuple[int, bool]] = []
    rest = method.personalise(references, seed=3, unfinished=kept[0], advance=lambda *own: told.append(own))
    assert told == [(25, True), *[(1, False)] * 5]
    assert whole.keys() == rest.keys()
    assert [name for name in whole if not torch.equal(whole[name], rest[name])] == []
    other = method.personalise(references, seed=4)
    assert any(not torch.equal(whole[name], other[name]) for name in whole)


def test_the_unfinished_learning_of_other_settings_is_refused(references: Tensor, state: dict[str, Tensor]) -> None:
    with pytest.raises(UnfinishedError, match="no unfinished learning"):
        built().personalise(references, seed=3, unfinished=state)


def test_a_learning_begins_anew_where_what_was_left_is_of_no_use(
    method: PFStorer, references: Tensor, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_HOME", str(tmp_path))
    source = PersonalSource(references, 0)
    key = source.key(method, "32-true")
    left = unfinished_path(state_path(method, key))
    write_tensors(left, state, {"key": key})
    told: list[tuple[int, bool]] = []
    learnt = learn(method, source, key, lambda *own: told.append(own))
    assert told == [(1, False)] * method.personal_iterations()
    assert not left.exists()
    expected = method.personalise(references, source.own_seed)
    assert [name for name, value in expected.items() if not torch.equal(value, learnt.tensors[name])] == []


def test_what_is_learnt_does_not_depend_on_what_was_restored(references: Tensor) -> None:
    method = built("method.personalisation.iterations=2")
    before = method.personalise(references, seed=3)
    batch = batch_of(blurred(references[:1]), references)
    first = restored(method, batch, before, references)
    after = method.personalise(references, seed=3)
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    assert torch.equal(restored(method, batch, before, references), first)


# States -----------------------------------------------------------------------------------------


def test_a_state_is_small_and_read_as_it_was_written(
    method: PFStorer, references: Tensor, state: dict[str, Tensor], tmp_path: Path
) -> None:
    source = PersonalSource(references, 0)
    made = source.state(method, source.key(method, "32-true"), state)
    write_state(tmp_path / "me.safetensors", made)
    assert (tmp_path / "me.safetensors").stat().st_size < 1_000_000
    found = read_state(tmp_path / "me.safetensors")
    assert replace(found, tensors={}) == replace(made, tensors={})
    assert all(torch.equal(found.tensors[name], value) for name, value in state.items())
    found.require_made_for(method, "me.safetensors")
    other = built("method.personalisation.sites=every_second")
    with pytest.raises(UsageError, match=f"{base_id(method)}.*{base_id(other)}"):
        found.require_made_for(other, "me.safetensors")


def test_states_of_a_run_are_read_one_at_a_time(
    method: PFStorer, references: Tensor, state: dict[str, Tensor], tmp_path: Path
) -> None:
    for name in "ab":
        write_state(tmp_path / f"{name}.safetensors", PersonalSource(references, 0).state(method, name, state))
    reason = UsageError("nobody could be learnt")
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    kept = KeptStates({"1": a, "2": a, "3": b, "4": reason})
    assert list(kept) == ["1", "2", "3", "4"]
    first = kept["1"]
    assert kept["2"] is first, "read once for a person's pictures"
    assert isinstance(first, PersonalState)
    assert first.key == "a"
    gone = weakref.ref(first)
    del first
    assert isinstance(kept["3"], PersonalState)
    assert gone() is None, "one person's state at a time"
    assert kept["4"] is reason
    assert kept.get("5") is None


def test_the_key_names_all_that_decides_a_state(method: PFStorer, references: Tensor) -> None:
    source = PersonalSource(references, 0)
    key = source.key(method, "32-true")
    assert key == PersonalSource(references.clone(), 0).key(built(), "32-true")
    others = {
        PersonalSource(references[:2], 0).key(method, "32-true"),
        PersonalSource(references, 1).key(method, "32-true"),
        source.key(method, "bf16-mixed"),
        source.key(built("method.personalisation.generative=0.5"), "32-true"),
        source.key(built("method.personalisation.degradation=pfstorer"), "32-true"),
    }
    assert len(others | {key}) == 6
    # How pictures are made of a state is not part of it.
    assert source.key(built("method.self_ensemble=false", "method.personalisation.references=first"), "32-true") == key


def test_another_version_of_the_learning_is_another_state_and_row(
    references: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("run", ["method=pfstorer", "size=demo"])
    source, found = PersonalSource(references, 0), set()
    for version in (1, 2):
        monkeypatch.setattr("methods.pfstorer.module.LEARNING_VERSION", version)
        method, revision, _ = build_method(config)
        found |= {source.key(method, "32-true"), revision}
    assert len(found) == 4


def test_a_long_sampling_keeps_the_tokens_of_one_step(references: Tensor, state: dict[str, Tensor]) -> None:
    batch = batch_of(blurred(references[:1]), references)
    for steps, kept in ((9, 1), (3, 3)):
        method = built("method.sampling.preset=fast", "method.sampling.guidance=1", f"method.sampling.steps={steps}")
        assert torch.isfinite(restored(method, batch, state, references)).all()
        (person,) = method._ready.values()
        assert len(person.tokens) == kept


def test_a_state_that_does_not_fit_is_refused(method: PFStorer, references: Tensor, state: dict[str, Tensor]) -> None:
    batch = batch_of(blurred(references[:1]), references)
    broken = {name: value for name, value in state.items() if not name.endswith("gamma")}
    with pytest.raises(UsageError, match="does not fit"):
        restored(method, batch, broken, references)
    method.persons = {}
    with pytest.raises(UsageError, match="Nobody was learnt for p/0"):
        method.restore(batch)


def test_two_persons_in_a_batch_keep_apart(method: PFStorer, references: Tensor, state: dict[str, Tensor]) -> None:
    other = method.personalise(references.flip(-1), seed=9)
    batch = batch_of(blurred(references[:1]), references, count=3)
    first, second = (
        PersonalSource(references, 0).state(method, "a", state),
        PersonalSource(references, 0).state(method, "b", other),
    )
    method.persons = {"p/0": first, "p/1": second, "p/2": first}
    with torch.inference_mode():
        together = method.restore(batch)
        alone = [method.restore(batch.row(row))[0] for row in range(3)]
    for row in range(3):
        assert (together[row] - alone[row]).abs().max() < 1e-3
    assert not torch.equal(alone[0], alone[1])


# Any size ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(96, 300), (200, 130), (128, 128)])
def test_any_size_is_restored_at_its_own(
    method: PFStorer, references: Tensor, state: dict[str, Tensor], height: int, width: int
) -> None:
    picture = torch.nn.functional.interpolate(blurred(references[:1]), (height, width), mode="bicubic").clamp(0, 1)
    result = restored(method, batch_of(picture, references), state, references)
    assert result.shape[-2:] == (height, width)
    assert torch.isfinite(result).all()
    assert (result - picture).abs().mean() < 0.2


def test_no_border_of_a_tile_shows(method: PFStorer, references: Tensor, state: dict[str, Tensor]) -> None:
    """Steps between pixels at the tiles' borders are those of the pixels around them."""
    picture = torch.nn.functional.interpolate(blurred(references[:1]), (96, 512), mode="bicubic").clamp(0, 1)
    result = restored(method, batch_of(picture, references), state, references)[0].mean(0)
    steps = result.diff(dim=1).abs().mean(0)
    tile, factor = SIDE // 8, 8
    starts = {window.left * factor for window in Tiling(tile, tile // 2).windows(tile, 512 // factor)}
    borders = sorted((starts | {start + SIDE for start in starts}) - {0, 512})
    assert len(borders) >= 5
    ratios = []
    for border in borders:
        around = [step for step in range(border - 12, border + 11) if abs(step - (border - 1)) > 3]
        ratios.append(float(steps[border - 1] / steps[around].mean()))
    assert sum(ratios) / len(ratios) < 1.15


# Settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method.personalisation.tunes=all", "personalisation.tunes"),
        ("method.personalisation.form=lora", "personalisation.form"),
        ("method.personalisation.sites=none", "personalisation.sites"),
        ("method.personalisation.iterations=0", "personalisation.iterations"),
        ("method.personalisation.generative=-1", "personalisation.generative"),
        ("method.personalisation.least_timestep=1000", "personalisation.least_timestep"),
        ("method.personalisation.degradation=none", "degradation preset"),
        ("method.personalisation.learning_rates.gamma=abc", "learning_rates.gamma"),
        ("method.personalisation.learning_rates.blocks=-1", "learning_rates.blocks"),
        ("method.personalisation.weight_decay=x", "weight_decay"),
        ("method.personalisation.schedule.warm_up=x", "warm_up"),
        ("method.personalisation.betas=[0.9]", "betas"),
        ("method.personalisation.betas=[0.9,1.5]", "betas"),
        ("method.personalisation.gamma=maybe", "personalisation.gamma"),
        ("method.personalisation.mask=1", "personalisation.mask"),
        ("method.personalisation.learning_rates=0.1", "personalisation.learning_rates"),
        ("method.personalisation.schedule=null", "personalisation.schedule"),
        ("method.personalisation.degradation=null", "personalisation.degradation"),
        ("method.tiles_per_call=0", "tiles_per_call"),
    ],
)
def test_settings_out_of_range_are_refused(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        built(word)


def test_rows_are_named_after_what_they_compare() -> None:
    names = {
        "pfstorer@demo": [],
        "pfstorer+base@demo": ["method.personalisation.tunes=nothing"],
        "pfstorer+vico@demo": ["method.personalisation.gamma=false"],
        "pfstorer+dreambooth@demo": ["method.personalisation.tunes=unet"],
        "pfstorer+dreambooth+gen0@demo": ["method.personalisation.tunes=unet", "method.personalisation.generative=0"],
        "pfstorer+gen0.5@demo": ["method.personalisation.generative=0.5"],
    }
    for name, words in names.items():
        assert built(*words).label == name
        suffix = name.removeprefix("pfstorer").removesuffix("@demo")
        assert variant_suffix(words, "pfstorer") == suffix
        assert variant_words(suffix, "pfstorer") == words


@pytest.mark.parametrize("form", ["cross_attentions", "text_and_transformer", "vico"])
@pytest.mark.parametrize("gamma", ["true", "false"])
@pytest.mark.parametrize("sites", ["every_second", "all"])
def test_every_form_learns(references: Tensor, form: str, gamma: str, sites: str) -> None:
    words = [
        f"method.personalisation.{key}={value}" for key, value in (("form", form), ("gamma", gamma), ("sites", sites))
    ]
    training = built(*words).personal_training(references, seed=7)
    training.step()
    assert torch.isfinite(training.step())
    assert len(training.parts.blocks) == (3 if sites == "every_second" else 6)  # type: ignore[union-attr]


def test_the_papers_sizes() -> None:
    """865,910,724 parameters; blocks at ViCo's four decoder sites, less than 100 MB in float16."""
    settings = method_settings(compose("run", ["method=pfstorer"])["method"], "paper")
    with torch.device("meta"):
        method = PFStorer(settings)
        parts = method.new_parts()
    assert sum(p.numel() for p in method.network.adapted.unet.parameters()) == 865_910_724
    assert parts.sites == (
        "up_blocks.1.attentions.1.transformer_blocks.0",
        "up_blocks.2.attentions.0.transformer_blocks.0",
        "up_blocks.2.attentions.2.transformer_blocks.0",
        "up_blocks.3.attentions.1.transformer_blocks.0",
    )
    assert 2 * sum(parameter.numel() for parameter in parts.parameters()) < 100e6
