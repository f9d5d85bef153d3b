"""How much more do ``imu unlearn`` and ``imu influence`` cost than the one forward pass that any method must make?

A small network (the ResNet-20 of ../shared, 5,000 airplanes of CIFAR-10) and a ResNet-18 for 32 x 32 images (``resnet18.py``:
random weights, speed only; 4,500 airplanes), imports aside: the whole of ``run_unlearn`` from image files on disk to a written and
replayed checkpoint with an empty cache, against the bare batched ``eval()`` forward (channels_last, float32) of the same images,
decoded and normalised in memory beforehand, in the same batches, in a process of its own in which nothing else is done: what
``imu`` does with its process's memory (``allocation.kept``) must not speed up its yardstick. Bare and whole runs alternate; each
whole run is divided by the mean of the bare runs around it. Straight before each comes a small one of its kind: this system
takes the pages of a process that waits for half a minute from it. Where images come from files, also by bare plus decoding alone. Then
the repeat from ``--cache-features``. The image files have been read before: the disk is not what is measured. This machine's
processors are shared with others, so that the same work varies twofold: processor time stands beside wall time.
"""

import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import common
import resnet18
import torch
from common import Criterion
from torch import Tensor

from imu_cli.commands import influence as influence_module
from imu_cli.commands import opening
from imu_cli.commands import unlearn as unlearn_module
from imu_cli.config.commands import InfluenceConfig, UnlearnConfig
from imu_cli.events import Silent
from imu_cli.features import allocation, engine
from imu_cli.features.session import Session
from imu_cli.samples.images import decoding
from imu_cli.samples.manifest import open_source

SMALL_IMAGES = 5_000
FEW = 64
"""Images of the small run before a timed one."""
RATIO, DISK_RATIO, REPEAT_SECONDS = 1.05, 1.10, 1.0
Made = TypeVar("Made")


@dataclass(frozen=True)
class Network:
    """A model with what makes it run, and how many airplanes it is to forget."""

    name: str
    checkpoint: Path
    arch: str
    images: int

    def config(self, data: str, **options: Any) -> UnlearnConfig:
        """Options of ``imu unlearn``: the first airplanes, as a class."""
        forget = [f"index={','.join(map(str, _airplanes(data)[: self.images]))}"]
        return common.unlearn_config(arch=self.arch, data=data, forget=forget, scenario="class", **options)


@functools.cache
def _airplanes(data: str) -> list[int]:
    labels = open_source(data, "data").labels
    return [row for row, label in enumerate(labels) if label == 0]


def networks() -> list[Network]:
    """The small one and the large one."""
    large = f"{Path(resnet18.__file__).resolve()}:cifar_resnet18"
    return [
        Network("ResNet-18", resnet18.checkpoint(), large, 4_500),
        Network("ResNet-20", common.checkpoint(), common.architecture(), SMALL_IMAGES),
    ]


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and of processor time over all threads, which a busy machine changes less."""

    wall: float
    cpu: float


def ratios(bare: Sequence[Spent], whole: Sequence[Spent], clock: str) -> list[float]:
    """Each whole run over the mean of the bare pass before and after it."""
    floors = [statistics.mean(getattr(one, clock) for one in pair) for pair in itertools.pairwise(bare)]
    return [getattr(run, clock) / floor for run, floor in zip(whole, floors, strict=True)]


@dataclass(frozen=True)
class Timed:
    """Bare passes around each whole run, the whole runs, and their stages in seconds as their records have them.

    ``bare`` is the model as it was loaded; ``fast`` the same pass over the model that ``imu`` runs in its place, where
    it has one that computes the same in less time; ``decoding`` the images decoded and shaped, without a model.
    """

    network: str
    command: str
    source: str
    bare: list[Spent]
    fast: list[Spent]
    decoding: list[Spent]
    whole: list[Spent]
    stages: list[dict[str, float]]
    batch_size: int

    def ratios(self, clock: str) -> list[float]:
        """Whole run over the mean of the bare pass before and after it."""
        return ratios(self.bare, self.whole, clock)

    def disk_ratios(self, clock: str) -> list[float]:
        """The same over bare plus decoding."""
        bare = [getattr(one, clock) for one in self.bare]
        sums = [
            statistics.mean(pair) + getattr(one, clock)
            for pair, one in zip(itertools.pairwise(bare), self.decoding, strict=True)
        ]
        return [getattr(run, clock) / floor for run, floor in zip(self.whole, sums, strict=True)]

    def stage(self, name: str) -> float:
        """Median seconds of a stage."""
        return statistics.median(stages.get(name, 0.0) for stages in self.stages)


def spent(work: Callable[[], Made]) -> tuple[Spent, Made]:
    """How long it took, and what came out."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu), made


