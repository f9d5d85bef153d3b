"""Samples that come in clusters, words in sentences: values stay, intervals go by sentences, and what is asked about is in none learnt from."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from test_assembly import FORGET, TEST, by_name, evidence, fitted
from test_assembly import ORIGINAL as HEAD
from torch import Tensor

from imu_cli.evaluation import assembly, curves, feature_attacks, information, recovery, relearning, similarity
from imu_cli.evaluation.evidence import Evidence, Split
from imu_cli.evaluation.feature_attacks import FOLDS, Chosen
from imu_cli.evaluation.relearning import Asked, Labelled, Learner, Side
from imu_cli.evaluation.shadow_heads import Candidates
from imu_cli.events import Log
from imu_cli.linear.rows import Rows
from imu_cli.models.batches import Batch
from imu_cli.records.evaluation import Metric
from imu_cli.statistics.intervals import Estimate, NotMeasured

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = 8
DRAWN = {"rmia.auc", "probe.accuracy", "feature_mia.auc", "feature_mia.auc_nearest", "shadow.auc", "mia.ks"}
"""Whose samples or intervals are not those of independent samples widened."""


def seeded(seed: int = 0) -> torch.Generator:
    """A generator."""
    return torch.Generator().manual_seed(seed)


def in_sentences(e: Evidence, words: int = WORDS) -> Evidence:
    """The same evidence, its samples words of sentences of which no two splits have one in common."""

    def of(split: Split | None, first: int) -> Split:
        assert split is not None
        return replace(split, clusters=first + torch.arange(len(split.labels)) // words)

    return replace(e, forget=of(e.forget, 0), test=of(e.test, 10_000), retain=of(e.retain, 20_000))


@pytest.mark.parametrize("kind", ["sample", "class"])
def test_values_stay_and_intervals_name_their_sentences(kind: str) -> None:
    """Every metric that has an interval of samples has one by sentences, at least as wide; what was not drawn is the same number."""
    after = HEAD + 0.3 * torch.randn(HEAD.shape, generator=seeded(), dtype=torch.float64)
    e = evidence(after, kind, retrained=fitted(TEST))
    assert e.retain is not None
    e = replace(e, retain=e.retain.only(torch.arange(800)))
    alone, ours = by_name(assembly.measure(e)), by_name(assembly.measure(in_sentences(e)))
    told = 0
    for name, found in ours.items():
        if found.interval is None or "draws" in found.interval.method or name in ("head_gap.forget",):
            continue
        assert "sentences" in found.interval.method, name
        told += 1
        if name not in DRAWN and "cka" not in name:
            before = alone[name]
            assert (found.value, found.before, found.n) == (before.value, before.before, before.n), name
            assert width(found) > (1 - 1e-9) * width(before), name
    assert told > 15
    assert "McNemar at the effective n" in ours["test.accuracy_drop"].note


def width(found: Metric) -> float:
    """Of the interval."""
    assert found.interval is not None
    return found.interval.high - found.interval.low


def test_what_chance_shows_of_words_is_wider() -> None:
    """Where a sentence's words are right or wrong together, both ranges that chance shows hold more than of independent words."""
    e = evidence(HEAD)
    assert e.test is not None
    wrong = torch.arange(len(TEST[1])) // WORDS % 4 == 0
    shifted = e.test.after + 50.0 * torch.nn.functional.one_hot((TEST[1] + wrong) % 4, 4)
    e = replace(e, test=replace(e.test, before=shifted, after=shifted))
    alone, ours = (
        by_name(assembly.forget_metrics(one))["forget.accuracy"].target_range for one in (e, in_sentences(e))
    )
    assert alone is not None
    assert ours is not None
    assert ours.high - ours.low > 2 * (alone.high - alone.low)
    assert "50 sentences" in ours.method


def test_curves_are_by_sentences() -> None:
    """The rates of the ROC are the same and its bands wider, where D_f's words keep together."""
    together = torch.arange(400) // WORDS % 2 == 0
    e = evidence(HEAD)
    pushed = e.forget.after + 9.0 * torch.nn.functional.one_hot(FORGET[1], 4) * together[:, None]
    e = replace(e, forget=replace(e.forget, after=pushed))
    alone, ours = curves.of(e), curves.of(in_sentences(e))
    assert alone is not None
    assert ours is not None
    for one, other in zip(alone.roc, ours.roc, strict=True):
        assert (one.fpr, one.tpr) == (other.fpr, other.tpr)
    middle = len(alone.roc[1].fpr) // 2
    bands = [roc.high[middle] - roc.low[middle] for roc in (alone.roc[1], ours.roc[1])]
    assert bands[1] > 1.5 * bands[0]


