"""Published scores are what the published code computes, corrected ones see the labels and say what to compare with."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from sklearn.svm import SVC
from torch import Tensor

from imu_cli.evaluation import published_scores
from imu_cli.evaluation.published_scores import Labelled
from imu_cli.statistics.intervals import NotMeasured


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own for each test."""
    return torch.Generator().manual_seed(seed)


def split(n: int, sure: float, seed: int, c: int = 5) -> Labelled:
    """Labels in turn and logits that favour them by ``sure``."""
    labels = torch.arange(n) % c
    logits = torch.randn(n, c, generator=seeded(seed)) + sure * torch.nn.functional.one_hot(labels, c)
    return Labelled(logits, labels)


def copied_score(name: str, logits: Tensor, labels: Tensor) -> np.ndarray:
    """The scores in numpy, as SVC_MIA.py of Unlearn-Sparse has them."""
    p = torch.softmax(logits.float(), 1).numpy()
    if name == "correctness":
        return (p.argmax(1) == labels.numpy()).astype(int)
    if name == "confidence":
        return np.take_along_axis(p, labels.numpy()[:, None], 1)
    if name == "entropy":
        return -np.where(p > 0, p * np.log(p), 0).sum(1)
    if name == "m_entropy":
        listed, logs = np.unique(labels.numpy()), np.log(p)
        changed = p.copy()
        changed[:, listed] = 1 - p[:, listed]
        return -(changed * logs).sum(1)
    return p


@pytest.mark.parametrize("score", ["correctness", "confidence", "entropy", "m_entropy", "prob"])
def test_the_published_attack_is_the_copied_code(score: published_scores.Score) -> None:
    """The first retain samples against test, SVC(C=3, rbf, auto), the share of D_f predicted 0."""
    retain, test, forget = split(400, 4, 1), split(150, 1, 2), split(60, 2, 3)
    first = Labelled(retain.logits[:150], retain.labels[:150])
    x = np.concatenate([copied_score(score, s.logits, s.labels).reshape(150, -1) for s in (first, test)])
    fitted = SVC(C=3, gamma="auto", kernel="rbf").fit(x, [1] * 150 + [0] * 150)
    asked = copied_score(score, forget.logits, forget.labels).reshape(60, -1)
    found = published_scores.svc_published(score, forget, retain, test)
    assert found.value == pytest.approx(1 - fitted.predict(asked).mean(), abs=1e-12)
    assert found.low is None


def test_labels_matter_to_the_corrected_modified_entropy_alone() -> None:
    """Permuted labels leave every published score of modified entropy as it was, and change the corrected ones."""
    given = split(300, 2, 4)
    mixed = Labelled(given.logits, given.labels[torch.randperm(300, generator=seeded(5))])
    published, corrected = published_scores.PUBLISHED["m_entropy"], published_scores.CORRECTED["m_entropy"]
    assert torch.equal(published(given), published(mixed))
    assert not torch.allclose(corrected(given), corrected(mixed))


@pytest.mark.parametrize("score", ["correctness", "confidence", "entropy", "m_entropy", "prob"])
def test_unseen_samples_are_near_the_corrected_target(score: published_scores.Score) -> None:
    """D_f that is like test is called non-member about as often as the test samples kept aside for that."""
    retain, test, forget = split(3000, 4, 6), split(1500, 1, 7), split(600, 1, 8)
    found = published_scores.svc_corrected(score, forget, retain, test, generator=seeded())
    assert isinstance(found, published_scores.Corrected)
    assert found.forget.value == pytest.approx(found.unseen, abs=0.09)
    remembered = published_scores.svc_corrected(score, split(600, 4, 9), retain, test, generator=seeded())
    assert isinstance(remembered, published_scores.Corrected)
    assert remembered.forget.value < remembered.unseen - 0.1


def test_a_class_scenario_has_members_of_other_classes() -> None:
    """Retain samples hold no forgotten class, and the attack takes those there are; test without it is not measured."""
    forget = split(100, 2, 10).only(torch.arange(0, 100, 5))
    kept = torch.arange(400)[torch.arange(400) % 5 != 0]
    retain, test = split(400, 4, 11).only(kept), split(200, 1, 12)
    assert isinstance(
        published_scores.svc_corrected("confidence", forget, retain, test, generator=seeded()),
        published_scores.Corrected,
    )
    absent = published_scores.svc_corrected("confidence", forget, retain, retain, generator=seeded())
    assert isinstance(absent, NotMeasured)
    assert "class 0" in absent.reason


def test_the_neurips_attack_finds_what_a_threshold_on_the_loss_finds() -> None:
    """Disjoint losses are told apart always, equal distributions half of the time."""
    apart = published_scores.neurips_accuracy(split(300, 30, 13), split(400, -30, 14), seeded())
    alike = published_scores.neurips_accuracy(split(600, 1, 15), split(600, 1, 16), seeded())
    assert not isinstance(apart, NotMeasured)
    assert not isinstance(alike, NotMeasured)
    assert (apart.value, apart.n) == (1.0, 300)
    assert alike.value == pytest.approx(0.5, abs=0.06)
    assert isinstance(published_scores.neurips_accuracy(split(9, 1, 0), split(99, 1, 0), seeded()), NotMeasured)


def test_w1_takes_class_numbers_for_quantities() -> None:
    """It is scipy's distance, grows with the distance of the numbers, and does not see who went where."""
    generator = seeded(17)
    a, b = (torch.randint(10, (200,), generator=generator) for _ in range(2))
    assert published_scores.w1_class_index(a, b) == pytest.approx(wasserstein_distance(a.numpy(), b.numpy()))
    zero = torch.zeros(4, dtype=torch.int64)
    assert published_scores.w1_class_index(zero + 9, zero) == 9 * published_scores.w1_class_index(zero + 1, zero)
    assert published_scores.w1_class_index(torch.tensor([0, 1]), torch.tensor([1, 0])) == 0
