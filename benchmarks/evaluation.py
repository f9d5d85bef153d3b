"""What does ``imu evaluate`` cost beyond the forward passes over its images, and what do 64 shadow heads cost?

The airplanes of CIFAR-10 (5,000), all 10,000 test images and the other 45,000 training images, the ResNet-20 of ../shared
with the class unlearned. Bare and whole runs alternate in one process, imports aside; each whole evaluation (default
metrics, with --test and --retain) is divided by the mean of the bare passes around it. A bare pass is the model's
``eval()`` forward over the same images in the same batches, each decoded and normalised before its time is taken. Model
and original differ in the head alone, so one pass has to serve both. Then ``--attack shadow-heads`` on 500 random
training images unlearned by the matched method: the time of fitting, unlearning and comparing its heads.
"""

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import torch
from common import Criterion
from floor import Spent, ratios, spent

from imu_cli.commands import evaluate as judging
from imu_cli.commands import opening, unlearn
from imu_cli.config.commands import EvaluateConfig
from imu_cli.events import Silent
from imu_cli.features import engine
from imu_cli.samples.manifest import open_source

FORGET, SOME = "class=airplane", "index=0:49999:100"
RATIO, SHADOW_SECONDS, SHADOWS = 1.2, 60.0, 64
SHADOW_STAGES = ("fitting shadow heads", "unlearning shadow heads", "comparing shadow heads")


@dataclass(frozen=True)
class Timed:
    """Bare passes around each whole evaluation, the evaluations, and their stages in seconds."""

    bare: list[Spent]
    whole: list[Spent]
    stages: list[dict[str, float]]

    def ratios(self, clock: str) -> list[float]:
        """Whole evaluation over the mean of the bare pass before and after it."""
        return ratios(self.bare, self.whole, clock)


def unlearned(place: Path, **options: Any) -> Path:
    """An unlearned model with its record beside it."""
    config = common.unlearn_config(output=str(place / "out.safetensors"), **options)
    return unlearn.run_unlearn(common.checkpoint(), config, {}, Silent()).output


def bare_pass(training: bool) -> Spent:
    """The forward passes over test and, if wanted, all training images; decoding is not counted."""
    opened = opening.open_all(common.checkpoint(), common.unlearn_config(forget=["class=0"]), Silent())
    assert opened.network is not None
    size, wall, cpu = opened.engine.batch_size, 0.0, 0.0
    sets = [open_source(common.batches(), "test"), *([open_source(common.batches(), "data")] if training else [])]
    for images in sets:
        for start in range(0, len(images), size):
            rows = range(start, min(start + size, len(images)))
            ready = engine.batch(images, rows, opened.network.preprocess, opened.device)
            before = time.perf_counter(), time.process_time()
            with torch.inference_mode():
                opened.network.model(ready)
            wall, cpu = wall + time.perf_counter() - before[0], cpu + time.process_time() - before[1]
    return Spent(wall, cpu)


def evaluate(model: Path, **options: Any) -> dict[str, float]:
    """One whole evaluation; returns its stages."""
    config = EvaluateConfig(**common.model_options(), test=common.batches(), **options)
    return judging.run_evaluate(model, config, {}, Silent()).evaluation.seconds


def alternate(repeats: int, quick: bool) -> Timed:
    """Bare, whole, bare, whole, … , bare."""
    retain = None if quick else common.batches()
    forget = SOME if quick else FORGET
    with common.folder("evaluation") as place:
        model = unlearned(place, forget=[forget])
        found = Timed([bare_pass(not quick)], [], [])
        for _ in range(repeats):
            taken, stages = spent(lambda: evaluate(model, retain=retain))
            found.whole.append(taken)
            found.stages.append(stages)
            found.bare.append(bare_pass(not quick))
    return found


def shadow_heads() -> dict[str, float]:
    """Seconds of each stage of an evaluation with shadow heads."""
    with common.folder("shadows") as place:
        model = unlearned(place, forget=[SOME], test=common.batches())
        return evaluate(model, retain=common.batches(), attack="shadow-heads", shadows=SHADOWS)


def show(timed: Timed) -> None:
    """The ratio, and where the time of the whole evaluation goes."""
    floor, whole = (statistics.median(one.wall for one in runs) for runs in (timed.bare, timed.whole))
    names = list(dict.fromkeys(name for stages in timed.stages for name in stages))
    found = [(name, statistics.median(stages.get(name, 0.0) for stages in timed.stages)) for name in names]
    rest = whole - sum(value for _, value in found)
    lines = [("bare forward", floor), *found, ("not in a stage", rest), ("imu evaluate", whole)]
    rows = [[name, f"{value:.2f}", f"{value / floor:.3f}"] for name, value in lines]
    common.table(f"imu evaluate: medians of {len(timed.whole)}", ("stage", "s", "× bare"), rows)
    for clock, what in (("wall", "time"), ("cpu", "processor time")):
        ratios = timed.ratios(clock)
        print(f"ratios of {what}:", *(f"{ratio:.3f}" for ratio in ratios), f"(median {statistics.median(ratios):.3f})")


def criteria(timed: Timed, shadows: dict[str, float]) -> list[Criterion]:
    """What the project promised about cost, against this run."""
    found = [
        Criterion(
            f"imu evaluate ÷ bare forward, {what}, median", f"≤ {RATIO}", f"{ratio:.3f}", ratio <= RATIO
        )
        for what, ratio in (
            (what, statistics.median(timed.ratios(clock))) for clock, what in (("wall", "time"), ("cpu", "processor time"))
        )
    ]  # fmt: skip
    if shadows:
        took = sum(shadows.get(stage, 0.0) for stage in SHADOW_STAGES)
        found.append(
            Criterion(f"{SHADOWS} shadow heads", f"< {SHADOW_SECONDS:.0f} s", f"{took:.1f} s", took < SHADOW_SECONDS)
        )
    return found


def main() -> None:
    """Measure, print and keep."""
    parser = common.parser(__doc__, threads=2)
    parser.add_argument("--repeats", type=int, default=3, help="whole evaluations (default: 3)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = common.environment()
    timed = alternate(1 if options.quick else options.repeats, options.quick)
    show(timed)
    shadows = {} if options.quick else shadow_heads()
    if shadows:
        rows = [[stage, f"{shadows[stage]:.2f}"] for stage in SHADOW_STAGES if stage in shadows]
        common.table(f"{SHADOWS} shadow heads, 500 forget samples of 50,000", ("stage", "s"), rows)
    checked = criteria(timed, shadows)
    kept = {
        **asdict(timed),
        "ratios": timed.ratios("wall"),
        "cpu_ratios": timed.ratios("cpu"),
        "shadow_heads": shadows,
    }
    common.keep("evaluation", options.quick, {**kept, "criteria": common.verdicts(checked)}, started)
    common.stop(checked)


if __name__ == "__main__":
    main()
