"""H (n, d+1) float64 of many samples and their logits, taken by blocks of rows: held in memory, or made when asked for.

Whatever is computed over all samples runs over ``blocks``, the same whether the features are held or mapped, so that its
memory does not grow with their number.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from imu_cli.errors import ImuError

NUMBERS_AT_ONCE = 500_000
"""Numbers of the widest matrix of a block: 4 MB in float64, so that a block with all that is made of it stays in the cache."""
ROWS_AT_ONCE = 8192
LEAST_ROWS = 64


@dataclass(frozen=True, eq=False)
class Mapped:
    """H (n, d+1) float64 of features as they are, in a file or in memory; rows are made when they are asked for.

    Attributes:
        features: (N, d) in any floating dtype, memory-mapped or held.
        bias: whether H has a column of ones.
        device: where rows are put.
        order: rows of ``features`` that are meant (n,), in this order; None for all.
        resident: whether the features are in this process's memory.
    """

    features: Tensor
    bias: bool
    device: torch.device
    order: Tensor | None = None
    resident: bool = False

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

    def only(self, rows: Tensor) -> "Mapped":
        """Some rows of it, by their numbers or a mask (n,); nothing is read."""
        wanted = _numbers(rows).cpu()
        return replace(self, order=wanted if self.order is None else self.order[wanted])


Rows = Tensor | Mapped
"""H (n, d+1) float64: a tensor, or what reads it by rows."""


@dataclass(frozen=True, eq=False)
class Joined:
    """The rows of two H (n, d+1) one after the other; nothing is copied until rows are asked for."""

    first: Rows
    second: Rows

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d+1)."""
        return len(self), self.first.shape[1]

    @property
    def device(self) -> torch.device:
        """Where rows are put."""
        return self.first.device

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """H of some rows, by a slice or by their numbers."""
        n = len(self.first)
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            parts = [(self.first, slice(min(start, n), min(stop, n)))]
            parts += [(self.second, slice(max(start - n, 0), max(stop - n, 0)))]
            held = [h[part] for h, part in parts if part.stop > part.start]
            return held[0] if len(held) == 1 else torch.cat([h[part] for h, part in parts])
        made = self.first[rows[:0]].new_empty(len(rows), self.shape[1])
        ours = rows < n
        made[ours], made[~ours] = self.first[rows[ours]], self.second[rows[~ours] - n]
        return made


@dataclass(frozen=True, eq=False)
class Logits:
    """H Wᵀ (n, c) float64 of a head on many samples; rows are computed when they are asked for, and none is kept.

    Logits of a million samples of a thousand classes would take 8 GB. ``memo`` holds what was found for every row, such as
    its predicted class, by name.
    """

    h: Rows
    head: Tensor
    memo: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.h)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, c)."""
        return len(self.h), len(self.head)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Logits of some rows, by a slice, their numbers or a mask."""
        return self.h[rows if isinstance(rows, slice) else _numbers(rows)] @ self.head.T

    def only(self, rows: Tensor) -> "Logits":
        """Some rows of it, by their numbers or a mask (n,); nothing is computed."""
        return Logits(only(self.h, rows), self.head, {name: found[rows] for name, found in self.memo.items()})


Outputs = Tensor | Logits
"""Logits (n, c): a tensor, or what computes them by rows."""
Part = TypeVar("Part", Rows, Outputs)


def only(whole: Part, rows: Tensor) -> Part:
    """Some rows of H or of logits, by their numbers or a mask (n,): of a tensor a copy, else nothing is made."""
    return whole[rows] if isinstance(whole, Tensor) else whole.only(rows)


def _numbers(rows: Tensor) -> Tensor:
    return rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows


def by_rows(whole: Outputs | Rows | Joined, found: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """What a function of some rows (k), and of where these stand, gives for each of them (k, …): for all rows (n, …).

    The result is one tensor from the first block on: small parts of it, kept between what each block frees again, would
    leave the process's memory in pieces that nothing fits into.
    """
    made: Tensor | None = None
    for rows in blocks(len(whole), _width(whole)):
        part = found(whole[rows], rows)
        if made is None:
            made = part.new_empty(len(whole), *part.shape[1:])
        made[rows] = part
    return found(whole[:0], slice(0, 0)) if made is None else made


def _width(whole: Outputs | Rows | Joined) -> int:
    """Numbers in a row of the widest matrix that a block takes."""
    return max(whole.head.shape) if isinstance(whole, Logits) else whole.shape[1]


def homogeneous(features: Tensor, bias: bool) -> Tensor:
    """Features (n, d) as float64, with a column of ones appended where the head has a bias: (n, d+1)."""
    made = features.new_ones(len(features), features.shape[1] + bias, dtype=torch.float64)
    made[:, : features.shape[1]] = features
    return made


def held(h: Rows) -> Tensor:
    """All of H in memory."""
    return h if isinstance(h, Tensor) else h.held()


def with_bias(features: Rows, bias: bool) -> Rows:
    """H of features (n, d), or of H that is made by rows: a column of ones beside the features where the head has a bias."""
    return homogeneous(features, bias) if isinstance(features, Tensor) else replace(features, bias=bias)


def mean(h: Rows) -> Tensor:
    """Mean of all rows (d,), float64."""
    total = torch.zeros(h.shape[1], dtype=torch.float64, device=h.device)
    for rows in blocks(*h.shape):
        total += h[rows].double().sum(dim=0)
    return total / len(h)


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
