"""The metrics of ``imu evaluate`` from logits, features and labels: tensors in, ``Metric`` objects out."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.evaluation import attacks, comparisons, reference_heads, remaining
from imu_cli.evaluation.evidence import (
    NO_ORIGINAL,
    NO_RETAIN,
    NO_TEST,
    Evidence,
    Found,
    Split,
    both,
    chance_range,
    forgotten_rows,
    interval_of,
    matched_pool,
    metric,
    pair,
    phi,
    target_model,
)
from imu_cli.linear.rows import Outputs, only
from imu_cli.records.evaluation import ClassRow, Metric, PartRow
from imu_cli.records.metric_definitions import DEFINITIONS
from imu_cli.statistics import clustered, mask_bound, metrics
from imu_cli.statistics.clustered import Sides, some
from imu_cli.statistics.intervals import Estimate, NotMeasured
from imu_cli.unlearning import targets


def _forget_hit(e: Evidence, logits: Outputs) -> Estimate:
    if e.kind == "class":
        return metrics.predicted_as(logits, e.forgotten, census=True)
    return metrics.accuracy(logits, e.forget.labels, census=True)


def _forget_target(e: Evidence) -> tuple[float | None, str]:
    if e.kind == "class":
        return 0.0, "a model that never saw a class never predicts it"
    if e.kind == "mislabelled" and e.test is None:
        return 1 / e.forget.after.shape[1], "1 / number of classes; with --test the held-out rate"
    if e.test is None:
        return None, "needs --test"
    logits, whose = target_model(e, e.test)
    if e.kind == "sample":
        found = _matched_accuracy(e, e.test, logits)
        if isinstance(found, NotMeasured):
            return None, found.reason
        return found.value, f"class-matched test accuracy of {whose}"
    rate = targets.confusion_share(metrics.predictions(logits), e.test.labels, e.forget.labels, e.true_labels)
    return rate, f"held-out rate of these confusions in {whose}"


def _matched_accuracy(e: Evidence, test: Split, logits: Outputs) -> Found:
    """Accuracy at D_f's class proportions; not measured where test lacks one of its classes."""
    try:
        right = metrics.predictions(logits) == test.labels
        return metrics.class_matched_accuracy(right, test.labels, e.forget.labels, clusters=test.clusters)
    except ImuError as error:
        return NotMeasured(str(error))


def forget_metrics(e: Evidence) -> list[Metric]:
    """What the model does on D_f: a census, counted and not estimated."""
    n = len(e.forget.labels)
    goal, why = _forget_target(e)
    spread = chance_range(e, goal, n) if goal else None
    after, before = both(e.forget, lambda logits: _forget_hit(e, logits))
    found = [
        metric("forget.accuracy", after, before, split="forget", target=goal, target_note=why, target_range=spread)
    ]
    if e.true_labels is not None:
        known = e.true_labels >= 0
        truth = e.true_labels[known]
        shares = both(
            e.forget, lambda logits: metrics.accuracy_of(metrics.predictions(logits)[known] == truth, census=True)
        )
        found.append(metric("forget.true_accuracy", *shares, split="forget"))
    unseen = _matched_logits(e)
    of_label = both(e.forget, lambda logits: metrics.forget_confidence(logits, e.forget.labels, e.forgotten))
    confidence = 0.0 if e.kind == "class" else None if unseen is None else metrics.forget_confidence(*unseen).value
    found.append(metric("forget.confidence", *of_label, split="forget", target=confidence))
    spread_out = None if unseen is None or e.kind == "class" else metrics.entropy(unseen[0]).value
    found.append(metric("forget.entropy", *both(e.forget, metrics.entropy), split="forget", target=spread_out))
    moved = metrics.redirect_share(e.forget.after, e.forget.labels, e.forgotten)
    earlier = (
        None if e.forget.before is None else metrics.redirect_share(e.forget.before, e.forget.labels, e.forgotten).share
    )
    note = "" if moved.label is None else f"to {e.name_of(moved.label)}"
    found.append(metric("forget.redirect_share", moved.share, earlier, split="forget", note=note))
    return found


def _matched_logits(e: Evidence) -> tuple[Outputs, Tensor] | None:
    """Logits and labels of class-matched test samples, under the model that they are the target of."""
    rows = None
    with suppress(ImuError):  # test lacks a class of D_f: that is said where accuracies are matched
        rows = matched_pool(e) if e.kind != "class" else None
    return None if rows is None or e.test is None else (only(target_model(e, e.test)[0], rows), e.test.labels[rows])


