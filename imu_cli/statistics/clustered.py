"""Samples that come in clusters, as words do in sentences: those of one cluster are not independent of each other.

Every function takes ``clusters`` beside its samples: a number for each that is the same within a cluster, in any split; None where
samples stand for themselves. Draws do not part a cluster, and intervals go by clusters; without, they are those of ``intervals``. Here, and
nowhere else, is chosen between the two. Values are the same either way; n counts samples; the method names the clusters.

Shares and differences go by the *effective n*: independent samples that would vary as much. It is n over the design effect, the variance
of the linearised mean summed by cluster (as the jackknife has it) over that of the samples one by one (Kish; Rao and Scott, Biometrics
48, 1992), times the squared ratio of Student's quantiles at the degrees of freedom of n samples and of the clusters (Korn and Graubard,
Survey Methodology 24, 1998). It lies between the Kish number of clusters (Σ m)²/Σ m², those of m samples that are all alike, and n. The
exact or score interval of independent samples is taken at that n. How errors keep together is not seen from a few of them, so ``UNSEEN``
of a cluster of nothing else is added to both variances: where there are none, a cluster counts as one sample. With one sample a
cluster the interval is that of independent samples.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.statistics import intervals
from imu_cli.statistics.intervals import Estimate, Spread, named

UNSEEN = 0.1
"""Part of a cluster that is all wrong where the others are right, which is taken to be there unseen. Of 30 sentences of 13 words, 98 %
right, that vary much (intra-class correlation 0.4), the interval holds the truth in 84 % of draws without, in 99 % with it."""
WHAT = "sentences"

Clusters = Tensor | None
Sides = tuple[Tensor, Tensor]


def some(clusters: Clusters, rows: Tensor | slice) -> Clusters:
    """The clusters of some rows, by their numbers, a mask or a slice."""
    return None if clusters is None else clusters[rows]


def apart(clusters: Clusters, rows: Tensor, others: Tensor) -> Tensor:
    """Which of some rows (k,) share no cluster with any of ``others``; all of them where samples stand for themselves."""
    if clusters is None:
        return torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    return ~torch.isin(clusters.cpu()[rows.cpu()], clusters.cpu()[others.cpu()]).to(rows.device)


def mixed(n: int, clusters: Clusters, generator: torch.Generator) -> Tensor:
    """The numbers of n samples in random order (n,), those of a cluster one after the other: the first few are of few clusters."""
    order = torch.randperm(n, generator=generator)
    if clusters is None:
        return order
    place = clusters.cpu().unique(return_inverse=True)[1]
    rank = torch.randperm(len(place.unique()), generator=generator)
    return order[rank[place[order]].argsort(stable=True)]


def parted(n: int, clusters: Clusters, generator: torch.Generator) -> Sides:
    """Two random halves of the numbers of n samples, none of which has a cluster in common with the other."""
    order, half = mixed(n, clusters, generator), n // 2
    if clusters is not None and n:
        ends = clusters.cpu()[order].unique_consecutive(return_counts=True)[1].cumsum(0)
        half = int(ends[(ends - n / 2).abs()[:-1].argmin()]) if len(ends) > 1 else n
    return order[:half], order[half:]


def share(hits: Tensor, clusters: Clusters, confidence: float = 0.95) -> Estimate:
    """Share of true entries of a (n,) bool tensor: Clopper-Pearson, at the effective n where there are clusters (n,)."""
    found = intervals.clopper_pearson(int(hits.sum()), len(hits), confidence)
    if clusters is None:
        return found
    part = effective(hits.cpu().double() - found.value, clusters, confidence)
    n = part * len(hits)
    low, high = intervals.beta_limits(n * found.value, n * (1 - found.value), confidence)
    return Estimate(found.value, low, high, found.n, named(by("Clopper-Pearson", clusters), confidence))


def weighted_share(
    value: float, size: float, residuals: Tensor, weights: Tensor, clusters: Clusters, confidence: float = 0.95
) -> Estimate:
    """A weighted share with the interval of ``intervals.korn_graubard``.

    Args:
        value: Σ weights · outcomes.
        size: its effective n were the samples independent.
        residuals: each outcome less what is expected of it (n,).
        weights: of each sample (n,).
        clusters: (n,).
        confidence: two-sided level.
    """
    n = len(residuals)
    if clusters is None:
        return intervals.korn_graubard(value, size, n, confidence)
    part = effective(residuals, clusters, confidence, weights)
    found = intervals.korn_graubard(value, part * size, n, confidence)
    return Estimate(value, found.low, found.high, n, named(by("Clopper-Pearson", clusters), confidence))


def paired_difference(before: Tensor, after: Tensor, clusters: Clusters, confidence: float = 0.95) -> Estimate:
    """Fall of a share from ``before`` to ``after``, (n,) bool of the same samples: Tango's score interval, at the effective n."""
    lost, won = intervals.flips(before, after)
    found = intervals.paired_difference(lost, won, len(before), confidence)
    if clusters is None:
        return found
    part = effective(_drops(before, after) - found.value, clusters, confidence)
    low, high = intervals.tango_limits(part * lost, part * won, part * len(before), confidence)
    low, high = min(low, found.value), max(high, found.value)  # to the last digit the estimate at that n is another
    return Estimate(found.value, low, high, found.n, named(by("Tango score", clusters), confidence))


