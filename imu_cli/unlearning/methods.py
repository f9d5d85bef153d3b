"""The two ways to unlearn a forget set: plan, target and budgets, then the ascent or matched unlearning.

Tensors and numbers in, a head out; what is told on the way goes to a ``Log``. Nothing is read or written here.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.events import Advance, Log
from imu_cli.influence import closed_form
from imu_cli.influence.closed_form import Damping
from imu_cli.influence.scores import Scored
from imu_cli.linear import objective
from imu_cli.linear.objective import Members
from imu_cli.linear.rows import Rows
from imu_cli.records.parts import WHAT
from imu_cli.records.record import LookInfo
from imu_cli.statistics import chance
from imu_cli.statistics.metrics import binomial_range
from imu_cli.unlearning import ascent, targets
from imu_cli.unlearning.ascent import Outcome, Step
from imu_cli.unlearning.matched import fit
from imu_cli.unlearning.matched.problem import Problem
from imu_cli.unlearning.scenario import Plan
from imu_cli.unlearning.targets import HEAD_CHANGE_WITHOUT_TARGET, Comparison, HeldOut, Limits, Look

Method = Literal["imu", "matched"]


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
        method: ``auto`` is imu for whole classes, without target or held-out data, or where ``ascent_option`` is given.
        ascent_option: an option that only the ascent has, by its flag, where one was given.
        until: the target share in place of the scenario's own.
        margin: distance from a decision boundary, in logits, that rounding may move a sample by.
        max_drop, max_class_drop, max_steps, max_head_change: budgets; see ``targets.Limits``.
    """

    method: Literal["auto", "imu", "matched"] = "auto"
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


def warn_if_at_chance(log: Log, right: Tensor, classes: int, what: str = "the forget set") -> None:
    """Say so where the model does no better than chance on a set; ``right`` (n,) says which samples it gets right."""
    if len(right):
        told = chance.warning(int(right.sum()), len(right), classes, what)
        if told is not None:
            log.note(told)


def _method(procedure: Procedure, kind: str, target: float | None, held_in_memory: bool) -> tuple[Method, str]:
    """Ascent or matched, and why.

    Raises:
        ImuError: matched was asked for where it cannot work.
    """
    if procedure.method == "matched":
        if kind == "class":
            raise ImuError("--method matched: for samples; a whole class goes without cost by --method imu")
        if target is None:
            raise ImuError(
                "--method matched: solves for margins like those of unseen data, and nothing says what those are; "
                "add --test DATA, --reference DATA or --until 'forget.accuracy<=X'"
            )
        if not held_in_memory:
            raise ImuError(
                "--method matched: holds the features of every forget sample in memory, and these are streamed from a file; "
                "raise --max-memory, or use --method imu"
            )
        return "matched", "--method"
    if procedure.method == "imu":
        return "imu", "--method"
    if kind == "class" or target is None:
        return "imu", "auto: whole classes" if kind == "class" else "auto: no target and no held-out data"
    if procedure.ascent_option is not None:
        return "imu", f"auto: {procedure.ascent_option} is an option of the ascent"
    if not held_in_memory:
        return "imu", "auto: the features are streamed from a file, matched holds them in memory"
    return "matched", "auto: samples with a target"


def prepare(
    forgetting: Forgetting,
    classifier: Classifier,
    plan: Plan,
    held: HeldOut | None,
    procedure: Procedure,
    log: Log,
    *,
    method: tuple[Method, str] | None = None,
) -> Job:
    """Target, budgets and method of a forget set; ``method`` with its reason where they are known already.

    Raises:
        ImuError: options contradict each other, or held-out data lack a class.
    """
    matrix = classifier.matrix
    unseen = None if held is None else Comparison(plan, forgetting.labels, forgetting.true_labels, held)
    limits, source = bounds(procedure, plan, unseen, forgetting, matrix)
    chosen = method or _method(procedure, plan.kind, limits.target, isinstance(forgetting.h, Tensor))
    look = targets.looker(
        forgetting.h, plan.members, matrix, held,
        margin=procedure.margin,
        unseen=unseen if limits.follows or limits.max_auc is not None else None,
        with_auc=limits.max_auc is not None,
        with_classes=limits.max_class_drop is not None,
    )  # fmt: skip
    return Job(forgetting, classifier, plan, held, unseen, procedure, limits, source, look, *chosen, log)


