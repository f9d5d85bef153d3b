"""Whether a classifier does no better than chance on some samples: a sign that it sees them wrongly."""

from imu_cli.statistics.intervals import clopper_pearson
from imu_cli.statistics.metrics import binomial_range

USEFUL = 0.5
"""Accuracy that a trained model is expected to reach on samples that it sees rightly."""
BEYOND = 0.1
"""How far beyond chance that is at least, where there are few classes."""


def no_better(right: int, n: int, classes: int) -> bool:
    """Whether the accuracy of n samples is that of guessing, and they are enough to say so.

    Not significant is not wrong: it has to be within what guessing at 1/c shows in 95 of 100 cases, and the upper end of its
    95 % interval below what a useful model would reach, so that one sample or a few never tell.
    """
    chance = 1 / classes
    useful = max(USEFUL, chance + BEYOND)
    if right >= useful * n:  # the interval's end is above its middle: no need of it, nor of scipy
        return False
    high = clopper_pearson(right, n).high
    assert high is not None
    return right / n <= binomial_range(chance, n)[1] and high < useful


def warning(right: int, n: int, classes: int, what: str) -> str | None:
    """The sentence about a set, named by ``what``, on which the model does no better than chance; None where it does."""
    if not no_better(right, n, classes):
        return None
    return (
        f"accuracy on {what} is {right / n:.1%} of {n}, no better than chance ({1 / classes:.1%}): the preprocessing or the order of "
        "the labels is probably wrong, and a change from there is no evidence of anything"
    )
