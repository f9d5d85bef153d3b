"""Lists of samples as tables: CSV, TSV and JSON lines, read with the physical line of every row, and written."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar
from weakref import WeakKeyDictionary

from imu_cli.errors import ImuError, InvalidRowsError, nearest
from imu_cli.files import outputs, streams, writing
from imu_cli.files.reading import MAX_LIST, content, cut, json_value
from imu_cli.samples.dataset import UNKNOWN, SampleSet

SUFFIXES = (".csv", ".tsv", ".jsonl")
KINDS = "name a .csv, .tsv or .jsonl file"
FILE_COLUMNS = ("file_name", "path", "filepath", "image")
TEXT_COLUMNS = ("id", "camera", "group", "reason")
KNOWN_COLUMNS = (*FILE_COLUMNS, "index", "label", *TEXT_COLUMNS, "weight", "true_label")

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass
class Problems:
    """What is wrong with a list, by line, so that it can be said at once and in order."""

    name: str
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, text: str) -> None:
        """Note a problem of a physical line, or of the whole list where that is 0."""
        self.found.append((line, f"{self.name}:{line}: {text}" if line else f"{self.name}: {text}"))

    def attempt(self, line: int, make: Callable[[Given], Made], given: Given) -> Made | None:
        """What ``make`` makes of it, or None and a problem noted."""
        try:
            return make(given)
        except ImuError as error:
            self.add(line, str(error))
            return None

    def refuse(self) -> None:
        """End here if anything is wrong.

        Raises:
            InvalidRowsError: all problems, in the order of their lines.
        """
        if self.found:
            raise InvalidRowsError([text for _, text in sorted(self.found, key=lambda problem: problem[0])])


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
        _read_streams[stream] = streams.from_stdin(stream)
    return _read_streams[stream]


def read_table(path: Path | None, stdin: BinaryIO | None, problems: Problems) -> Table:
    """The rows of a file, or of standard input where ``path`` is None; what is wrong with single rows goes to ``problems``.

    Raises:
        ImuError: it cannot be read, or is not UTF-8.
    """
    try:
        data = _read_once(stdin or streams.stdin()) if path is None else content(path, MAX_LIST, KINDS, problems.name)
    except OSError as error:
        raise ImuError(f"{problems.name}: cannot be read ({error.strerror}); {KINDS}") from error
    text = _text(problems.name, data)
    kind = _kind(path, text)
    columns, rows, lines = _json_rows(text, problems) if kind == ".jsonl" else _csv_rows(text, kind, problems)
    if not rows and not problems.found:
        problems.add(0, "holds no rows; list at least one image below the header")
    return Table(problems.name, path, tuple(columns), rows, lines, hashlib.sha256(data).hexdigest())


Rows = tuple[list[str], list[dict[str, str]], list[int]]


def _csv_rows(text: str, kind: str, problems: Problems) -> Rows:
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


def _header(line: int, cells: Sequence[str], problems: Problems) -> list[str]:
    columns = [cell.strip().lower() for cell in cells]
    for name in sorted({name for name in columns if name and columns.count(name) > 1}):
        problems.add(line, f"column '{name}' stands twice in the header; remove one")
    if len(columns) == 1 and re.search("[;\t]", columns[0]):
        problems.add(line, "the header looks separated by ';' or tabs; use commas, or name the file .tsv for tabs")
    return columns


def _json_rows(text: str, problems: Problems) -> Rows:
    columns: dict[str, None] = {}
    rows: list[dict[str, str]] = []
    lines: list[int] = []
    # Not splitlines: U+2028 may stand inside a JSON string.
    for line, source in enumerate(text.split("\n"), 1):
        if not source.strip():
            continue
        try:
            row = _json_row(source)
        except ValueError as error:
            problems.add(line, f"no JSON object of plain values ({error}); write one object a line")
            continue
        columns |= dict.fromkeys(row)
        rows.append(row)
        lines.append(line)
    return list(columns), rows, lines


def _json_row(source: str) -> dict[str, str]:
    found = json_value(source)
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}")
    row: dict[str, str] = {}
    for key, value in found.items():
        if isinstance(value, (bool, list, dict)):
            raise ValueError(f"'{cut(key)}' is a {type(value).__name__}")
        name = key.strip().lower()
        if name in row:
            raise ValueError(f"the key '{cut(name)}' stands twice")
        row[name] = "" if value is None else str(value)
    return row


def unknown_columns(table: Table) -> list[str]:
    """A note for the columns that have no meaning here, with the nearest name that has one."""
    unknown = [name for name in table.columns if name and name not in KNOWN_COLUMNS]
    named = ", ".join(f"'{name}'{nearest(name, KNOWN_COLUMNS)}" for name in unknown)
    return [f"{table.name}: ignored columns that have no meaning here: {named}"] if unknown else []


# --- writing


def manifest_text(data: SampleSet, rows: Sequence[int], suffix: str = ".csv") -> str:
    """Rows of a data set as a list that ``load_forget`` reads with the same ``--data``.

    Columns: ``file_name``, or ``index`` for array data; ``label`` as name, or id where no name is known; ``id`` and
    ``camera`` where the data set has them.
    """
    by_name = data.root is not None
    columns = ["file_name" if by_name else "index", "label", *_told(data)]
    cells = []
    for row in rows:
        own = data.labels[row]
        label = "" if own == UNKNOWN else data.class_text(own)
        cells.append(
            [data.names[row] if by_name else str(row), label, *(data.columns[name][row] for name in _told(data))]
        )
    if suffix == ".jsonl":
        return "".join(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in cells)
    return _separated([columns, *cells], "\t" if suffix == ".tsv" else ",")


def _told(data: SampleSet) -> list[str]:
    return [name for name in ("id", "camera") if name in data.columns]


def _separated(rows: list[list[str]], delimiter: str) -> str:
    # Before Python 3.13 a lone carriage return is not quoted by itself.
    returns = any("\r" in cell for row in rows for cell in row)
    text = io.StringIO(newline="")
    csv.writer(
        text, delimiter=delimiter, quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL, lineterminator="\n"
    ).writerows(rows)
    return text.getvalue()


def write_manifest(data: SampleSet, rows: Sequence[int], out: Path, *, force: bool = False) -> None:
    """``manifest_text`` to a file, whole or not at all, in the format of its suffix.

    Raises:
        ImuError: the file exists and ``force`` is not set, or cannot be written; a name is not UTF-8.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ImuError(f"{out}: no kind of list; name it .csv, .tsv or .jsonl")
    outputs.refuse_output(out, None, force)
    try:
        content = manifest_text(data, rows, out.suffix.lower()).encode()
    except UnicodeEncodeError as error:
        line = error.object[: error.start].rpartition("\n")[2] + error.object[error.start :].partition("\n")[0]
        raise ImuError(f"{out}: a file name is not UTF-8 ({line!r}); rename the file") from error
    replaced = partial(outputs.refuse_output, source=None, force=True) if force else writing.nothing
    with writing.together(out, replaced=replaced) as (file,):
        file.write_bytes(content)
