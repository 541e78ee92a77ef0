"""Where numbers, tables and pictures go: loggers that never end a run."""

from __future__ import annotations

import html
import os
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image

from vrft.run_dir import RunDir
from vrft.utils.redact import redact


class CSVLogger(LightningCSVLogger):
    """Lightning's logger; rows that a full disk has no room for are written as soon as there is."""

    @rank_zero_only
    def save(self) -> None:
        writer = self.experiment
        path, keys = Path(writer.metrics_file_path), [*writer.metrics_keys]
        rows = path.read_bytes() if path.exists() else b""
        try:
            super().save()
        except OSError as error:
            writer.metrics_keys = keys
            with suppress(OSError), path.open("r+b") as file:
                file.write(rows)
                file.truncate()
            if not rows:
                path.unlink(missing_ok=True)
            rank_zero_warn(f"{path}: the last {len(writer.metrics)} rows are not written yet: {error}")


class WandbLogger(LightningWandbLogger):
    """Lightning's logger, which goes on offline where there is no key or the server can't be reached.

    `wandb sync` uploads an offline run later. A continued run goes on under the id that it began with.
    """

    def __init__(
        self,
        save_dir: str,
        project: str = "vrft",
        name: str | None = None,
        offline: bool = True,
        init_timeout: float = 30.0,
    ) -> None:
        """Names the run; it starts with the first thing that is logged.

        Args:
            save_dir: folder for the run's files.
            project: on the server.
            name: of the run; default: the folder's name.
            offline: write files only.
            init_timeout: seconds after which the server counts as unreachable.
        """
        import wandb

        super().__init__(
            name or Path(save_dir).name,
            save_dir,
            project=project,
            mode="offline" if offline else "online",
            settings=wandb.Settings(
                init_timeout=init_timeout,
                silent=True,
                x_disable_meta=any(redact(word) != word for word in sys.argv),  # it has the command line in it
            ),
        )
        del self._wandb_init["anonymous"]  # wandb warns about it even where it is None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._start()
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, and pictures and tables, which Lightning logs as such; if the service has died, by a new one."""
        for _ in range(2):
            try:
                self._define_scores(metrics)
                super().log_metrics(metrics, step)
                return
            except OSError as error:
                rank_zero_warn(f"Weights & Biases: {error}; its service is started again")
                self._forget_service()

    def _define_scores(self, metrics: Mapping[str, Any]) -> None:
        """The table of runs shows a held-out score's best beside its last.

        By name: a pattern would mean pictures as well, and of two patterns that fit W&B takes any.
        """
        experiment = self.experiment
        for name, value in metrics.items():
            if name.startswith("val/") and isinstance(value, int | float) and name not in self._scores:
                experiment.define_metric(name, step_metric="trainer/global_step", step_sync=True, summary="max,last")
                self._scores.add(name)

    def finish(self) -> None:
        """End the run; the process may start another."""
        if self._experiment is not None:
            try:
                self._experiment.finish()
            except OSError as error:
                rank_zero_warn(f"Weights & Biases: {error}; `wandb sync` uploads what is there")
                self._forget_service()
            self._experiment = None

    def _forget_service(self) -> None:
        import wandb

        with suppress(OSError):  # of saying goodbye to one that is dead
            wandb.teardown()
        self._experiment = None

    def _start(self) -> None:
        import wandb
        from wandb.errors import AuthenticationError, CommError, UsageError

        folder = Path(str(self._wandb_init["dir"]))
        # Without this, pictures in tables are staged in the home folder and are not part of the run.
        os.environ["WANDB_DATA_DIR"] = str(RunDir(folder.resolve()).wandb)
        self._wandb_init["id"] = self._id = run_id(folder)
        if self._wandb_init["mode"] == "online" and not wandb.login(prompt=False, verify=False):
            self._go_offline("no API key; `wandb login` once, or set WANDB_API_KEY")
        try:
            self._experiment = wandb.init(**self._wandb_init)
        except (AuthenticationError, CommError, UsageError) as error:
            self._go_offline(str(error).splitlines()[0])
            wandb.teardown()  # its service still holds the id
            self._experiment = wandb.init(**self._wandb_init)
        self._experiment.define_metric("trainer/global_step")
        self._experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        self._scores = set[str]()

    def _go_offline(self, reason: str) -> None:
        rank_zero_warn(f"Weights & Biases: {reason}. The run goes on offline; `wandb sync` uploads it.")
        self._wandb_init["mode"] = "offline"


def run_id(folder: Path) -> str:
    """The id of the run in this folder, made on first use."""
    file = RunDir(folder).wandb_run_id
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4))
    return file.read_text()


def logged_step(trainer: Trainer) -> int:
    """The step of the loggers: rollouts before the present one."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def show_picture(loggers: Iterable[Logger], name: str, picture: Image.Image, step: int) -> None:
    """Log a picture where it can be looked at: Weights & Biases, TensorBoard."""
    for logger in loggers:
        if isinstance(logger, LightningWandbLogger):
            logger.log_image(name, [picture], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")


def show_table(
    loggers: Iterable[Logger], name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    """Log a table of plain values where it can be looked at."""
    for logger in loggers:
        if isinstance(logger, LightningWandbLogger):
            logger.log_table(name, [*columns], [[*row] for row in rows], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, markdown_table(columns, rows), step)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""A table in Markdown; what a cell holds is text, whatever it looks like.

    >>> print(markdown_table(["name", "AP"], [["a|b\n<i>", 0.5]]))
    | name | AP |
    |---|---|
    | a&#124;b &lt;i&gt; | 0.5 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[html.escape(" ".join(str(cell).split())).replace("|", "&#124;") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" if line != cells[1] else f"|{'|'.join(line)}|" for line in cells)