# --- Attacks on features


def of_sentences(count: int, words: int, width: int, seed: int) -> Tensor:
    """Features (n, d) that are mostly their sentence's."""
    shared = torch.randn(count, width, generator=seeded(seed), dtype=torch.float64).repeat_interleave(words, dim=0)
    return shared + 0.3 * torch.randn(count * words, width, generator=seeded(seed + 1), dtype=torch.float64)


def chosen(clusters: tuple[Tensor, Tensor] | None, n: int, width: int) -> Chosen:
    """D_f and a pool of n samples each, of one class."""
    labels = torch.zeros(n, dtype=torch.long)
    found = feature_attacks.choose(labels, torch.arange(n), labels, width, seeded(), clusters)
    assert isinstance(found, Chosen)
    return found


def test_a_word_is_not_known_by_its_sentence() -> None:
    """Features that say nothing of who was trained on: a fit on other words of the same sentences would find nearly all."""
    h = of_sentences(40, 10, 60, 1), of_sentences(40, 10, 60, 11)
    of = torch.arange(400) // 10
    for clusters, least, most in ((None, 0.85, 1.0), ((of, of + 100), 0.0, 0.5)):
        made = chosen(clusters, 400, 60)
        found = feature_attacks.by_regression(made.features(*h), made)
        assert found.low is not None
        assert least <= found.low <= most
    nearest = feature_attacks.by_distance(made.features(*h), made)
    assert nearest.low == 0.5
    assert nearest.high is not None
    assert nearest.high < 0.75


def test_parts_hold_whole_sentences_of_both_sides() -> None:
    """About as many words of each side in every part, though sentences differ; some have words on both sides."""
    sizes = torch.randint(1, 20, (60,), generator=seeded(3))
    of = torch.arange(60).repeat_interleave(sizes)
    ours = of < 35
    mine, theirs = of[ours], torch.cat([of[~ours], of[(of > 30) & ours]])
    labels = [torch.zeros(len(side), dtype=torch.long) for side in (mine, theirs)]
    made = feature_attacks.choose(labels[0], torch.arange(len(theirs)), labels[1], 4, seeded(), (mine, theirs))
    assert isinstance(made, Chosen)
    assert made.clusters is not None
    parts: dict[int, set[int]] = {}
    for sentence, part in zip(made.clusters.tolist(), made.folds.tolist(), strict=True):
        parts.setdefault(sentence, set()).add(part)
    assert all(len(found) == 1 for found in parts.values())
    for side in (made.folds[made.members], made.folds[~made.members]):
        counts = torch.bincount(side, minlength=FOLDS)
        assert int(counts.max() - counts.min()) < 0.5 * len(side) / FOLDS
    half = information.balanced(made)
    assert half.clusters is not None
    assert len(half.clusters) == len(half.folds) == 2 * len(half.forget)


def test_few_sentences_say_what_is_needed() -> None:
    """Four sentences on a side cannot be in five parts."""
    labels, of = torch.zeros(40, dtype=torch.long), torch.arange(40) // 10
    found = feature_attacks.choose(labels, torch.arange(40), labels, 4, seeded(), (of, of + 9))
    assert found == NotMeasured("needs 5 or more sentences of D_f and of class-matched --test samples")


def test_the_index_is_resampled_by_sentences() -> None:
    """Terms that are their sentence's have an interval as wide as that of one word a sentence."""
    before = 0.4 + 0.2 * torch.randn(40, generator=seeded(1), dtype=torch.float64)
    retrained = torch.zeros(40, dtype=torch.float64)
    after = before / 2 + 0.1 * torch.randn(40, generator=seeded(2), dtype=torch.float64)
    many = [part.repeat_interleave(9) for part in (after, before, retrained)]
    of = torch.arange(40).repeat_interleave(9)
    one, words, ours = (
        information.difference_index(*parts, seeded(), clusters=clusters).index
        for parts, clusters in (((after, before, retrained), None), (many, None), (many, of))
    )
    for found in (one, words, ours):
        assert isinstance(found, Estimate)
    assert isinstance(ours, Estimate)
    assert (ours.low, ours.high) == pytest.approx((one.low, one.high))  # type: ignore[union-attr]
    assert ours.method.startswith("bootstrap over 40 sentences")
    assert words.high - words.low < 0.6 * (ours.high - ours.low)  # type: ignore[union-attr,operator]


