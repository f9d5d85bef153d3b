"""Attacks on one model: can someone who holds samples tell those of D_f from samples that were never trained on?

Scores are one number a sample, higher for samples that look trained on. D_f is always compared with a *pool* of unseen
samples of the same classes (``class_matched``). Wherever a function takes ``forget`` and ``pool`` it may be given
retain samples in place of D_f: retain-against-test is the same attack on what stayed.
``clusters`` are those of D_f and of the pool, where samples come in clusters (``statistics.clustered``).
No result here is an ε, nor a statement about the best possible attack.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear.margins import margins
from imu_cli.linear.rows import Outputs, by_rows
from imu_cli.records.parts import Interval
from imu_cli.statistics import clustered
from imu_cli.statistics.clustered import Clusters, Sides
from imu_cli.statistics.intervals import (
    Estimate,
    NotMeasured,
    class_counts,
    finite_scores,
    require_classes,
    two_sided,
)

TAIL_SAMPLES = 300
"""Samples that D_f and the pool each need before a rate at 1 % is worth printing (evaluation.md, metric 7)."""


def logit_confidence(logits: Outputs, labels: Tensor) -> Tensor:
    """Logit-scaled confidence φ = z_y − logsumexp_{j≠y} z_j = log p_y/(1 − p_y) per row, (n,) float64.

    From logits, in float64: a float32 softmax is exactly 1 for margins above about 17 and ties the most memorised
    samples. Carlini et al., *Membership inference attacks from first principles* (2022), section IV.C.

    Args:
        logits: (n, c), c ≥ 2.
        labels: (n,), class ids below c.

    Raises:
        ImuError: one class, a label out of range, or a non-finite row.
    """
    return _each(logits, labels, lambda found, own: margins(found, own[:, 0]))


def modified_entropy(logits: Outputs, labels: Tensor) -> Tensor:
    """Modified entropy −(1−p_y) log p_y − Σ_{i≠y} p_i log(1−p_i) per row, (n,) float64; 0 for a sure, right answer.

    log(1−p_i) is log1p(−p_i), and for the largest p_i the logsumexp of the others, so that it stays finite.
    Song and Mittal, *Systematic evaluation of privacy risks* (USENIX Security 2021), equation 8.
    """

    def entropy(logits: Tensor, own: Tensor) -> Tensor:
        log_p, top = logits.log_softmax(1), logits.argmax(1, keepdim=True)
        rest = logits.scatter(1, top, -math.inf).logsumexp(1, keepdim=True) - logits.logsumexp(1, keepdim=True)
        log_not = torch.log1p(-log_p.exp()).scatter(1, top, rest)
        terms = log_p.exp() * log_not
        return -terms.scatter(1, own, log_not.gather(1, own).exp() * log_p.gather(1, own)).sum(1)

    return _each(logits, labels, entropy)


def modified_entropy_published(logits: Outputs, labels: Tensor) -> Tensor:
    """Modified entropy as the widely copied code computes it, (n,) float64, for comparison with papers only.

    −Σ_{k∈L} (1−p_k) log p_k − Σ_{k∉L} p_k log p_k with L the set of labels *of all rows*, and log p where log(1−p)
    belongs: permuting the labels does not change it. ``m_entropy`` in Unlearn-Sparse, evaluation/SVC_MIA.py
    (its log 1e-30 for p = 0 included).
    """
    _check(logits, labels)
    listed = torch.zeros(logits.shape[1], dtype=torch.bool, device=labels.device)
    listed[labels] = True

    def entropy(logits: Tensor, _: Tensor) -> Tensor:
        p = logits.softmax(1)
        return -(torch.where(listed, 1 - p, p) * torch.where(p > 0, p, 1e-30).log()).sum(1)

    return _each(logits, labels, entropy)


def class_matched(labels_forget: Tensor, labels_pool: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of the pool, drawn at random, whose classes stand in the proportions of D_f; sorted, (m,) int64.

    As large as the pool allows: with n_k of class k in D_f and N_k in the pool, t = min_k N_k/n_k and class k gets
    t n_k rows, rounded, at least one. The scarcest class is used up, so one rare class makes the pool small.

    Raises:
        ImuError: a class of D_f that the pool lacks; it is named with its number of forget samples.
    """
    require_classes(labels_forget, labels_pool)
    wanted = class_counts(labels_forget)
    rows = {k: torch.nonzero(labels_pool.cpu() == k)[:, 0] for k in wanted}
    scale = min(len(rows[k]) / n for k, n in wanted.items())
    drawn = []
    for k, n in wanted.items():
        take = max(1, round(scale * n))
        drawn.append(rows[k][torch.randperm(len(rows[k]), generator=generator)[:take]])
    return torch.cat(drawn).sort().values


