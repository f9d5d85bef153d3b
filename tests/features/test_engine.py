"""Features: one batched pass that does not depend on batches, order or threads, and stops at what it cannot vouch for."""

import platform
import subprocess
import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from imu_cli.errors import ImuError, RefusedError
from imu_cli.features import engine
from imu_cli.features.engine import Engine, batch, pick_device, prepare, refuse_if_random
from imu_cli.features.extraction import Seen, gather, stream
from imu_cli.models.checkpoint import open_checkpoint
from imu_cli.models.head import Head
from imu_cli.models.head_search import find_head
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images import decoding
from imu_cli.samples.images.folders import open_flat
from imu_cli.samples.images.preprocessing import Preprocess, parse
from imu_cli.samples.images.steps import stack
from imu_cli.samples.images.stores import Pixels

N = 23
BATCHES = [1, 2, 7, N, 100]
CPU = torch.device("cpu")
STEPS = parse({"mode": "L", "mean": [0.5], "std": [0.25]})


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images(tmp_path: Path) -> SampleSet:
    """A folder of random 8 by 8 images."""
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(N):
        pixels = random.integers(0, 200, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:02d}.png")
    return open_flat(tmp_path / "images")


def place(images: SampleSet, row: int) -> Path:
    """The file of a row."""
    return Path(images.location(row))


