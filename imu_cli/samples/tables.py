"""A list of samples as a table: its rows as they are read, packed, with the physical line of each, and what is wrong with them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from imu_cli import signals
from imu_cli.errors import ImuError, InvalidRowsError, nearest
from imu_cli.files.reading import cut
from imu_cli.samples.column_names import (
    ALIASES,
    COMPLETION,
    KNOWN_COLUMNS,
    MESSAGES,
    PARAPHRASES,
    RECORD_COLUMNS,
    TAGS,
    TEXT,
)
from imu_cli.samples.packing import A_BLOCK, Packer, Texts, numbers, take

CR_ALONE = "its lines end in CR alone; write it with LF (tr '\\r' '\\n' < FILE > OUT)"
"""What to say of a file whose lines are not told apart."""

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
            told = [text for _, text in sorted(self.found, key=lambda problem: problem[0])]
            raise InvalidRowsError(list(dict.fromkeys(told)))  # all words of a sentence may have one problem


@dataclass(frozen=True)
class Table:
    """Rows of text as a file has them, each with the physical line it starts on; packed, a few bytes beside the text.

    Attributes:
        name: the file as the user named it, or ``stdin``.
        path: the file, None for standard input.
        columns: in the file's order, stripped and in lower case, by the meanings that ``--columns`` gives them.
        own: the same as the file calls them; a file without header has numbers.
        cells: by column; empty text where a row has none.
        lines: physical line of each row.
        sha256: of the file's bytes.
        odd: (line, column, what is there) for cells that are to hold a text and hold something else.
        short: (line, cells) of rows that have fewer than the header.
        notes: what a user should know of how it was read.
        words: of a list of sentences, which has a row for every word, the word's number in its sentence.
        at: the row of the data set that each was found to be, ``UNKNOWN`` where it was not (a problem is noted); None where
            none was looked for.
    """

    name: str
    path: Path | None
    columns: tuple[str, ...]
    own: tuple[str, ...]
    cells: Mapping[str, Texts]
    lines: Sequence[int]
    sha256: str
    odd: tuple[tuple[int, str, str], ...] = ()
    short: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()
    at: Sequence[int] | None = None
    words: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def folder(self) -> Path:
        """Where relative names start without ``--data``."""
        return Path() if self.path is None else self.path.parent

    def column(self, name: str) -> Sequence[str]:
        """One column's text, empty where a row has none."""
        return self.cells[name] if name in self.cells else [""] * len(self)

    def over(self, rows: Sequence[int]) -> "Table":
        """The table of some of its rows, in their order; a row may be named twice."""
        made: dict[str, Any] = {name: take(cells, rows) for name, cells in self.cells.items()}
        words = None if self.words is None else take(self.words, rows)
        return replace(self, cells=made, lines=take(self.lines, rows), words=words)


class Rows:
    """A table that is being read, row by row, packed as it comes."""

    def __init__(self) -> None:
        self.columns: list[str] = []
        self.own: list[str] = []
        self.lines = numbers([])
        self.odd: list[tuple[int, str, str]] = []
        self.short: list[tuple[int, int]] = []
        self.notes: list[str] = []
        self.headless = False
        self._packers: dict[str, Packer] = {}
        self._held: dict[str, list[str]] = {}

    def add(self, line: int, cells: Mapping[str, str]) -> None:
        """One row, by column; a column without a name is none."""
        held = self._held
        if not cells.keys() <= held.keys():
            waiting = len(self.lines) % A_BLOCK
            for name in cells:
                if name and name not in held:
                    self._packers[name], held[name] = Packer(len(self.lines) - waiting), [""] * waiting
        for name, texts in held.items():
            texts.append(cells.get(name, ""))
        self.lines.append(line)
        if not len(self.lines) % A_BLOCK:
            self._pack()

    def _pack(self) -> None:
        for name, texts in self._held.items():
            self._packers[name].extend(texts)
            texts.clear()
        signals.check()

    def table(self, name: str, path: Path | None, sha256: str) -> Table:
        """All of it."""
        self._pack()
        for column in self.columns:
            if column:
                self._packers.setdefault(column, Packer(len(self.lines)))
        cells = {column: packer.packed() for column, packer in self._packers.items()}
        told = (tuple(self.odd), tuple(self.short), tuple(self.notes))
        return Table(name, path, tuple(self.columns), tuple(self.own), cells, self.lines, sha256, *told)


def aliased(table: Table) -> Table:
    """A list of questions and answers as prompts and completions: where it has both columns, and neither those nor texts."""
    known = {TEXT, *RECORD_COLUMNS} & set(table.columns)
    if known or not set(ALIASES) <= set(table.columns):
        return replace(table, odd=tuple(item for item in table.odd if item[1] not in ALIASES))
    columns = tuple(ALIASES.get(name, name) for name in table.columns)
    cells = {ALIASES.get(name, name): packed for name, packed in table.cells.items()}
    odd = tuple((line, ALIASES.get(name, name), what) for line, name, what in table.odd)
    return replace(table, columns=columns, cells=cells, odd=odd)


def unknown_columns(table: Table) -> list[str]:
    """A note for the columns that have no meaning here, with the nearest name that has one."""
    known = (*KNOWN_COLUMNS, *(PARAPHRASES if {COMPLETION, MESSAGES} & set(table.columns) else ()))
    unknown = [name for name in table.columns if name and name not in known]
    free = [
        name for name in KNOWN_COLUMNS if name not in table.columns and not (name == TAGS and table.words is not None)
    ]
    named = ", ".join(f"'{cut(name)}'{nearest(name, free)}" for name in unknown)
    return [f"{table.name}: ignored columns that have no meaning here: {named}"] if unknown else []
