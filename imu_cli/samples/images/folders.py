"""Folders of images, in the order that torchvision's ``ImageFolder`` has."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from imu_cli import signals
from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.images.stores import Files

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision's ``ImageFolder`` takes for an image."""

LISTS = ("csv", "tsv", "jsonl", "json", "ndjson", "conll", "parquet", "arrow")
"""Endings of what is likely meant where a folder holds no image."""
_SPLITS = {"train", "val", "valid", "validation", "test"}


@dataclass
class _Found:
    """What a walk through a folder has met."""

    files: list[str] = field(default_factory=list)
    real: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Folder:
    """A folder on the walk: its name below the root, where it really is, and the real folders above it."""

    name: str
    real: str
    above: tuple[str, ...]


def inside(root: str, path: str) -> bool:
    """Whether a resolved path is the resolved folder ``root`` or below it."""
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def is_image_name(name: str) -> bool:
    """Whether the extension is one that torchvision takes for an image."""
    return name.lower().endswith(EXTENSIONS)


def _entries(folder: str, name: str, found: _Found) -> list["os.DirEntry[str]"]:
    try:
        return list(os.scandir(folder))
    except OSError as error:
        found.problems.append(f"{name}: cannot be listed ({error.strerror}); allow reading it, or remove it")
        return []


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """``entry.is_dir()``, where a link to itself is no folder instead of an OSError."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _scan(root: str, start: _Folder, found: _Found) -> None:
    """Files below ``start`` as ``sorted(os.walk(start, followlinks=True))`` with sorted names has them."""
    listed: list[tuple[str, list[str]]] = []
    pending = [start]
    while pending:
        signals.check()
        folder = pending.pop()
        names: list[str] = []
        for entry in _entries(folder.real, folder.name or ".", found):
            name = f"{folder.name}/{entry.name}" if folder.name else entry.name
            real = f"{folder.real.rstrip('/')}/{entry.name}"
            if entry.is_symlink():
                real = os.path.realpath(real)
            if _is_folder(entry):
                if _may_enter(root, name, real, folder, found):
                    pending.append(_Folder(name, real, (*folder.above, folder.real)))
            elif not is_image_name(name):
                found.skipped.append(name)
            elif _may_read(root, name, real, entry, found):
                names.append(name)
                if real != f"{root.rstrip('/')}/{name}":
                    found.real[name] = real
        listed.append((folder.name, sorted(names)))
    found.files += [name for _, names in sorted(listed) for name in names]


def _may_enter(root: str, name: str, real: str, folder: _Folder, found: _Found) -> bool:
    if not inside(root, real):
        found.problems.append(f"{name}: is a link to {real}, outside the folder; copy it in, or name that folder")
    elif real == folder.real or real in folder.above:
        found.problems.append(f"{name}: is a link to a folder above itself; remove it")
    else:
        return True
    return False


def _may_read(root: str, name: str, real: str, entry: "os.DirEntry[str]", found: _Found) -> bool:
    if not _is_file(entry):
        found.problems.append(f"{name}: is a broken link or no regular file; remove it")
    elif not inside(root, real):
        found.problems.append(f"{name}: is a link to {real}, outside the folder; copy the image in")
    else:
        return True
    return False


def _walk(root: str, below: str = "") -> _Found:
    found = _Found()
    real = os.path.realpath(os.path.join(root, below))
    if not inside(root, real):
        found.problems.append(f"{below}: is a link to {real}, outside the folder; copy it in, or name that folder")
    else:
        _scan(root, _Folder(below, real, (root,) if below else ()), found)
    return found


def _join(found: _Found, part: _Found) -> None:
    found.files += part.files
    found.real |= part.real
    found.skipped += part.skipped
    found.problems += part.problems


def _skipped_notes(source: str, skipped: list[str]) -> tuple[str, ...]:
    if not skipped:
        return ()
    some = ", ".join(sorted(skipped)[:3]) + (", …" if len(skipped) > 3 else "")
    return (f"{source}: {len(skipped)} files are left out, their extension is not an image's ({some})",)


def _real_folder(source: str, path: Path) -> str:
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "no such folder"
        raise ImuError(
            f"{source}: {what}; name a folder of images, a .csv, .tsv, .jsonl or .conll, or cifar10:DIR and the like"
        )
    return os.path.realpath(path)


def _of_files(source: str, path: Path, root: str, found: _Found, labels: list[int]) -> SampleSet:
    if found.problems:
        raise InvalidRowsError([os.path.join(path, problem) for problem in sorted(found.problems)])
    store = Files(Path(root), str(path), found.files, found.real)
    notes = _skipped_notes(source, found.skipped)
    return SampleSet(source, found.files, labels, None, store, range(len(found.files)), notes=notes)


def open_flat(path: Path, source: str | None = None, only: Sequence[str] = ("",)) -> SampleSet:
    """All images below a folder, or below some of its sub-folders ``only``, at any depth, with unknown labels: they are no classes.

    Raises:
        ImuError: no such folder, or no image in it.
        InvalidRowsError: links that leave the folder, lead nowhere or in circles.
    """
    shown = str(path) if source is None else source
    root = _real_folder(shown, path)
    found = _Found()
    for name in only:
        _join(found, _walk(root, name))
    images = _of_files(shown, path, root, found, [UNKNOWN] * len(found.files))
    if not len(images):
        raise ImuError(f"{shown}: holds no image ({' '.join(EXTENSIONS)})" + _hint(path))
    return images


def open_folder(path: Path, source: str | None = None) -> SampleSet:
    """Class folders as torchvision's ``ImageFolder`` reads them: same classes, same order, same ids.

    A hidden folder without images (``.ipynb_checkpoints``) is no class. A folder of images without sub-folders that
    hold any is a set with unknown labels.

    Raises:
        ImuError: no such folder, no image in it, or its sub-folders are splits.
        InvalidRowsError: links that leave the folder, lead nowhere or in circles.
    """
    shown = str(path) if source is None else source
    root = _real_folder(shown, path)
    entries = _listing(shown, root)
    names = sorted(entry.name for entry in entries if _is_folder(entry))
    walked = {name: _walk(root, name) for name in names}
    met = {name: part for name, part in walked.items() if part.files or part.problems or not name.startswith(".")}
    if not any(part.files or part.problems for part in met.values()):
        return open_flat(path, source)
    if set(met) <= _SPLITS and all("/" in file[len(name) + 1 :] for name, part in met.items() for file in part.files):
        raise ImuError(f"{shown}: holds splits ({', '.join(met)}), not classes; name one, such as {path / names[0]}")
    stray = sum(_is_file(entry) and is_image_name(entry.name) for entry in entries)
    return _classes(shown, path, root, met, stray)


def _listing(source: str, root: str) -> list["os.DirEntry[str]"]:
    found = _Found()
    entries = _entries(root, source, found)
    if found.problems:
        raise InvalidRowsError(found.problems)
    return entries


def _classes(source: str, path: Path, root: str, met: Mapping[str, _Found], stray: int) -> SampleSet:
    found, labels = _Found(), []
    for label, part in enumerate(met.values()):
        _join(found, part)
        labels += [label] * len(part.files)
    images = _of_files(source, path, root, found, labels)
    notes = (f"{source}: {stray} images beside the class folders are left out, as torchvision does",) * bool(stray)
    order = "class folders sorted as strings"
    return replace(images, classes=tuple(met), class_order=order, notes=images.notes + notes)


def _hint(path: Path) -> str:
    """What a folder without images looks like to someone who knows torchvision's data sets."""
    marks = {
        "cifar10": ("cifar-10-batches-py", "data_batch_1"),
        "cifar100": ("cifar-100-python", "train"),
        "mnist": ("MNIST", "train-images-idx3-ubyte"),
        "fashion-mnist": ("FashionMNIST",),
        "svhn": ("train_32x32.mat", "test_32x32.mat"),
    }
    kinds = [kind for kind, names in marks.items() if any((path / name).exists() for name in names)]
    lists = sorted(file for ending in LISTS for file in path.glob(f"*.{ending}"))
    if lists:
        return f"; did you mean {lists[0]}?"
    return f"; did you mean {kinds[0]}:{path}?" if kinds else "; name the folder that holds the class folders"
