"""How much memory do the tokens of a language model take beyond the model: 20,000 of SmolLM2's head, and a vocabulary of 256,000?

``influence.tokens`` on random rows of the size of real ones: a head of 49,152 words and 576 features (SmolLM2-135M), and one of
256,000 words and 640 features (Gemma 3 270M, two thousand tokens). Each in a process of its own; what is counted is the peak beyond what the
process holds once head and features are there.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import common
import psutil
import torch
from common import Criterion
from torch import Tensor

from imu_cli.influence import tokens
from imu_cli.influence.closed_form import Damping
from imu_cli.linear.vocabulary import Words

GIBIBYTES = 2.0


@dataclass(frozen=True)
class Job:
    """How many tokens, words and features."""

    name: str
    n: int
    words: int
    width: int


JOBS = (
    Job("influence, 2,000 tokens of 256,000 words", 2_000, 256_000, 640),
    Job("influence, 20,000 tokens of 49,152 words", 20_000, 49_152, 576),
)


class Rows(NamedTuple):
    """Tokens to be predicted."""

    features: Tensor
    targets: Tensor


def solve(job: Job) -> dict[str, Any]:
    """One job in this process: seconds, and the peak beyond head and features."""
    draws = torch.Generator().manual_seed(0)
    head = Words(torch.randn(job.words, job.width, generator=draws) * 0.1)
    rows = Rows(torch.randn(job.n, job.width, generator=draws), torch.randint(job.words, (job.n,), generator=draws))
    held = psutil.Process().memory_info().rss
    wall, cpu = time.perf_counter(), time.process_time()
    found = tokens.influence(rows, head, Damping(0.01))
    products = 5 * 2 * job.n * job.words * job.width
    seconds = time.perf_counter() - wall
    return {
        **asdict(job),
        "seconds": seconds,
        "processor_seconds": time.process_time() - cpu,
        "gigaflops": products / seconds / 1e9,
        "held_gibibytes": held / 2**30,
        "beyond_gibibytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held) / 2**30,
        "mean_loss": float(found.seen.loss.mean()),
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
    started = common.environment()
    command = [sys.executable, __file__, "--threads", str(options.threads), "--job"]
    outputs = [
        subprocess.run([*command, str(job)], check=True, capture_output=True, text=True).stdout
        for job in range(1 if options.quick else len(JOBS))
    ]
    found = [json.loads(text.splitlines()[-1]) for text in outputs]
    rows = [
        [item["name"], f"{item['seconds']:.0f}", f"{item['held_gibibytes']:.2f}", f"{item['beyond_gibibytes']:.2f}"]
        for item in found
    ]
    common.table("Tokens of a language model", ("run", "seconds", "held GiB", "beyond it GiB"), rows)
    made = [
        Criterion(
            f"{item['name']}: GiB beyond the model", f"≤ {GIBIBYTES:g}", f"{item['beyond_gibibytes']:.2f}",
            item["beyond_gibibytes"] <= GIBIBYTES,
        )
        for item in found
    ]  # fmt: skip
    common.keep("token_memory", options.quick, {"runs": found, "criteria": common.verdicts(made)}, started)
    common.stop(made)


if __name__ == "__main__":
    main()
