"""Check the prompts, targets and rewards of some samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

from vrft.data import RecordData, VisionData
from vrft.errors import RewardFailed
from vrft.policy.plain_text import plain_text
from vrft.tasks import Task
from vrft.training.module import VisionModule
from vrft.training.scoring import scored_samples
from vrft.types import Detection, Frame, PromptBatch, Sample
from vrft.utils.processors import load_processor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GARBAGE = "The picture shows what it shows, }]{ 1 2 3 4 <answer"
REWARD_TOLERANCE = 1e-6
MIN_SHARE = 0.01
"""Minimum share of truncated correct answers that is a problem."""


def patch_side(config: PretrainedConfig) -> int:
    """Return the side in pixels of the image region that becomes one token."""
    vision = config.vision_config.to_dict()
    patch = vision.get("patch_size", 1)
    return int((patch[0] if isinstance(patch, list) else patch) * vision.get("spatial_merge_size", 1))


def check_frames(module: VisionModule, batch: PromptBatch, console: Console) -> Iterator[str]:
    """Check that pixel coordinates refer to the image as resized by the processor."""
    coordinates = module.encoder.coordinates
    console.print(f"coordinates: {coordinates} ({module.policy.base.config.model_type})")
    if coordinates != "pixels" or "image_grid_thw" not in batch.inputs[0]:
        return
    side = module.policy.base.config.vision_config.patch_size
    for sample, frame, prompt in zip(batch.samples, batch.frames, batch.inputs, strict=True):
        _, rows, columns = prompt["image_grid_thw"][0].tolist()
        if (columns * side, rows * side) != frame[:2]:
            yield (
                f"sample {sample.index}: the processor resizes its image to {columns * side} x {rows * side}, "
                f"the prompt says {frame.width} x {frame.height}"
            )
            return


def check_lengths(module: VisionModule, data: VisionData, batch: PromptBatch, console: Console) -> Iterator[str]:
    """Show the numbers of tokens of prompts, images and targets, and check targets against `max_completion_length`.

    If fewer than `MIN_SHARE` of the answers are truncated, describe them on the console instead of yielding a problem.
    """
    image_id = module.policy.base.config.image_token_id
    prompts = [prompt["input_ids"] for prompt in batch.inputs]
    texts = [module.task.target_text(*pair) for pair in zip(batch.samples, batch.frames, strict=True)]
    targets = [len(ids) + 1 for ids in plain_text(module.policy.processor).ids(texts)]
    table = Table(title="tokens", title_justify="left")
    for column in ("", "min", "median", "max"):
        table.add_column(column, justify="right" if column else "left")
    own = [*unlimited_counts(module, batch)]
    limited = [int((ids == image_id).sum()) for ids in prompts]
    for name, counts in (
        ("prompt with images", [ids.shape[1] for ids in prompts]),
        ("images", limited),
        *own,
        ("target with end token", targets),
    ):
        ordered = sorted(counts)
        table.add_row(name, *(str(count) for count in (ordered[0], ordered[len(ordered) // 2], ordered[-1])))
    console.print(table)
    if own and sum(limited) > sum(own[0][1]):
        limits = ", ".join(f"{name}={value}" for name, value in vars(module.policy.limits).items() if value is not None)
        console.print(f"{limits} makes images larger than the checkpoint's own limits do", markup=False)
    longest, limit = max(targets), module.max_completion_length
    over = sum(count > limit for count in targets)
    if not over:
        return
    index = batch.samples[targets.index(longest)].index
    records = data.train_set().records if isinstance(data, RecordData) else []
    sample = f"sample {index} ({records[index].location})" if index < len(records) else f"sample {index}"
    told = (
        f"model.max_completion_length={limit} truncates {over} of {len(targets)} correct answers, even without "
        f"reasoning by the model: the longest target has {longest} tokens ({sample}); "
        f"model.max_completion_length={longest} holds all of these targets"
    )
    if over < MIN_SHARE * len(targets):
        console.print(told)
    else:
        yield told


def unlimited_counts(module: VisionModule, batch: PromptBatch) -> Iterator[tuple[str, list[int]]]:
    """Yield a name and the numbers of image tokens without the run's limits on image size, if there are limits."""
    policy = module.policy
    given = {name: value for name, value in vars(policy.limits).items() if value is not None}
    if not given:
        return
    encode = replace(module.encoder, processor=load_processor(policy.folder, policy.trust_remote_code))
    prompts = [encode.prompt(*pair)["input_ids"] for pair in zip(batch.samples, batch.frames, strict=True)]
    counts = [int((ids == policy.base.config.image_token_id).sum()) for ids in prompts]
    yield "image with the checkpoint's own limits", counts


def check_rewards(module: VisionModule, batch: PromptBatch, console: Console) -> Iterator[str]:
    """Check that rewards can be computed, and that the correct answer earns the highest reward."""
    try:
        yield from compare_rewards(module, batch, console)
    except RewardFailed as error:
        yield f"rewards: {error}"


def compare_rewards(module: VisionModule, batch: PromptBatch, console: Console) -> Iterator[str]:
    """Check that the correct answer earns the highest reward."""
    pairs = list(zip(batch.samples, batch.frames, strict=True))
    completions = {
        "ground truth": [module.task.target_text(*pair) for pair in pairs],
        "nothing": [""] * len(pairs),
        "a box around everything": [whole_image(module.task, *pair) for pair in pairs],
        "garbage": [GARBAGE] * len(pairs),
    }
    table = Table(title="mean rewards, unweighted", title_justify="left")
    for column in ("", *module.rewards, "weighted sum"):
        table.add_column(column, justify="right" if column else "left")
    totals = {}
    for name, texts in completions.items():
        answers = [module.task.parse(text, *pair) for text, pair in zip(texts, pairs, strict=True)]
        for answer, ids in zip(answers, plain_text(module.policy.processor).ids(texts), strict=True):
            answer.token_ids = (*ids, int(module.policy.stop_ids[0]))
        with torch.no_grad():
            scores, total = module.score(answers, scored_samples(module.task, batch))
        totals[name] = total
        table.add_row(name, *(f"{values.nanmean():.3f}" for values in scores.values()), f"{total.mean():.3f}")
        if name == "ground truth":
            for answer, (sample, _) in zip(answers, pairs, strict=True):
                if not answer.valid:
                    yield f"sample {sample.index}: the correct answer can't be parsed: {answer.text[:200]}"
                    break
    console.print(table)
    for name, total in totals.items():
        better = (total > totals["ground truth"] + REWARD_TOLERANCE).nonzero()
        if len(better):
            n = int(better[0])
            yield (
                f"rewards: {name} earns {total[n]:.3f} and the ground truth {totals['ground truth'][n]:.3f} "
                f"(sample {pairs[n][0].index}, and {len(better) - 1} more)"
            )
    if not (totals["ground truth"] > totals["nothing"] + REWARD_TOLERANCE).any():
        yield "rewards: the ground truth earns no more than an empty answer, so there is nothing to learn from"


def whole_image(task: Task, sample: Sample, frame: Frame) -> str:
    """Return an answer with one box around the image, or an empty block if answers have no boxes."""
    if not isinstance(sample.target, tuple):
        return "<think></think><answer></answer>"
    label = sample.target[0].label if sample.target else sample.query
    width, height = sample.size
    return task.target_text(replace(sample, target=(Detection((0, 0, width, height), label),)), frame)
