"""``--arch``: from a name to a function that builds the architecture with random weights.

Registry names (``torchvision:``, ``timm:``, ``hf:``) build what those libraries ship and may also stand in a file's metadata, in a
``config.json`` or in a record. A file or module runs the user's code, and only the user may name it.
"""

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from imu_cli.errors import ImuError, RefusedError, nearest
from imu_cli.models import libraries
from imu_cli.models.sidecar import REGISTRIES, UNUSED_KEYS, is_registry, refuse_foreign_config

FROM_OUTSIDE = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights", "weights_backbone"}
)  # fmt: skip
"""Arguments by which a registry's factory would read another file or the network; nobody may give them."""
WEIGHT_SOURCES = frozenset({"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"})
"""Keys of timm's ``pretrained_cfg`` that name weights; nothing is read from there."""
Factory = Callable[..., nn.Module]


def resolve(name: str) -> tuple[Factory, str | None]:
    """The factory that a name stands for, and the hash of the user's file if it is one.

    Raises:
        ImuError: unknown scheme, missing file, module or factory, or a library that is not installed.
    """
    registry, _, model = name.partition(":")
    if registry in REGISTRIES:
        return SCHEMES[registry](model), None
    where, sign, factory = name.rpartition(":")
    if not (sign and where and factory):
        raise ImuError(
            f"--arch {name}: give torchvision:NAME, timm:NAME, hf: (with config.json beside the weights), file.py:factory or "
            "package.module:factory"
        )
    if where.endswith(".py"):
        made = _from_file(Path(where), factory)
        return made, hashlib.sha256(Path(where).read_bytes()).hexdigest()
    if not re.fullmatch(r"[\w.]+", where):
        raise ImuError(f"--arch {name}: {where!r} is neither a registry, a .py file nor a module")
    return _from_package(where, factory), None


def outputs_argument(factory: Factory, name: str) -> str | None:
    """The factory's argument for the number of outputs, to be read off the file's head; None if it takes none."""
    if is_registry(name):
        return "num_labels" if name.startswith("hf:") else "num_classes"
    try:
        return "num_classes" if "num_classes" in inspect.signature(factory).parameters else None
    except (TypeError, ValueError):
        return None


