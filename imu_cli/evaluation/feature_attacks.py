"""Attacks on features: can someone who holds the weights tell D_f from unseen samples by what enters the head?

Equal logits can hide different features: a head that was changed, or outputs that were matched, say nothing about these.
Features are (n, d) of D_f and of class-matched unseen samples, the *pool*; nothing here reads all of them at once.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.linear.rows import Rows
from imu_cli.statistics import clustered
from imu_cli.statistics.clustered import Clusters, Sides
from imu_cli.statistics.intervals import Estimate, NotMeasured, two_sided

FOLDS = 5
MOST, NUMBERS, LEAST = 2_000, 4_000_000, 300
"""Samples of a side at most; fewer, but no fewer than ``LEAST``, where features are so wide that they hold more numbers."""
FEWEST = 10
"""Samples that each side needs: two in a fold."""
STRENGTH = 0.01
"""C of scikit-learn's logistic regression on standardised features: strong, so that wide features are not learnt by heart."""
BLOCK = 256


@dataclass(frozen=True)
class Chosen:
    """Rows of D_f and of the pool that are attacked, their labels, and the part that each is scored in; the same for all models.

    ``forget``, ``pool``: (m,) and (k,) row numbers. ``labels`` (m + k,), ``folds`` (m + k,) 0 to ``FOLDS`` − 1, D_f's first;
    ``clusters`` (m + k,) where samples come in such: those of one are in one part, or a fit would know a word by its sentence.
    """

    forget: Tensor
    pool: Tensor
    labels: Tensor
    folds: Tensor
    clusters: Clusters = None

    def sides(self, rows: Tensor) -> Sides | None:
        """The clusters of D_f's and of the other ones of some samples, by a mask (m + k,)."""
        of, members = self.clusters, self.members
        return None if of is None else (of[members & rows], of[~members & rows])

    @property
    def members(self) -> Tensor:
        """Which of the samples are D_f's (m + k,)."""
        return torch.arange(len(self.labels)) < len(self.forget)

    def features(self, forget: Rows, pool: Rows) -> Tensor:
        """The features of these samples under a model (m + k, d) float64, on the CPU."""
        return torch.cat([forget[self.forget].double().cpu(), pool[self.pool].double().cpu()])


