"""Prepare a fork server for commands: do once what each command does on first use.

Commands import data modules, evaluators and models late, jsonargparse caches the parameters of each class, and
transformers compiles the patterns of its key names. Nothing here may start a thread, which a fork would lose: hotcoco
and operations of torch do.
"""

from __future__ import annotations

import contextlib
import importlib
import io

from PIL import Image
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from vrft.__main__ import main

LATE = (
    "hotcoco",
    "torch.nn.attention.varlen",
    "transformers.models.auto.processing_auto",
    "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen2_vl.processing_qwen2_vl",
    "vrft.policy.repeated",
    "vrft.policy.vision_tower",
    "vrft.report.usage",
    "vrft.training.loss_inputs",
)

Image.init()
get_checkpoint_conversion_mapping("qwen2_vl")
for name in LATE:
    importlib.import_module(name)
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["fit", "--config", "quickstart", "--print_config"])
