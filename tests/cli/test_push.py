"""`export --push` against a local stand-in for the Hugging Face Hub."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.helpers.finished import Finished
from vrft.__main__ import main
from vrft.cli.push import upload
from vrft.errors import ConfigurationError

TOKEN = "hf_stand_in_0123456789"


class FakeHub(ThreadingHTTPServer):
    """Keeps repositories in memory: their files, whether they are private, and whether the token may write."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.broken = ""
        """Part of the paths that the server answers with an error."""


class Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def reply(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0].removeprefix("/api/")
        self.server.requests.append(path)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.reply({"error": f"no user for {self.headers['Authorization']}"}, 401)
        if self.server.broken and self.server.broken in path:
            return self.reply({"error": f"out of order for {TOKEN}"}, 418)
        if path == "whoami-v2":
            return self.reply({"name": "me", "type": "user", "orgs": []})
        if path == "validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if path == "repos/create":
            return self.create(json.loads(body))
        name, _, action = path.removeprefix("models/").partition("/")
        name += "/" + action.partition("/")[0]
        return self.use(name, action.partition("/")[2], body)

    do_GET = do_POST = answer

    def create(self, request: dict[str, Any]) -> None:
        name = f"{request['organization'] or 'me'}/{request['name']}"
        if name.startswith("somebody/"):
            return self.reply({"error": "You don't have the rights to create a model here"}, 403)
        url = {"url": f"{self.server.address}/{name}"}
        if name in self.server.files:
            return self.reply(url | {"error": "You already created this model repo"}, 409)
        self.server.files[name] = {}
        self.server.private[name] = request.get("visibility") == "private" or request.get("private", False)
        return self.reply(url)

    def use(self, name: str, action: str, body: bytes) -> None:
        files = self.server.files.get(name)
        if action == "auth-check/write" and name.startswith("somebody/"):
            return self.reply({"error": "no permission to write"}, 403)
        if files is None:
            return self.reply({"error": "Repository not found"}, 404)
        if action in ("", "revision/main"):
            return self.reply({"id": name, "private": self.server.private[name], "sha": "0" * 40, "siblings": []})
        if action.startswith("tree/"):
            return self.reply([{"type": "file", "path": path, "size": 1, "oid": "0" * 40} for path in files])
        if action.startswith("preupload/"):
            modes = [entry | {"uploadMode": "regular", "shouldIgnore": False} for entry in json.loads(body)["files"]]
            return self.reply({"files": modes})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return self.reply(
            {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.address}/{name}/commit/0"}
        )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield server
        server.shutdown()


def test_the_folder_and_nothing_else_is_uploaded(
    hub: FakeHub, finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["me/tuned"] = {"adapter_config.json": b"{}", "model-00001-of-00002.safetensors": b"", "notes.md": b"mine"}
    hub.private["me/tuned"] = True
    run, folder = finished.folder / "run", tmp_path / "out"
    assert main(["export", str(run), "--push=tuned", f"--output={folder}"]) == 0
    uploaded = dict(hub.files["me/tuned"])
    assert uploaded.pop("notes.md") == b"mine"
    assert uploaded == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert b"tags:\n- vrft" in uploaded["README.md"]
    said = capsys.readouterr()
    assert f"Hugging Face Hub: {hub.address}/me/tuned\n" in said.out
    assert TOKEN not in said.out + said.err


def test_a_new_model_is_private_on_request(hub: FakeHub, finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vrft.cli.export.write", lambda *_: None)  # of the arguments alone
    assert main(["export", str(finished.folder / "run"), "--push=me/hidden", "--private"]) == 0
    assert hub.private == {"me/hidden": True}


REFUSED = [
    (["--push=a/b/c"], {}, "--push: expected NAME or OWNER/NAME: Repo id must be in the form"),
    (["--push=my model"], {}, "--push: expected NAME or OWNER/NAME: Repo id must use alphanumeric chars"),
    (["--push="], {}, "--push: expected NAME or OWNER/NAME: "),
    (["--private"], {}, "--private: only with --push NAME"),
    (["--push=tuned", "--output=."], {}, "--push: --output: . holds other files"),
    (["--push=tuned"], {"HF_TOKEN": None}, "no token of the Hugging Face Hub; set HF_TOKEN or run `hf auth login`"),
    (["--push=tuned"], {"HF_TOKEN": "hf_of_a_stranger"}, "Invalid user token. The token from HF_TOKEN"),
    (["--push=somebody/new"], {}, "Make sure your token has the correct permissions. You don't have the rights to"),
    (["--push=somebody/else"], {}, "{}/api/models/somebody/else/auth-check/write. Make sure your token"),
    (["--push=me/shown", "--private"], {}, "--push: --private: {}/me/shown exists and is public"),
    (["--push=tuned"], {"broken": "whoami"}, "out of order for (hidden)"),
    (
        ["--push=tuned"],
        {"address": "http://127.0.0.1:9"},
        "--push: 127.0.0.1:9 can't be reached: [Errno 111] Connection refused; nothing was uploaded",
    ),
]


@pytest.mark.parametrize(("options", "state", "said"), REFUSED)
def test_what_would_fail_is_refused_before_the_export(
    options: list[str],
    state: dict[str, Any],
    said: str,
    hub: FakeHub,
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.files["me/shown"], hub.files["somebody/else"] = {}, {}
    hub.private = dict.fromkeys(hub.files, False)
    hub.broken = state.get("broken", "")
    (tmp_path / "photo.jpg").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vrft.cli.export.write", lambda *_: pytest.fail("the export began"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    if "HF_TOKEN" in state:
        monkeypatch.delenv("HF_TOKEN")
        if state["HF_TOKEN"]:
            monkeypatch.setenv("HF_TOKEN", state["HF_TOKEN"])
    if "address" in state:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", state["address"])
    assert main(["export", str(finished.folder / "run"), *options]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("vrft: export: --")
    assert said.format(hub.address) in shown
    assert shown.count("\n") == 1
    assert "hf_" not in shown.replace("/hf_hub", "")
    assert [*hub.files] == ["me/shown", "somebody/else"]


def test_a_failed_upload_says_how_to_repeat_it(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["me/tuned"] = {}
    hub.broken = "commit"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ConfigurationError, match=r"out of order for .hidden..*`hf upload me/tuned .*` uploads it$"
    ) as caught:
        upload(tmp_path, "me/tuned")
    assert TOKEN not in str(caught.value)
