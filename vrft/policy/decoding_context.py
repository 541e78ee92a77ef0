"""Prepare a policy for decoding, and keep the prepared model from one rollout to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from vrft.policy.decoding_forward import DecodingCheck
from vrft.policy.decoding_model import DecodingModel
from vrft.policy.decoding_weights import DecodingWeights, merged

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Decodable(Protocol):
    """A policy, as far as decoding sees it; see `vrft.policy.Policy`."""

    training: bool
    dtype: torch.dtype
    gather_per_layer: bool

    @property
    def base(self) -> PreTrainedModel: ...
    @property
    def device(self) -> torch.device: ...
    def eval(self) -> Any: ...
    def train(self, mode: bool) -> Any: ...
    def autocast(self, cache: bool = True) -> Any: ...
    def unsharded(self) -> AbstractContextManager[None]: ...


class DecodingContext:
    """Prepares a policy for decoding.

    Attributes:
        check: whether fused layers may decode, once the model is known.
        kept: the model of the last rollout, if it is kept.
        short_of_memory: nothing is kept between rollouts.
    """

    def __init__(self, policy: Decodable) -> None:
        self.policy = policy
        self.check: DecodingCheck | None = None
        self.kept: DecodingModel | None = None
        self.short_of_memory = False

    @contextmanager
    def __call__(self, keep: bool = False) -> Iterator[DecodingModel]:
        """Prepare the model for decoding: no dropout, adapters merged, weights in the dtype of the computation.

        With `gather_per_layer` the weights stay as they are, since they are never all on this rank.

        Args:
            keep: keep the copies of weights for the next call, with what the caller has recorded of them. Autocast then
                caches no weights, since it would free those that a recording reads.
        """
        policy, training = self.policy, self.policy.training
        policy.eval()  # activation checkpointing would drop the cache, dropout would change the distribution
        kept, self.kept = self.kept, None
        try:  # a rollout that runs out of memory is repeated in parts
            with torch.no_grad(), policy.unsharded(), policy.autocast(cache=not keep):
                kept = kept or self._build()
                with kept.applied() as decoding:
                    yield decoding
                if keep and not self.short_of_memory:
                    self.kept = decoding
        finally:
            policy.train(training)

    def _build(self) -> DecodingModel:
        policy = self.policy
        if self.check is None:
            with merged(policy.base):
                self.check = DecodingCheck(policy.base)
        weights = None if policy.gather_per_layer else DecodingWeights(policy.base, policy.dtype, policy.device)
        return DecodingModel(policy.base, weights, self.check)

    def free(self) -> None:
        """Free what is kept between rollouts, and keep nothing from here on."""
        self.kept, self.short_of_memory = None, True
