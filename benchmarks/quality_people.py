"""Do forgotten people of a re-identification model become as hard to find as for a model that never saw them, and what does it cost?

OSNet x0.25 of ../shared/reid knows 16 people of MARS; eight of them are forgotten by ``imu unlearn`` without an image of the other
eight. Half of 16 unseen people choose (targets, anchor, stop rule), drawn by the seed; everything is measured on the other half. OSNet's
code is torchreid's: ``pip download --no-deps --no-binary=:all: torchreid==0.2.5``; ``$TORCHREID`` is where it was unpacked.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import torch
from common import Criterion, at_least, at_most

from imu_cli.commands import opening, people, unlearn
from imu_cli.config.commands import EvaluateConfig, UnlearnConfig
from imu_cli.errors import ImuError
from imu_cli.evaluation.scene import Scene, View
from imu_cli.events import Silent
from imu_cli.features.session import Session
from imu_cli.statistics import retrieval, same_person
from imu_cli.statistics.retrieval import Found, Sightings

EIGHT = ("0003", "0007", "0013", "0019", "0023", "0027", "0035", "0041")
SEEDS = [0, 1, 2]
BETWEEN = 0.03
"""What the AUC may lie outside of what the weights before and the retrained model have."""


@dataclass(frozen=True)
class Measured:
    """What a model does on people who chose nothing: AUC, mAP of the eight, the other eight and the unseen, mean similarities."""

    auc: float
    forget: float
    others: float
    unseen: float
    similar: float
    similar_unseen: float


@dataclass(frozen=True)
class Run:
    """One unlearning, and the same figures of the models beside it."""

    name: str
    people: str
    seed: int
    reached: bool
    reason: str
    steps: int
    aim: float
    seconds: float
    passes: float
    before: Measured
    after: Measured
    retrained: Measured
    reference: Measured


def code() -> Path:
    """The file of OSNet's architecture.

    Raises:
        ImuError: it is not there.
    """
    root = Path(os.environ.get("TORCHREID", "torchreid-0.2.5"))
    for found in (root / "models/osnet.py", root / "reid/models/osnet.py", root / "torchreid/reid/models/osnet.py"):
        if found.is_file():
            return found
    raise ImuError(f"{root}: no osnet.py in it; TORCHREID names an unpacked torchreid (see the top of this script)")


def weights(name: str) -> Path:
    """A checkpoint of ../shared/reid."""
    return common.shared() / "reid" / f"osnet_x0_25_{name}.safetensors"


def options(forget: Sequence[str]) -> dict[str, Any]:
    """What all commands are given."""
    preset = common.scratch() / "osnet.yaml"
    preset.write_text(
        "size: [256, 128]\ninterpolation: bilinear\nmode: RGB\nmean: [0.485, 0.456, 0.406]\nstd: [0.229, 0.224, 0.225]\n",
        encoding="utf-8",
    )
    crops = f"mars:{common.shared() / 'reid' / 'mini_mars'}"
    return {
        "forget": [f"id={','.join(forget)}"], "data": crops, "test": crops, "task": "embedding", "preprocess": str(preset),
        "arch": f"{code()}:osnet_x0_25", "arch_arg": ["num_classes=1", "pretrained=false"], "batch_size": 64,
    }  # fmt: skip


class World:
    """The images of a forget list, and what models see of them."""

    def __init__(self, forget: Sequence[str]) -> None:
        self.config = EvaluateConfig(**options(forget))
        self.opened: Session = opening.open_all(weights("mars16"), self.config, Silent())
        self.sets = people.sets_of(self.opened, self.config.test, None)
        self.scene: Scene = people.scene_of(self.opened, self.sets)

    def view(self, path: Path) -> View:
        """The scene as a model sees it."""
        return people.view_of(people.open_beside(self.opened, path, self.config), self.scene, self.sets)

    def measured(self, view: View, seed: int) -> Measured:
        """Figures on the people who did not choose under that seed."""
        scene, test = self.scene, self.sets.test
        assert test is not None
        assert scene.test is not None
        assert scene.rest is not None
        assert view.test is not None
        assert view.rest is not None
        used = set(people.half(test, seed))
        judge = torch.tensor([row for row in range(len(test)) if row not in used])
        unseen = scene.test.seen_by(view.test).of(judge)
        mine, rest = scene.forget.seen_by(view.forget), scene.rest.seen_by(view.rest)
        gallery = retrieval.joined([mine, rest])
        ours, theirs = same_person.pairs(mine), same_person.pairs(unseen)
        assert ours is not None
        assert theirs is not None
        one, other = ours.similar(mine.directions), theirs.similar(unseen.directions)
        return Measured(
            same_person.plain_auc(one, other), precision(mine, gallery), precision(rest.of(scene.kept), gallery),
            precision(unseen, unseen), float(one.mean()), float(other.mean()),
        )  # fmt: skip


def precision(queries: Sightings, gallery: Sightings) -> float:
    """MAP of queries that have somebody to find."""
    found: Found = retrieval.search(queries, gallery)
    return float(found.precision[found.valid].mean())


def run(world: World, views: dict[str, View], name: str, seed: int, folder: Path, **more: Any) -> Run:
    """Unlearn and measure."""
    forget = world.config.forget[0].removeprefix("id=")
    output = folder / f"{name.replace(' ', '-')}-{forget[:4]}-{seed}.safetensors"
    begun = time.perf_counter()
    config = UnlearnConfig(**options(forget.split(",")), output=str(output), seed=seed, **more)
    done = unlearn.run_unlearn(weights("mars16"), config, {}, Silent())
    seconds = time.perf_counter() - begun
    after = world.measured(world.view(output), seed)
    output.unlink()
    beside = {key: world.measured(view, seed) for key, view in views.items()}
    record = done.record
    assert record.target.auc is not None
    assert record.scope is not None
    return Run(
        name, forget, seed, record.reached is True, record.reason, record.end.step, record.target.auc, seconds, record.scope.passes,
        beside["mars16"], after, beside["mars8"], beside["msmt17"],
    )  # fmt: skip


def main() -> None:
    """Print and keep."""
    given = common.parser(__doc__)
    given.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given.add_argument(
        "--ways", nargs="+", default=["reference", "unseen"], choices=["reference", "unseen", "all", "single"]
    )
    given.add_argument("--add", action="store_true", help="to the results that are kept")
    chosen = given.parse_args()
    started = common.environment(with_checkpoint=False)
    torch.set_num_threads(chosen.threads)
    seeds = chosen.seeds[:1] if chosen.quick else chosen.seeds
    before = {"reference_model": str(weights("msmt17"))}
    ways: dict[str, dict[str, Any]] = {
        "reference": {"with the reference model": before}, "unseen": {"unseen people only": {}},
        "all": {"with the reference model, all layers": before | {"scope": "all", "learning_rate": 0.002}},
    }  # fmt: skip
    runs: list[Run] = []
    with common.folder("people") as folder:
        world = World(EIGHT)
        views = {name: world.view(weights(name)) for name in ("mars16", "mars8", "msmt17")}
        for way in chosen.ways:
            for seed in seeds:
                for name, more in ways.get(way, {}).items():
                    runs.append(run(world, views, name, seed, folder, **more))
                    show(runs[-1])
        if "single" in chosen.ways:
            runs += singles(folder, seeds[0], before)
    if chosen.add:
        earlier = json.loads((common.RESULTS / "quality_people.json").read_text(encoding="utf-8"))["runs"]
        runs = [*map(restored, earlier), *runs]
    common.keep("quality_people", chosen.quick, {"runs": [asdict(item) for item in runs]}, started)
    table(runs)
    common.stop(criteria(runs))


def restored(said: dict[str, Any]) -> Run:
    """A run as it was kept."""
    whose = {name: Measured(**said[name]) for name in ("before", "after", "retrained", "reference")}
    return Run(**{**said, **whose})


def singles(folder: Path, seed: int, before: dict[str, Any]) -> list[Run]:
    """Each person alone, of those seen by two cameras."""
    made = []
    for person in EIGHT:
        world = World([person])
        if same_person.pairs(world.scene.forget) is None:
            continue
        views = {name: world.view(weights(name)) for name in ("mars16", "mars8", "msmt17")}
        try:
            made.append(run(world, views, "single person, with the reference model", seed, folder, **before))
        except ImuError as error:
            common.console.print(f"{person}: {error}")
            continue
        show(made[-1])
    return made


def show(item: Run) -> None:
    """One line as it goes."""
    a, b = item.before, item.after
    common.console.print(
        f"{item.name}, {item.people}, seed {item.seed}: AUC {a.auc:.3f} → {b.auc:.3f} (reference {item.reference.auc:.3f}, retrained "
        f"{item.retrained.auc:.3f}; aim {item.aim:.3f}), mAP forgotten {b.forget:.4f}, others {a.others:.4f} → {b.others:.4f}, unseen "
        f"{a.unseen:.4f} → {b.unseen:.4f}; {item.reason} at step {item.steps}, {item.seconds:.0f} s"
    )


def table(runs: Sequence[Run]) -> None:
    """Means over seeds, changes of the same people's figures."""
    rows = []
    for name in dict.fromkeys(item.name for item in runs):
        those = [item for item in runs if item.name == name]
        rows.append(
            [
                name, len(those), *(f"{mean([side(item).auc for item in those]):.3f}" for side in SIDES),
                f"{mean([item.after.forget for item in those]):.4f}",
                f"{mean([item.before.others - item.after.others for item in those]):+.4f}",
                f"{mean([item.before.unseen - item.after.unseen for item in those]):+.4f}",
                f"{mean([item.steps for item in those]):.0f}", f"{mean([item.passes for item in those]):.0f}",
            ]
        )  # fmt: skip
    columns = (
        "", "runs", "AUC before", "after", "retrained", "reference", "mAP forgotten", "others lose", "unseen lose", "steps", "passes",
    )  # fmt: skip
    common.table("Eight of sixteen people forgotten, means", columns, rows)


SIDES = (
    lambda item: item.before, lambda item: item.after, lambda item: item.retrained, lambda item: item.reference,
)  # fmt: skip


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)


def criteria(runs: Sequence[Run]) -> list[Criterion]:
    """Those of the issue, on every run with the reference model."""
    those = [item for item in runs if item.name == "with the reference model"]
    if not those:
        return []
    outside = [max(item.reference.auc - item.after.auc, item.after.auc - item.retrained.auc, 0.0) for item in those]
    return [
        at_most("AUC outside of reference and retrained", max(outside), BETWEEN),
        at_least("mAP of the forgotten", min(item.after.forget for item in those), 0.95),
        at_most("the others' mAP falls", max(item.before.others - item.after.others for item in those), 0.005),
        at_most("unseen people's mAP falls", max(item.before.unseen - item.after.unseen for item in those), 0.01),
    ]


if __name__ == "__main__":
    main()
