"""Folders and shards in and out: what an index may say, which bytes change, what is carried along, never half a folder."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import listing
from safetensors.torch import load_file, save_file

from imu_cli.cli import main
from imu_cli.errors import ImuError, RefusedError
from imu_cli.models import checkpoint, layout
from imu_cli.models.checkpoint import open_checkpoint
from imu_cli.records.evaluation import Evaluation
from imu_cli.records.json_files import read
from imu_cli.records.record import Record

CONFIG = ["--config", "imu.yaml"]
GO = ["unlearn", "net", *CONFIG, "--forget", "class=3", "--quiet"]
FILES = ("a.safetensors", "b.safetensors", "c.safetensors")


def spread(values: dict[str, torch.Tensor], folder: Path) -> Path:
    """The tensors in three shards under an index, with the head's weight in one and its bias in another."""
    folder.mkdir()
    names = sorted(values)
    parts = [names[0::3], names[1::3], names[2::3]]
    for file, part in zip(FILES, parts, strict=True):
        save_file({name: values[name] for name in part}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in zip(FILES, parts, strict=True) for name in part}
    total = sum(tensor.nbytes for tensor in values.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def net(job: Path) -> Path:
    """The digits model as a sharded folder with files beside the weights."""
    folder = spread(load_file("model.safetensors"), job / "net")
    (folder / "labels.txt").write_text("zero\n")
    (folder / "README.md").write_text("a card")
    (folder / "LICENSE").write_text("free")
    (folder / "pytorch_model.bin").write_bytes(b"old weights")
    (folder / "model.onnx").write_bytes(b"old weights")
    (folder / "big.json").write_text(" " * 10_000_001)
    (folder / "runs").mkdir()
    return folder


def changed_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The folder with its index edited."""
    path = folder / "model.safetensors.index.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    return folder


def test_shards_are_one_model(tmp_path: Path) -> None:
    """A sharded folder has the tensors, and the backbone's hash, of the same model in one file."""
    random = torch.Generator().manual_seed(0)
    values = {f"{name}.weight": torch.randn(3, 2, generator=random) for name in "abcdefg"}
    save_file(values, tmp_path / "whole.safetensors")
    whole, spread_out = (
        open_checkpoint(tmp_path / "whole.safetensors"),
        open_checkpoint(spread(values, tmp_path / "net")),
    )
    assert set(spread_out.entries) == set(values)
    for name, tensor in spread_out.tensors().items():
        assert torch.equal(tensor, values[name])
        assert torch.equal(spread_out.tensor(name), values[name])
    assert spread_out.outside_hash({"c.weight"}) == whole.outside_hash({"c.weight"})
    assert checkpoint.differing(whole, spread_out) == []
    values["d.weight"][2, 1] += 1
    save_file({**values, "x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert checkpoint.differing(open_checkpoint(tmp_path / "other.safetensors"), spread_out) == ["d.weight", "x"]


def test_the_one_hash_is_what_sha256sum_gives(tmp_path: Path) -> None:
    """Anybody can check a record's hash of a sharded model with two standard programs; a single file has its own."""
    folder = spread({name: torch.ones(2) for name in "abc"}, tmp_path / "net")
    command = "LC_ALL=C; sha256sum *.safetensors *.safetensors.index.json | sort -k 2 | sha256sum"
    printed = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert open_checkpoint(folder).sha256 == printed.split()[0]
    assert open_checkpoint(folder / "model.safetensors.index.json").sha256 == printed.split()[0]
    single = hashlib.sha256((folder / "a.safetensors").read_bytes()).hexdigest()
    assert open_checkpoint(folder / "a.safetensors").sha256 == single


def test_a_folder_comes_back_as_a_folder(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the shards that hold the head change, and only there; small text files are carried, other weights are not."""
    assert main(GO[:-1]) == 0
    said = capsys.readouterr().err
    made = net.with_name("net.unlearned")
    found = read(made / "model.record.json")
    assert isinstance(found, Record)
    names = {path.name for path in made.iterdir()}
    assert names == {*FILES, "model.safetensors.index.json", "labels.txt", "README.md", "LICENSE", "model.record.json"}
    left = "big.json, model.onnx, pytorch_model.bin, runs/"
    assert f"left behind: {left}" in said
    assert any(left in note for note in found.notes)
    before, after = open_checkpoint(net), open_checkpoint(made)
    assert checkpoint.differing(before, after) == sorted(found.changed) == ["8.bias", "8.weight"]
    holders = {before.holder(name).path.name for name in found.changed}
    for name in names - holders - {"model.record.json"}:
        assert (made / name).read_bytes() == (net / name).read_bytes()
    for name in holders:
        assert before.layout.metadata == after.layout.metadata
        assert (made / name).stat().st_size == (net / name).stat().st_size
    assert (found.before.sha256, found.after.sha256) == (before.sha256, after.sha256)
    assert (found.before.path, found.after.path) == ("../net", "../net.unlearned")


def test_a_folder_and_one_file_unlearn_alike(net: Path) -> None:
    """How the tensors are spread over files changes nothing of what is computed."""
    assert main(GO) == 0
    assert main(["unlearn", "model.safetensors", *GO[2:]]) == 0
    whole = load_file("model.unlearned.safetensors")
    for name, tensor in open_checkpoint(Path("net.unlearned")).tensors().items():
        assert torch.equal(tensor, whole[name])


@pytest.mark.parametrize("move", [False, True], ids=["in place", "moved together"])
def test_evaluate_finds_record_and_original_of_a_folder(net: Path, digits: Path, move: bool) -> None:
    """``imu evaluate FOLDER`` needs no more than the test data, also once both folders have been moved."""
    assert main(GO) == 0
    if move:
        Path("elsewhere").mkdir()
        net.rename("elsewhere/net")
        Path("net.unlearned").rename("elsewhere/net.unlearned")
    made = Path("elsewhere/net.unlearned" if move else "net.unlearned")
    again = ["--forget", "class=3"] if move else []
    assert main(["evaluate", str(made), *CONFIG, *again, "--test", str(digits / "data/test"), "--quiet"]) == 0
    found = read(made / "model.evaluation.json")
    assert isinstance(found, Evaluation)
    assert found.head_only
    assert found.original is not None
    assert found.record is not None
    assert (found.original.path, found.record.path, found.model.path) == (
        "../net",
        "model.record.json",
        "../net.unlearned",
    )


def test_an_index_and_a_folder_of_one_file_are_folders_too(net: Path) -> None:
    """The index stands for its folder; a folder with one file keeps that file's name; -o names a folder."""
    assert main(["unlearn", "net/model.safetensors.index.json", *GO[2:], "-o", "one"]) == 0
    assert {*FILES, "model.record.json"} < {path.name for path in Path("one").iterdir()}
    Path("plain").mkdir()
    shutil.copy("model.safetensors", "plain/weights.safetensors")
    assert main(["unlearn", "plain/", *GO[2:], "-o", "two/"]) == 0
    assert {path.name for path in Path("two").iterdir()} == {"weights.safetensors", "weights.record.json"}
    shutil.copytree("plain", "here")
    assert main(["evaluate", "two", *CONFIG, "--quiet"]) == 0


def test_a_file_taken_out_of_its_folder_is_told_of_its_config(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file in gives a file; that its config.json stays where it was is said, but only if the output goes elsewhere."""
    Path("plain").mkdir()
    shutil.copy("model.safetensors", "plain/model.safetensors")
    Path("plain/config.json").write_text("{}")
    go = ["unlearn", "plain/model.safetensors", *CONFIG, "--arch", "model.py:digits_net", "--forget", "class=3"]
    assert main([*go, "-o", "out.safetensors"]) == 0
    assert "plain/config.json is not copied to ." in capsys.readouterr().err
    assert main(go) == 0
    assert "config.json" not in capsys.readouterr().err
    assert {path.name for path in Path("plain").iterdir()} == {
        "config.json", "model.safetensors", "model.unlearned.safetensors", "model.unlearned.record.json",
    }  # fmt: skip


def test_a_second_unlearning_of_a_folder_chains(net: Path) -> None:
    """An unlearned folder unlearned again names the first record; the first record is not carried along as its own."""
    assert main([*GO, "-o", "first"]) == 0
    assert main(["unlearn", "first", *CONFIG, "--forget", "class=5", "--quiet", "-o", "second"]) == 0
    found = read(Path("second/model.record.json"))
    assert isinstance(found, Record)
    assert found.previous is not None
    assert found.previous.record.path == "../first/model.record.json"


def test_force_replaces_an_earlier_result_and_nothing_else(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A result of the same model is replaced, with its evaluation; a folder with one foreign file is left as it is."""
    made = Path("net.unlearned")
    made.mkdir()  # an empty folder is in nobody's way
    assert main(GO) == 0
    first = (made / "model.record.json").read_bytes()
    assert main(["evaluate", str(made), *CONFIG, "--quiet"]) == 0
    before = listing(Path())
    assert main(GO) == 2
    assert "net.unlearned: exists" in capsys.readouterr().err
    assert listing(Path()) == before
    (made / "thesis.tex").write_text("years of work")
    before = listing(Path())
    assert main([*GO, "--force"]) == 2
    assert "holds thesis.tex, which an unlearning of this model does not write" in capsys.readouterr().err
    assert listing(Path()) == before
    (made / "thesis.tex").unlink()
    shutil.copytree(net, "another", ignore=lambda *_: {"runs", "big.json", "model.onnx", "pytorch_model.bin"})
    before = listing(Path())
    assert main([*GO, "--force", "-o", "another"]) == 2
    assert "another: holds a model without a record of its unlearning" in capsys.readouterr().err
    assert listing(Path()) == before
    assert main(["unlearn", "net", *CONFIG, "--forget", "class=5", "--quiet", "--force"]) == 0
    assert (made / "model.record.json").read_bytes() != first
    assert not (made / "model.evaluation.json").exists()
    assert [path.name for path in Path().iterdir() if path.name.startswith(".net")] == []


@pytest.mark.parametrize(
    ("output", "said"),
    [("net", "is the input"), ("link", "is the input"), ("file", "exists and is not a folder"),
     ("x.safetensors", "is written as a folder"), ("no/where", "no such folder")],
)  # fmt: skip
def test_outputs_that_cannot_be(net: Path, output: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The input under any name, a file, a name for a file, a missing parent: refused before any work."""
    Path("link").symlink_to(net)
    Path("file").write_text("")
    before = listing(Path())
    assert main([*GO, "--force", "-o", output]) == 2
    assert said in capsys.readouterr().err
    assert listing(Path()) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), ImuError("x")], ids=repr)
@pytest.mark.parametrize("there", [False, True], ids=["new", "replacing"])
def test_never_half_a_folder(net: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, there: bool) -> None:
    """Whatever goes wrong after the first shard was written, the folder is as it was: not there, or the earlier one."""
    if there:
        assert main(GO) == 0
    before = listing(Path())

    def fail(*_: object) -> None:
        assert any(path.name == "a.safetensors" for path in Path().glob(".net.unlearned.*/*"))
        raise error

    monkeypatch.setattr(checkpoint, "_compare", fail)
    assert main([*GO, "--force"]) == (130 if error is KeyboardInterrupt else 2)
    assert listing(Path()) == before
    assert not list(Path().glob(".net*"))


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    net: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the new folder cannot be renamed once the old one was moved aside, the old one is put back."""
    assert main(GO) == 0
    before, rename = listing(Path()), Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.suffix == ".part":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert main([*GO, "--force"]) == 2
    assert "Input/output error" in capsys.readouterr().err
    assert listing(Path()) == before
    assert not list(Path().glob(".net*"))


def test_a_shard_that_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    """Also a shard that holds nothing of the head must be the one that was opened, and so must the index."""
    values = {name: torch.ones(2) for name in "abc"}
    for name in ("b.safetensors", "model.safetensors.index.json"):
        source = open_checkpoint(spread(values, tmp_path / f"net {name}"))
        path = source.folder / name
        path.write_bytes(path.read_bytes().replace(b"pt", b"np") if name[0] == "b" else path.read_bytes() + b" ")
        target = tmp_path / f"out {name}"
        target.mkdir()
        with pytest.raises(ImuError, match="has changed since it was opened"):
            checkpoint.patch(source, {"a": torch.zeros(2)}, target)


def with_map(**changes: Any) -> Callable[[dict[str, Any]], object]:
    """An edit of an index's weight_map; None takes an entry out."""

    def edit(index: dict[str, Any]) -> None:
        index["weight_map"] |= changes
        index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file is not None}

    return edit


BAD_INDEX: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no weight_map": (lambda index: index.pop("weight_map"), "no weight_map"),
    "a list": (lambda index: index.update(weight_map=["a.safetensors"]), "no weight_map"),
    "empty": (lambda index: index.update(weight_map={}), "no weight_map"),
    "a number for a file": (with_map(a=3), "no weight_map"),
    "missing shard": (with_map(a="d.safetensors"), "d.safetensors is not there"),
    "a pickle": (with_map(a="pytorch_model.bin"), "no .safetensors files"),
    "in another shard": (with_map(a="b.safetensors"), "a is in a.safetensors, not in b.safetensors"),
    "nowhere": (with_map(z="a.safetensors"), "z is nowhere, not in a.safetensors"),
    "not listed": (with_map(d=None), "d of a.safetensors is not listed"),
    "a folder": (with_map(a="dir.safetensors"), "not a regular file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_INDEX)
def test_an_index_must_fit_its_shards(tmp_path: Path, name: str) -> None:
    """Each shard is there, and each tensor lies in the one shard that the index names, and is listed."""
    folder = spread({name: torch.ones(2) for name in "abcdef"}, tmp_path / "net")
    (folder / "dir.safetensors").mkdir()
    change, said = BAD_INDEX[name]
    changed_index(folder, change)
    with pytest.raises(ImuError, match=f"model.safetensors.index.json|{said}") as caught:
        layout.resolve(folder)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    """Which of the two the model means cannot be known."""
    folder = spread({name: torch.ones(2) for name in "abc"}, tmp_path / "net")
    save_file({"a": torch.zeros(2), "b": torch.ones(2)}, folder / "b.safetensors")
    with pytest.raises(ImuError, match=r"a stands in both a\.safetensors and b\.safetensors"):
        layout.resolve(folder)


def test_folders_that_do_not_say_which_model(tmp_path: Path) -> None:
    """Several files without an index ask; ``model.safetensors`` goes before others; pickles alone name imu convert."""
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "y.safetensors")
    with pytest.raises(ImuError, match=r"holds x\.safetensors, y\.safetensors; name the one"):
        layout.resolve(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    found = layout.resolve(tmp_path)
    assert found.main.name == "model.safetensors"
    assert found.notes == (f"{tmp_path}: x.safetensors, y.safetensors hold other weights, which are not read",)
    (tmp_path / "old").mkdir()
    torch.save({"a": torch.ones(1)}, tmp_path / "old/pytorch_model.bin")
    with pytest.raises(RefusedError, match=r"imu convert .*old/pytorch_model\.bin .*old/model\.safetensors"):
        layout.resolve(tmp_path / "old")


def test_metadata_that_shards_disagree_about_is_left_out(tmp_path: Path) -> None:
    """What all shards that say it agree on is the model's; a contradiction says nothing."""
    folder = spread({name: torch.ones(2) for name in "abc"}, tmp_path / "net")
    save_file({"a": torch.ones(2)}, folder / "a.safetensors", metadata={"format": "pt", "imu": "1", "k": "v"})
    save_file({"b": torch.ones(2)}, folder / "b.safetensors", metadata={"format": "pt", "imu": "2"})
    assert layout.resolve(folder).metadata == {"format": "pt", "k": "v"}
