"""Sentences as shared tasks publish them (CoNLL): a line for each word with its tag last, and an empty line after each sentence.

Fields are parted by tabs where a line has any, else by spaces. ``--columns tokens=2,tags=3`` says which fields they are where a file
has others (GermEval numbers its words in the first). Lines that begin with ``# `` and the mark of a new document are no words.
"""

import io
import json

from imu_cli.samples.column_names import TAGS, TOKENS, ColumnNames
from imu_cli.samples.tables import Problems, Rows

SUFFIXES = (".conll", ".bio", ".iob", ".iob2")
DOCUMENT = "-DOCSTART-"


def sentence_rows(data: bytes, names: ColumnNames, problems: Problems) -> Rows:
    """The sentences of a file in UTF-8, one a row; what is wrong with single lines goes to ``problems``, which quote no words.

    A file whose lines all have one field has words without tags.
    """
    rows, places = Rows(), names.positions
    word_at, tag_at = places.get(TOKENS, 0), places.get(TAGS, -1)
    words, tags, start, tagged = list[str](), list[str](), 0, False

    def end() -> None:
        if words:
            rows.add(start, {TOKENS: json.dumps(words, ensure_ascii=False), TAGS: json.dumps(tags, ensure_ascii=False)})
        words.clear()
        tags.clear()

    bare = 0
    for line, source in enumerate(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="\n"), 1):
        text = source.rstrip("\r\n")
        if not text.strip():
            end()
            continue
        fields = text.split("\t") if "\t" in text else text.split()
        if fields[0] == DOCUMENT or (text.startswith("# ") and not words) or text.startswith("#\t"):
            end()
            continue
        if "\0" in text:
            problems.add(line, "holds a NUL, which no text does; export the file again")
            continue
        if len(fields) == 1 and not places:
            bare = bare or line
            fields = [fields[0], ""]
        elif max(word_at, tag_at) >= len(fields):
            problems.add(
                line,
                f"has {len(fields)} fields, and --columns names field {max(word_at, tag_at) + 1}; correct one of them",
            )
            continue
        else:
            tagged = True
        start = start if words else line
        words.append(fields[word_at].strip())
        tags.append(fields[tag_at].strip())
    end()
    if tagged and bare:
        problems.add(bare, "has a word and no tag; write its class after it, or -100 for none")
    rows.columns = rows.own = [TOKENS, TAGS] if tagged else [TOKENS]
    return rows
