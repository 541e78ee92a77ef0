"""Plugin for vLLM servers that loads new weights from a safetensors file, on disk or in shared memory.

vLLM finds the plugin by its entry point if vrft is installed (`pip install --no-deps .`) and imports it in each of its
processes. Training does not import it.
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
    """Register the backend of `--weight-transfer-config '{"backend": "vrft"}'`. vLLM calls this in each process."""
    WeightTransferEngineFactory.register_engine("vrft", FileEngine)


@dataclass
class NoInitInfo(WeightTransferInitInfo):
    """No fields: reading a file needs no set-up between trainer and server."""


@dataclass
class WeightsFile(WeightTransferUpdateInfo):
    """Path of the file with new weights, on the server's file system."""

    path: str


class FileEngine(WeightTransferEngine[NoInitInfo, WeightsFile]):
    """Loads tensors from a file into the model, in the server's own layout and quantisation."""

    init_info_cls = NoInitInfo
    update_info_cls = WeightsFile

    def init_transfer_engine(self, init_info: NoInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def receive_weights(self, update_info: WeightsFile) -> None:
        weights = load_file(update_info.path)  # first, so that a missing file leaves the model unchanged
        initialize_layerwise_reload(self.model)
        self.model.load_weights(weights.items())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass
