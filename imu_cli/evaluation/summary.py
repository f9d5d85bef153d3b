"""One plain paragraph about an evaluation: a warning where there is one, what was reached, at what cost, what remains.

Whoever reads nothing else has to draw the right conclusion, so what speaks against success comes first. A thing is said
where its interval excludes that it is not so; where an interval holds both, it is said that nothing is known or nothing.
"""

from imu_cli.evaluation.evidence import Evidence
from imu_cli.records.evaluation import Metric
from imu_cli.records.parts import WHAT
from imu_cli.statistics import chance
from imu_cli.statistics.counts import holds
from imu_cli.unlearning.targets import CLASS_TARGET

DAMAGE = "DAMAGE, not forgetting"
MUCH, MUCH_OF_A_CLASS = 0.05, 0.1
"""Falls of accuracy on unseen samples, of all and of one class, that are called damage where their whole interval lies
beyond; as fractions."""
GUARD = 0.01
"""The fall that a run may cost where nothing says what it was allowed: the default of ``--max-drop``."""


def of(e: Evidence, found: list[Metric], head_only: bool | None, *, unchanged: bool = False) -> str:
    """The paragraph; ``unchanged`` says that nothing at all differs from the original."""
    by_name = {item.name: item for item in found}
    lost, ruined = _lost(e, by_name["test.accuracy_drop"]), _ruined(e, by_name.get("test.worst_class_drop"))
    damage = [*(_driven(e, by_name) if e.kind == "sample" else []), *(lost or ruined)]
    parts = [
        _no_evidence(e, by_name, "test") or _no_evidence(e, by_name, "retain"),
        f"{DAMAGE}: {', and '.join(damage)}." if damage else "",
        _not_forgotten(e, by_name, damaged=bool(damage)),
        _said_forget(e, by_name["forget.accuracy"]),
        "" if unchanged else _said_way(e, by_name, head_only),
        _said_membership(e, by_name.get("mia.auc"), damaged=bool(damage)),
        _said_drop(e, by_name["test.accuracy_drop"]),
        _said_class(e, by_name.get("test.worst_class_drop"), damaged=bool(lost or ruined)),
        "Nothing differs from the original: this model was not unlearned." if unchanged else
        _said_remains(e, by_name, head_only),
    ]  # fmt: skip
    return " ".join(part for part in parts if part)


# --- What must not be taken for success


def _no_evidence(e: Evidence, by_name: dict[str, Metric], split: str) -> str:
    """Where the original is no better than guessing, nothing that is measured against it means anything."""
    accuracy = by_name.get(f"{split}.accuracy")
    if accuracy is None or accuracy.value is None or accuracy.n is None:
        return ""
    value, classes = accuracy.value if accuracy.before is None else accuracy.before, e.forget.after.shape[1]
    if not chance.no_better(round(value * accuracy.n), accuracy.n, classes):
        return ""
    whose = "this model" if accuracy.before is None else "the original"
    kept = " of kept classes" if e.forgotten else ""
    return (
        f"NOT evidence of anything: {whose} is right on {value:.2%} of {accuracy.n} {split} samples{kept}, no better than guessing, "
        "so that it sees them wrongly (preprocessing, or the order of the labels)."
    )


def _driven(e: Evidence, by_name: dict[str, Metric]) -> list[str]:
    """Whether single samples were driven below what unseen ones show, by their number or by their confidence.

    Both signs are needed: an ascent that ruins the model lowers unseen samples as well, so that D_f looks like them.
    """
    signs = []
    accuracy, over, auc = (by_name.get(name) for name in ("forget.accuracy", "forget.over_unlearned", "mia.auc"))
    assert accuracy is not None
    least = _least_of_unseen(e, accuracy, by_name.get("test_matched.accuracy"))
    if accuracy.value is not None and least is not None and not holds(accuracy.value, ">=", least, accuracy.n):
        signs.append(
            f"{accuracy.value:.2%} of the forget samples are right, and as many unseen ones would not be below {least:.2%}"
        )
    spread = None if over is None else over.target_range
    if over is not None and over.interval is not None and spread is not None and over.interval.low > spread.high:
        signs.append(f"{over.value:.1%} of the forget samples are less sure than 99 % of unseen samples")
    if signs and auc is not None and auc.value is not None and auc.interval is not None and auc.interval.high < 0.5:
        signs.append(f"low confidence gives them away (AUC {auc.value:.3f}, two-sided {1 - auc.value:.3f})")
    return signs


def _least_of_unseen(e: Evidence, accuracy: Metric, matched: Metric | None) -> float | None:
    """The share of D_f that unseen samples would still reach by chance: two errors stand between them.

    The target was estimated on the test samples, which has its interval, and n samples at that rate spread. Both are
    taken off in full, so that a run that met the target on other held-out data is not called damage.
    """
    if accuracy.target is None or accuracy.target_range is None:
        return None
    known = None
    if matched is not None:
        known = (None if e.target_follows else matched.before_interval) or matched.interval
    estimated = 0.0 if known is None else max(0.0, accuracy.target - known.low)
    return accuracy.target_range.low - estimated


