"""Low-rank adapters (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import torch
from torch import Tensor, nn

from vrft.errors import ConfigurationError
from vrft.policy.adapted_layers import FIELD, check_adapted, check_names
from vrft.policy.four_bits import weight_of
from vrft.policy.pretrained import language_model_layers
from vrft.policy.weights import replaced
from vrft.policy.whole_modules import check_whole_modules, fill_copies, is_whole

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

ADAPTER = "model.policy.lora.adapter"
SETTINGS = ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "modules_to_save")
"""Settings with the same name in a saved adapter."""

UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
"""Settings of a saved adapter that adapt something else than the weights of linear layers, or in another way."""

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on the language model (arXiv 2106.09685). Names and meanings are the same as in peft.

    Attributes:
        r: rank.
        alpha: scale; the adapter's output is multiplied by alpha / r.
        target_modules: names of the linear layers with adapters, or a regular expression for whole names; "all-linear"
            includes the vision tower's. Default: all linear layers of the language model.
        rank_pattern: ranks of some layers, by a regular expression for the end of their names.
        alpha_pattern: scales of some layers, by a regular expression for the end of their names.
        use_rslora: divide alpha by the square root of the rank instead (arXiv 2312.03732).
        use_dora: also train the norm of each row of a weight (arXiv 2402.09353): slower, for small ranks.
        modules_to_save: suffixes of the names of whole modules to train in addition to the adapters, e.g. lm_head. They
            are saved with the adapter; the reference has the originals.
        init_lora_weights: distribution of new adapters, which change nothing until they are trained.
        adapter: folder with an adapter saved by peft or vrft to start from. The other settings are then the adapter's,
            and the reference is the policy with this adapter.
    """

    r: int = 16
    alpha: int = 32
    target_modules: str | list[str] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, int] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: list[str] | None = None
    init_lora_weights: Literal["kaiming", "gaussian", "orthogonal"] = "kaiming"
    adapter: str | None = None

    def __post_init__(self) -> None:
        if self.adapter is not None:
            settings = read_settings(self)
            for name, theirs in (("r", "r"), ("alpha", "lora_alpha"), *((name, name) for name in SETTINGS)):
                object.__setattr__(self, name, settings.get(theirs) or getattr(self, name))


def has_adapter(layer: nn.Module) -> TypeGuard[LoraLayer]:
    """Return whether a layer has an adapter, without importing peft if it was not imported before.

    If bitsandbytes is installed, peft imports it and torch's compiler, which takes more than a second.
    """
    lora = sys.modules.get("peft.tuners.lora")
    return lora is not None and isinstance(layer, lora.LoraLayer)


def add_adapters(model: PreTrainedModel, lora: LoRA) -> nn.Module:
    """Wrap a model with adapters. New adapters leave its output unchanged until they are trained.

    Raises:
        ConfigurationError: a layer can't have an adapter, a module can't train as a whole, or `lora.adapter` belongs to
            another model.
    """
    from peft import get_peft_model

    if lora.modules_to_save:
        check_whole_modules(model, lora.modules_to_save)
    if lora.adapter is None and lora.target_modules is not None:
        check_names(model, lora.target_modules)
    config = peft_config(model, lora)
    field = FIELD if lora.adapter is None else f"{ADAPTER}: {lora.adapter}"
    check_adapted(model, config, field)
    # peft rounds new adapters to the dtype of their layer, so replace weights by float32 tensors without memory
    # meanwhile; adapters of layers in four bits are always float32
    weights = (p for p in model.parameters() if p.is_floating_point())
    float32 = {p: torch.zeros((), device=p.device).expand(p.shape) for p in weights}
    with replaced(float32):
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:  # e.g. some of the layers that it would turn into experts
            raise ConfigurationError(f"{field}: peft can't adapt these layers: {error}".splitlines()[0]) from error
    if config.target_parameters:  # peft takes names of some families for those of experts in older checkpoints
        raise ConfigurationError(
            f"{field}: peft would adapt experts ({min(config.target_parameters)}), which are no linear layers; name "
            "other layers, e.g. [q_proj, k_proj, v_proj, o_proj]"
        )
    fill_copies(model)  # peft copied the replacements
    for layer in (module for module in model.modules() if has_adapter(module)):
        if magnitudes := [*layer.lora_magnitude_vector.parameters()]:  # computed from the replacements
            magnitudes[0].data = row_lengths(weight_of(layer.get_base_layer()))
    if lora.adapter is not None:
        fill_adapters(adapted, Path(lora.adapter))
    return adapted


