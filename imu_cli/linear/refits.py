"""Heads fitted again on cached features: multinomial logistic regression, many of them at once.

Symbols as in ``objective``: H (N, d+1) with its column of ones, W (c, d+1). Head k is fitted on the rows that its mask
holds, n_k of them, and minimises, bias included,

    f_k(W) = (1/n_k) Σ_i ℓ_i(W) + (λ/2) ‖W‖²          ℓ cross-entropy

which is what a linear layer trained to convergence with weight decay λ minimises. First one head is fitted on the rows of
all of them, each by its mean share; from there all heads go on together in one pass over H a step. Passes are made in
float32, with sums of their blocks in float64, until what is left is less than that resolves; whether a head is fitted
is decided by a pass in float64, and where it is not, float64 goes on.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.linear import curvature
from imu_cli.linear.rows import Joined, Rows, by_rows

CHUNK = 1 << 20
"""Logits, or numbers of H, that are held at a time."""
MEMORY = 8
"""Pairs that L-BFGS remembers."""
NARROWED = 8
"""Iterations after which heads that are fitted are left out of the passes."""
RENEWED = (8, 24, 72)
"""Iterations at which the curvature is taken anew: far from the solution it says little about it. Of several heads, which
begin near it, the last alone."""
ITERATIONS = 200
TOLERANCE, COARSE, COMMON = 1e-10, 1e-7, 1e-8
"""Newton decrement gᵀM⁻¹g/2, within a factor of ten f_k(W) − min f_k in nats a sample, at which a head counts as fitted:
in full, for accuracies, and for the one head that all others begin at."""
SINGLE = 1e-10
"""Decrement down to which passes in float32 lead."""
PASSES = 45
"""Passes that heads take, for an estimate of their time: 20 to 40 where they were counted."""
ARMIJO, HALVINGS = 1e-4, 40
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-13}
"""What a value of f_k is off by, as a share of it."""

Advance = Callable[[int], None]
"""Hears how many of a hundred parts of the way were covered since the last call."""


@dataclass(frozen=True)
class Fitted:
    """Heads (K, c, d+1), the iterations it took, the largest decrement left, and whether that is below the tolerance."""

    heads: Tensor
    iterations: int
    decrement: float
    converged: bool


@dataclass(frozen=True)
class Problem:
    """What is fitted: H (N, d+1), labels (N,), the share of each row in each head's mean (K, N), λ, and what is computed in.

    ``shares`` may be masks where ``scale`` (K,) is what each of a head's rows counts for.
    """

    h: Rows | Joined
    labels: Tensor
    shares: Tensor
    l2: float
    scale: Tensor | None = None
    dtype: torch.dtype = torch.float64

    def only(self, heads: Tensor) -> "Problem":
        """The rows of some of the heads."""
        return replace(self, shares=self.shares[heads], scale=None if self.scale is None else self.scale[heads])

    def at(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """f_k (K,) and its gradient (K, c, d+1), float64, for all heads in one pass."""
        k, c, _ = heads.shape
        gradient = self.l2 * heads
        value = self.l2 / 2 * heads.square().sum(dim=(1, 2))
        weights = heads.flatten(0, 1).to(self.dtype)
        for rows in torch.arange(len(self.h)).split(max(1, CHUNK // max(k * c, self.h.shape[1]))):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            h = self.h[part].to(self.dtype)
            # Classes before samples: reductions over a few classes then run along memory.
            logits = (weights @ h.T).view(k, c, -1)
            own = self.labels[part].expand(k, 1, -1)
            share = self._share(part)
            picked = logits.gather(1, own)
            top = logits.amax(dim=1, keepdim=True)
            p = logits.sub_(top).exp_()
            total = p.sum(dim=1, keepdim=True)
            value += ((total.log() + top - picked) * share).sum(dim=(1, 2), dtype=torch.float64)
            p.mul_(share / total).scatter_add_(1, own, -share)
            gradient += (p.flatten(0, 1) @ h).view(heads.shape)
        return value, gradient

    def _share(self, part: slice) -> Tensor:
        share = self.shares[:, None, part].to(self.dtype)
        return share if self.scale is None else share * self.scale[:, None, None].to(self.dtype)

    def mean_share(self) -> Tensor:
        """Mean over the heads of the share of each row (N,), float64."""
        made = torch.zeros(len(self.labels), dtype=torch.float64, device=self.labels.device)
        for k, share in enumerate(self.shares):
            made += share if self.scale is None else share * self.scale[k]
        return made / len(self.shares)


def fit(
    h: Rows | Joined, labels: Tensor, members: Tensor, classes: int, l2: float, *, start: Tensor | None = None,
    tolerance: float = TOLERANCE, advance: Advance = lambda parts: None,
) -> Fitted:  # fmt: skip
    """Fit one head on each subset of the rows by preconditioned L-BFGS, all of them at once.

    Args:
        h: H (N, d+1).
        labels: (N,) ids below ``classes``.
        members: (K, N) bool, the rows that each head is fitted on.
        classes: outputs c; a class without rows gets a row that ``l2`` alone shapes.
        l2: λ > 0.
        start: (c, d+1) where it begins, 0 if None.
        tolerance: decrement at which to stop.
        advance: hears of the way that is covered.

    Raises:
        ImuError: λ is not positive, a subset is empty, or rows are not finite.
    """
    if not l2 > 0:
        raise ImuError(f"heads: weight decay {l2}; separable classes have no finite head without a positive one")
    counts = members.sum(dim=1)
    if not bool((counts > 0).all()) or not bool(by_rows(h, _finite).all()):
        raise ImuError("heads: a subset without samples, or features that are not finite; check --retain")
    rows = Problem(h, labels, members, l2, 1 / counts.to(torch.float64))
    first = torch.zeros(classes, h.shape[1], dtype=torch.float64, device=labels.device) if start is None else start
    if len(members) > 1:
        common = replace(rows, shares=rows.mean_share()[None], scale=None)
        first = _fitted(common, first[None], max(tolerance, COMMON), lambda parts: None).heads[0]
    return _fitted(rows, first.expand(len(members), -1, -1), tolerance, advance)


def _finite(h: Tensor, _: slice) -> Tensor:
    return torch.isfinite(h).all(dim=1)


def seconds(h: Rows | Joined, classes: int, heads: int) -> float:
    """About how long ``heads`` heads on all rows of H take to fit, from one pass over some of them."""
    some = min(len(h), max(64, 4 * CHUNK // (heads * classes)))
    mask = torch.ones(heads, some, dtype=torch.bool, device=h.device)
    scale = torch.full((heads,), 1 / some, dtype=torch.float64, device=h.device)
    part = Problem(h[:some], torch.zeros(some, dtype=torch.int64, device=h.device), mask, 1.0, scale, torch.float32)
    began = time.perf_counter()
    part.at(torch.zeros(heads, classes, h.shape[1], dtype=torch.float64, device=h.device))
    return (time.perf_counter() - began) * PASSES * len(h) / some


def own_weight_decay(trained: Sequence[tuple[Rows, Tensor]], head: Tensor) -> float:
    """The λ at which a head is stationary along its own length: λ = −⟨∇L(W), W⟩ / ‖W‖², L the mean cross-entropy.

    A head trained to convergence with weight decay has exactly this λ on its training samples, whatever else is not
    known of its training: 4.8e-4 where a ResNet-20 was trained with 5e-4. 0 or less: no weight decay explains the head,
    which is surer of these samples than they warrant.

    Args:
        trained: what the head was trained on, in parts of H (N, d+1) and labels (N,).
        head: W (c, d+1).
    """
    n = sum(len(labels) for _, labels in trained)
    gradient = torch.zeros_like(head)
    for h, labels in trained:
        shares = torch.full((1, len(labels)), 1 / n, dtype=head.dtype, device=head.device)
        gradient += Problem(h, labels, shares, 0.0).at(head[None])[1][0]
    return -float((gradient * head).sum() / head.square().sum())


@dataclass(frozen=True)
class _State:
    heads: Tensor
    value: Tensor
    gradient: Tensor

    def only(self, heads: Tensor) -> "_State":
        """Some of the heads."""
        return _State(self.heads[heads], self.value[heads], self.gradient[heads])


def _state(rows: Problem, heads: Tensor) -> _State:
    return _State(heads, *rows.at(heads))


@dataclass(frozen=True)
class _Pair:
    """A step (K, c, d+1), the gradient's change over it, and 1/(step · change) (K,), 0 where a head did not move."""

    step: Tensor
    change: Tensor
    inverse: Tensor

    def only(self, heads: Tensor) -> "_Pair":
        """Of some of the heads."""
        return _Pair(self.step[heads], self.change[heads], self.inverse[heads])


