"""Matched unlearning of tokens at a head of many words: the dual of ``solvers`` with products of a few entries a row.

The problem is that of ``solvers`` with the identity as class factor: with r = ρ mean(ω diag K), Σ̃ = L Lᵀ and U = H L⁻ᵀ,

    r tr(Δ Σ̃ Δᵀ) + Σ_i ω_i (φ_i(W + Δ) − t_i)²,      Δ = Σ_i α_i B_i (Σ̃⁻¹ h_i)ᵀ,      (K + r Ω⁻¹) α = t − φ + J Δ

by Gauss–Newton from the original head. Neither K (n, n) nor B (n, V) is formed: B has a few entries a row, the token and its
largest other words, so that K α is two sparse products, K α = rowsum((B (Bᵀ (α ∘ U))) ∘ U), and the words that are nobody's largest keep
their rows of W bit by bit. What is held is of size n d and T d, T the words that take part.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.linear import few_words, margins, vocabulary
from imu_cli.linear.few_words import Few, Part, Seen
from imu_cli.linear.vocabulary import Tokens, Vocabulary
from imu_cli.unlearning.matched.problem import DAMPING, Factor, damped_factor
from imu_cli.unlearning.matched.solvers import HALVINGS

KEEP = 32
"""Other words of a token that its gradient is taken at."""
ITERATIONS = 500
"""Most steps of conjugate gradients for one linearisation."""
NEAR = 0.02
"""Share of what margins miss their targets by that conjugate gradients may leave, and the least of it in log-odds."""

Retarget = Callable[[Tensor], Tensor]
"""Targets (n,) for a change Δ (T, d+1): what unseen tokens have under that head."""


def second_moment(rows: Tokens, head: Vocabulary) -> Tensor:
    """Σ = HᵀH / m (d+1, d+1) float64 of tokens (m, d), summed by blocks."""
    width = rows.features.shape[1] + head.bias
    total = torch.zeros(width, width, dtype=torch.float64, device=rows.features.device)
    for features in rows.features.split(4096):
        h = vocabulary.homogeneous(features, head, torch.float64)
        total.addmm_(h.T, h)
    return total / max(1, len(rows.features))


@dataclass(frozen=True, eq=False)
class WordProblem:
    """Tokens whose margins are to be matched, with the metric that measures side effects; see ``prepare``.

    Attributes:
        part: the tokens, the head, and the words T that take part.
        targets: t (n,) float64.
        weights: ω (n,) float64.
        factor: of Σ̃.
        keep: other words a row that B has.
        left_out: the largest part of a row of B that is left out by that, beside the row; 0 to 1.
        dtype: of products; vectors of n are float64.
    """

    part: Part
    targets: Tensor
    weights: Tensor
    factor: Factor
    keep: int
    left_out: float
    dtype: torch.dtype = torch.float32

    @cached_property
    def whitened(self) -> Tensor:
        """U = H L⁻ᵀ (n, d+1)."""
        inverse = self.factor.inverse.T
        made = [
            (vocabulary.homogeneous(features, self.part.head, torch.float64) @ inverse).to(self.dtype)
            for features in self.part.rows.features.split(4096)
        ]
        return torch.cat(made)

    @cached_property
    def sizes(self) -> Tensor:
        """‖u_i‖² (n,)."""
        return torch.cat([u.double().square().sum(dim=1) for u in self.whitened.split(4096)])

    @cached_property
    def original(self) -> Seen:
        """What the original says of the tokens."""
        return self.seen(None)

    @cached_property
    def scale(self) -> float:
        """mean(ω diag K) at the original head: what ρ is relative to."""
        assert self.original.gradient is not None
        return float((self.weights * self.original.gradient.squares() * self.sizes).mean())

    def seen(self, change: Tensor | None) -> Seen:
        """Margins and B under Δ (T, d+1)."""
        return self.part.seen(change, self.keep, self.dtype)

    def aimed_at(self, targets: Tensor) -> "WordProblem":
        """The same system with other targets; what does not depend on them is not computed again."""
        made = replace(self, targets=targets)
        made.__dict__.update(
            {k: self.__dict__[k] for k in ("whitened", "sizes", "original", "scale") if k in self.__dict__}
        )
        return made

    def unwhiten(self, change: Tensor) -> Tensor:
        """Δ = D L⁻¹ (T, d+1)."""
        return change @ self.factor.inverse.to(change)


@dataclass(frozen=True, eq=False)
class WordSolution:
    """Rows of a head under which margins are as near to their targets as ρ lets them come.

    Attributes:
        change: Δ (T, d+1) of the words' rows.
        strengths: α (n,).
        seen: margins φ and hits under it.
        targets: t (n,), the last ones.
        rho: ρ.
        residuals: root mean square of φ − t before the first and after every linearisation.
        converged: whether the last step was below the tolerance and conjugate gradients came to their end.
    """

    change: Tensor
    strengths: Tensor
    seen: Seen
    targets: Tensor
    rho: float
    residuals: tuple[float, ...]
    converged: bool


def prepare(
    rows: Tokens,
    head: Vocabulary,
    targets: Tensor,
    moment: Tensor,
    *,
    damping: float = DAMPING,
    weights: Tensor | None = None,
    keep: int = KEEP,
    dtype: torch.dtype = torch.float32,
) -> WordProblem:
    """Choose the words that take part, sum the others up, and factorise the metric; ``solve`` uses it for every ρ.

    Args:
        rows: the tokens to be forgotten: features (n, d), targets (n,).
        head: W (V, d+1).
        targets: t (n,), margins to come down to.
        moment: Σ (d+1, d+1), see ``second_moment``.
        damping: λ of Σ̃ = Σ + λ mean(diag Σ) I.
        weights: ω (n,) from 0; ``margins.error_weights`` of the targets if None.
        keep: other words a row that B has.
        dtype: of products.

    Raises:
        ImuError: no token, targets that are not finite, or a metric that is not positive definite.
    """
    if len(rows.targets) == 0 or len(rows.targets) != len(targets):
        raise ImuError(f"matched: {len(rows.targets)} tokens and {len(targets)} targets; give one target a token")
    if not bool(torch.isfinite(targets).all()):
        bad = int((~torch.isfinite(targets)).nonzero()[0])
        raise ImuError(f"matched, token {bad}: its target is not finite; check the tokens and the model's weights")
    t = targets.to(torch.float64)
    others, left = few_words.largest_others(rows, head, keep, dtype)
    words = torch.cat([others.flatten(), rows.targets.to(others.device)]).unique()
    part = few_words.part_of(rows, head, words, dtype)
    weights = margins.error_weights(t) if weights is None else weights.to(t)
    return WordProblem(part, t, weights, damped_factor(moment.to(t), damping), keep, float(left.max()), dtype)


def _pushed(problem: WordProblem, b: Few, change: Tensor) -> Tensor:
    """Linear effect of D (T, d+1), whitened, on every margin (n,): V_iᵀ D u_i."""
    return (b.times(change) * problem.whitened).sum(dim=1, dtype=torch.float64)


def _strengths(
    problem: WordProblem, b: Few, rhs: Tensor, ridge: float, start: Tensor, stop: float
) -> tuple[Tensor, bool]:
    """α of (K + r Ω⁻¹) α = rhs, scaled by Ω^½ on both sides, by conjugate gradients from ``start``; whether they came to their end.

    They end where margins would miss what they are to become, weighted, by less than ``stop`` (root mean square).
    """
    root, turned, u = problem.weights.sqrt(), b.turned(len(problem.part.words)), problem.whitened

    def image(x: Tensor) -> Tensor:
        pulled = turned.times((root * x).to(u.dtype)[:, None] * u)
        return root * _pushed(problem, b, pulled) + ridge * x

    diagonal = problem.weights * b.squares() * problem.sizes + ridge
    x = torch.where(root > 0, start / root.where(root > 0, 1.0), 0.0)
    residual = root * rhs - image(x)
    direction = residual / diagonal
    energy = float((residual * direction).sum())
    limit = stop * math.sqrt(len(rhs))
    for _ in range(ITERATIONS):
        signals.check()
        if float(residual.norm()) <= limit:
            return root * x, True
        made = image(direction)
        length = energy / float((direction * made).sum())
        x, residual = x + length * direction, residual - length * made
        scaled = residual / diagonal
        energy, before = float((residual * scaled).sum()), energy
        direction = scaled + (energy / before) * direction
    return root * x, float(residual.norm()) <= limit


@dataclass(frozen=True, eq=False)
class _State:
    """D (T, d+1) whitened, what the head that it makes says, and the objective."""

    change: Tensor
    seen: Seen
    objective: float


def _state(problem: WordProblem, change: Tensor, ridge: float) -> _State:
    seen = problem.seen(problem.unwhiten(change))
    return _State(change, seen, _objective(problem, seen, change, ridge))


def _objective(problem: WordProblem, seen: Seen, change: Tensor, ridge: float) -> float:
    error = (problem.weights * (seen.margins - problem.targets).square()).sum()
    return float(error) + ridge * float(change.square().sum(dtype=torch.float64))


def _missed(problem: WordProblem, seen: Seen, weighted: bool) -> float:
    off = (seen.margins - problem.targets).square()
    return float((off * problem.weights if weighted else off).mean().sqrt())


def solve(
    problem: WordProblem,
    rho: float,
    *,
    start: WordSolution | None = None,
    retarget: Retarget | None = None,
    linearisations: int = 5,
    tolerance: float = 1e-2,
    near: float = NEAR,
) -> WordSolution:
    """The rows of the words that take part at the least change, in the metric, for their distance from the targets, traded by ρ.

    Args:
        problem: see ``prepare``.
        rho: ρ > 0, relative to mean(ω diag K); the smaller, the nearer the margins come to their targets.
        start: where to linearise first, such as the solution of a larger ρ; the original if None.
        retarget: targets for a change, taken anew before every linearisation; those of ``problem`` throughout if None.
        linearisations: at most so many Gauss–Newton steps.
        tolerance: a step below this share of ‖D‖ ends the iteration, converged.
        near: where conjugate gradients end, see ``NEAR``.

    Raises:
        ImuError: ρ is not above 0.
    """
    if not (math.isfinite(rho) and rho > 0):
        raise ImuError(f"matched: ρ = {rho} is not a damping; give a finite number above 0")
    ridge, words = rho * problem.scale, len(problem.part.words)
    if start is None:
        none = torch.zeros(words, problem.whitened.shape[1], dtype=problem.dtype, device=problem.whitened.device)
        state = _State(none, problem.original, _objective(problem, problem.original, none, ridge))
        strengths = torch.zeros_like(problem.targets)
    else:
        whitened = start.change @ problem.factor.cholesky.to(start.change)
        state, strengths = _state(problem, whitened, ridge), start.strengths
    residuals, step, solved = [_missed(problem, state.seen, False)], math.inf, True
    for _ in range(linearisations):
        if retarget is not None:
            problem = problem.aimed_at(retarget(problem.unwhiten(state.change)))
            state = replace(state, objective=_objective(problem, state.seen, state.change, ridge))
        b = state.seen.gradient
        assert b is not None
        rhs = problem.targets - state.seen.margins + _pushed(problem, b, state.change)
        stop = near * max(_missed(problem, state.seen, True), near)
        strengths, solved = _strengths(problem, b, rhs, ridge, strengths, stop)
        wanted = b.turned(words).times(strengths.to(problem.dtype)[:, None] * problem.whitened)
        found = _search(problem, state, wanted, ridge)
        if found is None:
            break
        size = float(wanted.norm())
        step = float((found.change - state.change).norm()) / size if size > 0 else 0.0
        state = found
        residuals.append(_missed(problem, state.seen, False))
        if step <= tolerance:
            break
    change = problem.unwhiten(state.change)
    return WordSolution(
        change, strengths, state.seen, problem.targets, rho, tuple(residuals), solved and step <= tolerance
    )


def _search(problem: WordProblem, state: _State, change: Tensor, ridge: float) -> _State | None:
    """First of the steps 1, ½, ¼ … towards D that does not raise the objective; None if all do."""
    for halving in range(HALVINGS):
        trial = _state(problem, torch.lerp(state.change, change, 0.5**halving), ridge)
        if trial.objective <= state.objective * (1 + 1e-9):
            return trial
    return None
