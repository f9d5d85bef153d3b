"""Recovery tells a class that the features still hold from a row that wins everywhere, and from a class they lost."""

import hundred
import numpy as np
import pytest
import torch
from torch import Tensor

from imu_cli.evaluation import recovery
from imu_cli.statistics import metrics
from imu_cli.statistics.intervals import NotMeasured


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own for each test."""
    return torch.Generator().manual_seed(seed)


def blobs(n: int, c: int, d: int, seed: int = 0, common: float = 6.0) -> tuple[Tensor, Tensor, Tensor]:
    """Features with a large part common to all classes, labels, and class means of length 4 around it."""
    generator = seeded(seed)
    means = 4 * torch.linalg.qr(torch.randn(d, c, generator=generator, dtype=torch.float64)).Q.T
    shared = torch.randn(d, generator=generator, dtype=torch.float64)
    shared = common * shared / shared.norm()
    labels = torch.arange(n) % c
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return shared + means[labels] + 0.7 * noise, labels, means


def fitted_head(means: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Rows along the centred means, so that they add up to 0, and the biases that place the boundaries."""
    rows = means - means.mean(0)
    return rows, -rows @ features.mean(0)


def test_a_hidden_class_comes_back_and_takes_nothing_else() -> None:
    """A class whose row was lowered returns from 5 samples; the put-back row takes few samples of kept classes."""
    features, labels, means = blobs(1000, 5, 40)
    weight, bias = fitted_head(means, features)
    bias[2] -= 1000
    gone = labels == 2
    found = recovery.k_shot_recovery(
        features[gone], weight, bias, labels[gone], 5, seeded(), kept_features=features[~gone]
    )
    assert isinstance(found, recovery.Recovery)
    assert metrics.accuracy(features @ weight.T + bias, labels).value < 0.81
    assert found.accuracy.value > 0.97
    assert found.accuracy.n == 195
    assert found.taken is not None
    assert found.taken.value < 0.03


def test_the_mean_feature_itself_would_win_everywhere() -> None:
    """Put back unprojected, the common part of the features takes most kept samples: the trap that is avoided."""
    features, labels, means = blobs(1000, 5, 40)
    weight, bias = fitted_head(means, features)
    gone = labels == 2
    raw = features[gone].mean(0)
    weight[2], bias[2] = raw / raw.norm() * weight.norm(dim=1).mean(), bias.mean()
    naive = (features @ weight.T + bias).argmax(1) == 2
    assert float(naive[~gone].double().mean()) > 0.5
    found = recovery.put_back(raw[None], weight, bias, [2])
    assert not isinstance(found, NotMeasured)
    taken = (features @ found[0].T + found[1]).argmax(1) == 2
    assert float(taken[gone].double().mean()) > 0.97
    assert float(taken[~gone].double().mean()) < 0.03


@pytest.mark.parametrize("classes", [[2], [0, 3]])
def test_the_put_back_row_is_the_least_squares_fit_of_the_mean(classes: list[int]) -> None:
    """Its direction is numpy's fit of the mean by kept rows (and class differences), its norm and bias their means."""
    features, labels, means = blobs(200, 5, 20)
    weight, bias = fitted_head(means, features)
    mean = torch.stack([features[labels == k].mean(0) for k in classes])
    kept = [j for j in range(5) if j not in classes]
    basis = torch.cat([weight[kept], mean[1:] - mean[:1]]).numpy()
    found = recovery.put_back(mean, weight, bias, classes)
    assert not isinstance(found, NotMeasured)
    for k, row in zip(classes, mean.numpy(), strict=True):
        fit = basis.T @ np.linalg.lstsq(basis.T, row, rcond=None)[0]
        scale = np.linalg.norm(weight[kept].numpy(), axis=1).mean() / np.linalg.norm(fit)
        assert found[0][k].numpy() == pytest.approx(scale * fit, abs=1e-9)
        assert float(found[1][k]) == pytest.approx(float(bias[kept].mean()), rel=1e-12)
    assert torch.equal(found[0][kept], weight[kept])


def test_a_class_that_the_features_lost_does_not_come_back() -> None:
    """Where the class's samples have the features of random other classes, recovery is far below the hidden class's."""
    features, labels, means = blobs(1000, 5, 40)
    weight, bias = fitted_head(means, features)
    gone = labels == 2
    others = features[~gone][torch.randperm(800, generator=seeded(1))[:200]]
    found = recovery.k_shot_recovery(others, weight, bias - 1000 * (torch.arange(5) == 2), labels[gone], 10, seeded())
    assert isinstance(found, recovery.Recovery)
    assert found.accuracy.value < 0.3


