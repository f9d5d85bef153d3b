"""What is in a model's files, from their headers alone: no torch, no weights."""

import math
from typing import Literal

from pydantic import Field

from imu_cli.models.layout import Layout
from imu_cli.records.parts import Model


class TensorInfo(Model):
    """One tensor: its dtype as safetensors names it, shape, bytes, and the file that holds it."""

    name: str
    dtype: str
    shape: list[int]
    bytes: int
    file: str


class FileInfo(Model):
    """One safetensors file: its size on disk, how many tensors it holds, and its metadata."""

    name: str
    bytes: int
    tensors: int
    metadata: dict[str, str]


class Finding(Model):
    """Something that imu needs to know of a model: what it found and where it was learnt, or why it did not."""

    what: Literal["architecture", "preprocessing", "head", "classes", "embedding"]
    value: str | None = None
    source: str | None = None
    problem: str | None = None
    flag: str | None = None


class Inspection(Model):
    """What ``imu inspect`` found; ``findings`` and ``head``, its tensors, are empty where only headers were read."""

    schema_: Literal["imu.inspection/1"] = Field(default="imu.inspection/1", alias="schema")
    model: str
    index: str | None
    files: list[FileInfo]
    tensors: list[TensorInfo]
    values: int
    bytes: int
    dtypes: dict[str, int]
    notes: list[str]
    findings: list[Finding] = Field(default_factory=list)
    head: list[str] = Field(default_factory=list)
    next: str | None = None


def header(layout: Layout) -> Inspection:
    """Files, tensors and metadata of a MODEL, from its headers."""
    tensors = _tensors(layout)
    dtypes: dict[str, int] = {}
    for tensor in tensors:
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + 1
    return Inspection(
        model=str(layout.model),
        index=layout.index.name if layout.index else None,
        files=[
            FileInfo(
                name=shard.path.name,
                bytes=shard.path.stat().st_size,
                tensors=len(shard.entries),
                metadata=dict(sorted(shard.metadata.items())),
            )
            for shard in layout.shards
        ],
        tensors=tensors,
        values=sum(math.prod(tensor.shape) for tensor in tensors),
        bytes=sum(tensor.bytes for tensor in tensors),
        dtypes=dict(sorted(dtypes.items())),
        notes=list(layout.notes),
    )


def _tensors(layout: Layout) -> list[TensorInfo]:
    """All tensors, file by file, in the order in which they are stored."""
    return [
        TensorInfo(
            name=name, dtype=entry.dtype, shape=list(entry.shape), bytes=entry.end - entry.start, file=shard.path.name
        )
        for shard in layout.shards
        for name, entry in sorted(shard.entries.items(), key=lambda item: (item[1].start, item[0]))
    ]
