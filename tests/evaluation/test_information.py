"""Information in features is what a linear classifier can say; the index is where the model stands between two others."""

import math

import pytest
import torch
from torch import Tensor

from imu_cli.evaluation import feature_attacks, information
from imu_cli.statistics.intervals import Estimate, NotMeasured


def seeded(seed: int = 0) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


def sides(n: int, apart: float, seed: int = 0) -> tuple[Tensor, feature_attacks.Chosen]:
    """N samples of each of two normal distributions (4 features), so far apart along one."""
    h = torch.randn(2 * n, 4, generator=seeded(seed), dtype=torch.float64)
    h[:n, 0] += apart
    labels = torch.zeros(n, dtype=torch.int64)
    chosen = feature_attacks.choose(labels, torch.arange(n), labels, 4, seeded())
    assert isinstance(chosen, feature_attacks.Chosen)
    return chosen.features(h[:n], h[n:]), chosen


@pytest.mark.parametrize("apart", [1.0, 2.0, 4.0])
def test_information_is_that_of_two_normal_distributions(apart: float) -> None:
    """I = log 2 − E log(1 + exp(−u)), u ~ N(δ²/2, δ²), integrated; the fit on samples loses little of it."""
    u = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-u.square() / 2) / math.sqrt(2 * math.pi)
    truth = math.log(2) - float(torch.trapezoid(density * torch.nn.functional.softplus(-(apart**2 / 2 + apart * u)), u))
    found = float(information.gained(*sides(2000, apart)).mean())
    assert found == pytest.approx(truth, abs=0.03)


def test_nothing_is_known_where_both_sides_are_alike() -> None:
    """A bound that is fitted on other samples: a little below 0, never above by more than chance."""
    assert -0.02 < float(information.gained(*sides(1000, 0.0)).mean()) < 0.005


def test_wide_features_lose_little_where_there_is_nothing_to_know() -> None:
    """As many features as samples: the penalty is chosen on samples held back, so that nothing is learnt by heart."""
    h = torch.randn(300, 300, generator=seeded(), dtype=torch.float64)
    labels = torch.zeros(150, dtype=torch.int64)
    chosen = feature_attacks.choose(labels, torch.arange(150), labels, 300, seeded())
    assert isinstance(chosen, feature_attacks.Chosen)
    assert -0.1 < float(information.gained(h, chosen).mean()) < 0.02


def test_the_index_says_where_between_two_models_one_stands() -> None:
    """1 at the original, 0 at the retrained model, half way between, and its interval holds that; beyond is said, not cut."""
    before, retrained = (information.gained(*sides(1000, apart, 3)) for apart in (3.0, 1.0))
    for after, value in (
        (before, 1.0),
        (retrained, 0.0),
        ((before + retrained) / 2, 0.5),
        (2 * retrained - before, -1.0),
    ):
        found = information.difference_index(after, before, retrained, seeded()).index
        assert isinstance(found, Estimate)
        assert found.value == pytest.approx(value)
        assert found.low is not None
        assert found.high is not None
        assert found.low - 1e-9 <= value <= found.high + 1e-9


def test_without_a_distance_there_is_no_index() -> None:
    """An original that knows no more than the retrained model: a reason with both numbers instead of a ratio of noise."""
    one, other = (information.gained(*sides(500, 1.0, seed)) for seed in (1, 2))
    found = information.difference_index(one, other, other, seeded())
    assert isinstance(found.index, NotMeasured)
    assert f"{found.before:.3f}" in found.index.reason


def test_sides_are_balanced() -> None:
    """A guess loses log 2 only where both sides are equally many; what is left out stays out for all models."""
    labels = torch.zeros(300, dtype=torch.int64)
    chosen = feature_attacks.choose(labels, torch.arange(100), labels[:100], 4, seeded())
    assert isinstance(chosen, feature_attacks.Chosen)
    few = information.balanced(chosen)
    assert len(few.forget) == len(few.pool) == 100
    assert len(few.forget.unique()) == 100
    assert len(few.labels) == len(few.folds) == 200
