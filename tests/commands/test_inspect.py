"""``imu inspect``: what headers say without torch, what is learnt of a model and where, and the line to copy."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import listing
from safetensors.torch import load_file, save_file
from torchvision import models

from imu_cli.cli import main

GIVEN = ["--arch", "model.py:digits_net", "--preprocess", "prep.yaml"]


@pytest.fixture
def net(job: Path) -> Path:
    """The digits model with its preprocessing in a file of its own."""
    Path("prep.yaml").write_text("{mode: L, mean: [0.305], std: [0.376]}")
    return job / "model.safetensors"


def inspected(*arguments: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    """What ``imu inspect --format json`` prints."""
    capsys.readouterr()
    assert main(["inspect", *arguments, "--format", "json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def by_what(found: dict[str, Any]) -> dict[str, Any]:
    """The findings by what they are of."""
    return {item["what"]: item for item in found["findings"]}


def test_headers_need_no_torch(net: Path) -> None:
    """``--header`` reads a file's or a folder's headers, in every form, without importing torch."""
    shutil.copytree(net.parent, net.parent / "folder", ignore=lambda *_: {"imu.yaml", "prep.yaml", "model.py"})
    program = (
        "import sys; from imu_cli.cli import main\n"
        "codes = [main(['inspect', where, '--header', '--format', form]) for where in ('model.safetensors', 'folder') "
        "for form in ('table', 'json', 'csv')]\n"
        "assert codes == [0] * 6, codes\n"
        "assert not {'torch', 'torchvision', 'PIL', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=net.parent)
    assert done.returncode == 0, done.stderr
    assert "8.weight" in done.stdout


def test_what_is_in_the_file(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names, dtypes, shapes and bytes are those that safetensors reads, as JSON, CSV and in sum."""
    tensors = load_file(net)
    found = inspected(str(net), "--header", capsys=capsys)
    assert found["schema"] == "imu.inspection/1"
    assert {item["name"]: tuple(item["shape"]) for item in found["tensors"]} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert found["bytes"] == sum(tensor.nbytes for tensor in tensors.values())
    assert found["values"] == sum(tensor.numel() for tensor in tensors.values())
    assert sum(found["dtypes"].values()) == len(tensors)
    assert found["files"] == [
        {"name": net.name, "bytes": net.stat().st_size, "tensors": len(tensors), "metadata": {"format": "pt"}}
    ]
    assert found["findings"] == []
    assert main(["inspect", str(net), "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["name"]: int(row["bytes"]) for row in rows} == {name: tensor.nbytes for name, tensor in tensors.items()}


def test_what_is_learnt_and_where(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Architecture, preprocessing, head and its replay error, each with its source; nothing is written."""
    Path("names.txt").write_text("\n".join(f"digit {number}" for number in range(10)))
    before = listing(Path())
    found = inspected("model.safetensors", *GIVEN, "--classes", "names.txt", capsys=capsys)
    assert listing(Path()) == before
    learnt = by_what(found)
    assert {what: item["source"] for what, item in learnt.items()} == {
        "architecture": "--arch",
        "preprocessing": "--preprocess",
        "head": "last linear layer that runs",
        "classes": "--classes names.txt",
    }
    assert "8 (10 x 128 + bias, F32); replay error" in learnt["head"]["value"]
    assert "4 images of noise, 8 x 8" in learnt["head"]["value"]
    assert learnt["classes"]["value"] == "digit 0, digit 1, digit 2, digit 3, digit 4, +5 more"
    assert found["next"] == f"imu unlearn model.safetensors --forget forget.csv {' '.join(GIVEN)} --classes names.txt"


def test_the_line_to_copy_works(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is shown as the next command is one that runs, once forget.csv is there."""
    line = inspected("model.safetensors", *GIVEN, capsys=capsys)["next"].split()
    assert main([*line[1:], "--config", "imu.yaml", "--quiet"]) == 2
    assert "forget.csv" in capsys.readouterr().err
    assert main(["select", "--data", yaml_data(), "class=3", "-o", "forget.csv"]) == 0
    assert main([*line[1:], "--data", yaml_data(), "--quiet"]) == 0


def yaml_data() -> str:
    """The images that imu.yaml names."""
    line = next(line for line in Path("imu.yaml").read_text().splitlines() if line.startswith("data:"))
    return line.removeprefix("data:").strip()


def test_what_is_missing_is_said_with_the_flag(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without flags the line to copy has a place for each that is missing; a wrong one is not copied."""
    found = inspected("model.safetensors", capsys=capsys)
    assert {what: item["flag"] for what, item in by_what(found).items()} == {
        "architecture": "--arch", "preprocessing": "--preprocess",
    }  # fmt: skip
    assert found["next"] == "imu unlearn model.safetensors --forget forget.csv --arch ARCH --preprocess PRESET"
    found = inspected("model.safetensors", "--arch", "torchvision:resnet18", "--preprocess", "none", capsys=capsys)
    assert "does not fit the architecture" in by_what(found)["architecture"]["problem"]
    assert found["next"] == "imu unlearn model.safetensors --forget forget.csv --preprocess none --arch ARCH"
    found = inspected("model.safetensors", *GIVEN, capsys=capsys)
    assert by_what(found)["classes"]["flag"] == "--classes"
    assert main(["inspect", "model.safetensors"]) == 0
    said = capsys.readouterr()
    assert "NOT KNOWN" in said.out
    assert "next: imu unlearn model.safetensors" in said.out
    assert said.err == ""


def test_metadata_says_what_flags_need_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that convert gave its architecture and preprocessing needs no flag at all."""
    values = models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=3).state_dict()
    said = {"arch": "torchvision:shufflenet_v2_x0_5", "preprocess": "imagenet", "classes": ["a", "b", "c"]}
    save_file(values, tmp_path / "m.safetensors", metadata={"imu": json.dumps(said)})
    found = inspected(str(tmp_path / "m.safetensors"), capsys=capsys)
    assert all(item["source"] == "metadata" for what, item in by_what(found).items() if what != "head")
    assert by_what(found)["classes"]["value"] == "a, b, c"
    assert found["next"] == f"imu unlearn {tmp_path}/m.safetensors --forget forget.csv"


def test_a_model_that_is_refused_has_no_next_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SqueezeNet averages after its last layer: the reason is shown, and no command that would end with it."""
    values = models.get_model("squeezenet1_1", weights=None, num_classes=3).state_dict()
    save_file(values, tmp_path / "m.safetensors")
    given = ["--arch", "torchvision:squeezenet1_1", "--preprocess", "imagenet"]
    found = inspected(str(tmp_path / "m.safetensors"), *given, capsys=capsys, code=4)
    assert by_what(found)["head"]["problem"]
    assert by_what(found)["head"]["flag"] is None
    assert found["next"] is None


def test_images_that_the_model_cannot_take_point_at_the_preprocessing(
    net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network for grey images given colour runs at no size: the preprocessing is to be mended, not the head."""
    found = inspected("model.safetensors", "--arch", "model.py:digits_net", "--preprocess", "none", capsys=capsys)
    assert "cannot run on" in by_what(found)["head"]["problem"]
    assert by_what(found)["head"]["flag"] == "--preprocess"


def test_names_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tensor's name and metadata are a stranger's text: escape sequences in them are not passed on."""
    save_file(
        {"a\x1b[2J\x1b]0;title\x07": torch.ones(1)}, tmp_path / "m.safetensors", metadata={"k\x1b[31m": "\x1b[2J"}
    )
    assert main(["inspect", "--header", str(tmp_path / "m.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "title" in out
    assert "\x1b" not in out
    assert "\x07" not in out


@pytest.mark.parametrize(
    ("make", "code", "said"),
    [(lambda path: None, 2, "no such file"), (lambda path: path.write_bytes(b"x" * 20), 2, "not a safetensors file"),
     (lambda path: torch.save({"a": torch.ones(1)}, path), 4, "imu convert"), (lambda path: path.mkdir(), 2, "a folder without")],
)  # fmt: skip
def test_unreadable_models(tmp_path: Path, make: Any, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be read at all is an error with its exit code, also for the header alone."""
    make(tmp_path / "m.safetensors")
    for more in ([], ["--header"]):
        assert main(["inspect", str(tmp_path / "m.safetensors"), *more]) == code
        assert said in capsys.readouterr().err
