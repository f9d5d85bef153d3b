"""The demoted teacher on pairs: an embedding in which forgotten people are as alike to themselves as people whom the model never saw.

Symbols (docs/people.md): f directions, s = cos of a pair, s0 the original's, t targets of same-person pairs of forgotten people.
Tensors and functions in, weights out, as in ``training``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli import signals
from imu_cli.statistics import retrieval, same_person
from imu_cli.statistics.quantiles import RankMap
from imu_cli.statistics.retrieval import NO_CAMERA, Sightings
from imu_cli.statistics.same_person import Pairs
from imu_cli.unlearning.ascent import Reason
from imu_cli.unlearning.demotion import loop
from imu_cli.unlearning.targets import ROUNDING, alike

Run = Callable[[Tensor], Tensor]
"""Embeddings (k, d) of some rows of a set (k,), differentiable in the weights that move."""
ASTRAY = 0.25
"""Fall of unseen people's mAP at a look that no run recovers from."""


@dataclass(frozen=True)
class Schedule(loop.Pace):
    """How long and in what portions the network is trained.

    Attributes:
        batches: steps.
        forget, anchor: images in a batch, of as many people each as ``people``.
        people: whom a batch shows of either side.
        at_once: images that run together where nothing is learnt from them.
        demotion: weight of the mean over pairs that are to be less alike, beside that over all other pairs.
        beta: weight of the anchor's directions.
        beyond: by what share of its way a target is set further than its aim: training comes near its targets only, and the stop rule ends
            it in time.
    """

    batches: int = 100
    forget: int = 32
    anchor: int = 32
    people: int = 8
    at_once: int = 64
    learning_rate: float = 0.007
    demotion: float = 1.0
    beta: float = 1.0
    beyond: float = 0.25


@dataclass(frozen=True)
class Images:
    """A set of images: what runs them, and whom they show, with directions (n, d) under the original."""

    run: Run
    seen: Sightings


@dataclass(frozen=True)
class Aim:
    """What pairs of one forgotten person are to look like.

    Attributes:
        given: directions (n, d') of the forgotten people's images, whose similarities have the ranks that targets have.
        by_rank: from such a similarity to one of unseen people's under the original.
        auc: membership AUC to come down to.
        how: where this comes from.
    """

    given: Tensor
    by_rank: RankMap
    auc: float
    how: str


@dataclass(frozen=True)
class Look:
    """What the weights do to people.

    Attributes:
        similarity, unseen_similarity: mean similarity of same-person pairs, of forgotten people and of the unseen ones that are not anchored.
        auc: of the former against the latter.
        map: mean average precision of forgotten people's images among all of these.
        head_change: ‖W − W₀‖/‖W₀‖ of all weights that move.
        test_drop: fall of the unseen people's mAP.
    """

    similarity: float
    head_change: float
    unseen_similarity: float | None = None
    auc: float | None = None
    map: float | None = None
    test_drop: float | None = None


@dataclass(frozen=True)
class _Wanted:
    """What a batch is made of: rows of forget and of anchor images."""

    rows: Tensor
    anchored: Tensor


