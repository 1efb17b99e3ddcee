"""From DiffBIR's released checkpoints to the weights file that `size=paper` reads.

Either one full checkpoint (`face_full_v1.ckpt`: ControlNet, SwinIR, Stable Diffusion and more), or the ControlNet alone
(`v1_face.pth`) with SwinIR's file and the UNet of Stable Diffusion 2.1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, MissingError, UsageError
from methods.blocks.checkpoints.stable_diffusion import LEFT_OUT, TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from methods.dual_pivot.released_order import released_control_names

if TYPE_CHECKING:
    from torch import Tensor, nn

    from methods.blocks.checkpoints.accounting import Part
    from methods.dual_pivot.network import DualPivotNetwork

CONTROL_PREFIX, CLEANER_PREFIX = "control_model.", "preprocess_model."
NETWORK_FILE = "dual_pivot_paper.safetensors"
DTYPES = ("float16", "float32")
DIFFBIR_LEFT_OUT = {
    **LEFT_OUT,
    r"cond_encoder\..*": "a copy of the autoencoder's encoder, which reads the hint here too",
}
DESCRIPTION = "Convert DiffBIR's released face weights into what `bench run method=dual_pivot size=paper` reads."
EXAMPLES = """examples:
  python -m methods.dual_pivot.release face_full_v1.ckpt
  python -m methods.dual_pivot.release v1_face.pth --cleaner face_swinir_v1.ckpt -o dual_pivot_paper.safetensors

v1_face.pth holds the ControlNet alone; the UNet is then that of Stable Diffusion 2.1 (base), looked for as a run does.
Get it with: hf download lxq007/DiffBIR-v2 v1_face.pth --local-dir .
Licence: Apache-2.0"""


def paper_settings() -> dict[str, Any]:
    """Settings of `method=dual_pivot size=paper`."""
    from bench.config import compose, method_settings

    return method_settings(compose("run", ["method=dual_pivot"])["method"], "paper")


def control_part(control: Any, prefix: str = CONTROL_PREFIX) -> Part:
    """The ControlNet (part `controlnet`)."""
    from methods.blocks.checkpoints.accounting import part_of

    return part_of("controlnet", prefix, control, released_control_names(control).__getitem__)


def cleaner_part(cleaner: nn.Module, prefix: str = CLEANER_PREFIX) -> Part:
    """SwinIR (part `cleaner`); its first convolution is released as the second module after the unshuffling."""
    from methods.blocks.checkpoints.accounting import part_of

    first = "conv_first.1." if getattr(cleaner, "start_unshuffle", 1) > 1 else "conv_first."
    return part_of("cleaner", prefix, cleaner, lambda name: name.replace("conv_first.", first))


def empty_network(settings: Mapping[str, Any]) -> DualPivotNetwork:
    """The network without storage (on the meta device)."""
    import torch

    from methods.blocks.base_models import base_model
    from methods.dual_pivot.network import DualPivotNetwork

    with torch.device("meta"):
        return DualPivotNetwork(base_model(settings["base"]), settings["network"])


def convert_release(
    source: Path,
    target: Path,
    cleaner: Path | None = None,
    dtype: str = "float16",
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes UNet, ControlNet and cleaner as a weights file.

    Args:
        source: The full checkpoint, or that of the ControlNet alone.
        target: The weights file; one that is there is replaced.
        cleaner: SwinIR's checkpoint, where `source` holds none.
        dtype: Type of the weights: `float16` or `float32`.
        settings: Settings of the method; those of `size=paper` by default.

    Raises:
        MissingError: A file is absent.
        UsageError: A file holds another network, or the weights file cannot be written.
    """
    import torch
    from safetensors import SafetensorError

    from bench.weights.method_weights import write_tensors
    from methods.blocks.checkpoints.accounting import read_checkpoint
    from methods.blocks.checkpoints.network_file import network_metadata, network_state

    settings = settings or paper_settings()
    network = empty_network(settings)
    checkpoint = _without_wrapper(read_checkpoint(source))
    if any(name.startswith(CONTROL_PREFIX) for name in checkpoint):
        states = _full_states(network, checkpoint, source, settings)
    else:
        states = _separate_states(network, checkpoint, source, cleaner, settings)
    state = {
        name: value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        for name, value in network_state(network, states).items()
    }
    try:
        write_tensors(target, state, network_metadata("dual_pivot", settings, source))
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{target} cannot be written: {error}") from error


