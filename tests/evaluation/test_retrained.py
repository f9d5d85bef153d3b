"""Gaps to a retrained model equal what scipy, scikit-learn and plain counting give, and say which way they point."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.evaluation import retrained
from imu_cli.statistics.intervals import paired_difference


def outputs(n: int, c: int, seed: int) -> Tensor:
    """Logits (n, c)."""
    return 3 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def voting(predicted: list[int], c: int = 4) -> Tensor:
    """Logits whose argmax is as listed."""
    return torch.nn.functional.one_hot(torch.tensor(predicted), c).double()


def test_the_gap_is_the_model_less_the_retrained_one() -> None:
    """3 of 4 right against 1 of 4: remembered by half; the interval is Tango's, and a census has none."""
    right = torch.tensor([True, True, True, False])
    again = torch.tensor([True, False, False, False])
    assert retrained.accuracy_gap(right, again) == paired_difference(2, 0, 4)
    counted = retrained.accuracy_gap(again, right, census=True)
    assert (counted.value, counted.low, counted.n) == (-0.5, None, 4)


def test_the_average_gap_leaves_the_signs_out() -> None:
    """Half a point up and half a point down is half a point on average, not 0."""
    up, down = paired_difference(1, 0, 200), paired_difference(0, 1, 200)
    assert retrained.average_gap([up, down]) == pytest.approx(0.005)


@pytest.mark.parametrize("c", [2, 10])
def test_divergences_are_scipys(c: int) -> None:
    """Row by row; KL's first argument is the retrained model, so that exchanging the two changes it."""
    mine, other = outputs(30, c, 0), outputs(30, c, 1)
    p, q = mine.softmax(1).numpy(), other.softmax(1).numpy()
    assert retrained.kl(mine, other).numpy() == pytest.approx(stats.entropy(q, p, axis=1), rel=1e-9)
    assert retrained.js(mine, other).numpy() == pytest.approx(jensenshannon(p, q, axis=1) ** 2, rel=1e-9)
    assert not torch.allclose(retrained.kl(mine, other), retrained.kl(other, mine))
    assert torch.allclose(retrained.js(mine, other), retrained.js(other, mine))


def test_divergences_hold_where_a_float32_softmax_is_0_and_1() -> None:
    """Opposite certainties: JS is log 2 to the last digits, KL is the logit gap, and alike outputs are exactly 0 apart."""
    sure, opposite = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]])
    assert float(retrained.js(sure, opposite)) == pytest.approx(math.log(2), rel=1e-12)
    assert float(retrained.kl(sure, opposite)) == pytest.approx(200.0, rel=1e-12)
    same = outputs(200, 10, 2)
    assert float(retrained.kl(same, same + 3).max()) == float(retrained.js(same, same + 3).max()) == 0


def test_churn_counts_different_predictions() -> None:
    """2 of 5; and a constant added to all logits changes nothing."""
    mine, other = voting([0, 1, 2, 3, 0]), voting([0, 1, 3, 2, 0])
    assert retrained.churn(mine, other + 7).value == 2 / 5
    assert retrained.churn(mine, other, census=True).low is None


def test_the_class_histogram_does_not_see_who_went_where() -> None:
    """Exchanged predictions leave the histograms alike; moving one of four samples moves a quarter."""
    assert retrained.histogram_tv(voting([0, 1, 2, 3]), voting([1, 0, 3, 2])) == 0
    assert retrained.histogram_tv(voting([0, 0, 0, 0]), voting([0, 0, 0, 1])) == 0.25
    a, b = outputs(300, 6, 3), outputs(300, 6, 4)
    shares = [np.bincount(z.argmax(1).numpy(), minlength=6) / 300 for z in (a, b)]
    assert retrained.histogram_tv(a, b) == pytest.approx(0.5 * np.abs(shares[0] - shares[1]).sum())


def test_nearer_to_the_retrained_model_is_counted_by_sample() -> None:
    """A model halfway but a little further than half is nearer; the original itself is nearer nowhere."""
    original, again = outputs(50, 5, 5), outputs(50, 5, 6)
    assert retrained.closer(again, original, again).value == 1
    assert retrained.closer(original, original, again).value == 0
    assert retrained.closer(original, original, original).value == 0
    mixed = torch.where(torch.arange(50)[:, None] < 20, again, original)
    assert retrained.closer(mixed, original, again).value == 20 / 50


def test_a_model_of_other_classes_is_refused() -> None:
    """Logits of another shape are no output for the same samples."""
    with pytest.raises(ImuError, match="same classes"):
        retrained.kl(outputs(3, 4, 0), outputs(3, 5, 0))
