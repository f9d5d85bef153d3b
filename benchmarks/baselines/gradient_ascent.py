"""Gradient ascent (NegGrad): raise the loss of what has to go.

    L = − mean_{D_f} ℓ(x, y)

Source: Golatkar et al. 2020 (arXiv 1911.04933), Thudi et al. 2022 (arXiv 2109.13398). Needs neither retain data nor a
reference. Defaults of the papers: the learning rate of training, a few epochs; here rate and steps are searched.
"""

from torch import Tensor, nn

from .training import Data, Settings, Steps, descend, minibatches


def unlearn(model: nn.Module, data: Data, settings: Settings) -> Steps:
    """Ascend on minibatches of the forget set."""
    draws = minibatches(len(data.forget), settings.batch, settings.generator())

    def loss() -> Tensor:
        x, y = data.forget.batch(next(draws))
        return -nn.functional.cross_entropy(model(x), y)

    return descend(model.parameters(), loss, settings)
