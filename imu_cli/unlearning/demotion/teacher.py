"""What the network should say: today's answer, the forgotten label demoted to its target margin, the rest in proportion.

Symbols (docs/method.md): z (n, c) logits of the original, φ (n,) their margins, t (n,) targets, q = softmax z̃.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from imu_cli.linear import margins


def demoted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Log q (n, c) with z̃_y = z_y − (φ − t) and z̃_j = z_j for the other classes: the margin of z̃ is exactly t, (n,)."""
    z = logits.to(torch.float64)
    fall = margins.margins(z, labels) - targets.to(torch.float64)
    return z.scatter_add(1, labels[:, None], -fall[:, None]).log_softmax(dim=1)


def masked(logits: Tensor, forgotten: Sequence[int]) -> Tensor:
    """Log q (n, c) with z̃_k = −∞ for every forgotten class k: the mask, at any depth."""
    z = logits.to(torch.float64).clone()
    z[:, list(forgotten)] = -math.inf
    return z.log_softmax(dim=1)


def divergence(log_q: Tensor, logits: Tensor) -> Tensor:
    """KL(q ‖ softmax of logits) of each row (n,); classes without probability in q play no part. Both (n, c)."""
    log_p = logits.log_softmax(dim=1)
    return (log_q.exp() * (log_q.masked_fill(log_q == -math.inf, 0.0) - log_p)).sum(dim=1)
