"""Exported folders reproduce the evaluated answers in plain transformers and peft."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tests.helpers import CSV_ONLY
from tests.helpers.finished import EVERYTHING, Finished, short_fit
from vrft.__main__ import main
from vrft.callbacks.summary import write_scores
from vrft.policy.checkpoint import BUILT_IN
from vrft.report.model_card import code, fenced, write_card
from vrft.utils.display import score_cells
from vrft.utils.processors import load_processor


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(model: Any, folder: Path, asked: list[dict[str, Any]], **settings: Any) -> list[str]:
    """Return the answers of `generate` with the folder's processor and generation config."""
    processor = load_processor(str(folder))
    found = []
    for entry in asked:
        content = [{"type": "image"}, {"type": "text", "text": f"Detect {entry['query']}"}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        with Image.open(entry["file"]) as image:
            inputs = processor(text=[text], images=[[image.convert("RGB")]], return_tensors="pt")
        ids = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
        found.append(processor.tokenizer.decode(ids, skip_special_tokens=True))
    return found


LARGER = ("--model.policy.min_pixels=12544", "--model.policy.max_pixels=12544")  # the processor's default is 3136


@pytest.mark.slow(seconds=7)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_reloading_gives_the_same_greedy_answers(
    lora: bool, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForImageTextToText, GenerationConfig

    run = tmp_path / "run"
    if lora:
        more = (CSV_ONLY, *LARGER, "--data.batch_size=2", "--trainer.val_check_interval=100", "--model.policy.lora.r=4")
        words = short_fit(tmp_path, *EVERYTHING, *more)[3:]
        # rewards of images of another size are all 0
        assert main(["fit", "--config", "quickstart_sft", *words]) == 0
    else:
        request.getfixturevalue("finished_run")
    texts = []
    for name in ("last", "step=1"):
        assert main(["predict", "--config", f"{run}/config.yaml", f"--ckpt_path={run}/checkpoints/{name}.ckpt"]) == 0
        asked = lines(run / "predictions.jsonl")[:3]
        assert main(["export", str(run), "--ckpt", name]) == 0
        folder = run / ("export" if name == "last" else f"export-{name}")
        assert f"Hugging Face folder: {folder}\n" in capsys.readouterr().out
        model = AutoModelForImageTextToText.from_pretrained(folder)
        assert answers(model, folder, asked) == [entry["completion"] for entry in asked]
        texts.append([entry["completion"] for entry in asked])
        card = (folder / "README.md").read_text()
        assert ("| mIoU | 0." in card) == (name == "last")
        other = "This checkpoint is from step 1; the scores of its run are from step 3."
        assert (other in card) == (name != "last")
    assert texts[0] != texts[1]  # training changed the answers
    if lora:
        from peft import PeftModel

        assert main(["export", str(run), "--ckpt", "step=1", "--adapter", "--output", str(tmp_path / "adapter")]) == 0
        base = AutoModelForImageTextToText.from_pretrained(BUILT_IN / "tiny-detection", dtype=torch.float32)
        model = PeftModel.from_pretrained(base, tmp_path / "adapter")
        greedy = GenerationConfig.from_pretrained(run / "export-step=1")
        found = answers(model, run / "export-step=1", asked, generation_config=greedy)
        assert found == [entry["completion"] for entry in asked]
        assert (
            yaml.safe_load((tmp_path / "adapter" / "README.md").read_text().split("---")[1])["library_name"] == "peft"
        )
    assert main(["predict", "--config", f"{run}/config.yaml", f"--ckpt_path={run}/export-step=1"]) == 0
    found = lines(run / "predictions.jsonl")[:3]  # an exported folder works like a checkpoint
    assert [{**row, "weights": ""} for row in found] == [{**row, "weights": ""} for row in asked]


def test_fit_leaves_a_card_with_the_numbers_of_the_run(finished: Finished) -> None:
    tmp_path = finished.folder
    modes = {path.stat().st_mode for path in (tmp_path / "run" / "export").iterdir() if path.is_file()}
    assert len(modes) == 1  # the config and the weights have the same permissions
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    about = yaml.safe_load(card.split("---")[1])
    assert about == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vrft", "grpo"],
    }  # no base_model, since the Hub has no model of that name
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for name, before in summary["base"].items():
        assert f"| {name} | {' | '.join(score_cells(before, summary['tuned'][name]))} |" in card
    assert "Detect {query}" in card
    assert f"python -m vrft fit --config {tmp_path}/run/config.yaml" in card


def config(**policy: object) -> dict[str, Any]:
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-5}}
    settings = {"checkpoint": "Qwen/Qwen2-VL-2B-Instruct", "lora": {"r": 8}} | policy
    model = {"policy": {"class_path": "vrft.Policy", "init_args": settings}, "rewards": {}, "optimizer": optimizer}
    model |= {"num_generations": 8}
    return {
        "run_dir": "runs/x",
        "model": {"class_path": "vrft.RFT", "init_args": model},
        "task": {"class_path": "vrft.tasks.DetectionTask", "init_args": {}},
        "data": {"class_path": "vrft.data.CocoData", "init_args": {"categories": ["cat"]}},
        "trainer": {"max_steps": 7},
    }


