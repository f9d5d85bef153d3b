"""Rows of labelled images: how a row is read, named, told apart from others, and mapped to the model's classes.

Nothing here imports torch: ``imu select`` and the validation of manifests stay fast.
"""

import difflib
import hashlib
import os
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.samples.columns import Digests, as_array, numbers, take

UNKNOWN = -1
"""The label of a row whose class is not known."""

SELECTORS = ("class", "index", "id", "coarse")

# EPS is left out on purpose: Pillow hands it to Ghostscript, and a file's extension does not say what is inside.
_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "GIF", "TIFF", "WEBP", "JPEG2000", "DIB")
_DIGEST_CHUNK = 256
_QUICK = 1e-4
"""Seconds to read and hash one, up to which more threads only get into each other's way."""

MAX_PIXELS = 89_478_485
"""Pixels of an image that is still decoded: where Pillow begins to warn. Twice as many are an error of its own."""

# Between the two Pillow prints a warning and decodes; ours is an error with the row's name, so its warning says nothing more.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Answer = TypeVar("Answer")


class Store(Protocol):
    """What holds the samples of a set, by position: files, an array, or features without images."""

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

    def decode(self, at: int) -> Image.Image:
        """The whole image."""


@dataclass(frozen=True, eq=False)
class Files:
    """Image files below one folder.

    Attributes:
        root: the folder, all links resolved.
        shown: the folder as the user named it, for messages.
        names: of the files, relative to ``root``, ``/`` between the parts.
        real: where a name that is a link, or lies below one, really is; other names are where they say.
    """

    root: Path
    shown: str
    names: Sequence[str]
    real: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digests(self) -> Digests:
        """sha256 by position, filled as they are asked for."""
        return Digests.unknown(len(self.names))

    def where(self, at: int) -> str:
        """The file as the user would name it."""
        return str(Path(self.shown, self.names[at]))

    def location(self, at: int) -> str:
        """The absolute path with all links resolved."""
        name = self.names[at]
        # Not os.path.join: overlap tests ask for 50,000 locations several times over.
        return self.real.get(name) or f"{str(self.root).rstrip('/')}/{name}"

    def size(self, at: int) -> int:
        """Bytes of the file."""
        return os.stat(self.location(at)).st_size

    def stored(self, at: int) -> bytes:
        """The file's bytes."""
        # Unbuffered: half the time of Path.read_bytes, which counts for 50,000 small files.
        with open(self.location(at), "rb", buffering=0) as file:
            return file.read()

    def decode(self, at: int) -> Image.Image:
        """The whole image, in the file's own mode, first frame, as stored (EXIF orientation is not applied)."""
        with Image.open(self.location(at), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height}, more than {MAX_PIXELS:,}")
            image.load()
            return image


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images of one array, (n, height, width) grey or (n, height, width, 3) RGB, uint8.

    ``identity`` is what a row is of, such as ``cifar10:/data/cifar-10-batches-py#train``.
    """

    identity: str
    values: NDArray[np.uint8]

    @cached_property
    def digests(self) -> Digests:
        """sha256 by position, filled as they are asked for."""
        return Digests.unknown(len(self.values))

    def where(self, at: int) -> str:
        """The array and the index in it."""
        return f"{self.identity}:{at}"

    location = where

    def size(self, at: int) -> int:
        """Bytes of one image."""
        return int(np.prod(self.values.shape[1:]))

    def stored(self, at: int) -> bytes:
        """The image's bytes, row by row, channels last."""
        return bytes(self.values[at].tobytes())

    def decode(self, at: int) -> Image.Image:
        """The image, mode L or RGB."""
        return Image.fromarray(np.ascontiguousarray(self.values[at]))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images in a fixed order; reading is thread-safe and nothing is decoded before it is asked for.

    Attributes:
        source: the data set as the user named it.
        names: what a manifest's locator would hold: ``airplane/00029.png``, or ``29`` for array data.
        labels: a class id for each row, in the order of ``classes``; ``UNKNOWN`` where there is none.
        classes: names that the source knows for its ids, or None if labels are bare ids.
        store: what holds the images.
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

    @property
    def root(self) -> Path | None:
        """The folder that names are relative to, links resolved; None for array data."""
        return self.store.root if isinstance(self.store, Files) else None

    def where(self, row: int) -> str:
        """The row for a message: its manifest line if it has one, and the file or array index."""
        shown = self.store.where(self.positions[row])
        return f"{self.origins[row]}: {shown}" if self.origins is not None else shown

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
        """The file's bytes, or the pixels of an array's row.

        Raises:
            ImuError: the file cannot be read.
        """
        return self._reached(row, self.store.stored)

    def read(self, row: int) -> Image.Image:
        """The fully decoded image.

        Raises:
            ImuError: missing, truncated, undecodable, or too large to be an honest image; names row and file.
        """
        try:
            return self.store.decode(self.positions[row])
        except ImuError as error:
            raise ImuError(f"{self.where(row)}: {error}") from error
        except FileNotFoundError as error:
            raise ImuError(f"{self.where(row)}: the file is gone; put it back or leave the row out") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImuError(f"{self.where(row)}: too many pixels ({error}); shrink it or leave it out") from error
        except UnidentifiedImageError as error:
            raise ImuError(f"{self.where(row)}: not an image that can be read; replace it or leave it out") from error
        except Exception as error:  # hostile bytes make Pillow's decoders raise anything at all
            raise ImuError(
                f"{self.where(row)}: truncated or damaged image ({error}); replace it or leave it out"
            ) from error

    def pixels(self, rows: Sequence[int]) -> NDArray[np.uint8] | None:
        """Images (k, height, width, channels) that lie in an array, as they are; None where there are files."""
        if not isinstance(self.store, Pixels):
            return None
        found = self.store.values[as_array(take(self.positions, rows))]
        return found if found.ndim == 4 else found[..., None]

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
            for _ in pool.map(self._hash, chunks):
                pass
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

    def subset(self, rows: Sequence[int]) -> "ImageSet":
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


