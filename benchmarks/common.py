"""What the benchmarks share: ../shared, CIFAR-10 unpacked and its features extracted once a machine, tables, raw results.

Images and features go to ``$IMU_BENCH_DIR``, else a folder in the system's temporary folder; never to the repository.
"""

import argparse
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

import imu_cli
from imu_cli.commands import opening, provenance
from imu_cli.config.commands import InfluenceConfig, UnlearnConfig
from imu_cli.errors import ImuError
from imu_cli.events import Silent
from imu_cli.features.session import Session
from imu_cli.linear.rows import held, homogeneous
from imu_cli.models.head import Head
from imu_cli.models.layout import file_hash
from imu_cli.samples.manifest import open_source

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PREPROCESS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
console = Console(highlight=False, soft_wrap=True)


def shared() -> Path:
    """The folder ``shared`` beside the repository.

    Raises:
        ImuError: it is not there.
    """
    found = REPOSITORY.parent / "shared"
    if not found.is_dir():
        raise ImuError(f"{found}: no such folder; the benchmarks need the checkpoint and CIFAR-10 in it")
    return found


def checkpoint() -> Path:
    """The ResNet-20 trained on CIFAR-10 by others."""
    return shared() / "checkpoints" / "cifar10_resnet20.safetensors"


def architecture() -> str:
    """``--arch`` of the checkpoint."""
    return f"{shared() / 'models' / 'cifar_resnet.py'}:resnet20"


def scratch() -> Path:
    """Where images, features and written checkpoints go, made if need be."""
    found = Path(os.environ.get("IMU_BENCH_DIR") or Path(tempfile.gettempdir()) / "imu-benchmarks")
    found.mkdir(parents=True, exist_ok=True)
    return found


@contextmanager
def folder(inside: str) -> Iterator[Path]:
    """A new folder in ``scratch`` while the context lasts."""
    with tempfile.TemporaryDirectory(prefix=f"{inside}-", dir=scratch()) as path:
        yield Path(path)


