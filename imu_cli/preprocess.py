"""Evaluation preprocessing: what an image goes through before the model sees it, by torchvision's own transforms."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import yaml
from annotated_types import Gt, MinLen
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from .errors import ImuError

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {"size": 256, "crop": 224, **IMAGENET},
    "cifar10": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]},
    "cifar100": {"mean": [0.5071, 0.4865, 0.4409], "std": [0.2673, 0.2564, 0.2762]},
    "mnist": {"mode": "L", "mean": [0.1307], "std": [0.3081]},
    "none": {},
}

PositiveInt = Annotated[int, Gt(0)]


@dataclass(frozen=True)
class Preprocess:
    """Convert to ``mode``, resize, centre-crop, scale to [0, 1], normalise; each only where given.

    Attributes:
        size: an int for the shorter side, or [height, width].
        crop: side of the central square, or [height, width].
        interpolation: of the resize, antialiased as torchvision does it on PIL images.
        mean, std: per channel, of values in [0, 1].
        mode: the PIL mode that images are converted to.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: Annotated[tuple[float, ...], MinLen(1)] | None = None
    std: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)] | None = None
    mode: Literal["RGB", "L"] = "RGB"

    def described(self) -> dict[str, Any]:
        """As it stands in the record and the cache key."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def shape(self, image: Image.Image) -> NDArray[np.uint8]:
        """One image to a (height, width, channels) uint8 array: everything but scaling and normalising."""
        if image.mode != self.mode:
            image = image.convert(self.mode)
        if self.size is not None:
            size = [self.size] if isinstance(self.size, int) else list(self.size)
            image = functional.resize(image, size, interpolation=InterpolationMode(self.interpolation), antialias=True)
        if self.crop is not None:
            image = functional.center_crop(image, [self.crop] if isinstance(self.crop, int) else list(self.crop))
        pixels: NDArray[np.uint8] = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    @staticmethod
    def stack(images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Shaped images as one (n, channels, height, width) uint8 batch, channels_last without a copy."""
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def scale(self, images: Tensor) -> Tensor:
        """A (n, channels, height, width) uint8 batch to normalised float32."""
        scaled: Tensor = functional.to_dtype(images, torch.float32, scale=True)
        if self.mean is not None and self.std is not None:
            functional.normalize(scaled, list(self.mean), list(self.std), inplace=True)
        return scaled


def _checked(values: Mapping[str, Any], where: str) -> Preprocess:
    try:
        made = TypeAdapter(Preprocess).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(all)"
        known = ", ".join(Preprocess.__dataclass_fields__)
        raise ImuError(f"{where}: {key}: {first['msg'].lower()}; known keys are {known}") from error
    bands = len(made.mode)
    for name, given in (("mean", made.mean), ("std", made.std)):
        if given is not None and len(given) not in (1, bands):
            raise ImuError(f"{where}: {name}: has {len(given)} values for {bands} channels (mode {made.mode})")
    if (made.mean is None) != (made.std is None):
        raise ImuError(f"{where}: mean and std: only one of them is given; give both or neither")
    return made


def parse(given: str | Mapping[str, Any], where: str = "--preprocess") -> Preprocess:
    """A preset's name, a YAML file, or the mapping itself.

    Raises:
        ImuError: unknown preset, missing file, unknown key or impossible value.
    """
    if isinstance(given, Mapping):
        return _checked(given, where)
    if not isinstance(given, str):
        raise ImuError(f"{where}: {given!r} is neither a preset's name, a YAML file nor a mapping")
    if given in PRESETS:
        return _checked(PRESETS[given], f"{where} {given}")
    path = Path(given)
    if not path.is_file():
        raise ImuError(f"{where} {given}: neither a preset ({', '.join(PRESETS)}) nor a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ImuError(f"{path}: not YAML ({error})") from error
    if not isinstance(values, dict):
        raise ImuError(f"{path}: not a mapping; write keys such as size, crop, mean, std")
    return _checked(values, str(path))


def find(given: str | Mapping[str, Any] | None, others: Sequence[tuple[Any, str]]) -> tuple[Preprocess, str]:
    """The preprocessing and its source: the option, else the first of ``others`` (value, source) that says anything.

    Raises:
        ImuError: no source knows it; the message shows the line to add.
    """
    if given is not None:
        return parse(given), "--preprocess"
    for value, source in others:
        if value:
            return parse(value, source), source
    raise ImuError(
        "--preprocess: not known, and wrong preprocessing still gives plausible numbers; add for example "
        "--preprocess imagenet, or a YAML file with\n  {size: 256, crop: 224, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
    )
