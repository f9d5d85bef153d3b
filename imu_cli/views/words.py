"""Results in words: values in their units, reasons, targets and facts as sentences; every form takes its texts from here."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from imu_cli.files import paths, streams
from imu_cli.files.reading import cut
from imu_cli.records.evaluation import Evaluation, Metric
from imu_cli.records.influence import Influence
from imu_cli.records.json_files import as_shown
from imu_cli.records.metric_definitions import NUMBERS
from imu_cli.records.parts import WHAT, Decade, EmbeddingInfo, FileHash, ForgetInfo, Interval, Model
from imu_cli.records.recall import Recall
from imu_cli.records.record import Record
from imu_cli.records.retrieval import Judged, PeopleInfo, Retrieval
from imu_cli.records.token_influence import TokenInfluence

Result = TypeVar("Result", bound=Model)
Measured = TypeVar("Measured", bound=Record | Judged)

REASONS = {
    "target": "the target was met",
    "max_steps": "the number of steps ran out (--max-steps; --batches deeper than the head)",
    "max_head_change": "the head had changed as far as allowed (--max-head-change)",
    "max_class_drop": "a class had lost as much on held-out data as allowed (--max-class-drop)",
    "max_drop": "held-out accuracy had fallen as far as allowed (--max-drop)",
    "epochs": "the fixed number of epochs was done",
    "path": "margins came as close to their targets as this head can bring them",
    "rho": "the given --rho was solved for",
}
MODULES = 6
"""Modules and tensors that are named in one line; the record has all of them."""
REACHED = {True: "Target met", False: "TARGET NOT MET", None: "No target was given"}
WARNINGS = ("DAMAGE", "NOT ")
"""How a summary begins where what was reached must not be taken for success."""
STEPS = {"imu": "steps", "matched": "values of ρ tried", "demoted": "training steps"}


def warning(summary: str) -> tuple[str, str]:
    """The warning that a summary opens with, its first sentence, and the rest; an empty warning where there is none."""
    if not summary.startswith(WARNINGS):
        return "", summary
    first, stop, rest = summary.partition(". ")
    return first + stop.strip(), rest


def capital(text: str) -> str:
    """A text with a capital at its start and nothing else changed."""
    return text[:1].upper() + text[1:]


def percent(value: float | None) -> str:
    """A share as percent with two decimals."""
    return "–" if value is None else f"{100 * value:.2f} %"


def number(value: float | None) -> str:
    """A number with four significant digits."""
    return "–" if value is None else f"{value:.4g}"


def shown(name: str, value: float | None) -> str:
    """A metric's value in its own unit."""
    return (number if name in NUMBERS else percent)(value)


def span(name: str, interval: Interval | None) -> str:
    """Both ends of an interval in the metric's unit; empty where there is none."""
    if interval is None:
        return ""
    if name in NUMBERS:
        return f"{interval.low:.4g} to {interval.high:.4g}"
    return f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"


def change(name: str, before: float | None, after: float | None) -> str:
    """After minus before with its sign: shares in points, numbers as they are; empty where one is missing."""
    if before is None or after is None:
        return ""
    return f"{after - before:+.4g}" if name in NUMBERS else f"{100 * (after - before):+.2f}"


def goal(metric: Metric) -> str:
    """What a metric should be near, with what chance shows at this n; else which way is better."""
    if metric.target is None:
        return {"lower": "low", "higher": "high"}.get(metric.better, "")
    spread = f" ({span(metric.name, metric.target_range)} at this n)" if metric.target_range else ""
    return shown(metric.name, metric.target) + spread


def interval(metric: Metric) -> str:
    """A metric's 95 % interval, or that it is a census."""
    return span(metric.name, metric.interval) or ("census" if metric.census else "")


def meaning(metric: Metric) -> str:
    """What a metric is, with the note that it carries."""
    return metric.title + (f"; {metric.note}" if metric.note else "")


def missing(metric: Metric) -> str:
    """Why a metric has no value."""
    return f"not measured ({metric.missing})"


def decade(item: Decade) -> str:
    """The range of scores that is counted."""
    return f"−1e{item.power:+03d} to −1e{item.power + 1:+03d}"


def ratio(damping: float, mean_fisher: float) -> str:
    """λ / mean F."""
    return f"{damping / mean_fisher:.3g}" if mean_fisher else "infinite (F is 0)"


