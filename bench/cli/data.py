"""List, prepare, verify, freeze and export data sets, and check their links."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.data.verify import Verification
    from bench.protocol.protocol import DataSettings, Protocol

EXAMPLES = """examples:
  bench data ls
  bench data prepare celebref --from Celeb-Ref.zip
  bench data verify celebref --identities
  bench data freeze data=orl_heavy -o frozen/orl_heavy
  bench data export data=orl_heavy --for dmdnet -o for_dmdnet
  bench data check-links"""
MOST_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.set_defaults(takes_overrides=True)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("ls", help="every data set: is it here, where, under which licence")
    prepare = actions.add_parser("prepare", help="download, unpack, align a data set and put it in its place")
    prepare.add_argument("name", metavar="NAME", help="data card; see bench data ls")
    prepare.add_argument(
        "--from",
        dest="given",
        action="append",
        default=[],
        metavar="ARCHIVE|FOLDER|URL",
        help="zip, tar, folder or address; again for several parts (default: the card's addresses)",
    )
    prepare.add_argument("--sha256", metavar="HASH", help="hash that the archive must have")
    prepare.add_argument("--to", type=Path, metavar="FOLDER", help="where to put it (default: under the bench home)")
    prepare.add_argument(
        "--link", action="store_true", help="hard links to the files of a folder instead of copies of them"
    )
    verify = actions.add_parser("verify", help="is it whole, does every picture open, does anything leak")
    verify.add_argument("name", metavar="NAME", help="data card; see bench data ls")
    verify.add_argument("--root", metavar="FOLDER", help="its folder, where it is not in its usual place")
    verify.add_argument("--identities", action="store_true", help="also compare the splits' people by their faces")
    for action in (prepare, verify):
        action.add_argument("--workers", type=_positive, metavar="N", help="processes (default: one per processor)")
    freeze = actions.add_parser("freeze", help="freeze a protocol, print its id, write its pictures")
    freeze.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write lq/, gt/, reference/, protocol.json")
    freeze.add_argument("--commit", action="store_true", help="write datasets/protocols/NAME.json of this checkout")
    export = actions.add_parser("export", help="write a protocol's LQ and references as another program reads them")
    export.add_argument("--for", dest="system", metavar="SYSTEM", help="whose layout: see bench ls methods")
    export.add_argument(
        "--layout", metavar="LAYOUT", help="flat, same_name, identity_folders, image_folders or list, in its place"
    )
    export.add_argument("-o", "--output", type=Path, metavar="FOLDER", required=True, help="a new or an empty folder")
    links = actions.add_parser("check-links", help="ask every address of cards and weights whether it answers")
    for action in (listing, prepare, verify, freeze, export, links):
        action.add_argument("--json", action="store_true", help="print the result as JSON")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Does what `arguments.action` says."""
    from bench.errors import UsageError

    if arguments.overrides and arguments.action not in ("freeze", "export"):
        raise UsageError(f"Cannot understand {arguments.overrides[0]!r}. Try: bench data {arguments.action} --help")
    actions = {
        "ls": _ls,
        "prepare": _prepare,
        "verify": _verify,
        "freeze": _freeze,
        "export": _export,
        "check-links": _check_links,
    }
    code: int = actions[arguments.action](arguments)
    return code


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def _ls(arguments: argparse.Namespace) -> int:
    from bench.data.listing import list_data

    listed = list_data()
    if arguments.json:
        _print_json([line.as_dict() for line in listed])
        return 0
    from bench.report.terminal import print_table

    rows = [
        [
            line.name,
            line.state,
            "-" if line.pictures is None else str(line.pictures),
            "-" if line.expected is None else str(line.expected),
            line.root or "-",
            line.licence,
            line.note,
        ]
        for line in listed
    ]
    print_table(["name", "state", "pictures", "of", "where", "licence", "note"], rows)
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from bench.data.prepare import prepare

    done = prepare(arguments.name, arguments.given, arguments.to, arguments.sha256, arguments.link, arguments.workers)
    record = done.record
    if arguments.json:
        _print_json({"root": str(done.root), "made_now": done.fresh, **record})
        return 0
    how = f"files {record['files']}" if done.fresh else "was here already"
    print(f"{done.root}: {record['pictures']} pictures of {record['identities']} identities ({how})")
    if record["aligned"]:
        print(f"aligned to {record['aligned']['template']['name']}")
    for source in record["sources"]:
        if source["sha256"] and not (source["verified"] or source.get("locked_as")):
            print(f"unverified: {source['given']}: sha256 {source['sha256']}")
    unplaced = record.get("not_taken") or {"count": 0, "first": []}
    if unplaced["count"]:
        more = ", …" if unplaced["count"] > len(unplaced["first"]) else ""
        print(
            f"left out: {unplaced['count']} pictures that do not fit the layout: {', '.join(unplaced['first'])}{more}"
        )
    skipped = record["skipped"]
    for entry in skipped[:MOST_SHOWN]:
        print(f"left out: {entry['path']}: {entry['reason']}")
    if len(skipped) > MOST_SHOWN:
        print(f"left out: {len(skipped) - MOST_SHOWN} more, see {done.root / 'prepared.json'}")
    if arguments.to is not None:
        print(f"To use it, add data.root={done.root}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from bench.data.verify import verify

    result = verify(arguments.name, arguments.root, arguments.identities, arguments.workers)
    if arguments.json:
        _print_json({**result.as_dict(), "exit_code": result.exit_code})
    else:
        _print_verification(result)
    return result.exit_code


def _print_verification(result: Verification) -> None:
    print(f"{result.root}: {result.pictures} pictures of {result.identities} identities")
    for check in result.checks:
        print(f"  {check}")
    for first, second, cosine in result.closest:
        print(f"  closest: {first} and {second}, SFace cosine {cosine:.3f}")
    lines = [f"missing: {what}" for what in result.missing]
    lines += [f"{problem['kind']}: {problem['message']}" for problem in result.problems]
    for line in lines[:MOST_SHOWN]:
        print(line)
    if len(lines) > MOST_SHOWN:
        print(f"{len(lines) - MOST_SHOWN} more: add --json to see them all")
    print({0: "clean", 1: f"{len(result.problems)} problems", 3: "incomplete"}[result.exit_code])


def _frozen(arguments: argparse.Namespace) -> tuple[Protocol, DataSettings]:
    """The protocol that the overrides name, and its settings."""
    from bench.errors import UsageError

    if not any(word.startswith("data=") for word in arguments.overrides):
        raise UsageError(f"Say which protocol, for instance: bench data {arguments.action} data=orl_heavy")
    from bench.config import compose
    from bench.protocol.freeze import load_protocol
    from bench.protocol.protocol import DataSettings

    settings = DataSettings(**compose("run", ["method=input", *arguments.overrides])["data"])
    return load_protocol(settings), settings


def _export(arguments: argparse.Namespace) -> int:
    from bench.data.export import MANIFEST, export_protocol, layout_for
    from bench.systems.card import card

    layout = layout_for(arguments.system, arguments.layout)
    protocol, settings = _frozen(arguments)
    done = export_protocol(protocol, settings, layout, arguments.output, arguments.system)
    own = None if arguments.system is None else card(arguments.system)
    reading = ["method=precomputed", "method.system=NAME", "method.root=OUT"] if own is None else own.reading
    words = [*reading, *arguments.overrides]
    if arguments.json:
        manifest = json.loads((done.folder / MANIFEST).read_text("utf-8"))
        _print_json({**manifest, "output": str(done.folder), "run": words})
        return 0
    kept = f", {done.kept} were there already" if done.kept else ""
    print(f"{protocol.name} {protocol.id} as {layout}: {done.written} pictures written to {done.folder}{kept}")
    for trap in own.traps if own else ():
        print(f"note: {trap}")
    if own is not None and own.program:
        print(f"then: {own.program.replace('FOLDER', str(done.folder))}")
    if own is not None:
        print(f"it writes: {own.gives or 'not known (' + own.unverified['gives'] + ')'}")
    print(f"then: bench run {' '.join(words)}")
    return 0


def _freeze(arguments: argparse.Namespace) -> int:
    protocol, settings = _frozen(arguments)
    committed = _commit(protocol) if arguments.commit else None
    written = None
    if arguments.output is not None:
        from bench.data.frozen import write_pictures

        written = write_pictures(protocol, settings, arguments.output)
    people = len({image.identity for image in protocol.images})
    if arguments.json:
        _print_json(
            {
                "name": protocol.name,
                "id": protocol.id,
                "pictures": len(protocol.images),
                "identities": people,
                "committed": None if committed is None else str(committed),
                "output": None if written is None else str(written.folder),
            }
        )
        return 0
    print(f"{protocol.name} {protocol.id}: {len(protocol.images)} pictures of {people} identities")
    if committed is not None:
        print(f"committed file: {committed}")
    if written is not None:
        kept = f", {written.kept} were there already" if written.kept else ""
        print(f"{written.written} pictures written to {written.folder}{kept}")
    return 0


def _commit(protocol: Protocol) -> Path:
    """Writes a protocol into the checkout; one that is there with another id is never changed."""
    from bench.errors import UsageError
    from bench.files import write_json
    from bench.paths import resource_root
    from bench.protocol.freeze import committed_path

    path = committed_path(protocol.name)
    if resource_root().name == "_data":
        raise UsageError("--commit works in a checkout only; this is an installed package. Use -o FOLDER.")
    if path.is_file():
        there = json.loads(path.read_text("utf-8"))["id"]
        if there != protocol.id:
            raise UsageError(
                f"{path} holds {there}, not {protocol.id}. A frozen protocol is not changed: give yours a name of its "
                "own (data.name=…)."
            )
        return path
    write_json(path, protocol.as_dict())
    return path


def _check_links(arguments: argparse.Namespace) -> int:
    from bench.data.links import all_links, check_links
    from bench.errors import MissingError

    results = check_links(all_links())
    offline = bool(results) and all(result["status"] is None for result in results)
    if arguments.json:
        _print_json(results)
    if offline:
        raise MissingError(
            f"No connection: none of the {len(results)} addresses answered ({results[0]['note']}). Nothing can be said "
            "about them; check the network or the proxy (HTTPS_PROXY)."
        )
    bad = sum(not result["ok"] for result in results)
    if not arguments.json:
        from bench.report.terminal import print_table

        rows = [
            [
                "ok" if result["ok"] else "BAD",
                "-" if result["status"] is None else str(result["status"]),
                "-" if result["bytes"] is None else f"{result['bytes']:,}",
                result["where"],
                result["url"],
                result["note"],
            ]
            for result in results
        ]
        print_table(["", "status", "bytes", "where", "address", "note"], rows)
        print(f"{len(results)} addresses, {bad} bad")
    return 1 if bad else 0
