"""One plain paragraph about an evaluation: a warning where there is one, what was reached, at what cost, what remains."""

from imu_cli.evaluation.evidence import Evidence
from imu_cli.records.evaluation import Metric
from imu_cli.records.parts import WHAT
from imu_cli.unlearning.targets import CLASS_TARGET

DAMAGE = "DAMAGE, not forgetting"
MUCH = 0.05
"""A fall of accuracy on unseen samples that is called damage where its whole interval lies beyond it, as a fraction."""


def of(e: Evidence, found: list[Metric], head_only: bool | None, *, unchanged: bool = False) -> str:
    """The paragraph; ``unchanged`` says that nothing at all differs from the original."""
    by_name = {item.name: item for item in found}
    warning = _warning(e, by_name)
    parts = [
        warning,
        _said_forget(e, by_name["forget.accuracy"]),
        # That a ruined model treats all samples alike is nothing to be glad of.
        "" if warning.startswith(DAMAGE) else _said_membership(e, by_name.get("mia.auc")),
        _said_drop(e, by_name["test.accuracy_drop"]),
        "Nothing differs from the original: this model was not unlearned." if unchanged else
        _said_remains(e, by_name, head_only),
    ]  # fmt: skip
    return " ".join(part for part in parts if part)


def _warning(e: Evidence, by_name: dict[str, Metric]) -> str:
    """What must not be taken for success: samples or a model driven below what is unseen, or nothing forgotten."""
    accuracy = by_name["forget.accuracy"]
    damage = [*(_damaged(by_name) if e.kind == "sample" else []), *_lost(e, by_name["test.accuracy_drop"])]
    if damage:
        return f"{DAMAGE}: {', and '.join(damage)}."
    most = CLASS_TARGET if e.kind == "class" else None if accuracy.target_range is None else accuracy.target_range.high
    if most is None or accuracy.value is None or accuracy.value <= most:
        return ""
    if e.kind == "class":
        return "NOT forgotten: forget samples are still predicted as a forgotten class."
    return f"NOT forgotten to the level of unseen samples: more {WHAT[e.kind]} than as many unseen ones would be."


def _damaged(by_name: dict[str, Metric]) -> list[str]:
    """Whether single samples were driven below what unseen ones show, by their number or by their confidence.

    Both signs are needed: an ascent that ruins the model lowers unseen samples as well, so that D_f looks like them.
    """
    signs = []
    accuracy, over, auc = (by_name.get(name) for name in ("forget.accuracy", "forget.over_unlearned", "mia.auc"))
    assert accuracy is not None
    least = _least_of_unseen(accuracy, by_name.get("test_matched.accuracy"))
    if accuracy.value is not None and least is not None and accuracy.value < least:
        signs.append(
            f"{accuracy.value:.2%} of the forget samples are right, and as many unseen ones would not be below {least:.2%}"
        )
    spread = None if over is None else over.target_range
    if over is not None and over.interval is not None and spread is not None and over.interval.low > spread.high:
        signs.append(f"{over.value:.1%} of the forget samples are less sure than 99 % of unseen samples")
    if signs and auc is not None and auc.value is not None and auc.interval is not None and auc.interval.high < 0.5:
        signs.append(f"low confidence gives them away (AUC {auc.value:.3f}, two-sided {1 - auc.value:.3f})")
    return signs


def _least_of_unseen(accuracy: Metric, matched: Metric | None) -> float | None:
    """The share of D_f that unseen samples would still reach by chance: two errors stand between them.

    The target was estimated on the test samples, which has its interval, and n samples at that rate spread. Both are
    taken off in full, so that a run that met the target on other held-out data is not called damage.
    """
    if accuracy.target is None or accuracy.target_range is None:
        return None
    known = None if matched is None else (matched.before_interval or matched.interval)
    estimated = 0.0 if known is None else max(0.0, accuracy.target - known.low)
    return accuracy.target_range.low - estimated


def _lost(e: Evidence, drop: Metric) -> list[str]:
    """A model that has lost much on unseen samples is damaged, whatever became of the forget samples."""
    if drop.value is None or drop.interval is None or drop.interval.low <= MUCH:
        return []
    return [f"{100 * drop.value:.1f} points of test accuracy{' on kept classes' if e.forgotten else ''} are lost"]


def _said_forget(e: Evidence, accuracy: Metric) -> str:
    before = "" if accuracy.before is None else f" (before: {accuracy.before:.2%})"
    goal = "" if accuracy.target is None else f"; a model that never saw them would have about {accuracy.target:.2%}"
    what = WHAT[e.kind].removeprefix("forget samples ")
    return f"{accuracy.value:.2%} of the {accuracy.n} forget samples are {what}{before}{goal}."


def _said_membership(e: Evidence, auc: Metric | None) -> str:
    """Whether confidence alone still tells single samples from unseen ones; of whole classes the features say more."""
    if e.kind == "class" or auc is None or auc.value is None or auc.interval is None:
        return ""
    low, high = auc.interval.low, auc.interval.high
    shown = f"(membership AUC {auc.value:.3f}, 95 % interval {low:.3f} to {high:.3f})"
    if low > 0.5:
        return f"Their confidence still tells them from unseen samples {shown}."
    if high < 0.5:
        return f"They are less sure than unseen samples {shown}."
    return f"Confidence alone does not tell them from unseen samples {shown}."


def _said_drop(e: Evidence, drop: Metric) -> str:
    if drop.value is None or drop.interval is None:
        return ""
    moved = f"{'fell' if drop.value > 0 else 'rose'} by {100 * abs(drop.value):.2f} points"
    return (
        f"Test accuracy{' on kept classes' if e.forgotten else ''} {moved if drop.value else 'did not change'} (95 % interval "
        f"of the fall: {100 * drop.interval.low:.2f} to {100 * drop.interval.high:.2f}, n = {drop.n})."
    )


def _said_remains(e: Evidence, by_name: dict[str, Metric], head_only: bool | None) -> str:
    if head_only is None:
        return "Without the original it is not known what changed."
    if not head_only:
        return "Tensors outside the head changed as well."
    text = "Only the head changed: the features still hold everything they held before"
    recovery, probe = by_name.get("recovery.k5"), by_name.get("probe.accuracy")
    if e.kind == "class" and recovery is not None and recovery.value is not None:
        held = ", the class with it" if recovery.value > 0.5 else ""
        text += f"{held}; 5 forget samples per class suffice to recognise {recovery.value:.1%} of the others again"
        if probe is not None and probe.value is not None:
            text += f", and a fresh linear classifier recognises {probe.value:.1%} of unseen samples of the class"
    return text + "."
