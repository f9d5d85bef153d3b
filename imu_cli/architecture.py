"""From a checkpoint and an architecture's name to a model with the checkpoint's weights, loaded strictly.

Code runs only if the user named it: a file or module after ``--arch`` or in the user's own YAML.
"""

import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .errors import ImuError

METADATA_KEY = "imu"
REGISTRIES = ("torchvision",)
METADATA_KINDS: dict[str, Callable[[Any], bool]] = {
    "arch": lambda value: isinstance(value, str),
    "preprocess": lambda value: isinstance(value, str | dict),
    "classes": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
}
"""Keys that the metadata may give a value for, and what a value must be."""


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
        return self.name.partition(":")[0] not in REGISTRIES

    def described(self) -> dict[str, Any]:
        """As it stands in the record and the cache key."""
        return {"name": self.name, "source": self.source, "arguments": dict(self.arguments), "code": self.code_sha256}


@dataclass(frozen=True)
class Loaded:
    """A model in ``eval()`` mode with the checkpoint's weights, and the prefix the file's names had."""

    model: nn.Module
    architecture: Architecture
    prefix: str


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
        return json.loads(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ImuError(f"--arch-arg {pair}: not YAML ({' '.join(str(error).split())}); quote the value") from error
    return text if isinstance(value, date) else value


def _torchvision(name: str) -> Callable[..., nn.Module]:
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:
        raise ImuError(
            f"torchvision: cannot be imported beside this torch ({error}); install matching builds of both"
        ) from error
    if name not in models.list_models():
        near = _near(name, models.list_models())
        raise ImuError(f"--arch torchvision:{name}: torchvision has no such model{near}")
    return lambda **arguments: models.get_model(name, weights=None, **_without_extra_downloads(name, arguments))


def _without_extra_downloads(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Segmentation and detection models take a second ``weights_backbone``, which must not download anything either."""
    from torchvision import models

    takes = inspect.signature(models.get_model_builder(name)).parameters
    return {**arguments, "weights_backbone": None} if "weights_backbone" in takes else arguments


def _near(name: str, names: Sequence[str]) -> str:
    import difflib

    match = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _from_module(module: Any, where: str, name: str) -> Callable[..., nn.Module]:
    factory = getattr(module, name, None)
    if not callable(factory):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ImuError(f"--arch {where}:{name}: has no factory of that name{_near(name, names)}")
    return factory  # type: ignore[no-any-return]


def _from_file(path: Path, name: str) -> Callable[..., nn.Module]:
    if not path.is_file():
        raise ImuError(f"--arch {path}:{name}: no such file; give the path of the Python file with the factory")
    module_name = f"imu_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ImuError(f"--arch {path}:{name}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling inside the user's file look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ImuError(f"--arch {path}: cannot be imported ({type(error).__name__}: {error})") from error
    return _from_module(module, str(path), name)


def _from_package(package: str, name: str) -> Callable[..., nn.Module]:
    try:
        module = importlib.import_module(package)
    except Exception as error:  # the user's own code may raise anything
        said = f"{type(error).__name__}: {error}"
        raise ImuError(f"--arch {package}:{name}: cannot be imported ({said}); is it installed here?") from error
    return _from_module(module, package, name)


def resolve(name: str) -> tuple[Callable[..., nn.Module], str | None]:
    """The factory that ``--arch`` names, and the hash of the user's file if it is one.

    Raises:
        ImuError: unknown scheme, missing file, module or factory.
    """
    where, sign, factory = name.rpartition(":")
    if not (sign and where and factory):
        raise ImuError(f"--arch {name}: give torchvision:NAME, file.py:factory or package.module:factory")
    if where == "torchvision":
        return _torchvision(factory), None
    if where.endswith(".py"):
        made = _from_file(Path(where), factory)
        return made, hashlib.sha256(Path(where).read_bytes()).hexdigest()
    if not re.fullmatch(r"[\w.]+", where):
        raise ImuError(f"--arch {name}: {where!r} is neither a registry, a .py file nor a module")
    return _from_package(where, factory), None


def _build(factory: Callable[..., nn.Module], name: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        model = factory(**arguments)
    except Exception as error:
        raise ImuError(
            f"--arch {name}: the factory failed ({type(error).__name__}: {error}); see --arch-arg"
        ) from error
    if not isinstance(model, nn.Module):
        raise ImuError(f"--arch {name}: returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _accepts_num_classes(factory: Callable[..., nn.Module], name: str) -> bool:
    if name.startswith("torchvision:"):
        return True
    try:
        return "num_classes" in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False


def _classes_in_file(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Number of outputs in the file, if all that differs from the template is one first dimension; else None."""
    template = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name in shapes}
    differing = [(shapes[name], shape) for name, shape in template.items() if shapes[name] != shape]
    sizes = {found[:1] for found, _ in differing}
    fits = all(len(found) == len(shape) and found[1:] == shape[1:] for found, shape in differing)
    return sizes.pop()[0] if fits and len(sizes) == 1 else None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", +{len(names) - 8} more" if len(names) > 8 else "")


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy the tensors into the model, in the file's dtypes, or say every way in which they do not fit."""
    expected = model.state_dict()
    # Files older than PyTorch 0.4.1 lack the batch counter, which plays no part in eval().
    missing = sorted(name for name in set(expected) - set(tensors) if not name.endswith("num_batches_tracked"))
    unexpected = sorted(set(tensors) - set(expected))
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)} in the file, {tuple(tensor.shape)} in the architecture"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen}
    found = [f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names]
    if found:
        raise ImuError(f"{where}: does not fit the architecture; " + "; ".join(found) + "; check --arch and --arch-arg")
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if bad:
        raise ImuError(f"{where}: not finite (NaN or infinity) in {_listed(bad)}; this checkpoint is damaged")
    model.load_state_dict(dict(tensors))


