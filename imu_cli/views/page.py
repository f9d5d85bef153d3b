"""A report as one HTML page that needs nothing else: no script, no request, light and dark, narrow and printed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imu_cli import __version__
from imu_cli.files import streams
from imu_cli.records.evaluation import Metric, Requirement
from imu_cli.records.influence import Influence
from imu_cli.records.recall import Recall
from imu_cli.records.record import Record
from imu_cli.records.retrieval import Judged, Retrieval
from imu_cli.views import figures, tables, words
from imu_cli.views.figures import Figure
from imu_cli.views.tables import NO_SAMPLES, Table

MARK = '<meta name="generator" content="imu '
"""By it an earlier report is known and may be replaced."""
TILES = (
    ("forget.accuracy",), ("test.accuracy_drop",), ("mia.auc",), ("recovery.k5", "probe.accuracy"),
    ("people.auc",), ("forget.similarity",), ("forget.map",), ("test.map_drop",),
    ("forget.extraction_strength",), ("forget.exact_memorization",), ("mia.loss.auc",),
    ("model_utility", "model_utility.without_rouge", "test.exact_memorization_drop"),
)  # fmt: skip
"""The numbers that are shown large: of each group the first that was measured."""


@dataclass(frozen=True)
class Tile:
    """A number to be read from afar, with what it was and what it should be."""

    label: str
    value: str
    detail: str
    name: str


@dataclass(frozen=True)
class Section:
    """One model: what its record and its evaluation say, in the order of the page."""

    title: str
    warning: str
    sentence: str
    badges: list[tuple[str, str]]
    tiles: list[Tile]
    tables: list[Table]
    missing: list[tuple[str, ...]]
    figures: list[Figure]
    details: list[Table]
    facts: list[tuple[str, str]]
    provenance: list[tuple[str, str]]
    options: Table
    notes: list[str]
    definitions: list[tuple[str, str]]
    limit: str


@dataclass
class Subject:
    """A model's record and evaluation; one of them may be missing."""

    name: str
    record: Record | None = None
    evaluation: Judged | None = None


def subjects(results: Sequence[Record | Judged], names: Sequence[str]) -> list[Subject]:
    """Each evaluation with the record of the very file that it measured, told by hash; the others by themselves."""
    found: list[Subject] = []
    for result, name in zip(results, names, strict=True):
        if isinstance(result, Record):
            fits = (
                s
                for s in found
                if s.record is None and s.evaluation and s.evaluation.model.sha256 == result.after.sha256
            )
            own = next(fits, None) or Subject(name)
            own.record = result
        else:
            fits = (
                s for s in found if s.evaluation is None and s.record and s.record.after.sha256 == result.model.sha256
            )
            own = next(fits, None) or Subject(name)
            own.evaluation, own.name = result, name
        if own not in found:
            found.append(own)
    return found


def _badges(warned: str, record: Record | None, requirements: Sequence[Requirement]) -> list[tuple[str, str]]:
    """Verdicts as (kind, text): what is warned of, whether the target was met, and how many gates passed."""
    found = [("fail", warned.partition(":")[0].capitalize())] if warned else []
    if record is not None:
        kind = {True: "pass", False: "fail", None: "open"}[record.reached]
        found.append((kind, words.REACHED[record.reached].capitalize()))
    verdicts = [item.verdict for item in requirements]
    for kind, text in (("pass", "passed"), ("fail", "failed"), ("inconclusive", "inconclusive")):
        count = verdicts.count(kind)  # type: ignore[arg-type]
        if count:
            found.append((kind, f"{count} of {len(verdicts)} requirements {text}"))
    return found


def _tile(metric: Metric) -> Tile:
    parts = []
    if metric.before is not None:
        parts.append(f"before {words.shown(metric.name, metric.before)}")
    if metric.interval is not None:
        parts.append(f"interval {words.span(metric.name, metric.interval)}")
    if metric.target is not None:
        parts.append(f"target {words.shown(metric.name, metric.target)}")
    return Tile(words.capital(metric.title), words.shown(metric.name, metric.value), " · ".join(parts), metric.name)


def _defined(metric: Metric) -> str:
    """A metric's definition, where it was measured, how its interval was got and where its target comes from."""
    parts = [metric.definition]
    if metric.missing is None and metric.split:
        parts.append(f"measured on: {metric.split}")
    if metric.interval is not None:
        parts.append(f"interval: {metric.interval.method}")
    if metric.target_note:
        parts.append(f"target: {metric.target_note}")
    return "; ".join(parts)


def _tiles(evaluation: Judged | None, record: Record | None) -> list[Tile]:
    if evaluation is None:
        assert record is not None
        return [
            Tile(words.capital(what), after, f"before {before}", "") for what, before, after in words.outcome(record)
        ]
    measured = {item.name: item for item in evaluation.metrics if item.missing is None}
    chosen = (next((measured[name] for name in group if name in measured), None) for group in TILES)
    return [_tile(metric) for metric in chosen if metric is not None]


def _provenance(result: Record | Judged) -> list[tuple[str, str]]:
    """Hashes, versions and times: what it takes to show later that this report belongs to that file."""
    files = (
        {"model before": result.before, "model after": result.after, "forget list": result.forget.manifest}
        if isinstance(result, Record)
        else {
            "model": result.model,
            **words.others(result),
            "forget list": result.forget.manifest,
        }
    )
    it = result.environment
    hashes = [(name, f"{file.path}, SHA-256 {file.sha256}") for name, file in files.items() if file is not None]
    return [
        *hashes,
        ("forget set", f"{result.forget.n} samples, SHA-256 {result.forget.sha256}"),
        (
            "made",
            f"{result.created} by imu {it.imu}; Python {it.python}, torch {it.torch}, torchvision {it.torchvision}",
        ),
        ("on", f"{it.platform}, {it.device}; seed {result.seed}"),
        ("seconds", ", ".join(f"{name} {value:.2f}" for name, value in result.seconds.items())),
    ]


