"""Models that come with their configs: timm and transformers folders, whose files are enough, and cannot name code."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

from imu_cli.errors import ImuError, RefusedError
from imu_cli.models import candidates, factories, libraries
from imu_cli.models.architecture import load, read_said
from imu_cli.models.checkpoint import Checkpoint, open_checkpoint
from imu_cli.samples.images.preprocessing import find, parse
from imu_cli.samples.images.steps import stack

CLASSES = ["cat", "dog", "owl", "rat"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def picture(seed: int = 0, size: tuple[int, int] = (50, 41)) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def timm_folder(folder: Path, **config: Any) -> torch.nn.Module:
    """A folder as timm's own ``save_for_hf`` writes it."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet.r160_in1k", pretrained=False, num_classes=4)
    timm.models.save_for_hf(model, folder, safe_serialization=True, model_config={"label_names": CLASSES, **config})
    return model.eval()


def vit_config(**changes: Any) -> Any:
    return transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        **{"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}, **changes},
    )  # fmt: skip


def vit_folder(folder: Path, **changes: Any) -> torch.nn.Module:
    """A folder as transformers' ``save_pretrained`` writes it, with its image processor."""
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(vit_config(**changes))
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model.eval()


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(folder / "model.safetensors")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_timm_folder_says_everything(tmp_path: Path) -> None:
    """Architecture with its classes, preprocessing and class names come from config.json; the model is timm's, bit by bit."""
    model = timm_folder(tmp_path)
    (said,) = read_said(opened(tmp_path))
    assert (said.source, said.arch, said.classes) == ("config.json (timm)", "timm:test_resnet", tuple(CLASSES))
    found = load(opened(tmp_path), None)
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(found.model(images), model(images))
    assert found.architecture.described()["arguments"]["num_classes"] == 4


