"""Relearning: how much of D_f comes back when the part that moved is fine-tuned for a few steps on a few of its samples.

The budget is fixed, so that models can be compared: full batches, AdamW without weight decay, cross-entropy, ``eval()`` mode
(batch norm keeps its statistics), gradients added up over small parts of a batch so that memory does not grow with it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from imu_cli import signals
from imu_cli.events import Log
from imu_cli.statistics.intervals import Estimate, NotMeasured, class_counts
from imu_cli.statistics.metrics import among, predictions

SHOTS = (5, 10, 25)
STEPS, LEARNING_RATE = 10, 1e-3
DRAWS = 3
HELD, KEPT = 200, 300
"""Samples that come back or not, and kept ones that a forgotten class may take, at most."""
CLASSES = 5
"""Forgotten classes that are relearnt at most, drawn by the seed."""
PART = 8
"""Samples that pass the network with gradients at a time."""

Side = Literal["forget", "test"]


@dataclass(frozen=True)
class Learner:
    """A model of which a part can be fine-tuned, and how samples get to it.

    Attributes:
        logits: the (n, c) logits in what the model returns, called with tensors in place of parameters by their names.
        moved: those parameters, as the model has them.
        batches: inputs of some rows of D_f or of test, so many at a time, where the model runs.
        size: samples in a batch without gradients.
    """

    logits: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    moved: Mapping[str, Tensor]
    batches: Callable[[Side, list[int], int], Iterator[Tensor]]
    size: int

    @property
    def trials(self) -> int:
        """Fine-tunings that ``relearn`` makes at most."""
        return len(SHOTS) * DRAWS * 2


def linear(weight: Tensor, bias: Tensor | None, rows: Callable[[Side, list[int]], Tensor]) -> Learner:
    """The head alone on features (n, d) that are there already: the network does not run."""
    moved = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}

    def batches(side: Side, wanted: list[int], size: int) -> Iterator[Tensor]:
        return (rows(side, wanted[start : start + size]).double() for start in range(0, len(wanted), size))

    def logits(tensors: Mapping[str, Tensor], h: Tensor) -> Tensor:
        return nn.functional.linear(h, tensors["weight"], tensors.get("bias"))

    return Learner(logits, moved, batches, 4096)


@dataclass(frozen=True)
class Asked:
    """What is relearnt: labels (n,) of D_f, rows and labels of never-seen samples, rows of kept ones.

    ``forgotten``: class ids in the class scenario, else empty. ``unseen``: rows of test of the classes of D_f, None where
    there is nothing to compare with. ``taken``: share of kept samples that the original predicts as a forgotten class.
    """

    labels: Tensor
    unseen: Tensor | None
    unseen_labels: Tensor | None
    kept: Tensor
    forgotten: tuple[int, ...]
    taken: float | None
    seed: int


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
    sides: dict[Side, tuple[Tensor, Tensor] | None] = {
        "forget": (torch.arange(len(asked.labels)), asked.labels.cpu()),
        "test": None
        if asked.unseen is None or asked.unseen_labels is None
        else (asked.unseen.cpu(), asked.unseen_labels.cpu()),
    }
    found: dict[Side, dict[int, Estimate | NotMeasured]] = {"forget": {}, "test": {}}
    with log.timed("relearning"), log.track(f"relearning, {what}", learner.trials) as advance:
        for side, given in sides.items():
            for k in SHOTS:
                found[side][k] = (
                    NotMeasured("no never-seen samples")
                    if given is None
                    else _over_draws(learner, asked, side, given, k)
                )
                advance(DRAWS)
    return Relearned(found["forget"], found["test"])


def _over_draws(
    learner: Learner, asked: Asked, side: Side, given: tuple[Tensor, Tensor], k: int
) -> Estimate | NotMeasured:
    generator = torch.Generator().manual_seed(asked.seed)
    rows, labels = given
    if asked.forgotten:
        some = torch.tensor(asked.forgotten)[torch.randperm(len(asked.forgotten), generator=generator)[:CLASSES]]
        wanted = torch.isin(labels, some)
        rows, labels = rows[wanted], labels[wanted]
        if min(class_counts(labels).values(), default=0) <= k:
            return NotMeasured(f"needs more than {k} samples of each forgotten class")
    elif len(rows) <= k:
        return NotMeasured(f"needs more than {k} samples")
    shares, n = [], 0
    for _ in range(DRAWS):
        shots, held = _dealt(labels, k, bool(asked.forgotten), generator)
        kept = asked.kept.cpu()[torch.randperm(len(asked.kept), generator=generator)[:KEPT]]
        tensors = fine_tuned(learner, side, rows[shots].tolist(), labels[shots])
        back = _come_back(learner, tensors, asked, side, rows[held].tolist(), labels[held], kept.tolist())
        shares.append(float(back.double().mean()))
        n = len(held)
    return Estimate(sum(shares) / DRAWS, min(shares), max(shares), n, f"mean and range of {DRAWS} draws")


def _dealt(labels: Tensor, k: int, each: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``k`` samples, of ``each`` class or in all, and those that are asked about."""
    classes = list(class_counts(labels)) if each else [None]
    shots, held = [], []
    for label in classes:
        rows = torch.arange(len(labels)) if label is None else (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        shots.append(rows[:k])
        held.append(rows[k:][: HELD // len(classes)])
    return torch.cat(shots), torch.cat(held)


def fine_tuned(learner: Learner, side: Side, rows: list[int], labels: Tensor) -> dict[str, Tensor]:
    """The moved tensors after ``STEPS`` of AdamW on these samples; the model's own stay as they are."""
    tensors = {name: tensor.detach().clone().requires_grad_(True) for name, tensor in learner.moved.items()}
    optimiser = torch.optim.AdamW(tensors.values(), lr=LEARNING_RATE, weight_decay=0.0)
    parts = list(learner.batches(side, rows, PART))
    answers = labels.split(PART)
    with torch.enable_grad():
        for _ in range(STEPS):
            signals.check()
            optimiser.zero_grad()
            for inputs, wanted in zip(parts, answers, strict=True):
                logits = learner.logits(tensors, inputs)
                loss = nn.functional.cross_entropy(logits, wanted.to(logits.device), reduction="sum") / len(rows)
                loss.backward()
            optimiser.step()
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _come_back(
    learner: Learner,
    tensors: dict[str, Tensor],
    asked: Asked,
    side: Side,
    held: list[int],
    labels: Tensor,
    kept: list[int],
) -> Tensor:
    """Whether each held sample is back (n,)."""
    logits = _logits(learner, tensors, side, held)
    if asked.forgotten and asked.taken is not None and kept:
        gone = among(torch.arange(logits.shape[1]), asked.forgotten)
        if not bool(gone.all()):
            logits[:, gone] -= _level(_lead(_logits(learner, tensors, "test", kept), gone), asked.taken)
    return predictions(logits) == labels


def _logits(learner: Learner, tensors: dict[str, Tensor], side: Side, rows: list[int]) -> Tensor:
    with torch.no_grad():
        parts = [learner.logits(tensors, batch).double().cpu() for batch in learner.batches(side, rows, learner.size)]
    return torch.cat(parts)


def _lead(logits: Tensor, gone: Tensor) -> Tensor:
    return logits[:, gone].amax(1) - logits[:, ~gone].amax(1)


def _level(lead: Tensor, share: float) -> float:
    """What forgotten classes lead by on the ``share`` of these samples that they are to win."""
    ordered = lead.sort(descending=True).values
    count = round(share * len(ordered))
    if count == 0:
        return float(ordered[0] + (1 + ordered[0].abs()) * 1e-9)
    return float(ordered[count - 1] + ordered[min(count, len(ordered) - 1)]) / 2