def auc(forget: Tensor, pool: Tensor, confidence: float = 0.95, clusters: Sides | None = None) -> Estimate:
    """``mia.auc``, ``retain_mia.auc``: chance that a forget sample scores above an unseen one of its classes.

    Target 0.5: D_f looks unseen. Above: still remembered. Below: over-unlearned, which gives membership away just as
    well and is no success. Interval: DeLong (see ``intervals.delong``).
    """
    return clustered.auc(forget, pool, clusters, confidence)


def two_sided_auc(forget: Tensor, pool: Tensor, confidence: float = 0.95, clusters: Sides | None = None) -> Estimate:
    """``mia.auc_two_sided``: max(AUC, 1 − AUC), as an attacker may turn the score round; lower is better, 0.5 best."""
    return two_sided(auc(forget, pool, confidence, clusters))


def auc_change(before: Sides, after: Sides, confidence: float = 0.95, clusters: Sides | None = None) -> Estimate:
    """AUC after − AUC before on the same samples, each given as (forget, pool); paired DeLong interval."""
    return clustered.auc_difference(after, before, clusters, confidence)


def update_leak(before: Sides, after: Sides, confidence: float = 0.95, clusters: Sides | None = None) -> Estimate:
    """``update_leak.auc``: AUC of the fall of the score, before − after, each given as (forget, pool).

    What someone who holds both models sees. Target 0.5: D_f's scores fell no more than those of unseen samples of the
    same classes; 1: the update points at every forgotten sample.
    Chen et al., *When machine unlearning jeopardizes privacy* (CCS 2021), the difference as the feature.
    """
    (forget_before, pool_before), (forget_after, pool_after) = before, after
    if forget_before.shape != forget_after.shape or pool_before.shape != pool_after.shape:
        raise ImuError("update leak: before and after cover different samples; score the same rows with both models")
    falls = forget_before.double() - forget_after.double(), pool_before.double() - pool_after.double()
    return clustered.auc(*falls, clusters, confidence)


def ks_distance(forget: Tensor, pool: Tensor, confidence: float = 0.95, clusters: Sides | None = None) -> Estimate:
    """``mia.ks``: largest gap between the cumulative distributions, sup |F − G|, in [0, 1]; lower is better.

    It sees differences that leave the AUC at 0.5, such as a wider spread. The estimate lies above 0 even for equal
    distributions, by about √(1/m + 1/n). Interval: Dvoretzky-Kiefer-Wolfowitz bands of both samples added, with
    Massart's constant: at least ``confidence`` for any distributions, and wide; cut to [0, 1]. Of samples in clusters n is the
    Kish number of clusters, as if those of one stood at one place.
    """
    forget, pool = finite_scores(forget, "D_f scores"), finite_scores(pool, "pool scores")
    at = torch.cat([forget, pool])
    gap = (_cumulative(forget, at) - _cumulative(pool, at)).abs().max()
    sizes = [clustered.sure_n(of, len(side)) for side, of in zip((forget, pool), clusters or (None, None), strict=True)]
    band = sum(math.sqrt(math.log(4 / (1 - confidence)) / (2 * n)) for n in sizes)
    low, high = max(0.0, float(gap) - band), min(1.0, float(gap) + band)
    method = "Dvoretzky-Kiefer-Wolfowitz" + (f", {clustered.counted(clusters)}" if clusters else "")
    return Estimate(float(gap), low, high, len(forget), f"{method}, {100 * confidence:g} %")


