"""Where a model's tensors lie: one safetensors file, or shards under an index, alone or in a folder with its config.

Only headers are read, and no torch: everything here holds before a single weight is loaded. What a file or an index
says is checked before it is followed; nothing outside the model's own folder is opened because a file names it.
"""

import hashlib
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors
from annotated_types import MinLen

from imu_cli import signals
from imu_cli.errors import ImuError, RefusedError
from imu_cli.files.checking import Said, checked
from imu_cli.files.reading import cut, parse_json, read_json
from imu_cli.models import kinds
from imu_cli.models.kinds import PICKLES, WEIGHTS

INDEX = ".safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes, the format's own limit
SHOWN = 5
HASHED = 1_000_000
"""Bytes hashed between two points at which a signal ends the run."""


class Index(Said):
    """An index of shards: the file that holds each tensor, by the tensor's name."""

    weight_map: Annotated[dict[str, str], MinLen(1)]


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype as the format names it, shape, and byte range from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its tensors by name, and its metadata."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Layout:
    """A model's files.

    Attributes:
        model: what the user named: a file, an index, or a folder.
        shards: the safetensors files, in the order of their names.
        index: the ``.safetensors.index.json``, if the tensors are spread by one.
        notes: what is there and plays no part.
    """

    model: Path
    shards: tuple[Shard, ...]
    index: Path | None
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> Path:
        """The file that stands for the model: its index, or its only file."""
        return self.index or self.shards[0].path

    @property
    def folder(self) -> Path:
        """Where the model's files, and the config beside them, lie."""
        return self.model if self.model.is_dir() else self.model.parent

    @property
    def is_folder(self) -> bool:
        """Whether the model is a folder's content: such a model is written as a folder again."""
        return self.index is not None or self.model.is_dir()

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that weights come from, the index first."""
        return (*([self.index] if self.index else []), *(shard.path for shard in self.shards))

    @property
    def entries(self) -> dict[str, Entry]:
        """All tensors by name; a byte range counts from the start of the file that holds it."""
        return {name: entry for shard in self.shards for name, entry in shard.entries.items()}

    @property
    def metadata(self) -> dict[str, str]:
        """The files' metadata; a key that two shards disagree about is left out."""
        pairs = {pair for shard in self.shards for pair in shard.metadata.items()}
        keys = [key for key, _ in pairs]
        return {key: value for key, value in sorted(pairs) if keys.count(key) == 1}


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    digest, buffer = hashlib.sha256(), bytearray(HASHED)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            signals.check()
            digest.update(memoryview(buffer)[:size])
    return digest.hexdigest()


def combined_hash(hashes: Mapping[str, str]) -> str:
    """One SHA-256 for a model's files, given theirs by name: the file's own where there is one, else that of a list.

    The list is what ``sha256sum`` prints for the index and the shards, in the order of their names, so that anybody can
    check it: ``(LC_ALL=C; sha256sum *.safetensors *.safetensors.index.json | sort -k 2 | sha256sum)``.
    """
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def model_hash(model: Path) -> str:
    """The one hash of a model's files."""
    return combined_hash({path.name: file_hash(path) for path in resolve(model).files})


def stem(main: Path) -> str:
    """A model's name without what the format adds: ``model`` of model.safetensors and model.safetensors.index.json."""
    return main.name.removesuffix(INDEX) if main.name.endswith(INDEX) else main.stem


def main_file(model: Path) -> Path:
    """The weights' file or index that a MODEL stands for; only a folder is looked into, and nothing is opened.

    Raises:
        RefusedError: a folder whose weights are pickles only, or an adapter's.
        ImuError: a folder without weights, or with several models.
    """
    if not model.is_dir():
        return model
    found = sorted(path for path in listed(model) if path.name.endswith((WEIGHTS, INDEX)))
    named = [path for name in (f"model{WEIGHTS}", f"model{INDEX}") for path in found if path.name == name]
    indices = [path for path in found if path.name.endswith(INDEX)]
    for chosen in (named, indices, found):
        if len(chosen) == 1:
            return chosen[0]
    if found and all(kinds.is_part(path.name) for path in found):
        raise ImuError(
            f"{model}: holds {_some([path.name for path in found])}, shards without their index (model{INDEX}); copy it there too"
        )
    if found:
        raise ImuError(f"{model}: holds {_some([path.name for path in found])}; name the one that is meant")
    kinds.refuse_folder(model, listed(model))
    raise AssertionError("a folder without weights was not refused")


def listed(folder: Path) -> list[Path]:
    """What is in a folder.

    Raises:
        ImuError: it cannot be read.
    """
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise ImuError(f"{folder}: cannot be read ({error.strerror})") from error


def require_file(model: Path) -> Path:
    """The file of a MODEL that is read first; what cannot be a checkpoint is refused before anything else.

    Raises:
        RefusedError: a pickle.
        ImuError: missing, or a folder without one model in it.
    """
    path = main_file(model)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ImuError(
            f"{path}: no such file; name a .safetensors checkpoint, its index, or the folder that holds it"
        ) from error
    if not stat.S_ISREG(mode):  # a pipe would be waited for, a device read without end
        raise ImuError(f"{path}: not a regular file; name a .safetensors checkpoint")
    kinds.refuse_pointer(path)
    if not path.name.endswith(INDEX):
        _refuse_pickle(path)
    return path


