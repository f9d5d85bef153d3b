"""The two ways to unlearn a forget set: plan, target and budgets, then the ascent or matched unlearning.

Tensors and numbers in, a head out; what is told on the way goes to a ``Log``. Nothing is read or written here.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.events import Advance, Log
from imu_cli.influence import closed_form
from imu_cli.linear import objective
from imu_cli.linear.objective import Members
from imu_cli.records.record import LookInfo
from imu_cli.statistics import counts
from imu_cli.unlearning import ascent, targets
from imu_cli.unlearning.ascent import Outcome
from imu_cli.unlearning.matched import fit
from imu_cli.unlearning.matched.problem import Problem
from imu_cli.unlearning.messages import tell_matched
from imu_cli.unlearning.procedure import Classifier, Done, Forgetting, Job, Method, Procedure
from imu_cli.unlearning.scenario import Plan
from imu_cli.unlearning.targets import HEAD_CHANGE_WITHOUT_TARGET, Comparison, HeldOut, Limits


def _method(procedure: Procedure, kind: str, target: float | None, held_in_memory: bool) -> tuple[Method, str]:
    """Ascent or matched, and why.

    Raises:
        ImuError: matched was asked for where it cannot work.
    """
    if procedure.deeper or procedure.method == "demoted":
        return _deeper(procedure, kind, target)
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


def _deeper(procedure: Procedure, kind: str, target: float | None) -> tuple[Method, str]:
    """The demoted teacher, and why.

    Raises:
        ImuError: another method was asked for, no scope was named, or nothing says how far samples are to go.
    """
    if not procedure.deeper:
        raise ImuError(
            "--method demoted: moves more than the head; say what with --scope, for example --scope last-block"
        )
    if procedure.method in ("imu", "matched"):
        raise ImuError(f"--method {procedure.method}: changes the head alone; leave it out, or use --scope head")
    if kind != "class" and target is None:
        raise ImuError(
            "--scope: deeper than the head every sample is brought to the margin that unseen samples have, and nothing says what that "
            "is; add --test DATA, --reference DATA or --until 'forget.accuracy<=X'"
        )
    return "demoted", "--method" if procedure.method == "demoted" else "auto: the scope is deeper than the head"


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
    silent = follows and goal is not None and counts.at_most(hits, n, goal)
    if not silent or unseen is None:
        return limits, source
    return replace(limits, max_auc=unseen.auc_bound(procedure.matching.max_auc, head)), source


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


def run(job: Job) -> Done:
    """Unlearn by the method that was chosen, to the target or a budget."""
    return match_to(job) if job.method == "matched" else ascend_on(job)


def ascend_on(job: Job) -> Done:
    """Ascend the influence-weighted loss to the target or a budget."""
    update, limits, last = _update(job)
    total = limits.max_steps if last == "epochs" else None
    with job.log.timed("ascent"), job.log.track("ascent", total) as advance:
        steps_on = ascent.ascend(job.classifier.matrix, update, job.look, limits, job.classifier.rounded, last=last)
        outcome = _drain(steps_on, Outcome, advance)
    start = LookInfo(step=0, **vars(outcome.start))
    steps = [LookInfo(step=s.number, fraction=s.fraction, loss=s.loss, **vars(s.look)) for s in outcome.steps]
    return Done(outcome, [start, *steps], {})


def match_to(job: Job) -> Done:
    """Solve matched unlearning along ρ to the target or a budget."""
    _, item = solve_matched(job)
    tell_matched(job.log, item, job.held)
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
        run = fit.run(problem, goal, job.look, job.limits, job.classifier.rounded, wanted.rho)
        return problem, _drain(run, fit.Matched, advance)


Last = TypeVar("Last")


def _drain(run: Iterator[object], last: type[Last], advance: Advance) -> Last:
    for item in run:
        if isinstance(item, last):
            return item
        advance(1)
    raise AssertionError("a run ends with what was chosen")
