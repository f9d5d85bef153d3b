"""Heads fitted again on cached features: multinomial logistic regression, many of them at once.

Symbols as in ``objective``: H (N, d+1) with its column of ones, W (c, d+1). Head k is fitted on the rows that its mask
holds, n_k of them, and minimises, bias included,

    f_k(W) = (1/n_k) Σ_i ℓ_i(W) + (λ/2) ‖W‖²          ℓ cross-entropy

which is what a linear layer trained to convergence with weight decay λ minimises. All heads share one pass over H.
Everything is float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli import stopping
from imu_cli.errors import ImuError
from imu_cli.linear.rows import Logits, Rows, by_rows

CHUNK = 1 << 22
"""Logits, or numbers of H, that are held at a time."""
MEMORY, REFRESH = 8, 8
"""Pairs that L-BFGS remembers, and iterations after which it begins anew with the curvature at the heads' mean."""
ITERATIONS = 200
TOLERANCE, COARSE = 1e-10, 1e-7
"""Newton decrement gᵀM⁻¹g/2, about f_k(W) − min f_k in nats a sample, at which a head counts as fitted: in full, and for accuracies."""
EXACT = 6_000
"""Unknowns c(d+1) up to which the preconditioner is the Hessian itself, from its most curved rows; above it is K-FAC's."""
CURVED_ROWS = 4_096
ARMIJO, HALVINGS, ROUNDING = 1e-4, 40, 1e-13


@dataclass(frozen=True)
class Fitted:
    """Heads (K, c, d+1), the iterations it took, the largest decrement left, and whether that is below the tolerance."""

    heads: Tensor
    iterations: int
    decrement: float
    converged: bool


