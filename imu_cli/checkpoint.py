"""Safetensors files: read with suspicion, written by copying the file and patching only the head's bytes.

Pickles are refused: reading one can run code.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from .errors import ImuError, RefusedError

PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".tar")
MAX_HEADER = 100_000_000  # bytes, the format's own limit
PREFIXES = ("module.", "_orig_mod.", "model.")
BLOCK = 1 << 20

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: its dtype as the format names it, shape, and byte range from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Checkpoint:
    """A safetensors file that was opened and checked: its tensors by name, metadata, and hash (SHA-256 of the file)."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    sha256: str

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, on the CPU, in the file's dtypes, under the file's names."""
        return load_file(self.path)

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the file's dtype."""
        with safetensors.safe_open(str(self.path), framework="pt") as file:
            found: Tensor = file.get_tensor(name)
        return found

    def prefix(self, names: set[str]) -> str:
        """The common prefix, such as ``module.``, that wrappers put before every name the model knows; "" if none."""
        for prefix in ("", *PREFIXES, *(a + b for a in PREFIXES for b in PREFIXES)):
            if {prefix + name for name in names} & set(self.entries):
                return prefix
        return ""

    def outside_hash(self, outside: set[str]) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of every tensor that is not in ``outside``, in name order."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            for name in sorted(set(self.entries) - outside):
                entry = self.entries[name]
                digest.update(f"{name}\0{entry.dtype}\0{entry.shape}\0".encode())
                for block in _range(file, entry.start, entry.end):
                    digest.update(block)
        return digest.hexdigest()


def _range(file, start: int, end: int) -> Iterator[bytes]:  # type: ignore[no-untyped-def]
    file.seek(start)
    left = end - start
    while left > 0:
        block = file.read(min(BLOCK, left))
        if not block:
            raise ImuError(f"{file.name}: ends early; the file is truncated or was changed while it was read")
        left -= len(block)
        yield block


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_pickle(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(9)
    is_pickle = start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or start[:4] == b"PK\x03\x04"
    # A safetensors header of 640 bytes, written as 80 02, starts like a pickle; the brace after its length tells.
    is_pickle = is_pickle and start[8:] != b"{"
    if path.suffix in PICKLES or is_pickle:
        raise RefusedError(
            f"{path}: a pickle, which can run code when it is read; re-save its state_dict with "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
        )


def _header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise ImuError(f"{path}: not a safetensors file (its header would be {length} bytes); check or re-save it")
        raw = json.loads(file.read(length))
    metadata = raw.pop("__metadata__", {})
    base = 8 + length
    return {
        name: Entry(item["dtype"], tuple(item["shape"]), base + item["data_offsets"][0], base + item["data_offsets"][1])
        for name, item in raw.items()
    }, metadata


def require_file(path: Path) -> None:
    """Refuse, before anything else, what cannot be a checkpoint.

    Raises:
        RefusedError: a pickle.
        ImuError: missing, or a folder.
    """
    if path.is_dir():
        raise ImuError(f"{path}: a folder; name the .safetensors file in it")
    if not path.is_file():
        raise ImuError(f"{path}: no such file; name a .safetensors checkpoint")
    _refuse_pickle(path)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open and check a safetensors file; its tensors are read later.

    Raises:
        RefusedError: a pickle.
        ImuError: missing, truncated, or not a safetensors file.
    """
    require_file(path)
    try:
        # The library's own parser checks lengths, overlaps and dtypes; ours below only learns the byte ranges.
        with safetensors.safe_open(str(path), framework="pt"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise ImuError(
            f"{path}: not a readable safetensors file ({error}); it may be truncated, copy it again"
        ) from error
    entries, metadata = _header(path)
    return Checkpoint(path, entries, metadata, file_hash(path))


def to_bytes(tensor: Tensor, dtype: str) -> bytes:
    """A tensor's bytes in a safetensors dtype, little-endian and row-major."""
    return tensor.detach().cpu().to(DTYPES[dtype]).contiguous().view(torch.uint8).numpy().tobytes()


def patch(source: Checkpoint, changes: Mapping[str, Tensor], target: Path) -> None:
    """Write to ``target`` a copy of the file in which only the given tensors' bytes differ; fsynced and read back.

    Names, dtypes, order, metadata and every other byte stay as they came.

    Raises:
        ImuError: the file is not the one that was opened, or the bytes read back are not the ones meant.
    """
    shutil.copyfile(source.path, target)
    if file_hash(target) != source.sha256:
        raise ImuError(f"{source.path}: has changed since it was opened; run again once nothing writes to it")
    with target.open("r+b") as file:
        for name, tensor in changes.items():
            entry = source.entries[name]
            file.seek(entry.start)
            file.write(to_bytes(tensor, entry.dtype))
        file.flush()
        os.fsync(file.fileno())
    _compare(source, target, set(changes))
    written = load_file(target)
    for name, tensor in changes.items():
        if to_bytes(written[name], source.entries[name].dtype) != to_bytes(tensor, source.entries[name].dtype):
            raise ImuError(f"{target}: {name} reads back differently from what was written; check the disk")


def _compare(source: Checkpoint, target: Path, changed: set[str]) -> None:
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
                        f"{target}: differs from {source.path} outside the head; {source.path} changed meanwhile"
                    )


def refuse_output(output: Path, source: Path, force: bool) -> None:
    """Refuse, before any work, an output that is the input (also through links), exists, or cannot be created.

    Raises:
        ImuError: with what to do.
    """
    if output.exists() and source.exists() and output.samefile(source):
        raise ImuError(f"{output}: is the input; choose another --output, the input is never overwritten")
    if (output.exists() or output.is_symlink()) and not force:
        raise ImuError(f"{output}: exists; choose another --output, or --force to replace it")
    if output.is_dir():
        raise ImuError(f"{output}: a folder; name a file as --output")
    if not output.parent.is_dir():
        raise ImuError(f"{output.parent}: no such folder; create it, or choose another --output")
    if not os.access(output.parent, os.W_OK):
        raise ImuError(f"{output.parent}: not writable; choose another --output")
