"""Curves of a report: counts that hold every sample once, rates that are those of the attack."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imu_cli.evaluation import attacks, curves
from imu_cli.influence.closed_form import decades
from imu_cli.records.evaluation import Curves


def scores(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4 + shift


def both(n: int = 500, m: int = 800) -> Curves:
    return curves.gather(
        {
            ("forget", "before"): scores(n, 0, 3.0),
            ("test", "before"): scores(m, 1),
            ("forget", "after"): scores(n, 2, -1.0),
            ("test", "after"): scores(m, 3),
        }
    )


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
@settings(deadline=None)
def test_bins_are_round_and_few_and_count_every_sample(first: list[float], second: list[float]) -> None:
    """Counts are NumPy's on the same edges, which are multiples of one width: no edge is a sample's own score."""
    given_ = {("forget", "after"): torch.tensor(first).double(), ("test", "after"): torch.tensor(second).double()}
    made = curves.histogram(given_)
    assert len(made.edges) <= curves.BINS + 2
    width = made.edges[1] - made.edges[0]
    mantissa = round(width / 10 ** math.floor(math.log10(width) + 1e-9), 3)
    assert mantissa in (1, 2, 5, 10)
    for series, values in zip(made.series, given_.values(), strict=True):
        assert sum(series.counts) == len(values)
        near = np.abs(values.numpy()[:, None] - np.array(made.edges)).min() < 1e-6 * width
        if not near:
            assert series.counts == np.histogram(values.numpy(), made.edges)[0].tolist()


def test_the_roc_is_that_of_the_attack() -> None:
    """At 1 % of the pool each tail has the rate that ``attacks.tpr_at_fpr`` gives; scikit-learn's curve passes its points."""
    from sklearn.metrics import roc_curve

    made = both()
    rates = attacks.tpr_at_fpr(scores(500, 2, -1.0), scores(800, 3))
    for curve in made.roc:
        assert curve.fpr == sorted(set(curve.fpr))
        assert curve.tpr == sorted(curve.tpr)
        assert (curve.fpr[-1], curve.tpr[-1]) == (1.0, 1.0)
        assert all(low <= value <= high for low, value, high in zip(curve.low, curve.tpr, curve.high, strict=True))
        if curve.when == "after":
            wanted = rates.upper if curve.tail == "remembered" else rates.lower
            at = curve.fpr.index(0.01)
            assert (curve.tpr[at], curve.low[at], curve.high[at]) == pytest.approx(
                (wanted.value, wanted.low, wanted.high), abs=1e-6
            )
    first = made.roc[0]
    assert (first.when, first.tail) == ("before", "remembered")
    labels = np.r_[np.ones(500), np.zeros(800)]
    fpr, tpr, _ = roc_curve(labels, np.r_[scores(500, 0, 3.0), scores(800, 1)], drop_intermediate=False)
    best = {round(rate, 6): round(float(tpr[fpr == rate].max()), 6) for rate in fpr}
    for rate, value in zip(first.fpr, first.tpr, strict=True):
        assert best[rate] >= value >= max(tpr[fpr < rate - 1e-9], default=0.0)


def test_curves_are_small_and_hold_no_score() -> None:
    """However many samples there are, a few hundred numbers are kept."""
    made = both(20_000, 10_000)
    assert all(len(curve.fpr) <= curves.ROC_POINTS for curve in made.roc)
    assert [(curve.when, curve.tail) for curve in made.roc] == [
        ("before", "remembered"),
        ("after", "remembered"),
        ("after", "over-unlearned"),
    ]
    assert len(made.model_dump_json()) < 10_000


def test_ties_and_single_samples() -> None:
    """All scores alike: one bin, one point of the curve at (1, 1); one sample a side is no error."""
    same = torch.zeros(7, dtype=torch.float64)
    made = curves.gather({("forget", "after"): same, ("test", "after"): same})
    assert [(curve.fpr, curve.tpr) for curve in made.roc] == [([1.0], [1.0])] * 2
    assert sum(made.confidence.series[0].counts) == 7
    alone = curves.gather({("forget", "after"): scores(1, 0)})
    assert alone.roc == []
    assert sum(alone.confidence.series[0].counts) == 1


@given(st.lists(st.floats(-1e6, 1e6), max_size=30))
def test_decades_count_every_negative_score(values: list[float]) -> None:
    """Each power of ten holds the scores of that size, largest first."""
    found = decades(torch.tensor(values, dtype=torch.float64))
    assert sum(count for _, count in found) == sum(value < 0 for value in values)
    assert [power for power, _ in found] == sorted((power for power, _ in found), reverse=True)
