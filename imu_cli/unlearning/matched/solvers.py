"""Matched unlearning: the strength each sample needs so that the forget set's margins look like unseen data's.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear.margins import margin_gradients, margins
from imu_cli.linear.rows import Rows, blocks

Form = Literal["dual", "blocked", "primal"]
Verdict = Literal["more", "met", "spent"]
Retarget = Callable[[Tensor], Tensor]
"""Targets (n,) for a head (c, d+1): what unseen samples have under that head."""

DAMPING = 0.01
CLASS_DAMPING = 0.1
DUAL_SAMPLES = 2_000
"""Above this many samples the n × n kernel is not formed: conjugate gradients are quicker, and take less memory."""
PRIMAL_UNKNOWNS = 2_000
"""Above this the c(d+1) × c(d+1) normal matrix is not formed."""
CG_TOLERANCE = 0.1
CG_FLOOR = 1e-13
"""Share of the right-hand side below which float64 lets no gradient fall."""
CG_ITERATIONS = 5_000
HALVINGS = 20
RHO_PATH = tuple(10.0 ** (2 - step / 2) for step in range(17))
"""100 down to 1e-6 by half decades."""


# Curvature


def second_moment(features: Rows) -> Tensor:
    """Σ = HᵀH / m (d+1, d+1) of H (m, d+1): what ΔW changes on average, since E‖ΔW h‖² = tr(ΔW Σ ΔWᵀ)."""
    width = features.shape[1]
    total = torch.zeros(width, width, dtype=torch.float64, device=features.device)
    for rows in blocks(len(features), width):
        part = features[rows].to(torch.float64)
        total.addmm_(part.T, part)
    return total / len(features)


def class_curvature(probabilities: Tensor) -> Tensor:
    """C = diag(p̄) − PᵀP/m (c, c), the class factor of K-FAC (Martens and Grosse 2015); P (m, c).

    It is singular (P sums to 1), so it is always damped.
    """
    P = probabilities.to(torch.float64)
    return torch.diag(P.mean(dim=0)) - P.T @ P / len(P)


@dataclass(frozen=True)
class Factor:
    """Cholesky factor L of a damped second moment M + λ mean(diag M) I = L Lᵀ, and its condition number."""

    cholesky: Tensor
    condition: float

    @cached_property
    def inverse(self) -> Tensor:
        """L⁻¹."""
        identity = torch.eye(len(self.cholesky), dtype=torch.float64, device=self.cholesky.device)
        inverse: Tensor = torch.linalg.solve_triangular(self.cholesky, identity, upper=False)
        return inverse


def damped_factor(moment: Tensor, damping: float) -> Factor:
    """Factorise M + λ mean(diag M) I.

    Raises:
        ImuError: the damped matrix is not positive definite in float64.
    """
    ridge = damping * moment.diagonal().mean()
    damped = moment + ridge * torch.eye(len(moment), dtype=torch.float64, device=moment.device)
    cholesky, failed = torch.linalg.cholesky_ex(damped)
    if int(failed) or not bool(torch.isfinite(cholesky).all()):
        raise ImuError(f"curvature: not positive definite with damping {damping:g}; raise the damping")
    spectrum = torch.linalg.eigvalsh(damped)
    return Factor(cholesky, float(spectrum[-1] / spectrum[0]))


# The system


@dataclass(frozen=True)
class Problem:
    """What is to be matched, with the metric that measures side effects; see ``prepare``."""

    features: Tensor
    labels: Tensor
    head: Tensor
    targets: Tensor
    weights: Tensor
    feature_factor: Factor
    class_factor: Factor

    @property
    def capacity(self) -> int:
        """(c − 1)(d + 1), the number of margins that a head can set freely: every row of B sums to 0."""
        return (self.head.shape[0] - 1) * self.head.shape[1]

    @property
    def condition(self) -> float:
        """Condition number of Σ̃ ⊗ C̃."""
        return self.feature_factor.condition * self.class_factor.condition

    @cached_property
    def whitened(self) -> Tensor:
        """U = H L⁻ᵀ (n, d+1)."""
        return self.features @ self.feature_factor.inverse.T

    @cached_property
    def gram(self) -> Tensor:
        """U Uᵀ (n, n); only the dual form reads it."""
        return self.whitened @ self.whitened.T

    @cached_property
    def scale(self) -> float:
        """mean(ω diag K) at the original head: what ρ is relative to."""
        V = self.whiten(margin_gradients(self.features @ self.head.T, self.labels))
        return float((self.weights * V.square().sum(dim=1) * self.whitened.square().sum(dim=1)).mean())

    def aimed_at(self, targets: Tensor) -> "Problem":
        """The same system with other targets; what does not depend on them is not computed again."""
        made = replace(self, targets=targets)
        kept = ("whitened", "gram", "scale")
        made.__dict__.update({name: self.__dict__[name] for name in kept if name in self.__dict__})
        return made

    def whiten(self, gradients: Tensor) -> Tensor:
        """V = B R⁻ᵀ (n, c)."""
        return gradients @ self.class_factor.inverse.T

    def unwhiten(self, change: Tensor) -> Tensor:
        """ΔW = R⁻ᵀ D L⁻¹ (c, d+1)."""
        return self.class_factor.inverse.T @ change @ self.feature_factor.inverse


def _check(features: Tensor, labels: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> None:
    if len(features) == 0 or len({len(features), len(labels), len(targets), len(weights)}) != 1:
        raise ImuError(
            f"matched: {len(features)} features, {len(labels)} labels, {len(targets)} targets and {len(weights)} "
            "weights; give one of each per forget sample, and at least one sample"
        )
    if len(head) < 2:
        raise ImuError("matched: the head has one output, so there is no margin; matched needs two classes or more")
    for name, rows in (("features", features), ("targets", targets[:, None]), ("weights", weights[:, None])):
        bad = (~torch.isfinite(rows).all(dim=1)).nonzero()
        if len(bad):
            raise ImuError(f"matched, row {int(bad[0])}: {name} not finite; check the sample and the model's weights")
    if bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise ImuError(
            "matched: weights below 0, or all 0; give each margin a weight from 0, and some of them above it"
        )


def prepare(
    features: Tensor,
    labels: Tensor,
    head: Tensor,
    targets: Tensor,
    moment: Tensor,
    *,
    damping: float = DAMPING,
    curvature: Tensor | None = None,
    class_damping: float = CLASS_DAMPING,
    weights: Tensor | None = None,
) -> Problem:
    """Check the rows and factorise the metric once; ``solve`` and ``path`` reuse it for every ρ.

    Args:
        features: H (n, d+1) of the forget samples.
        labels: The label whose margin is to be lowered (n,).
        head: W (c, d+1).
        targets: t (n,), see ``coupled_targets``.
        moment: Σ (d+1, d+1), see ``second_moment``.
        damping: λ of Σ̃ = Σ + λ mean(diag Σ) I.
        curvature: C (c, c), see ``class_curvature``; the identity if None.
        class_damping: the same λ for C.
        weights: ω (n,) from 0, see ``error_weights``; 1 if None.

    Raises:
        ImuError: rows that do not belong together or are not finite, or a metric that is not positive definite.
    """
    H, W, t = (tensor.to(torch.float64) for tensor in (features, head, targets))
    weights = torch.ones_like(t) if weights is None else weights.to(t)
    _check(H, labels, W, t, weights)
    identity = torch.eye(len(W), dtype=torch.float64, device=W.device)
    class_factor = damped_factor(identity, 0.0) if curvature is None else damped_factor(curvature, class_damping)
    return Problem(H, labels, W, t, weights, damped_factor(moment.to(t), damping), class_factor)


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


# The damping path


@dataclass(frozen=True)
class Step:
    """One point of the path: a solution and what the caller made of it."""

    solution: Solution
    verdict: Verdict


def path(
    problem: Problem,
    look: Callable[[Solution], Verdict],
    *,
    rhos: Sequence[float] = RHO_PATH,
    bisections: int = 6,
    form: Form | None = None,
    linearisations: int = 5,
    retarget: Retarget | None = None,
) -> Iterator[Step]:
    """Solutions along decreasing ρ until the caller has enough, then bisected in log ρ; yields every step.

    ``look`` says ``more`` (neither target nor budget reached), ``met`` (target reached within the budget) or ``spent``
    (budget exceeded). The grid ends at the first answer other than ``more``; the bisection then closes in on the
    largest ρ that gives it, the least damage at which the target is met. ``chosen`` picks the result. Every solve
    starts from the head of the next larger ρ.
    """

    def at(rho: float, larger: Solution | None) -> Step:
        start = None if larger is None else larger.head
        solution = solve(problem, rho, form=form, linearisations=linearisations, start=start, retarget=retarget)
        return Step(solution, look(solution))

    larger: Solution | None = None
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


def chosen(steps: Iterable[Step]) -> Step | None:
    """The largest ρ that met the target, else the smallest that stayed within the budget, else None."""
    every = list(steps)
    met = [step for step in every if step.verdict == "met"]
    if met:
        return max(met, key=lambda step: step.solution.rho)
    return min((step for step in every if step.verdict == "more"), key=lambda step: step.solution.rho, default=None)


# Influence made visible


@dataclass(frozen=True)
class KernelRows:
    """Self-influence K_ii (n,), and per sample the k others that move its margin most, largest first.

    ``movers`` (n, k) are rows of D_f, ``moved`` (n, k) the signed log-odds K_ij α_j by which each moves the margin.
    """

    self_influence: Tensor
    movers: Tensor
    moved: Tensor


def kernel_rows(
    problem: Problem, strengths: Tensor, *, head: Tensor | None = None, top: int = 5, rows_at_once: int = 512
) -> KernelRows:
    """Which forget samples move which: the largest |K_ij α_j| of every row i, j ≠ i, in blocks of rows.

    K is linearised at ``head`` (the original if None). Memory is rows_at_once × n, never n × n.
    """
    U = problem.whitened
    V = problem.whiten(margin_gradients(problem.features @ (problem.head if head is None else head).T, problem.labels))
    n = len(U)
    movers, moved = [], []
    for first in range(0, n, rows_at_once):
        rows = slice(first, min(first + rows_at_once, n))
        effect = (V[rows] @ V.T).mul_(U[rows] @ U.T).mul_(strengths)
        own = torch.arange(rows.start, rows.stop, device=U.device)[:, None]
        index = effect.abs().scatter_(1, own, -1.0).topk(min(top, n - 1), dim=1).indices
        movers.append(index)
        moved.append(effect.gather(1, index))
    return KernelRows(V.square().sum(dim=1) * U.square().sum(dim=1), torch.cat(movers), torch.cat(moved))
