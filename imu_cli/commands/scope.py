"""``--scope``: from an opened forget set to a network whose deeper layers moved, and the tensors of the file that differ.

The network below the moving part runs once over forget, anchor and unseen samples (``features.cut``); the training itself is
``unlearning.demotion``.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli.commands import held_out, preparation, provenance
from imu_cli.commands.processes import Ranks
from imu_cli.commands.resuming import Progress, progress
from imu_cli.config.commands import UnlearnConfig
from imu_cli.errors import ImuError, InvalidRowsError, RefusedError, StoppedError
from imu_cli.features import allocation, cut
from imu_cli.features.cut import Blend, Kept, KeptWords, Upper
from imu_cli.features.session import Network, Session
from imu_cli.files import memory
from imu_cli.influence import closed_form
from imu_cli.linear import margins
from imu_cli.linear.rows import Rows, blocks
from imu_cli.linear.rows import logits as logits_of
from imu_cli.models import architecture, correspondence, scopes
from imu_cli.models.arithmetic import float32_as
from imu_cli.models.checkpoint import DTYPES, open_checkpoint, same_bits
from imu_cli.models.destination import Destination
from imu_cli.models.parts import Parts
from imu_cli.models.replay import tolerance_in
from imu_cli.models.scopes import Answers, Scope
from imu_cli.records.parts import FileHash, HeldOutInfo
from imu_cli.records.record import LookInfo, ScopeInfo, TensorChange
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.manifest import open_source
from imu_cli.samples.overlap import overlap, without
from imu_cli.unlearning import targets
from imu_cli.unlearning.demotion import loop, preconditioning, training
from imu_cli.unlearning.demotion.loop import LookT, Objective
from imu_cli.unlearning.demotion.preconditioning import Bend
from imu_cli.unlearning.demotion.training import Anchor, Forgotten, Schedule, Training, Unseen
from imu_cli.unlearning.matched import fit
from imu_cli.unlearning.procedure import Job

REPLAYED = 64
"""Forget samples that are replayed through the written file."""
LEARNING_RATE = 0.004
"""Share of a layer's size that a step may move it by: the same for convolutions and transformers (benchmarks/quality_depth.py)."""
MINIBATCH = 128
UNSEEN_SHARE = 0.2
"""Of the held-out samples that may choose: those that are not anchored, since an anchored sample no longer looks unseen."""
ANCHORED = 2
"""Anchored samples for each forget sample, below which the unseen ones are anchored too: then what the network knows suffers
more than the targets, which an anchored sample makes a little too sure (benchmarks/quality_depth.py)."""
FEW = 500
"""Held-out samples below which all of them do both: of fewer a fifth is so small that one sample is beyond ``--max-drop``."""
BEYOND = 1.0
"""Log-odds by which fixed targets are lower than the aim: training comes near its targets only, and the stop rule ends it in time."""
ATTRACTION, COVARIANCE = 1.0, 5.0
"""Weights of the feature term where a whole class goes."""


@dataclass(frozen=True)
class Moved:
    """What came of it: tensors of the file that differ, the record's part, the training, its trajectory, and what it is resumed from."""

    tensors: Mapping[str, Tensor]
    info: ScopeInfo
    trained: loop.Trained[targets.Look]
    trajectory: list[LookInfo]
    logits: Tensor
    state: Progress


HEAD_ONLY = (
    "preset", "reweight", "rows", "step", "momentum", "weight_decay", "l1", "epochs", "keep", "rho", "sigma_damping", "class_factor",
    "max_head_change", "max_steps",
)  # fmt: skip
DEEPER_ONLY = ("anchor", "beta", "batches", "feature_term", "resume", "shard")


