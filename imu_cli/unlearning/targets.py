"""Target and look: what is counted on the forget set, what it is compared with, and when it is met."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear import margins, objective
from imu_cli.linear.objective import Members
from imu_cli.linear.rows import Rows, predicted
from imu_cli.linear.rows import logits as logits_of
from imu_cli.statistics import counts, metrics
from imu_cli.unlearning.scenario import Plan

HEAD_CHANGE_WITHOUT_TARGET = 0.02
CLASS_TARGET = 0.005
ROUNDING = 1e-6
"""What an AUC, or a class's share whose n is not at hand, may miss a bound by."""


def alike(auc: float | None, most: float | None) -> bool:
    """Whether a membership AUC is at most what is aimed at, but for rounding; also where one of them plays no part."""
    return auc is None or most is None or auc <= most + ROUNDING


@dataclass(frozen=True)
class Look:
    """What a head does to the forget set, and what it costs.

    Attributes:
        forget: share of D_f predicted as a member (forgotten class or own label).
        head_change: ‖W − W₀‖/‖W₀‖.
        test_drop: fall of accuracy on held-out data; None where none is given.
        near: share of D_f that is not predicted so, but by less than rounding may move (``Procedure.margin``).
        unseen: what ``forget`` is for unseen samples under this head; None where that is not the target.
        auc: membership AUC of D_f against them; None where it was not looked at.
        class_drop: largest fall of accuracy of a kept class on held-out data; None where it is not guarded.
    """

    forget: float
    head_change: float
    test_drop: float | None = None
    near: float = 0.0
    unseen: float | None = None
    auc: float | None = None
    class_drop: float | None = None


Budget = Literal["max_head_change", "max_drop", "max_class_drop"]


@dataclass(frozen=True)
class Limits:
    """The target, and what may be spent on it.

    Attributes:
        target: share on D_f to come down to, at the original head; None without a target.
        max_steps, max_head_change, max_drop, max_class_drop: budgets; None for those that do not bind.
        follows: the share is that of unseen samples under the head that results, not under the original.
        max_auc: membership AUC to come down to as well, where accuracy has nothing to say; None where it does not bind.
        n, hits: samples of D_f, and how many the original predicts as a member.
        m: held-out samples of kept classes.
    """

    target: float | None
    max_steps: int
    max_head_change: float | None = None
    max_drop: float | None = None
    max_class_drop: float | None = None
    follows: bool = False
    max_auc: float | None = None
    n: int = 0
    hits: int = 0
    m: int = 0

    def allowed(self, look: Look) -> float | None:
        """The share that this look may have at most; None without a target."""
        if not self.follows or look.unseen is None or self.target is None:
            return self.target
        return attainable(look.unseen, self.hits, self.n)

    def share_met(self, look: Look) -> bool:
        """The target share is given and reached, also by the samples that rounding may move."""
        allowed = self.allowed(look)
        return allowed is not None and counts.share_at_most(look.forget + look.near, self.n, allowed)

    def met(self, look: Look) -> bool:
        """The target is given and reached: the share, and where accuracy has nothing to say the AUC too."""
        return self.share_met(look) and alike(look.auc, self.max_auc)

    def exceeded(self, look: Look) -> Budget | None:
        """Which budget this look is beyond."""
        if self.max_head_change is not None and look.head_change > self.max_head_change:
            return "max_head_change"
        if (
            self.max_drop is not None
            and look.test_drop is not None
            and not counts.share_at_most(look.test_drop, self.m, self.max_drop)
        ):
            return "max_drop"
        if (
            self.max_class_drop is not None
            and look.class_drop is not None
            and look.class_drop > self.max_class_drop + ROUNDING
        ):
            return "max_class_drop"
        return None


@dataclass(frozen=True)
class HeldOut:
    """Held-out samples: H (m, d+1), labels (m,), and which of them belong to kept classes."""

    h: Rows
    labels: Tensor
    kept: Tensor

    def right(self, head: Tensor, found: Tensor | None = None) -> Tensor:
        """Which of the samples of kept classes are predicted rightly (k,); ``found`` (m,) are the predictions, where known."""
        found = predicted(self.h, head) if found is None else found
        return (found == self.labels)[self.kept]


