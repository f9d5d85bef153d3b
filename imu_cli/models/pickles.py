"""PyTorch pickles read by ``torch.load(weights_only=True)`` alone, and the tensors in them."""

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import _TYPES as DTYPES
from torch import Tensor

from imu_cli.errors import ImuError, RefusedError
from imu_cli.models.layout import PREFIXES, WEIGHTS

APART = re.compile(r"optim|sched|scaler|callbacks|loops|hyper|momentum_buffer", re.IGNORECASE)
"""Keys under which trainers keep tensors that are not the model's."""
DEEPEST = 3
SHOWN = 5
MAX_GROWTH = 100
"""Bytes that a file may unpack to, in multiples of its size: torch.save stores its records without compression."""


def read(path: Path) -> Any:
    """What a PyTorch file holds, read without running any code.

    Raises:
        RefusedError: it names code other than PyTorch's own tensors and containers, or is TorchScript.
        ImuError: missing, not a PyTorch file, or made to fill the memory.
    """
    if not path.is_file():
        raise ImuError(f"{path}: no such file; name a .pth, .pt, .bin or .ckpt file")
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


def candidates(found: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Mappings from names to tensors in what a file holds, with the keys that lead there (``checkpoint.model``).

    One whose tensors are all single numbers (a best accuracy, a step counter) is no model, nor is what an optimiser keeps.
    """
    if not isinstance(found, Mapping) or depth > DEEPEST:
        return
    tensors = [value for value in found.values() if isinstance(value, Tensor)]
    if all(isinstance(name, str) for name in found) and any(tensor.ndim for tensor in tensors):
        yield path, dict(found)
    for name, value in found.items():
        if isinstance(name, str) and not APART.search(name):
            yield from candidates(value, f"{path}.{name}" if path else name, depth + 1)


def chosen(found: Any, source: Path, key: str | None) -> tuple[str, dict[str, Any], list[str]]:
    """The one mapping of tensors in the file, or the one that ``--key`` names; its key, it, and notes.

    Raises:
        ImuError: none, several, or none of that name.
    """
    there = dict(candidates(found))
    if not there:
        raise ImuError(f"{source}: holds no named tensors; save model.state_dict() with torch.save, and convert that")
    listed = ", ".join(f"{name or '(top level)'} ({_count(values)} tensors)" for name, values in there.items())
    if key is not None:
        if key not in there:
            raise ImuError(f"--key {key}: {source} has no tensors there; it has {listed}")
        return key, there[key], []
    if len(there) > 1:
        example = next(name for name in there if name)
        raise ImuError(
            f"{source}: holds several sets of tensors: {listed}; say which is the model, such as --key {example}"
        )
    (name, values), *_ = there.items()
    beside = sorted(str(item) for item in found if item not in (name, *values)) if name and "." not in name else []
    return name, values, [f"not converted: {some(beside)}"] if beside else []


def _count(values: Mapping[str, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in values.values())


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f", +{len(names) - SHOWN} more" if len(names) > SHOWN else "")


def stripped(values: Mapping[str, Any], prefix: str | None, source: Path) -> dict[str, Any]:
    """The values with ``prefix`` taken off the names that start with it.

    Raises:
        ImuError: no name starts with it, or two names would become one.
    """
    if prefix is None:
        return dict(values)
    if not any(name.startswith(prefix) for name in values):
        near = _common_prefix(values)
        hint = f"; they share {near!r}" if near else ""
        raise ImuError(f"--strip-prefix {prefix}: no tensor's name in {source} starts with it{hint}")
    made = {name.removeprefix(prefix): value for name, value in values.items()}
    if len(made) != len(values) or "" in made:
        raise ImuError(f"--strip-prefix {prefix}: two tensors of {source} would have the same name, or one none")
    return made


def _common_prefix(values: Mapping[str, Any]) -> str:
    """The wrappers' prefixes that all names start with."""
    found = ""
    while True:
        more = next((p for p in PREFIXES if all(name.startswith(found + p) for name in values)), None)
        if more is None:
            return found
        found += more


def prefix_notes(values: Mapping[str, Any]) -> list[str]:
    """What a user should know of wrappers' prefixes before the names."""
    prefix = _common_prefix(values)
    if prefix:
        return [
            f"all names start with {prefix!r}, which is kept (imu reads over it); --strip-prefix {prefix} takes it off"
        ]
    parts = {p: [name for name in values if name.startswith(p)] for p in PREFIXES}
    return [
        f"{len(names)} of {len(values)} names start with {p!r}, the others do not: {some(sorted(set(values) - set(names)))}"
        for p, names in parts.items()
        if names
    ]


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
