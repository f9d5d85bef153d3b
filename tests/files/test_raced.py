"""Several processes on one output and one cache at once: each ends with what was documented, and what stands is one run's, whole."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from harness import Ended, Run, Server
from safetensors import safe_open

ON = ["--config", "imu.yaml"]
INPUTS = {"model.safetensors", "model.py", "imu.yaml", "net"}


def _unlearn(label: int, *more: str) -> list[str]:
    return ["unlearn", "model.safetensors", *ON, "--forget", f"class={label}", "-o", "out.safetensors", *more]


def _together(server: Server, job: Path, *commands: list[str]) -> list[Ended]:
    return server.run(*(Run(argv, str(job), f"{job}.cache") for argv in commands))


def _clean(job: Path, *made: str) -> None:
    """The outputs, the inputs, and a cache of whole entries: nothing else."""
    assert {path.name for path in job.iterdir()} == INPUTS | set(made)
    names = sorted(path.name for path in Path(f"{job}.cache").iterdir())
    assert names
    assert all(name.startswith("scores-") for name in names)
    assert len({Path(name).stem for name in names}) * 2 == len(names)


def _pair(job: Path, name: str = "out") -> str:
    """What the record says was forgotten; it is the record of the model that stands beside it."""
    record = json.loads((job / f"{name}.record.json").read_text())
    assert record["after"]["sha256"] == hashlib.sha256((job / f"{name}.safetensors").read_bytes()).hexdigest()
    return str(record["forget"]["given"][0])


def _race_without_force(server: Server, job: Path, count: int) -> None:
    done = _together(server, job, *(_unlearn(label) for label in range(count)))
    assert sorted(one.code for one in done) == [0] + [2] * (count - 1), done
    (winner,) = (label for label, one in enumerate(done) if one.code == 0)
    assert all("exists" in one.err and "Traceback" not in one.err for one in done if one.code == 2), done
    assert _pair(job) == f"class={winner}"
    _clean(job, "out.safetensors", "out.record.json")


def _race_with_force(server: Server, job: Path, count: int) -> None:
    done = _together(server, job, *(_unlearn(label, "--force") for label in range(count)))
    assert [one.code for one in done] == [0] * count, done
    assert _pair(job) in {f"class={label}" for label in range(count)}
    _clean(job, "out.safetensors", "out.record.json")


def _race_for_features(server: Server, job: Path, count: int) -> None:
    argv = ["features", "model.safetensors", *ON, "--batch-size", "8", "-o", "f.safetensors", "--force"]
    done = _together(server, job, *([argv] * count))
    codes = [one.code for one in done]
    assert 0 in codes, done
    assert set(codes) <= {0, 2}, done
    assert all("another run is writing it" in one.err for one in done if one.code == 2), done
    with safe_open(job / "f.safetensors", "np") as file:
        assert file.get_slice("features").get_shape()[0] == 80
    assert {path.name for path in job.iterdir()} == INPUTS | {"f.safetensors"}


def _race_for_a_folder(server: Server, job: Path, count: int) -> None:
    commands = (["unlearn", "net", *ON, "--forget", f"class={label}", "-o", "made"] for label in range(count))
    done = _together(server, job, *commands)
    assert sorted(one.code for one in done) == [0] + [2] * (count - 1), done
    assert all("exists" in one.err and "Traceback" not in one.err for one in done if one.code == 2), done
    _pair(job / "made", "model")
    _clean(job, "made")


def _race_of_readers(server: Server, job: Path, count: int) -> None:
    """One entry of the cache wanted by all; one of them removes what is there, again and again."""
    score = ["influence", "model.safetensors", *ON, "--forget", "class=3", "--format", "json"]
    done = _together(server, job, *([score] * (count - 1)), ["cache", "rm", "--all"])
    assert [one.code for one in done] == [0] * count, done
    rows = [json.loads(one.out)["rows"] for one in done[:-1]]
    assert all(row == rows[0] for row in rows)
    [found] = _together(server, job, ["cache", "verify"])
    assert found.code == 0, found


RACES = {
    "without --force": _race_without_force, "with --force": _race_with_force, "features": _race_for_features,
    "a folder": _race_for_a_folder, "one entry of the cache": _race_of_readers,
}  # fmt: skip


@pytest.mark.parametrize("name", RACES)
def test_three_at_once(server: Server, small: Path, tmp_path: Path, name: str) -> None:
    """Three processes that start together."""
    shutil.copytree(small, tmp_path / "job")
    RACES[name](server, tmp_path / "job", 3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("name", RACES)
def test_many_races(server: Server, small: Path, tmp_path: Path, name: str, count: int) -> None:
    """Two to four processes, over and over: who comes first is chance."""
    for number in range(8):
        job = tmp_path / f"job {number}"
        shutil.copytree(small, job)
        RACES[name](server, job, count)
        shutil.rmtree(job)
        shutil.rmtree(f"{job}.cache", ignore_errors=True)


def test_what_another_program_put_there_meanwhile_stays(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that comes into being while we work is nobody's to replace without --force, and our record does not appear."""
    from imu_cli.cli import main
    from imu_cli.records import json_files

    dump = json_files.dump

    def meanwhile(*arguments: object) -> str:
        Path("model.unlearned.safetensors").write_text("somebody's")
        return dump(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(json_files, "dump", meanwhile)
    assert main(["unlearn", "model.safetensors", *ON, "--forget", "class=3", "--no-cache"]) == 2
    assert Path("model.unlearned.safetensors").read_text() == "somebody's"
    assert not [path for path in job.iterdir() if "record" in path.name or ".imu-" in path.name]
