"""The evaluation of a language model: metrics, losses, verdicts; no text of a record stands in it."""

from typing import Literal

from pydantic import Field

from imu_cli.records.evaluation import Histogram, Metric, Requirement
from imu_cli.records.parts import FileHash, ForgetInfo, HeadInfo, Interval, Made, Model


class RecordRow(Model):
    """Results on the forgotten records of one id or group: extraction strength, probability, AUC of the loss against unseen records."""

    name: str
    n: int
    before: float | None
    after: float
    probability: float
    auc: float | None
    auc_interval: Interval | None


class Recall(Made):
    """What ``imu evaluate`` measured of a language model.

    ``generated`` records of each set were answered; ``answers`` is the file with answers, which are personal data.
    """

    schema_: Literal["imu.recall/1"] = Field(default="imu.recall/1", alias="schema")
    model: FileHash
    original: FileHash | None
    retrained: FileHash | None = None
    reference_model: FileHash | None = None
    record: FileHash | None
    changed: list[str] | None
    head: HeadInfo
    forget: ForgetInfo
    suite: str | None = None
    generated: int = 0
    answers: FileHash | None = None
    summary: str
    metrics: list[Metric]
    by: Literal["id", "group"] | None = None
    per_record: list[RecordRow] = Field(default_factory=list)
    requirements: list[Requirement]
    given: dict[str, str | None]
    losses: Histogram | None = None