def from_metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the safetensors metadata key ``imu`` says (architecture, preprocessing, classes); {} where there is none.

    Raises:
        ImuError: not a JSON object, a value of the wrong kind, or it names code, which a checkpoint may not.
    """
    if METADATA_KEY not in checkpoint.metadata:
        return {}
    where = f"{checkpoint.path}: metadata key 'imu'"
    try:
        said = json.loads(checkpoint.metadata[METADATA_KEY])
    except json.JSONDecodeError as error:
        raise ImuError(f"{where}: not JSON ({error}); give --arch and --preprocess and remove the key") from error
    if not isinstance(said, dict):
        raise ImuError(f"{where}: not a JSON object; remove it and give --arch and --preprocess")
    for key, fits in METADATA_KINDS.items():
        if said.get(key) is not None and not fits(said[key]):
            raise ImuError(f"{where}: {key!r} is {said[key]!r}, which cannot be; give --{key} and remove it")
    arch = said.get("arch")
    if arch is not None and str(arch).partition(":")[0] not in REGISTRIES:
        raise ImuError(
            f"{where}: names {arch!r}, which is not a registry's model; a checkpoint may not name code, give --arch"
        )
    return said


def load(checkpoint: Checkpoint, name: str | None, pairs: Sequence[str] = (), fallback: str | None = None) -> Loaded:
    """Build the architecture and load the checkpoint into it strictly; in ``eval()`` mode, without gradients.

    ``num_classes`` is passed where the factory takes it, read off the file's head if the default does not fit.

    Args:
        checkpoint: the opened file.
        name: ``--arch``, or None to use what the file's metadata says.
        pairs: ``--arch-arg``.
        fallback: a registry architecture known from a record.

    Raises:
        ImuError: no architecture known, or the tensors do not fit it.
    """
    said = from_metadata(checkpoint)
    chosen, source = next(
        (
            (value, where)
            for value, where in ((name, "--arch"), (said.get("arch"), "metadata"), (fallback, "record"))
            if value
        ),
        (None, ""),
    )
    if chosen is None:
        raise ImuError(
            f"{checkpoint.path}: its architecture is not known; add --arch torchvision:NAME or --arch file.py:factory"
        )
    factory, code = resolve(chosen)
    arguments = parse_arguments(pairs)
    model = _build(factory, chosen, arguments)
    tensors = checkpoint.tensors()
    prefix = checkpoint.prefix(set(model.state_dict()))
    stripped = {key.removeprefix(prefix): value for key, value in tensors.items()}
    if "num_classes" not in arguments and _accepts_num_classes(factory, chosen):
        outputs = _classes_in_file(model, {key: tuple(value.shape) for key, value in stripped.items()})
        if outputs is not None:
            arguments["num_classes"] = outputs
            model = _build(factory, chosen, arguments)
    load_into(model, stripped, str(checkpoint.path))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return Loaded(model.eval(), Architecture(chosen, source, arguments, code), prefix)
