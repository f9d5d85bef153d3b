"""A head that is tied to the embedding written as a tensor of its own, beside the embedding that stays as it is.

Every other tensor keeps name, dtype and bytes. The new one stands at the end of the file that holds the embedding, in the
embedding's dtype; an index learns of it, and ``config.json`` that nothing is tied any more.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError, RefusedError
from imu_cli.files.reading import read_json
from imu_cli.models.checkpoint import BLOCK, DTYPES, Checkpoint, differing, open_checkpoint, to_bytes
from imu_cli.models.layout import Shard
from imu_cli.models.sidecar import CONFIG

TIED = "tie_word_embeddings"


def refuse_file(source: Checkpoint) -> None:
    """Refuse a model that is no folder with its config: whether the head is tied stands in there.

    Raises:
        ImuError: MODEL is a file, or has no config beside it.
    """
    config = source.folder / CONFIG
    if not source.layout.is_folder:
        raise ImuError(
            f"--untie: {source.path} is a file, and that its head is no longer tied has to stand in the config.json that goes with "
            "it; name the folder as MODEL"
        )
    if not config.is_file():
        raise ImuError(f"--untie: {config} is not there, where it has to say that the head is no longer tied; add it")


def write(source: Checkpoint, embedding: str, name: str, head: Tensor, target: Path) -> None:
    """Write to the folder ``target`` a copy of the model in which the head is a tensor of its own; fsynced and read back.

    ``target`` holds the copied config already.

    Args:
        source: the model, of a tied head.
        embedding: the tensor that the head was tied to, in the file.
        name: the head's own name there.
        head: its values (V, d), written in the embedding's dtype.
        target: the folder.

    Raises:
        RefusedError: the file has a tensor of the head's name, or one after which no other can stand.
        ImuError: a file is not the one that was opened, or what is read back is not what was meant.
    """
    if name in source.entries:
        raise RefusedError(f"--untie: {source.path} holds {name} already, beside {embedding}; its head is not tied")
    holder, dtype = source.holder(embedding), source.entries[embedding].dtype
    data = to_bytes(head, dtype)
    for shard in source.layout.shards:
        grown = (name, dtype, tuple(head.shape), data) if shard is holder else None
        _copy(shard, source.hashes[shard.path.name], target / shard.path.name, grown)
    if source.layout.index is not None:
        _index(source, name, holder.path.name, len(data), head.numel(), target)
    _config(target / CONFIG)
    made = open_checkpoint(target if source.layout.index is None else target / source.layout.index.name)
    found = differing(source, made)
    if found != [name] or to_bytes(made.tensor(name), dtype) != data:
        raise ImuError(f"{target}: reads back differently from what was written ({', '.join(found)}); check the disk")


def _copy(shard: Shard, sha256: str, target: Path, grown: tuple[str, str, tuple[int, ...], bytes] | None) -> None:
    """Copy a shard, with a tensor at its end where one is given."""
    digest = hashlib.sha256()
    with shard.path.open("rb") as file, target.open("wb") as out:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
        digest.update(length + header)
        out.write(length + header if grown is None else _header(shard, header, grown))
        _rest(file, out, digest)
        out.write(b"" if grown is None else grown[3])
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != sha256:
        raise ImuError(f"{shard.path}: has changed since it was opened; run again once nothing writes to it")


def _rest(file: BinaryIO, out: BinaryIO, digest: Any) -> None:
    while block := file.read(BLOCK):
        signals.check()
        digest.update(block)
        out.write(block)


def _header(shard: Shard, header: bytes, grown: tuple[str, str, tuple[int, ...], bytes]) -> bytes:
    name, dtype, shape, data = grown
    said = json.loads(header)
    begin = max(item["data_offsets"][1] for key, item in said.items() if key != "__metadata__")
    if begin % DTYPES[dtype].itemsize:
        raise RefusedError(
            f"{shard.path}: ends at an odd byte, after which no {dtype} can stand; save the model again with transformers"
        )
    said[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + len(data)]}
    made = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    made += b" " * (-len(made) % 8)
    return len(made).to_bytes(8, "little") + made


def _index(source: Checkpoint, name: str, holder: str, size: int, numbers: int, target: Path) -> None:
    index = source.layout.index
    assert index is not None
    said = read_json(index)
    said["weight_map"] = dict(sorted({**said["weight_map"], name: holder}.items()))
    for key, more in (("total_size", size), ("total_parameters", numbers)):
        if isinstance(said.get("metadata"), dict) and isinstance(said["metadata"].get(key), int):
            said["metadata"][key] += more
    _dump(said, target / index.name)


def _config(path: Path) -> None:
    """Say in a config that nothing is tied, in the part on text as well where there is one."""
    said = read_json(path)
    for part in (said, said.get("text_config")):
        if isinstance(part, dict) and (part is said or TIED in part):
            part[TIED] = False
    _dump(said, path)


def _dump(said: Any, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(said, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
