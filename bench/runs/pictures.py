"""The pictures of a run folder: LQ, references, restored, ground truth."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml

from bench.errors import UsageError
from bench.image import read_image
from bench.protocol.card import data_root, load_card
from bench.protocol.pictures import ProtocolPictures
from bench.protocol.protocol import Protocol, ProtocolImage


def restored_path(run_dir: Path, image_id: str) -> Path:
    """Where the restored picture of an image id lies."""
    return run_dir / "restored" / f"{image_id}.png"


class RunPictures:
    """Pictures of a run folder; everything but the restored ones is made again from the protocol.

    Args:
        run_dir: A run folder.

    Raises:
        UsageError: It is no run folder.
        MissingError: The data set is absent.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = Path(run_dir)
        try:
            record = json.loads((self.run_dir / "protocol.json").read_text("utf-8"))
            config = yaml.safe_load((self.run_dir / "config.yaml").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.run_dir} is not a run folder: {error}") from error
        self.protocol = Protocol.from_dict(record)
        root = data_root(load_card(self.protocol.card), config["data"]["root"])
        self._pictures = ProtocolPictures(self.protocol, root)
        self._images = {image.image_id: image for image in self.protocol.images}
        self.truth = lru_cache(maxsize=8)(self._truth)

    @property
    def image_ids(self) -> list[str]:
        """Ids of all pictures of the protocol."""
        return self.protocol.image_ids

    def image(self, image_id: str) -> ProtocolImage:
        """The protocol's record of a picture."""
        return self._images[image_id]

    def identity(self, image_id: str) -> str:
        """Who is shown."""
        return self._images[image_id].identity

    def has_truth(self, image_id: str) -> bool:
        """Whether a ground truth exists."""
        return self._images[image_id].source is not None

    def _truth(self, image_id: str) -> np.ndarray:
        return self._pictures.truth(self._images[image_id])

    def lq(self, image_id: str) -> np.ndarray:
        """Degraded picture, (H, W, 3) uint8 RGB."""
        image = self._images[image_id]
        return self._pictures.lq(image, None if image.source is None else self.truth(image_id))

    def references(self, image_id: str) -> list[np.ndarray]:
        """References in the protocol's order, (H, W, 3) uint8 RGB each."""
        return [self._pictures.crop(reference) for reference in self._images[image_id].references]

    def restored(self, image_id: str) -> np.ndarray:
        """Restored picture, (H, W, 3) uint8 RGB.

        Raises:
            UnreadableImageError: It is missing or broken.
        """
        return read_image(restored_path(self.run_dir, image_id))
