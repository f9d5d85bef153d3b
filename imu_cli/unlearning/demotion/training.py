"""The demoted teacher's training: batches, looks, the stop rule with an interpolated last step, budgets.

Tensors and functions in, weights out: what runs the network is handed in, so that nothing here knows files or kinds of samples.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.linear import margins, objective
from imu_cli.unlearning import targets
from imu_cli.unlearning.ascent import Reason
from imu_cli.unlearning.demotion import features as features_module
from imu_cli.unlearning.demotion import teacher
from imu_cli.unlearning.demotion.update import RelativeAdam
from imu_cli.unlearning.scenario import Plan
from imu_cli.unlearning.targets import Comparison, HeldOut, Limits, Look

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Features (k, d) and logits (k, c) of some rows of a set (k,), differentiable in the weights that move."""
BISECTIONS = 6
BACKWARD = 3
"""Forward passes that a sample's forward and backward are worth."""
HALVINGS = 4
"""Times that the learning rate is halved, and the run begun again, where it went astray."""
ASTRAY = 0.25
"""Fall of accuracy on unseen samples at a look, as a share, that no run recovers from."""


@dataclass(frozen=True)
class Schedule:
    """How long and in what portions the network is trained.

    Attributes:
        batches: steps; ``None`` follows the number of forget samples (``length``).
        forget, anchor: samples in a batch.
        at_once: samples that run together; gradients are summed over them.
        learning_rate: share of a layer's size that a step may move it by, at the start; it falls along a cosine to 0.
        beta: weight of the anchor.
        blending: α of the Beta distribution that mixing shares of anchor samples are drawn from; 0 for none.
        looks: of the whole run; targets follow the network at each.
        attraction, covariance: weights of the feature term; 0 leaves it out.
        seed: of the order of samples.
    """

    batches: int | None = None
    forget: int = 128
    anchor: int = 128
    at_once: int = 256
    learning_rate: float = 0.01
    beta: float = 1.0
    looks: int = 10
    blending: float = 0.3
    attraction: float = 0.0
    covariance: float = 0.0
    seed: int = 0

    def length(self, n: int) -> int:
        """Steps for n forget samples: 200, and fifteen passes or so over many."""
        return self.batches or (1000 if self.attraction else 200 + round(0.08 * n))


@dataclass
class Forgotten:
    """The forget set: what runs it, its logits (n, c) under the original, labels (n,), true labels, and weights (n,)."""

    run: Run
    logits: Tensor
    labels: Tensor
    true_labels: Tensor | None
    weights: Tensor


@dataclass
class Anchor:
    """Samples on which nothing is to change: what runs them, logits (m, c) and features (m, d) under the original.

    ``blended`` runs them mixed with others (rows, others' rows, share (k,)): the original says what is to be said of mixtures too, and
    so there are more things to hold on to than samples. None where samples cannot be mixed.
    """

    run: Run
    logits: Tensor
    features: Tensor
    blended: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None


@dataclass
class Unseen:
    """Unseen samples with labels that are not anchored: targets follow them, and budgets guard them."""

    run: Run
    logits: Tensor
    labels: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Trained:
    """What a training ended with: weights by the model's names, and how it came there."""

    weights: dict[str, Tensor] = field(repr=False)
    reason: Reason
    reached: bool | None
    looks: tuple[tuple[int, Look], ...]
    fraction: float
    learning_rate: float
    batches: int
    steps: int
    targets: str


