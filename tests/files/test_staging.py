"""Outputs taking their places: at every step in which a run can die, the next one puts back or finishes; nobody's files go."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from imu_cli.errors import ImuError
from imu_cli.files import locks, staging, writing
from imu_cli.files.staging import Staging

NAMES = ("a", "b")


def _begun(folder: Path, text: str = "new") -> Staging:
    """Two files made, ready to take their places."""
    made = staging.begin([folder / name for name in NAMES])
    for name in NAMES:
        made.made(folder / name).write_text(f"{text} {name}")
    return made


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def _die(made: Staging) -> None:
    """A process that is killed holds its lock no more, and tidies nothing."""
    locks.release(made.descriptor)


def _without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_renameat2", lambda: None)


def _without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_exchange(monkeypatch)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


SYSTEMS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "exchange and links": lambda _: None, "no exchange": _without_exchange, "neither, as on FAT": _without_links,
}  # fmt: skip


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("there", ["nothing", "both", "one"])
@pytest.mark.parametrize("placed", [0, 1, 2])
def test_killed_with_some_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, there: str, placed: int
) -> None:
    """None or one of two in its place: as it was before. Both: as it was to be. In each case nothing else is left."""
    SYSTEMS[system](monkeypatch)
    before = {name: f"old {name}" for name in NAMES[: {"nothing": 0, "both": 2, "one": 1}[there]]}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    made = _begun(tmp_path)
    moves = made.plan([tmp_path / name for name in NAMES], [])
    for move in moves[:placed]:
        made.place(move)
    staging.recover(tmp_path)  # of a process that lives
    assert made.path.exists()
    _die(made)
    staging.recover(tmp_path)
    assert _contents(tmp_path) == ({name: f"new {name}" for name in NAMES} if placed == 2 else before)
    assert len(list(tmp_path.iterdir())) == len(_contents(tmp_path))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_folder_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    """A folder and a file of one run: the folder is in place, the file is not; the old folder stands again with its files."""
    SYSTEMS[system](monkeypatch)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mine").write_text("old")
    made = staging.begin([tmp_path / "a", tmp_path / "b"])
    made.made(tmp_path / "a").mkdir()
    (made.made(tmp_path / "a") / "theirs").write_text("new")
    made.made(tmp_path / "b").write_text("new")
    made.place(made.plan([tmp_path / "a", tmp_path / "b"], [])[0])
    assert (tmp_path / "a/theirs").exists()
    _die(made)
    staging.recover(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["a", "a/mine"]


def test_a_folder_is_never_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two can be exchanged in one step there is no moment without a folder: nothing is renamed away from its place."""
    (tmp_path / "a").mkdir()
    if not staging.exchange(tmp_path / "a", tmp_path / "a"):
        pytest.skip("this file system cannot exchange two names")
    monkeypatch.setattr(staging, "_replace", lambda *_: pytest.fail("moved aside"))
    with writing.folder(tmp_path / "a", lambda _: None) as made:
        (made / "x").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a/x").read_text() == "new"


def test_somebody_elses_file_in_a_place_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Killed with one in place, and then the user put another file there: it stays; the rest is tidied."""
    made = _begun(tmp_path)
    made.place(made.plan([tmp_path / name for name in NAMES], [])[0])
    _die(made)
    (tmp_path / "a").unlink()
    (tmp_path / "a").write_text("the user's")
    staging.recover(tmp_path)
    assert _contents(tmp_path) == {"a": "the user's"}
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_replaced_is_never_thrown_away_unseen(tmp_path: Path) -> None:
    """The user's file was replaced, the run was killed, and another file stands there now: both are kept, and it is said."""
    (tmp_path / "a").write_text("first")
    made = _begun(tmp_path)
    made.place(made.plan([tmp_path / name for name in NAMES], [])[0])
    _die(made)
    (tmp_path / "a").unlink()
    (tmp_path / "a").write_text("third")
    for _ in range(2):
        with pytest.raises(ImuError, match=r"holds what stood in .*a before a run that did not end"):
            staging.recover(tmp_path)
    assert (tmp_path / "a").read_text() == "third"
    assert [path.read_text() for path in made.path.rglob("a")] == ["first"]


