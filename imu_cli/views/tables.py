"""The tables of a report as plain cells: terminal, Markdown and HTML draw the same ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imu_cli.records.evaluation import ClassRow, Evaluation, Metric
from imu_cli.records.metric_definitions import EVERY
from imu_cli.records.recall import Recall
from imu_cli.records.record import Record
from imu_cli.records.retrieval import Judged, Retrieval
from imu_cli.views import words

LARGE_FAMILY = 4
"""Metrics of one name before the dot from which one line stands for all of them, if they lack the same."""


@dataclass(frozen=True)
class Table:
    """Rows of texts under a title.

    ``numbers`` are columns set to the right, ``whole`` those whose cells are not folded where it is narrow.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


NO_SAMPLES: Mapping[str, Table] = {}
"""Tables of texts by the hash of a forget set: nobody asked for any."""


def outcome(result: Record, title: str = "") -> Table:
    """The few numbers that a run ends with, before and after."""
    return Table(title, ("", "before", "after"), words.outcome(result), ("before", "after"))


def path(result: Record) -> Table:
    """The trade-off along ρ of a matched run: what each strength forgets and costs; the chosen one is marked."""
    columns = ("", "ρ", "forget", "held-out drop", "AUC", "head change")
    rows = [
        (
            "→" if look.rho == result.details.get("rho") else "",
            words.number(look.rho),
            words.percent(look.forget),
            words.percent(look.test_drop),
            words.number(look.auc),
            words.percent(look.head_change),
        )
        for look in result.trajectory
        if look.rho is not None
    ]
    return Table("Along ρ: the less, the nearer the margins come to those of unseen data", columns, rows, columns[1:])


def _measured_row(metric: Metric) -> tuple[str, ...]:
    return (
        metric.name,
        words.shown(metric.name, metric.before),
        words.shown(metric.name, metric.value),
        words.interval(metric),
        "" if metric.n is None else str(metric.n),
        words.goal(metric),
        words.meaning(metric),
    )


def measured(metrics: Sequence[Metric]) -> Table:
    """The metrics that were measured: before, after, interval, n and target."""
    columns = ("metric", "before", "after", "95 % interval", "n", "target", "what it is")
    rows = [_measured_row(metric) for metric in metrics if metric.missing is None]
    return Table("Measured", columns, rows, ("before", "after", "n"), ("metric", "before", "after"))


def missing(metrics: Sequence[Metric]) -> Table:
    """The metrics that were not measured, each with what it needs; a family that lacks one thing on one line."""
    families: dict[str, list[Metric]] = {}
    for metric in metrics:
        families.setdefault(metric.name.partition(".")[0], []).append(metric)
    rows: list[tuple[str, str]] = []
    for name, family in families.items():
        reasons = {words.missing(metric) for metric in family}
        if len(family) >= LARGE_FAMILY and len(reasons) == 1 and family[0].missing is not None:
            rows.append((f"{name}.* ({len(family)} metrics)", reasons.pop()))
        else:
            rows += [(metric.name, words.missing(metric)) for metric in family if metric.missing is not None]
    return Table("Not measured", ("metric", "why"), rows)


def requirements(result: Judged) -> Table:
    """The verdict on every requirement, and why."""
    rows = [
        (item.verdict, item.text, words.number(item.compared), "; ".join(filter(None, [item.reason, item.warning])))
        for item in result.requirements
    ]
    return Table("Requirements", ("verdict", "requirement", "compared", "why"), rows, ("compared",))


def per_class(result: Evaluation, most: int | None = None) -> Table:
    """Accuracy of every class in every split; of more than ``most`` those that changed most, and how many there are."""
    shown, title = result.per_class, "Accuracy per class"
    if most is not None and len(shown) > most:
        changed = sorted((row for row in shown if _changed(row)), key=lambda row: -_changed(row))
        few = (
            f"the {most} most changed of {len(changed)} that changed"
            if len(changed) > most
            else f"the {len(changed)} that changed"
        )
        title += f": {few}, of {len(shown)}; all are in JSON, CSV, HTML and Markdown"
        shown = changed[:most]
    rows = [(row.class_, row.split, str(row.n), words.percent(row.before), words.percent(row.after)) for row in shown]
    return Table(title, ("class", "split", "n", "before", "after"), rows, ("n", "before", "after"))


def _changed(row: ClassRow) -> float:
    """How far a class moved; without the original, how far it is from all right."""
    after = row.after or 0.0
    return abs((1.0 if row.before is None else row.before) - after)


def per_part(result: Evaluation) -> Table:
    """Results on the forget samples of each id or group, where they were asked for."""
    rows = [
        (
            row.name, str(row.n), words.percent(row.before), words.percent(row.after), words.percent(row.confidence),
            words.number(row.auc),
            "" if row.auc_interval is None else f"{row.auc_interval.low:.3f} to {row.auc_interval.high:.3f}",
        )
        for row in result.per_part
    ]  # fmt: skip
    columns = (result.by or "part", "n", "before", "after", "confidence", "AUC", "95 % interval")
    return Table(f"Forget accuracy per {result.by or 'part'}", columns, rows, columns[1:6])


def per_person(result: Retrieval) -> Table:
    """Results on the forgotten images of each id or group, where they were asked for."""
    rows = [
        (row.name, str(row.n), words.percent(row.before), words.percent(row.after), words.number(row.similarity), words.number(row.auc))
        for row in result.per_person
    ]  # fmt: skip
    columns = (result.by or "person", "n", "mAP before", "mAP after", "similarity", "AUC")
    return Table(f"Per {result.by or 'person'}", columns, rows, columns[1:])


def per_record(result: Recall) -> Table:
    """Results on the forgotten records of each id or group, where they were asked for."""
    rows = [
        (
            row.name, str(row.n), words.number(row.before), words.number(row.after), words.number(row.probability), words.number(row.auc),
            "" if row.auc_interval is None else f"{row.auc_interval.low:.3f} to {row.auc_interval.high:.3f}",
        )
        for row in result.per_record
    ]  # fmt: skip
    columns = (result.by or "part", "n", "extraction before", "extraction after", "probability", "AUC", "95 % interval")
    return Table(f"Per {result.by or 'part'}", columns, rows, columns[1:6])


def _value(result: Judged, name: str) -> float | None:
    return next((item.value for item in result.metrics if item.name == name and item.missing is None), None)


def comparison(results: Sequence[Judged], names: Sequence[str]) -> Table:
    """Evaluations side by side, with the difference of the last from the first; rows that any of them has."""
    columns = ("metric", *names, "last − first")
    rows = []
    for name in dict.fromkeys([*EVERY, *(metric.name for item in results for metric in item.metrics)]):
        values = [_value(item, name) for item in results]
        if any(value is not None for value in values):
            cells = (words.shown(name, value) for value in values)
            rows.append((name, *cells, words.change(name, values[0], values[-1])))
    return Table("Side by side", columns, rows, columns[1:], ("metric",))
