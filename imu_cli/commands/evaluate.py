"""``imu evaluate``: the model and its original on every split that was given, metrics, verdicts, one JSON file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imu_cli.commands import (
    answers,
    galleries,
    held_out,
    known,
    opening,
    other_models,
    people,
    preparation,
    provenance,
    recalled,
    relearning,
    requirements,
)
from imu_cli.config.commands import EvaluateConfig
from imu_cli.errors import ImuError
from imu_cli.evaluation import assembly, curves, gates, shadow_heads, summary
from imu_cli.evaluation.evidence import Evidence, forgotten_rows, reference
from imu_cli.events import Events, Log
from imu_cli.features.session import Session
from imu_cli.files import outputs, paths, writing
from imu_cli.linear import objective
from imu_cli.linear.objective import Members
from imu_cli.linear.rows import Logits
from imu_cli.models import destination, layout
from imu_cli.models.checkpoint import open_checkpoint
from imu_cli.records import json_files
from imu_cli.records.evaluation import Evaluation, Metric, Requirement
from imu_cli.records.record import Record
from imu_cli.records.retrieval import Judged
from imu_cli.samples.dataset import TEXTS, WORDS, SampleSet
from imu_cli.samples.texts.sentences import places
from imu_cli.statistics import metrics
from imu_cli.unlearning import scenario
from imu_cli.unlearning.messages import warn_if_at_chance
from imu_cli.unlearning.procedure import Method
from imu_cli.unlearning.targets import HeldOut
from imu_cli.views import junit

DEPENDENT = "n counts words; intervals go by sentences, whose words are not independent of each other"


@dataclass(frozen=True)
class Evaluated:
    """What ``run_evaluate`` wrote."""

    evaluation: Judged
    path: Path


def _parts(opened: Session, by: str | None) -> dict[str, Tensor] | None:
    """Rows of D_f for each id or group, in the order of the list.

    Raises:
        ImuError: the forget list has no such column.
    """
    if by is None:
        return None
    column = opened.forget.ids if by == "id" else opened.forget.groups
    if column is None:
        raise ImuError(f"--by {by}: the forget list has no column {by!r}; add it, or leave --by out")
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(column):
        rows.setdefault(name or f"(no {by})", []).append(row)
    return {name: torch.tensor(found, device=opened.math_device) for name, found in rows.items()}


def _refuse_foreign(path: Path) -> None:
    """The evaluation's file may be replaced if it is an evaluation, and nothing else may."""

    def ours(file: Path) -> bool:
        try:
            return isinstance(json_files.read(file), Judged)
        except ImuError:
            return False

    outputs.own_file(path, "", ours, "is not an evaluation that imu wrote; choose another --output")