@pytest.mark.parametrize("content", ["thesis.tex", "new/x", "plan.json"])
def test_a_strangers_folder_of_such_a_name_stays(tmp_path: Path, content: str) -> None:
    """Called like ours, and with something else in it; or with a plan that names a place elsewhere: nothing is removed."""
    folder = tmp_path / "in" / ".a.imu-01234567"
    (folder / content).parent.mkdir(parents=True)
    (tmp_path / "victim").write_text("x")
    plan = '{"outputs": [{"name": "../victim", "new": [0, 1, 1, 1], "was": null}], "goes": ["../victim"]}'
    (folder / content).write_text(plan if content == "plan.json" else "years of work")
    if content == "plan.json":
        with pytest.raises(ImuError, match="names places outside its folder"):
            staging.recover(tmp_path / "in")
        (folder / content).write_text("[]")
        with pytest.raises(ImuError, match="not as imu writes it"):
            staging.recover(tmp_path / "in")
    else:
        staging.recover(tmp_path / "in")
    assert (tmp_path / "victim").read_text() == "x"
    assert (folder / content).exists() == (content != "new/x")  # that is what a killed run's looks like


def test_two_files_of_one_run_come_from_one_run(tmp_path: Path) -> None:
    """While one puts its two files in place, another waits, and then finds that they are taken."""
    with (  # noqa: PT012 what is raised comes from leaving the inner context
        pytest.raises(ImuError, match="exists; another run wrote it meanwhile"),
        writing.together(tmp_path / "a", tmp_path / "b") as late,
    ):
        for path in late:
            path.write_text("late")
        with writing.together(tmp_path / "a", tmp_path / "b") as early:
            for path in early:
                path.write_text("early")
    assert _contents(tmp_path) == {"a": "early", "b": "early"}
    assert len(list(tmp_path.iterdir())) == 2


def test_only_the_second_is_taken(tmp_path: Path) -> None:
    """The first took its place, the second could not: the first goes again, what stood there stands there."""
    (tmp_path / "a").write_text("old")
    with (  # noqa: PT012 what is raised comes from leaving the inner context
        pytest.raises(ImuError, match="b: exists"),
        writing.together(tmp_path / "a", tmp_path / "b", replaced=lambda _: None) as made,
    ):
        for path in made:
            path.write_text("new")
        plan = Staging.plan

        def then(self: Staging, *arguments: object) -> list[staging.Move]:
            moves = plan(self, *arguments)  # type: ignore[arg-type]
            (tmp_path / "b").write_text("somebody's")
            return moves

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Staging, "plan", then)
            writing._place([(_of(made[0]), [tmp_path / "a", tmp_path / "b"])], lambda _: None, ())
    assert _contents(tmp_path) == {"a": "old", "b": "somebody's"}


def _of(path: Path) -> Staging:
    """The staging folder of a file that is being made."""
    return Staging(path.parent.parent, -1)


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    """Held, it cannot be taken; let go, it can; and a file that was removed and made again is another lock."""
    first = locks.take(tmp_path / "lock")
    assert first is not None
    assert locks.take(tmp_path / "lock") is None
    (tmp_path / "lock").unlink()
    second = locks.take(tmp_path / "lock")
    assert second is not None
    locks.release(first)
    assert locks.take(tmp_path / "lock") is None
    locks.release(second)


def test_where_nobody_can_know_who_lives_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks: outputs are written as ever, and what looks left over stays."""
    import errno
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    made = _begun(tmp_path)
    _die(made)
    staging.recover(tmp_path)
    assert made.path.exists()
    with writing.together(tmp_path / "a") as (path,):
        path.write_text("x")
    assert (tmp_path / "a").read_text() == "x"
