"""Freezes the protocol of a data configuration: `python -m bench.protocol.freeze orl_heavy`.

The file under `datasets/protocols/` is committed. It is made once; a changed protocol gets a name of its own.
"""

from __future__ import annotations

import argparse

from bench.config import compose
from bench.errors import BenchError, UsageError
from bench.files import write_json
from bench.protocol.protocol import DataSettings, committed_path, freeze


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="name of a data configuration")
    parser.add_argument("--replace", action="store_true", help="replace a committed protocol; its scores are void")
    arguments = parser.parse_args()
    path = committed_path(arguments.data)
    if path.exists() and not arguments.replace:
        raise UsageError(f"{path} exists; a frozen protocol is not changed.")
    settings = DataSettings(**compose("run", ["method=input", f"data={arguments.data}"])["data"])
    protocol = freeze(settings)
    write_json(path, protocol.as_dict())
    print(f"{protocol.name} {protocol.id}: {len(protocol.images)} pictures")  # noqa: T201


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        raise SystemExit(f"freeze: {error}") from None
