"""Results as tables on a terminal: pure functions of what the pipeline returned."""

import io
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from imu_cli.files import streams
from imu_cli.models.headers import Inspection
from imu_cli.records.evaluation import Evaluation, Metric
from imu_cli.records.features import Extracted
from imu_cli.records.influence import Influence
from imu_cli.records.parts import HeadInfo, ScoreInfo
from imu_cli.records.recall import Recall
from imu_cli.records.record import Record
from imu_cli.records.retrieval import Judged, Retrieval
from imu_cli.records.ties import Ties
from imu_cli.records.token_influence import TokenInfluence
from imu_cli.views import shaded, tables, words

PIPED_WIDTH = 140
VERDICTS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
BAR = 40


def text_of(renderable: RenderableType, width: int | None = None, color: bool = False) -> str:
    """What a terminal would show, as text; without colours unless asked for."""
    console = Console(
        file=io.StringIO(), width=width or PIPED_WIDTH, force_terminal=color, no_color=not color, highlight=False
    )
    with console.capture() as capture:
        console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _under(title: str, body: RenderableType) -> RenderableType:
    """A block with a bold line above it; a table's own title would be wrapped to the table's width."""
    return Group(Text(streams.plain(title), style="bold"), body) if title else body


def _table(*columns: str, right: Sequence[str] = (), whole: Sequence[str] = ()) -> Table:
    """A table without lines; ``whole`` columns are not folded on a narrow terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        # Text, for brackets in a file's name are no markup.
        side: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(
            Text(streams.plain(column)), justify=side, header_style="dim", overflow="fold", no_wrap=column in whole
        )
    return table


def _pairs(title: str, pairs: Iterable[tuple[str, ...]]) -> RenderableType:
    table = _table("", "")
    table.show_header = False
    for name, value in pairs:
        table.add_row(Text(streams.plain(name), style="dim"), Text(streams.plain(value)))
    return _under(title, table)


def _histogram(scores: ScoreInfo, n: int) -> list[str]:
    """Negative scores by powers of ten, as bars, with the positive and zero ones counted below."""
    highest = max((item.count for item in scores.decades), default=1)
    lines = [
        f"{words.decade(item)} {'█' * max(1, round(BAR * item.count / max(1, highest)))} {item.count}"
        for item in scores.decades
    ]
    return [*lines, f"zero or positive: {n - scores.negative} (left out of the ascent)"]


def influence(result: Influence, show: int) -> RenderableType:
    """The samples that matter most, how the scores are spread, and what was kept."""
    rows, n = [words.printable(result.rows[at]) for at in result.largest(show)], len(result.rows)
    result = words.printable(result)  # without its rows
    scores = result.scores
    title = f"The {len(rows)} of {n} forget samples with the largest influence"
    numbers = ("score", "weight", "confidence")
    top = _table("sample", "label", *numbers, right=numbers)
    for row in rows:
        top.add_row(
            Text(row.path), Text(row.label), f"{row.score:.4g}", f"{row.weight:.4g}", words.percent(row.confidence)
        )
    about = _pairs(
        "Scores",
        [
            ("sign", result.sign),
            *_of_scores(scores, n, ""),
            ("accuracy on the forget set", f"{words.percent(result.accuracy)} (n = {n})"),
            ("head", words.head(result)),
            ("scores from", "the cache" if scores.from_cache else "this run"),
            ("cache entry", result.cached or "none (--no-cache)"),
        ],
    )  # fmt: skip
    spread = Text("\n".join(["Distribution of the score", *_histogram(scores, n)]))
    spread.stylize("bold", 0, len("Distribution of the score"))
    return _blocks(_under(title, top) if show else None, *_kernel(result, show), spread, about)


def token_influence(result: TokenInfluence, show: int) -> RenderableType:
    """The records that matter most, their texts where these were asked for, and how the tokens' scores are spread."""
    order, texts = result.largest(show), result.texts
    rows, n = [words.printable(result.rows[at]) for at in order], len(result.rows)
    result = words.printable(result)  # without its rows and texts
    numbers = ("score", "tokens", "probability", "exact")
    top = _table("record", *numbers, right=numbers)
    for row in rows:
        shares = words.percent(row.probability), words.percent(row.exact)
        top.add_row(Text(row.path), f"{row.score:.4g}", str(len(row.scores)), *shares)
    scores = result.scores
    about = _pairs("Scores", [("records", f"{n}, of {result.tokens:,} tokens"), *_of_scores(scores, result.tokens, "tokens"),
        ("head", words.head(result)), ("scores from", "the cache" if scores.from_cache else "this run"),
        ("cache entry", result.cached or "none (--no-cache)"), ("sign", result.sign)])  # fmt: skip
    title = f"The {len(rows)} of {n} forget records with the largest influence, summed over their tokens"
    spread = Text("\n".join(["Distribution of the tokens' scores", *_histogram(scores, result.tokens)]))
    spread.stylize("bold", 0, len("Distribution of the tokens' scores"))
    most = max((abs(score) for row in rows for score in row.scores), default=0.0)
    shown = [
        _under(row.path, Group(shaded.text(texts[at], row.scores, most), Text(f"most: {shaded.named(texts[at], row.scores)}", style="dim")))
        for at, row in zip(order, rows, strict=True) if at in texts
    ]  # fmt: skip
    return _blocks(_under(title, top) if show else None, *shown, spread, about)


