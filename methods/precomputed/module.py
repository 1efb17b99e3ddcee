"""Pictures that another program restored, read from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.batch import FaceBatch
from bench.data.export import flat_name
from bench.errors import UsageError
from bench.files import sha256_bytes
from bench.image import is_picture, read_image
from bench.method import MethodSpec, RestorationMethod
from bench.systems.name import require_system_name
from methods.blocks.tensor_cache import file_digest

WHERE = (
    "Write what the program reads with `bench data export data=NAME --for SYSTEM -o FOLDER`, restore it into a folder "
    "under the same names, and give that: method.root=OUT method.system=SYSTEM."
)


class Precomputed(RestorationMethod):
    """Gives the pictures of a folder, each under the id of the LQ picture it was made from.

    Args:
        settings: The composed `configs/method/precomputed.yaml`.

    Raises:
        UsageError: The program's name is none, or two files are of one picture.
    """

    spec = MethodSpec(
        name="precomputed",
        title="Precomputed pictures",
        references="none",
        licence="that of the program which made the pictures",
    )
    not_in_revision: ClassVar[tuple[str, ...]] = ("root", "suffix")

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self.system = require_system_name(settings.get("system"))
        self.root = Path(settings["root"]).expanduser() if settings.get("root") else Path()
        self.files: dict[str, Path] = {}
        if settings.get("root") and self.root.is_dir():
            suffix = str(settings.get("suffix") or "")
            for file in sorted(path for path in self.root.rglob("*") if is_picture(path)):
                name = file.relative_to(self.root).with_suffix("").as_posix()
                if not name.endswith(suffix):
                    continue
                name = name.removesuffix(suffix)
                if name in self.files:
                    raise UsageError(f"{self.files[name]} and {file} are of one picture: take one away.")
                self.files[name] = file

    @classmethod
    def absent(cls, settings: dict[str, Any]) -> dict[str, str]:
        """See `RestorationMethod.absent`."""
        root = settings.get("root")
        if not root:
            return {"pictures": f"Nothing says where they are. {WHERE}"}
        if not Path(root).expanduser().is_dir():
            return {"pictures": f"method.root={root} is not a folder. {WHERE}"}
        return {}

    @property
    def label(self) -> str:
        """Name of the row, such as `precomputed+codeformer`."""
        return f"{self.spec.name}+{self.system}" if self.system else self.spec.name

    def conditions(self) -> dict[str, str]:
        """One hash of all pictures and their names."""
        listing = "\n".join(f"{name} {file_digest(file)}" for name, file in self.files.items())
        return {"pictures": sha256_bytes(listing.encode("utf-8"))}

    def restore(self, batch: FaceBatch) -> Tensor:
        """Reads the pictures.

        Raises:
            UsageError: One is not there, cannot be decoded or has another size; nothing is resized.
        """
        return torch.stack([self._read(image_id, batch.lq.shape[-2:]) for image_id in batch.image_ids]).to(batch.lq)

    def _read(self, image_id: str, size: torch.Size) -> Tensor:
        flat = flat_name(image_id)
        found = [self.files[name] for name in dict.fromkeys((image_id, flat)) if name in self.files]
        if len(found) > 1:
            raise UsageError(f"{found[0]} and {found[1]} are of one picture: take one away.")
        if not found:
            raise UsageError(f"{self.root} has no picture {image_id} (such as {image_id}.png or {flat}.png).")
        file = found[0]
        pixels = torch.from_numpy(read_image(file)).permute(2, 0, 1).float() / 255
        if pixels.shape[-2:] != size:
            raise UsageError(
                f"{file} is {pixels.shape[-1]}x{pixels.shape[-2]} px, the protocol's pictures are {size[1]}x{size[0]}: "
                "nothing is resized. Let the program write that size."
            )
        return pixels


method_class = Precomputed
