"""A run that ends before any of its changes of the file system, killed or asked to stop: the next one succeeds, and nothing is left.

Each command is run once to count its changes; then once for each of them, ended right before it; then again as a user would.
The short form takes some of the changes, the long one (``slow``) all of them with three signals.
"""

import hashlib
import json
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Ended, Run, Server

STOPS = (signal.SIGTERM, signal.SIGINT)
ON = ["--config", "imu.yaml"]
UNLEARN = ["unlearn", "model.safetensors", *ON, "--forget", "class=3", "-o", "out.safetensors"]
FOLDER = ["unlearn", "net", *ON, "--forget", "class=3", "-o", "made"]
EVALUATE = ["evaluate", "out.safetensors", *ON, "--require", "forget.accuracy<=0.9", "--junit", "j.xml"]
FEATURES = ["features", "model.safetensors", *ON, "--batch-size", "16", "-o", "f.safetensors"]


@dataclass(frozen=True)
class Case:
    """A command, what is run before it, what it leaves, and how it is given again where its outputs stand already."""

    argv: Sequence[str]
    first: Sequence[Sequence[str]] = ()
    makes: Sequence[str] = ()
    again: Sequence[str] = ("--force",)


CASES = {
    "unlearn": Case(UNLEARN, makes=("out.safetensors", "out.record.json")),
    "unlearn over": Case(
        [*UNLEARN, "--force", "--damping", "0.5"], (UNLEARN,), ("out.safetensors", "out.record.json"), again=()
    ),
    "evaluate": Case(EVALUATE, (UNLEARN,), ("out.safetensors", "out.record.json", "out.evaluation.json", "j.xml"), ()),
    "evaluate over": Case(
        EVALUATE, (UNLEARN, EVALUATE), ("out.safetensors", "out.record.json", "out.evaluation.json", "j.xml"), ()
    ),
    "features": Case(FEATURES, makes=("f.safetensors",)),
    "features over": Case([*FEATURES, "--force"], (FEATURES,), ("f.safetensors",), again=()),
    "folder": Case(FOLDER, makes=("made",)),
    "folder over": Case([*FOLDER, "--force"], (FOLDER,), ("made",), again=()),
    "features in the cache": Case(
        [*UNLEARN, "--cache-features", "--max-memory", "1KB"], makes=("out.safetensors", "out.record.json")
    ),
}  # fmt: skip
INPUTS = {"model.safetensors", "model.py", "imu.yaml", "net"}


@dataclass(frozen=True)
class Place:
    """A fresh copy of the job, with its cache, after what comes before the command."""

    server: Server
    job: Path

    def run(self, argv: Sequence[str], before: int = 0, number: int = 0) -> Ended:
        """One run, ended before one of its changes, if so wanted."""
        [ended] = self.server.run(Run(argv, str(self.job), str(self.job) + ".cache", before, number))
        return ended


def _copied(server: Server, start: Path, to: Path) -> Place:
    shutil.copytree(start, to)
    cache = Path(f"{start}.cache")
    if cache.exists():
        shutil.copytree(cache, f"{to}.cache")
    return Place(server, to)


