"""The regression gate: a run against what was measured before, metric by metric.

A metric is a regression where the exact paired test says "worse" (Holm-adjusted over the tested
metrics) and the loss exceeds the metric's tolerance: either alone would stop changes for noise that no
one can see, or let through what the noise of few pictures hides. A value that was there and is no more, and an
identity with fewer scored pictures than before, are regressions without any test.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bench.errors import UsageError, unknown_name
from bench.leaderboard.complete import complete_identities, scorable_images
from bench.leaderboard.entry import board_roots, entry_from_run, read_entries, read_entry
from bench.leaderboard.variants import variant_words
from bench.scores.power import smallest_p
from bench.scores.statistics import ALPHA, Comparison, compare_identity_means, holm

Status = Literal["regression", "improvement", "unchanged", "missing", "new", "untested", "not ranked"]
NO_TOLERANCE = {"absolute": 0.0, "relative": 0.0}


@dataclass(frozen=True)
class Change:
    """One metric, run minus baseline.

    Attributes:
        metric: Name of the metric.
        title: Its title.
        unit: Its unit, or "".
        higher_is_better: Its direction; None where it is not ranked.
        status: The outcome. "untested": no test shows a difference, and with so few identities and so many tests
            none could be sure to; or a score of the whole set without an interval.
        before: Mean of the baseline; None where it has no value.
        after: Mean of the run; None where it has no value.
        difference: Mean difference over the identities that both have scored in full, or, where these are too few
            for any test, over all that both have scored (`why` says so); of a set metric the difference of the two
            values.
        low: Lower bound of its 95 % interval; None for a set metric or a single identity.
        high: Upper bound.
        p: Holm-adjusted p-value; None where nothing was tested.
        tolerance: Loss that is accepted, in the metric's unit.
        coverage: Scored images of the run and of the baseline, such as "58/60, was 60/60".
        why: What explains the outcome beside the numbers; "" where nothing has to.
    """

    metric: str
    title: str
    unit: str
    higher_is_better: bool | None
    status: Status
    before: float | None
    after: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    tolerance: float | None = None
    coverage: str = ""
    why: str = ""

    @property
    def fails(self) -> bool:
        """Whether this change alone fails the gate."""
        return self.status in ("regression", "missing")


@dataclass(frozen=True)
class Gate:
    """Outcome of one run.

    Attributes:
        method: Label and revision of the run.
        baseline: Label and revision of what it was compared with.
        protocol: Name of the protocol.
        protocol_id: Its id.
        images: Images of the protocol.
        identities: Its identities.
        alpha: Level of the test, for all metrics together.
        changes: One per metric.
    """

    method: str
    baseline: str
    protocol: str
    protocol_id: str
    images: int
    identities: int
    alpha: float
    changes: list[Change]

    @property
    def failed(self) -> bool:
        """Whether any metric regressed or is missing."""
        return any(change.fails for change in self.changes)

    def as_json(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "failed": self.failed}


def gate(
    run: dict[str, Any],
    baseline: dict[str, Any],
    tolerances: Mapping[str, Any],
    alpha: float = ALPHA,
    metrics: Sequence[str] | None = None,
) -> Gate:
    """Compares a run's entry with a baseline entry.

    Args:
        run: Entry of the run, as `entry_from_run` makes it.
        baseline: Entry to compare it with.
        tolerances: By metric `absolute` (in its unit) and `relative` (share of the baseline's mean), of
            which the larger counts; `default` for metrics that are not named.
        alpha: Level of the two-sided test, kept over all tested metrics by Holm's correction.
        metrics: Names; None for all that either has.

    Raises:
        UsageError: Protocols or metric identities differ, neither has a metric asked for, the
            tolerances are not understood, or the test could never be significant, so that the gate
            would let everything through.
    """
    if run["protocol_id"] != baseline["protocol_id"]:
        raise UsageError(
            f"The run belongs to protocol {run['protocol']} ({run['protocol_id']}), the baseline to "
            f"{baseline['protocol']} ({baseline['protocol_id']}): their numbers are not comparable. Run again on the "
            "baseline's protocol, or measure a new baseline."
        )
    set_before, set_after = baseline.get("set_metrics", {}), run.get("set_metrics", {})
    known = dict.fromkeys([*baseline["metrics"], *run["metrics"], *set_before, *set_after])
    for name in metrics or []:
        if name not in known:
            raise unknown_name("metric", name, known)
    wanted = set(known if metrics is None else metrics)
    changes: list[Change] = []
    for name in (name for name in dict.fromkeys([*baseline["metrics"], *run["metrics"]]) if name in wanted):
        before, after = baseline["metrics"].get(name), run["metrics"].get(name)
        if change := _change(name, before, after, "mean", baseline):
            tolerance = _tolerance(tolerances, name, change.before)
            changes.append(replace(change, tolerance=tolerance if change.higher_is_better is not None else None))
    tests: dict[int, Comparison] = {}
    tested = [index for index, change in enumerate(changes) if change.status == "unchanged"]
    for index in tested:
        tests[index], why = _paired(changes[index].metric, run, baseline, alpha / len(tested))
        changes[index] = replace(changes[index], why=why)
    _refuse_a_test_without_power(tests, changes, alpha)
    adjusted = holm([comparison.p for comparison in tests.values()])
    for (index, comparison), p in zip(tests.items(), adjusted, strict=True):
        changes[index] = _judged(changes[index], comparison, p, len(tests), alpha)
    for name in (name for name in dict.fromkeys([*set_before, *set_after]) if name in wanted):
        if change := _change(name, set_before.get(name), set_after.get(name), "value", baseline):
            tolerance = _tolerance(tolerances, name, change.before)
            changes.append(_judged_set(replace(change, tolerance=tolerance), set_before, set_after))
    return Gate(
        label(run),
        label(baseline),
        run["protocol"],
        run["protocol_id"],
        run["of"],
        len(run["identity_images"]),
        alpha,
        changes,
    )


def label(entry: dict[str, Any]) -> str:
    """Method and revision of an entry, such as "refine@demo@61f7b53bd96b"."""
    return f"{entry['method']}@{entry['revision'][:12]}"


def find_baseline(target: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The entry a run is held against.

    Args:
        target: An entry (.json), a run folder, a board's folder (the entry of the run's own method), or
            `BOARD/METHOD` for the entry of another one. `leaderboards/...` is also looked for among the
            boards that came with an installation. Of several revisions the run's own counts, else the
            latest; results of others only where there is nothing else.
        run: Entry of the run.

    Raises:
        UsageError: There is no such entry.
    """
    for path in _places(target):
        if path.is_file():
            return read_entry(path)
        if (path / "summary.json").is_file() or (path / "scores.parquet").is_file():
            return entry_from_run(path)
        # Of a path that does not exist the last part may be a method, if what is above it is a board.
        for folder, method in ((path, str(run["method"])), (path.parent, path.name)):
            if folder.is_dir() and any(folder.glob("*@*.json")):
                return _newest(read_entries(folder), method, run, folder)
    raise UsageError(
        f"There is nothing to compare with at {target}. Give an entry (.json), a run folder, a board such as "
        "leaderboards/orl_heavy, or leaderboards/PROTOCOL/METHOD."
    )


def shipped_jobs(board: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """How to run again what a board lists and this repository ships.

    Args:
        board: Folder of a board, as for `find_baseline`.

    Returns:
        For each label the words of `bench run`, without the data set; and why the other labels are left out.

    Raises:
        UsageError: There is no such board.
    """
    from bench.registry import load_method, method_targets
    from bench.weights.catalogue import missing

    entries = _board_entries(board)
    jobs: dict[str, list[str]] = {}
    left_out: dict[str, str] = {}
    for one in sorted({entry["method"] for entry in entries}):
        match = re.fullmatch(r"([\w-]+)((?:\+[\w.-]+)*)(?:@(\w+))?", one)
        variant = variant_words(match[2], match[1]) if match else None
        if all("accepted" in entry for entry in entries if entry["method"] == one):
            left_out[one] = "results of others, which nothing here makes"
        elif match is None or match[1] not in method_targets():
            left_out[one] = "no method of this version has this name"
        elif variant is None:
            left_out[one] = f"the settings behind {match[2]} cannot be told from the label"
        elif (weights := load_method(match[1]).spec.weights) and (why := missing(weights)):
            left_out[one] = f"not shipped with this repository: {why.splitlines()[0]}"
        else:
            jobs[one] = [f"method={match[1]}", *variant] + [f"size={match[3]}"] * bool(match[3])
    return jobs, left_out


def board_data(board: Path) -> list[str]:
    """The words of `bench run` that give the protocol of a board's folder, such as `data=orl_heavy probe=marks`.

    Raises:
        UsageError: There is no such board.
    """
    from bench.config import group_choices

    name = str(_board_entries(board)[0]["protocol"])
    data = group_choices("data")
    for probe in group_choices("probe") if name not in data else ():
        if name.removesuffix(f"_{probe}") in data:
            return [f"data={name.removesuffix(f'_{probe}')}", f"probe={probe}"]
    return [f"data={name}"]


def _places(path: Path) -> list[Path]:
    if not path.exists() and path.parts[:1] == ("leaderboards",):
        return [path, *(root.joinpath(*path.parts[1:]) for root in board_roots())]
    return [path]


def _board_entries(board: Path) -> list[dict[str, Any]]:
    return read_entries(next((path for path in _places(board) if path.is_dir()), board))


def _newest(entries: list[dict[str, Any]], method: str, run: dict[str, Any], folder: Path) -> dict[str, Any]:
    found = [entry for entry in entries if method in (entry["method"], label(entry))]
    if not found:
        raise unknown_name(f"baseline in {folder}", method, {entry["method"] for entry in entries})

    def order(entry: dict[str, Any]) -> tuple[Any, ...]:
        same = (entry["revision"] == run["revision"], entry["seed"] == run["seed"])
        # Results of others stand in for none of ours.
        return "accepted" not in entry, *same, entry["created"], entry["revision"]

    return max(found, key=order)


def _change(
    name: str, before: dict[str, Any] | None, after: dict[str, Any] | None, value: str, baseline: dict[str, Any]
) -> Change | None:
    """What can be said without a test; None where neither has a value."""
    old, new = (metric.get(value) if metric else None for metric in (before, after))
    if old is None and new is None:
        return None
    known = after or before or {}
    change = Change(name, known["title"], known["unit"], known["higher_is_better"], "unchanged", old, new)
    if old is None or before is None:
        return replace(change, status="new")
    if new is None or after is None:
        reason = after["reason"] if after else "the run did not score it"
        return replace(change, status="missing", why=reason or "")
    if before["identity"] != after["identity"]:
        raise UsageError(
            f"{name} is {after['identity']!r} in the run but {before['identity']!r} in the baseline {label(baseline)}. "
            "Two numbers with different identities are never compared: measure a new baseline with this version."
        )
    if (before["higher_is_better"], before["unit"]) != (after["higher_is_better"], after["unit"]):
        raise UsageError(f"{name} has another direction or unit in the run than in the baseline {label(baseline)}.")
    coverage = f"{after['n']}/{after['of']}, was {before['n']}/{before['of']}"
    change = replace(change, difference=new - old, coverage=coverage if after["n"] != before["n"] else "")
    if after["n"] < before["n"]:
        return replace(change, status="regression", why=f"lost coverage: {coverage}")
    if lost := _lost(before, after):
        return replace(change, status="regression", why=f"lost coverage of {lost}")
    return replace(change, status="not ranked") if change.higher_is_better is None else change


def _lost(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Identities with fewer scored images than before, whatever was gained elsewhere; "" where there are none."""
    counts = {
        person: (after.get("by_identity", {}).get(person, {}).get("n", 0), own["n"])
        for person, own in before.get("by_identity", {}).items()
    }
    return ", ".join(f"{person}: {now}, was {then}" for person, (now, then) in counts.items() if now < then)


def _paired(name: str, run: dict[str, Any], baseline: dict[str, Any], level: float) -> tuple[Comparison, str]:
    """Run minus baseline, and what is to be said of the identities behind it.

    They are those that both have scored in full. Where these are so few that no p-value could fall below `level`,
    all that both have scored count: a mean over other images of a person may move by itself, but a metric that no
    test looks at could drop as far as it likes.
    """
    after, before = run["metrics"][name], baseline["metrics"][name]
    both = [
        person
        for person in run["identity_images"]
        if all(person in metric["by_identity"] for metric in (after, before))
    ]
    shared = complete_identities(run, baseline, name, scorable_images([run, baseline], name))
    why = ""
    if len(shared) < len(both) and (not shared or smallest_p(len(shared)) >= level):
        why = f"{len(shared)} identities scored in full by both: over all {len(both)} that both have scored"
        shared = both
    means = [
        pd.Series({person: metric["by_identity"][person]["mean"] for person in shared}, dtype=float)
        for metric in (after, before)
    ]
    count = sum(min(metric["by_identity"][person]["n"] for metric in (after, before)) for person in shared)
    return compare_identity_means(means[0], means[1], name, after["higher_is_better"], count), why


def _refuse_a_test_without_power(tests: dict[int, Comparison], changes: list[Change], alpha: float) -> None:
    most = max((test.n_identities for test in tests.values()), default=0)
    best = min(1.0, smallest_p(most) * len(tests)) if most else 1.0
    if any(change.status == "unchanged" for change in changes) and best >= alpha:
        raise UsageError(
            f"With {most} identities in common and {len(tests)} tested metrics no p-value can fall below {best:.2g}: "
            f"no loss could ever fail at alpha = {alpha:g}. Use a protocol with more identities, gate fewer metrics "
            "(--metrics), or give a larger --alpha."
        )


def _judged(change: Change, comparison: Comparison, p: float, tests: int, alpha: float) -> Change:
    one = replace(change, difference=comparison.mean_difference, low=comparison.low, high=comparison.high, p=p)
    verdict = replace(comparison, p_adjusted=p).better_at(alpha)
    if verdict is None:
        # Holm steps down: beside clear changes of other metrics a p-value may count where this product is too large.
        best = min(1.0, smallest_p(comparison.n_identities) * tests)
        if p < alpha or best < alpha:
            return one
        why = f"{comparison.n_identities} identities in common: p may not fall below {best:.2g} among {tests} tests"
        return replace(one, status="untested", why="; ".join(filter(None, [change.why, why])))
    if abs(comparison.mean_difference) <= (change.tolerance or 0.0):
        said = f"{'better' if verdict else 'worse'}, within the tolerance"
        return replace(one, why="; ".join(filter(None, [change.why, said])))
    return replace(one, status="improvement" if verdict else "regression")


def _judged_set(change: Change, before: dict[str, Any], after: dict[str, Any]) -> Change:
    """A score of the whole set has no pairs: it changed where the two intervals do not overlap."""
    if change.status != "unchanged" or change.difference is None:
        return change
    old, new = before[change.metric], after[change.metric]
    if any(metric[bound] is None for metric in (old, new) for bound in ("low", "high")):
        return replace(change, status="untested", why="a score of the whole set without an interval")
    if (new["low"] <= old["high"] and old["low"] <= new["high"]) or abs(change.difference) <= (change.tolerance or 0):
        return replace(change, why="by intervals")
    better = (change.difference > 0) == change.higher_is_better
    return replace(change, status="improvement" if better else "regression", why="intervals do not overlap")


def _tolerance(tolerances: Mapping[str, Any], name: str, before: float | None) -> float | None:
    """Larger one of the absolute and the relative tolerance, in the metric's unit."""
    stated = tolerances.get(name, tolerances.get("default", NO_TOLERANCE))
    numbers = isinstance(stated, Mapping) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 for value in stated.values()
    )
    if not numbers or set(stated) != set(NO_TOLERANCE):
        raise UsageError(
            f"The tolerance of {name} must be {{absolute: NUMBER, relative: NUMBER}}, both at least 0, "
            f"in configs/metrics/standard.yaml; found {stated!r}."
        )
    return None if before is None else max(float(stated["absolute"]), float(stated["relative"]) * abs(before))