@dataclass(frozen=True)
class TailRates:
    """True-positive rates at a low false-positive rate, in both tails of the score.

    ``upper``: share of D_f above the threshold (remembered); ``lower``: share below (over-unlearned). ``either`` is the
    larger of the two, its interval widened for having looked at both. ``fpr_upper`` and ``fpr_lower`` are the pool's
    shares beyond the thresholds, at most the rate asked for.
    """

    upper: Estimate
    lower: Estimate
    either: Estimate
    fpr_upper: float
    fpr_lower: float


def tpr_at_fpr(
    forget: Tensor, pool: Tensor, fpr: float = 0.01, confidence: float = 0.95, clusters: Sides | None = None
) -> TailRates | NotMeasured:
    """``mia.tpr_at_1pct_fpr``: share of D_f beyond the score that at most ``fpr`` of the pool passes, in both tails.

    Target: ``fpr`` itself. Clopper-Pearson intervals, the threshold taken as given. Not measured below 300 samples a
    side, where a rate of 1 % rests on fewer than three of them. Carlini et al. (2022), section III.
    """
    if min(len(forget), len(pool)) < TAIL_SAMPLES:
        return NotMeasured(
            f"needs {TAIL_SAMPLES} forget and {TAIL_SAMPLES} class-matched test samples, found {len(forget)} and "
            f"{len(pool)}"
        )
    forget, pool = finite_scores(forget, "D_f scores"), finite_scores(pool, "pool scores")
    hits_upper, fpr_upper = _beyond(forget, pool, fpr)
    hits_lower, fpr_lower = _beyond(-forget, -pool, fpr)
    of = None if clusters is None else clusters[0]
    return TailRates(
        upper=clustered.share(hits_upper, of, confidence),
        lower=clustered.share(hits_lower, of, confidence),
        either=_larger(hits_upper, hits_lower, confidence, of),
        fpr_upper=fpr_upper,
        fpr_lower=fpr_lower,
    )


def over_unlearned(
    forget: Tensor, pool: Tensor, share: float = 0.01, confidence: float = 0.95, clusters: Sides | None = None
) -> Estimate | NotMeasured:
    """``forget.over_unlearned``: share of D_f that scores below the 1st percentile of class-matched unseen samples.

    Expected ``share`` (1 %) where D_f is like unseen data, whatever the size of the pool: the percentile is at rank
    share (N + 1), so a pool below 1/share − 1 = 99 samples has none. More is damage. Clopper-Pearson interval with the
    threshold taken as given; ``over_unlearned_range`` says what chance alone shows, the threshold's included.
    """
    if share * (len(pool) + 1) < 1:
        return NotMeasured(f"needs {math.ceil(1 / share) - 1} class-matched test samples, found {len(pool)}")
    forget, pool = finite_scores(forget, "D_f scores"), finite_scores(pool, "pool scores")
    below = forget < _quantile(pool, share)
    return clustered.share(below, None if clusters is None else clusters[0], confidence)


def _quantile(pool: Tensor, share: float) -> Tensor:
    """The score at rank share (N + 1) of the pool's N."""
    rank = share * (len(pool) + 1) - 1
    first = math.floor(rank)
    ordered = pool.sort().values
    return torch.lerp(ordered[first], ordered[min(first + 1, len(pool) - 1)], rank - first)


