"""The head: the last linear layer, found by running the model and proved by replaying its logits."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import DTYPES, Checkpoint
from .errors import ImuError, RefusedError

REPLAY_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest error of the replayed logits, relative to the largest logit, by the dtype that the backbone computes in."""


@dataclass(frozen=True)
class Head:
    """A linear head that was found and replayed.

    Attributes:
        module: its path in the model.
        matrix: W (c, d+1) float64, the bias as last column where there is one; (c, d) otherwise.
        tensors: names of its weight and, if it has one, its bias in the checkpoint file.
        dtype: the weight's dtype in the file, as safetensors names it.
        bias_dtype: the bias's, "" without a bias.
        source: where the choice came from.
        replay_error: largest |h Wᵀ + b − logits| relative to the largest |logit| seen so far.
    """

    module: str
    matrix: Tensor = field(repr=False)
    tensors: tuple[str, ...]
    dtype: str
    bias_dtype: str
    source: str
    replay_error: float

    @property
    def bias(self) -> bool:
        """Whether the head has a bias, the last column of ``matrix``."""
        return bool(self.bias_dtype)

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return len(self.matrix)

    def rounded(self, matrix: Tensor) -> Tensor:
        """The values that the file's dtypes can hold, as float64: what the written checkpoint will compute with."""
        weight = matrix[:, : matrix.shape[1] - self.bias].to(DTYPES[self.dtype]).to(matrix.dtype)
        if not self.bias:
            return weight
        return torch.cat([weight, matrix[:, -1:].to(DTYPES[self.bias_dtype]).to(matrix.dtype)], dim=1)

    def parts(self, matrix: Tensor) -> dict[str, Tensor]:
        """The file's tensors for this matrix, by name."""
        if not self.bias:
            return {self.tensors[0]: matrix}
        return dict(zip(self.tensors, (matrix[:, :-1], matrix[:, -1]), strict=True))

    def with_matrix(self, matrix: Tensor) -> "Head":
        """The same head with other values."""
        return replace(self, matrix=matrix)


def logits_of(output: Any) -> Tensor:
    """The (n, c) logits in a model's output: the tensor itself or its ``logits`` field.

    Raises:
        RefusedError: anything else.
    """
    found = getattr(output, "logits", output)
    if not isinstance(found, Tensor) or found.ndim != 2:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise RefusedError(
            f"model: returned {shape}, not one (images, classes) tensor of logits; this is not a classifier"
        )
    return found


@contextmanager
def tapped(module: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs that the module is called with while the context lasts, detached."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def _executed(model: nn.Module, images: Tensor) -> tuple[list[str], Tensor]:
    """Linear layers in the order they finished running, and the logits of these images."""
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        logits = logits_of(model(images))
    finally:
        for handle in handles:
            handle.remove()
    return order, logits


def replay_error(features: Tensor, matrix: Tensor, bias: bool, logits: Tensor) -> float:
    """Largest |h Wᵀ + b − logits|, relative to the largest |logit|, over a batch."""
    h, wide = features.to(torch.float64), logits.to(torch.float64)
    weight = matrix.to(h.device)
    replayed = h @ weight[:, :-1].T + weight[:, -1] if bias else h @ weight.T
    scale = max(float(wide.abs().max()), 1e-30)
    return float((replayed - wide).abs().max()) / scale


def _matrix(checkpoint: Checkpoint, names: Sequence[str]) -> Tensor:
    """W as the file holds it, so that rows which do not move are written back bit by bit in any dtype."""
    parts = [checkpoint.tensor(name).to(torch.float64) for name in names]
    return torch.cat([parts[0], *(part.unsqueeze(1) for part in parts[1:])], dim=1)


def _refuse_tied(model: nn.Module, name: str, layer: nn.Linear) -> None:
    own = {parameter.data_ptr() for parameter in layer.parameters()}
    shared = [
        other
        for other, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.data_ptr() in own and not other.startswith(f"{name}.")
    ]
    if shared:
        raise RefusedError(
            f"head {name}: its weight or bias is tied to {shared[0]}; changing it would change that layer too"
        )


def _choose(model: nn.Module, path: str | None, order: Sequence[str], outputs: int) -> tuple[str, str]:
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if path is not None:
        if path not in linear:
            raise ImuError(f"--head {path}: not a linear layer of this model; it has {', '.join(linear) or 'none'}")
        return path, "--head"
    fitting = [name for name in order if linear[name].out_features == outputs]
    if not fitting:
        raise RefusedError(
            f"head: no linear layer with {outputs} outputs runs in this model; imu changes linear heads only"
        )
    return fitting[-1], "last linear layer that runs"


def _tolerance(dtype: torch.dtype) -> float:
    return REPLAY_TOLERANCE.get(dtype, REPLAY_TOLERANCE[torch.float32])


def check_replay(head: Head, error: float, dtype: torch.dtype) -> Head:
    """The head with the larger of its replay errors.

    Raises:
        RefusedError: the head's own product with its input is not what the model returns.
    """
    if not error <= _tolerance(dtype):
        raise RefusedError(
            f"head {head.module}: the replay check failed, h Wᵀ + b differs from the model's logits by {error:.2g} of "
            f"the largest logit (allowed: {_tolerance(dtype):g}); something acts after or beside this layer "
            "(dropout, temperature, a second head); name another with --head, or this model cannot be handled"
        )
    return replace(head, replay_error=max(head.replay_error, error))


def find_head(model: nn.Module, images: Tensor, checkpoint: Checkpoint, prefix: str, path: str | None = None) -> Head:
    """Find the head by running the model on a few images, and prove it by replaying their logits.

    Args:
        model: in ``eval()`` mode, on the images' device.
        images: a preprocessed batch.
        checkpoint: the file, for the tensors' names and dtypes.
        prefix: what the file's names carry before the model's.
        path: ``--head``.

    Raises:
        RefusedError: none found, called more than once, tied, or the replay check fails.
        ImuError: ``path`` is not a linear layer, or no image has finite features.
    """
    with torch.inference_mode():
        order, logits = _executed(model, images)
        name, source = _choose(model, path, order, logits.shape[1])
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        _refuse_tied(model, name, layer)
        with tapped(layer) as seen:
            model(images)
    if len(seen) != 1 or seen[0].ndim != 2 or layer.out_features != logits.shape[1]:
        raise RefusedError(
            f"head {name}: runs {len(seen)} times in one forward pass, on inputs of shape "
            f"{[tuple(item.shape) for item in seen]}, with {layer.out_features} outputs for {logits.shape[1]} logits; "
            "name another with --head"
        )
    finite = torch.isfinite(seen[0]).all(dim=1)
    if not bool(finite.any()):
        raise ImuError(
            "features: not finite for any image that was tried; check the preprocessing and the model's weights"
        )
    names = [f"{prefix}{name}.weight"] + ([f"{prefix}{name}.bias"] if layer.bias is not None else [])
    dtypes = _file_dtypes(checkpoint.entries, names)
    matrix = _matrix(checkpoint, names)
    head = Head(name, matrix, tuple(names), dtypes[0], dtypes[1] if len(dtypes) > 1 else "", source, 0.0)
    # Rows that are not finite are named with their image when the features are taken.
    return check_replay(head, replay_error(seen[0][finite], matrix, head.bias, logits[finite]), logits.dtype)


def _file_dtypes(entries: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in entries or entries[name].dtype not in DTYPES:
            found = entries[name].dtype if name in entries else "missing"
            raise RefusedError(f"head {name}: is {found} in the file; imu writes {', '.join(DTYPES)}")
    return [entries[name].dtype for name in names]