def test_several_classes_come_back_at_once() -> None:
    """Two hidden classes are told from each other and from the rest."""
    features, labels, means = blobs(1200, 6, 40, seed=3)
    weight, bias = fitted_head(means, features)
    gone = labels >= 4
    bias[4:] -= 1000
    found = recovery.k_shot_recovery(
        features[gone], weight, bias, labels[gone], 10, seeded(), kept_features=features[~gone]
    )
    assert isinstance(found, recovery.Recovery)
    assert found.taken is not None
    assert found.accuracy.value > 0.95
    assert found.taken.value < 0.05


def test_with_fewer_features_than_classes_kept_samples_are_needed() -> None:
    """Eight classes in six dimensions leave nothing to project out: without kept samples there is no number."""
    generator = seeded(5)
    means = 4 * torch.cat([torch.eye(6), -torch.eye(6)])[:8].double()
    labels = torch.arange(800) % 8
    features = (
        20 * torch.eye(6)[0] + means[labels] + 0.4 * torch.randn(800, 6, generator=generator, dtype=torch.float64)
    )
    weight, bias = fitted_head(means, features)
    gone = labels == 0
    alone = recovery.k_shot_recovery(features[gone], weight, bias, labels[gone], 5, seeded())
    assert isinstance(alone, NotMeasured)
    assert "--test" in alone.reason
    found = recovery.k_shot_recovery(
        features[gone], weight, bias, labels[gone], 5, seeded(), kept_features=features[~gone]
    )
    assert isinstance(found, recovery.Recovery)
    assert found.taken is not None
    assert found.accuracy.value > 0.9
    assert found.taken.value < 0.1


def test_recovery_does_not_touch_the_head_and_repeats_with_its_seed() -> None:
    """The given weight stays as it was; the same seed gives the same draws, and the ends are over ten of them."""
    features, labels, means = blobs(400, 4, 30)
    weight, bias = fitted_head(means, features)
    before = weight.clone(), bias.clone()
    gone = labels == 0
    first, second = (recovery.k_shot_recovery(features[gone], weight, bias, labels[gone], 1, seeded(6)) for _ in "ab")
    assert torch.equal(weight, before[0])
    assert torch.equal(bias, before[1])
    assert first == second
    assert isinstance(first, recovery.Recovery)
    assert first.accuracy.low is not None
    assert first.accuracy.high is not None
    assert first.accuracy.low <= first.accuracy.value <= first.accuracy.high
    assert "10 draws" in first.accuracy.method


def test_k_samples_leave_none_to_recover() -> None:
    """With k samples of a class there is nothing left to classify."""
    features, labels, means = blobs(40, 4, 30)
    weight, bias = fitted_head(means, features)
    gone = labels == 0
    result = recovery.k_shot_recovery(features[gone], weight, bias, labels[gone], 10, seeded())
    assert result == NotMeasured("needs more than 10 forget samples of each class")


# Probe


def test_the_probe_finds_a_class_the_features_hold() -> None:
    """Class scenario: held-out test samples of the forgotten class are recovered as well as the kept ones."""
    features, labels, _ = blobs(1200, 4, 20)
    gone = labels[:600] == 1
    found = recovery.linear_probe(features[:600][gone], labels[:600][gone], features[600:], labels[600:], {1}, seeded())
    assert isinstance(found, recovery.Probe)
    assert found.converged
    assert found.accuracy.n == 150
    assert found.reference.n == 225
    assert found.accuracy.value > 0.95
    assert found.reference.value > 0.95


def test_the_probe_does_not_find_a_class_the_features_lost() -> None:
    """Class scenario: samples whose features are those of random samples are recovered far less than kept ones."""
    features, labels, _ = blobs(1200, 4, 20)
    shuffled = features[torch.randperm(1200, generator=seeded(8))]
    features = torch.where((labels == 1)[:, None], shuffled, features)
    gone = labels[:600] == 1
    found = recovery.linear_probe(features[:600][gone], labels[:600][gone], features[600:], labels[600:], {1}, seeded())
    assert isinstance(found, recovery.Probe)
    assert found.accuracy.high is not None
    assert found.reference.low is not None
    assert found.accuracy.high < found.reference.low


def test_the_probe_of_random_samples_compares_them_with_unseen_ones() -> None:
    """Sample scenario: D_f like test scores within the reference's interval; cleaner D_f features score above it."""
    features, labels, means = blobs(3000, 4, 20, common=1.0)
    features = features + 1.5 * torch.randn(3000, 20, generator=seeded(9), dtype=torch.float64)
    rows = torch.randperm(3000, generator=seeded(10))
    forget, test = rows[:1000], rows[1000:]
    alike = recovery.linear_probe(features[forget], labels[forget], features[test], labels[test], (), seeded())
    remembered = features[forget] + 2 * means[labels[forget]]
    marked = recovery.linear_probe(remembered, labels[forget], features[test], labels[test], (), seeded())
    assert isinstance(alike, recovery.Probe)
    assert isinstance(marked, recovery.Probe)
    for found in (alike, marked):
        assert (found.accuracy.method, found.accuracy.n, found.reference.n) == ("census", 1000, 1000)
    assert alike.reference.low is not None
    assert alike.reference.high is not None
    assert marked.reference.high is not None
    assert alike.reference.low <= alike.accuracy.value <= alike.reference.high
    assert marked.accuracy.value > marked.reference.high


