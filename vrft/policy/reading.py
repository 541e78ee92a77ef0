"""Read a checkpoint's model and processor, with the forwards that vrft needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vrft.policy.chat_template import check_template
from vrft.policy.checkpoint import checkpoint_folder
from vrft.policy.four_bits import FIELD as QUANTIZE
from vrft.policy.four_bits import check_four_bits, compute_in, nf4_settings, published_in_four_bits
from vrft.policy.fused import fuse_layers
from vrft.policy.image_size import ImageLimits, apply_fields, apply_to_config, limited_fields
from vrft.policy.last_layer import shorten_last_layer
from vrft.policy.patches import match_dtypes, project_patches
from vrft.policy.positions import fix_frequencies
from vrft.policy.pretrained import TRUST_REMOTE_CODE_HINT, exact_dtype, load_pretrained
from vrft.policy.support import check_supported
from vrft.policy.trial_prompt import check_trial_prompt
from vrft.policy.turns import check_turns
from vrft.utils.hub import loading
from vrft.utils.processors import load_processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ReadModel(NamedTuple):
    """A model, and what was found out about it."""

    model: PreTrainedModel
    processor: Any
    shares_prefixes: bool  # whether forwards can share the prompt between completions


@dataclass(frozen=True)
class Reader:
    """Reads a checkpoint with the settings of `vrft.Policy`."""

    checkpoint: str  # the name in the config
    adapters: bool  # whether adapters are trained instead of the checkpoint's weights
    dtype: torch.dtype
    quantize: str | None
    limits: ImageLimits
    gradient_checkpointing: bool
    trust_remote_code: bool

    def __post_init__(self) -> None:
        """Raise ConfigurationError for incompatible settings."""
        if self.quantize:
            check_four_bits(self.adapters, QUANTIZE)

    @cached_property
    def folder(self) -> str:
        """The folder with the checkpoint's files, downloaded on first access for a model on the Hub."""
        return checkpoint_folder(self.checkpoint, code=self.trust_remote_code)

    @property
    def in_four_bits(self) -> bool:
        """Whether linear layers of the language model are in four bits, by `quantize` or in the checkpoint."""
        return self.quantize is not None or published_in_four_bits(self.folder)

    def check_turns(self, images_per_turn: Sequence[int]) -> None:
        """Raise ConfigurationError if the processor can't encode a chat with these numbers of images."""
        if sum(images_per_turn) > 1:
            processor = self.read_processor()
            with self._loading():
                check_turns(processor, self.checkpoint, images_per_turn)

    def read_processor(self) -> Any:
        """Return the checkpoint's processor, without reading the model."""
        with self._loading():
            processor = load_processor(self.folder, self.trust_remote_code)
            check_template(processor, self.checkpoint)
        return processor

    def _loading(self) -> AbstractContextManager[None]:
        """Return a context in which errors about the checkpoint's files name the setting."""
        return loading("model.policy.checkpoint", self.checkpoint, TRUST_REMOTE_CODE_HINT, self.trust_remote_code)

    def read(self, values: bool = True) -> ReadModel:
        """Build the model, with weights as stored in the checkpoint.

        `values`: whether to read the weights. If false, parameters and the model's buffers are on the meta device.
        """
        from vrft.policy.shared_prefix import share_prefixes
        from vrft.policy.vision_tower import pack_segments

        with self._loading():
            config = check_supported(self.folder, self.trust_remote_code)
            processor = load_processor(self.folder, self.trust_remote_code)
            check_template(processor, self.checkpoint)
            fields = limited_fields(processor.image_processor, self.limits)
            apply_fields(processor.image_processor, fields)
            check_trial_prompt(processor, config, self.checkpoint, self.trust_remote_code)
            model = self._load(values)
            model.name_or_path = self.checkpoint  # an adapter names it as its base
            compute_in(model, self.dtype)
        apply_to_config(model.config, fields)
        shares_prefixes = share_prefixes(model)
        project_patches(model)
        match_dtypes(model)
        if shares_prefixes:
            shorten_last_layer(model)
        fuse_layers(model)
        pack_segments(model)
        fix_frequencies(model)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return ReadModel(model, processor, shares_prefixes)

    def _load(self, values: bool) -> PreTrainedModel:
        more: dict[str, Any] = {} if values else {"device_map": "meta"}
        # trained weights are converted to float32 later, so don't round them here
        dtype = self.dtype if self.adapters else exact_dtype(self.folder, self.dtype)
        if published_in_four_bits(self.folder):
            check_four_bits(self.adapters, f"model.policy.checkpoint: {self.checkpoint} is in four bits")
        elif self.quantize:
            more |= nf4_settings(self.folder, self.dtype, self.trust_remote_code)
        return load_pretrained(self.folder, dtype, self.trust_remote_code, attn_implementation="sdpa", **more)
