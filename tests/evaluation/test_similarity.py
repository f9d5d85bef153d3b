"""Debiased linear CKA from sums equals the definition with (n, n) matrices, and does not drift with width."""

import pytest
import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.evaluation import similarity
from imu_cli.linear.rows import Mapped
from imu_cli.statistics.intervals import Estimate, NotMeasured


def seeded(seed: int = 0) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


def normal(n: int, d: int, seed: int) -> Tensor:
    """Features (n, d)."""
    return torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)


def hsic(x: Tensor, y: Tensor) -> float:
    """Unbiased HSIC as it is defined: kernels without their diagonals."""
    n = len(x)
    k, l = (h @ h.T * (1 - torch.eye(n, dtype=h.dtype)) for h in (x, y))  # noqa: E741
    one = torch.ones(n, dtype=x.dtype)
    found = (
        (k @ l).trace() + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    )
    return float(found) / (n * (n - 3))


def naive(x: Tensor, y: Tensor) -> float:
    """CKA of these."""
    return hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5


def compared(x: Tensor | Mapped, y: Tensor | Mapped, seed: int = 0) -> Estimate:
    """CKA of a pair."""
    found = similarity.linear_cka({"x": x, "y": y}, [("x", "y")], seeded(seed))["x", "y"]
    assert isinstance(found, Estimate)
    return found


@pytest.mark.parametrize(("n", "d", "e"), [(40, 7, 5), (30, 50, 60), (333, 3, 9)])
def test_it_is_the_definition(n: int, d: int, e: int) -> None:
    """Value, and the jackknife's interval from the same number without each group; a mean far from 0 plays no part."""
    x = normal(n, d, 1)
    y = x[:, :3] @ normal(3, e, 2) + normal(n, e, 3)
    found = compared(x + 100, y - 50)
    assert found.value == pytest.approx(naive(x, y), abs=1e-9)
    groups = torch.randperm(n, generator=seeded()).tensor_split(min(20, n // 2))
    left = torch.tensor(
        [naive(x[rest], y[rest]) for rest in (torch.tensor(sorted({*range(n)} - {*g.tolist()})) for g in groups)]
    )
    error = float((len(groups) - 1) * left.var(correction=0)) ** 0.5
    assert found.high is not None
    from scipy import stats

    assert found.high == pytest.approx(min(1, found.value + stats.t.ppf(0.975, len(groups) - 1) * error), abs=1e-6)


def test_rotation_and_scale_do_not_count() -> None:
    """Features that were turned and stretched as a whole are the same: 1."""
    x = normal(200, 12, 1)
    turn = torch.linalg.qr(normal(12, 12, 2)).Q
    assert compared(x, 7 * x @ turn).value == pytest.approx(1, abs=1e-12)


def test_unrelated_features_are_not_alike_however_wide_they_are() -> None:
    """40 samples of 500 features: 0 lies in the interval, where the usual estimate says more than 0.9."""
    x, y = normal(40, 500, 1), normal(40, 500, 2)
    found = compared(x, y)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0 <= found.high < 0.3
    centred = [h - h.mean(0) for h in (x, y)]
    usual = (centred[0].T @ centred[1]).norm() ** 2 / (
        (centred[0].T @ centred[0]).norm() * (centred[1].T @ centred[1]).norm()
    )
    assert usual > 0.9


def test_the_interval_holds_what_many_samples_show() -> None:
    """In 60 draws of 200 samples, nearly always."""
    whole = normal(20_000, 6, 9)
    mixed = whole @ normal(6, 8, 10) + 2 * normal(20_000, 8, 11)
    truth = naive_large(whole, mixed)
    hits = 0
    for draw in range(60):
        rows = torch.randperm(20_000, generator=seeded(draw))[:200]
        found = compared(whole[rows], mixed[rows])
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert hits >= 52


def naive_large(x: Tensor, y: Tensor) -> float:
    """The usual estimate, whose bias vanishes with 20,000 samples of few features."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_features_may_lie_in_a_file_and_of_many_samples_some_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by rows they give the same; beyond the budget of products fewer samples, which the n says."""
    x, y = normal(3000, 6, 1).float(), normal(3000, 6, 2).float()
    mapped = [Mapped(h, False, h.device) for h in (x, y)]
    assert compared(mapped[0], mapped[1]) == compared(x, y)
    monkeypatch.setattr(similarity, "PRODUCTS", 36 * 2000)
    assert compared(x, y).n == 2000


def test_what_has_no_similarity_says_so() -> None:
    """Too few samples, and features that are the same for all; other samples are a mistake of the caller."""
    few = similarity.linear_cka({"x": normal(7, 3, 1), "y": normal(7, 3, 2)}, [("x", "y")], seeded())["x", "y"]
    flat = similarity.linear_cka({"x": normal(50, 3, 1), "y": torch.ones(50, 3)}, [("x", "y")], seeded())["x", "y"]
    assert isinstance(few, NotMeasured)
    assert "8 or more" in few.reason
    assert isinstance(flat, NotMeasured)
    assert "do not vary" in flat.reason
    with pytest.raises(ImuError, match="not of the same samples"):
        similarity.linear_cka({"x": normal(9, 3, 1), "y": normal(8, 3, 1)}, [("x", "y")], seeded())
