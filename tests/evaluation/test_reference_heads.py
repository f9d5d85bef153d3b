"""Heads fitted again without D_f: what they differ by from the original for other reasons is taken off."""

from dataclasses import replace

import hundred
import pytest
import torch
from torch import Tensor

from imu_cli.evaluation import reference_heads
from imu_cli.evaluation.evidence import Evidence, Split
from imu_cli.events import Log
from imu_cli.linear import refits
from imu_cli.records.evaluation import Metric
from imu_cli.statistics.intervals import NotMeasured, census

FORGET = 500
MADE = hundred.data(n=3000, m=1500)


def split(features: Tensor, labels: Tensor, after: Tensor) -> Split:
    """Outputs of the original and of another head."""
    h = hundred.wide(features)
    return Split(labels, h @ MADE.head.T, h @ after.T, features, features)


def evidence(retained: int, after: Tensor = MADE.head, training: int | None = None) -> Evidence:
    """The first 500 training samples are forgotten, the next ``retained`` given."""
    rows = slice(FORGET, FORGET + retained)
    return Evidence(
        kind="sample",
        forgotten=(),
        forget=split(MADE.train[:FORGET], MADE.labels[:FORGET], after),
        test=split(MADE.test, MADE.test_labels, after),
        retain=split(MADE.train[rows], MADE.labels[rows], after),
        true_labels=None,
        drift=census(0.0, FORGET),
        head=(after[:, :-1], after[:, -1]),
        seed=0,
        head_before=(MADE.head[:, :-1], MADE.head[:, -1]),
        same_backbone=True,
        training=training,
    )


def gaps(e: Evidence) -> dict[str, Metric]:
    """The metrics by name."""
    return {item.name: item for item in reference_heads.reference_head_metrics(e)}


@pytest.fixture(scope="module")
def whole() -> dict[str, Metric]:
    """With every retained sample given, of the original."""
    return gaps(evidence(2500, training=3000))


@pytest.fixture(scope="module")
def third() -> tuple[Evidence, reference_heads.Refitted]:
    """With a third of the retained samples, and the heads fitted on it."""
    e = evidence(833, training=3000)
    found = reference_heads.refit(e)
    assert isinstance(found, reference_heads.Refitted)
    return e, found


@pytest.fixture(scope="module")
def third_gaps(third: tuple[Evidence, reference_heads.Refitted]) -> dict[str, Metric]:
    """The metrics from these heads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_heads, "refit", lambda e: third[1])
        return gaps(third[0])


@pytest.mark.parametrize("name", ["head_gap.test", "head_gap.retain"])
def test_a_part_of_the_rows_shows_no_gap_that_all_do_not(
    name: str,
    whole: dict[str, Metric],
    third: tuple[Evidence, reference_heads.Refitted],
    third_gaps: dict[str, Metric],
) -> None:
    """A third of the rows: a head fitted on them differs from the original by points, which are no doing of D_f's."""
    part, refitted = third
    side, found = part.test if name == "head_gap.test" else part.retain, third_gaps[name]
    assert side is not None
    assert side.before is not None
    uncorrected = reference_heads._differences(part, side, side.before, refitted.without).double().mean()
    assert found.before is not None
    assert whole[name].before is not None
    assert abs(float(uncorrected)) > 0.02 or name == "head_gap.retain"
    assert found.before == pytest.approx(whole[name].before, abs=0.015)
    assert found.interval is not None
    assert found.value is not None
    assert found.interval.low <= found.value <= found.interval.high


def test_the_part_of_d_f_is_drawn_as_the_rows_are(
    whole: dict[str, Metric], third: tuple[Evidence, reference_heads.Refitted], third_gaps: dict[str, Metric]
) -> None:
    """A third of the retained samples stands beside a third of D_f, and the note and an interval say so."""
    found, part = third[1], third_gaps["head_gap.forget"]
    assert found.drawn is not None
    assert len(found.drawn) == pytest.approx(FORGET * 833 / 2500, abs=1)
    assert "33% of those there are" in found.note
    assert part.interval is not None
    assert whole["head_gap.forget"].interval is None
    assert whole["head_gap.forget"].census


def test_a_head_fitted_without_d_f_has_no_gap(whole: dict[str, Metric]) -> None:
    """It is the reference itself: 0 on every split, where the original remembers D_f."""
    rows, labels = MADE.train[FORGET:], MADE.labels[FORGET:]
    every = torch.ones(1, len(labels), dtype=torch.bool)
    without = refits.fit(hundred.wide(rows), labels, every, hundred.CLASSES, hundred.L2, start=MADE.head).heads[0]
    found = gaps(evidence(2500, without, training=3000))
    for name in ("forget", "test", "retain"):
        assert found[f"head_gap.{name}"].value == pytest.approx(0, abs=0.004), name
    assert whole["head_gap.forget"].before is not None
    assert whole["head_gap.forget"].before > 0.02


@pytest.mark.parametrize(
    ("kind", "training", "share"),
    [("sample", None, 1.0), ("sample", 3000, 0.4), ("sample", 600, 1.0), ("class", None, 0.5)],
)
def test_how_large_a_part_the_rows_are(kind: str, training: int | None, share: float) -> None:
    """By the size of the training data where that is known, else of whole classes by their sizes, else all."""
    e = replace(evidence(1000, training=training), kind=kind)  # type: ignore[arg-type]
    if kind == "class":
        labels = torch.full((20,), 7)
        e = replace(e, forgotten=(7,), forget=split(MADE.train[:20], labels, MADE.head))
        assert e.retain is not None
        kept = e.retain.labels != 7
        e = replace(e, retain=e.retain.only(kept))
    assert e.retain is not None
    assert reference_heads.share_of_training(e, e.retain) == pytest.approx(share, abs=0.01)


def test_more_rows_than_time_are_fitted_on_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is refused: heads are fitted on a random part, which the note says, and the gaps stay what they are."""
    monkeypatch.setattr(reference_heads, "WORK", 100 * 65 * 10 * 1500)
    monkeypatch.setattr(reference_heads, "LEAST_PER_CLASS", 1)
    found = gaps(evidence(2500, training=3000))
    assert found["head_gap.retain"].n == 1500
    assert "heads fitted on 1500 retain samples, 60% of those there are" in found["head_gap.forget"].note


def test_a_head_that_did_not_come_near_is_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped early, it is said; stopped far away, nothing is measured."""
    monkeypatch.setattr(refits, "ITERATIONS", 3)
    found = reference_heads.refit(evidence(500, training=3000))
    if isinstance(found, reference_heads.Refitted):
        assert "above their best" in found.note
    monkeypatch.setattr(reference_heads, "FAR", 0.0)
    found = reference_heads.refit(evidence(500, training=3000))
    assert isinstance(found, NotMeasured)
    assert found.reason.startswith("inconclusive")


def test_what_takes_long_is_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate before the first head, and the way in a hundred parts."""
    monkeypatch.setattr(reference_heads, "LONG", 0.0)
    log = Log()
    reference_heads.refit(replace(evidence(500, training=3000), log=log))
    assert any(note.startswith("reference heads: 10 on 500 samples, about") for note in log.notes)
    assert "reference heads" in log.clock.seconds
