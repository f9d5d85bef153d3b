"""``imu convert``: the tensors of a PyTorch pickle as safetensors, read by ``torch.load(weights_only=True)`` alone.

There is no fallback: a file that this refuses would have to run code, and is refused here with the name of that code.
"""

import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import _TYPES as DTYPES
from safetensors.torch import save_file
from torch import Tensor

from imu_cli.errors import ImuError, RefusedError
from imu_cli.files import writing
from imu_cli.models import architecture, sidecar
from imu_cli.models.checkpoint import open_checkpoint, same_bits
from imu_cli.models.destination import refuse_output
from imu_cli.models.layout import PREFIXES, WEIGHTS
from imu_cli.samples.images import preprocessing as preprocess

APART = re.compile(r"optim|sched|scaler|callbacks|loops|hyper|momentum_buffer", re.IGNORECASE)
"""Keys under which trainers keep tensors that are not the model's."""
DEEPEST = 3
SHOWN = 5
MAX_GROWTH = 100
"""Bytes that a file may unpack to, in multiples of its size: torch.save stores its records without compression."""


@dataclass(frozen=True)
class Converted:
    """What was written, and what a user should know of it."""

    output: Path
    tensors: int
    bytes: int
    notes: tuple[str, ...]


def run(
    source: Path,
    output: Path,
    *,
    key: str | None = None,
    strip_prefix: str | None = None,
    arch: str | None = None,
    preprocessing: str | None = None,
    force: bool = False,
) -> Converted:
    """Write the model's tensors of a pickle into a safetensors file, whole or not at all, and compare them bit by bit.

    Args:
        source: ``.pth``, ``.pt``, ``.bin``, ``.ckpt``: a state_dict, or a dict that holds one.
        output: the ``.safetensors`` file.
        key: which entry of the file holds the model, ``state_dict`` or ``checkpoint.model``.
        strip_prefix: what is taken off the names that start with it.
        arch: a registry's architecture for the metadata; it must fit.
        preprocessing: a preset or YAML file for the metadata.
        force: replace an existing output.

    Raises:
        RefusedError: reading it would run code, or it is a program rather than weights.
        ImuError: not a PyTorch file, no tensors or several sets of them in it, or nothing could be written.
    """
    if not output.name.endswith(WEIGHTS):
        raise ImuError(f"{output}: give the new file a name that ends in {WEIGHTS}")
    refuse_output(output, source, force)
    said = _metadata(arch, preprocessing)
    found = read(source)
    name, values, notes = chosen(found, source, key)
    values = _stripped(values, strip_prefix, source)
    notes += _prefix_notes(values)
    made, more = _plain(values, source)
    notes += more
    with writing.together(output) as (file,):
        save_file(made, file, metadata={"format": "pt"} | said)
        _verify(file, made, arch)
    size = sum(tensor.nbytes for tensor in made.values())
    return Converted(output, len(made), size, (*_named(name), *notes, *_absent(output, said)))


def _metadata(arch: str | None, preprocessing: str | None) -> dict[str, str]:
    """The ``imu`` metadata key; the names are checked before the pickle is read."""
    if arch is not None and not sidecar.is_registry(arch):
        raise ImuError(
            f"--arch {arch}: a checkpoint may name a registry's model only ({', '.join(sidecar.REGISTRIES)}), "
            "never code; give --arch to the other commands instead"
        )
    said: dict[str, Any] = {} if arch is None else {"arch": arch}
    if preprocessing is not None:
        said["preprocess"] = preprocess.parse(preprocessing).described()
    return {sidecar.METADATA_KEY: json.dumps(said)} if said else {}


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
    return name, values, [f"not converted: {_some(beside)}"] if beside else []


def _count(values: Mapping[str, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in values.values())


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", +{len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _named(key: str) -> list[str]:
    return [f"the model's tensors are those under {key!r}"] if key else []


def _stripped(values: Mapping[str, Any], prefix: str | None, source: Path) -> dict[str, Any]:
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


def _prefix_notes(values: Mapping[str, Any]) -> list[str]:
    prefix = _common_prefix(values)
    if prefix:
        return [
            f"all names start with {prefix!r}, which is kept (imu reads over it); --strip-prefix {prefix} takes it off"
        ]
    parts = {p: [name for name in values if name.startswith(p)] for p in PREFIXES}
    return [
        f"{len(names)} of {len(values)} names start with {p!r}, the others do not: {_some(sorted(set(values) - set(names)))}"
        for p, names in parts.items()
        if names
    ]


def _plain(values: Mapping[str, Any], source: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors as safetensors holds them: contiguous, each with memory of its own; and what was done for that.

    Raises:
        ImuError: a tensor of a kind that the format does not have.
    """
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    notes = []
    others = sorted(set(values) - set(tensors))
    if others:
        notes.append(f"not tensors, left out: {_some(others)}")
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
            f"share memory, written as a copy each, as safetensors has no links: {_some(shared)}; where they are tied, the "
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


def _verify(file: Path, made: Mapping[str, Tensor], arch: str | None) -> None:
    """Read the file back and compare every tensor; where an architecture is named, load it strictly."""
    checkpoint = open_checkpoint(file)
    back = checkpoint.tensors()
    wrong = sorted(name for name in set(made) | set(back) if name not in back or not same_bits(back[name], made[name]))
    if wrong:
        raise ImuError(f"{file}: {_some(wrong)} read back differently from what was written; check the disk")
    if arch is not None:
        architecture.load(checkpoint, arch)


def _absent(output: Path, metadata: Mapping[str, str]) -> list[str]:
    """What neither the file nor a config beside it says, and how to say it."""
    try:
        said = sidecar.read(output, metadata, output.parent)
    except ImuError:  # other commands will tell what is wrong with that config
        said = []
    silent = {
        "the architecture (--arch torchvision:NAME or file.py:factory)": not any(item.arch for item in said),
        "the preprocessing (--preprocess imagenet, another preset or a YAML file)": not any(
            item.preprocess for item in said
        ),
        "class names (--classes FILE, or those of --data)": not any(item.classes for item in said),
    }
    missing = [what for what, absent in silent.items() if absent]
    if not missing:
        return []
    return [f"{output} does not say {', '.join(missing)}; give these to the other commands, or keep them in imu.yaml"]
