"""Configuration: the only module that calls Hydra.

`compose` turns the words of the command line into one plain dictionary; everything else in the
project sees built-in types and dataclasses only.
"""

from __future__ import annotations

import difflib
import itertools
import re
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UsageError, unknown_name
from bench.paths import resource_root
from bench.registry import data_folders, method_targets

GROUPS = ("method", "data", "protocol", "probe", "metrics", "trainer")
PATH_KEYS = ("run_dir", "data.root", "method.root", "method.weights")


def group_choices(group: str) -> dict[str, Path]:
    """Names of a configuration group and the files behind them."""
    folders = data_folders() if group == "data" else [resource_root() / "configs" / group]
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def read_preset(group: str, name: str) -> dict[str, Any]:
    """Reads one file of a group that is not composed, such as a degradation preset.

    Raises:
        UsageError: There is no such file, or it holds no preset.
    """
    known = {path.stem: path for path in (resource_root() / "configs" / group).glob("*.yaml")}
    if name not in known:
        raise unknown_name(f"{group} preset", name, known)
    try:
        content = yaml.safe_load(known[name].read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{known[name]} cannot be read: {' '.join(str(error).split())}") from error
    return _check_preset(group, content, known[name])


def _check_preset(group: str, content: Any, path: Path) -> dict[str, Any]:
    if group != "degradation" and isinstance(content, dict):
        return content
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        raise UsageError(f"{path} must be a {group} preset {{name: ..., steps: [...]}}, got {content!r}.")
    if not isinstance(content.get("steps"), list) or not content["steps"]:
        raise UsageError(f"{path} must have a list of steps, got {content.get('steps')!r}.")
    return content


def _split(word: str) -> tuple[str, str]:
    key, separator, value = word.partition("=")
    if not separator or not re.fullmatch(r"[+~]{0,2}[A-Za-z_][\w./@-]*", key):
        raise UsageError(f"Cannot understand {word!r}: expected key=value, for instance method=refine.")
    return key.lstrip("+~"), value


def _is_path(key: str, value: str) -> bool:
    if value in ("", "null"):
        return False
    return key in PATH_KEYS or (("/" in value or "\\" in value) and Path(value).expanduser().exists())


def _quoted(word: str) -> str:
    """Quotes a path for Hydra's grammar, in which commas, `=`, brackets and blanks mean something."""
    key, value = _split(word)
    if _is_path(key, value):
        # A backslash is only special before what it could escape: OmegaConf's ${, Hydra's quote, the end.
        escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
        escaped = re.sub(r'(\\*)"', r'\1\1\\"', escaped)
        escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
        return f'{word.partition("=")[0]}="{escaped}"'
    return word


def expand_sweep(words: list[str]) -> list[list[str]]:
    """Every combination of the comma lists in `words`, as overrides of single jobs.

    Raises:
        UsageError: A word is not key=value.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    axes: list[list[str]] = []
    for word in words:
        _split(word)
        try:
            override = OverridesParser.create().parse_override(_quoted(word))
        except HydraException as error:
            raise UsageError(f"Cannot understand {word!r}: {error}") from error
        if override.is_sweep_override():
            axes.append([f"{word.partition('=')[0]}={value}" for value in override.sweep_string_iterator()])
        else:
            axes.append([word])
    return [list(job) for job in itertools.product(*axes)]


def compose(config: str, words: list[str]) -> dict[str, Any]:
    """Composes `configs/<config>.yaml` with overrides.

    Args:
        config: "run" or "train".
        words: `key=value` words of the command line. Existing paths need no quoting.

    Returns:
        The configuration as built-in types, with the degradation preset, or each of several, in its place.

    Raises:
        UsageError: Unknown group choice or key (with the nearest names), or a comma list without -m.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    given = dict(_split(word) for word in words)
    for group in GROUPS:
        choices: Any = group_choices(group)
        if group == "method":
            choices = {**choices, **method_targets()}
        if group in given and given[group] not in choices and "," not in given[group]:
            raise unknown_name({"data": "data set", "metrics": "metric set"}.get(group, group), given[group], choices)
    if "method" not in given:
        raise UsageError(f"Which method? Add method=NAME, one of: {', '.join(method_targets())}.")
    store = ConfigStore.instance()
    inside = resource_root() / "configs"
    for name, path in group_choices("data").items():
        if path.parent != inside / "data":
            store.store(group="data", name=name, node=OmegaConf.create(yaml.safe_load(path.read_text("utf-8"))))
    if given["method"] not in group_choices("method"):
        store.store(group="method", name=given["method"], node=OmegaConf.create({"name": given["method"]}))
    words = [expanded for word in words for expanded in _into_sizes(word, given["method"])]
    overrides = [_quoted(word) for word in words]
    try:
        for word, override in zip(words, overrides, strict=True):
            if OverridesParser.create().parse_override(override).is_sweep_override():
                raise UsageError(f"{word!r} lists several values. Add -m to run them all, or write [a,b] for a list.")
        with initialize_config_dir(version_base="1.3", config_dir=str(inside)):
            composed = hydra_compose(config_name=config, overrides=overrides)
        plain: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(error, config, given) from error
    _check_values(plain)
    settings: dict[str, Any] = plain | {"data": _data_settings(plain["data"], given)}
    return settings


def _data_settings(data: dict[str, Any], given: dict[str, str]) -> dict[str, Any]:
    """The data group with its preset in its place, named after the protocol it was given."""
    data = dict(data)
    if isinstance(data.get("degradation"), str):
        data["degradation"] = read_preset("degradation", data["degradation"])
    elif isinstance(data.get("degradation"), list):
        data["degradation"] = [read_preset("degradation", name) for name in data["degradation"]]
    protocol = data.pop("protocol")
    if protocol and "data.name" not in given:
        data["name"] = f"{data['name']}_{protocol['name']}"
    if protocol and "data.title" not in given:
        data["title"] = f"{data['title'].split(':')[0]}: {protocol['title']}"
    # Training knows no probe: its marks are an augmentation.
    probe = data.get("probe")
    if probe and "data.name" not in given:
        data["name"] = f"{data['name']}_{probe['name']}"
    if probe and "data.title" not in given:
        data["title"] = f"{data['title']}; {probe['title']}"
    return data


def _check_values(settings: dict[str, Any]) -> None:
    """Checks types and ranges that composing does not.

    Raises:
        UsageError: A value is of the wrong kind; the message names the key.
    """
    data, trainer = settings["data"], settings["trainer"]
    least: dict[str, tuple[Any, int]] = {
        "batch_size": (settings.get("batch_size"), 1),
        "data.size": (data["size"], 16),
        "data.references": (data["references"], 0),
        "data.targets": (data["targets"], 1),
        "data.identities": (data.get("identities"), 1),
        "data.minimum_photos": (data.get("minimum_photos"), 1),
        "trainer.max_steps": (trainer["max_steps"], 1),
        "trainer.num_workers": (trainer["num_workers"], 0),
        "trainer.threads": (trainer["threads"], 1),
        "checkpoint_every": (settings.get("checkpoint_every", 1), 1),
        "pool": (settings.get("pool", 0), 0),
    }
    for key, (value, smallest) in least.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < smallest):
            raise UsageError(f"{key} must be a whole number of at least {smallest}, got {value!r}.")
    if not isinstance(data["name"], str) or not re.fullmatch(r"\w[\w.+-]*", data["name"]):
        raise UsageError(f"data.name must be letters, digits, dots, plus, minus and underscores, got {data['name']!r}.")
    for key in ("selection", "protocol", "probe"):
        if not isinstance(data.get(key), dict | None):
            raise UsageError(f"data.{key} must be a mapping, such as {{rule: ...}}, got {data[key]!r}.")
    _check_degradation(data.get("degradation"))
    for key, value in (("seed", settings["seed"]), ("data.seed", data["seed"])):
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"{key} must be a whole number, got {value!r}.")
    if data["split"] not in ("train", "validation", "test"):
        raise unknown_name("value of data.split", str(data["split"]), ("train", "validation", "test"))
    for key, example in (("names", "[id,haarpsi]"), ("sets", "[kid_gt]")):
        value = settings.get("metrics", {}).get(key)
        if not isinstance(value, list) and not (value is None and key == "sets") and "metrics" in settings:
            raise UsageError(f"metrics.{key} must be a list in brackets, such as {example}, got {value!r}.")
    if not isinstance(settings.get("cache", True), bool):
        raise UsageError(f"cache must be true or false, got {settings['cache']!r}.")


