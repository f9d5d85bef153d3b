"""How much more does ``imu unlearn`` cost than the one forward pass that any method must make?

All 5,000 airplanes of CIFAR-10 with the ResNet-20 of ../shared, imports aside, in one process: the whole of
``run_unlearn`` from image files on disk to a written and replayed checkpoint with an empty cache, against the bare
batched ``eval()`` forward (channels_last, float32) of the same images, decoded and normalised in memory beforehand, in
the same batches. Bare and whole runs alternate; each whole run is divided by the mean of the bare runs around it.
Then the repeat from ``--cache-features``. The image files have been read before: the disk is not what is measured.
"""

import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import common
import torch
from common import Criterion
from torch import Tensor

from imu_cli import features, opening, pipeline
from imu_cli.events import Silent
from imu_cli.record import Record

FORGET = "class=airplane"
RATIO, REPEAT_SECONDS = 1.25, 1.0
Made = TypeVar("Made")


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
    it has one that computes the same in less time.
    """

    source: str
    first: Spent
    bare: list[Spent]
    fast: list[Spent]
    whole: list[Spent]
    stages: list[dict[str, float]]

    def ratios(self, clock: str) -> list[float]:
        """Whole run over the mean of the bare pass before and after it."""
        return ratios(self.bare, self.whole, clock)

    def stage(self, name: str) -> float:
        """Median seconds of a stage."""
        return statistics.median(stages.get(name, 0.0) for stages in self.stages)


def spent(work: Callable[[], Made]) -> tuple[Spent, Made]:
    """How long it took, and what came out."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu), made


def bare_passes(data: str) -> list[Callable[[], None]]:
    """The forward pass alone on batches that are ready in memory: the loaded model, then the tool's if it is another."""
    config = common.unlearn_config(data=data, forget=[FORGET])
    opened = opening.open_all(common.checkpoint(), config, Silent())
    images, size = opened.forget.images, config.batch_size
    parts = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    ready = [features.batch(images, rows, opened.preprocess, opened.device) for rows in parts]
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in ready)
    loaded = features.prepare(opened.loaded.model, opened.device)
    assert not loaded.training
    models = [loaded] if opened.model is loaded else [loaded, opened.model]
    return [functools.partial(_forward, model, ready) for model in models]


def _forward(model: torch.nn.Module, ready: Sequence[Tensor]) -> None:
    with torch.inference_mode():
        for batch in ready:
            model(batch)


def unlearn(data: str, cache: str | None = None, **options: Any) -> tuple[Spent, Record]:
    """One whole run, with an empty cache unless a folder is given."""
    with common.folder("floor") as place:
        os.environ["IMU_CACHE_DIR"] = cache or str(place / "cache")
        config = common.unlearn_config(data=data, forget=[FORGET], output=str(place / "out.safetensors"), **options)
        taken, done = spent(lambda: pipeline.run_unlearn(common.checkpoint(), config, {}, Silent()))
        return taken, done.record


def alternate(source: str, data: str, repeats: int) -> Timed:
    """Bare, whole, bare, whole, … , bare, after one of each that warms up."""
    bare, *fast = bare_passes(data)
    for forward in (bare, *fast):
        forward()
    found = Timed(source, unlearn(data)[0], [spent(bare)[0]], [], [], [])
    for _ in range(repeats):
        taken, record = unlearn(data)
        found.whole.append(taken)
        found.stages.append(record.seconds)
        found.bare.append(spent(bare)[0])
        found.fast.extend(spent(forward)[0] for forward in fast)
    return found


def repeated(data: str, repeats: int) -> dict[str, Any]:
    """Runs that find features and scores of an earlier one in the cache."""
    with common.folder("floor-cache") as cache:
        unlearn(data, str(cache), cache_features=True)
        runs = [unlearn(data, str(cache), cache_features=True) for _ in range(repeats)]
    return {"whole": [taken.wall for taken, _ in runs], "stages": [record.seconds for _, record in runs]}


def _median(times: Sequence[Spent]) -> float:
    return statistics.median(one.wall for one in times)


def show(timed: Timed) -> None:
    """The ratio, and where the time of the whole run goes."""
    floor, whole = _median(timed.bare), _median(timed.whole)
    names = list(dict.fromkeys(name for stages in timed.stages for name in stages))
    found = [(name, timed.stage(name)) for name in names]
    rest = whole - sum(value for _, value in found)
    fast = [("bare forward of the model as imu runs it", _median(timed.fast))] if timed.fast else []
    lines = [("bare forward", floor), *fast, *found, ("not in a stage", rest), ("imu unlearn", whole)]
    rows = [[name, f"{value:.3f}", f"{value / floor:.3f}"] for name, value in lines]
    common.table(f"{timed.source}: medians of {len(timed.whole)}", ("stage", "s", "× bare"), rows)
    for clock, what in (("wall", "time"), ("cpu", "processor time")):
        ratios = timed.ratios(clock)
        print(f"ratios of {what}:", *(f"{ratio:.3f}" for ratio in ratios), f"(median {statistics.median(ratios):.3f})")
    best = min(one.wall for one in timed.whole) / min(one.wall for one in timed.bare)
    print(f"quickest run ÷ quickest bare pass: {best:.3f}")


def main() -> None:
    """Measure, print and keep."""
    parser = common.parser(__doc__, threads=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=9, help="whole runs (default: 9)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repeats = 3 if options.quick else options.repeats
    started = common.environment()
    sources = {"PNG class folders, 50,000 files": str(common.png_folders())}
    if not options.quick:
        sources["batch files"] = common.batches()
    found = [alternate(name, data, repeats) for name, data in sources.items()]
    for timed in found:
        show(timed)
    again = {name: repeated(data, repeats) for name, data in sources.items()}
    for name, runs in again.items():
        middle = runs["stages"][sorted(range(repeats), key=runs["whole"].__getitem__)[repeats // 2]]
        said = ", ".join(f"{stage} {value:.3f}" for stage, value in middle.items())
        print(
            f"\nrepeat with --cache-features, {name}: {' '.join(f'{taken:.3f}' for taken in runs['whole'])} s ({said})"
        )
    checked = criteria(found[0], again[found[0].source]["whole"])
    kept = {
        "forget": FORGET,
        "images": 5000,
        "runs": [
            {**asdict(timed), "ratios": timed.ratios("wall"), "cpu_ratios": timed.ratios("cpu")} for timed in found
        ],
        "cached_features": again,
        "load_at_end": [round(value, 2) for value in os.getloadavg()],
    }
    common.keep("floor", options.quick, {**kept, "criteria": common.verdicts(checked)}, started)
    common.stop(checked)


def criteria(timed: Timed, again: list[float]) -> list[Criterion]:
    """What the project promised about cost, against this run."""
    ratio, repeat = statistics.median(timed.ratios("wall")), statistics.median(again)
    return [
        Criterion("imu unlearn ÷ bare forward, median", f"≤ {RATIO}", f"{ratio:.3f}", ratio <= RATIO),
        Criterion(
            "repeat with --cache-features, median", f"< {REPEAT_SECONDS} s", f"{repeat:.3f} s", repeat < REPEAT_SECONDS
        ),
    ]


if __name__ == "__main__":
    main()
