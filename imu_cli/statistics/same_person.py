"""How alike two images of one person are, on two cameras where cameras are known; and whether that tells forgotten people from unseen ones.

A model that was trained on a person draws that person's images together: the AUC of their pairs' similarities against those of people
whom it never saw is membership inference by the only thing that an embedding shows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.statistics import bootstrap
from imu_cli.statistics.intervals import Estimate
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


def pairs(seen: Sightings, seed: int = 0) -> Pairs:
    """All pairs of images of one person on two cameras; of two images where a camera is not known.

    Raises:
        ImuError: nobody has such a pair.
    """
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
        raise ImuError("retrieval: nobody has two images on two cameras; give more images, or leave the cameras out")
    where = seen.people.device
    return Pairs(torch.cat(rows).to(where), torch.cat(whose).to(where), len(rows), drawn)


def _few(values: Tensor, most: int, generator: torch.Generator) -> Tensor:
    if len(values) <= most:
        return values
    return values[torch.randperm(len(values), generator=generator)[:most].sort().values]


def mean(found: Pairs, similar: Tensor, seed: int = 0) -> Estimate:
    """Mean similarity of pairs (k,), resampled by person."""
    sums = torch.zeros(found.count, dtype=torch.float64).index_add_(0, found.people.cpu(), similar.cpu())
    return bootstrap.ratio(sums, torch.bincount(found.people.cpu(), minlength=found.count), "people", seed, low=-1.0)


def auc(forgotten: tuple[Pairs, Tensor], unseen: tuple[Pairs, Tensor], seed: int = 0) -> Estimate:
    """P(a forgotten person's pair is more alike than an unseen person's), ties half; people of both sides resampled.

    A side of one person is taken as it is. Each argument is the pairs and their similarity (k,).
    """
    (ours, high), (theirs, low) = forgotten, unseen
    wins = torch.zeros(ours.count, theirs.count, dtype=torch.float64)
    whose, high = ours.people.cpu(), high.cpu()
    for person in range(theirs.count):
        signals.check()
        ordered = low[theirs.people == person].cpu().sort().values
        twice = torch.searchsorted(ordered, high) + torch.searchsorted(ordered, high, right=True)
        wins[:, person] = torch.zeros(ours.count, dtype=torch.float64).index_add_(0, whose, twice.double() / 2)
    sizes = [torch.bincount(side.people.cpu(), minlength=side.count).double() for side in (ours, theirs)]
    value = float(wins.sum() / (sizes[0].sum() * sizes[1].sum()))
    counted = f"{ours.count} against {theirs.count} people"
    method = f"bootstrap by person, {counted}, {bootstrap.DRAWS} draws, {100 * bootstrap.CONFIDENCE:g} %"
    fewest = min([side.count for side in (ours, theirs) if side.count > 1], default=1)
    if fewest == 1:
        return Estimate(value, 0.0, 1.0, len(high), f"none: {counted}")
    weights = [torch.cat(bootstrap.draws(side.count, seed + at)) for at, side in enumerate((ours, theirs))]
    drawn = ((weights[0] @ wins) * weights[1]).sum(dim=1) / ((weights[0] @ sizes[0]) * (weights[1] @ sizes[1]))
    return Estimate(value, *bootstrap.limits(drawn, fewest), len(high), method)