def _of_scores(scores: ScoreInfo, n: int, what: str) -> list[tuple[str, str]]:
    """How many scores are negative and kept, the damping, and quantiles."""
    return [
        (f"negative {what}".strip(), f"{scores.negative} of {n} ({words.percent(scores.negative / n)})"),
        ("kept for the ascent", f"{scores.kept} of {n} ({words.percent(scores.kept / n)})"),
        ("damping λ", f"{scores.damping:.4g}; mean of the Fisher diagonal F {scores.mean_fisher:.4g}; λ / mean F "
                      f"{words.ratio(scores.damping, scores.mean_fisher)}"),
        ("quantiles of the score", ", ".join(f"{q}: {value:.3g}" for q, value in scores.quantiles.items())),
    ]  # fmt: skip


def ties(result: Ties, show: int) -> RenderableType:
    """The images that tie their person together most, and how alike forgotten people's images are beside unseen people's."""
    rows = [words.printable(row) for row in result.largest(show)]
    result = words.printable(result)
    numbers = ("excess", "similarity", "pairs")
    top = _table("image", "person", *numbers, right=numbers)
    for row in rows:
        top.add_row(
            Text(row.path), Text(row.person), words.number(row.excess), words.number(row.similarity), str(row.pairs)
        )
    title = f"The {len(rows)} of {result.n} forgotten images that tie their person together most"
    without = f"{result.without_pairs} of {result.n} images have no such pair"
    about = _pairs(
        "Similarity of two images of one person, on two cameras where they are known",
        [
            ("forgotten people", f"{result.similarity:.4f} ({result.people} people; {without})"),
            ("unseen people", f"{result.unseen_similarity:.4f} ({result.unseen_people} people)"),
            ("excess", f"{result.excess:.4f} by rank: what forgetting has to take away"),
            ("embedding", words.embedding(result.embedding)),
        ],
    )  # fmt: skip
    return _blocks(_under(title, top) if show else None, about)


def scored(result: Influence | Ties | TokenInfluence, show: int) -> RenderableType:
    """What ``imu influence`` found, of whatever kind of model."""
    if isinstance(result, TokenInfluence):
        return token_influence(result, show)
    return influence(result, show) if isinstance(result, Influence) else ties(result, show)


def _kernel(result: Influence, show: int) -> list[RenderableType]:
    """Strength and self-influence of each sample under matched unlearning, and the samples that move it most."""
    if not result.kernel or not show:
        return []
    numbers = ("strength α", "K_ii", "margin", "target")
    table = _table("sample", *numbers, "moved most by", right=numbers)
    for row in sorted(result.kernel, key=lambda row: -abs(row.strength))[:show]:
        movers = ", ".join(f"{item.path} ({item.moved:+.2g})" for item in row.movers)
        cells = (f"{value:.3g}" for value in (row.strength, row.self_influence, row.margin, row.target))
        table.add_row(Text(row.path), *cells, Text(movers))
    return [_under("Matched: the strength each sample needs, and the forget samples that move its margin most", table)]


def _blocks(*parts: RenderableType | None) -> Group:
    kept = [part for part in parts if part is not None]
    spaced: list[RenderableType] = []
    for part in kept:
        spaced += [part, Text("")]
    return Group(*spaced[:-1])


REACHED = {True: "bold green", False: "bold red", None: "bold yellow"}


def record(result: Record, *, notes: bool = True) -> RenderableType:
    """What an unlearning did: what changed, where it stopped, and last the verdict; notes only where they were not told already."""
    result = words.printable(result)
    return _blocks(
        Text(result.after.path, style="bold"),
        *_filled(tables.path(result)),
        _pairs("", words.run_facts(result)),
        *_notes(result.notes if notes else []),
        Text(result.limit, style="dim"),
        Group(drawn(tables.outcome(result)), Text(words.verdict(result), style=REACHED[result.reached])),
    )