@dataclass(frozen=True)
class Problem:
    """What is fitted: H (N, d+1), labels (N,), the share of each row in each head's mean (K, N), and λ."""

    h: Rows
    labels: Tensor
    shares: Tensor
    l2: float

    def only(self, heads: Tensor) -> "Problem":
        """The rows of some of the heads."""
        return Problem(self.h, self.labels, self.shares[heads], self.l2)

    def at(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """f_k (K,) and its gradient (K, c, d+1), for all heads in one pass."""
        k, c, _ = heads.shape
        gradient = self.l2 * heads
        value = self.l2 / 2 * heads.square().sum(dim=(1, 2))
        for rows in torch.arange(len(self.h)).split(max(1, CHUNK // max(k * c, self.h.shape[1]))):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            h = self.h[part]
            # Classes before samples: reductions over a few classes then run along memory.
            logits = (heads.flatten(0, 1) @ h.T).view(k, c, -1)
            own = self.labels[part].expand(k, 1, -1)
            share = self.shares[:, None, part]
            picked = logits.gather(1, own)
            top = logits.amax(dim=1, keepdim=True)
            p = logits.sub_(top).exp_()
            total = p.sum(dim=1, keepdim=True)
            value += ((total.log() + top - picked) * share).sum(dim=(1, 2))
            p.mul_(share / total).scatter_add_(1, own, -share)
            gradient += (p.flatten(0, 1) @ h).view(heads.shape)
        return value, gradient


def fit(
    h: Rows, labels: Tensor, members: Tensor, classes: int, l2: float, *, start: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> Fitted:  # fmt: skip
    """Fit one head on each subset of the rows by preconditioned L-BFGS, all of them at once.

    Args:
        h: H (N, d+1).
        labels: (N,) ids below ``classes``.
        members: (K, N) bool, the rows that each head is fitted on.
        classes: outputs c; a class without rows gets a row that ``l2`` alone shapes.
        l2: λ > 0.
        start: (c, d+1) where every head begins, 0 if None.
        tolerance: decrement at which to stop.

    Raises:
        ImuError: λ is not positive, a subset is empty, or rows are not finite.
    """
    if not l2 > 0:
        raise ImuError(f"heads: weight decay {l2}; separable classes have no finite head without a positive one")
    counts = members.sum(dim=1)
    if not bool((counts > 0).all()) or not bool(by_rows(h, _finite).all()):
        raise ImuError("heads: a subset without samples, or features that are not finite; check --retain")
    rows = Problem(h, labels, members.to(torch.float64) / counts[:, None], l2)
    first = torch.zeros(classes, h.shape[1], dtype=torch.float64, device=labels.device) if start is None else start
    state = _state(rows, first.expand(len(members), -1, -1).clone())
    made, left = state.heads.clone(), torch.arange(len(members), device=labels.device)
    pairs: list[_Pair] = []
    over = torch.ones_like(left, dtype=torch.bool)
    for iteration in range(ITERATIONS):
        stopping.check()
        if iteration % REFRESH == 0:
            # The curvature far from the solution says little about it, and heads that are done need no more passes: those
            # that are left, such as one without samples of a class, get a curvature of their own.
            left, rows, state = left[over], rows.only(over), state.only(over)
            precondition, pairs = _preconditioner(rows, state.heads.mean(dim=0)), []
        direction = _two_loop(state.gradient, pairs, precondition)
        slope = (state.gradient * direction).sum(dim=(1, 2))
        over = slope / 2 > tolerance
        made[left] = state.heads
        if not bool(over.any()):
            return Fitted(made, iteration, float(slope.max()) / 2, True)
        later = _search(rows, state, direction, slope)
        pairs = [*pairs, _pair(state, later)][-MEMORY:]
        state = later
    made[left] = state.heads
    return Fitted(made, ITERATIONS, float(slope.max()) / 2, False)


def _finite(h: Tensor, _: slice) -> Tensor:
    return torch.isfinite(h).all(dim=1)


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


def _pair(before: _State, after: _State) -> _Pair:
    step, change = after.heads - before.heads, after.gradient - before.gradient
    curvature = (step * change).sum(dim=(1, 2))
    return _Pair(step, change, torch.where(curvature > 0, 1 / curvature.where(curvature > 0, 1.0), 0.0))


def _two_loop(gradient: Tensor, pairs: list[_Pair], precondition: Callable[[Tensor], Tensor]) -> Tensor:
    """L-BFGS's product of inverse Hessian and gradient, for every head (Nocedal and Wright, algorithm 7.4)."""
    left, taken = gradient.clone(), []
    for pair in reversed(pairs):
        alpha = pair.inverse * (pair.step * left).sum(dim=(1, 2))
        left -= alpha[:, None, None] * pair.change
        taken.append(alpha)
    found = precondition(left)
    for pair, alpha in zip(pairs, reversed(taken), strict=True):
        beta = pair.inverse * (pair.change * found).sum(dim=(1, 2))
        found += (alpha - beta)[:, None, None] * pair.step
    return found


def _search(rows: Problem, state: _State, direction: Tensor, slope: Tensor) -> _State:
    """The next heads: a whole step downhill, halved for those heads whose f_k would not fall enough."""
    length = torch.ones_like(slope)
    for _ in range(HALVINGS):
        found = _state(rows, state.heads - length[:, None, None] * direction)
        # Near the end f_k falls by less than float64 resolves.
        fine = found.value <= state.value - ARMIJO * length * slope + ROUNDING * state.value.abs()
        if bool(fine.all()):
            return found
        length = torch.where(fine, length, length / 2)
    raise ImuError("heads: no step lowers the loss; the features are badly scaled, or weight decay is too small")


def _preconditioner(rows: Problem, head: Tensor) -> Callable[[Tensor], Tensor]:
    """The inverse of (about) the heads' mean Hessian at ``head``, applied to gradients (K, c, d+1).

    The Hessian's curved part comes from few rows, those that the head is not sure of: exact where it is small enough to
    factorise, else one Kronecker product, class_curvature ⊗ second_moment, over the rows weighted by their uncertainty.
    """
    weight = rows.shares.mean(dim=0)
    curved = weight * by_rows(Logits(rows.h, head), lambda logits, _: 1 - _softmax(logits).square().sum(dim=1))
    chosen = curved.topk(min(CURVED_ROWS, len(curved))).indices
    # What the chosen rows stand for: all rows of the fits, by their share of the curvature.
    weight = weight[chosen] * (curved.sum() / curved[chosen].sum().clamp(min=torch.finfo(curved.dtype).tiny))
    x, (c, width) = rows.h[chosen], head.shape
    p = _softmax(x @ head.T)
    if c * width <= EXACT:
        root = weight.sqrt()[:, None]
        factor = torch.linalg.cholesky(_hessian(x * root, p) + rows.l2 * _identity(c * width, x))
        return lambda g: torch.cholesky_solve(g.flatten(1).T, factor).T.view(g.shape)
    share = curved[chosen] / curved[chosen].sum()
    scaled = p * weight[:, None]
    return _kronecker(torch.diag(scaled.sum(dim=0)) - p.T @ scaled, (x * share[:, None]).T @ x, rows.l2)


def _kronecker(a: Tensor, b: Tensor, l2: float) -> Callable[[Tensor], Tensor]:
    """(A ⊗ B + λ I)⁻¹ through the eigenvectors of both."""
    (la, va), (lb, vb) = (torch.linalg.eigh(side) for side in (a, b))
    scale = (la.clamp(min=0)[:, None] * lb.clamp(min=0)[None, :]) + l2
    return lambda g: va @ ((va.T @ g @ vb) / scale) @ vb.T


def _hessian(x: Tensor, p: Tensor) -> Tensor:
    """Σ_i (diag p_i − p_i p_iᵀ) ⊗ x_i x_iᵀ, (c(d+1), c(d+1))."""
    c, width = p.shape[1], x.shape[1]
    scaled = (p[:, :, None] * x[:, None, :]).flatten(1)
    made = -(scaled.T @ scaled)
    blocks = made.view(c, width, c, width)
    for k in range(c):
        blocks[k, :, k] += (x * p[:, k, None]).T @ x
    return made


def _identity(n: int, like: Tensor) -> Tensor:
    return torch.eye(n, dtype=like.dtype, device=like.device)


def _softmax(logits: Tensor) -> Tensor:
    p = (logits - logits.amax(dim=1, keepdim=True)).exp_()
    return p.div_(p.sum(dim=1, keepdim=True))
