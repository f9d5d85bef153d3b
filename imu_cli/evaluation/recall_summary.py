"""One plain paragraph about a language model: a warning where there is one, what can still be read out, at what cost.

As ``evaluation.summary``: what speaks against success comes first, and a thing is said where its interval excludes that it is not so.
"""

from collections.abc import Mapping, Sequence

from imu_cli.evaluation.recall import Evidence
from imu_cli.evaluation.summary import DAMAGE, MUCH, said_fall
from imu_cli.records.evaluation import Metric
from imu_cli.records.recall_metrics import SHOTS

LEVELS = (("retrained", "the retrained model"), ("unseen", "unseen records"))
"""What forgotten records are held against, the first that is given."""
NEAR = {"extraction_strength": 0.01, "exact_memorization": 0.05}
"""What these may lie above that level, and be called as low: a hundredth of an answer, and a word in twenty."""
ENOUGH = 0.15
"""How far above it the interval may reach, where it is still said that they are as low: a wider one knows nothing."""
UNKNOWN = 0.5
"""The AUC of records that nothing tells apart."""
BACK = 0.05
"""How far above its target an extraction strength lies that is said to come back, or to be had by other questions."""


def of(e: Evidence, found: Sequence[Metric], changed: Sequence[str] | None) -> str:
    """The paragraph; ``changed`` are the tensors that differ from the original, None where it is not known."""
    m = {item.name: item for item in found}
    damage = _lost(m)
    remembered = _remembered(e, m)
    parts = [
        f"{DAMAGE}: {', and '.join(damage)}." if damage else "",
        remembered or _level(m),
        _elsewhere(m),
        _quality(m),
        _told_apart(m),
        said_fall(
            m["test.exact_memorization_drop"], "Unseen answers' share of words that are right", "records", e.allowed
        ),
        said_fall(m["retain.exact_memorization_drop"], "Kept answers' share of words that are right", "records", None),
        _said_utility(m["model_utility"]) or _said_utility(m["model_utility.without_rouge"]),
        _said_changed(changed),
    ]
    return " ".join(part for part in parts if part)


def _held_against(m: Mapping[str, Metric]) -> tuple[str, str] | None:
    """The prefix of the gaps that judge, and what they are to, in words."""
    return next(
        ((name, whose) for name, whose in LEVELS if m[f"{name}.extraction_strength_gap"].value is not None), None
    )


def _lost(m: Mapping[str, Metric]) -> list[str]:
    made = []
    for name, whose in (("test", "unseen"), ("retain", "kept")):
        drop = m[f"{name}.exact_memorization_drop"]
        if drop.value is not None and drop.interval is not None and drop.interval.low > MUCH:
            made.append(f"{100 * drop.value:.1f} of 100 words of {whose} answers are no longer right")
    return made


def _read_out(m: Mapping[str, Metric], whose: str) -> str:
    """What can be read out, before and at the level."""
    metric = m["forget.extraction_strength"]
    assert metric.value is not None
    beside = [] if metric.before is None else [f"{metric.before:.3f} before"]
    if whose == "unseen records":
        there = m["test.extraction_strength"].value
    else:
        gap = m["retrained.extraction_strength_gap"].value
        there = None if gap is None else metric.value - gap
    beside += (
        []
        if there is None
        else [f"{there:.3f} {'of unseen records' if whose == 'unseen records' else f'under {whose}'}"]
    )
    return f"extraction strength {metric.value:.3f}{'; ' if beside else ''}{', '.join(beside)}"


def _remembered(e: Evidence, m: Mapping[str, Metric]) -> str:
    """That they are not forgotten, or that nobody can tell."""
    held = _held_against(m)
    if held is None:
        return ""
    prefix, whose = held
    gaps = {name: m[f"{prefix}.{name}_gap"] for name in NEAR}
    above = [name for name, gap in gaps.items() if gap.interval is not None and gap.interval.low > NEAR[name]]
    shown = _read_out(m, whose)
    if "extraction_strength" in above:
        end = m["forget.extraction_strength"].value or 0.0
        return (
            f"NOT forgotten to the level of {whose}: of a forgotten answer, {100 * end:.0f} % at its end can still be read out word by word "
            f"({shown})."
        )
    if above:
        return (
            f"NOT forgotten to the level of {whose}: more words of forgotten answers are still the model's first choice "
            f"({_exact(m)}), though they are not to be read out in one piece ({shown})."
        )
    gap = gaps["extraction_strength"]
    if gap.interval is not None and gap.interval.high > ENOUGH:
        return f"NOT known to be forgotten: {gap.n} records are too few to tell ({shown})."
    return ""


