"""Whatever is done to a file that is read: a documented exit code, one message, in time, in little memory, and no output.

Exit code 1, a traceback, a hang, memory without end, or an output of a failed run is a failure. A case is its kind and its
number; ``IMU_MUTATIONS=kind:number`` repeats one alone.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import listing
from mutating import DIGITS, change
from PIL import Image
from safetensors.torch import load_file

from imu_cli.cli import main

CODES = {0, 2, 3, 4, 5}
"""The documented exit codes of a run that nobody stopped; 1 is a bug."""
SECONDS = 20
"""Processor time of a case; the slowest take about two."""
GIGABYTE = 2**30
LONG = float(os.environ.get("IMU_MUTATION_SECONDS", "120"))
"""Seconds of a kind in the long form."""
FIRST = int(os.environ.get("IMU_MUTATION_FIRST", "0"))
"""Its first case, where others than last time are wanted."""
ONCE = os.environ.get("IMU_MUTATIONS")  # before the fixture that takes our variables away

MODEL = ["model.safetensors", "--config", "imu.yaml"]
PLAIN = ["--arch", "model.py:digits_net", "--preprocess", "prep.yaml", "--no-cache"]
SCORE = ["influence", "model.safetensors", *PLAIN, "--forget"]


@dataclass(frozen=True)
class Kind:
    """One kind of file: those of them that are changed, one a case, the command lines that read them, and cases in the short run."""

    files: Sequence[str]
    commands: Sequence[Sequence[str]]
    short: int = 8


FEATURES = ["influence", "model.safetensors", "--no-cache", "--features", "{}", "--forget", "index=0:4"]
FEATURES_AGAIN = ["evaluate", "model.safetensors", "--features", "{}", "--forget", "class=3", "-o", "e.json"]
UNLEARN = ["unlearn", "model.safetensors", *PLAIN, "--forget", "{}", "-o", "out.safetensors"]
EVALUATE = ["evaluate", "done/out.safetensors", "--arch", "model.py:digits_net", "-o", "e.json"]
CACHED = ["influence", *MODEL, "--forget", "l/forget.csv"]


def select(data: str, selector: str) -> list[str]:
    """Rows of an array data set's test split."""
    return ["select", "--data", f"{data}:.#test", selector]


KINDS: dict[str, Kind] = {
    "lists": Kind(
        ["l/forget.csv", "l/forget.tsv", "l/forget.jsonl"],
        [[*SCORE, "{}"], ["influence", *MODEL, "--forget", "{}", "--no-cache"]],
        16,
    ),
    "list of an unlearning": Kind(["l/forget.csv", "l/forget.jsonl"], [UNLEARN], 4),
    "options": Kind(["all.yaml"], [["influence", "model.safetensors", "--no-cache", "--config", "{}"]], 16),
    "preprocessing": Kind(["prep.yaml"], [[*SCORE, "l/forget.csv"]], 10),
    "classes": Kind(["classes.txt"], [[*SCORE, "l/forget.csv", "--classes", "{}"]], 6),
    "weights": Kind(
        ["model.safetensors"], [[*SCORE, "l/forget.csv"], ["inspect", "{}", "--header"], ["inspect", "{}"]], 10
    ),
    "index": Kind(["sharded/model.safetensors.index.json"], [["inspect", "sharded", "--header"]], 8),
    "features": Kind(["x.safetensors"], [FEATURES, FEATURES_AGAIN], 14),
    "records": Kind(
        ["done/out.record.json", "done/out.evaluation.json"],
        [["report", "{}"], ["report", "{}", "--html", "page.html"], ["report", "{}", "--format", "csv"]],
        12,
    ),
    "record beside a model": Kind(["done/out.record.json"], [EVALUATE], 4),
    "cache": Kind(
        ["cache/*.json", "cache/*.safetensors"],
        [["cache", "ls"], ["cache", "verify"], ["cache", "show", "s"], CACHED],
        8,
    ),
    "CIFAR": Kind(
        ["cifar-10-batches-py/test_batch", "cifar-10-batches-py/batches.meta"], [select("cifar10", "index=0:2")], 8
    ),
    "CIFAR-100": Kind(["cifar-100-python/test", "cifar-100-python/meta"], [select("cifar100", "coarse=animal")], 4),
    "MNIST": Kind(
        ["MNIST/raw/t10k-images-idx3-ubyte.gz", "MNIST/raw/t10k-labels-idx1-ubyte"], [select("mnist", "index=0:2")], 8
    ),
    "SVHN": Kind(["test_32x32.mat"], [select("svhn", "index=0:2")], 4),
    "images": Kind(["l/3_0.png", "l/5_0.png", "l/a.jpg"], [[*SCORE, "l/forget.csv"]], 8),
    "pickles": Kind(["net.pth"], [["convert", "{}", "out.safetensors", "-q"]], 6),
    "timm": Kind(["timm/config.json"], [["inspect", "timm"]], 4),
    "transformers": Kind(
        ["vit/config.json", "vit/preprocessor_config.json", "vit/preprocessor_config.json"], [["inspect", "vit"]], 6
    ),
}


