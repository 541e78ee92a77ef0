"""Models on the Hugging Face Hub: what is downloaded, and the copy in the cache if the Hub does not answer."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from vrft.cli.fits import read_config
from vrft.errors import ConfigurationError
from vrft.policy import LoRA, Policy
from vrft.policy.checkpoint import BUILT_IN, checkpoint_folder
from vrft.rewards.learned import RewardModel
from vrft.utils.hub_cache import name_or_cached

REVISION = "b" * 40
REQUESTS = 2
"""One for the model; the Hub's client makes another in each process, to describe itself."""


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in the cache of the only model there, someone/model."""
    model = tmp_path / "models--someone--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(REVISION)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return Path(shutil.copytree(BUILT_IN / "tiny-detection", model / "snapshots" / REVISION))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list of the hosts that were looked up, none of which exists."""
    hosts: list[Any] = []

    def unknown(host: Any, *_: Any, **__: Any) -> NoReturn:
        hosts.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    return hosts


def test_the_cached_copy_is_loaded_after_one_request(cached: Path, asked: list[Any]) -> None:
    policy = Policy("someone/model", lora=LoRA(r=2))
    with pytest.warns(UserWarning, match=f"no answer about someone/model .*Name or service not known.*{cached}"):
        policy.load(keep_reference=False)
    assert policy.folder == str(cached)
    assert policy.reader.in_four_bits is False
    assert 1 <= len(asked) <= REQUESTS
    assert policy.model.peft_config["default"].base_model_name_or_path == "someone/model"  # type: ignore[index, union-attr]


def test_fits_reads_the_cached_config_after_one_request(cached: Path, asked: list[Any]) -> None:
    (cached / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match="fits: --checkpoint: no answer about someone/model"):
        assert read_config("someone/model").model_type == "qwen2_vl"
    assert 1 <= len(asked) <= REQUESTS


def test_other_models_are_read_from_the_cache(cached: Path, asked: list[Any]) -> None:
    with pytest.warns(UserWarning, match="SamSegmenter"):
        assert name_or_cached("SamSegmenter.checkpoint", "someone/model") == str(cached)
    with pytest.raises(ConfigurationError, match=r"^RewardModel\.checkpoint: the Hugging Face Hub does not provide"):
        RewardModel("someone/else").load()
    assert len(asked) <= REQUESTS + 1


def test_an_incomplete_copy_is_refused(cached: Path, asked: list[Any]) -> None:
    (cached / "model.safetensors").write_bytes((cached / "model.safetensors").read_bytes()[:-8])
    with (
        pytest.warns(UserWarning, match="no answer"),
        pytest.raises(ConfigurationError, match=r"someone/model/model\.safetensors is not a whole"),
    ):
        Policy("someone/model").load(keep_reference=False)


def test_a_model_that_is_not_in_the_cache_is_refused_after_one_request(cached: Path, asked: list[Any]) -> None:
    with pytest.raises(ConfigurationError, match="'someone/else' is not a folder here, and the Hugging Face Hub"):
        Policy("someone/else")
    assert 1 <= len(asked) <= REQUESTS


def test_files_that_are_read_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a single file of weights and shards, that is the single file, as in a folder."""
    there, cache = Path(shutil.copytree(BUILT_IN / "tiny-detection", tmp_path / "there")), tmp_path / "cache"
    index = {"metadata": {}, "weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (there / "model.safetensors.index.json").write_text(json.dumps(index))
    (there / "model-00001-of-00001.safetensors").touch()
    files = [path.name for path in there.iterdir()]
    listed = [*files, "code.py", "model.gguf", "runs/config.json"]
    asked: list[set[str]] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append({*allow_patterns})
        cache.mkdir(exist_ok=True)
        for file in asked[-1] & {*files}:
            shutil.copyfile(there / file, cache / file)
        return str(cache)

    answer = SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in listed])
    monkeypatch.setattr("huggingface_hub.model_info", lambda name, **_: answer)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert checkpoint_folder("someone/model") == str(cache)
    small = {file for file in files if not file.endswith((".safetensors", ".md"))}
    assert asked == [small, small | {"model.safetensors"}]
    checkpoint_folder("someone/model", code=True)
    assert "code.py" in asked[-1]
