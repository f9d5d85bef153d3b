"""Half-precision files: computed in float32, written back in their own dtypes, and the rounded head meets the target."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from imu_cli.cli import main
from imu_cli.models.architecture import load_into
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
