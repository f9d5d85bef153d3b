"""What the features still hold, as metrics: drift, similarity, recovery, probe, attack, information, relearning.

Each model is judged on its own features. Where a retrained model is given, its own value is the target: it never saw D_f, and
still tells its classes and samples apart as far as everything else that it learnt lets it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.evaluation import feature_attacks, information, recovery, relearning, similarity
from imu_cli.evaluation.evidence import (
    NO_ORIGINAL,
    NO_RETRAINED,
    NO_TEST,
    Evidence,
    Found,
    Split,
    chance_range,
    forgotten_rows,
    interval_of,
    matched_pool,
    metric,
    pair,
)
from imu_cli.linear.rows import Rows
from imu_cli.records.evaluation import Metric
from imu_cli.statistics import metrics
from imu_cli.statistics.clustered import some
from imu_cli.statistics.intervals import Estimate, NotMeasured

Which = Literal["after", "before", "retrained"]
MODELS: tuple[Which, ...] = ("after", "before", "retrained")
ITS_OWN = "the retrained model's own"


def features_of(split: Split, which: Which) -> Rows | None:
    """Features (n, d) under one of the models; None without it."""
    return {"after": split.features, "before": split.features_before, "retrained": split.features_retrained}[which]


def metrics_of(e: Evidence) -> list[Metric]:
    """Everything about the features."""
    found = [metric("features.drift", NO_ORIGINAL if e.drift is None else e.drift, split="forget")]
    if e.kind == "class":
        found += _recoveries(e)
    return [*found, _probe_metric(e), *_similarities(e), *_attacks(e), _index(e), *_relearnings(e)]


def _towards(found: Found | None, why: str = ITS_OWN) -> dict[str, Any]:
    """What a metric is to be near: the same measure of the retrained model, with its interval; nothing without it."""
    if not isinstance(found, Estimate):
        return {}
    return {"target": found.value, "target_note": why, "target_range": interval_of(found)}


def _per_model(e: Evidence, measure: Callable[[Which], Found | None]) -> dict[Which, Found | None]:
    """A measure of every model; that of the original is the model's own where both have the same features."""
    after = measure("after")
    return {
        "after": after,
        "before": after if e.same_backbone else measure("before"),
        "retrained": measure("retrained"),
    }


def _from(name: str, found: Mapping[Which, Found | None], **known: Any) -> Metric:
    after = found["after"]
    assert after is not None
    return metric(name, after, found["before"], **{**_towards(found["retrained"]), **known})


# --- Recovery and probe


def _heads(e: Evidence) -> dict[Which, tuple[Tensor, Tensor | None] | None]:
    return {"after": e.head, "before": e.head_before, "retrained": e.head_retrained}


def _recoveries(e: Evidence) -> list[Metric]:
    """``recovery.k*``, at the share of kept samples that the original's rows took: on test, or retain where there is none."""
    name, split = ("test", e.test) if e.test is not None else ("retain", e.retain)
    kept = None if split is None else split.only(~forgotten_rows(e, split.labels))
    kept = None if kept is None or len(kept.labels) == 0 else kept
    taken = None
    if kept is not None and kept.before is not None:
        taken = metrics.predicted_as(kept.before, e.forgotten).value

    def recovered(which: Which, k: int) -> recovery.Recovery | NotMeasured | None:
        features, head = features_of(e.forget, which), _heads(e)[which]
        if features is None or head is None:
            return None
        return recovery.k_shot_recovery(
            features, *head, e.forget.labels, k, torch.Generator().manual_seed(e.seed),
            kept_features=None if kept is None else features_of(kept, which), taken_before=taken, clusters=e.forget.clusters,
        )  # fmt: skip

    made = []
    for k in (1, 5, 10):
        found = recovered("after", k)
        assert found is not None
        if isinstance(found, NotMeasured):
            made.append(metric(f"recovery.k{k}", found, split="forget"))
            continue
        before = found if _same_kept_rows(e) else recovered("before", k)
        pair = [None if other is None else _accuracy(other) for other in (before, recovered("retrained", k))]
        made.append(
            metric(
                f"recovery.k{k}", found.accuracy, pair[0], split="forget", note=_taken(found, name), **_towards(pair[1])
            )
        )
    return made


