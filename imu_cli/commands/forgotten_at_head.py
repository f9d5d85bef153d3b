"""``imu unlearn --scope head`` of a language model: the rows of its head that forgotten records' tokens need moved; every other tensor stays."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from imu_cli.commands import forgotten_records, people, provenance, record_targets, scope
from imu_cli.commands.processes import Ranks
from imu_cli.config.commands import UnlearnConfig
from imu_cli.errors import ImuError, RefusedError
from imu_cli.features.session import Session, Taken
from imu_cli.features.tokens import TokenRows
from imu_cli.files import paths
from imu_cli.linear import vocabulary
from imu_cli.linear.vocabulary import Words
from imu_cli.models import checkpoint, destination, scopes, untying
from imu_cli.records import parts
from imu_cli.records.parts import HeldOutInfo
from imu_cli.records.record import LookInfo, Record, Target
from imu_cli.samples.dataset import SampleSet
from imu_cli.unlearning.demotion.completions import Aim, Completed
from imu_cli.unlearning.matched import records
from imu_cli.unlearning.matched.records import Chosen, Point
from imu_cli.unlearning.matched.words import WordProblem

CLASSES = (
    "scenario", "preset", "weights", "rows", "reweight", "step", "momentum", "weight_decay", "l1", "epochs",
    "max_steps", "max_head_change", "max_class_drop", "max_auc", "class_factor", "keep", "clip_quantile", "damping", "feature_term",
    "features", "classes", "cache_features", "label",
)  # fmt: skip
"""Options of ``imu unlearn`` that mean nothing at the head of a language model."""
DEEPER = ("learning_rate", "minibatch", "batches", "beta", "anchor")
"""Options that mean something where layers below it move."""


@dataclass(frozen=True, eq=False)
class Forgotten:
    """What is to be written: the record but for the file's hash, how the files are written, and what they have to compute (k,)."""

    record: Record
    write: Callable[[Path], None]
    replay: Callable[[Path], str]


def is_asked_for(config: UnlearnConfig, origins: Mapping[str, str]) -> bool:
    """Whether the head is what moves: it is named, untied, or needed by the method that is; else the last block is."""
    named = origins.get("scope", "default") != "default"
    return config.scope == scopes.HEAD and (named or config.untie or config.method == "matched")


def refuse(opened: Session, config: UnlearnConfig, origins: Mapping[str, str], ranks: Ranks) -> None:
    """Refuse what cannot be done at the head of this model, before anything runs.

    Raises:
        ImuError: options of other methods, ``--untie`` where nothing is tied, or a file that says nothing of the tie.
        RefusedError: the head is tied and ``--untie`` is not given, or it is not in the file.
    """
    people.refuse_options(CLASSES, origins, forgotten_records.WHAT)
    deeper = ["--" + name.replace("_", "-") for name in DEEPER if origins.get(name) in ("flag", "environment")]
    if deeper:
        raise ImuError(
            f"{', '.join(deeper)}: for layers below the head; name them, for example --scope {scopes.LAST_BLOCK}, or leave out"
        )
    if config.method not in ("auto", "matched"):
        raise ImuError(
            f"--method {config.method}: the head of a language model goes by matched; leave it out, or name a deeper --scope"
        )
    if ranks.count > 1:
        raise ImuError("torchrun: the head alone needs one process; start imu without it, or name a deeper --scope")
    head = opened.head
    if head.tied and not config.untie:
        raise RefusedError(
            f"head {head.module}: is tied to {head.tied}; changing it would change how every word is read, too. Add --untie, which writes it as "
            "a tensor of its own beside the embedding and says so in config.json; or name a deeper scope, which leaves the tie alone: "
            f"--scope {scopes.LAST_BLOCK}"
        )
    if config.untie and not head.tied:
        raise ImuError(f"--untie: {head.module} is a tensor of its own already; leave it out")
    if config.untie:
        untying.refuse_file(opened.checkpoint)
    if head.tied and head.bias:
        raise RefusedError(
            f"head {head.module}: has a bias beside its tied weight, which --untie does not know; name a deeper --scope"
        )
    missing = [name for name in head.tensors if name not in opened.checkpoint.entries]
    if missing:
        raise RefusedError(f"head {head.module}: {missing[0]} is not in the file as it is; name a deeper --scope")


def run(
    opened: Session, config: UnlearnConfig, origins: Mapping[str, str], place: destination.Destination, ranks: Ranks
) -> Forgotten:
    """Bring the log-odds of forgotten tokens to those of a reference model or of unseen records, at the least change of the head.

    Raises:
        ImuError: bad input, nothing to forget, or a budget that is too small.
        RefusedError: a tied head without ``--untie``.
    """
    refuse(opened, config, origins, ranks)
    until = None if config.until is None else record_targets.parse_until(config.until)
    unseen, info = forgotten_records.unseen_of(opened, config)
    record_targets.refuse_without_aim(config, unseen, until)
    head = opened.head
    words = Words(head.matrix, head.bias, head.scale, head.cap)
    ours = _completed(opened, opened.forget.samples, "forget")
    theirs = None if unseen is None else _completed(opened, unseen, "unseen records")
    opened.taken = Taken("model", streamed=False, bytes=4 * ours.features.numel())
    aim = record_targets.aim_of(opened, config, ours, theirs, words, until, unseen)
    with opened.log.timed("matching"), opened.log.track("matched, along ρ", None) as advance:
        problem, sides = records.problem_of(ours, theirs, words, aim, config.sigma_damping)
        opened.note(
            f"method matched: {len(ours.targets):,} tokens, {len(problem.part.words):,} of {len(words.matrix):,} words take part; "
            f"{aim.how}; Σ of {'the forget set' if theirs is None else f'{len(theirs.targets):,} unseen tokens'}"
        )
        found: Chosen | None = None
        to_file = _rounding(opened, problem)
        for item in records.run(problem, sides, aim, config.max_drop, to_file, config.rho):
            found = item if isinstance(item, Chosen) else None
            advance(1)
    assert found is not None, "a run ends with what was chosen"
    matrix = head.matrix.clone()
    matrix[problem.part.words] = problem.part.matrix(found.change)
    _tell_end(opened, found)
    expected = _said(opened, matrix)
    return Forgotten(
        _record(opened, config, origins, place, found, aim, problem, info),
        lambda target: _write(opened, matrix, target),
        lambda written: _replay(opened, written, expected, matrix),
    )


