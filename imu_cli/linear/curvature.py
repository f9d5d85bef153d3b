"""Inverses of (about) a head's Hessian on weighted rows, as functions of a gradient: what a quasi-Newton method begins with.

Symbols as in ``refits``: rows x_i of H (N, d+1), p_i their softmax under W (c, d+1), weights w_i with sum 1. The Hessian
of the weighted cross-entropy with weight decay λ is

    Σ_i w_i (diag p_i − p_i p_iᵀ) ⊗ x_i x_iᵀ + λ I

Of a head of few weights it is taken as it is. Of a larger one only the blocks of single classes on its diagonal are,
Σ_i w_i p_ik (1 − p_ik) x_i x_iᵀ: classes have features of their own, which one Kronecker product for all of them misses (a
hundred classes of 64 features: 26 passes over the rows with blocks, 77 with the product). Only rows that the head is
unsure of have curvature to speak of; the most curved of them stand for all.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear.rows import Joined, Rows, blocks, by_rows

EXACT = 2_000
"""Unknowns c(d+1) up to which the whole Hessian is factorised."""
BLOCKS = 1 << 26
"""Numbers c(d+1)² up to which the classes' blocks are: 512 MB. Beyond, there is one Kronecker product for all classes."""
CURVED_ROWS, CLASS_ROWS = 4_096, 1_024
"""Rows that stand for all: of the whole Hessian, and of a class's block."""

BADLY_SCALED = "heads: no step lowers the loss; the features are badly scaled, or weight decay is too small"

Inverse = Callable[[Tensor], Tensor]
"""From gradients (K, c, d+1) to the steps that (about) this curvature makes of them."""


def inverse(h: Rows | Joined, weight: Tensor, head: Tensor, l2: float) -> Inverse:
    """The best inverse that is affordable for a head of this size.

    Args:
        h: H (N, d+1).
        weight: w (N,) float64, summing to 1.
        head: W (c, d+1) float64, where the curvature is taken.
        l2: λ > 0.
    """
    c, width = head.shape
    if c * width <= EXACT:
        return exact(h, weight, head, l2)
    return by_class(h, weight, head, l2) if c * width * width <= BLOCKS else kronecker(h, weight, head, l2)


def exact(h: Rows | Joined, weight: Tensor, head: Tensor, l2: float) -> Inverse:
    """The Hessian itself, from its most curved rows."""
    x, p, scale, _ = _curved(h, weight, head)
    hessian = _hessian(x * scale.sqrt()[:, None], p)
    factor = _factor(hessian + l2 * torch.eye(len(hessian), dtype=x.dtype, device=x.device))
    return lambda g: torch.cholesky_solve(g.flatten(1).T, factor).T.view(g.shape)


def by_class(h: Rows | Joined, weight: Tensor, head: Tensor, l2: float) -> Inverse:
    """The blocks of single classes on the Hessian's diagonal, each from the rows that are most curved for its class."""
    values, chosen, total = _most_curved_of_each(h, weight, head)
    made = head.new_empty(len(head), head.shape[1], head.shape[1])
    identity = torch.eye(head.shape[1], dtype=head.dtype, device=head.device)
    for k in range(len(head)):
        x = h[chosen[:, k]].to(head.dtype)
        tiny = torch.finfo(head.dtype).tiny
        scale = values[:, k] * (total[k] / values[:, k].sum().clamp(min=tiny))
        made[k] = _factor((x * scale[:, None]).T @ x + l2 * identity)
    return lambda g: torch.cholesky_solve(g.permute(1, 2, 0), made).permute(2, 0, 1)


def kronecker(h: Rows | Joined, weight: Tensor, head: Tensor, l2: float) -> Inverse:
    """(A ⊗ B + λ I)⁻¹ with K-FAC's class curvature A and the second moment B of the most curved rows."""
    x, p, scale, share = _curved(h, weight, head)
    scaled = p * scale[:, None]
    a = torch.diag(scaled.sum(dim=0)) - p.T @ scaled
    (la, va), (lb, vb) = (torch.linalg.eigh(side) for side in (a, (x * share[:, None]).T @ x))
    size = la.clamp(min=0)[:, None] * lb.clamp(min=0)[None, :] + l2
    return lambda g: va @ ((va.T @ g @ vb) / size) @ vb.T


def _factor(matrix: Tensor) -> Tensor:
    """The Cholesky factor.

    Raises:
        ImuError: there is none, since numbers are not finite or so far apart that λ is lost among them.
    """
    made = torch.linalg.cholesky_ex(matrix)
    if int(made.info):
        raise ImuError(BADLY_SCALED)
    factor: Tensor = made.L
    return factor


def _curved(h: Rows | Joined, weight: Tensor, head: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The most curved rows (m, d+1), their softmax (m, c), what weight each stands for (m,), and its share of the curvature."""
    curved = weight * by_rows(h, lambda x, _: 1 - _softmax(x.to(head.dtype) @ head.T).square().sum(dim=1))
    chosen = curved.topk(min(CURVED_ROWS, len(curved))).indices
    held = curved[chosen].sum().clamp(min=torch.finfo(curved.dtype).tiny)
    x = h[chosen].to(head.dtype)
    return x, _softmax(x @ head.T), weight[chosen] * (curved.sum() / held), curved[chosen] / held


def _most_curved_of_each(h: Rows | Joined, weight: Tensor, head: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every class the largest w_i p_ik (1 − p_ik) and their rows, (m, c) each, and the sum over all rows (c,)."""
    most = min(len(h), max(CLASS_ROWS, head.shape[1]))
    values = head.new_zeros(0, len(head))
    chosen = torch.zeros(0, len(head), dtype=torch.int64, device=head.device)
    total = head.new_zeros(len(head))
    # A head of zeros is equally unsure of every row: chance decides then, not the order that the rows stand in.
    generator = torch.Generator().manual_seed(0)
    for rows in blocks(len(h), max(head.shape)):
        p = _softmax(h[rows].to(head.dtype) @ head.T)
        curved = p * (1 - p) * weight[rows, None]
        total += curved.sum(dim=0)
        curved *= 1 - 1e-6 * torch.rand(len(p), 1, generator=generator, dtype=p.dtype).to(p.device)
        numbers = torch.arange(rows.start, rows.stop, device=p.device)[:, None].expand(-1, p.shape[1])
        both, which = torch.cat([values, curved]), torch.cat([chosen, numbers])
        best = both.topk(min(most, len(both)), dim=0)
        values, chosen = best.values, which.gather(0, best.indices)
    return values, chosen, total


def _hessian(x: Tensor, p: Tensor) -> Tensor:
    """Σ_i (diag p_i − p_i p_iᵀ) ⊗ x_i x_iᵀ, (c(d+1), c(d+1))."""
    c, width = p.shape[1], x.shape[1]
    scaled = (p[:, :, None] * x[:, None, :]).flatten(1)
    made = -(scaled.T @ scaled)
    together = made.view(c, width, c, width)
    for k in range(c):
        together[k, :, k] += (x * p[:, k, None]).T @ x
    return made


def _softmax(logits: Tensor) -> Tensor:
    p = (logits - logits.amax(dim=1, keepdim=True)).exp_()
    return p.div_(p.sum(dim=1, keepdim=True))
