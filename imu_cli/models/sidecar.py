"""What a checkpoint's own files say of it: the metadata key ``imu``, and the ``config.json`` of timm or transformers beside it.

Nothing here builds or imports anything; what is said is data. Registry names only: a checkpoint may not name code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imu_cli.errors import ImuError, RefusedError
from imu_cli.files import checking, reading
from imu_cli.models import kinds, layout

REGISTRIES = ("torchvision", "timm", "hf")
METADATA_KEY = "imu"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
NESTED = "processor_config.json"
"""Where transformers 5 keeps the image processor of a model of several kinds of input, under ``image_processor``."""

UNUSED_KEYS = frozenset({
    "_attn_implementation", "attn_implementation", "_attn_implementation_internal", "_name_or_path", "name_or_path",
    "quantization_config", "torch_dtype", "dtype", "transformers_version", "id2label", "label2id", "use_pretrained_backbone",
    "problem_type",
})  # fmt: skip
"""Keys of a transformers config that do not say what is computed, or could reach for something outside."""


class MetadataKey(checking.Said):
    """The JSON object under the metadata key ``imu``."""

    arch: str | None = None
    arguments: dict[str, Any] | None = None
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
    """What one source says: architecture with its arguments, preprocessing, class names in id order; None where it is silent.

    ``wrong`` holds what cannot be read, by ``arch``, ``preprocess`` or ``classes``: an error only where no option says it.
    """

    source: str
    arch: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Any = None
    classes: tuple[str, ...] | None = None
    wrong: Mapping[str, ImuError] = field(default_factory=dict)

    @property
    def steps(self) -> Any:
        """The preprocessing, or what is wrong with it."""
        return self.preprocess or self.wrong.get("preprocess")

    def refuse(self, what: str) -> None:
        """Raise what is wrong with this source's ``arch``, ``preprocess`` or ``classes``, now that it is needed.

        Raises:
            ImuError: it cannot be read.
        """
        if what in self.wrong:
            raise self.wrong[what]


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


HEADS: Mapping[str, str] = {
    "multi_label_classification": (
        "a multi-label model, whose outputs are sigmoids of their own; imu lowers a class against the others, by softmax margins, "
        "which means nothing there. If it was trained with softmax, write single_label_classification there"
    ),
    "regression": "a regression model, whose outputs are numbers and no classes; there is no class to forget",
}
"""What a transformers config's ``problem_type`` says of heads that are no softmax over classes."""


def refuse_other_heads(folder: Path) -> None:
    """Refuse a model whose config says that its head is no softmax over classes, however it is built; other files say nothing.

    Raises:
        RefusedError: with what it is.
    """
    try:
        config = _json(folder, CONFIG) or {}
    except ImuError:
        return  # told where it is read for what it says
    kind = config.get("problem_type")
    if isinstance(kind, str) and kind in HEADS:
        raise RefusedError(f"{folder / CONFIG}: problem_type is {kind}: {HEADS[kind]}")


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
    named = None if said.classes is None else tuple(said.classes)
    return Said("metadata", arch, said.arguments or {}, said.preprocess, named)


def _json(folder: Path, name: str) -> dict[str, Any] | None:
    """A JSON object beside the weights; None where there is no such file."""
    if not (folder / name).is_file():
        return None
    path = layout.inside(folder, name)
    kinds.refuse_pointer(path)
    return reading.read_json(path)


def _config(folder: Path) -> Said | None:
    try:
        config = _json(folder, CONFIG)
    except ImuError as error:
        return Said(CONFIG, wrong=dict.fromkeys(("arch", "preprocess", "classes"), error))
    if config is None:
        return None
    if config.get("model_type") == TIMM_WRAPPER:
        return _timm(folder, config, "config.json (timm, by transformers)")
    if "model_type" in config:
        return _transformers(folder, config)
    if isinstance(config.get("architecture"), str):
        return _timm(folder, config, "config.json (timm)")
    return None  # another program's config


TIMM_WRAPPER = "timm_wrapper"
"""transformers' ``model_type`` of timm models: their folder is timm's, with keys of transformers beside timm's."""
PRIVATE = ("label_names", "label_descriptions", "labels", "tag", "license", "description", "origin_url", "paper_name",
           "paper_ids", "notes")  # fmt: skip
"""Keys of timm's ``pretrained_cfg`` that say nothing of the function."""


