"""Preprocessing that comes with a model: timm's and transformers' own transforms, by the config that was saved with it."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le, Len
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from imu_cli.errors import ImuError, RefusedError
from imu_cli.files.checking import Finite, Said, Side, Spread, checked
from imu_cli.files.reading import cut, shown
from imu_cli.models import libraries
from imu_cli.samples.images.steps import Preprocessing, normalised, refuse_stretched

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
        self._data = _listed(data)

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
        return normalised(images, self.mean, self.std)


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


def of_library(values: Mapping[str, Any], where: str) -> Preprocessing:
    """The transform that a mapping ``{library: NAME, config: ...}`` describes; ``where`` it stands is for the message.

    Raises:
        ImuError: no such library, or it cannot read its config.
    """
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
