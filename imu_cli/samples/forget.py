"""The forget set, checked: labels settled, contradictions and repetitions found, classes seen to be whole."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from imu_cli.errors import ImuError
from imu_cli.samples.classes import ClassNames, mapped
from imu_cli.samples.dataset import RECORDS, UNKNOWN, WORDS, SampleSet
from imu_cli.samples.overlap import overlap
from imu_cli.samples.packing import alike, members, numbers, take
from imu_cli.samples.tables import Problems


@dataclass(frozen=True, eq=False)
class ForgetSet:
    """What is to be forgotten, checked.

    Attributes:
        samples: in the list's order, ``labels`` in the model's ids; ``samples.where(row)`` names line and file.
        description: how the user named it.
        whole_classes: whether it holds every row of its labels in ``--data``; None where no ``--data`` can tell.
        sha256: of name, label and content of every row, in order.
        lines: physical lines of the list, None where there is no list.
        weights: the column ``weight``, > 0, 1 where a cell is empty; None without the column.
        true_labels: the column ``true_label`` in the model's ids, ``UNKNOWN`` where empty; None without the column.
        manifest: the list's file, None for standard input, folders and selectors.
        manifest_sha256: of the list's bytes, None where there is no list.
        relabelled: rows whose label differs from the one that ``--data`` has for them.
        duplicates: a message for each row that repeats an earlier one, by content and label.
        notes: what the user should know; repeated rows are counted here, once.
        twins_left: how many have a twin among the rows of the data set that stay.
    """

    samples: SampleSet
    description: str
    whole_classes: bool | None
    sha256: str
    lines: tuple[int, ...] | None = None
    weights: tuple[float, ...] | None = None
    true_labels: tuple[int, ...] | None = None
    manifest: Path | None = None
    manifest_sha256: str | None = None
    relabelled: int = 0
    duplicates: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    twins_left: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> Sequence[int]:
        """Class ids of the model, (n,)."""
        return self.samples.labels

    @property
    def ids(self) -> Sequence[str] | None:
        """The column ``id``: whom or which request a row belongs to."""
        return self.samples.columns.get("id")

    @property
    def groups(self) -> Sequence[str] | None:
        """The column ``group``."""
        return self.samples.columns.get("group")

    @property
    def reasons(self) -> Sequence[str] | None:
        """The column ``reason``."""
        return self.samples.columns.get("reason")

    def where(self, row: int) -> str:
        """The row's line and file, for messages."""
        return self.samples.where(row)


@dataclass
class Draft:
    """A forget set before its labels are settled: ``declared`` says the user's, ``rows`` where ``--data`` has it."""

    samples: SampleSet
    description: str
    declared: Sequence[int]
    rows: Sequence[int | None]
    lines: list[int] | None = None
    written: bool = False
    notes: list[str] = field(default_factory=list)

    def line(self, row: int) -> int:
        """Physical line of a row, 0 where there is no list."""
        return 0 if self.lines is None else self.lines[row]

    def place(self, row: int) -> str:
        """What a problem's message starts with, where it is not the line itself."""
        return "" if self.lines is not None else f"{self.samples.where(row)}: "


MOST_LOOKED_THROUGH = 200_000
"""Rows of a data set up to which twins of the forget samples are looked for in it: each file's size is asked for."""

# --- settling


def settle(draft: Draft, data: SampleSet | None, classes: ClassNames, problems: Problems) -> ForgetSet:
    """Labels from the list or the data set, contradictions and repetitions found, or everything wrong refused."""
    in_data, unmapped = (numbers([]), {}) if data is None else mapped(data, classes)
    theirs = numbers(UNKNOWN if row is None else in_data[row] for row in draft.rows)
    labels = numbers(own if own != UNKNOWN else other for own, other in zip(draft.declared, theirs, strict=True))
    draft.samples = replace(draft.samples, labels=labels, classes=classes.names)
    if classes.required:
        _note_missing(draft, data, unmapped, problems)
    repeated = _note_copies(draft, problems)
    problems.refuse()
    left = _twins_left(draft, data)
    relabelled = sum(UNKNOWN not in (own, other) and own != other for own, other in zip(labels, theirs, strict=True))
    return ForgetSet(
        draft.samples,
        draft.description,
        whole_classes=None if data is None else _holds_all(draft, data, in_data),
        sha256=_content(draft.samples),
        lines=None if draft.lines is None else tuple(draft.lines),
        relabelled=relabelled,
        duplicates=tuple(repeated),
        notes=tuple(draft.notes + _summary(draft, repeated, relabelled) + _told_twins(draft, left)),
        twins_left=left,
    )