def _accuracy(found: recovery.Recovery | NotMeasured) -> Found:
    return found if isinstance(found, NotMeasured) else found.accuracy


def _same_kept_rows(e: Evidence) -> bool:
    """Whether nothing that recovery looks at differs from the original: then its number is the same."""
    if not e.same_backbone or e.head_before is None:
        return False
    kept = [row for row in range(len(e.head[0])) if row not in set(e.forgotten)]
    pairs = zip(e.head, e.head_before, strict=True)
    return all(a is None or b is None or torch.equal(a[kept], b[kept]) for a, b in pairs)


def _taken(found: recovery.Recovery, split: str) -> str:
    """What the put-back rows take beside the forget samples, in words."""
    if found.taken is None:
        return "how many kept samples the row takes is not known without --test; it may be many"
    if found.own_taken is None or not found.adjusted:
        return f"the row takes {found.taken.value:.2%} of kept {split} samples; what the original's took is not known"
    return (
        f"the row takes {found.taken.value:.2%} of kept {split} samples, as the original's did; with the bias it came with "
        f"{found.own_taken.value:.2%}, recovering {found.own_accuracy.value:.2%}"
    )


def _probe_metric(e: Evidence) -> Metric:
    if e.test is None:
        return metric("probe.accuracy", NO_TEST, split="forget, test")
    test, whole = e.test, dict[Which, recovery.Probe]()

    def probed(which: Which) -> Found | None:
        forget, other = features_of(e.forget, which), features_of(test, which)
        if forget is None or other is None:
            return None
        generator = torch.Generator().manual_seed(e.seed)
        given = (forget, e.forget.labels, other, test.labels, e.forgotten, generator)
        found = recovery.linear_probe(*given, clusters=test.clusters)
        if isinstance(found, NotMeasured):
            return found
        whole[which] = found
        return found.accuracy

    found = _per_model(e, probed)
    note = ""
    if "after" in whole:
        note = f"the same probe where nothing was forgotten: {whole['after'].reference.value:.2%}"
        if e.forgotten and test.clusters is not None:
            note += f"; asked about {whole['after'].accuracy.n} words, of the half of test's sentences that it was not trained on"
        note += "" if all(probe.converged for probe in whole.values()) else "; did not converge"
    again = found["retrained"]
    spread: dict[str, Any] = {}
    if isinstance(again, Estimate) and again.low is None:  # on D_f, a census: what chance shows at that rate
        spread = {"target_range": chance_range(e, again.value, again.n)}
    return _from("probe.accuracy", found, split="forget, test", note=note, **spread)


# --- Similarity


def _similarities(e: Evidence) -> list[Metric]:
    """``cka.*`` to the original, ``retrained.cka.*`` to the retrained model, on D_f and on test samples of kept classes."""
    made = []
    for name, split in (("forget", e.forget), ("test", _kept(e))):
        if split is None:
            made += [metric(f"{family}.{name}", NO_TEST, split=name) for family in ("cka", "retrained.cka")]
            continue
        found = _compared(e, split)
        to_original, to_retrained, of_original = (
            found.get(pair) for pair in (("after", "before"), ("after", "retrained"), ("before", "retrained"))
        )
        goal = _towards(of_original, "the retrained model's to the original")
        made.append(metric(f"cka.{name}", to_original or NO_ORIGINAL, split=name, **goal))
        made.append(metric(f"retrained.cka.{name}", to_retrained or NO_RETRAINED, of_original, split=name))
    return made


