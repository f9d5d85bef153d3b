import math

import pytest
import torch
from cases import CASES, Case

from imu_cli.errors import ImuError
from imu_cli.evaluation import attacks
from imu_cli.linear import margins as subject

# Margins


@pytest.mark.parametrize("case", CASES, ids=str)
def test_margin_is_the_log_odds_of_the_label(case: Case) -> None:
    """φ = log p_y − log(1 − p_y), with 1 − p_y summed over the other classes: exact where p_y itself rounds to 1."""
    h, head, labels = case.make()
    logits = h @ head.T
    log_p = logits.log_softmax(1)
    others = [torch.cat([row[:y], row[y + 1 :]]).logsumexp(0) for row, y in zip(log_p, labels.tolist(), strict=True)]
    expected = log_p[torch.arange(len(h)), labels] - torch.stack(others)
    torch.testing.assert_close(subject.margins(logits, labels), expected, rtol=1e-12, atol=1e-12)


def test_margins_are_float64_at_gaps_that_saturate_float32() -> None:
    """Two float32 samples with logit gaps 30 and 40 keep their order, where float32 probabilities are both 1."""
    logits = torch.tensor([[30.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
    found = subject.margins(logits, torch.tensor([0, 0]))
    expected = torch.tensor([30 - math.log(2), 40 - math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_margin_gradients_equal_finite_differences(case: Case) -> None:
    """B is the slope of φ in every logit, and adding a constant to all logits changes nothing."""
    h, head, labels = case.make()
    logits, step = h @ head.T, 1e-5
    found = subject.margin_gradients(logits, labels)
    for column in range(0, case.c, max(1, case.c // 4)):
        shift = torch.zeros(case.c, dtype=torch.float64)
        shift[column] = step
        slope = (subject.margins(logits + shift, labels) - subject.margins(logits - shift, labels)) / (2 * step)
        torch.testing.assert_close(found[:, column], slope, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(found.sum(1), torch.zeros(case.n, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decision_margin_tells_the_prediction_and_bounds_the_margin(case: Case) -> None:
    """Above 0 exactly where argmax is the label; φ lies below it by at most log(c − 1)."""
    h, head, labels = case.make()
    logits = h @ head.T
    decisions, reached = subject.decision_margins(logits, labels), subject.margins(logits, labels)
    assert torch.equal(decisions > 0, logits.argmax(1) == labels)
    assert bool((reached <= decisions + 1e-12).all())
    assert bool((decisions <= reached + math.log(case.c - 1) + 1e-12).all())


def test_a_correct_sample_may_have_a_margin_below_zero() -> None:
    """With logits 1, 0.9, 0.9 class 0 is predicted though its log-odds are below 0: accuracy is argmax, not φ > 0."""
    logits, label = torch.tensor([[1.0, 0.9, 0.9]]), torch.tensor([0])
    assert float(subject.margins(logits, label)) < 0 < float(subject.decision_margins(logits, label))


# Targets


def test_targets_are_the_held_out_margins_in_rank_order() -> None:
    """With as many unseen samples as forget samples, all lower, each gets exactly the unseen margin of its rank."""
    generator = torch.Generator().manual_seed(0)
    reached = torch.randn(50, generator=generator, dtype=torch.float64) + 10
    held_out = torch.randn(50, generator=generator, dtype=torch.float64)
    targets = subject.coupled_targets(reached, held_out)
    torch.testing.assert_close(targets.sort().values, held_out.sort().values, rtol=1e-12, atol=1e-12)
    assert torch.equal(targets.argsort(), reached.argsort())


@pytest.mark.parametrize("m", [1, 2, 7, 40, 400])
def test_targets_never_lie_above_the_margins(m: int) -> None:
    """Whatever the counts: t ≤ φ, in the order of φ, and inside the held-out range unless φ is below it."""
    generator = torch.Generator().manual_seed(m)
    reached = torch.randn(40, generator=generator, dtype=torch.float64)
    held_out = torch.randn(m, generator=generator, dtype=torch.float64)
    targets = subject.coupled_targets(reached, held_out)
    assert bool((targets <= reached).all())
    assert bool((targets[reached.argsort()].diff() >= 0).all())
    assert bool((targets >= torch.minimum(held_out.min(), reached)).all())


def test_permuting_samples_permutes_targets() -> None:
    """A target belongs to a sample, not to a row; nor does the order of the held-out samples matter."""
    generator = torch.Generator().manual_seed(2)
    reached = torch.randn(30, generator=generator, dtype=torch.float64)
    held_out = torch.randn(70, generator=generator, dtype=torch.float64)
    rows = torch.randperm(30, generator=generator)
    assert torch.equal(
        subject.coupled_targets(reached[rows], held_out.flip(0)), subject.coupled_targets(reached, held_out)[rows]
    )


def test_equal_margins_share_the_mean_of_their_quantiles() -> None:
    """Duplicates get one target, also where the last bit of their margins differs."""
    reached = torch.tensor([5.0, 9.0, 5.0 + 1e-15, 7.0], dtype=torch.float64)
    held_out = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    expected = torch.tensor([1.5, 4.0, 1.5, 3.0], dtype=torch.float64)
    torch.testing.assert_close(subject.coupled_targets(reached, held_out), expected, rtol=0, atol=1e-12)


def test_weights_that_are_counts_equal_repeated_samples() -> None:
    """Between steps of the quantile function, weighting an unseen sample k times is the same as having it k times."""
    held_out = torch.tensor([-3.0, -1.0, 2.0, 6.0], dtype=torch.float64)
    counts = torch.tensor([2, 3, 1, 4])
    reached = torch.arange(100, 110, dtype=torch.float64)
    weighted = subject.coupled_targets(reached, held_out, counts.to(torch.float64))
    repeated = subject.coupled_targets(reached, held_out.repeat_interleave(counts))
    assert float((weighted - repeated).abs().mean()) < 1.2  # linear between mid-ranks, not a staircase
    assert abs(float(weighted.mean() - repeated.mean())) < 0.25


def test_samples_of_weight_zero_are_as_if_absent() -> None:
    """Unseen samples of classes that D_f does not hold set no target."""
    generator = torch.Generator().manual_seed(4)
    reached = torch.randn(12, generator=generator, dtype=torch.float64) + 4
    held_out = torch.randn(20, generator=generator, dtype=torch.float64)
    weights = (torch.arange(20) % 2).to(torch.float64)
    found = subject.coupled_targets(reached, held_out, weights)
    torch.testing.assert_close(found, subject.coupled_targets(reached, held_out[1::2]), rtol=0, atol=1e-12)


def test_floor_binds_only_below_it() -> None:
    """With a floor no sample is asked to go below it, the others keep their targets, and none is asked to rise."""
    reached = torch.tensor([-6.0, 2.0, 5.0, 9.0], dtype=torch.float64)
    held_out = torch.tensor([-9.0, -8.0, -1.0, 3.0], dtype=torch.float64)
    found = subject.coupled_targets(reached, held_out, floor=-4.0)
    torch.testing.assert_close(found, torch.tensor([-6.0, -4.0, -1.0, 3.0], dtype=torch.float64), rtol=0, atol=1e-12)


def test_class_match_gives_the_held_out_data_the_classes_of_the_forget_set() -> None:
    """The weighted class counts of the held-out samples are those of D_f; other classes weigh 0."""
    labels, held_out = torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 1, 2, 2, 1])
    weights = subject.class_match(labels, held_out)
    totals = torch.zeros(3, dtype=torch.float64).index_add_(0, held_out, weights)
    assert totals.tolist() == [3.0, 0.0, 1.0]


def test_class_match_moves_the_target_of_an_uneven_forget_set() -> None:
    """D_f of hard samples alone is matched with unseen hard samples, not with the average of all classes."""
    held_out = torch.tensor([-2.0, -1.0, 0.0, 8.0, 9.0, 10.0, 11.0, 12.0], dtype=torch.float64)
    held_labels = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0])
    reached, labels = torch.tensor([20.0, 21.0, 22.0], dtype=torch.float64), torch.tensor([1, 1, 1])
    matched = subject.coupled_targets(reached, held_out, subject.class_match(labels, held_labels))
    torch.testing.assert_close(matched, held_out[:3], rtol=0, atol=1e-12)
    assert float(subject.coupled_targets(reached, held_out).mean()) > float(matched.mean()) + 5


def test_a_class_without_held_out_samples_is_refused() -> None:
    """There is no unseen margin to give to a class that the held-out data lacks; the message names it."""
    with pytest.raises(ImuError, match="no sample of class 3, which the forget"):
        subject.class_match(torch.tensor([3, 0]), torch.tensor([0, 1]))


@pytest.mark.parametrize("held_out", [[], [1.0, math.nan]])
def test_held_out_margins_must_exist_and_be_finite(held_out: list[float]) -> None:
    """Without one finite unseen margin there is nothing to couple to."""
    with pytest.raises(ImuError, match="no finite held-out margins"):
        subject.coupled_targets(torch.ones(3, dtype=torch.float64), torch.tensor(held_out, dtype=torch.float64))


@pytest.mark.parametrize("accuracy", [0.0, 0.29, 0.5, 0.92, 0.99])
def test_shift_is_one_constant_that_leaves_the_wanted_share(accuracy: float) -> None:
    """Every margin falls by the same amount, after which floor(n · accuracy) of the decisions are above 0: 29 of 100."""
    case = Case(100, 10, 7, True, 25.0)
    h, head, _ = case.make()
    logits = h @ head.T
    labels = logits.argmax(1)
    reached, decisions = subject.margins(logits, labels), subject.decision_margins(logits, labels)
    shift = reached - subject.shifted_targets(reached, accuracy, decisions)
    torch.testing.assert_close(shift, shift[:1].expand(100), rtol=0, atol=1e-12)
    assert int((decisions - shift > 1e-12).sum()) == round(100 * accuracy)


def test_shift_refuses_what_is_met_already_and_what_is_no_share() -> None:
    """A target at or above the present accuracy would push nothing, or upwards."""
    reached = torch.tensor([1.0, 2.0, -1.0, -2.0], dtype=torch.float64)
    with pytest.raises(ImuError, match=r"2 of 4 are predicted as their label, accuracy 0\.5 is met"):
        subject.shifted_targets(reached, 0.5)
    with pytest.raises(ImuError, match="not a share"):
        subject.shifted_targets(reached, 92.0)


def test_confusion_reference_is_unseen_samples_of_the_true_label_scored_for_the_wrong_one() -> None:
    """For each pair (u, y) of D_f: margins of y on held-out samples of u, in proportion; the rate is by argmax."""
    case = Case(40, 10, 7, True, 3.0)
    _, held_labels, logits = case.unseen(200)
    wrong, true = torch.tensor([1, 1, 2, 1]), torch.tensor([0, 0, 0, 3])
    found = subject.confusion_reference(logits, held_labels, wrong, true)
    rate, total, weighted = 0.0, 0.0, 0.0
    for u, y, count in ((0, 1, 2), (0, 2, 1), (3, 1, 1)):
        rows = logits[held_labels == u]
        rate += count * float((rows.argmax(1) == y).double().mean()) / 4
        weighted += count * float(subject.margins(rows, torch.full((len(rows),), y)).mean())
        total += count
    assert found.rate == pytest.approx(rate, abs=1e-12)
    assert float(found.weights.sum()) == pytest.approx(total, abs=1e-12)
    assert float((found.weights * found.margins).sum()) == pytest.approx(weighted, abs=1e-9)


def test_confusion_reference_without_true_labels_uses_every_other_label() -> None:
    """Where only the wrong label is known, unseen samples of that label are left out and all others count alike."""
    case = Case(40, 10, 7, True, 3.0)
    _, held_labels, logits = case.unseen(200)
    found = subject.confusion_reference(logits, held_labels, torch.tensor([4, 4, 4]))
    rows = logits[held_labels != 4]
    torch.testing.assert_close(found.margins, subject.margins(rows, torch.full((len(rows),), 4)), rtol=0, atol=1e-12)
    assert found.rate == pytest.approx(float((rows.argmax(1) == 4).double().mean()), abs=1e-12)


def test_a_confusion_that_held_out_data_cannot_show_is_refused() -> None:
    """No unseen sample of the true label: its confusion rate is unknown."""
    with pytest.raises(ImuError, match="how often class 7 is taken for 1"):
        subject.confusion_reference(torch.zeros(2, 9), torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([7]))


def test_error_weights_are_the_probability_of_another_label() -> None:
    """ω = 1 − p_y at the target's log-odds: ½ on the boundary, 1 far below, e⁻ᵗ far above."""
    found = subject.error_weights(torch.tensor([-50.0, 0.0, 20.0], dtype=torch.float64))
    expected = torch.tensor([1.0, 0.5, math.exp(-20)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


# The attack that the targets are to defeat


def test_weighted_auc_is_the_attack_s_own_on_equal_weights() -> None:
    """With equal weights it is the AUC that evaluate measures, ties counted half."""
    generator = torch.Generator().manual_seed(0)
    mine = torch.randint(-3, 5, (40,), generator=generator).double()
    theirs = torch.randint(-4, 4, (70,), generator=generator).double()
    found = subject.weighted_auc(mine, theirs, torch.full((70,), 0.3, dtype=torch.float64))
    assert found == pytest.approx(attacks.auc(mine, theirs).value, abs=1e-12)


def test_weighted_auc_counts_a_weight_as_so_many_samples() -> None:
    """Integer weights equal repeated samples; a weight of 0 an absent one."""
    mine, theirs = torch.tensor([0.5, 2.0, 2.0]).double(), torch.tensor([0.0, 2.0, 1.0, 9.0]).double()
    repeated = torch.tensor([0.0, 0.0, 2.0, 1.0, 1.0, 1.0]).double()
    found = subject.weighted_auc(mine, theirs, torch.tensor([2.0, 1.0, 3.0, 0.0]).double())
    assert found == pytest.approx(attacks.auc(mine, repeated).value, abs=1e-12)


def test_coupled_targets_leave_nothing_to_tell_by() -> None:
    """Margins that all lie above the held-out ones come down to an AUC of one half, whatever the classes' shares."""
    generator = torch.Generator().manual_seed(1)
    labels, held = (torch.randint(0, 3, (n,), generator=generator) for n in (30, 400))
    theirs = torch.randn(400, generator=generator, dtype=torch.float64) + held
    weights = subject.class_match(labels, held)
    mine = torch.randn(30, generator=generator, dtype=torch.float64) + 20
    assert subject.weighted_auc(mine, theirs, weights) == pytest.approx(1, abs=1e-12)
    targets = subject.coupled_targets(mine, theirs, weights)
    assert subject.weighted_auc(targets, theirs, weights) == pytest.approx(0.5, abs=0.01)
