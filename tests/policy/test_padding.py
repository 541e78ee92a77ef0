"""Padding of packed rows: its gradients are spread, since a GPU adds those of one place in sequence."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vrft.policy.packed_attention import Completions
from vrft.policy.recurrent import PaddedRows, Row


def completions(lengths: Sequence[int]) -> Tensor:
    index = Completions(lengths, torch.device("cpu")).fold_index
    assert index is not None
    return index.view(len(lengths), -1)


def rows(lengths: Sequence[int], left: bool = False) -> Tensor:
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    parts = [Row(0, start, length) for start, length in zip(starts, lengths, strict=False)]
    padded = PaddedRows(parts, max(lengths), torch.device("cpu"), left)
    return padded.index.view(padded.shape)


@pytest.mark.parametrize("place", [completions, rows, lambda lengths: rows(lengths, left=True)])
@pytest.mark.parametrize("lengths", [[9, 1, 1, 1], [1, 3, 2], [5, 1]], ids=str)
def test_padding_repeats_all_tokens_alike(place: object, lengths: list[int]) -> None:
    index = place(lengths)  # type: ignore[operator]
    total, used = sum(lengths), index.flatten().bincount(minlength=sum(lengths))
    assert len(used) == total
    assert used.min() >= 1
    assert used.max() <= 1 + -(-(index.numel() - total) // total)


def test_tokens_keep_their_places() -> None:
    assert completions([3, 2])[0].tolist() == [0, 1, 2]
    assert completions([3, 2])[1, :2].tolist() == [3, 4]
    assert rows([3, 2], left=True)[1, 1:].tolist() == [3, 4]
