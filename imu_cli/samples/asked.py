"""Forget sets that have no classes: people, by id or selector or a folder each, and records of a language model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import BinaryIO

from imu_cli.errors import ImuError
from imu_cli.samples import people
from imu_cli.samples.classes import ClassNames
from imu_cli.samples.column_names import NO_NAMES, ColumnNames
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.forget import ForgetSet
from imu_cli.samples.manifest import is_table, load_forget, open_source
from imu_cli.samples.packing import numbers
from imu_cli.samples.people import PeopleNames
from imu_cli.samples.selectors import is_selector


def forgotten_people(
    specs: Sequence[str],
    data: SampleSet | None,
    label: str | None,
    stdin: BinaryIO | None = None,
    columns: ColumnNames = NO_NAMES,
) -> tuple[ForgetSet, SampleSet | None, PeopleNames]:
    """The forget set with people in place of labels, the data set so too, and everybody whom both name.

    ``columns`` is ``--columns``. ``whole_classes`` of it says whether every image that ``data`` has of these people is in it.

    Raises:
        ImuError: the list cannot be read, or nothing says whom its images show.
        InvalidRowsError: all problems of its rows.
    """
    data = None if data is None else people.with_people(data)
    known = [] if data is None else [data]
    column = "label"
    if not is_selector(specs[0]) and label is None:
        listed = open_source(specs[0], "forget", data, stdin, columns)
        column = "id" if "id" in listed.columns else "label"
        if data is None or not is_table(specs[0]):
            known.append(people.with_people(listed))
    names = people.names_of(known)
    if label is not None and label not in (names.names or ()):
        every = tuple(sorted({*(names.names or ()), label}))
        names = PeopleNames(len(every), every, f"{names.source or specs[0]} and --label")
    forget = load_forget(specs, data, label, names, stdin, columns, column)
    return replace(forget, notes=tuple(_unnamed(note, forget) for note in forget.notes)), data, names


def _unnamed(note: str, forget: ForgetSet) -> str:
    """A note without the names of people: of selectors that name them, and of a file that is an example."""
    note = note.partition(" (")[0] if "rows repeat an image" in note else note
    return note.replace(forget.description, "--forget") if is_selector(forget.description) else note


class NoClasses(ClassNames):
    """Where samples are of no classes: records of a language model."""

    @property
    def required(self) -> bool:
        """A record has no label."""
        return False

    def parse(self, text: str) -> int:
        """Labels say nothing here."""
        return UNKNOWN


def forgotten_records(
    specs: Sequence[str],
    data: SampleSet | None,
    label: str | None,
    stdin: BinaryIO | None = None,
    columns: ColumnNames = NO_NAMES,
) -> ForgetSet:
    """The forget set as records, whose labels say nothing.

    Raises:
        ImuError: the list cannot be read, or ``--label`` is given.
        InvalidRowsError: all problems of its rows.
    """
    if label is not None:
        raise ImuError(
            f"--label {label}: is for classifiers, and a language model's records have no labels; leave it out"
        )
    forget = load_forget(specs, None if data is None else unlabelled(data), None, NO_CLASSES, stdin, columns)
    return replace(forget, whole_classes=None)


def unlabelled(samples: SampleSet) -> SampleSet:
    """The same records without labels."""
    return replace(samples, labels=numbers([UNKNOWN]) * len(samples), classes=None, class_order=None)


NO_CLASSES = NoClasses(0, None, "", "a language model")
