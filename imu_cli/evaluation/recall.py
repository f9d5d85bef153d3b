"""What is measured of a language model: what of the forgotten records can be read out, and what is left of the others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from imu_cli.evaluation.evidence import NO_ORIGINAL, NO_RETRAINED, NO_TEST, metric
from imu_cli.records.evaluation import Histogram, Metric, Series
from imu_cli.records.recall_metrics import MEASURES, MEMBERSHIP, PARTS, RECALL, SHARES, SHOTS, UTILITY_SETS
from imu_cli.statistics import recall, truth
from imu_cli.statistics.intervals import Estimate, NotMeasured, delong, two_sided
from imu_cli.statistics.recall import Recalled

BINS = 40
"""Bins of the pictures of losses, from the least to the largest that is seen."""
NAMES = {
    "loss": "loss",
    "probability": "probability",
    "exact_memorization": "exact",
    "extraction_strength": "extraction",
}
"""Measures by their names in ``Recalled``."""
PEERS = (
    ("retrained", "the retrained model's, on the same records"),
    ("reference", "the reference model's, on the same records, which it never saw"),
)
NO_GENERATE, NO_FOUR_BIT, NO_RELEARN = (
    NotMeasured("needs --generate"),
    NotMeasured("needs --four-bit"),
    NotMeasured("needs --relearn"),
)

Measured = Estimate | NotMeasured


@dataclass(frozen=True, eq=False)
class Questioned:
    """What a model says of the questions of a suite's set.

    Attributes:
        own: of their true answers.
        log_ratio: log R (n,).
        chosen: share of the true answer among those that are offered (n,).
    """

    own: Recalled
    log_ratio: Tensor
    chosen: Tensor


@dataclass(frozen=True, eq=False)
class Account:
    """What one model says of everything that it was asked.

    Attributes:
        said: by set (``forget``, ``paraphrased``, ``test``, ``retain``), of its records.
        tested: by set of the suite, of its questions.
        rouge: by set, recall of what it wrote (k,); of sets of the suite under ``suite.NAME``.
        four_bit: of the forgotten records, with its weights in four bits.
        relearned: by k, of other forgotten records after it learnt k of them again, and after it learnt k unseen ones, of other unseen ones.
    """

    said: Mapping[str, Recalled]
    tested: Mapping[str, Questioned] = field(default_factory=dict)
    rouge: Mapping[str, Tensor] = field(default_factory=dict)
    four_bit: Recalled | None = None
    relearned: Mapping[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the model says, and what those say that it is compared with.

    Attributes:
        sizes: bytes of each answer under zlib, by set (``forget``, ``test``).
        missing: why a set was not asked, by its name.
        parts: rows of the forgotten records by id or group.
        allowed: fall of a share that the run was allowed, if that is known.
    """

    after: Account
    before: Account | None = None
    retrained: Account | None = None
    reference: Account | None = None
    sizes: Mapping[str, Tensor] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    allowed: float | None = None

    def lacks(self, name: str, otherwise: NotMeasured) -> NotMeasured:
        """Why something was not measured."""
        return NotMeasured(self.missing[name]) if name in self.missing else otherwise


Measure = Callable[[Account], Measured]
NEEDS = {
    "forget": NotMeasured("needs the forgotten records"),
    "test": NO_TEST,
    "retain": NotMeasured("needs --retain"),
    "paraphrased": NotMeasured("needs paraphrased_question in the list, or a --suite with these records"),
}


def measure(e: Evidence) -> list[Metric]:
    """Every metric, in the order of the definitions; those whose data was not given say what they need."""
    made = [
        *_forgotten(e), *_gaps(e), *_membership(e), *_quality(e), *_four_bit(e), *_relearned(e), *_others(e), *_utility(e),
    ]  # fmt: skip
    by_name = {item.name: item for item in made}
    return [by_name[name] for name in RECALL]


# --- sets of records


def _values(account: Account, side: str, name: str) -> Tensor | None:
    said = account.said.get(side)
    if said is None:
        return None
    found: Tensor = getattr(said, NAMES[name])
    return found


def _mean(values: Tensor, name: str, seed: int) -> Estimate:
    return recall.mean_loss(values, seed) if name == "loss" else recall.mean(values, seed)


