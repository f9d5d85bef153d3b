"""NegGrad+: descend on retain data while ascending on what has to go.

    L = β · mean_R ℓ(x, y) − (1 − β) · mean_{D_f} ℓ(x, y)

Source: Kurmanji et al. 2023 (arXiv 2302.09880), which calls β α; its values lie between 0.9 and 0.9999. Needs retain data. ``strength`` is β.
"""

from torch import Tensor, nn

from .training import Data, Settings, Steps, descend, minibatches


def unlearn(model: nn.Module, data: Data, settings: Settings) -> Steps:
    """A minibatch of either set a step."""
    generator, beta = settings.generator(), settings.strength
    forget = minibatches(len(data.forget), settings.batch, generator)
    retain = minibatches(len(data.retain), settings.batch, generator)

    def loss() -> Tensor:
        (x, y), (xr, yr) = data.forget.batch(next(forget)), data.retain.batch(next(retain))
        return beta * nn.functional.cross_entropy(model(xr), yr) - (1 - beta) * nn.functional.cross_entropy(model(x), y)

    return descend(model.parameters(), loss, settings)
