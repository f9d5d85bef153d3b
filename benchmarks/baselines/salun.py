"""SalUn: random labels, moving only the weights that the forget set's loss is most sensitive to.

    m = 1 where |∂/∂θ Σ_{D_f} ℓ(x, y)| at the original is among the largest half, 0 elsewhere
    L = mean_{D_f} ℓ(x, y') + α · mean_R ℓ(x, y),   gradient ∘ m

Source: Fan et al. 2024 (arXiv 2310.12508). Needs retain data. Defaults: half of the weights, α 1 (``strength``). Labels are drawn
once. Momentum and decay act where the gradient is masked too in the published code; here a masked weight does not move.
"""

import torch
from torch import Tensor, nn

from .random_labels import classes_of
from .training import Data, Settings, Steps, descend, minibatches, other_labels

SHARE = 0.5


def saliency(model: nn.Module, data: Data, share: float = SHARE) -> list[Tensor]:
    """Masks, one a parameter, that are 1 for the ``share`` of all weights with the largest gradient."""
    model.zero_grad()
    for x, y in data.forget.all():
        nn.functional.cross_entropy(model(x), y, reduction="sum").backward()  # type: ignore[no-untyped-call]
    sizes = [torch.zeros_like(p) if p.grad is None else p.grad.abs() for p in model.parameters()]
    model.zero_grad()
    flat = torch.cat([size.flatten() for size in sizes])
    chosen = torch.zeros_like(flat)
    chosen[flat.topk(round(share * len(flat))).indices] = 1
    parts = chosen.split([size.numel() for size in sizes])
    return [part.view_as(size) for part, size in zip(parts, sizes, strict=True)]


def unlearn(model: nn.Module, data: Data, settings: Settings) -> Steps:
    """Masks from one pass over the forget set, then a minibatch of either set a step."""
    generator = settings.generator()
    masks, start = saliency(model, data), [p.detach().clone() for p in model.parameters()]
    with_labels = other_labels(data.forget.y, classes_of(model, data), generator, data.gone)
    forget = minibatches(len(data.forget), settings.batch, generator)
    retain = minibatches(len(data.retain), settings.batch, generator)

    def loss() -> Tensor:
        at = next(forget)
        xr, yr = data.retain.batch(next(retain))
        forgotten = nn.functional.cross_entropy(model(data.forget.batch(at)[0]), with_labels[at])
        return forgotten + settings.strength * nn.functional.cross_entropy(model(xr), yr)

    for step in descend(model.parameters(), loss, settings):
        with torch.no_grad():
            for p, mask, was in zip(model.parameters(), masks, start, strict=True):
                p.copy_(torch.where(mask > 0, p, was))
        yield step