def nearest(wrong: str, known: Iterable[str]) -> str:
    """`` (did you mean 'dog'?)`` for the nearest known name, or nothing where none is near."""
    names = list(known)
    same = [name for name in names if name.casefold() == wrong.casefold()]
    close = same or difflib.get_close_matches(wrong, names, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


@dataclass(frozen=True)
class ClassNames:
    """The model's classes: how many, their names in id order if any source knows them, and that source."""

    num_classes: int
    names: tuple[str, ...] | None
    source: str

    @cached_property
    def _ids(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(self.names or ()):
            ids[name].append(number)
        return dict(ids)

    def parse(self, text: str) -> int:
        """The id of a class named by name or id; a name wins over an id that reads the same.

        Raises:
            ImuError: neither; the message has no place in it, callers put that before it.
        """
        ids = self._ids.get(text, [])
        if len(ids) > 1:
            raise ImuError(f"label '{text}' is the name of the classes {ids}; give the id")
        if ids:
            return ids[0]
        if re.fullmatch(r"-?[0-9]{1,18}", text):
            return self._in_range(int(text))
        if self.names is None:
            raise ImuError(f"label '{text}': the model's class names are not known; give ids, or --classes FILE")
        raise ImuError(f"label '{text}' is not a class of this model{nearest(text, self.names)}")

    def _in_range(self, number: int) -> int:
        if 0 <= number < self.num_classes:
            return number
        raise ImuError(f"label {number} is out of range; the model's ids are 0 to {self.num_classes - 1}")

    def ambiguous(self, text: str) -> bool:
        """Whether the text is the name of one class and the id of another."""
        return text in self._ids and text.isdecimal() and self._ids[text] != [int(text)]

    def name(self, number: int) -> str:
        """The class's name, or its id as text where no name is known."""
        return self.names[number] if self.names is not None else str(number)


def _classes_file(path: Path, num_classes: int) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except OSError as error:
        raise ImuError(f"--classes {path}: cannot be read ({error.strerror}); name a file of class names") from error
    except UnicodeDecodeError as error:
        raise ImuError(f"--classes {path}: not UTF-8; save it as UTF-8") from error
    if "" in lines:
        raise ImuError(f"--classes {path}:{lines.index('') + 1}: an empty line; write one class name on each")
    if len(lines) != num_classes:
        raise ImuError(f"--classes {path}: has {len(lines)} names; the model has {num_classes} classes")
    return tuple(lines)


def class_names(
    classes_file: Path | None,
    model_classes: Sequence[str] | None,
    sources: Sequence[ImageSet],
    num_classes: int,
    model_source: str = "the model",
) -> ClassNames:
    """The class names in id order and where they come from: ``--classes``, the model, or a data set of c classes.

    A model's placeholders (``LABEL_0``, ``LABEL_1``...) are no names. Of data sets only those whose order is one that
    models are trained with (class folders sorted as strings, a known data set's own) can give names.

    Raises:
        ImuError: a list of names has not exactly ``num_classes`` of them, or the file cannot be read.
    """
    if classes_file is not None:
        return ClassNames(num_classes, _classes_file(classes_file, num_classes), f"--classes {classes_file}")
    if model_classes is not None and list(model_classes) != [f"LABEL_{i}" for i in range(len(model_classes))]:
        if len(model_classes) != num_classes:
            raise ImuError(
                f"{model_source}: names {len(model_classes)} classes, the head has {num_classes}; give --classes FILE"
            )
        return ClassNames(num_classes, tuple(model_classes), model_source)
    for images in sources:
        if images.classes is not None and len(images.classes) == num_classes and images.class_order is not None:
            return ClassNames(num_classes, images.classes, f"{images.source} ({images.class_order})")
    return ClassNames(num_classes, None, "not known")


def mapped(images: ImageSet, classes: ClassNames) -> tuple[Sequence[int], dict[int, str]]:
    """Each row's label in the model's ids, mapped by name; and what is wrong with classes that have none, by own id.

    Rows of such a class, and those without a label, are ``UNKNOWN``.
    """
    ids, wrong = {}, {}
    own_ids, which = np.unique(as_array(images.labels), return_inverse=True)
    for own in own_ids[own_ids != UNKNOWN].tolist():
        text = str(own) if images.classes is None else images.classes[own]
        try:
            ids[own] = classes.parse(text)
        except ImuError as error:
            named_by = images.source if images.origins is None else images.origins[list(images.labels).index(own)]
            wrong[own] = f"{named_by}: {error}"
    return numbers(np.array([ids.get(own, UNKNOWN) for own in own_ids.tolist()], np.int64)[which]), wrong


def in_model_ids(images: ImageSet, classes: ClassNames) -> ImageSet:
    """The same images, labelled with the model's ids. Classes map by name: a folder of three is not renumbered.

    Raises:
        InvalidRowsError: a class that has rows is not one of the model's, or rows have no label at all.
    """
    labels, wrong = mapped(images, classes)
    problems = list(wrong.values())
    bare = [row for row, label in enumerate(images.labels) if label == UNKNOWN]
    if bare:
        problems.append(
            f"{images.where(bare[0])}: has no label ({len(bare)} rows have none); "
            "use class folders, or a manifest with labels"
        )
    if problems:
        raise InvalidRowsError(problems)
    return replace(images, labels=labels, classes=classes.names)


def is_selector(spec: str) -> bool:
    """Whether it reads ``class=…``, ``index=…``, ``id=…`` or ``coarse=…``; a file of such a name needs ``./``."""
    return spec.partition("=")[0] in SELECTORS and "=" in spec


def select_rows(images: ImageSet, selectors: Sequence[str], classes: ClassNames | None = None) -> Sequence[int]:
    """Rows that the selectors name, each once: all of one kind, their union, in the order of the data set.

    ``index`` keeps the order it is written in. Classes are those of ``images``, or the model's if they are given.

    Raises:
        ImuError: unknown or mixed selectors, an unknown name, an index out of range, or nothing selected.
    """
    kinds = {selector.partition("=")[0] for selector in selectors}
    if not selectors or not all(is_selector(selector) for selector in selectors):
        raise ImuError(f"{' '.join(selectors)}: no selector; write {'=…, '.join(SELECTORS)}=…")
    if len(kinds) > 1:
        raise ImuError(f"{' '.join(selectors)}: different kinds of selectors; use one, or a list from imu select")
    picks = [part for selector in selectors for part in _pick(images, selector, classes)]
    if len(picks) == 1 and isinstance(picks[0], range):
        return picks[0]
    rows, first = np.unique(np.concatenate([as_array(part) for part in picks]), return_index=True)
    return numbers(rows[np.argsort(first)] if kinds == {"index"} else rows)


def _pick(images: ImageSet, selector: str, classes: ClassNames | None) -> list[Sequence[int]]:
    kind, _, value = selector.partition("=")
    if not value:
        raise ImuError(f"{selector}: names nothing; write for example {kind}={'0:500' if kind == 'index' else 'NAME'}")
    if kind == "index":
        rows = [_slice(selector, part.strip(), len(images)) for part in value.split(",")]
    elif kind == "class":
        rows = _of_classes(images, selector, value, classes)
    else:
        rows = _of_column(images, selector, kind, value)
    if not any(rows):
        raise ImuError(f"{selector}: selects no row of {images.source}")
    return rows


def _slice(selector: str, part: str, n: int) -> Sequence[int]:
    if not re.fullmatch(r"-?\d+|(-?\d+)?:(-?\d+)?(:(-?\d+)?)?", part, re.ASCII):
        raise ImuError(f"{selector}: '{part}' is neither a row number nor a slice such as 0:500")
    bounds = [int(text) if text else None for text in part.split(":")]
    if len(bounds) == 1:
        if not 0 <= int(part) < n:
            raise ImuError(f"{selector}: {part} is out of range; rows are 0 to {n - 1}")
        return [int(part)]
    # Python would cut a slice at the end in silence: 0:5000 of 500 rows is a mistake.
    if any(bound is not None and abs(bound) > n for bound in bounds[:2]):
        raise ImuError(f"{selector}: {part} is out of range; rows are 0 to {n - 1}")
    if bounds[2:] == [0]:
        raise ImuError(f"{selector}: the step of a slice cannot be 0")
    return range(n)[slice(*bounds)]


def _parts(value: str, known: Mapping[str, object]) -> list[str]:
    """A value is one name if there is such a name (they may hold commas), else a comma list."""
    return [value] if value in known else [part.strip() for part in value.split(",")]


def _of_classes(images: ImageSet, selector: str, value: str, classes: ClassNames | None) -> list[Sequence[int]]:
    if classes is None:
        count = len(images.classes) if images.classes is not None else max(images.labels, default=UNKNOWN) + 1
        classes = ClassNames(count, images.classes, images.source)
    labels = as_array(mapped(images, classes)[0])
    rows: list[Sequence[int]] = []
    for part in _parts(value, dict.fromkeys(classes.names or ())):
        try:
            wanted = classes.parse(part)
        except ImuError as error:
            raise ImuError(f"{selector}: {error}") from error
        found = numbers(np.flatnonzero(labels == wanted))
        if not found:
            raise ImuError(f"{selector}: {images.source} has no row of class '{part}'")
        rows.append(found)
    return rows


def _of_column(images: ImageSet, selector: str, kind: str, value: str) -> list[Sequence[int]]:
    if kind not in images.columns:
        whose = "cifar100:DIR" if kind == "coarse" else "a manifest with an id column"
        raise ImuError(f"{selector}: {images.source} has no '{kind}'; it needs --data {whose}")
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(images.columns[kind]):
        rows_of[text].append(row)
    rows: list[Sequence[int]] = []
    for part in _parts(value, rows_of):
        if part not in rows_of:
            raise ImuError(f"{selector}: {images.source} has no {kind} '{part}'{nearest(part, rows_of)}")
        rows.append(rows_of[part])
    return rows


def overlap(a: ImageSet, b: ImageSet) -> list[tuple[int, int]]:
    """Pairs (row of ``a``, row of ``b``) of the same image: one location, or the same stored bytes.

    Every row that has a partner stands in some pair; copies do not multiply out. Only files whose sizes occur on both
    sides are hashed. The same picture in two encodings (a PNG and an array) is not found.

    Raises:
        ImuError: a file cannot be read.
    """
    pairs = _meet([a.location(row) for row in range(len(a))], [b.location(row) for row in range(len(b))])
    sizes_a, sizes_b = ([images.size(row) for row in range(len(images))] for images in (a, b))
    rows_a, rows_b = _rows_of_size(sizes_a, set(sizes_b)), _rows_of_size(sizes_b, set(sizes_a))
    by_content = _meet(a.digests(rows_a), b.digests(rows_b))
    return sorted(pairs | {(rows_a[i], rows_b[j]) for i, j in by_content})


def _rows_of_size(sizes: Sequence[int], wanted: set[int]) -> list[int]:
    return [row for row, size in enumerate(sizes) if size in wanted]


def _meet(a: Sequence[Hashable], b: Sequence[Hashable]) -> set[tuple[int, int]]:
    """Each entry that stands on both sides, with the first equal entry of the other side."""
    first_a = {key: i for i, key in reversed(list(enumerate(a)))}
    first_b = {key: j for j, key in reversed(list(enumerate(b)))}
    forth = {(i, first_b[key]) for i, key in enumerate(a) if key in first_b}
    return forth | {(first_a[key], j) for j, key in enumerate(b) if key in first_a}
