"""What the pipeline tells whoever drives it: notes as they arise and progress; the command line draws them."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from imu_cli import signals

Advance = Callable[[int], None]


class Events(Protocol):
    """A listener; every note also ends up in the result."""

    def note(self, text: str) -> None:
        """Something the user should know, said when it is known."""
        ...

    def track(self, label: str, total: int | None) -> AbstractContextManager[Advance]:
        """A context that yields a function to call with the number of things done since the last call."""
        ...


@contextmanager
def libraries_unheard() -> Iterator[None]:
    """What libraries warn of or log stays with them: it names their files on this machine and calls that no user made.

    Warnings that our own code causes are not shown either, but are still errors where a filter makes them so, as in tests.
    """
    last = logging.lastResort
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(?!imu_cli(\.|$))")
        warnings.showwarning = lambda *_, **__: None
        logging.lastResort = logging.NullHandler()
        try:
            yield
        finally:
            logging.lastResort = last


class Silent:
    """Hears nothing."""

    def note(self, text: str) -> None:
        """Drop the note."""

    @contextmanager
    def track(self, label: str, total: int | None) -> Iterator[Advance]:
        """Draw nothing."""
        yield lambda done: None


@dataclass
class Clock:
    """Seconds spent in each stage, for the record."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that the context takes to a stage; a stage begins where a signal may end the run."""
        signals.check()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 4)


@dataclass
class Log:
    """What a run tells: notes for the user and for its result, progress, and the seconds of each stage."""

    events: Events = field(default_factory=Silent)
    notes: list[str] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def note(self, text: str) -> None:
        """Tell the user now, and keep it for the result; once."""
        if text not in self.notes:
            self.notes.append(text)
            self.events.note(text)

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Add the time that the context takes to a stage."""
        return self.clock.timed(stage)

    def track(self, label: str, total: int | None) -> AbstractContextManager[Advance]:
        """Progress while the context lasts; it yields a function to call with the number of things done."""
        return self.events.track(label, total)
