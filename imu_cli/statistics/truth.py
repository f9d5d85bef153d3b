"""Whether a model holds what is true for likelier than what is not, and what that comes to: the figures of TOFU.

Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024 (arXiv 2401.06121).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.statistics import bootstrap
from imu_cli.statistics.intervals import Estimate


def ratio(right: Tensor, wrong: Tensor, counts: Sequence[int]) -> Tensor:
    """Log R (n,), R = exp(−mean_j ℓ(wrong_j)) / exp(−ℓ(right)): below 0 where what is true is likelier.

    Args:
        right: ℓ of the true answer of each question, said in other words (n,).
        wrong: ℓ of the wrong answers, question after question (Σ counts,).
        counts: wrong answers of each question, at least one.
    """
    if min(counts, default=1) < 1:
        raise ImuError("truth ratio: a question without a wrong answer; give one or more")
    return right - torch.stack([part.mean() for part in wrong.split(list(counts))])


def either_way(log_ratio: Tensor) -> Tensor:
    """min(R, 1/R) (n,): 1 where the model does not know which is true, as it should be of what it forgot."""
    return (-log_ratio.abs()).exp()


def truthful(log_ratio: Tensor) -> Tensor:
    """max(0, 1 − R) (n,): how much likelier the truth is, of what the model should know."""
    return (-log_ratio.expm1()).clamp_min(0)


def chosen(right: Tensor, wrong: Tensor, counts: Sequence[int]) -> Tensor:
    """Share p / (p + Σ p_wrong) (n,), p = exp(−ℓ), of the true answer among those that are offered."""
    parts = wrong.split(list(counts))
    return torch.stack(
        [torch.softmax(-torch.cat([own[None], others]), 0)[0] for own, others in zip(right, parts, strict=True)]
    )


def utility(parts: Mapping[str, Sequence[Tensor]], seed: int = 0) -> Estimate:
    """The harmonic mean of the means of several numbers a set; 0 where one of them is.

    Args:
        parts: by set, its numbers, each with a value (n,) between 0 and 1 for every record, or for some of them. Numbers
            of as many records are drawn together.
        seed: of the draws.
    """
    n = min(len(values) for numbers in parts.values() for values in numbers)
    value = _harmonic(torch.stack([values.double().mean() for numbers in parts.values() for values in numbers])[None])
    drawn = []
    for at, numbers in enumerate(parts.values()):
        for size in dict.fromkeys(map(len, numbers)):
            alike = torch.stack([column.double().cpu() for column in numbers if len(column) == size], dim=1)
            drawn.append(torch.cat([weights @ alike / size for weights in bootstrap.draws(size, seed + at)]))
    ends = bootstrap.limits(_harmonic(torch.cat(drawn, dim=1)), n)
    sizes = ", ".join(f"{len(numbers[0])} {name}" for name, numbers in parts.items())
    method = f"bootstrap over records ({sizes}), {bootstrap.DRAWS} draws, {100 * bootstrap.CONFIDENCE:g} %"
    count = sum(len(numbers[0]) for numbers in parts.values())
    return Estimate(float(value), min(ends[0], float(value)), max(ends[1], float(value)), count, method)


def _harmonic(means: Tensor) -> Tensor:
    """Harmonic means of rows (k, m), (k,); 0 where a number of the row is."""
    found = means.shape[1] / means.reciprocal().sum(dim=1)
    return torch.where((means <= 0).any(dim=1), 0.0, found)


def same_distribution(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """The p-value of the two-sample Kolmogorov-Smirnov test that both (n,), (m,) come from one distribution, and its distance.

    TOFU's forget quality, of R under the unlearned and the retrained model.
    """
    from scipy import stats

    found = stats.ks_2samp(ours.double().cpu().numpy(), theirs.double().cpu().numpy())
    return float(found.pvalue), float(found.statistic)
