"""The score cache: what it answers is what would be computed, or nothing; its files are private, whole, or noticed."""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from plans import assert_close_rows
from safetensors.torch import load, save_file

from imu_cli.cli import main
from imu_cli.errors import ImuError
from imu_cli.features import cache, cache_entries

FIELDS: dict[str, Any] = {
    "samples": "s",
    "backbone": "b",
    "head": "h",
    "damping": "0.01",
    "preprocess": {"size": None, "mode": "L"},
}
SAMPLES = [{"name": "3/é.png", "label": "3", "digest": "d0"}, {"name": "3/b.png", "label": "3", "digest": "d1"}]


pytestmark = pytest.mark.usefixtures("one_thread")


def tensors(value: float = 1.0, n: int = 2) -> dict[str, torch.Tensor]:
    """Scores of n samples, and what is kept with them."""
    scores = torch.full((n,), value, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    return {"scores": scores, "confidence": scores * 0, "right": scores > 0, "damping": one, "mean_fisher": one + 1}


def saver(value: float = 1.0, n: int = 2) -> Callable[[Path], None]:
    """What writes them as safetensors."""
    return lambda path: save_file(tensors(value, n), path)


def write(
    fields: dict[str, Any] | None = None, samples: list[dict[str, str]] | None = None, value: float = 1.0
) -> cache_entries.Entry:
    """An entry, written and read back."""
    path = cache.write("scores", fields or FIELDS, samples or SAMPLES, saver(value, len(samples or SAMPLES)))
    return cache.named(path.stem)


def stored() -> dict[str, torch.Tensor] | None:
    """What the cache has for the fields above."""
    return cache.find("scores", FIELDS).tensors


# --- a changed weight, row, label, option or preprocessing never meets a stale score


@pytest.fixture
def work(job: Path, digits: Path) -> Path:
    """Twenty digits with a list of them, in a folder with the trained network."""
    rows = ["file_name,label"]
    for label in (3, 5):
        for image in sorted((digits / "data/train" / str(label)).glob("*.png"))[:10]:
            Image.open(image).save(job / image.name)
            rows.append(f"{image.name},{label}")
    Path("forget.csv").write_text("\n".join(rows) + "\n")
    Path("steps.yaml").write_text("{mode: L, mean: [0.305], std: [0.376]}\n")
    return job


def scored(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    """``imu influence`` as JSON."""
    command = ["influence", "model.safetensors", "--arch", "model.py:digits_net", "--preprocess", "steps.yaml"]
    assert main([*command, "--forget", "forget.csv", "--format", "json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def change_tensor(name: str) -> None:
    values = load(Path("model.safetensors").read_bytes())
    values[name].view(-1)[0] += 1e-3
    save_file(values, "model.safetensors")


def lines(edit: Callable[[list[str]], list[str]]) -> None:
    head, *rows = Path("forget.csv").read_text().splitlines()
    Path("forget.csv").write_text("\n".join([head, *edit(rows)]) + "\n")


def relabel(rows: list[str]) -> list[str]:
    return [rows[0].replace(",3", ",4"), *rows[1:]]


def repaint() -> None:
    path = Path(Path("forget.csv").read_text().splitlines()[1].split(",")[0])
    image = Image.open(path)
    image.load()
    image.putpixel((0, 0), 200)
    image.save(path)


CHANGES: dict[str, tuple[Callable[[], object], list[str]]] = {
    "a weight of the head": (lambda: change_tensor("8.weight"), []),
    "the head's bias": (lambda: change_tensor("8.bias"), []),
    "a weight of the backbone": (lambda: change_tensor("0.weight"), []),
    "a buffer of the backbone": (lambda: change_tensor("3.running_mean"), []),
    "a row less": (lambda: lines(lambda rows: rows[1:]), []),
    "the order of rows": (lambda: lines(lambda rows: rows[::-1]), []),
    "a label": (lambda: lines(relabel), []),
    "a pixel": (repaint, []),
    "the damping": (lambda: None, ["--damping", "0.02"]),
    "relative damping": (lambda: None, ["--damping", "relative:0.01"]),
    "the mean": (lambda: Path("steps.yaml").write_text("{mode: L, mean: [0.3051], std: [0.376]}\n"), []),
    "a crop": (lambda: Path("steps.yaml").write_text("{mode: L, size: 9, crop: 8, mean: [0.305], std: [0.376]}\n"), []),
    "the factory": (
        lambda: Path("model.py").write_text(Path("model.py").read_text().replace("nn.ReLU()", "nn.GELU()")),
        [],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_is_computed_anew(work: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """After any change the scores are those of a run without the cache, bit by bit; once more, they come from the cache."""
    change, options = CHANGES[name]
    first = scored(capsys)
    change()
    found = scored(capsys, *options)
    assert found["scores"]["from_cache"] is False
    assert found["rows"] == scored(capsys, *options, "--no-cache")["rows"]
    assert found["rows"] != first["rows"]
    again = scored(capsys, *options)
    assert again["scores"]["from_cache"] is True
    assert again["rows"] == found["rows"]


def test_what_is_applied_to_scores_afterwards_needs_no_new_ones(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fraction kept, clipping and batch size change scores by rounding at most: they are read, and give what no cache gives."""
    scored(capsys)
    for options in (["--keep", "0.5"], ["--clip-quantile", "0.5"], ["--batch-size", "3"]):
        found = scored(capsys, *options)
        assert found["scores"]["from_cache"] is True
        fresh = scored(capsys, *options, "--no-cache")
        assert_close_rows(fresh["rows"], found["rows"])


def test_no_cache_neither_reads_nor_writes(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --no-cache nothing is left on disk, and an entry that is there is not used."""
    scored(capsys, "--no-cache")
    assert not cache.folder().exists()
    scored(capsys)
    assert scored(capsys, "--no-cache")["scores"]["from_cache"] is False


def test_features_are_only_kept_on_request(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Features of people who ask to be erased are personal data: by default scores alone are stored."""
    scored(capsys)
    assert [entry.kind for entry in cache.entries()[0]] == ["scores"]
    scored(capsys, "--cache-features", "--damping", "0.02")
    assert sorted(entry.kind for entry in cache.entries()[0]) == ["features", "scores", "scores"]


# --- keys and lookups


def test_an_entry_comes_back_as_it_was_written() -> None:
    """Tensors, fields and samples are those that went in, names that are not ASCII or not UTF-8 too."""
    samples = [*SAMPLES, {"name": os.fsdecode(b"3/\xff.png"), "label": "ü", "digest": "d2"}]
    entry = write(samples=samples)
    found = cache_entries.read(entry)
    assert found is not None
    assert torch.equal(found["scores"], tensors(n=3)["scores"])
    assert entry.fields == FIELDS
    assert list(entry.samples()) == samples
    assert entry.count == 3
    plain = json.loads(entry.paths[1].read_text())
    assert (plain["fields"], plain["samples"]) == (FIELDS, samples)
    assert cache.entries() == ([entry], [])
    assert entry.size() == sum(path.stat().st_size for path in cache.folder().iterdir())


def test_keys_depend_on_every_field_and_not_on_their_order() -> None:
    """Fields in another order have the same key; another kind, value, or field more or less has another."""
    key = cache_entries.key_of("scores", FIELDS)
    assert cache_entries.key_of("scores", dict(reversed(FIELDS.items()))) == key
    changed = [{**FIELDS, name: "other"} for name in FIELDS]
    less = [{name: FIELDS[name] for name in FIELDS if name != gone} for gone in FIELDS]
    others = [*changed, *less, {**FIELDS, "more": None}, {**FIELDS, "preprocess": {"size": 8, "mode": "L"}}]
    keys = {cache_entries.key_of("scores", fields) for fields in others} | {
        cache_entries.key_of("features", FIELDS),
        key,
    }
    assert len(keys) == len(others) + 2


def test_a_miss_says_what_differs_from_the_nearest_entry() -> None:
    """The user learns why nothing was found: which fields differ from the most similar entry; nothing about strangers."""
    write()
    write({**FIELDS, "head": "h2", "damping": "0.1"})
    assert cache.find("scores", {**FIELDS, "damping": "0.02"}).why == "differs in damping"
    assert cache.find("scores", {**FIELDS, "head": "h2", "damping": "0.2"}).why == "differs in damping"
    assert cache.find("scores", {**FIELDS, "samples": "x", "backbone": "y"}).why == ""
    assert cache.find("features", FIELDS).why == ""


def test_entries_are_named_by_the_start_of_their_key() -> None:
    """A prefix of the key, or of kind and key, names an entry; none or several is an error that says so."""
    made = [write({**FIELDS, "damping": str(i)}) for i in range(20)]
    assert cache.named(made[7].key[:12]) == made[7]
    assert cache.named(f"scores-{made[7].key[:12]}") == made[7]
    with pytest.raises(ImuError, match="no cache entries start so"):
        cache.named("x")
    with pytest.raises(ImuError, match="20 cache entries start so"):
        cache.named("scores-")


# --- torn and edited entries


def test_every_flipped_bit_is_noticed() -> None:
    """Change any byte of either file: the entry counts as missing, the reason is said, and it is never read."""
    entry = write()
    assert stored() is not None
    for path in entry.paths:
        data = path.read_bytes()
        for at in range(len(data)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            found = cache.find("scores", FIELDS)
            assert found.tensors is None, (path.name, at, data[max(0, at - 20) : at + 20])
            assert "torn or was edited" in found.why
        path.write_bytes(data)
    assert stored() is not None


def test_every_cut_is_noticed() -> None:
    """A file that was cut short anywhere, or is gone, is noticed; a JSON file that is gone is a plain miss."""
    entry = write()
    for path in entry.paths:
        data = path.read_bytes()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            assert stored() is None
        path.unlink()
        assert stored() is None
        path.write_bytes(data)
    assert stored() is not None


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a field": lambda plain: plain["fields"].update(damping="0.02"),
    "no fields": lambda plain: plain.update(fields=None),
    "fields are a list": lambda plain: plain.update(fields=[1]),
    "a sample's label": lambda plain: plain["samples"][0].update(label="4"),
    "a sample less": lambda plain: plain["samples"].pop(),
    "a sample less, and counted": lambda plain: plain.update(samples=plain["samples"][:1], count=1),
    "samples without digests": lambda plain: plain.update(samples=[{"name": "a", "label": "3"}] * 2),
    "samples are names": lambda plain: plain.update(samples=["a", "b"]),
    "the number of samples": lambda plain: plain.update(count=3),
    "the checksum": lambda plain: plain.update(sha256="0" * 64),
    "another format": lambda plain: plain.update(format=cache_entries.FORMAT + 1),
}


def laid_out(plain: dict[str, Any]) -> str:
    """JSON on the lines that an entry has."""
    head = json.dumps({"format": plain["format"], "fields": plain["fields"]})[:-1]
    rows = ",\n".join(map(json.dumps, plain["samples"]))
    return f'{head},\n"samples": [\n{rows}\n], "count": {plain["count"]}, "sha256": "{plain["sha256"]}"}}\n'


@pytest.mark.parametrize("name", EDITS)
def test_edited_json_is_noticed(name: str) -> None:
    """Whatever is edited in the JSON file, the entry is not used, and no listing breaks on it."""
    entry = write()
    plain = json.loads(entry.paths[1].read_text())
    assert entry.paths[1].read_text() == laid_out(plain)
    EDITS[name](plain)
    entry.paths[1].write_text(laid_out(plain))
    assert stored() is None
    readable, broken = cache.entries()
    assert broken == [entry.paths[1]] or [cache_entries.read(item) for item in readable] == [None]
    cache.belonging({"d0"})


def test_json_on_other_lines_is_a_broken_entry() -> None:
    """The same content on one line, as another tool may write it, was edited."""
    entry = write()
    entry.paths[1].write_text(json.dumps(json.loads(entry.paths[1].read_text())))
    assert stored() is None
    assert cache.entries() == ([], [entry.paths[1]])


@pytest.mark.parametrize("text", ["", "null", "[]", "3", '"text"', "{", "\xff"])
def test_json_files_of_another_kind_are_broken_entries(text: str) -> None:
    """What is no entry at all is listed as broken, beside the good ones."""
    good = write()
    bad = cache.folder() / f"scores-{'0' * 32}.json"
    bad.write_bytes(text.encode("latin-1"))
    stranger = cache.folder() / "notes.json"
    stranger.write_text("{}")
    assert cache.entries() == ([good], sorted([bad, stranger]))


def test_writing_again_mends_a_broken_entry() -> None:
    """A torn entry is replaced as a whole when it is computed again."""
    entry = write()
    entry.paths[0].write_bytes(b"")
    assert stored() is None
    write(value=2.0)
    found = stored()
    assert found is not None
    assert torch.equal(found["scores"], tensors(2.0)["scores"])


def test_what_a_killed_process_left_is_listed_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    """Tensors without their JSON file, and temporary ones, may be personal data: they are found and can be removed.

    What a process that lives is writing has its lock, and stays. A file of an earlier version, which knew no lock, is given an
    hour, but where nothing is to stay.
    """
    kept = write()
    torn = write({**FIELDS, "damping": "1"})
    torn.paths[1].unlink()
    old, new = cache.folder() / ".tmp-old", cache.folder() / ".tmp-new"
    for path in (old, new):
        path.write_bytes(b"features")
    os.utime(old, (time.time() - 2 * cache.STALE,) * 2)
    dead = cache.folder() / ".tmp-dead"
    dead.mkdir()
    (dead / "data").write_bytes(b"features")
    with cache.scratch() as living:  # in passing, what has a lock that nobody holds goes
        living.write_bytes(b"features")
        assert sorted(cache.folder().iterdir()) == sorted([*kept.paths, torn.paths[0], old, new, living.parent])
        dead.mkdir()
        assert cache.entries() == ([kept], sorted([torn.paths[1], old, dead]))
        assert main(["cache", "verify"]) == 3
        assert main(["cache", "rm", "--broken"]) == 0
        assert sorted(cache.folder().iterdir()) == sorted([*kept.paths, new, living.parent])
        assert main(["cache", "verify"]) == 0
        dead.mkdir()
        assert main(["cache", "rm", "--all"]) == 0
        assert list(cache.folder().iterdir()) == [living.parent]
    assert list(cache.folder().iterdir()) == []
    capsys.readouterr()


@pytest.mark.parametrize("how", ["key", "forget"])
def test_what_is_left_goes_with_whatever_is_removed(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody can say whose features a killed process left: removing a person's entries removes them too."""
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    entry = write()
    dead = cache.folder() / ".tmp-dead"
    dead.mkdir()
    for name in ("data", "lock", ".tmpYRAlu1"):  # the last is what safetensors was still writing
        (dead / name).write_bytes(b"features")
    bare = cache.folder() / f"features-{'0' * 32}.safetensors"
    bare.write_bytes(b"features")
    assert main(["cache", "rm", *([entry.key] if how == "key" else ["--forget", str(tmp_path)])]) == 0
    assert "left by a process that was killed" in capsys.readouterr().err
    assert sorted(cache.folder().iterdir()) == ([] if how == "key" else sorted(entry.paths))


def test_somebody_elses_files_in_the_folder_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``IMU_CACHE_DIR`` may be a folder with other things in it: none of them is ever removed."""
    monkeypatch.setenv("IMU_CACHE_DIR", str(tmp_path))
    write()
    mine = {"config.json": "{}", "config.safetensors": "x", "scores-.safetensors": "x", ".tmp-mine/thesis.tex": "x"}
    for name, text in mine.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for more in (["--all"], ["--broken"], ["--all", "--broken"]):
        assert main(["cache", "rm", *more]) == 0
        assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(mine)


# --- several processes

WRITER = """
import sys, torch
from safetensors.torch import save_file
from imu_cli.features import cache
fields, samples, value = {fields!r}, {samples!r}, float(sys.argv[1])
many, one = torch.full((2,), value, dtype=torch.float64), torch.ones(1)
tensors = {{"scores": many, "confidence": many * 0, "right": many > 0, "damping": one, "mean_fisher": one * 2}}
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    cache.write("scores", fields, samples, lambda path: save_file(tensors, path))
"""


def test_two_processes_may_write_the_same_entry_at_once() -> None:
    """While two processes write different tensors under one key, a reader gets one or the other or nothing, never a mix.

    Afterwards no temporary file is left, and writing once more gives a whole entry whatever the two left.
    """
    code = WRITER.format(fields=FIELDS, samples=SAMPLES)
    command = [sys.executable, "-c", code]
    writers = [
        subprocess.Popen([*command, value], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for value in "12"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    seen = []
    while any(writer.poll() is None for writer in writers):
        found = stored()
        cache.entries()
        seen += [] if found is None else found["scores"].tolist()
    assert [(writer.wait(), writer.communicate()[0]) for writer in writers] == [(0, ""), (0, "")]
    assert seen
    assert set(seen) <= {1.0, 2.0}
    assert not list(cache.folder().glob(".tmp-*"))
    assert len(list(cache.folder().iterdir())) == 2
    write(value=3.0)
    found = stored()
    assert found is not None
    assert found["scores"].tolist() == [3.0, 3.0]


# --- privacy


def test_only_the_owner_can_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder is made with mode 0700 and its files with 0600, whatever the umask."""
    monkeypatch.setenv("IMU_CACHE_DIR", str(tmp_path / "a" / "b"))
    before = os.umask(0)
    try:
        entry = write()
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.folder().stat().st_mode) == 0o700
    for path in entry.paths:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_entries_go_with_the_samples_in_them() -> None:
    """``belonging`` names exactly the entries that hold any of the digests; removing one leaves the others alone."""
    both, first, other = (
        write({**FIELDS, "damping": str(i)}, [{"name": digest, "label": "3", "digest": digest} for digest in digests])
        for i, digests in enumerate((["d0", "d1"], ["d0"], ["d2"]))
    )

    def keys(digests: set[str]) -> set[str]:
        return {entry.key for entry in cache.belonging(digests)}

    assert keys({"d0"}) == {both.key, first.key}
    assert keys({"d1", "d2"}) == {both.key, other.key}
    assert keys({"d3"}) == keys(set()) == set()
    cache.remove(both)
    cache.remove(both)  # removing twice is no error: another process may have been first
    assert keys({"d0", "d1", "d2"}) == {first.key, other.key}
    assert sorted(cache.folder().iterdir()) == sorted([*first.paths, *other.paths])


def test_a_folder_that_cannot_be_written_is_an_imu_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the cache folder's place: reading finds nothing, writing says what to set."""
    (tmp_path / "file").write_text("mine")
    for folder in ("file", "file/below"):
        monkeypatch.setenv("IMU_CACHE_DIR", str(tmp_path / folder))
        assert stored() is None
        assert cache.entries() == ([], [])
        with pytest.raises(ImuError, match="set IMU_CACHE_DIR or --no-cache"):
            cache.write("scores", FIELDS, SAMPLES, saver())
    assert (tmp_path / "file").read_text() == "mine"
