"""The head of a model, found by running it on a few samples, or named, and read from its file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli.errors import ImuError, RefusedError
from imu_cli.models import diagnosis
from imu_cli.models.arithmetic import float32_as
from imu_cli.models.batches import Batch, call
from imu_cli.models.checkpoint import DTYPES, Checkpoint
from imu_cli.models.head import Head, hooked, logits_of, rows_of, tapped
from imu_cli.models.replay import check_replay, replay_error


@dataclass(frozen=True)
class Call:
    """One call of an affine layer: its path, the input's shape, and input and output as (n, d) and (n, c) rows, if they are."""

    name: str
    shape: tuple[int, ...]
    features: Tensor | None
    output: Tensor | None


def affine_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Linear layers and 1x1 convolutions, which are linear layers where they run on pooled features, by path."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1)
    }


def outputs_of(layer: nn.Linear | nn.Conv2d) -> int:
    """Number of outputs, c."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _executed(model: nn.Module, samples: Batch) -> tuple[list[Call], Tensor]:
    """Calls of affine layers in the order they finished, and the logits of these samples."""
    calls: list[Call] = []

    def keep(name: str, h: Tensor, made: Tensor) -> None:
        # A copy of the output: what acts on it in place afterwards must not hide.
        flat = rows_of(made.detach())
        calls.append(Call(name, tuple(h.shape), rows_of(h.detach()), None if flat is None else flat.clone()))

    handles = [
        module.register_forward_hook(lambda _, inputs, made, name=name: keep(name, inputs[0], made))
        for name, module in affine_layers(model).items()
    ]
    with hooked(handles):
        logits = logits_of(call(model, samples))
    return calls, logits


def _matrix(checkpoint: Checkpoint, names: Sequence[str]) -> Tensor:
    """W as the file holds it, so that rows which do not move are written back bit by bit in any dtype."""
    parts = [checkpoint.tensor(name).to(torch.float64) for name in names]
    return torch.cat([parts[0].flatten(1), *(part.unsqueeze(1) for part in parts[1:])], dim=1)


def _refuse_tied(model: nn.Module, name: str, layer: nn.Module) -> None:
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


def _hints(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Paths that the model's library says its head has, and who says so; of several, the first."""
    said = getattr(model, "pretrained_cfg", None)
    named = said.get("classifier") if isinstance(said, Mapping) else getattr(said, "classifier", None)
    for path in (named,) if isinstance(named, str) else (named or ())[:1]:
        yield path, "timm's pretrained_cfg"
    if hasattr(getattr(model, "config", None), "model_type"):
        yield "classifier", "transformers' name for it"


def _choose(model: nn.Module, path: str | None, calls: Sequence[Call], outputs: int) -> tuple[str, str]:
    layers = affine_layers(model)
    if path is not None:
        if path not in layers:
            fitting = [name for name, layer in layers.items() if outputs_of(layer) == outputs]
            raise ImuError(
                f"--head {path}: not a linear layer of this model; it has {', '.join(fitting[-8:]) or 'none'}"
                + f" with {outputs} outputs" * bool(fitting)
            )
        return path, "--head"
    fitting = [call.name for call in calls if outputs_of(layers[call.name]) == outputs]
    if not fitting:
        raise RefusedError(f"head: {diagnosis.no_layer(model, outputs)}")
    for hint, source in _hints(model):
        inside = [name for name in fitting if name == hint or name.startswith(f"{hint}.")]
        if inside:
            return inside[-1], source
    return fitting[-1], "last linear layer that runs"


def _refuse_calls(name: str, calls: Sequence[Call], outputs: int, wanted: int) -> None:
    """The layer runs once in a pass, on one vector a sample or on every token, with as many outputs as there are logits; or it is refused."""
    if len(calls) != 1:
        raise RefusedError(
            f"head {name}: runs {len(calls)} times in one forward pass, on inputs of shape "
            f"{[call.shape for call in calls]}; name another with --head"
        )
    if calls[0].features is None and len(calls[0].shape) != 3:
        raise _pooled(name, calls[0].shape)
    if outputs != wanted:
        raise RefusedError(f"head {name}: has {outputs} outputs, the model {wanted} logits; name another with --head")


def _pooled(name: str, shape: tuple[int, ...]) -> RefusedError:
    where = "tokens of a text" if len(shape) == 3 else "places of an image"
    return RefusedError(
        f"head {name}: runs on inputs of shape {shape}, on many {where}, and is pooled afterwards; "
        "imu changes heads whose logits come from one feature vector a sample; name another with --head"
    )


