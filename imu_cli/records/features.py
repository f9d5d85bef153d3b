"""What ``imu features`` wrote."""

from typing import Literal

from pydantic import (
    Field,
)

from imu_cli.records.parts import FileHash, ForgetInfo, HeadInfo, Model


class Extracted(Model):
    """What ``imu features`` wrote; printed.

    ``complete`` says that the file holds the whole data set and not a forget list; ``bytes`` is the file's size.
    """

    schema_: Literal["imu.extracted/1"] = Field(default="imu.extracted/1", alias="schema")
    output: str
    model: FileHash
    head: HeadInfo
    forget: ForgetInfo
    complete: bool
    precision: str
    batch_size: int
    folded: int
    processes: int
    blocks: int
    bytes: int
    peak_bytes: int
    seconds: dict[str, float]
    notes: list[str]
