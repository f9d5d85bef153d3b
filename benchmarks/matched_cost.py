"""What does matched unlearning cost in time and memory, at 5,000 and at 50,000 samples?

The whole path along ρ, as ``imu unlearn`` walks it, on the classifier of ``wide.py`` (512 features and a bias, 10 classes):
5,000 of its training images within --max-drop, and to a membership AUC whatever it costs; then all 50,000 images of
CIFAR-10's training set, 40,000 of which it has never seen, which is a question of size and not of sense. Each in a process of its
own, whose peak memory is the features', the solver's and the libraries' together.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import common
import quality_samples as samples
import torch
from common import Criterion
from wide import wide

from imu_cli.commands import held_out
from imu_cli.samples.manifest import open_source
from imu_cli.unlearning.matched import fit
from imu_cli.unlearning.targets import Comparison, Limits

SECONDS, GIBIBYTES = 30.0, 8.0


@dataclass(frozen=True)
class Job:
    """A number of samples, and the largest fall of held-out accuracy that the run may spend (None: any)."""

    name: str
    n: int
    max_drop: float | None
    max_auc: float | None


JOBS = (
    Job("5,000 samples, --max-drop 0.01", 5_000, 0.01, 0.51),
    Job("5,000 samples, to their accuracy whatever it costs", 5_000, None, 1.0),
    Job("50,000 samples, --max-drop 0.01", 50_000, 0.01, 0.51),
)


def solve(job: Job) -> dict[str, Any]:
    """One path in this process: seconds on the clock and of the processor, peak memory, and what it came to."""
    data = wide(job.n if job.n > 10_000 else 10_000)
    half = held_out.half(open_source(common.batches(), "test"), 0)
    case = samples.draw(data, half, job.n, 0)
    wall, cpu = time.perf_counter(), time.process_time()
    aim = fit.aim(
        case.h, case.labels, data.matrix, case.goal, Comparison(case.plan, case.labels, None, case.held),
        kind=case.plan.kind, by_accuracy=False, max_auc=job.max_auc,
    )  # fmt: skip
    problem = fit.prepare(
        case.h, case.labels, data.matrix, aim.targets, case.held,
        damping=samples.DEFAULTS.sigma_damping, class_factor=samples.DEFAULTS.class_factor,
    )  # fmt: skip
    limits = Limits(case.goal, 1, None, job.max_drop)
    *points, last = fit.run(problem, aim, case.look, limits, data.head.rounded, None)
    assert isinstance(last, fit.Matched)
    return {
        **asdict(job),
        "points": len(points),
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - cpu,
        "peak_gibibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "form": last.details.form,
        "rho": last.details.rho,
        "forget_before": last.outcome.start.forget,
        "forget": last.outcome.end.forget,
        "goal": case.goal,
        "reason": last.outcome.reason,
    }


def main() -> None:
    """Run every job in its own process, print and keep."""
    parser = common.parser(__doc__, threads=2)
    parser.add_argument("--job", type=int, help="only this one, in this process, as JSON")
    options = parser.parse_args()
    if options.job is not None:
        torch.set_num_threads(options.threads)
        print(json.dumps(solve(JOBS[options.job])))
        return
    wide()  # trained before the processes whose memory is measured
    started = common.environment()
    chosen = range(1 if options.quick else len(JOBS))
    command = [sys.executable, __file__, "--threads", str(options.threads), "--job"]
    outputs = [
        subprocess.run([*command, str(job)], check=True, capture_output=True, text=True).stdout for job in chosen
    ]
    found = [json.loads(text.splitlines()[-1]) for text in outputs]
    rows = [
        [
            item["name"], item["points"], f"{item['seconds']:.1f}", f"{item['processor_seconds']:.1f}",
            f"{item['peak_gibibytes']:.2f}", f"{item['forget_before']:.2%}", f"{item['forget']:.2%}", item["reason"],
        ]
        for item in found
    ]  # fmt: skip
    columns = ("run", "values of ρ", "seconds", "processor s", "peak GiB", "forget before", "after", "ended by")
    common.table("The path along ρ, 512 features, 10 classes", columns, rows)
    made = [_within("5,000 samples: seconds", max(i["seconds"] for i in found if i["n"] == 5_000), SECONDS)]
    if not options.quick:
        made.append(_within("50,000 samples: peak GiB", found[-1]["peak_gibibytes"], GIBIBYTES))
    common.keep("matched_cost", options.quick, {"runs": found, "criteria": common.verdicts(made)}, started)
    common.stop(made)


def _within(what: str, found: float, most: float) -> Criterion:
    return Criterion(what, f"≤ {most:g}", f"{found:.2f}", found <= most)


if __name__ == "__main__":
    main()
