"""Metrics equal hand counts and independent libraries, and recovery tells a kept class from an always-winning row."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, recall_score
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.statistics import mask_bound, metrics
from imu_cli.statistics.intervals import Estimate, clopper_pearson, flips, paired_difference


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own for each test."""
    return torch.Generator().manual_seed(seed)


def random_logits(n: int, c: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (n, c) that are right about half of the time, and labels (n,)."""
    generator = seeded(seed)
    labels = torch.randint(c, (n,), generator=generator)
    logits = torch.randn(n, c, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, c)
    return logits, labels


def voting(predicted: list[int], c: int = 4) -> Tensor:
    """Logits whose argmax is as listed."""
    return torch.nn.functional.one_hot(torch.tensor(predicted), c).double()


# Counting


@pytest.mark.parametrize(("n", "c"), [(1, 2), (40, 10), (700, 100)])
def test_accuracy_is_sklearns(n: int, c: int) -> None:
    """The share of right rows, with the exact interval for a sample and none for a census."""
    logits, labels = random_logits(n, c)
    expected = accuracy_score(labels, logits.argmax(1))
    sample, counted = metrics.accuracy(logits, labels), metrics.accuracy(logits, labels, census=True)
    assert sample == clopper_pearson(round(expected * n), n)
    assert counted == Estimate(expected, None, None, n, "census")


def test_per_class_accuracy_is_sklearns_recall() -> None:
    """Each class that occurs has its recall and its own number of rows."""
    logits, labels = random_logits(300, 7)
    found = metrics.class_accuracy(logits, labels)
    assert list(found) == list(range(7))
    assert [x.value for x in found.values()] == pytest.approx(recall_score(labels, logits.argmax(1), average=None))
    assert [x.n for x in found.values()] == torch.bincount(labels).tolist()


def test_a_row_that_is_not_finite_is_refused() -> None:
    """NaN logits would have an argmax; the row is named instead."""
    logits, labels = random_logits(5, 3)
    logits[2, 1] = math.nan
    with pytest.raises(ImuError, match="row 2"):
        metrics.accuracy(logits, labels)


def test_predicted_as_any_of_a_set_ignores_the_label() -> None:
    """Two of five rows go to class 1 or 3."""
    share = metrics.predicted_as(voting([0, 1, 2, 3, 0]), {1, 3}, census=True)
    assert (share.value, share.low) == (2 / 5, None)
    assert metrics.predicted_as(voting([0, 2]), [1]).value == 0


@pytest.mark.parametrize(("p", "n"), [(0.919, 37), (0.5, 10), (0.0, 5), (1.0, 5), (0.92, 5000)])
def test_the_binomial_range_holds_the_central_95_percent(p: float, n: int) -> None:
    """At most 2.5 % of n-sample accuracies lie on either side, and one sample less would leave out more."""
    low, high = metrics.binomial_range(p, n)
    bottom, top = round(low * n), round(high * n)
    assert stats.binom.cdf(bottom - 1, n, p) <= 0.025 < stats.binom.cdf(bottom, n, p) + 1e-12
    assert stats.binom.sf(top, n, p) <= 0.025 < stats.binom.sf(top - 1, n, p) + 1e-12


@pytest.mark.parametrize("n", [1, 2, 5, 10, 37, 137, 500, 5000, 50_000])
def test_the_binomial_range_is_scipys(n: int) -> None:
    """Bit for bit the quantiles of scipy.stats, whose import takes a second: chance levels, targets and their edges."""
    for p in (0.0, 1e-9, 0.001, 0.005, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.9, 0.919, 0.995, 0.999, 1 - 1e-9, 1.0):
        expected = tuple(float(stats.binom.ppf(tail, n, p)) / n for tail in ((1 - 0.95) / 2, (1 + 0.95) / 2))
        assert metrics.binomial_range(p, n) == expected, (p, n)


# Class-matched accuracy


def test_matched_accuracy_weights_classes_as_the_forget_set_does() -> None:
    """3 of 4 forget samples are of class 0, of which the pool gets 1/2 right, and all of class 1: 0.75·0.5 + 0.25."""
    correct = torch.tensor([True, False, True, True, False])
    value = metrics.class_matched_accuracy(correct, torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 0])).value
    assert value == 0.75 * 0.5 + 0.25


@pytest.mark.parametrize("right", [0, 1, 13, 40])
def test_matched_accuracy_of_one_class_is_clopper_pearson(right: int) -> None:
    """With one class in D_f the interval is the exact one of that class's samples, whatever the others do."""
    correct = torch.cat([torch.arange(40) < right, torch.ones(60, dtype=torch.bool)])
    matched = metrics.class_matched_accuracy(correct, torch.tensor([3] * 40 + [1] * 60), torch.tensor([3, 3]))
    exact = clopper_pearson(right, 40)
    assert (matched.low, matched.value, matched.high, matched.n) == pytest.approx(
        (exact.low, exact.value, exact.high, 40), abs=1e-9
    )


@pytest.mark.parametrize(
    ("sizes", "weights", "rates"),
    [
        ([100] * 10, [1.0] * 10, [0.9] * 10),
        ([10] * 100, [1.0] * 100, [0.9] * 100),
        ([200, 50, 50], [1.0, 5.0, 3.0], [0.95, 0.6, 0.8]),
        ([1000, 20], [1.0, 1.0], [0.99, 0.9]),
    ],
)
def test_matched_accuracy_covers(sizes: list[int], weights: list[float], rates: list[float]) -> None:
    """In 1,000 repeats the interval holds the truth 93 % of the time or more, with many small or few uneven classes."""
    rng = np.random.default_rng(0)
    share = np.array(weights) / sum(weights)
    forget = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(weights).long())
    pool = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    truth, held, repeats = float(share @ rates), 0, 1000 if len(sizes) < 20 else 400
    for _ in range(repeats):
        correct = torch.from_numpy(rng.random(len(pool)) < np.array(rates)[pool])
        found = metrics.class_matched_accuracy(correct, pool, forget)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 0.93 <= held / repeats <= 0.985


