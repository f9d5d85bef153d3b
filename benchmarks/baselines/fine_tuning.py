"""Fine-tuning: go on training on retain data alone, and let the rest be forgotten by itself.

    L = mean_R ℓ(x, y)

Source: the usual baseline (Golatkar et al. 2020, arXiv 1911.04933). Needs retain data.
"""

from torch import Tensor, nn

from .training import Data, Settings, Steps, descend, minibatches


def unlearn(model: nn.Module, data: Data, settings: Settings) -> Steps:
    """Descend on minibatches of retain data."""
    draws = minibatches(len(data.retain), settings.batch, settings.generator())

    def loss() -> Tensor:
        x, y = data.retain.batch(next(draws))
        return nn.functional.cross_entropy(model(x), y)

    return descend(model.parameters(), loss, settings)
