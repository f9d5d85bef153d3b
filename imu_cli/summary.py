"""One plain paragraph about an evaluation: what was reached, what it cost, what remains in the features."""

from .evidence import Evidence
from .record import Metric


def of(e: Evidence, found: list[Metric], head_only: bool | None) -> str:
    """One plain paragraph: what was reached, what it cost, what remains in the features."""
    by_name = {item.name: item for item in found}
    parts = [*(_said_damage(by_name) if e.kind == "sample" else []), _said_forget(e, by_name)]
    drop = by_name["test.accuracy_drop"]
    if drop.value is not None and drop.interval is not None:
        parts.append(
            f"Test accuracy{' on kept classes' if e.forgotten else ''} {_said_drop(drop.value)} "
            f"(95 % interval of the fall: {100 * drop.interval.low:.2f} to {100 * drop.interval.high:.2f}, n = {drop.n})."
        )
    parts.append(_said_remains(by_name, head_only))
    return " ".join(parts)


def _said_damage(by_name: dict[str, Metric]) -> list[str]:
    """Whether single samples were driven below what unseen ones show, by their number or by their confidence.

    Both signs are needed: an ascent that ruins the model lowers unseen samples as well, so that D_f looks like them.
    """
    signs = []
    accuracy, over = by_name["forget.accuracy"], by_name["forget.over_unlearned"]
    least = _least_of_unseen(accuracy, by_name.get("test_matched.accuracy"))
    if accuracy.value is not None and least is not None and accuracy.value < least:
        signs.append(
            f"{accuracy.value:.2%} of the forget samples are right, and as many unseen ones would not be below {least:.2%}"
        )
    if over.interval is not None and over.target_range is not None and over.interval.low > over.target_range.high:
        signs.append(f"{over.value:.1%} of the forget samples are less sure than 99 % of unseen samples")
    return [f"DAMAGE, not forgetting: {', and '.join(signs)}."] if signs else []


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


def _said_drop(drop: float) -> str:
    if drop == 0:
        return "did not change"
    return f"{'fell' if drop > 0 else 'rose'} by {100 * abs(drop):.2f} points"


def _said_forget(e: Evidence, by_name: dict[str, Metric]) -> str:
    accuracy = by_name["forget.accuracy"]
    what = {
        "class": "predicted as a forgotten class",
        "sample": "predicted as their label",
        "mislabelled": "predicted as their wrong label",
    }
    before = "" if accuracy.before is None else f" (before: {accuracy.before:.2%})"
    goal = "" if accuracy.target is None else f"; a model that never saw them would have about {accuracy.target:.2%}"
    return f"{accuracy.value:.2%} of the {accuracy.n} forget samples are {what[e.kind]}{before}{goal}."


def _said_remains(by_name: dict[str, Metric], head_only: bool | None) -> str:
    if head_only is None:
        return "Without the original it is not known what changed."
    if not head_only:
        return "Tensors outside the head changed as well."
    recovery = by_name.get("recovery.k5")
    text = "Only the head changed: the features still hold everything they held before"
    if recovery is not None and recovery.value is not None:
        text += f"; 5 forget samples per class suffice to recognise {recovery.value:.1%} of the others again"
    return text + "."
