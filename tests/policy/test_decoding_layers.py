"""Fused layers decode as the model's own do, or aren't used."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import families
from tests.policy.test_families import Prompts, generate, load
from vrft.policy import decoding_layers as fused_layers
from vrft.policy.decoding_forward import Rotations, decoding_layers
from vrft.policy.decoding_layers import DecodingLayer, TokenLayout, factors_by_head
from vrft.policy.products import Products
from vrft.rollout import Sampling

FUSED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision", "idefics3", "smolvlm")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    return families.written_once(tmp_path_factory)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_usual_layers_are_fused(family: str, checkpoint: Callable[[str], str]) -> None:
    policy = load(checkpoint(family), dtype="bfloat16")
    batch = policy.prepare(Prompts(policy).batch)
    rollout = generate(policy, batch, 2, Sampling(), 3)
    assert policy.decoding.check is not None
    assert policy.decoding.check.done
    assert bool(policy.decoding.check.layers) == (family in FUSED)
    with torch.no_grad():
        log_probs, _ = policy(batch.inputs, rollout.ids, rollout.mask, 1.0)
    assert (rollout.log_probs - log_probs).abs().max() < 0.05


def test_states_of_untied_models_decode_in_the_dtype_of_the_computation(checkpoint: Callable[[str], str]) -> None:
    policy = load(checkpoint("qwen2_5_vl"), dtype="bfloat16")
    embedding = policy.base.get_input_embeddings()
    assert embedding.weight is not policy.base.get_output_embeddings().weight
    prepared = policy.prepare(Prompts(policy).batch)
    dtypes: set[torch.dtype] = set()
    layer = policy.base.get_decoder().layers[-1]
    hook = layer.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    rollout = generate(policy, prepared, 2, Sampling(), 4)
    assert dtypes == {torch.bfloat16}
    hook.remove()
    assert embedding(rollout.ids).dtype == torch.float32  # outside of a rollout
    with torch.no_grad():
        trained, _ = policy(prepared.inputs, rollout.ids, rollout.mask, 1.0)
    assert (trained - rollout.log_probs).abs().mean() < 0.02


def test_layers_that_compute_something_else_are_not_used(
    checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(checkpoint("qwen2_5_vl"))
    batch = policy.prepare(Prompts(policy).batch)
    expected = generate(policy, batch, 2, Sampling(greedy=True), 8)
    attend = DecodingLayer.attend
    monkeypatch.setattr(DecodingLayer, "attend", lambda *arguments: 1.01 * attend(*arguments))
    policy.decoding.check = None
    with pytest.warns(UserWarning, match="decoding uses the model's own layers"):
        found = generate(policy, batch, 2, Sampling(greedy=True), 8)
    assert policy.decoding.check is not None
    assert not policy.decoding.check.layers
    assert torch.allclose(found.log_probs, expected.log_probs, atol=1e-5)


@pytest.mark.parametrize("wrong", [None, 1], ids=["all as fused", "one otherwise"])
def test_the_token_that_compares_layers_is_sampled_as_in_later_rollouts(
    wrong: int | None, checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(checkpoint("qwen2_5_vl"), dtype="bfloat16")
    batch = policy.prepare(Prompts(policy).batch)
    attend = DecodingLayer.attend

    def attend_wrongly(self: DecodingLayer, *arguments: Any) -> torch.Tensor:
        return attend(self, *arguments) * (1.5 if self.attention.layer_idx == wrong else 1)

    monkeypatch.setattr(DecodingLayer, "attend", attend_wrongly)
    with nullcontext() if wrong is None else pytest.warns(UserWarning, match="decoding uses the model's own layers"):
        compared = generate(policy, batch, 4, Sampling(temperature=2.0), 4)
    later = generate(policy, batch, 4, Sampling(temperature=2.0), 4)
    assert torch.equal(compared.ids, later.ids)
    assert torch.equal(compared.log_probs, later.log_probs)


@pytest.mark.parametrize(
    "change",
    [
        lambda decoder: decoder.register_module("extra", nn.Identity()),
        lambda decoder: setattr(decoder, "norm", nn.LayerNorm(32)),
        lambda decoder: setattr(decoder.rotary_emb, "forward", lambda x, position_ids, layer_type: None),
        lambda decoder: decoder.config.rope_parameters.update(llama_4_scaling_beta=0.1),
    ],
    ids=["another module", "another norm", "rotary embeddings by type of layer", "queries scaled by position"],
)
def test_models_with_unusual_parts_decode_by_their_own_forward(
    change: Callable[[Any], Any], checkpoint: Callable[[str], str]
) -> None:
    model: Any = load(checkpoint("qwen2_5_vl")).base
    assert decoding_layers(model)
    change(model.get_decoder())
    assert not decoding_layers(model)


def test_states_that_a_model_changes_around_its_layers_are_noticed(checkpoint: Callable[[str], str]) -> None:
    policy = load(checkpoint("qwen2_5_vl"))

    def scale(module: nn.Module, args: Any, output: Any) -> None:
        output.last_hidden_state.mul_(1.5)

    policy.base.get_decoder().register_forward_hook(scale)
    with pytest.warns(UserWarning, match="decoding uses the model's own layers"):
        generate(policy, policy.prepare(Prompts(policy).batch), 2, Sampling(), 2)


def test_a_kept_model_decodes_with_the_current_weights(checkpoint: Callable[[str], str]) -> None:
    policy = load(checkpoint("qwen2_5_vl"))
    batch = policy.prepare(Prompts(policy).batch)
    generate(policy, batch, 2, Sampling(), 3, record=True)
    with torch.no_grad():
        for parameter in policy.base.parameters():
            parameter.mul_(1.1)
        rollout = generate(policy, batch, 2, Sampling(), 3, record=True)
        log_probs, _ = policy(batch.inputs, rollout.ids, rollout.mask, 1.0)
    torch.testing.assert_close(rollout.log_probs, log_probs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("kind", "calls"), [("default", 2), ("dynamic", 20)])
def test_rotations_ahead_are_those_of_each_token(kind: str, calls: int, checkpoint: Callable[[str], str]) -> None:
    decoder: Any = load(checkpoint("qwen2_5_vl")).base.get_decoder()
    config = copy.deepcopy(decoder.config)
    config.max_position_embeddings = 16  # from there on, "dynamic" depends on the largest position
    config.rope_parameters |= {"rope_type": kind, "factor": 2.0}
    layer, embed, seen = DecodingLayer(decoder.layers[0], {}), type(decoder.rotary_emb)(config), []
    rotations = Rotations(embed, layer)
    first = torch.tensor([[[5], [9], [2]]]).expand(3, -1, -1)  # (axes, N, 1)
    found = []
    hook = embed.register_forward_hook(lambda *_: seen.append(1))
    for t in range(20):
        first = first if t < 10 else first[:, :2]  # a row leaves
        found.append(rotations.at(first + t, torch.zeros(first.shape[1], 4)))
    hook.remove()
    assert len(seen) == calls
    for t, factors in enumerate(found):
        rows = len(factors[0])
        positions = torch.tensor([[[5], [9], [2]]]).expand(3, -1, -1)[:, :rows] + t
        expected = factors_by_head(embed(torch.zeros(rows, 1, 4), positions), layer.rotated, layer.kept)
        assert all(map(torch.equal, factors, expected))


@pytest.fixture(scope="module")
def biased(checkpoint: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], str]:
    """Return a function that returns the folder of a checkpoint with large biases of keys, as Qwen2.5's have them."""

    @cache
    def folder(std: float) -> str:
        return families.write_key_biases(checkpoint("qwen2_5_vl"), tmp_path_factory.mktemp("biased"), std)

    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("std", [50.0, 200.0])
