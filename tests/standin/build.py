"""Compile the stand-in with g++, once for each version of torch and of the sources."""

from __future__ import annotations

import hashlib
import subprocess
import sysconfig
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
TORCH = Path((find_spec("torch") or HERE).submodule_search_locations[0])  # type: ignore[union-attr, index]
INCLUDES = (TORCH / "include", TORCH / "include/torch/csrc/api/include", sysconfig.get_path("include"))
MODULE = "standin_device"


def compile_library(name: str, libraries: tuple[str, ...], output: str) -> Path:
    """Compile a source file into a shared library and return its path."""
    source = HERE / f"{name}.cpp"
    key = hashlib.sha256(source.read_bytes() + version("torch").encode()).hexdigest()[:12]
    library = HERE / "build" / key / f"{output}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(".partial")
        flags = ["-O1", "-std=c++20", "-shared", "-fPIC", "-w", f"-DTORCH_EXTENSION_NAME={MODULE}"]
        flags += [f"-I{folder}" for folder in INCLUDES] + [f"-L{TORCH / 'lib'}"]
        subprocess.run(["g++", source, "-o", partial, *flags, *(f"-l{name}" for name in libraries)], check=True)
        partial.replace(library)
    return library


def hooks() -> Path:
    """Return the library that has to be loaded before torch looks for a GPU."""
    return compile_library("hooks", ("c10", "torch_cpu"), "hooks")


def device() -> Path:
    """Return the extension module with the device."""
    return compile_library("device", ("c10", "torch_cpu", "torch_python"), MODULE)


if __name__ == "__main__":
    hooks()
    device()
