"""``imu convert``: which tensors are found in what trainers save, that bits are kept, and that nothing is ever run."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import listing
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from imu_cli.cli import main
from imu_cli.commands import convert as converting
from imu_cli.errors import ImuError, RefusedError

RANDOM = torch.Generator().manual_seed(0)


def weights(prefix: str = "") -> dict[str, Tensor]:
    """Tensors of several dtypes, with values that no rounding survives."""
    return {
        f"{prefix}conv.weight": torch.randn(4, 3, 3, 3, generator=RANDOM),
        f"{prefix}bn.num_batches_tracked": torch.tensor(7),
        f"{prefix}fc.weight": torch.randn(5, 4, generator=RANDOM).to(torch.bfloat16),
        f"{prefix}fc.bias": torch.tensor([float("nan"), float("inf"), -0.0, 1e-40, 2.0]),
    }


def bits(tensor: Tensor) -> bytes:
    """A tensor's bytes."""
    return tensor.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def convert(path: Path, found: Any, **options: Any) -> tuple[converting.Converted, dict[str, Tensor]]:
    """The object saved by torch.save and converted."""
    torch.save(found, path)
    made = converting.run(path, path.with_suffix(".safetensors"), **options)
    return made, load_file(made.output)


VALUES = weights()
NESTED: dict[str, Callable[[], Any]] = {
    "a state_dict": lambda: OrderedDict(VALUES),
    "state_dict": lambda: {"state_dict": VALUES, "epoch": 3},
    "model": lambda: {"model": VALUES, "optimizer": {"state": {0: {"exp_avg": torch.ones(5)}}, "param_groups": []}},
    "model_state_dict": lambda: {"model_state_dict": VALUES, "optimizer_state_dict": {"buf": torch.ones(5)}},
    "net, best accuracy": lambda: {"net": VALUES, "acc": torch.tensor(0.9), "epoch": 200},
    "two levels": lambda: {"checkpoint": {"weights": VALUES}},
    "torchreid": lambda: {"state_dict": VALUES, "epoch": 60, "rank1": 0.9, "optimizer": {"state": {}}, "scheduler": {}},
    "Lightning": lambda: {
        "epoch": 1, "global_step": 2, "pytorch-lightning_version": "2.0", "state_dict": VALUES, "loops": {"a": {"b": 1}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.3), "best": torch.ones(3)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(5)}}}], "hyper_parameters": {"t": torch.ones(2)},
    },
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", NESTED)
def test_the_models_tensors_are_found_and_kept_bit_by_bit(tmp_path: Path, name: str, legacy: bool) -> None:
    """Wherever trainers put the state_dict, it is found without being told, and comes out in its names, dtypes and bits."""
    path = tmp_path / "in.pth"
    torch.save(NESTED[name](), path, _use_new_zipfile_serialization=not legacy)
    made = converting.run(path, tmp_path / "out.safetensors")
    back = load_file(made.output)
    assert set(back) == set(VALUES)
    for key, tensor in VALUES.items():
        assert (back[key].dtype, back[key].shape) == (tensor.dtype, tensor.shape)
        assert bits(back[key]) == bits(tensor)
    assert any("does not say the architecture" in note for note in made.notes)


def test_several_sets_of_tensors_ask(tmp_path: Path) -> None:
    """A model and its moving average are two models; which is meant is not guessed, and --key says it."""
    found = {"model": weights(), "model_ema": weights(), "epoch": 1}
    with pytest.raises(ImuError, match=r"model \(4 tensors\), model_ema \(4 tensors\).*--key model") as caught:
        convert(tmp_path / "in.pth", found)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "in.safetensors").exists()
    _, back = convert(tmp_path / "in.pth", found, key="model_ema")
    assert bits(back["fc.weight"]) == bits(found["model_ema"]["fc.weight"])
    with pytest.raises(ImuError, match=r"--key ema: .* it has model "):
        convert(tmp_path / "in.pth", found, key="ema", force=True)


