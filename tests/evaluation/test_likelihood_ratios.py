"""Attacks against other heads: ratios are what scipy computes, chance stays chance, and thresholds hold what they promise."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.evaluation import attacks, likelihood_ratios


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own for each test."""
    return torch.Generator().manual_seed(seed)


def test_rmia_counts_population_samples_with_a_smaller_ratio() -> None:
    """By hand: Pr = ½(1.3 · mean p_k + 0.7); the sample's ratio reaches that of two of three population samples."""
    own, references = torch.tensor([0.9]).log(), torch.tensor([[0.5], [0.7]]).log()
    population = torch.tensor([0.2, 0.6, 0.99]).log()
    theirs = torch.tensor([[0.2, 0.6, 0.5], [0.2, 0.6, 0.3]]).log()
    ratio = 0.9 / (0.5 * (1.3 * 0.6 + 0.7))
    others = [p / (0.5 * (1.3 * q + 0.7)) for p, q in ((0.2, 0.2), (0.6, 0.6), (0.99, 0.4))]
    expected = np.mean([ratio >= other for other in others])
    assert float(likelihood_ratios.rmia_offline(own, references, population, theirs)) == pytest.approx(expected)
    assert expected == pytest.approx(2 / 3)


def test_rmia_sees_what_the_references_do_not_explain() -> None:
    """Two samples alike under the model: the one that other heads find hard scores higher."""
    own = torch.tensor([-0.1, -0.1])
    references = torch.tensor([[-3.0, -0.1]] * 4)
    population = torch.linspace(-2, -0.01, 50)
    scores = likelihood_ratios.rmia_offline(own, references, population, population.expand(4, -1))
    assert scores[0] > scores[1]
    with pytest.raises(ImuError, match="population"):
        likelihood_ratios.rmia_offline(own, references, population[:0], population[:0].expand(4, -1))


def drawn(heads: int, n: int, effect: float, seed: int) -> tuple[Tensor, Tensor]:
    """Scores (heads, n) that are higher by ``effect`` where the head saw the sample, and who saw what."""
    generator = seeded(seed)
    inside = likelihood_ratios.balanced_members(heads, n, generator)
    level = 3 * torch.randn(n, generator=generator, dtype=torch.float64)
    return level + effect * inside + torch.randn(heads, n, generator=generator, dtype=torch.float64), inside


def test_every_sample_is_in_half_of_the_heads() -> None:
    """32 of 64, and not the same 32."""
    inside = likelihood_ratios.balanced_members(64, 100, seeded())
    assert inside.sum(0).tolist() == [32] * 100
    assert len({tuple(column.tolist()) for column in inside.T}) == 100


@pytest.mark.parametrize("heads", [64, 12])
def test_ratios_are_scipys(heads: int) -> None:
    """The log-likelihood ratio of two normals; below 16 heads a side all samples share one variance a side."""
    scores, inside = drawn(heads, 20, 1.0, 1)
    asked = torch.linspace(-3, 3, 20, dtype=torch.float64)
    found = likelihood_ratios.spread(scores, inside).ratio(asked)
    columns = [(scores[inside[:, i], i].numpy(), scores[~inside[:, i], i].numpy()) for i in range(20)]
    pooled = [np.mean([side[k].var(ddof=1) for side in columns]) for k in (0, 1)]
    for i, sides in enumerate(columns):
        variance = [side.var(ddof=1) for side in sides] if heads == 64 else pooled
        logs = [stats.norm.logpdf(asked[i], side.mean(), v**0.5) for side, v in zip(sides, variance, strict=True)]
        assert float(found[i]) == pytest.approx(logs[0] - logs[1], rel=1e-4, abs=1e-4)


def test_members_score_higher_only_where_membership_shows() -> None:
    """A target that saw the first half: found where a head's score rises by 1.5 deviations, at chance where by none."""
    for effect, least, most in ((1.5, 0.75, 1.0), (0.0, 0.4, 0.6)):
        scores, inside = drawn(65, 400, effect, 2)
        target = scores[-1] - effect * inside[-1] + effect * (torch.arange(400) < 200)
        ratio = likelihood_ratios.spread(scores[:-1], inside[:-1]).ratio(target)
        assert least <= attacks.auc(ratio[:200], ratio[200:]).value <= most


def test_the_threshold_from_the_shadows_is_passed_by_one_in_a_hundred() -> None:
    """Samples that no head saw pass it at about 1 % although the threshold never saw them."""
    scores, inside = drawn(41, 2000, 1.0, 3)
    never = scores[-1] - 1.0 * inside[-1]
    shadow, mine = scores[:-1], inside[:-1]
    at = likelihood_ratios.threshold(likelihood_ratios.left_out(shadow, mine), mine)
    assert float((likelihood_ratios.spread(shadow, mine).ratio(never) > at).double().mean()) == pytest.approx(
        0.01, abs=0.007
    )


def test_a_left_out_ratio_does_not_know_its_own_head() -> None:
    """Row k is the ratio against all other heads."""
    scores, inside = drawn(10, 30, 1.0, 4)
    others = torch.arange(10) != 3
    expected = likelihood_ratios.spread(scores[others], inside[others]).ratio(scores[3])
    assert torch.equal(likelihood_ratios.left_out(scores, inside)[3], expected)


def test_too_few_heads_are_refused() -> None:
    """A side with one head has no spread."""
    with pytest.raises(ImuError, match="more heads"):
        likelihood_ratios.spread(torch.randn(2, 3), torch.tensor([[True] * 3, [False] * 3]))
