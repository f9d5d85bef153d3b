"""What does forgetting random samples cost where the head can tell them apart: 512 features, training data known by heart?

The classifier of ``wide.py``; its 10,000 training images hold the samples to forget, the rest of them is retain. 37, 128
and 500 random samples, as many as a tenth of c·d margins, in ten, ten and five seeds; halves of the test set as in
``quality_samples.py``, whose methods, tables and figures these are. The membership AUC starts at about 0.7 here, so that
the question is not only accuracy: do the forgotten samples still look like training data?
"""

from collections.abc import Sequence
from dataclasses import asdict

import common
import quality_samples as samples
import torch
from common import Criterion
from quality_samples import Found
from wide import IMAGES, wide

from imu_cli.commands import held_out
from imu_cli.samples.manifest import open_source

SIZES = {37: 10, 128: 10, 500: 5}
"""Seeds of each size: with few samples chance moves an AUC most."""
LEVELS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.72)
AUC_ERROR = 0.02


def criteria(free: Sequence[Found], curve: Sequence[Found]) -> list[Criterion]:
    """What the project promised for a head with a real margin gap, against this run."""
    made = []
    for n in SIZES:
        those = [item for item in free if (item.n, item.method) == (n, "matched")]
        auc = samples.mean([item.auc for item in those])
        what = f"n = {n}, matched: mean AUC over {len(those)} seeds"
        made.append(Criterion(what, f"within {AUC_ERROR} of 0.5", f"{auc:.3f}", abs(auc - 0.5) <= AUC_ERROR))
        made += [samples.no_worse(curve, "matched", n, name, LEVELS) for name in ("retain", "test")]
    return made


def main() -> None:
    """Measure, print and keep."""
    options = common.parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    started, data = common.environment(), wide()
    test = open_source(common.batches(), "test")
    sizes = {37: 1} if options.quick else SIZES
    cases = [samples.draw(data, held_out.half(test, seed), n, seed) for n in sizes for seed in range(sizes[n])]
    before = [samples.judge(case, "original", case.goal, data.matrix, 0, "") for case in cases]
    free, guarded = samples.to_goal(cases, None), samples.to_goal(cases, samples.DEFAULTS.max_drop)
    samples.show("To the held-out level, whatever it costs", free, before)
    samples.show(f"The same within --max-drop {samples.DEFAULTS.max_drop} on the choosing half", guarded, before)
    curve = list(samples.frontier(cases, LEVELS))
    samples.show_frontier(curve)
    checked = [] if options.quick else criteria(free, curve)
    kept = {"before": before, "to_held_out_level": free, "within_max_drop": guarded, "frontier": curve}
    plain = {name: [asdict(item) for item in items] for name, items in kept.items()}
    about = {"features": data.matrix.shape[1] - 1, "training_images": IMAGES}
    common.keep("quality_wide", options.quick, {**about, **plain, "criteria": common.verdicts(checked)}, started)
    if not options.quick:
        samples.plot(curve, "quality_wide")
    common.stop(checked)


if __name__ == "__main__":
    main()
