"""How long does each command take from nothing, beside a process that only imports torch?

Every command of the demo (``imu demo``: scikit-learn's digits, a network with 68,000 weights), each in a process of its own,
each straight after a process ``python -c 'import torch'``, which is what any tool that computes with torch must pay. Wall
time, and the processor time of the process as the system counts it, which a busy machine changes less; ratios are to the
import just before. Scores come from no cache, byte code does: it is what an installed package has. Needs no ../shared.
"""

import contextlib
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import common
import torch
from common import Criterion

from imu_cli import cli
from imu_cli.commands import demo

REPORT_SECONDS, UNLEARN_RATIO = 1.0, 1.3
BASELINE = ("-c", "import torch")
IMU = ("-m", "imu_cli")
MODEL = ("model.safetensors", "--config", "imu.yaml", "--forget", "forget.csv")
COMMANDS: dict[str, tuple[str, ...]] = {
    "imu --help": ("--help",),
    "imu --version": ("--version",),
    "imu report": ("report", "unlearned.record.json", "unlearned.evaluation.json"),
    "imu inspect --header": ("inspect", "model.safetensors", "--header"),
    "imu cache ls": ("cache", "ls"),
    "imu influence": ("influence", *MODEL, "--no-cache"),
    "imu unlearn": ("unlearn", *MODEL, "--no-cache", "-o", "again.safetensors", "--force"),
    "imu evaluate": (
        "evaluate", "unlearned.safetensors", "--config", "imu.yaml", "--test", "data/test", "--retain", "data/train",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and of processor time in user and system mode."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Timed:
    """A command's processes, and the import of torch just before each."""

    command: str
    torch: list[Spent]
    runs: list[Spent]

    def ratios(self, clock: str) -> list[float]:
        """Each process over the import before it."""
        return [getattr(run, clock) / getattr(bare, clock) for run, bare in zip(self.runs, self.torch, strict=True)]

    def median(self, clock: str) -> float:
        """Median seconds of a process."""
        return statistics.median(getattr(run, clock) for run in self.runs)


def surroundings(folder: Path) -> dict[str, str]:
    """The environment of every process: this package, byte code kept, a cache of its own."""
    made = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **made,
        "PYTHONPATH": str(common.REPOSITORY),
        "IMU_CACHE_DIR": str(folder / "cache"),
    }


def process(folder: Path, arguments: Sequence[str]) -> Spent:
    """One Python process from start to end in the demo's folder; its output is thrown away.

    Raises:
        RuntimeError: it failed.
    """
    with open(folder / "stderr", "w+", encoding="utf-8") as err:
        start = time.perf_counter()
        running = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder / "demo",
            env=surroundings(folder),
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
        _, status, usage = os.wait4(running.pid, 0)
        taken = time.perf_counter() - start
        running.returncode = os.waitstatus_to_exitcode(status)
        if running.returncode:
            err.seek(0)
            raise RuntimeError(f"{' '.join(arguments)}: exit code {running.returncode}\n{err.read()}")
    return Spent(taken, usage.ru_utime + usage.ru_stime)


def measure(folder: Path, repeats: int) -> list[Timed]:
    """Rounds over all commands, each after an import of torch; a first round that writes byte code is left out."""
    found = [Timed(command, [], []) for command in COMMANDS]
    process(folder, BASELINE)
    for arguments in COMMANDS.values():
        process(folder, (*IMU, *arguments))
    for _ in range(repeats):
        for timed in found:
            timed.torch.append(process(folder, BASELINE))
            timed.runs.append(process(folder, (*IMU, *COMMANDS[timed.command])))
    return found


def make_demo(folder: Path) -> None:
    """The demo's files and what its commands write, quietly."""
    os.environ["IMU_CACHE_DIR"] = str(folder / "cache")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        demo.run(folder / "demo", force=False, seed=0, main=cli.main)


def show(found: Sequence[Timed]) -> None:
    """Seconds and ratios of every command, after those of the import."""
    bare = [one for timed in found for one in timed.torch]
    rows = [["import torch", *_cells([one.wall for one in bare]), *_cells([one.cpu for one in bare]), "1", "1"]]
    for timed in found:
        walls, cpus = ([getattr(run, clock) for run in timed.runs] for clock in ("wall", "cpu"))
        ratios = [f"{statistics.median(timed.ratios(clock)):.2f}" for clock in ("wall", "cpu")]
        rows.append([timed.command, *_cells(walls), *_cells(cpus), *ratios])
    columns = ("process", "s", "range", "processor s", "range", "× torch", "processor × torch")
    common.table(f"Cold start: medians of {len(found[0].runs)}", columns, rows)


def _cells(seconds: Sequence[float]) -> tuple[str, str]:
    return f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}"


def criteria(found: Sequence[Timed]) -> list[Criterion]:
    """What the project promised about cold starts, against this run."""
    named = {timed.command: timed for timed in found}
    report = named["imu report"].median("wall")
    unlearn = statistics.median(named["imu unlearn"].ratios("wall"))
    return [
        Criterion("imu report, median", f"≤ {REPORT_SECONDS} s", f"{report:.2f} s", report <= REPORT_SECONDS),
        Criterion(
            "imu unlearn ÷ import torch, median", f"≤ {UNLEARN_RATIO}", f"{unlearn:.2f}", unlearn <= UNLEARN_RATIO
        ),
    ]


def main() -> None:
    """Measure, print and keep."""
    parser = common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="processes of each command (default: 7)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = common.environment(with_checkpoint=False)
    with common.folder("coldstart") as folder:
        make_demo(folder)
        found = measure(folder, 1 if options.quick else options.repeats)
    show(found)
    checked = criteria(found)
    kept = {
        "runs": [
            {**asdict(timed), "ratios": timed.ratios("wall"), "cpu_ratios": timed.ratios("cpu")} for timed in found
        ],
        "load_at_end": [round(value, 2) for value in os.getloadavg()],
    }
    common.keep("coldstart", options.quick, {**kept, "criteria": common.verdicts(checked)}, started)
    common.stop(checked)


if __name__ == "__main__":
    main()