def test_groups_of_the_jackknife_hold_whole_sentences() -> None:
    """All samples once, in at most twenty groups; CKA's interval is of so many sentences, and one sentence has none."""
    of = torch.arange(70).repeat_interleave(torch.randint(1, 9, (70,), generator=seeded(2)))
    drawn = torch.randperm(len(of), generator=seeded(4))
    groups = similarity._whole(drawn, of)
    assert 15 <= len(groups) <= similarity.GROUPS
    assert sorted(torch.cat(groups).tolist()) == list(range(len(of)))
    assert sum(len(of[rows].unique()) for rows in groups) == 70
    x = torch.randn(len(of), 6, generator=seeded(5), dtype=torch.float64)
    pair = {"x": x, "y": x + torch.randn(len(of), 6, generator=seeded(6), dtype=torch.float64)}
    whole, one = (
        similarity.linear_cka(pair, [("x", "y")], seeded(), clusters=clusters)["x", "y"]
        for clusters in (of, torch.zeros_like(of))
    )
    assert isinstance(whole, Estimate)
    assert "70 sentences" in whole.method
    assert isinstance(one, NotMeasured)


# --- What is learnt from some and asked of others


def test_relearning_asks_about_other_sentences() -> None:
    """In every draw, no held word stands in a sentence that a shot came from; the shots are of few sentences."""
    labels, of = torch.arange(300) % 3, torch.arange(300) // 6
    seen: list[list[int]] = []
    weight = torch.zeros(3, 2, dtype=torch.float64)

    def batches(_: Side, rows: list[int], size: int) -> Iterator[Batch]:
        seen.append(rows)
        yield torch.zeros(len(rows), 2, dtype=torch.float64)

    made = Learner(lambda tensors, h: h @ tensors["weight"].T, {"weight": weight}, batches, 4096, 4096)  # type: ignore[operator]
    found = relearning._tried(
        made, Asked(labels, None, 0, clusters=of), "forget", Labelled(torch.arange(300), labels, of), 5
    )
    assert isinstance(found, Estimate)
    assert len(seen) == 2 * relearning.DRAWS
    for shots, held in zip(seen[::2], seen[1::2], strict=True):
        assert len(shots) == 5
        assert len(held) == relearning.HELD
        assert not {int(of[row]) for row in shots} & {int(of[row]) for row in held}
        assert len({int(of[row]) for row in shots}) <= 2
    few = Labelled(torch.arange(12), labels[:12], torch.zeros(12, dtype=torch.long))
    none = relearning._tried(made, Asked(labels[:12], None, 0, clusters=few.clusters), "forget", few, 5)
    assert none == NotMeasured("needs samples of more sentences than those that are learnt from")


def test_recovery_asks_about_other_sentences() -> None:
    """The rows that a class's mean is of share no sentence with those that it is to recognise."""
    labels, of = torch.arange(200) % 2, torch.arange(200) // 10
    shots, held = recovery._draw(labels, 5, seeded(), of)
    learnt = torch.cat(list(shots.values()))
    assert len(learnt) == 10
    assert 150 < len(held) < 190
    assert not set(of[learnt].tolist()) & set(of[held].tolist())


def sentences_of(rows: Tensor) -> set[int]:
    """What the first column of features says."""
    return set(rows[:, 0].long().tolist())


