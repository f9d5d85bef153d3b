"""What the commands measured, as versioned files: the record of an unlearning and the evaluation of a model.

Written as JSON without NaN. The forget list's names are never in them, only counts and hashes; its ids only after
``evaluate --by``.
"""

import heapq
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, overload

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_serializer,
    model_validator,
)

from imu_cli.errors import ImuError
from imu_cli.models.layout import deeper, main_file, stem

LIMIT = (
    "This documents a change and the tests made of it. It is not a finding that data were erased, nor that a legal duty "
    "was met."
)


WHAT = {
    "class": "forget samples predicted as a forgotten class",
    "sample": "forget samples predicted as their label",
    "mislabelled": "forget samples predicted as their wrong label",
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

    path: str
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

    given: list[str]
    label: str | None
    data: str | None
    n: int
    per_class: dict[str, int]
    whole_classes: bool
    sha256: str
    manifest: FileHash | None
    relabelled: int = 0


class Interval(Model):
    """A 95 % interval and how it was got."""

    low: float
    high: float
    method: str


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


class HeldOutInfo(Model):
    """Held-out data that a run chose by: target, Σ and guard. ``used`` of its ``n`` rows, drawn by ``seed``."""

    given: str
    option: Literal["test", "reference"]
    n: int
    used: int
    seed: int
    sha256: str


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

    ``batch_size`` and ``folded`` (batch norms folded into convolutions) are None where no model ran; ``source`` is then
    the file or the cache. ``feature_bytes`` is what they take in memory, or in the file that they are ``streamed`` from;
    ``peak_bytes`` the most that the process had resident, mapped files included.
    """

    source: str
    precision: str
    batch_size: int | None
    folded: int | None
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
    """One gate and its verdict."""

    text: str
    metric: str
    verdict: Literal["pass", "fail", "inconclusive"]
    compared: float | None
    reason: str


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


class _Written(Model):
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    architecture: Architecture
    preprocess: dict[str, Any]
    preprocess_source: str
    classes: list[str] | None
    classes_source: str
    head: HeadInfo
    forget: ForgetInfo
    scenario: Literal["class", "sample", "mislabelled"]
    scenario_source: str
    options: dict[str, OptionValue]
    seed: int
    environment: Environment
    seconds: dict[str, float]
    notes: list[str]
    run: RunInfo | None = None
    limit: str = LIMIT


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


DEEPEST = 40
"""Levels of nesting in a record; what the tool writes has fewer than ten."""

SCHEMAS: dict[str, type[Record] | type[Evaluation]] = {"imu.record/1": Record, "imu.evaluation/1": Evaluation}


def dump(record: Model) -> str:
    """A record as JSON text: stable keys, no NaN."""
    return "".join(dumped(record))


def dumped(record: Model) -> Iterator[str]:
    """The text of ``dump`` in pieces; the rows of scores, one a line and one a piece, at the end."""
    plain = record.model_dump(mode="json", by_alias=True)
    ordered = {"schema": plain.pop("schema"), **plain} if "schema" in plain else plain
    text = _json(ordered, indent=1)
    if not isinstance(record, Influence):
        yield text + "\n"
        return
    yield text.removesuffix("\n}") + ',\n "rows": ['
    for number, row in enumerate(record.rows):
        yield (",\n  " if number else "\n  ") + _json(row.model_dump(mode="json"))
    yield "\n ]\n}\n"


def _json(plain: Any, indent: int | None = None) -> str:
    text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode()  # a path that is not UTF-8 becomes JSON's own escape


def as_shown(result: Model) -> Any:
    """A result as plain values, under the names that its class reads."""
    return result.model_dump(by_alias=True)


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the files: a record or an evaluation, told apart by ``schema``."""
    made = TypeAdapter(Annotated[Record | Evaluation, Field(discriminator="schema_")]).json_schema(by_alias=True)
    for kind in (Record, Evaluation):
        made["$defs"][kind.__name__]["required"].insert(0, "schema")  # it has a default for us, none for a file
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What imu unlearn and imu evaluate write",
        **made,
    }


def _parsed(path: Path) -> Any:
    kinds = "name a .record.json or .evaluation.json"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ImuError(f"{path}: cannot be read ({error.strerror}); {kinds}") from error
    except ValueError as error:
        raise ImuError(f"{path}: not JSON; {kinds}") from error
    except RecursionError as error:
        raise ImuError(f"{path}: nested too deeply to be a record; {kinds}") from error
    if deeper(plain, DEEPEST):
        raise ImuError(f"{path}: nested too deeply to be a record; {kinds}")
    return plain


def read(path: Path) -> Record | Evaluation:
    """Read a record or an evaluation.

    Raises:
        ImuError: missing, not JSON, of an unknown schema, or not as the schema says.
    """
    plain = _parsed(path)
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if not isinstance(schema, str) or schema not in SCHEMAS:
        raise ImuError(f"{path}: schema {schema!r} is not known to this version; it reads {', '.join(SCHEMAS)}")
    try:
        return SCHEMAS[schema].model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ImuError(f"{path}: {where}: {first['msg'].lower()}; the file was edited or cut short") from error


def beside(model: Path, kind: Literal["record", "evaluation"]) -> Path:
    """Where the record or evaluation of a model lies: ``<stem>.record.json`` beside its file, or in its folder."""
    main = main_file(model)
    return main.with_name(f"{stem(main)}.{kind}.json")
