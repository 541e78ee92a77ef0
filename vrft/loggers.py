"""Loggers whose failures never end a run, and functions that log pictures and tables."""

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
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from PIL import Image

from vrft.run_dir import RunDir
from vrft.utils.display import counted, shell_word, visible
from vrft.utils.redact import redact


class CSVLogger(LightningCSVLogger):
    """Lightning's CSVLogger, which keeps rows that don't fit on a full disk and writes them once there is room."""

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
            rank_zero_warn(f"{path}: the last {counted(len(writer.metrics), 'row')} could not be written yet: {error}")


class WandbLogger(LightningWandbLogger):
    """Lightning's WandbLogger. Without an API key or a reachable server it logs offline.

    `wandb sync` uploads an offline run later. A resumed run keeps its id.
    """

    def __init__(
        self,
        save_dir: str,
        project: str = "vrft",
        name: str | None = None,
        offline: bool = True,
        init_timeout: float = 30.0,
    ) -> None:
        """Configure the run, which starts with the first log call.

        Args:
            save_dir: folder for the run's files.
            project: name of the project on the server.
            name: name of the run; default: the folder's name.
            offline: write files only.
            init_timeout: seconds after which the server counts as unreachable.
        """
        import wandb

        name = name or Path(save_dir).name
        super().__init__(name, save_dir, project=project)
        self.run: Any = None
        """The W&B run, once it has started."""
        self.run_id: str | None = None
        self.scores = set[str]()
        """Names of the held-out scores that are defined in W&B."""
        self.init_arguments: dict[str, Any] = {
            "name": name,
            "project": self.name,
            "dir": save_dir,
            "resume": "allow",
            "mode": "offline" if offline else "online",
            "settings": wandb.Settings(
                init_timeout=init_timeout,
                reinit="finish_previous",  # a run that failed earlier in this process may be open
                silent=True,
                x_disable_meta=any(redact(word) != word for word in sys.argv),  # the metadata has the command line
            ),
        }

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started on first access."""
        if self.run is None:
            self.start()
        return self.run

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"run": None}  # processes that Lightning spawns start their own

    @property
    def version(self) -> str | None:
        """The id of the run, once it has started."""
        return self.run_id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, pictures and tables; restart the service if it has died."""
        for _ in range(2):
            try:
                self.define_scores(metrics)
                super().log_metrics(metrics, step)
                return
            except OSError as error:
                rank_zero_warn(f"Weights & Biases: {error}; restarting its service")
                self.forget_service()

    def define_scores(self, metrics: Mapping[str, Any]) -> None:
        """Make W&B's table of runs show the best value of each held-out score beside the last.

        Define scores by name: a pattern would match pictures too, and if two patterns match, W&B takes either.
        """
        experiment = self.experiment
        for name, value in metrics.items():
            if name.startswith("val/") and isinstance(value, int | float) and name not in self.scores:
                experiment.define_metric(name, step_metric="trainer/global_step", step_sync=True, summary="max,last")
                self.scores.add(name)

    def finish(self) -> str:
        """End the run; the process may start another. Return the run's location, or an empty text if none started."""
        said = ""
        if self.run is not None:
            said = f"Weights & Biases: {self.run.url}"
            if self.init_arguments["mode"] == "offline":
                folder = Path(self.run.dir).parent
                said = f"Weights & Biases: offline in {folder}; `wandb sync {shell_word(str(folder))}` uploads it"
            try:
                self.run.finish()
            except OSError as error:
                rank_zero_warn(f"Weights & Biases: {error}; `wandb sync` uploads what was written so far")
                self.forget_service()
            self.run = None
        return said

    def forget_service(self) -> None:
        """Make wandb start a new service process with the next run."""
        import wandb

        with suppress(OSError):  # the service may be dead
            wandb.teardown()
        self.run = None

    def start(self) -> None:
        """Start the run, offline if there is no API key or the server can't be reached."""
        import wandb
        from wandb.errors import AuthenticationError, CommError, UsageError

        folder = Path(str(self.save_dir))
        # Without this, wandb stages the pictures of tables in the home folder and they are not part of the run.
        os.environ["WANDB_DATA_DIR"] = str(RunDir(folder.resolve()).wandb)
        self.init_arguments["id"] = self.run_id = run_id(folder)
        if self.init_arguments["mode"] == "online" and not wandb.login(prompt=False, verify=False):
            self.go_offline("no API key; `wandb login` once, or set WANDB_API_KEY")
        try:
            self.run = wandb.init(**self.init_arguments)
        except (AuthenticationError, CommError, UsageError) as error:
            self.go_offline(str(error).splitlines()[0])
            wandb.teardown()  # the service still holds the id
            self.run = wandb.init(**self.init_arguments)
        self.run.define_metric("trainer/global_step")
        self.run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        self.scores = set()

    def go_offline(self, reason: str) -> None:
        rank_zero_warn(f"Weights & Biases: {reason}. The run logs offline; `wandb sync` uploads it.")
        self.init_arguments["mode"] = "offline"


def run_id(folder: Path) -> str:
    """Return the W&B id of the run in a folder. The first call generates one and saves it."""
    file = RunDir(folder).wandb_run_id
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4), encoding="utf-8")
    return file.read_text(encoding="utf-8")


def show_picture(loggers: Iterable[Logger], name: str, picture: Image.Image, step: int) -> None:
    """Log a picture to the loggers that support pictures: Weights & Biases and TensorBoard."""
    for logger in loggers:
        if isinstance(logger, LightningWandbLogger):
            logger.log_image(name, [picture], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")


def show_table(
    loggers: Iterable[Logger], name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    """Log a table of plain values to Weights & Biases and, as Markdown, to TensorBoard."""
    for logger in loggers:
        if isinstance(logger, LightningWandbLogger):
            logger.log_table(name, [*columns], [[*row] for row in rows], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, markdown_table(columns, rows), step)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    r"""Return a Markdown table with escaped cells.

    >>> print(markdown_table(["name", "AP"], [["a|b\n<i>", 0.5]]))
    | name | AP |
    |---|---|
    | a&#124;b &lt;i&gt; | 0.5 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [
        [html.escape(visible(" ".join(str(cell).split()))).replace("|", "&#124;") for cell in line] for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" if line != cells[1] else f"|{'|'.join(line)}|" for line in cells)
