"""From the released checkpoint of RestorerID to the weights folder, and back.

The file is mapped, not read: converting needs little memory beside the tensors that the release stores fused.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, MissingError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from methods.restorerid.checkpoint import RestorerIDModules
    from methods.restorerid.network import RestorerIDNetwork

NETWORK_FILE = "restorerid_paper.safetensors"
CLIP_FILE = "restorerid_clip_vit_h14.safetensors"
#: What the release holds and no network of ours needs (the noise schedule), kept for the way back.
LEFT_OUT_FILE = "restorerid_paper_left_out.safetensors"
DESCRIPTION = "Convert RestorerIDFull.ckpt into what `bench run method=restorerid size=paper` reads, or back."
EXAMPLES = """examples:
  python -m methods.restorerid.checkpoint RestorerIDFull.ckpt
  python -m methods.restorerid.checkpoint RestorerIDFull.ckpt --folder FOLDER
  python -m methods.restorerid.checkpoint mine.ckpt --back --network runs/TRAINING/paper.safetensors

Get the checkpoint with: hf download YingJiacheng/RestorerID RestorerIDFull.ckpt"""


def paper_settings() -> dict[str, Any]:
    """Settings of `method=restorerid size=paper`."""
    from bench.config import compose, method_settings

    return method_settings(compose("run", ["method=restorerid"])["method"], "paper")


def empty_modules(
    settings: Mapping[str, Any], clip: dict[str, Any] | None = None
) -> tuple[RestorerIDNetwork, RestorerIDModules]:
    """The network and all else that the release holds, without storage (on the meta device).

    Args:
        settings: Settings of the method (`base`, `network`).
        clip: Sizes of the CLIP image encoder; ViT-H/14 by default.
    """
    import torch

    from methods.blocks.base_models import base_model
    from methods.blocks.latent_diffusion import build_text_encoder, build_vae
    from methods.restorerid.checkpoint import RestorerIDModules
    from methods.restorerid.identity_tokens import ClipImageStates
    from methods.restorerid.network import RestorerIDNetwork

    base = base_model(settings["base"])
    with torch.device("meta"):
        network = RestorerIDNetwork(base, settings["network"])
        adapters: Any = network.adapted.adapters
        assert network.projection is not None
        modules = RestorerIDModules(
            unet=network.adapted.unet,
            sft=adapters["sft"],
            identity=adapters["identity"],
            fir=adapters["fir"],
            projection=network.projection,
            lq_encoder=network.lq_encoder,
            vae=build_vae(base),
            text=build_text_encoder(base),
            image_encoder=ClipImageStates(clip).image_encoder,
        )
    return network, modules


def convert_release(
    source: Path,
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    clip: dict[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Takes the released checkpoint apart.

    Args:
        source: `RestorerIDFull.ckpt`, every key of which is accounted for.
        folder: The weights folder; a part of Stable Diffusion 1.5 that is there already is left as it is.
        settings: Settings of the method; those of `size=paper` by default.
        clip: Sizes of the CLIP image encoder; ViT-H/14 by default.
        say: Takes a line about each file.

    Returns:
        The files that were written. Tensors keep their type, so that the way back is exact.

    Raises:
        MissingError: There is no such file, or too little room for what is made of it.
        UsageError: It is another checkpoint; the message names what is missing, unexpected or of another shape.
    """
    from bench.weights.method_weights import write_tensors
    from methods.blocks.base_models import base_model
    from methods.blocks.checkpoints.accounting import convert, read_checkpoint
    from methods.blocks.checkpoints.base_parts import write_base_part
    from methods.blocks.checkpoints.network_file import network_metadata, network_state
    from methods.restorerid.checkpoint import FILE, RESTORERID_LEFT_OUT

    settings = dict(settings or paper_settings())
    base = base_model(settings["base"])
    network, modules = empty_modules(settings, clip)
    checkpoint = read_checkpoint(source)
    parts = modules.parts()
    found = convert(checkpoint, parts, expected=FILE, source=str(source), left_out=RESTORERID_LEFT_OUT)
    _require_room(folder, sum(tensor.nbytes for tensor in checkpoint.values()))
    metadata = network_metadata("restorerid", settings, source)
    origin = {key: metadata[key] for key in ("source", "source_sha256")}
    written = [folder / CLIP_FILE]
    write_tensors(written[0], found.states["image_encoder"], origin)
    say(f"image encoder  {written[0]}")
    for part, network_part in (("vae", modules.vae), ("text", modules.text)):
        target = folder / _base_name(base)
        path = write_base_part(base, part, network_part, found.states[part], target)
        say(f"{'autoencoder ' if part == 'vae' else 'text encoder'}   {path or f'{target} has one, left as it is'}")
        written += [path] if path else []
    if found.left_out:
        write_tensors(folder / LEFT_OUT_FILE, found.left_out, origin)
        written.append(folder / LEFT_OUT_FILE)
        reasons = ", ".join(dict.fromkeys(found.reasons.values()))
        say(f"left out       {folder / LEFT_OUT_FILE}, for --back alone: {reasons}")
    # The network comes last: its file is what says that the published size is here.
    written.append(folder / NETWORK_FILE)
    write_tensors(written[-1], network_state(network, found.states), metadata)
    say(f"network        {written[-1]}")
    return written


