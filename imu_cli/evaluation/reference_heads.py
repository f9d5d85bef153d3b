"""Heads fitted again without D_f on the features that the backbone computed: what retraining the head would have reached.

Eight heads on random halves of the retain samples are RMIA's references, one on all of them is the head that never saw
D_f. A head fitted again differs from the original for other reasons too: its rows may be a part of the training data, and
the original need not be the minimum of any loss. So one more head is fitted in the same way *with* D_f, in the proportion
that the retain samples given are of all, and what it differs by from the original is taken off.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from imu_cli.errors import ImuError
from imu_cli.evaluation import attacks, likelihood_ratios
from imu_cli.evaluation.comparisons import MISSING, hits, splits
from imu_cli.evaluation.evidence import NO_ORIGINAL, NO_RETAIN, NO_TEST, Evidence, Split, metric, pair, phi
from imu_cli.linear import refits
from imu_cli.linear.rows import Joined, Logits, Outputs, Rows, with_bias
from imu_cli.records.evaluation import Metric
from imu_cli.statistics.clustered import Clusters, mean_difference, parted, some
from imu_cli.statistics.intervals import Estimate, NotMeasured, census, class_counts

REFERENCES = 8
"""Heads on random halves of the retain samples that RMIA compares with."""
WORK = 1_000_000_000_000
"""Multiplications of one pass over the rows beyond which heads are fitted on a random part of them: a million samples of
150 classes with 600 features."""
LEAST_PER_CLASS = 50
"""Rows that such a part has for each class, whatever they cost."""
LONG = 20.0
"""Seconds from which on it is said beforehand how long the heads take."""
FAR = 1e-3
"""Nats a sample above its best at which a head says nothing any more."""

HEAD_ONLY = NotMeasured("needs a change of the head only: the features are not those of the original")


@dataclass(frozen=True)
class Refitted:
    """Heads fitted again.

    Attributes:
        halves: (K, c, d+1), on random halves of the retain samples.
        without: (c, d+1), on all of them.
        control: (c, d+1), on all of them and D_f in proportion.
        rows, drawn: which retain samples (n,) and which of D_f (m,) these were fitted on; all where None.
        l2: weight decay λ.
        note: on how many rows, and how near their best the heads are where that is not near.
    """

    halves: Tensor
    without: Tensor
    control: Tensor
    rows: Tensor | None
    drawn: Tensor | None
    l2: float
    note: str


def wide(e: Evidence, split: Split) -> Rows:
    """H (n, d+1) of a split."""
    return with_bias(split.features, e.head[1] is not None)


def matrix_of(head: tuple[Tensor, Tensor | None]) -> Tensor:
    """W (c, d+1) of a weight and a bias, float64."""
    weight, bias = head
    return weight.double() if bias is None else torch.cat([weight, bias[:, None]], dim=1).double()


def share_of_training(e: Evidence, retain: Split) -> float:
    """Which part of the training data that stay the retain samples are, 0 to 1; 1 where nothing says that some are missing.

    Known where ``--data`` is the training set. Of whole classes their size tells as well.
    """
    n, forget = len(retain.labels), len(e.forget.labels)
    if e.training is not None and e.training > forget:
        return min(1.0, n / (e.training - forget))
    if e.kind != "class":
        return 1.0
    kept, gone = (class_counts(split.labels).values() for split in (retain, e.forget))
    return min(1.0, (sum(kept) / len(kept)) / (sum(gone) / len(gone)))


def refit(e: Evidence) -> Refitted | NotMeasured:
    """Heads that never saw D_f and one that did, on the features of the backbone that did; λ is the original head's own."""
    if e.retain is None:
        return NO_RETAIN
    if e.head_before is None:
        return NO_ORIGINAL
    if not e.same_backbone:
        return HEAD_ONLY
    head, generator = matrix_of(e.head_before), torch.Generator().manual_seed(e.seed)
    rows = _affordable(e.retain, head, generator)
    retain = e.retain if rows is None else e.retain.only(rows)
    share = share_of_training(e, e.retain) * len(retain.labels) / len(e.retain.labels)
    drawn = _some(len(e.forget.labels), share, generator)
    forget = e.forget if drawn is None else e.forget.only(drawn)
    l2 = refits.own_weight_decay([(wide(e, part), part.labels) for part in (retain, forget)], head)
    if l2 <= 0:
        return NotMeasured(
            "the original's head is surer of its samples than any weight decay explains, so none can be refitted"
        )
    try:
        found = _fit(e, retain, forget, head, l2)
    except ImuError as error:
        return NotMeasured(str(error))
    if found.decrement > FAR:
        return NotMeasured(
            f"inconclusive: fitting heads again stopped {found.decrement:.2g} nats a sample above the best"
        )
    note = f"heads fitted on {len(retain.labels)} retain samples" + (
        "" if drawn is None else f", {share:.0%} of those there are, and D_f in proportion"
    )
    note += "" if found.converged else f"; stopped {found.decrement:.1g} nats above their best"
    return Refitted(found.heads[:-2], found.heads[-2], found.heads[-1], rows, drawn, l2, note)