def _notes(notes: Sequence[str]) -> list[RenderableType]:
    return [Text("\n".join(f"note: {note}" for note in notes))] if notes else []


def drawn(table: tables.Table) -> RenderableType:
    """A table of texts on a terminal; verdicts in colour."""
    made = _table(*table.columns, right=table.numbers, whole=table.whole)
    for row in table.rows:
        cells = (
            Text(cell, style=f"bold {VERDICTS[cell]}" if column == "verdict" else "")
            for column, cell in zip(table.columns, row, strict=True)
        )
        made.add_row(*cells)
    return _under(table.title, made)


def _filled(*parts: tables.Table) -> list[RenderableType]:
    return [drawn(part) for part in parts if part.rows]


MOST_CLASSES = 20
"""Rows of the table of classes on a terminal."""
NARROW = 110
"""Columns below which what a metric is goes under the table: beside six columns of numbers it would be folded to words."""


@dataclass(frozen=True)
class _Measured:
    """The table of metrics, as wide as the terminal allows."""

    metrics: Sequence[Metric]

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        table = tables.measured(self.metrics)
        if options.max_width >= NARROW:
            yield drawn(table)
            return
        yield drawn(replace(table, columns=table.columns[:-1], rows=[row[:-1] for row in table.rows]))
        noted = [(metric.name, metric.note) for metric in self.metrics if metric.note and metric.missing is None]
        if noted:
            yield Text("")
            yield _pairs("Notes on them", noted)


def _missing(metrics: Sequence[Metric]) -> list[RenderableType]:
    table = tables.missing(metrics)
    return [_pairs(table.title, table.rows)] if table.rows else []


def _summary(text: str) -> Text:
    warned, rest = words.warning(text)
    return Text.assemble((f"{warned} " if warned else "", "bold red"), rest)


def evaluation(result: Evaluation, *, per_class: bool = True, notes: bool = True) -> RenderableType:
    """What was measured of a model and what was not; the verdicts come last, where a terminal stops scrolling."""
    result = words.printable(result)
    title = Text(f"{result.model.path}: scenario {result.scenario}, {result.forget.n} forget samples", style="bold")
    return _blocks(
        title,
        _Measured(result.metrics),
        *_missing(result.metrics),
        *_filled(tables.per_part(result), *([tables.per_class(result, MOST_CLASSES)] if per_class else [])),
        _pairs("", words.evaluation_facts(result)),
        *_notes(result.notes if notes else []),
        Text(result.limit, style="dim"),
        *_filled(tables.requirements(result)),
        _summary(result.summary),
    )


def retrieval(result: Retrieval, *, notes: bool = True) -> RenderableType:
    """What was measured of an embedding model and what was not; the verdicts come last, where a terminal stops scrolling."""
    result = words.printable(result)
    counted = f"{result.forget.people} people to forget, {result.forget.n} images"
    return _blocks(
        Text(f"{result.model.path}: {counted}", style="bold"),
        _Measured(result.metrics),
        *_missing(result.metrics),
        *_filled(tables.per_person(result)),
        _pairs("", words.retrieval_facts(result)),
        *_notes(result.notes if notes else []),
        Text(result.limit, style="dim"),
        *_filled(tables.requirements(result)),
        _summary(result.summary),
    )


def recall(result: Recall, *, notes: bool = True) -> RenderableType:
    """What was measured of a language model and what was not; the verdicts come last, where a terminal stops scrolling."""
    result = words.printable(result)
    return _blocks(
        Text(f"{result.model.path}: {result.forget.n} records to forget", style="bold"),
        _Measured(result.metrics),
        *_missing(result.metrics),
        *_filled(tables.per_record(result)),
        _pairs("", words.recall_facts(result)),
        *_notes(result.notes if notes else []),
        Text(result.limit, style="dim"),
        *_filled(tables.requirements(result)),
        _summary(result.summary),
    )


def judged(result: Judged, *, notes: bool = True) -> RenderableType:
    """An evaluation, of whatever kind of model."""
    if isinstance(result, Recall):
        return recall(result, notes=notes)
    return evaluation(result, notes=notes) if isinstance(result, Evaluation) else retrieval(result, notes=notes)