def _options(result: Record | Judged) -> Table:
    rows = [(name, str(option.value), option.origin) for name, option in sorted(result.options.items())]
    return Table("Options and where they came from", ("option", "value", "from"), rows)


def _sentence(record: Record | None, evaluation: Judged | None) -> str:
    if evaluation is not None:
        return evaluation.summary
    assert record is not None
    what, before, after = words.outcome(record)[0]
    return f"{words.verdict(record)} {words.capital(what)}: {before} before, {after} after. Nothing else was measured here; run imu evaluate."


def _details(evaluation: Judged) -> list[Table]:
    if isinstance(evaluation, Retrieval):
        return [tables.per_person(evaluation)]
    if isinstance(evaluation, Recall):
        return [tables.per_record(evaluation)]
    return [tables.per_part(evaluation), tables.per_class(evaluation)]


def _facts(evaluation: Judged) -> list[tuple[str, str]]:
    if isinstance(evaluation, Retrieval):
        return words.retrieval_facts(evaluation)
    if isinstance(evaluation, Recall):
        return words.recall_facts(evaluation)
    return words.evaluation_facts(evaluation)


def _drawn(evaluation: Judged | None) -> list[Figure]:
    if isinstance(evaluation, Retrieval):
        return figures.of_retrieval(evaluation)
    if isinstance(evaluation, Recall):
        return figures.of_recall(evaluation)
    return [] if evaluation is None else figures.of_evaluation(evaluation)


def _section(subject: Subject, samples: Mapping[str, Table]) -> Section:
    record = None if subject.record is None else words.printable(subject.record)
    evaluation = None if subject.evaluation is None else words.printable(subject.evaluation)
    both: list[Record | Judged] = [item for item in (record, evaluation) if item is not None]
    newest = both[-1]
    shown, details, missing, definitions, facts = [], [], [], [], []
    if evaluation is not None:
        shown += [tables.requirements(evaluation), tables.measured(evaluation.metrics)]
        missing = list(tables.missing(evaluation.metrics).rows)
        details += _details(evaluation)
        definitions = [(item.name, _defined(item)) for item in evaluation.metrics]
        facts += [(f"evaluation: {name}", text) for name, text in _facts(evaluation)]
    if record is not None:
        details += [tables.outcome(record, "What the run ended with"), tables.path(record)]
        facts = [(f"unlearning: {name}", text) for name, text in words.run_facts(record)] + facts
    warned, rest = words.warning(_sentence(record, evaluation))
    return Section(
        title=newest.after.path if isinstance(newest, Record) else newest.model.path,
        warning=warned,
        sentence=rest,
        badges=_badges(warned, record, [] if evaluation is None else evaluation.requirements),
        tiles=_tiles(evaluation, record),
        tables=[table for table in (*shown, *_samples(newest, samples)) if table.rows],
        missing=missing,
        figures=[
            *_drawn(evaluation),
            *([] if record is None else figures.of_record(record)),
        ],
        details=[table for table in details if table.rows],
        facts=facts,
        provenance=[pair for item in both for pair in _provenance(item)],
        options=_options(newest),
        notes=[note for item in both for note in item.notes],
        definitions=definitions,
        limit=newest.limit,
    )


def _samples(result: Record | Judged, samples: Mapping[str, Table]) -> list[Table]:
    own = samples.get(result.forget.sha256)
    return [] if own is None else [own]


def _pages() -> Any:
    """The templates: whatever a record holds is escaped, and a name that is not there is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("imu_cli.views"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": words.number, "percent": words.percent}
    return made


def report(results: Sequence[Record | Judged], names: Sequence[str], samples: Mapping[str, Table] = NO_SAMPLES) -> str:
    """The page: one section a model, evaluations side by side first where there are several; ``samples`` by forget set's hash."""
    found = subjects(results, names)
    evaluations = [(words.printable(s.evaluation), s.name) for s in found if s.evaluation is not None]
    side_by_side = None
    if len(evaluations) > 1:
        both = [item for item, _ in evaluations], [streams.plain(name) for _, name in evaluations]
        side_by_side = tables.comparison(*both)
    sections = [_section(subject, samples) for subject in found]
    made: str = (
        _pages().get_template("report.html").render(version=__version__, sections=sections, comparison=side_by_side)
    )
    return made


@dataclass(frozen=True)
class Ranking:
    """A forgotten image and what it finds, most similar first: pictures are data URIs."""

    picture: str
    found: Mapping[str, Sequence[tuple[str, float, bool]]]


def rankings(model: str, queries: Sequence[Ranking]) -> str:
    """What some forgotten images find before and after: (picture, similarity, whether it is the person)."""
    made: str = (
        _pages().get_template("rankings.html").render(version=__version__, model=streams.plain(model), queries=queries)
    )
    return made


def gallery(result: Influence, pictures: Mapping[int, str]) -> str:
    """The samples that matter most: ``pictures`` are data URIs of images, or texts, by row, shown in that order."""
    samples, n = (
        [(words.printable(result.rows[row]), streams.plain(shown)) for row, shown in pictures.items()],
        len(result.rows),
    )
    result = words.printable(result)  # without its rows
    made: str = (
        _pages()
        .get_template("gallery.html")
        .render(
            version=__version__,
            model=result.model.path,
            n=n,
            sign=words.capital(result.sign),
            samples=samples,
        )
    )
    return made
