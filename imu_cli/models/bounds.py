"""How large an architecture may be beside the file it is for, found out before any memory is taken.

A config, a record or the command line may claim any number of classes, layers or widths. The architecture of a library is
therefore first built on PyTorch's meta device, where tensors have shapes and no memory, and counted as it grows.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registration

from imu_cli.errors import ImuError
from imu_cli.models.checkpoint import Checkpoint
from imu_cli.models.head import hooked

SPARE_VALUES, TIMES_VALUES = 60_000_000, 4
"""Numbers that an architecture may have beyond its file's, and times as many: the default's head, say, of 21,841 classes."""
SPARE_PARTS, TIMES_PARTS = 20_000, 20
"""The same for modules, parameters and buffers: a block without weights is no tensor of the file."""
LARGEST = 2**20
"""A size in a config that is taken as it is; a larger one has to be no more than the file has numbers."""
SIZES = re.compile(
    r"num|size|dim|depth|layer|width|chan|class|label|feature|head|patch|group|length|position|block|stage"
)
"""Names of arguments that say how much of something there is."""


class _TooLarge(Exception):  # noqa: N818 it never leaves this module
    """The architecture has grown beyond what its file can fill."""


@contextmanager
def _counted(values: int, parts: int) -> Iterator[None]:
    """While the context lasts, whatever a module is given counts, and too much of it ends the building."""
    seen = {"values": 0, "parts": 0}

    def count(_: nn.Module, __: str, part: Any) -> None:
        seen["parts"] += 1
        seen["values"] += part.numel() if isinstance(part, torch.Tensor) and not nn.parameter.is_lazy(part) else 0
        if seen["parts"] > parts:
            raise _TooLarge(f"more than {parts:,} layers and tensors")
        if seen["values"] > values:
            raise _TooLarge(f"more than {values:,} numbers")

    handles = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
        registration.register_module_module_registration_hook(count),
    ]
    with hooked(handles):
        yield


def _sizes(arguments: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Whole numbers in arguments that say how much of something there is, by the name that they stand under."""
    if isinstance(arguments, Mapping):
        for key, value in arguments.items():
            yield from _sizes(value, str(key))
    elif isinstance(arguments, list | tuple):
        for value in arguments:
            yield from _sizes(value, name)
    elif isinstance(arguments, int) and SIZES.search(name.lower()):
        yield name, arguments


def refuse_larger(
    factory: Callable[..., nn.Module], arguments: Mapping[str, Any], checkpoint: Checkpoint, where: str
) -> None:
    """Refuse an architecture of a library that is too large for its file, before it takes any memory.

    Whatever else is wrong with the arguments is left to the building itself, which says so.

    Args:
        factory: builds the architecture from the arguments.
        arguments: from a config, a record or the command line.
        checkpoint: the file that is to fill it.
        where: the architecture and who named it.

    Raises:
        ImuError: too large, with what is in the file.
    """
    there = sum(math.prod(entry.shape) for entry in checkpoint.entries.values())
    has = f"{checkpoint.path} has {there:,} numbers in {len(checkpoint.entries):,} tensors"
    remedy = "it is another model's, or its config was edited: check num_classes and sizes in it, or give --arch and --arch-arg"
    for name, size in _sizes(arguments):
        if abs(size) > max(LARGEST, there):
            raise ImuError(f"{where}: {name} is {size:,}, and {has}; {remedy}")
    limits = SPARE_VALUES + TIMES_VALUES * there, SPARE_PARTS + TIMES_PARTS * len(checkpoint.entries)
    with _counted(*limits):
        try:
            with torch.device("meta"):
                factory(**arguments)
        except _TooLarge as error:
            raise ImuError(f"{where}: would have {error}, and {has}; {remedy}") from error
        except Exception:  # noqa: BLE001, S110 a factory that computes with its tensors cannot run so, one that is wrong fails again
            pass