def _note_missing(draft: Draft, data: SampleSet | None, unmapped: Mapping[int, str], problems: Problems) -> None:
    """A problem for each line without a label; where there are no lines to mend, one for each cause."""
    missing: dict[str, list[int]] = defaultdict(list)
    said = {line for line, _ in problems.found}
    for row, label in enumerate(draft.samples.labels):
        if label == UNKNOWN and not said & {0, draft.line(row)}:
            missing[_why_missing(draft.rows[row], data, unmapped)].append(row)
    every = sum(len(rows) for rows in missing.values()) == len(draft.samples)
    for why, rows in missing.items():
        if draft.written and not (every and data is None):
            for row in rows:
                problems.add(draft.line(row), f"the label is missing: {why}; write the class's name or id")
        else:
            what = "a label column or --label CLASS" if draft.written else "--label CLASS or a list with labels"
            what = "their tags" if draft.samples.kind is WORDS else what
            remedy = "" if why in unmapped.values() else f"; give {what}"
            problems.add(0, f"the class of {len(rows)} {draft.samples.kind.many} is not known: {why}{remedy}")


def _why_missing(row: int | None, data: SampleSet | None, unmapped: Mapping[int, str]) -> str:
    if data is None:
        return "no --data is given that could know it"
    if row is None or data.labels[row] == UNKNOWN:
        return f"{data.source} does not know it"
    return unmapped[data.labels[row]]


def _note_copies(draft: Draft, problems: Problems) -> list[str]:
    """Rows that are one sample: two labels are a problem, the same label a repetition, returned as messages.

    Twins, copies at different places, may have different labels in real data sets, and that is a note.
    """
    samples, noun = draft.samples, draft.samples.kind.one
    try:
        if not alike(samples.digest_bytes()):
            return []
    except ImuError as error:
        problems.add(0, str(error))
        return []
    repeated, conflicts = [], 0
    first_at: dict[Hashable, int] = {}
    first_like: dict[str, int] = {}
    for row in range(len(samples)):
        digest = samples.digest(row)
        earlier = first_at.setdefault(_spot(samples, row), row)
        earlier = earlier if earlier != row else first_like.get(digest, row)
        first_like.setdefault(digest, row)
        if earlier == row or (samples.kind is not RECORDS and min(samples.labels[row], samples.labels[earlier]) < 0):
            continue
        if samples.labels[row] == samples.labels[earlier]:
            repeated.append(f"{samples.where(row)}: the same {noun} as {samples.where(earlier)}")
        elif samples.location(row) == samples.location(earlier):
            problems.add(
                draft.line(row), f"{draft.place(row)}the same {noun} has another label at {samples.where(earlier)}"
            )
        else:
            conflicts += 1
    if conflicts:
        draft.notes.append(f"{draft.description}: {conflicts} {samples.kind.many} have a copy with another label")
    return repeated


def _spot(samples: SampleSet, row: int) -> Hashable:
    """The same for two rows of a set if they are one sample: links can make two files one, rows of an array are themselves."""
    return samples.location(row) if samples.root is not None else samples.positions[row]


def _summary(draft: Draft, repeated: list[str], relabelled: int) -> list[str]:
    found = []
    noun = draft.samples.kind.one
    article = "an" if noun[0] in "aeiou" else "a"
    if repeated:
        what = noun if draft.samples.kind is RECORDS else f"{noun} and its label"
        found.append(f"{draft.description}: {len(repeated)} rows repeat {article} {what}; each counts ({repeated[0]})")
    if relabelled:
        found.append(f"{draft.description}: {relabelled} labels differ from those of --data; the list's are used")
    return found


def _twins_left(draft: Draft, data: SampleSet | None) -> int:
    """How many forget samples have twins among the rows of the data set that stay."""
    if data is None or len(data) > MOST_LOOKED_THROUGH:
        return 0
    listed = {row for row in draft.rows if row is not None}
    return len({mine for mine, theirs in overlap(draft.samples, data).twins if theirs not in listed})


def _told_twins(draft: Draft, left: int) -> list[str]:
    """A note where there are some."""
    if not left:
        return []
    return [
        f"{draft.description}: {left} forget samples have a twin (the same bytes) among the rows of --data that stay; a sample "
        "is not forgotten while its twin is remembered, list the twins too if they are to go"
    ]


def _holds_all(draft: Draft, data: SampleSet, in_data: Sequence[int]) -> bool:
    """Whether every row that ``--data`` has of these labels is among the images, by location or by content."""
    samples = draft.samples
    rows = members(in_data, samples.labels)
    if set(take(in_data, rows)) != set(samples.labels):
        return False
    left = _left(samples, data, rows)
    # Images that are no rows of the data set may be copies of what is left; too few cannot be all.
    if len(left) > sum(row is None for row in draft.rows):
        return False
    return not left or set(data.digests(left)) <= set(samples.digests())


def _left(samples: SampleSet, data: SampleSet, rows: Sequence[int]) -> Sequence[int]:
    """Those of the data set's rows that are not among the images, as samples, whatever their content."""
    if samples.store is data.store and data.root is None:
        return take(rows, members(take(data.positions, rows), samples.positions, inside=False))
    here = {samples.location(row) for row in range(len(samples))}
    return numbers(row for row in rows if data.location(row) not in here)


def _content(samples: SampleSet) -> str:
    summed = hashlib.sha256()
    for row, (name, label) in enumerate(zip(samples.names, samples.labels, strict=True)):
        summed.update(json.dumps([name, label, samples.digest(row)]).encode() + b"\n")
    return summed.hexdigest()
