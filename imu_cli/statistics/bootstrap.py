"""Bootstrap intervals of means over queries and over people, from seeded draws.

Few people make percentile limits too narrow. They are taken further out, at Φ(−t √(n/(n−1))) in place of α/2, t Student's quantile
at n − 1 degrees of freedom (the expanded percentile interval; Hesterberg, The American Statistician 69, 2015).
"""

import math

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.statistics.intervals import Estimate

DRAWS = 2000
CONFIDENCE = 0.95
NUMBERS_AT_ONCE = 4_000_000
"""Weights of a block of draws: 32 MB in float64."""


def mean(values: Tensor, what: str, seed: int = 0) -> Estimate:
    """Mean of numbers between 0 and 1, one a query (n,), resampled by query; all equal, it is what n of them prove of others.

    Raises:
        ImuError: none.
    """
    return ratio(values, torch.ones_like(values), what, seed)


def difference(first: Tensor, second: Tensor, what: str, seed: int = 0) -> Estimate:
    """Mean of ``first − second`` of the same queries (n,), both between 0 and 1, resampled in pairs."""
    return ratio(first - second, torch.ones_like(first), what, seed, low=-1.0)


def ratio(sums: Tensor, counts: Tensor, what: str, seed: int = 0, *, low: float = 0.0, high: float = 1.0) -> Estimate:
    """Σ sums / Σ counts of n units (people with their queries, or queries by themselves), units resampled with replacement.

    Args:
        sums: (n,) float64.
        counts: (n,), more than 0.
        what: what the units are, for the method's name.
        seed: of the draws.
        low: the smallest value that is possible.
        high: the largest.

    Raises:
        ImuError: no units.
    """
    n = len(sums)
    if n < 1:
        raise ImuError(f"bootstrap: no {what}; give at least one")
    value = float(sums.sum() / counts.sum())
    method = f"bootstrap over {n} {what}, {DRAWS} draws, {100 * CONFIDENCE:g} %"
    if n == 1 or bool((sums * counts[0] == sums[0] * counts).all()):
        return Estimate(value, *_proved(value, n, low, high), n, method)
    drawn = [weights @ torch.stack([sums, counts.to(sums)], dim=1) for weights in draws(n, seed)]
    made = torch.cat(drawn)
    return Estimate(value, *limits(made[:, 0] / made[:, 1], n), n, method)


def _proved(value: float, n: int, low: float, high: float) -> tuple[float, float]:
    """What n equal units prove: a share of 1 − (α/2)^(1/n) of all others may yet be otherwise."""
    slack = 1 - ((1 - CONFIDENCE) / 2) ** (1 / n)
    return value - (value - low) * slack, value + (high - value) * slack


def draws(n: int, seed: int) -> list[Tensor]:
    """How often each of n units is drawn (k, n) float64, in blocks of the ``DRAWS`` draws; the same for one seed."""
    generator = torch.Generator().manual_seed(seed)
    block = max(1, NUMBERS_AT_ONCE // n)
    made = []
    for start in range(0, DRAWS, block):
        signals.check()
        rows = min(block, DRAWS - start)
        taken = torch.randint(0, n, (rows, n), generator=generator)
        made.append(
            torch.zeros(rows, n, dtype=torch.float64).scatter_add_(1, taken, torch.ones(rows, n, dtype=torch.float64))
        )
    return made


def limits(drawn: Tensor, n: int) -> tuple[float, float]:
    """Expanded percentile limits of what the draws gave (k,), for n units."""
    from scipy import special

    tail = (1 - CONFIDENCE) / 2
    if n > 1:
        tail = float(special.ndtr(float(special.stdtrit(n - 1, tail)) * math.sqrt(n / (n - 1))))
    ends = torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=drawn.dtype))
    return float(ends[0]), float(ends[1])
