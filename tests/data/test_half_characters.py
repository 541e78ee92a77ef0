"""Lone surrogates, from JSON escapes and file names that aren't UTF-8: bad records, or one clear error of a prompt."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vrft.data.bad_records import BadRecords
from vrft.data.record import Record
from vrft.data.record_checks import check_texts
from vrft.errors import ConfigurationError
from vrft.policy.plain_text import PlainText


def test_records_with_half_a_character_are_bad() -> None:
    texts = [("cat", ()), ("a\ud800", ()), ("", "dog"), ("", "caf\udce9")]
    records = [Record((Path("x.png"),), f"line {i}", i, query, target) for i, (query, target) in enumerate(texts)]
    bad = BadRecords()
    assert [record.image_id for record in check_texts(records, bad)] == [0, 2]
    assert bad.found == [
        r"line 1: expected text in UTF-8, got 'a\ud800'",
        r"line 3: expected text in UTF-8, got 'caf\udce9'",
    ]


def test_a_prompt_with_half_a_character_is_one_error() -> None:
    chat: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "Find \udcff"}]}]
    with pytest.raises(ConfigurationError, match=r"half a character, a lone surrogate: 'Find \\udcff'"):
        PlainText.render(SimpleNamespace(), chat)  # type: ignore[arg-type]