def test_a_card_escapes_its_values(tmp_path: Path) -> None:
    hostile = "a|b`c\n---\n# d <script>alert(1)</script>"
    content = config()
    content["data"]["init_args"] = {"categories": [hostile], hostile: 1}
    content["model"]["init_args"]["rewards"] = {hostile: {"class_path": hostile}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    card = write_card(tmp_path, tmp_path, f"{hostile}\n````", adapter=False, step=7).read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "Qwen/Qwen2-VL-2B-Instruct"
    outside = [line for line in card.split("`````text")[0].splitlines()[8:] if "script" in line]
    assert len(outside) == 3
    for line in outside:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3  # the cells of the table
        assert "``" in line.split("<script>")[0]
    assert "\n`````text\n" in card
    assert "This checkpoint was not evaluated." in card


@pytest.mark.parametrize("step", [7, 8])
def test_a_card_has_only_the_numbers_of_its_own_step(step: int, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config()))
    (tmp_path / "summary.json").write_text('{"base": {"mAP": 0.1}, "tuned": {"mAP": 0.3}, "step": 7}')
    card = write_card(tmp_path, tmp_path, "x", adapter=False, step=step).read_text()
    assert ("| mAP | 0.100 | 0.300 | +0.200 |" in card) == (step == 7)
    write_scores(tmp_path / "evaluation" / "val-8", {"mAP": 0.4})
    card = write_card(tmp_path, tmp_path, "x", adapter=False, step=step).read_text()
    assert f"| mAP | 0.100 | {'0.300 | +0.200' if step == 7 else '0.400 | +0.300'} |" in card


@pytest.mark.parametrize(
    "summary",
    ["{", "[1]", '{"step": 7}', '{"step": 7, "base": [], "tuned": {"mAP": 1}}', '{"step": 7, "base": {"x|": 1}}'],
)
def test_a_broken_summary_leaves_a_card_without_numbers(summary: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config()))
    (tmp_path / "summary.json").write_text(summary)
    card = write_card(tmp_path, tmp_path, "x", adapter=False, step=7).read_text()
    assert "## Held-out images" in card
    assert not any(character.isdigit() for character in card.split("## Held-out images")[1])


def test_a_card_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    content = config()
    content["data"]["init_args"] = {"instances": "${oc.env:HF_TOKEN}", "images": "https://me:secret@host/x"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    card = write_card(tmp_path, tmp_path, "Say hf_0123456789", adapter=False, step=7).read_text()
    assert "instances" in card
    assert not any(secret in card for secret in ("hf_0123456789", "me:secret"))


@pytest.mark.parametrize(("name", "method"), [("their.OwnRFT", "GRPO"), ("their.OwnSFT", "supervised fine-tuning")])
def test_a_card_names_the_method_by_the_models_settings(name: str, method: str, tmp_path: Path) -> None:
    content = config()
    content["model"]["class_path"] = name  # a user's class, which need not exist
    if method != "GRPO":
        del content["model"]["init_args"]["num_generations"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    card = write_card(tmp_path, tmp_path, "x", adapter=False, step=7).read_text()
    assert f"tuned by {method}" in card
    assert ("- grpo" in card) == (method == "GRPO")


def test_code_and_fences_cannot_be_closed_by_their_content() -> None:
    assert code("x" * 1000) == "`" + "x" * 299 + "…`"
    assert code("`` ` |") == r"``` `` ` \| ```"
    assert fenced("```\nx").splitlines() == ["````text", "```", "x", "````"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["RUN/nothing"], "is not the folder of a run"),
        (["RUN"], "--ckpt: no such checkpoint: last; RUN/checkpoints has none"),
        (["RUN", "--adapter"], "RUN trained all weights and has no adapter"),
        (["RUN", "--ckpt", "x"], "no such checkpoint: x"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(checkpoint="tiny-detection", lora=None)))
    assert main(["export", *(arg.replace("RUN", str(tmp_path)) for arg in args)]) == 2
    error = capsys.readouterr().err
    assert message.replace("RUN/", f"{tmp_path}/").replace("RUN trained", f"{tmp_path} trained") in error
    assert len(error.splitlines()) == 1


def test_code_of_a_checkpoint_needs_permission_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = config(checkpoint="tiny-detection", lora=None, trust_remote_code=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "x.ckpt").write_bytes(b"")
    assert main(["export", str(tmp_path), "--ckpt", f"{tmp_path}/x.ckpt"]) == 2
    assert "--trust-remote-code" in capsys.readouterr().err


def test_a_checkpoint_of_other_settings_is_refused(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["model"]["init_args"]["policy"]["init_args"]["lora"] = {"r": 4}
    path.write_text(yaml.safe_dump(content))
    assert main(["export", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 2
    assert "ckpt: made with other model settings: it lacks" in capsys.readouterr().err
