"""``imu evaluate`` of a language model: forgotten, unseen and kept records, and a suite's questions, as up to four models answer them."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imu_cli.commands import answers, held_out, people, provenance, relearned_records
from imu_cli.commands.record_targets import open_beside
from imu_cli.config.commands import EvaluateConfig
from imu_cli.errors import ImuError
from imu_cli.evaluation import recall as measuring
from imu_cli.evaluation import recall_summary
from imu_cli.evaluation.recall import Account, Evidence, Questioned
from imu_cli.features import generation, tokens
from imu_cli.features.session import Session, Taken
from imu_cli.files import paths
from imu_cli.linear import four_bit, vocabulary
from imu_cli.linear.vocabulary import Words
from imu_cli.models import checkpoint as checkpoints
from imu_cli.models import language
from imu_cli.records.evaluation import Metric, Requirement
from imu_cli.records.parts import FileHash, Interval
from imu_cli.records.recall import Recall, RecordRow
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.texts import suites
from imu_cli.samples.texts.records import as_record
from imu_cli.samples.texts.suites import Questions, SetName
from imu_cli.statistics import recall, truth
from imu_cli.statistics.recall import Recalled

CLASSIFIER_ONLY = ("scenario", "attack", "compat", "classes", "features", "label")
"""Options of ``imu evaluate`` that mean nothing for a language model."""
LANGUAGE_ONLY = ("suite", "suite_size", "generate", "four_bit")
"""Options that mean nothing for other models."""
AT_ONCE = 512
"""Records whose tokens are held together."""
WHAT = {
    "forget": "forgotten records", "paraphrased": "forgotten records, by other questions", "test": "unseen records",
    "retain": "kept records", "real_authors": "real authors", "world_facts": "world facts",
}  # fmt: skip


@dataclass(frozen=True)
class Sets:
    """What the models are asked.

    Attributes:
        records: by set, ``forget`` first.
        questions: of the suite, by its sets; those of ``forget`` are of forgotten records.
        missing: why a set is not there.
    """

    records: Mapping[str, SampleSet]
    questions: Mapping[SetName, Questions] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What was measured, before requirements are judged; ``answered`` are forgotten records with what the models answer."""

    evidence: Evidence
    metrics: list[Metric]
    checked: Mapping[str, FileHash | None]
    changed: list[str] | None
    answered: list[answers.Answered]


def refuse_language_options(origins: Mapping[str, str]) -> None:
    """Refuse options of language models that were given for another model.

    Raises:
        ImuError: naming the first.
    """
    for name in LANGUAGE_ONLY:
        if origins.get(name) in ("flag", "environment"):
            raise ImuError(f"--{name.replace('_', '-')}: is for language models, and this is none; leave it out")


# --- what is asked


def sets_of(opened: Session, config: EvaluateConfig, unused: Callable[[SampleSet], SampleSet]) -> Sets:
    """Everything that the options name, without forgotten records among the others; ``unused`` leaves out what chose something.

    Raises:
        ImuError: nothing is left of a set, or there is no such suite.
        InvalidRowsError: held-out data hold forgotten records, or a suite has wrong lines.
    """
    forget = opened.forget.samples
    suite = None if config.suite is None else suites.open_suite(config.suite)
    missing = {} if suite is None else {f"suite.{name}": reason for name, reason in suite.missing.items()}
    for reason in () if suite is None or not config.suite.startswith(suites.TOFU) else suite.missing.values():  # type: ignore[union-attr]
        opened.note(f"--suite {config.suite}: {reason}; what rests on it is not measured")
    own = None if suite is None else suite.sets.get("forget")
    made = {"forget": forget}
    other = suites.rephrased(forget, own)
    if other is not None:
        if len(other[0]) < len(forget):
            opened.note(
                f"{len(other[0])} of {len(forget)} forgotten records have a paraphrased_question; the others are not asked so"
            )
        made["paraphrased"] = other[1]
    if config.test:
        made["test"] = unused(held_out.held_out(opened, config.test))
    if config.retain:
        made["retain"] = held_out.retained(opened, config.retain)
    if suite is None:
        return Sets(made, missing=missing)
    return _with_suite(opened, config, suite, made, missing)


def _with_suite(
    opened: Session, config: EvaluateConfig, suite: suites.Suite, made: Mapping[str, SampleSet], missing: dict[str, str]
) -> Sets:
    forget = opened.forget.samples
    gone = {(as_record(forget.read(row)).prompt, as_record(forget.read(row)).completion) for row in range(len(forget))}
    questions = dict[SetName, Questions]()
    for name, found in suite.sets.items():
        if name == "forget":
            places = suites.about(found, forget)
            told = [at for at in places if at is not None]
            if not told:
                missing["suite.forget"] = f"none of the forgotten records stands in the suite {suite.given}"
                opened.note(
                    f"--suite {suite.given}: has none of the {len(forget)} forgotten records (question and answer have to agree)"
                )
                continue
            if len(told) < len(forget):
                opened.note(
                    f"--suite {suite.given}: has {len(told)} of the {len(forget)} forgotten records; the truth ratio is of these"
                )
            found = found.only(told)
        else:
            kept = [at for at, one in enumerate(found.asked) if (one.question, one.answer) not in gone]
            if len(kept) < len(found):
                opened.note(
                    f"--suite {suite.given}: {len(found) - len(kept)} of its {WHAT[name]} are forgotten records and are left out"
                )
            if not kept:
                missing[f"suite.{name}"] = f"all of its {WHAT[name]} are forgotten records"
                continue
            found = found.only(kept)
        questions[name] = found if config.suite_size is None else found.drawn(config.suite_size, config.seed)
    return Sets(made, questions, missing)