def test_matched_accuracy_of_all_right_is_bounded_by_the_scarcest_class() -> None:
    """Two equal classes, one with 10 samples, all right: the lower end is that of 20 of 20, not of 1,010."""
    labels = torch.tensor([0] * 1000 + [1] * 10)
    found = metrics.class_matched_accuracy(torch.ones(1010, dtype=torch.bool), labels, torch.tensor([0, 1]))
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(clopper_pearson(20, 20).low)


def test_matched_accuracy_of_certain_looking_classes_has_an_interval() -> None:
    """One class all right and one all wrong leave no variance within a class; the ends are still apart."""
    labels = torch.tensor([0] * 20 + [1] * 20)
    found = metrics.class_matched_accuracy(labels == 0, labels, torch.tensor([0, 1]))
    assert found.low is not None
    assert found.high is not None
    assert (found.value, found.low + found.high) == (0.5, pytest.approx(1))
    assert found.high - found.low > 0.1


def test_matched_accuracy_needs_every_class() -> None:
    """A class of D_f without test samples is named."""
    with pytest.raises(ImuError, match=r"class 1 \(1 in D_f\)"):
        metrics.class_matched_accuracy(torch.ones(2, dtype=torch.bool), torch.tensor([0, 0]), torch.tensor([0, 1]))


# Confidence


def test_confidence_is_the_mean_probability_of_the_label() -> None:
    """Two classes at margins 0 and log 3: probabilities 1/2 and 3/4."""
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    assert metrics.forget_confidence(logits, torch.tensor([1, 0])).value == pytest.approx(0.625, abs=1e-7)


def test_confidence_in_several_classes_is_their_sum() -> None:
    """In the class scenario the forgotten classes' probabilities add up, whichever is the label."""
    logits, labels = random_logits(50, 6)
    expected = torch.softmax(logits.double(), 1)[:, [2, 4]].sum(1).mean()
    assert metrics.forget_confidence(logits, labels, {4, 2}).value == pytest.approx(float(expected), rel=1e-12)


def test_entropy_is_scipys() -> None:
    """The mean of scipy's entropies in nats: log c for equal logits, 0 for a margin of 800."""
    logits, _ = random_logits(50, 6)
    expected = stats.entropy(logits.double().softmax(1).numpy(), axis=1).mean()
    assert metrics.entropy(logits).value == pytest.approx(expected, rel=1e-10)
    assert metrics.entropy(torch.zeros(3, 7)).value == pytest.approx(math.log(7))
    assert metrics.entropy(torch.tensor([[800.0, 0.0]])).value == 0


def test_redirect_names_the_class_most_samples_went_to() -> None:
    """Own label and forgotten classes do not count as somewhere else; none elsewhere is None and 0."""
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    logits = voting([2, 2, 1, 1, 2, 1])
    assert metrics.redirect_share(logits, labels) == metrics.Redirect(2, Estimate(3 / 6, None, None, 6, "census"))
    assert metrics.redirect_share(logits, labels, {0, 2}).share.value == 2 / 6
    assert metrics.redirect_share(voting([0, 1]), torch.tensor([0, 1])).label is None


# Pairs


def test_the_drop_is_before_minus_after_on_the_same_rows() -> None:
    """Three rows lost, one gained, of eight: a drop of 1/4 with Tango's interval."""
    before = torch.tensor([1, 1, 1, 1, 0, 0, 1, 1], dtype=torch.bool)
    after = torch.tensor([1, 0, 0, 0, 1, 0, 1, 1], dtype=torch.bool)
    assert flips(before, after) == (3, 1)
    assert metrics.accuracy_drop(before, after) == paired_difference(3, 1, 8)
    with pytest.raises(ImuError, match="same rows"):
        metrics.accuracy_drop(before, after[:7])


