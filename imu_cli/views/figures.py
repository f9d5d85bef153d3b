"""Which pictures a report has: from a record or an evaluation to charts with their words and their numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imu_cli.records.evaluation import ClassRow, Evaluation, Histogram, RocCurve, When
from imu_cli.records.parts import WHAT
from imu_cli.records.recall import Recall
from imu_cli.records.record import LookInfo, Record
from imu_cli.records.retrieval import Retrieval
from imu_cli.views import svg, words
from imu_cli.views.svg import Bar, Change, Line, Point
from imu_cli.views.tables import Table

CLASSES_DRAWN = 20
ROWS_LISTED = 40


@dataclass(frozen=True)
class Figure:
    """A picture with what it shows in words, its legend (style, text), and its numbers as a table."""

    title: str
    about: str
    svg: str
    numbers: Table
    legend: tuple[tuple[str, str], ...] = ()


def of_record(result: Record) -> list[Figure]:
    """The way of an unlearning, and the scores that it started from."""
    looks = result.trajectory
    if result.embedding is not None:
        return _people(result, looks)
    path = [look for look in looks if look.rho is not None]
    made = [_trade_off(result, path), _auc_path(result, path)] if path else _ascent(result, looks)
    return [figure for figure in (*made, _scores(result)) if figure is not None]


def of_evaluation(result: Evaluation) -> list[Figure]:
    """Confidence before and after, the attack's ROC, and what happened to each class."""
    made: list[Figure | None] = []
    if result.curves is not None:
        found = result.curves.confidence
        made += [_confidence(found, when) for when in ("before", "after")]
        made.append(_roc(result.curves.roc))
    return [figure for figure in (*made, _classes(result)) if figure is not None]


def of_retrieval(result: Retrieval) -> list[Figure]:
    """Similarity of same-person pairs: of forgotten people before and after, of unseen people."""
    about = "Forgotten people should lie where people lie whom the model never saw, neither above nor below."
    return _spread(
        result.similarity, "Similarity of two images of one person", about, ("cosine similarity", "pairs", "people")
    )


def of_recall(result: Recall) -> list[Figure]:
    """Losses of records: of forgotten ones before and after, of unseen ones."""
    about = "Forgotten records should lie where records lie that the model never saw, neither left nor right of them."
    return _spread(result.losses, "Loss of a record's answer", about, ("nats a token", "records", "records"))


def _spread(found: Histogram | None, title: str, wanted: str, said: tuple[str, str, str]) -> list[Figure]:
    """How numbers of forgotten samples, before and after, and of unseen ones are spread; ``said``: the axis, what is counted, of whom."""
    axis, counted, whose = said
    kept = (
        []
        if found is None
        else [(item, SIDES[item.split, item.when]) for item in found.series if (item.split, item.when) in SIDES]
    )
    told = [(item, (style, text.format(whose))) for item, (style, text) in kept if any(item.counts)]
    if found is None or not told:
        return []
    sizes = "; ".join(f"{text}: {sum(item.counts):,} {counted}" for item, (_, text) in told)
    drawn = [(style, [count / sum(item.counts) for count in item.counts]) for item, (style, _) in told]
    x = svg.linear(axis, (found.edges[0], found.edges[-1]))
    y = svg.linear(
        f"share of the {counted}", [value for _, values in drawn for value in values], as_percent=True, zero=True
    )
    columns = (axis, *(text for _, (_, text) in told))
    rows = [
        (f"{low:.3f} to {high:.3f}", *(str(item.counts[at]) for item, _ in told))
        for at, (low, high) in enumerate(zip(found.edges, found.edges[1:], strict=False))
        if any(item.counts[at] for item, _ in told)
    ]
    about = f"{sizes}. {wanted}"
    drawing = svg.histogram(title, about, x, y, found.edges, drawn)
    return [Figure(title, about, drawing, Table("", columns, rows, columns[1:]), tuple(named for _, named in told))]


SIDES = {
    ("test", "after"): ("s2", "unseen {}"),
    ("forget", "before"): ("s3", "forgotten {} before"),
    ("forget", "after"): ("s1", "forgotten {} after"),
}


