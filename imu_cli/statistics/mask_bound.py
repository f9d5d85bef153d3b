"""What masking the outputs of forgotten classes would reach, and what was lost to them."""

from collections.abc import Collection

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear.rows import Outputs, by_rows
from imu_cli.statistics import clustered
from imu_cli.statistics.clustered import Clusters
from imu_cli.statistics.intervals import Estimate
from imu_cli.statistics.metrics import accuracy_of, among, argmax_of, predictions


def mask_bound(
    logits: Outputs,
    labels: Tensor,
    forgotten: Collection[int],
    confidence: float = 0.95,
    clusters: Clusters = None,
) -> Estimate:
    """``mask_bound.*``: accuracy on kept classes when the outputs of the forgotten classes are masked.

    Of the *original's* logits: what forgetting whole classes can reach at most by moving their rows only.

    Raises:
        ImuError: every class forgotten, or no row of a kept class.
    """
    kept = ~among(labels, forgotten)
    columns = [j for j in range(logits.shape[1]) if j not in set(forgotten)]
    if not columns or not bool(kept.any()):
        raise ImuError("mask bound: no sample of a kept class; it is defined for samples of classes that stay")
    names = torch.tensor(columns, device=labels.device)
    masked = by_rows(logits, lambda logits, rows: argmax_of(logits[:, columns], rows))
    return accuracy_of(names[masked[kept]] == labels[kept], confidence, clusters=clustered.some(clusters, kept))


def lost_to_forgotten(
    before: Outputs,
    after: Outputs,
    labels: Tensor,
    forgotten: Collection[int],
    confidence: float = 0.95,
    clusters: Clusters = None,
) -> Estimate:
    """``test.lost_to_forgotten``: share of kept-class rows newly predicted as a forgotten class; target 0.

    ``before`` and ``after`` are logits (n, c) of the same rows. Signed features alone can cause it (method.md).
    """
    kept = ~among(labels, forgotten)
    if not bool(kept.any()):
        raise ImuError("lost to forgotten: no sample of a kept class; give test or retain data with one")
    newly = among(predictions(after), forgotten) & ~among(predictions(before), forgotten)
    return accuracy_of(newly[kept], confidence, clusters=clustered.some(clusters, kept))
