"""What a protocol adds to the metrics that were asked for, and what it cannot have; for runs and submissions alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.metrics.consistency import METRICS as CONSISTENCY_METRICS
from bench.protocol.probe import METRICS as PROBE_METRICS

if TYPE_CHECKING:
    from bench.protocol.protocol import Protocol

ONE_PHOTOGRAPH_SEVERAL_TIMES = (
    "each photograph is shown under several degradations: a distance of distributions would count it several times"
)


def panel(names: Iterable[str], *, several: bool, probed: bool) -> list[str]:
    """The metrics of single pictures that are scored.

    Args:
        names: What was asked for.
        several: Whether each photograph comes under several degradations; the spreads over them are added.
        probed: Whether marks are planted; what finds them is added.
    """
    added = [*(PROBE_METRICS if probed else ()), *(CONSISTENCY_METRICS if several else ())]
    return list(dict.fromkeys([*names, *added]))


def protocol_panel(names: Iterable[str], protocol: Protocol) -> list[str]:
    """`panel` of a frozen protocol."""
    return panel(names, several=isinstance(protocol.degradation, list), probed=protocol.probe is not None)


def no_sets(protocol: Protocol) -> str | None:
    """Why metrics of whole sets (FID, KID) mean nothing on a protocol, or None."""
    return ONE_PHOTOGRAPH_SEVERAL_TIMES if isinstance(protocol.degradation, list) else None
