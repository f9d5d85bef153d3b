"""Texts of a file: which files hold them, and what is wrong with each row of one."""

import os
from collections.abc import Sequence

import numpy as np

from imu_cli.errors import nearest
from imu_cli.files.reading import cut
from imu_cli.samples import packing
from imu_cli.samples.column_names import (
    ABOUT_COLUMNS,
    COMPLETION,
    FILE_COLUMNS,
    MESSAGES,
    PAIR,
    PARAPHRASES,
    PROMPT,
    RECORD_COLUMNS,
    SAMPLE_TEXTS,
    SENTENCE_COLUMNS,
    TEXT,
    ColumnNames,
)
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.packing import RowNames, alike, as_array, numbers
from imu_cli.samples.tables import Problems, Table
from imu_cli.samples.texts import proposals, records, sentences
from imu_cli.samples.texts.records import Records
from imu_cli.samples.texts.stores import Texts


def holds_texts(table: Table, names: ColumnNames) -> bool:
    """Whether the rows of a list are texts: it has a column of them, and none of image files unless ``--columns`` says which it is."""
    return TEXT in table.columns and (TEXT in names.given or not set(table.columns) & set(FILE_COLUMNS))


def is_record(table: Table) -> bool:
    """Whether rows are what a language model answers: completions, or conversations, and no texts of a classifier."""
    return bool({COMPLETION, MESSAGES} & set(table.columns)) and TEXT not in table.columns


def holds_own(table: Table, names: ColumnNames) -> bool:
    """Whether the rows of a list are samples themselves, texts, records or words, and do not name images."""
    own = table.words is not None or is_record(table)
    return holds_texts(table, names) or (own and not set(table.columns) & set(FILE_COLUMNS))


def store_of(table: Table) -> Texts:
    """What holds the texts, or the records, of a table."""
    identity = _identity(table)
    if not is_record(table):
        return Texts(table.name, identity, table.lines, table.cells[TEXT], table.cells.get(PAIR))
    if COMPLETION not in table.columns:
        return Records(table.name, identity, table.lines, table.cells[MESSAGES])
    prompts = table.cells.get(PROMPT) or packing.Texts.of([""] * len(table))
    return Records(table.name, identity, table.lines, prompts, table.cells[COMPLETION])


def _identity(table: Table) -> str:
    """The file of a table with all links resolved."""
    return table.name if table.path is None else os.path.realpath(table.path)


def texts_of(table: Table, rows: Sequence[int] | None = None) -> SampleSet:
    """The texts, or words, of a table, or of some of its rows, without labels; a row's name is its number, never its text."""
    if table.words is not None:
        return sentences.samples_of(table, _identity(table), rows)
    told = (*ABOUT_COLUMNS, *(PARAPHRASES if is_record(table) else ()))
    columns = {name: table.cells[name] for name in told if name in table.cells}
    every = range(len(table))
    samples = SampleSet(
        table.name, RowNames(every), numbers([UNKNOWN]) * len(table), None, store_of(table), every, columns=columns
    )
    return samples if rows is None else samples.subset(rows)


# --- what is wrong


def wrong_rows(table: Table, problems: Problems) -> set[int]:
    """Rows without a text that a model could be given; each is a problem, which says nothing of the text. A wrong sentence has no rows."""
    return set() if table.words is not None else _wrong_texts(table, problems)


def _wrong_texts(table: Table, problems: Problems) -> set[int]:
    wrong = set[int]()
    parts = _parts(table)
    told = _told_all(table, parts)
    if told:
        problems.add(0, told)
        return set(range(len(table)))
    _wrong_cells(table, parts, problems, wrong)
    for column in parts:
        for rows, what in _unreadable(table.cells.get(column), empty=column == PROMPT):
            for row in rows:
                if row not in wrong:
                    problems.add(table.lines[row], f"the {_own(table, column)} {what}, or take the row out")
                    wrong.add(row)
    if is_record(table) and COMPLETION not in table.columns:
        for row, cell in enumerate(table.column(MESSAGES)):
            what = records.wrong_messages(cell) if row not in wrong else ""
            if what:
                problems.add(table.lines[row], f"messages {what}")
                wrong.add(row)
    return wrong


def _wrong_cells(table: Table, parts: Sequence[str], problems: Problems, wrong: set[int]) -> None:
    """Cells that hold something else than a text, or that a row is too short for; their rows are added to ``wrong``."""
    start = {line: row for row, line in enumerate(table.lines)}
    for line, column, what in table.odd:
        if column in parts:
            kind, remedy = ("a list of messages", "as one") if column == MESSAGES else ("a text", "in quotes")
            problems.add(line, f"'{_own(table, column)}' is {what}, not {kind}; write it {remedy}, or take the row out")
            wrong.add(start[line])
    last = max(table.columns.index(name) for name in (*parts, "label") if name in table.columns)
    for line, count in table.short:
        if count <= last:
            problems.add(
                line,
                f"has {count} fields, the header {len(table.columns)}: '{cut(table.own[last])}' is not among them; "
                "quote texts that hold line ends, or fill the row in",
            )
            wrong.add(start[line])


