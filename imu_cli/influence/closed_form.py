"""Classifier-level influence of every forget sample, in closed form (arXiv 2508.01620, section 3).

For a linear head the gradient of sample i is the outer product A_i ⊗ H_i of its logit residual and its features, so
neither autograd per sample nor a matrix of size n times parameters is ever formed.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear import objective
from imu_cli.linear.rows import Rows, blocks

SIGN = (
    "score < 0: the sample's own gradient agrees with the direction that raises the forget set's loss, "
    "so ascending on it supports forgetting"
)


@dataclass(frozen=True)
class Damping:
    """λ added to the Fisher diagonal: ``value`` itself, or ``value`` times the diagonal's mean if ``relative``."""

    value: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> "Damping":
        """Read ``0.01`` or ``relative:0.1``.

        Raises:
            ImuError: not a positive, finite number.
        """
        kind, _, number = text.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if kind not in ("", "relative") or not (math.isfinite(value) and value > 0):
            raise ImuError(f"--damping {text}: not a damping; give a number above 0, or relative:0.1")
        return cls(value, relative=kind == "relative")

    def absolute(self, mean_fisher: float) -> float:
        """λ for a Fisher diagonal with this mean."""
        if self.relative and mean_fisher == 0:
            raise ImuError(
                "--damping relative: the mean of the Fisher diagonal is 0, every sample is fitted perfectly; "
                "give an absolute damping such as --damping 0.01"
            )
        return self.value * mean_fisher if self.relative else self.value


@dataclass(frozen=True)
class Influence:
    """Scores (n,) with what they were computed from, damping λ and the mean of the Fisher diagonal, and what was seen.

    ``confidence`` (n,) is the probability of each row's label, ``right`` (n,) whether it is the prediction,
    ``preconditioned`` V (c, d+1) the direction that scores are taken along.
    """

    scores: Tensor
    confidence: Tensor
    right: Tensor
    damping: float
    mean_fisher: float
    preconditioned: Tensor


def influence(features: Rows, labels: Tensor, head: Tensor, damping: Damping) -> Influence:
    """Influence score of each sample: s = −rowsum((A V) ∘ H), V = ḡ / (F + λ).

    A = P − onehot(y) are the logit residuals (n, c), F = (A∘A)ᵀ(H∘H)/n is the diagonal empirical Fisher and ḡ = AᵀH/n the
    mean gradient of the forget set. Two passes over blocks of rows: memory does not grow with n, A is computed twice.

    Args:
        features: H, (n, d+1) float64, with the column of ones where the head has a bias.
        labels: y (n,).
        head: W (c, d+1) float64.
        damping: λ.

    Raises:
        ImuError: a score is not finite, or a relative damping has nothing to be relative to.
    """
    n, members = len(features), objective.Members(labels, len(head))
    fisher, mean_gradient = torch.zeros_like(head), torch.zeros_like(head)
    for rows in blocks(n, max(head.shape)):
        h = features[rows]
        a = objective.residual(h @ head.T, members[rows])
        mean_gradient.addmm_(a.T, h)
        fisher.addmm_(a.square_().T, h.square())
    fisher, mean_gradient = fisher.div_(n), mean_gradient.div_(n)
    mean_fisher = float(fisher.mean())
    lam = damping.absolute(mean_fisher)
    preconditioned = mean_gradient.div_(fisher.add_(lam))
    scores, losses = head.new_empty(n), head.new_empty(n)
    right = torch.empty(n, dtype=torch.bool, device=head.device)
    for rows in blocks(n, max(head.shape)):
        h = features[rows]
        logits = h @ head.T
        right[rows] = logits.argmax(dim=1) == labels[rows]
        a, losses[rows] = objective.residual_and_losses(logits, members[rows])
        scores[rows] = (a @ preconditioned).mul_(h).sum(dim=1).neg_()
    if not bool(torch.isfinite(scores).all()):
        bad = int((~torch.isfinite(scores)).nonzero()[0])
        raise ImuError(f"influence, row {bad}: the score is not finite; raise --damping (λ is {lam:g})")
    return Influence(scores, losses.neg_().exp_(), right, lam, mean_fisher, preconditioned)


def along(features: Tensor, labels: Tensor, head: Tensor, preconditioned: Tensor) -> Tensor:
    """Scores (n,) of samples H (n, d+1) along a direction V (c, d+1) that was found with others."""
    a = objective.residual(features @ head.T, objective.one_hot(labels, len(head)))
    return -((a @ preconditioned) * features).sum(dim=1)


@dataclass(frozen=True)
class Selection:
    """Weights (n,), zero where a sample is left out; how many scores were negative and how many were kept."""

    weights: Tensor
    negative: int
    kept: int
    clip: float


def weigh(scores: Tensor, keep: float, clip_quantile: float, sample_weights: Tensor | None = None) -> Selection:
    """Weights w = √|s| of the negative scores, the top ``keep`` of them by |s|, clipped above at a quantile.

    With a single kept sample the quantile is its own weight. ``sample_weights`` (the manifest's column, > 0) multiply
    the result.

    Raises:
        ImuError: no score is negative, or every weight is zero.
    """
    negative = (scores < 0).nonzero().squeeze(1)
    if len(negative) == 0:
        raise ImuError(
            "influence: no forget sample has a negative score, the set's mean gradient vanishes; "
            "use --weights uniform, or check labels and preprocessing"
        )
    count = math.ceil(keep * len(negative))
    kept = negative[scores[negative].abs().topk(count).indices]
    raw = scores[kept].abs().sqrt()
    clip = float(np.quantile(raw.cpu().numpy(), clip_quantile))  # torch.quantile ends at 16 million values
    weights = torch.zeros_like(scores)
    weights[kept] = raw.clamp(max=clip)
    if sample_weights is not None:
        weights = weights * sample_weights.to(weights)
    if not bool((weights > 0).any()):
        raise ImuError("influence: every weight is 0; the scores underflow, use --weights uniform")
    return Selection(weights, len(negative), count, clip)


def magnitude(scores: Tensor, clip_quantile: float, sample_weights: Tensor | None = None) -> Tensor:
    """Weights (n,) √|s| of all samples, clipped above at a quantile: deeper than the head every sample has a target, and moves."""
    raw = scores.abs().sqrt()
    weights = raw.clamp(max=float(np.quantile(raw.cpu().numpy(), clip_quantile)))
    return weights if sample_weights is None else weights * sample_weights.to(weights)


def uniform(n: int, sample_weights: Tensor | None = None) -> Tensor:
    """Equal weights (n,) for plain gradient ascent, times the manifest's weights where given."""
    ones = torch.ones(n, dtype=torch.float64)
    return ones if sample_weights is None else ones * sample_weights.to(ones)


def decades(scores: Tensor) -> list[tuple[int, int]]:
    """Negative scores counted by powers of ten: (p, how many have −10^(p+1) < s ≤ −10^p), largest first."""
    negative = scores[scores < 0].detach().cpu().double()
    powers, counts = negative.neg().log10().floor().long().unique(return_counts=True)
    return list(zip(powers.tolist(), counts.tolist(), strict=True))[::-1]
