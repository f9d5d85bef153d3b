"""Files that were made to mislead: none runs code, reaches the network or reads outside its folder, and nothing is written.

Every case goes through the command line while an audit hook listens: Python reports each file that is opened, each
connection, each command and each program to it, whatever library they come from.
"""

import json
import os
import pickle
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import listing
from safetensors.torch import load_file, save_file

from imu_cli.cli import main

GO = ["unlearn", "model.safetensors", "--config", "imu.yaml", "--forget", "class=3"]
NET = ["unlearn", "net", *GO[2:]]
OUTSIDE = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "os.system", "os.exec",
           "os.posix_spawn", "subprocess.Popen", "pty.spawn"}  # fmt: skip

heard: list[tuple[str, Any]] | None = None


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if heard is not None and (event == "open" or event in OUTSIDE):
        heard.append((event, arguments[0] if arguments else None))


sys.addaudithook(_listen)


@contextmanager
def audited() -> Iterator[list[tuple[str, Any]]]:
    """What was opened, run or called from outside while the context lasts."""
    global heard
    heard = []
    try:
        yield heard
    finally:
        heard = None


def test_the_hook_hears() -> None:
    """What the other tests rely on: an opened file, a connection and a command are all reported."""
    import socket
    import subprocess

    with audited() as events:
        Path("/etc/passwd").read_bytes()
        with socket.socket() as made:
            made.settimeout(0.01)
            made.connect_ex(("127.0.0.1", 1))
        subprocess.run(["true"], check=True)
    assert ("open", "/etc/passwd") in [(event, str(what)) for event, what in events]
    assert {"socket.connect", "subprocess.Popen"} <= {event for event, _ in events}


