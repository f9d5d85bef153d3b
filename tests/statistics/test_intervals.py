"""Intervals hold the truth as often as they say, checked by enumeration and simulation; values match scipy's."""

import math
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
import torch
from estimates import ends, holds
from scipy import optimize, stats
from sklearn.metrics import roc_auc_score
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.statistics.intervals import (
    Estimate,
    census,
    class_counts,
    clopper_pearson,
    delong,
    delong_difference,
    finite_scores,
    korn_graubard,
    mcnemar,
    mean_difference,
    paired_difference,
    require_classes,
    two_sided,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Thousands of small searches spend more time waking a second thread than searching."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Shares


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 50), (3, 37), (50, 50), (9200, 10000)])
def test_clopper_pearson_is_scipys_exact_interval(successes: int, n: int) -> None:
    """Ends equal those of scipy's exact binomial interval."""
    low, high = ends(clopper_pearson(successes, n))
    expected = stats.binomtest(successes, n).proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


def test_none_of_fifty_proves_only_seven_percent() -> None:
    """0 of 50 right leaves up to 7.1 % open, and 0 of 500 less than 5 %."""
    assert ends(clopper_pearson(0, 50))[1] == pytest.approx(0.0711, abs=5e-5)
    assert ends(clopper_pearson(0, 500))[1] < 0.05


@pytest.mark.parametrize("n", [1, 2, 5, 11, 37, 100, 200])
def test_clopper_pearson_covers_every_share(n: int) -> None:
    """Summed over all outcomes, the interval holds the true share at least 95 % of the time, for 400 shares."""
    intervals = [ends(clopper_pearson(k, n)) for k in range(n + 1)]
    low, high = np.array(intervals).T
    for p in np.linspace(0.0005, 0.9995, 400):
        chance = stats.binom.pmf(np.arange(n + 1), n, p)
        assert chance[(low <= p) & (p <= high)].sum() >= 0.95 - 1e-12


@pytest.mark.slow
def test_clopper_pearson_covers_for_every_n_up_to_200() -> None:
    """The same for all 200 sizes: by enumeration, never below 95 %."""
    for n in range(1, 201):
        test_clopper_pearson_covers_every_share(n)


def test_a_higher_confidence_is_wider() -> None:
    """The 99 % interval contains the 95 % interval, and says so in its method."""
    narrow, wide = clopper_pearson(3, 37), clopper_pearson(3, 37, 0.99)
    assert ends(wide)[0] < ends(narrow)[0]
    assert ends(wide)[1] > ends(narrow)[1]
    assert (narrow.method, wide.method) == ("Clopper-Pearson, 95 %", "Clopper-Pearson, 99 %")


def test_the_effective_size_may_be_the_real_one() -> None:
    """At an effective size of n, the weighted share's interval is Clopper-Pearson."""
    assert ends(korn_graubard(3 / 37, 37, 37)) == pytest.approx(ends(clopper_pearson(3, 37)), rel=1e-12)


def test_a_census_has_no_interval() -> None:
    """What was counted in full is not estimated."""
    assert census(0.25, 4) == Estimate(0.25, None, None, 4, "census")


# Paired differences


