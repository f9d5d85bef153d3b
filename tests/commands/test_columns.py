"""``--columns`` through the commands: given once, to ``unlearn``, and known to ``evaluate`` from the record."""

import json
from pathlib import Path

import pytest

from imu_cli.cli import main

UNLEARN = ["unlearn", "model.safetensors", "--config", "imu.yaml", "--forget", "f.csv"]


@pytest.mark.usefixtures("one_thread")
def test_evaluate_has_the_columns_from_the_record(job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The forget list of the record is read again with the names that it was read with; another option wins."""
    train = digits / "data" / "train"
    files = sorted(file.relative_to(train) for file in (train / "3").iterdir())[:12]
    Path("f.csv").write_text("picture,digit\n" + "".join(f"{file},3\n" for file in files))
    assert main([*UNLEARN, "-o", "out.safetensors"]) == 2
    assert "has neither a file_name nor an index column in its header (picture, digit)" in capsys.readouterr().err
    assert main([*UNLEARN, "--columns", "file_name=picture,label=digit", "-o", "out.safetensors", "-q"]) in (0, 3)
    record = json.loads(Path("out.record.json").read_text())
    assert record["options"]["columns"] == {"value": "file_name=picture,label=digit", "origin": "flag"}
    assert main(["evaluate", "out.safetensors", "--config", "imu.yaml", "-q"]) == 0
    evaluation = json.loads(Path("out.evaluation.json").read_text())
    assert evaluation["options"]["columns"]["origin"] == "record"
    assert main(["evaluate", "out.safetensors", "--config", "imu.yaml", "--columns", "file_name=name"]) == 2
