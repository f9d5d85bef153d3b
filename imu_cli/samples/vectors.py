"""Files of features: what enters a head, kept as safetensors, so that another engine can make it and imu can go on from it.

docs/files.md has the layout. Numbers that were not written by imu are trusted as far as they can be checked: shapes, the
head's name, the backbone's hash where the file has it, and the first rows' logits.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import safetensors
from numpy.typing import NDArray
from pydantic import Field

from imu_cli.errors import ImuError
from imu_cli.files import memory
from imu_cli.files.checking import Said, checked
from imu_cli.files.reading import parse_json, shown
from imu_cli.models.layout import Entry, Shard, read_header
from imu_cli.samples.dataset import FEATURES, UNKNOWN, SampleSet
from imu_cli.samples.packing import SHA256, Digests, RowNames, Texts, as_array, numbers

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = "imu.features/1"
KEY = "imu.features"
FLOATS = ("F32", "F64", "F16", "BF16")
TEXTS = ("name", "id", "group", "camera", "role")
"""Columns of text: UTF-8 bytes one after the other, and in ``X.end`` where each row's end."""
KINDS = {
    "labels": ("I64", 1), "word": ("I64", 2), "digest": ("U8", 2), "size": ("I64", 1), "weight": ("F64", 1), "true_label": ("I64", 1),
    **dict.fromkeys(TEXTS, ("U8", 1)), **{f"{name}.end": ("I64", 1) for name in TEXTS},
}  # fmt: skip
"""dtype and dimensions of every column that is read; tensors of other names are left alone, whatever they are."""
CODES = {"float64": "F64", "float32": "F32", "int64": "I64", "uint8": "U8"}


class BuiltSaid(Said):
    """The architecture as records have it; another engine may know less of it."""

    name: str | None = None
    source: str | None = None
    arguments: dict[str, Any] | None = None
    code: str | None = None


class FeaturesSaid(Said):
    """The JSON object under the metadata key ``imu.features``."""

    schema_: Literal["imu.features/1"] = Field(alias="schema")
    head: str
    backbone_sha256: str | None = None
    head_sha256: str | None = None
    classes: list[str] | None = None
    architecture: BuiltSaid | None = None
    preprocess: dict[str, Any] | None = None
    precision: str | None = None
    complete: bool | None = None
    whole_classes: bool | None = None
    task: Literal["classification", "embedding"] | None = None


def columns_of(
    samples: SampleSet,
    weights: Sequence[float] | None = None,
    true_labels: Sequence[int] | None = None,
    words: NDArray[np.int64] | None = None,
) -> dict[str, NDArray[Any]]:
    """What a file says of each row beside its features: label, name, digest and size, and what its list has of the others.

    ``words`` (n, 2) are the sentence of each word and its number in it.
    """
    made: dict[str, NDArray[Any]] = {"labels": np.asarray(samples.labels, np.int64)}
    for column in TEXTS:
        texts = samples.names if column == "name" else samples.columns.get(column)
        if texts is not None:
            packed = Texts.of(texts)
            made[column], made[f"{column}.end"] = packed.data, packed.ends
    made["digest"] = samples.digest_bytes()
    made["size"] = as_array(numbers(samples.size(row) for row in range(len(samples))))
    if words is not None:
        made["word"] = words
    if weights is not None:
        made["weight"] = np.asarray(weights, np.float64)
    if true_labels is not None:
        made["true_label"] = np.asarray(true_labels, np.int64)
    return made


# --- writing


