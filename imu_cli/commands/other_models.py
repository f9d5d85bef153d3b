"""The evaluated model beside the models it is compared with: its original, and one that was retrained."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from imu_cli.commands import opening, preparing, reuse
from imu_cli.config.commands import EvaluateConfig
from imu_cli.errors import ImuError
from imu_cli.evaluation.evidence import Split
from imu_cli.features import engine
from imu_cli.features.session import Session
from imu_cli.linear.rows import Logits, Mapped, Rows, with_bias
from imu_cli.models import checkpoint
from imu_cli.models.architecture import Loaded
from imu_cli.models.sidecar import Said
from imu_cli.records.record import Record
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.texts.sentences import clusters
from imu_cli.statistics import metrics
from imu_cli.statistics.intervals import Estimate, census


@dataclass(frozen=True)
class Other:
    """Another model of the same architecture; its features are the evaluated one's where the backbones are the same."""

    opened: Session
    same_backbone: bool
    changed: list[str]

    def matrix(self) -> Tensor:
        """W (c, d+1) float64."""
        return self.opened.matrix()


def open_other(opened: Session, path: Path, config: EvaluateConfig) -> Other:
    """The model at ``path``, which has to be another state of the evaluated one.

    Raises:
        ImuError: its head is not of the same shape, or it cannot be read.
        RefusedError: it cannot be handled.
    """
    before, loaded = _load_other(opened, path, config)
    changed = checkpoint.differing(before, opened.checkpoint)
    head = opened.head.with_matrix(_matrix_of(before, opened))
    outside = before.outside_hash(set(head.tensors))
    same, network = outside == opened.outside_sha256, opened.network
    if network is not None and loaded is not None:
        preparing.share(network.preprocess, loaded.model, path)
    if network is not None and loaded is not None and not same:
        network = replace(network, loaded=loaded, model=engine.prepare(loaded.model, opened.device))
    return Other(replace(opened, checkpoint=before, network=network, head=head, outside_sha256=outside), same, changed)


def _load_other(opened: Session, path: Path, config: EvaluateConfig) -> tuple[checkpoint.Checkpoint, Loaded | None]:
    """The checkpoint, and its model where the evaluated one is run."""
    if opened.network is None:
        return checkpoint.open_checkpoint(path), None
    built = opened.network.loaded.architecture
    known = None if built.runs_code else Said("the evaluated model", built.name, built.arguments)
    return opening.load_model(path, config, known)


def original_path(opened: Session, config: EvaluateConfig, found: Record | None) -> Path | None:
    """Where the model before unlearning is, by --original or by the record; None, with a note, where the record's is gone."""
    if config.original is None:
        return None
    path = Path(config.original)
    if not path.exists() and found is not None:
        opened.note(
            f"the original {path} named by the record is not there; nothing is compared with it (give --original)"
        )
        return None
    return path


def open_original(opened: Session, config: EvaluateConfig, found: Record | None) -> Other | None:
    """The model before unlearning, by --original or by the record; None, with a note, where the record's is gone.

    Raises:
        ImuError: it is not the model that the record says was unlearned.
    """
    path = original_path(opened, config, found)
    if path is None:
        return None
    other = open_other(opened, path, config)
    if found is not None and other.opened.checkpoint.sha256 != found.before.sha256:
        raise ImuError(
            f"{path}: not the model that the record says was unlearned (its SHA-256 differs); give --original"
        )
    return other


def _matrix_of(before: checkpoint.Checkpoint, opened: Session) -> Tensor:
    """The original's head as W (c, d+1) float64."""
    names, entries = opened.head.tensors, opened.checkpoint.entries
    if any(name not in before.entries or before.entries[name].shape != entries[name].shape for name in names):
        raise ImuError(
            f"{before.path}: has no head {names[0]} of the same shape; it has to be another state of the same model"
        )
    parts = [before.tensor(name).to(torch.float64) for name in names]
    return torch.cat([parts[0], parts[1].unsqueeze(1)], dim=1) if len(parts) == 2 else parts[0]


@dataclass(frozen=True)
class Models:
    """The evaluated model, and those it is compared with."""

    opened: Session
    original: Other | None
    retrained: Other | None
    config: EvaluateConfig

    def split(self, samples: SampleSet, what: str) -> Split:
        """Logits of every model on a set of samples; features are read once where backbones agree."""
        opened, original = self.opened, self.original
        h = (
            reuse.forget_features(opened, self.config, narrow=True)
            if what == "forget"
            else opened.features_of(samples, what, narrow=True)
        )
        before = None if original is None else _features_by(original, h, samples, f"{what}, original")
        again = None if self.retrained is None else _features_by(self.retrained, h, samples, f"{what}, retrained")
        labels, of = opened.labels(samples), clusters(samples)
        return Split(
            labels=labels,
            before=None if before is None or original is None else Logits(before, original.matrix()),
            after=Logits(h, opened.matrix()),
            features=_alone(h),
            features_before=None if before is None else _alone(before),
            retrained=None if again is None or self.retrained is None else Logits(again, self.retrained.matrix()),
            features_retrained=None if again is None else _alone(again),
            clusters=None if of is None else torch.from_numpy(of).to(labels.device),
        )

    def head(self, matrix: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight (c, d), and bias (c,) where the head has one."""
        return (matrix[:, :-1], matrix[:, -1]) if self.opened.head.bias else (matrix, None)


def _alone(h: Rows) -> Rows:
    """The features without the column of ones."""
    assert isinstance(h, Mapped)  # narrow ones are
    return with_bias(h, False)


def _features_by(other: Other, h: Rows, samples: SampleSet, what: str) -> Rows:
    return h if other.same_backbone else other.opened.features_of(samples, what, narrow=True)


def drift(split: Split, original: Other | None) -> Estimate | None:
    """How far the features of D_f moved from the original's; a census of zero where the backbones are the same."""
    if original is None or split.features_before is None:
        return None
    if original.same_backbone:
        return census(0.0, len(split.labels))
    return metrics.feature_drift(split.features_before, split.features)
