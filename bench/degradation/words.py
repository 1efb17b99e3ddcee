"""The steps of a degradation in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Steps = Sequence[dict[str, Any]]


def in_words(steps: Steps, indent: int = 0) -> list[str]:
    """Steps as the lines of a Markdown list; steps inside others are indented."""
    return [line for number, step in enumerate(steps, start=1) for line in _step(step, f"{number}.", indent)]


def _step(step: dict[str, Any], marker: str, indent: int) -> list[str]:
    arguments = dict(step)
    name = arguments.pop("operator")
    if name == "maybe":
        return _held(f"with probability {arguments['probability']:g}", arguments["steps"], marker, indent)
    if name == "clean_pass_through":
        opening = f"nothing, with probability {arguments['probability']:g}; otherwise"
        return _held(opening, arguments["otherwise"], marker, indent, inline=False)
    if name == "shuffle":
        return _held("in random order", arguments["steps"], marker, indent, inline=False)
    if name == "one_of":
        return _one_of(arguments["choices"], marker, indent)
    return [f"{' ' * indent}{marker} {_plain(name, arguments)}"]


def _held(opening: str, steps: Steps, marker: str, indent: int, inline: bool = True) -> list[str]:
    if inline and len(steps) == 1 and not _holds_steps(steps[0]):
        arguments = dict(steps[0])
        return [f"{' ' * indent}{marker} {opening}: {_plain(arguments.pop('operator'), arguments)}"]
    return [f"{' ' * indent}{marker} {opening}:", *in_words(steps, indent + len(marker) + 1)]


def _one_of(choices: Sequence[dict[str, Any]], marker: str, indent: int) -> list[str]:
    if listed := _listed(choices):
        return [f"{' ' * indent}{marker} {listed}"]
    total = sum(choice.get("weight", 1) for choice in choices)
    inner = indent + len(marker) + 1
    lines = [f"{' ' * indent}{marker} one of:"]
    for choice in choices:
        share = f"{choice.get('weight', 1) / total:.0%}".replace("%", " %")
        steps = choice["steps"]
        others = [other["steps"] for other in choices if other is not choice]
        if len(steps) == 1 and steps[0]["operator"] == "shuffle" and steps[0]["steps"] in others:
            lines.append(f"{' ' * inner}- {share}: the same steps in random order")
        else:
            lines += _held(share, steps, "-", inner)
    return lines


def _listed(choices: Sequence[dict[str, Any]]) -> str | None:
    """Choices that differ in one fixed number of one operator, in one line."""
    if any("weight" in choice or len(choice["steps"]) != 1 for choice in choices):
        return None
    steps = [dict(choice["steps"][0]) for choice in choices]
    names = {step.pop("operator") for step in steps}
    keys = {tuple(step) for step in steps}
    if len(names) > 1 or len(keys) > 1 or len(key := next(iter(keys))) != 1:
        return None
    values = [step[key[0]] for step in steps]
    if not all(isinstance(value, list) and len(value) == 2 and value[0] == value[1] for value in values):
        return None
    numbers = ", ".join(f"{value[0]:g}" for value in values[:-1])
    return f"`{names.pop()}` {key[0]} {numbers} or {values[-1][0]:g}"


def _holds_steps(step: dict[str, Any]) -> bool:
    return bool({"steps", "choices", "otherwise"} & set(step))


def _plain(name: str, arguments: dict[str, Any]) -> str:
    described = ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in arguments.items())
    return f"`{name}` {described}".rstrip()


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key.replace('_', ' ')} {_value(own)}" for key, own in value.items()) + ")"
    if isinstance(value, list):
        if len(value) == 2 and all(isinstance(bound, int | float) for bound in value):
            low, high = (f"{bound:g}" for bound in value)
            return low if low == high else f"{low} to {high}"
        return "/".join(_value(own) for own in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
