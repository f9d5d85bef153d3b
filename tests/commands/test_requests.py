"""Requests that people really make: one person, a class to the last sample, sets that the model sees wrongly."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imu_cli.cli import main
from imu_cli.records import json_files
from imu_cli.records.record import Record

CONFIG = ["--config", "imu.yaml"]


def unlearned(*words: str) -> Record:
    """The record of an unlearning that has to end with 0."""
    assert main(["unlearn", "model.safetensors", *CONFIG, *words]) == 0
    found = json_files.read(Path("model.unlearned.record.json"))
    assert isinstance(found, Record)
    return found


def test_one_image_that_is_remembered_goes_to_the_margins_of_unseen_ones(
    job: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All unseen images of its class are right, so that accuracy says nothing: the membership AUC is the target."""
    made = unlearned("--forget", "index=5", "--test", str(digits / "data/test"))
    told = capsys.readouterr().err
    assert "accuracy has nothing to say here" in told
    assert "no better than chance" not in told
    assert made.target.auc is not None
    assert made.start.auc is not None
    assert made.end.auc is not None
    assert made.start.auc > made.target.auc >= made.end.auc - 1e-6
    assert made.reached is True


@pytest.mark.parametrize("words", [["--method", "imu"], ["--rho", "1"]])
def test_an_explicit_method_and_rho_are_obeyed(job: Path, digits: Path, words: list[str]) -> None:
    """Neither ends as "already met"."""
    made = unlearned("--forget", "index=5", "--test", str(digits / "data/test"), *words)
    assert made.method == ("imu" if words[0] == "--method" else "matched")
    assert made.end.head_change > 0


def test_a_set_that_looks_unseen_in_every_way_is_an_error_that_says_both(
    job: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out images, given as a forget list of their own: right as often as unseen ones, and no surer."""
    words = ["--forget", f"{digits}/data/test/3", "--label", "3", "--scenario", "sample", "--max-auc", "0.7"]
    assert main(["unlearn", "model.safetensors", *CONFIG, *words, "--reference", str(digits / "data/train")]) == 2
    told = capsys.readouterr().err
    assert "by accuracy (" in told
    assert "and by its margins (membership AUC" in told
    assert not Path("model.unlearned.safetensors").exists()


def test_the_written_class_stays_met_however_the_model_is_run(job: Path, digits: Path) -> None:
    """The file through the unfolded model, in batches of 1, 7 and 500: the target holds in each, with room for rounding."""
    made = unlearned("--forget", "class=3")
    assert made.target.margin > 0
    import importlib.util

    spec = importlib.util.spec_from_file_location("digits_model", "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.digits_net()
    model.load_state_dict(load_file("model.unlearned.safetensors"))
    model.eval()
    images = np.stack([np.asarray(Image.open(path)) for path in sorted((digits / "data/train/3").glob("*.png"))])
    batch = (torch.from_numpy(images).float().unsqueeze(1) / 255 - 0.305) / 0.376
    assert made.target.value is not None
    for size in (1, 7, 500):
        with torch.inference_mode():
            logits = torch.cat([model(part) for part in batch.split(size)])
        hits = int((logits.argmax(1) == 3).sum())
        gap = logits[:, [j for j in range(10) if j != 3]].amax(1) - logits[:, 3]
        near = int(((gap >= 0) & (gap < made.target.margin / 2)).sum())
        assert hits + near <= made.target.value * len(images)


def test_kept_classes_that_are_seen_wrongly_are_said_on_every_set(
    job: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test set whose folders were renamed in a circle: nothing is right on it, and a fall of nothing is no evidence."""
    for number in range(10):
        shutil.copytree(digits / f"data/test/{number}", f"turned/{(number + 1) % 10}")
    unlearned("--forget", "class=3", "--test", "turned")
    assert "accuracy on held-out samples of kept classes is" in capsys.readouterr().err
    assert main(["evaluate", "model.unlearned.safetensors", *CONFIG, "--test", "turned", "--retain", "turned"]) == 0
    told = capsys.readouterr().err
    assert "accuracy on samples of kept classes in --test is" in told
    assert "accuracy on samples of kept classes in --retain is" in told
    assert "no better than chance" in told


def test_the_order_of_class_folders_is_asked_where_timm_and_torchvision_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A timm folder without names and folders class1 to class12: which output is class10 cannot be known; --classes says it."""
    timm = pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    names = [f"class{number}" for number in range(1, 13)]
    rng = np.random.default_rng(0)
    for name in names:
        Path("train", name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(f"train/{name}/{number}.png")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=12)
    timm.models.save_for_hf(model, "model", safe_serialization=True)
    Path("model/pytorch_model.bin").unlink(missing_ok=True)
    words = ["influence", "model", "--data", "train", "--forget", "class=class1", "--quiet"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "as strings (torchvision: output 1 is 'class10') and naturally (timm: output 1 is 'class2')" in told
    Path("names.txt").write_text("\n".join(names))
    assert main([*words, "--classes", "names.txt"]) == 0
    for name in names[9:]:  # without class10 to class12 both orders are one
        shutil.rmtree(f"train/{name}")
    config = json.loads(Path("model/config.json").read_text())
    assert config["num_classes"] == 12
