"""Commands without a model, help and mistakes are answered without torch, by the modules that they import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from vrft.cli.describe import describe_classes
from vrft.cli.field_names import CLASSES, check_names
from vrft.cli.help import FIELDS, describe_fields, overview, terminal_width
from vrft.cli.named_configs import CONFIGS, config_names, named_config

HEAVY = ("torch", "lightning", "transformers", "torchmetrics", "matplotlib", "wandb")
BOX = "<think>a</think><answer>[{'Position': [0, 10, 500, 1000], 'Confidence': 0.9}]</answer>"

CASES = [
    (["--help"], "python -m vrft fit --config", 0),
    (["--version"], ".", 0),
    (["fti"], "did you mean 'fit'?", 2),
    (["fit", "--help"], "--model.beta", 0),
    (["predict", "--help"], "--images", 0),
    (["fit", "--config", "nowhere/mine.yaml"], "no such file, and no config of this name", 2),
    (["train"], "no such command: train (did you mean 'fit'?)", 2),
    (["--config", "quickstart", "fit"], "expected a command before options, e.g. fit --config", 2),
    (["help", "predict"], "--images", 0),
    (["predict", "--images", "a.jpg"], "vrft: predict needs a config: --config NAME_OR_FILE", 2),
    (["fit", "--config", "run"], "--config: run is a folder (did you mean --config run/config.yaml?)", 2),
    (["fit", "--config=quickstart", "--seed", "3"], "--seed (did you mean 'seed_everything'?)", 2),
    (["fit", "-c", "quickstart"], "unrecognized arguments: -c (did you mean 'config'?)", 2),
    (["fit", "--config=quickstart", "model.beta=1"], "model.beta=1 (did you mean --model.beta=1?)", 2),
    (["fit", "--config=quickstart", "--trainer.max_steps"], "argument --trainer.max_steps: expected one argument", 2),
    (["fit", "--config=quickstart", "--ckpt_path", "--trainer.max_steps=3"], "--ckpt_path: expected one argument", 2),
    (["fit"], "vrft: fit needs a config: --config NAME_OR_FILE", 2),
    (["predict", "--config"], "--config: expected a name or a file after it", 2),
    (["fit", "--config", "--model.beta=1"], "--config: expected a name or a file after it", 2),
    (["fit", "--config", "quikstart"], "did you mean --config quickstart?", 2),
    (["doctor", "--config=broken.yaml"], "broken.yaml is not YAML: line 1", 2),
    (["fit", "--config=unknown.yaml"], "unknown.yaml: no such field: modle (did you mean 'model'?)", 2),
    (["fit", "--config", "quickstart", "--modle.beta=1"], "--modle.beta=1 (did you mean 'model.beta'?)", 2),
    (["fit", "--config", "quickstart", "--max_steps=1"], "--max_steps=1 (did you mean 'trainer.max_steps'?)", 2),
    (
        ["fit", "--config", "quickstart", "--model.betta=1"],
        "model.betta: Option 'betta' is not accepted (did you mean 'beta'?)",
        2,
    ),
    (
        ["fit", "--config", "quickstart", "--data.shot", "4"],
        "data.shot: Option 'shot' is not accepted (did you mean 'shots'?)",
        2,
    ),
    (
        ["fit", "--config=quickstart", "--model.policy.lora.rank=8"],
        "policy.lora.rank: Option 'rank' is not accepted (exp",
        2,
    ),
    (
        ["fit", "--config=quickstart", "--trainer.max_step=3"],
        "--trainer.max_step=3 (did you mean 'trainer.max_steps'?)",
        2,
    ),
    (
        ["fit", "--config=quickstart", "--model.rewards.iou.weigth=3"],
        "'weigth' is not accepted (did you mean 'weight'?)",
        2,
    ),
    (
        ["fit", "--config=quickstart", "--model.policy={checkpont: a}"],
        "model.policy.checkpont: Option 'checkpont' is not",
        2,
    ),
    (
        ["fit", "--config=quickstart", "--config=deep.yaml"],
        "deep.yaml: model.policy.lora.rank: Option 'rank' is not acc",
        2,
    ),
    (
        ["fit", "--config=quickstart", "--config=evaluator.yaml"],
        "evaluator.yaml: trainer.callbacks.bakend: Option 'b",
        2,
    ),
    (["fit", "--config=quickstart", "--config=part.yaml"], "part.yaml: model.betta: Option 'betta' is not accepted", 2),
    (
        ["fit", "--config=quickstart", "--trainer.fast_dev_run=true"],
        "trainer.fast_dev_run: expected false, got true",
        2,
    ),
    (["fit", "--config=quickstart", "--config=clip.yaml"], "trainer.gradient_clip_val: expected null, got 1.0", 2),
    (["fit", "quickstart"], "unrecognized arguments: quickstart (did you mean --config quickstart?)", 2),
    (["fit", "mine.yaml"], "unrecognized arguments: mine.yaml (pass a config with --config FILE)", 2),
    (["configs"], "GRPO on generated scenes", 0),
    (["configs", "show", "quickstart"], "checkpoint: tiny-detection", 0),
    (["score", "--help"], "--coordinates", 0),
    (["evaluate", "--help"], "--convention", 0),
    (["export", "--help"], "--adapter", 0),
    (["report", "--help"], "--open", 0),
    (["score", "--input", "x"], "the following arguments are required: --task", 2),
    (["score", "--task", "detection", "--input", "answers.jsonl"], "iou                  1.0000", 0),
    (["score", "--task", "grounding", "--input", "answers.jsonl"], "iou                  1.0000", 0),
    (["evaluate", "--resutls=x"], "did you mean 'results'?", 2),
    (["evaluate", "--annotations=t.json", "--results=r.json", "--format=coco"], "] = 1.000", 0),
    (["export"], "the following arguments are required: RUN", 2),
    (["report", "nowhere"], "no such folder: nowhere", 2),
]

SCRIPT = """
import json, sys
from vrft.__main__ import main
for args in json.loads(sys.argv[1]):
    try:
        code = main(args)
    except SystemExit as stop:
        code = stop.code or 0
    heavy = sorted({name.partition(".")[0] for name in sys.modules} & {*sys.argv[2:]})
    print("====", json.dumps([code, heavy]), flush=True)
