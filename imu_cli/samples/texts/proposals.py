"""Which column of a file is likely its text, its words, or its answer, and which its label: what ``--columns`` a message proposes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imu_cli.files.reading import cut, json_value
from imu_cli.samples.column_names import (
    ABOUT_COLUMNS,
    COMPLETION,
    EARLY,
    KNOWN_COLUMNS,
    MESSAGES,
    PAIR,
    PROMPT,
    SPEAKERS,
    TAGS,
    TEXT,
    TOKENS,
    is_sentence,
)
from imu_cli.samples.tables import Table

LOOKED_AT = 1_000
"""First rows by which a column is judged."""
PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"),
    ("question", "context"), ("query", "passage"), ("#1 string", "#2 string"), ("text1", "text2"), ("text_a", "text_b"),
)  # fmt: skip
"""What data sets of pairs call the two."""
TEXT_NAMES = (
    "utterance", "utt", "sentence", "content", "body", "message", "review", "review_body", "review_text", "comment", "comment_text",
    "tweet", "document", "question", "query", "description", "news", "abstract", "txt", "texts", "input", "data",
)  # fmt: skip
LABEL_NAMES = (
    "labels", "category", "categories", "class", "classes", "intent", "target", "sentiment", "topic", "emotion", "label_text",
    "class_index", "class index", "coarse_label", "gold_label", "y", "stars", "rating",
)  # fmt: skip
TOKEN_NAMES = (TOKENS, "words", "token", "word", "token_list", "sentence")
"""What data sets of sentences call a list of words; where nothing else could be their classes, a list of another name may be anything."""
TAG_NAMES = (
    "ner", "ner_tag", "ner_labels", "entities", "labels", "tag", "tag_list", "pos_tags", "upos", "pos", "chunk_tags", "xpos",
)  # fmt: skip
"""What data sets of sentences call the classes of the words, the likelier first."""
RECORDS = (
    ("instruction", "output"), ("instruction", "response"), ("prompt", "response"), ("prompt", "output"), ("prompt", "answer"),
    ("prompt", "chosen"), ("question", "response"), ("question", "output"), ("query", "response"), ("query", "answer"),
    ("problem", "solution"), ("input", "output"), ("context", "completion"), ("source", "target"),
)  # fmt: skip
"""What data sets of a language model call prompt and completion."""
WORDS = 12
"""Characters that texts have on average, at the least; and of them most hold a space."""
LISTED = 12
"""Columns that a message lists."""


@dataclass(frozen=True)
class _Column:
    """What the first rows of a column are like."""

    name: str
    position: int
    count: int
    distinct: int
    length: float
    spaced: float

    @property
    def like_text(self) -> bool:
        return self.length >= WORDS and self.spaced > 0.5 and self.distinct > self.count / 2

    @property
    def like_label(self) -> bool:
        return 0 < self.distinct <= max(2, self.count / 2) and self.length < 60


def _columns(table: Table) -> list[_Column]:
    found = []
    for position, name in enumerate(table.columns):
        cells = [cell.strip() for cell in table.column(name)[:LOOKED_AT]] if name in table.cells else []
        cells = ["" if cell.startswith("[") and isinstance(_value(cell), list) else cell for cell in cells]
        count = max(len(cells), 1)
        length, spaced = sum(map(len, cells)) / count, sum(" " in cell for cell in cells) / count
        found.append(_Column(name, position, len(cells), len(set(cells) - {""}), length, spaced))
    return found


def headless(table: Table) -> bool:
    """Whether the header looks like a row of data: a name that is a sentence, or a number."""
    if any(name in KNOWN_COLUMNS for name in table.own):
        return False
    return any(map(is_sentence, table.own))


def listed(table: Table) -> str:
    """The columns' names as a message gives them; how many where they are likely no names but somebody's texts."""
    if headless(table):
        return f"{len(table.own)} fields, and the first line looks like a row, not a header"
    names = [cut(name)[:40] for name in table.own[:LISTED]]
    return ", ".join(names) + (", …" if len(table.own) > LISTED else "")


def _best(columns: Sequence[_Column], names: Sequence[str]) -> _Column | None:
    """The column that is called by the first of the names that any is."""
    return next((column for name in names for column in columns if column.name == name), None)


def of_samples(table: Table) -> str:
    """``--columns`` for a file none of whose columns is its samples, or nothing where none looks like them.

    ``tokens=words,tags=labels`` where it has lists of words, ``prompt=instruction,completion=output`` or ``messages=conversations``
    where it has records of a language model, else ``text=utterance,label=category``.
    """
    return of_sentences(table) or _of_records(table) or _of_texts(table)


def _lists(table: Table) -> dict[str, list[list[Any]]]:
    """Columns whose first cells are lists, as JSON, and those lists; a file may leave such a column out in some rows."""
    found = {}
    for name in dict.fromkeys(name for name in table.columns if name in table.cells):
        cells = [cell for cell in table.column(name)[:EARLY] if cell.strip()]
        if cells and all(cell.lstrip().startswith("[") for cell in cells):
            lists = [made for cell in cells if isinstance(made := _value(cell), list)]
            if len(lists) == len(cells):
                found[name] = lists
    return found


def _value(cell: str) -> Any:
    try:
        return json_value(cell, "any")
    except ValueError:
        return None


def of_sentences(table: Table) -> str:
    """``--columns tokens=words,tags=labels`` for a file of words, or ``tags=labels`` where only those are missing; else nothing."""
    lists = _lists(table)
    words = {name: made for name, made in lists.items() if all(isinstance(word, str) for one in made for word in one)}
    tokens = TOKENS if TOKENS in words else max(words, key=lambda name: _different(words[name]), default=None)
    if tokens is None:
        return ""
    lengths = [len(one) for one in words[tokens]]
    alike = {
        name: made
        for name, made in lists.items()
        if name != tokens
        and [len(one) for one in made] == lengths
        and all(isinstance(tag, str | int) for one in made for tag in one)
    }
    tags = next((name for name in TAG_NAMES if name in alike), None) or min(
        alike, key=lambda name: _different(alike[name]), default=None
    )
    if tags is None and tokens not in TOKEN_NAMES:
        return ""
    parts = [f"{meaning}={name}" for meaning, name in ((TOKENS, tokens), (TAGS, tags)) if name not in (None, meaning)]
    return f"--columns {_quoted(','.join(parts))}" if parts else ""


def _different(lists: Sequence[Sequence[Any]]) -> int:
    return len({str(item) for one in lists for item in one})


def _of_records(table: Table) -> str:
    """``--columns prompt=instruction,completion=output``, or ``messages=conversations``, where a file has such; else nothing."""
    pair = next((pair for pair in RECORDS if set(pair) <= set(table.columns)), None)
    if pair is not None:
        parts = [
            f"{meaning}={name}" for meaning, name in zip((PROMPT, COMPLETION), pair, strict=True) if meaning != name
        ]
        return f"--columns {','.join(parts)}"
    turns = (
        name
        for name, made in _lists(table).items()
        if all(isinstance(turn, Mapping) and SPEAKERS & set(turn) for one in made for turn in one)
    )
    name = next(turns, None)
    return "" if name in (None, MESSAGES) else f"--columns {_quoted(f'{MESSAGES}={name}')}"


def _of_texts(table: Table) -> str:
    """``--columns text=utterance,label=category`` for a file without a text column, or nothing where none looks like one."""
    columns, bare = _columns(table), headless(table)
    pair = next((pair for pair in PAIRS if set(pair) <= set(table.columns)), None)
    free = [column for column in columns if column.name not in KNOWN_COLUMNS]
    if pair is not None:
        parts = [f"{TEXT}={pair[0]}", f"{PAIR}={pair[1]}"]
        taken = set(pair)
    else:
        texts = [column for column in free if column.like_text]
        text = _best(free, TEXT_NAMES) or max(texts, key=lambda column: column.length, default=None)
        if text is None:
            return ""
        parts, taken = [f"{TEXT}={text.position + 1 if bare else text.name}"], {text.name}
    label = None if "label" in table.columns else _label([column for column in free if column.name not in taken])
    if label is not None:
        parts.append(f"label={label.position + 1 if bare else label.name}")
    return f"--columns {_quoted(','.join(parts))}"


def of_labels(table: Table) -> str:
    """``--columns label=category`` for a file without a label column, or nothing where none looks like one."""
    label = _label([column for column in _columns(table) if column.name not in KNOWN_COLUMNS])
    return "" if label is None else f"--columns {_quoted(f'label={label.name}')}"


def _label(columns: Sequence[_Column]) -> _Column | None:
    columns = [column for column in columns if column.name and column.name not in ABOUT_COLUMNS]
    alike = [column for column in columns if column.like_label]
    return _best(columns, LABEL_NAMES) or min(
        alike, key=lambda column: (column.distinct == 1, column.distinct), default=None
    )


def _quoted(text: str) -> str:
    return f"'{text}'" if " " in text or "#" in text else text
