"""What is to be forgotten: forget.csv, .tsv, .jsonl, standard input, folders of images and selectors.

A list is checked whole, and all that is wrong is said at once, each problem with its physical line.
"""

import csv
import hashlib
import io
import json
import math
import os
import re
import stat
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, TypeVar
from weakref import WeakKeyDictionary

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.files import writing
from imu_cli.samples.columns import alike, members, numbers, take
from imu_cli.samples.dataset import (
    SELECTORS,
    UNKNOWN,
    ClassNames,
    Files,
    ImageSet,
    in_model_ids,
    is_selector,
    mapped,
    nearest,
    select_rows,
)
from imu_cli.samples.sources import Role, inside, open_flat, open_named
from imu_cli.samples.vectors import Vectors, is_features

SUFFIXES = (".csv", ".tsv", ".jsonl")
FILE_COLUMNS = ("file_name", "path", "filepath", "image")
TEXT_COLUMNS = ("id", "group", "reason")
KNOWN_COLUMNS = (*FILE_COLUMNS, "index", "label", *TEXT_COLUMNS, "weight", "true_label")

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass
class _Problems:
    """What is wrong with a list, by line, so that it can be said at once and in order."""

    name: str
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, text: str) -> None:
        self.found.append((line, f"{self.name}:{line}: {text}" if line else f"{self.name}: {text}"))

    def attempt(self, line: int, make: Callable[[Given], Made], given: Given) -> Made | None:
        """What ``make`` makes of it, or None and a problem noted."""
        try:
            return make(given)
        except ImuError as error:
            self.add(line, str(error))
            return None

    def refuse(self) -> None:
        if self.found:
            raise InvalidRowsError([text for _, text in sorted(self.found, key=lambda problem: problem[0])])


# --- tables


@dataclass(frozen=True)
class Table:
    """Rows of text as a file has them, each with the physical line it starts on.

    Attributes:
        name: the file as the user named it, or ``stdin``.
        path: the file, None for standard input.
        columns: in the file's order, stripped and in lower case.
        sha256: of the file's bytes.
    """

    name: str
    path: Path | None
    columns: tuple[str, ...]
    rows: list[dict[str, str]]
    lines: list[int]
    sha256: str

    @property
    def folder(self) -> Path:
        """Where relative names start without ``--data``."""
        return Path() if self.path is None else self.path.parent

    def column(self, name: str) -> list[str]:
        """One column's text, empty where a row has none."""
        return [row.get(name, "") for row in self.rows]


