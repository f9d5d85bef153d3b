"""Matched unlearning of a forget set: targets from held-out data, Σ, the path along ρ, and what was chosen on it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import attacks, matched
from .ascent import Limits, Look, Outcome, Reason, Step
from .errors import ImuError
from .scenario import HeldOut, Plan


@dataclass(frozen=True)
class Point:
    """One solution along the path: ρ, what its head does, two-sided AUC against held-out data, and how far margins missed.

    ``auc`` is None without held-out data; ``margin_error`` is the weighted root mean square of φ − t.
    """

    rho: float
    look: Look
    auc: float | None
    margin_error: float


@dataclass(frozen=True)
class Matched:
    """What matched unlearning found: the outcome, the path, and how well-posed the system was."""

    outcome: Outcome
    points: tuple[Point, ...]
    strengths: Tensor = field(repr=False)
    details: dict[str, float | str | bool | int]


def targets(
    plan: Plan, logits: Tensor, labels: Tensor, goal: float, held: HeldOut | None, held_logits: Tensor | None, *,
    by_accuracy: bool, true_labels: Tensor | None,
) -> tuple[Tensor, str]:  # fmt: skip
    """Margins (n,) that the forget samples are to have, and how they were got.

    With held-out data each sample takes the held-out margin of its rank; without, or where the user gave the target
    (``by_accuracy``), one constant is subtracted from every margin.
    """
    phi = matched.margins(logits, labels)
    if held is None or held_logits is None or by_accuracy:
        return matched.shifted_targets(
            phi, goal, matched.decision_margins(logits, labels)
        ), "a constant shift of all margins"
    if plan.kind == "mislabelled":
        known = None if true_labels is None or bool((true_labels < 0).any()) else true_labels
        found = matched.confusion_reference(held_logits, held.labels, labels, known)
        return matched.coupled_targets(
            phi, found.margins, found.weights
        ), "held-out margins of the wrong labels, by rank"
    weights = matched.class_match(labels, held.labels)
    return matched.coupled_targets(phi, matched.margins(held_logits, held.labels), weights), "held-out margins, by rank"


def prepare(
    h: Tensor, labels: Tensor, head: Tensor, wanted: Tensor, held: HeldOut | None, *, damping: float, class_factor: bool
) -> matched.Problem:
    """The linear system in the metric of held-out data, or of D_f where there are none."""
    seen = h if held is None else held.h
    # The forget set is fitted so well that its own probabilities hold no class curvature to speak of.
    wanted_factor = class_factor and held is not None
    curvature = matched.class_curvature((seen @ head.T).softmax(dim=1)) if wanted_factor else None
    return matched.prepare(
        h, labels, head, wanted, matched.second_moment(seen), damping=damping, curvature=curvature,
        weights=matched.error_weights(wanted),
    )  # fmt: skip


def _auc(solution: matched.Solution, labels: Tensor, held: HeldOut | None) -> float | None:
    """Two-sided AUC of D_f against class-matched held-out samples, on the solution's margins."""
    if held is None:
        return None
    pool = attacks.class_matched(labels, held.labels, torch.Generator().manual_seed(0))
    theirs = matched.margins(held.h[pool] @ solution.head.T, held.labels[pool])
    return attacks.two_sided_auc(solution.margins, theirs).value


def _verdict(look: Look, limits: Limits) -> matched.Verdict:
    if limits.exceeded(look) is not None:
        return "spent"
    return "met" if limits.met(look) else "more"


def run(
    problem: matched.Problem,
    look: Callable[[Tensor], Look],
    limits: Limits,
    rounded: Callable[[Tensor], Tensor],
    held: HeldOut | None,
    rho: float | None,
) -> Iterator[Point | Matched]:
    """Solve along decreasing ρ; yields each point and, last, what was chosen.

    The largest ρ that meets the target within the budgets is chosen, else the smallest that stays within them.

    Raises:
        ImuError: every solution on the path exceeds a budget.
    """
    points: list[Point] = []
    steps: list[matched.Step] = []

    def judge(solution: matched.Solution) -> matched.Verdict:
        seen = look(rounded(solution.head))
        miss = _miss(problem, solution.margins - problem.targets)
        points.append(Point(solution.rho, seen, _auc(solution, problem.labels, held), miss))
        return _verdict(seen, limits)

    for step in matched.path(problem, judge) if rho is None else _single(problem, judge, rho):
        steps.append(step)
        yield points[-1]
    best = matched.chosen(steps) if rho is None else steps[0]
    if best is None:
        raise ImuError(
            "matched: even the smallest change on the path leaves a budget (--max-drop, --max-head-change); raise it, or "
            "give more held-out data"
        )
    yield _finish(problem, best, steps, points, look, limits, rounded, rho)


def _single(
    problem: matched.Problem, judge: Callable[[matched.Solution], matched.Verdict], rho: float
) -> Iterator[matched.Step]:
    solution = matched.solve(problem, rho)
    yield matched.Step(solution, judge(solution))


def _reason(
    best: matched.Step, steps: list[matched.Step], points: list[Point], limits: Limits, rho: float | None
) -> Reason:
    if best.verdict == "met":
        return "target"
    if rho is not None:
        return "rho"
    over = [limits.exceeded(point.look) for point, step in zip(points, steps, strict=True) if step.verdict == "spent"]
    return over[0] or "path" if over else "path"


def _miss(problem: matched.Problem, missed: Tensor) -> float:
    """Root mean square of φ − t, weighted by what an error of each margin costs; in log-odds."""
    return float(((problem.weights * missed.square()).sum() / problem.weights.sum()).sqrt())


def _finish(
    problem: matched.Problem,
    best: matched.Step,
    steps: list[matched.Step],
    points: list[Point],
    look: Callable[[Tensor], Look],
    limits: Limits,
    rounded: Callable[[Tensor], Tensor],
    rho: float | None,
) -> Matched:
    solution = best.solution
    head = rounded(solution.head)
    start, end = look(rounded(problem.head)), look(head)
    taken = tuple(Step(number, 1.0, math.nan, point.look) for number, point in enumerate(points, 1))
    reached = None if limits.target is None else limits.met(end)
    outcome = Outcome(head, _reason(best, steps, points, limits, rho), reached, start, end, taken)
    n, missed = len(problem.labels), solution.margins - problem.targets
    before = matched.margins(problem.features @ problem.head.T, problem.labels) - problem.targets
    details: dict[str, float | str | bool | int] = {
        "rho": solution.rho,
        "form": solution.form,
        "converged": solution.converged,
        "condition": solution.condition,
        "capacity": problem.capacity,
        "margin_error_before": _miss(problem, before),
        "margin_error": _miss(problem, missed),
        "margins_within_half": float((missed.abs() <= 0.5).double().mean()),
        "n": n,
    }
    return Matched(outcome, tuple(points), solution.strengths, details)


def ordered(points: tuple[Point, ...]) -> list[Point]:
    """The path as a curve: by decreasing ρ, least change first."""
    return sorted(points, key=lambda point: -point.rho)
