"""Guards at work: what they find is said once, in the console, in the loggers and in `warnings.jsonl`."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

from vrft.callbacks.transcripts import append
from vrft.errors import ConfigurationError
from vrft.guards import GUARDS, Guard, Seen
from vrft.guards.training import SCORES, Overfitting
from vrft.loggers import logged_step, show_table
from vrft.run_dir import RunDir
from vrft.training.module import VisionModule
from vrft.training.progress_bar import PhaseProgressBar
from vrft.types import PromptBatch, ScoredRollout
from vrft.utils.files import atomic_write

TENSORS, ELEMENTS = 64, 256
"""Trainable tensors, and weights of each, that are compared before and after a step."""

COLUMNS = ("rollout", "step", "guard", "message")


class Guards(Callback):
    """Looks at each rollout and evaluation for what a rising reward hides; each finding is said until it is over.

    All of it happens on the first rank, on what ranks have in common and on that rank's own completions; no rank waits.
    """

    def __init__(self, off: list[str] | None = None) -> None:
        """`off`: names of guards that keep quiet."""
        names = [guard.name for guard in GUARDS]
        for name in off or ():
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise ConfigurationError(f"guards.off: no guard is called {name!r}{hint}; expected {', '.join(names)}")
        self.guards: list[Guard] = [guard() for guard in GUARDS if guard.name not in (off or ())]
        self.said: list[dict[str, Any]] = []
        self.training = False
        self.before: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"guards": {guard.name: guard.state_dict() for guard in self.guards}, "said": self.said}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.said = state_dict["said"]
        for guard in self.guards:
            if guard.name in state_dict["guards"]:
                guard.load_state_dict(state_dict["guards"][guard.name])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.training = True
        self.show(trainer)
        path = self.path(trainer)
        if trainer.is_global_zero and path.exists():  # what was said after the checkpoint comes again
            try:
                with atomic_write(path) as partial:
                    partial.write_text("".join(json.dumps(entry) + "\n" for entry in self.said))
            except OSError as error:
                rank_zero_warn(f"{path} is of the run before it was continued: {error}")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        if trainer.is_global_zero:
            self.before = some_weights(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, VisionModule)
        scored = outputs.get("scored") if isinstance(outputs, dict) else None
        after = some_weights(pl_module)
        seen = Seen(
            trainer.callback_metrics,
            scored.samples if isinstance(scored, ScoredRollout) else (),
            scored.answers if isinstance(scored, ScoredRollout) else (),
            None if self.before is None or after is None else (self.before, after),
            pl_module.max_completion_length,
            pl_module.task.reasoning,
        )
        for guard in self.guards:
            self.say(guard, guard.watch(seen), trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, VisionModule)
        scores = {
            name: float(trainer.callback_metrics[f"val/{name}"])
            for name in SCORES
            if f"val/{name}" in trainer.callback_metrics
        }
        for guard in self.guards:
            if isinstance(guard, Overfitting):
                self.say(guard, guard.evaluated(scores), trainer, pl_module)

    def say(self, guard: Guard, message: str | None, trainer: Trainer, pl_module: VisionModule) -> None:
        """Say what a guard has found, unless that has been said; and note when it is over."""
        if guard.raised == (message is not None) or not self.training:
            return
        guard.raised = message is not None
        self.show(trainer)
        step = logged_step(trainer)
        for logger in trainer.loggers:
            logger.log_metrics({f"guards/{guard.name}": float(guard.raised)}, step)
        if message is None:
            return
        entry = {
            "rollout": int(pl_module.steps_done),
            "step": trainer.global_step,
            "guard": guard.name,
            "message": message,
        }
        self.said.append(entry)
        append(self.path(trainer), [entry])
        rank_zero_warn(f"guard {guard.name}, rollout {entry['rollout']}: {message}")
        show_table(
            trainer.loggers, "guards/said", COLUMNS, [[said[key] for key in COLUMNS] for said in self.said], step
        )

    def show(self, trainer: Trainer) -> None:
        """Let the bar name the guards that are raised."""
        bar = trainer.progress_bar_callback
        if isinstance(bar, PhaseProgressBar):
            bar.guards = [guard.name for guard in self.guards if guard.raised]

    @staticmethod
    def path(trainer: Trainer) -> Path:
        return RunDir.of(trainer).warnings


@torch.no_grad()
def some_weights(module: LightningModule) -> Tensor | None:
    """A few weights of trainable tensors all over the model, of those in the commonest dtype; None if none trains."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    dtypes = [parameter.dtype for parameter in trained]
    if not trained:
        return None
    commonest = max(dtypes, key=dtypes.count)
    local = [p.to_local() if isinstance(p, DTensor) else p for p in trained if p.dtype == commonest]
    chosen = local[:: -(-len(local) // TENSORS)]
    return torch.cat([p.detach().flatten()[:: max(1, -(-p.numel() // ELEMENTS))].cpu() for p in chosen])
