"""One entry of the cache: ``<kind>-<key>.safetensors`` beside ``<kind>-<key>.json``.

The JSON holds what the key was made of on its first line, the samples' names on a line each, and on its last line their number
and the hash of both files. So entries are listed by their ends, and a million samples pass by line by line.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from imu_cli.errors import ImuError
from imu_cli.files.checking import checked
from imu_cli.files.reading import MAX_JSON, json_value, parse_json

if TYPE_CHECKING:
    from torch import Tensor


FORMAT = 2
BROKEN = "torn, edited, or of another version"
"""What is said of an entry that is not used."""
Kind = Literal["scores", "features"]
_TAIL = re.compile(rb'\], "count": ([0-9]{1,18}), "sha256": "([0-9a-f]{64})"\}\n')
_TAIL_BYTES = 120
"""More than the last line can have."""


class Head(BaseModel):
    """The first line of an entry's JSON file."""

    model_config = ConfigDict(strict=True)

    format: int
    fields: dict[str, Any]


def _sample(line: bytes) -> dict[str, str]:
    """One of the lines that follow: a million of them are looked through, so that no model is made of each."""
    found = json_value(line.rstrip(b",\n").decode("ascii"), "names")
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ("name", "label", "digest")):
        raise ValueError("a sample without name, label and digest")
    return found


@dataclass(frozen=True)
class Entry:
    """One entry: its kind and key, the fields that the key was made of, and how many samples it belongs to."""

    kind: Kind
    key: str
    fields: Mapping[str, Any]
    count: int
    sha256: str
    folder: Path

    @property
    def paths(self) -> tuple[Path, Path]:
        """The tensors' file and the JSON file."""
        return files_of(self.kind, self.key, self.folder)

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths if path.exists())

    def samples(self) -> Iterator[dict[str, str]]:
        """Name, label and content hash of each sample.

        Raises:
            ImuError: the file was edited, or is gone.
        """
        try:
            with self.paths[1].open("rb") as file:
                for line in itertools.islice(file, 2, None):
                    if line.startswith(b"]"):
                        return
                    yield _sample(line)
        except (OSError, ValueError) as error:
            raise ImuError(f"{self.paths[1]}: {BROKEN}; imu cache rm {self.key[:12]}") from error


def files_of(kind: Kind, key: str, place: Path) -> tuple[Path, Path]:
    """Where an entry's tensors and its JSON lie in a folder."""
    return place / f"{kind}-{key}.safetensors", place / f"{kind}-{key}.json"


def key_of(kind: Kind, fields: Mapping[str, Any]) -> str:
    """Hash of everything that the entry depends on."""
    text = json.dumps({"format": FORMAT, "kind": kind, **fields}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def parse(path: Path) -> Entry | None:
    """The entry that a JSON file describes, by its first and last lines; None where it is none, or of another version."""
    kind, _, key = path.stem.partition("-")
    if kind not in ("scores", "features"):
        return None
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with path.open("rb") as file:
            head = parse_json(file.readline(MAX_JSON).rstrip(b",\n") + b"}", str(path), texts="names")
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            tail = _TAIL.fullmatch(b"]" + file.read().rpartition(b"\n]")[2])
        head = checked(Head, head, str(path), "remove it").model_dump()
        if tail is None or head["format"] != FORMAT or key_of(kind, head["fields"]) != key:  # type: ignore[arg-type]
            return None
        return Entry(kind, key, head["fields"], int(tail[1]), tail[2].decode(), path.parent)  # type: ignore[arg-type]
    except (ImuError, OSError, ValueError):
        return None


def checksum(tensors: Path, described: Path) -> str:
    """SHA-256 over an entry's tensors and its JSON file up to the hash itself."""
    with tensors.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    with described.open("rb") as file:
        for line in file:
            digest.update(line.partition(b', "sha256": ')[0] if line.startswith(b"], ") else line)
    return digest.hexdigest()


def read(entry: Entry) -> "dict[str, Tensor] | None":
    """The tensors of an entry, mapped from its file, or None if they are missing, or they or the samples were changed."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # listing entries needs no torch

    try:
        found = load_file(entry.paths[0]) if checksum(*entry.paths) == entry.sha256 else None
    except (OSError, SafetensorError):
        return None
    # A checksum is no secret: whoever edits an entry can make another.
    return found if found is not None and _fits(entry, found) else None


def _fits(entry: Entry, tensors: "Mapping[str, Tensor]") -> bool:
    """Whether an entry's tensors are of its kind and as many as its samples."""
    if entry.kind == "features":
        found = tensors.get("features")
        return found is not None and found.ndim == 2 and len(found) == entry.count and found.is_floating_point()
    each = [tensors.get(name) for name in ("scores", "confidence", "right")]
    single = [tensors.get(name) for name in ("damping", "mean_fisher")]
    four = tensors.get("precision_error")
    return (
        all(item is not None and item.shape == (entry.count,) and not item.is_complex() for item in each)
        and all(item is not None and item.numel() == 1 for item in single)
        and (four is None or four.numel() == 4)
        and _fits_tokens(entry, tensors)
    )


def _fits_tokens(entry: Entry, tensors: "Mapping[str, Tensor]") -> bool:
    """Whether the tokens of records, where an entry has them, are as many as it says."""
    counts = tensors.get("counts")
    each = [tensors.get(name) for name in ("token_scores", "token_confidence", "token_right")]
    if counts is None:
        return all(item is None for item in each)
    if counts.shape != (entry.count,) or counts.is_floating_point() or bool((counts < 1).any()):
        return False
    total = int(counts.sum())
    return all(item is not None and item.shape == (total,) and not item.is_complex() for item in each)
