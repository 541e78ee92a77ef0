"""A Hugging Face folder at the end of training."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from vrft.policy.export import EXPORT_STEPS, export_policy
from vrft.run_dir import RunDir
from vrft.training.module import VisionModule
from vrft.training.progress_bar import phase
from vrft.training.trainer import VisionTrainer


class ExportHuggingFace(Callback):
    """Writes `export/` in the run's folder: what `from_pretrained` loads, adapters merged."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """By then the last checkpoint is written."""
        assert isinstance(pl_module, VisionModule)
        assert isinstance(trainer, VisionTrainer)
        if trainer.stopped is not None:
            return
        weights = pl_module.policy.trained_weights()
        if trainer.is_global_zero:
            folder = RunDir.of(trainer).export
            with phase(trainer, "export", EXPORT_STEPS) as advance:
                export_policy(pl_module.policy, folder, weights, pl_module.max_completion_length, advance=advance)
            print(f"Hugging Face folder: {folder}")
        trainer.strategy.barrier("export")