def _without_wrapper(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the `module.` of a training on several GPUs."""
    return {name.removeprefix("module."): value for name, value in checkpoint.items()}


def _full_states(
    network: DualPivotNetwork, checkpoint: Mapping[str, Tensor], source: Path, settings: Mapping[str, Any]
) -> dict[str, dict[str, Tensor]]:
    import torch

    from methods.blocks.base_models import base_model
    from methods.blocks.checkpoints.accounting import convert
    from methods.blocks.checkpoints.stable_diffusion import unet_part
    from methods.blocks.latent_diffusion import build_text_encoder, build_vae, released_parts

    base = base_model(settings["base"])
    with torch.device("meta"):
        others = released_parts(base, {"vae": build_vae(base), "text": build_text_encoder(base)})
    parts = [
        unet_part(network.unet),
        control_part(network.controlnet),
        cleaner_part(network.cleaner),
        *others.values(),
    ]
    prefixes = f"{UNET_PREFIX}, {CONTROL_PREFIX}, {CLEANER_PREFIX}, {VAE_PREFIX}, {TEXT_PREFIX}"
    expected = f"DiffBIR's full checkpoint, with {prefixes}"
    return convert(checkpoint, parts, expected=expected, source=str(source), left_out=DIFFBIR_LEFT_OUT).states


def _separate_states(
    network: DualPivotNetwork,
    checkpoint: Mapping[str, Tensor],
    source: Path,
    cleaner: Path | None,
    settings: Mapping[str, Any],
) -> dict[str, dict[str, Tensor]]:
    from methods.blocks.base_models import base_model
    from methods.blocks.checkpoints.accounting import convert, read_checkpoint
    from methods.blocks.latent_diffusion import load_base

    if cleaner is None:
        raise MissingError(
            f"{source} holds the ControlNet alone. Give SwinIR's checkpoint too, with --cleaner FILE "
            "(face_swinir_v1.ckpt of DiffBIR's release)."
        )
    control = convert(checkpoint, [control_part(network.controlnet, "")], expected="v1_face.pth", source=str(source))
    swinir = _without_wrapper(read_checkpoint(cleaner))
    found = convert(swinir, [cleaner_part(network.cleaner, "")], expected="face_swinir_v1.ckpt", source=str(cleaner))
    unet = load_base(base_model(settings["base"]), settings["autoencoder"], ("unet",))["unet"]
    return {**control.states, **found.states, "unet": unet.state_dict()}


def main(words: Sequence[str] | None = None, settings: Mapping[str, Any] | None = None) -> int:
    """The command; returns its exit code.

    Args:
        words: Words of the command line.
        settings: See `convert_release`.
    """
    from bench.weights.catalogue import weights_folder

    parser = argparse.ArgumentParser(
        prog="python -m methods.dual_pivot.release",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="the full checkpoint, or that of the ControlNet")
    parser.add_argument("--cleaner", type=Path, help="SwinIR's checkpoint, where FILE holds none")
    parser.add_argument("-o", "--output", type=Path, help="the weights file (default: where bench looks for it)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="type of the weights (default: float16)")
    arguments = parser.parse_args(words)
    target = (arguments.output or weights_folder() / NETWORK_FILE).expanduser()
    cleaner = arguments.cleaner.expanduser() if arguments.cleaner else None
    try:
        convert_release(arguments.file.expanduser(), target, cleaner, arguments.dtype, settings)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(f"network  {target}")  # noqa: T201
    print("What else is absent: bench check method=dual_pivot size=paper")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
