"""What is to be forgotten: forget.csv, .tsv, .jsonl, standard input, folders of images and selectors.

A list is checked whole, and all that is wrong is said at once, each problem with its physical line.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from imu_cli.errors import ImuError, nearest
from imu_cli.files.paths import SELECTORS
from imu_cli.files.reading import cut
from imu_cli.samples.classes import ClassNames, in_model_ids
from imu_cli.samples.column_names import NO_NAMES, TEXT, ColumnNames
from imu_cli.samples.csv_lines import READ_SUFFIXES, read_table
from imu_cli.samples.dataset import TOKENIZED, UNKNOWN, SampleSet
from imu_cli.samples.encodings import refuse_suffix
from imu_cli.samples.forget import Draft, ForgetSet, settle
from imu_cli.samples.images.folders import open_flat
from imu_cli.samples.locators import gathered, places_of, points_into
from imu_cli.samples.packing import as_array, numbers
from imu_cli.samples.pointers import by_id_alone, by_number, pointed
from imu_cli.samples.selectors import is_selector, select_rows
from imu_cli.samples.sources import Role, open_named
from imu_cli.samples.tables import Problems, Table, unknown_columns
from imu_cli.samples.texts import proposals
from imu_cli.samples.texts.reading import (
    holds_own,
    is_record,
    refuse_columns,
    repeats,
    texts_of,
    wrong_rows,
)
from imu_cli.samples.texts.sentences import with_index
from imu_cli.samples.vectors import is_features

KNOWN = "; or give --data that has these sentences with tags"


def is_table(spec: str) -> bool:
    """Whether it names a list, by its ending."""
    return spec.lower().endswith(READ_SUFFIXES) and not os.path.isdir(spec)


def open_source(
    spec: str, role: Role, data: SampleSet | None = None, stdin: BinaryIO | None = None, names: ColumnNames = NO_NAMES
) -> SampleSet:
    """What ``--data``, ``--test`` or ``--retain`` names: a list, a folder, or a scheme (``sources.open_named``).

    A list holds texts, or names images. ``index`` and ``id`` are those of rows of ``data`` (what ``--data`` names). File names
    are relative to the list's own folder; where none of them is there and they are below ``data``'s folder, to that. Its
    class names have no order of their own. ``names``: ``--columns``.

    Raises:
        ImuError: the source cannot be read, or is unknown.
        InvalidRowsError: all that is wrong with a list.
    """
    if spec != "-" and not is_table(spec):
        refuse_suffix(spec)
        return open_named(spec, role)
    path, problems = _list_path(spec)
    table = read_table(path, stdin, problems, names)
    if holds_own(table, names):
        return _texts(table, names, role, problems)
    table = table if role == "data" else by_number(table, data)
    by_row = "index" in table.columns or by_id_alone(table)
    base = data if by_row or points_into(table, data) else None
    table = table if role == "data" else with_index(table, base, problems)
    if base is not None and base.kind in TOKENIZED and by_id_alone(table):
        _refuse_own_texts(table, base, problems)
    if role != "data":  # which points into nothing: its ids are its own
        table = pointed(table, base, problems)
    places = places_of(table, base, problems)
    problems.refuse()
    samples = gathered(table, range(len(places)), [place for place in places if place is not None], base)
    return replace(_labelled(table, samples), notes=(*table.notes, *unknown_columns(table)))


def _refuse_own_texts(table: Table, data: SampleSet, problems: Problems) -> None:
    """A problem where a list of ids has texts under another name: it would stand for rows of ``data`` and not for its own."""
    proposed = proposals.of_samples(table)
    if proposed:
        problems.add(
            0,
            f"has ids and no column text, and would name rows of {data.source} (it has {proposals.listed(table)}); if its rows are "
            f"texts of their own, add {proposed}, else leave those columns out",
        )
        problems.refuse()


def _texts(table: Table, names: ColumnNames, role: Role, problems: Problems) -> SampleSet:
    wrong_rows(table, problems)
    refuse_columns(table, names, problems, labels=role != "forget")
    problems.refuse()
    samples = _labelled(table, texts_of(table))
    return replace(samples, notes=(*table.notes, *unknown_columns(table), *repeats(samples)))


def _labelled(table: Table, samples: SampleSet) -> SampleSet:
    """Labels as the list gives them, else as the data set does; names sorted as strings, or bare ids if all are."""
    seen, which = {"": 0}, numbers([])
    for own, cell in zip(samples.labels, table.column("label"), strict=True):
        text = cell.strip() or ("" if own == UNKNOWN else samples.class_text(own))
        which.append(seen.setdefault(text, len(seen)))
    named = sorted(set(seen) - {""})
    bare = all(re.fullmatch("[0-9]{1,18}", text) for text in named)
    ids = {text: int(text) if bare else number for number, text in enumerate(named)}
    labels = as_array([ids.get(text, UNKNOWN) for text in seen])[as_array(which)]
    return replace(samples, labels=numbers(labels), classes=None if bare else tuple(named), class_order=None)


def load_forget(
    spec: str | Sequence[str],
    data: SampleSet | None,
    label: str | None,
    classes: ClassNames,
    stdin: BinaryIO | None = None,
    names: ColumnNames = NO_NAMES,
    column: str = "label",
) -> ForgetSet:
    """The forget set that ``--forget`` names: a list (``-`` is standard input), a folder, or selectors on ``data``.

    A row's label is the list's own, in its ``column``, else ``label`` (``--label``), else its class folder's, else the one ``data``
    has. A list of texts is looked up in ``data`` by id, or by the very text; without ``data`` it stands alone. Contents are hashed,
    not decoded. ``names``: ``--columns``.

    Raises:
        ImuError: the file or folder is missing or no kind of list, or options contradict each other.
        InvalidRowsError: all problems of the rows, each with its physical line.
    """
    specs = _specs(spec)
    if is_selector(specs[0]):
        return settle(_selected(specs, data, label, classes), data, classes, Problems(" ".join(specs)))
    if specs[0] == "-" or is_table(specs[0]):
        return _from_table(specs[0], data, label, classes, stdin, names, column)
    _refuse_no_list(specs[0])
    return settle(_from_folder(specs[0], data, label, classes), data, classes, Problems(specs[0]))


def _refuse_no_list(spec: str) -> None:
    """Refuse a file that is no list, by its name.

    Raises:
        ImuError: what it is, and what to do.
    """
    refuse_suffix(spec)
    if Path(spec).expanduser().is_file():
        lists = "name it .csv, .tsv or .jsonl (.conll: words and tags by lines), or name a folder of images"
        raise ImuError(f"{spec}: no kind of list; {'give it as --features' if is_features(spec) else lists}")


def peek(
    spec: str | Sequence[str],
    data: SampleSet | None,
    count: int,
    stdin: BinaryIO | None = None,
    names: ColumnNames = NO_NAMES,
) -> SampleSet:
    """Up to ``count`` samples to try a model with, before its classes are known: labels are not looked at.

    They are the first of ``data`` if it is given, else of the list or folder. Rows with problems are left out;
    ``load_forget`` names them all.

    Raises:
        ImuError: the list or folder cannot be read, or holds no sample.
        InvalidRowsError: no row of the list is or names one.
    """
    specs = _specs(spec)
    if data is not None:
        return data.subset(range(min(count, len(data))))
    if is_selector(specs[0]):
        raise ImuError(f"--forget {' '.join(specs)}: selects rows of --data; give --data")
    if specs[0] != "-" and not is_table(specs[0]):
        _refuse_no_list(specs[0])
        samples = _flat(specs[0]) or open_named(specs[0], "forget")
        return samples.subset(range(min(count, len(samples))))
    path, problems = _list_path(specs[0])
    table = read_table(path, stdin, problems, names)
    if holds_own(table, names):
        wrong = wrong_rows(table, problems)
        whole = numbers(row for row in range(len(table)) if row not in wrong)
        if not whole:
            problems.refuse()
        return texts_of(table, whole[:count])
    table = pointed(table, None, problems)
    places = places_of(table, None, problems)
    kept = [index for index, place in enumerate(places) if place is not None]
    if not kept:
        problems.refuse()
    found = [place for place in places if place is not None]
    return gathered(table, kept[:count], found[:count], None)


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
        raise ImuError(
            f"--forget {specs[0]}: no selector '{kind}'{nearest(kind, SELECTORS)}; known are {', '.join(SELECTORS)}"
        )
    return specs


def _flat(spec: str) -> SampleSet | None:
    """A folder's images at any depth; None where the name is not one of a folder."""
    path = Path(spec.removeprefix("imagefolder:")).expanduser()
    return open_flat(path, spec) if path.is_dir() else None


