"""Evaluation preprocessing: what an image goes through before the model sees it, by the ecosystem's own transforms.

torchvision's for what the user writes, timm's and transformers' for models that come with their configs. torchvision takes as
long to import as torch itself, so it is imported where an image is resized or cropped; scaling and normalising are the same
two lines of torch, to the bit.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from annotated_types import Ge, Le, Len, MinLen
from numpy.typing import NDArray
from PIL import Image
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from imu_cli.errors import ImuError, RefusedError
from imu_cli.files import memory, yaml_reading
from imu_cli.files.checking import Finite, Said, Side, Spread, checked, problem
from imu_cli.files.reading import cut, shown
from imu_cli.models import libraries
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images.stores import MAX_PIXELS
from imu_cli.samples.inputs import InputStep

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


class Preprocessing(InputStep, Protocol):
    """The input step of images: what a decoding thread does to one, and what the model's device does to a batch."""

    @property
    def side(self) -> int:
        """The longest side that a square image has on the way, 0 where images stay as they are."""
        return 0

    def batches(
        self, samples: SampleSet, size: int, rows: Sequence[int] | None = None, *, beside: bool = False
    ) -> Iterator[Tensor]:
        """Images decoded ahead, (size, channels, height, width); see ``decoding.batches``."""
        from imu_cli.samples.images import decoding

        return decoding.batches(samples, self, size, rows, beside=beside)

    def shape(self, image: Image.Image) -> NDArray[Any]:
        """One image to a (height, width, channels) array."""

    def takes(self, images: NDArray[np.uint8]) -> bool:
        """Whether ``shape`` leaves every image of such an (n, height, width, channels) array as it is; no, unless it is known."""
        return False

    def scale(self, images: Tensor) -> Tensor:
        """A (n, channels, height, width) batch of such arrays to what the model takes, float32."""


def stack(images: Sequence[NDArray[Any]]) -> Tensor:
    """Shaped images as one (n, channels, height, width) batch, channels_last without a copy."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _scaled(images: Tensor) -> Tensor:
    """A uint8 batch scaled to [0, 1], float32: torchvision's ``to_dtype`` multiplies too, dividing would round otherwise."""
    return images.to(torch.float32).mul_(1.0 / 255)


def _normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A uint8 batch scaled to [0, 1], less mean, over std, as float32: torchvision's ``normalize``."""
    scaled = _scaled(images)
    less, over = (torch.tensor(values, dtype=scaled.dtype, device=scaled.device) for values in (mean, std))
    return scaled.sub_(less.view(-1, 1, 1)).div_(over.view(-1, 1, 1))


def refuse_stretched(image: Image.Image, side: int) -> None:
    """Refuse an image so long that, with its shorter side resized to ``side``, it would fill the memory.

    Raises:
        ImuError: no place in the message.
    """
    short, long = sorted(image.size)
    if side * side * long > MAX_PIXELS * short:
        raise ImuError(
            f"is {image.width} x {image.height}, and too large once its shorter side has {side} pixels; crop it, or leave it out"
        )


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
            return _normalised(images, self.mean, self.std)
        return _scaled(images)


Channels = Annotated[list[Finite], Len(1, 4)]
Spreads = Annotated[list[Spread], Len(1, 4)]


class TimmData(Said):
    """What a timm data config may say, as far as it is used."""

    input_size: Annotated[list[Side], Len(3, 3)] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = None
    mean: Channels | None = None
    std: Spreads | None = None
    crop_pct: Annotated[Finite, Ge(0.05), Le(20)] | None = None
    crop_mode: Literal["center", "squash", "border"] | None = None


Sizes = Side | Annotated[list[Side], Len(1, 3)] | dict[str, Side | None]


class ProcessorData(Said):
    """What a transformers image processor's config may say, as far as every one of them has it."""

    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    size: Sizes | None = None
    crop_size: Sizes | None = None
    pad_size: Sizes | None = None
    image_mean: Finite | Channels | None = None
    image_std: Spread | Spreads | None = None
    rescale_factor: Finite | None = None
    resample: Annotated[int, Ge(0), Le(5)] | None = None
    crop_pct: Annotated[Finite, Ge(0.05), Le(20)] | None = None
    do_resize: bool | None = None
    do_center_crop: bool | None = None
    do_rescale: bool | None = None
    do_normalize: bool | None = None

    def longest(self) -> int:
        """The longest side that any size in it names, 0 where none does."""
        found: list[int | None] = [0]
        for given in (self.size, self.crop_size, self.pad_size):
            found += given.values() if isinstance(given, dict) else given if isinstance(given, list) else [given]
        return int(max(side or 0 for side in found) / min(self.crop_pct or 1, 1))


