"""Arguments that change a function and no tensor: which an architecture has, which are asked for, and that they are silent indeed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from imu_cli.cli import main
from imu_cli.errors import ImuError
from imu_cli.models import silent_arguments
from imu_cli.models.architecture import load
from imu_cli.models.checkpoint import open_checkpoint

SMALL: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "googlenet": ("torchvision:googlenet", {"aux_logits": False, "init_weights": False}, {"transform_input": True}),
    "dilated": ("torchvision:mobilenet_v3_small", {}, {"dilated": True}),
    "pooling": ("timm:test_resnet", {}, {"global_pool": "max"}),
    "stride": ("timm:resnet10t", {}, {"output_stride": 8}),
    "epsilon": ("timm:convnext_atto", {}, {"norm_eps": 0.1}),
    "padding": ("timm:efficientnet_lite0", {}, {"pad_type": "same"}),
    "heads": ("timm:test_vit", {}, {"num_heads": 4}),
}
"""A model, what it is built with, and one of its silent arguments at another value than the default."""


def built(name: str, arguments: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    registry, _, model = name.partition(":")
    make = models.get_model if registry == "torchvision" else timm.create_model
    made: nn.Module = make(model, num_classes=4, **arguments)
    return made.eval()


@pytest.mark.parametrize("name", SMALL)
def test_they_change_the_function_and_no_tensor(name: str) -> None:
    """Each is named for its architecture; with another value the same tensors load and give other logits."""
    arch, given, other = SMALL[name]
    one, two = built(arch, given), built(arch, {**given, **other})
    assert {key: value.shape for key, value in one.state_dict().items()} == {
        k: v.shape for k, v in two.state_dict().items()
    }
    two.load_state_dict(one.state_dict())
    side = 160 if name == "heads" else 75
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        # The same operations on the same tensors give the same bits; random weights let little of the image through.
        assert torch.equal(one(images), one(images))
        assert not torch.equal(one(images), two(images))
    assert set(other) <= set(silent_arguments.silent(one, arch))
    told = silent_arguments.unsaid(one, arch, given, "--arch")
    assert len(told) == 1
    assert next(iter(other)) in told[0]
    assert next(iter(other)) not in "".join(silent_arguments.unsaid(one, arch, {**given, **other}, "--arch"))
    assert silent_arguments.unsaid(one, arch, given, "config.json (timm)") == []


def test_a_users_own_factory_is_not_second_guessed() -> None:
    """Whoever names code says what it builds."""
    assert silent_arguments.silent(models.resnet18(), "net.py:resnet18") == []


@pytest.fixture(scope="module")
def googlenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As torchvision's factory returns it with its own weights: without auxiliary heads, transform_input on, which no tensor shows."""
    folder = tmp_path_factory.mktemp("googlenet")
    torch.manual_seed(0)
    net = models.googlenet(weights=None, num_classes=3, aux_logits=False, init_weights=False, transform_input=True)
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, folder / "net.safetensors")
    generator = np.random.default_rng(0)
    for name in "abc":
        (folder / "data" / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(generator.integers(0, 255, (64, 64, 3), np.uint8)).save(
                folder / "data" / name / f"{number}.png"
            )
    return folder


ARCH = ["--arch", "torchvision:googlenet", "--arch-arg", "aux_logits=false", "--arch-arg", "init_weights=false"]


def test_transform_input_is_asked_for(googlenet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither value is chosen in silence; inspect names the flag, and either value is built and recorded."""
    model = str(googlenet / "net.safetensors")
    go = ["influence", model, *ARCH, "--preprocess", "none", "--data", str(googlenet / "data"), "--forget", "class=a"]
    assert main(go) == 2
    assert "transform_input changes what is computed and leaves no trace in the tensors" in capsys.readouterr().err
    assert main(["inspect", model, *ARCH, "--preprocess", "imagenet"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "NOT KNOWN: --arch torchvision:googlenet: transform_input" in shown
    assert "--arch torchvision:googlenet" in shown[shown.index("next:") :]
    assert "--arch-arg KEY=VALUE" in shown[shown.index("next:") :]
    for value in (True, False):
        pairs = ["aux_logits=false", "init_weights=false", f"transform_input={str(value).lower()}"]
        loaded = load(open_checkpoint(Path(model)), "torchvision:googlenet", pairs)
        assert loaded.model.transform_input is value
        assert loaded.architecture.arguments["transform_input"] is value


def test_no_architecture_fits_with_default_arguments(tmp_path: Path, googlenet: Path) -> None:
    """Variants of torchvision's own are proposed with their arguments; where nothing fits, it is said that defaults were tried."""
    with pytest.raises(ImuError, match=r"--arch torchvision:googlenet --arch-arg aux_logits=false"):
        load(open_checkpoint(googlenet / "net.safetensors"), None)
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(
        ImuError, match="no architecture of torchvision or timm, built with its default arguments, fits"
    ):
        load(open_checkpoint(tmp_path / "a.safetensors"), None)


def test_defaults_are_told_once_to_who_names_an_architecture(tmp_path: Path) -> None:
    """The note is one line, and names what the user may give."""
    save_file(models.resnet18(num_classes=3).state_dict(), tmp_path / "m.safetensors")
    loaded = load(open_checkpoint(tmp_path / "m.safetensors"), "torchvision:resnet18")
    assert len(loaded.notes) == 1
    assert loaded.notes[0].startswith(
        "torchvision:resnet18: replace_stride_with_dilation, norm_layer: as the library builds it"
    )
