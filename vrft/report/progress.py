"""The progress of a run: the file that `fit` updates, and its description."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from vrft.report.lines import Count, Number
from vrft.run_dir import RunDir
from vrft.utils.display import shell_word
from vrft.utils.regular_files import read_regular

SILENT_SECONDS = 300
"""A run without output for this many seconds, and for longer than ten steps take, has probably been killed."""


class Progress(msgspec.Struct):
    """The content of `progress.json`.

    Attributes:
        doing: training, evaluation, stopped or failed.
        step: number of completed optimizer steps.
        max_steps: optimizer steps of the whole run; None if epochs or time end it.
        rollouts: number of completed rollouts, or batches of SFT.
        seconds: seconds of training, summed over all parts of a resumed run.
        seconds_to_go: estimated remaining seconds.
        written: time of the last recorded step or evaluated batch, in seconds since 1970.
        reason: why the run failed.
        best_step: optimizer step of the best checkpoint, if the run keeps one.
    """

    doing: str
    step: Count
    rollouts: Count
    seconds: Number
    written: Number
    max_steps: Count | None = None
    seconds_to_go: Number | None = None
    reason: str | None = None
    best_step: Count | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the content of the file."""
        return msgspec.structs.asdict(self)


def read_progress(run: RunDir, problems: list[str]) -> Progress | None:
    """Read the progress of a run. Return None if the file does not exist or can't be read."""
    try:
        return msgspec.json.decode(read_regular(run.progress), type=Progress)
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(f"{run.progress.name} can't be read: {error.strerror}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        problems.append(f"{run.progress.name} can't be read")
    return None


def resume_command(run: RunDir) -> str | None:
    """Return the command that resumes a run, or None if its folder has no checkpoint."""
    if not (run.config.exists() and run.checkpoint("last").exists()):
        return None
    return f"python -m vrft fit --config {shell_word(str(run.config))} --ckpt_path last"


def describe(progress: Progress | None, ended: bool, now: float) -> dict[str, str | None]:
    """Return the state of a run in words for the page, and a notice, which may be None.

    Args:
        progress: the content of the file.
        ended: whether the run has written its summary.
        now: time in seconds since 1970.
    """
    if ended:
        return {"state": "finished", "notice": None}
    if progress is None:
        return {"state": "not finished when this was written", "notice": None}
    step = f"step {progress.step:,}" + (f" of {progress.max_steps:,}" if progress.max_steps else "")
    silence = max(0.0, now - progress.written)
    last = f"The last step was written at {_clock(progress.written)}, {duration(silence)} before this report"
    if progress.doing == "stopped":
        return {"state": f"stopped at {step}", "notice": f"The run was stopped at {step}."}
    if progress.doing == "failed":
        return {"state": f"failed at {step}", "notice": f"The run ended at {step} by {progress.reason}."}
    per_step = progress.seconds / max(progress.step, 1)
    if silence > max(SILENT_SECONDS, 10 * per_step):
        return {"state": f"silent since {step}", "notice": f"{last}, so the run has probably been killed."}
    rest = progress.seconds_to_go
    to_go = "" if rest is None else f", about {duration(rest)} to go"
    where = "evaluating" if progress.doing == "evaluation" else "training"
    notice = f"The run is still {where}: {step}, {duration(progress.seconds)} of training so far{to_go}. {last}."
    return {"state": f"{where}, {step}", "notice": notice}


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(min(max(seconds, 0), 4e9)))


def duration(seconds: float) -> str:
    """Return a duration in words.

    >>> duration(75), duration(3 * 3600 + 120), duration(30 * 3600)
    ('75 s', '3 h 2 min', '30 h 0 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