def test_the_worst_class_is_the_one_that_lost_most() -> None:
    """Class 5 loses half; its interval is wider than its own 95 % one, for it was picked out of two."""
    labels = torch.tensor([2] * 40 + [5] * 20)
    before = torch.ones(60, dtype=torch.bool)
    after = torch.cat([torch.ones(40), torch.zeros(10), torch.ones(10)]).bool()
    worst, own = metrics.worst_class_drop(before, after, labels), metrics.class_drops(before, after, labels)[5]
    assert (worst.label, worst.drop.value, worst.drop.n) == (5, 0.5, 20)
    assert (worst.drop.low, worst.drop.high) == (
        paired_difference(10, 0, 20, 0.975).low,
        paired_difference(10, 0, 20, 0.975).high,
    )
    assert own.high is not None
    assert worst.drop.high is not None
    assert own.high < worst.drop.high


def test_the_worst_class_interval_holds_the_largest_true_drop() -> None:
    """Ten classes of 100 rows that each lose 5 %: the worst looks worse, yet 95 % of intervals hold 5 %."""
    rng = np.random.default_rng(1)
    labels = torch.arange(1000) % 10
    before = torch.ones(1000, dtype=torch.bool)
    naive = held = 0
    for _ in range(300):
        after = torch.from_numpy(rng.random(1000) > 0.05)
        worst = metrics.worst_class_drop(before, after, labels)
        alone = metrics.class_drops(before, after, labels)[worst.label]
        assert worst.drop.low is not None
        assert worst.drop.high is not None
        assert alone.low is not None
        held += worst.drop.low <= 0.05 <= worst.drop.high
        naive += alone.low <= 0.05
    assert held >= 0.95 * 300
    assert naive < 0.9 * 300


# Whole classes


def test_the_mask_bound_is_accuracy_without_the_forgotten_outputs() -> None:
    """Rows of kept classes only, predicted among kept classes only, counted row by row."""
    logits, labels = random_logits(200, 5)
    forgotten = {1, 3}
    kept = [i for i in range(200) if int(labels[i]) not in forgotten]
    right = sum(max((0, 2, 4), key=lambda j: float(logits[i, j])) == int(labels[i]) for i in kept)
    assert mask_bound.mask_bound(logits, labels, forgotten) == clopper_pearson(right, len(kept))


def test_the_mask_bound_is_never_below_the_kept_accuracy() -> None:
    """Masking outputs that are wrong for every kept row can only help."""
    for seed in range(10):
        logits, labels = random_logits(100, 4, seed)
        plain = metrics.accuracy(logits[labels != 2], labels[labels != 2])
        assert mask_bound.mask_bound(logits, labels, {2}).value >= plain.value


def test_kept_samples_newly_taken_by_a_forgotten_class_are_counted() -> None:
    """Of five kept rows one is newly taken; one was taken before, and the forgotten class's own row is no loss."""
    labels = torch.tensor([0, 0, 1, 1, 0, 3])
    before, after = voting([0, 0, 1, 3, 0, 3]), voting([0, 3, 1, 3, 2, 3])
    assert mask_bound.lost_to_forgotten(before, after, labels, {3}) == clopper_pearson(1, 5)


def test_feature_drift_is_relative_and_zero_for_the_same_features() -> None:
    """Features 10 % longer have drifted by 0.1; the same have not, to the bit."""
    features = torch.randn(30, 8, generator=seeded())
    assert metrics.feature_drift(features, features.clone()).value == 0.0
    assert metrics.feature_drift(features.double(), 1.1 * features.double()).value == pytest.approx(0.1, rel=1e-12)
    with pytest.raises(ImuError, match="norm 0"):
        metrics.feature_drift(torch.zeros(3, 2), torch.ones(3, 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.accuracy(torch.zeros(0, 3), torch.zeros(0)),
        lambda: metrics.binomial_range(1.2, 10),
        lambda: metrics.binomial_range(0.5, 0),
        lambda: mask_bound.mask_bound(voting([0, 1]), torch.tensor([0, 0]), {0}),
        lambda: mask_bound.lost_to_forgotten(voting([0]), voting([0]), torch.tensor([0]), {0}),
        lambda: metrics.feature_drift(torch.ones(2, 3), torch.ones(3, 3)),
        lambda: metrics.worst_class_drop(torch.ones(0).bool(), torch.ones(0).bool(), torch.ones(0).long()),
    ],
)
def test_what_has_no_answer_is_refused(call: Callable[[], object]) -> None:
    """No samples, or none of the kind that a metric is about, is an error and no number."""
    with pytest.raises(ImuError):
        call()