def mean_difference(differences: Tensor, clusters: Clusters, confidence: float = 0.95) -> Estimate:
    """Mean of whole-numbered differences (n,), −2 to 2, with the limits of ``intervals.mean_difference`` at the effective n."""
    found = intervals.mean_difference(differences, confidence)
    if clusters is None:
        return found
    part = effective(differences.cpu().double() - found.value, clusters, confidence)
    low, high = intervals.agresti_min_limits(
        part * int(differences.sum()), part * int(differences.square().sum()), part * found.n, confidence
    )
    return Estimate(found.value, low, high, found.n, named(by("paired, Agresti-Min", clusters), confidence))


def flips_told(before: Tensor, after: Tensor, clusters: Clusters) -> str:
    """How many samples flipped each way, and McNemar's p-value, in words; at the effective number of flips where there are clusters."""
    from scipy import special

    lost, won = intervals.flips(before, after)
    told = f"{lost} newly wrong, {won} newly right, "
    if clusters is None:
        return f"{told}exact McNemar p = {intervals.mcnemar(lost, won):.2g}"
    drops = _drops(before, after)
    part = effective(drops - drops.mean(), clusters)
    few, many = part * min(lost, won), part * max(lost, won)
    p = min(1.0, 2 * float(special.betainc(many, few + 1, 0.5))) if many else 1.0
    return f"{told}McNemar at the effective n p = {p:.2g}"


def sure_n(clusters: Clusters, n: int) -> float:
    """Of n samples as many as are independent whatever is measured: the Kish number of clusters, n itself without."""
    return n if clusters is None else float(_alike(sums(torch.ones(n, dtype=torch.float64), clusters)))


def expected_n(hits: Tensor, clusters: Clusters, others: Clusters, n: int) -> float:
    """Effective size of n other samples, in clusters of their own, whose outcomes keep together as ``hits`` (m,) bool do.

    By the intra-class correlation r that the design effect 1 + (m − 1) r of ``hits`` shows, m the Kish size of a cluster.
    """
    if clusters is None or others is None:
        return n
    hit = hits.cpu().double()
    effect, alone = _effect(hit - hit.mean(), torch.ones_like(hit), clusters), len(hit) / sure_n(clusters, len(hit))
    alike = min(max((effect - 1) / (alone - 1), 0.0), 1.0) if alone > 1 else 1.0
    return n / (1 + (n / sure_n(others, n) - 1) * alike)


# --- The effective n


def effective(residuals: Tensor, clusters: Tensor, confidence: float = 0.95, weights: Tensor | None = None) -> float:
    """The effective n over n.

    Args:
        residuals: each outcome less what is expected of it (n,), outcomes of 0 to 1.
        clusters: (n,).
        confidence: two-sided level.
        weights: of each sample in the mean (n,), up to a factor; all the same where None.
    """
    from scipy import special

    n = len(residuals)
    if clusters.shape != residuals.shape:
        raise ImuError(f"clusters: {len(clusters)} of {n} samples; each sample has one")
    weights = torch.ones(n, dtype=torch.float64) if weights is None else weights.cpu().double()
    many, least = len(clusters.unique()), _alike(sums(weights, clusters)) / _alike(weights)
    part = 1 / _effect(residuals.cpu().double(), weights, clusters)
    tail = intervals.tail_of(confidence)
    if many < 2:
        return least
    part *= (float(special.stdtrit(n - 1, tail)) / float(special.stdtrit(many - 1, tail))) ** 2
    return max(least, min(part, 1.0))


