"""Log the speed and the memory of each step."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vrft.callbacks.base import vision_module
from vrft.types import PromptBatch

GB = 1e9


class Resources(Callback):
    """Logs `train/samples_per_second`, summed over ranks, and `memory/…` of the rank that uses the most."""

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        module = vision_module(pl_module)
        seconds = time.perf_counter() - self.start
        samples = len(batch.samples) // module.batches_per_step * module.group_size * trainer.world_size
        module.log("train/samples_per_second", samples / seconds, sync_dist=True)
        memory = {"rss": psutil.Process().memory_info().rss}
        if module.device.type == "cuda":
            memory["gpu"] = torch.cuda.max_memory_allocated(module.device)
            torch.cuda.reset_peak_memory_stats(module.device)
        for name, size in memory.items():
            module.log(f"memory/{name}_gb", size / GB, sync_dist=True, reduce_fx="max")