def bounds(
    procedure: Procedure, plan: Plan, unseen: Comparison | None, forgetting: Forgetting, head: Tensor
) -> tuple[Limits, str]:
    """The target with the budgets, and where the target comes from.

    Where the forget set is no more often right than unseen samples are, accuracy has nothing to say: the membership AUC is
    the target then.

    Raises:
        ImuError: held-out data lack a class that is needed.
    """
    h, n = forgetting.h, len(forgetting.h)
    hits, _ = objective.counts_in(h, head, plan.members)
    goal, source = targets.target(plan, procedure.until, unseen, head, hits, n)
    published = procedure.ascent.published
    follows = unseen is not None and plan.kind != "class" and procedure.until is None and not published
    if published and procedure.until is None:
        goal, source = None, "--preset paper runs a fixed number of epochs"
    max_change = procedure.max_head_change
    if max_change is None and goal is None and not published:
        max_change = HEAD_CHANGE_WITHOUT_TARGET
    guarded = unseen is not None and not published
    limits = Limits(
        goal, procedure.max_steps, max_change,
        max_drop=procedure.max_drop if guarded else None,
        max_class_drop=procedure.max_class_drop if guarded else None,
        follows=follows, n=n, hits=hits, m=0 if unseen is None else int(unseen.held.kept.sum()),
    )  # fmt: skip
    silent = follows and goal is not None and targets.within(hits / n, goal, n)
    if not silent or unseen is None:
        return limits, source
    return replace(limits, max_auc=max(procedure.matching.max_auc, unseen.least_auc(head))), source


def tell_start(job: Job, *, proven_classes: bool) -> None:
    """Target and its source, before the first step; a target that is already met is an error.

    ``proven_classes`` says whether a data set could tell that classes are whole.
    """
    n, kind, labels, classifier = len(job.forgetting.labels), job.plan.kind, job.forgetting.labels, job.classifier
    if kind == "sample" and not proven_classes and len(labels.unique()) == 1 and n > 1:
        job.log.note("all forget samples share one label; if they are the whole class, use --scenario class")
    if job.target is None:
        what = (
            f"; the head may move by {job.limits.max_head_change:.1%} of its norm" if job.limits.max_head_change else ""
        )
        job.log.note(f"target: {job.target_source}{what}")
        return
    start = job.look(classifier.rounded(classifier.matrix))
    if job.limits.max_auc is not None:
        _tell_margins(job, start)
        return
    text = f"target: at most {job.target:.2%} of the {n} {WHAT[kind]} ({job.target_source}); now {start.forget:.2%}"
    if kind != "class":
        low, high = binomial_range(job.target, n)
        text += (
            f". At a true rate of {job.target:.2%}, {n} samples show {low:.2%} to {high:.2%} in 95 of 100 cases: inside "
            "that range accuracy is no evidence either way"
        )
    job.log.note(text)
    if job.limits.share_met(start) and not (job.method == "matched" and job.procedure.matching.rho is not None):
        raise ImuError(_already(job, start))


def _tell_margins(job: Job, start: Look) -> None:
    """The target where accuracy has nothing to say: margins like those of unseen samples.

    Raises:
        ImuError: the forget set looks unseen by its margins, too.
    """
    n, limits = len(job.forgetting.labels), job.limits
    assert start.auc is not None
    assert limits.max_auc is not None
    shares = (
        f"{start.forget:.2%} of the {n} {WHAT[job.plan.kind]}, as {0.0 if start.unseen is None else start.unseen:.2%} of unseen "
        "samples are"
    )
    if targets.alike(start.auc, limits.max_auc) and job.procedure.matching.rho is None:
        raise ImuError(
            f"target: the forget set looks like unseen samples already, by accuracy ({shares}) and by its margins (membership AUC "
            f"{start.auc:.3f}, aim {limits.max_auc:g}): there is nothing to forget here that could be measured; nothing was written. "
            "If these samples are remembered all the same, ask for more with --until 'forget.accuracy<=X', --max-auc or --rho"
        )
    job.log.note(
        f"target: accuracy has nothing to say here ({shares}); the target is the spread of unseen samples' margins: membership AUC "
        f"{start.auc:.3f} now, at most {limits.max_auc:.4g} wanted"
    )