def tango_by_likelihood(b: int, c: int, n: int) -> tuple[float, float]:
    """Ends where the score statistic meets 1.96, its nuisance share found by maximising the likelihood numerically."""

    def score(delta: float) -> float:
        def loss(q: float) -> float:
            cells = ((b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

        low, high = max(0.0, -delta), (1 - delta) / 2
        q = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
        return (b - c - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))

    value = (b - c) / n
    low = optimize.brentq(lambda d: score(d) - 1.959963984540054, -1 + 1e-9, value - 1e-12)
    high = optimize.brentq(lambda d: score(d) + 1.959963984540054, value + 1e-12, 1 - 1e-9)
    return low, high


@pytest.mark.parametrize(
    ("b", "c", "n"), [(9, 2, 44), (2, 9, 44), (5, 5, 60), (1, 3, 12), (90, 20, 10000), (40, 1, 50)]
)
def test_tango_solves_the_score_equation(b: int, c: int, n: int) -> None:
    """The ends are those of a numerical solution that maximises the likelihood itself."""
    assert ends(paired_difference(b, c, n)) == pytest.approx(tango_by_likelihood(b, c, n), abs=2e-6)


def test_tango_reproduces_the_published_example() -> None:
    """With no disagreement in 44 pairs the ends are ∓z²/(n + z²) (Tango 1998): ±0.0803."""
    z2 = 1.959963984540054**2
    assert ends(paired_difference(0, 0, 44)) == pytest.approx((-z2 / (44 + z2), z2 / (44 + z2)), rel=1e-9)


@pytest.mark.parametrize(("b", "c", "n"), [(9, 2, 44), (0, 7, 20), (20, 0, 20), (0, 0, 1)])
def test_swapping_before_and_after_turns_the_drop_round(b: int, c: int, n: int) -> None:
    """The drop of the reversed comparison is the negative, ends included."""
    forward, backward = paired_difference(b, c, n), paired_difference(c, b, n)
    assert forward.value == -backward.value
    assert ends(forward) == tuple(-end for end in reversed(ends(backward)))


def test_everything_lost_reaches_one() -> None:
    """If all samples flip one way, the drop is 1 and so is its upper end."""
    low, high = ends(paired_difference(20, 0, 20))
    assert high == 1
    assert 0.6 < low < 1


def test_paired_interval_covers_where_few_predictions_flip_one_way() -> None:
    """Of 10,000 predictions 0.9 % flip one way: coverage, summed over all outcomes, is 93 to 97 %."""
    n, p = 10_000, 0.009
    chances = ((stats.binom.pmf(b, n, p), paired_difference(b, 0, n)) for b in range(40, 150))
    assert 0.93 <= sum(chance for chance, drop in chances if holds(drop, p)) <= 0.97


@pytest.mark.parametrize(("n", "p", "q"), [(500, 0.02, 0.01), (200, 0.05, 0.05), (5000, 0.003, 0.001)])
def test_paired_interval_covers_flips_both_ways(n: int, p: float, q: float) -> None:
    """Summed over the outcomes of a trinomial, the interval holds the true drop 93 to 97 % of the time."""
    tops = [int(stats.binom.ppf(1 - 1e-5, n, share)) for share in (p, q)]
    total = covered = 0.0
    for b, c in product(range(tops[0] + 1), range(tops[1] + 1)):
        chance = float(stats.multinomial.pmf([b, c, n - b - c], n, [p, q, 1 - p - q]))
        total += chance
        covered += chance if chance > 1e-9 and holds(paired_difference(b, c, n), p - q) else 0.0
    assert total > 0.9999
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 3), (2, 9), (90, 40)])
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    """The p-value is that of a fair coin tossed b + c times, and 1 with no toss."""
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-12)


# AUC


def brute_auc(positive: Tensor, negative: Tensor) -> float:
    """The AUC from every pair."""
    wins = (positive[:, None] > negative).double() + (positive[:, None] == negative).double() / 2
    return float(wins.mean())


def brute_variance(positive: Tensor, negative: Tensor) -> float:
    """DeLong's variance from every pair."""
    wins = (positive[:, None] > negative).double() + (positive[:, None] == negative).double() / 2
    return float(wins.mean(1).var() / len(positive) + wins.mean(0).var() / len(negative))


