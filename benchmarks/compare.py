"""Beside the others: what do the methods of ``baselines/`` and ``imu unlearn`` come to on one checkpoint, before one judge?

Scenarios, cut and judge: ``compare_cases.py``. Settings of each method (rate, steps, coefficient) are chosen once a scenario, on seed 100's
draws, by the half of the test images that judges nothing; every trial is kept in ``results/comparison_trials.jsonl``. ``imu unlearn``
runs with its defaults, file to file, at the scopes ``head`` and ``last-block``; nothing of it is searched. Published IMU runs its own loop on
the whole network. Rows are appended to ``results/comparison.jsonl`` as they come, and what is there is not run again; docs/comparison.md
is made from them. The part ``published`` repeats the published loop on the checkpoint of ../shared/spec/measurements.md, with both borders
of its crops.
"""

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import compare_cases as cases
import torch
from baselines import METHODS, Settings, published_imu, retraining
from compare_cases import PARTS, SEARCHED, Body, Case, Run, Upper
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from imu_cli.commands import unlearn
from imu_cli.events import Silent

OURS = {"imu_head": "head", "imu_last_block": "last-block"}
PUBLISHED = {"published_imu": False, "published_imu_corrected": True}
ALL = ("original", "retrained", "imu_head", *METHODS, *PUBLISHED, "imu_last_block")
PUBLISHED_ON = "cifar10_resnet20"
BORDERS = {"mean": torch.tensor(common.PREPROCESS["mean"]), "black": published_imu.BLACK}
"""What crops see beyond an image: zeros after normalising, or before it as in the published transforms."""
STRIDE = 4.0
QUICK = "--quick"


class Passes:
    """Images that went through the first layer, and through the last stage."""

    def __init__(self) -> None:
        self.below = self.above = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """While the context lasts."""

        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            if isinstance(module, nn.Conv2d):
                self.below += len(given[0]) * (module.in_channels == 3)
                self.above += len(given[0]) * ((module.in_channels, module.out_channels) == (32, 64))

        handle = register_module_forward_pre_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def raw(name: str) -> Path:
    """Where rows are: ``results``, or ``scratch`` when quick."""
    return (common.scratch() if QUICK in sys.argv else common.RESULTS) / f"{name}.jsonl"


def kept(name: str) -> list[dict[str, Any]]:
    """Rows that are there."""
    path = raw(name)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def keep(name: str, row: dict[str, Any]) -> None:
    """Append a row."""
    with raw(name).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def upper_of(path: Path) -> Upper:
    """The last stage of a checkpoint whose lower layers are ``_b``'s."""
    return Upper(cases.network(path))


def chosen(part: str, method: str) -> dict[str, Any]:
    """The best trial, made now if there is none.

    A trial is looked at along its way, so that each look is a trial of fewer steps.
    """
    trials = [row for row in kept("comparison_trials") if (row["part"], row["method"]) == (part, method)]
    if not any(row["kind"] == "chosen" for row in trials):
        trials = search(cases.case(part, SEARCHED), method)
        for row in trials:
            keep("comparison_trials", row)
    return next(row for row in trials if row["kind"] == "chosen")


def search(this: Case, method: str) -> list[dict[str, Any]]:
    """Every trial, and the best of them as ``chosen``: where the best rate is at the grid's edge, the grid goes on there."""
    about = METHODS[method]
    todo, trials, least, most = list(about.rates), [], min(about.rates), max(about.rates)
    while todo:
        trials += [row for rate in todo for strength in about.strengths for row in tried(this, method, rate, strength)]
        best, todo = min(trials, key=lambda row: row["score"]), []
        if 0 < best["rate"] == least > min(about.rates) / STRIDE:
            least /= STRIDE
            todo = [least]
        elif 0 < best["rate"] == most < max(about.rates) * STRIDE:
            most *= STRIDE
            todo = [most]
    return [*trials, {**best, "kind": "chosen"}]