def refuse(config: UnlearnConfig) -> None:
    """Refuse options that say nothing to the scope.

    Raises:
        ImuError: names all of them.
    """
    deeper = config.scope != scopes.HEAD
    others = HEAD_ONLY if deeper else DEEPER_ONLY
    known = {"feature_term": "--no-feature-term", "class_factor": "--no-class-factor"}
    named = [
        known.get(name, f"--{name.replace('_', '-')}")
        for name in others
        if getattr(config, name) != getattr(UnlearnConfig(), name)
    ]
    if not named:
        return
    if not deeper:
        raise ImuError(
            f"{', '.join(named)}: for layers below the head; name them, for example --scope last-block, or leave out"
        )
    instead = "; --batches says how many steps" if "--max-steps" in named else ""
    raise ImuError(f"{', '.join(named)}: options of the head alone; leave out, or use --scope head{instead}")


def refuse_vectors(opened: Session, given: str) -> None:
    """Refuse features from a file, which is all that there is of the samples.

    Raises:
        ImuError: no network runs.
    """
    if opened.network is None:
        raise ImuError(
            f"--scope {given}: layers below the head move, and features from a file are what those gave before; name the "
            "samples themselves in --forget and --data, or use --scope head"
        )


def find(opened: Session, given: str, answers: Answers = scopes.logits, without: str | None = None) -> Scope:
    """The layers that move, told before the first step; ``answers`` is what they are for, and the layer ``without`` stays.

    Raises:
        ImuError: the scope means nothing in this model.
    """
    if opened.device.type == "mps":
        raise ImuError(
            f"--scope {given}: targets are computed in float64, which Apple's GPUs do not have; add --device cpu, or use --scope head"
        )
    network = opened.network
    assert network is not None
    found = scopes.find(network.model, network.probe, given, opened.head.module, answers, without)
    opened.note(f"scope {given}: {found.described()} move; buffers, and everything else, stay as they are")
    return found


def run(opened: Session, config: UnlearnConfig, scope: Scope, ready: preparation.Ready, h: Rows, ranks: Ranks) -> Moved:
    """Train towards the demoted teacher, and give the tensors that the file is to have.

    Raises:
        ImuError: anchor data are wrong, or the network loses what it knows at every learning rate.
        RefusedError: a moving weight does not stand in the file as it is.
    """
    network, job = opened.network, ready.job
    assert network is not None
    names = names_in_file(opened, scope)
    anchored, unseen = _parts(opened, config, ready)
    upper = upper_part(opened, network, scope)
    with room() as folder:
        sets = keep(opened, upper, [opened.forget.samples, anchored, unseen], folder)
        with learning(scope):
            work = _training(opened, config, job, scope, upper, sets, h, anchored, unseen)
            work.share, work.join, work.to_file = ranks.share, ranks.add_up, rounding(opened, names)
            trained, state = resumed(opened, config, scope, work, ranks, ready.held_info, [anchored], _told)
    tensors, changed = differing(opened, names, trained)
    n = len(work.forgotten.labels) + (0 if work.anchor is None else len(work.anchor.logits))
    info = ScopeInfo(
        given=scope.given, modules=list(scope.modules), weights=scope.count, cut=upper.cut.module,
        anchor=0 if work.anchor is None else len(work.anchor.logits), unseen=0 if unseen is None else len(unseen),
        beta=config.beta, learning_rate=trained.learning_rate, batches=trained.batches, steps=trained.steps,
        minibatch=work.schedule.forget, fraction=trained.fraction, weighting=config.weights,
        feature_term=work.means is not None, passes=passes(share_above(upper), work, n, before=2), tensors=changed,
    )  # fmt: skip
    logits = opened.plainly(REPLAYED)[1].double().cpu()
    return Moved(tensors, info, trained, trajectory_of(trained), logits, state)


# What runs


@contextmanager
def learning(scope: Scope) -> Iterator[None]:
    """While the context lasts, the weights of a scope take gradients."""
    for parameter in scope.parameters.values():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in scope.parameters.values():
            parameter.requires_grad_(False)


def trajectory_of(trained: loop.Trained[LookT]) -> list[LookInfo]:
    """Its looks, as the record has them."""
    made = [LookInfo(step=number, **vars(look)) for number, look in trained.looks]
    made[-1].fraction = trained.fraction
    return made


