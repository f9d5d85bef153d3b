"""Steps that leave alone what anchored samples have in common: Σ of what enters a layer, as the closed form has it of the head.

With C = E[x xᵀ] over what enters a layer (of a convolution: its patches) for anchored samples, a step S (out, in) becomes

    S (I + C / (γ m))⁻¹,        m = tr C / in,

and keeps its length. What anchored inputs have in common is what other inputs of the kind have, too: a step along it changes
all that the network says, and a step beside it what is particular to few samples. γ is the size, beside the mean of C's eigenvalues, at which a
direction is halved; γ → ∞ leaves steps as they are, γ → 0 is orthogonal weight modification (Zeng, Chen, Cui & Yu 2019, Nature Machine
Intelligence 1, 364).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli import signals
from imu_cli.models.layers import is_conv1d
from imu_cli.models.parts import Parts

DAMPING = 0.1
"""γ (benchmarks/results/language_tuning.jsonl)."""
ALIKE = 2000
"""Anchored samples that say what inputs have in common."""
WIDEST = 16384
"""Inputs of a layer up to which its C is held, in² numbers."""
PATCHES = 1 << 16
"""Rows of what enters a layer that are multiplied at once."""


@dataclass(frozen=True, eq=False)
class Bend:
    """What turns a layer's steps: (I + C / (γ m))⁻¹, (in, in), and whether its weight is (in, out) as GPT-2's are.

    Where weights lie in parts, ``matrix`` is the rows that this process holds, and a step the outputs that it holds.
    """

    matrix: Tensor
    inputs_first: bool
    parts: Parts = field(default_factory=Parts)

    def __call__(self, step: Tensor) -> Tensor:
        """A step of the weight's shape, turned and as long as it was."""
        flat = step.flatten(1)
        whole = self.parts.joined(self.matrix, self.matrix.shape[1])
        made = whole @ flat if self.inputs_first else flat @ whole
        before, after = self.parts.norms([flat, made])
        made.mul_(before / after.clamp_min(1e-30))
        return made.view_as(step)


def bends(
    model: nn.Module,
    moving: Mapping[str, Tensor],
    run: Callable[[Tensor], object],
    n: int,
    at_once: int,
    damping: float = DAMPING,
    parts: Parts | None = None,
) -> dict[str, Bend]:
    """What turns the steps of every moving weight that multiplies what enters its layer, by the weight's name.

    Args:
        model: the network as it is before anything moves.
        moving: the weights that move, by name.
        run: runs some anchored samples (k,).
        n: how many there are; the first ``ALIKE`` are taken.
        at_once: how many run together; of texts one, so that no padding is counted.
        damping: γ.
        parts: what each process holds of the weights: it sums as many rows of C, and keeps as many of its map.
    """
    parts = parts or Parts()
    wanted: dict[str, tuple[nn.Module, str]] = {}
    for name, parameter in moving.items():
        path, _, kind = name.rpartition(".")
        layer = model.get_submodule(path)
        if kind == "weight" and parameter.ndim > 1 and _width(layer) in range(1, WIDEST + 1):
            wanted[path] = (layer, name)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    shared: dict[str, str] = {}
    seen: list[tuple[Tensor, str]] = []

    def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            entered = inputs[0].detach()
            # Layers side by side (queries, keys and values) are given the same tensor, which is summed once.
            twin = next(
                (other for tensor, other in seen if tensor is inputs[0] and _like(layer, wanted[other][0])), None
            )
            if shared.setdefault(path, twin or path) != path:
                return
            seen.append((inputs[0], path))
            with torch.autocast(entered.device.type, enabled=False):  # sums are float32's in every precision
                for rows in _rows(layer, entered).split(PATCHES):
                    own = rows.float()
                    mine = own[:, parts.rows(own.shape[1])].T
                    sums[path] = sums[path].addmm_(mine, own) if path in sums else mine @ own
                    counts[path] = counts.get(path, 0) + len(own)

        return hook

    handles = [layer.register_forward_pre_hook(watch(path)) for path, (layer, _) in wanted.items()]
    try:
        with torch.no_grad():
            for rows in torch.arange(n)[:ALIKE].split(at_once):
                signals.check()
                seen.clear()
                run(rows)
    finally:
        seen.clear()
        for handle in handles:
            handle.remove()
    made = {path: _turned(total / counts[path], damping, parts) for path, total in sums.items()}
    return {
        name: Bend(made[shared[path]], is_conv1d(layer), parts)
        for path, (layer, name) in wanted.items()
        if shared.get(path) in made
    }


def _turned(moment: Tensor, damping: float, parts: Parts) -> Tensor:
    """(I + C / (γ m))⁻¹ of C (in, in), in float64 and kept in float32; of both the rows that this process holds."""
    wide = parts.joined(moment, moment.shape[1]).double()
    scale = damping * wide.diagonal().mean().clamp_min(1e-30)
    wide = wide / scale
    wide.diagonal().add_(1.0)
    made = torch.cholesky_inverse(torch.linalg.cholesky(wide)).float()
    return made if parts.count == 1 else made[parts.rows(len(made))].clone()


def _width(layer: nn.Module) -> int:
    """Numbers that one output is made of; 0 for a layer that multiplies nothing that enters it."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    ):
        return layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
    return len(layer.weight) if is_conv1d(layer) else 0  # type: ignore[arg-type]


def _like(one: nn.Module, other: nn.Module) -> bool:
    """Whether what enters both is taken in the same rows."""
    if isinstance(one, nn.Conv2d) or isinstance(other, nn.Conv2d):
        return (
            isinstance(one, nn.Conv2d) and isinstance(other, nn.Conv2d)
            and (one.kernel_size, one.stride, one.padding, one.dilation) == (other.kernel_size, other.stride, other.padding, other.dilation)
        )  # fmt: skip
    return True


def _rows(layer: nn.Module, entered: Tensor) -> Tensor:
    """What enters a layer as rows (N, in): of a convolution its patches."""
    if isinstance(layer, nn.Conv2d):
        patches = nn.functional.unfold(
            entered.float(), layer.kernel_size, layer.dilation, layer.padding, layer.stride  # type: ignore[arg-type]
        )  # fmt: skip
        return patches.transpose(1, 2).flatten(0, 1)
    return entered.flatten(0, -2)
