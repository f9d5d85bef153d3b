"""What do the reference heads of ``imu evaluate --retain`` cost where there are a hundred classes?

Features at random with what a trained network's have: a hundred classes in twenty groups, training samples drawn in
towards their class, test samples not, and a head fitted on the training samples with weight decay 5e-4. Eight heads on
random halves of the retain samples and one on all of them are fitted as an evaluation fits them, then 64 shadow heads as
``--attack shadow-heads`` does. Beside each: the passes that it took, the time of as many bare passes of matrix products
over the same rows (in float64, one head), and, in the small case, how far the heads are from those of a slow oracle.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import common
import torch
from common import Criterion
from torch import Tensor

from imu_cli.evaluation import likelihood_ratios
from imu_cli.linear import refits
from imu_cli.linear.rows import Mapped

CLASSES, GROUPS, DECAY = 100, 20, 5e-4
HALVES, SHADOWS, FORGET = 8, 64, 500
CASES = [(10_000, 64), (49_500, 64), (49_500, 512)]
"""Retain samples and features."""


@dataclass(frozen=True)
class Data:
    """Training features (N, d) float32 and labels, unseen ones likewise, and the head W (c, d+1) float64 fitted on the first."""

    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor
    head: Tensor


def hundred(n: int, d: int, m: int = 5_000, classes: int = CLASSES, drawn_in: float = 0.55, seed: int = 0) -> Data:
    """Features after a ReLU whose classes lie in groups, training samples nearer to their class than unseen ones."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randn(GROUPS, 48, generator=generator)
    means = groups[torch.arange(classes) % GROUPS] + 0.4 * torch.randn(classes, 48, generator=generator)
    layer = torch.randn(48, d, generator=generator) / 48**0.5

    def samples(count: int, spread: float) -> tuple[Tensor, Tensor]:
        labels = torch.randint(classes, (count,), generator=generator)
        latent = means[labels] + spread * torch.randn(count, 48, generator=generator)
        return torch.relu(latent @ layer), labels

    (train, labels), (test, test_labels) = samples(n, drawn_in), samples(m, 1.0)
    everything = torch.ones(1, n, dtype=torch.bool)
    h = Mapped(train, True, torch.device("cpu"), resident=True)
    head = refits.fit(h, labels, everything, classes, DECAY, tolerance=1e-12).heads[0]
    return Data(train, labels, test, test_labels, head)