# --- what models say


def words_of(session: Session) -> Words:
    """The head of an opened language model, as its weights are now."""
    head = session.head
    assert session.network is not None
    return Words(language.matrix_of(session.network.model, head.module), head.bias, head.scale, head.cap)


def said(session: Session, samples: SampleSet, what: str) -> Recalled:
    """What an opened model says of every record of a set; tokens are held a portion of records at a time.

    Raises:
        InvalidRowsError: records that cannot be had, or are too long.
    """
    network = session.network
    assert network is not None
    words, made = words_of(session), list[Recalled]()
    with session.log.timed("answers"), session.log.track(f"answers, {what}", len(samples)) as advance:
        for start in range(0, len(samples), AT_ONCE):
            part = samples.subset(range(start, min(start + AT_ONCE, len(samples))))
            rows = tokens.gather(session.engine, part, network.preprocess, advance)
            rows = replace(rows, features=rows.features.to(session.device))
            held = max(4 * rows.features.numel(), 0 if session.taken is None else session.taken.bytes)
            session.taken = Taken("model", streamed=False, bytes=held)
            made.append(recall.of(vocabulary.statistics(rows, words), rows.records, rows.ends, len(part)))
    return recall.joined(made)


def account_of(
    session: Session, sets: Sets, config: EvaluateConfig, whose: str, moved: Sequence[str] | None
) -> Account:
    """All that one model says; ``moved`` are the tensors that differ between the original and the model at hand, where that is known."""
    found = {name: said(session, samples, f"{WHAT[name]}{whose}") for name, samples in sets.records.items()}
    tested = {name: _tested(session, questions, f"{WHAT[name]}{whose}") for name, questions in sets.questions.items()}
    made = Account(found, {str(name): one for name, one in tested.items()}, _rouge(session, sets, config, whose))
    if config.four_bit:
        with four_bit.held(_linear_weights(session)):
            made = replace(made, four_bit=said(session, sets.records["forget"], f"{WHAT['forget']}{whose}, four bits"))
    if config.relearn and moved:
        relearned = relearned_records.run(
            session, moved, sets.records["forget"], sets.records.get("test"), config.seed, said, whose
        )
        made = replace(made, relearned=relearned)
    return made


def _tested(session: Session, questions: Questions, what: str) -> Questioned:
    own, wrong = said(session, questions.own(), what), said(session, questions.wrong(), f"{what}, wrong answers")
    reworded = any(one.other_answer for one in questions.asked)
    other = said(session, questions.other(), f"{what}, in other words") if reworded else own
    ratio = truth.ratio(other.loss, wrong.loss, questions.counts)
    return Questioned(own, ratio, truth.chosen(own.loss, wrong.loss, questions.counts))


def _rouge(session: Session, sets: Sets, config: EvaluateConfig, whose: str) -> dict[str, Tensor]:
    if not config.generate or not generation.can_write(session):
        return {}
    asked = dict(sets.records) | {
        f"suite.{name}": questions.own() for name, questions in sets.questions.items() if name != "forget"
    }
    made = {}
    for name, samples in asked.items():
        rows = drawn(len(samples), config.generate, config.seed)
        what = f"writing, {WHAT[name.removeprefix('suite.')]}{whose}"
        made[name] = answers.rouge(session, samples, rows, what)
    return made


def drawn(n: int, most: int, seed: int) -> list[int]:
    """At most so many of n rows, drawn by the seed, in order."""
    return sorted(np.random.default_rng(seed).permutation(n)[:most].tolist())


def _linear_weights(session: Session) -> list[Tensor]:
    """The weights that four-bit loading rounds: matrices of every layer but embeddings and head."""
    network = session.network
    assert network is not None
    model = network.model
    kept = {
        id(parameter)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) or name == session.head.module
        for parameter in module.parameters(recurse=False)
    }
    return [parameter for parameter in model.parameters() if parameter.ndim == 2 and id(parameter) not in kept]


# --- all of it


