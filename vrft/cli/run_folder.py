"""Choose, create and lock the folder of a run."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vrft.errors import ConfigurationError
from vrft.run_dir import RunDir
from vrft.utils.distributed import is_first_node, is_rank_zero
from vrft.utils.regular_files import read_regular

LOCK = ".lock"
"""Name of the file that rank zero locks while a run writes to its folder. It stays afterwards."""

LAUNCH = ".launch"
"""Name of the file by which the other ranks of a launch recognise the folder that rank zero chose."""

INHERITED = "VRFT_RUN_DIR"
"""Environment variable with the folder that rank zero chose, for the ranks that it starts."""

LAUNCH_VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
"""Environment variables that are equal for all ranks of a launch."""

LOCK_SECONDS = 0.3
"""Seconds to wait for a lock, which another rank may hold for a moment to test it."""

RANK_ZERO_SECONDS = 600.0
"""Seconds that other ranks wait for rank zero's choice.

One machine may import torch minutes before another, and NFS may hide a new folder for a minute.
"""


class RunFolder:
    """The folder of a command. It is unlocked when the command ends, and removed if the command was refused."""

    def __init__(self) -> None:
        self.lock: FileLock | None = None
        self.created: list[Path] = []
        """Folders that this command has created, parents first."""

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.lock is not None:
            os.environ.pop(INHERITED, None)
            file = Path(self.lock.lock_file)
            file.with_name(LAUNCH).unlink(missing_ok=True)
            if kind is not None and file.parent in self.created and not any(_content(file.parent)):
                file.unlink(missing_ok=True)
            self.lock.release()
        if kind is not None:
            for folder in reversed(self.created):
                with suppress(OSError):  # not empty, or removed by another rank
                    folder.rmdir()

    def choose(
        self, command: str, requested: Path, *, resumes: bool, configs: Iterable[str], num_nodes: int = 1
    ) -> Path:
        """Return the folder of a command's run. Create and lock it if the command trains.

        A folder with a run is never overwritten or shared: a new `fit` takes the first of `DIR`, `DIR-2`, `DIR-3` and
        so on that has no run and is not locked by another process. Other commands, and a `fit` that resumes, use the
        latest of these folders, or the run whose config.yaml is given. A folder has a run if it has a config.yaml.

        All ranks use the same folder: rank zero chooses it, locks it and writes the name of the launch to it, by which
        the others find it. Ranks that rank zero starts inherit the choice.

        Args:
            command: the command.
            requested: the value of `run_dir`, resolved.
            resumes: whether `fit` resumes a run.
            configs: the configs that the command line names.
            num_nodes: number of machines that the run uses.

        Raises:
            ConfigurationError: another process writes to the run to resume, or the folder can't be written.
        """
        chooses = is_rank_zero() and (num_nodes == 1 or is_first_node())
        if command == "fit" and not resumes:
            return self._claim_free(requested) if chooses else _choice_of_rank_zero(requested)
        own = RunDir(requested).config in map(Path, configs)
        chosen = requested if own else _latest_run(requested)
        if command == "fit" and chooses and not self._acquire(chosen):
            raise ConfigurationError(f"run_dir: another process writes to {chosen}; wait until it has ended")
        return chosen

    def _claim_free(self, requested: Path) -> Path:
        chosen = next(folder for folder in _run_dirs(requested) if self._claim(folder))
        (chosen / LAUNCH).write_text(launch_name(), encoding="utf-8")
        os.environ[INHERITED] = str(chosen)
        return chosen

    def _claim(self, folder: Path) -> bool:
        """Lock a folder unless it has a run. Return whether this process holds the lock."""
        if RunDir(folder).config.exists() or not self._acquire(folder):
            return False
        if RunDir(folder).config.exists():  # another run may have used the folder before this lock
            assert self.lock is not None
            self.lock.release()
            self.lock = None
            return False
        return True

    def _acquire(self, folder: Path) -> bool:
        """Create a folder if it is absent, and lock it if its file system has locks.

        Returns:
            Whether this command may write to the folder, i.e. no other process holds the lock.

        Raises:
            ConfigurationError: the folder or its lock can't be written.
        """
        self.make_writable(folder)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            return False
        except PermissionError as error:  # another user's file
            raise ConfigurationError(f"run_dir: can't write to {folder / LOCK}: {error.strerror}") from error
        except OSError as error:
            warnings.warn(
                f"run_dir: the file system of {folder} has no locks ({error.strerror}): "
                "runs that start at the same time may write to the same folder",
                stacklevel=2,
            )
        self.lock = lock
        return True

    def make_writable(self, folder: Path) -> None:
        """Create a folder, and check that a run can write to it.

        Raises:
            ConfigurationError: the folder can't be created or written.
        """
        absent = [*itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents))]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.created += reversed(absent)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ConfigurationError(f"run_dir: can't write to {folder}: {error.strerror}") from error


def launch_name() -> str:
    """Return a name that all ranks of this launch share."""
    return "\n".join(os.environ.get(name, "") for name in LAUNCH_VARIABLES)


def _choice_of_rank_zero(requested: Path) -> Path:
    """Return the folder that rank zero has chosen.

    Raises:
        ConfigurationError: rank zero has not chosen a folder within `RANK_ZERO_SECONDS`.
    """
    if inherited := os.environ.get(INHERITED):
        return Path(inherited)
    end = time.monotonic() + RANK_ZERO_SECONDS
    while time.monotonic() < end:
        for folder in _run_dirs(requested):
            if not folder.exists():
                break
            if _is_of_this_launch(folder):
                return folder
        time.sleep(0.05)
    raise ConfigurationError(
        f"run_dir: rank 0 has chosen no folder like {requested} within {RANK_ZERO_SECONDS:g} s; "
        "all ranks need the same run_dir, on a file system that they share"
    )


def _is_of_this_launch(folder: Path) -> bool:
    """Return whether rank zero of this launch has locked a folder, unlike a killed launch with the same name."""
    launch = folder / LAUNCH
    try:
        if read_regular(launch).decode(errors="replace") != launch_name():
            return False
    except OSError:
        return False
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            return False
    except OSError:  # includes Timeout; on a file system without locks, rely on the name alone
        return True


def _content(folder: Path) -> Iterator[Path]:
    """Yield the content of a folder except the lock and empty folders."""
    for path in folder.iterdir():
        if path.name != LOCK and not (path.is_dir() and not path.is_symlink() and not any(path.iterdir())):
            yield path


def _run_dirs(requested: Path) -> Iterator[Path]:
    """Yield `DIR`, `DIR-2`, `DIR-3` and so on."""
    requested = requested if requested.name else requested.resolve()
    yield requested
    for number in itertools.count(2):
        yield requested.with_name(f"{requested.name}-{number}")


def _latest_run(requested: Path) -> Path:
    """Return the last of the consecutive folders with a run, or `requested` if it has no run."""
    runs = [*itertools.takewhile(lambda folder: RunDir(folder).config.exists(), _run_dirs(requested))]
    return runs[-1] if runs else requested
