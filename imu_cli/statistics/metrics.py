"""Metrics of a classifier on D_f, test and retain samples.

Logits are (n, c), held or computed by rows, labels (n,) class ids, features (n, d) entering the head. D_f is a census:
``census=True`` counts it without an interval; samples of a population get a 95 % interval. Names in double backquotes are
those of gates and records.
"""

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear.rows import Outputs, Rows, blocks, by_rows
from imu_cli.statistics import clustered
from imu_cli.statistics.clustered import Clusters
from imu_cli.statistics.intervals import Estimate, class_counts, require_classes
from imu_cli.statistics.intervals import census as counted

NOTHING = 1e-25
"""Probability, relative to the most likely number's, from which on a binomial tail moves no quantile."""


def predictions(logits: Outputs) -> Tensor:
    """Predicted class of each row, (n,); the lowest id where several tie. Of computed logits it is found once.

    Raises:
        ImuError: no rows, or a row that is not finite, whose argmax would mean nothing.
    """
    if len(logits.shape) != 2 or len(logits) == 0:
        raise ImuError(f"logits: found shape {tuple(logits.shape)}; needs (n, c) with at least one sample")
    if isinstance(logits, Tensor):
        return by_rows(logits, argmax_of)
    if "predicted" not in logits.memo:
        logits.memo["predicted"] = by_rows(logits, argmax_of)
    return logits.memo["predicted"]


def argmax_of(logits: Tensor, rows: slice) -> Tensor:
    """Predicted class of each of some rows (k,), which stand at ``rows``.

    Raises:
        ImuError: a row is not finite.
    """
    bad = torch.nonzero(~torch.isfinite(logits).all(1))
    if len(bad):
        row = rows.start + int(bad[0])
        raise ImuError(f"logits: row {row} is not finite; check the model's weights and the preprocessing")
    return logits.argmax(1)


def accuracy(
    logits: Outputs, labels: Tensor, *, census: bool = False, confidence: float = 0.95, clusters: Clusters = None
) -> Estimate:
    """``forget.accuracy``, ``test.accuracy``, ``retain.accuracy``: share of rows predicted as their label.

    Higher is better on test and retain; on D_f the target is the accuracy on class-matched unseen samples (0 for whole
    classes). Clopper-Pearson interval, none for a census.
    """
    return accuracy_of(predictions(logits) == labels, confidence, census=census, clusters=clusters)


def class_accuracy(
    logits: Outputs, labels: Tensor, *, census: bool = False, confidence: float = 0.95
) -> dict[int, Estimate]:
    """Accuracy on the rows of each class that occurs in ``labels``, by class id; each interval holds by itself."""
    right = predictions(logits) == labels
    return {k: accuracy_of(right[labels == k], confidence, census=census) for k in class_counts(labels)}


def class_matched_accuracy(
    correct: Tensor, labels_pool: Tensor, labels_forget: Tensor, confidence: float = 0.95, clusters: Clusters = None
) -> Estimate:
    """``test_matched.accuracy``: accuracy that unseen samples with the classes of D_f reach, Σ_k (n_k/n) acc_k.

    The target of ``forget.accuracy`` when random samples go. n_k counts class k in D_f, acc_k is the pool's accuracy on
    it, from N_k samples. Clopper-Pearson interval at the effective size a(1 − a)/Var, with a the value, w_k = n_k/n,

        Var = Σ_k w_k² p_k(1 − p_k) / (N_k (1 − (1 − w_k) N_k/(N_k + 1)²))

    p_k is acc_k with one sample added at the rate a, so that a small class that is all right does not count as certain;
    the last factor takes that estimate's bias out. The size is at most 1/Σ w_k²/N_k (equal rates), and min_k N_k/w_k
    where all or none are right. One class gives Clopper-Pearson itself.

    Args:
        correct: (N,) bool, whether each pool sample is predicted rightly.
        labels_pool: (N,).
        labels_forget: (n,).
        confidence: two-sided level.
        clusters: (N,), where the pool's samples come in clusters.

    Raises:
        ImuError: a class of D_f that the pool lacks.
    """
    require_classes(labels_forget, labels_pool)
    wanted = class_counts(labels_forget)
    share = torch.tensor([n / len(labels_forget) for n in wanted.values()], dtype=torch.float64)
    right = torch.tensor([int(correct[labels_pool == k].sum()) for k in wanted], dtype=torch.float64)
    size = torch.tensor([int((labels_pool == k).sum()) for k in wanted], dtype=torch.float64)
    value = float((share * right / size).sum()) if bool((right < size).any()) else 1.0
    effective, smooth = float((size / share).min()), (right + value) / (size + 1)
    if 0 < value < 1:
        unbiased = size * (1 - (1 - share) * size / (size + 1) ** 2)
        variance = float((share**2 * smooth * (1 - smooth) / unbiased).sum())
        effective = min(value * (1 - value) / variance, 1 / float((share**2 / size).sum()))
    of_class = torch.full((max(int(labels_pool.max()), *wanted) + 1,), -1, dtype=torch.long)
    of_class[list(wanted)] = torch.arange(len(wanted))
    place = of_class[labels_pool.cpu()]
    there = place >= 0
    place = place[there]
    residuals = correct.cpu()[there].double() - smooth[place]
    of_there = None if clusters is None else clusters.cpu()[there]
    return clustered.weighted_share(value, effective, residuals, (share / size)[place], of_there, confidence)


