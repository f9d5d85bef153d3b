"""A model's safetensors files as tensors: read with suspicion, written by copying and patching only the head's bytes.

Pickles are refused: reading one can run code.
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import safetensors
import torch
from safetensors.torch import _TYPES as READABLE
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError, RefusedError
from imu_cli.models import names
from imu_cli.models.layout import Entry, Layout, Shard, combined_hash, file_hash, refuse_part, resolve

BLOCK = 1 << 20

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""What a head can be written in."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's file, or its shards, opened and checked.

    Attributes:
        path: the MODEL as the user named it: a file, an index, or a folder.
        layout: its files and what their headers say.
        hashes: SHA-256 of each file, by name, when it was opened.
    """

    path: Path
    layout: Layout
    hashes: Mapping[str, str]

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """All tensors by name."""
        return self.layout.entries

    @property
    def metadata(self) -> Mapping[str, str]:
        """The safetensors metadata."""
        return self.layout.metadata

    @property
    def folder(self) -> Path:
        """Where a config of this model would lie."""
        return self.layout.folder

    @property
    def sha256(self) -> str:
        """One hash for all of its weights (see ``combined_hash``)."""
        return combined_hash(self.hashes)

    def holder(self, name: str) -> Shard:
        """The file that holds a tensor."""
        return self._holders[name]

    @cached_property
    def _holders(self) -> dict[str, Shard]:
        return {name: shard for shard in self.layout.shards for name in shard.entries}

    def tensors(self, without: Collection[str] = ()) -> dict[str, Tensor]:
        """All tensors but those named, on the CPU, in the file's dtypes, under the file's names.

        Raises:
            RefusedError: one is of a kind that PyTorch does not compute with, such as four-bit numbers.
        """
        wanted = [(shard, [name for name in shard.entries if name not in without]) for shard in self.layout.shards]
        for shard, inside in wanted:
            for name in inside:
                if shard.entries[name].dtype not in READABLE:
                    raise RefusedError(
                        f"{shard.path}: {name} is {shard.entries[name].dtype}, packed or quantised numbers that imu does not "
                        "compute with; give the checkpoint from before quantisation"
                    )
        found: dict[str, Tensor] = {}
        for shard, inside in wanted:
            with safetensors.safe_open(str(shard.path), framework="pt") as file:
                found |= {name: file.get_tensor(name) for name in inside}
        return found

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the file's dtype; only its shard is opened."""
        with safetensors.safe_open(str(self.holder(name).path), framework="pt") as file:
            found: Tensor = file.get_tensor(name)
        return found

    def prefix(self, known: set[str]) -> str:
        """What is before the names that the model knows, if it is words of wrappers or is before every name; "" if neither."""
        starts = {""}
        for name in self.entries:
            words = names.WRAPPER.match(name)
            starts |= set(names.starts(words[0])) if words else set()
            starts |= {name[: -len(own)] for own in known if name.endswith(f".{own}")}
        kept = [name for name in self.entries if not names.is_beside(name)]
        fitting = [
            start
            for start in starts
            if any(start + name in self.entries for name in known)
            and (not start or names.WRAPPER.fullmatch(start) or all(name.startswith(start) for name in kept))
        ]
        return min(fitting, key=len, default="")

    def named(self, prefix: str, name: str) -> str:
        """The file's name for a tensor of the model: with the prefix, or without where only some names have it."""
        return prefix + name if prefix + name in self.entries or name not in self.entries else name

    def outside_hash(self, outside: set[str]) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of every tensor that is not in ``outside``, in name order."""
        digest = hashlib.sha256()
        with ExitStack() as stack:
            files = {shard.path: stack.enter_context(shard.path.open("rb")) for shard in self.layout.shards}
            for name in sorted(set(self.entries) - outside):
                entry = self.entries[name]
                digest.update(f"{name}\0{entry.dtype}\0{entry.shape}\0".encode())
                for block in _range(files[self.holder(name).path], entry.start, entry.end):
                    digest.update(block)
        return digest.hexdigest()


def _range(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    left = end - start
    while left > 0:
        signals.check()
        block = file.read(min(BLOCK, left))
        if not block:
            raise ImuError(f"{file.name}: ends early; the file is truncated or was changed while it was read")
        left -= len(block)
        yield block


def open_checkpoint(path: Path) -> Checkpoint:
    """Open and check a safetensors file, an index with its shards, or a folder of one; its tensors are read later.

    Raises:
        RefusedError: a pickle.
        ImuError: missing, truncated, not a safetensors file, or shards that do not fit their index.
    """
    layout = resolve(path)
    refuse_part(layout)
    return Checkpoint(path, layout, {file.name: file_hash(file) for file in layout.files})


def to_bytes(tensor: Tensor, dtype: str) -> bytes:
    """A tensor's bytes in a safetensors dtype, little-endian and row-major."""
    return tensor.detach().cpu().to(DTYPES[dtype]).contiguous().flatten().view(torch.uint8).numpy().tobytes()


