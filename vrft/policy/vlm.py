"""The policy: checkpoint, processor, LoRA, freezing and the reference it is compared with."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from vrft.policy.checkpoint import find_checkpoint
from vrft.policy.logprobs import token_log_probs
from vrft.policy.processor import Encoder, copy_processor, load_processor
from vrft.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ABSOLUTE_COORDINATES = {"qwen2_5_vl"}
"""Model types that name positions in pixels of the resized image; all others get 0..1000."""

SPECIAL_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on the language model (arXiv 2106.09685).

    Attributes:
        r: rank.
        alpha: scale; the adapter's output is multiplied by alpha / r.
        target_modules: names of the linear layers that get one, or "all-linear", which includes the vision tower.
    """

    r: int = 16
    alpha: int = 32
    target_modules: str | list[str] = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


class Policy(nn.Module):
    """A Hugging Face vision-language model with its processor.

    Weights that train are float32 whatever `dtype` is: bfloat16 weights do not move at a learning rate of 1e-6.
    """

    model: nn.Module
    reference: PreTrainedModel | None
    banned_ids: Tensor
    stop_ids: Tensor

    def __init__(
        self,
        checkpoint: str,
        lora: LoRA | None = None,
        freeze_vision: bool = False,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Names the checkpoint; `load` reads it.

        Args:
            checkpoint: a folder, a model on the Hugging Face Hub, or a built-in one (tiny-detection, tiny-digits).
            lora: train low-rank adapters instead of all weights; the reference is then the model without them.
            freeze_vision: leave the vision tower as it is.
            dtype: of the computation, and of weights that don't train.
            min_pixels: smaller images are enlarged to this area; default: the checkpoint's own.
            max_pixels: larger images are shrunk to this area; default: the checkpoint's own.
            gradient_checkpointing: compute activations again in the backward pass: slower, less memory.
        """
        super().__init__()
        self.checkpoint = find_checkpoint(checkpoint)
        self.lora = lora
        self.freeze_vision = freeze_vision
        self.dtype = getattr(torch, dtype)
        self.pixels = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
        self.gradient_checkpointing = gradient_checkpointing
        self.reference = None
        self.processor: Any = None

    def load(self, keep_reference: bool) -> None:
        """Read the checkpoint. `keep_reference`: keep a frozen copy to compare with, unless LoRA makes one needless."""
        from transformers import AutoModelForImageTextToText

        from vrft.policy.shared_prefix import share_prefixes

        self.processor = load_processor(self.checkpoint)
        size = self.processor.image_processor.size
        for edge, value in self.pixels.items():
            if value is not None:
                size[edge] = value
        model = AutoModelForImageTextToText.from_pretrained(
            self.checkpoint, dtype=torch.float32, use_safetensors=True, attn_implementation="sdpa"
        )
        share_prefixes(model)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if keep_reference and self.lora is None:
            self.reference = copy.deepcopy(model).requires_grad_(False).eval().to(self.dtype)
        if self.freeze_vision:
            model.get_encoder(modality="image").requires_grad_(False)
        self.model = model if self.lora is None else self._with_adapters(model, self.lora)
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(self.dtype)
        config = model.config.to_dict()
        banned = [config[name] for name in SPECIAL_IDS if config.get(name) is not None]
        stop = model.generation_config.eos_token_id
        stop = [*stop] if isinstance(stop, list) else [stop]
        self.register_buffer("banned_ids", torch.tensor(banned), persistent=False)
        self.register_buffer("stop_ids", torch.tensor(sorted({*stop, self.tokenizer.eos_token_id})), persistent=False)

    @staticmethod
    def _with_adapters(model: PreTrainedModel, lora: LoRA) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        # Dropout would give the prompt of a group one mask for all its completions, so there is none.
        config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules, lora_dropout=0.0)
        return get_peft_model(model, config)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model itself; adapters are part of its layers."""
        return self.model if self.lora is None else self.model.get_base_model()  # type: ignore[operator]

    def encoder(self, task: Task) -> Encoder:
        """What turns samples into prompts for this model."""
        kind = self.base.config.model_type
        return Encoder(self.processor, task, "absolute" if kind in ABSOLUTE_COORDINATES else "relative")

    def autocast(self) -> Any:
        """The computation's dtype, for every forward."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.banned_ids.device.type, self.dtype)

    def forward(
        self, inputs: dict[str, Tensor], ids: Tensor, mask: Tensor, temperature: float, *, reference: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropy of completions, both (N, T) and 0 where mask is 0.

        Args:
            inputs: the processor's output for P left-padded prompts.
            ids: completions, right-padded (N, T).
            mask: 1 at real tokens (N, T).
            temperature: of the sampling distribution.
            reference: ask the reference instead; call under `no_grad`.
        """
        from vrft.policy.shared_prefix import group_hidden_states

        group = len(ids) // len(inputs["input_ids"])
        with self.autocast(), self._reference() if reference else nullcontext(self.base) as model:
            hidden = group_hidden_states(model, inputs, ids, group)  # (N, T, H)
            return token_log_probs(
                model.get_output_embeddings(), hidden, ids, mask, temperature=temperature, banned=self.banned_ids
            )

    @contextmanager
    def _reference(self) -> Iterator[PreTrainedModel]:
        if self.lora is not None:
            with self.model.disable_adapter():  # type: ignore[operator]
                yield self.base
        else:
            assert self.reference is not None, "load(keep_reference=True) first"
            yield self.reference

    def trainable_names(self) -> set[str]:
        """Names of the parameters that train, as in `named_parameters`."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def decode(self, ids: Tensor, mask: Tensor) -> list[str]:
        """Texts of completions (N, T) without the end token. Other special tokens stay: they are part of the answer."""
        stop = torch.isin(ids, self.stop_ids)
        keep = mask.bool() & ~stop
        rows = [row[kept].tolist() for row, kept in zip(ids, keep, strict=True)]
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=False)
        return texts

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder that `from_pretrained` loads, in the dtype that the checkpoint came in.

        Adapters are merged into the weights; they are written apart as well, under `adapter/`.
        """
        from transformers import AutoConfig, AutoModelForImageTextToText

        dtype = AutoConfig.from_pretrained(self.checkpoint).dtype or torch.float32
        model = AutoModelForImageTextToText.from_pretrained(self.checkpoint, dtype=torch.float32, use_safetensors=True)
        if self.lora is None:
            model.load_state_dict(self.base.state_dict())
        else:
            from peft import PeftModel

            self.model.save_pretrained(folder / "adapter")  # type: ignore[operator]
            model = PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload()
        model.to(dtype).save_pretrained(folder)
        copy_processor(self.checkpoint, folder)