def test_the_probe_repeats_with_its_seed() -> None:
    """Halves and training samples come from the generator alone: another seed, or more samples, another answer."""
    features, labels, _ = blobs(400, 4, 20)
    features = features + 3 * torch.randn(400, 20, generator=seeded(11), dtype=torch.float64)
    gone = labels[:200] == 1
    given = (features[:200][gone], labels[:200][gone], features[200:], labels[200:], {1})
    first, again, other = (recovery.linear_probe(*given, seeded(seed), per_class=3) for seed in (3, 3, 4))
    assert isinstance(first, recovery.Probe)
    assert first == again
    assert first != other
    assert first != recovery.linear_probe(*given, seeded(3), per_class=50)


@pytest.mark.parametrize(
    ("labels", "forgotten"),
    [([0, 0, 2, 2], {1}), ([1, 1, 1, 1], {1}), ([1, 0], {1}), ([0, 0, 0, 0], set())],
    ids=["no forgotten class", "no kept class", "one kept sample", "one class"],
)
def test_a_probe_without_the_samples_it_needs_is_not_measured(labels: list[int], forgotten: set[int]) -> None:
    """The answer is a reason instead of a number."""
    features = torch.randn(len(labels), 3, generator=seeded())
    forget = torch.ones(2, 3)
    result = recovery.linear_probe(forget, torch.tensor([1, 1]), features, torch.tensor(labels), forgotten, seeded())
    assert isinstance(result, NotMeasured)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2])
def test_a_row_takes_what_it_is_allowed(share: float) -> None:
    """The bias is set so that the put-back row takes exactly this share of the kept samples, in every draw."""
    features, labels, means = blobs(1000, 20, 30)
    weight, bias = fitted_head(means, features)
    gone = labels == 0
    found = recovery.k_shot_recovery(
        features[gone], weight, bias, labels[gone], 5, seeded(), kept_features=features[~gone], taken_before=share
    )
    assert isinstance(found, recovery.Recovery)
    assert found.adjusted
    assert found.taken is not None
    kept = int((~gone).sum())
    assert found.taken.low == found.taken.high == round(share * kept) / kept


def test_recovery_at_the_originals_share_is_less_than_with_a_greedy_row() -> None:
    """A hundred classes: the row with its own bias takes many kept samples, and recovers more than at the original's share."""
    made = hundred.data()
    kept = made.test_labels != 3
    own = float(((hundred.wide(made.test[kept]) @ made.head.T).argmax(1) == 3).double().mean())
    gone = made.labels == 3
    given = (made.train[gone], made.head[:, :-1], made.head[:, -1], made.labels[gone], 1)
    fair, greedy = (
        recovery.k_shot_recovery(*given, seeded(), kept_features=made.test[kept], taken_before=share)
        for share in (own, None)
    )
    assert isinstance(fair, recovery.Recovery)
    assert isinstance(greedy, recovery.Recovery)
    assert (fair.adjusted, greedy.adjusted) == (True, False)
    assert fair.taken is not None
    assert greedy.taken is not None
    assert fair.taken.value == pytest.approx(own, abs=1 / int(kept.sum()))
    assert greedy.taken.value > 2 * own
    assert fair.accuracy.value < greedy.accuracy.value
    assert (fair.own_accuracy, fair.own_taken) == (greedy.accuracy, greedy.taken)


def test_several_classes_share_what_the_original_took() -> None:
    """Two forgotten classes: their rows together take the share, and an absent original leaves the bias as it came."""
    features, labels, means = blobs(1000, 20, 30)
    weight, bias = fitted_head(means, features)
    gone = labels < 2
    found = recovery.k_shot_recovery(
        features[gone], weight, bias, labels[gone], 5, seeded(), kept_features=features[~gone], taken_before=0.05
    )
    assert isinstance(found, recovery.Recovery)
    assert found.taken is not None
    assert found.taken.value == pytest.approx(0.05, abs=1e-3)
    bare = recovery.k_shot_recovery(features[gone], weight, bias, labels[gone], 5, seeded())
    assert isinstance(bare, recovery.Recovery)
    assert (bare.taken, bare.adjusted) == (None, False)


def test_features_that_are_gone_recover_nothing_and_end_no_evaluation() -> None:
    """A backbone that moved may give forgotten samples no feature at all: a reason instead of a direction of nothing."""
    features, labels, means = blobs(400, 4, 20)
    weight, bias = fitted_head(means, features)
    dead = torch.zeros_like(features[labels == 1])
    found = recovery.k_shot_recovery(dead, weight, bias, labels[labels == 1], 5, seeded())
    assert isinstance(found, NotMeasured)
    assert "no part" in found.reason
