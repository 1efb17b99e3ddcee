"""From the released diffusers folder of AuthFace to the weights file that `size=paper` reads.

UNet and ControlNet become one file of ours; autoencoder, text encoders and tokenisers are read where they are, so that
the folder stays. Tensors go from file to file, without a copy in memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, MissingError, UsageError
from bench.files import sha256_bytes
from methods.authface.prompts import ENCODERS, TOKENISER, WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

    from methods.authface.network import AuthFaceNetwork

REPOSITORY = "Ethanliang99/AuthFace"
NETWORK_FILE = "authface_paper.safetensors"
#: What the folder holds: subfolder -> one of these files must be there.
UNSHARDED = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
EXPECTED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("unet", "controlnet"), (*UNSHARDED, "diffusion_pytorch_model.safetensors.index.json")),
    "vae": UNSHARDED,
    **{name: files for pair in ENCODERS for name, files in zip(pair, (TOKENISER, WEIGHTS), strict=True)},
}
SHOWN = 3
DESCRIPTION = "Convert the released folder of AuthFace into what `bench run method=authface size=paper` reads."
EXAMPLES = f"""examples:
  hf download {REPOSITORY}
  python -m methods.authface.release
  python -m methods.authface.release FOLDER -o {NETWORK_FILE}"""


def paper_settings() -> dict[str, Any]:
    """Settings of `method=authface size=paper`."""
    from bench.config import compose, method_settings

    return method_settings(compose("run", ["method=authface"])["method"], "paper")


def missing_files(folder: Path, parts: Sequence[str] = tuple(EXPECTED)) -> list[str]:
    """What a folder lacks of the released files: `controlnet/diffusion_pytorch_model.safetensors`."""
    return [
        f"{part}/{EXPECTED[part][0]}"
        for part in parts
        if not any((folder / part / name).is_file() for name in EXPECTED[part])
    ]


def read_part(folder: Path, part: str) -> dict[str, Tensor]:
    """Tensors of `unet` or `controlnet`, mapped from one file or from several.

    Raises:
        MissingError: A file is absent.
        UsageError: A file cannot be read.
    """
    from bench.weights.method_weights import read_weights

    if absent := missing_files(folder, [part]):
        raise MissingError(
            f"{folder} has no {absent[0]}. Get it with: hf download {REPOSITORY} --include '{part}/*' "
            f"--local-dir {folder}"
        )
    names = [name for name in EXPECTED[part] if (folder / part / name).is_file()][:1]
    if names[0].endswith(".json"):
        try:
            listed: dict[str, str] = json.loads((folder / part / names[0]).read_text("utf-8"))["weight_map"]
        except (ValueError, KeyError) as error:
            raise UsageError(f"{folder / part / names[0]} is no index of weights: {error}.") from error
        names = sorted(set(listed.values()))
        if strange := [name for name in names if Path(name).name != name]:
            raise UsageError(f"{folder / part} lists files outside of itself: {', '.join(strange)}.")
    state: dict[str, Tensor] = {}
    for name in names:
        file = folder / part / name
        if not file.is_file():
            raise MissingError(f"{file} is not there, though its index names it.")
        state |= read_weights(file)[0]
    return state


def empty_network(settings: Mapping[str, Any]) -> AuthFaceNetwork:
    """The network without storage (on the meta device)."""
    import torch

    from methods.authface.network import AuthFaceNetwork
    from methods.blocks.base_models import base_model

    with torch.device("meta"):
        return AuthFaceNetwork(base_model(settings["base"]), **settings["network"])


def convert_release(folder: Path, target: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Writes UNet and ControlNet of the released folder as a weights file.

    Args:
        folder: The diffusers folder.
        target: The weights file; one that is there is replaced.
        settings: Settings of the method; those of `size=paper` by default.

    Raises:
        MissingError: Files are absent.
        UsageError: They hold other networks, or the weights file cannot be written.
    """
    from bench.runs.plan import TRAINING_SETTINGS
    from bench.weights.method_weights import write_tensors
    from methods.authface.module import AuthFace

    if not folder.is_dir():
        raise MissingError(f"{folder} is no folder. {EXAMPLES}")
    settings = settings or paper_settings()
    network = empty_network(settings)
    state: dict[str, Tensor] = {}
    for part in ("unet", "controlnet"):
        found = read_part(folder, part)
        wanted = getattr(network, part).state_dict()
        _require_same(wanted, found, folder / part)
        state |= {f"{part}.{name}": tensor for name, tensor in found.items()}
    left_out = (*TRAINING_SETTINGS, *AuthFace.not_in_revision)
    listing = sorted((name, str(tensor.dtype), list(tensor.shape)) for name, tensor in state.items())
    metadata = {
        "method": "authface",
        "size": settings.get("size") or "paper",
        "settings": {key: value for key, value in settings.items() if key not in left_out},
        "source": REPOSITORY,
        "source_layout_sha256": sha256_bytes(json.dumps(listing).encode("utf-8")),
    }
    try:
        write_tensors(target, state, metadata)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error}") from error


def _require_same(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], source: Path) -> None:
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = [name for name in sorted(wanted.keys() & found.keys()) if wanted[name].shape != found[name].shape]
    if missing or unexpected or other:
        shapes = [f"{name} is {list(found[name].shape)}, not {list(wanted[name].shape)}" for name in other[:SHOWN]]
        raise UsageError(
            f"{source} is not the {source.name} of AuthFace: {len(missing)} tensors are missing "
            f"({', '.join(missing[:SHOWN])}), {len(unexpected)} are unexpected ({', '.join(unexpected[:SHOWN])}), "
            f"{len(other)} have another shape ({', '.join(shapes)})."
        )


def main(words: Sequence[str] | None = None, settings: Mapping[str, Any] | None = None) -> int:
    """The command; returns its exit code.

    Args:
        words: Words of the command line.
        settings: See `convert_release`.
    """
    from bench.weights.catalogue import weights_folder

    parser = argparse.ArgumentParser(
        prog="python -m methods.authface.release",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", type=Path, help="the diffusers folder (default: where it was downloaded)")
    parser.add_argument("-o", "--output", type=Path, help="the weights file (default: where bench looks for it)")
    arguments = parser.parse_args(words)
    folder = (arguments.folder or _downloaded()).expanduser()
    target = (arguments.output or weights_folder() / NETWORK_FILE).expanduser()
    try:
        convert_release(folder, target, settings)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print(f"network  {target}")  # noqa: T201
    if absent := missing_files(folder):
        print(f"{folder} lacks {', '.join(absent)}")  # noqa: T201
    print("What else is absent: bench check method=authface size=paper")  # noqa: T201
    return 0


def _downloaded() -> Path:
    """The released folder in the weights folder, else in the Hugging Face cache."""
    from bench.weights.catalogue import weights_folder
    from methods.blocks.latent_diffusion import hub_snapshot

    kept = weights_folder() / REPOSITORY.partition("/")[2]
    return kept if not missing_files(kept, ("unet", "controlnet")) else hub_snapshot(REPOSITORY) or kept


if __name__ == "__main__":
    raise SystemExit(main())
