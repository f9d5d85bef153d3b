"""How alike the features of two models are on the same samples: debiased linear CKA, whatever their number and width."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.linear.rows import Rows, blocks, mean
from imu_cli.statistics.clustered import Clusters
from imu_cli.statistics.intervals import Estimate, NotMeasured

GROUPS = 20
"""Groups of samples that the jackknife leaves out one at a time."""
FEWEST = 8
"""Samples from which four remain, and something varies, when a group is left out."""
MOST, PRODUCTS = 10_000, 10_000_000_000
"""Samples at most; fewer, drawn at random, where samples x width² is more than ``PRODUCTS``."""
LEAST = 1_000


@dataclass
class _Sums:
    """What HSIC of centred X (n, d) and Y (n, e) is made of; it adds up over samples, so that a group can be taken off.

    ``x``, ``y``: sums of rows; ``xy``: XᵀY; ``x_norms``, ``y_norms``: sums of squared row norms; ``both``: of their products;
    ``x_by_y``: rows of X times the squared norms of Y's, and the other way round.
    """

    n: int
    x: Tensor
    y: Tensor
    xy: Tensor
    x_norms: float
    y_norms: float
    both: float
    x_by_y: Tensor
    y_by_x: Tensor

    @classmethod
    def none(cls, d: int, e: int, like: Tensor) -> "_Sums":
        def zeros(*shape: int) -> Tensor:
            return like.new_zeros(shape, dtype=torch.float64)

        return cls(0, zeros(d), zeros(e), zeros(d, e), 0.0, 0.0, 0.0, zeros(d), zeros(e))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in some rows."""
        k, l = x.square().sum(1), y.square().sum(1)  # noqa: E741 - the letters of the definition
        self.n += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xy += x.T @ y
        self.x_norms += float(k.sum())
        self.y_norms += float(l.sum())
        self.both += float(k @ l)
        self.x_by_y += l @ x
        self.y_by_x += k @ y

    def without(self, part: "_Sums") -> "_Sums":
        """The sums over the samples that are not in a part of them."""
        return _Sums(*(getattr(self, name) - getattr(part, name) for name in self.__dataclass_fields__))

    def hsic(self) -> float:
        """Unbiased HSIC of the linear kernels, from sums alone: no (n, n) matrix is made.

        With K̃ = XXᵀ without its diagonal and L̃ likewise: [tr K̃L̃ + 1ᵀK̃1 1ᵀL̃1 / ((n−1)(n−2)) − 2 1ᵀK̃L̃1 / (n−2)] / (n(n−3)).
        Song et al., *Feature selection via dependence maximization* (JMLR 13, 2012).
        """
        n = self.n
        trace = float(self.xy.square().sum()) - self.both
        totals = (float(self.x @ self.x) - self.x_norms) * (float(self.y @ self.y) - self.y_norms)
        crossed = (
            float(self.x @ self.xy @ self.y) - float(self.x_by_y @ self.x) - float(self.y_by_x @ self.y) + self.both
        )
        return (trace + totals / ((n - 1) * (n - 2)) - 2 * crossed / (n - 2)) / (n * (n - 3))


Pair = tuple[str, str]
Sums = dict[Pair, _Sums]