def _gone(place: Place) -> None:
    shutil.rmtree(place.job)
    shutil.rmtree(f"{place.job}.cache", ignore_errors=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _refuse_torn(job: Path, name: str, record: str) -> None:
    """A model and its record stand together, and the record is this model's."""
    assert (job / name).exists() == (job / record).exists()
    if (job / name).exists():
        assert json.loads((job / record).read_text())["after"]["sha256"] == _sha256(job / name)


def _check(case: Case, place: Place, said: str) -> None:
    """Everything that the command makes is there and whole, and nothing else is."""
    assert {path.name for path in place.job.iterdir()} == {*INPUTS, *case.makes}, said
    _refuse_torn(place.job, "out.safetensors", "out.record.json")
    if "made" in case.makes:
        assert {path.name for path in (place.job / "made").iterdir()} == {
            "model.safetensors", "model.record.json", "README.md",
        }  # fmt: skip
        _refuse_torn(place.job / "made", "model.safetensors", "model.record.json")
    cache = Path(f"{place.job}.cache")
    names = sorted(path.name for path in cache.iterdir()) if cache.exists() else []
    assert all(name.startswith(("scores-", "features-")) for name in names), (said, names)
    assert len({Path(name).stem for name in names}) * 2 == len(names), (said, names)


def _ended(case: Case, place: Place, before: int, number: int) -> None:
    """One run that ends before a change, and the next one."""
    first = place.run(case.argv, before, number)
    said = f"{case.argv}: before change {before}, signal {number}: {first}"
    whole = all((place.job / name).exists() for name in case.makes)
    if number == signal.SIGKILL:
        assert first.code == -number, said
    else:
        assert first.code == 128 + number, said
        assert "Traceback" not in first.err, said
        told = "written before that, whole: " in first.err
        assert told or first.err.endswith("no output was written\n"), said
        if told:
            _check(case, place, said)
        if not told and not case.first:
            assert not any((place.job / name).exists() for name in case.makes), said
        left = {path.name for path in place.job.iterdir()} - INPUTS - set(case.makes)
        assert left <= {"f.safetensors.parts"}, said
    second = place.run(case.argv)
    if second.code == 2 and whole and "exists" in second.err:
        # All was in place; what was not yet tidied is, and the user is told what to do, and does it.
        _check(case, place, said)
        second = place.run([*case.argv, *case.again])
    assert second.code == 0, (said, second)
    _check(case, place, said)


def _job(server: Server, small: Path, folder: Path, case: Case) -> tuple[Path, int]:
    """What every case starts from, and how many changes the command makes."""
    start = _copied(server, small, folder / "start")
    for argv in case.first:
        done = start.run(argv)
        assert done.code == 0, done
    trial = _copied(server, start.job, folder / "trial")
    done = trial.run(case.argv)
    assert done.code == 0, done
    _check(case, trial, "not ended")
    return start.job, done.changes


def _every(server: Server, small: Path, folder: Path, name: str, taken: slice, numbers: Sequence[int]) -> int:
    case = CASES[name]
    start, changes = _job(server, small, folder, case)
    assert changes > 15
    tried = 0
    for before in range(1, changes + 1)[taken]:
        for number in numbers:
            place = _copied(server, start, folder / "case")
            _ended(case, place, before, number)
            _gone(place)
            tried += 1
    return tried


@pytest.mark.parametrize(("name", "step"), [("unlearn over", 8), ("folder over", 14), ("features", 14)])
def test_killed_before_some_changes(server: Server, small: Path, tmp_path: Path, name: str, step: int) -> None:
    """SIGKILL, as of a machine that runs out of memory: a few of the changes, those at the end, where outputs move, among them."""
    assert _every(server, small, tmp_path, name, slice(-4, None, -step), [signal.SIGKILL]) >= 3


def test_stopped_before_some_changes(server: Server, small: Path, tmp_path: Path) -> None:
    """SIGTERM and Ctrl-C: the exit code that is documented, and nothing left but a pair that is whole and named."""
    assert _every(server, small, tmp_path, "unlearn", slice(30, None, 14), STOPS) >= 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_killed_or_stopped_before_every_change(server: Server, small: Path, tmp_path: Path, name: str) -> None:
    """Every change of every command that writes, with each signal."""
    assert _every(server, small, tmp_path, name, slice(None), [signal.SIGKILL, *STOPS]) > 45


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_that_is_killed_over_and_over_ends_well(server: Server, small: Path, tmp_path: Path) -> None:
    """What recovers is killed too, before each of its changes: no order of deaths leaves anything."""
    case = CASES["unlearn over"]
    start, changes = _job(server, small, tmp_path, case)
    for before in range(changes - 14, changes + 1, 2):
        for later in range(1, 13):
            place = _copied(server, start, tmp_path / "case")
            place.run(case.argv, before, signal.SIGKILL)
            place.run(case.argv, later, signal.SIGKILL)
            _ended(case, place, later + 1, signal.SIGKILL)
            _gone(place)
