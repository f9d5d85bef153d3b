"""``imu unlearn`` of a language model: records that go, a reference model or unseen records that say how far, and the tensors that differ."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imu_cli.commands import held_out, people, processes, provenance, record_targets, scope, sharded
from imu_cli.commands.processes import Ranks
from imu_cli.commands.resuming import Progress
from imu_cli.config.commands import PRESETS, UnlearnConfig
from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.features import allocation, generation, tokens
from imu_cli.features.cut import Kept, KeptWords, Upper
from imu_cli.features.session import Session, Taken
from imu_cli.files import paths
from imu_cli.influence.closed_form import Damping
from imu_cli.linear import vocabulary
from imu_cli.linear.vocabulary import Words
from imu_cli.models import destination, language, scopes
from imu_cli.models.parts import Parts
from imu_cli.models.scopes import Scope
from imu_cli.models.sharding import Shards
from imu_cli.records.parts import HeldOutInfo
from imu_cli.records.record import LookInfo, Record, ScopeInfo, Target
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.texts import suites
from imu_cli.samples.texts.records import as_record
from imu_cli.unlearning.demotion import loop
from imu_cli.unlearning.demotion.completions import Aim, Completed, CompletionTraining, Look, Schedule
from imu_cli.unlearning.demotion.published import Published, PublishedUpdate

LEARNING_RATE, BETA = 0.002, 4.0
"""Share of a layer's size that a step may move it by, and weight of the anchor (docs/language.md)."""
MINIBATCH = 16
"""Forgotten records in a batch; of anchored ones twice as many."""
OWN, WRITTEN, LONGEST = 3, 300, 80
"""Answers of the model's own to each anchored question, how many in all, and their new tokens at most."""
CLASSIFIER_ONLY = (
    "scenario", "rows", "reweight", "step", "momentum", "weight_decay", "l1", "epochs", "max_steps", "max_head_change", "max_class_drop",
    "max_auc", "rho", "sigma_damping", "class_factor", "keep", "clip_quantile", "damping", "feature_term", "features", "classes",
    "cache_features", "label",
)  # fmt: skip
"""Options of ``imu unlearn`` that mean nothing for a language model."""
WHAT = "a language model"
REACHED = {True: "reached", False: "NOT reached", None: "done"}


@dataclass(frozen=True)
class Forgotten:
    """What is to be written: the record but for the file's hash, its tensors, what it has to compute (k,), and the training's state."""

    record: Record
    tensors: Mapping[str, Tensor]
    expected: Tensor
    state: Progress


def run(
    opened: Session, config: UnlearnConfig, origins: Mapping[str, str], place: destination.Destination, ranks: Ranks
) -> Forgotten:
    """Make the forgotten records as likely as records that the model never saw.

    Raises:
        ImuError: bad input, nothing to forget, or the network loses what it knows at every learning rate.
        RefusedError: a moving weight does not stand in the file as it is.
        HelpedError: another process writes.
    """
    wrong = [name for name in CLASSIFIER_ONLY if config.preset is None or name not in PRESETS[config.preset]]
    people.refuse_options(wrong, origins, WHAT)
    if origins.get("beta", "default") == "default":
        config = replace(config, beta=BETA)
    until = None if config.until is None else record_targets.parse_until(config.until)
    if config.preset is not None and ranks.count > 1:
        raise ImuError("torchrun: --preset paper-llm needs one process; start imu without it")
    if config.method in ("imu", "matched"):
        raise ImuError(
            f"--method {config.method}: is for heads, and layers below the head move here; leave it out, or --scope head"
        )
    network, head = opened.network, opened.head
    assert network is not None, "a language model is opened on records"
    moving = find_scope(opened, config.scope)
    names = scope.names_in_file(opened, moving)
    unseen, info = unseen_of(opened, config)
    anchored, apart = _parts(opened, config, unseen)
    if config.preset is None:
        record_targets.refuse_without_aim(config, unseen, until)
    on_cpu = opened.device.type == "cpu"
    with language.without_cache(network.model), allocation.kept() if on_cpu else contextlib.nullcontext():
        upper = scope.upper_part(opened, network, moving, partial(entering, layer=head.module))
        above = scope.share_above(upper)
        with scope.room() as folder:
            held_to = None if anchored is None else with_own_answers(opened, anchored, config.seed, ranks)
            shards = None
            if config.shard:
                upper, shards = sharded.dealt_out(opened, config, moving, upper, ranks)
            kept = scope.keep(opened, upper, [opened.forget.samples, held_to, apart], folder)
            with scope.learning(moving):
                sets = [opened.forget.samples, held_to, apart]
                made = [
                    None if held is None or samples is None else completed(opened, upper, held, samples)
                    for held, samples in zip(kept, sets, strict=True)
                ]
                work = _training(opened, config, moving, upper, shards, made, until, apart)
                work.share, work.join, work.to_file = ranks.share, ranks.add_up, scope.rounding(opened, names)
                trained, state = scope.resumed(opened, config, moving, work, ranks, info, [anchored, held_to], told)
        if shards is not None:
            trained = replace(trained, weights=sharded.gathered(shards, moving, ranks))
        opened.taken = Taken("model", streamed=False, bytes=4 * work.forgotten.features.numel())
        if not ranks.first:
            raise processes.HelpedError
        trajectory = scope.trajectory_of(trained)
        tensors, changed = scope.differing(opened, names, trained)
        opened.outside_sha256 = opened.checkpoint.outside_hash(set(tensors))
        n = len(opened.forget.samples) + (0 if held_to is None else len(held_to))
        scope_info = ScopeInfo(
            given=moving.given, modules=list(moving.modules), weights=moving.count, cut=upper.cut.module,
            anchor=0 if held_to is None else len(held_to), unseen=0 if apart is None else len(apart), beta=config.beta,
            learning_rate=trained.learning_rate, batches=trained.batches, steps=trained.steps, minibatch=work.schedule.forget,
            fraction=trained.fraction, weighting=config.weights, feature_term=False, tensors=changed,
            passes=scope.passes(above, work, n, before=1),
        )  # fmt: skip
        _tell_end(opened, trajectory, trained.reached, scope_info)
        record = _record(opened, config, origins, place, trained, trajectory, work, info, scope_info)
        return Forgotten(record, tensors, said_now(opened), state)


