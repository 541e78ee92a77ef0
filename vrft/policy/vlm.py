"""The policy: loading, encoding prompts, log-probabilities of completions, and their texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from vrft.boxes import Coordinates
from vrft.policy.chat_template import check_template
from vrft.policy.checkpoint import checkpoint_folder, find_checkpoint
from vrft.policy.coordinates import FAMILY_COORDINATES, choose_coordinates
from vrft.policy.decoding_layers import DecodingLayers
from vrft.policy.decoding_model import DecodingModel
from vrft.policy.decoding_weights import DecodingWeights, merged
from vrft.policy.four_bits import FIELD as QUANTIZE
from vrft.policy.four_bits import check_four_bits, compute_in, nf4_settings, published_in_four_bits
from vrft.policy.fused import fuse_layers, unfuse_layers
from vrft.policy.head import logits_of
from vrft.policy.image_size import ImageLimits, apply_fields, apply_to_config, limited_fields
from vrft.policy.logprobs import token_log_probs
from vrft.policy.lora import LoRA, add_adapters, without_adapters
from vrft.policy.patches import match_dtypes, project_patches
from vrft.policy.pretrained import TRUST_REMOTE_CODE_HINT, exact_dtype, load_pretrained, token_ids, vision_parameters
from vrft.policy.processor import Encoder, load_processor
from vrft.policy.prompts import Prompt, compared_prompts, prepare_prompts
from vrft.policy.sharding import done_on_all_ranks, fsdp_modules, full_state_dict, unshard
from vrft.policy.support import check_supported
from vrft.policy.texts import completion_texts, completion_token_texts
from vrft.policy.weights import frozen_copy, own_weights, page_locked, replaced
from vrft.tasks import Task
from vrft.types import PromptBatch, Rollout
from vrft.utils.bounds import Decimals
from vrft.utils.hub import fitting_in_memory, loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Policy(nn.Module):
    """A Hugging Face vision-language model with its processor.

    Trained weights are float32 for any `dtype`: bfloat16 weights do not change at a learning rate of 1e-6.
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
        dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16",
        quantize: Literal["nf4"] | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_tiles: int | None = None,
        gradient_checkpointing: bool = False,
        offload_reference: bool = False,
        coordinates: Coordinates | None = None,
        coordinate_decimals: Decimals | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Find the checkpoint; `load` reads it.

        Args:
            checkpoint: a folder, a model on the Hugging Face Hub, or a built-in one (tiny-detection, tiny-digits,
                tiny-clean).
            lora: train low-rank adapters instead of all weights; the reference is then the model without them, or with
                the adapter that training starts from.
            freeze_vision: do not train the vision tower and its projector; each image is then encoded once a step.
            dtype: dtype of the computation, and of weights that are not trained; float16 is for GPUs without bfloat16
                and scales losses.
            quantize: keep the language model's linear layers in four bits (QLoRA); only adapters can then be trained.
                Checkpoints that bitsandbytes has quantised are loaded in four bits without it.
            min_pixels: smaller images are enlarged to this area; default: the checkpoint's own.
            max_pixels: larger images are shrunk to this area; default: the checkpoint's own. Families that resize
                images by area honour it (Qwen-VL, GLM-V), others refuse it.
            max_tiles: largest number of tiles that an image is cut into, not counting an overview; default: the
                checkpoint's own. Families that cut images into tiles honour it (InternVL, LLaVA-OneVision, Idefics3,
                SmolVLM), others refuse it.
            gradient_checkpointing: compute activations again in the backward pass: slower, less memory.
            offload_reference: keep a full reference in CPU memory while it is not used.
            coordinates: coordinates of boxes in prompts and answers: thousandths of the image (Qwen2-VL, Qwen3-VL),
                pixels of the resized image (Qwen2.5-VL) or unit, 0..1 (LLaVA); default: the model family's, and
                thousandths, with a warning, if those are not known.
            coordinate_decimals: decimals of these coordinates; default: 3 in unit, else 0. Objects too small for the
                default, which the doctor names, need more.
            trust_remote_code: run Python code that comes with the checkpoint; on the command line only.
        """
        super().__init__()
        self.checkpoint = find_checkpoint(checkpoint)
        self.lora, self.quantize = lora, quantize
        self.freeze_vision = freeze_vision
        self.dtype = getattr(torch, dtype)
        if quantize:
            check_four_bits(lora is not None, QUANTIZE)
        self.limits = ImageLimits(min_pixels, max_pixels, max_tiles)
        self.gradient_checkpointing, self.offload_reference = gradient_checkpointing, offload_reference
        self.coordinates, self.coordinate_decimals = coordinates, coordinate_decimals
        self.trust_remote_code = trust_remote_code
        self.reference = None
        self.shares_prefixes = self.frozen_vision = False
        self.fused = True
        self.gather_per_layer = False
        """Gather each sharded decoder layer for every token of a rollout, instead of all layers once."""
        self.processor: Any = None
        self.start: dict[Tensor, Tensor] = {}
        """Adapters from which the policy starts, by the parameters that train; empty if they are fresh."""
        self.decoding_layers: DecodingLayers | None = None
        self.kept_decoding: DecodingModel | None = None
        self.short_of_memory = False

    def load(self, keep_reference: bool) -> None:
        """Read the checkpoint. `keep_reference`: keep a frozen copy as the reference; with LoRA none is needed."""
        with fitting_in_memory("model.policy.checkpoint", self.checkpoint):
            self.read(keep_reference)
            own_weights(self.models, self.dtype)
            if self.reference is not None and self.offload_reference:
                for parameter in self.reference.parameters():
                    parameter.data = page_locked(parameter.data, self.device)
            if self.lora is not None and self.lora.adapter is not None and keep_reference:
                self.start = {p: p.detach().clone() for p in self.model.parameters() if p.requires_grad}

    def read(self, keep_reference: bool, values: bool = True) -> None:
        """Build the model as the checkpoint stores it; `vrft.policy.placement` or `load` makes it fit for use.

        Weights have the dtype in which they were read. The reference's may share memory with the policy's and, on a
        CPU, both with the file.

        Args:
            keep_reference: keep a frozen copy as the reference; with LoRA none is needed.
            values: read the weights; otherwise parameters and the model's buffers are on the meta device.
        """
        from vrft.policy.shared_prefix import share_prefixes
        from vrft.policy.vision_tower import pack_segments

        more: dict[str, Any] = {} if values else {"device_map": "meta"}
        with loading("model.policy.checkpoint", self.checkpoint, TRUST_REMOTE_CODE_HINT, self.trust_remote_code):
            check_supported(self.folder, self.trust_remote_code)
            self.processor = load_processor(self.folder, self.trust_remote_code)
            check_template(self.processor, self.checkpoint)
            fields = limited_fields(self.processor.image_processor, self.limits)
            # Weights that are trained are raised to float32 later, and must not have lost digits before.
            dtype = self.dtype if self.lora is not None else exact_dtype(self.folder, self.dtype)
            if published_in_four_bits(self.folder):
                check_four_bits(self.lora is not None, f"model.policy.checkpoint: {self.checkpoint} is in four bits")
            elif self.quantize:
                more |= nf4_settings(self.folder, self.dtype, self.trust_remote_code)
            model = load_pretrained(self.folder, dtype, self.trust_remote_code, attn_implementation="sdpa", **more)
            model.name_or_path = self.checkpoint  # an adapter names it as its base
            compute_in(model, self.dtype)
        apply_fields(self.processor.image_processor, fields)
        apply_to_config(model.config, fields)
        self.shares_prefixes = share_prefixes(model)
        project_patches(model)
        match_dtypes(model)
        fuse_layers(model)
        pack_segments(model)
        if self.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if keep_reference and self.lora is None:
            home = torch.device("cpu") if self.offload_reference and values else None
            reference = frozen_copy(model, self.dtype, home)
            if self.offload_reference:  # not registered as a submodule, which would move to the GPU with the policy
                self.__dict__["reference"] = reference
            else:
                self.reference = reference
        if self.freeze_vision:
            for parameter in vision_parameters(model):
                parameter.requires_grad_(False)
        self.model = model if self.lora is None else add_adapters(model, self.lora)
        self.frozen_vision = not any(parameter.requires_grad for parameter in vision_parameters(model))
        stop, banned = token_ids(model, self.tokenizer)
        self.register_buffer("banned_ids", torch.tensor(banned), persistent=False)
        self.register_buffer("stop_ids", torch.tensor(stop), persistent=False)

    @cached_property
    def folder(self) -> str:
        """The folder with the checkpoint's files; those of a model on the Hub are downloaded."""
        return checkpoint_folder(self.checkpoint, code=self.trust_remote_code)

    @property
    def in_four_bits(self) -> bool:
        """Whether linear layers of the language model are in four bits, by `quantize` or in the checkpoint."""
        return self.quantize is not None or published_in_four_bits(self.folder)

    @property
    def loads_alone(self) -> bool:
        """Whether each rank reads the checkpoint itself: scales of four bits and start adapters are no parameters."""
        return self.in_four_bits or (self.lora is not None and self.lora.adapter is not None)

    @property
    def models(self) -> list[nn.Module]:
        """The model and, if it is a model of its own, the reference."""
        return [self.model] if self.reference is None else [self.model, self.reference]

    @property
    def device(self) -> torch.device:
        """The device of the computation."""
        return self.banned_ids.device

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model; with LoRA, its layers contain the adapters."""
        return self.model if self.lora is None else self.model.get_base_model()  # type: ignore[operator]

    @property
    def max_positions(self) -> int:
        """Largest number of tokens, prompt and completion together, that the model supports."""
        return int(self.base.config.get_text_config().max_position_embeddings)

    @property
    def family_coordinates(self) -> Coordinates | None:
        """The coordinates that the checkpoint's family was taught for boxes, if they are known."""
        return FAMILY_COORDINATES.get(self.base.config.model_type)

    def encoder(self, task: Task) -> Encoder:
        """Return the encoder that turns a task's samples into prompts for this model."""
        if task.system:
            check_template(self.processor, self.checkpoint, system=True)
        coordinates = choose_coordinates(self.coordinates, self.base.config.model_type, self.processor, task)
        return Encoder(self.processor, task, coordinates, self.coordinate_decimals)

    def compare_prompts(self, batch: PromptBatch) -> PromptBatch:
        """Compute positions and find prompts with the same images, on the CPU: a GPU would be waited for."""
        return PromptBatch(batch.samples, batch.frames, compared_prompts(self.base, batch.inputs))

    @torch.no_grad()
    def prepare(self, batch: PromptBatch) -> PromptBatch:
        """Compute what all passes over a batch share: positions and, if the vision tower is frozen, image features."""
        with self.autocast():
            inputs = prepare_prompts(self.base, batch.inputs, self.frozen_vision)
        return PromptBatch(batch.samples, batch.frames, inputs)

    def autocast(self) -> Any:
        """Return a context that runs forwards in the dtype of the computation."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def forward(
        self,
        prompts: Sequence[Prompt],
        ids: Tensor,
        mask: Tensor,
        temperature: float,
        *,
        reference: bool = False,
        entropy: bool = True,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and entropy of completions, both (N, T) and 0 where mask is 0.

        Args:
            prompts: P prompts from the encoder or `prepare`.
            ids: completions, right-padded (N, T).
            mask: 1 at real tokens (N, T).
            temperature: temperature of the sampling distribution.
            reference: use the reference model; call under `no_grad`, inside `reference_on_device`.
            entropy: compute the entropy; otherwise it is 0.
            entropy_gradient: let the entropy carry a gradient, too.
        """
        from vrft.policy.repeated import repeated_hidden_states
        from vrft.policy.shared_prefix import group_hidden_states

        hidden_states = group_hidden_states if self.shares_prefixes else repeated_hidden_states
        lengths = mask.sum(1).tolist()
        with self.autocast(), self._reference() if reference else nullcontext(self.base) as model:
            hidden = hidden_states(model, prompts, ids, lengths)  # (real tokens, H)
            head = logits_of(model)
            return token_log_probs(
                head,
                hidden,
                ids,
                lengths,
                temperature=temperature,
                banned=self.banned_ids,
                entropy=entropy,
                entropy_gradient=entropy_gradient,
            )

    @torch.no_grad()
    def sharing_gap(self, prompt: Prompt, ids: Tensor, mask: Tensor) -> tuple[float, float]:
        """Return how far log-probabilities with a shared prompt are from the model's own, and how far they may be.

        Both are mean absolute differences. In bfloat16, the limit is larger by twice the model's own rounding error.

        Args:
            prompt: the prompt, with its pixels.
            ids: completions of the prompt, right-padded (n, T).
            mask: 1 at real tokens (n, T).
        """
        from vrft.policy.repeated import naive_log_probs

        training = self.training
        self.eval()
        rows = [row[kept.bool()] for row, kept in zip(ids, mask, strict=True)]
        with self.unsharded():
            shared = self([prompt], ids, mask, 1.0)[0][mask.bool()]
            own, rounding = naive_log_probs(self.base, prompt, rows, self.banned_ids, self.dtype, self.autocast())
        self.train(training)
        return float((shared - own).abs().mean()), 1e-3 + 2 * rounding

    def unfuse(self) -> None:
        """Let all layers compute as they do in transformers, with more operations."""
        self.fused = False
        for model in (self.base, self.reference):
            if model is not None:
                unfuse_layers(model)

    @contextmanager
    def reference_on_device(self) -> Iterator[None]:
        """Copy an offloaded reference to the policy's device, and drop the copy at the end."""
        if self.reference is None or not self.offload_reference:
            yield
            return
        tensors = [*self.reference.parameters(), *self.reference.buffers()]
        with replaced({x: x.data.to(self.device, non_blocking=True) for x in tensors if x.device != self.device}):
            yield

    @contextmanager
    def _reference(self) -> Iterator[PreTrainedModel]:
        if self.start:
            with replaced(self.start):
                yield self.base
        elif self.lora is not None:
            with without_adapters(self.base):
                yield self.base
        else:
            assert self.reference is not None, "load(keep_reference=True) first"
            yield self.reference

    @contextmanager
    def decoding(self, keep: bool = False) -> Iterator[DecodingModel]:
        """Prepare the model for decoding: no dropout, adapters merged, weights in the dtype of the computation.

        With `gather_per_layer` the weights stay as they are, since they are never all on this rank.

        Args:
            keep: keep the copies of weights for the next call, with what the caller has recorded of them.
        """
        training = self.training
        self.eval()  # activation checkpointing would drop the cache, dropout would change the distribution
        kept, self.kept_decoding = self.kept_decoding, None
        try:  # a rollout that runs out of memory is repeated in parts
            with torch.no_grad(), self.unsharded(), self.autocast():
                kept = kept or self._decoding_model()
                with kept.applied() as decoding:
                    yield decoding
                if keep and not self.is_sharded and not self.short_of_memory:
                    self.kept_decoding = decoding
        finally:
            self.train(training)

    def _decoding_model(self) -> DecodingModel:
        if self.decoding_layers is None:
            with merged(self.base):
                self.decoding_layers = DecodingLayers(self.base)
        weights = None if self.gather_per_layer else DecodingWeights(self.base, self.dtype, self.device)
        return DecodingModel(self.base, weights, self.decoding_layers)

    def free_decoding(self) -> None:
        """Free what decoding keeps between rollouts, and keep nothing from here on."""
        self.kept_decoding, self.short_of_memory = None, True

    def decode(self, ids: Tensor, mask: Tensor) -> list[str]:
        """Return the texts of completions (N, T) without the end token."""
        return completion_texts(self.tokenizer, ids, mask, self.stop_ids)

    def token_texts(self, rollout: Rollout) -> list[tuple[tuple[str, float], ...]]:
        """Return text and log-probability of each completion's tokens, without the end token."""
        return completion_token_texts(self.tokenizer, rollout, self.stop_ids)

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are sharded over ranks."""
        return bool(fsdp_modules(self))

    def decoder_layers(self) -> set[object]:
        """Return the modules of the language models: each forward calls them once, vision blocks once per image."""
        models = [self.base] if self.reference is None else [self.base, self.reference]
        return {module for model in models for module in model.get_decoder().modules()}

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Gather sharded weights, without the reference's; forwards inside need no other rank.

        With `gather_per_layer` decoder layers stay sharded, and all ranks must run the same number of forwards.
        """
        layers = self.decoder_layers()
        skipped = {*self.reference.modules()} if self.reference is not None else set()
        skipped |= layers if self.gather_per_layer else set()
        with unshard([module for module in fsdp_modules(self) if module not in skipped], layers):
            yield

    def all_ranks_done(self, done: bool) -> bool:
        """Return whether decoding may end: with `gather_per_layer`, only once all ranks are done."""
        return done_on_all_ranks(done, self.device) if self.gather_per_layer else done

    def trained_weights(self, frozen: bool = False) -> dict[str, Tensor]:
        """Return unsharded copies of the trained weights on the CPU. Ranks that share weights call this together.

        `frozen`: include the frozen weights.
        """
        return full_state_dict(self.model, include_frozen=frozen)
