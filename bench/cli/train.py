"""Train a method on the training identities of a data set."""

from __future__ import annotations

import argparse

EXAMPLES = """examples:
  bench train method=refine data=orl_heavy
  bench train method=refine data=orl_heavy trainer.max_steps=20
  bench train method=refine data=celebref_heavy size=paper trainer=ddp"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.usage = "bench train method=NAME [data=NAME] [key=value ...] [--json]"
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(takes_overrides=True)


def run(arguments: argparse.Namespace) -> int:
    """Trains; returns the exit code."""
    import json

    from bench.config import compose

    config = compose("train", arguments.overrides)
    from bench.runs.quiet import quiet_lightning
    from bench.runs.training import train

    quiet_lightning()

    result = train(config)
    if result["weights"] is None:
        return 0
    if arguments.json:
        print(json.dumps(result))
    else:
        first, last = result["first_loss"], result["last_loss"]
        loss = "" if first is None else f", loss {first:.4f} -> {last:.4f}"
        print(
            f"{result['method']}: {result['batches']} batches on {result['world_size']} process(es){loss}\n"
            f"weights: {result['weights']} "
            f"(SHA-256 {result['sha256'][:12]}...)"
        )
    return 0
