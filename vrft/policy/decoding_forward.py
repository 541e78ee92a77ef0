"""The forward of a language model for one new token per row, checked against the model's own.

A model of transformers merges arguments, looks for images, builds masks and wraps its output for each token.

N rows, H hidden size, D size of a head.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from vrft.policy.decoding_layers import (
    DecodingLayer,
    Factors,
    TokenLayout,
    factors_by_head,
    has_epsilon,
    has_usual_parts,
    rms_norm,
)
from vrft.policy.products import Products, replaced_forwards
from vrft.policy.recurrent import StatefulForward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}

ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest relative difference that is rounding, by dtype."""

AHEAD = 16
"""Tokens of a row whose rotation factors a CPU computes at once."""

FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Types of rotary embeddings whose frequencies do not depend on the largest position."""


def decoding_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the text model's layers if `DecodingForward` may compute the model, by its parts. Otherwise, none."""
    decoder: Any = model.get_decoder()
    layers = [*decoder.layers]
    usual = (
        dict(decoder.named_children()).keys() == PARTS
        and not scales_queries(model)
        and [*inspect.signature(decoder.rotary_emb.forward).parameters] == ["x", "position_ids"]
        and has_epsilon(decoder.norm)
        and all(map(has_usual_parts, layers))
    )
    return layers if usual else []


def scales_queries(model: PreTrainedModel) -> bool:
    """Return whether attention multiplies queries by a function of the position, as that of Ministral 3."""
    return "llama_4_scaling_beta" in (getattr(model.config.get_text_config(), "rope_parameters", None) or {})


class DecodingForward:
    """Embeddings, layers and the last norm for one new token per row."""

    def __init__(self, model: PreTrainedModel, layers: list[nn.Module], products: Products) -> None:
        """Take the model, its layers without adapters, and products with their weights."""
        self.embedding, self.decoder = model.get_input_embeddings(), model.get_decoder()
        self.layers = [DecodingLayer(layer, products) for layer in layers]
        self.rotations = Rotations(self.decoder.rotary_emb, self.layers[0])

    def __call__(self, tokens: Tensor, positions: Tensor, layout: TokenLayout) -> Tensor:
        """Return the hidden states of new tokens: (N,) at positions (…, N, 1) -> (N, H)."""
        with torch.autocast(tokens.device.type, enabled=False):
            x: Tensor = self.embedding(tokens).to(self.layers[0].attention.o_proj.weight.dtype)
            factors = self.rotations.at(positions, x)
            for layer in self.layers:
                x = layer(x, factors, layout)
            return rms_norm(x, self.decoder.norm)


class Rotations:
    """Rotation factors of new tokens.

    Rotary embeddings are some 20 small operations, so that a CPU computes them for several tokens of a row at once. It
    does not where frequencies depend on the largest position.
    """

    def __init__(self, embed: Any, layer: DecodingLayer) -> None:
        """Take the model's rotary embedding, and a layer with as many heads as the others have."""
        self.embed, self.layer = embed, layer
        self.ahead = AHEAD if getattr(embed, "rope_type", None) in FIXED_ROTATIONS else 1
        self.known: list[tuple[Tensor, Factors]] = []  # positions and factors of the next tokens

    def at(self, positions: Tensor, x: Tensor) -> Factors:
        """Return the factors of positions (…, N, 1), each (N, all heads, D), in the dtype of hidden states x (N, H)."""
        if not positions.is_cpu:
            return factors_by_head(self.embed(x[:, None], positions), self.layer.rotated, self.layer.kept)
        if not self.known or not torch.equal(self.known[0][0], positions):
            following = positions + torch.arange(self.ahead)  # (…, N, ahead)
            embeddings = (part.transpose(0, 1).flatten(0, 1)[:, None] for part in self.embed(x[:, None], following))
            cos, sin = factors_by_head(tuple(embeddings), self.layer.rotated, self.layer.kept)  # (ahead N, heads, D)
            factors = zip(cos.split(len(x)), sin.split(len(x)), strict=True)
            self.known = list(zip(following.split(1, -1), factors, strict=True))
        return self.known.pop(0)[1]


