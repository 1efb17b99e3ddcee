"""Writes the page of all systems, `configs/system/README.md`: `python -m bench.systems.page`.

It is a pure function of the cards and of the published numbers, so that a test can tell whether it is up to date.
"""

from __future__ import annotations

from bench.files import write_text
from bench.leaderboard.published import PublishedPaper, PublishedRow, format_published, read_published
from bench.systems.card import LAYOUTS, SystemCard, cards, cards_folder, systems_of

INTRODUCTION = """# Restoration systems, and how each becomes a row

<!-- Written by python -m bench.systems.page; edit the YAML files beside it instead. -->

Every system of the papers' tables, and further ones that people ask for, each with how it runs here:

- **native**: a method of this repository, `bench run method=...`
- **spandrel**: its released file, called as its authors call it, `bench run method=spandrel method.weights=FILE`
- **precomputed**: its own program restores the frozen pictures elsewhere, and they are read:

```
bench data export data=NAME --for SYSTEM -o FOLDER      # LQ, references, manifest; nothing of the ground truth
...                                                     # its program: FOLDER into OUT
bench run method=precomputed method.system=SYSTEM method.root=OUT data=NAME
```

A picture is found by its file's name in `FOLDER/lq`; `method.suffix=_out` takes away what a program adds to it. Nothing
is resized: programs that write 512 px need a protocol of 512 px, or their pictures brought to its size.

Facts were read where the card's `sources` say. A dash means that nothing was found or read; the card says why. Numbers
are the papers' own, on other pictures than the boards' ([all of them](../../leaderboards/published/README.md)).
"""


def page() -> str:
    """The page."""
    papers = read_published()
    lines = [INTRODUCTION, *_overview()]
    for one in cards().values():
        lines += ["", *_section(one), *_reported(one, papers)]
    return "\n".join(lines) + "\n"


def _overview() -> list[str]:
    lines = [
        "| system | runs | references | tuned per person | code | licence |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in cards().values():
        tuned = "yes" if one.tuning == "per_identity" else "no"
        cells = [f"[{one.title}](#{one.name})", one.runs, one.references, tuned, _link(one), one.licence or "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _link(one: SystemCard) -> str:
    return f"[{one.repository}](https://github.com/{one.repository})" if one.repository else "-"


def _section(one: SystemCard) -> list[str]:
    lines = [f'## <a id="{one.name}"></a>{one.title}', "", f"{one.paper}.", ""]
    facts = [
        ("code", _link(one)),
        ("weights", one.weights),
        ("licence", one.licence),
        ("training code", one.training_code),
        ("reads", one.layout and f"`{one.layout}`: {LAYOUTS[one.layout]}"),
        ("writes", one.gives),
    ]
    lines += [f"- {what}: {fact}" for what, fact in facts if fact and fact != "-"]
    unknown = {what: why for what, why in one.unverified.items() if what != "results"}
    lines += [f"- not known: {what.replace('_', ' ')} ({why})" for what, why in unknown.items()]
    lines += [f"- trap: {trap}" for trap in one.traps]
    lines += ["", "```", *_commands(one), "```"]
    return lines


def _commands(one: SystemCard) -> list[str]:
    if one.runs != "precomputed":
        return [one.command]
    export = f"bench data export data=NAME {f'--for {one.name}' if one.layout else '--layout LAYOUT'} -o FOLDER"
    return [
        export,
        one.program or "...        # its program: FOLDER into OUT",
        f"bench run {' '.join(one.reading)} data=NAME",
    ]


def _reported(one: SystemCard, papers: dict[str, PublishedPaper]) -> list[str]:
    lines: list[str] = []
    for paper in papers.values():
        rows = [row for row in paper.rows if one.name in systems_of(row.method)]
        lines += [f"| {' | '.join(_cells(paper, row))} |" for row in rows]
    if not lines:
        return ["", "No table of the papers has it."]
    return ["", "| paper | row | data | references | as printed |", "| --- | --- | --- | ---: | --- |", *lines]


def _cells(paper: PublishedPaper, row: PublishedRow) -> list[str]:
    values = ", ".join(f"{name.upper()} {format_published(value)}" for name, value in row.metrics.items())
    references = "-" if row.references is None else str(row.references)
    return [f"{paper.name}, Table {row.table}", row.method, row.where, references, values]


def main() -> int:
    """Writes the page; returns the exit code."""
    path = cards_folder() / "README.md"
    write_text(path, page())
    print(path)  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
