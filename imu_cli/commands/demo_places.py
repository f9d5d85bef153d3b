"""The data and the model of ``imu demo --task embedding``: places in the two photographs that scikit-learn ships, found again.

Re-identification needs many who are seen several times, under other light, and a part of them kept from training. scikit-learn's digits are
ten classes, too few to say anything about others; its two photographs (a temple and a flower, 427 x 640) hold some 190 places of 40 x 40
pixels with something to see. A place is seen by two cameras of different colour, each time a little shifted, scaled, darker or brighter and
with noise: real pixels, and to the network what a person is who walks past twice. Nobody is in them, so that nothing is personal.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from imu_cli import signals
from imu_cli.models import places

SIDE, PLACE, MARGIN = 32, 40, 8
"""Pixels of an image, of a place, and from the edge of the photograph."""
CONTRAST = 25
"""Standard deviation of a place's pixels from which there is something to see."""
TRAINED, UNSEEN, FORGOTTEN = 64, 64, 12
SHOTS = 4
"""Images of a place by each camera."""
CASTS = {1: (1.15, 1.0, 0.8), 2: (0.75, 0.9, 1.1)}
"""What each camera does to red, green and blue."""
MEAN, STD = 0.5, 0.25
STEPS, BATCH, SHARPNESS = 400, 64, 16


CONFIG = f"""\
# Read by every command with --config imu.yaml; flags win over it.
arch: model.py:places_net
task: embedding
preprocess: {{mean: {[MEAN] * 3}, std: {[STD] * 3}}}
data: market1501:data
"""
GONE = ",".join(f"{place:04d}" for place in range(1, FORGOTTEN + 1))
TEST = ["--config", "imu.yaml", "--forget", "forget.csv", "--test", "market1501:data"]
COMMANDS = (
    ["select", "--data", "market1501:data", f"id={GONE}", "-o", "forget.csv"],
    ["influence", "model.safetensors", *TEST, "--show", "10"],
    ["unlearn", "model.safetensors", *TEST, "--scope", "all", "--max-drop", "0.05", "-o", "unlearned.safetensors"],
    ["evaluate", "unlearned.safetensors", "--config", "imu.yaml", "--test", "market1501:data", "--require", "people.auc_drop>=0.1",
     "--require", "test.map_drop<=0.08"],
    ["report", "unlearned.record.json", "unlearned.evaluation.json"],
)  # fmt: skip
FILES: set[str] = set()
IMAGE = r"bounding_box_(train|test)/[0-9]{4}_c[12]s1_[0-9]{6}_00\.png"
ABOUT = "places in scikit-learn's two photographs in place of people"


@dataclass(frozen=True)
class Sighting:
    """One image: which place, by which camera, and its pixels (32, 32, 3) uint8."""

    place: int
    camera: int
    pixels: NDArray[np.uint8]

    def name(self, shot: int) -> str:
        """The file's name in Market-1501's way."""
        return f"{self.place:04d}_c{self.camera}s1_{shot:06d}_00.png"


def _spots(photographs: list[NDArray[np.uint8]]) -> list[tuple[int, int, int]]:
    """Places with something to see: photograph, row and column."""
    return [
        (number, y, x)
        for number, pixels in enumerate(photographs)
        for y in range(MARGIN, pixels.shape[0] - PLACE - MARGIN, PLACE)
        for x in range(MARGIN, pixels.shape[1] - PLACE - MARGIN, PLACE)
        if pixels[y : y + PLACE, x : x + PLACE].std() > CONTRAST
    ]


def _seen(
    pixels: NDArray[np.uint8], place: tuple[int, int], camera: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    y, x = place
    down, right = rng.integers(-6, 7, 2)
    side = int(rng.integers(28, PLACE + 1))
    crop = Image.fromarray(pixels[y + down : y + down + side, x + right : x + right + side]).resize((SIDE, SIDE))
    light = (np.asarray(crop, np.float64) - 128) * rng.uniform(0.7, 1.2) + 128 + rng.normal(0, 15)
    noisy = light * np.array(CASTS[camera]) + rng.normal(0, 12, light.shape)
    return np.asarray(noisy.clip(0, 255), np.uint8)


def sightings(seed: int) -> list[Sighting]:
    """Every image of the trained places, which come first, and of the unseen ones."""
    rng = np.random.default_rng(seed)
    photographs = list(load_sample_images().images)
    spots = _spots(photographs)
    chosen = rng.permutation(len(spots))[: TRAINED + UNSEEN].tolist()
    return [
        Sighting(place, camera, _seen(photographs[spots[at][0]], spots[at][1:], camera, rng))
        for place, at in enumerate(chosen, 1)
        for camera in CASTS
        for _ in range(SHOTS)
    ]


def write(folder: Path, found: list[Sighting]) -> None:
    """The images in Market-1501's layout: trained places in ``bounding_box_train``, unseen ones in ``bounding_box_test``."""
    for split in ("bounding_box_train", "bounding_box_test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
    for shot, one in enumerate(found):
        split = "bounding_box_train" if one.place <= TRAINED else "bounding_box_test"
        Image.fromarray(one.pixels).save(folder / split / one.name(shot))


def train(found: list[Sighting], seed: int) -> nn.Module:
    """A network that draws images of one place together: cross-entropy of cosines to a vector a place, by AdamW."""
    x = (torch.from_numpy(np.stack([one.pixels for one in found])).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    _, which = torch.tensor([one.place for one in found]).unique(return_inverse=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = places.places_net()
        centres = nn.Parameter(torch.randn(int(which.max()) + 1, 32))
        optimizer = torch.optim.AdamW([*model.parameters(), centres], lr=2e-3)
        for _ in range(STEPS):
            signals.check()
            rows = torch.randint(len(x), (BATCH,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(SHARPNESS * _cosines(model(x[rows]), centres), which[rows]).backward()
            optimizer.step()
    return model.eval()


def _cosines(vectors: Tensor, centres: Tensor) -> Tensor:
    return nn.functional.normalize(vectors, dim=1) @ nn.functional.normalize(centres, dim=1).T


def make(folder: Path, seed: int) -> None:
    """Write the images, a model that knows the trained places, factory and config."""
    found = sightings(seed)
    write(folder / "data", found)
    trained = [one for one in found if one.place <= TRAINED]
    save_file(train(trained, seed).state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(Path(places.__file__), folder / "model.py")
    (folder / "imu.yaml").write_text(CONFIG, encoding="utf-8")
