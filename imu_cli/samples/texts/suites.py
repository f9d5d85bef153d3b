"""Suites of questions that an evaluation asks: true answers, the same in other words, and wrong ones, by set.

``tofu:DIR`` is a folder with the files of TOFU (Maini et al., COLM 2024): ``forget*_perturbed.json``, ``retain_perturbed.json``,
``real_authors_perturbed.json``, ``world_facts_perturbed.json``. Another suite is one file of the same columns about the records to be
forgotten: ``question``, ``answer`` and ``perturbed_answer``; ``paraphrased_question`` and ``paraphrased_answer`` where there are such.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.files.reading import MAX_LIST, content, cut, json_value
from imu_cli.samples import packing
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.packing import RowNames, numbers
from imu_cli.samples.tables import Problems
from imu_cli.samples.texts.records import Records

SetName = Literal["forget", "retain", "real_authors", "world_facts"]
SETS: tuple[SetName, ...] = ("forget", "retain", "real_authors", "world_facts")
OFFERED: tuple[SetName, ...] = ("real_authors", "world_facts")
"""Sets whose answer is chosen among those that are offered."""
TOFU = "tofu"
TEXTS = ("question", "answer")
OTHER_WORDS = ("paraphrased_question", "paraphrased_answer")
WRONG = "perturbed_answer"
REMEDY = "write one object a line with question, answer and perturbed_answer, a list of wrong answers"


@dataclass(frozen=True)
class Question:
    """What is asked, its true answer, both in other words (empty where there are none), and wrong answers."""

    question: str
    answer: str
    other_question: str
    other_answer: str
    wrong: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Questions:
    """The questions of one set, from one file or several."""

    source: str
    asked: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.asked)

    def only(self, rows: Sequence[int]) -> "Questions":
        """Some of them, in this order."""
        return Questions(self.source, tuple(self.asked[row] for row in rows))

    def drawn(self, most: int, seed: int) -> "Questions":
        """At most so many of them, drawn by the seed, in their order."""
        if len(self) <= most:
            return self
        return self.only(sorted(np.random.default_rng(seed).permutation(len(self))[:most].tolist()))

    @property
    def counts(self) -> list[int]:
        """Wrong answers of each."""
        return [len(one.wrong) for one in self.asked]

    def own(self) -> SampleSet:
        """Question and true answer."""
        return self._records([(one, one.question, one.answer) for one in self.asked])

    def other(self) -> SampleSet:
        """The true answer in other words where there are some: what wrong answers, worded alike, are compared with."""
        return self._records([(one, one.question, one.other_answer or one.answer) for one in self.asked])

    def wrong(self) -> SampleSet:
        """The wrong answers, question after question."""
        return self._records([(one, one.question, answer) for one in self.asked for answer in one.wrong])

    def _records(self, rows: Sequence[tuple[Question, str, str]]) -> SampleSet:
        return records_of(self.source, [one.line for one, _, _ in rows], [(asked, said) for _, asked, said in rows])


def records_of(source: str, lines: Sequence[int], pairs: Sequence[tuple[str, str]]) -> SampleSet:
    """Prompts and completions that stand in no list of their own, as a set; ``lines`` of ``source`` they come from."""
    prompts, completions = (packing.Texts.of([pair[at] for pair in pairs]) for at in (0, 1))
    store = Records(source, source, lines, prompts, completions)
    every = range(len(pairs))
    return SampleSet(source, RowNames(every), numbers([UNKNOWN]) * len(pairs), None, store, every)


@dataclass(frozen=True)
class Suite:
    """Questions by set; ``missing`` says of a set that is not there what file it lacks."""

    given: str
    sets: Mapping[SetName, Questions]
    missing: Mapping[SetName, str]


def open_suite(spec: str) -> Suite:
    """The suite that ``--suite`` names.

    Raises:
        ImuError: nothing is there.
        InvalidRowsError: all problems of its files' lines.
    """
    scheme, sign, place = spec.partition(":")
    if not (sign and scheme == TOFU):
        path = Path(spec)
        if path.is_dir():
            raise ImuError(f"--suite {spec}: is a folder; write tofu:{spec} for the files of TOFU, or name a file")
        if not path.is_file():
            raise ImuError(
                f"--suite {spec}: not there; name tofu:DIR, or a .jsonl with question, answer and perturbed_answer"
            )
        lacks = f"the suite {spec} has the forgotten records alone; tofu:DIR has others"
        return Suite(spec, {"forget": _joined([path])}, {name: lacks for name in SETS if name != "forget"})
    return _tofu(spec, Path(place))


def _tofu(spec: str, folder: Path) -> Suite:
    if not folder.is_dir():
        raise ImuError(f"--suite {spec}: no such folder; name the one with the .json files of TOFU")
    found: dict[SetName, list[Path]] = {"forget": sorted(folder.glob("forget*_perturbed.json"))}
    found |= {name: [folder / f"{name}_perturbed.json"] for name in SETS if name != "forget"}
    there = {name: [path for path in paths if path.is_file()] for name, paths in found.items()}
    missing = {
        name: f"{folder}/{'forget*' if name == 'forget' else name}_perturbed.json is not there"
        for name, paths in there.items()
        if not paths
    }
    if len(missing) == len(SETS):
        raise ImuError(
            f"--suite {spec}: has none of forget*_perturbed.json, {', '.join(f'{name}_perturbed.json' for name in SETS[1:])}; "
            "name the folder with the files of TOFU"
        )
    return Suite(spec, {name: _joined(paths) for name, paths in there.items() if paths}, missing)


def _joined(paths: Sequence[Path]) -> Questions:
    """The questions of files, one after the other; one that stands in two of them counts once."""
    asked = dict[tuple[str, str], Question]()
    for path in paths:
        for one in _read(path):
            asked.setdefault((one.question, one.answer), one)
    return Questions(str(paths[0]), tuple(asked.values()))


def _read(path: Path) -> list[Question]:
    problems, made = Problems(str(path)), list[Question]()
    try:
        text = content(path, MAX_LIST, REMEDY).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImuError(f"{path}: not UTF-8 ({error.reason}); write it as UTF-8") from error
    # Lines end in \n alone: others may stand inside a JSON string.
    for line, source in enumerate(text.split("\n"), 1):
        if source.strip():
            made += _question(source, line, problems)
    problems.refuse()
    if not made:
        raise ImuError(f"{path}: holds no questions; {REMEDY}")
    return made


def _question(text: str, line: int, problems: Problems) -> Iterator[Question]:
    """The question of a line, or none and its problems noted, which quote nothing of it."""
    try:
        found = json_value(text, "any")
    except ValueError:
        problems.add(line, f"no JSON; {REMEDY}")
        return
    if not isinstance(found, dict):
        problems.add(line, f"no object; {REMEDY}")
        return
    wrong = _wrong(found)
    bad = [name for name in TEXTS if not _is_text(found.get(name))]
    bad += [name for name in OTHER_WORDS if found.get(name) is not None and not _is_text(found[name])]
    for name in bad:
        what = "is not there" if name not in found else "is no text, or an empty one"
        problems.add(line, f"'{cut(name)}' {what}; {REMEDY}")
    if wrong is None:
        what = "is not there" if WRONG not in found else "is not a list of texts, one or more"
        problems.add(line, f"'{WRONG}' {what}; {REMEDY}")
    if not bad and wrong is not None:
        question, answer, other_question, other_answer = (str(found.get(name) or "") for name in (*TEXTS, *OTHER_WORDS))
        yield Question(question, answer, other_question, other_answer, wrong, line)


def _wrong(found: Mapping[str, Any]) -> tuple[str, ...] | None:
    given = found.get(WRONG)
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not listed or not all(map(_is_text, listed)):
        return None
    return tuple(listed)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


# --- the records that an evaluation has


def about(questions: Questions, samples: SampleSet) -> list[int | None]:
    """Of each record, by prompt and completion, the number of its question; None where the suite does not have it."""
    numbers_of = {(one.question, one.answer): at for at, one in enumerate(questions.asked)}
    found: list[int | None] = []
    for row in range(len(samples)):
        record = samples.read(row)
        found.append(numbers_of.get((getattr(record, "prompt", ""), getattr(record, "completion", str(record)))))
    return found


def rephrased(samples: SampleSet, suite: Questions | None) -> tuple[list[int], SampleSet] | None:
    """The records that are asked for by other words too, by their row, and those: of the list's own column, else of the suite.

    None where no record has other words.

    Raises:
        InvalidRowsError: conversations, whose question cannot be exchanged.
    """
    listed = samples.columns.get(OTHER_WORDS[0], [""] * len(samples))
    known = [None] * len(samples) if suite is None else about(suite, samples)
    rows, lines, pairs, problems = [], [], [], []
    for row in range(len(samples)):
        at = known[row]
        words = listed[row].strip() or ("" if at is None or suite is None else suite.asked[at].other_question)
        if not words:
            continue
        record = samples.read(row)
        if getattr(record, "messages", ()):
            problems.append(
                f"{samples.where(row)}: has messages, which {OTHER_WORDS[0]} cannot reword; write prompt and completion"
            )
            continue
        rows.append(row)
        lines.append(row + 1)
        pairs.append((words, record.completion))
    if problems:
        raise InvalidRowsError(problems)
    return (rows, records_of(f"{samples.source} ({OTHER_WORDS[0]})", lines, pairs)) if rows else None
