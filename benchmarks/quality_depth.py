"""What does forgetting cost where the last stage moves, and not the head alone: the demoted teacher, beside matched unlearning?

A ResNet-20 of ../shared on CIFAR-10. As in the pipeline, a random half of the test set chooses (anchor, targets, guard); every
figure on test data is of the other half, and that on retained data of all other training images. 37, 500 and 5,000 random images,
five seeds; then ``cifar10_resnet20_b`` beside its retrained models: the random 5,000 and the airplanes.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from typing import Any

import common
import torch
from torch import Tensor

from imu_cli.commands import held_out, opening, scope
from imu_cli.config.commands import UnlearnConfig
from imu_cli.events import Silent
from imu_cli.features import allocation
from imu_cli.features.cut import Blend, Kept, Upper
from imu_cli.linear import margins
from imu_cli.models import scopes
from imu_cli.samples.manifest import open_source
from imu_cli.statistics import metrics
from imu_cli.unlearning import scenario, targets
from imu_cli.unlearning.demotion.training import Anchor, Forgotten, Schedule, Trained, Training, Unseen
from imu_cli.unlearning.targets import Comparison, HeldOut, Limits

SIZES, SEEDS = (37, 500, 5000), (0, 1, 2, 3, 4)
MAX_AUC = UnlearnConfig().max_auc


@dataclass
class Network:
    """A network with what enters its last stage kept for all of CIFAR-10, and its answers before anything moved."""

    upper: Upper
    scope: scopes.Scope
    start: dict[str, Tensor]
    train: Kept
    test: Kept
    train_labels: Tensor
    test_labels: Tensor
    train_logits: Tensor
    test_logits: Tensor
    test_features: Tensor

    def answers(self, kept: Kept, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits (k, c) of some rows under the weights as they are."""
        with torch.no_grad():
            f, z = zip(*(self.upper(kept, part) for part in rows.split(256)), strict=True)
        return torch.cat(f), torch.cat(z).double()

    def put(self, weights: dict[str, Tensor]) -> None:
        """Give it these weights."""
        with torch.no_grad():
            for name, parameter in self.scope.parameters.items():
                parameter.copy_(weights[name])


def network(name: str, given: str = "last-block") -> Network:
    """A checkpoint of ../shared, opened as the pipeline does."""
    config = common.unlearn_config(forget=["index=0:8"])
    opened = opening.open_all(common.shared() / "checkpoints" / f"{name}.safetensors", config, Silent())
    assert opened.network is not None
    found = scopes.find(opened.network.model, opened.network.probe, given, opened.head.module)
    upper = scope._upper(opened, opened.network, found)
    train, test = (open_source(common.batches(), role) for role in ("data", "test"))
    kept = [upper.keep(samples, 256, 2**40, lambda: common.scratch(), lambda _: None) for samples in (train, test)]
    for parameter in found.parameters.values():
        parameter.requires_grad_(True)
    labels = [torch.tensor(list(samples.labels)) for samples in (train, test)]
    start = {key: value.detach().clone() for key, value in found.parameters.items()}
    made = Network(upper, found, start, *kept, *labels, torch.empty(0), torch.empty(0), torch.empty(0))
    made.train_logits = made.answers(made.train, torch.arange(len(train)))[1]
    made.test_features, made.test_logits = made.answers(made.test, torch.arange(len(test)))
    return made


@dataclass(frozen=True)
class Judged:
    """What the model does, on data that chose nothing; shares from 0 to 1."""

    forget: float
    retain: float
    test: float
    unseen: float
    auc: float
    drop: float
    passes: float = 0.0
    steps: int = 0
    seconds: float = 0.0


def halves(seed: int) -> tuple[Tensor, Tensor]:
    """Rows of the test set that may choose, and those that judge."""
    test = open_source(common.batches(), "test")
    mine = torch.tensor(held_out.half(test, seed))
    rest = torch.ones(len(test), dtype=torch.bool)
    rest[mine] = False
    return mine, rest.nonzero().squeeze(1)