def _list_path(spec: str) -> tuple[Path | None, Problems]:
    return (None, Problems("stdin")) if spec == "-" else (Path(spec).expanduser(), Problems(spec))


def _selected(specs: list[str], data: SampleSet | None, label: str | None, classes: ClassNames) -> Draft:
    if data is None:
        raise ImuError(f"--forget {cut(' '.join(specs))}: selects rows of --data; give --data")
    if label is not None:
        raise ImuError(f"--label {label}: selectors take the labels of --data; list the images in a forget.csv instead")
    rows = select_rows(data, specs, classes)
    return Draft(data.subset(rows), cut(" ".join(specs)), numbers([UNKNOWN]) * len(rows), rows)


def _from_folder(spec: str, data: SampleSet | None, label: str | None, classes: ClassNames) -> Draft:
    if label is not None:
        samples = _flat(spec) or open_named(spec, "forget")
        declared = [_option(label, classes)] * len(samples)
        description = f"{spec} as {label}"
    else:
        samples, description = open_named(spec, "forget"), spec
        declared = list(in_model_ids(samples, classes).labels) if samples.classes is not None else list(samples.labels)
    known = {} if data is None else data.rows_by_location()
    rows = [known.get(samples.location(row)) for row in range(len(samples))]
    return Draft(samples, description, declared, rows, notes=list(samples.notes))


