"""The table of model types in docs/families.md."""

from __future__ import annotations

import re

import families
import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "families.md").read_text()
ROWS = {line.split("`")[1]: line for line in PAGE.splitlines() if line.startswith("| `")}
VERSION = re.findall(r"^Made on [\d-]+ with transformers ([\d.]+):$", PAGE, re.MULTILINE)


def test_every_type_has_a_row() -> None:
    (made,) = VERSION
    known = {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    if transformers.__version__.split(".")[:2] == made.split(".")[:2]:
        assert known == {*ROWS}
    else:
        assert len(known & {*ROWS}) > 0.9 * len(known)


@pytest.mark.slow(seconds=2)
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_5", "llava", "mllama", "florence2"])
def test_a_row_is_what_the_script_finds(kind: str) -> None:
    found = families.bounded_row(kind)
    assert [*families.table([found])][-1] == ROWS[kind]


def test_a_type_that_takes_too_long_or_too_much_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "row", lambda kind: [bytes(2**34)])
    assert families.bounded_row("qwen2_vl").prompt == "not built: no end within 300 s and 8 GB"