def judged(net: Network, rows: Tensor, judge: Tensor, before: bool = False, every: int = 1) -> Judged:
    """Accuracies and membership AUC of the weights as they are, or of the original."""
    stays = torch.ones(len(net.train), dtype=torch.bool)
    stays[rows] = False
    others = stays.nonzero().squeeze(1)[::every]
    if before:
        zf, zr, zt = net.train_logits[rows], net.train_logits[others], net.test_logits[judge]
    else:
        zf, zr, zt = net.answers(net.train, rows)[1], net.answers(net.train, others)[1], net.answers(net.test, judge)[1]
    yf, yr, yt = net.train_labels[rows], net.train_labels[others], net.test_labels[judge]
    right = zt.argmax(dim=1) == yt
    share = lambda z, y: float((z.argmax(dim=1) == y).double().mean())  # noqa: E731
    was = float((net.test_logits[judge].argmax(dim=1) == yt).double().mean())
    auc = margins.weighted_auc(margins.margins(zf, yf), margins.margins(zt, yt), margins.class_match(yf, yt))
    return Judged(
        share(zf, yf),
        share(zr, yr),
        share(zt, yt),
        metrics.class_matched_accuracy(right, yt, yf).value,
        auc,
        was - share(zt, yt),
    )


def forget(
    net: Network, rows: Tensor, choose: Tensor, seed: int, apart: float | None = None, **changed: Any
) -> tuple[Trained, Training, float]:
    """Train as the pipeline does, from the original's weights."""
    net.put(net.start)
    order = torch.randperm(len(choose), generator=torch.Generator().manual_seed(seed))
    aside = round((scope.UNSEEN_SHARE if apart is None else apart) * len(choose))
    seen, held = (
        (choose[order[:aside].sort().values], choose[order[aside:].sort().values]) if aside else (choose, choose)
    )
    labels = net.train_labels[rows]
    plan = scenario.plan("sample", "", labels, 10, "auto")
    same = torch.eye(10, dtype=torch.float64)
    beside = Comparison(
        plan,
        labels,
        None,
        HeldOut(net.test_logits[choose], net.test_labels[choose], torch.ones(len(choose), dtype=torch.bool)),
    )
    hits = int((net.train_logits[rows].argmax(dim=1) == labels).sum())
    goal, _ = targets.target(plan, None, beside, same, hits, len(rows))
    limits = Limits(goal, 0, max_drop=0.01, follows=True, n=len(rows), hits=hits, m=len(seen))
    anchor = Anchor(
        lambda at: net.upper(net.test, held[at]), net.test_logits[held], net.test_features[held],
        lambda at, others, share: net.upper(net.test, held[at], Blend(held[others], share)),
    )  # fmt: skip
    unseen = Unseen(
        lambda at: net.upper(net.test, seen[at]),
        net.test_logits[seen],
        net.test_labels[seen],
        torch.ones(len(seen), dtype=torch.bool),
    )
    weights = changed.pop("weights", torch.ones(len(rows), dtype=torch.float64))
    forgotten = Forgotten(lambda at: net.upper(net.train, rows[at]), net.train_logits[rows], labels, None, weights)
    schedule = replace(Schedule(learning_rate=scope.LEARNING_RATE, seed=seed), **changed)
    work = Training(
        net.scope.parameters, plan, forgotten, anchor, unseen, limits, schedule, max_auc=beside.auc_bound(MAX_AUC, same)
    )
    begun = time.perf_counter()
    for item in work.train():
        if isinstance(item, Trained):
            net.put(item.weights)
            return item, work, time.perf_counter() - begun
    raise AssertionError("a training ends")


def main() -> None:
    """A line for each try."""
    given = common.parser(__doc__)
    given.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    given.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the schedule, for a try")
    given.add_argument("--every", type=int, default=1, help="judge retained data by every N-th of it, for a try")
    options = given.parse_args()
    torch.set_num_threads(options.threads)
    changed = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in options.set)}
    with allocation.kept():
        tries(options, changed)


def tries(options: argparse.Namespace, changed: dict[str, Any]) -> None:
    """A line for each size and seed."""
    net = network("cifar10_resnet20")
    for n in options.sizes:
        for seed in options.seeds:
            rows = torch.randperm(50000, generator=torch.Generator().manual_seed(seed))[:n].sort().values
            choose, judge = halves(seed)
            before = judged(net, rows, judge, before=True, every=options.every)
            trained, _, seconds = forget(net, rows, choose, seed, **changed)
            after = judged(net, rows, judge, every=options.every)
            print(
                n,
                seed,
                f"forget {after.forget:.4f} unseen {after.unseen:.4f} ({before.unseen:.4f}) retain {after.retain:.4f} drop {after.drop:+.4f} "
                f"auc {before.auc:.4f} -> {after.auc:.4f} steps {trained.steps}/{trained.batches} {trained.reason} {trained.fraction:.2f} {seconds:.0f}s",
                flush=True,
            )


if __name__ == "__main__":
    main()
