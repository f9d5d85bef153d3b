"""The loop of the demoted teacher: batches, looks, the stop rule with an interpolated last step, budgets, what a run goes on from.

What is learnt is handed in as an objective: answers of a classifier (``training``), or similarities of an embedding (``pairs``).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.models.parts import Parts
from imu_cli.unlearning.ascent import Reason
from imu_cli.unlearning.demotion.preconditioning import Bend
from imu_cli.unlearning.demotion.update import RelativeAdam

BISECTIONS = 6
BACKWARD = 3
"""Forward passes that a sample's forward and backward are worth."""
HALVINGS = 4
"""Times that the learning rate is halved, and the run begun again, where it went astray."""

LookT = TypeVar("LookT")
"""What is seen when the network is looked at."""


@dataclass(frozen=True)
class Trained(Generic[LookT]):
    """What a training ended with: weights by the model's names, and how it came there."""

    weights: dict[str, Tensor] = field(repr=False)
    reason: Reason
    reached: bool | None
    looks: tuple[tuple[int, LookT], ...]
    fraction: float
    learning_rate: float
    batches: int
    steps: int
    targets: str


@dataclass(frozen=True)
class Pace:
    """How fast and how often.

    Attributes:
        learning_rate: share of a layer's size that a step may move it by, at the start; it falls along a cosine to 0.
        looks: of the whole run.
        seed: of the order of samples.
    """

    learning_rate: float = 0.01
    looks: int = 10
    seed: int = 0


class Batches(Protocol):
    """Batches in random order."""

    def take(self) -> Any:
        """The next one."""

    def state(self) -> dict[str, Tensor]:
        """What is left of the order."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state``."""


@dataclass(kw_only=True)
class Surroundings:
    """What a training needs of whoever runs it.

    Attributes:
        share: of the rows of a batch, those that this process takes; ``join`` sums tensors over processes, in place.
        parts: what this process holds of the weights that move, of everything that belongs to them, and of gradients.
        told: hears notes.
        save: keeps what the run can go on from, after every look.
        state: what an earlier run kept; the next one goes on from there, to the same bytes.
        to_file: a weight, by its name, as the file will hold it; what the training ends with is so, and is looked at so.
        bends: what turns the steps of some weights, by their names.
    """

    share: Callable[[Tensor], Tensor] = lambda rows: rows
    join: Callable[[list[Tensor]], None] = lambda _: None
    parts: Parts = field(default_factory=Parts)
    told: Callable[[str], None] = lambda _: None
    save: Callable[[dict[str, Tensor], dict[str, Any]], None] = lambda *_: None
    state: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    to_file: Callable[[str, Tensor], Tensor] = lambda _, value: value
    bends: Mapping[str, Bend] = field(default_factory=dict)

    def portions(self, n: int, at_once: int, lengths: Tensor | None = None) -> Iterator[tuple[Tensor, bool]]:
        """Of n rows, of texts of these lengths (n,), those of this process, in portions that run together, and whether they count.

        Where weights lie in parts, all processes run equally often, since each needs what the others hold: one with fewer rows runs the
        first one again, which does not count.
        """
        mine = self.share(torch.arange(n))
        made = portions(mine, at_once, lengths) if len(mine) else ()
        for some in made:
            signals.check()
            yield some, True
        if self.parts.count > 1 and n:
            most = math.ceil(math.ceil(n / self.parts.count) / at_once)
            for _ in range(most - len(made)):
                yield torch.zeros(1, dtype=torch.int64), False


