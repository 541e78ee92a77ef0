"""`python -m vrft fit|validate|test|predict`: a LightningCLI whose errors are one line."""

from __future__ import annotations

import errno
import logging
import re
import signal
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from omegaconf.errors import OmegaConfBaseException

from vrft.callbacks.checkpoint import RunCheckpoint
from vrft.callbacks.export import ExportHuggingFace
from vrft.callbacks.graceful_stop import GracefulStop
from vrft.callbacks.guards import Guards
from vrft.callbacks.held_out import HeldOutAnswers
from vrft.callbacks.predictions import Predictions
from vrft.callbacks.resources import Resources
from vrft.callbacks.save_config import SaveResolvedConfig
from vrft.callbacks.skipped_steps import SkippedSteps
from vrft.callbacks.summary import Summary
from vrft.callbacks.transcripts import Transcripts
from vrft.cli.argv import choose_run_dir
from vrft.cli.parser_errors import find_user_error, message_lines, shorten
from vrft.cli.predict import normalise_argv, use_exported_folder, use_images
from vrft.data import VisionData
from vrft.errors import ConfigurationError, RolloutFailed
from vrft.loggers import CSVLogger, WandbLogger
from vrft.report import write_report
from vrft.report.model_card import write_card
from vrft.tasks import Task
from vrft.training.module import VisionModule
from vrft.training.progress_bar import PhaseProgressBar
from vrft.training.trainer import Stopped, VisionTrainer

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": None,
    "val_check_interval": 100,  # in rollouts, whatever the size of the data set
    "enable_model_summary": False,
    "inference_mode": False,  # tensors made under it can't be trained on later
    "use_distributed_sampler": False,  # the data modules shard by themselves
    "plugins": {"class_path": "vrft.training.checkpoint_io.AtomicCheckpointIO"},
    "logger": [
        {
            "class_path": "vrft.loggers.CSVLogger",
            "init_args": {"save_dir": "${.....run_dir}", "name": "logs"},
        },
        {"class_path": "vrft.loggers.WandbLogger", "init_args": {"save_dir": "${.....run_dir}"}},
    ],
}


HARMLESS = (
    "LightningCLI's args parameter is intended to run",  # tests call `main([...])` as the command line does
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # lightning 2.6 on torch 2.13
    r"Found \d+ module\(s\) in eval mode at the start of training",  # the frozen reference
    "The '.*_dataloader' does not have many workers",  # one image per prompt; --data.num_workers is there
    r"`(is_)?gradient_checkpointing\w*` is deprecated",  # the name that transformers 5.18 and peft know
    "The `srun` command is available on your system",
    "Using ModelCheckpoint with manual optimization",  # the state between rollouts is the one to keep
    "Checkpoint directory .* exists and is not empty",  # a continued run
)


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a disk says that is full, or that may not be written to any more."""

NOT_SAID = re.compile(r"--model\.policy\.(\w+)=null$")
"""A part of the policy that is switched off, which jsonargparse (4.53) takes for a class's name."""

TRUSTS = "model.init_args.policy.init_args.trust_remote_code"


