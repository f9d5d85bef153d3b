"""What tests ask of an interval."""

from imu_cli.statistics.intervals import Estimate


def ends(estimate: Estimate) -> tuple[float, float]:
    """Both ends, which must be there and lie around the value."""
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low <= estimate.value <= estimate.high
    return estimate.low, estimate.high


def holds(estimate: Estimate, truth: float) -> bool:
    """Whether the truth lies in the interval."""
    low, high = ends(estimate)
    return low <= truth <= high