def linear_cka(
    features: Mapping[str, Rows],
    pairs: Sequence[Pair],
    generator: torch.Generator,
    confidence: float = 0.95,
    clusters: Clusters = None,
) -> dict[Pair, Estimate | NotMeasured]:
    """``cka.*``: similarity of pairs of models' features on the same samples; 1: alike up to rotation and scale, 0: unrelated.

    Debiased, HSIC(X, Y) / √(HSIC(X, X) HSIC(Y, Y)) with the unbiased HSIC: the usual estimate tends to 1 where the features are
    wider than the samples are many, so that 37 samples would always look alike; this one has no such drift, and a little
    below 0 is possible. Kornblith et al., arXiv 1905.00414; Murphy et al., arXiv 2405.01012.
    Interval: jackknife over groups of samples, Student's quantile, cut at −1 and 1. At most ``MOST`` samples, fewer where
    features are very wide. Features are read twice by blocks, in float64.

    Args:
        features: (n, d) of each model by its name, rows in the same order.
        pairs: names of the two models of each comparison.
        generator: of the groups, and of the samples where not all are taken.
        confidence: two-sided level.
        clusters: (n,), where samples come in such: a group has all of a cluster.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    n, width = len(features[names[0]]), max(features[name].shape[1] for name in names)
    if any(len(features[name]) != n for name in names):
        raise ImuError("CKA: the models' features are not of the same samples")
    if n < FEWEST:
        return dict.fromkeys(pairs, NotMeasured(f"needs {FEWEST} or more samples"))
    drawn = torch.randperm(n, generator=generator)[: max(LEAST, min(MOST, PRODUCTS // width**2))]
    split = drawn.tensor_split(min(GROUPS, len(drawn) // 2)) if clusters is None else _whole(drawn, clusters)
    if len(drawn) - max(map(len, split)) < FEWEST // 2:
        return dict.fromkeys(pairs, NotMeasured(f"needs {FEWEST // 2} or more samples beside those of any sentence"))
    groups = [rows.sort().values for rows in split]
    wanted = list(dict.fromkeys([*pairs, *((name, name) for name in names)]))
    centres = {name: mean(features[name]) for name in names}
    whole = _sums(features, wanted, centres, drawn.sort().values)
    without: list[dict[Pair, float]] = []
    for rows in groups:
        part = _sums(features, wanted, centres, rows)
        without.append({pair: whole[pair].without(part[pair]).hsic() for pair in wanted})
    at_once = {pair: whole[pair].hsic() for pair in wanted}
    what = "samples" if clusters is None else f"{len(clusters[drawn].unique())} sentences"
    return {pair: _estimate(pair, at_once, without, (len(drawn), what), confidence) for pair in pairs}


def _whole(drawn: Tensor, clusters: Tensor) -> list[Tensor]:
    """Mixed rows in at most ``GROUPS`` groups, about equal, none of which shares a cluster with another."""
    place = clusters.cpu()[drawn].unique(return_inverse=True)[1]
    first = torch.full((int(place.max()) + 1,), len(place)).scatter_reduce_(0, place, torch.arange(len(place)), "amin")
    order = first[place].argsort(stable=True)  # clusters as they were drawn first
    sizes = torch.bincount(place)[place[order].unique_consecutive()]
    group = (sizes.cumsum(0) - sizes) * min(GROUPS, len(sizes)) // len(place)
    return list(drawn[order].split(torch.bincount(group, sizes)[torch.bincount(group) > 0].long().tolist()))


def _none(features: Mapping[str, Rows], pairs: Sequence[Pair]) -> Sums:
    some = {name: features[name][:0] for pair in pairs for name in pair}
    return {(a, b): _Sums.none(some[a].shape[1], some[b].shape[1], some[a]) for a, b in pairs}


def _sums(features: Mapping[str, Rows], pairs: Sequence[Pair], centres: Mapping[str, Tensor], rows: Tensor) -> Sums:
    """The sums over some rows of every pair; each model's rows are read once."""
    made = _none(features, pairs)
    for part in blocks(len(rows), max(len(centre) for centre in centres.values())):
        signals.check()
        read = {name: features[name][rows[part]].double() - centre for name, centre in centres.items()}
        for a, b in pairs:
            made[a, b].add(read[a], read[b])
    return made


def _cka(pair: Pair, hsic: Mapping[Pair, float]) -> float | None:
    """None where features do not vary from sample to sample."""
    alone = [hsic[name, name] for name in pair]
    if min(alone) <= 0:
        return None
    # Cauchy and Schwarz hold for U-centred matrices too: what lies beyond is rounding.
    return max(-1.0, min(1.0, hsic[pair] / math.sqrt(alone[0] * alone[1])))


def _estimate(
    pair: Pair,
    hsic: Mapping[Pair, float],
    without: Sequence[Mapping[Pair, float]],
    counted: tuple[int, str],
    confidence: float,
) -> Estimate | NotMeasured:
    from scipy import special

    value, parts = _cka(pair, hsic), [_cka(pair, found) for found in without]
    known = torch.tensor([part for part in parts if part is not None], dtype=torch.float64)
    if value is None or len(known) < len(parts):
        return NotMeasured("the features of a model do not vary from sample to sample")
    g = len(known)
    error = math.sqrt(float((g - 1) / g * (known - known.mean()).square().sum()))
    half = -float(special.stdtrit(g - 1, (1 - confidence) / 2)) * error
    n, what = counted
    method = f"jackknife over {g} groups of {what}, {100 * confidence:g} %"
    return Estimate(value, max(-1.0, value - half), min(1.0, value + half), n, method)
