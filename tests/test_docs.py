"""Commands and code of README and docs run in a folder that has small data at the documented paths.

`python -m vrft` commands run unchanged except for a small policy and one step. Two kinds are only parsed: those that
start several processes or need servers, which `test_launchers.py` and `test_vllm_runs.py` run, and those that train on
generated scenes with another setting. A block below `<!-- not run: reason -->` is left out.
"""

from __future__ import annotations

import inspect
import json
import random
import re
import runpy
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from lightning.pytorch import Trainer

import vrft
from tests.helpers import CSV_ONLY, ROOT, annotation_tools, formats
from vrft import data, evaluators, rewards, rollout, tasks
from vrft.__main__ import COMMANDS, main
from vrft.callbacks.checkpoint import RunCheckpoint
from vrft.callbacks.skipped_steps import SkippedSteps
from vrft.callbacks.transcripts import Transcripts
from vrft.data.datasets.scenes import COLOURS, draw_scene, write_coco
from vrft.data.splits import COCO_FEW_SHOT8
from vrft.policy import LoRA

ROOT_PAGES = [ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")]
PAGES = [*ROOT_PAGES, *sorted((ROOT / "docs").glob("*.md"))]
LEFT_OUT = 2
"""Number of blocks that can't run here: Ray's, and the one that installs another torch."""

SMALL = [
    *("--model.policy.checkpoint=tiny-detection", "--model.policy.dtype=float32", "--model.max_completion_length=16"),
    *("--data.batch_size=2", "--data.num_workers=0", "--trainer.max_steps=1", "--trainer.enable_progress_bar=false"),
    *("--trainer.accelerator=cpu", CSV_ONLY),
]
OWN = re.compile(r"\bmy[/_]|--ckpt_path|--help|--print_config|--model.help")
"""Training commands that run: those with a user's files, or on an existing run."""

PARSED_ALONE = ("--config trainer/", "--trainer.strategy", "--config engine/")


class Block(NamedTuple):
    """A fenced block: its location, language, file name (if any) and text."""

    where: str
    language: str
    name: str
    text: str


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^(<!-- not run: .+ -->\n)?```(\w*) ?(\S*)\n(.*?)^```$", text, re.M | re.S):
            if match[2] in languages and not match[1]:
                line = text[: match.start()].count("\n") + 1
                found.append(Block(f"{page.relative_to(ROOT)}:{line}", match[2], match[3], match[4]))
    return found


def commands() -> dict[str, str]:
    """Return each documented command with the location of its first occurrence."""
    found: dict[str, str] = {}
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                found.setdefault(shlex.join(words), block.where)
    return found


def renamed(tables: dict[str, Any], names: tuple[str, ...]) -> str:
    """Rename the first categories of a COCO file, and return it as JSON."""
    for category, name in zip(tables["categories"], names, strict=False):
        category["name"] = name
    return json.dumps(tables)


def write_images(folder: Path) -> None:
    """Write pictures as scenes, as a user's and as the official COCO files, as class folders and as CSV tables."""
    for part, count in (("train", 40), ("val", 6)):
        scenes = [draw_scene(random.Random(f"{part}/{i}")) for i in range(count)]
        for file, images, names in (
            (f"data/scenes/instances_{part}.json", f"data/scenes/{part}", ()),
            (f"my/{part}.json", f"my/{part}", ("cat", "dog")),
            (f"data/coco/annotations/instances_{part}2017.json", f"data/coco/{part}2017", COCO_FEW_SHOT8),
        ):
            write_coco(scenes, folder / file, folder / images)
            (folder / file).write_text(renamed(json.loads((folder / file).read_text()), names))
        lines = ["image,label"]
        for i, (picture, label) in enumerate(formats.colours(part, 8)):
            formats.save(picture, folder / "my/classes" / part / formats.CLASSES[label - 1] / f"{i}.png")
            lines.append(f"{formats.save(picture, folder / 'my/table' / f'{part}{i}.png')},{label}")
        (folder / "my/table" / f"{part}.csv").write_text("\n".join(lines))
    for name in ("a.jpg", "b.png", "photos/c.jpg"):
        formats.save(scenes[0][0], folder / name)
    truth = json.loads((folder / "my/val.json").read_text())
    (folder / "GT.json").write_text(json.dumps(truth))
    kept = ("image_id", "category_id", "bbox")
    boxes = [{**{key: box[key] for key in kept}, "score": 0.5} for box in truth["annotations"]]
    (folder / "DT.json").write_text(json.dumps(boxes))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with data at all documented paths, and two runs."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "docs").symlink_to(ROOT / "docs")
    write_images(folder)
    labels = formats.write_yolo(folder / "my/yolo", 8)
    labels.write_text(labels.read_text().replace(": red", ": cat").replace(": green", ": dog"))
    split = annotation_tools.write_voc(folder / "my/voc", formats.scenes("train", 8))
    names = split.read_text().split()
    split.write_text("\n".join(names[:6]))
    split.with_name("val.txt").write_text("\n".join(names[6:]))
    formats.write_jsonl(folder / "my/jsonl", 8)
    formats.write_hub(folder / "my/hub", 8)
    formats.write_references(folder / "my/refs")
    formats.write_reason_seg(folder / "my/ReasonSeg")
    formats.write_flowers(folder / "my/flowers", 8)
    for block in blocks("python", "yaml", "json"):
        if block.name:
            (folder / block.name).write_text(block.text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for experiment in ("quickstart", "coco_few_shot"):
            assert main(["fit", f"--config={experiment}", *SMALL]) == 0
    return folder


@pytest.fixture
def _here(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(str(workspace))


def finished(arguments: list[str]) -> bool:
    """Run a command and return whether it succeeds; help and `--print_config` raise SystemExit."""
    try:
        return main(arguments) == 0
    except SystemExit as stop:
        return stop.code == 0


def run(arguments: list[str], folder: Path) -> bool:
    """Run the arguments of `python -m vrft`, with a small policy and few steps if needed."""
    if arguments[0] == "fits":  # whose model would be downloaded
        return finished([*arguments, "--checkpoint=tiny-detection"])
    if arguments[0] not in COMMANDS or {"--help", "--print_config", "--model.help"} & {*arguments}:
        return finished(arguments)
    small = [*SMALL]
    if any("digits" in word for word in arguments):
        small[0] = "--model.policy.checkpoint=tiny-digits"
    goes_on = "--ckpt_path" in arguments
    if arguments[0] == "fit":
        small.append("--trainer.limit_val_batches=0")
    if not goes_on and "--run_dir" not in arguments:
        small.append(f"--run_dir={folder / 'runs' / str(len([*(folder / 'runs').iterdir()]))}")
    if arguments[0] == "doctor":
        small.append("--probe=8")
        return main([*arguments, *small]) in (0, 1)  # it may find problems, since the policy is small
    return finished([*arguments, *small])


@pytest.mark.usefixtures("_here", "_forked_readers")
@pytest.mark.parametrize("command", [pytest.param(text, id=where) for text, where in commands().items()])
def test_command(
    command: str, workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command.replace("NAME", "quickstart"))
    trains_on_scenes = "fit" in words and not OWN.search(command)
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).exists()
    elif "vrft" in words and not trains_on_scenes and not any(part in command for part in PARSED_ALONE):
        assert run(words[3:], workspace), capsys.readouterr().err[-2000:]
    else:
        start = words.index("docs/slurm.sh" if words[0] == "sbatch" else "vrft") + 1
        assert finished([*words[start:], "--print_config"])
    if "PresenceEvaluator" in command:  # the next command uses this map, and the small policy names nothing
        (category_map,) = workspace.glob("runs/map/evaluation/*/category_map.json")
        named = json.loads(category_map.read_text())
        category_map.write_text(json.dumps(dict.fromkeys(named, COCO_FEW_SHOT8)))


def test_every_target_of_the_makefile_has_commands_for_systems_without_make() -> None:
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split()
    assert {*re.findall(r"^\| `make ([\w-]+)` \|", (ROOT / "docs" / "platforms.md").read_text(), re.M)} == {*targets}


def test_few_blocks_are_left_out() -> None:
    assert sum(page.read_text().count("<!-- not run: ") for page in PAGES) == LEFT_OUT


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.where)
def test_python(block: Block, workspace: Path) -> None:
    path = workspace / (block.name or "unnamed.py")
    path.write_text(block.text)
    found = runpy.run_path(str(path))
    for name, value in found.items():
        if name.startswith("test_"):
            _, cases = value.pytestmark[0].args
            assert len(cases) > 1
            for case in cases:
                value(*case)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.where)
