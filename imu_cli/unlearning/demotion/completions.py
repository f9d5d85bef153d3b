"""The demoted teacher on completions: a language model in which forgotten records are as likely as records that it never saw.

Symbols (docs/method.md): h what enters the head where a token y is predicted, z = W h its logits, z⁰ the original's, φ the log-odds of y,
t ≤ φ⁰ its target. With p₋ the model's distribution over all other words and q₋ the original's, the loss of a token is

    KL(t ‖ φ) + huber(φ − t) + KL(q₋ ‖ p₋),        and of a token of an anchored record   β KL(p⁰ ‖ p),

KL(t ‖ φ) between the chances that these log-odds are. Where φ = t and p₋ = q₋ the model says what the demoted teacher says. Its KL(q ‖ p)
alone would ask for that too, but hardly sees how small p_y is once q_y is small: the second term goes on there, with a slope of at most one
(docs/method.md). A token with φ⁰ < 0 is a draw rather than an answer: other draws that go, too, are among what the original says beside it, so
that there the third term is left out, and the rest goes where the anchor takes it.

Logits are made by blocks of rows and never held as a whole; gradients are closed-form.

Tensors and functions in, weights out, as in ``training``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli.linear import margins, vocabulary
from imu_cli.linear.vocabulary import Vocabulary, Words
from imu_cli.statistics import recall
from imu_cli.unlearning.ascent import Reason
from imu_cli.unlearning.demotion import loop

Run = Callable[[Tensor], Tensor]
"""What enters the head (N, d) for the completion tokens of some records (k,), differentiable in the weights that move."""
ASTRAY = 0.25
"""Fall of the share of unseen records' tokens that are predicted right, from which no run recovers."""
KNEE = 2.0
"""Log-odds from which on a token that misses its target is pulled no harder by the second term: its slope is one from there on."""
GAIN = 2.0
"""Log-odds by which targets are lower for each nat a token that is missing at a look."""
STEP, MOST = 1.0, 4.0
"""Log-odds by which they are lowered at one look, and in all, at most: of targets that no token is near only their sign is left."""
SLACK = 0.002
"""What a share may miss its level by and count as met."""


@dataclass(frozen=True)
class Schedule(loop.Pace):
    """How long and in what portions the network is trained.

    Attributes:
        batches: steps; ``None`` follows the number of records (``length``).
        forget, anchor: records in a batch.
        at_once: records that run together; gradients are summed over them.
        beta: weight of the anchor.
        others: weight of KL(q₋ ‖ p₋) beside the log-odds of the tokens that go, of those that were likelier than not.
    """

    batches: int | None = None
    forget: int = 16
    anchor: int = 16
    at_once: int = 16
    beta: float = 1.0
    others: float = 1.0

    def length(self, n: int) -> int:
        """Steps for n records: 60, and eleven passes over many of them."""
        return self.batches or 60 + round(11 * n / self.forget)


@dataclass(frozen=True, eq=False)
class Completed:
    """Records: what runs them, and their completion tokens under the original.

    Attributes:
        run: gives what enters the head now.
        features: what entered it under the original, (N, d).
        targets: the tokens, (N,).
        records: row of the set, ascending, (N,).
        ends: whether a token is the end token, (N,).
        places: places in these of the tokens of some records (k,).
        lengths: tokens of each record, prompt and all, (n,); where they are not known, records run in the order that they come in.
    """

    run: Run
    features: Tensor
    targets: Tensor
    records: Tensor
    ends: Tensor
    places: Callable[[Tensor], Tensor]
    lengths: Tensor | None = None

    @property
    def n(self) -> int:
        """Records."""
        return int(self.records[-1]) + 1 if len(self.records) else 0


