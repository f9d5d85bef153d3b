"""Where files are made before they take their places, and how a later run tells what a dead one left there.

Beside an output ``NAME`` that is a folder ``.NAME.imu-XXXXXXXX``, its owner's alone:

    lock        held by the writer as long as it lives
    new/        the files, under their own names
    plan.json   there while they take their places: which they are, and what stood there before
    old/        what they replaced, until all of them are in place

Without a plan nothing has changed yet. With one, each place is looked at: where all hold the new files the run was done, else
those that do are put back as they were. Files are known by inode, size and time, so that what somebody else has put into a
place meanwhile is never taken for ours.
"""

import errno
import functools
import json
import os
import re
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imu_cli.errors import ImuError
from imu_cli.files import locks
from imu_cli.files.reading import json_value

NAMED = re.compile(r"\..*\.imu-[0-9a-f]{8}", re.DOTALL)
ENDING = len(".") + len(".imu-") + 8
CONTENT = {"lock", "new", "old", "plan.json"}
LIBRARY = r"\.tmp[A-Za-z0-9]{6}"
"""What safetensors calls a file that it has not written to its end, beside the one that it was given."""
LONGEST = 255
"""Bytes of a name on most file systems."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2

Ident = list[int]
"""What a file is known by: whether it is a folder, inode, and for a file size and time in nanoseconds."""


def ident(path: Path) -> Ident | None:
    """What stands in a place, None for nothing."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(found.st_mode):
        return [1, found.st_ino]
    return [0, found.st_ino, found.st_size, found.st_mtime_ns]


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk; file systems that cannot tell are not asked again."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not os.path.isdir(path):
            raise
    finally:
        os.close(handle)


@functools.cache
def _renameat2() -> Any:
    import ctypes

    found = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if found is not None:
        found.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return found


def exchange(one: Path, other: Path) -> bool:
    """Two files or folders change places in one step; False where system or file system cannot.

    Raises:
        OSError: one of them is gone, or the folder cannot be written.
    """
    call = _renameat2()
    if call is None:
        return False
    import ctypes

    if call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _remove(path: Path) -> None:
    """Whatever stands there, if anything: a file, a link, a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Move:
    """A file or folder on its way: its place, what it is, and what stood there, None for nothing."""

    output: Path
    new: Ident
    was: Ident | None


@dataclass(frozen=True)
class Staging:
    """A folder beside outputs in which they are made.

    ``descriptor`` is that of its lock; ``lost`` are places that could not be put back as they were.
    """

    path: Path
    descriptor: int
    lost: list[Path] = field(default_factory=list)

    def made(self, output: Path) -> Path:
        """Where an output is written before it takes its place; after an exchange what it replaced."""
        return self.path / "new" / output.name

    def kept(self, output: Path) -> Path:
        """Where what it replaced is kept, where the two could not be exchanged."""
        return self.path / "old" / output.name

    # --- taking their places

    def plan(self, outputs: Sequence[Path], goes: Sequence[Path]) -> list[Move]:
        """Note what is about to change; from here on a later run can tell.

        ``goes``: folders that are removed once the outputs stand.
        """
        moves = []
        for output in outputs:
            new = ident(self.made(output))
            if new is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.made(output)))
            moves.append(Move(output, new, ident(output)))
        said = {
            "outputs": [{"name": move.output.name, "new": move.new, "was": move.was} for move in moves],
            "goes": [path.name for path in goes],
        }
        (self.path / "old").mkdir()
        part = self.path / "new" / "plan.json.part"
        part.write_text(json.dumps(said), encoding="utf-8")
        sync(part)
        sync(self.path / "new")
        part.replace(self.path / "plan.json")
        sync(self.path)
        return moves

    def place(self, move: Move) -> None:
        """Put one where it belongs: exclusively where there was nothing, else in exchange for what was there.

        Raises:
            FileExistsError: somebody else's file has come there.
            OSError: it cannot be put there.
        """
        made, output = self.made(move.output), move.output
        if move.was is None:
            _take(made, output)
        elif exchange(made, output):
            if ident(made) != move.was:  # what came there meanwhile goes back
                exchange(made, output)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(output))
        else:
            _replace(made, output, self.kept(output))

    def undo(self, moves: Sequence[Move]) -> None:
        """Put back what stood in the places that hold our files; where something else stands now, what stood there is kept."""
        for move in reversed(moves):
            now, made, kept = ident(move.output), self.made(move.output), self.kept(move.output)
            held = made if move.was is not None and ident(made) == move.was else kept
            if now == move.was and ident(held) is None:
                continue
            if now == move.new and move.was is None:
                if not os.path.lexists(made):  # a folder, or a file from a disk without hard links
                    move.output.replace(made)
                _remove(move.output)
            elif now in (move.new, None) and move.was is not None and ident(held) == move.was:
                _restore(held, move.output, now is not None)
            elif now not in (move.was, move.new) and move.was is not None and ident(held) == move.was:
                self.lost.append(move.output)

    def refuse_lost(self) -> None:
        """Say so where what was replaced could not be put back.

        Raises:
            ImuError: names the place and where it is now.
        """
        if self.lost:
            raise ImuError(
                f"{self.path}: holds what stood in {self.lost[0]} before a run that did not end, and something else stands "
                f"there now; move what you need out of {self.path}, and remove it"
            )

    def finish(self, goes: Sequence[Path]) -> None:
        """The outputs stand: remove what was to go with that."""
        for path in goes:
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):
                    path.rename(self.path / "old" / f"{path.name}.gone")

    # --- the end

    def remove(self) -> None:
        """Remove it with all that is in it, the plan first: without one it holds nothing that anybody needs."""
        if self.lost:
            return
        for name in ("plan.json", "new", "old", "lock"):
            with suppress(OSError):
                _remove(self.path / name)
        with suppress(OSError):
            self.path.rmdir()

    def close(self) -> None:
        """Let go of the lock: what is still there is a dead run's from now on."""
        locks.release(self.descriptor)


