"""A chat model as a judge, against a server that marks by a known rule and has faults."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers import CSV_ONLY, UNJUDGED, Command
from tests.helpers.answers import ONE, answers, sample
from tests.helpers.chat_server import ChatServer
from vrft.__main__ import main
from vrft.errors import ConfigurationError, RewardFailed
from vrft.rewards import Judge, judge
from vrft.training.fixed_log_probs import FixedLogProbs
from vrft.types import Sample

KEY = "sk-0123456789abcdef"
Start = Callable[..., ChatServer]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Yield a function that starts a server; pauses between requests are short."""
    monkeypatch.setattr(judge, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    servers: list[ChatServer] = []

    def make(**settings: Any) -> ChatServer:
        # a mark from 2 to 6 by the shade of the image and the last word of the text
        servers.append(ChatServer(lambda grey, text: 2 + 3 * grey / 255 + (text.split()[-1] == "good"), **settings))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def a_judge(server: ChatServer, **settings: Any) -> Judge:
    fixed = {"rubric": "{query} {target} {lowest} {highest}: {completion}", "lowest": 2, "highest": 6}
    reward = Judge(server.url, "grader", **{**fixed, "key_variable": "JUDGE_KEY", "patience": 60.0} | settings)
    reward.load()
    return reward


def shade(grey: int) -> Sample:
    return Sample(0, (Image.new("RGB", (6, 4), (grey, 0, 0)),), 0, "cat", ONE)


def waits_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == judge.__name__]


def test_a_mark_is_of_the_image_and_the_answer_and_asked_for_once(start: Start) -> None:
    server = start()
    mark, two = server.mark, threading.Barrier(2, timeout=60)

    def together(grey: int, text: str) -> object:
        two.wait()  # for another request
        return mark(grey, text)

    server.mark = together
    reward = a_judge(server, concurrency=3)
    texts = ["good", "bad", "{target} good", "good", "bad"]
    samples = [shade(0), shade(0), shade(255), shade(255), shade(0)]
    expected = [0.25, 0.0, 1.0, 1.0, 0.0]
    assert reward.bounded_scores(answers(*texts), samples) == expected
    assert len(server.asked) == 4  # two of the five are equal
    assert server.most_running <= 3
    assert reward.bounded_scores(answers(*texts), samples) == expected
    assert len(server.asked) == 4
    asked = {body["messages"][0]["content"][1]["text"] for body in server.asked}
    assert 'cat [{"box": [5, 10, 150, 200], "label": "cat"}] 2 6: {target} good' in asked
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in server.asked} == {("grader", 0, 512)}


def test_marks_are_kept_in_a_file_for_other_runs(start: Start, tmp_path: Path) -> None:
    server, cache = start(), str(tmp_path / "new" / "marks.jsonl")
    assert a_judge(server, cache=cache).bounded_scores(answers("good", "bad"), [shade(0)] * 2) == [0.25, 0.0]
    with Path(cache).open("a") as file:
        file.write('["0", 0.5')  # another process was killed
    assert a_judge(server, cache=cache).bounded_scores(answers("good", "bad"), [shade(0)] * 2) == [0.25, 0.0]
    assert len(server.asked) == 2
    a_judge(server, cache=cache, highest=7).bounded_scores(answers("good"), [shade(0)])
    assert len(server.asked) == 3  # by another scale
    with pytest.raises(ConfigurationError, match="cache: "):
        a_judge(server, cache=str(tmp_path))