def write(
    path: Path,
    shape: tuple[int, int],
    pieces: "Iterable[Tensor]",
    columns: Mapping[str, NDArray[Any]] | None = None,
    said: Mapping[str, Any] | None = None,
) -> None:
    """Features (n, d) float32 that come piece by piece, into a file that never is in memory as a whole.

    Args:
        path: replaced without asking; the caller writes elsewhere first.
        shape: (n, d).
        pieces: rows in order, (k, d) each, n together.
        columns: arrays of n rows, or of text; see ``columns_of``.
        said: what the metadata hold under ``imu.features``, beside the schema.

    Raises:
        ImuError: fewer or more rows came than were promised.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in (columns or {}).items()}
    # Eight-byte numbers, then four, then bytes: every tensor lies aligned, so that it can be mapped.
    order = sorted([*arrays, "features"], key=lambda name: -4 if name == "features" else -arrays[name].itemsize)
    header: dict[str, Any] = {"__metadata__": {KEY: json.dumps({"schema": SCHEMA, **(said or {})}, sort_keys=True)}}
    at = 0
    for name in order:
        size, kind = (4 * shape[0] * shape[1], "F32") if name == "features" else _sized(arrays[name])
        dimensions = shape if name == "features" else arrays[name].shape
        header[name] = {"dtype": kind, "shape": list(dimensions), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            if name != "features":
                file.write(arrays[name].tobytes())
                continue
            rows = 0
            for piece in pieces:
                file.write(piece.detach().cpu().float().contiguous().numpy().data.cast("B"))
                rows += len(piece)
            if rows != shape[0]:
                raise ImuError(f"{path}: {rows} rows of features came, {shape[0]} were promised; nothing was written")


def _sized(array: NDArray[Any]) -> tuple[int, str]:
    return array.nbytes, CODES[array.dtype.name]


# --- reading


@dataclass(frozen=True, eq=False)
class Vectors:
    """Features in a file, as what holds the samples of an ``SampleSet``: there is no image to decode.

    ``said`` is what the file's metadata hold; ``sizes`` and ``digests`` are those of the images, ``weights`` and
    ``true_labels`` those of the forget list, where it has them; ``words`` (n, 2) the sentence of each word, and its number in it.
    """

    path: Path
    shown: str
    width: int
    entry: Entry
    said: Mapping[str, Any]
    digests: Digests = field(repr=False)
    sizes: NDArray[np.int64] | None = None
    weights: NDArray[np.float64] | None = None
    true_labels: NDArray[np.int64] | None = None
    words: NDArray[np.int64] | None = None

    kind = FEATURES

    def where(self, at: int) -> str:
        """The file and the row in it."""
        return f"{self.shown}:{at}"

    def location(self, at: int) -> str:
        """The file, links resolved, and the row."""
        return f"{self.path}:{at}"

    def size(self, at: int) -> int:
        """Bytes of the image the row was made from; of the row where that is not known."""
        return self._row_bytes if self.sizes is None else int(self.sizes[at])

    @property
    def _row_bytes(self) -> int:
        return (self.entry.end - self.entry.start) // max(self.entry.shape[0], 1)

    def stored(self, at: int) -> bytes:
        """The row's bytes."""
        start = self.entry.start + at * self._row_bytes
        return self._bytes[start : start + self._row_bytes].tobytes()

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.memmap(self.path, np.uint8, "r")

    root: None = None

    def arrays(self, _: NDArray[np.int64]) -> None:
        """Features are read as they lie in the file, not through an input step."""
        return

    def decode(self, at: int) -> Any:
        """There is no image.

        Raises:
            ImuError: always.
        """
        raise ImuError("holds features and no images; name the images to look at them")

    def mapped(self) -> "Tensor":
        """The features (n, d) as they lie in the file, in its dtype; read when they are used."""
        with safetensors.safe_open(str(self.path), framework="pt") as file:
            found: Tensor = file.get_tensor("features")
        return found


def is_features(spec: str) -> bool:
    """Whether a data set's name is that of a file of features."""
    return spec.endswith(".safetensors")


def open_features(spec: str) -> SampleSet:
    """The rows of a file of features as a data set, with the ids of the model that they were made with.

    Raises:
        ImuError: missing, not a safetensors file, or not laid out as docs/files.md says.
    """
    path = Path(spec).expanduser()
    if not path.exists():
        raise ImuError(f"{spec}: no such file; name a file of features, which imu features writes")
    shard = read_header(path)
    said = _said(shard)
    n, width = _shape(shard)
    _refuse_kinds(shard)
    # A file with holes is as large as it likes; the features are mapped, the columns are held.
    held = sum(entry.end - entry.start for name, entry in shard.entries.items() if name in KINDS) + n * SHA256
    memory.require(held, None, str(path), f"the columns of {n:,} rows", "take it apart")
    with safetensors.safe_open(str(path), framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in shard.entries if name in KINDS}
    _refuse_lengths(path, arrays, n)
    _refuse_values(path, arrays, said.get("classes"))
    texts = {name: Texts(arrays[name], arrays[f"{name}.end"]) for name in TEXTS if name in arrays}
    digests = Digests.given(arrays["digest"]) if "digest" in arrays else Digests.unknown(n)
    classes = said.get("classes")
    numbered = (arrays.get(name) for name in ("size", "weight", "true_label", "word"))
    store = Vectors(path.resolve(), spec, width, shard.entries["features"], said, digests, *numbered)
    return SampleSet(
        spec,
        texts.get("name", RowNames(range(n))),
        numbers(arrays["labels"]),
        tuple(classes) if classes else None,
        store,
        range(n),
        class_order="the order of the model's outputs" if classes else None,
        columns={name: column for name, column in texts.items() if name != "name"},
    )


