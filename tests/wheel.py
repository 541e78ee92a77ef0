"""Build the wheel, check its metadata, and use it outside of the checkout (`make wheel`).

The wheel is installed into an environment of its own, which borrows the dependencies of the one that runs this script.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
BOX = "<think>one</think><answer>[{'Position': [0, 0, 500, 500], 'Confidence': 0.9}]</answer>"
SMALL = [
    *("--config=quickstart", "--run_dir=run", "--data.train_size=4", "--data.val_size=2", "--data.batch_size=2"),
    *("--model.num_generations=2", "--model.max_completion_length=16", "--trainer.enable_progress_bar=false"),
    "--trainer.logger={class_path: vrft.loggers.CSVLogger, init_args: {save_dir: run, name: logs}}",
]
COMMANDS = [
    ["configs"],
    ["score", "--task", "detection", "--input", "answers.jsonl"],
    ["evaluate", "--annotations", "truth.json", "--results", "results.json", "--format", "coco"],
    ["doctor", *SMALL, "--probe=2"],
    ["fit", *SMALL, "--trainer.max_steps=1"],
    ["report", "run"],
]
FOUND = (0, 1)
"""Exit codes of a doctor that works: it may find problems with so few images."""
SCRIPT = """
import json, sys, vrft
from vrft.__main__ import main
assert vrft.__file__.startswith(sys.prefix), vrft.__file__
for args in json.loads(sys.argv[1]):
    print("$ vrft", *args, flush=True)
    if main(args) not in ((0, 1) if args[0] == "doctor" else (0,)):
        sys.exit(f"vrft {args[0]} failed")
"""


def build(folder: Path) -> Path:
    """Build both distributions, check them, and return the wheel."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True)
    files = [str(path) for path in folder.iterdir()]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_content(wheel: Path) -> None:
    """Exit unless the wheel holds exactly the files of the package that git tracks."""
    tracked = subprocess.run(["git", "ls-files", "vrft"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    if packed != {*tracked.split()}:
        raise SystemExit(f"the wheel and git differ: {sorted(packed ^ {*tracked.split()})}")


def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel into a new environment, and return its folder of scripts."""
    venv.create(folder)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    paths = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))  # a path, so its own .pth files don't count
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    return scripts


def use(scripts: Path, folder: Path) -> None:
    """Run every kind of command in a folder without a checkout."""
    folder.mkdir()
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 0}
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "cat"}], "annotations": [box | {"id": 1}]}
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps([box | {"score": 0.5}]))
    (folder / "answers.jsonl").write_text(json.dumps({"completion": BOX, "solution": BOX, "width": 9, "height": 9}))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    version = [str(scripts / "vrft"), "--version"]
    subprocess.run(version, cwd=folder, env=environment, check=True)
    script = [str(scripts / "python"), "-c", SCRIPT, json.dumps(COMMANDS)]
    done = subprocess.run(script, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    missing = [name for name in ("run/export", "run/summary.json", "run/report.html") if not (folder / name).exists()]
    if missing:
        raise SystemExit(f"{done.stdout}\nmissing: {missing}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        start = time.monotonic()
        built = build(Path(place) / "dist")
        check_content(built)
        use(install(built, Path(place) / "environment"), Path(place) / "elsewhere")
        print(f"{built.name} works outside of the checkout ({time.monotonic() - start:.0f} s)")
