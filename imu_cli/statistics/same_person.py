"""How alike two images of one person are, on two cameras where cameras are known; and whether that tells forgotten people from unseen ones.

A model that was trained on a person draws that person's images together: the AUC of their pairs' similarities against those of people
whom it never saw is membership inference by the only thing that an embedding shows.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.statistics import bootstrap
from imu_cli.statistics.intervals import Estimate, census
from imu_cli.statistics.quantiles import quantiles
from imu_cli.statistics.retrieval import NO_CAMERA, Sightings

MOST_IMAGES, MOST_PAIRS = 1000, 4000
"""Of one person; of more, so many are drawn by the seed."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Two images each of one person.

    Attributes:
        rows: (k, 2) which images.
        people: (k,) whose, numbered from 0 within this set.
        count: how many people have a pair.
        drawn: whether some person has more pairs than these.
    """

    rows: Tensor
    people: Tensor
    count: int
    drawn: bool = False

    def similar(self, directions: Tensor) -> Tensor:
        """Cosine similarity (k,) of each pair under a model's directions (n, d)."""
        return torch.cat(
            [(directions[part[:, 0]] * directions[part[:, 1]]).sum(dim=1) for part in self.rows.split(20_000)]
        )


def pairs(seen: Sightings, seed: int = 0) -> Pairs | None:
    """All pairs of images of one person on two cameras; of two images where a camera is not known. None where nobody has one."""
    generator = torch.Generator().manual_seed(seed)
    rows, whose, drawn = [], [], False
    for person in seen.people[seen.people >= 0].unique().tolist():
        signals.check()
        own = (seen.people == person).nonzero().squeeze(1).cpu()
        drawn |= len(own) > MOST_IMAGES
        own = _few(own, MOST_IMAGES, generator)
        one, other = torch.triu_indices(len(own), len(own), offset=1)
        cameras = seen.cameras.cpu()[own]
        apart = (cameras[one] != cameras[other]) | (cameras[one] == NO_CAMERA)
        apart &= seen.images.cpu()[own[one]] != seen.images.cpu()[own[other]]
        made = torch.stack([own[one[apart]], own[other[apart]]], dim=1)
        drawn |= len(made) > MOST_PAIRS
        if len(made):
            rows.append(_few(made, MOST_PAIRS, generator))
            whose.append(torch.full((len(rows[-1]),), len(rows) - 1))
    if not rows:
        return None
    where = seen.people.device
    return Pairs(torch.cat(rows).to(where), torch.cat(whose).to(where), len(rows), drawn)


def _few(values: Tensor, most: int, generator: torch.Generator) -> Tensor:
    if len(values) <= most:
        return values
    return values[torch.randperm(len(values), generator=generator)[:most].sort().values]


def mean(found: Pairs, similar: Tensor, seed: int = 0) -> Estimate:
    """Mean similarity of pairs (k,), resampled by person; one person's are all counted."""
    if found.count == 1:
        return census(float(similar.mean()), len(similar))
    sums = torch.zeros(found.count, dtype=torch.float64).index_add_(0, found.people.cpu(), similar.cpu())
    counts = torch.bincount(found.people.cpu(), minlength=found.count)
    return replace(bootstrap.ratio(sums, counts, "people", seed, low=-1.0), n=len(similar))


def by_rank(similar: Tensor, unseen: Tensor) -> Tensor:
    """What each pair's similarity (k,) would be if these pairs were spread as those of unseen people: by rank, never upwards."""
    order = similar.argsort(stable=True)
    ranks = torch.empty_like(similar)
    ranks[order] = (torch.arange(len(similar), dtype=similar.dtype, device=similar.device) + 0.5) / len(similar)
    return torch.minimum(quantiles(unseen.to(similar), ranks), similar)


@dataclass(frozen=True, eq=False)
class Ties:
    """How strongly each of n images is tied to its person's other images.

    Attributes:
        excess: (n,) mean over an image's pairs of similarity less what ``by_rank`` allows; NaN without a pair.
        similarity: (n,) mean similarity of its pairs.
        pairs: (n,) how many it has.
    """

    excess: Tensor
    similarity: Tensor
    pairs: Tensor


