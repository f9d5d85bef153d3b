"""What forgotten records of a language model are to come down to: a reference model's answers, unseen records', or a number."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from imu_cli.commands import opening, preparing
from imu_cli.config.commands import UnlearnConfig
from imu_cli.config.shared import ModelConfig
from imu_cli.errors import ImuError
from imu_cli.features.session import Session
from imu_cli.linear.vocabulary import Words
from imu_cli.models import architecture, checkpoint, language
from imu_cli.models.sidecar import Said
from imu_cli.samples.dataset import SampleSet
from imu_cli.statistics.quantiles import rank_map
from imu_cli.unlearning.demotion import completions
from imu_cli.unlearning.demotion.completions import Aim, Completed

BARELY = -3.0
"""Log-odds that tokens come down to at least where nothing but ``--until`` says how far."""
EXAMPLE = "'forget.extraction_strength<=0.1'"
UNTIL = re.compile(r"\s*forget\.(exact_memorization|extraction_strength)\s*<=\s*(\S+)\s*")


def parse_until(text: str) -> dict[str, float]:
    """``forget.extraction_strength<=0.1`` as the metric's name and its bound.

    Raises:
        ImuError: another metric or sign, or no fraction.
    """
    match = UNTIL.fullmatch(text)
    try:
        value = float(match.group(2)) if match else -1.0
    except ValueError:
        value = -1.0
    if match is None or not 0 <= value < 1:
        raise ImuError(
            f"--until {text!r}: no target of a language model; write {EXAMPLE} or "
            "'forget.exact_memorization<=0.6', with a fraction from 0 to 1"
        )
    return {match.group(1): value}


def refuse_without_aim(config: UnlearnConfig, unseen: SampleSet | None, until: Mapping[str, float] | None) -> None:
    """Refuse a run that nothing tells how far to go.

    Raises:
        ImuError: neither unseen records, nor a reference model, nor ``--until``; or the reference model is not there.
    """
    if config.reference_model is not None:
        checkpoint.open_checkpoint(Path(config.reference_model))  # a name that is none is said before anything runs
    if unseen is None and config.reference_model is None and until is None:
        raise ImuError(
            "--test: not given; records are to become as likely as ones that the model never saw, and such records say how likely that is "
            "(--test or --reference); or name a model that never saw these with --reference-model, or a target with --until"
        )


def aim_of(
    opened: Session,
    config: UnlearnConfig,
    forgotten: Completed,
    unseen: Completed | None,
    head: Words,
    until: Mapping[str, float] | None,
    apart: SampleSet | None,
) -> Aim:
    """Targets from the reference model where it is given, else from the unseen records by rank; and where the run ends.

    ``apart`` are the unseen records themselves.
    """
    fixed, memorized, extraction, how, chance = None, None, None, "targets from unseen records by rank", (0.0, 0.0, 0.0)
    loss: float | None = None
    if unseen is not None:
        chance = completions.chance(completions.judged(unseen.features, unseen, head), forgotten.n)
    if config.reference_model is not None:
        given, theirs = reference_answers(opened, Path(config.reference_model), config, apart)
        fixed, how = given.margins.to(forgotten.features.device), "targets from the reference model, token by token"
        memorized, extraction = float(given.memorized.mean()), float(given.extraction.mean())
        chance = completions.chance(given, forgotten.n)
        if theirs is not None and unseen is not None:
            # What fine-tuning did to records that neither model saw, it would have done to these.
            own = completions.judged(unseen.features, unseen, head)
            fixed = rank_map(theirs.margins, own.margins)(fixed).to(fixed)
            memorized = min(1.0, max(0.0, memorized + float(own.memorized.mean() - theirs.memorized.mean())))
            extraction = min(1.0, max(0.0, extraction + float(own.extraction.mean() - theirs.extraction.mean())))
            how += ", with the spread that unseen records have under the model itself"
        # As they are, not as targets: of the smaller of two that differ by chance the mean would be too small.
        loss = float(completions.losses(forgotten, fixed).mean())
    elif unseen is None:
        phi = completions.judged(forgotten.features, forgotten, head).margins
        fixed, how = phi.clamp(max=BARELY), f"every token at log-odds of {BARELY} at most"
    if until is not None:
        memorized, extraction = until.get("exact_memorization", 1.0), until.get("extraction_strength", 1.0)
        how, chance = f"{how}; the end by --until", (0.0, 0.0, 0.0)
    return Aim(fixed, memorized, extraction, how, chance, loss)


def reference_answers(
    opened: Session, path: Path, config: ModelConfig, unseen: SampleSet | None
) -> tuple[completions.Judged, completions.Judged | None]:
    """How a model that never saw the forgotten records answers them, and the unseen ones.

    Raises:
        ImuError: it cannot be read, or has other words.
    """
    beside = open_beside(opened, path, config)
    head = Words(beside.head.matrix, beside.head.bias, beside.head.scale, beside.head.cap)

    def judged(samples: SampleSet, what: str) -> completions.Judged:
        rows = beside.tokens_of(samples, f"{what} records, reference model")
        of = Completed(lambda rows: rows, rows.features, rows.targets, rows.records, rows.ends, lambda rows: rows)
        return completions.judged(rows.features, of, head)

    return judged(opened.forget.samples, "forgotten"), None if unseen is None else judged(unseen, "unseen")


def open_beside(opened: Session, path: Path, config: ModelConfig) -> Session:
    """Another language model of the same architecture, which is given the same tokens.

    Raises:
        ImuError: it cannot be read, or does not fit.
        RefusedError: it cannot be handled.
    """
    network = opened.network
    assert network is not None, "a language model is opened on records"
    built, found = network.loaded.architecture, checkpoint.open_checkpoint(path)
    # What its own files say comes first: heads of one architecture may be tied in one model and not in another.
    own = any(item.arch is not None for item in architecture.read_said(found))
    known = None if built.runs_code or own else Said("the model that is unlearned", built.name, built.arguments)
    _, loaded = opening.load_model(path, config, known, found)
    if loaded.takes not in (None, "record"):
        raise ImuError(
            f"{path}: is {type(loaded.model).__name__}, which writes no text, and {opened.checkpoint.path} is a language model; name another "
            "of those"
        )
    preparing.refuse_other_words(network.preprocess, loaded.model, path)
    model = loaded.model.to(opened.device)
    head = language.find_head(model, network.probe, found, loaded, config.head)
    if len(head.matrix) != len(opened.head.matrix):
        raise ImuError(
            f"{path}: knows {len(head.matrix):,} words, and {opened.checkpoint.path} {len(opened.head.matrix):,}; give a model of the same"
        )
    return replace(opened, checkpoint=found, network=replace(network, loaded=loaded, model=model), head=head)
