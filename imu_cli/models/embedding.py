"""Models without classes: an image becomes a vector, the model's output in ``eval()`` or that of a module inside it.

Where a classifier has a head, such a model has a head without rows: what enters it is the embedding, no tensor is its own, and nothing
is replayed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli.errors import ImuError, RefusedError, nearest
from imu_cli.models.architecture import Loaded
from imu_cli.models.arithmetic import float32_as
from imu_cli.models.batches import Batch, call, count
from imu_cli.models.head import Head, hooked, in_words, rows_of

OUTPUT = ""
"""The path of the module whose output is the model's."""
NAMED = ("image_embeds", "embeddings", "pooler_output")
"""What transformers' backbones call a vector an image, by preference."""


def is_said(loaded: Loaded) -> bool:
    """Whether the model's own files say that it has no classes: timm's ``num_classes: 0``, a backbone of transformers."""
    built = loaded.architecture
    if built.name.startswith("timm:"):
        return built.arguments.get("num_classes") == 0
    return built.name.startswith("hf:") and "For" not in type(loaded.model).__name__ and loaded.takes != "record"


def vector_of(output: Any) -> Tensor | None:
    """The vectors (n, d) in an output: the tensor itself, pooled to one place an image, or the field that holds them; None without any."""
    found = output
    if not isinstance(output, Tensor):
        get = output.get if isinstance(output, Mapping) else lambda name: getattr(output, name, None)
        found = next((value for value in map(get, NAMED) if isinstance(value, Tensor)), None)
    if not isinstance(found, Tensor) or found.ndim < 2 or not found.is_floating_point() or not len(found):
        return None
    return rows_of(found)


@contextmanager
def gathered(module: nn.Module) -> Iterator[list[Any]]:
    """What the module returns while the context lasts."""
    seen: list[Any] = []
    with hooked([module.register_forward_hook(lambda _, __, output: seen.append(output))]):
        yield seen


def embed(model: nn.Module, path: str, images: Batch) -> Tensor:
    """The embeddings (n, d) of a batch: the output of the module at ``path``, which runs once.

    Raises:
        ImuError: there is no such module.
        RefusedError: it does not run once, or returns no vector an image.
    """
    with gathered(_module(model, path)) as seen:
        call(model, images)
    where = f"--embedding {path}" if path else "model"
    if len(seen) != 1:
        raise RefusedError(
            f"{where}: runs {len(seen)} times in one forward pass; name a module that runs once, with --embedding"
        )
    found = vector_of(seen[0])
    if found is None or len(found) != count(images):
        raise RefusedError(
            f"{where}: returned {in_words(seen[0])} for {count(images)} samples, not one vector each; name the module whose output is, "
            "with --embedding (its pooling layer, for example)"
        )
    return found


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in model.named_modules() if name]
        some = nearest(path, names) or f"; its last are {', '.join(names[-5:])}"
        raise ImuError(f"--embedding {path}: the model has no such module{some}") from None


def output(path: str) -> Callable[[nn.Module, Batch], Tensor]:
    """``embed`` of one module."""
    return lambda model, images: embed(model, path, images)


def find_embedding(model: nn.Module, images: Batch, path: str | None = None) -> Head:
    """The head without rows of a model, by running it on a few images.

    Args:
        model: in ``eval()`` mode, on the images' device.
        images: a preprocessed batch.
        path: ``--embedding``; the model's output if None.

    Raises:
        ImuError: there is no such module, or its vectors are not finite, or all alike whatever the image.
        RefusedError: it returns no vector an image.
    """
    with torch.inference_mode(), float32_as("ieee"):
        found = embed(model, path or OUTPUT, images)
    finite = torch.isfinite(found).all(dim=1)
    if not bool(finite.any()):
        raise ImuError(
            "embeddings: not finite for any image that was tried; check the preprocessing and the model's weights"
        )
    if not bool(found[finite].any()):
        raise ImuError("embeddings: 0 for every image that was tried; check --embedding and the model's weights")
    source = "--embedding" if path else "the model's output"
    return Head(path or OUTPUT, torch.zeros(0, found.shape[1], dtype=torch.float64), (), "", "", source, 0.0)
