"""Checks of a parsed config."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jsonargparse import Namespace

from vrft.cli.config_checks import resolve_checkpoints
from vrft.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("step=1", " (did you mean {}/step=1.ckpt?)"),
        ("step=1.ckpt", " (did you mean {}/step=1.ckpt?)"),
        ("runs/x/step=1.ckpt", " (did you mean {}/step=1.ckpt?)"),
        ("step=2", ""),
    ],
)
def test_a_checkpoint_of_the_run_is_suggested(name: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "step=1.ckpt").touch()
    config = Namespace(ckpt_path=name, checkpoint=Namespace(dirpath=str(tmp_path)))
    said = f"ckpt_path: no such checkpoint: {name}{hint.format(tmp_path)}"
    with pytest.raises(ConfigurationError, match=f"^{re.escape(said)}$"):
        resolve_checkpoints(config)
