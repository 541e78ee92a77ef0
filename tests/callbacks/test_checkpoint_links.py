"""Links to checkpoints are whole whenever a process is killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers import CSV_ONLY, Command
from vrft.__main__ import main
from vrft.callbacks import safe_checkpoint
from vrft.training.checkpoint_io import AtomicCheckpointIO
from vrft.utils.files import hardlink, replace_link


def test_the_link_exists_whenever_a_process_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, link = (tmp_path / name for name in ("step=2.ckpt", "step=4.ckpt", "last.ckpt"))
    old.write_text("old")
    new.write_text("new")
    replace_link(link, old)

    def killed(self: Path, target: Path) -> None:
        assert link.readlink() == Path("step=2.ckpt")
        assert self.readlink() == Path("step=4.ckpt")  # a complete link beside the old one
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            replace_link(link, new)
    assert link.read_text() == "old"
    replace_link(link, new)
    assert link.read_text() == "new"
    assert sorted(tmp_path.iterdir()) == sorted([old, new, link])


def test_links_are_copies_on_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: str) -> None:
        raise OSError

    monkeypatch.setattr(Path, "symlink_to", refused)
    (tmp_path / "step=2.ckpt").write_text("content")
    replace_link(tmp_path / "last.ckpt", tmp_path / "step=2.ckpt")
    assert not (tmp_path / "last.ckpt").is_symlink()
    assert (tmp_path / "last.ckpt").read_text() == "content"


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_survives_when_the_first_is_replaced(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, target: Path) -> None:
        raise OSError

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refused)
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, last)
    for _ in range(2):  # the second time, the name already exists
        hardlink(last, best)
        assert best.samefile(last) == links
    AtomicCheckpointIO().save_checkpoint({"step": 2}, last)
    assert [torch.load(path, weights_only=True)["step"] for path in (last, best)] == [2, 1]
    assert sorted(tmp_path.iterdir()) == [best, last]


def test_writing_does_not_follow_a_link_left_by_a_killed_run(tmp_path: Path) -> None:
    (tmp_path / "step=2.ckpt").write_text("good")
    (tmp_path / "last.ckpt.partial").symlink_to("step=2.ckpt")
    AtomicCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "last.ckpt")
    assert (tmp_path / "step=2.ckpt").read_text() == "good"
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"a": 1}


def test_old_checkpoints_are_removed_once_the_link_points_at_the_new_one(
    quick_fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "run" / "checkpoints", []

    def watched(link: Path, target: Path) -> None:
        seen.append((link.is_symlink() and link.resolve().name, sorted(path.name for path in folder.glob("step*"))))
        replace_link(link, target)

    monkeypatch.setattr(safe_checkpoint, "replace_link", watched)
    folder.mkdir(parents=True)
    (folder / "step=9.ckpt.partial").write_text("of a killed run")
    assert main(quick_fit(CSV_ONLY, "--checkpoint.every_n_train_steps=1")) == 0
    assert seen == [(False, ["step=1.ckpt"]), ("step=1.ckpt", ["step=1.ckpt", "step=2.ckpt"])]
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step=2.ckpt"]
