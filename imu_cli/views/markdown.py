"""A report as Markdown, which a CI step can append to its summary or a pull request."""

from collections.abc import Iterable, Mapping, Sequence

from imu_cli.files import streams
from imu_cli.records.evaluation import Evaluation
from imu_cli.records.recall import Recall
from imu_cli.records.record import Record
from imu_cli.records.retrieval import Judged, Retrieval
from imu_cli.views import tables, words
from imu_cli.views.tables import NO_SAMPLES, Table

MARK = "<!-- imu report -->"
"""First line of every report: by it an earlier one is known and may be replaced."""
SPECIAL = "\\`*_[]|~<>&@#$"
BOLD = {"pass": "pass", "fail": "**FAIL**", "inconclusive": "**inconclusive**"}


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line: names come from strangers and become no link, image or HTML.

    Special characters become numeric entities, which no reader takes for markup, not even for the end of a cell.
    """
    plain = "".join(f"&#{ord(c)};" if c in SPECIAL else c for c in " ".join(streams.plain(text).split()))
    return plain.replace("://", "&#58;//").replace("www.", "www&#46;")


def table(made: Table, heading: str = "###") -> str:
    """A table under its heading; empty where it has no rows."""
    if not made.rows:
        return ""
    marks = ("---:" if column in made.numbers else "---" for column in made.columns)
    lines = [_row(escaped(column) or " " for column in made.columns), _row(marks)]
    for row in made.rows:
        cells = (
            BOLD[cell] if column == "verdict" else escaped(cell) for column, cell in zip(made.columns, row, strict=True)
        )
        lines.append(_row(cells))
    title = f"{heading} {made.title}\n\n" if made.title else ""
    return title + "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _folded(title: str, body: str) -> str:
    """A part that is closed until it is asked for; readers without HTML show it open."""
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>" if body else ""


def _facts(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"* {escaped(name)}: {escaped(value)}" for name, value in pairs)


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def record(result: Record) -> str:
    """What an unlearning did."""
    result = words.printable(result)
    return _joined(
        f"## Unlearning: {escaped(result.after.path)}",
        f"**{escaped(words.verdict(result))}**",
        table(tables.outcome(result)),
        table(tables.path(result)),
        _folded("How it was done", _facts([*words.run_facts(result), *(("note", note) for note in result.notes)])),
        f"> {escaped(result.limit)}",
    )


def _summary(text: str) -> str:
    warned, rest = words.warning(text)
    return f"**{escaped(warned)}** {escaped(rest)}" if warned else escaped(rest)


def _measured(result: Judged) -> str:
    """How the page of an evaluation of any kind begins: the verdicts first, then what was measured and what was not."""
    return _joined(
        f"## Evaluation: {escaped(result.model.path)}",
        _summary(result.summary),
        table(tables.requirements(result)),
        table(tables.measured(result.metrics)),
        table(tables.missing(result.metrics)),
    )


def evaluation(result: Evaluation) -> str:
    """What was measured of a model, what was not, and the verdicts first."""
    result = words.printable(result)
    return _joined(
        _measured(result),
        table(tables.per_part(result)),
        _folded(
            "Accuracy per class, and how it was measured",
            _joined(
                table(tables.per_class(result)),
                _facts([*words.evaluation_facts(result), *(("note", note) for note in result.notes)]),
            ),
        ),
        f"> {escaped(result.limit)}",
    )


def retrieval(result: Retrieval) -> str:
    """What was measured of an embedding model, what was not, and the verdicts first."""
    result = words.printable(result)
    return _joined(
        _measured(result),
        table(tables.per_person(result)),
        _folded(
            "How it was measured", _facts([*words.retrieval_facts(result), *(("note", note) for note in result.notes)])
        ),
        f"> {escaped(result.limit)}",
    )


def recall(result: Recall) -> str:
    """What was measured of a language model, what was not, and the verdicts first."""
    result = words.printable(result)
    return _joined(
        _measured(result),
        table(tables.per_record(result)),
        _folded(
            "How it was measured", _facts([*words.recall_facts(result), *(("note", note) for note in result.notes)])
        ),
        f"> {escaped(result.limit)}",
    )


def _one(result: Record | Judged) -> str:
    if isinstance(result, Record):
        return record(result)
    if isinstance(result, Recall):
        return recall(result)
    return evaluation(result) if isinstance(result, Evaluation) else retrieval(result)


def report(results: Sequence[Record | Judged], names: Sequence[str], samples: Mapping[str, Table] = NO_SAMPLES) -> str:
    """Records and evaluations one after the other, evaluations also side by side where there are several."""
    parts = [_one(item) for item in results]
    parts += [table(item) for item in samples.values()]
    evaluations = [(item, name) for item, name in zip(results, names, strict=True) if not isinstance(item, Record)]
    if len(evaluations) > 1:
        made = tables.comparison([words.printable(item) for item, _ in evaluations], [name for _, name in evaluations])
        parts.append(table(made, "##"))
    return _joined(MARK, *parts) + "\n"
