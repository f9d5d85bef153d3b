"""Models without classes: found by what their files say, by --task and --embedding; what makes no vector is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import refusal
from safetensors.torch import save_file
from torch import Tensor, nn

from imu_cli.commands import opening
from imu_cli.config.shared import ModelConfig
from imu_cli.errors import ImuError, RefusedError
from imu_cli.models import embedding


@pytest.fixture(autouse=True)
def _quick(one_thread: None) -> None:
    """Small models are quicker on one thread."""


class Odd(nn.Module):
    """Returns whatever it was made with."""

    def __init__(self, made: Any, times: int = 1) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.made, self.times = made, times

    def forward(self, images: Tensor) -> Any:
        for _ in range(self.times):
            self.inner(images.flatten(1))
        return self.made


def timm_folder(folder: Path, num_classes: int) -> Path:
    """A small timm model as timm saves it."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=num_classes, pretrained=False)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    about = {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "num_classes": num_classes,
        "crop_pct": 1.0,
    }
    config = {"architecture": "resnet10t", "num_classes": num_classes, "pretrained_cfg": about}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_timm_folder_of_no_classes_is_one(tmp_path: Path) -> None:
    """``num_classes: 0`` says that its pooled features are the embedding; a classifier of the same kind stays one."""
    checkpoint, loaded = opening.load_model(timm_folder(tmp_path / "none", 0), ModelConfig())
    assert opening.is_embedding(ModelConfig(), loaded)
    with torch.inference_mode():
        found = embedding.find_embedding(loaded.model, torch.randn(2, 3, 32, 32))
        assert found.matrix.shape == (0, loaded.model(torch.randn(1, 3, 32, 32)).shape[1])
    assert found.embeds
    assert checkpoint.outside_hash(set())
    _, classifier = opening.load_model(timm_folder(tmp_path / "some", 5), ModelConfig())
    assert not opening.is_embedding(ModelConfig(), classifier)
    assert opening.is_embedding(ModelConfig(embedding="global_pool"), classifier)
    assert opening.is_embedding(ModelConfig(task="embedding"), classifier)
    assert not opening.is_embedding(ModelConfig(task="classification"), loaded)


@pytest.mark.parametrize("kind", ["ViT", "ResNet", "Dinov2"])
def test_vision_backbones_of_transformers_are(kind: str, tmp_path: Path) -> None:
    """ViTModel, ResNetModel and Dinov2Model are built from their config; the pooled output is the embedding."""
    transformers = pytest.importorskip("transformers")
    small = {
        "ViT": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": 16,
        },
        "Dinov2": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16},
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    }
    config = getattr(transformers, f"{kind}Config")(**small[kind])
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(tmp_path / "net")
    _, loaded = opening.load_model(tmp_path / "net", ModelConfig())
    assert opening.is_embedding(ModelConfig(), loaded)
    images = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        expected = model(images).pooler_output.flatten(1)
        assert torch.allclose(embedding.embed(loaded.model, "", images), expected, atol=1e-6)


def test_a_module_inside_a_classifier() -> None:
    """The output of a named layer, pooled to one place an image, is the embedding; one that is not there is an error."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    images = torch.randn(5, 3, 8, 8)
    assert torch.equal(embedding.embed(model, "1", images), model[1](model[0](images)).flatten(1))
    assert embedding.find_embedding(model, images, "1").module == "1"
    with pytest.raises(ImuError, match="--embedding pool: the model has no such module"):
        embedding.find_embedding(model, images, "pool")
    with pytest.raises(RefusedError, match=r"returned \(5, 4, 6, 6\) for 5 samples"):
        embedding.find_embedding(model, images, "0")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (torch.randn(3, 7, 16), r"returned \(3, 7, 16\) for 3 samples"),
        (torch.randn(1, 16), r"returned \(1, 16\) for 3 samples"),
        ((torch.randn(3, 4), torch.randn(3, 4)), r"a tuple of \(3, 4\), \(3, 4\)"),
        ({"last_hidden_state": torch.randn(3, 7, 16)}, "a dict with last_hidden_state"),
        (torch.ones(3, 4, dtype=torch.int64), r"returned \(3, 4\)"),
    ],
)
def test_what_is_no_vector_an_image_is_refused(made: Any, said: str) -> None:
    """Tokens, one vector for all, tuples and whole numbers are no embeddings; the message says what came."""
    with pytest.raises(RefusedError, match=said):
        embedding.find_embedding(Odd(made), torch.randn(3, 3, 4, 4))


def test_vectors_that_say_nothing_are_refused() -> None:
    """All zero, or not finite, is an error; a module that runs twice is refused."""
    images = torch.randn(3, 3, 4, 4)
    assert "0 for every image" in refusal(lambda: embedding.find_embedding(Odd(torch.zeros(3, 4)), images))
    assert "not finite" in refusal(lambda: embedding.find_embedding(Odd(torch.full((3, 4), float("nan"))), images))
    with pytest.raises(RefusedError, match="runs 2 times"):
        embedding.find_embedding(Odd(torch.randn(3, 4), times=2), images, "inner")
