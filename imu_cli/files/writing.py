"""Files written whole or not at all, and replaced only where they may be; and standard output."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from imu_cli.errors import ImuError

LOOKED_AT = 1000
"""Characters at the start of a file in which the mark of its writer must stand."""

PLACED: list[Path] = []
"""Outputs that this process has put in their places, in order: what a run that is stopped must say is there."""


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_foreign(path: Path, mark: str, option: str) -> None:
    """Refuse, before any work, a file that may not be written: one that exists, is not empty and bears no ``mark``.

    A report is made again and again, so an earlier one of ours is replaced without asking; nothing else ever is.

    Raises:
        ImuError: names the option and what to do.
    """
    try:
        if path.is_dir():
            raise ImuError(f"{option} {path}: a folder; name a file")
        if not path.parent.is_dir():
            raise ImuError(f"{option} {path}: there is no folder {path.parent}; create it, or choose another file")
        if not path.exists():
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            start = file.read(LOOKED_AT)
    except OSError as error:
        raise ImuError(f"{option} {path}: cannot be written ({error.strerror}); choose another file") from error
    if start.strip() and mark not in start:
        raise ImuError(f"{option} {path}: exists and was not written by this option; choose another file, or remove it")


def _undo(output: Path, kept: Path) -> Callable[[], object]:
    """What puts an output back as it is now; ``kept`` is a second name for the file until then."""
    if not os.path.lexists(output):
        return partial(output.unlink, missing_ok=True)
    with suppress(OSError):  # a disk without hard links cannot keep the old file beside the new one
        os.link(output, kept, follow_symlinks=False)
    return partial(kept.replace, output) if os.path.lexists(kept) else lambda: None


def _placed(outputs: Sequence[Path], undo: ExitStack) -> None:
    """The moment from which the outputs stay: they are said to be there if, and only if, nothing undoes them any more."""
    length = len(PLACED)
    undo.callback(lambda: PLACED.__delitem__(slice(length, None)))
    PLACED.extend(outputs)
    undo.pop_all()


def _swap(temporary: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Put every file in its output's place; if one of them cannot, the others are put back as they were."""
    with ExitStack() as undo:
        for path, output in zip(temporary, outputs, strict=True):
            undo.callback(_undo(output, path.with_suffix(".old")))
            path.replace(output)
        _placed(outputs, undo)


@contextmanager
def together(*outputs: Path, private: bool = False) -> Iterator[list[Path]]:
    """Temporary files beside the outputs that replace them all at the end, or leave nothing behind.

    On leaving normally each file gets the mode the umask asks for (``private``: only its owner may read it) and takes its
    output's place once it is on the disk; after any exception, Ctrl-C included, the temporary files are removed and the outputs
    are as they were.

    Raises:
        ImuError: the disk is full, or the folder cannot be written.
    """
    temporary: list[Path] = []
    try:
        for output in outputs:
            handle, name = tempfile.mkstemp(prefix=f".{output.name}.", suffix=".part", dir=output.parent)
            os.close(handle)
            temporary.append(Path(name))
        yield temporary
        for path in temporary:
            path.chmod(0o600 if private else 0o666 & ~_umask())
            _sync(path)
        _swap(temporary, outputs)
    except OSError as error:
        raise ImuError(
            f"{outputs[0].parent}: cannot write ({error.strerror}); nothing was written, choose another place"
        ) from error
    finally:
        for path in temporary:
            for left in (path, path.with_suffix(".old")):
                with suppress(OSError):
                    left.unlink(missing_ok=True)


@contextmanager
def folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside ``output`` that takes its place at the end, or leaves nothing behind.

    A folder that is there is moved aside first and removed once the new one stands; if the new one cannot take its place,
    the old one is put back. The caller has made sure that it may go.

    Raises:
        ImuError: the disk is full, or the folder cannot be written.
    """
    made: Path | None = None
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".part", dir=output.parent))
        yield made
        made.chmod(0o777 & ~_umask())
        _sync(made)
        _replace_folder(made, output)
    except OSError as error:
        raise ImuError(
            f"{output.parent}: cannot write ({error.strerror}); nothing was written, choose another place"
        ) from error
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def _replace_folder(made: Path, output: Path) -> None:
    kept = made.with_suffix(".old")
    with ExitStack() as undo:
        if output.exists():
            output.rename(kept)
            undo.callback(kept.rename, output)
        made.rename(output)
        _placed([output], undo)
    shutil.rmtree(kept, ignore_errors=True)


def to_stdout(text: str | Iterable[str]) -> None:
    """Text, or its pieces, to standard output; where nobody reads it any more (imu ... | head) the command goes on.

    Raises:
        ImuError: standard output cannot be written, a full disk for instance.
    """
    try:
        sys.stdout.writelines([text] if isinstance(text, str) else text)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    except OSError as error:
        _discard_stdout()
        raise ImuError(f"standard output: cannot be written ({error.strerror})") from error


def _discard_stdout() -> None:
    """What is left in its buffer would fail once more when the process ends."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 stays open until the process ends
