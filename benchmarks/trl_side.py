"""The step of TRL's GRPOTrainer on the same work, with clocks around its methods.

Runs in the environment of `make bench-env` and does not import vrft.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from argparse import Namespace
from contextlib import redirect_stdout
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoProcessor, TrainerCallback
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available
from trl import GRPOConfig, GRPOTrainer
from work import Clock, count_images, pictures, result

LANGUAGE_MODEL = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class Timed(GRPOTrainer):
    """Adds the time of sampling, of log-probabilities without gradient and of `training_step` to a clock."""

    clock: Clock

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.part("rollout"):
            return super()._generate_single_turn(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        with self.clock.part("reference"):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.part("prepared"):
            return super()._prepare_inputs(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.part("update"):
            return super().training_step(*args, **kwargs)


class Steps(TrainerCallback):
    """Measures steps from the beginning to the end of an optimizer step, which in TRL includes loading pictures."""

    def __init__(self, clock: Clock, counts: dict[str, int], warmup: int) -> None:
        self.clock, self.counts, self.warmup = clock, counts, warmup

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if len(self.clock.steps) == self.warmup:
            self.counts.clear()
        self.clock.start_step()
        self.start = self.clock.now()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.before_optimizer = self.clock.now()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.clock.add("optimizer", self.before_optimizer)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.add("step", self.start)
        for suffix in ("", "@cpu"):
            self.clock.steps[-1][f"update{suffix}"] -= self.clock.steps[-1][f"prepared{suffix}"]


def arbitrary(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Return a reward that differs between completions."""
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def load_processor(folder: str, **settings: Any) -> Any:
    """Load the checkpoint's processor for images only, without torchvision, which videos need."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = PROCESSOR_MAPPING[type(config)]
    if is_torchvision_available() or "video_processor" not in kind.get_attributes():
        return AutoProcessor.from_pretrained(folder, **settings)
    attributes = [name for name in kind.get_attributes() if name != "video_processor"]
    images_only = type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda _: attributes)})
    return images_only.from_pretrained(folder, video_processor=None, **settings)


def measure(arguments: Namespace) -> dict[str, Any]:
    """Train for a few steps and return the line to print."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    processor = load_processor(arguments.checkpoint, padding_side="left", max_pixels=28 * 28 * 16384)
    rows = [
        {"prompt": [{"role": "user", "content": question}], "images": [image]}
        for image, question in pictures(arguments, processor.tokenizer)
    ]
    config = processor.tokenizer.convert_tokens_to_ids
    never = [config(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start", "vision_end")]
    cpu = arguments.device == "cpu"
    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=cpu,
        bf16=False,
        fp16=False,
        model_init_kwargs={"dtype": "float32" if cpu else "bfloat16", "attn_implementation": "sdpa"},
        per_device_train_batch_size=arguments.micro_batch,
        gradient_accumulation_steps=arguments.prompts * arguments.num_generations // arguments.micro_batch,
        num_generations=arguments.num_generations,
        max_completion_length=arguments.completion_tokens,
        generation_kwargs={"min_new_tokens": arguments.completion_tokens, "suppress_tokens": never},
        beta=arguments.beta,
        loss_type="grpo",
        max_steps=arguments.steps + arguments.warmup,
        learning_rate=1e-5 if arguments.lora_r else 1e-6,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        temperature=1.0,
        gradient_checkpointing=arguments.gradient_checkpointing,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=arguments.seed,
    )
    lora = LoraConfig(
        r=arguments.lora_r, lora_alpha=2 * arguments.lora_r, target_modules=LANGUAGE_MODEL, task_type="CAUSAL_LM"
    )
    clock, counts = Clock(arguments.device), dict[str, int]()
    with redirect_stdout(sys.stderr):
        trainer = Timed(
            model=arguments.checkpoint,
            reward_funcs=arbitrary,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=processor,
            peft_config=lora if arguments.lora_r else None,
            callbacks=[Steps(clock, counts, arguments.warmup)],
        )
        trainer.clock = clock
        models = [trainer.accelerator.unwrap_model(trainer.model), trainer.ref_model]
        named = [model.named_modules() for model in models if model is not None]
        towers = [next(module for name, module in modules if name.endswith("visual")) for modules in named]
        count_images(counts, processor.image_processor, towers)
        trainer.train()
    about = {"lib": "trl", "trl": trl.__version__, "transformers": transformers.__version__}
    return result(arguments, clock, counts, about | {"threads": torch.get_num_threads()})
