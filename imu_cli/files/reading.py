"""What is read from files and the environment is bounded first: JSON in size, depth and digits, every key once; text; numbers.

``yaml_reading`` does the same for YAML, ``checking`` holds what was read against a model of the file.
"""

import json
import os
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from imu_cli.errors import ImuError

MAX_JSON = 50_000_000
"""Bytes of an index or a config; the index of a model with 100,000 tensors has about 10 million."""
MAX_LIST = 1_000_000_000
"""Bytes of a list of samples; ten million rows have about half of that."""
MAX_NAMES = 10_000_000
"""Bytes of a list of class names."""
DEEPEST = 60
MAX_DIGITS = 40
"""Digits of a whole number, twice what 64 bits hold: some configs write 1e30 in full for "no limit"."""
SHOWN = 80
"""Characters of a found value in a message."""
MISLED = "the file is damaged or was made to mislead"

Texts = Literal["plain", "names", "any"]
"""What strings may hold: no NUL and no half characters; what a record may quote, which are names that are not UTF-8; or anything."""


def _short_repr() -> reprlib.Repr:
    made = reprlib.Repr()
    made.maxstring = made.maxother = made.maxlong = SHOWN
    made.maxlevel = 3
    return made


_SHORT = _short_repr()


def shown(value: Any) -> str:
    """A value for a message, however long, deep or large it is."""
    try:
        text = _SHORT.repr(value)
    except ValueError:  # a number of more digits than Python writes out
        return f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]}…{text[-SHOWN // 2 :]}"


def cut(text: str) -> str:
    """A text as it is, but for what is too long for a message."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text):,} characters)"


def content(path: Path, most: int, remedy: str, where: str | None = None) -> bytes:
    """A file's bytes, no more than ``most`` of them: what has no end, such as a device, is not read to it.

    Raises:
        ImuError: cannot be read, or is larger; ``remedy`` says what to do.
    """
    where = where or str(path)
    try:
        with path.open("rb") as file:
            found = file.read(most + 1)
    except OSError as error:
        raise ImuError(f"{where}: cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:  # a NUL, or half a character
        raise ImuError(f"{where}: cannot be the name of a file ({error}); {remedy}") from error
    if len(found) > most:
        raise ImuError(f"{where}: has more than {most:,} bytes, and no such file has, so it is not read; {remedy}")
    return found


# --- JSON


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {shown(key)} stands twice")
        made[key] = value
    return made


def whole_number(text: str) -> int:
    """A whole number as a file writes it.

    Raises:
        ValueError: more digits than any number that means something.
    """
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def json_value(text: str, texts: Texts = "plain", deepest: int = DEEPEST) -> Any:
    """A JSON value from a file that is not trusted.

    Raises:
        ValueError: not JSON, a key stands twice, nested too deeply, or a number or text that no such file has.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_int=whole_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if deeper(found, deepest):
        raise ValueError("nested too deeply")
    if texts != "any":
        refuse_texts(found, texts)
    return found


def refuse_texts(value: Any, texts: Texts = "plain") -> None:
    """Refuse strings that cannot be a file's name, nor be printed.

    Raises:
        ValueError: a NUL, or half a character (a lone surrogate).
    """
    for text in strings_in(value):
        if "\0" in text and texts == "plain":
            raise ValueError(f"the text {shown(text)} holds a NUL")
        if text.isascii():
            continue
        try:
            text.encode("utf-8", "surrogateescape" if texts == "names" else "strict")
        except UnicodeEncodeError as error:
            raise ValueError(f"the text {shown(text)} holds half a character") from error


def strings_in(value: Any) -> Iterator[str]:
    """Every string in lists and mappings, keys too."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            left += item


def deeper(value: Any, than: int) -> bool:
    """Whether lists and mappings are nested further, found level by level."""
    level = [value]
    for _ in range(than):
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [part for item in inner for part in (item.values() if isinstance(item, dict) else item)]
    return bool(level)


def parse_json(
    raw: bytes, where: str, *, remedy: str = MISLED, texts: Texts = "plain", deepest: int = DEEPEST
) -> dict[str, Any]:
    """A JSON object from a file that is not trusted.

    Raises:
        ImuError: not UTF-8 JSON, not an object, or not as ``json_value`` wants it; ``remedy`` says what to do.
    """
    try:
        found = json_value(raw.decode("utf-8"), texts, deepest)
    except ValueError as error:
        said = "nested too deeply to be read" if str(error) == "nested too deeply" else f"not JSON ({error})"
        raise ImuError(f"{where}: {said}; {remedy}") from error
    if not isinstance(found, dict):
        raise ImuError(f"{where}: not a JSON object; {remedy}")
    return found


def read_json(path: Path, *, remedy: str = MISLED, texts: Texts = "plain", deepest: int = DEEPEST) -> dict[str, Any]:
    """A JSON object from a config, an index or a record.

    Raises:
        ImuError: cannot be read, larger than any such file, or not as ``parse_json`` wants it.
    """
    return parse_json(content(path, MAX_JSON, remedy), str(path), remedy=remedy, texts=texts, deepest=deepest)


# --- the environment


def environment_number(name: str, default: int, least: int, most: int, remedy: str) -> int:
    """A whole number from an environment variable, which is ``default`` where it is not set.

    Raises:
        ImuError: no number from ``least`` to ``most``.
    """
    text = os.environ.get(name)
    if text is None:
        return default
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else -1
    if not least <= number <= most:
        raise ImuError(f"{name}: is {shown(text)}, not a whole number from {least} to {most:,}; {remedy}")
    return number


def drop_wrong_sizes() -> None:
    """Take ``COLUMNS`` and ``LINES`` away where they are no size of a terminal: rich would end in a traceback.

    They are not the user's to mend, and a result that was computed is not thrown away for them.
    """
    for name in ("COLUMNS", "LINES"):
        text = os.environ.get(name, "1")
        if not (text.isascii() and text.isdigit() and len(text) <= 4 and int(text)):
            del os.environ[name]


def columns(default: int) -> int:
    """Width of a table that no terminal shows: ``COLUMNS`` where it is one, else ``default``."""
    drop_wrong_sizes()
    return max(int(os.environ.get("COLUMNS", default)), 20)