def test_timm_preprocessing_is_timms_own(tmp_path: Path) -> None:
    """Every pixel is what timm's evaluation transform makes of it, and the description alone makes the same again."""
    model = timm_folder(tmp_path)
    (said,) = read_said(opened(tmp_path))
    steps, source = find(None, [(said.preprocess, said.source)])
    assert source == "config.json (timm)"
    theirs = create_transform(**resolve_data_config({}, model=model), is_training=False)
    for made in (steps, parse(json.loads(json.dumps(steps.described())), "record")):
        mine = made.scale(stack([made.shape(picture())]))[0]
        torch.testing.assert_close(mine, theirs(picture()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["squash", "border", "center"])
def test_timm_crop_modes_are_kept(mode: str) -> None:
    """Squashing and padding are timm's, not a centre crop in their place."""
    config = {"input_size": [3, 24, 24], "crop_pct": 0.9, "crop_mode": mode, "mean": [0.5] * 3, "std": [0.5] * 3}
    steps = parse({"library": "timm", "config": config})
    theirs = create_transform(**resolve_data_config({}, pretrained_cfg=config), is_training=False)
    mine = steps.scale(stack([steps.shape(picture())]))[0]
    torch.testing.assert_close(mine, theirs(picture()), rtol=0, atol=1e-6)


def test_a_transformers_folder_says_everything(tmp_path: Path) -> None:
    """The same for ``save_pretrained``: the logits are transformers' own, preprocessing is the saved processor's."""
    model = vit_folder(tmp_path)
    (said,) = read_said(opened(tmp_path))
    assert (said.arch, said.classes) == ("hf:ViTForImageClassification", tuple(CLASSES))
    found = load(opened(tmp_path), None)
    own = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    wanted = own(images=picture(), return_tensors="pt")["pixel_values"]
    steps, _ = find(None, [(said.preprocess, said.source)])
    for made in (steps, parse(json.loads(json.dumps(steps.described())), "record")):
        torch.testing.assert_close(made.scale(stack([made.shape(picture())])), wanted, rtol=0, atol=1e-6)
    with torch.inference_mode():
        assert torch.equal(found.model(wanted).logits, model(wanted).logits)


def test_what_was_built_can_be_built_from_its_description_alone(tmp_path: Path) -> None:
    """A record holds all of the config that computes: the weights load without the config.json beside them."""
    vit_folder(tmp_path)
    made = load(opened(tmp_path), None).architecture.described()
    plain = json.loads(json.dumps(made))["arguments"]["config"]
    assert "id2label" not in plain
    again = factories.resolve(made["name"])[0](config=plain)
    assert again.config.num_labels == 4


def test_naming_the_architecture_keeps_its_arguments(tmp_path: Path) -> None:
    """--arch hf: alone, or the architecture that the config names, is built with the config's arguments."""
    vit_folder(tmp_path / "vit")
    assert load(opened(tmp_path / "vit"), "hf:").architecture.source == "--arch"
    timm_folder(tmp_path / "timm")
    assert load(opened(tmp_path / "timm"), "timm:test_resnet").architecture.arguments["num_classes"] == 4


def test_hf_without_a_config_says_what_it_needs(tmp_path: Path) -> None:
    """Weights alone do not say which transformer they are."""
    vit_folder(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ImuError, match=r"--arch hf:: no transformers config; put the config\.json"):
        load(opened(tmp_path), "hf:")


def test_transformers_weights_are_loaded_strictly(tmp_path: Path) -> None:
    """By transformers' own reading of its names, and still not one tensor may be missing, too many or misshapen."""
    vit_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    kept = load_file(path)
    wrong = {**kept, "extra": torch.zeros(1), "classifier.weight": torch.zeros(9, 16)}
    del wrong["vit.layernorm.bias"]
    save_file(wrong, path)
    with pytest.raises(ImuError) as caught:
        load(opened(tmp_path), None)
    assert "missing: vit.layernorm.bias; unexpected: extra; misshapen: classifier.weight is (9, 16)" in str(
        caught.value
    )


def test_placeholders_are_no_class_names(tmp_path: Path) -> None:
    """LABEL_0 and its like are what transformers writes where nobody gave names; ids with gaps name nothing either."""
    vit_folder(tmp_path, id2label={i: f"LABEL_{i}" for i in range(4)}, label2id={f"LABEL_{i}": i for i in range(4)})
    assert read_said(opened(tmp_path))[0].classes == (
        "LABEL_0",
        "LABEL_1",
        "LABEL_2",
        "LABEL_3",
    )  # class_names drops them
    edit(tmp_path / "config.json", id2label={"0": "cat", "7": "dog"})
    assert read_said(opened(tmp_path))[0].classes is None


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_config_cannot_name_code(tmp_path: Path, file: str) -> None:
    """auto_map is refused before anything is imported, and the module that it names is not run."""
    vit_folder(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit(tmp_path / file, auto_map={"AutoModelForImageClassification": "evil.Net", "AutoImageProcessor": "evil.P"})
    said = read_said(opened(tmp_path))
    with pytest.raises(RefusedError, match=r"names code of its own \(auto_map\)"):
        _ = load(opened(tmp_path), None), find(None, [(item.steps, item.source) for item in said])
    assert not (tmp_path / "ran").exists()


def test_models_that_are_no_image_classifiers_are_refused(tmp_path: Path) -> None:
    """A quantised model, a language model and a kind that this transformers does not know: each with its reason."""
    vit_folder(tmp_path)
    config = tmp_path / "config.json"
    kept = config.read_text()
    for changes, said in (
        ({"quantization_config": {"bits": 4}}, "quantised"),
        (
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            "BertForMaskedLM is neither an image classifier nor",
        ),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "is neither an image classifier nor"),
        ({"model_type": "no_such"}, "model_type 'no_such' is not one of this transformers"),
    ):
        config.write_text(kept)
        edit(config, **changes)
        with pytest.raises(RefusedError, match=said):
            load(opened(tmp_path), None)


@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"])
def test_a_config_cannot_make_timm_read_other_files(tmp_path: Path, argument: str) -> None:
    """model_args that load a checkpoint, a pickle even, or reach for the hub are refused."""
    timm_folder(tmp_path)
    (tmp_path / "evil.pth").write_bytes(b"\x80\x04cos\nsystem\n")
    edit(tmp_path / "config.json", model_args={argument: str(tmp_path / "evil.pth")})
    with pytest.raises(ImuError, match=f"argument '{argument}' would read other weights"):
        load(opened(tmp_path), None)


@pytest.mark.parametrize("name", ["hf-hub:evil/model", "local-dir:/tmp", "../resnet18", "resnet18/x"])
def test_timm_names_are_its_registrys(name: str) -> None:
    """No hub, no folder: only what timm ships."""
    with pytest.raises(ImuError, match="timm has no such model"):
        factories.resolve(f"timm:{name}")


@pytest.mark.parametrize("text", ["{", "[]", "1", '{"model_type": 3}', '{"architecture": "x", "model_args": 3}'])
def test_broken_configs_are_refused_by_name(tmp_path: Path, text: str) -> None:
    """The file is named, and what to do."""
    timm_folder(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ImuError, match=r"config\.json"):
        load(opened(tmp_path), None)


def test_another_programs_config_says_nothing(tmp_path: Path) -> None:
    """A config.json that is neither timm's nor transformers' is not about this model."""
    timm_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"learning_rate": 0.1}')
    assert read_said(opened(tmp_path)) == []


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without timm or transformers: what to install."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImuError, match=r"--arch timm:resnet18: needs timm.*pip install 'imu-cli\[timm\]'"):
        factories.resolve("timm:resnet18")


def test_a_resnet18_without_a_config_lists_both_libraries(tmp_path: Path) -> None:
    """Timm's and torchvision's ResNet-18 have the same tensors: both are shown, none is guessed."""
    model = libraries.torchvision_models().resnet18(num_classes=7)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(ImuError) as caught:
        load(open_checkpoint(tmp_path / "m.safetensors"), None)
    assert "\n  --arch torchvision:resnet18" in str(caught.value)
    assert "\n  --arch timm:resnet18" in str(caught.value)


def test_candidates_are_found_behind_a_prefix_and_without_batch_counters() -> None:
    """What DistributedDataParallel put before the names, and what old files lack, does not hide a model."""
    shapes = {
        f"module.{name}": tuple(value.shape)
        for name, value in libraries.torchvision_models().resnet18(num_classes=7).state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert "torchvision:resnet18" in candidates.find(shapes)
    assert candidates.find({**shapes, "module.extra": (1,)}) == []
    assert candidates.find({name: (*shape[:-1], 9) if shape else shape for name, shape in shapes.items()}) == []
