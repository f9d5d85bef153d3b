"""Why samples go, and what follows from it: which share must fall, to what, and which rows of the head may move."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear.objective import Members

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
