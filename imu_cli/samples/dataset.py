"""Rows of labelled samples: how a row is read, named, and told apart from others, whatever kind of sample it is.

Nothing here imports torch: ``imu select`` and the validation of manifests stay fast.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from imu_cli import signals
from imu_cli.errors import ImuError, StoppedError
from imu_cli.samples.packing import Digests, as_array, take

UNKNOWN = -1
"""The label of a row whose class is not known."""
_DIGEST_CHUNK = 256
_QUICK = 1e-4
"""Seconds to read and hash one, up to which more threads only get into each other's way."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Kind:
    """What samples of a kind are called in messages, one and several."""

    one: str
    many: str


IMAGES, TEXTS, FEATURES = Kind("image", "images"), Kind("text", "texts"), Kind("row of features", "features")
RECORDS = Kind("record", "records")
"""What a language model answers: a prompt and its completion, or a conversation."""
WORDS = Kind("word", "words")
"""What a token classifier has a class for: a word of a sentence."""
TOKENIZED = (TEXTS, RECORDS, WORDS)
"""Kinds that a tokenizer takes."""


class Store(Protocol):
    """What holds the samples of a set, by position, and hands them to a model's input step; one class a kind.

    ``samples.images.stores`` has images, in files or in an array; ``samples.vectors`` features that a file holds;
    ``samples.texts.stores`` the texts of a file.
    """

    @property
    def kind(self) -> Kind:
        """What its samples are."""

    @property
    def root(self) -> Path | None:
        """The folder, links resolved, that the samples' names are relative to; None where they are rows of something."""

    @property
    def digests(self) -> Digests:
        """sha256 by position, filled as they are asked for."""

    def where(self, at: int) -> str:
        """The sample as the user would name it."""

    def location(self, at: int) -> str:
        """The same for two samples if and only if they are one."""

    def size(self, at: int) -> int:
        """Bytes stored for it."""

    def stored(self, at: int) -> bytes:
        """Those bytes."""

    def decode(self, at: int) -> Any:
        """The whole sample as the input step of its kind takes it.

        Raises:
            ImuError: it cannot be had; no place in the message.
            FileNotFoundError: it is gone.
        """

    def arrays(self, at: NDArray[np.int64]) -> NDArray[Any] | None:
        """Several samples (k, …) that lie in an array as they are; None where they have to be decoded one by one."""


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Labelled samples in a fixed order; reading is thread-safe and nothing is decoded before it is asked for.

    Attributes:
        source: the data set as the user named it.
        names: what a manifest's locator would hold: ``airplane/00029.png``, or ``29`` for array data.
        labels: a class id for each row, in the order of ``classes``; ``UNKNOWN`` where there is none.
        classes: names that the source knows for its ids, or None if labels are bare ids.
        store: what holds the samples.
        positions: each row's place in ``store``.
        class_order: where the order of ``classes`` comes from, if it is one that a model is trained with.
        columns: text about each row under a name: ``coarse`` of CIFAR-100, ``id`` and ``group`` of a manifest.
        origins: what named each row, such as ``forget.csv:17``.
        notes: what a user should know of how the source was read.
    """

    source: str
    names: Sequence[str]
    labels: Sequence[int]
    classes: tuple[str, ...] | None
    store: Store
    positions: Sequence[int]
    class_order: str | None = None
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    origins: Sequence[str] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)

    def class_text(self, own: int) -> str:
        """The name of a class by its id in this set, or the id as text where classes have no names."""
        return str(own) if self.classes is None else self.classes[own]

    def rows_by_location(self) -> dict[str, int]:
        """The first row at each place."""
        return {self.location(row): row for row in reversed(range(len(self)))}

    @property
    def kind(self) -> Kind:
        """What the samples are."""
        return self.store.kind

    @property
    def root(self) -> Path | None:
        """The folder that names are relative to, links resolved; None for rows of arrays and of files of features."""
        return self.store.root

    def where(self, row: int) -> str:
        """The row for a message: its manifest line if it has one, and the file or array index."""
        shown = self.store.where(self.positions[row])
        return f"{self.origins[row]}: {shown}" if self.origins is not None else shown

    def named_by(self, row: int) -> str:
        """What gave the row its label: the line of a list, else the whole source."""
        if self.origins is not None:
            return self.origins[row]
        return self.where(row) if self.kind in TOKENIZED else self.source

    def location(self, row: int) -> str:
        """The same for two rows if and only if they are one file, or one index of one array."""
        return self.store.location(self.positions[row])

    def size(self, row: int) -> int:
        """Bytes stored for the row.

        Raises:
            ImuError: the file is gone.
        """
        return self._reached(row, self.store.size)

    def stored(self, row: int) -> bytes:
        """The file's bytes, or those of an array's row.

        Raises:
            ImuError: the file cannot be read.
        """
        return self._reached(row, self.store.stored)

    def read(self, row: int) -> Any:
        """The sample, whole, as the input step of its kind takes it: an image decoded.

        Raises:
            ImuError: missing, or not to be had for a reason of its kind; names row and file.
        """
        try:
            return self.store.decode(self.positions[row])
        except FileNotFoundError as error:
            raise ImuError(f"{self.where(row)}: the file is gone; put it back or leave the row out") from error
        except ImuError as error:
            raise ImuError(f"{self.where(row)}: {error}") from error

    def arrays(self, rows: Sequence[int]) -> NDArray[Any] | None:
        """Samples (k, …) that lie in an array as they are; None where they have to be read one by one."""
        return self.store.arrays(as_array(take(self.positions, rows)))

    def digest(self, row: int) -> str:
        """sha256 of the stored bytes, computed once.

        Raises:
            ImuError: the file cannot be read.
        """
        known, at = self.store.digests, self.positions[row]
        if not known.known[at]:
            known.put(at, hashlib.sha256(self.stored(row)).digest())
        return known[at]

    def digest_bytes(self, rows: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """``digest`` of many rows (all by default) as bytes (k, 32); large or distant files are read and hashed by a few threads.

        Raises:
            ImuError: a file cannot be read.
        """
        wanted = as_array(range(len(self)) if rows is None else rows)
        positions = as_array(self.positions)[wanted]
        missing = wanted[~self.store.digests.known[positions]]
        started = time.perf_counter()
        self._hash(missing[:_DIGEST_CHUNK])
        chunks = [missing[at : at + _DIGEST_CHUNK] for at in range(_DIGEST_CHUNK, len(missing), _DIGEST_CHUNK)]
        # A few small files at hand are quicker one by one: threads would wait for each other, not for the disk.
        quick = time.perf_counter() - started < _QUICK * _DIGEST_CHUNK
        with ThreadPoolExecutor(1 if quick else min(8, (os.cpu_count() or 1) + 2)) as pool:
            try:
                for _ in pool.map(self._hash, chunks):
                    signals.check()
            except StoppedError:
                pool.shutdown(cancel_futures=True)
                raise
        return self.store.digests.raw[positions]

    def _hash(self, rows: NDArray[np.int64]) -> None:
        for row in rows.tolist():
            self.digest(row)

    def digests(self, rows: Sequence[int] | None = None) -> list[str]:
        """The same as text.

        Raises:
            ImuError: a file cannot be read.
        """
        return [digest.tobytes().hex() for digest in self.digest_bytes(rows)]

    def subset(self, rows: Sequence[int]) -> "SampleSet":
        """The given rows in the given order; a row may be named twice. Digests stay shared."""
        return replace(
            self,
            names=take(self.names, rows),
            labels=take(self.labels, rows),
            positions=take(self.positions, rows),
            columns={name: take(values, rows) for name, values in self.columns.items()},
            origins=None if self.origins is None else take(self.origins, rows),
        )

    def _reached(self, row: int, ask: Callable[[int], Answer]) -> Answer:
        try:
            return ask(self.positions[row])
        except OSError as error:
            raise ImuError(f"{self.where(row)}: cannot be read ({error.strerror}); check the file") from error
