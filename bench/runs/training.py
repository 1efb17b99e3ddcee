"""Training: a method, an endless stream of samples, checkpoints that resume to the bit."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from bench.config import method_settings
from bench.data.training import TrainingPairs, TrainingSettings
from bench.errors import UsageError
from bench.files import sha256_bytes, write_json
from bench.memory import is_out_of_memory, training_out_of_memory
from bench.method import RestorationMethod
from bench.paths import runs_root
from bench.protocol.protocol import DataSettings
from bench.registry import load_method
from bench.runs.environment import environment
from bench.runs.processes import shared_run_dir
from bench.runs.progress import ProgressLines
from bench.runs.trainer import trainer_options
from bench.weights.method_weights import write_weights


class TrainingData(LightningDataModule):
    """The training stream of this rank, from the first batch that was not trained on."""

    def __init__(self, data: DataSettings, settings: TrainingSettings, workers: int) -> None:
        super().__init__()
        self.data, self.settings, self.workers = data, settings, workers

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of this rank, one `FaceBatch` each."""
        trainer = self.trainer
        assert trainer is not None
        method = trainer.lightning_module
        assert isinstance(method, RestorationMethod)
        pairs = TrainingPairs(
            self.data,
            self.settings,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            first_batch=int(getattr(method, "batches_done", 0)),
        )
        stream = method.training_stream(pairs)
        return DataLoader(stream, batch_size=None, num_workers=self.workers, persistent_workers=self.workers > 0)


class LossRecord(Callback):
    """Remembers the logged total of the first and the last batches, to say whether the loss fell."""

    def __init__(self) -> None:
        self.totals: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Notes the total of this batch."""
        if (total := trainer.callback_metrics.get("train/total")) is not None:
            self.totals.append(float(total))


def train(config: dict[str, Any]) -> dict[str, Any]:
    """Trains a method and writes its weights.

    Args:
        config: The composed `configs/train.yaml`.

    Returns:
        What was done: run folder, weights file and its hash, batches, seconds, first and last loss.

    Raises:
        UsageError: The method does not train, or the settings are wrong.
        MissingError: Data or weights are absent.
    """
    name = config["method"]["name"]
    method_class = load_method(name)
    settings = method_settings(config["method"], config["size"]) | {"seed": config["seed"]}
    if method_class.training_step is RestorationMethod.training_step:
        raise UsageError(f"The method {name} has nothing to train.")
    own = settings.get("training", {})
    given = config["trainer"]["max_steps"]
    batches = own.get("max_steps", 1000) if given is None else given
    data = DataSettings(**config["data"])
    samples = TrainingSettings(
        batch_size=own.get("batch_size", 8) if config["batch_size"] is None else config["batch_size"],
        references=int(config["references"]),
        seed=int(config["seed"]),
        size=settings.get("native_size"),
        augmentation=config["augmentation"],
        pool=int(config["pool"]),
        shared_degradation=bool(config["shared_degradation"]),
        crop_scales=tuple(config["crop_scales"]),
    )
    # Whatever decides the result is part of the checkpoint's settings: a training only resumes its own kind.
    settings["training"] = own | {"max_steps": batches, "data": data.name, "samples": asdict(samples)}
    mark = sha256_bytes(json.dumps(_resumable(settings), sort_keys=True).encode("utf-8"))[:8]
    default = runs_root() / f"train-{name}-{data.name}-{config['size']}-{mark}"
    with shared_run_dir(Path(config["run_dir"]).expanduser() if config["run_dir"] else default) as run_dir:
        return _fit(config, method_class(settings), data, samples, batches, run_dir)


def _fit(
    config: dict[str, Any],
    method: RestorationMethod,
    data: DataSettings,
    samples: TrainingSettings,
    batches: int,
    run_dir: Path,
) -> dict[str, Any]:
    settings, name = method.settings, method.spec.name
    method.prepare_training()
    steps = method.optimizer_steps_per_batch
    checkpoints = ModelCheckpoint(
        dirpath=run_dir / "checkpoints",
        filename="{step}",
        every_n_train_steps=int(config["checkpoint_every"]) * steps,
        save_last=True,
        save_top_k=1,
        monitor="step",
        mode="max",
        save_on_train_epoch_end=False,
        # Otherwise a second training in the folder would write last-v1 and resume from the old last.
        enable_version_counter=False,
    )
    record = LossRecord()
    options = trainer_options(config["trainer"], training=True)
    if options["strategy"] == "ddp":
        options["strategy"] = "ddp_find_unused_parameters_true"
    trainer = Trainer(
        **options,
        # Lightning counts optimiser steps, we count batches: this is the one place that converts.
        max_steps=batches * steps,
        max_epochs=-1,
        callbacks=[checkpoints, record, ProgressLines(batches)],
        logger=CSVLogger(run_dir, name="", version="log"),
        log_every_n_steps=10,
        use_distributed_sampler=False,
    )
    last = run_dir / "checkpoints" / "last.ckpt"
    resumed = bool(config["resume"]) and last.is_file()
    if resumed:
        _check_checkpoint(last, settings, batches)
    module = TrainingData(data, samples, int(config["trainer"]["num_workers"]))
    try:
        trainer.fit(method, datamodule=module, ckpt_path=str(last) if resumed else None, weights_only=True)
    except SystemExit as stopped:
        # Lightning's own answer to an interrupt, and to the signal by which a scheduler ends a job.
        raise KeyboardInterrupt from stopped
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        free = _device_memory(trainer)
        raise training_out_of_memory(method, samples.batch_size, free, str(options["precision"])) from error
    trainer.save_checkpoint(last)
    result = {
        "run_dir": str(run_dir),
        "method": method.label,
        "batches": int(getattr(method, "batches_done", batches)),
        "resumed": resumed,
        "world_size": trainer.world_size,
        "first_loss": record.totals[0] if record.totals else None,
        "last_loss": sum(record.totals[-10:]) / len(record.totals[-10:]) if record.totals else None,
        "weights": None,
    }
    if trainer.is_global_zero:
        path = run_dir / f"{config['size'] or name}.safetensors"
        metadata = {
            "method": name,
            "size": config["size"],
            "settings": settings,
            "data": data.name,
            "batches": result["batches"],
            "world_size": trainer.world_size,
        }
        result["sha256"] = write_weights(path, method, settings.get("weights_dtype", "float32"), metadata)
        result["weights"] = str(path)
        write_json(run_dir / "training.json", result | {"environment": environment()})
    return result


def _device_memory(trainer: Trainer) -> float:
    """Memory of the device that a process trains on, in MB."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory) / 1e6
    return float(psutil.virtual_memory().total) / 1e6


def _resumable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the length of the training, which may grow, and what changes no bit of it."""
    training = {key: value for key, value in settings["training"].items() if key not in ("max_steps", "checkpointing")}
    return settings | {"training": training}


def _check_checkpoint(checkpoint: Path, settings: dict[str, Any], batches: int) -> None:
    """Refuses a checkpoint of another training, and one that has reached the end."""
    content = torch.load(checkpoint, weights_only=True, map_location="cpu")
    stored = content["hyper_parameters"]["settings"]
    mine, theirs = _resumable(settings), _resumable(stored)
    if different := sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key)):
        raise UsageError(
            f"{checkpoint} belongs to a training with other settings ({', '.join(different)}). Choose another run_dir, "
            "or add resume=false to start over."
        )
    if (done := content["batches_done"]) >= batches:
        raise UsageError(
            f"{checkpoint} has already been trained for {done} of {batches} batches. Raise trainer.max_steps, choose "
            "another run_dir, or add resume=false to start over."
        )
