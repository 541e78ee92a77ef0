"""Text files: UTF-8, UTF-16 by its mark, or a declared encoding; anything else is refused by file and line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers import formats
from tests.helpers.annotation_tools import voc_xml
from tests.helpers.coco import BOX, IMAGE
from tests.helpers.data import refused, samples_of
from vrft.data import BoxCsvData, CocoData, CsvData, JsonlData, RecordData, VocData, YoloData
from vrft.data.files import decode_text
from vrft.errors import ConfigurationError
from vrft.types import Detection

NAME = "\u7535\u8111"  # computer; its bytes in GBK are no UTF-8, unlike those of many short texts
FIRST_BYTE = NAME.encode("gbk")[0]


def folder_with_image(folder: Path) -> Path:
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    return folder


def csv(folder: Path, encode: Callable[[str], bytes]) -> Callable[..., RecordData]:
    (folder / "x.csv").write_bytes(encode(f"image,label\na.png,{NAME}\n"))
    return lambda **more: CsvData(str(folder / "x.csv"), str(folder / "x.csv"), **more)


def boxes(folder: Path, encode: Callable[[str], bytes]) -> Callable[..., RecordData]:
    (folder / "x.csv").write_bytes(encode(f"image,label,xmin,ymin,xmax,ymax\na.png,{NAME},1,1,9,9\n"))
    return lambda **more: BoxCsvData(str(folder / "x.csv"), val_annotations=str(folder / "x.csv"), **more)


def coco(folder: Path, encode: Callable[[str], bytes]) -> Callable[..., RecordData]:
    content = {"images": [IMAGE], "annotations": [BOX], "categories": [{"id": 3, "name": NAME}]}
    (folder / "x.json").write_bytes(encode("\n" + json.dumps(content, ensure_ascii=False)))
    files = [str(folder / "x.json"), str(folder)] * 2
    return lambda **more: CocoData(*files, **more)


def jsonl(folder: Path, encode: Callable[[str], bytes]) -> Callable[..., RecordData]:
    row = {"image": "a.png", "problem": NAME, "solution": "<answer>No Objects</answer>"}
    (folder / "x.jsonl").write_bytes(encode("\n" + json.dumps(row, ensure_ascii=False)))
    return lambda **more: JsonlData(str(folder / "x.jsonl"), str(folder / "x.jsonl"), **more)


def yolo(folder: Path, encode: Callable[[str], bytes]) -> Callable[..., RecordData]:
    (folder / "a.txt").write_text("0 .5 .5 .2 .2\n")
    (folder / "data.yaml").write_bytes(encode(f"train: .\nval: .\nnames: [{NAME}]\n"))
    return lambda **more: YoloData(str(folder / "data.yaml"), **more)


def voc(folder: Path, encode: Callable[[str], bytes]) -> Callable[..., RecordData]:
    text = voc_xml("a.png", [Detection((1, 1, 9, 9), NAME)]).replace("56", "0")  # a size of 0 says nothing
    (folder / "a.xml").write_bytes(encode(text))
    return lambda **more: VocData(str(folder), val_annotations=str(folder), **more)


FORMATS = {"csv": csv, "boxes": boxes, "coco": coco, "jsonl": jsonl, "yolo": yolo, "voc": voc}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk"])
def test_every_reader_reads_declared_and_marked_encodings(name: str, encoding: str, tmp_path: Path) -> None:
    make = FORMATS[name](folder_with_image(tmp_path), lambda text: text.encode(encoding))
    settings = {"encoding": "gbk"} if encoding == "gbk" else {}
    train, _ = samples_of(make(**settings), tmp_path)
    assert NAME in (train[0].query, train[0].target)
    if settings:
        message = refused(make, tmp_path)
        lines = {"csv": 2, "boxes": 2, "coco": 2, "jsonl": 2, "yolo": 3, "voc": 15}
        assert f"line {lines[name]}: byte 0x{FIRST_BYTE:02x} is not utf-8; data.encoding sets another" in message
        assert str(tmp_path / {"yolo": "data.yaml", "voc": "a.xml"}.get(name, "x.")) in message


def test_an_unknown_encoding_is_an_error(tmp_path: Path) -> None:
    for name in ("utf-99", "zlib"):
        with pytest.raises(ConfigurationError, match=r"data\.encoding: expected the name of an encoding"):
            CsvData("x", val_fraction=0.5, encoding=name)


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\r\nb"])
def test_lines_end_as_on_any_system_but_not_inside_a_name(text: str, tmp_path: Path) -> None:
    from vrft.data.files import split_lines

    assert split_lines(text) == ["a", "b"]
    assert split_lines("a\u2028b") == ["a\u2028b"]
    assert decode_text(b"\xff\xfea\x00") == "a"


TABLES = [
    "image,label\na.png,Bag, leather\n",  # a comma inside a cell without quotes
    "image,label\na.png,cat\na.png,dog,x,y\n",
    'image,label\na.png,"Bag, leather"\n',
    'image,label\na.png,"cat\n',  # a quote that isn't closed
    "image,label\n\na.png,cat\n",
]


@pytest.mark.parametrize("text", TABLES)
def test_a_table_is_read_as_pandas_reads_it_or_refused_as_well(text: str, tmp_path: Path) -> None:
    import pandas  # here, so that only a worker with this test imports it

    file = folder_with_image(tmp_path) / "x.csv"
    file.write_text(text)
    try:
        expected: Any = pandas.read_csv(io.StringIO(text), index_col=False)["label"].tolist()
    except pandas.errors.ParserError:
        expected = None
    if expected is None or any(len(line.split(",")) > 2 for line in text.split("\n") if '"' not in line):
        with pytest.raises(ConfigurationError, match=r"x\.csv: line \d"):
            samples_of(CsvData(str(file), str(file)), tmp_path)
    else:
        train, _ = samples_of(CsvData(str(file), str(file)), tmp_path)
        assert [sample.target for sample in train] == expected


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("image;label", "it has image;label; cells are separated by ';', expected ','"),
        ("image\tlabel", "cells are separated by '\\t', expected ','"),
        ("image, label", "set data.label_column to ' label', exactly as it is written"),
        ("image,Label", "set data.label_column to 'Label'"),
        ("image,label,label", "2 columns are called 'label'"),
        ("", "no column 'image'; it has nothing"),
    ],
)
def test_a_header_that_does_not_fit_comes_with_a_hint(header: str, said: str, tmp_path: Path) -> None:
    file = folder_with_image(tmp_path) / "x.csv"
    file.write_text(f"{header}\na.png,cat\n")
    assert said in refused(lambda **more: CsvData(str(file), str(file), **more), tmp_path)


def test_too_few_and_too_many_cells_are_bad_records(tmp_path: Path) -> None:
    file = folder_with_image(tmp_path) / "x.csv"
    file.write_text("image,label\na.png,cat\na.png,Bag, leather\na.png\n")
    with pytest.raises(ConfigurationError, match=r"line 3: expected 2 cells, got 3; a cell with a comma needs quotes"):
        samples_of(CsvData(str(file), str(file)), tmp_path)
    train, _ = samples_of(CsvData(str(file), str(file), on_bad_record="skip"), tmp_path)
    assert [sample.target for sample in train] == ["cat"]


def test_label_files_of_yolo_are_text_too(tmp_path: Path) -> None:
    config = formats.write_yolo(tmp_path / "x")
    file = tmp_path / "x" / "labels" / "train" / "0.txt"
    file.write_bytes("0 .5 .5 .2 .2\n".encode("utf-16"))
    train, _ = samples_of(YoloData(str(config)), tmp_path)
    assert len(train[0].target) == 1