def _compared(e: Evidence, split: Split) -> dict[similarity.Pair, Found]:
    """CKA of every two models that are there; features that are the same are compared once, and with themselves not at all."""
    same = {"before": "after"} if e.same_backbone else {}
    there: dict[str, Rows] = {which: h for which in MODELS if (h := features_of(split, which)) is not None}
    wanted: list[similarity.Pair] = [
        pair
        for pair in (("after", "before"), ("after", "retrained"), ("before", "retrained"))
        if there.keys() >= {*pair}
    ]
    asked = {pair: (same.get(pair[0], pair[0]), same.get(pair[1], pair[1])) for pair in wanted}
    pairs = list(dict.fromkeys((a, b) for a, b in asked.values() if a != b))
    generator = torch.Generator().manual_seed(e.seed)
    found = similarity.linear_cka(there, pairs, generator, clusters=split.clusters) if pairs else {}
    alike = Estimate(1.0, None, None, len(split.labels), "the same features")
    return {pair: alike if of[0] == of[1] else found[of] for pair, of in asked.items()}


def _kept(e: Evidence) -> Split | None:
    kept = None if e.test is None else e.test.only(~forgotten_rows(e, e.test.labels))
    return kept if kept is not None and len(kept.labels) else None


# --- Attack and information


@dataclass(frozen=True)
class _Sides:
    """Samples of D_f and of others whose features are compared, and the split that the others are rows of."""

    chosen: feature_attacks.Chosen
    others: Split

    def features(self, e: Evidence, which: Which) -> Tensor | None:
        forget, others = features_of(e.forget, which), features_of(self.others, which)
        return None if forget is None or others is None else self.chosen.features(forget, others)


def _against_unseen(e: Evidence) -> _Sides | NotMeasured:
    """D_f against class-matched test samples."""
    if e.test is None:
        return NO_TEST
    try:
        rows = matched_pool(e)
    except ImuError as error:
        return NotMeasured(str(error))
    assert rows is not None
    return _sides(e, rows, e.test)


def _sides(e: Evidence, rows: Tensor, others: Split) -> _Sides | NotMeasured:
    generator = torch.Generator().manual_seed(e.seed)
    width = others.features.shape[1]
    clusters = pair(e.forget.clusters, some(others.clusters, rows))
    found = feature_attacks.choose(e.forget.labels, rows, others.labels[rows], width, generator, clusters)
    return found if isinstance(found, NotMeasured) else _Sides(found, others)


ATTACKS = {
    "feature_mia.auc": feature_attacks.by_regression,
    "feature_mia.auc_nearest": feature_attacks.by_distance,
}


def _attacks(e: Evidence) -> list[Metric]:
    sides = _against_unseen(e)
    if isinstance(sides, NotMeasured):
        return [metric(name, sides, split="forget, test") for name in ATTACKS]
    there = sides
    known = {which: there.features(e, which) for which in MODELS if not (which == "before" and e.same_backbone)}
    note = f"{len(there.chosen.forget)} forget against {len(there.chosen.pool)} class-matched test samples"
    made = []
    for name, attack in ATTACKS.items():

        def attacked(which: Which, attack: Callable[..., Estimate] = attack) -> Estimate | None:
            h = known.get(which)
            return None if h is None else attack(h, there.chosen)

        found = _per_model(e, attacked)
        chance: dict[str, Any] = {} if isinstance(found["retrained"], Estimate) else {"target": 0.5}
        made.append(_from(name, found, split="forget, test", note=note, **chance))
    return made


