"""Random changes of files, as a torn disk, a careless hand or a hostile one makes them; every one follows from its seed."""

import json
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIGITS = "9" * 5000
NASTY: list[Any] = [
    None, True, False, -1, 0, 1, 2, -5, 3.7, 255, 1002, 30_000, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**39, 10**400,
    1e308, -1e308, 5e-324, float("inf"), float("nan"), "", " ", "x", "0", "-5", "1e999", "2020-13-45", "\0", "a\0b", "\ud800",
    "\udcff", "é", "\x1b[2J", "../../etc/passwd", "/etc/passwd", "a" * 300, "a" * 10_000, DIGITS, "class=3", "-", ".", "|",
    [], {}, [[]], [None], ["a", "b", "c"], [0.5] * 1002, {"a": 1}, {"height": [1], "width": 32}, {"": {}}, ["\0"], [-1, 10**30],
    {"library": "timm", "config": {"input_size": [3, 10**6, 10**6]}}, {"library": "transformers", "config": {}},
]  # fmt: skip
"""Values that stand where another was: of other kinds, too large, empty, not text, not finite, of another meaning."""
LITERALS = [
    DIGITS, "0x" + "f" * 5000, "1e5000", "NaN", "Infinity", "-0", "[" * 3000, '{"a":' * 500, "]", "}", '"', "'", ",", ":", "&a [*a]",
    "*a", "!!python/object/apply:os.system [x]", "!!binary aGk=", "2020-13-45", "2020-01-01", "1:30", "=", "~", "yes", "\\u0000",
    '"\\ud800"', '"a\\0b"', "%", "@", "`", "? [a]", "<<: {a: 1}", "---\n", "...\n", "\t", "\r", "\n\n", "\x00", "\x1b", "\xa0", "\u2028",
]  # fmt: skip
"""Text that is put into text."""
DEEP = 3000


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested lists and mappings."""
    found = [at]
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())
    else:
        items = list(enumerate(value[:8])) if isinstance(value, list) else []
    for key, inner in items:
        found += _places(inner, (*at, key))
    return found


def of_value(value: Any, chance: random.Random) -> Any:
    """The value with one place in it changed: replaced, taken out, doubled, renamed, or wrapped."""
    places = [at for at in _places(value) if at]
    if not places:
        return chance.choice(NASTY)
    *way, key = chance.choice(places)
    holder = value
    for step in way:
        holder = holder[step]
    kind = chance.choice(["replace"] * 6 + ["remove", "wrap", "double", "rename"])
    if kind == "remove":
        del holder[key]
    elif kind == "wrap":
        holder[key] = [holder[key]] if chance.random() < 0.5 else {"a": holder[key]}
    elif kind == "double" and isinstance(holder, list):
        holder += holder * chance.choice([1, 100])
    elif kind == "rename" and isinstance(holder, dict):
        holder[chance.choice(["x", "", "\0", "size", str(key).upper()])] = holder.pop(key)
    else:
        holder[key] = chance.choice(NASTY)
    return value


def _as_json(value: Any, chance: random.Random) -> str:
    """JSON text; sometimes with a key twice, or a level without end."""
    text = json.dumps(value, ensure_ascii=chance.random() < 0.9) if value != 10**400 else "1" + "0" * 400
    if chance.random() < 0.05:
        text = re.sub(r'"(\w+)": ', r'"\1": 1, "\1": ', text, count=chance.choice([1, 3]))
    if chance.random() < 0.03:
        text = text.replace("1", "[" * DEEP + "]" * DEEP, 1)
    return text


def of_json(data: bytes, chance: random.Random) -> bytes:
    """A JSON document with one or two places changed, or its text spoilt."""
    if chance.random() < 0.25:
        return of_text(data, chance)
    try:
        value = json.loads(data)
        for _ in range(chance.choice([1, 1, 2])):
            value = of_value(value, chance)
        return _as_json(value, chance).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # a second change of a document that the first one spoilt
        return of_text(data, chance)


def of_lines(data: bytes, chance: random.Random) -> bytes:
    """JSON lines of which one is changed."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    lines[at] = of_json(lines[at], chance)
    return b"\n".join(lines)


