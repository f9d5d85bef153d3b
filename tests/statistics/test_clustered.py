"""Samples in clusters: intervals hold the truth where those of independent samples do not, and are these where nothing goes together."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from estimates import ends, holds
from numpy.random import Generator, default_rng
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.statistics import clustered, intervals
from imu_cli.statistics.intervals import Estimate
from imu_cli.statistics.metrics import class_matched_accuracy, worst_class_drop

pytestmark = pytest.mark.usefixtures("one_thread")
DRAWS = 250
LEAST = 0.93
"""Of draws in which an interval has to hold the truth: 95 %, less 1.5 standard errors of ``DRAWS``."""


def width(estimate: Estimate) -> float:
    """Of the interval."""
    low, high = ends(estimate)
    return high - low


def sentences(random: Generator, count: int, first: int = 0) -> np.ndarray:
    """The sentence of each word (n,): 13 words on average, some of 1 and some of 40."""
    return np.repeat(np.arange(first, first + count), 1 + random.poisson(12 * random.gamma(2, 0.5, count)))


def alike(random: Generator, of: np.ndarray, rate: float, correlation: float = 0.3) -> np.ndarray:
    """Each word's chance of a hit (n,), which sentences have their own of."""
    scale = (1 - correlation) / correlation
    return random.beta(rate * scale, (1 - rate) * scale, of.max() + 1)[of]


def covered(draw: Callable[[Generator], tuple[Estimate, Estimate, float]]) -> tuple[float, float]:
    """How often the interval of independent samples, and that by clusters, hold the truth."""
    random = default_rng(5)
    found = [(holds(alone, truth), holds(ours, truth)) for alone, ours, truth in (draw(random) for _ in range(DRAWS))]
    alone, ours = np.mean(found, axis=0)
    return float(alone), float(ours)


# --- Coverage


@pytest.mark.parametrize(("count", "rate"), [(8, 0.8), (30, 0.5), (30, 0.97), (120, 0.97)])
def test_shares_hold_the_truth(count: int, rate: float) -> None:
    """Of few and of many sentences, at the middle and near the end, where independent words' intervals are far too narrow."""

    def draw(random: Generator) -> tuple[Estimate, Estimate, float]:
        of = sentences(random, count)
        hits = torch.from_numpy(random.random(len(of)) < alike(random, of, rate))
        return clustered.share(hits, None), clustered.share(hits, torch.from_numpy(of)), rate

    alone, ours = covered(draw)
    assert alone < 0.85
    assert ours >= LEAST


def test_falls_hold_the_truth() -> None:
    """A fall of accuracy that some sentences have and others have not."""

    def draw(random: Generator) -> tuple[Estimate, Estimate, float]:
        of = sentences(random, 40)
        before, lost = random.random(len(of)) < 0.9, random.random(len(of)) < alike(random, of, 0.1)
        pair = torch.from_numpy(before), torch.from_numpy(before & ~lost)
        found = [clustered.paired_difference(*pair, by) for by in (None, torch.from_numpy(of))]
        return found[0], found[1], 0.09

    alone, ours = covered(draw)
    assert alone < 0.85
    assert ours >= LEAST


def test_mean_differences_hold_the_truth() -> None:
    """A gap less another one, which go together in a sentence."""

    def draw(random: Generator) -> tuple[Estimate, Estimate, float]:
        of = sentences(random, 40)
        chances = alike(random, of, 0.2), alike(random, of, 0.1)
        up, down = (torch.from_numpy((random.random(len(of)) < chance).astype(np.int64)) for chance in chances)
        found = [clustered.mean_difference(up - down, by) for by in (None, torch.from_numpy(of))]
        return found[0], found[1], 0.1

    alone, ours = covered(draw)
    assert alone < 0.85
    assert ours >= LEAST


def scores(random: Generator, of: np.ndarray, shift: float) -> Tensor:
    """Normal scores (n,), three tenths of whose variance is their sentence's."""
    shared = random.normal(size=of.max() + 1)[of]
    return torch.from_numpy(shift + np.sqrt(0.3) * shared + np.sqrt(0.7) * random.normal(size=len(of)))


@pytest.mark.parametrize(("ours", "theirs"), [(10, 40), (40, 40)])
def test_aucs_hold_the_truth(ours: int, theirs: int) -> None:
    """Sentences of D_f against others: 0.76 for a shift of one standard deviation."""

    def draw(random: Generator) -> tuple[Estimate, Estimate, float]:
        of = sentences(random, ours), sentences(random, theirs, first=1000)
        sides = scores(random, of[0], 1.0), scores(random, of[1], 0.0)
        by = torch.from_numpy(of[0]), torch.from_numpy(of[1])
        return clustered.auc(*sides, None), clustered.auc(*sides, by), 0.7602499

    alone, by = covered(draw)
    assert alone < 0.8
    assert by >= LEAST


