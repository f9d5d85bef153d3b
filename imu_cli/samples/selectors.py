"""Rows of a data set by ``class=…``, ``index=…``, ``id=…``, ``group=…``, ``camera=…`` or ``coarse=…``."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from imu_cli.errors import ImuError, nearest
from imu_cli.files import paths
from imu_cli.files.reading import cut
from imu_cli.samples.classes import ClassNames, mapped
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.packing import as_array, numbers
from imu_cli.samples.people import as_number
from imu_cli.samples.texts.sentences import places


def is_selector(spec: str) -> bool:
    """Whether it reads ``class=…``, ``id=…`` or another of ``paths.SELECTORS``; a file of such a name needs ``./``."""
    return paths.is_selector(spec)


def select_rows(samples: SampleSet, selectors: Sequence[str], classes: ClassNames | None = None) -> Sequence[int]:
    """Rows that the selectors name, each once: all of one kind, their union, in the order of the data set.

    ``index`` keeps the order it is written in. Classes are those of ``samples``, or the model's if they are given.

    Raises:
        ImuError: unknown or mixed selectors, an unknown name, an index out of range, or nothing selected.
    """
    kinds = {selector.partition("=")[0] for selector in selectors}
    if not selectors or not all(is_selector(selector) for selector in selectors):
        raise ImuError(f"{cut(' '.join(selectors))}: no selector; write {'=…, '.join(paths.SELECTORS)}=…")
    if len(kinds) > 1:
        raise ImuError(f"{cut(' '.join(selectors))}: different kinds of selectors; use one, or a list from imu select")
    picks = [part for selector in selectors for part in _pick(samples, selector, classes)]
    if len(picks) == 1 and isinstance(picks[0], range):
        return picks[0]
    rows, first = np.unique(np.concatenate([as_array(part) for part in picks]), return_index=True)
    return numbers(rows[np.argsort(first)] if kinds == {"index"} else rows)


def _pick(samples: SampleSet, selector: str, classes: ClassNames | None) -> list[Sequence[int]]:
    kind, _, value = selector.partition("=")
    single = ""
    if not value:
        raise ImuError(
            f"{cut(selector)}: names nothing; write for example {kind}={'0:500' if kind == 'index' else 'NAME'}"
        )
    if kind == "index":
        stand = places(samples)
        n, what = (len(samples), "row") if stand is None else (stand.count, "sentence")
        rows = [_slice(selector, part.strip(), n, what) for part in value.split(",")]
        if stand is not None:  # a number is a sentence's: all of its words
            rows = [numbers(at for one in part for at in stand.rows(one).tolist()) for part in rows]
            single = "; one word of a sentence is named in a list, with a column index and such a cell as 17:3"
    elif kind == "class":
        rows = _of_classes(samples, selector, value, classes)
    else:
        rows = _of_column(samples, selector, kind, value)
    if not any(rows):
        raise ImuError(f"{cut(selector)}: selects no row of {samples.source}{single}")
    return rows


def _slice(selector: str, part: str, n: int, what: str) -> Sequence[int]:
    if not re.fullmatch(r"-?\d{1,18}|(-?\d{1,18})?:(-?\d{1,18})?(:(-?\d{1,18})?)?", part, re.ASCII):
        raise ImuError(f"{cut(selector)}: '{cut(part)}' is neither a {what} number nor a slice such as 0:500")
    bounds = [int(text) if text else None for text in part.split(":")]
    if len(bounds) == 1:
        if not 0 <= int(part) < n:
            raise ImuError(f"{cut(selector)}: {part} is out of range; {what}s are 0 to {n - 1}")
        return [int(part)]
    # Python would cut a slice at the end in silence: 0:5000 of 500 rows is a mistake.
    if any(bound is not None and abs(bound) > n for bound in bounds[:2]):
        raise ImuError(f"{cut(selector)}: {part} is out of range; {what}s are 0 to {n - 1}")
    if bounds[2:] == [0]:
        raise ImuError(f"{cut(selector)}: the step of a slice cannot be 0")
    return range(n)[slice(*bounds)]


def _parts(value: str, known: Mapping[str, object]) -> list[str]:
    """A value is one name if there is such a name (they may hold commas), else a comma list."""
    return [value] if value in known else [part.strip() for part in value.split(",")]


def _of_classes(samples: SampleSet, selector: str, value: str, classes: ClassNames | None) -> list[Sequence[int]]:
    if classes is not None and not classes.required:
        raise ImuError(
            f"{cut(selector)}: {classes.whose} has no classes; name rows of {samples.source} by index, id or group"
        )
    if classes is None:
        count = len(samples.classes) if samples.classes is not None else max(samples.labels, default=UNKNOWN) + 1
        if not count:
            raise ImuError(
                f"{cut(selector)}: {samples.source} has no labels; give it a column label, or name it: --columns label=NAME"
            )
        classes = ClassNames(count, samples.classes, samples.source, samples.source)
    ids, wrong = mapped(samples, classes)
    labels, cause = as_array(ids), _one_cause(ids, wrong)
    rows: list[Sequence[int]] = []
    for part in _parts(value, dict.fromkeys(classes.names or ())):
        try:
            wanted = classes.parse(part)
        except ImuError as error:
            raise ImuError(f"{cut(selector)}: {cause or error}") from error
        found = numbers(np.flatnonzero(labels == wanted))
        if not found:
            why = f"; {next(iter(wrong.values()))}" if wrong else ""
            raise ImuError(f"{cut(selector)}: {cause or f'{samples.source} has no row of class {part!r}{why}'}")
        rows.append(found)
    return rows


def _one_cause(ids: Sequence[int], wrong: Mapping[int, str]) -> str | None:
    """Why no row has a label of the model, where one cause explains all of them."""
    causes = set(wrong.values())
    return causes.pop() if len(causes) == 1 and len(wrong) > 1 and not (as_array(ids) != UNKNOWN).any() else None


def _alike(part: str, known: Mapping[str, object]) -> str:
    """A hint at the same number written otherwise (2 and 0002), else at the nearest name."""
    number = as_number(part)
    same = next((name for name in known if number is not None and as_number(name) == number), None)
    return f"; did you mean '{same}'?" if same is not None else nearest(part, known)


def _of_column(samples: SampleSet, selector: str, kind: str, value: str) -> list[Sequence[int]]:
    if kind not in samples.columns:
        people = f"market1501:DIR, mars:DIR, or a list with a column {kind}"
        others = f"a list with a column {kind}, or --columns {kind}=NAME"
        whose = "cifar100:DIR" if kind == "coarse" else people if kind == "camera" else others
        raise ImuError(f"{cut(selector)}: {samples.source} has no '{kind}'; it needs --data {whose}")
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(samples.columns[kind]):
        rows_of[text.strip()].append(row)
    rows: list[Sequence[int]] = []
    for part in _parts(value, rows_of):
        if part not in rows_of:
            raise ImuError(f"{cut(selector)}: {samples.source} has no {kind} '{part}'{_alike(part, rows_of)}")
        rows.append(rows_of[part])
    return rows
