"""PyTorch pickles read by ``torch.load(weights_only=True)`` alone, and the tensors in them."""

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import _TYPES as DTYPES
from torch import Tensor

from imu_cli.errors import ImuError, RefusedError
from imu_cli.files.reading import read_json
from imu_cli.models import kinds, names
from imu_cli.models.kinds import PICKLES, WEIGHTS
from imu_cli.models.layout import inside, listed

APART = re.compile(r"optim|sched|scaler|callbacks|loops|hyper|momentum_buffer", re.IGNORECASE)
"""Keys under which trainers keep tensors that are not the model's."""
DEEPEST = 3
SHOWN = 5
MAX_GROWTH = 100
"""Bytes that a file may unpack to, in multiples of its size: torch.save stores its records without compression."""


def load(source: Path) -> tuple[Any, list[str]]:
    """What a PyTorch file, the shards of an index, or a folder with one of these holds; and notes.

    Raises:
        RefusedError: as ``read``.
        ImuError: one shard alone, shards that do not make the whole model, or several models in a folder.
    """
    if source.is_dir():
        return _of_folder(source)
    if source.name.endswith(kinds.PICKLE_INDEX):
        return _joined(source), []
    if kinds.is_part(source.name) and source.suffix in PICKLES:
        raise ImuError(
            f"{source}: one shard of several, by its name; convert its folder, which joins them, or rename it if it holds the "
            f"whole model: imu convert {source.parent} OUT"
        )
    return read(source), []


def _of_folder(folder: Path) -> tuple[Any, list[str]]:
    files = listed(folder)
    if (folder / kinds.ADAPTER_CONFIG).is_file() and any(path.name.startswith(kinds.ADAPTER) for path in files):
        raise RefusedError(kinds.adapter_message(folder))
    found = kinds.pickled(files)
    if len(found) > 1 and all(kinds.is_part(path.name) for path in found):
        raise ImuError(
            f"{folder}: holds shards without their index (pytorch_model{kinds.PICKLE_INDEX}); copy it there too"
        )
    if len(found) > 1:
        raise ImuError(f"{folder}: holds {some([path.name for path in found])}; name the one that is the model")
    if not found:
        ready = [path.name for path in files if path.name.endswith(WEIGHTS)]
        what = f"holds {some(ready)}, safetensors already" if ready else "holds no file with a pickled model"
        raise ImuError(f"{folder}: {what}; name a .pth, .pt, .bin or .ckpt file, or a folder that has one")
    inside(folder, found[0].name)
    made, notes = load(found[0])
    return made, [f"read from {found[0].name}", *notes]


def _joined(index: Path) -> dict[str, Any]:
    """The tensors of all shards that an index names, each from the shard that it names.

    Raises:
        ImuError: a shard is missing or is no plain file beside the index, or holds other tensors than the index says.
    """
    weight_map = read_json(index).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not all(isinstance(name, str) for name in weight_map.values())
        or not weight_map
    ):
        raise ImuError(f"{index}: has no weight_map from tensors to file names; it is not an index, copy it again")
    made: dict[str, Any] = {}
    for shard in sorted(set(weight_map.values())):
        if not shard.endswith(PICKLES):
            raise ImuError(f"{index}: names {shard!r}, which is no PyTorch file; copy the model again")
        held = read(inside(index.parent, shard, str(index)))
        if not isinstance(held, Mapping):
            raise ImuError(
                f"{index.parent / shard}: holds no named tensors, which its index says it does; copy the model again"
            )
        listed = {name for name, file in weight_map.items() if file == shard}
        if odd := sorted(map(str, listed ^ set(held))):
            raise ImuError(
                f"{index}: does not fit {shard}, which lacks or has besides: {some(odd)}; copy the model again"
            )
        made |= held
    return made


