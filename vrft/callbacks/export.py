"""Export to Hugging Face format at the end of training."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from vrft.callbacks.base import vision_module, vision_trainer
from vrft.policy.export import EXPORT_STEPS, export_policy
from vrft.run_dir import RunDir
from vrft.training.progress_bar import phase


class ExportHuggingFace(Callback):
    """Writes the last weights to `export/` in the run's folder, for `from_pretrained`; adapters are merged."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export after the last checkpoint was written."""
        trainer, module = vision_trainer(trainer), vision_module(pl_module)
        if trainer.stopped is not None:
            return
        weights = module.policy.trained_weights()
        if trainer.is_global_zero:
            folder = RunDir.of(trainer).export
            with phase(trainer, "export", EXPORT_STEPS, alone=True) as advance:
                export_policy(module.policy, folder, weights, module.max_completion_length, advance=advance)
            print(f"Hugging Face folder: {folder}")
        trainer.strategy.barrier("export")
