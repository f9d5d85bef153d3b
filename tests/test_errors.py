"""Everything that can go wrong gives its exit code, names what, where and what to do, and leaves no file behind."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import listing
from PIL import Image
from safetensors.torch import load, save_file

from imu_cli.cli import main
from imu_cli.errors import StoppedError

BASE = ["--config", "imu.yaml"]
GO = ["unlearn", "model.safetensors", *BASE, "--forget", "class=3"]


def model_tensors() -> dict[str, torch.Tensor]:
    """The model's tensors, not mapped from the file that is about to be overwritten."""
    return load(Path("model.safetensors").read_bytes())


def spoil_weights() -> None:
    tensors = model_tensors()
    tensors["0.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, "model.safetensors")


def truncate_model() -> None:
    data = Path("model.safetensors").read_bytes()
    Path("model.safetensors").write_bytes(data[: len(data) // 2])


def tall_header() -> None:
    Path("model.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")


def pickled() -> None:
    torch.save(model_tensors(), "model.pth")


def pickle_renamed() -> None:
    torch.save(model_tensors(), "model.safetensors")


def own_images(*names: str) -> Path:
    folder = Path("mine")
    folder.mkdir()
    for number, name in enumerate(names):
        Image.new("L", (8, 8), number * 40).save(folder / name)
    return folder


def listed(text: str) -> Callable[[], None]:
    def write() -> None:
        own_images("a.png", "b.png")
        Path("mine/forget.csv").write_text(text)

    return write


def truncated_image() -> None:
    own_images("a.png", "b.png")
    data = Path("mine/b.png").read_bytes()
    Path("mine/b.png").write_bytes(data[:-30])
    Path("mine/forget.csv").write_text("file_name,label\na.png,1\nb.png,2\n")


def bad_code() -> None:
    Path("model.py").write_text("def digits_net(): raise ValueError('broken')\n")


def no_preprocess() -> None:
    text = Path("imu.yaml").read_text()
    Path("imu.yaml").write_text("\n".join(line for line in text.splitlines() if not line.startswith("preprocess")))


def replace_in_model(old: str, new: str) -> Callable[[], None]:
    def write() -> None:
        text = Path("model.py").read_text()
        assert old in text
        Path("model.py").write_text(text.replace(old, new))

    return write


MINE = [
    "unlearn",
    "model.safetensors",
    "--arch",
    "model.py:digits_net",
    "--preprocess",
    "mnist",
    "--forget",
    "mine/forget.csv",
]

CASES: dict[str, tuple[Callable[[], object], list[str], int, str]] = {
    "missing model": (lambda: None, ["unlearn", "nothing.safetensors", *GO[2:]], 2, "nothing.safetensors: no such file"),
    "folder without a model": (lambda: Path("empty").mkdir(), ["unlearn", "empty", *GO[2:]], 2, "a folder without a .safetensors file"),
    "pickle": (pickled, ["unlearn", "model.pth", *GO[2:]], 4, "a pickle"),
    "pickle renamed": (pickle_renamed, GO, 4, "a pickle"),
    "truncated model": (truncate_model, GO, 2, "not a readable safetensors file"),
    "huge header": (tall_header, GO, 2, "model.safetensors"),
    "NaN in the weights": (spoil_weights, GO, 2, "not finite (NaN or infinity) in 0.weight"),
    "wrong architecture": (lambda: None, [*GO, "--arch", "torchvision:resnet18"], 2, "does not fit the architecture; missing"),
    "unknown architecture": (lambda: None, [*GO, "--arch", "torchvision:resnet19"], 2, "did you mean"),
    "wrong width": (lambda: None, [*GO, "--arch-arg", "width=8"], 2, "misshapen"),
    "bad arch argument": (lambda: None, [*GO, "--arch-arg", "width"], 2, "not key=value"),
    "factory fails": (bad_code, GO, 2, "broken"),
    "no such factory": (lambda: None, [*GO, "--arch", "model.py:digit_net"], 2, "did you mean 'digits_net'"),
    "no architecture": (lambda: None, ["unlearn", "model.safetensors", "--forget", "class=3"], 2, "add --arch"),
    "no preprocessing": (no_preprocess, GO, 2, "--preprocess: not known"),
    "unknown preset": (lambda: None, [*GO, "--preprocess", "imagnet"], 2, "neither a preset"),
    "something after the head": (
        replace_in_model("nn.Linear(8 * width, num_classes),", "nn.Linear(8 * width, num_classes), nn.Softmax(1),"), GO, 4, "replay check failed",
    ),
    "random forward": (
        replace_in_model("    return nn.Sequential(", "    class Noise(nn.Module):\n        def forward(self, x): return x + 0.1 * __import__('torch').randn_like(x)\n    return nn.Sequential(Noise(), "),
        GO, 2, "does not fit",
    ),
    "unknown head": (lambda: None, [*GO, "--head", "fc"], 2, "not a linear layer of this model"),
    "hidden layer as head": (lambda: None, [*GO, "--head", "6"], 4, "name another with --head"),
    "nothing to forget": (lambda: None, GO[:-2], 2, "--forget: not given"),
    "empty list": (listed("file_name,label\n"), MINE, 2, "holds no rows"),
    "wrong label": (listed("file_name,label\na.png,1\nb.png,12\n"), MINE, 2, "forget.csv:3: label 12 is out of range"),
    "missing image": (listed("file_name,label\na.png,1\nc.png,2\n"), MINE, 2, "forget.csv:3"),
    "path outside": (listed("file_name,label\n../model.py,1\n"), MINE, 2, "forget.csv:2: '../model.py' may leave the folder"),
    "absolute path": (listed("file_name,label\n/etc/passwd,1\n"), MINE, 2, "absolute path"),
    "two problems at once": (listed("file_name,label\nc.png,1\nb.png,x\n"), MINE, 2, "forget.csv:3"),
    "truncated image": (truncated_image, MINE, 2, "forget.csv:3"),
    "unknown class": (lambda: None, [*GO[:-1], "class=eleven"], 2, "eleven"),
    "every class": (lambda: None, [*GO[:-1], "class=0,1,2,3,4,5,6,7,8,9"], 2, "none would be kept"),
    "output is the input": (lambda: None, [*GO, "-o", "model.safetensors", "--force"], 2, "is the input"),
    "output links to the input": (lambda: Path("l.safetensors").symlink_to("model.safetensors"), [*GO, "-o", "l.safetensors", "--force"], 2, "is the input"),
    "output is a hard link": (lambda: os.link("model.safetensors", "h.safetensors"), [*GO, "-o", "h.safetensors", "--force"], 2, "is the input"),
    "output exists": (lambda: Path("o.safetensors").write_text("mine"), [*GO, "-o", "o.safetensors"], 2, "exists; choose another"),
    "record exists": (lambda: Path("o.record.json").write_text("mine"), [*GO, "-o", "o.safetensors"], 2, "o.record.json: exists"),
    "no output folder": (lambda: None, [*GO, "-o", "no/o.safetensors"], 2, "no such folder"),
    "bad damping": (lambda: None, [*GO, "--damping", "-1"], 2, "--damping -1"),
    "bad until": (lambda: None, [*GO, "--until", "accuracy<0.5"], 2, "--until"),
    "range": (lambda: None, [*GO, "--keep", "1.5"], 2, "--keep 1.5"),
    "unknown YAML key": (lambda: Path("imu.yaml").write_text("archh: x\n"), GO, 2, "did you mean 'arch'"),
    "YAML is no mapping": (lambda: Path("imu.yaml").write_text("- a\n"), GO, 2, "not a mapping"),
    "missing YAML": (lambda: None, [*GO[:2], "--config", "no.yaml", *GO[4:]], 2, "no.yaml: cannot be read"),
    "rows of samples": (lambda: None, [*GO[:-1], "index=0:5", "--rows", "forgotten"], 2, "--rows forgotten"),
    "matched without a target": (lambda: None, [*GO[:-1], "index=0:5", "--method", "matched"], 2, "--method matched"),
    "SGD options alone": (lambda: None, [*GO, "--momentum", "0.9"], 2, "--momentum"),
    "unknown metric": (lambda: None, ["evaluate", "model.safetensors", *GO[2:], "--require", "tst.accuracy>=0"], 2, "did you mean"),
    "report of nothing": (lambda: None, ["report", "nothing.json"], 2, "cannot be read"),
    "report of another file": (lambda: None, ["report", "imu.yaml"], 2, "not JSON"),
    "unknown option": (lambda: None, [*GO, "--forgett", "x"], 2, "--forget"),
    "wrong device": (lambda: None, [*GO, "--device", "mps"], 2, "--device mps"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code, the message, nothing on stdout, and not one file more or other than before."""
    spoil, command, code, message = CASES[name]
    spoil()
    before = listing(job)
    assert main(command) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert listing(job) == before


def test_random_forward_is_refused(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model whose eval() forward is random cannot be scored, and is not."""
    text = Path("model.py").read_text()
    noisy = (
        "import torch\nfrom torch import nn\n\nclass Noisy(nn.ReLU):\n    def forward(self, x):\n"
        "        return super().forward(x + 0.1 * torch.randn_like(x))\n\n"
    )
    Path("model.py").write_text(noisy + text.replace("nn.ReLU()", "Noisy()"))
    before = listing(job)
    assert main(GO) == 2
    assert "two passes over the same" in capsys.readouterr().err
    assert listing(job) == before


def test_tied_head_is_refused(job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A head whose weight another layer uses too cannot be changed alone."""
    Path("tied.py").write_text(
        "from torch import nn\n\ndef net():\n    a, b = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)\n"
        "    b.weight = a.weight\n    return nn.Sequential(nn.Flatten(), a, nn.ReLU(), b)\n"
    )
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    save_file({"1.weight": weight, "3.weight": weight.clone()}, "tied.safetensors")
    assert main(["unlearn", "tied.safetensors", *BASE, "--arch", "tied.py:net", "--forget", "class=3"]) == 4
    assert "is tied to" in capsys.readouterr().err


def test_forget_samples_inside_test(job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Held-out data that holds the very file of a forget sample is refused; a twin, the same bytes elsewhere, is left out and said."""
    shutil.copytree(digits / "data/test", "held")
    image = next((digits / "data/train/3").glob("*.png"))
    shutil.copy(image, "held/3/copy.png")
    before = listing(job)
    assert main([*GO, "--test", str(digits / "data/train")]) == 2
    assert "also stands in --test" in capsys.readouterr().err
    assert listing(job) == before
    assert main([*GO, "--test", "held"]) == 0
    assert "--test held: 1 of its 451 samples are twins of forget samples" in capsys.readouterr().err
    assert main(["evaluate", "model.unlearned.safetensors", *BASE, "--test", "held"]) == 0
    assert "--test held: 1 of its 451 samples are twins of forget samples" in capsys.readouterr().err


def test_target_already_met(job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that has already unlearned, or sees its images wrongly, is not unlearned again."""
    assert main([*GO, "-q"]) == 0
    before = listing(job)
    assert main(["unlearn", "model.unlearned.safetensors", *GO[2:]]) == 2
    assert "already met before the first step" in capsys.readouterr().err
    assert listing(job) == before


def test_chance_is_said(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Accuracy at chance on the forget set points to the preprocessing or the label order."""
    assert main(["influence", "model.safetensors", *BASE, "--forget", "class=3", "--preprocess", "model.yaml"]) == 2
    Path("model.yaml").write_text("{mode: L, mean: [40.0], std: [0.001]}\n")
    main(["influence", "model.safetensors", *BASE, "--forget", "class=3", "--preprocess", "model.yaml"])
    assert "no better than chance" in capsys.readouterr().err


@contextlib.contextmanager
def no_file_beyond(limit: int) -> Iterator[None]:
    """Files up to so many bytes may be written: writing beyond fails as on a full disk (Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [50_000, 3_000])
def test_disk_full(job: Path, limit: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A write that the disk refuses leaves neither checkpoint nor record nor temporary file."""
    before = listing(job)
    with no_file_beyond(limit):
        assert main([*GO, "--no-cache"]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert listing(job) == before


def test_full_disk_for_the_record_alone(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If only the record does not fit, the checkpoint is not left behind without it."""
    from imu_cli.commands import demo

    small = demo.train(*demo.digits(0)["train"], 0, epochs=8, width=2)
    save_file(small.state_dict(), "model.safetensors")
    before = listing(job)
    with no_file_beyond(Path("model.safetensors").stat().st_size):
        assert main([*GO, "--no-cache", "--arch-arg", "width=2"]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert listing(job) == before


LONG = [sys.executable, "-m", "imu_cli", *GO, "--no-cache", "--step", "0.00005", "--max-steps", "1000"]


@pytest.mark.parametrize(
    ("number", "delay"),
    [(signal.SIGINT, 0.5), (signal.SIGINT, 2.5), (signal.SIGTERM, 3.5)],
)
def test_interrupted(job: Path, number: signal.Signals, delay: float) -> None:
    """Stopped at any moment, it ends with 128 + signal and no half file, or says that both files are there, whole.

    A few moments of a real process; ``tests/files`` asks it before every change of the file system.
    """
    before = listing(job)
    running = subprocess.Popen(LONG, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    time.sleep(delay)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    if running.returncode in (0, 3) or "written before that" in err:
        json.loads(Path("model.unlearned.record.json").read_text())
    else:
        assert running.returncode in (128 + number, -number), err  # the second: before it has its handlers
        assert listing(job) == before


def test_terminated_in_the_middle(job: Path) -> None:
    """SIGTERM while both files are being made, as a cancelled CI job gets it: unwound, nothing is left."""
    code = (
        "import os, signal\nfrom imu_cli import __main__; from imu_cli.records import json_files\n"
        "json_files.dump = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n__main__.main()"
    )
    before = listing(job)
    done = subprocess.run([sys.executable, "-c", code, *GO, "--no-cache"], capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert done.stderr.endswith("imu: stopped by SIGTERM; no output was written\n")
    assert listing(job) == before


def test_interrupt_after_writing(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while the result is shown: both files are in their places, and it is said."""
    from imu_cli.views import terminal

    def interrupt(*_: object, **__: object) -> str:
        raise StoppedError(signal.SIGINT)

    monkeypatch.setattr(terminal, "record", interrupt)
    assert main([*GO, "--no-cache"]) == 130
    said = "imu: interrupted; written before that, whole: model.unlearned.safetensors, model.unlearned.record.json\n"
    assert capsys.readouterr().err.endswith(said)
    json.loads(Path("model.unlearned.record.json").read_text())
    assert Path("model.unlearned.safetensors").stat().st_size == Path("model.safetensors").stat().st_size


@pytest.mark.parametrize("command", ["unlearn", "evaluate"])
def test_a_reader_that_has_gone_changes_no_exit_code(job: Path, digits: Path, command: str) -> None:
    """``imu unlearn ... | head -1``: under pipefail the pipeline still learns that the target was not met."""
    wanted = ["--max-steps", "1"]
    if command == "evaluate":
        assert main([*GO, "--no-cache"]) == 0
        wanted = ["--require", "forget.accuracy>=0.9"]
    start = (
        [*GO, "--no-cache"]
        if command == "unlearn"
        else ["evaluate", "model.unlearned.safetensors", *BASE, "--test", str(digits / "data/test")]
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "imu_cli", *start, *wanted], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.returncode == 3, done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_standard_output_is_full(job: Path) -> None:
    """The result cannot be shown: an error, which says that the files are there."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "imu_cli", *GO, "--no-cache"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert (
        "imu: standard output: cannot be written (No space left on device); written before that: model.unl"
        in done.stderr
    )
    json.loads(Path("model.unlearned.record.json").read_text())


def test_interrupt_while_writing(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C between the two files, the worst moment, removes both."""
    from imu_cli.records import json_files

    def interrupt(*_: object) -> str:
        raise StoppedError(signal.SIGINT)

    before = listing(job)
    monkeypatch.setattr(json_files, "dump", interrupt)
    assert main([*GO, "--no-cache"]) == 130
    assert listing(job) == before
