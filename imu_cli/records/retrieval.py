"""The evaluation of an embedding model: metrics, similarities, verdicts; nobody is named in it unless ``--by`` asked for that."""

from typing import Literal

from pydantic import Field

from imu_cli.files.checking import FileName
from imu_cli.records.evaluation import Evaluation, Histogram, Metric, Requirement
from imu_cli.records.parts import EmbeddingInfo, FileHash, Made, Model
from imu_cli.records.recall import Recall


class PeopleInfo(Model):
    """Who was to be forgotten, without naming anybody: how it was given, counts, hashes.

    ``whole`` says whether every image that the data set has of these people is in it; ids of selectors are left out of ``given``.
    """

    given: list[FileName]
    data: FileName | None
    n: int
    people: int
    whole: bool
    sha256: str
    manifest: FileHash | None


class PersonRow(Model):
    """Results on the forgotten images of one id or group: mAP, similarity of same-person pairs, AUC against unseen people."""

    name: str
    n: int
    before: float | None
    after: float | None
    similarity: float | None
    auc: float | None


class Retrieval(Made):
    """What ``imu evaluate`` measured of an embedding model."""

    schema_: Literal["imu.retrieval/1"] = Field(default="imu.retrieval/1", alias="schema")
    model: FileHash
    original: FileHash | None
    retrained: FileHash | None = None
    reference_model: FileHash | None = None
    record: FileHash | None
    changed: list[str] | None
    embedding: EmbeddingInfo
    forget: PeopleInfo
    summary: str
    metrics: list[Metric]
    by: Literal["id", "group"] | None = None
    per_person: list[PersonRow] = Field(default_factory=list)
    requirements: list[Requirement]
    given: dict[str, str | None]
    similarity: Histogram | None = None


Judged = Evaluation | Retrieval | Recall
"""What ``imu evaluate`` writes."""
