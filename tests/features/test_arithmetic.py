"""float32 is float32 and tf32 is tf32, whatever the process is set to, on a processor that rounds unless it is told not to."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensor_cores
import torch
from safetensors.torch import load_file, save_file
from tensor_cores import rounded
from torch import Tensor, nn

from imu_cli.cli import main
from imu_cli.errors import ImuError, RefusedError
from imu_cli.features import engine
from imu_cli.features.engine import Engine, refuse_precision
from imu_cli.features.extraction import gather, stream
from imu_cli.models import arithmetic
from imu_cli.models.arithmetic import float32_as
from imu_cli.models.checkpoint import open_checkpoint
from imu_cli.models.head import TF32_TOLERANCE, Head
from imu_cli.models.head_search import find_head
from imu_cli.models.replay import REPLAY_TOLERANCE
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images.preprocessing import parse
from imu_cli.samples.images.stores import Pixels

N, CPU = 23, torch.device("cpu")
STEPS = parse({"mode": "RGB"})


@pytest.fixture
def all_on() -> Iterator[None]:
    """A process in which products are in TF32 too, as training scripts set it; and as it was afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def rounding(all_on: None) -> Iterator[list[tuple[str, bool]]]:
    """A processor with tensor cores; what it computed, and whether in TF32."""
    with tensor_cores.tensor_cores() as seen:
        yield seen


def network() -> nn.Sequential:
    """Four convolutions with batch norm, and a head."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width, wide in ((3, 16), (16, 32), (32, 32), (32, 64)):
        norm = nn.BatchNorm2d(wide)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.uniform_(-0.2, 0.2)
        norm.running_var.uniform_(0.2, 0.6)
        layers += [nn.Conv2d(width, wide, 3, padding=1), norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 7)).eval()


HEAD = "14"


@pytest.fixture
def images() -> SampleSet:
    """Random pictures in an array."""
    pixels = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    return SampleSet("p", [str(row) for row in range(N)], [0] * N, None, Pixels("p", pixels), range(N))


def opened(images: SampleSet, folder: Path) -> tuple[nn.Sequential, Head, Tensor]:
    """The network, its head as found with a few images, and those."""
    model = network()
    save_file(model.state_dict(), folder / "m.safetensors")
    probe = engine.batch(images, range(4), STEPS, CPU)
    return model, find_head(model, probe, open_checkpoint(folder / "m.safetensors"), ""), probe


def passed(run: Engine, head: Head, images: SampleSet) -> tuple[Tensor, float]:
    """Features (n, d) of all images and the largest replay error."""
    seen = list(stream(run, head, images, STEPS))
    return gather(seen, len(images), head)[:, :-1], seen[-1].head.replay_error


def test_ten_bits_are_left() -> None:
    """Rounded to nearest, ties to even, as bits; what has no more stays, and so does what is no number."""
    step = 2.0**-10
    given = [1.0, 1 + step, 1 + 0.49 * step, 1 + 0.51 * step, 1 + 0.5 * step, 1 + 1.5 * step, -3.14159274, 1e-30]
    wanted = [1.0, 1 + step, 1.0, 1 + step, 1.0, 1 + 2 * step, -3.140625]
    assert rounded(torch.tensor(given))[:7].tolist() == wanted
    assert rounded(torch.tensor([float("nan"), float("inf")])).isfinite().tolist() == [False, False]
    values = torch.randn(1000) * torch.logspace(-20, 20, 1000)
    assert float(((rounded(values) - values) / values).abs().max()) <= step / 2


def test_the_processor_obeys_torchs_switches() -> None:
    """By default convolutions are rounded and products are not, as on a GPU; either is what it is set to."""
    x, model = torch.randn(2, 3, 8, 8), network()
    with torch.inference_mode(), tensor_cores.tensor_cores() as seen:
        model(x)
        assert set(seen) == {("convolution", True), ("product", False)}
        for kind, on in (("tf32", True), ("ieee", False)):
            seen.clear()
            with float32_as(kind):  # type: ignore[arg-type]
                model(x)
            assert set(seen) == {("convolution", on), ("product", on)}


def test_unless_it_is_told_not_to_it_is_off_by_more_than_float32_may_be(rounding: object, images: SampleSet) -> None:
    """The tests below would mean nothing if rounding did not matter here."""
    model, probe = network(), engine.batch(images, range(4), STEPS, CPU)
    with torch.inference_mode():
        as_set = model(probe)
        with float32_as("ieee"):
            exact = model(probe)
    assert float((as_set - exact).abs().max()) > 2 * REPLAY_TOLERANCE[torch.float32] * float(exact.abs().max())


def test_float32_is_float32(rounding: list[tuple[str, bool]], images: SampleSet, tmp_path: Path) -> None:
    """No product of a pass is rounded; batch norm is folded, and head and features are replayed to float32's tolerance."""
    model, head, probe = opened(images, tmp_path)
    engine.refuse_if_random(model, probe)
    run = engine.engine(model, HEAD, probe)
    assert run.folded == 4
    found, error = passed(run, head, images)
    assert len(rounding) > 40
    assert not any(on for _, on in rounding)
    assert error < 1e-6
    plain, _ = passed(Engine(model, HEAD, CPU, 5, "float32"), head, images)
    # Folded, and in other batches: sums in another order, float32 accuracy of four layers.
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_tf32_is_tf32_and_has_a_tolerance_of_its_own(
    rounding: list[tuple[str, bool]], images: SampleSet, tmp_path: Path
) -> None:
    """Everything of such a pass is rounded: more than float32 may be off, and less than this may."""
    model, head, probe = opened(images, tmp_path)
    run = engine.engine(model, HEAD, probe, precision="tf32")
    assert run.folded == 4
    rounding.clear()
    _, error = passed(run, head, images)
    assert set(rounding) == {("convolution", True), ("product", True)}
    assert REPLAY_TOLERANCE[torch.float32] < error < TF32_TOLERANCE


