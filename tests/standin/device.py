"""A stand-in for a GPU: gives torch's CPU build a "cuda" device in the CPU's memory, with real numbers.

As on a GPU, tensors of two devices don't mix, reading a tensor of the device is a synchronisation, and none of that may
happen while a graph is recorded: each raises. Counted by phase: kernels, those recorded in graphs, synchronisations and
the lines they come from, copies, bytes, FLOPs and peak memory. `gpu.limit(bytes)` makes memory run out.

`properties.major` makes it an older or newer GPU, with the kernels for attention and experts that this one has. A
capture fails if streams that began to wait for it have not been joined at its end and, in mode "global", if another
thread page-locks memory meanwhile.

Not stood in for: other uses of streams and races, speed, fragmentation, NCCL, Triton and torch.compile. What passes
here can still fail on a GPU; what fails here fails there.

Import this module before torch.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import importlib.util
import itertools
import threading
import traceback
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.standin import build

for library in (build.TORCH / "lib/libc10.so", build.TORCH / "lib/libtorch_cpu.so", build.hooks()):
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # before torch looks for a GPU

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from tests.standin import attention, kernels  # noqa: E402, F401


def load() -> Any:
    """Import the extension module, which registers the device."""
    spec = importlib.util.spec_from_file_location(build.MODULE, build.device())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gpu = load()
registered = attention.register(gpu)

events: dict[str, collections.Counter[tuple[str, str, str]]] = collections.defaultdict(collections.Counter)
"""How often each event (kind, operator, where) happened, by phase."""
phases = ["setup"]


def where() -> str:
    """Return the innermost line of vrft, and the innermost line outside torch that it called."""
    frames = [f for f in traceback.extract_stack() if "/standin/" not in f.filename and "/torch/" not in f.filename]
    ours = [f"{f.filename.split('/vrft/')[-1]}:{f.lineno}" for f in frames if "/vrft/" in f.filename]
    innermost = f"{'/'.join(frames[-1].filename.split('/')[-2:])}:{frames[-1].lineno}" if frames else "backward"
    return f"{ours[-1] if ours else '-'} < {innermost}"


def on_event(kind: str, op: str) -> None:
    events[phases[-1]][kind, op, where()] += 1


gpu.on_event(on_event)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Count what happens inside under a name."""
    phases.append(name)
    gpu.set_phase(name)
    try:
        yield
    finally:
        phases.pop()
        gpu.set_phase(phases[-1])


class Stream(contextlib.nullcontext[None]):
    """A stream: everything runs at once and in order."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        events[phases[-1]]["stream", "new", where()] += 1

    def wait_stream(self, other: Stream) -> None:
        """Take part in a capture by waiting for it, or end another stream's part in it."""
        for capture in captures:
            if self is capture.stream:
                capture.forked.discard(other)
            elif other is capture.stream or other in capture.forked:
                capture.forked.add(self)

    def synchronize(self, *_: Any) -> None: ...

    wait_event = record_event = synchronize
    device = torch.device("cuda", 0)

    def is_capturing(self) -> bool:
        return False


class SelectedDevice(contextlib.nullcontext[None]):
    """The context of `torch.cuda.device(…)`: there is one GPU."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


class Event:
    """An event that has happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    wait = synchronize = record

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Event) -> float:
        return 0.0


class CUDAGraph:
    """The kernels that ran while it was recorded."""

    def __init__(self, *_: Any) -> None:
        self.graph = gpu.Graph()

    def replay(self) -> None:
        self.graph.replay()


class Capture(NamedTuple):
    """A capture that has not ended.

    Attributes:
        stream: the stream that it began on.
        forked: other streams that wait for it.
        mode: "global" forbids page-locking memory in all threads, "thread_local" in this one.
    """

    stream: Stream
    forked: set[Stream]
    mode: str
    thread: threading.Thread

    def check(self) -> None:
        """Raise if this thread may not page-lock memory."""
        if self.mode == "global" or self.thread is threading.current_thread():
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing (cudaHostAlloc)")


captures: list[Capture] = []
streams: list[Stream] = []
"""The selected streams, innermost last; after a failed capture, `torch.cuda.graph` leaves its own selected."""


@contextlib.contextmanager
def selected(stream: Stream | None) -> Iterator[None]:
    before = [*streams]
    streams.append(stream or streams[-1])
    try:
        yield
    finally:
        streams[:] = before


