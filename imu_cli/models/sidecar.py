"""What a checkpoint's own files say of it: the metadata key ``imu``, and the ``config.json`` of timm or transformers beside it.

Nothing here builds or imports anything; what is said is data. Registry names only: a checkpoint may not name code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imu_cli.errors import ImuError, RefusedError
from imu_cli.files import checking, reading
from imu_cli.models import layout

REGISTRIES = ("torchvision", "timm", "hf")
METADATA_KEY = "imu"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
UNUSED_KEYS = frozenset({
    "_attn_implementation", "attn_implementation", "_attn_implementation_internal", "_name_or_path", "name_or_path",
    "quantization_config", "torch_dtype", "dtype", "transformers_version", "id2label", "label2id", "use_pretrained_backbone",
})  # fmt: skip
"""Keys of a transformers config that do not say what is computed, or could reach for something outside."""


class MetadataKey(checking.Said):
    """The JSON object under the metadata key ``imu``."""

    arch: str | None = None
    preprocess: str | dict[str, Any] | None = None
    classes: list[str] | None = None


class TimmConfig(checking.Said):
    """timm's ``config.json``, as far as every layout of it agrees."""

    architecture: str
    pretrained_cfg: dict[str, Any] | None = None
    model_args: dict[str, Any] | None = None


class TransformersConfig(checking.Said):
    """transformers' ``config.json``, as far as every model's has it; what else is in it the library reads."""

    model_type: str
    architectures: list[str] | None = None


@dataclass(frozen=True)
class Said:
    """What one source says: architecture with its arguments, preprocessing, class names in id order; None where it is silent."""

    source: str
    arch: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Any = None
    classes: tuple[str, ...] | None = None


def is_registry(name: str) -> bool:
    """Whether an architecture's name is a registry's, so that naming it runs no code of anybody's."""
    return name.partition(":")[0] in REGISTRIES


def refuse_foreign_config(config: Mapping[str, Any], where: object) -> None:
    """Refuse a transformers config that needs code of its own, or whose weights are not floats.

    Raises:
        RefusedError: with the reason.
    """
    if config.get("auto_map"):
        raise RefusedError(
            f"{where}: names code of its own (auto_map), which a checkpoint may not; imu builds only what transformers ships"
        )
    if config.get("quantization_config"):
        raise RefusedError(f"{where}: the model is quantised (quantization_config); imu needs its float weights")


def read(path: Path, metadata: Mapping[str, str], folder: Path) -> list[Said]:
    """What the metadata and the config beside the weights say, in the order in which they are believed.

    Args:
        path: the model, for messages.
        metadata: of the safetensors file.
        folder: where the weights lie.

    Raises:
        ImuError: not JSON, values that cannot be, or the metadata name code.
        RefusedError: the config is of a model that imu does not handle.
    """
    found = [_metadata(path, metadata), _config(folder)]
    return [said for said in found if said is not None]


def _metadata(path: Path, metadata: Mapping[str, str]) -> Said | None:
    if METADATA_KEY not in metadata:
        return None
    where = f"{path}: metadata key 'imu'"
    remedy = "give --arch, --preprocess or --classes and remove it"
    said = checking.checked(MetadataKey, reading.parse_json(metadata[METADATA_KEY].encode(), where), where, remedy)
    arch = said.arch
    if arch is not None and not is_registry(arch):
        raise ImuError(
            f"{where}: names {reading.shown(arch)}, which is not a registry's model; a checkpoint may not name code, give --arch"
        )
    return Said("metadata", arch, {}, said.preprocess, None if said.classes is None else tuple(said.classes))


def _json(folder: Path, name: str) -> dict[str, Any] | None:
    """A JSON object beside the weights; None where there is no such file."""
    return reading.read_json(layout.inside(folder, name)) if (folder / name).is_file() else None


def _config(folder: Path) -> Said | None:
    config = _json(folder, CONFIG)
    if config is None:
        return None
    if "model_type" in config:
        return _transformers(folder, config)
    if isinstance(config.get("architecture"), str):
        return _timm(folder, config)
    return None  # another program's config


def _timm(folder: Path, config: Mapping[str, Any]) -> Said:
    where = folder / CONFIG
    checking.checked(TimmConfig, config, str(where), "give --arch and --preprocess")
    about = config.get("pretrained_cfg") or {key: value for key, value in config.items() if key != "model_args"}
    arguments = config.get("model_args") or {}
    outputs = config.get("num_classes", about.get("num_classes"))
    if isinstance(outputs, int):
        arguments = {"num_classes": outputs, **arguments}
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    shown = {key: about[key] for key in keys if about.get(key) is not None}
    return Said(
        "config.json (timm)",
        f"timm:{config['architecture']}",
        arguments,
        {"library": "timm", "config": shown} if shown else None,
        _names(config.get("label_names") or about.get("label_names"), where, "label_names"),
    )


def _transformers(folder: Path, config: Mapping[str, Any]) -> Said:
    where = folder / CONFIG
    refuse_foreign_config(config, where)
    checking.checked(TransformersConfig, config, str(where), "give --arch and --preprocess")
    labels = config.get("id2label")
    plain = {key: value for key, value in config.items() if key not in UNUSED_KEYS}
    if isinstance(labels, dict):
        plain["num_labels"] = len(labels)
    processor = _json(folder, PROCESSOR)
    if processor is not None:
        refuse_foreign_config(processor, folder / PROCESSOR)
    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else str(config["model_type"])
    return Said(
        "config.json (transformers)",
        f"hf:{name}",
        {"config": plain},
        None if processor is None else {"library": "transformers", "config": processor},
        _names(labels, where, "id2label"),
    )


def _names(labels: Any, where: Path, key: str) -> tuple[str, ...] | None:
    """Class names in id order, from a list or from a mapping of ids to names."""
    if not labels:
        return None
    if isinstance(labels, dict):
        try:
            by_id = {int(number): name for number, name in labels.items()}
        except ValueError as error:
            raise ImuError(f"{where}: {key}: {error}; give --classes FILE") from error
        if set(by_id) != set(range(len(by_id))):
            return None  # ids with gaps: the model has outputs without names
        labels = [by_id[number] for number in range(len(by_id))]
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise ImuError(f"{where}: {key}: not a list of names; mend it, or give --classes FILE")
    return tuple(labels)