class Capped(nn.Module):
    """Logits that are cut off where only a later image gets."""

    def forward(self, z: Tensor) -> Tensor:
        """Logits (n, c) to the same shape."""
        return z.clamp(max=0.01)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_failed_replay_names_rounding_before_the_model(images: SampleSet, tmp_path: Path, precision: str) -> None:
    """What it ran in, where, and how many at a time; what to try; only then that a model cannot be handled."""
    model, head, _ = opened(images, tmp_path)
    model.append(Capped())
    with pytest.raises(RefusedError, match="the replay check failed") as caught:
        passed(Engine(model, HEAD, CPU, 5, precision), head, images)  # type: ignore[arg-type]
    said = str(caught.value)
    parts = [
        f"it ran in {precision} on cpu, 5 samples at a time",
        "another --batch-size",
        "this model cannot be handled",
    ]
    assert [said.index(part) for part in parts] == sorted(said.index(part) for part in parts)
    assert ("try --precision float32" in said) == (precision == "bfloat16")
    assert "--device cpu" not in said


CALLERS = """
import torch
from imu_cli.models import arithmetic
from imu_cli.models.arithmetic import float32_as
b = torch.backends
NEW = hasattr(b, "fp32_precision")
def read(module, name):
    try:
        return getattr(module, name)
    except RuntimeError:
        return "cannot be read"
def settings():
    found = [read(b.cudnn, "allow_tf32"), read(b.cuda.matmul, "allow_tf32")]
    try:
        found.append(torch.get_float32_matmul_precision())
    except RuntimeError:
        found.append("cannot be read")
    if NEW:
        places = b, b.cuda.matmul, b.cudnn, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn
        found += [read(place, "fp32_precision") for place in places]
    return found
def set_(module, name, value):
    return lambda: setattr(module, name, value)
callers = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "highest": lambda: torch.set_float32_matmul_precision("highest"),
    "convolutions off": set_(b.cudnn, "allow_tf32", False),
    "convolutions on": set_(b.cudnn, "allow_tf32", True),
    "products": set_(b.cuda.matmul, "allow_tf32", True),
}
if NEW:
    callers |= {
        "new products": set_(b.cuda.matmul, "fp32_precision", "tf32"),
        "new convolutions": set_(b.cudnn.conv, "fp32_precision", "ieee"),
        "mixed": set_(b.cudnn, "allow_tf32", False),
        "bfloat16 on a CPU": set_(b.mkldnn.matmul, "fp32_precision", "bf16"),
        "everything": set_(b, "fp32_precision", "tf32"),
        "everything off": set_(b, "fp32_precision", "ieee"),
        "back": set_(b, "fp32_precision", "none"),
    }
for name, prepare in callers.items():  # one after the other: each finds what those before it left
    prepare()
    before = settings()
    for kind in ("ieee", "tf32"):
        try:
            with float32_as(kind):
                if NEW:
                    assert (b.cuda.matmul.fp32_precision, b.cudnn.conv.fp32_precision) == (kind, kind), name
                    assert (b.mkldnn.matmul.fp32_precision, b.mkldnn.conv.fp32_precision) == ("ieee", "ieee"), name
                elif before[0] != "cannot be read":
                    assert (b.cudnn.allow_tf32, b.cuda.matmul.allow_tf32) == (kind == "tf32", kind == "tf32"), name
                if "cannot be read" not in before:
                    assert "cannot be read" not in settings(), (name, settings())
                with float32_as("ieee"):
                    pass
                raise KeyError(kind)
        except KeyError:
            pass
        assert settings() == before, (name, kind, before, settings())
print(len(callers))
"""