def _inside(arch: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, if none of them makes the library read something else."""
    outside = sorted(FROM_OUTSIDE & set(arguments))
    if outside:
        raise ImuError(f"--arch {arch}: argument {outside[0]!r} would read other weights; leave it out")
    return dict(arguments)


def _torchvision(model: str) -> Factory:
    models = libraries.torchvision_models()
    arch = f"torchvision:{model}"
    if model not in models.list_models():
        raise ImuError(f"--arch {arch}: torchvision has no such model{nearest(model, models.list_models())}")
    # Segmentation and detection models take a second argument by which they would download.
    takes = inspect.signature(models.get_model_builder(model)).parameters
    none = {key: None for key in ("weights", "weights_backbone") if key in takes}

    def build(**arguments: Any) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of initial weights, which are not used
            made: nn.Module = models.get_model(model, **_inside(arch, arguments), **none)
        return made

    return build


def _timm(model: str) -> Factory:
    arch = f"timm:{model}"
    timm = libraries.timm(f"--arch {arch}")
    if not re.fullmatch(r"[\w.\-]+", model) or not timm.is_model(model):
        raise ImuError(f"--arch {arch}: timm has no such model{nearest(model, timm.list_models())}")

    def build(config: Mapping[str, Any] | None = None, **arguments: Any) -> nn.Module:
        given = _inside(arch, arguments)
        about = {} if config is None else {"pretrained_cfg": _about(timm, config, given)}
        made: nn.Module = timm.create_model(model, pretrained=False, **given, **about)
        return made

    return build


def _about(timm: Any, config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A timm config's ``pretrained_cfg`` without what names weights: timm takes channels, size and outputs from it.

    What timm's own reader of a config does on the way (``load_model_config_from_path``) is done here too: a size that the model
    takes as it comes is not fixed by the config.
    """
    fields = set(timm.models.PretrainedCfg.__dataclass_fields__) - WEIGHT_SOURCES
    about = {key: value for key, value in config.items() if key in fields and value is not None}
    if given.get("dynamic_img_size") or given.get("strict_img_size") is False or given.get("use_naflex"):
        about["fixed_input_size"] = False
    return about


def _hf(model: str) -> Factory:
    transformers = libraries.transformers(f"--arch hf:{model}")

    def build(config: Mapping[str, Any] | None = None, **arguments: Any) -> nn.Module:
        if config is None:
            raise ImuError(
                f"--arch hf:{model}: no transformers config; put the config.json that was saved with the weights beside them"
            )
        return _model(transformers, {**config, **arguments})

    return build


TASKS = {"ImageClassification": "ImageClassification", "SequenceClassification": "SequenceClassification",
         "TokenClassification": "TokenClassification",
         "ForCausalLM": "CausalLM", "LMHeadModel": "CausalLM"}  # fmt: skip
"""What the names of transformers' models end in that imu changes, each with an ``AutoModelFor…`` of its own."""
NAMED = ("CausalLM", "TokenClassification")
"""Tasks of a model that its config has to name: without a name it is taken for a classifier of whole samples."""


def _model(transformers: Any, config: Mapping[str, Any]) -> nn.Module:
    """The library's own classifier, language model or vision backbone of this config, in float32; never code that came with the config.

    Raises:
        RefusedError: the config names code of its own, is quantised, or is of neither.
    """
    refuse_foreign_config(config, "config.json")
    kind = config.get("model_type")
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    if kind not in known:
        raise RefusedError(
            f"config.json: model_type {kind!r} is not one of this transformers ({transformers.__version__})"
        )
    made = transformers.AutoConfig.for_model(**{key: value for key, value in config.items() if key not in UNUSED_KEYS})
    named = [str(name) for name in config.get("architectures") or []]
    backbone = _backbone(transformers, made, named)
    if backbone is not None:
        embedder: nn.Module = backbone(made)
        return embedder.float()
    for words, task in TASKS.items():
        auto = getattr(transformers, f"AutoModelFor{task}")
        asked = named or task not in NAMED
        if type(made) in auto._model_mapping and all(words in name for name in named) and asked:
            model: nn.Module = auto.from_config(made, trust_remote_code=False)
            return model.float()
    what = ", ".join(named) or kind
    raise RefusedError(
        f"config.json: {what} is neither an image classifier nor a text or token classifier (…ForImageClassification, "
        "…ForSequenceClassification, …ForTokenClassification), nor a causal language model (…ForCausalLM), nor an embedding model of "
        "images (such as ViTModel), and those are what imu changes"
    )


def _backbone(transformers: Any, config: Any, named: Sequence[str]) -> Any:
    """The class of a model that makes a vector of an image and has no classes, such as ViTModel; None where it is named otherwise."""
    name = named[0] if len(named) == 1 else ""
    found = getattr(transformers, name, None) if re.fullmatch(r"\w+", name) and "For" not in name else None
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    fits = is_model and getattr(found, "config_class", None) is type(config)
    return found if fits and getattr(found, "main_input_name", "") == "pixel_values" else None


SCHEMES: dict[str, Callable[[str], Factory]] = {"torchvision": _torchvision, "timm": _timm, "hf": _hf}


def _from_module(module: Any, where: str, name: str) -> Factory:
    factory = getattr(module, name, None)
    if not callable(factory):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ImuError(f"--arch {where}:{name}: has no factory of that name{nearest(name, names)}")
    return factory  # type: ignore[no-any-return]


def _from_file(path: Path, name: str) -> Factory:
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
    except (Exception, SystemExit) as error:  # sys.exit of somebody's script ends no run without a word
        raise ImuError(f"--arch {path}: cannot be imported ({type(error).__name__}: {error})") from error
    return _from_module(module, str(path), name)


def _from_package(package: str, name: str) -> Factory:
    try:
        module = importlib.import_module(package)
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        said = f"{type(error).__name__}: {error}"
        raise ImuError(f"--arch {package}:{name}: cannot be imported ({said}); is it installed here?") from error
    return _from_module(module, package, name)
