"""The sentence at the top of every report: what was reached, what it cost, what remains, and damage by its name."""

from typing import Any

import pytest
import torch

from imu_cli.evaluation import summary
from imu_cli.evaluation.evidence import Evidence, Split
from imu_cli.records.evaluation import Metric
from imu_cli.records.parts import Interval

NOTHING = Split(torch.zeros(1), None, torch.zeros(1, 2), torch.zeros(1, 2))


def said(kind: Any, accuracy: float, over: float, head_only: bool | None = True) -> str:
    """The summary of a run on 5,000 samples whose unseen like reach 92 %, of whom 1 % lie below the 1st percentile."""

    def metric(name: str, value: float, around: float, target: float) -> Metric:
        spread, range_ = (
            Interval(low=value - around, high=value + around, method="m"),
            Interval(low=target - 0.008, high=target + 0.008, method="m"),
        )
        return Metric(
            name=name, title="", definition="", value=value, interval=spread, target=target, target_range=range_, n=5000
        )

    evidence = Evidence(kind, (), NOTHING, None, None, None, None, (torch.zeros(2, 2), None), 0)
    found = [
        metric("forget.accuracy", accuracy, 0.0, 0.92),
        metric("forget.over_unlearned", over, 0.002, 0.01),
        metric("test.accuracy_drop", 0.013, 0.004, 0.0),
        metric("test_matched.accuracy", 0.92, 0.01, 0.92),
    ]
    return summary.of(evidence, found, head_only)


@pytest.mark.parametrize(
    ("accuracy", "over", "signs"),
    [
        (0.92, 0.01, []),
        (0.97, 0.0, []),
        (0.903, 0.019, []),  # within what chance shows of D_f and of the target together
        (0.90, 0.01, ["90.00% of the forget samples are right, and as many unseen ones would not be below 90.20%"]),
        (0.19, 0.0056, ["19.00% of the forget samples are right"]),
        (0.92, 0.3, ["30.0% of the forget samples are less sure than 99 % of unseen samples"]),
        (0.0, 1.0, ["0.00% of the forget samples are right", ", and 100.0% of the forget samples are less sure"]),
    ],
)
def test_damage_is_said_first(accuracy: float, over: float, signs: list[str]) -> None:
    """Single samples below what unseen ones show are damage, whichever sign shows it, and above it are not."""
    text = said("sample", accuracy, over)
    assert text.startswith("DAMAGE, not forgetting: ") == bool(signs)
    assert all(sign in text for sign in signs)
    assert "Test accuracy fell by 1.30 points" in text


def test_a_class_at_zero_is_no_damage() -> None:
    """For whole classes 0 is the target, however far below test it lies."""
    assert "DAMAGE" not in said("class", 0.0, 0.9)


@pytest.mark.parametrize(
    ("head_only", "words"),
    [(True, "the features still hold everything"), (False, "outside the head"), (None, "not known what changed")],
)
def test_what_remains_is_always_said(head_only: bool | None, words: str) -> None:
    """Head only, more than the head, or unknown: each has its sentence."""
    assert words in said("sample", 0.92, 0.01, head_only)
