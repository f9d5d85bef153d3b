"""What an output path may be, for every option of every command that names one.

Only a regular file, or a folder that we wrote, is ever replaced. What no file can be called is said before the work.
"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from imu_cli.errors import ImuError
from imu_cli.files import staging, streams

LOOKED_AT = 1000
"""Characters at the start of a file in which the mark of its writer must stand."""
KINDS = {
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe (FIFO)", stat.S_IFSOCK: "a socket",
}  # fmt: skip
Found = Literal["nothing", "file", "folder"]


def _shown(path: Path, option: str) -> str:
    """A path as messages name it: with its option, where that is not --output."""
    return f"{option} {path}" if option else str(path)


def _refuse_name(path: Path, shown: str) -> None:
    text = str(path)
    if path.name in ("", ".", ".."):
        raise ImuError(f"{shown}: a folder, named by where it is; give the output a name of its own")
    if "\0" in text:
        raise ImuError(f"{shown}: holds a NUL character, which no name can; choose another name")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ImuError(f"{streams.plain(shown)}: not UTF-8, so records cannot name it; choose another name") from error


def found(path: Path, option: str = "") -> Found:
    """What stands in an output's place, after what killed runs left beside it was tidied.

    A link is what it points to; one that points nowhere counts as a file.

    Raises:
        ImuError: no file can be called that, there is no such folder, or a device, pipe or socket stands there.
    """
    shown = _shown(path, option)
    _refuse_name(path, shown)
    _refuse_parent(path, option)
    staging.recover(path.parent)
    try:
        own = os.lstat(path).st_mode
        mode = os.stat(path).st_mode if stat.S_ISLNK(own) else own
    except FileNotFoundError:
        return "file" if os.path.lexists(path) else "nothing"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "file"
        raise ImuError(f"{shown}: cannot be written ({error.strerror}); choose another name") from error
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise ImuError(f"{shown}: {kind}; only a regular file is ever replaced, choose another name")
    return "file"


def _refuse_parent(path: Path, option: str) -> None:
    parent = path.parent
    wanted = f"choose another {'file' if option else '--output'}"
    try:
        is_folder = stat.S_ISDIR(os.stat(parent).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_folder = False
    except OSError as error:
        raise ImuError(f"{parent}: cannot be written ({error.strerror}); {wanted}") from error
    if not is_folder:
        there = f"{option} {path}: there is no folder {parent}" if option else f"{parent}: no such folder"
        raise ImuError(f"{there}; create it, or {wanted}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ImuError(f"{parent}: not writable; {wanted}")


def refuse_source(path: Path, source: Path) -> None:
    """Refuse an output that is the input, also through links.

    Raises:
        ImuError: it is.
    """
    try:
        same = os.path.samefile(path, source)
    except (OSError, ValueError):
        return
    if same:
        raise ImuError(f"{path}: is the input; choose another --output, the input is never overwritten")


def refuse_output(path: Path, source: Path | None, force: bool, another: str = "another --output") -> None:
    """Refuse, before any work, an output file that is the input, that exists (without ``force``), or cannot be written.

    Raises:
        ImuError: with what to do.
    """
    there = found(path)
    if source is not None:
        refuse_source(path, source)
    if there != "nothing" and not force:
        raise ImuError(f"{path}: exists; choose {another}, or --force to replace it")
    if there == "folder":
        raise ImuError(f"{path}: a folder; name a file as --output")


def own_file(path: Path, option: str, ours: Callable[[Path], bool], said: str) -> None:
    """Refuse an output file that exists and is not ``ours``; one of ours is made again and again, and replaced unasked.

    Raises:
        ImuError: names the option and what to do.
    """
    shown, there = _shown(path, option), found(path, option)
    if there == "folder":
        raise ImuError(f"{shown}: a folder; name a file")
    try:
        if there == "nothing" or ours(path):
            return
    except OSError as error:
        raise ImuError(f"{shown}: cannot be written ({error.strerror}); choose another file") from error
    raise ImuError(f"{shown}: exists and {said}")


def refuse_foreign(path: Path, mark: str, option: str) -> None:
    """Refuse a file that may not be written: one that exists, is not empty and bears no ``mark`` of the option's pages.

    Raises:
        ImuError: names the option and what to do.
    """

    def ours(file: Path) -> bool:
        if not file.exists():  # a link that points nowhere
            return False
        with file.open(encoding="utf-8", errors="replace") as opened:
            start = opened.read(LOOKED_AT)
        return not start.strip() or mark in start

    own_file(path, option, ours, "was not written by this option; choose another file, or remove it")
