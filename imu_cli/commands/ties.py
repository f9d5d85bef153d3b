"""``imu influence`` of an embedding model: how strongly each forgotten image is tied to its person's others."""

import math
from collections.abc import Mapping
from pathlib import Path

from imu_cli.commands import people, provenance
from imu_cli.config.commands import InfluenceConfig
from imu_cli.errors import ImuError
from imu_cli.features.session import Session
from imu_cli.records.parts import EmbeddingInfo
from imu_cli.records.ties import TieRow, Ties
from imu_cli.statistics import same_person

CLASSIFIER_ONLY = ("kernel", "images", "scenario", "until", "rho", "damping", "keep", "clip_quantile", "max_auc")
"""Options of ``imu influence`` that mean nothing for an embedding model."""


def run(opened: Session, config: InfluenceConfig, origins: Mapping[str, str]) -> Ties:
    """Every forgotten image's part in what ties its person together, beyond what ties unseen people's images.

    Raises:
        ImuError: no unseen people are given, or nobody has two images on two cameras.
    """
    people.refuse_options(CLASSIFIER_ONLY, origins)
    people.refuse_strangers(opened)
    held = config.reference or config.test
    if held is None:
        raise ImuError("--test: not given; images of people whom the model never saw say what is more than usual")
    sets = people.sets_of(opened, held, None, beside=False)
    scene = people.scene_of(opened, sets)
    view = people.view_of(opened, scene, sets)
    ours, theirs = scene.pairs["forget"], scene.pairs["test"]
    if not isinstance(ours, same_person.Pairs) or not isinstance(theirs, same_person.Pairs):
        who = "--forget" if not isinstance(ours, same_person.Pairs) else "--test"
        raise ImuError(f"{who}: nobody has two images on two cameras; give more images of the people")
    similar, unseen = view.similar["forget"], view.similar["test"]
    samples = opened.forget.samples
    found = same_person.ties(ours, similar, unseen, len(samples))
    rows = [
        TieRow(
            path=samples.names[row],
            person=samples.class_text(samples.labels[row]),
            pairs=int(found.pairs[row]),
            similarity=_number(float(found.similarity[row])),
            excess=_number(float(found.excess[row])),
        )
        for row in range(len(samples))
    ]
    head = opened.head
    return Ties(
        model=provenance.model_hash_of(opened.checkpoint, Path()),
        **opened.described(),
        embedding=EmbeddingInfo(module=head.module, size=head.matrix.shape[1], source=head.source),
        n=len(samples),
        people=len(set(samples.labels)),
        unseen_people=theirs.count,
        similarity=float(similar.mean()),
        unseen_similarity=float(unseen.mean()),
        excess=float((similar - same_person.by_rank(similar, unseen)).mean()),
        without_pairs=sum(row.pairs == 0 for row in rows),
        notes=opened.log.notes,
        rows=rows,
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
