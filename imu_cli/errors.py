"""Everything a user can cause to go wrong, each with the exit code that the command line gives it.

Messages read *where: what was found; what to do*.
"""

import difflib
from collections.abc import Iterable, Sequence

SHOWN_PROBLEMS = 20


class ImuError(Exception):
    """Wrong usage, input or environment; nothing was written."""

    exit_code = 2


class RefusedError(ImuError):
    """The checkpoint is readable but cannot be handled: a pickle, no affine head, a tied or replayed-wrong head."""

    exit_code = 4


class StoppedError(BaseException):
    """SIGINT (Ctrl-C), SIGTERM or SIGHUP came: everything is unwound, so that temporary files go and outputs are whole.

    No ``Exception``, so that nothing that catches those goes on; no ``KeyboardInterrupt``, which typer keeps to itself.
    """

    received: "list[int]" = []  # noqa: RUF012 of the process, as signals are
    """Numbers of the signals that came: an import that is stopped ends in whatever error its C code makes of it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.received.append(number)
        super().__init__(number)


class InvalidRowsError(ImuError):
    """Several problems found in one validation; all are kept, the first twenty are shown."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        shown = list(self.problems[:SHOWN_PROBLEMS])
        if len(self.problems) > SHOWN_PROBLEMS:
            shown.append(f"+{len(self.problems) - SHOWN_PROBLEMS} more")
        super().__init__("\n".join(shown))


def nearest(wrong: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`` (did you mean 'dog'?)`` for the nearest known name, or nothing where none is near."""
    names = list(known)
    same = [name for name in names if name.casefold() == wrong.casefold()]
    close = same or difflib.get_close_matches(wrong, names, n=1, cutoff=cutoff)
    return f" (did you mean '{close[0]}'?)" if close else ""