class Standardised(nn.Module):
    """Each image divided by its own standard deviation, which is 0 for one of a single colour."""

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 1, h, w) to the same shape."""
        return (x - x.mean(dim=(1, 2, 3), keepdim=True)) / x.std(dim=(1, 2, 3), keepdim=True)


class Capped(nn.Module):
    """Logits of at most 50: the identity on most images."""

    def forward(self, z: Tensor) -> Tensor:
        """Logits (n, c) to the same shape."""
        return z.clamp(max=50)


def network(*first: nn.Module, last: Sequence[nn.Module] = ()) -> nn.Sequential:
    """A small convolutional network with random weights for images of any size."""
    torch.manual_seed(0)
    middle = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)]
    return nn.Sequential(*first, *middle, *last).eval()


def head_of(model: nn.Module, images: SampleSet, folder: Path, rows: Sequence[int] = range(4)) -> Head:
    """The head, found with some of the images."""
    save_file(model.state_dict(), folder / "m.safetensors")
    return find_head(model, batch(images, rows, STEPS, CPU), open_checkpoint(folder / "m.safetensors"), "")


@dataclass(frozen=True)
class Features:
    """Features (n, d) float32 of a set of images, in its order, and the largest replay error on the way."""

    rows: Tensor
    replay_error: float


def passed(model: nn.Module, head: Head, images: SampleSet, size: int, steps: Preprocess = STEPS) -> list[Seen]:
    """The batches of a pass of the model as it is."""
    return list(stream(Engine(model, head.module, CPU, size, "float32"), head, images, steps))


def run(model: nn.Module, head: Head, images: SampleSet, size: int, steps: Preprocess = STEPS) -> Features:
    """Features of all images in batches of a size."""
    seen = passed(model, head, images, size, steps)
    rows = torch.cat([torch.empty(0, head.matrix.shape[1] - head.bias), *(part.rows for part in seen)])
    assert torch.equal(gather(seen, len(images), head)[:, : rows.shape[1]], rows.double())
    return Features(rows, max((part.head.replay_error for part in seen), default=0.0))


def alone(model: nn.Sequential, images: SampleSet) -> Tensor:
    """What enters the last linear layer, one image at a time, by hand."""
    last = max(i for i, layer in enumerate(model) if isinstance(layer, nn.Linear))
    rows = []
    for row in range(len(images)):
        pixels = torch.from_numpy(np.array(Image.open(images.location(row)))).float() / 255
        with torch.no_grad():
            rows.append(model[:last](((pixels - 0.5) / 0.25)[None, None])[0])
    return torch.stack(rows)


@pytest.mark.parametrize("size", BATCHES)
def test_features_do_not_depend_on_the_batch_size(images: SampleSet, tmp_path: Path, size: int) -> None:
    """In any batches, the last one uneven, row i is what image i gives alone, to float32 accuracy."""
    model = network()
    found = run(prepare(model, CPU), head_of(model, images, tmp_path), images, size)
    assert found.rows.dtype == torch.float32
    torch.testing.assert_close(found.rows, alone(model, images), rtol=1e-5, atol=1e-6)
    assert found.replay_error < 1e-6


def test_features_come_in_the_order_asked_for(images: SampleSet, tmp_path: Path) -> None:
    """A reordered set, with repetitions, gives the same rows reordered: nothing overtakes in decoding."""
    model = network()
    head = head_of(model, images, tmp_path)
    order = torch.randint(0, N, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    expected = run(model, head, images, 7).rows[order]
    torch.testing.assert_close(run(model, head, images.subset(order), 7).rows, expected, rtol=1e-5, atol=1e-6)


def test_threads_do_not_change_results(images: SampleSet, tmp_path: Path) -> None:
    """The same run twice gives the same bits; another number of threads the same features to float32 accuracy."""
    model = network()
    head = head_of(model, images, tmp_path)
    found = {}
    for number in (1, 2, 4):
        torch.set_num_threads(number)
        found[number] = run(model, head, images, 7).rows
        assert torch.equal(run(model, head, images, 7).rows, found[number])
    torch.testing.assert_close(found[2], found[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[4], found[1], rtol=1e-5, atol=1e-6)


def test_channels_last_is_only_a_layout(images: SampleSet) -> None:
    """A batch is laid out for fast convolutions, and holds the images of its rows one by one."""
    made = batch(images, [3, 1, 3], STEPS, CPU)
    assert made.is_contiguous(memory_format=torch.channels_last)
    for place_in_batch, row in enumerate((3, 1, 3)):
        assert torch.equal(made[place_in_batch], STEPS.scale(stack([STEPS.shape(images.read(row))]))[0])


@pytest.mark.parametrize("shape", [(N, 9, 8), (N, 9, 8, 3)])
@pytest.mark.parametrize(
    "steps", [{"mode": "L"}, {"mode": "RGB"}, {"mode": "RGB", "size": 4}, {"mode": "L", "crop": 8}]
)
def test_images_of_an_array_are_what_one_by_one_they_would_be(shape: tuple[int, ...], steps: dict[str, object]) -> None:
    """Arrays that need no shaping are taken as they lie there, and give the same batches as image by image."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    made, prepared = Pixels("p", pixels), parse(steps)
    images = SampleSet("p", [str(row) for row in range(N)], [0] * N, None, made, range(N)).subset([5, 3, 3, 22])
    wanted = prepared.scale(stack([prepared.shape(images.read(row)) for row in range(len(images))]))
    assert torch.equal(batch(images, range(len(images)), prepared, CPU), wanted)


def test_the_model_is_left_as_it_was(images: SampleSet, tmp_path: Path) -> None:
    """Running changes no weight and no batch-norm statistic, and leaves no hook."""
    model = network()
    head = head_of(model, images, tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model, head, images, 4)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_progress_counts_every_image_once(images: SampleSet, tmp_path: Path) -> None:
    """The listener hears of each batch, uneven last one included."""
    model = network()
    heard = [len(part.rows) for part in passed(model, head_of(model, images, tmp_path), images, 5)]
    assert heard == [5, 5, 5, 5, 3]


def test_no_images_are_no_features(images: SampleSet, tmp_path: Path) -> None:
    """An empty set gives a (0, d) matrix."""
    model = network()
    assert run(model, head_of(model, images, tmp_path), images.subset([]), 4).rows.shape == (0, 32)


