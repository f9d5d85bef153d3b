"""The feature term: what enters the head for a class that goes is spread around the kept classes' means as their own samples are."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """Kept classes in the features (d) of the original: their means (c, d), 0 where the anchor has none, and the mean variance v."""

    means: Tensor
    variance: Tensor
    there: Tensor


def kept(features: Tensor, labels: Tensor, classes: int) -> Kept:
    """Means and variance of the anchor's features (m, d) by the class (m,) that the original gives each."""
    sizes = torch.bincount(labels, minlength=classes).to(features.dtype)
    sums = features.new_zeros(classes, features.shape[1]).index_add_(0, labels, features)
    variance = features.var(dim=0, correction=0).mean().clamp(min=1e-12)
    return Kept(sums / sizes.clamp(min=1)[:, None], variance, sizes > 0)


def spread(features: Tensor, log_q: Tensor, anchor: Tensor, labels: Tensor, of: Kept, covariance: float) -> Tensor:
    """Mean ‖D‖²/(d v) + ``covariance`` · ‖DᵀD/b − EᵀE/m‖²/(d v²), with D = f − Σ_k q_k μ_k and E = f − μ_k(x); docs/method.md.

    Args:
        features: (b, d) of forget samples; ``log_q`` (b, c) their teacher.
        anchor: (m, d) of anchor samples; ``labels`` (m,) their classes.
        of: the kept classes.
        covariance: weight of the second term.
    """
    q = torch.where(of.there, log_q.exp(), 0.0).to(features.dtype)
    q = q / q.sum(dim=1, keepdim=True).clamp(min=1e-12)
    away = features - q @ of.means
    made = away.square().mean() / of.variance
    if covariance and len(anchor):
        own = anchor - of.means[labels]
        gap = away.T @ away / len(away) - own.T @ own / len(own)
        made = made + covariance * gap.square().sum() / (features.shape[1] * of.variance.square())
    return made
