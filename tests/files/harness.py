"""Runs of the command line by the hundred: a process that has imported torch forks a child for each.

A child can be made to end itself, or to be asked to end, before its k-th change of the file system. What changes is heard
by an audit hook, so that no way of writing is left out that Python knows of; fsync and the exchange of two files, of which
Python says nothing, are counted where they are called.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CHANGES = {
    "os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate",
}  # fmt: skip
LIMIT = 120
"""Seconds after which a run hangs."""


@dataclass(frozen=True)
class Run:
    """A command line in a folder; ``number`` is sent before the ``before``-th change, if any, in the process itself."""

    argv: Sequence[str]
    cwd: str
    cache: str
    before: int = 0
    number: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How it ended: the exit code, or minus the signal; what it said; how many changes it had begun."""

    code: int
    out: str
    err: str
    changes: int


class Server:
    """The process that forks; runs of one call start together."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, *runs: Run) -> list[Ended]:
        """What becomes of them."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([asdict(one) for one in runs]) + "\n")
        self.process.stdin.flush()
        return [Ended(**one) for one in json.loads(self.process.stdout.readline())]

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(LIMIT)
        self.process.stdout.close()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server while the context lasts."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


# --- in the server's children


class Counter:
    """Counts changes of the file system, and ends the process before one of them."""

    def __init__(self, before: int, number: int) -> None:
        self.before, self.number, self.count = before, number, 0

    def change(self) -> None:
        """One is about to happen."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.count += 1
        if self.count == self.before:
            os.kill(os.getpid(), self.number)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The audit hook."""
        if event in CHANGES or (event == "open" and self._writes(*arguments)):
            self.change()

    @staticmethod
    def _writes(path: Any, mode: Any, flags: Any) -> bool:
        if not isinstance(path, str | bytes) or os.fsdecode(path).startswith(("/dev/", "/proc/")):
            return False
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))

    def listen(self) -> None:
        """From here on."""
        from imu_cli.files import staging

        sync, exchange = os.fsync, staging.exchange

        def counted_sync(descriptor: int) -> None:
            self.change()
            sync(descriptor)

        def counted_exchange(one: Path, other: Path) -> bool:
            self.change()
            return exchange(one, other)

        os.fsync = counted_sync  # type: ignore[assignment]
        staging.exchange = counted_exchange
        sys.addaudithook(self.hear)


def child(run: Mapping[str, Any], go: int, folder: str) -> None:
    """One run; never returns."""
    from imu_cli import signals
    from imu_cli.cli import main

    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.chdir(run["cwd"])
    os.environ.update({"IMU_CACHE_DIR": run["cache"], **run["environment"]})
    for number in signals.SIGNALS:  # a shell's background job has SIGINT ignored, and that is left so
        signal.signal(number, signal.SIG_DFL)
    signals.install()
    os.read(go, 1)  # until all of them are there
    counter, code = Counter(run["before"], run["number"]), 1
    counter.listen()
    try:
        code = main(run["argv"])
    except Exception:  # noqa: BLE001 shown as Python would
        traceback.print_exc()
    signals.over()
    count, counter.before = counter.count, 0
    with open(f"{folder}/changes", "w") as file:
        file.write(str(count))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(process: int) -> int:
    """The exit code, or minus the signal; -1000 for a run that hangs, which is killed."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, 9)
    os.waitpid(process, 0)
    return -1000


def serve() -> None:
    """Read runs, a list a line, and fork."""
    import torch

    from imu_cli.commands import convert, demo, evaluate, features, influence, select, unlearn  # noqa: F401
    from imu_cli.views import machine, terminal  # noqa: F401

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        runs = json.loads(line)
        with tempfile.TemporaryDirectory(prefix="imu-harness-") as place:
            ready, go = os.pipe()
            started = []
            for at, run in enumerate(runs):
                Path(place, str(at)).mkdir()
                process = os.fork()
                if process == 0:
                    os.close(go)
                    child(run, ready, f"{place}/{at}")
                started.append(process)
            os.close(ready)
            os.close(go)  # they all read its end
            codes = [_wait(process) for process in started]
            made = []
            for at, code in enumerate(codes):
                texts = {
                    name: Path(place, str(at), name).read_text(errors="replace")
                    if Path(place, str(at), name).exists()
                    else ""
                    for name in ("out", "err", "changes")
                }
                made.append(
                    {"code": code, "out": texts["out"], "err": texts["err"], "changes": int(texts["changes"] or -1)}
                )
        answers.write(json.dumps(made) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