def test_aucs_of_words_of_the_same_sentences_hold_the_truth() -> None:
    """Where words of both sides stand in one sentence what they share takes nothing apart: narrower than of two sets of sentences."""
    widths = []

    def draw(random: Generator) -> tuple[Estimate, Estimate, float]:
        of = sentences(random, 30)
        every, mine = scores(random, of, 0.0), torch.from_numpy(random.random(len(of)) < 0.5)
        by = torch.from_numpy(of)
        sides = every[mine] + 1.0, every[~mine]
        apart = clustered.auc(*sides, (by[mine], by[~mine] + 1000))
        together = clustered.auc(*sides, (by[mine], by[~mine]))
        widths.append((width(together), width(apart)))
        return apart, together, 0.7602499

    assert covered(draw)[1] >= LEAST
    together, apart = np.mean(widths, axis=0)
    assert together < 0.8 * apart


def test_differences_of_aucs_hold_the_truth() -> None:
    """Of two scores of the same words that share what a sentence has."""

    def draw(random: Generator) -> tuple[Estimate, Estimate, float]:
        of = sentences(random, 30), sentences(random, 30, first=1000)
        first = scores(random, of[0], 1.0), scores(random, of[1], 0.0)
        # the second has another noise of each sentence beside half of the first's score
        second = [
            side / 2 + scores(random, one, shift) for side, one, shift in zip(first, of, (-0.5, 0.0), strict=True)
        ]
        by = torch.from_numpy(of[0]), torch.from_numpy(of[1])
        pairs = first, (second[0], second[1])
        return clustered.auc_difference(*pairs, None), clustered.auc_difference(*pairs, by), 0.2602499

    alone, ours = covered(draw)
    assert alone < 0.8
    assert ours >= LEAST


# --- Where nothing goes together, or everything


def alone(n: int) -> Tensor:
    """Each sample a cluster, in no order."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(1)) * 7 - 3


def close(found: Estimate, wanted: Estimate, tolerance: float = 1e-9) -> None:
    """The same value and n, and ends that differ by a part of the width at most."""
    assert (found.value, found.n) == (wanted.value, wanted.n)
    assert ends(found) == pytest.approx(ends(wanted), abs=tolerance * width(wanted))


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.4, 1.0])
def test_one_sample_a_cluster_is_independent(rate: float) -> None:
    """Shares, weighted shares, falls, p-values and mean differences are those of independent samples, to rounding."""
    random = torch.Generator().manual_seed(3)
    hits, before = (torch.rand(150, generator=random) < part for part in (rate, 0.7))
    by, labels = alone(150), torch.arange(150) % 4
    close(clustered.share(hits, by), clustered.share(hits, None))
    wanted = torch.tensor([0, 0, 0, 2, 1])
    close(class_matched_accuracy(hits, labels, wanted, clusters=by), class_matched_accuracy(hits, labels, wanted), 1e-9)
    close(clustered.paired_difference(before, hits, by), clustered.paired_difference(before, hits, None))
    close(worst_class_drop(before, hits, labels, clusters=by).drop, worst_class_drop(before, hits, labels).drop)
    told = [clustered.flips_told(before, hits, of) for of in (by, None)]
    assert told[0].rpartition(" ")[2] == told[1].rpartition(" ")[2]
    gap = before.int() - 2 * hits.int()
    close(clustered.mean_difference(gap, by), clustered.mean_difference(gap, None))
    assert clustered.expected_n(hits, by, alone(40), 40) == pytest.approx(40)


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0, 20.0])
def test_one_sample_a_cluster_is_delong(shift: float) -> None:
    """AUCs and their differences are DeLong's to a hundredth of the width: degrees of freedom are at most those of normal placements."""
    random = torch.Generator().manual_seed(3)
    mine, theirs = torch.randn(60, generator=random) + shift, torch.randn(90, generator=random)
    noise = [torch.randn(n, generator=random) for n in (60, 90)]
    by = alone(60), alone(90) + 1
    close(clustered.auc(mine, theirs, by), clustered.auc(mine, theirs, None), 0.01)
    other = mine + noise[0], theirs + noise[1]
    close(
        clustered.auc_difference((mine, theirs), other, by), clustered.auc_difference((mine, theirs), other, None), 0.01
    )


@pytest.mark.parametrize("wrong", [0, 3, 30])
def test_clusters_that_are_all_alike_are_one_sample_each(wrong: int) -> None:
    """Thirty sentences of seven words, right or wrong as wholes, prove what thirty words do."""
    hits = (torch.arange(30) >= wrong).repeat_interleave(7)
    by = torch.arange(30).repeat_interleave(7)
    found = clustered.share(hits, by)
    assert found.n == 210
    assert ends(found) == pytest.approx(ends(intervals.clopper_pearson(30 - wrong, 30)))
    assert "30 sentences" in found.method
    fall = clustered.paired_difference(torch.ones(210).bool(), hits, by)
    assert ends(fall) == pytest.approx(ends(intervals.paired_difference(wrong, 0, 30)))
    assert clustered.sure_n(by, 210) == pytest.approx(30)
    assert clustered.expected_n(hits, by, by, 210) == pytest.approx(30)


