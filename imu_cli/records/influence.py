"""The influence scores of a forget set, and what ``--kernel`` shows."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, overload

from pydantic import (
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from imu_cli.records.parts import FileHash, ForgetInfo, HeadInfo, Model, RunInfo, ScoreInfo


class Mover(Model):
    """A forget sample and the log-odds by which it moves another one's margin."""

    path: str
    moved: float


class KernelRow(Model):
    """A forget sample under matched unlearning: strength α, self-influence K_ii, margin φ, target t, its movers."""

    path: str
    strength: float
    self_influence: float
    margin: float
    target: float
    movers: list[Mover]


class ScoreRow(Model):
    """One forget sample: its place, score, weight in the ascent (0: left out), and the model's confidence in its label."""

    id: str
    path: str
    label: str
    score: float
    weight: float
    confidence: float


@dataclass(frozen=True, eq=False)
class ScoreRows(Sequence[ScoreRow]):
    """The rows of n forget samples, each made when it is asked for: a million rows are their numbers and their list's names.

    ``labels`` are class ids, which ``name_of`` names.
    """

    ids: Sequence[str]
    paths: Sequence[str]
    labels: Sequence[int]
    name_of: Callable[[int], str]
    scores: Sequence[float]
    weights: Sequence[float]
    confidence: Sequence[float]

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, at: int) -> ScoreRow: ...

    @overload
    def __getitem__(self, at: slice) -> list[ScoreRow]: ...

    def __getitem__(self, at: int | slice) -> ScoreRow | list[ScoreRow]:
        if isinstance(at, slice):
            return [self[row] for row in range(len(self))[at]]
        return ScoreRow(
            id=self.ids[at], path=self.paths[at], label=self.name_of(self.labels[at]),
            score=self.scores[at], weight=self.weights[at], confidence=self.confidence[at],
        )  # fmt: skip


def _as_they_are(rows: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    return rows if isinstance(rows, ScoreRows) else validate(rows)


class Influence(Model):
    """What ``imu influence`` found; printed, and kept in the cache rather than in a file of its own.

    ``rows`` stand last in its JSON, and are written one by one.
    """

    schema_: Literal["imu.influence/1"] = Field(default="imu.influence/1", alias="schema")
    model: FileHash
    architecture: dict[str, Any]
    preprocess: dict[str, Any]
    preprocess_source: str
    head: HeadInfo
    forget: ForgetInfo
    accuracy: float
    scores: ScoreInfo
    sign: str
    cached: str | None
    notes: list[str]
    rows: Annotated[Sequence[ScoreRow], WrapValidator(_as_they_are)] = Field(default=(), exclude=True)
    kernel: list[KernelRow] = Field(default_factory=list)
    run: RunInfo | None = None

    def largest(self, show: int) -> list[int]:
        """Rows of the samples with the largest scores in size, largest first."""
        scores = self.rows.scores if isinstance(self.rows, ScoreRows) else [row.score for row in self.rows]
        return heapq.nsmallest(show, range(len(scores)), key=lambda row: -abs(scores[row]))
