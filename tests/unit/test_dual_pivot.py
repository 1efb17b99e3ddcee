"""Dual-Pivot Tuning: what each pivot moves, what it is told, and that a stopped tuning ends as one that was not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.batch import FaceBatch
from bench.config import compose, method_settings
from bench.errors import MissingError, UsageError
from bench.personal_state import PersonalSource
from bench.registry import load_method
from bench.seeds import derive_seed
from methods.blocks.diffusion_objective import add_noise
from methods.dual_pivot.module import DualPivot
from methods.dual_pivot.personal_tuning import PersonalTuning
from methods.dual_pivot.prompts import CLASS_WORDS, SMALL_TOKENS, class_number, personal_prompt, small_text
from methods.dual_pivot.released_order import first_tensors

SHORT = [
    "method.personalisation.textual.iterations=3",
    "method.personalisation.textual.batch_size=2",
    "method.personalisation.textual.samples=4",
    "method.personalisation.textual.class_pictures=3",
    "method.personalisation.textual.class_sampling.steps=2",
    "method.personalisation.model.iterations=2",
    "method.personalisation.model.batch_size=2",
    "method.personalisation.model.samples=4",
    "method.personalisation.generic_samples=8",
]


def settings(*words: str) -> dict[str, Any]:
    composed = compose("run", ["method=dual_pivot", *(f"{word}" for word in (*SHORT, *words))])["method"]
    return method_settings(composed, "demo") | {"seed": 0}


def built(*words: str) -> DualPivot:
    """The method with random weights, no tensor of them zero."""
    method = DualPivot(settings(*words))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return method.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def references() -> Tensor:
    return torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(2))


def state_of(tuning: PersonalTuning) -> dict[str, Tensor]:
    return {name: own.clone() for name, own in tuning.network.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, own in after.items() if not torch.equal(own, before[name])}


def steps(tuning: PersonalTuning, count: int) -> list[float]:
    return [float(tuning.step()) for _ in range(count)]


def parts(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("where", ["in_context", "out_of_context"])
@pytest.mark.parametrize("faces", ["generic", "personal"])
def test_each_pivot_leaves_every_bit_of_the_others(where: str, faces: str, references: Tensor) -> None:
    method = built(f"method.personalisation.textual.where={where}", f"method.personalisation.model.faces={faces}")
    kept = {name: own.clone() for name, own in method.network.state_dict().items()}
    tuning = method.personal_tuning(references, 5, "man")
    first = state_of(tuning)
    steps(tuning, 3)
    second = state_of(tuning)
    moved = changed(first, second)
    assert parts(moved) == {"unet"}
    # Attention to one text alone has no query that matters; all else moves.
    assert len(moved) > 0.9 * sum(name.startswith("unet.") for name in first)
    steps(tuning, 2)
    assert tuning.finished
    third = changed(second, state_of(tuning))
    assert parts(third) == {"controlnet"}
    assert len(third) > 0.9 * sum(name.startswith("controlnet.") for name in first)
    assert not changed(kept, dict(method.network.state_dict()))


def test_published_recipe_moves_the_first_tensors_of_the_release_alone(references: Tensor) -> None:
    method = built("method.personalisation.model.tensors=20")
    tuning = method.personal_tuning(references, 5)
    steps(tuning, 3)
    before = state_of(tuning)
    steps(tuning, 2)
    chosen = {f"controlnet.{name}" for name in first_tensors(method.network.controlnet, 20)}
    moved = changed(before, state_of(tuning))
    assert moved <= chosen
    assert len(moved) > 15
    assert {name for name in tuning.result() if name.startswith("controlnet.")} == chosen


def test_textual_pivot_alone_ends_there(references: Tensor) -> None:
    method = built("method.personalisation.tunes=textual")
    tuning = method.personal_tuning(references, 5)
    steps(tuning, 3)
    assert tuning.finished
    assert parts(tuning.result()) == {"unet", "text"}


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_stopped_tuning_ends_with_the_same_bits(stop: int, references: Tensor) -> None:
    method = built()
    whole = method.personalise(references, 7, class_word="woman")
    begun = method.personal_tuning(references, 7, "woman")
    steps(begun, stop)
    told: list[tuple[int, bool]] = []
    found = method.personalise(
        references, 7, begun.unfinished(), advance=lambda *one: told.append(one), class_word="woman"
    )
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], own) for name, own in whole.items())
    assert told[0] == (stop, True)
    assert sum(count for count, _ in told) == method.personal_iterations() == 5


def test_in_context_loss_is_that_of_the_restoration_model(references: Tensor) -> None:
    method = built("method.personalisation.textual.prior=0")
    tuning = method.personal_tuning(references, 5, "man")
    loss = tuning.loss(0)
    latent, hint = tuning._personal(0, with_hint=True)
    generator = torch.Generator().manual_seed(derive_seed(5, "textual", "iteration", 0) % 2**63)
    noised = add_noise(
        latent, method.sampler.alphas_cumprod, method.base.prediction, generator, among=method.sampler.call_timesteps
    )
    assert set(noised.timestep.tolist()) <= set(method.sampler.call_timesteps)
    text, none = method.text(2, personal_prompt("sks", "man")), method.text(2, "")
    predicted = method.network(noised.noisy, noised.timestep, text, hint, none)
    torch.testing.assert_close(loss, F.mse_loss(predicted, noised.target))


@pytest.mark.parametrize("where", ["in_context", "out_of_context"])
def test_prior_preservation_adds_the_loss_of_others_by_its_weight(where: str, references: Tensor) -> None:
    word = f"method.personalisation.textual.where={where}"
    weighed = {
        weight: float(
            built(word, f"method.personalisation.textual.prior={weight}").personal_tuning(references, 5, "man").loss(0)
        )
        for weight in (0, 1, 2)
    }
    assert weighed[1] > weighed[0]
    assert weighed[2] - weighed[1] == pytest.approx(weighed[1] - weighed[0], rel=1e-4)


def test_pictures_of_a_class_differ_by_its_word_and_not_by_person(references: Tensor) -> None:
    method = built("method.personalisation.textual.where=out_of_context")
    man = method.personal_tuning(references, 5, "man").class_latents
    assert len(man) == 3
    assert torch.equal(method.personal_tuning(references, 6, "man").class_latents, man)
    assert not torch.equal(method.personal_tuning(references, 5, "woman").class_latents, man)


def test_texts_of_the_demo_differ_by_word() -> None:
    texts = [small_text(prompt, 64) for prompt in ("", "a photo of a man", "a photo of a sks man")]
    assert all(text.shape == (SMALL_TOKENS, 64) for text in texts)
    assert not torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[1], texts[2])
    assert torch.equal(small_text("a photo of a man", 64), texts[1])
    assert [CLASS_WORDS[class_number(word)] for word in ("man", "", "astronaut")] == ["man", "", "person"]


def test_a_person_is_another_under_another_word_where_the_method_reads_it(references: Tensor) -> None:
    method = built()
    keys = {PersonalSource(references, 0, word).key(method, "32-true") for word in ("man", "woman", "person")}
    assert len(keys) == 3
    other = load_method("pfstorer")(
        method_settings(compose("run", ["method=pfstorer"])["method"], "demo") | {"seed": 0}
    )
    assert len({PersonalSource(references, 0, word).key(other, "32-true") for word in ("man", "woman")}) == 1


def test_a_person_is_another_at_other_timesteps(references: Tensor) -> None:
    """What was tuned at the timesteps of one sampling is of no use to another."""
    source = PersonalSource(references, 0)
    keys = {steps: source.key(built(f"method.sampling.steps={steps}"), "32-true") for steps in (1, 2, 3)}
    assert len(set(keys.values())) == 3
    every = [
        source.key(built(f"method.sampling.steps={steps}", "method.personalisation.timesteps=all"), "32-true")
        for steps in (1, 2)
    ]
    assert every[0] == every[1]


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ((), "dual_pivot@demo"),
        (("tunes=nothing",), "dual_pivot+base@demo"),
        (("tunes=textual",), "dual_pivot+textual@demo"),
        (("textual.where=out_of_context", "model.faces=personal"), "dual_pivot+out_of_context+personal@demo"),
        (("tunes=nothing", "model.faces=personal"), "dual_pivot+base@demo"),
    ],
)
def test_label_names_what_a_comparison_changes(words: tuple[str, ...], label: str) -> None:
    assert DualPivot(settings(*(f"method.personalisation.{word}" for word in words))).label == label


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("method.personalisation.tunes=all", "tunes"),
        ("method.personalisation.textual.where=here", "textual.where"),
        ("method.personalisation.model.text=sks", "model.text"),
        ("method.personalisation.model.iterations=0", "model.iterations"),
        ("method.personalisation.token='a b'", "one word"),
        ("method.personalisation.textual=3", "settings of its own"),
        ("method.personalisation.betas=[0.9]", "two numbers"),
        ("method.network.cleaner.kind=other", "cleaner.kind"),
    ],
)
def test_settings_that_make_no_sense_are_refused(word: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        DualPivot(settings(word))


def told_texts(tuning: PersonalTuning, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the denoiser is told in the next iteration, one text for each picture."""
    found: list[Tensor] = []
    forward = tuning.network.forward

    def noted(latent: Tensor, timestep: Tensor, text: Tensor, *more: Tensor) -> Tensor:
        found.extend(text)
        return forward(latent, timestep, text, *more)

    monkeypatch.setattr(tuning.network, "forward", noted)
    tuning.loss(0)
    return found