def tried(this: Case, method: str, rate: float, strength: float) -> Iterator[dict[str, Any]]:
    """A rate and a coefficient of a method, looked at along the way."""
    about, model = METHODS[method], upper_of(this.model)
    run, settings = cases.at_the_cut(model), Settings(rate, about.looks[-1], strength, SEARCHED)
    _, before = cases.score(this, run, None)
    # bfloat16 is for the search alone; the cache of cast weights would outlive the steps that change them.
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        for step in about.unlearn(model, this.data(SEARCHED), settings):
            if step not in about.looks:
                continue
            with torch.autocast("cpu", enabled=False):
                found, seen = cases.score(this, run, before)
            said = {"kind": "trial", "part": this.part, "method": method, "rate": rate, "strength": strength}
            yield cases.plain({**said, "steps": step, "score": found, **seen})
            if seen["test"] < before["test"] - 0.1:
                break  # it only gets worse


def baseline(this: Case, method: str) -> tuple[Run, dict[str, Any]]:
    """One run of a method with the settings that were chosen."""
    about, best = METHODS[method], chosen(this.part, method)
    settings = Settings(best["rate"], best["steps"], best["strength"], this.seed)
    model, data, passes = upper_of(this.model), this.data(this.seed), Passes()
    with passes.counted():
        begun = time.process_time()
        for _ in about.unlearn(model, data, settings):
            pass
        seconds = time.process_time() - begun
    below = sum(len(some.touched) for some in (data.forget, data.retain, data.unseen))
    seconds += below * seconds_below()
    cost = {"seconds": seconds, "below": below, "above": passes.above, "rate": best["rate"], "steps": best["steps"]}
    return cases.at_the_cut(model), {**cost, "strength": best["strength"], "needs": list(about.needs)}


def seconds_below(known: list[float] = []) -> float:  # noqa: B006
    """Processor seconds an image takes below the cut, measured once."""
    if not known:
        body, images = Body(cases.network(cases.checkpoint(cases.ORIGINAL))), cases.pictures("test")[0][:512]
        with torch.no_grad():
            body.lower(images[:128].float() / 255)
            begun = time.process_time()
            for part in images.split(128):
                body.lower(part.float() / 255)
        known.append((time.process_time() - begun) / len(images))
    return known[0]


def published(this: Case, method: str) -> tuple[Run, dict[str, Any]]:
    """The published loop on the whole network, ten epochs."""
    net = cases.network(this.model)
    body, passes = Body(net), Passes()
    images = cases.pictures("data")[0][this.rows].float() / 255
    with passes.counted():
        begun = time.process_time()
        loop = published_imu.Network(body, net.linear)
        for _ in published_imu.unlearn(loop, images, this.labels, corrected=PUBLISHED[method], seed=this.seed):
            pass
        seconds = time.process_time() - begun
    cost = {"seconds": seconds, "below": passes.below, "above": passes.above, "rate": published_imu.RATE, "needs": []}
    same_body = PUBLISHED[method]  # nothing below the head has moved
    return (cases.at_the_cut(Upper(net)) if same_body else cases.whole(body, net.linear)), cost


def ours(this: Case, method: str) -> tuple[Run, dict[str, Any]]:
    """``imu unlearn`` with its defaults, file to file."""
    passes = Passes()
    with common.folder("ours") as place, this.listed() as listed:
        os.environ["IMU_CACHE_DIR"] = str(place / "cache")
        output = place / "out.safetensors"
        kind = {"scenario": "mislabelled"} if this.kind == "mislabelled" else {}
        alone = this.kind == "class" and method == "imu_head"  # the mask bound asks for nothing else
        held = {} if alone else {"test": common.batches()}
        config = common.unlearn_config(
            forget=listed, scope=OURS[method], seed=this.seed, output=str(output), **held, **kind
        )
        with passes.counted():
            begun = time.process_time()
            done = unlearn.run_unlearn(this.model, config, {}, Silent())
            seconds = time.process_time() - begun
        model = upper_of(output)
    record = done.record
    cost = {"seconds": seconds, "below": passes.below, "above": passes.above, "needs": [] if alone else ["unseen"]}
    return cases.at_the_cut(model), {
        **cost,
        "reached": record.reached,
        "reason": record.reason,
        "method_of": record.method,
    }


