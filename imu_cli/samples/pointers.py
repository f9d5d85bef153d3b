"""Rows of the data set that a list names by what they are: by their ``id``, or by the very text."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from imu_cli.errors import nearest
from imu_cli.files.reading import cut
from imu_cli.samples.column_names import COMPLETION, FILE_COLUMNS, MESSAGES, PAIR, TEXT, TOKENS
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.packing import RowNames, as_array, numbers
from imu_cli.samples.tables import Problems, Table
from imu_cli.samples.texts import proposals
from imu_cli.samples.texts.reading import is_record, store_of, wrong_rows
from imu_cli.samples.texts.records import Records
from imu_cli.samples.texts.sentences import WordNames, Words, firsts, places, samples_of
from imu_cli.samples.texts.stores import Texts

SEARCHED = 200_000
"""Rows of a data set up to which a text that is not in it is looked for in other capitals and spaces."""


COMPARED, HINTS = 20_000, 20
"""Rows up to which the nearest id is looked for, and of how many wrong ones: 20 times a tenth of a second; no more are shown."""


def by_id_alone(table: Table) -> bool:
    """Whether a list has nothing but ids to say which rows it means."""
    return "id" in table.columns and not {*FILE_COLUMNS, "index", TEXT, TOKENS, COMPLETION, MESSAGES} & set(
        table.columns
    )


def by_number(table: Table, data: SampleSet | None) -> Table:
    """A list whose column of names has what rows of ``data`` are called that have no other name, as a column ``index``.

    So ``imu influence --format csv`` writes them: ``17``, or ``17:3`` of words. A file of that name beside the list is one.
    """
    column = next((name for name in table.columns if name in FILE_COLUMNS), None)
    if data is None or column is None or "index" in table.columns or not isinstance(data.names, RowNames | WordNames):
        return table
    cells = table.column(column)
    numbered = all(re.fullmatch("[0-9]{1,18}(:[0-9]{1,18})?", cell.strip()) for cell in cells)
    if not numbered or any(os.path.lexists(table.folder / cell) for cell in cells[:1]):
        return table
    columns = tuple("index" if name == column else name for name in table.columns)
    return replace(table, columns=columns, cells={**table.cells, "index": table.cells[column]})


def pointed(table: Table, data: SampleSet | None, problems: Problems) -> Table:
    """The list with the rows of ``data`` that it names by id or by text, as ``Table.at``; other lists as they are.

    A row whose id several rows of the data set have stands for all of them.
    """
    if data is None:
        if by_id_alone(table):
            proposed = proposals.of_samples(table)
            instead = f", or if it holds samples of its own add {proposed}" if proposed else ""
            problems.add(0, f"names rows of --data by their id; give --data{instead}")
            return replace(table, at=numbers([UNKNOWN]) * len(table))
        return table
    if by_id_alone(table):
        return _by_id(table, data, problems)
    if table.words is not None and isinstance(data.store, Words):
        return _by_sentence(table, data, problems)
    own = TEXT in table.columns or is_record(table)
    if own and isinstance(data.store, Texts) and not set(FILE_COLUMNS) & set(table.columns):
        if "index" in table.columns:
            _compare(table, data, data.store, problems)
            return table
        return _by_text(table, data, data.store, problems)
    return table


def _by_id(table: Table, data: SampleSet, problems: Problems) -> Table:
    if "id" not in data.columns:
        problems.add(
            0, f"names rows by id, and {data.source} has no column of that name; name them by index, or add it"
        )
        return replace(table, at=numbers([UNKNOWN]) * len(table))
    wanted = {text.strip() for text in table.column("id")}
    rows_of: dict[str, list[int]] = defaultdict(list)
    known = [text.strip() for text in data.columns["id"]]
    for row, text in enumerate(known):
        if text in wanted:
            rows_of[text].append(row)
    own, at = numbers([]), numbers([])
    left = HINTS if len(known) <= COMPARED else 0
    for row, text in enumerate(table.column("id")):
        found = rows_of.get(text.strip(), []) if text.strip() else []
        if not text.strip():
            problems.add(table.lines[row], "the id is empty; write it, or take the row out")
        elif not found:
            near = nearest(text.strip(), dict.fromkeys(known)) if left else ""
            left = max(left - 1, 0)
            problems.add(
                table.lines[row], f"no row of {data.source} has the id '{cut(text.strip())}'{near}; correct it"
            )
        own.extend([row] * max(len(found), 1))
        at.extend(found or [UNKNOWN])
    return replace(table.over(own), at=at)


# --- by the text


def _same_shape(table: Table, store: Texts, problems: Problems) -> bool:
    if is_record(table) != isinstance(store, Records):
        mine, theirs = ("records", "texts") if is_record(table) else ("texts", "records")
        problems.add(0, f"holds {mine}, and {store.shown} {theirs}; give both with the same columns")
        return False
    if ((PAIR if not is_record(table) else COMPLETION) in table.columns) == (store.pairs is not None):
        return True
    if is_record(table):
        problems.add(
            0,
            f"and {store.shown}: one holds conversations, the other prompts and completions; give both with the same columns",
        )
        return False
    theirs, mine = ("pairs of texts", "single ones") if store.pairs is not None else ("single texts", "pairs")
    problems.add(
        0, f"holds {mine}, and {store.shown} {theirs}; name its rows by index, or give both with the same columns"
    )
    return False


def _by_sentence(table: Table, data: SampleSet, problems: Problems) -> Table:
    """Each row's word found in the data set by its sentence and place."""
    own, stand = samples_of(table, table.name), places(data)
    assert isinstance(own.store, Words)
    assert isinstance(data.store, Words)
    assert stand is not None
    of_text: dict[bytes, list[int]] = defaultdict(list)
    for row in firsts(data):
        of_text[data.store.sentence(data.positions[row])].append(int(stand.of[row]))
    left: dict[tuple[bytes, int], list[int]] = {}
    at, labels, said = numbers([]), table.column("label"), set[int]()
    for row, word in enumerate(own.store.words.tolist()):
        key = own.store.sentence(row), word
        if key not in left:
            left[key] = [found for one in of_text.get(key[0], ()) for found in stand.rows(one, word).tolist()]
        same, line = left[key], table.lines[row]
        if same:
            at.append(_chosen(same, labels[row].strip(), data))
            if len(same) > 1:
                same.remove(at[-1])
            continue
        at.append(UNKNOWN)
        if key[0] in of_text:
            why = f"{data.source} has no class for word {word + 1} of this sentence; write -100 as its tag"
            problems.add(line, why)
        elif line not in said:
            said.add(line)
            problems.add(line, f"{data.source} has no such sentence; correct it, or take it out")
    return replace(table, at=at)