def patch(source: Checkpoint, changes: Mapping[str, Tensor], target: Path) -> None:
    """Write to ``target`` a copy of the model in which only the given tensors' bytes differ; fsynced and read back.

    ``target`` is a file, or the folder that takes the index and the shards. Names, dtypes, order, metadata, sharding and
    every other byte stay as they came; a shard without a changed tensor is copied.

    Raises:
        ImuError: a file is not the one that was opened, or the bytes read back are not the ones meant.
    """
    for file in source.layout.files:
        _copy(file, source.hashes[file.name], target / file.name if source.layout.is_folder else target)
    for shard in source.layout.shards:
        mine = {name: tensor for name, tensor in changes.items() if name in shard.entries}
        if mine:
            _patch_shard(shard, mine, target / shard.path.name if source.layout.is_folder else target)


def _copy(source: Path, sha256: str, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ImuError(f"{source}: has changed since it was opened; run again once nothing writes to it")


def _patch_shard(shard: Shard, changes: Mapping[str, Tensor], target: Path) -> None:
    """Overwrite the changed tensors' byte ranges in a fresh copy, and compare it with what it was copied from."""
    with target.open("r+b") as file:
        for name, tensor in changes.items():
            entry = shard.entries[name]
            file.seek(entry.start)
            file.write(to_bytes(tensor, entry.dtype))
        file.flush()
        os.fsync(file.fileno())
    _compare(shard, target, set(changes))
    with safetensors.safe_open(str(target), framework="pt") as written:
        for name, tensor in changes.items():
            dtype = shard.entries[name].dtype
            if to_bytes(written.get_tensor(name), dtype) != to_bytes(tensor, dtype):
                raise ImuError(f"{target}: {name} reads back differently from what was written; check the disk")


def _compare(source: Shard, target: Path, changed: set[str]) -> None:
    """Every byte outside the changed tensors' ranges is the same in both files."""
    holes = sorted((source.entries[name].start, source.entries[name].end) for name in changed)
    edges = [0, *(edge for hole in holes for edge in hole), source.path.stat().st_size]
    if target.stat().st_size != edges[-1]:
        raise ImuError(f"{target}: not the size of {source.path}; the disk may be full")
    with source.path.open("rb") as a, target.open("rb") as b:
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            for left, right in zip(_range(a, start, end), _range(b, start, end), strict=True):
                if left != right:
                    raise ImuError(
                        f"{target}: differs from {source.path} outside of what was to change; {source.path} changed meanwhile"
                    )


def differing(before: Checkpoint, after: Checkpoint) -> list[str]:
    """Names of the tensors that are not bit-identical in both, or stand in one only; read a block at a time."""
    shared = set(before.entries) & set(after.entries)
    found = set(before.entries) ^ set(after.entries)
    for name in shared:
        old, new = before.entries[name], after.entries[name]
        same = (old.dtype, old.shape) == (new.dtype, new.shape) and _same_bytes(
            before.holder(name).path, old, after.holder(name).path, new
        )
        found |= set() if same else {name}
    return sorted(found)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit, so that NaN equals itself."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    left, right = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(left, right)


def _same_bytes(left: Path, old: Entry, right: Path, new: Entry) -> bool:
    with left.open("rb") as a, right.open("rb") as b:
        blocks = zip(_range(a, old.start, old.end), _range(b, new.start, new.end), strict=True)
        return all(one == other for one, other in blocks)
