"""What is known of each sample, in few bytes a sample: whole numbers, text and SHA-256 of millions of them.

A Python list takes 36 bytes for a number, and 60 and more for a short name. Here a number takes 8, a text its own bytes
and 8 more, a row's number as its name nothing, and a SHA-256 32. numpy alone: lists of samples are read without torch.
"""

import hashlib
import io
import itertools
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

SHA256 = 32
"""Bytes of a digest."""

Item = TypeVar("Item")


def numbers(values: Iterable[int]) -> "array[int]":
    """Whole numbers in 8 bytes each; single ones are Python's own."""
    if isinstance(values, np.ndarray):
        return array("q", np.ascontiguousarray(values, np.int64).tobytes())
    return array("q", values)


def reals(values: NDArray[Any]) -> "array[float]":
    """Numbers in 8 bytes each; single ones are Python's own floats."""
    return array("d", np.ascontiguousarray(values, np.float64).tobytes())


def as_array(values: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    """The same numbers (n,) int64 for arithmetic; those of an array are shared, not copied."""
    if isinstance(values, range):
        return np.arange(values.start, values.stop, values.step, dtype=np.int64)
    return np.asarray(values, np.int64)


def members(values: Sequence[int], of: Sequence[int], *, inside: bool = True) -> "array[int]":
    """Where in ``values`` stand numbers that are among those of another sequence, or that are not."""
    return numbers(np.flatnonzero(np.isin(as_array(values), as_array(of), invert=not inside)))


class Names(Sequence[str], ABC):
    """A text for each of some rows; ``of_row`` makes it, and ``over`` the same for other rows."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows

    @abstractmethod
    def of_row(self, row: int) -> str:
        """The row's text."""

    @abstractmethod
    def over(self, rows: Sequence[int]) -> Self:
        """The texts of these rows."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Self: ...
    def __getitem__(self, at: int | slice) -> str | Self:
        return self.over(self.rows[at]) if isinstance(at, slice) else self.of_row(self.rows[at])


class RowNames(Names):
    """Names of samples that have none but their rows' numbers."""

    def of_row(self, row: int) -> str:
        """The number."""
        return str(row)

    def over(self, rows: Sequence[int]) -> Self:
        """The numbers of these rows."""
        return type(self)(rows)


class Texts(Names):
    """Strings as the UTF-8 bytes of all of them and where each ends; ``rows`` are those that are meant, in order."""

    def __init__(self, data: NDArray[np.uint8], ends: NDArray[np.int64], rows: Sequence[int] | None = None) -> None:
        super().__init__(range(len(ends)) if rows is None else rows)
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """The strings, one after the other; what is not UTF-8 in a file's name stays as it is."""
        packer, left = Packer(), iter(texts)
        while block := list(itertools.islice(left, A_BLOCK)):
            packer.extend(block)
        return packer.packed()

    def of_row(self, row: int) -> str:
        """The string."""
        return self.bytes_of(row).decode("utf-8", "surrogateescape")

    def over(self, rows: Sequence[int]) -> Self:
        """The strings of these rows; the bytes are shared."""
        return type(self)(self.data, self.ends, rows)

    def bytes_of(self, row: int) -> bytes:
        """The UTF-8 bytes of one of all strings, whichever rows are meant."""
        return self.data[int(self.ends[row - 1]) if row else 0 : self.ends[row]].tobytes()

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many bytes each of all strings has."""
        return np.diff(self.ends, prepend=0)


A_BLOCK = 4096
"""Strings that are packed together."""


class Packer:
    """Strings as they come, block by block, to be packed as ``Texts``."""

    def __init__(self, empty: int = 0) -> None:
        self._data, self._ends = io.BytesIO(), array("q", bytes(8 * empty))

    def extend(self, texts: Sequence[str]) -> None:
        """The next strings."""
        joined = "".join(texts)
        if joined.isascii():
            lengths = np.fromiter(map(len, texts), np.int64, len(texts))
            self._data.write(joined.encode())
        else:
            packed = [text.encode("utf-8", "surrogateescape") for text in texts]
            lengths = np.fromiter(map(len, packed), np.int64, len(packed))
            self._data.write(b"".join(packed))
        self._ends.frombytes((lengths.cumsum() + (self._ends[-1] if self._ends else 0)).tobytes())

    def packed(self) -> Texts:
        """All of them; nothing can be added any more."""
        return Texts(np.frombuffer(self._data.getbuffer(), np.uint8), as_array(self._ends))


def take(values: Sequence[Item], rows: Sequence[int]) -> Sequence[Item]:
    """The values of some rows, in their order, as compact as they were."""
    if rows == range(len(values)):
        return values
    if isinstance(values, range | array):
        return numbers(as_array(values)[as_array(rows)])  # type: ignore[return-value]
    if isinstance(values, Names):
        return values.over(take(values.rows, rows))  # type: ignore[return-value]
    return [values[row] for row in rows]


@dataclass(frozen=True, eq=False)
class Digests:
    """SHA-256 by position, as far as they are known: ``raw`` (n, 32) bytes, and which of them are, (n,)."""

    raw: NDArray[np.uint8]
    known: NDArray[np.bool_]

    @classmethod
    def unknown(cls, n: int) -> "Digests":
        """None of n is known yet."""
        return cls(np.zeros((n, SHA256), np.uint8), np.zeros(n, np.bool_))

    @classmethod
    def given(cls, raw: NDArray[np.uint8]) -> "Digests":
        """All are known."""
        return cls(raw, np.ones(len(raw), np.bool_))

    @classmethod
    def of(cls, samples: Iterable[bytes]) -> "Digests":
        """Those of the bytes of every sample, a microsecond each."""
        found = bytearray()
        for sample in samples:
            found += hashlib.sha256(sample).digest()
        return cls.given(np.frombuffer(found, np.uint8).reshape(-1, SHA256))

    def put(self, at: int, digest: bytes) -> None:
        """Keep one."""
        self.raw[at] = np.frombuffer(digest, np.uint8)
        self.known[at] = True

    def __getitem__(self, at: int) -> str:
        return bytes(self.raw[at]).hex()


def alike(digests: NDArray[np.uint8]) -> bool:
    """Whether any two of the digests (n, 32) are equal."""
    first = np.sort(np.ascontiguousarray(digests[:, :8]).view(np.int64)[:, 0])
    if bool((first[1:] != first[:-1]).all()):
        return False
    return len(np.unique(np.ascontiguousarray(digests).view(f"V{SHA256}"))) < len(digests)
