"""Evaluation preprocessing: what an image goes through before the model sees it, by the ecosystem's own transforms.

torchvision's for what the user writes, timm's and transformers' for models that come with their configs. torchvision takes as
long to import as torch itself, so it is imported where an image is resized or cropped; scaling and normalising are the same
two lines of torch, to the bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import MinLen
from numpy.typing import NDArray
from PIL import Image
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.files import memory, yaml_reading
from imu_cli.files.checking import Finite, Side, Spread, problem
from imu_cli.files.reading import cut, shown
from imu_cli.models import libraries
from imu_cli.samples.images.library_transforms import of_library
from imu_cli.samples.images.steps import Preprocessing, normalised, refuse_stretched, scaled

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {"size": 256, "crop": 224, **IMAGENET},
    "cifar10": {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]},
    "cifar100": {"mean": [0.5071, 0.4865, 0.4409], "std": [0.2673, 0.2564, 0.2762]},
    "mnist": {"mode": "L", "mean": [0.1307], "std": [0.3081]},
    "none": {},
}

KEYS = "write keys such as size, crop, mean, std"
AT_ONCE = 12
"""Images that are in memory together at least: three batches of the fewest, since two are decoded ahead."""
PIXEL_BYTES = 24
"""Bytes of a pixel that enters a model: three channels in float32, and as much again for what is made of them first."""


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number, not yes or no")
    return value


Length = Annotated[Side, BeforeValidator(_no_switch)]


def _sides(given: int | tuple[int, int]) -> list[int]:
    """As torchvision wants a size: one side, or height and width."""
    return [given] if isinstance(given, int) else list(given)


@dataclass(frozen=True)
class Preprocess(Preprocessing):
    """Convert to ``mode``, resize, centre-crop, scale to [0, 1], normalise; each only where given.

    Attributes:
        size: an int for the shorter side, or [height, width].
        crop: side of the central square, or [height, width].
        interpolation: of the resize, antialiased as torchvision does it on PIL images.
        mean, std: per channel, of values in [0, 1].
        mode: the PIL mode that images are converted to.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    size: Length | tuple[Length, Length] | None = None
    crop: Length | tuple[Length, Length] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    mean: Annotated[tuple[Finite, ...], MinLen(1)] | None = None
    std: Annotated[tuple[Spread, ...], MinLen(1)] | None = None
    mode: Literal["RGB", "L"] = "RGB"

    @property
    def side(self) -> int:
        """The longest side of what ``size`` and ``crop`` make."""
        return max([side for given in (self.size, self.crop) if given is not None for side in _sides(given)], default=0)

    def described(self) -> dict[str, Any]:
        """As it stands in the record and the cache key."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def shape(self, image: Image.Image) -> NDArray[np.uint8]:
        """One image to a (height, width, channels) uint8 array: everything but scaling and normalising."""
        if image.mode != self.mode:
            image = image.convert(self.mode)
        if self.size is not None:
            if isinstance(self.size, int):
                refuse_stretched(image, self.size)
            transforms, size = libraries.torchvision_transforms(), _sides(self.size)
            mode = transforms.InterpolationMode(self.interpolation)
            image = transforms.v2.functional.resize(image, size, interpolation=mode, antialias=True)
        if self.crop is not None:
            image = libraries.torchvision_transforms().v2.functional.center_crop(image, _sides(self.crop))
        pixels: NDArray[np.uint8] = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    def takes(self, images: NDArray[np.uint8]) -> bool:
        """Whether the images have these channels and are neither resized nor cropped."""
        return self.size is None and self.crop is None and images.shape[3] == len(self.mode)

    def scale(self, images: Tensor) -> Tensor:
        """A (n, channels, height, width) uint8 batch to normalised float32."""
        if self.mean is not None and self.std is not None:
            return normalised(images, self.mean, self.std)
        return scaled(images)


def _checked(values: Mapping[str, Any], where: str) -> Preprocessing:
    if "library" in values:
        return of_library(values, where)
    try:
        made = TypeAdapter(Preprocess).validate_python(dict(values))
    except ValidationError as error:
        known = ", ".join(Preprocess.__dataclass_fields__)
        raise ImuError(f"{where}: {problem(error, values)}; known keys are {known}") from error
    bands = len(made.mode)
    for name, given in (("mean", made.mean), ("std", made.std)):
        if given is not None and len(given) not in (1, bands):
            raise ImuError(f"{where}: {name}: has {len(given)} values for {bands} channels (mode {made.mode})")
    if (made.mean is None) != (made.std is None):
        raise ImuError(f"{where}: mean and std: only one of them is given; give both or neither")
    return made


def parse(given: str | Mapping[str, Any], where: str = "--preprocess") -> Preprocessing:
    """A preset's name, a YAML file, or the mapping itself.

    Raises:
        ImuError: unknown preset, missing file, unknown key or impossible value.
    """
    if isinstance(given, Mapping):
        return _checked(given, where)
    if not isinstance(given, str):
        raise ImuError(f"{where}: {shown(given)} is neither a preset's name, a YAML file nor a mapping")
    if given in PRESETS:
        return _checked(PRESETS[given], f"{where} {given}")
    path = Path(given)
    if not path.is_file():
        raise ImuError(f"{where} {cut(given)}: neither a preset ({', '.join(PRESETS)}) nor a YAML file")
    values = yaml_reading.read_yaml(path, KEYS)
    if not isinstance(values, dict):
        raise ImuError(f"{path}: not a mapping; {KEYS}")
    return _checked(values, str(path))


def find(
    given: str | Mapping[str, Any] | None, others: Sequence[tuple[Any, str]], max_memory: int | None = None
) -> tuple[Preprocessing, str]:
    """The preprocessing and its source: the option, else the first of ``others`` (value, source) that says anything.

    A value may be what is wrong with that source, which is raised only if it is asked.

    Raises:
        ImuError: no source knows it, and the message shows the line to add; or a few images of it do not fit ``max_memory``.
    """
    for value, source in [(given, "--preprocess"), *others]:
        if isinstance(value, ImuError):
            raise value
        if value or (source == "--preprocess" and value is not None):
            steps = parse(value, source)
            what = f"{AT_ONCE} images of {steps.side:,} x {steps.side:,}"
            memory.require(
                AT_ONCE * PIXEL_BYTES * steps.side**2,
                max_memory,
                source,
                what,
                "check size and crop of the preprocessing",
            )
            return steps, source
    raise ImuError(
        "--preprocess: not known, and wrong preprocessing still gives plausible numbers; add for example "
        "--preprocess imagenet, or a YAML file with\n  {size: 256, crop: 224, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
    )
