"""What does forgetting cost where the last stage moves, and not the head alone: the demoted teacher, beside matched unlearning?

A ResNet-20 of ../shared on CIFAR-10. As in the pipeline, a random half of the test set chooses (anchor, targets, guard); every
figure on test data is of the other half, and that on retained data of all other training images. 37, 500 and 5,000 random images,
five seeds; then ``cifar10_resnet20_b`` beside its retrained models: the random 5,000 and the airplanes.
"""

import argparse
import csv
import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import common
import torch
from torch import Tensor

from imu_cli.commands import held_out, opening, scope
from imu_cli.config.commands import UnlearnConfig
from imu_cli.evaluation import recovery
from imu_cli.events import Silent
from imu_cli.features import allocation
from imu_cli.features.cut import Blend, Kept, Upper
from imu_cli.influence import closed_form
from imu_cli.linear import margins
from imu_cli.models import scopes
from imu_cli.samples.manifest import open_source
from imu_cli.statistics import metrics
from imu_cli.unlearning import scenario, targets
from imu_cli.unlearning.demotion import preconditioning
from imu_cli.unlearning.demotion.loop import Trained
from imu_cli.unlearning.demotion.preconditioning import Bend
from imu_cli.unlearning.demotion.training import Anchor, Forgotten, Schedule, Training, Unseen
from imu_cli.unlearning.targets import Comparison, HeldOut, Limits

SIZES, SEEDS = (37, 500, 5000), (0, 1, 2, 3, 4)
PARTS = ("samples", "random5000", "airplanes")
MAX_AUC = UnlearnConfig().max_auc


@dataclass(frozen=True)
class Some:
    """What is kept of some samples of a set, by their places in the whole set."""

    kept: Kept
    at: Tensor


@dataclass
class Network:
    """A network with what enters its last stage kept for all of CIFAR-10, and its answers before anything moved."""

    upper: Upper
    scope: scopes.Scope
    start: dict[str, Tensor]
    train: Some
    test: Some
    train_labels: Tensor
    test_labels: Tensor
    train_logits: Tensor
    test_logits: Tensor
    test_features: Tensor

    def answers(self, some: Some, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits (k, c) of some rows under the weights as they are."""
        with torch.no_grad():
            f, z = zip(*(self.run(some, part) for part in rows.split(256)), strict=True)
        return torch.cat(f), torch.cat(z).double()

    def run(self, some: Some, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits (k, c) of some rows, differentiable."""
        return self.upper(some.kept, some.at[rows])

    def put(self, weights: dict[str, Tensor]) -> None:
        """Give it these weights."""
        with torch.no_grad():
            for name, parameter in self.scope.parameters.items():
                parameter.copy_(weights[name])


def network(name: str, given: str = "last-block", every: int = 1, also: Tensor | None = None) -> Network:
    """A checkpoint of ../shared, opened as the pipeline does; of the training images all, or every N-th and those that are named."""
    config = common.unlearn_config(forget=["index=0:8"])
    opened = opening.open_all(common.shared() / "checkpoints" / f"{name}.safetensors", config, Silent())
    assert opened.network is not None
    found = scopes.find(opened.network.model, opened.network.probe, given, opened.head.module)
    upper = scope.upper_part(opened, opened.network, found)
    train, test = (open_source(common.batches(), role) for role in ("data", "test"))  # type: ignore[arg-type]
    wanted = torch.ones(len(train), dtype=torch.bool)
    if also is not None:
        wanted[:] = False
        wanted[also] = True
        stays = (~wanted).nonzero().squeeze(1)
        wanted[stays[::every]] = True
    places = wanted.nonzero().squeeze(1)
    labels = [torch.tensor(list(samples.labels)) for samples in (train, test)]
    kept = [
        upper.keep(samples, 256, 2**40, common.scratch, lambda _: None)
        for samples in (train.subset(places.tolist()), test)
    ]
    for parameter in found.parameters.values():
        parameter.requires_grad_(True)
    start = {key: value.detach().clone() for key, value in found.parameters.items()}
    at = torch.full((len(train),), -1).index_copy_(0, places, torch.arange(len(places)))
    nothing = torch.empty(0)
    made = Network(
        upper,
        found,
        start,
        Some(kept[0], at),
        Some(kept[1], torch.arange(len(test))),
        *labels,
        nothing,
        nothing,
        nothing,
    )
    made.test_features, made.test_logits = made.answers(made.test, torch.arange(len(test)))
    made.train_logits = torch.zeros(len(train), made.test_logits.shape[1], dtype=torch.float64)
    made.train_logits[places] = made.answers(made.train, places)[1]
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
    stays = torch.ones(len(net.train_labels), dtype=torch.bool)
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
    aside = aside if len(choose) - aside >= scope.ANCHORED * len(rows) else 0
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
        lambda at: net.run(net.test, held[at]), net.test_logits[held], net.test_features[held],
        lambda at, others, share: net.upper(net.test.kept, held[at], Blend(held[others], share)),
    )  # fmt: skip
    unseen = Unseen(
        lambda at: net.run(net.test, seen[at]),
        net.test_logits[seen],
        net.test_labels[seen],
        torch.ones(len(seen), dtype=torch.bool),
    )
    weights = changed.pop("weights", torch.ones(len(rows), dtype=torch.float64))
    forgotten = Forgotten(lambda at: net.run(net.train, rows[at]), net.train_logits[rows], labels, None, weights)
    schedule = replace(Schedule(learning_rate=scope.LEARNING_RATE, seed=seed), **changed)
    work = Training(
        net.scope.parameters, plan, forgotten, anchor, unseen, limits, schedule, max_auc=beside.auc_bound(MAX_AUC, same),
        bends=bends(net, anchor),
    )  # fmt: skip
    begun = time.perf_counter()
    return _done(net, work), work, time.perf_counter() - begun


