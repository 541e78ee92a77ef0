"""Score several sampled answers to each question: pass@k, votes, and the most probable of k."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb, fsum

from vrft.answers import normalise_label
from vrft.boxes import iou_matrix
from vrft.run_dir import BY
from vrft.types import Answer, Detection, Id, Target
from vrft.utils.intervals import Interval, bootstrap_draws, mean_over_images

SAME_BOX = 0.55
"""Minimum IoU of two boxes of the same object (weighted boxes fusion, arXiv 1910.13302)."""


@dataclass(slots=True)
class Sampled:
    """The n sampled answers to one question."""

    image_id: Id
    qualities: list[float]  # n, from 0 to 1
    log_probs: list[float]  # n, sums over the tokens of a completion
    votes: dict[int, float] = field(default_factory=dict)  # k -> mean quality of the votes of groups of k answers
    scores: dict[str, list[float]] = field(default_factory=dict)  # reward that needs no ground truth -> n scores


def sizes(n: int) -> list[int]:
    """Return the numbers of answers at which curves are computed: powers of two up to n, and n.

    >>> sizes(12)
    [1, 2, 4, 8, 12]
    """
    return sorted({*(2**i for i in range(n.bit_length()) if 2**i <= n), n})


def best_of(values: Sequence[float], k: int, keys: Sequence[float] | None = None) -> float:
    """Return the expected value of the best of k answers drawn from n without replacement.

    This is the unbiased estimator of minimum variance:

        sum over i of v_(i) C(i - 1, k - 1) / C(n, k),    v_(i): value of the answer with the i-th smallest key

    If the values are 0 or 1 and the keys are the values, this is pass@k, 1 - C(n - c, k) / C(n, k), where c is the
    number of ones (arXiv 2107.03374).

    Args:
        values: values of the n answers.
        k: number of answers to draw, from 1 to n.
        keys: keys by which the best answer is selected; default: the values. Answers with equal keys are averaged.
    """
    keys = values if keys is None else keys
    shared: dict[float, list[float]] = defaultdict(list)
    for key, value in zip(keys, values, strict=True):
        shared[key].append(value)
    parts, below = [], 0
    for key in sorted(shared):
        mean = sum(shared[key]) / len(shared[key])
        upto = below + len(shared[key])
        parts.append(mean * ((comb(upto, k) - comb(below, k)) / comb(len(values), k)))  # exact integers, however large
        below = upto
    return fsum(parts)  # a plain sum may exceed 1 by rounding


def vote(answers: Sequence[Answer]) -> Target | None:
    """Return the majority vote of the readable answers, or None if there are none.

    For texts, it is the most common one, or the first of several equally common ones. For boxes, see `fused`.
    """
    read = [answer.value for answer in answers if answer.value is not None]
    names = [value for value in read if isinstance(value, str)]
    if names:
        winner = Counter(map(normalise_label, names)).most_common(1)[0][0]
        return next(name for name in names if normalise_label(name) == winner)
    return fused([value for value in read if not isinstance(value, str)]) if read else None


def fused(answers: Sequence[tuple[Detection, ...]]) -> tuple[Detection, ...]:
    """Return the boxes that more than half of the answers contain, each as the mean over the answers.

    Boxes with the same label are clustered by average linkage of 1 - IoU up to 1 - `SAME_BOX`. The box of a cluster is
    the mean of its boxes weighted by confidence, as in weighted boxes fusion (arXiv 1910.13302). Its score is the sum
    of the confidences over max(number of answers, number of boxes in the cluster). If most answers have boxes but no
    box has a majority, the most common box is returned. A single answer is returned unchanged.
    """
    if len(answers) == 1:
        return answers[0]
    boxes = [(number, box) for number, answer in enumerate(answers) for box in answer]
    found: list[tuple[int, Detection]] = []
    for label in dict.fromkeys(box.label for _, box in boxes):
        mine = [(number, box) for number, box in boxes if box.label == label]
        for cluster in clusters([box for _, box in mine]):
            members = [mine[i] for i in cluster]
            found.append((len({number for number, _ in members}), mean_box([b for _, b in members], len(answers))))
    chosen = tuple(box for votes, box in found if 2 * votes > len(answers))
    if not chosen and 2 * sum(bool(answer) for answer in answers) > len(answers):
        chosen = (max(found, key=lambda entry: entry[0])[1],)
    return chosen


def clusters(boxes: Sequence[Detection]) -> list[list[int]]:
    """Return the indices of the boxes of each object. Objects are in the order of their first boxes."""
    from scipy.cluster.hierarchy import fcluster, linkage  # the import takes longer than most commands
    from scipy.spatial.distance import squareform

    if len(boxes) == 1:
        return [[0]]
    corners = [box.box for box in boxes]
    distance = 1 - iou_matrix(corners, corners)
    distance = (distance + distance.T) / 2
    for i in range(len(boxes)):
        distance[i, i] = 0.0
    numbers = fcluster(linkage(squareform(distance), "average"), 1 - SAME_BOX, "distance")
    members: dict[int, list[int]] = defaultdict(list)
    for position, number in enumerate(numbers):
        members[int(number)].append(position)
    return sorted(members.values())


def mean_box(boxes: Sequence[Detection], answers: int) -> Detection:
    """Return the mean of an object's boxes, weighted by confidence, or equally if there are no confidences."""
    stated = [box.score for box in boxes if box.score is not None]
    weights = [1.0 if box.score is None else max(box.score, 1e-6) for box in boxes]
    x0, y0, x1, y1 = (
        sum(w * box.box[i] for w, box in zip(weights, boxes, strict=True)) / sum(weights) for i in range(4)
    )
    return Detection((x0, y0, x1, y1), boxes[0].label, sum(stated) / max(answers, len(stated)) if stated else None)


def curves(questions: Sequence[Sampled], success: float, resamples: int, seed: int) -> dict[str, dict[int, Interval]]:
    """Return curves over k from one set of samples, with 95 % intervals from a bootstrap over images.

        pass       share of questions with at least one of k answers of quality `success` or better (pass@k)
        best       quality of the best of k answers, selected by the ground truth
        likeliest  quality of the most probable of k answers
        vote       quality of the vote of k answers
        by NAME    quality of the one of k answers with the highest score of a reward that needs no ground truth

    At k = 1, all curves but `pass` equal the mean quality of a sampled answer.
    """
    by_image: dict[Id, list[Sampled]] = defaultdict(list)
    for question in questions:
        by_image[question.image_id].append(question)
    images, n = [*by_image.values()], len(questions[0].qualities)
    names = ["pass", "best", "likeliest", "vote", *(f"{BY}{name}" for name in questions[0].scores)]
    draws = bootstrap_draws(len(images), resamples, seed)

    def curve(name: str) -> dict[int, Interval]:
        values = {k: [[value_of(name, one, k, success) for one in image] for image in images] for k in sizes(n)}
        return {k: mean_over_images(some, draws) for k, some in values.items()}

    return {name: curve(name) for name in names}


def value_of(name: str, one: Sampled, k: int, success: float) -> float:
    """Return the value of a curve at k for one question."""
    if name == "vote":
        return one.votes[k]
    if name == "likeliest":
        return best_of(one.qualities, k, one.log_probs)
    if name.startswith(BY):
        return best_of(one.qualities, k, one.scores[name.removeprefix(BY)])
    return best_of([float(q >= success) for q in one.qualities] if name == "pass" else one.qualities, k)
