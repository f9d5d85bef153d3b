"""``imu unlearn``: the forget set unlearned, the checkpoint and its record written, both or neither."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imu_cli import flags
from imu_cli.commands import (
    forgotten_at_head,
    forgotten_people,
    forgotten_records,
    opening,
    preparation,
    processes,
    provenance,
    record_targets,
    reuse,
    scope,
    sharded,
)
from imu_cli.commands.processes import Ranks
from imu_cli.commands.provenance import common
from imu_cli.config.commands import PRESETS, UnlearnConfig
from imu_cli.errors import ImuError
from imu_cli.events import Events, Silent
from imu_cli.features.session import Session
from imu_cli.files.paths import relative_to
from imu_cli.influence import scores
from imu_cli.linear import objective
from imu_cli.linear.rows import predicted
from imu_cli.models import checkpoint, destination, diagnosis, layout, scopes
from imu_cli.models.architecture import Architecture
from imu_cli.models.head import Head
from imu_cli.models.replay import check_replay
from imu_cli.records import json_files, parts
from imu_cli.records.parts import HeldOutInfo, Interval, Link
from imu_cli.records.record import LookInfo, Record, Target
from imu_cli.statistics.metrics import among, binomial_range
from imu_cli.unlearning import methods, targets
from imu_cli.unlearning import procedure as procedure_module
from imu_cli.unlearning.ascent import Outcome


@dataclass(frozen=True)
class Unlearned:
    """What ``run_unlearn`` wrote."""

    record: Record
    output: Path
    record_path: Path


def with_preset(config: UnlearnConfig, origins: Mapping[str, str]) -> tuple[UnlearnConfig, dict[str, str]]:
    """The config with ``--preset`` spread out; options given beside it win."""
    changed = dict(origins)
    if config.preset is None:
        return config, changed
    values = {
        name: value for name, value in PRESETS[config.preset].items() if origins.get(name, "default") == "default"
    }
    changed.update(dict.fromkeys(values, "preset"))
    return replace(config, **values), changed  # type: ignore[arg-type]


def _refuse_contradictions(config: UnlearnConfig) -> None:
    if config.weights == "uniform" and config.reweight != "once":
        raise ImuError("--reweight: uniform weights do not change as the head moves; leave it out")
    if config.preset == "paper-llm":
        refuse_for_preset(config)
    elif config.scope != scopes.HEAD:
        scope.refuse(config)
    if config.until is not None and not record_targets.UNTIL.fullmatch(config.until):
        try:
            targets.parse_until(config.until)
        except ImuError as error:
            raise ImuError(f"{error} ({record_targets.EXAMPLE} of a language model)") from error


def refuse_for_preset(config: UnlearnConfig) -> None:
    """Refuse what the published update of a language model has no use for.

    Raises:
        ImuError: names the first.
    """
    if config.scope == scopes.HEAD:
        raise ImuError("--preset paper-llm: moves layers below the head; name them with --scope, or leave it out")
    for name in ("until", "reference_model", "resume", "batches", "momentum", "anchor"):
        if getattr(config, name) != getattr(UnlearnConfig(), name):
            option = "--" + name.replace("_", "-")
            raise ImuError(
                f"{option}: --preset paper-llm runs for a fixed number of --epochs and aims at nothing; leave it out"
            )


def _refuse_other_kind(opened: Session, config: UnlearnConfig) -> None:
    """Refuse options that are for another kind of model.

    Raises:
        ImuError: names the first.
    """
    head = opened.head
    if config.shard and not head.writes:
        raise ImuError("--shard: is for language models, whose blocks are dealt out, and this is none; leave it out")
    if config.preset is not None and (config.preset == "paper-llm") != head.writes:
        fits = "use --preset paper-llm" if head.writes else "use --preset paper"
        raise ImuError(f"--preset {config.preset}: is for another kind of model than this one; {fits}, or leave it out")
    if head.writes or head.embeds:
        return
    if config.reference_model is not None:
        raise ImuError(
            "--reference-model: is for embedding and language models, and this is a classifier; leave it out"
        )
    if config.untie:
        raise ImuError("--untie: is for language models, and this is a classifier; leave it out")


def _refuse_for_head(config: UnlearnConfig) -> None:
    """Refuse options that say nothing to the head of a classifier.

    Raises:
        ImuError: names all of them.
    """
    sgd_only = {
        "--momentum": config.momentum, "--weight-decay": config.weight_decay, "--l1": config.l1,
        "--minibatch": config.minibatch, "--epochs": config.epochs,
    }  # fmt: skip
    named = [flag for flag, value in sgd_only.items() if value]
    if named and config.learning_rate is None:
        raise ImuError(f"{', '.join(named)}: only with SGD; add --learning-rate, or leave out")
    scope.refuse(config)


def run_unlearn(model: Path, config: UnlearnConfig, origins: Mapping[str, str], events: Events) -> Unlearned:
    """Unlearn the forget set, write the checkpoint and its record, both or neither.

    Where layers below the head move, the processes that torchrun started share the work; the head alone needs one.

    Raises:
        ImuError: bad input, a target already met, or nothing could be written; nothing was written.
        RefusedError: the checkpoint cannot be handled.
        HelpedError: this is a process of torchrun's that wrote nothing, and another one did.
    """
    with processes.ranks(config.shard) as ranks:
        return _unlearn(model, config, origins, events if ranks.first else Silent(), ranks)


def _unlearn(model: Path, config: UnlearnConfig, origins: Mapping[str, str], events: Events, ranks: Ranks) -> Unlearned:
    place = destination.choose(layout.resolve(model), config.output, config.force)
    config, origins = with_preset(config, origins)
    _refuse_contradictions(config)
    if config.shard:
        sharded.refuse(config, ranks)
    config = opening.with_features(config)
    if config.scope != scopes.HEAD and config.weights == "influence" and origins.get("weights", "default") == "default":
        config = replace(config, weights="uniform")
    # A model that is to lie in parts is opened on the CPU: it may not fit a device.
    opened = opening.open_all(model, replace(config, device="cpu") if config.shard else config, events)
    _refuse_other_kind(opened, config)
    if opened.head.writes or opened.head.embeds:
        return _without_classes(opened, config, origins, place, ranks)
    moving = None
    if config.scope == scopes.HEAD:
        _refuse_for_head(config)
    if config.scope == scopes.HEAD and ranks.count > 1:
        raise ImuError("torchrun: the head alone needs one process; start imu without it, or name a deeper --scope")
    if config.scope != scopes.HEAD:
        scope.refuse_vectors(opened, config.scope)
        moving = scope.find(opened, config.scope)
    if moving is None and not bool(opened.head.matrix.any()):
        raise ImuError(
            f"head {opened.head.module}: all its weights are 0, so that no change of it can be measured; "
            "it was never trained, give the checkpoint after training"
        )
    h = reuse.forget_features(opened, config)
    ready = preparation.ready(opened, config, h)
    job = ready.job
    opened.note(f"method {job.method} ({job.method_source})")
    if moving is not None:
        moved = scope.run(opened, config, moving, ready, h, ranks)
        if not ranks.first:
            raise processes.HelpedError
        _tell_moved(opened, job, moved)
        tensors = moved.tensors
        opened.outside_sha256 = opened.checkpoint.outside_hash(set(tensors))
        made = _moved_record(opened, config, origins, ready, moved, place)
        unlearned = _write(opened, config, place, made, tensors, lambda written: _replay(opened, written, moved.logits))
        moved.state.done()
        return unlearned
    held = 0 if job.held is None else len(job.held.h)
    with objective.threads_for((len(h) + held) * opened.head.matrix.numel()):
        done = methods.run(job)
    outcome = done.outcome
    _tell_end(opened, job, outcome)
    if opened.network is None:
        opened.note("the written model is not run: features come from a file; its bytes are compared and read back")
    made = _record(opened, config, origins, ready, done, place)
    matrix = outcome.head.cpu()
    expected = (h[slice(min(scope.REPLAYED, len(h)))].cpu() @ matrix.T).to(torch.float64)
    return _write(
        opened, config, place, made, opened.head.parts(matrix),
        lambda written: _replay(opened, written, expected, opened.head.with_matrix(matrix)),
    )  # fmt: skip


def _without_classes(
    opened: Session,
    config: UnlearnConfig,
    origins: Mapping[str, str],
    place: destination.Destination,
    ranks: Ranks,
) -> Unlearned:
    """Unlearn people of an embedding model, or records of a language model."""
    if opened.head.writes and forgotten_at_head.is_asked_for(config, origins):
        at_head = forgotten_at_head.run(opened, config, origins, place, ranks)
        at_head.record.previous = _previous(opened, place.record.parent)
        return _write(opened, config, place, at_head.record, at_head.write, at_head.replay)
    if config.untie:
        raise ImuError(
            "--untie: is for --scope head of a language model; deeper scopes leave the tie alone, leave it out"
        )
    if opened.head.writes and config.scope == scopes.HEAD:
        config = replace(config, scope=scopes.LAST_BLOCK)
    module = forgotten_records if opened.head.writes else forgotten_people
    gone = module.run(opened, config, origins, place, ranks)
    gone.record.previous = _previous(opened, place.record.parent)
    unlearned = _write(
        opened, config, place, gone.record, gone.tensors, partial(module.replay, opened, expected=gone.expected)
    )
    gone.state.done()
    return unlearned


def _write(
    opened: Session,
    config: UnlearnConfig,
    place: destination.Destination,
    made: Record,
    tensors: Mapping[str, Tensor] | Callable[[Path], None],
    replay: Callable[[Path], str],
) -> Unlearned:
    """Write checkpoint and record, both or neither, once the written model has computed what was promised.

    ``tensors`` are those that differ, or what writes the files itself.
    """
    for note in place.notes():
        opened.note(note)
    files = opened.checkpoint.layout
    with opened.log.timed("writing"), destination.opened(place, files, config.force) as (weights, record_file):
        if callable(tensors):
            tensors(weights)
        else:
            checkpoint.patch(opened.checkpoint, tensors, weights)
        made.after.sha256 = replay(weights)
        made.seconds, made.notes = opened.log.clock.seconds, opened.log.notes
        record_file.write_text(json_files.dump(made), encoding="utf-8")
    return Unlearned(made, place.output, place.record)


def next_words(done: Unlearned, config: UnlearnConfig, origins: Mapping[str, str]) -> list[str]:
    """The command that measures what was written, as it can be typed: with the file of options or the code that it needs."""
    if done.record.embedding is not None:
        return forgotten_people.next_words(done.output, done.record, config, origins.get(flags.CONFIG_FILE))
    words, record = ["imu", "evaluate", str(done.output)], done.record
    built = Architecture(str(record.architecture["name"]), "record")
    if flags.CONFIG_FILE in origins:
        words += ["--config", origins[flags.CONFIG_FILE]]
    elif built.runs_code and config.arch is not None:
        words += ["--arch", config.arch]
        words += [word for pair in config.arch_arg for word in ("--arch-arg", pair)]
        words += ["--task", config.task] if config.task != "auto" else []
    given = config.test or "DATA"
    return [*words, "--test", given]


def _tell_end(opened: Session, job: procedure_module.Job, outcome: Outcome) -> None:
    start, end = outcome.start.forget, outcome.end.forget
    moved = f"from {start:.2%} to {end:.2%} of {len(job.forgetting.labels)} forget samples, head changed by {outcome.end.head_change:.2%}"
    if job.target is None:
        opened.note(
            f"reached: {moved}; without a target this is how far the run went, not evidence that they are forgotten"
        )
    elif not outcome.reached:
        opened.note(f"NOT reached: {moved}; target at most {job.target:.2%}, stopped by {outcome.reason}")
    if job.plan.kind == "class" and job.held is not None:
        opened.note(_lost(opened, job, outcome.head))


def _tell_moved(opened: Session, job: procedure_module.Job, moved: scope.Moved) -> None:
    (_, start), (_, end), info = moved.trained.looks[0], moved.trained.looks[-1], moved.info
    aim = "" if end.unseen is None else f" (unseen samples: {end.unseen:.2%})"
    auc = "" if end.auc is None else f"; membership AUC {start.auc:.3f} before, {end.auc:.3f} after"
    opened.note(
        f"{'reached' if moved.trained.reached else 'NOT reached'}: from {start.forget:.2%} to {end.forget:.2%} of "
        f"{len(job.forgetting.labels)} forget samples{aim}{auc}; {len(info.tensors)} tensors changed, by {end.head_change:.2%} of the "
        f"weights that move; {info.passes:.0f} forward passes' worth over forget and anchor samples"
    )


def _lost(opened: Session, job: procedure_module.Job, head: Tensor) -> str:
    """How many held-out samples of kept classes went to a forgotten class."""
    test = job.held
    assert test is not None
    was, now = (among(predicted(test.h, w), job.plan.forgotten)[test.kept] for w in (opened.matrix(), head))
    return f"{int((now & ~was).sum())} of {len(now)} held-out samples of kept classes were lost to a forgotten class"


def _replay(opened: Session, written: Path, expected: Tensor, head: Head | None = None) -> str:
    """Load the written model and compare its logits on up to 64 forget samples with what they should be (k, c); its SHA-256.

    Raises:
        ImuError: the file does not compute what was promised.
    """
    from imu_cli.models import architecture

    network = opened.network
    made = checkpoint.open_checkpoint(written)
    if network is None:
        return made.sha256
    architecture.load_into(network.loaded.model, network.loaded.state_of(made), str(written))
    made_logits = opened.plainly(scope.REPLAYED)[1]
    logits = made_logits.to(torch.float64).cpu()
    error = float((logits - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    # It runs as for the features, in their precision, but unfolded and in a batch of its own.
    precision = opened.run.precision
    why = diagnosis.of_a_run(precision, opened.device.type, len(logits))
    check_replay(head or opened.head, error, made_logits.dtype, why, precision)
    return made.sha256


def _previous(opened: Session, folder: Path) -> Link | None:
    """The record of the unlearning that this model came from, if it lies beside it."""
    model = opened.checkpoint.path
    path = destination.beside(model, "record")
    earlier = provenance.read_record(path, opened.checkpoint.sha256)
    if earlier is None:
        return None
    opened.note(
        f"{model.name} was already unlearned ({earlier.forget.n} samples); unlearning the union of both lists from "
        f"{earlier.before.path} is better than one after the other"
    )
    return Link(record=provenance.file_hash_of(path, folder), forget_sha256=earlier.forget.sha256, n=earlier.forget.n)


def _relative(info: HeldOutInfo | None, folder: Path) -> HeldOutInfo | None:
    return None if info is None else info.model_copy(update={"given": relative_to(info.given, "data", folder)})


def _record(
    opened: Session,
    config: UnlearnConfig,
    origins: Mapping[str, str],
    ready: preparation.Ready,
    done: procedure_module.Done,
    place: destination.Destination,
) -> Record:
    outcome, job = done.outcome, ready.job
    has_scores = job.scored is not None and job.selection is not None
    return Record(
        changed=list(opened.head.tensors),
        unchanged=len(opened.checkpoint.entries) - len(opened.head.tensors),
        rows=job.plan.moving(),
        scores=scores.described(job.scored, job.selection) if has_scores else None,  # type: ignore[arg-type]
        reason=outcome.reason,
        reached=outcome.reached,
        start=LookInfo(step=0, **vars(outcome.start)),
        end=LookInfo(step=len(outcome.steps), **vars(outcome.end)),
        trajectory=done.trajectory,
        details=done.details,
        **_told_of_every_run(opened, config, origins, ready, place),
    )


def _moved_record(
    opened: Session,
    config: UnlearnConfig,
    origins: Mapping[str, str],
    ready: preparation.Ready,
    moved: scope.Moved,
    place: destination.Destination,
) -> Record:
    """The record where layers below the head moved."""
    names = sorted(moved.tensors)
    return Record(
        changed=names,
        unchanged=len(opened.checkpoint.entries) - len(names),
        rows=None,
        scores=None,
        reason=moved.trained.reason,
        reached=moved.trained.reached,
        start=moved.trajectory[0],
        end=moved.trajectory[-1],
        trajectory=moved.trajectory,
        details={"targets": moved.trained.targets},
        scope=moved.info,
        **_told_of_every_run(opened, config, origins, ready, place),
    )


def _told_of_every_run(
    opened: Session,
    config: UnlearnConfig,
    origins: Mapping[str, str],
    ready: preparation.Ready,
    place: destination.Destination,
) -> dict[str, Any]:
    """What records of every method hold: the models, the target, the held-out data, and what all results share."""
    folder, job = place.record.parent, ready.job
    spread = None
    if job.target is not None:
        low, high = binomial_range(job.target, len(job.forgetting.labels))
        spread = Interval(low=low, high=high, method="central 95 % of the binomial distribution")
    return {
        "before": provenance.model_hash_of(opened.checkpoint, folder),
        "after": parts.FileHash(path=provenance.model_path(place.output, folder), sha256=""),
        "outside_sha256": opened.outside_sha256,
        "method": job.method,
        "method_source": job.method_source,
        "target": Target(
            value=job.target,
            source=job.target_source,
            range=spread,
            follows=job.limits.follows,
            auc=job.limits.max_auc,
            margin=job.procedure.margin,
        ),
        "held_out": _relative(ready.held_info, folder),
        "previous": _previous(opened, folder),
        "scenario": job.plan.kind,
        "scenario_source": job.plan.source,
        **common(opened, config, origins, folder),
    }