@pytest.mark.parametrize(
    "fault", ["error", "busy", "no JSON", "no choice", "no text", "cut", "hang up", "", "good", "too long"]
)
def test_a_fault_is_asked_about_again(
    fault: str, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(judge, "MAX_BYTES", 2000)
    server = start()
    server.faults.extend(["3" * 3000 if fault == "too long" else fault] * 2)
    waits = fault in ("error", "busy", "hang up", "too long")
    assert a_judge(server).bounded_scores(answers("good"), [shade(0)]) == [0.25]
    assert len(server.asked) == 3
    said = waits_of(caplog)
    assert len(said) == waits
    assert all(text.endswith("; model.rewards: Judge is asked again for up to 60 s") for text in said)


def test_each_step_says_once_that_it_waits(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    server = start()
    reward = a_judge(server)
    for step in (1, 2):
        server.faults.extend(["error"] * 3)
        assert reward.bounded_scores(answers(f"{step} good", f"{step} bad"), [shade(0)] * 2) == [0.25, 0.0]
        assert len(waits_of(caplog)) == step
    assert len({*waits_of(caplog)}) == 1  # a warning would be shown for the first step alone


@pytest.mark.parametrize(
    "reply", ["7", "1.9", "nan", "inf", "3/6", "Mark: 3", "3.", "1e0", "\u0663", "3\nthanks", "0x3", "- 3"]
)
def test_a_reply_without_a_mark_is_never_a_score(reply: str, start: Start) -> None:
    server = start()
    server.faults.extend([reply] * 3)
    with pytest.raises(RewardFailed, match=r"Judge \(grader\): http.*: expected a number from 2 to 6 alone on"):
        a_judge(server).bounded_scores(answers("good"), [shade(0)])
    assert len(server.asked) == 3


def test_a_refusal_ends_all_requests_and_shows_no_key(start: Start) -> None:
    server, mark = start(), start().mark
    server.faults.append("refused")
    server.mark = lambda *_: time.sleep(600)  # only the refusal ends the other requests
    reward = a_judge(server, concurrency=2)
    with pytest.raises(RewardFailed, match=r"refused: 401: .*wrong key: ") as error:
        reward.bounded_scores(answers(*map(str, range(40))), [shade(0)] * 40)
    assert KEY not in str(error.value)
    assert len(server.asked) <= 2
    assert reward.pending == {}
    server.mark = mark
    assert reward.bounded_scores(answers("good"), [shade(0)]) == [0.25]  # and later calls ask again


def test_every_answer_of_a_failed_step_has_the_reason_and_a_redirect_is_one(start: Start) -> None:
    server = start()
    reward = a_judge(server, concurrency=1)
    for fault, said in {"refused": "refused: 401: ", "redirect": "refused: .* with a redirect"}.items():
        server.faults.append(fault)
        mine: dict[str, tuple[Future[float], Sample, str]] = {text: (Future(), shade(0), text) for text in "abc"}
        with pytest.raises(RewardFailed, match=said):
            reward._ask_all(mine)  # type: ignore[arg-type]
        for future, _, _ in mine.values():
            assert re.search(said, str(future.exception(timeout=10)))


def test_a_cache_that_can_no_longer_be_written_is_an_error_that_names_it(start: Start, tmp_path: Path) -> None:
    reward = a_judge(start(), cache=str(tmp_path / "new" / "marks.jsonl"))
    shutil.rmtree(tmp_path / "new")
    with pytest.raises(RewardFailed, match=r"Judge\.cache: .*marks\.jsonl: No such file"):
        reward.bounded_scores(answers("good"), [shade(0)])
    assert reward.pending == {}


def test_a_server_that_is_gone_or_silent_costs_the_patience(start: Start) -> None:
    server = start(delay=600.0)
    for settings in ({"timeout": 0.1}, {"url": "gone"}):
        if "url" in settings:
            server.stop()
        reward = a_judge(server, patience=0.4, timeout=0.1)
        begin = time.monotonic()
        with pytest.raises(RewardFailed, match=r"no reply within 0\.4 s: "):
            reward.bounded_scores(answers("good", "bad"), [shade(0)] * 2)
        assert time.monotonic() - begin < 20


def test_answers_that_were_begun_ahead_are_not_asked_for_twice(start: Start) -> None:
    server, may_answer = start(), threading.Event()
    mark = server.mark

    def late(grey: int, text: str) -> object:
        may_answer.wait()
        return mark(grey, text)

    server.mark = late
    reward = a_judge(server)
    reward.ahead(answers("good", "bad"), [shade(0)] * 2)
    while not server.asked:
        time.sleep(0.001)
    asking = [thread for thread in threading.enumerate() if thread.name.startswith("judge")]
    assert asking
    assert all(thread.daemon for thread in asking)  # none delays the end of the process
    may_answer.set()
    assert reward.bounded_scores(answers("bad", "good"), [shade(0)] * 2) == [0.0, 0.25]
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"highest": 2}, "Judge.highest: expected above lowest=2, got 2"),
        ({"rubric": "good?"}, r"Judge.rubric: expected \{completion\} in it"),
        ({"request": {"temperature": 0, "n": 2}}, "Judge.request: expected no field 'n'"),
        ({"attempts": 0}, "Judge.attempts: expected at least 1, got 0"),
        ({"timeout": 0}, "Judge.timeout: expected seconds above 0, got 0"),
        ({"patience": float("inf")}, "Judge.patience: expected seconds above 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Judge("http://127.0.0.1:1/v1", "grader", **{"lowest": 2, "highest": 6} | settings)
    with pytest.raises(ConfigurationError, match=r"Judge\.url: expected addresses like"):
        Judge("127.0.0.1:1", "grader")


def test_answers_without_images_are_refused() -> None:
    class NoImage:
        query, target = "cat", ONE

    with pytest.raises(ConfigurationError, match="Judge needs the images"):
        Judge("http://127.0.0.1:1", "grader").scores(answers("a"), [NoImage()])  # type: ignore[list-item]
    assert sample(ONE).images


def test_a_run_computes_meanwhile_and_stops_with_its_last_step_saved_if_the_judge_is_gone(
    start: Start,
    quick_fit: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = start()
    done: list[str] = []

    def note(kind: type, name: str, said: str) -> None:
        method = getattr(kind, name)

        def noted(*given: Any, **more: Any) -> Any:
            if more.get("reference", True):  # not the forward of the weights at the step's start
                done.append(said)
            return method(*given, **more)

        monkeypatch.setattr(kind, name, noted)

    note(Judge, "ahead", "ask")
    note(FixedLogProbs, "_forwards", "reference")
    note(Judge, "bounded_scores", "wait")
    batch, group = 2, 2
    settings = {"url": server.url, "model": "grader", "patience": 60, "key_variable": "JUDGE_KEY", "highest": 6}
    reward = json.dumps({"class_path": "Judge", "init_args": settings})
    fit = quick_fit(CSV_ONLY, UNJUDGED, f"--model.rewards.judge={reward}", f"--data.batch_size={batch}")
    original = server.reply

    def reply(body: dict[str, Any], key: str) -> tuple[int, bytes] | None:
        return original(body, key) if len(server.asked) < batch * group else (401, b"expired")

    server.reply = reply  # type: ignore[method-assign]
    assert main([*fit, f"--model.num_generations={group}", "--trainer.max_steps=3"]) == 1
    said = capsys.readouterr().out
    assert f"stopped: model.rewards: Judge (grader): {server.url}: refused: 401: " in said
    assert "to resume: python -m vrft fit" in said
    assert done == ["ask", "reference", "wait"] * 2  # the second step has no marks; no reference is computed twice
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert KEY not in (tmp_path / "run" / "config.yaml").read_text()
    assert "JUDGE_KEY" in (tmp_path / "run" / "config.yaml").read_text()
