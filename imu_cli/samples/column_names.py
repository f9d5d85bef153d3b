"""What a file calls its columns: ``--columns text=utterance,label=category``, or their positions where it has no header."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imu_cli.errors import ImuError, nearest
from imu_cli.files.reading import cut, shown

FILE_COLUMNS = ("file_name", "path", "filepath", "image")
ABOUT_COLUMNS = ("id", "camera", "group", "reason")
TEXT, PAIR = "text", "text_pair"
SAMPLE_TEXTS = (TEXT, PAIR)
PROMPT, COMPLETION, MESSAGES = "prompt", "completion", "messages"
RECORD_COLUMNS = (PROMPT, COMPLETION, MESSAGES)
"""What a record of a language model is written in."""
TOKENS, TAGS = "tokens", "tags"
SENTENCE_COLUMNS = (TOKENS, TAGS)
"""A sentence as a list of words, and the class of each: what a token classifier is trained with."""
NER_TAGS = "ner_tags"
"""What data sets of names call ``tags``; so read where a file has no column ``tags``."""
ALIASES = {"question": PROMPT, "answer": COMPLETION}
"""What data sets of questions call them; so read only where a file has both."""
SPEAKERS = frozenset({"role", "from", "speaker"})
"""What a turn of a conversation calls who speaks."""
PARAPHRASES = ("paraphrased_question", "paraphrased_answer")
"""Other words for a record's own, which an evaluation asks by."""
KNOWN_COLUMNS = (
    *FILE_COLUMNS,
    "index",
    "label",
    *ABOUT_COLUMNS,
    "weight",
    "true_label",
    *SAMPLE_TEXTS,
    *RECORD_COLUMNS,
    *SENTENCE_COLUMNS,
)
LISTED = (
    "file_name", "index", "label", *ABOUT_COLUMNS, "weight", "true_label", *SAMPLE_TEXTS, *RECORD_COLUMNS, *SENTENCE_COLUMNS,
)  # fmt: skip
"""What ``--columns`` can say: one name a meaning."""
LONGEST_NAME, WORDS = 40, 3
"""Characters of the longest name of a column, and spaces that none has."""
REMEDY = "write for example --columns text=utterance,label=category"


EARLY = 100
"""First rows of which lists in columns without a meaning are kept, as JSON: by them a message proposes what to call a column."""


def is_sentence(name: str) -> bool:
    """Whether a cell of a header is likely none: a row that stands where a header should."""
    return len(name) > LONGEST_NAME or name.count(" ") >= WORDS


@dataclass(frozen=True)
class ColumnNames:
    """Which column of a file has which meaning, where the two are not called the same.

    ``given`` is meaning → the file's own name in lower case, or a position counted from 1; in the order given.
    """

    given: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: "str | Mapping[str, Any] | None") -> "ColumnNames":
        """``text=utterance,label=category``, or the mapping itself.

        Raises:
            ImuError: no such meaning, a meaning or a column named twice, or nothing on one side.
        """
        if value is None:
            return cls()
        pairs = list(value.items()) if isinstance(value, Mapping) else _pairs(value)
        made: dict[str, str] = {}
        for meaning, name in pairs:
            if not isinstance(meaning, str) or meaning not in LISTED:
                hint = nearest(str(meaning), LISTED)
                raise ImuError(
                    f"--columns: {shown(meaning)} is no column's meaning{hint}; known are {', '.join(LISTED)}"
                )
            if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
                raise ImuError(f"--columns: {meaning} is {shown(name)}, not the name of a column; {REMEDY}")
            if meaning in made:
                raise ImuError(f"--columns: {meaning} is given twice; name one column")
            made[meaning] = str(name).strip().lower()
        for name in made.values():
            if list(made.values()).count(name) > 1:
                raise ImuError(f"--columns: names the column '{cut(name)}' twice; each column has one meaning")
        return cls(made)

    @property
    def text(self) -> str:
        """As it is written on a command line."""
        return ",".join(f"{meaning}={name}" for meaning, name in self.given.items())

    @property
    def positions(self) -> Mapping[str, int]:
        """Meaning → position from 0, where all of them are numbers; else empty."""
        if not all(re.fullmatch("[0-9]{1,4}", name) for name in self.given.values()):
            return {}
        return {meaning: int(name) - 1 for meaning, name in self.given.items()}

    def headless(self, first: Sequence[str]) -> bool:
        """Whether a file whose first row has these cells (stripped, in lower case) begins without a header.

        So where columns are given by position, unless one of the cells is a name that has a meaning here and none a sentence,
        or the header has those numbers for names.
        """
        header = bool(set(first) & set(KNOWN_COLUMNS)) and not any(map(is_sentence, first))
        return bool(self.positions) and not header and not set(self.given.values()) <= set(first)

    def by_position(self, count: int) -> list[str]:
        """The columns of a file without header whose rows have ``count`` cells; empty names for those without a meaning.

        Raises:
            ImuError: a position beyond them; the message has no place in it.
        """
        columns = [""] * count
        for meaning, at in self.positions.items():
            if not 0 <= at < count:
                raise ImuError(f"--columns: {meaning}={at + 1}, and the first row has {count} fields; count from 1")
            columns[at] = meaning
        return columns

    def renamed(self, columns: Iterable[str]) -> list[str]:
        """A file's columns (stripped, in lower case) by their meanings.

        A column that is called as a meaning which another one was given loses it, and has an empty name.
        """
        columns = list(columns)
        meanings = {name: meaning for meaning, name in self.given.items() if name in columns}
        taken = set(meanings.values())
        return [meanings.get(name, "" if name in taken else name) for name in columns]

    def missing(self, own: Sequence[str]) -> list[tuple[str, str]]:
        """Pairs (meaning, name) that a file with these columns of its own has neither by that name nor by one that is read so anyway."""
        other = {TAGS: NER_TAGS, **{meaning: name for name, meaning in ALIASES.items()}}
        return [pair for pair in self.given.items() if not {*pair, other.get(pair[0])} & set(own)]


def _pairs(value: str) -> list[tuple[str, str]]:
    """The parts of the option's text; a column's name may hold commas where no meaning and = follows."""
    found = []
    for part in re.split(rf",(?=\s*(?:{'|'.join(LISTED)}|\w+)\s*=)", value):
        meaning, sign, name = part.partition("=")
        if not sign:
            raise ImuError(f"--columns {cut(value)}: '{cut(part)}' has no =; {REMEDY}")
        found.append((meaning.strip(), name.strip()))
    return found


NO_NAMES = ColumnNames()
"""Columns are called by their meanings."""
