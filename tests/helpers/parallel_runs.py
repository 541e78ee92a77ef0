"""Commands one after the other, in each of the processes that torchrun starts: `parallel_runs.py COMMANDS.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vrft.__main__ import main

if __name__ == "__main__":
    for command in json.loads(Path(sys.argv[1]).read_text()):
        if code := main(command):
            sys.exit(f"exit code {code}: {command}")