def test_the_probe_asks_about_other_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words of a forgotten class stand in sentences that were not trained on, half of all; with one such sentence it is that."""
    seen: list[list[set[int]]] = []
    fit = recovery._probe

    def watched(x: Tensor, y: Tensor, first: tuple[Rows, Tensor], second: tuple[Rows, Tensor]) -> object:
        assert isinstance(first[0], Tensor)
        assert isinstance(second[0], Tensor)
        seen.append([sentences_of(rows) for rows in (x[x[:, 0] >= 0], first[0], second[0])])
        return fit(x, y, first, second)

    monkeypatch.setattr(recovery, "_probe", watched)
    of = torch.arange(320) // WORDS
    forget = -torch.ones(40, 3, dtype=torch.float64), torch.full((40,), 2)
    features = torch.cat([of[:, None].double(), torch.randn(320, 2, generator=seeded(1)).double()], dim=1)
    for labels, words in ((torch.arange(320) % 4, 40), (torch.where(of == 7, torch.arange(320) % 4, of % 2), 2)):
        for seed in range(3):
            found = recovery.linear_probe(*forget, features, labels, {2}, seeded(seed), clusters=of)
            assert isinstance(found, recovery.Probe)
            assert found.accuracy.n == words
            learnt, asked, compared = seen.pop()
            assert not learnt & (asked | compared)
            assert len(learnt) == len(compared) == 20
            assert asked <= compared
    whole = torch.where(of == 7, 2, of % 2)
    few = recovery.linear_probe(*forget, features[48:64], whole[48:64], {2}, seeded(), clusters=of[48:64])
    assert few == NotMeasured("needs --test samples of the forgotten and of the kept classes in more sentences")


def test_the_probe_says_which_words_it_asks_about() -> None:
    """Of whole classes the note has how many words these are, and n counts them; other samples are all asked about."""
    alone, ours = (
        by_name(assembly.measure(one))["probe.accuracy"]
        for one in (evidence(HEAD, "class"), in_sentences(evidence(HEAD, "class")))
    )
    assert ours.n is not None
    assert alone.n is not None
    assert ours.n < 0.6 * alone.n
    assert f"asked about {ours.n} words, of the half of test's sentences that it was not trained on" in ours.note
    assert "asked about" not in alone.note


@pytest.mark.parametrize("side", ["forget", "test"])
def test_relearning_keeps_apart_from_all_that_is_learnt(side: Side) -> None:
    """Of whole classes: neither held words nor those that set the bias share a sentence with the shots or with kept words learnt beside."""
    labels, of = torch.arange(600) % 3, torch.arange(600) // 6
    seen: list[tuple[Side, set[int]]] = []

    def batches(from_: Side, rows: list[int], size: int) -> Iterator[Batch]:
        seen.append((from_, set(of[rows].tolist())))
        yield torch.zeros(len(rows), 2, dtype=torch.float64)

    made = Learner(
        lambda tensors, h: h @ tensors["weight"].T,  # type: ignore[operator]
        {"weight": torch.zeros(3, 2, dtype=torch.float64)}, batches, 4096, 4096,
    )  # fmt: skip
    gone, whole = labels == 2, Labelled(torch.arange(600), labels, of)
    asked = Asked(labels[gone], whole.only(gone), 0, (2,), whole.only(~gone), 0.01, of[gone])
    given = whole.only(gone)
    found = relearning._tried(made, asked, side, given, 5)
    assert isinstance(found, Estimate)
    assert len(seen) == 4 * relearning.DRAWS
    for at in range(0, len(seen), 4):
        (_, shots), (_, replayed), (_, held), (_, judges) = seen[at : at + 4]
        assert [who for who, _ in seen[at : at + 4]] == [side, "test", side, "test"]
        assert not (shots | replayed) & (held | judges)
        assert held


def test_shadow_heads_know_whole_sentences_or_none() -> None:
    """Each sentence in half of the heads, with all of its words, on whichever side they are."""
    of = torch.arange(30).repeat_interleave(4)
    made = Candidates(torch.zeros(120, 2), torch.zeros(120).long(), 60, (of[:60], of[58:118]))
    inside = made.members(8, seeded())
    both = torch.cat(made.clusters or ())
    assert inside.shape == (8, 120)
    for sentence in both.unique():
        mine = inside[:, both == sentence]
        assert torch.equal(mine, mine[:, :1].expand_as(mine))
        assert int(mine[:, 0].sum()) == 4


def test_relearning_takes_sentences_from_the_evidence() -> None:
    """D_f's and the never-seen words' both: a head that knows all of them recognises those of other sentences."""
    labels, of = torch.arange(120) % 3, torch.arange(120) // 6
    h = torch.nn.functional.one_hot(labels, 3).double()
    made = relearning.linear(10 * torch.eye(3, dtype=torch.float64), None, lambda _, rows: h[rows])
    found = relearning.relearn(
        made, Asked(labels, Labelled(torch.arange(120), labels, of), 0, clusters=of), Log(), "after"
    )
    for share in (found.forget[25], found.unseen[5]):
        assert isinstance(share, Estimate)
        assert share.value == 1.0
        assert share.n < 120 - 5
