"""``imu convert``: the tensors of a PyTorch pickle as safetensors, read by ``torch.load(weights_only=True)`` alone.

There is no fallback: a file that this refuses would have to run code, and is refused here with the name of that code.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.files import outputs, writing
from imu_cli.models import architecture, sidecar
from imu_cli.models.checkpoint import open_checkpoint, same_bits
from imu_cli.models.kinds import WEIGHTS
from imu_cli.models.pickles import chosen, load, named, plain_tensors, prefix_notes, refuse_other, some
from imu_cli.samples.images.preprocessing import parse as parse_preprocessing


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
    leave_out: Sequence[str] = (),
    arch: str | None = None,
    arch_arg: Sequence[str] = (),
    preprocessing: str | None = None,
    force: bool = False,
) -> Converted:
    """Write the model's tensors of a pickle into a safetensors file, whole or not at all, and compare them bit by bit.

    Args:
        source: ``.pth``, ``.pt``, ``.bin``, ``.ckpt``: a state_dict, or a dict that holds one; an index of shards, which are
            joined; or a folder with one of these.
        output: the ``.safetensors`` file.
        key: which entry of the file holds the model, ``state_dict`` or ``checkpoint.model``.
        strip_prefix: what is taken off the names that start with it.
        leave_out: tensors that are not written, by name, first words or pattern.
        arch: a registry's architecture for the metadata; it must fit.
        arch_arg: ``key=value`` of its factory, for the metadata too.
        preprocessing: a preset or YAML file for the metadata.
        force: replace an existing output.

    Raises:
        RefusedError: reading it would run code, or it is a program rather than weights.
        ImuError: not a PyTorch file, no tensors or several sets of them in it, shards that do not make the whole model, or
            nothing could be written.
    """
    if not output.name.endswith(WEIGHTS):
        raise ImuError(f"{output}: give the new file a name that ends in {WEIGHTS}")
    outputs.refuse_output(output, source, force, "another OUT")
    said = _metadata(arch, arch_arg, preprocessing)
    found, notes = load(source)
    refuse_other(found, source)
    name, values, more = chosen(found, source, key)
    notes += more
    values, more = named(values, strip_prefix, leave_out, source)
    notes += [*more, *prefix_notes(values)]
    made, more = plain_tensors(values, source)
    notes += more
    replaced = partial(outputs.refuse_output, source=source, force=True) if force else writing.nothing
    with writing.together(output, replaced=replaced) as (file,):
        save_file(made, file, metadata={"format": "pt"} | said)
        _verify(file, made, arch, arch_arg)
    size = sum(tensor.nbytes for tensor in made.values())
    return Converted(output, len(made), size, (*_named(name), *notes, *_absent(output, said)))


def _metadata(arch: str | None, arch_arg: Sequence[str], preprocessing: str | None) -> dict[str, str]:
    """The ``imu`` metadata key; the names are checked before the pickle is read."""
    if arch is not None and not sidecar.is_registry(arch):
        raise ImuError(
            f"--arch {arch}: a checkpoint may name a registry's model only ({', '.join(sidecar.REGISTRIES)}), "
            "never code; give --arch to the other commands instead"
        )
    if arch_arg and arch is None:
        raise ImuError("--arch-arg: only with --arch, whose arguments they are; add it, or leave them out")
    said: dict[str, Any] = {} if arch is None else {"arch": arch}
    if arch_arg:
        said["arguments"] = architecture.parse_arguments(arch_arg)
    if preprocessing is not None:
        said["preprocess"] = parse_preprocessing(preprocessing).described()
    return {sidecar.METADATA_KEY: json.dumps(said)} if said else {}


def _named(key: str) -> list[str]:
    return [f"the model's tensors are those under {key!r}"] if key else []


def _verify(file: Path, made: Mapping[str, Tensor], arch: str | None, arch_arg: Sequence[str]) -> None:
    """Read the file back and compare every tensor; where an architecture is named, load it strictly."""
    checkpoint = open_checkpoint(file)
    back = checkpoint.tensors()
    wrong = sorted(name for name in set(made) | set(back) if name not in back or not same_bits(back[name], made[name]))
    if wrong:
        raise ImuError(f"{file}: {some(wrong)} read back differently from what was written; check the disk")
    if arch is not None:
        architecture.load(checkpoint, arch, arch_arg)


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
