"""Lightning's Trainer, which can also compare, examine and print, and says why it stopped early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from rich.console import Console

from vrft.data import VisionData
from vrft.doctor import examine
from vrft.errors import ConfigurationError
from vrft.evaluators import Evaluator
from vrft.evaluators.intervals import Comparison, as_json, compare, table
from vrft.rollout.vllm.command import serve_commands
from vrft.run_dir import RunDir
from vrft.training.module import VisionModule
from vrft.utils.files import write_json


class Stopped(Exception):
    """Leaves an evaluation after `VisionTrainer.stop`; training needs none."""


class VisionTrainer(Trainer):
    """`fit`, `validate` and `predict` are Lightning's, `test` can compare; `doctor` looks at all they would load."""

    problems: tuple[str, ...] = ()
    """What `doctor` found."""
    exit_code = 0
    """That of the command."""
    draw = False
    """Whether `predict` draws pictures."""
    stopped: str | None = None
    """Why training ended before it was done."""

    def stop(self, reason: str, exit_code: int) -> None:
        """Let the training step be the last one. No evaluation, checkpoint, export or summary follows.

        All ranks have to call it in the same step.
        """
        self.stopped, self.exit_code = reason, exit_code
        self.should_stop = True
        self.limit_val_batches = 0  # Lightning would evaluate once more
        self.fit_loop.min_epochs = self.fit_loop.epoch_loop.min_steps = None  # and go on until these are reached

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """As Lightning's; if one rank writes and fails, all of them raise its OSError."""
        error: OSError | None = None
        try:
            super().save_checkpoint(filepath, weights_only, storage_options)
        except OSError as problem:
            error = problem
            self.strategy.barrier("Trainer.save_checkpoint")  # where the others wait
        error = self.strategy.broadcast(error)
        if error is not None:
            raise error

    def test(  # type: ignore[override]
        self,
        model: VisionModule,
        dataloaders: None = None,
        ckpt_path: str | None = None,
        verbose: bool = True,
        datamodule: VisionData | None = None,
        weights_only: bool | None = None,
        against: str | None = None,
        resamples: int = 200,
    ) -> Any:
        """As Lightning's; and with `against`, two checkpoints on the same images in one table with intervals.

        Args:
            model: the module.
            dataloaders: none; the data module has them.
            ckpt_path: checkpoint to test; default: the base.
            verbose: print the scores.
            datamodule: the data.
            weights_only: of a checkpoint that is loaded.
            against: another checkpoint, or `base`, that it is compared with.
            resamples: bootstrap samples that intervals are made of.
        """
        if against is None:
            return super().test(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)
        evaluators = [callback for callback in self.callbacks if isinstance(callback, Evaluator)]  # type: ignore[attr-defined]
        other = None if against == "base" else against
        super().test(model, dataloaders, other, False, datamodule, weights_only)
        before = [sorted(evaluator.rows.items()) for evaluator in evaluators]
        scores = super().test(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)
        if self.is_global_zero:
            found: dict[str, Comparison] = {}
            for evaluator, rows in zip(evaluators, before, strict=True):
                after = [row for _, row in sorted(evaluator.rows.items())]
                found |= compare(evaluator, [row for _, row in rows], after, resamples, model.seed)
            names = (Path(against).stem, Path(ckpt_path).stem if ckpt_path else "base")
            names = (against, str(ckpt_path)) if len({*names}) == 1 else names  # both last.ckpt
            path = RunDir.of(self).comparison
            write_json(path, as_json(found, names))
            Console(width=110).print(table(found, names))
            print(f"comparison: {path}")
        return scores

    def predict(  # type: ignore[override]
        self,
        model: VisionModule,
        dataloaders: None = None,
        datamodule: VisionData | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        images: list[str] | None = None,
        query: list[str] | None = None,
        draw: bool = False,
    ) -> None:
        """As Lightning's; answers are written to the run's folder, and none is kept in memory.

        Args:
            model: the module.
            dataloaders: none; the data module has them.
            datamodule: the data.
            ckpt_path: checkpoint that answers, or an exported folder; default: the base.
            weights_only: of a checkpoint that is loaded.
            images: files and folders to ask about; default: the held-out images of the data.
            query: what to ask of each of them: categories, an instruction or a question; default: the categories of
                the data.
            draw: pictures of the images with the answers.
        """
        self.draw = draw
        super().predict(model, None, datamodule, False, ckpt_path, weights_only)

    def check_data(self, model: VisionModule, datamodule: VisionData) -> None:
        """Read and check the files of a run, and that evaluators fit them. No model is loaded.

        Raises:
            ConfigurationError: something is wrong.
        """
        self.strategy.connect(model)
        model.trainer = datamodule.trainer = self
        datamodule.prepare_data()
        datamodule.setup("fit")
        for callback in self.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evaluator):
                callback.check(datamodule)

    def serve_command(self, model: VisionModule, datamodule: VisionData) -> None:
        """Print how to start the servers that the model's engine names. Nothing is loaded.

        Args:
            model: the module, with a `vrft.rollout.VLLMServer`.
            datamodule: its data.
        """
        print(serve_commands(model.engine, model.policy), end="")

    def doctor(
        self, model: VisionModule, datamodule: VisionData, probe: int = 48, gpu_memory: float | None = None
    ) -> None:
        """Load everything as `fit` would and look for what would cost hours.

        Args:
            model: the module.
            datamodule: its data.
            probe: prompts that the model answers, to see whether its boxes fit the data better if they are read in
                another way; 0 is off.
            gpu_memory: in GB, of the GPU that the run is meant for; default: that of this machine's, if it has one.
        """
        folder = RunDir.of(self).doctor
        folder.mkdir(parents=True, exist_ok=True)
        console = Console()
        try:
            self.check_data(model, datamodule)
            model.configure_model()
            model.to(self.strategy.root_device)
            self.problems = tuple(examine(model, datamodule, folder, console, probe, gpu_memory))
        except ConfigurationError as error:
            self.problems = (str(error),)
        self.exit_code = 1 if self.problems else 0
        for problem in self.problems:
            console.print(f"problem: {problem}", style="red", highlight=False, markup=False, soft_wrap=True)
        if not self.problems:
            console.print("nothing is wrong", style="green")
