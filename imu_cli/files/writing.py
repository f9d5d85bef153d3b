"""Files and folders written whole or not at all, and put in their places so that a later run can always tell."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.files import locks, staging
from imu_cli.files.staging import Staging, sync

PLACED: list[Path] = []
"""Outputs that this process has put in their places, in order: what a run that is stopped must say is there."""

Refuse = Callable[[Path], object]
"""Raises an ``ImuError`` for an output in whose place something stands that may not be replaced."""


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def taken(output: Path) -> ImuError:
    """The error for an output that came into being while we worked."""
    return ImuError(
        f"{output}: exists; another run wrote it meanwhile, choose another --output, or --force to replace it"
    )


def nothing(output: Path) -> None:
    """What may be replaced without ``--force``: nothing.

    Raises:
        ImuError: something stands there.
    """
    if os.path.lexists(output):
        raise taken(output)


def _put_back(made: Staging, moves: Sequence[staging.Move]) -> None:
    made.undo(moves)
    made.refuse_lost()


def _place(stagings: Sequence[tuple[Staging, list[Path]]], replaced: Refuse, goes: Sequence[Path]) -> None:
    """Put every file in its output's place; if one of them cannot, the others are put back as they were."""
    outputs = [output for _, mine in stagings for output in mine]
    with ExitStack() as held, ExitStack() as undo:
        for folder in sorted(
            {output.parent.resolve() for output in outputs}
        ):  # in one order, so that no two runs wait for each other
            held.enter_context(locks.held_folder(folder))
        for output in outputs:
            replaced(output)
        for made, mine in stagings:
            moves = made.plan(mine, [path for path in goes if path.parent == made.path.parent])
            undo.callback(_put_back, made, moves)
            for move in moves:
                try:
                    made.place(move)
                except FileExistsError as error:
                    raise taken(move.output) from error
        for made, _ in stagings:
            sync(made.path.parent)
        # The moment from which the outputs stay: they are said to be there if, and only if, nothing undoes them any more.
        length = len(PLACED)
        undo.callback(lambda: PLACED.__delitem__(slice(length, None)))
        PLACED.extend(outputs)
        undo.pop_all()
        for made, _ in stagings:
            made.finish([path for path in goes if path.parent == made.path.parent])
            made.remove()


@contextmanager
def said_as(message: Callable[[str], str]) -> Iterator[None]:
    """What a disk refuses, also where safetensors says it in an error of its own, as ``message`` of the reason.

    Raises:
        ImuError: that message.
    """
    try:
        yield
    except OSError as error:
        raise ImuError(message(error.strerror or str(error))) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # what that library makes of a full disk
            raise
        raise ImuError(message(str(error))) from error


@contextmanager
def _staged(
    outputs: Sequence[Path], replaced: Refuse, goes: Sequence[Path]
) -> Iterator[list[tuple[Staging, list[Path]]]]:
    parents: dict[Path, list[Path]] = {}
    for output in outputs:
        parents.setdefault(output.parent, []).append(output)
    stagings: list[tuple[Staging, list[Path]]] = []
    signals.check()
    try:
        with said_as(
            lambda why: f"{outputs[0].parent}: cannot write ({why}); nothing was written, choose another place"
        ):
            for mine in parents.values():
                staging.recover(mine[0].parent)
                stagings.append((staging.begin(mine), mine))
            yield stagings
            signals.check()
            _place(stagings, replaced, goes)
    finally:
        for made, _ in stagings:
            if made.path.exists():
                made.remove()
            made.close()


@contextmanager
def together(
    *outputs: Path, private: bool = False, replaced: Refuse = nothing, goes: Sequence[Path] = ()
) -> Iterator[list[Path]]:
    """Temporary files beside the outputs that take all their places at the end, or leave nothing behind.

    On leaving normally each file gets the mode the umask asks for (``private``: only its owner may read it) and takes its
    output's place once it is on the disk; after any exception, Ctrl-C included, the temporary files are removed and the outputs
    are as they were. A process that is killed meanwhile leaves what the next run in that folder finishes or undoes.

    Args:
        outputs: files; those of one folder appear all or none, whatever happens.
        private: whether only the owner may read them.
        replaced: raises for an output that may not be replaced, asked in the moment in which no other run writes there.
        goes: folders beside the outputs that are removed with that.

    Raises:
        ImuError: the disk is full, the folder cannot be written, or another run has written an output meanwhile.
    """
    if not outputs:
        yield []
        return
    with _staged(outputs, replaced, goes) as stagings:
        places = {output: made.made(output) for made, mine in stagings for output in mine}
        yield [places[output] for output in outputs]
        for path in places.values():
            path.chmod(0o600 if private else 0o666 & ~_umask())
            sync(path)


@contextmanager
def folder(output: Path, replaced: Refuse = nothing) -> Iterator[Path]:
    """A temporary folder beside ``output`` that takes its place at the end, or leaves nothing behind.

    A folder that is there changes places with it in one step, where the system can do that, and is removed then.

    Raises:
        ImuError: the disk is full, the folder cannot be written, or another run has written it meanwhile.
    """
    with _staged([output], replaced, ()) as [(made, _)]:
        path = made.made(output)
        path.mkdir()
        yield path
        for inner, _, names in os.walk(path):
            for name in names:
                sync(Path(inner, name))
            sync(Path(inner))
        path.chmod(0o777 & ~_umask())
