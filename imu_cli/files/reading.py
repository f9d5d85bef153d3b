"""JSON from files that are not trusted: bounded in size and depth, every key once."""

import json
from pathlib import Path
from typing import Any

from imu_cli.errors import ImuError

MAX_JSON = 50_000_000
"""Bytes of an index or a config; the index of a model with 100,000 tensors has about 10 million."""
DEEPEST = 60


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in made if keys.count(key) > 1)!r} stands twice")
    return made


def parse_json(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object from a file that is not trusted.

    Raises:
        ImuError: not UTF-8 JSON, not an object, nested too deeply, or a key stands twice.
    """
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ImuError(f"{where}: not readable JSON ({said}); the file is damaged or was made to mislead") from error
    if not isinstance(found, dict):
        raise ImuError(f"{where}: not a JSON object; the file is damaged or of another kind")
    if deeper(found, DEEPEST):
        raise ImuError(f"{where}: nested too deeply to be read; the file is damaged or was made to mislead")
    return found


def deeper(value: Any, than: int) -> bool:
    """Whether lists and mappings are nested further, found level by level."""
    level = [value]
    for _ in range(than):
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [part for item in inner for part in (item.values() if isinstance(item, dict) else item)]
    return bool(level)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a config or an index beside a model.

    Raises:
        ImuError: cannot be read, larger than any such file, or not as ``parse_json`` wants it.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON:
            raise ImuError(f"{path}: has {size:,} bytes, more than any config or index; it is not read")
        raw = path.read_bytes()
    except OSError as error:
        raise ImuError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_json(raw, str(path))
