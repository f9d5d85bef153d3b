"""The model's classes: their names, and labels of other sources in the model's ids."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from imu_cli.errors import ImuError, InvalidRowsError, nearest
from imu_cli.files.reading import MAX_NAMES, content, cut
from imu_cli.samples.column_names import is_sentence
from imu_cli.samples.dataset import TEXTS, UNKNOWN, WORDS, SampleSet
from imu_cli.samples.packing import as_array, numbers

SHOWN = 12
"""Classes that a message lists."""


@dataclass(frozen=True)
class ClassNames:
    """The model's classes: how many, their names in id order if any source knows them, and that source."""

    num_classes: int
    names: tuple[str, ...] | None
    source: str
    whose: str = "this model"

    @property
    def required(self) -> bool:
        """Whether every sample has to be of one of them."""
        return True

    @cached_property
    def _ids(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(self.names or ()):
            ids[name].append(number)
        return dict(ids)

    def parse(self, text: str) -> int:
        """The id of a class named by name or id; a name wins over an id that reads the same.

        Raises:
            ImuError: neither; the message has no place in it, callers put that before it.
        """
        ids = self._ids.get(text, [])
        if len(ids) > 1:
            raise ImuError(f"label '{text}' is the name of the classes {ids}; give the id")
        if ids:
            return ids[0]
        if re.fullmatch(r"-?[0-9]{1,18}", text):
            return self._in_range(int(text))
        if self.names is None:
            raise ImuError(f"label {_short(text)}: the model's class names are not known; give ids, or --classes FILE")
        near = nearest(text, self.names)
        raise ImuError(f"label {_short(text, bool(near))} is not a class of {self.whose}{near or self._listed()}")

    def _listed(self) -> str:
        """`` (its classes are ant, bee, …)``, a few of them."""
        names = [
            f"one of {len(name):,} characters" if is_sentence(name) else name for name in (self.names or ())[:SHOWN]
        ]
        more = "" if self.num_classes <= SHOWN else f", and {self.num_classes - SHOWN} more"
        return f"; its classes are {', '.join(names)}{more}"

    def _in_range(self, number: int) -> int:
        if 0 <= number < self.num_classes:
            return number
        raise ImuError(f"label {number} is out of range; the model's ids are 0 to {self.num_classes - 1}")

    def ambiguous(self, text: str) -> bool:
        """Whether the text is the name of one class and the id of another."""
        return text in self._ids and text.isdecimal() and self._ids[text] != [int(text)]

    def name(self, number: int) -> str:
        """The class's name, or its id as text where no name is known."""
        return self.names[number] if self.names is not None else str(number)


def _short(text: str, known: bool = False) -> str:
    """A label for a message, but not where it is like no class that is ``known``, and may be a person's text in the wrong column."""
    return f"of {len(text):,} characters" if is_sentence(text) and not known else f"'{cut(text)}'"


def _classes_file(path: Path, num_classes: int) -> tuple[str, ...]:
    raw = content(path, MAX_NAMES, "name a file of class names", f"--classes {path}")
    try:
        lines = [line.strip() for line in raw.decode("utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise ImuError(f"--classes {path}: not UTF-8; save it as UTF-8") from error
    nul = next((number for number, line in enumerate(lines, 1) if "\0" in line), None)
    if nul is not None:
        raise ImuError(f"--classes {path}:{nul}: holds a NUL; write one class name on each line")
    if "" in lines:
        raise ImuError(f"--classes {path}:{lines.index('') + 1}: an empty line; write one class name on each")
    if len(lines) != num_classes:
        raise ImuError(f"--classes {path}: has {len(lines)} names; the model has {num_classes} classes")
    return tuple(lines)


def class_names(
    classes_file: Path | None,
    model_classes: Sequence[str] | None,
    sources: Sequence[SampleSet],
    num_classes: int,
    model_source: str = "the model",
) -> ClassNames:
    """The class names in id order and where they come from: ``--classes``, the model, or a data set of c classes.

    A model's placeholders (``LABEL_0``, ``LABEL_1``...) are no names. Of data sets only those whose order is one that
    models are trained with (class folders sorted as strings, a known data set's own) can give names.

    Raises:
        ImuError: a list of names has not exactly ``num_classes`` of them, or the file cannot be read.
    """
    if classes_file is not None:
        return ClassNames(num_classes, _classes_file(classes_file, num_classes), f"--classes {classes_file}")
    if model_classes is not None and list(model_classes) != [f"LABEL_{i}" for i in range(len(model_classes))]:
        if len(model_classes) != num_classes:
            raise ImuError(
                f"{model_source}: names {len(model_classes)} classes, the head has {num_classes}; give --classes FILE"
            )
        return ClassNames(num_classes, tuple(model_classes), model_source)
    for samples in sources:
        if samples.classes is not None and len(samples.classes) == num_classes and samples.class_order is not None:
            return ClassNames(num_classes, samples.classes, f"{samples.source} ({samples.class_order})")
    return ClassNames(num_classes, None, "not known")


def mapped(samples: SampleSet, classes: ClassNames) -> tuple[Sequence[int], dict[int, str]]:
    """Each row's label in the model's ids, mapped by name; and what is wrong with classes that have none, by own id.

    Rows of such a class, and those without a label, are ``UNKNOWN``. Where no name at all is one of the model's, the cause is told
    in place of each name.
    """
    ids, wrong = {}, {}
    own_ids, first, which = np.unique(as_array(samples.labels), return_index=True, return_inverse=True)
    known = own_ids[own_ids != UNKNOWN]
    counted = samples.classes is None and len(known) > 0 and (known.min(), known.max()) == (1, classes.num_classes)
    from_one = "; its labels count from 1, write them from 0 or as names" if counted else ""
    for row in np.sort(first[own_ids != UNKNOWN]).tolist():  # in the order of the rows, as their lines are
        own = samples.labels[row]
        text = samples.class_text(own)
        try:
            ids[own] = classes.parse(text)
        except ImuError as error:
            wrong[own] = f"{samples.named_by(row)}: {error}{from_one}"
    cause = None if ids else _two_vocabularies(samples, classes, list(wrong))
    if cause is not None:
        wrong = dict.fromkeys(wrong, cause)
    return numbers(np.array([ids.get(own, UNKNOWN) for own in own_ids.tolist()], np.int64)[which]), wrong


WORDNET = re.compile(r"n[0-9]{8}")
"""A WordNet id, as ImageNet's folders are named, where models have words for their classes."""


def _two_vocabularies(samples: SampleSet, classes: ClassNames, own: Sequence[int]) -> str | None:
    """What to say of a data set whose class names are all unknown to the model, which has names; None where it is one name alone."""
    if samples.classes is None or classes.names is None or not own:
        return None
    theirs = [samples.classes[number] for number in own]
    if len(theirs) < 2 and not WORDNET.fullmatch(theirs[0]):
        return None
    what = "WordNet ids, other names" if all(WORDNET.fullmatch(name) for name in theirs) else "other names"
    return (
        f"{samples.source}: its classes ({_few(theirs)}) are {what} than the model's ({_few(classes.names)}, from {classes.source}), "
        "and none is in both; name the model's classes as the data do, with --classes FILE, one a line in the order of its outputs"
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(_name(name, 30) for name in names[:2]) + (", …" if len(names) > 2 else "")


def _name(name: str, most: int) -> str:
    """A class's name, but not where it is likely a text in the wrong column."""
    return f"one of {len(name):,} characters" if is_sentence(name) else repr(name[:most])


def in_model_ids(samples: SampleSet, classes: ClassNames) -> SampleSet:
    """The same samples, labelled with the model's ids. Classes map by name: a folder of three is not renumbered.

    Raises:
        InvalidRowsError: a class that has rows is not one of the model's, or rows have no label at all.
    """
    labels, wrong = mapped(samples, classes)
    problems = list(dict.fromkeys(wrong.values()))
    bare = [row for row, label in enumerate(samples.labels) if label == UNKNOWN]
    if bare and samples.kind in (TEXTS, WORDS):
        remedy = "write the name or id of its class, or say which column has it with --columns label=NAME"
        problems += [f"{samples.where(row)}: has no label; {remedy}" for row in bare]
    elif bare:
        problems.append(
            f"{samples.where(bare[0])}: has no label ({len(bare)} rows have none); "
            "use class folders, or a manifest with labels"
        )
    if problems:
        raise InvalidRowsError(problems)
    return replace(samples, labels=labels, classes=classes.names)
