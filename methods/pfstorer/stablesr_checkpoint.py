"""StableSR's released checkpoint as weights of PFStorer's network, which has StableSR's tensors and no others.

They are what the Base Model is fine-tuned from (`method.training.start_from`), and restore as they are: Table 2's
"StableSR", but for its feature wrapping, which is a file of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, UsageError
from methods.blocks.checkpoints.stable_diffusion import LEFT_OUT

if TYPE_CHECKING:
    from methods.blocks.checkpoints.accounting import Part
    from methods.pfstorer.network import PFStorerNetwork

FILE = "stablesr_000117.ckpt"
DTYPES = ("float16", "float32")
#: Parts that the file must hold whole and that no network of ours takes -> why.
BASE_PARTS = {
    "vae": "the autoencoder is that of Stable Diffusion 2.1, which a run reads",
    "text": "the text encoder is that of Stable Diffusion 2.1, which a run reads",
}
STABLESR_LEFT_OUT = {
    **LEFT_OUT,
    r"first_stage_model\.decoder\.fusion_layer_\d+\..*": "PFStorer has no feature wrapping (CFW)",
}
DESCRIPTION = "Convert stablesr_000117.ckpt into weights that `bench run method=pfstorer size=paper` reads."
EXAMPLES = """examples:
  python -m methods.pfstorer.stablesr_checkpoint stablesr_000117.ckpt -o pfstorer_paper.safetensors
  bench run method=pfstorer size=paper method.weights=pfstorer_paper.safetensors method.personalisation.tunes=nothing

Get the checkpoint with: hf download Iceclear/StableSR stablesr_000117.ckpt
Licence: S-Lab License 1.0
StableSR's checkpoint for 768 px has the same tensors, so that nothing can tell it apart here, but predicts v instead of
the noise: it is of no use."""


def paper_settings() -> dict[str, Any]:
    """Settings of `method=pfstorer size=paper`."""
    from bench.config import compose, method_settings

    return method_settings(compose("run", ["method=pfstorer"])["method"], "paper")


def released_network(settings: Mapping[str, Any]) -> tuple[PFStorerNetwork, list[Part]]:
    """The network without storage (on the meta device), and how the release names it and all else that it holds.

    Args:
        settings: Settings of the method (`base`, `network`).
    """
    import torch

    from methods.blocks.base_models import base_model
    from methods.blocks.checkpoints.stablesr import stablesr_parts
    from methods.blocks.latent_diffusion import build_text_encoder, build_vae
    from methods.pfstorer.network import PFStorerNetwork

    base = base_model(settings["base"])
    with torch.device("meta"):
        network = PFStorerNetwork(base, settings["network"])
        adapters: Any = network.adapted.adapters
        parts = stablesr_parts(
            network.adapted.unet,
            adapters["sft"],
            network.lq_encoder,
            build_vae(base),
            build_text_encoder(base),
            open_clip=base.open_clip,
        )
    return network, parts


def convert_stablesr(
    source: Path, target: Path, dtype: str = "float16", settings: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Writes the network of StableSR's released checkpoint as a weights file.

    Args:
        source: `stablesr_000117.ckpt`, every key of which is accounted for.
        target: The weights file; one that is there is replaced.
        dtype: Type of the weights: `float16` or `float32`.
        settings: Settings of the method; those of `size=paper` by default.

    Returns:
        Why tensors of the release are left out -> how many.

    Raises:
        MissingError: There is no such file.
        UsageError: It is another checkpoint, or the weights file cannot be written.
    """
    import torch
    from safetensors import SafetensorError

    from bench.weights.method_weights import write_tensors
    from methods.blocks.checkpoints.accounting import convert, read_checkpoint
    from methods.blocks.checkpoints.network_file import network_metadata, network_state

    if target.is_dir() or target.resolve() == source.resolve():
        what = "a folder" if target.is_dir() else "the checkpoint itself"
        raise UsageError(f"{target} is {what}. Name the weights file to write, such as pfstorer_paper.safetensors.")
    settings = settings or paper_settings()
    network, parts = released_network(settings)
    found = convert(read_checkpoint(source), parts, expected=FILE, source=str(source), left_out=STABLESR_LEFT_OUT)
    state = network_state(network, found.states)
    metadata = network_metadata("pfstorer", settings, source)
    try:
        write_tensors(target, {name: value.to(getattr(torch, dtype)) for name, value in state.items()}, metadata)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{target} cannot be written: {error}") from error
    left_out = {BASE_PARTS[part.name]: len(part.entries) for part in parts if part.name in BASE_PARTS}
    return left_out | Counter(found.reasons.values())


def main(words: Sequence[str] | None = None, settings: Mapping[str, Any] | None = None) -> int:
    """The command; returns its exit code.

    Args:
        words: Words of the command line.
        settings: See `convert_stablesr`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m methods.pfstorer.stablesr_checkpoint",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="the released checkpoint")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the weights file to write")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="type of the weights (default: float16)")
    arguments = parser.parse_args(words)
    target = arguments.output.expanduser()
    try:
        left_out = convert_stablesr(arguments.file.expanduser(), target, arguments.dtype, settings)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    for reason, count in left_out.items():
        print(f"left out  {count} tensors: {reason}")  # noqa: T201
    print(f"network   {target}")  # noqa: T201
    print("What else is absent: bench check method=pfstorer size=paper")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
