"""NPO, negative preference optimisation, of a classifier: the label takes the place of the answer.

    r = log p_θ(y|x) − log p_0(y|x)
    L = (2/β) · mean_{D_f} log(1 + exp(β r)) = −(2/β) · mean log σ(−β r)

As β → 0 its gradient is that of gradient ascent; with β > 0 a sample that is far gone weighs less. Source: Zhang et al. 2024
(arXiv 2404.05868), for language models, there with a retain loss beside it; here without. Needs neither retain data nor a reference.
``strength`` is β; the paper's 0.1 is for sums over tokens, here 1.
"""

import torch
from torch import Tensor, nn

from .training import Data, Settings, Steps, descend, minibatches, teacher_of


def unlearn(model: nn.Module, data: Data, settings: Settings) -> Steps:
    """The original's answers from one pass, then minibatches of the forget set."""
    before = -nn.functional.cross_entropy(teacher_of(model, data.forget), data.forget.y, reduction="none")
    draws = minibatches(len(data.forget), settings.batch, settings.generator())

    def loss() -> Tensor:
        at = next(draws)
        x, y = data.forget.batch(at)
        return preference(-nn.functional.cross_entropy(model(x), y, reduction="none"), before[at], settings.strength)

    return descend(model.parameters(), loss, settings)


def preference(now: Tensor, before: Tensor, beta: float) -> Tensor:
    """The loss of log-probabilities (b,) now and before."""
    return torch.mean(2 / beta * nn.functional.softplus(beta * (now - before)))
