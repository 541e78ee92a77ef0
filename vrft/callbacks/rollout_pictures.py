"""Log rollouts: as tables with boxes to Weights & Biases, as pictures to TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from vrft.loggers import show_picture
from vrft.mazes import drawn_path
from vrft.types import Answer, Detection, Sample, ScoredRollout
from vrft.utils.drawing import PREDICTION, TRUTH, Colour, draw_images, draw_path, side_by_side, with_caption


def show_rollout(loggers: Sequence[Logger], scored: ScoredRollout, rows: Sequence[dict[str, Any]], step: int) -> None:
    """Log the first completions of a rollout, as a table to Weights & Biases or as pictures to TensorBoard.

    Args:
        loggers: the loggers of the run.
        scored: the rollout.
        rows: the first completions, as `vrft.callbacks.transcripts.transcript_row` returns them.
        step: the step of the loggers.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            log_table(logger, scored, rows, step)
        elif isinstance(logger, TensorBoardLogger):
            for p in range(len(rows) // scored.reward.shape[1]):
                show_picture([logger], f"rollouts/{p}", group_picture(scored, rows, p), step)


def log_table(logger: WandbLogger, scored: ScoredRollout, rows: Sequence[dict[str, Any]], step: int) -> None:
    """Log a table with a row per completion: the image with true and predicted boxes, the texts and the rewards."""
    names = list(scored.rewards)
    columns = ["step", "rollout", "image", "query", "reasoning", "completion", *names, "reward", "advantage"]
    group = scored.reward.shape[1]
    data = [
        [
            step,
            entry["rollout"],
            overlays(scored.samples[n // group], scored.answers[n]),
            entry["query"],
            entry["reasoning"],
            entry["completion"],
            *(entry["rewards"][name] for name in names),
            entry["reward"],
            entry["advantage"],
        ]
        for n, entry in enumerate(rows)
    ]
    logger.log_table("completions", columns, data, step=step)


def overlays(sample: Sample, answer: Answer) -> Any:
    """Return a W&B image with its boxes as overlays that the viewer can toggle, or several images with drawn boxes."""
    import wandb

    if sample.num_images > 1:
        return wandb.Image(draw_images(sample, layers_of(sample, answer)))
    boxes = {}
    for name, detections in (("truth", sample.target), ("prediction", answer.value)):
        if isinstance(detections, tuple):
            boxes[name] = {
                "box_data": [_overlay(detection) for detection in detections],
                "class_labels": {0: sample.query},
            }
    return wandb.Image(with_paths(sample.image, sample, answer), boxes=boxes or None)


def with_paths(image: Image.Image, sample: Sample, answer: Answer) -> Image.Image:
    """Draw the true and the predicted path on a maze. Return the image of any other sample unchanged."""
    for value, colour in ((sample.target, TRUTH), (answer.value, PREDICTION)):
        points = drawn_path(sample.query, value, image.size) if sample.num_images == 1 else []
        if points:
            image = draw_path(image, points, colour)
    return image


def _overlay(detection: Detection) -> dict[str, Any]:
    x0, y0, x1, y1 = detection.box
    return {
        "position": {"minX": x0, "maxX": x1, "minY": y0, "maxY": y1},
        "domain": "pixel",
        "class_id": 0,
        "box_caption": detection.label if detection.score is None else f"{detection.label} {detection.score:.2f}",
        "scores": {"confidence": 1.0 if detection.score is None else detection.score},
    }


def layers_of(sample: Sample, answer: Answer) -> list[tuple[Sequence[Detection], Colour]]:
    """Return the true boxes of a sample and the boxes of an answer, each with a colour."""
    layers: list[tuple[Sequence[Detection], Colour]] = []
    if isinstance(sample.target, tuple):
        layers.append((tuple(true._replace(score=None) for true in sample.target), TRUTH))
    if isinstance(answer.value, tuple):
        layers.append((answer.value, PREDICTION))
    return layers


def group_picture(scored: ScoredRollout, rows: Sequence[dict[str, Any]], p: int) -> Image.Image:
    """Draw the completions of prompt p side by side: true and predicted boxes, or the answer, and the reward."""
    sample, group = scored.samples[p], scored.reward.shape[1]
    tiles = []
    for n in range(p * group, (p + 1) * group):
        value = scored.answers[n].value
        layers = layers_of(sample, scored.answers[n])
        is_maze = bool(drawn_path(sample.query, sample.target, sample.size))
        text = f"{sample.query}: " if sample.query and not is_maze else ""
        text += value if isinstance(value, str) else "can't be read" if value is None else f"boxes: {len(value)}"
        reward = "no number" if rows[n]["reward"] is None else f"reward {rows[n]['reward']:.2f}"
        drawn = with_paths(draw_images(sample, layers), sample, scored.answers[n])
        tiles.append(with_caption(drawn, [text, reward]))
    return side_by_side(tiles)
