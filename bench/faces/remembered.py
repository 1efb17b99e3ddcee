"""A store of results by picture that cannot grow without end."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import numpy as np

Value = TypeVar("Value")
CAPACITY = 4096


class Remembered(Generic[Value]):
    """The results used last, by key; the oldest is forgotten when there are more than `capacity`."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._values: OrderedDict[bytes, Value] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._values

    def __getitem__(self, key: bytes) -> Value:
        self._values.move_to_end(key)
        return self._values[key]

    def __setitem__(self, key: bytes, value: Value) -> None:
        self._values[key] = value
        while len(self._values) > self.capacity:
            self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)


def picture_key(*arrays: np.ndarray) -> bytes:
    """SHA-256 of arrays' shapes and content."""
    import numpy as np

    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