def peft_config(model: PreTrainedModel, lora: LoRA) -> LoraConfig:
    """Return peft's settings. There is no dropout, because the completions of a group share the forward of a prompt."""
    from peft import LoraConfig

    if lora.adapter is not None:
        config = LoraConfig.from_pretrained(lora.adapter)
        config.lora_dropout, config.inference_mode = 0.0, False
        return config
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=language_model_layers(model) if lora.target_modules is None else lora.target_modules,
        rank_pattern=lora.rank_pattern or {},
        alpha_pattern=lora.alpha_pattern or {},
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        modules_to_save=lora.modules_to_save,
        init_lora_weights=True if lora.init_lora_weights == "kaiming" else lora.init_lora_weights,
        lora_dropout=0.0,
    )


def read_settings(lora: LoRA) -> dict[str, Any]:
    """Read the settings of the adapter to start from, before a model is read.

    Raises:
        ConfigurationError: the folder has no adapter that vrft can train, or other settings are given too.
    """
    folder = Path(str(lora.adapter))
    for field in fields(LoRA):
        if field.name != "adapter" and getattr(lora, field.name) != field.default:
            raise ConfigurationError(f"{ADAPTER}: has its own {field.name}; leave out model.policy.lora.{field.name}")
    for name in ("adapter_config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise ConfigurationError(f"{ADAPTER}: {folder} has no {name}; expected a folder that peft has saved")
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{ADAPTER}: {folder / 'adapter_config.json'} is not valid JSON: {error}") from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        raise ConfigurationError(f"{ADAPTER}: {folder} is not a LoRA adapter")
    if settings.get("bias", "none") != "none":
        raise ConfigurationError(f"{ADAPTER}: {folder} trains biases beside adapters")
    if other := [name for name in UNSUPPORTED if settings.get(name)]:
        raise ConfigurationError(f"{ADAPTER}: {folder} has {other[0]}, which vrft can't decode with; expected null")
    return settings


def fill_adapters(adapted: nn.Module, folder: Path) -> None:
    """Read the weights of an adapter into a model that has adapters with the same settings.

    Raises:
        ConfigurationError: the adapter belongs to another model.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(folder / WEIGHTS)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    if odd := sorted({*shapes.items()} ^ {(name, tuple(value.shape)) for name, value in expected.items()}):
        raise ConfigurationError(f"{ADAPTER}: {folder} is an adapter of another model: {odd[0][0]}, {len(odd)} in all")
    set_peft_model_state_dict(adapted, {name: value.float() for name, value in weights.items()})


def merged_weight(layer: LoraLayer) -> Tensor:
    """Return the weight of a layer with its adapter merged, (out, in).

    W + scale B A    (LoRA, arXiv 2106.09685, eq. 3), with rows rescaled to the trained norms for DoRA (arXiv
    2402.09353, eq. 5)
    """
    base = layer.get_base_layer().weight
    weight: Tensor = base + layer.get_delta_weight("default")
    for lengths in layer.lora_magnitude_vector.parameters():
        weight = weight * (lengths / row_lengths(weight))[:, None]
    return weight


def row_lengths(weight: Tensor) -> Tensor:
    """Return the norm of each row, (out, in) -> (out,)."""
    return torch.linalg.vector_norm(weight.float(), dim=1)


@contextmanager
def without_adapters(model: PreTrainedModel, which: Callable[[nn.Module], bool] = lambda layer: True) -> Iterator[None]:
    """Replace layers that have adapters by their base layers in the context.

    Disabled adapters would still cost each layer as much as a small matrix product.

    Args:
        model: the model.
        which: returns, given the base layer, whether to replace a layer; default: replace all.
    """
    adapted = [
        (parent, name, layer, layer.get_base_layer())
        for parent in model.modules()
        for name, layer in parent.named_children()
        if has_adapter(layer) and which(layer.get_base_layer())
    ]
    with _exchanged(adapted):
        yield


@contextmanager
def without_training(model: PreTrainedModel) -> Iterator[None]:
    """Replace layers with adapters by their base layers, and modules that train as a whole by their originals."""
    whole = [
        (parent, name, module, module.original_module)
        for parent in model.modules()
        for name, module in parent.named_children()
        if is_whole(module)
    ]
    with without_adapters(model), _exchanged(whole):
        yield


@contextmanager
def _exchanged(modules: list[tuple[nn.Module, str, nn.Module, nn.Module]]) -> Iterator[None]:
    """Exchange modules in the context. Each entry is (parent, name in the parent, current module, replacement)."""
    for parent, name, _, other in modules:
        setattr(parent, name, other)
    try:  # restore the modules even after an interrupt, because the run may still save a checkpoint
        yield
    finally:
        for parent, name, present, _ in modules:
            setattr(parent, name, present)
