"""Three forms of one linear solve, for more samples, classes or features, and Gauss–Newton on top of them.

Symbols (docs/method.md): H (n, d+1) features with a last column of ones where the head has a bias, W (c, d+1) head,
φ (n,) margins, B (n, c) their gradients with respect to the logits, t (n,) targets, ω (n,) what an error of each margin
costs, Σ̃ and C̃ the damped feature and class factors of the curvature, ΔW the change of the head. Everything is float64.

The head that is sought minimises, with r = ρ mean(ω diag K) and K_ij = (B_i · C̃⁻¹ B_j)(h_iᵀ Σ̃⁻¹ h_j) at the original,

    r tr(C̃ ΔW Σ̃ ΔWᵀ) + Σ_i ω_i (φ_i(W) − t_i)²

by Gauss–Newton. Each linearisation solves for the whole ΔW from the original head, never for a damped increment on top
of the last one: ρ then keeps its meaning however often the margins are re-linearised. The metric is the identity in
whitened coordinates, U = H L⁻ᵀ with Σ̃ = L Lᵀ, V = B R⁻ᵀ with C̃ = R Rᵀ, D = Rᵀ ΔW L, and K = (V Vᵀ) ∘ (U Uᵀ).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.linear.margins import margin_gradients, margins
from imu_cli.unlearning.matched.problem import Problem

Form = Literal["dual", "blocked", "primal"]
Retarget = Callable[[Tensor], Tensor]
"""Targets (n,) for a head (c, d+1): what unseen samples have under that head."""
DUAL_SAMPLES = 2_000
"""Above this many samples the n × n kernel is not formed: conjugate gradients are quicker, and take less memory."""
PRIMAL_UNKNOWNS = 2_000
"""Above this the c(d+1) × c(d+1) normal matrix is not formed."""
CG_TOLERANCE = 0.1
CG_FLOOR = 1e-13
"""Share of the right-hand side below which float64 lets no gradient fall."""
CG_ITERATIONS = 5_000
HALVINGS = 20


# Three forms of one linear solve: strengths α (n,), change D (c, d+1), converged


@dataclass(frozen=True)
class Start:
    """Where conjugate gradients begin, and the share of the gradient there at which they end."""

    change: Tensor
    tolerance: float


def _pushed(problem: Problem, V: Tensor, change: Tensor) -> Tensor:
    """Linear effect of D on every margin, V_iᵀ D u_i (n,)."""
    return (V * (problem.whitened @ change.T)).sum(dim=1)


def _dual(problem: Problem, V: Tensor, rhs: Tensor, ridge: float, _: Start) -> tuple[Tensor, Tensor, bool]:
    """α = Ω^½ (Ω^½ K Ω^½ + r I)⁻¹ Ω^½ rhs by Cholesky of the n × n kernel."""
    root = problem.weights.sqrt()
    scaled = root[:, None] * V
    kernel = (scaled @ scaled.T).mul_(problem.gram)
    kernel.diagonal().add_(ridge)
    cholesky, failed = torch.linalg.cholesky_ex(kernel)
    del kernel
    if int(failed):
        raise ImuError("matched: the kernel is singular in float64 (samples alike, or more than the capacity); raise ρ")
    strengths = root * torch.cholesky_solve((root * rhs)[:, None], cholesky).squeeze(1)
    return strengths, (strengths[:, None] * V).T @ problem.whitened, True


def _blocked(problem: Problem, V: Tensor, rhs: Tensor, ridge: float, start: Start) -> tuple[Tensor, Tensor, bool]:
    """The primal by conjugate gradients with a Jacobi preconditioner: blocked products only, neither K nor JᵀΩJ.

    JᵀΩJ and the scaled kernel share their eigenvalues above 0, so the dual would take as many iterations; but vectors
    of the size of D start from the last linearisation's D, whose gradient is all that is left to solve for.
    """
    U = problem.whitened

    def pull(strengths: Tensor) -> Tensor:
        return (strengths[:, None] * V).T @ U

    diagonal = (problem.weights[:, None] * V.square()).T @ U.square() + ridge
    change = start.change
    residual = pull(problem.weights * (rhs - _pushed(problem, V, change))) - ridge * change
    stop = max(start.tolerance * float(residual.norm()), CG_FLOOR * float(pull(problem.weights * rhs).norm()))
    direction = residual / diagonal
    energy = float((residual * direction).sum())
    for _ in range(CG_ITERATIONS):
        signals.check()
        if float(residual.norm()) <= stop:
            break
        image = pull(problem.weights * _pushed(problem, V, direction)) + ridge * direction
        length = energy / float((direction * image).sum())
        change = change + length * direction
        residual = residual - length * image
        preconditioned = residual / diagonal
        energy, previous = float((residual * preconditioned).sum()), energy
        direction = preconditioned + (energy / previous) * direction
    strengths = problem.weights * (rhs - _pushed(problem, V, change)) / ridge
    return strengths, change, float(residual.norm()) <= stop


def _primal(problem: Problem, V: Tensor, rhs: Tensor, ridge: float, _: Start) -> tuple[Tensor, Tensor, bool]:
    """D = (JᵀΩJ + r I)⁻¹ JᵀΩ rhs by Cholesky, J_i = V_i ⊗ u_i; then α = Ω (rhs − J D) / r."""
    U, (c, width) = problem.whitened, problem.head.shape
    normal = torch.empty(c, width, c, width, dtype=torch.float64, device=U.device)
    for a in range(c):
        weighted = U * (problem.weights * V[:, a])[:, None]
        for b in range(a + 1):
            block = weighted.T @ (U * V[:, b, None])
            normal[a, :, b], normal[b, :, a] = block, block.T
    matrix = normal.view(c * width, c * width)
    matrix.diagonal().add_(ridge)
    cholesky, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise ImuError("matched: the normal matrix is singular in float64; raise ρ")
    right = ((problem.weights * rhs)[:, None] * V).T @ U
    change = torch.cholesky_solve(right.reshape(-1, 1), cholesky).view(c, width)
    return problem.weights * (rhs - _pushed(problem, V, change)) / ridge, change, True


FORMS: dict[Form, Callable[[Problem, Tensor, Tensor, float, Start], tuple[Tensor, Tensor, bool]]] = {
    "dual": _dual,
    "blocked": _blocked,
    "primal": _primal,
}


def choose_form(samples: int, unknowns: int) -> Form:
    """The direct form where one is small (primal or dual, up to 2,000 unknowns or samples), else conjugate gradients."""
    if unknowns < samples and unknowns <= PRIMAL_UNKNOWNS:
        return "primal"
    return "dual" if samples <= DUAL_SAMPLES else "blocked"


# Gauss–Newton


@dataclass(frozen=True)
class Solution:
    """A head whose margins are as near to their targets as ρ lets them come.

    ``strengths`` α are those of the last linearisation, ΔW = Σ_i α_i C̃⁻¹B_i (Σ̃⁻¹h_i)ᵀ; ``residuals`` are the root mean
    square of φ − t before the first and after every linearisation, in units of log-odds; ``step`` the last relative
    change of ΔW. Not ``converged``: the step was still above the tolerance, or conjugate gradients ran out.
    """

    head: Tensor
    strengths: Tensor
    margins: Tensor
    targets: Tensor
    rho: float
    form: Form
    condition: float
    residuals: tuple[float, ...]
    step: float
    converged: bool


@dataclass(frozen=True)
class _State:
    change: Tensor
    logits: Tensor
    margins: Tensor
    objective: float


def _state(problem: Problem, change: Tensor, ridge: float) -> _State:
    logits = problem.features @ (problem.head + problem.unwhiten(change)).T
    reached = margins(logits, problem.labels)
    error = (problem.weights * (reached - problem.targets).square()).sum()
    return _State(change, logits, reached, float(error + ridge * change.square().sum()))


def _search(problem: Problem, state: _State, change: Tensor, ridge: float) -> _State | None:
    """First of the steps 1, ½, ¼ … towards D that does not raise the objective; None if all do."""
    for halving in range(HALVINGS):
        trial = _state(problem, torch.lerp(state.change, change, 0.5**halving), ridge)
        if trial.objective <= state.objective * (1 + 1e-12):
            return trial
    return None


def _rms(state: _State, problem: Problem) -> float:
    return float((state.margins - problem.targets).square().mean().sqrt())


def solve(
    problem: Problem,
    rho: float,
    *,
    form: Form | None = None,
    linearisations: int = 5,
    tolerance: float = 1e-3,
    cg_tolerance: float = CG_TOLERANCE,
    start: Tensor | None = None,
    retarget: Retarget | None = None,
) -> Solution:
    """Head at the least ‖ΔW‖ in the metric for its distance from the targets, traded by ρ; Gauss–Newton, line search.

    With ``retarget`` the targets are those that belong to the head itself, a fixed point: they are taken anew before
    every linearisation, and ``Solution.targets`` holds the last ones.

    Args:
        problem: See ``prepare``.
        rho: ρ > 0, relative to mean(ω diag K); the smaller, the nearer the margins come to their targets.
        form: How the linear system is solved; chosen by size if None.
        linearisations: At most so many Gauss–Newton steps.
        tolerance: A step below this share of ‖ΔW‖ ends the iteration, converged.
        cg_tolerance: In the blocked form, the share of its gradient to which each linearisation is solved.
        start: Head (c, d+1) from which to linearise first, such as the solution of a larger ρ; the original if None.
        retarget: Targets (n,) for a head (c, d+1); those of ``problem`` throughout if None.

    Raises:
        ImuError: ρ is not above 0, or the system is singular in float64.
    """
    if not (math.isfinite(rho) and rho > 0):
        raise ImuError(f"matched: ρ = {rho} is not a damping; give a finite number above 0")
    form = choose_form(len(problem.features), problem.head.numel()) if form is None else form
    ridge = rho * problem.scale
    begin = torch.zeros_like(problem.head) if start is None else start.to(problem.head) - problem.head
    change = problem.class_factor.cholesky.T @ begin @ problem.feature_factor.cholesky
    state = _state(problem, change, ridge)
    residuals, strengths, step, solved = [_rms(state, problem)], torch.zeros_like(problem.targets), math.inf, True
    for _ in range(linearisations):
        signals.check()
        if retarget is not None:
            problem = problem.aimed_at(retarget(problem.head + problem.unwhiten(state.change)))
            state = _state(problem, state.change, ridge)
        V = problem.whiten(margin_gradients(state.logits, problem.labels))
        rhs = problem.targets - state.margins + _pushed(problem, V, state.change)
        strengths, change, solved = FORMS[form](problem, V, rhs, ridge, Start(state.change, cg_tolerance))
        found = _search(problem, state, change, ridge)
        if found is None:
            break
        size = float(change.norm())
        step = float((found.change - state.change).norm()) / size if size > 0 else 0.0
        state = found
        residuals.append(_rms(state, problem))
        if step <= tolerance:
            break
    head, done = problem.head + problem.unwhiten(state.change), solved and step <= tolerance
    values = (problem.targets, rho, form, problem.condition, tuple(residuals), step, done)
    return Solution(head, strengths, state.margins, *values)
