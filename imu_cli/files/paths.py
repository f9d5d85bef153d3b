"""Values that hold a path, moved from one folder to another: of a YAML file, of a record."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

PathKind = Literal["file", "data", "forget", "arch", "preprocess"]
"""What kind of path an option holds: how a relative one in a YAML file is resolved against that file's folder."""
SCHEMES = ("imagefolder", "cifar10", "cifar100", "mnist", "fashion-mnist", "svhn", "market1501", "mars", "tofu")
SPLITS = ("train", "test", "extra", "query", "bounding_box_train", "bounding_box_test", "bbox_train", "bbox_test")
"""What may stand after ``#`` in the name of a data set."""
SELECTORS = ("class", "index", "id", "group", "camera", "coarse")


def _moved(path: str, folder: Path) -> str:
    path = os.path.expanduser(path)  # ~ is the same place in any folder
    return path if Path(path).is_absolute() else str(folder / path)


def _place_data(value: str, move: Callable[[str], str]) -> str:
    scheme, sign, rest = value.partition(":")
    if sign and scheme in SCHEMES:
        return f"{scheme}:{_place_data(rest, move)}"
    path, sign, split = value.rpartition("#")
    return f"{move(path)}#{split}" if sign and split in SPLITS else move(value)


def _place_arch(value: str, move: Callable[[str], str]) -> str:
    path, sign, factory = value.rpartition(":")
    return f"{move(path)}:{factory}" if sign and path.endswith(".py") else value


def is_selector(value: str) -> bool:
    """Whether it reads ``class=…``, ``id=…`` or another of ``SELECTORS``; a file of such a name needs ``./``."""
    name, sign, _ = value.partition("=")
    return bool(sign) and name in SELECTORS


def _place_forget(value: str, move: Callable[[str], str]) -> str:
    if is_selector(value) or value == "-":
        return value
    moved = _place_data(value, move)
    return f"./{moved}" if is_selector(moved) else moved  # a file called class=x.csv stays a file


def _place_preprocess(value: str, move: Callable[[str], str]) -> str:
    return move(value) if value.endswith((".yaml", ".yml")) else value


def _place_file(value: str, move: Callable[[str], str]) -> str:
    return move(value)


PLACERS: dict[PathKind, Callable[[str, Callable[[str], str]], str]] = {
    "file": _place_file,
    "data": _place_data,
    "arch": _place_arch,
    "forget": _place_forget,
    "preprocess": _place_preprocess,
}


def placed(value: Any, kind: PathKind, folder: Path) -> Any:
    """A value that holds a path, with a relative path taken from ``folder``; other values as they are."""
    if isinstance(value, list):
        return [placed(item, kind, folder) for item in value]
    if not isinstance(value, str) or not value:
        return value
    return PLACERS[kind](value, lambda path: os.path.relpath(_moved(path, folder)) if folder != Path() else path)


def relative_to(value: Any, kind: PathKind, folder: Path) -> Any:
    """The same value with its path written relative to ``folder``, as records hold it."""
    if isinstance(value, list):
        return [relative_to(item, kind, folder) for item in value]
    if not isinstance(value, str) or not value:
        return value
    return PLACERS[kind](value, lambda path: os.path.relpath(os.path.expanduser(path), folder))
