"""Images decoded ahead of the model: batches in order, made by threads, or beside an accelerator by processes.

Pillow's decoders work beside each other in threads, but what Python itself does to each image does not: small images
come about twice as quickly from processes. Where the model runs on the same cores, that brings nothing, since they
are busy anyway (benchmarks/images.py). Images of an array that are only copied come from threads everywhere.
"""

import contextlib
import itertools
import mmap
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imu_cli.errors import ImuError, InvalidRowsError, RefusedError
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images.steps import Preprocessing

ROWS_A_TASK = 16
"""Images that a worker takes at a time: handing over single small images would cost as much as decoding them."""
PROCESSES_FROM = 512
"""Images from which processes are started: they cost about a tenth of a second."""

Piece = NDArray[Any]
"""Shaped images of one task, (rows, height, width, channels)."""


def workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _by_processes(images: int, beside: bool) -> bool:
    """Whether processes decode: many images beside an accelerator, where they can be forked (a spawned one imports torch)."""
    return beside and images >= PROCESSES_FROM and sys.platform == "linux"


def _as_they_lie(images: SampleSet, preprocess: Preprocessing) -> bool:
    """Whether the images lie in an array and are copied from there, which is no work for processes."""
    stored = images.arrays(range(min(1, len(images))))
    return stored is not None and preprocess.takes(stored)


@dataclass(frozen=True)
class Spoilt:
    """What a task answers that has images which cannot be had: what is wrong with each."""

    problems: tuple[str, ...]


Answer = Piece | Spoilt | ImuError
"""What a worker hands back. An error is an answer: raised in another process it would come back as a traceback."""


def _shaped(images: SampleSet, rows: Sequence[int], preprocess: Preprocessing) -> Piece | Spoilt:
    stored = images.arrays(rows)
    if stored is not None and preprocess.takes(stored):
        return stored
    arrays, problems = [], []
    for row in rows:
        try:
            arrays.append(_one(images, row, preprocess))
        except RefusedError:
            raise
        except ImuError as error:
            problems.append(str(error))
    if problems:
        return Spoilt(tuple(problems))
    for row, array in zip(rows, arrays, strict=True):
        _refuse_shape(images, row, array.shape, arrays[0].shape)
    return np.stack(arrays)


def _one(images: SampleSet, row: int, preprocess: Preprocessing) -> NDArray[Any]:
    image = images.read(row)
    try:
        return preprocess.shape(image)
    except RefusedError:
        raise
    except ImuError as error:
        raise ImuError(f"{images.where(row)}: {error}") from error
    except Exception as error:  # libraries raise anything where a mode or a size does not suit them
        raise ImuError(
            f"{images.where(row)}: cannot be preprocessed (mode {image.mode}, {image.width} x {image.height}: {error}); "
            "convert it to RGB, or leave it out"
        ) from error


def _refuse_shape(images: SampleSet, row: int, shape: tuple[int, ...], first: tuple[int, ...]) -> None:
    if shape != first:
        this, others = ((channels, height, width) for height, width, channels in (shape, first))
        raise ImuError(
            f"{images.where(row)}: is {this} after preprocessing, others are {others}; add size and crop to the preprocessing"
        )


class Slots:
    """Memory that forked processes put their answers into: through a pipe, large images took longer than decoding them.

    A mapping of its own, since a container has little of what is called shared memory. The answer by ``number`` is there
    until that which comes so many numbers later is made.
    """

    def __init__(self, one: Piece, count: int) -> None:
        shape = (count, ROWS_A_TASK, *one.shape[1:])
        self.pieces = np.frombuffer(mmap.mmap(-1, int(np.prod(shape)) * one.itemsize), one.dtype).reshape(shape)

    def put(self, number: int, piece: Piece) -> Any:
        """What is handed back in place of a piece: how many images of it are in the slot, or itself where it does not fit."""
        if piece.dtype != self.pieces.dtype or piece.shape[1:] != self.pieces.shape[2:]:
            return piece
        self.pieces[number % len(self.pieces), : len(piece)] = piece
        return len(piece)

    def get(self, number: int, answer: Any) -> Any:
        """What was handed back as the answer that it stands for."""
        return self.pieces[number % len(self.pieces), :answer] if isinstance(answer, int) else answer


class Tasks:
    """Answers by number, for a loader's processes."""

    slots: Slots | None = None

    def __init__(self, images: SampleSet, preprocess: Preprocessing, tasks: Sequence[Sequence[int]]) -> None:
        self.images, self.preprocess, self.tasks = images, preprocess, tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: int) -> Answer:
        try:
            found = _shaped(self.images, self.tasks[number], self.preprocess)
        except ImuError as error:
            return error
        return found if self.slots is None or isinstance(found, Spoilt) else self.slots.put(number, found)

    def share(self, count: int) -> None:
        """Have the processes that are forked from now on put answers into so many slots, if the first image says of what size."""
        self.slots = None
        with contextlib.suppress(ImuError, OSError):  # the image is named in its turn; without room there is the pipe
            one = _shaped(self.images, self.tasks[0][:1], self.preprocess)
            self.slots = None if isinstance(one, Spoilt) else Slots(one, count)


