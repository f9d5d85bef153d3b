"""mAP, CMC and the same-person AUC agree with slow, obvious versions, and with the figures of ../shared/reid."""

import math
from fractions import Fraction
from itertools import permutations, product

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from imu_cli.errors import ImuError
from imu_cli.statistics import bootstrap, retrieval, same_person
from imu_cli.statistics.retrieval import DISTRACTOR, JUNK, NO_CAMERA, RANKS, Sightings
from imu_cli.statistics.same_person import Pairs


@pytest.fixture(autouse=True)
def _quick(one_thread: None) -> None:
    """Small matrices are quicker on one thread."""


def sightings(n: int, seed: int, people: int = 5, cameras: int = 3, d: int = 2, grid: int = 3) -> Sightings:
    """Images with coarse directions, so that many are equally similar, junk and distractors among them."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(-grid, grid + 1, (n, d), generator=generator).double()
    raw[raw.abs().sum(1) == 0, 0] = 1
    whose = torch.randint(-2, people, (n,), generator=generator)
    seen = torch.randint(0, cameras, (n,), generator=generator)
    return Sightings(retrieval.directions(raw), whose, seen, torch.arange(n))


def slow(queries: Sightings, gallery: Sightings) -> list[tuple[Fraction | None, list[Fraction]]]:
    """Each query by itself in exact fractions: expectations over the places that each image can take among its ties."""
    made = []
    similar = (queries.directions @ gallery.directions.T).tolist()
    for q in range(len(queries)):
        person, camera = int(queries.people[q]), int(queries.cameras[q])
        listed = []
        for g in range(len(gallery)):
            other, place = int(gallery.people[g]), int(gallery.cameras[g])
            if other == JUNK or int(gallery.images[g]) == int(queries.images[q]):
                continue
            if other == person and place == camera and camera != NO_CAMERA:
                continue
            listed.append((similar[q][g], other == person and person >= 0))
        total = sum(right for _, right in listed)
        if not total:
            made.append((None, [Fraction(0)] * len(RANKS)))
            continue
        precision = Fraction(0)
        for value, right in listed:
            if not right:
                continue
            above = [hit for other, hit in listed if other > value]
            ties = [hit for other, hit in listed if other == value]
            others = Fraction(sum(ties) - 1, len(ties) - 1) if len(ties) > 1 else Fraction(0)
            for at in range(len(ties)):
                precision += Fraction(1 + sum(above) + at * others, len(above) + at + 1) / len(ties)
        best = max(value for value, right in listed if right)
        above = sum(value > best for value, _ in listed)
        ties = [hit for value, hit in listed if value == best]
        chances = []
        for rank in RANKS:
            drawn = min(max(rank - above, 0), len(ties))
            missed = Fraction(math.comb(len(ties) - sum(ties), drawn), math.comb(len(ties), drawn))
            chances.append(1 - missed)
        made.append((precision / total, chances))
    return made


@pytest.mark.parametrize("seed", range(6))
def test_retrieval_agrees_with_the_slow_version(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random galleries with ties, junk, distractors, shared cameras and queries in the gallery: equal to 1e-12, block by block."""
    gallery = sightings(90, seed)
    picked = torch.arange(0, 90, 3)
    queries = gallery.of(picked) if seed % 2 else sightings(30, seed + 100)
    if seed % 2 == 0:
        queries = Sightings(queries.directions, queries.people, queries.cameras, queries.images + 1000)
    expected = slow(queries, gallery)
    found = retrieval.search(queries, gallery)
    monkeypatch.setattr(retrieval, "NUMBERS_AT_ONCE", 700)
    again = retrieval.search(queries, gallery)
    assert torch.equal(found.ranks, again.ranks)
    assert any(value is not None for value, _ in expected)
    for row, (value, chances) in enumerate(expected):
        if value is None:
            assert not found.valid[row]
        else:
            assert float(found.precision[row]) == pytest.approx(float(value), abs=1e-12)
        assert found.ranks[row].tolist() == pytest.approx([float(chance) for chance in chances], abs=1e-12)


def test_without_ties_it_is_average_precision_as_scikit_learn_has_it() -> None:
    """On random real similarities every query's average precision is scikit-learn's, to 1e-12."""
    generator = torch.Generator().manual_seed(0)
    similar = torch.randn(20, 300, generator=generator, dtype=torch.float64)
    right = torch.rand(20, 300, generator=generator) < 0.05
    right[:, 0] = True
    precision, _ = retrieval.ranked(similar, right, torch.ones_like(right))
    expected = [average_precision_score(right[row], similar[row]) for row in range(20)]
    assert precision.tolist() == pytest.approx(expected, abs=1e-12)


