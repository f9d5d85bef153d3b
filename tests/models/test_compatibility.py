"""A few architectures of each library through the whole of ``unlearn``; benchmarks/compatibility.py has the full table."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

from imu_cli.cli import main
from imu_cli.samples.images.preprocessing import parse
from imu_cli.samples.images.steps import stack

QUICK = {
    "torchvision": ["mnasnet0_5", "squeezenet1_1"],
    "timm": ["lcnet_035", "convnext_atto", "crossvit_tiny_240"],
    "transformers": ["ViTForImageClassification", "ResNetForImageClassification", "SwiftFormerForImageClassification"],
}


@pytest.fixture
def compatibility(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The benchmark, as a module; it works in ``tmp_path``."""
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("IMU_BENCH_DIR", str(tmp_path))
    return importlib.import_module("compatibility")


@pytest.mark.parametrize(("library", "name"), [(library, name) for library, names in QUICK.items() for name in names])
def test_architectures_work_or_are_refused(compatibility: Any, library: str, name: str) -> None:
    """Each works as the table says (head, step, bytes, own library, promised logits) or is refused with the reason."""
    if name.startswith("crossvit") and not hasattr(sys.modules["timm"].models._hub, "get_model_args"):
        pytest.skip("timm before 1.0.31 saves no size of a crossvit")
    case = next(case for case in compatibility.PROMISED[library][0] if case.name == name)
    row = compatibility.run_quietly(case)
    assert row["outcome"] == ("refused" if case.refused else "works"), row["said"]
    if not case.refused:
        assert row["steps"] >= 1
        assert row["head"]["replay_error"] < 1e-4
        assert row["loaded_error"] < 1e-4


QUICK_TEXTS = ["XLNet", "DebertaV2", "T5", "Qwen2", "OpenAIGPT", "FNet"]


@pytest.mark.parametrize("kind", QUICK_TEXTS)
def test_text_classifiers_work_or_are_refused(compatibility: Any, kind: str) -> None:
    """The same of texts; benchmarks/text_compatibility.py has the full table."""
    texts = importlib.import_module("text_compatibility")
    case = next(case for case in texts.CASES if case.name == f"{kind}ForSequenceClassification")
    row = texts.run_quietly(case)
    assert row["outcome"] == ("refused" if case.refused else "works"), row["said"]


def test_the_check_notices_a_model_that_does_not_keep_its_promise(
    compatibility: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that cannot fail says nothing: a library that loads other weights than were written is a failure."""
    case = next(case for case in compatibility.TIMM if case.name == "lcnet_035")
    make = compatibility.LIBRARIES["timm"]

    def wrong(*given: Any) -> Any:
        saved = make(*given)
        return compatibility.Saved(saved.model, saved.path, saved.flags, lambda path: saved.load(saved.path))

    monkeypatch.setitem(compatibility.LIBRARIES, "timm", wrong)
    row = compatibility.run_quietly(case)
    assert row["outcome"] == "fails"
    assert "logits are off by" in row["said"]


def test_the_table_covers_what_was_promised(compatibility: Any) -> None:
    """At least 40 torchvision, 60 timm and 20 transformers architectures are in the results, and none of them fails."""
    runs = json.loads((ROOT / "benchmarks/results/compatibility.json").read_text(encoding="utf-8"))["runs"]
    for library, (_, promised) in compatibility.PROMISED.items():
        outcomes = {run["name"]: run["outcome"] for run in runs if run["library"] == library}
        assert len(outcomes) >= promised
        assert set(outcomes.values()) <= {"works", "refused"}


def test_the_table_of_texts_covers_what_was_promised(compatibility: Any) -> None:
    """At least 20 text classifiers are in the results, those that can be tried now, and none of them fails."""
    texts = importlib.import_module("text_compatibility")
    runs = json.loads((ROOT / "benchmarks/results/text_compatibility.json").read_text(encoding="utf-8"))["runs"]
    assert len(runs) >= texts.PROMISED
    assert {run["name"] for run in runs} == {case.name for case in texts.CASES}
    assert {run["outcome"] for run in runs} <= {"works", "refused"}


def test_a_torchvision_model_needs_its_name_and_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--arch and --preprocess imagenet are all that a bare torchvision file needs; evaluate is told neither again."""
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v3_small(num_classes=10).eval()
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    steps = parse("imagenet")
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (60, 90, 3), dtype=np.uint8)) for _ in range(6)]
    with torch.inference_mode():
        labels = model(steps.scale(stack([steps.shape(image) for image in images]))).argmax(dim=1).tolist()
    for row, image in enumerate(images):
        image.save(tmp_path / f"{row}.png")
    listed = [f"{row}.png,{label}" for row, label in enumerate(labels)]
    (tmp_path / "forget.csv").write_text("\n".join(["file_name,label", *listed]) + "\n")
    forget = ["--forget", str(tmp_path / "forget.csv"), "--scenario", "class", "-q"]
    flags = ["--arch", "torchvision:mobilenet_v3_small", "--preprocess", "imagenet"]
    assert main(["unlearn", str(tmp_path / "m.safetensors"), *flags, *forget]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "m.unlearned.safetensors"), "-q", "--format", "json"]) == 0
    metrics = {item["name"]: item for item in json.loads(capsys.readouterr().out)["metrics"]}
    assert (metrics["forget.accuracy"]["before"], metrics["forget.accuracy"]["value"]) == (1.0, 0.0)
    again = torchvision.models.mobilenet_v3_small(num_classes=10).eval()
    again.load_state_dict(load_file(tmp_path / "m.unlearned.safetensors"))
    with torch.inference_mode():
        found = again(steps.scale(stack([steps.shape(image) for image in images]))).argmax(dim=1).tolist()
    assert not set(found) & set(labels)
