"""``imu evaluate`` of an embedding model: forgotten, kept and unseen people, as the model and those beside it see them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from imu_cli.commands import held_out, opening, provenance
from imu_cli.config.commands import EvaluateConfig
from imu_cli.config.shared import ModelConfig
from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.evaluation import people as measuring
from imu_cli.evaluation import people_summary
from imu_cli.evaluation.scene import Evidence, Scene, View
from imu_cli.features import engine
from imu_cli.features.session import Session, Taken
from imu_cli.files import paths
from imu_cli.linear.rows import Mapped, Rows
from imu_cli.models import checkpoint as checkpoints
from imu_cli.models import embedding
from imu_cli.models.sidecar import Said
from imu_cli.records.evaluation import Metric, Requirement
from imu_cli.records.parts import EmbeddingInfo, FileHash, HeldOutInfo, OptionValue
from imu_cli.records.retrieval import PeopleInfo, PersonRow, Retrieval
from imu_cli.samples import people
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.images.reidentification import looks_like
from imu_cli.samples.images.stores import Files
from imu_cli.samples.manifest import open_source
from imu_cli.samples.overlap import overlap, without
from imu_cli.samples.people import Register
from imu_cli.statistics import retrieval
from imu_cli.statistics.retrieval import DISTRACTOR, JUNK, NO_CAMERA, Sightings

CLASSIFIER_ONLY = ("scenario", "attack", "compat", "classes", "features")
"""Options of ``imu evaluate`` that mean nothing for an embedding model."""


@dataclass(frozen=True)
class Sets:
    """The images of a command: those to be forgotten, the other training images, unseen people's."""

    forget: SampleSet
    rest: SampleSet | None
    test: SampleSet | None
    left: int

    def every(self) -> Mapping[str, SampleSet]:
        """Those that are there, by name."""
        found = {"forget": self.forget, "rest": self.rest, "test": self.test}
        return {name: samples for name, samples in found.items() if samples is not None}


def refuse_options(names: Sequence[str], origins: Mapping[str, str], kind: str = "an embedding model") -> None:
    """Refuse options of classifiers that were given for a model of another kind.

    Raises:
        ImuError: naming all of them.
    """
    given = ["--" + name.replace("_", "-") for name in names if origins.get(name) in ("flag", "environment")]
    if given:
        verb, those = ("is", "it") if len(given) == 1 else ("are", "them")
        raise ImuError(f"{', '.join(given)}: {verb} for classifiers, and this is {kind}; leave {those} out")


def refuse_strangers(opened: Session) -> None:
    """Refuse forget samples of which nothing says whom they show.

    Raises:
        InvalidRowsError: naming each.
    """
    samples = opened.forget.samples
    unknown = [row for row, label in enumerate(samples.labels) if label == UNKNOWN]
    if unknown:
        raise InvalidRowsError(
            [
                f"{samples.where(row)}: shows nobody who is known (junk, a distractor, or no id); take it out"
                for row in unknown
            ]
        )


# --- whose images


def sets_of(
    opened: Session, test: str | None, retain: str | None, *, beside: bool = True, option: str = "--test"
) -> Sets:
    """The other images that a command was given, without forget samples and their twins; unseen people are nobody of the training data.

    ``beside``: the other training images are wanted too; ``option`` is what names the unseen people.

    Raises:
        ImuError: nothing is left of a set.
        InvalidRowsError: held-out data hold forget samples.
    """
    forget = opened.forget.samples
    trained = (
        opened.data
        if retain is None
        else people.with_people(open_source(retain, "retain", opened.data, names=opened.columns))
    )
    rest = (
        None
        if trained is None or not beside
        else _beside(opened, trained, "--data" if retain is None else f"--retain {retain}")
    )
    gone = set(ids(forget))
    left = 0 if rest is None else sum(name in gone for name in ids(rest))
    if left:
        opened.note(
            f"{left} images of forgotten people are not in the forget list and stay in the training data that were given"
        )
    held = None if test is None else _unseen(opened, test, [forget, *([] if trained is None else [trained])], option)
    _tell_cameras(opened, forget)
    return Sets(forget, rest if rest is not None and len(rest) else None, held, left)


def _beside(opened: Session, samples: SampleSet, what: str) -> SampleSet:
    shared = overlap(opened.forget.samples, samples)
    twins = {theirs for _, theirs in shared.twins} - {theirs for _, theirs in shared.same}
    if twins:
        opened.note(f"{what}: {len(twins)} images are twins (the same bytes) of forget samples and are left out")
    return without(samples, {theirs for _, theirs in shared.same} | twins)


def ids(samples: SampleSet) -> list[str]:
    """Each image's person, empty where there is none."""
    return ["" if label == UNKNOWN else samples.class_text(label) for label in samples.labels]