def _option(label: str, classes: ClassNames) -> int:
    try:
        return classes.parse(label)
    except ImuError as error:
        raise ImuError(f"--label: {error}") from error


def _from_table(
    spec: str,
    data: SampleSet | None,
    label: str | None,
    classes: ClassNames,
    stdin: BinaryIO | None,
    names: ColumnNames,
    column: str,
) -> ForgetSet:
    path, problems = _list_path(spec)
    table = read_table(path, stdin, problems, names)
    table = by_number(table, data)
    alone = data is None and holds_own(table, names)
    if TEXT in table.columns or table.words is not None or is_record(table):
        refuse_columns(table, names, problems, labels=alone and label is None and table.words is not None, known=KNOWN)
    table = pointed(with_index(table, data, problems), data, problems)
    places = [] if alone else places_of(table, data, problems)
    weights = _weights(table, problems) if "weight" in table.columns else None
    truths = _labels(table, "true_label", classes, problems) if "true_label" in table.columns else None
    declared = _declared(table, label, classes, problems, column)
    if alone:
        wrong = wrong_rows(table, problems)
        kept = [row for row in range(len(table)) if row not in wrong]
    else:
        kept = [index for index, place in enumerate(places) if place is not None]
    found = [place for place in places if place is not None]
    draft = Draft(
        texts_of(table, kept) if alone else gathered(table, kept, found, data),
        problems.name,
        [declared[index] for index in kept],
        [None] * len(kept) if alone else [place.row for place in found],
        [table.lines[index] for index in kept],
        written=True,
        notes=[*table.notes, *unknown_columns(table), *_ambiguous(table, classes)],
    )
    # From here on all rows are kept: a problem in any of them ends in a refusal.
    settled = settle(draft, data, classes, problems)
    return replace(settled, weights=weights, true_labels=truths, manifest=path, manifest_sha256=table.sha256)


def _weight(text: str) -> float:
    try:
        weight = float(text) if text.strip() else 1.0
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ImuError(f"weight '{text}' is not a number > 0; to leave a row out, remove it")
    return weight


def _weights(table: Table, problems: Problems) -> tuple[float, ...]:
    pairs = zip(table.lines, table.column("weight"), strict=True)
    found = [problems.attempt(line, _weight, text) for line, text in pairs]
    return tuple(weight for weight in found if weight is not None)


def _labels(table: Table, column: str, classes: ClassNames, problems: Problems) -> tuple[int, ...]:
    """A column of class names or ids; ``UNKNOWN`` where empty, and ``_WRONG`` (a problem is noted) where wrong."""
    found = []
    for line, text in zip(table.lines, table.column(column), strict=True):
        parsed = problems.attempt(line, classes.parse, text.strip()) if text.strip() else UNKNOWN
        found.append(_WRONG if parsed is None else parsed)
    return tuple(found)


_WRONG = -2


def _declared(table: Table, label: str | None, classes: ClassNames, problems: Problems, column: str) -> tuple[int, ...]:
    if label is None:
        return _labels(table, column, classes, problems)
    if any(text.strip() for text in table.column(column)):
        raise ImuError(f"--label {label}: {table.name} has {column}s of its own; remove --label, or the column")
    return (_option(label, classes),) * len(table)


def _ambiguous(table: Table, classes: ClassNames) -> list[str]:
    texts = {text.strip() for column in ("label", "true_label") for text in table.column(column)}
    unclear = sorted(text for text in texts if classes.ambiguous(text))
    if not unclear:
        return []
    text = unclear[0]
    return [f"{table.name}: label {text} is read as the class named '{text}' (id {classes.parse(text)}), not as an id"]
