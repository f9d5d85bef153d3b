"""Scores, and on request features, kept on disk under a key of everything they depend on.

One entry is ``<kind>-<key>.safetensors`` beside ``<kind>-<key>.json``; the JSON holds what the key was made of, the
samples' names, and the hash of the tensors. The folder is readable by its owner only.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import platformdirs
from safetensors.torch import load, save
from torch import Tensor

from .errors import ImuError

FORMAT = 1
STALE = 3600
"""Age in seconds from which a temporary file is taken to be left over by a process that was killed."""
Kind = Literal["scores", "features"]


@dataclass(frozen=True)
class Entry:
    """One entry: its kind and key, the fields that the key was made of, and the samples it belongs to."""

    kind: Kind
    key: str
    fields: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]] = field(repr=False)
    sha256: str
    folder: Path

    @property
    def paths(self) -> tuple[Path, Path]:
        """The tensors' file and the JSON file."""
        stem = f"{self.kind}-{self.key}"
        return self.folder / f"{stem}.safetensors", self.folder / f"{stem}.json"

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.paths if path.exists())


def folder() -> Path:
    """``IMU_CACHE_DIR``, else the user's cache folder; made with mode 0700 when first written to."""
    return Path(os.environ.get("IMU_CACHE_DIR") or platformdirs.user_cache_path("imu"))


def key_of(kind: Kind, fields: Mapping[str, Any]) -> str:
    """Hash of everything that the entry depends on."""
    text = json.dumps({"format": FORMAT, "kind": kind, **fields}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _parse(path: Path) -> Entry | None:
    kind, _, key = path.stem.partition("-")
    if kind not in ("scores", "features"):
        return None
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        entry = Entry(kind, key, plain["fields"], plain["samples"], plain["sha256"], path.parent)  # type: ignore[arg-type]
        whole = plain["format"] == FORMAT and key_of(entry.kind, entry.fields) == key
        whole = whole and all(isinstance(sample["digest"], str) for sample in entry.samples)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if whole else None


def _written(path: Path) -> float:
    """When a file was written; now, for one that another process has just removed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _left_over() -> list[Path]:
    """What a process that was killed while writing left: tensors without their JSON file, old temporary files."""
    bare = [
        path.with_suffix(".json") for path in folder().glob("*-*.safetensors") if not path.with_suffix(".json").exists()
    ]
    return bare + [path for path in folder().glob(".tmp-*") if time.time() - _written(path) > STALE]


def entries() -> tuple[list[Entry], list[Path]]:
    """All entries that can be read, oldest first, and the JSON files that are torn, edited or missing."""
    parsed = [(path, _parse(path)) for path in sorted(folder().glob("*.json"), key=_written)]
    torn = [path for path, entry in parsed if entry is None and path.exists()]
    return [entry for _, entry in parsed if entry], sorted(torn + _left_over())


def _checksum(data: bytes, samples: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over an entry's tensors and its samples."""
    digest = hashlib.sha256(data)
    digest.update(json.dumps(list(samples), sort_keys=True).encode())
    return digest.hexdigest()


def read(entry: Entry) -> dict[str, Tensor] | None:
    """The tensors of an entry, or None if they are missing, or they or the samples are not what was written."""
    try:
        data = entry.paths[0].read_bytes()
    except OSError:
        return None
    return load(data) if _checksum(data, entry.samples) == entry.sha256 else None


@dataclass(frozen=True)
class Lookup:
    """What a lookup found: the tensors, or why there are none."""

    tensors: dict[str, Tensor] | None
    fields: Mapping[str, Any]
    why: str


def _nearest(kind: Kind, fields: Mapping[str, Any]) -> str:
    """What differs from the most similar entry for the same samples."""
    near: list[list[str]] = [
        [name for name in fields if entry.fields.get(name) != fields[name]]
        for entry in entries()[0]
        if entry.kind == kind and entry.fields.get("samples") == fields["samples"]
    ]
    if not near:
        return ""
    closest = min(near, key=len)
    return f"differs in {', '.join(closest)}"


def find(kind: Kind, fields: Mapping[str, Any]) -> Lookup:
    """Look an entry up by everything it depends on; a torn or edited one counts as missing and is said to be so."""
    key = key_of(kind, fields)
    path = folder() / f"{kind}-{key}.json"
    if not path.exists():
        return Lookup(None, {}, _nearest(kind, fields))
    entry = _parse(path)
    tensors = read(entry) if entry else None
    if entry is None or tensors is None:
        return Lookup(None, {}, f"entry {key[:8]} is torn or was edited (checksum), it is recomputed")
    return Lookup(tensors, entry.fields, "")


def _write_atomically(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    finally:
        with suppress(OSError):
            Path(name).unlink(missing_ok=True)


def write(
    kind: Kind, fields: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> Path:
    """Write an entry, tensors first, each file atomically, so that a reader sees all of it or none.

    Raises:
        ImuError: the folder cannot be written.
    """
    data, rows = save(dict(tensors)), list(samples)
    entry = Entry(kind, key_of(kind, fields), fields, rows, _checksum(data, rows), folder())
    plain = {"format": FORMAT, "fields": fields, "sha256": entry.sha256, "samples": entry.samples}
    try:
        if not entry.folder.is_dir():  # a folder that was there keeps its mode: it may be everybody's, such as /tmp
            entry.folder.mkdir(parents=True, exist_ok=True)
            entry.folder.chmod(0o700)
        _write_atomically(entry.paths[0], data)
        _write_atomically(entry.paths[1], json.dumps(plain, indent=1).encode())
    except OSError as error:
        raise ImuError(
            f"{entry.folder}: the cache cannot be written ({error.strerror}); set IMU_CACHE_DIR or --no-cache"
        ) from error
    return entry.paths[1]


def remove(entry: Entry) -> None:
    """Delete an entry's files, the JSON first so that nothing finds half an entry."""
    for path in reversed(entry.paths):
        path.unlink(missing_ok=True)


def named(prefix: str) -> Entry:
    """The entry whose key starts with ``prefix``.

    Raises:
        ImuError: none, or more than one.
    """
    found = [
        entry
        for entry in entries()[0]
        if entry.key.startswith(prefix) or f"{entry.kind}-{entry.key}".startswith(prefix)
    ]
    if len(found) != 1:
        raise ImuError(f"{prefix}: {len(found) or 'no'} cache entries start so; see imu cache ls")
    return found[0]


def belonging(digests: set[str]) -> list[Entry]:
    """Entries that hold any of the samples with these content digests."""
    return [entry for entry in entries()[0] if any(sample["digest"] in digests for sample in entry.samples)]
