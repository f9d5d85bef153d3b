"""Numbers of one kind as numbers of another that have the same rank: similarities, log-odds."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RankMap:
    """A number of one kind as one of another kind that has the same rank: a line through the quantiles of both.

    Attributes:
        knots: (k,) of the one kind, ascending.
        values: (k,) of the other at the same ranks.
    """

    knots: Tensor
    values: Tensor

    def __call__(self, given: Tensor) -> Tensor:
        """Each number (…) as one of the other kind; beyond the knots as at the last one."""
        flat = given.reshape(-1).to(self.knots)
        above = torch.searchsorted(self.knots, flat.contiguous()).clamp(1, max(1, len(self.knots) - 1))
        above = above.clamp_max(len(self.knots) - 1)
        below = (above - 1).clamp_min(0)
        low, high = self.knots[below], self.knots[above]
        share = ((flat - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        return torch.lerp(self.values[below], self.values[above], share).reshape(given.shape)


KNOTS = 1000
"""Quantiles that a map by rank is drawn through at most."""


def rank_map(one: Tensor, other: Tensor) -> RankMap:
    """The map that gives numbers (n,) the spread of ``other`` ones (m,)."""
    ranks = (torch.arange(KNOTS, dtype=torch.float64, device=one.device) + 0.5) / KNOTS
    return RankMap(quantiles(one, ranks), quantiles(other.to(one.device), ranks))


def quantiles(values: Tensor, ranks: Tensor) -> Tensor:
    """The numbers (k,) that lie at these ranks from 0 to 1 among some (n,), a line between neighbours."""
    ordered = values.double().sort().values
    place = (ranks * len(ordered) - 0.5).clamp(0, len(ordered) - 1)
    below = place.floor().long()
    return torch.lerp(ordered[below], ordered[(below + 1).clamp_max(len(ordered) - 1)], place - below)
