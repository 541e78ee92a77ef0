"""The runs of benchmarks/examples.py and its tables."""

from __future__ import annotations

from pathlib import Path

import examples
import pytest

from vrft.cli.argv import option_values


def test_runs_take_turns_and_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run costs 2 CPU-seconds and 0.1 for each step, more with examples; accuracy counts the runs."""
    made: list[str] = []
    clock = [0.0]

    def vrft(words: list[str]) -> int:
        (run,) = option_values(words, "--run_dir")
        (count,) = option_values(words, "--data.examples")
        steps = [int(value) for value in option_values(words, "--trainer.max_steps")]
        clock[0] += 2 + sum(steps) * (0.1 + 0.02 * int(count))
        made.append(Path(run).name)
        if words[0] == "validate":
            log = Path(run) / "logs" / "version_0" / "metrics.csv"
            log.parent.mkdir(parents=True)
            log.write_text(f"val/accuracy,step\n{len(made) / 100},0\n,1\n")
        else:
            Path(run).mkdir(parents=True)
        return 0

    monkeypatch.setattr(examples, "vrft", vrft)
    monkeypatch.setattr(examples, "cpu_seconds", lambda: clock[0])
    words = ["--seeds=1", "--repeats=2", "--steps=3", f"--results={tmp_path}"]
    examples.main(words)
    assert made[:5] == ["warm-0", "cost-0-0-5", "cost-0-0-25", "cost-0-1-5", "cost-0-1-25"]
    assert [made.count(f"cost-{turn}-4-25") for turn in range(3)] == [1, 1, 0]
    said = capsys.readouterr().out
    assert "| 4 | 0.180, 0.180 | 0.180 | 1.80, 1.80 | 1.80 |" in said
    first = made.index("warm-0-with-0") + 1
    assert f"| warm-up | 0 | {first / 100:.3f} | {first / 100:.3f} |" in said
    count = len(made)
    examples.main(words)
    assert len(made) == count
    assert capsys.readouterr().out == said


def test_tables_are_replaced_in_their_page() -> None:
    page = "# Title\n\n<!-- cost -->\nold\n<!-- end -->\n\ntext\n\n<!-- accuracy -->\n<!-- end -->\n"
    new = examples.replaced(page, {"cost": ["| a |"], "accuracy": ["| b |"]})
    assert new == (
        "# Title\n\n<!-- cost -->\n\n| a |\n\n<!-- end -->\n\ntext\n\n<!-- accuracy -->\n\n| b |\n\n<!-- end -->\n"
    )