def _parts(table: Table) -> tuple[str, ...]:
    """The columns that a sample of this table is made of."""
    if not is_record(table):
        return SAMPLE_TEXTS
    return (PROMPT, COMPLETION) if COMPLETION in table.columns else (MESSAGES,)


def _told_all(table: Table, parts: Sequence[str]) -> str:
    """What is wrong with every row of a table alike; empty where nothing is."""
    if {COMPLETION, MESSAGES} <= set(table.columns) and is_record(table):
        answer, talk = _own(table, COMPLETION), _own(table, MESSAGES)
        return f"has completions ('{answer}') and conversations ('{talk}'); put them into two lists, or leave one column out"
    if (
        TEXT in parts
        and len(table)
        and len(table.odd) == len(table)
        and {odd[1:] for odd in table.odd} == {(TEXT, "a list")}
    ):
        proposed = proposals.of_sentences(table)
        return (
            f"'{_own(table, TEXT)}' is a list in every row; if it holds the words of sentences, add {proposed}"
            if proposed
            else ""
        )
    return ""


def _own(table: Table, column: str) -> str:
    """What the file itself calls a column; its meaning where the file has no names."""
    own = table.own[table.columns.index(column)] if column in table.columns else column
    return column if own.isdecimal() else cut(own)


def _unreadable(texts: packing.Texts | None, *, empty: bool = False) -> list[tuple[list[int], str]]:
    """Rows whose text is nothing but spaces, unless it may be ``empty``, and those with a NUL in it; each with what to say."""
    if texts is None:
        return []
    every, starts = as_array(texts.rows), texts.ends - texts.lengths
    begins = np.full(len(texts.ends), ord(" "), np.uint8)
    begins[texts.lengths > 0] = texts.data[starts[texts.lengths > 0]]
    # Only what begins with a space, or with a character that may be one beyond ASCII, has to be looked at.
    maybe = np.flatnonzero(((begins <= ord(" ")) | (begins >= 0x80))[every]).tolist()
    zeros = np.unique(np.searchsorted(texts.ends, np.flatnonzero(texts.data == 0), "right"))
    return [
        ([] if empty else [row for row in maybe if not texts[row].strip()], "is empty; write it"),
        (np.flatnonzero(np.isin(every, zeros)).tolist(), "holds a NUL, which no text does; export the file again"),
    ]


def refuse_columns(table: Table, names: ColumnNames, problems: Problems, *, labels: bool, known: str = "") -> None:
    """A problem where ``--columns`` names what is not there, or where a column could be the label and nothing says so.

    ``labels``: whether the rows are to have labels of their own, as a data set's; ``known``: who else could know them.
    """
    for meaning, name in names.missing(table.own):
        near = nearest(name, table.own)
        if meaning in (*SAMPLE_TEXTS, *RECORD_COLUMNS, *SENTENCE_COLUMNS, "label") and (near or labels):
            problems.add(
                0,
                f"has no column '{cut(name)}', which --columns names as its {meaning}{near}; it has {proposals.listed(table)}",
            )
            return
    if labels and table.words is not None and "label" not in table.columns:
        problems.add(
            0,
            f"has no tags (it has {proposals.listed(table)}); write the class of each word, or name their column: "
            f"{proposals.of_sentences(table) or '--columns tags=NAME'}{known}",
        )
    elif labels and "label" not in table.columns and not is_record(table):
        proposed = proposals.of_labels(table)
        if proposed:
            problems.add(0, f"has no label column (it has {proposals.listed(table)}); add {proposed}")


def repeats(samples: SampleSet) -> list[str]:
    """Notes on texts that stand in a set more than once, and on those of them that have two labels."""
    digests = samples.digest_bytes()
    if not alike(digests):
        return []
    noun = samples.kind.one
    keys = np.ascontiguousarray(digests).view(f"V{packing.SHA256}")[:, 0]
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    earlier, labels = first[which.reshape(-1)], as_array(samples.labels)
    again = np.flatnonzero(earlier != np.arange(len(samples)))
    other = again[labels[again] != labels[earlier[again]]]
    said = []
    for rows, what in ((again, f"repeat a {noun} that stands before them"), (other, "under another label")):
        if len(rows):
            lines = samples.where(int(rows[0])), samples.where(int(earlier[rows[0]])).rpartition(":")[2]
            said.append(f"{len(rows)} {what} (such as {lines[0]}, as line {lines[1]})")
    return [f"{samples.source}: of {len(samples)} rows {', '.join(said)}"]
