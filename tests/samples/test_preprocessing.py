"""Evaluation preprocessing: the same numbers as torchvision's own transforms, from presets, YAML files and records."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from imu_cli.errors import ImuError
from imu_cli.samples.images.preprocessing import IMAGENET, PRESETS, Preprocess, find, parse
from imu_cli.samples.images.steps import stack

MODES = ["RGB", "L", "P", "RGBA", "LA"]
SIZES = [(8, 8), (300, 200), (33, 257), (224, 224)]


def picture(size: tuple[int, int], mode: str, seed: int = 0) -> Image.Image:
    """Random pixels, width by height, in a PIL mode."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def reference(image: Image.Image, values: dict[str, Any]) -> Tensor:
    """The same steps as a torchvision pipeline would be written, on one image."""
    steps: list[Any] = []
    if values.get("size"):
        mode = InterpolationMode(values.get("interpolation", "bilinear"))
        steps.append(v2.Resize(values["size"], interpolation=mode, antialias=True))
    if values.get("crop"):
        steps.append(v2.CenterCrop(values["crop"]))
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    if values.get("mean"):
        steps.append(v2.Normalize(values["mean"], values["std"]))
    made: Tensor = v2.Compose(steps)(image.convert(values.get("mode", "RGB")))
    return made


def ours(image: Image.Image, steps: Preprocess) -> Tensor:
    """One image through ``shape`` and ``scale``."""
    return steps.scale(stack([steps.shape(image)]))[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_equal_torchvision(preset: str, size: tuple[int, int], mode: str) -> None:
    """Every preset gives exactly what the same torchvision transforms give, for any size and mode of image."""
    image = picture(size, mode)
    assert torch.equal(ours(image, parse(preset)), reference(image, PRESETS[preset]))


@pytest.mark.parametrize(
    "values",
    [
        {"size": 40},
        {"size": [40, 60]},
        {"size": [60, 60], "crop": 48, "interpolation": "bicubic"},
        {"size": 48, "interpolation": "lanczos", "mode": "L"},
        {"size": 48, "interpolation": "nearest"},
        {"crop": [20, 30]},
        {"crop": 100},
        {"crop": [100, 10], **IMAGENET},
        {"mean": [0.5], "std": [0.25]},
        {"mode": "L", "mean": [0.5], "std": [0.25]},
    ],
    ids=str,
)
def test_any_combination_equals_torchvision(values: dict[str, Any]) -> None:
    """Heights and widths, other interpolations, crops larger than the image (padded), one mean for all channels."""
    image = picture((50, 37), "RGB")
    assert torch.equal(ours(image, parse(values)), reference(image, values))


def test_a_batch_is_its_images_side_by_side() -> None:
    """Scaling and normalising many images at once changes no bit of any of them, nor the pixels that came in."""
    steps = parse("imagenet")
    pixels = stack([steps.shape(picture((260, 230), "RGB", seed)) for seed in range(4)])
    before = pixels.clone()
    scaled = steps.scale(pixels)
    assert torch.equal(scaled, torch.stack([steps.scale(image.unsqueeze(0))[0] for image in pixels]))
    assert torch.equal(pixels, before)
    assert (pixels.dtype, scaled.dtype) == (torch.uint8, torch.float32)


@pytest.mark.parametrize("preset", ["imagenet", "cifar10", "mnist", "none"])
def test_scaling_is_torchvisions_for_every_pixel_value(preset: str) -> None:
    """All 256 values in every channel, in both memory layouts: the same bits as to_dtype and normalize, the same strides."""
    steps = parse(preset)
    bands = 1 if preset == "mnist" else 3
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, bands, 1, 1)
    for pixels in (values, values.to(memory_format=torch.channels_last)):
        expected = v2.functional.to_dtype(pixels, torch.float32, scale=True)
        if steps.mean is not None:
            expected = v2.functional.normalize(expected, list(steps.mean), list(steps.std))
        found = steps.scale(pixels)
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()


def test_without_steps_pixels_are_only_scaled() -> None:
    """``none`` maps 0 to 255 onto 0 to 1, and nothing else."""
    image = picture((5, 4), "RGB")
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    torch.testing.assert_close(ours(image, parse("none")), expected, rtol=1e-6, atol=0)


GIVEN: dict[str, Any] = {
    "size": [40, 60],
    "crop": 32,
    "interpolation": "bicubic",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.1],
}


def test_yaml_file_and_mapping_are_the_same(tmp_path: Path) -> None:
    """A YAML file, whatever it is called, is read as the mapping that it holds."""
    for name in ("p.yaml", "p.yml", "p"):
        (tmp_path / name).write_text(yaml.safe_dump(GIVEN))
        assert parse(str(tmp_path / name)) == parse(GIVEN)


