"""Relearning: how much of D_f comes back when the part that moved is fine-tuned for a few steps on a few of its samples.

The budget is fixed, so that models can be compared: full batches, AdamW without weight decay, cross-entropy, ``eval()`` mode
(batch norm keeps its statistics), gradients added up over small parts of a batch so that memory does not grow with it. Of whole
classes, kept test samples are learnt beside them: without these every network soon answers the class everywhere (after 25
airplanes at a rate of 3e-4, a ResNet-20 that knew airplanes told 50 % of them apart without, 96 % with four kept images for each).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from imu_cli import signals
from imu_cli.events import Log
from imu_cli.models.batches import Batch
from imu_cli.statistics.clustered import Clusters, mixed, some
from imu_cli.statistics.intervals import Estimate, NotMeasured
from imu_cli.statistics.metrics import among, predictions

SHOTS = (5, 10, 25)
STEPS, LEARNING_RATE = 10, 2e-4
REPLAYED = 2
"""Kept test samples that are learnt beside each sample of a forgotten class."""
DRAWS = 3
HELD, KEPT = 200, 300
"""Samples that come back or not, and kept ones that a forgotten class may take, at most."""
CLASSES = 2
"""Forgotten classes that are relearnt at most, drawn by the seed."""

Side = Literal["forget", "test"]


@dataclass(frozen=True)
class Learner:
    """A model of which a part can be fine-tuned, and how samples get to it.

    Attributes:
        logits: the (n, c) logits in what the model returns, called with tensors in place of parameters by their names.
        moved: those parameters, as the model has them.
        batches: inputs of some rows of D_f or of test, so many at a time, where the model runs.
        size: samples in a batch without gradients.
        part: samples that pass with gradients at a time.
    """

    logits: Callable[[Mapping[str, Tensor], Batch], Tensor]
    moved: Mapping[str, Tensor]
    batches: Callable[[Side, list[int], int], Iterator[Batch]]
    size: int
    part: int


def linear(weight: Tensor, bias: Tensor | None, rows: Callable[[Side, list[int]], Tensor]) -> Learner:
    """The head alone on features (n, d) that are there already: the network does not run."""
    moved = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}

    def batches(side: Side, wanted: list[int], size: int) -> Iterator[Tensor]:
        return (rows(side, wanted[start : start + size]).double() for start in range(0, len(wanted), size))

    def logits(tensors: Mapping[str, Tensor], h: Batch) -> Tensor:
        assert isinstance(h, Tensor)
        return nn.functional.linear(h, tensors["weight"], tensors.get("bias"))

    return Learner(logits, moved, batches, size=4096, part=4096)


@dataclass(frozen=True)
class Labelled:
    """Rows (m,) of a set, their labels (m,) and, where samples come in such, clusters (m,), on the CPU."""

    rows: Tensor
    labels: Tensor
    clusters: Clusters = None

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, wanted: Tensor) -> "Labelled":
        """Some of them, by their numbers or a mask."""
        return Labelled(self.rows[wanted], self.labels[wanted], some(self.clusters, wanted))

    def apart(self, others: "Labelled") -> "Labelled":
        """Those that share no cluster with others: a word is not asked about where its sentence was learnt from."""
        if self.clusters is None or others.clusters is None:
            return self
        return self.only(~torch.isin(self.clusters, others.clusters))


@dataclass(frozen=True)
class Asked:
    """What is relearnt: labels (n,) of D_f, and rows of test with their labels, never seen or of kept classes.

    ``clusters``: (n,) of D_f, where samples come in such.
    ``unseen``: of the classes of D_f, None where there is nothing to compare with. Of the class scenario alone, else empty:
    ``forgotten`` class ids, ``kept`` samples, and ``taken``, the share of these that the original predicts as a forgotten class.
    """

    labels: Tensor
    unseen: Labelled | None
    seed: int
    forgotten: tuple[int, ...] = ()
    kept: Labelled | None = None
    taken: float = 0.0
    clusters: Clusters = None


@dataclass(frozen=True)
class Relearned:
    """Shares that come back after relearning from k samples: of D_f, and of never-seen ones after relearning from such."""

    forget: dict[int, Estimate | NotMeasured] = field(default_factory=dict)
    unseen: dict[int, Estimate | NotMeasured] = field(default_factory=dict)


def relearn(learner: Learner, asked: Asked, log: Log, what: str) -> Relearned:
    """Fine-tune from k samples, several draws each, and count what comes back among the others; always from the model as it is.

    Class scenario: k samples of each forgotten class, and a sample has come back if it is predicted as its class once the
    forgotten classes' logits are shifted by one constant, such that they win on as many kept test samples as the original's
    did (as k-shot recovery does): a model that answers with one class everywhere has relearnt nothing. Otherwise: k samples
    in all, and a sample has come back if it is predicted as its label.
    """
    sides: dict[Side, Labelled | None] = {
        "forget": Labelled(torch.arange(len(asked.labels)), asked.labels.cpu(), asked.clusters),
        "test": asked.unseen,
    }
    found: dict[Side, dict[int, Estimate | NotMeasured]] = {"forget": {}, "test": {}}
    with log.timed("relearning"), log.track(f"relearning, {what}", len(SHOTS) * len(sides)) as advance:
        for side, given in sides.items():
            for k in SHOTS:
                found[side][k] = (
                    NotMeasured("no never-seen samples") if given is None else _tried(learner, asked, side, given, k)
                )
                advance(1)
    return Relearned(found["forget"], found["test"])


def _tried(learner: Learner, asked: Asked, side: Side, given: Labelled, k: int) -> Estimate | NotMeasured:
    """The share that comes back from k samples, over draws."""
    generator = torch.Generator().manual_seed(asked.seed)
    classes: list[int | None] = [None]
    if asked.forgotten:
        drawn = torch.randperm(len(asked.forgotten), generator=generator)[:CLASSES]
        classes = [asked.forgotten[at] for at in drawn.tolist()]
        if asked.kept is None:
            return NotMeasured("needs --test samples of kept classes")
    of_class = [given if label is None else given.only(given.labels == label) for label in classes]
    if min(map(len, of_class)) <= k:
        return NotMeasured(f"needs more than {k} forget samples" + (" of each class" if asked.forgotten else ""))
    shares, n = [], 0
    for _ in range(DRAWS):
        mixed_up = [part.only(mixed(len(part), part.clusters, generator)) for part in of_class]
        shots = _joined([part.only(torch.arange(k)) for part in mixed_up])
        most = HELD // len(classes)
        others = [part.only(torch.arange(k, len(part))).apart(shots) for part in mixed_up]
        lessons: list[tuple[Side, Labelled]] = [(side, shots)]
        judges = None
        if asked.kept is not None:
            replayed, judges = _dealt(asked.kept, shots, generator)
            if len(judges) == 0:
                return NotMeasured("needs kept --test samples of more sentences")
            lessons.append(("test", replayed))
            others = [part.apart(replayed) for part in others]
        held = _joined([_first(part, most) for part in others])
        if len(held) == 0:
            return NotMeasured("needs samples of more sentences than those that are learnt from")
        tensors = fine_tuned(learner, lessons)
        shares.append(float(_come_back(learner, tensors, asked, side, held, judges).double().mean()))
        n = len(held)
    return Estimate(sum(shares) / DRAWS, min(shares), max(shares), n, f"mean and range of {DRAWS} draws")


def _joined(parts: list[Labelled]) -> Labelled:
    clusters = [part.clusters for part in parts if part.clusters is not None]
    rows, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "labels"))
    return Labelled(rows, labels, torch.cat(clusters) if clusters else None)


def _first(given: Labelled, most: int) -> Labelled:
    return given.only(torch.arange(min(len(given), most)))


def _dealt(kept: Labelled, shots: Labelled, generator: torch.Generator) -> tuple[Labelled, Labelled]:
    """Kept samples to learn beside the shots, at most half of what there is, and others to judge by."""
    order = mixed(len(kept), kept.clusters, generator)
    learnt = min(REPLAYED * len(shots), len(kept) // 2)
    replayed = kept.only(order[:learnt])
    return replayed, _first(kept.only(order[learnt:]).apart(replayed).apart(shots), KEPT)


def fine_tuned(learner: Learner, lessons: list[tuple[Side, Labelled]]) -> dict[str, Tensor]:
    """The moved tensors after ``STEPS`` of AdamW on these samples; the model's own stay as they are."""
    tensors = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in learner.moved.items()}
    optimiser = torch.optim.AdamW(tensors.values(), lr=LEARNING_RATE, weight_decay=0.0)
    parts = [
        (inputs, answers)
        for side, lesson in lessons
        for inputs, answers in zip(
            learner.batches(side, lesson.rows.tolist(), learner.part), lesson.labels.split(learner.part), strict=True
        )
    ]
    n = sum(len(answers) for _, answers in parts)
    with torch.enable_grad():
        for _ in range(STEPS):
            signals.check()
            optimiser.zero_grad()
            for inputs, answers in parts:
                logits = learner.logits(tensors, inputs)
                loss = nn.functional.cross_entropy(logits, answers.to(logits.device), reduction="sum") / n
                loss.backward()
            optimiser.step()
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _come_back(
    learner: Learner, tensors: dict[str, Tensor], asked: Asked, side: Side, held: Labelled, judges: Labelled | None
) -> Tensor:
    """Whether each held sample is back (n,)."""
    logits = _logits(learner, tensors, side, held)
    gone = among(torch.arange(logits.shape[1]), asked.forgotten)
    if judges is not None and not bool(gone.all()):
        logits[:, gone] -= _level(_lead(_logits(learner, tensors, "test", judges), gone), asked.taken)
    return predictions(logits) == held.labels


def _logits(learner: Learner, tensors: dict[str, Tensor], side: Side, samples: Labelled) -> Tensor:
    with torch.no_grad():
        batches = learner.batches(side, samples.rows.tolist(), learner.size)
        return torch.cat([learner.logits(tensors, batch).double().cpu() for batch in batches])


def _lead(logits: Tensor, gone: Tensor) -> Tensor:
    return logits[:, gone].amax(1) - logits[:, ~gone].amax(1)


def _level(lead: Tensor, share: float) -> float:
    """What forgotten classes lead by on the ``share`` of these samples that they are to win."""
    ordered = lead.sort(descending=True).values
    count = round(share * len(ordered))
    if count == 0:
        return float(ordered[0] + (1 + ordered[0].abs()) * 1e-9)
    return float(ordered[count - 1] + ordered[min(count, len(ordered) - 1)]) / 2
