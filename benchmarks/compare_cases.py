"""What ``compare.py`` compares on: the ResNet-20 ``_b`` of ../shared cut below its last stage, forget sets, and one judge for all.

What enters ``layer3`` is kept for all of CIFAR-10 (2 GB in ``scratch``): of the methods that train, each moves ``layer3`` and ``linear``, as
``imu unlearn --scope last-block`` does. Half of the test images, drawn by the seed, chooses; the other half judges, with all of
the forget set and every tenth of the retained images.
"""

import csv
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from baselines.training import Data, Samples
from quality_depth import gap
from quality_depth import halves as drawn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imu_cli.evaluation import attacks, recovery
from imu_cli.linear import margins
from imu_cli.models import factories
from imu_cli.samples.manifest import open_source
from imu_cli.statistics import metrics

PARTS = ("airplanes", "random5000", "random500", "random37", "wrong_labels")
ORIGINAL = "cifar10_resnet20_b"
EVERY = 10
WRONG, BESIDE, WRONG_EPOCHS, WRONG_RATE = 500, 4500, 40, 0.03
SEARCHED = 100
"""Seed of the draws that settings are chosen on."""


halves = functools.cache(drawn)


class Upper(nn.Module):
    """The last stage and the head: (n, 32, 16, 16) to logits (n, 10)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.layer3, self.linear = net.layer3, net.linear

    def features(self, x: Tensor) -> Tensor:
        """(n, 64)."""
        return nn.functional.adaptive_avg_pool2d(self.layer3(x), 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.linear(self.features(x))
        return found


class Body(nn.Module):
    """All below the head, of images (n, 3, 32, 32) from 0 to 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        for name, value in common.PREPROCESS.items():
            self.register_buffer(name, torch.tensor(value)[:, None, None])

    def lower(self, images: Tensor) -> Tensor:
        """What enters the last stage."""
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        found: Tensor = self.net.layer2(self.net.layer1(nn.functional.relu(self.net.bn1(self.net.conv1(x)))))
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Features (n, 64)."""
        return nn.functional.adaptive_avg_pool2d(self.net.layer3(self.lower(images)), 1).flatten(1)


def network(path: Path) -> nn.Module:
    """A checkpoint as its factory makes it, in ``eval()`` mode."""
    made = factories.resolve(common.architecture())[0]()
    made.load_state_dict(load_file(path))
    return made.eval().to(memory_format=torch.channels_last)


def checkpoint(name: str) -> Path:
    """A checkpoint of ../shared."""
    return common.shared() / "checkpoints" / f"{name}.safetensors"


@functools.cache
def pictures(role: str) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) uint8 and labels, decoded by the tool once a machine."""
    path = common.scratch() / f"compare-{role}-images.npz"
    if not path.exists():
        found = open_source(common.batches(), role)  # type: ignore[arg-type]
        read = found.arrays(range(len(found)))
        assert read is not None
        np.savez(path, x=np.ascontiguousarray(read.transpose(0, 3, 1, 2)), y=np.array(list(found.labels)))
    kept = np.load(path)
    return torch.from_numpy(kept["x"]), torch.from_numpy(kept["y"]).long()


def lowered(role: str) -> Tensor:
    """What enters the last stage of ``_b``, for all images of a set, mapped from a file that is made once a machine."""
    images, _ = pictures(role)
    path = common.scratch() / f"compare-{role}-lowered.npy"
    if not path.exists():
        body, half = Body(network(checkpoint(ORIGINAL))), path.with_suffix(".part")
        made = np.lib.format.open_memmap(half, "w+", np.float32, (len(images), 32, 16, 16))
        with torch.no_grad():
            for at in torch.arange(len(images)).split(500):
                made[at.numpy()] = body.lower(images[at].float() / 255).numpy()
        made.flush()
        half.replace(path)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


@dataclass(frozen=True)
class World:
    """CIFAR-10 at the cut."""

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor


@functools.cache
def world() -> World:
    """All of it."""
    return World(lowered("data"), lowered("test"), pictures("data")[1], pictures("test")[1])


