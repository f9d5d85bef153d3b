"""The folder of the blocks: one run's at a time, resumed where it can be, begun anew where it must, and never somebody's."""

from pathlib import Path

import pytest

from imu_cli.cli import main
from imu_cli.errors import ImuError
from imu_cli.files import blocks, locks

GO = ["features", "model.safetensors", "--config", "imu.yaml", "--forget", "index=0:32", "--batch-size", "8"]
SAID = {"precision": "float32"}


def test_what_a_run_left_that_was_killed_early(job: Path) -> None:
    """An empty folder, one with half a plan, one being removed, plan first: each later run succeeds, and it is gone."""
    states: list[list[str]] = [
        [],
        ["plan.json.part"],
        ["lock"],
        ["00000.safetensors", "00002.safetensors", "lock"],
        ["00001.4711.part", ".tmpYRAlu1"],
    ]
    folder = Path("f.safetensors.parts")
    for number, names in enumerate(states):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"half")
        assert main([*GO, "-o", "f.safetensors", "-q", *(["--force"] if number else [])]) == 0
        assert not folder.exists()


def test_with_force_a_run_goes_on_where_it_can(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The output stood there, so --force is in the command; killed half way and given again it computes what is missing only."""
    import shutil

    from imu_cli.commands import features

    assert main([*GO, "-o", "f.safetensors", "-q"]) == 0
    join, whole = features._join, Path("f.safetensors").read_bytes()

    def die(*_: object) -> float:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_join", die)
        assert main([*GO, "-o", "f.safetensors", "--force"]) == 130
    assert features._join is join
    Path("f.safetensors.parts/00001.safetensors").unlink()
    shutil.copy("f.safetensors.parts/00000.safetensors", "f.safetensors.parts/00001.99.part")
    capsys.readouterr()
    assert main([*GO, "-o", "f.safetensors", "--force"]) == 0
    assert "3 of 4 blocks are there from an earlier run" in capsys.readouterr().err
    assert Path("f.safetensors").read_bytes() == whole
    assert sorted(path.name for path in Path().glob("f.*")) == ["f.safetensors"]


def test_a_run_that_did_nothing_leaves_nothing(job: Path) -> None:
    """An image that cannot be read ends it before the first block: no folder stays."""
    Path("mine/3").mkdir(parents=True)
    Path("mine/3/a.png").write_bytes(b"no image")
    argv = ["features", "model.safetensors", "--config", "imu.yaml", "--data", "mine", "-o", "f.safetensors"]
    assert main(argv) == 2
    assert not list(Path().glob("f.*"))


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """The second is told at once; when the first has let go it goes on from there, or with other options is refused."""
    output = tmp_path / "f.safetensors"
    first = blocks.prepare(output, SAID, force=False)
    for force in (False, True):
        with pytest.raises(ImuError, match="another run is writing it at this moment"):
            blocks.prepare(output, SAID, force)
    (blocks.of(output) / "00000.safetensors").write_bytes(b"x")
    blocks.leave(output, first)
    second = blocks.prepare(output, SAID, force=False)
    assert blocks.has_any(output)
    blocks.leave(output, second)
    with pytest.raises(ImuError, match="was left by another run, which differs in precision; --force begins anew"):
        blocks.prepare(output, {"precision": "bfloat16"}, force=False)
    assert blocks.has_any(output)
    third = blocks.prepare(output, {"precision": "bfloat16"}, force=True)
    assert not blocks.has_any(output)
    blocks.leave(output, third)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mine.txt", "00000.safetensors.bak", "plan.json.old", "sub"])
@pytest.mark.parametrize("force", [False, True])
def test_somebodys_folder_stays(tmp_path: Path, name: str, force: bool) -> None:
    """Anything in it that we do not write, and it is not touched."""
    folder = tmp_path / "f.safetensors.parts"
    folder.mkdir()
    for each in (name, "plan.json", "00000.safetensors"):
        (folder / each).write_text("{}")
    with pytest.raises(ImuError, match="was not left by imu features"):
        blocks.prepare(tmp_path / "f.safetensors", SAID, force)
    assert {path.name for path in folder.iterdir()} == {name, "plan.json", "00000.safetensors"}
    (tmp_path / "link.parts").symlink_to(folder)
    with pytest.raises(ImuError, match="was not left by imu features"):
        blocks.prepare(tmp_path / "link", SAID, force)


def test_a_forked_child_holds_no_lock(tmp_path: Path) -> None:
    """A worker that outlives a parent that is killed does not keep the next run out."""
    import os

    descriptor = locks.take(tmp_path / "lock")
    assert descriptor is not None
    up, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(up[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    os.read(up[0], 1)
    locks.release(descriptor)
    again = locks.take(tmp_path / "lock", sure=True)
    os.write(go[1], b"x")
    os.waitpid(child, 0)
    for end in (*up, *go):
        os.close(end)
    assert again is not None
    locks.release(again)
