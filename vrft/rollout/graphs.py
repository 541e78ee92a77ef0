"""Decoding steps whose tensors keep their shapes and addresses, recorded as CUDA graphs.

A graph launches the thousand small kernels of a step at once. It is bound to its tensors, so rows that have ended leave
only when a quarter, half or an eighth of each group is left; the graphs of all sizes share their memory. What was
recorded is kept with the weights that it reads and used again for the next rollout of the same shape.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vrft.policy.decoding_model import DecodingModel
from vrft.policy.head import logits_of
from vrft.rollout.base import Sampling
from vrft.rollout.decoding import GroupDecoder, Prefilled
from vrft.rollout.grid import DecodingGrid
from vrft.rollout.group_cache import GroupCache
from vrft.rollout.sampling import TokenSampler

SMALLEST_SHARE = 8
"""A group shrinks by halves down to this part of its size."""

PROMPT_STEP = 128
"""Rooms for prompts are of a multiple of this number of tokens."""

KEPT = 2
"""Shapes whose graphs are kept: of training and of evaluation."""


class Shape(NamedTuple):
    """The settings that a recorded step depends on, apart from weights and the length of prompts."""

    prompts: int
    group_size: int
    limit: int
    sampling: Sampling


def graph_steps(
    decoding: DecodingModel,
    prefilled: Prefilled,
    uniform: Tensor,
    stop_ids: Tensor,
    shape: Shape,
    sample_tokens: TokenSampler,
) -> GraphSteps:
    """Return steps for these prompts: recorded ones if there are any of this shape, otherwise new ones."""
    longest = max(prefilled.cache.lengths)
    steps: GraphSteps | None = decoding.recorded.pop(shape, None)
    if steps is None or not longest <= steps.longest <= max(2 * longest, 4 * PROMPT_STEP):
        steps = None  # frees its memory first
        room = -(-longest // PROMPT_STEP) * PROMPT_STEP
        grid = DecodingGrid(uniform, shape.group_size, stop_ids)
        steps = GraphSteps(decoding, prefilled, shape, room, grid, sample_tokens)
    decoding.recorded[shape] = steps
    for other in [*decoding.recorded][:-KEPT]:
        del decoding.recorded[other]
    steps.restart(prefilled, uniform)
    return steps


class GraphSteps:
    """Steps of all sizes of groups.

    Attributes:
        grid: the rows that are decoded.
        longest: room for tokens of a prompt.
    """

    def __init__(
        self,
        decoding: DecodingModel,
        prefilled: Prefilled,
        shape: Shape,
        longest: int,
        grid: DecodingGrid,
        sample_tokens: TokenSampler,
    ) -> None:
        self.decoding, self.shape, self.longest, self.sample_tokens = decoding, shape, longest, sample_tokens
        self.head = logits_of(decoding.model)
        self.on_gpu = grid.rows.is_cuda
        self.pool = torch.cuda.graph_pool_handle() if self.on_gpu else None
        cache = GroupCache(prefilled.cache, decoding.model, shape.group_size, shape.limit, longest)
        decoder = GroupDecoder(decoding.model, prefilled, cache, shape.group_size)
        self.steps = {shape.group_size: RecordedStep(self, decoder, grid)}
        self.current = self.largest = self.steps[shape.group_size]

    @property
    def grid(self) -> DecodingGrid:
        return self.current.grid

    def restart(self, prefilled: Prefilled, uniform: Tensor) -> None:
        """Start the rows of other prompts."""
        self.current = self.largest
        decoder = self.current.decoder
        decoder.cache.load(prefilled.cache)
        decoder.hidden = prefilled.hidden.repeat_interleave(self.shape.group_size, 0)
        decoder.first.copy_(prefilled.first.repeat_interleave(self.shape.group_size, -1)[..., None])
        self.current.grid.restart(uniform)

    def first(self) -> None:
        """Sample the first token of each row."""
        self.grid.append(self.head(self.current.decoder.hidden), self.sample_tokens)

    def next(self) -> None:
        """Sample the next token of each row."""
        self.current()

    def shrink(self, num_active: list[int]) -> None:
        """Continue with fewer rows of each prompt if its rows that have not ended are few enough."""
        group_size = self.shape.group_size
        smallest = max(-(-group_size // SMALLEST_SHARE), 1)
        sizes = [smallest]
        while 2 * sizes[-1] < group_size:
            sizes.append(2 * sizes[-1])
        size = next((size for size in sizes if size >= max(num_active)), group_size)
        old = self.current
        if size >= old.grid.rows.shape[1]:
            return
        cells = old.grid.active_first([*range(self.shape.prompts)], size)
        (rows, states), grid = old.decoder.cache.selected(cells), old.grid.select(cells)
        first = old.decoder.first[..., cells.flatten(), :]
        if size not in self.steps:
            self.steps[size] = RecordedStep(self, old.decoder.smaller(size), grid)
        self.current = self.steps[size]
        self.current.grid.become(grid)
        self.current.decoder.first.copy_(first)
        self.current.decoder.cache.become(rows, states)


class RecordedStep:
    """A step for one size of groups: feeds the last tokens to the model and samples the next ones."""

    def __init__(self, steps: GraphSteps, decoder: GroupDecoder, grid: DecodingGrid) -> None:
        self.steps, self.decoder, self.grid = steps, decoder, grid
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if not self.steps.on_gpu:
            self._run()
            return
        if self.graph is None:
            self._record()
        assert self.graph is not None
        self.graph.replay()

    def _run(self) -> None:
        decoding, steps = self.steps.decoding, self.steps
        hidden = decoding.run(lambda: self.decoder.step(self.grid.tokens))
        self.grid.append(steps.head(hidden), steps.sample_tokens)

    def _record(self) -> None:
        """Run the step twice, since libraries select kernels and allocate on first calls, and record it."""
        state = [*self.decoder.cache.changing(), self.grid.index, self.grid.tokens, self.grid.active]
        before = [tensor.clone() for tensor in state]
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()

        def restore() -> None:
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)

        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._run()
                restore()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph, pool=self.steps.pool):
            self._run()
        restore()
        self.graph = graph
