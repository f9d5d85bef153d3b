"""CIFAR, MNIST, Fashion-MNIST and SVHN from local files, in torchvision's order; pickles are read without running code."""

import gzip
import io
import math
import pickle
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imu_cli.errors import ImuError
from imu_cli.files import memory
from imu_cli.files.reading import content, cut, shown
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images.stores import Pixels
from imu_cli.samples.packing import RowNames, numbers

DIGITS = tuple("0123456789")
AGAIN = "get the file again"
MAX_BATCH = 2**31
"""Bytes of a pickled batch; CIFAR-100's training images have 155 million."""
MAX_GROWTH = 1_100
"""Times that a packed file may grow: deflate packs to a 1,032nd at most."""
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


def _of_array(
    source: str,
    identity: str,
    values: NDArray[np.uint8],
    labels: list[int],
    classes: tuple[str, ...],
    columns: Mapping[str, list[str]] | None = None,
) -> SampleSet:
    if len(values) != len(labels):
        raise ImuError(f"{source}: holds {len(values)} images and {len(labels)} labels; the files are damaged")
    if not set(map(type, labels)) <= {int} or not 0 <= min(labels, default=0) <= max(labels, default=0) < len(classes):
        odd = next(r for r, label in enumerate(labels) if type(label) is not int or not 0 <= label < len(classes))
        raise ImuError(f"{source}: row {odd} has label {shown(labels[odd])}, classes are 0 to {len(classes) - 1}")
    return SampleSet(
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
    if not isinstance(data, bytes | bytearray):  # a number would ask for so many bytes
        raise pickle.UnpicklingError("an array without its bytes")
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
        found = _BatchUnpickler(io.BytesIO(content(path, MAX_BATCH, AGAIN)), encoding="latin1").load()
    except ImuError as error:
        raise ImuError(f"{source}: {error}") from error
    except Exception as error:  # hostile or torn pickles make the unpickler raise anything at all
        raise ImuError(f"{source}: {path} is no batch of images ({cut(str(error))}); {AGAIN}") from error
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


def _names(source: str, path: Path, batch: Mapping[str, Any], key: str) -> list[str]:
    found = _listed(source, path, batch, key)
    if not all(isinstance(name, str) for name in found):
        raise ImuError(f"{source}: {path} has names that are no text in '{key}'; {AGAIN}")
    return found


def _cifar_images(source: str, path: Path, batch: Mapping[str, Any]) -> NDArray[np.uint8]:
    found = batch.get("data")
    if not isinstance(found, _Array) or found.values.dtype != np.uint8 or found.values.shape[1:] != (3072,):
        raise ImuError(f"{source}: {path} has no uint8 array 'data' of 3,072 columns; get the file again")
    return found.values


def _cifar_pixels(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of 3,072 bytes, one channel after the other, as images with the channels last."""
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def open_cifar10(path: Path, source: str, split: str) -> SampleSet:
    """CIFAR-10's Python batches in the official order, without torchvision's check of the archive's MD5 sums.

    Raises:
        ImuError: a file is missing or damaged, or wants to run code.
    """
    home = _home(source, path, ("cifar-10-batches-py",), ("data_batch_1", "test_batch"))
    parts = [home / f"data_batch_{i}" for i in range(1, 6)] if split == "train" else [home / "test_batch"]
    batches = [(part, _batch(source, part)) for part in parts]
    values = _cifar_pixels(np.concatenate([_cifar_images(source, part, batch) for part, batch in batches]))
    labels = [label for part, batch in batches for label in _listed(source, part, batch, "labels")]
    names = _names(source, home / "batches.meta", _batch(source, home / "batches.meta"), "label_names")
    return _of_array(source, f"cifar10:{home}#{split}", values, labels, tuple(names))


def open_cifar100(path: Path, source: str, split: str) -> SampleSet:
    """CIFAR-100 with its 100 fine classes as labels and the 20 coarse ones as the column ``coarse``.

    Raises:
        ImuError: a file is missing or damaged, or wants to run code.
    """
    home = _home(source, path, ("cifar-100-python",), ("train", "test"))
    part, meta = home / split, _batch(source, home / "meta")
    batch = _batch(source, part)
    fine, coarse = (_names(source, home / "meta", meta, f"{kind}_label_names") for kind in ("fine", "coarse"))
    above = _listed(source, part, batch, "coarse_labels")
    if not all(isinstance(label, int) and 0 <= label < len(coarse) for label in above):
        raise ImuError(f"{source}: {part} has coarse labels beyond its {len(coarse)} names; get the file again")
    columns = {"coarse": [coarse[label] for label in above]}
    values = _cifar_pixels(_cifar_images(source, part, batch))
    if len(above) != len(values):
        raise ImuError(f"{source}: {part} holds {len(values)} images and {len(above)} coarse labels; {AGAIN}")
    labels = _listed(source, part, batch, "fine_labels")
    return _of_array(source, f"cifar100:{home}#{split}", values, labels, tuple(fine), columns)


def _refuse_claim(where: str, wanted: int, there: int, *, packed: bool) -> None:
    """Refuse a header that promises more than its file can hold, or than there is memory for, before any of it is read."""
    if wanted > there * (MAX_GROWTH if packed else 1):
        raise ImuError(
            f"{where}: promises {wanted:,} bytes and has {there:,}, so it is truncated or no idx file; {AGAIN}"
        )
    memory.require(wanted, None, where, f"{wanted:,} bytes of images", "take it apart")


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
            _refuse_claim(f"{source}: {path}", wanted, path.stat().st_size, packed=path.suffix == ".gz")
            # One byte more than promised, not all there is: a gzip file may unpack to anything.
            data = file.read(wanted + 1)
    except (OSError, EOFError, zlib.error, ValueError, OverflowError, MemoryError) as error:
        raise ImuError(f"{source}: {path} cannot be read ({error}); get the file again") from error
    if len(data) != wanted:
        raise ImuError(f"{source}: {path} is truncated or has bytes too many ({wanted} expected); get the file again")
    return np.frombuffer(data, np.uint8).reshape(sizes)


def _open_idx(kind: str, folder: str, classes: tuple[str, ...], path: Path, source: str, split: str) -> SampleSet:
    start = "train" if split == "train" else "t10k"
    stems = tuple(
        f"{part}-images{dash}idx3-ubyte{z}" for part in ("train", "t10k") for dash in "-." for z in ("", ".gz")
    )
    home = _home(source, path, (f"{folder}/raw", "raw", folder), stems)
    values = _idx(source, home, f"{start}-images-idx3-ubyte", 3)
    labels: list[int] = _idx(source, home, f"{start}-labels-idx1-ubyte", 1).tolist()
    return _of_array(source, f"{kind}:{home}#{split}", values, labels, classes)


def open_mnist(path: Path, source: str, split: str) -> SampleSet:
    """MNIST from its four idx files, plain or ``.gz``; classes are named ``0`` to ``9``.

    Raises:
        ImuError: a file is missing or damaged.
    """
    return _open_idx("mnist", "MNIST", DIGITS, path, source, split)


def open_fashion_mnist(path: Path, source: str, split: str) -> SampleSet:
    """Fashion-MNIST from its four idx files, plain or ``.gz``, with torchvision's class names.

    Raises:
        ImuError: a file is missing or damaged.
    """
    return _open_idx("fashion-mnist", "FashionMNIST", FASHION, path, source, split)


def open_svhn(path: Path, source: str, split: str) -> SampleSet:
    """SVHN's cropped digits (``train_32x32.mat``); the digit 0, stored as 10, is class 0 as in torchvision.

    Raises:
        ImuError: the file is missing or damaged.
    """
    from scipy.io import loadmat, whosmat

    home = _home(source, path, (), (f"{split}_32x32.mat",))
    try:
        file = home / f"{split}_32x32.mat"
        for name, shape, _ in whosmat(file):
            if name in ("X", "y"):
                _refuse_claim(f"{source}: {file.name}", math.prod(shape), file.stat().st_size, packed=True)
        found = loadmat(file, variable_names=["X", "y"])
        images, labels = found["X"], found["y"].reshape(-1).astype(np.int64)
    except ImuError:
        raise
    except Exception as error:  # scipy raises what it likes on a torn file
        raise ImuError(f"{source}: {split}_32x32.mat cannot be read ({error}); get the file again") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise ImuError(f"{source}: {split}_32x32.mat has no uint8 images X of (32, 32, 3, n); get the file again")
    labels[labels == 10] = 0
    return _of_array(source, f"svhn:{home}#{split}", images.transpose(3, 0, 1, 2), labels.tolist(), DIGITS)