def _accuracies(e: Evidence, split: Split, name: str) -> list[Metric]:
    """Accuracy on a split's kept classes, and its paired fall."""
    kept = split.only(~forgotten_rows(e, split.labels))
    if len(kept.labels) == 0:
        raise ImuError(f"--{name}: has no sample of a kept class; give data of all classes")
    shares = both(kept, lambda logits: metrics.accuracy(logits, kept.labels, clusters=kept.clusters))
    found = [metric(f"{name}.accuracy", *shares, split=name, note="kept classes" if e.forgotten else "")]
    if kept.before is None:
        return [*found, metric(f"{name}.accuracy_drop", NO_ORIGINAL, split=name)]
    right = [metrics.predictions(logits) == kept.labels for logits in (kept.before, kept.after)]
    found.append(
        metric(
            f"{name}.accuracy_drop",
            metrics.accuracy_drop(right[0], right[1], clusters=kept.clusters),
            split=name,
            note=clustered.flips_told(right[0], right[1], kept.clusters),
        )
    )
    if name == "test":
        worst = metrics.worst_class_drop(right[0], right[1], kept.labels, clusters=kept.clusters)
        found.append(metric("test.worst_class_drop", worst.drop, split=name, note=e.name_of(worst.label)))
    return found


def test_metrics(e: Evidence) -> list[Metric]:
    """Accuracy on held-out data, kept and forgotten classes apart."""
    class_only = [] if e.kind != "class" else ["test_forgotten.accuracy", "test.lost_to_forgotten", "mask_bound.test"]
    if e.test is None:
        names = ["test.accuracy", "test.accuracy_drop", "test.worst_class_drop", "test_matched.accuracy", *class_only]
        return [metric(name, NO_TEST, split="test") for name in names]
    test = e.test
    found = _accuracies(e, test, "test")
    if e.kind != "class":
        shares = both(test, lambda logits: _matched_accuracy(e, test, logits))
        return [*found, metric("test_matched.accuracy", *shares, split="test")]
    gone = test.only(forgotten_rows(e, test.labels))
    if len(gone.labels):
        shares = both(gone, lambda logits: metrics.predicted_as(logits, e.forgotten, clusters=gone.clusters))
        found.append(metric("test_forgotten.accuracy", *shares, split="test", target=0.0))
    else:
        absent = NotMeasured("needs --test samples of the forgotten classes")
        found.append(metric("test_forgotten.accuracy", absent, split="test"))
    return [*found, *_bounds(e, test, "test")]


def _bounds(e: Evidence, split: Split, name: str) -> list[Metric]:
    """What masking the forgotten outputs of the original would reach, and what was lost to them."""
    if split.before is None:
        return [metric(f"mask_bound.{name}", NO_ORIGINAL, split=name)]
    bound = mask_bound.mask_bound(split.before, split.labels, e.forgotten, clusters=split.clusters)
    found = [metric(f"mask_bound.{name}", bound, split=name)]
    if name == "test":
        lost = mask_bound.lost_to_forgotten(
            split.before, split.after, split.labels, e.forgotten, clusters=split.clusters
        )
        found.append(metric("test.lost_to_forgotten", lost, split=name))
    return found


def retain_metrics(e: Evidence) -> list[Metric]:
    """Accuracy on the training samples that stay, and what membership looks like for them."""
    names = [
        "retain.accuracy",
        "retain.accuracy_drop",
        "retain_mia.auc",
        *(["mask_bound.retain"] if e.kind == "class" else []),
    ]
    if e.retain is None:
        return [metric(name, NO_RETAIN, split="retain") for name in names]
    found = _accuracies(e, e.retain, "retain")
    if e.kind == "class":
        found += _bounds(e, e.retain, "retain")
    if e.test is None:
        return [*found, metric("retain_mia.auc", NO_TEST, split="retain")]
    after, before = _kept_auc(e, e.retain, e.test, "after"), _kept_auc(e, e.retain, e.test, "before")
    assert after is not None
    found.append(metric("retain_mia.auc", after, before, split="retain", note="not class-matched"))
    return found


def _kept_auc(e: Evidence, retain: Split, test: Split, which: Literal["before", "after"]) -> Estimate | None:
    """Retain against test on their kept classes."""
    sides = [phi(split, which) for split in (retain, test)]
    if sides[0] is None or sides[1] is None:
        return None
    kept = [~forgotten_rows(e, split.labels) for split in (retain, test)]
    clusters = pair(some(retain.clusters, kept[0]), some(test.clusters, kept[1]))
    return attacks.auc(sides[0][kept[0]], sides[1][kept[1]], clusters=clusters)


MEMBERSHIP = (
    "mia.auc",
    "mia.auc_two_sided",
    "mia.ks",
    "mia.tpr_at_1pct_fpr",
    "forget.over_unlearned",
    "update_leak.auc",
)


