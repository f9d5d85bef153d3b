"""Lists of samples as files: CSV, TSV and JSON lines, read with the physical line of every row, and written."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakKeyDictionary

from imu_cli.errors import ImuError
from imu_cli.files import outputs, streams, writing
from imu_cli.files.reading import MAX_LIST, content, cut
from imu_cli.samples import encodings
from imu_cli.samples.column_names import COMPLETION, NO_NAMES, TEXT, ColumnNames
from imu_cli.samples.dataset import UNKNOWN, WORDS, SampleSet
from imu_cli.samples.json_lines import json_rows
from imu_cli.samples.tables import Problems, Rows, Table, aliased
from imu_cli.samples.texts import conll, sentences

SUFFIXES = (".csv", ".tsv", ".jsonl")
"""What lists are written as."""
JSON_LINES = (".jsonl", ".ndjson", ".json")
READ_SUFFIXES = (".csv", ".tsv", *JSON_LINES, *conll.SUFFIXES)
KINDS = "name a .csv, .tsv or .jsonl file"
TAB = "\t"


def _kind(path: Path | None, data: bytes) -> str:
    """The format by the file's name; standard input shows by its first line what it is."""
    if path is not None:
        own = path.suffix.lower()
        return ".jsonl" if own in JSON_LINES else ".conll" if own in conll.SUFFIXES else own
    first = data.lstrip().split(b"\n", 1)[0]
    if first.startswith((b"{", b"[")):
        return ".jsonl"
    if conll.is_likely(first):
        return ".conll"
    return ".tsv" if b"\t" in first and b"," not in first else ".csv"


_read_streams: "WeakKeyDictionary[BinaryIO, bytes]" = WeakKeyDictionary()


def _read_once(stream: BinaryIO) -> bytes:
    """A stream's bytes, as often as they are asked for: ``peek`` needs the list before ``load_forget`` does."""
    if stream not in _read_streams:
        _read_streams[stream] = streams.from_stdin(stream)
    return _read_streams[stream]


def read_table(path: Path | None, stdin: BinaryIO | None, problems: Problems, names: ColumnNames = NO_NAMES) -> Table:
    """The rows of a file, or of standard input where ``path`` is None; what is wrong with single rows goes to ``problems``.

    Raises:
        ImuError: it cannot be read, is a file of another kind, or is not UTF-8.
    """
    try:
        data = _read_once(stdin or streams.stdin()) if path is None else content(path, MAX_LIST, KINDS, problems.name)
    except OSError as error:
        raise ImuError(f"{problems.name}: cannot be read ({error.strerror}); {KINDS}") from error
    encodings.refuse(problems.name, data)
    kind = _kind(path, data)
    if kind == ".conll":
        universal = path is not None and path.suffix.lower() == conll.UNIVERSAL
        rows = conll.sentence_rows(data, names, problems, universal)
    else:
        rows = json_rows(data, names, problems) if kind == ".jsonl" else _csv_rows(data, kind, names, problems)
    if not rows.lines and not problems.found:
        problems.add(
            0, "holds no rows; list at least one sample" + (" below the header" if kind in (".csv", ".tsv") else "")
        )
    table = aliased(rows.table(problems.name, path, hashlib.sha256(data).hexdigest()))
    return sentences.words_of(table, problems)


def _opened(data: bytes) -> io.TextIOWrapper:
    # newline="" keeps line ends inside quotes.
    return io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")


# --- fields between separators


def _csv_rows(data: bytes, kind: str, names: ColumnNames, problems: Problems) -> Rows:
    delimiter = TAB if kind == ".tsv" else ","
    if kind == ".tsv" and b'"' in data and _one_row_a_line(data):
        # Many data sets' tables know no quoting: a quote in them is a quote, and reading it as more would swallow rows.
        tried = Problems(problems.name)
        quoted = _separated_rows(data, delimiter, csv.QUOTE_MINIMAL, names, tried)
        plain = _separated_rows(data, delimiter, csv.QUOTE_NONE, names, problems)
        if not tried.found and len(quoted.lines) == len(plain.lines):
            return quoted
        plain.notes.append(f"{problems.name}: its quotes are read as characters of the text, since they do not pair up")
        return plain
    return _separated_rows(data, delimiter, csv.QUOTE_MINIMAL, names, problems)


def _one_row_a_line(data: bytes) -> bool:
    """Whether every line has as many tabs as the first."""
    return len({line.count(TAB) for line in _opened(data) if line.strip()}) == 1


