"""The notebooks run, give the results that their text claims, and are committed with their pictures."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from tests.helpers import ROOT
from tests.helpers.forks import Fork

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def plain(text: str) -> str:
    """Return text without colours and the frames of tables."""
    return re.sub(r"\x1b\[[0-9;]*m|[│┃]", "", text)


def said_in(notebook: nbformat.NotebookNode) -> str:
    """Return the text output and the tables of all cells."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]
    return plain("\n".join(texts))


SHORTER = {
    "coco_to_tuned": {"max_steps=36": "max_steps=16", "val_check_interval=18": "val_check_interval=8"},
    "rft_and_sft": {
        "val_size=48": "val_size=24",
        "max_steps=24": "max_steps=2",
        "val_check_interval=8": "val_check_interval=2",
        "max_steps=120": "max_steps=32",
        "val_check_interval=40": "val_check_interval=32",
    },
}
"""Sizes of runs and of held-out data in the notebooks, and those in this test."""


def run_cells(path: Path) -> int:
    """Run the cells of a notebook in IPython, the interpreter of Jupyter's kernel; return 1 after a failed cell.

    Runs are shortened. `test_committed_notebook_shows_its_pictures` checks the results of the whole ones.
    """
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.enable_gui = lambda gui=None: None  # as in Jupyter, pictures need no window
    shell.run_line_magic("matplotlib", "inline")
    text = path.read_text()
    for long, short in SHORTER.get(path.stem, {}).items():
        assert text.count(long) == 1
        text = text.replace(long, short)
    for cell in nbformat.reads(text, as_version=4).cells:
        if cell.cell_type == "code" and not shell.run_cell(cell.source, store_history=True).success:
            return 1
    return 0


def numbers_after(words: str, said: str) -> list[float]:
    """Return the numbers in the table row that starts with `words`."""
    line = next(line for line in said.splitlines() if line.strip().startswith(words))
    return [float(number) for number in re.findall(r"-?\d+\.\d+|nan", line.partition(words)[2])]


def most_moved_as_they_should(said: str) -> bool:
    return int(said.split(" % of the completions moved")[0].split()[-1]) > 80


def bugs_are_not_ours(said: str) -> bool:
    strange = numbers_after("a wrong box with the true y1", said)
    return strange == [0.0, 0.23, 1.0, 1.0, 1.0, 1.0] and numbers_after("a good box ", said)[:3] == [0.95, 1.0, 1.0]


def training_helped(said: str) -> bool:
    return all(numbers_after(name, said)[-1] > 0 for name in ("mAP", "mIoU", "reward")) and "no problems found" in said


def sft_is_better_by_more_than_chance(said: str) -> bool:
    *_, low, high = numbers_after("coco/AP ", said)
    named = "sft/checkpoints/last.ckpt rft/checkpoints/last.ckpt" in " ".join(said.split())
    return low < high < 0 and "the same: True" in said and named


CLAIMS: dict[str, Callable[[str], bool]] = {
    "one_step": most_moved_as_they_should,
    "rewards": bugs_are_not_ours,
    "coco_to_tuned": training_helped,
    "rft_and_sft": sft_is_better_by_more_than_chance,
}


def test_every_notebook_has_a_claim() -> None:
    assert {path.stem for path in NOTEBOOKS} == {*CLAIMS}


@pytest.mark.slow(seconds=20)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()  # like Colab: no file of the repository is in the working folder
    process = Fork(run_cells, path, output=tmp_path / "output", cwd=tmp_path / "empty", COLUMNS="200")
    assert process.wait() == 0, process.output.read_text()
    assert CLAIMS[path.stem](plain(process.output.read_text()))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_uses_no_file_of_its_working_folder(path: Path) -> None:
    """So it runs from its own folder, where Jupyter starts it, as from the empty one of `test_notebook_runs`."""
    first, *rest = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    reads = re.search(r"\bPath\(|\bmain\(|\bopen\(", "\n".join(rest))
    assert not reads or first.rstrip().splitlines()[-1].startswith("os.chdir(tempfile.mkdtemp())")
    assert not re.search(r"\bPath\(|\bmain\(|\bopen\(", first)
    assert {file.suffix for file in path.parent.iterdir() if file.is_file()} == {".ipynb"}  # no module to import


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_notebook_shows_its_pictures(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    drawing = [cell for cell in notebook.cells if "plt.tight_layout" in cell.source or ".crop(" in cell.source]
    assert len(drawing) >= 2
    for cell in drawing:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}  # no error
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert CLAIMS[path.stem](said_in(notebook))
