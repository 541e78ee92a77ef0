"""Run folders as `fit` leaves them, and their reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from vrft.__main__ import main
from vrft.utils.thumbnails import save_thumbnail

HOSTILE = (
    "</script><!--<script>window.acted = 1</script><img src=x onerror='window.acted = 1'> {{data}} \u2028\x00'\"&amp;"
)


FILE = f"/data/{HOSTILE}/\u202eb a.png"


def completion(rollout: int, sample: int, generation: int, **more: Any) -> dict[str, Any]:
    """Return a line of transcripts.jsonl."""
    reward = ((rollout * 7 + sample * 3 + generation) % 10) / 5
    box = [[4.0, 4.0, 20.0 + generation, 20.0], "cat", 0.5]
    line = {"rollout": rollout, "sample": sample, "image_id": sample, "query": f"category {sample % 3}"}
    line |= {"generation": generation, "completion": "<think>so</think><answer>…</answer>", "reasoning": "so"}
    line |= {"valid": True, "answer": [box], "target": [[[5.0, 5.0, 25.0, 25.0], "cat", 1.0]]}
    line |= {"rewards": {"iou": reward - 1, "format": 1.0}, "reward": reward, "advantage": reward - 0.9}
    return line | {"task": "DetectionTask", "image": None, "size": [40, 40]} | more


def held_out(sample: int, score: float | None, **more: Any) -> dict[str, Any]:
    """Return a line of an evaluation's answers.jsonl."""
    line = completion(0, sample, 0)
    names = ("sample", "image_id", "query", "completion", "reasoning", "valid", "answer", "target", "image", "size")
    return {name: line[name] for name in names} | {"score": score, "reward": 1.0} | more


def write_run(run: Path, groups: int = 30, generations: int = 4) -> Path:
    """Write a run's folder as `fit` leaves it, with hostile content in every text."""
    run.mkdir(exist_ok=True)
    images = [save_thumbnail(Image.new("RGB", (64, 48), (40 * i, 90, 120)), run / "pictures") for i in range(6)]
    lines = [
        completion(1 + n // 2, n % 11, g, image=images[n % 6], size=[64, 48])
        for n in range(groups)
        for g in range(generations)
    ]
    far = [[[-1e12, 1e12, 1e12, -1e12], HOSTILE, 1e12]]
    lines[generations] |= {"answer": far, "target": far, "size": [0, 2**53], "reward": -1e12, "advantage": 1e12}
    lines[0] |= {"completion": HOSTILE, "reasoning": HOSTILE, "valid": False, "answer": None, "problem": HOSTILE}
    lines[0] |= {"file": FILE, "question": HOSTILE, "prompt": f"<|im_start|>{HOSTILE}"}
    for line in lines[-generations:]:
        line |= {"query": HOSTILE, "task": "OtherTask", "target": HOSTILE}
    lines[-1] |= {"query": HOSTILE, "task": "OtherTask", "rewards": {HOSTILE: 1.0}}
    write_lines(run / "transcripts.jsonl", lines)
    for step, gain in ((0, 0.0), (40, 0.05)):
        folder = run / "evaluation" / f"val-{step}"
        folder.mkdir(parents=True)
        write_lines(
            folder / "answers.jsonl", [held_out(n, n / 50 + gain * (n - 10), image=images[n % 6]) for n in range(20)]
        )
        (folder / "coco_calibration.csv").write_text(
            f"low,high,confidence,accuracy,boxes\n0.0,0.1,0.0,0.0,0\n0.5,0.6,0.5,{0.25 + gain},8\n0.9,1.0,1.0,0.5,2\n"
        )
        (folder / "coco_per_category.csv").write_text(f'category,AP\ncat,{0.1 + gain}\n"{HOSTILE[:40]}",0.2\n')
    curve = {str(2**i): [0.3 + i / 20, 0.2 + i / 20, 0.5] for i in range(4)}
    tested = run / "evaluation" / "test-last"
    tested.mkdir()
    tested.joinpath("inference_scaling.json").write_text(
        json.dumps({"questions": 9, "success": 0.5, "curves": dict.fromkeys(("pass", "best", "vote"), curve)})
    )
    logs = run / "logs" / "version_0"
    logs.mkdir(parents=True)
    header = "epoch,step,time/rollout,train/reward,train/reward/iou,train/kl,val/reward,val/coco/AP\n"
    steps = [f"0,{i},0.5,{i / 20},{(-1) ** i * 1e99},0.01,,\n" for i in range(40)]
    rows = ["0,0,,,,,1.0,0.1\n", *steps, "0,39,,,,,2.0,0.3\n"]
    (logs / "metrics.csv").write_text(header + "".join(rows))
    (run / "config.yaml").write_text(
        f"seed_everything: 3\nmodel: {{class_path: vrft.RFT}}\nnote: {json.dumps(HOSTILE)}\n"
    )
    (run / "warnings.jsonl").write_text(
        json.dumps({"rollout": 7, "step": 7, "guard": "entropy", "message": HOSTILE}) + "\n"
    )
    (run / "faults-0.jsonl").write_text(json.dumps(completion(9, 2, 0)) + "\n")
    return run


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def report(run: Path) -> tuple[str, dict[str, Any]]:
    """Return the page that the command writes, and the page's data."""
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    return page, json.loads(re.search(r'id="data">(.*?)</script>', page)[1])  # type: ignore[index]
