"""The two ways to unlearn a forget set that was opened: plan, target and budgets, then the ascent or matched unlearning.

Nothing is written here; ``pipeline`` writes what comes out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from imu_cli.commands import held_out, scoring
from imu_cli.commands.scoring import Scored
from imu_cli.config.commands import UnlearnConfig
from imu_cli.errors import ImuError
from imu_cli.features.session import Session
from imu_cli.influence import closed_form
from imu_cli.linear import objective
from imu_cli.linear.objective import Members
from imu_cli.linear.rows import Rows, predicted
from imu_cli.records.parts import WHAT, HeldOutInfo
from imu_cli.records.record import LookInfo
from imu_cli.statistics.metrics import binomial_range
from imu_cli.unlearning import ascent, scenario
from imu_cli.unlearning.ascent import Look, Outcome, Step
from imu_cli.unlearning.matched import fit
from imu_cli.unlearning.matched import problem as solvers
from imu_cli.unlearning.scenario import HEAD_CHANGE_WITHOUT_TARGET, HeldOut, Plan


def warn_if_at_chance(opened: Session, accuracy: float) -> None:
    """Say so where the model does no better than chance on the forget set: it probably sees it wrongly."""
    chance = 1 / opened.head.classes
    spread = binomial_range(chance, len(opened.forget.samples))
    if accuracy <= spread[1]:
        opened.note(
            f"accuracy on the forget set is {accuracy:.1%}, no better than chance ({chance:.1%}): the preprocessing or the "
            "order of the labels is probably wrong"
        )


@dataclass
class Job:
    """A forget set with its plan, target and scores, ready to be unlearned; ``held`` is the data that the run chooses by."""

    h: Rows
    labels: Tensor
    true_labels: Tensor | None
    plan: Plan
    held: HeldOut | None
    held_info: HeldOutInfo | None
    target: float | None
    target_source: str
    limits: ascent.Limits
    look: Callable[[Tensor], Look]
    method: Literal["imu", "matched"]
    method_source: str
    scored: Scored | None = None
    selection: closed_form.Selection | None = None


def _held_out(opened: Session, config: UnlearnConfig, plan: Plan) -> tuple[HeldOut | None, HeldOutInfo | None]:
    found = held_out.reference_of(opened, config.test, config.reference)
    if found is None:
        return None, None
    images, info = found
    labels = opened.labels(images)
    return scenario.held_out(opened.features_of(images, "held-out"), labels, plan.forgotten), info


def _method(
    config: UnlearnConfig, kind: str, target: float | None, held_in_memory: bool
) -> tuple[Literal["imu", "matched"], str]:
    """Ascent or matched, and why.

    Raises:
        ImuError: matched was asked for where it cannot work.
    """
    if config.method == "matched":
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
    if config.method == "imu":
        return "imu", "--method"
    if kind == "class" or target is None:
        return "imu", "auto: whole classes" if kind == "class" else "auto: no target and no held-out data"
    given = [name for name in ASCENT_ONLY if getattr(config, name) != getattr(UnlearnConfig(), name)]
    if given:
        return "imu", f"auto: --{given[0].replace('_', '-')} is an option of the ascent"
    if not held_in_memory:
        return "imu", "auto: the features are streamed from a file, matched holds them in memory"
    return "matched", "auto: samples with a target"


ASCENT_ONLY = ("preset", "weights", "reweight", "rows", "step", "learning_rate", "max_steps", "keep", "clip_quantile")


def prepare(opened: Session, config: UnlearnConfig, h: Rows) -> Job:
    """Plan, held-out data, target, method and budgets, told before the first step.

    Args:
        opened: model and forget set.
        config: options.
        h: H (n, d+1) of the forget set.

    Raises:
        ImuError: options contradict each other, held-out data lack a class, or the target is already met.
    """
    labels, head = opened.labels(), opened.matrix()
    kind, source = scenario.decide(config.scenario, opened.forget.whole_classes, opened.data is not None)
    plan = scenario.plan(kind, source, labels, opened.head.classes, config.rows)
    opened.note(f"scenario {kind} ({source})")
    held, held_info = _held_out(opened, config, plan)
    warn_if_at_chance(opened, float((predicted(h, head) == labels).double().mean()))
    true = opened.forget.true_labels
    true_labels = None if true is None else torch.tensor(list(true), dtype=torch.int64, device=labels.device)
    limits, goal_source = bounds(config, plan, held, head, h, labels, true_labels)
    method, method_source = _method(config, kind, limits.target, held_in_memory=isinstance(h, Tensor))
    job = Job(
        h, labels, true_labels, plan, held, held_info, limits.target, goal_source, limits,
        scenario.looker(h, plan.members, head, held), method, method_source,
    )  # fmt: skip
    _tell_start(opened, job)
    return job


def bounds(
    config: UnlearnConfig,
    plan: Plan,
    held: HeldOut | None,
    head: Tensor,
    h: Rows,
    labels: Tensor,
    true_labels: Tensor | None,
) -> tuple[ascent.Limits, str]:
    """The target with the budgets, and where the target comes from.

    Raises:
        ImuError: ``--until`` is no target, or held-out data lack a class that is needed.
    """
    hits = round(objective.share_in(h, head, plan.members) * len(h))
    goal, source = scenario.target(plan, config.until, held, head, labels, true_labels, hits)
    if config.preset is not None and config.until is None:
        goal, source = None, "--preset paper runs a fixed number of epochs"
    max_change = config.max_head_change
    if max_change is None and goal is None and config.preset is None:
        max_change = HEAD_CHANGE_WITHOUT_TARGET
    guard = config.max_drop if held is not None and config.preset is None else None
    return ascent.Limits(goal, config.max_steps, max_change, guard), source


def _tell_start(opened: Session, job: Job) -> None:
    """Scenario, target and their sources, before the first step; a target that is already met is an error."""
    n, kind = len(job.labels), job.plan.kind
    if kind == "sample" and opened.data is None and len(job.labels.unique()) == 1 and n > 1:
        opened.note("all forget samples share one label; if they are the whole class, use --scenario class")
    if job.target is None:
        what = (
            f"; the head may move by {job.limits.max_head_change:.1%} of its norm" if job.limits.max_head_change else ""
        )
        opened.note(f"target: {job.target_source}{what}")
        return
    start = job.look(opened.head.rounded(opened.matrix()))
    text = f"target: at most {job.target:.2%} of the {n} {WHAT[kind]} ({job.target_source}); now {start.forget:.2%}"
    if kind != "class":
        low, high = binomial_range(job.target, n)
        text += (
            f". At a true rate of {job.target:.2%}, {n} samples show {low:.2%} to {high:.2%} in 95 of 100 cases: inside "
            "that range accuracy is no evidence either way"
        )
    opened.note(text)
    if start.forget <= job.target:
        raise ImuError(
            f"target: already met before the first step ({start.forget:.2%} of the forget samples, target at most "
            f"{job.target:.2%}); the preprocessing or the order of the labels is wrong, the model has already unlearned "
            "them, or it never learned them; nothing was written"
        )


def _weigh(opened: Session, config: UnlearnConfig, job: Job) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
    """Weights (n,) of the forget samples, and how to compute them again for another head."""
    extra = scoring.sample_weights(opened)
    if config.weights == "uniform":
        return closed_form.uniform(len(job.h), extra).to(job.h.device), None
    job.scored = job.scored or scoring.cached_scores(opened) or scoring.compute_scores(opened, job.h)
    job.selection = closed_form.weigh(job.scored.scores, config.keep, config.clip_quantile, extra)
    damping = closed_form.Damping.parse(config.damping)

    def again(head: Tensor) -> Tensor:
        scores = closed_form.influence(job.h, job.labels, head, damping).scores
        return closed_form.weigh(scores, config.keep, config.clip_quantile, extra).weights

    return job.selection.weights, None if config.reweight == "once" else again


def _update(opened: Session, config: UnlearnConfig, job: Job) -> tuple[ascent.Update, ascent.Limits, ascent.Reason]:
    weights, again = _weigh(opened, config, job)
    members = job.plan.members
    if config.preset == "paper":  # the published loss is the plain cross-entropy of each sample's own label
        members = Members(job.labels, opened.head.classes)
    problem = ascent.Objective(job.h, members, job.plan.rows, weights)
    if config.learning_rate is None:
        length = config.step * float(torch.linalg.norm(opened.matrix()))
        return ascent.NormalisedStep(problem, length, again), job.limits, "max_steps"
    update = ascent.StochasticSteps(
        problem,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        l1=config.l1,
        minibatch=config.minibatch,
        generator=torch.Generator().manual_seed(config.seed),
        reweigh=again,
        each_epoch=config.reweight == "epoch",
    )
    if config.epochs is None:
        return update, job.limits, "max_steps"
    return update, replace(job.limits, max_steps=config.epochs * update.steps_per_epoch()), "epochs"


@dataclass(frozen=True)
class Done:
    """What either method ended with: outcome, trajectory for the record, and details of the solver."""

    outcome: Outcome
    trajectory: list[LookInfo]
    details: dict[str, Any]


def ascend_on(opened: Session, config: UnlearnConfig, job: Job) -> Done:
    """Ascend the influence-weighted loss to the target or a budget."""
    update, limits, last = _update(opened, config, job)
    total = limits.max_steps if last == "epochs" else None
    with opened.clock.timed("ascent"), opened.events.track("ascent", total) as advance:
        run = ascent.ascend(opened.matrix(), update, job.look, limits, opened.head.rounded, last=last)
        outcome = _drain(run, advance)
    start = LookInfo(step=0, **vars(outcome.start))
    steps = [LookInfo(step=s.number, fraction=s.fraction, loss=s.loss, **vars(s.look)) for s in outcome.steps]
    return Done(outcome, [start, *steps], {})


def match_to(opened: Session, config: UnlearnConfig, job: Job) -> Done:
    """Solve matched unlearning along ρ to the target or a budget."""
    _, item = solve_matched(opened, config, job)
    _tell_matched(opened, item)
    start = LookInfo(step=0, **vars(item.outcome.start))
    points = [
        LookInfo(step=number, rho=p.rho, auc=p.auc, margin_error=p.margin_error, **vars(p.look))
        for number, p in enumerate(fit.ordered(item.points), 1)
    ]
    return Done(item.outcome, [start, *points], vars(item.details))


def solve_matched(opened: Session, config: UnlearnConfig, job: Job) -> tuple[solvers.Problem, fit.Matched]:
    """The system, and what was chosen along ρ."""
    head, held, h = opened.matrix(), job.held, job.h
    assert job.target is not None
    assert isinstance(h, Tensor), "_method refuses matched for features that are streamed"
    goal = fit.aim(
        job.plan, h, job.labels, head, job.target, held,
        by_accuracy=config.until is not None, true_labels=job.true_labels, max_auc=config.max_auc,
    )  # fmt: skip
    further = "" if goal.max_auc is None else f"; on to a membership AUC of {goal.max_auc:g} within the budgets"
    seen = "the forget set" if held is None else f"{len(held.h)} held-out samples"
    opened.note(f"target margins: {goal.how}; Σ of {seen}{further}")
    with opened.clock.timed("matching"), opened.events.track("matched, along ρ", None) as advance:
        problem = fit.prepare(
            h, job.labels, head, goal.targets, held, damping=config.sigma_damping, class_factor=config.class_factor
        )
        for item in fit.run(problem, goal, job.look, job.limits, opened.head.rounded, config.rho):
            if isinstance(item, fit.Matched):
                return problem, item
            advance(1)
    raise AssertionError("a run ends with what was chosen")


def _tell_matched(opened: Session, found: fit.Matched) -> None:
    d = found.details
    opened.note(
        f"matched: ρ {d.rho:.3g} of {len(found.points)} tried, margins miss their targets by {d.margin_error:.3g} "
        f"(before: {d.margin_error_before:.3g}) in log-odds, root mean square"
    )
    if d.auc is not None:
        opened.note(
            f"matched: membership AUC against the held-out samples {d.auc_before:.3f} before, {d.auc:.3f} after"
        )
    if d.auc is not None and d.max_auc is not None and d.auc > d.max_auc:
        further = (
            "what is left lies in samples that are recognised safely either way, a smaller --rho moves them too"
            if found.outcome.reason == "target"
            else "the budget ends here, a larger --max-drop lets them come closer"
        )
        opened.note(
            f"matched: the AUC is above the {d.max_auc:g} aimed at, the forget samples can still be told from unseen ones by "
            f"their margins; {further}"
        )
    if d.n > d.capacity:
        opened.note(
            f"{d.n} samples are more than the {d.capacity} margins this head can set freely; "
            f"{d.margins_within_half:.0%} came within 0.5 of their target"
        )
    if not d.converged:
        opened.note(
            "matched: the last re-linearisation still moved the head a little; what is written was measured as it is"
        )


def _drain(run: Iterator[Step | Outcome], advance: Callable[[int], None]) -> Outcome:
    for item in run:
        if isinstance(item, Outcome):
            return item
        advance(1)
    raise AssertionError("an ascent ends with its outcome")