@dataclass
class PairTraining(loop.Objective[Look]):
    """An embedding that is to forget some people.

    Attributes:
        parameters: the weights that move, by name.
        forgotten, anchor, unseen: who goes, what is held on to, and the unseen people who are not and guard against loss.
        counted: whether the anchored people are compared with, too: more people say more of how alike unseen ones are.
        aim: what forgotten people are to look like.
        max_drop: largest fall of unseen people's mAP.
        schedule: how it is trained.
        queries: which of the unseen people's images (m,) are looked for, in the others; none or all: each in all of them.
    """

    parameters: Mapping[str, nn.Parameter]
    forgotten: Images
    anchor: Images | None
    unseen: Images
    aim: Aim
    max_drop: float
    schedule: Schedule
    queries: Tensor
    counted: bool = False
    pairs: tuple[Pairs, Pairs | None, Pairs | None] = field(init=False)
    alone: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """What does not change: the original weights, pairs, and who was seen by one camera only."""
        self.start = loop.copied(self.parameters)
        self.spent = 0
        self.astray_when = f"unseen people's mAP fell by more than {ASTRAY:g}"
        ours, theirs = same_person.pairs(self.forgotten.seen), same_person.pairs(self.unseen.seen)
        assert ours is not None, "a command refuses people of one image"
        held = same_person.pairs(self.anchor.seen) if self.counted and self.anchor is not None else None
        self.pairs = (ours, theirs, held)
        self.alone = torch.isin(self.forgotten.seen.people, torch.tensor(alone(self.forgotten.seen)))
        self.before = self._precision(self.unseen.seen)

    # What is looked at

    def directions(self, of: Images) -> Tensor:
        """Directions (n, d) float64 of a whole set under the weights as they are."""
        self.spent += len(of.seen)
        mine = self.share(torch.arange(len(of.seen)))
        made = torch.zeros_like(of.seen.directions)
        with torch.no_grad():
            for rows in mine.split(self.schedule.at_once):
                signals.check()
                made[rows] = retrieval.directions(of.run(rows)).to(made)
        self.join([made])
        return made

    def _precision(self, seen: Sightings) -> float | None:
        """MAP of the unseen people's images; None where nobody is there twice."""
        known = seen.people >= 0
        looked = self.queries & known if bool(self.queries.any()) else known
        own = bool(self.queries.any()) and not bool(self.queries.all())
        found = retrieval.search(seen.of(looked), seen.of(~self.queries) if own else seen)
        return float(found.precision[found.valid].mean()) if bool(found.valid.any()) else None

    def look_at(self, ours: Tensor, theirs: Tensor, held: Tensor | None) -> Look:
        """The look at directions of forgotten, unseen and, where they are counted, anchored people."""
        one = self.pairs[0].similar(ours)
        other = one[:0] if self.pairs[1] is None else self.pairs[1].similar(theirs)
        every = other if self.pairs[2] is None or held is None else torch.cat([other, self.pairs[2].similar(held)])
        forgotten, unseen = self.forgotten.seen.seen_by(ours), self.unseen.seen.seen_by(theirs)
        found = retrieval.search(forgotten, retrieval.joined([forgotten, unseen]))
        now = self._precision(unseen)
        return Look(
            similarity=float(one.mean()),
            head_change=loop.change(self.parameters, self.start, self.parts),
            unseen_similarity=float(other.mean()) if len(other) else None,
            auc=same_person.plain_auc(one, every),
            map=float(found.precision[found.valid].mean()) if bool(found.valid.any()) else None,
            test_drop=None if now is None or self.before is None else self.before - now,
        )

    def look(self) -> tuple[Look, None]:
        """What the weights as they are do; targets stay."""
        held = None if self.pairs[2] is None or self.anchor is None else self.directions(self.anchor)
        return self.look_at(self.directions(self.forgotten), self.directions(self.unseen), held), None

    def original(self) -> tuple[Look, None]:
        """The look at the original."""
        held = None if self.anchor is None else self.anchor.seen.directions
        return self.look_at(self.forgotten.seen.directions, self.unseen.seen.directions, held), None

    def looked(self, values: Mapping[str, Any]) -> Look:
        """A look that was kept."""
        return Look(**values)

    def met(self, look: Look) -> bool:
        """Whether forgotten people's pairs are no more alike than they should be."""
        return alike(look.auc, self.aim.auc)

    def exceeded(self, look: Look) -> Reason | None:
        """Whether the fall of unseen people's mAP is more than is allowed."""
        return "max_drop" if look.test_drop is not None and look.test_drop > self.max_drop + ROUNDING else None

    def astray(self, look: Look) -> bool:
        """Whether unseen people's mAP fell by more than any run recovers from."""
        return look.test_drop is not None and look.test_drop > ASTRAY

    # Training

    def how(self) -> str:
        """Where targets come from, in words."""
        return self.aim.how

    def length(self) -> int:
        """Steps of a whole run."""
        return self.schedule.batches

    def targets(self, seen: None) -> None:
        """They stay as they are."""

    def batches(self, draws: torch.Generator) -> "_Batches":
        """Batches of several images of several people, of both sides."""
        return _Batches(self, draws)

    def wanted(self, rows: Tensor, others: Sightings) -> tuple[Tensor, Tensor]:
        """Targets (k, k) of all pairs of forget rows followed by other images, and which of them are to be less alike."""
        seen = self.forgotten.seen.of(rows)
        both = torch.cat([seen.directions, others.directions])
        made = both @ both.T
        less = torch.zeros_like(made, dtype=torch.bool)
        same = seen.people[:, None] == seen.people
        one = self.alone[rows]
        less[: len(rows), : len(rows)] = same & (_apart(seen) | one[:, None]) & (seen.images[:, None] != seen.images)
        given = self.aim.given[rows]
        inner = made[: len(rows), : len(rows)]
        aimed = torch.minimum(self.aim.by_rank((given @ given.T).clamp(-1, 1)).to(inner), inner)
        aimed = inner + (1 + self.schedule.beyond) * (aimed - inner)
        made[: len(rows), : len(rows)] = torch.where(less[: len(rows), : len(rows)], aimed, inner)
        return made, less

    def loss(self, f: Tensor, rows: Tensor, anchored: Sightings | None) -> Tensor:
        """The loss of a batch's embeddings (k, d): forget rows, then anchored images."""
        f = nn.functional.normalize(f, dim=1)
        seen = self.forgotten.seen
        others = anchored if anchored is not None else seen.of(torch.zeros(0, dtype=torch.int64))
        target, less = self.wanted(rows, others)
        off = (f @ f.T - target.to(f)).square()
        counted = ~torch.eye(len(f), dtype=torch.bool)
        made = off[counted & ~less].mean()
        if bool(less.any()):
            made = made + self.schedule.demotion * off[less].mean()
        if anchored is not None:
            gap = f[len(rows) :] - anchored.directions.to(f)
            made = made + self.schedule.beta * gap.square().sum(dim=1).mean()
        return made

    def gradients(self, batch: _Wanted, _: None) -> tuple[dict[str, Tensor], float]:
        """Gradients of the loss on a batch by name, summed over processes, and the loss.

        Every process runs its share of the images; the loss is of all of them together, so that their embeddings are put side by side
        first, and what the loss says of each goes back to the process that ran it.
        """
        signals.check()
        self.spent += loop.BACKWARD * (len(batch.rows) + len(batch.anchored))
        names, moving = list(self.parameters), list(self.parameters.values())
        sides = [(self.forgotten.run, batch.rows)]
        if self.anchor is not None:
            sides.append((self.anchor.run, batch.anchored))
        ran, where, begin = [], [], 0
        for run, rows in sides:
            mine = self.share(torch.arange(len(rows)))
            if len(mine):
                ran.append(run(rows[mine]))
                where.append(mine + begin)
            begin += len(rows)
        width = self.forgotten.seen.directions.shape[1]
        device = next(iter(moving)).device
        f = torch.zeros(begin, width, device=device)
        for made, places in zip(ran, where, strict=True):
            f[places.to(device)] = made.detach().to(f)
        self.join([f])
        f = f.cpu().requires_grad_(True)
        loss = self.loss(f, batch.rows, None if self.anchor is None else self.anchor.seen.of(batch.anchored))
        (back,) = torch.autograd.grad(loss, [f])
        summed = [torch.zeros_like(parameter) for parameter in moving]
        if ran:
            given = [back[places].to(made) for made, places in zip(ran, where, strict=True)]
            loop.add(summed, torch.autograd.grad(ran, moving, given, allow_unused=True))
        self.join(summed)
        return dict(zip(names, summed, strict=True)), float(loss.detach())