@pytest.fixture
def net(job: Path) -> Path:
    """The digits model as a folder of two shards, with a secret beside it."""
    values = load_file("model.safetensors")
    names = sorted(values)
    Path("net").mkdir()
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in parts.items():
        save_file({name: values[name] for name in part}, Path("net") / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    Path("net/model.safetensors.index.json").write_text(json.dumps(index))
    Path("secret").mkdir()
    shutil.copy("net/b.safetensors", "secret/b.safetensors")
    Path("secret/x.png").write_bytes(b"secret")
    return job


class Command:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def pickled(protocol: int) -> None:
    Path("model.safetensors").write_bytes(pickle.dumps(Command(), protocol))


def zipped() -> None:
    torch.save({"a": torch.ones(1), "b": Command()}, "model.safetensors")


def header(text: str, data: int = 0) -> None:
    raw = text.encode()
    Path("model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(data))


def entry(start: int, end: int) -> str:
    return f'{{"dtype":"F32","shape":[2],"data_offsets":[{start},{end}]}}'


def index(change: Callable[[dict[str, Any]], object]) -> None:
    path = Path("net/model.safetensors.index.json")
    found = json.loads(path.read_text())
    change(found["weight_map"])
    path.write_text(json.dumps(found))


def moved_shard(name: str) -> None:
    """The index names the shard under another name for the tensors that it holds."""
    index(lambda names: names.update({key: name for key, file in names.items() if file == "b.safetensors"}))


def linked_shard(target: str) -> None:
    Path("net/b.safetensors").unlink()
    Path("net/b.safetensors").symlink_to(target)


def linked_main() -> None:
    shutil.rmtree("net")
    Path("net").mkdir()
    Path("net/model.safetensors").symlink_to("../model.safetensors")


def twice() -> None:
    path = Path("net/model.safetensors.index.json")
    path.write_text(
        path.read_text().replace('{"weight_map"', '{"weight_map": {"a": "../secret/b.safetensors"}, "weight_map"')
    )


def png(width: int, height: int) -> bytes:
    """A PNG of so many grey pixels in a few bytes, whole in every respect but that its rows are one."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + width))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def photo(content: bytes) -> None:
    Path("photos").mkdir()
    Path("photos/1.png").write_bytes(content)


def manifest(name: str, link: str | None = None) -> None:
    Path("list").mkdir()
    if link:
        Path("list/1.png").symlink_to(link)
    Path("list/forget.csv").write_text(f"file_name,label\n{name},3\n")


LIST = [
    "unlearn",
    "model.safetensors",
    "--arch",
    "model.py:digits_net",
    "--preprocess",
    "mnist",
    "--forget",
    "list/forget.csv",
]
PHOTOS = [*LIST[:-1], "photos", "--label", "3"]

CASES: dict[str, tuple[Callable[[], object], list[str], int, str]] = {
    **{f"pickle, protocol {protocol}": (lambda protocol=protocol: pickled(protocol), GO, 4, "a pickle") for protocol in (2, 4, 5)},
    "pickle, protocol 0": (lambda: pickled(0), GO, 2, "not a safetensors file"),
    "zipped pickle": (zipped, GO, 4, "a pickle"),
    "header of 2^40 bytes": (lambda: Path("model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}"), GO, 2,
                             "its header would be 1099511627776 bytes"),
    "overlapping": (lambda: header(f'{{"a":{entry(0, 8)},"b":{entry(4, 12)}}}', 12), GO, 2, "not a readable safetensors"),
    "hole": (lambda: header(f'{{"a":{entry(0, 8)},"b":{entry(12, 20)}}}', 20), GO, 2, "not a readable safetensors"),
    "duplicate key": (lambda: header(f'{{"a":{entry(0, 8)},"a":{entry(0, 8)}}}', 8), GO, 2, "the key 'a' stands twice"),
    "deep nesting": (lambda: header('{"a":' * 200_000 + "1" + "}" * 200_000), GO, 2, "nested too deeply"),
    "numbers of 10,000 digits": (lambda: header('{"a":' + "9" * 10_000 + "}"), GO, 2, "model.safetensors"),
    "index names /etc/passwd": (lambda: moved_shard("../../etc/passwd"), NET, 2, "no .safetensors files"),
    "index climbs": (lambda: moved_shard("../secret/b.safetensors"), NET, 2, "not a plain file name"),
    "index names an absolute shard": (lambda: moved_shard(str(Path("secret/b.safetensors").absolute())), NET, 2,
                                      "not a plain file name"),
    "index with a backslash": (lambda: moved_shard("..\\secret\\b.safetensors"), NET, 2, "not a plain file name"),
    "index with a zero byte": (lambda: moved_shard("b\0.safetensors"), NET, 2, "holds a NUL"),
    "index with a key twice": (twice, NET, 2, "the key 'weight_map' stands twice"),
    "index nested deeply": (lambda: Path("net/model.safetensors.index.json").write_text("[" * 200_000), NET, 2, "nested too deeply"),
    "index of 60 MB": (lambda: os.truncate("net/model.safetensors.index.json", 60_000_000), NET, 2, "it is not read"),
    "shard linked outside": (lambda: linked_shard("../secret/b.safetensors"), NET, 2, "a link that leaves the folder"),
    "shard linked in a circle": (lambda: linked_shard("b.safetensors"), NET, 2, "b.safetensors is not there"),
    "shard linked to a device": (lambda: linked_shard("/dev/zero"), NET, 2, "a link that leaves the folder"),
    "the only file linked outside": (linked_main, NET, 2, "a link that leaves the folder"),
    "list climbs": (lambda: manifest("../secret/x.png"), LIST, 2, "may leave the folder"),
    "list names an absolute path": (lambda: manifest(str(Path("secret/x.png").absolute())), LIST, 2, "forget.csv:2"),
    "list names a link that leaves": (lambda: manifest("1.png", "../secret/x.png"), LIST, 2, "1.png"),
    "image of 400 million pixels": (lambda: photo(png(20_000, 20_000)), PHOTOS, 2, "1.png: too many pixels"),
    "image of 178,956,971 pixels": (lambda: photo(png(178_956_971, 1)), PHOTOS, 2, "1.png: too many pixels"),
    "image of 90 million pixels": (lambda: photo(png(9_000, 10_000)), PHOTOS, 2, "1.png: too many pixels"),
}  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore::PIL.Image.DecompressionBombWarning"
)  # as dataset does; it must not be what refuses
@pytest.mark.parametrize("name", CASES)
def test_what_misleads_is_refused(name: str, net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the file, the right exit code; nothing is run, called, read from outside, or left behind."""
    spoil, command, code, said = CASES[name]
    spoil()
    before = listing(net)
    with audited() as events:
        assert main(command) == code
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Warning" not in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert shown.out == ""
    assert listing(net) == before
    assert not Path("ran").exists()
    assert [event for event in events if event[0] in OUTSIDE] == []
    opened = {str(what) for event, what in events if event == "open"}
    assert not [path for path in opened if "secret" in path or path.startswith(("/etc/passwd", "/dev/zero"))]


def test_the_hugging_face_cache_may_link_to_its_blobs(net: Path) -> None:
    """A snapshot's files are links to ../../blobs: those are read; a link to elsewhere in the cache is not."""
    snapshot = Path("models--a--b/snapshots/0123")
    snapshot.mkdir(parents=True)
    Path("models--a--b/blobs").mkdir()
    for number, path in enumerate(sorted(Path("net").iterdir())):
        shutil.copy(path, f"models--a--b/blobs/{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert main(["unlearn", str(snapshot), *GO[2:], "--quiet", "-o", "out"]) == 0
    assert not [path for path in Path("out").iterdir() if path.is_symlink()]
    before = listing(net)
    (snapshot / "a.safetensors").unlink()
    (snapshot / "a.safetensors").symlink_to("../../../net/a.safetensors")
    assert main(["unlearn", str(snapshot), *GO[2:], "--quiet", "-o", "out2"]) == 2
    assert set(listing(net)) == set(before)


def test_sidecars_that_leave_the_folder_are_not_carried(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link beside the weights that leads elsewhere stays behind, so that no stranger's folder copies your files."""
    Path("net/README.md").symlink_to("../secret/x.png")
    with audited() as events:
        assert main([*NET, "-o", "out"]) == 0
    assert "left behind: README.md" in capsys.readouterr().err
    assert not Path("out/README.md").exists()
    assert not [what for event, what in events if event == "open" and "secret" in str(what)]


def test_a_whole_run_on_a_folder_calls_nobody(net: Path) -> None:
    """Inspect, influence, unlearn and evaluate on a folder open no connection and start no program."""
    Path("net/config.json").write_text(json.dumps({"_name_or_path": "someone/model", "_commit_hash": "0" * 40}))
    with audited() as events:
        given = ["--arch", "model.py:digits_net", "--preprocess", "mnist"]
        assert main(["inspect", "net", *given]) == 0
        assert main(["influence", *NET[1:], "--quiet"]) == 0
        assert main([*NET, "--quiet", "-o", "out"]) == 0
        assert main(["evaluate", "out", "--config", "imu.yaml", "--quiet"]) == 0
    assert [event for event in events if event[0] in OUTSIDE] == []
