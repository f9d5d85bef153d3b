"""Metrics of what features hold: every model on its own features, the retrained model's own number as the target."""

from dataclasses import replace

import pytest
import torch
from test_assembly import FORGET, ORIGINAL, RETAIN, TEST, WIDTH, by_name, evidence, fitted, hidden, wide
from torch import Tensor

from imu_cli.evaluation import assembly, remaining, summary
from imu_cli.evaluation.evidence import Evidence, Split
from imu_cli.evaluation.relearning import Relearned
from imu_cli.records.evaluation import Metric
from imu_cli.records.parts import Interval
from imu_cli.statistics.intervals import Estimate, NotMeasured
from imu_cli.statistics.metrics import binomial_range

pytestmark = pytest.mark.usefixtures("one_thread")
GONE = 2


def mixed(h: Tensor, labels: Tensor, share: float) -> Tensor:
    """Features in which this share of what class 2 has of its own is gone: samples come near to the mean of all."""
    return torch.where((labels == GONE)[:, None], h - share * (h - h.roll(1, 0)), h)


def moved(share: float = 0.6, kind: str = "class") -> Evidence:
    """Another backbone after, and a retrained one that is turned round and has lost more of the class than it."""
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).Q

    def after(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return mixed(*part, share), part[1]

    def again(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return mixed(*part, 0.9) @ turn, part[1]

    heads = fitted(after(FORGET), after(RETAIN)), fitted(again(RETAIN))
    e = evidence(hidden(), kind)

    def split(old: Split, part: tuple[Tensor, Tensor]) -> Split:
        chosen = (torch.isin(part[1], old.labels.unique()), slice(None))[len(old.labels) == len(part[1])]
        h, now, other = (given[0][chosen] for given in (part, after(part), again(part)))
        return Split(old.labels, wide(h) @ ORIGINAL.T, wide(now) @ heads[0].T, now, h, wide(other) @ heads[1].T, other)

    assert e.test is not None
    assert e.retain is not None
    return replace(
        e, forget=split(e.forget, FORGET), test=split(e.test, TEST), retain=split(e.retain, RETAIN), same_backbone=False,
        head=(heads[0][:, :-1], heads[0][:, -1]), head_retrained=(heads[1][:, :-1], heads[1][:, -1]),
    )  # fmt: skip


def seen_by(e: Evidence, which: str) -> Evidence:
    """The same samples as if another of the models were the one that is evaluated."""

    def turned(split: Split | None) -> Split | None:
        return split and replace(split, after=getattr(split, which), features=getattr(split, f"features_{which}"))

    forget, test, retain = (turned(split) for split in (e.forget, e.test, e.retain))
    assert forget is not None
    return replace(e, forget=forget, test=test, retain=retain, head=getattr(e, f"head_{which}"))


@pytest.fixture(scope="module")
def found() -> dict[str, Metric]:
    """Everything of the moved backbone."""
    return by_name(assembly.measure(moved()))


OWN = ("probe.accuracy", "recovery.k1", "recovery.k5", "recovery.k10", "feature_mia.auc", "feature_mia.auc_nearest")


@pytest.mark.parametrize("which", ["before", "retrained"])
def test_each_model_is_judged_on_its_own_features(which: str, found: dict[str, Metric]) -> None:
    """``before`` and the target are what the original and the retrained model get when they are evaluated themselves."""
    alone = by_name(remaining.metrics_of(seen_by(moved(), which)))
    for name in OWN:
        given = found[name].before if which == "before" else found[name].target
        assert given == pytest.approx(alone[name].value, abs=1e-12), name
        assert found[name].target_note == remaining.ITS_OWN


def test_similarity_has_the_retrained_models_as_its_target(found: dict[str, Metric]) -> None:
    """D_f's features went, kept ones stayed; turned round as a whole the retrained model's kept features are the original's."""
    assert found["cka.test"].value == pytest.approx(1, abs=1e-9)
    assert found["cka.test"].target == pytest.approx(1, abs=1e-9)
    assert found["retrained.cka.test"].value == pytest.approx(1, abs=1e-9)
    near, target = found["cka.forget"].value, found["cka.forget"].target
    assert near is not None
    assert target is not None
    assert target < near < 0.95
    assert found["retrained.cka.forget"].before == target
    value, before = found["retrained.cka.forget"].value, found["retrained.cka.forget"].before
    assert value is not None
    assert before is not None
    assert value > before


def test_information_lies_between_the_original_and_the_retrained_model(found: dict[str, Metric]) -> None:
    """Part of the way by the index, which says what it told D_f from and in how many nats."""
    index = found["retrained.idi"]
    assert index.interval is not None
    assert 0 < index.interval.low < index.interval.high < 1
    assert (index.before, index.target, index.split) == (1.0, 0.0, "forget, retain")
    assert "D_f against kept retain samples, 100 each" in index.note


def test_the_first_sentences_say_how_far_the_features_went() -> None:
    """With a retrained model the share of the way by the probe; without one, or the original, not a word about it."""
    e = moved()
    found = by_name(assembly.measure(e))
    text = summary.of(e, list(found.values()), False)
    probe = found["probe.accuracy"]
    assert probe.value is not None
    assert probe.before is not None
    assert probe.target is not None
    way = (probe.before - probe.value) / (probe.before - probe.target)
    assert f"The features went {way:.0%} of the way to the retrained model's" in text
    assert "information difference index" in text
    assert "Tensors outside the head changed as well" in text
    assert "Only the head" not in text

    def alone(split: Split | None) -> Split | None:
        return split and replace(split, retrained=None, features_retrained=None)

    forget, test, retain = (alone(split) for split in (e.forget, e.test, e.retain))
    assert forget is not None
    bare = replace(e, forget=forget, test=test, retain=retain, head_retrained=None)
    quiet = summary.of(bare, assembly.measure(bare), False)
    assert "of the way" not in quiet
    assert "retrained" not in quiet


def test_features_that_are_no_others_have_no_way_to_go() -> None:
    """A retrained model whose features are the original's: not a word about a share of nothing."""
    e = moved()

    def same(split: Split | None) -> Split | None:
        return split and replace(split, features_retrained=split.features_before)

    forget, test, retain = (same(split) for split in (e.forget, e.test, e.retain))
    assert forget is not None
    one = replace(e, forget=forget, test=test, retain=retain, head_retrained=e.head_before)
    assert "The features" not in summary.of(one, assembly.measure(one), False)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.92, "The features went 50% of the way to the retrained model's: a fresh linear classifier that never saw"),
        (0.94, "The features did not come nearer"),
        (0.95, "The features did not come nearer"),
        (0.89, "The features went past"),
    ],
)
def test_single_samples_go_by_what_a_probe_says_of_them(value: float, said: str) -> None:
    """5,000 of them are counted: the original's 94 % lie beyond what chance shows at 90 %, those of 50 samples do not."""
    e = evidence(ORIGINAL)

    def probe(n: int) -> list[Metric]:
        spread = binomial_range(0.9, n)
        made = Metric(
            name="probe.accuracy", title="", definition="", value=value, before=0.94, target=0.9, n=n, census=True,
            target_range=Interval(low=spread[0], high=spread[1], method=""),
        )  # fmt: skip
        return [item for item in assembly.measure(e) if item.name != made.name] + [made]

    assert said in summary.of(e, probe(5000), False)
    assert "The features" not in summary.of(e, probe(50), False)
    assert "The features" not in summary.of(e, probe(5000), True)


