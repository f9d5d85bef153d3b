"""Records of a language model: a prompt and what is to be answered, or a conversation whose last turn is the answer."""

from dataclasses import dataclass
from typing import Any

from imu_cli.files.reading import cut, json_value
from imu_cli.samples.dataset import RECORDS
from imu_cli.samples.texts.stores import Texts

ASSISTANT = "assistant"
"""The role whose last turn is the completion."""


@dataclass(frozen=True)
class Record:
    """What is asked and what is answered; of a conversation its turns, the last of which is the answer."""

    prompt: str
    completion: str
    messages: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Records(Texts):
    """Records of one file: ``texts`` are prompts and ``pairs`` completions, or ``texts`` conversations as JSON and no pairs."""

    kind = RECORDS

    def decode(self, at: int) -> Record:  # type: ignore[override]
        """The record."""
        if self.pairs is not None:
            return Record(self.texts.of_row(at), self.pairs.of_row(at))
        turns = tuple(json_value(self.texts.of_row(at), "any"))
        return Record("", str(turns[-1]["content"]), turns)


def as_record(sample: Any) -> Record:
    """A sample as a record: a plain text is one without a prompt."""
    return sample if isinstance(sample, Record) else Record("", str(sample))


def wrong_messages(text: str) -> str:
    """What is wrong with a conversation that is given as JSON, in words without any of it; empty where nothing is."""
    try:
        turns = json_value(text, "any")
    except ValueError:
        return 'are no JSON; write a list of {"role": …, "content": …}'
    if not isinstance(turns, list) or not turns:
        return 'hold no turns; write a list of {"role": …, "content": …}'
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            other = (
                ", which 'from' and 'value' are elsewhere"
                if isinstance(turn, dict) and {"from", "value"} <= set(turn)
                else ""
            )
            return f"have no role and content of text in turn {number}{other}; write both"
    if turns[-1]["role"] != ASSISTANT:
        return f"end with a turn of {cut(turns[-1]['role'])!r}; the last one has to be the assistant's, which is what is forgotten"
    return "" if turns[-1]["content"].strip() else "end with an empty turn; the last one is what is forgotten, write it"
