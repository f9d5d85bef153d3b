"""``imu unlearn``: the forget set unlearned, the checkpoint and its record written, both or neither."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from imu_cli import flags
from imu_cli.commands import opening, preparation, provenance, reuse
from imu_cli.commands.provenance import common
from imu_cli.config.commands import PAPER, UnlearnConfig
from imu_cli.errors import ImuError
from imu_cli.events import Events
from imu_cli.features import engine, extraction
from imu_cli.features.engine import Engine
from imu_cli.features.session import Session
from imu_cli.files.paths import relative_to
from imu_cli.influence import scores
from imu_cli.linear import objective
from imu_cli.linear.rows import Rows, predicted
from imu_cli.models import checkpoint, destination, diagnosis, layout
from imu_cli.models.architecture import Architecture
from imu_cli.models.replay import check_replay
from imu_cli.records import json_files, parts
from imu_cli.records.parts import HeldOutInfo, Interval, Link
from imu_cli.records.record import LookInfo, Record, Target
from imu_cli.statistics.metrics import among, binomial_range
from imu_cli.unlearning import methods, targets
from imu_cli.unlearning import procedure as procedure_module
from imu_cli.unlearning.ascent import Outcome

REPLAYED = 64
"""Forget samples that are replayed through the written file."""


@dataclass(frozen=True)
class Unlearned:
    """What ``run_unlearn`` wrote."""

    record: Record
    output: Path
    record_path: Path


def with_preset(config: UnlearnConfig, origins: Mapping[str, str]) -> tuple[UnlearnConfig, dict[str, str]]:
    """The config with ``--preset paper`` spread out; options given beside it win."""
    changed = dict(origins)
    if config.preset is None:
        return config, changed
    values = {name: value for name, value in PAPER.items() if origins.get(name, "default") == "default"}
    changed.update(dict.fromkeys(values, "preset"))
    return replace(config, **values), changed  # type: ignore[arg-type]


def _refuse_contradictions(config: UnlearnConfig) -> None:
    sgd_only = {
        "--momentum": config.momentum, "--weight-decay": config.weight_decay, "--l1": config.l1,
        "--minibatch": config.minibatch, "--epochs": config.epochs,
    }  # fmt: skip
    named = [flag for flag, value in sgd_only.items() if value]
    if named and config.learning_rate is None:
        raise ImuError(f"{', '.join(named)}: only with SGD; add --learning-rate, or leave out")
    if config.weights == "uniform" and config.reweight != "once":
        raise ImuError("--reweight: uniform weights do not change as the head moves; leave it out")
    if config.until is not None:
        targets.parse_until(config.until)


def run_unlearn(model: Path, config: UnlearnConfig, origins: Mapping[str, str], events: Events) -> Unlearned:
    """Unlearn the forget set, write the checkpoint and its record, both or neither.

    Raises:
        ImuError: bad input, a target already met, or nothing could be written; nothing was written.
        RefusedError: the checkpoint cannot be handled.
    """
    place = destination.choose(layout.resolve(model), config.output, config.force)
    config, origins = with_preset(config, origins)
    _refuse_contradictions(config)
    config = opening.with_features(config)
    opened = opening.open_all(model, config, events)
    if opened.head.embeds:
        raise ImuError(
            f"{model}: an embedding model, whose people imu unlearn cannot make it forget; imu evaluate measures whether it did"
        )
    if not bool(opened.head.matrix.any()):
        raise ImuError(
            f"head {opened.head.module}: all its weights are 0, so that no change of it can be measured; "
            "it was never trained, give the checkpoint after training"
        )
    h = reuse.forget_features(opened, config)
    ready = preparation.ready(opened, config, h)
    job = ready.job
    opened.note(f"method {job.method} ({job.method_source})")
    held = 0 if job.held is None else len(job.held.h)
    with objective.threads_for((len(h) + held) * opened.head.matrix.numel()):
        done = methods.run(job)
    outcome = done.outcome
    _tell_end(opened, job, outcome)
    for note in place.notes():
        opened.note(note)
    if opened.network is None:
        opened.note("the written model is not run: features come from a file; its bytes are compared and read back")
    made = _record(opened, config, origins, ready, done, place)
    files = opened.checkpoint.layout
    with opened.log.timed("writing"), destination.opened(place, files, config.force) as (weights, record_file):
        checkpoint.patch(opened.checkpoint, opened.head.parts(outcome.head.cpu()), weights)
        made.after.sha256 = _replay(opened, outcome.head.cpu(), weights, h)
        made.seconds = opened.log.clock.seconds
        record_file.write_text(json_files.dump(made), encoding="utf-8")
    return Unlearned(made, place.output, place.record)


def next_words(done: Unlearned, config: UnlearnConfig, origins: Mapping[str, str]) -> list[str]:
    """The command that measures what was written, as it can be typed: with the file of options or the code that it needs."""
    words, record = ["imu", "evaluate", str(done.output)], done.record
    built = Architecture(str(record.architecture["name"]), "record")
    if flags.CONFIG_FILE in origins:
        words += ["--config", origins[flags.CONFIG_FILE]]
    elif built.runs_code and config.arch is not None:
        words += ["--arch", config.arch]
        words += [word for pair in config.arch_arg for word in ("--arch-arg", pair)]
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


def _lost(opened: Session, job: procedure_module.Job, head: Tensor) -> str:
    """How many held-out samples of kept classes went to a forgotten class."""
    test = job.held
    assert test is not None
    was, now = (among(predicted(test.h, w), job.plan.forgotten)[test.kept] for w in (opened.matrix(), head))
    return f"{int((now & ~was).sum())} of {len(now)} held-out samples of kept classes were lost to a forgotten class"


def _replay(opened: Session, matrix: Tensor, written: Path, h: Rows) -> str:
    """Load the written model and compare its logits on up to 64 forget samples with what they should be; its SHA-256.

    Raises:
        ImuError: the file does not compute what was promised.
    """
    from imu_cli.models import architecture

    samples, network = opened.forget.samples, opened.network
    rows = list(range(min(REPLAYED, len(samples))))
    made = checkpoint.open_checkpoint(written)
    if network is None:
        return made.sha256
    architecture.load_into(network.loaded.model, network.loaded.state_of(made), str(written))
    batch = engine.batch(samples, rows, network.preprocess, opened.device)
    run = Engine(network.loaded.model, opened.head.module, opened.device, len(rows), opened.run.precision)
    with torch.inference_mode():
        made_logits = extraction.in_halves(run, batch)[1]
    logits = made_logits.to(torch.float64).cpu()
    expected = (h[slice(len(rows))].cpu() @ matrix.T).to(torch.float64)
    error = float((logits - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    # It runs as for the features, in their precision, but unfolded and in a batch of its own.
    why = diagnosis.of_a_run(run.precision, run.device.type, len(rows))
    check_replay(opened.head.with_matrix(matrix), error, made_logits.dtype, why, run.precision)
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
    folder, outcome, job = place.record.parent, done.outcome, ready.job
    spread = None
    if job.target is not None:
        low, high = binomial_range(job.target, len(job.forgetting.labels))
        spread = Interval(low=low, high=high, method="central 95 % of the binomial distribution")
    has_scores = job.scored is not None and job.selection is not None
    return Record(
        before=provenance.model_hash_of(opened.checkpoint, folder),
        after=parts.FileHash(path=provenance.model_path(place.output, folder), sha256=""),
        changed=list(opened.head.tensors),
        unchanged=len(opened.checkpoint.entries) - len(opened.head.tensors),
        outside_sha256=opened.outside_sha256,
        method=job.method,
        method_source=job.method_source,
        rows=job.plan.moving(),
        target=Target(
            value=job.target,
            source=job.target_source,
            range=spread,
            follows=job.limits.follows,
            auc=job.limits.max_auc,
            margin=job.procedure.margin,
        ),
        scores=scores.described(job.scored, job.selection) if has_scores else None,  # type: ignore[arg-type]
        reason=outcome.reason,
        reached=outcome.reached,
        start=LookInfo(step=0, **vars(outcome.start)),
        end=LookInfo(step=len(outcome.steps), **vars(outcome.end)),
        trajectory=done.trajectory,
        held_out=_relative(ready.held_info, folder),
        details=done.details,
        previous=_previous(opened, folder),
        scenario=job.plan.kind,
        scenario_source=job.plan.source,
        **common(opened, config, origins, folder),
    )