def _unseen(opened: Session, spec: str, trained: Sequence[SampleSet], option: str) -> SampleSet:
    samples = people.with_people(open_source(spec, "test", opened.data, names=opened.columns))
    shared = overlap(opened.forget.samples, samples)
    if shared.same:
        raise InvalidRowsError(
            [
                f"{opened.forget.samples.where(mine)}: also stands in {option} as {samples.where(theirs)}; held-out data must not hold "
                "forget samples"
                for mine, theirs in shared.same
            ]
        )
    known = {name for one in trained for name in one.classes or ()} | set(ids(opened.forget.samples))
    names = ids(samples)
    seen = {row for row, name in enumerate(names) if name and name in known}
    if seen:
        count = len({names[row] for row in seen})
        opened.note(
            f"{option} {spec}: {len(seen)} images of {count} people whose ids stand in the training data too are left out: they are not unseen"
        )
    kept = without(samples, seen | {theirs for _, theirs in shared.twins})
    if all(not name for name in ids(kept)):
        raise ImuError(
            f"{option} {spec}: nobody is left of it whom the training data do not hold too; give people whom the model never saw, "
            "under ids of their own"
        )
    return kept


def _tell_cameras(opened: Session, forget: SampleSet) -> None:
    if any(text.strip() for text in forget.columns.get("camera", ())):
        return
    scheme = looks_like(forget.names[0]) if isinstance(forget.store, Files) else None
    advice = f"; its files are named as {scheme}:DIR reads them, which knows the cameras" if scheme else ""
    opened.note(
        "cameras are not known: any other image of the person counts as found, also one of the same moment, which is easy"
        + advice
    )