def _effect(residuals: Tensor, weights: Tensor, clusters: Tensor) -> float:
    """Variance of Σ weights · residuals by clusters over that of independent samples, with what is unseen in both."""
    n, many = len(residuals), len(clusters.unique())
    terms = weights * residuals
    alike = _alike(weights) / _alike(sums(weights, clusters))
    unseen = UNSEEN * alike * float(weights.square().mean())
    one = n / max(n - 1, 1) * float(_deleted(terms, weights).square().sum())
    together = many / max(many - 1, 1) * float(_deleted(sums(terms, clusters), sums(weights, clusters)).square().sum())
    return (together + unseen * alike) / (one + unseen)


def _deleted(residuals: Tensor, sizes: Tensor) -> Tensor:
    """Sums of residuals of clusters (k,), larger where a cluster has more than its part of all samples: as the jackknife has them.

    A cluster draws the mean towards itself, so that its residuals are too small; of equal sizes the sums are as they were.
    """
    there = sizes > 0
    many = int(there.sum())
    apart = (1 - sizes / sizes.sum()).clamp_min(1e-9)
    return torch.where(there, residuals * ((many - 1) / many) / apart, 0.0)


def sums(values: Tensor, clusters: Tensor) -> Tensor:
    """Sum of each cluster (k,) of values (n,)."""
    place = clusters.cpu().unique(return_inverse=True)[1]
    return torch.zeros(int(place.max()) + 1, dtype=torch.float64).index_add_(0, place, values)


def _alike(weights: Tensor) -> float:
    """(Σ w)²/Σ w²: how many of equal weight there would be."""
    return float(weights.sum()) ** 2 / float(weights.square().sum())


def _drops(before: Tensor, after: Tensor) -> Tensor:
    return before.cpu().double() - after.cpu().double()


def counted(clusters: Sides) -> str:
    """How many clusters two sides have, in words."""
    ours, theirs = (len(side.unique()) for side in clusters)
    return f"by {ours} and {theirs} {WHAT}"


def by(method: str, clusters: Tensor) -> str:
    """The name of a method that goes by the effective n."""
    return f"{method} at the effective n by {len(clusters.unique())} {WHAT}"


# --- AUC


def auc(positive: Tensor, negative: Tensor, clusters: Sides | None, confidence: float = 0.95) -> Estimate:
    """AUC = P(positive > negative) + P(equal)/2 with DeLong's interval, or Obuchowski's where there are clusters.

    ``clusters`` are those of the positives (m,) and of the negatives (n,); some may be of both sides. Placements are summed by
    cluster, which adds the covariance of both sides of one cluster (Obuchowski, Biometrics 53, 1997); the limits are those of
    ``intervals.delong`` with clusters where that counts samples, its degrees of freedom at most those of the numbers of clusters.
    """
    if clusters is None:
        return intervals.delong(positive, negative, confidence)
    value, *placed = intervals.placements(positive, negative)
    found = _Placed.of(value, (placed[0], placed[1]), clusters)
    low, high = intervals.auc_limits(value, found.spread(), confidence)
    sides = f"{len(positive)} against {len(negative)}"
    method = f"Obuchowski, logit scale, {sides}, {counted(clusters)}"
    return Estimate(value, low, high, len(positive), named(method, confidence))


def auc_difference(first: Sides, second: Sides, clusters: Sides | None, confidence: float = 0.95) -> Estimate:
    """AUC(first) − AUC(second) of two scores of the same samples, as ``intervals.delong_difference`` has it, by clusters."""
    if clusters is None:
        return intervals.delong_difference(first, second, confidence)
    if [len(side) for side in first] != [len(side) for side in second]:
        raise ImuError("paired AUCs: the two scores cover different samples; score the same rows twice")
    found = []
    for pair in (first, second):
        value, *placed = intervals.placements(*pair)
        found.append(_Placed.of(value, (placed[0], placed[1]), clusters))
    a, b = found
    limits = [intervals.auc_limits(one.value, one.spread(), confidence) for one in found]
    scale = math.sqrt(max(a.covariance(a), 0.0) * max(b.covariance(b), 0.0))
    rho = min(1.0, max(-1.0, a.covariance(b) / scale)) if scale > 0 else 0.0
    low, high = intervals.mover(a.value, b.value, limits, rho)
    method = f"paired Obuchowski, MOVER, {counted(clusters)}"
    return Estimate(a.value - b.value, low, high, len(first[0]), named(method, confidence))


