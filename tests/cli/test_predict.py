"""`predict`: JSON lines, COCO results and pictures for any images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace
from PIL import Image
from pycocotools.coco import COCO

from tests.helpers import formats
from tests.helpers.annotation_tools import write
from tests.helpers.ranks import Ranks
from vrft.__main__ import main
from vrft.cli.argv import join_lists, normalise_argv
from vrft.cli.predict import categories_of
from vrft.data import UnlabelledData
from vrft.data.categories import CategoryData
from vrft.data.datasets.scenes import COLOURS
from vrft.data.splits import category_names

QUIET = ("--trainer.enable_progress_bar=false", "--trainer.logger=false")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a folder of images like a user's, without the config's data."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a.jpg", "deeper/c.webp", "A B.PNG"]):
        Image.new("RGB", (80, 40 + 10 * number), (40 * number, 90, 200)).save(folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n")
    (folder / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return folder


def predict(folder: Path, *more: str) -> int:
    return main(["predict", "--config", "quickstart", f"--run_dir={folder}", *QUIET, *more])


def test_a_folder_of_images(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match=r"left out: .*broken.png: not a readable image"):
        assert predict(tmp_path / "run", "--images", "photos", "--query", "red", "light green", "--draw") == 0
    run = tmp_path / "run"
    rows = lines(run / "predictions.jsonl")
    names = ["photos/A B.PNG", "photos/a.jpg", "photos/b.png", "photos/deeper/c.webp"]
    expected = [(name, query) for name in names for query in ("red", "light green")]
    assert [(row["file"], row["query"]) for row in rows] == expected
    assert [row["image_id"] for row in rows[::2]] == ["A B", "a", "b", "c"]  # as `BoxData` has them
    assert [(row["width"], row["height"]) for row in rows[::2]] == [(80, 70), (80, 50), (80, 40), (80, 60)]
    assert "broken.png" in (run / "predictions_left_out.txt").read_text()
    assert not (run / "bad_records.txt").exists()  # only training writes this
    results = json.loads((run / "predictions_coco.json").read_text())
    assert len(results) == sum(len(row["answer"] or ()) for row in rows)
    truth = COCO(str(run / "predictions_images.json"))
    assert [category["name"] for category in truth.loadCats(truth.getCatIds())] == ["red", "light green"]
    if results:
        assert len(truth.loadRes(results).anns) == len(results)
    drawn = sorted(path.name for path in (run / "predictions").iterdir())
    assert drawn == ["000000-A B.jpg", "000002-a.jpg", "000004-b.jpg", "000006-c.jpg"]
    shown = capsys.readouterr().out
    assert f"predictions: {run}/predictions.jsonl" in shown
    assert "weights: tiny-detection\n" in shown
    assert {row["weights"] for row in rows} == {"tiny-detection"}
    assert f"COCO results: {run}/predictions_coco.json" in shown
    assert not list(run.glob("predictions-*"))


def test_boxes_become_coco_results_and_are_drawn(photos: Path, tmp_path: Path) -> None:
    """Predict scenes that the policy can answer."""
    from vrft.data.datasets.scenes import FreshScenes

    for number in range(6):
        FreshScenes(6, 0, seed=0)[number].image.save(photos / f"scene{number}.png")
    scenes = [f"photos/scene{number}.png" for number in range(6)]
    assert predict(tmp_path / "run", "--images", *scenes, "--query", "red", "blue", "--draw") == 0
    rows = lines(tmp_path / "run" / "predictions.jsonl")
    found = [(row["image_id"], row["query"], box) for row in rows for box in row["answer"] or ()]
    assert found
    results = json.loads((tmp_path / "run" / "predictions_coco.json").read_text())
    for (image_id, query, box), result in zip(found, results, strict=True):
        x0, y0, x1, y1 = box["box"]
        assert result["image_id"] == image_id
        assert result["category_id"] == {"red": 1, "blue": 2}[query]
        assert result["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.006)
        assert 0 < result["score"] < box["score"]  # times the probability of its tokens


def test_a_long_name_is_cut_and_only_files_of_an_earlier_command_are_removed(photos: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "run" / "predictions"
    drawn.mkdir(parents=True)
    for name in ("000000-old.jpg", "mine.jpg", "000000-mine.png"):
        (drawn / name).touch()
    left_out = tmp_path / "run" / "predictions_left_out.txt"
    left_out.touch()
    name = "é" * 125  # two bytes each: 254 bytes with the suffix, file systems allow 255
    (photos / "a.jpg").rename(photos / f"{name}.jpg")
    assert predict(tmp_path / "run", "--images", f"photos/{name}.jpg", "--query", "red", "--draw") == 0
    assert {path.name for path in drawn.iterdir()} == {f"000000-{'é' * 100}.jpg", "mine.jpg", "000000-mine.png"}
    assert not left_out.exists()


def test_without_a_query_the_categories_of_the_config_are_asked_for(photos: Path, tmp_path: Path) -> None:
    assert predict(tmp_path / "run", "--images=photos/a.jpg", "--data.categories=[red, blue]") == 0
    assert [row["query"] for row in lines(tmp_path / "run" / "predictions.jsonl")] == ["red", "blue"]


def test_without_a_query_all_categories_of_the_data_are_asked_for(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert predict(tmp_path / "run", "--images=photos/a.jpg", "--model.max_completion_length=2") == 0
    assert [row["query"] for row in lines(tmp_path / "run" / "predictions.jsonl")] == list(COLOURS)
    assert f"query: asking about the categories of the data: {', '.join(COLOURS)}" in caplog.text
    assert not (tmp_path / "data").exists()  # the generated data is not needed


@pytest.mark.parametrize("named", [None, "coco_few_shot8", ["a", "b"]])
def test_categories_are_those_of_the_config_or_of_the_files(named: Any, tmp_path: Path) -> None:
    tables, drawn = formats.coco_tables(tmp_path / "coco", "train", 2)
    (tmp_path / "coco" / "train.json").write_text(json.dumps(tables))
    files = {"CocoData": str(tmp_path / "coco" / "train.json"), "BoxCsvData": str(write("csv", tmp_path / "csv"))}
    labels = {box.label for boxes in drawn for box in boxes}
    expected = {"CocoData": [category["name"] for category in tables["categories"]], "BoxCsvData": sorted(labels)}
    for name, file in files.items():
        settings = Namespace(train_annotations=file, val_fraction=0.5, categories=named)
        found = categories_of(Namespace(class_path=f"vrft.data.{name}", init_args=settings))
        assert found == (expected[name] if named is None else category_names(named))


def test_names_with_commas_are_one_category() -> None:
    apart = UnlabelledData([], ["red, round", "blue"])
    assert (apart.queries, apart.category_ids()) == (["red, round", "blue"], {"red, round": 1, "blue": 2})
    together = UnlabelledData([], ["red", "blue"], per_image=True)
    assert (together.queries, together.category_ids()) == (["red, blue"], {"red": 1, "blue": 2})


def test_all_categories_are_in_one_question_if_the_data_is_per_image(photos: Path, tmp_path: Path) -> None:
    more = ["--data.per_image=true", "--task=MultiCategoryDetectionTask", "--task.template=Detect {query}"]
    assert predict(tmp_path / "run", "--images=photos/a.jpg", "--query", "red", "blue", *more) == 0
    assert [row["query"] for row in lines(tmp_path / "run" / "predictions.jsonl")] == ["red, blue"]


def test_the_base_does_not_replace_the_answers_of_the_tuned_model(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("run_dir: run\n")
    answers = json.dumps({"sample": 0, "weights": "run/checkpoints/last.ckpt"}) + "\n"
    (run / "predictions.jsonl").write_text(answers)
    assert predict(run, "--images", "photos/a.jpg", "--query", "red") == 2
    said = capsys.readouterr().err
    assert "would answer and replace" in said
    assert "those of run/checkpoints/last.ckpt; pass --ckpt_path last" in said
    assert (run / "predictions.jsonl").read_text() == answers


def test_a_classifier_needs_no_query(photos: Path, tmp_path: Path) -> None:
    config = "digits"
    command = ["predict", "--config", config, f"--run_dir={tmp_path}/run", *QUIET, "--images", "photos", "--draw"]
    assert main(command) == 0
    rows = lines(tmp_path / "run" / "predictions.jsonl")
    assert len(rows) == 4
    assert all(isinstance(row["answer"], str | None) for row in rows)
    assert not (tmp_path / "run" / "predictions_coco.json").exists()
    assert len(list((tmp_path / "run" / "predictions").iterdir())) == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--images", "nowhere", "--query", "red"], "images: no such file or folder: nowhere"),
        (
            ["--images", "photos/broken.png", "--query", "red"],
            "no readable image in photos/broken.png",
        ),
        (
            ["--images", "photos", "--data=CocoData", "--data.train_annotations=gone.json", "--data.val_fraction=0.1"],
            "query: expected e.g. --query cat, or the config's data to read: data.train_annotations: no such file",
        ),
        (
            ["--images", "photos", "--data=JsonlData", "--data.train=photos/notes.txt", "--data.val_fraction=0.1"],
            "query: the task's template needs one; expected e.g. --query cat",
        ),
        (["--images", "photos", "--query", "red", "--split=test"], "split: --images are asked about, so no split is"),
        (["--query", "red"], "query: expected --images too, the images to ask about"),
        (["--images", "photos", "--query", "red", "--ckpt_path=photos"], "photos is not the folder of a model"),
    ],
)
def test_mistakes_are_one_line(
    more: list[str], message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(tmp_path / "run", *more) == 2
    found = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vrft:")]
    assert len(found) == 1
    assert message in found[0]


def test_arguments_of_other_commands_stay_unchanged() -> None:
    assert normalise_argv(["fit", "--draw", "--query", "a", "b"])[:-1] == ["fit", "--draw", "--query", "a", "b"]
    deep = "[" * 5000
    assert join_lists(["--query", deep]) == [f'--query=["{deep}"]']  # not a list
    assert join_lists(["--query", 'say "yes"', "--x=1"]) == ['--query=["say \\"yes\\""]', "--x=1"]


def test_lists_join_all_occurrences_of_an_option() -> None:
    words = ["--images", "a", "b", "--query=x", "--images=[c, '1']", "--images=[d].png", "--query", "y"]
    assert join_lists(words) == ['--images=["a", "b", "c", "1", "[d].png"]', '--query=["x", "y"]']


def test_ranks_write_one_file_in_order(photos: Path, two_ranks: Ranks, tmp_path: Path) -> None:
    found = []
    for ranks in (1, 2):
        run = tmp_path / str(ranks)
        parts = ["--trainer.strategy=ddp", f"--trainer.devices={ranks}", "--trainer.accelerator=cpu"]
        command = ["predict", "--config", "quickstart", f"--run_dir={run}", *QUIET, "--images", "photos", "--query=red"]
        if ranks == 1:
            assert main(command) == 0
        else:
            two_ranks.run([*command, *parts], cwd=tmp_path)
        found.append((lines(run / "predictions.jsonl"), (run / "predictions_coco.json").exists()))
        assert not list(run.glob("predictions-*"))
    assert found[0] == found[1]
    assert len(found[0][0]) == 4


class Unfinished(CategoryData):
    def __init__(self) -> None:
        raise ValueError("mine")


def test_an_error_of_own_data_is_not_taken_for_unreadable_files() -> None:
    data = Namespace(class_path=f"{__name__}.Unfinished", init_args=Namespace())
    with pytest.raises(ValueError, match="mine"):
        categories_of(data)