def test_ties_are_expectations_over_all_orders() -> None:
    """Every ordering of tied images, enumerated: the mean of their precision and ranks is what is returned."""
    for right in product([False, True], repeat=5):
        if not any(right):
            continue
        similar = [0.5, 0.2, 0.2, 0.2, 0.1]
        kept = []
        for order in permutations(range(5)):
            values = [similar[at] for at in order]
            if values == sorted(values, reverse=True):
                hits = [right[at] for at in order]
                found = [sum(hits[: at + 1]) / (at + 1) for at in range(5) if hits[at]]
                kept.append((sum(found) / len(found), float(hits[0])))
        hit = torch.tensor([right])
        precision, ranks = retrieval.ranked(torch.tensor([similar]).double(), hit, torch.ones_like(hit))
        assert float(precision) == pytest.approx(sum(value for value, _ in kept) / len(kept), abs=1e-12)
        assert float(ranks[0, 0]) == pytest.approx(sum(first for _, first in kept) / len(kept), abs=1e-12)


def test_a_collapsed_model_gains_nothing_from_the_order_of_its_gallery() -> None:
    """Where all images look alike, a gallery that happens to list the person first finds nobody more often than chance."""
    vectors = torch.ones(40, 3)
    people = torch.tensor([0] * 4 + [1] * 36)
    seen = Sightings(retrieval.directions(vectors), people, torch.full((40,), NO_CAMERA), torch.arange(40))
    found = retrieval.search(seen.of(torch.tensor([0])), seen)
    assert float(found.ranks[0, 0]) == pytest.approx(3 / 39)


def test_junk_is_passed_over_and_distractors_count() -> None:
    """Before the person's one image stand junk, which changes nothing, or a distractor, which halves the precision."""
    directions = retrieval.directions(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2]]))
    for first, precision in ((JUNK, 1.0), (DISTRACTOR, 0.5), (7, 0.5)):
        seen = Sightings(directions, torch.tensor([3, first, 3]), torch.tensor([0, 0, 1]), torch.arange(3))
        found = retrieval.search(seen.of(torch.tensor([0])), seen)
        assert float(found.precision[0]) == precision


def test_the_own_camera_is_left_out_and_the_own_image_always() -> None:
    """An image of the person on the query's camera is not to be found; without cameras only the query itself is not."""
    directions = retrieval.directions(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2]]))
    people = torch.tensor([3, 3, 5])
    beside = Sightings(directions, people, torch.tensor([2, 2, 0]), torch.arange(3))
    assert not bool(retrieval.search(beside.of(torch.tensor([0])), beside).valid.any())
    unknown = Sightings(directions, people, torch.full((3,), NO_CAMERA), torch.arange(3))
    assert float(retrieval.search(unknown.of(torch.tensor([0])), unknown).precision[0]) == 1.0


def test_an_empty_side_is_refused() -> None:
    """No query or no gallery is an error and no number."""
    seen = sightings(4, 0)
    with pytest.raises(ImuError, match="0 queries"):
        retrieval.search(seen.of(torch.tensor([], dtype=torch.int64)), seen)


# Pairs


def slow_pairs(seen: Sightings) -> list[tuple[int, float]]:
    """Every two images of one person on two cameras: whose, and how alike."""
    found = []
    for one in range(len(seen)):
        for other in range(one + 1, len(seen)):
            same = int(seen.people[one]) == int(seen.people[other]) >= 0
            if same and int(seen.cameras[one]) != int(seen.cameras[other]):
                found.append((int(seen.people[one]), float(seen.directions[one] @ seen.directions[other])))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_pairs_and_their_auc_agree_with_the_slow_version(seed: int) -> None:
    """Means and AUC over the pairs of two random sets with ties are those of loops and of scikit-learn, to 1e-12."""
    ours, theirs = sightings(40, seed), sightings(50, seed + 50, people=6)
    first, second = some_pairs(ours), some_pairs(theirs)
    a, b = first.similar(ours.directions), second.similar(theirs.directions)
    expected = [sorted(value for _, value in slow_pairs(seen)) for seen in (ours, theirs)]
    assert sorted(a.tolist()) == pytest.approx(expected[0], abs=1e-12)
    labels = [1] * len(a) + [0] * len(b)
    found = same_person.auc((first, a.round(decimals=9)), (second, b.round(decimals=9)))
    wanted = roc_auc_score(labels, torch.cat([a, b]).round(decimals=9))
    assert found.value == pytest.approx(wanted, abs=1e-12)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    assert same_person.mean(first, a).value == pytest.approx(sum(expected[0]) / len(expected[0]), abs=1e-12)


