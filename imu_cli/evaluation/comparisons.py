"""Metrics against something other than the original: retrained heads, a retrained model, shadow heads, papers' scores."""

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from imu_cli.evaluation import attacks, published_scores, retrained
from imu_cli.evaluation.evidence import (
    NO_ORIGINAL,
    NO_RETAIN,
    NO_RETRAINED,
    NO_TEST,
    Evidence,
    Found,
    Split,
    forgotten_rows,
    metric,
)
from imu_cli.linear.rows import Outputs
from imu_cli.records.evaluation import Metric
from imu_cli.statistics import clustered, metrics
from imu_cli.statistics.intervals import Estimate, NotMeasured, census

LOOSE = 0.03
"""Share of test samples beyond a threshold meant for 1 %, from which it is said that it does not hold."""

NO_COMPAT = NotMeasured("needs --compat")


def hits(e: Evidence, split: Split, logits: Outputs) -> Tensor:
    """Which rows count as right (n,): on D_f of the class scenario those predicted as any forgotten class."""
    predicted = metrics.predictions(logits)
    if split is e.forget and e.kind == "class":
        return metrics.among(predicted, e.forgotten)
    return predicted == split.labels


def _gap(e: Evidence, split: Split, logits: Outputs, other: Outputs) -> Estimate:
    right = hits(e, split, logits), hits(e, split, other)
    return retrained.accuracy_gap(*right, census=split is e.forget, clusters=split.clusters)


def splits(e: Evidence) -> dict[str, Split | None]:
    """D_f, and the kept classes of test and retain, where given."""
    kept = {
        name: None if split is None else split.only(~forgotten_rows(e, split.labels))
        for name, split in (("test", e.test), ("retain", e.retain))
    }
    return {"forget": e.forget, **kept}


MISSING = {"test": NO_TEST, "retain": NO_RETAIN}


def retrained_metrics(e: Evidence) -> list[Metric]:
    """How far the model, and the original, are from one that was retrained without D_f."""
    if e.forget.retrained is None:
        return []
    made: list[Metric] = []
    gaps: dict[str, list[Estimate]] = {"after": [], "before": []}
    parts = splits(e)
    for name, split in parts.items():
        if split is None:
            made.append(metric(f"retrained.accuracy_gap.{name}", MISSING[name], split=name))
            continue
        assert split.retrained is not None
        after = _gap(e, split, split.after, split.retrained)
        before = None if split.before is None else _gap(e, split, split.before, split.retrained)
        gaps["after"].append(after)
        gaps["before"] += [] if before is None else [before]
        right = float(hits(e, split, split.retrained).double().mean())
        note = f"retrained: {right:.2%}"
        made.append(metric(f"retrained.accuracy_gap.{name}", after, before, split=name, target=0.0, note=note))
    given = ", ".join(name for name, split in parts.items() if split is not None)
    averages = [
        Estimate(retrained.average_gap(found), None, None, sum(gap.n for gap in found), "mean of absolute gaps")
        if found
        else None
        for found in (gaps["after"], gaps["before"])
    ]
    assert averages[0] is not None
    made.append(metric("retrained.average_gap", averages[0], averages[1], split=given))
    return [*made, *_outputs(e, e.forget.retrained), _test_churn(e)]


def _outputs(e: Evidence, other: Outputs) -> list[Metric]:
    """Churn, KL, JS, class histogram and which model is nearer, on D_f: a census."""
    split = e.forget
    measures: dict[str, Callable[[Outputs], Estimate]] = {
        "retrained.churn": lambda logits: retrained.churn(logits, other, census=True),
        "retrained.kl": lambda logits: census(float(retrained.kl(logits, other).mean()), len(logits)),
        "retrained.js": lambda logits: census(float(retrained.js(logits, other).mean()), len(logits)),
        "retrained.tv": lambda logits: census(retrained.histogram_tv(logits, other), len(logits)),
    }
    made = [
        metric(name, measure(split.after), None if split.before is None else measure(split.before), split="forget")
        for name, measure in measures.items()
    ]
    nearer: Found = NO_ORIGINAL if split.before is None else retrained.closer(split.after, split.before, other)
    return [*made, metric("retrained.closer", nearer, split="forget")]


def _test_churn(e: Evidence) -> Metric:
    if e.test is None:
        return metric("retrained.churn.test", NO_TEST, split="test")
    test = e.test
    assert test.retrained is not None
    after, before = (
        None if logits is None else retrained.churn(logits, test.retrained, clusters=test.clusters)
        for logits in (test.after, test.before)
    )
    assert after is not None
    return metric("retrained.churn.test", after, before, split="test")


