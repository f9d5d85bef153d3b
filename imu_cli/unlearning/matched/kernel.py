"""Influence made visible: which forget samples move which."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli.linear.margins import margin_gradients
from imu_cli.unlearning.matched.problem import Problem


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