def run_evaluate(model: Path, config: EvaluateConfig, origins: Mapping[str, str], events: Events) -> Evaluated:
    """Measure a checkpoint on the forget set and whatever else was given, and judge the requirements.

    Raises:
        ImuError: bad input, an unknown requirement, or nothing could be written.
        RefusedError: the checkpoint cannot be handled.
    """
    layout.require_file(model)
    output = Path(config.output) if config.output else destination.beside(model, "evaluation")
    if config.output is None:
        destination.refuse_cache(output, model)
    _refuse_foreign(output)
    report = requirements.junit_file(config, output)
    wanted = requirements.gates_of(config, report)
    beside = destination.beside(model, "record")
    checkpoint = open_checkpoint(model) if beside.is_file() else None
    found = None if checkpoint is None else provenance.read_record(beside, checkpoint.sha256)
    if found is None and checkpoint is not None:
        events.note(f"{beside}: describes another file than {model}; it is not used")
    config, merged, said = known.from_record(config, origins, found, beside)
    known.stdin_again(config, found)
    effective = opening.with_features(config)
    opened = opening.open_all(model, effective, events, said, checkpoint)
    requirements.refuse_other_task(wanted, opened.head, report)
    if opened.head.embeds or opened.head.writes:
        judge = _of_records if opened.head.writes else _of_people
        return judge(opened, effective, merged, wanted, (output, report), found)
    recalled.refuse_language_options(merged)
    _refuse_others(opened, config)
    if places(opened.forget.samples) is not None:
        opened.note(DEPENDENT)
    if merged.get("head") == "record":
        opened = replace(opened, head=replace(opened.head, source=beside.name))
    if found is not None and opened.forget.sha256 != found.forget.sha256:
        opened.note("the forget set is not the one that the record was made with (names, labels or contents differ)")
    parts = _parts(opened, config.by)
    original = other_models.open_original(opened, config, found)
    again = None if config.retrained is None else other_models.open_other(opened, Path(config.retrained), config)
    head_only = None if original is None else set(original.changed) <= set(opened.head.tensors)
    if config.attack is not None:
        _require_shadows(config, found, head_only)
    models = other_models.Models(opened, original, again, effective)
    test = _unused(opened, held_out.held_out(opened, config.test), found) if config.test else None
    evidence = replace(_gather(models, test, config, found), parts=parts)
    guessing = _warn_if_at_chance(opened, evidence)
    if config.attack is not None and found is not None and original is not None:
        unlearning = _unlearning(opened, evidence, found, beside.parent)
        shadow = shadow_heads.run(evidence, opened.matrix(), original.matrix(), unlearning, config.shadows, opened.log)
        evidence = replace(evidence, shadow=shadow)
    measured = assembly.measure(evidence)
    _tell_edge(opened, evidence, measured)
    verdicts = gates.judge_all(wanted, {item.name: item for item in measured}, config.require_on == "value")
    for verdict in verdicts:
        if guessing and verdict.verdict == "pass":
            verdict.verdict, verdict.reason = "inconclusive", f"no evidence: {guessing}"
        if verdict.warning:
            opened.note(f"{verdict.text}: {verdict.warning}")
    folder = output.parent
    made = Evaluation(
        model=provenance.model_hash_of(opened.checkpoint, folder),
        original=None if original is None else provenance.model_hash_of(original.opened.checkpoint, folder),
        retrained=None if again is None else provenance.model_hash_of(again.opened.checkpoint, folder),
        record=None if found is None else provenance.file_hash_of(beside, folder),
        changed=None if original is None else original.changed,
        head_only=head_only,
        summary=summary.of(evidence, measured, head_only, unchanged=original is not None and not original.changed),
        metrics=measured,
        per_class=assembly.per_class(evidence),
        by=config.by,
        per_part=assembly.per_part(evidence),
        curves=curves.of(evidence),
        requirements=verdicts,
        given={name: paths.relative_to(getattr(config, name), "data", folder) for name in ("data", "test", "retain")},
        scenario=evidence.kind,
        scenario_source=_kind(opened, config)[1] if merged.get("scenario") != "record" else "record",
        **provenance.common(opened, effective, merged, folder),
    )
    return _write(made, config, output, report)


def _refuse_others(opened: Session, config: EvaluateConfig) -> None:
    """Refuse options of other kinds of models that were given for a classifier.

    Raises:
        ImuError: naming the first.
    """
    others = {"--reference-model": config.reference_model is not None, "--samples": config.samples > 0}
    for option in (name for name, given in others.items() if given):
        texts = option == "--samples" and opened.forget.samples.kind in (TEXTS, WORDS)
        raise ImuError(
            f"{option}: is for embedding and language models, and this is a classifier; leave it out"
            + (" (imu report --samples shows forgotten texts)" if texts else "")
        )


def _write(made: Judged, config: EvaluateConfig, output: Path, report: Path | None) -> Evaluated:
    """The evaluation and its JUnit file, both or neither."""
    texts = {output: json_files.dump(made)} | ({} if report is None else {report: junit.junit(made)})

    def replaced(path: Path) -> None:
        _refuse_foreign(path) if path == output else requirements.junit_file(config, output)

    with writing.together(*texts, replaced=replaced) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.write_text(text, encoding="utf-8")
    return Evaluated(made, output)


def _of_people(
    opened: Session,
    config: EvaluateConfig,
    origins: Mapping[str, str],
    wanted: Sequence[gates.Gate],
    places: tuple[Path, Path | None],
    found: Record | None,
) -> Evaluated:
    """The evaluation of an embedding model, written to the first of the places, its verdicts to the second."""
    people.refuse_options(people.CLASSIFIER_ONLY, origins)
    recalled.refuse_language_options(origins)
    if found is not None and opened.forget.sha256 != found.forget.sha256:
        opened.note("the forget set is not the one that the record was made with (names, ids or contents differ)")
    page = galleries.place(places[0], config.samples)
    outcome = people.measured(opened, config, _parts(opened, config.by), None if found is None else found.held_out)
    verdicts = _judged(opened, config, wanted, outcome.metrics)
    made = people.written(opened, config, origins, outcome, verdicts, places[0].parent)
    if found is not None:
        made.record = provenance.file_hash_of(destination.beside(opened.checkpoint.path, "record"), places[0].parent)
    if page is not None:
        galleries.write(page, outcome, config.samples, made.model.path)
    return _write(made, config, *places)


