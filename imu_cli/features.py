"""Features: what enters the head, for every image, from one batched pass of the frozen backbone."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .dataset import ImageSet
from .errors import ImuError
from .head import Head, check_replay, logits_of, replay_error, rows_of, tapped
from .preprocess import Preprocessing, stack

PROBE = 8
"""Images used to find the head and to try whether two passes agree."""

ROWS_A_TASK = 8
"""Images that a decoding thread takes at a time."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Features:
    """Features (n, d) float32 on the CPU of a set of images, in its order, and the largest replay error on the way."""

    rows: Tensor
    replay_error: float


def pick_device(wanted: str) -> torch.device:
    """``auto`` is CUDA where there is one, else Apple's GPU, else the CPU.

    Raises:
        ImuError: the wanted device is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
    if not there[wanted]:
        raise ImuError(f"--device {wanted}: not available to this torch; use --device auto or cpu")
    return torch.device(wanted)


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """The model where and how it runs fastest: on the device, convolutions in channels_last."""
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _stack(images: ImageSet, rows: Sequence[int], preprocess: Preprocessing, pool: ThreadPoolExecutor) -> Tensor:
    # A task a few rows long: handing over single small images would cost as much as decoding them.
    tasks = [rows[start : start + ROWS_A_TASK] for start in range(0, len(rows), ROWS_A_TASK)]
    parts = pool.map(lambda task: [preprocess.shape(images.read(row)) for row in task], tasks)
    arrays = [array for part in parts for array in part]
    shapes = [(array.shape[2], *array.shape[:2]) for array in arrays]
    for row, shape in zip(rows, shapes, strict=True):
        _refuse_shape(images, row, shape, shapes[0])
    return stack(arrays)


def _refuse_shape(images: ImageSet, row: int, shape: tuple[int, ...], first: tuple[int, ...]) -> None:
    if shape != first:
        raise ImuError(
            f"{images.where(row)}: is {tuple(shape)} after preprocessing, others are {tuple(first)}; "
            "add size and crop to the preprocessing"
        )


def batch(images: ImageSet, rows: Sequence[int], preprocess: Preprocessing, device: torch.device) -> Tensor:
    """Some rows as one preprocessed (n, channels, height, width) float32 batch, channels_last, on the device."""
    with ThreadPoolExecutor(1) as pool:
        return _place(_stack(images, rows, preprocess, pool), preprocess, device)


def _place(stacked: Tensor, preprocess: Preprocessing, device: torch.device) -> Tensor:
    moved = stacked.to(device, non_blocking=True)
    return preprocess.scale(moved).contiguous(memory_format=torch.channels_last)


def _batches(images: ImageSet, preprocess: Preprocessing, size: int) -> Iterator[Tensor]:
    """uint8 batches in order, the next one decoded while the caller computes on this one."""
    parts = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    workers = max(1, (os.cpu_count() or 1) - 1)
    with ThreadPoolExecutor(workers) as decoders, ThreadPoolExecutor(1) as ahead:
        pending = ahead.submit(_stack, images, parts[0], preprocess, decoders) if parts else None
        first: torch.Size | None = None
        for index in range(len(parts)):
            assert pending is not None
            stacked = pending.result()
            first = first or stacked.shape[1:]
            _refuse_shape(images, parts[index][0], stacked.shape[1:], first)
            if index + 1 < len(parts):
                pending = ahead.submit(_stack, images, parts[index + 1], preprocess, decoders)
            yield stacked


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def refuse_if_random(model: nn.Module, probe: Tensor) -> None:
    """Run the same few images twice; a model that answers differently cannot be scored.

    Raises:
        ImuError: two passes differ, or the model cannot run on such images.
    """
    try:
        with torch.inference_mode():
            first, second = logits_of(model(probe)), logits_of(model(probe))
    except ImuError:
        raise
    except Exception as error:  # models raise anything where an image does not suit them
        raise ImuError(
            f"model: cannot run on {tuple(probe.shape[1:])} {str(probe.dtype).removeprefix('torch.')} images "
            f"({_first_line(error)}); check mode, size and crop of the preprocessing, and the architecture"
        ) from error
    if not torch.allclose(first, second, rtol=0, atol=0, equal_nan=True):
        gap = float((first - second).abs().max())
        raise ImuError(
            f"model: two passes over the same {len(probe)} images differ by up to {gap:.2g} in eval() mode; "
            "its forward is random (dropout or noise that ignores eval()?), so scores would not be reproducible"
        )


def _forward(model: nn.Module, layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    with tapped(layer) as seen:
        logits = logits_of(model(images))
    h = rows_of(seen[0])
    assert h is not None, "find_head saw one feature vector an image, and all images have one shape"
    return h, logits


def _halving(model: nn.Module, layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits of a batch, in halves where the accelerator's memory does not hold it."""
    try:
        return _forward(model, layer, images)
    except torch.cuda.OutOfMemoryError:
        if len(images) == 1:
            raise ImuError("--batch-size: one image does not fit the accelerator's memory; use --device cpu") from None
        torch.cuda.empty_cache()
        parts = [_halving(model, layer, half) for half in images.chunk(2)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _refuse_not_finite(h: Tensor, images: ImageSet, start: int) -> None:
    finite = torch.isfinite(h).all(dim=1)
    if not bool(finite.all()):
        bad = start + int((~finite).nonzero()[0])
        raise ImuError(f"{images.where(bad)}: its features are not finite; check the image and the model's weights")


def extract(
    model: nn.Module,
    head: Head,
    images: ImageSet,
    preprocess: Preprocessing,
    *,
    device: torch.device,
    batch_size: int,
    progress: Progress = lambda count: None,
) -> Features:
    """Features of all images in one batched pass in ``eval()`` mode; every batch's logits are replayed.

    Raises:
        ImuError: an image cannot be decoded, or features are not finite.
        RefusedError: the replay check fails on some batch.
    """
    layer = model.get_submodule(head.module)
    rows: list[Tensor] = []
    worst, checked = 0.0, head
    with torch.inference_mode():
        for stacked in _batches(images, preprocess, batch_size):
            h, logits = _halving(model, layer, _place(stacked, preprocess, device))
            _refuse_not_finite(h, images, sum(len(part) for part in rows))
            checked = check_replay(checked, replay_error(h, head.matrix, head.bias, logits), logits.dtype)
            worst = max(worst, checked.replay_error)
            rows.append(h.to("cpu", torch.float32))
            progress(len(stacked))
    features = torch.cat(rows) if rows else torch.empty(0, head.matrix.shape[1] - head.bias)
    return Features(features, worst)