def test_of_a_head_alone_the_index_is_one_and_the_features_the_same() -> None:
    """By construction, and said to be; probe and recovery of the original are not computed again."""
    e = moved()

    def back(split: Split | None) -> Split | None:
        return split and replace(split, features=split.features_before)  # type: ignore[arg-type]

    forget, test, retain = (back(split) for split in (e.forget, e.test, e.retain))
    assert forget is not None
    head = hidden()
    e = replace(e, forget=forget, test=test, retain=retain, same_backbone=True, head=(head[:, :-1], head[:, -1]))
    found = by_name(remaining.metrics_of(e))
    assert (found["cka.forget"].value, found["cka.test"].value) == (1.0, 1.0)
    assert found["retrained.idi"].value == 1.0
    assert "1 by construction" in found["retrained.idi"].note
    assert found["cka.forget"].interval is None
    for name in OWN:
        assert found[name].value == found[name].before, name
    text = summary.of(e, assembly.measure(e), True)
    assert "the information difference index is 1 by construction" in text
    assert "of the way" not in text


def test_single_samples_are_told_from_unseen_ones() -> None:
    """Attack and index compare with class-matched unseen samples; without a retrained model chance is the target."""
    e = moved(kind="sample")
    found = by_name(assembly.measure(e))
    assert found["retrained.idi"].split == "forget, test"
    assert found["feature_mia.auc"].target is not None
    assert found["feature_mia.auc"].note == "400 forget against 1200 class-matched test samples"
    assert (
        found["probe.accuracy"].target_range is not None
    )  # a census of D_f: what chance shows at the retrained model's rate
    without = by_name(remaining.metrics_of(evidence(ORIGINAL)))
    assert without["feature_mia.auc"].target == 0.5


def estimate(value: float) -> Estimate:
    """A share with a range."""
    return Estimate(value, value - 0.05, value + 0.05, 200, "mean and range of 3 draws")


def test_relearning_compares_with_never_seen_samples_and_the_retrained_model() -> None:
    """The target is the retrained model's; of single samples without it what never-seen ones reach; the lead is a difference."""
    lacks = NotMeasured("needs more than 25 samples")

    def model(mine: float, unseen: float) -> Relearned:
        return Relearned(
            {5: estimate(mine), 10: estimate(mine + 0.1), 25: lacks},
            {5: estimate(unseen), 10: estimate(unseen), 25: lacks},
        )

    given = {"after": model(0.4, 0.3), "before": model(0.8, 0.3), "retrained": model(0.3, 0.3)}
    found = by_name(remaining.metrics_of(replace(evidence(ORIGINAL), relearned=given)))
    assert (found["relearn.k5"].value, found["relearn.k5"].before, found["relearn.k5"].target) == (0.4, 0.8, 0.3)
    assert found["relearn.k5"].note == "never-seen samples: 30.00%"
    assert found["relearn.k25"].missing == lacks.reason
    lead = found["relearn.lead"]
    assert (lead.value, lead.before, lead.target) == pytest.approx((0.2, 0.6, 0.1))
    assert lead.note == "k = 10"
    assert lead.interval is not None
    assert (lead.interval.low, lead.interval.high) == pytest.approx((0.1, 0.3))
    del given["retrained"]
    alone = by_name(remaining.metrics_of(replace(evidence(ORIGINAL), relearned=given)))
    assert (alone["relearn.k5"].target, alone["relearn.lead"].target) == (0.3, 0.0)
