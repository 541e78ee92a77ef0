"""Decoder layers for one new token per row, in few kernels.

On a GPU, decoding takes as long as its kernels take to start: about 60 in each layer of a Hugging Face model, 23 here.
Norms are one kernel each, and so are all projections of one input and the rotation of queries and keys. A model whose
layers are built otherwise keeps its own forward, and so does one whose first token shows a difference.

N rows, H hidden size, D size of a head.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from vrft.policy.four_bits import is_in_four_bits

FusedWeights = Mapping[nn.Module, tuple[Tensor, Tensor | None]]
"""Weight and bias of all projections of an input, one below the other, by the first of these projections."""

LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest relative difference of a layer's output that is rounding, by dtype."""


class TokenLayout(Protocol):
    """Computes attention of one new token per row."""

    def attend_token(self, layer: int, query: Tensor, key_value: Tensor, scaling: float) -> Tensor:
        """Store key and value (N, 2, key heads, D) and attend: (N, heads, D) -> (N, heads * D)."""


def decoding_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the text model's layers if all have the usual parts: norm, attention, norm, gated MLP. Otherwise, none."""
    layers = [*model.get_decoder().layers]
    return layers if all(has_usual_parts(layer) for layer in layers) else []


def has_usual_parts(layer: nn.Module) -> bool:
    """Return whether `DecodingLayer` may compute a layer, by the names and types of its modules."""
    parts = dict(layer.named_children())
    if parts.keys() != LAYER:
        return False
    attention, mlp = (dict(parts[name].named_children()) for name in ("self_attn", "mlp"))
    head_norms = attention.keys() - ATTENTION
    linear = [attention.get(name) for name in ATTENTION] + [mlp.get(name) for name in MLP - {"act_fn"}]
    norms = [parts["input_layernorm"], parts["post_attention_layernorm"], *(attention[name] for name in head_norms)]
    return (
        head_norms in (set(), HEAD_NORMS)
        and mlp.keys() == MLP
        and all(isinstance(module, nn.Linear) and not is_in_four_bits(module) for module in linear)
        and all(getattr(norm, "variance_epsilon", None) is not None for norm in norms)
    )


def fused_projections(layer: nn.Module) -> list[list[nn.Linear]]:
    """Return the projections of a layer that have the same input: of queries, keys and values, and of the MLP."""
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    return [[attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]]


def project(x: Tensor, modules: Sequence[nn.Linear], fused: FusedWeights) -> Tensor:
    """Return the outputs of several linear layers side by side."""
    if modules[0] in fused:
        return F.linear(x, *fused[modules[0]])
    return torch.cat([F.linear(x, module.weight, module.bias) for module in modules], -1)


def rms_norm(x: Tensor, norm: Any) -> Tensor:
    """Apply a norm of transformers in one kernel."""
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def add_projected(x: Tensor, y: Tensor, linear: nn.Linear) -> Tensor:
    """Return x plus the output of a linear layer for y. Without a bias, this is one kernel and overwrites x."""
    bias: Tensor | None = linear.bias
    if bias is None and x.dtype == linear.weight.dtype:
        return x.addmm_(y, linear.weight.t())
    return x + linear(y)


class Rotations:
    """Cosines and sines of a token by head, made once for all layers. Values are not rotated."""

    def __init__(self) -> None:
        self.made_from: object = None
        self.cos = self.sin = torch.empty(0)

    def of(self, embeddings: tuple[Tensor, Tensor], rotated: int, kept: int) -> tuple[Tensor, Tensor]:
        """Return cosines and signed sines (N, rotated + kept heads, D) for rotary embeddings (N, 1, D)."""
        if embeddings is not self.made_from:
            self.made_from, (cos, sin) = embeddings, embeddings
            sin = torch.cat([-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]], -1)
            self.cos, self.sin = (
                torch.cat([x.expand(-1, rotated, -1), x.new_full((), rest).expand(len(x), kept, x.shape[-1])], 1)
                for x, rest in ((cos, 1), (sin, 0))
            )
        return self.cos, self.sin


