"""Standard streams that are closed, full, gone or of another charset, and what the system refuses anywhere: a line, a code."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import listing

from imu_cli.cli import main
from imu_cli.files import streams

ON = ["--config", "imu.yaml"]
GO = ["unlearn", "model.safetensors", *ON, "--forget", "class=3", "--no-cache"]


def _stream(encoding: str, terminal: bool = False) -> io.TextIOWrapper:
    class Stream(io.TextIOWrapper):
        def isatty(self) -> bool:
            return terminal

    return Stream(io.BytesIO(), encoding=encoding)


def _written(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue()


# --- charsets


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_a_table_is_shown_with_what_the_stream_has(job: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """Files are written, the table is printed, the exit code is that of the run, whatever the charset lacks."""
    stream = _stream(encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(GO) == 0
    shown = _written(stream).decode(encoding)
    assert "Target met" in shown
    assert ("‖ΔW‖/‖W‖" if encoding == "utf-8" else "|dW|/|W|" if encoding == "ascii" else "W|/|W|") in shown
    assert ("≤ 0.50 %" if encoding in ("utf-8", "cp437") else "<= 0.50 %") in shown
    assert Path("model.unlearned.record.json").is_file()


@pytest.mark.parametrize("form", ["json", "csv"])
def test_data_keep_their_characters_as_escapes(
    job: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """JSON on a stream of ASCII says the same as on one of UTF-8: nothing is put in another's place."""
    names = ["−1", "é", "\U0001f600", *"3456789"]
    Path("names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    said = []
    for encoding in ("ascii", "utf-8"):
        stream = _stream(encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            argv = ["influence", "model.safetensors", *ON, "--forget", "index=0:400:40", "--classes", "names.txt"]
            assert main([*argv, "--format", form, "--no-cache"]) == 0
        said.append(_written(stream).decode(encoding))
    if form == "json":
        rows = [json.loads(text)["rows"] for text in said]
        assert rows[0] == rows[1]
        assert {row["label"] for row in rows[0]} <= set(names)
    else:
        assert said[0] == said[1].replace("−", "\\u2212").replace("é", "\\u00e9").replace(
            "\U0001f600", "\\ud83d\\ude00"
        )


# --- what would steer a terminal

EVIL = "\x1b[2J\x1b]0;title\x07\x9b31m\r\u202egnp.exe"


def test_nothing_from_a_file_steers_the_terminal_through_messages(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels, names of files, keys, options: escapes are written as escapes in every message."""
    Path("l.csv").write_text(f"file_name,label\n3/0001.png,{EVIL}\n")
    Path("k.yaml").write_text('"\\e[2J": 1\n')
    os.mkdir(f"{EVIL}.d")
    for argv in (
        ["influence", "model.safetensors", *ON, "--forget", "l.csv"],
        [*GO, "--head", EVIL],
        [*GO[:4], "--forget", f"class={EVIL}"],
        ["unlearn", f"{EVIL}.safetensors", *GO[2:]],
        ["unlearn", f"{EVIL}.d", *GO[2:]],
        ["unlearn", "model.safetensors", "--config", "k.yaml", "--forget", "class=3"],
        [*GO, "-o", f"{EVIL}/x"],
        ["inspect", f"{EVIL}.safetensors"],
        ["cache", "show", EVIL],
        ["report", f"{EVIL}.json"],
        [*GO, f"--{EVIL}"],
    ):
        assert main(argv) in (2, 4), argv
        told = capsys.readouterr().err
        assert told
        assert not set(told) & set("\x1b\x07\x9b\r\u202e"), argv


def test_an_output_with_such_a_name_is_told_plainly(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was written, and the next command."""
    assert main([*GO, "-o", "a\x1b[2J.safetensors"]) == 0
    shown = capsys.readouterr()
    assert "wrote a\\x1b[2J.safetensors" in shown.err
    assert "\x1b" not in shown.err + shown.out


def test_data_are_escaped_for_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets what is there, byte for byte; a terminal gets JSON's escapes, so that what is JSON stays so."""
    text = json.dumps({"name": "a\x9b31m\x7f"}, ensure_ascii=False) + "\n"
    for terminal in (False, True):
        stream = _stream("utf-8", terminal)
        monkeypatch.setattr(sys, "stdout", stream)
        streams.to_stdout(text)
        written = _written(stream).decode()
        assert (written == text) is not terminal
        assert json.loads(written) == json.loads(text)
        assert not terminal or not set(written) & {"\x9b", "\x7f"}


# --- closed, full and gone

STREAMS = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-", "all": "<&- >&- 2>&-"}


@pytest.mark.parametrize("closed", STREAMS)
def test_a_closed_stream_changes_no_run(job: Path, closed: str) -> None:
    """Files are written as ever; nothing lands in them that was meant for a stream whose number they got."""
    command = f'exec "$@" {STREAMS[closed]}'
    start = [sys.executable, "-m", "imu_cli", *GO]
    done = subprocess.run(["sh", "-c", command, "sh", *start], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("model.unlearned.record.json").read_text())["reached"]
    assert "Traceback" not in done.stderr


def test_a_list_from_a_closed_standard_input(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--forget -`` where there is no standard input: a line."""
    before = listing(job)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", None)
        assert main([*GO[:4], "--forget", "-"]) == 2
    assert "stdin: standard input is closed" in capsys.readouterr().err
    assert listing(job) == before


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["cache", "ls"], ["report", "--schema"]], ids=" ".join)
def test_nobody_reads_what_is_shown(argv: list[str], tmp_path: Path) -> None:
    """``imu ... | true``: no code but 0, no word."""
    read, write = os.pipe()
    os.close(read)
    start = [sys.executable, "-m", "imu_cli", *argv]
    done = subprocess.run(start, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is always full")
@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["report", "--schema"]], ids=" ".join)
def test_standard_output_is_full_whatever_writes_to_it(argv: list[str]) -> None:
    """One line and 2, at the interpreter's end too."""
    with open("/dev/full", "w") as full:  # only ever opened as a stream: nothing is put in its place
        start = [sys.executable, "-m", "imu_cli", *argv]
        done = subprocess.run(start, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


def test_standard_error_is_full(job: Path) -> None:
    """Notes that nobody can hear end no run."""
    read, write = os.pipe()
    os.close(read)
    start = [sys.executable, "-m", "imu_cli", *GO]
    done = subprocess.run(start, stdout=subprocess.PIPE, stderr=write, text=True, check=False)
    os.close(write)
    assert done.returncode == 0
    assert "Target met" in done.stdout


def test_a_terminal_of_ascii(job: Path) -> None:
    """A real terminal under LC_ALL=C with the charset said to be ASCII: the table is there, and the code is 0."""
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    start = [sys.executable, "-m", "imu_cli", *GO]
    with subprocess.Popen(start, stdout=slave, stderr=subprocess.PIPE, text=True, env=environment) as running:
        os.close(slave)
        shown = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            shown += piece
        _, told = running.communicate(timeout=60)
    os.close(master)
    assert running.returncode == 0, told
    assert b"Target met" in shown


# --- what the system refuses

REFUSED = {
    "input/output error": (OSError(5, "Input/output error", "disk/x"), "disk/x: Input/output error"),
    "no permission": (PermissionError(13, "Permission denied", "x"), "x: Permission denied"),
    "too many files": (OSError(24, "Too many open files"), "a stream or file: Too many open files"),
    "memory": (MemoryError(), "memory: there is not enough of it"),
    "torch's memory": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory: there is not"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_whatever_the_system_refuses_is_a_line(
    job: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a place that nobody thought of: 2, one line with the path, no traceback; a bug stays a traceback."""
    from imu_cli.commands import unlearn

    error, said = REFUSED[name]

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(unlearn, "run_unlearn", refuse)
    assert main(GO) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(GO)


def test_the_working_directory_is_gone(tmp_path: Path) -> None:
    """Removed by another process: a line, before torch's libraries end the process in their own way."""
    code = "import os, sys\nos.rmdir(os.getcwd())\nfrom imu_cli import __main__\n__main__.main()"
    (tmp_path / "gone").mkdir()
    for argv in (["inspect", "x"], ["unlearn", str(tmp_path / "x"), "--forget", "class=1"], ["cache", "ls"]):
        (tmp_path / "gone").mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code, *argv], cwd=tmp_path / "gone", capture_output=True, text=True, check=False,
            env=environment,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (
            2, "imu: the working directory is gone; change into one that is there\n",
        )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_cache_that_may_not_be_read(job: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The cache of another user: a line with what to do, for every command that looks into it."""
    code = (
        "import os, sys\nfrom imu_cli.cli import main\nfrom imu_cli.commands import cache\n"
        "from imu_cli.features import cache\nfrom imu_cli.views import machine, terminal\n"
        "os.seteuid(65534)\nsys.exit(main(sys.argv[1:]))"  # which may not read what Python lies in
    )
    cache = tmp_path_factory.mktemp("theirs") / "imu"
    cache.mkdir(mode=0o700)
    environment = {**os.environ, "IMU_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
    for argv in (["cache", "ls"], ["cache", "verify"], ["cache", "rm", "--all"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 2, done
        assert "the cache cannot be read (Permission denied); set IMU_CACHE_DIR or --no-cache" in done.stderr
        assert done.stderr.count("\n") == 1