@dataclass(frozen=True)
class Aim:
    """What forgotten records are to look like.

    Attributes:
        fixed: targets (N,) of their tokens, where a reference model gives them; None where they follow the unseen records.
        memorized, extraction: levels of the look that end a run; None where they are the unseen records' own under the model that results.
        how: where this comes from.
        chance: by how much the means of so many records may miss the levels, in their order, and count as met.
        loss: cross-entropy that forgotten completions are to reach; None where it is the unseen records' own.
        by_loss: whether a run also goes on until they have reached it.
        beyond: log-odds by which targets are lower than the aim: training comes near its targets only, and the stop rule ends it in time.
    """

    fixed: Tensor | None
    memorized: float | None
    extraction: float | None
    how: str
    chance: tuple[float, float, float] = (0.0, 0.0, 0.0)
    loss: float | None = None
    by_loss: bool = False
    beyond: float = 0.25

    def margins(self, phi: Tensor, seen: Tensor | None) -> Tensor:
        """Target margins (N,): a reference model's, or those of unseen records' tokens by rank, never above the original's own φ (N,)."""
        if self.fixed is not None:
            return torch.minimum(self.fixed.to(phi), phi)
        assert seen is not None, "without a reference model there are unseen records"
        return margins.coupled_targets(phi, seen.to(phi))

    def levels(self, look: "Look") -> tuple[float | None, float | None, float | None]:
        """Share of right tokens, extraction strength and loss to reach, the unseen records' own where none is fixed; None: not asked for."""
        return (
            look.unseen if self.memorized is None else self.memorized,
            look.unseen_extraction if self.extraction is None else self.extraction,
            (look.unseen_loss if self.loss is None else self.loss) if self.by_loss else None,
        )

    def met(self, look: "Look") -> bool:
        """Whether no more of a forgotten completion is known, or can be read out, than this says, and none is likelier."""
        known, read, unlikely = self.levels(look)
        slack = [max(SLACK, width) for width in self.chance]
        return (
            (known is None or look.forget <= known + slack[0])
            and (read is None or look.extraction <= read + slack[1])
            and (unlikely is None or look.loss >= unlikely - slack[2])
        )


@dataclass(frozen=True)
class Look:
    """What the weights do to records; means over records.

    Attributes:
        forget: share of a forgotten completion's tokens that are predicted right, without the end token.
        extraction: of a forgotten completion, the share at its end that is written right from what stands before.
        loss: cross-entropy of a forgotten completion's tokens.
        head_change: ‖W − W₀‖/‖W₀‖ of all weights that move.
        unseen, unseen_extraction, unseen_loss: ``forget``, ``extraction`` and ``loss`` of unseen records.
        auc: chance that a forgotten record is more likely than an unseen one.
        test_drop, test_drop_error: fall of the unseen records' share, and its standard error over records.
    """

    forget: float
    extraction: float
    loss: float
    head_change: float
    unseen: float | None = None
    unseen_extraction: float | None = None
    unseen_loss: float | None = None
    auc: float | None = None
    test_drop: float | None = None
    test_drop_error: float | None = None

    def fell_beyond(self, most: float) -> bool:
        """Whether unseen records' share fell by more than ``most``, by more than chance."""
        return self.test_drop is not None and self.test_drop - (self.test_drop_error or 0.0) > most


@dataclass(frozen=True)
class Judged:
    """Records as a model answers them, by record (n,): share of tokens that are right, extraction strength, cross-entropy; and margins (N,)."""

    memorized: Tensor
    extraction: Tensor
    loss: Tensor
    margins: Tensor


def judged(features: Tensor, of: Completed, head: Vocabulary) -> Judged:
    """How records are answered where their tokens have these features (N, d)."""
    seen = vocabulary.statistics(_Rows(features, of.targets), head)
    return answered(of, seen.margin, seen.hit)


def answered(of: Completed, margin: Tensor, hit: Tensor) -> Judged:
    """How records are answered whose tokens have these margins φ (N,), and are the largest logit or not (N,)."""
    device, losses = margin.device, nn.functional.softplus(-margin)
    loss, exact, extraction = recall.by_answer(losses, hit, of.records.to(device), of.ends.to(device), of.n)
    return Judged(exact, extraction, loss, margin)