def restore_release(
    target: Path,
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    clip: dict[str, Any] | None = None,
    network_file: Path | None = None,
) -> None:
    """Puts a checkpoint together again under its released names.

    Args:
        target: File to write: `.safetensors`, or a torch file with a `state_dict`, which needs memory of its size.
        folder: The weights folder that `convert_release` filled.
        settings: See `convert_release`.
        clip: See `convert_release`.
        network_file: Weights of the network, such as those of a training; by default the converted ones.

    Raises:
        MissingError: A file is absent.
        UsageError: The weights are those of another network.
    """
    import torch

    from bench.files import atomic_path
    from bench.weights.method_weights import read_weights, write_tensors
    from methods.blocks.base_models import base_model
    from methods.blocks.checkpoints.accounting import restore
    from methods.blocks.latent_diffusion import load_base

    settings = settings or paper_settings()
    base = base_model(settings["base"])
    network, modules = empty_modules(settings, clip)
    files = (network_file or folder / NETWORK_FILE, folder / CLIP_FILE)
    for file in files:
        if not file.is_file():
            raise MissingError(
                f"{file} is not there. Convert the released checkpoint first, or give its --folder:\n{EXAMPLES}"
            )
    state, _ = read_weights(files[0])
    _require_names(network.state_dict(), state, files[0])
    states: dict[str, Mapping[str, Tensor]] = {
        part: {name.removeprefix(place): tensor for name, tensor in state.items() if name.startswith(place)}
        for place, part in network.PARTS.items()
    }
    states["image_encoder"], _ = read_weights(files[1])
    _require_names(modules.image_encoder.state_dict(), states["image_encoder"], files[1])
    stored = load_base(base, folder / _base_name(base), ["vae", "text"])
    states |= {part: stored[part].state_dict() for part in ("vae", "text")}
    left_out = read_weights(folder / LEFT_OUT_FILE)[0] if (folder / LEFT_OUT_FILE).is_file() else None
    checkpoint = restore(states, modules.parts(), left_out)
    if target.suffix == ".safetensors":
        write_tensors(target, checkpoint, {"format": "pt"})
        return
    # torch.save writes the whole storage of a tensor, and those of a mapped file share one.
    own = {
        name: tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
        for name, tensor in checkpoint.items()
    }
    with atomic_path(target) as temporary:
        torch.save({"state_dict": own}, temporary)


def main(
    words: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    clip: dict[str, Any] | None = None,
) -> int:
    """The command; returns its exit code.

    Args:
        words: Words of the command line.
        settings: See `convert_release`.
        clip: See `convert_release`.
    """
    from bench.weights.catalogue import locate, weights_folder

    parser = argparse.ArgumentParser(
        prog="python -m methods.restorerid.checkpoint",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="?", type=Path, help="the released checkpoint (default: where it was downloaded)")
    parser.add_argument("-o", "--folder", type=Path, help="weights folder (default: that of bench)")
    parser.add_argument("--back", action="store_true", help="write FILE from the weights folder")
    parser.add_argument("--network", type=Path, help="with --back: weights of a network trained here")
    arguments = parser.parse_args(words)
    folder = (arguments.folder or weights_folder()).expanduser()
    try:
        if arguments.back:
            if arguments.file is None:
                raise UsageError("Which file should be written? Name it: mine.ckpt --back.")
            restore_release(arguments.file.expanduser(), folder, settings, clip, arguments.network)
            print(f"released names {arguments.file}")  # noqa: T201
            return 0
        source = arguments.file.expanduser() if arguments.file else locate("restorerid_full")
        convert_release(source, folder, settings, clip, say=print)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    if folder != weights_folder():
        print(f"Copy them into {weights_folder()}, where bench looks for them.")  # noqa: T201
    print("What else is absent: bench check method=restorerid size=paper")  # noqa: T201
    return 0


def _base_name(base: Any) -> str:
    from methods.blocks.latent_diffusion import base_folder

    return base_folder(base).name


def _require_names(wanted: Mapping[str, Any], found: Mapping[str, Any], file: Path) -> None:
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unexpected:
        raise UsageError(
            f"{file} is no such network of RestorerID's published size: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}), {len(unexpected)} are unexpected ({', '.join(unexpected[:3])})."
        )


def _require_room(folder: Path, needed: int) -> None:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if (free := shutil.disk_usage(place).free) < needed:
        raise MissingError(
            f"About {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free in {place}. "
            "Make room, or choose another --folder."
        )
