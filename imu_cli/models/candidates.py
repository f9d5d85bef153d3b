"""Which architectures of torchvision and timm a file's tensors fit, from an index of their names and shapes.

Building a thousand models to compare them would take minutes, so ``docs/index_models.py`` has built each once, without memory, and
kept two hashes of it: of its tensors' names, and of their shapes but for the classifier's, which depends on the classes.
A model that this version of the index does not know is not proposed; whatever is chosen is loaded strictly.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import Any

from imu_cli.models import names

INDEX = "models.json"


def names_hash(every: Iterable[str]) -> str:
    """Hash of the tensors' names; batch counters, which old files lack, left out."""
    kept = sorted(name for name in every if not name.endswith(names.COUNTERS))
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:12]


def shapes_hash(shapes: Mapping[str, tuple[int, ...]], classifier: Iterable[str]) -> str:
    """Hash of names and shapes of all tensors outside the modules named in ``classifier``."""
    out = tuple(f"{module}." for module in classifier)
    kept = sorted(
        f"{name} {tuple(shape)}"
        for name, shape in shapes.items()
        if not name.startswith(out) and not name.endswith(names.COUNTERS)
    )
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:12]


@cache
def _index() -> dict[str, Any]:
    text = resources.files(__package__).joinpath(INDEX).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _without_prefix(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]] | None:
    """The same without a first word that every name has; None where there is none."""
    word = names.first_word(shapes)
    return {name.removeprefix(word): shape for name, shape in shapes.items()} if word else None


def find(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What to write after ``--arch`` for every indexed model that has exactly these tensors, torchvision's first."""
    found: dict[str, None] = {}
    plain: dict[str, tuple[int, ...]] | None = dict(shapes)
    for _ in range(names.MOST_WORDS):
        if not plain:
            break
        for model, classifier, wanted in _index()["models"].get(names_hash(plain), []):
            if shapes_hash(plain, classifier) == wanted:
                found[model] = None
        plain = _without_prefix(plain)
    return sorted(found, key=lambda name: (not name.startswith("torchvision:"), name))
