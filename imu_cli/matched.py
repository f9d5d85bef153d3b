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
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from .errors import ImuError

Form = Literal["dual", "blocked", "primal"]
Verdict = Literal["more", "met", "spent"]

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
TIE = 1e-9
HALVINGS = 20
RHO_PATH = tuple(10.0 ** (2 - step / 2) for step in range(17))
"""100 down to 1e-6 by half decades."""


# Margins


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.to(torch.float64).scatter(1, labels[:, None], -math.inf)


def _own(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.to(torch.float64).gather(1, labels[:, None]).squeeze(1)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """φ_i = z_y − logsumexp_{j≠y} z_j, the log-odds of each row's label (n,); logits (n, c), labels (n,)."""
    return _own(logits, labels) - _others(logits, labels).logsumexp(dim=1)


def decision_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y − max_{j≠y} z_j (n,), above 0 where the row is predicted as its label.

    φ lies between this less log(c − 1) and this: φ > 0 implies the prediction, the prediction does not imply φ > 0.
    """
    return _own(logits, labels) - _others(logits, labels).amax(dim=1)


def margin_gradients(logits: Tensor, labels: Tensor) -> Tensor:
    """B = ∂φ/∂z (n, c), B_i = e_y − softmax_{j≠y}(z_i); every row sums to 0."""
    return (-_others(logits, labels).softmax(dim=1)).scatter(1, labels[:, None], 1.0)


# Targets


def class_match(labels: Tensor, held_out_labels: Tensor) -> Tensor:
    """Weight (m,) of each held-out sample so that its classes are as frequent as in D_f; their sum is n.

    w_j = n_y / m_y: a quantile of the weighted margins is that of unseen samples with D_f's classes. Samples of classes
    that D_f does not hold weigh 0.

    Raises:
        ImuError: D_f holds a class of which there is no held-out sample.
    """
    classes = int(torch.cat([labels, held_out_labels]).max()) + 1
    wanted, present = torch.bincount(labels, minlength=classes), torch.bincount(held_out_labels, minlength=classes)
    missing = ((wanted > 0) & (present == 0)).nonzero().squeeze(1).tolist()
    if missing:
        raise ImuError(
            f"matched targets: held-out data has no sample of class {', '.join(map(str, missing))}, which the forget "
            "set holds; give held-out data with every forgotten class, or a target accuracy (--until)"
        )
    return (wanted.to(torch.float64) / present.clamp(min=1))[held_out_labels]


def _weighted_quantiles(values: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of weighted values, linear between their mid-ranks and constant beyond the first and the last."""
    order = values[weights > 0].argsort()
    values, weights = values[weights > 0][order], weights[weights > 0][order]
    position = (weights.cumsum(0) - weights / 2) / weights.sum()
    right = torch.searchsorted(position, levels).clamp(max=len(values) - 1)
    left = (right - 1).clamp(min=0)
    gap = position[right] - position[left]
    share = torch.where(gap > 0, (levels - position[left]) / gap.where(gap > 0, 1.0), 1.0).clamp(0.0, 1.0)
    return torch.lerp(values[left], values[right], share)


def coupled_targets(
    margins: Tensor, held_out: Tensor, weights: Tensor | None = None, floor: float | None = None
) -> Tensor:
    """Held-out margin of each sample's rank, never above its own: t_i = min(φ_i, Q((rank_i − ½)/n)), (n,).

    Monotone coupling moves the margins least in total among all ways to give them the held-out spread Q. Samples with
    equal margins share the mean of their quantiles, so that duplicates get one target.

    Args:
        margins: φ of the forget samples (n,).
        held_out: φ of unseen samples (m,); m may differ from n.
        weights: weight of each unseen sample (m,), see ``class_match``; equal if None.
        floor: log-odds below which no sample is asked to go, such as −4 (p = 0.02): unseen samples that are far on the
            wrong side cost the most and hardly show in accuracy or AUC; their tail is then not matched. None: it is.

    Raises:
        ImuError: no held-out margin, or one that is not finite.
    """
    weights = torch.ones_like(held_out) if weights is None else weights
    if not bool((weights > 0).any()) or not bool(torch.isfinite(held_out).all()):
        raise ImuError("matched targets: no finite held-out margins; check --test, or give a target accuracy (--until)")
    n = len(margins)
    ordered, order = margins.sort()
    levels = (torch.arange(n, dtype=torch.float64, device=margins.device) + 0.5) / n
    quantiles = _weighted_quantiles(held_out, weights, levels)
    quantiles = quantiles if floor is None else quantiles.clamp(min=floor)
    starts = ordered.diff(prepend=ordered[:1] - 1) > TIE * (1 + ordered.abs())
    group = starts.cumsum(0) - int(starts[:1].sum())
    shared = torch.bincount(group, weights=quantiles) / torch.bincount(group)
    targets = torch.empty_like(margins)
    targets[order] = shared[group]
    return torch.minimum(targets, margins)


def shifted_targets(margins: Tensor, accuracy: float, decisions: Tensor | None = None) -> Tensor:
    """Targets φ − s with one constant s ≥ 0: at most the share ``accuracy`` of the samples keeps its prediction.

    s lies halfway between the last decision margin that stays above 0 and the first that does not. Without
    ``decisions`` (see ``decision_margins``) φ itself decides, which for c > 2 overrates what is lost.

    Raises:
        ImuError: ``accuracy`` is outside 0 to 1, or is met already.
    """
    decisions = margins if decisions is None else decisions
    if not 0 <= accuracy <= 1:
        raise ImuError(f"matched targets: accuracy {accuracy} is not a share; give a number from 0 to 1")
    n, kept = len(margins), math.floor(accuracy * len(margins) + 1e-9)
    if int((decisions > 0).sum()) <= kept:
        raise ImuError(
            f"matched targets: {int((decisions > 0).sum())} of {n} are predicted as their label, accuracy {accuracy:g} "
            "is met before the first step; check preprocessing and label order, or give a lower target"
        )
    falling = decisions.sort(descending=True).values
    shift = falling[0] if kept == 0 else (falling[kept - 1] + falling[kept]) / 2
    return margins - shift


@dataclass(frozen=True)
class Confusion:
    """Unseen samples scored for wrong labels: margins (k,), weights (k,), and the share predicted as that label."""

    margins: Tensor
    weights: Tensor
    rate: float


def confusion_reference(
    held_out_logits: Tensor, held_out_labels: Tensor, labels: Tensor, true_labels: Tensor | None = None
) -> Confusion:
    """How unseen samples score for the wrong labels of D_f: the reference to couple its margins of them to.

    For every pair (true label u, wrong label y) of D_f: the margins of y on held-out samples of u, weighted n_uy / m_u.
    Where the true labels are not known, those on all held-out samples of other labels than y, weighted n_y / m.
    ``rate`` is the weighted share of them predicted as y, by argmax.

    Raises:
        ImuError: a pair without held-out samples.
    """
    pools: list[tuple[Tensor, Tensor, Tensor]] = []
    sources = torch.full_like(labels, -1) if true_labels is None else true_labels
    pairs, counts = torch.unique(torch.stack([sources, labels], dim=1), dim=0, return_counts=True)
    for (source, label), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        rows = held_out_logits[held_out_labels != label if true_labels is None else held_out_labels == source]
        if len(rows) == 0:
            raise ImuError(
                f"matched targets: no held-out sample shows how often class {source} is taken for {label}; "
                "give held-out data with every true label, or a target accuracy (--until)"
            )
        wrong = rows.new_full((len(rows),), label, dtype=torch.int64)
        weight = torch.full((len(rows),), count / len(rows), dtype=torch.float64, device=rows.device)
        pools.append((margins(rows, wrong), weight, rows.argmax(dim=1) == wrong))
    found, weights, hits = (torch.cat(parts) for parts in zip(*pools, strict=True))
    return Confusion(found, weights, float((weights * hits).sum() / weights.sum()))


def error_weights(targets: Tensor, scale: float = 1.0) -> Tensor:
    """ω_i = 1 / (1 + exp(t_i / scale)) (n,): the probability, at the target, that the label is not predicted.

    An error of one unit weighs in full where the target lies at or below the decision boundary, and hardly at all where
    the sample is recognised safely on either side of the error. Uniform weights spend the head's few degrees of freedom
    on the many large margins (docs/method.md has the measurement).
    """
    return torch.sigmoid(-targets / scale)


# Curvature


def second_moment(features: Tensor) -> Tensor:
    """Σ = HᵀH / m (d+1, d+1): what ΔW changes on average, since E‖ΔW h‖² = tr(ΔW Σ ΔWᵀ)."""
    rows = features.to(torch.float64)
    return rows.T @ rows / len(rows)


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
) -> Solution:
    """Head at the least ‖ΔW‖ in the metric for its distance from the targets, traded by ρ; Gauss–Newton, line search.

    Args:
        problem: See ``prepare``.
        rho: ρ > 0, relative to mean(ω diag K); the smaller, the nearer the margins come to their targets.
        form: How the linear system is solved; chosen by size if None.
        linearisations: At most so many Gauss–Newton steps.
        tolerance: A step below this share of ‖ΔW‖ ends the iteration, converged.
        cg_tolerance: In the blocked form, the share of its gradient to which each linearisation is solved.
        start: Head (c, d+1) from which to linearise first, such as the solution of a larger ρ; the original if None.

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
) -> Iterator[Step]:
    """Solutions along decreasing ρ until the caller has enough, then bisected in log ρ; yields every step.

    ``look`` says ``more`` (neither target nor budget reached), ``met`` (target reached within the budget) or ``spent``
    (budget exceeded). The grid ends at the first answer other than ``more``; the bisection then closes in on the
    largest ρ that gives it, the least damage at which the target is met. ``chosen`` picks the result. Every solve
    starts from the head of the next larger ρ.
    """
    larger: Solution | None = None
    smaller: float | None = None
    for rho in sorted(rhos, reverse=True):
        step = _look(problem, look, rho, larger, form, linearisations)
        yield step
        if step.verdict != "more":
            smaller = rho
            break
        larger = step.solution
    if larger is None or smaller is None:
        return
    for _ in range(bisections):
        step = _look(problem, look, math.sqrt(larger.rho * smaller), larger, form, linearisations)
        yield step
        if step.verdict == "more":
            larger = step.solution
        else:
            smaller = step.solution.rho


def _look(
    problem: Problem,
    look: Callable[[Solution], Verdict],
    rho: float,
    larger: Solution | None,
    form: Form | None,
    linearisations: int,
) -> Step:
    start = None if larger is None else larger.head
    solution = solve(problem, rho, form=form, linearisations=linearisations, start=start)
    return Step(solution, look(solution))


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
