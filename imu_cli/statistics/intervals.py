"""Intervals: how far a measured share, paired difference or AUC may lie from the truth.

scipy is imported in the functions that need it: it takes longer than all else that ``imu unlearn`` does on a small model.
Everything here is a function of counts or of one-dimensional score tensors. ``confidence`` is the two-sided level
(0.95 by default); its excess goes half to each side. Coverage is tested by enumeration and simulation in
``tests/statistics/test_intervals.py``. The checks of scores and classes that attacks and metrics share stand at the end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli.errors import ImuError

# With fewer overlapping samples than this on a side, DeLong's variance is a guess and a binomial bound joins in.
FEW_OVERLAPS = 5
SHOWN_CLASSES = 10
"""Classes that a message names."""


@dataclass(frozen=True)
class Estimate:
    """A number, the interval around it, and how both were got.

    ``low`` and ``high`` are None for a census: every member was counted, so there is nothing to generalise to.
    ``n`` counts the samples measured (of an AUC: the positives; ``method`` names both sides).
    """

    value: float
    low: float | None
    high: float | None
    n: int
    method: str


@dataclass(frozen=True)
class NotMeasured:
    """Why a metric has no number; printed as ``not measured (reason)``, never as a blank or 0."""

    reason: str


def census(value: float, n: int) -> Estimate:
    """A value over all ``n`` members of a set, which therefore needs no interval."""
    if n < 1:
        raise ImuError("census: the set has no members; give at least one sample")
    return Estimate(value, None, None, n, "census")


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Share ``successes / n`` with its exact binomial interval.

    Coverage is at least ``confidence`` for every true share; 0 of 50 gives [0, 0.071].
    Clopper and Pearson, Biometrika 26 (1934).
    """
    _check_counts(successes, n)
    low, high = beta_limits(successes, n - successes, confidence)
    return Estimate(successes / n, low, high, n, named("Clopper-Pearson", confidence))


def korn_graubard(value: float, effective_n: float, n: int, confidence: float = 0.95) -> Estimate:
    """A weighted share with the Clopper-Pearson interval at its effective sample size v(1 − v)/Var(v).

    ``effective_n`` is how many samples of equal weight would vary as much.
    Korn and Graubard, Survey Methodology 24 (1998).
    """
    if not 0 <= value <= 1 or not effective_n > 0:
        raise ImuError(f"weighted share: value {value}, effective n {effective_n}; needs 0 to 1 and more than 0")
    low, high = beta_limits(effective_n * value, effective_n * (1 - value), confidence)
    return Estimate(value, low, high, n, named("Clopper-Pearson at the effective n", confidence))


def paired_difference(before_only: int, after_only: int, n: int, confidence: float = 0.95) -> Estimate:
    """Drop (before_only − after_only)/n of paired yes-no outcomes, with Tango's score interval.

    ``before_only`` samples were right before and wrong after, ``after_only`` the other way round, of ``n`` in all. The
    interval holds every Δ with (b − c − nΔ)² ≤ z² n (2q + Δ(1 − Δ)), q the likeliest share of ``after_only`` given Δ.
    Tango, Statistics in Medicine 17 (1998).
    """
    for count in (before_only, after_only, before_only + after_only):
        _check_counts(count, n)
    low, high = tango_limits(before_only, after_only, n, confidence)
    return Estimate((before_only - after_only) / n, low, high, n, named("Tango score", confidence))


def mean_difference(differences: Tensor, confidence: float = 0.95) -> Estimate:
    """Mean of whole-numbered differences (n,) of outcomes on the same samples, such as a difference of two gaps, −2 to 2.

    Normal limits with two samples added, of which half a one is +1 and half a one −1, as Agresti and Min do for paired
    proportions (Statistics in Medicine 24, 2005): where none differs, some may yet. Within −2 to 2.
    """
    n = len(differences)
    if n < 1:
        raise ImuError("difference of gaps: no samples; give at least one")
    total, squares = int(differences.sum()), int(differences.square().sum())
    limits = agresti_min_limits(total, squares, n, confidence)
    return Estimate(total / n, *limits, n, named("paired, Agresti-Min", confidence))


def agresti_min_limits(total: float, squares: float, n: float, confidence: float) -> tuple[float, float]:
    """Limits of the mean of n differences from their sum and that of their squares (``mean_difference``)."""
    centre = total / (n + 2)
    half = normal_quantile(confidence) * math.sqrt(((squares + 1) / (n + 2) - centre * centre) / (n + 2))
    return max(-2.0, min(total / n, centre - half)), min(2.0, max(total / n, centre + half))