def shadow_metrics(e: Evidence) -> list[Metric]:
    """Per-sample likelihood ratios under shadow heads; inconclusive where they do not work on the original."""
    names, where = ("shadow.auc", "shadow.tpr_at_1pct_fpr", "shadow.auc_retrained_head"), "forget, test"
    found = e.shadow
    if isinstance(found, NotMeasured):
        return [metric(name, found, split=where) for name in names]
    of = found.clusters
    after, before, null, null_before = (
        attacks.auc(*sides, clusters=of)
        for sides in (found.after, found.before, found.retrained_head, found.retrained_head_before)
    )
    nothing = metric(names[2], null, null_before, split=where, target=0.5)
    power = attacks.auc_change(found.retrained_head_before, found.before, clusters=of)
    if (before.low or 0.0) <= 0.5 or (power.low or 0.0) <= 0:
        why = (
            f"inconclusive: on the original, where there is something to find, its AUC is {before.value:.3f} "
            f"({before.low:.3f} to {before.high:.3f}), on a head that never saw them "
            f"{null_before.value:.3f}"
        )
        return [*(metric(name, NotMeasured(why), split=where) for name in names[:2]), nothing]
    picked, false = (side > found.threshold for side in found.after)
    passed = int(false.sum()) / len(false)
    share = clustered.share(picked, None if of is None else of[0])
    note = f"{found.heads} heads" + ("; the shadows' threshold does not hold here" if passed > LOOSE else "")
    why = "share of the test samples that pass the same threshold"
    return [
        metric(names[0], after, before, split=where, target=0.5, note=f"{found.heads} heads"),
        metric(names[1], share, split=where, target=passed, target_note=why, note=note),
        nothing,
    ]


def compat_metrics(e: Evidence) -> list[Metric]:
    """Scores that papers print, each labelled as what it is."""
    if not e.compat:
        return []
    return [*_svc(e), _class_index(e), _neurips(e)]


def _labelled(split: Split, which: str) -> published_scores.Labelled:
    return published_scores.Labelled(getattr(split, which), split.labels, split.clusters)


def _svc(e: Evidence) -> list[Metric]:
    scores: tuple[published_scores.Score, ...] = get_args(published_scores.Score)
    if e.test is None or e.retain is None:
        lacks = NO_TEST if e.test is None else NO_RETAIN
        names = [f"compat.svc_{score}{kind}" for score in scores for kind in ("", "_fixed")]
        return [metric(name, lacks, split="forget, retain, test") for name in names]
    made = []
    for score in scores:
        published: dict[str, Estimate] = {}
        corrected: dict[str, published_scores.Corrected | NotMeasured] = {}
        for which in ("after", "before"):
            if getattr(e.forget, which) is None:
                continue
            splits = [_labelled(split, which) for split in (e.forget, e.retain, e.test)]
            published[which] = published_scores.svc_published(score, *splits)
            generator = torch.Generator().manual_seed(e.seed)
            corrected[which] = published_scores.svc_corrected(score, *splits, generator=generator)
        name, where = f"compat.svc_{score}", "forget, retain, test"
        note = "share called non-member; papers call higher better"
        made.append(metric(name, published["after"], published.get("before"), split=where, note=note))
        made.append(_corrected(f"{name}_fixed", corrected, where))
    return made


def _corrected(name: str, found: dict[str, published_scores.Corrected | NotMeasured], where: str) -> Metric:
    after, before = found["after"], found.get("before")
    if isinstance(after, NotMeasured):
        return metric(name, after, split=where)
    earlier = before.forget if isinstance(before, published_scores.Corrected) else None
    why = "share of unseen samples of these classes called non-member"
    return metric(name, after.forget, earlier, split=where, target=after.unseen, target_note=why)


def _class_index(e: Evidence) -> Metric:
    name = "compat.w1_class_index"
    if e.test is None or e.test.retrained is None:
        return metric(name, NO_TEST if e.test is None else NO_RETRAINED, split="test")
    other = metrics.predictions(e.test.retrained)
    after, before = (
        None if logits is None else Estimate(
            published_scores.w1_class_index(metrics.predictions(logits), other), None, None, len(other), "point estimate"
        )
        for logits in (e.test.after, e.test.before)
    )  # fmt: skip
    assert after is not None
    return metric(name, after, before, split="test")


def _neurips(e: Evidence) -> Metric:
    name = "compat.neurips2023_accuracy"
    if e.test is None:
        return metric(name, NO_TEST, split="forget, test")
    found: list[Found | None] = []
    for which in ("after", "before"):
        if getattr(e.forget, which) is None:
            found.append(None)
            continue
        generator = torch.Generator().manual_seed(e.seed)
        found.append(published_scores.neurips_accuracy(_labelled(e.forget, which), _labelled(e.test, which), generator))
    assert found[0] is not None
    return metric(name, found[0], found[1], split="forget, test", target=0.5)


def why_absent(e: Evidence, name: str) -> NotMeasured | None:
    """What a metric of this module needs that was not given; None for the others."""
    if name.startswith("retrained.") and e.forget.retrained is None:
        return NO_RETRAINED
    return NO_COMPAT if name.startswith("compat.") and not e.compat else None
