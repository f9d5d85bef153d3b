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
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, TextIO

from .dataset import UNKNOWN, ClassNames, Files, ImageSet, in_model_ids, is_selector, known_labels, nearest, select_rows
from .errors import ImuError, InvalidRowsError
from .sources import Role, inside, open_flat, open_named

SUFFIXES = (".csv", ".tsv", ".jsonl")
FILE_COLUMNS = ("file_name", "path", "filepath", "image")
TEXT_COLUMNS = ("id", "group", "reason")
KNOWN_COLUMNS = (*FILE_COLUMNS, "index", "label", *TEXT_COLUMNS, "weight", "true_label")


@dataclass
class _Problems:
    """What is wrong with a list, by line, so that it can be said at once and in order."""

    name: str
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, text: str) -> None:
        self.found.append((line, f"{self.name}:{line}: {text}" if line else f"{self.name}: {text}"))

    def attempt(self, line: int, make: Callable[[], "_Place | int | float"]) -> "_Place | int | float | None":
        """What ``make`` makes, or None and a problem noted."""
        try:
            return make()
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


def _read_table(path: Path | None, stdin: BinaryIO | None, problems: _Problems) -> Table:
    try:
        data = (stdin or sys.stdin.buffer).read() if path is None else path.read_bytes()
    except OSError as error:
        raise ImuError(f"{problems.name}: cannot be read ({error.strerror}); name a .csv, .tsv or .jsonl file") from error
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
            problems.add(line, f"has {len(cells)} fields, the header {len(columns)}; quote fields that hold '{delimiter}'")
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
            real = self._real(clean)
            mode = os.stat(real).st_mode
        except (OSError, ValueError) as error:
            raise ImuError(f"{self.shown / name!s} is missing{self._hint(name)}") from error
        if not stat.S_ISREG(mode):
            what = "is a folder, not an image" if stat.S_ISDIR(mode) else "is no regular file"
            raise ImuError(f"{self.shown / name} {what}; name image files")
        return _Place(clean, real, self.rows.get(real))

    def _real(self, clean: str) -> str:
        """The resolved path; folders are resolved once, since that costs more than all else."""
        above, own = os.path.split(clean)
        if above not in self.parents:
            self.parents[above] = os.path.realpath(os.path.join(self.root, above))
        real = os.path.join(self.parents[above], own)
        if stat.S_ISLNK(os.lstat(real).st_mode):
            real = os.path.realpath(real)
        if not inside(self.root, real):
            raise ImuError(f"'{clean}' is a link to {real}, outside {self.shown}; copy the image in")
        return real

    def _hint(self, name: str) -> str:
        if "\0" not in name and (self.beside / name).is_file():
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


def _placer(table: Table, data: ImageSet | None, problems: _Problems) -> Callable[[dict[str, str]], _Place] | None:
    """How a row of this table names its image, by the one locator column that it has."""
    located = [name for name in table.columns if name in (*FILE_COLUMNS, "index")]
    if len(located) > 1:
        problems.add(0, f"has the columns {', '.join(located)}; keep exactly one that says which image is meant")
    elif not located and table.columns:
        near = next((nearest(name, KNOWN_COLUMNS[:5]) for name in table.columns if nearest(name, KNOWN_COLUMNS[:5])), "")
        problems.add(0, f"has neither a file_name nor an index column in its header ({', '.join(table.columns)}){near}")
    elif located == ["index"] and data is None:
        problems.add(0, "has an index column, which counts rows of --data; give --data")
    if len(located) != 1 or (located == ["index"] and data is None):
        return None
    if located == ["index"] and data is not None:
        return lambda row: _row(row.get("index", ""), data)
    finder = _finder(table, data)
    return lambda row: finder.find(row.get(located[0], ""))


def _places(table: Table, data: ImageSet | None, problems: _Problems) -> list[_Place | None]:
    """Each row's image, None where there is none (a problem is noted)."""
    placer = _placer(table, data, problems)
    if placer is None:
        return [None] * len(table.rows)
    found = (problems.attempt(line, lambda row=row: placer(row)) for row, line in zip(table.rows, table.lines, strict=True))  # type: ignore[misc]
    return [place if isinstance(place, _Place) else None for place in found]


def _gather(table: Table, kept: Sequence[int], places: Sequence[_Place], data: ImageSet | None) -> ImageSet:
    """The images of the table's rows ``kept``: rows of the data set where all are, else files of their own."""
    origins = [f"{table.name}:{table.lines[index]}" for index in kept]
    columns = {name: [table.column(name)[i] for i in kept] for name in TEXT_COLUMNS if name in table.columns}
    rows = [place.row for place in places if place.row is not None]
    if data is not None and len(rows) == len(places):
        images = data.subset(rows)
        return replace(images, source=table.name, columns={**images.columns, **columns}, origins=origins, notes=())
    finder = _finder(table, data)
    names = [place.name for place in places]
    real = {place.name: place.real for place in places}
    store = Files(Path(finder.root), str(finder.shown), names, real)
    unknown = [UNKNOWN] * len(names)
    return ImageSet(table.name, names, unknown, None, store, range(len(names)), columns=columns, origins=origins)
