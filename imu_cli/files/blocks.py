"""The folder ``OUTPUT.parts``, in which a long run keeps what is done, so that the next one goes on from there.

It is one run's at a time, by the lock in it. What a run that was killed left is known by its names: blocks, what was being
written, and the plan that all of them follow. A folder with anything else in it is somebody's, and stays.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.files import locks, staging
from imu_cli.files.reading import read_json

NAMED = re.compile(r"plan\.json|lock|[0-9]{5}\.safetensors")
UNDONE = re.compile(r"plan\.json\.part|[0-9]{5}\.[0-9]+\.part|" + staging.LIBRARY)
"""Files that a run which ended early was still writing."""


def of(output: Path) -> Path:
    """The folder that belongs to an output."""
    return output.with_name(f"{output.name}.parts")


def _refuse_foreign(folder: Path) -> None:
    said = f"{folder}: is there and was not left by imu features; choose another --output"
    if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.geteuid():
        raise ImuError(said)
    if not all(map(_is_ours, os.listdir(folder))):
        raise ImuError(said)


def _is_ours(name: str) -> bool:
    return bool(NAMED.fullmatch(name) or UNDONE.fullmatch(name))


def _is_block(name: str) -> bool:
    return name.endswith(".safetensors")


def _planned(folder: Path) -> Any:
    """What the blocks in it follow; None where a run was killed before it had said so."""
    plan = folder / "plan.json"
    if not plan.exists():
        return None
    try:
        return read_json(plan, texts="names")
    except ImuError:
        return {}


def _begin(folder: Path, said: Mapping[str, Any]) -> None:
    """Nothing in it but the plan, and the lock."""
    for name in sorted(os.listdir(folder)):  # the plan goes after the blocks that follow it
        if name != "lock":
            (folder / name).unlink()
    part = folder / "plan.json.part"
    part.write_text(json.dumps(said, sort_keys=True), encoding="utf-8")
    part.replace(folder / "plan.json")


def prepare(output: Path, said: Mapping[str, Any], force: bool) -> int:
    """The folder of an output's parts, made or found, ours alone until it is left, with the descriptor that is returned.

    ``said`` is what all parts follow. Those of a run that said the same stay; those of another are refused, or with
    ``force`` removed.

    Raises:
        ImuError: another run is at work in it or left it, it is not ours, or it cannot be made.
    """
    folder = of(output)
    signals.check()
    try:
        with locks.held_folder(output.parent):
            if os.path.lexists(folder):
                _refuse_foreign(folder)
            else:
                folder.mkdir(mode=0o700)
            descriptor = locks.take(folder / "lock")
            if descriptor is None:
                raise ImuError(
                    f"{output}: another run is writing it at this moment; wait for it, or choose another --output"
                )
            try:
                _agree(folder, said, force)
            except BaseException:
                leave(output, descriptor)
                raise
            return descriptor
    except OSError as error:
        raise ImuError(f"{folder}: cannot be written ({error.strerror}); choose another --output") from error


def has_any(output: Path) -> bool:
    """Whether anything is there that a later run could go on from."""
    return any(map(_is_block, _listed(of(output))))


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def leave(output: Path, descriptor: int) -> None:
    """Let go of the folder at the end of a run, whatever its end was; where no part was done nothing stays."""
    folder = of(output)
    try:
        # Nobody enters while its files go, the lock's among them.
        with suppress(OSError), locks.held_folder(output.parent):
            names = _listed(folder)
            if not any(map(_is_block, names)) and all(map(_is_ours, names)):
                for name in names:
                    (folder / name).unlink()
                folder.rmdir()
    finally:
        locks.release(descriptor)


def _agree(folder: Path, said: Mapping[str, Any], force: bool) -> None:
    found = _planned(folder)
    if found is None or (force and found != said):
        _begin(folder, said)
        return
    differs = [name for name in said if not isinstance(found, dict) or found.get(name) != said[name]]
    if differs:
        raise ImuError(
            f"{folder}: was left by another run, which differs in {', '.join(differs)}; --force begins anew, or choose "
            "another --output"
        )
    for name in os.listdir(folder):
        if UNDONE.fullmatch(name):
            (folder / name).unlink()