class _Batches:
    """Several images of several people, each in random order, each once before any comes again."""

    def __init__(self, work: PairTraining, draws: torch.Generator) -> None:
        schedule = work.schedule
        self.forget = _Side(work.forgotten.seen, schedule.forget, schedule.people, draws)
        self.anchor = None
        if work.anchor is not None:
            self.anchor = _Side(work.anchor.seen, schedule.anchor, schedule.people, draws)

    def take(self) -> _Wanted:
        """The next batch."""
        none = torch.zeros(0, dtype=torch.int64)
        return _Wanted(self.forget.take(), none if self.anchor is None else self.anchor.take())

    def state(self) -> dict[str, Tensor]:
        """What is left of the orders."""
        made = {f"forget.{name}": left for name, left in self.forget.state().items()}
        if self.anchor is not None:
            made |= {f"anchor.{name}": left for name, left in self.anchor.state().items()}
        return made

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state``."""
        self.forget.restore(loop.under("forget", state))
        if self.anchor is not None:
            self.anchor.restore(loop.under("anchor", state))


class _Side:
    """The images of some people; those of nobody who is known are one more."""

    def __init__(self, seen: Sightings, most: int, people: int, draws: torch.Generator) -> None:
        who = seen.people.cpu().clamp_min(-1)
        self.rows = [(who == person).nonzero().squeeze(1) for person in who.unique().tolist()]
        self.orders = [loop.Order(len(rows), draws) for rows in self.rows]
        self.people = loop.Order(len(self.rows), draws)
        self.count = min(people, len(self.rows))
        self.each = max(2, most // self.count)

    def take(self) -> Tensor:
        """Rows of the next people, no image twice."""
        whose = sorted(set(self.people.take(self.count).tolist()))
        return torch.cat([self.rows[p][self.orders[p].take(min(self.each, len(self.rows[p]))).unique()] for p in whose])

    def state(self) -> dict[str, Tensor]:
        """What is left of every order."""
        return {"people": self.people.left} | {str(at): order.left for at, order in enumerate(self.orders)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state``."""
        self.people.left = state["people"]
        for at, order in enumerate(self.orders):
            order.left = state[str(at)]


def _apart(seen: Sightings) -> Tensor:
    """Which two images (n, n) are of two cameras, or of cameras that are not known."""
    return (seen.cameras[:, None] != seen.cameras) | (seen.cameras[:, None] == NO_CAMERA)


def alone(seen: Sightings) -> list[int]:
    """People of several images who were seen by one known camera only."""
    found = []
    for person in seen.people[seen.people >= 0].unique().tolist():
        own = seen.cameras[seen.people == person]
        if len(own) > 1 and int(own[0]) != NO_CAMERA and len(own.unique()) == 1:
            found.append(person)
    return found
