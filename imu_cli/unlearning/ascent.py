"""Ascent on the head, with a look at the forget set after every step and a last step shortened to meet the target.

Works on tensors only. The head is W (c, d+1) in float64; what is looked at, and returned, is the head rounded to the
dtype of the checkpoint, so that a target that is met here is met by the file.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.linear import objective
from imu_cli.linear.objective import Members
from imu_cli.linear.rows import Rows, blocks
from imu_cli.unlearning.targets import Limits, Look

BISECTIONS = 24

Reason = Literal["target", "max_steps", "max_head_change", "max_drop", "max_class_drop", "epochs", "path", "rho"]


@dataclass(frozen=True)
class Step:
    """One step taken: its number (from 1), the fraction of it that was kept, the loss before it, and the look after it."""

    number: int
    fraction: float
    loss: float
    look: Look


@dataclass(frozen=True)
class Outcome:
    """The head (c, d+1) after the ascent, rounded to the checkpoint's dtype, and why it stopped."""

    head: Tensor
    reason: Reason
    reached: bool | None
    start: Look
    end: Look
    steps: tuple[Step, ...] = field(repr=False)


Update = Callable[[Tensor], tuple[Tensor, float]]
"""Proposes the next head, and says what the loss was before."""


@dataclass
class Objective:
    """The weighted loss −Σ w_i log P_K(i) / Σ w_i over the forget set and its gradient.

    Attributes:
        features: H (n, d+1) float64.
        members: the classes whose probability is to fall, per row.
        rows: (c,) bool, the rows of the head that may move.
        weights: (n,), from 0.
    """

    features: Rows
    members: Members
    rows: Tensor
    weights: Tensor

    def at(self, head: Tensor, batch: Tensor | None = None) -> tuple[Tensor, float]:
        """Gradient (c, d+1) of the weighted loss and the loss, over all rows or the given ones."""
        gradient, loss = torch.zeros_like(head), head.new_zeros(())
        total = (self.weights if batch is None else self.weights[batch]).sum()
        for rows in self._parts(batch, max(head.shape)):
            h, share = self.features[rows], self.weights[rows] / total
            residual, losses = objective.residual_and_losses(h @ head.T, self.members[rows])
            gradient.addmm_(residual.mul_(share.unsqueeze(1)).T, h)
            loss += share @ losses
        return torch.where(self.rows.unsqueeze(1), gradient, gradient.new_zeros(())), float(loss)

    def _parts(self, batch: Tensor | None, width: int) -> Iterator[slice | Tensor]:
        """The given rows in blocks; of all rows those with a weight, where they are few enough for a copy to pay."""
        if batch is not None:
            yield from (batch[part] for part in blocks(len(batch), width))
            return
        for part in blocks(len(self.weights), width):
            weighty = self.weights[part].nonzero().squeeze(1)
            if 2 * len(weighty) >= part.stop - part.start:
                yield part
            elif len(weighty):
                yield weighty + part.start


class NormalisedStep:
    """ΔW = length · G/‖G‖ with G the gradient of the weighted loss: independent of the features' scale."""

    def __init__(self, problem: Objective, length: float, reweigh: Callable[[Tensor], Tensor] | None = None) -> None:
        self.problem, self.length, self.reweigh = problem, length, reweigh

    def __call__(self, head: Tensor) -> tuple[Tensor, float]:
        """One step uphill.

        Raises:
            ImuError: the gradient is zero, so there is no direction to go.
        """
        if self.reweigh is not None:
            self.problem.weights = self.reweigh(head)
        gradient, loss = self.problem.at(head)
        norm = float(torch.linalg.norm(gradient))
        if not (norm > 0 and math.isfinite(norm)):
            raise ImuError(
                "ascent: the gradient on the forget set is zero, every sample is fitted beyond float64; nothing to do"
            )
        return head + gradient * (self.length / norm), loss


