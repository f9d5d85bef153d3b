"""What is measured of an embedding model: how forgotten, kept and unseen people are found, and whether they are told apart."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imu_cli.evaluation.evidence import metric
from imu_cli.evaluation.scene import NO_TEST, Evidence, View
from imu_cli.records.evaluation import Histogram, Metric, Series
from imu_cli.records.retrieval_metrics import RETRIEVAL
from imu_cli.statistics import bootstrap, same_person
from imu_cli.statistics.intervals import Estimate, NotMeasured, clopper_pearson, paired_difference, two_sided
from imu_cli.statistics.retrieval import RANKS, Found

BINS = 40
"""Bins of the pictures of similarity, from the least to the largest that is seen."""


Measured = Estimate | NotMeasured


def _of(view: View | None, measure: Callable[[View], Measured]) -> Measured | None:
    return None if view is None else measure(view)


def _precision(side: str, seed: int, by_person: bool) -> Callable[[View], Measured]:
    """MAP of a side; by person where the side stands for people like them, by query where the same queries are asked again."""

    def measure(view: View) -> Measured:
        found = view.found[side]
        if isinstance(found, NotMeasured):
            return found
        return _mean(found.precision[found.valid], found.people[found.valid], seed, by_person)

    return measure


def _rank(side: str, at: int, seed: int, by_person: bool) -> Callable[[View], Measured]:
    def measure(view: View) -> Measured:
        found = view.found[side]
        if isinstance(found, NotMeasured):
            return found
        hits = found.ranks[found.valid, RANKS.index(at)]
        people = found.people[found.valid]
        if not by_person and _whole(hits):
            return clopper_pearson(int(hits.sum()), len(hits))
        return _mean(hits, people, seed, by_person)

    return measure


def _whole(hits: Tensor) -> bool:
    return bool(((hits == 0) | (hits == 1)).all())


def _mean(values: Tensor, people: Tensor, seed: int, by_person: bool) -> Estimate:
    numbers, which = people.unique(return_inverse=True)
    if not by_person or len(numbers) < 2:
        return bootstrap.mean(values, "queries", seed)
    sums = torch.zeros(len(numbers), dtype=torch.float64).index_add_(0, which, values)
    made = bootstrap.ratio(sums, torch.bincount(which).double(), "people", seed)
    return replace(made, n=len(values))


def _drop(e: Evidence, side: str, rank: int | None = None) -> Measured:
    if e.before is None:
        return NotMeasured("needs the original")
    old, new = e.before.found[side], e.after.found[side]
    if isinstance(old, NotMeasured) or isinstance(new, NotMeasured):
        return new if isinstance(new, NotMeasured) else old  # type: ignore[return-value]
    kept = old.valid
    if rank is None:
        return bootstrap.difference(old.precision[kept], new.precision[kept], "queries", e.seed)
    at = RANKS.index(rank)
    first, second = old.ranks[kept, at], new.ranks[kept, at]
    if not (_whole(first) and _whole(second)):
        return bootstrap.difference(first, second, "queries", e.seed)
    return paired_difference(int((first > second).sum()), int((second > first).sum()), len(first))


def _similarity(side: str, seed: int) -> Callable[[View], Measured]:
    def measure(view: View) -> Measured:
        pairs = view.scene.pairs[side]
        return pairs if isinstance(pairs, NotMeasured) else same_person.mean(pairs, view.similar[side], seed)

    return measure


def sides_of(view: View, side: str) -> tuple[same_person.Side, same_person.Side] | NotMeasured:
    """Pairs of forgotten or kept people and of unseen ones, with their similarities."""
    ours, theirs = view.scene.pairs[side], view.scene.pairs["test"]
    if view.scene.test is None:
        return NO_TEST
    if isinstance(ours, NotMeasured) or isinstance(theirs, NotMeasured):
        return ours if isinstance(ours, NotMeasured) else theirs  # type: ignore[return-value]
    return (ours, view.similar[side]), (theirs, view.similar["test"])


def _auc(side: str, seed: int) -> Callable[[View], Measured]:
    def measure(view: View) -> Measured:
        found = sides_of(view, side)
        return found if isinstance(found, NotMeasured) else same_person.auc(*found, seed)

    return measure


def _auc_difference(one: View | None, other: View | None, seed: int, lacks: str) -> Measured:
    if one is None or other is None:
        return NotMeasured(f"needs {lacks}")
    first, second = sides_of(one, "forget"), sides_of(other, "forget")
    if isinstance(first, NotMeasured) or isinstance(second, NotMeasured):
        return first if isinstance(first, NotMeasured) else second  # type: ignore[return-value]
    return same_person.auc_difference(first, second, seed)


# --- what it all comes to


def _target(
    e: Evidence, measure: Callable[[View], Measured], otherwise: tuple[Measured | None, str]
) -> dict[str, object]:
    """Where forgotten people should be: the retrained model's value, else the reference model's, else unseen people's."""
    for view, whose in (
        (e.retrained, "the retrained model's, on the same people"),
        (e.reference, "the reference model's, on the same people, before any of them was seen"),
    ):
        found = _of(view, measure)
        if isinstance(found, Estimate):
            return _aim(found, whose)
    found, whose = otherwise
    return _aim(found, whose) if isinstance(found, Estimate) else {}