@dataclass(frozen=True)
class Case:
    """A forget set, and who judges.

    Attributes:
        model: checkpoint that has to forget.
        rows: forget rows of the training images; ``labels`` what they were trained as, ``true`` what they show.
        retain: rows of the other training images; ``judged_retain`` those that judge.
        choose, judge: rows of the test images.
        kind: class, sample or mislabelled.
        reference: checkpoint that never saw them, or None.
    """

    part: str
    seed: int
    kind: str
    model: Path
    rows: Tensor
    labels: Tensor
    true: Tensor
    retain: Tensor
    judged_retain: Tensor
    choose: Tensor
    judge: Tensor
    reference: Path | None

    def data(self, seed: int) -> Data:
        """What a method is given."""
        w = world()
        order = torch.randperm(len(self.retain), generator=torch.Generator().manual_seed(seed))
        retain = self.retain[order]
        return Data(
            Samples(w.train, self.rows, self.labels),
            Samples(w.train, retain, w.train_labels[retain]),
            Samples(w.test, self.choose, w.test_labels[self.choose]),
            (0,) if self.kind == "class" else (),
        )

    @contextmanager
    def listed(self) -> Iterator[list[str]]:
        """``--forget`` of the tool, while the context lasts."""
        if self.kind == "class":
            yield ["class=0"]
            return
        with common.folder("compare") as place:
            path = place / "forget.csv"
            with path.open("w", newline="", encoding="utf-8") as file:
                wrong = self.kind == "mislabelled"
                csv.writer(file).writerow(["index", "label", "true_label"] if wrong else ["index"])
                for row in zip(*([self.rows, self.labels, self.true] if wrong else [self.rows]), strict=True):
                    csv.writer(file).writerow([int(value) for value in row])
            yield [str(path)]


def case(part: str, seed: int) -> Case:
    """A part's forget set; draws and halves are the seed's."""
    w = world()
    choose, judge = halves(seed)
    model, reference, kind = checkpoint(ORIGINAL), None, "sample"
    if part == "airplanes":
        rows, kind = (w.train_labels == 0).nonzero().squeeze(1), "class"
        reference = checkpoint(f"{ORIGINAL}_without_airplane")
    elif part == "random5000":
        with (common.shared() / "checkpoints" / "random5000.csv").open(newline="", encoding="utf-8") as file:
            rows = torch.tensor([int(row["index"]) for row in csv.DictReader(file)])
        reference = checkpoint(f"{ORIGINAL}_without_random5000")
    elif part == "wrong_labels":
        return wrong_labels(seed)
    else:
        order = torch.randperm(len(w.train_labels), generator=torch.Generator().manual_seed(seed))
        rows = order[: int(part.removeprefix("random"))].sort().values
    stays = torch.ones(len(w.train_labels), dtype=torch.bool)
    stays[rows] = False
    retain, labels = stays.nonzero().squeeze(1), w.train_labels[rows]
    return Case(
        part, seed, kind, model, rows, labels, labels, retain, retain[::EVERY], choose, judge, reference
    )  # fmt: skip


def wrong_labels(seed: int) -> Case:
    """500 of 5,000 images with a wrong label, on which the last stage was trained until it knew them, and another without them."""
    w, draws = world(), torch.Generator().manual_seed(0)
    rows = torch.randperm(len(w.train_labels), generator=draws)[: WRONG + BESIDE]
    wrong, beside = rows[:WRONG], rows[WRONG:]
    true = w.train_labels[wrong]
    labels = (true + torch.randint(1, 10, (WRONG,), generator=draws)) % 10
    places = [common.scratch() / f"compare-wrong-{name}.safetensors" for name in ("original", "retrained")]
    for path, given, known in (
        (places[0], rows, torch.cat([labels, w.train_labels[beside]])),
        (places[1], beside, w.train_labels[beside]),
    ):
        if not path.exists():
            _trained(path, given, known)
    choose, judge = halves(seed)
    return Case(
        "wrong_labels", seed, "mislabelled", places[0], wrong, labels, true, beside, beside, choose, judge, places[1]
    )  # fmt: skip