def of_text(data: bytes, chance: random.Random) -> bytes:
    """A text of which one token is replaced, taken out, or put in; or bytes are."""
    if chance.random() < 0.2:
        return of_bytes(data, chance)
    text = data.decode("utf-8", "surrogateescape")
    tokens = re.findall(r"\w+|\s+|.", text, re.DOTALL) or [""]
    at = chance.randrange(len(tokens))
    new = chance.choice([*LITERALS, *(value for value in NASTY if isinstance(value, str)), str(chance.randrange(100))])
    kind = chance.choice(["replace", "replace", "insert", "remove", "swap", "repeat"])
    if kind == "swap":
        other = chance.randrange(len(tokens))
        tokens[at], tokens[other] = tokens[other], tokens[at]
    else:
        kept = {
            "replace": [new],
            "insert": [tokens[at], new],
            "remove": [],
            "repeat": [tokens[at]] * chance.choice([2, 50]),
        }
        tokens[at : at + 1] = kept[kind]
    return "".join(tokens).encode("utf-8", "surrogatepass" if "\ud800" in new else "surrogateescape")


def of_bytes(data: bytes, chance: random.Random) -> bytes:
    """Some bytes flipped, cut, taken out, put in, repeated, or made an extreme number."""
    made = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        at = chance.randrange(len(made) + 1)
        kind = chance.choice(["flip", "flip", "byte", "cut", "out", "in", "repeat", "number"])
        if kind == "flip" and at < len(made):
            made[at] ^= 1 << chance.randrange(8)
        elif kind == "byte" and at < len(made):
            made[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x5B, 0x7B])
        elif kind == "cut":
            del made[at:]
        elif kind == "out":
            del made[at : at + chance.choice([1, 2, 4, 8, 100])]
        elif kind == "in":
            made[at:at] = chance.randbytes(chance.choice([1, 2, 4, 8, 100]))
        elif kind == "repeat":
            made[at:at] = made[at : at + chance.choice([1, 8, 64])] * chance.choice([1, 2, 50])
        elif kind == "number":
            form = chance.choice(["<I", ">I", "<Q", "<H", "<d"])
            most = (1 << 8 * struct.calcsize(form)) - 1
            number = chance.choice([0, 1, most, most // 2, most - 1, 2**15 & most, 10**9 & most])
            made[at : at + struct.calcsize(form)] = struct.pack(form, float(number) if form == "<d" else number)
    return bytes(made)


def of_safetensors(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header, metadata or bytes are changed; the header's length fits, so that its content is read."""
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = chance.choice(["header", "metadata", "metadata", "data", "bytes"])
    if kind == "bytes":
        return of_bytes(data[: 8 + length], chance) + rest
    if kind == "data":
        name = chance.choice([key for key in header if key != "__metadata__"])
        start, end = header[name]["data_offsets"]
        return data[: 8 + length + start] + of_numbers(rest[start:end], chance) + rest[end:]
    said = header.get("__metadata__") or {}
    own = [key for key in said if said[key].startswith("{")]
    if kind == "metadata" and own:
        key = chance.choice(own)
        said[key] = of_json(said[key].encode(), chance).decode("utf-8", "replace")
    else:
        header = of_value(header, chance)
    text = _as_json(header, chance).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + rest


def of_numbers(data: bytes, chance: random.Random) -> bytes:
    """A tensor's bytes with an extreme number in them, of the same length."""
    made = bytearray(data)
    form = chance.choice([form for form in ("<q", "<d", "<f", "B") if struct.calcsize(form) <= max(len(made), 1)])
    size = struct.calcsize(form)
    if len(made) < size:
        return data
    values = {"<q": [-5, -2, 10, 2**62, -(2**63)], "<d": [float("nan"), float("inf"), -1.0, 1e308, 0.0],
              "<f": [float("nan"), float("inf"), 3e38, -0.0], "B": [0, 255]}  # fmt: skip
    at = size * chance.randrange(len(made) // size)
    made[at : at + size] = struct.pack(form, chance.choice(values[form]))
    return bytes(made)


BY_NAME: dict[str, list[Callable[[bytes, random.Random], bytes]]] = {
    ".csv": [of_text, of_text, of_bytes],
    ".tsv": [of_text, of_bytes],
    ".txt": [of_text, of_bytes],
    ".yaml": [of_text, of_text, of_text, of_bytes],
    ".jsonl": [of_lines],
    ".json": [of_json],
    ".safetensors": [of_safetensors],
}


def change(path: Path, chance: random.Random) -> None:
    """Change a file in place, in one of the ways that suit what it is."""
    data = path.read_bytes()
    path.write_bytes(chance.choice(BY_NAME.get(path.suffix, [of_bytes]))(data, chance))
