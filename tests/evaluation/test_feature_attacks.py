"""Attacks on features find what is there, find nothing where nothing is, and stay within their budget."""

import pytest
import torch
from torch import Tensor

from imu_cli.evaluation import feature_attacks as attacks
from imu_cli.statistics.intervals import Estimate, NotMeasured, delong, two_sided


def seeded(seed: int = 0) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


def classes(n: int, seed: int, spread: float = 1.0, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Features (n, 8) around three class means, moved along the first feature, and labels."""
    means = 4 * torch.randn(3, 8, generator=seeded(99), dtype=torch.float64)
    labels = torch.arange(n) % 3
    h = means[labels] + spread * torch.randn(n, 8, generator=seeded(seed), dtype=torch.float64)
    h[:, 0] += shift
    return h, labels


def drawn(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> tuple[Tensor, attacks.Chosen]:
    """The features that are attacked, and what they are."""
    chosen = attacks.choose(ours[1], torch.arange(len(theirs[1])), theirs[1], ours[0].shape[1], seeded())
    assert isinstance(chosen, attacks.Chosen)
    return chosen.features(ours[0], theirs[0]), chosen


BOTH = [attacks.by_regression, attacks.by_distance]


@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_found_where_nothing_is(attack: object, seed: int) -> None:
    """Samples of one distribution: the interval holds 0.5, though the attack was fitted on them."""
    found: Estimate = attack(*drawn(classes(600, seed), classes(500, 50 + seed)))  # type: ignore[operator]
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 0.5 <= found.high


def test_a_shift_is_found_by_regression() -> None:
    """Two spreads apart along one feature is an AUC of 0.92 whatever the classes are; far apart is 1."""
    found = attacks.by_regression(*drawn(classes(900, 1, shift=2), classes(900, 2)))
    assert found.value == pytest.approx(0.921, abs=0.02)
    assert attacks.by_regression(*drawn(classes(60, 1, shift=30), classes(60, 2))).value == 1


@pytest.mark.parametrize("attack", BOTH)
def test_what_lies_nearer_to_its_class_is_found_without_a_direction(attack: object) -> None:
    """Half the spread and no shift: what was trained on lies nearer, and so do those that were driven away, further off."""
    nearer: Estimate = attack(*drawn(classes(600, 1, spread=0.5), classes(600, 2)))  # type: ignore[operator]
    further: Estimate = attack(*drawn(classes(600, 1, spread=2.0), classes(600, 2)))  # type: ignore[operator]
    assert nearer.value > 0.75
    assert further.value > 0.75


def test_the_nearest_sample_is_the_nearest_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """By blocks as sample by sample, and no sample is measured from itself."""
    monkeypatch.setattr(attacks, "BLOCK", 7)
    h, chosen = drawn(classes(50, 1, spread=0.8), classes(70, 2))
    anchors = [row for row in range(50, 120) if int(chosen.folds[row]) % 2 == 0]
    apart = torch.stack(
        [
            h[row] - torch.stack([h[other] for other in anchors if chosen.labels[other] == chosen.labels[row]]).mean(0)
            for row in anchors
        ]
    )
    x = h / apart.square().mean(0).sqrt()
    score = {
        row: -min(float((x[row] - x[other]).norm()) for other in anchors if chosen.labels[other] == chosen.labels[row])
        for row in range(120)
        if row not in anchors
    }
    ours, theirs = (
        torch.tensor([value for row, value in score.items() if (row < 50) == side]) for side in (True, False)
    )
    assert attacks.by_distance(h, chosen).value == pytest.approx(two_sided(delong(ours, theirs)).value, abs=1e-12)


def test_parts_hold_both_sides_and_the_budget_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every class of every side is in every part as evenly as can be; no more samples than the features' width allows."""
    monkeypatch.setattr(attacks, "LEAST", 60)
    monkeypatch.setattr(attacks, "NUMBERS", 8 * 90)
    ours, theirs = classes(400, 1), classes(300, 2)
    _, chosen = drawn(ours, theirs)
    assert (len(chosen.forget), len(chosen.pool)) == (90, 90)
    assert torch.equal(chosen.labels, torch.cat([ours[1][chosen.forget], theirs[1][chosen.pool]]))
    for side in (chosen.members, ~chosen.members):
        counts = torch.bincount(chosen.folds[side])
        assert counts.max() - counts.min() <= 1
        for label in range(3):
            of_class = torch.bincount(chosen.folds[side & (chosen.labels == label)], minlength=attacks.FOLDS)
            assert of_class.max() - of_class.min() <= 1


def test_too_few_samples_are_not_attacked() -> None:
    """Nine of a side leave a part with one."""
    assert isinstance(
        attacks.choose(torch.zeros(9).long(), torch.arange(50), torch.zeros(50).long(), 8, seeded()), NotMeasured
    )
