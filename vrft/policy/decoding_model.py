"""A model for decoding: copies of the weights and, where checked to compute the same, fused layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vrft.policy.decoding_layers import DecodingLayer, DecodingLayers, Rotations
from vrft.policy.decoding_weights import DecodingWeights, merged

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TokenForward:
    """Runs the forward of one new token per row, by fused layers once they are seen to compute the same.

    An engine's recordings refer to this rather than to the `DecodingModel` that keeps them: Python would free a cycle,
    and all of its memory on a GPU, only at some later time.
    """

    def __init__(self, model: PreTrainedModel, weights: DecodingWeights | None, layers: DecodingLayers) -> None:
        """Take the parts; arguments as in `DecodingModel`."""
        self.model, self.layers, self.fuses = model, layers, weights is not None
        fused, rotations = {} if weights is None else weights.fused, Rotations()
        with merged(model):
            self.fast = [DecodingLayer(layer, fused, rotations) for layer in layers.layers]

    def run(self, forward: Callable[[], Tensor]) -> Tensor:
        """Return what a forward of one token per row returns.

        The first one is made once more before it, to compare fused layers with the model's own.

        Args:
            forward: writes the same keys and values each time.
        """
        if self.fuses and not self.layers.checked:
            self.layers.compare(self.fast, forward)
        if not self.fuses or not self.layers.layers:
            return forward()
        with self.layers.replaced(self.fast):
            return forward()


class DecodingModel:
    """A model and what is kept with it from one rollout to the next.

    Attributes:
        model: the Hugging Face model.
        forward: runs its steps.
        recorded: what an engine has recorded with these weights; empty after any of them has moved.
    """

    def __init__(self, model: PreTrainedModel, weights: DecodingWeights | None, layers: DecodingLayers) -> None:
        """Take the parts.

        Args:
            model: the Hugging Face model.
            weights: copies to decode with; None decodes with the model's own weights and layers.
            layers: the model's layers.
        """
        self.model, self.weights = model, weights
        self.forward = TokenForward(model, weights, layers)
        self.recorded: dict[Any, Any] = {}
        self.addresses: list[int] = []

    @contextmanager
    def applied(self) -> Iterator[DecodingModel]:
        """Decode with the current weights."""
        if self.weights is None:
            yield self
            return
        with self.weights.applied():
            addresses = [tensor.data_ptr() for tensor in (*self.model.parameters(), *self.model.buffers())]
            if addresses != self.addresses:
                self.addresses = addresses
                self.recorded.clear()
            yield self
