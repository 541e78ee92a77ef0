"""`serve-command`: the command line of a server for a config."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
import yaml

from tests.helpers.vllm_rollouts import (
    split_command,
)
from vrft.__main__ import main
from vrft.policy import Policy
from vrft.rollout import VLLMServer
from vrft.rollout.vllm.command import serve_commands
from vrft.rollout.vllm.flags import server_flags

pytestmark = pytest.mark.slow(seconds=0.4)


@pytest.mark.usefixtures("_no_runs")
@pytest.mark.parametrize("config", ["quickstart", "quickstart_sft", "digits"])
def test_the_fragment_changes_the_engine_of_any_config(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    configs = [f"--config={name}" for name in (config, "engine/vllm")]
    with pytest.raises(SystemExit):
        main(["fit", *configs, "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["model"]["init_args"]["engine"]["class_path"] == "vrft.rollout.VLLMServer"
    assert found["run_dir"] == f"runs/{config}"


@pytest.mark.parametrize(
    ("more", "expected", "absent"),
    [
        pytest.param([], ["--weight-transfer-config", '{"backend": "vrft"}'], "--enable-lora", id="full"),
        pytest.param(
            ["--model.policy.lora={r: 20}"],
            ["--enable-lora", "--max-lora-rank", "32"],
            "--weight-transfer-config",
            id="lora",
        ),
        pytest.param(
            ["--model.policy.lora={target_modules: all-linear}"],
            ["--enable-tower-connector-lora"],
            "min_pixels",
            id="tower",
        ),
        pytest.param(
            ["--model.policy.lora={target_modules: all-linear}", "--model.policy.freeze_vision=true"],
            ["--enable-tower-connector-lora"],  # adapters target a frozen tower
            "--enforce-eager",
            id="frozen-tower",
        ),
        pytest.param(
            ["--model.policy.trust_remote_code=true"],
            ["--trust-remote-code"],
            "--no-enable-chunked-prefill",
            id="trust",
        ),
        pytest.param(
            ["--model.policy.max_pixels=3136", "--model.policy.dtype=bfloat16"],
            ["--mm-processor-kwargs", '{"max_pixels": 3136}', "--dtype", "bfloat16"],
            "--enable-lora",
            id="pixels",
        ),
    ],
)
def test_serve_command_prints_the_flags_that_a_server_needs(
    more: list[str], expected: list[str], absent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve-command", "--config", "quickstart", "--config", "engine/vllm", *more]) == 0
    printed = capsys.readouterr().out
    environment, words = split_command(printed)
    assert words[:2] == ["vllm", "serve"]
    assert words[3:7] == ["--host", "127.0.0.1", "--port", "8000"]
    assert {*expected} <= {*words}
    assert {"--logprobs-mode", "processed_logprobs"} <= {*words}
    assert words[words.index("--max-model-len") + 1] == "auto"
    assert absent not in printed.splitlines()[-1]
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert ("VLLM_ALLOW_RUNTIME_LORA_UPDATING" in environment) == ("lora" in "".join(more))


@pytest.mark.parametrize(
    ("name", "limits", "expected"),
    [
        ("GotOcr2ImageProcessor", {"max_tiles": 4}, [{"max_patches": 4, "min_patches": 1}]),
        ("LlavaOnevisionImageProcessor", {"max_tiles": 1}, [{"image_grid_pinpoints": [[384, 384]]}] * 2),  # model's too
        ("Glm4vImageProcessor", {"max_pixels": 50176}, [{"size": {"shortest_edge": 12544, "longest_edge": 100352}}]),
        ("Qwen2VLImageProcessor", {"max_pixels": 2000}, [{"min_pixels": 2000, "max_pixels": 2000}]),
        ("Qwen2VLImageProcessor", {"min_pixels": 4000}, [{"min_pixels": 4000}]),
    ],
)
def test_a_server_gets_the_limits_of_the_family(
    name: str, limits: dict[str, int], expected: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = SimpleNamespace(image_processor=getattr(transformers, f"{name}Pil")())
    monkeypatch.setattr("vrft.rollout.vllm.flags.load_processor", lambda *_: processor)
    flags = server_flags(Policy("tiny-detection", **limits))  # type: ignore[arg-type]
    given = [flags.index(flag) + 1 for flag in ("--mm-processor-kwargs", "--hf-overrides") if flag in flags]
    assert [json.loads(flags[i]) for i in given] == expected


@pytest.mark.parametrize(
    ("urls", "gpus", "trainer"),
    [
        (["http://127.0.0.1:8000"], ["0"], "CUDA_VISIBLE_DEVICES=1 for one GPU"),
        (["http://10.0.0.2:8000", "http://localhost:8000", "http://[::1]:8001"], [None, "0", "1"], "=2 for one GPU"),
        (["http://10.0.0.2:8000", "http://gpu7:8000"], [None, None], ""),
    ],
)
def test_servers_on_this_machine_have_gpus_of_their_own(urls: list[str], gpus: list[str | None], trainer: str) -> None:
    printed = serve_commands(VLLMServer(urls), Policy("tiny-detection"))
    lines = [line for line in printed.splitlines() if not line.startswith("#")]
    assert [split_command(line)[0].get("CUDA_VISIBLE_DEVICES") for line in lines] == gpus
    assert trainer in printed
    assert ("Keep the trainer off" in printed) == bool(trainer)


def test_serve_command_of_a_config_without_servers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-command", "--config", "quickstart"]) == 2
    assert "expected vrft.rollout.VLLMServer, got TransformersEngine" in capsys.readouterr().err


def test_a_server_takes_the_images_of_examples_and_one_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve-command", "--config=quickstart", "--config=engine/vllm", "--data.examples=4"]) == 0
    _, words = split_command(capsys.readouterr().out)
    assert json.loads(words[words.index("--limit-mm-per-prompt") + 1])["image"] == 5