def upper_part(opened: Session, network: Network, scope: Scope, answers: Answers = scopes.logits) -> Upper:
    """The part of the network that moves, told where it begins."""
    found, engine = cut.find(network.model, network.probe, scope.modules, answers=answers), opened.engine
    said = f"from the output of {found.module} on" if found.module else "as a whole, from its input"
    opened.note(f"the network runs {said} while it is trained; what is below runs once")

    @contextmanager
    def cast() -> Iterator[None]:
        kind = "tf32" if engine.precision == "tf32" else "ieee"
        with engine.casting(), float32_as(kind):  # type: ignore[arg-type]
            yield

    return Upper(network.model, opened.head.module, found, network.preprocess, opened.device, cast, network.probe)


@contextmanager
def room() -> Iterator[Path]:
    """A folder for what does not fit into memory; nothing of it is left behind."""
    with tempfile.TemporaryDirectory(prefix="imu-") as folder:
        yield Path(folder)


def keep(
    opened: Session, upper: Upper, sets: Sequence[SampleSet | None], folder: Path
) -> list[Kept | KeptWords | None]:
    """What is below the cut, run once over each set."""
    made: list[Kept | KeptWords | None] = []
    most = memory.limit(opened.run.max_memory)
    total = sum(len(samples) for samples in sets if samples is not None)
    with opened.log.timed("features at the cut"), opened.log.track("features at the cut", total) as advance:
        for samples in sets:
            made.append(
                None
                if samples is None
                else upper.keep(
                    samples, opened.engine.batch_size, most // max(1, total) * len(samples), lambda: folder, advance
                )
            )
    return made


def _parts(
    opened: Session, config: UnlearnConfig, ready: preparation.Ready
) -> tuple[SampleSet | None, SampleSet | None]:
    """The samples that are anchored, and the unseen ones that are not: two parts of the held-out data, or ``--anchor`` and all of it."""
    held = ready.held_samples
    if config.anchor is not None:
        given = anchor_of(opened, config.anchor, None if config.reference else judges(opened, config.test))
        # Its labels say nothing: a folder numbers classes of its own.
        return replace(given, labels=[UNKNOWN] * len(given)), held
    if held is None:
        what = "; nothing but the forget samples holds the network, and other answers may change: imu evaluate says how far"
        opened.note("no anchor: add --anchor DATA, unseen samples of the same kind (without labels)" + what)
        return None, None
    rest, apart = held_out.two_parts(held, UNSEEN_SHARE, config.seed)
    if len(held) < FEW or len(rest) < len(held) / 2:
        opened.note(
            f"{len(held)} held-out samples are too few for two parts: all of them are anchored and give targets"
        )
        return held, held
    n = len(opened.forget.samples)
    if ready.job.plan.kind != "class" and len(rest) < ANCHORED * n:
        opened.note(
            f"held-out samples: all {len(held)} are anchored and give targets: beside {n} forget samples every one of them is needed to "
            "hold the network"
        )
        return held, held
    opened.note(
        f"held-out samples: {len(rest)} are anchored (the network is held to what it says of them), {len(apart)} others give targets "
        "and guard the budgets"
    )
    return held.subset(rest), held.subset(apart)


def anchor_of(opened: Session, given: str, judges: SampleSet | None) -> SampleSet:
    """The samples of ``--anchor``, without twins of forget samples, and without those of ``--test`` that are left to judge by.

    Raises:
        ImuError: nothing is left of it.
        InvalidRowsError: forget samples stand in it.
    """
    samples = open_source(given, "test", opened.data, names=opened.columns)
    held_out.refuse_other_kind(opened, samples)
    shared = overlap(opened.forget.samples, samples)
    if shared.same:
        raise InvalidRowsError(
            [
                f"{opened.forget.samples.where(mine)}: also stands in --anchor as {samples.where(theirs)}; an anchored sample stays "
                "as it is"
                for mine, theirs in shared.same
            ]
        )
    left = without(samples, {theirs for _, theirs in shared.twins})
    if len(left) == 0:
        raise ImuError(f"--anchor {given}: nothing is left of it without twins of the forget samples; give other data")
    return left if judges is None else _without_judges(opened, given, left, judges)


