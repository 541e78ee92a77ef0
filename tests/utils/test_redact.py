"""Secrets after a flag, in texts and in lists of words."""

from __future__ import annotations

import time

import pytest

from vrft.utils.redact import redact, redact_settings

HARMLESS = ("--max-tokens 5", "--eos-token </s>", "--api-key --port 1", "x --api-key", "a--token b", "--token 5")
HOSTILE = ("a=", "--api-key ", "--", "--.", '--token "', "--token '", "--a '--token \"", " ", "--token \n")


@pytest.mark.parametrize(
    ("said", "hidden"),
    [
        ("vllm serve x --api-key sk-abcdef123456", "vllm serve x --api-key (hidden)"),
        ("--enforce-eager --x.hf_token 'a b' -v", "--enforce-eager --x.hf_token '(hidden)' -v"),
        ("['--hf-token', 'hf_x', '--port', '1']", "['--hf-token', '(hidden)', '--port', '1']"),
        ("[--hf-token,hf_x,--port,1]", "[--hf-token,(hidden),--port,1]"),
        ("--api-key -abc", "--api-key (hidden)"),
        *((text, text) for text in HARMLESS),
    ],
)
def test_the_word_after_a_flag_of_a_secret_is_hidden(said: str, hidden: str) -> None:
    assert redact(said) == hidden


@pytest.mark.parametrize("part", HOSTILE)
def test_long_texts_take_linear_time(part: str) -> None:
    start = time.process_time()
    redact(part * 30000)
    assert time.process_time() - start < 10  # they take 0.2 s


def test_words_after_a_flag_of_a_secret_are_left_out_of_settings() -> None:
    words = ["--hf-token", "hf_x", "--api-key", "a", 1, "--max-tokens", "5", "--api-key=a", "b"]
    assert redact_settings({"arguments": words}) == {
        "arguments": ["--hf-token", None, "--api-key", None, None, "--max-tokens", "5", "--api-key=(hidden)", "b"]
    }
