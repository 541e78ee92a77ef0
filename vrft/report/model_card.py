"""Write the model card (README.md) of an exported model from the files of its run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vrft.errors import ConfigurationError
from vrft.report.run_facts import SCORES, number, read_evaluation, read_summary
from vrft.run_dir import RunDir
from vrft.utils.display import score_cells, visible
from vrft.utils.redact import redact
from vrft.utils.regular_files import read_regular
from vrft.utils.yaml_text import decode_yaml, encode_yaml

OBJECTIVE_SETTINGS = (
    "num_generations",
    "loss_type",
    "beta",
    "temperature",
    "num_iterations",
    "max_completion_length",
    "scale_rewards",
    "sft_weight",
)
"""Settings of the objective that a model card lists."""

MAX_VALUE_CHARACTERS = 300


def read_run(run: Path) -> dict[str, Any]:
    """Read the config of a run and resolve its interpolations.

    Raises:
        ConfigurationError: the folder has no valid config of a run.
    """
    path = RunDir(run).config
    try:
        content = decode_yaml(read_regular(path).decode())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{run} is not the folder of a run: {path} can't be read") from error
    if not isinstance(content, dict) or not {"model", "task", "data"} <= content.keys():
        raise ConfigurationError(f"{run} is not the folder of a run: {path} has no model, task and data")
    container: Any = OmegaConf.create({"run_dir": content.get("run_dir")})
    resolved = {key: content[key] for key in content if key not in ("trainer", "checkpoint")}
    for key in ("model", "data"):
        container[key] = OmegaConf.create(content[key])
        resolved[key] = OmegaConf.to_container(container[key], resolve=True)
    return resolved | {"trainer": content.get("trainer", {})}


def is_reinforced(config: dict[str, Any]) -> bool:
    """Return whether a run trained `vrft.RFT` or a subclass, the only models with `num_generations`."""
    return "num_generations" in config["model"]["init_args"]


FOUR_BITS = (
    "Training and evaluation used the base in four bits (NF4). Merged weights are the original ones with the adapter, "
    "so answers can differ from the evaluated ones."
)


def write_card(folder: Path, run: Path, template: str, *, adapter: bool, step: int, program: str | None = None) -> Path:
    """Write a model card.

    Args:
        folder: folder of the exported model.
        run: folder of the run.
        template: the task's template, i.e. the prompt of training.
        adapter: whether the folder holds only an adapter.
        step: optimizer step of the weights, whose evaluation is listed.
        program: Python program that asks the model about an image.
    """
    config = read_run(run)
    lines = [
        *front_matter(config, adapter),
        *description(config, run, template, adapter),
        *table(RunDir(run), step),
    ]
    lines += usage_section(program) if program else []
    path = folder / "README.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def front_matter(config: dict[str, Any], adapter: bool) -> Iterator[str]:
    """Yield the metadata that the Hugging Face Hub reads."""
    base = str(config["model"]["init_args"]["policy"]["init_args"]["checkpoint"])
    about: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vrft", "grpo" if is_reinforced(config) else "sft", *(["lora"] if lora_of(config) else [])],
    }
    if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists():
        about = {"base_model": base, **about}
    yield from ("---", encode_yaml(about, allow_unicode=True).rstrip(), "---", "")


def lora_of(config: dict[str, Any]) -> Any:
    """Return the config's LoRA settings, or None."""
    return config["model"]["init_args"]["policy"]["init_args"].get("lora")


def description(config: dict[str, Any], run: Path, template: str, adapter: bool) -> Iterator[str]:
    """Yield the title, the training data, the settings and the prompt."""
    model = config["model"]["init_args"]
    base = code(model["policy"]["init_args"]["checkpoint"])
    how = (
        "GRPO on verifiable rewards (visual reinforcement fine-tuning)"
        if is_reinforced(config)
        else "supervised fine-tuning"
    )
    weights = "a LoRA adapter" if adapter else "merged LoRA weights" if lora_of(config) else "full weights"
    yield from (f"# {code(run.name)}", "", f"{base}, tuned by {how} with vrft; {weights}.", "")
    if model["policy"]["init_args"].get("quantize"):
        yield from (FOUR_BITS, "")
    yield from ("## Training", "", "| | |", "|--|--|")
    yield f"| data | {code(config['data']['class_path'])} |"
    for name, value in sorted(config["data"].get("init_args", {}).items()):
        if value is not None and name not in ("batch_size", "eval_batch_size", "num_workers"):
            yield f"| data: {code(name)} | {code(value)} |"
    yield f"| task | {code(config['task']['class_path'])} |"
    if is_reinforced(config):
        for name, reward in model["rewards"].items():
            weight = reward.get("init_args", {}).get("weight", 1.0)
            yield f"| reward {code(name)} | {code(reward['class_path'])}, weight {code(weight)} |"
    optimizer = model["optimizer"]
    rate = optimizer.get("init_args", {}).get("lr") if isinstance(optimizer, dict) else None
    yield f"| optimizer steps at most | {code(config['trainer'].get('max_steps'))} |"
    yield f"| learning rate | {code(rate)} |"
    yield f"| LoRA | {code(lora_of(config) or 'no')} |"
    for name in OBJECTIVE_SETTINGS if is_reinforced(config) else ():
        yield f"| {name} | {code(model.get(name))} |"
    repeats = fenced(f"python -m vrft fit --config {RunDir(run).config}")
    yield from ("", "Command that repeats the run from its config:", "", repeats, "")
    yield from ("Prompt beside the image:", "", fenced(template), "")


def table(run: RunDir, step: int) -> Iterator[str]:
    """Yield a table of the held-out scores before training and at a step, from the summary or the step's evaluation."""
    summary = read_summary(run, [])
    yield from ("## Held-out images", "")
    at = number(summary, "step")
    tuned = summary.get("tuned") if at == step else read_evaluation(run.evaluation("val", str(step)))
    if not tuned:
        if at is None or at == step:
            yield "This checkpoint was not evaluated."
        else:
            yield f"This checkpoint is from step {step}; the scores of its run are from step {at:.0f}."
        return
    base = summary.get("base") or read_evaluation(run.evaluation("val", "0"))
    yield from ("Scores of greedy answers by the run's evaluators, before and after training.", "")
    yield from ("| | base | tuned | change |", "|--|--|--|--|")
    for name in SCORES:
        before, after = (number(scores, name) for scores in (base, tuned))
        if before is not None and after is not None:
            yield f"| {name} | {' | '.join(score_cells(before, after))} |"


def usage_section(program: str) -> Iterator[str]:
    """Yield a program that asks the model about an image."""
    needs = "With transformers, and torchvision in the build of your torch, CPU or CUDA (SmolVLM also needs num2words):"
    yield from ("", "## Use", "", needs, "", fenced(program, "python"))


def code(value: Any) -> str:
    r"""Format a value, without secrets, as inline code for a table cell, whatever backticks or line breaks it has.

    >>> code("a|`b`\n<script>")
    '`` a\\|`b` <script> ``'
    """
    text = visible(" ".join(redact(str(value)).split()))
    text = text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[: MAX_VALUE_CHARACTERS - 1]}…"
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " if "`" in text else ""
    cell = text.replace("|", r"\|")
    return f"{ticks}{padding}{cell}{padding}{ticks}"


def fenced(text: str, language: str = "text") -> str:
    """Format text, without secrets, as a code block whose fence the text can't close."""
    text = visible(redact(text))
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