def test_yaml(block: Block, workspace: Path) -> None:
    path = workspace / (block.name or "unnamed.yaml")
    path.write_text(block.text)
    assert yaml.safe_load(block.text)
    layers = ["--config=quickstart", f"--config={path}", "--trainer.callbacks=[]"]
    assert finished(["fit", *layers, "--print_config"])


@pytest.mark.usefixtures("_here")
def test_the_example_of_a_reward_gives_the_documented_scores(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "rewards.md").read_text()
    command = next(line for line in page.splitlines() if line.startswith("python -m vrft score"))
    assert main(shlex.split(command)[3:]) == 0
    said = capsys.readouterr()
    assert f"```\n{said.out}{said.err}```\n" in page


def slug(heading: str) -> str:
    """Return GitHub's anchor for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if not name.startswith("http"):
            linked = (page.parent / name).resolve() if name else page
            assert linked.exists(), target
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.M) if anchor else []
            assert not anchor or anchor in map(slug, headings), target
    for name in re.findall(r"`((?:vrft|tests|docs|benchmarks|notebooks)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name


def test_links_of_pages_outside_of_docs_lead_to_pages_of_the_site() -> None:
    relocate = runpy.run_path(str(ROOT / "docs/_site/links.py"))["relocate"]
    outside = [*ROOT_PAGES, ROOT / "CHANGELOG.md", *(ROOT / "benchmarks").rglob("*.md")]
    for page in outside:
        placed = ROOT / "docs" / page.relative_to(ROOT)
        for name in re.findall(r"\]\((?!http)([^)#\s]+)", relocate(page.read_text(), inside=False)):
            on_site = (placed.parent / name).resolve().relative_to(ROOT / "docs")
            assert (ROOT / "docs" / on_site).exists() or (ROOT / on_site).exists(), f"{page}: {name}"


PREFIXES: dict[str, list[Any]] = {
    "model": [vrft.RFT, vrft.SFT],
    "policy": [vrft.Policy],
    "lora": [LoRA],
    "engine": [rollout.VLLMServer],
    "data": [getattr(data, name) for name in data.__all__],
    "task": [tasks.Task, tasks.DetectionTask],
    "trainer": [Trainer],
    "checkpoint": [RunCheckpoint],
    "transcripts": [Transcripts],
    "skipped_steps": [SkippedSteps],
}
"""Classes that have the fields after a prefix."""

DEEPER = ("model.optimizer", "model.lr_scheduler", "model.rewards", "trainer.callbacks", "trainer.logger")
"""Fields whose subfields depend on a class that is named elsewhere."""


def fields(cls: type) -> set[str]:
    """Return the parameters of a class's constructor and of its bases' constructors."""
    return {name for base in cls.__mro__ if "__init__" in vars(base) for name in inspect.signature(base).parameters}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page: Path) -> None:
    code = " ".join(re.findall(r"`([^`\n]+)`", page.read_text()))
    for option in re.findall(rf"(?<![\w./])(?:--)?((?:{'|'.join(PREFIXES)})\.\w[\w.]*\w)", code):
        known = option
        for deep in DEEPER:
            known = deep if option.startswith(f"{deep}.") else known
        if known.endswith((".ckpt", ".yaml", ".jsonl", ".py", ".json", ".safetensors", "global_step")):
            continue
        *above, field = [name for name in known.split(".") if name != "init_args"]
        assert any(field in fields(cls) for cls in PREFIXES[above[-1]]), option


def test_classes_and_modules_exist() -> None:
    code = " ".join(code for page in PAGES for code in re.findall(r"`([^`\n]+)`", page.read_text()))
    for path in re.findall(r"\bvrft\.[\w.]*\w", code):
        module, _, name = path.rpartition(".")
        assert hasattr(import_module(module), name) or find_spec(path), path
    homes = (vrft, data, evaluators, rewards, rollout, tasks)
    known = {name for home in homes for name in (*vars(home), *home.__all__)}
    endings = "Data|Task|Evaluator|Engine|Segmenter|IoU|F1|Reward|Format|Accuracy|Confidence|Distance|InBox"
    for name in re.findall(rf"(?<![\w.])[A-Z][A-Za-z0-9]*(?:{endings})\b", code):
        assert name in known or name in ("mIoU", "SamSegmenter"), name


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert pages == {"README.md", *re.findall(r"\((\w+\.md)\)", index)}


def test_scenes_have_the_colours_that_are_renamed_to_categories() -> None:
    assert len(COLOURS) == len(COCO_FEW_SHOT8)
