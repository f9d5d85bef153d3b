"""The demoted teacher of a classifier: its loss, its looks, its target; ``loop`` trains towards it.

Tensors and functions in, weights out: what runs the network is handed in, so that nothing here knows files or kinds of samples.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli import signals
from imu_cli.linear import margins, objective
from imu_cli.unlearning import targets
from imu_cli.unlearning.ascent import Reason
from imu_cli.unlearning.demotion import features as features_module
from imu_cli.unlearning.demotion import loop, teacher
from imu_cli.unlearning.scenario import Plan
from imu_cli.unlearning.targets import Comparison, HeldOut, Limits, Look

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Features (k, d) and logits (k, c) of some rows of a set (k,), differentiable in the weights that move."""
ASTRAY = 0.25
"""Fall of accuracy on unseen samples at a look, as a share, that no run recovers from."""


@dataclass(frozen=True)
class Schedule(loop.Pace):
    """How long and in what portions the network is trained.

    Attributes:
        batches: steps; ``None`` follows the number of forget samples (``length``).
        forget, anchor: samples in a batch.
        at_once: samples that run together; gradients are summed over them.
        beta: weight of the anchor.
        blending: α of the Beta distribution that mixing shares of anchor samples are drawn from; 0 for none.
        attraction, covariance: weights of the feature term; 0 leaves it out.
    """

    batches: int | None = None
    forget: int = 128
    anchor: int = 128
    at_once: int = 256
    beta: float = 1.0
    blending: float = 0.3
    attraction: float = 0.0
    covariance: float = 0.0

    def length(self, n: int) -> int:
        """Steps for n forget samples: 200, and ten passes over many of them; twice as many passes where features are to go, too."""
        return self.batches or 200 + round((0.16 if self.attraction else 0.08) * n)


@dataclass
class Forgotten:
    """The forget set: what runs it, logits (n, c) under the original, labels (n,), true ones, weights (n,), and texts' lengths (n,)."""

    run: Run
    logits: Tensor
    labels: Tensor
    true_labels: Tensor | None
    weights: Tensor
    lengths: Tensor | None = None


@dataclass
class Anchor:
    """Samples on which nothing is to change: what runs them, logits (m, c), features (m, d) under the original, and texts' lengths (m,).

    ``blended`` runs them mixed with others (rows, others' rows, share (k,)): the original says what is to be said of mixtures too, and
    so there are more things to hold on to than samples. None where samples cannot be mixed.
    """

    run: Run
    logits: Tensor
    features: Tensor
    blended: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    lengths: Tensor | None = None


