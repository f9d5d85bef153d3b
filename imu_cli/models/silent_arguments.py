"""Arguments of a registry's factory that change what is computed and no tensor, so that no file shows them.

A model that was trained with another of them loads without a complaint and computes something else. Those by which a library's own
weights differ from its factory's default are asked for; the others are told, by name, for each architecture that takes them.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from imu_cli.errors import ImuError


class UnsaidError(ImuError):
    """An argument that nobody gave, and that nobody may guess."""


SILENT = (
    "transform_input", "replace_stride_with_dilation", "dilated", "activation", "activation_layer",  # torchvision's
    "global_pool", "act_layer", "norm_layer", "norm_eps", "output_stride", "pad_type", "aa_layer", "conv_layer", "mlp_act",
    "cpe_act", "dw_act_layer", "attn_act_layer", "replace_stem_pool", "pool_include_prefix", "num_heads", "window_size",
    "rope_temperature", "rope_theta", "rope_type", "eta", "pool_type", "layer_scale",
)  # fmt: skip
"""Names of such arguments in the constructors of torchvision and timm."""

ASKED: Mapping[str, str] = {
    "transform_input": (
        "true for torchvision's own weights and what was fine-tuned from them, false, the default, for a model that was trained from "
        "scratch; with the wrong one of them the accuracy falls without a word"
    )
}
"""Those that are not guessed, and how to know them."""

BUILDERS: Mapping[str, tuple[str, ...]] = {"MobileNetV3": ("dilated",)}
"""Arguments that a builder takes and its class does not show."""

UNKNOWN_SOURCES = ("--arch", "metadata")
"""Sources that give a name alone; a library's config lists the arguments that a model was built with."""


def silent(model: nn.Module, name: str) -> list[str]:
    """The arguments of a registry's model that leave no trace in its tensors, in the order of ``SILENT``."""
    registry = name.partition(":")[0]
    if registry not in ("torchvision", "timm"):
        return []
    taken = {*inspect.signature(type(model).__init__).parameters, *BUILDERS.get(type(model).__name__, ())}
    if registry == "torchvision":
        taken -= {"num_heads", "window_size", "layer_scale"}  # fixed by each name
    return [argument for argument in SILENT if argument in taken]


def refuse_unsaid(model: nn.Module, name: str, arguments: Mapping[str, Any]) -> None:
    """Ask for an argument that the library's own weights and its default disagree about.

    Raises:
        ImuError: nobody says it.
    """
    for argument in silent(model, name):
        if argument in ASKED and argument not in arguments:
            raise UnsaidError(
                f"--arch {name}: {argument} changes what is computed and leaves no trace in the tensors; add --arch-arg "
                f"{argument}=true or --arch-arg {argument}=false: {ASKED[argument]}"
            )


def unsaid(model: nn.Module, name: str, arguments: Mapping[str, Any], source: str) -> list[str]:
    """A note of the arguments that nobody gave."""
    found = [argument for argument in silent(model, name) if argument not in arguments]
    if not found or source not in UNKNOWN_SOURCES:
        return []
    return [
        f"{name}: {', '.join(found)}: as the library builds it by default, since no tensor shows these; if it was trained with "
        "others, give --arch-arg, or a factory (--arch file.py:factory) for what is no plain value"
    ]


def overlooked(model: nn.Module, name: str, arguments: Mapping[str, Any]) -> list[str]:
    """A note of a pooling that an older timm config names beside its arguments, where timm itself does not read it."""
    config = arguments.get("config")
    if not name.startswith("timm:") or not isinstance(config, Mapping) or "global_pool" in arguments:
        return []
    named, built = config.get("global_pool"), _pooling(model)
    if not isinstance(named, str) or built is None or named == built:
        return []
    return [
        f"{name}: config.json names the pooling {named!r} where timm does not read it, and timm builds {built!r} from such a config, "
        f"which is computed with; --arch-arg global_pool={named} computes with the other"
    ]


def _pooling(model: nn.Module) -> str | None:
    """The global pooling that a timm model was built with, where it says."""
    for holder in (model, getattr(model, "head", None)):
        pool = getattr(holder, "global_pool", None)
        named = pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
        if isinstance(named, str):
            return named
    return None
