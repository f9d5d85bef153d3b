"""The evaluation of a model: metrics, curves, verdicts."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    FiniteFloat,
    model_validator,
)

from imu_cli.records.parts import FileHash, Interval, Model, _Written


class Metric(Model):
    """One number with everything needed to read it.

    ``value`` is after unlearning and ``before`` the original's; None where not measured, and ``missing`` says why.
    ``better`` says which way is better for the purpose, or "target" where being near ``target`` is.
    """

    name: str
    title: str
    definition: str
    value: float | None = None
    before: float | None = None
    n: int | None = None
    split: str = ""
    interval: Interval | None = None
    before_interval: Interval | None = None
    better: Literal["lower", "higher", "target", "none"] = "none"
    target: float | None = None
    target_note: str = ""
    target_range: Interval | None = None
    census: bool = False
    missing: str | None = None
    note: str = ""


class Requirement(Model):
    """One gate and its verdict; ``warning`` says what it lets pass that it probably should not."""

    text: str
    metric: str
    verdict: Literal["pass", "fail", "inconclusive"]
    compared: float | None
    reason: str
    warning: str = ""


SplitName = Literal["forget", "test"]
When = Literal["before", "after"]
Rate = Annotated[float, Field(ge=0, le=1)]


class Series(Model):
    """One split's counts in the bins of a histogram; "test" is its class-matched part."""

    split: SplitName
    when: When
    counts: list[Annotated[int, Field(ge=0, le=10**12)]]


class Histogram(Model):
    """Counts in the bins between neighbouring edges."""

    edges: list[FiniteFloat] = Field(min_length=2)
    series: list[Series]

    @model_validator(mode="after")
    def _fits(self) -> "Histogram":
        if any(a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must rise")
        if any(len(item.counts) != len(self.edges) - 1 for item in self.series):
            raise ValueError("a histogram needs one count between each two edges")
        return self


class RocCurve(Model):
    """Share of D_f (with its 95 % interval) beyond the thresholds that shares ``fpr`` of class-matched test samples pass."""

    when: When
    tail: Literal["remembered", "over-unlearned"]
    fpr: list[Annotated[float, Field(gt=0, le=1)]]
    tpr: list[Rate]
    low: list[Rate]
    high: list[Rate]

    @model_validator(mode="after")
    def _fits(self) -> "RocCurve":
        if len({len(self.fpr), len(self.tpr), len(self.low), len(self.high)}) != 1:
            raise ValueError("fpr, tpr, low and high must be equally long")
        return self


class Curves(Model):
    """What a report draws, as counts and rates: confidence φ of D_f and class-matched test samples, ROC curves."""

    confidence: Histogram
    roc: list[RocCurve]


class ClassRow(Model):
    """Accuracy on the samples of one class in one split."""

    class_: str = Field(alias="class")
    split: str
    n: int
    before: float | None
    after: float | None


class PartRow(Model):
    """Results on the forget samples of one id or group: share predicted, confidence, AUC against test samples."""

    name: str
    n: int
    before: float | None
    after: float | None
    confidence: float | None
    auc: float | None
    auc_interval: Interval | None


class Evaluation(_Written):
    """What ``imu evaluate`` measured."""

    schema_: Literal["imu.evaluation/1"] = Field(default="imu.evaluation/1", alias="schema")
    model: FileHash
    original: FileHash | None
    retrained: FileHash | None = None
    record: FileHash | None
    changed: list[str] | None
    head_only: bool | None
    summary: str
    metrics: list[Metric]
    per_class: list[ClassRow]
    by: Literal["id", "group"] | None = None
    per_part: list[PartRow] = Field(default_factory=list)
    requirements: list[Requirement]
    given: dict[str, str | None]
    curves: Curves | None = None
