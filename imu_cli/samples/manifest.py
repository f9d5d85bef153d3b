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
from imu_cli.samples.csv_lines import SUFFIXES, Problems, Table, read_table, unknown_columns
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.forget import Draft, ForgetSet, settle
from imu_cli.samples.images.folders import open_flat
from imu_cli.samples.locators import gathered, places_of, points_into
from imu_cli.samples.packing import numbers
from imu_cli.samples.selectors import is_selector, select_rows
from imu_cli.samples.sources import Role, open_named
from imu_cli.samples.vectors import is_features


def is_table(spec: str) -> bool:
    """Whether it names a list, by its ending."""
    return spec.lower().endswith(SUFFIXES) and not os.path.isdir(spec)


def open_source(spec: str, role: Role, data: SampleSet | None = None, stdin: BinaryIO | None = None) -> SampleSet:
    """What ``--data``, ``--test`` or ``--retain`` names: a manifest, a folder, or a scheme (``sources.open_named``).

    In a manifest, ``index`` counts rows of ``data`` (what ``--data`` names). File names are relative to the manifest's own
    folder; where none of them is there and they are below ``data``'s folder, to that. Its class names have no order of their own.

    Raises:
        ImuError: the source cannot be read, or is unknown.
        InvalidRowsError: all that is wrong with a manifest.
    """
    if spec != "-" and not is_table(spec):
        return open_named(spec, role)
    path, problems = _list_path(spec)
    table = read_table(path, stdin, problems)
    by_index = "index" in table.columns
    base = data if by_index or points_into(table, data) else None
    places = places_of(table, base, problems)
    problems.refuse()
    samples = gathered(table, range(len(places)), [place for place in places if place is not None], base)
    return replace(_labelled(table, samples), notes=tuple(unknown_columns(table)))


def _labelled(table: Table, samples: SampleSet) -> SampleSet:
    """Labels as the list gives them, else as the data set does; names sorted as strings, or bare ids if all are."""
    texts = [text.strip() for text in table.column("label")]
    for row, own in enumerate(samples.labels):
        if not texts[row] and own != UNKNOWN:
            texts[row] = samples.class_text(own)
    named = sorted(set(texts) - {""})
    if all(re.fullmatch("[0-9]{1,18}", text) for text in named):
        labels = [int(text) if text else UNKNOWN for text in texts]
        return replace(samples, labels=labels, classes=None, class_order=None)
    ids = {"": UNKNOWN} | {text: number for number, text in enumerate(named)}
    return replace(samples, labels=[ids[text] for text in texts], classes=tuple(named), class_order=None)


def load_forget(
    spec: str | Sequence[str],
    data: SampleSet | None,
    label: str | None,
    classes: ClassNames,
    stdin: BinaryIO | None = None,
    column: str = "label",
) -> ForgetSet:
    """The forget set that ``--forget`` names: a list (``-`` is standard input), a folder, or selectors on ``data``.

    A row's label is the list's own, in its ``column``, else ``label`` (``--label``), else its class folder's, else the one
    ``data`` has. Contents are hashed, not decoded.

    Raises:
        ImuError: the file or folder is missing or no kind of list, or options contradict each other.
        InvalidRowsError: all problems of the rows, each with its physical line.
    """
    specs = _specs(spec)
    if is_selector(specs[0]):
        return settle(_selected(specs, data, label, classes), data, classes, Problems(" ".join(specs)))
    if specs[0] == "-" or is_table(specs[0]):
        return _from_table(specs[0], data, label, classes, stdin, column)
    if Path(specs[0]).is_file():
        features = is_features(specs[0])
        remedy = "give it as --features" if features else "name it .csv, .tsv or .jsonl, or name a folder of images"
        raise ImuError(f"{specs[0]}: no kind of list; {remedy}")
    return settle(_from_folder(specs[0], data, label, classes), data, classes, Problems(specs[0]))


def peek(spec: str | Sequence[str], data: SampleSet | None, count: int, stdin: BinaryIO | None = None) -> SampleSet:
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
    if specs[0] != "-" and not is_table(specs[0]):
        samples = _flat(specs[0]) or open_named(specs[0], "forget")
        return samples.subset(range(min(count, len(samples))))
    path, problems = _list_path(specs[0])
    table = read_table(path, stdin, problems)
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
    spec: str, data: SampleSet | None, label: str | None, classes: ClassNames, stdin: BinaryIO | None, column: str
) -> ForgetSet:
    path, problems = _list_path(spec)
    table = read_table(path, stdin, problems)
    places = places_of(table, data, problems)
    weights = _weights(table, problems) if "weight" in table.columns else None
    truths = _labels(table, "true_label", classes, problems) if "true_label" in table.columns else None
    declared = _declared(table, label, classes, problems, column)
    kept = [index for index, place in enumerate(places) if place is not None]
    found = [place for place in places if place is not None]
    draft = Draft(
        gathered(table, kept, found, data),
        problems.name,
        [declared[index] for index in kept],
        [place.row for place in found],
        [table.lines[index] for index in kept],
        written=True,
        notes=unknown_columns(table) + _ambiguous(table, classes),
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
    return (_option(label, classes),) * len(table.rows)


def _ambiguous(table: Table, classes: ClassNames) -> list[str]:
    texts = {text.strip() for column in ("label", "true_label") for text in table.column(column)}
    unclear = sorted(text for text in texts if classes.ambiguous(text))
    if not unclear:
        return []
    text = unclear[0]
    return [f"{table.name}: label {text} is read as the class named '{text}' (id {classes.parse(text)}), not as an id"]
