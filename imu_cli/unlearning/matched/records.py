"""Matched unlearning of a language model's records at its head: the path along ρ, and what was chosen on it.

Targets, looks and when they are met are those of the deeper scopes (``demotion.completions``).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear import few_words
from imu_cli.linear.few_words import Part
from imu_cli.linear.vocabulary import Vocabulary
from imu_cli.unlearning.demotion import completions
from imu_cli.unlearning.demotion.completions import Aim, Completed, Judged, Look
from imu_cli.unlearning.matched import path, words
from imu_cli.unlearning.matched.words import WordProblem, WordSolution

RHOS = tuple(10.0**-power for power in range(-1, 7))
"""10 down to 1e-6 by decades."""
BISECTIONS = 3
STILL = 0.002
"""Change of both shares over three values of ρ below which they have come to their end, where margins came half of their way."""
Reason = Literal["target", "max_drop", "path", "rho"]


@dataclass(frozen=True, eq=False)
class Sides:
    """What goes and what it is compared with: records with their tokens' places among the words that take part; norms of W."""

    forgotten: Completed
    unseen: Completed | None
    unseen_part: Part | None
    norm: float


@dataclass(frozen=True)
class Point:
    """One solution along the path: ρ, what its head does, and the root mean square by which margins missed their targets."""

    rho: float
    look: Look
    missed: float
    converged: bool


@dataclass(frozen=True, eq=False)
class Chosen:
    """What was chosen: the change of the words' rows as the file holds it (T, d+1), its look, and the path that led to it."""

    change: Tensor
    point: Point
    start: Look
    points: tuple[Point, ...]
    reason: Reason
    reached: bool
    targets: Tensor


def problem_of(
    forgotten: Completed, unseen: Completed | None, head: Vocabulary, aim: Aim, damping: float
) -> tuple[WordProblem, Sides]:
    """The system in the metric of unseen records' tokens, or of the forgotten ones' where there are none.

    Raises:
        ImuError: see ``words.prepare``.
    """
    seen = forgotten if unseen is None else unseen
    before = None if unseen is None else completions.judged(unseen.features, unseen, head)
    phi = completions.judged(forgotten.features, forgotten, head).margins
    wanted = aim.margins(phi, None if before is None else before.margins)
    problem = words.prepare(forgotten, head, wanted, words.second_moment(seen, head), damping=damping)
    part = None if unseen is None else few_words.part_of(unseen, head, problem.part.words)
    return problem, Sides(forgotten, unseen, part, float(torch.linalg.norm(head.matrix)))


def run(
    problem: WordProblem,
    sides: Sides,
    aim: Aim,
    max_drop: float,
    to_file: Callable[[Tensor], Tensor],
    rho: float | None,
) -> Iterator[Point | Chosen]:
    """Solve along decreasing ρ; yields each point and, last, what was chosen.

    The largest ρ that meets the aim within ``max_drop`` is chosen, else the smallest within it.

    Args:
        problem: see ``problem_of``.
        sides: what is looked at.
        aim: what forgotten records are to look like.
        max_drop: largest fall of the share of unseen records' tokens that are right.
        to_file: Δ (T, d+1) as the file's dtype lets the head have it.
        rho: the only ρ, where it is given.

    Raises:
        ImuError: the aim is met already, or every solution on the path exceeds ``max_drop``.
    """
    before = _unseen(sides, None)
    points: list[Point] = []

    def look_at(change: Tensor | None) -> Look:
        seen = problem.part.seen(change, dtype=problem.dtype)
        ours = completions.answered(sides.forgotten, seen.margins, seen.hit)
        size = 0.0 if change is None else float(change.norm()) / sides.norm
        return completions.compared(ours, _unseen(sides, change), before, size)

    start = look_at(None)
    if aim.met(start):
        raise ImuError(
            "target: no more of the forgotten records is known than is aimed at "
            f"(exact memorisation {start.forget:.3f}, extraction strength {start.extraction:.3f}): there is nothing to forget here "
            "that could be measured; nothing was written"
        )

    def judge(solution: WordSolution) -> path.Verdict:
        look = look_at(to_file(solution.change))
        points.append(Point(solution.rho, look, solution.residuals[-1], solution.converged))
        if look.fell_beyond(max_drop):
            return "spent"
        return "met" if aim.met(look) else "more"

    def retarget(change: Tensor) -> Tensor:
        assert sides.unseen_part is not None
        theirs = sides.unseen_part.seen(change, dtype=problem.dtype).margins
        return aim.margins(problem.original.margins, theirs)

    follows = retarget if aim.fixed is None else None

    def solve_at(value: float, larger: WordSolution | None) -> WordSolution:
        return words.solve(problem, value, start=larger, retarget=follows)

    rhos, bisections = (RHOS, BISECTIONS) if rho is None else ((rho,), 0)
    missed = float((problem.original.margins - problem.targets).square().mean().sqrt())
    best: path.Step[WordSolution] | None = None
    spent = False
    for step in path.along(solve_at, judge, rhos=rhos, bisections=bisections):
        best = path.chosen([item for item in (best, step) if item is not None])
        spent = spent or step.verdict == "spent"
        yield points[-1]
        if step.verdict == "more" and _ended(points, missed):
            break
    if best is None and rho is None:
        raise ImuError(
            "matched: even the smallest change on the path costs unseen records more than --max-drop; raise it, give more unseen records, "
            "or name a deeper --scope"
        )
    solution = best.solution if best is not None else step.solution
    point = next(item for item in points if item.rho == solution.rho)
    reached = best is not None and best.verdict == "met"
    reason: Reason = "target" if reached else "rho" if rho is not None else "max_drop" if spent else "path"
    yield Chosen(
        to_file(solution.change), point, start, tuple(sorted(points, key=lambda item: -item.rho)), reason, reached,
        solution.targets,
    )  # fmt: skip


def _ended(points: list[Point], missed: float) -> bool:
    """Whether less ρ brings nothing more; ``missed`` is by how much the original's margins miss their targets."""
    last = points[-3:]
    if len(last) < 3 or last[-1].missed > missed / 2:
        return False
    shares = ([point.look.forget for point in last], [point.look.extraction for point in last])
    return all(max(each) - min(each) <= STILL for each in shares)


def _unseen(sides: Sides, change: Tensor | None) -> Judged | None:
    if sides.unseen is None or sides.unseen_part is None:
        return None
    seen = sides.unseen_part.seen(change)
    return completions.answered(sides.unseen, seen.margins, seen.hit)
