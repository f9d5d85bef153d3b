"""Margins of a linear head, and the margins that forget samples should have: those of unseen samples, by rank.

Symbols (docs/method.md): φ (n,) margins, B (n, c) their gradients with respect to the logits, t (n,) targets. Everything
is float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli.errors import ImuError

TIE = 1e-9


# Margins


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.to(torch.float64).scatter(1, labels[:, None], -math.inf)


def _own(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.to(torch.float64).gather(1, labels[:, None]).squeeze(1)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """φ_i = z_y − logsumexp_{j≠y} z_j, the log-odds of each row's label (n,); logits (n, c), labels (n,)."""
    return _own(logits, labels) - _others(logits, labels).logsumexp(dim=1)


def decision_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """z_y − max_{j≠y} z_j (n,), above 0 where the row is predicted as its label.

    φ lies between this less log(c − 1) and this: φ > 0 implies the prediction, the prediction does not imply φ > 0.
    """
    return _own(logits, labels) - _others(logits, labels).amax(dim=1)


def margin_gradients(logits: Tensor, labels: Tensor) -> Tensor:
    """B = ∂φ/∂z (n, c), B_i = e_y − softmax_{j≠y}(z_i); every row sums to 0."""
    return (-_others(logits, labels).softmax(dim=1)).scatter(1, labels[:, None], 1.0)


# Targets


def class_match(labels: Tensor, held_out_labels: Tensor) -> Tensor:
    """Weight (m,) of each held-out sample so that its classes are as frequent as in D_f; their sum is n.

    w_j = n_y / m_y: a quantile of the weighted margins is that of unseen samples with D_f's classes. Samples of classes
    that D_f does not hold weigh 0.

    Raises:
        ImuError: D_f holds a class of which there is no held-out sample.
    """
    classes = int(torch.cat([labels, held_out_labels]).max()) + 1
    wanted, present = torch.bincount(labels, minlength=classes), torch.bincount(held_out_labels, minlength=classes)
    missing = ((wanted > 0) & (present == 0)).nonzero().squeeze(1).tolist()
    if missing:
        raise ImuError(
            f"matched targets: held-out data has no sample of class {', '.join(map(str, missing))}, which the forget "
            "set holds; give held-out data with every forgotten class, or a target accuracy (--until)"
        )
    return (wanted.to(torch.float64) / present.clamp(min=1))[held_out_labels]


