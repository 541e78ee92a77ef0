"""Chat templates that are missing, wrong or never end: refused when the checkpoint is read."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from vrft.errors import ConfigurationError
from vrft.policy import Policy, chat_template
from vrft.policy.chat_template import LIMITS, RENDERER, Renderer, chat_text, rendered, template_problem
from vrft.policy.checkpoint import BUILT_IN
from vrft.policy.export import export_policy
from vrft.policy.tiny import CHAT_TEMPLATE
from vrft.tasks import DetectionTask
from vrft.utils.processors import load_processor

pytestmark = pytest.mark.slow(seconds=0.8)

USER = "{% for m in messages %}{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}{% endfor %}"
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUILT_IN / "tiny-detection", tmp_path / "folder"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LOOP, "does not end within 1 s"),
        ("{{ 'a' * 10 ** 10 }}", "needs more than 512 MB"),
        ("{{ 'a' * 10 ** 6 }}", "makes 1000000 characters"),
        ("{{ raise_exception('only two turns') }}", "only two turns"),
        ("{% for m in messages %}", "fails: TemplateSyntaxError"),
        ("<image>", "leaves out the question"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no place for an image"),
        ("{% for m in messages %}{{ m.content[-1].text }}{% endfor %}", "no place for an image"),
    ],
)
def test_a_template_that_makes_no_prompt_is_refused(template: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "cpu_seconds", 1)
    assert said in (template_problem(template, "{}", False) or "")
    assert not RENDERER.timed_out


def test_a_template_is_checked_when_the_checkpoint_is_read(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('nothing for you') }}")
    with pytest.raises(ConfigurationError, match=r"model\.policy\.checkpoint: .*its chat template .*nothing for you"):
        Policy(str(folder)).load(keep_reference=False)


def test_a_template_that_knows_no_system_turn_is_refused_if_the_task_has_one(folder: Path) -> None:
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(no_system + USER.replace("<image>", "<|image_pad|>"))
    policy = Policy(str(folder))
    policy.load(keep_reference=False)
    policy.encoder(DetectionTask())
    with pytest.raises(ConfigurationError, match=r"no system role \(with a system turn\)"):
        policy.encoder(DetectionTask(system="Be brief."))


@pytest.mark.parametrize(
    "place", ["tokenizer_config.json", "a list", "chat_template.json", "chat_template.jinja", None]
)
def test_a_template_counts_wherever_it_stands(folder: Path, tmp_path: Path, place: str | None) -> None:
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    if place == "tokenizer_config.json":
        path.write_text(json.dumps(content | {"chat_template": CHAT_TEMPLATE}))
    elif place == "a list":
        several = [{"name": "tools", "template": "-"}, {"name": "default", "template": CHAT_TEMPLATE}]
        path.write_text(json.dumps(content | {"chat_template": several}))
    elif place == "chat_template.json":
        (folder / place).write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    elif place is not None:
        (folder / place).write_text(CHAT_TEMPLATE)
    policy = Policy(str(folder), dtype="float32")
    if place is None:
        with pytest.raises(ConfigurationError, match="has no chat template"):
            policy.load(keep_reference=False)
        return
    policy.load(keep_reference=False)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Detect red"}]}]
    expected = policy.processor.apply_chat_template(chat, tokenize=False)
    assert expected.endswith("Detect red<|im_end|>\n")
    export_policy(policy, tmp_path / "exported", policy.trained_weights(), 8)
    assert place == "chat_template.json" or (tmp_path / "exported" / "chat_template.jinja").exists()
    again = load_processor(str(tmp_path / "exported"))
    assert again.apply_chat_template(chat, tokenize=False) == expected


CONDITION = "{% if 'x' in messages[0].content[-1].text %}{}{% endif %}"


@pytest.mark.parametrize(
    ("trap", "said"),
    [
        (LOOP, "does not end within 1 s"),
        ("{{ 'a' * 10 ** 10 }}", "needs more than 512 MB"),
        ("{{ 'a' * 10 ** 6 }}", "makes 10000.* characters"),
        ("{{ raise_exception('no x') }}", "fails: TemplateError: no x"),
    ],
)
def test_a_template_that_fails_for_some_questions_alone_is_stopped_there(
    trap: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Harmless questions have their text, before and after."""
    monkeypatch.setitem(LIMITS, "cpu_seconds", 1)
    (folder / "chat_template.jinja").write_text(
        CONDITION.replace("{}", trap) + USER.replace("<image>", "<|image_pad|>")
    )
    policy = Policy(str(folder))
    policy.load(keep_reference=False)
    for text in ("cat", "axe", "owl"):
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        if "x" in text:
            with pytest.raises(ConfigurationError, match=rf"its chat template {said}.*axe"):
                chat_text(policy.processor, chat)
        else:
            assert chat_text(policy.processor, chat) == f"<|image_pad|>{text}"


def texts(start: int) -> list[str]:
    chats = [[{"role": "user", "content": [{"type": "text", "text": f"{start + i}"}]}] for i in range(20)]
    return [rendered(USER, "{}", json.dumps(chat)) for chat in chats]


def test_a_forked_process_renders_by_itself() -> None:
    """A data worker must not read the answers to its parent's requests."""
    assert texts(0) == [str(i) for i in range(20)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        there = pool.submit(texts, 200)
        here = texts(100)
    assert (here, there.result()) == ([str(100 + i) for i in range(20)], [str(200 + i) for i in range(20)])
    assert RENDERER.owner == os.getpid()


def test_threads_get_the_answers_to_their_own_requests() -> None:
    starts = range(1000, 1080, 20)
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(texts, starts)] == [[str(start + i) for i in range(20)] for start in starts]


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked")
def test_a_process_that_is_forked_while_a_thread_renders_does_not_wait_for_it() -> None:
    with RENDERER.lock, ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        assert pool.submit(texts, 300).result(timeout=600) == [str(300 + i) for i in range(20)]


def test_an_interrupted_request_leaves_no_answer_to_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(process: subprocess.Popen[str], request: str) -> str:
        assert process.stdin is not None
        process.stdin.write(f"{request}\n")
        process.stdin.flush()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Renderer, "_ask", staticmethod(interrupted))
        with pytest.raises(KeyboardInterrupt):
            texts(400)
    assert texts(420) == [str(420 + i) for i in range(20)]


REQUEST = {"template": USER, "tokens": {}, "conversations": [[{"role": "user", "content": [{"text": "cat"}]}]]}


def test_a_data_worker_that_still_runs_does_not_keep_the_command_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked worker inherits the pipe, so that the process which renders sees no end of its input."""
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    renderer = Renderer()
    assert json.loads(renderer.answer(json.dumps(REQUEST | LIMITS))) == {"texts": ["cat"]}
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    worker.start()
    try:
        at_exit[0]()
        assert worker.is_alive()
        assert renderer.process is not None
        assert renderer.process.returncode is not None
    finally:
        worker.kill()
        worker.join()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of a process")
def test_hard_limits_of_a_cluster_are_kept() -> None:
    script = Path(chat_template.__file__).with_name("render_template.py")
    limited = f"ulimit -t 3600; ulimit -v 100000000; exec {sys.executable} -P {script}"
    run = subprocess.run(
        ["bash", "-c", limited], input=json.dumps(REQUEST | LIMITS) + "\n", capture_output=True, text=True, check=True
    )
    assert json.loads(run.stdout) == {"texts": ["cat"]}
