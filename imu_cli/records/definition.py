"""What a metric is, as records, gates, tables and docs tell it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Definition:
    """What a metric is. ``needs`` is the data without which it is not measured."""

    title: str
    text: str
    better: Literal["lower", "higher", "target", "none"]
    needs: str