def entering(model: torch.nn.Module, batch: Any, layer: str) -> Tensor:
    """What enters the head, as ``features.cut`` asks for it."""
    return language.entering(model, layer, batch)


def find_scope(opened: Session, given: str) -> Scope:
    """The layers that move: of the last block without the head, whose rows every text shares.

    Raises:
        ImuError: the scope means nothing in this model.
    """
    with language.without_cache(opened.network.model):  # type: ignore[union-attr]
        stays = opened.head.module if given == scopes.LAST_BLOCK else None
        return scope.find(opened, given, language.logits, without=stays)


# --- whose records


def unseen_of(opened: Session, config: UnlearnConfig) -> tuple[SampleSet | None, HeldOutInfo | None]:
    """The unseen records that choose: ``--reference``, or a random half of ``--test``."""
    found = held_out.reference_of(opened, config.test, config.reference)
    return (None, None) if found is None else found


def _parts(
    opened: Session, config: UnlearnConfig, unseen: SampleSet | None
) -> tuple[SampleSet | None, SampleSet | None]:
    """Records that are anchored, and records that are compared with: two parts of the unseen ones, or all of them twice where they are few."""
    if config.preset is not None:
        return None, unseen
    if config.anchor is not None:
        judges = None if config.reference else scope.judges(opened, config.test)
        return scope.anchor_of(opened, config.anchor, judges), unseen
    if unseen is None:
        opened.note(
            "no anchor: add --anchor DATA, records of the same kind; nothing but the forgotten ones holds the model, and other answers may "
            "change: imu evaluate says how far"
        )
        return None, None
    rest, apart = held_out.two_parts(unseen, scope.UNSEEN_SHARE, config.seed)
    if len(unseen) < scope.FEW or len(rest) < scope.ANCHORED * len(opened.forget.samples):
        opened.note(
            f"unseen records: all {len(unseen)} are anchored (the model is held to what it says of them), and compared with"
        )
        return unseen, unseen
    opened.note(
        f"unseen records: {len(rest)} are anchored (the model is held to what it says of them), {len(apart)} others compared with"
    )
    return unseen.subset(rest), unseen.subset(apart)


def with_own_answers(opened: Session, anchored: SampleSet, seed: int, ranks: Ranks) -> SampleSet:
    """Anchored records, and what the model itself answers their questions, drawn by the seed.

    Asked what it does not know, a model answers from what it does know: of the records that stay there are none to hold it to. Records
    without a question, conversations, and models that do not write are anchored as they are. The first process writes for all: others
    might draw another word where two are as likely.
    """
    records = [as_record(anchored.read(row)) for row in range(len(anchored))]
    if not generation.can_write(opened) or not all(one.prompt and not one.messages for one in records):
        return anchored
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    rows, said = (order * OWN)[:WRITTEN], list[str]()
    if ranks.first:
        with opened.log.timed("own answers"), opened.log.track("own answers", len(rows)) as advance:
            said = generation.answers(opened, anchored, rows, advance, longest=LONGEST, seed=seed)
    asked = [(records[row].prompt, text) for row, text in zip(rows, ranks.of_first(said), strict=True) if text]
    given = dict.fromkeys((one.prompt, one.completion) for one in records)
    own = _that_fit(opened, [pair for pair in dict.fromkeys(asked) if pair not in given])
    pairs = [*given, *own]
    opened.note(f"anchored too: {len(own)} answers of the model's own to the anchored questions, drawn by the seed")
    return suites.records_of(f"{anchored.source} (and own answers)", range(1, len(pairs) + 1), pairs)


