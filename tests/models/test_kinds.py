"""What a file or folder is that is no model: pointers, trainers' files, shards, adapters; and what is advised instead."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from imu_cli.cli import main
from imu_cli.commands import convert as converting
from imu_cli.errors import ImuError, RefusedError
from imu_cli.models import candidates, names
from imu_cli.models.checkpoint import open_checkpoint

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 110367416\n"
STATE = {"conv.weight": torch.ones(4, 3, 3, 3), "fc.weight": torch.ones(5, 4), "fc.bias": torch.ones(5)}


def optimiser() -> dict[str, Any]:
    weights = [torch.nn.Parameter(torch.ones(3))]
    made = torch.optim.AdamW(weights)
    weights[0].grad = torch.ones(3)
    made.step()
    return made.state_dict()


SCHEDULE = {"last_epoch": 500, "_step_count": 501, "base_lrs": [5e-5], "_last_lr": [0.0]}
RANDOM = {"python": (3, (1, 2), None), "cpu": torch.get_rng_state()}


def trainer(folder: Path) -> Path:
    """A checkpoint folder as transformers' Trainer left it before safetensors."""
    folder.mkdir()
    torch.save(STATE, folder / "pytorch_model.bin")
    torch.save(optimiser(), folder / "optimizer.pt")
    torch.save(SCHEDULE, folder / "scheduler.pt")
    torch.save(RANDOM, folder / "rng_state.pth")
    (folder / "training_args.bin").write_bytes(b"\x80\x02}.")
    return folder