def _index(e: Evidence) -> Metric:
    """``retrained.idi`` at the head's input: D_f against kept samples in the class scenario, else against unseen ones."""
    name = "retrained.idi"
    if e.forget.features_retrained is None:
        return metric(name, NO_RETRAINED, split="forget")
    if e.forget.features_before is None:
        return metric(name, NO_ORIGINAL, split="forget")
    others, sides = _others(e)
    where = f"forget, {others}"
    if isinstance(sides, NotMeasured):
        return metric(name, sides, split=where)
    sides = _Sides(information.balanced(sides.chosen), sides.others)
    known: dict[Which, Tensor] = {}
    for which in MODELS:
        h = None if which == "before" and e.same_backbone else sides.features(e, which)
        known[which] = known["after"] if h is None else information.gained(h, sides.chosen)
    generator = torch.Generator().manual_seed(e.seed)
    of_models = (known["after"], known["before"], known["retrained"])
    found = information.difference_index(*of_models, generator, clusters=sides.chosen.clusters)
    note = (
        f"D_f against {'kept' if e.kind == 'class' else 'class-matched'} {others} samples, {len(sides.chosen.pool)} each; nats "
        f"at the head's input: {found.after:.3f}, original {found.before:.3f}, retrained {found.retrained:.3f}"
    )
    note += "; 1 by construction: only the head changed" if e.same_backbone else ""
    before = None if isinstance(found.index, NotMeasured) else Estimate(1.0, None, None, found.index.n, "by definition")
    return metric(name, found.index, before, split=where, target=0.0, target_note="the retrained model", note=note)


def _others(e: Evidence) -> tuple[str, _Sides | NotMeasured]:
    """What D_f is told from: retain samples as in the paper, kept test samples without; of single samples unseen ones."""
    if e.kind != "class":
        return "test", _against_unseen(e)
    name, split = ("retain", e.retain) if e.retain is not None else ("test", e.test)
    if split is None:
        return name, NotMeasured("needs --retain or --test")
    rows = (~forgotten_rows(e, split.labels)).nonzero()[:, 0]
    return name, _sides(e, rows, split)


# --- Relearning


def _relearnings(e: Evidence) -> list[Metric]:
    names = [f"relearn.k{k}" for k in relearning.SHOTS]
    if isinstance(e.relearned, NotMeasured):
        return [metric(name, e.relearned, split="forget") for name in [*names, "relearn.lead"]]
    by_model = e.relearned
    made = []
    for k, name in zip(relearning.SHOTS, names, strict=True):
        found = {which: model.forget[k] for which, model in by_model.items()}
        unseen = {which: model.unseen[k] for which, model in by_model.items()}
        said = unseen["after"]
        note = f"never-seen samples: {said.value:.2%}" if isinstance(said, Estimate) else ""
        goal = _towards(found.get("retrained"))
        if not goal and e.kind == "sample":
            goal = _towards(said, "never-seen samples, with this model")
        made.append(metric(name, found["after"], found.get("before"), split="forget", note=note, **goal))
    return [*made, _lead(by_model)]


def _lead(by_model: Mapping[str, relearning.Relearned]) -> Metric:
    """Share of D_f that comes back less that of never-seen samples, from the most samples that both can be relearnt from."""
    after = by_model["after"]
    k = max((k for k in relearning.SHOTS if _both(after, k)), default=None)
    if k is None:
        return metric("relearn.lead", NotMeasured("needs never-seen samples (--test)"), split="forget, test")
    found = {which: _difference(model, k) for which, model in by_model.items()}
    goal = _towards(found.get("retrained")) or {"target": 0.0}
    return metric("relearn.lead", found["after"], found.get("before"), split="forget, test", note=f"k = {k}", **goal)


def _both(found: relearning.Relearned, k: int) -> bool:
    return isinstance(found.forget[k], Estimate) and isinstance(found.unseen[k], Estimate)


def _difference(found: relearning.Relearned, k: int) -> Found:
    """With the furthest ends that the draws of both allow."""
    ours, theirs = found.forget[k], found.unseen[k]
    if not isinstance(ours, Estimate) or not isinstance(theirs, Estimate):
        return NotMeasured("needs never-seen samples (--test)")
    assert ours.low is not None
    assert ours.high is not None
    assert theirs.low is not None
    assert theirs.high is not None
    low, high = ours.low - theirs.high, ours.high - theirs.low
    return Estimate(ours.value - theirs.value, low, high, ours.n, "range over draws")