def over_unlearned_chance(
    forget: Tensor, pool: Tensor, share: float = 0.01, clusters: Sides | None = None
) -> Interval | tuple[float, float] | None:
    """``over_unlearned_range`` of these samples, at their effective numbers where they come in clusters; None where too few."""
    if clusters is None:
        return over_unlearned_range(len(forget), len(pool), share)
    sizes = [len(forget), len(pool)]
    below = pool.double() < _quantile(pool.double(), share)
    sizes = [round(clustered.expected_n(below, clusters[1], of, n)) for of, n in zip(clusters, sizes, strict=True)]
    if share * (sizes[1] + 1) < 1:
        return None
    low, high = over_unlearned_range(sizes[0], sizes[1], share)
    return Interval(low=low, high=high, method=clustered.by("central 95 %", clusters[0]))


def over_unlearned_range(
    n_forget: int, n_pool: int, share: float = 0.01, confidence: float = 0.95
) -> tuple[float, float]:
    """Central range of the over-unlearned share when D_f is exactly like the pool's samples; outside it is evidence.

    The number of D_f below the pool's r-th smallest score is beta-binomial(n_forget, r, n_pool + 1 − r) whatever the
    distribution, with r = share (n_pool + 1).
    """
    from scipy import stats

    rank = share * (n_pool + 1)
    if n_forget < 1 or not 1 <= rank <= n_pool:
        raise ImuError(f"over-unlearned range: {n_forget} against {n_pool} samples have no {share:.3g} quantile")
    chance = stats.betabinom(n_forget, rank, n_pool + 1 - rank)
    return float(chance.ppf((1 - confidence) / 2)) / n_forget, float(chance.ppf((1 + confidence) / 2)) / n_forget


def _check(logits: Outputs, labels: Tensor) -> None:
    """The error that says what cannot be scored: another shape, one class, a label out of range."""
    if len(logits.shape) != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        raise ImuError(
            f"attack scores: logits {tuple(logits.shape)}, labels {tuple(labels.shape)}; needs (n, c ≥ 2) and (n,)"
        )
    bad = torch.nonzero((labels < 0) | (labels >= logits.shape[1]))
    if len(bad):
        _refuse(logits, labels, int(bad[0]))


def _refuse(logits: Outputs, labels: Tensor, row: int) -> NoReturn:
    found = logits[row : row + 1][0, :3].tolist()
    raise ImuError(
        f"attack scores: row {row} has label {int(labels[row])} and logits {found}…; "
        f"logits must be finite and labels below {logits.shape[1]}"
    )


def _each(logits: Outputs, labels: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A score of each row (n,) from float64 logits (k, c) and labels (k, 1), block by block."""
    _check(logits, labels)

    def scored(found: Tensor, rows: slice) -> Tensor:
        bad = torch.nonzero(~torch.isfinite(found).all(1))
        if len(bad):
            _refuse(logits, labels, rows.start + int(bad[0]))
        return score(found.detach().double(), labels[rows, None])

    return by_rows(logits, scored)


def _cumulative(sample: Tensor, at: Tensor) -> Tensor:
    return torch.searchsorted(sample.sort().values, at, right=True).double() / len(sample)


def _beyond(forget: Tensor, pool: Tensor, fpr: float) -> tuple[Tensor, float]:
    """Which of D_f (n,), and what share of the pool, lie above the lowest threshold that the pool passes at ``fpr``."""
    # 0.07 · 100 is 7.000000000000001 and 0.29 · 100 is 28.999999999999996: a false positive must not hang on that.
    allowed = math.floor(fpr * len(pool) + 1e-9)
    threshold = pool.sort(descending=True).values[allowed]
    return forget > threshold, int((pool > threshold).sum()) / len(pool)


def _larger(upper: Tensor, lower: Tensor, confidence: float, clusters: Clusters) -> Estimate:
    """The larger of two shares; each interval at half the error, so both hold at once and so does their maximum."""
    tails = [clustered.share(hits, clusters, (1 + confidence) / 2) for hits in (upper, lower)]
    low, high = max(t.low or 0.0 for t in tails), max(t.high or 0.0 for t in tails)
    exact = "Clopper-Pearson" if clusters is None else clustered.by("Clopper-Pearson", clusters)
    return Estimate(max(t.value for t in tails), low, high, len(upper), f"larger tail, {exact}, {100 * confidence:g} %")
