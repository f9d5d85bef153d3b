"""Signals: noted, obeyed at a safe point, with the documented code; a second one ends the process whatever it is doing."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import listing

GO = ["unlearn", "model.safetensors", "--config", "imu.yaml", "--forget", "class=3", "--no-cache"]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def start(
    code: str, *argv: str, stdin: int | None = None, before: Callable[[], object] | None = None
) -> "subprocess.Popen[str]":
    """A process of Python; it says "ready" on standard output where it wants a signal.

    A shell's background job has SIGINT ignored, and its children too: they get it back.
    """

    def prepare() -> None:
        for number in CODES:
            signal.signal(number, signal.SIG_DFL)
        if before is not None:
            before()

    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare,
    )  # fmt: skip


def ready(process: "subprocess.Popen[str]") -> None:
    """Wait until it says so."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()


BUSY = """
import sys, time
from imu_cli import __main__, cli, signals
def work(argv=None):
    signals.check()  # as where work begins
    print("ready", flush=True)
    {work}
cli.main = work
__main__.main()
"""


IN_C = (
    "import ctypes; c, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64); "
    "c.pthread_mutex_lock(lock); c.pthread_mutex_lock(lock)"
)
"""Waits for good in C, where no handler of Python's ever runs."""


@pytest.mark.parametrize(
    ("number", "work"),
    [*((number, "time.sleep(60)") for number in CODES), (signal.SIGINT, "while True: pass"), (signal.SIGTERM, IN_C)],
)
def test_the_second_signal_ends_it_at_once(number: signal.Signals, work: str) -> None:
    """A run that comes to no safe point, asleep, busy, or in C: nothing at the first, the end with its code at the second."""
    with start(BUSY.format(work=work)) as process:
        ready(process)
        process.send_signal(number)
        time.sleep(0.6)
        assert process.poll() is None
        process.send_signal(number)
        _, told = process.communicate(timeout=20)
    assert process.returncode == CODES[number]
    assert told.endswith("imu: ended at once by a second signal; the next run removes what this one was writing\n")


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("work", ["time.sleep(60)", IN_C], ids=["asleep", "in C"])
def test_the_first_signal_ends_what_has_not_begun(number: signal.Signals, work: str) -> None:
    """While the command line and torch are imported there is nothing to unwind: the code and the line, at once."""
    code = BUSY.replace("signals.check()", "pass").format(work=work)
    with start(code) as process:
        ready(process)
        process.send_signal(number)
        _, told = process.communicate(timeout=20)
    said = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    assert (process.returncode, told) == (CODES[number], f"imu: {said}; no output was written\n")


def test_one_signal_that_comes_twice_is_one() -> None:
    """``timeout`` and launchers send the same one to a process and to its group: the run still ends at its safe point."""
    code = BUSY.format(work="time.sleep(1.5); print('whole', flush=True); return 7")
    with start(code) as process:
        ready(process)
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("whole\n", 7)


def test_it_is_said_where_the_safe_point_is_far() -> None:
    """After two seconds the user is told that it was heard, and how to end it at once."""
    with start(BUSY.format(work="time.sleep(3.5)")) as process:
        ready(process)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    assert told == "imu: stopping at the next safe point; a second signal ends it at once\n"


SWALLOWED = """
import os, signal, sys, weakref
from imu_cli import __main__
class Thing: pass
class Finder:
    done = False
    def find_spec(self, name, path=None, target=None):
        if name == "imu_cli.commands.unlearn" and not self.done:
            Finder.done = True
            thing = Thing()
            gone = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.{number}))
            del thing  # what a callback raises is printed and swallowed
sys.meta_path.insert(0, Finder())
__main__.main()
"""


@pytest.mark.parametrize("number", CODES)
def test_a_signal_in_a_callback_within_an_import_is_not_lost(job: Path, number: signal.Signals) -> None:
    """The import ends, and then the run: an exception there would be swallowed, perhaps with the import lock held."""
    before = listing(job)
    with start(SWALLOWED.format(number=number.name), *GO) as process:
        _, told = process.communicate(timeout=100)
    assert process.returncode == CODES[number], told
    assert "Traceback" not in told
    assert "ignored" not in told
    assert told.endswith("; no output was written\n")
    assert listing(job) == before


EARLY = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "imu_cli.{module}":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
runpy.run_module("imu_cli", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["cli", "flags", "files.writing"])
def test_ctrl_c_while_the_command_line_is_imported(job: Path, module: str) -> None:
    """Before anything of the tool is there but its handlers: one line, 130, no traceback."""
    with start(EARLY.format(module=module), *GO) as process:
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (130, "imu: interrupted; no output was written\n")


@pytest.mark.parametrize("number", CODES)
def test_a_signal_ends_the_wait_for_standard_input(job: Path, number: signal.Signals) -> None:
    """``--forget -`` at a terminal: Ctrl-C ends it, though no line ever comes."""
    code = (
        "import sys\nfrom imu_cli import __main__\nfrom imu_cli.files import streams\nread = streams.from_stdin\n"
        "def said(*given):\n    print('ready', flush=True)\n    return read(*given)\n"
        "streams.from_stdin = said\n__main__.main()"
    )
    with start(code, *GO[:5], "-", stdin=subprocess.PIPE) as process:
        ready(process)
        time.sleep(0.3)
        process.send_signal(number)
        process.wait(20)
        assert process.stderr is not None
        told = process.stderr.read()
    assert process.returncode == CODES[number]
    assert told.endswith("; no output was written\n")


def test_what_is_ignored_stays_ignored(job: Path) -> None:
    """Under nohup SIGHUP is ignored: the run goes on and ends well."""
    code = "import os, signal\nfrom imu_cli import __main__; from imu_cli.records import json_files\ndump = json_files.dump\n"
    code += "json_files.dump = lambda *given: os.kill(os.getpid(), signal.SIGHUP) or dump(*given)\n__main__.main()"
    with start(code, *GO, before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        _, told = process.communicate(timeout=100)
    assert process.returncode == 0, told
    assert Path("model.unlearned.safetensors").is_file()


def test_a_worker_that_was_forked_ends_as_without_us() -> None:
    """Ctrl-C is for the parent; a worker that is told to end does; and neither counts as a second signal of the parent's."""
    code = BUSY.format(
        work="""
    import os, signal, warnings
    warnings.simplefilter("ignore")  # Python 3.12 warns of forking where numpy has threads
    if (child := os.fork()) == 0:
        time.sleep(60)
    time.sleep(0.3)
    os.kill(child, signal.SIGINT)
    time.sleep(0.3)
    alive = os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    print(alive, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    time.sleep(0.5)
    return 5"""
    )
    with start(code) as process:
        out, told = process.communicate(timeout=30)
    assert (out, told, process.returncode) == ("ready\nTrue -15\n", "", 5)


def test_safe_points_are_the_main_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker thread is not where a run ends; the main thread is, every time until it has ended."""
    from concurrent.futures import ThreadPoolExecutor

    from imu_cli import signals
    from imu_cli.errors import StoppedError

    monkeypatch.setattr(signals, "_noted", [signal.SIGTERM])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(signals.check).result() is None
    for _ in range(2):
        with pytest.raises(StoppedError):
            signals.check()