def report(
    results: Sequence[Record | Judged],
    names: Sequence[str],
    samples: Mapping[str, tables.Table] = tables.NO_SAMPLES,
) -> RenderableType:
    """One or more records: each in full, then side by side where there are several evaluations."""
    parts: list[RenderableType] = [record(item) if isinstance(item, Record) else judged(item) for item in results]
    parts += [drawn(item) for item in samples.values()]
    evaluations = [(item, name) for item, name in zip(results, names, strict=True) if not isinstance(item, Record)]
    if len(evaluations) > 1:
        both = [words.printable(item) for item, _ in evaluations], [streams.plain(name) for _, name in evaluations]
        parts.append(drawn(tables.comparison(*both)))
    return _blocks(*parts)


def inspection(result: Inspection, show: int) -> RenderableType:
    """What is in a model's files, the first of its tensors, and what was learnt of it and where."""
    result = words.printable(result)
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in result.dtypes.items())
    size = f"{len(result.tensors)} tensors ({dtypes}), {result.values:,} values, {result.bytes:,} bytes"
    facts = [("tensors", size), *_files(result)]
    facts += [
        (f"metadata of {file.name}", f"{key}: {value}") for file in result.files for key, value in file.metadata.items()
    ]
    table = _table("tensor", "dtype", "shape", "bytes", "file", right=("bytes",))
    # The head first, and counters of batches last, which say nothing; as they are stored otherwise.
    ordered = sorted(
        result.tensors, key=lambda item: (item.name not in result.head, item.name.endswith("num_batches_tracked"))
    )
    for item in ordered[:show]:
        cells = (item.name, item.dtype, " x ".join(map(str, item.shape)) or "one value", f"{item.bytes:,}", item.file)
        table.add_row(*(Text(cell) for cell in cells))
    which = "The head and the first" if result.head else "The first"
    title = f"{which} of its tensors, {min(show, len(result.tensors))} of {len(result.tensors)} tensors (--format csv lists all)"
    learnt = [(item.what, f"{item.value} (from {item.source})" if item.value else f"{'NOT KNOWN' if item.flag else 'REFUSED'}: {item.problem}")
              for item in result.findings]  # fmt: skip
    return _blocks(
        _pairs(result.model, facts),
        _under(title, table) if show and result.tensors else None,
        _pairs("What imu learns", learnt) if learnt else None,
        *_notes(result.notes),
        Text(f"next: {result.next}") if result.next else None,
    )


def extracted(result: Extracted) -> RenderableType:
    """What file of features was written, from what, and how."""
    result = words.printable(result)
    head, run = result.head, result.seconds
    taken = next((value for name, value in run.items() if name.startswith("features of")), 0.0)
    named = next(iter(result.forget.per_class), None)
    which = ["--forget", f"class={named}"] if result.complete and named else []
    following = shlex.join(["imu", "unlearn", result.model.path, "--features", result.output, *which])
    processes = f"{result.processes} process{'es' * (result.processes > 1)}"
    facts = [
        (
            "features",
            f"{result.forget.n:,} x {head.features}, float32, of {_what(head)}; {result.bytes:,} bytes",
        ),
        ("samples", "the whole data set" if result.complete else "a forget list"),
        (
            "computed in",
            f"{result.precision}, {result.batch_size} samples at a time, {result.folded} batch norms folded",
        ),
        *([("replay error", f"{head.replay_error:.1e} of the largest logit")] if head.classes else []),
        ("by", f"{processes}, {result.blocks} blocks, {taken:.1f} of {run['all']:.1f} s in the model"),
    ]
    return _blocks(_pairs(result.output, facts), Text(f"next: {following}") if head.classes else None)


def _what(head: HeadInfo) -> str:
    """What the features of a file are."""
    if head.classes:
        return f"what enters {head.module}"
    return f"what {head.module} returns" if head.module else "what the model returns"


def _files(result: Inspection) -> list[tuple[str, str]]:
    lines = [("index", result.index)] if result.index else []
    return [*lines, *(("file", f"{file.name}: {file.tensors} tensors, {file.bytes:,} bytes") for file in result.files)]


def plain_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> RenderableType:
    """Rows as they are, under a title."""
    table = _table(*header)
    for row in rows:
        table.add_row(*(Text(streams.plain(str(cell))) for cell in row))
    return _under(title, table)


def cache_entry(kind: str, key: str, fields: Mapping[str, Any], rows: Sequence[Sequence[Any]]) -> RenderableType:
    """A cache entry: what it depends on, then its samples, those that matter most first."""
    about = _pairs(f"{kind} {key}", ((name, str(value)) for name, value in fields.items()))
    ordered = sorted(rows, key=lambda row: -abs(row[2] or 0.0))
    shown_rows = ([name, label, "" if score is None else f"{score:.4g}"] for name, label, score in ordered)
    return _blocks(about, plain_table(f"{len(rows)} samples", ["path", "label", "score"], shown_rows))