def _pair(before: _State, after: _State) -> _Pair:
    step, change = after.heads - before.heads, after.gradient - before.gradient
    curvature = (step * change).sum(dim=(1, 2))
    return _Pair(step, change, torch.where(curvature > 0, 1 / curvature.where(curvature > 0, 1.0), 0.0))


def _fitted(rows: Problem, heads: Tensor, tolerance: float, advance: Advance) -> Fitted:
    """In float32 as far as it leads, then in float64, which also judges what float32 came to."""
    way = _Way(tolerance, advance)
    quick, precondition = _descend(replace(rows, dtype=torch.float32), heads, max(tolerance, SINGLE), None, way)
    exact, _ = _descend(replace(rows, dtype=torch.float64), quick.heads, tolerance, precondition, way)
    if not math.isfinite(exact.decrement):
        raise ImuError(curvature.BADLY_SCALED)
    way.done()
    return replace(exact, iterations=quick.iterations + exact.iterations)


class _Way:
    """How much of the way is covered, in hundredths: decrements fall by about the same factor with every step."""

    def __init__(self, tolerance: float, advance: Advance) -> None:
        self.tolerance, self.advance, self.first, self.told = tolerance, advance, 0.0, 0

    def at(self, decrement: float) -> None:
        """Hear the largest decrement left."""
        self.first = max(self.first, decrement) if math.isfinite(decrement) else self.first
        if self.first > self.tolerance and decrement > 0:
            self._tell(min(99, int(100 * math.log(self.first / decrement) / math.log(self.first / self.tolerance))))

    def done(self) -> None:
        """All of it."""
        self._tell(100)

    def _tell(self, covered: int) -> None:
        if covered > self.told:
            self.advance(covered - self.told)
            self.told = covered


