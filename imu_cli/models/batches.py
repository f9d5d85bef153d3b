"""What a model is called with: one tensor, as an image classifier takes it, or several by name, as a text classifier does."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Batch = Tensor | dict[str, Tensor]
"""Samples together: a tensor (n, …), or tensors (n, …) by the names of the model's arguments.

Where samples are words, those are tensors (b, …) of the sentences that the words stand in, and ``WORDS`` (n, 2) holds the sentence and
the token of each, sentences in the order in which they first come.
"""
WORDS = "words"
ALONE = "ids"
"""The name of token ids in a batch of words for a model that takes them by position."""


def call(model: nn.Module, batch: Batch) -> Any:
    """The model's output for a batch, whatever kind of sample it holds; of words the logits (n, c) of each."""
    if not isinstance(batch, dict):
        return model(batch)
    given = {name: tensor for name, tensor in batch.items() if name != WORDS}
    made = model(given.pop(ALONE), **given) if ALONE in given else model(**given)
    return at_words(made, batch[WORDS]) if WORDS in batch else made


def logits_in(output: Any) -> Any:
    """A model's output itself, its ``logits`` field, or the value under that key."""
    return output.get("logits", output) if isinstance(output, Mapping) else getattr(output, "logits", output)


def at_words(output: Any, words: Tensor) -> Any:
    """The logits (n, c) of words in a model's output of (b, t, c) for their sentences; another output as it is."""
    found = logits_in(output)
    return found[words[:, 0], words[:, 1]] if isinstance(found, Tensor) and found.ndim == 3 else output


def tensors(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, the one that stands for it first: ``input_ids`` of texts."""
    return list(batch.values()) if isinstance(batch, dict) else [batch]


def each(batch: Batch, made: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with another tensor in place of each."""
    return {name: made(tensor) for name, tensor in batch.items()} if isinstance(batch, dict) else made(batch)


def count(batch: Batch) -> int:
    """Samples in a batch."""
    return len(batch[WORDS]) if isinstance(batch, dict) and WORDS in batch else len(tensors(batch)[0])


def word(batch: Batch) -> str:
    """What one of its samples is called in a message: token ids are whole numbers, images are not."""
    tensor = tensors(batch)[0]
    return "image" if tensor.is_floating_point() or tensor.ndim > 2 else "text"


def first(batch: Batch, most: int) -> Batch:
    """The first samples of a batch, at most so many."""
    return part(batch, slice(most))


def part(batch: Batch, rows: slice) -> Batch:
    """Some samples of a batch that stand one after the other; of words with the sentences that they stand in."""
    if not (isinstance(batch, dict) and WORDS in batch):
        return each(batch, lambda tensor: tensor[rows])
    words = batch[WORDS][rows]
    of, at = torch.unique(words[:, 0], return_inverse=True)
    made = {name: tensor[of] for name, tensor in batch.items() if name != WORDS}
    return {**made, WORDS: torch.stack([at, words[:, 1]], dim=1)}


def twice(batch: Batch) -> Batch:
    """Every sample, and every one again."""
    made = each(batch, lambda tensor: torch.cat([tensor, tensor]))
    if isinstance(made, dict) and isinstance(batch, dict) and WORDS in batch:
        made[WORDS][len(batch[WORDS]) :, 0] += len(tensors(batch)[0])  # the second time in the sentences' second copies
    return made


def halves(batch: Batch) -> list[Batch]:
    """A batch of two samples or more, as two."""
    middle = -(-count(batch) // 2)
    return [first(batch, middle), part(batch, slice(middle, None))]
