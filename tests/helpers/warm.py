"""Prepare a fork server for commands: do once what each command does on first use.

Commands import data modules, evaluators and models late, and jsonargparse caches the parameters of each class. This
takes 0.2 of the 1.6 CPU-seconds of a short run in a new process.
"""

from __future__ import annotations

import contextlib
import importlib
import io

from PIL import Image

from vrft.__main__ import main

LATE = (
    "hotcoco",
    "transformers.models.auto.processing_auto",
    "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen2_vl.processing_qwen2_vl",
    "vrft.policy.repeated",
    "vrft.report.usage",
    "vrft.training.loss_inputs",
)

Image.init()
for name in LATE:
    importlib.import_module(name)
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["fit", "--config", "quickstart", "--print_config"])
