"""Sentences as shared tasks publish them (CoNLL): a line for each word with its tag last, and an empty line after each sentence.

Fields are parted by tabs where a line has any, else by spaces. ``--columns tokens=2,tags=3`` says which fields they are where a file
has others (GermEval numbers its words in the first). Lines that begin with ``# `` and the mark of a new document are no words. In
CoNLL-U (Universal Dependencies) the word is the second of ten fields and its part of speech the fourth; lines that stand for several
words at once, or for one that is not written, are none.
"""

import io
import json
import re
from collections.abc import Mapping, Sequence

from imu_cli.samples.column_names import TAGS, TOKENS, ColumnNames
from imu_cli.samples.tables import CR_ALONE, Problems, Rows

UNIVERSAL = ".conllu"
SUFFIXES = (".conll", ".bio", ".iob", ".iob2", UNIVERSAL)
DOCUMENT = "-DOCSTART-"
FORM, UPOS, FIELDS = 1, 3, 10
"""Of a line of CoNLL-U: where the word and its part of speech are, and how many fields it has."""
NO_WORD = re.compile(r"[0-9]+[-.][0-9]+")
"""What such a line begins with where it is no word of its own."""
LIKELY = re.compile(rb"\S+[ \t](?:.*[ \t])?(?:O|[BIOESLUS]-\S+)\s*")
"""The first line of such a file on standard input, where no name says what it is."""


def is_likely(first: bytes) -> bool:
    """Whether a first line is one of sentences, and no header."""
    return first.startswith(DOCUMENT.encode()) or LIKELY.fullmatch(first) is not None


def sentence_rows(data: bytes, names: ColumnNames, problems: Problems, universal: bool = False) -> Rows:
    """The sentences of a file in UTF-8, one a row; what is wrong with single lines goes to ``problems``, which quote no words.

    A file whose lines all have one field has words without tags. ``universal``: it is named as one of CoNLL-U.
    """
    rows, places = Rows(), names.positions
    if b"\r" in data and b"\n" not in data:
        problems.add(0, CR_ALONE.replace("FILE", problems.name))
        return rows
    if universal and not places:
        places = {TOKENS: FORM, TAGS: UPOS}
    words, tags, start, most, bare = list[str](), list[str](), 0, 0, 0

    def end() -> None:
        if words:
            rows.add(start, {TOKENS: json.dumps(words, ensure_ascii=False), TAGS: json.dumps(tags, ensure_ascii=False)})
        words.clear()
        tags.clear()

    for line, source in enumerate(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="\n"), 1):
        text = source.rstrip(" \t\r\n")
        fields = text.split("\t") if "\t" in text else [field for field in text.split(" ") if field]
        if not text or fields[0] == DOCUMENT or (text.startswith("# ") and not words) or text.startswith("#\t"):
            end()
            continue
        if len(fields) == FIELDS and NO_WORD.fullmatch(fields[0]):
            continue
        wrong = _wrong_line(text, fields, places, most)
        if wrong:
            problems.add(line, wrong)
            continue
        if len(fields) == 1 and not places:
            bare = bare or line
            fields = [fields[0], ""]
        else:
            most = len(fields)
        start = start if words else line
        words.append(fields[places.get(TOKENS, 0)].strip())
        tags.append(fields[places.get(TAGS, -1)].strip())
    end()
    if most and bare:
        problems.add(bare, "has a word and no tag; write its class after it, or -100 for none")
    rows.columns = rows.own = [TOKENS, TAGS] if most else [TOKENS]
    return rows


def _wrong_line(text: str, fields: Sequence[str], places: Mapping[str, int], most: int) -> str:
    """What is wrong with a line beside lines of ``most`` fields; empty where nothing is."""
    if "\0" in text:
        return "holds a NUL, which no text does; export the file again"
    last = max(places.values(), default=0)
    if last >= len(fields):
        return f"has {len(fields)} fields, and --columns names field {last + 1}; correct one of them"
    if not places and most and len(fields) not in (1, most):
        return f"has {len(fields)} fields, and the lines before it {most}; correct it, or say which fields count: --columns tokens=1,tags=2"
    return ""
