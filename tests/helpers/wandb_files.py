"""Reader of offline Weights & Biases runs: protocol buffer records in LevelDB's log format."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK, FRAME = 7, 32768, 7
FULL, FIRST = 1, 2


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file, up to a possibly partial last one."""
    from wandb.proto.wandb_internal_pb2 import Record  # here, so that only workers that read records import it

    data, position, whole = path.read_bytes(), HEADER, b""
    while position + FRAME <= len(data):
        if BLOCK - position % BLOCK < FRAME:  # the rest of the block is padding
            position += BLOCK - position % BLOCK
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        part = data[position + FRAME : position + FRAME + size]
        position += FRAME + size
        whole = part if kind in (FULL, FIRST) else whole + part
        if kind in (FULL, 4):
            record = Record()
            record.ParseFromString(whole)
            yield record


def wait_for_end(path: Path, patience: float = 60) -> None:
    """Wait until a file has the end of its run: wandb's service writes it after `finish` has returned."""
    until = time.monotonic() + patience
    while "exit" not in {record.WhichOneof("record_type") for record in records(path)}:
        assert time.monotonic() < until, f"{path} has no end"
        time.sleep(0.05)


def history(path: Path) -> list[dict[str, Any]]:
    """Return the logged rows."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]