class TimmTransform(Preprocessing):
    """timm's own evaluation transform of a model's data config: its resize, crop and border, then mean and std."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        remedy = "mend pretrained_cfg in config.json, or give --preprocess"
        checked(TimmData, _listed(config), where, remedy)
        timm = libraries.timm(where)
        data = timm.data.resolve_data_config({}, pretrained_cfg=dict(config))
        self.mean, self.std = data["mean"], data["std"]
        channels = data["input_size"][0]
        if {len(self.mean), len(self.std)} - {1, channels}:
            raise ImuError(
                f"{where}: mean and std: found {len(self.mean)} and {len(self.std)} for {channels} channels; {remedy}"
            )
        self._side: int = math.floor(max(data["input_size"][1:]) / min(data["crop_pct"], 1))
        self.mode = "L" if data["input_size"][0] == 1 else "RGB"
        # Without normalising, timm ends on uint8, which is what is cheap to hand to the model's device.
        self._transform = timm.data.create_transform(**data, is_training=False, normalize=False)
        self._data = {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

    @property
    def side(self) -> int:
        """The longest side that input_size and crop_pct make."""
        return self._side

    def described(self) -> dict[str, Any]:
        """The resolved data config."""
        return {"library": "timm", "config": self._data}

    def shape(self, image: Image.Image) -> NDArray[np.uint8]:
        """One image to a (height, width, channels) uint8 array."""
        refuse_stretched(image, self.side)
        try:
            pixels: Tensor = self._transform(image if image.mode == self.mode else image.convert(self.mode))
        except Exception as error:  # the library's own work on values that a file gave
            raise _failed("timm", error) from error
        return pixels.permute(1, 2, 0).numpy()

    def scale(self, images: Tensor) -> Tensor:
        """A uint8 batch to normalised float32."""
        return _normalised(images, self.mean, self.std)


class ProcessorTransform(Preprocessing):
    """The image processor that was saved with a transformers model; all of it runs in the decoding threads."""

    def __init__(self, config: Mapping[str, Any], where: str, model_type: str | None = None) -> None:
        remedy = "mend preprocessor_config.json, or give --preprocess"
        self._side = checked(ProcessorData, _listed(config), where, remedy).longest()
        transformers = libraries.transformers(where)
        self._processor = _processor_class(transformers, config, where, model_type).from_dict(dict(config))
        self._config = json.loads(self._processor.to_json_string())

    @property
    def side(self) -> int:
        """The longest side that any size in the config names."""
        return self._side

    def described(self) -> dict[str, Any]:
        """The processor's config."""
        return {"library": "transformers", "config": self._config}

    def shape(self, image: Image.Image) -> NDArray[np.float32]:
        """One image to a (height, width, channels) float32 array.

        Raises:
            RefusedError: the processor makes more than one tensor of an image, such as patches with a mask.
            ImuError: it cannot work as its config says.
        """
        refuse_stretched(image, self.side)
        try:
            made = self._processor(images=image if image.mode == "RGB" else image.convert("RGB"), return_tensors="pt")
        except Exception as error:  # the library's own work on values that a file gave
            raise _failed(type(self._processor).__name__, error) from error
        found = made.get("pixel_values")
        if set(made) - {"pixel_values"} or found is None or found.ndim != 4:
            raise RefusedError(
                f"{type(self._processor).__name__}: makes {', '.join(sorted(made))} of an image; imu runs models that take one "
                "(channels, height, width) tensor"
            )
        pixels: Tensor = found[0].to(torch.float32).permute(1, 2, 0)
        return pixels.numpy()

    def scale(self, images: Tensor) -> Tensor:
        """Nothing is left to do."""
        return images


def _listed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as JSON has it."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def _failed(library: str, error: Exception) -> ImuError:
    said = (str(error).splitlines() or [""])[0]
    return ImuError(f"{library}: cannot prepare an image ({type(error).__name__}: {cut(said)}); give --preprocess")


def _processor_of(transformers: Any, model_type: str | None) -> str:
    """The name of the image processor that transformers has for a kind of model, as its own loader takes it; "" where none is."""
    names = transformers.models.auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type)
    if isinstance(names, Mapping):  # by what computes it, since version 5
        names = (names.get("torchvision"), names.get("pil"))
    found = [name for name in ((names,) if isinstance(names, str) else names or ()) if isinstance(name, str)]
    return found[0] if found else ""


def _processor_class(transformers: Any, config: Mapping[str, Any], where: str, model_type: str | None) -> Any:
    """The class in transformers that a processor's config names, by any of the names it has had, or that its model has."""
    said = config.get("image_processor_type") or config.get("feature_extractor_type")
    named = str(said or _processor_of(transformers, model_type))
    plain = named.removesuffix("Fast").removesuffix("FeatureExtractor").removesuffix("ImageProcessor")
    for name in (named, f"{plain}ImageProcessor", f"{plain}ImageProcessorFast"):
        found = getattr(transformers, name, None) if name.isidentifier() else None
        if isinstance(found, type) and issubclass(found, transformers.image_processing_base.ImageProcessingMixin):
            return found
    raise ImuError(
        f"{where}: image processor {named or '(not named)'!r} is not one of this transformers ({transformers.__version__}); "
        "give --preprocess"
    )


LIBRARIES: dict[str, Callable[..., Preprocessing]] = {
    "timm": TimmTransform,
    "transformers": ProcessorTransform,
}


def _of_library(values: Mapping[str, Any], where: str) -> Preprocessing:
    library, config = values.get("library"), values.get("config", {})
    more = {key: values[key] for key in ("model_type",) if library == "transformers" and key in values}
    if library not in LIBRARIES or not isinstance(config, Mapping) or set(values) - {"library", "config", *more}:
        raise ImuError(
            f"{where}: library {shown(library)}; write {{library: timm, config: {{...}}}} or transformers with its processor's config"
        )
    try:
        return LIBRARIES[library](config, where, **more)
    except ImuError:
        raise
    except Exception as error:  # the library's own reading of values that a file gave
        raise ImuError(
            f"{where}: {library} cannot read it ({type(error).__name__}: {cut(str(error))}); give --preprocess"
        ) from error


def _checked(values: Mapping[str, Any], where: str) -> Preprocessing:
    if "library" in values:
        return _of_library(values, where)
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