@contextmanager
def plain(network: Network, source: str, threads: int) -> Iterator[tuple[int, Callable[[str], Spent]]]:
    """A process that has the images ready in memory, so many at a time, and makes a pass when it is told which: see ``serve``."""
    command = [sys.executable, __file__, "--serve", network.name, source, "--threads", str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        telling, hearing = process.stdin, process.stdout
        size = int(hearing.readline())

        def ask(which: str) -> Spent:
            telling.write(which + "\n")
            telling.flush()
            return Spent(**json.loads(hearing.readline()))

        yield size, ask
        telling.close()


def serve(network: Network, data: str) -> None:
    """The passes: ``bare`` the forward alone, ``fast`` that of the model as imu runs it, ``decoding`` images without a model."""
    opened = opening.open_all(network.checkpoint, network.config(data), Silent())
    assert opened.network is not None
    ready, loaded = ready_batches(opened), opened.network.model
    assert not loaded.training

    def fast() -> None:
        with allocation.kept():
            forward(opened.engine.model, ready)

    passes: dict[str, Callable[[], None]] = {
        "bare": functools.partial(forward, loaded, ready), "fast": fast, "decoding": functools.partial(decode, opened),
    }  # fmt: skip
    print(opened.engine.batch_size, flush=True)
    for line in sys.stdin:
        forward(loaded, ready[:2])
        print(json.dumps(asdict(spent(passes[line.strip()])[0])), flush=True)


def ready_batches(opened: Session) -> list[Tensor]:
    """The forget set decoded and normalised in memory, in the tool's own batches."""
    assert opened.network is not None
    images, size = opened.forget.samples, opened.engine.batch_size
    parts = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    ready = [engine.batch(images, rows, opened.network.preprocess, opened.device) for rows in parts]
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in ready)
    return ready


def forward(model: torch.nn.Module, ready: Sequence[Tensor]) -> None:
    """The forward pass alone."""
    with torch.inference_mode():
        for batch in ready:
            model(batch)


def decode(opened: Session) -> None:
    """The forget set decoded and shaped by the tool's own code, without a model."""
    assert opened.network is not None
    for _ in decoding.batches(opened.forget.samples, opened.network.preprocess, opened.engine.batch_size):
        pass


def unlearn(network: Network, data: str, cache: str | None = None, **options: Any) -> tuple[Spent, dict[str, float]]:
    """One whole run, with an empty cache unless a folder is given; what it took, and its stages."""
    with common.folder("floor") as place:
        os.environ["IMU_CACHE_DIR"] = cache or str(place / "cache")
        config = network.config(data, output=str(place / "out.safetensors"), **options)
        taken, done = spent(lambda: unlearn_module.run_unlearn(network.checkpoint, config, {}, Silent()))
        return taken, done.record.seconds


def influence(network: Network, data: str) -> tuple[Spent, dict[str, float]]:
    """One whole run of ``imu influence`` with an empty cache; what it took."""
    with common.folder("floor") as place:
        os.environ["IMU_CACHE_DIR"] = str(place / "cache")
        made = network.config(data)
        names = {item.name for item in fields(InfluenceConfig)}
        config = InfluenceConfig(**{name: value for name, value in vars(made).items() if name in names})
        taken, _ = spent(lambda: influence_module.run_influence(network.checkpoint, config, {}, Silent()))
        return taken, {}


COMMANDS: dict[str, Callable[[Network, str], tuple[Spent, dict[str, float]]]] = {
    "unlearn": unlearn,
    "influence": influence,
}


def alternate(network: Network, command: str, source: str, repeats: int, threads: int) -> Timed:
    """Bare, whole, bare, whole, … , bare, after a decoding and a bare pass that warm up."""
    run, data, little = COMMANDS[command], sources(source), replace(network, images=FEW)
    with plain(network, source, threads) as (size, ask):
        found = Timed(network.name, command, source, [], [], [], [], [], size)
        ask("decoding")
        if network.images == SMALL_IMAGES:  # half a minute of the large one does not notice its first batches
            ask("bare")
        found.bare.append(ask("bare"))
        for _ in range(repeats):
            run(little, data)
            taken, stages = run(network, data)
            found.whole.append(taken)
            found.stages.append(stages)
            found.bare.append(ask("bare"))
            found.decoding.append(ask("decoding"))
        # Last: what it leaves of the memory would help the bare pass.
        found.fast.extend([ask("fast")] if network.images == SMALL_IMAGES or source == ARRAYS else [])
    return found


def repeated(network: Network, data: str, repeats: int) -> dict[str, Any]:
    """Runs that find features and scores of an earlier one in the cache."""
    with common.folder("floor-cache") as cache:
        unlearn(network, data, str(cache), cache_features=True)
        runs = [unlearn(network, data, str(cache), cache_features=True) for _ in range(repeats)]
    return {
        "network": network.name,
        "whole": [taken.wall for taken, _ in runs],
        "stages": [stages for _, stages in runs],
    }