@dataclass
class Training:
    """A network that is to forget some samples.

    Attributes:
        parameters: the weights that move, by name.
        plan, forgotten, anchor, unseen: what goes, what stays, what it is compared with.
        limits: target and budgets.
        schedule: how it is trained.
        margin: distance from a boundary, in logits, within which a sample is not counted as forgotten.
        fixed: targets (n,) that do not follow anything; None where they follow the unseen samples.
        share: of the rows of a batch, those that this process takes; ``join`` sums gradients over processes.
        told: hears notes.
        save: keeps what the run can go on from, after every look.
        state: what an earlier run kept; this one goes on from there, to the same bytes.
        to_file: a weight, by its name, as the file will hold it; what the training ends with is so, and is looked at so.
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
    share: Callable[[Tensor], Tensor] = lambda rows: rows
    join: Callable[[list[Tensor]], None] = lambda _: None
    told: Callable[[str], None] = lambda _: None
    save: Callable[[dict[str, Tensor], dict[str, Any]], None] = lambda *_: None
    state: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    to_file: Callable[[str, Tensor], Tensor] = lambda _, value: value

    def __post_init__(self) -> None:
        """What does not change: the original weights, margins, and the classes of the features; and what was spent so far.

        ``spent`` counts samples that ran through the moving part, on all processes together.
        """
        self.start = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.spent = 0
        self.size = math.sqrt(sum(float(value.double().square().sum()) for value in self.start.values()))
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

    def logits_of(self, run: Run, n: int) -> Tensor:
        """Logits (n, c) float64 of a whole set under the weights as they are."""
        self.spent += n
        mine = self.share(torch.arange(n))
        made = self.forgotten.logits.new_zeros(n, self.classes, dtype=torch.float64)
        with torch.no_grad():
            for rows in mine.split(self.schedule.at_once):
                signals.check()
                made[rows.to(made.device)] = run(rows)[1].double()
        self.join([made])
        return made

    def comparison(self, logits: Tensor) -> Comparison:
        """The forget set beside the unseen samples, whose logits (m, c) are given."""
        assert self.unseen is not None
        held = HeldOut(logits, self.unseen.labels, self.unseen.kept)
        return Comparison(self.plan, self.forgotten.labels, self.forgotten.true_labels, held)

    def look(self) -> tuple[Look, Tensor | None]:
        """What the weights as they are do, and the unseen samples' logits."""
        found = self.logits_of(self.forgotten.run, len(self.forgotten.labels))
        seen = None if self.unseen is None else self.logits_of(self.unseen.run, len(self.unseen.labels))
        return self.look_at(found, seen), seen

    def look_at(self, found: Tensor, seen: Tensor | None) -> Look:
        """The look at logits of the forget set and of the unseen samples."""
        same = torch.eye(self.classes, dtype=torch.float64, device=found.device)
        hits, near = objective.counts_in(found, same, self.plan.members, self.margin)
        moved = math.sqrt(
            sum(float((p.detach() - self.start[n]).double().square().sum()) for n, p in self.parameters.items())
        )
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
        return Look(
            hits / n, moved / max(self.size, 1e-30), drop, near=near / n, unseen=share, auc=auc, class_drop=worst
        )

    def met(self, look: Look) -> bool:
        """Whether the share is where it should be, and the AUC too where it is looked at."""
        return self.limits.share_met(look) and (self.plan.kind == "class" or targets.alike(look.auc, self.max_auc))

    # Training

    def targets(self, seen: Tensor | None) -> Tensor | None:
        """T (n,): margins of unseen samples by rank, under the network that gave ``seen``; None for whole classes."""
        if self.plan.kind == "class":
            return None
        if self.fixed is not None or seen is None:
            return self.fixed
        same = torch.eye(self.classes, dtype=torch.float64, device=seen.device)
        return margins.coupled_targets(self.phi, *self.comparison(seen).margins(same))

    def teacher(self, rows: Tensor, wanted: Tensor | None) -> Tensor:
        """Log q (k, c) of some forget samples."""
        if wanted is None:
            return teacher.masked(self.forgotten.logits[rows], self.plan.forgotten)
        return teacher.demoted(self.forgotten.logits[rows], self.forgotten.labels[rows], wanted[rows])

    def gradients(
        self, rows: Tensor, anchored: Tensor | None, wanted: Tensor | None, others: tuple[Tensor, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], float]:
        """Gradients of the loss on a batch by name, summed over processes, and the loss.

        ``others`` are rows that the anchored ones are mixed with, and the shares that those keep.
        """
        weights = self.forgotten.weights[rows]
        total = float(weights.sum())
        names, moving = list(self.parameters), list(self.parameters.values())
        summed = [torch.zeros_like(parameter) for parameter in moving]
        loss = 0.0
        self.spent += BACKWARD * (len(rows) + (0 if anchored is None else len(anchored)))

        def add(part: Tensor) -> None:
            nonlocal loss
            made = torch.autograd.grad(part, moving, allow_unused=True)
            for whole, gradient in zip(summed, made, strict=True):
                if gradient is not None:
                    whole.add_(gradient)
            loss += float(part.detach())

        if self.means is not None and anchored is not None:
            add(self._with_features(rows, anchored, wanted, weights / total))
        else:
            for some in self.share(rows).split(self.schedule.at_once):
                signals.check()
                _, logits = self.forgotten.run(some)
                own = (self.forgotten.weights[some] / total).to(logits.dtype)
                add((own * teacher.divergence(self.teacher(some, wanted).to(logits.dtype), logits)).sum())
            if anchored is not None and self.anchor is not None:
                mine = self.share(torch.arange(len(anchored)))
                said = self._said(anchored, mine, others)
                for answer, some in zip(said, mine.split(self.schedule.at_once), strict=True):
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

    def _said(self, anchored: Tensor, mine: Tensor, others: tuple[Tensor, Tensor] | None) -> list[Tensor]:
        """What the original says (k, c) of the anchored rows, in the portions that run together."""
        assert self.anchor is not None
        parts = mine.split(self.schedule.at_once)
        if others is None or self.anchor.blended is None:
            return [self.anchor.logits[anchored[some]] for some in parts]
        self.spent += len(anchored)
        now = self.copied()
        self.put(self.start)
        with torch.no_grad():
            said = [self._anchored(anchored, some, others).double() for some in parts]
        self.put(now)
        return said

    def _with_features(self, rows: Tensor, anchored: Tensor, wanted: Tensor | None, weights: Tensor) -> Tensor:
        """The loss with the feature term, which needs a whole batch at once; every process computes it."""
        assert self.anchor is not None
        assert self.means is not None
        signals.check()
        h, logits = self.forgotten.run(rows)
        log_q = self.teacher(rows, wanted)
        made = (weights.to(logits.dtype) * teacher.divergence(log_q.to(logits.dtype), logits)).sum()
        f, kept = self.anchor.run(anchored)
        given = self._answers(self.anchor.logits[anchored])
        made = made + self.schedule.beta * teacher.divergence(given.log_softmax(dim=1).to(logits.dtype), kept).mean()
        own = given.argmax(dim=1)
        return made + self.schedule.attraction * features_module.spread(
            h, log_q, f, own, self.means, self.schedule.covariance / self.schedule.attraction
        )

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Give the network these weights."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    def copied(self) -> dict[str, Tensor]:
        """The weights as they are."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def train(self) -> Iterator[tuple[int, Look] | Trained]:
        """Train to the target or to the end of the schedule: looks with the step at which they were made, and what came of it."""
        rate = self.schedule.learning_rate if self.state is None else float(self.state[1]["rate"])
        for attempt in range(HALVINGS + 1):
            again = False
            for item in self._attempt(rate):
                if item is None:
                    again = True
                    break
                yield item
            if not again:
                return
            if attempt == HALVINGS:
                break
            rate /= 2
            self.put(self.start)
            why = f"accuracy of unseen samples fell by more than {ASTRAY:.0%}, or the loss is not finite"
            self.told(f"the run went astray ({why}); begun again at half the learning rate")
        raise ImuError(
            f"--scope: the network loses what it knows at every learning rate down to {rate:.3g}; move fewer layers, or check that the "
            "anchor is data of the kind that the model was trained on"
        )

    def _attempt(self, rate: float) -> Iterator[tuple[int, Look] | Trained | None]:
        n, schedule = len(self.forgotten.labels), self.schedule
        steps = schedule.length(n)
        every = max(1, steps // schedule.looks)
        update = RelativeAdam(self.parameters)
        draws = torch.Generator().manual_seed(schedule.seed)
        forget_rows = _Order(n, draws)
        anchor_rows = None if self.anchor is None else _Order(len(self.anchor.logits), draws)
        look, seen = self.look_at(self.forgotten.logits, None if self.unseen is None else self.unseen.logits), None
        seen = None if self.unseen is None else self.unseen.logits
        looks = [(0, look)]
        begin = 0
        if self.state is not None:
            tensors, said = self.state
            looks = [(int(number), Look(**values)) for number, values in said["looks"]]
            begin, self.spent, self.state = looks[-1][0], int(said["spent"]), None
            self.put(_under("weights", tensors))
            update.restore(_under("update", tensors))
            draws.set_state(tensors["draws"])
            forget_rows.left = tensors["forget"]
            if anchor_rows is not None:
                anchor_rows.left = tensors["anchor"]
            seen = self.look()[1]
        yield from looks
        wanted, previous = self.targets(seen), self.copied()
        for step in range(begin, steps):
            rows = forget_rows.take(min(schedule.forget, n))
            anchored = None if anchor_rows is None else anchor_rows.take(schedule.anchor)
            others = None
            if (
                schedule.blending
                and anchor_rows is not None
                and self.anchor is not None
                and self.anchor.blended is not None
            ):
                others = (anchor_rows.take(schedule.anchor), _shares(schedule.blending, schedule.anchor, draws))
            gradients, loss = self.gradients(rows, anchored, wanted, others)
            if not math.isfinite(loss):
                yield None
                return
            update(gradients, rate * (1 + math.cos(math.pi * step / steps)) / 2)
            last = step + 1 == steps
            if not last and (step + 1) % every:
                continue
            look, seen = self.look()
            if look.test_drop is not None and look.test_drop > ASTRAY:
                yield None
                return
            looks.append((step + 1, look))
            yield step + 1, look
            # The feature term is not done when the share is: nothing that is looked at says how far features went.
            if self.means is None and self._holds(look):
                met = self._met(previous, looks, rate, steps)
                if met is not None:
                    yield met
                    return
            wanted, previous = self.targets(seen), self.copied()
            if not last:
                state = {f"weights.{name}": value for name, value in previous.items()}
                state |= {f"update.{name}": value for name, value in update.state().items()}
                state |= {"draws": draws.get_state(), "forget": forget_rows.left}
                state |= {} if anchor_rows is None else {"anchor": anchor_rows.left}
                self.save(
                    state,
                    {"rate": rate, "spent": self.spent, "looks": [(number, vars(each)) for number, each in looks]},
                )
        yield self._ended(looks, rate, steps)

    def _holds(self, look: Look) -> bool:
        """Whether the target is met within the budgets."""
        return self.met(look) and self.limits.exceeded(look) is None

    def _met(
        self, previous: Mapping[str, Tensor], looks: list[tuple[int, Look]], rate: float, steps: int
    ) -> Trained | None:
        """The weights between the last two looks that just meet the target; None where as the file has them they do not."""
        now, low, high = self.copied(), 0.0, 1.0
        self._between(previous, now, high)
        if not self._holds(self.look()[0]):
            self.put(now)
            return None
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            self._between(previous, now, middle)
            low, high = (low, middle) if self._holds(self.look()[0]) else (middle, high)
        return self._trained("target", looks, (previous, now, high), rate, steps)

    def _ended(self, looks: list[tuple[int, Look]], rate: float, steps: int) -> Trained:
        """The weights at the end of the schedule, or as far towards them as the budgets allow."""
        now = self.copied()
        self._between(self.start, now, 1.0)
        look, _ = self.look()
        spent = self.limits.exceeded(look)
        if spent is None:
            return self._trained(
                "target" if self.met(look) else "max_steps", looks, (self.start, now, 1.0), rate, steps
            )
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            self._between(self.start, now, middle)
            low, high = (low, middle) if self.limits.exceeded(self.look()[0]) is not None else (middle, high)
        return self._trained(spent, looks, (self.start, now, low), rate, steps)

    def _between(self, one: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float) -> None:
        self.put({name: self.to_file(name, torch.lerp(one[name], other[name], share)) for name in self.parameters})

    def _trained(
        self,
        reason: Reason,
        looks: list[tuple[int, Look]],
        at: tuple[Mapping[str, Tensor], Mapping[str, Tensor], float],
        rate: float,
        steps: int,
    ) -> Trained:
        """The result at a share of the way between two sets of weights."""
        self._between(*at)
        end, _ = self.look()
        reached, fraction = None if self.limits.target is None else self.limits.share_met(end), at[2]
        looks = [*(looks if fraction < 1 else looks[:-1]), (looks[-1][0], end)]
        how = (
            "the mask" if self.plan.kind == "class" else "fixed" if self.fixed is not None else "unseen samples by rank"
        )
        return Trained(self.copied(), reason, reached, tuple(looks), fraction, rate, steps, looks[-1][0], how)


def _under(word: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a word, without it."""
    return {name.removeprefix(f"{word}."): value for name, value in tensors.items() if name.startswith(f"{word}.")}


def _shares(alpha: float, most: int, draws: torch.Generator) -> Tensor:
    """Draws (most,) from Beta(α, α): x / (x + y) with x and y of Gamma(α)."""
    x, y = torch._standard_gamma(torch.full((2, most), alpha, dtype=torch.float64), generator=draws)
    made: Tensor = (x / (x + y).clamp(min=1e-300)).float()
    return made


class _Order:
    """Rows of a set in random order, each once before any comes again."""

    def __init__(self, n: int, draws: torch.Generator) -> None:
        self.n, self.draws = n, draws
        self.left = torch.empty(0, dtype=torch.int64)

    def take(self, most: int) -> Tensor:
        """The next rows (most,)."""
        while len(self.left) < most:
            self.left = torch.cat([self.left, torch.randperm(self.n, generator=self.draws)])
        found, self.left = self.left[:most], self.left[most:]
        return found