def _confidences(e: Evidence, test: Split) -> tuple[Sides, Sides | None, Sides | None]:
    """Confidence φ of D_f and of class-matched test samples, after and before (None without the original), and clusters of both.

    Raises:
        ImuError: test lacks a class of D_f.
    """
    rows = matched_pool(e)
    assert rows is not None
    pairs = [(phi(e.forget, which), phi(test, which)) for which in ("after", "before")]
    after, before = (None if mine is None or theirs is None else (mine, theirs[rows]) for mine, theirs in pairs)
    assert after is not None
    return after, before, pair(e.forget.clusters, some(test.clusters, rows))


def membership_metrics(e: Evidence) -> list[Metric]:
    """D_f against class-matched test samples on the logit-scaled confidence."""
    if e.test is None:
        return [metric(name, NO_TEST, split="forget, test") for name in MEMBERSHIP]
    try:
        after, before, clusters = _confidences(e, e.test)
    except ImuError as error:
        return [metric(name, NotMeasured(str(error)), split="forget, test") for name in MEMBERSHIP]

    def both(measure: Callable[..., Found]) -> tuple[Found, Found | None]:
        return measure(*after, clusters=clusters), None if before is None else measure(*before, clusters=clusters)

    note = f"{len(after[0])} forget against {len(after[1])} class-matched test samples"
    over, over_before = both(attacks.over_unlearned)
    expected = attacks.over_unlearned_chance(*after, clusters=clusters) if isinstance(over, Estimate) else None
    return [
        metric("mia.auc", *both(attacks.auc), split="forget, test", target=0.5, note=note),
        metric("mia.auc_two_sided", *both(attacks.two_sided_auc), split="forget, test", target=0.5),
        metric("mia.ks", *both(attacks.ks_distance), split="forget, test"),
        metric("mia.tpr_at_1pct_fpr", *both(_either_tail), split="forget, test", target=0.01),
        metric("forget.over_unlearned", over, over_before, split="forget, test", target=0.01, target_range=expected),
        metric(
            "update_leak.auc",
            NO_ORIGINAL if before is None else attacks.update_leak(before, after, clusters=clusters),
            split="forget, test",
            target=0.5,
        ),
    ]


def _either_tail(forget: Tensor, pool: Tensor, clusters: Sides | None) -> Found:
    found = attacks.tpr_at_fpr(forget, pool, clusters=clusters)
    return found if isinstance(found, NotMeasured) else found.either


def per_class(e: Evidence) -> list[ClassRow]:
    """Accuracy per class on every given split, before and after."""
    rows = []
    for name, split in (("forget", e.forget), ("test", e.test), ("retain", e.retain)):
        if split is None:
            continue
        after = metrics.class_accuracy(split.after, split.labels)
        before = {} if split.before is None else metrics.class_accuracy(split.before, split.labels)
        rows += [
            ClassRow.model_validate({
                "class": e.name_of(label), "split": name, "n": found.n, "after": found.value,
                "before": before[label].value if label in before else None,
            })
            for label, found in after.items()
        ]  # fmt: skip
    return rows


def per_part(e: Evidence) -> list[PartRow]:
    """The share predicted, confidence and AUC on the forget samples of each id or group, where asked for."""
    return [_part(name, replace(e, forget=e.forget.only(rows), parts=None)) for name, rows in (e.parts or {}).items()]


def _part(name: str, e: Evidence) -> PartRow:
    auc = None
    if e.test is not None:
        with suppress(ImuError):  # said in full where all of D_f is measured
            after, _, clusters = _confidences(e, e.test)
            auc = attacks.auc(*after, clusters=clusters)
    return PartRow(
        name=name,
        n=len(e.forget.labels),
        before=None if e.forget.before is None else _forget_hit(e, e.forget.before).value,
        after=_forget_hit(e, e.forget.after).value,
        confidence=metrics.forget_confidence(e.forget.after, e.forget.labels, e.forgotten).value,
        auc=None if auc is None else auc.value,
        auc_interval=None if auc is None else interval_of(auc),
    )


def measure(e: Evidence) -> list[Metric]:
    """Every metric, in the order of the definitions; those whose data was not given say what they need."""
    found = [
        *forget_metrics(e), *test_metrics(e), *membership_metrics(e), *retain_metrics(e), *remaining.metrics_of(e),
        *reference_heads.reference_head_metrics(e), *comparisons.retrained_metrics(e), *comparisons.shadow_metrics(e),
        *comparisons.compat_metrics(e),
    ]  # fmt: skip
    by_name = {item.name: item for item in found}
    absent = [name for name in DEFINITIONS if name not in by_name]
    by_name |= {name: metric(name, _why_absent(e, name), split="") for name in absent}
    return [by_name[name] for name in DEFINITIONS]


def _why_absent(e: Evidence, name: str) -> NotMeasured:
    if name == "forget.true_accuracy":
        return NotMeasured(f"needs {DEFINITIONS[name].needs}")
    return comparisons.why_absent(e, name) or NotMeasured(f"has no meaning in the {e.kind} scenario")
