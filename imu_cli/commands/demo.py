"""``imu demo``: the whole job on scikit-learn's digits, 1,797 real images that come with the tool's dependencies."""

import contextlib
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from imu_cli.errors import ImuError
from imu_cli.files import writing
from imu_cli.files.reading import cut
from imu_cli.models import digits as demo_model

MARKER = ".imu-demo"
MEAN, STD = 0.305, 0.376
CLASS = "3"

CONFIG = f"""\
# Read by every command with --config imu.yaml; flags win over it.
arch: model.py:digits_net
preprocess: {{mode: L, mean: [{MEAN}], std: [{STD}]}}
data: data/train
"""

COMMANDS = (
    ["select", "--data", "data/train", f"class={CLASS}", "-o", "forget.csv"],
    ["influence", "model.safetensors", "--config", "imu.yaml", "--forget", "forget.csv", "--show", "10"],
    ["unlearn", "model.safetensors", "--config", "imu.yaml", "--forget", "forget.csv", "-o", "unlearned.safetensors"],
    ["evaluate", "unlearned.safetensors", "--config", "imu.yaml", "--test", "data/test", "--retain", "data/train",
     "--require", "forget.accuracy<=0.005", "--require", "test.accuracy_drop<=0.02"],
    ["report", "unlearned.record.json", "unlearned.evaluation.json"],
)  # fmt: skip


def digits(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The digits as uint8 images (n, 8, 8) and labels (n,), split 3 to 1 by class and seed."""
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(images, bunch.target, test_size=0.25, stratify=bunch.target, random_state=seed)
    return {"train": (parts[0], parts[2]), "test": (parts[1], parts[3])}


def write_images(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Class folders of PNG files, named by their row."""
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{row:04d}.png")


def _batch(images: np.ndarray) -> Tensor:
    return (torch.from_numpy(images).float().unsqueeze(1) / 255 - MEAN) / STD


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """So small a network trains faster on one thread, and then alike on machines with any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(images: np.ndarray, labels: np.ndarray, seed: int, epochs: int = 20, width: int = 16) -> nn.Module:
    """A network trained with Adam on uint8 images (n, 8, 8); the same seed gives the same weights on one machine."""
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(seed)
        model = demo_model.digits_net(width=width)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        x, y = _batch(images), torch.from_numpy(labels).long()
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return model.eval()


def _clear(folder: Path, force: bool) -> None:
    """Make room for the demo; only a folder that an earlier demo made is ever removed."""
    if not folder.exists():
        return
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not (folder / MARKER).is_file():
        raise ImuError(f"{folder}: exists and was not made by imu demo; name another folder")
    if not force:
        raise ImuError(f"{folder}: holds an earlier demo; --force replaces it, or name another folder")
    shutil.rmtree(folder)


def make(folder: Path, seed: int) -> None:
    """Write images, model, factory and config into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    splits = digits(seed)
    for name, (images, labels) in splits.items():
        write_images(folder / "data" / name, images, labels)
    model = train(*splits["train"], seed)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(Path(demo_model.__file__), folder / "model.py")
    (folder / "imu.yaml").write_text(CONFIG, encoding="utf-8")


def run(folder: Path, force: bool, seed: int, main: Callable[[Sequence[str]], int]) -> None:
    """Make the demo's files, then run the commands that a user would, printing each.

    Raises:
        ImuError: the folder holds something else, or a command failed.
    """
    if not 0 <= seed < 2**32:
        raise ImuError(f"--seed {cut(str(seed))}: not from 0 to {2**32 - 1:,}; give a smaller one")
    _clear(folder, force)
    writing.to_stdout(
        f"# scikit-learn's digits as class folders in {folder}, and a network trained on them (seed {seed})\n"
    )
    make(folder, seed)
    writing.to_stdout(f"$ cd {shlex.quote(os.fspath(folder))}\n")
    with contextlib.chdir(folder):
        for command in COMMANDS:
            writing.to_stdout(f"\n$ imu {shlex.join(command)}\n")
            code = main(command)
            if code != 0:
                raise ImuError(f"imu {command[0]}: ended with exit code {code}; the demo stops here")