def _check_degradation(value: Any) -> None:
    """Checks that it is one preset, a list of several, or none; whether they exist shows when they are read."""
    if isinstance(value, list):
        if len(value) < 2 or not all(isinstance(name, str) for name in value) or len(set(value)) < len(value):
            raise UsageError(
                "data.degradation in brackets must name two or more different presets, of which every photograph gets "
                f"each, such as [blur_only,heavy]; got {value!r}."
            )
    elif not isinstance(value, str | None):
        raise UsageError(f"data.degradation must be the name of a preset, a list of several, or null, got {value!r}.")


def _into_sizes(word: str, method: str) -> list[str]:
    """`method.losses.cycle=0` means that key in every size of the method that has it."""
    key, value = _split(word)
    path = group_choices("method").get(method)
    if not key.startswith("method.") or path is None:
        return [word]
    content = yaml.safe_load(path.read_text("utf-8"))
    parts = key.split(".")[1:]
    if parts[0] in content:
        return [word]
    sizes = [name for name, own in (content.get("sizes") or {}).items() if _has(own, parts)]
    return [f"method.sizes.{name}.{'.'.join(parts)}={value}" for name in sizes] or [word]


def _has(content: Any, parts: list[str]) -> bool:
    for part in parts:
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True


def _explained(error: Exception, config: str, given: dict[str, str]) -> UsageError:
    """A message without Hydra's words; for an unknown key, the nearest known ones."""
    known = _known_keys(config, given)
    roots = {key.partition(".")[0] for key in known}
    for key in given:
        if key not in known and key not in GROUPS:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Known at the top: {', '.join(sorted(roots))}."
            return UsageError(f"Unknown key {key!r}. {hint}")
    top = yaml.safe_load((resource_root() / "configs" / f"{config}.yaml").read_text("utf-8"))
    groups = {name for entry in top["defaults"] if isinstance(entry, dict) for name in entry}
    for key in given:
        if key in GROUPS and key not in groups:
            return UsageError(f"bench {config} takes no {key}=…. Its groups: {', '.join(sorted(groups))}.")
    return UsageError(f"The configuration is not valid: {str(error).splitlines()[0]}")


