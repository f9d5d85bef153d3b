"""Results for programs: JSON as the files hold it, CSV that any reader gets back."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from imu_cli.models.headers import Inspection
from imu_cli.records.evaluation import Evaluation
from imu_cli.records.influence import Influence
from imu_cli.records.json_files import dump, dumped
from imu_cli.records.parts import Model
from imu_cli.records.record import Record
from imu_cli.records.retrieval import Judged
from imu_cli.records.ties import Ties
from imu_cli.records.token_influence import TokenInfluence


def rows_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """CSV, line by line, with a header."""
    return (_csv_line(row) for row in chain([header], rows))


def _csv_line(row: Sequence[object]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(row)  # so that a lone carriage return in a name is quoted too
    return out.getvalue().removesuffix("\r\n") + "\n"


def _plain(value: float | None) -> object:
    return "" if value is None or not math.isfinite(value) else repr(float(value))


def influence_csv(result: Influence | Ties | TokenInfluence, *, tokens: bool = False) -> Iterator[str]:
    """One line a forget sample, or with ``tokens`` one a token of its completion."""
    if isinstance(result, TokenInfluence):
        return _by_token(result) if tokens else _by_record(result)
    if isinstance(result, Ties):
        header = ["path", "person", "pairs", "similarity", "excess"]
        cells = ([row.path, row.person, row.pairs, _plain(row.similarity), _plain(row.excess)] for row in result.rows)
        return rows_csv(header, cells)
    header = ["id", "path", "label", "score", "weight", "confidence"]
    return rows_csv(header, ([getattr(row, name) for name in header] for row in result.rows))


def _by_record(result: TokenInfluence) -> Iterator[str]:
    header = ["id", "path", "tokens", "score", "probability", "exact"]
    rows = ([row.id, row.path, len(row.scores), row.score, row.probability, row.exact] for row in result.rows)
    return rows_csv(header, rows)


def _by_token(result: TokenInfluence) -> Iterator[str]:
    header = ["id", "path", "token", "score", "probability"]
    rows = (
        [row.id, row.path, number, score, probability]
        for row in result.rows
        for number, (score, probability) in enumerate(zip(row.scores, row.probabilities, strict=True), 1)
    )
    return rows_csv(header, rows)


def evaluation_csv(results: Sequence[Judged], names: Sequence[str]) -> Iterator[str]:
    """One line a metric, then one for the accuracy of each class in each split, named ``SPLIT.class_accuracy[CLASS]``."""
    header = ["model", "metric", "before", "after", "low", "high", "method", "n", "target", "missing"]
    rows: list[list[object]] = [
        [name, m.name, _plain(m.before), _plain(m.value), _plain(m.interval.low if m.interval else None),
         _plain(m.interval.high if m.interval else None), m.interval.method if m.interval else "", m.n or "",
         _plain(m.target), m.missing or ""]
        for result, name in zip(results, names, strict=True) for m in result.metrics
    ]  # fmt: skip
    rows += [
        [
            name,
            f"{row.split}.class_accuracy[{row.class_}]",
            _plain(row.before),
            _plain(row.after),
            "",
            "",
            "",
            row.n,
            "",
            "",
        ]
        for result, name in zip(results, names, strict=True)
        for row in (result.per_class if isinstance(result, Evaluation) else ())
    ]
    return rows_csv(header, rows)


def record_csv(result: Record) -> Iterator[str]:
    """One line a look along the way."""
    header = [
        "step",
        "fraction",
        "loss",
        "forget",
        "head_change",
        "test_drop",
        "rho",
        "auc",
        "margin_error",
        "similarity",
        "unseen_similarity",
        "map",
    ]
    return rows_csv(header, ([_plain(getattr(look, name)) for name in header] for look in result.trajectory))


def inspection_csv(result: Inspection) -> Iterator[str]:
    """One line a tensor."""
    header = ["name", "dtype", "shape", "bytes", "file"]
    rows = ([item.name, item.dtype, "x".join(map(str, item.shape)), item.bytes, item.file] for item in result.tensors)
    return rows_csv(header, rows)


def as_json(results: Sequence[Model]) -> Iterator[str]:
    """One result as its JSON object, several as an array; in pieces."""
    if len(results) == 1:
        yield from dumped(results[0])
        return
    for number, result in enumerate(results):
        yield (",\n" if number else "[\n") + dump(result).rstrip()
    yield "\n]\n"
