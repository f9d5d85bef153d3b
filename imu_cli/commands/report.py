"""``imu report --markdown`` and ``--html``: pages from records, into files that are written together or not at all."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from imu_cli.errors import ImuError
from imu_cli.files import outputs, streams, writing
from imu_cli.records.record import Record
from imu_cli.records.retrieval import Judged
from imu_cli.views import markdown, page
from imu_cli.views.tables import NO_SAMPLES, Table

Samples = Mapping[str, Table]
Page = Callable[[Sequence[Record | Judged], Sequence[str], Samples], str]

PAGES: dict[str, tuple[Page, str]] = {
    "markdown": (markdown.report, markdown.MARK),
    "html": (page.report, page.MARK),
}
"""The page of each form, and the mark by which an earlier one is known."""
STDOUT = "-"


def write(
    results: Sequence[Record | Judged],
    names: Sequence[str],
    wanted: Mapping[str, str | None],
    samples: Samples = NO_SAMPLES,
) -> list[str]:
    """Write each form that is wanted into its file, ``-`` to standard output; what was written is returned.

    Raises:
        ImuError: a file that may not be replaced, or cannot be written; nothing was written.
    """
    targets = {form: file for form, file in wanted.items() if file is not None}
    for form, file in targets.items():
        if file != STDOUT:
            outputs.refuse_foreign(Path(file), PAGES[form][1], f"--{form}")
    places = {file if file == STDOUT else str(Path(file).resolve()) for file in targets.values()}
    if len(places) < len(targets):
        flags = " and ".join(f"--{form}" for form in targets)
        raise ImuError(f"{flags}: name the same file; give each a file of its own")
    texts = {form: PAGES[form][0](results, names, samples) for form in targets}
    files = {Path(file): texts[form] for form, file in targets.items() if file != STDOUT}
    marks = {Path(file): (PAGES[form][1], f"--{form}") for form, file in targets.items() if file != STDOUT}
    with writing.together(
        *files, private=bool(samples), replaced=lambda path: outputs.refuse_foreign(path, *marks[path])
    ) as parts:
        for part, text in zip(parts, files.values(), strict=True):
            part.write_text(text, encoding="utf-8")
    for form, file in targets.items():
        if file == STDOUT:
            streams.to_stdout(texts[form])
    return list(targets.values())