def test_the_callers_settings_come_back() -> None:
    """Also after an error, nested, and where both generations of settings were used; inside, both say the same."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", CALLERS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 7


def test_a_pass_that_fails_leaves_the_settings(all_on: None, images: SampleSet, tmp_path: Path) -> None:
    """A model that raises in a later batch, and images that are not finite."""
    model, head, _ = opened(images, tmp_path)

    def fail(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) < 5:
            raise ValueError("the last batch")

    model.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="the last batch"):
        passed(Engine(model, HEAD, CPU, 5, "float32"), head, images)
    with pytest.raises(ImuError, match="cannot run on"):
        engine.refuse_if_random(model, torch.zeros(1, 3, 8, 8))
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32


UNLEARN = ["unlearn", "model.safetensors", "--config", "imu.yaml", "--forget", "class=3", "--device", "cpu"]


def test_tf32_is_refused_where_nothing_computes_in_it(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a CPU the option ends the run with what to write, before anything is written."""
    refuse_precision("float32", CPU)
    refuse_precision("bfloat16", CPU)
    before = sorted(path.name for path in job.iterdir())
    assert main([*UNLEARN, "--precision", "tf32"]) == 2
    assert "--precision tf32: what NVIDIA's GPUs compute in, and the model runs on cpu" in capsys.readouterr().err
    assert sorted(path.name for path in job.iterdir()) == before


# Whole commands


def unlearned(output: str, *options: str) -> tuple[dict[str, Tensor], dict[str, object]]:
    """What ``imu unlearn`` writes of the digits, and its record."""
    assert main([*UNLEARN, "-o", output, *options]) == 0
    record = json.loads(Path(output).with_suffix(".record.json").read_text())
    return load_file(output), record


def test_commands_give_a_processors_float32_and_not_its_default(job: Path, all_on: None) -> None:
    """The same weights with tensor cores and without, to float32; the written file is replayed, batch norms are folded.

    The model's own code turns TF32 on, as code that was written for training does.
    """
    expected, _ = unlearned("plain.safetensors", "--no-cache")
    code = Path("model.py").read_text()
    Path("model.py").write_text(code + "\n\nimport torch\n\ntorch.backends.cuda.matmul.allow_tf32 = True\n")
    with tensor_cores.tensor_cores() as seen:
        found, record = unlearned("rounded.safetensors", "--no-cache")
        assert main(["evaluate", "rounded.safetensors", "--config", "imu.yaml", "--device", "cpu", "--quiet"]) == 0
    assert len(seen) > 20
    assert not any(on for _, on in seen)
    assert record["reached"] is True
    assert torch.get_float32_matmul_precision() == "high"
    for name, tensor in expected.items():
        # The same plan of work on one processor: rounding that is off changes nothing.
        assert torch.equal(found[name], tensor), name


def test_the_error_of_tf32_is_measured_and_said(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores are computed again in float32 on a part; the record has both; float32 finds no cache of it."""
    monkeypatch.setattr(engine, "refuse_precision", lambda *_: None)  # there are tensor cores: those of the test
    with tensor_cores.tensor_cores() as seen:
        _, record = unlearned("out.safetensors", "--precision", "tf32", "--cache-features")
        assert {("convolution", True), ("convolution", False)} <= set(seen)
        said = capsys.readouterr().err
        assert "precision tf32: scores of" in said
        assert "computed again in float32 differ by" in said
        again, other = (
            unlearned(f"{name}.safetensors", "--precision", name, "--cache-features")[1] for name in ("tf32", "float32")
        )
    error = record["scores"]["precision_error"]  # type: ignore[index]
    assert 0 < error["relative_rms"] < 0.05
    assert record["run"]["precision"] == "tf32"  # type: ignore[index]
    assert [made["run"]["source"] for made in (again, other)] == ["cache", "model"]  # type: ignore[index]


class Casting(nn.Module):
    """A network whose own code computes in bfloat16, and returns float32."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = network()

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, h, w) to logits (n, 7)."""
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.inside(images)
        return logits.float()


def test_a_model_that_rounds_by_itself_is_told_so(images: SampleSet, tmp_path: Path) -> None:
    """Nothing acts after the layer whose replay fails: its own precision is the cause, and that comes first."""
    model = Casting().eval()
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    probe = engine.batch(images, range(4), STEPS, CPU)
    with pytest.raises(
        RefusedError, match=r"the model's code computes in less \(half\(\), bfloat16\(\), autocast\)"
    ) as caught:
        find_head(model, probe, open_checkpoint(tmp_path / "m.safetensors"), "")
    assert "something acts after" not in str(caught.value)


def test_before_torch_2_9_there_are_flags_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are set and come back without the settings that came later."""
    monkeypatch.setattr(arithmetic, "_operations", list)

    def flags() -> tuple[bool, str]:
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()

    before = flags()
    for kind, wanted in (("ieee", (False, "highest")), ("tf32", (True, "high"))):
        with float32_as(kind):  # type: ignore[arg-type]
            assert flags() == wanted
        assert flags() == before
