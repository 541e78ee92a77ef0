"""Log-probabilities of chosen tokens, entropies, their gradients, and the memory that they take."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.utils._python_dispatch import TorchDispatchMode

from vrft.policy.logprobs import BANNED_LOGIT, ChosenLogProbs, token_distribution, token_log_probs


def chosen(logits: Tensor, entropy: bool = True, gradient: bool = False) -> tuple[Tensor, Tensor]:
    allowed = logits.index_fill(-1, torch.tensor([1]), BANNED_LOGIT)  # a copy, which is overwritten
    return ChosenLogProbs.apply(allowed, torch.tensor([2, 0, 4]), entropy, gradient)


def test_chosen_log_probs_are_those_of_a_categorical_distribution_without_the_banned_ids() -> None:
    logits = (torch.arange(15.0).view(3, 5).sin() * 20).double().requires_grad_()
    log_probs, entropies = chosen(logits)
    allowed = Categorical(logits=logits.detach()[:, [0, 2, 3, 4]])
    torch.testing.assert_close(log_probs.detach(), allowed.log_prob(torch.tensor([1, 0, 3])))
    torch.testing.assert_close(entropies, allowed.entropy())
    assert not entropies.requires_grad
    assert chosen(logits, entropy=False)[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("offset", [0, 20, 1000])
def test_log_probs_and_entropies_are_exact_in_float32_whatever_the_size_of_logits(offset: int) -> None:
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)) * 5 + offset
    exact = torch.cat([logits[:, :1], logits[:, 2:]], 1).double().log_softmax(-1)  # without the banned id
    log_probs, entropies = chosen(logits)
    torch.testing.assert_close(log_probs.double(), exact[range(3), [1, 0, 3]], rtol=0, atol=4e-6)
    torch.testing.assert_close(entropies.double(), -(exact.exp() * exact).sum(-1), rtol=0, atol=4e-6)


def test_gradients_of_chosen_log_probs_and_entropies() -> None:
    logits = (torch.arange(15.0).view(3, 5).cos() * 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: chosen(logits)[0], logits)
    assert torch.autograd.gradcheck(lambda logits: chosen(logits, gradient=True), logits)
    with torch.no_grad():
        logits[:, 3] = -1e4  # a probability of 0
    chosen(logits, gradient=True)[1].sum().backward()
    assert logits.grad is not None
    assert logits.grad[:, 3].tolist() == [0, 0, 0]


class CappedHead(nn.Module):
    """A head whose last operation keeps its output for the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden).tanh()


class HookedHead(nn.Linear):
    """A head with a hook for gradients, for which PyTorch makes the output a view."""

    def __init__(self) -> None:
        super().__init__(4, 5)
        self.register_full_backward_hook(lambda *_: None)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [2, 8])
@pytest.mark.parametrize("kind", [CappedHead, HookedHead])
def test_gradients_are_right_if_the_head_or_a_hook_needs_its_output(
    kind: type[nn.Module], chunk: int, temperature: float
) -> None:
    """PyTorch reports no error for a chunk that is computed again."""
    head, hidden, ids = kind(), torch.randn(4, 4, requires_grad=True), torch.tensor([[2, 0, 4, 3]])
    weights = [hidden, *head.parameters()]
    log_probs, _ = token_log_probs(
        head, hidden, ids, [4], temperature=temperature, banned=torch.tensor([1]), chunk=chunk
    )
    logits = (head(hidden) / temperature).index_fill(-1, torch.tensor([1]), BANNED_LOGIT)
    expected = logits.log_softmax(-1)[range(4), ids[0]]
    for found, own in zip(
        torch.autograd.grad(log_probs.sum(), weights), torch.autograd.grad(expected.sum(), weights), strict=True
    ):
        torch.testing.assert_close(found, own)


class LargestMemory(TorchDispatchMode):
    """Records the largest number of bytes that tensors created in the context take at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, storage._cdata)
        self.largest = max(self.largest, sum(self.alive.values()))
        return output


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("use", ["update", "entropy bonus", "sampler"])
def test_two_float32_copies_of_logits_exist_at_once(use: str, dtype: torch.dtype, temperature: float) -> None:
    """The doctor counts two for an update, and for a rollout the head's output as well."""
    n, vocabulary, banned = 8, 5000, torch.tensor([1])
    hidden = torch.randn(n, 1, dtype=dtype, requires_grad=use != "sampler")

    def head(hidden: Tensor) -> Tensor:
        return hidden.expand(-1, vocabulary) * 2

    with LargestMemory() as memory:
        if use == "sampler":
            token_distribution(head(hidden), temperature, banned)
        else:
            found = token_log_probs(
                head,
                hidden,
                torch.full((1, n), 3),
                [n],
                temperature=temperature,
                banned=banned,
                entropy_gradient=use == "entropy bonus",
            )
            (found[0] + found[1]).sum().backward()
    copies = memory.largest / (4 * n * vocabulary)
    most = 2.5 if use == "sampler" and dtype == torch.bfloat16 else 2  # a sampler's caller keeps the head's output
    assert most - 0.1 < copies < most + 0.2
