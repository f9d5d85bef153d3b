"""What does forgetting whole classes cost, and do the influence weights help?

``imu unlearn`` itself (``run_unlearn``, file to file, features from its cache) on every class of CIFAR-10 with the
ResNet-20 of ../shared: rows that move × weights, each stopped by the tool at 0.5 % of the forget set, then step size
and seed. Forget, retain and test accuracy are those of the written file's head; retain and test on classes that stay.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import torch
from common import CLASSES, Cifar, Criterion, at_least, at_most, percent
from safetensors.torch import load_file
from torch import Tensor

from imu_cli.commands import unlearn as pipeline
from imu_cli.events import Silent
from imu_cli.statistics import mask_bound, metrics
from imu_cli.unlearning.targets import CLASS_TARGET

WEIGHTS: dict[str, dict[str, Any]] = {
    "influence": {},
    "influence, keep 0.1": {"keep": 0.1},
    "uniform": {"weights": "uniform"},
}
STEP_SIZES = (0.0025, 0.01)
SEEDS = (0, 1, 2)
MINIBATCHES = {"learning_rate": 0.003, "minibatch": 256}
FIXED_RATE = {"learning_rate": 0.03}
FOUR = (0, 1, 8, 9)
AIRPLANE, CAT, DOG = (0,), (3,), (5,)
TOLERANCE = 0.002


@dataclass(frozen=True)
class Run:
    """One unlearning: what was asked for, and what came of it; shares as fractions.

    ``*_before`` are the original's, ``*_bound`` what masking the forgotten outputs would reach.
    """

    classes: tuple[int, ...]
    rows: str
    weights: str
    options: dict[str, Any]
    steps: int
    reason: str
    head_change: float
    forget: float
    retain: float
    retain_before: float
    retain_bound: float
    test: float
    test_before: float
    test_bound: float
    lost_to_forgotten: int

    @property
    def name(self) -> str:
        """The classes, or how many."""
        return CLASSES[self.classes[0]] if len(self.classes) == 1 else f"{{{', '.join(map(str, self.classes))}}}"


def _head(path: Path, data: Cifar) -> Tensor:
    """W (c, d+1) float64 of a written checkpoint."""
    written = load_file(path)
    weight, bias = (written[name].double() for name in data.head.tensors)
    return torch.cat([weight, bias[:, None]], dim=1)


def _costs(data: Cifar, head: Tensor, classes: tuple[int, ...]) -> dict[str, Any]:
    """Forget, retain and test accuracy of a head, and the mask bounds."""
    gone = torch.tensor(classes)
    forgotten = torch.isin(data.train_labels, gone)
    found: dict[str, Any] = {"forget": metrics.predicted_as(data.train[forgotten] @ head.T, classes, census=True).value}
    splits = {"retain": (data.train, data.train_labels), "test": (data.test, data.test_labels)}
    for name, (h, labels) in splits.items():
        kept = ~torch.isin(labels, gone)
        before, after, own = h[kept] @ data.matrix.T, h[kept] @ head.T, labels[kept]
        found[name] = metrics.accuracy(after, own).value
        found[f"{name}_before"] = metrics.accuracy(before, own).value
        found[f"{name}_bound"] = mask_bound.mask_bound(before, own, classes).value
    lost = mask_bound.lost_to_forgotten(before, after, own, classes)
    return {**found, "lost_to_forgotten": round(lost.value * lost.n)}


def unlearn(data: Cifar, classes: tuple[int, ...], rows: str, weights: str, **options: Any) -> Run:
    """Forget classes, file to file, and measure the head of the file that was written."""
    forget = [f"class={','.join(CLASSES[k] for k in classes)}"]
    with common.folder("quality-classes") as place:
        config = common.unlearn_config(
            forget=forget,
            rows=rows,
            cache_features=True,
            output=str(place / "out.safetensors"),
            **WEIGHTS[weights],
            **options,
        )
        done = pipeline.run_unlearn(common.checkpoint(), config, {}, Silent())
        head = _head(done.output, data)
    record = done.record
    return Run(
        classes, rows, weights, options,
        steps=len(record.trajectory) - 1, reason=record.reason, head_change=record.end.head_change,
        **_costs(data, head, classes),
    )  # fmt: skip


def _cells(run: Run) -> list[str]:
    return [
        run.name, run.rows, run.weights, str(run.steps), percent(run.head_change, 1), percent(run.forget),
        percent(run.retain), percent(run.retain_bound), percent(run.test), percent(run.test_bound), str(run.lost_to_forgotten),
    ]  # fmt: skip


COLUMNS = (
    "forget", "rows", "weights", "steps", "ΔW %", "forget %", "retain %", "(mask)", "test kept %", "(mask)", "lost to forgotten",
)  # fmt: skip


def by_class(data: Cifar, sets: Sequence[tuple[int, ...]]) -> list[Run]:
    """Rows × weights for every set of classes."""
    runs = [
        unlearn(data, classes, rows, weights)
        for classes in sets
        for rows in ("forgotten", "all")
        for weights in WEIGHTS
    ]  # fmt: skip
    common.table(
        f"Stopped at {CLASS_TARGET:.1%} of the forget set; step 0.005 ‖W‖",
        COLUMNS,
        [_cells(run) for run in runs],
        left=3,
    )
    return runs


def means(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Means over the single classes, and each kind of weights against uniform ones in this run."""
    found: list[dict[str, Any]] = []
    for rows in ("forgotten", "all"):
        plain = _mean(runs, rows, "uniform")
        for weights in WEIGHTS:
            mine = _mean(runs, rows, weights)
            ratio = {f"{name}_to_uniform": mine[name] / plain[name] for name in ("steps", "head_change")}
            found.append({"rows": rows, "weights": weights, **mine, **ratio})
    common.table(
        "Means over the single classes; × against uniform weights",
        ("rows", "weights", "steps", "×", "ΔW %", "×", "forget %", "retain lost", "below mask", "test lost", "below mask"),
        [
            [
                f["rows"], f["weights"], f"{f['steps']:.1f}", f"{f['steps_to_uniform']:.2f}", percent(f["head_change"], 1),
                f"{f['head_change_to_uniform']:.2f}", percent(f["forget"]), percent(f["retain_lost"]),
                percent(f["retain_below_bound"], 3), percent(f["test_lost"]), percent(f["test_below_bound"], 3),
            ]
            for f in found
        ],
        left=2,
    )  # fmt: skip
    return found