def _known_keys(config: str, given: dict[str, str]) -> list[str]:
    def flatten(prefix: str, value: Any) -> list[str]:
        if not isinstance(value, dict) or not value:
            return [prefix]
        return [prefix, *(name for key, own in value.items() for name in flatten(f"{prefix}.{key}", own))]

    top = yaml.safe_load((resource_root() / "configs" / f"{config}.yaml").read_text("utf-8"))
    defaults = {k: v for entry in top.pop("defaults") if isinstance(entry, dict) for k, v in entry.items()}
    keys = [key for name, value in top.items() for key in flatten(name, value)]
    for group, default in defaults.items():
        path = group_choices(group).get(given.get(group, default))
        content = yaml.safe_load(path.read_text("utf-8")) if path else {}
        if group == "trainer":
            content |= yaml.safe_load((resource_root() / "configs/trainer/default.yaml").read_text("utf-8"))
        for own in (content.pop("sizes", None) or {}).values():
            content = {**own, **content}
        inside = "data" if group in ("protocol", "probe") else group
        keys += [key for name, value in content.items() for key in flatten(f"{inside}.{name}", value)]
    return keys


def method_settings(method: dict[str, Any], size: str | None) -> dict[str, Any]:
    """Settings of one size of a method: what is common, with that size's own values merged in.

    Args:
        method: The composed `method` group.
        size: Name of the size; None for a method without sizes.

    Raises:
        UsageError: The method has no such size.
    """
    settings = {key: value for key, value in method.items() if key != "sizes"}
    sizes = method.get("sizes") or {}
    if sizes:
        if size not in sizes:
            raise unknown_name(f"size of {method['name']}", str(size), sizes)
        settings |= sizes[size]
    return settings | {"size": size if sizes else None}