def _every(items: Sequence[LookInfo]) -> Sequence[LookInfo]:
    """Rows for a table: all where they are few, else some of them and the last."""
    if len(items) <= ROWS_LISTED:
        return items
    last = len(items) - 1
    return [items[round(at * last / (ROWS_LISTED - 1))] for at in range(ROWS_LISTED)]


def _ascent(result: Record, looks: Sequence[LookInfo]) -> list[Figure | None]:
    """Forget share and change of the head against the step, one picture each: two scales on one picture mislead."""
    if len(looks) < 2:
        return []
    x = svg.linear("step", [look.step for look in looks], zero=True)
    rows = [(str(look.step), words.percent(look.forget), words.percent(look.head_change), words.percent(look.test_drop))
            for look in _every(looks)]  # fmt: skip
    numbers = Table("", ("step", "forget", "head change", "held-out drop"), rows, ("step", "forget", "head change"))
    start, end = words.percent(result.start.forget), words.percent(result.end.forget)
    goal = result.target.value
    about = f"The share that is to fall went from {start} to {end} in {result.end.step} steps" + (
        "." if goal is None else f"; the dashed line is the target, {words.percent(goal)}."
    )
    down = _steps(looks, "forget")
    title = words.capital(WHAT[result.scenario])
    level = [] if goal is None else [goal]
    y = svg.linear("share of D_f", [*(value for _, value in down), *level], as_percent=True, zero=True)
    first = Figure(
        title, about, svg.lines(title, about, x, y, [Line("s1", down, dots=len(down) < 30)], level=goal), numbers
    )
    moved, fell = _steps(looks, "head_change"), _steps(looks, "test_drop")
    about = (
        f"{words.capital(words.moving(result))} changed by {words.percent(result.end.head_change)} of "
        f"{'its' if result.scope is None else 'their'} norm"
        + ("." if not fell else f"; accuracy on held-out data fell by {words.percent(result.end.test_drop)}.")
    )
    title = "What it took" if fell else f"Change of {words.moving(result)}"
    y = svg.linear("share" if fell else "‖ΔW‖/‖W‖", [value for _, value in (*moved, *fell)], as_percent=True, zero=True)
    drawn = [Line("s1", moved), *([Line("s2", fell)] if fell else [])]
    legend = (("s1", f"change of {words.moving(result)}"), ("s2", "fall of held-out accuracy")) if fell else ()
    return [first, Figure(title, about, svg.lines(title, about, x, y, drawn), numbers, legend)]


def _people(result: Record, looks: Sequence[LookInfo]) -> list[Figure]:
    """Membership AUC and what it cost against the step."""
    if len(looks) < 2:
        return []
    columns = ("step", "AUC", "similarity", "of unseen people", "fall of unseen mAP")
    rows = [
        (str(look.step), words.number(look.auc), words.number(look.similarity), words.number(look.unseen_similarity),
         words.percent(look.test_drop))
        for look in _every(looks)
    ]  # fmt: skip
    numbers = Table("", columns, rows, columns)
    x = svg.linear("step", [look.step for look in looks], zero=True)
    made, aim = [], result.target.auc
    for title, name, axis, level in (
        ("Membership AUC, forgotten against unseen people", "auc", "AUC", aim),
        ("What it took", "test_drop", "fall of unseen people's mAP", None),
    ):
        points = _steps(looks, name)
        if not points:
            continue
        first, last = words.number(points[0][1]), words.number(points[-1][1])
        about = f"From {first} to {last} in {result.end.step} steps" + (
            "." if level is None else f"; the dashed line is the aim, {words.number(level)}."
        )
        y = svg.linear(axis, [*(value for _, value in points), *([] if level is None else [level])])
        drawn = svg.lines(title, about, x, y, [Line("s1", points, dots=len(points) < 30)], level=level)
        made.append(Figure(title, about, drawn, numbers))
    return made


def _steps(looks: Iterable[LookInfo], name: str) -> list[Point]:
    found = ((look.step, getattr(look, name)) for look in looks)
    return [(step, value) for step, value in found if svg.drawable(step) and svg.drawable(value)]


def _chosen(result: Record, path: Sequence[LookInfo]) -> LookInfo | None:
    return next((look for look in path if look.rho == result.details.get("rho")), None)


