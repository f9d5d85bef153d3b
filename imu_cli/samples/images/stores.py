"""What holds images: files below a folder, or one array."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from imu_cli.errors import ImuError
from imu_cli.samples.dataset import IMAGES
from imu_cli.samples.packing import Digests

# EPS is left out on purpose: Pillow hands it to Ghostscript, and a file's extension does not say what is inside.
_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "GIF", "TIFF", "WEBP", "JPEG2000", "DIB")

SIXTEEN_BITS = ("PNG", "PPM")
"""Formats that have no more bits, which Pillow reads as mode I: the first in earlier versions, the second always."""

MAX_PIXELS = 89_478_485
"""Pixels of an image that is still decoded: where Pillow begins to warn. Twice as many are an error of its own."""

# Between the two Pillow prints a warning and decodes; ours is an error with the row's name, so its warning says nothing more.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, eq=False)
class Files:
    """Image files below one folder.

    Attributes:
        root: the folder, all links resolved.
        shown: the folder as the user named it, for messages.
        names: of the files, relative to ``root``, ``/`` between the parts.
        real: where a name that is a link, or lies below one, really is; other names are where they say.
    """

    root: Path
    shown: str
    names: Sequence[str]
    real: Mapping[str, str] = field(default_factory=dict)

    kind = IMAGES

    @cached_property
    def digests(self) -> Digests:
        """sha256 by position, filled as they are asked for."""
        return Digests.unknown(len(self.names))

    def where(self, at: int) -> str:
        """The file as the user would name it."""
        return str(Path(self.shown, self.names[at]))

    def location(self, at: int) -> str:
        """The absolute path with all links resolved."""
        name = self.names[at]
        # Not os.path.join: overlap tests ask for 50,000 locations several times over.
        return self.real.get(name) or f"{str(self.root).rstrip('/')}/{name}"

    def size(self, at: int) -> int:
        """Bytes of the file."""
        return os.stat(self.location(at)).st_size

    def stored(self, at: int) -> bytes:
        """The file's bytes."""
        # Unbuffered: half the time of Path.read_bytes, which counts for 50,000 small files.
        with open(self.location(at), "rb", buffering=0) as file:
            return file.read()

    def decode(self, at: int) -> Image.Image:
        """The whole image, first frame, as stored (EXIF orientation is not applied), in the file's mode or of 16 bits in 8.

        Raises:
            ImuError: truncated, undecodable, too large to be an honest image, or its numbers are of a range that is not known.
            FileNotFoundError: it is gone.
        """
        try:
            with Image.open(self.location(at), formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height}, more than {MAX_PIXELS:,}")
                image.load()
                return _in_eight_bits(image)
        except (ImuError, FileNotFoundError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImuError(f"too many pixels ({error}); shrink it or leave it out") from error
        except UnidentifiedImageError as error:
            raise ImuError("not an image that can be read; replace it or leave it out") from error
        except Exception as error:  # hostile bytes make Pillow's decoders raise anything at all
            raise ImuError(f"truncated or damaged image ({error}); replace it or leave it out") from error

    def arrays(self, _: NDArray[np.int64]) -> None:
        """Files are decoded one by one."""
        return


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits scaled to 8, white to white; Pillow's own conversions cut off at 255, so that all else is white.

    Raises:
        ImuError: 32 bits or fractions, of which nothing says what is white.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode[0] in "IF":
        raise ImuError(
            f"holds {'fractions' if image.mode == 'F' else 'numbers of 32 bits'} (mode {image.mode}), and nothing says "
            "which is white; save it with 8 or 16 bits, or leave it out"
        )
    return image


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images of one array, (n, height, width) grey or (n, height, width, 3) RGB, uint8.

    ``identity`` is what a row is of, such as ``cifar10:/data/cifar-10-batches-py#train``.
    """

    identity: str
    values: NDArray[np.uint8]
    root: None = None

    kind = IMAGES

    @cached_property
    def digests(self) -> Digests:
        """sha256 by position, filled as they are asked for."""
        return Digests.unknown(len(self.values))

    def where(self, at: int) -> str:
        """The array and the index in it."""
        return f"{self.identity}:{at}"

    location = where

    def size(self, at: int) -> int:
        """Bytes of one image."""
        return int(np.prod(self.values.shape[1:]))

    def stored(self, at: int) -> bytes:
        """The image's bytes, row by row, channels last."""
        return bytes(self.values[at].tobytes())

    def arrays(self, at: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images (k, height, width, channels)."""
        found = self.values[at]
        return found if found.ndim == 4 else found[..., None]

    def decode(self, at: int) -> Image.Image:
        """The image, mode L or RGB."""
        return Image.fromarray(np.ascontiguousarray(self.values[at]))
