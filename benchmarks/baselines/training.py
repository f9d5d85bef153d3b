"""What the methods share: samples by rows, endless minibatches, and one loop of SGD that says after every step how far it is."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

BATCH = 128


@dataclass(frozen=True)
class Samples:
    """Some rows of a set, with the labels that they have for this purpose.

    Attributes:
        x: (N, ...) what enters the model, of the whole set; may be mapped from a file.
        rows: (n,) the rows of ``x`` that these are.
        y: (n,) labels.
        touched: rows that were read.
    """

    x: Tensor
    rows: Tensor
    y: Tensor
    touched: set[int] = field(default_factory=set, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (b, ...) and labels (b,) of some of them, by their places."""
        rows = self.rows[at]
        self.touched.update(rows.tolist())
        return self.x[rows], self.y[at]

    def all(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them in order."""
        for at in torch.arange(len(self)).split(size):
            yield self.batch(at)


@dataclass(frozen=True)
class Data:
    """What a method is given. A method takes only what its ``needs`` name.

    Attributes:
        forget: samples that go, with the labels that were trained on.
        retain: other training samples.
        unseen: samples that were not trained on (the half of the test set that chooses).
        gone: classes that go as a whole.
    """

    forget: Samples
    retain: Samples
    unseen: Samples
    gone: tuple[int, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How a method is run: the three that are searched, and the seed of its minibatches.

    Attributes:
        rate: learning rate.
        steps: minibatches.
        strength: the method's own coefficient, as its docstring says.
    """

    rate: float
    steps: int
    strength: float = 1.0
    seed: int = 0
    batch: int = BATCH

    def generator(self) -> torch.Generator:
        """Draws minibatches and labels."""
        return torch.Generator().manual_seed(self.seed)


Steps = Iterator[int]
"""Steps done so far; the model is changed in place, and may be looked at after each."""


def minibatches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Places of shuffled minibatches, epoch after epoch; the last of an epoch may be smaller."""
    while True:
        yield from torch.randperm(n, generator=generator).split(size)


def descend(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[], Tensor],
    settings: Settings,
    mask: Callable[[], None] | None = None,
    optimiser: torch.optim.Optimizer | None = None,
) -> Steps:
    """Minimise a loss that draws its own minibatch: SGD, momentum 0.9, weight decay 5e-4, a constant rate, no clipping.

    Args:
        parameters: what moves.
        loss: a scalar of a new minibatch.
        settings: rate and steps.
        mask: changes gradients before they are used.
        optimiser: in place of SGD.
    """
    moving = list(parameters)
    optimiser = optimiser or torch.optim.SGD(moving, settings.rate, momentum=0.9, weight_decay=5e-4)
    for step in range(1, settings.steps + 1):
        optimiser.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        if mask is not None:
            mask()
        optimiser.step()
        yield step


def teacher_of(model: nn.Module, samples: Samples) -> Tensor:
    """Logits (n, c) of the model as it is: what a distillation is held against, and nothing else is kept of it."""
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in samples.all()])


def other_labels(labels: Tensor, classes: int, generator: torch.Generator, gone: tuple[int, ...] = ()) -> Tensor:
    """A uniformly random label for each sample: not its own, and none that goes as a whole."""
    allowed = torch.ones(len(labels), classes)
    allowed[:, list(gone)] = 0
    allowed.scatter_(1, labels[:, None], 0)
    return torch.multinomial(allowed, 1, generator=generator).squeeze(1)
