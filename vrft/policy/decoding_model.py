"""A model for decoding: copies of the weights and, where checked to compute the same, fused layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vrft.policy.decoding_forward import DecodingCheck, DecodingForward
from vrft.policy.decoding_layers import TokenLayout
from vrft.policy.decoding_weights import DecodingWeights, merged
from vrft.policy.shared_prefix import forward_with_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TokenForward:
    """Runs the forward of one new token per row: a fused one, once it is seen to compute what the model's own does.

    An engine's recordings refer to this rather than to the `DecodingModel` that keeps them: Python would free a cycle,
    and all of its memory on a GPU, only at some later time.
    """

    def __init__(self, model: PreTrainedModel, weights: DecodingWeights | None, check: DecodingCheck) -> None:
        """Take the parts; arguments as in `DecodingModel`."""
        self.model, self.check = model, check
        self.fast: DecodingForward | None = None
        if weights is not None and check.layers:
            with merged(model):
                self.fast = DecodingForward(model, check.layers, weights.products)

    def __call__(self, tokens: Tensor, positions: Tensor, layout: TokenLayout) -> Tensor:
        """Return the hidden states of new tokens: (N,) at positions (…, N, 1) -> (N, H).

        The first tokens are computed again by each forward that is compared, so `layout` has to store the same keys
        and values each time.
        """

        def own(layout: TokenLayout) -> Tensor:
            return forward_with_layout(self.model, tokens[:, None], positions, layout)[:, -1]

        fast = self.fast
        if fast is not None and not self.check.done:
            self.check.compare(fast, layout, lambda layout: fast(tokens, positions, layout), own)
        return own(layout) if fast is None or not self.check.layers else fast(tokens, positions, layout)


class DecodingModel:
    """A model and what is kept with it from one rollout to the next.

    Attributes:
        model: the Hugging Face model.
        forward: runs its steps.
        recorded: what an engine has recorded with these weights; empty after any of them has moved.
    """

    def __init__(self, model: PreTrainedModel, weights: DecodingWeights | None, check: DecodingCheck) -> None:
        """Take the parts.

        Args:
            model: the Hugging Face model.
            weights: copies to decode with; None decodes with the model's own weights and layers.
            check: whether fused layers compute what the model's own do.
        """
        self.model, self.weights = model, weights
        self.forward = TokenForward(model, weights, check)
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
