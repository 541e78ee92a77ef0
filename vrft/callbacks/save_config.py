"""Save the resolved config of a run in its folder."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from vrft.loggers import WandbLogger
from vrft.run_dir import RunDir
from vrft.utils.redact import redact_settings
from vrft.utils.yaml_text import decode_yaml, encode_yaml


class SaveResolvedConfig(SaveConfigCallback):
    """Writes `config.yaml`: every field with its value, without secrets.

    Paths in the run's folder are written relative to `run_dir`, so that a rerun of the config can use another folder.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            config = decode_yaml(self.parser.dump(self.config, skip_none=False))
            run_dir = config["run_dir"]
            config = {**_relative_to(run_dir, redact_settings(config)), "run_dir": run_dir, "ckpt_path": None}
            path = RunDir.of(trainer).config
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(encode_yaml(config), encoding="utf-8")
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_hyperparams({name: config[name] for name in ("model", "data", "task", "trainer")})


def _relative_to(run_dir: str, value: Any) -> Any:
    """Replace `run_dir` at the start of every string in a config by an interpolation."""
    if isinstance(value, dict):
        return {key: _relative_to(run_dir, entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_relative_to(run_dir, entry) for entry in value]
    if isinstance(value, str) and (value == run_dir or value.startswith(f"{run_dir}/")):
        return "${run_dir}" + value.removeprefix(run_dir)
    return value