def test_prefixes_are_told_and_taken_off_if_asked(tmp_path: Path) -> None:
    """A wrapper's prefix stays, as imu reads over it, and goes with --strip-prefix; a wrong one names the right one."""
    made, back = convert(tmp_path / "in.pth", weights("module.model."))
    assert set(back) == set(weights("module.model."))
    assert any("'module.model.'" in note and "--strip-prefix module.model." in note for note in made.notes)
    _, back = convert(tmp_path / "in.pth", weights("module."), strip_prefix="module.", force=True)
    assert set(back) == set(weights())
    with pytest.raises(ImuError, match=r"--strip-prefix net\.: no tensor's name .* they share 'module\.'"):
        convert(tmp_path / "in.pth", weights("module."), strip_prefix="net.", force=True)
    both = {**weights(), **weights("module.")}
    with pytest.raises(ImuError, match="the same name"):
        convert(tmp_path / "in.pth", both, strip_prefix="module.", force=True)
    made, _ = convert(tmp_path / "in.pth", {**weights("model."), "loss.weight": torch.ones(5)}, force=True)
    assert any(
        "no part of a classifier, kept: loss.weight" in note and "--leave-out loss" in note for note in made.notes
    )
    made, _ = convert(tmp_path / "in.pth", {**weights("model."), "neck.weight": torch.ones(5)}, force=True)
    assert any("4 of 5 names start with 'model.'" in note and "neck.weight" in note for note in made.notes)


def test_shared_strided_and_other_entries(tmp_path: Path) -> None:
    """Tied and overlapping tensors become copies, transposed ones rows in order, what is no tensor is named."""
    whole = torch.arange(24.0)
    found = {"tied.a": VALUES["fc.weight"], "tied.b": VALUES["fc.weight"], "left": whole[:8], "right": whole[4:],
             "turned": torch.arange(6.0).reshape(2, 3).T, "parameter": nn.Parameter(torch.ones(2)), "none": torch.ones(0),
             "_extra": {"a": 1}, "version": 3}  # fmt: skip
    made, back = convert(tmp_path / "in.pth", found)
    assert set(back) == set(found) - {"_extra", "version"}
    for name, tensor in back.items():
        assert torch.equal(tensor, found[name].detach())
    said = "\n".join(made.notes)
    assert "not tensors, left out: _extra, version" in said
    assert "tied.b with tied.a, right with left" in said


