"""The head: the last linear layer, found by running the model and proved by replaying its logits.

A 1x1 convolution on pooled features is a linear layer too: its weight (c, d, 1, 1) is W with two dimensions of one element.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from imu_cli.errors import RefusedError
from imu_cli.models.batches import WORDS, Batch, logits_in
from imu_cli.models.checkpoint import DTYPES

PRECISIONS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Dtype of what a backbone computes, by the names that options and files have for what it computes in."""
TF32_TOLERANCE = 4e-3
"""The same in TF32, whose mantissa is float16's: emulated, a ResNet-18, a ResNet-20 and a ViT are off by up to 0.0009."""


@dataclass(frozen=True)
class Head:
    """A linear head that was found and replayed.

    Attributes:
        module: its path in the model.
        matrix: W (c, d+1) float64, the bias as last column where there is one; (c, d) otherwise.
        tensors: names of its weight and, if it has one, its bias in the checkpoint file.
        dtype: the weight's dtype in the file, as safetensors names it.
        bias_dtype: the bias's, "" without a bias.
        source: where the choice came from.
        replay_error: largest |h Wᵀ + b − logits| relative to the largest |logit| seen so far.
        trailing: dimensions of one element that the weight has in the file after (c, d): (1, 1) for a convolution.
        writes: whether it is a language model's, with a row for every word; ``matrix`` is then float32 and the model's own memory.
        tied: the model's other name of its weight, such as the embedding's; empty where it is its own.
        scale, cap: logits are cap · tanh(scale · W h / cap), or scale · W h without a cap; only a language model's have them.
    """

    module: str
    matrix: Tensor = field(repr=False)
    tensors: tuple[str, ...]
    dtype: str
    bias_dtype: str
    source: str
    replay_error: float
    trailing: tuple[int, ...] = ()
    writes: bool = False
    tied: str = ""
    scale: float = 1.0
    cap: float | None = None

    @property
    def embeds(self) -> bool:
        """Whether there are no classes: what enters it is the embedding of a model without a head (``models.embedding``)."""
        return not self.tensors

    @property
    def bias(self) -> bool:
        """Whether the head has a bias, the last column of ``matrix``."""
        return bool(self.bias_dtype)

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return len(self.matrix)

    def rounded(self, matrix: Tensor) -> Tensor:
        """The values that the file's dtypes can hold, as float64: what the written checkpoint will compute with."""
        weight = matrix[:, : matrix.shape[1] - self.bias].to(DTYPES[self.dtype]).to(matrix.dtype)
        if not self.bias:
            return weight
        return torch.cat([weight, matrix[:, -1:].to(DTYPES[self.bias_dtype]).to(matrix.dtype)], dim=1)

    def parts(self, matrix: Tensor) -> dict[str, Tensor]:
        """The file's tensors for this matrix, by name and in the file's shapes."""
        weight = matrix[:, : matrix.shape[1] - self.bias]
        parts = (weight.reshape(*weight.shape, *self.trailing), matrix[:, -1])
        return dict(zip(self.tensors, parts, strict=False))

    def with_matrix(self, matrix: Tensor) -> "Head":
        """The same head with other values."""
        return replace(self, matrix=matrix)


def logits_of(output: Any) -> Tensor:
    """The (n, c) logits in a model's output: the tensor itself, its ``logits`` field, or the value under that key.

    Raises:
        RefusedError: anything else.
    """
    found = logits_in(output)
    if isinstance(found, Tensor) and found.ndim == 1:
        raise RefusedError(
            "model: returned one number for a sample, as a regression or a yes-or-no head of one sigmoid does; imu changes heads "
            "that choose between classes, with one logit for each"
        )
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise RefusedError(
            f"model: returned {in_words(found)}, not one (samples, classes) tensor of logits; this is not a classifier, "
            "or it returns more than logits: then name a factory of your own that returns them alone (--arch file.py:factory)"
        )
    return found


def in_words(output: Any) -> str:
    """What a model returned, by shape or kind."""
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(str, output)) or 'nothing in it'}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {', '.join(map(in_words, output)) or 'nothing'}"
    return type(output).__name__


def rows_of(features: Tensor) -> Tensor | None:
    """What enters a head as (n, d), from (n, d), (n, d, 1, 1) or (n, 1, d); None where it is more than a vector each."""
    return features.flatten(1) if features.ndim > 1 and features[0].numel() == max(features.shape[1:]) else None


@contextmanager
def hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Hooks that were registered hold while the context lasts, and are taken off at its end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Tap:
    """One call of a head: what went in, and what came out of it."""

    h: Tensor
    made: Tensor

    def rows(self, logits: Tensor, batch: Batch | None = None) -> Tensor | None:
        """What the logits (n, c) were made from, as (n, d); None where that is no row of what went in.

        A head that runs on every token of a text (n, t, d) gives the logits at one of them, the last or the first: which it is
        shows in what came out. Two places that both fit have the same features, or it cannot be told. Of a ``batch`` of words they are
        those at the words.
        """
        if isinstance(batch, dict) and WORDS in batch:
            return self._at(batch[WORDS], logits)
        if self.h.ndim != 3 or rows_of(self.h) is not None or self.made.shape[::2] != logits.shape:
            return rows_of(self.h)
        wide, wanted = self.made.to(logits.dtype), logits[:, None]
        fits = ((wide == wanted) | (wide.isnan() & wanted.isnan())).all(dim=2)
        if not bool(fits.any(dim=1).all()):
            return None
        rows = torch.arange(len(logits), device=fits.device)
        chosen = self.h[rows, fits.int().argmax(dim=1)]
        apart = (self.h - chosen[:, None]).abs().amax(dim=2) > ALIKE * chosen.abs().amax(dim=1, keepdim=True)
        return None if bool((fits & apart).any()) else chosen

    def _at(self, words: Tensor, logits: Tensor) -> Tensor | None:
        """Rows of words (n, 2); None where their logits are not what came out there."""
        if self.h.ndim != 3 or self.made.shape[2:] != logits.shape[1:]:
            return None
        at = (words[:, 0], words[:, 1])
        same = self.made[at].to(logits.dtype)
        return self.h[at] if bool(((same == logits) | (same.isnan() & logits.isnan())).all()) else None


ALIKE = 1e-4
"""Largest difference, relative to the largest number, of features that count as the same."""


@contextmanager
def tapped(module: nn.Module) -> Iterator[list[Tap]]:
    """The calls of the module while the context lasts, detached."""
    seen: list[Tap] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], made: Tensor) -> None:
        # A small copy where it is looked at: what acts on it in place afterwards must not hide.
        seen.append(Tap(inputs[0].detach(), made.detach().clone() if made.ndim == 3 else made.detach()))

    with hooked([module.register_forward_hook(keep)]):
        yield seen