def _text(name: str, data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ImuError(f"{name}: is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ImuError(f"{name}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8") from error


def _kind(path: Path | None, text: str) -> str:
    """The format by the file's name; standard input shows by its first line what it is."""
    if path is not None:
        return path.suffix.lower()
    first = text.lstrip().split("\n", 1)[0]
    if first.startswith("{"):
        return ".jsonl"
    return ".tsv" if "\t" in first and "," not in first else ".csv"


_read_streams: "WeakKeyDictionary[BinaryIO, bytes]" = WeakKeyDictionary()


def _read_once(stream: BinaryIO) -> bytes:
    """A stream's bytes, as often as they are asked for: ``peek`` needs the list before ``load_forget`` does."""
    if stream not in _read_streams:
        _read_streams[stream] = stream.read()
    return _read_streams[stream]


def _read_table(path: Path | None, stdin: BinaryIO | None, problems: _Problems) -> Table:
    try:
        data = _read_once(stdin or sys.stdin.buffer) if path is None else path.read_bytes()
    except OSError as error:
        raise ImuError(
            f"{problems.name}: cannot be read ({error.strerror}); name a .csv, .tsv or .jsonl file"
        ) from error
    text = _text(problems.name, data)
    kind = _kind(path, text)
    columns, rows, lines = _json_rows(text, problems) if kind == ".jsonl" else _csv_rows(text, kind, problems)
    if not rows and not problems.found:
        problems.add(0, "holds no rows; list at least one image below the header")
    return Table(problems.name, path, tuple(columns), rows, lines, hashlib.sha256(data).hexdigest())


Rows = tuple[list[str], list[dict[str, str]], list[int]]


def _csv_rows(text: str, kind: str, problems: _Problems) -> Rows:
    # newline="" keeps line ends inside quotes; strict turns an unclosed quote into an error, not a giant field.
    delimiter = "\t" if kind == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return columns, rows, lines
        except csv.Error as error:
            problems.add(line, f"cannot be split into fields ({error}); check the quotes")
            return columns, rows, lines
        if not any(cell.strip() for cell in cells):
            continue
        if not columns:
            columns = _header(line, cells, problems)
        elif any(cell.strip() for cell in cells[len(columns) :]):
            problems.add(
                line, f"has {len(cells)} fields, the header {len(columns)}; quote fields that hold '{delimiter}'"
            )
        else:
            # A row may be short: spreadsheets leave out trailing empty cells.
            rows.append(dict(zip(columns, cells, strict=False)))
            lines.append(line)


def _header(line: int, cells: Sequence[str], problems: _Problems) -> list[str]:
    columns = [cell.strip().lower() for cell in cells]
    for name in sorted({name for name in columns if name and columns.count(name) > 1}):
        problems.add(line, f"column '{name}' stands twice in the header; remove one")
    if len(columns) == 1 and re.search("[;\t]", columns[0]):
        problems.add(line, "the header looks separated by ';' or tabs; use commas, or name the file .tsv for tabs")
    return columns


def _json_rows(text: str, problems: _Problems) -> Rows:
    columns: dict[str, None] = {}
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    # Not splitlines: U+2028 may stand inside a JSON string.
    for line, source in enumerate(text.split("\n"), 1):
        if not source.strip():
            continue
        try:
            row = _json_row(source)
        except (ValueError, RecursionError) as error:
            problems.add(line, f"no JSON object of plain values ({error}); write one object a line")
            continue
        columns |= dict.fromkeys(row)
        rows.append(row)
        lines.append(line)
    return list(columns), rows, lines


def _json_row(source: str) -> dict[str, str]:
    found = json.loads(source)
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}")
    row = {}
    for key, value in found.items():
        if isinstance(value, (bool, list, dict)):
            raise ValueError(f"'{key}' is a {type(value).__name__}")
        row[key.strip().lower()] = "" if value is None else str(value)
    return row


def _unknown_columns(table: Table) -> list[str]:
    unknown = [name for name in table.columns if name and name not in KNOWN_COLUMNS]
    named = ", ".join(f"'{name}'{nearest(name, KNOWN_COLUMNS)}" for name in unknown)
    return [f"{table.name}: ignored columns that have no meaning here: {named}"] if unknown else []


# --- where a row points


@dataclass(frozen=True)
class _Place:
    """An image that a row names: a file, a row of the data set, or both."""

    name: str
    real: str
    row: int | None


@dataclass(frozen=True)
class _Finder:
    """Finds files below a folder; a name must not lead out of it, also not through a link."""

    shown: Path
    root: str
    beside: Path
    rows: Mapping[str, int]
    parents: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> _Place:
        """The image of that name.

        Raises:
            ImuError: no place in the message; empty, absolute, outside the folder, missing, or no regular file.
        """
        if not name.strip():
            raise ImuError("the file name is empty")
        if os.path.isabs(name) or re.match(r"[A-Za-z]:[\\/]", name):
            raise ImuError(f"'{name}' is an absolute path; write it relative to {self.shown}")
        if ".." in name.split("/"):
            raise ImuError(f"'{name}' may leave the folder ('..'); write it relative to {self.shown}")
        clean = os.path.normpath(name)
        try:
            real, mode = self._real(clean)
        except (OSError, ValueError) as error:
            raise ImuError(f"{self.shown / name} is missing{self._hint(name)}") from error
        if not stat.S_ISREG(mode):
            what = "is a folder, not an image" if stat.S_ISDIR(mode) else "is no regular file"
            raise ImuError(f"{self.shown / name} {what}; name image files")
        return _Place(clean, real, self.rows.get(real))

    def _real(self, clean: str) -> tuple[str, int]:
        """The resolved path; folders are resolved once, since that costs more than all else."""
        above, own = os.path.split(clean)
        if above not in self.parents:
            self.parents[above] = os.path.realpath(os.path.join(self.root, above))
        real = os.path.join(self.parents[above], own)
        mode = os.lstat(real).st_mode
        if stat.S_ISLNK(mode):
            real = os.path.realpath(real)
        if not inside(self.root, real):
            raise ImuError(f"'{clean}' is a link to {real}, outside {self.shown}; copy the image in")
        return real, os.stat(real).st_mode if stat.S_ISLNK(mode) else mode

    def _hint(self, name: str) -> str:
        if os.path.isfile(self.beside / name):
            return f", but {self.beside / name} exists; names are relative to --data if that is given"
        if "\\" in name:
            return "; write / between folder names"
        return "; correct the name or take the row out"


def _finder(table: Table, data: ImageSet | None) -> _Finder:
    if data is None or not isinstance(data.store, Files):
        return _Finder(table.folder, os.path.realpath(table.folder), table.folder, {})
    rows = {data.location(row): row for row in reversed(range(len(data)))}
    return _Finder(Path(data.store.shown), str(data.store.root), table.folder, rows)


def _row(text: str, data: ImageSet) -> _Place:
    if not re.fullmatch(r"-?[0-9]{1,18}", text.strip()):
        raise ImuError(f"index '{text}' is not a whole number")
    row = int(text)
    if not 0 <= row < len(data):
        raise ImuError(f"index {row} is out of range; {data.source} has the rows 0 to {len(data) - 1}")
    return _Place(data.names[row], data.location(row), row)


def _named(name: str, numbers: Mapping[str, int], data: ImageSet) -> _Place:
    """The row of a file of features that was made of a file of that name."""
    if name not in numbers:
        raise ImuError(
            f"'{name}' is not in {data.source}{nearest(name, list(numbers)[:10_000])}; correct it, or extract its features"
        )
    row = numbers[name]
    return _Place(name, data.location(row), row)


def _placer(table: Table, data: ImageSet | None, problems: _Problems) -> Callable[[dict[str, str]], _Place] | None:
    """How a row of this table names its image, by the one locator column that it has."""
    located = [name for name in table.columns if name in (*FILE_COLUMNS, "index")]
    if len(located) > 1:
        problems.add(0, f"has the columns {', '.join(located)}; keep exactly one that says which image is meant")
    elif not located and table.columns:
        near = next(
            (nearest(name, KNOWN_COLUMNS[:5]) for name in table.columns if nearest(name, KNOWN_COLUMNS[:5])), ""
        )
        problems.add(0, f"has neither a file_name nor an index column in its header ({', '.join(table.columns)}){near}")
    elif located == ["index"] and data is None:
        problems.add(0, "has an index column, which counts rows of --data; give --data")
    if len(located) != 1 or (located == ["index"] and data is None):
        return None
    if located == ["index"] and data is not None:
        return lambda row: _row(row.get("index", ""), data)
    if data is not None and isinstance(data.store, Vectors):
        numbers = {name: number for number, name in reversed(list(enumerate(data.names)))}
        return lambda row: _named(row.get(located[0], ""), numbers, data)
    finder = _finder(table, data)
    return lambda row: finder.find(row.get(located[0], ""))


def _places(table: Table, data: ImageSet | None, problems: _Problems) -> list[_Place | None]:
    """Each row's image, None where there is none (a problem is noted)."""
    placer = _placer(table, data, problems)
    if placer is None:
        return [None] * len(table.rows)
    return [problems.attempt(line, placer, row) for row, line in zip(table.rows, table.lines, strict=True)]


def _gather(table: Table, kept: Sequence[int], places: Sequence[_Place], data: ImageSet | None) -> ImageSet:
    """The images of the table's rows ``kept``: rows of the data set where all are, else files of their own."""
    origins = [f"{table.name}:{table.lines[index]}" for index in kept]
    columns = {name: [table.column(name)[index] for index in kept] for name in TEXT_COLUMNS if name in table.columns}
    rows = [place.row for place in places if place.row is not None]
    if data is not None and len(rows) == len(places):
        images = data.subset(rows)
        return replace(images, source=table.name, columns={**images.columns, **columns}, origins=origins, notes=())
    finder, names = _finder(table, data), [place.name for place in places]
    store = Files(Path(finder.root), str(finder.shown), names, {place.name: place.real for place in places})
    unknown = [UNKNOWN] * len(names)
    return ImageSet(table.name, names, unknown, None, store, range(len(names)), columns=columns, origins=origins)


# --- data sets


def _is_table(spec: str) -> bool:
    return spec.lower().endswith(SUFFIXES) and not os.path.isdir(spec)


def open_source(spec: str, role: Role, data: ImageSet | None = None, stdin: BinaryIO | None = None) -> ImageSet:
    """What ``--data``, ``--test`` or ``--retain`` names: a manifest, a folder, or a scheme (``sources.open_named``).

    In a manifest, ``index`` counts rows of ``data`` (what ``--data`` names). File names are relative to ``data``'s
    folder, but for ``--test``, which lies elsewhere, to the manifest's own. Its class names have no order of their own.

    Raises:
        ImuError: the source cannot be read, or is unknown.
        InvalidRowsError: all that is wrong with a manifest.
    """
    if spec != "-" and not _is_table(spec):
        return open_named(spec, role)
    problems = _Problems("stdin" if spec == "-" else spec)
    table = _read_table(None if spec == "-" else Path(spec).expanduser(), stdin, problems)
    by_index = "index" in table.columns
    base = data if by_index or role != "test" else None
    places = _places(table, base, problems)
    problems.refuse()
    images = _gather(table, range(len(places)), [place for place in places if place is not None], base)
    return replace(_labelled(table, images), notes=tuple(_unknown_columns(table)))


def _labelled(table: Table, images: ImageSet) -> ImageSet:
    """Labels as the list gives them, else as the data set does; names sorted as strings, or bare ids if all are."""
    texts = [text.strip() for text in table.column("label")]
    for row, own in enumerate(images.labels):
        if not texts[row] and own != UNKNOWN:
            texts[row] = str(own) if images.classes is None else images.classes[own]
    named = sorted(set(texts) - {""})
    if all(re.fullmatch("[0-9]{1,18}", text) for text in named):
        labels = [int(text) if text else UNKNOWN for text in texts]
        return replace(images, labels=labels, classes=None, class_order=None)
    ids = {"": UNKNOWN} | {text: number for number, text in enumerate(named)}
    return replace(images, labels=[ids[text] for text in texts], classes=tuple(named), class_order=None)


# --- forget sets


@dataclass(frozen=True, eq=False)
class ForgetSet:
    """What is to be forgotten, checked.

    Attributes:
        images: in the list's order, ``labels`` in the model's ids; ``images.where(row)`` names line and file.
        description: how the user named it.
        whole_classes: whether it holds every row of its labels in ``--data``; None where no ``--data`` can tell.
        sha256: of name, label and content of every row, in order.
        lines: physical lines of the list, None where there is no list.
        weights: the column ``weight``, > 0, 1 where a cell is empty; None without the column.
        true_labels: the column ``true_label`` in the model's ids, ``UNKNOWN`` where empty; None without the column.
        manifest: the list's file, None for standard input, folders and selectors.
        manifest_sha256: of the list's bytes, None where there is no list.
        relabelled: rows whose label differs from the one that ``--data`` has for them.
        duplicates: a message for each row that repeats an earlier one, by content and label.
        notes: what the user should know; repeated rows are counted here, once.
    """

    images: ImageSet
    description: str
    whole_classes: bool | None
    sha256: str
    lines: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    true_labels: tuple[int, ...] | None = None
    manifest: Path | None = None
    manifest_sha256: str | None = None
    relabelled: int = 0
    duplicates: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Sequence[int]:
        """Class ids of the model, (n,)."""
        return self.images.labels

    @property
    def ids(self) -> Sequence[str] | None:
        """The column ``id``: whom or which request a row belongs to."""
        return self.images.columns.get("id")

    @property
    def groups(self) -> Sequence[str] | None:
        """The column ``group``."""
        return self.images.columns.get("group")

    @property
    def reasons(self) -> Sequence[str] | None:
        """The column ``reason``."""
        return self.images.columns.get("reason")

    def where(self, row: int) -> str:
        """The row's line and file, for messages."""
        return self.images.where(row)


@dataclass
class _Draft:
    """A forget set before its labels are settled: ``declared`` says the user's, ``rows`` where ``--data`` has it."""

    images: ImageSet
    description: str
    declared: Sequence[int]
    rows: Sequence[int | None]
    lines: list[int] | None = None
    written: bool = False
    notes: list[str] = field(default_factory=list)

    def line(self, row: int) -> int:
        return 0 if self.lines is None else self.lines[row]

    def place(self, row: int) -> str:
        """What a problem's message starts with, where it is not the line itself."""
        return "" if self.lines is not None else f"{self.images.where(row)}: "


def load_forget(
    spec: str | Sequence[str],
    data: ImageSet | None,
    label: str | None,
    classes: ClassNames,
    stdin: BinaryIO | None = None,
) -> ForgetSet:
    """The forget set that ``--forget`` names: a list (``-`` is standard input), a folder, or selectors on ``data``.

    A row's label is the list's own, else ``label`` (``--label``), else its class folder's, else the one ``data`` has.
    Contents are hashed, not decoded.

    Raises:
        ImuError: the file or folder is missing or no kind of list, or options contradict each other.
        InvalidRowsError: all problems of the rows, each with its physical line.
    """
    specs = _specs(spec)
    if is_selector(specs[0]):
        return _settle(_selected(specs, data, label, classes), data, classes, _Problems(" ".join(specs)))
    if specs[0] == "-" or _is_table(specs[0]):
        return _from_table(specs[0], data, label, classes, stdin)
    if Path(specs[0]).is_file():
        features = is_features(specs[0])
        remedy = "give it as --features" if features else "name it .csv, .tsv or .jsonl, or name a folder of images"
        raise ImuError(f"{specs[0]}: no kind of list; {remedy}")
    return _settle(_from_folder(specs[0], data, label, classes), data, classes, _Problems(specs[0]))


def peek(spec: str | Sequence[str], data: ImageSet | None, count: int, stdin: BinaryIO | None = None) -> ImageSet:
    """Up to ``count`` images to try a model with, before its classes are known: labels are not looked at.

    They are the first of ``data`` if it is given, else of the list or folder. Rows with problems are left out;
    ``load_forget`` names them all.

    Raises:
        ImuError: the list or folder cannot be read, or holds no image.
        InvalidRowsError: no row of the list names an image.
    """
    specs = _specs(spec)
    if data is not None:
        return data.subset(range(min(count, len(data))))
    if is_selector(specs[0]):
        raise ImuError(f"--forget {' '.join(specs)}: selects rows of --data; give --data")
    if specs[0] != "-" and not _is_table(specs[0]):
        images = _flat(specs[0]) or open_named(specs[0], "forget")
        return images.subset(range(min(count, len(images))))
    path, problems = _list_path(specs[0])
    table = _read_table(path, stdin, problems)
    places = _places(table, None, problems)
    kept = [index for index, place in enumerate(places) if place is not None]
    if not kept:
        problems.refuse()
    found = [place for place in places if place is not None]
    return _gather(table, kept[:count], found[:count], None)


def _specs(spec: str | Sequence[str]) -> list[str]:
    """What ``--forget`` was given: one list or folder, or any number of selectors.

    Raises:
        ImuError: nothing, a mixture, or what looks like a selector and is none.
    """
    specs = [spec] if isinstance(spec, str) else list(spec)
    if not specs:
        raise ImuError("--forget: nothing is named; give forget.csv, a folder of images, or class=NAME")
    if len(specs) > 1 and not all(is_selector(one) for one in specs):
        raise ImuError(f"--forget {' '.join(specs)}: only selectors can be repeated; put all rows into one list")
    kind, sign, _ = specs[0].partition("=")
    if sign and not is_selector(specs[0]) and not Path(specs[0]).expanduser().exists():
        raise ImuError(f"--forget {specs[0]}: no selector '{kind}'{nearest(kind, SELECTORS)}; known are {SELECTORS}")
    return specs


def _flat(spec: str) -> ImageSet | None:
    """A folder's images at any depth; None where the name is not one of a folder."""
    path = Path(spec.removeprefix("imagefolder:")).expanduser()
    return open_flat(path, spec) if path.is_dir() else None


def _list_path(spec: str) -> tuple[Path | None, _Problems]:
    return (None, _Problems("stdin")) if spec == "-" else (Path(spec).expanduser(), _Problems(spec))


def _selected(specs: list[str], data: ImageSet | None, label: str | None, classes: ClassNames) -> _Draft:
    if data is None:
        raise ImuError(f"--forget {' '.join(specs)}: selects rows of --data; give --data")
    if label is not None:
        raise ImuError(f"--label {label}: selectors take the labels of --data; list the images in a forget.csv instead")
    rows = select_rows(data, specs, classes)
    return _Draft(data.subset(rows), " ".join(specs), numbers([UNKNOWN]) * len(rows), rows)


def _from_folder(spec: str, data: ImageSet | None, label: str | None, classes: ClassNames) -> _Draft:
    if label is not None:
        images = _flat(spec) or open_named(spec, "forget")
        declared = [_option(label, classes)] * len(images)
        description = f"{spec} as {label}"
    else:
        images, description = open_named(spec, "forget"), spec
        declared = list(in_model_ids(images, classes).labels) if images.classes is not None else list(images.labels)
    known = {} if data is None else {data.location(row): row for row in reversed(range(len(data)))}
    rows = [known.get(images.location(row)) for row in range(len(images))]
    return _Draft(images, description, declared, rows, notes=list(images.notes))


def _option(label: str, classes: ClassNames) -> int:
    try:
        return classes.parse(label)
    except ImuError as error:
        raise ImuError(f"--label: {error}") from error


def _from_table(
    spec: str, data: ImageSet | None, label: str | None, classes: ClassNames, stdin: BinaryIO | None
) -> ForgetSet:
    path, problems = _list_path(spec)
    table = _read_table(path, stdin, problems)
    places = _places(table, data, problems)
    weights = _weights(table, problems) if "weight" in table.columns else None
    truths = _labels(table, "true_label", classes, problems) if "true_label" in table.columns else None
    declared = _declared(table, label, classes, problems)
    kept = [index for index, place in enumerate(places) if place is not None]
    found = [place for place in places if place is not None]
    draft = _Draft(
        _gather(table, kept, found, data),
        problems.name,
        [declared[index] for index in kept],
        [place.row for place in found],
        [table.lines[index] for index in kept],
        written=True,
        notes=_unknown_columns(table) + _ambiguous(table, classes),
    )
    # From here on all rows are kept: a problem in any of them ends in a refusal.
    settled = _settle(draft, data, classes, problems)
    return replace(settled, weights=weights, true_labels=truths, manifest=path, manifest_sha256=table.sha256)


def _weight(text: str) -> float:
    try:
        weight = float(text) if text.strip() else 1.0
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ImuError(f"weight '{text}' is not a number > 0; to leave a row out, remove it")
    return weight


def _weights(table: Table, problems: _Problems) -> tuple[float, ...]:
    pairs = zip(table.lines, table.column("weight"), strict=True)
    found = [problems.attempt(line, _weight, text) for line, text in pairs]
    return tuple(weight for weight in found if weight is not None)


def _labels(table: Table, column: str, classes: ClassNames, problems: _Problems) -> tuple[int, ...]:
    """A column of class names or ids; ``UNKNOWN`` where empty, and ``_WRONG`` (a problem is noted) where wrong."""
    found = []
    for line, text in zip(table.lines, table.column(column), strict=True):
        parsed = problems.attempt(line, classes.parse, text.strip()) if text.strip() else UNKNOWN
        found.append(_WRONG if parsed is None else parsed)
    return tuple(found)


_WRONG = -2


def _declared(table: Table, label: str | None, classes: ClassNames, problems: _Problems) -> tuple[int, ...]:
    if label is None:
        return _labels(table, "label", classes, problems)
    if any(text.strip() for text in table.column("label")):
        raise ImuError(f"--label {label}: {table.name} has labels of its own; remove --label, or the column")
    return (_option(label, classes),) * len(table.rows)


def _ambiguous(table: Table, classes: ClassNames) -> list[str]:
    texts = {text.strip() for column in ("label", "true_label") for text in table.column(column)}
    unclear = sorted(text for text in texts if classes.ambiguous(text))
    if not unclear:
        return []
    text = unclear[0]
    return [f"{table.name}: label {text} is read as the class named '{text}' (id {classes.parse(text)}), not as an id"]


# --- settling


def _settle(draft: _Draft, data: ImageSet | None, classes: ClassNames, problems: _Problems) -> ForgetSet:
    """Labels from the list or the data set, contradictions and repetitions found, or everything wrong refused."""
    in_data, unmapped = (numbers([]), {}) if data is None else mapped(data, classes)
    theirs = numbers(UNKNOWN if row is None else in_data[row] for row in draft.rows)
    labels = numbers(own if own != UNKNOWN else other for own, other in zip(draft.declared, theirs, strict=True))
    draft.images = replace(draft.images, labels=labels, classes=classes.names)
    _note_missing(draft, data, unmapped, problems)
    repeated = _note_copies(draft, problems)
    problems.refuse()
    relabelled = sum(UNKNOWN not in (own, other) and own != other for own, other in zip(labels, theirs, strict=True))
    return ForgetSet(
        draft.images,
        draft.description,
        whole_classes=None if data is None else _holds_all(draft, data, in_data),
        sha256=_content(draft.images),
        lines=None if draft.lines is None else tuple(draft.lines),
        relabelled=relabelled,
        duplicates=tuple(repeated),
        notes=tuple(draft.notes + _summary(draft, repeated, relabelled)),
    )


def _note_missing(draft: _Draft, data: ImageSet | None, unmapped: Mapping[int, str], problems: _Problems) -> None:
    """A problem for each line without a label; where there are no lines to mend, one for each cause."""
    missing: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(draft.images.labels):
        if label == UNKNOWN:
            missing[_why_missing(draft.rows[row], data, unmapped)].append(row)
    every = sum(len(rows) for rows in missing.values()) == len(draft.images)
    for why, rows in missing.items():
        if draft.written and not (every and data is None):
            for row in rows:
                problems.add(draft.line(row), f"the label is missing: {why}; write the class's name or id")
        else:
            what = "a label column or --label CLASS" if draft.written else "--label CLASS or a list with labels"
            remedy = "" if why in unmapped.values() else f"; give {what}"
            problems.add(0, f"the class of {len(rows)} images is not known: {why}{remedy}")


def _why_missing(row: int | None, data: ImageSet | None, unmapped: Mapping[int, str]) -> str:
    if data is None:
        return "no --data is given that could know it"
    if row is None or data.labels[row] == UNKNOWN:
        return f"{data.source} does not know it"
    return unmapped[data.labels[row]]


def _note_copies(draft: _Draft, problems: _Problems) -> list[str]:
    """Rows that are one image: two labels are a problem, the same label a repetition, returned as messages.

    Copies in different files with different labels are a problem where a list's writer gave the labels, and a warning
    where the data set did.
    """
    images = draft.images
    try:
        if not alike(images.digest_bytes()):
            return []
    except ImuError as error:
        problems.add(0, str(error))
        return []
    repeated, conflicts = [], 0
    first_at: dict[Hashable, int] = {}
    first_like: dict[str, int] = {}
    for row in range(len(images)):
        digest = images.digest(row)
        earlier = first_at.setdefault(_spot(images, row), row)
        earlier = earlier if earlier != row else first_like.get(digest, row)
        first_like.setdefault(digest, row)
        if earlier == row or min(images.labels[row], images.labels[earlier]) < 0:
            continue
        if images.labels[row] == images.labels[earlier]:
            repeated.append(f"{images.where(row)}: the same image as {images.where(earlier)}")
        elif draft.written or images.location(row) == images.location(earlier):
            problems.add(
                draft.line(row), f"{draft.place(row)}the same image has another label at {images.where(earlier)}"
            )
        else:
            conflicts += 1
    if conflicts:
        draft.notes.append(f"{draft.description}: {conflicts} images have a copy with another label")
    return repeated


def _spot(images: ImageSet, row: int) -> Hashable:
    """The same for two rows of a set if they are one sample: links can make two files one, rows of an array are themselves."""
    return images.location(row) if isinstance(images.store, Files) else images.positions[row]


def _summary(draft: _Draft, repeated: list[str], relabelled: int) -> list[str]:
    found = []
    if repeated:
        found.append(
            f"{draft.description}: {len(repeated)} rows repeat an image and its label; each counts ({repeated[0]})"
        )
    if relabelled:
        found.append(f"{draft.description}: {relabelled} labels differ from those of --data; the list's are used")
    return found


def _holds_all(draft: _Draft, data: ImageSet, in_data: Sequence[int]) -> bool:
    """Whether every row that ``--data`` has of these labels is among the images, by location or by content."""
    images = draft.images
    rows = members(in_data, images.labels)
    if set(take(in_data, rows)) != set(images.labels):
        return False
    left = _left(images, data, rows)
    # Images that are no rows of the data set may be copies of what is left; too few cannot be all.
    if len(left) > sum(row is None for row in draft.rows):
        return False
    return not left or set(data.digests(left)) <= set(images.digests())


def _left(images: ImageSet, data: ImageSet, rows: Sequence[int]) -> Sequence[int]:
    """Those of the data set's rows that are not among the images, as samples, whatever their content."""
    if images.store is data.store and not isinstance(data.store, Files):
        return take(rows, members(take(data.positions, rows), images.positions, inside=False))
    here = {images.location(row) for row in range(len(images))}
    return numbers(row for row in rows if data.location(row) not in here)


def _content(images: ImageSet) -> str:
    summed = hashlib.sha256()
    for row, (name, label) in enumerate(zip(images.names, images.labels, strict=True)):
        summed.update(json.dumps([name, label, images.digest(row)]).encode() + b"\n")
    return summed.hexdigest()


# --- writing


def manifest_text(data: ImageSet, rows: Sequence[int], suffix: str = ".csv") -> str:
    """Rows of a data set as a list that ``load_forget`` reads with the same ``--data``.

    Columns: ``file_name``, or ``index`` for array data; ``label`` as name, or id where no name is known; ``id`` where
    the data set has it.
    """
    by_name = isinstance(data.store, Files)
    columns = ["file_name" if by_name else "index", "label", *(["id"] if "id" in data.columns else [])]
    cells = []
    for row in rows:
        own = data.labels[row]
        label = "" if own == UNKNOWN else str(own) if data.classes is None else data.classes[own]
        cells.append([data.names[row] if by_name else str(row), label, *(column[row] for column in _ids(data))])
    if suffix == ".jsonl":
        return "".join(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in cells)
    return _separated([columns, *cells], "\t" if suffix == ".tsv" else ",")


def _ids(data: ImageSet) -> list[Sequence[str]]:
    return [data.columns["id"]] if "id" in data.columns else []


def _separated(rows: list[list[str]], delimiter: str) -> str:
    # Before Python 3.13 a lone carriage return is not quoted by itself.
    returns = any("\r" in cell for row in rows for cell in row)
    text = io.StringIO(newline="")
    csv.writer(
        text, delimiter=delimiter, quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL, lineterminator="\n"
    ).writerows(rows)
    return text.getvalue()


def write_manifest(data: ImageSet, rows: Sequence[int], out: Path, *, force: bool = False) -> None:
    """``manifest_text`` to a file, whole or not at all, in the format of its suffix.

    Raises:
        ImuError: the file exists and ``force`` is not set, or cannot be written; a name is not UTF-8.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ImuError(f"{out}: no kind of list; name it .csv, .tsv or .jsonl")
    if out.exists() and not force:
        raise ImuError(f"{out}: exists; choose another name, or --force to replace it")
    try:
        content = manifest_text(data, rows, out.suffix.lower()).encode()
    except UnicodeEncodeError as error:
        line = error.object[: error.start].rpartition("\n")[2] + error.object[error.start :].partition("\n")[0]
        raise ImuError(f"{out}: a file name is not UTF-8 ({line!r}); rename the file") from error
    with writing.together(out) as (file,):
        file.write_bytes(content)