def test_large_biases_of_keys_leave_layers_fused(std: float, dtype: str, biased: Callable[[float], str]) -> None:
    policy = load(biased(std), dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        generate(policy, policy.prepare(Prompts(policy).batch), 8, Sampling(), 2)
    assert policy.decoding.check is not None
    assert policy.decoding.check.layers


class OtherScaling(TokenLayout):
    """Attends with other scores than those that were asked for."""

    def __init__(self, layout: TokenLayout) -> None:
        self.layout = layout

    def attend_token(self, layer: int, query: Tensor, key_value: Tensor, scaling: float) -> Tensor:
        return self.layout.attend_token(layer, query, key_value, 1.2 * scaling)

    def recur(self, *arguments: Any) -> Tensor:
        raise NotImplementedError


def without_bias(x: Tensor, modules: Sequence[nn.Linear], _: Products) -> Tensor:
    return torch.cat([F.linear(x, module.weight) for module in modules], -1)


ATTEND = DecodingLayer.attend
FAULTS: dict[str, tuple[Any, str, Callable[..., Tensor]]] = {
    "scale": (DecodingLayer, "attend", lambda layer, x, by, layout: ATTEND(layer, x, by, OtherScaling(layout))),
    "bias": (fused_layers, "project", without_bias),
    "rotation": (DecodingLayer, "attend", lambda layer, x, by, layout: ATTEND(layer, x, (by[0], -by[1]), layout)),
    "output": (DecodingLayer, "attend", lambda *arguments: 1.2 * ATTEND(*arguments)),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_layers_are_noticed_with_large_biases_of_keys(
    fault: str, dtype: str, biased: Callable[[float], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(biased(200.0), dtype=dtype)
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.warns(UserWarning, match="decoding uses the model's own layers"):
        generate(policy, policy.prepare(Prompts(policy).batch), 2, Sampling(), 2)
    assert policy.decoding.check is not None
    assert not policy.decoding.check.layers


def test_decoding_rounds_about_as_much_as_training(biased: Callable[[float], str]) -> None:
    policy, exact = (load(biased(50.0), dtype=dtype) for dtype in ("bfloat16", "float32"))
    batch, same = (policy.prepare(Prompts(policy).batch) for policy in (policy, exact))
    rollout = generate(policy, batch, 16, Sampling(), 16)
    with torch.no_grad():
        trained, _ = policy(batch.inputs, rollout.ids, rollout.mask, 1.0)
        expected, _ = exact(same.inputs, rollout.ids, rollout.mask, 1.0)
    decoded, trained = ((x - expected).abs().sum() for x in (rollout.log_probs, trained))
    assert decoded < 1.3 * trained  # which keeps the sum of layers in float32; 1.4 with rounded scores
