"""The loss that is ascended and its closed-form gradient for a linear head.

Symbols (docs/method.md): H (n, d+1) features with a final column of ones where the head has a bias, W (c, d+1) head
with the bias as last column, P = softmax(H Wᵀ). Everything is float64.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli.linear.rows import Rows, blocks

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


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Membership mask (n, c), true at each row's own label: the loss is then plain cross-entropy."""
    return torch.nn.functional.one_hot(labels, num_classes).to(torch.bool)


@dataclass(frozen=True, eq=False)
class Members:
    """The classes that count as each row's own, K, as a mask (n, c) of which only the rows asked for are made.

    K is the row's label, or where ``shared`` (c,) is given that set for every row.
    """

    labels: Tensor
    classes: int
    shared: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """The mask of some rows."""
        labels = self.labels[rows]
        return one_hot(labels, self.classes) if self.shared is None else self.shared.expand(len(labels), self.classes)


def residual(logits: Tensor, members: Tensor) -> Tensor:
    """∂ℓ/∂z of ℓ = −log P_K, the gradient of each sample with respect to its logits (n, c).

    P_j outside K, and −(P_k / P_K)(1 − P_K) for k in K, with 1 − P_K summed over the other classes: P_y − 1 would be
    exactly 0 in float32 at a logit gap of about 17. With one member this is P − onehot(y).

    Source: arXiv 2508.01620, section 3; docs/method.md for K of several classes.
    """
    return residual_and_losses(logits, members)[0]


def losses(logits: Tensor, members: Tensor) -> Tensor:
    """ℓ = −log P_K per sample (n,), from 1 − P_K where that is small and from log-sum-exps where it is not."""
    return residual_and_losses(logits, members)[1]


def residual_and_losses(logits: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """``residual`` (n, c) and ``losses`` (n,) from one pass over the logits; softmax's own kernel is slow for few classes."""
    top = logits.amax(dim=1, keepdim=True)
    scaled = (logits - top).exp_()
    total = scaled.sum(dim=1, keepdim=True)
    others = ~members
    outside = scaled.masked_fill_(members, 0.0).div_(total)
    inner_top = logits.masked_fill(others, float("-inf")).amax(dim=1, keepdim=True)
    within = (logits - inner_top).masked_fill_(others, float("-inf")).exp_()
    inner = within.sum(dim=1, keepdim=True)
    left = outside.sum(dim=1, keepdim=True)
    far = top + total.log() - inner_top - inner.log()
    loss = torch.where(left < 0.5, -torch.log1p(-left), far)
    return outside.addcmul_(within.div_(inner), left, value=-1.0), loss.squeeze(1)


def counts_in(h: Rows, head: Tensor, members: Members, margin: float = 0.0) -> tuple[int, int]:
    """How many rows of H (n, d+1) a head W (c, d+1) predicts as one of their members, and how many only just does not.

    The latter's best member lies less than ``margin``, in logits, below the class that is predicted.
    """
    hits = near = 0
    for rows in blocks(len(h), max(head.shape)):
        logits, mask = h[rows] @ head.T, members[rows]
        inside = mask.gather(1, logits.argmax(dim=1, keepdim=True)).squeeze(1)
        hits += int(inside.sum())
        if margin > 0:
            best = logits.masked_fill(~mask, -math.inf).amax(dim=1)
            near += int((~inside & (logits.amax(dim=1) - best < margin)).sum())
    return hits, near


def on_the_edge(h: Rows, head: Tensor, members: Members, margin: float) -> int:
    """How many rows of H have their best member and the best other class less than ``margin`` apart, in logits."""
    found = 0
    for rows in blocks(len(h), max(head.shape)):
        logits, mask = h[rows] @ head.T, members[rows]
        inside, outside = (logits.masked_fill(part, -math.inf).amax(dim=1) for part in (~mask, mask))
        found += int(((inside - outside).abs() < margin).sum())
    return found


def largest_logit(h: Rows, head: Tensor) -> float:
    """Largest size of a logit that a head W (c, d+1) gives rows of H (n, d+1)."""
    return max(float((h[rows] @ head.T).abs().max()) for rows in blocks(len(h), max(head.shape)))
