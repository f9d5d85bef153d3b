"""Does the cost of scores and of the ascent grow with the samples alone, and is it that of their matrix products?

Synthetic features and heads, float64 on the CPU: no model runs here. Four questions:

* n from 1,000 to 1,000,000, c from 10 to 1,000 and d from 64 to 4,096: seconds of the scores, of one step of the ascent
  (gradient) and of one look, and whether a + b·n, fitted from 10,000 up, is what they cost.
* Each against its own matrix products: the same ``torch.mm`` calls over the same blocks and nothing else (scores: logits
  twice, the gradient, the Fisher diagonal and the product with the direction; a step: logits and gradient; a look: logits).
  Both alternate, in one process; the median of the ratios counts.
* ``--memory``: ``imu unlearn``, ``influence`` and ``evaluate`` of files of features, beyond a run on few samples: a process of
  its own for each n, its largest resident memory that no file backs, against the bound 2·n·(d+1)·4 bytes + 64 MB held, and
  64 MB streamed. ``evaluate`` reads its three splits by rows, never holds them, and fits a probe to at most 500 test samples
  a class: their matrix and as much for its solver are allowed for.
* ``--huge``: a file of 1,000,000 x 2,048 features with 1,000 classes (8.2 GB, removed afterwards), scored by ``imu influence``.
"""

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import Criterion, console
from safetensors.torch import save_file
from torch import Tensor

from imu_cli.influence import closed_form
from imu_cli.linear import objective
from imu_cli.linear.rows import blocks
from imu_cli.samples import vectors
from imu_cli.unlearning import ascent

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
CLASSES, WIDTHS = (10, 30, 100, 300, 1_000), (64, 256, 1_024, 4_096)
JUDGED = (100_000, 512, 100)
"""n, d and c at which the steps are held against their matrix products."""
FIT_FROM, FIT_WITHIN, RATIO = 10_000, 0.10, 1.5
SLACK = 64 * 10**6
WIDE = (512, 100)
"""d and c of the runs whose memory is watched."""
FEW = {"unlearn": 200, "influence": 200, "evaluate": 3_000}
"""Samples of the run that stands for the program itself; an evaluation needs every class in each of its splits."""
PROBED = 500
"""Test samples of a class that the evaluation's probe is trained on at most, half of the test samples besides."""
HUGE, HUGE_LIMIT = (1_000_000, 2_048, 1_000), 8 * 10**9
DAMPING = closed_form.Damping(0.01)


@dataclass(frozen=True)
class Case:
    """H (n, d+1), labels (n,) and a head W (c, d+1) that is right on most rows."""

    h: Tensor
    labels: Tensor
    head: Tensor

    @property
    def problem(self) -> ascent.Objective:
        """The loss with equal weights."""
        classes = len(self.head)
        rows = torch.ones(classes, dtype=torch.bool)
        return ascent.Objective(self.h, self.members, rows, closed_form.uniform(len(self.h)))

    @property
    def members(self) -> objective.Members:
        """Each row's own label."""
        return objective.Members(self.labels, len(self.head))


def case(n: int, d: int, c: int) -> Case:
    """Random features around the rows of a random head."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(c, d + 1, generator=generator, dtype=torch.float64)
    labels = torch.randint(c, (n,), generator=generator)
    h = torch.ones(n, d + 1, dtype=torch.float64)
    for rows in blocks(n, d):
        h[rows, :d] = torch.randn(rows.stop - rows.start, d, generator=generator, dtype=torch.float64)
        h[rows, :d] += head[labels[rows], :d] * (5 / d**0.5)
    return Case(h, labels, head)


def _products(made: Case, each: Callable[[Tensor], None]) -> None:
    for rows in blocks(len(made.h), max(made.head.shape)):
        each(made.h[rows])


def score_products(made: Case) -> None:
    """The five products of the scores."""
    gradient, width = torch.zeros_like(made.head), max(made.head.shape)
    a = made.h.new_ones(next(blocks(len(made.h), width)).stop, len(made.head))
    _products(made, lambda h: gradient.addmm_(torch.mm(h, made.head.T).T, h).addmm_(a[: len(h)].T, h))
    _products(made, lambda h: torch.mm(torch.mm(h, made.head.T), gradient))


def step_products(made: Case) -> None:
    """The two products of a step."""
    gradient = torch.zeros_like(made.head)
    _products(made, lambda h: gradient.addmm_(torch.mm(h, made.head.T).T, h))


def look_products(made: Case) -> None:
    """The one product of a look."""
    _products(made, lambda h: torch.mm(h, made.head.T))


STAGES: dict[str, tuple[Callable[[Case], Any], Callable[[Case], None]]] = {
    "scores": (lambda made: closed_form.influence(made.h, made.labels, made.head, DAMPING), score_products),
    "step": (lambda made: made.problem.at(made.head), step_products),
    "look": (lambda made: objective.share_in(made.h, made.head, made.members), look_products),
}


def taken(work: Callable[[Case], Any], made: Case) -> float:
    """Seconds."""
    start = time.perf_counter()
    work(made)
    return time.perf_counter() - start


def measured(made: Case, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each stage and of its products, alternating, with as many threads as the tool gives such a step."""
    found: dict[str, dict[str, list[float]]] = {}
    with objective.threads_for(len(made.h) * made.head.numel()):
        for name, (work, products) in STAGES.items():
            taken(work, made), taken(products, made)
            pairs = [(taken(work, made), taken(products, made)) for _ in range(repeats)]
            found[name] = {"seconds": [one for one, _ in pairs], "products": [other for _, other in pairs]}
    return found


