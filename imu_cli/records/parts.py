"""What records and evaluations are made of, and what both hold."""

import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
)

from imu_cli.files.checking import FileName

LIMIT = (
    "This documents a change and the tests made of it. It is not a finding that data were erased, nor that a legal duty "
    "was met."
)


WHAT = {
    "class": "forget samples predicted as a forgotten class",
    "sample": "forget samples predicted as their label",
    "mislabelled": "forget samples predicted as their wrong label",
    "person": "forgotten people",
    "record": "tokens of forgotten records predicted right",
}
"""The share that each scenario is about."""


class Model(BaseModel):
    """Base of everything in a record: unknown keys are refused, numbers that are not finite become null."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)

    @field_serializer("*", when_used="json")
    def _no_nan(self, value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value


class FileHash(Model):
    """A file as it was: path relative to the record's folder, SHA-256 of its bytes."""

    path: FileName
    sha256: str


class OptionValue(Model):
    """An option's value and where it came from: flag, environment, file, preset or default."""

    value: Any
    origin: str


class HeadInfo(Model):
    """The head that was changed, and how well it replayed the model's logits."""

    module: str
    tensors: list[str]
    dtype: str
    classes: int
    features: int
    bias: bool
    source: str
    replay_error: float


class ForgetInfo(Model):
    """What was to be forgotten, without naming a sample: how it was given, counts, hashes."""

    given: list[FileName]
    label: str | None
    data: FileName | None
    n: int
    per_class: dict[str, int]
    whole_classes: bool
    sha256: str
    manifest: FileHash | None
    relabelled: int = 0


class EmbeddingInfo(Model):
    """What the embedding is: the output of ``module`` ("" for the model's), ``size`` numbers, and who said so."""

    module: str
    size: int
    source: str


class Interval(Model):
    """A 95 % interval and how it was got."""

    low: float
    high: float
    method: str


class HeldOutInfo(Model):
    """Held-out data that a run chose by: target, Σ and guard. ``used`` of its ``n`` rows, drawn by ``seed``."""

    given: str
    option: Literal["test", "reference"]
    n: int
    used: int
    seed: int
    sha256: str


class Decade(Model):
    """How many negative scores lie from −10^(power+1) to −10^power."""

    power: int = Field(ge=-400, le=400)
    count: int = Field(ge=0)


class PrecisionError(Model):
    """What computing the features in less than float32 did to the scores, on a random part of D_f done again in float32.

    ``relative_rms`` is the root mean square of the difference over that of the scores, both along the direction found in
    the lower precision; ``rank_correlation`` is Spearman's; ``sign_changed`` counts samples.
    """

    n: int
    relative_rms: float
    rank_correlation: float
    sign_changed: int


class RunInfo(Model):
    """How the features of D_f came about, and the memory it took.

    ``batch_size``, ``folded`` (batch norms folded into convolutions) and ``prepacked`` (linear layers laid out for the processor)
    are None where no model ran; ``source`` is then
    the file or the cache. ``feature_bytes`` is what they take in memory, or in the file that they are ``streamed`` from;
    ``peak_bytes`` the most that the process had resident, mapped files included.
    """

    source: str
    precision: str
    batch_size: int | None
    folded: int | None
    prepacked: int | None = None
    streamed: bool
    feature_bytes: int
    peak_bytes: int
    accelerator_peak_bytes: int | None = None


class ScoreInfo(Model):
    """The scores in numbers: how many were negative and kept, damping, quantiles, negative ones by powers of ten."""

    negative: int
    kept: int
    damping: float
    mean_fisher: float
    quantiles: dict[str, float]
    from_cache: bool
    decades: list[Decade] = Field(default_factory=list)
    precision_error: PrecisionError | None = None


class Environment(Model):
    """Versions and device that computed this."""

    imu: str
    python: str
    torch: str
    torchvision: str
    platform: str
    device: str


class Link(Model):
    """An earlier record that this one builds on."""

    record: FileHash
    forget_sha256: str
    n: int


def _named(architecture: dict[str, Any]) -> dict[str, Any]:
    if not all(isinstance(architecture.get(key), str) for key in ("name", "source")):
        raise ValueError("an architecture needs a name and a source")
    if not isinstance(architecture.get("arguments", {}), dict):
        raise ValueError("an architecture's arguments are a mapping")
    return architecture


Architecture = Annotated[dict[str, Any], AfterValidator(_named)]
"""``name``, ``source``, ``arguments`` and whatever else describes it."""


class Made(Model):
    """What every file says of how it was made."""

    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    architecture: Architecture
    preprocess: dict[str, Any]
    preprocess_source: str
    options: dict[str, OptionValue]
    seed: int
    environment: Environment
    seconds: dict[str, float]
    notes: list[str]
    run: RunInfo | None = None
    limit: str = LIMIT


class _Written(Made):
    classes: list[str] | None
    classes_source: str
    head: HeadInfo
    forget: ForgetInfo
    scenario: Literal["class", "sample", "mislabelled", "person", "record"]
    scenario_source: str
