"""The sentence at the top of every report: what was reached, what it cost, what remains, and damage by its name."""

from typing import Any

import pytest
import torch

from imu_cli.evaluation import summary
from imu_cli.evaluation.evidence import Evidence, Split
from imu_cli.records.evaluation import Metric
from imu_cli.records.parts import Interval

NOTHING = Split(torch.zeros(1), None, torch.zeros(1, 2), torch.zeros(1, 2))


def interval(low: float, high: float) -> Interval:
    """A 95 % interval."""
    return Interval(low=low, high=high, method="m")


def said(
    kind: Any, accuracy: float, over: float, head_only: bool | None = True, *more: Metric, **known: Any
) -> str:  # fmt: skip
    """The summary of a run on 5,000 samples whose unseen like reach 92 %, of whom 1 % lie below the 1st percentile."""

    def metric(name: str, value: float, around: float, target: float) -> Metric:
        spread, range_ = (
            Interval(low=value - around, high=value + around, method="m"),
            Interval(low=target - 0.008, high=target + 0.008, method="m"),
        )
        return Metric(
            name=name, title="", definition="", value=value, interval=spread, target=target, target_range=range_, n=5000
        )

    evidence = Evidence(kind, (), NOTHING, None, None, None, None, (torch.zeros(2, 2), None), 0, **known)
    found = [
        metric("forget.accuracy", accuracy, 0.0, 0.92),
        metric("forget.over_unlearned", over, 0.002, 0.01),
        metric("test.accuracy_drop", 0.013, 0.004, 0.0),
        metric("test_matched.accuracy", 0.92, 0.01, 0.92),
        *more,
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


def measured(name: str, value: float, low: float, high: float, **known: Any) -> Metric:
    """A metric with its interval."""
    return Metric(name=name, title="", definition="", value=value, interval=interval(low, high), **{"n": 5000, **known})


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.69, 0.74, "Its members stay recognisable: confidence still tells"),
        (0.26, 0.31, "Its members stay recognisable: being less sure tells"),
        (0.49, 0.56, ""),
    ],
)
def test_members_of_a_forgotten_class(low: float, high: float, words: str) -> None:
    """A class that the head no longer names keeps its members recognisable: said where the interval excludes the target."""
    text = said("class", 0.0, 0.9, True, measured("mia.auc", (low + high) / 2, low, high))
    assert (words in text) if words else "recognisable" not in text


def test_aim_and_evidence_are_two_things() -> None:
    """An AUC above 0.51 whose interval holds 0.5 tells nobody apart; the sentence says how far that was seen."""
    text = said("sample", 0.92, 0.01, True, measured("mia.auc", 0.5106, 0.48, 0.54))
    assert (
        "As far as 5000 samples show, confidence alone does not tell them from unseen ones (membership AUC 0.511"
        in text
    )
    assert "still tells" not in text


@pytest.mark.parametrize(
    ("low", "known", "words", "damage"),
    [
        (0.31, {}, "a single class is ruined, cat: 52.0 points", True),
        (0.31, {"max_class_drop": 0.6}, "One class pays more than the average shows: cat lost 52.0 points", False),
        (0.06, {}, "One class pays more than the average shows: cat lost 52.0 points", False),
        (0.06, {"max_class_drop": 0.05}, "more than --max-class-drop 0.05 allows", True),
        (0.06, {"max_drop": 0.1}, "", False),
        (0.005, {}, "", False),
    ],
)
def test_a_class_that_an_average_hides(low: float, known: dict[str, float], words: str, damage: bool) -> None:
    """Said where the interval excludes a fall of the guard's size, damage where it excludes a large one or the class guard."""
    worst = measured("test.worst_class_drop", 0.52, low, 0.7, note="cat", n=100)
    text = said("sample", 0.92, 0.01, True, worst, **known)
    assert (words in text) if words else "cat" not in text
    assert text.startswith("DAMAGE") is damage


def test_a_ruined_model_needs_no_class_named() -> None:
    """Where all have lost much, the worst of them is no news."""
    lost = measured("test.accuracy_drop", 0.72, 0.7, 0.74)
    found = said("sample", 0.92, 0.01, True, measured("test.worst_class_drop", 0.9, 0.6, 1.0, note="cat"), lost)
    assert "72.0 points of test accuracy are lost" in found
    assert "cat" not in found


def test_a_loss_that_was_allowed_is_still_one() -> None:
    """Damage within --max-drop is called damage, and that it was allowed is said beside it."""
    lost = measured("test.accuracy_drop", 0.08, 0.06, 0.1)
    assert "8.0 points of test accuracy are lost (--max-drop 0.1 allowed that)" in said(
        "sample", 0.92, 0.01, True, lost, max_drop=0.1
    )
    assert "more than --max-drop 0.001 allows" in said("sample", 0.92, 0.01, True, max_drop=0.001)


@pytest.mark.parametrize("kind", ["class", "sample"])
def test_a_twin_that_stays_is_remembered(kind: str) -> None:
    """However the samples score: they are not forgotten while their twins are in the training data."""
    assert said(kind, 0.0 if kind == "class" else 0.92, 0.01, True, twins_left=3).startswith(
        "NOT forgotten: 3 of the 1 forget samples"
    )


def test_guessing_is_no_evidence() -> None:
    """Where the original is right as often as chance is, a fall of nothing means nothing, and that comes first."""
    guessed = Metric(name="test.accuracy", title="", definition="", value=0.5, before=0.49, n=5000)
    assert said("sample", 0.92, 0.01, True, guessed).startswith(
        "NOT evidence of anything: the original is right on 49.00%"
    )
    kept = guessed.model_copy(update={"name": "retain.accuracy"})
    assert "49.00% of 5000 retain samples, no better than guessing" in said("sample", 0.92, 0.01, True, kept)
    few = guessed.model_copy(update={"n": 4, "before": 0.5})
    assert not said("sample", 0.92, 0.01, True, few).startswith("NOT")


@pytest.mark.parametrize(
    ("follows", "words"),
    [
        (True, "unseen samples like them have about 92.00% with this model"),
        (False, "a model that never saw them would have about 92.00%"),
    ],
)
def test_whose_unseen_samples_the_target_is(follows: bool, words: str) -> None:
    """Those under the model at hand where the unlearning compared with these, else the original's."""
    assert words in said("sample", 0.92, 0.01, True, target_follows=follows)