def binomial_range(p: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Central range of accuracies that n samples show when the true rate is p: inside it, accuracy is no evidence.

    The quantiles (1 ∓ confidence)/2 of Bin(n, p)/n; it is the target's interval for the census D_f.
    """
    if n < 1 or not 0 <= p <= 1:
        raise ImuError(f"binomial range: rate {p} and {n} samples; needs a rate from 0 to 1 and at least one sample")
    low, high = (_binomial_quantile(tail, n, p) / n for tail in ((1 - confidence) / 2, (1 + confidence) / 2))
    return low, high


def _binomial_quantile(tail: float, n: int, p: float) -> int:
    """The least number of n at rate p that at most ``tail`` lie below: ``scipy.stats.binom.ppf``, which takes a second to import.

    Probabilities relative to the most likely number's, outwards from it by their ratios until they count for nothing.
    """
    mode = min(int((n + 1) * p), n)
    below, above = [1.0], [1.0]
    for k in range(mode, 0, -1):
        below.append(below[-1] * k * (1 - p) / ((n - k + 1) * p))
        if below[-1] < NOTHING:
            break
    for k in range(mode, n):
        above.append(above[-1] * (n - k) * p / ((k + 1) * (1 - p)))
        if above[-1] < NOTHING:
            break
    weights = [*reversed(below), *above[1:]]
    wanted, least = tail * math.fsum(weights), mode - len(below) + 1
    sums = itertools.accumulate(weights)
    return next((least + at for at, so_far in enumerate(sums) if so_far >= wanted), least + len(weights) - 1)


def predicted_as(
    logits: Outputs,
    classes: Collection[int],
    *,
    census: bool = False,
    confidence: float = 0.95,
    clusters: Clusters = None,
) -> Estimate:
    """Share of rows predicted as any of ``classes``, whatever their label.

    ``forget.accuracy`` and ``test_forgotten.accuracy`` in the class scenario, with the forgotten classes: target 0.
    """
    return accuracy_of(among(predictions(logits), classes), confidence, census=census, clusters=clusters)


def forget_confidence(logits: Outputs, labels: Tensor, classes: Collection[int] = ()) -> Estimate:
    """``forget.confidence``: mean softmax probability of the label over D_f, a census, computed in float64.

    With ``classes`` (class scenario) the probabilities of all of them are summed. Target: that of unseen samples.
    """
    predictions(logits)
    wanted = sorted(set(classes))

    def mass_of(logits: Tensor, rows: slice) -> Tensor:
        p = logits.double().softmax(1)
        return p[:, wanted].sum(1) if wanted else p.gather(1, labels[rows, None])[:, 0]

    mass = by_rows(logits, mass_of)
    return counted(float(mass.mean()), len(mass))


def entropy(logits: Outputs) -> Estimate:
    """``forget.entropy``: mean entropy −Σ p log p of the softmax over D_f, a census; nats, 0 to log c.

    Target: that of unseen samples. Near log c means noise where a retrained model would still have an opinion.
    """
    predictions(logits)

    def entropy_of(logits: Tensor, _: slice) -> Tensor:
        log_p = logits.double().log_softmax(1)
        return -(log_p.exp() * log_p).sum(1)

    return counted(float(by_rows(logits, entropy_of).mean()), len(logits))


@dataclass(frozen=True)
class Redirect:
    """The class that most of D_f now goes to, and the share; ``label`` is None where no sample goes elsewhere."""

    label: int | None
    share: Estimate


def redirect_share(logits: Outputs, labels: Tensor, forgotten: Collection[int] = ()) -> Redirect:
    """``forget.redirect_share``: largest share of D_f predicted as one class that is neither its label nor forgotten.

    A census. No target of its own: a share near 1 says that the samples were moved to one class, not made unknown.
    """
    predicted = predictions(logits)
    moved = predicted[(predicted != labels) & ~among(predicted, forgotten)]
    counts = torch.bincount(moved, minlength=logits.shape[1])
    top = int(counts.argmax())
    hits = int(counts[top])
    return Redirect(top if hits else None, counted(hits / len(labels), len(labels)))


def accuracy_drop(before: Tensor, after: Tensor, confidence: float = 0.95, clusters: Clusters = None) -> Estimate:
    """``test.accuracy_drop``, ``retain.accuracy_drop``: accuracy before − after on the same rows; lower is better.

    ``before`` and ``after`` are (n,) bool, whether each row is predicted rightly. Tango's interval; McNemar's p-value:
    ``clustered.flips_told``.
    """
    return clustered.paired_difference(before, after, clusters, confidence)


def class_drops(
    before: Tensor, after: Tensor, labels: Tensor, confidence: float = 0.95, clusters: Clusters = None
) -> dict[int, Estimate]:
    """``accuracy_drop`` on the rows of each class, by class id; each interval holds by itself."""
    rows = {k: labels == k for k in class_counts(labels)}
    return {
        k: accuracy_drop(before[own], after[own], confidence, clustered.some(clusters, own)) for k, own in rows.items()
    }


@dataclass(frozen=True)
class ClassDrop:
    """The class that lost most, and by how much."""

    label: int
    drop: Estimate


def worst_class_drop(
    before: Tensor, after: Tensor, labels: Tensor, confidence: float = 0.95, clusters: Clusters = None
) -> ClassDrop:
    """``test.worst_class_drop``: the largest per-class drop; lower is better, the lowest id where several tie.

    Picking the worst of c classes finds one by chance: the interval is that of the largest *true* drop, each class at
    1 − α/c (Bonferroni), from the largest of the lower ends to the largest of the upper ends.
    """
    classes = len(class_counts(labels))
    drops = class_drops(before, after, labels, 1 - (1 - confidence) / max(classes, 1), clusters)
    if not drops:
        raise ImuError("worst class drop: no samples; give at least one")
    worst = max(drops, key=lambda k: drops[k].value)
    low, high = max(_low(d) for d in drops.values()), max(_high(d) for d in drops.values())
    score = "Tango score" if clusters is None else clustered.by("Tango score", clusters)
    method = f"{score}, Bonferroni over {classes} classes, {100 * confidence:g} %"
    return ClassDrop(worst, Estimate(drops[worst].value, low, high, drops[worst].n, method))


def feature_drift(before: Rows, after: Rows) -> Estimate:
    """``features.drift``: ‖H' − H‖_F / ‖H‖_F over D_f, a census; 0 says that the features are as they were.

    ``before`` and ``after`` are (n, d) features of the same rows. Not a measure of forgetting: see ``recovery``.
    """
    if before.shape != after.shape:
        raise ImuError(f"feature drift: {tuple(before.shape)} before, {tuple(after.shape)} after; needs the same rows")
    size = change = 0.0
    for rows in blocks(*before.shape):
        was = before[rows].double()
        size += float(was.square().sum())
        change += float((after[rows].double() - was).square().sum())
    scale = math.sqrt(size)
    if scale == 0 or not math.isfinite(scale):
        raise ImuError(f"feature drift: the features before have norm {scale}; check the model's weights")
    return counted(math.sqrt(change) / scale, len(before))


def accuracy_of(hits: Tensor, confidence: float = 0.95, *, census: bool = False, clusters: Clusters = None) -> Estimate:
    """Share of true entries of a (n,) bool tensor, with its Clopper-Pearson interval; counted where it is a census."""
    n = len(hits)
    return counted(int(hits.sum()) / max(n, 1), n) if census else clustered.share(hits, clusters, confidence)


def among(ids: Tensor, classes: Collection[int]) -> Tensor:
    """Which ids are one of ``classes``, (n,) bool."""
    return torch.isin(ids, torch.tensor(sorted(set(classes)), dtype=ids.dtype, device=ids.device))


def _low(estimate: Estimate) -> float:
    return estimate.value if estimate.low is None else estimate.low


def _high(estimate: Estimate) -> float:
    return estimate.value if estimate.high is None else estimate.high