def _lists(root: Path, digits: Path) -> None:
    folder = root / "l"
    folder.mkdir()
    rows = []
    for label in (3, 5):
        for number, image in enumerate(sorted((digits / "data/train" / str(label)).glob("*.png"))[:4]):
            shutil.copy(image, folder / f"{label}_{number}.png")
            rows.append([f"{label}_{number}.png", str(label), f"p{number}", "1.5"])
    Image.open(folder / "3_0.png").resize((40, 40)).save(folder / "a.jpg")
    rows.append(["a.jpg", "3", "p9", ""])
    head = ["file_name", "label", "id", "weight"]
    for suffix, mark in (("csv", ","), ("tsv", "\t")):
        (folder / f"forget.{suffix}").write_text("".join(mark.join(row) + "\n" for row in [head, *rows]))
    (folder / "forget.jsonl").write_text("".join(json.dumps(dict(zip(head, row, strict=True))) + "\n" for row in rows))


def _arrays(root: Path) -> None:
    import gzip
    import pickle

    from scipy.io import savemat

    chance = np.random.default_rng(0)
    rows = chance.integers(0, 256, (6, 3072), dtype=np.uint8)
    for folder, files in {
        "cifar-10-batches-py": {
            "test_batch": {"data": rows, "labels": [0, 1, 2, 3, 4, 5]},
            "batches.meta": {"label_names": list("abcdefghij")},
        },
        "cifar-100-python": {
            "test": {"data": rows, "fine_labels": [0, 1, 2, 3, 4, 5], "coarse_labels": [0, 0, 0, 1, 1, 1]},
            "meta": {"fine_label_names": list("abcdef"), "coarse_label_names": ["animal", "plant"]},
        },
    }.items():
        (root / folder).mkdir()
        for name, batch in files.items():
            (root / folder / name).write_bytes(pickle.dumps(batch, 2))
    raw = root / "MNIST/raw"
    raw.mkdir(parents=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in (6, 28, 28))
    images = b"\0\0\x08\x03" + sizes + chance.bytes(6 * 784)
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + (6).to_bytes(4, "big") + bytes(range(6)))
    savemat(
        root / "test_32x32.mat",
        {"X": chance.integers(0, 256, (32, 32, 3, 6), dtype=np.uint8), "y": np.array([[10], [1], [2], [3], [4], [5]])},
        do_compression=True,
    )