class DecodingLayer:
    """The forward of one layer for one new token per row."""

    def __init__(self, layer: Any, fused: FusedWeights, rotations: Rotations) -> None:
        self.layer, self.fused, self.rotations = layer, fused, rotations
        self.projections = fused_projections(layer)
        self.has_head_norms = dict(layer.self_attn.named_children()).keys() >= HEAD_NORMS

    def __call__(
        self,
        hidden_states: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        shared_prefix: TokenLayout,
        **_: Any,
    ) -> Tensor:
        """Return the output of the layer, which may overwrite the input: (N, 1, H) -> (N, 1, H)."""
        x, layer = hidden_states[:, 0], self.layer
        dtype = layer.self_attn.o_proj.weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            attended = self.attend(rms_norm(x, layer.input_layernorm).to(dtype), position_embeddings, shared_prefix)
            x = add_projected(x, attended, layer.self_attn.o_proj)
            inner = project(rms_norm(x, layer.post_attention_layernorm).to(dtype), self.projections[1], self.fused)
            gate, up = inner.chunk(2, -1)
            return add_projected(x, layer.mlp.act_fn(gate) * up, layer.mlp.down_proj)[:, None]

    def attend(self, x: Tensor, embeddings: tuple[Tensor, Tensor], layout: TokenLayout) -> Tensor:
        """Return the output of attention before its projection: (N, H) -> (N, heads * D)."""
        attention = self.layer.self_attn
        size = attention.head_dim
        states = project(x, self.projections[0], self.fused).unflatten(-1, (-1, size))  # (N, all heads, D)
        keys = attention.k_proj.out_features // size
        queries = states.shape[1] - 2 * keys
        if self.has_head_norms:
            query, key, value = states.split([queries, keys, keys], 1)
            states = torch.cat([rms_norm(query, attention.q_norm), rms_norm(key, attention.k_norm), value], 1)
        cos, sin = self.rotations.of(embeddings, queries + keys, keys)
        rotated = torch.addcmul(states * cos, states.roll(size // 2, -1), sin, out=torch.empty_like(states))
        key_value = rotated[:, queries:].unflatten(1, (2, keys))
        return layout.attend_token(attention.layer_idx, rotated[:, :queries], key_value, attention.scaling)


def rounding_of(layer: Any) -> float:
    """Return the largest relative difference of a layer's output that is rounding."""
    return ROUNDING[layer.self_attn.o_proj.weight.dtype]


class DecodingLayers:
    """The layers of a model, which may be replaced by `DecodingLayer` once they were seen to compute the same.

    Attributes:
        checked: whether they were compared.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = decoding_layers(model)
        self.checked = not self.layers

    def compare(self, fast: Sequence[DecodingLayer], forward: Callable[[], Tensor]) -> None:
        """Keep the model's own layers if the others compute something else in a forward of one token per row.

        The forward is made again with the layers that are chosen: a resumed run compares again, at another token, and
        has to sample the same completions.
        """
        gaps: list[Tensor] = []
        with self.replaced([self._compared(*pair, gaps) for pair in zip(self.layers, fast, strict=True)]):
            forward()
        self.checked = True
        largest = float(torch.stack(gaps).max())  # NaN if any is
        if not largest < rounding_of(self.layers[0]):
            self.layers = []
            warnings.warn(f"decoding uses the model's own layers: fused ones differ by {largest:.1e}", stacklevel=2)

    @contextmanager
    def replaced(self, forwards: Sequence[Callable[..., Tensor]]) -> Iterator[None]:
        """Replace the layers' forwards, for steps of one token per row."""
        for layer, forward in zip(self.layers, forwards, strict=True):
            layer.__dict__["forward"] = forward
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.__dict__["forward"]

    def _compared(self, layer: nn.Module, fast: DecodingLayer, gaps: list[Tensor]) -> Callable[..., Tensor]:
        own = layer.forward

        def forward(hidden_states: Tensor, **kwargs: Any) -> Tensor:
            expected: Tensor = own(hidden_states, **kwargs)
            cos = kwargs["position_embeddings"][0]
            if cos.ndim != 3 or cos.shape[-1] != layer.self_attn.head_dim:  # type: ignore[union-attr]
                gaps.append(expected.new_full((), torch.inf))  # rotates a part of each head, or by several axes
                return expected
            found = fast(hidden_states.clone(), **kwargs)
            gaps.append((found - expected).norm() / (expected - hidden_states).norm())
            return expected

        return forward
