"""What does forgetting random samples cost: plain gradient ascent, IMU, and matched unlearning?

37, 500 and 5,000 random training samples of CIFAR-10 with the ResNet-20 of ../shared, five seeds each. As in the
pipeline, a random half of the test set chooses (targets, Σ, guard); every figure on test data is of the other half.
First to the held-out level whatever it costs, then within --max-drop, then the frontier: the cost at every level of
forgetting. --plot draws the frontiers from the raw results (needs matplotlib, which the package does not).
"""

import importlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import common
import torch
from common import Cifar, Criterion, at_least, at_most, percent
from torch import Tensor

from imu_cli.commands import held_out
from imu_cli.config.commands import UnlearnConfig
from imu_cli.errors import ImuError
from imu_cli.evaluation import attacks
from imu_cli.influence import closed_form
from imu_cli.linear import objective
from imu_cli.samples.manifest import open_source
from imu_cli.statistics import metrics
from imu_cli.statistics.intervals import Estimate
from imu_cli.unlearning import ascent, scenario, targets
from imu_cli.unlearning.matched import fit
from imu_cli.unlearning.scenario import Plan
from imu_cli.unlearning.targets import Comparison, HeldOut, Limits, Look

SIZES = (37, 500, 5000)
SEEDS = (0, 1, 2, 3, 4)
LEVELS = (0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.90)
LARGE, LARGE_SEEDS, LARGE_LEVELS = 5000, (0, 1), (0.98, 0.96, 0.94, 0.92)
"""The frontier from this size on has fewer seeds and levels: a solve takes seconds there."""
DEFAULTS = UnlearnConfig()


@dataclass(frozen=True)
class Case:
    """One forget set with everything that its unlearning reads, and the data that only measure."""

    n: int
    seed: int
    data: Cifar
    rows: Tensor
    plan: Plan
    held: HeldOut
    judge_h: Tensor
    judge_labels: Tensor
    goal: float

    @property
    def h(self) -> Tensor:
        """H (n, d+1) of the forget set."""
        return self.data.train[self.rows]

    @property
    def labels(self) -> Tensor:
        """Labels (n,) of the forget set."""
        return self.data.train_labels[self.rows]

    @property
    def look(self) -> Callable[[Tensor], Look]:
        """What the run sees of a head: the forget set and the choosing half."""
        return targets.looker(self.h, self.plan.members, self.data.matrix, self.held)


@dataclass(frozen=True)
class Found:
    """What a method ended with on one case; shares as fractions, ``test`` of the measuring half.

    ``goal`` is the share of D_f that was aimed at, ``reached`` whether it was met; ``auc`` is the membership AUC against the
    measuring half, 0.5 where D_f looks unseen; None fields were not measured.
    """

    method: str
    n: int
    seed: int
    goal: float
    reached: bool
    reason: str
    steps: int
    head_change: float
    forget: float
    retain: float
    retain_drop: float
    test: float
    test_drop: float
    auc: float
    over_unlearned: float | None


def draw(data: Cifar, half: Sequence[int], n: int, seed: int) -> Case:
    """N random training samples; the choosing half of test sets their target."""
    rows = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:n].sort().values
    labels = data.train_labels[rows]
    plan = scenario.plan("sample", "benchmark", labels, data.head.classes, "auto")
    chooses = torch.zeros(len(data.test), dtype=torch.bool)
    chooses[torch.tensor(half)] = True
    held = targets.held_out(data.test[chooses], data.test_labels[chooses], ())
    hits = int(((data.train[rows] @ data.matrix.T).argmax(dim=1) == labels).sum())
    goal, _ = targets.target(plan, None, Comparison(plan, labels, None, held), data.matrix, hits, n)
    assert goal is not None
    return Case(n, seed, data, rows, plan, held, data.test[~chooses], data.test_labels[~chooses], goal)


def judge(case: Case, method: str, goal: float, head: Tensor, steps: int, reason: str) -> Found:
    """Measure a head on D_f, on all other training samples, and on the measuring half of test."""
    stays = torch.ones(len(case.data.train), dtype=torch.bool)
    stays[case.rows] = False
    retain, retain_drop = _accuracy(case.data.train[stays], case.data.train_labels[stays], case.data.matrix, head)
    test, test_drop = _accuracy(case.judge_h, case.judge_labels, case.data.matrix, head)
    pool = attacks.class_matched(case.labels, case.judge_labels, torch.Generator().manual_seed(case.seed))
    mine = attacks.logit_confidence(case.h @ head.T, case.labels)
    theirs = attacks.logit_confidence(case.judge_h[pool] @ head.T, case.judge_labels[pool])
    over = attacks.over_unlearned(mine, theirs)
    forget = metrics.accuracy(case.h @ head.T, case.labels, census=True).value
    change = float(torch.linalg.norm(head - case.data.matrix) / torch.linalg.norm(case.data.matrix))
    return Found(
        method, case.n, case.seed, goal, forget <= goal, reason, steps, change, forget, retain, retain_drop, test, test_drop,
        attacks.auc(mine, theirs).value, over.value if isinstance(over, Estimate) else None,
    )  # fmt: skip


