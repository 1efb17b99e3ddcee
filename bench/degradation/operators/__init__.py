"""Every degradation operator by name: the `Operator` classes of this package's modules."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from bench.degradation.operator import Operator
from bench.errors import UsageError, unknown_name


def _found() -> dict[str, type[Operator]]:
    operators: dict[str, type[Operator]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Operator) and "name" in vars(value):
                operators[value.name] = value
    return dict(sorted(operators.items()))


OPERATORS: dict[str, type[Operator]] = _found()


def build_operator(step: dict[str, Any]) -> Operator:
    """Builds an operator from one entry of a preset: `{operator: name, range: [low, high], ...}`.

    Raises:
        UsageError: Unknown operator or argument.
    """
    arguments = dict(step)
    name = arguments.pop("operator", "")
    if not isinstance(name, str) or name not in OPERATORS:
        raise unknown_name("degradation operator", str(name), OPERATORS)
    try:
        return OPERATORS[name](**arguments)
    except TypeError as error:
        raise UsageError(f"Degradation operator {name}: {error}.") from error
