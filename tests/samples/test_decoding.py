"""Images that cannot be had are named together, wide ones keep their shades, and libraries' warnings stay with them."""

import io
import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imu_cli.cli import main
from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.features import engine
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images import decoding
from imu_cli.samples.images.folders import open_flat
from imu_cli.samples.images.preprocessing import parse

STEPS = parse({"mode": "L"})
WIDE = np.array([[0, 255, 256, 4095, 32768, 65535]], dtype=np.uint16)
SCALED = [0, 1, 1, 16, 128, 255]
"""The shades of ``WIDE`` of 255, by hand: 255/65535 is 1/257."""


def folder(place: Path, n: int, bad: Sequence[int] = ()) -> SampleSet:
    """So many grey images, of which some are no images."""
    place.mkdir()
    for number in range(n):
        path = place / f"{number:03d}.png"
        if number in bad:
            path.write_bytes(b"no image" if number % 2 else b"")
        else:
            Image.new("L", (8, 8), number).save(path)
    return open_flat(place)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("size", [1, 5, 100])
def test_all_that_cannot_be_decoded_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, beside: bool
) -> None:
    """By threads and by processes, in batches of any size: each once, in order, after the batches before the first."""
    monkeypatch.setattr(decoding, "PROCESSES_FROM", 10)
    bad = [17, 18, 40, 59]
    images = folder(tmp_path / "images", 60, bad).subset([*range(60), 40])
    batches = decoding.batches(images, STEPS, size, beside=beside)
    whole = 17 // size
    assert [len(batch) for _, batch in itertools.islice(batches, whole)] == [size] * whole
    with pytest.raises(InvalidRowsError) as caught:
        next(batches)
    assert [problem.split(".png")[0][-3:] for problem in caught.value.problems] == [f"{row:03d}" for row in bad]
    assert all("not an image that can be read" in problem for problem in caught.value.problems)


def test_nothing_runs_on_the_model_after_the_first_that_cannot(tmp_path: Path) -> None:
    """What is decoded after it is decoded once, to be named or dropped."""
    images = folder(tmp_path / "images", 40, [9])
    read: list[int] = []

    class Counted(type(STEPS)):  # type: ignore[misc]
        def shape(self, image: Image.Image) -> np.ndarray:
            read.append(image.getpixel((0, 0)))  # type: ignore[arg-type]
            return super().shape(image)  # type: ignore[no-any-return]

    with pytest.raises(InvalidRowsError):
        list(decoding.batches(images, Counted(mode="L"), 4))
    assert sorted(read) == [row for row in range(40) if row != 9]


def test_an_image_that_a_transform_cannot_take_is_one_of_them(tmp_path: Path) -> None:
    """Whatever a library's transform raises is said with the image's name, mode and size."""
    images = folder(tmp_path / "images", 20, [3])

    class Choosy(type(STEPS)):  # type: ignore[misc]
        def shape(self, image: Image.Image) -> np.ndarray:
            if image.getpixel((0, 0)) == 11:
                raise TypeError("no such mode")
            return super().shape(image)  # type: ignore[no-any-return]

    with pytest.raises(InvalidRowsError) as caught:
        list(decoding.batches(images, Choosy(mode="L"), 4))
    assert len(caught.value.problems) == 2
    assert "011.png: cannot be preprocessed (mode L, 8 x 8: no such mode)" in caught.value.problems[1]


def test_a_shape_of_its_own_ends_the_pass_at_once(tmp_path: Path) -> None:
    """Where preprocessing lacks a size, nobody wants to wait for 50,000 lines that say so."""
    images = folder(tmp_path / "images", 60)
    for number in range(5, 60):
        Image.new("L", (8 + number, 8)).save(images.location(number))
    with pytest.raises(ImuError, match=r"005\.png: is \(1, 8, 13\) after preprocessing, others are \(1, 8, 8\)"):
        list(decoding.batches(images, STEPS, 4))


def test_the_model_is_tried_on_images_that_are_there(tmp_path: Path) -> None:
    """The first few that can be decoded; only where none can, that is said."""
    cpu = torch.device("cpu")
    images = folder(tmp_path / "images", 12, [0, 2, 3])
    made = engine.probe_of(images, STEPS, cpu)
    assert (made[:, 0, 0, 0] * 255).round().tolist() == [1, 4, 5, 6]
    with pytest.raises(InvalidRowsError) as caught:
        engine.probe_of(images.subset([0, 2, 3]), STEPS, cpu)
    assert len(caught.value.problems) == 3


