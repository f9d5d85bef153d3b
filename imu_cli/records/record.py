"""What the commands measured, as versioned files: the record of an unlearning and the evaluation of a model.

Written as JSON without NaN. The forget list's names are never in them, only counts and hashes; its ids only after
``evaluate --by``.
"""

from typing import Any, Literal

from pydantic import (
    Field,
)

from imu_cli.records.parts import FileHash, HeldOutInfo, Interval, Link, Model, ScoreInfo, _Written


class Target(Model):
    """What the share on D_f is to fall to, where that comes from, and what n samples show at that rate."""

    value: float | None
    source: str
    range: Interval | None = None


class LookInfo(Model):
    """One look at the head along the way; shares are 0 to 1."""

    step: int
    fraction: float = 1.0
    loss: float | None = None
    forget: float
    head_change: float
    test_drop: float | None = None
    rho: float | None = None
    auc: float | None = None
    margin_error: float | None = None


class Record(_Written):
    """What ``imu unlearn`` did."""

    schema_: Literal["imu.record/1"] = Field(default="imu.record/1", alias="schema")
    before: FileHash
    after: FileHash
    changed: list[str]
    unchanged: int
    outside_sha256: str
    method: Literal["imu", "matched"]
    method_source: str
    rows: list[int] | None
    target: Target
    scores: ScoreInfo | None
    reason: str
    reached: bool | None
    start: LookInfo
    end: LookInfo
    trajectory: list[LookInfo]
    held_out: HeldOutInfo | None
    details: dict[str, Any] = Field(default_factory=dict)
    previous: Link | None = None