@pytest.mark.parametrize("size", BATCHES)
@pytest.mark.parametrize("odd", [1, 13, N - 1])
def test_an_image_of_another_size_is_named(images: SampleSet, tmp_path: Path, size: int, odd: int) -> None:
    """Images of different size are refused with the odd one's name, in whatever batch it comes.

    Otherwise it would depend on the batch size whether a run goes through.
    """
    Image.new("L", (9, 8)).save(place(images, odd))
    model = network()
    head = head_of(model, images, tmp_path, [0])
    with pytest.raises(ImuError, match=rf"{odd:02d}\.png: is \(1, 8, 9\) after preprocessing, others are \(1, 8, 8\)"):
        run(model, head, images, size)
    cropped = parse({"mode": "L", "crop": 8})
    assert run(model, head, images, size, cropped).rows.shape == (N, 32)


@pytest.mark.parametrize("size", BATCHES)
@pytest.mark.parametrize("odd", [0, 13, N - 1])
def test_an_image_without_finite_features_is_named(images: SampleSet, tmp_path: Path, size: int, odd: int) -> None:
    """A model that divides by an image's spread gives NaN for a blank one: that image is named, not the model blamed.

    Also if the blank image is among those that the head is found with.
    """
    Image.new("L", (8, 8)).save(place(images, odd))
    model = network(Standardised())
    probe = batch(images, range(4), STEPS, CPU)
    refuse_if_random(model, probe)
    head = head_of(model, images, tmp_path)
    with pytest.raises(ImuError, match=rf"{odd:02d}\.png: its features are not finite") as caught:
        run(model, head, images, size)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("size", BATCHES)
@pytest.mark.parametrize("odd", [4, N - 1])
def test_every_batch_is_replayed(images: SampleSet, tmp_path: Path, size: int, odd: int) -> None:
    """A cap on the logits that no image met when the head was found is caught by the one image that meets it."""
    model = network(last=[Capped()])
    with torch.no_grad():
        model.get_parameter("0.weight")[0] = 1.0  # a sum of pixels, so that a white image is far out
        model.get_parameter("5.weight")[:, :4] = 3.0
    head = head_of(model, images, tmp_path)
    assert run(model, head, images, size).replay_error < 1e-6
    Image.new("L", (8, 8), 255).save(place(images, odd))
    with pytest.raises(RefusedError, match="replay check failed"):
        run(model, head, images, size)


@pytest.mark.parametrize("size", [1, 5, 100])
def test_an_image_that_cannot_be_decoded_is_named(images: SampleSet, tmp_path: Path, size: int) -> None:
    """A truncated image stops the pass with its name, wherever it stands."""
    model = network()
    head = head_of(model, images, tmp_path)
    data = place(images, 17).read_bytes()
    place(images, 17).write_bytes(data[:-30])
    with pytest.raises(ImuError, match=r"17\.png"):
        run(model, head, images, size)


def test_models_with_random_outputs_are_refused(images: SampleSet) -> None:
    """Dropout that ignores eval() is found by running twice; a deterministic model passes."""
    probe = batch(images, range(engine.PROBE), STEPS, CPU)
    refuse_if_random(network(), probe)
    noisy = network()
    noisy.insert(4, nn.Dropout(0.1).train())
    with pytest.raises(ImuError, match="two passes over the same 4 images differ by up to"):
        refuse_if_random(noisy, probe)


@pytest.mark.parametrize("steps", [{}, {"mode": "L", "crop": 2}], ids=str)
def test_images_that_the_model_cannot_take_are_an_error_of_ours(images: SampleSet, steps: dict[str, object]) -> None:
    """Wrong channels or a size too small for the network are said with the images' shape, not with a traceback."""
    probe = batch(images, range(4), parse(steps), CPU)
    with pytest.raises(ImuError, match=r"model: cannot run on \(.*\) float32 images .*check mode, size and crop"):
        refuse_if_random(network(), probe)