def _take(made: Path, output: Path) -> None:
    """Put a file or folder into a place where there is none."""
    if made.is_dir():
        if os.path.lexists(output):  # rename would take an empty folder's place; that one is somebody's
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(output))
        try:
            made.rename(output)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(output)) from error
            raise
        return
    try:
        os.link(made, output, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        # A disk without hard links: the place is taken by an empty file first.
        os.close(os.open(output, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        made.replace(output)


def _replace(made: Path, output: Path, kept: Path) -> None:
    """Put a file or folder into a place where there is one, which is kept, where the two cannot be exchanged.

    A file keeps its name until the new one has it; between two folders there is a moment without any.
    """
    if not output.is_dir() or output.is_symlink():
        with suppress(OSError):
            os.link(output, kept, follow_symlinks=False)
    if os.path.lexists(kept):
        made.replace(output)
        return
    output.rename(kept)
    made.rename(output)


def _restore(held: Path, output: Path, over: bool) -> None:
    """Put back what was replaced, ``over`` ours where that still stands there."""
    if over and exchange(held, output):
        return
    if over and output.is_dir() and not output.is_symlink():
        shutil.rmtree(output)
    held.replace(output)


# --- making them, and finding those of the dead


def begin(outputs: Sequence[Path]) -> Staging:
    """A new staging folder beside outputs of one folder, locked.

    Raises:
        OSError: the folder cannot be written.
    """
    parent, name = outputs[0].parent, os.fsencode(outputs[0].name)
    with locks.held_folder(parent):  # so that nobody sees it without its lock
        while True:
            shown = name[: LONGEST - ENDING].decode("utf-8", "ignore")  # cut between two characters
            path = parent / f".{shown}.imu-{os.urandom(4).hex()}"
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                continue
            descriptor = locks.take(path / "lock")
            if descriptor is not None:
                break
    try:
        (path / "new").mkdir()
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        locks.release(descriptor)
        raise
    return Staging(path, descriptor)


def _dead(path: Path) -> Staging | None:
    """The staging folder of a process that is no more; None if it lives, or is not one of ours."""
    try:
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or set(os.listdir(path)) - CONTENT:
            return None
        descriptor = locks.take(path / "lock", sure=True)
    except OSError:
        return None
    return None if descriptor is None else Staging(path, descriptor)


def _planned(found: Staging) -> tuple[list[Move], list[Path]]:
    """What a dead run was about to change; nothing where it had not come to that, or the plan is not one of ours."""
    parent = found.path.parent
    try:
        said = json_value((found.path / "plan.json").read_text(encoding="utf-8"), "names")
        moves = [Move(parent / item["name"], item["new"], item["was"]) for item in said["outputs"]]
        goes = [parent / name for name in said["goes"]]
    except FileNotFoundError:
        return [], []
    except (ValueError, KeyError, TypeError) as error:
        raise ImuError(
            f"{found.path / 'plan.json'}: not as imu writes it; look at that folder, and remove it"
        ) from error
    if any(path.parent != parent or path.name in ("", ".", "..") for path in [*(move.output for move in moves), *goes]):
        raise ImuError(
            f"{found.path / 'plan.json'}: names places outside its folder; look at that folder, and remove it"
        )
    return moves, goes


def _recover(found: Staging) -> None:
    moves, goes = _planned(found)
    if moves and all(ident(move.output) == move.new for move in moves):
        found.finish(goes)
    else:
        found.undo(moves)
        found.refuse_lost()
    sync(found.path.parent)
    found.remove()


def recover(folder: Path) -> None:
    """Finish or undo what runs that were killed were doing in a folder, and remove what they left.

    Raises:
        ImuError: what stood there before cannot be put back, for somebody has put something else there.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if NAMED.fullmatch(entry.name))
        if not names:
            return
        with locks.held_folder(folder):
            for name in names:
                found = _dead(folder / name)
                if found is not None:
                    try:
                        _recover(found)
                    finally:
                        found.close()
    except OSError:  # a folder that cannot be written, or that another run has tidied: what follows will say so
        return