@pytest.fixture(scope="module")
def pristine(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of file that is read, small and right."""
    from test_folders import spread
    from test_sidecar import timm_folder, vit_folder

    root = tmp_path_factory.mktemp("pristine")
    for name in ("model.safetensors", "model.py"):
        shutil.copy(digits / name, root / name)
    (root / "prep.yaml").write_text(
        "mode: L\nsize: 8\ncrop: [8, 8]\ninterpolation: bilinear\nmean: [0.305]\nstd: [0.376]\n"
    )
    (root / "imu.yaml").write_text("arch: model.py:digits_net\npreprocess: prep.yaml\n")
    (root / "all.yaml").write_text(
        "arch: model.py:digits_net\narch_arg: {width: 16}\npreprocess: {mode: L, size: 8, mean: [0.305], std: [0.376]}\n"
        "forget: l/forget.csv\nclasses: classes.txt\ndamping: 0.01\nkeep: 0.5\nseed: 3\nbatch_size: 4\nmax_memory: 1GB\n"
        "show: 5\ncache: no\nprecision: float32\nmax_steps: 7\nrequire: [forget.accuracy<=0.5]\n"
    )
    (root / "classes.txt").write_text(
        "".join(f"c{number}\n" for number in range(3)) + "".join(f"{n}\n" for n in range(3, 10))
    )
    _lists(root, digits)
    _arrays(root)
    spread(load_file(root / "model.safetensors"), root / "sharded")
    torch.save(load_file(root / "model.safetensors"), root / "net.pth")
    timm_folder(root / "timm")
    vit_folder(root / "vit")
    (root / "done").mkdir()
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMU_CACHE_DIR", str(root / "cache"))
        quiet = ["--arch", "model.py:digits_net", "--preprocess", "prep.yaml", "-q"]
        for command in (
            [
                "unlearn",
                "model.safetensors",
                *quiet,
                "--forget",
                "l/forget.csv",
                "--no-cache",
                "-o",
                "done/out.safetensors",
            ],
            ["evaluate", "done/out.safetensors", *quiet, "--no-cache", "-o", "done/out.evaluation.json"],
            ["influence", *MODEL, "--forget", "l/forget.csv", "-q"],
            ["features", "model.safetensors", *quiet, "--forget", "l/forget.csv", "-o", "x.safetensors"],
        ):
            assert called(command)[0] in (0, 3), command
    return root


def called(command: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, standard output and error of a command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a user sees them as lines; as errors they would hide what comes after
        return main(list(command)), out.getvalue(), err.getvalue()


class _TooLong(BaseException):
    """The case's time is up; no Exception, so that nothing takes it for a file's fault."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """An end to a case that hangs, and a failure where memory grew by more than a gigabyte."""

    def stop(*_: object) -> None:
        raise _TooLong(f"more than {SECONDS} seconds of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) * (1 if sys.platform == "darwin" else 1024)
    assert grown < GIGABYTE, f"took {grown / GIGABYTE:.1f} GB"


def judged(command: Sequence[str], work: Path) -> int:
    """Run a command line and check what holds for every one, whatever its files are like."""
    before = listing(work)
    with limited():
        code, out, err = called(command)
    assert code in CODES
    assert "Traceback" not in err
    assert len(err) < 20_000, "a message without end"
    out.encode()
    if code not in (0, 3, 5):
        assert "imu: " in err
        assert out == ""
        left = {name: at for name, at in listing(work).items() if not name.startswith("cache/")}
        assert left == {name: at for name, at in before.items() if not name.startswith("cache/")}
    return code


def one(kind: str, number: int, pristine: Path, work: Path) -> None:
    """The case of that number: a fresh copy, one file changed, the commands that read it."""
    chance = random.Random(f"{kind}:{number}")
    shutil.copytree(pristine, work, dirs_exist_ok=True)
    pattern = chance.choice(KINDS[kind].files)
    path = chance.choice(sorted(work.glob(pattern)))
    command = [word.format(path.relative_to(work)) for word in chance.choice(KINDS[kind].commands)]
    change(path, chance)
    try:
        judged(command, work)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise AssertionError(
            f"{kind}:{number}: imu {' '.join(command)}, {path.name} = {path.read_bytes()[:300]!r}: {type(error).__name__}: {error}"
        ) from error


def several(kind: str, numbers: Sequence[int], pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases one after the other, each in a folder of its own."""
    for number in numbers:
        work = tmp_path / "w"
        work.mkdir()
        monkeypatch.chdir(work)
        monkeypatch.setenv("IMU_CACHE_DIR", str(work / "cache"))
        one(kind, number, pristine, work)
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(work)


@pytest.mark.skipif(ONCE is not None, reason="one case is repeated")
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_changed_at_random(kind: str, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short form: a few cases of every kind, the same in every run."""
    several(kind, range(KINDS[kind].short), pristine, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.skipif(ONCE is not None, reason="one case is repeated")
@pytest.mark.parametrize("kind", KINDS)
def test_many_files_changed_at_random(
    kind: str, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The long form: two minutes a kind, from where the short form ends."""
    start, number = time.monotonic(), FIRST or KINDS[kind].short
    failed: list[str] = []
    while time.monotonic() < start + LONG and len(failed) < 10:
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            several(kind, [number], pristine, folder, monkeypatch)
        except AssertionError as error:
            failed.append(str(error))
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder)
        number += 1
    sys.stderr.write(f"{kind}: {number - (FIRST or KINDS[kind].short)} cases\n")
    assert not failed, "\n".join(failed)


@pytest.mark.skipif(ONCE is None, reason="IMU_MUTATIONS=kind:number names a case")
def test_the_case_that_is_named(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One case again, as a failure names it."""
    kind, _, number = str(ONCE).rpartition(":")
    several(kind, [int(number)], pristine, tmp_path, monkeypatch)


NUMBERS = ["", "x", "-1", "0", "٣", "²", "2.5", "9" * 20, DIGITS, "nan", "inf", "1e400", "\x1b[2J"]
TERMINAL = ["COLUMNS", "LINES"]
TORCHRUN = ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"]
OPTIONS = [
    "max-memory",
    "seed",
    "batch-size",
    "keep",
    "damping",
    "clip-quantile",
    "max-drop",
    "rho",
    "minibatch",
    "max-steps",
]


@pytest.fixture
def copy(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the pristine folder, the current one."""
    shutil.copytree(pristine, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


@pytest.mark.parametrize("name", TERMINAL)
def test_a_size_of_the_terminal_that_is_none(name: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the user's to mend: the table is as wide as without it."""
    for text in [*NUMBERS, "1000000000"]:
        monkeypatch.setenv(name, text)
        assert judged(["report", "done/out.record.json"], copy) == 0
        assert os.environ.get(name) is None


@pytest.mark.parametrize("name", TORCHRUN)
def test_a_number_of_torchruns_that_is_none(name: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named before anything is waited for."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2" if name != "LOCAL_RANK" else "1")
    for text in [text for text in NUMBERS if text != "0" or name in ("WORLD_SIZE", "MASTER_PORT", "LOCAL_WORLD_SIZE")]:
        monkeypatch.setenv(name, text)
        command = ["features", "model.safetensors", *PLAIN[:-1], "--forget", "l/forget.csv", "-o", "o.safetensors"]
        assert judged(command, copy) == 2
        assert f"imu: {name}: is " in called(command)[2]


def test_a_process_group_that_cannot_be(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RANK and WORLD_SIZE without the rest of what torchrun sets: one line."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ["features", "model.safetensors", *PLAIN[:-1], "--forget", "l/forget.csv", "-o", "o.safetensors"]
    assert judged(command, copy) == 2
    assert "no process group" in called(command)[2]


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_is_no_number(name: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By flag and by variable; what is a number after all is used."""
    command = ["unlearn", "model.safetensors", *PLAIN, "--forget", "l/none.csv", "-o", "out.safetensors"]
    for text in NUMBERS:
        assert judged([*command, f"--{name}={text}"], copy) == 2
        with monkeypatch.context() as patch:
            patch.setenv(f"IMU_{name.upper().replace('-', '_')}", text)
            assert judged(command, copy) == 2
