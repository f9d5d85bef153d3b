"""H (n, d+1) float64 of many samples, taken by blocks of rows: held in memory, or read from features that are mapped.

Whatever is computed over all samples runs over ``blocks``, so that its memory does not grow with their number, and gives
the same bits whether the features are held or mapped.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ImuError

NUMBERS_AT_ONCE = 500_000
"""Numbers of the widest matrix of a block: 4 MB in float64, so that a block with all that is made of it stays in the cache."""
ROWS_AT_ONCE = 8192
LEAST_ROWS = 64


@dataclass(frozen=True, eq=False)
class Mapped:
    """H (n, d+1) float64 of features that lie in a file; rows are read when they are asked for.

    Attributes:
        features: (N, d) in any floating dtype, memory-mapped.
        bias: whether H has a column of ones.
        device: where rows are put.
        order: rows of ``features`` that are meant (n,), in this order; None for all.
    """

    features: Tensor
    bias: bool
    device: torch.device
    order: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features) if self.order is None else len(self.order)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d+1), or (n, d) for a head without bias."""
        return len(self), self.features.shape[1] + self.bias

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """H of some rows, by a slice or by their numbers."""
        wanted = rows.cpu() if isinstance(rows, Tensor) else rows
        found = self.features[wanted if self.order is None else self.order[wanted]]
        return homogeneous(found.to(self.device), self.bias)

    def held(self) -> Tensor:
        """All of H in memory, filled by blocks."""
        made = torch.empty(self.shape, dtype=torch.float64, device=self.device)
        for rows in blocks(len(self), self.shape[1]):
            made[rows] = self[rows]
        return made


Rows = Tensor | Mapped
"""H (n, d+1) float64: a tensor, or what reads it by rows."""


def homogeneous(features: Tensor, bias: bool) -> Tensor:
    """Features (n, d) as float64, with a column of ones appended where the head has a bias: (n, d+1)."""
    made = features.new_ones(len(features), features.shape[1] + bias, dtype=torch.float64)
    made[:, : features.shape[1]] = features
    return made


def features_of(h: Rows, bias: bool) -> Tensor:
    """The features (n, d) in H without its column of ones, without a copy where they are not reordered."""
    if isinstance(h, Mapped):
        return h.features if h.order is None else h.features[h.order]
    return h[:, : h.shape[1] - bias]


def refuse_not_finite(h: Rows, where: Callable[[int], str]) -> None:
    """Refuse features that are not finite, and say which row's.

    Raises:
        ImuError: names the first such row by ``where``.
    """
    for rows in blocks(len(h), h.shape[1]):
        finite = torch.isfinite(h[rows]).all(dim=1)
        if not bool(finite.all()):
            bad = rows.start + int((~finite).nonzero()[0])
            raise ImuError(f"{where(bad)}: its features are not finite; check the image and the model's weights")


def blocks(n: int, width: int) -> Iterator[slice]:
    """Consecutive rows 0 to n whose matrices, ``width`` numbers a row at most, stay small."""
    rows = min(ROWS_AT_ONCE, max(LEAST_ROWS, NUMBERS_AT_ONCE // max(width, 1)))
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def logits(h: Rows, head: Tensor) -> Tensor:
    """H Wᵀ (n, c) float64 of all rows."""
    made = head.new_empty(len(h), len(head))
    for rows in blocks(len(h), max(head.shape)):
        torch.mm(h[rows], head.T, out=made[rows])
    return made


def predicted(h: Rows, head: Tensor) -> Tensor:
    """The class that the head gives each row (n,)."""
    made = torch.empty(len(h), dtype=torch.int64, device=head.device)
    for rows in blocks(len(h), max(head.shape)):
        made[rows] = (h[rows] @ head.T).argmax(dim=1)
    return made
