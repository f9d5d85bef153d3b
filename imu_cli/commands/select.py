"""``imu select``: a list of the rows of a data set, which needs neither a model nor torch's start-up."""

from collections.abc import Sequence
from pathlib import Path

from imu_cli.files import outputs, streams
from imu_cli.samples import csv_lines, manifest
from imu_cli.samples.column_names import ColumnNames
from imu_cli.samples.selectors import select_rows


def run(selectors: Sequence[str], data: str, output: str, force: bool, columns: str | None = None) -> None:
    """Write the rows of a data set that the selectors name as a manifest, to a file or stdout.

    Raises:
        ImuError: nothing selected, the file exists, or ``columns`` (``--columns``) name none.
    """
    if output != "-":
        outputs.refuse_output(Path(output), None, force)
    samples = manifest.open_source(data, "data", names=ColumnNames.parse(columns))
    rows = select_rows(samples, list(selectors))
    if output == "-":
        streams.to_stdout(csv_lines.manifest_text(samples, rows))
    else:
        csv_lines.write_manifest(samples, rows, Path(output), force=force)