def _descend(
    rows: Problem, heads: Tensor, goal: float, precondition: curvature.Inverse | None, way: _Way
) -> tuple[Fitted, curvature.Inverse]:
    """L-BFGS from ``heads`` (K, c, d+1) until every decrement is at most ``goal``, or no step lowers a loss any more."""
    made, left = heads.clone(), torch.arange(len(heads), device=heads.device)
    decrements = torch.zeros(len(heads), dtype=heads.dtype, device=heads.device)
    state, pairs = _state(rows, heads), list[_Pair]()
    over = torch.ones_like(left, dtype=torch.bool)
    renewed = RENEWED if len(heads) == 1 else RENEWED[-1:]
    for iteration in range(ITERATIONS):
        signals.check()
        if iteration % NARROWED == 0 and not bool(over.all()):
            left, rows, state = left[over], rows.only(over), state.only(over)
            pairs = [pair.only(over) for pair in pairs]
        if precondition is None or iteration in renewed:
            precondition = curvature.inverse(rows.h, rows.mean_share(), state.heads.mean(dim=0), rows.l2)
        direction = _two_loop(state.gradient, pairs, precondition)
        slope = (state.gradient * direction).sum(dim=(1, 2))
        over = ~(slope / 2 <= goal)  # and not `>`, which a slope that is no number would pass
        made[left], decrements[left] = state.heads, slope / 2
        way.at(float(decrements.max()))
        if not bool(over.any()):
            return Fitted(made, iteration, float(decrements.max()), True), precondition
        later = _search(rows, state, direction, slope)
        if later is None:
            return Fitted(made, iteration, float(decrements.max()), False), precondition
        pairs = [*pairs, _pair(state, later)][-MEMORY:]
        state = later
    made[left] = state.heads
    assert precondition is not None
    return Fitted(made, ITERATIONS, float(decrements.max()), False), precondition


def _two_loop(gradient: Tensor, pairs: list[_Pair], precondition: curvature.Inverse) -> Tensor:
    """L-BFGS's product of inverse Hessian and gradient, for every head (Nocedal and Wright, algorithm 7.4).

    The preconditioner is scaled so that it fits the last pair (their equation 7.20).
    """
    left, taken = gradient.clone(), []
    for pair in reversed(pairs):
        alpha = pair.inverse * (pair.step * left).sum(dim=(1, 2))
        left -= alpha[:, None, None] * pair.change
        taken.append(alpha)
    found = left
    if pairs:
        step, change = pairs[-1].step, pairs[-1].change
        made = precondition(torch.cat([left, change]))
        found, moved = made[: len(left)], made[len(left) :]
        met, along = (change * moved).sum(dim=(1, 2)), (step * change).sum(dim=(1, 2))
        usable = (pairs[-1].inverse > 0) & (met > 0)
        found = found * torch.where(usable, along / met.where(usable, 1.0), 1.0)[:, None, None]
    else:
        found = precondition(left)
    for pair, alpha in zip(pairs, reversed(taken), strict=True):
        beta = pair.inverse * (pair.change * found).sum(dim=(1, 2))
        found += (alpha - beta)[:, None, None] * pair.step
    return found


def _search(rows: Problem, state: _State, direction: Tensor, slope: Tensor) -> _State | None:
    """The next heads: a whole step downhill, halved for those heads whose f_k would not fall enough; None if none does.

    Near the end f_k falls by less than its rounding: what counts then is that the slope has not turned (Hager and Zhang,
    SIAM Journal on Optimization 16, 2005, their approximate Wolfe condition).
    """
    made = _State(state.heads.clone(), state.value.clone(), state.gradient.clone())
    wanting = torch.arange(len(slope), device=slope.device)
    length = 1.0
    for _ in range(HALVINGS):
        some = rows if len(wanting) == len(slope) else rows.only(wanting)
        found = _state(some, state.heads[wanting] - length * direction[wanting])
        value, fall = state.value[wanting], slope[wanting]
        rounding = ROUNDING[rows.dtype] * value.abs()
        turned = (found.gradient * direction[wanting]).sum(dim=(1, 2)) < (2 * ARMIJO - 1) * fall
        fine = (found.value <= value - ARMIJO * length * fall) | ((found.value <= value + rounding) & ~turned)
        where = wanting[fine]
        made.heads[where], made.value[where], made.gradient[where] = (
            part[fine] for part in (found.heads, found.value, found.gradient)
        )
        wanting, length = wanting[~fine], length / 2
        if len(wanting) == 0:
            return made
    return None
