"""The weights that a model decodes with: adapters merged, in the dtype of the computation."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vrft.policy.decoding_forward import decoding_layers
from vrft.policy.decoding_layers import fused_projections
from vrft.policy.experts import experts_to_copy
from vrft.policy.four_bits import is_in_four_bits
from vrft.policy.lora import has_adapter, merged_weight, without_adapters
from vrft.policy.products import Product, empty_transposed, replaced_forwards, stored_transposed
from vrft.policy.weights import replaced
from vrft.policy.whole_modules import originals

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merged(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Return a context without the adapters that decoding merges into copies of weights."""
    return without_adapters(model, lambda layer: not is_in_four_bits(layer))


class DecodingWeights:
    """Copies of a model's weights to decode with.

    Merging adapters into the weights themselves would change them: subtracting the adapters again rounds. Copies of
    projections that have the same input lie in one tensor. Weights in four bits stay as they are, with adapters beside
    them: a merged copy would need the memory that four bits save. On a CPU in float32, all weights of the text model's
    linear layers have transposed copies.

    Attributes:
        products: products of projections with the same input; with transposed copies, of all linear layers.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> None:
        """Allocate the copies.

        Args:
            model: the model, with unsharded weights.
            dtype: dtype of the computation.
            device: device of the computation.
        """
        self.model, self.dtype = model, dtype
        self.sources = copied_layers(model, dtype)
        self.products: dict[nn.Module, Product] = {}
        self.copies: list[tuple[nn.Module, str, Tensor]] = []  # module, name of its parameter, copy
        with merged(model):
            layers = decoding_layers(model)
            transposes = device.type == "cpu" and dtype == torch.float32
            self._allocate_fused(fused_copies(layers, self.sources, device), transposes)
            others = transposed_together(model, layers) if transposes else []
            self.transposed = [modules for modules in others if modules[0] not in self.products]
            self._allocate_others(states=bool(layers))

    def _allocate_fused(self, together: Sequence[Sequence[nn.Linear]], transposes: bool) -> None:
        for modules in together:
            sizes, like = [module.out_features for module in modules], modules[0].weight
            bias: Tensor | None = None
            if transposes:
                weight = empty_transposed(like, sum(sizes), self.dtype)
            else:
                weight = like.new_empty(sum(sizes), modules[0].in_features, dtype=self.dtype)
            if modules[0].bias is not None:
                bias = like.new_empty(sum(sizes), dtype=self.dtype)
                self.copies += [(m, "bias", b) for m, b in zip(modules, bias.split(sizes), strict=True)]
            self.copies += [(m, "weight", w) for m, w in zip(modules, weight.split(sizes), strict=True)]
            self.products[modules[0]] = Product(weight, bias)

    def _allocate_others(self, states: bool) -> None:
        """`states`: convert states between layers to `dtype`, as fused layers need it."""
        done = {(module, name) for module, name, _ in self.copies}
        done |= {(modules[0], "weight") for modules in self.transposed if len(modules) == 1}
        module: Any
        for module in self.sources:
            weight, bias = module.weight, module.bias
            if (module, "weight") not in done:
                self.copies.append((module, "weight", torch.empty_like(weight, dtype=self.dtype)))
            # Autocast would convert a bias for every token.
            if bias is not None and bias.dtype != self.dtype and (module, "bias") not in done:
                self.copies.append((module, "bias", torch.empty_like(bias, dtype=self.dtype)))
        for module, name in experts_to_copy(self.model, self.dtype):
            self.copies.append((module, name, torch.empty_like(getattr(module, name), dtype=self.dtype)))
        embedding: Any = self.model.get_input_embeddings()
        tied = any(module.weight is embedding.weight for module in self.sources)
        self.converts_states = tied or (states and embedding.weight.dtype != self.dtype)
        if self.converts_states:  # to `dtype`; norms in another one would convert each of them again
            copied = {getattr(module, name) for module, name, _ in self.copies}
            for module in self.model.get_decoder().modules():
                for name, parameter in module.named_parameters(recurse=False):
                    if parameter.ndim == 1 and parameter.dtype != self.dtype and parameter not in copied:
                        self.copies.append((module, name, torch.empty_like(parameter, dtype=self.dtype)))

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Copy the current weights and let the model compute with the copies."""
        for module, name, copy in self.copies:
            copy.copy_(self._merged(module) if name == "weight" else getattr(module, name))
        with merged(self.model), replaced({getattr(m, name): copy for m, name, copy in self.copies}), self._embedded():
            self.products |= {modules[0]: self._transposed(modules) for modules in self.transposed}
            alone = [modules[0] for modules in self.transposed if len(modules) == 1]
            with replaced_forwards({m: partial(F.linear, **self.products[m]._asdict()) for m in alone}):
                yield

    def _merged(self, module: Any) -> Tensor:
        """Return the current weight of a module, merged with its adapter if it has one."""
        source: Any = self.sources.get(module, module)
        weight: Tensor = module.weight if source is module else merged_weight(source)
        return weight

    def _transposed(self, modules: Sequence[nn.Linear]) -> Product:
        """Return the product of linear layers with the same input, by a transposed copy of their current weights."""
        weights = [module.weight for module in modules] if len(modules) > 1 else [self._merged(modules[0])]
        biases: list[Tensor | None] = [module.bias for module in modules]
        if all(bias is None for bias in biases):
            return Product(stored_transposed(weights, self.dtype), None)
        zeros = [weight.new_zeros(len(weight)) for weight in weights]
        bias = torch.cat([zero if bias is None else bias for zero, bias in zip(zeros, biases, strict=True)])
        return Product(stored_transposed(weights, self.dtype), bias.to(self.dtype))

    @contextmanager
    def _embedded(self) -> Iterator[None]:
        """Let the decoder begin with embeddings in the dtype of the computation.

        The embedding itself keeps its dtype: SmolVLM inserts images into text in the dtype of its vision tower.
        """
        if not self.converts_states:
            yield
            return
        decoder: Any = self.model.get_decoder()
        hook = decoder.register_forward_pre_hook(self._converted, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def _converted(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return the decoder's arguments with embeddings in the dtype of the computation."""
        return args, {name: x.to(self.dtype) if name == "inputs_embeds" else x for name, x in kwargs.items()}


def copied_layers(model: nn.Module, dtype: torch.dtype) -> dict[nn.Module, nn.Module]:
    """Return the linear layers whose weights are copied, each with the layer that has its adapter, if it has one."""
    layers: dict[Tensor, tuple[nn.Module, nn.Module]] = {}
    unused = originals(model)
    for module in model.modules():
        if module in unused:
            continue
        if has_adapter(module):
            base: Any = module.get_base_layer()
            if not is_in_four_bits(base):
                layers[base.weight] = base, module
                unused.update(module.modules())  # the adapter is merged
        elif isinstance(module, nn.Linear) and not is_in_four_bits(module) and module.weight.dtype != dtype:
            layers.setdefault(module.weight, (module, module))
    return dict(layers.values())


def fused_copies(
    layers: Sequence[nn.Module], copied: Container[nn.Module], device: torch.device
) -> list[list[nn.Linear]]:
    """Return projections with the same input whose copies lie in one tensor.

    On a GPU, those of attention are copied even if nothing else needs it: they are few weights, 0.38 GB of
    Qwen2.5-VL-3B in bfloat16, and would launch three kernels more in each layer. The MLP's are 3.2 GB, for two kernels.

    Args:
        layers: layers that `DecodingLayer` computes, without adapters.
        copied: linear layers that need a copy.
        device: device of the computation.
    """
    groups = []
    for attention, mlp in map(fused_projections, layers):
        groups += [attention] if device.type == "cuda" or all(module in copied for module in attention) else []
        groups += [mlp] if all(module in copied for module in mlp) else []
    return [modules for modules in groups if len({module.bias is None for module in modules}) == 1]


def transposed_together(model: PreTrainedModel, layers: Sequence[nn.Module]) -> list[list[nn.Linear]]:
    """Return the linear layers of the text model and its head: fused ones of `layers`, then each other one alone."""
    together = [modules for layer in layers for modules in fused_projections(layer)]
    done = {module for modules in together for module in modules} | originals(model)
    modules = [*model.get_decoder().modules(), model.get_output_embeddings()]
    # A forward of the instance's own does something else.
    return together + [[m] for m in modules if type(m) is nn.Linear and m not in done and "forward" not in vars(m)]