def _path_numbers(path: Sequence[LookInfo]) -> Table:
    columns = ("ρ", "held-out drop", "forget", "AUC", "head change")
    rows = [
        (words.number(look.rho), words.percent(look.test_drop), words.percent(look.forget), words.number(look.auc),
         words.percent(look.head_change))
        for look in _every(path)
    ]  # fmt: skip
    return Table("", columns, rows, columns)


def _against_cost(
    result: Record, path: Sequence[LookInfo], name: str, title: str, about: str, level: float | None
) -> Figure | None:
    """One quantity along ρ against what it costs on held-out data; without such data against the change of the head."""
    cost = "test_drop" if any(look.test_drop is not None for look in path) else "head_change"
    axis = "fall of held-out accuracy" if cost == "test_drop" else "change of the head"
    pairs = ((getattr(look, cost), getattr(look, name)) for look in path)
    points = sorted((a, b) for a, b in pairs if svg.drawable(a) and svg.drawable(b))
    if not points:
        return None
    share = name == "forget"
    x = svg.linear(axis, [a for a, _ in points], as_percent=True, zero=True)
    levels = [] if level is None else [level]
    y = svg.linear("share of D_f" if share else "AUC", [*(b for _, b in points), *levels], as_percent=share)
    chosen = _chosen(result, path)
    mark = None if chosen is None else (getattr(chosen, cost), getattr(chosen, name))
    drawn = svg.lines(title, about, x, y, [Line("s1", points, dots=True)], level=level, mark=_whole(mark))
    return Figure(title, about, drawn, _path_numbers(path))


def _whole(point: tuple[float | None, float | None] | None) -> Point | None:
    return None if point is None or point[0] is None or point[1] is None else (point[0], point[1])


def _trade_off(result: Record, path: Sequence[LookInfo]) -> Figure | None:
    goal = result.target.value
    about = "Each point is one strength ρ; the ring is the one that was chosen" + (
        "." if goal is None else f", the dashed line the target, {words.percent(goal)}."
    )
    title = f"{words.capital(WHAT[result.scenario])}, and what it costs"
    return _against_cost(result, path, "forget", title, about, goal)


def _auc_path(result: Record, path: Sequence[LookInfo]) -> Figure | None:
    about = (
        "The same strengths; near 0.5 (dashed) confidence tells D_f from held-out samples no better than a coin does."
    )
    return _against_cost(result, path, "auc", "Membership AUC, and what it costs", about, 0.5)


def _scores(result: Record) -> Figure | None:
    found = result.scores
    if found is None or not found.decades:
        return None
    most = max(1, *(item.count for item in found.decades))
    rows = [Bar(words.decade(item), item.count / most, f"{item.count:,}") for item in found.decades]
    n = result.forget.n
    about = (
        f"{found.negative:,} of {n:,} forget samples have a negative score, which supports forgetting; {found.kept:,} were "
        f"kept. λ / mean F is {words.ratio(found.damping, found.mean_fisher)}."
    )
    numbers = Table("", ("score", "samples"), [(row.name, row.text) for row in rows], ("samples",))
    title = "Influence scores by size"
    return Figure(title, about, svg.bars(title, about, rows[:ROWS_LISTED]), numbers)


SPLITS = {"forget": ("s1", "forget samples"), "test": ("s2", "unseen test samples of the same classes")}


def _confidence(found: Histogram, when: When) -> Figure | None:
    """Shares per bin of D_f and of test, on axes that before and after have in common."""
    series = {item.split: item for item in found.series if item.when == when and any(item.counts)}
    if "forget" not in series:
        return None
    shares = {name: [count / sum(item.counts) for count in item.counts] for name, item in series.items()}
    highest = [max(item.counts) / sum(item.counts) for item in found.series if any(item.counts)]
    title = f"Confidence {when}"
    sizes = " against ".join(f"{sum(series[name].counts):,} {SPLITS[name][1]}" for name in SPLITS if name in series)
    about = f"{sizes}: the more alike the shapes, the less gives membership away."
    x = svg.linear("confidence φ in the label, log-odds", (found.edges[0], found.edges[-1]))
    y = svg.linear("share of the samples", highest, as_percent=True, zero=True)
    drawn = [(SPLITS[name][0], shares[name]) for name in SPLITS if name in shares]
    rows = [
        (f"{low:.6g} to {high:.6g}", *(str(series[name].counts[at]) if name in series else "–" for name in SPLITS))
        for at, (low, high) in enumerate(zip(found.edges, found.edges[1:], strict=False))
        if any(item.counts[at] for item in series.values())
    ]
    numbers = Table("", ("φ", "forget", "test"), rows, ("forget", "test"))
    legend = tuple(SPLITS[name] for name in SPLITS if name in series)
    return Figure(title, about, svg.histogram(title, about, x, y, found.edges, drawn), numbers, legend)