def _accuracy(h: Tensor, labels: Tensor, before: Tensor, after: Tensor) -> tuple[float, float]:
    was, now = (metrics.predictions(h @ head.T) == labels for head in (before, after))
    return metrics.accuracy_of(now).value, metrics.accuracy_drop(was, now).value


# Methods: a case, the share of D_f to reach and the guard (None: no guard) to a measured head


def ascend(case: Case, limits: Limits, weights: Tensor, method: str) -> Found:
    """Normalised ascent on all rows, the tool's default step, until the limits say stop."""
    problem = ascent.Objective(case.h, case.plan.members, case.plan.rows, weights)
    update = ascent.NormalisedStep(problem, DEFAULTS.step * float(torch.linalg.norm(case.data.matrix)))
    *_, last = ascent.ascend(case.data.matrix, update, case.look, limits, case.data.head.rounded)
    assert isinstance(last, ascent.Outcome)
    return judge(case, method, limits.target or 0.0, last.head, len(last.steps), last.reason)


def uniform(case: Case, limits: Limits) -> Found:
    """Plain gradient ascent."""
    return ascend(case, limits, closed_form.uniform(case.n), "ascent, uniform")


def imu(case: Case, limits: Limits) -> Found:
    """Ascent with influence weights, every negative score kept."""
    residuals = objective.residual(case.h @ case.data.matrix.T, objective.one_hot(case.labels, case.data.head.classes))
    scores = closed_form.influence(case.h, residuals, closed_form.Damping.parse(DEFAULTS.damping)).scores
    weights = closed_form.weigh(scores, DEFAULTS.keep, DEFAULTS.clip_quantile).weights
    return ascend(case, limits, weights, "ascent, IMU")


def _match(case: Case, limits: Limits, by_accuracy: bool, method: str, max_auc: float | None = None) -> Found:
    head, held = case.data.matrix, case.held
    goal = limits.target
    assert goal is not None
    aim = fit.aim(
        case.h, case.labels, head, goal, Comparison(case.plan, case.labels, None, held),
        kind=case.plan.kind, by_accuracy=by_accuracy, max_auc=max_auc,
    )  # fmt: skip
    problem = fit.prepare(
        case.h, case.labels, head, aim.targets, held, damping=DEFAULTS.sigma_damping, class_factor=DEFAULTS.class_factor
    )
    *_, last = fit.run(problem, aim, case.look, limits, case.data.head.rounded, DEFAULTS.rho)
    assert isinstance(last, fit.Matched)
    return judge(case, method, goal, last.outcome.head, len(last.points), last.outcome.reason)


def matched(case: Case, limits: Limits) -> Found:
    """Matched to held-out margins, the default where --test is given: on to --max-auc."""
    return _match(case, limits, False, "matched", DEFAULTS.max_auc)


def matched_share(case: Case, limits: Limits) -> Found:
    """The same with --max-auc 1: the accuracy on D_f alone decides."""
    return _match(case, limits, False, "matched, --max-auc 1", 1.0)


def matched_until(case: Case, limits: Limits) -> Found:
    """Matched to an accuracy that the user names, with held-out data at hand: --until."""
    return _match(case, limits, True, "matched")


Method = Callable[[Case, Limits], Found]
MAIN: tuple[Method, ...] = (uniform, imu, matched_share, matched)
LEVELLED: tuple[Method, ...] = (uniform, imu, matched_until)


def attempt(method: Method, case: Case, goal: float, guard: float | None) -> Found | None:
    """What a method reaches; None where the tool refuses (nothing on the path stays within the guard)."""
    try:
        return method(case, Limits(goal, DEFAULTS.max_steps, None, guard))
    except ImuError as error:
        common.console.print(f"n = {case.n}, seed {case.seed}, {method.__name__}: {error}", style="dim")
        return None


def to_goal(cases: Sequence[Case], guard: float | None) -> list[Found]:
    """Every method to the held-out level, with or without the guard."""
    found = [attempt(method, case, case.goal, guard) for case in cases for method in MAIN]
    return [item for item in found if item is not None]