def normal_pair(m: int, n: int, auc: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scores with normal distributions of unit variance whose true AUC is ``auc``."""
    shift = float(stats.norm.ppf(auc)) * math.sqrt(2)
    draw = torch.randn(m + n, generator=generator, dtype=torch.float64)
    return draw[:m] + shift, draw[m:]


@pytest.mark.parametrize(("m", "n", "levels"), [(7, 40, 5), (40, 7, 1000), (60, 60, 3), (200, 300, 10**9)])
def test_auc_counts_pairs_and_ties(m: int, n: int, levels: int) -> None:
    """The AUC is the share of ordered pairs with ties as halves, as counted one by one and by scikit-learn."""
    generator = torch.Generator().manual_seed(m)
    positive = torch.randint(levels, (m,), generator=generator).double() + levels // 3
    negative = torch.randint(levels, (n,), generator=generator).double()
    value = delong(positive, negative).value
    truth = np.r_[np.ones(m), np.zeros(n)]
    assert value == pytest.approx(brute_auc(positive, negative), abs=1e-14)
    assert value == pytest.approx(roc_auc_score(truth, torch.cat([positive, negative]).numpy()), abs=1e-12)


@pytest.mark.parametrize("levels", [4, 10**9])
def test_far_from_the_ends_the_interval_is_delongs_on_the_logit_scale(levels: int) -> None:
    """With thousands of samples the ends are logit A ± 1.96 s, s from the variance over all pairs."""
    generator = torch.Generator().manual_seed(0)
    positive = torch.randint(levels, (2000,), generator=generator).double() + levels // 4
    negative = torch.randint(levels, (1000,), generator=generator).double()
    estimate = delong(positive, negative)
    a, spread = brute_auc(positive, negative), math.sqrt(brute_variance(positive, negative))
    half = 1.959963984540054 * spread / (a * (1 - a))
    expected = [1 / (1 + math.exp(-(math.log(a / (1 - a)) + side * half))) for side in (-1, 1)]
    # Student's quantile at these sizes is within 1 % of the normal one.
    assert ends(estimate) == pytest.approx(expected, abs=0.01 * spread * 2)


def test_the_quantile_is_students_at_the_variances_own_precision() -> None:
    """On small samples the ends use Student's quantile at 2 V²/Var(V) degrees, V's variance from the fourth moments."""
    positive, negative = normal_pair(30, 25, 0.85, torch.Generator().manual_seed(9))
    wins = (positive[:, None] > negative).double().numpy()
    placed = [wins.mean(1), wins.mean(0)]
    variance = sum(v.var(ddof=1) / len(v) for v in placed)
    moments = [(((v - v.mean()) ** 4).mean() - v.var(ddof=1) ** 2) / len(v) ** 3 for v in placed]
    degrees, a = 2 * variance**2 / sum(moments), wins.mean()
    half = stats.t.ppf(0.975, degrees) * math.sqrt(variance) / (a * (1 - a))
    expected = [1 / (1 + math.exp(-(math.log(a / (1 - a)) + side * half))) for side in (-1, 1)]
    assert degrees < 60
    assert ends(delong(positive, negative)) == pytest.approx(expected, rel=1e-9)


def test_exchanging_the_sides_turns_the_auc_round() -> None:
    """AUC(a, b) = 1 − AUC(b, a), and the ends change places."""
    generator = torch.Generator().manual_seed(1)
    for m, n, auc in [(40, 37, 0.7), (300, 20, 0.97), (50, 50, 0.999)]:
        positive, negative = normal_pair(m, n, auc, generator)
        forward, backward = delong(positive, negative), delong(negative, positive)
        assert forward.value == pytest.approx(1 - backward.value, abs=1e-15)
        assert ends(forward) == pytest.approx([1 - end for end in reversed(ends(backward))], abs=1e-12)


def test_the_order_of_scores_and_any_rising_map_leave_the_auc_alone() -> None:
    """Permuting the samples or mapping scores by a rising function changes neither value nor ends."""
    generator = torch.Generator().manual_seed(2)
    positive, negative = normal_pair(60, 80, 0.8, generator)
    mixed = delong(positive[torch.randperm(60, generator=generator)].exp(), negative.flip(0).exp())
    plain = delong(positive, negative)
    assert mixed.value == plain.value
    assert ends(mixed) == pytest.approx(ends(plain), rel=1e-12)


@pytest.mark.parametrize(("m", "n"), [(50, 50), (50, 5000), (2, 9)])
def test_separated_samples_are_bounded_by_their_disjoint_pairs(m: int, n: int) -> None:
    """With every pair in order the AUC is 1, and its lower end that of k = min(m, n) of k right."""
    estimate = delong(torch.arange(m) + 2.0 * n, torch.arange(n).double())
    assert (estimate.value, ends(estimate)[1]) == (1.0, 1.0)
    assert ends(estimate)[0] == pytest.approx(ends(clopper_pearson(min(m, n), min(m, n)))[0], rel=1e-12)


def test_all_scores_tied_is_a_half_with_room() -> None:
    """If every score is the same the AUC is 1/2, and its interval is not a point."""
    low, high = ends(delong(torch.zeros(40), torch.zeros(30)))
    assert low == pytest.approx(1 - high)
    assert 0.4 < low < 0.5


def test_one_sample_bounds_nothing() -> None:
    """A single forget sample gives an AUC but no interval narrower than everything."""
    assert ends(delong(torch.ones(1), torch.arange(100).double())) == (0, 1)


def test_one_barely_overlapping_sample_does_not_beat_separation() -> None:
    """A sample set that overlaps a little is not claimed to be further from 0.5 than a fully separated one."""
    negative = torch.arange(100).double()
    separated = torch.arange(100) + 200.0
    touching = separated.clone()
    touching[0] = 98.5
    assert ends(delong(touching, negative))[0] <= ends(delong(separated, negative))[0]
    assert ends(delong(negative, touching))[1] >= ends(delong(negative, separated))[1]


def test_few_overlapping_negatives_are_few_overlaps_too() -> None:
    """Six positives below four negatives: the side with the fewer counts, and separation's bound joins in."""
    positive = torch.cat([torch.full((6,), 50.0), torch.full((94,), 100.0)])
    negative = torch.cat([torch.zeros(96), torch.full((4,), 60.0)])
    bound = ends(clopper_pearson(100, 100))[0]
    assert ends(delong(positive, negative))[0] == pytest.approx(bound)
    assert ends(delong(positive, torch.cat([negative[4:], torch.full((4,), 60.0)])))[0] > bound


def test_two_sided_auc_maps_its_interval() -> None:
    """Above 0.5 nothing changes, below it the ends swap, and an interval that straddles 0.5 starts there."""
    assert two_sided(Estimate(0.7, 0.6, 0.8, 9, "m")) == Estimate(0.7, 0.6, 0.8, 9, "m, two-sided")
    assert two_sided(Estimate(0.2, 0.1, 0.3, 9, "m")) == Estimate(0.8, 0.7, 0.9, 9, "m, two-sided")
    assert two_sided(Estimate(0.45, 0.3, 0.6, 9, "m")) == Estimate(0.55, 0.5, 0.7, 9, "m, two-sided")


def coverage(make: Callable[[torch.Generator], Estimate], truth: float, repeats: int) -> float:
    """The share of simulated intervals that hold the truth."""
    generator = torch.Generator().manual_seed(7)
    return sum(holds(make(generator), truth) for _ in range(repeats)) / repeats


AUC_CASES = [
    (500, 500, 0.5),
    (500, 5000, 0.7),
    (200, 200, 0.9),
    (500, 500, 0.99),
    (500, 5000, 0.99),
    (2000, 2000, 0.995),
    (2000, 2000, 0.999),
]


@pytest.mark.parametrize(("m", "n", "auc"), [(200, 200, 0.5), (200, 200, 0.9), (500, 500, 0.99)])
def test_auc_interval_covers_in_a_quick_simulation(m: int, n: int, auc: float) -> None:
    """In 400 repeats the interval holds the true AUC about 95 % of the time, also near 1."""
    assert 0.92 <= coverage(lambda g: delong(*normal_pair(m, n, auc, g)), auc, 400) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("m", "n", "auc"), AUC_CASES)
