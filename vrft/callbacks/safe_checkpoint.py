"""Write checkpoints atomically, and survive failed writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from vrft.training.lightning_internals import CheckpointBase
from vrft.utils.distributed import on_rank_zero
from vrft.utils.files import remove_unpublished, replace_link


class SafeCheckpoint(CheckpointBase):
    """Lightning's ModelCheckpoint, safe against kills and full disks.

    `last.ckpt` and the file that it points at are complete at all times: links are replaced atomically, and files that
    Lightning removes are kept until no link points at them.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.outdated: list[str] = []
        """Files to remove once no link points at them."""
        if stage == "fit" and trainer.is_global_zero:
            remove_unpublished(Path(str(self.dirpath)), f"*{self.FILE_EXTENSION}")

    def save_last_step(self, trainer: Trainer) -> bool:
        """Write `last.ckpt` unless the current step is saved already. Return whether the step is saved."""
        if self.last_saved_step != trainer.global_step:
            with self.warn_if_write_fails(trainer):
                self.last_model_path = self.format_checkpoint_name({}, self.CHECKPOINT_NAME_LAST)
                self.write(trainer, self.last_model_path)
        return self.last_saved_step == trainer.global_step

    @contextmanager
    def warn_if_write_fails(self, trainer: Trainer) -> Iterator[None]:
        """Turn an OSError into a warning that names the last good checkpoint, and restore this callback's state."""
        before = deepcopy(self.state_dict())
        try:
            yield
        except OSError as error:
            self.outdated.clear()
            self.load_state_dict(before)
            good = self.last_saved_path or trainer.ckpt_path or "none yet"
            rank_zero_warn(f"no checkpoint of step {trainer.global_step}: {error}; last good one: {good}")

    def write_last(self, trainer: Trainer, candidates: dict[str, Tensor]) -> None:
        super().write_last(trainer, candidates)
        self.remove_outdated(trainer)

    def link(self, trainer: Trainer, path: str, link: str) -> None:
        if Path(path).absolute() != Path(link).absolute():
            on_rank_zero(trainer, replace_link, Path(link), Path(path))

    def remove(self, trainer: Trainer, path: str) -> None:
        """Postpone the removal of a file, since `last.ckpt` may still point at it."""
        self.outdated.append(path)

    def remove_outdated(self, trainer: Trainer) -> None:
        """Remove the files whose removal was postponed."""
        while self.outdated:
            on_rank_zero(trainer, super().remove, trainer, self.outdated.pop())
