"""BasicSR's functions, for tests that compare with them; skips them where it is absent."""

from __future__ import annotations

import pytest

from bench.degradation.basicsr_chain import import_basicsr
from bench.errors import MissingError

functional = pytest.importorskip("torchvision.transforms.functional", reason="torchvision is not installed")
try:
    degradations = import_basicsr("basicsr.data.degradations")
    _processing = import_basicsr("basicsr.utils.img_process_util")
    imresize = import_basicsr("basicsr.utils.matlab_functions").imresize
except MissingError as error:
    pytest.skip(str(error), allow_module_level=True)
USMSharp, filter2D, usm_sharp = _processing.USMSharp, _processing.filter2D, _processing.usm_sharp

__all__ = ["USMSharp", "degradations", "filter2D", "functional", "imresize", "usm_sharp"]