def _already(job: Job, start: Look) -> str:
    """Why a target that is met before the first step ends the run, by what is true of this run."""
    found = f"{start.forget:.2%} of the forget samples, target at most {job.target:.2%}"
    if job.procedure.until is not None:
        return (
            f"--until: already met before the first step ({found}); ask for less, or leave --until out so that unseen samples "
            "say how far to go; nothing was written"
        )
    if job.plan.kind == "class":
        return (
            f"target: already met before the first step ({found}): the model does not predict these classes on their own samples. "
            "It has unlearned them already, or sees them wrongly (preprocessing, order of the classes); nothing was written"
        )
    return (
        f"target: already met before the first step ({found}); the model does not give these samples their labels more often than "
        "that as it is: check labels and preprocessing, or ask for less with --until; nothing was written"
    )


def _weigh(job: Job) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
    """Weights (n,) of the forget samples, and how to compute them again for another head."""
    given, wanted = job.forgetting, job.procedure.ascent
    if wanted.weights == "uniform":
        return closed_form.uniform(len(given.h), given.weights).to(given.h.device), None
    job.scored = job.scored or given.scores()
    job.selection = closed_form.weigh(job.scored.scores, wanted.keep, wanted.clip_quantile, given.weights)

    def again(head: Tensor) -> Tensor:
        scores = closed_form.influence(given.h, given.labels, head, wanted.damping).scores
        return closed_form.weigh(scores, wanted.keep, wanted.clip_quantile, given.weights).weights

    return job.selection.weights, None if wanted.reweight == "once" else again


def _update(job: Job) -> tuple[ascent.Update, Limits, ascent.Reason]:
    weights, again = _weigh(job)
    wanted, members, matrix = job.procedure.ascent, job.plan.members, job.classifier.matrix
    if wanted.published:
        members = Members(job.forgetting.labels, len(matrix))
    problem = ascent.Objective(job.forgetting.h, members, job.plan.rows, weights)
    if wanted.learning_rate is None:
        length = wanted.step * float(torch.linalg.norm(matrix))
        return ascent.NormalisedStep(problem, length, again), job.limits, "max_steps"
    update = ascent.StochasticSteps(
        problem,
        learning_rate=wanted.learning_rate,
        momentum=wanted.momentum,
        weight_decay=wanted.weight_decay,
        l1=wanted.l1,
        minibatch=wanted.minibatch,
        generator=torch.Generator().manual_seed(wanted.seed),
        reweigh=again,
        each_epoch=wanted.reweight == "epoch",
    )
    if wanted.epochs is None:
        return update, job.limits, "max_steps"
    return update, replace(job.limits, max_steps=wanted.epochs * update.steps_per_epoch()), "epochs"


@dataclass(frozen=True)
class Done:
    """What either method ended with: outcome, trajectory for the record, and details of the solver."""

    outcome: Outcome
    trajectory: list[LookInfo]
    details: dict[str, Any]


def run(job: Job) -> Done:
    """Unlearn by the method that was chosen, to the target or a budget."""
    return match_to(job) if job.method == "matched" else ascend_on(job)


def ascend_on(job: Job) -> Done:
    """Ascend the influence-weighted loss to the target or a budget."""
    update, limits, last = _update(job)
    total = limits.max_steps if last == "epochs" else None
    with job.log.timed("ascent"), job.log.track("ascent", total) as advance:
        steps_on = ascent.ascend(job.classifier.matrix, update, job.look, limits, job.classifier.rounded, last=last)
        outcome = _drain(steps_on, advance)
    start = LookInfo(step=0, **vars(outcome.start))
    steps = [LookInfo(step=s.number, fraction=s.fraction, loss=s.loss, **vars(s.look)) for s in outcome.steps]
    return Done(outcome, [start, *steps], {})