def head(result: Influence | TokenInfluence | Record | Evaluation | Recall) -> str:
    """The head, how it was found, and how well it replayed."""
    it = result.head
    return (
        f"{it.module} ({it.classes} x {it.features}{' + bias' if it.bias else ''}, {it.dtype}), found by: "
        f"{it.source}; replay error {it.replay_error:.1e} of the largest logit"
    )


def target(result: Record) -> str:
    """What the share on D_f was to fall to, and what n samples show at that rate."""
    it = result.target
    if result.embedding is not None:
        return f"membership AUC ≤ {number(it.auc)} of two images of one person ({it.source})"
    if it.value is None:
        return f"none: {it.source}"
    if it.auc is not None:
        return (
            f"membership AUC ≤ {number(it.auc)} against the held-out samples; accuracy has nothing to say ({it.source})"
        )
    spread = "" if it.range is None else f"; n = {result.forget.n} samples show {span('', it.range)} % at that rate"
    return f"≤ {percent(it.value)} ({it.source}{spread})"


def verdict(result: Record) -> str:
    """Whether the target was met, and why the run stopped."""
    return f"{REACHED[result.reached]}: stopped because {REASONS.get(result.reason, result.reason)}."


def class_name(result: Record | Evaluation, row: int) -> str:
    """The name of a row of the head, its number where it has none."""
    names = result.classes or []
    return names[row] if 0 <= row < len(names) else str(row)


def compact(values: Mapping[str, Any]) -> str:
    """The entries that are set, on one line."""
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def architecture(result: Record | Judged) -> str:
    """The architecture and where it was learnt."""
    known = result.architecture
    return f"{known.get('name', 'unknown')} ({known.get('source', 'unknown source')})"


def preprocessing(result: Record | Judged | Influence) -> str:
    """The preprocessing and where it was learnt."""
    steps = {**result.preprocess, "end": "none"} if result.preprocess.get("end", 0) is None else result.preprocess
    return f"{compact(steps)} ({result.preprocess_source})"


def features(result: Record | Judged) -> list[tuple[str, str]]:
    """How the features of D_f came about, and what memory it took; nothing for files from before that was recorded."""
    run = result.run
    if run is None:
        return []
    came = f"{run.precision}, from {run.source}"
    if run.batch_size is not None:
        came += f", {run.batch_size} samples at a time, {run.folded} batch norms folded"
    held = "streamed from a file" if run.streamed else "held in memory"
    return [
        (
            "features",
            f"{came}; {run.feature_bytes / 1e6:,.1f} MB, {held}; largest memory of the process {run.peak_bytes / 1e6:,.0f} MB",
        )
    ]


def outcome(result: Record) -> list[tuple[str, str, str]]:
    """The few numbers that a run ends with: what, before, after."""
    first, last = result.start, result.end
    if result.embedding is not None:
        return _people_outcome(result)
    if result.scenario == "record":
        return _records_outcome(result)
    rows = [(f"{WHAT[result.scenario]} (n = {result.forget.n})", percent(first.forget), percent(last.forget))]
    if last.test_drop is not None:
        rows.append(("fall of accuracy on held-out data", percent(first.test_drop), percent(last.test_drop)))
    if last.class_drop is not None:
        rows.append(("largest fall of a class", percent(first.class_drop), percent(last.class_drop)))
    if last.auc is not None:
        rows.append(("membership AUC against held-out data", number(first.auc), number(last.auc)))
    if last.unseen is not None:
        rows.insert(
            1, ("the same of unseen samples, under the model at hand", percent(first.unseen), percent(last.unseen))
        )
    return [*rows, (f"change of {moving(result)}, ‖ΔW‖/‖W‖", percent(0.0), percent(last.head_change))]


def _people_outcome(result: Record) -> list[tuple[str, str, str]]:
    first, last = result.start, result.end
    pairs = "similarity of two images of one person on two cameras"
    return [
        ("membership AUC, forgotten against unseen people", number(first.auc), number(last.auc)),
        (f"{pairs}: forgotten people", number(first.similarity), number(last.similarity)),
        ("the same of unseen people", number(first.unseen_similarity), number(last.unseen_similarity)),
        ("mAP of forgotten people among both", percent(first.map), percent(last.map)),
        ("fall of unseen people's mAP", percent(first.test_drop), percent(last.test_drop)),
        (f"change of {moving(result)}, ‖ΔW‖/‖W‖", percent(0.0), percent(last.head_change)),
    ]