def _of_records(
    opened: Session,
    config: EvaluateConfig,
    origins: Mapping[str, str],
    wanted: Sequence[gates.Gate],
    places: tuple[Path, Path | None],
    found: Record | None,
) -> Evaluated:
    """The evaluation of a language model, written to the first of the places, its verdicts to the second, what it answers beside it."""
    people.refuse_options(recalled.CLASSIFIER_ONLY, origins, "a language model")
    if found is not None and opened.forget.sha256 != found.forget.sha256:
        opened.note("the forget set is not the one that the record was made with (names or contents differ)")
    beside = answers.place(places[0], config.samples)
    outcome = recalled.measured(
        opened, config, _parts(opened, config.by), lambda samples: _unused(opened, samples, found),
        _allowed(found).get("max_drop"), other_models.original_path(opened, config, found),
    )  # fmt: skip
    verdicts = _judged(opened, config, wanted, outcome.metrics)
    folder = places[0].parent
    made = recalled.written(opened, config, origins, outcome, verdicts, folder)
    if found is not None:
        made.record = provenance.file_hash_of(destination.beside(opened.checkpoint.path, "record"), folder)
    if beside is not None and outcome.answered:
        made.answers = answers.write(beside, outcome.answered, folder)
        opened.note(
            f"{beside}: holds forgotten records and what is answered; delete it when you have seen it (imu report --samples)"
        )
        made.notes = opened.log.notes
    return _write(made, config, *places)


def _judged(
    opened: Session, config: EvaluateConfig, wanted: Sequence[gates.Gate], measured: Sequence[Metric]
) -> list[Requirement]:
    """The verdicts, with what they let pass told."""
    verdicts = gates.judge_all(wanted, {item.name: item for item in measured}, config.require_on == "value")
    for verdict in verdicts:
        if verdict.warning:
            opened.note(f"{verdict.text}: {verdict.warning}")
    return verdicts


def _tell_edge(opened: Session, e: Evidence, measured: list[Metric]) -> None:
    """Say with the count on D_f how many of its samples another batch size, precision or device may move across the boundary."""
    logits = e.forget.after
    assert isinstance(logits, Logits)
    shared = torch.zeros(opened.head.classes, dtype=torch.bool, device=logits.head.device)
    shared[list(e.forgotten)] = True
    members = Members(e.forget.labels, opened.head.classes, shared if e.kind == "class" else None)
    margin = preparation.boundary(opened, logits.h)
    near = objective.on_the_edge(logits.h, logits.head, members, margin)
    if near:
        told = (
            f"{near} of them within {margin:.2g} logits of the boundary, where another batch size or device may decide"
        )
        metric = next(item for item in measured if item.name == "forget.accuracy")
        metric.note = "; ".join(part for part in (metric.note, told) if part)


def _warn_if_at_chance(opened: Session, e: Evidence) -> str:
    """Say so where the model, before unlearning if that is known, does no better than chance on kept classes, or on D_f.

    Returns what it guesses on, in words, or nothing: no requirement is met by such a model.
    """
    found = []
    if e.forget.before is not None and e.kind != "mislabelled":
        right = metrics.predictions(e.forget.before) == e.forget.labels
        found += ["the forget set"] if warn_if_at_chance(opened.log, right, opened.head.classes) else []
    for name, split in (("--test", e.test), ("--retain", e.retain)):
        if split is None:
            continue
        logits = reference(split)
        kept = ~forgotten_rows(e, split.labels)
        right = (metrics.predictions(logits) == split.labels)[kept]
        what = f"samples of kept classes in {name}"
        found += [what] if warn_if_at_chance(opened.log, right, opened.head.classes, what) else []
    return f"the model is no better than guessing on {' and '.join(found)}, even before" if found else ""


