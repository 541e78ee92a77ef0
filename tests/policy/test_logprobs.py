"""Log-probabilities of chosen tokens and their gradient."""

import torch
from torch.distributions import Categorical

from vrft.policy.logprobs import ChosenLogProbs


def chosen(logits: torch.Tensor, entropy: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    return ChosenLogProbs.apply(logits, torch.tensor([2, 0, 4]), torch.tensor([1]), entropy)


def test_chosen_log_probs_are_those_of_a_categorical_distribution_without_the_banned_ids() -> None:
    logits = (torch.arange(15.0).view(3, 5).sin() * 20).double().requires_grad_()
    log_probs, entropies = chosen(logits)
    allowed = Categorical(logits=logits.detach()[:, [0, 2, 3, 4]])
    torch.testing.assert_close(log_probs.detach(), allowed.log_prob(torch.tensor([1, 0, 3])))
    torch.testing.assert_close(entropies, allowed.entropy())
    assert not entropies.requires_grad
    assert chosen(logits, entropy=False)[1].tolist() == [0, 0, 0]


def test_gradient_of_chosen_log_probs() -> None:
    logits = (torch.arange(15.0).view(3, 5).cos() * 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: chosen(logits)[0], logits)
