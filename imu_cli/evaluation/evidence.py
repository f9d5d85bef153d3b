"""What a model is judged by, as tensors, and how a number found becomes a metric of the record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from imu_cli.evaluation import attacks
from imu_cli.evaluation.relearning import Relearned
from imu_cli.events import Log
from imu_cli.linear.rows import Logits, Outputs, Rows, only
from imu_cli.records.evaluation import Metric
from imu_cli.records.metric_definitions import EVERY
from imu_cli.records.parts import Interval
from imu_cli.statistics import clustered, metrics
from imu_cli.statistics.clustered import Clusters, Sides, some
from imu_cli.statistics.intervals import Estimate, NotMeasured
from imu_cli.statistics.metrics import among, predictions
from imu_cli.unlearning import scenario

Found = Estimate | NotMeasured
NO_TEST, NO_RETAIN, NO_ORIGINAL, NO_RETRAINED, NO_SHADOWS, NO_RELEARN = (
    NotMeasured("needs --test"),
    NotMeasured("needs --retain"),
    NotMeasured("needs --original"),
    NotMeasured("needs --retrained"),
    NotMeasured("needs --attack shadow-heads"),
    NotMeasured("needs --relearn"),
)


@dataclass(frozen=True)
class Split:
    """Samples with labels (n,), logits (n, c) before, after and of a retrained model, and features (n, d).

    ``before``, ``retrained`` and the features of these two are None without those models; ``features`` are of the model after.
    Logits and features may be what makes them by rows, so that no split's logits need be in memory. ``memo`` holds φ (n,)
    of a model by its name once it was asked for. ``clusters`` (n,): of samples that are not independent of each other, words, the
    number of the sentence that each stands in, the same in every split; None where samples stand for themselves.
    """

    labels: Tensor
    before: Outputs | None
    after: Outputs
    features: Rows
    features_before: Rows | None = None
    retrained: Outputs | None = None
    features_retrained: Rows | None = None
    memo: dict[str, Tensor] = field(default_factory=dict)
    clusters: Clusters = None

    def only(self, rows: Tensor) -> "Split":
        """Some rows of it, by their numbers or a mask (n,); what was found for them stays found."""
        for logits in (self.before, self.after, self.retrained):
            if isinstance(logits, Logits):
                predictions(logits)
        return Split(
            self.labels[rows],
            None if self.before is None else only(self.before, rows),
            only(self.after, rows),
            only(self.features, rows),
            None if self.features_before is None else only(self.features_before, rows),
            None if self.retrained is None else only(self.retrained, rows),
            None if self.features_retrained is None else only(self.features_retrained, rows),
            {name: found[rows] for name, found in self.memo.items()},
            some(self.clusters, rows),
        )


@dataclass(frozen=True)
class Shadow:
    """Likelihood ratios of D_f (n,) and of samples never seen (m,) under shadow heads, for three models each.

    ``threshold`` is the ratio that 1 % of never-seen samples pass in the unlearned shadows. ``clusters``: of both sides.
    """

    after: tuple[Tensor, Tensor]
    before: tuple[Tensor, Tensor]
    retrained_head: tuple[Tensor, Tensor]
    retrained_head_before: tuple[Tensor, Tensor]
    threshold: float
    heads: int
    clusters: Sides | None = None


@dataclass(frozen=True)
class Evidence:
    """What a model is judged by.

    Attributes:
        kind, forgotten: the scenario, and the ids of the forgotten classes in the class scenario.
        forget, test, retain: the splits; the latter two None where not given.
        true_labels: (n,) of D_f where known.
        drift: relative change of D_f's features, None without the original.
        head, head_before, head_retrained: weight (c, d) and bias (c,) or None, of the model after, the original and the
            retrained one; None without these.
        same_backbone: whether nothing but the head differs from the original.
        seed: of the draws of class-matched pools and shots.
        name_of: a class id to its name.
        shadow: what the shadow heads gave; why there is nothing where there is nothing.
        relearned: what relearning brought back of each model that is there, by "after", "before" and "retrained"; why there
            is nothing where there is nothing.
        compat: whether scores that papers print are wanted.
        parts: rows of D_f by the name of their id or group, where asked for.
        training: how many samples the training data have, D_f among them, where known.
        target_follows: whether the unlearning's target was what unseen samples reach under the model that results.
        max_drop, max_class_drop: falls of accuracy on unseen samples that were allowed, the guard's size.
        twins_left: samples of D_f that have a twin, the same bytes, among the training data that stay.
        log: hears of what takes time.
    """

    kind: scenario.Kind
    forgotten: tuple[int, ...]
    forget: Split
    test: Split | None
    retain: Split | None
    true_labels: Tensor | None
    drift: Estimate | None
    head: tuple[Tensor, Tensor | None]
    seed: int
    name_of: Callable[[int], str] = str
    head_before: tuple[Tensor, Tensor | None] | None = None
    head_retrained: tuple[Tensor, Tensor | None] | None = None
    same_backbone: bool = False
    shadow: Shadow | NotMeasured = NO_SHADOWS
    relearned: Mapping[str, Relearned] | NotMeasured = NO_RELEARN
    compat: bool = False
    parts: Mapping[str, Tensor] | None = None
    training: int | None = None
    target_follows: bool = False
    max_drop: float | None = None
    max_class_drop: float | None = None
    twins_left: int = 0
    log: Log = field(default_factory=Log)


def interval_of(found: Estimate) -> Interval | None:
    """The interval as the record holds it; None for a census."""
    return (
        None
        if found.low is None or found.high is None
        else Interval(low=found.low, high=found.high, method=found.method)
    )


def metric(
    name: str,
    after: Found,
    before: Found | None = None,
    *,
    split: str,
    target: float | None = None,
    target_note: str = "",
    target_range: tuple[float, float] | Interval | None = None,
    note: str = "",
) -> Metric:
    """One metric with its definition, from what was found after and before."""
    definition = EVERY[name]
    made = Metric(
        name=name, title=definition.title, definition=definition.text, better=definition.better, split=split,
        target=target, target_note=target_note, note=note,
    )  # fmt: skip
    if isinstance(target_range, Interval):
        made.target_range = target_range
    elif target_range is not None:
        made.target_range = Interval(low=target_range[0], high=target_range[1], method="central 95 % at this n")
    if isinstance(after, NotMeasured):
        made.missing = after.reason
        return made
    made.value, made.n, made.interval = after.value, after.n, interval_of(after)
    made.census = after.method == "census"
    if isinstance(before, Estimate):
        made.before, made.before_interval = before.value, interval_of(before)
    return made


def both(split: Split, measure: Callable[[Outputs], Found]) -> tuple[Found, Found | None]:
    """A measure of the logits, after and before."""
    return measure(split.after), None if split.before is None else measure(split.before)


def reference(split: Split) -> Outputs:
    """The original's logits where known: what a change is measured from."""
    return split.after if split.before is None else split.before