def _that_fit(opened: Session, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Prompts with answers of the model's own that are no longer than it takes: what it writes until its end is not asked about that."""
    assert opened.network is not None
    if not pairs:
        return []
    written, fit = suites.records_of("own answers", range(1, len(pairs) + 1), pairs), list[tuple[str, str]]()
    step = opened.network.preprocess
    for row, pair in enumerate(pairs):
        try:
            step.together(written, [row])
        except InvalidRowsError:
            continue
        fit.append(pair)
    return fit


def completed(opened: Session, upper: Upper, kept: Kept | KeptWords, samples: SampleSet) -> Completed:
    """Records that are kept at the cut, and their completion tokens as the model has them now."""
    network, head = opened.network, opened.head
    assert network is not None
    answers = tokens.answers_of(samples, network.preprocess)

    def run(rows: Tensor) -> Tensor:
        return answers.chosen(upper.answers(kept, rows, partial(entering, layer=head.module)), rows)

    features: Tensor | None = None
    with torch.no_grad():
        for rows in loop.portions(torch.arange(len(samples)), opened.engine.batch_size, answers.lengths):
            found = run(rows).float()
            if features is None:
                features = found.new_empty(len(answers.targets), found.shape[1])
            features[answers.of(rows)] = found
    assert features is not None, "a set has records"
    record = torch.repeat_interleave(torch.arange(len(samples)), answers.counts)
    return Completed(run, features, answers.targets, record, answers.ends, answers.of, answers.lengths)


# --- what is aimed at


def _training(
    opened: Session,
    config: UnlearnConfig,
    moving: Scope,
    upper: Upper,
    shards: Shards | None,
    sets: Sequence[Completed | None],
    until: Mapping[str, float] | None,
    apart: SampleSet | None,
) -> CompletionTraining:
    forgotten, anchor, unseen = sets
    assert forgotten is not None
    head = opened.head
    words = Words(head.matrix.to(upper.device), head.bias, head.scale, head.cap)
    parts: Parts = shards or Parts()
    parameters: Mapping[str, Tensor] = moving.parameters if shards is None else shards.parameters
    layer = opened.network.model.get_submodule(head.module)  # type: ignore[union-attr]
    moving_head = next((name for name, parameter in moving.parameters.items() if parameter is layer.weight), "")
    if moving_head and head.bias:
        raise ImuError(
            f"--scope {config.scope}: the head {head.module} has a bias, and cannot move together with other layers; name a scope without it"
        )
    size = config.minibatch or MINIBATCH
    schedule = Schedule(
        batches=config.batches, forget=size, anchor=2 * size, at_once=min(2 * size, max(1, opened.engine.batch_size)),
        learning_rate=config.learning_rate or LEARNING_RATE, beta=config.beta, seed=config.seed,
    )  # fmt: skip
    given = opened.forget.weights
    weights = torch.ones(forgotten.n) if given is None else torch.tensor(given, dtype=torch.float64)
    if config.preset is not None:
        if moving_head:
            raise ImuError(f"--preset paper-llm: {head.module} is in --scope {config.scope}; name layers below it")
        made = Published(
            config.epochs or 1,
            config.weight_decay,
            config.l1,
            config.keep,
            config.clip_quantile,
            Damping.parse(config.damping),
        )
        nothing = Aim(None, None, None, f"--preset {config.preset} runs a fixed number of epochs")
        return PublishedUpdate(
            parameters, words, "", forgotten, None, unseen, nothing, config.max_drop, schedule, weights, published=made,
            told=opened.note,
        )  # fmt: skip
    aim = record_targets.aim_of(opened, config, forgotten, unseen, words, until, apart)
    aim = replace(aim, by_loss=until is None)
    work = CompletionTraining(
        parameters,
        words,
        moving_head,
        forgotten,
        anchor,
        unseen,
        aim,
        config.max_drop,
        schedule,
        weights,
        told=opened.note,
        parts=parts,
    )
    if anchor is not None:
        work.bends = scope.bends(opened, upper.model, parameters, anchor.run, anchor.n, at_once=1, parts=parts)
    start, _ = work.original()
    if work.met(start):
        raise ImuError(
            f"target: no more of the forgotten records is known than is aimed at, but for chance ({_level(work, start)}): there is nothing to "
            "forget here that could be measured; nothing was written"
        )
    opened.note(f"target: {_level(work, start)}; {aim.how}")
    return work


# --- what is told and written


def _level(work: CompletionTraining, look: Look) -> str:
    known, read, unlikely = work.aim.levels(look)
    found = []
    if known is not None and known < 1:
        found.append(f"exact memorisation at most {known:.3f}, now {look.forget:.3f}")
    if read is not None and read < 1:
        found.append(f"extraction strength at most {read:.3f}, now {look.extraction:.3f}")
    if unlikely is not None:
        found.append(f"cross-entropy at least {unlikely:.2f}, now {look.loss:.2f}")
    return ", ".join(found)


def told(look: Look) -> str:
    """A look in words."""
    shown = [f"exact memorisation {look.forget:.3f}", f"extraction {look.extraction:.3f}", f"loss {look.loss:.2f}"]
    if look.unseen is not None:
        shown.append(f"unseen {look.unseen:.3f}, {look.unseen_extraction:.3f}")
    if look.unseen_loss is not None:
        shown.append(f"loss {look.unseen_loss:.2f}")
    if look.auc is not None:
        shown.append(f"AUC {look.auc:.3f}")
    return ", ".join(shown)


def _tell_end(opened: Session, trajectory: Sequence[LookInfo], reached: bool | None, info: ScopeInfo) -> None:
    start, end = trajectory[0], trajectory[-1]
    lost = "" if end.test_drop is None else f"; unseen records' tokens right: down by {end.test_drop:.4f}"
    auc = "" if end.auc is None or start.auc is None else f", membership AUC from {start.auc:.3f} to {end.auc:.3f}"
    opened.note(
        f"{REACHED[reached]}: exact memorisation from {start.forget:.3f} to {end.forget:.3f}, extraction strength from "
        f"{start.extraction:.3f} to {end.extraction:.3f}{auc}{lost}; {len(info.tensors)} tensors changed, by {end.head_change:.2%} of the "
        f"weights that move; {info.passes:.0f} forward passes' worth over forget and anchor records"
    )


def said_now(opened: Session) -> Tensor:
    """The logits (k,) that the model as it is gives the completion tokens of the first forget records."""
    samples = opened.forget.samples
    few = samples.subset(range(min(scope.REPLAYED // 4, len(samples))))
    rows, head = opened.tokens_of(few, "the replayed records"), opened.head
    matrix = language.matrix_of(opened.network.model, head.module)  # type: ignore[union-attr]
    return vocabulary.statistics(rows, Words(matrix, head.bias, head.scale, head.cap)).own


def replay(opened: Session, written: Path, expected: Tensor) -> str:
    """Load the written model and compare its logits of the first forget records' tokens with what they should be (k,); its SHA-256.

    Raises:
        ImuError: the file does not compute what was promised.
    """

    def found() -> Tensor:
        with language.without_cache(opened.network.model):  # type: ignore[union-attr]
            return said_now(opened)

    return scope.replayed(opened, written, expected, found, "logits")


def _record(
    opened: Session,
    config: UnlearnConfig,
    origins: Mapping[str, str],
    place: destination.Destination,
    trained: loop.Trained[Look],
    trajectory: list[LookInfo],
    work: CompletionTraining,
    held: HeldOutInfo | None,
    info: ScopeInfo,
) -> Record:
    folder = place.record.parent
    common: dict[str, Any] = provenance.common(opened, config, origins, folder)
    forget = common["forget"]
    given = None if held is None else held.model_copy(update={"given": paths.relative_to(held.given, "data", folder)})
    return Record(
        method="demoted" if config.preset is None else "imu",
        method_source=(
            f"--preset {config.preset}"
            if config.preset is not None
            else "--method"
            if config.method == "demoted"
            else "auto: a language model"
        ),
        target=Target(value=work.aim.memorized, source=work.aim.how, follows=work.aim.memorized is None),
        held_out=given,
        details={"targets": trained.targets, "tokens": len(work.forgotten.targets)},
        scenario="record",
        scenario_source=WHAT,
        **scope.told_of_training(opened, place, trained, trajectory, info),
        **common
        | {
            "forget": forget.model_copy(update={"given": people.unnamed(forget.given)}),
            "options": people.without_people(common["options"]),
        },
    )