def _exact(m: Mapping[str, Metric]) -> str:
    metric = m["forget.exact_memorization"]
    aim = "" if metric.target is None else f"; {metric.target:.3f} there"
    return f"exact memorisation {metric.value:.3f}{aim}"


def _level(m: Mapping[str, Metric]) -> str:
    """That no more can be read out, as far as so many records show."""
    held = _held_against(m)
    if held is None:
        value = m["forget.extraction_strength"].value
        return (
            f"Of a forgotten answer, {100 * (value or 0.0):.0f} % at its end can be read out word by word (extraction strength {value:.3f}); "
            "how much that is of records that were never seen was not measured: give such with --test."
        )
    whose = held[1]
    same = "from unseen records" if whose == "unseen records" else f"from the same records under {whose}"
    return f"As far as these records show, no more can be read out of forgotten records than {same} ({_read_out(m, whose)})."


def _elsewhere(m: Mapping[str, Metric]) -> str:
    """What other ways to the answers bring."""
    ways = [
        ("paraphrased.extraction_strength", "other questions"),
        ("four_bit.extraction_strength", "rounding the weights to four bits"),
        *((f"relearned.k{k}", f"learning {k} of the records again") for k in SHOTS),
    ]
    tried = [(m[name], way) for name, way in ways if m[name].value is not None]
    if not tried:
        return ""
    back = [
        (metric, way)
        for metric, way in tried
        if metric.value is not None
        and metric.target is not None
        and metric.value > metric.target + BACK
        and (metric.interval is None or metric.interval.low > metric.target)
    ]
    if back:
        told = "; ".join(f"by {way} {metric.value:.3f} (target {metric.target:.3f})" for metric, way in back)
        return f"More of it comes back another way: {told}."
    return f"No more of it comes back by {' or '.join(way for _, way in tried)}."


def _quality(m: Mapping[str, Metric]) -> str:
    p = m["forget_quality"].value
    if p is None:
        return ""
    same = (
        "are as under the retrained model, as far as a test tells"
        if p >= 0.05
        else "are not those under the retrained model"
    )
    return f"Truth ratios of the forgotten records {same} (forget quality p = {p:.2g})."


def _told_apart(m: Mapping[str, Metric]) -> str:
    """Whether likelihood alone tells them from unseen records."""
    auc = m["mia.loss.auc"]
    if auc.value is None or auc.interval is None or auc.target is None:
        return ""
    before = "" if auc.before is None else f", {auc.before:.3f} before"
    shown = f"AUC {auc.value:.3f}{before}, 95 % interval {auc.interval.low:.3f} to {auc.interval.high:.3f}, target {auc.target:.3f}"
    beside = "beside unseen records, than under the retrained model" if auc.target != UNKNOWN else "than unseen records"
    if auc.interval.low > auc.target:
        return f"They are still likelier {beside}, which tells them apart ({shown})."
    if auc.interval.high < auc.target:
        away = ", which gives them away" if auc.interval.high < UNKNOWN else ""
        return f"They are less likely {beside}{away} ({shown})."
    return (
        f"Their likelihood does not tell them apart {'any more than there ' if auc.target != UNKNOWN else ''}({shown})."
    )


def _said_utility(metric: Metric) -> str:
    if metric.value is None:
        return ""
    before = "" if metric.before is None else f" ({metric.before:.3f} before)"
    return f"{metric.title.capitalize()} is {metric.value:.3f}{before}."


def _said_changed(changed: Sequence[str] | None) -> str:
    if changed is None:
        return "Without the original it is not known what changed."
    if not changed:
        return "Nothing differs from the original: this model was not unlearned."
    return f"{len(changed)} tensor{'s differ' if len(changed) > 1 else ' differs'} from the original."