def flips(before: Tensor, after: Tensor) -> tuple[int, int]:
    """Rows right before and wrong after, and rows wrong before and right after, from (n,) bool of each."""
    if before.shape != after.shape:
        raise ImuError(f"paired accuracy: {len(before)} rows before, {len(after)} after; predict the same rows twice")
    return int((before & ~after).sum()), int((~before & after).sum())


def mcnemar(before_only: int, after_only: int) -> float:
    """Exact two-sided p-value that flips are as likely one way as the other: 2 P(X ≤ min), X ~ Bin(b + c, 1/2), ≤ 1."""
    from scipy import special

    flips = before_only + after_only
    if min(before_only, after_only) < 0:
        raise ImuError(f"mcnemar: {before_only} and {after_only} flips; counts start at 0")
    return min(1.0, 2 * float(special.bdtr(min(before_only, after_only), flips, 0.5)))


def delong(positive: Tensor, negative: Tensor, confidence: float = 0.95) -> Estimate:
    """AUC = P(positive > negative) + P(equal)/2, with DeLong's interval on the logit scale.

    Var = var(V10)/m + var(V01)/n, V10 a positive's share of negatives below it, V01 a negative's share of positives
    above it (ties count half); limits logit A ± t √Var/(A(1 − A)). t has 2 Var²/Var(Var) degrees of freedom, since near
    0 and 1 few samples carry the variance. Where the samples are separated, or fewer than five of a side overlap with
    the other, the binomial bound of k = min(m, n) disjoint pairs joins in: all k pairs ordered proves only
    AUC ≥ (α/2)^(1/k). With one sample on a side the interval is [0, 1].
    DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988); Sun and Xu 2014 for O(n log n).

    Args:
        positive: scores, shape (m,), of the samples that should score high (members, D_f).
        negative: scores, shape (n,).
        confidence: two-sided level.

    Raises:
        ImuError: an empty side or a non-finite score, with its row.
    """
    value, v10, v01 = placements(positive, negative)
    m, n = len(v10), len(v01)
    low, high = auc_limits(value, _spread(v10, v01), confidence)
    return Estimate(value, low, high, m, named(f"DeLong, logit scale, {m} against {n}", confidence))


def delong_difference(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], confidence: float = 0.95
) -> Estimate:
    """AUC(first) − AUC(second) of two scores on the same samples, for instance after and before unlearning.

    Each argument is (positive, negative), rows in the same order. The limits combine those of ``delong``, with the
    correlation ρ of the two AUCs: d − √(a² + b² − 2ρab), a = A₁ − low₁, b = high₂ − A₂ (MOVER; Zou, Psychological
    Methods 12, 2007), so they stay sensible where an AUC is near 1 and equal the usual ones elsewhere.
    """
    a, a10, a01 = placements(*first)
    b, b10, b01 = placements(*second)
    if a10.shape != b10.shape or a01.shape != b01.shape:
        raise ImuError("paired AUCs: the two scores cover different samples; score the same rows twice")
    rho = _auc_correlation((a10, a01), (b10, b01))
    limits = [auc_limits(value, _spread(*sides), confidence) for value, sides in ((a, (a10, a01)), (b, (b10, b01)))]
    return Estimate(a - b, *mover(a, b, limits, rho), len(a10), named("paired DeLong, MOVER", confidence))


def two_sided(estimate: Estimate) -> Estimate:
    """An AUC whichever way the attacker turns the score: max(A, 1 − A); an interval that straddles 0.5 starts there."""
    value = max(estimate.value, 1 - estimate.value)
    if estimate.low is None or estimate.high is None:
        return Estimate(value, None, None, estimate.n, f"{estimate.method}, two-sided")
    low = max(0.5, estimate.low, 1 - estimate.high)
    high = max(estimate.high, 1 - estimate.low)
    return Estimate(value, low, high, estimate.n, f"{estimate.method}, two-sided")


def finite_scores(scores: Tensor, where: str) -> Tensor:
    """``scores`` as float64, shape (n,); an empty, misshapen or non-finite input is refused with the row."""
    if scores.ndim != 1 or len(scores) == 0:
        raise ImuError(f"{where}: found shape {tuple(scores.shape)}; give at least one score, in one dimension")
    bad = torch.nonzero(~torch.isfinite(scores))
    if len(bad):
        row = int(bad[0])
        raise ImuError(f"{where}: row {row} is {float(scores[row])}; find out why the model's output is not finite")
    return scores.detach().double().contiguous()