def _records_outcome(result: Record) -> list[tuple[str, str, str]]:
    first, last = result.start, result.end
    under = "the same of unseen records, under the model at hand"
    rows = [
        (f"{WHAT[result.scenario]} (n = {result.forget.n})", percent(first.forget), percent(last.forget)),
        (under, percent(first.unseen), percent(last.unseen)),
        ("share of forgotten records that can be written out", percent(first.extraction), percent(last.extraction)),
        (under, percent(first.unseen_extraction), percent(last.unseen_extraction)),
        ("cross-entropy of forgotten records, nats a token", number(first.loss), number(last.loss)),
        (under, number(first.unseen_loss), number(last.unseen_loss)),
        ("fall of unseen records' tokens predicted right", percent(first.test_drop), percent(last.test_drop)),
        ("membership AUC by loss against unseen records", number(first.auc), number(last.auc)),
        (f"change of {moving(result)}, ‖ΔW‖/‖W‖", percent(0.0), percent(last.head_change)),
    ]
    return [row for row in rows if row[1:] != (percent(None), percent(None))]


def moving(result: Record) -> str:
    """What a run changed."""
    return "the head" if result.scope is None else "the weights that move"


def _how(result: Record) -> str:
    how = f"{result.method}: {result.method_source}; {result.end.step} {STEPS[result.method]}"
    if result.scope is None:
        taking = f"{result.details['words']:,} of {result.head.classes:,}" if "words" in result.details else "all"
        rows = taking if result.rows is None else ", ".join(class_name(result, row) for row in result.rows)
        return f"{how}; rows of the head that moved: {rows}"
    given = result.scope
    term = "; with the feature term" if given.feature_term else ""
    if result.method == "imu":
        return f"{how} of {given.batches}, AdamW with learning rate {given.learning_rate:g}, {given.minibatch} samples a batch"
    return (
        f"{how} of {given.batches}, learning rate {given.learning_rate:g} of a layer's size, {given.anchor} anchored samples (β "
        f"{given.beta:g}), {given.weighting} weights{term}; about {given.passes:.3g} forward passes over forget and anchor samples"
    )


def _scope(result: Record) -> list[tuple[str, str]]:
    given = result.scope
    if given is None:
        return []
    shown = ", ".join(given.modules[:MODULES]) + (
        f" and {len(given.modules) - MODULES} more" if len(given.modules) > MODULES else ""
    )
    cut = f"; below {given.cut} nothing ran again" if given.cut else ""
    return [("scope", f"{given.given}: {given.weights:,} weights of {shown}{cut}")]


def _changed(result: Record) -> str:
    return f"{_named(result.changed)}; {result.unchanged} others are bit-identical"


def _named(tensors: Sequence[str]) -> str:
    more = f" and {len(tensors) - MODULES} more" if len(tensors) > MODULES else ""
    return ", ".join(tensors[:MODULES]) + more


def run_facts(result: Record) -> list[tuple[str, str]]:
    """How an unlearning was done, as pairs of name and text."""
    return [
        *given_to_run(result),
        *([("scenario", f"{result.scenario} ({result.scenario_source})")] if result.embedding is None else []),
        ("target", target(result)),
        ("method", _how(result)),
        *_scope(result),
        *([("head", head(result))] if result.embedding is None else [("embedding", embedding(result.embedding))]),
        ("changed tensors", _changed(result)),
        ("architecture", architecture(result)),
        ("preprocessing", preprocessing(result)),
        *features(result),
    ]


