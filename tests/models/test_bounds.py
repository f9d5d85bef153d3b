"""An architecture is held against its file before it takes memory, whatever a config, a record or the command line claims."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_sidecar import edit, opened, timm_folder, vit_folder
from torch import nn

from imu_cli.cli import main
from imu_cli.errors import ImuError
from imu_cli.models import bounds, factories
from imu_cli.models.architecture import load


def grown(since: int) -> int:
    """Bytes by which the most that this process ever had resident has grown."""
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - since) * (1 if sys.platform == "darwin" else 1024)


TIMM: dict[str, dict[str, Any]] = {
    "classes": {"num_classes": 40_000_000, "model_args": {"num_classes": 40_000_000}},
    "classes, fewer": {"num_classes": 900_000, "model_args": {"num_classes": 900_000}},
    "classes without end": {"num_classes": 10**30, "model_args": {"num_classes": 10**30}},
    "channels": {"model_args": {"in_chans": 900_000}},
    "layers": {"model_args": {"layers": [10**9, 1, 1, 1]}},
    "many layers": {"model_args": {"layers": [900_000, 1, 1, 1]}},
}


@pytest.mark.parametrize("name", TIMM)
def test_a_timm_config_that_claims_too_much(name: str, tmp_path: Path) -> None:
    """Refused in time and without the memory, with what it would have and what the file has."""
    timm_folder(tmp_path)
    edit(tmp_path / "config.json", **TIMM[name])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(
        ImuError, match=r"config\.json \(timm\) timm:test_resnet.*: .*has 375,171 numbers in 92 tensors"
    ):
        load(opened(tmp_path), None)
    assert time.process_time() - start < 20
    assert grown(before) < 500_000_000


VIT: dict[str, dict[str, Any]] = {
    "labels": {"id2label": None, "num_labels": 10**9},
    "layers": {"num_hidden_layers": 10**9},
    "many layers": {"num_hidden_layers": 900_000},
    "width": {"hidden_size": 10**9},
    "wide": {"hidden_size": 100_000, "num_attention_heads": 1},
    "image": {"image_size": 900_000},
    "image and channels": {"image_size": [900_000, 900_000], "num_channels": 900_000},
}


@pytest.mark.parametrize("name", VIT)
def test_a_transformers_config_that_claims_too_much(name: str, tmp_path: Path) -> None:
    """The same for every size in a config of transformers."""
    vit_folder(tmp_path)
    edit(tmp_path / "config.json", **VIT[name])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ImuError, match=r"hf:ViTForImageClassification: .*numbers in \d+ tensors"):
        load(opened(tmp_path), None)
    assert time.process_time() - start < 20
    assert grown(before) < 500_000_000


def test_options_are_held_against_the_file_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--arch`` and ``--arch-arg``, where nothing in the files claims anything."""
    save_file({"fc.weight": torch.zeros(3, 4)}, tmp_path / "model.safetensors")
    given = ["--arch", "torchvision:resnet18", "--arch-arg", "num_classes=99000000"]
    assert main(["unlearn", str(tmp_path / "model.safetensors"), *given, "--forget", "x.csv"]) == 2
    assert "num_classes is 99,000,000" in capsys.readouterr().err


def test_what_fits_is_let_through(tmp_path: Path) -> None:
    """A default head of another size, ids and seeds as large as they like, and an architecture that cannot run without memory."""
    timm_folder(tmp_path)
    edit(tmp_path / "config.json", model_args={})
    assert load(opened(tmp_path), None).architecture.arguments["num_classes"] == 4
    hf = tmp_path / "hf"
    vit_folder(hf)
    edit(hf / "config.json", bos_token_id=10**12, torch_seed=2**40, total_flos=10**18)
    load(opened(hf), None)
    made = factories.resolve("torchvision:regnet_y_400mf")[0](num_classes=3)
    (tmp_path / "r").mkdir()
    save_file(made.state_dict(), tmp_path / "r/model.safetensors")
    assert load(opened(tmp_path / "r"), "torchvision:regnet_y_400mf").architecture.arguments == {"num_classes": 3}


def test_counting_ends_with_the_context() -> None:
    """Nothing is counted, and no module is refused, after it."""
    with pytest.raises(bounds._TooLarge), bounds._counted(10, 100):
        nn.Linear(3, 3)
    nn.Linear(3, 3)


def test_a_config_nested_to_the_limit(tmp_path: Path) -> None:
    """Depth is refused by the reader, before anything walks through it."""
    timm_folder(tmp_path)
    text = json.dumps({"architecture": "test_resnet", "model_args": {"a": 0}})
    (tmp_path / "config.json").write_text(text.replace("0}", "[" * 100 + "]" * 100 + "}"))
    with pytest.raises(ImuError, match=r"config\.json: nested too deeply"):
        load(opened(tmp_path), None)