def match_to(job: Job) -> Done:
    """Solve matched unlearning along ρ to the target or a budget."""
    _, item = solve_matched(job)
    _tell_matched(job.log, item, job.held)
    start = LookInfo(step=0, **vars(item.outcome.start))
    points = [
        LookInfo(step=number, rho=p.rho, margin_error=p.margin_error, **{**vars(p.look), "auc": p.auc})
        for number, p in enumerate(fit.ordered(item.points), 1)
    ]
    return Done(item.outcome, [start, *points], vars(item.details))


def solve_matched(job: Job) -> tuple[Problem, fit.Matched]:
    """The system, and what was chosen along ρ."""
    head, held, given, wanted = job.classifier.matrix, job.held, job.forgetting, job.procedure.matching
    assert job.target is not None
    assert isinstance(given.h, Tensor), "_method refuses matched for features that are streamed"
    goal = fit.aim(
        given.h, given.labels, head, job.target, job.unseen,
        kind=job.plan.kind, by_accuracy=job.procedure.until is not None, max_auc=wanted.max_auc,
    )  # fmt: skip
    further = "" if goal.max_auc is None else f"; on to a membership AUC of {goal.max_auc:.4g} within the budgets"
    seen = "the forget set" if held is None else f"{len(held.h)} held-out samples"
    job.log.note(f"target margins: {goal.how}; Σ of {seen}{further}")
    with job.log.timed("matching"), job.log.track("matched, along ρ", None) as advance:
        problem = fit.prepare(
            given.h, given.labels, head, goal.targets, held,
            damping=wanted.sigma_damping, class_factor=wanted.class_factor,
        )  # fmt: skip
        for item in fit.run(problem, goal, job.look, job.limits, job.classifier.rounded, wanted.rho):
            if isinstance(item, fit.Matched):
                return problem, item
            advance(1)
    raise AssertionError("a run ends with what was chosen")


def _evidence(auc: float, n: int, m: int) -> str:
    """Whether n forget samples and m unseen ones show that an AUC is not 0.5: its standard error where both are alike."""
    error = math.sqrt((n + m + 1) / (12 * n * m)) if m else math.inf
    if abs(auc - 0.5) <= 1.96 * error:
        return f"{n} forget samples against {m} unseen ones do not show that it differs from 0.5 (standard error {error:.3f})"
    return "the forget samples can still be told from unseen ones by their margins"


def _tell_matched(log: Log, found: fit.Matched, held: HeldOut | None) -> None:
    d = found.details
    log.note(
        f"matched: ρ {d.rho:.3g} of {len(found.points)} tried, margins miss their targets by {d.margin_error:.3g} "
        f"(before: {d.margin_error_before:.3g}) in log-odds, root mean square"
    )
    if d.auc is not None:
        log.note(f"matched: membership AUC against the held-out samples {d.auc_before:.3f} before, {d.auc:.3f} after")
    if d.auc is not None and d.max_auc is not None and not targets.alike(d.auc, d.max_auc):
        further = (
            "what is left lies in samples that are recognised safely either way, a smaller --rho moves them too"
            if found.outcome.reason == "target"
            else "the budget ends here, a larger --max-drop lets them come closer, at the cost of other samples"
        )
        told = _evidence(d.auc, d.n, 0 if held is None else len(held.labels))
        log.note(f"matched: the AUC is above the {d.max_auc:.4g} aimed at; {told}; {further}")
    if d.n > d.capacity:
        log.note(
            f"{d.n} samples are more than the {d.capacity} margins this head can set freely; "
            f"{d.margins_within_half:.0%} came within 0.5 of their target"
        )
    if not d.converged:
        log.note(
            "matched: the last re-linearisation still moved the head a little; what is written was measured as it is"
        )


def _drain(run: Iterator[Step | Outcome], advance: Advance) -> Outcome:
    for item in run:
        if isinstance(item, Outcome):
            return item
        advance(1)
    raise AssertionError("an ascent ends with its outcome")
