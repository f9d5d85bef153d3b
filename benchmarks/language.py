"""Does a language model forget ten authors as if it had never read them, and what do other methods do? TOFU's forget05.

SmolLM2-135M knows 30 authors of TOFU; the ten of forget05 are to go, and no retained record is used. ``--models DIR`` is a folder
with what ``../shared/models/smollm2_tofu.py DIR/full``, ``DIR/retain --adapter retain`` and ``DIR/none --adapter none`` write.

A row is a model. It is judged by a fixed subset (``--every``) of the forget records, the same by another question, the half of
holdout05 that chose nothing, and the 20 authors that stay; ``n`` stands beside every figure. Rows that are in
``benchmarks/results/language.json`` by this subset are not made again: the benchmark goes on where it ended.

**Ours** is ``imu unlearn`` with ``OURS``, and **the published update** the same with ``PUBLISHED``: options are in the raw results.
``--row ours=DIR`` takes a folder that ``imu unlearn`` wrote before. **The others** (``baselines/language_models.py``) move the same
layers from the same features at the cut, on the forget set alone; they are granted the end that suits them best: the first look at
which no more of the judged forget records is memorised than the retrained model has, or else their last step.
"""

import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from baselines import language_models
from baselines.training import Settings, Steps
from torch import Tensor

from imu_cli.commands import forgotten_records, held_out, opening, recalled, record_targets, scope, unlearn
from imu_cli.commands.recalled import Sets
from imu_cli.config.commands import EvaluateConfig, UnlearnConfig
from imu_cli.errors import ImuError
from imu_cli.events import Silent
from imu_cli.features import allocation
from imu_cli.features.session import Session
from imu_cli.linear import vocabulary
from imu_cli.linear.vocabulary import Words
from imu_cli.models import checkpoint, language
from imu_cli.records.record import Record
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.texts import suites
from imu_cli.samples.texts.suites import OFFERED, Questions, Suite
from imu_cli.statistics import recall, truth
from imu_cli.statistics.intervals import Estimate
from imu_cli.statistics.recall import Recalled
from imu_cli.unlearning.demotion import loop
from imu_cli.unlearning.demotion.completions import Completed

MEASURES = {
    "loss": "loss",
    "probability": "probability",
    "exact_memorization": "exact",
    "extraction_strength": "extraction",
}
"""The four figures of a set of records, and what ``Recalled`` calls them."""
FOLDERS = {"retrained": "retain", "before": "full", "never fine-tuned": "none"}
"""Rows that are models of ``--models``."""
OURS: dict[str, Any] = {
    "scope": "last-block", "precision": "bfloat16",
}  # fmt: skip
PUBLISHED: dict[str, Any] = {
    "preset": "paper-llm", "scope": "last-block", "epochs": 1, "learning_rate": 5e-5, "precision": "bfloat16",
}  # fmt: skip
"""One epoch at five times the preset's rate: as far, by AdamW's steps of equal length, as its five epochs, in a fifth of the time."""
LOOKS = 5
"""Steps between two looks at a baseline."""


@dataclass(frozen=True)
class Baseline:
    """A method, its learning rate and coefficient."""

    unlearn: Callable[..., Steps]
    rate: float
    strength: float = 1.0


BASELINES = {
    "gradient ascent": Baseline(language_models.gradient_ascent, 2e-4),
    "NPO": Baseline(language_models.npo, 2e-4, 0.1),
    "SimNPO": Baseline(language_models.simnpo, 2e-4, 2.5),
}
ROWS = (*FOLDERS, "ours", *BASELINES, "published update")


@dataclass(frozen=True)
class Lists:
    """Where the lists are: those that go, those that nobody saw, and the suite; the first two as ``--forget`` and ``--test`` take them."""

    forget: str
    unseen: str
    suite: str

    @classmethod
    def tofu(cls) -> "Lists":
        """Those of ../shared."""
        folder = common.shared() / "data" / "tofu"
        return cls(str(folder / "forget05.json"), str(folder / "holdout05.json"), f"tofu:{folder}")