def choose(
    labels_forget: Tensor,
    pool: Tensor,
    labels_pool: Tensor,
    width: int,
    generator: torch.Generator,
    clusters: Sides | None = None,
) -> Chosen | NotMeasured:
    """Draw the samples that are attacked, a bounded number, and deal them into parts that hold each side and class alike.

    Args:
        labels_forget: (n,).
        pool: (k,) row numbers of class-matched unseen samples.
        labels_pool: (k,) of these.
        width: of the features.
        generator: of the draws.
        clusters: of D_f (n,) and of the pool (k,), where samples come in such.
    """
    if min(len(labels_forget), len(pool)) < FEWEST:
        return NotMeasured(f"needs {FEWEST} or more samples of D_f and class-matched --test samples")
    most = max(LEAST, min(MOST, NUMBERS // width))
    ours, theirs = (
        torch.randperm(n, generator=generator)[:most].sort().values for n in (len(labels_forget), len(pool))
    )
    sides = labels_forget.cpu()[ours], labels_pool.cpu()[theirs]
    if clusters is None:
        folds = torch.cat([_dealt(labels, generator) for labels in sides])
        return Chosen(ours, pool.cpu()[theirs], torch.cat(sides), folds)
    of = torch.cat([clusters[0].cpu()[ours], clusters[1].cpu()[theirs]])
    found = _dealt_whole(of, len(ours), generator)
    if found is None:
        return NotMeasured(f"needs {FOLDS} or more sentences of D_f and of class-matched --test samples")
    return Chosen(ours, pool.cpu()[theirs], torch.cat(sides), found, of)


def _dealt_whole(clusters: Tensor, ours: int, generator: torch.Generator) -> Tensor | None:
    """A part for each sample (n,) by its cluster, the first ``ours`` of D_f, parts as equal as can be; None where one lacks a side.

    The largest first, each to the part that has least of its sides.
    """
    place = clusters.unique(return_inverse=True)[1]
    many = int(place.max()) + 1
    sizes = torch.stack([torch.bincount(side, minlength=many) for side in (place[:ours], place[ours:])]).double()
    sizes /= sizes.sum(1, keepdim=True)
    mixed = torch.randperm(many, generator=generator)
    load, part = torch.zeros(2, FOLDS, dtype=torch.float64), torch.zeros(many, dtype=torch.long)
    for at in mixed[sizes.sum(0)[mixed].argsort(descending=True, stable=True)].tolist():
        part[at] = load[sizes[:, at] > 0].sum(0).argmin()
        load[:, part[at]] += sizes[:, at]
    return part[place] if bool((load > 0).all()) else None


def _dealt(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A part for each sample (n,): parts as equal as can be, of every class as well."""
    mixed = torch.randperm(len(labels), generator=generator)
    order = mixed[labels[mixed].argsort(stable=True)]
    folds = torch.empty_like(labels)
    folds[order] = torch.arange(len(labels)) % FOLDS
    return folds


def by_regression(h: Tensor, chosen: Chosen, confidence: float = 0.95) -> Estimate:
    """``feature_mia.auc``: AUC of logistic regression, fitted on four parts of the samples and scored on the fifth, in turn.

    Features less their class's mean, over the spread within classes; beside them how far the sample lies from that mean, and
    how far along it, since what was trained on lies nearer and further out. 0.5: the attack finds nothing; a fitted attack
    has no direction to turn round, and below 0.5 is chance. Interval: DeLong, as if the five fits were one.

    Args:
        h: (m + k, d) float64, as ``Chosen.features`` gives it.
        chosen: what the rows are.
        confidence: two-sided level.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    members, scores = chosen.members, torch.empty(len(h), dtype=torch.float64)
    for fold in range(FOLDS):
        signals.check()
        fitted = chosen.folds != fold
        x = _within_classes(h, chosen.labels, fitted)
        scaler, model = StandardScaler().fit(x[fitted].numpy()), LogisticRegression(C=STRENGTH, max_iter=1000)
        model.fit(scaler.transform(x[fitted].numpy()), members[fitted].numpy())
        scores[~fitted] = torch.from_numpy(model.decision_function(scaler.transform(x[~fitted].numpy())))
    sides = chosen.sides(torch.ones_like(members))
    return clustered.auc(scores[members], scores[~members], sides, confidence)


def _within_classes(h: Tensor, labels: Tensor, fitted: Tensor) -> Tensor:
    """What the attack looks at (n, d + 2), with class means and spreads of the fitted samples of both sides alone."""
    classes = int(labels.max()) + 1
    count = torch.bincount(labels[fitted], minlength=classes)
    overall = h[fitted].mean(0)
    means = h.new_zeros(classes, h.shape[1]).index_add(0, labels[fitted], h[fitted]) / count.clamp_min(1)[:, None]
    means[count == 0] = overall
    apart = h - means[labels]
    spread = apart[fitted].square().mean(0).sqrt()
    apart = torch.where(spread > 0, apart / spread, 0.0)
    outward = torch.where(spread > 0, means / spread, 0.0)[labels]
    distance = apart.norm(dim=1, keepdim=True) / math.sqrt(h.shape[1])
    along = (apart * outward).sum(1, keepdim=True) / outward.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.cat([apart, distance, along], dim=1)


def by_distance(h: Tensor, chosen: Chosen, confidence: float = 0.95) -> Estimate:
    """``feature_mia.auc_nearest``: AUC of the distance to the nearest unseen sample of the class, whichever way it is turned.

    Half of the pool is what is measured from, the other half is compared with D_f. Features over their spread within
    classes. max(AUC, 1 − AUC): trained samples may lie nearer, and samples that were driven away further off.
    """
    members = chosen.members
    measured_from = ~members & (chosen.folds % 2 == 0)
    asked = ~measured_from
    x = h / _spread(h[measured_from], chosen.labels[measured_from])
    anchors, of_class = x[measured_from], chosen.labels[measured_from]
    nearest = []
    for x_part, labels in zip(x[asked].split(BLOCK), chosen.labels[asked].split(BLOCK), strict=True):
        signals.check()
        distances = torch.cdist(x_part, anchors)
        own = distances.masked_fill(labels[:, None] != of_class, math.inf).amin(1)
        nearest.append(torch.where(own.isfinite(), own, distances.amin(1)))
    score, ours = -torch.cat(nearest), members[asked]
    return two_sided(clustered.auc(score[ours], score[~ours], chosen.sides(asked), confidence))


def _spread(h: Tensor, labels: Tensor) -> Tensor:
    """Standard deviation within classes (d,); 1 where nothing varies."""
    apart = (
        h
        - torch.stack([h[labels == label].mean(0) for label in labels.unique()])[labels.unique(return_inverse=True)[1]]
    )
    spread = apart.square().mean(0).sqrt()
    return torch.where(spread > 0, spread, 1.0)
