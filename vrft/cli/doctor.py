"""`python -m vrft doctor`: check a config and its data before a long run."""

from __future__ import annotations

from rich.console import Console

from vrft.data import VisionData
from vrft.doctor import examine
from vrft.errors import ConfigurationError
from vrft.run_dir import RunDir
from vrft.training.module import VisionModule
from vrft.training.trainer import VisionTrainer
from vrft.utils.display import visible


def run_doctor(
    trainer: VisionTrainer, model: VisionModule, data: VisionData, probe: int, gpu_memory: float | None
) -> int:
    """Load everything as `fit` does, print the findings, and return the exit code, 1 if there are problems.

    Args:
        trainer: trainer of the run.
        model: the module, not loaded yet.
        data: the data module.
        probe: number of prompts that the model answers; 0: none.
        gpu_memory: memory, in GB, of the GPU that the run is meant for; None: this machine's.
    """
    folder = RunDir.of(trainer).doctor
    folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    try:
        trainer.check_data(model, data)
        with trainer.strategy.tensor_init_context():  # adapters to start from are not moved by `to`
            model.configure_model()
        model.to(trainer.strategy.root_device)
        problems = list(examine(model, data, folder, console, probe, gpu_memory))
    except ConfigurationError as error:
        problems = [str(error)]
    for problem in problems:
        console.print(f"problem: {visible(problem)}", style="red", highlight=False, markup=False, soft_wrap=True)
    if not problems:
        console.print("no problems found", style="green")
    return 1 if problems else 0
