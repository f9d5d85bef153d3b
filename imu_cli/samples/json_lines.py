"""JSON lines: one object a line, of plain values where a column has a meaning here."""

import io
import json
from collections.abc import Mapping, Set
from typing import Any

from imu_cli.files.reading import MAX_JSON, cut, json_value, refuse_texts, shown, strings_in
from imu_cli.samples.column_names import (
    ALIASES,
    EARLY,
    KNOWN_COLUMNS,
    MESSAGES,
    NER_TAGS,
    PARAPHRASES,
    RECORD_COLUMNS,
    SAMPLE_TEXTS,
    SENTENCE_COLUMNS,
    SPEAKERS,
    TEXT,
    TOKENS,
    ColumnNames,
)
from imu_cli.samples.tables import CR_ALONE, Problems, Rows


def json_rows(data: bytes, names: ColumnNames, problems: Problems) -> Rows:
    """The rows of JSON lines in UTF-8; what is wrong with single ones goes to ``problems``, which quote no values."""
    rows = Rows()
    whole = _one_value(data, {*KNOWN_COLUMNS, *names.given.values()}).replace("FILE", problems.name)
    if whole:
        problems.add(0, whole)
        return rows
    meanings = {name: meaning for meaning, name in names.given.items()}
    columns: dict[str, None] = {}
    wrong = list[tuple[int, str]]()
    # Lines end in \\n alone: U+2028 may stand inside a JSON string.
    for line, source in enumerate(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="\n"), 1):
        if not source.strip():
            continue
        try:
            row = _json_row(source, meanings)
        except ValueError as error:
            wrong.append((line, f"no JSON object of plain values ({error}); write one object a line"))
            continue
        columns |= dict.fromkeys(row)
        renamed = {name: new for name, new in zip(row, names.renamed(row), strict=True) if new}
        rows.odd += [(line, new, kind) for name, new in renamed.items() if (kind := _not_text(new, row[name]))]
        early = len(rows.lines) < EARLY
        rows.add(line, {new: _plain(new, row[name], early) for name, new in renamed.items()})
    if len(wrong) > 1 and not rows.lines and (whole := _no_lines(data)):
        wrong = [(0, whole.replace("FILE", problems.name))]
    for line, told in wrong:
        problems.add(line, told)
    if rows.lines and not columns:
        problems.add(0, "its objects are empty; write what each sample is, such as its text")
        return Rows()
    rows.own = list(columns)
    rows.columns = names.renamed(columns)
    return rows


def _one_value(data: bytes, known: Set[str]) -> str:
    """What to say of a file that is one JSON value over many lines, or one list; empty for lines of objects, with keys that are known."""
    start = data[:1000].removeprefix(b"\xef\xbb\xbf").lstrip()
    if b"\r" in data[:100_000] and b"\n" not in data:
        return CR_ALONE
    if start.startswith(b"["):
        return "is one JSON list, not lines of objects; write one object a line (jq -c '.[]' FILE > OUT.jsonl)"
    if not start.startswith(b"{") or len(data) > MAX_JSON:
        return ""
    try:
        found = json_value(data.decode("utf-8-sig"), "any")
    except ValueError:
        return ""
    if not isinstance(found, dict) or not any(
        isinstance(value, list | dict) and len(value) > 1 for value in found.values()
    ):
        return ""
    if set(found) & known or _is_row(found, data):
        return ""
    keys = ", ".join(repr(cut(key)) for key in list(found)[:4])
    return (
        f"is one JSON object with {keys}, not lines of samples; write each list of it as lines of objects, such as "
        '{"text": "…", "label": "…"}'
    )


def _no_lines(data: bytes) -> str:
    """What to say of a file no line of which is an object; empty where its lines are objects, each with something wrong."""
    first = data.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0].strip()
    if not first.startswith(b"{"):
        return "no line of it is a JSON object; name it as what it is, such as .csv or .tsv, or write one object a line"
    whole = first.rstrip(b",").endswith(b"}")
    return "" if whole else "its objects go over several lines; write one object a line (jq -c . FILE > OUT.jsonl)"


def _is_row(found: Mapping[str, Any], data: bytes) -> bool:
    """Whether one object is a row of its own: it stands on one line, and its lists are words and their tags, or turns."""
    if b"\n" in data.strip():
        return False
    lists = [value for value in found.values() if isinstance(value, list)]
    plain = all(not isinstance(item, list | dict) for value in lists for item in value)
    turns = any(value and all(isinstance(item, dict) and set(item) & SPEAKERS for item in value) for value in lists)
    return bool(lists) and (turns or (plain and len({len(value) for value in lists}) == 1))


def _json_row(source: str, meanings: Mapping[str, str]) -> dict[str, Any]:
    """The object of a line, keys stripped and in lower case; values of known columns plain, others as they are.

    Raises:
        ValueError: no such object. The message holds nothing of the values.
    """
    try:
        found = json_value(source, "any")
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos + 1}") from error
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}")
    row: dict[str, Any] = {}
    for key, value in found.items():
        name = key.strip().lower()
        known = meanings.get(name, name)
        if (
            isinstance(value, bool | list | dict)
            and known in KNOWN_COLUMNS
            and known not in (*SAMPLE_TEXTS, *RECORD_COLUMNS, *SENTENCE_COLUMNS)
        ):
            words = {TOKENS} & {meanings.get(other.strip().lower(), other.strip().lower()) for other in found}
            raise ValueError(f"'{cut(key)}' is a {type(value).__name__}{_OF_WORDS.get(known, '') if words else ''}")
        if name in row:
            raise ValueError(f"the key '{cut(name)}' stands twice")
        _refuse_characters(key, key)
        if isinstance(value, str) or known in (MESSAGES, NER_TAGS, *SENTENCE_COLUMNS):
            _refuse_characters(key, "".join(strings_in(value)))
        row[name] = value
    return row


_OF_WORDS = {
    "label": "; the classes of words are tags: --columns tags=label",
    "true_label": "; a row a word takes it: index 17:3, label, true_label",
    "weight": "; a row a word takes it: index 17:3, weight",
}
"""What to do where words of a sentence have one value each, by the column."""


def _refuse_characters(key: str, text: str) -> None:
    try:
        refuse_texts(text)
    except ValueError as error:
        what = "holds a NUL" if "\0" in text else "holds half a character (a lone surrogate)"
        raise ValueError(f"{shown(key)} {what}") from error


def _not_text(column: str, value: Any) -> str:
    """What a cell holds in place of the text that its column is for; empty where it is one."""
    if column not in (*SAMPLE_TEXTS, *RECORD_COLUMNS, *ALIASES) or isinstance(value, str):
        return ""
    if column == MESSAGES and isinstance(value, list):
        return ""
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)


def _plain(column: str, value: Any, early: bool) -> str:
    """A cell as text; a list where its column takes one, or has no meaning and might be called by one."""
    meant = column in (MESSAGES, NER_TAGS, *SENTENCE_COLUMNS)
    asked = early and column not in {*KNOWN_COLUMNS, *ALIASES, *PARAPHRASES} - {TEXT}
    if isinstance(value, list) and (meant or asked):
        return json.dumps(value, ensure_ascii=not meant)  # half a character may stand where nothing is read
    return "" if value is None or isinstance(value, list | dict) else str(value)
