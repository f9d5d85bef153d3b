"""Metrics of a classifier on D_f, test and retain samples, and of what its features still hold.

Logits are (n, c), labels (n,) class ids, features (n, d) entering the head, a head its weight (c, d) and bias (c,) or
None. D_f is a census: ``census=True`` counts it without an interval; samples of a population get a 95 % interval.
Names in double backquotes are those of gates and records.
"""

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ImuError
from .intervals import (
    Estimate,
    NotMeasured,
    class_counts,
    clopper_pearson,
    korn_graubard,
    paired_difference,
    require_classes,
)
from .intervals import (
    census as counted,
)


def predictions(logits: Tensor) -> Tensor:
    """Predicted class of each row, (n,); the lowest id where several tie.

    Raises:
        ImuError: no rows, or a row that is not finite, whose argmax would mean nothing.
    """
    if logits.ndim != 2 or len(logits) == 0:
        raise ImuError(f"logits: found shape {tuple(logits.shape)}; needs (n, c) with at least one sample")
    bad = torch.nonzero(~torch.isfinite(logits).all(1))
    if len(bad):
        raise ImuError(f"logits: row {int(bad[0])} is not finite; check the model's weights and the preprocessing")
    return logits.argmax(1)


def accuracy(logits: Tensor, labels: Tensor, *, census: bool = False, confidence: float = 0.95) -> Estimate:
    """``forget.accuracy``, ``test.accuracy``, ``retain.accuracy``: share of rows predicted as their label.

    Higher is better on test and retain; on D_f the target is the accuracy on class-matched unseen samples (0 for whole
    classes). Clopper-Pearson interval, none for a census.
    """
    return _share(predictions(logits) == labels, census, confidence)


def class_accuracy(
    logits: Tensor, labels: Tensor, *, census: bool = False, confidence: float = 0.95
) -> dict[int, Estimate]:
    """Accuracy on the rows of each class that occurs in ``labels``, by class id; each interval holds by itself."""
    right = predictions(logits) == labels
    return {k: _share(right[labels == k], census, confidence) for k in class_counts(labels)}


