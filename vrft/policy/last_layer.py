"""Compute a language model's last layer only for the tokens that predict completion tokens.

Of a prompt's other tokens, only the keys and values in the last layer are used, so their MLP is skipped.

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
    """A layer that returns only the tokens in its layout's `kept`, if set, (1, n, H)."""

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
    """Make the last layer compute only the kept tokens, if it consists of norm, attention, norm and MLP."""
    layer = model.get_decoder().layers[-1]
    if dict(layer.named_children()).keys() == PARTS:
        own: Any = type(layer)
        kind = subclass(LastLayer, own)
        if layers_agree(layer, kind):
            layer.__class__ = kind


class Everything:
    """A layout of three tokens that keeps all of them."""

    kept = torch.arange(3, device="cpu")


OTHER_CALLS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)
"""Errors of a layer whose forward calls its parts with unusual arguments, or unpacks unusual results."""


@torch.no_grad()
def layers_agree(layer: Any, kind: type[nn.Module]) -> bool:
    """Return whether a layer gives the same output as its own class and as `kind`, whatever its attention and MLP."""
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
    """Return the output of a layer, as class `kind`, for fixed hidden states and fixed weights of its norms."""
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
    """Replace a layer's attention and MLP by simple functions in the context."""
    layer.self_attn.__dict__["forward"] = lambda hidden_states, **_: (hidden_states.sin(), None)
    layer.mlp.__dict__["forward"] = lambda hidden_states: hidden_states.cos()
    try:
        yield
    finally:
        del layer.self_attn.__dict__["forward"], layer.mlp.__dict__["forward"]