def _completed(opened: Session, samples: SampleSet, what: str) -> Completed:
    rows = opened.tokens_of(samples, what)
    on = TokenRows(*(part.to(opened.math_device) for part in (rows.features, rows.targets, rows.records, rows.ends)))
    return Completed(lambda places: places, on.features, on.targets, on.records, on.ends, lambda places: places)


def _rounding(opened: Session, problem: WordProblem) -> Callable[[Tensor], Tensor]:
    """Δ (T, d+1) as the file's dtypes let the head have it."""
    head = opened.head
    given = problem.part.matrix()

    def rounded(change: Tensor) -> Tensor:
        wide = (given + change.to(given)).double()
        return head.rounded(wide).to(given) - given

    return rounded


def _tell_end(opened: Session, found: Chosen) -> None:
    start, end = found.start, found.point.look
    lost = "" if end.test_drop is None else f"; unseen records' tokens right: down by {end.test_drop:.4f}"
    auc = "" if end.auc is None or start.auc is None else f", membership AUC from {start.auc:.3f} to {end.auc:.3f}"
    opened.note(
        f"{'reached' if found.reached else 'NOT reached'}: exact memorisation from {start.forget:.3f} to {end.forget:.3f}, extraction strength "
        f"from {start.extraction:.3f} to {end.extraction:.3f}{auc}{lost}; the head changed by {end.head_change:.2%}, ρ {found.point.rho:.3g}"
    )


# --- what is written


def _write(opened: Session, matrix: Tensor, target: Path) -> None:
    """Write the model with this head, W (V, d+1), to ``target``."""
    head = opened.head
    if head.tied:
        untying.write(opened.checkpoint, head.tensors[0], own_name(opened), matrix, target)
        return
    checkpoint.patch(opened.checkpoint, head.parts(matrix), target)


def own_name(opened: Session) -> str:
    """The name in the file of a tied head's own weight."""
    network = opened.network
    assert network is not None
    return f"{network.loaded.prefix}{opened.head.module}.weight"


def _said(opened: Session, matrix: Tensor) -> Tensor:
    """The logits (k,) that this head gives the completion tokens of the first forget records."""
    head, samples = opened.head, opened.forget.samples
    few = samples.subset(range(min(scope.REPLAYED // 4, len(samples))))
    rows = opened.tokens_of(few, "the replayed records")
    return vocabulary.statistics(rows, Words(matrix, head.bias, head.scale, head.cap)).own


def _replay(opened: Session, written: Path, expected: Tensor, matrix: Tensor) -> str:
    """``forgotten_records.replay`` of a model whose head is its own."""
    network = opened.network
    assert network is not None
    if opened.head.tied:
        layer = network.model.get_submodule(opened.head.module)
        layer.weight = nn.Parameter(matrix.clone(), requires_grad=False)
    return forgotten_records.replay(opened, written, expected)


def _info(number: int, point: Point) -> LookInfo:
    return LookInfo(step=number, rho=point.rho, margin_error=point.missed, **vars(point.look))


def _record(
    opened: Session,
    config: UnlearnConfig,
    origins: Mapping[str, str],
    place: destination.Destination,
    found: Chosen,
    aim: Aim,
    problem: WordProblem,
    held: HeldOutInfo | None,
) -> Record:
    folder, head = place.record.parent, opened.head
    common: dict[str, Any] = provenance.common(opened, config, origins, folder)
    given = None if held is None else held.model_copy(update={"given": paths.relative_to(held.given, "data", folder)})
    start = LookInfo(step=0, **vars(found.start))
    trajectory = [start, *(_info(number, point) for number, point in enumerate(found.points, 1))]
    changed = [own_name(opened)] if head.tied else list(head.tensors)
    before = problem.original.margins
    details = {
        "targets": aim.how,
        "rho": found.point.rho,
        "converged": found.point.converged,
        "tokens": len(problem.targets),
        "words": len(problem.part.words),
        "left_out": problem.left_out,
        "margin_error_before": float((before - problem.targets).square().mean().sqrt()),
        "margin_error": found.point.missed,
        "untied": bool(head.tied),
    }
    return Record(
        before=provenance.model_hash_of(opened.checkpoint, folder),
        after=parts.FileHash(path=provenance.model_path(place.output, folder), sha256=""),
        changed=changed,
        unchanged=len(set(opened.checkpoint.entries) - set(changed)),
        outside_sha256=opened.outside_sha256,
        method="matched",
        method_source="--method" if config.method == "matched" else "auto: the head of a language model",
        rows=None,
        target=Target(value=aim.memorized, source=aim.how, follows=aim.memorized is None),
        scores=None,
        reason=found.reason,
        reached=found.reached,
        start=start,
        end=_info(len(found.points), found.point),
        trajectory=trajectory,
        held_out=given,
        details=details,
        scenario="record",
        scenario_source="a language model",
        **common
        | {
            "forget": common["forget"].model_copy(update={"given": people.unnamed(common["forget"].given)}),
            "options": people.without_people(common["options"]),
        },
    )