def _timm(folder: Path, config: Mapping[str, Any], source: str) -> Said:
    where = folder / CONFIG
    try:
        checking.checked(TimmConfig, config, str(where), "give --arch and --preprocess")
    except ImuError as error:
        return Said(source, wrong={"arch": error, "preprocess": error})
    is_flat = not config.get("pretrained_cfg")
    about = (
        {key: value for key, value in config.items() if key != "model_args"} if is_flat else config["pretrained_cfg"]
    )
    arguments = config.get("model_args") or {}
    outputs = config.get("num_classes", about.get("num_classes"))
    built = {key: value for key, value in about.items() if key not in PRIVATE}
    given: dict[str, Any] = {}
    if (
        config.get("model_type") != TIMM_WRAPPER
    ):  # transformers builds from name and arguments alone, timm from all of it
        given["config"] = {**built, "global_pool": config.get("global_pool")}
    if isinstance(outputs, int):
        given["num_classes"] = outputs
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    shown = {key: about[key] for key in keys if about.get(key) is not None}
    labels = next(
        (found for key in ("label_names", "labels") for found in (config.get(key), about.get(key)) if found), None
    )
    classes, wrong = _names(labels, where, "label_names")
    return Said(
        source,
        f"timm:{config['architecture']}",
        {**given, **arguments},
        {"library": "timm", "config": shown} if shown else None,
        classes,
        wrong,
    )


def _transformers(folder: Path, config: Mapping[str, Any]) -> Said:
    where, source = folder / CONFIG, "config.json (transformers)"
    wrong: dict[str, ImuError] = {}
    try:
        refuse_foreign_config(config, where)
        checking.checked(TransformersConfig, config, str(where), "give --arch and --preprocess")
    except ImuError as error:
        wrong["arch"] = error
    labels = config.get("id2label") or config.get("label2id")
    plain = {key: value for key, value in config.items() if key not in UNUSED_KEYS}
    if isinstance(labels, dict | list) and labels:
        plain["num_labels"] = len(labels)
    if plain.get("num_labels") == 0:
        del plain["num_labels"]  # a model without a head: how many outputs it has, the file knows
    preprocess = None
    try:
        preprocess = _processor(folder, config)
    except ImuError as error:
        wrong["preprocess"] = error
    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else str(config["model_type"])
    classes, unreadable = _names(labels, where, "id2label" if config.get("id2label") else "label2id")
    arch = None if "arch" in wrong else f"hf:{name}"
    return Said(source, arch, {"config": plain}, preprocess, classes, wrong | unreadable)


def _processor(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The image processor's config beside the weights, from the files that transformers reads, in its order; None without one.

    Raises:
        ImuError: not JSON, or it needs code of its own.
    """
    nested = _json(folder, NESTED) or {}
    inner = nested.get("image_processor")
    if inner is not None and not isinstance(inner, dict):
        raise ImuError(f"{folder / NESTED}: image_processor is no object; give --preprocess")
    processor = _json(folder, PROCESSOR) if inner is None else inner
    if processor is None:
        return None
    refuse_foreign_config(processor, folder / (PROCESSOR if inner is None else NESTED))
    said: dict[str, Any] = {"library": "transformers", "config": processor}
    if not processor.get("image_processor_type") and not processor.get("feature_extractor_type"):
        named = config.get("image_processor_type")
        if isinstance(named, str):
            said["config"] = {**processor, "image_processor_type": named}
        else:
            said["model_type"] = config.get("model_type")
    return said


def _names(labels: Any, where: Path, key: str) -> tuple[tuple[str, ...] | None, dict[str, ImuError]]:
    """Class names in id order, from a list or from a mapping of ids to names or of names to ids; and what is wrong with them."""
    if not labels:
        return None, {}
    if isinstance(labels, dict):
        labels = _by_id(labels)
        if labels is None:
            return None, {}
    if isinstance(labels, list) and all(isinstance(name, str) for name in labels):
        return tuple(name.strip() for name in labels), {}
    odd = next((name for name in labels if not isinstance(name, str)), labels) if isinstance(labels, list) else labels
    return None, {
        "classes": ImuError(f"{where}: {key}: {repr(odd)[:40]} is not a name; mend it, or give --classes FILE")
    }


def _by_id(labels: Mapping[str, Any]) -> list[Any] | None:
    """The values in the order of their ids; None where ids have gaps, so that the model has outputs without names.

    A mapping of names to ids, which is transformers' ``label2id``, is turned round.
    """
    pairs = list(labels.items())
    if not all(_is_id(key) for key, _ in pairs) and all(type(value) is int for _, value in pairs):
        pairs = [(str(value), key) for key, value in pairs]
    if not all(_is_id(key) for key, _ in pairs):
        return [dict(pairs)]
    by_id = {int(key): value for key, value in pairs}
    if set(by_id) != set(range(len(pairs))):
        return None
    values = [by_id[number] for number in range(len(by_id))]
    return None if values == list(range(len(values))) else values


def _is_id(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) < 10