def sharded(folder: Path, index: bool = True) -> Path:
    """Two shards of a pickled model, and their index."""
    folder.mkdir()
    files = {
        "pytorch_model-00001-of-00002.bin": ["conv.weight"],
        "pytorch_model-00002-of-00002.bin": ["fc.weight", "fc.bias"],
    }
    for file, part in files.items():
        torch.save({name: STATE[name] for name in part}, folder / file)
    if index:
        weight_map = {name: file for file, part in files.items() for name in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    "text", [POINTER, "# xet version 0\nhash = 'a'\n", "\n<!DOCTYPE html><title>404</title>", "<html>"]
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_text_in_place_of_weights_is_called_what_it_is(tmp_path: Path, name: str, text: str) -> None:
    """A pointer of Git LFS or Xet, or a downloaded page, is named, by itself and in its folder, before anything is advised."""
    (tmp_path / name).write_text(text)
    for model in (tmp_path / name, tmp_path):
        if model.is_dir() and name.endswith(".bin"):
            continue
        with pytest.raises(ImuError, match=r"a (Git LFS|Git Xet) pointer|a web page") as caught:
            open_checkpoint(model)
        assert "fetch the file itself" in str(caught.value)
    if text == POINTER:
        with pytest.raises(ImuError, match="text in place of 110,367,416 bytes"):
            open_checkpoint(tmp_path / name)
    if name.endswith(".bin"):
        with pytest.raises(ImuError, match=r"pointer|web page"):
            converting.run(tmp_path / name, tmp_path / "out.safetensors")


def test_the_model_of_a_trainers_folder_is_proposed_and_converted(tmp_path: Path) -> None:
    """The advice names the model's file, never the optimiser's; it runs, and the folder as IN gives the same."""
    folder = trainer(tmp_path / "checkpoint-500")
    with pytest.raises(RefusedError, match=r"imu convert .*/pytorch_model\.bin .*/model\.safetensors") as caught:
        open_checkpoint(folder)
    assert "optimizer" not in str(caught.value)
    words = str(caught.value).partition("imu convert ")[2].split()
    assert main(["convert", *words, "--quiet"]) == 0
    assert set(load_file(words[1])) == set(STATE)
    converting.run(folder, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == Path(words[1]).read_bytes()


def test_a_folder_of_checkpoints_lists_them(tmp_path: Path) -> None:
    """What a Trainer's output folder holds are folders, and one of them has to be named."""
    trainer(tmp_path / "checkpoint-500")
    with pytest.raises(ImuError, match="a folder of checkpoints, checkpoint-500; name one"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("make", "what"),
    [(optimiser, "an optimiser's state"), (lambda: SCHEDULE, "a learning-rate schedule"),
     (lambda: RANDOM, "states of random number generators")],
    ids=["optimiser", "schedule", "random"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["weights.pth", "a.bin", "last.ckpt"])
def test_a_trainers_file_is_no_model_under_any_name(
    tmp_path: Path, make: Callable[[], Any], what: str, name: str
) -> None:
    """Known by what is in it: converting it is an error that says so, and writes nothing."""
    torch.save(make(), tmp_path / name)
    with pytest.raises(ImuError, match=f"{what}, no model"):
        converting.run(tmp_path / name, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_trainers_files_are_called_what_they_are_as_models(tmp_path: Path) -> None:
    """Named as MODEL, each is said to be what it is, and no conversion is proposed; a folder of them alone lists them."""
    folder = trainer(tmp_path / "a")
    for name, what in (("optimizer.pt", "optimiser"), ("scheduler.pt", "schedule"), ("rng_state.pth", "random"),
                       ("training_args.bin", "arguments")):  # fmt: skip
        with pytest.raises(RefusedError, match=what) as caught:
            open_checkpoint(folder / name)
        assert "imu convert" not in str(caught.value)
    (folder / "pytorch_model.bin").unlink()
    (folder / "tf_model.h5").write_bytes(b"")
    with pytest.raises(ImuError, match=r"without PyTorch weights; it holds optimizer\.pt \(an optimiser's state\)"):
        open_checkpoint(folder)


def test_shards_are_joined(tmp_path: Path) -> None:
    """A folder of shards, or their index, is one model; one shard alone is refused, whatever names it."""
    folder = sharded(tmp_path / "net")
    with pytest.raises(RefusedError, match=r"imu convert .*/net .*/net/model\.safetensors"):
        open_checkpoint(folder)
    for number, source in enumerate([folder, folder / "pytorch_model.bin.index.json"]):
        converting.run(source, tmp_path / f"{number}.safetensors")
        back = load_file(tmp_path / f"{number}.safetensors")
        assert {name: tensor.tolist() for name, tensor in back.items()} == {k: v.tolist() for k, v in STATE.items()}
    shard = folder / "pytorch_model-00001-of-00002.bin"
    with pytest.raises(ImuError, match="one shard of several"):
        converting.run(shard, tmp_path / "half.safetensors")
    with pytest.raises(RefusedError, match=r"one shard of several of a pickled model; convert its folder"):
        open_checkpoint(shard)
    assert not (tmp_path / "half.safetensors").exists()


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard is gone": (lambda f: (f / "pytorch_model-00002-of-00002.bin").unlink(), "is not there; the model is incomplete"),
    "a tensor is gone": (
        lambda f: torch.save({"fc.weight": STATE["fc.weight"]}, f / "pytorch_model-00002-of-00002.bin"),
        "lacks or has besides: fc.bias",
    ),
    "a tensor is too many": (
        lambda f: torch.save(STATE, f / "pytorch_model-00002-of-00002.bin"), "lacks or has besides: conv.weight"
    ),
    "another file": (
        lambda f: (f / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../x.bin"}}'), "not a plain file name"
    ),
    "no map": (lambda f: (f / "pytorch_model.bin.index.json").write_text("{}"), "has no weight_map"),
    "the index is gone": (lambda f: (f / "pytorch_model.bin.index.json").unlink(), "shards without their index"),
    "index and one shard are gone": (
        lambda f: [(f / name).unlink() for name in ("pytorch_model.bin.index.json", "pytorch_model-00002-of-00002.bin")],
        "one shard of several",
    ),
    "a shard is an optimiser's": (
        lambda f: torch.save([1], f / "pytorch_model-00002-of-00002.bin"), "holds no named tensors"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_half_a_model_is_never_written(tmp_path: Path, name: str) -> None:
    """Whatever is missing or too many among the shards is told, and no file appears."""
    folder = sharded(tmp_path / "net")
    spoil, said = SPOILT[name]
    spoil(folder)
    with pytest.raises(ImuError) as caught:
        converting.run(folder, tmp_path / "out.safetensors")
    assert said in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_safetensors_shards_alone_are_no_model(tmp_path: Path) -> None:
    """One shard named as MODEL, and a folder of shards without their index, are told as that."""
    for number in (1, 2):
        save_file({f"a{number}": torch.ones(1)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    with pytest.raises(ImuError, match="one shard of several, by its name; name the folder or the index"):
        open_checkpoint(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ImuError, match=r"shards without their index \(model\.safetensors\.index\.json\)"):
        open_checkpoint(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001-of-00001.safetensors")
    assert set(open_checkpoint(tmp_path / "model-00001-of-00001.safetensors").entries) == {"a"}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_adapters_are_called_adapters(tmp_path: Path, kind: str) -> None:
    """A LoRA folder, its file, and its file under another name: not a model, and how to make one of it."""
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    tensors = {f"base_model.model.vit.query.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    save = save_file if kind == "safetensors" else torch.save
    for path in (tmp_path / "lora" / f"adapter_model.{kind}", tmp_path / f"renamed.{kind}"):
        save(tensors, path)
    for model in (tmp_path / "lora", tmp_path / "lora" / f"adapter_model.{kind}"):
        with pytest.raises(RefusedError, match=r"an adapter \(LoRA"):
            open_checkpoint(model)
    out = tmp_path / "out.safetensors"
    with pytest.raises(RefusedError, match="merge_and_unload"):
        _ = (
            converting.run(tmp_path / "renamed.bin", out)
            if kind == "bin"
            else open_checkpoint(tmp_path / "renamed.safetensors")
        )
    with pytest.raises(RefusedError, match="an adapter"):
        converting.run(tmp_path / "lora", tmp_path / "out.safetensors")


def test_in_the_cache_the_advice_writes_elsewhere(tmp_path: Path) -> None:
    """A pickle in the Hugging Face cache is converted into the current folder, not into the cache, where it would be pruned."""
    snapshot = tmp_path / "models--me--net" / "snapshots" / "4d7a"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--me--net" / "blobs").mkdir()
    torch.save(STATE, tmp_path / "models--me--net" / "blobs" / "ab")
    (snapshot / "pytorch_model.bin").symlink_to("../../blobs/ab")
    for model in (snapshot, snapshot / "pytorch_model.bin"):
        with pytest.raises(RefusedError, match=r"imu convert \S+/pytorch_model\.bin (pytorch_)?model\.safetensors$"):
            open_checkpoint(model)


def test_a_name_of_many_words_costs_little(tmp_path: Path) -> None:
    """A name of a million dots in a header is a name that does not fit, and not a million prefixes."""
    save_file({"a." * 300_000 + "w": torch.ones(1), "fc.weight": torch.ones(2, 2)}, tmp_path / "m.safetensors")
    found = names.find({name: entry.shape for name, entry in open_checkpoint(tmp_path / "m.safetensors").entries.items()},
                       {"fc.weight": (2, 2)}, "m")  # fmt: skip
    assert found.prefix == ""
    assert candidates.find({"a." * 300_000 + "w": (1,)}) == []


def test_a_checkpoint_called_like_an_optimisers_is_read_by_its_content(tmp_path: Path) -> None:
    """Weights in optim_best.pth are weights."""
    torch.save(STATE, tmp_path / "optim_best.pth")
    with pytest.raises(RefusedError, match="imu convert"):
        open_checkpoint(tmp_path / "optim_best.pth")
    converting.run(tmp_path / "optim_best.pth", tmp_path / "out.safetensors")