def half(samples: SampleSet, seed: int) -> list[int]:
    """Rows of a random half of the people, drawn by the seed: whom an unlearning may choose by."""
    everybody = sorted({label for label in samples.labels if label != UNKNOWN})
    order = torch.randperm(len(everybody), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = {everybody[at] for at in order[: (len(everybody) + 1) // 2]}
    return [row for row, label in enumerate(samples.labels) if label in chosen]


def unused(opened: Session, samples: SampleSet, held: HeldOutInfo | None) -> SampleSet:
    """Unseen people whom the unlearning did not choose by: an evaluation is made on people who chose nothing."""
    if held is None:
        return samples
    rows = list(range(len(samples))) if held.option == "reference" else half(samples, held.seed)
    if len(samples) != held.n or held_out.rows_hash(samples.subset(rows)) != held.sha256:
        return samples
    used = set(rows)
    left = [row for row in range(len(samples)) if row not in used]
    if held.option == "reference" or not any(samples.labels[row] != UNKNOWN for row in left):
        opened.note("--test: are the people whom the unlearning chose by; measure on others if you can")
        return samples
    opened.note(
        f"--test: {len(rows)} of its {len(samples)} images show people whom the unlearning chose by, and are left out"
    )
    return samples.subset(left)


# --- what models see


def scene_of(opened: Session, sets: Sets) -> Scene:
    """The images as numbers."""
    every = sets.every()
    names = people.names_of(
        [replace(samples, classes=tuple(sorted(set(ids(samples)) - {""}))) for samples in every.values()]
    )
    register = Register(names)

    def sightings(samples: SampleSet) -> Sightings:
        return Sightings(
            torch.empty(len(samples), 0),
            torch.from_numpy(register.people_of(samples, JUNK, DISTRACTOR)),
            torch.from_numpy(register.cameras_of(samples, NO_CAMERA)),
            torch.from_numpy(register.images_of(samples)),
        )

    seen = {name: sightings(samples) for name, samples in every.items()}
    forget, rest, test = seen["forget"], seen.get("rest"), seen.get("test")
    kept = torch.zeros(0, dtype=torch.bool)
    if rest is not None:
        kept = (rest.people >= 0) & ~torch.isin(rest.people, forget.people)
    queries = torch.zeros(0, dtype=torch.bool)
    if sets.test is not None:
        queries = torch.from_numpy(people.queries_of(sets.test))
    gallery = "all training images given"
    if rest is None:
        gallery = "forgotten people's images" + (" and unseen people's" if test is not None else " alone")
    return Scene(forget, rest, test, kept, queries, gallery)


def view_of(opened: Session, scene: Scene, sets: Sets, whose: str = "") -> View:
    """The scene as an opened model sees it."""
    what = {"forget": "forgotten people", "rest": "other training images", "test": "unseen people"}
    seen = {name: directions_of(opened, samples, f"{what[name]}{whose}") for name, samples in sets.every().items()}
    return View(scene, seen["forget"], seen.get("rest"), seen.get("test"))


def directions_of(opened: Session, samples: SampleSet, what: str) -> Tensor:
    """Directions (n, d) of images as an opened model sees them."""
    return as_directions(opened.features_of(samples, what, narrow=True))


def as_directions(rows: Rows) -> Tensor:
    """Directions (n, d) of embeddings."""
    return retrieval.directions((rows.held() if isinstance(rows, Mapped) else rows).cpu())


def open_beside(opened: Session, path: Path, config: ModelConfig) -> Session:
    """Another model of the same architecture, which sees the same images.

    Raises:
        ImuError: it cannot be read, or does not fit the architecture.
        RefusedError: it cannot be handled.
    """
    network = opened.network
    assert network is not None, "an embedding model is opened on images"
    built = network.loaded.architecture
    known = None if built.runs_code else Said("the evaluated model", built.name, built.arguments)
    found, loaded = opening.load_model(path, config, known)
    model = engine.prepare(loaded.model, opened.device)
    head = embedding.find_embedding(model, network.probe, config.embedding)
    again = replace(network, loaded=loaded, model=model)
    return replace(opened, checkpoint=found, network=again, head=head, outside_sha256=found.outside_hash(set()))


@dataclass(frozen=True)
class Others:
    """The models beside the evaluated one, opened; None where one was not given."""

    original: Session | None
    retrained: Session | None
    reference: Session | None
    changed: list[str] | None


def others_of(opened: Session, config: EvaluateConfig) -> Others:
    """Those that ``--original``, ``--retrained`` and ``--reference-model`` name."""
    given = (config.original, config.retrained, config.reference_model)
    original, retrained, reference = (
        None if path is None else open_beside(opened, Path(path), config) for path in given
    )
    changed = None if original is None else checkpoints.differing(original.checkpoint, opened.checkpoint)
    return Others(original, retrained, reference, changed)


# --- what is written


@dataclass(frozen=True)
class Outcome:
    """What was measured, before requirements are judged."""

    evidence: Evidence
    metrics: list[Metric]
    sets: Sets
    others: Others


def measured(
    opened: Session, config: EvaluateConfig, parts: Mapping[str, Tensor] | None, held: HeldOutInfo | None = None
) -> Outcome:
    """Everything that is measured of an opened embedding model, on unseen people by whom its unlearning did not choose (``held``).

    Raises:
        ImuError: bad data, or models that do not fit.
    """
    refuse_strangers(opened)
    sets = sets_of(opened, config.test, config.retain)
    if sets.test is not None:
        sets = replace(sets, test=unused(opened, sets.test, held))
    others = others_of(opened, config)
    scene = scene_of(opened, sets)

    def seen(session: Session | None, whose: str) -> View | None:
        return None if session is None else view_of(session, scene, sets, whose)

    evidence = Evidence(
        after=view_of(opened, scene, sets),
        before=seen(others.original, ", original"),
        retrained=seen(others.retrained, ", retrained"),
        reference=seen(others.reference, ", reference model"),
        seed=config.seed,
        left=sets.left,
        parts={} if parts is None else {name: rows.cpu() for name, rows in parts.items()},
    )
    opened.taken = Taken("model", streamed=False, bytes=4 * len(sets.forget) * opened.head.matrix.shape[1])
    with opened.log.timed("metrics"):
        return Outcome(evidence, measuring.measure(evidence), sets, others)


def written(
    opened: Session,
    config: EvaluateConfig,
    origins: Mapping[str, str],
    outcome: Outcome,
    verdicts: list[Requirement],
    folder: Path,
) -> Retrieval:
    """The evaluation as it is written into ``folder``; nobody is named in it unless ``--by`` asked for that."""
    others = outcome.others
    head = opened.head

    def hashed(session: Session | None) -> FileHash | None:
        return None if session is None else provenance.model_hash_of(session.checkpoint, folder)

    common = provenance.common(opened, config, origins, folder)
    for name in ("classes", "classes_source", "head", "forget"):
        del common[name]
    return Retrieval(
        model=provenance.model_hash_of(opened.checkpoint, folder),
        original=hashed(others.original),
        retrained=hashed(others.retrained),
        reference_model=hashed(others.reference),
        record=None,
        changed=others.changed,
        embedding=EmbeddingInfo(module=head.module, size=head.matrix.shape[1], source=head.source),
        forget=_people_info(opened, config, folder),
        summary=people_summary.of(outcome.evidence, outcome.metrics, others.changed),
        metrics=outcome.metrics,
        by=config.by,
        per_person=[PersonRow(**vars(part)) for part in measuring.per_part(outcome.evidence)],
        requirements=verdicts,
        given={name: paths.relative_to(getattr(config, name), "data", folder) for name in ("data", "test", "retain")},
        similarity=measuring.curves(outcome.evidence),
        **common | {"options": without_people(common["options"])},
    )


def _people_info(opened: Session, config: EvaluateConfig, folder: Path) -> PeopleInfo:
    told = provenance.forget_info(opened, config, folder)
    return PeopleInfo(
        given=unnamed(told.given),
        data=told.data,
        n=told.n,
        people=len(set(opened.forget.labels)),
        whole=told.whole_classes,
        sha256=told.sha256,
        manifest=told.manifest,
    )


def unnamed(given: Sequence[str]) -> list[str]:
    """Selectors without the ids in them."""
    kinds = [text.partition("=")[0] if paths.is_selector(text) else "" for text in given]
    return [f"{kind}=…" if kind in ("id", "class") else text for kind, text in zip(kinds, given, strict=True)]


def without_people(options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
    """The options without the names of people in them."""
    made = dict(options)
    made["forget"] = OptionValue(value=unnamed(made["forget"].value), origin=made["forget"].origin)
    if made["label"].value is not None:
        made["label"] = OptionValue(value="…", origin=made["label"].origin)
    return made
