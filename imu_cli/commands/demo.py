"""``imu demo``: the whole job on real images that come with the tool's dependencies, scikit-learn's digits or its photographs."""

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from imu_cli.commands import demo_places
from imu_cli.errors import ImuError
from imu_cli.files import locks, outputs, staging, streams, writing
from imu_cli.files.reading import cut
from imu_cli.models import digits as demo_model
from imu_cli.models import places as places_model

MARKER = ".imu-demo"
IMAGE = re.compile(r"(train|test)/[0-9]/[0-9]{4}\.png|bounding_box_(train|test)/[0-9]{4}_c[12]s1_[0-9]{6}_00\.png")
MEAN, STD = 0.305, 0.376
CLASS = "3"

CONFIG = f"""\
# Read by every command with --config imu.yaml; flags win over it.
arch: model.py:digits_net
preprocess: {{mode: L, mean: [{MEAN}], std: [{STD}]}}
data: data/train
"""

PLACES_CONFIG = f"""\
# Read by every command with --config imu.yaml; flags win over it.
arch: model.py:places_net
task: embedding
preprocess: {{mean: {[demo_places.MEAN] * 3}, std: {[demo_places.STD] * 3}}}
data: market1501:data
"""

FORGOTTEN_PLACES = ",".join(f"{place:04d}" for place in range(1, demo_places.FORGOTTEN + 1))
PLACES_COMMANDS = (
    ["select", "--data", "market1501:data", f"id={FORGOTTEN_PLACES}", "-o", "forget.csv"],
    ["influence", "model.safetensors", "--config", "imu.yaml", "--forget", "forget.csv", "--test", "market1501:data", "--show", "10"],
    ["evaluate", "without.safetensors", "--config", "imu.yaml", "--forget", "forget.csv", "--test", "market1501:data",
     "--original", "model.safetensors", "--require", "people.auc_drop>=0.1", "--require", "test.map_drop<=0.05"],
    ["report", "without.evaluation.json"],
)  # fmt: skip

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
    f"{stem}.{ending}"
    for stem in ("unlearned", "without")
    for ending in ("safetensors", "record.json", "evaluation.json")
}


def _strange(folder: Path) -> str | None:
    """A file in a demo's folder that the demo does not write, None where there is none."""
    for path in sorted(folder.iterdir()):
        if path.name not in FILES and staging.NAMED.fullmatch(path.name) is None:
            return path.name
    for inner, _, names in os.walk(folder / "data"):
        for name in sorted(names):
            if not IMAGE.fullmatch(f"{os.path.relpath(inner, folder / 'data')}/{name}"):
                return os.path.relpath(Path(inner, name), folder)
    return None


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


def make_places(folder: Path, seed: int) -> None:
    """Write images of places, the model that knows them, one that was trained without some of them, factory and config into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    found = demo_places.sightings(seed)
    demo_places.write(folder / "data", found)
    trained = [one for one in found if one.place <= demo_places.TRAINED]
    kept = [one for one in trained if one.place > demo_places.FORGOTTEN]
    with _one_thread():
        for name, seen in (("model", trained), ("without", kept)):
            model = demo_places.train(seen, seed)
            save_file(model.state_dict(), folder / f"{name}.safetensors", metadata={"format": "pt"})
    shutil.copyfile(Path(places_model.__file__), folder / "model.py")
    (folder / "imu.yaml").write_text(PLACES_CONFIG, encoding="utf-8")


@dataclass(frozen=True)
class Demo:
    """What a demo makes, in words, and the commands that it runs."""

    make: Callable[[Path, int], None]
    about: str
    commands: Sequence[list[str]]


def _demo(task: Literal["classification", "embedding"]) -> Demo:
    if task == "embedding":
        about = "places in scikit-learn's two photographs in place of people, a network that finds them again, and one trained without twelve"
        return Demo(make_places, about, PLACES_COMMANDS)
    return Demo(make, "scikit-learn's digits as class folders, and a network trained on them", COMMANDS)


def run(
    folder: Path,
    force: bool,
    seed: int,
    main: Callable[[Sequence[str]], int],
    task: Literal["classification", "embedding"] = "classification",
) -> None:
    """Make the demo's files, then run the commands that a user would, printing each.

    Raises:
        ImuError: the folder holds something else, or a command failed.
    """
    if not 0 <= seed < 2**32:
        raise ImuError(f"--seed {cut(str(seed))}: not from 0 to {2**32 - 1:,}; give a smaller one")
    with contextlib.suppress(OSError):  # what follows says it
        folder.parent.mkdir(parents=True, exist_ok=True)
    _refuse(folder, force)
    demo = _demo(task)
    streams.to_stdout(f"# {demo.about} (in {folder}, seed {seed})\n")
    with contextlib.ExitStack() as held:
        with writing.folder(folder, lambda _: _refuse(folder, force)) as made:
            demo.make(made, seed)
            (made / MARKER).write_text(RUNNING, encoding="utf-8")
            descriptor = locks.take(made / MARKER)
            if descriptor is not None:
                held.callback(locks.release, descriptor)
        _run_commands(folder, main, demo.commands)
        (folder / MARKER).write_text("", encoding="utf-8")


def _run_commands(folder: Path, main: Callable[[Sequence[str]], int], commands: Sequence[list[str]]) -> None:
    streams.to_stdout(f"$ cd {shlex.quote(os.fspath(folder))}\n")
    with contextlib.chdir(folder):
        for command in commands:
            streams.to_stdout(f"\n$ imu {shlex.join(command)}\n")
            code = main(command)
            if code != 0:
                raise ImuError(f"imu {command[0]}: ended with exit code {code}; the demo stops here")
