"""Read groups of completions, and pair early and late groups of the same prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vrft.report.lines import Completion, read_lines
from vrft.report.texts import Prompts, cut
from vrft.run_dir import RunDir

MAX_COMPLETIONS = 5000
"""Maximum number of completions in a report; above it, only those of evenly spaced rollouts are kept."""

MAX_PAIRS = 12


@dataclass
class Group:
    """The completions of one prompt in one rollout. Fields of the prompt are read from the first completion."""

    completions: list[Completion] = field(default_factory=list)

    @property
    def first(self) -> Completion:
        return self.completions[0]

    def takes(self, line: Completion) -> bool:
        """Return whether a line belongs to this group. A rollout may contain a prompt twice."""
        same = (line.rollout, line.sample, line.query) == (self.first.rollout, self.first.sample, self.first.query)
        return same and all(line.generation != known.generation for known in self.completions)

    @property
    def mean(self) -> float:
        rewards = [line.reward for line in self.completions if line.reward is not None]
        return sum(rewards) / len(rewards) if rewards else 0.0


def read_groups(run: RunDir, problems: list[str]) -> list[Group]:
    """Read the groups in the order of rollouts. If a resumed run repeated rollouts, keep the later ones."""
    groups: list[Group] = []
    for line in read_lines(run.transcripts, Completion, problems):
        if groups and line.rollout < groups[-1].first.rollout:
            groups = [group for group in groups if group.first.rollout < line.rollout]
        if not groups or not groups[-1].takes(line):
            groups.append(Group())
        groups[-1].completions.append(line)
    return groups


def thin(groups: list[Group]) -> list[Group]:
    """Keep every n-th rollout and the last, with the smallest n that leaves at most MAX_COMPLETIONS completions."""
    sizes: dict[int, int] = {}
    for group in groups:
        sizes[group.first.rollout] = sizes.get(group.first.rollout, 0) + len(group.completions)
    rollouts = sorted(sizes)
    for every in range(1, len(rollouts) + 1):
        kept = {*rollouts[::every], *rollouts[-1:]}
        if sum(sizes[rollout] for rollout in kept) <= MAX_COMPLETIONS:
            break
    return [group for group in groups if group.first.rollout in kept]


def pairs(groups: list[Group]) -> list[tuple[int, int]]:
    """Return the indices of the first and the last group of the MAX_PAIRS prompts whose groups are farthest apart."""
    seen: dict[tuple[int, int | float | str, str], list[int]] = {}
    for position, group in enumerate(groups):
        key = group.first.sample, group.first.image_id, group.first.query
        seen.setdefault(key, []).append(position)
    found = [(positions[0], positions[-1]) for positions in seen.values()]
    apart = [pair for pair in found if groups[pair[0]].first.rollout < groups[pair[1]].first.rollout]
    return sorted(apart, key=lambda pair: groups[pair[0]].first.rollout - groups[pair[1]].first.rollout)[:MAX_PAIRS]


def as_values(group: Group, prompts: Prompts, most: int) -> dict[str, Any]:
    """Return a group as plain values for the page.

    Args:
        group: the completions of a prompt.
        prompts: receives the texts of the prompt.
        most: maximum number of characters of each completion.
    """
    line = group.first
    return {
        "rollout": line.rollout,
        "sample": line.sample,
        "image_id": str(line.image_id),
        "task": line.task,
        "query": line.query,
        "target": line.target,
        "image": line.image,
        "images": line.images,
        "place": line.place,
        "size": line.size,
        "file": line.file,
        "question": prompts.position(line.question),
        "prompt": prompts.position(line.prompt),
        "answers": [
            {
                "completion": cut(each.completion, most),
                "reasoning": cut(each.reasoning, most),
                "valid": each.valid,
                "problem": each.problem,
                "answer": each.answer,
                "rewards": each.rewards,
                "reward": each.reward,
                "advantage": each.advantage,
            }
            for each in group.completions
        ],
    }