def _weighted_quantiles(values: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of weighted values, linear between their mid-ranks and constant beyond the first and the last."""
    order = values[weights > 0].argsort()
    values, weights = values[weights > 0][order], weights[weights > 0][order]
    position = (weights.cumsum(0) - weights / 2) / weights.sum()
    right = torch.searchsorted(position, levels).clamp(max=len(values) - 1)
    left = (right - 1).clamp(min=0)
    gap = position[right] - position[left]
    share = torch.where(gap > 0, (levels - position[left]) / gap.where(gap > 0, 1.0), 1.0).clamp(0.0, 1.0)
    return torch.lerp(values[left], values[right], share)


def coupled_targets(
    margins: Tensor, held_out: Tensor, weights: Tensor | None = None, floor: float | None = None
) -> Tensor:
    """Held-out margin of each sample's rank, never above its own: t_i = min(φ_i, Q((rank_i − ½)/n)), (n,).

    Monotone coupling moves the margins least in total among all ways to give them the held-out spread Q. Samples with
    equal margins share the mean of their quantiles, so that duplicates get one target.

    Args:
        margins: φ of the forget samples (n,).
        held_out: φ of unseen samples (m,); m may differ from n.
        weights: weight of each unseen sample (m,), see ``class_match``; equal if None.
        floor: log-odds below which no sample is asked to go, such as −4 (p = 0.02): unseen samples that are far on the
            wrong side cost the most and hardly show in accuracy or AUC; their tail is then not matched. None: it is.

    Raises:
        ImuError: no held-out margin, or one that is not finite.
    """
    weights = torch.ones_like(held_out) if weights is None else weights
    if not bool((weights > 0).any()) or not bool(torch.isfinite(held_out).all()):
        raise ImuError("matched targets: no finite held-out margins; check --test, or give a target accuracy (--until)")
    n = len(margins)
    ordered, order = margins.sort()
    levels = (torch.arange(n, dtype=torch.float64, device=margins.device) + 0.5) / n
    quantiles = _weighted_quantiles(held_out, weights, levels)
    quantiles = quantiles if floor is None else quantiles.clamp(min=floor)
    starts = ordered.diff(prepend=ordered[:1] - 1) > TIE * (1 + ordered.abs())
    group = starts.cumsum(0) - int(starts[:1].sum())
    shared = torch.bincount(group, weights=quantiles) / torch.bincount(group)
    targets = torch.empty_like(margins)
    targets[order] = shared[group]
    return torch.minimum(targets, margins)


def weighted_auc(margins: Tensor, reference: Tensor, weights: Tensor) -> float:
    """Chance that a forget sample's margin lies above an unseen one's, drawn in proportion to its weight; ties count half.

    0.5: the set looks unseen; above: remembered; below: over-unlearned. With the weights of ``class_match`` this is
    the membership AUC on all held-out samples at once, without drawing a class-matched pool.

    Args:
        margins: φ of the forget samples (n,).
        reference: φ of unseen samples (m,).
        weights: their weights (m,) from 0, some of them above it.
    """
    order = reference.argsort()
    ordered, below = reference[order], torch.cat([weights.new_zeros(1), weights[order].cumsum(0)])
    left, right = (torch.searchsorted(ordered, margins, right=side) for side in (False, True))
    return float((below[left] + below[right]).mean() / (2 * below[-1]))


def shifted_targets(margins: Tensor, accuracy: float, decisions: Tensor | None = None) -> Tensor:
    """Targets φ − s with one constant s ≥ 0: at most the share ``accuracy`` of the samples keeps its prediction.

    s lies halfway between the last decision margin that stays above 0 and the first that does not. Without
    ``decisions`` (see ``decision_margins``) φ itself decides, which for c > 2 overrates what is lost.

    Raises:
        ImuError: ``accuracy`` is outside 0 to 1, or is met already.
    """
    decisions = margins if decisions is None else decisions
    if not 0 <= accuracy <= 1:
        raise ImuError(f"matched targets: accuracy {accuracy} is not a share; give a number from 0 to 1")
    n, kept = len(margins), math.floor(accuracy * len(margins) + 1e-9)
    if int((decisions > 0).sum()) <= kept:
        raise ImuError(
            f"matched targets: {int((decisions > 0).sum())} of {n} are predicted as their label, accuracy {accuracy:g} "
            "is met before the first step; check preprocessing and label order, or give a lower target"
        )
    falling = decisions.sort(descending=True).values
    shift = falling[0] if kept == 0 else (falling[kept - 1] + falling[kept]) / 2
    return margins - shift


@dataclass(frozen=True)
class Confusion:
    """Unseen samples scored for wrong labels: margins (k,), weights (k,), and the share predicted as that label."""

    margins: Tensor
    weights: Tensor
    rate: float


def confusion_reference(
    held_out_logits: Tensor, held_out_labels: Tensor, labels: Tensor, true_labels: Tensor | None = None
) -> Confusion:
    """How unseen samples score for the wrong labels of D_f: the reference to couple its margins of them to.

    For every pair (true label u, wrong label y) of D_f: the margins of y on held-out samples of u, weighted n_uy / m_u.
    Where the true labels are not known, those on all held-out samples of other labels than y, weighted n_y / m.
    ``rate`` is the weighted share of them predicted as y, by argmax.

    Raises:
        ImuError: a pair without held-out samples.
    """
    pools: list[tuple[Tensor, Tensor, Tensor]] = []
    sources = torch.full_like(labels, -1) if true_labels is None else true_labels
    pairs, counts = torch.unique(torch.stack([sources, labels], dim=1), dim=0, return_counts=True)
    for (source, label), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        rows = held_out_logits[held_out_labels != label if true_labels is None else held_out_labels == source]
        if len(rows) == 0:
            raise ImuError(
                f"matched targets: no held-out sample shows how often class {source} is taken for {label}; "
                "give held-out data with every true label, or a target accuracy (--until)"
            )
        wrong = rows.new_full((len(rows),), label, dtype=torch.int64)
        weight = torch.full((len(rows),), count / len(rows), dtype=torch.float64, device=rows.device)
        pools.append((margins(rows, wrong), weight, rows.argmax(dim=1) == wrong))
    found, weights, hits = (torch.cat(parts) for parts in zip(*pools, strict=True))
    return Confusion(found, weights, float((weights * hits).sum() / weights.sum()))


def error_weights(targets: Tensor, scale: float = 1.0) -> Tensor:
    """ω_i = 1 / (1 + exp(t_i / scale)) (n,): the probability, at the target, that the label is not predicted.

    An error of one unit weighs in full where the target lies at or below the decision boundary, and hardly at all where
    the sample is recognised safely on either side of the error. Uniform weights spend the head's few degrees of freedom
    on the many large margins (docs/method.md has the measurement).
    """
    return torch.sigmoid(-targets / scale)
