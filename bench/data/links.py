"""Asks every address of the data cards and of the weights catalogue whether it still answers."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bench.data.download import probe
from bench.errors import BenchError
from bench.protocol.card import card_names, load_card
from bench.weights import catalogue

_ADDRESS = re.compile(r"https?://[^\s\"'<>)\]]+")
_FILE = re.compile(
    r"\.(zip|tar|tgz|t?gz|bz2|xz|7z|rar|csv|txt|json|rec|pth?|ckpt|onnx|safetensors|dat|bin)$", re.IGNORECASE
)
THREADS = 4


@dataclass(frozen=True)
class Link:
    """An address, where it is written, and what it should give.

    Attributes:
        where: `data NAME` or `weights NAME`.
        url: The address.
        is_file: Whether it should give a file; otherwise it is a page to read.
        bytes: Size that is written beside it, or None.
    """

    where: str
    url: str
    is_file: bool
    bytes: int | None = None


def all_links() -> list[Link]:
    """Every address, each once."""
    links: dict[str, Link] = {}
    for link in (*_of_cards(), *_of_weights()):
        links.setdefault(link.url, link)
    return list(links.values())


def _of_cards() -> Iterator[Link]:
    for name in card_names():
        try:
            card = load_card(name)
        except BenchError:
            continue
        for file in card.files:
            if file.get("url"):
                yield Link(f"data {name}", file["url"], _names_file(file["url"]), file.get("bytes"))
        for text in (card.source, card.obtain, card.licence, card.terms, card.citation, *card.traps):
            yield from (Link(f"data {name}", url, False) for url in _addresses(text))


def _of_weights() -> Iterator[Link]:
    for name, entry in catalogue.entries().items():
        if entry.url:
            yield Link(f"weights {name}", entry.url, _names_file(entry.url))
        yield from (Link(f"weights {name}", url, False) for url in _addresses(entry.source))


def _names_file(url: str) -> bool:
    """Whether an address ends in a file's name; share links and release pages do not, and rightly give a page."""
    return _FILE.search(urllib.parse.urlsplit(url).path) is not None


def _addresses(text: str) -> list[str]:
    return [url.rstrip(".,;:") for url in _ADDRESS.findall(text)]


def check_links(links: list[Link], timeout: float = 20.0) -> list[dict[str, Any]]:
    """Asks each server, without downloading anything.

    Returns:
        `{where, url, status, bytes, type, note, ok}` for each link; status None where no connection was made.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(lambda link: probe(link.url, timeout), links))
    return [_judged(link, answer) for link, answer in zip(links, answers, strict=True)]


def _judged(link: Link, answer: dict[str, Any]) -> dict[str, Any]:
    note = answer["note"]
    ok = answer["status"] is not None and answer["status"] < 400
    if ok and link.is_file and answer["type"] == "text/html":
        ok, note = False, "gives a web page instead of a file"
    elif ok and link.bytes is not None and answer["bytes"] not in (None, link.bytes):
        ok, note = False, f"has another size than the {link.bytes:,} bytes of the card"
    return {"where": link.where, "url": link.url, **answer, "note": note, "ok": ok}