def _of(e: Evidence, side: str, name: str) -> Measure:
    def found(account: Account) -> Measured:
        values = _values(account, side, name)
        return e.lacks(side, NEEDS[side]) if values is None else _mean(values, name, e.seed)

    return found


def _rouge(e: Evidence, side: str) -> Measure:
    def found(account: Account) -> Measured:
        values = account.rouge.get(side)
        if values is not None:
            return recall.mean(values, e.seed)
        lacks = side.removeprefix("suite.")
        there = lacks in (account.tested if side.startswith("suite.") else account.said)
        return e.lacks("generate", NO_GENERATE) if there else e.lacks(lacks, NEEDS.get(lacks, NO_SUITE))

    return found


NO_SUITE = NotMeasured("needs --suite tofu:DIR")


def _aim(e: Evidence, found: Measure, unseen: Measured | None) -> dict[str, object]:
    """Where forgotten records should be: the retrained model's value, else the reference model's, else unseen records'."""
    for name, whose in PEERS:
        account = e.retrained if name == "retrained" else e.reference
        value = None if account is None else found(account)
        if isinstance(value, Estimate):
            return _target(value, whose)
    return _target(unseen, "unseen records', with this model") if isinstance(unseen, Estimate) else {}


def _target(found: Estimate, whose: str) -> dict[str, object]:
    spread = "" if found.low is None else f" (95 % interval {found.low:.4g} to {found.high:.4g})"
    return {"target": found.value, "target_note": f"{whose}{spread}"}


def _told(e: Evidence, name: str, of: Measure, split: str, **more: object) -> Metric:
    before = None if e.before is None else of(e.before)
    return metric(name, of(e.after), before, split=split, **more)  # type: ignore[arg-type]


def _forgotten(e: Evidence) -> list[Metric]:
    made = []
    for side, split in (("forget", "forgotten records"), ("paraphrased", "forgotten records, by other questions")):
        for name in (*MEASURES, "rouge_l"):
            of = _rouge(e, side) if name == "rouge_l" else _of(e, side, name)
            unseen = _rouge(e, "test") if name == "rouge_l" else _of(e, "test", name)
            made.append(_told(e, f"{side}.{name}", of, split, **_aim(e, of, unseen(e.after))))
    ratio = _ratio(e)
    made.append(_told(e, "forget.truth_ratio", ratio, "forgotten records", **_aim(e, ratio, None)))
    return made


def _ratio(e: Evidence) -> Measure:
    def found(account: Account) -> Measured:
        tested = account.tested.get("forget")
        if tested is None:
            return e.lacks("suite.forget", NotMeasured("needs a --suite with these records"))
        return recall.mean(truth.either_way(tested.log_ratio), e.seed)

    return found


def _gaps(e: Evidence) -> list[Metric]:
    made = []
    for name in SHARES:
        ours, retrained = _values(e.after, "forget", name), e.retrained
        old = None if e.before is None else _values(e.before, "forget", name)
        theirs = None if retrained is None else _values(retrained, "forget", name)
        unseen, unseen_before = (
            _values(e.after, "test", name),
            None if e.before is None else _values(e.before, "test", name),
        )
        assert ours is not None
        made += [
            metric(
                f"retrained.{name}_gap",
                NO_RETRAINED if theirs is None else recall.fall(ours, theirs, e.seed),
                None if theirs is None or old is None else recall.fall(old, theirs, e.seed),
                split="forgotten records", target=0.0, target_note="the same records are recalled alike under both",
            ),
            metric(
                f"unseen.{name}_gap",
                e.lacks("test", NO_TEST) if unseen is None else recall.gap(ours, unseen, e.seed),
                None if unseen_before is None or old is None else recall.gap(old, unseen_before, e.seed),
                split="forgotten against unseen records", target=0.0,
                target_note="as unseen records; some are easier than others, which --retrained or --reference-model tells",
            ),
        ]  # fmt: skip
    return made


# --- who was among the training data


def _scores(e: Evidence, account: Account, side: str) -> Mapping[str, Tensor] | None:
    said = account.said.get(side)
    if said is None or side not in e.sizes:
        return None
    reference = None if e.reference is None else e.reference.said[side].loss
    return recall.membership(said, e.sizes[side], reference)


