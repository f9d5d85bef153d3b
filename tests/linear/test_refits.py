"""Heads fitted many at once are each the one minimum that scikit-learn finds, and a head tells its own weight decay."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear import curvature, refits


def problem(n: int = 400, c: int = 4, d: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """H (n, d+1) with its column of ones, and labels that a noisy linear rule gives."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, d, generator=generator, dtype=torch.float64)
    h = torch.cat([h, torch.ones(n, 1, dtype=torch.float64)], dim=1)
    rule = torch.randn(c, d + 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, c, generator=generator, dtype=torch.float64)
    return h, (2 * h @ rule.T + 2 * noise).argmax(1)


def masks(k: int, n: int, seed: int = 1) -> Tensor:
    """Random halves (k, n)."""
    return torch.rand(k, n, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.mark.parametrize("exact", [0, 10_000], ids=["kronecker", "exact"])
@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_every_head_is_scikit_learns(l2: float, exact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three halves at once, with either preconditioner: weights equal to six digits, bias penalised like the rest."""
    monkeypatch.setattr(curvature, "EXACT", exact)
    h, labels = problem()
    members = masks(3, len(h))
    found = refits.fit(h, labels, members, 4, l2, tolerance=1e-16)
    assert found.converged
    for head, mine in zip(found.heads, members, strict=True):
        oracle = LogisticRegression(C=1 / (l2 * int(mine.sum())), fit_intercept=False, tol=1e-12, max_iter=10_000)
        oracle.fit(h[mine].numpy(), labels[mine].numpy())
        assert torch.allclose(head, torch.from_numpy(oracle.coef_), rtol=1e-5, atol=1e-6)


def test_where_it_starts_and_what_else_is_fitted_do_not_matter() -> None:
    """Each minimum is unique: another start, or other heads beside it, give the same head."""
    h, labels = problem()
    members = masks(4, len(h))
    together = refits.fit(h, labels, members, 4, 1e-2, tolerance=1e-14).heads
    start = torch.randn(4, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alone = refits.fit(h, labels, members[2:3], 4, 1e-2, start=start, tolerance=1e-14).heads[0]
    assert torch.allclose(together[2], alone, atol=1e-6)


def test_chunks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradient are those of autograd, whatever number of rows is held at a time."""
    h, labels = problem(n=50)
    members = masks(2, 50)
    shares = members.double() / members.sum(1, keepdim=True)
    head = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)
    losses = torch.stack([torch.nn.functional.cross_entropy(h @ w.T, labels, reduction="none") for w in head])
    value = (losses * shares).sum(1) + 0.05 * head.square().sum(dim=(1, 2))
    (gradient,) = torch.autograd.grad(value.sum(), head)
    for chunk in (1, 8 * 7, 10**6):
        monkeypatch.setattr(refits, "CHUNK", chunk)
        found = refits.Problem(h, labels, shares, 0.1).at(head.detach())
        assert torch.allclose(found[0], value.detach(), rtol=1e-12)
        assert torch.allclose(found[1], gradient, rtol=1e-9, atol=1e-12)


def test_a_class_without_samples_is_never_predicted() -> None:
    """A head fitted without one class does not name it, and stays finite."""
    h, labels = problem()
    found = refits.fit(h, labels, (labels != 2)[None], 4, 1e-3)
    assert found.converged
    kept = h[labels != 2] @ found.heads[0].T
    assert int((kept.argmax(1) == 2).sum()) == 0


@pytest.mark.parametrize("l2", [1e-1, 1e-2, 3e-4])
def test_a_fitted_head_tells_its_weight_decay(l2: float) -> None:
    """λ comes back from the head alone, and a head longer than any minimum tells none."""
    h, labels = problem()
    head = refits.fit(h, labels, torch.ones(1, len(h), dtype=torch.bool), 4, l2, tolerance=1e-16).heads[0]
    assert refits.own_weight_decay([(h, labels)], head) == pytest.approx(l2, rel=1e-4)
    assert refits.own_weight_decay([(h, labels)], 100 * head) < 0


def test_what_cannot_be_fitted_is_refused() -> None:
    """No weight decay, no samples, or features that are not finite."""
    h, labels = problem(n=20)
    everything = torch.ones(1, 20, dtype=torch.bool)
    with pytest.raises(ImuError, match="weight decay"):
        refits.fit(h, labels, everything, 4, 0.0)
    with pytest.raises(ImuError, match="without samples"):
        refits.fit(h, labels, ~everything, 4, 1e-2)
    with pytest.raises(ImuError, match="not finite"):
        refits.fit(h / 0, labels, everything, 4, 1e-2)