def _median(times: Sequence[Spent]) -> float:
    return statistics.median(one.wall for one in times)


def show(timed: Timed) -> None:
    """The ratio, and where the time of the whole run goes."""
    floor, whole = _median(timed.bare), _median(timed.whole)
    names = list(dict.fromkeys(name for stages in timed.stages for name in stages))
    found = [(name, timed.stage(name)) for name in names]
    rest = whole - sum(value for _, value in found)
    fast = [("bare forward of the model as imu runs it", _median(timed.fast))] if timed.fast else []
    alone = ("decoding alone", _median(timed.decoding))
    lines = [("bare forward", floor), *fast, alone, *found, ("not in a stage", rest), (f"imu {timed.command}", whole)]
    rows = [[name, f"{value:.3f}", f"{value / floor:.3f}"] for name, value in lines]
    title = f"{timed.network}, {timed.source}: medians of {len(timed.whole)}, {timed.batch_size} images at a time"
    common.table(title, ("stage", "s", "× bare"), rows)
    for clock, what in (("wall", "time"), ("cpu", "processor time")):
        for against, ratios in (("bare", timed.ratios(clock)), ("bare + decoding", timed.disk_ratios(clock))):
            said = " ".join(f"{ratio:.3f}" for ratio in ratios)
            print(f"{what} ÷ {against}: {said} (median {statistics.median(ratios):.3f})")
    best = min(one.wall for one in timed.whole) / min(one.wall for one in timed.bare)
    print(f"quickest run ÷ quickest bare pass: {best:.3f}", flush=True)


ARRAYS, FILES = "batch files", "PNG class folders, 50,000 files"


def sources(source: str) -> str:
    """``--data`` of the images in one form or the other."""
    return common.batches() if source == ARRAYS else str(common.png_folders())


def main() -> None:
    """Measure, print and keep."""
    parser = common.parser(__doc__, threads=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3, help="whole runs (default: 3)")
    parser.add_argument("--serve", nargs=2, metavar=("NETWORK", "SOURCE"), help="the process of the bare passes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.serve:
        name, source = options.serve
        serve(next(network for network in networks() if network.name == name), sources(source))
        return
    repeats = 1 if options.quick else options.repeats
    started = common.environment()
    large, small = networks()
    jobs = [(small, "unlearn", FILES), (small, "unlearn", ARRAYS)]
    if not options.quick:
        jobs = [(large, "unlearn", ARRAYS), (large, "unlearn", FILES), (large, "influence", ARRAYS), *jobs]
    found = []
    for network, command, source in jobs:
        times = max(1, repeats - (network is large and (command, source) != ("unlearn", ARRAYS)))
        found.append(alternate(network, command, source, times, options.threads))
        show(found[-1])
    again = repeated(small, sources(FILES), 3)
    print(f"\nrepeat with --cache-features, {small.name}: {' '.join(f'{taken:.3f}' for taken in again['whole'])} s")
    checked = [] if options.quick else criteria(found, again["whole"])
    kept = {
        "images": {network.name: network.images for network in (large, small)},
        "runs": [
            {
                **asdict(timed),
                "ratios": timed.ratios("wall"), "cpu_ratios": timed.ratios("cpu"),
                "disk_ratios": timed.disk_ratios("wall"), "disk_cpu_ratios": timed.disk_ratios("cpu"),
            }
            for timed in found
        ],
        "cached_features": again,
        "load_at_end": [round(value, 2) for value in os.getloadavg()],
    }  # fmt: skip
    common.keep("floor", options.quick, {**kept, "criteria": common.verdicts(checked)}, started)
    common.stop(checked)


def criteria(found: Sequence[Timed], again: list[float]) -> list[Criterion]:
    """What the project promised about cost, against this run."""
    made = []
    for timed in found[:3]:
        on_disk = timed.source == FILES
        values = timed.disk_ratios("wall") if on_disk else timed.ratios("wall")
        most, against = (DISK_RATIO, "decoding + bare forward") if on_disk else (RATIO, "bare forward")
        ratio = statistics.median(values)
        what = f"imu {timed.command} ÷ {against}, {timed.network}, median"
        made.append(Criterion(what, f"≤ {most}", f"{ratio:.3f}", ratio <= most))
    repeat = statistics.median(again)
    what = "repeat with --cache-features, median"
    return [*made, Criterion(what, f"< {REPEAT_SECONDS} s", f"{repeat:.3f} s", repeat < REPEAT_SECONDS)]


if __name__ == "__main__":
    main()
