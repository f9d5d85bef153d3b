"""``imu report --samples N``: the texts themselves, read again from the list and the data that a record names.

No record and no other report holds a text: they are personal data, shown to whoever asks for them, by this option or by
``imu influence --images``.
"""

from collections.abc import Sequence
from pathlib import Path

from imu_cli.commands import answers
from imu_cli.errors import ImuError
from imu_cli.files import paths, streams
from imu_cli.models.layout import file_hash
from imu_cli.records.evaluation import Evaluation
from imu_cli.records.recall import Recall
from imu_cli.records.record import Record
from imu_cli.records.retrieval import Judged, Retrieval
from imu_cli.samples.classes import ClassNames
from imu_cli.samples.column_names import ColumnNames
from imu_cli.samples.dataset import TEXTS, WORDS
from imu_cli.samples.forget import ForgetSet
from imu_cli.samples.manifest import load_forget, open_source
from imu_cli.samples.texts import sentences
from imu_cli.views.tables import Table

LONGEST = 2_000
"""Characters of a text that are shown."""
TITLE = "Forget samples, which are personal data: see them, then delete this"


def tables_of(results: Sequence[Record | Judged], folders: Sequence[Path], count: int) -> dict[str, Table]:
    """The first forget samples of each result with their texts, by the hash of its forget set.

    Raises:
        ImuError: a list or data set that is gone or another than the record's, or holds no texts.
    """
    found: dict[str, Table] = {}
    for result, folder in zip(results, folders, strict=True):
        if isinstance(result, Recall):
            found[result.forget.sha256] = _answers(result, folder, count)
            continue
        if isinstance(result, Record) and result.scenario == "record":
            if not any(isinstance(other, Recall) and other.forget.sha256 == result.forget.sha256 for other in results):
                raise ImuError(
                    "--samples: answers stand beside an evaluation; name the .evaluation.json of imu evaluate --samples N too"
                )
            continue
        if isinstance(result, Retrieval):
            raise ImuError("--samples: shows texts; of people, imu evaluate --samples makes a page")
        if result.forget.sha256 not in found:
            found[result.forget.sha256] = _table(_listed(result, folder), result, count)
    return found


def _listed(result: Record | Evaluation, folder: Path) -> ForgetSet:
    """The forget set that a result was made with, from the files that it names."""
    said = result.forget
    if said.given == ["-"]:
        raise ImuError("--samples: the forget list came from standard input and is gone")
    columns = result.options["columns"].value if "columns" in result.options else None
    names = ColumnNames.parse(columns)
    data = open_source(paths.placed(said.data, "data", folder), "data", names=names) if said.data else None
    classes = tuple(result.classes) if result.classes else None
    made = load_forget(
        paths.placed(said.given, "forget", folder), data, said.label, ClassNames(result.head.classes, classes, "record"),
        None, names,
    )  # fmt: skip
    if made.samples.kind not in (TEXTS, WORDS):
        raise ImuError("--samples: shows texts; of images, imu influence --images makes a page")
    if made.sha256 != said.sha256:
        raise ImuError(
            "--samples: the forget list or its data are not those that the record was made with (names, labels or contents differ)"
        )
    return made


def _answers(result: Recall, folder: Path, count: int) -> Table:
    """Forgotten records with what was answered before and after, side by side, as imu evaluate --samples wrote them."""
    if result.answers is None:
        raise ImuError(
            "--samples: this evaluation has no answers beside it; run imu evaluate --samples N, and then this again"
        )
    path = Path(paths.placed(result.answers.path, "file", folder))
    if not path.is_file():
        raise ImuError(f"--samples: {path} is gone; run imu evaluate --samples N again")
    if file_hash(path) != result.answers.sha256:
        raise ImuError(
            f"--samples: {path} is not what this evaluation was written with; run imu evaluate --samples N again"
        )
    given = answers.read(path)
    models = [name for name in answers.MODELS.values() if any(name in one.answers for one in given)]
    rows = [
        tuple(
            streams.plain(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")
            for text in (one.sample, one.asked, one.truth, *(one.answers.get(name, "") for name in models))
        )
        for one in given[:count]
    ]
    return Table(f"{TITLE} ({len(rows)} of {result.forget.n})", ("sample", "asked", "true answer", *models), rows)


def _table(forget: ForgetSet, result: Record | Evaluation, count: int) -> Table:
    samples, names = forget.samples, result.classes
    rows = []
    for row in range(min(count, len(samples))):
        shown = sentences.as_text(samples.read(row))
        more = "…" if len(shown) > LONGEST else ""
        label = samples.labels[row]
        cells = (samples.names[row], names[label] if names else str(label), shown[:LONGEST] + more)
        rows.append(tuple(streams.plain(cell) for cell in cells))
    return Table(f"{TITLE} ({len(rows)} of {len(samples)})", ("sample", "label", "text"), rows)
