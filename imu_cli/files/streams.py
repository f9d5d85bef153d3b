"""Standard output and standard error: what they can show, and nothing that steers a terminal."""

import codecs
import os
import sys
from collections.abc import Iterable
from typing import BinaryIO

from imu_cli import signals
from imu_cli.errors import ImuError

PLAINER = {
    "‖": "|", "−": "-", "–": "-", "—": "-", "×": "x", "·": ".", "…": "...", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~",
    "±": "+-", "→": "->", "←": "<-", "≪": "<<", "≫": ">>", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "‘": "'", "’": "'",
    "“": '"', "”": '"', "•": "*", "✓": "yes", "✗": "no", "∞": "inf", "√": "sqrt ", "²": "^2", "½": "1/2", "Δ": "d",
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "eps", "η": "eta", "λ": "lambda", "μ": "mu", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "φ": "phi", "ℓ": "l", "─": "-", "━": "-", "│": "|", "┃": "|", "█": "#", "░": ".", "▏": "|",
}  # fmt: skip
"""What stands for a character of our own tables where the stream's charset lacks it."""


def plain(text: str) -> str:
    """A text with its control characters, and what is no character at all, written as escapes."""
    if text.isprintable():
        return text
    return "".join(character if _shows(character) else escaped(character) for character in text)


def _shows(character: str) -> bool:
    return character.isprintable() or character in "\n\u00a0"


def escaped(character: str) -> str:
    r"""A character as ``\x1b`` or ``\u2016``."""
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _as_json(character: str) -> str:
    """As JSON writes a character, which a table may do too."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))


def _replaced(error: UnicodeError, plainer: bool) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join((plainer and PLAINER.get(one)) or _as_json(one) for one in missing), error.end


codecs.register_error("imu-plainer", lambda error: _replaced(error, True))
codecs.register_error("imu-escaped", lambda error: _replaced(error, False))


def plainer(text: str) -> str:
    """A table as standard output's charset can show it: plainer characters for those of ours that it lacks."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "imu-plainer").decode(encoding)


def forgiving() -> None:
    """Let standard output show what it can where its charset lacks a character, rather than end a run that is done."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="imu-plainer")


def _shown(text: str) -> str:
    """A result as standard output gets it: as it is, but for what its charset lacks or its terminal would obey.

    The escapes are JSON's, so that what is JSON stays so.
    """
    if sys.stdout.isatty() and not text.isprintable():
        text = "".join(one if one in "\n\t\r" or _shows(one) else _as_json(one) for one in text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "imu-escaped").decode(encoding)


def stdin() -> BinaryIO:
    """Standard input.

    Raises:
        ImuError: whoever started us closed it.
    """
    if sys.stdin is None:
        raise ImuError("stdin: standard input is closed, so no list comes from it; name a .csv, .tsv or .jsonl file")
    return sys.stdin.buffer


def from_stdin(stream: BinaryIO | None = None) -> bytes:
    """All that comes from standard input, or from what stands for it; Ctrl-C ends the waiting.

    Raises:
        ImuError: it is closed, or cannot be read.
    """
    try:
        with signals.at_once():
            return (stream or stdin()).read()
    except (OSError, ValueError) as error:
        raise ImuError(f"stdin: cannot be read ({error}); name a .csv, .tsv or .jsonl file") from error


def to_stdout(text: str | Iterable[str]) -> None:
    """Text, or its pieces, to standard output; where nobody reads it any more (imu ... | head) the command goes on.

    Raises:
        ImuError: standard output cannot be written, a full disk for instance.
    """
    if sys.stdout is None:  # closed by whoever started us
        return
    try:
        sys.stdout.writelines(map(_shown, [text] if isinstance(text, str) else text))
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
    except OSError as error:
        discard_stdout()
        raise ImuError(f"standard output: cannot be written ({error.strerror})") from error


def discard_stdout() -> None:
    """What is left in its buffer would fail once more when the process ends."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 stays open until the process ends


def flush_or_discard() -> None:
    """Before the process ends early: what standard output does not take now it would not take at the end either."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        discard_stdout()


def tell(text: str) -> None:
    """A line on standard error, control characters as escapes; where nobody can hear it nothing is said."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(plain(text) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 stays open until the process ends
