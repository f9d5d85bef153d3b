"""What a model is called with: one tensor, as an image classifier takes it, or several by name, as a text classifier does."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Batch = Tensor | dict[str, Tensor]
"""Samples together: a tensor (n, …), or tensors (n, …) by the names of the model's arguments."""


def call(model: nn.Module, batch: Batch) -> Any:
    """The model's output for a batch, whatever kind of sample it holds."""
    return model(**batch) if isinstance(batch, dict) else model(batch)


def tensors(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, the one that stands for it first: ``input_ids`` of texts."""
    return list(batch.values()) if isinstance(batch, dict) else [batch]


def each(batch: Batch, made: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with another tensor in place of each."""
    return {name: made(tensor) for name, tensor in batch.items()} if isinstance(batch, dict) else made(batch)


def count(batch: Batch) -> int:
    """Samples in a batch."""
    return len(tensors(batch)[0])


def word(batch: Batch) -> str:
    """What one of its samples is called in a message: token ids are whole numbers, images are not."""
    tensor = tensors(batch)[0]
    return "image" if tensor.is_floating_point() or tensor.ndim > 2 else "text"


def first(batch: Batch, most: int) -> Batch:
    """The first samples of a batch, at most so many."""
    return each(batch, lambda tensor: tensor[:most])


def halves(batch: Batch) -> list[Batch]:
    """A batch of two samples or more, as two."""
    middle = -(-count(batch) // 2)
    return [first(batch, middle), each(batch, lambda tensor: tensor[middle:])]
