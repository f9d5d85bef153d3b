"""Boundary shrink: give each sample that goes the nearest wrong label, and train on it.

    x' = x + ε · sign(∂ℓ(x, y)/∂x),   y' = argmax_{j≠y} f_0(x')_j,   L = mean_{D_f} ℓ(x, y')

Source: Chen et al. 2023 (arXiv 2303.11570). Needs neither retain data nor a reference. ε is in units of the inputs' standard
deviation (``strength``; the paper takes 0.1 of the range of pixels): where the part of a network above a cut moves, its inputs are what
enters that part.
"""

import torch
from torch import Tensor, nn

from .training import Data, Samples, Settings, Steps, descend, minibatches


def nearest_labels(model: nn.Module, samples: Samples, epsilon: float) -> Tensor:
    """The wrong label (n,) that each sample is pushed into by one step of the fast gradient sign method."""
    found = []
    scale = epsilon * float(samples.x[samples.rows[:512]].std())
    for x, y in samples.all():
        moved = x.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(moved), y, reduction="sum"), moved)
        with torch.no_grad():
            logits = model(x + scale * slope.sign())
        found.append(logits.scatter(1, y[:, None], float("-inf")).argmax(dim=1))
    return torch.cat(found)


def unlearn(model: nn.Module, data: Data, settings: Settings) -> Steps:
    """Labels from one step at the original, then minibatches of the forget set."""
    near = nearest_labels(model, data.forget, settings.strength)
    draws = minibatches(len(data.forget), settings.batch, settings.generator())

    def loss() -> Tensor:
        at = next(draws)
        return nn.functional.cross_entropy(model(data.forget.batch(at)[0]), near[at])

    return descend(model.parameters(), loss, settings)
