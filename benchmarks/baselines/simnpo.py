"""SimNPO of a classifier: NPO without the original beside it.

    L = (2/β) · mean_{D_f} log(1 + exp(β log p_θ(y|x) + γ))

Source: Fan et al. 2024 (arXiv 2410.07163), which divides β by the answer's length: a label has length 1. γ = 0 as there. Needs
neither retain data nor a reference. ``strength`` is β (the paper's 2.5 to 4.5 are for means over tokens; here 1).
"""

import torch
from torch import Tensor, nn

from .npo import preference
from .training import Data, Settings, Steps, descend, minibatches


def unlearn(model: nn.Module, data: Data, settings: Settings) -> Steps:
    """Minibatches of the forget set."""
    draws = minibatches(len(data.forget), settings.batch, settings.generator())

    def loss() -> Tensor:
        x, y = data.forget.batch(next(draws))
        now = -nn.functional.cross_entropy(model(x), y, reduction="none")
        return preference(now, torch.zeros_like(now), settings.strength)

    return descend(model.parameters(), loss, settings)
