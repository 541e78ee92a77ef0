"""How fast a step was, and how much memory it took."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vrft.training.module import VisionModule
from vrft.types import PromptBatch

GB = 1e9


class Resources(Callback):
    """Logs `train/samples_per_second`, of all ranks together, and `memory/…`, of the rank that has most."""

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, VisionModule)
        seconds = time.perf_counter() - self.start
        samples = len(batch.samples) // pl_module.batches_per_step * pl_module.group_size * trainer.world_size
        pl_module.log("train/samples_per_second", samples / seconds, sync_dist=True)
        memory = {"rss": psutil.Process().memory_info().rss}
        if pl_module.device.type == "cuda":
            memory["gpu"] = torch.cuda.max_memory_allocated(pl_module.device)
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        for name, size in memory.items():
            pl_module.log(f"memory/{name}_gb", size / GB, sync_dist=True, reduce_fx="max")
