"""Why a head is refused, in words: what was done to its output, which layers add up to the logits, or why there is none."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

EXACT = 1e-4
"""Largest difference, relative to the largest logit, at which an explanation is taken to be the right one."""

UNKNOWN = (
    "something acts after or beside this layer (dropout, temperature, a second head); "
    "name another with --head, or this model cannot be handled"
)
OWN = (
    "the logits are what this layer returns, and not what the file's weights make of its input in float32: the model's code "
    "computes in less (half(), bfloat16(), autocast) or changes the weights as it runs; name a factory that does neither "
    "(--arch file.py:factory), or this model cannot be handled"
)


def of_a_run(precision: str, device: str, samples: int) -> str:
    """Why the head was replayed on the first samples and not in a later batch: rounding first, the model last."""
    less = "" if precision == "float32" else "--precision float32, "
    return (
        f"it ran in {precision} on {device}, {samples} samples at a time, and rounding is the usual cause of a small "
        f"difference: try {less}another --batch-size{'' if device == 'cpu' else ' or --device cpu'}; "
        f"where that changes nothing, {UNKNOWN}"
    )


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda z: z.softmax(dim=1),
    "log_softmax": lambda z: z.log_softmax(dim=1),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
"""What models do to logits before they return them."""

QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao", "bitsandbytes")
"""Packages whose layers hold quantised weights."""


def _is(made: Tensor, logits: Tensor) -> bool:
    return float((made - logits).abs().max()) <= EXACT * float(logits.abs().max())


def _mixture(outputs: Mapping[str, Tensor], logits: Tensor) -> dict[str, float]:
    """Factors a_k with logits = Σ a_k outputs_k, by least squares, those that are not 0; {} where there are none."""
    columns = torch.stack([output.flatten() for output in outputs.values()], dim=1)
    factors = torch.linalg.lstsq(columns, logits.flatten()[:, None], driver="gelsd").solution[:, 0]
    if not _is((columns @ factors).reshape(logits.shape), logits):
        return {}
    return {name: float(factor) for name, factor in zip(outputs, factors, strict=True) if abs(float(factor)) > EXACT}


def why(head: str, outputs: Mapping[str, Tensor], logits: Tensor) -> str:
    """What the logits are, if not this head's output, and what to do.

    Args:
        head: path of the layer whose replay failed.
        outputs: output (n, c) of each layer that ran once a sample with c outputs, the head's among them.
        logits: (n, c) of the model.
    """
    if not logits.numel() or not all(bool(torch.isfinite(part).all()) for part in (logits, *outputs.values())):
        return UNKNOWN
    wide = {name: output.cpu().double() for name, output in outputs.items()}
    target = logits.cpu().double()
    for name, output in wide.items():
        for activation, apply in ACTIVATIONS.items():
            if _is(apply(output), target):
                return (
                    f"the model returns the {activation} of {name}; "
                    "name a factory that returns what goes in (--arch file.py:factory)"
                )
    parts = _mixture(wide, target) if wide else {}
    if not parts:
        return UNKNOWN
    if len(parts) > 1:
        terms = " + ".join(f"{factor:.3g} × {name}" for name, factor in parts.items())
        return (
            f"the logits are {terms}, a distilled or double head; imu changes one head, so this model cannot be handled"
        )
    name, factor = next(iter(parts.items()))
    if abs(factor - 1) > EXACT:
        return (
            f"the logits are {factor:.3g} × {name} (a temperature); "
            "name a factory without the factor (--arch file.py:factory)"
        )
    if name != head:
        return f"the logits are the output of {name}; add --head {name}"
    return OWN


def no_layer(model: nn.Module, outputs: int) -> str:
    """Why no layer can be the head, and what to do."""
    if isinstance(model, torch.jit.ScriptModule):
        return (
            "the model is scripted or traced (TorchScript), so its layers cannot be watched; "
            "name a factory that builds it from Python (--arch file.py:factory)"
        )
    for name, module in model.named_modules():
        if type(module).__module__.startswith(QUANTISED):
            return (
                f"no linear layer with {outputs} outputs runs in this model, and {name} is quantised "
                f"({type(module).__module__}); give the checkpoint from before quantisation"
            )
    return (
        f"no linear layer or 1x1 convolution with {outputs} outputs runs in this model as a layer of its own; "
        "imu changes linear heads only"
    )
