"""`python -m vrft fit|validate|test|predict|filter|doctor|serve-command`: a LightningCLI with one-line errors."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from omegaconf.errors import OmegaConfBaseException

from vrft.callbacks.checkpoint import RunCheckpoint
from vrft.callbacks.export import ExportHuggingFace
from vrft.callbacks.graceful_stop import GracefulStop
from vrft.callbacks.guards import Guards
from vrft.callbacks.held_out import HeldOutAnswers
from vrft.callbacks.predictions import Predictions
from vrft.callbacks.resources import Resources
from vrft.callbacks.run_progress import RunProgress
from vrft.callbacks.save_config import SaveResolvedConfig
from vrft.callbacks.skipped_steps import SkippedSteps
from vrft.callbacks.summary import Summary
from vrft.callbacks.transcripts import Transcripts
from vrft.cli.argv import option_values
from vrft.cli.config_checks import check_seed, check_trust, resolve_checkpoints
from vrft.cli.config_files import hiding_contents
from vrft.cli.config_parser import ConfigParser, harden_parsing, hiding_secrets, import_classes
from vrft.cli.fit import finish_run, print_stopped
from vrft.cli.harmless import silence_harmless
from vrft.cli.own_code import own_error
from vrft.cli.parser_errors import find_user_error, message_lines
from vrft.cli.predict import keep_others_predictions, use_exported_folder, use_images
from vrft.cli.run_folder import RunFolder
from vrft.cli.settings_digest import settings_digest
from vrft.cli.trainer import TRAINER_DEFAULTS, CommandTrainer, describe_devices
from vrft.cli.trainer_settings import check_callbacks, check_early_stopping, check_trainer_settings
from vrft.data import VisionData
from vrft.errors import ConfigurationError, RolloutFailed
from vrft.evaluators import Evaluator
from vrft.loggers import CSVLogger, WandbLogger
from vrft.run_dir import RunDir
from vrft.tasks import Task
from vrft.training.module import VisionModule
from vrft.training.progress_bar import PhaseProgressBar
from vrft.training.trainer import Stopped
from vrft.utils.notices import Notices, keeping_notices
from vrft.utils.own_code import check_overrides

WITHOUT_RUN = ("doctor", "serve_command")
"""Commands that run in one process, regardless of the configured number."""

GIVEN = ("model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders")
"""Parameters of the trainer's methods that are not options."""

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Error numbers of a disk that is full or has become read-only."""


def run(args: Sequence[str]) -> int:
    """Run a command and return its exit code: 2 after a one-line error about a setting, 1 if the disk is full.

    Args:
        args: the arguments, as returned by `vrft.cli.first_checks.prepare`.
    """
    silence_harmless()
    harden_parsing()
    import_classes()
    try:
        with RunFolder() as folder, keeping_notices() as notices:
            trainer = run_cli(args, folder, notices)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning exits with 1
            return 128 + signal.SIGINT
        raise
    except Exception as error:
        return exit_code_of(error)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and (said := logger.finish()) and trainer.is_global_zero:
            print(said)
    # Lightning kills all ranks that it started as soon as one exits with a code other than 0
    return trainer.exit_code if trainer.is_global_zero else 0


def exit_code_of(error: Exception) -> int:
    """Print one line about an error that the user can act on and return the exit code. Re-raise any other error."""
    if isinstance(error, ValueError | OmegaConfBaseException) and (found := find_user_error(error)) is not None:
        print(f"vrft: {message_lines(found)}", file=sys.stderr)
        return 2
    if isinstance(error, MisconfigurationException):  # Lightning raises it for settings that don't fit the data
        print(f"vrft: trainer: {message_lines(error)}", file=sys.stderr)
        return 2
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        print(f"vrft: can't write {error.filename or 'to the disk'}: {error.strerror}", file=sys.stderr)
        return 1
    if (said := own_error(error)) is not None:
        print(f"vrft: {message_lines(ValueError(said))}", file=sys.stderr)
        return 1
    raise error


def run_cli(args: Sequence[str], folder: RunFolder, notices: Notices) -> CommandTrainer:
    """Parse the arguments, run the command and return its trainer."""
    callbacks = [Summary(), HeldOutAnswers(), ExportHuggingFace()]
    if args[0] == "predict":
        callbacks.append(Predictions())
    cli = VRFTCLI(
        VisionModule,
        VisionData,
        trainer_class=CommandTrainer,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveResolvedConfig,
        trainer_defaults=TRAINER_DEFAULTS | {"callbacks": callbacks},
        parser_class=ConfigParser,
        parser_kwargs={"parser_mode": "omegaconf+", "allow_abbrev": False, "prog": "python -m vrft"},
        auto_configure_optimizers=False,
        seed_everything_default=0,
        args=args[1:],
        run=False,  # a parser for all commands would check every value again
        command=args[0],
        folder=folder,
        notices=notices,
    )
    try:
        cli.run_command()
    finally:
        cli.model.rollouts.close()
    return cli.trainer


class VRFTCLI(LightningCLI):
    """Shares one task between model and data, gives each run a folder, and evaluates before and after training."""

    trainer: CommandTrainer
    model: VisionModule
    datamodule: VisionData

    def __init__(self, *args: Any, command: str, folder: RunFolder, notices: Notices, **kwargs: Any) -> None:
        self.command, self.folder, self.notices = command, folder, notices
        super().__init__(*args, **kwargs)

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
                "checkpoint.mode": "max",  # for all default held-out scores, larger is better
            }
        )
        self.options = parser.add_method_arguments(CommandTrainer, self.command, skip=set(GIVEN))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, choose the run's folder, and parse again if it differs from the requested one."""
        self.args: list[str] = args
        self._parse(parser, args)
        config = self.config
        check_seed(config.seed_everything)
        configs, resumes = option_values(args, "--config"), config.get("ckpt_path") is not None
        requested, num_nodes = Path(config.run_dir), config.trainer.num_nodes
        chosen = self.folder.choose(self.command, requested, resumes=resumes, configs=configs, num_nodes=num_nodes)
        if str(chosen) != config.run_dir:
            self._parse(parser, [*args, f"--run_dir={chosen}"])
            config = self.config
        check_trainer_settings(config.trainer, config.run_dir, self.command == "fit")

    def _parse(self, parser: LightningArgumentParser, args: list[str]) -> None:
        prints = any(arg.startswith("--print_config") for arg in args)
        with hiding_contents(args), hiding_secrets() if prints else nullcontext():
            super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        config = self.config
        check_trust(config, self.args)
        if config.trainer.default_root_dir is None:
            config.trainer.default_root_dir = config.run_dir
        if config.trainer.max_epochs is None:
            config.trainer.max_epochs = -1  # Lightning's default is 1000, with a warning
        if self.command != "serve_command":
            self.folder.make_writable(Path(config.run_dir))
        if self.command == "fit":
            self.folder.make_writable(Path(config.checkpoint.dirpath))
        if self.command in WITHOUT_RUN:
            return
        config.weights_only = True
        if self.command == "predict":
            keep_others_predictions(config)
            use_images(config)
            use_exported_folder(config)
        resolve_checkpoints(config)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, ModuleNotFoundError) as error:  # from Lightning's logger, or as wrapped by the parser
            if "Neither `tensorboard` nor `tensorboardX` is available" not in str(error):
                raise
            raise ConfigurationError("trainer.logger: TensorBoardLogger needs `pip install tensorboard`") from error
        check_callbacks(self.trainer.callbacks)
        for callback in self.trainer.callbacks:
            check_overrides(callback, Evaluator if isinstance(callback, Evaluator) else Callback)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.config.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(PhaseProgressBar())
        if self.command == "fit":
            self.trainer_defaults["callbacks"] += [Resources(), GracefulStop(), RunProgress()]
        if self.command in ("predict", "filter"):
            kwargs["logger"] = False  # these commands compute no metrics
        if self.command in WITHOUT_RUN:
            kwargs |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except ConfigurationError:
            raise
        except (ValueError, TypeError, MisconfigurationException) as error:  # e.g. for the name of a strategy
            if "No supported gpu backend" in str(error):
                raise ConfigurationError("trainer.accelerator: no GPU here; add --config trainer/cpu") from error
            raise ConfigurationError(f"trainer: {error}") from error
        if self.command not in WITHOUT_RUN:
            rank_zero_info(describe_devices(trainer))
        needs_metrics = bool(trainer.loggers) or self.command == "fit"  # the report needs them
        if needs_metrics and not any(isinstance(logger, CSVLogger) for logger in trainer.loggers):
            trainer.loggers = [*trainer.loggers, CSVLogger(trainer.default_root_dir, name="logs")]
        return trainer

    def run_command(self) -> None:
        """Call the trainer's method for the command, for `fit` with the work before and after it."""
        options = {name: self.config_init[name] for name in self.options}
        method = getattr(self.trainer, self.command)
        if self.command in ("test", "filter"):
            self.model.settings = settings_digest(self.parser, self.config)
        with suppress(Stopped, RolloutFailed):
            if self.command == "fit":
                self.before_fit()
            try:
                method(model=self.model, datamodule=self.datamodule, **options)
            except SystemExit as error:  # Lightning raises it after a KeyboardInterrupt
                if self.command == "fit" and isinstance(error.__context__, KeyboardInterrupt):
                    self.say_interrupted()
                raise
            if self.command == "fit":
                self.after_fit()
        if self.trainer.stopped is not None and self.trainer.is_global_zero:
            print_stopped(RunDir.of(self.trainer), self.trainer.stopped, self.last_checkpoint)

    def say_interrupted(self) -> None:
        """Print, after a second Ctrl-C, which step is saved and how to resume."""
        if self.trainer.is_global_zero:
            saved = RunCheckpoint.of(self.trainer).last_saved_step
            what = f"step {saved} is saved" if saved else "this process has saved no step"
            reason = f"interrupted after step {self.trainer.global_step}; {what}"
            print_stopped(RunDir.of(self.trainer), reason, self.last_checkpoint)

    @property
    def last_checkpoint(self) -> Path:
        return Path(self.config.checkpoint.dirpath) / "last.ckpt"

    def before_fit(self) -> None:
        if self.trainer.is_global_zero:  # report invalid files before the evaluation of the base
            self.trainer.check_data(self.model, self.datamodule)
        if self.config.ckpt_path is None:
            self.trainer.validate(self.model, self.datamodule, verbose=False)
            check_early_stopping(self.trainer)
        self.notices.write_to(RunDir.of(self.trainer).data_notices)

    def after_fit(self) -> None:
        if self.trainer.stopped is None:
            finish_run(self.trainer, self.model, self.datamodule, self.last_checkpoint)
