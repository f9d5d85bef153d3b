"""A second device for machines without one: tensors that say that they are on a GPU, and refuse what a GPU's refuse.

They are computed on the CPU, with the same bits. Tensors of both devices do not mix, but for single numbers, the CPU's row
numbers into a GPU's tensor, and copies; numpy sees none of a GPU's; the CPU's generators draw nothing there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
COPIES = {Tensor.copy_, Tensor.to, Tensor.type_as}
"""What takes values of both devices."""


class There(Tensor):
    """A tensor on the second device, which says that it is there."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As ``second_device`` has it, also after it."""
        return _called(func, args, kwargs or {})


def _called(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", str(func))
    if func == Tensor.device.__get__:  # type: ignore[attr-defined]
        return DEVICE if isinstance(args[0], There) else _plainly(func, args, kwargs)
    if func in (Tensor.is_cuda.__get__, Tensor.is_cpu.__get__):  # type: ignore[attr-defined]
        return isinstance(args[0], There) == (func == Tensor.is_cuda.__get__)  # type: ignore[attr-defined]
    given = _flat(args, kwargs)
    seen = [item for item in given if isinstance(item, Tensor)]
    if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], There):
        raise TypeError("cannot convert the second device's tensor to numpy; use Tensor.cpu() first")
    if func not in COPIES and not _may_mix(func, args):
        large = {isinstance(item, There) for item in seen if _plainly(Tensor.dim, (item,), {}) > 0}
        if len(large) > 1:
            raise RuntimeError(f"{name}: tensors of the CPU and of the second device")
    place = _place(func, args, kwargs, seen)
    if place == DEVICE and kwargs.get("generator") is not None:
        raise RuntimeError(f"{name}: a generator of the CPU for the second device")
    if any(isinstance(item, torch.device) for item in given):
        args, kwargs = tree_map(lambda item: CPU if isinstance(item, torch.device) else item, (args, kwargs))
    moves = func in COPIES and any(isinstance(item, There) for item in seen) != (place == DEVICE)
    made = _plainly(func, args, kwargs)
    if moves and func is not Tensor.copy_:
        made = _plainly(Tensor.clone, (made,), {})  # what moves is a copy
    if isinstance(made, Tensor):
        return _on(place, made)
    if isinstance(made, torch.Size | bool | int | float):
        return made
    return tree_map(lambda item: _on(place, item) if isinstance(item, Tensor) else item, made)


def _flat(args: Any, kwargs: dict[str, Any]) -> list[Any]:
    """All that a call is given; most calls hold no lists, and there are a hundred thousand."""
    given = [*args, *kwargs.values()]
    return tree_flatten(given)[0] if any(isinstance(item, list | tuple | dict) for item in given) else given


def _plainly(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunction():
        return func(*args, **kwargs)


def _on(place: torch.device, made: Tensor) -> Tensor:
    wanted = There if place == DEVICE else Tensor
    return made if isinstance(made, There) == (wanted is There) else _plainly(Tensor.as_subclass, (made, wanted), {})


def _may_mix(func: Callable[..., Any], args: Any) -> bool:
    """Row numbers may come from the CPU; a part that slices alone name may be set from anywhere, as a copy."""
    if func is Tensor.__getitem__:
        return isinstance(args[0], There)
    if func is Tensor.__setitem__:
        rows = [item for item in tree_flatten(args[1])[0] if isinstance(item, Tensor)]
        return not rows or (
            isinstance(args[0], There) and (not isinstance(args[2], Tensor) or isinstance(args[2], There))
        )
    return False


def _place(func: Callable[..., Any], args: Any, kwargs: dict[str, Any], seen: list[Tensor]) -> torch.device:
    """Where the result is."""
    devices = [torch.device(item) for item in (kwargs.get("device"),) if item is not None]
    if func is Tensor.cpu:
        return CPU
    if func is Tensor.to:
        devices += [torch.device(item) for item in args[1:] if isinstance(item, torch.device | str)]
        devices += [DEVICE if isinstance(item, There) else CPU for item in args[1:] if isinstance(item, Tensor)]
    if func in (Tensor.copy_, Tensor.type_as):
        devices += [DEVICE if isinstance(args[func is Tensor.type_as], There) else CPU]
    if devices:
        return devices[0]
    return DEVICE if any(isinstance(item, There) for item in seen) else CPU


class _Second(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _called(func, args, kwargs or {})


@contextmanager
def second_device() -> Iterator[torch.device]:
    """The device, while the context lasts."""
    with _Second():
        yield DEVICE