def _refuse_pickle(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ImuError(f"{path}: cannot be read ({error.strerror})") from error
    is_pickle = start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or start[:4] == b"PK\x03\x04"
    # A safetensors header of 640 bytes, written as 80 02, starts like a pickle; the brace after its length tells.
    is_pickle = is_pickle and start[8:] != b"{"
    if path.suffix in PICKLES or is_pickle:
        raise RefusedError(kinds.pickle_advice(path))


def resolve(model: Path) -> Layout:
    """The files of a MODEL, headers and index read and checked.

    Raises:
        RefusedError: a pickle.
        ImuError: missing, truncated, not safetensors, or an index that does not say what is there.
    """
    main = require_file(model)
    if not main.name.endswith(INDEX):
        # A file that the user named may be a link to anywhere; one that a folder brought may not.
        path = main if main == model else inside(model, main.name)
        shard = _read(path)
        kinds.refuse_adapter(path, list(shard.entries))
        return Layout(model, (shard,), None, _unused(model, [main.name]))
    weight_map = _weight_map(main)
    folder = main.parent
    shards = [read_header(inside(folder, name, str(main))) for name in sorted(set(weight_map.values()))]
    _refuse_mismatch(main, weight_map, shards)
    return Layout(model, tuple(shards), main, _unused(model, [main.name, *(shard.path.name for shard in shards)]))


def refuse_part(layout: Layout) -> None:
    """Refuse one shard of a model that is spread over several.

    Raises:
        ImuError: the model is a file whose name says that there are more.
    """
    if layout.index is None and kinds.is_part(layout.main.name):
        raise ImuError(
            f"{layout.main}: one shard of several, by its name; name the folder or the index ({INDEX.removeprefix('.')}), or rename "
            "it if it holds the whole model"
        )


def _unused(model: Path, used: Sequence[str]) -> tuple[str, ...]:
    if not model.is_dir():
        return ()
    names = [path.name for path in listed(model) if path.name.endswith(WEIGHTS)]
    more = sorted(set(names) - set(used))
    return (f"{model}: {_some(more)} hold other weights, which are not read",) if more else ()


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(cut, names[:SHOWN])) + (f", +{len(names) - SHOWN} more" if len(names) > SHOWN else "")


def inside(folder: Path, name: str, where: str | None = None) -> Path:
    """A file that a folder's own content names, if it is a plain file in that folder.

    A link must stay in the folder. The one exception is the Hugging Face cache, where ``snapshots/REVISION/name`` is a
    link to ``../../blobs/HASH``: the user named the snapshot, and its blobs belong to it.

    Raises:
        ImuError: not a plain name, missing, no file, or a link that leaves the folder.
    """
    where = where or str(folder)
    if not name or name in (".", "..") or any(mark in name for mark in "/\\\0") or Path(name).is_absolute():
        raise ImuError(
            f"{where}: names {name!r}, which is not a plain file name; a model's files lie in its own folder"
        )
    path = folder / name
    try:
        real, home = path.resolve(strict=True), folder.resolve()
        regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, RuntimeError) as error:
        raise ImuError(f"{where}: {name} is not there; the model is incomplete, copy it again") from error
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    if real.parent not in (home, blobs):
        raise ImuError(f"{path}: a link that leaves the folder; put the file itself there")
    if not regular:
        raise ImuError(f"{path}: not a regular file")
    return path


def _weight_map(index: Path) -> dict[str, str]:
    found = checked(
        Index, read_json(index), str(index), "it has no weight_map from tensors to file names; copy it again"
    ).weight_map
    bad = sorted(name for name in set(found.values()) if not name.endswith(WEIGHTS))
    if bad:
        raise ImuError(f"{index}: names {_some([repr(name) for name in bad])}, which are no .safetensors files")
    return found


def _refuse_mismatch(index: Path, weight_map: Mapping[str, str], shards: Sequence[Shard]) -> None:
    """Every tensor lies in exactly one shard, the one that the index names."""
    problems = []
    held: dict[str, str] = {}
    for shard in shards:
        for name in shard.entries:
            if name in held:
                problems.append(f"{name} stands in both {held[name]} and {shard.path.name}")
            held[name] = shard.path.name
    problems += [
        f"{name} is {'in ' + held[name] if name in held else 'nowhere'}, not in {file}"
        for name, file in weight_map.items()
        if held.get(name) != file
    ]
    problems += [f"{name} of {file} is not listed" for name, file in held.items() if name not in weight_map]
    if problems:
        raise ImuError(f"{index}: does not fit its shards: {_some(problems)}; copy the model again")


def read_header(path: Path) -> Shard:
    """A safetensors file's tensors and metadata.

    Raises:
        RefusedError: a pickle.
        ImuError: missing, truncated, or not a safetensors file.
    """
    require_file(path)
    return _read(path)


def _read(path: Path) -> Shard:
    try:
        raw, start = _header(path)
        # The library's own parser checks lengths, overlaps and dtypes; ours only learns the byte ranges.
        with safetensors.safe_open(str(path), framework="np"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise ImuError(
            f"{path}: not a readable safetensors file ({error}); it may be truncated, copy it again"
        ) from error
    metadata = raw.pop("__metadata__", None) or {}
    entries = {
        name: Entry(
            item["dtype"], tuple(item["shape"]), start + item["data_offsets"][0], start + item["data_offsets"][1]
        )
        for name, item in raw.items()
    }
    return Shard(path, entries, metadata)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header as JSON, and where the data start."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise ImuError(f"{path}: not a safetensors file (its header would be {length} bytes); check or re-save it")
        return parse_json(file.read(length), f"{path}: header", texts="any"), 8 + length