def _lost(e: Evidence, drop: Metric) -> list[str]:
    """A model that has lost much on unseen samples is damaged, whatever became of the forget samples."""
    if drop.value is None or drop.interval is None or drop.interval.low <= MUCH:
        return []
    allowed = ""
    if e.max_drop is not None and holds(drop.value, "<=", e.max_drop, drop.n):
        allowed = f" (--max-drop {e.max_drop:g} allowed that)"
    return [
        f"{100 * drop.value:.1f} points of test accuracy{' on kept classes' if e.forgotten else ''} are lost{allowed}"
    ]


def _ruined(e: Evidence, worst: Metric | None) -> list[str]:
    """A class that has lost much, which an average over many classes hides."""
    if worst is None or worst.value is None or worst.interval is None:
        return []
    most = MUCH_OF_A_CLASS if e.max_class_drop is None else e.max_class_drop
    if worst.interval.low <= most:
        return []
    guard = "" if e.max_class_drop is None else f", more than --max-class-drop {e.max_class_drop:g} allows"
    return [
        f"a single class is ruined, {worst.note or 'the worst'}: {100 * worst.value:.1f} points of its accuracy are lost{guard} (95 % "
        f"interval of the largest fall of a class: {100 * worst.interval.low:.1f} to {100 * worst.interval.high:.1f})"
    ]


def _not_forgotten(e: Evidence, by_name: dict[str, Metric], *, damaged: bool) -> str:
    """What is remembered although it was to be forgotten: twins that stay, and more samples than the target has."""
    reasons = []
    if e.twins_left:
        share = f"{e.twins_left} of the {len(e.forget.labels)} forget samples"
        reasons.append(
            f"{share} have a twin, the same bytes, among the training data that stay, and are remembered as long as it is"
        )
    accuracy = by_name["forget.accuracy"]
    most = CLASS_TARGET if e.kind == "class" else None if accuracy.target_range is None else accuracy.target_range.high
    over = most is not None and accuracy.value is not None and not holds(accuracy.value, "<=", most, accuracy.n)
    if over and not damaged:
        what = WHAT[e.kind]
        reasons.append(
            "forget samples are still predicted as a forgotten class"
            if e.kind == "class"
            else f"more {what} than as many unseen ones would be"
        )
    if not reasons:
        return ""
    level = (
        "NOT forgotten to the level of unseen samples" if e.kind != "class" and not e.twins_left else "NOT forgotten"
    )
    return f"{level}: {', and '.join(reasons)}."


# --- What was reached, at what cost


def _said_forget(e: Evidence, accuracy: Metric) -> str:
    before = "" if accuracy.before is None else f" (before: {accuracy.before:.2%})"
    goal = ""
    if accuracy.target is not None:
        whose = e.kind != "class" and e.target_follows
        goal = f"; {'unseen samples like them have' if whose else 'a model that never saw them would have'} about {accuracy.target:.2%}"
        goal += " with this model" if whose else ""
    what = WHAT[e.kind].removeprefix("forget samples ")
    return f"{accuracy.value:.2%} of the {accuracy.n} forget samples are {what}{before}{goal}."


def _said_way(e: Evidence, by_name: dict[str, Metric], head_only: bool | None) -> str:
    """How far the features went towards a retrained model's, by the probe; nothing where it is not known.

    It is not known without both models, or where the original's features may hold no more than the retrained model's.
    """
    probe = by_name.get("probe.accuracy")
    if head_only is not False or probe is None or not _apart(probe):
        return ""
    assert probe.value is not None
    assert probe.before is not None
    assert probe.target is not None
    way = (probe.before - probe.value) / (probe.before - probe.target)
    if way <= 0:
        how = "The features did not come nearer to the retrained model's"
    elif way > 1:
        how = "The features went past the retrained model's"
    else:
        how = f"The features went {way:.0%} of the way to the retrained model's"
    does = (
        f"recognises {probe.value:.1%} of unseen samples of the class"
        if e.kind == "class"
        else f"that never saw the forget samples gives {probe.value:.1%} of them their label"
    )
    return (
        f"{how}: a fresh linear classifier {does} (original {probe.before:.1%}, retrained {probe.target:.1%})"
        f"{_said_index(by_name)}."
    )


def _apart(probe: Metric) -> bool:
    """Whether the original surely lies above the retrained model: its value, or all of its interval, beyond the other's."""
    theirs = probe.target_range
    if probe.value is None or probe.before is None or theirs is None:
        return False
    return (probe.before if probe.before_interval is None else probe.before_interval.low) > theirs.high