def _mean(runs: Sequence[Run], rows: str, weights: str) -> dict[str, float]:
    those = [run for run in runs if len(run.classes) == 1 and (run.rows, run.weights) == (rows, weights)]
    values = {
        "steps": [float(run.steps) for run in those],
        "head_change": [run.head_change for run in those],
        "forget": [run.forget for run in those],
        "retain_lost": [run.retain_before - run.retain for run in those],
        "retain_below_bound": [run.retain_bound - run.retain for run in those],
        "test_lost": [run.test_before - run.test for run in those],
        "test_below_bound": [run.test_bound - run.test for run in those],
    }
    return {name: sum(given) / len(given) for name, given in values.items()}


def fixed_rate(data: Cifar, sets: Sequence[tuple[int, ...]]) -> list[Run]:
    """The same with a fixed learning rate: the length of a step then depends on which samples have a gradient left."""
    runs = [
        unlearn(data, classes, rows, weights, **FIXED_RATE)
        for classes in sets
        for rows in ("forgotten", "all")
        for weights in WEIGHTS
    ]  # fmt: skip
    title = f"The same with a fixed learning rate of {FIXED_RATE['learning_rate']}, full batches, no momentum"
    common.table(title, COLUMNS, [_cells(run) for run in runs], left=3)
    return runs


@dataclass(frozen=True)
class Spread:
    """The same unlearning under several settings, the first of which is the reference; spreads in accuracy, as fractions."""

    what: str
    runs: tuple[Run, ...]

    def of(self, name: str) -> float:
        """Largest less smallest value."""
        values = [float(getattr(run, name)) for run in self.runs]
        return max(values) - min(values)


