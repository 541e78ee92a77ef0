"""Processes started by any launcher train like one process with the same global batch.

Lightning starts interpreters. The `python` of torchrun and srun forks instead.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from tests.helpers import ROOT, UNJUDGED, callback
from tests.helpers.fork_python import forking_python
from tests.helpers.forks import Fork
from tests.helpers.kills import Sends
from tests.helpers.ports import free_port
from tests.training.test_parallel import ROUNDING, checkpoint, distance, fit
from vrft.__main__ import main

SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"
code=$?
wait $! && exit $code
"""
"""A stand-in for srun with two tasks on one machine."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the data and a run of one process."""
    folder = tmp_path_factory.mktemp("launchers")
    assert main(fit(folder, "full", "one", UNJUDGED, steps=2)) == 0
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Path]:
    """Yield a `python` for launchers, in a folder of its own."""
    (tmp_path / "bin").mkdir()
    with forking_python(tmp_path / "bin") as stub:
        yield stub


def torchrun(words: list[str]) -> int:
    from torch.distributed.run import main as run

    run(words)
    return 0


def on_two(folder: Path, fragment: str, *more: str) -> list[str]:
    """Return the command of the same run on two processes, configured by a config in vrft/configs/trainer."""
    config = f"--config=trainer/{fragment}"
    return fit(folder, "full", "one", "--data.batch_size=2", config, "--trainer.accelerator=cpu", *more, steps=2)


def start(command: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str], code: int = 0) -> None:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == code, errors[-3000:]


def assert_like_one_process(folder: Path, run: Path) -> None:
    alone, together = checkpoint(folder / "full-one"), checkpoint(run)
    assert distance(alone["state_dict"], together["state_dict"]) < ROUNDING
    assert together["global_step"] == alone["global_step"] == 8


@pytest.mark.slow(seconds=12)
def test_lightning_starts_processes(folder: Path) -> None:
    command = on_two(folder, "ddp", UNJUDGED, "--trainer.devices=2", f"--run_dir={folder}/lightning")
    end(start([sys.executable, "-m", "vrft", *command], folder))
    assert_like_one_process(folder, folder / "lightning")


@pytest.mark.slow(seconds=12)
def test_two_torchrun_agents(folder: Path, tmp_path: Path, python: Path) -> None:
    where = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--nnodes=2", "--nproc-per-node=1"]
    command = on_two(folder, "multi_node", UNJUDGED, "--trainer.strategy=fsdp2", f"--run_dir={folder}/agents")
    words, by = [*where, "-m", "vrft", *command], {"PYTHON_EXEC": str(python)}
    agents = [Fork(torchrun, words, output=tmp_path / f"agent{i}", cwd=folder, **by) for i in range(2)]
    for agent in agents:
        assert agent.wait() == 0, agent.output.read_text()[-3000:]
    assert_like_one_process(folder, folder / "agents")


def test_a_slurm_job_ends_with_a_failing_rank_and_has_time_to_save(tmp_path: Path) -> None:
    script = ROOT / "docs" / "slurm.sh"
    asked = dict(re.findall(r" --([\w-]+)=(\S+)", " ".join(re.findall("^#SBATCH(.*)$", script.read_text(), re.M))))
    assert int(asked["signal"].removeprefix("USR1@")) >= 900
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$SRUN_CPUS_PER_TASK $@" > srun.txt\n')
    (tmp_path / "srun").chmod(0o755)
    job = {
        "SLURM_JOB_ID": "1",
        "SLURM_CPUS_PER_TASK": asked["cpus-per-task"],
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    end(start([str(script), "fit"], tmp_path, **job))
    assert (tmp_path / "srun.txt").read_text() == "8 --kill-on-bad-exit=1 python -m vrft fit --run_dir runs/job-1\n"


def test_torchrun_waits_for_the_step_that_a_signal_ends() -> None:
    """By default it kills its ranks after 30 seconds, and forwards no SIGUSR1."""
    header = (ROOT / "vrft" / "configs" / "trainer" / "multi_node.yaml").read_text()
    words = shlex.split(header.partition("# command:")[2].partition("# hardware:")[0].replace("\\\n#", " "))
    asked, _ = get_args_parser().parse_known_args(words[words.index("torchrun") + 1 :])
    assert {"SIGTERM", "SIGUSR1"} <= {*asked.signals_to_handle.split(",")}
    assert words[0] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=900"
    assert asked.shutdown_timeout is None  # torch 2.11 has no such option


@pytest.mark.slow(seconds=12)
def test_a_slurm_job_is_requeued_and_resumes(folder: Path, tmp_path: Path, python: Path) -> None:
    """The time limit ends the job in the first step, and SLURM runs the same script again."""
    for name, text in (("srun", SRUN), ("scontrol", f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "slurm.sh", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    job |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "MASTER_PORT": str(free_port())}
    job |= {"PATH": f"{tmp_path}:{python.parent}:{os.environ['PATH']}"}
    sends = callback(Sends, number=int(signal.SIGUSR1), after=0)
    script = [str(ROOT / "docs" / "slurm.sh"), *on_two(folder, "slurm", UNJUDGED, sends)]
    (tmp_path / "runs" / "job-4711").mkdir(parents=True)
    (tmp_path / "runs" / "job-4711" / "config.yaml").write_text("of a machine that broke before anything was saved")
    end(start(script, tmp_path, **job), 128 + signal.SIGUSR1)
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert checkpoint(tmp_path / "runs" / "job-4711")["global_step"] == 4
    end(start(script, tmp_path, **job))
    assert_like_one_process(folder, tmp_path / "runs" / "job-4711")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["job-4711"]