STYLES = {("before", "remembered"): "s2", ("after", "remembered"): "s1", ("after", "over-unlearned"): "s3"}
TAILS = {"remembered": "high confidence", "over-unlearned": "low confidence"}


def _roc(curves: Sequence[RocCurve]) -> Figure | None:
    drawn = [curve for curve in curves if curve.fpr]
    if not drawn:
        return None
    title = "Membership attack, ROC"
    about = (
        "Share of D_f that an attacker picks out at each share of unseen samples picked by mistake, with 95 % bands. On the "
        "dashed diagonal the attack is a guess; far above it at the left it is sure of some samples."
    )
    x = svg.logarithmic("unseen samples picked", min(curve.fpr[0] for curve in drawn))
    y = svg.logarithmic("D_f picked", x.low)
    made, legend, rows = [], [], []
    for curve in drawn:
        style = STYLES.get((curve.when, curve.tail), "s3")
        columns = list(zip(curve.fpr, curve.tpr, curve.low, curve.high, strict=True))
        made.append(Line(style, [(a, b) for a, b, _, _ in columns], [(a, low, high) for a, _, low, high in columns]))
        legend.append((style, f"{curve.when}, by {TAILS[curve.tail]}"))
        rows += [
            (f"{curve.when}, {TAILS[curve.tail]}", words.percent(a), words.percent(b), f"{100 * low:.2f} to {100 * high:.2f}")
            for a, b, low, high in (_nearest(columns, at) for at in (0.001, 0.01, 0.1))
        ]  # fmt: skip
    numbers = Table("", ("curve", "unseen picked", "D_f picked", "95 % interval"), list(dict.fromkeys(rows)))
    drawing = svg.lines(title, about, x, y, made, diagonal=True)
    return Figure(title, about, drawing, numbers, tuple(legend))


def _nearest(columns: Sequence[tuple[float, ...]], rate: float) -> tuple[float, ...]:
    """The point of a curve whose false-positive rate comes nearest."""
    return min(columns, key=lambda column: abs(column[0] - rate))


def _classes(result: Evaluation) -> Figure | None:
    """Accuracy per class on test, else on D_f: before and after, the largest changes where there are many classes."""
    splits = {row.split for row in result.per_class}
    split = "test" if "test" in splits else "forget"
    rows = [
        row for row in result.per_class if row.split == split and words.finite(row.before) and words.finite(row.after)
    ]
    if not rows:
        return None
    shown = rows if len(rows) <= CLASSES_DRAWN else sorted(rows, key=_moved)[:CLASSES_DRAWN]
    which = "Every class" if len(shown) == len(rows) else f"The {len(shown)} classes that changed most, of {len(rows)}"
    about = f"{which}, {split} samples: before (hollow) and after (filled), with the change in points."
    title = f"Accuracy per class, {split}"
    drawn = [Change(row.class_, row.before or 0.0, row.after or 0.0, _points(row)) for row in shown]
    cells = [
        (row.class_, str(row.n), words.percent(row.before), words.percent(row.after), _points(row)) for row in shown
    ]
    columns = ("class", "n", "before", "after", "change")
    return Figure(title, about, svg.changes(title, about, drawn), Table("", columns, cells, columns[1:]))


def _moved(row: ClassRow) -> float:
    return -abs((row.after or 0.0) - (row.before or 0.0))


def _points(row: ClassRow) -> str:
    return words.change("", row.before, row.after).replace("-", "−")