"""


def test_commands_without_a_model_and_mistakes_need_no_torch(tmp_path: Path) -> None:
    line = {"completion": BOX, "solution": BOX, "width": 10, "height": 10}
    (tmp_path / "answers.jsonl").write_text(json.dumps(line))
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 0}
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}], "annotations": [box | {"id": 1}]}
    (tmp_path / "t.json").write_text(json.dumps(truth))
    (tmp_path / "r.json").write_text(json.dumps([box | {"score": 0.5}]))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "broken.yaml").write_text("model: [")
    (tmp_path / "clip.yaml").write_text("trainer: {gradient_clip_val: 1.0}")
    (tmp_path / "deep.yaml").write_text("model: {init_args: {policy: {init_args: {lora: {rank: 8}}}}}")
    evaluator = "{class_path: CocoEvaluator, init_args: {bakend: pycocotools}}"
    (tmp_path / "evaluator.yaml").write_text(f"trainer: {{callbacks: [{evaluator}]}}")
    (tmp_path / "part.yaml").write_text("model: model.yaml")
    (tmp_path / "model.yaml").write_text("class_path: vrft.RFT\ninit_args: {betta: 1}")
    (tmp_path / "unknown.yaml").write_text("modle: {}")
    command = [sys.executable, "-c", SCRIPT, json.dumps([args for args, _, _ in CASES]), *HEAVY]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, check=True, env=environment
    )
    *outputs, rest = done.stdout.split("==== ")
    shown = [output if i == 0 else output.partition("\n")[2] for i, output in enumerate(outputs)]
    ends = [json.loads(output.partition("\n")[0]) for output in [*outputs[1:], rest]]
    for (args, expected, code), text, end in zip(CASES, shown, ends, strict=True):
        assert expected in text, args
        assert end == [code, []], args
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("answers.jsonl", "broken.yaml", "clip.yaml", "deep.yaml", "evaluator.yaml", "model.yaml", "part.yaml"),
        *("r.json", "run", "t.json", "unknown.yaml"),
    ]


def test_the_help_is_that_of_the_classes() -> None:
    assert FIELDS.read_text() == describe_fields(), "run `python -m vrft.cli.help`"
    assert CLASSES.read_text() == describe_classes(), "run `python -m vrft.cli.help`"


@pytest.mark.parametrize("width", [80, 120])
def test_the_help_of_a_command_fits_a_page_and_is_whole(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", {80: "80", 120: "400"}[width])
    shown = overview("predict", terminal_width())
    assert shown.split() == overview("predict", 10_000).split()  # all words, in their order
    assert all(text in shown for text in ("--model.beta", "--data.shots", "--model.policy.lora", "--draw"))
    assert "[...]" not in shown
    assert width - 5 <= max(map(len, shown.splitlines())) <= width
    assert "--images" not in overview("fit")


LEFT_TO_THE_PARSER = [
    ["--model=my_code.MyRFT", "--model.betta=1"],
    ["--model", "my_code.MyRFT", "--model.betta=1"],
    ["--model={class_path: my_code.MyRFT, init_args: {betta: 1}}"],
    ["--model.class_path=my_code.MyRFT", "--model.init_args.betta=1"],
    ["--model.policy.lora=my_code.MyLoRA", "--model.policy.lora.rank=8"],
    ["--model.policy=my_code.MyPolicy", "--model.policy.lora.rank=8"],
    ["--model.rewards.mine=my_code.Mine", "--model.rewards.mine.strict=true"],
    ["--model.optimizer=torch.optim.SGD", "--model.optimizer.momentum=0.9"],
    ["--model.dict_kwargs.more=1", "--model.help", "vrft.SFT"],
    ["--data=CocoData", "--data.shots=4", "--data.train_size=4"],  # both classes are named: either may be meant
    ["--trainer.logger.offline=false", "--trainer.callbacks+=CocoEvaluator", "--trainer.callbacks.convention=standard"],
    ["--trainer.max_time={hours: 1}", "--trainer.strategy.find_unused_parameters=true"],
    ["--model.rewards+={more: {class_path: vrft.rewards.Format}}", "--task.template", "--betta"],
]


@pytest.mark.parametrize("options", LEFT_TO_THE_PARSER, ids=lambda options: options[0])
def test_names_of_other_classes_are_left_to_the_parser(options: list[str]) -> None:
    check_names([f"--config={CONFIGS / 'quickstart.yaml'}", *options])


def test_every_config_of_the_package_has_known_names() -> None:
    for name in config_names():
        check_names([f"--config={named_config(name)}"])


@pytest.mark.parametrize(
    ("command", "first", "more"),
    [
        ("test", "--against", ["--resamples"]),
        ("doctor", "--gpu_memory", ["--probe"]),
        ("predict", "--images", ["--query", "--draw"]),
        ("fit", "--ckpt_path", ["--run_dir"]),
    ],
)
def test_help_begins_with_the_options_of_the_command(command: str, first: str, more: list[str]) -> None:
    lines = overview(command).splitlines()
    options = [line.split()[0].rstrip(",") for line in lines if line.startswith("  --")]
    assert options[0] == first
    assert {*more} < {*options}
    assert options.count("--ckpt_path") == (command != "doctor")