def _separated_rows(data: bytes, delimiter: str, quoting: Any, names: ColumnNames, problems: Problems) -> Rows:
    # strict turns an unclosed quote into an error, not a giant field.
    reader, rows = csv.reader(_opened(data), delimiter=delimiter, quoting=quoting, strict=True), Rows()
    blank: list[int] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            # "" alone is somebody's row, commas alone are a spreadsheet's.
            _fill(rows, blank if len(rows.columns) == 1 else [])
            return rows
        except csv.Error as error:
            problems.add(line, f"cannot be split into fields ({error}); {_quoting_remedy(str(error))}")
            if "expected after" in str(error) and rows.own:
                continue  # what is wrong ends with its line
            return rows
        if not "".join(cells).strip():
            # Empty rows between texts count as rows everywhere else, so an index would shift if they did not here.
            blank += (
                [line]
                if {TEXT, COMPLETION} & set(rows.columns) and (len(cells) > 1 or len(cells) == len(rows.columns))
                else []
            )
            continue
        if not rows.own:
            if not _begins(rows, line, cells, delimiter, names, problems):
                return rows  # what follows from a header of another kind is no problem of its own
            if not rows.headless:
                continue
        if "".join(cells[len(rows.columns) :]).strip():
            problems.add(line, _too_many(rows, len(cells), delimiter))
            continue
        _fill(rows, blank)
        blank = []
        # A row may be short: spreadsheets leave out trailing empty cells.
        if len(cells) < len(rows.columns):
            rows.short.append((line, len(cells)))
        rows.add(line, dict(zip(rows.columns, cells, strict=False)))


def _fill(rows: Rows, blank: Sequence[int]) -> None:
    for line in blank:
        rows.add(line, {TEXT: ""})


def _too_many(rows: Rows, count: int, delimiter: str) -> str:
    first, mark = "the first row" if rows.headless else "the header", "tabs" if delimiter == TAB else repr(delimiter)
    return f"has {count} fields, {first} {len(rows.columns)}; quote fields that hold {mark}"


def _begins(
    rows: Rows, line: int, cells: Sequence[str], delimiter: str, names: ColumnNames, problems: Problems
) -> bool:
    """Take the first row as the header, or by positions; whether rows of this kind may follow."""
    heads = [cell.strip().lower() for cell in cells]
    rows.headless = names.headless(heads)
    rows.own = [str(at) for at in range(1, len(cells) + 1)] if rows.headless else heads
    rows.columns = _positioned(line, names, cells, problems) if rows.headless else names.renamed(heads)
    if not rows.headless and _refuse_header(line, heads, delimiter, problems):
        rows.columns = []
        return False
    return True


def _positioned(line: int, names: ColumnNames, cells: Sequence[str], problems: Problems) -> list[str]:
    return problems.attempt(line, names.by_position, len(cells)) or [""] * len(cells)


def _quoting_remedy(error: str) -> str:
    if "field larger" in error:
        return "a quote that opens there is not closed, or a text is too long to be one; check the quotes"
    if "unexpected end" in error:
        return "a quote that opens there is not closed; check the quotes"
    return "check the quotes: one inside a quoted field is written twice"


def _refuse_header(line: int, columns: Sequence[str], delimiter: str, problems: Problems) -> bool:
    """Problems of a header; whether it shows that the file is of another kind, whose rows mean nothing."""
    if re.match(r"[\[{]\s*[\"{]", columns[0]):
        problems.add(line, "begins as JSON lines do; name the file .jsonl")
        return True
    for name in sorted({name for name in columns if name and columns.count(name) > 1}):
        problems.add(line, f"column '{cut(name)}' stands twice in the header; remove one")
    if len(columns) == 1 and re.search("[;\t|]" if delimiter == "," else "[;,|]", columns[0]):
        remedy = (
            "';' or tabs; use commas, or name the file .tsv for tabs"
            if delimiter == ","
            else "commas or ';'; use tabs, or name the file .csv for commas"
        )
        problems.add(line, f"the header looks separated by {remedy}")
        return True
    return False


# --- writing


def manifest_text(data: SampleSet, rows: Sequence[int], suffix: str = ".csv") -> str:
    """Rows of a data set as a list that ``load_forget`` reads with the same ``--data``.

    Columns: ``file_name``, or ``index`` for array data; ``label`` as name, or id where no name is known; ``id`` and
    ``camera`` where the data set has them.
    """
    by_name = data.root is not None or data.kind is WORDS  # a word is named by its sentence's number and its own
    columns = ["file_name" if data.root is not None else "index", "label", *_told(data)]
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
