"""Decoder layers for one new token per row, in few kernels.

On a GPU, decoding takes as long as its kernels take to start: about 60 in each layer of a Hugging Face model, 21 here.
Norms are one kernel each, and so are all projections of one input and the rotation of queries and keys. A model whose
layers are built otherwise keeps its own forward, and so does one whose first token shows a difference.

N rows, H hidden size, D size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vrft.policy.four_bits import is_in_four_bits
from vrft.policy.fused import signed_sines
from vrft.policy.products import Product, Products
from vrft.policy.shared_prefix import Layout

LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
Factors = tuple[Tensor, Tensor]
"""Cosines and sines of the angles by which a token's heads are rotated."""

MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class TokenLayout(Layout, Protocol):
    """Computes attention of one new token per row."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None = None, **_: Any
    ) -> Tensor:
        """Compute attention of one new token per row: (N, heads, 1, dim) -> (N, 1, heads, dim)."""
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        key_value = torch.stack([key[:, :, 0], value[:, :, 0].to(key.dtype)], 1)  # (N, 2, kv, dim)
        output = self.attend_token(module.layer_idx, query[:, :, 0], key_value, scaling)  # type: ignore[arg-type]
        return output.view(len(query), 1, *query.shape[1::2])

    def attend_token(self, layer: int, query: Tensor, key_value: Tensor, scaling: float) -> Tensor:
        """Store key and value (N, 2, key heads, D) and attend: (N, heads, D) -> (N, heads * D)."""


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
        and all(map(has_epsilon, norms))
    )


def has_epsilon(norm: nn.Module) -> bool:
    """Return whether `rms_norm` may compute a norm."""
    return getattr(norm, "variance_epsilon", None) is not None


def fused_projections(layer: nn.Module) -> list[list[nn.Linear]]:
    """Return the projections of a layer that have the same input: of queries, keys and values, and of the MLP."""
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    return [[attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]]


def project(x: Tensor, modules: Sequence[nn.Linear], products: Products) -> Tensor:
    """Return the outputs of several linear layers side by side."""
    if modules[0] in products:
        return F.linear(x, *products[modules[0]])
    return torch.cat([F.linear(x, module.weight, module.bias) for module in modules], -1)


@cache
def norm_constants(size: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return 0 and sqrt(size * epsilon) as tensors on the CPU."""
    return torch.zeros((), device="cpu"), torch.tensor((size * epsilon) ** 0.5, device="cpu")


def rms_norm(x: Tensor, norm: Any) -> Tensor:
    """Apply a norm of transformers: x / sqrt(mean(x^2) + eps) * weight."""
    if x.is_cpu and x.dtype == torch.float32:  # F.rms_norm is six operations there
        size = x.shape[-1]
        zero, floor = norm_constants(size, norm.variance_epsilon)
        root = torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)  # sqrt(H) times as large
        return torch.addcdiv(zero, x, root, value=size**0.5).mul_(norm.weight)
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def add_projected(x: Tensor, y: Tensor, linear: nn.Linear, products: Products) -> Tensor:
    """Return x plus the output of a linear layer for y, which may overwrite x: without a bias, this is one kernel."""
    weight, bias = products.get(linear) or Product(linear.weight, linear.bias)
    if bias is None and x.dtype == weight.dtype:
        return x.addmm_(y, weight.t())
    return x + F.linear(y, weight, bias)


def factors_by_head(embeddings: Factors, rotated: int, kept: int) -> Factors:
    """Return cosines and signed sines of a token by head, (N, rotated + kept heads, D): values are not rotated.

    Args:
        embeddings: rotary embeddings of the token (N, 1, D).
        rotated: heads of queries and keys.
        kept: heads of values.
    """
    cos, sin = embeddings
    cos, sin = (x.expand(-1, rotated, -1) for x in (cos, signed_sines(sin)))
    return F.pad(cos, (0, 0, 0, kept), value=1.0), F.pad(sin, (0, 0, 0, kept))


class DecodingLayer:
    """The forward of one layer for one new token per row.

    Attributes:
        rotated: heads of queries and keys.
        kept: heads of values.
        size: size of a head, D.
    """

    def __init__(self, layer: Any, products: Products) -> None:
        attention = layer.self_attn
        self.layer, self.attention, self.mlp, self.products = layer, attention, layer.mlp, products
        self.projections = fused_projections(layer)
        self.has_head_norms = dict(attention.named_children()).keys() >= HEAD_NORMS
        self.size: int = attention.head_dim
        self.kept = attention.k_proj.out_features // self.size
        self.queries = attention.q_proj.out_features // self.size
        self.rotated = self.queries + self.kept

    def __call__(self, x: Tensor, factors: Factors, layout: TokenLayout) -> Tensor:
        """Return the output of the layer, which may overwrite the input: (N, H) -> (N, H).

        Args:
            x: hidden states in the dtype of the weights, without autocast.
            factors: rotation factors of the token (N, all heads, D).
            layout: stores keys and values, and attends to them.
        """
        attended = self.attend(rms_norm(x, self.layer.input_layernorm), factors, layout)
        x = add_projected(x, attended, self.attention.o_proj, self.products)
        inner = project(rms_norm(x, self.layer.post_attention_layernorm), self.projections[1], self.products)
        gate, up = inner.chunk(2, -1)
        return add_projected(x, self.mlp.act_fn(gate).mul_(up), self.mlp.down_proj, self.products)

    def attend(self, x: Tensor, factors: Factors, layout: TokenLayout) -> Tensor:
        """Return the output of attention before its projection: (N, H) -> (N, heads * D)."""
        attention, (cos, sin) = self.attention, factors
        states = project(x, self.projections[0], self.products).view(x.shape[0], -1, self.size)  # (N, all heads, D)
        if self.has_head_norms:
            query, key, value = states.split([self.queries, self.kept, self.kept], 1)
            states = torch.cat([rms_norm(query, attention.q_norm), rms_norm(key, attention.k_norm), value], 1)
        states = torch.addcmul(states * cos, states.roll(self.size // 2, -1), sin)
        query, key_value = states.split([self.queries, 2 * self.kept], 1)
        key_value = key_value.view(x.shape[0], 2, self.kept, self.size)
        return layout.attend_token(attention.layer_idx, query, key_value, attention.scaling)
