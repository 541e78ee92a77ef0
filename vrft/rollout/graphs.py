"""Decoding steps whose tensors keep their shapes and addresses, recorded as CUDA graphs.

A graph launches the thousand small kernels of a step at once. It is bound to its tensors, so rows that have ended leave
only when a quarter, half or an eighth of each group is left; the graphs of all sizes share their memory. What was
recorded is kept with the weights that it reads and used again for the next rollout of the same shape. A model that
waits for the GPU in its forward can't be recorded: its steps run one kernel at a time.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vrft.policy.decoding_forward import DecodingCheck
from vrft.policy.decoding_model import DecodingModel
from vrft.policy.head import logits_of
from vrft.rollout.base import Sampling
from vrft.rollout.decoding import GroupDecoder, Prefilled
from vrft.rollout.grid import DecodingGrid
from vrft.rollout.group_cache import GroupCache
from vrft.rollout.sampling import TokenSampler
from vrft.utils.out_of_memory import is_out_of_memory

SMALLEST_SHARE = 8
"""A group shrinks by halves down to this part of its size."""

PROMPT_STEP = 128
"""Rooms for prompts are of a multiple of this number of tokens."""

RECENT = 16
"""A room is for the longest prompt of this number of rollouts: enough that prompts of varied lengths record nothing
again, and few enough that one long prompt does not slow down a run, since a step reads all of the room."""

KEPT = 2
"""Shapes whose graphs are kept: of training and of evaluation."""


class Shape(NamedTuple):
    """The settings that a recorded step depends on, apart from weights and the length of prompts."""

    prompts: int
    group_size: int
    limit: int
    sampling: Sampling


class StepParts(NamedTuple):
    """The parts of a step that steps of all sizes share."""

    head: Callable[[Tensor], Tensor]
    sample_tokens: TokenSampler
    pool: Any  # the memory of their graphs; None on a CPU
    check: DecodingCheck  # whether steps can be recorded


@cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream that records on a device: cuBLAS keeps a workspace for each stream that it has run on."""
    return torch.cuda.Stream(device)


def graph_steps(
    decoding: DecodingModel,
    prefilled: Prefilled,
    uniform: Tensor,
    stop_ids: Tensor,
    shape: Shape,
    sample_tokens: TokenSampler,
) -> GraphSteps:
    """Return steps for these prompts: recorded ones if there are any of this shape, otherwise new ones."""
    steps: GraphSteps | None = decoding.recorded.pop(shape, None)
    recent = deque[int](maxlen=RECENT) if steps is None else steps.recent
    recent.append(max(prefilled.cache.lengths))
    longest = max(recent)
    if steps is None or not longest <= steps.longest <= max(2 * longest, 4 * PROMPT_STEP):
        steps = None  # frees its memory first
        room = -(-longest // PROMPT_STEP) * PROMPT_STEP
        grid = DecodingGrid(uniform, shape.group_size, stop_ids)
        steps = GraphSteps(decoding, prefilled, shape, room, grid, sample_tokens, recent)
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
        recent: lengths of the longest prompts of the last rollouts.
    """

    def __init__(
        self,
        decoding: DecodingModel,
        prefilled: Prefilled,
        shape: Shape,
        longest: int,
        grid: DecodingGrid,
        sample_tokens: TokenSampler,
        recent: deque[int],
    ) -> None:
        self.shape, self.longest, self.recent = shape, longest, recent
        pool = torch.cuda.graph_pool_handle() if grid.rows.is_cuda else None
        self.parts = StepParts(logits_of(decoding.model), sample_tokens, pool, decoding.forward.check)
        cache = GroupCache(prefilled.cache, decoding.model, shape.group_size, shape.limit, longest)
        decoder = GroupDecoder(decoding.forward, prefilled, cache, shape.group_size)
        self.steps = {shape.group_size: RecordedStep(self.parts, decoder, grid)}
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
        self.grid.append(self.parts.head(self.current.decoder.hidden), self.parts.sample_tokens)

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
            self.steps[size] = RecordedStep(self.parts, old.decoder.smaller(size), grid)
        self.current = self.steps[size]
        self.current.grid.become(grid)
        self.current.decoder.first.copy_(first)
        self.current.decoder.cache.become(rows, states)


class RecordedStep:
    """A step for one size of groups: feeds the last tokens to the model and samples the next ones."""

    def __init__(self, parts: StepParts, decoder: GroupDecoder, grid: DecodingGrid) -> None:
        self.parts, self.decoder, self.grid = parts, decoder, grid
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if self.graph is None and self.grid.rows.is_cuda and self.parts.check.recordable:
            self._record()
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()

    def _run(self) -> None:
        self.grid.append(self.parts.head(self.decoder.step(self.grid.tokens)), self.parts.sample_tokens)

    def _record(self) -> None:
        """Run the step twice, since libraries select kernels and allocate on first calls, and record it."""
        state = [*self.decoder.cache.changing(), self.grid.index, self.grid.tokens, self.grid.active]
        before = [tensor.clone() for tensor in state]
        graph, stream = torch.cuda.CUDAGraph(), recording_stream(self.grid.tokens.device)

        def restore() -> None:
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)

        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # torch.cuda.graph would leave its stream selected after a failure
            for _ in range(2):
                self._run()
                restore()
            try:  # meanwhile, a thread of a DataLoader may page-lock a batch
                with torch.cuda.graph(graph, self.parts.pool, stream, capture_error_mode="thread_local"):
                    self._run()
                self.graph = graph
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self.parts.check.recordable = False
                reason = (str(error.__context__ or error).splitlines() or [""])[0]
                warnings.warn(f"decoding is slower: its steps can't be recorded as CUDA graphs: {reason}", stacklevel=2)
        torch.cuda.current_stream().wait_stream(stream)
        restore()