def _said_index(by_name: dict[str, Metric]) -> str:
    index = by_name.get("retrained.idi")
    if index is None or index.value is None or index.interval is None:
        return ""
    return (
        f"; information difference index {index.value:.2f} (95 % interval {index.interval.low:.2f} to {index.interval.high:.2f}; "
        "0: as after retraining, 1: nothing went)"
    )


def _said_membership(e: Evidence, auc: Metric | None, *, damaged: bool) -> str:
    """Whether confidence alone still tells the forget samples from unseen ones.

    Of whole classes it is said where it does: a class that the head no longer names keeps its members recognisable. That a
    ruined model treats all samples alike is nothing to be glad of.
    """
    if auc is None or auc.value is None or auc.interval is None:
        return ""
    low, high = auc.interval.low, auc.interval.high
    shown = f"(membership AUC {auc.value:.3f}, 95 % interval {low:.3f} to {high:.3f})"
    if e.kind == "class":
        if low <= 0.5 <= high:
            return ""
        how = "confidence still tells" if low > 0.5 else "being less sure tells"
        return (
            f"Its members stay recognisable: {how} samples that were trained on from unseen ones of the class {shown}."
        )
    if low > 0.5:
        return f"Their confidence still tells them from unseen samples {shown}."
    if high < 0.5:
        return f"They are less sure than unseen samples {shown}."
    if damaged:
        return ""
    return f"As far as {auc.n} samples show, confidence alone does not tell them from unseen ones {shown}."


def _said_drop(e: Evidence, drop: Metric) -> str:
    if drop.value is None or drop.interval is None:
        return ""
    moved = f"{'fell' if drop.value > 0 else 'rose'} by {100 * abs(drop.value):.2f} points"
    beyond = ""
    if e.max_drop is not None and drop.interval.low > e.max_drop:
        beyond = f", more than --max-drop {e.max_drop:g} allows"
    return (
        f"Test accuracy{' on kept classes' if e.forgotten else ''} {moved if drop.value else 'did not change'}{beyond} (95 % interval "
        f"of the fall: {100 * drop.interval.low:.2f} to {100 * drop.interval.high:.2f}, n = {drop.n})."
    )


def _said_class(e: Evidence, worst: Metric | None, *, damaged: bool) -> str:
    """The class that paid most, where it surely paid more than the whole was allowed to."""
    guard = GUARD if e.max_drop is None else e.max_drop
    if damaged or worst is None or worst.value is None or worst.interval is None or worst.interval.low <= guard:
        return ""
    return (
        f"One class pays more than the average shows: {worst.note or 'the worst'} lost {100 * worst.value:.1f} points (95 % interval "
        f"of the largest fall of a class: {100 * worst.interval.low:.1f} to {100 * worst.interval.high:.1f}, n = {worst.n})."
    )


def _said_remains(e: Evidence, by_name: dict[str, Metric], head_only: bool | None) -> str:
    if head_only is None:
        return "Without the original it is not known what changed."
    if not head_only:
        return "Tensors outside the head changed as well."
    text = "Only the head changed: the features still hold everything they held before"
    recovery, probe = by_name.get("recovery.k5"), by_name.get("probe.accuracy")
    if e.kind == "class" and recovery is not None and recovery.value is not None:
        enough = recovery.value > 0.5
        does = "suffice to recognise" if enough else "do not suffice to bring it back: they recognise"
        text += f"{', the class with it' if enough else ''}; 5 forget samples per class {does} {recovery.value:.1%} of the others again"
        if probe is not None and probe.value is not None:
            joined = "and" if enough or probe.value <= 0.5 else "but"
            text += f", {joined} a fresh linear classifier recognises {probe.value:.1%} of unseen samples of the class"
            text += "" if probe.target is None else f" (the retrained model's features: {probe.target:.1%})"
    index = by_name.get("retrained.idi")
    if index is not None and index.value is not None:
        text += "; the information difference index is 1 by construction"
    return text + "."


def said_fall(drop: Metric, what: str, samples: str, allowed: float | None) -> str:
    """A sentence on the fall of ``what``, a share, on so many ``samples``, and on whether more was allowed; empty where it is not known."""
    if drop.value is None or drop.interval is None:
        return ""
    moved = (
        f"{'fell' if drop.value > 0 else 'rose'} by {100 * abs(drop.value):.2f} points"
        if drop.value
        else "did not change"
    )
    beyond = f", more than {allowed:g} that was allowed" if allowed is not None and drop.interval.low > allowed else ""
    return (
        f"{what} {moved}{beyond} (95 % interval of the fall: {100 * drop.interval.low:.2f} to {100 * drop.interval.high:.2f}, "
        f"{drop.n} {samples})."
    )
