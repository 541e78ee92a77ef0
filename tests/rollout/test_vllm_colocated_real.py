"""A real vLLM server that a run starts, as far as that works on a CPU, where vLLM has no sleep mode.

It refuses the flag, and falling asleep only pauses it. Everything else is real: the start, the routes for sleeping and
waking with tags, weights before the cache, a new start after its death, and its end.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.sleepy_server import is_alive
from tests.helpers.vllm_rollouts import REAL, a_policy, engine, gap, roll, train
from vrft.policy import LoRA
from vrft.rollout.vllm.command import CPU_FLAGS
from vrft.rollout.vllm.flags import Colocated

pytestmark = [REAL, pytest.mark.slow]

PROGRAM = """#!{python} -IS
import os, sys
open({pids!r}, "a").write(f"{{os.getpid()}}\\n")
words = [word for word in sys.argv[1:] if word != "--enable-sleep-mode"]
place = words.index("--gpu-memory-utilization")
del words[place : place + 2]
os.execv({vllm!r}, [{vllm!r}, *words, *{flags!r}])
"""


@pytest.mark.parametrize("lora", [LoRA(r=8), None], ids=["lora", "full"])
@pytest.mark.filterwarnings("ignore:the vLLM server is started again")
def test_a_real_server_is_started_woken_restarted_and_ended(
    lora: LoRA | None, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vrft.rollout.vllm.engine.check_sleep_mode", lambda *_: None)
    home = Path(os.environ.get("VLLM_ENV", ROOT / ".venv-vllm")) / "bin"
    more = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    for name, value in (more | {"PATH": f"{home}:{os.environ['PATH']}"}).items():
        monkeypatch.setenv(name, value)
    program, pids = tmp_path / "vllm-on-cpu", tmp_path / "pids"
    flags = [*CPU_FLAGS, "--max-model-len", "2048"]
    program.write_text(PROGRAM.format(python=sys.executable, pids=str(pids), vllm=str(home / "vllm"), flags=flags))
    program.chmod(0o755)
    policy = a_policy(checkpoint, lora)
    made = engine(policy, tmp_path, colocated=Colocated(vllm=str(program)), patience=900.0)
    try:
        gaps = []
        for step in range(3):
            train(policy, step)
            made.write_weights(policy, first=True)
            if step == 2:
                os.kill(int(pids.read_text().split()[-1]), 9)  # it dies asleep
            gaps.append(gap(policy, roll(made, policy)))
            made.sleep()
    finally:
        made.close()
    print(f"{lora}: gaps {gaps}")
    assert max(gaps) < 1e-4
    first, second = map(int, pids.read_text().split())
    assert not is_alive(first)
    assert not is_alive(second)
