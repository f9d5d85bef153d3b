"""Heads fitted many at once are each the one minimum that scikit-learn finds, and a head tells its own weight decay."""

import hundred
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear import curvature, refits
from imu_cli.linear.rows import Joined


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


@pytest.mark.parametrize(("exact", "blocks"), [(0, 0), (0, 10**6), (10_000, 0)], ids=["kronecker", "blocks", "exact"])
@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_every_head_is_scikit_learns(l2: float, exact: int, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three halves at once, with any preconditioner: weights equal to six digits, bias penalised like the rest."""
    monkeypatch.setattr(curvature, "EXACT", exact)
    monkeypatch.setattr(curvature, "BLOCKS", blocks)
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


@pytest.mark.parametrize("blocks", [0, 10**9], ids=["kronecker", "blocks"])
@pytest.mark.parametrize("exact", [0, 10**9], ids=["", "exact"])
def test_an_inverse_undoes_its_curvature(blocks: int, exact: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is symmetric and positive; the exact one turns the gradient's change over a small step into that step."""
    monkeypatch.setattr(curvature, "EXACT", exact)
    monkeypatch.setattr(curvature, "BLOCKS", blocks)
    h, labels = problem()
    share = torch.full((1, len(h)), 1 / len(h), dtype=torch.float64)
    rows = refits.Problem(h, labels, share, 1e-2)
    head, step, other = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    inverse = curvature.inverse(h, share[0], head, 1e-2)
    assert float((other * inverse(step[None])).sum()) == pytest.approx(
        float((step * inverse(other[None])).sum()), rel=1e-9
    )
    assert float((step * inverse(step[None])).sum()) > 0
    if exact:
        change = rows.at((head + 1e-6 * step)[None])[1] - rows.at((head - 1e-6 * step)[None])[1]
        assert torch.allclose(inverse(change)[0], 2e-6 * step, rtol=1e-4, atol=1e-11)


def test_a_hundred_classes_take_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of a hundred classes: at most 60 passes a head (245 before), each within 1e-6 nats of its best."""
    passes, at = [0], refits.Problem.at

    def counting(self: refits.Problem, heads: Tensor) -> tuple[Tensor, Tensor]:
        passes[0] += len(heads)
        return at(self, heads)

    made = hundred.data(n=2500, m=100)
    h, labels, members = hundred.wide(made.train), made.labels, masks(2, len(made.labels))
    monkeypatch.setattr(refits.Problem, "at", counting)
    found = refits.fit(h, labels, members, hundred.CLASSES, hundred.L2, start=made.head, tolerance=refits.COARSE)
    assert found.converged
    assert passes[0] / len(members) <= 60
    best = refits.fit(h, labels, members, hundred.CLASSES, hundred.L2, start=found.heads[0], tolerance=1e-9)
    shares = members.double() / members.sum(1, keepdim=True)
    problem = refits.Problem(h, labels, shares, hundred.L2)
    assert float((at(problem, found.heads)[0] - at(problem, best.heads)[0]).max()) <= 1e-6


def test_the_way_is_told_in_a_hundred_parts() -> None:
    """Progress rises to 100 and never beyond, also where nothing was left to do."""
    h, labels = problem()
    heard: list[int] = []
    made = refits.fit(h, labels, masks(3, len(h)), 4, 1e-2, advance=heard.append)
    assert sum(heard) == 100
    assert min(heard) > 0
    heard.clear()
    refits.fit(h, labels, masks(3, len(h))[:1], 4, 1e-2, start=made.heads[0], advance=heard.append)
    assert sum(heard) == 100


def test_float32_only_leads_there() -> None:
    """Features far from what float32 resolves end where float64 alone would: the last word is float64's."""
    h, labels = problem()
    shifted = torch.cat([h[:, :-1] + 3000, h[:, -1:]], dim=1)
    found = refits.fit(shifted, labels, masks(2, len(h)), 4, 1e-3, tolerance=1e-12)
    best = refits.fit(shifted, labels, masks(2, len(h)), 4, 1e-3, tolerance=1e-16)
    shares = masks(2, len(h)).double() / masks(2, len(h)).sum(1, keepdim=True)
    values = [refits.Problem(shifted, labels, shares, 1e-3).at(fitted.heads)[0] for fitted in (found, best)]
    assert found.converged
    assert float((values[0] - values[1]).abs().max()) < 1e-10


def test_what_cannot_be_fitted_is_no_fit() -> None:
    """Features beyond any scale are an error that says so, and no head of nonsense."""
    h, labels = problem(n=50)
    with pytest.raises(ImuError, match="badly scaled"):
        refits.fit(h * 1e200, labels, torch.ones(1, 50, dtype=torch.bool), 4, 1e-3)


def test_rows_of_two_sets_are_rows_of_one() -> None:
    """Joined rows are those of the two written one after the other, by slices, by numbers and in a fit."""
    h, labels = problem(n=90)
    joined = Joined(h[:33], h[33:])
    for part in (slice(0, 90), slice(10, 20), slice(30, 40), slice(33, 60), slice(80, 200), slice(0, 0)):
        assert torch.equal(joined[part], h[part])
    numbers = torch.tensor([0, 32, 33, 89, 5])
    assert torch.equal(joined[numbers], h[numbers])
    fits = [refits.fit(rows, labels, masks(2, 90), 4, 1e-2, tolerance=1e-14).heads for rows in (h, joined)]
    assert torch.allclose(*fits, atol=1e-6)


def test_an_estimate_is_of_the_right_size() -> None:
    """Twice the heads are estimated at more, on a quiet machine about twice as much."""
    made = hundred.data(n=2500, m=100)
    few, many = (min(refits.seconds(hundred.wide(made.train), 100, heads) for _ in range(3)) for heads in (2, 64))
    assert 0 < few < many
