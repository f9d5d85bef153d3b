"""Scores that papers print, for comparison with them and for nothing else: ``imu evaluate --compat``.

Each SVC attack fits a support vector machine on retain samples (members, 1) against test samples (non-members, 0) by
one score of the model's output, and gives the share of D_f that it calls *non-member*, the "MIA efficacy" of
Unlearn-Sparse, SalUn and IMU. Higher is called better there; what it should be near is the share that it calls
non-member of unseen samples, which those tables do not hold. Here that share is the target of the corrected attack.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from imu_cli.errors import ImuError
from imu_cli.evaluation.attacks import class_matched, logit_confidence, modified_entropy, modified_entropy_published
from imu_cli.linear.rows import Outputs, by_rows, only
from imu_cli.statistics.clustered import Clusters, parted, some
from imu_cli.statistics.intervals import Estimate, NotMeasured, class_counts
from imu_cli.statistics.intervals import census as counted
from imu_cli.statistics.metrics import predictions

Score = Literal["correctness", "confidence", "entropy", "m_entropy", "prob"]
SVC_SAMPLES = 2_000
"""Samples a side that a support vector machine is fitted on at most: its time grows with their square."""


@dataclass(frozen=True)
class Labelled:
    """Logits (n, c) and labels (n,) of one split, and clusters (n,) where its samples come in such."""

    logits: Outputs
    labels: Tensor
    clusters: Clusters = None

    def only(self, rows: Tensor | slice) -> "Labelled":
        """Some rows of it."""
        return Labelled(self.logits[rows], self.labels[rows], some(self.clusters, rows))


def _float32_p(split: Labelled) -> Tensor:
    return by_rows(split.logits, lambda logits, _: logits.to(torch.float32).softmax(1))


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(1)


def _published_entropy(split: Labelled) -> Tensor:
    p = _float32_p(split)
    return -torch.where(p > 0, p * p.log(), 0.0).sum(1)


def _right(split: Labelled) -> Tensor:
    return (predictions(split.logits) == split.labels).double()


def _log_p(split: Labelled) -> Tensor:
    return by_rows(split.logits, lambda logits, _: logits.double().log_softmax(1))


PUBLISHED: dict[Score, Callable[[Labelled], Tensor]] = {
    "correctness": _right,
    "confidence": lambda split: _float32_p(split).gather(1, split.labels[:, None])[:, 0],
    "entropy": _published_entropy,
    "m_entropy": lambda split: modified_entropy_published(split.logits, split.labels),
    "prob": _float32_p,
}
"""Scores (n,) or (n, c) as the copied code computes them: from a float32 softmax, not standardised."""

CORRECTED: dict[Score, Callable[[Labelled], Tensor]] = {
    "correctness": _right,
    "confidence": lambda split: logit_confidence(split.logits, split.labels),
    "entropy": lambda split: _entropy(_log_p(split)),
    "m_entropy": lambda split: modified_entropy(split.logits, split.labels),
    "prob": _log_p,
}
"""The same from logits in float64; confidence as log-odds, probabilities as logarithms, the label in modified entropy."""


def svc_published(score: Score, forget: Labelled, retain: Labelled, test: Labelled) -> Estimate:
    """``compat.svc_*``: share of D_f called non-member by the attack as published. A census; no target is published.

    Members are the *first* retain samples, as many as there are test samples, all of test the non-members (here at most
    ``SVC_SAMPLES`` a side), classes as they come; SVC(C=3, rbf, gamma=1/features) on the bare score.
    ``SVC_MIA.py`` of Unlearn-Sparse (Jia et al., NeurIPS 2023), as in SalUn and IMU.
    """
    size = min(len(test.labels), len(retain.labels), SVC_SAMPLES)
    found = [PUBLISHED[score](split).double() for split in (retain.only(slice(size)), test.only(slice(size)), forget)]
    (called,) = _svc(found[0], found[1], [found[2]])
    return _non_members(called)


@dataclass(frozen=True)
class Corrected:
    """The share of D_f called non-member, and that of unseen samples of its classes: what it should be near."""

    forget: Estimate
    unseen: float


def svc_corrected(
    score: Score, forget: Labelled, retain: Labelled, test: Labelled, *, generator: torch.Generator
) -> Corrected | NotMeasured:
    """``compat.svc_*_fixed``: the same attack on seeded, class-matched, disjoint pools and standardised scores.

    Half of the class-matched test samples are the non-members it is fitted on, the other half give the share to compare
    with. As many retain samples of D_f's classes, where there are any, else of all classes, are the members.
    """
    try:
        pool = class_matched(forget.labels, test.labels, generator)
    except ImuError as error:
        return NotMeasured(str(error))
    if len(pool) < 4:
        return NotMeasured(f"needs 4 class-matched test samples, found {len(pool)}")
    halves = parted(len(pool), some(test.clusters, pool), generator)
    fitted, other = pool[halves[0]][:SVC_SAMPLES], pool[halves[1]]
    if not len(fitted) or not len(other):
        return NotMeasured("needs class-matched test samples of two sentences")
    members = _members(test.only(fitted).labels, retain.labels, generator)
    if len(members) < 2:
        return NotMeasured("needs 2 retain samples")
    splits = (retain.only(members), test.only(fitted), forget, test.only(other))
    found = [CORRECTED[score](split).double() for split in splits]
    centre, scale = torch.cat(found[:2]).mean(0), torch.cat(found[:2]).std(0)
    found = [(values - centre) / torch.where(scale > 0, scale, 1.0) for values in found]
    called, unseen = _svc(found[0], found[1], found[2:])
    return Corrected(_non_members(called), _non_members(unseen).value)


def _members(wanted: Tensor, retain_labels: Tensor, generator: torch.Generator) -> Tensor:
    """Retain rows, as many as wanted and of the same classes; of any class where a class has none (class scenario)."""
    mixed = torch.randperm(len(retain_labels), generator=generator)
    labels = retain_labels.cpu()[mixed]
    counts, there = class_counts(wanted), class_counts(retain_labels)
    if any(k not in there for k in counts):
        return mixed[: len(wanted)]
    return torch.cat([mixed[labels == k][:n] for k, n in counts.items()])


def _svc(members: Tensor, others: Tensor, asked: list[Tensor]) -> list[Tensor]:
    """Which rows of each asked tensor the attack calls non-member, (n,) bool."""
    from sklearn.svm import SVC

    x = torch.cat([members, others]).reshape(len(members) + len(others), -1)
    y = torch.cat([torch.ones(len(members)), torch.zeros(len(others))])
    fitted = SVC(C=3, gamma="auto", kernel="rbf").fit(x.cpu().numpy(), y.numpy())
    return [torch.from_numpy(fitted.predict(rows.reshape(len(rows), -1).cpu().numpy())) == 0 for rows in asked]


def _non_members(called: Tensor) -> Estimate:
    return counted(float(called.double().mean()), len(called))


def _losses(logits: Outputs, labels: Tensor) -> Tensor:
    return by_rows(logits, lambda found, rows: cross_entropy(found.float(), labels[rows], reduction="none"))


def neurips_accuracy(forget: Labelled, test: Labelled, generator: torch.Generator) -> Estimate | NotMeasured:
    """``compat.neurips2023_accuracy``: how often logistic regression on the loss tells D_f from test samples.

    As many of the larger side as of the smaller, drawn at random and not matched by class; float32 cross-entropy; mean of
    ten stratified random splits of 90 % and 10 %, the range of the splits as ends. Target 0.5; below it is chance or
    over-unlearning. Starting kit of the NeurIPS 2023 machine unlearning challenge.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

    size = min(len(forget.labels), len(test.labels))
    if size < 10:
        return NotMeasured(f"needs 10 forget and 10 test samples, found {len(forget.labels)} and {len(test.labels)}")
    losses = []
    for split in (forget, test):
        drawn = torch.randperm(len(split.labels), generator=generator)[:size]
        losses.append(_losses(only(split.logits, drawn), split.labels[drawn]))
    x, y = torch.cat(losses).cpu().numpy()[:, None], [0] * size + [1] * size
    splits = StratifiedShuffleSplit(n_splits=10, random_state=0)
    found = cross_val_score(LogisticRegression(), x, y, cv=splits, scoring="accuracy")
    return Estimate(float(found.mean()), float(found.min()), float(found.max()), size, "mean and range of 10 splits")


def w1_class_index(unlearned: Tensor, retrained: Tensor) -> float:
    """``compat.w1_class_index``: Wasserstein-1 distance between the predicted class *numbers* of two models, (n,) each.

    It calls a cat nearer to a deer than to an airplane because 3 is nearer to 4 than to 0, and does not see which sample
    got which class: two models that disagree on every sample can be at 0. As the code of IMU prints it (on test).
    """
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(retrained.cpu().numpy(), unlearned.cpu().numpy()))
