"""The last layer computes the tokens alone whose states are used, if its formula is the usual one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer

from tests.helpers import families
from tests.policy.test_families import Prompts, completions, load
from vrft.policy.fused_norms import subclass
from vrft.policy.last_layer import Everything, LastLayer, layers_agree
from vrft.policy.sharing_check import unfuse


class Scaled(LlamaDecoderLayer):
    """A layer that scales what attention adds, as Granite's does."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden = hidden_states + 0.5 * attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Told(LlamaDecoderLayer):
    """A layer whose MLP takes the kinds of tokens, too, as Ernie 4.5 VL's does."""

    def forward(self, hidden_states: Tensor, kinds: Tensor | None = None, **kwargs: Any) -> Tensor:
        return hidden_states + self.mlp(hidden_states, kinds)


class Routed(LlamaDecoderLayer):
    """A layer whose MLP returns the logits of its router, too."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        added, _ = self.mlp(hidden_states)
        return hidden_states + added


class Rotated(LlamaDecoderLayer):
    """A layer that reads the positions itself."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        return hidden_states * kwargs["position_embeddings"].cos()


class Weightless(LlamaDecoderLayer):
    """A layer whose norms have no weights, as OLMo's."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.input_layernorm = nn.LayerNorm(16, elementwise_affine=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    return families.written_once(tmp_path_factory)


@pytest.mark.parametrize(
    ("kind", "agrees"),
    [(LlamaDecoderLayer, True), *((kind, False) for kind in (Scaled, Told, Routed, Rotated, Weightless))],
)
def test_layers_with_another_formula_stay(kind: type[nn.Module], agrees: bool) -> None:
    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    layer = kind(config, 0)
    assert layers_agree(layer, subclass(LastLayer, kind)) == agrees
    assert type(layer) is kind
    assert "forward" not in vars(layer.mlp)
    assert "forward" not in vars(layer.self_attn)
    assert len(Everything.kept) == 3


def test_the_last_mlp_computes_predicting_tokens_alone(checkpoint: Callable[[str], str]) -> None:
    policy = load(checkpoint("qwen2_5_vl"))
    prompts = Prompts(policy)
    ids, mask = completions(policy)
    rows: list[int] = []
    last = policy.base.get_decoder().layers[-1]
    last.mlp.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[1]))
    with torch.no_grad():
        short, _ = policy(policy.prepare(prompts.batch).inputs, ids, mask, 1.0)
        unfuse(policy)
        whole, _ = policy(policy.prepare(prompts.batch).inputs, ids, mask, 1.0)
    inputs = int((mask.sum(1) - 1).sum())
    tokens = sum(prompt["input_ids"].shape[1] for prompt in prompts.batch.inputs)
    assert rows == [inputs + len(prompts.batch.inputs), inputs + tokens]
    assert torch.allclose(short, whole, atol=1e-5)
