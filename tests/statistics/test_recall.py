"""What can be read out of a model, the figures of TOFU, ROUGE-L and membership scores agree with slow, obvious versions."""

import math
from itertools import combinations

import pytest
import torch

from imu_cli.errors import ImuError
from imu_cli.linear import four_bit
from imu_cli.linear.vocabulary import Words, statistics
from imu_cli.statistics import intervals, recall, truth


@pytest.fixture(autouse=True)
def _quick(one_thread: None) -> None:
    """Small matrices are quicker on one thread."""


class Rows:
    """Answers of a few tokens each, with an end token where one stands."""

    def __init__(self, lengths: list[int], without_end: tuple[int, ...] = (), seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.records = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self.features = torch.randn(sum(lengths), 6, generator=generator)
        self.head = Words(torch.randn(9, 6, generator=generator))
        likely = (self.features @ self.head.matrix.T).argmax(1)
        drawn = torch.randint(0, 9, likely.shape, generator=generator)
        self.targets = torch.where(torch.rand(likely.shape, generator=generator) < 0.7, likely, drawn)
        self.ends = torch.zeros(sum(lengths), dtype=torch.bool)
        self.ends[torch.tensor(lengths).cumsum(0) - 1] = torch.tensor(
            [row not in without_end for row in range(len(lengths))]
        )


def slow(rows: Rows, record: int) -> dict[str, float]:
    """One answer by itself, token by token, as the definitions read."""
    own = [at for at in range(len(rows.records)) if int(rows.records[at]) == record]
    logs, best, standard = [], [], []
    for at in own:
        log_p = torch.log_softmax(rows.head.matrix.double() @ rows.features[at].double(), 0)
        p = log_p.exp()
        mean = float((p * log_p).sum())
        spread = math.sqrt(float((p * (log_p - mean) ** 2).sum()))
        logs.append(float(log_p[rows.targets[at]]))
        best.append(int(log_p.argmax()) == int(rows.targets[at]))
        standard.append((logs[-1] - mean) / spread)
    words = [hit for at, hit in zip(own, best, strict=True) if not rows.ends[at]]
    k = next(k for k in range(len(words) + 1) if all(words[k:]))
    least = max(1, int(0.4 * len(logs)))
    return {
        "loss": -sum(logs) / len(logs),
        "probability": math.prod(math.exp(value) for value in logs) ** (1 / len(logs)),
        "exact": sum(words) / len(words),
        "extraction": 1 - k / len(words),
        "rare": sum(sorted(logs)[:least]) / least,
        "rare_standardised": sum(sorted(standard)[:least]) / least,
    }


@pytest.mark.parametrize("seed", range(5))
def test_what_is_said_of_records_is_what_the_definitions_say(seed: int) -> None:
    """Loss, probability, exact memorisation, extraction strength, min-k % and min-k++ of each answer, by itself."""
    rows = Rows([5, 2, 9, 3, 12, 4], without_end=(3,), seed=seed)
    found = recall.of(statistics(rows, rows.head, torch.float64), rows.records, rows.ends, 6)
    for record in range(6):
        for name, value in slow(rows, record).items():
            assert float(getattr(found, name)[record]) == pytest.approx(value, rel=1e-9, abs=1e-12), (name, record)


def test_extraction_needs_the_last_word_and_not_the_end() -> None:
    """Of 4 words: the last one wrong gives 0, the first alone wrong 3/4, all right 1; whether the end is told does not count."""
    right = torch.tensor([[1, 1, 1, 0, 1], [0, 1, 1, 1, 0], [1, 1, 1, 1, 0]]).bool()
    zeros = torch.zeros(15, dtype=torch.float64)
    from imu_cli.linear.vocabulary import TokenStatistics

    seen = TokenStatistics(zeros, zeros, right.flatten(), zeros, zeros, zeros, zeros)
    ends = torch.tensor([False, False, False, False, True]).repeat(3)
    found = recall.of(seen, torch.arange(3).repeat_interleave(5), ends, 3)
    assert found.extraction.tolist() == [0, 0.75, 1]
    assert found.exact.tolist() == [0.75, 0.75, 1]


def test_an_answer_of_nothing_but_its_end_is_refused() -> None:
    """There is nothing to be read out of it."""
    rows = Rows([3, 1])
    with pytest.raises(ImuError, match="answer 1 has no token"):
        recall.of(statistics(rows, rows.head), rows.records, rows.ends, 2)


def test_membership_scores_are_higher_for_what_is_known() -> None:
    """Each score tells answers that were made likely from others; bytes under zlib and a reference model count as they are defined."""
    rows = Rows([4, 4, 4], seed=2)
    found = recall.of(statistics(rows, rows.head), rows.records, rows.ends, 3)
    sizes, reference = torch.tensor([10.0, 20, 40]), torch.tensor([1.0, 2, 3]).double()
    scores = recall.membership(found, sizes, reference)
    assert set(scores) == {"loss", "zlib", "min_k", "min_k_plus", "reference"}
    assert torch.allclose(
        scores["zlib"], torch.tensor([-float(found.loss[i]) / (10, 20, 40)[i] for i in range(3)]).double()
    )
    assert torch.allclose(scores["reference"], torch.tensor([i + 1 - float(found.loss[i]) for i in range(3)]).double())
    assert float(scores["loss"].argmax()) == float(found.probability.argmax())
    assert "reference" not in recall.membership(found, sizes, None)


def test_a_gap_of_two_sets_covers_their_difference() -> None:
    """Of 300 draws of two sets of 40, about one in twenty misses the true difference of their means."""
    generator = torch.Generator().manual_seed(0)
    missed = 0
    for _ in range(60):
        one, other = (torch.rand(40, generator=generator, dtype=torch.float64) ** power for power in (1, 2))
        found = recall.gap(one, other)
        assert found.low is not None
        assert found.high is not None
        missed += not found.low <= 1 / 2 - 1 / 3 <= found.high
    assert missed <= 8


# --- TOFU


def test_truth_ratio_is_a_quotient_of_probabilities() -> None:
    """R = exp(−mean of the wrong answers' ℓ) / exp(−ℓ of the true one), with as many wrong ones as a question has."""
    right, wrong = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([2.0, 3.0, 1.0, 0.5, 0.5, 0.5]).double()
    found = truth.ratio(right, wrong, [2, 1, 3]).exp()
    want = [math.exp(-2.5) / math.exp(-1), math.exp(-1) / math.exp(-2), math.exp(-0.5) / math.exp(-0.5)]
    assert found.tolist() == pytest.approx(want, rel=1e-12)
    assert truth.either_way(found.log()).tolist() == pytest.approx([min(r, 1 / r) for r in want], rel=1e-12)
    assert truth.truthful(found.log()).tolist() == pytest.approx([max(0, 1 - r) for r in want], rel=1e-12, abs=1e-15)


def test_the_chosen_answer_is_weighed_against_the_wrong_ones() -> None:
    """Its share is p / (p + Σ p_wrong)."""
    right, wrong = torch.tensor([1.0, 4.0], dtype=torch.float64), torch.tensor([2, 3, 0.1], dtype=torch.float64)
    want = [math.exp(-1) / (math.exp(-1) + math.exp(-2) + math.exp(-3)), math.exp(-4) / (math.exp(-4) + math.exp(-0.1))]
    assert truth.chosen(right, wrong, [2, 1]).tolist() == pytest.approx(want, rel=1e-12)


def test_utility_is_a_harmonic_mean_of_nine() -> None:
    """By statistics.harmonic_mean; one number of 0 makes it 0, and the interval holds it."""
    from statistics import harmonic_mean

    generator = torch.Generator().manual_seed(1)
    parts = {
        name: [torch.rand(n, generator=generator) for _ in range(3)] for name, n in (("a", 30), ("b", 20), ("c", 50))
    }
    found = truth.utility(parts)
    means = [float(values.double().mean()) for numbers in parts.values() for values in numbers]
    assert len(means) == 9
    assert found.value == pytest.approx(harmonic_mean(means), rel=1e-9)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    parts["c"][2] = parts["c"][2][:7]  # fewer records were written than were read
    few = truth.utility(parts)
    means[8] = float(parts["c"][2].double().mean())
    assert few.value == pytest.approx(harmonic_mean(means), rel=1e-9)
    parts["b"][1] = torch.zeros(20)
    assert truth.utility(parts).value == 0


def test_forget_quality_is_the_share_of_splits_that_lie_as_far_apart() -> None:
    """The p-value of 4 against 5 numbers is that of the largest distance of distribution functions over all 126 splits."""
    generator = torch.Generator().manual_seed(3)
    ours, theirs = torch.rand(4, generator=generator).tolist(), (torch.rand(5, generator=generator) + 0.3).tolist()

    def distance(one: list[float], other: list[float]) -> float:
        return max(
            abs(sum(v <= x for v in one) / len(one) - sum(v <= x for v in other) / len(other)) for x in one + other
        )

    pooled, seen = ours + theirs, distance(ours, theirs)
    splits = [
        distance([pooled[i] for i in picked], [pooled[i] for i in range(9) if i not in picked])
        for picked in combinations(range(9), 4)
    ]
    p, found = truth.same_distribution(torch.tensor(ours), torch.tensor(theirs))
    assert found == pytest.approx(seen)
    assert p == pytest.approx(sum(value >= seen - 1e-12 for value in splits) / len(splits))


def test_rouge_recall_is_the_longest_common_subsequence_of_stems() -> None:
    """Counted by hand for plurals, and by a slow subsequence for others; what is not there is 0."""
    pytest.importorskip("rouge_score")
    from imu_cli.statistics import rouge

    truths = ["The books were written by cats", "one two three four", "alpha beta"]
    written = ["book of a cat", "four three two one five", "gamma"]

    def longest(one: list[str], other: list[str]) -> int:
        return max(
            size
            for size in range(len(one) + 1)
            if any(
                list(part) == list(chosen) for part in combinations(one, size) for chosen in combinations(other, size)
            )
        )

    assert longest(["one", "two", "three", "four"], ["four", "three", "two", "one", "five"]) == 1
    assert rouge.recall(truths, written).tolist() == pytest.approx([2 / 6, 1 / 4, 0])


# --- four bits


def test_four_bits_keep_the_nearest_level_of_each_block() -> None:
    """By hand: a block's largest size is kept, others go to the nearest of 16 levels times it; blocks have a scale each."""
    first = torch.zeros(64)
    first[:5] = torch.tensor([2.0, -2.0, 0.1, 1.0, -0.5])
    second = torch.full((6,), 0.01)
    found = four_bit.rounded(torch.cat([first, second]).reshape(7, 10)).flatten()
    want = [2.0, -2.0, 0.07958029955625534 * 2, 0.44070982933044434 * 2, -0.28444138169288635 * 2]
    assert found[:5].tolist() == pytest.approx(want)
    assert found[5:64].tolist() == [0] * 59
    assert found[64:].tolist() == pytest.approx([0.01] * 6)


def test_no_level_is_nearer_than_the_one_that_is_kept() -> None:
    """Of normal weights, against all 16 levels; a block of zeros stays, and the dtype does."""
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    kept = four_bit.rounded(weight)
    for row in range(3):
        levels = torch.tensor(four_bit.LEVELS) * weight[row].abs().max()
        nearest = levels[(weight[row][:, None] - levels).abs().argmin(1)]
        assert torch.allclose(kept[row], nearest)
    assert four_bit.rounded(weight.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(four_bit.rounded(kept), kept)


def test_an_interval_of_equal_losses_is_none() -> None:
    """Nothing says how far others may lie."""
    found = recall.mean_loss(torch.full((5,), 2.5))
    assert (found.value, found.low, found.high) == (2.5, None, None)
    assert isinstance(found, intervals.Estimate)
