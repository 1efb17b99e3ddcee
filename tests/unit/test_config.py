"""From words of the command line to one dictionary: names, keys, paths, lists, sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.config import compose, expand_sweep, method_settings, read_preset
from bench.errors import UsageError


def test_defaults_and_overrides() -> None:
    config = compose("run", ["method=input", "seed=3", "batch_size=2"])
    assert config["method"] == {"name": "input"}
    assert (config["seed"], config["batch_size"], config["data"]["name"]) == (3, 2, "orl_heavy")
    assert config["data"]["degradation"] == read_preset("degradation", "heavy")
    assert compose("run", ["data=orl_light", "method=input"])["data"]["degradation"]["name"] == "light"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=refin"], "Unknown method 'refin'. Did you mean 'refine'"),
        (["method=input", "data=orl_havy"], "Unknown data set 'orl_havy'. Did you mean 'orl_heavy"),
        (["method=input", "metrics=standart"], "Did you mean 'standard'"),
        (["method=input", "trainer=dpp"], "Did you mean 'ddp'"),
        (["method=input", "data.degradation=havy"], "Unknown degradation preset 'havy'. Did you mean 'heavy'"),
        (["method=input", "seeed=1"], "Unknown key 'seeed'. Did you mean seed"),
        (["method=input", "data.rot=x"], "Unknown key 'data.rot'. Did you mean data.root"),
        (["method=input", "trainer.acelerator=cpu"], "trainer.accelerator"),
        (["method=refine", "method.losses.cycel=0"], "method.losses.cycle"),
        (["method=input", "zzz=1"], "Known at the top"),
        (["data=orl_heavy"], "Which method"),
        (["method=input", "verbose"], "expected key=value"),
        (["method=input", "=1"], "expected key=value"),
        (["method=input", "seed=0,1"], "Add -m"),
        (["method=input,refine"], "Add -m"),
        (["method=input", "data.name=../../evil"], "data.name must be"),
        (["method=input", "data.name="], "data.name must be"),
        (["method=input", "data.selection=quality_pairs"], "data.selection must be a mapping"),
        (["method=input", "data.protocol=x"], "data.protocol must be a mapping"),
        (["method=input", "data.degradation=5"], "must be the name of a preset"),
        (["method=input", "metrics.sets=kid_gt"], "metrics.sets must be a list"),
        (["method=input", "cache=7"], "cache must be true or false"),
    ],
)
def test_mistakes_name_what_would_be_right(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose("run", words)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


NAMES = ["plain", "mit Blank", "é à ü", "a,b", "a=b", "[x]", "{y}", "(z)", "it's", 'say "so"', "$HOME", "a:b", "100%"]


@pytest.mark.parametrize("name", [*NAMES, "ends in \\", "all, of=[them] \\\" é'"])
def test_any_existing_path_works_unquoted(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    config = compose("run", ["method=input", f"data.root={folder}", f"run_dir={folder / 'run, 1'}"])
    assert config["data"]["root"] == str(folder)
    assert config["run_dir"] == str(folder / "run, 1")
    assert expand_sweep([f"data.root={folder}"]) == [[f"data.root={folder}"]]


@pytest.mark.parametrize("name", ["${seed}", "\\${seed}", 'a\\"${oc.env:HOME}\\'])
def test_interpolation_in_a_path_is_not_resolved(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    assert compose("run", ["method=input", f"data.root={folder}"])["data"]["root"] == str(folder)


def test_a_key_of_a_size_reaches_every_size_that_has_it() -> None:
    config = compose("train", ["method=refine", "method.losses.cycle=0"])
    for size in ("demo", "paper"):
        losses = method_settings(config["method"], size)["losses"]
        assert losses["cycle"] == 0
        assert losses["minimum"] == 1.0


def test_a_common_key_and_the_key_of_one_size() -> None:
    config = compose("run", ["method=refine", "method.reference=none", "method.sizes.demo.losses.cycle=2"])
    demo, paper = (method_settings(config["method"], size) for size in ("demo", "paper"))
    assert demo["reference"] == paper["reference"] == "none"
    assert demo["losses"]["cycle"] == 2
    assert paper["losses"]["cycle"] != 2
    assert (demo["native_size"], paper["native_size"]) == (128, 512)
    assert "sizes" not in demo


def test_settings_of_a_size_that_does_not_exist() -> None:
    config = compose("run", ["method=refine"])
    with pytest.raises(UsageError, match=r"papr.*Did you mean 'paper'"):
        method_settings(config["method"], "papr")
    assert method_settings({"name": "input"}, None) == {"name": "input", "size": None}


def test_sweeps_are_every_combination_in_order() -> None:
    jobs = expand_sweep(["method=input,refine", "data=orl_heavy", "seed=0,1"])
    assert jobs == [
        ["method=input", "data=orl_heavy", "seed=0"],
        ["method=input", "data=orl_heavy", "seed=1"],
        ["method=refine", "data=orl_heavy", "seed=0"],
        ["method=refine", "data=orl_heavy", "seed=1"],
    ]
    assert expand_sweep(["metrics.names=[id,psnr_y]"]) == [["metrics.names=[id,psnr_y]"]]
    for job in jobs:
        compose("run", job)


def test_composed_values_are_built_in_types() -> None:
    def check(value: object) -> None:
        assert type(value) in (dict, list, str, int, float, bool, type(None))
        for own in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(own)

    check(compose("run", ["method=refine"]))
    check(compose("train", ["method=refine", "trainer=ddp"]))


def test_a_protocol_changes_the_choice_of_pictures_and_the_name() -> None:
    data = compose("run", ["method=input", "data=celebref_heavy", "protocol=pfstorer20"])["data"]
    assert data["name"] == "celebref_heavy_pfstorer20"
    assert (data["identities"], data["minimum_photos"], data["references"], data["targets"]) == (20, 10, 5, None)
    assert data["title"].startswith("CelebRef-HQ, heavy degradation: 20 people")
    assert "protocol" not in data
    own = compose("run", ["method=input", "protocol=pfstorer20", "data.references=3", "data.name=mine"])["data"]
    assert (own["name"], own["references"]) == ("mine", 3)
    with pytest.raises(UsageError, match="Did you mean 'pfstorer20'"):
        compose("run", ["method=input", "protocol=pfstorer2"])