def class_matched_accuracy(
    correct: Tensor, labels_pool: Tensor, labels_forget: Tensor, confidence: float = 0.95
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

    Raises:
        ImuError: a class of D_f that the pool lacks.
    """
    require_classes(labels_forget, labels_pool)
    wanted = class_counts(labels_forget)
    share = torch.tensor([n / len(labels_forget) for n in wanted.values()], dtype=torch.float64)
    right = torch.tensor([int(correct[labels_pool == k].sum()) for k in wanted], dtype=torch.float64)
    size = torch.tensor([int((labels_pool == k).sum()) for k in wanted], dtype=torch.float64)
    value = float((share * right / size).sum()) if bool((right < size).any()) else 1.0
    effective = float((size / share).min())
    if 0 < value < 1:
        smooth = (right + value) / (size + 1)
        unbiased = size * (1 - (1 - share) * size / (size + 1) ** 2)
        variance = float((share**2 * smooth * (1 - smooth) / unbiased).sum())
        effective = min(value * (1 - value) / variance, 1 / float((share**2 / size).sum()))
    return korn_graubard(value, effective, int(size.sum()), confidence)


def binomial_range(p: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Central range of accuracies that n samples show when the true rate is p: inside it, accuracy is no evidence.

    The quantiles (1 ∓ confidence)/2 of Bin(n, p)/n; it is the target's interval for the census D_f.
    """
    from scipy import stats

    if n < 1 or not 0 <= p <= 1:
        raise ImuError(f"binomial range: rate {p} and {n} samples; needs a rate from 0 to 1 and at least one sample")
    low, high = (float(stats.binom.ppf(tail, n, p)) / n for tail in ((1 - confidence) / 2, (1 + confidence) / 2))
    return low, high


def predicted_as(
    logits: Tensor, classes: Collection[int], *, census: bool = False, confidence: float = 0.95
) -> Estimate:
    """Share of rows predicted as any of ``classes``, whatever their label.

    ``forget.accuracy`` and ``test_forgotten.accuracy`` in the class scenario, with the forgotten classes: target 0.
    """
    return _share(_among(predictions(logits), classes), census, confidence)


def forget_confidence(logits: Tensor, labels: Tensor, classes: Collection[int] = ()) -> Estimate:
    """``forget.confidence``: mean softmax probability of the label over D_f, a census, computed in float64.

    With ``classes`` (class scenario) the probabilities of all of them are summed. Target: that of unseen samples.
    """
    predictions(logits)
    p = logits.double().softmax(1)
    mass = p[:, sorted(set(classes))].sum(1) if classes else p.gather(1, labels[:, None])[:, 0]
    return counted(float(mass.mean()), len(mass))


def entropy(logits: Tensor) -> Estimate:
    """``forget.entropy``: mean entropy −Σ p log p of the softmax over D_f, a census; nats, 0 to log c.

    Target: that of unseen samples. Near log c means noise where a retrained model would still have an opinion.
    """
    predictions(logits)
    log_p = logits.double().log_softmax(1)
    return counted(float(-(log_p.exp() * log_p).sum(1).mean()), len(logits))


@dataclass(frozen=True)
class Redirect:
    """The class that most of D_f now goes to, and the share; ``label`` is None where no sample goes elsewhere."""

    label: int | None
    share: Estimate


def redirect_share(logits: Tensor, labels: Tensor, forgotten: Collection[int] = ()) -> Redirect:
    """``forget.redirect_share``: largest share of D_f predicted as one class that is neither its label nor forgotten.

    A census. No target of its own: a share near 1 says that the samples were moved to one class, not made unknown.
    """
    predicted = predictions(logits)
    moved = predicted[(predicted != labels) & ~_among(predicted, forgotten)]
    counts = torch.bincount(moved, minlength=logits.shape[1])
    top = int(counts.argmax())
    hits = int(counts[top])
    return Redirect(top if hits else None, counted(hits / len(labels), len(labels)))


def accuracy_drop(before: Tensor, after: Tensor, confidence: float = 0.95) -> Estimate:
    """``test.accuracy_drop``, ``retain.accuracy_drop``: accuracy before − after on the same rows; lower is better.

    ``before`` and ``after`` are (n,) bool, whether each row is predicted rightly. Tango's interval; for the exact
    McNemar p-value pass ``flips`` to ``intervals.mcnemar``.
    """
    return paired_difference(*flips(before, after), len(before), confidence)


def flips(before: Tensor, after: Tensor) -> tuple[int, int]:
    """Rows right before and wrong after, and rows wrong before and right after."""
    if before.shape != after.shape:
        raise ImuError(f"paired accuracy: {len(before)} rows before, {len(after)} after; predict the same rows twice")
    return int((before & ~after).sum()), int((~before & after).sum())


def class_drops(before: Tensor, after: Tensor, labels: Tensor, confidence: float = 0.95) -> dict[int, Estimate]:
    """``accuracy_drop`` on the rows of each class, by class id; each interval holds by itself."""
    return {k: accuracy_drop(before[labels == k], after[labels == k], confidence) for k in class_counts(labels)}


@dataclass(frozen=True)
class ClassDrop:
    """The class that lost most, and by how much."""

    label: int
    drop: Estimate


def worst_class_drop(before: Tensor, after: Tensor, labels: Tensor, confidence: float = 0.95) -> ClassDrop:
    """``test.worst_class_drop``: the largest per-class drop; lower is better, the lowest id where several tie.

    Picking the worst of c classes finds one by chance: the interval is that of the largest *true* drop, each class at
    1 − α/c (Bonferroni), from the largest of the lower ends to the largest of the upper ends.
    """
    classes = len(class_counts(labels))
    drops = class_drops(before, after, labels, 1 - (1 - confidence) / max(classes, 1))
    if not drops:
        raise ImuError("worst class drop: no samples; give at least one")
    worst = max(drops, key=lambda k: drops[k].value)
    low, high = max(_low(d) for d in drops.values()), max(_high(d) for d in drops.values())
    method = f"Tango score, Bonferroni over {classes} classes, {100 * confidence:g} %"
    return ClassDrop(worst, Estimate(drops[worst].value, low, high, drops[worst].n, method))


def mask_bound(logits: Tensor, labels: Tensor, forgotten: Collection[int], confidence: float = 0.95) -> Estimate:
    """``mask_bound.*``: accuracy on kept classes when the outputs of the forgotten classes are masked.

    Of the *original's* logits: what forgetting whole classes can reach at most by moving their rows only.

    Raises:
        ImuError: every class forgotten, or no row of a kept class.
    """
    kept = ~_among(labels, forgotten)
    columns = [j for j in range(logits.shape[1]) if j not in set(forgotten)]
    if not columns or not bool(kept.any()):
        raise ImuError("mask bound: no sample of a kept class; it is defined for samples of classes that stay")
    names = torch.tensor(columns, device=labels.device)
    return accuracy_of(names[predictions(logits[kept][:, columns])] == labels[kept], confidence)


def accuracy_of(correct: Tensor, confidence: float = 0.95) -> Estimate:
    """Share of true entries of a (n,) bool tensor, with its Clopper-Pearson interval."""
    return _share(correct, False, confidence)


def lost_to_forgotten(
    before: Tensor, after: Tensor, labels: Tensor, forgotten: Collection[int], confidence: float = 0.95
) -> Estimate:
    """``test.lost_to_forgotten``: share of kept-class rows newly predicted as a forgotten class; target 0.

    ``before`` and ``after`` are logits (n, c) of the same rows. Signed features alone can cause it (method.md).
    """
    kept = ~_among(labels, forgotten)
    if not bool(kept.any()):
        raise ImuError("lost to forgotten: no sample of a kept class; give test or retain data with one")
    newly = _among(predictions(after[kept]), forgotten) & ~_among(predictions(before[kept]), forgotten)
    return accuracy_of(newly, confidence)


def feature_drift(before: Tensor, after: Tensor) -> Estimate:
    """``features.drift``: ‖H' − H‖_F / ‖H‖_F over D_f, a census; 0 says that the features are as they were.

    ``before`` and ``after`` are (n, d) features of the same rows. Not a measure of forgetting: see ``linear_probe``.
    """
    if before.shape != after.shape:
        raise ImuError(f"feature drift: {tuple(before.shape)} before, {tuple(after.shape)} after; needs the same rows")
    scale = float(before.double().norm())
    if scale == 0 or not math.isfinite(scale):
        raise ImuError(f"feature drift: the features before have norm {scale}; check the model's weights")
    return counted(float((after.double() - before.double()).norm()) / scale, len(before))


@dataclass(frozen=True)
class Recovery:
    """How well a class comes back from k of its samples.

    ``accuracy``: share of the other forget samples predicted as their label. ``taken``: share of kept-class samples
    that the put-back rows take, without which ``accuracy`` could be a row that wins everywhere; None if none were
    given. Both are means over draws of the k samples, the ends the lowest and highest draw.
    """

    k: int
    accuracy: Estimate
    taken: Estimate | None


def k_shot_recovery(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    k: int,
    generator: torch.Generator,
    *,
    kept_features: Tensor | None = None,
    repeats: int = 10,
) -> Recovery | NotMeasured:
    """``recovery.k1|k5|k10``: put the mean feature of k forget samples back as their class's row, then classify.

    Class scenario; every class in ``labels`` counts as forgotten. High: the features still hold the class, and the
    head's change hides it. The row is the mean feature projected on the span of the kept rows (and of the differences
    between forgotten classes), with their mean norm and mean bias. Without the projection the part that all features
    share makes the row win everywhere: on a CIFAR-10 ResNet-20 it takes 64 % of the kept test samples, with it 1 %.
    Where the span leaves nothing out (c > d) the mean of kept features is taken off instead, and needed.
    After weight imprinting (Qi, Brown and Lowe, CVPR 2018).

    Args:
        features: (n, d) of D_f.
        weight: (c, d) of the unlearned head.
        bias: (c,) or None.
        labels: (n,) of D_f.
        k: samples drawn of each class.
        generator: of the draws.
        kept_features: (m, d) of kept-class test samples, for ``taken``.
        repeats: draws.
    """
    if min(class_counts(labels).values(), default=0) <= k:
        return NotMeasured(f"needs more than {k} forget samples of each class")
    centre = None if kept_features is None else kept_features.double().mean(0)
    right, taken, held_out = [], [], 0
    for _ in range(repeats):
        shots, held = _draw(labels, k, generator)
        means = torch.stack([features[rows].double().mean(0) for rows in shots.values()])
        head = put_back(means, weight, bias, list(shots), centre)
        if isinstance(head, NotMeasured):
            return head
        right.append(float((_predict(features[held], head) == labels[held]).double().mean()))
        if kept_features is not None:
            taken.append(float(_among(_predict(kept_features, head), list(shots)).double().mean()))
        held_out = len(held)
    lost = None if kept_features is None else _over_draws(taken, len(kept_features))
    return Recovery(k, _over_draws(right, held_out), lost)


def zero_shot_recovery(features: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Estimate | NotMeasured:
    """Accuracy on D_f after putting −Σ_{j≠k} w_j back as the row of the one forgotten class k; no sample is needed.

    Cross-entropy's gradient sums to 0 over the rows, and weight decay takes what is left of their sum: the kept rows
    still spell the forgotten one (cosine 0.9999 on a CIFAR-10 ResNet-20). A census over D_f; high: as in
    ``k_shot_recovery``. It says nothing where the rows did not sum to 0, as without weight decay.
    """
    classes = list(class_counts(labels))
    if len(classes) != 1:
        return NotMeasured(f"needs one forgotten class, found {len(classes)}")
    weight, bias = _head(weight, bias)
    k = classes[0]
    weight[k], bias[k] = weight[k] - weight.sum(0), bias[k] - bias.sum()
    right = _predict(features, (weight, bias)) == labels
    return _share(right, True, 0.95)


def put_back(
    means: Tensor, weight: Tensor, bias: Tensor | None, classes: Sequence[int], centre: Tensor | None = None
) -> tuple[Tensor, Tensor] | NotMeasured:
    """The head with one row a forgotten class made from its mean feature; see ``k_shot_recovery``.

    ``means`` is (f, d), in the order of ``classes``. With no kept class the norm and bias are those of all rows.
    """
    weight, bias = _head(weight, bias)
    kept = torch.tensor([j not in set(classes) for j in range(len(weight))], device=weight.device)
    rows, offsets = (weight[kept], bias[kept]) if bool(kept.any()) else (weight, bias)
    span = _orthonormal(torch.cat([weight[kept], means - means.mean(0)]))
    if len(span) < means.shape[1]:
        direction, level, centre = means @ span.T @ span, offsets.mean(), torch.zeros_like(means[0])
    elif centre is not None:
        # At the kept samples' mean the new row scores as the kept rows do on average.
        direction, level = means - centre, (rows @ centre + offsets).mean()
    else:
        return NotMeasured("needs --test: with no more features than classes, only kept samples show a row's reach")
    length = direction.norm(dim=1, keepdim=True)
    if not bool((length > 0).all()):
        raise ImuError("recovery: a mean feature has no part that the head reads; check the features of the forget set")
    new = direction / length * rows.norm(dim=1).mean()
    weight[list(classes)], bias[list(classes)] = new, level - new @ centre
    return weight, bias


@dataclass(frozen=True)
class Probe:
    """What a fresh linear classifier finds in the features.

    ``accuracy`` is the answer and ``reference`` what the same probe reaches where nothing was forgotten.
    ``converged`` is False where the solver ran out of steps: both are then lower than they could be.
    """

    accuracy: Estimate
    reference: Estimate
    converged: bool


def linear_probe(
    forget_features: Tensor,
    forget_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    forgotten: Collection[int],
    generator: torch.Generator,
    *,
    per_class: int = 500,
    confidence: float = 0.95,
) -> Probe | NotMeasured:
    """``probe.accuracy``: what logistic regression recovers from the features, with forget and test samples alone.

    Class scenario (``forgotten`` given): trained on D_f and a random half of the kept-class test samples; ``accuracy``
    is on the test samples of the forgotten classes, none of which it saw, ``reference`` on the other half. Near the
    reference: the features still hold the class. Sample scenario: trained on a random half of test; ``accuracy`` is on
    D_f (a census), ``reference`` on the other half at D_f's class proportions. Above the reference's interval: the
    features still mark D_f as trained on. At most ``per_class`` training samples of a class, so that D_f does not
    outweigh the rest. Features are standardised. Alain and Bengio, arXiv 1610.01644.

    Args:
        forget_features: (n, d).
        forget_labels: (n,).
        test_features: (m, d).
        test_labels: (m,).
        forgotten: class ids; empty in the sample scenario.
        generator: of the halves and of the training samples.
        per_class: training samples of each class at most.
        confidence: two-sided level.
    """
    gone = _among(test_labels, forgotten)
    if forgotten and (not bool(gone.any()) or len(class_counts(test_labels[~gone])) == 0):
        return NotMeasured("needs --test samples of the forgotten and of the kept classes")
    train, other = _halves(torch.nonzero(~gone)[:, 0].cpu(), generator)
    if len(train) == 0 or len(other) == 0:
        return NotMeasured("needs at least two --test samples")
    x, y = test_features[train], test_labels[train]
    if forgotten:
        x, y = torch.cat([forget_features, x]), torch.cat([forget_labels, y])
    rows = _at_most(y, per_class, generator)
    if len(class_counts(y[rows])) < 2:
        return NotMeasured("needs training samples of two classes")
    asked = (test_features[gone], test_labels[gone]) if forgotten else (forget_features, forget_labels)
    right, right_other, converged = _probe(x[rows], y[rows], asked, (test_features[other], test_labels[other]))
    if forgotten:
        found, reference = accuracy_of(right, confidence), accuracy_of(right_other, confidence)
    else:
        found = _share(right, True, confidence)
        reference = class_matched_accuracy(right_other, test_labels[other], forget_labels, confidence)
    return Probe(found, reference, converged)


def _probe(
    x: Tensor, y: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, bool]:
    """Fit on x, y; whether each row of two labelled sets is predicted rightly, and whether the solver converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings():
        # It is reported as a field of the result instead.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x.double().cpu().numpy(), y.cpu().numpy())
    right = [torch.from_numpy(model.predict(h.double().cpu().numpy())) == labels.cpu() for h, labels in (first, second)]
    return right[0], right[1], bool(model[-1].n_iter_.max() < 1000)


def _share(hits: Tensor, census: bool, confidence: float) -> Estimate:
    n = len(hits)
    return counted(int(hits.sum()) / max(n, 1), n) if census else clopper_pearson(int(hits.sum()), n, confidence)


def _among(ids: Tensor, classes: Collection[int]) -> Tensor:
    return torch.isin(ids, torch.tensor(sorted(set(classes)), dtype=ids.dtype, device=ids.device))


def _low(estimate: Estimate) -> float:
    return estimate.value if estimate.low is None else estimate.low


def _high(estimate: Estimate) -> float:
    return estimate.value if estimate.high is None else estimate.high


def _head(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """A float64 copy that may be written to."""
    rows = weight.detach().double().clone()
    return rows, rows.new_zeros(len(rows)) if bias is None else bias.detach().double().clone()


def _predict(features: Tensor, head: tuple[Tensor, Tensor]) -> Tensor:
    return predictions(features.double() @ head[0].T + head[1])


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows (r, d) that span the given ones."""
    decomposition = torch.linalg.svd(rows, full_matrices=False)
    sizes, directions = decomposition.S, decomposition.Vh
    basis: Tensor = directions[sizes > sizes[0] * max(rows.shape) * torch.finfo(rows.dtype).eps]
    return basis


def _draw(labels: Tensor, k: int, generator: torch.Generator) -> tuple[dict[int, Tensor], Tensor]:
    """K rows of each class, and all other rows."""
    shots, held = {}, []
    for label in class_counts(labels):
        rows = torch.nonzero(labels.cpu() == label)[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        shots[label] = rows[:k]
        held.append(rows[k:])
    return shots, torch.cat(held)


def _over_draws(values: list[float], n: int) -> Estimate:
    return Estimate(sum(values) / len(values), min(values), max(values), n, f"mean and range of {len(values)} draws")


def _halves(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    mixed = rows[torch.randperm(len(rows), generator=generator)]
    return mixed[: len(rows) // 2], mixed[len(rows) // 2 :]


def _at_most(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Random rows, at most ``per_class`` of each class."""
    mixed = torch.randperm(len(labels), generator=generator)
    return torch.cat([mixed[labels.cpu()[mixed] == k][:per_class] for k in class_counts(labels)])
