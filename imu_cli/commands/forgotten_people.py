"""``imu unlearn`` of an embedding model: people who go, unseen people who say how far, and the tensors of the file that differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from imu_cli.commands import held_out, people, processes, provenance, scope
from imu_cli.commands.processes import Ranks
from imu_cli.commands.resuming import Progress
from imu_cli.config.commands import UnlearnConfig
from imu_cli.errors import ImuError
from imu_cli.features.cut import Kept, KeptWords, Upper
from imu_cli.features.session import Session, Taken
from imu_cli.files import paths
from imu_cli.models import destination, embedding, scopes
from imu_cli.models.architecture import Architecture
from imu_cli.records.parts import EmbeddingInfo, HeldOutInfo
from imu_cli.records.record import LookInfo, Record, ScopeInfo, Target
from imu_cli.samples import people as samples_people
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.people import Register
from imu_cli.statistics import retrieval, same_person
from imu_cli.statistics.quantiles import rank_map
from imu_cli.statistics.retrieval import DISTRACTOR, JUNK, NO_CAMERA, Sightings
from imu_cli.unlearning.demotion import loop, pairs
from imu_cli.unlearning.demotion.pairs import Aim, Images, Look, PairTraining, Schedule

LEARNING_RATE = 0.007
"""Share of a layer's size that a step may move it by (benchmarks/quality_people.py)."""
BATCHES, MINIBATCH = 100, 32
STOP_SHARE = 0.5
"""Of the unseen people who may choose: those who are not anchored, and say whether it is enough."""
SLACK = 0.03
"""What the AUC may be above the reference model's, or 0.5: a model that was retrained without the people lies above the weights from
before it saw anybody, and the people at hand say no more exactly where (docs/people.md)."""
FEW = 4
"""Unseen people with images on two cameras below whom all of them do both."""
CLASSIFIER_ONLY = (
    "scenario", "until", "rows", "preset", "weights", "reweight", "step", "momentum", "weight_decay", "l1", "epochs", "max_steps",
    "max_head_change", "max_class_drop", "rho", "sigma_damping", "class_factor", "keep", "clip_quantile", "damping",
    "feature_term", "features", "classes", "cache_features",
)  # fmt: skip
"""Options of ``imu unlearn`` that mean nothing for an embedding model."""


@dataclass(frozen=True)
class Unseen:
    """Unseen people's images: all that choose, those that are anchored, those that say when it is enough; and how the record tells them."""

    every: SampleSet
    anchored: SampleSet
    apart: SampleSet
    info: HeldOutInfo


@dataclass(frozen=True)
class Forgotten:
    """What is to be written: the record but for the hash of the file, its tensors, what it has to compute (k, d), and the training's state."""

    record: Record
    tensors: Mapping[str, Tensor]
    expected: Tensor
    state: Progress


def with_scope(config: UnlearnConfig, origins: Mapping[str, str]) -> UnlearnConfig:
    """The config with the scope that embedding models have where none is named.

    Raises:
        ImuError: the head was named, which they have not; or a method of classifiers.
    """
    if config.method in ("imu", "matched"):
        raise ImuError(f"--method {config.method}: is for classifiers, and this is an embedding model; leave it out")
    if config.scope != scopes.HEAD:
        return config
    if origins.get("scope", "default") != "default":
        raise ImuError("--scope head: an embedding model has none; name last-block, all or patterns of module paths")
    return replace(config, scope=scopes.LAST_BLOCK)