@dataclass(frozen=True)
class _Placed:
    """An AUC, and what each of G clusters adds to it.

    Attributes:
        value: the AUC.
        totals: placements less the AUC, summed by cluster, over the samples of the side (2, G).
        there: which clusters have samples of the side (2, G).
        least: variance that each side would add were its samples independent: it adds no less.
        overlaps: clusters of the scarcer side that overlap with the other, above and below (``intervals.Spread``).
    """

    value: float
    totals: Tensor
    there: Tensor
    least: tuple[float, float]
    overlaps: tuple[int, int]

    @classmethod
    def of(cls, value: float, placed: Sides, clusters: Sides) -> "_Placed":
        if any(len(one) != len(side) for one, side in zip(clusters, placed, strict=True)):
            raise ImuError("AUC by clusters: each sample has one cluster")
        place = torch.cat([side.cpu() for side in clusters]).unique(return_inverse=True)[1]
        many, split = int(place.max()) + 1, place.split([len(side) for side in placed])

        def summed(values: list[Tensor]) -> Tensor:
            rows = [
                torch.zeros(many, dtype=torch.float64).index_add_(0, at, one)
                for at, one in zip(split, values, strict=True)
            ]
            return torch.stack(rows)

        placed = (placed[0].cpu(), placed[1].cpu())
        residuals, sizes = (
            summed([(side - value) / len(side) for side in placed]),
            summed([torch.ones_like(side) for side in placed]),
        )
        totals = torch.stack([_deleted(*of_side) for of_side in zip(residuals, sizes, strict=True)])
        above, below = (
            int((summed(list(sides)) > 0).sum(dim=1).min()) for sides in ((1 - placed[0], 1 - placed[1]), placed)
        )
        alone = [float(side.var()) / len(side) if len(side) > 1 else 0.0 for side in placed]
        return cls(value, totals, sizes > 0, (alone[0], alone[1]), (above, below))

    @property
    def sides(self) -> list[int]:
        """Clusters of each side."""
        return self.there.sum(dim=1).tolist()

    def covariance(self, other: "_Placed") -> float:
        """Of this AUC and another of the same samples; 0 where a side has one cluster."""
        return sum(self._terms(other))

    def _terms(self, other: "_Placed") -> list[float]:
        """What each side adds to it, and what sides have in common."""
        many = [*self.sides, self.there.shape[1]]
        if min(many) < 2:
            return [0.0, 0.0, 0.0]
        own = [float((one * two).sum()) for one, two in zip(self.totals, other.totals, strict=True)]
        crossed = float((self.totals[0] * other.totals[1] + self.totals[1] * other.totals[0]).sum())
        return [n / (n - 1) * term for n, term in zip(many, [*own, crossed], strict=True)]

    @property
    def variance(self) -> float:
        """Obuchowski's; no less than of independent samples, nor, where its parts cancel out, than the clusters as wholes vary by."""
        *own, crossed = self._terms(self)
        total = sum(max(found, least) for found, least in zip(own, self.least, strict=True)) + crossed
        return max(total, float(self.totals.sum(dim=0).square().sum()))

    def spread(self) -> Spread:
        """What the limits rest on."""
        many, shared = self.sides, bool(self.there.all(dim=0).any())
        # A pair is of two clusters, or of none that another pair has.
        pairs = min(*many, self.there.shape[1] // 2)
        if min(many) < 2:
            return Spread(0.0, 0.0, min(many), 0, 0)
        sides = [total[there] * n for total, there, n in zip(self.totals, self.there, many, strict=True)]
        own = [float(side.var()) / n for side, n in zip(sides, many, strict=True)]
        spreads = [max(intervals.variance_of_variance(side) / n**2, 0.0) for side, n in zip(sides, many, strict=True)]
        # Sides that share clusters may vary as one.
        spread = sum(spreads) + (2 * math.sqrt(spreads[0] * spreads[1]) if shared else 0.0)
        normal = sum(one**2 / (n - 1) for one, n in zip(own, many, strict=True))
        degrees = min(intervals.degrees_of(sum(own), spread), sum(own) ** 2 / normal if normal > 0 else math.inf)
        return Spread(self.variance, degrees, pairs, *self.overlaps)
