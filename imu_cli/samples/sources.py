"""Where images come from: class folders, torchvision's CIFAR, MNIST, Fashion-MNIST and SVHN, Market-1501 and MARS, from local files.

Every reader returns an ``SampleSet`` in the order that torchvision has, so that an index and a class id mean the same.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from imu_cli.errors import ImuError, nearest
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images.arrays import open_cifar10, open_cifar100, open_fashion_mnist, open_mnist, open_svhn
from imu_cli.samples.images.folders import open_folder
from imu_cli.samples.images.reidentification import LAYOUTS, open_people
from imu_cli.samples.vectors import is_features, open_features

Role = Literal["data", "test", "retain", "forget"]


Reader = Callable[[Path, str, str], SampleSet]

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
    known = LAYOUTS[scheme].names if scheme in LAYOUTS else ("train", "test", "extra")[: 2 + (scheme == "svhn")]
    if split not in known:
        raise ImuError(f"{spec}: no split '{split}'; write {' or '.join('#' + name for name in known)}")
    return Path(place).expanduser(), split


def open_named(spec: str, role: Role) -> SampleSet:
    """Samples from ``DIR``, ``imagefolder:DIR``, ``cifar10:DIR`` and the other ``READERS`` and ``LAYOUTS``, or a file of features.

    Data sets with splits give their test split to ``--test`` and their train split to all others, unless the spec ends in
    ``#train``, ``#test``, or the name of a folder of people. Local files only.

    Raises:
        ImuError: unknown scheme, missing folder, or files that cannot be read.
    """
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in READERS:
        path, split = _split(spec, scheme, rest, role)
        return READERS[scheme](path, spec, split)
    if colon and scheme in LAYOUTS:
        path, split = _split(spec, scheme, rest, role)
        return open_people(LAYOUTS[scheme], path, spec, split)
    if colon and scheme == "imagefolder":
        return open_folder(Path(rest).expanduser(), spec)
    path = Path(spec).expanduser()
    if is_features(spec) and not path.is_dir():
        return open_features(spec)
    if colon and not path.exists() and re.fullmatch(r"[A-Za-z0-9_-]+", scheme):
        kinds = ["imagefolder", *READERS, *LAYOUTS]
        raise ImuError(f"{spec}: no kind of data '{scheme}'{nearest(scheme, kinds)}; known are {', '.join(kinds)}")
    if "#" in spec and not path.exists() and Path(spec.rpartition("#")[0]).is_dir():
        raise ImuError(f"{spec}: a folder of images has no splits; name the split's own folder")
    return open_folder(path, spec)