def _same(answer: Any) -> Any:
    return answer


def from_processes(tasks: Tasks, count: int, ahead: int) -> Iterator[Answer]:
    """The answers in order, from so many forked processes, so many of them made ahead.

    An answer is good until half as many further ones were taken: then another one is in its place.
    """
    from torch.utils.data import DataLoader

    each = max(2, -(-ahead // count))
    tasks.share(each * count + ahead // 2 + 1)
    # Arrays, not tensors: those would go through shared memory, of which a container has little.
    loader: DataLoader[Any] = DataLoader(
        tasks,  # type: ignore[arg-type]
        batch_size=None, collate_fn=_same, num_workers=count, prefetch_factor=each,
        multiprocessing_context="fork",
    )  # fmt: skip
    with warnings.catch_warnings():
        # Forking beside threads is safe here: the children only decode, on one thread each.
        warnings.simplefilter("ignore", DeprecationWarning)
        answers = iter(loader)
    for number, answer in enumerate(answers):
        yield answer if tasks.slots is None else tasks.slots.get(number, answer)


def from_threads(tasks: Tasks, count: int, ahead: int) -> Iterator[Answer]:
    """The answers in order, from so many threads, so many of them made ahead."""
    pool, numbers = ThreadPoolExecutor(count), iter(range(len(tasks)))
    try:
        pending = [pool.submit(tasks.__getitem__, number) for number in itertools.islice(numbers, max(ahead, count))]
        while pending:
            answer = pending.pop(0).result()
            pending += [pool.submit(tasks.__getitem__, number) for number in itertools.islice(numbers, 1)]
            yield answer
    finally:
        # Not waited for: an iteration that was given up may be collected in one of these threads, which cannot join itself.
        pool.shutdown(wait=False, cancel_futures=True)


def _whole(answers: Iterable[Answer]) -> Iterator[Piece]:
    """The pieces up to the first image that cannot be had; then the rest is decoded only to name all of those.

    Raises:
        InvalidRowsError: images that cannot be decoded, all of the set.
        ImuError: an image of another shape, unless others could not be decoded before it.
    """
    problems: list[str] = []
    for answer in answers:
        if isinstance(answer, Spoilt):
            problems += answer.problems
        elif not problems:
            if isinstance(answer, ImuError):
                raise answer
            yield answer
    if problems:
        raise InvalidRowsError(list(dict.fromkeys(problems)))  # a set may name an image twice


def batches(
    images: SampleSet, preprocess: Preprocessing, size: int, rows: Sequence[int] | None = None, *, beside: bool = False
) -> Iterator[tuple[range, Tensor]]:
    """The images, or the given rows of them, decoded and shaped: (size, channels, height, width), channels_last, in order.

    With each batch come its places among these rows.

    About two batches are decoded ahead of the one that is asked for. ``beside``: the model runs on an accelerator, so that
    the cores are free to decode.

    Raises:
        InvalidRowsError: images cannot be decoded; all of them are named once the rest has been decoded.
        ImuError: an image's shape is not that of the others.
    """
    wanted = range(len(images)) if rows is None else rows
    places = [range(start, min(start + size, len(wanted))) for start in range(0, len(wanted), size)]
    parts = [wanted[at.start : at.stop] for at in places]
    tasks = [part[start : start + ROWS_A_TASK] for part in parts for start in range(0, len(part), ROWS_A_TASK)]
    forked = _by_processes(len(wanted), beside) and not _as_they_lie(images, preprocess)
    make = from_processes if forked else from_threads
    count = workers() if beside else max(1, workers() - 1)
    pieces = _whole(make(Tasks(images, preprocess, tasks), count, 2 * -(-size // ROWS_A_TASK)))
    first: tuple[int, ...] | None = None
    for at, part in zip(places, parts, strict=True):
        taken = list(itertools.islice(pieces, -(-len(part) // ROWS_A_TASK)))
        for number, piece in enumerate(taken):
            first = first or piece.shape[1:]
            _refuse_shape(images, part[number * ROWS_A_TASK], piece.shape[1:], first)
        yield at, _joined(taken, beside).permute(0, 3, 1, 2)


def _joined(pieces: Sequence[Piece], beside: bool) -> Tensor:
    """Pieces one after the other (n, height, width, channels), in memory that CUDA copies from while it computes, if it is there."""
    if beside and torch.cuda.is_available():
        kind = torch.from_numpy(pieces[0][:0]).dtype
        made = torch.empty(sum(map(len, pieces)), *pieces[0].shape[1:], dtype=kind, pin_memory=True)
        np.concatenate(pieces, out=made.numpy())
        return made
    return torch.from_numpy(pieces[0] if len(pieces) == 1 and not beside else np.concatenate(pieces))
