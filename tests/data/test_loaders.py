"""Shots, samplers and loaders: seeded, sharded over ranks and resumed at their position."""

from __future__ import annotations

from collections import Counter

import pytest

from vrft.data.few_shot import choose_shots
from vrft.data.loaders import PromptSampler, ResumableLoader
from vrft.errors import ConfigurationError


def test_shots_are_seeded_nested_and_per_category() -> None:
    items = [(category, i) for i in range(50) for category in "ab"]
    four = choose_shots(items, lambda item: item[0], 4, 1, lambda _: True)
    assert Counter(category for category, _ in four) == {"a": 4, "b": 4}
    assert four == choose_shots(items, lambda item: item[0], 4, 1, lambda _: True)
    assert four != choose_shots(items, lambda item: item[0], 4, 2, lambda _: True)
    assert set(four) < set(choose_shots(items, lambda item: item[0], 5, 1, lambda _: True))
    usable = choose_shots(items, lambda item: item[0], 4, 1, lambda item: item not in four)
    assert not {*usable} & {*four}  # others replace unusable ones
    with pytest.raises(ConfigurationError, match="at least 51 images of 'a', got 50"):
        choose_shots(items, lambda item: item[0], 51, 1, lambda _: True)
    with pytest.raises(ConfigurationError, match="at least 1"):
        choose_shots(items, lambda item: item[0], 0, 1, lambda _: True)


def order(size: int, batch: int, world: int, epoch: int = 0) -> list[list[int]]:
    samplers = [PromptSampler(size, batch, rank, world, seed=3, shuffle=True) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


def test_ranks_share_one_permutation() -> None:
    alone = order(20, 4, 1)[0]
    first, second = order(20, 2, 2)
    assert [index for pair in zip(first, second, strict=True) for index in pair] == alone
    assert len(set(alone)) == 20
    assert order(20, 4, 1, epoch=1)[0] != alone


def test_four_images_fill_a_batch_of_eight() -> None:
    assert Counter(order(4, 8, 1)[0]) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert [len(part) for part in order(5, 2, 4)] == [2, 2, 2, 2]


def test_a_loader_resumes_at_its_position() -> None:
    def loader() -> ResumableLoader:
        sampler = PromptSampler(12, 2, 0, 1, seed=0, shuffle=True)
        return ResumableLoader(list(range(12)), batch_size=2, sampler=sampler, collate_fn=list)  # type: ignore[arg-type]

    whole, part = loader(), loader()
    expected = list(whole)
    batches = iter(part)
    assert [next(batches), next(batches)] == expected[:2]
    again = loader()
    again.load_state_dict(part.state_dict())
    assert list(again) == expected[2:]
    assert list(again) == expected  # the next epoch is complete


@pytest.mark.parametrize(
    ("had", "batch", "world", "start"),
    [
        (8, 4, 1, 8),  # a larger batch
        (8, 2, 2, 8),  # the same size on two ranks
        (10, 1, 1, 10),  # a smaller batch
        (10, 6, 1, 6),  # the remainder of a batch is repeated
        (8, 11, 1, 0),
        (20, 3, 3, 0),  # the remaining 3 of 23 fill no batch of 9: the next epoch
        (22, 5, 2, 0),  # the epoch was over
    ],
)
def test_a_loader_with_another_global_batch_resumes_at_its_position(
    had: int, batch: int, world: int, start: int
) -> None:
    def loaders(batch: int, world: int) -> list[ResumableLoader]:
        samplers = [PromptSampler(23, batch, rank, world, seed=0, shuffle=True) for rank in range(world)]
        return [ResumableLoader(list(range(23)), batch_size=batch, sampler=s, collate_fn=list) for s in samplers]  # type: ignore[arg-type]

    before, after = loaders(2, 1)[0], loaders(batch, world)
    batches = iter(before)
    first = [sample for _ in range(had // 2) for sample in next(batches)]
    for loader in after:
        loader.load_state_dict(before.state_dict())
    then = [sample for turn in zip(*after, strict=True) for row in zip(*turn, strict=True) for sample in row]
    everything = [sample for batch in loaders(1, 1)[0] for sample in batch]
    assert first == everything[:had]
    assert then == everything[start : 23 // (batch * world) * batch * world]
