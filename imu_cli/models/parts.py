"""What each process holds of the weights that move: all of them, or its rows of each (``sharding``).

The arithmetic of a training goes through here wherever it needs more of a weight than its own numbers: norms, sums, gradients.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Join = Callable[[list[Tensor]], None]
"""Gives every process the sum of all processes' tensors, in place."""


class Gradients:
    """Gradients of a loss, summed over the portions of a batch that run one after the other."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = parameters
        self.summed = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    def add(self, made: Tensor, along: Tensor | None = None) -> None:
        """Those of ``made``, which a part of the network gave; ``along`` is the loss's gradient with respect to it, of a scalar 1."""
        found = torch.autograd.grad(made, list(self.parameters.values()), grad_outputs=along, allow_unused=True)
        for whole, gradient in zip(self.summed.values(), found, strict=True):
            if gradient is not None:
                whole.add_(gradient)

    def add_to(self, name: str, gradient: Tensor) -> None:
        """A weight's own, in the shape of all of it."""
        self.summed[name].add_(gradient)

    def over_processes(self, loss: float, join: Join) -> tuple[dict[str, Tensor], float]:
        """They and the loss, summed over processes: of each weight the part that this process holds."""
        whole = next(iter(self.summed.values())).new_tensor([loss])
        join([*self.summed.values(), whole])
        return self.summed, float(whole)


class Parts:
    """All of every weight is in this process, as in any other that there is."""

    count = 1

    def sums(self, values: Tensor) -> Tensor:
        """Sums (k,) over what this process holds as sums over all."""
        return values

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Norms (k,) of tensors of which this process holds a part each."""
        return torch.stack([torch.linalg.vector_norm(each) for each in tensors])

    def roots(self, tensors: Sequence[Tensor]) -> list[float]:
        """Root mean squares of tensors of which this process holds a part each."""
        return [float(each.detach().float().square().mean().sqrt()) for each in tensors]

    def rows(self, n: int) -> slice:
        """Of n rows those that this process holds."""
        return slice(0, n)

    def joined(self, own: Tensor, n: int) -> Tensor:
        """All rows (n, …) of a tensor of which this process holds its own."""
        return own

    def whole(self, name: str, own: Tensor) -> Tensor:
        """All of the weight of this name, of which ``own`` is held."""
        return own

    def gradients(self, parameters: Mapping[str, Tensor]) -> Gradients:
        """What gradients of a batch are summed in."""
        return Gradients(parameters)