@functools.cache
def _unpacker() -> Any:
    spec = importlib.util.spec_from_file_location("unpack_cifar10", shared() / "data" / "unpack_cifar10.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of ``scratch`` that is there in full or not at all."""
    wanted = scratch() / name
    if not wanted.is_dir():
        with folder(name) as half:
            console.print(f"writing {name} (once a machine)", style="dim")
            make(half)
            (half / "made").mkdir(exist_ok=True)
            shutil.move(half / "made", wanted)
    return wanted


def batches() -> str:
    """``--data`` of all of CIFAR-10 in torchvision's batch files."""
    return f"cifar10:{made('cifar10-batches', lambda path: _unpacker().write_torchvision(path / 'made'))}"


def png_folders() -> Path:
    """CIFAR-10's training images as PNG class folders, one file an image."""
    return made("cifar10-png", lambda path: _unpacker().write_png(path / "made", {"train": None})) / "train"


def model_options() -> dict[str, Any]:
    """The options that make the checkpoint a model, on the CPU."""
    return {"arch": architecture(), "preprocess": PREPROCESS, "device": "cpu"}


def unlearn_config(**options: Any) -> UnlearnConfig:
    """Options of ``imu unlearn`` on the checkpoint and CIFAR-10 from batch files, changed by ``options``."""
    return UnlearnConfig(**{**model_options(), "data": batches(), **options})


@dataclass(frozen=True)
class Cifar:
    """A head and its inputs: H (n, d+1) float64 and labels (n,) of CIFAR-10 images it was trained on, and of the 10,000 others."""

    head: Head
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def matrix(self) -> Tensor:
        """W (c, d+1) float64."""
        return self.head.matrix


def cifar() -> Cifar:
    """CIFAR-10 as the head sees it, through the tool's own opening, decoding and forward pass; kept in ``scratch``."""
    opened = opening.open_all(
        checkpoint(), InfluenceConfig(**model_options(), data=batches(), forget=["class=0"]), Silent()
    )
    said = f"{opened.checkpoint.sha256} {opened.described()['preprocess']} {torch.__version__}"
    path = scratch() / f"features-{hashlib.sha256(said.encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        _extract(opened, path)
    found = load_file(path)
    wide = {split: homogeneous(found[split], opened.head.bias) for split in ("train", "test")}
    return Cifar(opened.head, wide["train"], found["train_labels"], wide["test"], found["test_labels"])


def _extract(opened: Session, path: Path) -> None:
    found: dict[str, Tensor] = {}
    for split, role in (("train", "data"), ("test", "test")):
        console.print(f"features of CIFAR-10 {split} (once a machine)", style="dim")
        images = open_source(batches(), role)  # type: ignore[arg-type]
        found[split] = (
            held(opened.features_of(images, split))[:, : opened.head.matrix.shape[1] - opened.head.bias]
            .float()
            .contiguous()
        )
        found[f"{split}_labels"] = torch.tensor(list(images.labels), dtype=torch.int64)
    part = path.with_suffix(".part")
    save_file(found, part)
    part.replace(path)


def environment(with_checkpoint: bool = True) -> dict[str, Any]:
    """Versions, processor, load and date: what has to stand beside a figure. Nothing that names this machine's folders.

    ``with_checkpoint`` is false where ../shared plays no part.
    """
    made = provenance.environment(torch.device("cpu")).model_dump()
    sources = sorted((REPOSITORY / "imu_cli").rglob("*.py"))
    return {
        **made,
        "package_sha256": hashlib.sha256("".join(file_hash(path) for path in sources).encode()).hexdigest()[:16],
        "cpus": os.cpu_count(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **({"checkpoint_sha256": file_hash(checkpoint())} if with_checkpoint else {}),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def parser(about: str | None, threads: int = 1) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a small part, in under a minute; its results are not kept")
    made.add_argument("--threads", type=int, default=threads, help=f"threads of torch (default: {threads})")
    return made


def keep(name: str, quick: bool, found: dict[str, Any], started: dict[str, Any]) -> None:
    """Write the raw results with the environment at the start beside them: to ``results``, or ``scratch`` when quick."""
    place = scratch() if quick else RESULTS
    place.mkdir(exist_ok=True)
    made = {"benchmark": name, "imu": imu_cli.__version__, "quick": quick, "environment": started, **found}
    text = json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for path in (REPOSITORY.parent, scratch()):
        assert str(path) not in text, "a path of this machine is in the results"
    (place / f"{name}.json").write_text(text, encoding="utf-8")
    where = "kept out of the repository, --quick" if quick else f"benchmarks/results/{name}.json"
    console.print(f"raw results: {where}", style="dim")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> None:
    """Print rows; the first ``left`` columns are text, the others are aligned to the right."""
    made = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        made.add_row(*("" if value is None else str(value) for value in row))
    wide = console if console.is_terminal else Console(highlight=False, width=200)
    wide.print(f"\n[bold]{title}[/bold]")
    wide.print(made)


def percent(share: float | None, digits: int = 2) -> str:
    """0.99763 as 99.76; nothing for None."""
    return "" if share is None else f"{100 * share:.{digits}f}"


@dataclass(frozen=True)
class Criterion:
    """One thing that was promised, and what was measured."""

    what: str
    wanted: str
    found: str
    passed: bool


def at_least(what: str, found: float, least: float) -> Criterion:
    """A share that may not fall below ``least``."""
    return Criterion(what, f"≥ {percent(least)} %", f"{percent(found, 3)} %", found >= least)


def at_most(what: str, found: float, most: float) -> Criterion:
    """A share that may not rise above ``most``."""
    return Criterion(what, f"≤ {percent(most)} %", f"{percent(found, 3)} %", found <= most)


def verdicts(criteria: Sequence[Criterion]) -> list[dict[str, Any]]:
    """Print every criterion with PASS or FAIL; returns them for the raw results."""
    rows = [[c.what, c.wanted, c.found, "PASS" if c.passed else "FAIL"] for c in criteria]
    table("Criteria", ["criterion", "wanted", "found", ""], rows)
    return [vars(c) for c in criteria]


def stop(criteria: Sequence[Criterion]) -> None:
    """Exit code 1 if a criterion was missed."""
    sys.exit(int(not all(c.passed for c in criteria)))