def compared(ours: Judged, theirs: Judged | None, before: Judged | None, head_change: float) -> Look:
    """The look at how forgotten and unseen records are answered, the latter also ``before``."""
    auc = drop = error = None
    if theirs is not None and before is not None:
        auc = margins.weighted_auc(-ours.loss, -theirs.loss, torch.ones_like(theirs.loss))
        fell = before.memorized - theirs.memorized
        drop, error = float(fell.mean()), float(fell.std(correction=0)) / math.sqrt(len(fell))
    return Look(
        forget=float(ours.memorized.mean()),
        extraction=float(ours.extraction.mean()),
        loss=float(ours.loss.mean()),
        head_change=head_change,
        unseen=None if theirs is None else float(theirs.memorized.mean()),
        unseen_extraction=None if theirs is None else float(theirs.extraction.mean()),
        unseen_loss=None if theirs is None else float(theirs.loss.mean()),
        auc=auc,
        test_drop=drop,
        test_drop_error=error,
    )


def chance(of: Judged, n: int) -> tuple[float, float, float]:
    """A standard error of the means over n records that are answered as these are: of the share that is right, extraction and loss."""
    one, other, third = (
        float(values.std(correction=0)) / math.sqrt(n) for values in (of.memorized, of.extraction, of.loss)
    )
    return one, other, third


def losses(of: Completed, margin: Tensor) -> Tensor:
    """Cross-entropy (n,) of records whose tokens have these margins φ (N,)."""
    return answered(of, margin, torch.zeros(len(margin), dtype=torch.bool, device=margin.device)).loss


@dataclass(frozen=True)
class _Rows:
    features: Tensor
    targets: Tensor


@dataclass(frozen=True)
class _Batch:
    rows: Tensor
    anchored: Tensor | None


