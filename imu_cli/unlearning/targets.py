"""Target and look: what is counted on the forget set, what it is compared with, and when it is met."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear import objective
from imu_cli.linear.objective import Members
from imu_cli.linear.rows import Rows, predicted
from imu_cli.statistics import metrics
from imu_cli.unlearning.scenario import Plan


@dataclass(frozen=True)
class Look:
    """What a head does: share of D_f predicted as a member (forgotten class or own label), and its cost.

    ``head_change`` is ‖W − W₀‖/‖W₀‖; ``test_drop`` the fall of accuracy on held-out data, None where none is given.
    """

    forget: float
    head_change: float
    test_drop: float | None = None


@dataclass(frozen=True)
class Limits:
    """When to stop: target share on D_f (None: no target), and what may be spent."""

    target: float | None
    max_steps: int
    max_head_change: float | None = None
    max_drop: float | None = None

    def met(self, look: Look) -> bool:
        """The target is given and reached."""
        return self.target is not None and look.forget <= self.target

    def exceeded(self, look: Look) -> Literal["max_head_change", "max_drop"] | None:
        """Which budget this look is beyond."""
        if self.max_head_change is not None and look.head_change > self.max_head_change:
            return "max_head_change"
        if self.max_drop is not None and look.test_drop is not None and look.test_drop > self.max_drop:
            return "max_drop"
        return None


HEAD_CHANGE_WITHOUT_TARGET = 0.02
CLASS_TARGET = 0.005


@dataclass(frozen=True)
class HeldOut:
    """Held-out samples: H (m, d+1), labels (m,), and which of them belong to kept classes."""

    h: Rows
    labels: Tensor
    kept: Tensor

    def right(self, head: Tensor) -> Tensor:
        """Which of the samples of kept classes are predicted rightly (k,)."""
        return (predicted(self.h, head) == self.labels)[self.kept]


def held_out(h: Rows, labels: Tensor, forgotten: tuple[int, ...]) -> HeldOut:
    """Held-out samples with their kept classes marked.

    Raises:
        ImuError: no sample of a kept class.
    """
    gone = torch.tensor(forgotten, dtype=torch.int64, device=labels.device)
    kept = ~torch.isin(labels, gone)
    if not bool(kept.any()):
        raise ImuError("held-out data: has no sample of a kept class; give held-out data of all classes")
    return HeldOut(h, labels, kept)


def looker(h: Rows, members: Members, start: Tensor, test: HeldOut | None) -> Callable[[Tensor], Look]:
    """What to look at after every step: share predicted as a member, change of the head, fall of test accuracy."""
    norm = float(torch.linalg.norm(start))
    before = float(test.right(start).double().mean()) if test is not None else 0.0

    def look(head: Tensor) -> Look:
        change = float(torch.linalg.norm(head - start)) / norm
        drop = None if test is None else before - float(test.right(head).double().mean())
        return Look(objective.share_in(h, head, members), change, drop)

    return look


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


def _attainable(rate: float, hits: int, n: int) -> float:
    """The share of n samples nearest to a rate that no count equals: 34 of 37 for 0.917.

    Where the ``hits`` so far lie above the rate, at least one sample has to go; where they do not, the rate itself is
    returned, which is then met already.
    """
    return rate if hits <= rate * n else min(math.floor(rate * n + 0.5), hits - 1) / n


def unseen_share(plan: Plan, test: HeldOut, head: Tensor, labels: Tensor, true: Tensor | None) -> float:
    """What the share on D_f is for samples that were never seen, on held-out data matched to D_f.

    Their accuracy; in the mislabelled scenario their rate of D_f's confusions.

    Raises:
        ImuError: held-out data lack a class.
    """
    found = predicted(test.h, head)
    if plan.kind == "mislabelled":
        return confusion_share(found, test.labels, labels, true)
    return metrics.class_matched_accuracy(found == test.labels, test.labels, labels).value


def target(
    plan: Plan, until: float | None, test: HeldOut | None, head: Tensor, labels: Tensor, true: Tensor | None, hits: int
) -> tuple[float | None, str]:
    """The share that the run is to reach and where it comes from; None with the reason where there is none.

    ``hits`` counts the forget samples that are predicted as a member by the original.
    """
    if until is not None:
        return until, "--until"
    if plan.kind == "class":
        return CLASS_TARGET, "a model that never saw a class predicts it on none of its samples"
    if test is None and plan.kind == "sample":
        return None, "no target was given; add --test DATA (held-out accuracy) or --until 'forget.accuracy<=X'"
    if test is None:
        return 1 / head.shape[0], "1 / number of classes; with --test it is the held-out rate of these confusions"
    found = unseen_share(plan, test, head, labels, true)
    what = "accuracy on class-matched" if plan.kind == "sample" else "rate of these confusions on"
    return _attainable(found, hits, len(labels)), f"{found:.2%}, the original's {what} held-out samples"
