"""Does a small language model forget one of two chains as if it had never seen it, and what do the published update and plain ascent do?

The paper's sequence rows, on our own generator and model (``markov.py``): a transformer has learnt the chains *retain* and *forget1*;
*forget1* is to go. Beside it: the model retrained without *forget1*, which is the target, and *forget2*, which no model has ever seen.
Figures are cross-entropy in nats a state, and KL(retrained ‖ model) of the next state, on held-out sequences that chose nothing.

**Published update** (goodluckisallyouneed/IMU, ``synthetic/unlearn_IMU.py``), from what it does: one weighted ascent of the head, AdamW
5e-4 without decay, 50 batches of 4 sequences, L1 0.002, weights √|s| of the sequences with s < 0, clipped at their 0.93 quantile.

* The scores are of the model as it was *initialised*, before the checkpoint is loaded.
* Half of what it forgets, the sequences of forget2, was never trained on.
* The first sequence's gradient becomes the mean of all (a sum in place on a view), and that of the ascent counts twice (``backward``
  runs once within the loss and once after it).

The rows take these away one after the other. What the page's "reconstruction loss 3.86" was measured on is not in the published
code; nothing here is set beside it.

**Ours** is ``imu unlearn`` with the sequences as texts, without a retained training sequence (``Ours``).

Runs that are in ``results/sequences.json`` are not made again, unless ``--rows`` names the beginnings of their names.
"""

import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import common
import markov
import torch
from common import Criterion
from markov import ChainModel, Recipe
from torch import Tensor, nn

from imu_cli.commands import unlearn
from imu_cli.config.commands import UnlearnConfig
from imu_cli.events import Silent
from imu_cli.influence import closed_form
from imu_cli.unlearning.demotion import loop

SEEDS = [0, 1, 2, 3, 4]
LOSS, DIVERGENCE = 0.05, 0.1
"""How far forget1's cross-entropy may lie from the retrained model's, and how large KL to it may be on a chain."""
ITERATIONS, BATCH, RATE, L1, CLIP, DAMPING = 50, 4, 5e-4, 0.002, 0.93, 0.01
LOOKED_AT = 500
"""Sequences of the forget set at a look."""


@dataclass(frozen=True)
class Figures:
    """On a chain's judging half: cross-entropy, and KL(retrained ‖ model), in nats a state."""

    loss: float
    kl: float


@dataclass(frozen=True)
class Run:
    """A row of the table under one seed."""

    row: str
    seed: int
    seconds: float
    figures: dict[str, Figures]


class World:
    """Both models of a seed, and what the retrained one says of the sequences that judge."""

    def __init__(self, seed: int, recipe: Recipe) -> None:
        self.seed, self.recipe = seed, recipe
        self.before, self.retrained = (markov.trained(name, seed, recipe) for name in ("before", "retrained"))
        self.judge = {chain: markov.splits(chain, seed).judge for chain in markov.CHAINS}
        self.target = {chain: markov.said(self.retrained.model, rows) for chain, rows in self.judge.items()}

    def figures(self, model: nn.Module) -> dict[str, Figures]:
        """A model's figures on each chain."""
        made = {}
        for chain, rows in self.judge.items():
            log_p, target = markov.said(model, rows), self.target[chain]
            kl = (target.exp() * (target - log_p)).sum(dim=-1)
            made[chain] = Figures(float(markov.losses(log_p, rows).mean()), float(kl.mean()))
        return made


# --- the published update


