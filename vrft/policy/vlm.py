"""The policy: loading, encoding prompts, log-probabilities of completions, and their texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from vrft.boxes import Coordinates
from vrft.policy.attention_kernels import avoid_cudnn
from vrft.policy.chat_template import check_template
from vrft.policy.checkpoint import find_checkpoint
from vrft.policy.coordinates import FAMILY_COORDINATES, choose_coordinates
from vrft.policy.decoding_context import DecodingContext
from vrft.policy.fused_adapters import fuse_adapters
from vrft.policy.head import logits_of
from vrft.policy.image_size import ImageLimits
from vrft.policy.logprobs import token_log_probs
from vrft.policy.lora import LoRA, add_adapters
from vrft.policy.page_locked import move_to_cpu
from vrft.policy.positions import max_positions
from vrft.policy.pretrained import token_ids, vision_parameters
from vrft.policy.processor import Encoder
from vrft.policy.prompts import Prompt, compared_prompts, prepare_prompts
from vrft.policy.reading import Reader
from vrft.policy.reference import on_device, reference_of, trained_values
from vrft.policy.sharding import decoder_modules, done_on_all_ranks, fsdp_modules, full_state_dict, unshard
from vrft.policy.texts import completion_texts, completion_token_texts
from vrft.policy.weights import check_trained_dtype, frozen_copy, own_weights
from vrft.tasks import Task
from vrft.types import PromptBatch, Rollout
from vrft.utils.bounds import Decimals
from vrft.utils.hub import fitting_in_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Policy(nn.Module):
    """A Hugging Face vision-language model with its processor.

    Trained weights are float32 for any `dtype`: bfloat16 weights do not change at a learning rate of 1e-6, unless the
    optimizer rounds stochastically (`trained_dtype`).
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
        trained_dtype: Literal["float32", "bfloat16"] = "float32",
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
            checkpoint: a folder, a model on the Hugging Face Hub, or a built-in policy (tiny-detection, tiny-digits,
                tiny-clean).
            lora: train low-rank adapters instead of all weights. The reference is then the model without adapters, or
                with its initial adapter if `lora.adapter` is set.
            freeze_vision: do not train the vision tower and its projector; each image is then encoded once per step.
            dtype: dtype of the computation and of frozen weights. float16 is for GPUs without bfloat16 and uses loss
                scaling.
            trained_dtype: dtype of trained weights and their gradients. bfloat16 needs an optimizer with stochastic
                rounding, `dtype` bfloat16, no `lora`, and a single process.
            quantize: keep the language model's linear layers in four bits and train only adapters (QLoRA). Checkpoints
                that bitsandbytes has already quantised to four bits don't need it.
            min_pixels: minimum area of an image, in pixels; smaller images are enlarged. Default: the checkpoint's
                setting. For families that resize images by area, e.g. Qwen-VL and GLM-V; others refuse it.
            max_pixels: maximum area of an image, in pixels; larger images are shrunk. Default: the checkpoint's
                setting. For the same families as `min_pixels`.
            max_tiles: maximum number of tiles per image, not counting the overview tile. Default: the checkpoint's
                setting. For families that cut images into tiles, e.g. InternVL, LLaVA-OneVision, Idefics3 and SmolVLM;
                others refuse it.
            gradient_checkpointing: recompute activations in the backward pass, which takes more time but less memory.
            offload_reference: keep a reference with its own weights in CPU memory while it is not in use.
            coordinates: coordinate system of boxes in prompts and answers: `thousandths` of the image (Qwen2-VL,
                Qwen3-VL), `pixels` of the resized image (Qwen2.5-VL), or `unit`, 0..1 (LLaVA). Default: that of the
                model family or, if it is unknown, thousandths, with a warning.
            coordinate_decimals: number of decimals of these coordinates; default: 3 for `unit`, otherwise 0. The
                doctor names objects that are too small for the default.
            trust_remote_code: run Python code from the checkpoint. Allowed only on the command line.
        """
        super().__init__()
        self.checkpoint = find_checkpoint(checkpoint)
        self.lora, self.quantize, self.freeze_vision = lora, quantize, freeze_vision
        self.dtype, self.limits = getattr(torch, dtype), ImageLimits(min_pixels, max_pixels, max_tiles)
        self.trained_dtype = getattr(torch, trained_dtype)
        check_trained_dtype(self.trained_dtype, self.dtype, adapters=lora is not None)
        self.reader = Reader(
            self.checkpoint,
            adapters=lora is not None,
            dtype=self.dtype,
            quantize=quantize,
            limits=self.limits,
            gradient_checkpointing=gradient_checkpointing,
            trust_remote_code=trust_remote_code,
        )
        self.offload_reference, self.trust_remote_code = offload_reference, trust_remote_code
        self.coordinates, self.coordinate_decimals = coordinates, coordinate_decimals
        self.reference = None
        self.shares_prefixes = self.frozen_vision = False
        self.fused = True
        self.gather_per_layer = False
        """Gather each sharded decoder layer for every token of a rollout, instead of all layers once."""
        self.processor: Any = None
        self.start: dict[Tensor, Tensor] = {}
        """Values of trained parameters in the reference; empty if it is a copy, or the model without adapters."""
        self.decoding = DecodingContext(self)

    def load(self, keep_reference: bool) -> None:
        """Read the checkpoint. `keep_reference`: keep a frozen copy as the reference; with LoRA none is needed."""
        with fitting_in_memory("model.policy.checkpoint", self.checkpoint):
            self.read(keep_reference)
            own_weights(self.models, self.dtype, self.trained_dtype)
            if self.reference is not None and self.offload_reference:
                move_to_cpu([*self.reference.parameters()], self.device)
            if self.lora is not None and self.lora.adapter is not None and keep_reference:
                self.fix_reference()

    def fix_reference(self) -> None:
        """Let the reference be the policy with its present weights, in copies of those that train."""
        self.start = trained_values(self.model, self.device, offload=self.offload_reference)

    def read(self, keep_reference: bool, values: bool = True) -> None:
        """Build the model as the checkpoint stores it; `vrft.policy.placement` or `load` makes it fit for use.

        Weights have the dtype in which they were read. The reference's may share memory with the policy's and, on a
        CPU, both with the file.

        Args:
            keep_reference: keep a frozen copy as the reference; with LoRA none is needed.
            values: read the weights; otherwise parameters and the model's buffers are on the meta device.
        """
        avoid_cudnn()
        model, self.processor, self.shares_prefixes = self.reader.read(values)
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
        self.model = model if self.lora is None else fuse_adapters(add_adapters(model, self.lora))
        self.frozen_vision = not any(parameter.requires_grad for parameter in vision_parameters(model))
        stop, banned = token_ids(model, self.tokenizer)
        self.register_buffer("banned_ids", torch.tensor(banned), persistent=False)
        self.register_buffer("stop_ids", torch.tensor(stop), persistent=False)

    @property
    def folder(self) -> str:
        """The folder with the checkpoint's files; those of a model on the Hub are downloaded."""
        return self.reader.folder

    @property
    def loads_alone(self) -> bool:
        """Whether each rank reads the checkpoint itself: scales of four bits and start adapters are no parameters."""
        return self.reader.in_four_bits or (self.lora is not None and self.lora.adapter is not None)

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
        return max_positions(self.base.config)

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

    def autocast(self, cache: bool = True) -> Any:
        """Return a context that runs forwards in `dtype`. `cache`: convert trained weights at their first use only."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=cache)

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
            reference: use the reference model; call under `without_autograd`, inside `reference_on_device`.
            entropy: compute the entropy; otherwise it is 0.
            entropy_gradient: let the entropy carry a gradient, too.
        """
        from vrft.policy.repeated import repeated_hidden_states
        from vrft.policy.shared_prefix import group_hidden_states

        hidden_states = group_hidden_states if self.shares_prefixes else repeated_hidden_states
        lengths = mask.sum(1).tolist()
        adapted = self.lora is not None
        chosen = reference_of(self.base, self.reference, self.start, adapted) if reference else nullcontext(self.base)
        with self.autocast(), chosen as model:
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

    def without_autograd(self) -> AbstractContextManager[None]:
        """Return a context for forwards without gradients, whose tensors autograd can't use later.

        It is inference mode, in which operations take less time to start; under FSDP, whose gathered weights stay for a
        later forward, it is `no_grad`.
        """
        return torch.no_grad() if self.is_sharded else torch.inference_mode()

    def reference_on_device(self) -> AbstractContextManager[None]:
        """Copy an offloaded reference to the policy's device, and drop the copy at the end."""
        return on_device(self.reference, self.start, self.device) if self.offload_reference else nullcontext()

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

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Gather sharded weights, without the reference's; forwards inside need no other rank.

        With `gather_per_layer` decoder layers stay sharded, and all ranks must run the same number of forwards.
        """
        layers = decoder_modules(self.models)
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
