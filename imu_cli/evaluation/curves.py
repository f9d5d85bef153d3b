"""The curves that a report draws, as counts and rates: computed once at evaluation, for ``imu report`` needs no torch.

Nothing here names a sample: bins have round edges and hold counts only.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.evaluation.evidence import Evidence, matched_pool, phi
from imu_cli.records.evaluation import Curves, Histogram, RocCurve, Series, SplitName, When
from imu_cli.statistics.clustered import Clusters, share

BINS, ROC_POINTS = 48, 60
"""Most bins of a histogram and points of a curve."""
WHEN: tuple[When, ...] = ("before", "after")
FINEST = 0.01
"""Narrowest bin, in log-odds: finer ones would show single samples and tell nothing."""
WIDTHS = (1.0, 2.0, 5.0)

Confidences = Mapping[tuple[SplitName, When], Tensor]
"""φ (n,) of D_f and of class-matched test samples, before (where the original is known) and after."""


def of(e: Evidence) -> Curves | None:
    """The curves of everything that was measured; None where test lacks a class of D_f, so that nothing is matched."""
    try:
        rows = matched_pool(e)
    except ImuError:
        return None
    found: dict[tuple[SplitName, When], Tensor | None] = {}
    for when in WHEN:
        found["forget", when] = phi(e.forget, when)
        unseen = None if e.test is None else phi(e.test, when)
        found["test", when] = None if unseen is None or rows is None else unseen[rows]
    return gather({at: values for at, values in found.items() if values is not None}, e.forget.clusters)


def gather(confidences: Confidences, clusters: Clusters = None) -> Curves:
    """Histogram of every φ on common bins, and the ROC of D_f against test where both are there; ``clusters`` (n,) of D_f.

    Both tails of the model after are kept: high φ gives away what is remembered, low φ what was over-unlearned.
    """
    roc = []
    for when in WHEN:
        forget, pool = confidences.get(("forget", when)), confidences.get(("test", when))
        if forget is None or pool is None:
            continue
        roc.append(_roc(forget, pool, when, "remembered", clusters))
        if when == "after":
            roc.append(_roc(-forget, -pool, when, "over-unlearned", clusters))
    return Curves(confidence=histogram(confidences), roc=roc)


def _width(low: float, high: float) -> float:
    """The smallest of … 0.5, 1, 2, 5, 10 … that covers the range with at most ``BINS`` bins."""
    least = max((high - low) / (BINS - 1), FINEST)
    power = 10.0 ** math.floor(math.log10(least))
    return next((step * power for step in WIDTHS if step * power >= least), 10 * power)


def histogram(confidences: Confidences) -> Histogram:
    """Counts in bins of one width whose edges are multiples of it, over all samples given."""
    every = torch.cat([values.double().cpu() for values in confidences.values()])
    low, high = float(every.min()), float(every.max())
    width = _width(low, high)
    first, last = math.floor(low / width), math.floor(high / width) + 1
    series = []
    for (split, when), values in confidences.items():
        at = (values.double().cpu() / width).floor().long() - first
        counts = torch.bincount(at.clamp(0, last - first - 1), minlength=last - first)
        series.append(Series(split=split, when=when, counts=counts.tolist()))
    return Histogram(edges=[round(edge * width, 9) for edge in range(first, last + 1)], series=series)


def _roc(forget: Tensor, pool: Tensor, when: When, tail: str, clusters: Clusters) -> RocCurve:
    """Share of D_f above the thresholds that 1, … of the n pool samples pass, evenly in log n.

    Clopper-Pearson 95 % intervals point by point, each threshold taken as given, as in ``attacks.tpr_at_fpr``.
    """
    m = len(pool)
    ordered = pool.double().cpu().sort(descending=True).values
    scores = forget.double().cpu()
    ranks = {min(m, round(m ** (step / (ROC_POINTS - 1)))) for step in range(ROC_POINTS)}
    found: dict[float, tuple[float, float, float]] = {}
    for rank in sorted(ranks):
        threshold = float(ordered[rank]) if rank < m else -math.inf
        beyond = share(scores > threshold, clusters)
        assert beyond.low is not None
        assert beyond.high is not None
        passed = round(float((ordered > threshold).double().mean()), 6)
        found[passed] = (round(beyond.value, 6), round(beyond.low, 6), round(beyond.high, 6))
    found.pop(0.0, None)  # all of the pool's best tie: there is no such rate on a log axis
    rates, values = list(found), list(found.values())
    tpr, low, high = ([value[at] for value in values] for at in range(3))
    return RocCurve(when=when, tail=tail, fpr=rates, tpr=tpr, low=low, high=high)  # type: ignore[arg-type]
