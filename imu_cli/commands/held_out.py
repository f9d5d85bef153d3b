"""Held-out and retained data of a run, without the forget samples."""

import hashlib
from typing import Literal

import torch

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.features.session import Opened
from imu_cli.records.parts import HeldOutInfo
from imu_cli.samples.classes import in_model_ids
from imu_cli.samples.dataset import ImageSet
from imu_cli.samples.manifest import open_source
from imu_cli.samples.overlap import overlap


def half(images: ImageSet, seed: int) -> list[int]:
    """A random half of the rows, sorted, drawn by the seed: what an unlearning may choose by."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return sorted(order[: (len(images) + 1) // 2].tolist())


def rows_hash(images: ImageSet) -> str:
    """SHA-256 over names and labels of the rows, in order."""
    summed, between = hashlib.sha256(b"["), ""
    for pair in zip(images.names, images.labels, strict=True):
        summed.update(f"{between}{pair!r}".encode())
        between = ", "
    summed.update(b"]")
    return summed.hexdigest()


def reference_of(opened: Opened, test: str | None, reference: str | None) -> tuple[ImageSet, HeldOutInfo] | None:
    """The held-out samples that a run chooses by, ``--reference`` or a random half of ``--test``; None with neither."""
    given = reference or test
    option: Literal["test", "reference"] = "reference" if reference else "test"
    if given is None:
        return None
    images = held_out(opened, given, f"--{option}")
    whole = len(images)
    if option == "test":
        images = images.subset(half(images, opened.config.seed))
        opened.note(
            f"--test {given}: a random half ({len(images)} of {whole}, seed {opened.config.seed}) sets target and guard; "
            "the other half is left for evaluate"
        )
    info = HeldOutInfo(
        given=given, option=option, n=whole, used=len(images), seed=opened.config.seed, sha256=rows_hash(images)
    )  # fmt: skip
    return images, info


def held_out(opened: Opened, spec: str, option: str = "--test") -> ImageSet:
    """The held-out set in the model's ids.

    Raises:
        ImuError: a class the model does not have, or forget samples stand in it.
    """
    images = in_model_ids(open_source(spec, "test", opened.data), opened.classes)
    shared = overlap(opened.forget.images, images)
    if shared:
        raise InvalidRowsError(
            [
                f"{opened.forget.images.where(mine)}: also stands in {option} as {images.where(theirs)}; "
                "held-out data must not hold forget samples"
                for mine, theirs in shared
            ]
        )
    return images


def retained(opened: Opened, spec: str) -> ImageSet:
    """The ``--retain`` set in the model's ids, without the forget samples in it."""
    images = in_model_ids(open_source(spec, "retain", opened.data), opened.classes)
    inside = {theirs for _, theirs in overlap(opened.forget.images, images)}
    if inside:
        opened.note(f"--retain {spec}: {len(inside)} of its {len(images)} samples are forget samples and are left out")
        images = images.subset([row for row in range(len(images)) if row not in inside])
    if len(images) == 0:
        raise ImuError(f"--retain {spec}: nothing is left of it without the forget samples")
    return images