def frontier(cases: Sequence[Case], levels: Sequence[float] = LEVELS) -> Iterator[Found]:
    """Every method to every level of forgetting that the original is above, no guard."""
    for case in cases:
        start = case.look(case.data.matrix).forget
        if case.n >= LARGE and case.seed not in LARGE_SEEDS:
            continue
        for method in LEVELLED:
            for level in LARGE_LEVELS if case.n >= LARGE else levels:
                made = attempt(method, case, level, None) if level < start else None
                if made is not None:
                    yield made


# Tables


def _values(found: Sequence[Found], name: str) -> list[float]:
    return [float(getattr(item, name)) for item in found if getattr(item, name) is not None]


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def _spread(values: Sequence[float]) -> float:
    """Standard deviation over the seeds."""
    middle = mean(values)
    return math.sqrt(sum((value - middle) ** 2 for value in values) / max(len(values) - 1, 1))


def _cell(found: Sequence[Found], name: str, scale: float = 100, digits: int = 2) -> str:
    values = [scale * value for value in _values(found, name)]
    if not values:
        return "–"
    return f"{mean(values):.{digits}f}" + (f" ± {_spread(values):.{digits}f}" if len(values) > 1 else "")


def _of(found: Sequence[Found], n: int, method: str) -> list[Found]:
    return [item for item in found if (item.n, item.method) == (n, method)]


def show(title: str, found: Sequence[Found], before: Sequence[Found]) -> None:
    """One line per size and method: mean and standard deviation over the seeds."""
    rows = []
    for n in sorted({item.n for item in found}):
        for method in dict.fromkeys(item.method for item in (*before, *found)):
            those = _of((*before, *found), n, method)
            reached = "" if method == "original" else f"{sum(item.reached for item in those)}/{len(those)}"
            rows.append([
                str(n), method, reached, _cell(those, "steps", 1, 0), _cell(those, "head_change", digits=1),
                _cell(those, "forget"), _cell(those, "retain"), _cell(those, "retain_drop"), _cell(those, "test_drop"),
                _cell(those, "auc", 1, 3), _cell(those, "over_unlearned"),
            ])  # fmt: skip
    columns = (
        "n",
        "method",
        "reached",
        "steps",
        "ΔW %",
        "forget %",
        "retain %",
        "retain drop",
        "test drop",
        "AUC",
        "over-unl. %",
    )
    common.table(title, columns, rows, left=2)


def show_frontier(found: Sequence[Found]) -> None:
    """Retained accuracy and test drop at every level; in brackets the share of the seeds that reached it."""
    methods = list(dict.fromkeys(item.method for item in found))
    for n in sorted({item.n for item in found}):
        levels = sorted({item.goal for item in found if item.n == n}, reverse=True)
        seeds = len({item.seed for item in found if item.n == n})
        rows = [[f"{level:.0%}", *(_at(found, n, method, level) for method in methods)] for level in levels]
        title = f"n = {n}, {seeds} seeds: retain %, and test drop in points, at a forget accuracy of at most …"
        common.table(title, ("forget", *methods), rows)


def _at(found: Sequence[Found], n: int, method: str, level: float) -> str:
    those = [item for item in _of(found, n, method) if item.goal == level]
    done = [item for item in those if item.reached]
    if not done:
        return "–"
    some = "" if len(done) == len(those) else f" ({len(done)}/{len(those)})"
    return " ".join(percent(mean(_values(done, name))) for name in ("retain", "test_drop")) + some


# Criteria


def criteria(guarded: Sequence[Found], curve: Sequence[Found]) -> list[Criterion]:
    """What the project promised for random samples, against this run."""
    few = _of(guarded, 37, "matched")
    made = [
        at_least("n = 37, matched: mean retain", mean(_values(few, "retain")), 0.995),
        at_most("n = 37, matched: mean test drop", mean(_values(few, "test_drop")), 0.003),
    ]
    inside = [metrics.binomial_range(item.goal, item.n) for item in few]
    hits = sum(low <= item.forget <= high for item, (low, high) in zip(few, inside, strict=True))
    what = "n = 37, matched: D_f in the target's binomial interval"
    made.append(Criterion(what, f"{len(few)} seeds", f"{hits} seeds", hits == len(few)))
    made += [_retained(curve, "matched", level, least) for level, least in ((0.96, 0.992), (0.93, 0.975))]
    return made + [no_worse(curve, "matched", 500, name, LEVELS) for name in ("retain", "test")]


def _retained(curve: Sequence[Found], method: str, level: float, least: float) -> Criterion:
    at = [item for item in _of(curve, 500, method) if item.goal == level and item.reached]
    return at_least(
        f"n = 500, {method}, forget ≤ {level:.0%}: retain", mean(_values(at, "retain")) if at else 0.0, least
    )