def _aim(found: Estimate, whose: str) -> dict[str, object]:
    ends = None if found.low is None or found.high is None else (found.low, found.high)
    return {"target": found.value, "target_note": f"{whose}{_spread(ends)}"}


def _spread(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" (95 % interval {ends[0]:.4g} to {ends[1]:.4g})"


def measure(e: Evidence) -> list[Metric]:
    """Every metric, in the order of the definitions; those whose data was not given say what they need."""
    seed = e.seed
    forget, unseen = e.scene.gallery, "unseen people (--test)"
    auc = _auc("forget", seed)

    def told(name: str, of: Callable[[View], Measured], split: str, **more: object) -> Metric:
        return metric(name, of(e.after), _of(e.before, of), split=split, **more)  # type: ignore[arg-type]

    fair = (
        Estimate(0.5, None, None, 0, ""),
        "0.5: as unseen people; some people are easier than others, which --retrained or --reference-model tells",
    )
    theirs = {
        name: (of(e.after), "unseen people's, with this model, in their own gallery")
        for name, of in (("map", _precision("test", seed, True)), ("rank1", _rank("test", 1, seed, True)))
    }
    likeness = (_similarity("test", seed)(e.after), "unseen people's, with this model")
    of_forget = {"map": _precision("forget", seed, True), "rank1": _rank("forget", 1, seed, True)}
    alike = _similarity("forget", seed)
    measured = auc(e.after)
    both_sides = two_sided(measured) if isinstance(measured, Estimate) else measured
    old = _of(e.before, auc)
    made = [
        told("people.auc", auc, "forgotten against unseen people", note=_counted(e), **_target(e, auc, fair)),
        metric(
            "people.auc_two_sided", both_sides, two_sided(old) if isinstance(old, Estimate) else None,
            split="forgotten against unseen people",
        ),
        metric("people.auc_drop", _auc_difference(e.before, e.after, seed, "the original"), split="forgotten against unseen people"),
        told("forget.similarity", alike, "forgotten people", **_target(e, alike, likeness)),
        told("forget.map", of_forget["map"], forget, note=_passed(e.after.found["forget"]), **_target(e, of_forget["map"], theirs["map"])),
        told("forget.rank1", of_forget["rank1"], forget, **_target(e, of_forget["rank1"], theirs["rank1"])),
        told("test.map", _precision("test", seed, False), unseen, note=_passed(e.after.found["test"])),
        metric("test.map_drop", _drop(e, "test"), split=unseen),
        *(told(f"test.rank{at}", _rank("test", at, seed, False), unseen) for at in RANKS),
        metric("test.rank1_drop", _drop(e, "test", 1), split=unseen),
        told("test.similarity", _similarity("test", seed), unseen),
        told("retain.map", _precision("retain", seed, False), forget, note=_passed(e.after.found["retain"])),
        metric("retain.map_drop", _drop(e, "retain"), split=forget),
        told("retain.rank1", _rank("retain", 1, seed, False), forget),
        told("retain.similarity", _similarity("retain", seed), "kept people"),
        told("retain_people.auc", _auc("retain", seed), "kept against unseen people"),
        *_others(e),
        metric("drift.forget", _drift(e, "forget"), split="forget"),
        metric("drift.test", _drift(e, "test"), split=unseen),
    ]  # fmt: skip
    by_name = {item.name: item for item in made}
    return [by_name[name] for name in RETRIEVAL]


def _others(e: Evidence) -> list[Metric]:
    """The same people under the models that it is compared with."""
    made = []
    for name, view in (("retrained", e.retrained), ("reference", e.reference)):
        option = "--retrained" if name == "retrained" else "--reference-model"
        lacks = NotMeasured(f"needs {option}")
        made += [
            metric(f"{name}.people.auc", _of(view, _auc("forget", e.seed)) or lacks, split="forgotten against unseen people"),
            metric(
                f"{name}.auc_gap", _auc_difference(e.after, view, e.seed, option), split="forgotten against unseen people",
                target=0.0, target_note="the same people are as alike under both",
            ),
            metric(f"{name}.map.forget", _of(view, _precision("forget", e.seed, True)) or lacks, split=e.scene.gallery),
        ]  # fmt: skip
        if name == "retrained":
            made.append(
                metric(
                    "retrained.map.test",
                    _of(view, _precision("test", e.seed, False)) or lacks,
                    split="unseen people (--test)",
                )
            )
    return made


def _counted(e: Evidence) -> str:
    """How many people the AUC rests on, and how many have no pair."""
    pairs, people = e.scene.pairs["forget"], len(e.scene.forget.people.unique())
    if isinstance(pairs, NotMeasured):
        return ""
    without = (
        f"; {people - pairs.count} of {people} forgotten people have no images on two cameras"
        if pairs.count < people
        else ""
    )
    drawn = "; pairs of people with many images are drawn" if pairs.drawn else ""
    return f"{len(pairs.people):,} pairs of {pairs.count} people{without}{drawn}"


def _passed(found: Found | NotMeasured) -> str:
    """How many queries have nothing to be found."""
    if isinstance(found, NotMeasured):
        return ""
    out = int((~found.valid).sum())
    return (
        f"{out} of {len(found.precision)} images have none of the person on another camera, and are no queries"
        if out
        else ""
    )


def _drift(e: Evidence, side: str) -> Measured:
    if e.before is None:
        return NotMeasured("needs the original")
    old, new = (e.before.forget, e.after.forget) if side == "forget" else (e.before.test, e.after.test)
    if old is None or new is None:
        return NO_TEST
    if old.shape != new.shape:
        return NotMeasured("the original's embeddings have another length")
    turned = (1 - (old * new).sum(dim=1)).clamp_min(0)
    return replace(bootstrap.ratio(turned, torch.ones_like(turned), "images", e.seed, high=2.0), n=len(turned))


def curves(e: Evidence) -> Histogram | None:
    """Counts of similarity of same-person pairs: forgotten people before and after, unseen people after."""
    wanted = [("forget", "before", e.before), ("forget", "after", e.after), ("test", "after", e.after)]
    found = {
        (side, when): view.similar[side] for side, when, view in wanted if view is not None and side in view.similar
    }
    if not found:
        return None
    low, high = (float(end) for end in torch.cat(list(found.values())).aminmax())
    edges = torch.linspace(low, max(high, low + 1e-6) + 1e-12, BINS + 1, dtype=torch.float64)
    return Histogram(
        edges=edges.tolist(),
        series=[
            Series(split=side, when=when, counts=_counts(values, edges))  # type: ignore[arg-type]
            for (side, when), values in found.items()
        ],
    )


def _counts(values: Tensor, edges: Tensor) -> list[int]:
    at = (torch.searchsorted(edges, values.cpu().contiguous(), right=True) - 1).clamp(0, len(edges) - 2)
    found: list[int] = torch.bincount(at, minlength=len(edges) - 1).tolist()
    return found


@dataclass(frozen=True)
class Part:
    """Results on the forgotten images of one person or group: mAP before and after, similarity of their pairs, AUC against unseen people."""

    name: str
    n: int
    before: float | None
    after: float | None
    similarity: float | None
    auc: float | None


def per_part(e: Evidence) -> list[Part]:
    """The parts that were asked for, in their order."""
    return [_part(e, name, rows) for name, rows in e.parts.items()]


def _part(e: Evidence, name: str, rows: Tensor) -> Part:
    def precision(view: View | None) -> float | None:
        found = None if view is None else view.found["forget"]
        if not isinstance(found, Found):
            return None
        own = found.precision[rows]
        return float(own.nanmean()) if bool((~own.isnan()).any()) else None

    own, pairs = torch.isin(torch.arange(len(e.scene.forget)), rows), e.scene.pairs["forget"]
    if isinstance(pairs, NotMeasured):
        return Part(name, len(rows), precision(e.before), precision(e.after), None, None)
    mine = own[pairs.rows].all(dim=1)
    similar = e.after.similar["forget"][mine]
    unseen = e.after.similar.get("test")
    auc = None if unseen is None or not len(similar) else same_person.plain_auc(similar, unseen)
    likeness = float(similar.mean()) if len(similar) else None
    return Part(name, len(rows), precision(e.before), precision(e.after), likeness, auc)