class Objective(Surroundings, ABC, Generic[LookT]):
    """What a network is to learn, and how far it is.

    Attributes:
        parameters: the weights that move, by name, or the parts of them that this process holds.
        start: what they were.
        schedule: how fast they move, and how often it is looked at what they do.
        spent: samples that ran through the moving part, on all processes together.
        astray_when: what ``astray`` looks at, in words.
    """

    parameters: Mapping[str, Tensor]
    start: Mapping[str, Tensor]
    schedule: Pace
    spent: int
    astray_when: str

    @abstractmethod
    def how(self) -> str:
        """Where targets come from, in words."""

    @abstractmethod
    def length(self) -> int:
        """Steps of a whole run."""

    @abstractmethod
    def batches(self, draws: torch.Generator) -> Batches:
        """Batches in an order that is drawn."""

    @abstractmethod
    def original(self) -> tuple[LookT, Any]:
        """The look at the original, and what targets follow."""

    @abstractmethod
    def look(self) -> tuple[LookT, Any]:
        """The look at the weights as they are, and what targets follow."""

    @abstractmethod
    def looked(self, values: Mapping[str, Any]) -> LookT:
        """A look that was kept."""

    def follow(self, looks: Sequence[tuple[int, LookT]]) -> None:
        """Set what is aimed at by the looks so far, those before an interruption too; nothing else may be asked."""

    @abstractmethod
    def targets(self, seen: Any) -> Any:
        """What is aimed at until the next look."""

    @abstractmethod
    def gradients(self, batch: Any, wanted: Any) -> tuple[dict[str, Tensor], float]:
        """Gradients of the loss on a batch by name, summed over processes, and the loss."""

    @abstractmethod
    def astray(self, look: LookT) -> bool:
        """Whether a run that looks so will not recover."""

    @abstractmethod
    def met(self, look: LookT) -> bool:
        """Whether the target is."""

    def enough(self, look: LookT) -> bool:
        """Whether the run may end here."""
        return self.met(look)

    @abstractmethod
    def exceeded(self, look: LookT) -> Reason | None:
        """The budget that is spent."""

    def reached(self, look: LookT) -> bool | None:
        """Whether the target is met, as the record says it; None without one."""
        return self.met(look)

    def train(self) -> "Iterator[tuple[int, LookT] | Trained[LookT]]":
        """Train to the target or to the end of the schedule: looks with the step at which they were made, and what came of it."""
        return train(self)