@dataclass(frozen=True)
class Published:
    """The published update and its faults.

    Attributes:
        initialised: scores are those of the initialised model.
        untrained: forget2 is to be forgotten too.
        as_coded: the first gradient is the mean, the ascent's gradient counts twice.
        uniform: no weights at all.
        stopped: at the first step after which the forget set's cross-entropy is what forget2's was before; as ours aims at.
    """

    initialised: bool = False
    untrained: bool = False
    as_coded: bool = False
    uniform: bool = False
    stopped: bool = False

    def __call__(self, world: World) -> ChainModel:
        """The model that it ends with."""
        draws = torch.Generator().manual_seed(world.seed)
        rows, weights = self.weighted(world, draws)
        kept, times = weights > 0, 2.0 if self.as_coded else 1.0
        until = unseen_level(world) if self.stopped else math.inf
        return ascend(copy.deepcopy(world.before.model), rows[kept], weights[kept], draws, times, until)

    def weighted(self, world: World, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """The sequences (n, 20) that it takes to be the forget set, in random order, and their weights (n,)."""
        chains = ("forget1", "forget2") if self.untrained else ("forget1",)
        rows = torch.cat([markov.splits(chain, world.seed).train for chain in chains])
        rows = rows[torch.randperm(len(rows), generator=draws)]
        if self.uniform:
            return rows, torch.ones(len(rows))
        model = markov.new(world.seed, world.recipe) if self.initialised else world.before.model
        return rows, closed_form.weigh(scores(model, rows, self.as_coded), keep=1.0, clip_quantile=CLIP).weights.float()


def unseen_level(world: World) -> float:
    """Cross-entropy of what no model has seen, the choosing half of forget2, before anything is forgotten."""
    rows = markov.splits("forget2", world.seed).choose
    return float(markov.losses(markov.said(world.before.model, rows), rows).mean())


def scores(model: ChainModel, rows: Tensor, as_coded: bool = False) -> Tensor:
    """Scores (n,) float64 of sequences: s = −g · ((F + λ)⁻¹ ḡ), with g the head's gradient of a sequence's mean loss."""
    with torch.no_grad():
        h = torch.cat([model.features(some[:, :-1]) for some in rows.split(500)])
        residual = model.head(h).softmax(dim=-1) - nn.functional.one_hot(rows[:, 1:], markov.STATES)
        h = torch.cat([h, h.new_ones(*h.shape[:2], 1)], dim=2)
        each = torch.einsum("ntk,ntd->nkd", residual, h).flatten(1).div_(h.shape[1])
        inverse = (each.square().mean(dim=0) + DAMPING).reciprocal()
        mean = each.mean(dim=0)
        if as_coded:
            each[0] = mean
        return -(each @ (inverse * mean)).double()


def ascend(
    model: ChainModel, rows: Tensor, weights: Tensor, draws: torch.Generator, times: float, until: float
) -> ChainModel:
    """Ascend the head's loss on sequences (n, 20) in place; ``times`` is what the ascent's gradient counts.

    It ends at the first step after which the cross-entropy of 500 of them is ``until``.
    """
    update = torch.optim.AdamW(model.head.parameters(), lr=RATE, weight_decay=0.0)
    order, looked = loop.Order(len(rows), draws), rows[:LOOKED_AT]
    with torch.no_grad():
        seen = model.features(looked[:, :-1])  # the head alone moves
    for _ in range(ITERATIONS):
        some = order.take(BATCH)
        with torch.no_grad():
            h = model.features(rows[some, :-1])
        loss = nn.functional.cross_entropy(model.head(h).mT, rows[some, 1:], reduction="none").mean(dim=1)
        size = torch.cat([part.flatten() for part in model.head.parameters()]).abs().sum()
        update.zero_grad()
        (-times * (weights[some] * loss).sum() / weights[some].sum() + L1 * size).backward()
        update.step()
        with torch.no_grad():
            if float(nn.functional.cross_entropy(model.head(seen).mT, looked[:, 1:])) >= until:
                break
    return model


# --- ours


@dataclass(frozen=True)
class Ours:
    """``imu unlearn`` on the sequences of forget1 as texts, file to file.

    ``--test`` are 500 held-out sequences of forget2, of which half give targets by rank, ``--anchor`` 1,000 held-out ones of *retain*;
    nothing that a model was trained on but what goes. With ``reference`` targets are those of a model that was trained on the anchor's
    sequences alone, three times as long.
    """

    scope: str
    reference: bool = False
    batches: int = 1000

    def __call__(self, world: World) -> ChainModel:
        """The model that it writes."""
        with common.folder("sequences") as place:
            parts = {chain: markov.splits(chain, world.seed) for chain in markov.CHAINS}
            files: dict[str, Any] = {}
            if self.reference:
                recipe = replace(world.recipe, epochs=3 * world.recipe.epochs, batch=world.recipe.batch // 4)
                other = markov.trained("reference", world.seed, recipe).model
                files["reference_model"] = str(markov.write(other, place / "reference"))
            config = UnlearnConfig(
                forget=[markov.listed(parts["forget1"].train, place / "forget.jsonl")],
                test=markov.listed(parts["forget2"].choose, place / "unseen.jsonl"),
                anchor=markov.listed(parts["retain"].choose, place / "anchor.jsonl"),
                task="language", end_token=False, device="cpu", seed=world.seed, scope=self.scope, batches=self.batches,
                arch=f"{markov.__file__}:whole", arch_arg=[f"width={world.recipe.width}", f"layers={world.recipe.layers}"],
                output=str(place / "unlearned.safetensors"), **files,
            )  # fmt: skip
            model = markov.write(world.before.model, place / "before")
            done = unlearn.run_unlearn(model, config, {"scope": "flag", "batches": "flag"}, Silent())
            return markov.read(done.output, world.recipe)


# --- rows, table, criteria


ROWS: dict[str, Callable[[World], ChainModel]] = {
    "before": lambda world: world.before.model,
    "retrained: the target": lambda world: world.retrained.model,
    "published": Published(initialised=True, untrained=True, as_coded=True),
    "published, scored on the loaded model": Published(untrained=True, as_coded=True),
    "published, corrected": Published(),
    "uniform ascent, head": Published(untrained=True, uniform=True),
    "uniform ascent, head, forget1 only": Published(uniform=True),
    "the same, stopped at the level of forget2": Published(uniform=True, stopped=True),
    "ours, last block, unseen chain": Ours("last-block"),
    "ours, all blocks, unseen chain": Ours("blocks.*"),
    "ours, last block, reference model": Ours("last-block", reference=True),
}


def measured(row: str, world: World) -> Run:
    """Make a row's model and look at it."""
    began = time.perf_counter()
    model = ROWS[row](world)
    return Run(row, world.seed, time.perf_counter() - began, world.figures(model))


def earlier(again: Sequence[str]) -> list[Run]:
    """Runs that are kept, of rows that there are, but for those that are made again."""
    place = common.RESULTS / "sequences.json"
    kept = json.loads(place.read_text(encoding="utf-8"))["runs"] if place.is_file() else []
    made = [replace(Run(**one), figures={chain: Figures(**each) for chain, each in one["figures"].items()}) for one in kept]  # fmt: skip
    return [run for run in made if run.row in ROWS and not run.row.startswith(tuple(again))]


def show(runs: Sequence[Run]) -> None:
    """Means and standard deviations over the seeds."""
    rows = []
    for row in (row for row in ROWS if any(run.row == row for run in runs)):
        those = [run for run in runs if run.row == row]
        cells = []
        for chain in markov.CHAINS:
            cells += [
                around([run.figures[chain].loss for run in those]),
                around([run.figures[chain].kl for run in those]),
            ]
        rows.append([row, len(those), *cells, f"{statistics.median(run.seconds for run in those):.1f}"])
    columns = ["model", "seeds", *(f"{chain}{what}" for chain in markov.CHAINS for what in ("", " KL")), "s"]
    common.table("Cross-entropy and KL to the retrained model, nats a state", columns, rows)


def around(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def criteria(runs: Sequence[Run]) -> list[Criterion]:
    """The goal, of the worst seed of each row of ours that is held to it."""
    target = {run.seed: run.figures["forget1"].loss for run in runs if run.row == "retrained: the target"}
    made = []
    for row in (row for row in ROWS if row.startswith("ours")):
        those = [run for run in runs if run.row == row]
        if not those:
            continue
        off = max(abs(run.figures["forget1"].loss - target[run.seed]) for run in those)
        kl = max(each.kl for run in those for each in run.figures.values())
        made.append(
            Criterion(f"{row}: forget1's cross-entropy off the retrained's", f"≤ {LOSS}", f"{off:.3f}", off <= LOSS)
        )
        made.append(Criterion(f"{row}: KL to it, any chain", f"≤ {DIVERGENCE}", f"{kl:.3f}", kl <= DIVERGENCE))
    return made


def main() -> None:
    """Measure, print and keep."""
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--rows", nargs="+", default=[], help="beginnings of rows that are made again")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = common.environment(with_checkpoint=False)
    recipe = Recipe(width=32, layers=2, epochs=1) if options.quick else Recipe()
    seeds = options.seeds[:1] if options.quick else options.seeds
    runs = [] if options.quick else earlier(options.rows)
    trained = []
    for seed in seeds:
        world = World(seed, recipe)
        trained.append({"seed": seed, "before": world.before.seconds, "retrained": world.retrained.seconds})
        for row in ROWS:
            if any((run.row, run.seed) == (row, seed) for run in runs):
                continue
            runs.append(measured(row, world))
            said = "  ".join(f"{chain} {each.loss:.3f} ({each.kl:.3f})" for chain, each in runs[-1].figures.items())
            common.console.print(f"seed {seed}  {row:<42}{said}  {runs[-1].seconds:.1f} s")
        checked = [] if options.quick else criteria(runs)
        found = {
            "recipe": asdict(recipe), "told_the_chain": markov.entropy("retain"), "training_seconds": trained,
            "rows": {row: asdict(made) for row, made in ROWS.items() if isinstance(made, Published | Ours)},
            "goal": {"loss": LOSS, "kl": DIVERGENCE}, "runs": [asdict(run) for run in runs],
        }  # fmt: skip
        common.keep("sequences", options.quick, {**found, "criteria": [vars(each) for each in checked]}, started)
    show(runs)
    common.verdicts(checked)
    common.stop(checked)


if __name__ == "__main__":
    main()
