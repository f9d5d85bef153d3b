"""What language models answer when they are asked: counted by ROUGE-L, and written beside an evaluation for those who ask to see it.

The answers are personal data. They stand in a file of their own that its owner alone may read, never in an evaluation.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from imu_cli.commands import galleries, provenance
from imu_cli.errors import ImuError
from imu_cli.features import generation
from imu_cli.features.session import Session
from imu_cli.files import outputs, writing
from imu_cli.files.reading import read_json
from imu_cli.records.parts import FileHash
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.texts.records import as_record
from imu_cli.statistics import rouge as counting

ENDING = ".evaluation.json"
MARK = '{"schema": "imu.answers/1"'
"""By what a file of ours is known."""
MODELS = {"original": "before", "after": "after", "retrained": "retrained"}
"""Whose answers are shown, and what each is called."""


@dataclass(frozen=True)
class Answered:
    """A forgotten record by its name, what was asked, the true answer, and what the models answer by what they are."""

    sample: str
    asked: str
    truth: str
    answers: Mapping[str, str]


def written(session: Session, samples: SampleSet, rows: Sequence[int], what: str) -> list[str]:
    """What an opened model answers some records (k,)."""
    with session.log.timed("writing"), session.log.track(what, len(rows)) as advance:
        return generation.answers(session, samples, rows, advance)


def rouge(session: Session, samples: SampleSet, rows: Sequence[int], what: str) -> Tensor:
    """ROUGE-L recall (k,) of what an opened model answers some records.

    Raises:
        ImuError: rouge-score is not installed.
    """
    counting.scorer()  # before the model writes for minutes
    truths = [as_record(samples.read(row)).completion for row in rows]
    return counting.recall(truths, written(session, samples, rows, what))


def of(samples: SampleSet, row: int, texts: Mapping[str, str]) -> Answered:
    """A record with what was answered, by model."""
    record = as_record(samples.read(row))
    turns = [turn["content"] for turn in record.messages[:-1]]
    asked = "\n".join(turns) if turns else record.prompt
    return Answered(samples.names[row], asked, record.completion, {MODELS[name]: text for name, text in texts.items()})


def place(output: Path, count: int) -> Path | None:
    """The file beside an evaluation; None where none is wanted.

    Raises:
        ImuError: something else stands there.
    """
    return galleries.place(output, count, ".answers.json", MARK)


def write(path: Path, answered: Sequence[Answered], folder: Path) -> FileHash:
    """Write them for their owner alone; path relative to ``folder``, and hash."""
    rows = ",\n ".join(json.dumps(asdict(one), ensure_ascii=False) for one in answered)
    replaced = partial(outputs.refuse_foreign, mark=MARK, option="--samples")
    with writing.together(path, private=True, replaced=replaced) as (file,):
        file.write_text(f'{MARK}, "answers": [\n {rows}\n]}}\n', encoding="utf-8")
    return provenance.file_hash_of(path, folder)


def read(path: Path) -> list[Answered]:
    """What ``text`` wrote.

    Raises:
        ImuError: no such file, or another one.
    """
    found = read_json(path, remedy="run imu evaluate --samples again", texts="any")
    rows = found.get("answers")
    if found.get("schema") != "imu.answers/1" or not isinstance(rows, list):
        raise ImuError(f"{path}: is not what imu evaluate --samples wrote; run it again")
    try:
        return [
            Answered(str(row["sample"]), str(row["asked"]), str(row["truth"]), dict(row["answers"])) for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ImuError(f"{path}: was edited or cut short; run imu evaluate --samples again") from error