def _auc(e: Evidence, name: str) -> Measure:
    def found(account: Account) -> Measured:
        ours, theirs = _scores(e, account, "forget"), _scores(e, account, "test")
        if ours is None or theirs is None:
            return e.lacks("test", NO_TEST)
        if name not in ours:
            return NotMeasured("needs --reference-model")
        return delong(ours[name], theirs[name])

    return found


def _membership(e: Evidence) -> list[Metric]:
    made, split = [], "forgotten against unseen records"
    for name in MEMBERSHIP:
        of = _auc(e, name)
        aim: dict[str, object] = {
            "target": 0.5,
            "target_note": "0.5: not told apart; some records are easier than others",
        }
        if e.retrained is not None and isinstance(there := of(e.retrained), Estimate):
            aim = _target(there, "the retrained model's, on the same records")

        def both(account: Account, of: Measure = of) -> Measured:
            found = of(account)
            return two_sided(found) if isinstance(found, Estimate) else found

        made += [_told(e, f"mia.{name}.auc", of, split, **aim), _told(e, f"mia.{name}.auc_two_sided", both, split)]
    return made


# --- truth


def _quality(e: Evidence) -> list[Metric]:
    split = "forgotten records"
    there = None if e.retrained is None else e.retrained.tested.get("forget")

    def compared(account: Account | None) -> tuple[Measured, Measured]:
        if e.retrained is None:
            return NO_RETRAINED, NO_RETRAINED
        ours = None if account is None else account.tested.get("forget")
        if ours is None or there is None:
            lacks = e.lacks("suite.forget", NotMeasured("needs a --suite with these records"))
            return lacks, lacks
        p, distance = truth.same_distribution(ours.log_ratio, there.log_ratio)
        n, method = (
            len(ours.log_ratio),
            f"two-sample Kolmogorov-Smirnov, {len(ours.log_ratio)} against {len(there.log_ratio)}",
        )
        return Estimate(p, None, None, n, method), Estimate(distance, None, None, n, method)

    after, before = compared(e.after), compared(e.before) if e.before is not None else (None, None)
    return [
        metric("forget_quality", after[0], before[0], split=split, note="0.05 or more is usually asked for"),
        metric("forget_quality.distance", after[1], before[1], split=split),
    ]


def _part(e: Evidence, account: Account, side: str, part: str) -> Tensor | NotMeasured:
    tested = account.tested.get(side)
    if tested is None:
        return e.lacks(f"suite.{side}", NO_SUITE)
    if part == "rouge_l":
        written = account.rouge.get(f"suite.{side}")
        return e.lacks("generate", NO_GENERATE) if written is None else written
    if part == "truth_ratio":
        return truth.truthful(tested.log_ratio)
    return tested.own.probability if side == "retain" else tested.chosen


def _utility(e: Evidence) -> list[Metric]:
    made = []

    def one(side: str, part: str) -> Measure:
        def found(account: Account) -> Measured:
            values = _part(e, account, side, part)
            return values if isinstance(values, NotMeasured) else recall.mean(values, e.seed)

        return found

    def mean(parts: tuple[str, ...]) -> Measure:
        def found(account: Account) -> Measured:
            numbers = {side: [_part(e, account, side, part) for part in parts] for side in UTILITY_SETS}
            lacks = [item for values in numbers.values() for item in values if isinstance(item, NotMeasured)]
            if lacks:
                return lacks[0]
            return truth.utility(numbers, e.seed)  # type: ignore[arg-type]

        return found

    split = ", ".join(UTILITY_SETS.values())
    made.append(_told(e, "model_utility", mean(PARTS), split))
    made.append(_told(e, "model_utility.without_rouge", mean(("probability", "truth_ratio")), split))
    for side, whose in UTILITY_SETS.items():
        made += [_told(e, f"utility.{side}.{part}", one(side, part), whose) for part in PARTS]
    return made


# --- what remains


