"""The seam between samples and models: what a store hands over becomes a batch that the model takes, by the input step of its kind."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from imu_cli.models.batches import Batch
from imu_cli.samples.dataset import SampleSet

Placed = tuple[Sequence[int], Batch]
"""Samples together, and their places among the rows that were wanted: a range where they come in order."""


class InputStep(Protocol):
    """What samples of a kind go through before a model: on other threads, and then on the model's device.

    Images have ``samples.images.preprocessing``; another kind of sample brings a step of its own, and nothing that runs models
    or keeps features has to know which it is.
    """

    @property
    def window(self) -> int:
        """Rows within which samples may change places, so that those of a batch are of one length; 1 where all come in order."""
        return 1

    @property
    def padding(self) -> int | None:
        """The token id that fills up a text beside a longer one; None for samples of one shape."""
        return None

    @property
    def left(self) -> bool:
        """Whether padding goes before a text."""
        return False

    def described(self) -> dict[str, Any]:
        """As it stands in the record and the cache key, and as it is read again from there."""

    def together(self, samples: SampleSet, rows: Sequence[int]) -> Batch:
        """The given rows as one batch, in the order given, as far as the processor takes them.

        Raises:
            InvalidRowsError: samples that cannot be had, all of them.
            ImuError: samples that do not fit into one batch.
        """

    def batches(
        self,
        samples: SampleSet,
        size: int,
        rows: Sequence[int] | None = None,
        *,
        beside: bool = False,
        window: int | None = None,
    ) -> Iterator[Placed]:
        """The samples, or the given rows of them, ``size`` at a time, as far as the processor takes them, and their places.

        Every place comes once. All places of one window of rows come before those of the next: ``window`` rows, or the step's
        own number of them. About two batches are made ahead. ``beside``: the model runs on an accelerator, so that the cores
        are free for this.

        Raises:
            InvalidRowsError: samples that cannot be had, all of them.
            ImuError: samples that do not fit into one batch.
        """

    def full(self, batch: Batch) -> float:
        """How much room a sample takes at most, where one of this batch takes 1: ``size`` of ``batches`` counts such samples."""
        return 1.0

    def sentences(self, samples: SampleSet) -> "tuple[Sequence[int], NDArray[np.int64], NDArray[np.int64]] | None":
        """Of words a row of each sentence, and the place of each word's sentence among those (n,) and its token (n,); else None."""
        return None

    def alone(self, batch: Batch) -> tuple[int, Batch] | None:
        """A batch's shortest sample, by its row, as it would be without the others; None where nothing is padded."""
        return None

    def scale(self, batch: Any) -> Batch:
        """A batch on the model's device as what the model takes."""