def run(
    opened: Session, config: UnlearnConfig, origins: Mapping[str, str], place: destination.Destination, ranks: Ranks
) -> Forgotten:
    """Make the forgotten people's images as alike as unseen people's.

    Raises:
        ImuError: bad input, nothing to forget, or the network loses what it knows at every learning rate.
        RefusedError: a moving weight does not stand in the file as it is.
        HelpedError: another process writes.
    """
    people.refuse_options(CLASSIFIER_ONLY, origins)
    people.refuse_strangers(opened)
    config = with_scope(config, origins)
    network, head = opened.network, opened.head
    assert network is not None, "an embedding model is opened on images"
    answers = embedding.output(head.module)
    moving = scope.find(opened, config.scope, answers)
    names = scope.names_in_file(opened, moving)
    unseen = unseen_of(opened, config)
    register = register_of([opened.forget.samples, unseen.every, unseen.anchored])
    upper = scope.upper_part(opened, network, moving, answers)
    with scope.room() as folder:
        kept = scope.keep(opened, upper, [opened.forget.samples, unseen.anchored, unseen.apart], folder)
        with scope.learning(moving):
            sets = [opened.forget.samples, unseen.anchored, unseen.apart]
            images = [
                images_of(upper, answers, held, samples, register, opened.engine.batch_size)
                for held, samples in zip(kept, sets, strict=True)
                if held is not None
            ]
            aimed = config.max_auc if origins.get("max_auc", "default") != "default" else None
            work = training_of(opened, config, moving.parameters, images, unseen, register, aimed)
            work.share, work.join, work.to_file = ranks.share, ranks.add_up, scope.rounding(opened, names)
            trained, state = scope.resumed(
                opened, config, moving, work, ranks, unseen.info, [unseen.anchored], partial(_told, aim=work.aim.auc)
            )
    opened.taken = Taken("model", streamed=False, bytes=4 * len(opened.forget.samples) * head.matrix.shape[1])
    if not ranks.first:
        raise processes.HelpedError
    trajectory = scope.trajectory_of(trained)
    tensors, changed = scope.differing(opened, names, trained)
    opened.outside_sha256 = opened.checkpoint.outside_hash(set(tensors))
    info = ScopeInfo(
        given=moving.given, modules=list(moving.modules), weights=moving.count, cut=upper.cut.module,
        anchor=len(unseen.anchored), unseen=len(unseen.apart), beta=config.beta, learning_rate=trained.learning_rate,
        batches=trained.batches, steps=trained.steps, minibatch=work.schedule.forget, fraction=trained.fraction,
        weighting="uniform", feature_term=False, tensors=changed,
        passes=scope.passes(scope.share_above(upper), work, len(opened.forget.samples) + len(unseen.anchored), before=1),
    )  # fmt: skip
    _tell_end(opened, trajectory, work.aim.auc, trained.reached is True, info)
    record = _record(opened, config, origins, place, trained, trajectory, work, unseen.info, info)
    return Forgotten(record, tensors, opened.plainly(scope.REPLAYED)[0].double().cpu(), state)


# --- whose images


def unseen_of(opened: Session, config: UnlearnConfig) -> Unseen:
    """The unseen people that choose, in two parts: those who are anchored, and those who say when it is enough.

    Raises:
        ImuError: nobody is given, or nobody has two images on two cameras.
    """
    given = config.reference or config.test
    if given is None:
        raise ImuError(
            "--test: not given; people are to become as hard to find as people whom the model never saw, and images of such people say "
            "how hard that is (--test or --reference)"
        )
    option: Literal["test", "reference"] = "reference" if config.reference else "test"
    sets = people.sets_of(opened, given, None, beside=False, option=f"--{option}")
    every = sets.test
    assert every is not None
    whole, judges = len(every), None
    if option == "test":
        chosen = people.half(every, opened.run.seed)
        left = sorted({*range(whole)} - {*chosen})
        every, judges = every.subset(chosen), every.subset(left) if left else None
        opened.note(
            f"--test: a random half of its people ({len(every)} of {whole} images, seed {opened.run.seed}) give targets, hold the network "
            "and say when it is enough; the others are left for evaluate"
        )
    info = HeldOutInfo(
        given=given, option=option, n=whole, used=len(every), seed=opened.run.seed, sha256=held_out.rows_hash(every)
    )  # fmt: skip
    if config.anchor is not None:
        return Unseen(every, _anchor(opened, config.anchor, judges), every, info)
    rest, apart = parts_of(every, opened.run.seed)
    if not apart:
        opened.note("unseen people are too few for two parts: all of them hold the network and say when it is enough")
        return Unseen(every, every, every, info)
    anchored, others = every.subset(rest), every.subset(apart)
    opened.note(
        f"unseen people: {_count(anchored)} are anchored (the network is held to what it says of their {len(anchored)} images), "
        f"{_count(others)} others say when it is enough and guard against loss"
    )
    return Unseen(every, anchored, others, info)