@dataclass(frozen=True)
class Judged:
    """What a model says of the judging records by set, and of the questions by set: log R (n,) and share of the true answer (n,)."""

    records: Mapping[str, Recalled]
    log_ratio: Mapping[str, Tensor] = field(default_factory=dict)
    chosen: Mapping[str, Tensor] = field(default_factory=dict)


class World:
    """The model before, opened for its layers to move, and the records that judge, as they are where these layers begin."""

    def __init__(
        self, folder: Path, lists: Lists, every: int, utility: int, precision: str, stack: ExitStack, device: str = "cpu",
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.folder, self.lists, self.every, self.utility, self.seed = folder, lists, every, utility, seed
        given: dict[str, Any] = {
            "forget": [lists.forget],
            "test": lists.unseen,
            "device": device,
            "precision": precision,
            "seed": seed,
        }
        self.config = UnlearnConfig(**given, scope="last-block")
        self.plain = EvaluateConfig(**given, suite=lists.suite)
        self.opened: Session = opening.open_all(folder / FOLDERS["before"], self.config, Silent())
        network = self.opened.network
        assert network is not None
        self.sets = judging(self.opened, lists, every, utility)
        stack.enter_context(language.without_cache(network.model))
        if self.opened.device.type == "cpu":
            stack.enter_context(allocation.kept())
        self.moving = forgotten_records.find_scope(self.opened, "last-block")
        self.names = scope.names_in_file(self.opened, self.moving)
        entering = partial(forgotten_records.entering, layer=self.opened.head.module)
        self.upper = scope.upper_part(self.opened, network, self.moving, entering)
        self.room = stack.enter_context(scope.room())
        self.start = loop.copied(self.moving.parameters)
        head = self.opened.head
        self.head = Words(head.matrix, head.bias, head.scale, head.cap)
        self._kept: dict[str, Completed] = {}

    def at_cut(self, name: str, samples: SampleSet) -> Completed:
        """A set as it is where the moving layers begin; made once, by the original."""
        if name not in self._kept:
            with self.moved(self.start):
                kept = scope.keep(self.opened, self.upper, [samples], self.room)[0]
                assert kept is not None
                self._kept[name] = forgotten_records.completed(self.opened, self.upper, kept, samples)
        return self._kept[name]

    @contextmanager
    def moved(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """While the context lasts, the layers have other weights."""
        now = loop.copied(self.moving.parameters)
        loop.put(self.moving.parameters, weights)
        try:
            yield
        finally:
            loop.put(self.moving.parameters, now)

    def said(self, name: str, samples: SampleSet) -> Recalled:
        """What the model says of a set as its weights are now, by its upper part."""
        of = self.at_cut(name, samples)
        with torch.no_grad():
            parts = torch.arange(of.n).split(self.opened.engine.batch_size)
            features = torch.cat([of.run(rows).float() for rows in parts])
        return recall.of(vocabulary.statistics(_Rows(features, of.targets), self.head), of.records, of.ends, of.n)

    def judged_now(self) -> Judged:
        """What the model says of everything that judges, as its weights are now."""
        return judged(self.sets, self.said)

    def judged_folder(self, folder: Path) -> Judged:
        """What another model says: by the upper part where nothing else differs, else as a whole."""
        original = self.opened.checkpoint
        other = checkpoint.open_checkpoint(folder)
        files = {file: name for name, those in self.names.items() for file in those}
        changed = checkpoint.differing(original, other)
        if set(changed) <= set(files):
            weights = {files[file]: other.tensor(file) for file in changed}
            with self.moved({name: weights.get(name, self.start[name]) for name in self.start}):
                return self.judged_now()
        beside = record_targets.open_beside(self.opened, folder, self.plain)
        assert beside.network is not None
        with language.without_cache(beside.network.model):
            return judged(self.sets, lambda name, samples: recalled.said(beside, samples, name))


@dataclass(frozen=True)
class _Rows:
    features: Tensor
    targets: Tensor


def judging(opened: Session, lists: Lists, every: int, utility: int) -> Sets:
    """Every so-manieth of all records, and the questions of the suite that belong to them.

    Those of the unseen list are drawn from the half that chose nothing, so many as are one in ``every`` of the whole.
    """
    suite: Suite = suites.open_suite(lists.suite)
    whole = opened.forget.samples
    forget = whole.subset(range(0, len(whole), every))
    unseen = held_out.held_out(opened, lists.unseen)
    used = set(held_out.half(unseen, opened.run.seed))
    rest = unseen.subset([row for row in range(len(unseen)) if row not in used])
    step = max(1, (every * len(rest)) // len(unseen))
    made = {"forget": forget, "unseen": rest.subset(range(0, len(rest), step))}
    own = suite.sets.get("forget")
    other = suites.rephrased(forget, own)
    if other is not None:
        made["paraphrased"] = other[1]
    questions: dict[Any, Questions] = {}
    if own is not None:
        questions["forget"] = own.only([at for at in suites.about(own, forget) if at is not None])
    if "retain" in suite.sets:
        kept = suite.sets["retain"]
        made["kept"] = kept.only(range(0, len(kept), every)).own()
    if utility:
        questions |= {
            name: found.drawn(utility, opened.run.seed) for name, found in suite.sets.items() if name != "forget"
        }
    return Sets(made, questions)


def judged(sets: Sets, said: Callable[[str, SampleSet], Recalled]) -> Judged:
    """What a model says of all sets; ``said`` asks it."""
    records = {name: said(name, samples) for name, samples in sets.records.items()}
    ratios, chosen = {}, {}
    for name, questions in sets.questions.items():
        wrong, other = said(f"{name} wrong", questions.wrong()), said(f"{name} other", questions.other())
        ratios[str(name)] = truth.ratio(other.loss, wrong.loss, questions.counts)
        if name in ("forget", "retain"):
            own = records["forget"] if name == "forget" else said(f"{name} own", questions.own())
            chosen[str(name)] = own.probability
        else:
            own = (
                other if not any(one.other_answer for one in questions.asked) else said(f"{name} own", questions.own())
            )
            chosen[str(name)] = truth.chosen(own.loss, wrong.loss, questions.counts)
    return Judged(records, ratios, chosen)


# --- figures


def told(found: Estimate) -> dict[str, Any]:
    """An estimate as it is kept."""
    ends = {} if found.low is None else {"low": round(found.low, 5), "high": round(found.high or 0.0, 5)}
    return {"value": round(found.value, 6), "n": found.n, **ends}


def figures(found: Judged) -> dict[str, Any]:
    """What is kept of a row: means with interval and n, and log R of the forget questions for forget quality."""
    made: dict[str, Any] = {}
    for side, said in found.records.items():
        made[side] = {}
        for name, own in MEASURES.items():
            values = getattr(said, own)
            made[side][name] = told(recall.mean_loss(values) if name == "loss" else recall.mean(values))
    if "forget" in found.log_ratio:
        made["truth_ratio"] = told(recall.mean(truth.either_way(found.log_ratio["forget"])))
        made["log_ratio"] = [round(value, 5) for value in found.log_ratio["forget"].tolist()]
    sets = ["retain", *OFFERED]
    if all(name in found.log_ratio for name in sets):
        parts: dict[str, Sequence[Tensor]] = {
            name: (found.chosen[name], truth.truthful(found.log_ratio[name])) for name in sets
        }
        made["utility_without_rouge"] = told(truth.utility(parts))
    return made


def with_quality(rows: Sequence[dict[str, Any]]) -> None:
    """Put forget quality against the retrained row of the same subset into each row, where both have log R."""
    for row in rows:
        peers = [one for one in rows if one["row"] == "retrained" and one["every"] == row["every"]]
        theirs = peers[0]["figures"].get("log_ratio") if peers else None
        ours = row["figures"].get("log_ratio")
        if ours and theirs:
            p, distance = truth.same_distribution(torch.tensor(ours), torch.tensor(theirs))
            row["figures"]["forget_quality"] = {"p": float(f"{p:.3g}"), "distance": round(distance, 4), "n": len(ours)}


# --- rows


@dataclass(frozen=True)
class Made:
    """A row's answers, and what is to be known of how its model was made."""

    judged: Judged
    how: dict[str, Any] = field(default_factory=dict)


def baseline(world: World, name: str, options: Namespace, level: float | None) -> Made:
    """Run a method on the forget set, and judge it at the first look at which forget records are memorised no more than ``level``."""
    method = BASELINES[name]
    rate = options.rate or method.rate
    settings = Settings(rate, options.batches, method.strength, batch=options.minibatch)
    forget, own = world.at_cut("all that goes", world.opened.forget.samples), world.sets.records["forget"]
    looks: list[dict[str, float]] = []
    with world.moved(world.start), scope.learning(world.moving):
        for step in method.unlearn(world.moving.parameters, forget, world.head, settings):
            if step % LOOKS and step < settings.steps:
                continue
            seen = world.said("forget", own)
            looks.append(
                {"step": step, **{key: round(float(getattr(seen, of).mean()), 4) for key, of in MEASURES.items()}}
            )
            common.console.print(f"{name}: {looks[-1]}", style="dim")
            if level is not None and looks[-1]["exact_memorization"] <= level:
                break
        how = {
            "options": {"learning_rate": rate, "strength": method.strength, "minibatch": settings.batch, "batches": settings.steps},
            "steps": looks[-1]["step"], "looks": looks, "level": level,
        }  # fmt: skip
        return Made(world.judged_now(), how)


def by_command(world: World, options: Mapping[str, Any]) -> Made:
    """Run ``imu unlearn`` with these options on the model before, and judge what it writes."""
    with common.folder("language") as folder:
        reference: dict[str, Any] = {}
        if "preset" not in options:
            reference = {"reference_model": str(world.folder / FOLDERS["never fine-tuned"])}
        config = UnlearnConfig(
            forget=[world.lists.forget],
            test=world.lists.unseen,
            device=world.config.device,
            seed=world.seed,
            output=str(folder / "out"),
            **reference,
            **options,
        )
        origins = dict.fromkeys(["forget", "test", "output", *reference, *options], "flag")
        done = unlearn.run_unlearn(world.folder / FOLDERS["before"], config, origins, Silent())
        return Made(world.judged_folder(folder / "out"), how_of(done.record))


def from_folder(world: World, folder: Path) -> Made:
    """Judge a folder that ``imu unlearn`` wrote; how is in its record."""
    found = folder / "model.record.json"
    if not found.is_file():
        raise ImuError(f"--row: {folder} has no model.record.json; name a folder that imu unlearn wrote")
    return Made(world.judged_folder(folder), how_of(Record.model_validate_json(found.read_text(encoding="utf-8"))))


def how_of(record: Record) -> dict[str, Any]:
    """Options that were given, files by their names alone, and how the run went."""
    given = {name: one.value for name, one in record.options.items() if one.origin in ("flag", "preset")}
    paths = ("forget", "test", "reference_model", "output", "anchor", "data")
    options = {name: value for name, value in given.items() if name not in paths}
    named = {name: Path(str(given[name])).name for name in ("test", "reference_model") if given.get(name)}
    info = record.scope
    assert info is not None
    timing = {name: round(seconds, 1) for name, seconds in record.seconds.items()}
    return {
        "options": {**options, **named}, "batches": info.batches, "steps": info.steps, "reason": record.reason,
        "reached": record.reached, "weights": info.weights, "passes": info.passes, "stages_seconds": timing,
        "looks": [look.model_dump(exclude_none=True) for look in record.trajectory],
    }  # fmt: skip


def made(world: World, row: str, options: Namespace, rows: Sequence[dict[str, Any]]) -> Made:
    """A row's model, asked."""
    given = dict(part.split("=", 1) for part in options.row)
    if row in given:
        return from_folder(world, Path(given[row]))
    if row == "before":
        return Made(world.judged_now())
    if row in FOLDERS:
        return Made(world.judged_folder(world.folder / FOLDERS[row]))
    if row in BASELINES:
        theirs = [one for one in rows if one["row"] == "retrained" and one["every"] == world.every]
        level = theirs[0]["figures"]["forget"]["exact_memorization"]["value"] if theirs else None
        return baseline(world, row, options, level)
    return by_command(world, OURS if row == "ours" else PUBLISHED)


def earlier(quick: bool) -> list[dict[str, Any]]:
    """Rows that are there already."""
    place = (common.scratch() if quick else common.RESULTS) / "language.json"
    if quick or not place.is_file():
        return []
    found: list[dict[str, Any]] = json.loads(place.read_text(encoding="utf-8"))["rows"]
    return found


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table: four figures of each set, and the truth."""
    sides = ("forget", "unseen", "kept", "paraphrased")
    made = []
    for row in sorted(rows, key=lambda one: (*ROWS, one["row"]).index(one["row"])):
        found = row["figures"]
        cells = [
            ", ".join(f"{found[side][name]['value']:.3f}" for name in MEASURES) if side in found else ""
            for side in sides
        ]
        quality = found.get("forget_quality")
        more = [
            f"{found['truth_ratio']['value']:.3f}" if "truth_ratio" in found else "",
            f"{quality['p']:.2g} ({quality['distance']:.2f})" if quality else "",
            f"{found['utility_without_rouge']['value']:.3f}" if "utility_without_rouge" in found else "",
            f"{row['seconds']:.0f}",
        ]
        made.append([row["row"], *cells, *more])
    columns = ["model", *sides, "truth ratio", "forget quality p (distance)", "utility without ROUGE", "s"]
    common.table("Cross-entropy, probability, exact memorisation, extraction strength", columns, made)


def missing(folder: Path) -> str | None:
    """What is not there of the models, and how it is made."""
    lacks = [name for name in FOLDERS.values() if not (folder / name / "config.json").is_file()]
    if not lacks:
        return None
    return (
        f"skipped: {folder} has no {', '.join(lacks)}; make them with ../shared/models/smollm2_tofu.py "
        f"({folder}/full; {folder}/retain --adapter retain; {folder}/none --adapter none)"
    )


def run(world: World, options: Namespace, rows: list[dict[str, Any]], keep: Callable[[], None]) -> None:
    """Make every row that is asked for and not there; ``keep`` writes what there is after each."""
    for row in options.rows:
        if any((one["row"], one["every"], one.get("seed", 0)) == (row, world.every, world.seed) for one in rows):
            common.console.print(f"{row}, seed {world.seed}: is there", style="dim")
            continue
        started, began = common.environment(with_checkpoint=False), time.perf_counter()
        done = made(world, row, options, rows)
        found = figures(done.judged)
        seconds = time.perf_counter() - began
        rows.append({
            "row": row, "every": world.every, "seed": world.seed, "seconds": round(seconds, 1), "precision": world.config.precision, **done.how,
            "figures": found, "environment": started,
        })  # fmt: skip
        with_quality(rows)
        keep()
        common.console.print(f"{row}: {seconds:.0f} s")


def main() -> None:
    """Measure, print and keep."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--models", type=Path, default=common.scratch() / "tofu", help="folder with full, retain and none"
    )
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}"
    )
    parser.add_argument(
        "--row", action="append", default=[], metavar="NAME=DIR", help="a row whose model was written before"
    )
    parser.add_argument("--every", type=int, default=4, help="of the judging records every so-manieth (default: 4)")
    parser.add_argument(
        "--utility", type=int, default=20, help="questions of each set of the utility; 0: none (default: 20)"
    )
    parser.add_argument("--batches", type=int, default=30, help="steps of a baseline (default: 30)")
    parser.add_argument("--minibatch", type=int, default=8, help="records in a step of a baseline (default: 8)")
    parser.add_argument("--rate", type=float, help="learning rate of a baseline in place of its own")
    parser.add_argument("--device", default="cpu", help="where models run (default: cpu)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of draws and halves (default: 0)")
    parser.add_argument("--precision", default="bfloat16", help="of the blocks (default: bfloat16)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lacks = missing(options.models)
    if lacks:
        common.console.print(lacks)
        return
    if options.quick:
        options.every, options.utility, options.rows = 40, 0, ["retrained", "before"]
    started = common.environment(with_checkpoint=False)
    rows = earlier(options.quick)

    def keep() -> None:
        common.keep("language", options.quick, {"data": "TOFU forget05", "rows": rows}, started)

    for seed in options.seeds:
        with ExitStack() as stack:
            lists = Lists.tofu()
            world = World(
                options.models, lists, options.every, options.utility, options.precision, stack, options.device, seed
            )
            run(world, options, rows, keep)
    show([row for row in rows if row["every"] == options.every])


if __name__ == "__main__":
    main()