def copied(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as they are."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def put(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Give the network these weights."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def size(weights: Mapping[str, Tensor], parts: Parts) -> float:
    """Their norm, that of all parts together."""
    squares = [float(value.double().square().sum()) for value in weights.values()]
    return math.sqrt(sum(parts.sums(torch.tensor(squares, dtype=torch.float64)).tolist()))


def change(parameters: Mapping[str, Tensor], start: Mapping[str, Tensor], parts: Parts) -> float:
    """‖W − W₀‖/‖W₀‖ of all weights that move."""
    moved = size({name: parameter.detach() - start[name] for name, parameter in parameters.items()}, parts)
    return moved / max(size(start, parts), 1e-30)


def train(work: Objective[LookT]) -> Iterator[tuple[int, LookT] | Trained[LookT]]:
    """Train to the target or to the end of the schedule: looks with the step at which they were made, and what came of it.

    Raises:
        ImuError: the network loses what it knows at every learning rate.
    """
    rate = work.schedule.learning_rate if work.state is None else float(work.state[1]["rate"])
    for attempt in range(HALVINGS + 1):
        again = False
        for item in _Attempt(work, rate).run():
            if item is None:
                again = True
                break
            yield item
        if not again:
            return
        if attempt == HALVINGS:
            break
        rate /= 2
        put(work.parameters, work.start)
        work.told(
            f"the run went astray ({work.astray_when}, or the loss is not finite); begun again at half the learning rate"
        )
    raise ImuError(
        f"--scope: the network loses what it knows at every learning rate down to {rate:.3g}; move fewer layers, or check that the "
        "anchor is data of the kind that the model was trained on"
    )


@dataclass
class _Attempt(Generic[LookT]):
    """One run at one learning rate."""

    work: Objective[LookT]
    rate: float

    def run(self) -> Iterator[tuple[int, LookT] | Trained[LookT] | None]:
        """Looks, and last what came of it; None where it went astray."""
        work, rate = self.work, self.rate
        steps = work.length()
        every = max(1, steps // work.schedule.looks)
        update = RelativeAdam(work.parameters, bends=work.bends, parts=work.parts)
        draws = torch.Generator().manual_seed(work.schedule.seed)
        batches = work.batches(draws)
        look, seen = work.original()
        looks = [(0, look)]
        begin = 0
        if work.state is not None:
            tensors, said = work.state
            looks = [(int(number), work.looked(values)) for number, values in said["looks"]]
            begin, work.spent, work.state = looks[-1][0], int(said["spent"]), None
            put(work.parameters, under("weights", tensors))
            update.restore(under("update", tensors))
            draws.set_state(tensors["draws"])
            batches.restore(tensors)
            seen = work.look()[1]
        yield from looks
        work.follow(looks)
        wanted, previous = work.targets(seen), copied(work.parameters)
        for step in range(begin, steps):
            gradients, loss = work.gradients(batches.take(), wanted)
            if not math.isfinite(loss):
                yield None
                return
            update(gradients, rate * (1 + math.cos(math.pi * step / steps)) / 2)
            last = step + 1 == steps
            if not last and (step + 1) % every:
                continue
            look, seen = work.look()
            if work.astray(look):
                yield None
                return
            looks.append((step + 1, look))
            yield step + 1, look
            if work.enough(look) and self._holds(look):
                met = self._met(previous, looks, steps)
                if met is not None:
                    yield met
                    return
            work.follow(looks)
            wanted, previous = work.targets(seen), copied(work.parameters)
            if not last:
                state = {f"weights.{name}": value for name, value in previous.items()}
                state |= {f"update.{name}": value for name, value in update.state().items()}
                state |= {"draws": draws.get_state(), **batches.state()}
                kept = [(number, vars(each)) for number, each in looks]
                work.save(state, {"rate": rate, "spent": work.spent, "looks": kept})
        yield self._ended(looks, steps)

    def _holds(self, look: LookT) -> bool:
        """Whether the target is met within the budgets."""
        return self.work.met(look) and self.work.exceeded(look) is None

    def _met(self, previous: Mapping[str, Tensor], looks: list[tuple[int, LookT]], steps: int) -> Trained[LookT] | None:
        """The weights between the last two looks that just meet the target; None where as the file has them they do not."""
        work, now, low, high = self.work, copied(self.work.parameters), 0.0, 1.0
        self._between(previous, now, high)
        if not self._holds(work.look()[0]):
            put(work.parameters, now)
            return None
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            self._between(previous, now, middle)
            low, high = (low, middle) if self._holds(work.look()[0]) else (middle, high)
        self._between(previous, now, high)
        return self._trained("target", looks, work.look()[0], high, steps)

    def _ended(self, looks: list[tuple[int, LookT]], steps: int) -> Trained[LookT]:
        """The weights at the end of the schedule, or as far towards them as the budgets allow."""
        work, now = self.work, copied(self.work.parameters)
        self._between(work.start, now, 1.0)
        look, _ = work.look()
        spent = work.exceeded(look)
        if spent is None:
            return self._trained("target" if work.met(look) else "max_steps", looks, look, 1.0, steps)
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            self._between(work.start, now, middle)
            low, high = (low, middle) if work.exceeded(work.look()[0]) is not None else (middle, high)
        self._between(work.start, now, low)
        return self._trained(spent, looks, work.look()[0], low, steps)

    def _between(self, one: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float) -> None:
        work = self.work
        put(
            work.parameters,
            {name: work.to_file(name, torch.lerp(one[name], other[name], share)) for name in work.parameters},
        )

    def _trained(
        self,
        reason: Reason,
        looks: list[tuple[int, LookT]],
        end: LookT,
        fraction: float,
        steps: int,
    ) -> Trained[LookT]:
        """The weights as they are, at a fraction of the way to the last ones, and the look at them."""
        work = self.work
        made = (*(looks if fraction < 1 else looks[:-1]), (looks[-1][0], end))
        weights = copied(work.parameters)
        return Trained(weights, reason, work.reached(end), made, fraction, self.rate, steps, looks[-1][0], work.how())


def add(summed: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add to sums, in place, the gradients that there are."""
    for whole, gradient in zip(summed, gradients, strict=True):
        if gradient is not None:
            whole.add_(gradient)


def under(word: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a word, without it."""
    return {name.removeprefix(f"{word}."): value for name, value in tensors.items() if name.startswith(f"{word}.")}


def portions(rows: Tensor, most: int, lengths: Tensor | None) -> tuple[Tensor, ...]:
    """Rows (k,) of a set in portions that run together; of texts those of about one length, since a portion is padded to its longest.

    ``lengths``: of all texts of the set, (n,).
    """
    if lengths is not None:
        rows = rows[lengths[rows].argsort(descending=True, stable=True)]
    made: tuple[Tensor, ...] = rows.split(most)
    return made


class Order:
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


class Orders:
    """The orders of a forget set and, where there is one, of an anchor; whose batches are taken from them says how."""

    def __init__(self, forget: int, anchor: int | None, draws: torch.Generator) -> None:
        self.forget = Order(forget, draws)
        self.anchor = None if anchor is None else Order(anchor, draws)

    def state(self) -> dict[str, Tensor]:
        """What is left of the orders."""
        return {"forget": self.forget.left} | ({} if self.anchor is None else {"anchor": self.anchor.left})

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state``."""
        self.forget.left = state["forget"]
        if self.anchor is not None:
            self.anchor.left = state["anchor"]
