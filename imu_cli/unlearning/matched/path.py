"""The damping path along ρ."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from imu_cli.unlearning.matched.problem import Problem
from imu_cli.unlearning.matched.solvers import Retarget, Solution, solve

Verdict = Literal["more", "met", "spent"]
RHO_PATH = tuple(10.0 ** (2 - step / 2) for step in range(17))
"""100 down to 1e-6 by half decades."""


class Solved(Protocol):
    """A solution at some ρ."""

    @property
    def rho(self) -> float:
        """Its ρ."""


S = TypeVar("S", bound=Solved)


@dataclass(frozen=True)
class Step(Generic[S]):
    """One point of the path: a solution and what the caller made of it."""

    solution: S
    verdict: Verdict


def path(
    problem: Problem,
    look: Callable[[Solution], Verdict],
    *,
    rhos: Sequence[float] = RHO_PATH,
    bisections: int = 6,
    retarget: Retarget | None = None,
) -> Iterator[Step[Solution]]:
    """``along`` the solutions of a problem: every solve starts from the head of the next larger ρ."""

    def at(rho: float, larger: Solution | None) -> Solution:
        return solve(problem, rho, start=None if larger is None else larger.head, retarget=retarget)

    return along(at, look, rhos=rhos, bisections=bisections)


def along(
    solve_at: Callable[[float, S | None], S],
    look: Callable[[S], Verdict],
    *,
    rhos: Sequence[float] = RHO_PATH,
    bisections: int = 6,
) -> Iterator[Step[S]]:
    """Solutions along decreasing ρ until the caller has enough, then bisected in log ρ; yields every step.

    ``look`` says ``more`` (neither target nor budget reached), ``met`` (target reached within the budget) or ``spent``
    (budget exceeded). The grid ends at the first answer other than ``more``; the bisection then closes in on the
    largest ρ that gives it, the least damage at which the target is met. ``chosen`` picks the result. ``solve_at`` is
    given the solution of the next larger ρ to start from.
    """

    def at(rho: float, larger: S | None) -> Step[S]:
        solution = solve_at(rho, larger)
        return Step(solution, look(solution))

    larger: S | None = None
    smaller: float | None = None
    for rho in sorted(rhos, reverse=True):
        step = at(rho, larger)
        yield step
        if step.verdict != "more":
            smaller = rho
            break
        larger = step.solution
    if larger is None or smaller is None:
        return
    for _ in range(bisections):
        step = at(math.sqrt(larger.rho * smaller), larger)
        yield step
        if step.verdict == "more":
            larger = step.solution
        else:
            smaller = step.solution.rho


def chosen(steps: Iterable[Step[S]]) -> Step[S] | None:
    """The largest ρ that met the target, else the smallest that stayed within the budget, else None."""
    every = list(steps)
    met = [step for step in every if step.verdict == "met"]
    if met:
        return max(met, key=lambda step: step.solution.rho)
    return min((step for step in every if step.verdict == "more"), key=lambda step: step.solution.rho, default=None)