def by_influence(net: Network, rows: Tensor) -> Tensor:
    """Weights (k,) of some training images as ``--weights influence`` has them: √|score| at the head, clipped at a quantile."""
    net.put(net.start)
    options = UnlearnConfig()
    h = net.answers(net.train, rows)[0].double()
    head = net.upper.model.get_submodule(net.upper.layer)
    assert isinstance(head, torch.nn.Linear)
    matrix = torch.cat([head.weight.detach().double(), head.bias.detach().double().unsqueeze(1)], dim=1)
    features = torch.cat([h, torch.ones(len(h), 1, dtype=torch.float64)], dim=1)
    damping = closed_form.Damping.parse(options.damping)
    scores = closed_form.influence(features, net.train_labels[rows], matrix, damping).scores
    return closed_form.magnitude(scores, options.clip_quantile)


def forget_class(net: Network, choose: Tensor, seed: int, **changed: Any) -> Trained:
    """Train every airplane away as the pipeline does, with the anchor and the feature term."""
    net.put(net.start)
    rows = (net.train_labels == 0).nonzero().squeeze(1)
    labels = net.train_labels[rows]
    plan = scenario.plan("class", "", labels, 10, "auto")
    order = torch.randperm(len(choose), generator=torch.Generator().manual_seed(seed))
    aside = round(scope.UNSEEN_SHARE * len(choose))
    seen, held = choose[order[:aside].sort().values], choose[order[aside:].sort().values]
    held = held[net.test_labels[held] != 0]
    anchor = Anchor(lambda at: net.run(net.test, held[at]), net.test_logits[held], net.test_features[held])
    unseen = Unseen(
        lambda at: net.run(net.test, seen[at]), net.test_logits[seen], net.test_labels[seen], net.test_labels[seen] != 0
    )
    forgotten = Forgotten(
        lambda at: net.run(net.train, rows[at]),
        net.train_logits[rows],
        labels,
        None,
        torch.ones(len(rows), dtype=torch.float64),
    )
    hits = int((net.train_logits[rows].argmax(dim=1) == 0).sum())
    limits = Limits(targets.CLASS_TARGET, 0, max_drop=0.01, n=len(rows), hits=hits, m=int(unseen.kept.sum()))
    wanted = {"attraction": scope.ATTRACTION, "covariance": scope.COVARIANCE, **changed}
    schedule = replace(Schedule(learning_rate=scope.LEARNING_RATE, seed=seed), **wanted)
    work = Training(net.scope.parameters, plan, forgotten, anchor, unseen, limits, schedule, bends=bends(net, anchor))
    return _done(net, work)


def bends(net: Network, anchor: Anchor) -> dict[str, Bend]:
    """What turns the steps, as the pipeline has it."""
    return preconditioning.bends(net.upper.model, net.scope.parameters, anchor.run, len(anchor.logits), 256)


def _done(net: Network, work: Training) -> Trained:
    for item in work.train():
        if isinstance(item, Trained):
            net.put(item.weights)
            return item
    raise AssertionError("a training ends")


def class_figures(net: Network, judge: Tensor, seed: int, before: bool, every: int) -> dict[str, float]:
    """Forget, retained and kept test accuracy, and what a probe recalls of unseen airplanes."""
    rows = (net.train_labels == 0).nonzero().squeeze(1)
    others = (net.train_labels != 0).nonzero().squeeze(1)[::every]
    if before:
        net.put(net.start)
    (hf, zf), (ht, zt) = net.answers(net.train, rows), net.answers(net.test, judge)
    zr = net.answers(net.train, others)[1]
    yt = net.test_labels[judge]
    kept = yt != 0
    generator = torch.Generator().manual_seed(seed)
    probe = recovery.linear_probe(hf, net.train_labels[rows], ht, yt, (0,), generator)
    assert isinstance(probe, recovery.Probe)
    share = lambda z, y: float((z.argmax(dim=1) == y).double().mean())  # noqa: E731
    return {
        "forget": share(zf, net.train_labels[rows]), "retain": share(zr, net.train_labels[others]),
        "test_kept": share(zt[kept], yt[kept]), "test_forgotten": share(zt[~kept], yt[~kept]), "probe": probe.accuracy.value,
    }  # fmt: skip


