"""A Hugging Face folder at the end of training."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from vrft.module import VisionModule


class ExportHuggingFace(Callback):
    """Writes `export/` in the run's folder: what `from_pretrained` loads, adapters merged."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, VisionModule)
        self.export(pl_module, Path(trainer.default_root_dir) / "export")
        trainer.strategy.barrier("export")

    @rank_zero_only
    def export(self, module: VisionModule, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        module.policy.export(folder)
        print(f"Hugging Face folder: {folder}")