def _said(shard: Shard) -> dict[str, Any]:
    text = shard.metadata.get(KEY)
    if text is None:
        raise ImuError(
            f"{shard.path}: has no {KEY!r} in its metadata, so it is not a file of features; imu features writes them, and "
            "docs/files.md says what another engine has to write"
        )
    said = parse_json(text.encode(), f"{shard.path}: {KEY}")
    if said.get("schema") != SCHEMA:
        raise ImuError(
            f"{shard.path}: is {shown(said.get('schema'))}, this imu reads {SCHEMA}; write it again with this version"
        )
    if not isinstance(said.get("head"), str):
        raise ImuError(f"{shard.path}: {KEY}: names no head; write the path of the layer, such as fc")
    checked(FeaturesSaid, said, f"{shard.path}: {KEY}", "write it as docs/files.md says")
    return said


def _shape(shard: Shard) -> tuple[int, int]:
    entry, labels = shard.entries.get("features"), shard.entries.get("labels")
    if entry is None or entry.dtype not in FLOATS or len(entry.shape) != 2 or not all(entry.shape):
        raise ImuError(f"{shard.path}: has no 'features' of shape (n, d) in {', '.join(FLOATS)}; write them so")
    if labels is None or labels.dtype != "I64" or labels.shape != entry.shape[:1]:
        raise ImuError(
            f"{shard.path}: has no 'labels' of shape ({entry.shape[0]},) in I64; write {UNKNOWN} where none is known"
        )
    return entry.shape[0], entry.shape[1]


def _refuse_kinds(shard: Shard) -> None:
    """Every column that is read has its dtype and dimensions, before it is read."""
    for name, (dtype, dimensions) in KINDS.items():
        entry = shard.entries.get(name)
        if entry is not None and (entry.dtype, len(entry.shape)) != (dtype, dimensions):
            raise ImuError(
                f"{shard.path}: '{name}' is {entry.dtype} of shape {entry.shape}, not {dtype} of {dimensions} dimensions; "
                "write it as docs/files.md says"
            )
    logits = shard.entries.get("logits")
    if logits is not None and logits.dtype not in FLOATS:
        raise ImuError(f"{shard.path}: 'logits' is {logits.dtype}, not one of {', '.join(FLOATS)}; write it again")


def _refuse_values(path: Path, arrays: Mapping[str, NDArray[Any]], classes: Sequence[str] | None) -> None:
    """Labels are ids of the classes, or −1; sizes are none below 0, weights finite and above 0."""
    for name in ("labels", "true_label"):
        if name not in arrays:
            continue
        wrong = arrays[name] < UNKNOWN
        if classes:
            wrong |= arrays[name] >= len(classes)
        if wrong.any():
            row = int(wrong.argmax())
            most = f"0 to {len(classes) - 1}" if classes else "0 and above"
            raise ImuError(
                f"{path}: row {row}: '{name}' is {arrays[name][row]}; ids are {most}, and {UNKNOWN} where none is known: write it again"
            )
    weights, sizes = arrays.get("weight"), arrays.get("size")
    if weights is not None and not (np.isfinite(weights) & (weights > 0)).all():
        raise ImuError(f"{path}: 'weight' is not a number above 0 in every row; write it again")
    if "word" in arrays and (arrays["word"] < 0).any():
        raise ImuError(f"{path}: 'word' is below 0; sentences and their words count from 0: write it again")
    if sizes is not None and (sizes < 0).any():
        raise ImuError(f"{path}: 'size' is below 0; write it again")


def _refuse_lengths(path: Path, arrays: Mapping[str, NDArray[Any]], n: int) -> None:
    for name, array in arrays.items():
        if name in TEXTS:
            ends = arrays.get(f"{name}.end")
            if ends is None or ends.shape != (n,):
                raise ImuError(
                    f"{path}: '{name}' needs bytes (U8) and '{name}.end' of shape ({n},) in I64; see docs/files.md"
                )
            inside = (ends >= 0).all() and (ends <= len(array)).all()
            if not inside or (np.diff(ends, prepend=0) < 0).any() or (n and ends[-1] != len(array)):
                raise ImuError(
                    f"{path}: '{name}.end' does not divide the {len(array)} bytes of '{name}'; write it again"
                )
        elif name == "digest" and array.shape != (n, 32):
            raise ImuError(f"{path}: 'digest' is not of shape ({n}, 32) in U8; write it again")
        elif name == "word" and array.shape != (n, 2):
            raise ImuError(f"{path}: 'word' is not of shape ({n}, 2) in I64; write it again")
        elif name in ("size", "weight", "true_label") and array.shape != (n,):
            raise ImuError(f"{path}: '{name}' has {len(array)} rows, 'features' {n}; write it again")


def logits_of(store: Vectors) -> "Tensor | None":
    """Logits (k, c) that the engine's model gave the first rows; None where the file has none."""
    with safetensors.safe_open(str(store.path), framework="pt") as file:
        found: Tensor | None = file.get_tensor("logits") if "logits" in file.keys() else None  # noqa: SIM118
    return found
