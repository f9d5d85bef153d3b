"""Held-out and retained data of a run, without the forget samples."""

import hashlib
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from imu_cli.commands import preparing
from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.features.session import Session
from imu_cli.records.parts import HeldOutInfo
from imu_cli.samples import asked
from imu_cli.samples.classes import in_model_ids
from imu_cli.samples.dataset import TEXTS, WORDS, SampleSet
from imu_cli.samples.manifest import open_source
from imu_cli.samples.overlap import overlap, without
from imu_cli.samples.texts.sentences import sentences
from imu_cli.unlearning import targets
from imu_cli.unlearning.targets import HeldOut


def half(samples: SampleSet, seed: int) -> list[int]:
    """A random half of the rows, sorted, drawn by the seed: what an unlearning may choose by. Words go with their sentence."""
    of = sentences(samples)
    place = np.arange(len(samples)) if of is None else np.unique(of, return_inverse=True)[1]
    n = int(place.max(initial=-1)) + 1
    return np.flatnonzero(_drawn(place, n, (n + 1) // 2, seed)).tolist()


def _drawn(place: NDArray[np.int64], n: int, count: int, seed: int) -> NDArray[np.bool_]:
    """Which rows (k,) are of ``count`` of n wholes, drawn by the seed; ``place`` (k,) is the whole of each."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return np.isin(place, order[:count].numpy())


def two_parts(samples: SampleSet, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Rows of two parts, sorted: of every class a share is in the second, and one sample at least; of words a share of sentences."""
    of = sentences(samples)
    if of is not None:  # words of one sentence stay together, whatever their classes
        place = np.unique(of, return_inverse=True)[1]
        n = int(place.max()) + 1
        apart = _drawn(place, n, max(1, round(share * n)), seed)
        return np.flatnonzero(~apart).tolist(), np.flatnonzero(apart).tolist()
    of_class: dict[int, list[int]] = {}
    for row in torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist():
        of_class.setdefault(samples.labels[row], []).append(row)
    second = {row for rows in of_class.values() for row in rows[: max(1, round(share * len(rows)))]}
    return [row for row in range(len(samples)) if row not in second], sorted(second)


def rows_hash(samples: SampleSet) -> str:
    """SHA-256 over names and labels of the rows, in order."""
    summed, between = hashlib.sha256(b"["), ""
    for pair in zip(samples.names, samples.labels, strict=True):
        summed.update(f"{between}{pair!r}".encode())
        between = ", "
    summed.update(b"]")
    return summed.hexdigest()


def reference_of(opened: Session, test: str | None, reference: str | None) -> tuple[SampleSet, HeldOutInfo] | None:
    """The held-out samples that a run chooses by, ``--reference`` or a random half of ``--test``; None with neither."""
    given = reference or test
    option: Literal["test", "reference"] = "reference" if reference else "test"
    if given is None:
        return None
    samples = held_out(opened, given, f"--{option}")
    whole = len(samples)
    if option == "test":
        samples = samples.subset(half(samples, opened.run.seed))
        opened.note(
            f"--test {given}: a random half ({len(samples)} of {whole}, seed {opened.run.seed}) sets target and guard; "
            "the other half is left for evaluate"
        )
    info = HeldOutInfo(
        given=given, option=option, n=whole, used=len(samples), seed=opened.run.seed, sha256=rows_hash(samples)
    )  # fmt: skip
    return samples, info


def chosen_by(
    opened: Session, test: str | None, reference: str | None, forgotten: tuple[int, ...]
) -> tuple[HeldOut | None, HeldOutInfo | None, SampleSet | None]:
    """Features and labels of the held-out samples that a run chooses by, how the record tells them, and they; None with neither.

    Raises:
        ImuError: no sample of a kept class is among them.
    """
    found = reference_of(opened, test, reference)
    if found is None:
        return None, None, None
    samples, info = found
    labels = opened.labels(samples)
    return targets.held_out(opened.features_of(samples, "held-out"), labels, forgotten), info, samples


def held_out(opened: Session, spec: str, option: str = "--test") -> SampleSet:
    """The held-out set in the model's ids, without twins of the forget samples.

    Raises:
        ImuError: a class the model does not have, forget samples stand in it, or nothing but twins of them.
    """
    samples = _labelled(opened, open_source(spec, "test", opened.data, names=opened.columns))
    shared = overlap(opened.forget.samples, samples)
    if shared.same:
        raise InvalidRowsError(
            [
                f"{opened.forget.samples.where(mine)}: also stands in {option} as {samples.where(theirs)}; "
                "held-out data must not hold forget samples"
                for mine, theirs in shared.same
            ]
        )
    twins = {theirs for _, theirs in shared.twins}
    if twins:
        opened.note(
            f"{option} {spec}: {len(twins)} of its {len(samples)} samples are twins of forget samples (the same bytes) and are "
            "left out"
        )
    if len(twins) == len(samples):
        raise ImuError(f"{option} {spec}: nothing is left of it without twins of the forget samples; give other data")
    return without(samples, twins)


def _labelled(opened: Session, samples: SampleSet) -> SampleSet:
    """The samples in the model's ids; records of a language model have no labels.

    Raises:
        ImuError: samples of another kind than the model takes.
        InvalidRowsError: labels that the model does not have.
    """
    refuse_other_kind(opened, samples)
    return asked.unlabelled(samples) if opened.head.writes else in_model_ids(samples, opened.classes)


def refuse_other_kind(opened: Session, samples: SampleSet) -> None:
    """Refuse samples of another kind than those that the model was opened on.

    Raises:
        ImuError: naming both.
    """
    if opened.network is None:
        return  # features from a file are what they are; that nothing else can be run is said where it would be
    kind = opened.forget.samples.kind
    takes: preparing.Takes = (
        "record" if opened.head.writes else "word" if kind is WORDS else "text" if kind is TEXTS else "image"
    )
    preparing.refuse_other_kind(takes, samples, opened.checkpoint.path)


def retained(opened: Session, spec: str) -> SampleSet:
    """The ``--retain`` set in the model's ids, without the forget samples in it and their twins."""
    samples = _labelled(opened, open_source(spec, "retain", opened.data, names=opened.columns))
    shared, whole = overlap(opened.forget.samples, samples), len(samples)
    inside = {theirs for _, theirs in shared.same}
    twins = {theirs for _, theirs in shared.twins} - inside
    if inside:
        opened.note(f"--retain {spec}: {len(inside)} of its {whole} samples are forget samples and are left out")
    if twins:
        mine = len({mine for mine, theirs in shared.twins if theirs in twins})
        opened.note(
            f"--retain {spec}: {len(twins)} of its {whole} samples are twins (the same bytes) of {mine} forget samples and are left "
            "out; where they stay in the training data, those forget samples are not forgotten while their twins are remembered"
        )
    samples = without(samples, inside | twins)
    if len(samples) == 0:
        raise ImuError(f"--retain {spec}: nothing is left of it without the forget samples")
    return samples