@contextlib.contextmanager
def recording(
    graph: CUDAGraph, pool: int = 0, stream: Stream | None = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    events[phases[-1]]["record", "graph", where()] += 1
    streams.append(stream or Stream())
    graph.graph.begin(pool)
    captures.append(Capture(streams[-1], set(), capture_error_mode, threading.current_thread()))
    try:
        yield
    finally:
        capture = captures.pop()
        graph.graph.end()
        if capture.forked:
            raise RuntimeError("CUDA error: capturing stream has unjoined work")
        streams.pop()


pin_memory = Tensor.pin_memory


def checked_pin_memory(tensor: Tensor, *arguments: Any) -> Tensor:
    for capture in captures:
        capture.check()
    return pin_memory(tensor, *arguments)


Tensor.pin_memory = checked_pin_memory  # type: ignore[method-assign, assignment]


def nothing(*_: Any, **__: Any) -> None: ...


def generator_state(*_: Any) -> Tensor:
    return torch.zeros(16, dtype=torch.uint8)


streams.append(Stream())
NOTHING = "_lazy_init set_device empty_cache synchronize init ipc_collect manual_seed"
NOTHING += " manual_seed_all set_rng_state set_rng_state_all _lazy_call set_stream"
properties = types.SimpleNamespace(
    name="stand-in", total_memory=141 * 10**9, major=9, minor=0, multi_processor_count=132
)
gpu.set_properties(properties)
NAMES: dict[str, Any] = {
    **dict.fromkeys(NOTHING.split(), nothing),
    **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), lambda *_, **__: True),
    **dict.fromkeys(("is_current_stream_capturing", "_is_in_bad_fork"), lambda: False),
    **dict.fromkeys(("current_stream", "default_stream"), lambda *_: streams[-1]),
    "Stream": Stream,
    "Event": Event,
    "stream": selected,
    "device": SelectedDevice,
    "device_count": lambda: 8,  # ranks share the only one
    "current_device": lambda: 0,
    "get_device_name": lambda *_: "stand-in",
    "get_device_capability": lambda *_: (properties.major, properties.minor),
    "get_device_properties": lambda *_: properties,
    "max_memory_allocated": lambda *_: gpu.highest(),
    "max_memory_reserved": lambda *_: gpu.highest(),
    "reset_peak_memory_stats": lambda *_: gpu.reset_highest(),
    "memory_allocated": lambda *_: gpu.memory(),
    "memory_reserved": lambda *_: gpu.memory(),
    "mem_get_info": lambda *_: (properties.total_memory - gpu.memory(), properties.total_memory),
    "memory_stats": lambda *_: {},
    "get_rng_state": generator_state,
    "get_rng_state_all": lambda: [generator_state()],
    "graph_pool_handle": itertools.count(1).__next__,
    "CUDAGraph": CUDAGraph,
    "graph": recording,
}
ACCELERATOR: dict[str, Any] = {
    "is_available": lambda: True,
    "current_accelerator": lambda check_available=False: torch.device("cuda"),
    "current_device_index": lambda: 0,
    "device_count": lambda: 1,
    **dict.fromkeys(("set_device_index", "synchronize", "empty_cache"), nothing),
    "current_stream": lambda *_: streams[-1],
}
COMPILED = {"_cuda_getCurrentRawStream": lambda *_: 0}  # bitsandbytes, where installed, imports it
for module, names in ((torch.cuda, NAMES), (torch.accelerator, ACCELERATOR), (torch._C, COMPILED)):
    for name, value in names.items():
        setattr(module, name, value)


def storage_bytes(storage: torch.UntypedStorage) -> Tensor:
    empty = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return empty.set_(storage, 0, (storage.nbytes(),), (1,)) if storage.nbytes() else empty  # type: ignore[call-overload]


def storage_to(storage: torch.UntypedStorage, *, device: torch.device, non_blocking: bool = False) -> Any:
    return storage_bytes(storage).to(device, non_blocking).untyped_storage()


start_process_group = torch.distributed.init_process_group


def init_process_group(*args: Any, device_id: Any = None, **options: Any) -> None:
    """Start the ranks without a device of their own, as which gloo's groups can't be split."""
    start_process_group(*args, **options)


torch.distributed.init_process_group = init_process_group
torch.distributed.Logger.set_runtime_stats_and_log = nothing  # type: ignore[method-assign]  # it needs CUDA's timer
resize_on_cpu = torch.UntypedStorage.resize_


def resize_storage(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
    if storage.device.type == "cpu":
        return resize_on_cpu(storage, size)
    gpu.resize_storage(torch.empty(0, dtype=torch.uint8, device="cuda").set_(storage, 0, (0,), (1,)), size)  # type: ignore
    return storage


torch.UntypedStorage.resize_ = resize_storage  # type: ignore
torch.UntypedStorage.to = storage_to  # type: ignore
torch.UntypedStorage.cpu = lambda storage: storage_bytes(storage).cpu().untyped_storage()  # type: ignore
torch.UntypedStorage.clone = lambda storage: storage_bytes(storage).clone().untyped_storage()  # type: ignore
torch.cuda.amp.common.amp_definitely_not_available = lambda: False  # type: ignore[attr-defined]
