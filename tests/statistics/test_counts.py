"""A share meets its bound where its count does, whatever binary fractions make of either."""

import pytest

from imu_cli.errors import ImuError
from imu_cli.statistics import counts


@pytest.mark.parametrize("n", [3, 7, 37, 1000, 5000, 9999])
@pytest.mark.parametrize("bound", [0.0, 0.005, 0.01, 0.07, 0.29, 0.57, 0.58, 1.0])
def test_the_largest_count_is_the_last_that_is_within(bound: float, n: int) -> None:
    """In whole numbers: count · 1000 ≤ bound · 1000 · n up to it, and not beyond."""
    most, thousandths = counts.largest_count(bound, n), round(bound * 1000)
    assert most * 1000 <= thousandths * n < (most + 1) * 1000
    assert counts.at_most(most, n, bound)
    assert not counts.at_most(most + 1, n, bound)


def test_fifty_of_five_thousand_are_one_hundredth() -> None:
    """As a difference of two accuracies they are 0.010000000000000009, and still no more than 0.01."""
    drop = 0.9968 - 0.9868
    assert drop > 0.01
    assert counts.holds(drop, "<=", 0.01, 5000)
    assert not counts.holds(drop, "<", 0.01, 5000)
    assert counts.holds(drop, ">=", 0.01, 5000)
    assert not counts.holds(51 / 5000, "<=", 0.01, 5000)


@pytest.mark.parametrize(("sign", "verdict"), [("<=", True), ("<", False), (">=", True), (">", False)])
def test_what_is_no_share_is_equal_where_rounding_cannot_tell(sign: str, verdict: bool) -> None:
    """1 − 0.9 is 0.1 of an AUC; a real difference stays one."""
    assert counts.holds(1 - 0.9, sign, 0.1) is verdict
    assert counts.holds(0.1 + 1e-6, "<=", 0.1) is False
    assert counts.holds(0.1 - 1e-6, ">=", 0.1) is False


def test_no_samples_have_no_share() -> None:
    """Nothing to divide by is an error that says so."""
    with pytest.raises(ImuError, match="of 0 samples"):
        counts.largest_count(0.1, 0)
