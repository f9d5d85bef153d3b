"""What do JPEG files cost beside the forward pass, and how are they best decoded?

torchvision's ResNet-18 at 224 x 224 with random weights, 10 classes, and made-up photographs of 500 x 375 as JPEG files: resized,
cropped and normalised as for ImageNet. The whole of ``imu influence`` from the files, imports aside, alternates with the bare
forward of the same images in memory and with decoding alone by the tool's own code. Then images a second of decoding by threads
and by processes, of these JPEGs and of 32 x 32 PNGs.
"""

import functools
import itertools
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import Criterion
from floor import Spent, decode, forward, ready_batches, spent
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import resnet18

from imu_cli.commands import influence, opening
from imu_cli.config.commands import InfluenceConfig
from imu_cli.events import Silent
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images import decoding, preprocessing
from imu_cli.samples.images.folders import open_flat
from imu_cli.samples.images.steps import Preprocessing

JPEG, PNG = (500, 375), (32, 32)
RATIO = 1.10
CORES = os.cpu_count() or 1


def photographs(name: str, size: tuple[int, int], count: int) -> Path:
    """A folder of smooth random pictures, made once a machine."""

    def make(half: Path) -> None:
        (half / "made").mkdir()
        random = np.random.default_rng(0)
        for number in range(count):
            coarse = random.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            picture.save(half / "made" / f"{number:05d}.{'jpg' if name == 'jpeg' else 'png'}", quality=90)

    return common.made(f"images-{name}-{count}", make)


def checkpoint(place: Path) -> Path:
    """The network's random weights as a file."""
    torch.manual_seed(0)
    path = place / "resnet18.safetensors"
    save_file(resnet18(num_classes=10).state_dict(), path)
    return path


def config(folder: Path) -> InfluenceConfig:
    """All images of the folder, as one class."""
    return InfluenceConfig(
        arch="torchvision:resnet18", preprocess="imagenet", device="cpu", forget=[str(folder)], label="0", cache=False
    )


def alternate(folder: Path, repeats: int) -> dict[str, Any]:
    """Bare, decoding, whole, bare, … , bare."""
    with common.folder("images") as place:
        model = checkpoint(place)
        opened = opening.open_all(model, config(folder), Silent())
        assert opened.network is not None
        bare = functools.partial(forward, opened.network.model, ready_batches(opened))
        bare()
        found: dict[str, list[Spent]] = {"bare": [spent(bare)[0]], "decoding": [], "whole": []}
        for _ in range(repeats):
            found["decoding"].append(spent(functools.partial(decode, opened))[0])
            found["whole"].append(spent(lambda: influence.run_influence(model, config(folder), {}, Silent()))[0])
            found["bare"].append(spent(bare)[0])
    return {
        "images": len(opened.forget.samples),
        "batch_size": opened.engine.batch_size,
        **{name: [asdict(one) for one in runs] for name, runs in found.items()},
    }


def ratios(found: dict[str, Any], clock: str, with_decoding: bool) -> list[float]:
    """Whole runs over the bare passes around them, and over those plus decoding."""
    floors = [statistics.mean(one[clock] for one in pair) for pair in itertools.pairwise(found["bare"])]
    more = [one[clock] if with_decoding else 0.0 for one in found["decoding"]]
    return [run[clock] / (floor + extra) for run, floor, extra in zip(found["whole"], floors, more, strict=True)]


def rates(images: SampleSet, steps: Preprocessing, repeats: int) -> dict[str, list[float]]:
    """Images a second that one thread, a thread a core and a process a core decode, without a model."""
    rows = list(range(len(images)))
    tasks = decoding.Tasks(images, steps, [rows[start : start + 16] for start in range(0, len(rows), 16)])
    ways = {
        "1 thread": lambda: decoding.from_threads(tasks, 1, 16),
        f"{CORES} threads": lambda: decoding.from_threads(tasks, CORES, 16),
        f"{CORES} processes": lambda: decoding.from_processes(tasks, CORES, 16),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            taken, _ = spent(lambda way=way: list(way()))  # type: ignore[misc]
            found[name].append(len(images) / taken.wall)
    return found


def show(found: dict[str, Any], decoded: dict[str, dict[str, list[float]]]) -> None:
    """Where the time goes, and the rates."""
    rows = [[name, *(f"{statistics.median(one[clock] for one in found[name]):.2f}" for clock in ("wall", "cpu"))]
            for name in ("bare", "decoding", "whole")]  # fmt: skip
    common.table(f"{found['images']} JPEGs, ResNet-18 at 224 x 224", ("what", "s", "processor s"), rows)
    lines = [[kind, *(f"{statistics.median(values):,.0f}" for values in one.values())] for kind, one in decoded.items()]
    common.table("Images a second, decoded and shaped", ("images", *next(iter(decoded.values()))), lines)


def criteria(values: Sequence[float]) -> list[Criterion]:
    """What was promised."""
    ratio = statistics.median(values)
    return [
        Criterion(
            "imu influence ÷ (decoding + bare forward), JPEG, median", f"≤ {RATIO}", f"{ratio:.3f}", ratio <= RATIO
        )
    ]


def main() -> None:
    """Measure, print and keep."""
    parser = common.parser(__doc__, threads=CORES)
    parser.add_argument("--repeats", type=int, default=3, help="whole runs (default: 3)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = common.environment(with_checkpoint=False)
    count = 200 if options.quick else 500
    jpeg, png = photographs("jpeg", JPEG, count), photographs("png", PNG, 5_000)
    found = alternate(jpeg, 1 if options.quick else options.repeats)
    decoded = {
        "JPEG 500 x 375 to 224 x 224": rates(open_flat(jpeg), preprocessing.parse("imagenet"), 3),
        "PNG 32 x 32": rates(open_flat(png), preprocessing.parse("none"), 3),
    }
    show(found, decoded)
    kept = {
        **found,
        **{f"ratios_{clock}": ratios(found, clock, False) for clock in ("wall", "cpu")},
        **{f"disk_ratios_{clock}": ratios(found, clock, True) for clock in ("wall", "cpu")},
        "decoded": decoded,
    }
    checked = [] if options.quick else criteria(kept["disk_ratios_wall"])
    common.keep("images", options.quick, {**kept, "criteria": common.verdicts(checked)}, started)
    common.stop(checked)


if __name__ == "__main__":
    main()