@pytest.mark.parametrize("given", [*PRESETS, GIVEN, {"size": 7}], ids=str)
def test_what_a_record_says_gives_the_same_steps(given: Any) -> None:
    """``described`` goes through JSON and back without a change, so that a record can be evaluated with it."""
    steps = parse(given)
    assert parse(json.loads(json.dumps(steps.described()))) == steps


def test_numbers_in_exponent_notation(tmp_path: Path) -> None:
    """PyYAML reads 5e-1 as text; here it is the number that was meant."""
    (tmp_path / "p.yaml").write_text("{mean: [5e-1], std: [25e-2]}\n")
    assert parse(str(tmp_path / "p.yaml")) == parse({"mean": [0.5], "std": [0.25]})


BAD: dict[str, tuple[dict[Any, Any], str]] = {
    "unknown key": ({"sizes": 3}, "sizes: unexpected keyword"),
    "a key that is no text": ({3: 3}, "known keys are"),
    "mean too long": ({"mean": [0.5] * 3, "std": [0.5], "mode": "L"}, "mean: has 3 values for 1 channels (mode L)"),
    "mean too short": ({"mean": [0.5] * 2, "std": [0.5] * 3}, "mean: has 2 values for 3 channels (mode RGB)"),
    "std too long": ({"mean": [0.5] * 3, "std": [0.5] * 4}, "std: has 4 values for 3 channels"),
    "empty mean": ({"mean": [], "std": []}, "mean: "),
    "mean alone": ({"mean": [0.5]}, "only one of them is given"),
    "std alone": ({"std": [0.5]}, "only one of them is given"),
    "std of 0": ({"mean": [0.5], "std": [0.0]}, "std.0: "),
    "negative std": ({"mean": [0.5], "std": [-1]}, "std.0: "),
    "mean is text": ({"mean": "half", "std": [1]}, "mean: "),
    "no size": ({"size": 0}, "size"),
    "three sizes": ({"size": [1, 2, 3]}, "size"),
    "crop is text": ({"crop": "centre"}, "crop"),
    "unknown mode": ({"mode": "BGR"}, "mode: "),
    "unknown interpolation": ({"interpolation": "cubic"}, "interpolation: "),
}


@pytest.mark.parametrize("name", BAD)
def test_impossible_values_are_refused(tmp_path: Path, name: str) -> None:
    """The message names the file, the key, and the keys there are; nothing is guessed or ignored."""
    values, said = BAD[name]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ImuError) as caught:
        parse(str(tmp_path / "p.yaml"))
    assert str(caught.value).startswith(f"{tmp_path / 'p.yaml'}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "not a mapping"),
        ("size 3", "not a mapping"),
        ("", "not a mapping"),
        ("{", "not YAML"),
        ("a: b: c", "not YAML"),
    ],
)
def test_files_that_hold_no_preprocessing(tmp_path: Path, text: str, said: str) -> None:
    """A file that is no YAML mapping is named."""
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ImuError, match=rf"p\.yaml: {said}"):
        parse(str(tmp_path / "p.yaml"))


def test_images_instead_of_yaml(tmp_path: Path) -> None:
    """A binary file is refused as not YAML."""
    picture((8, 8), "RGB").save(tmp_path / "p.png")
    with pytest.raises(ImuError, match=r"p\.png: not YAML"):
        parse(str(tmp_path / "p.png"))


@pytest.mark.parametrize("given", ["imagnet", "", "missing.yaml", "."])
def test_unknown_presets_list_the_known_ones(given: str) -> None:
    """What is neither a preset nor a file is answered with the presets."""
    with pytest.raises(
        ImuError, match=r"neither a preset \(imagenet, cifar10, cifar100, mnist, none\) nor a YAML file"
    ):
        parse(given)


@pytest.mark.parametrize("given", [3, [1], None, 0.5])
def test_values_of_another_kind_are_refused(given: Any) -> None:
    """A checkpoint's metadata may hold anything: what is no text and no mapping is refused with its source."""
    with pytest.raises(ImuError, match="metadata"):
        parse(given, "metadata")


def test_the_first_source_that_says_anything_wins() -> None:
    """The option before the metadata before the record; with none of them the message holds lines that can be used."""
    sources: list[tuple[Any, str]] = [(None, "metadata"), ({"size": 8}, "record"), ("mnist", "later")]
    assert find("cifar10", sources) == (parse("cifar10"), "--preprocess")
    assert find(None, sources) == (parse({"size": 8}), "record")
    with pytest.raises(ImuError, match="wrong preprocessing still gives plausible numbers") as caught:
        find(None, [(None, "metadata")])
    shown = str(caught.value).splitlines()[-1]
    assert parse(yaml.safe_load(shown)) == parse("imagenet")
