"""How well people are found by the angle between vectors: average precision and rank of every query, by blocks of queries.

The standard single-query protocol (Zheng et al., ICCV 2015): images of the query's person on the query's own camera are left out of
its ranking, junk is passed over, distractors count as wrong. Images that are equally similar stand in no order: average precision and
rank are their expectations over all orders of such ties (McSherry and Najork, ECIR 2008), so that how a gallery is listed changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError

JUNK, DISTRACTOR = -1, -2
"""People's numbers that stand for no person: images that are passed over, and images of nobody who is looked for."""
NO_CAMERA = -1
"""The camera of an image of which none is known."""
RANKS = (1, 5, 10)
"""Ranks at which it is said whether the person was found."""
NUMBERS_AT_ONCE = 2_000_000
"""Similarities of a block of queries: 16 MB in float64, and some eight times that while they are ranked."""


@dataclass(frozen=True, eq=False)
class Sightings:
    """Images of people as directions.

    Attributes:
        directions: (n, d) float64, each of length 1 (``directions``).
        people: (n,) int64, 0 and above; ``JUNK`` or ``DISTRACTOR``.
        cameras: (n,) int64, ``NO_CAMERA`` where it is not known.
        images: (n,) int64, the same number for the same image, so that a query does not find itself.
    """

    directions: Tensor
    people: Tensor
    cameras: Tensor
    images: Tensor

    def __len__(self) -> int:
        return len(self.people)

    def of(self, rows: Tensor) -> "Sightings":
        """Some of them, by a mask (n,) or by their numbers."""
        return Sightings(self.directions[rows], self.people[rows], self.cameras[rows], self.images[rows])

    def seen_by(self, directions: Tensor) -> "Sightings":
        """The same images as another model sees them."""
        return replace(self, directions=directions)


@dataclass(frozen=True, eq=False)
class Found:
    """What became of n queries.

    Attributes:
        precision: average precision (n,), NaN where the gallery has no image to be found.
        ranks: (n, len(RANKS)) probability, 0 or 1 without ties, that one of the first so many is the person.
        people: (n,) whom each query shows.
    """

    precision: Tensor
    ranks: Tensor
    people: Tensor

    @property
    def valid(self) -> Tensor:
        """Which queries have something to be found (n,)."""
        return ~self.precision.isnan()


def joined(sides: Sequence[Sightings]) -> Sightings:
    """All of them, one after the other."""
    return Sightings(
        torch.cat([side.directions for side in sides]),
        torch.cat([side.people for side in sides]),
        torch.cat([side.cameras for side in sides]),
        torch.cat([side.images for side in sides]),
    )


def directions(vectors: Tensor) -> Tensor:
    """Vectors (n, d) as float64 directions of length 1; one of length 0 stays 0, alike to nothing."""
    wide = vectors.to(torch.float64)
    lengths: Tensor = wide.norm(dim=1, keepdim=True)
    return wide / lengths.clamp_min(1e-30)


def ranked(similar: Tensor, right: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Average precision (n,) and chance of a hit within ``RANKS`` (n, 3) of queries, most similar first, ties in no order.

    In a group of t tied images after p others, r of them right and R right before it, the i-th place holds a right one with
    probability r/t, and then R + 1 + (i − 1)(r − 1)/(t − 1) right ones are expected up to it.

    Args:
        similar: (n, m) float64.
        right: (n, m), whether the image shows the query's person.
        counted: (n, m), whether the image takes part in this query's ranking.

    Returns:
        NaN and 0 for a query without a right image that takes part.
    """
    n, m = similar.shape
    ordered, order = torch.where(counted, similar, float("-inf")).sort(dim=1, descending=True)
    hit = (right & counted).gather(1, order).to(torch.float64)
    place = torch.arange(1, m + 1, dtype=torch.float64, device=similar.device).expand(n, m)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    alone = starts.clone()
    alone[:, :-1] &= starts[:, 1:]
    if not bool((hit.bool() & ~alone).any()):  # as nearly always: then every right image has one place
        first = torch.where(hit.bool().any(dim=1), hit.argmax(dim=1), m)
        ranks = torch.stack([(first < rank).to(torch.float64) for rank in RANKS], dim=1)
        return (hit * hit.cumsum(dim=1) / place).sum(dim=1) / hit.sum(dim=1), ranks
    group = starts.cumsum(dim=1) - 1
    size, inside = torch.zeros_like(hit), torch.zeros_like(hit)
    size.scatter_add_(1, group, torch.ones_like(hit))
    inside.scatter_add_(1, group, hit)
    before, earlier = (size.cumsum(1) - size).gather(1, group), (inside.cumsum(1) - inside).gather(1, group)
    tied, good = size.gather(1, group), inside.gather(1, group)
    expected = earlier + 1 + (place - before - 1) * (good - 1) / (tied - 1).clamp_min(1)
    total = hit.sum(dim=1)
    # Whoever takes no part is not right and comes last, in a group of its own with none that is.
    precision = (good / tied * expected / place).sum(dim=1) / total
    return precision, torch.stack([_within(rank, size, inside) for rank in RANKS], dim=1)


def _within(rank: int, size: Tensor, inside: Tensor) -> Tensor:
    """Chance (n,) that one of the first ``rank`` is right: 1 − C(t−r, s)/C(t, s) in the first group with a right one, of s places."""
    first = (inside > 0).to(torch.int8).argmax(dim=1, keepdim=True)
    before = (size.cumsum(1) - size).gather(1, first).squeeze(1)
    tied, good = size.gather(1, first).squeeze(1), inside.gather(1, first).squeeze(1)
    places = (rank - before).clamp_min(0).minimum(tied)
    missed = torch.ones_like(tied)
    for at in range(rank):  # the at-th of the places holds a wrong one, given that all before it do
        share = (tied - good - at).clamp_min(0) / (tied - at).clamp_min(1)
        missed = torch.where(at < places, missed * share, missed)
    return torch.where((good > 0) & (places > 0), 1 - missed, 0.0)


def takes_part(queries: Sightings, gallery: Sightings) -> tuple[Tensor, Tensor]:
    """Which images show the query's person, and which take part in its ranking (n, m)."""
    right = queries.people[:, None] == gallery.people
    known = (queries.cameras != NO_CAMERA)[:, None]
    beside = right & known & (queries.cameras[:, None] == gallery.cameras)
    counted = (gallery.people != JUNK) & ~beside & (queries.images[:, None] != gallery.images)
    return right & (queries.people >= 0)[:, None], counted


def search(queries: Sightings, gallery: Sightings) -> Found:
    """Rank the gallery for every query.

    Where cameras are not known, only the query's own image is left out of what is to be found.

    Raises:
        ImuError: no query, or none that shows a person.
    """
    if not len(queries) or not len(gallery):
        raise ImuError(
            f"retrieval: {len(queries)} queries in a gallery of {len(gallery)} images; both need at least one"
        )
    block = max(1, NUMBERS_AT_ONCE // len(gallery))
    parts = []
    for start in range(0, len(queries), block):
        signals.check()
        own = queries.of(torch.arange(start, min(start + block, len(queries)), device=queries.people.device))
        parts.append(ranked(own.directions @ gallery.directions.T, *takes_part(own, gallery)))
    return Found(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), queries.people)
