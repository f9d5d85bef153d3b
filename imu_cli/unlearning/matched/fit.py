"""Matched unlearning of a forget set: targets from held-out data, Σ, the path along ρ, and what was chosen on it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear import margins
from imu_cli.linear.rows import logits as logits_of
from imu_cli.unlearning import targets
from imu_cli.unlearning.ascent import Outcome, Reason, Step
from imu_cli.unlearning.matched import path as path_module
from imu_cli.unlearning.matched import problem as problem_module
from imu_cli.unlearning.matched import solvers
from imu_cli.unlearning.scenario import Kind
from imu_cli.unlearning.targets import Comparison, HeldOut, Limits, Look

CLOSE = 0.05
"""Margins that miss their targets by less, in log-odds, are where they should be: less ρ may bring nothing."""
STILL = 0.001
"""Fall of the AUC from one point to the next below which it has come to its end."""


@dataclass(frozen=True)
class Point:
    """One solution along the path: ρ, what its head does, AUC of D_f against held-out data, and how far margins missed.

    ``auc`` is the membership AUC under that head, 0.5 where D_f looks unseen, None without held-out data;
    ``margin_error`` is the weighted root mean square of φ − t.
    """

    rho: float
    look: Look
    auc: float | None
    margin_error: float


@dataclass(frozen=True)
class Details:
    """What the record says of the chosen solution beside its outcome.

    Attributes:
        targets: where the target margins came from.
        rho, form, converged: of the solution; ``condition`` is that of the metric.
        capacity: margins that the head can set freely; ``n`` samples were asked for.
        margin_error_before, margin_error: weighted root mean square of φ − t, in log-odds.
        margins_within_half: share of the samples within 0.5 of their target.
        auc_before, auc: membership AUC against the held-out data that the run chose by; None without.
        max_auc: what it was to come down to; None where it played no part.
    """

    targets: str
    rho: float
    form: str
    converged: bool
    condition: float
    capacity: int
    n: int
    margin_error_before: float
    margin_error: float
    margins_within_half: float
    auc_before: float | None
    auc: float | None
    max_auc: float | None


@dataclass(frozen=True)
class Matched:
    """What matched unlearning found: the outcome, the path, and how well-posed the system was."""

    outcome: Outcome
    points: tuple[Point, ...]
    strengths: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    details: Details


@dataclass(frozen=True)
class Aim:
    """The margins that the forget samples are to have.

    Attributes:
        targets: t (n,) at the original head.
        how: where they come from, in words.
        unseen: margins (m,) of held-out samples under a head (c, d+1), and their weights; None without held-out data.
        retarget: targets under a head, where they follow the held-out margins; None where they stay.
        max_auc: membership AUC that also has to be reached; None where the share on D_f alone decides.
    """

    targets: Tensor
    how: str
    unseen: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    retarget: solvers.Retarget | None = None
    max_auc: float | None = None


def aim(
    h: Tensor,
    labels: Tensor,
    head: Tensor,
    goal: float,
    unseen: Comparison | None,
    *,
    kind: Kind,
    by_accuracy: bool,
    max_auc: float | None = None,
) -> Aim:
    """What the forget samples' margins are to become.

    With held-out data each sample takes the held-out margin of its rank *under the head that results*: an attacker
    compares D_f with unseen samples by the model at hand, and those samples' margins move with the head too. Where the
    user gives an accuracy (``by_accuracy``), or D_f is beyond the head's capacity, the original's held-out margins stay the
    aim. Without held-out data, or where the user asks for less than unseen samples reach, one constant is subtracted from
    every margin.

    Raises:
        ImuError: held-out data lack a class or a confusion, or the goal is met already.
    """
    logits = h @ head.T
    phi = margins.margins(logits, labels)
    own_goal = by_accuracy or kind == "class"
    if unseen is None or (own_goal and goal < unseen.share(head)):
        shifted = margins.shifted_targets(phi, goal, margins.decision_margins(logits, labels))
        return Aim(shifted, "a constant shift of all margins", None if unseen is None else unseen.margins)

    def coupled(at: Tensor) -> Tensor:
        return margins.coupled_targets(phi, *unseen.margins(at))

    how = "held-out margins" + (" of the wrong labels" if kind == "mislabelled" else "")
    # Beyond capacity targets that follow only run ahead of margins that cannot come: both fall, and the model with them.
    follows = not own_goal and len(h) <= (head.shape[0] - 1) * head.shape[1]
    bound = None if own_goal or max_auc is None else unseen.auc_bound(max_auc, head)
    return Aim(coupled(head), f"{how}, by rank", unseen.margins, coupled if follows else None, bound)


def prepare(
    h: Tensor, labels: Tensor, head: Tensor, wanted: Tensor, held: HeldOut | None, *, damping: float, class_factor: bool
) -> problem_module.Problem:
    """The linear system in the metric of held-out data, or of D_f where there are none."""
    seen = h if held is None else held.h
    # The forget set is fitted so well that its own probabilities hold no class curvature to speak of.
    wanted_factor = class_factor and held is not None
    curvature = problem_module.class_curvature(logits_of(seen, head).softmax(dim=1)) if wanted_factor else None
    return problem_module.prepare(
        h, labels, head, wanted, problem_module.second_moment(seen), damping=damping, curvature=curvature,
        weights=margins.error_weights(wanted),
    )  # fmt: skip


def _verdict(points: list[Point], limits: Limits, max_auc: float | None) -> path_module.Verdict:
    """What the last point is: within the budgets and as far as it is to go, or as far as less ρ would bring it."""
    point = points[-1]
    if limits.exceeded(point.look) is not None:
        return "spent"
    if not limits.share_met(point.look):
        return "more"
    if point.auc is None or targets.alike(point.auc, max_auc):
        return "met"
    larger = min((other for other in points if other.rho > point.rho), key=lambda other: other.rho, default=None)
    still = larger is not None and larger.auc is not None and larger.auc - point.auc < STILL
    return "met" if still and point.margin_error <= CLOSE else "more"


def run(
    problem: problem_module.Problem,
    goal: Aim,
    look: Callable[[Tensor], Look],
    limits: Limits,
    rounded: Callable[[Tensor], Tensor],
    rho: float | None,
) -> Iterator[Point | Matched]:
    """Solve along decreasing ρ; yields each point and, last, what was chosen.

    The largest ρ that meets the target, and with held-out data looks unseen, within the budgets is chosen; else of those that
    meet the target the one that looks most like unseen samples, else the smallest that stays within the budgets.

    Raises:
        ImuError: every solution on the path exceeds a budget.
    """
    points: list[Point] = []
    steps: list[path_module.Step[solvers.Solution]] = []

    def judge(solution: solvers.Solution) -> path_module.Verdict:
        head = rounded(solution.head)
        missed = _miss(problem, solution.margins - solution.targets)
        points.append(Point(solution.rho, look(head), _auc(goal, problem, head), missed))
        return _verdict(points, limits, goal.max_auc)

    path = path_module.path(problem, judge, retarget=goal.retarget)
    for step in path if rho is None else _single(problem, judge, rho, goal.retarget):
        steps.append(step)
        yield points[-1]
    best = _best(steps, points, limits, goal.max_auc) if rho is None else steps[0]
    if best is None:
        raise ImuError(
            "matched: even the smallest change on the path leaves a budget (--max-drop, --max-head-change); raise it, or "
            "give more held-out data"
        )
    at = next(point for step, point in zip(steps, points, strict=True) if step is best)
    reason = _reason(best, steps, points, limits, rho)
    start, head = look(rounded(problem.head)), rounded(best.solution.head)
    taken = tuple(Step(number, 1.0, math.nan, point.look) for number, point in enumerate(points, 1))
    reached = None if limits.target is None else limits.met(at.look)
    outcome = Outcome(head, reason, reached, start, at.look, taken)
    details = _details(problem, goal, best.solution, at)
    yield Matched(outcome, tuple(points), best.solution.strengths, best.solution.targets, details)


def _best(
    steps: list[path_module.Step[solvers.Solution]], points: list[Point], limits: Limits, max_auc: float | None
) -> path_module.Step[solvers.Solution] | None:
    """The step to keep: see ``run``; None where every one exceeds a budget."""
    able = [
        (point, step)
        for point, step in zip(points, steps, strict=True)
        if step.verdict != "spent" and limits.share_met(point.look)
    ]
    if not able:
        return path_module.chosen(steps)
    alike = [(point, step) for point, step in able if targets.alike(point.auc, max_auc)]
    if alike:
        return max(alike, key=lambda pair: pair[0].rho)[1]
    return min(able, key=lambda pair: (pair[0].auc or 0.0, -pair[0].rho))[1]


def _single(
    problem: problem_module.Problem,
    judge: Callable[[solvers.Solution], path_module.Verdict],
    rho: float,
    retarget: solvers.Retarget | None,
) -> Iterator[path_module.Step[solvers.Solution]]:
    solution = solvers.solve(problem, rho, retarget=retarget)
    yield path_module.Step(solution, judge(solution))


def _reason(
    best: path_module.Step[solvers.Solution],
    steps: list[path_module.Step[solvers.Solution]],
    points: list[Point],
    limits: Limits,
    rho: float | None,
) -> Reason:
    if best.verdict == "met":
        return "target"
    if rho is not None:
        return "rho"
    over = [limits.exceeded(point.look) for point, step in zip(points, steps, strict=True) if step.verdict == "spent"]
    return over[0] or "path" if over else "path"


def _miss(problem: problem_module.Problem, missed: Tensor) -> float:
    """Root mean square of φ − t, weighted by what an error of each margin costs; in log-odds."""
    return float(((problem.weights * missed.square()).sum() / problem.weights.sum()).sqrt())


def _auc(goal: Aim, problem: problem_module.Problem, head: Tensor) -> float | None:
    """Membership AUC of D_f against the held-out samples under a head."""
    if goal.unseen is None:
        return None
    return margins.weighted_auc(margins.margins(problem.features @ head.T, problem.labels), *goal.unseen(head))


def _details(problem: problem_module.Problem, goal: Aim, solution: solvers.Solution, at: Point) -> Details:
    before = margins.margins(problem.features @ problem.head.T, problem.labels) - problem.targets
    return Details(
        targets=goal.how,
        rho=solution.rho,
        form=solution.form,
        converged=solution.converged,
        condition=solution.condition,
        capacity=problem.capacity,
        n=len(problem.labels),
        margin_error_before=_miss(problem, before),
        margin_error=at.margin_error,
        margins_within_half=float(((solution.margins - solution.targets).abs() <= 0.5).double().mean()),
        auc_before=_auc(goal, problem, problem.head),
        auc=at.auc,
        max_auc=goal.max_auc,
    )


def ordered(points: tuple[Point, ...]) -> list[Point]:
    """The path as a curve: by decreasing ρ, least change first."""
    return sorted(points, key=lambda point: -point.rho)
