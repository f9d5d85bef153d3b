"""The loss that is ascended and its closed-form gradient for a linear head.

Symbols (docs/method.md): H (n, d+1) features with a final column of ones where the head has a bias, W (c, d+1) head
with the bias as last column, P = softmax(H Wᵀ). Everything is float64.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .errors import ImuError

SMALL = 50_000_000
"""Multiplications of one look below which a second thread costs more than it brings, most of all on a busy machine."""


@contextmanager
def threads_for(multiplications: int) -> Iterator[None]:
    """One thread while the context lasts, if a step is small; as many as before otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if multiplications < SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def homogeneous(features: Tensor, bias: bool) -> Tensor:
    """Features (n, d) as float64, with a column of ones appended where the head has a bias: (n, d+1).

    Raises:
        ImuError: a row is not finite.
    """
    rows = features.to(torch.float64)
    if not bool(torch.isfinite(rows).all()):
        bad = int((~torch.isfinite(rows).all(dim=1)).nonzero()[0])
        raise ImuError(f"features, row {bad}: not finite; check the image, the preprocessing and the model's weights")
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if bias else rows


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Membership mask (n, c), true at each row's own label: the loss is then plain cross-entropy."""
    return torch.nn.functional.one_hot(labels, num_classes).to(torch.bool)


def class_mask(labels: Tensor, num_classes: int) -> Tensor:
    """Membership mask (n, c), true at every class that occurs in ``labels``: the loss is −log P_K for all rows."""
    mask = torch.zeros(num_classes, dtype=torch.bool, device=labels.device)
    mask[labels] = True
    return mask.expand(len(labels), num_classes)


def residual(logits: Tensor, members: Tensor) -> Tensor:
    """∂ℓ/∂z of ℓ = −log P_K, the gradient of each sample with respect to its logits (n, c).

    P_j outside K, and −(P_k / P_K)(1 − P_K) for k in K, with 1 − P_K summed over the other classes: P_y − 1 would be
    exactly 0 in float32 at a logit gap of about 17. With one member this is P − onehot(y).

    Source: arXiv 2508.01620, section 3; docs/method.md for K of several classes.
    """
    share = logits.softmax(dim=1).masked_fill(members, 0.0)
    within = logits.masked_fill(~members, float("-inf")).softmax(dim=1)
    return share - within * share.sum(dim=1, keepdim=True)


def losses(logits: Tensor, members: Tensor) -> Tensor:
    """ℓ = −log P_K per sample (n,), as softplus(logsumexp over the others − logsumexp over K)."""
    low = float("-inf")
    inside, outside = (logits.masked_fill(left_out, low).logsumexp(dim=1) for left_out in (~members, members))
    return torch.nn.functional.softplus(outside - inside)


def share_in(logits: Tensor, members: Tensor) -> float:
    """Share of rows whose predicted class is one of their members; 0 to 1."""
    return float(members.gather(1, logits.argmax(dim=1, keepdim=True)).to(torch.float64).mean())
