"""The influence scores of records and of their tokens, under a language model."""

import heapq
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from imu_cli.records.parts import FileHash, ForgetInfo, HeadInfo, Model, RunInfo, ScoreInfo


class RecordScore(Model):
    """One forget record: its place, and of its completion the tokens' scores and their sum.

    Attributes:
        score: sum over the tokens, the score of the record's summed gradient.
        probability: exp of minus the mean loss of a token.
        exact: share of the tokens that have the largest logit.
        scores: of each token, in order.
        probabilities: of each token.
    """

    id: str
    path: str
    score: float
    probability: float
    exact: float
    scores: list[float]
    probabilities: list[float]


class TokenInfluence(Model):
    """What ``imu influence`` found of a language model; printed, and kept in the cache rather than in a file of its own.

    ``scores`` tells of tokens. ``rows`` stand last in its JSON, and are written one by one. ``texts`` are the tokens of some records, by
    row, where they were asked for; they are shown and never written.
    """

    schema_: Literal["imu.token_influence/1"] = Field(default="imu.token_influence/1", alias="schema")
    model: FileHash
    architecture: dict[str, Any]
    preprocess: dict[str, Any]
    preprocess_source: str
    head: HeadInfo
    forget: ForgetInfo
    tokens: int
    scores: ScoreInfo
    sign: str
    cached: str | None
    notes: list[str]
    rows: Sequence[RecordScore] = Field(default=(), exclude=True)
    texts: dict[int, list[str]] = Field(default_factory=dict, exclude=True)
    run: RunInfo | None = None

    def largest(self, show: int) -> list[int]:
        """Rows of the records with the largest scores in size, largest first."""
        return heapq.nsmallest(show, range(len(self.rows)), key=lambda row: -abs(self.rows[row].score))