def test_metadata_holds_what_was_given_and_fits(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--arch and --preprocess are written where they are a registry's and fit, so that later commands need neither."""
    from torchvision import models

    torch.save(models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=3).state_dict(), "in.pth")
    given = ["--arch", "torchvision:shufflenet_v2_x0_5", "--preprocess", "imagenet"]
    assert main(["convert", "in.pth", "out.safetensors", *given]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "does not say class names" in said.err
    with safe_open("out.safetensors", framework="pt") as file:
        assert set(file.metadata()) == {"format", "imu"}
    before = listing(job)
    for wrong, message in (
        (["--arch", "torchvision:resnet18"], "does not fit the architecture"),
        (["--arch", "model.py:net"], "never code"),
        (["--preprocess", "imagnet"], "neither a preset"),
    ):
        assert main(["convert", "in.pth", "new.safetensors", *wrong]) == 2
        assert message in capsys.readouterr().err
        assert listing(job) == before


def test_from_pickle_to_unlearned(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line that a refused pickle shows is the one that works, and the same model is unlearned in the end."""
    torch.save({"state_dict": load_file("model.safetensors")}, "net.pth")
    go = ["--config", "imu.yaml", "--forget", "class=3", "--quiet"]
    assert main(["unlearn", "net.pth", *go]) == 4
    line = capsys.readouterr().err.strip().split("imu convert ")[1]
    assert main(["convert", *line.split(), "--quiet"]) == 0
    assert main(["unlearn", "net.safetensors", *go]) == 0
    assert main(["unlearn", "model.safetensors", *go]) == 0
    one, other = load_file("net.unlearned.safetensors"), load_file("model.unlearned.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in other)


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), str(path))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("save", ["zip", "legacy", "plain pickle"])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path: Path, save: str) -> None:
    """A pickle that would run a command is refused with exit code 4 and the command's name, in every container."""
    path, mark = tmp_path / "in.pth", tmp_path / "ran"
    found = {"state_dict": weights(), "args": Command(mark)}
    if save == "plain pickle":
        path.write_bytes(pickle.dumps(found["args"], 2))
    else:
        torch.save(found, path, _use_new_zipfile_serialization=save == "zip")
    with pytest.raises(RefusedError, match=r"posix\.system") as caught:
        converting.run(path, tmp_path / "out.safetensors")
    assert caught.value.exit_code == 4
    assert {item.name for item in tmp_path.iterdir()} == {"in.pth"}


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    """torch.save(model) names the model's class, which would have to run; the message says what to save instead."""
    path = tmp_path / "in.pth"
    torch.save(nn.Sequential(nn.Linear(2, 2)), path)
    with pytest.raises(RefusedError, match=r"torch\.nn\.modules\.container\.Sequential.*model\.state_dict"):
        converting.run(path, tmp_path / "out.safetensors")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    """A program with weights in it is not a file of weights."""
    scripted(tmp_path / "in.pt")
    with pytest.raises(RefusedError, match="TorchScript"):
        converting.run(tmp_path / "in.pt", tmp_path / "out.safetensors")


def bomb(path: Path) -> None:
    """A state_dict whose records are compressed a thousandfold."""
    saved = io.BytesIO()
    torch.save({"a": torch.zeros(4_000_000)}, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "not a file that torch.save wrote"),
    "text": (lambda path: path.write_text("hello, this is text"), "in.pth: "),
    "half": (lambda path: (torch.save(weights(), path), path.write_bytes(path.read_bytes()[:900])), "in.pth: "),
    "a list": (lambda path: torch.save([torch.ones(2)], path), "no named tensors"),
    "numbers": (lambda path: torch.save({"lr": 0.1, "step": torch.tensor(3)}, path), "no named tensors"),
    "sparse": (lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path), "sparse_coo"),
    "complex": (lambda path: torch.save({"a": torch.ones(2, dtype=torch.complex128)}, path), "complex128"),
    "repeated": (lambda path: torch.save({"a": torch.ones(1).expand(10**12)}, path), "repeats 4 stored bytes"),
    "bomb": (bomb, "would unpack to 16,"),
    "folder": (lambda path: path.mkdir(), "holds no file with a pickled model"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_state_dict_is_an_error(tmp_path: Path, name: str) -> None:
    """Damaged, empty and misleading files are errors in one line that name the file, and leave nothing behind."""
    spoil, said = BAD[name]
    spoil(tmp_path / "in.pth")
    with pytest.raises(ImuError) as caught:
        converting.run(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {item.name for item in tmp_path.iterdir()} == {"in.pth"}


def test_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never the input, never a file that is there without --force, never half a file, and only as .safetensors."""
    path, output = tmp_path / "in.pth", tmp_path / "out.safetensors"
    torch.save(weights(), path)
    for target, said in ((path, "a name that ends in"), (tmp_path / "no/x.safetensors", "no such folder")):
        with pytest.raises(ImuError, match=said):
            converting.run(path, target, force=True)
    output.symlink_to(path)
    with pytest.raises(ImuError, match="is the input"):
        converting.run(path, output, force=True)
    output.unlink()
    output.write_text("mine")
    with pytest.raises(ImuError, match="exists"):
        converting.run(path, output)
    monkeypatch.setattr(converting, "same_bits", lambda *_: False)
    with pytest.raises(ImuError, match="read back differently"):
        converting.run(path, output, force=True)
    assert output.read_text() == "mine"
    assert {item.name for item in tmp_path.iterdir()} == {"in.pth", "out.safetensors"}
