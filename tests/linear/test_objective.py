import pytest
import torch
from cases import CASES, Case

from imu_cli.linear import objective


def log_share(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """−log P_K of one row, by softmax."""
    return -torch.log(torch.softmax(logits, 0)[mask].sum())


@pytest.mark.parametrize("forgotten", [[0], [0, 1], [0, 1, 8, 9]])
def test_residual_is_the_gradient_of_the_loss(forgotten: list[int]) -> None:
    """For one class and for several, the residual is autograd's gradient of −log P_K with respect to the logits."""
    logits = torch.randn(9, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shared = torch.isin(torch.arange(10), torch.tensor(forgotten))
    members = objective.Members(torch.zeros(9, dtype=torch.int64), 10, shared)[:]
    for row in range(9):
        leaf = logits[row].clone().requires_grad_(True)
        loss = log_share(leaf, members[row])
        loss.backward()
        torch.testing.assert_close(objective.residual(logits, members)[row], leaf.grad, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(objective.losses(logits, members)[row], loss.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_residuals_sum_to_zero_and_keep_their_sign(case: Case) -> None:
    """A row's residuals sum to 0, members' are negative and the others' positive, also where P_y rounds to 1."""
    h, head, labels = case.make()
    members = objective.one_hot(labels, case.c)
    a = objective.residual(h @ head.T, members)
    assert float(a.sum(dim=1).abs().max()) < 1e-12
    assert bool((a[members] < 0).all())
    assert bool((a[~members] > 0).all())


def test_large_gap_is_not_rounded_away() -> None:
    """At a logit gap of 60, where 1 − P_y is 0 in float64, the residual is still −Σ of the others."""
    a = objective.residual(torch.tensor([[60.0, 0.0]], dtype=torch.float64), torch.tensor([[True, False]]))
    assert float(a[0, 0]) == pytest.approx(-8.756510762696521e-27, rel=1e-12)
