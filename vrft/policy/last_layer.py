"""Compute a language model's last layer only for tokens whose hidden states are used: those that predict.

A prompt's other tokens end in keys and values of the last layer's attention; their MLP would be computed for nothing.

n tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vrft.policy.fused_norms import FusedLayer, subclass

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NORMS = ("input_layernorm", "post_attention_layernorm")
PARTS = {"self_attn", "mlp", *NORMS}


class LastLayer(FusedLayer):
    """A layer that returns the tokens that its layout's `kept` names, if it does (1, n, H)."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer: Any = self
        kept: Tensor | None = getattr(kwargs.get("shared_prefix"), "kept", None)
        if kept is None or args:
            output: Tensor = super().forward(hidden_states, *args, **kwargs)
            return output
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        hidden = (hidden_states + attended).index_select(1, kept)
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def shorten_last_layer(model: PreTrainedModel) -> None:
    """Let the last layer compute the tokens alone that are kept, if it is norm, attention, norm and MLP."""
    layer = model.get_decoder().layers[-1]
    if dict(layer.named_children()).keys() == PARTS:
        own: Any = type(layer)
        kind = subclass(LastLayer, own)
        if layers_agree(layer, kind):
            layer.__class__ = kind


class Everything:
    """A layout that keeps all of three tokens."""

    kept = torch.arange(3, device="cpu")


OTHER_CALLS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)
"""Errors of a forward that calls its parts with other arguments, or unpacks other results, than the usual layer."""


@torch.no_grad()
def layers_agree(layer: Any, kind: type[nn.Module]) -> bool:
    """Return whether a layer gives the same values as its own class and as `kind`, around any attention and MLP."""
    own = type(layer)
    try:
        with stubs(layer):
            expected, found = (output_as(layer, tried) for tried in (own, kind))
    except OTHER_CALLS:
        return False
    finally:
        layer.__class__ = own
    return isinstance(expected, Tensor) and expected.shape == found.shape and torch.allclose(found, expected, atol=1e-5)


def output_as(layer: Any, kind: type[nn.Module]) -> Any:
    """Return the output of a layer of class `kind` for fixed hidden states and weights of its norms."""
    size = len(layer.input_layernorm.weight)
    hidden = torch.arange(3.0 * size, device="cpu").sin().view(1, 3, size)
    values = {
        f"{name}.{key}": torch.arange(1.0, 1 + size, device="cpu").cos()
        for name in NORMS
        for key, parameter in getattr(layer, name).named_parameters()
        if parameter.ndim == 1
    }
    layer.__class__ = kind
    return functional_call(layer, values, hidden, {"position_embeddings": None, "shared_prefix": Everything})


@contextmanager
def stubs(layer: Any) -> Iterator[None]:
    """Let a layer's attention and MLP be simple functions."""
    layer.self_attn.__dict__["forward"] = lambda hidden_states, **_: (hidden_states.sin(), None)
    layer.mlp.__dict__["forward"] = lambda hidden_states: hidden_states.cos()
    try:
        yield
    finally:
        del layer.self_attn.__dict__["forward"], layer.mlp.__dict__["forward"]