def test_one_sentence_proves_as_much_as_one_word() -> None:
    """Whatever is in it: nothing says how sentences differ."""
    hits, by = torch.arange(12) > 3, torch.zeros(12, dtype=torch.long)
    low, high = ends(clustered.share(hits, by))
    assert low < 0.05
    assert high > 0.98
    assert ends(clustered.auc(torch.randn(12), torch.randn(30), (by, torch.arange(30)))) == (0.0, 1.0)


def test_rare_errors_prove_little_of_how_they_keep_together() -> None:
    """None wrong is no surer than one, and the effective n grows with the errors that are seen to stand alone."""
    by = torch.arange(100).repeat_interleave(20)
    uppers = []
    for wrong in (0, 1, 5, 20):
        hits = torch.zeros(2000, dtype=torch.bool)
        hits[torch.arange(wrong) * 100] = True
        uppers.append(ends(clustered.share(hits, by))[1])
    assert uppers[0] == pytest.approx(ends(intervals.clopper_pearson(0, 100))[1])
    assert uppers[1] > 5 / 2000 > ends(intervals.clopper_pearson(0, 2000))[1]
    assert uppers[3] < 0.025


def test_never_narrower_than_independent_samples() -> None:
    """Sentences whose words differ more than chance would have it prove no more than words that do not."""
    random = default_rng(2)
    for _ in range(30):
        of = sentences(random, int(random.integers(2, 20)))
        hits = torch.from_numpy(random.random(len(of)) < random.random())
        assert width(clustered.share(hits, torch.from_numpy(of))) >= width(clustered.share(hits, None)) - 1e-12


# --- The variance of an AUC


def obuchowski(sides: tuple[Tensor, Tensor], by: tuple[Tensor, Tensor]) -> float:
    """The variance as the paper has it, cluster by cluster."""
    below = (sides[0][:, None] > sides[1]).double() + (sides[0][:, None] == sides[1]).double() / 2
    value, m, n = float(below.mean()), len(sides[0]), len(sides[1])
    placed = below.mean(1), below.mean(0)
    s10 = s01 = s11 = 0.0
    names = [set(part.tolist()) for part in by]
    for name in names[0] | names[1]:
        own = [float((placed[at][by[at] == name] - value).sum()) for at in (0, 1)]
        s10, s01, s11 = s10 + own[0] ** 2, s01 + own[1] ** 2, s11 + own[0] * own[1]
    counts = [len(one) for one in (*names, names[0] | names[1])]
    s10, s01, s11 = (k / (k - 1) * total for k, total in zip(counts, (s10 / m, s01 / n, s11), strict=True))
    return s10 / m + s01 / n + 2 * s11 / (m * n)


@pytest.mark.parametrize("shared", [0, 3, 12])
def test_the_variance_is_obuchowskis(shared: int) -> None:
    """Of clusters of equal sizes, of which some have words on both sides."""
    random = torch.Generator().manual_seed(shared)
    by = torch.arange(12).repeat_interleave(4), (torch.arange(12) + 12 - shared).repeat_interleave(3)
    sides = torch.randint(0, 9, (48,), generator=random) + 2.0, torch.randint(0, 9, (36,), generator=random).double()
    value, *placed = intervals.placements(*sides)
    found = clustered._Placed.of(value, (placed[0], placed[1]), by)
    assert found.covariance(found) == pytest.approx(obuchowski(sides, by), rel=1e-9)
    assert found.spread().variance >= found.covariance(found) * (1 - 1e-12)
    assert found.spread().pairs == min(12, (24 - shared) // 2)


# --- Draws


def test_draws_part_no_cluster() -> None:
    """Halves are about equal, hold all samples and share no sentence; mixed samples keep their sentences together; seeds decide."""
    random = default_rng(4)
    by = torch.from_numpy(random.permutation(sentences(random, 25)))
    first, second = clustered.parted(len(by), by, torch.Generator().manual_seed(2))
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(by)))
    assert not set(by[first].tolist()) & set(by[second].tolist())
    assert abs(len(first) - len(second)) <= int(torch.bincount(by).max())
    order = clustered.mixed(len(by), by, torch.Generator().manual_seed(2))
    assert len(by[order].unique_consecutive()) == 25
    assert torch.equal(order, clustered.mixed(len(by), by, torch.Generator().manual_seed(2)))
    left = clustered.apart(by, second, first[:5])
    assert bool(left.all())
    assert not bool(clustered.apart(by, first[:5], first).any())


def test_two_sentences_are_parted_and_one_is_not() -> None:
    """However unequal they are, each half has one; of one sentence the second half is empty."""
    by = torch.tensor([5] * 30 + [6])
    halves = clustered.parted(31, by, torch.Generator().manual_seed(0))
    assert sorted(map(len, halves)) == [1, 30]
    assert [len(half) for half in clustered.parted(4, torch.zeros(4), torch.Generator())] == [4, 0]


def test_every_sample_has_a_cluster() -> None:
    """Fewer or more clusters than samples are a mistake of the caller's, and said."""
    with pytest.raises(ImuError, match="each sample has one"):
        clustered.share(torch.ones(4).bool(), torch.zeros(3))
    with pytest.raises(ImuError, match="each sample has one"):
        clustered.auc(torch.ones(4), torch.zeros(4), (torch.zeros(4), torch.zeros(3)))