def _require_shadows(config: EvaluateConfig, found: Record | None, head_only: bool | None) -> None:
    """Refuse ``--attack shadow-heads`` where it cannot be made, before anything is computed.

    Raises:
        ImuError: names what it lacks.
    """
    lacks = [name for name in ("test", "retain") if getattr(config, name) is None]
    if lacks:
        raise ImuError(f"--attack shadow-heads: needs {' and '.join(f'--{name}' for name in lacks)}")
    if config.shadows < shadow_heads.FEWEST:
        raise ImuError(f"--shadows {config.shadows}: too few to know a spread by; give {shadow_heads.FEWEST} or more")
    if found is None:
        raise ImuError(
            "--attack shadow-heads: needs the record of imu unlearn beside the model; the shadows are unlearned with its options"
        )
    if head_only is None:
        raise ImuError("--attack shadow-heads: needs the original; give --original")
    if not head_only:
        raise ImuError("--attack shadow-heads: needs a change of the head only; here tensors outside the head differ")


def _unlearning(opened: Session, e: Evidence, found: Record, folder: Path) -> shadow_heads.Unlearning:
    """How the model was unlearned, from its record; ``folder`` is what the record's paths are relative to."""
    wanted = preparation.frozen(found, folder)

    def chosen_by() -> HeldOut | None:
        quiet = replace(opened, run=opening.run_of(wanted), log=Log())
        return held_out.chosen_by(quiet, wanted.test, wanted.reference, e.forgotten)[0]

    method: Method = "matched" if wanted.method == "matched" else "imu"
    return shadow_heads.Unlearning(method, preparation.of(wanted), wanted.rows, chosen_by, opened.head.rounded)


def _kind(opened: Session, config: EvaluateConfig) -> tuple[scenario.Kind, str]:
    return scenario.decide(config.scenario, opened.forget.whole_classes, opened.data is not None)


def _unused(opened: Session, samples: SampleSet, found: Record | None) -> SampleSet:
    """The test samples that the unlearning did not choose by: an evaluation is made on data that chose nothing."""
    held = None if found is None else found.held_out
    if held is None:
        return samples
    rows = list(range(len(samples))) if held.option == "reference" else held_out.half(samples, held.seed)
    if len(samples) != held.n or held_out.rows_hash(samples.subset(rows)) != held.sha256:
        return samples
    if held.option == "reference":
        opened.note(
            "--test: is the --reference that the unlearning chose its target by; measure on other data if you can"
        )
        return samples
    used = set(rows)
    opened.note(
        f"--test: {len(rows)} of its {len(samples)} samples set target and guard of the unlearning and are left out"
    )
    return samples.subset([row for row in range(len(samples)) if row not in used])


def _gather(
    models: other_models.Models, test: SampleSet | None, config: EvaluateConfig, found: Record | None
) -> Evidence:
    """Everything that the metrics are computed from; each split's features are read once per backbone."""
    opened, original, again = models.opened, models.original, models.retrained
    kind, _ = _kind(opened, config)
    retain_images = held_out.retained(opened, config.retain) if config.retain else None
    forget = models.split(opened.forget.samples, "forget")
    plan = scenario.plan(kind, "", forget.labels, opened.head.classes, "auto")
    made = Evidence(
        kind=kind,
        forgotten=plan.forgotten,
        forget=forget,
        test=models.split(test, "test") if test is not None else None,
        retain=models.split(retain_images, "retain") if retain_images is not None else None,
        true_labels=opened.true_labels(),
        drift=other_models.drift(forget, original),
        head=models.head(opened.matrix()),
        seed=config.seed,
        name_of=opened.classes.name,
        head_before=None if original is None else models.head(original.matrix()),
        head_retrained=None if again is None else models.head(again.matrix()),
        same_backbone=original is not None and original.same_backbone,
        compat=config.compat,
        training=None if opened.data is None else len(opened.data),
        twins_left=opened.forget.twins_left,
        log=opened.log,
        **_allowed(found),
    )
    return replace(made, relearned=relearning.run(models, made, test)) if config.relearn else made


def _allowed(found: Record | None) -> dict[str, Any]:
    """What the unlearning compared with, and what it was allowed to cost, from its record."""
    if found is None:
        return {"target_follows": True}
    guards = {name: found.options[name].value for name in ("max_drop", "max_class_drop") if name in found.options}
    known: dict[str, Any] = {name: value for name, value in guards.items() if isinstance(value, float)}
    return {"target_follows": found.target.follows, **known}
