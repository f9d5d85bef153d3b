"""What the methods take and give: the forget set before a head, what a user asks for, a job, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from imu_cli.events import Log
from imu_cli.influence import closed_form
from imu_cli.influence.closed_form import Damping
from imu_cli.influence.scores import Scored
from imu_cli.linear.rows import Rows
from imu_cli.records.record import LookInfo
from imu_cli.unlearning.ascent import Outcome
from imu_cli.unlearning.scenario import Plan
from imu_cli.unlearning.targets import Comparison, HeldOut, Limits, Look

Method = Literal["imu", "matched", "demoted"]


@dataclass(frozen=True)
class Forgetting:
    """The forget set before a head: H (n, d+1), labels (n,), true labels (n,) and weights (n,) where they are given.

    ``scores`` gives its influence scores; they are asked for where the ascent is weighted by them.
    """

    h: Rows
    labels: Tensor
    true_labels: Tensor | None
    weights: Tensor | None
    scores: Callable[[], Scored]


@dataclass(frozen=True)
class Classifier:
    """The head that is changed: W (c, d+1) float64, and what rounds a head to the values that its file can hold."""

    matrix: Tensor
    rounded: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ascent:
    """How the ascent goes.

    Attributes:
        weights: influence weights, or uniform (plain gradient ascent).
        reweight: when weights are computed again.
        keep, clip_quantile: of ``closed_form.weigh``; ``damping`` is that of the scores.
        step: length of a normalised step, as a fraction of the head's norm.
        learning_rate: of SGD in place of normalised steps; with momentum, weight decay, l1, minibatch and epochs.
        published: the published loss, plain cross-entropy of each sample's own label, for a fixed number of epochs.
        seed: of the minibatches' order.
    """

    weights: Literal["influence", "uniform"] = "influence"
    reweight: Literal["once", "epoch", "step"] = "once"
    keep: float = 1.0
    clip_quantile: float = 0.93
    damping: Damping = field(default_factory=lambda: Damping(0.01))
    step: float = 0.005
    learning_rate: float | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    l1: float = 0.0
    minibatch: int | None = None
    epochs: int | None = None
    published: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Matching:
    """How matched unlearning goes: ρ (found along a path if None), AUC to go on to, damping of Σ, K-FAC's class factor."""

    rho: float | None = None
    max_auc: float = 0.51
    sigma_damping: float = 0.01
    class_factor: bool = True


@dataclass(frozen=True)
class Procedure:
    """What a user asks for: method, target and budgets, and how either method goes.

    Attributes:
        deeper: more than the head moves.
        method: ``auto`` is demoted where it does, imu for whole classes, without target or held-out data, or where ``ascent_option`` is given.
        ascent_option: an option that only the ascent has, by its flag, where one was given.
        until: the target share in place of the scenario's own.
        margin: distance from a decision boundary, in logits, that rounding may move a sample by.
        max_drop, max_class_drop, max_steps, max_head_change: budgets; see ``targets.Limits``.
    """

    method: Literal["auto", "imu", "matched", "demoted"] = "auto"
    deeper: bool = False
    ascent_option: str | None = None
    until: float | None = None
    margin: float = 0.0
    max_drop: float = 0.01
    max_class_drop: float | None = None
    max_steps: int = 1000
    max_head_change: float | None = None
    ascent: Ascent = field(default_factory=Ascent)
    matching: Matching = field(default_factory=Matching)


@dataclass
class Job:
    """A forget set with its plan, target and method, ready to be unlearned; ``held`` is the data that the run chooses by."""

    forgetting: Forgetting
    classifier: Classifier
    plan: Plan
    held: HeldOut | None
    unseen: Comparison | None
    procedure: Procedure
    limits: Limits
    target_source: str
    look: Callable[[Tensor], Look]
    method: Method
    method_source: str
    log: Log
    scored: Scored | None = None
    selection: closed_form.Selection | None = None

    @property
    def target(self) -> float | None:
        """The share that the forget set is to reach; None without a target."""
        return self.limits.target


@dataclass(frozen=True)
class Done:
    """What either method ended with: outcome, trajectory for the record, and details of the solver."""

    outcome: Outcome
    trajectory: list[LookInfo]
    details: dict[str, Any]
