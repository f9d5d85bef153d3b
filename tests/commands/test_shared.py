"""The main job on the shared CIFAR-10 checkpoint, through the commands: what a user of a real model gets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from imu_cli.cli import main
from imu_cli.samples.sources import open_named

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


@pytest.mark.slow
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


def judged(
    shared: Path, cifar: Path, capsys: pytest.CaptureFixture[str], model: str, *options: str, code: int = 0
) -> tuple[str, dict[str, dict]]:
    """The summary and metrics of an evaluation on test data of ``model``, which is here or one of ../shared."""
    path = Path(model) if Path(model).exists() else shared / "checkpoints" / model
    capsys.readouterr()
    command = ["evaluate", str(path), "--config", "imu.yaml", "--test", f"cifar10:{cifar}", "-o", "judged.json"]
    assert main([*command, "--format", "json", *options]) == code
    made = json.loads(capsys.readouterr().out)
    return made["summary"], {item["name"]: item for item in made["metrics"]}


@pytest.mark.slow
def test_the_report_of_a_class_says_that_the_features_hold_it(
    shared: Path, real: Path, cifar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Airplanes at 0 with recovery and probe near what they were: numbers and words."""
    assert unlearn(shared, capsys, "--forget", "class=airplane")[0] == 0
    summary, found = judged(shared, cifar, capsys, "out.safetensors")
    assert found["forget.accuracy"]["value"] <= 0.005
    assert found["recovery.k5"]["value"] > 0.99
    assert found["probe.accuracy"]["value"] == found["probe.accuracy"]["before"] > 0.8
    assert "the features still hold everything they held before, the class with it" in summary
    assert not summary.startswith(("DAMAGE", "NOT"))


@pytest.mark.slow
def test_random_samples_driven_to_0_are_flagged_as_damage(
    shared: Path, real: Path, cifar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tenth of the training set, ascended to nothing: the first words say so, and no number is read as success."""
    forget = str(shared / "checkpoints/random5000.csv")
    unlearn(shared, capsys, "--forget", forget, "--method", "imu", "--until", "forget.accuracy<=0.02")
    summary, found = judged(shared, cifar, capsys, "out.safetensors")
    assert summary.startswith("DAMAGE, not forgetting: ")
    assert "are right, and as many unseen ones would not be below" in summary
    assert found["test.accuracy_drop"]["interval"]["low"] > 0.05
    assert found["mia.auc_two_sided"]["value"] >= 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forget", "gates"),
    [
        ("class=airplane", ("forget.accuracy<=0.05", "test_forgotten.accuracy<=0.05", "forget.confidence<=0.05")),
        (
            "random5000.csv",
            ("forget.accuracy<=0.93", "mia.auc<=0.51", "mia.auc_two_sided<=0.51", "forget.confidence<=0.9"),
        ),
    ],
)
def test_the_original_fails_every_forgetting_gate(
    forget: str, gates: tuple[str, ...], shared: Path, real: Path, cifar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluated as if it had been unlearned: exit code 3, every gate failed, and the summary says that nothing changed."""
    named = forget if "=" in forget else str(shared / "checkpoints" / forget)
    model = "cifar10_resnet20_b.safetensors"
    asked = ["--forget", named, "--original", str(shared / "checkpoints" / model)]
    required = [part for gate in gates for part in ("--require", gate)]
    summary, _ = judged(shared, cifar, capsys, model, *asked, *required, code=3)
    verdicts = {item["text"]: item["verdict"] for item in json.loads(Path("judged.json").read_text())["requirements"]}
    assert verdicts == dict.fromkeys(gates, "fail")
    assert "this model was not unlearned" in summary


@pytest.mark.slow
def test_a_retrained_reference_has_what_was_measured(
    shared: Path, real: Path, cifar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The 5,000 random images: 94.5 % by the model that saw them, 89.9 % by the one that did not; AUC 0.530 and 0.510."""
    forget = ["--forget", str(shared / "checkpoints/random5000.csv")]
    reference = "cifar10_resnet20_b_without_random5000.safetensors"
    again = ["--retrained", str(shared / "checkpoints" / reference)]
    _, saw = judged(shared, cifar, capsys, "cifar10_resnet20_b.safetensors", *forget, *again)
    assert saw["forget.accuracy"]["value"] == pytest.approx(0.945, abs=0.001)
    assert saw["test.accuracy"]["value"] == pytest.approx(0.902, abs=0.001)
    assert saw["mia.auc"]["value"] == pytest.approx(0.530, abs=0.002)
    assert saw["retrained.accuracy_gap.forget"]["value"] == pytest.approx(0.945 - 0.899, abs=0.001)
    assert saw["retrained.accuracy_gap.test"]["value"] == pytest.approx(0.902 - 0.895, abs=0.001)
    _, never = judged(shared, cifar, capsys, reference, *forget)
    assert never["forget.accuracy"]["value"] == pytest.approx(0.899, abs=0.001)
    assert never["mia.auc"]["value"] == pytest.approx(0.510, abs=0.002)
