"""Attacks that know what the scores would be: RMIA against retrained heads, likelihood ratios against shadow heads.

Both compare a sample's score under the model with its *own* scores under other heads on the same features, so that an
easy sample is not taken for a remembered one. K heads, n samples. What the backbone holds they do not see.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli.errors import ImuError

OFFLINE_A = 0.3
"""How far Pr(x) over models with and without x follows that without: the paper's value for CIFAR-10."""
FEW_HEADS = 16
"""Heads a side below which one variance serves all samples (Carlini et al. 2022, section VI.A, with fewer shadows)."""


def rmia_offline(log_p: Tensor, log_p_references: Tensor, population: Tensor, references: Tensor) -> Tensor:
    """Share of the population whose likelihood ratio a sample's own one reaches, (n,) in [0, 1]; higher: a member.

    LR(x) = p(x) / Pr(x), p the model's probability of the label, Pr(x) = ½((1 + a) mean_k p_k(x) + 1 − a) with heads k
    that never saw x; score = Pr_z(LR(x) ≥ γ LR(z)), γ = 1, so that samples near p = 1 are still told apart.
    RMIA, offline: Zarifzadeh, Liu and Shokri (ICML 2024), equations 2 to 4 and appendix B.2.2.

    Args:
        log_p: (n,) log-probabilities of the labels under the model.
        log_p_references: (K, n) under the reference heads.
        population: (m,) of samples z that neither were trained on.
        references: (K, m).
    """
    if len(population) == 0 or len(log_p_references) == 0:
        raise ImuError("RMIA: needs population samples and reference heads; give more --test and --retain samples")
    own, others = _log_ratio(log_p, log_p_references), _log_ratio(population, references)
    reached = torch.searchsorted(others.sort().values, own, right=True)
    return reached.double() / len(others)


def _log_ratio(log_p: Tensor, references: Tensor) -> Tensor:
    mean = references.double().exp().mean(dim=0)
    return log_p.double() - (((1 + OFFLINE_A) * mean + 1 - OFFLINE_A) / 2).log()


@dataclass(frozen=True)
class Spread:
    """Mean and variance (n,) of each sample's score over the heads that trained on it, and over those that did not."""

    mean_in: Tensor
    variance_in: Tensor
    mean_out: Tensor
    variance_out: Tensor

    def ratio(self, scores: Tensor) -> Tensor:
        """Log-likelihood ratio log N(φ; in) − log N(φ; out) per sample (n,); above 0: more like one trained on."""
        return _log_normal(scores, self.mean_in, self.variance_in) - _log_normal(
            scores, self.mean_out, self.variance_out
        )


def spread(scores: Tensor, inside: Tensor) -> Spread:
    """Gaussians of each sample's score φ under shadow heads, with it and without it in training.

    Carlini et al., *Membership inference attacks from first principles* (2022), section V; for unlearned shadows Hayes
    et al., *Inexact unlearning needs more careful evaluations* (2024), U-LiRA: "in" means trained on and then unlearned.
    With fewer than 16 heads on a side of some sample, one variance a side is taken over all samples.

    Args:
        scores: φ (K, n).
        inside: (K, n) bool, whether head k trained on sample i.

    Raises:
        ImuError: a sample with fewer than two heads on a side.
    """
    weight = inside.to(torch.float64)
    sides = [_moments(scores.double(), side) for side in (weight, 1 - weight)]
    fewest = min(float(side[2].min()) for side in sides)
    if fewest < 2:
        raise ImuError("shadow heads: a sample has fewer than two heads with it or without it; use more heads")
    floor = 1e-12 + 1e-6 * sum(float(variance.mean()) for _, variance, _ in sides)
    variances = [variance if fewest >= FEW_HEADS else variance.mean().expand_as(variance) for _, variance, _ in sides]
    return Spread(sides[0][0], variances[0] + floor, sides[1][0], variances[1] + floor)


def left_out(scores: Tensor, inside: Tensor) -> Tensor:
    """The ratio of every sample under every head, against the *other* heads alone: (K, n). Thresholds come from these."""
    k = torch.arange(len(scores), device=scores.device)
    return torch.stack([spread(scores[k != head], inside[k != head]).ratio(scores[head]) for head in range(len(k))])


def threshold(ratios: Tensor, inside: Tensor, fpr: float = 0.01) -> float:
    """The ratio that a share ``fpr`` of never-seen samples passes in the shadows, from (K, n) ratios and memberships."""
    return float(torch.quantile(ratios[~inside][:10_000_000].double(), 1 - fpr, interpolation="higher"))


def balanced_members(heads: int, samples: int, generator: torch.Generator) -> Tensor:
    """Which head trains on which sample (K, n) bool: each sample in half of the heads, drawn at random."""
    order = torch.rand(heads, samples, generator=generator).argsort(dim=0)
    return order < heads // 2


def _moments(scores: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    count = weight.sum(dim=0)
    mean = (weight * scores).sum(dim=0) / count.clamp(min=1)
    variance = (weight * (scores - mean).square()).sum(dim=0) / (count - 1).clamp(min=1)
    return mean, variance, count


def _log_normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -(x.double() - mean).square() / (2 * variance) - variance.log() / 2