def held_out(h: Rows, labels: Tensor, forgotten: tuple[int, ...]) -> HeldOut:
    """Held-out samples with their kept classes marked.

    Raises:
        ImuError: no sample of a kept class.
    """
    kept = ~metrics.among(labels, forgotten)
    if not bool(kept.any()):
        raise ImuError("held-out data: has no sample of a kept class; give held-out data of all classes")
    return HeldOut(h, labels, kept)


@dataclass(frozen=True)
class Comparison:
    """What D_f is compared with: unseen samples matched to it, under whatever head is asked about.

    Attributes:
        plan: the scenario.
        labels, true_labels: (n,) of D_f; a true label below 0 counts as not given.
        held: the unseen samples.
    """

    plan: Plan
    labels: Tensor
    true_labels: Tensor | None
    held: HeldOut

    def share(self, head: Tensor, found: Tensor | None = None) -> float:
        """What the share on D_f is for samples that were never seen: their accuracy, or their rate of D_f's confusions.

        ``found`` (m,) are their predictions under the head, where these are known already.

        Raises:
            ImuError: held-out data lack a class.
        """
        found = predicted(self.held.h, head) if found is None else found
        if self.plan.kind == "mislabelled":
            return confusion_share(found, self.held.labels, self.labels, self.true_labels)
        return metrics.class_matched_accuracy(found == self.held.labels, self.held.labels, self.labels).value

    def margins(self, head: Tensor) -> tuple[Tensor, Tensor]:
        """Margins (k,) of the unseen samples under a head, and the weights that give them D_f's classes or confusions.

        Raises:
            ImuError: held-out data lack a class or a confusion.
        """
        logits = logits_of(self.held.h, head)
        if self.plan.kind == "mislabelled":
            known = self.true_labels
            known = None if known is None or bool((known < 0).any()) else known
            found = margins.confusion_reference(logits, self.held.labels, self.labels, known)
            return found.margins, found.weights
        return margins.margins(logits, self.held.labels), margins.class_match(self.labels, self.held.labels)

    def auc_bound(self, most: float, head: Tensor) -> float:
        """The membership AUC to aim at: ``most``, or what cannot be gone below."""
        return max(most, self.least_auc(head))

    def least_auc(self, head: Tensor) -> float:
        """An AUC that n forget samples can come down to from above: half a step beyond 0.5, 1/(2nm) with m unseen ones."""
        return 0.5 + 0.5 / (len(self.labels) * int((self.margins(head)[1] > 0).sum()))

    def auc(self, h: Rows, head: Tensor) -> float:
        """Membership AUC of D_f (n, d+1) against them under a head; 0.5 where it looks unseen."""
        return margins.weighted_auc(margins.margins(logits_of(h, head), self.labels), *self.margins(head))


def looker(
    h: Rows,
    members: Members,
    start: Tensor,
    test: HeldOut | None,
    *,
    margin: float = 0.0,
    unseen: Comparison | None = None,
    with_auc: bool = False,
    with_classes: bool = False,
) -> Callable[[Tensor], Look]:
    """What to look at after every step: the share predicted as a member, and what that costs.

    Args:
        h: H (n, d+1) of D_f.
        members: the classes that count, per row.
        start: W (c, d+1) of the original.
        test: held-out data that guards.
        margin: distance from the boundary, in logits, that rounding may move a sample by.
        unseen: what D_f is compared with under every head; None where the target does not follow the head.
        with_auc: whether the membership AUC is looked at, too.
        with_classes: whether the accuracy of every single class is looked at, too.
    """
    norm = float(torch.linalg.norm(start))
    right_before = None if test is None else test.right(start)
    before = 0.0 if right_before is None else float(right_before.double().mean())

    def look(head: Tensor) -> Look:
        change = float(torch.linalg.norm(head - start)) / norm
        found = None if test is None else predicted(test.h, head)
        right = None if test is None else test.right(head, found)
        drop = None if right is None else before - float(right.double().mean())
        worst = None
        if with_classes and test is not None and right is not None and right_before is not None:
            worst = worst_fall(right_before, right, test.labels[test.kept])
        hits, near = objective.counts_in(h, head, members, margin)
        return Look(
            hits / len(h),
            change,
            drop,
            near=near / len(h),
            unseen=None if unseen is None else unseen.share(head, found if unseen.held is test else None),
            auc=unseen.auc(h, head) if with_auc and unseen is not None else None,
            class_drop=worst,
        )

    return look


