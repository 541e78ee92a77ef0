"""The promises of SECURITY.md: no text, file or checkpoint is run as code, and keys are never written."""

from __future__ import annotations

import ast
import html
import json
import logging
import os
import pickle
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from tests.helpers import CSV_ONLY, ROOT, Command
from vrft.__main__ import main
from vrft.errors import ConfigurationError
from vrft.policy.checkpoint import BUILT_IN
from vrft.training.checkpoint_io import AtomicCheckpointIO
from vrft.utils import yaml_text
from vrft.utils.redact import is_secret, redact, redact_settings

PACKAGE = ROOT / "vrft"
CANARY = "VRFT_TEST_CANARY"


def leave_a_trace(*_: object, **__: object) -> None:
    Path(os.environ[CANARY]).write_text("it ran")


class Stranger:
    """A class that fits no field of a config."""

    def __init__(self, *_: object, **__: object) -> None:
        leave_a_trace()


class KeyedLogger(CSVLogger):
    """A user's logger with a key among its settings."""

    def __init__(self, save_dir: str, api_key: str, address: str, notes: dict[str, str] = {}) -> None:  # noqa: B006
        super().__init__(save_dir, name="logs")
        print(warnings.formatwarning(f"connecting to {address}", UserWarning, __file__, 1, ""), file=sys.stderr)
        logging.getLogger("lightning.pytorch").warning("connecting to %s, %s", address, notes)


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the path of a file that nothing may write."""
    path = tmp_path / "trace"
    monkeypatch.setenv(CANARY, str(path))
    yield path
    assert not path.exists()


SLOTS = ["task", "model", "model.policy", "model.engine", "model.rewards.format", "model.optimizer", "data"]
SLOTS += ["model.lr_scheduler", "trainer.callbacks+", "trainer.logger", "trainer.plugins", "trainer.strategy"]
SLOTS += ["trainer.profiler", "trainer.accelerator", "model.policy.lora"]


@pytest.mark.parametrize("slot", SLOTS)
def test_a_class_outside_the_interface_is_refused_and_not_instantiated(
    slot: str, trace: Path, quick_fit: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in (f"{{class_path: {__name__}.Stranger}}", f"{__name__}.leave_a_trace"):
        assert main(quick_fit(f"--{slot}={value}")) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("vrft: ")
        assert len(said.splitlines()) == 1


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return shutil.copytree(BUILT_IN / "tiny-detection", tmp_path / "checkpoint")


def bring_code(checkpoint: Path) -> None:
    """Add code to a checkpoint, like models on the Hub that transformers does not support."""
    config = json.loads((checkpoint / "config.json").read_text())
    names = {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model"}
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "strange_vl", "auto_map": names}))
    (checkpoint / "code.py").write_text("import tests.cli.test_safety\ntests.cli.test_safety.leave_a_trace()\n")


def test_code_of_a_checkpoint_does_not_run(
    trace: Path, checkpoint: Path, quick_fit: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    bring_code(checkpoint)
    assert main(quick_fit(f"--model.policy.checkpoint={checkpoint}")) == 2
    said = capsys.readouterr().err
    assert f"{checkpoint} brings Python code of its own, which would run with all your rights" in said
    assert "say --model.policy.trust_remote_code=true on the command line" in said


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="nothing"),
        pytest.param(["--model.policy.trust_remote_code=false"], id="an earlier no"),
        pytest.param(["--run_dir={folder}/about_trust_remote_code"], id="a word that contains it"),
        pytest.param(["--model.policy.trust_remote_code=${{oc.env:VRFT_TEST_CANARY}}"], id="no boolean"),
    ],
)
def test_only_the_command_line_can_trust_code(
    words: list[str],
    tmp_path: Path,
    trace: Path,
    checkpoint: Path,
    quick_fit: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bring_code(checkpoint)
    config = tmp_path / "no_trust_remote_code.yaml"
    config.write_text("model: {policy: {trust_remote_code: true}}\n")
    words = [word.format(folder=tmp_path) for word in words]
    assert main(quick_fit(*words, f"--config={config}", f"--model.policy.checkpoint={checkpoint}")) == 2
    assert "only the command line can permit code that comes with a checkpoint" in capsys.readouterr().err


def test_the_command_line_can_permit_code(
    tmp_path: Path, checkpoint: Path, quick_fit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CANARY, str(tmp_path / "ran"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    bring_code(checkpoint)
    with pytest.raises(AttributeError, match="Config"):  # the file has no such class, but it ran
        main(quick_fit(f"--model.policy.checkpoint={checkpoint}", "--model.policy.trust_remote_code=true"))
    assert (tmp_path / "ran").exists()


def test_pickled_weights_are_refused(
    trace: Path, checkpoint: Path, quick_fit: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    assert main(quick_fit(f"--model.policy.checkpoint={checkpoint}")) == 2
    assert (
        f"{checkpoint} is not a checkpoint folder: it has no model.safetensors, only pytorch_"
        in capsys.readouterr().err
    )


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return leave_a_trace, ()


def no_zip(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload()))


def old_format(path: Path) -> None:
    torch.save({"state_dict": Payload()}, path, _use_new_zipfile_serialization=False)


def payload(path: Path) -> None:
    torch.save({"state_dict": {}, "optimizer_states": [], "callbacks": Payload()}, path)


def half(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


def one_bit(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1000)}, "optimizer_states": []}, path)
    content = bytearray(path.read_bytes())
    content[content.index(bytes(1000)) + 100] ^= 1
    path.write_bytes(content)


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))


def weights_alone(path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        pytest.param(no_zip, "is not a checkpoint, or it is incomplete", id="pickle"),
        pytest.param(old_format, "is not a checkpoint, or it is incomplete", id="old-format"),
        pytest.param(payload, f"is refused, because loading it would run code: {__name__}.", id="code"),
        pytest.param(half, "is not a checkpoint, or it is incomplete", id="half"),
        pytest.param(one_bit, "is damaged: the checksum of strange/data/0 is wrong", id="one-bit"),
        pytest.param(compressed, "is damaged: it has compressed parts", id="compressed"),
        pytest.param(weights_alone, "is not a checkpoint of a run: it has no optimizer_states", id="weights-alone"),
    ],
)
def test_a_checkpoint_with_more_than_numbers_is_refused_in_one_line(
    write: Callable[[Path], None],
    reason: str,
    trace: Path,
    tmp_path: Path,
    quick_fit: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "strange.ckpt")
    with pytest.raises(ConfigurationError) as refused:
        AtomicCheckpointIO().load_checkpoint(tmp_path / "strange.ckpt")
    assert str(refused.value).startswith(f"ckpt_path: {tmp_path}/strange.ckpt {reason}")
    assert len(str(refused.value).splitlines()) == 1
    if write is half:
        assert main(quick_fit(CSV_ONLY, f"--ckpt_path={tmp_path}/strange.ckpt")) == 2
        assert f"vrft: ckpt_path: {tmp_path}/strange.ckpt {reason}" in capsys.readouterr().err


FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads"}
FORBIDDEN |= {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "marshal.loads", "shelve.open", "np.load"}
PROCESSES = {
    "vrft/callbacks/graceful_stop.py": ['["scontrol", "requeue", job]'],
    "vrft/data/datasets/benchmarks.py": ["command"],  # this Python, with a script of the package, a path and a name
    "vrft/policy/chat_template.py": ["command"],  # this Python, with a script of the package
    "vrft/rollout/vllm/process.py": ['[sys.executable, "-I", str(WATCHDOG), str(os.getpid()), *words]'],  # vLLM
    "vrft/rollout/vllm/watchdog.py": ["command"],  # the same words
    "vrft/utils/display.py": ["[text]"],  # subprocess.list2cmdline, which quotes and starts nothing
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_in_the_package_can_execute_text() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 80
    started: dict[str, list[str]] = {}
    for path in files:
        for name, call in calls(path):
            assert name not in FORBIDDEN, f"{path}:{call.lineno}: {name}"
            words = {word.arg: word.value for word in call.keywords}
            assert "shell" not in words, f"{path}:{call.lineno}: {name}"
            if name == "torch.load":
                assert ast.unparse(words["weights_only"]) == "True", f"{path}:{call.lineno}"
            if name.startswith("subprocess."):
                place = path.relative_to(ROOT).as_posix()
                started.setdefault(place, []).append(ast.unparse(call.args[0]).replace("'", '"'))
    assert started == PROCESSES  # commands of subprocesses, none with text of a model
    assert yaml_text._SafeLoader in (yaml.CSafeLoader, yaml.SafeLoader)  # other loaders build any object
    assert yaml_text._BaseLoader in (yaml.CBaseLoader, yaml.BaseLoader)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("api_key", True),
        ("WANDB_API_KEY", True),
        ("trainer.logger.init_args.apikey", True),
        ("HF_TOKEN", True),
        ("db-password", True),
        ("client_secret", True),
        ("max_tokens_per_micro_batch", False),
        ("max_tokens", False),
        ("tokenizer", False),
        ("clientSecret", True),
        ("auth_header", True),
        ("aws_access_key_id", True),
        ("GH_PAT", True),
        ("pgpass", True),
        ("secretary", False),
        ("key", False),
        ("image_key", False),
        ("eos_token", False),
        ("pad_token_id", False),
        ("author", False),
        ("passes", False),
        ("patience", False),
        ("path", False),
    ],
)
def test_secrets_are_recognised_by_name(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


def test_secrets_are_hidden_in_texts_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "abcdefgh-1234")
    monkeypatch.setenv("SHORT_TOKEN", "run")
    said = "run with token: 'xyz' and abcdefgh-1234 at https://me:pw@host:80/path?x=1, max_tokens: 7"
    hidden = "run with token: '(hidden)' and (hidden) at https://(hidden)@host:80/path?x=1, max_tokens: 7"
    assert redact(said) == hidden
    assert redact("'password': 'two words', url: http://me:p@s/s@host/x") == (
        "'password': '(hidden)', url: http://(hidden)@host/x"
    )
    assert (
        redact("{'Authorization': 'Basic Zm9v'} Bearer abcdef") == "{'Authorization': 'Basic (hidden)'} Bearer (hidden)"
    )
    for harmless in ("http://host:80/path of a@b", "urls: http://a:80,http://b:81", "author: X", "eos_token: </s>"):
        assert redact(harmless) == harmless
    for harmless in ("forward pass: 3.2 s", "pass=3 of 5", "at token: 55 of 100", "pass: 3/5", "token=12ms"):
        assert redact(harmless) == harmless
    for secret in ("password: 1234", "db_pass=123456", "token=12345678", "api_key=12ab"):
        assert redact(secret).endswith("(hidden)")
    for name in ("SSH_AUTH_SOCK", "HF_TOKEN_PATH", "SECRETS_DIR", "TOKEN_FILE"):
        monkeypatch.setenv(name, "/absent/project")
    monkeypatch.setenv("MY_SECRETS", str(ROOT))
    assert redact(f"/absent/project/x.jpg {ROOT}/x.jpg") == f"/absent/project/x.jpg {ROOT}/x.jpg"
    monkeypatch.setenv("PWD", "/home/somebody")
    assert redact("/home/somebody/x") == "/home/somebody/x"
    settings = {"a": [{"api_key": "k", "url": "http://me:pw@host"}], "max_tokens": 7, "password": ["p"], "none": None}
    expected = {"a": [{"api_key": None, "url": "http://(hidden)@host"}], "max_tokens": 7, "password": None}
    assert redact_settings(settings) == expected | {"none": None}


PREFIXES = (
    "AWS_SECRET_ACCESS",
    "AZURE_STORAGE",
    "OPENAI_API",
    "SSH_PRIVATE",
    "STRIPE",
    "DJANGO_SECRET",
    "S3",
    "MASTER",
)
PLANTED = [f"{prefix}_KEY" for prefix in PREFIXES]
PLANTED += [
    "MASTER_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "GITHUB_TOKEN",
    "NPM_AUTH_TOKEN",
    "CI_JOB_TOKEN",
]
PLANTED += ["TOKEN", "SLACK_BOT_TOKEN", "TOKEN_FILE_CONTENT", "GITHUBTOKEN", "CLIENT_SECRET", "SECRET", "SECRETS"]
PLANTED += ["SECRET_OF_THE_APP", "AZURE_CLIENT_SECRET", "KMS_SECRETS", "PGPASS", "PGPASSWORD", "MYSQL_PWD", "DB_PASS"]
PLANTED += ["REDIS_PASSWORD", "KEY_PASSPHRASE", "SMTP_PASSWD", "PASSWORD", "PASS", "CREDENTIAL", "DB_CREDENTIALS"]
PLANTED += ["GOOGLE_CREDENTIALS_JSON", "PAT", "GH_PAT", "AUTH", "AUTHORIZATION", "AUTH_HEADER", "PROXY_AUTH"]
"""Names of environment variables with secrets."""


@pytest.mark.usefixtures("_new_wandb")
def test_a_run_neither_writes_nor_prints_a_key(
    quick_fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secrets = [f"{word}-do-not-tell" for word in ("key", "hub", "login", "typed")]
    monkeypatch.setenv("WANDB_API_KEY", secrets[0])
    assert len(PLANTED) >= 40
    for number, name in enumerate(PLANTED):
        secrets.append(f"planted'{number}/&é-{name[::-1].lower()}")
        monkeypatch.setenv(name, secrets[-1])
    monkeypatch.setenv("VRFT_TEST_TOKEN", secrets[1])
    address = f"http://me:{secrets[2]}@host/"
    keyed = {"class_path": f"{__name__}.KeyedLogger"}
    keyed |= {"init_args": {"save_dir": str(tmp_path / "run"), "api_key": secrets[3], "address": address}}
    keyed["init_args"]["notes"] = {f"note{number}": f"a ${{oc.env:{name}}}" for number, name in enumerate(PLANTED)}
    wandb = {"class_path": "vrft.loggers.WandbLogger", "init_args": {"save_dir": str(tmp_path / "run")}}
    events = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "run"), "name": "events"}}
    (tmp_path / "keyed.yaml").write_text(yaml.safe_dump({"trainer": {"logger": [keyed, wandb, events]}}))
    command = quick_fit(f"--config={tmp_path}/keyed.yaml", "--transcripts.every_n_rollouts=1")
    monkeypatch.setattr("sys.argv", ["vrft", *command])  # W&B records the command line
    assert main(command) == 0
    for wrong in (f"--trainer.hub_token={secrets[3]}", f"--model.beta={secrets[0]}", f"--model.task={address}"):
        assert main([*command, wrong]) == 2
    with pytest.raises(SystemExit):
        main([*command, "--print_config"])
    monkeypatch.undo()
    printed = "".join(capfd.readouterr())
    assert "note39: a (hidden)" in printed
    written = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert len(written) > 10
    for name in (".wandb", "events.out.tfevents", "report.html", "config.yaml", "metrics.csv", "transcripts.jsonl"):
        assert any(name in path.name for path in written)
    for secret in secrets:
        forms = {secret, json.dumps(secret)[1:-1], html.escape(secret), quote(secret, safe="")}
        assert not [form for form in forms if form in printed]
        assert [str(path) for path, content in written.items() if any(form.encode() in content for form in forms)] == []
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["trainer"]["logger"][0]["init_args"]["api_key"] is None