class StochasticSteps:
    """SGD on −loss + α‖W‖₁ with momentum and weight decay, the published loop (arXiv 2508.01620, algorithm 1).

    Minibatches run over the samples with a positive weight, reshuffled every epoch; the last, smaller one is kept.
    ``reweigh`` is called at every step, or at every epoch if ``each_epoch``.
    """

    def __init__(
        self,
        problem: Objective,
        *,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        l1: float,
        minibatch: int | None,
        generator: torch.Generator,
        reweigh: Callable[[Tensor], Tensor] | None = None,
        each_epoch: bool = False,
    ) -> None:
        self.problem, self.learning_rate, self.momentum = problem, learning_rate, momentum
        self.weight_decay, self.l1, self.minibatch, self.generator = weight_decay, l1, minibatch, generator
        self.reweigh, self.each_epoch = reweigh, each_epoch
        self.velocity: Tensor | None = None
        self.batches: list[Tensor] = []

    def steps_per_epoch(self) -> int:
        """Minibatches in one pass over the samples with a positive weight."""
        kept = int((self.problem.weights > 0).sum())
        return math.ceil(kept / (self.minibatch or kept))

    def _next_batch(self, head: Tensor) -> Tensor:
        if self.reweigh is not None and (not self.each_epoch or not self.batches):
            self.problem.weights = self.reweigh(head)
        while True:
            if not self.batches:
                kept = (self.problem.weights > 0).nonzero().squeeze(1)
                if not len(kept):
                    raise ImuError("ascent: no sample has a weight above 0; choose other --weights, or a larger --keep")
                order = torch.randperm(len(kept), generator=self.generator).to(kept.device)
                self.batches = list(kept[order].split(self.minibatch or len(kept)))
            batch = self.batches.pop(0)
            if bool((self.problem.weights[batch] > 0).any()):  # weights made anew may leave nothing of a batch
                return batch

    def __call__(self, head: Tensor) -> tuple[Tensor, float]:
        """One step on the next minibatch."""
        batch = self._next_batch(head)
        gradient, loss = self.problem.at(head, batch)
        descent = -gradient + self.l1 * head.sign() + self.weight_decay * head
        descent = torch.where(self.problem.rows.unsqueeze(1), descent, torch.zeros_like(descent))
        self.velocity = descent if self.velocity is None else self.momentum * self.velocity + descent
        return head - self.learning_rate * self.velocity, loss


def _smallest(ok: Callable[[float], bool]) -> float:
    """Smallest fraction in (0, 1] found by bisection at which ``ok`` holds, given that it holds at 1."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if ok(middle) else (middle, high)
    return high


def _largest(ok: Callable[[float], bool]) -> float:
    """Largest fraction in [0, 1) found by bisection at which ``ok`` holds, given that it holds at 0 and not at 1."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if ok(middle) else (low, middle)
    return low


def _settle(seen: Callable[[float], Look], limits: Limits) -> tuple[float, Look, Reason | None]:
    """How much of a step to keep: all of it, or what just meets the target, or what just stays within the budgets.

    ``seen`` looks at the head after a fraction of the step. Returns the fraction, its look, and why to stop, if so.
    """
    fraction, after = 1.0, seen(1.0)
    reason: Reason | None = None
    if limits.met(after):
        fraction, reason = _smallest(lambda part: limits.met(seen(part))), "target"
        after = seen(fraction)
    over = limits.exceeded(after)
    if over is None:
        return fraction, after, reason
    whole = fraction
    fraction = whole * _largest(lambda part: limits.exceeded(seen(whole * part)) is None)
    return fraction, seen(fraction), over


def ascend(
    head: Tensor,
    update: Update,
    look: Callable[[Tensor], Look],
    limits: Limits,
    rounded: Callable[[Tensor], Tensor],
    *,
    last: Reason = "max_steps",
) -> Iterator[Step | Outcome]:
    """Step uphill, looking after every step; yields each step and, last, the outcome.

    The first step that meets the target is shortened to the smallest fraction of itself that meets it; a step that
    leaves a budget is shortened to the largest fraction that does not. ``rounded`` maps a head to the values that the
    checkpoint's dtype can hold; ``last`` names what ending after ``limits.max_steps`` means.

    Raises:
        ImuError: the gradient vanishes, or a head is not finite.
    """
    start = end = look(rounded(head))
    steps: list[Step] = []
    reason: Reason | None = None
    for number in range(1, limits.max_steps + 1):
        signals.check()
        proposed, loss = update(head)
        if not bool(torch.isfinite(proposed).all()):
            raise ImuError(f"ascent, step {number}: the head is not finite; use a smaller step or learning rate")

        def after(fraction: float, start: Tensor = head, stride: Tensor = proposed - head) -> Tensor:
            return start + fraction * stride

        fraction, end, reason = _settle(lambda part: look(rounded(after(part))), limits)
        head = after(fraction)
        steps.append(Step(number, fraction, loss, end))
        yield steps[-1]
        if reason is not None:
            break
    reached = None if limits.target is None else limits.met(end)
    yield Outcome(rounded(head), reason or last, reached, start, end, tuple(steps))
