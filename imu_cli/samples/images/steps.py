"""The input step of images, and the arithmetic that every one of them ends on: the same as torchvision's, to the bit."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images.stores import MAX_PIXELS
from imu_cli.samples.inputs import InputStep


class Preprocessing(InputStep, Protocol):
    """The input step of images: what a decoding thread does to one, and what the model's device does to a batch."""

    @property
    def side(self) -> int:
        """The longest side that a square image has on the way, 0 where images stay as they are."""
        return 0

    def together(self, samples: SampleSet, rows: Sequence[int]) -> Tensor:
        """These images, (n, channels, height, width)."""
        from imu_cli.samples.images import decoding

        ((_, stacked),) = decoding.batches(samples, self, len(rows), rows)
        return stacked

    def batches(
        self,
        samples: SampleSet,
        size: int,
        rows: Sequence[int] | None = None,
        *,
        beside: bool = False,
        window: int | None = None,
    ) -> Iterator[tuple[range, Tensor]]:
        """Images decoded ahead, (size, channels, height, width), in order; see ``decoding.batches``."""
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


def scaled(images: Tensor) -> Tensor:
    """A uint8 batch scaled to [0, 1], float32: torchvision's ``to_dtype`` multiplies too, dividing would round otherwise."""
    return images.to(torch.float32).mul_(1.0 / 255)


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A uint8 batch scaled to [0, 1], less mean, over std, as float32: torchvision's ``normalize``."""
    made = scaled(images)
    less, over = (torch.tensor(values, dtype=made.dtype, device=made.device) for values in (mean, std))
    return made.sub_(less.view(-1, 1, 1)).div_(over.view(-1, 1, 1))


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