def main() -> None:
    """The parts that are asked for, their criteria, and the raw results."""
    given = common.parser(__doc__)
    given.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    given.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the schedule, for a try")
    given.add_argument("--every", type=int, default=1, help="judge retained data by every N-th of it")
    given.add_argument("--weights", choices=("uniform", "influence"), default="uniform", help="what samples count")
    given.add_argument("--keep", default="quality_depth", help="name of the raw results")
    options = given.parse_args()
    torch.set_num_threads(options.threads)
    started = common.environment()
    changed = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in options.set)}
    found: dict[str, Any] = {"every": options.every, "changed": changed, "weights": options.weights}
    with allocation.kept():
        for part in options.parts:
            found[part] = PART[part](options, changed)
            common.keep(options.keep, options.quick, found, started)


def samples(options: argparse.Namespace, changed: dict[str, Any]) -> list[dict[str, Any]]:
    """Random images of the ResNet-20 trained by others."""
    return _sampled("cifar10_resnet20", options, changed, None)


def random_5000(options: argparse.Namespace, changed: dict[str, Any]) -> dict[str, Any]:
    """The random 5,000 beside the model that was retrained without them."""
    path = common.shared() / "checkpoints" / "random5000.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = torch.tensor([int(row["index"]) for row in csv.DictReader(file)])
    made = _sampled("cifar10_resnet20_b", options, changed, rows)
    again = network("cifar10_resnet20_b_without_random5000", every=options.every, also=rows)
    for case in made:
        _, judge = halves(case["seed"])
        case["retrained"] = asdict(judged(again, rows, judge, before=True, every=options.every))
        case["gap"] = gap(case["after"], case["retrained"])
        print("gap to the retrained model, points:", round(case["gap"], 3), flush=True)
    return {"runs": made}


def gap(one: dict[str, float], other: dict[str, float]) -> float:
    """Mean distance over forget, retain, test and AUC, in points."""
    return 100 * sum(abs(one[key] - other[key]) for key in ("forget", "retain", "test", "auc")) / 4


def _sampled(
    name: str, options: argparse.Namespace, changed: dict[str, Any], given: Tensor | None
) -> list[dict[str, Any]]:
    net, made = network(name), []
    for n in options.sizes if given is None else [len(given)]:
        for seed in options.seeds:
            draws = torch.Generator().manual_seed(seed)
            rows = torch.randperm(50000, generator=draws)[:n].sort().values if given is None else given
            choose, judge = halves(seed)
            before = judged(net, rows, judge, before=True, every=options.every)
            weighed = {"weights": by_influence(net, rows)} if options.weights == "influence" else {}
            trained, _, seconds = forget(net, rows, choose, seed, **changed, **weighed)
            after = judged(net, rows, judge, every=options.every)
            made.append(
                {"n": n, "seed": seed, "before": asdict(before), "after": asdict(after), "seconds": round(seconds, 1),
                 "steps": trained.steps, "batches": trained.batches, "fraction": trained.fraction, "reason": trained.reason}
            )  # fmt: skip
            print(_line(n, seed, before, after, trained, seconds), flush=True)
    return made


def _line(n: int, seed: int, before: Judged, after: Judged, trained: Trained, seconds: float) -> str:
    return (
        f"{n} {seed}: forget {after.forget:.4f} unseen {after.unseen:.4f} ({before.unseen:.4f}) retain {after.retain:.4f} "
        f"({before.retain:.4f}) drop {after.drop:+.4f} AUC {before.auc:.4f} -> {after.auc:.4f}; steps {trained.steps}/{trained.batches} "
        f"{trained.reason} {trained.fraction:.2f} {seconds:.0f} s"
    )


def airplanes(options: argparse.Namespace, changed: dict[str, Any]) -> list[dict[str, Any]]:
    """All airplanes beside the model that was retrained without them."""
    net, made = network("cifar10_resnet20_b"), []
    again = network(
        "cifar10_resnet20_b_without_airplane", every=options.every, also=(net.train_labels == 0).nonzero().squeeze(1)
    )
    for seed in options.seeds[:2]:
        choose, judge = halves(seed)
        case: dict[str, Any] = {"seed": seed, "before": class_figures(net, judge, seed, True, options.every)}
        case["retrained"] = class_figures(again, judge, seed, True, options.every)
        trained = forget_class(net, choose, seed, **changed)
        case |= {"after": class_figures(net, judge, seed, False, options.every), "steps": trained.steps}
        made.append(case)
        print(json.dumps(case), flush=True)
    return made


PART = {"samples": samples, "random5000": random_5000, "airplanes": airplanes}

if __name__ == "__main__":
    main()
