"""Signals that ask a run to end: noted when they come, obeyed at the next point where nothing can be torn.

A handler that raises does so wherever Python happens to be: in a callback, where the exception is printed and swallowed with a
lock held, or in the middle of an import. So ours only notes the number, and ``check`` raises, where work is cut anyway: between
batches, steps and stages, before outputs take their places, and when an import has ended. A second signal ends the process at
once, by a thread that waits for it, whatever the main one is doing.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from imu_cli.errors import StoppedError

SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
APART = 0.25
"""Seconds between two signals that are two: ``timeout`` and launchers send the same one to a process and to its group."""
PATIENCE = 2.0
"""Seconds after which it is said that the run has not come to a safe point yet."""

_noted: list[int] = []
_waiting: list[bool] = []
_over = threading.Event()


def check() -> None:
    """End here if a signal has come; a safe point, and nothing at all in other threads than the main one.

    Raises:
        StoppedError: the run was asked to end.
    """
    if _noted and threading.current_thread() is threading.main_thread():
        raise StoppedError(_noted[0])


@contextmanager
def at_once() -> Iterator[None]:
    """While the process only waits, for standard input or for another run, a signal ends the wait itself.

    Raises:
        StoppedError: the run was asked to end, before or meanwhile.
    """
    _waiting.append(True)
    try:
        check()
        yield
    finally:
        _waiting.pop()


def _note(number: int, _: FrameType | None) -> None:
    _noted.append(number)
    StoppedError.received.append(number)
    if _waiting:
        raise StoppedError(number)


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"imu: {text}\n".encode())


def _watch(pipe: int) -> None:
    """Read the numbers that Python's own handler writes; the second of ours ends the process."""
    first: float | None = None
    told = False
    while True:
        patience = None if first is None or told else PATIENCE
        if not select.select([pipe], [], [], patience)[0]:
            told = True
            if not _over.is_set():
                _say("stopping at the next safe point; a second signal ends it at once")
            continue
        for number in os.read(pipe, 64):
            if number not in SIGNALS:  # of a library: children that ended
                continue
            if first is not None and time.monotonic() - first >= APART and not _over.is_set():
                _say("ended at once by a second signal; the next run removes what this one was writing")
                os._exit(128 + number)
            first = first or time.monotonic()


def _forked() -> None:
    """A worker that was forked ends as it would without us: its parent is the one that hears Ctrl-C."""
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            if signal.getsignal(number) is _note:
                signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


def install() -> None:
    """Note signals from here on; one that is ignored, as SIGHUP is under nohup, stays ignored."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _note)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_forked)
    threading.Thread(target=_watch, args=(read,), name="signals", daemon=True).start()


def over() -> None:
    """What was to be done is done: a signal that comes now must not end it with another code."""
    _over.set()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
