"""Data types of a training step: sample, prompt, rollout, answer, reward.

Shapes: P prompts on this rank, G generations per prompt, N = P * G rows (row p * G + g belongs to prompt p),
L prompt tokens, T completion tokens.

Commands without a model import this module, so torch is imported by the methods that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Id = int | float | str
"""Id of an image or a category as written in its file: an integer, possibly written as 1.0, or a string."""


class Detection(NamedTuple):
    """A labelled box (x0, y0, x1, y1) in pixels of the original image."""

    box: tuple[float, float, float, float]
    label: str
    score: float | None = 1.0  # None: the answer has no confidence


Target = tuple[Detection, ...] | str
"""Ground truth: boxes for detection and grounding; a name, letter or number for the other tasks."""


class Frame(NamedTuple):
    """The coordinate system of a model's boxes: width, height and decimals.

    The size is (1000, 1000), the size of the resized image in pixels, or (1, 1) with three decimals.
    """

    width: int
    height: int
    decimals: int = 0


class Question(Protocol):
    """A sample without its image. Tasks and rewards work without pixels."""

    @property
    def image_id(self) -> Id: ...
    @property
    def query(self) -> str: ...
    @property
    def target(self) -> Target: ...
    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the original image that boxes belong to."""

    @property
    def num_images(self) -> int:
        """Number of images that the question is about."""

    @property
    def image_index(self) -> int | None:
        """Index of the image that the boxes belong to. None if there is a single image or the answer has no boxes."""

    @property
    def metadata(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One or several images, a question about them and the ground truth.

    `index` is the position in the data set and identifies the sample on all ranks; `image_id` comes from the file.
    """

    index: int
    images: tuple[Image.Image, ...]
    image_id: Id
    query: str
    target: Target
    metadata: dict[str, Any] = field(default_factory=dict)
    image_index: int | None = None
    """Index of the image that the boxes belong to; required for boxes on one of several images."""
    examples: tuple[Sample, ...] = ()
    """Few-shot examples: samples that the prompt shows, with their correct answers, before the question."""

    @property
    def place(self) -> int:
        """Index of `image`."""
        return len(self.images) - 1 if self.image_index is None else self.image_index

    @property
    def image(self) -> Image.Image:
        """The image that the boxes belong to, by default the last."""
        return self.images[self.place]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of `image`."""
        return self.image.size


@dataclass(frozen=True, eq=False, slots=True)
class SharedStart:
    """The prefix that several prompts share and that is computed once for all of them: few-shot examples with images.

    Attributes:
        length: number of prompt tokens in the prefix.
        images: entries of the processor's output for the images in the prefix.
    """

    length: int
    images: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """P samples with their prompts. Each prompt is the processor's output for a batch of one, without padding.

    A prompt with a `SharedStart` includes the tokens of the prefix, but not the images of the prefix.
    """

    samples: list[Sample]
    frames: list[Frame]
    inputs: list[dict[str, Any]]  # P times: input_ids and attention_mask (1, L), image inputs, optionally `start`

    def pin_memory(self) -> PromptBatch:
        """Return the prompts in page-locked memory, so that copies to the GPU run asynchronously."""
        return self.map(lambda _, tensor: tensor.pin_memory())

    def map(self, change: Callable[[str, Tensor], Tensor]) -> PromptBatch:
        """Apply `change` to each tensor, called with key and tensor. Tensors that prompts share are changed once."""
        import torch

        starts: dict[SharedStart, SharedStart] = {}

        def changed(entries: dict[str, Any]) -> dict[str, Any]:
            new: dict[str, Any] = {}
            for key, value in entries.items():
                if isinstance(value, SharedStart):
                    if value not in starts:
                        starts[value] = SharedStart(value.length, changed(value.images))
                    new[key] = starts[value]
                else:
                    new[key] = change(key, value) if isinstance(value, torch.Tensor) else value
            return new

        return PromptBatch(self.samples, self.frames, [changed(prompt) for prompt in self.inputs])

    def select(self, prompts: Sequence[int]) -> PromptBatch:
        """Return some of the prompts."""
        return PromptBatch(
            [self.samples[p] for p in prompts], [self.frames[p] for p in prompts], [self.inputs[p] for p in prompts]
        )

    def join(self, other: PromptBatch) -> PromptBatch:
        """Return these prompts followed by those of `other`."""
        return PromptBatch(self.samples + other.samples, self.frames + other.frames, self.inputs + other.inputs)


@dataclass(frozen=True, slots=True)
class Rollout:
    """G completions for each of P prompts. `mask` is 1 up to and including the stop token."""

    ids: Tensor  # (N, T)
    mask: Tensor  # (N, T)
    log_probs: Tensor  # (N, T), under the policy at the sampling temperature, as the trainer computes them
    sampling_log_probs: Tensor  # (N, T), under the distribution truncated by top-p, top-k and min-p
    truncated: Tensor  # (N,) bool: no stop token within the limit
    texts: list[str]

    def select(self, rows: Sequence[int]) -> Rollout:
        """Return some rows, trimmed to the longest of them."""
        from vrft.indices import index_on

        index = index_on(self.ids.device, rows)
        width = int(self.mask[index].sum(1).max())
        return Rollout(
            self.ids[index, :width],
            self.mask[index, :width],
            self.log_probs[index, :width],
            self.sampling_log_probs[index, :width],
            self.truncated[index],
            [self.texts[n] for n in rows],
        )

    @staticmethod
    def join(rollouts: Sequence[Rollout]) -> Rollout:
        """Concatenate the rows of several rollouts, padded to the largest T."""
        import torch

        width = max(rollout.ids.shape[1] for rollout in rollouts)

        def cat(parts: Iterable[Tensor]) -> Tensor:  # (N, T)
            return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])

        return Rollout(
            cat(rollout.ids for rollout in rollouts),
            cat(rollout.mask for rollout in rollouts),
            cat(rollout.log_probs for rollout in rollouts),
            cat(rollout.sampling_log_probs for rollout in rollouts),
            torch.cat([rollout.truncated for rollout in rollouts]),
            [text for rollout in rollouts for text in rollout.texts],
        )


