"""The `bench` command. Nothing heavy is imported before the arguments are parsed."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from bench import __version__
from bench.errors import BenchError, UsageError, unknown_name

VERBS = {
    "run": "restore, score and record a method on a frozen protocol",
    "train": "train a method",
    "personalise": "learn a person, for a method that is tuned for each person",
    "restore": "restore photographs of your own",
    "score": "score pictures of any program against their ground truth",
    "compare": "paired comparison of two runs",
    "gate": "hold runs against what was measured before",
    "report": "write the HTML report of one or several runs",
    "leaderboard": "show, add to and render leaderboards",
    "reproduce": "set our numbers beside a paper's table",
    "degrade": "degrade a folder of pictures",
    "data": "list, prepare, verify and freeze data sets",
    "check": "find everything that would stop a run, before it starts",
    "perf": "measure latency, throughput and memory of a method, or the speed of degradations",
    "ls": "list methods, data sets, metrics, degradations and weights",
    "sync": "upload finished runs that MLflow has not got yet",
}
FILE_ERRORS = {
    errno.ENOSPC: "Free some space; the same command goes on where this one stopped.",
    errno.EDQUOT: "Free some space; the same command goes on where this one stopped.",
    errno.EFBIG: "The file size limit is reached; raise it (ulimit -f). The same command goes on.",
    errno.ENOENT: "A folder of this path does not exist and cannot be made, or the file is gone. Give another path.",
    errno.EACCES: "Mend the permissions, or give another path.",
    errno.EPERM: "Mend the permissions, or give another path.",
    errno.EROFS: "Give a path that can be written to.",
    errno.ENOTDIR: "A part of this path is a file, not a folder. Give another path.",
    errno.EISDIR: "This is a folder where a file belongs. Give another path.",
    errno.EEXIST: "This is a file where a folder belongs. Give another path.",
    errno.ENAMETOOLONG: "Give a shorter path.",
}
EPILOG = """examples:
  bench run method=refine data=orl_heavy
  bench ls methods
  bench VERB --help

exit codes: 0 done; 1 gate failed; 2 wrong usage or configuration; 3 data, weights or package missing;
4 finished with failed images"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UsageError(f"{message}. Try: {self.prog} --help")


def _overview() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bench",
        description="Reference benchmark for face restoration with references.\n\nverbs:\n"
        + "\n".join(f"  {name:<12} {text}" for name, text in VERBS.items()),
        epilog=EPILOG,
        usage="bench VERB [options] [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bench {__version__}")
    return parser


def run_verb(verb: str, words: Sequence[str]) -> int:
    """Parses the arguments of a verb and runs it.

    Raises:
        BenchError: Whatever stops the verb, with a message for the user.
    """
    if verb not in VERBS:
        raise unknown_name("verb", verb, VERBS)
    module = importlib.import_module(f"bench.cli.{verb}")
    parser = _Parser(
        prog=f"bench {verb}",
        description=module.__doc__,
        epilog=getattr(module, "EXAMPLES", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    arguments, rest = parser.parse_known_intermixed_args(words) if _plain(parser) else parser.parse_known_args(words)
    if parser.get_default("takes_overrides"):
        if wrong := [word for word in rest if word.startswith("-")]:
            raise UsageError(f"Unknown option {wrong[0]}. Try: bench {verb} --help")
        arguments.overrides = rest
    elif rest:
        raise UsageError(f"Cannot understand {rest[0]!r}. Try: bench {verb} --help")
    code: int = module.run(arguments)
    return code


def _plain(parser: argparse.ArgumentParser) -> bool:
    return not any(isinstance(action, argparse._SubParsersAction) for action in parser._actions)


def _explained(error: OSError) -> int:
    """One line for what the operating system refused; what is whole so far stays, the same command goes on."""
    if error.errno not in FILE_ERRORS:
        raise error
    where = f"{error.filename}: " if error.filename else ""
    print(f"bench: {where}{error.strerror}. {FILE_ERRORS[error.errno]}", file=sys.stderr)
    return UsageError.exit_code


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    words = list(sys.argv[1:] if words is None else words)
    try:
        if not words or words[0] in ("-h", "--help", "--version"):
            _overview().parse_args(words or ["--help"])
            return 0
        return run_verb(words[0], words[1:])
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _explained(error)
    except KeyboardInterrupt:
        # Keys pressed again would interrupt the interpreter's own clean-up and leave processes behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("bench: stopped. The same command goes on where this one stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