ROUNDS = 12


def along_n(quick: bool) -> list[dict[str, Any]]:
    """Each stage at every n, the sizes in turn, round after round: what disturbs one minute does not fall on one size."""
    sizes = SIZES[2:5] if quick else SIZES[2:]
    made = {n: case(n, 256, 100) for n in sizes}
    found: dict[int, dict[str, dict[str, list[float]]]] = {n: {name: {"seconds": []} for name in STAGES} for n in sizes}
    for _ in range(2 if quick else ROUNDS):
        for n in sizes:
            with objective.threads_for(n * made[n].head.numel()):
                for name, (work, _) in STAGES.items():
                    times = max(1, 300_000 // n)  # as long a look at a small size as at a larger one
                    found[n][name]["seconds"].append(sum(taken(work, made[n]) for _ in range(times)) / times)
    for n in sizes:
        said = ", ".join(f"{name} {min(run['seconds']):.4f} s" for name, run in found[n].items())
        print(f"n = {n:,}, d = 256, c = 100: {said}", flush=True)
    return [{"along": "n", "n": n, "d": 256, "c": 100, "stages": found[n]} for n in sizes]


def swept(quick: bool) -> list[dict[str, Any]]:
    """Every size along n in turns, then along c and d, the others in the middle."""
    cases = (
        {("small n", n, 256, 100) for n in SIZES[:2]}
        | {("c", 10_000, 512, c) for c in CLASSES}
        | {("d", 10_000, d, 100) for d in WIDTHS}
    )
    found = along_n(quick)
    for along, n, d, c in sorted(cases):
        runs = measured(case(n, d, c), 9)
        found.append({"along": along, "n": n, "d": d, "c": c, "stages": runs})
        said = ", ".join(f"{name} {statistics.median(run['seconds']):.4f} s" for name, run in runs.items())
        print(f"n = {n:,}, d = {d:,}, c = {c:,}: {said}", flush=True)
    return found


def fit(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float, float]:
    """a, b of a + b·n by least squares of the relative error, and the largest relative error."""
    n, t = np.asarray(sizes, float), np.asarray(seconds, float)
    system = np.stack([1 / t, n / t], axis=1)
    (a, b), *_ = np.linalg.lstsq(system, np.ones(len(n)), rcond=None)
    return float(a), float(b), float(np.abs((a + b * n) / t - 1).max())


def fits(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The fit of each stage along n, from its quickest rounds: what disturbs one only ever adds to it."""
    rows = [one for one in found if one["along"] == "n" and one["n"] >= FIT_FROM]
    made = {}
    for stage in STAGES:
        a, b, worst = fit([one["n"] for one in rows], [min(one["stages"][stage]["seconds"]) for one in rows])
        made[stage] = {"a": a, "b": b, "worst": worst}
    return made


# --- memory


@dataclass(frozen=True)
class Held:
    """Largest memory of a process that no file backs, and seconds."""

    bytes: int
    seconds: float
    told: str = ""


def watched(command: Sequence[str]) -> Held:
    """Run a process and look at its RssAnon until it ends."""
    start, most = time.perf_counter(), 0
    done = threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:

        def look() -> None:
            nonlocal most
            while not done.wait(0.005):
                for line in _status(process.pid):
                    most = max(most, int(line.split()[1]) * 1024)

        thread = threading.Thread(target=look)
        thread.start()
        told, _ = process.communicate()
        done.set()
        thread.join()
        assert process.returncode in (0, 3), told
    return Held(most, time.perf_counter() - start, told)


def _status(pid: int) -> Iterator[str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return
    yield from (line for line in lines if line.startswith("RssAnon"))


def written(place: Path, n: int, d: int, c: int, name: str = "features", shift: float = 0.0) -> tuple[Path, Path]:
    """A file of features, repeated with a change so that no two rows are the same, and a checkpoint with its head."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(c, d, generator=generator)
    labels = torch.randint(c, (n,), generator=generator)
    noise = torch.randn(10_000, d, generator=generator)

    def pieces() -> Iterator[Tensor]:
        for start in range(0, n, len(noise)):
            rows = labels[start : start + len(noise)]
            yield noise[: len(rows)].roll(start // len(noise), 1) + head[rows] * (5 / d**0.5) + shift

    features, model = place / f"{name}.safetensors", place / "model.safetensors"
    vectors.write(features, (n, d), pieces(), {"labels": labels.numpy()}, {"head": "fc", "precision": "float32"})
    save_file({"fc.weight": head, "fc.bias": torch.zeros(c)}, model)
    return features, model


def unlearning(place: Path, n: int, how: Sequence[str]) -> list[str]:
    """The command line that unlearns n rows of a file, as samples, to a target."""
    features, model = written(place, n, *WIDE)
    target = ["--method", "imu", "--until", "forget.accuracy<=0.5", "--max-steps", "20"]
    return [
        "unlearn",
        str(model),
        "--features",
        str(features),
        *target,
        "-o",
        str(place / "out.safetensors"),
        "--force",
        *how,
    ]


def scoring(place: Path, n: int, how: Sequence[str]) -> list[str]:
    """The command line that scores n rows of a file and lists them all."""
    features, model = written(place, n, *WIDE)
    return ["influence", str(model), "--features", str(features), "--format", "csv", *how]


def evaluating(place: Path, n: int, how: Sequence[str]) -> list[str]:
    """The command line that evaluates a third of n forget, test and retain samples each, as samples."""
    features, model = written(place, n // 3, *WIDE)
    more = [
        text
        for name, shift in (("test", 0.001), ("retain", 0.002))
        for text in (f"--{name}", str(written(place, n // 3, *WIDE, name, shift)[0]))
    ]
    return ["evaluate", str(model), "--features", str(features), *more, "--original", str(model), *how]


def memory(quick: bool) -> list[dict[str, Any]]:
    """Memory of whole runs: a small one is what the program itself takes, the others are counted beyond it."""
    (d, c), found = WIDE, []
    imu, sizes = [sys.executable, "-m", "imu_cli"], (20_000, 50_000) if quick else (20_000, 100_000, 300_000)
    held, streamed = ["--max-memory", "100GB"], ["--max-memory", "1MB"]
    kinds: dict[str, tuple[Callable[[Path, int, Sequence[str]], list[str]], dict[str, list[str]]]] = {
        "unlearn": (unlearning, {"held": held, "streamed": streamed}),
        "influence": (scoring, {"held": held, "streamed": streamed}),
        "evaluate": (evaluating, {"read from files": []}),
    }
    with common.folder("scaling") as place:
        for command, (line, hows) in kinds.items():
            os.environ["IMU_CACHE_DIR"] = str(place / f"cache-{command}")
            few = watched([*imu, *line(place, FEW[command], []), "--quiet"])
            for n, (how, more) in itertools.product(sizes, hows.items()):
                os.environ["IMU_CACHE_DIR"] = str(
                    place / f"cache-{command}-{n}-{how}"
                )  # or scores came from the last run
                taken = watched([*imu, *line(place, n, more), "--quiet"])
                bound = SLACK + (2 * n * (d + 1) * 4 if how == "held" else 0)
                if command == "evaluate":
                    bound += 2 * 8 * d * min(PROBED * c, n // 6)
                row = {"command": command, "n": n, "d": d, "c": c, "how": how, "bound": bound}
                found.append({**row, "beyond": taken.bytes - few.bytes, "base": few.bytes, "seconds": taken.seconds})
                console.print(
                    f"{command}, n = {n:,}, {how}: {(taken.bytes - few.bytes) / 1e6:,.0f} MB beyond a run on {FEW[command]:,} "
                    f"samples, allowed {bound / 1e6:,.0f} MB"
                )
    return found


def huge() -> dict[str, Any]:
    """The largest case, from a file, in a process of its own."""
    with common.folder("huge") as place:
        features, model = written(place, *HUGE)
        command = [sys.executable, "-m", "imu_cli", "influence", str(model), "--features", str(features), "--no-cache"]
        held = watched([*command, "--max-memory", "4GB", "--show", "3"])
    n, d, c = HUGE
    took = re.search(r"λ.*", held.told)
    return {"n": n, "d": d, "c": c, "bytes": held.bytes, "seconds": held.seconds, "told": took.group(0) if took else ""}


# --- report


def criteria(found: dict[str, Any]) -> list[Criterion]:
    """What was promised."""
    made = []
    for stage, one in found["fits"].items():
        what = f"{stage}: a + b·n from 10^4 to 10^6, largest error"
        made.append(Criterion(what, f"≤ {FIT_WITHIN:.0%}", f"{one['worst']:.1%}", one["worst"] <= FIT_WITHIN))
    for stage, run in found["judged"]["stages"].items():
        pairs = zip(run["seconds"], run["products"], strict=True)
        ratio = statistics.median(one / other for one, other in pairs)
        made.append(
            Criterion(
                f"{stage} ÷ its own matrix products at n, d, c = {JUDGED}", f"≤ {RATIO}", f"{ratio:.2f}", ratio <= RATIO
            )
        )
    return made


def memory_criteria(found: Sequence[dict[str, Any]]) -> list[Criterion]:
    """What was promised of the memory of a run."""
    return [
        Criterion(
            f"memory of {one['command']}, n = {one['n']:,}, {one['how']}",
            f"≤ {one['bound'] / 1e6:,.0f} MB", f"{one['beyond'] / 1e6:,.0f} MB", one["beyond"] <= one["bound"],
        )
        for one in found
    ]  # fmt: skip


def huge_criteria(found: dict[str, Any]) -> list[Criterion]:
    """What was promised of the largest case."""
    size = found["bytes"]
    what = "memory of influence, 1,000,000 x 2,048 features, 1,000 classes"
    return [Criterion(what, "≤ 8 GB", f"{size / 1e9:.2f} GB", size <= HUGE_LIMIT)]


def picture(found: Sequence[dict[str, Any]], fitted: dict[str, dict[str, float]]) -> None:
    """Seconds along n with the fitted lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = [one for one in found if one["along"] == "n"]
    figure, axes = plt.subplots(figsize=(6.4, 4))
    for stage in STAGES:
        n = np.array([one["n"] for one in rows])
        (line,) = axes.loglog(n, [min(one["stages"][stage]["seconds"]) for one in rows], "o", label=stage)
        axes.loglog(n, fitted[stage]["a"] + fitted[stage]["b"] * n, color=line.get_color(), linewidth=1)
    axes.set(xlabel="forget samples n", ylabel="seconds", title="256 features, 100 classes, two cores; lines: a + b n")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(common.RESULTS / "scaling.png", dpi=120)


def main() -> None:
    """Measure, print and keep."""
    parser: argparse.ArgumentParser = common.parser(__doc__, threads=os.cpu_count() or 1)
    parser.add_argument("--huge", action="store_true", help="the 8.2 GB file, and nothing else (ten minutes and more)")
    parser.add_argument("--memory", action="store_true", help="the memory of whole commands, and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = common.environment(with_checkpoint=False)
    if options.huge:
        found = {"huge": huge()}
        checked = huge_criteria(found["huge"])
        common.keep("scaling_huge", options.quick, {**found, "criteria": common.verdicts(checked)}, started)
        common.stop(checked)
    if options.memory:
        taken = memory(options.quick)
        checked = memory_criteria(taken)
        common.keep("memory", options.quick, {"memory": taken, "criteria": common.verdicts(checked)}, started)
        common.stop(checked)
    sweep = swept(options.quick)
    n, d, c = (20_000, 512, 100) if options.quick else JUDGED
    judged = {"n": n, "d": d, "c": c, "stages": measured(case(n, d, c), 9)}
    found = {"sweep": sweep, "fits": fits(sweep), "judged": judged}
    rows = [[name, *(f"{value:.3g}" for value in one.values())] for name, one in found["fits"].items()]
    common.table("a + b·n", ("stage", "a, s", "b, s", "largest error"), rows)
    checked = criteria(found)
    if not options.quick:
        picture(sweep, found["fits"])
    common.keep("scaling", options.quick, {**found, "criteria": common.verdicts(checked)}, started)
    common.stop(checked)


if __name__ == "__main__":
    main()