def measured(
    opened: Session,
    config: EvaluateConfig,
    parts: Mapping[str, Tensor] | None,
    unused: Callable[[SampleSet], SampleSet],
    allowed: float | None,
    original: Path | None,
) -> Outcome:
    """Everything that is measured of an opened language model. Other models are opened one at a time.

    Raises:
        ImuError: bad data, or models that do not fit.
    """
    sets = sets_of(opened, config, unused)
    writes = bool(config.generate or config.samples) and generation.can_write(opened)
    missing = dict(sets.missing)
    if (config.generate or config.samples) and not writes:
        missing["generate"] = "needs a model of transformers, which can write"
        opened.note(
            "--generate, --samples: this model is none of transformers and has no generate(); nothing is written by it"
        )
    shown = list(range(min(config.samples, len(opened.forget.samples)))) if writes else []
    places = {"original": original, "retrained": config.retrained, "reference": config.reference_model}
    accounts, checked, written = dict[str, Account](), dict[str, FileHash | None](), dict[str, list[str]]()
    changed: list[str] | None = None

    def asked(session: Session, name: str) -> Account:
        whose = "" if name == "after" else ", reference model" if name == "reference" else f", {name}"
        if shown and name != "reference":
            written[name] = answers.written(session, session.forget.samples, shown, f"writing, to be shown{whose}")
        if name == "reference":
            records = {
                side: samples for side, samples in sets.records.items() if side in ("forget", "paraphrased", "test")
            }
            few = Sets(records, {side: found for side, found in sets.questions.items() if side == "forget"})
            return account_of(session, few, replace(config, relearn=False, four_bit=False), whose, None)
        return account_of(session, sets, config, whose, changed)

    if original is not None:  # what differs has to be known before anything is relearnt
        changed = checkpoints.differing(checkpoints.open_checkpoint(original), opened.checkpoint)
    if config.relearn and not changed:
        missing["relearned"] = "needs the original" if changed is None else "nothing differs from the original"
    elif config.relearn:
        missing |= relearned_records.too_few(len(opened.forget.samples))
    accounts["after"] = asked(opened, "after")
    for name, place in places.items():
        if place is None:
            checked[name] = None
            continue
        beside = open_beside(opened, Path(place), config)
        checked[name] = FileHash(path=str(beside.checkpoint.path), sha256=beside.checkpoint.sha256)
        accounts[name] = asked(beside, name)
        del beside
    evidence = Evidence(
        after=accounts["after"],
        before=accounts.get("original"),
        retrained=accounts.get("retrained"),
        reference=accounts.get("reference"),
        sizes={side: _sizes(sets.records[side]) for side in ("forget", "test") if side in sets.records},
        missing=missing,
        seed=config.seed,
        parts={} if parts is None else {name: found.cpu() for name, found in parts.items()},
        allowed=allowed,
    )
    answered = [
        answers.of(opened.forget.samples, row, {name: texts[at] for name, texts in written.items()})
        for at, row in enumerate(shown)
    ]
    with opened.log.timed("metrics"):
        return Outcome(evidence, measuring.measure(evidence), checked, changed, answered)


def _sizes(samples: SampleSet) -> Tensor:
    """Bytes of each answer under zlib (n,)."""
    texts = (as_record(samples.read(row)).completion for row in range(len(samples)))
    return torch.tensor([len(zlib.compress(text.encode())) for text in texts], dtype=torch.float64)


def written(
    opened: Session,
    config: EvaluateConfig,
    origins: Mapping[str, str],
    outcome: Outcome,
    verdicts: list[Requirement],
    folder: Path,
) -> Recall:
    """The evaluation as it is written into ``folder``; no text of a record stands in it, and ids only where ``--by`` asked for them."""

    def placed(name: str) -> FileHash | None:
        found = outcome.checked[name]
        return found and found.model_copy(update={"path": provenance.model_path(Path(found.path), folder)})

    common = provenance.common(opened, config, origins, folder)
    for name in ("classes", "classes_source"):
        del common[name]
    forget = common["forget"]
    return Recall(
        model=provenance.model_hash_of(opened.checkpoint, folder),
        original=placed("original"),
        retrained=placed("retrained"),
        reference_model=placed("reference"),
        record=None,
        changed=outcome.changed,
        suite=paths.relative_to(config.suite, "data", folder),
        generated=config.generate,
        summary=recall_summary.of(outcome.evidence, outcome.metrics, outcome.changed),
        metrics=outcome.metrics,
        by=config.by,
        per_record=[_row(part) for part in measuring.per_part(outcome.evidence)],
        requirements=verdicts,
        given={
            name: paths.relative_to(getattr(config, name), "data", folder)
            for name in ("data", "test", "retain", "suite")
        },
        losses=measuring.losses(outcome.evidence),
        **common
        | {
            "forget": forget.model_copy(update={"given": people.unnamed(forget.given)}),
            "options": people.without_people(common["options"]),
        },
    )


def _row(part: measuring.Part) -> RecordRow:
    auc = part.auc
    known = auc is not None and auc.low is not None and auc.high is not None
    return RecordRow(
        name=part.name, n=part.n, before=part.before, after=part.after, probability=part.probability,
        auc=None if auc is None else auc.value,
        auc_interval=Interval(low=auc.low, high=auc.high, method=auc.method) if known else None,  # type: ignore[union-attr, arg-type]
    )  # fmt: skip