class Attended(NamedTuple):
    """Attention of a layer to which the model's own forward came.

    Attributes:
        asked: scaled queries, keys and values of the token, each (N, heads, D).
        output: (N, heads * D).
    """

    asked: tuple[Tensor, ...]
    output: Tensor


class SameAttention(TokenLayout):
    """Attends as another layout does, once in each layer; whoever asks again gets the same output.

    With large biases of keys, scores of attention are so large that rounding a query or a key moves the attention from
    one key to another. So outputs of layers can only be compared behind the same attention, and what fused layers ask
    of it, before.

    Attributes:
        gaps: how much queries, keys and values differ between those that asked first and again.
    """

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout
        self.known: dict[int, Attended] = {}
        self.gaps: list[Tensor] = []

    def attend_token(self, layer: int, query: Tensor, key_value: Tensor, scaling: float) -> Tensor:
        asked = (query * scaling, *key_value.unbind(1))
        if layer in self.known:
            self.gaps += map(relative_gap, asked, self.known[layer].asked)
        else:
            self.known[layer] = Attended(asked, self.layout.attend_token(layer, query, key_value, scaling))
        return self.known[layer].output

    def recur(self, module: nn.Module, forward: StatefulForward, hidden: Tensor) -> Tensor:
        return self.layout.recur(module, forward, hidden)


class DecodingCheck:
    """Whether a model may decode by a `DecodingForward`, which its first token shows, and be recorded.

    Attributes:
        layers: the layers that a `DecodingForward` computes; none if the model decodes by its own forward.
        done: whether the forwards were compared.
        recordable: whether an engine may record steps; false after it has failed to.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = decoding_layers(model)
        self.done = not self.layers
        self.recordable = True

    def compare(
        self,
        fast: DecodingForward,
        layout: TokenLayout,
        found: Callable[[TokenLayout], Tensor],
        own: Callable[[TokenLayout], Tensor],
    ) -> None:
        """Compare each layer and the last states, and don't use `fast` if one differs.

        Args:
            fast: the forward that may replace the model's own.
            layout: where new tokens attend.
            found: runs `fast` on new tokens with a layout; returns hidden states (N, H).
            own: runs the model's own forward on the same tokens.
        """
        same = SameAttention(layout)
        outputs: list[Tensor] = []
        pairs = zip(self.layers, fast.layers, strict=True)
        with replaced_forwards({layer: compared(layer, other, outputs) for layer, other in pairs}):
            expected = own(same)
        if len(outputs) == len(self.layers):  # otherwise, the model rotates a part of each head, or by several axes
            outputs.append(relative_gap(found(same), expected))
        else:
            outputs.append(expected.new_full((), torch.inf))
        self.done = True
        largest = float(torch.stack([*same.gaps, *outputs]).max())  # NaN if any is
        if not largest < ROUNDING[fast.layers[0].attention.o_proj.weight.dtype]:
            self.layers = []
            warnings.warn(f"decoding uses the model's own layers: fused ones differ by {largest:.1e}", stacklevel=2)


def compared(layer: nn.Module, fast: DecodingLayer, gaps: list[Tensor]) -> Callable[..., Tensor]:
    """Return a layer's own forward, which also computes `fast` and notes how much its output differs."""
    own = layer.forward

    def forward(hidden_states: Tensor, *, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any) -> Tensor:
        expected: Tensor = own(hidden_states, position_embeddings=position_embeddings, **kwargs)
        if position_embeddings[0].shape[1:] == (1, fast.size):
            factors = factors_by_head(position_embeddings, fast.rotated, fast.kept)
            with torch.autocast(expected.device.type, enabled=False):
                found = fast(hidden_states[:, 0].clone(), factors, kwargs["shared_prefix"])
            gaps.append(relative_gap(found, expected[:, 0], hidden_states[:, 0]))
        return expected

    return forward


def relative_gap(found: Tensor, expected: Tensor, start: Tensor | float = 0.0) -> Tensor:
    """Return how much a tensor differs from what is expected, relative to the change from `start`."""
    difference, change = (x.norm(dtype=torch.float32) for x in (found - expected, expected - start))
    return difference / change