class OneLineParser(LightningArgumentParser):
    """Says in one line which field is wrong and what was expected, instead of pages of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigurationError(shorten(message, [action.dest for action in self._actions]))


class VRFTCLI(LightningCLI):
    """One task for model and data, one folder for a run, the same evaluation before and after."""

    trainer: VisionTrainer
    model: VisionModule
    datamodule: VisionData

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str, help="folder for everything that the run writes")
        parser.add_subclass_arguments(Task, "task", required=True)
        parser.link_arguments("task", "model.init_args.task", apply_on="instantiate")
        parser.add_lightning_class_args(Transcripts, "transcripts")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(SkippedSteps, "skipped_steps")
        parser.add_lightning_class_args(Guards, "guards")
        parser.set_defaults(
            {
                "checkpoint.dirpath": "${..run_dir}/checkpoints",
                "checkpoint.filename": "{step}",
                "checkpoint.every_n_train_steps": 20,
                "checkpoint.save_last": "link",
                "checkpoint.enable_version_counter": False,
                "checkpoint.mode": "max",  # of every held-out score the larger is the better one
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.words: list[str] = args
        super().parse_arguments(parser, [NOT_SAID.sub(r"--model.policy={\1: null}", word) for word in args])

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.get(TRUSTS) and not any("trust_remote_code" in word for word in self.words):
            raise ConfigurationError(
                "model.policy.trust_remote_code: a file can't say that code of strangers may run; if you mean it, say "
                "--model.policy.trust_remote_code=true on the command line"
            )
        if config.trainer.default_root_dir is None:
            config.trainer.default_root_dir = config.run_dir
        if self.subcommand == "serve_command":
            return
        for folder in (config.run_dir, config.checkpoint.dirpath) if self.subcommand == "fit" else (config.run_dir,):
            try_to_write(Path(folder))
        if self.subcommand == "doctor":
            return
        config.weights_only = True
        if self.subcommand == "predict":
            use_images(config)
            use_exported_folder(config)
        if config.ckpt_path in ("last", "best"):
            config.ckpt_path = str(Path(config.checkpoint.dirpath) / f"{config.ckpt_path}.ckpt")
        against = config.against if self.subcommand == "test" else None
        for field, path in (("ckpt_path", config.ckpt_path), ("against", None if against == "base" else against)):
            if path is not None and not Path(path).exists():
                hint = "; checkpoint.monitor makes it" if Path(path).name == "best.ckpt" else ""
                raise ConfigurationError(f"{field}: no such checkpoint: {path}{hint}")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        ours = ("doctor", "serve_command")
        return {**LightningCLI.subcommands(), **{name: {"model", "datamodule"} for name in ours}}

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, ModuleNotFoundError) as error:  # of Lightning's logger, or what the parser makes of it
            if "Neither `tensorboard` nor `tensorboardX` is available" not in str(error):
                raise
            raise ConfigurationError("trainer.logger: TensorBoardLogger needs `pip install tensorboard`") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.config[self.subcommand].trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(PhaseProgressBar())
        if self.subcommand == "fit":
            self.trainer_defaults["callbacks"] += [Resources(), GracefulStop()]
        if self.subcommand in ("doctor", "serve_command"):  # look at a run on several processes from one
            kwargs |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except ConfigurationError:
            raise
        except (ValueError, MisconfigurationException) as error:  # of a name that it knows nothing of
            raise ConfigurationError(f"trainer: {error}") from error
        if trainer.loggers and not any(isinstance(logger, CSVLogger) for logger in trainer.loggers):
            trainer.loggers = [*trainer.loggers, CSVLogger(trainer.default_root_dir, name="logs")]
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the settings in a checkpoint override the command line."""

    def _run_subcommand(self, subcommand: str) -> None:
        with suppress(Stopped, RolloutFailed):
            super()._run_subcommand(subcommand)
        if self.trainer.stopped is not None and self.trainer.is_global_zero:
            print(f"stopped: {self.trainer.stopped}")
            if self.last_checkpoint.exists():
                config = Path(self.trainer.default_root_dir) / "config.yaml"
                print(f"checkpoint: {self.last_checkpoint}")
                print(f"to go on: python -m vrft fit --config {config} --ckpt_path last")

    @property
    def last_checkpoint(self) -> Path:
        return Path(self.config[self.subcommand].checkpoint.dirpath) / "last.ckpt"

    def before_fit(self) -> None:
        if _get_rank() in (None, 0):  # all that is wrong with the files is said before the base is evaluated
            self.trainer.check_data(self.model, self.datamodule)
        if self.config.fit.ckpt_path is None:
            self.trainer.validate(self.model, self.datamodule, verbose=False)

    def after_fit(self) -> None:
        if self.trainer.stopped is not None:
            return
        summary = next(callback for callback in self.trainer.callbacks if isinstance(callback, Summary))  # type: ignore[attr-defined]
        loop = self.trainer.fit_loop
        if loop.restarting:  # nothing was left to train, and Lightning has not counted the last step and its epoch
            loop.epoch_loop._batches_that_stepped += 1
            loop.epoch_progress.increment_completed()
        if summary.tuned_step != self.trainer.global_step:
            self.trainer.validate(self.model, self.datamodule, verbose=False)
        run = Path(self.trainer.default_root_dir)
        best = next(saves for saves in self.trainer.checkpoint_callbacks if isinstance(saves, RunCheckpoint)).best
        if self.trainer.is_global_zero and summary.base is not None and summary.tuned:
            print(f"summary: {summary.write(run, best)}")
        if self.trainer.is_global_zero:
            write_card(run / "export", run, self.model.task.template, adapter=False, step=self.trainer.global_step)
            try_to_report(run)
            print(f"checkpoint: {self.last_checkpoint}")
            if best is not None:
                print(f"best by {best['metric']}: {best['checkpoint']} ({best['score']:.4f})")
                if not Path(best["checkpoint"]).samefile(self.last_checkpoint):
                    print(f"export/ is of the last step; of the best: python -m vrft export {run} --ckpt best")


def try_to_report(run: Path) -> None:
    """Write the run's report, or warn that it can't be written."""
    try:
        print(f"report: {write_report(run)}")
    except OSError as error:
        rank_zero_warn(f"no report is written: {error}")


def try_to_write(folder: Path) -> None:
    """Raise ConfigurationError if a run can't write to a folder, before it has done hours of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigurationError(f"run_dir: can't write to {folder}: {error.strerror}") from error


def run(args: list[str]) -> int:
    """Run one command; its exit code is 2 after one line about what is wrong."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    try:
        cli = VRFTCLI(
            VisionModule,
            VisionData,
            trainer_class=VisionTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveResolvedConfig,
            trainer_defaults={
                **TRAINER_DEFAULTS,
                "callbacks": [Summary(), HeldOutAnswers(), ExportHuggingFace(), Predictions()],
            },
            parser_class=OneLineParser,
            parser_kwargs={"parser_mode": "omegaconf+", "allow_abbrev": False, "prog": "python -m vrft"},
            auto_configure_optimizers=False,
            seed_everything_default=0,
            args=choose_run_dir(normalise_argv(args)),
        )
    except (ValueError, OmegaConfBaseException) as error:
        print(f"vrft: {message_lines(find_user_error(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"vrft: can't write {error.filename or 'to the disk'}: {error.strerror}", file=sys.stderr)
        return 1
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning exits with 1
            return 128 + signal.SIGINT
        raise
    for logger in cli.trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.finish()
    # Lightning kills all ranks that it started as soon as one of them ends with another code.
    return cli.trainer.exit_code if cli.trainer.is_global_zero else 0
