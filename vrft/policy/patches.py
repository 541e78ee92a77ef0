"""Replace modules of some families, to embed patches faster and to insert images into text of any dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PatchProjection(nn.Conv3d):
    """A 3-D convolution whose input has the size of its kernel, computed as a matrix product.

    On a CPU, this takes a third of the time.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2:] != self.kernel_size:
            return super().forward(input)
        product = F.linear(input.flatten(1), self.weight.flatten(1), self.bias)  # (patches, channels)
        return product[..., None, None, None]


def project_patches(model: PreTrainedModel) -> None:
    """Make Qwen models embed patches, which have the size of the kernel, by a matrix product."""
    for module in model.modules():
        if type(module) is nn.Conv3d and module.kernel_size == module.stride:
            module.__class__ = PatchProjection


class VisionDtypeEmbedding(nn.Embedding):
    """A text embedding whose output has the dtype of the vision tower's first layer."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).to(self.__dict__["vision"].weight.dtype)


def match_dtypes(model: PreTrainedModel) -> None:
    """Make SmolVLM insert images into text of any dtype.

    Its forward converts images to the dtype of the model's first weight, in the vision tower. Text has another dtype
    while a tied head decodes in bfloat16, or while frozen layers compute in float32.
    """
    if model.config.model_type == "smolvlm":
        embedding = model.get_input_embeddings()
        embedding.__class__ = VisionDtypeEmbedding
        # assigned without registering it as a submodule a second time
        embedding.__dict__["vision"] = model.base_model.vision_model.embeddings.patch_embedding
