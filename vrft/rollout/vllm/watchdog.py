"""Run a command, and end all its processes once the process that started it has ended, for whatever reason.

Run as a separate script, `python -I watchdog.py PID COMMAND…`, because a process that is killed by SIGKILL can't end
others.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress

INTERVAL = 0.25  # seconds between two checks of the parent
GRACE = 10.0  # seconds between SIGTERM and SIGKILL
PR_SET_PDEATHSIG = 1


def prepare_child() -> None:
    """Make Linux kill the command if this process is killed, and unblock the signals that are blocked here."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to all running processes of a group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a command and the processes that it started."""
    signal_group(child.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    signal_group(child.pid, signal.SIGKILL)
    child.wait()


def main(parent: int, command: list[str]) -> int:
    """Run the command, and return its exit code, or 128 plus the number of the signal that ended it."""
    ending = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}  # not a constant: Windows has no SIGHUP
    awaited = {*ending, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=prepare_child)
    while child.poll() is None and os.getppid() == parent:
        found = signal.sigtimedwait(awaited, INTERVAL)
        if found is not None and found.si_signo in ending:
            break
    end(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
