"""Shares against bounds, by their counts: 50 of 5,000 is one hundredth, whatever 0.5 − 0.49 is in floating point."""

import operator
from collections.abc import Callable
from fractions import Fraction

from imu_cli.errors import ImuError

Compare = Callable[[Fraction, Fraction], bool]
SIGNS: dict[str, Compare] = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
NEAR = 1e-9
"""How far from a whole number a share times its n may be for rounding alone."""
CRUMB = 1e-6
"""Part of a sample by which a bound may miss a count: a third of 3 samples is one, though 1/3 is written with 16 digits."""


def largest_count(bound: float, n: int) -> int:
    """The most samples of ``n`` whose share is not above ``bound``, taken as the decimal that it is written as."""
    if n < 1:
        raise ImuError(f"share: of {n} samples; needs at least one")
    return int(_bound(bound, n) * n // 1)


def at_most(count: int, n: int, bound: float) -> bool:
    """Whether ``count`` of ``n`` is at most ``bound``; a count below 0, such as an accuracy that rose, always is below 0."""
    return count <= largest_count(bound, n)


def share_at_most(share: float, n: int, bound: float) -> bool:
    """Whether a share of ``n`` samples, in floating point, is at most ``bound``; n = 0 compares the numbers as they are."""
    return at_most(round(share * n), n, bound) if n else share <= bound


def holds(value: float, sign: str, bound: float, n: int | None = None) -> bool:
    """Whether ``value sign bound``, by counts where ``value`` is one of ``n``; else equal is what rounding cannot tell apart.

    Args:
        value: finite.
        sign: one of ``SIGNS``.
        bound: finite; taken as the decimal that it is written as.
        n: samples that the value is a share of, if it is one.
    """
    exact, wanted = decimal(value), decimal(bound)
    if n and abs(value * n - round(value * n)) <= NEAR:
        exact, wanted = Fraction(round(value * n), n), _bound(bound, n)
    elif abs(value - bound) <= 1e-12 * max(1.0, abs(bound)):
        exact = wanted
    return SIGNS[sign](exact, wanted)


def decimal(value: float) -> Fraction:
    """The number that a float is written as: 1/100 for 0.01, and not the nearest binary fraction."""
    return Fraction(repr(float(value)))


def _bound(bound: float, n: int) -> Fraction:
    """The bound as it is written, or the count that it stands for."""
    wanted = decimal(bound)
    count = round(wanted * n)
    return Fraction(count, n) if abs(wanted * n - count) <= CRUMB else wanted