def target_model(e: Evidence, split: Split) -> tuple[Outputs, str]:
    """Logits of the model whose unseen samples D_f should look like, and its name.

    The model at hand, where the unlearning compared with unseen samples under the head that results, or nothing is known
    of it; the original where the record says that its share was the target.
    """
    if e.target_follows or split.before is None:
        return split.after, "this model"
    return split.before, "the original"


def matched_pool(e: Evidence) -> Tensor | None:
    """Rows of test that match D_f's classes, drawn by the seed; None without test."""
    if e.test is None:
        return None
    return attacks.class_matched(e.forget.labels, e.test.labels, torch.Generator().manual_seed(e.seed))


def pair(first: Clusters, second: Clusters) -> Sides | None:
    """The clusters of two sides, where their samples come in such."""
    return None if first is None or second is None else (first, second)


def chance_range(e: Evidence, rate: float, n: int) -> Interval | tuple[float, float]:
    """Shares that D_f's n samples show by chance where unseen ones have this rate; words vary together as those of test do."""
    clusters = e.forget.clusters
    if clusters is None:
        return metrics.binomial_range(rate, n)
    many = clustered.sure_n(clusters, n)
    if e.test is not None:
        right = metrics.predictions(target_model(e, e.test)[0]) == e.test.labels
        many = clustered.expected_n(right, e.test.clusters, clusters, n)
    low, high = metrics.binomial_range(rate, round(many))
    return Interval(low=low, high=high, method=clustered.by("central 95 %", clusters))


def forgotten_rows(e: Evidence, labels: Tensor) -> Tensor:
    """Which rows belong to a forgotten class (n,)."""
    return among(labels, e.forgotten)


def phi(split: Split, which: Literal["before", "after"]) -> Tensor | None:
    """Logit-scaled confidence (n,) of the model before or after; None without that model. It is computed once a split."""
    logits = split.before if which == "before" else split.after
    if logits is None:
        return None
    if which not in split.memo:
        split.memo[which] = attacks.logit_confidence(logits, split.labels)
    return split.memo[which]
