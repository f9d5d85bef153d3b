"""The main job on the shared CIFAR-10 checkpoint, through the commands: what a user of a real model gets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from imu_cli.cli import main
from imu_cli.sources import open_named

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def cifar(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 as torchvision's batch files, which are quick to write and read."""
    folder = tmp_path_factory.mktemp("cifar")
    script = shared / "data/unpack_cifar10.py"
    subprocess.run([sys.executable, str(script), str(folder), "--format", "torchvision"], check=True)
    return folder


@pytest.fixture
def real(shared: Path, cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a config for the shared ResNet-20."""
    monkeypatch.chdir(tmp_path)
    Path("imu.yaml").write_text(
        f"arch: {shared}/models/cifar_resnet.py:resnet20\ndata: cifar10:{cifar}\n"
        "preprocess: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}\n"
    )
    return tmp_path


def unlearn(shared: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict]:
    model = str(shared / "checkpoints/cifar10_resnet20.safetensors")
    code = main(["unlearn", model, "--config", "imu.yaml", "-o", "out.safetensors", "--format", "json", *options])
    return code, json.loads(capsys.readouterr().out)


def evaluate(cifar: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, dict]:
    command = [
        "evaluate",
        "out.safetensors",
        "--config",
        "imu.yaml",
        "--test",
        f"cifar10:{cifar}",
        "--format",
        "json",
        *options,
    ]
    assert main(command) == 0
    return {item["name"]: item for item in json.loads(capsys.readouterr().out)["metrics"]}


def test_array_data_equals_what_the_script_unpacks(cifar: Path) -> None:
    """The batch files are read without running their pickles, all 50,000 and 10,000 of them."""
    train, test = open_named(f"cifar10:{cifar}", "data"), open_named(f"cifar10:{cifar}", "test")
    assert (len(train), len(test)) == (50_000, 10_000)
    assert train.classes is not None
    assert train.classes[0] == "airplane"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "retain", "test"), [("airplane", 0.997, 0.922), ("cat", 0.998, 0.939)])
def test_a_class_goes_to_the_mask_bound(
    name: str, retain: float, test: float, shared: Path, real: Path, cifar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """5,000 images of a class: at most 0.5 % predicted, retain and test exactly at the bound of masking the class."""
    code, made = unlearn(shared, capsys, "--forget", f"class={name}")
    assert (code, made["scenario"], made["reached"]) == (0, "class", True)
    found = evaluate(cifar, capsys, "--retain", f"cifar10:{cifar}")
    assert found["forget.accuracy"]["value"] <= 0.005
    assert found["retain.accuracy"]["value"] >= retain
    assert found["test.accuracy"]["value"] >= test
    assert found["test.accuracy"]["value"] == found["mask_bound.test"]["value"]
    assert found["recovery.k5"]["value"] > 0.95


@pytest.mark.slow
def test_four_classes_at_once(shared: Path, real: Path, cifar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Airplanes, automobiles, ships and trucks together: none of them is predicted, nothing kept is lost."""
    code, _ = unlearn(shared, capsys, "--forget", "class=airplane,automobile,ship,truck")
    assert code == 0
    found = evaluate(cifar, capsys, "--retain", f"cifar10:{cifar}")
    assert found["forget.accuracy"]["value"] <= 0.005
    assert found["retain.accuracy"]["value"] >= 0.997


@pytest.mark.slow
def test_some_samples_go_to_the_held_out_level(
    shared: Path, real: Path, cifar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """37 random training images, half of the test set choosing: the held-out level, at under 0.3 points of the other half."""
    code, made = unlearn(shared, capsys, "--forget", "index=0:49999:1352", "--test", f"cifar10:{cifar}")
    assert (code, made["method"], made["scenario"]) == (0, "matched", "sample")
    found = evaluate(cifar, capsys)
    spread = found["forget.accuracy"]["target_range"]
    assert spread["low"] <= found["forget.accuracy"]["value"] <= spread["high"]
    assert found["test.accuracy"]["n"] == 5000
    assert found["test.accuracy_drop"]["value"] <= 0.003


@pytest.mark.slow
def test_some_samples_without_a_target(
    shared: Path, real: Path, cifar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """37 mixed images and nothing else: the head moves by 2 % at most and costs at most 0.3 points of test accuracy."""
    code, made = unlearn(shared, capsys, "--forget", "index=0:49999:1352")
    assert (code, made["reached"]) == (0, None)
    assert made["end"]["head_change"] <= 0.02
    assert evaluate(cifar, capsys)["test.accuracy_drop"]["value"] <= 0.003
