"""The seam between samples and models: what a store hands over becomes a batch that the model takes, by the input step of its kind."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from imu_cli.samples.dataset import SampleSet


class InputStep(Protocol):
    """What samples of a kind go through before a model: on decoding threads, and then on the model's device.

    Images have ``samples.images.preprocessing``; another kind of sample brings a step of its own, and nothing that runs models
    or keeps features has to know which it is.
    """

    def described(self) -> dict[str, Any]:
        """As it stands in the record and the cache key, and as it is read again from there."""

    def batches(
        self, samples: SampleSet, size: int, rows: Sequence[int] | None = None, *, beside: bool = False
    ) -> Iterator[Tensor]:
        """The samples, or the given rows of them, ``size`` at a time and in order, as far as the processor takes them.

        About two batches are made ahead. ``beside``: the model runs on an accelerator, so that the cores are free for this.

        Raises:
            InvalidRowsError: samples that cannot be had, all of them.
            ImuError: samples that do not fit into one batch.
        """

    def scale(self, batch: Tensor) -> Tensor:
        """A batch on the model's device as what the model takes."""
