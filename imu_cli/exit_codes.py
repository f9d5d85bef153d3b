"""The one place where errors and signals become a message on stderr and an exit code."""

import errno
from collections.abc import Sequence
from pathlib import Path

from imu_cli import signals
from imu_cli.errors import ImuError, StoppedError
from imu_cli.files import streams
from imu_cli.files.reading import cut
from imu_cli.files.streams import tell


def exit_code(error: Exception | StoppedError, placed: Sequence[Path], received: Sequence[int]) -> int | None:
    """Say what ended the run, and what it had written: ``placed``; its code, None for a bug.

    Args:
        received: numbers of the signals that came while it ran; the first one is told, whatever the error is.
    """
    if received:
        return _stopped(received[0], placed)
    left = f"; written before that: {', '.join(map(str, placed))}" if placed else ""
    if isinstance(error, ImuError):
        tell(f"imu: {error}{left}")
        return error.exit_code
    refused = _refused(error)
    if refused is not None:
        streams.flush_or_discard()
        tell(f"imu: {refused}{left}")
        return ImuError.exit_code
    if hasattr(error, "exit_code") and hasattr(error, "format_message"):
        return _usage(error.format_message())
    return None


def _usage(message: str) -> int:
    """A wrong call: the help where nothing was asked for, else what was wrong with it."""
    tell(message if message.startswith("Usage:") else f"imu: {message.rstrip('.')}; see --help")
    return 2


def _stopped(number: int, placed: Sequence[Path]) -> int:
    """What a run that was stopped leaves behind, said; and its exit code, 128 and the number of the signal."""
    left = f"written before that, whole: {', '.join(map(str, placed))}" if placed else "no output was written"
    signals.say_it()
    tell(f"imu: {signals.how(number)}; {left}")
    return 128 + number


def _refused(error: BaseException) -> str | None:
    """What the system refused, in a line, wherever it happened; None for an error that is a bug."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        return "memory: there is not enough of it; give --max-memory or a smaller --batch-size, or another machine"
    if not isinstance(error, OSError):
        return None
    said = error.strerror or str(error) or type(error).__name__
    remedy = "check its path, its folder and the room on its disk"
    if error.errno == errno.ENAMETOOLONG:
        remedy = "no file can be called that; give another name"
    return f"{cut(str(error.filename or 'a stream or file'))}: {said}; {remedy}"
