"""Why samples go, and what follows from it: which share must fall, to what, and which rows of the head may move."""

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
from imu_cli.unlearning.ascent import Look

HEAD_CHANGE_WITHOUT_TARGET = 0.02
CLASS_TARGET = 0.005

Kind = Literal["class", "sample", "mislabelled"]


@dataclass(frozen=True)
class Plan:
    """The scenario, resolved.

    Attributes:
        kind: class, sample or mislabelled; ``source`` says who decided.
        members: each row's own classes; the share of rows predicted as a member is what must fall.
        forgotten: ids of the forgotten classes in the class scenario, else empty.
        rows: (c,) bool, the head's rows that may move.
    """

    kind: Kind
    source: str
    members: Members
    forgotten: tuple[int, ...]
    rows: Tensor

    def moving(self) -> list[int] | None:
        """The rows that move, None for all of them."""
        return None if bool(self.rows.all()) else self.rows.nonzero().squeeze(1).tolist()


def decide(wanted: str, whole_classes: bool | None, has_data: bool) -> tuple[Kind, str]:
    """``auto`` is class where the forget set holds every row of its labels in --data, else sample."""
    if wanted != "auto":
        return wanted, "--scenario"  # type: ignore[return-value]
    if whole_classes:
        return "class", "auto: the forget set holds every row of its labels in --data"
    why = (
        "some rows of its labels in --data stay"
        if has_data
        else "without --data nothing proves that these are whole classes"
    )
    return "sample", f"auto: {why}"


def plan(kind: Kind, source: str, labels: Tensor, classes: int, rows: str) -> Plan:
    """Members and moving rows of a scenario.

    Raises:
        ImuError: every class would be forgotten, or ``--rows forgotten`` outside the class scenario.
    """
    everything = torch.ones(classes, dtype=torch.bool, device=labels.device)
    if kind != "class":
        if rows == "forgotten":
            raise ImuError(
                "--rows forgotten: only whole classes have rows of their own; use --scenario class or --rows all"
            )
        return Plan(kind, source, Members(labels, classes), (), everything)
    own = torch.zeros_like(everything)
    own[labels] = True
    forgotten = tuple(sorted(set(labels.tolist())))
    if len(forgotten) == classes:
        raise ImuError(
            "--forget: holds every class of the model, none would be kept; leave some out, or use --scenario sample"
        )
    return Plan(kind, source, Members(labels, classes, own), forgotten, everything if rows == "all" else own)


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
    plan: Plan, until: str | None, test: HeldOut | None, head: Tensor, labels: Tensor, true: Tensor | None, hits: int
) -> tuple[float | None, str]:
    """The share that the run is to reach and where it comes from; None with the reason where there is none.

    ``hits`` counts the forget samples that are predicted as a member by the original.
    """
    if until is not None:
        return parse_until(until), "--until"
    if plan.kind == "class":
        return CLASS_TARGET, "a model that never saw a class predicts it on none of its samples"
    if test is None and plan.kind == "sample":
        return None, "no target was given; add --test DATA (held-out accuracy) or --until 'forget.accuracy<=X'"
    if test is None:
        return 1 / head.shape[0], "1 / number of classes; with --test it is the held-out rate of these confusions"
    found = unseen_share(plan, test, head, labels, true)
    what = "accuracy on class-matched" if plan.kind == "sample" else "rate of these confusions on"
    return _attainable(found, hits, len(labels)), f"{found:.2%}, the original's {what} held-out samples"
