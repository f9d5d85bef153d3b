"""The commands' work: paths and a config in, a result out. Nothing here prints; ``Events`` hears what goes on."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from . import ascent, checkpoint, features, influence, matched, matching, objective, opening, record, scenario
from .ascent import Look, Outcome, Step
from .config import HEAD_CHANGE_WITHOUT_TARGET, PAPER, InfluenceConfig, TargetConfig, UnlearnConfig
from .errors import ImuError
from .events import Events
from .head import check_replay, logits_of
from .metrics import binomial_range
from .opening import Opened, Scored
from .options import relative_to
from .record import WHAT, HeldOutInfo, Interval, Link, LookInfo, Record, Target
from .scenario import HeldOut, Plan

REPLAYED = 64
"""Forget samples that are replayed through the written file."""
MOVERS = 3
"""Forget samples shown beside each one with ``influence --kernel``."""


def run_influence(model: Path, config: InfluenceConfig, origins: Mapping[str, str], events: Events) -> record.Influence:
    """Score every forget sample; nothing but the cache is written."""
    opened = opening.open_all(model, config, events)
    scored, h = opening.cached_scores(opened), None
    if scored is None or config.kernel:
        h = opening.forget_features(opened)
        scored = scored or opening.compute_scores(opened, h)
    selection = influence.weigh(scored.scores, config.keep, config.clip_quantile, opening.sample_weights(opened))
    _warn_if_at_chance(opened, float(scored.right.double().mean()))
    images = opened.forget.images
    ids = opened.forget.ids or images.names
    columns = zip(scored.scores.tolist(), selection.weights.tolist(), scored.confidence.tolist(), strict=True)
    rows = [
        record.ScoreRow(
            id=ids[row], path=images.names[row], label=opened.classes.name(images.labels[row]),
            score=score, weight=weight, confidence=confidence,
        )
        for row, (score, weight, confidence) in enumerate(columns)
    ]  # fmt: skip
    here = Path()
    return record.Influence(
        model=opening.file_hash_of(model, here),
        architecture=opened.loaded.architecture.described(),
        preprocess=opened.preprocess.described(),
        preprocess_source=opened.preprocess_source,
        head=opening.head_info(opened.head),
        forget=opening.forget_info(opened, here),
        accuracy=float(scored.right.double().mean()),
        scores=opening.score_info(scored, selection),
        sign=influence.SIGN,
        cached=scored.entry,
        notes=opened.notes,
        rows=rows,
        kernel=_kernel(opened, config, h) if config.kernel and h is not None else [],
    )


def _warn_if_at_chance(opened: Opened, accuracy: float) -> None:
    chance = 1 / opened.head.classes
    spread = binomial_range(chance, len(opened.forget.images))
    if accuracy <= spread[1]:
        opened.note(
            f"accuracy on the forget set is {accuracy:.1%}, no better than chance ({chance:.1%}): the preprocessing or the "
            "order of the labels is probably wrong"
        )


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
        scenario.parse_until(config.until)


def run_unlearn(model: Path, config: UnlearnConfig, origins: Mapping[str, str], events: Events) -> Unlearned:
    """Unlearn the forget set, write the checkpoint and its record, both or neither.

    Raises:
        ImuError: bad input, a target already met, or nothing could be written; nothing was written.
        RefusedError: the checkpoint cannot be handled.
    """
    checkpoint.require_file(model)
    config, origins = with_preset(config, origins)
    _refuse_contradictions(config)
    output = Path(config.output) if config.output else model.with_name(f"{model.stem}.unlearned{model.suffix}")
    record_path = record.beside(output, "record")
    for path in (output, record_path):
        checkpoint.refuse_output(path, model, config.force)
    opened = opening.open_all(model, config, events)
    h = opening.forget_features(opened)
    job = _prepare(opened, config, h)
    opened.note(f"method {job.method} ({job.method_source})")
    held = 0 if job.held is None else len(job.held.h)
    with objective.threads_for((len(h) + held) * opened.head.matrix.numel()):
        done = _match(opened, config, job) if job.method == "matched" else _ascend(opened, config, job)
    outcome = done.outcome
    _tell_end(opened, job, outcome)
    made = _record(opened, config, origins, job, done, model, output)
    with opened.clock.timed("writing"), checkpoint.together(output, record_path) as (weights_file, record_file):
        changes = opened.head.parts(outcome.head.cpu())
        checkpoint.patch(opened.checkpoint, changes, weights_file)
        _replay(opened, outcome.head.cpu(), weights_file, h)
        made.after = record.FileHash(path=output.name, sha256=checkpoint.file_hash(weights_file))
        made.seconds = opened.clock.seconds
        with record_file.open("w", encoding="utf-8") as file:
            file.write(record.dump(made))
            file.flush()
            os.fsync(file.fileno())
    return Unlearned(made, output, record_path)


@dataclass
class _Job:
    """A forget set with its plan, target and scores, ready to be unlearned; ``held`` is the data that the run chooses by."""

    h: Tensor
    labels: Tensor
    true_labels: Tensor | None
    plan: Plan
    held: HeldOut | None
    held_info: HeldOutInfo | None
    target: float | None
    target_source: str
    limits: ascent.Limits
    look: Callable[[Tensor], Look]
    method: Literal["imu", "matched"]
    method_source: str
    scored: Scored | None = None
    selection: influence.Selection | None = None


def _held_out(opened: Opened, config: UnlearnConfig, plan: Plan) -> tuple[HeldOut | None, HeldOutInfo | None]:
    found = opening.reference_of(opened, config.test, config.reference)
    if found is None:
        return None, None
    images, info = found
    labels = torch.tensor(list(images.labels), dtype=torch.int64, device=opened.math_device)
    return scenario.held_out(opened.features_of(images, "held-out"), labels, plan.forgotten), info


def _method(config: UnlearnConfig, kind: str, target: float | None) -> tuple[Literal["imu", "matched"], str]:
    """Ascent or matched, and why.

    Raises:
        ImuError: matched was asked for where it cannot work.
    """
    if config.method == "matched":
        if kind == "class":
            raise ImuError("--method matched: for samples; a whole class goes without cost by --method imu")
        if target is None:
            raise ImuError(
                "--method matched: solves for margins like those of unseen data, and nothing says what those are; "
                "add --test DATA, --reference DATA or --until 'forget.accuracy<=X'"
            )
        return "matched", "--method"
    if config.method == "imu":
        return "imu", "--method"
    if kind == "class" or target is None:
        return "imu", "auto: whole classes" if kind == "class" else "auto: no target and no held-out data"
    given = [name for name in ASCENT_ONLY if getattr(config, name) != getattr(UnlearnConfig(), name)]
    if given:
        return "imu", f"auto: --{given[0].replace('_', '-')} is an option of the ascent"
    return "matched", "auto: samples with a target"


ASCENT_ONLY = ("preset", "weights", "reweight", "rows", "step", "learning_rate", "max_steps", "keep", "clip_quantile")


def _prepare(opened: Opened, config: UnlearnConfig, h: Tensor) -> _Job:
    labels, head = opened.labels(), opened.matrix()
    kind, source = scenario.decide(config.scenario, opened.forget.whole_classes, opened.data is not None)
    plan = scenario.plan(kind, source, labels, opened.head.classes, config.rows)
    opened.note(f"scenario {kind} ({source})")
    held, held_info = _held_out(opened, config, plan)
    _warn_if_at_chance(opened, float(((h @ head.T).argmax(dim=1) == labels).double().mean()))
    true = opened.forget.true_labels
    true_labels = None if true is None else torch.tensor(list(true), dtype=torch.int64, device=labels.device)
    hits = round(objective.share_in(h @ head.T, plan.members) * len(h))
    goal, goal_source = scenario.target(plan, config.until, held, head, labels, true_labels, hits)
    if config.preset is not None and config.until is None:
        goal, goal_source = None, "--preset paper runs a fixed number of epochs"
    method, method_source = _method(config, kind, goal)
    max_change = config.max_head_change
    if max_change is None and goal is None and config.preset is None:
        max_change = HEAD_CHANGE_WITHOUT_TARGET
    guard = config.max_drop if held is not None and config.preset is None else None
    limits = ascent.Limits(goal, config.max_steps, max_change, guard)
    job = _Job(
        h, labels, true_labels, plan, held, held_info, goal, goal_source, limits,
        scenario.looker(h, plan.members, head, held), method, method_source,
    )  # fmt: skip
    _tell_start(opened, job)
    return job


def _tell_start(opened: Opened, job: _Job) -> None:
    """Scenario, target and their sources, before the first step; a target that is already met is an error."""
    n, kind = len(job.labels), job.plan.kind
    if kind == "sample" and opened.data is None and len(job.labels.unique()) == 1 and n > 1:
        opened.note("all forget samples share one label; if they are the whole class, use --scenario class")
    if job.target is None:
        what = (
            f"; the head may move by {job.limits.max_head_change:.1%} of its norm" if job.limits.max_head_change else ""
        )
        opened.note(f"target: {job.target_source}{what}")
        return
    start = job.look(opened.head.rounded(opened.matrix()))
    text = f"target: at most {job.target:.2%} of the {n} {WHAT[kind]} ({job.target_source}); now {start.forget:.2%}"
    if kind != "class":
        low, high = binomial_range(job.target, n)
        text += (
            f". At a true rate of {job.target:.2%}, {n} samples show {low:.2%} to {high:.2%} in 95 of 100 cases: inside "
            "that range accuracy is no evidence either way"
        )
    opened.note(text)
    if start.forget <= job.target:
        raise ImuError(
            f"target: already met before the first step ({start.forget:.2%} of the forget samples, target at most "
            f"{job.target:.2%}); the preprocessing or the order of the labels is wrong, the model has already unlearned "
            "them, or it never learned them; nothing was written"
        )


def _weigh(opened: Opened, config: UnlearnConfig, job: _Job) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
    """Weights (n,) of the forget samples, and how to compute them again for another head."""
    extra = opening.sample_weights(opened)
    if config.weights == "uniform":
        return influence.uniform(len(job.h), extra).to(job.h.device), None
    job.scored = opening.cached_scores(opened) or opening.compute_scores(opened, job.h)
    job.selection = influence.weigh(job.scored.scores, config.keep, config.clip_quantile, extra)
    damping = influence.Damping.parse(config.damping)
    own = objective.one_hot(job.labels, opened.head.classes)

    def again(head: Tensor) -> Tensor:
        residuals = objective.residual(job.h @ head.T, own)
        scores = influence.influence(job.h, residuals, damping).scores
        return influence.weigh(scores, config.keep, config.clip_quantile, extra).weights

    return job.selection.weights, None if config.reweight == "once" else again


def _update(opened: Opened, config: UnlearnConfig, job: _Job) -> tuple[ascent.Update, ascent.Limits, ascent.Reason]:
    weights, again = _weigh(opened, config, job)
    members = job.plan.members
    if config.preset == "paper":  # the published loss is the plain cross-entropy of each sample's own label
        members = objective.one_hot(job.labels, opened.head.classes)
    problem = ascent.Objective(job.h, members, job.plan.rows, weights)
    if config.learning_rate is None:
        length = config.step * float(torch.linalg.norm(opened.matrix()))
        return ascent.NormalisedStep(problem, length, again), job.limits, "max_steps"
    update = ascent.StochasticSteps(
        problem,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        l1=config.l1,
        minibatch=config.minibatch,
        generator=torch.Generator().manual_seed(config.seed),
        reweigh=again,
        each_epoch=config.reweight == "epoch",
    )
    if config.epochs is None:
        return update, job.limits, "max_steps"
    return update, replace(job.limits, max_steps=config.epochs * update.steps_per_epoch()), "epochs"


@dataclass(frozen=True)
class _Done:
    """What either method ended with: outcome, trajectory for the record, and details of the solver."""

    outcome: Outcome
    trajectory: list[LookInfo]
    details: dict[str, Any]


def _ascend(opened: Opened, config: UnlearnConfig, job: _Job) -> _Done:
    update, limits, last = _update(opened, config, job)
    total = limits.max_steps if last == "epochs" else None
    with opened.clock.timed("ascent"), opened.events.track("ascent", total) as advance:
        run = ascent.ascend(opened.matrix(), update, job.look, limits, opened.head.rounded, last=last)
        outcome = _drain(run, advance)
    start = LookInfo(step=0, **vars(outcome.start))
    steps = [LookInfo(step=s.number, fraction=s.fraction, loss=s.loss, **vars(s.look)) for s in outcome.steps]
    return _Done(outcome, [start, *steps], {})


def _match(opened: Opened, config: UnlearnConfig, job: _Job) -> _Done:
    _, item, how = _solve_matched(opened, config, job)
    _tell_matched(opened, item)
    start = LookInfo(step=0, **vars(item.outcome.start))
    points = [
        LookInfo(step=number, rho=p.rho, auc=p.auc, margin_error=p.margin_error, **vars(p.look))
        for number, p in enumerate(matching.ordered(item.points), 1)
    ]
    return _Done(item.outcome, [start, *points], {**item.details, "targets": how})


def _solve_matched(opened: Opened, config: UnlearnConfig, job: _Job) -> tuple[matched.Problem, matching.Matched, str]:
    """The system, what was chosen along ρ, and how target margins were got."""
    head, held = opened.matrix(), job.held
    assert job.target is not None
    held_logits = None if held is None else held.h @ head.T
    wanted, how = matching.targets(
        job.plan, job.h @ head.T, job.labels, job.target, held, held_logits,
        by_accuracy=config.until is not None, true_labels=job.true_labels,
    )  # fmt: skip
    opened.note(
        f"target margins: {how}; Σ of {'the forget set' if held is None else f'{len(held.h)} held-out samples'}"
    )
    with opened.clock.timed("matching"), opened.events.track("matched, along ρ", None) as advance:
        problem = matching.prepare(
            job.h, job.labels, head, wanted, held, damping=config.sigma_damping, class_factor=config.class_factor
        )
        for item in matching.run(problem, job.look, job.limits, opened.head.rounded, held, config.rho):
            if isinstance(item, matching.Matched):
                return problem, item, how
            advance(1)
    raise AssertionError("a run ends with what was chosen")


def _kernel(opened: Opened, config: InfluenceConfig, h: Tensor) -> list[record.KernelRow]:
    """Matched unlearning solved but not written: strengths, self-influence, and the samples that move each most."""
    shared = {item.name: getattr(config, item.name) for item in fields(TargetConfig)}
    wanted = UnlearnConfig(**shared, method="matched")
    job = _prepare(opened, wanted, h)
    problem, found, _ = _solve_matched(opened, wanted, job)
    rows = matched.kernel_rows(problem, found.strengths, head=found.outcome.head, top=MOVERS)
    names = opened.forget.images.names
    margins = matched.margins(h @ opened.matrix().T, job.labels)
    return [
        record.KernelRow(
            path=names[row],
            strength=float(found.strengths[row]),
            self_influence=float(rows.self_influence[row]),
            margin=float(margins[row]),
            target=float(problem.targets[row]),
            movers=[
                record.Mover(path=names[other], moved=moved)
                for other, moved in zip(rows.movers[row].tolist(), rows.moved[row].tolist(), strict=True)
            ],
        )
        for row in range(len(names))
    ]


def _tell_matched(opened: Opened, found: matching.Matched) -> None:
    d = found.details
    opened.note(
        f"matched: ρ {d['rho']:.3g} of {len(found.points)} tried, margins miss their targets by {d['margin_error']:.3g} "
        f"(before: {d['margin_error_before']:.3g}) in log-odds, root mean square"
    )
    if int(d["n"]) > int(d["capacity"]):
        opened.note(
            f"{d['n']} samples are more than the {d['capacity']} margins this head can set freely; "
            f"{d['margins_within_half']:.0%} came within 0.5 of their target"
        )
    if not d["converged"]:
        opened.note(
            "matched: the re-linearisation had not settled; the result is what the file computes, but not optimal"
        )


def _drain(run: Iterator[Step | Outcome], advance: Callable[[int], None]) -> Outcome:
    for item in run:
        if isinstance(item, Outcome):
            return item
        advance(1)
    raise AssertionError("an ascent ends with its outcome")


def _tell_end(opened: Opened, job: _Job, outcome: Outcome) -> None:
    start, end = outcome.start.forget, outcome.end.forget
    moved = f"from {start:.2%} to {end:.2%} of {len(job.labels)} forget samples, head changed by {outcome.end.head_change:.2%}"
    if job.target is None:
        opened.note(
            f"reached: {moved}; without a target this is how far the run went, not evidence that they are forgotten"
        )
    elif not outcome.reached:
        opened.note(f"NOT reached: {moved}; target at most {job.target:.2%}, stopped by {outcome.reason}")
    if job.plan.kind == "class" and job.held is not None:
        opened.note(_lost(opened, job, outcome.head))


def _lost(opened: Opened, job: _Job, head: Tensor) -> str:
    """How many held-out samples of kept classes went to a forgotten class."""
    test = job.held
    assert test is not None
    gone = torch.tensor(job.plan.forgotten, device=head.device)
    h = test.h[test.kept]
    was, now = (torch.isin((h @ w.T).argmax(dim=1), gone) for w in (opened.matrix(), head))
    return f"{int((now & ~was).sum())} of {len(h)} held-out samples of kept classes were lost to a forgotten class"


def _replay(opened: Opened, matrix: Tensor, written: Path, h: Tensor) -> None:
    """Load the written file into the model and compare its logits on up to 64 forget samples with what they should be.

    Raises:
        ImuError: the file does not compute what was promised.
    """
    from . import architecture

    images = opened.forget.images
    rows = list(range(min(REPLAYED, len(images))))
    made = checkpoint.open_checkpoint(written)
    tensors = {name.removeprefix(opened.loaded.prefix): tensor for name, tensor in made.tensors().items()}
    architecture.load_into(opened.loaded.model, tensors, str(written))
    batch = features.batch(images, rows, opened.preprocess, opened.device)
    with torch.inference_mode():
        logits = logits_of(opened.model(batch)).to(torch.float64).cpu()
    expected = (h[rows].cpu() @ matrix.T).to(torch.float64)
    error = float((logits - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    check_replay(opened.head.with_matrix(matrix), error, torch.float32)


def _previous(opened: Opened, model: Path, folder: Path) -> Link | None:
    """The record of the unlearning that this model came from, if it lies beside it."""
    earlier = opening.read_record(model)
    if earlier is None:
        return None
    opened.note(
        f"{model.name} was already unlearned ({earlier.forget.n} samples); unlearning the union of both lists from "
        f"{earlier.before.path} is better than one after the other"
    )
    path = record.beside(model, "record")
    return Link(record=opening.file_hash_of(path, folder), forget_sha256=earlier.forget.sha256, n=earlier.forget.n)


def _relative(info: HeldOutInfo | None, folder: Path) -> HeldOutInfo | None:
    return None if info is None else info.model_copy(update={"given": relative_to(info.given, "data", folder)})


def _record(
    opened: Opened,
    config: UnlearnConfig,
    origins: Mapping[str, str],
    job: _Job,
    done: _Done,
    model: Path,
    output: Path,
) -> Record:
    folder, outcome = output.parent, done.outcome
    spread = None
    if job.target is not None:
        low, high = binomial_range(job.target, len(job.labels))
        spread = Interval(low=low, high=high, method="central 95 % of the binomial distribution")
    has_scores = job.scored is not None and job.selection is not None
    return Record(
        before=opening.file_hash_of(model, folder),
        after=record.FileHash(path=output.name, sha256=""),
        changed=list(opened.head.tensors),
        unchanged=len(opened.checkpoint.entries) - len(opened.head.tensors),
        outside_sha256=opened.outside_sha256,
        method=job.method,
        method_source=job.method_source,
        rows=job.plan.moving(),
        target=Target(value=job.target, source=job.target_source, range=spread),
        scores=opening.score_info(job.scored, job.selection) if has_scores else None,  # type: ignore[arg-type]
        reason=outcome.reason,
        reached=outcome.reached,
        start=LookInfo(step=0, **vars(outcome.start)),
        end=LookInfo(step=len(outcome.steps), **vars(outcome.end)),
        trajectory=done.trajectory,
        held_out=_relative(job.held_info, folder),
        details=done.details,
        previous=_previous(opened, model, folder),
        scenario=job.plan.kind,
        scenario_source=job.plan.source,
        **common(opened, origins, folder),
    )


def common(opened: Opened, origins: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """What records and evaluations share."""
    return {
        "architecture": opened.loaded.architecture.described(),
        "preprocess": opened.preprocess.described(),
        "preprocess_source": opened.preprocess_source,
        "classes": list(opened.classes.names) if opened.classes.names else None,
        "classes_source": opened.classes.source,
        "head": opening.head_info(opened.head),
        "forget": opening.forget_info(opened, folder),
        "options": opening.option_values(opened.config, origins, folder),
        "seed": opened.config.seed,
        "environment": opening.environment(opened.device),
        "seconds": opened.clock.seconds,
        "notes": opened.notes,
    }
