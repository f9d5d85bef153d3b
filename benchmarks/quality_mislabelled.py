"""Wrong labels: does a head that was trained on them lose them again, and does it find the right ones?

A fresh head on the 512 features of ``wide.py``, fitted on 5,000 CIFAR-10 images that its backbone has never seen, 500 of them
with a random wrong label; five seeds. (Features of images that the backbone knows lie so close to their class that a linear head
does not learn wrong labels.) The forget set is those 500, as ``imu unlearn --scenario mislabelled`` gets them: with the wrong
label, with or without a ``true_label`` column. The target is the held-out rate of these confusions; half of the test
set chooses, the other half measures, the 4,500 rightly labelled images only measure.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import common
import quality_samples as samples
import torch
from common import Cifar, Criterion, at_least
from torch import Tensor
from wide import IMAGES as KNOWN
from wide import wide

from imu_cli.commands import held_out
from imu_cli.influence import closed_form
from imu_cli.linear import objective, refits
from imu_cli.samples.manifest import open_source
from imu_cli.unlearning import ascent, scenario, targets
from imu_cli.unlearning.matched import fit
from imu_cli.unlearning.scenario import Plan
from imu_cli.unlearning.targets import Comparison, HeldOut, Limits, Look

IMAGES, WRONG, SEEDS, WEIGHT_DECAY = 5000, 500, 5, 1e-5
DEFAULTS = samples.DEFAULTS


@dataclass(frozen=True)
class Case:
    """A head fitted on some wrong labels, the forget set with both of its labels, and the data that choose and measure."""

    seed: int
    head: Tensor
    h: Tensor
    wrong: Tensor
    true: Tensor
    retain: tuple[Tensor, Tensor]
    held: HeldOut
    judge: tuple[Tensor, Tensor]
    plan: Plan
    goal: float

    @property
    def look(self) -> Callable[[Tensor], Look]:
        """What the run sees of a head."""
        return targets.looker(self.h, self.plan.members, self.head, self.held)


@dataclass(frozen=True)
class Found:
    """A head's shares: ``wrong`` of D_f predicted as its wrong label, ``true`` as its true one; retain and test accuracy."""

    method: str
    seed: int
    goal: float
    reached: bool
    reason: str
    wrong: float
    true: float
    retain: float
    test: float