def _four_bit(e: Evidence) -> list[Metric]:
    made = []
    for name in SHARES:

        def found(account: Account, name: str = name) -> Measured:
            if account.four_bit is None:
                return e.lacks("four_bit", NO_FOUR_BIT)
            return _mean(getattr(account.four_bit, NAMES[name]), name, e.seed)

        plain = _of(e, "test", name)(e.after)
        made.append(_told(e, f"four_bit.{name}", found, "forgotten records, four bits", **_aim(e, found, plain)))
    return made


def _relearned(e: Evidence) -> list[Metric]:
    made = []
    for k in SHOTS:

        def found(account: Account, k: int = k, side: int = 0) -> Measured:
            tried = account.relearned.get(k)
            values = None if tried is None else tried[side]
            if values is None:
                return e.lacks(f"relearned.k{k}", e.lacks("relearned", NO_RELEARN))
            return recall.mean(values, e.seed)

        def unseen(account: Account, k: int = k) -> Measured:
            return found(account, k, 1)

        there = None if e.retrained is None else found(e.retrained)
        aim: dict[str, object] = {}
        if isinstance(there, Estimate):
            aim = _target(there, "the retrained model's, after the same")
        elif isinstance(plain := unseen(e.after), Estimate):
            aim = _target(plain, "unseen records', after the same fine-tuning on such")
        made.append(_told(e, f"relearned.k{k}", found, "other forgotten records", **aim))
    return made


# --- what was to stay


def _others(e: Evidence) -> list[Metric]:
    made = []
    for side, split in (("test", "unseen records (--test)"), ("retain", "kept records (--retain)")):
        made += [_told(e, f"{side}.{name}", _of(e, side, name), split) for name in MEASURES]
        made.append(_told(e, f"{side}.rouge_l", _rouge(e, side), split))
        made += [metric(f"{side}.{name}_drop", _drop(e, side, name), split=split) for name in SHARES]
    return [*made, metric("test.loss_rise", _rise(e), split="unseen records (--test)")]


def _drop(e: Evidence, side: str, name: str) -> Measured:
    new = _values(e.after, side, name)
    if new is None:
        return e.lacks(side, NEEDS[side])
    old = None if e.before is None else _values(e.before, side, name)
    return NO_ORIGINAL if old is None else recall.fall(old, new, e.seed)


def _rise(e: Evidence) -> Measured:
    new = _values(e.after, "test", "loss")
    if new is None:
        return e.lacks("test", NO_TEST)
    old = None if e.before is None else _values(e.before, "test", "loss")
    return NO_ORIGINAL if old is None else recall.mean_loss(new - old, e.seed)


# --- pictures and parts


def losses(e: Evidence) -> Histogram | None:
    """Counts of the records' losses: forgotten ones before and after, unseen ones after."""
    wanted = [("forget", "before", e.before), ("forget", "after", e.after), ("test", "after", e.after)]
    found = {
        (side, when): account.said[side].loss
        for side, when, account in wanted
        if account is not None and side in account.said
    }
    low, high = (float(end) for end in torch.cat(list(found.values())).aminmax())
    edges = torch.linspace(low, max(high, low + 1e-6) * (1 + 1e-12) + 1e-12, BINS + 1, dtype=torch.float64)
    series = []
    for (side, when), values in found.items():
        at = (torch.searchsorted(edges, values.contiguous(), right=True) - 1).clamp(0, BINS - 1)
        counts = torch.bincount(at, minlength=BINS).tolist()
        series.append(Series(split=side, when=when, counts=counts))  # type: ignore[arg-type]
    return Histogram(edges=edges.tolist(), series=series)


@dataclass(frozen=True)
class Part:
    """Results on the forgotten records of one id or group."""

    name: str
    n: int
    before: float | None
    after: float
    probability: float
    auc: Estimate | None


def per_part(e: Evidence) -> list[Part]:
    """The parts that were asked for, in their order."""
    made = []
    for name, rows in e.parts.items():
        said, old = e.after.said["forget"].only(rows), None if e.before is None else e.before.said["forget"].only(rows)
        unseen = e.after.said.get("test")
        auc = None if unseen is None else delong(-said.loss, -unseen.loss)
        before = None if old is None else float(old.extraction.mean())
        made.append(Part(name, len(rows), before, float(said.extraction.mean()), float(said.probability.mean()), auc))
    return made