def judges(opened: Session, test: str | None) -> SampleSet | None:
    """The half of ``--test`` that is left for evaluate."""
    if test is None:
        return None
    whole = held_out.held_out(opened, test)
    chosen = set(held_out.half(whole, opened.run.seed))
    return whole.subset([row for row in range(len(whole)) if row not in chosen])


def _without_judges(opened: Session, given: str, samples: SampleSet, judges: SampleSet) -> SampleSet:
    shared = overlap(judges, samples)
    theirs = {row for _, row in [*shared.same, *shared.twins]}
    if theirs:
        opened.note(
            f"--anchor {given}: {len(theirs)} of its {len(samples)} samples are in the half of --test that is left for evaluate, and are "
            "left out: what is held to its answers cannot judge"
        )
    left = without(samples, theirs)
    if len(left) == 0:
        raise ImuError(
            f"--anchor {given}: nothing is left of it without the half of --test that judges; give other data"
        )
    return left


def _training(
    opened: Session,
    config: UnlearnConfig,
    job: Job,
    scope: Scope,
    upper: Upper,
    sets: Sequence[Kept | KeptWords | None],
    h: Rows,
    anchored: SampleSet | None,
    unseen: SampleSet | None,
) -> Training:
    forget, anchor_kept, unseen_kept = sets
    assert forget is not None
    device, at_once = opened.device, opened.engine.batch_size
    matrix = opened.matrix()

    def runs(kept: Kept | KeptWords) -> training.Run:
        return lambda rows: upper(kept, rows)

    def answers(kept: Kept | KeptWords) -> tuple[Tensor, Tensor]:
        made: tuple[Tensor, Tensor] | None = None
        with torch.no_grad():
            for rows in loop.portions(torch.arange(len(kept)), at_once, kept.lengths):
                f, z = upper(kept, rows)
                if made is None:
                    made = f.new_empty(len(kept), f.shape[1]), z.new_empty(len(kept), z.shape[1], dtype=torch.float64)
                made[0][rows.to(device)], made[1][rows.to(device)] = f, z.double()
        assert made is not None, "a set has samples"
        return made

    labels = opened.labels().to(device)
    wanted = job.procedure
    anchor = seen = None
    alone = torch.arange(0)
    if anchor_kept is not None and anchored is not None:
        f, z = answers(anchor_kept)
        blended = _blended(upper, anchor_kept, torch.arange(len(anchor_kept)))
        anchor = Anchor(runs(anchor_kept), z, f, blended, anchor_kept.lengths)
        if job.plan.kind == "class":
            anchor, places = _of_kept_classes(anchor, anchored, z, job.plan.forgotten, anchor_kept, upper)
        else:
            places = torch.arange(len(anchor_kept))
        alone = cut.firsts(anchor_kept, places)
    if unseen_kept is not None and unseen is not None:
        own = torch.tensor(list(unseen.labels), device=device)
        stays = ~torch.isin(own, torch.tensor(job.plan.forgotten, dtype=own.dtype, device=device))
        seen = Unseen(runs(unseen_kept), answers(unseen_kept)[1], own, stays, unseen_kept.lengths)
    logits = torch.cat([logits_of(h[rows], matrix) for rows in blocks(len(h), matrix.shape[0])]).to(device)
    true = opened.true_labels()
    limits = job.limits if seen is None else replace(job.limits, m=int(seen.kept.sum()))
    fixed, max_auc = _aim(job, h)
    with_features = job.plan.kind == "class" and config.feature_term and anchor is not None
    schedule = Schedule(
        batches=config.batches, forget=config.minibatch or MINIBATCH, anchor=MINIBATCH, at_once=at_once,
        learning_rate=config.learning_rate or LEARNING_RATE, beta=config.beta,
        attraction=ATTRACTION if with_features else 0.0, covariance=COVARIANCE if with_features else 0.0, seed=config.seed,
    )  # fmt: skip
    given = job.forgetting.weights
    if config.weights == "influence":
        job.scored = job.forgetting.scores()
        weights = closed_form.magnitude(job.scored.scores, wanted.ascent.clip_quantile, given)
    else:
        weights = closed_form.uniform(len(labels), given)
    given_true = None if true is None else true.to(device)
    forgotten = Forgotten(runs(forget), logits, labels, given_true, weights.to(device), forget.lengths)
    turned: dict[str, Bend] = {}
    if anchor is not None and job.plan.kind != "mislabelled":  # wrong labels may be what all answers have in common
        each = anchor.run  # of words one of each sentence: what enters a layer is the whole of it
        together = at_once if upper.blends else 1
        turned = bends(opened, upper.model, scope.parameters, lambda rows: each(alone[rows]), len(alone), together)
    return Training(
        scope.parameters, job.plan, forgotten, anchor, seen, limits, schedule,
        margin=wanted.margin, fixed=None if fixed is None else fixed.to(device), max_auc=max_auc, told=opened.note,
        bends=turned,
    )  # fmt: skip