@dataclass
class Unseen:
    """Unseen samples with labels that are not anchored: targets follow them, and budgets guard them."""

    run: Run
    logits: Tensor
    labels: Tensor
    kept: Tensor
    lengths: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Forget rows, anchored rows, and for these the rows that they are mixed with and the shares that they keep."""

    rows: Tensor
    anchored: Tensor | None = None
    others: tuple[Tensor, Tensor] | None = None


@dataclass
class Training(loop.Objective[Look]):
    """A network that is to forget some samples.

    Attributes:
        parameters: the weights that move, by name.
        plan, forgotten, anchor, unseen: what goes, what stays, what it is compared with.
        limits: target and budgets.
        schedule: how it is trained.
        margin: distance from a boundary, in logits, within which a sample is not counted as forgotten.
        fixed: targets (n,) that do not follow anything; None where they follow the unseen samples.
    """

    parameters: Mapping[str, nn.Parameter]
    plan: Plan
    forgotten: Forgotten
    anchor: Anchor | None
    unseen: Unseen | None
    limits: Limits
    schedule: Schedule
    margin: float = 0.0
    fixed: Tensor | None = None
    max_auc: float | None = None

    def __post_init__(self) -> None:
        """What does not change: the original weights, margins, and the classes of the features; and what was spent so far."""
        self.start = loop.copied(self.parameters)
        self.spent = 0
        self.astray_when = f"accuracy of unseen samples fell by more than {ASTRAY:.0%}"
        self.phi = margins.margins(self.forgotten.logits, self.forgotten.labels)
        self.classes = self.forgotten.logits.shape[1]
        self.before = self._right(self.unseen.logits) if self.unseen is not None else None
        self.means = None
        if self.schedule.attraction and self.anchor is not None:
            given = self._answers(self.anchor.logits).argmax(dim=1)
            self.means = features_module.kept(self.anchor.features.float(), given, self.classes)

    # What is looked at

    def _answers(self, logits: Tensor) -> Tensor:
        """Logits (m, c) in which forgotten classes are no answer."""
        if not self.plan.forgotten:
            return logits
        made = logits.clone()
        made[:, list(self.plan.forgotten)] = -math.inf
        return made

    def _right(self, logits: Tensor) -> Tensor:
        assert self.unseen is not None
        return (logits.argmax(dim=1) == self.unseen.labels)[self.unseen.kept]

    def logits_of(self, of: Forgotten | Unseen) -> Tensor:
        """Logits (n, c) float64 of a whole set under the weights as they are."""
        n = len(of.labels)
        self.spent += n
        mine = self.share(torch.arange(n))
        made = self.forgotten.logits.new_zeros(n, self.classes, dtype=torch.float64)
        with torch.no_grad():
            for rows in loop.portions(mine, self.schedule.at_once, of.lengths):
                signals.check()
                made[rows.to(made.device)] = of.run(rows)[1].double()
        self.join([made])
        return made

    def comparison(self, logits: Tensor) -> Comparison:
        """The forget set beside the unseen samples, whose logits (m, c) are given."""
        assert self.unseen is not None
        held = HeldOut(logits, self.unseen.labels, self.unseen.kept)
        return Comparison(self.plan, self.forgotten.labels, self.forgotten.true_labels, held)

    def look(self) -> tuple[Look, Tensor | None]:
        """What the weights as they are do, and the unseen samples' logits."""
        found = self.logits_of(self.forgotten)
        seen = None if self.unseen is None else self.logits_of(self.unseen)
        return self.look_at(found, seen), seen

    def look_at(self, found: Tensor, seen: Tensor | None) -> Look:
        """The look at logits of the forget set and of the unseen samples."""
        same = torch.eye(self.classes, dtype=torch.float64, device=found.device)
        hits, near = objective.counts_in(found, same, self.plan.members, self.margin)
        moved = loop.change(self.parameters, self.start, self.parts)
        share = auc = drop = worst = None
        if seen is not None and self.unseen is not None:
            right = self._right(seen)
            assert self.before is not None
            drop = float(self.before.double().mean() - right.double().mean())
            if self.limits.max_class_drop is not None:
                worst = targets.worst_fall(self.before, right, self.unseen.labels[self.unseen.kept])
            if self.plan.kind != "class":
                beside = self.comparison(seen)
                share, auc = beside.share(same), beside.auc(found, same)
        n = len(found)
        return Look(hits / n, moved, drop, near=near / n, unseen=share, auc=auc, class_drop=worst)

    def met(self, look: Look) -> bool:
        """Whether the share is where it should be, and the AUC too where it is looked at."""
        return self.limits.share_met(look) and (self.plan.kind == "class" or targets.alike(look.auc, self.max_auc))

    # Training

    def targets(self, seen: Tensor | None) -> Tensor | None:
        """Targets t (n,): margins of unseen samples by rank, under the network that gave ``seen``; None for whole classes."""
        if self.plan.kind == "class":
            return None
        if self.fixed is not None or seen is None:
            return self.fixed
        same = torch.eye(self.classes, dtype=torch.float64, device=seen.device)
        return margins.coupled_targets(self.phi, *self.comparison(seen).margins(same))

    def teacher(self, rows: Tensor, wanted: Tensor | None, logits: Tensor) -> Tensor:
        """The teacher's log q (k, c) of some forget samples, which have these logits (k, c) now.

        What the original says beside a wrong label was learnt with it and is worth nothing: there the teacher is what the network says
        now, so that the label alone is held down, never up, and the other classes go where what stays takes them.
        """
        if wanted is None:
            return teacher.masked(self.forgotten.logits[rows], self.plan.forgotten)
        labels, targets = self.forgotten.labels[rows], wanted[rows]
        if self.plan.kind != "mislabelled":
            return teacher.demoted(self.forgotten.logits[rows], labels, targets)
        now = logits.detach().double()
        return teacher.demoted(now, labels, torch.minimum(targets, margins.margins(now, labels)))

    def gradients(self, batch: Batch, wanted: Tensor | None) -> tuple[dict[str, Tensor], float]:
        """Gradients of the loss on a batch by name, summed over processes, and the loss."""
        rows, anchored, others = batch.rows, batch.anchored, batch.others
        weights = self.forgotten.weights[rows]
        total = float(weights.sum()) or 1.0  # a batch whose weights are all 0 asks for nothing
        names, moving = list(self.parameters), list(self.parameters.values())
        summed = [torch.zeros_like(parameter) for parameter in moving]
        loss = 0.0
        self.spent += loop.BACKWARD * (len(rows) + (0 if anchored is None else len(anchored)))

        def add(part: Tensor) -> None:
            nonlocal loss
            loop.add(summed, torch.autograd.grad(part, moving, allow_unused=True))
            loss += float(part.detach())

        if self.means is not None and anchored is not None:
            add(self._with_features(rows, anchored, wanted, weights / total))
        else:
            for some in loop.portions(self.share(rows), self.schedule.at_once, self.forgotten.lengths):
                signals.check()
                _, logits = self.forgotten.run(some)
                own = (self.forgotten.weights[some] / total).to(logits.dtype)
                add((own * teacher.divergence(self.teacher(some, wanted, logits).to(logits.dtype), logits)).sum())
            if anchored is not None and self.anchor is not None:
                long = None if self.anchor.lengths is None else self.anchor.lengths[anchored]
                mine = loop.portions(self.share(torch.arange(len(anchored))), self.schedule.at_once, long)
                said = self._said(anchored, mine, others)
                for answer, some in zip(said, mine, strict=True):
                    signals.check()
                    logits = self._anchored(anchored, some, others)
                    log_p = answer.log_softmax(dim=1).to(logits.dtype)
                    add(self.schedule.beta * teacher.divergence(log_p, logits).sum() / len(anchored))
            whole = summed[0].new_tensor([loss])
            self.join([*summed, whole])
            loss = float(whole)  # the same in every process, so that all go on or none
        return dict(zip(names, summed, strict=True)), loss

    def _anchored(self, anchored: Tensor, some: Tensor, others: tuple[Tensor, Tensor] | None) -> Tensor:
        """Logits (k, c) of some of the anchored rows, mixed with others where those are given."""
        assert self.anchor is not None
        if others is None or self.anchor.blended is None:
            return self.anchor.run(anchored[some])[1]
        return self.anchor.blended(anchored[some], others[0][some], others[1][some])[1]

    def _said(self, anchored: Tensor, parts: Sequence[Tensor], others: tuple[Tensor, Tensor] | None) -> list[Tensor]:
        """What the original says (k, c) of the anchored rows, in the portions that run together."""
        assert self.anchor is not None
        if others is None or self.anchor.blended is None:
            return [self.anchor.logits[anchored[some]] for some in parts]
        self.spent += len(anchored)
        now = loop.copied(self.parameters)
        loop.put(self.parameters, self.start)
        with torch.no_grad():
            said = [self._anchored(anchored, some, others).double() for some in parts]
        loop.put(self.parameters, now)
        return said

    def _with_features(self, rows: Tensor, anchored: Tensor, wanted: Tensor | None, weights: Tensor) -> Tensor:
        """The loss with the feature term, which needs a whole batch at once; every process computes it."""
        assert self.anchor is not None
        assert self.means is not None
        signals.check()
        h, logits = self._together(self.forgotten.run, rows, self.forgotten.lengths)
        log_q = self.teacher(rows, wanted, logits)
        made = (weights.to(logits.dtype) * teacher.divergence(log_q.to(logits.dtype), logits)).sum()
        f, kept = self._together(self.anchor.run, anchored, self.anchor.lengths)
        given = self._answers(self.anchor.logits[anchored])
        made = made + self.schedule.beta * teacher.divergence(given.log_softmax(dim=1).to(logits.dtype), kept).mean()
        own = given.argmax(dim=1)
        return made + self.schedule.attraction * features_module.spread(
            h, log_q, f, own, self.means, self.schedule.covariance / self.schedule.attraction
        )

    def _together(self, run: Run, rows: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (k, d) and logits (k, c) of rows in their order; texts run in portions."""
        if lengths is None:
            return run(rows)
        places = loop.portions(torch.arange(len(rows)), self.schedule.at_once, lengths[rows])
        made = [run(rows[some]) for some in places]
        back = torch.cat(places).argsort()
        h, logits = (torch.cat(parts)[back] for parts in zip(*made, strict=True))
        return h, logits

    # What the loop asks for

    def how(self) -> str:
        """Where targets come from, in words."""
        if self.plan.kind == "class":
            return "the mask"
        return "fixed" if self.fixed is not None else "unseen samples by rank"

    def length(self) -> int:
        """Steps of a whole run."""
        return self.schedule.length(len(self.forgotten.labels))

    def batches(self, draws: torch.Generator) -> "_Batches":
        """Batches of forget and anchor samples."""
        return _Batches(self, draws)

    def original(self) -> tuple[Look, Tensor | None]:
        """The look at the original, and the unseen samples' logits."""
        seen = None if self.unseen is None else self.unseen.logits
        return self.look_at(self.forgotten.logits, seen), seen

    def looked(self, values: Mapping[str, Any]) -> Look:
        """A look that was kept."""
        return Look(**values)

    def astray(self, look: Look) -> bool:
        """Whether accuracy on unseen samples fell by more than any run recovers from."""
        return look.test_drop is not None and look.test_drop > ASTRAY

    def enough(self, look: Look) -> bool:
        """The feature term is not done when the share is: nothing that is looked at says how far features went."""
        return self.means is None and self.met(look)

    def exceeded(self, look: Look) -> Reason | None:
        """Which budget this look is beyond."""
        return self.limits.exceeded(look)

    def reached(self, look: Look) -> bool | None:
        """Whether the target share is met; None without one."""
        return None if self.limits.target is None else self.limits.share_met(look)


class _Batches(loop.Orders):
    """Batches in random order, each sample once before any comes again."""

    def __init__(self, work: Training, draws: torch.Generator) -> None:
        super().__init__(len(work.forgotten.labels), None if work.anchor is None else len(work.anchor.logits), draws)
        self.work, self.draws = work, draws

    def take(self) -> Batch:
        """The next batch."""
        schedule, source = self.work.schedule, self.work.anchor
        rows = self.forget.take(min(schedule.forget, self.forget.n))
        if self.anchor is None or source is None:
            return Batch(rows, None, None)
        anchored, others = self.anchor.take(schedule.anchor), None
        if schedule.blending and source.blended is not None:
            others = (self.anchor.take(schedule.anchor), _shares(schedule.blending, schedule.anchor, self.draws))
        return Batch(rows, anchored, others)


def _shares(alpha: float, most: int, draws: torch.Generator) -> Tensor:
    """Draws (most,) from Beta(α, α): x / (x + y) with x and y of Gamma(α)."""
    x, y = torch._standard_gamma(torch.full((2, most), alpha, dtype=torch.float64), generator=draws)
    made: Tensor = (x / (x + y).clamp(min=1e-300)).float()
    return made
