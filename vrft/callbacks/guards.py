"""Report the warnings of guards in the console, in the loggers and in `warnings.jsonl`."""

from __future__ import annotations

import difflib
import json
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

from vrft.callbacks.base import vision_module
from vrft.callbacks.transcripts import append_json_lines
from vrft.errors import ConfigurationError
from vrft.guards import GUARDS, Guard, Observation
from vrft.guards.training import SCORES, Overfitting
from vrft.loggers import show_table
from vrft.run_dir import RunDir
from vrft.training.module import VisionModule
from vrft.training.progress_bar import PhaseProgressBar
from vrft.types import PromptBatch, ScoredRollout
from vrft.utils.files import atomic_write

MAX_TENSORS, MAX_ELEMENTS = 64, 256
"""Maximum number of trainable tensors, and of elements of each, to compare before and after a step."""

COLUMNS = ("rollout", "step", "guard", "message")


class Guards(Callback):
    """Checks each rollout and evaluation for problems that a rising reward hides.

    A problem is reported once, when it begins. Only the first rank checks, using metrics of all ranks but only its own
    completions, so that no rank waits for another.
    """

    def __init__(self, off: list[str] | None = None) -> None:
        """Set the guards. `off`: names of guards to switch off."""
        names = [guard.name for guard in GUARDS]
        for name in off or ():
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise ConfigurationError(f"guards.off: no guard is called {name!r}{hint}; expected {', '.join(names)}")
        self.guards: list[Guard] = [guard() for guard in GUARDS if guard.name not in (off or ())]
        self.reported: list[dict[str, Any]] = []
        """The entries of `warnings.jsonl`."""
        self.training_began = False
        self.weights_before: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"guards": {guard.name: guard.state_dict() for guard in self.guards}, "said": self.reported}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.reported = state_dict["said"]
        for guard in self.guards:
            if guard.name in state_dict["guards"]:
                guard.load_state_dict(state_dict["guards"][guard.name])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop lines that `warnings.jsonl` got after the checkpoint, since the resumed run reports them again."""
        self.training_began = True
        self.show_raised(trainer)
        path = RunDir.of(trainer).warnings
        if trainer.is_global_zero and path.exists():
            try:
                with atomic_write(path) as partial:
                    partial.write_text("".join(json.dumps(entry) + "\n" for entry in self.reported), encoding="utf-8")
            except OSError as error:
                rank_zero_warn(f"{path} may repeat warnings from before the run was resumed: {error}")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        if trainer.is_global_zero:
            self.weights_before = sample_weights(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        module = vision_module(pl_module)
        scored = outputs.get("scored") if isinstance(outputs, dict) else None
        before, after = self.weights_before, sample_weights(module)
        seen = Observation(
            trainer.callback_metrics,
            scored.samples if isinstance(scored, ScoredRollout) else (),
            scored.answers if isinstance(scored, ScoredRollout) else (),
            None if before is None or after is None else (before, after),
            module.max_completion_length,
            module.task.reasoning,
        )
        for guard in self.guards:
            self.report(guard, guard.watch(seen), trainer, module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        scores = {
            name: float(trainer.callback_metrics[f"val/{name}"])
            for name in SCORES
            if f"val/{name}" in trainer.callback_metrics
        }
        for guard in self.guards:
            if isinstance(guard, Overfitting):
                self.report(guard, guard.evaluated(scores), trainer, vision_module(pl_module))

    def report(self, guard: Guard, message: str | None, trainer: Trainer, module: VisionModule) -> None:
        """Report a guard's warning unless it was reported already; if `message` is None, log the end of the problem."""
        if guard.raised == (message is not None) or not self.training_began:
            return
        guard.raised = message is not None
        self.show_raised(trainer)
        step = module.logged_step
        for logger in trainer.loggers:
            logger.log_metrics({f"guards/{guard.name}": float(guard.raised)}, step)
        if message is None:
            return
        entry = {
            "rollout": int(module.steps_done),
            "step": trainer.global_step,
            "guard": guard.name,
            "message": message,
        }
        self.reported.append(entry)
        append_json_lines(RunDir.of(trainer).warnings, [entry])
        rank_zero_warn(f"guard {guard.name}, rollout {entry['rollout']}: {message}")
        rows = [[reported[key] for key in COLUMNS] for reported in self.reported]
        show_table(trainer.loggers, "guards/said", COLUMNS, rows, step)

    def show_raised(self, trainer: Trainer) -> None:
        """Show the names of the guards with current problems in the progress bar."""
        bar = trainer.progress_bar_callback
        if isinstance(bar, PhaseProgressBar):
            bar.guards = [guard.name for guard in self.guards if guard.raised]


@torch.no_grad()
def sample_weights(module: LightningModule) -> Tensor | None:
    """Return a flat sample of trainable weights across the model, in the most common dtype; None if nothing trains."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    dtypes = [parameter.dtype for parameter in trained]
    if not trained:
        return None
    most_common = max(dtypes, key=dtypes.count)
    local = [p.to_local() if isinstance(p, DTensor) else p for p in trained if p.dtype == most_common]
    chosen = local[:: -(-len(local) // MAX_TENSORS)]
    return torch.cat([p.detach().flatten()[:: max(1, -(-p.numel() // MAX_ELEMENTS))].cpu() for p in chosen])
