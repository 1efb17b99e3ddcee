"""Finds methods, metrics and data sets by name, and imports them on first use only.

Own methods are the folders of `methods/` that hold a `module.py`; its `method_class` is the
`RestorationMethod`. Own metrics are the concrete `Metric` and `SetMetric` classes of `bench/metrics/`. Own
data sets are the files of `configs/data/`. Other packages add theirs through the entry-point groups
`bench.methods`, `bench.metrics` and `bench.set_metrics` (a class) and `bench.datasets` (a folder of YAML
files: the entry point names a module whose directory is searched).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import unknown_name
from bench.paths import resource_root

if TYPE_CHECKING:
    from bench.method import RestorationMethod
    from bench.metrics.metric import Metric
    from bench.metrics.set_metric import SetMetric


def _entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def _load(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


@cache
def method_targets() -> dict[str, str]:
    """Every method's name and the `module:object` it is loaded from, without importing any."""
    targets = {name: point.value for name, point in _entry_points("bench.methods").items()}
    spec = importlib.util.find_spec("methods")
    for location in (spec.submodule_search_locations or []) if spec else []:
        for module in Path(location).glob("*/module.py"):
            targets[module.parent.name] = f"methods.{module.parent.name}.module:method_class"
    return dict(sorted(targets.items()))


def load_method(name: str) -> type[RestorationMethod]:
    """Imports and returns a method's class.

    Raises:
        UsageError: No method has this name.
    """
    targets = method_targets()
    if name not in targets:
        raise unknown_name("method", name, targets)
    method: type[RestorationMethod] = _load(targets[name])
    return method


def _own_classes(base: type) -> dict[str, Any]:
    """Concrete subclasses in `bench/metrics/` by name. Metric modules import nothing heavy at their top."""
    from bench import metrics

    found: dict[str, Any] = {}
    for module_info in pkgutil.iter_modules(metrics.__path__):
        module = importlib.import_module(f"bench.metrics.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, base) and "name" in vars(value):
                found[vars(value)["name"]] = value
    return found


@cache
def metric_classes() -> dict[str, type[Metric]]:
    """Every per-image metric by name."""
    from bench.metrics.metric import Metric

    found: dict[str, type[Metric]] = _own_classes(Metric)
    for name, point in _entry_points("bench.metrics").items():
        found[name] = point.load()
    return dict(sorted(found.items()))


def load_metric(name: str) -> type[Metric]:
    """Returns a per-image metric's class.

    Raises:
        UsageError: No metric has this name.
    """
    classes = metric_classes()
    if name not in classes:
        raise unknown_name("metric", name, classes)
    return classes[name]


@cache
def set_metric_classes() -> dict[str, type[SetMetric]]:
    """Every metric of whole sets by name (FID, KID)."""
    from bench.metrics.set_metric import SetMetric

    found: dict[str, type[SetMetric]] = _own_classes(SetMetric)
    for name, point in _entry_points("bench.set_metrics").items():
        found[name] = point.load()
    return dict(sorted(found.items()))


def load_set_metric(name: str) -> type[SetMetric]:
    """Returns a set metric's class.

    Raises:
        UsageError: No set metric has this name.
    """
    classes = set_metric_classes()
    if name not in classes:
        raise unknown_name("metric of whole sets", name, classes)
    return classes[name]


# What papers and pyiqa call a metric, and which of ours that is. SSIM is that of luma, as pyiqa's and MATLAB's.
METRIC_ALIASES: dict[str, str] = {
    "psnr": "psnr_rgb",
    "psnry": "psnr_y",
    "ssim": "ssim_y",
    "ssimc": "ssim_rgb",
    "ms-ssim": "ms_ssim",
    "msssim": "ms_ssim",
    "lpips": "lpips_alex",
    "lpips-alex": "lpips_alex",
    "lpips-vgg": "lpips_vgg",
    "maniqa-pipal": "maniqa_pipal",
    "clip-iqa": "clipiqa",
    "clip_iqa": "clipiqa",
    "topiq-face": "topiq_face",
    "topiq_nr-face": "topiq_face",
    "ids": "id",
    "deg": "degradation_angle",
    "lmd": "lmd_px",
    "lmse": "lmse_px2",
    "fid": "fid_gt",
    "fid-ffhq": "fid_ffhq",
    "kid": "kid_gt",
}


def resolve_metric(name: str) -> str:
    """The metric a name stands for: itself, or ours behind what papers call it (`METRIC_ALIASES`).

    Args:
        name: A name of a metric per image or of whole sets, or an alias, in any case.

    Raises:
        UsageError: Nothing has this name; the nearest names are suggested.
    """
    known = {**metric_classes(), **set_metric_classes()}
    for written in (name, name.lower()):
        if written in known:
            return written
        if METRIC_ALIASES.get(written) in known:
            return METRIC_ALIASES[written]
    raise unknown_name("metric", name, known)


@cache
def data_folders() -> list[Path]:
    """Folders of data configurations: our own first, then those of other packages."""
    folders = [resource_root() / "configs" / "data"]
    for point in _entry_points("bench.datasets").values():
        spec = importlib.util.find_spec(point.value.partition(":")[0])
        if spec and spec.origin:
            folders.append(Path(spec.origin).parent)
    return folders