def same(method: DualPivot, texts: list[Tensor], prompts: list[str]) -> bool:
    return all(torch.equal(own, method.text(1, prompt)[0]) for own, prompt in zip(texts, prompts, strict=True))


def test_released_recipe_tells_the_persons_text_in_both_pivots(
    references: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = built("method.personalisation.textual.where=out_of_context", "method.personalisation.model.faces=personal")
    tuning = method.personal_tuning(references, 5, "woman")
    person = "a photo of a sks woman"
    texts = told_texts(tuning, monkeypatch)
    assert same(method, texts, [person, person, "a photo of a woman", "a photo of a woman"])
    monkeypatch.undo()
    steps(tuning, 4)
    assert same(method, told_texts(tuning, monkeypatch), [person, person])


@pytest.mark.parametrize(("text", "prompt"), [("class", None), ("personal", "a photo of a sks woman"), ("none", "")])
def test_other_peoples_faces_are_told_their_own_class(
    text: str, prompt: str | None, references: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = built(f"method.personalisation.model.text={text}")
    tuning = method.personal_tuning(references, 5, "woman")
    steps(tuning, 4)
    assert tuning.pivot.name == "model"
    numbers = method.generic_samples()["class"][tuning._rows(0, 8)]
    words = [f"a photo of a {CLASS_WORDS[int(number)]}" if prompt is None else prompt for number in numbers]
    assert same(method, told_texts(tuning, monkeypatch), words)


def test_new_samples_each_time_and_several_batches_of_a_step(references: Tensor) -> None:
    """As the published recipe has it: nothing is used again, and two batches make a step."""
    words = [f"method.personalisation.{pivot}.{key}" for pivot in ("textual", "model") for key in
             ("samples=0", "accumulate=2")]  # fmt: skip
    method = built(*words, "method.personalisation.model.faces=personal")
    whole = method.personalise(references, 7)
    begun = method.personal_tuning(references, 7)
    steps(begun, 4)
    found = method.personalise(references, 7, begun.unfinished())
    assert all(torch.equal(found[name], own) for name, own in whole.items())


def test_no_gradient_of_the_denoiser_is_held_in_the_model_pivot(references: Tensor) -> None:
    tuning = built().personal_tuning(references, 5)
    steps(tuning, 4)
    assert all(own.grad is None for own in tuning.network.unet.parameters())


def test_a_frozen_cleaner_stays_in_evaluation_mode() -> None:
    network = built().network
    assert not network.train().cleaner.training
    network.train_only("cleaner")
    assert network.train().cleaner.training


def test_words_that_the_demo_does_not_know_mean_a_person(references: Tensor) -> None:
    method = built()
    texts = [method.personal_tuning(references, 5, word).text for word in ("young man", "astronaut", "person")]
    assert torch.equal(texts[0], texts[2])
    assert torch.equal(texts[1], texts[2])


def test_guidance_reads_the_person_and_no_one(references: Tensor) -> None:
    """Guidance 1 is the person alone; above it the difference to the empty text counts."""
    batch = FaceBatch(
        lq=references[:1], references=references[None], reference_mask=torch.ones(1, 3, dtype=torch.bool),
        image_ids=["a"], identities=["a"], seeds=[3],
    )  # fmt: skip
    pictures = []
    for guidance in (1.0, 3.0):
        method = built(f"method.sampling.guidance={guidance}", "method.self_ensemble=false")
        source = PersonalSource(references, 0)
        tensors = method.personalise(references, 7)
        method.persons = {"a": source.state(method, "key", tensors)}
        pictures.append(method.restore(batch))
    assert pictures[0].shape == batch.lq.shape
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3


def test_whoever_is_learnt_needs_no_generic_faces(
    references: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    method = built("method.personalisation.generic_data=ffhq")
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    with pytest.raises(MissingError, match="BENCH_DATA/ffhq"):
        method.personal_settings()
    assert not DualPivot.absent(method.settings)
    assert method.personal_base()
    assert "generic" not in built("method.personalisation.textual.where=out_of_context",
                                  "method.personalisation.model.faces=personal").personal_settings()  # fmt: skip
