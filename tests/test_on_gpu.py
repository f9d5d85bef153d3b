"""The script for a machine with a GPU runs where there is none: it says so, and each of its parts can be rehearsed."""

import importlib.util
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks/on_gpu.py"


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("on_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "on_gpu", module)
    spec.loader.exec_module(module)
    return module


def ran(*options: str, out: Path) -> subprocess.CompletedProcess[str]:
    """The script on a machine without a GPU."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OUT": str(out)}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False, env=environment
    )


def test_without_a_gpu_it_says_what_it_did_not_do(tmp_path: Path) -> None:
    """Exit code 0, every part named, nothing written."""
    done = ran(out=tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("no GPU: nothing of this was run: tests, commands, models, memory, floor")
    assert not (tmp_path / "out").exists()


def test_the_suite_runs_with_a_report_and_what_fails_is_run_again(tmp_path: Path) -> None:
    """A JUnit file of all processes, the device handed on, failures named as pytest takes them; other parts go on."""
    tests = tmp_path / "test_made.py"
    body = 'import os\n\n\ndef test_device():\n    assert os.environ["IMU_DEVICE"] == "cpu"\n\n\ndef test_bad():\n    assert 1 == 2\n'
    tests.write_text(body)
    (tmp_path / "test_broken.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    out = tmp_path / "out"
    done = ran("--device", "cpu", "--only", "tests", "again", "--tests", str(tmp_path), out=out)
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads((out / "results.json").read_text())
    assert (found["tests"]["tests"], found["tests"]["failures"], found["tests"]["errors"]) == (3, 1, 1)
    assert [item["test"].rpartition("/")[2] for item in found["tests"]["failed"] if "1 == 2" in item["said"]] == [
        "test_made.py::test_bad"
    ]
    assert found["again"]["failures"] == 1
    assert len(list(ET.parse(out / "junit.xml").iter("testcase"))) == 3
    assert "not right: tests" in (out / "log.txt").read_text()


def test_a_file_that_never_reports_is_an_error(on_gpu: Any, tmp_path: Path) -> None:
    """A process that was killed leaves no report: its file counts as one error, not as nothing."""
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(9)"], text=True)
    process.wait()
    suites = on_gpu.collected(on_gpu.Job(Path("tests/test_x.py"), tmp_path / "none.xml", process))
    assert on_gpu.totals(suites) == {"tests": 1, "failures": 0, "errors": 1, "skipped": 0}
    assert on_gpu.failed(suites) == [
        {"test": "tests/test_x.py::(none was reported)", "said": "pytest ended with exit code 9"}
    ]


def test_what_is_not_right_is_the_exit_code(on_gpu: Any) -> None:
    """A check that failed, a part that was ended, a failed test."""
    assert (
        on_gpu.not_right({"models": {"a": {"right": True}}, "floor": {"a": {"ratio": 1.0}}, "tests": {"failures": 0}})
        == []
    )
    wrong = {"models": {"a": {"right": False}}, "floor": {"ended": {"code": -9}}, "tests": {"errors": 1}}
    assert on_gpu.not_right(wrong) == ["tests", "models", "floor"]


@pytest.mark.slow
def test_every_other_part_can_be_rehearsed(tmp_path: Path) -> None:
    """Commands, models, memory and the floor on a CPU: every check passes."""
    done = ran("--device", "cpu", "--only", "commands", "models", "memory", "floor", "--minutes", "20", out=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert all(value["right"] for name in ("commands", "models", "memory") for value in found[name].values())
    assert {name.split(",")[0] for name in found["floor"]} == {"ResNet-18", "ViT"}
    assert all(value["ratio"] > 0.5 for value in found["floor"].values())
    assert str(tmp_path) not in (tmp_path / "results.json").read_text()
