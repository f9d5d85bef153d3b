"""What float32 means while a model runs: IEEE float32, or TF32 where that was asked for.

A GPU's convolutions round what they multiply to TF32, ten bits of mantissa in place of 23, unless they are told not to;
its matrix products do so where a program said so, and so may a CPU's, to TF32 or bfloat16. Which it is stands in settings of
the whole process, two generations of them: flags that say yes or no, and from torch 2.9 on a precision for each kind of
operation, which ends in an error where the flags are read and say something else. Both are set here, and agree.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

Kind = Literal["ieee", "tf32"]

Setting = tuple[Callable[[], Any], Callable[[Any], None]]
"""How a setting is read and written; both raise ``RuntimeError`` where its two generations disagree."""


def _flag(module: Any, name: str) -> Setting:
    return lambda: getattr(module, name), lambda value: setattr(module, name, value)


def _operations() -> list[tuple[str, Setting]]:
    """The precision of each operation with its backend; none before torch 2.9."""
    if not hasattr(torch.backends, "fp32_precision"):
        return []
    named = [
        ("cuda", torch.backends.cuda, "matmul"),
        ("cuda", torch.backends.cudnn, "conv"),
        ("cuda", torch.backends.cudnn, "rnn"),
    ]
    named += [("mkldnn", torch.backends.mkldnn, name) for name in ("matmul", "conv", "rnn")]
    found = [(backend, getattr(module, name)) for backend, module, name in named if hasattr(module, name)]
    return [(backend, _flag(place, "fp32_precision")) for backend, place in found]


def _flags() -> list[Setting]:
    """The settings of before, which are still read by models and by torch itself."""
    return [
        _flag(torch.backends.cudnn, "allow_tf32"),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    ]


def _read(setting: Setting) -> Any:
    """The value, or None where whoever set it last left the two generations at odds: it then cannot be read, nor is it set."""
    try:
        return setting[0]()
    except RuntimeError:
        return None


@contextmanager
def float32_as(kind: Kind) -> Iterator[None]:
    """Convolutions and products of float32 compute as ``kind`` while the context lasts; then as the caller had it.

    Not of this thread alone: torch knows these settings for a whole process.
    """
    flags, operations = _flags(), _operations()
    with _unheard():
        before = [_read(setting) for setting in flags]
        exact = [setting[0]() for _, setting in operations]
    try:
        with _unheard():
            _write(flags, [kind == "tf32", "high" if kind == "tf32" else "highest"], before)
            for backend, (_, write) in operations:
                write(kind if backend == "cuda" else "ieee")
        yield
    finally:
        with _unheard():
            _write(flags, before, before)
            for (_, setting), value in zip(operations, exact, strict=True):
                _restore(setting, value)


def _write(flags: Sequence[Setting], values: Sequence[Any], before: Sequence[Any]) -> None:
    for (_, write), value, was in zip(flags, values, before, strict=True):
        if was is not None:
            write(value)


def _restore(setting: Setting, value: Any) -> None:
    """As it was read; ``none``, which follows a more general setting, where that gives the same."""
    read, write = setting
    if read() != value:
        write("none")
    if read() != value:
        write(value)


@contextmanager
def _unheard() -> Iterator[None]:
    """Some versions of torch warn of flags that later ones will not have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
