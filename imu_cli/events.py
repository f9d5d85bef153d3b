"""What the pipeline tells whoever drives it: notes as they arise and progress; the command line draws them."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

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
