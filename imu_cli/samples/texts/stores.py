"""What holds texts: the rows of one file, packed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from imu_cli.samples import packing
from imu_cli.samples.dataset import TEXTS
from imu_cli.samples.packing import Digests

Text = str | tuple[str, str]
"""What a text comes as: itself, or both of a pair."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts, or pairs of them, of one file.

    Attributes:
        shown: the file as the user named it, for messages.
        identity: the file, all links resolved.
        lines: physical line that each begins on.
        texts: the texts, packed.
        pairs: the second of each pair; None where texts stand alone.
    """

    shown: str
    identity: str
    lines: Sequence[int]
    texts: packing.Texts
    pairs: packing.Texts | None = None
    root: None = None

    kind = TEXTS

    @cached_property
    def digests(self) -> Digests:
        """sha256 by position; all of them."""
        return Digests.of(self.stored(at) for at in range(len(self.lines)))

    def where(self, at: int) -> str:
        """The file and the line in it, such as ``train.csv:17``."""
        return f"{self.shown}:{self.lines[at]}"

    def location(self, at: int) -> str:
        """The same with links resolved."""
        return f"{self.identity}:{self.lines[at]}"

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each, (n,)."""
        return self.texts.lengths if self.pairs is None else self.texts.lengths + 1 + self.pairs.lengths

    def size(self, at: int) -> int:
        """Bytes of the text in UTF-8."""
        return int(self.sizes[at])

    def stored(self, at: int) -> bytes:
        """The text in UTF-8, whatever the file's quoting: what the model sees. The second of a pair follows a NUL."""
        first = self.texts.bytes_of(at)
        return first if self.pairs is None else first + b"\0" + self.pairs.bytes_of(at)

    def decode(self, at: int) -> Text:
        """The text, or the pair."""
        return self.texts.of_row(at) if self.pairs is None else (self.texts.of_row(at), self.pairs.of_row(at))

    def arrays(self, _: NDArray[np.int64]) -> None:
        """Texts are taken one by one."""
        return
