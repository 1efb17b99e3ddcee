"""Lightning's trainer options from the `trainer` group."""

from __future__ import annotations

import os
from typing import Any

from bench.errors import UsageError


def trainer_options(settings: dict[str, Any], *, training: bool) -> dict[str, Any]:
    """Keyword arguments of `lightning.Trainer`; pins the threads of this process.

    Args:
        settings: The composed `trainer` group.
        training: Training uses all cores; evaluation pins `threads` so that every bit is repeatable.

    Raises:
        UsageError: No such accelerator or strategy, or fewer devices than asked for.
    """
    import cv2
    import torch
    from lightning.pytorch.accelerators import AcceleratorRegistry

    accelerator = settings["accelerator"]
    if accelerator not in ("auto", *AcceleratorRegistry.available_accelerators()):
        raise UsageError(f"trainer.accelerator={accelerator!r} is not known: cpu, cuda or auto.")
    if accelerator in ("cuda", "gpu") and not torch.cuda.is_available():
        raise UsageError("trainer.accelerator=cuda, but no CUDA device is visible. Use trainer.accelerator=cpu.")
    strategy = settings["strategy"]
    if strategy not in ("auto", "single_device") and not str(strategy).startswith("ddp"):
        raise UsageError(
            f"trainer.strategy={strategy!r} is none that training or evaluation is exact with: auto or ddp. A network "
            "is not split over devices here."
        )
    devices = settings["devices"]
    # On a CPU "auto" means one process; on GPUs, one for each.
    local = devices if isinstance(devices, int) else max(1, torch.cuda.device_count())
    threads = int(settings["threads"])
    if training:
        threads = int(settings["train_threads"] or max(1, (os.cpu_count() or 1) // max(1, local)))
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    return {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": settings["num_nodes"],
        "strategy": settings["strategy"],
        "precision": settings["precision"],
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