def draw(data: Cifar, half: list[int], seed: int) -> Case:
    """Fit a head on 5,000 images, 500 of them with a wrong label, all from one seed."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(data.train) - KNOWN, generator=generator)[:IMAGES] + KNOWN
    h, true = data.train[rows], data.train_labels[rows]
    labels = true.clone()
    labels[:WRONG] = (
        true[:WRONG] + torch.randint(1, data.head.classes, (WRONG,), generator=generator)
    ) % data.head.classes
    everything = torch.ones(1, IMAGES, dtype=torch.bool)
    head = refits.fit(h, labels, everything, data.head.classes, WEIGHT_DECAY).heads[0]
    plan = scenario.plan("mislabelled", "benchmark", labels[:WRONG], data.head.classes, "auto")
    chooses = torch.zeros(len(data.test), dtype=torch.bool)
    chooses[torch.tensor(half)] = True
    held = targets.held_out(data.test[chooses], data.test_labels[chooses], ())
    hits = int(((h[:WRONG] @ head.T).argmax(1) == labels[:WRONG]).sum())
    unseen = Comparison(plan, labels[:WRONG], true[:WRONG], held)
    goal, _ = targets.target(plan, None, unseen, head, hits, WRONG)
    assert goal is not None
    return Case(
        seed, head, h[:WRONG], labels[:WRONG], true[:WRONG], (h[WRONG:], true[WRONG:]), held,
        (data.test[~chooses], data.test_labels[~chooses]), plan, goal,
    )  # fmt: skip


def _share(h: Tensor, head: Tensor, labels: Tensor) -> float:
    return float(((h @ head.T).argmax(dim=1) == labels).double().mean())


def judge(case: Case, method: str, head: Tensor, reason: str) -> Found:
    """Measure a head."""
    wrong = _share(case.h, head, case.wrong)
    return Found(
        method, case.seed, case.goal, wrong <= case.goal, reason, wrong, _share(case.h, head, case.true),
        _share(case.retain[0], head, case.retain[1]), _share(case.judge[0], head, case.judge[1]),
    )  # fmt: skip


def ascend(case: Case, weights: Tensor, method: str) -> Found:
    """Normalised ascent on the wrong labels to the target, whatever it costs."""
    problem = ascent.Objective(case.h, case.plan.members, case.plan.rows, weights)
    update = ascent.NormalisedStep(problem, DEFAULTS.step * float(torch.linalg.norm(case.head)))
    *_, last = ascent.ascend(case.head, update, case.look, Limits(case.goal, DEFAULTS.max_steps), lambda head: head)
    assert isinstance(last, ascent.Outcome)
    return judge(case, method, last.head, last.reason)


def uniform(case: Case) -> Found:
    """Plain gradient ascent."""
    return ascend(case, closed_form.uniform(WRONG), "ascent, uniform")


def imu(case: Case) -> Found:
    """Ascent with influence weights."""
    residuals = objective.residual(case.h @ case.head.T, objective.one_hot(case.wrong, len(case.head)))
    scores = closed_form.influence(case.h, residuals, closed_form.Damping.parse(DEFAULTS.damping)).scores
    return ascend(case, closed_form.weigh(scores, DEFAULTS.keep, DEFAULTS.clip_quantile).weights, "ascent, IMU")


def match(case: Case, *, knows: bool) -> Found:
    """Matched to the held-out margins of the wrong labels; true labels known or not."""
    aim = fit.aim(
        case.h, case.wrong, case.head, case.goal,
        Comparison(case.plan, case.wrong, case.true if knows else None, case.held),
        kind=case.plan.kind, by_accuracy=False, max_auc=DEFAULTS.max_auc,
    )  # fmt: skip
    problem = fit.prepare(
        case.h, case.wrong, case.head, aim.targets, case.held,
        damping=DEFAULTS.sigma_damping, class_factor=DEFAULTS.class_factor,
    )  # fmt: skip
    *_, last = fit.run(problem, aim, case.look, Limits(case.goal, 1, None, DEFAULTS.max_drop), lambda head: head, None)
    assert isinstance(last, fit.Matched)
    name = "matched, true labels known" if knows else "matched, only the wrong labels known"
    return judge(case, name, last.outcome.head, last.outcome.reason)


def main() -> None:
    """Measure, print and keep."""
    options = common.parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    started, data = common.environment(), wide(50_000)
    test = open_source(common.batches(), "test")
    cases = [draw(data, held_out.half(test, seed), seed) for seed in range(1 if options.quick else SEEDS)]
    found = [judge(case, "original", case.head, "") for case in cases]
    for case in cases:
        found += [uniform(case), imu(case), match(case, knows=True), match(case, knows=False)]
    rows = []
    for method in dict.fromkeys(item.method for item in found):
        those = [item for item in found if item.method == method]
        means = (samples.mean([getattr(item, name) for item in those]) for name in ("wrong", "true", "retain", "test"))
        rows.append([method, *(common.percent(value) for value in means)])
    columns = ("method", "as the wrong label %", "as the true one %", "retain %", "test %")
    common.table(f"{WRONG} of {IMAGES} labels wrong, means over {len(cases)} seeds", columns, rows)
    checked = criteria(found)
    plain = {"runs": [asdict(item) for item in found], "criteria": common.verdicts(checked)}
    common.keep("quality_mislabelled", options.quick, plain, started)
    common.stop(checked)


def criteria(found: list[Found]) -> list[Criterion]:
    """Matched reaches the held-out rate, and the model is the better for it."""
    mine = [item for item in found if item.method == "matched, true labels known"]
    before = [item for item in found if item.method == "original"]
    hits = sum(item.reached for item in mine)
    gain = samples.mean([item.test for item in mine]) - samples.mean([item.test for item in before])
    return [
        Criterion(
            "matched: held-out rate of the confusions reached", f"{len(mine)} seeds", f"{hits} seeds", hits == len(mine)
        ),
        at_least("matched: gain of test accuracy", gain, 0.0),
    ]


if __name__ == "__main__":
    main()
