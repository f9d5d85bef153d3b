"""From a checkpoint and an architecture's name to a model with the checkpoint's weights, loaded strictly.

The name comes from ``--arch``, else from a record, the file's metadata or the ``config.json`` beside it; where none of them says,
those that fit are listed, and the user is asked. Code runs only if the user named it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli.errors import ImuError
from imu_cli.files.reading import cut, json_value
from imu_cli.files.yaml_reading import DEEPEST, parse_yaml
from imu_cli.models import bounds, candidates, factories, sidecar
from imu_cli.models.checkpoint import Checkpoint
from imu_cli.models.sidecar import Said


@dataclass(frozen=True)
class Architecture:
    """What was built: the name as given, its source, factory arguments, and the SHA-256 of a user's own file."""

    name: str
    source: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    code_sha256: str | None = None

    @property
    def runs_code(self) -> bool:
        """Whether naming it again would run a file or module that is not a registry's."""
        return not sidecar.is_registry(self.name)

    def described(self) -> dict[str, Any]:
        """As it stands in the record and the cache key."""
        return {"name": self.name, "source": self.source, "arguments": dict(self.arguments), "code": self.code_sha256}


@dataclass(frozen=True)
class Loaded:
    """A model in ``eval()`` mode with the checkpoint's weights, the prefix the file's names had, and what its files say."""

    model: nn.Module
    architecture: Architecture
    prefix: str
    said: tuple[Said, ...] = ()


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` pairs; values are read as YAML scalars, so ``width=2`` is a number.

    Raises:
        ImuError: a pair without a key or an equals sign, or a value that is not YAML.
    """
    arguments = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not (sign and key.isidentifier()):
            raise ImuError(f"--arch-arg {pair}: not key=value; write for example --arch-arg width=2")
        arguments[key] = _scalar(pair, value)
    return arguments


def _scalar(pair: str, text: str) -> Any:
    """JSON where it is JSON, so that 1e-3 is a number also in a list (PyYAML reads it as text); else a YAML scalar."""
    with suppress(ValueError):
        return json_value(text, deepest=DEEPEST)
    return parse_yaml(text, f"--arch-arg {cut(pair)}", "quote the value")


def _build(factory: Callable[..., nn.Module], name: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        model = factory(**arguments)
    except ImuError:
        raise
    except Exception as error:
        raise ImuError(
            f"--arch {name}: the factory failed ({type(error).__name__}: {error}); see --arch-arg"
        ) from error
    if not isinstance(model, nn.Module):
        raise ImuError(f"--arch {name}: returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _classes_in_file(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Number of outputs in the file, if all that differs from the template is one first dimension; else None."""
    template = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name in shapes}
    differing = [(shapes[name], shape) for name, shape in template.items() if shapes[name] != shape]
    sizes = {found[:1] for found, _ in differing}
    fits = all(len(found) == len(shape) and found[1:] == shape[1:] for found, shape in differing)
    return sizes.pop()[0] if fits and len(sizes) == 1 else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", +{len(names) - 8} more" if len(names) > 8 else "")


def _widen(model: nn.Module) -> None:
    """Weights narrower than float32 become float32, before float32 values of the file would be rounded to them."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor.data = tensor.data.float()


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy the tensors into the model, in its dtypes but float32 at least, or say every way in which they do not fit."""
    _widen(model)
    state, misfits = _translated(model, tensors) if _is_transformers(model) else (tensors, _misfits(model, tensors))
    found = [f"{kind}: {_listed(names)}" for kind, names in misfits.items() if names]
    if found:
        raise ImuError(f"{where}: does not fit the architecture; " + "; ".join(found) + "; check --arch and --arch-arg")
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if bad:
        raise ImuError(f"{where}: not finite (NaN or infinity) in {_listed(bad)}; this checkpoint is damaged")
    # Into a state of the model's own: it has the layers' versions, which mnasnet asks for and no safetensors file has.
    full = model.state_dict()
    full.update(state)
    model.load_state_dict(full)


def _misshapen(name: str, in_file: Sequence[int], in_model: Sequence[int]) -> str:
    return f"{name} is {tuple(in_file)} in the file, {tuple(in_model)} in the architecture"


def _misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What is missing, unexpected and misshapen."""
    expected = model.state_dict()
    return {
        # Files older than PyTorch 0.4.1 lack the batch counter, which plays no part in eval().
        "missing": sorted(name for name in set(expected) - set(tensors) if not name.endswith("num_batches_tracked")),
        "unexpected": sorted(set(tensors) - set(expected)),
        "misshapen": [
            _misshapen(name, tensors[name].shape, tensor.shape)
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }


def _is_transformers(model: nn.Module) -> bool:
    return type(model).__module__.startswith("transformers.models.")


def _translated(model: Any, tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], dict[str, list[str]]]:
    """The tensors under the model's names, by transformers itself: its files keep older names than its models have."""
    made, report = type(model).from_pretrained(
        None, config=model.config, state_dict=dict(tensors), dtype=torch.float32, output_loading_info=True,
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    return made.state_dict(), {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "misshapen": [_misshapen(*item) for item in sorted(report["mismatched_keys"])],
    }


def read_said(checkpoint: Checkpoint) -> list[Said]:
    """What the model's own files say of it."""
    return sidecar.read(checkpoint.path, checkpoint.metadata, checkpoint.folder)


def choose(
    checkpoint: Checkpoint, name: str | None, pairs: Sequence[str], said: Sequence[Said], fallback: Said | None = None
) -> Architecture:
    """Which architecture to build, with what arguments, and who said so; ``num_classes`` may still be missing.

    Args:
        checkpoint: the opened model.
        name: ``--arch``; ``hf:`` alone means the config beside the weights.
        pairs: ``--arch-arg``, which win over other sources' arguments.
        said: what the files say (``sidecar.read``).
        fallback: what a record knows; a record that describes this very model is believed before its files.

    Raises:
        ImuError: nobody says; the message lists the architectures that the tensors fit.
    """
    given = parse_arguments(pairs)
    sources = [*([fallback] if fallback is not None else []), *said]
    if name is not None:
        same = next((item for item in sources if item.arch is not None and _same(item.arch, name)), None)
        arguments = {} if same is None or not sidecar.is_registry(name) else dict(same.arguments)
        return Architecture(name, "--arch", {**arguments, **given})
    for item in sources:
        if item.arch is not None:
            return Architecture(item.arch, item.source, {**item.arguments, **given})
    raise ImuError(f"{checkpoint.path}: its architecture is not known; {_advice(checkpoint)}")


def _same(said: str, name: str) -> bool:
    """Whether a file's architecture is the one the user named, so that its arguments belong to it."""
    return said == name or (name == "hf:" and said.startswith("hf:"))


def _advice(checkpoint: Checkpoint) -> str:
    found = candidates.find({name: entry.shape for name, entry in checkpoint.entries.items()})
    if not found:
        return "no architecture of torchvision or timm fits its tensors; add --arch file.py:factory"
    lines = "".join(f"\n  --arch {name}" for name in found)
    return (
        f"{len(found)} fit its tensors, and tensors do not tell them apart (a stride, an activation or a missing pooling does not "
        f"show in them); add the one that it was trained as:{lines}"
    )


def load(
    checkpoint: Checkpoint,
    name: str | None,
    pairs: Sequence[str] = (),
    fallback: Said | None = None,
) -> Loaded:
    """Build the architecture and load the checkpoint into it strictly; in ``eval()`` mode, without gradients.

    ``num_classes`` is passed where the factory takes it, read off the file's head if the default does not fit.

    Args:
        checkpoint: the opened model.
        name: ``--arch``, or None to use what its files say.
        pairs: ``--arch-arg``.
        fallback: what a record knows.

    Raises:
        ImuError: no architecture known, or the tensors do not fit it.
        RefusedError: the files say that it is a model which imu does not handle.
    """
    said = read_said(checkpoint)
    chosen = choose(checkpoint, name, pairs, said, fallback)
    factory, code = factories.resolve(chosen.name)
    arguments = dict(chosen.arguments)
    if sidecar.is_registry(chosen.name):
        bounds.refuse_larger(factory, arguments, checkpoint, f"{chosen.source} {chosen.name}")
    model = _build(factory, chosen.name, arguments)
    tensors = checkpoint.tensors()
    prefix = checkpoint.prefix(set(model.state_dict()))
    stripped = {key.removeprefix(prefix): value for key, value in tensors.items()}
    if "num_classes" not in arguments and factories.accepts_num_classes(factory, chosen.name):
        outputs = _classes_in_file(model, {key: tuple(value.shape) for key, value in stripped.items()})
        if outputs is not None:
            arguments["num_classes"] = outputs
            model = _build(factory, chosen.name, arguments)
    load_into(model, stripped, str(checkpoint.path))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return Loaded(model.eval(), Architecture(chosen.name, chosen.source, arguments, code), prefix, tuple(said))
