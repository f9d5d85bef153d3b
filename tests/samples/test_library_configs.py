"""Preprocessing that comes with a model of timm or transformers: every value is checked before the library works with it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from test_sidecar import edit, timm_folder, vit_folder

from imu_cli.cli import main
from imu_cli.errors import ImuError
from imu_cli.samples.images.preprocessing import parse

PROCESSOR: dict[str, Any] = json.loads(
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).to_json_string()
)

WRONG: list[tuple[str, Any, str]] = [
    ("image_mean", ["a", "b", "c"], "image_mean.0: found 'a'"),
    ("image_mean", [0.5] * 1002, "image_mean: found [0.5,"),
    ("image_mean", "half", "image_mean: found 'half'"),
    ("image_mean", [float("nan")] * 3, "image_mean.0: found nan"),
    ("image_mean", [], "image_mean: found []"),
    ("image_std", [0.5, 0, 0.5], "image_std.1: found 0"),
    ("image_std", 0, "image_std: found 0"),
    ("image_std", {"r": 1}, "image_std: found {'r': 1}"),
    ("rescale_factor", "x", "rescale_factor: found 'x'"),
    ("rescale_factor", float("inf"), "rescale_factor: found inf"),
    ("resample", 99, "resample: found 99"),
    ("resample", "bicubic", "resample: found 'bicubic'"),
    ("resample", True, "resample: found True"),
    ("size", {"height": [1], "width": 32}, "size.height: found [1]"),
    ("size", {"height": 30_000, "width": 30_000}, "size.height: found 30000"),
    ("size", {"shortest_edge": 0}, "size.shortest_edge: found 0"),
    ("size", {"height": "32", "width": 32}, "size.height: found '32'"),
    ("size", "32", "size: found '32'"),
    ("size", -1, "size: found -1"),
    ("crop_size", 10**9, "crop_size: found 1000000000"),
    ("crop_pct", 1e-9, "crop_pct: found 1e-09"),
    ("do_resize", "no", "do_resize: found 'no'"),
    ("image_processor_type", ["ViT"], "image_processor_type: found ['ViT']"),
]


@pytest.mark.parametrize(("key", "value", "said"), WRONG, ids=lambda value: str(value)[:25])
def test_a_processor_that_cannot_be(key: str, value: Any, said: str) -> None:
    """The key and what was found, the file to mend, and the option to give instead."""
    with pytest.raises(ImuError) as caught:
        parse({"library": "transformers", "config": {**PROCESSOR, key: value}}, "config.json (transformers)")
    assert str(caught.value).startswith(f"config.json (transformers): {said}")
    assert str(caught.value).endswith("; mend preprocessor_config.json, or give --preprocess")


TIMM: list[tuple[str, Any, str]] = [
    ("mean", ["a", "b", "c"], "mean.0: found 'a'"),
    ("mean", [0.5] * 1002, "mean: found [0.5,"),
    ("mean", [0.5, 0.5], "mean and std: found 2 and 3 for 3 channels"),
    ("std", [0.0, 1.0, 1.0], "std.0: found 0.0"),
    ("std", [float("nan")] * 3, "std.0: found nan"),
    ("input_size", [3, 30_000, 30_000], "input_size.1: found 30000"),
    ("input_size", [3, "a", 1], "input_size.1: found 'a'"),
    ("input_size", 224, "input_size: found 224"),
    ("input_size", [3, 224], "input_size: found [3, 224]"),
    ("crop_pct", 1e-9, "crop_pct: found 1e-09"),
    ("crop_pct", float("inf"), "crop_pct: found inf"),
    ("crop_pct", "0.9", "crop_pct: found '0.9'"),
    ("crop_mode", "centre", "crop_mode: found 'centre'"),
    ("interpolation", "random", "interpolation: found 'random'"),
    ("interpolation", 3, "interpolation: found 3"),
]


@pytest.mark.parametrize(("key", "value", "said"), TIMM, ids=lambda value: str(value)[:25])
def test_a_timm_data_config_that_cannot_be(key: str, value: Any, said: str) -> None:
    """The same for timm's; a crop mode that timm does not know would be taken as its default in silence."""
    with pytest.raises(ImuError) as caught:
        parse({"library": "timm", "config": {"input_size": [3, 32, 32], key: value}}, "config.json (timm)")
    assert str(caught.value).startswith(f"config.json (timm): {said}")
    assert str(caught.value).endswith("; mend pretrained_cfg in config.json, or give --preprocess")


@pytest.mark.parametrize("file", ["preprocessor_config.json", "config.json"])
def test_inspect_tells_it_as_a_finding(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be learnt of the preprocessing hides nothing else."""
    if file == "config.json":
        timm_folder(tmp_path)
        about = json.loads((tmp_path / file).read_text())["pretrained_cfg"]
        edit(tmp_path / file, pretrained_cfg={**about, "mean": "x"})
    else:
        vit_folder(tmp_path)
        edit(tmp_path / file, image_mean=["a"])
    assert main(["inspect", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "preprocessing NOT KNOWN" in said
    assert "mean" in said


@pytest.mark.parametrize(
    "given",
    [
        {"size": 256, "crop": 224},
        {"library": "timm", "config": {"input_size": [3, 224, 224]}},
        {"library": "transformers", "config": {**PROCESSOR, "size": {"shortest_edge": 224}}},
    ],
    ids=["ours", "timm", "transformers"],
)
def test_a_line_of_pixels_is_not_blown_up(given: dict[str, Any]) -> None:
    """One pixel high and sixty thousand wide: resized by its shorter side it would have four thousand million pixels."""
    steps = parse(given)
    with pytest.raises(ImuError, match="is 60000 x 1, and too large once its shorter side has"):
        steps.shape(Image.fromarray(np.zeros((1, 60_000, 3), np.uint8)))
    steps.shape(Image.fromarray(np.zeros((100, 200, 3), np.uint8)))


def test_the_image_is_named(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where an image cannot go through the preprocessing, its line and file are said."""
    Path("mine").mkdir()
    Image.fromarray(np.zeros((1, 60_000), np.uint8)).save("mine/a.png")
    Path("mine/l.csv").write_text("file_name,label\na.png,3\n")
    Path("p.yaml").write_text("{mode: L, size: 256, crop: 8, mean: [0.3], std: [0.3]}")
    given = ["--arch", "model.py:digits_net", "--preprocess", "p.yaml", "--forget", "mine/l.csv"]
    assert main(["influence", "model.safetensors", *given]) == 2
    assert "imu: mine/l.csv:2: mine/a.png: is 60000 x 1, and too large" in capsys.readouterr().err