def test_a_run_names_all_at_once(job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those among the first, which the model is tried on: twenty lines and a count, and nothing is written."""
    place = job / "forget"
    place.mkdir()
    for path in sorted((digits / "data/train/3").iterdir())[:40]:
        (place / path.name).write_bytes(path.read_bytes())
    spoilt = [path for number, path in enumerate(sorted(place.iterdir())) if number < 3 or number > 15]
    for path in spoilt:
        path.write_bytes(path.read_bytes()[:60])
    command = ["unlearn", "model.safetensors", "--config", "imu.yaml", "--forget", "forget", "--label", "3", "-q"]
    before = sorted(path.name for path in job.iterdir())
    assert main(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [spoilt[number].name in line for number, line in enumerate(lines[:20])] == [True] * 20
    assert lines[20:] == [f"+{len(spoilt) - 20} more"]
    assert sorted(path.name for path in job.iterdir()) == before


def stored(path: Path, array: np.ndarray, form: str) -> SampleSet:
    """An image of these numbers in a file of that format, as a set of one."""
    path.mkdir()
    Image.fromarray(array).save(path / f"x.{form}")
    return open_flat(path)


FORMS: dict[str, Callable[[Path], None]] = {
    "png": lambda path: Image.fromarray(WIDE).save(path / "x.png"),
    "tif": lambda path: Image.fromarray(WIDE).save(path / "x.tif"),
    "big-endian tif": lambda path: Image.frombytes("I;16B", (6, 1), WIDE.astype(">u2").tobytes()).save(path / "x.tif"),
    "pgm": lambda path: Image.fromarray(WIDE).save(path / "x.pgm"),
    "jpeg 2000": lambda path: Image.fromarray(np.repeat(WIDE, 8, 0)).save(path / "x.png", "JPEG2000"),
    "pgm of 12 bits": lambda path: (path / "x.pgm").write_bytes(  # type: ignore[dict-item, return-value]
        b"P5 6 1 4095\n" + (WIDE // 16).astype(">u2").tobytes()
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_of_16_bits_keep_their_shades(tmp_path: Path, form: str, mode: str) -> None:
    """Scaled to 8 bits, white to white: not cut off at 255, which makes all but the darkest white."""
    FORMS[form](tmp_path)
    ((_, batch),) = decoding.batches(open_flat(tmp_path), parse({"mode": mode}), 1)
    assert batch[0, -1, 0].tolist() == SCALED


@pytest.mark.parametrize(
    ("kind", "words"), [(np.int32, "numbers of 32 bits (mode I)"), (np.float32, "fractions (mode F)")]
)
def test_numbers_without_a_white_are_refused(tmp_path: Path, kind: type, words: str) -> None:
    """32 bits and fractions may be anything: the image is named, with what to do."""
    images = stored(tmp_path / "wide", WIDE.astype(kind), "tif")
    with pytest.raises(ImuError) as caught:
        list(decoding.batches(images, STEPS, 1))
    assert str(caught.value).endswith(
        f"x.tif: holds {words}, and nothing says which is white; save it with 8 or 16 bits, or leave it out"
    )


def test_libraries_warn_nobody(job: Path, digits: Path) -> None:
    """Pillow warns of a palette with transparency, a model's code and a logger of whatever; the user hears of none of it."""
    place = job / "forget"
    place.mkdir()
    for path in sorted((digits / "data/train/3").iterdir())[:8]:
        image = Image.open(path).convert("P")
        image.save(place / path.name, transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        Image.open(next(place.iterdir())).convert("RGB")
    assert heard, "Pillow does not warn of these any more"
    code = Path("model.py").read_text()
    loud = "import logging, warnings\nwarnings.warn('old', FutureWarning)\nlogging.getLogger('x').error('in /some/where')\n"
    Path("model.py").write_text(loud + code)
    steps = '{"mode": "L", "mean": [0.305], "std": [0.376]}'
    Path("steps.yaml").write_text(steps)
    command = ["unlearn", "model.safetensors", "--config", "imu.yaml", "--forget", "forget", "--label", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "imu_cli", *command, "--max-head-change", "0.01"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert ".py" not in done.stderr
    assert "/some/where" not in done.stderr


def test_what_our_own_code_causes_is_still_an_error_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning attributed to the package fails the tests; one of a library does not reach them, and settings come back."""
    from imu_cli.events import libraries_unheard

    shown, last = warnings.showwarning, io.StringIO()
    with libraries_unheard():
        warnings.warn_explicit("theirs", UserWarning, "/lib/PIL/Image.py", 1, module="PIL.Image")
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn_explicit("ours", UserWarning, "/imu_cli/cli.py", 1, module="imu_cli.cli")
        warnings.simplefilter("always")
        monkeypatch.setattr(sys, "stderr", last)
        warnings.warn_explicit("ours", UserWarning, "/imu_cli/cli.py", 1, module="imu_cli.cli")
    assert last.getvalue() == ""
    assert warnings.showwarning is shown
