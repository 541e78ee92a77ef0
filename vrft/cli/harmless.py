"""Warnings and log lines: those that a user of vrft can't act on, and secrets in the others."""

from __future__ import annotations

import logging
import re
import warnings
from typing import Any

from vrft.utils.display import visible
from vrft.utils.redact import redact

HARMLESS = (
    "LightningCLI's args parameter is intended to run",  # tests call `main([...])` as the command line does
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # lightning 2.6 on torch 2.13
    r"Found \d+ module\(s\) in eval mode at the start of training",  # the frozen reference
    "The '.*_dataloader' does not have many workers",  # one image per prompt; --data.num_workers is there
    r"`(is_)?gradient_checkpointing\w*` is deprecated",  # the name that transformers 5.18 and peft know
    "The `srun` command is available on your system",
    "Using ModelCheckpoint with manual optimization",  # the state between rollouts is the one to keep
    "Checkpoint directory .* exists and is not empty",  # a resumed run
)


COLOUR = re.compile(r"\x1b\[[\d;]*m")
"""Escape sequences by which other libraries colour their messages."""

MAKE_RECORD = logging.getLogRecordFactory()
FORMAT_WARNING = warnings.formatwarning


def hide_secrets() -> None:
    """Hide secrets and control characters in log records and warnings from now on, of every library."""
    logging.setLogRecordFactory(_redacted_record)
    warnings.formatwarning = _redacted_warning


def _redacted_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = MAKE_RECORD(*args, **kwargs)
    try:
        text = record.getMessage()
    except Exception:  # arguments that don't fit, or whose __str__ fails: its handler reports them
        return record
    if (hidden := _plain(text)) != text:
        record.msg, record.args = hidden, None
    return record


def _redacted_warning(*args: Any, **kwargs: Any) -> str:
    return _plain(FORMAT_WARNING(*args, **kwargs))


def _plain(text: str) -> str:
    """Return a text without colours, secrets and control characters."""
    return visible(redact(COLOUR.sub("", text)))


def silence_harmless() -> None:
    """Hide the warnings of `HARMLESS`, Lightning's advertisement of litlogger, and transformers' report on weights.

    Weights that the report lists end the command with an error that names them.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)
    logging.getLogger("transformers.modeling_utils").addFilter(lambda record: "LOAD REPORT" not in record.getMessage())
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
