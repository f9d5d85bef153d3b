"""Where images come from: class folders, and torchvision's CIFAR, MNIST, Fashion-MNIST and SVHN from local files.

Every reader returns an ``ImageSet`` in the order that torchvision has, so that an index and a class id mean the same.
"""

import gzip
import io
import math
import os
import pickle
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.samples.columns import RowNames, numbers
from imu_cli.samples.dataset import UNKNOWN, Files, ImageSet, Pixels, nearest
from imu_cli.samples.vectors import is_features, open_features

Role = Literal["data", "test", "retain", "forget"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What torchvision's ``ImageFolder`` takes for an image."""

DIGITS = tuple("0123456789")
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_SPLITS = {"train", "val", "valid", "validation", "test"}


# --- folders


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


def _skipped_notes(source: str, skipped: list[str]) -> tuple[str, ...]:
    if not skipped:
        return ()
    some = ", ".join(sorted(skipped)[:3]) + (", …" if len(skipped) > 3 else "")
    return (f"{source}: {len(skipped)} files are left out, their extension is not an image's ({some})",)


def _real_folder(source: str, path: Path) -> str:
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "no such folder"
        raise ImuError(f"{source}: {what}; name a folder of images, or cifar10:DIR and the like")
    return os.path.realpath(path)


def _of_files(source: str, path: Path, root: str, found: _Found, labels: list[int]) -> ImageSet:
    if found.problems:
        raise InvalidRowsError([os.path.join(path, problem) for problem in sorted(found.problems)])
    store = Files(Path(root), str(path), found.files, found.real)
    notes = _skipped_notes(source, found.skipped)
    return ImageSet(source, found.files, labels, None, store, range(len(found.files)), notes=notes)


def open_flat(path: Path, source: str | None = None) -> ImageSet:
    """All images below a folder, at any depth, with unknown labels: sub-folders are not classes.

    Raises:
        ImuError: no such folder, or no image in it.
        InvalidRowsError: links that leave the folder, lead nowhere or in circles.
    """
    shown = str(path) if source is None else source
    root = _real_folder(shown, path)
    found = _walk(root)
    images = _of_files(shown, path, root, found, [UNKNOWN] * len(found.files))
    if not len(images):
        raise ImuError(f"{shown}: holds no image ({' '.join(EXTENSIONS)})" + _hint(path))
    return images


def open_folder(path: Path, source: str | None = None) -> ImageSet:
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


def _classes(source: str, path: Path, root: str, met: Mapping[str, _Found], stray: int) -> ImageSet:
    found, labels = _Found(), []
    for label, part in enumerate(met.values()):
        found.files += part.files
        found.real |= part.real
        found.skipped += part.skipped
        found.problems += part.problems
        labels += [label] * len(part.files)
    images = _of_files(source, path, root, found, labels)
    notes = (f"{source}: {stray} images beside the class folders are left out, as torchvision does",) * bool(stray)
    return ImageSet(
        source,
        images.names,
        labels,
        tuple(met),
        images.store,
        images.positions,
        class_order="class folders sorted as strings",
        notes=images.notes + notes,
    )


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
    return f"; did you mean {kinds[0]}:{path}?" if kinds else "; name the folder that holds the class folders"


# --- arrays


def _of_array(
    source: str,
    identity: str,
    values: NDArray[np.uint8],
    labels: list[int],
    classes: tuple[str, ...],
    columns: Mapping[str, list[str]] | None = None,
) -> ImageSet:
    if len(values) != len(labels):
        raise ImuError(f"{source}: holds {len(values)} images and {len(labels)} labels; the files are damaged")
    if not set(map(type, labels)) <= {int} or not 0 <= min(labels, default=0) <= max(labels, default=0) < len(classes):
        odd = next(r for r, label in enumerate(labels) if type(label) is not int or not 0 <= label < len(classes))
        raise ImuError(f"{source}: row {odd} has label {labels[odd]}, classes are 0 to {len(classes) - 1}")
    return ImageSet(
        source,
        RowNames(range(len(labels))),
        numbers(labels),
        classes,
        Pixels(identity, values),
        range(len(labels)),
        class_order="the data set's own order",
        columns=columns or {},
    )


def _home(source: str, path: Path, inner: tuple[str, ...], wanted: tuple[str, ...]) -> Path:
    """The folder that holds one of the wanted files: what torchvision calls root, or the data set's own folder."""
    for folder in (path, *(path / name for name in inner)):
        if any((folder / name).is_file() for name in wanted):
            return folder.resolve()
    places = ", ".join(str(path / name) for name in ("", *inner))
    raise ImuError(f"{source}: found no {wanted[0]} in {places}; nothing is downloaded, put the files there")


class _Array:
    """Stands in for numpy's array while a pickle is read: takes plain numbers and nothing else."""

    values: NDArray[Any] = np.empty(0, np.int8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        # A pickle of Python 2 holds the bytes as text, one character a byte.
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        self.values = _numbers(data, dtype, shape, "F" if fortran else "C")


class _Dtype:
    """Stands in for ``numpy.dtype``: a letter, a width and a byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


def _numbers(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    if not isinstance(dtype, _Dtype) or not re.fullmatch(r"[iu][1248]", str(dtype.code)):
        raise pickle.UnpicklingError("an array of something other than whole numbers")
    kind = np.dtype((dtype.order if dtype.order in ("<", ">") else "=") + dtype.code)
    return np.frombuffer(bytes(data), kind).reshape(tuple(shape), order=order)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.values = _numbers(data, dtype, shape, order)
    return array


_NUMPY: dict[str, Any] = {
    "_reconstruct": lambda *_: _Array(),
    "_frombuffer": _from_buffer,
    "ndarray": _Array,
    "dtype": _Dtype,
}


class _BatchUnpickler(pickle.Unpickler):
    """Reads lists, numbers, text and numpy arrays of whole numbers. No name in the file reaches real code."""

    def find_class(self, module: str, name: str) -> Any:
        """The harmless stand-in for the few names that such batches hold.

        Raises:
            pickle.UnpicklingError: any other name.
        """
        if module.partition(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it wants {module}.{name}, which no batch of images needs")


def _batch(source: str, path: Path) -> dict[str, Any]:
    """One pickled batch as a dict; arrays are in ``_Array``."""
    if not path.is_file():
        raise ImuError(f"{source}: {path} is missing; nothing is downloaded, put it there")
    try:
        found = _BatchUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except Exception as error:  # hostile or torn pickles make the unpickler raise anything at all
        raise ImuError(f"{source}: {path} is no batch of images ({error}); get the file again") from error
    if not isinstance(found, dict):
        raise ImuError(f"{source}: {path} holds a {type(found).__name__}, not a batch; get the file again")
    return found


def _listed(source: str, path: Path, batch: Mapping[str, Any], key: str) -> list[Any]:
    found = batch.get(key)
    if isinstance(found, _Array):
        found = found.values.tolist()
    if not isinstance(found, list):
        raise ImuError(f"{source}: {path} has no list '{key}'; get the file again")
    return found


def _cifar_images(source: str, path: Path, batch: Mapping[str, Any]) -> NDArray[np.uint8]:
    found = batch.get("data")
    if not isinstance(found, _Array) or found.values.dtype != np.uint8 or found.values.shape[1:] != (3072,):
        raise ImuError(f"{source}: {path} has no uint8 array 'data' of 3,072 columns; get the file again")
    return found.values


def _cifar_pixels(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of 3,072 bytes, one channel after the other, as images with the channels last."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def open_cifar10(path: Path, source: str, split: str) -> ImageSet:
    """CIFAR-10's Python batches in the official order, without torchvision's check of the archive's MD5 sums.

    Raises:
        ImuError: a file is missing or damaged, or wants to run code.
    """
    home = _home(source, path, ("cifar-10-batches-py",), ("data_batch_1", "test_batch"))
    parts = [home / f"data_batch_{i}" for i in range(1, 6)] if split == "train" else [home / "test_batch"]
    batches = [(part, _batch(source, part)) for part in parts]
    values = _cifar_pixels(np.concatenate([_cifar_images(source, part, batch) for part, batch in batches]))
    labels = [label for part, batch in batches for label in _listed(source, part, batch, "labels")]
    names = _listed(source, home / "batches.meta", _batch(source, home / "batches.meta"), "label_names")
    return _of_array(source, f"cifar10:{home}#{split}", values, labels, tuple(names))


def open_cifar100(path: Path, source: str, split: str) -> ImageSet:
    """CIFAR-100 with its 100 fine classes as labels and the 20 coarse ones as the column ``coarse``.

    Raises:
        ImuError: a file is missing or damaged, or wants to run code.
    """
    home = _home(source, path, ("cifar-100-python",), ("train", "test"))
    part, meta = home / split, _batch(source, home / "meta")
    batch = _batch(source, part)
    fine, coarse = (_listed(source, home / "meta", meta, f"{kind}_label_names") for kind in ("fine", "coarse"))
    above = _listed(source, part, batch, "coarse_labels")
    if not all(isinstance(label, int) and 0 <= label < len(coarse) for label in above):
        raise ImuError(f"{source}: {part} has coarse labels beyond its {len(coarse)} names; get the file again")
    columns = {"coarse": [coarse[label] for label in above]}
    values = _cifar_pixels(_cifar_images(source, part, batch))
    labels = _listed(source, part, batch, "fine_labels")
    return _of_array(source, f"cifar100:{home}#{split}", values, labels, tuple(fine), columns)


def _idx(source: str, home: Path, stem: str, dimensions: int) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes: zero, zero, 8, number of dimensions, sizes as big-endian 32 bits, data."""
    names = [name + ending for name in (stem, stem.replace("-idx", ".idx")) for ending in ("", ".gz")]
    path = next((home / name for name in names if (home / name).is_file()), None)
    if path is None:
        raise ImuError(f"{source}: {home / stem} is missing (.gz will do); nothing is downloaded, put it there")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            sizes = np.frombuffer(header[4:], ">u4").astype(np.int64)
            if header[:4] != bytes([0, 0, 8, dimensions]) or len(sizes) != dimensions:
                raise ImuError(f"{source}: {path} is no idx file of {dimensions} dimensions; get the file again")
            wanted = math.prod(sizes.tolist())
            # One byte more than promised, not all there is: a gzip file may unpack to anything.
            data = file.read(wanted + 1)
    except (OSError, EOFError, zlib.error, ValueError, OverflowError, MemoryError) as error:
        raise ImuError(f"{source}: {path} cannot be read ({error}); get the file again") from error
    if len(data) != wanted:
        raise ImuError(f"{source}: {path} is truncated or has bytes too many ({wanted} expected); get the file again")
    return np.frombuffer(data, np.uint8).reshape(sizes)


def _open_idx(kind: str, folder: str, classes: tuple[str, ...], path: Path, source: str, split: str) -> ImageSet:
    start = "train" if split == "train" else "t10k"
    stems = tuple(
        f"{part}-images{dash}idx3-ubyte{z}" for part in ("train", "t10k") for dash in "-." for z in ("", ".gz")
    )
    home = _home(source, path, (f"{folder}/raw", "raw", folder), stems)
    values = _idx(source, home, f"{start}-images-idx3-ubyte", 3)
    labels: list[int] = _idx(source, home, f"{start}-labels-idx1-ubyte", 1).tolist()
    return _of_array(source, f"{kind}:{home}#{split}", values, labels, classes)


def open_mnist(path: Path, source: str, split: str) -> ImageSet:
    """MNIST from its four idx files, plain or ``.gz``; classes are named ``0`` to ``9``.

    Raises:
        ImuError: a file is missing or damaged.
    """
    return _open_idx("mnist", "MNIST", DIGITS, path, source, split)


def open_fashion_mnist(path: Path, source: str, split: str) -> ImageSet:
    """Fashion-MNIST from its four idx files, plain or ``.gz``, with torchvision's class names.

    Raises:
        ImuError: a file is missing or damaged.
    """
    return _open_idx("fashion-mnist", "FashionMNIST", FASHION, path, source, split)


def open_svhn(path: Path, source: str, split: str) -> ImageSet:
    """SVHN's cropped digits (``train_32x32.mat``); the digit 0, stored as 10, is class 0 as in torchvision.

    Raises:
        ImuError: the file is missing or damaged.
    """
    from scipy.io import loadmat

    home = _home(source, path, (), (f"{split}_32x32.mat",))
    try:
        found = loadmat(home / f"{split}_32x32.mat", variable_names=["X", "y"])
        images, labels = found["X"], found["y"].reshape(-1).astype(np.int64)
    except Exception as error:  # scipy raises what it likes on a torn file
        raise ImuError(f"{source}: {split}_32x32.mat cannot be read ({error}); get the file again") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise ImuError(f"{source}: {split}_32x32.mat has no uint8 images X of (32, 32, 3, n); get the file again")
    labels[labels == 10] = 0
    return _of_array(source, f"svhn:{home}#{split}", images.transpose(3, 0, 1, 2), labels.tolist(), DIGITS)


# --- by name

Reader = Callable[[Path, str, str], ImageSet]

READERS: dict[str, Reader] = {
    "cifar10": open_cifar10,
    "cifar100": open_cifar100,
    "mnist": open_mnist,
    "fashion-mnist": open_fashion_mnist,
    "svhn": open_svhn,
}
"""Array data sets by scheme: folder, name for messages, split → images."""


def _split(spec: str, scheme: str, rest: str, role: Role) -> tuple[Path, str]:
    place, mark, split = rest.rpartition("#")
    if not mark or Path(rest).exists():
        return Path(rest).expanduser(), "test" if role == "test" else "train"
    known = ("train", "test", "extra") if scheme == "svhn" else ("train", "test")
    if split not in known:
        raise ImuError(f"{spec}: no split '{split}'; write {' or '.join('#' + name for name in known)}")
    return Path(place).expanduser(), split


def open_named(spec: str, role: Role) -> ImageSet:
    """Samples from ``DIR``, ``imagefolder:DIR``, ``cifar10:DIR`` and the other ``READERS``, or a file of features.

    Array data sets give their test split to ``--test`` and their train split to all others, unless the spec ends in
    ``#train`` or ``#test``. Local files only.

    Raises:
        ImuError: unknown scheme, missing folder, or files that cannot be read.
    """
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in READERS:
        path, split = _split(spec, scheme, rest, role)
        return READERS[scheme](path, spec, split)
    if colon and scheme == "imagefolder":
        return open_folder(Path(rest).expanduser(), spec)
    path = Path(spec).expanduser()
    if is_features(spec) and not path.is_dir():
        return open_features(spec)
    if colon and not path.exists() and re.fullmatch(r"[A-Za-z0-9_-]+", scheme):
        kinds = ["imagefolder", *READERS]
        raise ImuError(f"{spec}: no kind of data '{scheme}'{nearest(scheme, kinds)}; known are {', '.join(kinds)}")
    if "#" in spec and not path.exists() and Path(spec.rpartition("#")[0]).is_dir():
        raise ImuError(f"{spec}: a folder of images has no splits; name the split's own folder")
    return open_folder(path, spec)
