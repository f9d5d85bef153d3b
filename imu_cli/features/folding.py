"""Batch norm folded into the convolution before it: the same function in eval mode, for less work and fewer passes.

Pairs are found by running the model: a batch norm whose input is the very tensor that a convolution returned. Whether
nothing else reads that tensor cannot be seen, so the folded copy has to reproduce the features of a few samples.
"""

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from imu_cli.models.arithmetic import float32_as
from imu_cli.models.batches import Batch, call, first
from imu_cli.models.head import hooked

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def plain(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Exactly one of these kinds, since a subclass may do more; without hooks, which would hear something else."""
    return type(module) in kinds and not module._forward_hooks and not module._forward_pre_hooks


def pairs(model: nn.Module, samples: Batch) -> list[tuple[str, str]]:
    """Names of each convolution and the batch norm that reads its output; both run once in a pass."""
    made: dict[int, tuple[str, Tensor]] = {}
    found: list[tuple[str, str]] = []
    runs: Counter[str] = Counter()
    names = {module: name for name, module in model.named_modules()}

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        runs[names[module]] += 1
        source = made.get(id(inputs[0])) if inputs else None
        if source is not None:
            found.append((source[0], names[module]))

    def after(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        runs[names[module]] += 1
        made[id(output)] = (names[module], output)  # kept, so that no later tensor gets its id

    handles = []
    for module in names:
        if plain(module, CONVOLUTIONS):
            handles.append(module.register_forward_hook(after))
        elif plain(module, NORMS) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before))
    with hooked(handles), torch.inference_mode(), float32_as("ieee"):
        call(model, samples)
    return [(conv, norm) for conv, norm in found if runs[conv] == runs[norm] == 1]


def folded(model: nn.Module, samples: Batch) -> tuple[nn.Module, int]:
    """A copy of a model in eval mode with every such pair folded, and how many; the model itself where there is none.

    A model that cannot be copied is returned as it is, too.
    """
    found = pairs(model, first(samples, 1))
    if not found:
        return model, 0
    try:
        made = copy.deepcopy(model)
    except Exception:  # noqa: BLE001 a model may refuse to be copied in any way; it then runs as it is
        return model, 0
    for conv, norm in found:
        fused = fuse_conv_bn_eval(made.get_submodule(conv), made.get_submodule(norm))  # type: ignore[arg-type, type-var]
        put(made, conv, fused)
        put(made, norm, nn.Identity())
    return made.to(memory_format=torch.channels_last), len(found)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one of this name."""
    above, _, own = name.rpartition(".")
    setattr(model.get_submodule(above), own, module)