def worst_fall(before: Tensor, after: Tensor, labels: Tensor) -> float:
    """Largest fall of accuracy of a class; ``before`` and ``after`` (k,) say which samples are right."""
    classes = int(labels.max()) + 1
    size = torch.bincount(labels, minlength=classes)
    lost = torch.bincount(labels, weights=before.double() - after.double(), minlength=classes)
    return float((lost / size.clamp(min=1)).max())


def parse_until(text: str) -> float:
    """``forget.accuracy<=0.92`` to 0.92.

    Raises:
        ImuError: another metric or sign, or not a fraction.
    """
    match = re.fullmatch(r"\s*forget\.accuracy\s*<=\s*(\S+)\s*", text)
    try:
        value = float(match.group(1)) if match else -1.0
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ImuError(f"--until {text!r}: not a target; write 'forget.accuracy<=0.92', with a fraction from 0 to 1")
    return value


def confusion_share(predicted: Tensor, test_labels: Tensor, labels: Tensor, true_labels: Tensor | None) -> float:
    """Held-out rate of D_f's confusions: how often samples of the true class are predicted as the wrong label.

    Mean over D_f of P(predicted = label | true class), or, where the true label is not given, of P(predicted = label |
    true class is not the label).

    Args:
        predicted, test_labels: (m,) of held-out samples.
        labels, true_labels: (n,) of D_f; a true label below 0 counts as not given.

    Raises:
        ImuError: a class that is needed has no held-out sample.
    """
    truth = torch.full_like(labels, -1) if true_labels is None else true_labels
    total = 0.0
    for (wrong, true), count in zip(*_counted(torch.stack([labels, truth], dim=1)), strict=True):
        pool = test_labels != wrong if true < 0 else test_labels == true
        if not bool(pool.any()):
            lacks = f"class {true}" if true >= 0 else f"a class other than {wrong}"
            raise ImuError(f"held-out data: has no sample of {lacks}; give data of it, or --until")
        total += count * float((predicted[pool] == wrong).double().mean())
    return total / len(labels)


def _counted(pairs: Tensor) -> tuple[list[list[int]], list[int]]:
    values, counts = pairs.unique(dim=0, return_counts=True)
    return values.tolist(), counts.tolist()


def attainable(rate: float, hits: int, n: int) -> float:
    """The share of n samples nearest to a rate that no count equals: 34 of 37 for 0.917.

    Where the ``hits`` so far lie above the rate, at least one sample has to go; where they do not, the rate itself is
    returned, which is then met already.
    """
    return rate if counts.at_most(hits, n, rate) else min(math.floor(rate * n + 0.5), hits - 1) / n


def target(
    plan: Plan, until: float | None, unseen: Comparison | None, head: Tensor, hits: int, n: int
) -> tuple[float | None, str]:
    """The share that the run is to reach and where it comes from; None with the reason where there is none.

    Args:
        plan: the scenario.
        until: a share that the user gives.
        unseen: what D_f is compared with; None without held-out data.
        head: W (c, d+1) of the original.
        hits: forget samples that the original predicts as a member, of ``n``.

    Raises:
        ImuError: held-out data lack a class.
    """
    if until is not None:
        return until, "--until"
    if plan.kind == "class":
        return CLASS_TARGET, "a model that never saw a class predicts it on none of its samples"
    if unseen is None and plan.kind == "sample":
        return None, "no target was given; add --test DATA (held-out accuracy) or --until 'forget.accuracy<=X'"
    if unseen is None:
        return 1 / head.shape[0], "1 / number of classes; with --test it is the held-out rate of these confusions"
    found = unseen.share(head)
    what = "accuracy on class-matched" if plan.kind == "sample" else "rate of these confusions on"
    return attainable(found, hits, n), f"{found:.2%}, the original's {what} held-out samples"
