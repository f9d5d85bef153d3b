"""Random labels: train what has to go on labels that are not its own.

    L = mean_{D_f} ℓ(x, y'),   y' uniform over the labels that are not y (nor a class that goes)

Source: Golatkar et al. 2020 (arXiv 1911.04933); Graves et al. 2021 (arXiv 2010.10981), the first phase of amnesiac unlearning. Needs
neither retain data nor a reference (with retain data it is the second half of ``salun``). Labels are drawn once.
"""

from torch import Tensor, nn

from .training import Data, Settings, Steps, descend, minibatches, other_labels


def unlearn(model: nn.Module, data: Data, settings: Settings) -> Steps:
    """Descend on minibatches of the forget set with their new labels."""
    generator = settings.generator()
    with_labels = other_labels(data.forget.y, classes_of(model, data), generator, data.gone)
    draws = minibatches(len(data.forget), settings.batch, generator)

    def loss() -> Tensor:
        at = next(draws)
        return nn.functional.cross_entropy(model(data.forget.batch(at)[0]), with_labels[at])

    return descend(model.parameters(), loss, settings)


def classes_of(model: nn.Module, data: Data) -> int:
    """Logits of the model, seen on one sample."""
    return int(model(data.forget.x[data.forget.rows[:1]]).shape[1])
