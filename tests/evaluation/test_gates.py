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
    with pytest.raises(ImuError, match=r"'test.acuracy_drop' is not a metric \(did you mean 'test.accuracy_drop'"):
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("test.accuracy_drop<=3", "0.03 for 3 %"),
        ("forget.accuracy<=5", "0.05 for 5 %"),
        ("forget.accuracy<=5%", "0.05 for 5 %"),
        ("test.worst_class_drop<= 25", "0.25 for 25 %"),
        ("mia.auc<=51", "write 0.51"),
        ("mia.auc_two_sided<=51", "write 0.51"),
        ("mia.auc_two_sided<=0.4", "lies between 0.5 and 1"),
        ("retain.accuracy>=-1", "lies between 0 and 1"),
        ("test.accuracy>=99", "0.99 for 99 %"),
        ("retrained.kl>=-0.1", "is 0 or more"),
        ("retrained.js<=0.8", "lies between 0 and 0.693"),
        ("forget.accuracy.before<=5", "0.05 for 5 %"),
    ],
)
@pytest.mark.parametrize("option", ["--require", "gates:"])
def test_a_bound_outside_the_range_is_refused(text: str, said: str, option: str) -> None:
    """It decides nothing and is a mistake in writing; the message has the right spelling."""
    with pytest.raises(ImuError, match=option) as error:
        gates.parse(text, option)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["forget.accuracy<=0", "test.accuracy_drop<=0", "test.accuracy_drop<=-0.01", "mia.auc_two_sided<=0.5", "test.accuracy>=1",
     "retrained.kl<=3", "forget.entropy>=2", "features.drift<=0", "update_leak.auc<=0.6", "head_gap.test>=-0.02"],
)  # fmt: skip
def test_bounds_inside_the_range_are_taken(text: str) -> None:
    """The ends of a range may be asked for, from the side that decides something."""
    assert gates.parse(text).text == text


def near(name: str, value: float, target: float, n: int = 100) -> Metric:
    """A metric with a target."""
    interval = Interval(low=value - 0.01, high=value + 0.01, method="exact")
    return Metric(name=name, title="", definition="", value=value, interval=interval, target=target, n=n)


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        ("mia.auc<=0.55", 0.5, "require mia.auc_two_sided"),
        ("mia.auc>=0.45", 0.5, "require mia.auc_two_sided"),
        ("forget.accuracy<=0.93", 0.92, "require mia.auc_two_sided"),
        ("rmia.auc<=0.6", 0.5, "'rmia.auc>=X'"),
        ("head_gap.forget>=-0.1", 0.0, "'head_gap.forget<=X'"),
        ("update_leak.auc<=0.6", 0.5, "'update_leak.auc>=X'"),
        ("forget.accuracy<=0.005", 0.0, ""),  # a whole class: there is no other side
        ("test_forgotten.accuracy<=0.02", 0.0, ""),
        ("mia.auc_two_sided<=0.55", 0.5, ""),
        ("forget.over_unlearned<=0.03", 0.01, ""),
    ],
)
def test_a_bound_on_one_side_of_a_target_is_warned_of(text: str, target: float, said: str) -> None:
    """It passes at the far end of the other side, as 0.045 passes mia.auc<=0.55; the metric for both sides is named."""
    gate = gates.parse(text)
    found = gates.judge(gate, near(gate.metric, 0.045 if "<" in text else 0.955, target), on_value=False)
    assert found.verdict == "pass" or text.startswith(
        ("forget.accuracy<=0.005", "test_forgotten", "mia.auc_two", "forget.over")
    )
    assert said in found.warning
    assert bool(found.warning) == bool(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("forget.accuracy<=1", "passes whatever the model is"),
        ("test.accuracy>=0", "passes whatever the model is"),
        ("test.accuracy_drop<=1", "passes whatever the model is"),
        ("mia.auc_two_sided>=0.5", "passes whatever the model is"),
        ("forget.accuracy<0", "cannot be met by any model"),
        ("test.accuracy>1", "cannot be met by any model"),
        ("forget.accuracy<=0", ""),
        ("test.accuracy>=1", ""),
    ],
)
def test_a_bound_at_the_end_of_the_range_is_warned_of(text: str, said: str) -> None:
    """It may stand as a matter of form; that its verdict is certain is said."""
    gate = gates.parse(text)
    metrics = {gate.metric: near(gate.metric, 0.5, 0.0 if "forget" in text else 1.0)}
    found = gates.judge_all([gate], metrics, on_value=True)[0]
    assert said in found.warning
    assert bool(found.warning) == bool(said)


@pytest.mark.parametrize("other", ["mia.auc>=0.45", "mia.auc_two_sided<=0.55"])
def test_bounds_on_both_sides_warn_of_nothing(other: str) -> None:
    """With a second gate that holds the other side."""
    metrics = {name: near(name, 0.51, 0.5) for name in ("mia.auc", "mia.auc_two_sided")}
    alone = gates.judge_all([gates.parse("mia.auc<=0.55")], metrics, on_value=False)
    both = gates.judge_all([gates.parse("mia.auc<=0.55"), gates.parse(other)], metrics, on_value=False)
    assert alone[0].warning
    assert not any(item.warning for item in both)


def test_counts_meet_their_bound() -> None:
    """A fall of exactly 50 of 5,000 meets a bound of one hundredth, one more does not."""
    gate = gates.parse("test.accuracy_drop<=0.01")
    drop = Metric(name=gate.metric, title="", definition="", value=0.9968 - 0.9868, n=5000)
    assert gates.judge(gate, drop, on_value=True).verdict == "pass"
    assert gates.judge(gate, drop.model_copy(update={"value": 51 / 5000}), on_value=True).verdict == "fail"