def _compare(table: Table, data: SampleSet, store: Texts, problems: Problems) -> None:
    """A problem for each row whose text is not that of the row its index names."""
    if not _same_shape(table, store, problems):
        return
    wrong, own = wrong_rows(table, problems), store_of(table)
    for row, cell in enumerate(table.column("index")):
        text = cell.strip()
        if row in wrong or not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) < len(data)):
            continue  # what is wrong with the index is said where it is followed
        at = data.positions[int(text)]
        if own.stored(row) != store.stored(at):
            problems.add(
                table.lines[row],
                f"its text is not that of row {text} of {data.source} ({store.where(at)}); correct one, or leave the text out",
            )


def _by_text(table: Table, data: SampleSet, store: Texts, problems: Problems) -> Table:
    """Each row's text found in the data set: of several rows that have it, one with the same label, and each only once."""
    nowhere = replace(table, at=numbers([UNKNOWN]) * len(table))
    if not _same_shape(table, store, problems):
        return nowhere
    wrong, own = wrong_rows(table, problems), store_of(table)
    rows = np.flatnonzero(np.isin(store.sizes[as_array(data.positions)], own.sizes))
    rows_of: dict[bytes, list[int]] = defaultdict(list)
    for row in rows.tolist():
        rows_of[store.stored(data.positions[row])].append(row)
    at, labels = numbers([]), table.column("label")
    missing = []
    for row in range(len(table)):
        same = [] if row in wrong else rows_of[own.stored(row)]
        if not same:
            missing += [] if row in wrong else [row]
            at.append(UNKNOWN)
            continue
        chosen = _chosen(same, labels[row].strip(), data)
        at.append(chosen)
        if len(same) > 1:
            same.remove(chosen)
    hint = _nearly(own, missing, data, store)
    for row in missing:
        problems.add(
            table.lines[row],
            f"no row of {data.source} has exactly this text{hint(row)}; correct it, or take the row out",
        )
    return replace(table, at=at)


def _chosen(rows: Sequence[int], label: str, data: SampleSet) -> int:
    return next((row for row in rows if label and data.class_text(data.labels[row]) == label), rows[0])


def _nearly(own: Texts, missing: Sequence[int], data: SampleSet, store: Texts) -> Callable[[int], str]:
    """What to say of a text that is in the data set but for capitals and spaces."""
    if not missing or len(data) > SEARCHED:
        return lambda row: ""
    known = {_folded(store.stored(at)): at for at in data.positions}

    def said(row: int) -> str:
        at = known.get(_folded(own.stored(row)))
        return "" if at is None else f" ({store.where(at)} has it but for capitals or spaces)"

    return said


def _folded(text: bytes) -> str:
    return " ".join(text.decode("utf-8", "replace").casefold().split())