def read(path: Path) -> Any:
    """What a PyTorch file holds, read without running any code.

    Raises:
        RefusedError: it names code other than PyTorch's own tensors and containers, or is TorchScript.
        ImuError: missing, not a PyTorch file, or made to fill the memory.
    """
    if not path.is_file():
        raise ImuError(f"{path}: no such file; name a .pth, .pt, .bin or .ckpt file, or a folder that has one")
    kinds.refuse_pointer(path)
    if path.name.endswith(WEIGHTS) and not zipfile.is_zipfile(path):
        raise ImuError(f"{path}: named as safetensors already; imu inspect says what is in it")
    _refuse_bomb(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of formats; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle of somebody else may raise anything on the way
        raise _explained(path, error) from error


def _refuse_bomb(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ImuError(f"{path}: a damaged archive ({error}); copy it again") from error
    if unpacked > MAX_GROWTH * path.stat().st_size:
        raise ImuError(f"{path}: would unpack to {unpacked:,} bytes, which torch.save never writes; it is not read")


def _explained(path: Path, error: Exception) -> ImuError:
    text = str(error)
    named = re.search(r"GLOBAL ([\w.<>]+)", text)
    if named:
        return RefusedError(
            f"{path}: holds {named[1]}, which is not a tensor or a plain container; reading it would run code. Save the "
            "weights alone where the file was made: torch.save(model.state_dict(), 'weights.pth')"
        )
    if "TorchScript" in text:
        return RefusedError(
            f"{path}: TorchScript, a program with weights in it; save the weights alone where it was made: "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    if type(error).__name__ == "UnpicklingError":
        reason = next(
            (line.strip() for line in reversed(text.splitlines()) if "rror:" in line), "it is not a state_dict"
        )
        return RefusedError(f"{path}: cannot be read as weights alone ({reason}); is it a file that torch.save wrote?")
    reason = (text.splitlines() or [type(error).__name__])[0]
    return ImuError(f"{path}: not a file that torch.save wrote, or a damaged one ({reason}); copy it again")


def refuse_other(found: Any, source: Path) -> None:
    """Refuse what a trainer keeps beside a model.

    Raises:
        ImuError: with what it is.
    """
    what = None
    if isinstance(found, Mapping):
        tensors = [value for value in found.values() if isinstance(value, Tensor)]
        if {"state", "param_groups"} <= set(found):
            what = "an optimiser's state"
        elif {"_last_lr", "last_epoch"} & set(found) and not tensors:
            what = "a learning-rate schedule"
        elif tensors and all(tensor.dtype == torch.uint8 and tensor.ndim == 1 for tensor in tensors):
            what = "states of random number generators"
        elif found and all(str(name).startswith(kinds.ADAPTER_PREFIX) for name in found):
            kinds.refuse_adapter(source, [str(name) for name in found])
    if what is not None:
        raise ImuError(f"{source}: {what}, no model; name the file with the model's weights")


def candidates(found: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Mappings from names to tensors in what a file holds, with the keys that lead there (``checkpoint.model``).

    One whose tensors are all single numbers (a best accuracy, a step counter) is no model, nor is what an optimiser keeps.
    The members of a tuple or list have their numbers as keys; a list of pairs of a name and a tensor is a mapping.
    """
    if isinstance(found, list | tuple) and depth <= DEEPEST:
        found = _as_mapping(found)
    if not isinstance(found, Mapping) or depth > DEEPEST:
        return
    tensors = [value for value in found.values() if isinstance(value, Tensor)]
    if all(isinstance(name, str) for name in found) and any(tensor.ndim for tensor in tensors):
        yield path, dict(found)
    for name, value in found.items():
        if isinstance(name, str) and not APART.search(name):
            yield from candidates(value, f"{path}.{name}" if path else name, depth + 1)


def _as_mapping(found: Sequence[Any]) -> dict[str, Any]:
    pairs = [item for item in found if isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str)]
    if found and len(pairs) == len(found):
        return {pair[0]: pair[1] for pair in pairs}
    return {str(number): item for number, item in enumerate(found) if not isinstance(item, Tensor)}


def chosen(found: Any, source: Path, key: str | None) -> tuple[str, dict[str, Any], list[str]]:
    """The one mapping of tensors in the file, or the one that ``--key`` names; its key, it, and notes.

    A key that leads to several mappings names all of them as one model, with the rest of their keys before the names.

    Raises:
        ImuError: none, several, or none of that name.
    """
    there = dict(candidates(found))
    if not there:
        raise ImuError(f"{source}: holds no named tensors; save model.state_dict() with torch.save, and convert that")
    listed = ", ".join(f"{name or '(top level)'} ({_count(values)} tensors)" for name, values in there.items())
    if key is not None:
        if key in there:
            return key, there[key], []
        inner = {name.removeprefix(f"{key}."): values for name, values in there.items() if name.startswith(f"{key}.")}
        if not inner:
            raise ImuError(f"--key {key}: {source} has no tensors there; it has {listed}")
        return key, {f"{part}.{name}": value for part, values in inner.items() for name, value in values.items()}, []
    if len(there) > 1:
        example = next(name for name in there if name)
        above = _parent(there)
        both = f", or --key {above} for all of them as one model" if above else ""
        raise ImuError(
            f"{source}: holds several sets of tensors: {listed}; say which is the model, such as --key {example}{both}"
        )
    (name, values), *_ = there.items()
    top = found if isinstance(found, Mapping) else {}
    beside = sorted(str(item) for item in top if item not in (name, *values)) if name and "." not in name else []
    return name, values, [f"not converted: {some(beside)}"] if beside else []


def _parent(keys: Mapping[str, Any]) -> str:
    """The keys that lead to all of the mappings; "" where they have none in common."""
    parents = {key.rpartition(".")[0] for key in keys}
    return parents.pop() if len(parents) == 1 else ""


def _count(values: Mapping[str, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in values.values())


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f", +{len(names) - SHOWN} more" if len(names) > SHOWN else "")


def named(
    values: Mapping[str, Any], strip_prefix: str | None, leave_out: Sequence[str], source: Path
) -> tuple[dict[str, Any], list[str]]:
    """The values under the names that they are written with, by the rules by which a model is loaded; and notes.

    Raises:
        ImuError: ``--strip-prefix`` or ``--leave-out`` means no name, or two names would become one.
    """
    out = names.left_out(values, leave_out, source)
    kept = {name: value for name, value in values.items() if name not in set(out)}
    notes = [f"left out: {names.in_groups(out)}"] if out else []
    if strip_prefix is not None:
        own = names.stripped(kept, strip_prefix, source)
        kept = {own[name]: value for name, value in kept.items()}
    return kept, notes


def prefix_notes(values: Mapping[str, Any]) -> list[str]:
    """What a user should know of words before the names, and of tensors that no classifier computes with."""
    beside = sorted(name for name in values if names.is_beside(name, names.common_prefix([name])))
    rest = [name for name in values if name not in set(beside)]
    notes = []
    if beside:
        options = " ".join(f"--leave-out {word}" for word in sorted({name.partition(".")[0] for name in beside}))
        notes.append(
            f"no part of a classifier, kept: {names.in_groups(beside)}; imu does not load them, and {options} leaves them out here"
        )
    prefix = names.common_prefix(rest)
    if prefix:
        notes.append(
            f"all names start with {prefix!r}, which is kept (imu reads over it); --strip-prefix {prefix} takes it off"
        )
        return notes
    parts = {start: [name for name in rest if name.startswith(start)] for start in _starts(rest)}
    notes += [
        f"{len(those)} of {len(rest)} names start with {start!r}, the others do not: {some(sorted(set(rest) - set(those)))}"
        for start, those in parts.items()
    ]
    return notes


def _starts(every: Sequence[str]) -> list[str]:
    """The wrappers' words that some of the names start with."""
    return sorted({start for name in every if (start := names.common_prefix([name]))})


def plain_tensors(values: Mapping[str, Any], source: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors as safetensors holds them: contiguous, each with memory of its own; and what was done for that.

    Raises:
        ImuError: a tensor of a kind that the format does not have.
    """
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    notes = []
    others = sorted(set(values) - set(tensors))
    if others:
        notes.append(f"not tensors, left out: {some(others)}")
    for name, tensor in tensors.items():
        _refuse_kind(name, tensor, source)
    owners: dict[int, str] = {}
    shared = []
    for name, tensor in tensors.items():
        first = owners.setdefault(_storage(tensor), name)
        if first != name and tensor.numel():
            shared.append(f"{name} with {first}")
    if shared:
        notes.append(
            f"share memory, written as a copy each, as safetensors has no links: {some(shared)}; where they are tied, the "
            "architecture ties them again"
        )
    copied = {name for name, tensor in tensors.items() if owners[_storage(tensor)] != name or _is_part(tensor)}
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    return {name: tensor.clone() if name in copied else tensor for name, tensor in plain.items()}, notes


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_part(tensor: Tensor) -> bool:
    return tensor.nbytes != tensor.untyped_storage().nbytes()


def _refuse_kind(name: str, tensor: Tensor, source: Path) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in DTYPES.values():
        kind = (
            "quantised"
            if tensor.is_quantized
            else str(tensor.layout if tensor.layout != torch.strided else tensor.dtype)
        )
        raise ImuError(
            f"{source}: {name} is {kind.removeprefix('torch.')}, which safetensors cannot hold; save dense tensors"
        )
    if tensor.nbytes > max(tensor.untyped_storage().nbytes(), 1):
        raise ImuError(
            f"{source}: {name} repeats {tensor.untyped_storage().nbytes():,} stored bytes up to {tensor.nbytes:,}; "
            "save it with .contiguous(), or do not trust this file"
        )