def test_devices() -> None:
    """``auto`` finds something that can compute; what is not there is refused with what to write instead."""
    assert torch.ones(2, device=pick_device("auto")).sum() == 2
    assert pick_device("cpu") == CPU
    for name, there in {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.items():
        if not there:
            with pytest.raises(
                ImuError, match=f"--device {name}: not available to this torch; use --device auto or cpu"
            ):
                pick_device(name)


# --- how the model runs


class Residual(nn.Module):
    """A convolution whose output is read by its batch norm and, beside it, by a sum: it must not be folded unseen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 1, h, w) to logits (n, 5)."""
        made = self.conv(x)
        logits: Tensor = self.fc((self.norm(made) + made).mean(dim=(2, 3)))
        return logits


def trained(model: nn.Module) -> nn.Module:
    """Batch norms with statistics and scales of their own."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                assert tensor is not None
                tensor.uniform_(0.5, 2)
    return model.eval()


def test_batch_norm_is_folded_into_the_convolution_before_it(images: SampleSet, tmp_path: Path) -> None:
    """The copy that runs has no batch norm left and gives the same features; the model itself is as it was."""
    model = trained(network())
    probe = batch(images, range(8), STEPS, CPU)
    made = engine.engine(model, "5", probe)
    assert made.folded == 1
    assert not any(isinstance(module, nn.BatchNorm2d) for module in made.model.modules())
    assert isinstance(model.get_submodule("1"), nn.BatchNorm2d)
    head = head_of(model, images, tmp_path)
    found = torch.cat([seen.rows for seen in stream(made, head, images, STEPS)])
    torch.testing.assert_close(found, alone(model, images), rtol=1e-4, atol=1e-5)


def test_a_convolution_that_something_else_reads_is_not_folded(images: SampleSet) -> None:
    """Where folding changes the features, the model runs as it is."""
    torch.manual_seed(0)
    probe = batch(images, range(8), STEPS, CPU)
    model = trained(Residual())
    made = engine.engine(model, "fc", probe)
    assert made.folded == 0
    assert made.model is model


@pytest.mark.parametrize("spoil", ["hook", "twice", "statistics"])
def test_what_may_not_be_folded_is_left(images: SampleSet, spoil: str) -> None:
    """A batch norm with a hook, one that runs twice, and one without running statistics stay."""
    probe = batch(images, range(8), STEPS, CPU)
    model = trained(network())
    norm = model.get_submodule("1")
    if spoil == "hook":
        norm.register_forward_hook(lambda module, inputs, output: output * 2)
    elif spoil == "twice":
        assert isinstance(model, nn.Sequential)
        model.insert(2, norm)
    else:
        norm.running_mean = norm.running_var = None
    assert engine.engine(model, "5" if spoil != "twice" else "6", probe).folded == 0


def test_the_batch_size_follows_from_the_model_and_the_images(images: SampleSet) -> None:
    """A power of two within bounds, the same again; larger layers make smaller batches; the user's own wins."""
    probe = batch(images, range(8), STEPS, CPU)
    sizes = []
    for channels in (8, 1 << 12, 1 << 15):
        model = nn.Sequential(nn.Conv2d(1, channels, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))
        sizes.append(engine.engine(model.eval(), "3", probe[:1]).batch_size)
        assert sizes[-1] == engine.engine(model, "3", probe[:1]).batch_size
    assert sizes == [256, 16, engine.SMALLEST]
    assert engine.engine(network(), "5", probe, batch_size=7).batch_size == 7


def test_an_accelerators_memory_that_runs_out_halves_the_batch(images: SampleSet, tmp_path: Path) -> None:
    """Batches that do not fit are taken in halves, with the same features; one image that does not fit is an error.

    What a pass had made when it failed is gone when the halves run, or they would find less room than it had.
    """

    class Small(nn.Module):
        def __init__(self, most: int) -> None:
            super().__init__()
            self.most = most
            self.left: list[weakref.ref[Tensor]] = []

        def forward(self, x: Tensor) -> Tensor:
            assert not any(made() is not None for made in self.left)
            if len(x) > self.most:
                made = x + 1
                self.left.append(weakref.ref(made))
                raise torch.cuda.OutOfMemoryError("out of memory")
            return x

    model = network()
    head = head_of(model, images, tmp_path)
    expected = run(model, head, images, 23).rows
    model.insert(0, Small(3))
    small = replace(head, module="6")
    torch.testing.assert_close(run(model, small, images, 23).rows, expected, rtol=1e-5, atol=1e-6)
    model[0] = Small(0)
    with pytest.raises(ImuError, match="one sample does not fit the accelerator's memory"):
        run(model, small, images, 23)


@pytest.mark.parametrize(("size", "task"), [(5, 16), (16, 16), (40, 16), (40, 7), (3, 1)])
def test_processes_decode_what_threads_do(
    images: SampleSet, monkeypatch: pytest.MonkeyPatch, size: int, task: int
) -> None:
    """The batches of forked workers are those of threads, in order, and an image they cannot read is named.

    With small tasks what they hand back goes through the same memory many times over.
    """
    order = torch.randint(0, N, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    many = images.subset(order)
    expected = list(decoding.batches(many, STEPS, size))
    monkeypatch.setattr(decoding, "PROCESSES_FROM", 10)
    monkeypatch.setattr(decoding, "ROWS_A_TASK", task)
    found = list(decoding.batches(many, STEPS, size, beside=True))
    assert [places for places, _ in found] == [places for places, _ in expected]
    assert [at for places, _ in found for at in places] == list(range(100))
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(found, expected, strict=True))
    assert found[0][1].is_contiguous(memory_format=torch.channels_last)
    place(images, order[60]).write_bytes(b"no image")
    with pytest.raises(ImuError, match=f"{order[60]:02d}.png: not an image that can be read"):
        list(decoding.batches(many, STEPS, size, beside=True))


def test_answers_of_processes_lie_in_memory_that_they_share(images: SampleSet) -> None:
    """Where the first image says of what size they are; one of another size comes by itself, to be named."""
    tasks = decoding.Tasks(images, STEPS, [[row, row + 1] for row in range(0, N - 1, 2)])
    Image.new("L", (9, 8)).save(place(images, 8))
    Image.new("L", (9, 8)).save(place(images, 9))
    answers = []
    for answer in decoding.from_processes(tasks, 2, 2):
        assert isinstance(answer, np.ndarray)
        assert tasks.slots is not None
        answers.append((np.shares_memory(answer, tasks.slots.pieces), answer.copy()))
    assert [shared for shared, _ in answers] == [number != 4 for number in range(len(answers))]
    for number, (_, answer) in enumerate(answers):
        assert np.array_equal(
            answer, tasks[number] if number == 4 else decoding._shaped(images, tasks.tasks[number], STEPS)
        )


def test_images_of_an_array_are_not_handed_through_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying them is less work than handing them on; what has to be resized is work for processes."""
    images = SampleSet("p", [""] * N, [0] * N, None, Pixels("p", np.zeros((N, 8, 8), np.uint8)), range(N))
    forked: list[int] = []

    def counted(tasks: decoding.Tasks, count: int, ahead: int) -> Iterator[decoding.Answer]:
        forked.append(len(tasks))
        return from_threads(tasks, count, ahead)

    from_threads = decoding.from_threads
    monkeypatch.setattr(decoding, "PROCESSES_FROM", 10)
    monkeypatch.setattr(decoding, "from_processes", counted)
    assert [len(part) for _, part in decoding.batches(images, STEPS, 16, beside=True)] == [16, N - 16]
    assert not forked
    list(decoding.batches(images, parse({"mode": "L", "size": 4}), 16, beside=True))
    assert forked == [2]


FAULTS = """
import resource, torch
from imu_cli.features import allocation as memory

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) // 1024

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        del [torch.ones(2**22) for _ in range(8)][:]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = resident()
usual = faults()
with memory.kept():
    faults()
    kept, during = faults(), resident()
print(usual, kept, during - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc gives memory back; others are left as they are")
def test_freed_memory_is_kept_during_a_pass_and_given_back_after_it() -> None:
    """Blocks taken again and again come from the process itself, and at the end the system has them again."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    usual, kept, during, after = map(int, done.stdout.split())
    assert kept < usual / 10
    assert during >= 100  # of 128 MB in all
    assert after <= 40
