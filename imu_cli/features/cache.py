"""Scores, and on request features, kept on disk under a key of everything they depend on.

The folder is readable by its owner only. What an entry is, and how it is read: ``cache_entries``.
"""

import errno
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.features.cache_entries import FORMAT, Entry, Kind, checksum, files_of, key_of, parse, read
from imu_cli.files import locks, staging, writing

if TYPE_CHECKING:
    from torch import Tensor


STALE = 3600
"""Age in seconds from which a temporary file of an earlier version, which has no lock, is taken to be left over."""
_TEMPORARY, _JSON = re.compile(r"\.tmp-.*|" + staging.LIBRARY), re.compile(r".*\.json")
_OWN = re.compile("lock|data|" + staging.LIBRARY)
_TRAINING = re.compile(r"training-[0-9a-f]{32}\.safetensors")
_TENSORS = re.compile(r"(scores|features)-[0-9a-f]{32}\.safetensors")


def folder() -> Path:
    """``IMU_CACHE_DIR``, else the user's cache folder; made with mode 0700 when first written to."""
    return Path(os.environ.get("IMU_CACHE_DIR") or platformdirs.user_cache_path("imu"))


def _names(pattern: re.Pattern[str]) -> list[Path]:
    """Files of the cache under such names; none where there is no cache.

    Raises:
        ImuError: it cannot be read.
    """
    try:
        with os.scandir(folder()) as found:
            return sorted(folder() / entry.name for entry in found if pattern.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _cannot_read(error) from error


def _written(path: Path) -> float:
    """When a file was written; now, for one that another process has just removed."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


@contextmanager
def _held() -> Iterator[None]:
    """The moment in which entries appear or go, for one process at a time; without a cache there is nothing to hold."""
    with ExitStack() as held:
        try:
            held.enter_context(locks.held_folder(folder()))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise _cannot_read(error) from error
        yield


def _is_dead(path: Path, asked: bool) -> bool:
    """Whether a temporary folder, or an earlier version's file, is a process's that lives no more.

    Such a file has no lock of its own; unless ``asked`` to remove it, it is given an hour.
    """
    try:
        found = os.lstat(path)
        if found.st_uid != os.geteuid():
            return False
        if stat.S_ISREG(found.st_mode):
            return asked or time.time() - found.st_mtime > STALE
        if not stat.S_ISDIR(found.st_mode) or not all(map(_OWN.fullmatch, os.listdir(path))):
            return False
        descriptor = locks.take(path / "lock", sure=True)
    except OSError:
        return False
    if descriptor is None:
        return False
    locks.release(descriptor)
    return True


def _left_over(asked: bool = False) -> list[Path]:
    """What a process that was killed while writing left: temporary folders, and the name of the JSON file of bare tensors."""
    bare = [path.with_suffix(".json") for path in _names(_TENSORS) if not path.with_suffix(".json").exists()]
    return [path for path in _names(_TEMPORARY) if _is_dead(path, asked)] + bare


def sweep(asked: bool = False) -> list[Path]:
    """Remove what processes that were killed left, which may hold anybody's features; what was removed.

    ``asked``: by a user who wants nothing to stay.

    Raises:
        ImuError: it cannot be removed.
    """
    with writing.said_as(partial(_cannot_write, remedy="see who owns it")), _held():
        found = _left_over(asked)
        for path in found:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.with_suffix(".safetensors").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
    return found


def entries() -> tuple[list[Entry], list[Path]]:
    """All entries that can be read, oldest first, and what is torn, edited, or left by a process that was killed."""
    with _held():
        parsed = [(path, parse(path)) for path in sorted(_names(_JSON), key=_written)]
        torn = [path for path, entry in parsed if entry is None and path.exists()]
        return [entry for _, entry in parsed if entry], sorted(torn + _left_over())


@dataclass(frozen=True)
class Lookup:
    """What a lookup found: the tensors, or why there are none."""

    tensors: "dict[str, Tensor] | None"
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
    _tidy()
    _, path = files_of(kind, key, folder())
    if path not in _names(_JSON):
        return Lookup(None, {}, _nearest(kind, fields))
    entry = parse(path)
    tensors = read(entry) if entry else None
    if entry is None or tensors is None:
        return Lookup(None, {}, f"entry {key[:8]} is torn or was edited (checksum), it is recomputed")
    return Lookup(tensors, entry.fields, "")


@contextmanager
def scratch(remedy: str = "set IMU_CACHE_DIR or --no-cache") -> Iterator[Path]:
    """A temporary file in the cache's folder that only its owner can read; removed at the end, if it is still there.

    It lies in a folder of its own with a lock, so that it is known for what it is if this process is killed.

    ``remedy`` is what the message advises where it cannot be written.

    Raises:
        ImuError: the folder cannot be written, or the disk is full.
    """
    cannot = partial(_cannot_write, remedy=remedy)
    with writing.said_as(cannot):
        own = _begin()
    try:
        with writing.said_as(cannot):
            yield own.path / "data"
    finally:
        shutil.rmtree(own.path, ignore_errors=True)
        locks.release(own.descriptor)


@dataclass(frozen=True)
class _Own:
    path: Path
    descriptor: int


def make() -> Path:
    """The cache's folder, made if need be."""
    made = folder()
    if not made.is_dir():  # a folder that was there keeps its mode: it may be everybody's, such as /tmp
        made.mkdir(parents=True, exist_ok=True)
        made.chmod(0o700)
    return made


def trainings() -> list[Path]:
    """States of trainings that were interrupted, which ``imu unlearn --resume`` goes on from."""
    return _names(_TRAINING)


def _begin() -> _Own:
    signals.check()
    made = make()
    _tidy()
    with locks.held_folder(made):  # so that nobody sees it without its lock
        path = Path(tempfile.mkdtemp(dir=made, prefix=".tmp-"))
        descriptor = locks.take(path / "lock")
    if descriptor is None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    return _Own(path, descriptor)


def _cannot_read(error: OSError) -> ImuError:
    return ImuError(f"{folder()}: the cache cannot be read ({error.strerror}); set IMU_CACHE_DIR or --no-cache")


def _cannot_write(why: str, remedy: str) -> str:
    return f"{folder()}: the cache cannot be written ({why}); {remedy}"


def write(
    kind: Kind, fields: Mapping[str, Any], samples: Iterable[Mapping[str, Any]], save: Callable[[Path], None]
) -> Path:
    """Write an entry, tensors first, each file atomically, so that a reader sees all of it or none.

    ``save`` writes the tensors as safetensors to the path that it is given.

    Raises:
        ImuError: the folder cannot be written.
    """
    paths, count = files_of(kind, key_of(kind, fields), folder()), 0
    with scratch() as tensors, scratch() as described:
        save(tensors)
        with described.open("w", encoding="ascii") as file:
            file.write(json.dumps({"format": FORMAT, "fields": fields})[:-1] + ',\n"samples": [')
            for count, sample in enumerate(samples, 1):
                file.write(("\n" if count == 1 else ",\n") + json.dumps(sample))
            file.write(f'\n], "count": {count}')
            file.flush()
            file.write(f', "sha256": "{checksum(tensors, described)}"}}\n')
        signals.check()
        with locks.held_folder(folder()):
            for temporary, path in zip((tensors, described), paths, strict=True):
                temporary.chmod(0o600)
                temporary.replace(path)
    return paths[1]


def remove(entry: Entry) -> None:
    """Delete an entry's files, the JSON first so that nothing finds half an entry."""
    with _held():
        for path in reversed(entry.paths):
            path.unlink(missing_ok=True)


def is_named_so(path: Path) -> bool:
    """Whether a JSON file is called as entries are; one of another name is somebody's, and never removed."""
    return _TENSORS.fullmatch(path.with_suffix(".safetensors").name) is not None


def remove_torn(paths: Iterable[Path]) -> list[Path]:
    """Delete JSON files that are called as entries are and are none, each with the tensors beside it; what was deleted."""
    with _held():
        gone = [path for path in paths if is_named_so(path)]
        for path in gone:
            path.with_suffix(".safetensors").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    return gone


def _tidy() -> None:
    """Remove in passing what is known for dead by its lock; a cache that may not be written is nobody's to tidy here."""
    found = _names(_TEMPORARY)
    if any(path.is_dir() for path in found):
        with suppress(OSError, ImuError), _held():
            for path in found:
                if path.is_dir() and _is_dead(path, asked=False):
                    shutil.rmtree(path)


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
    return [entry for entry in entries()[0] if _holds(entry, digests)]


def _holds(entry: Entry, digests: set[str]) -> bool:
    try:
        return any(sample["digest"] in digests for sample in entry.samples())
    except ImuError:  # an edited one is found by its checksum, and removed as broken
        return False
