import pytest

from imu_cli.errors import ImuError
from imu_cli.evaluation import gates
from imu_cli.records.evaluation import Metric
from imu_cli.records.parts import Interval


def metric(value, low=None, high=None, census=False, missing=None, name="test.accuracy_drop"):
    interval = None if low is None else Interval(low=low, high=high, method="exact")
    return Metric(name=name, title="", definition="", value=value, interval=interval, census=census, missing=missing)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (metric(0.0, 0.0, 0.071), "inconclusive"),  # 0 of 50: proves only at most 7.1 %
        (metric(0.0, 0.0, 0.0074), "pass"),  # 0 of 500
        (metric(0.2, 0.1, 0.3), "fail"),
        (metric(0.0, 0.0, 0.095, census=True), "pass"),  # 0 of 37 of the forget set itself
        (metric(float("nan")), "fail"),
        (metric(None, missing="needs --test"), "fail"),
        (metric(0.04), "pass"),
    ],
)
def test_verdicts(given: Metric, verdict: str) -> None:
    """Samples are judged by the unfavourable end of their interval, a census by its count, the unmeasured fails."""
    assert gates.judge(gates.parse("test.accuracy_drop<=0.05"), given, on_value=False).verdict == verdict


def test_point_estimate_on_request() -> None:
    """--require-on value compares the value and leaves the interval out."""
    assert gates.judge(gates.parse("test.accuracy_drop<=0.05"), metric(0.04, 0.0, 0.1), on_value=True).verdict == "pass"


def test_lower_bounds_use_the_lower_end() -> None:
    """For >= the unfavourable end is the lower one."""
    gate = gates.parse("test.accuracy >= 0.9")
    assert gates.judge(gate, metric(0.95, 0.91, 0.98), on_value=False).verdict == "pass"
    assert gates.judge(gate, metric(0.95, 0.89, 0.98), on_value=False).verdict == "inconclusive"
    assert gates.judge(gate, metric(0.5, 0.4, 0.6), on_value=False).verdict == "fail"


def test_unknown_metric_names_the_nearest() -> None:
    """A typing mistake in a gate is an error before anything is computed, not a gate that never fires."""
    with pytest.raises(ImuError, match=r"'test.acuracy_drop' is not a metric; did you mean 'test.accuracy_drop'"):
        gates.parse("test.acuracy_drop<=0.01")


@pytest.mark.parametrize("text", ["", "test.accuracy", "test.accuracy=0.1", "test.accuracy<=x", "test.accuracy<=nan"])
def test_malformed_requirements_are_refused(text: str) -> None:
    """What cannot be read as a comparison with a number is refused."""
    with pytest.raises(ImuError, match="--require"):
        gates.parse(text)


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [(["pass"], 0), (["pass", "inconclusive"], 5), (["inconclusive", "fail"], 3), ([], 0)],
)
def test_exit_codes(verdicts: list[str], code: int) -> None:
    """Any failure is 3; otherwise anything inconclusive is 5."""
    from imu_cli.records.evaluation import Requirement

    made = [Requirement(text="", metric="", verdict=v, compared=None, reason="") for v in verdicts]
    assert gates.exit_code(made) == code
