"""What the commands measured, as versioned files: the record of an unlearning and the evaluation of a model.

Written as JSON without NaN. The forget list's names are never in them, only counts and hashes; its ids only after
``evaluate --by``.
"""

from typing import Any, Literal

from pydantic import (
    Field,
)

from imu_cli.records.parts import EmbeddingInfo, FileHash, HeldOutInfo, Interval, Link, Model, ScoreInfo, _Written


class Target(Model):
    """What the share on D_f is to fall to, where that comes from, and what n samples show at that rate.

    ``value`` is the share at the original head; where it ``follows``, the run compares with unseen samples under the head that
    results. ``auc`` is the membership AUC that is the target where accuracy has nothing to say. ``margin`` is the distance from
    a decision boundary, in logits, within which a sample is not counted as forgotten: batch size, folding, precision and device
    move logits by less.
    """

    value: float | None
    source: str
    range: Interval | None = None
    follows: bool = False
    auc: float | None = None
    margin: float = 0.0


class LookInfo(Model):
    """One look at the head along the way; shares are 0 to 1.

    ``head_change`` is ‖ΔW‖/‖W‖ of the head, or of all weights that move. ``near`` is the share of D_f that is not predicted as a
    member, but by less than ``Target.margin``; ``unseen`` what ``forget`` is for unseen samples under this head, where the target
    follows it; ``class_drop`` the largest fall of a kept class. Of an embedding model there is no ``forget``: ``similarity`` is the mean
    of pairs of one forgotten person, ``unseen_similarity`` of one unseen person, ``auc`` of the former against the latter, ``map`` the mean
    average precision of forgotten people among both, ``test_drop`` the fall of unseen people's. Of a language model ``forget`` and ``unseen``
    are shares of a completion's tokens that are predicted right, ``extraction`` and ``unseen_extraction`` extraction strengths, ``loss`` and
    ``unseen_loss`` mean cross-entropies of completions.
    """

    step: int
    fraction: float = 1.0
    loss: float | None = None
    forget: float | None = None
    head_change: float
    test_drop: float | None = None
    near: float = 0.0
    unseen: float | None = None
    class_drop: float | None = None
    rho: float | None = None
    auc: float | None = None
    margin_error: float | None = None
    similarity: float | None = None
    unseen_similarity: float | None = None
    map: float | None = None
    extraction: float | None = None
    unseen_extraction: float | None = None
    unseen_loss: float | None = None
    test_drop_error: float | None = None


class TensorChange(Model):
    """A tensor of the file that differs, and ‖ΔW‖/‖W‖ of it; None where it was all zeros."""

    name: str
    change: float | None


class ScopeInfo(Model):
    """What moved beside or beyond the head, and how it was trained.

    Attributes:
        given: as the user wrote it; ``modules`` are the paths that it stands for, ``weights`` how many numbers they have.
        cut: path of the module whose output was kept, "" where the network ran from its input.
        anchor, unseen: samples that were held to the original's answers, and samples that gave targets and were not.
        beta, learning_rate, batches, steps, minibatch: of the training; ``steps`` of its ``batches`` were made.
        fraction: of the way from the look before to the last one, or from the original, at which the weights lie.
        weighting: of the forget samples.
        feature_term: whether features were spread around the kept classes'.
        passes: cost in forward passes of the whole network over forget and anchor samples.
        tensors: what differs in the file.
    """

    given: str
    modules: list[str]
    weights: int
    cut: str
    anchor: int
    unseen: int
    beta: float
    learning_rate: float
    batches: int
    steps: int
    minibatch: int
    fraction: float
    weighting: Literal["influence", "uniform"]
    feature_term: bool
    passes: float
    tensors: list[TensorChange]


class Record(_Written):
    """What ``imu unlearn`` did."""

    schema_: Literal["imu.record/1"] = Field(default="imu.record/1", alias="schema")
    before: FileHash
    after: FileHash
    changed: list[str]
    unchanged: int
    outside_sha256: str
    method: Literal["imu", "matched", "demoted"]
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
    scope: ScopeInfo | None = None
    embedding: EmbeddingInfo | None = None
