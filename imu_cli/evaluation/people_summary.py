"""One plain paragraph about an embedding model: a warning where there is one, whom it still tells apart, at what cost.

As ``evaluation.summary``: what speaks against success comes first, and a thing is said where its interval excludes that it is not so.
"""

from collections.abc import Mapping, Sequence

from imu_cli.evaluation.scene import Evidence
from imu_cli.evaluation.summary import DAMAGE, MUCH, said_fall
from imu_cli.records.evaluation import Metric
from imu_cli.records.parts import Interval

LEVELS = (("retrained", "the retrained model"), ("reference", "the reference model"))
"""What forgotten people are held against, the first that is given."""
ENOUGH = 0.2
"""How far above that the AUC may yet be, where it is still said that they are alike: a wider interval knows nothing."""


def of(e: Evidence, found: Sequence[Metric], changed: Sequence[str] | None) -> str:
    """The paragraph; ``changed`` are the tensors that differ from the original, None where it is not known."""
    m = {item.name: item for item in found}
    damage = [*_apart(m), *_lost(m)]
    remembered = "" if damage else _remembered(e, m)
    parts = [
        f"{DAMAGE}: {', and '.join(damage)}." if damage else "",
        remembered,
        "" if damage or remembered else _alike(m),
        _said_found(m),
        said_fall(m["test.map_drop"], "Unseen people's mAP", "queries", e.allowed),
        said_fall(m["retain.map_drop"], "Kept people's mAP", "queries", None),
        _said_changed(changed),
    ]
    return " ".join(part for part in parts if part)


def _held_against(m: Mapping[str, Metric]) -> tuple[str, Interval, float] | None:
    """What the AUC is held against in words, the interval of the difference from it, and the AUC there."""
    for name, whose in LEVELS:
        gap, there = m[f"{name}.auc_gap"], m[f"{name}.people.auc"].value
        if gap.interval is not None and there is not None:
            return whose, gap.interval, there
    auc = m["people.auc"]
    if auc.interval is None or auc.value is None:
        return None
    shifted = Interval(low=auc.interval.low - 0.5, high=auc.interval.high - 0.5, method=auc.interval.method)
    return "unseen people", shifted, 0.5


def _shown(auc: Metric) -> str:
    assert auc.value is not None
    assert auc.interval is not None
    before = "" if auc.before is None else f", {auc.before:.3f} before"
    return f"AUC {auc.value:.3f}{before}, 95 % interval {auc.interval.low:.3f} to {auc.interval.high:.3f}"


def _there(whose: str, there: float) -> str:
    return "" if whose == "unseen people" else f", {there:.3f} under {whose}"


def _apart(m: Mapping[str, Metric]) -> list[str]:
    """Forgotten people who are less alike than people whom the model never saw are conspicuous."""
    held = _held_against(m)
    if held is None or held[1].high >= 0:
        return []
    whose, _, there = held
    under = "those of unseen people" if whose == "unseen people" else f"they are under {whose}"
    return [
        f"two images of a forgotten person are less alike than {under}, which gives the person away ({_shown(m['people.auc'])}"
        f"{_there(whose, there)})"
    ]


def _lost(m: Mapping[str, Metric]) -> list[str]:
    found = []
    for name, whose in (("test.map_drop", "unseen"), ("retain.map_drop", "kept")):
        drop = m[name]
        if drop.value is not None and drop.interval is not None and drop.interval.low > MUCH:
            found.append(f"{100 * drop.value:.1f} points of {whose} people's mAP are lost")
    return found


def _remembered(e: Evidence, m: Mapping[str, Metric]) -> str:
    """That they are not forgotten, or that nobody can tell."""
    auc, held = m["people.auc"], _held_against(m)
    stays = (
        f"{e.left} images of these people stay in the training data that were given, and they are remembered as long as those do"
        if e.left
        else ""
    )
    if held is None:
        return f"NOT forgotten: {stays}." if stays else ""
    whose, gap, there = held
    if gap.low > 0:
        told = f"two images of a forgotten person are more alike than {_level(whose)} ({_shown(auc)}{_there(whose, there)})"
        return f"NOT forgotten to the level of {whose}: {', and '.join(filter(None, [told, stays]))}."
    if stays:
        return f"NOT forgotten: {stays}."
    fell = m["people.auc_drop"]
    if fell.interval is not None and fell.interval.low <= 0:
        return (
            f"NOT known to be forgotten: {_people(e)} are too few to tell the model from its original, or there is no difference "
            f"({_shown(auc)}{_there(whose, there)})."
        )
    if gap.high > ENOUGH:
        return f"NOT known to be forgotten: {_people(e)} are too few to tell ({_shown(auc)}{_there(whose, there)})."
    return ""


def _level(whose: str) -> str:
    return "two of an unseen one" if whose == "unseen people" else f"under {whose}"


def _people(e: Evidence) -> str:
    pairs = e.scene.pairs["forget"]
    count = getattr(pairs, "count", 0)
    return f"{count} people with images on two cameras" if count != 1 else "one person"


def _alike(m: Mapping[str, Metric]) -> str:
    """That similarity no longer tells them apart, as far as so many people show."""
    held = _held_against(m)
    if held is None:
        return "Whether forgotten people are told from unseen ones was not measured: give unseen people with --test."
    whose, _, there = held
    auc = m["people.auc"]
    level = "those of unseen people" if whose == "unseen people" else f"under {whose}"
    return (
        f"As far as these people show, two images of a forgotten person are no more and no less alike than {level} ({_shown(auc)}"
        f"{_there(whose, there)})."
    )


def _said_found(m: Mapping[str, Metric]) -> str:
    found = m["forget.map"]
    if found.value is None:
        return ""
    parts = [] if found.before is None else [f"before: {found.before:.2%}"]
    for name, whose in (
        ("retrained.map.forget", "the retrained model"),
        ("reference.map.forget", "the reference model"),
    ):
        value = m[name].value
        parts += [] if value is None else [f"{whose}: {value:.2%}"]
    unseen = m["test.map"].value
    parts += [] if unseen is None else [f"unseen people, in their own gallery: {unseen:.2%}"]
    beside = f" ({'; '.join(parts)})" if parts else ""
    return f"Forgotten people are found with mAP {found.value:.2%}{beside}."


def _said_changed(changed: Sequence[str] | None) -> str:
    if changed is None:
        return "Without the original it is not known what changed."
    if not changed:
        return "Nothing differs from the original: this model was not unlearned."
    return f"{len(changed)} tensors differ from the original."
