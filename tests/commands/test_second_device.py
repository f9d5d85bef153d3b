"""The head's arithmetic on a second device, as on a GPU: every command gives what it gives on the CPU, and mixes no tensors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from second_device import There, second_device

from imu_cli.cli import main
from imu_cli.features.session import Session

pytestmark = pytest.mark.usefixtures("one_thread")
SETUP = ["--config", "imu.yaml", "--device", "cpu", "--format", "json", "-q", "--no-cache"]
SAMPLES = ["--forget", "index=0:40", "--until", "forget.accuracy<=0.8"]
ROUNDING = 1e-9
"""Other blocks are summed in the same order: what differs is the last bit, if anything."""


def printed(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    """What a command prints as JSON, whether or not its target was met."""
    code = main([*command, *SETUP])
    out, err = capsys.readouterr()
    assert code in (0, 3), err
    return json.loads(out)


def there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    """The same, with the head's arithmetic on the second device."""
    with monkeypatch.context() as patched, second_device() as device:
        patched.setattr(Session, "math_device", device)
        return printed(capsys, *command)


def written(path: str) -> bytes:
    """A file that a command wrote."""
    return Path(path).read_bytes()


@pytest.mark.parametrize("kind", ["held", "streamed"])
def test_scores(kind: str, job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``imu influence``, with its features held and streamed."""
    command = ["influence", "model.safetensors", "--forget", "class=3"]
    command += ["--max-memory", "50KB"] if kind == "streamed" else []
    one, other = printed(capsys, *command), there(monkeypatch, capsys, *command)
    assert [row["score"] for row in other["rows"]] == pytest.approx([row["score"] for row in one["rows"]], rel=ROUNDING)


UNLEARNING = {
    "a class": ["--forget", "class=3"],
    "a class, by minibatches": [
        "--forget",
        "class=3",
        "--learning-rate",
        "0.05",
        "--minibatch",
        "16",
        "--reweight",
        "step",
    ],
    "samples, matched": SAMPLES,
    "samples, by the ascent": [*SAMPLES, "--method", "imu"],
    "mislabelled": ["--forget", "index=0:20", "--scenario", "mislabelled"],
}


SLOW = ("a class, by minibatches", "samples, by the ascent")
"""Kinds whose paths the others take too, but for a few lines."""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in UNLEARNING]
)
def test_unlearning_and_evaluation(
    kind: str, job: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``imu unlearn``'s head and ``imu evaluate``'s metrics."""
    test = ["--test", str(digits / "data/test")]
    command = ["unlearn", "model.safetensors", *UNLEARNING[kind], *test]
    printed(capsys, *command, "-o", "here.safetensors")
    there(monkeypatch, capsys, *command, "-o", "there.safetensors")
    assert written("there.safetensors") == written("here.safetensors")
    asked = ["evaluate", "here.safetensors", *test, "--retain", str(digits / "data/train"), "--attack", "shadow-heads",
             "--shadows", "8", "--retrained", "model.safetensors"]  # fmt: skip
    asked += ["--compat"] if kind == "samples, matched" else []  # scikit-learn fits for long, and knows no kind
    one, other = printed(capsys, *asked), there(monkeypatch, capsys, *asked)
    for mine, theirs in zip(one["metrics"], other["metrics"], strict=True):
        assert theirs["missing"] == mine["missing"], mine["name"]
        if mine["value"] is not None:
            assert theirs["value"] == pytest.approx(mine["value"], rel=ROUNDING, abs=ROUNDING), mine["name"]


def test_the_second_device_refuses_what_a_gpu_does() -> None:
    """Tensors of two devices do not mix, but for single numbers, rows from the CPU and copies."""
    with second_device() as device:
        here, mine = torch.arange(6.0).reshape(3, 2), torch.arange(6.0).reshape(3, 2).to(device)
        assert mine.device == device
        assert torch.zeros(2, device=device).device == mine.double().device == device
        for mixing in (
            lambda: mine + here,
            lambda: torch.cat([mine, here]),
            lambda: here[mine[:, 0] > 1],
            lambda: mine.index_select(0, torch.arange(2)),
            lambda: torch.rand(3, device=device, generator=torch.Generator()),
            lambda: mine.__setitem__(here > 1, here[here > 1]),
        ):
            with pytest.raises(RuntimeError, match=r"second device"):
                mixing()
        with pytest.raises(TypeError, match=r"numpy"):
            mine.numpy()
        assert torch.equal((mine * torch.tensor(2.0)).cpu(), here * 2)
        assert mine[torch.tensor([0, 2])].device == device
        mine[:2] = torch.ones(2, 2)
        mine[mine == 5] = torch.tensor(7.0)
        assert mine.tolist() == [[1, 1], [1, 1], [4, 7]]
        assert here.tolist()[0] == [0, 1]
        assert isinstance(here.to(device), There)
        assert not isinstance(mine.cpu(), There)
