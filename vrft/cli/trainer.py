"""The Trainer of the command line: one method per command, with its options as parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Column, Table

from vrft.callbacks.filtering import Filter, rule_of
from vrft.callbacks.sampled_answers import SampledAnswers
from vrft.callbacks.thinking_budget import ThinkingBudget
from vrft.cli.compare import compare_checkpoints
from vrft.cli.doctor import run_doctor
from vrft.data import RecordData, VisionData
from vrft.errors import ConfigurationError
from vrft.evaluators.base import judging_evaluator
from vrft.rollout.vllm.command import serve_commands
from vrft.training.module import VisionModule
from vrft.training.trainer import VisionTrainer
from vrft.utils.display import decimals

TRAINER_DEFAULTS: dict[str, Any] = {
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": None,
    "val_check_interval": 100,  # in rollouts, independent of the size of the dataset
    "enable_model_summary": False,
    "inference_mode": False,  # inference tensors can't be used in training later
    "use_distributed_sampler": False,  # the data modules shard the samples themselves
    "plugins": {"class_path": "vrft.training.checkpoint_io.AtomicCheckpointIO"},
    "logger": [
        {
            "class_path": "vrft.loggers.CSVLogger",
            "init_args": {"save_dir": "${.....run_dir}", "name": "logs"},
        },
        {"class_path": "vrft.loggers.WandbLogger", "init_args": {"save_dir": "${.....run_dir}"}},
    ],
}


def describe_devices(trainer: Trainer) -> str:
    """Describe the devices of a run and its strategy in one line.

    >>> describe_devices(Trainer(accelerator="cpu", logger=False))
    'device: cpu'
    """
    device = trainer.strategy.root_device
    name = f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    if device.type == "cpu" and torch.version.cuda and not torch.cuda.is_available():
        name += f" (torch is built for CUDA {torch.version.cuda} and finds no GPU that it can use)"
    if trainer.world_size == 1:
        return f"device: {name}"
    machines = f" on {trainer.num_nodes} machines" if trainer.num_nodes > 1 else ""
    return f"devices: {trainer.world_size} x {name}{machines}, {type(trainer.strategy).__name__}"


def show_scores(found: Sequence[Mapping[str, float]]) -> None:
    """Print the scores that an evaluation returns."""
    table = Table("held-out images", Column("", justify="right"))
    for name, value in sorted(item for scores in found for item in scores.items()):
        table.add_row(name, f"{value:.{decimals(value)}f}")
    Console().print(table)


class CommandTrainer(VisionTrainer):
    """A trainer with a method per command, whose parameters are the command's options; `fit` is Lightning's."""

    def validate(  # type: ignore[override]
        self,
        model: VisionModule,
        dataloaders: VisionData | None = None,
        ckpt_path: str | None = None,
        verbose: bool = True,
        datamodule: VisionData | None = None,
        weights_only: bool | None = None,
        samples: int = 1,
    ) -> Any:
        """Evaluate a checkpoint on the held-out images.

        Args:
            model: the module.
            dataloaders: the data, if it is not given as `datamodule`.
            ckpt_path: checkpoint to evaluate; default: the base.
            verbose: print the scores.
            datamodule: the data.
            weights_only: load checkpoints without running code.
            samples: number of answers to sample per question in addition to the greedy one, as in `test`; 1: none.
        """
        if samples != 1:
            self.callbacks.append(SampledAnswers(samples, judging_evaluator(self, "samples")))
        found = super().validate(model, dataloaders, ckpt_path, False, datamodule, weights_only)
        if verbose and self.is_global_zero:
            show_scores(found)
        return found

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
        samples: int = 1,
        budgets: list[int] | None = None,
    ) -> Any:
        """Evaluate a checkpoint on held-out images, or compare two.

        Args:
            model: the module.
            dataloaders: unused; the data module provides them.
            ckpt_path: checkpoint to test; default: the base.
            verbose: print the scores.
            datamodule: the data.
            weights_only: load checkpoints without running code.
            against: another checkpoint, `base` or a results file of any detector, to compare with on the same images.
            resamples: bootstrap samples per interval of the comparison.
            samples: number of answers to sample per question in addition to the greedy one, for pass@k, votes and the
                most probable of k; 1: none.
            budgets: numbers of thinking tokens after which thinking is truncated and the answer requested.
        """
        for name, given in {"samples": samples != 1, "budgets": budgets is not None}.items():
            if given and against is not None:
                raise ConfigurationError(f"{name}: expected none with against, which compares greedy answers")
        if samples != 1:
            self.callbacks.append(SampledAnswers(samples, judging_evaluator(self, "samples")))
        if budgets is not None:
            thinking = ThinkingBudget(budgets, judging_evaluator(self, "budgets"))
            thinking.check(model)
            self.callbacks.append(thinking)
        silent = partial(
            super().test, model, dataloaders, verbose=False, datamodule=datamodule, weights_only=weights_only
        )

        def test(ckpt_path: str | None, verbose: bool) -> Any:
            found = silent(ckpt_path=ckpt_path)
            if verbose and self.is_global_zero:
                show_scores(found)
            return found

        if against is None:
            return test(ckpt_path=ckpt_path, verbose=verbose)
        return compare_checkpoints(
            self, test, ckpt_path, against, resamples=resamples, seed=model.seed, verbose=verbose
        )

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
        split: Literal["val", "test"] = "val",
    ) -> None:
        """Write answers to the run's folder.

        `vrft.cli.predict` has already applied `images` and `query` to the config.

        Args:
            model: the module.
            dataloaders: unused; the data module provides them.
            datamodule: the data.
            ckpt_path: checkpoint to load, or an exported folder; default: the base.
            weights_only: load checkpoints without running code.
            images: files and folders to ask about; default: the held-out images of the data.
            query: what to ask about each image: categories, an instruction or a question; default: the categories of
                the data.
            draw: write pictures of the images with the answers.
            split: without `images`, ask about the held-out images (`val`) or the images of `test`.
        """
        self.draw = draw
        if datamodule is not None:
            datamodule.predicts = split
        super().predict(model, None, datamodule, False, ckpt_path, weights_only)

    def filter(
        self,
        model: VisionModule,
        datamodule: VisionData,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        samples: int = 8,
        reward: str | None = None,
        success: float | None = None,
        lowest: float = 0.1,
        highest: float = 0.9,
    ) -> None:
        """Sample answers to each training sample, and write their success rates, for `data.keep`.

        Args:
            model: the module.
            datamodule: its data.
            ckpt_path: checkpoint to load; default: the base.
            weights_only: load checkpoints without running code.
            samples: number of answers to each training sample.
            reward: name in `model.rewards` of the reward that defines success; default: that of `model.difficulty`.
            success: smallest score of that reward that counts as a success; default: that of `model.difficulty`, if it
                has the same reward, or 0.5.
            lowest: minimum success rate of a sample to keep.
            highest: maximum success rate of a sample to keep.
        """
        if not isinstance(datamodule, RecordData):
            raise ConfigurationError(f"data: filter needs records of files, which {type(datamodule).__name__} has not")
        if datamodule.examples:
            raise ConfigurationError("data.examples: expected 0 with filter; examples of a training batch change")
        if datamodule.keep is not None:
            raise ConfigurationError("data.keep: expected null with filter, which samples answers to all samples")
        callback = Filter(samples, rule_of(model.difficulty, reward, success, lowest, highest))
        callback.check(model)
        self.callbacks.append(callback)
        datamodule.predicts = "train"
        super().predict(model, None, datamodule, False, ckpt_path, weights_only)

    def serve_command(self, model: VisionModule, datamodule: VisionData) -> None:
        """Print how to start the servers that the model's engine names, without loading anything.

        Args:
            model: the module, with a `vrft.rollout.VLLMServer`.
            datamodule: its data.
        """
        examples = datamodule.examples if isinstance(datamodule, RecordData) else 0
        print(serve_commands(model.engine, model.policy, 1 + examples), end="")

    def doctor(
        self, model: VisionModule, datamodule: VisionData, probe: int = 48, gpu_memory: float | None = None
    ) -> None:
        """Load everything as `fit` does, and look for mistakes before a long run.

        Args:
            model: the module.
            datamodule: its data.
            probe: number of prompts that the model answers, to find out whether its boxes fit another reading of the
                data better; 0: none.
            gpu_memory: memory, in GB, of the GPU that the run is meant for; default: this machine's GPU, if any.
        """
        self.exit_code = run_doctor(self, model, datamodule, probe, gpu_memory)
