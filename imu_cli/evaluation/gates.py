"""Requirements on metrics, such as ``test.accuracy_drop<=0.01``, and their three verdicts."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imu_cli.errors import ImuError, nearest
from imu_cli.records.evaluation import Metric, Requirement
from imu_cli.records.metric_definitions import BOTH_SIDES, EVERY, NUMBERS, SIDE_IS_HARMLESS, range_of
from imu_cli.records.parts import Interval
from imu_cli.statistics.counts import holds

PATTERN = re.compile(r"\s*([\w.]+?)(\.before)?\s*(<=|>=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True)
class Gate:
    """A parsed requirement: which metric, of which model, compared how with what."""

    text: str
    metric: str
    of_original: bool
    sign: str
    bound: float


def parse(text: str, option: str = "--require") -> Gate:
    """Read ``metric<=number``; ``metric.before`` is the original's value.

    Raises:
        ImuError: not of that form, no finite number, an unknown metric, with the nearest name, or a bound outside the
            metric's range.
    """
    match = PATTERN.fullmatch(text)
    if not match:
        raise ImuError(f"{option} {text!r}: not a requirement; write for example 'test.accuracy_drop<=0.01'")
    metric, before, sign, number = match.groups()
    if metric not in EVERY:
        hint = nearest(metric, EVERY, cutoff=0.5) or f"; known metrics are {', '.join(EVERY)}"
        raise ImuError(f"{option} {text!r}: {metric!r} is not a metric{hint}")
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise ImuError(f"{option} {text!r}: {number!r} is not a number; {_spelling(metric, number)}")
    _refuse_outside(text, option, metric, number, bound)
    return Gate(text, metric, bool(before), sign, bound)


def _refuse_outside(text: str, option: str, metric: str, number: str, bound: float) -> None:
    """Refuse a bound that no value of the metric can reach: the verdict is certain before anything is measured.

    Raises:
        ImuError: with the metric's range, and how the bound was probably meant.
    """
    low, high = range_of(metric)
    if not low <= bound <= high:
        raise ImuError(
            f"{option} {text!r}: {_where(metric)}, so that {number} bounds nothing; {_spelling(metric, number)}"
        )


def _where(metric: str) -> str:
    low, high = range_of(metric)
    return f"{metric} lies between {low:.4g} and {high:.4g}" if math.isfinite(high) else f"{metric} is {low:g} or more"


def decided(gate: Gate) -> str:
    """What is wrong with a bound at the end of the range that every value meets, or none; empty where it decides something."""
    low, high = range_of(gate.metric)
    ends = {"<=": high, ">=": low, "<": low, ">": high}
    if gate.bound != ends[gate.sign]:
        return ""
    verdict = "passes whatever the model is" if "=" in gate.sign else "cannot be met by any model"
    return f"{verdict}: {_where(gate.metric)}"


def _spelling(metric: str, number: str) -> str:
    """How a bound is written, with the one that was probably meant where it was given in percent."""
    try:
        percent = float(number.rstrip("%"))
    except ValueError:
        percent = math.nan
    low, high = range_of(metric)
    if not (math.isfinite(percent) and low <= percent / 100 <= high and math.isfinite(high)):
        return "write a number in that range" if metric in NUMBERS else "shares are written as fractions, 0.01 for 1 %"
    if metric in NUMBERS:
        return f"write {percent / 100:.6g} for {percent:g} %"
    return f"shares are written as fractions, {percent / 100:.6g} for {percent:g} %"


def _judge(gate: Gate, value: float, interval: Interval | None, n: int | None) -> tuple[str, float, str]:
    """Verdict, the number that was compared, and why; a share of n samples is compared by its count."""
    if interval is None:
        return ("pass" if holds(value, gate.sign, gate.bound, n) else "fail"), value, "compared as it is"
    ends = (interval.high, interval.low) if gate.sign.startswith("<") else (interval.low, interval.high)
    worst, best = ends
    shown = f"95 % interval {interval.low:.4g} to {interval.high:.4g}"
    if holds(worst, gate.sign, gate.bound):
        return "pass", worst, shown
    if not holds(best, gate.sign, gate.bound):
        return "fail", worst, shown
    return "inconclusive", worst, f"{shown} holds the bound: too few samples to decide"


def judge(gate: Gate, metric: Metric, on_value: bool) -> Requirement:
    """The verdict on one gate: a metric that could not be measured fails, and so does NaN."""
    value = metric.before if gate.of_original else metric.value
    interval = metric.before_interval if gate.of_original else metric.interval
    warning = decided(gate) or one_sided(gate, metric)
    if value is None or not math.isfinite(value):
        reason = f"not measured ({metric.missing})" if metric.missing else "not measured"
        return Requirement(text=gate.text, metric=gate.metric, verdict="fail", compared=None, reason=reason)
    exact = metric.census or on_value
    verdict, compared, reason = _judge(gate, value, None if exact else interval, metric.n)
    if exact:
        reason = "a census: counted, not estimated" if metric.census else "point estimate (--require-on value)"
    elif interval is None:
        reason = "no interval is defined for this metric: point estimate"
    return Requirement(
        text=gate.text, metric=gate.metric, verdict=verdict, compared=compared, reason=reason, warning=warning,  # type: ignore[arg-type]
    )  # fmt: skip


def one_sided(gate: Gate, metric: Metric) -> str:
    """What a bound on one side lets pass where a metric has a target to be near; empty where nothing, or it is harmless."""
    if metric.target is None or gate.of_original or gate.metric in SIDE_IS_HARMLESS:
        return ""
    low, high = range_of(gate.metric)
    upper = gate.sign.startswith("<")
    if metric.target == (low if upper else high):
        return ""
    other = BOTH_SIDES.get(gate.metric, "")
    beside = "" if upper == (gate.bound >= metric.target) else "; the target itself does not meet it"
    advice = f"require {other}, which counts both sides" if other else (
        f"require a bound on the other side too, '{gate.metric}{'>=' if upper else '<='}X'"
    )  # fmt: skip
    return (
        f"one-sided: {gate.metric} should be near {metric.target:.4g}, and this also passes at "
        f"{low if upper or not math.isfinite(high) else high:g}, far {'below' if upper else 'above'} it{beside}; {advice}"
    )


def judge_all(gates: Sequence[Gate], metrics: Mapping[str, Metric], on_value: bool) -> list[Requirement]:
    """Every gate's verdict; none is skipped because an earlier one failed. Two that bound a metric on both sides warn of nothing."""
    found = [judge(gate, metrics[gate.metric], on_value) for gate in gates]
    sides = {(gate.metric, gate.of_original, gate.sign[0]) for gate in gates}
    for gate, verdict in zip(gates, found, strict=True):
        opposite = ">" if gate.sign[0] == "<" else "<"
        if (gate.metric, gate.of_original, opposite) in sides or any(
            BOTH_SIDES.get(gate.metric) == other.metric for other in gates
        ):
            verdict.warning = decided(gate)
    return found


def exit_code(verdicts: Sequence[Requirement]) -> int:
    """3 if any requirement failed, else 5 if any was inconclusive, else 0."""
    found = {item.verdict for item in verdicts}
    return 3 if "fail" in found else 5 if "inconclusive" in found else 0