def test_auc_interval_covers(m: int, n: int, auc: float) -> None:
    """In 2,000 repeats the interval holds the true AUC 93 to 97 % of the time."""
    assert 0.93 <= coverage(lambda g: delong(*normal_pair(m, n, auc, g)), auc, 2000) <= 0.97


def skewed_pair(m: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Exponential scores of scales 99 and 1: AUC 0.99, and the few overlapping positives lie far down."""
    draw = -torch.rand(m + n, generator=generator, dtype=torch.float64).log()
    return 99 * draw[:m], draw[m:]


@pytest.mark.parametrize(("m", "n"), [(40, 400), (500, 500)])
def test_auc_interval_covers_skewed_scores_near_one(m: int, n: int) -> None:
    """Where plain DeLong on the logit scale covers only 72 % (40 against 400), the interval still covers 93 %."""
    assert coverage(lambda g: delong(*skewed_pair(m, n, g)), 0.99, 500) >= 0.93


def scored_twice(m: int, n: int, second: float, generator: torch.Generator) -> Estimate:
    """Two correlated scores of the same samples, with true AUCs 0.9 and ``second``."""
    (a, b), (c, d) = normal_pair(m, n, 0.5, generator), normal_pair(m, n, 0.5, generator)
    shifts = [float(stats.norm.ppf(auc)) * math.sqrt(2) for auc in (0.9, second)]
    return delong_difference((a + shifts[0], b), (0.8 * a + 0.6 * c + shifts[1], 0.8 * b + 0.6 * d))


@pytest.mark.parametrize("second", [0.85, 0.99])
def test_paired_auc_difference_covers_in_a_quick_simulation(second: float) -> None:
    """In 400 repeats on correlated scores the interval holds the true difference about 95 % of the time."""
    assert 0.92 <= coverage(lambda g: scored_twice(200, 300, second, g), 0.9 - second, 400) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("second", [0.9, 0.85, 0.99])
def test_paired_auc_difference_covers(second: float) -> None:
    """In 2,000 repeats on correlated scores the interval holds the true difference 93 to 97 % of the time."""
    assert 0.93 <= coverage(lambda g: scored_twice(400, 500, second, g), 0.9 - second, 2000) <= 0.97


def test_paired_auc_difference_has_delongs_variance() -> None:
    """With many samples the half width is 1.96 times the deviation of the placements' differences."""
    generator = torch.Generator().manual_seed(3)
    first = normal_pair(3000, 3000, 0.75, generator)
    noise = normal_pair(3000, 3000, 0.5, generator)
    second = (first[0] + noise[0], first[1] + noise[1])
    placed = [(p[:, None] > n).double() for p, n in (first, second)]
    apart = placed[0] - placed[1]
    spread = math.sqrt(float(apart.mean(1).var() / 3000 + apart.mean(0).var() / 3000))
    estimate = delong_difference(first, second)
    low, high = ends(estimate)
    assert estimate.value == pytest.approx(float(apart.mean()), abs=1e-12)
    assert (high - low) / 2 == pytest.approx(1.959963984540054 * spread, rel=0.01)


def test_the_same_score_twice_differs_by_nothing() -> None:
    """An AUC minus itself is 0, and 0 lies inside its interval."""
    pair = normal_pair(50, 60, 0.8, torch.Generator().manual_seed(4))
    assert delong_difference(pair, pair).value == 0
    assert holds(delong_difference(pair, pair), 0)


# Refusals


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused_with_its_row(bad: float) -> None:
    """The message names the row."""
    with pytest.raises(ImuError, match="row 2 is"):
        finite_scores(torch.tensor([1.0, 2.0, bad]), "scores")


def test_columns_of_a_larger_tensor_are_scores_too() -> None:
    """A strided view is read like its copy, without a warning."""
    table = torch.randn(50, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert delong(table[:, 0], table[:, 1]) == delong(table[:, 0].clone(), table[:, 1].clone())


@pytest.mark.parametrize(
    "call",
    [
        lambda: clopper_pearson(0, 0),
        lambda: clopper_pearson(3, 2),
        lambda: clopper_pearson(1, 2, 95),
        lambda: korn_graubard(1.5, 10, 10),
        lambda: paired_difference(6, 5, 10),
        lambda: paired_difference(-1, 5, 10),
        lambda: mcnemar(-1, 2),
        lambda: census(0.0, 0),
        lambda: delong(torch.zeros(0), torch.ones(3)),
        lambda: delong(torch.zeros(2, 2), torch.ones(3)),
        lambda: delong_difference((torch.ones(2), torch.ones(3)), (torch.ones(3), torch.ones(3))),
    ],
)
def test_impossible_counts_are_refused(call: Callable[[], object]) -> None:
    """More hits than samples, no samples, or a confidence in percent is an error and no number."""
    with pytest.raises(ImuError):
        call()


def test_a_missing_class_is_named_with_its_count() -> None:
    """The pool's gap is said in one message: every missing class, and how many of D_f it concerns."""
    labels = torch.tensor([0, 3, 3, 7])
    assert class_counts(labels) == {0: 1, 3: 2, 7: 1}
    with pytest.raises(ImuError, match=r"class 3 \(2 in D_f\), 7 \(1 in D_f\)"):
        require_classes(labels, torch.tensor([0, 1, 2]))
    with pytest.raises(ImuError, match="empty"):
        require_classes(labels[:0], labels)


def test_a_mean_difference_covers_the_truth() -> None:
    """Differences of two gaps, mostly 0: at least 93 of 100 intervals hold the true mean; where none differs, it is no point."""
    generator = torch.Generator().manual_seed(0)
    values, chances = torch.tensor([-2, -1, 0, 1, 2]), torch.tensor([0.005, 0.03, 0.9, 0.05, 0.015])
    truth, held = float((values * chances).sum()), 0
    for _ in range(2000):
        drawn = values[torch.multinomial(chances, 150, replacement=True, generator=generator)]
        found = mean_difference(drawn)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
        assert found.low <= found.value <= found.high
    assert held / 2000 >= 0.93
    none = mean_difference(torch.zeros(50, dtype=torch.int32))
    assert none.low is not None
    assert none.low < 0 == none.value