def class_counts(labels: Tensor) -> dict[int, int]:
    """How many rows each class that occurs in ``labels`` has, by class id."""
    return {k: n for k, n in enumerate(torch.bincount(labels.cpu()).tolist()) if n}


def require_classes(labels_forget: Tensor, labels_pool: Tensor) -> None:
    """Refuse a pool of unseen samples that lacks a class of D_f.

    Raises:
        ImuError: naming each missing class with its number of forget samples.
    """
    if len(labels_forget) == 0:
        raise ImuError("class matching: the forget set is empty; give at least one sample")
    found = class_counts(labels_pool)
    missing = [f"{k} ({n} in D_f)" for k, n in class_counts(labels_forget).items() if k not in found]
    if missing:
        shown = ", ".join(missing[:SHOWN_CLASSES]) + f" and {len(missing) - SHOWN_CLASSES} more" * (
            len(missing) > SHOWN_CLASSES
        )
        raise ImuError(
            f"class matching: no unseen sample of class {shown}; give --test data with every class of the forget set"
        )


def _check_counts(successes: int, n: int) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise ImuError(f"share: {successes} of {n}; needs at least one sample and no more hits than samples")


def tail_of(confidence: float) -> float:
    """Probability beyond each end.

    Raises:
        ImuError: a level that is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ImuError(f"interval: confidence {confidence} is not between 0 and 1; 0.95 is usual")
    return (1 - confidence) / 2


def normal_quantile(confidence: float) -> float:
    """Standard deviations to each end: 1.96 at 0.95."""
    from scipy import special

    return -float(special.ndtri(tail_of(confidence)))


def named(method: str, confidence: float) -> str:
    """A method with its level in percent."""
    return f"{method}, {100 * confidence:g} %"


def beta_limits(successes: float, failures: float, confidence: float) -> tuple[float, float]:
    """Clopper-Pearson limits; counts may be parts of samples, as at an effective n."""
    from scipy import special

    tail = tail_of(confidence)
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, failures + 1, tail))
    high = 1.0 if failures == 0 else float(special.betaincinv(successes + 1, failures, 1 - tail))
    return low, high


def tango_limits(b: float, c: float, n: float, confidence: float) -> tuple[float, float]:
    """Both limits of the drop (b − c)/n; counts may be parts of samples, as at an effective n."""
    z2 = normal_quantile(confidence) ** 2
    return -_tango_limit(c, b, n, z2), _tango_limit(b, c, n, z2)


def _tango_limit(b: float, c: float, n: float, z2: float) -> float:
    """The largest Δ that the score test accepts, by bisection between the estimate and 1."""
    accepted, refused = (b - c) / n, 1.0
    while True:
        middle = (accepted + refused) / 2
        if middle in (accepted, refused):
            return accepted
        if _tango_accepts(middle, b, c, n, z2):
            accepted = middle
        else:
            refused = middle


def _tango_accepts(delta: float, b: float, c: float, n: float, z2: float) -> bool:
    """Whether b and c flips of n are compatible with a true drop of ``delta``."""
    linear = -b - c + (2 * n - b + c) * delta
    # Rounding alone can take the discriminant, a sum of squares, below 0.
    root = math.sqrt(max(linear * linear + 8 * n * c * delta * (1 - delta), 0.0))
    # Two forms of one root: the subtraction-free one keeps its digits.
    share = (root - linear) / (4 * n) if linear <= 0 else 2 * c * delta * (1 - delta) / (root + linear)
    return (b - c - n * delta) ** 2 <= z2 * n * (2 * share + delta * (1 - delta))


def placements(positive: Tensor, negative: Tensor) -> tuple[float, Tensor, Tensor]:
    """The AUC, each positive's share of negatives below it (m,), each negative's share of positives above it (n,)."""
    positive, negative = finite_scores(positive, "positive scores"), finite_scores(negative, "negative scores")
    below = _below_or_half(positive, negative)
    above = 2 * len(positive) - _below_or_half(negative, positive)
    # Integers until here, so that AUC(a, b) and AUC(b, a) add up to 1 and separated samples give exactly 1.
    value = int(below.sum()) / (2 * len(positive) * len(negative))
    return value, below.double() / (2 * len(negative)), above.double() / (2 * len(positive))


def _below_or_half(scores: Tensor, others: Tensor) -> Tensor:
    """Twice the number of ``others`` below each score, ties counted half, as integers."""
    ordered = others.sort().values
    return torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True)


@dataclass(frozen=True)
class Spread:
    """What the limits of an AUC rest on.

    ``variance`` of the AUC, its ``degrees`` of freedom, ``pairs``: independent ones that there are, ``above`` and ``below``: how many
    of the scarcer side overlap with the other, of those that should lie above it, and if they were to lie below.
    """

    variance: float
    degrees: float
    pairs: int
    above: int
    below: int


def _spread(v10: Tensor, v01: Tensor) -> Spread:
    """Of samples that are independent of each other; of fewer than two on a side nothing but that is known."""
    pairs = min(len(v10), len(v01))
    if pairs < 2:
        return Spread(0.0, 0.0, pairs, 0, 0)
    variance = float(v10.var() / len(v10) + v01.var() / len(v01))
    spread = sum(variance_of_variance(v) / len(v) ** 2 for v in (v10, v01))
    return Spread(variance, degrees_of(variance, spread), pairs, _overlaps(1 - v10, 1 - v01), _overlaps(v10, v01))


def auc_limits(value: float, known: Spread, confidence: float) -> tuple[float, float]:
    """The limits on the logit scale, with the bound of disjoint pairs where few samples overlap (``delong``)."""
    from scipy import special

    if known.pairs < 2:
        return 0.0, 1.0
    slack = 1 - tail_of(confidence) ** (1 / known.pairs)
    if known.variance == 0:
        # Only 0, 1/2 (all tied) and 1 have none; a share of ``slack`` of pairs may yet be otherwise.
        return value * (1 - slack), value + (1 - value) * slack
    logit = math.log(value / (1 - value))
    half = _t_quantile(known.degrees, confidence) * math.sqrt(known.variance) / (value * (1 - value))
    low, high = float(special.expit(logit - half)), float(special.expit(logit + half))
    if value > 0.5 and known.above < FEW_OVERLAPS:
        low = min(low, 1 - slack)
    if value < 0.5 and known.below < FEW_OVERLAPS:
        high = max(high, slack)
    return low, high


def _overlaps(v10: Tensor, v01: Tensor) -> int:
    return min(int((v10 > 0).sum()), int((v01 > 0).sum()))


def degrees_of(variance: float, spread: float) -> float:
    """Degrees of freedom 2 Var²/Var(Var) of a variance, ``spread`` Var(Var) (Satterthwaite, with the samples' own kurtosis)."""
    # Two-valued placements have no spread to speak of: the normal quantile. Below 1 degree t has no use.
    return max(2 * variance**2 / spread, 1.0) if spread > 0 else math.inf


def _t_quantile(degrees: float, confidence: float) -> float:
    from scipy import special

    if math.isinf(degrees):
        return normal_quantile(confidence)
    return -float(special.stdtrit(degrees, tail_of(confidence)))


def variance_of_variance(values: Tensor) -> float:
    """Of the variance of the values (n,), by their own fourth moment."""
    fourth = float(((values - values.mean()) ** 4).mean())
    return (fourth - float(values.var()) ** 2) / len(values)


def _auc_correlation(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    covariance = scale_first = scale_second = 0.0
    for a, b in zip(first, second, strict=True):
        if len(a) < 2:
            return 0.0
        covariance += float(((a - a.mean()) * (b - b.mean())).sum()) / (len(a) - 1) / len(a)
        scale_first += float(a.var()) / len(a)
        scale_second += float(b.var()) / len(b)
    if scale_first * scale_second == 0:
        return 0.0
    return covariance / math.sqrt(scale_first * scale_second)


def mover(a: float, b: float, limits: Sequence[tuple[float, float]], rho: float) -> tuple[float, float]:
    """Limits of a − b from the limits of each and the correlation of the two (``delong_difference``)."""
    (low_a, high_a), (low_b, high_b) = limits
    return a - b - _correlated_sum(a - low_a, high_b - b, rho), a - b + _correlated_sum(high_a - a, b - low_b, rho)


def _correlated_sum(a: float, b: float, rho: float) -> float:
    """√(a² + b² − 2ρab), written so that rounding of ρ = 1 cannot make it imaginary."""
    return math.sqrt((a - b) ** 2 + 2 * max(1 - rho, 0.0) * a * b)
