"""``imu demo``: the whole job on scikit-learn's digits, 1,797 real images that come with the tool's dependencies; on texts, places, records."""

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from imu_cli import signals
from imu_cli.commands import demo_places, demo_records, demo_texts
from imu_cli.errors import ImuError
from imu_cli.files import locks, outputs, staging, streams, writing
from imu_cli.files.reading import cut
from imu_cli.models import digits as demo_model
from imu_cli.models import libraries

Task = Literal["image", "text", "embedding", "language"]

MARKER = ".imu-demo"
IMAGE = re.compile(rf"(train|test)/[0-9]/[0-9]{{4}}\.png|{demo_places.IMAGE}")
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
            signals.check()
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return model.eval()


RUNNING = "unfinished\n"
"""What the marker holds while the demo's commands run; a demo of which nobody holds the marker then was killed."""
FILES = {MARKER, "model.safetensors", "model.py", "imu.yaml", "forget.csv", "__pycache__", "data"} | {
    f"unlearned.{ending}" for ending in ("safetensors", "record.json", "evaluation.json")
}
FILES |= demo_texts.FILES | demo_places.FILES | demo_records.FILES


def _strange(folder: Path) -> str | None:
    """A file in a demo's folder that the demo does not write, None where there is none."""
    for path in sorted(folder.iterdir()):
        if path.name not in FILES and staging.NAMED.fullmatch(path.name) is None:
            return path.name
    for inner, _, names in os.walk(folder / "data"):
        for name in sorted(names):
            if not IMAGE.fullmatch(f"{os.path.relpath(inner, folder / 'data')}/{name}"):
                return os.path.relpath(Path(inner, name), folder)
    return demo_texts.strange(folder)


def _was_killed(folder: Path) -> bool:
    """Whether the demo in it came to no end; the marker is held by one that is still running.

    Raises:
        ImuError: one is running.
    """
    marker = folder / MARKER
    if marker.read_text(encoding="utf-8", errors="replace") != RUNNING:
        return False
    descriptor = locks.take(marker)
    if descriptor is None:
        raise ImuError(f"{folder}: another imu demo is writing it at this moment; wait for it, or name another folder")
    locks.release(descriptor)
    return True


def _refuse(folder: Path, force: bool) -> None:
    """Refuse a folder that the demo may not take; only what an earlier demo made is ever replaced.

    Raises:
        ImuError: it is somebody's, or ``force`` is missing.
    """
    there = outputs.found(folder)
    if folder.is_symlink() or there == "file":
        raise ImuError(f"{folder}: exists and was not made by imu demo; name another folder")
    if there == "nothing" or not any(folder.iterdir()):
        return
    if not (folder / MARKER).is_file():
        raise ImuError(f"{folder}: exists and was not made by imu demo; name another folder")
    if not _was_killed(folder) and not force:
        raise ImuError(f"{folder}: holds an earlier demo; --force replaces it, or name another folder")
    strange = _strange(folder)
    if strange is not None:
        raise ImuError(
            f"{folder}: holds {strange}, which imu demo does not write, so it is not replaced; name another folder"
        )


def make(folder: Path, seed: int, task: Task = "image") -> None:
    """Write data, model and config into a folder; of images the factory besides."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    if task in ("text", "language"):
        with torch.random.fork_rng(devices=[]), _one_thread():
            (demo_texts if task == "text" else demo_records).make(folder, seed)
        return
    if task == "embedding":
        with _one_thread():
            demo_places.make(folder, seed)
        return
    splits = digits(seed)
    for name, (images, labels) in splits.items():
        write_images(folder / "data" / name, images, labels)
    model = train(*splits["train"], seed)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(Path(demo_model.__file__), folder / "model.py")
    (folder / "imu.yaml").write_text(CONFIG, encoding="utf-8")


def run(folder: Path, force: bool, seed: int, main: Callable[[Sequence[str]], int], task: Task = "image") -> None:
    """Make the demo's files, then run the commands that a user would, printing each.

    Raises:
        ImuError: the folder holds something else, or a command failed.
    """
    if not 0 <= seed < 2**32:
        raise ImuError(f"--seed {cut(str(seed))}: not from 0 to {2**32 - 1:,}; give a smaller one")
    with contextlib.suppress(OSError):  # what follows says it
        folder.parent.mkdir(parents=True, exist_ok=True)
    _refuse(folder, force)
    if task in ("text", "language"):
        libraries.transformers(f"imu demo --task {task}")
    others = {"text": demo_texts, "embedding": demo_places, "language": demo_records}
    about: dict[str, str] = {name: module.ABOUT for name, module in others.items()}
    what = about.get(task, "scikit-learn's digits as class folders")
    streams.to_stdout(f"# {what} in {folder}, and a network trained on them (seed {seed})\n")
    with contextlib.ExitStack() as held:
        with writing.folder(folder, lambda _: _refuse(folder, force)) as made:
            make(made, seed, task)
            (made / MARKER).write_text(RUNNING, encoding="utf-8")
            descriptor = locks.take(made / MARKER)
            if descriptor is not None:
                held.callback(locks.release, descriptor)
        commands: dict[str, Sequence[Sequence[str]]] = {name: module.COMMANDS for name, module in others.items()}
        _run_commands(folder, main, commands.get(task, COMMANDS))
        (folder / MARKER).write_text("", encoding="utf-8")


def _run_commands(folder: Path, main: Callable[[Sequence[str]], int], commands: Sequence[Sequence[str]]) -> None:
    streams.to_stdout(f"$ cd {shlex.quote(os.fspath(folder))}\n")
    with contextlib.chdir(folder):
        for command in commands:
            streams.to_stdout(f"\n$ imu {shlex.join(command)}\n")
            code = main(command)
            if code != 0:
                raise ImuError(f"imu {command[0]}: ended with exit code {code}; the demo stops here")
