"""What boards look like as files: which files there are, what they must hold, and writing them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.errors import unknown_name
from bench.files import write_text
from bench.leaderboard.entry import board_lock, board_names, read_entries
from bench.leaderboard.published import FOLDER, PublishedPaper, read_published
from bench.leaderboard.render_csv import board_csv
from bench.leaderboard.render_html import board_html, index_html, published_html
from bench.leaderboard.render_latex import board_bibtex, board_latex
from bench.leaderboard.render_markdown import board_markdown, index_markdown, published_markdown
from bench.leaderboard.view import View, view

FORMATS = ("md", "html", "latex", "bibtex", "csv")
FILES = {"md": "README.md", "html": "index.html", "latex": "table.tex", "bibtex": "references.bib", "csv": "board.csv"}
BOARD = {"md": board_markdown, "html": board_html, "latex": board_latex, "bibtex": board_bibtex, "csv": board_csv}
INDEX = {"md": index_markdown, "html": index_html}
PUBLISHED = {"md": published_markdown, "html": published_html}


def render_board(folder: Path) -> str:
    """Markdown of the board whose entries lie in `folder`.

    Raises:
        UsageError: The folder holds no valid board.
    """
    return board_markdown(view(read_entries(folder)))


def render_index(root: Path) -> str:
    """Markdown list of all boards under `root`."""
    return index_markdown(_views(root, board_names(root)), _papers(root))


def board_texts(
    root: Path, names: Sequence[str], formats: Sequence[str] = ("md",), output: Path | None = None
) -> dict[Path, str]:
    """Every file of some boards and of their index, with the text it should hold.

    Args:
        root: Folder of all boards.
        names: Boards; the index is always of all.
        formats: Of `FORMATS`.
        output: Folder the files belong into; None is `root` itself.

    Raises:
        UsageError: An unknown format, or entries that are not valid.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
    target = output or root
    views = {one.board.protocol: one for one in _views(root, sorted({*names, *board_names(root)}))}
    papers = _papers(root)
    texts: dict[Path, str] = {}
    for form in formats:
        for name in names:
            texts[target / name / FILES[form]] = BOARD[form](views[name])
        if form in INDEX:
            texts[target / FILES[form]] = INDEX[form](list(views.values()), papers)
        if form in PUBLISHED and papers:
            texts[target / FOLDER / FILES[form]] = PUBLISHED[form](papers)
    return texts


def redraw(
    root: Path, names: Sequence[str], formats: Sequence[str] = ("md",), output: Path | None = None
) -> list[Path]:
    """Writes the files of some boards and of their index; returns them.

    Entries are read and files written under one lock: of two processes that add entries at once the
    later one draws both.
    """
    with board_lock(root):
        texts = board_texts(root, names, formats, output)
        for path, text in texts.items():
            write_text(path, text)
    return list(texts)


def _views(root: Path, names: Sequence[str]) -> list[View]:
    return [view(read_entries(root / name)) for name in names]


def _papers(root: Path) -> list[PublishedPaper]:
    """Published papers of the boards' own folder; boards elsewhere show theirs beside rows only."""
    folder = root / FOLDER
    return list(read_published(folder).values()) if folder.is_dir() else []
