"""SSD, selective synaptic dampening: shrink the weights that matter much more to what goes than to all.

    F_S = mean over minibatches of S of (∂ℓ/∂θ)²,   θ ← θ · min(λ F_D / F_f, 1) where F_f > α F_D

Source: Foster et al. 2024 (arXiv 2308.07707). Needs retain data, once, and no training. Defaults: α 10 (``strength``, searched as in the
paper), λ 1. D is all training data: F_D = (n_f F_f + n_r F_R)/(n_f + n_r), with F_R from as many minibatches of 16 as ``steps``; squared
gradients of minibatches stand for those of samples, as in the published code.
"""

import torch
from torch import Tensor, nn

from .training import Data, Samples, Settings, Steps, minibatches

DAMPENING = 1.0
MINIBATCH = 16


def importance(model: nn.Module, samples: Samples, places: list[Tensor]) -> list[Tensor]:
    """Mean of squared minibatch gradients, one tensor a parameter."""
    found = [torch.zeros_like(p) for p in model.parameters()]
    for at in places:
        x, y = samples.batch(at)
        slopes = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
        for total, slope in zip(found, slopes, strict=True):
            total += slope.square() / len(places)
    return found


def dampened(weight: Tensor, forget: Tensor, every: Tensor, alpha: float) -> Tensor:
    """A weight with its importance to D_f and to D."""
    factor = (DAMPENING * every / forget.clamp(min=1e-30)).clamp(max=1)
    return torch.where(forget > alpha * every, weight * factor, weight)


def unlearn(model: nn.Module, data: Data, settings: Settings) -> Steps:
    """One pass over forget and retain data, and one change."""
    generator = settings.generator()
    of_retain = minibatches(len(data.retain), MINIBATCH, generator)
    forget = importance(model, data.forget, list(torch.arange(len(data.forget)).split(MINIBATCH))[: settings.steps])
    retain = importance(model, data.retain, [next(of_retain) for _ in range(settings.steps)])
    n, m = len(data.forget), len(data.retain)
    with torch.no_grad():
        for p, f, r in zip(model.parameters(), forget, retain, strict=True):
            p.copy_(dampened(p, f, (n * f + m * r) / (n + m), settings.strength))
    yield settings.steps
