"""BasicSR's functions, for tests that compare with them.

BasicSR 1.4.2 imports a module that torchvision has renamed; the old name is put back here, and only here.
"""

from __future__ import annotations

import sys
import warnings

import pytest

functional = pytest.importorskip("torchvision.transforms.functional", reason="torchvision is not installed")
sys.modules.setdefault("torchvision.transforms.functional_tensor", functional)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("basicsr", reason="BasicSR is not installed")
    from basicsr.data import degradations
    from basicsr.utils.img_process_util import USMSharp, filter2D, usm_sharp
    from basicsr.utils.matlab_functions import imresize

__all__ = ["USMSharp", "degradations", "filter2D", "functional", "imresize", "usm_sharp"]