@dataclass
class CompletionTraining(loop.Objective[Look]):
    """A language model that is to forget some records.

    Attributes:
        parameters: the weights that move, by name.
        head: the original's, W (V, d).
        moving_head: the name of the head's weight among ``parameters`` where it moves, too; empty where it does not.
        forgotten, anchor, unseen: what goes, what the model is held to, and what it is compared with.
        aim: what forgotten records are to look like.
        max_drop: largest fall of the share of unseen records' tokens that are right.
        schedule: how it is trained.
        weights: of the forgotten records, (n,).
    """

    parameters: Mapping[str, Tensor]
    head: Words
    moving_head: str
    forgotten: Completed
    anchor: Completed | None
    unseen: Completed | None
    aim: Aim
    max_drop: float
    schedule: Schedule
    weights: Tensor
    phi: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """What does not change: the original weights, margins, and how unseen records were answered."""
        self.start = loop.copied(self.parameters)
        self.spent, self.lower = 0, 0.0
        self.astray_when = f"unseen records' tokens are predicted right less often by more than {ASTRAY:.0%}"
        if self.moving_head:
            self.head = replace(self.head, matrix=self.head.matrix.clone())
        self.was = judged(self.forgotten.features, self.forgotten, self.head)
        self.before = None if self.unseen is None else judged(self.unseen.features, self.unseen, self.head)
        self.phi = self.was.margins

    def now(self) -> Words:
        """The head as it is."""
        return (
            self.head
            if not self.moving_head
            else replace(
                self.head, matrix=self.parts.whole(self.moving_head, self.parameters[self.moving_head]).detach()
            )
        )

    # What is looked at

    def features(self, of: Completed) -> Tensor:
        """What enters the head (N, d) for a whole set under the weights as they are."""
        self.spent += of.n
        made = torch.zeros_like(of.features)
        with torch.no_grad():
            for rows, counts in self.portions(of.n, self.schedule.at_once, of.lengths):
                entered = of.run(rows).to(made)
                if counts:
                    made[of.places(rows)] = entered
        self.join([made])
        return made

    def look_at(self, ours: Judged, theirs: Judged | None) -> Look:
        """The look at how forgotten and unseen records are answered."""
        return compared(ours, theirs, self.before, loop.change(self.parameters, self.start, self.parts))

    def look(self) -> tuple[Look, Tensor | None]:
        """What the weights as they are do, and the margins of the unseen records' tokens."""
        head = self.now()
        ours = judged(self.features(self.forgotten), self.forgotten, head)
        theirs = None if self.unseen is None else judged(self.features(self.unseen), self.unseen, head)
        return self.look_at(ours, theirs), None if theirs is None else theirs.margins

    def original(self) -> tuple[Look, Tensor | None]:
        """The look at the original."""
        return self.look_at(self.was, self.before), None if self.before is None else self.before.margins

    def looked(self, values: Mapping[str, Any]) -> Look:
        """A look that was kept."""
        return Look(**values)

    def met(self, look: Look) -> bool:
        """Whether no more of a forgotten completion is known, or can be read out, than the aim says."""
        return self.aim.met(look)

    # What is trained

    def follow(self, looks: Sequence[tuple[int, Look]]) -> None:
        """By how much targets are lower than the aim: more at each look from which the run, at its pace, would not get there."""
        self.lower = 0.0
        for (before, last), (step, look) in pairwise(looks):
            level = self.aim.levels(look)[2]
            missing = 0.0 if level is None else level - look.loss
            left = (self.length() - step) / (step - before)
            if missing < 0 or left * (look.loss - last.loss) < missing:
                self.lower = min(MOST, max(0.0, self.lower + min(STEP, GAIN * missing)))

    def targets(self, seen: Tensor | None) -> Tensor:
        """Targets t (N,): a reference model's margins, or those of unseen records' tokens by rank, never above the original's own."""
        found = self.aim.margins(self.phi, seen)
        return torch.where(found < self.phi, found - self.aim.beyond - self.lower, self.phi)

    def gradients(self, batch: _Batch, wanted: Tensor) -> tuple[dict[str, Tensor], float]:
        """Gradients of the loss on a batch by name, summed over processes, and the loss."""
        gradients, head = self.parts.gradients(self.parameters), self.now()
        total = torch.zeros((), dtype=torch.float64)
        self.spent += loop.BACKWARD * (len(batch.rows) + (0 if batch.anchored is None else len(batch.anchored)))
        for of, rows in ((self.forgotten, batch.rows), (self.anchor, batch.anchored)):
            if of is None or rows is None:
                continue
            share = self._shares(of, rows)
            long = None if of.lengths is None else of.lengths[rows]
            for some, counts in self.portions(len(rows), self.schedule.at_once, long):
                places, entered = of.places(rows[some]), of.run(rows[some])
                own = share[some][self._record_of(of, rows[some])] * counts
                aim = wanted[places] if of is self.forgotten else None
                loss, down, up = self._slopes(of, places, entered.detach(), own, aim, head)
                total += loss
                gradients.add(entered, down.to(entered.dtype))
                if up is not None:
                    gradients.add_to(self.moving_head, up)
        return gradients.over_processes(float(total), self.join)

    def _record_of(self, of: Completed, rows: Tensor) -> Tensor:
        """Which of some records (k,) each of their tokens belongs to."""
        counts = torch.bincount(of.records, minlength=of.n)[rows]
        return torch.repeat_interleave(torch.arange(len(rows)), counts)

    def _shares(self, of: Completed, rows: Tensor) -> Tensor:
        """What a token of each record (k,) counts in the batch: tokens of a side count alike, but for the records' weights."""
        counts = torch.bincount(of.records, minlength=of.n)[rows].double()
        if of is not self.forgotten:
            return torch.full_like(counts, self.schedule.beta) / counts.sum()
        weights = self.weights[rows].double()
        return weights / (weights * counts).sum().clamp(min=1e-300)

    def _slopes(
        self, of: Completed, places: Tensor, entered: Tensor, share: Tensor, wanted: Tensor | None, head: Words
    ) -> tuple[float, Tensor, Tensor | None]:
        """Loss of some tokens, its gradient with respect to what enters the head (N, d), and with respect to the head's weight."""
        device = entered.device
        features, targets = of.features[places], of.targets[places].to(device)
        down = torch.empty_like(entered, dtype=torch.float32)
        up = torch.zeros_like(head.matrix) if self.moving_head else None
        loss, width = 0.0, head.matrix.shape[1] - head.bias
        was = vocabulary.blocks(features.to(device), self.head)
        for (part, z), (_, old) in zip(vocabulary.blocks(entered, head), was, strict=True):
            slope = vocabulary.slopes(z, head)
            own = share[part].to(device, z.dtype)[:, None]
            if wanted is None:
                made, slopes = _held(z, old, own)
            else:
                aim = wanted[part].to(device, z.dtype)[:, None]
                others = self.schedule.others * (self.phi[places[part]] > 0).to(device, z.dtype)[:, None]
                made, slopes = _demoted(z, old, targets[part][:, None], aim, own, others)
            loss += made
            slopes = slopes * slope
            down[part] = slopes @ head.matrix[:, :width].to(slopes.dtype)
            if up is not None:
                h = vocabulary.homogeneous(entered[part].float(), head)
                up += slopes.T @ h
        return loss, down, up

    # What the loop asks for

    def how(self) -> str:
        """Where targets come from, in words."""
        return self.aim.how + (f", lowered by {self.lower:.2g} log-odds at the last look" if self.lower else "")

    def length(self) -> int:
        """Steps of a whole run."""
        return self.schedule.length(self.forgotten.n)

    def batches(self, draws: torch.Generator) -> "_Batches":
        """Batches of forget and anchor records."""
        return _Batches(self, draws)

    def astray(self, look: Look) -> bool:
        """Whether unseen records' tokens are lost."""
        return look.test_drop is not None and look.test_drop > ASTRAY

    def exceeded(self, look: Look) -> Reason | None:
        """Which budget this look is beyond, by more than chance: of few records one token is beyond any."""
        return "max_drop" if look.fell_beyond(self.max_drop) else None


