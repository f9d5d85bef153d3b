"""What an output path may be: one rule for every option of every command, said before the work."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import listing

from imu_cli.cli import main
from imu_cli.errors import ImuError
from imu_cli.files import outputs

ON = ["--config", "imu.yaml"]
LIST = [*ON, "--forget", "class=3"]

OPTIONS: dict[str, tuple[Callable[[str], list[str]], str]] = {
    "unlearn": (lambda path: ["unlearn", "model.safetensors", *LIST, "-o", path, "--force"], ""),
    "unlearn, a folder": (lambda path: ["unlearn", "net", *LIST, "-o", path, "--force"], ""),
    "evaluate": (lambda path: ["evaluate", "model.safetensors", *LIST, "-o", path], ""),
    "evaluate --junit": (
        lambda path: ["evaluate", "model.safetensors", *LIST, "--require", "forget.accuracy<=1", "--junit", path], "",
    ),
    "influence --images": (lambda path: ["influence", "model.safetensors", *LIST, "--images", path], ""),
    "features": (lambda path: ["features", "model.safetensors", *ON, "-o", path, "--force"], ".safetensors"),
    "convert": (lambda path: ["convert", "net.pth", path, "--force"], ".safetensors"),
    "select": (lambda path: ["select", "--data", "data", "class=3", "-o", path, "--force"], ".csv"),
    "report --html": (lambda path: ["report", "a.record.json", "--html", path], ""),
    "report --markdown": (lambda path: ["report", "a.record.json", "--markdown", path], ""),
    "demo": (lambda path: ["demo", path, "--force"], ""),
}  # fmt: skip


@pytest.fixture
def everything(job: Path, digits: Path) -> Path:
    """The inputs of every command."""
    Path("net").mkdir()
    os.link("model.safetensors", "net/model.safetensors")
    torch.save({"w": torch.ones(2, 2)}, "net.pth")
    Path("data").symlink_to(digits / "data/train")
    assert (
        main(["unlearn", "model.safetensors", *LIST, "-o", "a.safetensors", "-q", "--no-cache", "--format", "csv"]) == 0
    )
    return job


def _device(path: str) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # one of our own, like /dev/null
    except PermissionError:
        pytest.skip("only root makes devices")


def _link_to_a_device(path: str) -> None:
    _device("node")
    Path(path).symlink_to("node")


def _socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


KINDS: dict[str, tuple[Callable[[str], None], str]] = {
    "a pipe": (os.mkfifo, "a pipe (FIFO); only a regular file is ever replaced"),
    "a device": (_device, "a device; only a regular file is ever replaced"),
    "a link to a device": (_link_to_a_device, "a device; only a regular file is ever replaced"),
    "a socket": (_socket, "a socket; only a regular file is ever replaced"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_only_a_regular_file_is_ever_replaced(
    option: str, everything: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device, a pipe, a socket, or a link to one: an error before the work, with --force too, and it is what it was."""
    argv, suffix = OPTIONS[option]
    for number, (make, said) in enumerate(KINDS.values()):
        path = f"x{number}{suffix}"
        make(path)
        before, files = os.lstat(path), listing(everything)
        assert main(argv(path)) == 2
        told = capsys.readouterr().err
        assert said in told
        assert "Traceback" not in told
        now = os.lstat(path)
        assert (now.st_ino, now.st_mode, now.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)
        assert listing(everything) == files
        Path("node").unlink(missing_ok=True)


@pytest.mark.parametrize("option", OPTIONS)
def test_names_that_no_file_can_have(option: str, everything: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too long, not UTF-8, the folder itself, the one above: one line before the work, and nothing is written."""
    argv, suffix = OPTIONS[option]
    names = {
        "a" * 300 + suffix: "File name too long",
        os.fsdecode(b"o\xff") + suffix: "not UTF-8",
        f"missing/x{suffix}": "no folder"
        if option.startswith(("report", "influence", "evaluate --"))
        else "no such folder",
    }
    if not suffix:
        names |= {".": "a folder, named by where it is", "..": "a folder, named by where it is"}
    if option == "demo":
        del names["missing/x"]  # it makes the folders above its own
    files = listing(everything)
    for name, said in names.items():
        assert main(argv(name)) == 2, name
        told = capsys.readouterr().err
        assert said in told, (name, told)
        assert told.count("\n") == 1
        assert listing(everything) == files


@pytest.mark.parametrize("option", ["output", "junit", "images"])
def test_a_nul_in_a_yaml_files_path(option: str, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No name holds a NUL: said where the file is read, not a traceback."""
    with Path("imu.yaml").open("a") as file:
        file.write(f'{option}: "a\\0b"\n')
    command = {"output": "unlearn", "junit": "evaluate", "images": "influence"}[option]
    more = ["--require", "forget.accuracy<=1"] if option == "junit" else []
    assert main([command, "model.safetensors", *LIST, *more]) == 2
    assert "holds a NUL" in capsys.readouterr().err


def test_a_nul_in_a_path_from_elsewhere(tmp_path: Path) -> None:
    """A caller in Python may give anything."""
    with pytest.raises(ImuError, match="holds a NUL character"):
        outputs.found(tmp_path / "a\0b")


def test_the_longest_name_that_a_file_can_have(job: Path) -> None:
    """255 bytes, cut between two characters where it is made: the record's name has to fit too."""
    room = 255 - len(".record.json")
    name = "é" * ((room - len(".safetensors")) // 2) + ".safetensors"
    assert main(["unlearn", "model.safetensors", *LIST, "-o", name, "-q"]) == 0
    assert Path(name).is_file()


def test_a_link_to_a_file_is_replaced_and_what_it_points_to_stays(job: Path) -> None:
    """With --force the link goes, not the file behind it."""
    Path("mine").write_text("mine")
    Path("l.safetensors").symlink_to("mine")
    assert main(["unlearn", "model.safetensors", *LIST, "-o", "l.safetensors", "-q"]) == 2
    assert main(["unlearn", "model.safetensors", *LIST, "-o", "l.safetensors", "-q", "--force"]) == 0
    assert not Path("l.safetensors").is_symlink()
    assert Path("mine").read_text() == "mine"


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said for the folder, whoever asks."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ImuError, match="not writable; choose another --output"):
        outputs.found(tmp_path / "x")


def test_the_demo_replaces_what_it_wrote_and_nothing_else(
    tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demo that was killed is replaced unasked, a whole one with --force, and none that holds a file of somebody's."""
    import shutil

    from imu_cli.commands import demo

    def made(folder: Path, seed: int, task: str) -> None:
        shutil.copytree(digits, folder, dirs_exist_ok=True)

    monkeypatch.setattr(demo, "make", made)
    monkeypatch.setattr(demo, "COMMANDS", ())
    folder = tmp_path / "d"
    command = ["demo", str(folder)]
    assert main(command) == 0
    assert main(command) == 2
    assert main([*command, "--force"]) == 0
    (folder / demo.MARKER).write_text(demo.RUNNING)  # as a killed one leaves it
    assert main(command) == 0
    (folder / "data/train/3/cat.png").write_text("mine")
    assert main([*command, "--force"]) == 2
    assert "holds data/train/3/cat.png, which imu demo does not write" in capsys.readouterr().err
    (folder / "data/train/3/cat.png").unlink()
    (folder / "thesis.tex").write_text("years of work")
    (folder / demo.MARKER).write_text(demo.RUNNING)
    for more in ([], ["--force"]):
        assert main([*command, *more]) == 2
        assert "holds thesis.tex" in capsys.readouterr().err
    assert (folder / "thesis.tex").read_text() == "years of work"
