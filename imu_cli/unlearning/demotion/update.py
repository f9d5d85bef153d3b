"""Adam in units of each layer: one learning rate for convolutions and transformers, since a step is a share of the weights' own size."""

from collections.abc import Mapping

import torch
from torch import Tensor

from imu_cli.models.parts import Parts
from imu_cli.unlearning.demotion.preconditioning import Bend

FIRST, SECOND = 0.9, 0.999
"""Decay of Adam's moments (arXiv 1412.6980)."""
LEAST = 1e-3
"""Size of weights below which they are taken to be so large: a layer of zeros could not move otherwise."""
EPSILON = 1e-8


class RelativeAdam:
    """Adam whose step is a share of the root mean square that a layer's weights had at the start.

    A layer's bias, and the shift of a normalisation, move in units of the layer's weight. Gradients are clipped together at a norm
    of ``clip``. There is no weight decay: the weights are not to be forgotten, only what they say of some samples. ``bends`` turn the steps
    of some weights, by their names; ``parts`` is what this process holds of the weights.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        clip: float = 1.0,
        bends: Mapping[str, Bend] | None = None,
        parts: Parts | None = None,
    ) -> None:
        self.parameters, self.clip, self.number = dict(parameters), clip, 0
        self.bends, self.parts = dict(bends or {}), parts or Parts()
        self.first = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self.second = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self.scale = self._scales()

    def _scales(self) -> dict[str, float]:
        own = dict(zip(self.parameters, self.parts.roots(list(self.parameters.values())), strict=True))
        layers: dict[str, float] = {}
        for name, size in own.items():
            layer = name.rpartition(".")[0]
            layers[layer] = max(layers.get(layer, LEAST), size)
        return {
            name: max(own[name], LEAST) if self.parameters[name].ndim > 1 else layers[name.rpartition(".")[0]]
            for name in own
        }

    @torch.no_grad()
    def __call__(self, gradients: Mapping[str, Tensor], learning_rate: float) -> None:
        """One step down the gradients, by names."""
        self.number += 1
        names = list(self.parameters)
        given: list[Tensor] = [gradients[name] for name in names]
        norm = torch.linalg.vector_norm(self.parts.norms(given))
        given = list(torch._foreach_mul(given, (self.clip / (norm + 1e-6)).clamp(max=1.0)))
        first, second = [self.first[name] for name in names], [self.second[name] for name in names]
        torch._foreach_lerp_(first, given, 1 - FIRST)
        torch._foreach_mul_(second, SECOND)
        torch._foreach_addcmul_(second, given, given, 1 - SECOND)
        spread = torch._foreach_sqrt(torch._foreach_div(second, 1 - SECOND**self.number))
        torch._foreach_add_(spread, EPSILON)
        step = torch._foreach_div(torch._foreach_div(first, 1 - FIRST**self.number), spread)
        torch._foreach_mul_(step, [-learning_rate * self.scale[name] for name in names])
        turned = [
            self.bends[name](each) if name in self.bends else each for name, each in zip(names, step, strict=True)
        ]
        torch._foreach_add_([self.parameters[name] for name in names], turned)

    def state(self) -> dict[str, Tensor]:
        """What a run goes on from: moments by name, and the number of steps."""
        made = {f"first.{name}": value for name, value in self.first.items()}
        made |= {f"second.{name}": value for name, value in self.second.items()}
        made |= {
            "steps": torch.tensor([self.number]),
            "scales": torch.tensor([self.scale[name] for name in self.parameters], dtype=torch.float64),
        }
        return made

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state``."""
        for name in self.parameters:
            self.first[name].copy_(state[f"first.{name}"])
            self.second[name].copy_(state[f"second.{name}"])
        self.number = int(state["steps"])
        self.scale = dict(zip(self.parameters, state["scales"].tolist(), strict=True))