def ties(found: Pairs, similar: Tensor, unseen: Tensor, n: int) -> Ties:
    """The part that each of n images has in what the pairs (k,) exceed unseen people's by.

    The excess of all pairs is what the objective on pairs, mean (s − t)², is to bring down, and −2/k Σ (s − t) over an image's own pairs
    is how fast it falls as that image's similarities do.
    """
    over = similar - by_rank(similar, unseen)
    ends = found.rows.flatten()
    count = torch.bincount(ends, minlength=n).to(similar)
    summed = [torch.zeros(n).to(similar).index_add_(0, ends, values.repeat_interleave(2)) for values in (over, similar)]
    return Ties(summed[0] / count, summed[1] / count, count.long())


Side = tuple[Pairs, Tensor]
"""Pairs of some people, and the similarity (k,) of each under a model."""


@dataclass(frozen=True, eq=False)
class _Wins:
    """How often a pair of one person is more alike than a pair of another, ties half, by person and person (p, q); and both sides' pairs."""

    wins: Tensor
    ours: Tensor
    theirs: Tensor

    @property
    def value(self) -> float:
        return float(self.wins.sum() / (self.ours.sum() * self.theirs.sum()))

    def drawn(self, seed: int) -> Tensor:
        """The AUC of every draw of people of both sides; of one person alone, it is that person every time."""
        sides = (self.ours, self.theirs)
        one, other = (torch.cat(bootstrap.draws(len(side), seed + at)) for at, side in enumerate(sides))
        return ((one @ self.wins) * other).sum(dim=1) / ((one @ self.ours) * (other @ self.theirs))


def _wins(forgotten: Side, unseen: Side) -> _Wins:
    (ours, high), (theirs, low) = forgotten, unseen
    wins = torch.zeros(ours.count, theirs.count, dtype=torch.float64)
    whose, high = ours.people.cpu(), high.cpu()
    for person in range(theirs.count):
        signals.check()
        ordered = low[theirs.people == person].cpu().sort().values
        twice = torch.searchsorted(ordered, high) + torch.searchsorted(ordered, high, right=True)
        wins[:, person] = torch.zeros(ours.count, dtype=torch.float64).index_add_(0, whose, twice.double() / 2)
    return _Wins(wins, *(torch.bincount(side.people.cpu(), minlength=side.count).double() for side in (ours, theirs)))


def _about(found: _Wins) -> tuple[str, int]:
    """What the interval rests on, and the number of people of the smaller side that is drawn from."""
    counts = [len(found.ours), len(found.theirs)]
    shown = f"{counts[0]} against {counts[1]} people, {bootstrap.DRAWS} draws, {100 * bootstrap.CONFIDENCE:g} %"
    return f"bootstrap by person, {shown}", min([count for count in counts if count > 1], default=1)


def auc(forgotten: Side, unseen: Side, seed: int = 0) -> Estimate:
    """P(a forgotten person's pair is more alike than an unseen person's), ties half; people of both sides resampled.

    A side of one person is taken as it is; of one against one nothing is known of others.
    """
    found = _wins(forgotten, unseen)
    method, fewest = _about(found)
    ends = (0.0, 1.0) if fewest == 1 else bootstrap.limits(found.drawn(seed), fewest)
    return Estimate(found.value, *ends, len(forgotten[1]), method)


def auc_difference(one: tuple[Side, Side], other: tuple[Side, Side], seed: int = 0) -> Estimate:
    """AUC of ``one`` model less that of an ``other`` on the same pairs; the same people are drawn for both."""
    first, second = _wins(*one), _wins(*other)
    method, fewest = _about(first)
    ends = (-1.0, 1.0) if fewest == 1 else bootstrap.limits(first.drawn(seed) - second.drawn(seed), fewest)
    return Estimate(first.value - second.value, *ends, len(one[0][1]), f"paired {method}")


def plain_auc(high: Tensor, low: Tensor) -> float:
    """The AUC of some similarities (k,) against others, without an interval."""
    ordered = low.cpu().sort().values
    twice = torch.searchsorted(ordered, high.cpu()) + torch.searchsorted(ordered, high.cpu(), right=True)
    return float(twice.sum()) / (2 * len(high) * len(low))