def bends(
    opened: Session,
    model: nn.Module,
    moving: Mapping[str, Tensor],
    run: Callable[[Tensor], object],
    n: int,
    at_once: int,
    parts: Parts | None = None,
) -> dict[str, Bend]:
    """``preconditioning.bends``, timed."""
    with opened.log.timed("what anchored samples have in common"):
        return preconditioning.bends(model, moving, run, n, at_once, parts=parts)


def _aim(job: Job, h: Rows) -> tuple[Tensor | None, float | None]:
    """Targets that stay, where the user gives the share; and the membership AUC to come down to where unseen samples give them."""
    if job.plan.kind == "class":
        return None, None
    if job.procedure.until is None and job.unseen is not None:
        return None, job.unseen.auc_bound(job.procedure.matching.max_auc, job.classifier.matrix)
    assert job.target is not None
    held = h if isinstance(h, Tensor) else h.held()
    aim = fit.aim(
        held, job.forgetting.labels, job.classifier.matrix, job.target, job.unseen, kind=job.plan.kind, by_accuracy=True
    )
    phi = margins.margins(logits_of(held, job.classifier.matrix), job.forgetting.labels)
    return torch.where(aim.targets < phi, aim.targets - BEYOND, aim.targets), None


def _of_kept_classes(
    anchor: Anchor, samples: SampleSet, logits: Tensor, forgotten: Sequence[int], kept: Kept | KeptWords, upper: Upper
) -> tuple[Anchor, Tensor]:
    """The anchor without samples of a class that goes, and the places (m,) of those that stay.

    A sample's class is its label, or the original's answer where it has none.
    """
    own = torch.tensor(list(samples.labels), device=logits.device)
    own = torch.where(own < 0, logits.argmax(dim=1), own)
    stays = (~torch.isin(own, torch.tensor(list(forgotten), dtype=own.dtype, device=own.device))).nonzero().squeeze(1)
    if len(stays) == 0:
        raise ImuError("--anchor: holds nothing but the classes that go; give samples of the classes that stay")
    places = stays.cpu()
    made = Anchor(
        lambda rows: upper(kept, places[rows]), anchor.logits[stays], anchor.features[stays], _blended(upper, kept, places),
        None if anchor.lengths is None else anchor.lengths[places],
    )  # fmt: skip
    return made, places