def _given(forget: ForgetInfo | PeopleInfo, known: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """What a command had to work with, and what it had not."""
    have = [f"forget {cut(' '.join(forget.given))}", *(f"{name} {value}" for name, value in known.items() if value)]
    absent = [name for name, value in known.items() if not value]
    return [("given", "; ".join(have)), *([("not given", ", ".join(absent))] if absent else [])]


def given_to_run(result: Record) -> list[tuple[str, str]]:
    """What the unlearning was made with: never retain data."""
    held = result.held_out
    chosen_by = None if held is None else f"{held.given} ({held.used} of its {held.n} samples, --{held.option})"
    return _given(result.forget, {"data": result.forget.data, "held-out data": chosen_by})


def given(result: Evaluation) -> list[tuple[str, str]]:
    """What the evaluation was made with, and what was not given to it."""
    files = {"original": result.original, "record": result.record, "retrained": result.retrained}
    places = {name: None if file is None else file.path for name, file in files.items()}
    return _given(result.forget, result.given | places)


def evaluation_facts(result: Evaluation) -> list[tuple[str, str]]:
    """What was compared in an evaluation, as pairs of name and text."""
    changed = "unknown (no original)" if result.changed is None else _named(result.changed) or "nothing"
    return [
        *given(result),
        ("changed tensors", changed + ("; head only" if result.head_only else "")),
        ("head", head(result)),
        ("preprocessing", preprocessing(result)),
        *features(result),
    ]


def retrieval_facts(result: Retrieval) -> list[tuple[str, str]]:
    """What was compared in the evaluation of an embedding model, as pairs of name and text."""
    changed = "unknown (no original)" if result.changed is None else _tensors(result.changed)
    files = others(result)
    places = {name: None if file is None else file.path for name, file in files.items()}
    whole = ", all that the data set has of them" if result.forget.whole else ""
    return [
        *_given(result.forget, result.given | places),
        ("forgotten", f"{result.forget.people} people, {result.forget.n} images{whole}"),
        ("changed tensors", changed),
        ("embedding", embedding(result.embedding)),
        ("preprocessing", preprocessing(result)),
        *features(result),
    ]  # fmt: skip


def recall_facts(result: Recall) -> list[tuple[str, str]]:
    """What was compared in the evaluation of a language model, as pairs of name and text."""
    changed = "unknown (no original)" if result.changed is None else _tensors(result.changed)
    places = {name: None if file is None else file.path for name, file in others(result).items()}
    return [
        *_given(result.forget, result.given | places),
        ("forgotten", f"{result.forget.n} records"),
        *([("written", f"{result.generated} records of each set were answered, at most")] if result.generated else []),
        ("changed tensors", changed),
        ("head", head(result)),
        ("preprocessing", preprocessing(result)),
        *features(result),
    ]


def embedding(it: EmbeddingInfo) -> str:
    """What the embedding is."""
    return f"{it.size} numbers, {it.module or 'what the model returns'} ({it.source})"


def _tensors(changed: list[str], most: int = 5) -> str:
    more = f" and {len(changed) - most} more" if len(changed) > most else ""
    return ", ".join(changed[:most]) + more or "nothing"


def others(result: Judged) -> dict[str, FileHash | None]:
    """The files that a model was evaluated with, by what they are."""
    found = {"original": result.original, "record": result.record, "retrained": result.retrained}
    return found | ({"reference model": result.reference_model} if isinstance(result, Retrieval | Recall) else {})


def from_here(result: Measured, folder: Path) -> Measured:
    """The same result with its paths, which are relative to the ``folder`` of its file, as one who stands here would type them."""

    def file(found: FileHash | None) -> FileHash | None:
        return found and found.model_copy(update={"path": paths.placed(found.path, "file", folder)})

    forget = {
        "given": paths.placed(result.forget.given, "forget", folder),
        "data": paths.placed(result.forget.data, "data", folder),
    }
    moved: dict[str, Any] = {"forget": result.forget.model_copy(update=forget)}
    if isinstance(result, Evaluation | Retrieval | Recall):
        names = (
            "model",
            "original",
            "retrained",
            "record",
            *(["reference_model"] if isinstance(result, Retrieval | Recall) else []),
            *(["answers"] if isinstance(result, Recall) else []),
        )
        moved |= {name: file(getattr(result, name)) for name in names}
        moved["given"] = {name: paths.placed(value, "data", folder) for name, value in result.given.items()}
    else:
        moved |= {name: file(getattr(result, name)) for name in ("before", "after")}
        if result.held_out is not None:
            held = {"given": paths.placed(result.held_out.given, "data", folder)}
            moved["held_out"] = result.held_out.model_copy(update=held)
    return cast(Measured, result.model_copy(update=moved))


def printable(result: Result) -> Result:
    """The same result with control characters in its texts written as escapes: a name must not steer a terminal.

    Names come from checkpoints, folders and records that a stranger may have made.
    """
    return result.model_validate(_escaped(as_shown(result)))


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return streams.plain(value)
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    return value


def finite(value: float | None) -> bool:
    """Whether there is a number that can be drawn."""
    return value is not None and math.isfinite(value)
