"""Where a row of a list points: a file below a folder, or a row of the data set."""

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from imu_cli.errors import ImuError, nearest
from imu_cli.files.reading import cut
from imu_cli.samples.column_names import ABOUT_COLUMNS, COMPLETION, FILE_COLUMNS, KNOWN_COLUMNS, TEXT, TOKENS
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.images.folders import inside
from imu_cli.samples.images.stores import Files
from imu_cli.samples.tables import Problems, Table
from imu_cli.samples.texts import proposals
from imu_cli.samples.texts.sentences import Words
from imu_cli.samples.texts.stores import Texts
from imu_cli.samples.vectors import Vectors

LOOKED_AT = 100
"""First rows of a list by which it is known what its names are relative to."""


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


def points_into(table: Table, data: SampleSet | None) -> bool:
    """Whether the names of a list are those of a data set: none of the first is a file beside the list, one is below its folder.

    Names of the rows of a file of features are always the data set's.
    """
    column = next((name for name in table.columns if name in FILE_COLUMNS), None)
    if data is None or column is None:
        return False
    if not isinstance(data.store, Files):
        return isinstance(data.store, Vectors)
    names = [name for name in table.column(column)[:LOOKED_AT] if name.strip() and not os.path.isabs(name)]
    there = (os.path.lexists(os.path.join(data.store.root, name)) for name in names)
    return not any(os.path.lexists(table.folder / name) for name in names) and any(there)


def _base(table: Table, data: SampleSet | None) -> tuple[Path, str]:
    """The folder that relative names start from: the data set's or the list's, as it is shown, and where it really is."""
    if data is None or not isinstance(data.store, Files):
        return table.folder, os.path.realpath(table.folder)
    return Path(data.store.shown), str(data.store.root)


def _finder(table: Table, data: SampleSet | None) -> _Finder:
    rows = data.rows_by_location() if data is not None and isinstance(data.store, Files) else {}
    return _Finder(*_base(table, data), table.folder, rows)


def _row(text: str, data: SampleSet) -> _Place:
    if not text.strip():
        raise ImuError("the index is empty; write it, or take the row out")
    if not re.fullmatch(r"-?[0-9]{1,18}", text.strip()):
        raise ImuError(f"index '{cut(text)}' is not a whole number; rows of {data.source} count from 0")
    row = int(text)
    if not 0 <= row < len(data):
        raise ImuError(f"index {row} is out of range; {data.source} has the rows 0 to {len(data) - 1}")
    return _Place(data.names[row], data.location(row), row)


def _named(name: str, numbers: Mapping[str, int], data: SampleSet) -> _Place:
    """The row of a file of features that was made of a file of that name."""
    if name not in numbers:
        raise ImuError(
            f"'{name}' is not in {data.source}{nearest(name, list(numbers)[:10_000])}; correct it, or extract its features"
        )
    row = numbers[name]
    return _Place(name, data.location(row), row)


def _placer(table: Table, data: SampleSet | None, problems: Problems) -> tuple[str, Callable[[str], _Place]] | None:
    """The one locator column of this table, and how a cell of it names its image."""
    located = [name for name in table.columns if name in (*FILE_COLUMNS, "index")]
    if located and located[0] in FILE_COLUMNS and data is not None and isinstance(data.store, Texts | Words):
        own = "index, id or tokens" if isinstance(data.store, Words) else "index, id or text"
        problems.add(0, f"names files, and {data.source} holds {data.kind.many}; name its rows by {own}")
        return None
    if {TEXT, COMPLETION, TOKENS} & set(table.columns) and not located and data is not None:
        problems.add(0, f"holds texts, and {data.source} does not; give the texts' own --data, or leave it out")
        return None
    if len(located) > 1:
        problems.add(0, f"has the columns {', '.join(located)}; keep exactly one that says which image is meant")
    elif not located and table.columns:
        proposed = proposals.of_samples(table)
        near = "" if proposed else next((near for name in table.own if (near := nearest(name, KNOWN_COLUMNS[:5]))), "")
        problems.add(
            0,
            f"has neither a file_name nor an index column in its header ({proposals.listed(table)}), and no text{near}"
            + (f"; add {proposed}" if proposed else ""),
        )
    elif located == ["index"] and data is None:
        proposed = proposals.of_samples(table)
        instead = f", or if it holds texts add {proposed}" if proposed else ""
        problems.add(0, f"has an index column, which counts rows of --data; give --data{instead}")
    if len(located) != 1 or (located == ["index"] and data is None):
        return None
    if located == ["index"] and data is not None:
        return "index", lambda cell: _row(cell, data)
    if data is not None and isinstance(data.store, Vectors):
        numbers = {name: number for number, name in reversed(list(enumerate(data.names)))}
        return located[0], lambda cell: _named(cell, numbers, data)
    return located[0], _finder(table, data).find


def places_of(table: Table, data: SampleSet | None, problems: Problems) -> list[_Place | None]:
    """Each row's sample, None where there is none (a problem is noted)."""
    if table.at is not None:
        known = [(None if row == UNKNOWN else row) for row in table.at]
        return [
            None if row is None or data is None else _Place(data.names[row], data.location(row), row) for row in known
        ]
    placer = _placer(table, data, problems)
    if placer is None:
        return [None] * len(table)
    column, place = placer
    return [problems.attempt(line, place, cell) for cell, line in zip(table.column(column), table.lines, strict=True)]


def gathered(table: Table, kept: Sequence[int], places: Sequence[_Place], data: SampleSet | None) -> SampleSet:
    """The images of the table's rows ``kept``: rows of the data set where all are, else files of their own."""
    origins = [f"{table.name}:{table.lines[index]}" for index in kept]
    columns = {name: [table.column(name)[index] for index in kept] for name in ABOUT_COLUMNS if name in table.columns}
    rows = [place.row for place in places if place.row is not None]
    if data is not None and len(rows) == len(places):
        samples = data.subset(rows)
        return replace(samples, source=table.name, columns={**samples.columns, **columns}, origins=origins, notes=())
    (shown, root), names = _base(table, data), [place.name for place in places]
    store = Files(Path(root), str(shown), names, {place.name: place.real for place in places})
    unknown = [UNKNOWN] * len(names)
    return SampleSet(table.name, names, unknown, None, store, range(len(names)), columns=columns, origins=origins)