def no_worse(curve: Sequence[Found], method: str, n: int, name: str, levels: Sequence[float]) -> Criterion:
    """At each of the levels that an ascent reaches: matched has at least as much, in the mean over the seeds."""
    gaps: list[tuple[float, str]] = []
    for level in levels:
        mine = [item for item in _of(curve, n, method) if item.goal == level and item.reached]
        for other in ("ascent, uniform", "ascent, IMU"):
            theirs = [item for item in _of(curve, n, other) if item.goal == level and item.reached]
            gap = mean(_values(mine, name)) - mean(_values(theirs, name)) if len(mine) == len(theirs) else -math.inf
            gaps += [(gap, f"{level:.0%}, {other}")] if theirs else []
    worst, where = min(gaps)
    said = f"{100 * worst:+.2f} points ({where})" if math.isfinite(worst) else f"not reached ({where})"
    what = f"n = {n}, {method} less ascent, {levels[0]:.0%} to {levels[-1]:.0%}: {name}, least"
    return Criterion(what, "≥ 0", said, worst >= 0)


# Plot


def plot(found: Sequence[Found], name: str) -> None:
    """Write the frontiers as a picture ``name``.png, if matplotlib is there."""
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        common.console.print("matplotlib is not installed: no picture; install it and run with --plot", style="dim")
        return
    sizes = sorted({item.n for item in found})
    figure, axes = pyplot.subplots(2, len(sizes), figsize=(4.5 * len(sizes), 7), squeeze=False, sharex=True)
    for column, n in enumerate(sizes):
        for row, (quantity, title) in enumerate(
            (("retain", "retain accuracy, %"), ("test_drop", "fall of test accuracy, points"))
        ):
            axis = axes[row][column]
            for method in dict.fromkeys(item.method for item in found):
                _curve(axis, _of(found, n, method), quantity, method)
            axis.set(title=f"{n} samples" if row == 0 else "", ylabel=title if column == 0 else "")
            axis.grid(alpha=0.3)
            if row == 1:
                axis.set_xlabel("accuracy on the forget set, %")
    axes[0][0].invert_xaxis()
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(common.RESULTS / f"{name}.png", dpi=120, metadata={"Software": None})
    common.console.print(f"plot: benchmarks/results/{name}.png", style="dim")


def _curve(axis: Any, found: Sequence[Found], name: str, label: str) -> None:
    """Means over the seeds with their standard deviations, at the levels that at least one seed reached."""
    points = [
        [i for i in found if i.goal == level and i.reached] for level in sorted({i.goal for i in found}, reverse=True)
    ]
    points = [those for those in points if those]
    x = [100 * mean(_values(those, "forget")) for those in points]
    y = [100 * mean(_values(those, name)) for those in points]
    error = [100 * _spread(_values(those, name)) for those in points]
    axis.errorbar(x, y, yerr=error, label=label, marker="o", markersize=3, capsize=2, linewidth=1)


def main() -> None:
    """Measure, print and keep."""
    parser = common.parser(__doc__)
    parser.add_argument("--plot", action="store_true", help="only draw the frontiers of the kept results")
    options = parser.parse_args()
    if options.plot:
        kept = json.loads((common.RESULTS / "quality_samples.json").read_text(encoding="utf-8"))
        plot([Found(**item) for item in kept["frontier"]], "quality_samples")
        return
    torch.set_num_threads(options.threads)
    started, data = common.environment(), common.cifar()
    test = open_source(common.batches(), "test")
    sizes, seeds = ((37, 500), (0,)) if options.quick else (SIZES, SEEDS)
    cases = [draw(data, held_out.half(test, seed), n, seed) for n in sizes for seed in seeds]
    before = [judge(case, "original", case.goal, data.matrix, 0, "") for case in cases]
    free, guarded = to_goal(cases, None), to_goal(cases, DEFAULTS.max_drop)
    show("To the held-out level, whatever it costs", free, before)
    show(
        f"The same within --max-drop {DEFAULTS.max_drop} on the choosing half (what imu unlearn does)", guarded, before
    )
    curve = list(frontier(cases))
    show_frontier(curve)
    checked = criteria(guarded, curve)
    kept = {"before": before, "to_held_out_level": free, "within_max_drop": guarded, "frontier": curve}
    plain = {name: [asdict(item) for item in items] for name, items in kept.items()}
    common.keep("quality_samples", options.quick, {**plain, "criteria": common.verdicts(checked)}, started)
    if not options.quick:
        plot(curve, "quality_samples")
    common.stop(checked)


if __name__ == "__main__":
    main()
