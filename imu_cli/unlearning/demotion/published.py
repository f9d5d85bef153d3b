"""The published update of a language model, corrected, for comparison with it: ``--preset paper-llm`` (arXiv 2508.01620).

In every batch of b records, with g_i the gradient of record i's mean cross-entropy with respect to the weights that move,

    F = Σ g_i² / b,   ḡ = Σ g_i / b,   s_i = −g_i · (ḡ ⊘ (F + λ)),   w_i = √|s_i| where s_i < 0, clipped at a quantile
    θ ← AdamW on   −Σ w_i ℓ_i / Σ w_i + α ‖θ‖₁

The published code does not shift the labels, lets all weights train, and gives α ‖θ‖₁ no gradient; here tokens are predicted from what
stands before them, the scope alone moves, and the L1 term acts. One gradient a record serves score and step alike.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.influence import closed_form
from imu_cli.influence.closed_form import Damping
from imu_cli.linear import vocabulary
from imu_cli.linear.vocabulary import Words
from imu_cli.unlearning.demotion import loop
from imu_cli.unlearning.demotion.completions import CompletionTraining, Look

Gradient = list[Tensor]


@dataclass(frozen=True)
class Published:
    """What the update is made with: epochs, AdamW's weight decay, α, the quantile that weights are clipped at, and λ."""

    epochs: int
    weight_decay: float
    l1: float
    keep: float
    clip_quantile: float
    damping: Damping


@dataclass
class PublishedUpdate(CompletionTraining):
    """A language model on whose records the published update ascends, for a fixed number of epochs.

    Attributes:
        published: what the update is made with.
        skipped: batches in which no record had a negative score, which moved nothing but by L1 and weight decay.
    """

    published: Published = field(kw_only=True)
    skipped: int = field(default=0, init=False)

    def how(self) -> str:
        """There are no targets."""
        return "none: the published update runs for a fixed number of epochs"

    def length(self) -> int:
        """Steps of all epochs."""
        return self.published.epochs * math.ceil(self.forgotten.n / self.schedule.forget)

    def met(self, look: Look) -> bool:
        """Nothing is aimed at."""
        return False

    def reached(self, look: Look) -> None:
        """Nothing is aimed at."""

    def train(self) -> "Iterator[tuple[int, Look] | loop.Trained[Look]]":
        """The epochs, with a look after each.

        Raises:
            ImuError: the loss or a weight is no longer finite.
        """
        rate, names = self.schedule.learning_rate, list(self.parameters)
        looks = [(0, self.original()[0])]
        yield looks[0]
        update = torch.optim.AdamW(self.parameters.values(), lr=rate, weight_decay=self.published.weight_decay)
        draws = torch.Generator().manual_seed(self.schedule.seed)
        step = 0
        for _ in range(self.published.epochs):
            for rows in torch.randperm(self.forgotten.n, generator=draws).split(self.schedule.forget):
                for parameter, gradient in zip(self.parameters.values(), self.ascent(rows), strict=True):
                    parameter.grad = gradient
                update.step()
                update.zero_grad(set_to_none=True)
                step += 1
            look = self.look()[0]
            if not math.isfinite(look.loss):
                raise ImuError("--preset paper-llm: the model's answers are no longer numbers; lower --learning-rate")
            looks.append((step, look))
            yield looks[-1]
        with torch.no_grad():
            for name in names:
                self.parameters[name].copy_(self.to_file(name, self.parameters[name].detach()))
        made = (*looks[:-1], (step, self.look()[0]))
        if self.skipped:
            self.told(f"--preset paper-llm: {self.skipped} of {step} batches had no record with a negative score")
        yield loop.Trained(
            loop.copied(self.parameters), "epochs", None, made, 1.0, rate, self.length(), step, self.how()
        )

    def ascent(self, rows: Tensor) -> Gradient:
        """The gradient that the step on a batch of records (b,) goes down."""
        each = [self.gradient_of(row) for row in rows]
        weights = self.weigh(scores(each, self.published.damping))
        decay = [self.published.l1 * parameter.detach().sign() for parameter in self.parameters.values()]
        if not bool((weights > 0).any()):
            self.skipped += 1
            return decay
        share = (weights / weights.sum()).tolist()
        for own, part in zip(each, share, strict=True):
            for whole, gradient in zip(decay, own, strict=True):
                whole.sub_(gradient, alpha=part)
        return decay

    def weigh(self, found: Tensor) -> Tensor:
        """Weights (b,) of scores (b,); 0 where none is negative."""
        try:
            return closed_form.weigh(found, self.published.keep, self.published.clip_quantile).weights
        except ImuError:
            return torch.zeros_like(found)

    def gradient_of(self, row: Tensor) -> Gradient:
        """The gradient of a record's mean cross-entropy with respect to the weights that move."""
        signals.check()
        self.spent += loop.BACKWARD
        entered, places = self.forgotten.run(row[None]), self.forgotten.places(row[None])
        targets = self.forgotten.targets[places].to(entered.device)
        down = residual_back(entered.detach(), targets, self.head) / len(places)
        moving = list(self.parameters.values())
        found = torch.autograd.grad(entered, moving, grad_outputs=down.to(entered.dtype), allow_unused=True)
        return [torch.zeros_like(one) if own is None else own for one, own in zip(moving, found, strict=True)]


def residual_back(entered: Tensor, targets: Tensor, head: Words) -> Tensor:
    """The gradient of Σ ℓ with respect to what enters the head (N, d), by blocks of tokens."""
    made = torch.zeros_like(entered, dtype=torch.float32)
    width = head.matrix.shape[1] - head.bias
    for part, logits in vocabulary.blocks(entered, head):
        slope = vocabulary.slopes(logits, head)
        a = logits.softmax(dim=1)
        at = targets[part][:, None]
        a.scatter_(1, at, 0.0)
        a.scatter_(1, at, -a.sum(dim=1, keepdim=True))
        made[part] = a.mul_(slope) @ head.matrix[:, :width].to(a)
    return made


def scores(gradients: list[Gradient], damping: Damping) -> Tensor:
    """Influence scores (b,) float64 of a batch's gradients within it, −g_i · (ḡ ⊘ (F + λ)); λ is relative to the mean of F."""
    b, layers = len(gradients), list(zip(*gradients, strict=True))
    fisher = [sum((own.double().square() for own in layer), torch.zeros(())) / b for layer in layers]
    total = sum(one.numel() for one in fisher)
    lam = damping.absolute(sum(float(one.sum()) for one in fisher) / total)
    found = torch.zeros(b, dtype=torch.float64)
    for layer, diagonal in zip(layers, fisher, strict=True):
        along = sum((own.double() for own in layer), torch.zeros(())) / b / (diagonal + lam)
        found -= torch.stack([(own * along).sum() for own in layer]).cpu()
    return found
