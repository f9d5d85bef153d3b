"""Half-precision files: computed in float32, written back in their own dtypes, and the rounded head meets the target."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from imu_cli.cli import main
from imu_cli.errors import RefusedError
from imu_cli.models.architecture import load, load_into
from imu_cli.models.checkpoint import open_checkpoint, same_bits
from imu_cli.models.digits import digits_net

HALF = [torch.bfloat16, torch.float16]


def narrow(dtype: torch.dtype) -> Path:
    """The job's model with every weight in a narrower dtype; the counter of its batch normalisation stays a whole number."""
    tensors = load_file("model.safetensors")
    save_file({k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}, "half.safetensors")
    return Path("half.safetensors")


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(
    "options", [["--forget", "class=3"], ["--forget", "index=0:40", "--method", "matched"]], ids=len
)
def test_half_precision_files_come_back_in_their_dtypes_and_meet_the_target(
    job: Path, capsys: pytest.CaptureFixture[str], dtype: torch.dtype, options: list[str]
) -> None:
    """The share that was reached is the share that the written file has, counted by another command from the file alone."""
    path = narrow(dtype)
    target = ["--until", "forget.accuracy<=0.8"] if "--method" in options else []
    code = main(["unlearn", str(path), "--config", "imu.yaml", *options, *target, "--format", "json"])
    made = json.loads(capsys.readouterr().out)
    assert (code, made["reached"], made["head"]["dtype"]) == (0, True, {torch.bfloat16: "BF16"}.get(dtype, "F16"))
    assert made["end"]["forget"] <= made["target"]["value"]
    before, after = load_file(path), load_file("half.unlearned.safetensors")
    assert {k: v.dtype for k, v in after.items()} == {k: v.dtype for k, v in before.items()}
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed
    assert changed <= {"8.weight", "8.bias"}
    assert main(["evaluate", "half.unlearned.safetensors", "--config", "imu.yaml", "--format", "json"]) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)["metrics"]}
    assert found["forget.accuracy"]["value"] == made["end"]["forget"]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_model_that_is_built_narrow_computes_wide(dtype: torch.dtype) -> None:
    """float32 values of the file are not rounded to the dtypes that the factory happens to build, nor computed in them."""
    widths: dict[str, Callable[[nn.Module], nn.Module]] = {"wide": lambda m: m, "narrow": lambda m: m.to(dtype)}
    torch.manual_seed(0)
    stored = digits_net().state_dict()
    made = {name: change(digits_net()).eval() for name, change in widths.items()}
    for model in made.values():
        load_into(model, stored, "model.safetensors")
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(made["wide"](images), made["narrow"](images))


def test_a_wider_model_stays_wide() -> None:
    """A factory's float64 model is not narrowed."""
    model = digits_net().double()
    load_into(model, digits_net().state_dict(), "model.safetensors")
    assert next(model.parameters()).dtype == torch.float64


FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
OTHERS = [
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.int64,
    torch.uint64,
    torch.bool,
    torch.complex64,
]
GO = ["unlearn", "t.safetensors", "--config", "imu.yaml", "--forget", "class=3", "--quiet", "-o", "u.safetensors"]


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_float8_backbones_are_computed_with_in_float32(job: Path, dtype: torch.dtype) -> None:
    """Weights in eight bits mean their own values: the model has them exactly, says so, and they stay as they are in the result."""
    values = {k: v.to(dtype) if v.ndim == 4 else v for k, v in load_file("model.safetensors").items()}
    save_file(values, "t.safetensors")
    loaded = load(open_checkpoint(Path("t.safetensors")), "model.py:digits_net")
    assert torch.equal(loaded.model.get_parameter("0.weight"), values["0.weight"].float())
    assert any("are computed with in float32" in note and "F8_" in note for note in loaded.notes)
    assert main(GO) in (0, 3)
    after = load_file("u.safetensors")
    assert same_bits(after["0.weight"], values["0.weight"])


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_a_head_in_float8_is_refused_by_name(job: Path, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    """A head cannot be written in eight bits: refused with its dtype, nothing written."""
    save_file(
        {k: v.to(dtype) if k == "8.weight" else v for k, v in load_file("model.safetensors").items()}, "t.safetensors"
    )
    assert main(GO) == 4
    assert "head 8.weight: is F8_" in capsys.readouterr().err
    assert not Path("u.safetensors").exists()


@pytest.mark.parametrize("name", ["0.weight", "3.running_mean", "8.bias"])
@pytest.mark.parametrize("dtype", OTHERS, ids=str)
def test_numbers_of_another_kind_are_refused_by_name(
    job: Path, dtype: torch.dtype, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Integers, truth values and complex numbers are never cast to weights: the tensor and its dtype are named."""
    save_file({k: v.to(dtype) if k == name else v for k, v in load_file("model.safetensors").items()}, "t.safetensors")
    assert main(GO) == 4
    assert f"{name} is {str(dtype).removeprefix('torch.')} in the file" in capsys.readouterr().err
    assert not Path("u.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int32, torch.uint8], ids=str)
def test_a_batch_counter_may_be_of_any_kind(job: Path, dtype: torch.dtype) -> None:
    """It plays no part in eval(), and ``model.half()`` of a whole state turns it into a fraction."""
    values = load_file("model.safetensors")
    save_file({k: v.to(dtype) if k.endswith("num_batches_tracked") else v for k, v in values.items()}, "t.safetensors")
    load(open_checkpoint(Path("t.safetensors")), "model.py:digits_net")


def test_an_index_that_a_cast_would_change_is_refused() -> None:
    """An integer buffer takes what holds the same integers, and nothing else."""

    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("index", torch.tensor([0, 300]))

    load_into(Indexed(), {"index": torch.tensor([0, 300], dtype=torch.int32)}, "m")
    load_into(Indexed(), {"index": torch.tensor([0.0, 300.0])}, "m")
    with pytest.raises(
        RefusedError, match="index is float32 in the file and int64 in the architecture, which cannot hold"
    ):
        load_into(Indexed(), {"index": torch.tensor([0.0, 0.5])}, "m")


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"])
def test_packed_numbers_are_refused_by_name(tmp_path: Path, dtype: str) -> None:
    """Kinds that the format has and PyTorch does not compute with are named before a tensor is read."""
    header = json.dumps(
        {"w": {"dtype": dtype, "shape": [8], "data_offsets": [0, {"F8_E8M0": 8, "F4": 4}.get(dtype, 6)]}}
    ).encode()
    size = {"F8_E8M0": 8, "F4": 4}.get(dtype, 6)
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(RefusedError, match=f"w is {dtype}, packed or quantised numbers"):
        checkpoint.tensors()
    assert checkpoint.tensors(without=["w"]) == {}