def find_head(model: nn.Module, samples: Batch, checkpoint: Checkpoint, prefix: str, path: str | None = None) -> Head:
    """Find the head by running the model on a few samples, and prove it by replaying their logits.

    Args:
        model: in ``eval()`` mode, on the samples' device.
        samples: a batch as the model takes it.
        checkpoint: the file, for the tensors' names and dtypes.
        prefix: what the file's names carry before the model's.
        path: ``--head``.

    Raises:
        RefusedError: none found, one output, called more than once or on many places, tied, quantised, computed from other
            tensors, or the replay check fails.
        ImuError: ``path`` is not a linear layer, or no sample has finite features.
    """
    with torch.inference_mode(), float32_as("ieee"):
        calls, logits = _executed(model, samples)
    name, source = _choose(model, path, calls, logits.shape[1])
    _refuse_one_output(name, logits.shape[1])
    layer = affine_layers(model)[name]
    _refuse_tied(model, name, layer)
    own = [call for call in calls if call.name == name]
    _refuse_calls(name, own, outputs_of(layer), logits.shape[1])
    # From a second pass: a forward that is random (dropout that ignores eval()) must not replay.
    with torch.inference_mode(), float32_as("ieee"), tapped(layer) as seen:
        call(model, samples)
    features = seen[0].rows(logits, samples)
    if features is None:
        raise _pooled(name, own[0].shape)
    finite = torch.isfinite(features).all(dim=1)
    if not bool(finite.any()):
        raise ImuError(
            "features: not finite for any sample that was tried; check the preprocessing and the model's weights"
        )
    head = _read(checkpoint, prefix, name, layer.bias is not None, source)
    # Rows that are not finite are named with their sample when the features are taken.
    error = replay_error(features[finite], head.matrix, head.bias, logits[finite])
    outputs = {call.name: call.output[finite] for call in calls if _fits(call, logits)}  # type: ignore[index]
    return check_replay(head, error, logits.dtype, diagnosis.why(name, outputs, logits[finite]))


def _read(checkpoint: Checkpoint, prefix: str, name: str, bias: bool, source: str) -> Head:
    """The head of that name as the file has it, not yet replayed."""
    names = [checkpoint.named(prefix, f"{name}.{part}") for part in ("weight", "bias")[: 1 + bias]]
    dtypes = _file_dtypes(checkpoint.entries, names, f"{prefix}{name}.")
    trailing = checkpoint.entries[names[0]].shape[2:]
    matrix, bias_dtype = _matrix(checkpoint, names), dtypes[1] if bias else ""
    return Head(name, matrix, tuple(names), dtypes[0], bias_dtype, source, 0.0, trailing)


def named_head(checkpoint: Checkpoint, name: str, source: str, strip_prefix: str | None = None) -> Head:
    """A head by its path alone, without the model: for features that an engine says enter it. Nothing is replayed here.

    ``strip_prefix`` is what the file's names have before the path; without it, words of wrappers are found.

    Raises:
        ImuError: the file has no such layer, or it is no (c, d) matrix.
        RefusedError: its dtype cannot be written, or it has one output.
    """
    prefix = checkpoint.prefix({f"{name}.weight"}) if strip_prefix is None else strip_prefix
    weight = checkpoint.entries.get(checkpoint.named(prefix, f"{name}.weight"))
    if weight is None or len(weight.shape) not in (2, 4) or any(size != 1 for size in weight.shape[2:]):
        ends = [
            entry.removesuffix(".weight")
            for entry, item in checkpoint.entries.items()
            if entry.endswith(".weight") and len(item.shape) == 2
        ]
        raise ImuError(
            f"{source}: names the head {name!r}, and {checkpoint.path} has no matrix of that name; it has "
            f"{', '.join(ends[-5:]) or 'none'}: the features are another model's, or --head is wrong"
        )
    _refuse_one_output(name, weight.shape[0])
    has_bias = checkpoint.named(prefix, f"{name}.bias") in checkpoint.entries
    return _read(checkpoint, prefix, name, has_bias, source)


def _refuse_one_output(name: str, outputs: int) -> None:
    """Refuse a head without classes to choose between.

    Raises:
        RefusedError: it has one output.
    """
    if outputs == 1:
        raise RefusedError(
            f"head {name}: has one output, a regression or a yes-or-no head of one sigmoid; imu changes heads that choose "
            "between classes, with one logit for each. A yes-or-no head can be saved with two outputs, whose weights are 0 "
            "and this one's: that is the same classifier"
        )


def _fits(call: Call, logits: Tensor) -> bool:
    return call.output is not None and call.output.shape == logits.shape


def _file_dtypes(entries: Mapping[str, Any], names: Sequence[str], own: str) -> list[str]:
    for name in names:
        if name not in entries:
            there = ", ".join(other for other in entries if other.startswith(own)) or "nothing of this layer"
            raise RefusedError(
                f"head {name}: is not in the file, which has {there}; the layer computes it (weight or spectral norm, "
                "quantisation), and imu changes plain weights only: fold it into a weight and save again"
            )
        if entries[name].dtype not in DTYPES:
            raise RefusedError(
                f"head {name}: is {entries[name].dtype} in the file, quantised or not a number with a fraction; imu writes "
                f"{', '.join(DTYPES)}: give the checkpoint from before quantisation"
            )
    return [entries[name].dtype for name in names]