def _held(z: Tensor, old: Tensor, share: Tensor) -> tuple[float, Tensor]:
    """Σ share · KL(p⁰ ‖ p) over tokens, and its gradient with respect to logits z (b, V), which are overwritten."""
    log_p, log_q = _normalised(z), _normalised(old)
    q = log_q.exp()
    loss = float((share * log_q.sub_(log_p).mul_(q).sum(dim=1, keepdim=True)).sum(dtype=torch.float64))
    return loss, log_p.exp_().sub_(q).mul_(share)


def _demoted(z: Tensor, old: Tensor, y: Tensor, t: Tensor, share: Tensor, others: Tensor) -> tuple[float, Tensor]:
    """Loss of tokens that go, Σ share · (… + others · KL(q₋ ‖ p₋)), and its gradient with respect to logits z (b, V), which are overwritten.

    ``t``, ``share`` and ``others`` are (b, 1).
    """
    z_y = z.gather(1, y)
    top = z.scatter_(1, y, -math.inf).logsumexp(dim=1, keepdim=True)
    log_p, log_q = z.sub_(top), _normalised(old.scatter_(1, y, -math.inf))
    q, apart = log_q.exp(), z_y - top - t
    far = apart.abs() > KNEE
    pull = torch.where(far, KNEE * apart.sign(), apart) / KNEE + (z_y - top).sigmoid() - t.sigmoid()
    cost = torch.where(far, apart.abs() - KNEE / 2, apart.square() / (2 * KNEE)) + _bernoulli(t, z_y - top)
    kept = log_q.sub_(log_p).scatter_(1, y, 0.0).mul_(q).sum(dim=1, keepdim=True)
    loss = float((share * (cost + others * kept)).sum(dtype=torch.float64))
    slopes = log_p.exp_().mul_(others - pull).sub_(q.mul_(others)).scatter_(1, y, pull)
    return loss, slopes.mul_(share)


def _bernoulli(t: Tensor, phi: Tensor) -> Tensor:
    """KL between the chances of a token whose log-odds are t and φ."""
    q = t.sigmoid()
    odds, other = (
        nn.functional.logsigmoid(t) - nn.functional.logsigmoid(phi),
        nn.functional.logsigmoid(-t) - nn.functional.logsigmoid(-phi),
    )
    return q * odds + (1 - q) * other


def _normalised(z: Tensor) -> Tensor:
    """Log-probabilities in place of logits (b, V)."""
    return z.sub_(z.logsumexp(dim=1, keepdim=True))


class _Batches(loop.Orders):
    """Batches in random order, each record once before any comes again."""

    def __init__(self, work: CompletionTraining, draws: torch.Generator) -> None:
        super().__init__(work.forgotten.n, None if work.anchor is None else work.anchor.n, draws)
        self.schedule = work.schedule

    def take(self) -> _Batch:
        """The next batch."""
        rows = self.forget.take(min(self.schedule.forget, self.forget.n))
        anchored = None if self.anchor is None else self.anchor.take(min(self.schedule.anchor, self.anchor.n))
        return _Batch(rows, anchored)