def _affordable(retain: Split, head: Tensor, generator: torch.Generator) -> Tensor | None:
    """Rows of retain (n,) that heads can be fitted on in minutes; None for all."""
    most = max(WORK // (head.numel() * (REFERENCES + 2)), LEAST_PER_CLASS * len(head))
    return _some(len(retain.labels), most / len(retain.labels), generator)


def _some(n: int, share: float, generator: torch.Generator) -> Tensor | None:
    """A random part of n rows, sorted, at least one; None for all of them."""
    if share >= 1:
        return None
    return torch.randperm(n, generator=generator)[: max(1, round(share * n))].sort().values


def _fit(e: Evidence, retain: Split, forget: Split, head: Tensor, l2: float) -> refits.Fitted:
    """Heads on halves of retain, on all of it, and last on all of it and D_f."""
    h = Joined(wide(e, retain), wide(e, forget))
    labels = torch.cat([retain.labels, forget.labels])
    generator = torch.Generator().manual_seed(e.seed)
    half = likelihood_ratios.balanced_members(REFERENCES, len(retain.labels), generator)
    members = torch.ones(REFERENCES + 2, len(labels), dtype=torch.bool)
    members[:REFERENCES, : len(retain.labels)] = half
    members[:-1, len(retain.labels) :] = False
    takes = refits.seconds(h, len(head), len(members))
    if takes > LONG:
        e.log.note(f"reference heads: {len(members)} on {len(retain.labels)} samples, about {takes:.0f} s")
    with e.log.timed("reference heads"), e.log.track("reference heads", 100) as advance:
        return refits.fit(
            h, labels, members.to(labels.device), len(head), l2, start=head, tolerance=refits.COARSE, advance=advance
        )


def reference_head_metrics(e: Evidence) -> list[Metric]:
    """RMIA against heads fitted on retain samples, and the accuracy gaps to one fitted on all of them."""
    found = refit(e)
    names = [f"head_gap.{split}" for split in ("forget", "test", "retain")]
    if isinstance(found, NotMeasured):
        return [
            metric("rmia.auc", found, split="forget, test"),
            *(metric(name, found, split=name.rpartition(".")[2]) for name in names),
        ]
    made = [_rmia(e, found)]
    for name, (split_name, split) in zip(names, splits(e).items(), strict=True):
        if split is None:
            made.append(metric(name, MISSING[split_name], split=split_name))
            continue
        seen = split
        if split_name == "retain" and found.rows is not None:
            assert e.retain is not None
            seen = e.retain.only(found.rows)
        assert seen.before is not None
        control = _differences(e, seen, seen.before, found.control)
        if split_name == "forget" and found.drawn is not None:
            control = control[found.drawn]
        of = seen.clusters if split_name != "forget" or found.drawn is None else some(seen.clusters, found.drawn)
        after, before = (
            _gap(_differences(e, seen, logits, found.without), control, of, counted=split_name == "forget")
            for logits in (seen.after, seen.before)
        )
        note = f"{float(control.double().mean()):+.2%} taken off, by which the original is off its own refit"
        if split_name == "forget":
            note = f"{found.note}; weight decay {found.l2:.2g}, the original head's own; {note}"
        made.append(metric(name, after, before, split=split_name, target=0.0, note=note))
    return made


def _differences(e: Evidence, split: Split, logits: Outputs, other: Tensor) -> Tensor:
    """What counts as right under some logits less what does under a fitted head, −1, 0 or 1 a row (n,)."""
    return hits(e, split, logits).int() - hits(e, split, Logits(wide(e, split), other)).int()


def _gap(own: Tensor, control: Tensor, clusters: Clusters, *, counted: bool) -> Estimate:
    """Mean difference from the head without D_f, less that of the original from the head with it; ``clusters`` are of ``control``.

    D_f is counted; where the second head was fitted on some of it, those stand for all, with an interval.
    """
    if not counted:
        return mean_difference(own - control, clusters)
    value = float(own.double().mean() - control.double().mean())
    if len(own) == len(control):
        return census(value, len(own))
    spread = mean_difference(control, clusters)
    assert spread.low is not None
    assert spread.high is not None
    shift = float(own.double().mean())
    return Estimate(value, shift - spread.high, shift - spread.low, len(own), spread.method)


def _rmia(e: Evidence, found: Refitted) -> Metric:
    """``rmia.auc``: one half of test is the population, the class-matched part of the other what D_f is told from."""
    name, where = "rmia.auc", "forget, test"
    if e.test is None:
        return metric(name, NO_TEST, split=where)
    test = e.test
    halves = parted(len(test.labels), test.clusters, torch.Generator().manual_seed(e.seed))
    population, others = (rows.sort().values for rows in halves)
    try:
        matched = attacks.class_matched(e.forget.labels, e.test.labels[others], torch.Generator().manual_seed(e.seed))
    except ImuError as error:
        return metric(name, NotMeasured(str(error)), split=where)
    pool = others[matched]
    clusters = pair(e.forget.clusters, some(test.clusters, pool))
    forget_references, references = (
        logsigmoid(
            torch.stack([attacks.logit_confidence(Logits(wide(e, split), head), split.labels) for head in found.halves])
        )
        for split in (e.forget, test)
    )

    def auc_of(which: Literal["before", "after"]) -> Estimate | None:
        mine, theirs = phi(e.forget, which), phi(test, which)
        if mine is None or theirs is None:
            return None
        # φ = log p/(1 − p), so that log p = log σ(φ).
        mine, theirs = logsigmoid(mine), logsigmoid(theirs)
        known = theirs[population], references[:, population]
        scores = (
            likelihood_ratios.rmia_offline(mine, forget_references, *known),
            likelihood_ratios.rmia_offline(theirs[pool], references[:, pool], *known),
        )
        return attacks.auc(*scores, clusters=clusters)

    after = auc_of("after")
    assert after is not None
    return metric(
        name, after, auc_of("before"), split=where, target=0.5,
        note=f"{REFERENCES} heads on halves of retain, {len(population)} population samples",
    )  # fmt: skip