def _trained(path: Path, rows: Tensor, labels: Tensor) -> None:
    """The last stage of ``_b`` trained on some images with these labels, batch norm as it is, and written as a whole network."""
    whole = network(checkpoint(ORIGINAL))
    upper, generator = Upper(whole), torch.Generator().manual_seed(0)
    optimiser = torch.optim.SGD(upper.parameters(), WRONG_RATE, momentum=0.9, weight_decay=5e-4)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, WRONG_EPOCHS)
    for _ in range(WRONG_EPOCHS):
        for at in torch.randperm(len(rows), generator=generator).split(128):
            optimiser.zero_grad()
            nn.functional.cross_entropy(upper(world().train[rows[at]]), labels[at]).backward()
            optimiser.step()
        plan.step()
    state = {name: value.contiguous() for name, value in whole.state_dict().items()}
    save_file(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


Run = Callable[[str, Tensor], tuple[Tensor, Tensor]]
"""Features and logits (k, c) float64 of rows of ``data`` or ``test``."""


def at_the_cut(upper: Upper) -> Run:
    """Through the last stage."""
    w = world()

    def run(role: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        x = w.train if role == "data" else w.test
        with torch.no_grad():
            h = torch.cat([upper.features(x[part]) for part in rows.split(256)])
            return h, upper.linear(h).double()

    return run


def whole(body: Body, head: nn.Linear) -> Run:
    """Through all of a network."""

    def run(role: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        images = pictures(role)[0]
        with torch.no_grad():
            h = torch.cat([body(images[part].float() / 255) for part in rows.split(256)])
            return h, head(h).double()

    return run


def share(logits: Tensor, labels: Tensor) -> float:
    """Share that is predicted as its label."""
    return float((logits.argmax(dim=1) == labels).double().mean())


def judged(this: Case, run: Run) -> dict[str, float]:
    """All figures of a model; shares from 0 to 1. ``probe`` is recall of unseen airplanes, else accuracy on D_f."""
    train, test = pictures("data")[1], pictures("test")[1]
    (hf, zf), (ht, zt) = run("data", this.rows), run("test", this.judge)
    zr, yt = run("data", this.judged_retain)[1], test[this.judge]
    generator = torch.Generator().manual_seed(this.seed)
    gone = (0,) if this.kind == "class" else ()
    probe = recovery.linear_probe(hf, this.true, ht, yt, gone, generator)
    assert isinstance(probe, recovery.Probe)
    found = {"forget": share(zf, this.labels), "retain": share(zr, train[this.judged_retain])}
    found |= {"probe": probe.accuracy.value, "probe_unseen": probe.reference.value}
    if this.kind == "class":
        return found | {"test": share(zt[yt != 0], yt[yt != 0]), "test_forgotten": share(zt[yt == 0], yt[yt == 0])}
    found["test"] = share(zt, yt)
    if this.kind == "mislabelled":
        return found | {"true": share(zf, this.true)}
    phi, unseen = margins.margins(zf, this.labels), margins.margins(zt, yt)
    auc = margins.weighted_auc(phi, unseen, margins.class_match(this.labels, yt))
    pool = attacks.class_matched(this.labels, yt, generator)
    over = attacks.over_unlearned(phi, unseen[pool])
    level = metrics.class_matched_accuracy(zt.argmax(dim=1) == yt, yt, this.labels).value
    return found | {
        "auc": auc, "auc_two_sided": max(auc, 1 - auc), "over_unlearned": getattr(over, "value", -1.0), "unseen": level,
    }  # fmt: skip


GAP = {"class": ("forget", "retain", "test", "probe"), "sample": ("forget", "retain", "test", "auc"),
       "mislabelled": ("forget", "true", "retain", "test")}  # fmt: skip
"""What the gap is the mean distance over."""


def distance(this: Case, one: dict[str, float], other: dict[str, float]) -> float:
    """Mean distance in points."""
    if this.kind == "sample":
        return gap(one, other)
    return 100 * sum(abs(one[key] - other[key]) for key in GAP[this.kind]) / len(GAP[this.kind])


def stand_in(before: dict[str, float]) -> dict[str, float]:
    """In place of a retrained model where there is none: forget as unseen images, nothing else changed, AUC 0.5."""
    return {**before, "forget": before["unseen"], "auc": 0.5}


def score(this: Case, run: Run, before: dict[str, float] | None) -> tuple[float, dict[str, float]]:
    """How good a trial is, by the half of the test images that judges nothing (lower is better); and what was seen.

    Some of the forget set and of that half; no retrained model and no retained image.
    """
    rows, labels, chosen = this.rows[:400], this.labels[:400], this.choose[:800]
    zf, zt = run("data", rows)[1], run("test", chosen)[1]
    yt = pictures("test")[1][chosen]
    kept = yt != 0 if this.kind == "class" else torch.ones(len(yt), dtype=torch.bool)
    seen = {"forget": share(zf, labels), "test": share(zt[kept], yt[kept])}
    if this.kind == "sample":
        phi, unseen = margins.margins(zf, labels), margins.margins(zt, yt)
        seen["auc"] = margins.weighted_auc(phi, unseen, margins.class_match(labels, yt))
        seen["unseen"] = metrics.class_matched_accuracy(zt.argmax(dim=1) == yt, yt, labels).value
    if before is None:
        return 0.0, seen
    lost = max(0.0, before["test"] - seen["test"])
    if this.kind == "sample":
        return abs(seen["forget"] - before["unseen"]) + lost + abs(seen["auc"] - 0.5), seen
    return seen["forget"] + lost + (before["test"] - seen["test"] - lost), seen


def average(values: Sequence[float]) -> float:
    """Mean."""
    return sum(values) / len(values)


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """Rounded, for the raw results."""
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in found.items()}
