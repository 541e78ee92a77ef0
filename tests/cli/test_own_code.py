"""Mistakes in a user's own reward, task, data source or callback end a command with one line."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from tests.helpers import CSV_ONLY, ROOT, Command
from tests.helpers.answers import sample
from vrft.__main__ import main
from vrft.cli.own_code import own_error
from vrft.data.record import only_records
from vrft.errors import ConfigurationError
from vrft.evaluators import Evaluator
from vrft.rewards import Accuracy, Reward
from vrft.tasks import ClassificationTask, DetectionTask, Task
from vrft.types import Frame
from vrft.utils.own_code import check_overrides

OWN = """\
import json

from lightning.pytorch import Callback
from torch.utils.data import Dataset
from vrft.data import SceneData
from vrft.rewards import Reward
from vrft.tasks import DetectionTask
from vrft.utils.own_code import noted


def raises():
    return {}["label"]


def reads_broken_json():
    return json.loads("{")


def is_called_wrongly_by_its_user():
    with noted(3):  # an error in vrft: the note is no function
        raise KeyError


class Items(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        with noted(lambda: "image 7"):
            return reads_broken_json()


class RaisingReward(Reward):
    def score(self, answer, sample):
        return sample.metadata["label"]


class RaisingTask(DetectionTask):
    def messages(self, sample, frame):
        raise ValueError("no such question")


class RaisingData(SceneData):
    def records(self, split, bad_records):
        return [1][3]


class RaisingCallback(Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        raise OSError("no such server")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "my_own_code.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.reload(importlib.import_module("my_own_code"))


def error_of(function: Callable[[], object]) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError


def line(text: str) -> int:
    """Return the number of the line of the module that holds a text."""
    return 1 + OWN[: OWN.index(text)].count("\n")


def test_an_exception_has_the_innermost_line_of_the_users_code(own: ModuleType) -> None:
    raised = f"my_own_code.py, line {line('return {}')}, in raises: KeyError: 'label'"
    assert own_error(error_of(own.raises)) == raised
    inside = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    where = f"my_own_code.py, line {line('return json')}, in reads_broken_json"
    assert own_error(error_of(own.reads_broken_json)) == f"{where}: JSONDecodeError: {inside}"


def test_an_exception_of_vrft_keeps_its_traceback(own: ModuleType) -> None:
    assert own_error(error_of(own.is_called_wrongly_by_its_user)) is None
    assert own_error(error_of(lambda: ClassificationTask("{unknown}"))) is None
    assert own_error(ValueError("raised by nobody")) is None


def test_an_exception_in_a_worker_is_one_line_too(own: ModuleType) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    said = own_error(error_of(lambda: next(iter(DataLoader(own.Items(), num_workers=1)))))
    signal.signal(signal.SIGCHLD, before)  # torch's handler would raise in the tests that follow
    assert said is not None
    start, end = f"my_own_code.py, line {line('return json')}, in reads_broken_json: ", "; image 7"
    assert said.startswith(start)
    assert said.endswith(end)
    assert "JSONDecodeError: Expecting property name" in said
    assert "\n" not in said


class OneArgument(Reward):
    def score(self, answer: Any) -> float:  # type: ignore[override]
        return 1.0


class NoFrame(DetectionTask):
    def read(self, content: str, sample: Any) -> Any:  # type: ignore[override]
        return None


class FewArguments(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any) -> None:  # type: ignore[override]
        """Lightning calls it with five arguments."""


class NoSample(Evaluator[Any]):
    def row(self, answer: Any) -> Any:  # type: ignore[override]
        """It is called with the sample, too."""

    def scores(self, rows: list[Any]) -> dict[str, float]:
        return {}


class OtherNames(Callback):
    def on_train_batch_end(self, *things: Any) -> None:  # type: ignore[override]
        """Other names are fine, and so is any number of them."""


def test_a_method_with_other_parameters_is_refused_when_the_object_is_built() -> None:
    with pytest.raises(ConfigurationError, match=r"OneArgument\.score\(self, answer.*: \(self, answer, sample\)$"):
        OneArgument()
    with pytest.raises(ConfigurationError, match=r"NoFrame\.read\(.*: \(self, content, sample, frame\)$"):
        NoFrame()
    with pytest.raises(ConfigurationError, match=r"FewArguments\.on_train_batch_end\(self, trainer: .*batch_idx\)$"):
        check_overrides(FewArguments(), Callback)
    with pytest.raises(ConfigurationError, match=r"NoSample\.row\(self, answer.*: \(self, answer, sample\)$"):
        check_overrides(NoSample(), Evaluator)
    check_overrides(OtherNames(), Callback)


class ReadsLists(DetectionTask):
    def read(self, content: str, sample: Any, frame: Frame) -> Any:
        return ["cat"]


class WrongCount(Accuracy):
    def scores(self, answers: Any, samples: Any) -> list[float | None]:
        return [1.0]


def test_a_value_of_another_kind_is_refused() -> None:
    about = sample("cat")
    with pytest.raises(ConfigurationError, match=r"ReadsLists\.read returned \['cat'\]; expected a tuple of"):
        ReadsLists().parse("<think></think><answer>cat</answer>", about, Frame(1000, 1000))
    task: Task = ClassificationTask()
    answers = [task.parse(text, about, Frame(1000, 1000)) for text in "ab"]
    with pytest.raises(ConfigurationError, match=r"WrongCount\.scores: expected a score for each of 2 answers, got 1"):
        WrongCount().bounded_scores(answers, [about, about])
    for found in (None, iter([]), [{"image": "a.jpg"}]):
        with pytest.raises(ConfigurationError, match=r"My.records.* returned|is dict; expected a list"):
            only_records(found, "My.records('train')")


def test_score_names_the_completion_that_a_reward_fails_on(
    own: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "answers.jsonl"
    lines.write_text(json.dumps({"completion": "<answer>3</answer>", "solution": "3"}))
    assert main(["score", "--task=counting", "--rewards", "my_own_code.RaisingReward", f"--input={lines}"]) == 1
    said = capsys.readouterr().err
    where = f"my_own_code.py, line {line('return sample.metadata')}, in score: KeyError: 'label'"
    assert said.startswith(f"vrft: {where}; image ")
    assert said.endswith("completion '<answer>3</answer>'\n")


MISTAKES = {
    "--task=my_own_code.RaisingTask": (1, "in messages: ValueError: no such question; image"),
    "--data=my_own_code.RaisingData": (1, "in records: IndexError: list index out of range"),
    "--trainer.callbacks+=my_own_code.RaisingCallback": (1, "in on_train_batch_end: OSError: no such server"),
    f"--trainer.callbacks+={__name__}.FewArguments": (2, "FewArguments.on_train_batch_end(self"),
}
"""Arguments that add broken code of a user's, each with the exit code and a part of the message."""


@pytest.mark.slow(seconds=4)
@pytest.mark.parametrize("argument", MISTAKES)
def test_a_run_with_broken_code_of_a_user_ends_with_one_line(
    argument: str, own: ModuleType, quick_fit: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    code, expected = MISTAKES[argument]
    more = ["--data.num_workers=1"] if "Task" in argument else []  # a worker ignores signals, and has to end as well
    short = ["--trainer.limit_val_batches=1", "--trainer.max_steps=1", "--model.max_completion_length=4"]
    assert main(quick_fit(CSV_ONLY, *short, argument, *more)) == code
    (said,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("vrft: ")]
    assert expected in said


@pytest.mark.parametrize(("safe_path", "found"), [(False, ["working"]), (True, ["script"])])
def test_the_console_command_finds_modules_in_the_working_folder(
    safe_path: bool, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (script := tmp_path / "script").mkdir()
    (working := tmp_path / "working").mkdir()
    for folder in (script, working):
        (folder / "rewards_beside_the_command.py").write_text(f"where = {folder.name!r}\n")
    said: list[str] = []
    monkeypatch.chdir(working)
    monkeypatch.setattr(sys, "path", [str(script), *sys.path])
    flags = SimpleNamespace(safe_path=safe_path)
    monkeypatch.setattr("vrft.__main__.sys", SimpleNamespace(flags=flags, path=sys.path))
    monkeypatch.setattr(
        "vrft.__main__.main", lambda: said.append(importlib.import_module("rewards_beside_the_command").where) or 0
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    command = EntryPoint("vrft", project["scripts"]["vrft"], "console_scripts")
    try:
        with pytest.raises(SystemExit, match="0"):
            command.load()()
    finally:
        sys.modules.pop("rewards_beside_the_command", None)
    assert said == found
    assert sys.path[0] == str({"working": working, "script": script}[found[0]])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.rewards.own=hinted_code.Shrot"], "(did you mean 'hinted_code.Short'?)"),
        (["--model.rewards.own=hinted_code.Zzzzzz"], "has no attribute 'Zzzzzz'"),
        (["--model.rewards.own=hinted_code.Short"], "is abstract (hinted_code.Short lacks the method score)"),
        (["--task=hinted_code.YesNo"], "(hinted_code.YesNo lacks the method"),
        (["--model.rewards.own=hinted_broken.Short"], "(hinted_broken.py, line 1) (a syntax error in your module)"),
        (["--config=coco.json"], "coco.json has annotations, not settings; pass it as --data.train_annotations"),
        (["--trainer.accelerator=gpu"], "trainer.accelerator: no GPU here; add --config trainer/cpu"),
    ],
)
def test_mistakes_in_a_command_have_a_hint(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = "from vrft.rewards import Reward\nfrom vrft.tasks import Task\n"
    code += "class Short(Reward):\n    pass\nclass YesNo(Task):\n    pass\n"
    (tmp_path / "hinted_code.py").write_text(code)
    (tmp_path / "hinted_broken.py").write_text("def x(:\n")
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delitem(sys.modules, "hinted_code", raising=False)
    assert main(["fit", "--config", "quickstart", *options, "--run_dir=run"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vrft: ")]
    assert said in line
    assert line.count("lacks") <= 1
    assert line.endswith("'Zzzzzz'") == ("Zzzzzz" in said)
