"""Linear layers of a network that runs on a processor of another maker than Intel, by oneDNN with weights laid out beforehand.

torch gives a float32 product to MKL, which is Intel's: on an AMD EPYC oneDNN takes 0.87 of its time for the layers of a MiniLM
(docs/performance.md). The operators are those that torch's own compiler writes into what it makes.
"""

import copy
import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from imu_cli.features.folding import plain, put

ROWS = 4096
"""Rows of a product that weights are laid out for; any number of them may come."""
NARROW = 64
"""Layers that are narrower on one side are left alone."""
MOST = 2**30
"""Bytes of weights up to which they are held twice."""
CPUINFO = Path("/proc/cpuinfo")


class PrepackedLinear(nn.Linear):
    """A linear layer whose weights are laid out for oneDNN, too.

    Where anything but a plain pass is wanted, or the weights were changed since, it is the layer that it was.
    """

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self._version = layer.weight._version
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 torch's own name
        """(…, in) → (…, out)."""
        plain = input.dtype == torch.float32 and input.layout == torch.strided and not input.is_nested
        changed = self.weight._version != self._version
        if not plain or changed or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        made: Tensor = torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, "none", [], "")
        return made


@cache
def _suits() -> bool:
    """Whether oneDNN is there, on an x86 processor that is known not to be Intel's."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    try:
        told = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = platform.processor()
    return "AuthenticAMD" in told or "HygonGenuine" in told


def _fits(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and min(weight.shape) >= NARROW


def prepacked(model: nn.Module, layer: str) -> tuple[nn.Module, int]:
    """A copy of a model on the CPU whose linear layers are laid out so, and how many; all weights are the model's own.

    The model itself where none are, where they are too many to be held twice, or where it cannot be copied. ``layer``, the head,
    stays as it is.
    """
    chosen = {
        name: module
        for name, module in model.named_modules()
        if name != layer and isinstance(module, nn.Linear) and plain(module, (nn.Linear,)) and _fits(module.weight)
    }
    if not chosen or sum(module.weight.nbytes for module in chosen.values()) > MOST or not _suits():
        return model, 0
    try:
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        made = copy.deepcopy(model, shared)
        for name, module in chosen.items():
            put(made, name, PrepackedLinear(module))
    except Exception:  # noqa: BLE001 a model may refuse to be copied in any way, and a torch may lack the operators
        return model, 0
    return made, len(chosen)