def _blended(
    upper: Upper, kept: Kept | KeptWords, places: Tensor
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """What runs samples mixed with others, of those at some places of a kept set; None where they cannot be mixed."""
    if not upper.blends:
        return None
    return lambda rows, others, share: upper(kept, places[rows], Blend(places[others], share))


def resumed(
    opened: Session,
    config: UnlearnConfig,
    scope: Scope,
    work: Objective[LookT],
    ranks: Ranks,
    held: HeldOutInfo | None,
    anchors: Sequence[SampleSet | None],
    told: Callable[[LookT], str],
) -> tuple[loop.Trained[LookT], Progress]:
    """Train, from where an interrupted run was where that is asked for; what it keeps on the way is removed by ``Progress.done``."""
    parted = work.parts.count > 1
    state = _progress(opened, config, held, scope, anchors, ranks if parted else Ranks(0, 1))
    failed = False

    def save(tensors: dict[str, Tensor], said: dict[str, object]) -> None:
        nonlocal failed
        # Of parts either all are kept or none: the first process says when.
        due = ranks.of_first(state.due()) if parted else None
        if failed:
            return
        try:
            state.save(tensors, said, due)
        except ImuError as error:  # nothing that the run needs
            failed = True
            opened.log.events.note(f"{error}; the run goes on, and cannot be resumed from here")

    if ranks.first or parted:
        work.save = save
    if parted:
        found = state.load() if config.resume else None
        steps = ranks.of_all(None if found is None else int(found[1]["looks"][-1][0]))
        work.state = found if all(step == steps[0] for step in steps) else None  # of one look, or nothing to go on from
    else:
        work.state = ranks.of_first(state.load() if config.resume and ranks.first else None)
    if work.state is not None:
        opened.note(f"going on from step {work.state[1]['looks'][-1][0]} of an earlier run")
    elif config.resume:
        opened.note("--resume: no interrupted run with this model, these data and options; begun anew")
    try:
        return run_loop(opened, work, told), state
    except StoppedError:
        if state.kept:
            opened.note(
                "what was done so far is kept in the cache: the same command with --resume goes on from its last look"
            )
        raise


def run_loop(opened: Session, work: Objective[LookT], told: Callable[[LookT], str]) -> loop.Trained[LookT]:
    """Train to the end; every look is told."""
    steps = work.length()
    on_cpu = opened.device.type == "cpu"
    last = 0
    with (
        opened.log.timed("training"),
        opened.log.track("training", steps) as advance,
        allocation.kept() if on_cpu else contextlib.nullcontext(),
    ):
        for item in work.train():
            if isinstance(item, loop.Trained):
                return item
            step, look = item
            advance(max(0, step - last))
            last = step
            opened.log.events.note(f"step {step} of {steps}: {told(look)}")
    raise AssertionError("a training ends with weights")


def _told(look: targets.Look) -> str:
    shown = [f"forget {look.forget:.2%}"]
    if look.unseen is not None:
        shown.append(f"unseen {look.unseen:.2%}")
    if look.auc is not None:
        shown.append(f"AUC {look.auc:.3f}")
    if look.test_drop is not None:
        shown.append(f"unseen accuracy down by {look.test_drop:.2%}")
    return ", ".join(shown)


def _progress(
    opened: Session,
    config: UnlearnConfig,
    held: HeldOutInfo | None,
    scope: Scope,
    anchors: Sequence[SampleSet | None],
    ranks: Ranks,
) -> Progress:
    """Where the state of this training lies, by everything that it depends on."""
    free = {
        "output",
        "force",
        "resume",
        "cache",
        "cache_features",
        "max_memory",
        "device",
        "forget",
        "data",
        "test",
        "reference",
    }
    options = {name: value for name, value in vars(config).items() if name not in free}
    return progress(
        {
            "model": opened.checkpoint.sha256,
            "forget": opened.forget.sha256,
            "anchor": [held_out.rows_hash(samples) for samples in anchors if samples is not None],
            "held": None if held is None else held.sha256,
            "modules": scope.modules,
            "device": opened.device.type,
            "batch": opened.engine.batch_size,
            "preprocess": opened.described()["preprocess"],
            "options": options,
        },
        ranks.rank,
        ranks.count,
    )


# The file


def names_in_file(opened: Session, scope: Scope) -> dict[str, list[str]]:
    """The file's tensors for each moving weight; several where the file has a tied one twice.

    Raises:
        RefusedError: a weight is not in the file as it is, or in a dtype that is not written.
    """
    network, checkpoint = opened.network, opened.checkpoint
    assert network is not None
    found = correspondence.find(checkpoint, network.loaded, scope.parameters)
    for name, those in found.items():
        if not those:
            raise RefusedError(
                f"--scope {scope.given}: {name} is not in the file as the model has it (it is computed or joined from other tensors); "
                "name a scope without it"
            )
        for file in those:
            dtype = checkpoint.entries[file].dtype
            if dtype not in DTYPES:
                raise RefusedError(
                    f"--scope {scope.given}: {file} is {dtype} in the file; imu writes {', '.join(DTYPES)}: give the checkpoint from "
                    "before quantisation, or name a scope without it"
                )
    return found


def rounding(opened: Session, names: Mapping[str, Sequence[str]]) -> Callable[[str, Tensor], Tensor]:
    """What the file makes of a moving weight: its dtype's nearest value."""
    entries = opened.checkpoint.entries

    def to_file(name: str, value: Tensor) -> Tensor:
        return value.to(DTYPES[entries[names[name][0]].dtype]).to(value.dtype)

    return to_file


def differing(
    opened: Session, names: Mapping[str, Sequence[str]], trained: loop.Trained[LookT]
) -> tuple[dict[str, Tensor], list[TensorChange]]:
    """The tensors whose bytes differ from the file's, by the file's names, and by how much of their norm."""
    made = []
    tensors = {name: trained.weights[own] for own, those in names.items() for name in those}
    for name, tensor in sorted(tensors.items()):
        before = opened.checkpoint.tensor(name)
        after = tensor.detach().cpu().to(before.dtype)
        if not same_bits(before, after):
            norm = float(torch.linalg.vector_norm(before.double()))
            moved = float(torch.linalg.vector_norm(after.double() - before.double()))
            made.append(TensorChange(name=name, change=moved / norm if norm else None))
    return {item.name: tensors[item.name] for item in made}, made


def told_of_training(
    opened: Session,
    place: Destination,
    trained: loop.Trained[LookT],
    trajectory: list[LookInfo],
    info: ScopeInfo,
) -> dict[str, Any]:
    """What the record of a training on people or on records holds: the models, the tensors that differ, and how it went."""
    folder = place.record.parent
    return {
        "before": provenance.model_hash_of(opened.checkpoint, folder),
        "after": FileHash(path=provenance.model_path(place.output, folder), sha256=""),
        "changed": [item.name for item in info.tensors],
        "unchanged": len(opened.checkpoint.entries) - len(info.tensors),
        "outside_sha256": opened.outside_sha256,
        "rows": None,
        "scores": None,
        "reason": trained.reason,
        "reached": trained.reached,
        "start": trajectory[0],
        "end": trajectory[-1],
        "trajectory": trajectory,
        "scope": info,
    }


def replayed(opened: Session, written: Path, expected: Tensor, found: Callable[[], Tensor], what: str) -> str:
    """Load the written model and compare ``what`` it computes with what it should be; its SHA-256.

    Raises:
        ImuError: the file does not compute what was promised.
    """
    network = opened.network
    assert network is not None
    made = open_checkpoint(written)
    architecture.load_into(network.loaded.model, network.loaded.state_of(made), str(written))
    error = float((found() - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    allowed = tolerance_in(opened.run.precision)
    if not error <= allowed:
        raise ImuError(
            f"{written}: the written model's {what} differ by {error:.2g} of the largest number from what was promised (allowed: {allowed:g}); "
            "nothing was kept"
        )
    return made.sha256


def passes(above: float, work: Objective[LookT], n: int, before: int) -> float:
    """Forward passes of the whole network over n forget and anchor samples that a run was worth: a backward counts two.

    ``before`` are those made before the training: the one that gives the original's answers from what is kept at the cut, and for
    a classifier the one by which its head is found, scored and compared with unseen samples.

    The part above the cut counts by its share of the weights' multiplications (``share_above``), taken as that of the time of a pass.
    """
    return before + above * work.spent / n


def share_above(upper: Upper) -> float:
    """Share of a pass's multiplications that are made above the cut: by all that runs again, whether or not its weights move."""
    from torch.utils.flop_counter import FlopCounterMode

    from imu_cli.models.batches import call, first

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(upper.model, first(upper.probe, 1))
    counts = counter.get_flop_counts()
    total = sum(counts.get("Global", {}).values())
    root = type(upper.model).__name__
    once = [upper.cut.module, *upper.cut.skipped] if upper.cut.module else []
    below = sum(sum(counts.get(f"{root}.{path}", {}).values()) for path in once)
    return 1 - below / total if total else 1.0
