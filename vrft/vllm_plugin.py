"""A plugin of vLLM servers: takes over weights from a safetensors file, on a disk or in shared memory.

vLLM loads it by its entry point where vrft is installed (`pip install --no-deps .` will do), in each of its
processes. Nothing here is imported where training runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


def register() -> None:
    """Make `--weight-transfer-config '{"backend": "vrft"}'` known. vLLM calls it once in each process."""
    WeightTransferEngineFactory.register_engine("vrft", FileEngine)


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """A file needs no meeting."""


@dataclass
class WeightsFile(WeightTransferUpdateInfo):
    """Where new weights are: a path that the server sees."""

    path: str


class FileEngine(WeightTransferEngine[NoInitInfo, WeightsFile]):
    """Loads the tensors of a file into the model, whatever layout and quantisation the server keeps them in."""

    init_info_cls = NoInitInfo
    update_info_cls = WeightsFile

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def receive_weights(self, update_info: WeightsFile) -> None:
        weights = load_file(update_info.path)  # before the model is touched: a file may be missing
        initialize_layerwise_reload(self.model)
        self.model.load_weights(weights.items())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass
