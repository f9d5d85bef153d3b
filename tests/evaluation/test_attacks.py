"""Attack scores are exact where float32 is not, pools are matched by class, and every direction is what it says."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.evaluation import attacks
from imu_cli.statistics.intervals import Estimate, NotMeasured


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own for each test."""
    return torch.Generator().manual_seed(seed)


def random_logits(n: int, c: int, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (n, c) and labels (n,)."""
    generator = seeded(seed)
    logits = scale * torch.randn(n, c, generator=generator, dtype=torch.float64)
    return logits, torch.randint(c, (n,), generator=generator)


def measured(result: Estimate | NotMeasured) -> Estimate:
    """The number, which must be there."""
    assert isinstance(result, Estimate)
    return result


# Scores


@pytest.mark.parametrize("c", [2, 10, 100])
def test_logit_confidence_is_the_log_odds_of_the_label(c: int) -> None:
    """It equals log p/(1 − p), computed row by row in plain Python."""
    logits, labels = random_logits(40, c)
    for row, label, score in zip(
        logits.tolist(), labels.tolist(), attacks.logit_confidence(logits, labels), strict=True
    ):
        others = math.fsum(math.exp(z) for j, z in enumerate(row) if j != label)
        assert float(score) == pytest.approx(row[label] - math.log(others), rel=1e-12)


def test_logit_confidence_separates_what_float32_softmax_ties() -> None:
    """At margins of 18 to 39 float32 softmax is 1 in all rows, its AUC 0.5; the score from logits ranks them all."""
    margins = torch.arange(18.0, 40.0)
    logits = torch.stack([margins, torch.zeros(22)], dim=1)
    labels = torch.zeros(22, dtype=torch.long)
    probability, score = logits.softmax(1)[:, 0], attacks.logit_confidence(logits, labels)
    assert probability.unique().tolist() == [1.0]
    assert attacks.auc(probability[11:], probability[:11]).value == 0.5
    assert attacks.auc(score[11:], score[:11]).value == 1.0


def test_float32_logits_are_scored_in_float64() -> None:
    """Margins of 1e-3 between probabilities near 1e-9 survive: the score equals that of the same numbers in float64."""
    logits = torch.tensor([[20.0, 0.0, 1e-3], [20.0, 0.0, 2e-3]])
    labels = torch.zeros(2, dtype=torch.long)
    for score in (attacks.logit_confidence, attacks.modified_entropy, attacks.modified_entropy_published):
        assert score(logits, labels).dtype == torch.float64
        assert torch.equal(score(logits, labels), score(logits.double(), labels))


def test_logit_confidence_ignores_a_common_shift() -> None:
    """Adding a constant to a row's logits, even a large one, changes nothing beyond rounding."""
    logits, labels = random_logits(20, 5)
    shifted = attacks.logit_confidence(logits + 700, labels)
    assert torch.allclose(shifted, attacks.logit_confidence(logits, labels), rtol=0, atol=1e-11)


def test_modified_entropy_is_song_and_mittals() -> None:
    """It equals the published formula, summed term by term in plain Python."""
    logits, labels = random_logits(40, 6)
    for row, label, score in zip(
        logits.softmax(1).tolist(), labels.tolist(), attacks.modified_entropy(logits, labels), strict=True
    ):
        others = math.fsum(p * math.log1p(-p) for j, p in enumerate(row) if j != label)
        assert float(score) == pytest.approx(-(1 - row[label]) * math.log(row[label]) - others, rel=1e-10)


def test_modified_entropy_stays_finite_and_ordered_at_large_margins() -> None:
    """Sure and right goes to 0, sure and wrong grows with the margin; neither is nan at a margin of 100."""
    logits = torch.tensor([[100.0, 0.0], [50.0, 0.0], [50.0, 0.0], [100.0, 0.0]])
    scores = attacks.modified_entropy(logits, torch.tensor([0, 0, 1, 1])).tolist()
    assert scores[0] < scores[1] < 1e-19
    assert scores[2:] == pytest.approx([100.0, 200.0], rel=1e-12)


def published_loop(logits: Tensor, labels: Tensor) -> Tensor:
    """The copied code in plain loops: every column that is some row's label is reversed in every row."""
    scores = []
    for p in logits.softmax(1).tolist():
        listed = set(labels.tolist())
        scores.append(-sum((1 - q if j in listed else q) * math.log(q if q > 0 else 1e-30) for j, q in enumerate(p)))
    return torch.tensor(scores, dtype=torch.float64)


def test_the_published_modified_entropy_is_reproduced() -> None:
    """It equals a plain port of the copied code, with some classes in no row and probabilities that underflow."""
    logits, labels = random_logits(30, 8)
    logits[3, 2] = -2000.0
    score = attacks.modified_entropy_published(logits, labels % 5)
    assert torch.allclose(score, published_loop(logits, labels % 5), rtol=1e-12)


def test_permuting_the_labels_changes_only_the_corrected_modified_entropy() -> None:
    """The published form does not depend on which row has which label; the corrected one does, in every row."""
    logits, _ = random_logits(40, 10)
    labels = torch.arange(40) % 10
    permuted = labels.roll(1)
    published = attacks.modified_entropy_published
    assert torch.equal(published(logits, labels), published(logits, permuted))
    moved = attacks.modified_entropy(logits, labels) - attacks.modified_entropy(logits, permuted)
    assert bool((moved.abs() > 1e-6).all())


@pytest.mark.parametrize(
    "score", [attacks.logit_confidence, attacks.modified_entropy, attacks.modified_entropy_published]
)
def test_rows_that_cannot_be_scored_are_refused(score) -> None:  # type: ignore[no-untyped-def]
    """NaN logits and labels out of range name the row; a single class has nothing to compare with."""
    logits, labels = random_logits(5, 3)
    with pytest.raises(ImuError, match="row 4"):
        score(logits.index_fill(0, torch.tensor([4]), math.nan), labels)
    with pytest.raises(ImuError, match="row 0 has label 3"):
        score(logits, torch.full((5,), 3))
    with pytest.raises(ImuError, match="c ≥ 2"):
        score(logits[:, :1], labels)


# Pools


def counts(labels: Tensor, c: int) -> list[int]:
    """Rows of each class."""
    return torch.bincount(labels, minlength=c).tolist()


def test_the_pool_has_the_forget_sets_classes() -> None:
    """Classes 0:1:2 stand 3:1:0 in D_f and so in the pool, class 0 used up, all rows different."""
    forget = torch.tensor([0] * 30 + [1] * 10)
    pool = torch.arange(300) % 3
    rows = attacks.class_matched(forget, pool, seeded())
    assert counts(pool[rows], 3) == [100, 33, 0]
    assert len(rows.unique()) == len(rows)
    assert torch.equal(rows, rows.sort().values)


@pytest.mark.parametrize("seed", range(6))
def test_the_pool_is_as_large_as_the_scarcest_class_allows(seed: int) -> None:
    """Every class is within half a sample of its share, at least one, and one class is used up."""
    generator = seeded(seed)
    forget = torch.randint(7, (50 + 40 * seed,), generator=generator) ** 2 % 7
    pool = torch.randint(7, (400,), generator=generator)
    drawn, wanted, there = (counts(x, 7) for x in (pool[attacks.class_matched(forget, pool, generator)], forget, pool))
    scale = min(there[k] / wanted[k] for k in range(7) if wanted[k])
    assert all(abs(drawn[k] - scale * wanted[k]) <= 0.5 or drawn[k] == 1 for k in range(7))
    assert any(drawn[k] == there[k] > 0 for k in range(7))


def test_a_pool_smaller_than_the_forget_set_keeps_every_class() -> None:
    """With a hundredth of D_f to draw from, a class with one forget sample is still there."""
    forget = torch.tensor([0] * 1000 + [1])
    pool = torch.tensor([0] * 10 + [1] * 10)
    assert counts(pool[attacks.class_matched(forget, pool, seeded())], 2) == [10, 1]


def test_the_seed_alone_decides_the_draw() -> None:
    """The same seed gives the same rows, another seed others."""
    forget, pool = torch.tensor([0, 1, 1]), torch.arange(200) % 2
    draws = [attacks.class_matched(forget, pool, seeded(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_every_row_of_the_pool_may_be_drawn() -> None:
    """The draw is random within a class: over 200 seeds each of 20 rows is drawn about half the time."""
    forget, pool = torch.tensor([0, 1]), torch.tensor([0] * 20 + [1] * 10)
    hits = torch.zeros(30)
    for seed in range(200):
        hits[attacks.class_matched(forget, pool, seeded(seed))] += 1
    assert bool((hits[20:] == 200).all())
    assert bool(((hits[:20] > 65) & (hits[:20] < 135)).all())


def test_a_class_the_pool_lacks_is_an_error() -> None:
    """The message names the class."""
    with pytest.raises(ImuError, match=r"class 2 \(1 in D_f\)"):
        attacks.class_matched(torch.tensor([0, 2]), torch.tensor([0, 1]), seeded())


# Attacks


def test_auc_points_from_the_forget_set_to_the_pool() -> None:
    """Above 0.5 means that D_f scores higher, as scikit-learn counts with D_f as the positives."""
    generator = seeded()
    forget, pool = torch.randn(80, generator=generator) + 0.5, torch.randn(120, generator=generator)
    estimate = attacks.auc(forget, pool)
    expected = roc_auc_score(np.r_[np.ones(80), np.zeros(120)], torch.cat([forget, pool]).numpy())
    assert 0.5 < estimate.value == pytest.approx(expected, abs=1e-12)
    assert attacks.auc(pool, forget).value == pytest.approx(1 - expected, abs=1e-12)
    assert attacks.two_sided_auc(pool, forget).value == pytest.approx(expected, abs=1e-12)


def test_update_leak_is_high_where_the_forget_set_alone_fell() -> None:
    """If D_f's scores fall by 1 and the pool's by 0, the leak is 1; if all fall alike it is 1/2."""
    generator = seeded()
    forget, pool = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (50, 60))
    assert attacks.update_leak((forget, pool), (forget - 1, pool)).value == 1.0
    assert attacks.update_leak((forget, pool), (forget + 1, pool)).value == 0.0
    assert attacks.update_leak((forget, pool), (forget, pool)).value == 0.5


def test_update_leak_is_the_auc_of_the_falls() -> None:
    """It equals scikit-learn's AUC of before − after."""
    generator = seeded(3)
    before, after = ([torch.randn(n, generator=generator, dtype=torch.float64) for n in (50, 60)] for _ in range(2))
    falls = torch.cat([b - a for b, a in zip(before, after, strict=True)])
    expected = roc_auc_score(np.r_[np.ones(50), np.zeros(60)], falls.numpy())
    leak = attacks.update_leak((before[0], before[1]), (after[0], after[1]))
    assert leak.value == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ImuError, match="same rows"):
        attacks.update_leak((before[0], before[1]), (after[0][:-1], after[1]))


def test_auc_change_is_after_minus_before() -> None:
    """A falling AUC is negative."""
    generator = seeded(4)
    forget, pool = torch.randn(90, generator=generator), torch.randn(90, generator=generator)
    change = attacks.auc_change((forget + 2, pool), (forget, pool))
    assert change.value == pytest.approx(attacks.auc(forget, pool).value - attacks.auc(forget + 2, pool).value)
    assert change.high is not None
    assert change.high < 0


@pytest.mark.parametrize("levels", [4, 10**9])
def test_ks_distance_is_scipys(levels: int) -> None:
    """With and without ties the distance is that of scipy's two-sample statistic."""
    generator = seeded(5)
    forget, pool = (torch.randint(levels, (n,), generator=generator).double() for n in (45, 70))
    assert attacks.ks_distance(forget, pool).value == pytest.approx(stats.ks_2samp(forget, pool).statistic, abs=1e-12)


def test_ks_distance_sees_a_spread_that_the_auc_does_not() -> None:
    """Scores of three times the spread have AUC near 0.5 and a distance whose interval excludes 0."""
    generator = seeded(6)
    forget, pool = 3 * torch.randn(2000, generator=generator), torch.randn(2000, generator=generator)
    distance = attacks.ks_distance(forget, pool)
    assert abs(attacks.auc(forget, pool).value - 0.5) < 0.03
    assert distance.low is not None
    assert distance.low > 0.1


def test_the_interval_of_the_ks_distance_covers() -> None:
    """Normal scores shifted by 1 have distance 0.383: 300 simulated intervals all hold it, for the bands are wide."""
    generator, truth = seeded(7), 2 * stats.norm.cdf(0.5) - 1
    held = 0
    for _ in range(300):
        distance = attacks.ks_distance(torch.randn(60, generator=generator) + 1, torch.randn(90, generator=generator))
        assert distance.low is not None
        assert distance.high is not None
        held += distance.low <= truth <= distance.high
    assert held >= 285


def best_tpr(forget: Tensor, pool: Tensor, fpr: float) -> float:
    """The highest point of scikit-learn's ROC curve at or left of ``fpr``."""
    truth = np.r_[np.ones(len(forget)), np.zeros(len(pool))]
    rates = roc_curve(truth, torch.cat([forget, pool]).numpy(), drop_intermediate=False)
    return float(rates[1][rates[0] <= fpr].max())


@pytest.mark.parametrize("n", [300, 700, 1234])
@pytest.mark.parametrize("levels", [50, 10**9])
def test_rates_at_a_low_fpr_are_those_of_the_roc_curve(n: int, levels: int) -> None:
    """Both tails equal scikit-learn's curve of the score and of its negative; the pool's share stays within 1 %."""
    generator = seeded(n)
    forget = torch.randint(levels, (400,), generator=generator).double() * 1.1
    pool = torch.randint(levels, (n,), generator=generator).double()
    rates = attacks.tpr_at_fpr(forget, pool)
    assert isinstance(rates, attacks.TailRates)
    assert rates.upper.value == best_tpr(forget, pool, 0.01)
    assert rates.lower.value == best_tpr(-forget, -pool, 0.01)
    assert max(rates.fpr_upper, rates.fpr_lower) <= 0.01
    assert rates.either.value == max(rates.upper.value, rates.lower.value)


def test_seven_percent_of_a_hundred_is_seven() -> None:
    """Rounding of rate times size neither costs nor grants a false positive."""
    pool = torch.arange(300.0)
    for allowed in (3, 21, 87, 171):
        rates = attacks.tpr_at_fpr(torch.full((300,), 1e6), pool, fpr=allowed / 300)
        assert isinstance(rates, attacks.TailRates)
        assert rates.fpr_upper == allowed / 300


def test_a_tail_of_a_small_set_is_not_measured() -> None:
    """Below 300 samples on either side the answer is a reason and no number."""
    few, many = torch.arange(299.0), torch.arange(5000.0)
    for sides in ((few, many), (many, few)):
        result = attacks.tpr_at_fpr(*sides)
        assert isinstance(result, NotMeasured)
        assert "300" in result.reason


def test_the_larger_tail_is_found_on_either_side() -> None:
    """Over-unlearned samples show in the lower tail, remembered ones in the upper, and both in ``either``."""
    pool = torch.randn(1000, generator=seeded(8))
    for forget, tail in ((pool + 10, "upper"), (pool - 10, "lower")):
        rates = attacks.tpr_at_fpr(forget, pool)
        assert isinstance(rates, attacks.TailRates)
        assert getattr(rates, tail).value == rates.either.value == 1.0
        assert rates.either.low is not None
        assert rates.either.low < getattr(rates, tail).low


@pytest.mark.parametrize("n", [99, 150, 1000])
def test_unseen_samples_are_over_unlearned_one_time_in_a_hundred(n: int) -> None:
    """Where D_f is like the pool the mean share over 400 draws is 1 %, whatever the pool's size."""
    generator = seeded(n)
    shares = [
        measured(
            attacks.over_unlearned(torch.randn(500, generator=generator), torch.randn(n, generator=generator))
        ).value
        for _ in range(400)
    ]
    assert np.mean(shares) == pytest.approx(0.01, abs=4 * np.std(shares) / 20)


def test_over_unlearning_counts_below_the_first_percentile() -> None:
    """With a pool of 0 to 998 the percentile is at rank 10, score 9; below it lie the forget samples that do."""
    pool = torch.arange(999.0).flip(0)
    share = measured(attacks.over_unlearned(torch.tensor([-5.0, 8.9, 9.0, 9.1, 2000.0]), pool))
    assert share.value == 2 / 5
    assert (share.low, share.high) == pytest.approx(stats.binomtest(2, 5).proportion_ci(0.95, "exact"))


def test_the_percentile_is_numpys_unbiased_one() -> None:
    """The threshold between ranks is numpy's Weibull percentile: a score just below counts, one just above does not."""
    pool = torch.randn(537, generator=seeded(9), dtype=torch.float64)
    at = float(np.percentile(pool.numpy(), 1, method="weibull"))
    assert measured(attacks.over_unlearned(torch.tensor([at - 1e-9], dtype=torch.float64), pool)).value == 1
    assert measured(attacks.over_unlearned(torch.tensor([at + 1e-9], dtype=torch.float64), pool)).value == 0


def test_a_pool_without_a_percentile_is_not_measured() -> None:
    """98 samples have no 1st percentile; 99 do."""
    forget = torch.zeros(5)
    assert attacks.over_unlearned(forget, torch.ones(98)) == NotMeasured(
        "needs 99 class-matched test samples, found 98"
    )
    assert measured(attacks.over_unlearned(forget, torch.ones(99))).value == 1


def test_chance_keeps_the_over_unlearned_share_within_its_range() -> None:
    """The share of exchangeable samples falls inside the stated range in at least 95 % of 500 simulations."""
    generator = seeded(10)
    low, high = attacks.over_unlearned_range(300, 999)
    inside = 0
    for _ in range(500):
        draw = torch.randn(1299, generator=generator)
        inside += low <= measured(attacks.over_unlearned(draw[:300], draw[300:])).value <= high
    assert 0.94 <= inside / 500 <= 0.995
    with pytest.raises(ImuError, match="quantile"):
        attacks.over_unlearned_range(300, 50)
