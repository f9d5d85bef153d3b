"""Requirements on metrics, such as ``test.accuracy_drop<=0.01``, and their three verdicts."""

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from imu_cli.errors import ImuError
from imu_cli.records.definitions import DEFINITIONS
from imu_cli.records.evaluation import Metric, Requirement
from imu_cli.records.parts import Interval

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
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
        ImuError: not of that form, no finite number, or an unknown metric, with the nearest name.
    """
    match = PATTERN.fullmatch(text)
    if not match:
        raise ImuError(f"{option} {text!r}: not a requirement; write for example 'test.accuracy_drop<=0.01'")
    metric, before, sign, number = match.groups()
    if metric not in DEFINITIONS:
        near = difflib.get_close_matches(metric, DEFINITIONS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known metrics are {', '.join(DEFINITIONS)}"
        raise ImuError(f"{option} {text!r}: {metric!r} is not a metric; {hint}")
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise ImuError(f"{option} {text!r}: {number!r} is not a number; shares are written as fractions, 0.01 for 1 %")
    return Gate(text, metric, bool(before), sign, bound)


def _judge(gate: Gate, value: float, interval: Interval | None) -> tuple[str, float, str]:
    """Verdict, the number that was compared, and why."""
    holds = COMPARE[gate.sign]
    if interval is None:
        return ("pass" if holds(value, gate.bound) else "fail"), value, "compared as it is"
    ends = (interval.high, interval.low) if gate.sign.startswith("<") else (interval.low, interval.high)
    worst, best = ends
    shown = f"95 % interval {interval.low:.4g} to {interval.high:.4g}"
    if holds(worst, gate.bound):
        return "pass", worst, shown
    if not holds(best, gate.bound):
        return "fail", worst, shown
    return "inconclusive", worst, f"{shown} holds the bound: too few samples to decide"


def judge(gate: Gate, metric: Metric, on_value: bool) -> Requirement:
    """The verdict on one gate: a metric that could not be measured fails, and so does NaN."""
    value = metric.before if gate.of_original else metric.value
    interval = metric.before_interval if gate.of_original else metric.interval
    if value is None or not math.isfinite(value):
        reason = f"not measured ({metric.missing})" if metric.missing else "not measured"
        return Requirement(text=gate.text, metric=gate.metric, verdict="fail", compared=None, reason=reason)
    exact = metric.census or on_value
    verdict, compared, reason = _judge(gate, value, None if exact else interval)
    if exact:
        reason = "a census: counted, not estimated" if metric.census else "point estimate (--require-on value)"
    elif interval is None:
        reason = "no interval is defined for this metric: point estimate"
    return Requirement(text=gate.text, metric=gate.metric, verdict=verdict, compared=compared, reason=reason)  # type: ignore[arg-type]


def judge_all(gates: Sequence[Gate], metrics: Mapping[str, Metric], on_value: bool) -> list[Requirement]:
    """Every gate's verdict; none is skipped because an earlier one failed."""
    return [judge(gate, metrics[gate.metric], on_value) for gate in gates]


def exit_code(verdicts: Sequence[Requirement]) -> int:
    """3 if any requirement failed, else 5 if any was inconclusive, else 0."""
    found = {item.verdict for item in verdicts}
    return 3 if "fail" in found else 5 if "inconclusive" in found else 0
