"""People for tests: tiny images in Market-1501's layout, and linear embedding models of random weights."""

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

FACTORY = """\
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6, bias=False))
"""
CONFIG = (
    "arch: embed.py:net\ntask: embedding\npreprocess: {mode: L, mean: [0.5], std: [0.25]}\ndata: market1501:people\n"
)
TRAINED, UNSEEN = range(1, 7), range(11, 17)
FORGOTTEN = ("0001", "0002", "0003")
CAMERAS, EACH = 2, 3


def picture(pattern: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A person on one occasion: the pattern and noise."""
    return Image.fromarray((pattern + rng.normal(0, 45, (8, 8))).clip(0, 255).astype(np.uint8))


def make(folder: Path) -> Path:
    """Six people to train on, six unseen ones with queries, junk and a distractor; a model, an earlier one and a file that lists three."""
    rng = np.random.default_rng(0)
    for person in (*TRAINED, *UNSEEN):
        pattern = rng.uniform(60, 190, (8, 8))
        split = "bounding_box_train" if person in TRAINED else "bounding_box_test"
        for camera in range(1, CAMERAS + 1):
            for shot in range(EACH):
                query = person in UNSEEN and camera == 2 and shot == 0
                place = folder / "people" / ("query" if query else split)
                place.mkdir(parents=True, exist_ok=True)
                picture(pattern, rng).save(place / f"{person:04d}_c{camera}s1_{shot:06d}_00.jpg", "PNG")
    test = folder / "people/bounding_box_test"
    for name in ("-1_c1s1_000001_00.jpg", "0000_c1s1_000001_00.jpg"):
        picture(rng.uniform(60, 190, (8, 8)), rng).save(test / name, "PNG")
    generator = torch.Generator().manual_seed(0)
    for name in ("model", "other"):
        save_file({"1.weight": torch.randn(6, 64, generator=generator)}, folder / f"{name}.safetensors")
    (folder / "embed.py").write_text(FACTORY)
    (folder / "imu.yaml").write_text(CONFIG)
    listed = [
        f"bounding_box_train/{person}_c{camera}s1_{shot:06d}_00.jpg,{person}"
        for person in FORGOTTEN
        for camera in range(1, CAMERAS + 1)
        for shot in range(EACH)
    ]
    (folder / "forget.csv").write_text("\n".join(["file_name,id", *listed]) + "\n")
    return folder


def copied(made: Path, to: Path) -> Path:
    """Another copy of it."""
    shutil.copytree(made, to, dirs_exist_ok=True)
    return to