def test_pairs_of_a_person_with_many_images_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """More pairs than the bound: so many of them, the same for one seed, each once."""
    monkeypatch.setattr(same_person, "MOST_PAIRS", 20)
    seen = Sightings(torch.eye(30).double(), torch.zeros(30).long(), torch.arange(30), torch.arange(30))
    found = some_pairs(seen, seed=1)
    assert found.drawn
    assert len({tuple(row) for row in found.rows.tolist()}) == 20
    assert torch.equal(found.rows, some_pairs(seen, seed=1).rows)


def test_people_on_one_camera_each_have_no_pair() -> None:
    """Images of one camera each hold no pair."""
    seen = Sightings(torch.eye(4).double(), torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 2, 2]), torch.arange(4))
    assert same_person.pairs(seen) is None


def some_pairs(seen: Sightings, seed: int = 0) -> Pairs:
    """The pairs, which have to be there."""
    found = same_person.pairs(seen, seed)
    assert found is not None
    return found


def test_targets_by_rank_are_unseen_peoples_and_never_higher() -> None:
    """The pairs that rank in the middle get what unseen pairs have in the middle; none is asked to become more alike."""
    similar = torch.tensor([0.9, 0.5, 0.7], dtype=torch.float64)
    assert same_person.by_rank(similar, torch.tensor([0.1, 0.2, 0.3]).double()).tolist() == pytest.approx(
        [0.3, 0.1, 0.2]
    )
    assert same_person.by_rank(similar, torch.tensor([0.95, 0.6, 0.65]).double()).tolist() == pytest.approx(
        [0.9, 0.5, 0.65]
    )
    many = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spread = same_person.by_rank(many + 1, many[:200])
    assert sorted(spread.tolist()) == pytest.approx(
        torch.quantile(many[:200], ((torch.arange(500) + 0.5) / 500).double()).tolist(), abs=0.03
    )


def test_a_paired_difference_of_aucs() -> None:
    """The same people drawn for both: a model against itself differs by nothing in every draw; the value is the difference."""
    ours, theirs = sightings(40, 1), sightings(50, 51, people=6)
    first, second = some_pairs(ours), some_pairs(theirs)
    one = ((first, first.similar(ours.directions)), (second, second.similar(theirs.directions)))
    same = same_person.auc_difference(one, one)
    assert (same.low, same.value, same.high) == (0.0, 0.0, 0.0)
    other = ((first, one[0][1] + 0.5), one[1])
    found = same_person.auc_difference(other, one)
    assert found.value == pytest.approx(same_person.auc(*other).value - same_person.auc(*one).value, abs=1e-12)
    assert found.low is not None
    assert found.low >= 0
    assert same_person.plain_auc(one[0][1], one[1][1]) == pytest.approx(same_person.auc(*one).value, abs=1e-12)


# Intervals


def test_the_interval_of_a_mean_is_what_resampling_gives() -> None:
    """Of 400 values it is nearly the normal interval, and of the same seed the same bits."""
    values = torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = bootstrap.mean(values, "queries")
    half = 1.96 * float(values.std()) / 20
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)
    assert bootstrap.mean(values, "queries") == found


def test_equal_values_prove_as_much_as_their_number() -> None:
    """Five queries that all succeed leave room below 1, as five of five do in a binomial interval."""
    found = bootstrap.mean(torch.ones(5, dtype=torch.float64), "queries")
    assert found.low == pytest.approx(0.025 ** (1 / 5))
    assert found.high == 1.0


def test_intervals_by_person_hold_the_truth() -> None:
    """Eight people of 20 queries whose rates differ from person to person: 95 % intervals hold the mean in 90 % of trials at least."""
    generator = torch.Generator().manual_seed(0)
    held, trials = 0, 120
    for trial in range(trials):
        rates = torch.rand(8, generator=generator, dtype=torch.float64)
        sums = torch.stack([(torch.rand(20, generator=generator) < rate).double().sum() for rate in rates])
        found = bootstrap.ratio(sums, torch.full((8,), 20.0), "people", seed=trial)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.5 <= found.high
    assert held >= 0.9 * trials
