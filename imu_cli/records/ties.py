"""How strongly the images of forgotten people are tied together by an embedding model; printed, and kept nowhere."""

import heapq
from typing import Any, Literal

from pydantic import Field

from imu_cli.records.parts import EmbeddingInfo, FileHash, Model


class TieRow(Model):
    """One forgotten image: its person, pairs with other images of the person, their mean similarity, and what it exceeds unseen people by.

    ``similarity`` and ``excess`` are None for an image without a pair.
    """

    path: str
    person: str
    pairs: int
    similarity: float | None
    excess: float | None


class Ties(Model):
    """What ``imu influence`` found of an embedding model."""

    schema_: Literal["imu.ties/1"] = Field(default="imu.ties/1", alias="schema")
    model: FileHash
    architecture: dict[str, Any]
    preprocess: dict[str, Any]
    preprocess_source: str
    embedding: EmbeddingInfo
    n: int
    people: int
    unseen_people: int
    similarity: float
    unseen_similarity: float
    excess: float
    without_pairs: int
    notes: list[str]
    rows: list[TieRow]

    def largest(self, show: int) -> list[TieRow]:
        """The images that are tied most, by what they exceed unseen people by."""
        tied = [row for row in self.rows if row.excess is not None]
        return heapq.nlargest(show, tied, key=lambda row: row.excess or 0.0)