def spreads(data: Cifar, runs: Sequence[Run], quick: bool) -> Iterator[Spread]:
    """Step halved and doubled, and three seeds; full batches draw nothing, minibatch SGD does."""
    sets: list[tuple[tuple[int, ...], str]] = [
        (AIRPLANE, "forgotten"),
        (CAT, "forgotten"),
        (AIRPLANE, "all"),
        (CAT, "all"),
    ]
    if not quick:
        sets.append((FOUR, "forgotten"))
    for classes, rows in sets:
        same = _found(runs, classes, rows, "influence")
        others = [unlearn(data, classes, rows, "influence", step=step) for step in STEP_SIZES]
        yield Spread(f"{same.name}, rows {rows}: step × ½, 1, 2", (same, *others))
    for rows in ("forgotten", "all"):
        yield Spread(
            f"airplane, rows {rows}: seeds", tuple(unlearn(data, AIRPLANE, rows, "influence", seed=s) for s in SEEDS)
        )
        those = tuple(unlearn(data, AIRPLANE, rows, "influence", seed=s, **MINIBATCHES) for s in SEEDS)
        yield Spread(f"airplane, rows {rows}: seeds, SGD on minibatches", those)


def _found(runs: Sequence[Run], classes: tuple[int, ...], rows: str, weights: str) -> Run:
    return next(run for run in runs if (run.classes, run.rows, run.weights) == (classes, rows, weights))


def show_spreads(found: Sequence[Spread]) -> None:
    """Steps and accuracies of every setting, and the spread in points."""
    rows = [
        [
            spread.what, " ".join(str(run.steps) for run in spread.runs), " ".join(percent(run.retain) for run in spread.runs),
            percent(spread.of("retain"), 3), " ".join(percent(run.test) for run in spread.runs), percent(spread.of("test"), 3),
        ]
        for spread in found
    ]  # fmt: skip
    common.table("Step size and seed", ("settings", "steps", "retain %", "spread", "test kept %", "spread"), rows)


def criteria(runs: Sequence[Run], found: Sequence[Spread], quick: bool) -> list[Criterion]:
    """What the project promised for whole classes, against this run."""
    made = []
    for classes, retain, test, all_rows in ((AIRPLANE, 0.997, 0.922, 0.988), (CAT, 0.998, 0.939, 0.968)):
        run = _found(runs, classes, "forgotten", "influence")
        made += [
            at_most(f"{run.name}, all 5,000, defaults: forget", run.forget, CLASS_TARGET),
            at_least(f"{run.name}: retain", run.retain, retain),
            at_least(f"{run.name}: test, kept classes", run.test, test),
            at_most(f"{run.name}: test below the mask bound", run.test_bound - run.test, 0.0),
        ]
        wide = _found(runs, classes, "all", "influence")
        made += [
            at_most(f"{run.name}, rows all: forget", wide.forget, CLASS_TARGET),
            at_least(f"{run.name}, rows all: retain", wide.retain, all_rows),
        ]
    if not quick:
        four = _found(runs, FOUR, "forgotten", "influence")
        made.append(at_most(f"{four.name}: any of them predicted on D_f", four.forget, CLASS_TARGET))
        made.append(at_least(f"{four.name}: retain", four.retain, 0.997))
    for spread in found:
        made += [at_most(f"{spread.what}: spread of {name}", spread.of(name), TOLERANCE) for name in ("retain", "test")]
    return made


def main() -> None:
    """Measure, print and keep."""
    options = common.parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    started, data = common.environment(), common.cifar()
    sets = [AIRPLANE, CAT] if options.quick else [*((k,) for k in range(10)), FOUR]
    with common.folder("cache") as cache:
        os.environ["IMU_CACHE_DIR"] = str(cache)
        runs = by_class(data, sets)
        averages = means(runs)
        rate = fixed_rate(data, [AIRPLANE, CAT] if options.quick else [AIRPLANE, CAT, DOG])
        found = list(spreads(data, runs, options.quick))
    show_spreads(found)
    checked = criteria(runs, found, options.quick)
    kept = {
        "runs": [asdict(run) for run in runs],
        "means": averages,
        "fixed_rate": [asdict(run) for run in rate],
        "spreads": [asdict(spread) for spread in found],
    }
    common.keep("quality_classes", options.quick, {**kept, "criteria": common.verdicts(checked)}, started)
    common.stop(checked)


if __name__ == "__main__":
    main()