@dataclass(slots=True)  # not frozen: Lightning copies what `predict` returns field by field
class Answer:
    """A parsed completion. `value` is None if the answer can't be parsed; `well_formed` refers to the tags alone.

    `problem` explains why the answer is invalid; it is None for a valid answer. `token_ids` are the tokens of the
    completion, stop token included; None if only the text is known. Held-out answers also have `tokens`, the text and
    log-probability of each token, and `reward`.
    """

    text: str
    reasoning: str
    value: Target | None
    well_formed: bool
    tokens: tuple[tuple[str, float], ...] = ()
    reward: float | None = None
    token_ids: tuple[int, ...] | None = None
    problem: str | None = None

    @property
    def valid(self) -> bool:
        """Whether the completion has the requested format and an answer that can be parsed."""
        return self.well_formed and self.value is not None


@dataclass(slots=True)
class ScoredRollout:
    """G completions for each of P prompts, with their answers and rewards."""

    batch: PromptBatch  # P
    rollout: Rollout  # N
    answers: list[Answer]  # N
    rewards: dict[str, Tensor]  # name -> (N,), NaN where a reward does not apply
    reward: Tensor  # (P, G), the weighted sum; NaN where a reward is not finite
    advantages: Tensor = field(default_factory=lambda: _empty())  # (P, G), set once all ranks have rewards
    reference: Tensor | None = None  # (N, T), log-probabilities under the reference model, if computed with the rollout

    @property
    def samples(self) -> list[Sample]:
        """The P samples."""
        return self.batch.samples

    @property
    def finite(self) -> Tensor:
        """Completions whose reward and log-probabilities are finite, (N,) bool."""
        return self.reward.flatten().isfinite() & self.rollout.log_probs.isfinite().all(1).to(self.reward.device)

    def join(self, other: ScoredRollout) -> ScoredRollout:
        """Return the prompts of this rollout followed by those of `other`."""
        import torch

        return ScoredRollout(
            self.batch.join(other.batch),
            Rollout.join([self.rollout, other.rollout]),
            self.answers + other.answers,
            {name: torch.cat([values, other.rewards[name]]) for name, values in self.rewards.items()},
            torch.cat([self.reward, other.reward]),
        )

    def select(self, prompts: Sequence[int]) -> ScoredRollout:
        """Return some of the prompts with all their completions."""
        return self._select(prompts, [range(self.reward.shape[1])] * len(prompts))

    def keep(self, generations: Sequence[Sequence[int]]) -> ScoredRollout:
        """Return the chosen completions of each prompt. `generations` has the same number of indices per prompt."""
        return self._select(range(len(generations)), generations)

    def _select(self, prompts: Sequence[int], generations: Sequence[Sequence[int]]) -> ScoredRollout:
        from vrft.indices import index_on

        group = self.reward.shape[1]
        rows = [p * group + g for p, some in zip(prompts, generations, strict=True) for g in some]
        rollout, index = self.rollout.select(rows), index_on(self.reward.device, rows)
        return ScoredRollout(
            self.batch.select(prompts),
            rollout,
            [self.answers[n] for n in rows],
            {name: values[index] for name, values in self.rewards.items()},
            self.reward.flatten()[index].view(len(prompts), -1),
            reference=None if self.reference is None else self.reference[index, : rollout.ids.shape[1]],
        )


def _empty() -> Tensor:
    import torch

    return torch.empty(0)
