"""A processor that computes float32 convolutions and products in TF32 unless it is told not to, for machines without one.

What goes into each is rounded to TF32's ten bits of mantissa, and sums are kept in float32, as tensor cores do it. Torch's
switches are obeyed as on a GPU, where convolutions are in TF32 by default, and products where a program says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DROPPED = 13
"""Bits of float32's mantissa, 23, that TF32 does not have."""
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution", "mkldnn_convolution"}
PRODUCTS = {
    "linear",
    "matmul",
    "einsum",
    "mm",
    "bmm",
    "mv",
    "dot",
    "addmm",
    "baddbmm",
    "addmv",
    "scaled_dot_product_attention",
}
"""Whole operations as ``torch.inference_mode`` hands them on, and their parts as anything else does."""
FACTORS = {
    "addmm": (1, 2),
    "baddbmm": (1, 2),
    "addmv": (1, 2),
    "einsum": (1,),
    "scaled_dot_product_attention": (0, 1, 2),
}
"""Which arguments are multiplied, if not the first two: a bias goes into the sum as it is."""
NEW = hasattr(torch.backends, "fp32_precision")


def rounded(values: Tensor) -> Tensor:
    """Float32 values with ten bits of mantissa, rounded to nearest, ties to even."""
    bits = values.contiguous().view(torch.int32)
    odd = (bits >> DROPPED) & 1
    made = (bits + (1 << (DROPPED - 1)) - 1 + odd) >> DROPPED << DROPPED
    return torch.where(torch.isfinite(values), made.view(torch.float32).view_as(values), values)


def convolutions_round() -> bool:
    """Whether torch lets a GPU compute convolutions in TF32."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32" if NEW else torch.backends.cudnn.allow_tf32  # type: ignore[attr-defined]


def products_round() -> bool:
    """Whether torch lets a GPU compute matrix products in TF32."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32" if NEW else torch.backends.cuda.matmul.allow_tf32  # type: ignore[attr-defined]


class _Rounding(TorchDispatchMode):
    """Keeps under ``seen`` what came by in float32, as ``(kind, whether it was rounded)``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        kind = "convolution" if name in CONVOLUTIONS else "product" if name in PRODUCTS else None
        assert kind or "attention" not in name, f"{name} multiplies too, and is not known here"
        if kind is not None and any(_single(value) for value in args):
            rounds = convolutions_round() if kind == "convolution" else products_round()
            self.seen.append((kind, rounds))
            if rounds:
                factors = FACTORS.get(name, (0, 1))
                args = tuple(_factor(value) if at in factors else value for at, value in enumerate(args))
        return func(*args, **(kwargs or {}))


def _single(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_single(one) for one in value)
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _factor(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_factor(one) for one in value]
    return rounded(value) if _single(value) else value


@contextmanager
def tensor_cores() -> Iterator[list[tuple[str, bool]]]:
    """Such a processor while the context lasts; yields what it computed: the kind, and whether in TF32."""
    with _Rounding() as mode:
        yield mode.seen
