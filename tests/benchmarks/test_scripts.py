"""Every benchmark runs at its smallest size, so that its results can be measured again."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import build_checkpoint
import evaluators
import kill_runs
import pytest
import reward_search
import scaling
import step
import torch
import torch.distributed as dist
import vllm_servers
import widen
from torch.distributed.run import get_args_parser
from transformers import AutoModelForImageTextToText

from tests.helpers import ROOT
from tests.helpers.forks import Fork
from tests.helpers.ports import free_port
from tests.helpers.ranks import Ranks
from tests.helpers.vllm_server import VLLM
from vrft.__main__ import main
from vrft.policy.checkpoint import find_checkpoint

SMALL = ["--image-size=56x56", "--num-generations=2", "--micro-batch=2", "--completion-tokens=4", "--steps=1"]
TRL = pytest.mark.skipif(not step.PYTHON["trl"].exists(), reason="no .venv-bench: `make bench-env` makes it")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    build_checkpoint.main([str(folder)])
    return str(folder)


def run_forked(path: str, args: list[str], printed: Path) -> int:
    """Run a script in this process, with its output in a file."""
    sys.argv = [path, *args]
    sys.path.insert(0, str(ROOT / "benchmarks"))
    with printed.open("w") as file, redirect_stdout(file):
        runpy.run_path(path, run_name="__main__")
    return 0


def fork_step(words: list[str], folder: Path) -> dict[str, Any]:
    """Run step.py in a fork and return the line that it prints."""
    script = Fork(run_forked, "benchmarks/step.py", words, folder / "printed", output=folder / "errors")
    assert script.wait() == 0, script.output.read_text()
    found: dict[str, Any] = json.loads((folder / "printed").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "side"), [("qwen2_5_vl", "vrft"), ("qwen3_5", "repeated")])
def test_step_measures_vrft(arch: str, side: str, checkpoint: str, tmp_path: Path) -> None:
    if arch != "qwen2_5_vl":
        checkpoint = f"{tmp_path}/checkpoint"
        build_checkpoint.main([checkpoint, "--arch", arch])
    found = fork_step(["--checkpoint", checkpoint, *SMALL, "--side", side], tmp_path)
    assert found["lib"] == side
    assert found["images_preprocessed_per_step"] == 2
    assert found["vision_tower_images_per_step"] == 2 * 3  # rollout, reference, policy
    assert 0 < found["split_cpu_s"]["update"] < found["cpu_step_s"]


@TRL
@pytest.mark.slow
def test_step_compares_with_trl(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_side = step.run_side

    def fork_own_side(side: str, said: list[str], threads: int) -> dict[str, Any]:
        return fork_step([*said, "--side", side], tmp_path) if side == "vrft" else run_side(side, said, threads)

    monkeypatch.setattr(step, "run_side", fork_own_side)
    more = ["--against", "trl", "--repeats", "1", "--table", f"{tmp_path}/table.md"]
    step.main(["--checkpoint", checkpoint, *SMALL, *more])
    vrft, trl, ratios = map(json.loads, capsys.readouterr().out.splitlines())
    assert [vrft["lib"], trl["lib"]] == ["vrft", "trl"]
    assert trl["images_preprocessed_per_step"] == 8
    assert ratios["vrft_over_trl"].keys() == {"samples_per_cpu_s", "samples_per_s", "peak_rss_MB"}
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert [row.split(" | ")[1:3] for row in rows] == [["full", "vrft"], ["full", "trl"]]


def test_step_says_how_to_make_the_environment_of_trl(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(step.PYTHON, "trl", Path("nowhere/python"))
    with pytest.raises(SystemExit, match="`make bench-env` makes it"):
        step.main(["--checkpoint", checkpoint, "--against", "trl"])


def test_evaluators_agree_and_ranks_gather(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluators.mp, "spawn", lambda function, args, ranks: function(0, *args))
    evaluators.main(["--images", "20", "--detections", "100", "--ranks", "1"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    precision = {line["tool"]: line["AP"] for line in lines if "tool" in line}
    assert precision["hotcoco"] == pytest.approx(precision["pycocotools"], abs=1e-6)
    assert lines[-1]["gather"] == 1


@pytest.mark.slow
def test_reward_search_finds_faults_of_the_papers_reward_and_none_of_the_defaults(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    reward_search.main(["--answers", "250", "--only", "Confidence", "--out", f"{tmp_path}/table.md"])
    _, _, *rows = capsys.readouterr().out.splitlines()
    faults = {name: sizes for name, _, *sizes in (row.strip("| ").split(" | ") for row in rows)}
    assert len(faults) == 3
    for name, sizes in faults.items():
        paper = "Paper" in name
        assert (sum(map(float, sizes)) > 1) == paper, name
    assert (tmp_path / "table.md").read_text().count("Confidence |") == 2


def test_reward_search_covers_every_sum_of_configs_and_tasks() -> None:
    sums = reward_search.shipped()
    assert "0.5 DetectionIoU + 3 DetectionConfidence + Format" in sums
    assert "Accuracy + CountError + Format" in sums
    kinds = [reward_search.kinds_of(sum_of) for sum_of in sums.values()]
    assert all(kinds)


@pytest.mark.slow
def test_a_killed_run_ends_like_an_uninterrupted_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process = SimpleNamespace  # only the killed run needs a separate process
    starts: list[Callable[[list[str]], Any]] = [
        lambda command: in_process(wait=lambda: main(command)),
        kill_runs.start,
        lambda command: in_process(wait=lambda: main(command)),
    ]
    monkeypatch.setattr(kill_runs, "start", lambda command: starts.pop(0)(command))
    kill_runs.main(["--kills", "1", "--steps", "2", "--seed", "0"])
    assert not starts
    assert capsys.readouterr().out.endswith("1 of 1 identical\n")


@pytest.fixture
def few_processes(monkeypatch: pytest.MonkeyPatch, two_ranks: Ranks) -> list[list[str]]:
    """Reduce scaling.py to one run per side: FSDP2 on two forks, the others in this process. Return its commands."""
    launched: list[list[str]] = []

    def launch_here(command: list[str], folder: Path, environment: dict[str, str]) -> None:
        launched.append(command)
        words = command[command.index("fit") :]
        if "--trainer.strategy=fsdp2" in words:
            two_ranks.run(words)
            return
        assert main([word.replace("devices=2", "devices=1") for word in words]) == 0
        if dist.is_initialized():
            dist.destroy_process_group()

    run = cache(lambda folder, side, run=scaling.run: run(folder, side, 1, count=True))
    monkeypatch.setattr(scaling, "run", lambda folder, side, steps, **settings: run(folder, side))
    monkeypatch.setattr(scaling, "launch", launch_here)
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"}
    for name, value in (alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    for name, value in {"PROMPTS": 1, "GENERATIONS": 2, "TOKENS": 6}.items():
        monkeypatch.setattr(scaling, name, value)
    return launched


@pytest.mark.slow
def test_scaling_counts_the_traffic_of_its_formulas(
    few_processes: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    scaling.main(["--steps", "1", "--repeats", "1"])
    text = capsys.readouterr().out
    assert "| ddp | all_reduce | 1 |" in text
    assert text.count("| fsdp2 | 1,024 |") == 2
    for command, processes in zip(few_processes, ("1", "2", "2"), strict=True):  # one, DDP, FSDP2
        assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
        launcher = get_args_parser().parse_args(command[3:])
        assert (launcher.nproc_per_node, launcher.module, launcher.training_script) == (processes, True, "vrft")
        assert launcher.training_script_args == command[command.index("fit") :]


def test_scaling_ends_with_the_error_of_a_process(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"(?s)no such rank.*ended with exit code 1"):
        scaling.launch([sys.executable, "-ISc", "raise SystemExit('no such rank')"], tmp_path, {})
    scaling.launch([sys.executable, "-ISc", "import os; os.mkdir(os.environ['NAME'])"], tmp_path, {"NAME": "made"})
    assert (tmp_path / "made").is_dir()


@pytest.mark.slow
def test_vllm_servers_trains_with_both_engines(tmp_path: Path) -> None:
    server = VLLM("tiny-detection")
    command = ["--checkpoint", "tiny-detection", "--urls", server.url, "--out", f"{tmp_path}/table.md"]
    command += ["--seeds", "0", "--steps", "1", "--val_size", "2", "--", "--data.train_size=4"]
    command += ["--data.batch_size=1", "--model.num_generations=2", "--model.max_completion_length=8"]
    try:
        vllm_servers.main(command)
    finally:
        server.stop()
    rows = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| own", "| vLLM"]


def test_the_wide_policy_computes_the_same_function(tmp_path: Path) -> None:
    widen.main(["tiny-detection", str(tmp_path)])
    ids = torch.arange(5, 45)[None]
    narrow, wide = (
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits
        for folder in (find_checkpoint("tiny-detection"), str(tmp_path))
    )
    assert torch.allclose(narrow, wide, atol=1e-4)
