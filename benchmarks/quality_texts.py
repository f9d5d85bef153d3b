"""Does a real text classifier forget some texts, and one intent, by the head and by its last block?

The classifier of 77 intents of ../shared (``models/minilm_banking77.py``, made once a machine; it needs the package that it names) through the
whole pipeline, file to file: ``imu unlearn`` with half of the test texts to choose by, ``imu evaluate`` on the other half, on all other
training texts, and beside the model that was trained without the 500 of ``random500.csv``. ``--scopes head`` is quick.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
import torch
from common import Criterion, at_least, at_most

from imu_cli.commands import evaluate, unlearn
from imu_cli.config.commands import EvaluateConfig, UnlearnConfig
from imu_cli.errors import ImuError
from imu_cli.events import Silent
from imu_cli.records.evaluation import Evaluation

DATA = "data/banking77"
WANTED = (
    "forget.accuracy", "test.accuracy", "test.accuracy_drop", "retain.accuracy", "mia.auc", "mia.auc_two_sided", "probe.accuracy",
    "cka.forget", "cka.test", "retrained.accuracy_gap.forget", "retrained.accuracy_gap.test",
    "retrained.accuracy_gap.retain", "retrained.average_gap",
)  # fmt: skip
INTENT = "card_arrival"


def folder(name: str, *arguments: str) -> Path:
    """The transformers folder of a classifier, made once a machine.

    Raises:
        ImuError: the package that holds its pretrained weights is not installed.
    """
    place = common.scratch() / name
    if not (place / "model.safetensors").is_file():
        made = common.shared() / "models" / "minilm_banking77.py"
        run = subprocess.run(
            [sys.executable, str(made), str(place), *arguments], capture_output=True, text=True, check=False
        )
        if run.returncode:
            raise ImuError(f"{made.name}: {run.stderr.strip().splitlines()[-1:]}; it says which package it needs")
    return place


def cases(seeds: list[int]) -> dict[str, list[str]]:
    """Forget lists by name."""
    rows = {
        f"{n} random, seed {seed}": torch.randperm(10003, generator=torch.Generator().manual_seed(seed))[:n].tolist()
        for n in (37, 500)
        for seed in seeds
    }
    listed = {name: [f"index={row}" for row in sorted(chosen)] for name, chosen in rows.items()}
    return {
        "random500.csv": [str(common.shared() / DATA / "random500.csv")],
        f"intent {INTENT}": [f"class={INTENT}"],
        **listed,
    }


def run(model: Path, retrained: Path | None, forget: list[str], scope: str, place: Path) -> Evaluation:
    """Unlearned and evaluated."""
    source = common.shared() / DATA
    shared = {
        "data": str(source / "train.csv"),
        "columns": "label=category",
        "test": str(source / "test.csv"),
        "device": "cpu",
    }
    output = place / "unlearned"
    done = unlearn.run_unlearn(
        model, UnlearnConfig(**shared, forget=forget, scope=scope, output=str(output)), {}, Silent()
    )
    common.console.print(f"  {done.record.end.forget:.4f} at step {done.record.end.step}", style="dim")
    config = EvaluateConfig(
        **shared,
        forget=forget,
        retain=shared["data"],
        original=str(model),
        retrained=None if retrained is None else str(retrained),
    )
    return evaluate.run_evaluate(done.output, config, {}, Silent()).evaluation


def figures(made: Evaluation) -> dict[str, Any]:
    """The metrics that the table shows."""
    return {
        item.name: item.model_dump(include={"value", "before", "n", "interval", "target"})
        for item in made.metrics
        if item.name in WANTED and item.missing is None
    }


def criteria(found: dict[str, dict[str, Any]]) -> list[Criterion]:
    """What the project set itself, of the runs that were made."""
    made: list[Criterion] = []
    for name, values in found.items():
        if "error" in values:
            continue
        made.append(at_most(f"{name}: fall of test accuracy", values["test.accuracy_drop"]["value"], 0.003))
        made.append(at_least(f"{name}: other training texts", values["retain.accuracy"]["value"], 0.985))
    return made


def earlier() -> dict[str, dict[str, Any]]:
    """Runs that are kept; those that are made again take their place."""
    place = common.RESULTS / "quality_texts.json"
    runs: dict[str, dict[str, Any]] = json.loads(place.read_text(encoding="utf-8"))["runs"] if place.is_file() else {}
    return runs


def main() -> None:
    """Run, keep, judge."""
    parser = common.parser(__doc__)
    parser.add_argument("--scopes", nargs="+", default=["head", "last-block"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cases", nargs="+", default=[], help="starts of the cases' names; all by default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    started = common.environment(with_checkpoint=False)
    model, without = folder("intents"), folder("intents-without500", "--without", "random500")
    found = {} if options.quick else earlier()
    for scope in options.scopes:
        for name, forget in cases(options.seeds).items():
            if options.cases and not name.startswith(tuple(options.cases)):
                continue
            with common.folder("texts") as place:
                key = f"{name}, {scope}"
                try:
                    found[key] = figures(run(model, without if name == "random500.csv" else None, forget, scope, place))
                except ImuError as error:
                    found[key] = {"error": str(error).replace(str(common.shared()), "…")}
            common.console.print(f"{key}: {json.dumps(found[key])}", soft_wrap=True)
            common.keep("quality_texts", options.quick, {"runs": found}, started)
    checked = criteria(found)
    common.keep("quality_texts", options.quick, {"runs": found, "criteria": common.verdicts(checked)}, started)
    common.stop(checked)


if __name__ == "__main__":
    main()
