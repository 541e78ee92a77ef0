"""The policy: checkpoint, processor, LoRA, freezing and the reference it is compared with."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from vrft.boxes import Coordinates
from vrft.policy.checkpoint import find_checkpoint
from vrft.policy.logprobs import token_distribution, token_log_probs
from vrft.policy.patches import project_patches
from vrft.policy.processor import FAMILIES, Encoder, load_processor
from vrft.policy.prompts import Prompt, prepare
from vrft.tasks import Task
from vrft.types import PromptBatch, Rollout
from vrft.utils.hub import loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel


TRUST = "if you have read it and trust it, say --model.policy.trust_remote_code=true on the command line"
FULL_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
"""State dicts of what trains, as on one device, however ranks share it."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on the language model (arXiv 2106.09685).

    Attributes:
        r: rank.
        alpha: scale; the adapter's output is multiplied by alpha / r.
        target_modules: names of the linear layers that get one; "all-linear" includes the vision tower's. Default: all
            of the language model's.
    """

    r: int = 16
    alpha: int = 32
    target_modules: str | list[str] | None = None


class Policy(nn.Module):
    """A Hugging Face vision-language model with its processor.

    Weights that train are float32 whatever `dtype` is: bfloat16 weights do not move at a learning rate of 1e-6.
    """

    model: nn.Module
    reference: PreTrainedModel | None
    banned_ids: Tensor
    stop_ids: Tensor

    def __init__(
        self,
        checkpoint: str,
        lora: LoRA | None = None,
        freeze_vision: bool = False,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        gradient_checkpointing: bool = False,
        offload_reference: bool = False,
        coordinates: Coordinates | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Names the checkpoint; `load` reads it.

        Args:
            checkpoint: a folder, a model on the Hugging Face Hub, or a built-in one (tiny-detection, tiny-digits).
            lora: train low-rank adapters instead of all weights; the reference is then the model without them.
            freeze_vision: leave the vision tower and its projector as they are; each image is then encoded once a step.
            dtype: of the computation, and of weights that don't train.
            min_pixels: smaller images are enlarged to this area; default: the checkpoint's own.
            max_pixels: larger images are shrunk to this area; default: the checkpoint's own.
            gradient_checkpointing: compute activations again in the backward pass: slower, less memory.
            offload_reference: keep a full reference in the CPU's memory while it has nothing to do.
            coordinates: of boxes in prompts and answers: thousandths of the image (Qwen2-VL, Qwen3-VL), pixels of the
                resized image (Qwen2.5-VL) or unit, 0..1 (LLaVA); default: what the checkpoint's family was taught.
            trust_remote_code: run Python code that comes with the checkpoint; on the command line only.
        """
        super().__init__()
        self.checkpoint = find_checkpoint(checkpoint)
        self.lora = lora
        self.freeze_vision = freeze_vision
        self.dtype = getattr(torch, dtype)
        self.pixels = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
        self.gradient_checkpointing, self.offload_reference = gradient_checkpointing, offload_reference
        self.coordinates, self.trust_remote_code = coordinates, trust_remote_code
        self.reference = None
        self.shares_prefixes = self.frozen_vision = False
        self.gather_per_layer = False
        """Where ranks share the weights: a rollout gathers its decoder layers for each token, not all of them once."""
        self.processor: Any = None

    def load(self, keep_reference: bool) -> None:
        """Read the checkpoint. `keep_reference`: keep a frozen copy to compare with, unless LoRA makes one needless."""
        from vrft.policy.shared_prefix import share_prefixes

        with loading("model.policy.checkpoint", self.checkpoint, TRUST):
            self.processor = load_processor(self.checkpoint, self.trust_remote_code)
            model = self.pretrained(torch.float32, attn_implementation="sdpa")
        size = self.processor.image_processor.size
        for edge, value in self.pixels.items():
            if value is not None:
                size[edge] = value
        self.shares_prefixes = share_prefixes(model)
        project_patches(model)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if keep_reference and self.lora is None:
            self._keep_reference(copy.deepcopy(model).requires_grad_(False).eval().to(self.dtype))
        if self.freeze_vision:
            for parameter in vision_parameters(model):
                parameter.requires_grad_(False)
        self.model = model if self.lora is None else self.with_adapters(model, self.lora)
        self.frozen_vision = not any(parameter.requires_grad for parameter in vision_parameters(model))
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(self.dtype)
        stop, banned = token_ids(model, self.tokenizer)
        self.register_buffer("banned_ids", torch.tensor(banned), persistent=False)
        self.register_buffer("stop_ids", torch.tensor(stop), persistent=False)

    def pretrained(self, dtype: torch.dtype, **kwargs: Any) -> PreTrainedModel:
        """The checkpoint as it came."""
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(
            self.checkpoint, dtype=dtype, use_safetensors=True, trust_remote_code=self.trust_remote_code, **kwargs
        )

    @staticmethod
    def with_adapters(model: PreTrainedModel, lora: LoRA) -> nn.Module:
        """The model with fresh adapters, which do nothing yet."""
        from peft import LoraConfig, get_peft_model

        # Dropout would give the prompt of a group one mask for all its completions, so there is none.
        targets = lora.target_modules or language_model_layers(model)
        config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0)
        return get_peft_model(model, config)

    def _keep_reference(self, model: PreTrainedModel) -> None:
        if self.offload_reference:
            self.__dict__["reference"] = model  # past nn.Module, which would move it to the GPU with everything else
        else:
            self.reference = model

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model itself; adapters are part of its layers."""
        return self.model if self.lora is None else self.model.get_base_model()  # type: ignore[operator]

    @property
    def max_positions(self) -> int:
        """Tokens of a prompt and its completion that the model was made for."""
        return int(self.base.config.get_text_config().max_position_embeddings)

    def encoder(self, task: Task) -> Encoder:
        """What turns samples into prompts for this model."""
        return Encoder(self.processor, task, self.coordinates or self.family_coordinates)

    @property
    def family_coordinates(self) -> Coordinates:
        """What the checkpoint's family was taught to call a position."""
        return FAMILIES.get(self.base.config.model_type, "thousandths")

    def autocast(self) -> Any:
        """The computation's dtype, for every forward."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.banned_ids.device.type, self.dtype)

    @torch.no_grad()
    def prepare(self, batch: PromptBatch) -> PromptBatch:
        """Compute what all passes over a batch share: positions and, if the tower is frozen, its images' features."""
        with self.autocast():
            inputs = prepare(self.base, batch.inputs, self.frozen_vision)
        return PromptBatch(batch.samples, batch.frames, inputs)

    def forward(
        self,
        prompts: Sequence[Prompt],
        ids: Tensor,
        mask: Tensor,
        temperature: float,
        *,
        reference: bool = False,
        entropy: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropy of completions, both (N, T) and 0 where mask is 0.

        Args:
            prompts: P of them, as the encoder or `prepare` gives them.
            ids: completions, right-padded (N, T).
            mask: 1 at real tokens (N, T).
            temperature: of the sampling distribution.
            reference: ask the reference instead; call under `no_grad`, inside `reference_on_device`.
            entropy: compute it; else it is 0.
        """
        from vrft.policy.repeated import repeated_hidden_states
        from vrft.policy.shared_prefix import group_hidden_states

        hidden_states = group_hidden_states if self.shares_prefixes else repeated_hidden_states
        with self.autocast(), self._reference() if reference else nullcontext(self.base) as model:
            hidden = hidden_states(model, prompts, ids, mask.sum(1).tolist())  # (real tokens, H)
            head = model.get_output_embeddings()
            return token_log_probs(
                head, hidden, ids, mask, temperature=temperature, banned=self.banned_ids, entropy=entropy
            )

    @torch.no_grad()
    def sharing_gap(self, prompt: Prompt, ids: Tensor, mask: Tensor) -> tuple[float, float]:
        """Mean |log p - log p of the model's own forward| of completions of one prompt, and how much may be rounding.

        In float32 1e-3 is. Below, a wrong forward has to stand out from what the model's own loses to rounding, which
        is measured: twice its difference from itself in float32.

        Args:
            prompt: with its pixels.
            ids: completions (n, T).
            mask: 1 at real tokens (n, T).
        """
        from vrft.policy.repeated import float32_layers, naive_logits

        training = self.training
        self.eval()
        rows = [row[kept.bool()] for row, kept in zip(ids, mask, strict=True)]

        def naive() -> Tensor:
            logits = torch.cat([naive_logits(self.base, prompt, row) for row in rows])  # (real tokens, V)
            log_p = token_distribution(logits, 1.0, self.banned_ids)
            return log_p.gather(-1, torch.cat(rows)[:, None])[:, 0]

        with self.unsharded():
            shared = self([prompt], ids, mask, 1.0)[0][mask.bool()]
            with self.autocast():
                own = naive()
            allowed = 1e-3
            if self.dtype != torch.float32:
                with float32_layers(self.base):
                    allowed += 2 * float((own - naive()).abs().mean())
        self.train(training)
        return float((shared - own).abs().mean()), allowed

    @contextmanager
    def decoding(self) -> Iterator[PreTrainedModel]:
        """The model as it decodes: no dropout, no adapters beside the weights, each weight in the computation's dtype.

        Adapters are merged into copies of the weights, never into the weights: subtracting them again would round.
        Layer by layer there are no weights to copy.
        """
        training = self.training
        self.eval()  # activation checkpointing would drop the cache, dropout would change the distribution
        try:  # a rollout that memory did not suffice for is repeated in parts
            with torch.no_grad(), self.unsharded(), self.autocast():
                if self.gather_per_layer:
                    yield self.base
                else:
                    weights = self._decoding_weights()
                    with _plain_layers(self.base), _replaced(weights):
                        yield self.base
        finally:
            self.train(training)

    def all_ranks_done(self, done: bool) -> bool:
        """Whether decoding may end: where it gathers layers for each token, ranks go on until all of them are done."""
        if not self.gather_per_layer:
            return done
        waiting = torch.tensor(float(not done), device=self.banned_ids.device)
        dist.all_reduce(waiting)
        return not waiting

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Where ranks hold shares of the weights: those that answer, whole; then nothing within waits for another rank.

        Layer by layer, decoder layers stay in shares, and ranks have to do the same number of forwards.
        """
        layers = self.decoder_layers()
        apart = {*self.reference.modules()} if self.reference is not None else set()
        apart |= layers if self.gather_per_layer else set()
        whole = [module for module in fsdp_modules(self) if module not in apart]
        for module in whole:
            module.unshard()
            module.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for module in whole:
                module.set_reshard_after_forward(module in layers, recurse=False)
                module.reshard()

    def decoder_layers(self) -> set[object]:
        """What every forward calls once. The vision tower's blocks are called for each image."""
        models = [self.base] if self.reference is None else [self.base, self.reference]
        return {module for model in models for module in model.get_decoder().modules()}

    @torch.no_grad()
    def _decoding_weights(self) -> dict[Tensor, Tensor]:
        from peft.tuners.lora import LoraLayer

        modules = list(self.base.modules())
        on_cpu = self.banned_ids.device.type == "cpu"
        weights: dict[Tensor, Tensor] = {}
        for module in modules:
            if isinstance(module, LoraLayer):
                weight = module.get_base_layer().weight
                weights[weight] = (weight + module.get_delta_weight("default")).to(self.dtype)
            elif isinstance(module, nn.Linear) and (on_cpu or module.weight.dtype != self.dtype):
                weights.setdefault(module.weight, module.weight.to(self.dtype))
        if on_cpu:  # which multiplies few rows faster by weights that lie the other way round in memory
            weights = {weight: value.t().contiguous().t() for weight, value in weights.items()}
        return weights

    @contextmanager
    def reference_on_device(self) -> Iterator[None]:
        """Bring an offloaded reference to the GPU, and take it back."""
        if self.reference is not None and self.offload_reference:
            self.reference.to(self.banned_ids.device)
            yield
            self.reference.to("cpu")
        else:
            yield

    @contextmanager
    def _reference(self) -> Iterator[PreTrainedModel]:
        if self.lora is not None:
            with _plain_layers(self.base):
                yield self.base
        else:
            assert self.reference is not None, "load(keep_reference=True) first"
            yield self.reference

    def trainable_names(self) -> set[str]:
        """Names of the parameters that train, as in `named_parameters`."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def decode(self, ids: Tensor, mask: Tensor) -> list[str]:
        """Texts of completions (N, T) without the end token. Other special tokens stay: they are part of the answer."""
        stop = torch.isin(ids, self.stop_ids)
        keep = mask.bool() & ~stop
        rows = [row[kept].tolist() for row, kept in zip(ids, keep, strict=True)]
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=False)
        return texts

    def token_texts(self, rollout: Rollout) -> list[tuple[tuple[str, float], ...]]:
        """The texts of each completion's tokens, and their log-probabilities; without the end token."""
        keep = rollout.mask.bool() & ~torch.isin(rollout.ids, self.stop_ids)
        rows = zip(rollout.ids, rollout.log_probs, keep, strict=True)
        return [
            tuple(zip(map(self.tokenizer.decode, ids[kept].tolist()), log_probs[kept].tolist(), strict=True))
            for ids, log_probs, kept in rows
        ]

    def trained_weights(self, frozen: bool = False) -> dict[str, Tensor]:
        """Copies of what trains, whole and in the CPU's memory. Ranks that share the weights call it together.

        `frozen`: and of what doesn't.
        """
        options = replace(FULL_STATE, ignore_frozen_params=not frozen)
        return cast(dict[str, Tensor], get_model_state_dict(self.model, options=options))

    @property
    def is_sharded(self) -> bool:
        """Whether ranks share the weights."""
        return bool(fsdp_modules(self))


def token_ids(model: PreTrainedModel, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens that end a completion, and tokens that can't be in one.

    An image token in a completion would ask for an image; other special tokens are the chat's, no answer's.
    """
    stop = model.generation_config.eos_token_id
    stop = sorted({*(stop if isinstance(stop, list) else [stop]), tokenizer.eos_token_id})
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return stop, sorted({*special, *tokenizer.all_special_ids, model.config.image_token_id}.difference(stop))


def fsdp_modules(root: nn.Module) -> list[FSDPModule]:
    """Modules whose weights are shared out over ranks."""
    return [module for module in root.modules() if isinstance(module, FSDPModule)]


def vision_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Parameters of all that is not the language model and its head: the vision tower and its projector."""
    text = {*model.get_decoder().parameters(), *model.get_output_embeddings().parameters()}
    return [parameter for parameter in model.parameters() if parameter not in text]


def language_model_layers(model: PreTrainedModel) -> str:
    """A pattern of the names of the language model's linear layers."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    linear = {name.rsplit(".")[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    return rf"{re.escape(prefix)}\..*\.({'|'.join(sorted(linear))})"


@contextmanager
def _plain_layers(model: PreTrainedModel) -> Iterator[None]:
    """Without adapters: not switched off, which costs each layer as much as a small product, but out of the way."""
    from peft.tuners.lora import LoraLayer

    adapted = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, LoraLayer)
    ]
    for parent, name, layer in adapted:
        setattr(parent, name, layer.get_base_layer())
    try:  # an interrupted rollout may be followed by a checkpoint
        yield
    finally:
        for parent, name, layer in adapted:
            setattr(parent, name, layer)


@contextmanager
def _replaced(weights: dict[Tensor, Tensor]) -> Iterator[None]:
    originals = {parameter: parameter.data for parameter in weights}
    for parameter, value in weights.items():
        parameter.data = value
    try:
        yield
    finally:
        for parameter, value in originals.items():
            parameter.data = value
