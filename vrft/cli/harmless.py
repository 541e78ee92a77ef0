"""Tidy the output of other libraries: hide secrets, and warnings, log lines and bars that don't help users."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vrft.utils.display import visible
from vrft.utils.own_code import is_own_code
from vrft.utils.redact import redact

HARMLESS = (
    "LightningCLI's args parameter is intended to run",  # tests call `main([...])` as the command line does
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # lightning 2.6 on torch 2.13
    r"Found \d+ module\(s\) in eval mode at the start of training",  # the frozen reference
    "The '.*_dataloader' does not have many workers",  # images are few, and --data.num_workers exists
    r"`(is_)?gradient_checkpointing\w*` is deprecated",  # transformers 5.18 and peft need this name
    "Consider setting `persistent_workers=True`",  # workers restart at each epoch to get its order
    "The `srun` command is available on your system",
    "Using ModelCheckpoint with manual optimization",  # checkpoints are saved between rollouts
    "Checkpoint directory .* exists and is not empty",  # a resumed run
)


NOISE: dict[str, tuple[str, ...]] = {
    "lightning.pytorch.utilities.rank_zero": ("GPU available: ", "TPU available: ", "-----", "💡"),
    "lightning.fabric.utilities.rank_zero": ("-----",),
    "lightning.fabric.utilities.distributed": ("Initializing distributed: ",),
    "lightning.fabric.utilities.seed": ("Seed set to ", "[rank: "),
    "lightning.pytorch.accelerators.cuda": ("LOCAL_RANK: ",),
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward",),  # logged when peft imports it
}
"""Prefixes of hidden log lines, by logger. vrft's line about devices and config.yaml contain the same information."""

BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
"""Environment variables that turn progress bars off. Libraries read them when they are imported."""

COLOUR = re.compile(r"\x1b\[[\d;]*m")
"""Escape sequences with which other libraries colour their messages."""

MAKE_RECORD = logging.getLogRecordFactory()


def tidy_output() -> None:
    """Shorten warnings, hide secrets and control characters in warnings and log records, and hide bars in files.

    Called before libraries are imported, and by each command of a process, to show the warnings of each command.
    """
    logging.setLogRecordFactory(_redacted_record)
    for name in NOISE:
        logging.getLogger(name).addFilter(_is_useful)
    warnings.formatwarning = _WarningFormatter()
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it warns of a kernel that is not used
    if not sys.stderr.isatty():
        for name in BARS:
            os.environ.setdefault(name, "1")


@contextmanager
def restored_output() -> Iterator[None]:
    """Undo the effects of `tidy_output` and `silence_harmless` on the process after the block, except log filters."""
    format_warning, make_record = warnings.formatwarning, logging.getLogRecordFactory()
    bars = {name: os.environ.get(name) for name in BARS}
    try:
        yield
    finally:
        warnings.formatwarning = format_warning
        logging.setLogRecordFactory(make_record)
        for name, value in bars.items():
            if value is None:
                os.environ.pop(name, None)


def _is_useful(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(NOISE.get(record.name, ()))


def _redacted_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = MAKE_RECORD(*args, **kwargs)
    try:
        text = record.getMessage()
    except Exception:  # invalid arguments, or a failing __str__: the handler reports it
        return record
    if (hidden := _plain(text)) != text:
        record.msg, record.args = hidden, None
    return record


class _WarningFormatter:
    """Formats a warning as one paragraph without its source line, and a repeated warning as an empty text.

    A warning from a user's own code begins with its file and line.
    """

    def __init__(self) -> None:
        self.shown: set[str] = set()

    def __call__(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        file = Path(filename)
        place = f"{file.name}:{lineno}: " if is_own_code(file) else ""
        text = f"warning: {_plain(f'{place}{message}').strip()}\n"
        if text in self.shown:
            return ""
        self.shown.add(text)
        return text


def _plain(text: str) -> str:
    """Remove colours, secrets and control characters from a text."""
    return visible(redact(COLOUR.sub("", text)))


def silence_harmless() -> None:
    """Hide the warnings of `HARMLESS`, and transformers' report on weights.

    `vrft.utils.hub.check_loaded` raises an error for the weights in this report. Call this after importing Lightning.
    """
    warnings.formatwarning = _WarningFormatter()  # replaces Lightning's, which shows its own warnings unformatted
    logging.getLogger("transformers.modeling_utils").addFilter(_is_not_a_report)
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)


def _is_not_a_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
