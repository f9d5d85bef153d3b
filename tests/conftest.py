"""Fixtures: a small real model with its images, and the shared material where it lies beside the checkout."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from imu_cli.errors import ImuError

if TYPE_CHECKING:
    from harness import Server

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

sys.path[:0] = [str(folder) for folder in (Path(__file__).parent, *Path(__file__).parent.iterdir()) if folder.is_dir()]


settings.register_profile("imu", deadline=None)  # what takes long on a busy machine is not wrong
settings.load_profile("imu")


def refusal(attempt: Callable[[], object]) -> str:
    """The message of the ImuError that it raises, or nothing where it raises none."""
    try:
        attempt()
    except ImuError as error:
        return str(error)
    return ""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where commands run that do not say it themselves."""
    parser.addoption("--device", choices=["auto", "cpu", "cuda", "mps"], help="IMU_DEVICE of all tests (default: none)")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks run faster on one thread, and much faster on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Tests never touch the user's cache or options; ``--device`` is theirs."""
    for name in [name for name in os.environ if name.startswith("IMU_") or name in ("COLUMNS", "LINES")]:
        monkeypatch.delenv(name)
    device = request.config.getoption("--device")
    if device is not None:
        monkeypatch.setenv("IMU_DEVICE", device)
    monkeypatch.setenv("IMU_CACHE_DIR", str(tmp_path_factory.mktemp("cache") / "imu"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared material; tests that need it skip in a clone without it."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not here")
    return SHARED


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's folder: a trained network on real digits, class folders, imu.yaml. Copy it before changing it."""
    from imu_cli.commands import demo

    folder = tmp_path_factory.mktemp("digits")
    demo.make(folder, seed=0)
    return folder


@pytest.fixture
def job(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder to work in, the current one, with the digits model, config and links to the images."""
    import shutil

    for name in ("model.safetensors", "model.py", "imu.yaml"):
        shutil.copy(digits / name, tmp_path / name)
    (tmp_path / "imu.yaml").write_text(
        (digits / "imu.yaml").read_text().replace("data/train", str(digits / "data/train"))
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model that knows answers by heart, its folder and lists (``small_records``). Copy it before changing it."""
    pytest.importorskip("transformers")
    import small_records

    folder = tmp_path_factory.mktemp("records")
    small_records.make(folder)
    return folder


@pytest.fixture
def words_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a small BERT in ``net``, its sentences, and a forget list of the first eight."""
    pytest.importorskip("transformers")
    import small_words

    small_words.write(tmp_path)
    rows = (tmp_path / "sentences.jsonl").read_text().splitlines()
    (tmp_path / "forget.jsonl").write_text("\n".join(rows[:8]) + "\n")
    (tmp_path / "test.jsonl").write_text("\n".join(rows[12:]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def server() -> Iterator["Server"]:
    """The process that forks a child for each run of the command line."""
    from harness import serving

    with serving() as made:
        yield made


@pytest.fixture(scope="session")
def small(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to copy: the digits model as a file and as a folder, and a few images of each class."""
    import shutil

    folder = tmp_path_factory.mktemp("small")
    data = tmp_path_factory.mktemp("data")
    for label in range(10):
        (data / str(label)).mkdir()
        for image in sorted((digits / "data/train" / str(label)).iterdir())[:8]:
            shutil.copy(image, data / str(label))
    shutil.copy(digits / "model.safetensors", folder)
    shutil.copy(digits / "model.py", folder)
    (folder / "imu.yaml").write_text((digits / "imu.yaml").read_text().replace("data/train", str(data)))
    (folder / "net").mkdir()
    shutil.copy(digits / "model.safetensors", folder / "net")
    (folder / "net/README.md").write_text("a model card\n")
    return folder


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time, to show that nothing was written."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}