def figures_of(this: Case, method: str) -> tuple[dict[str, float], dict[str, Any]]:
    """What a method comes to and what it cost."""
    if method == "original":
        return cases.judged(this, cases.at_the_cut(upper_of(this.model))), {}
    if method == "retrained":
        assert this.reference is not None
        net = cases.network(this.reference)
        run = cases.at_the_cut(Upper(net)) if this.kind == "mislabelled" else cases.whole(Body(net), net.linear)
        epochs = cases.WRONG_EPOCHS if this.kind == "mislabelled" else retraining.EPOCHS
        forward = retraining.images(len(this.retain), epochs)
        return cases.judged(this, run), {"below": forward, "above": forward, "needs": ["retain"]}
    way = ours if method in OURS else published if method in PUBLISHED else baseline
    run, cost = way(this, method)
    return cases.judged(this, run), cost


def one(part: str, method: str, seed: int) -> None:
    """A row, if it is not there."""
    there = {(row["part"], row["method"], row["seed"]): row for row in kept("comparison") if row["kind"] == "run"}
    this = cases.case(part, seed)
    if (part, method, seed) in there or (method == "retrained" and this.reference is None):
        return
    for first in ("original", *(["retrained"] if this.reference is not None else [])):
        if method not in ("original", "retrained") and (part, first, seed) not in there:
            one(part, first, seed)
    there = {(row["part"], row["method"], row["seed"]): row for row in kept("comparison") if row["kind"] == "run"}
    begun = time.perf_counter()
    found, cost = figures_of(this, method)
    aim = there.get((part, "retrained", seed))
    if aim is None and this.reference is None and method != "original":
        aim = {"figures": cases.stand_in(there[part, "original", seed]["figures"])}
    distance = None if aim is None else cases.distance(this, found, aim["figures"])
    row = {"kind": "run", "part": part, "method": method, "seed": seed, "n": len(this.rows), "gap": distance}
    keep("comparison", {**cases.plain(row), "figures": cases.plain(found), **cases.plain(cost)})
    shown = " ".join(f"{name} {value:.4f}" for name, value in found.items())
    print(f"{part} {method} {seed}: gap {distance}; {shown}; {time.perf_counter() - begun:.0f} s", flush=True)


def repeated(seed: int, border: str) -> None:
    """The published loop, uncorrected, on the checkpoint and class of ../shared/spec/measurements.md, at 5 and 10 epochs."""
    there = [row for row in kept("comparison") if row["kind"] == "published"]
    if any((row["seed"], row["border"]) == (seed, border) for row in there):
        return
    net = cases.network(cases.checkpoint(PUBLISHED_ON))
    body, (x, y), test = Body(net), cases.pictures("data"), cases.pictures("test")[1]
    rows, others = (y == 0).nonzero().squeeze(1), (y != 0).nonzero().squeeze(1)[:: cases.EVERY]
    kept_test, run = (test != 0).nonzero().squeeze(1), cases.whole(body, net.linear)
    images, loop = x[rows].float() / 255, published_imu.Network(body, net.linear)
    for epoch in published_imu.unlearn(loop, images, y[rows], corrected=False, seed=seed, border=BORDERS[border]):
        if epoch in (5, 10):
            found = {
                "forget": cases.share(run("data", rows)[1], y[rows]),
                "retain": cases.share(run("data", others)[1], y[others]),
                "test": cases.share(run("test", kept_test)[1], test[kept_test]),
            }
            row = {"kind": "published", "part": "published", "method": "published_imu", "border": border, "seed": seed}
            keep("comparison", {**row, "epoch": epoch, "figures": cases.plain(found)})
            print("published", border, seed, epoch, found, flush=True)


def main() -> None:
    """Run what is asked for and not there."""
    given: argparse.ArgumentParser = common.parser(__doc__)
    given.add_argument("--parts", nargs="+", choices=(*PARTS, "published"), default=(*PARTS, "published"))
    given.add_argument("--methods", nargs="+", choices=ALL, default=ALL)
    given.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    options = given.parse_args()
    if options.quick:
        options.parts, options.methods, options.seeds = ["random37"], ["original", "delete"], [0]
    torch.set_num_threads(options.threads)
    keep("comparison", {"kind": "environment", **common.environment()})
    for seed, part in itertools.product(options.seeds, options.parts):
        if part == "published":
            for border in BORDERS:
                repeated(seed, border)
            continue
        for method in options.methods:
            one(part, method, seed)


if __name__ == "__main__":
    main()
