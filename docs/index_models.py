"""Write the index of candidates, ``imu_cli/models/models.json``: names and shapes of every torchvision and timm classifier, as hashes.

Takes some minutes; run it when a new timm or torchvision has models that the index lacks. Everything is built on the meta device:
no memory, no weights, no network.
"""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imu_cli.models import libraries
from imu_cli.models.candidates import INDEX, names_hash, shapes_hash
from imu_cli.models.factories import resolve

VARIANTS = {
    "googlenet": {"aux_logits": False},
    "inception_v3": {"aux_logits": False},
    "vit_b_16": {"image_size": 384},
    "vit_l_16": {"image_size": 512},
    "vit_h_14": {"image_size": 518},
}
"""Arguments by which torchvision's own weights differ in their tensors from what the bare name builds."""
OUT = Path(__file__).parent.parent / "imu_cli" / "models" / INDEX


def _built(factory: Callable[[], nn.Module]) -> nn.Module:
    """On the meta device; in memory where the factory computes widths by tensors, as RegNet's does."""
    try:
        with torch.device("meta"):
            return factory()
    except (NotImplementedError, RuntimeError):
        return factory()


def _shapes(name: str, **arguments: Any) -> dict[str, tuple[int, ...]]:
    made = _built(functools.partial(resolve(name)[0], **arguments))
    return {key: tuple(value.shape) for key, value in made.state_dict().items()}


def _torchvision() -> Iterator[tuple[str, list[str], dict[str, tuple[int, ...]]]]:
    models = libraries.torchvision_models()
    for model in models.list_models(module=models):
        name = f"torchvision:{model}"
        shapes, other = _shapes(name, num_classes=11), _shapes(name, num_classes=12)
        classifier = sorted({key.rpartition(".")[0] for key in shapes if shapes[key] != other[key]})
        yield name, classifier, shapes
        if model in VARIANTS:
            given = " ".join(f"--arch-arg {key}={json.dumps(value)}" for key, value in VARIANTS[model].items())
            yield f"{name} {given}", classifier, _shapes(name, num_classes=11, **VARIANTS[model])


def _timm() -> Iterator[tuple[str, list[str], dict[str, tuple[int, ...]]]]:
    timm = libraries.timm("the index")
    for model in timm.list_models():
        try:
            made = _built(functools.partial(timm.create_model, model, pretrained=False, num_classes=11))
        except Exception as error:  # noqa: BLE001 whatever a library's own factory raises
            print(f"timm:{model}: left out, {type(error).__name__}: {error}"[:160])
            continue
        given = made.pretrained_cfg.get("classifier") or ()
        classifier = [given] if isinstance(given, str) else list(given)
        yield f"timm:{model}", classifier, {key: tuple(value.shape) for key, value in made.state_dict().items()}


def main() -> None:
    """Build every model once and write the index."""
    found: dict[str, list[Any]] = {}
    for source in (_torchvision, _timm):
        for name, classifier, shapes in source():
            found.setdefault(names_hash(shapes), []).append([name, classifier, shapes_hash(shapes, classifier)])
    versions = {
        "torchvision": str(__import__("torchvision").__version__).partition("+")[0],
        "timm": libraries.timm("the index").__version__,
    }
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(found[key])}" for key in sorted(found))
    OUT.write_text(f'{{"made_with": {json.dumps(versions)}, "models": {{\n{lines}\n}}}}\n', encoding="utf-8")
    print(f"{sum(map(len, found.values()))} models, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