def parts_of(samples: SampleSet, seed: int) -> tuple[list[int], list[int]]:
    """Rows of the people who are anchored and of the others, who have images on two cameras; none of these where there are few people."""
    cameras = samples.columns.get("camera", [""] * len(samples))
    seen: dict[int, list[str]] = {}
    for label, camera in zip(samples.labels, cameras, strict=True):
        if label != UNKNOWN:
            seen.setdefault(label, []).append(camera.strip())
    usable = sorted(person for person, own in seen.items() if len(own) > 1 and (len(set(own)) > 1 or "" in own))
    if len(usable) < FEW:
        return list(range(len(samples))), []
    order = torch.randperm(len(usable), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = {usable[at] for at in order[: round(STOP_SHARE * len(usable))]}
    apart = [row for row, label in enumerate(samples.labels) if label in chosen]
    return [row for row, label in enumerate(samples.labels) if label not in chosen], apart


def _count(samples: SampleSet) -> int:
    return len({label for label in samples.labels if label != UNKNOWN})


def _anchor(opened: Session, given: str, judges: SampleSet | None) -> SampleSet:
    """``--anchor``: images of anybody but forgotten people and those who are left for evaluate, whether or not it says of whom.

    Raises:
        ImuError: nothing is left of it.
        InvalidRowsError: forget images stand in it.
    """
    samples = scope.anchor_of(opened, given, judges)
    try:
        samples = samples_people.with_people(samples)
    except ImuError:
        return replace(samples, labels=[UNKNOWN] * len(samples), classes=None)
    gone = {name for known in (opened.forget.samples, judges) if known is not None for name in people.ids(known)} - {""}
    rows = [row for row, name in enumerate(people.ids(samples)) if name not in gone]
    if not rows:
        raise ImuError(
            f"--anchor {given}: holds nobody but people who are to be forgotten, or who are left for evaluate; give images of others"
        )
    return samples.subset(rows)


def register_of(sets: Sequence[SampleSet]) -> Register:
    """Numbers for everybody whom some sets show."""
    known = [replace(samples, classes=tuple(sorted(set(people.ids(samples)) - {""}))) for samples in sets]
    return Register(samples_people.names_of(known))


def images_of(
    upper: Upper, answers: scopes.Answers, kept: Kept | KeptWords, samples: SampleSet, register: Register, at_once: int
) -> Images:
    """Images that are kept at the cut, with what the network says of them now."""

    def run(rows: Tensor) -> Tensor:
        return upper.answers(kept, rows, answers)

    with torch.no_grad():
        made = torch.cat([run(rows).cpu() for rows in torch.arange(len(kept)).split(at_once)])
    return Images(run, sightings(samples, register, retrieval.directions(made)))


def sightings(samples: SampleSet, register: Register, directions: Tensor) -> Sightings:
    """Whom images with these directions (n, d) show."""
    return Sightings(
        directions,
        torch.from_numpy(register.people_of(samples, JUNK, DISTRACTOR)),
        torch.from_numpy(register.cameras_of(samples, NO_CAMERA)),
        torch.from_numpy(register.images_of(samples)),
    )


# --- what is aimed at


def training_of(
    opened: Session,
    config: UnlearnConfig,
    parameters: Mapping[str, torch.nn.Parameter],
    images: Sequence[Images],
    unseen: Unseen,
    register: Register,
    aimed: float | None = None,
) -> PairTraining:
    """The training on forgotten, anchored and other unseen people's images; ``aimed`` is the AUC to come down to, where it is given.

    Raises:
        ImuError: nobody has two images on two cameras, or there is nothing to forget.
    """
    forgotten, anchor, apart = images
    ours = _pairs(forgotten.seen, "--forget")
    alone = len(pairs.alone(forgotten.seen))
    if alone:
        opened.note(
            f"{alone} of the forgotten people were seen by one camera only: pairs of any two of their images get targets, but they are not "
            "counted in the AUC, which is of images on two cameras"
        )
    aim, before = _aim(opened, config, forgotten.seen, unseen, register, ours)
    if aimed is not None:
        aim = replace(aim, auc=aimed, how=f"{aim.how.partition(';')[0]}; the AUC by --max-auc")
    if before <= aim.auc:
        raise ImuError(
            f"target: two images of a forgotten person are no more alike than those of unseen people (membership AUC {before:.3f}, aim "
            f"{aim.auc:.3f}): there is nothing to forget here that could be measured; nothing was written"
        )
    opened.note(f"target: membership AUC at most {aim.auc:.3f}, now {before:.3f}; {aim.how}")
    size = config.minibatch or MINIBATCH
    schedule = Schedule(
        batches=config.batches or BATCHES, forget=size, anchor=size, at_once=opened.engine.batch_size,
        learning_rate=config.learning_rate or LEARNING_RATE, beta=config.beta, seed=config.seed,
    )  # fmt: skip
    queries = torch.from_numpy(samples_people.queries_of(unseen.apart))
    return PairTraining(
        parameters,
        forgotten,
        anchor,
        apart,
        aim,
        config.max_drop,
        schedule,
        queries,
        counted=config.anchor is None and len(unseen.apart) < len(unseen.every),
        told=opened.note,
    )


def _pairs(seen: Sightings, option: str) -> same_person.Pairs:
    found = same_person.pairs(seen)
    if found is None:
        raise ImuError(
            f"{option}: nobody has two images on two cameras, by which it is told how alike they are; give more images of the people, or a "
            "list with an id column and no cameras, where any two images count"
        )
    return found


def _aim(
    opened: Session,
    config: UnlearnConfig,
    forgotten: Sightings,
    unseen: Unseen,
    register: Register,
    ours: same_person.Pairs,
) -> tuple[Aim, float]:
    """Targets from the reference model by rank, and its AUC; else from unseen people by rank, and 0.5. And the AUC as it is."""
    run = opened.features_of(unseen.every, "unseen people", narrow=True)
    every = sightings(unseen.every, register, people.as_directions(run))
    scale = _pairs(every, "--reference" if config.reference else "--test")
    own = scale.similar(every.directions)
    similar = ours.similar(forgotten.directions)
    before = same_person.plain_auc(similar, own)
    if config.reference_model is None:
        opened.note(
            "no --reference-model: forgotten people are brought to where unseen people are; some people are easier than others for any model, "
            "and this may go too far"
        )
        by_rank = rank_map(similar, own)
        return Aim(
            forgotten.directions, by_rank, 0.5 + SLACK, f"targets from unseen people by rank; 0.5 and {SLACK}"
        ), before
    beside = people.open_beside(opened, Path(config.reference_model), config)
    given = people.directions_of(beside, opened.forget.samples, "forgotten people, reference model")
    theirs = scale.similar(people.directions_of(beside, unseen.every, "unseen people, reference model"))
    auc = same_person.plain_auc(ours.similar(given), theirs)
    how = f"targets from the reference model by rank; its AUC of {auc:.3f} and {SLACK}"
    return Aim(given, rank_map(theirs, own), auc + SLACK, how), before


# --- what is told and written


def _told(look: Look, aim: float) -> str:
    shown = [f"similarity {look.similarity:.3f}", f"AUC {look.auc:.3f} (aim {aim:.3f})"]
    if look.map is not None:
        shown.append(f"mAP {look.map:.3f}")
    if look.test_drop is not None:
        shown.append(f"unseen people's mAP down by {look.test_drop:.4f}")
    return ", ".join(shown)


def _tell_end(opened: Session, trajectory: Sequence[LookInfo], aim: float, reached: bool, info: ScopeInfo) -> None:
    start, end = trajectory[0], trajectory[-1]
    lost = "" if end.test_drop is None else f"; unseen people's mAP down by {end.test_drop:.4f}"
    opened.note(
        f"{'reached' if reached else 'NOT reached'}: membership AUC from {start.auc:.3f} to {end.auc:.3f} (aim {aim:.3f}), mean similarity of "
        f"two images of a forgotten person from {start.similarity:.3f} to {end.similarity:.3f}{lost}; {len(info.tensors)} tensors changed, by "
        f"{end.head_change:.2%} of the weights that move; {info.passes:.0f} forward passes' worth over forget and anchor images"
    )


def replay(opened: Session, written: Path, expected: Tensor) -> str:
    """Load the written model and compare its embeddings of up to 64 forget images with what they should be (k, d); its SHA-256.

    Raises:
        ImuError: the file does not compute what was promised.
    """

    def found() -> Tensor:
        return opened.plainly(scope.REPLAYED)[0].double().cpu()

    return scope.replayed(opened, written, expected, found, "embeddings")


def _record(
    opened: Session,
    config: UnlearnConfig,
    origins: Mapping[str, str],
    place: destination.Destination,
    trained: loop.Trained[Look],
    trajectory: list[LookInfo],
    work: PairTraining,
    held: HeldOutInfo,
    info: ScopeInfo,
) -> Record:
    folder, head = place.record.parent, opened.head
    common: dict[str, Any] = provenance.common(opened, config, origins, folder)
    forget = common["forget"]
    label = None if forget.label is None else "…"
    return Record(
        method="demoted",
        method_source="--method" if config.method == "demoted" else "auto: an embedding model",
        target=Target(value=None, source=work.aim.how, auc=work.aim.auc),
        held_out=held.model_copy(update={"given": paths.relative_to(held.given, "data", folder)}),
        details={"targets": trained.targets, "people": len(set(opened.forget.labels))},
        embedding=EmbeddingInfo(module=head.module, size=head.matrix.shape[1], source=head.source),
        scenario="person",
        scenario_source="an embedding model",
        **scope.told_of_training(opened, place, trained, trajectory, info),
        **common
        | {
            "classes": None,
            "classes_source": "",
            "forget": forget.model_copy(update={"given": people.unnamed(forget.given), "label": label}),
            "options": people.without_people(common["options"]),
        },
    )


def next_words(output: Path, record: Record, config: UnlearnConfig, options_file: str | None) -> list[str]:
    """The command that measures what was written; whom it forgot is named again where the record leaves it out."""
    words = ["imu", "evaluate", str(output)]
    built = Architecture(str(record.architecture["name"]), "record")
    if options_file is not None:
        words += ["--config", options_file]
    elif built.runs_code and config.arch is not None:
        words += ["--arch", config.arch]
        words += [word for pair in config.arch_arg for word in ("--arch-arg", pair)]
    if any("=…" in given for given in record.forget.given):
        words += [word for given in config.forget for word in ("--forget", given)]
    return [*words, "--test", config.test or "DATA"]
