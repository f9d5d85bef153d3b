import math
import time
from itertools import pairwise

import pytest
import torch
from cases import CASES, Case

from imu_cli import matched as subject
from imu_cli.errors import ImuError

SMALL = [case for case in CASES if case.c <= 10]
EXACT = {"linearisations": 200, "tolerance": 1e-12, "cg_tolerance": 1e-10}


def unseen(case: Case, m: int = 60):
    """Features, labels and logits of samples that the head was not asked to fit: the labels are random."""
    generator = torch.Generator().manual_seed(case.c)
    _, head, _ = case.make()
    h = torch.rand(m, head.shape[1], generator=generator, dtype=torch.float64)
    if case.bias:
        h[:, -1] = 1
    return h, torch.randint(0, case.c, (m,), generator=generator), h @ head.T


def problem_of(case: Case, *, class_factor: bool = False, weighted: bool = False, targets=None) -> subject.Problem:
    h, head, labels = case.make()
    held_h, held_labels, held_logits = unseen(case)
    reached = subject.margins(h @ head.T, labels)
    if targets is None:
        targets = subject.coupled_targets(reached, subject.margins(held_logits, held_labels))
    return subject.prepare(
        h,
        labels,
        head,
        targets,
        subject.second_moment(held_h),
        curvature=subject.class_curvature(held_logits.softmax(1)) if class_factor else None,
        weights=subject.error_weights(targets, 3.0) if weighted else None,
    )


def metric_of(problem: subject.Problem) -> torch.Tensor:
    """C̃ ⊗ Σ̃ over the flattened head, from the Cholesky factors multiplied out."""
    sigma = problem.feature_factor.cholesky @ problem.feature_factor.cholesky.T
    classes = problem.class_factor.cholesky @ problem.class_factor.cholesky.T
    return torch.kron(classes.contiguous(), sigma.contiguous())


def jacobian_of(problem: subject.Problem, head: torch.Tensor) -> torch.Tensor:
    """Explicit ∂φ/∂W (n, c(d+1)) by autograd."""

    def of_head(flat):
        return subject.margins(problem.features @ flat.view_as(head).T, problem.labels)

    return torch.autograd.functional.jacobian(of_head, head.reshape(-1))


def kernel_of(problem: subject.Problem, head: torch.Tensor) -> torch.Tensor:
    """K = J (C̃ ⊗ Σ̃)⁻¹ Jᵀ, explicitly."""
    J = jacobian_of(problem, head)
    return J @ torch.linalg.solve(metric_of(problem), J.T)


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
    _, held_labels, logits = unseen(case, 200)
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
    _, held_labels, logits = unseen(case, 200)
    found = subject.confusion_reference(logits, held_labels, torch.tensor([4, 4, 4]))
    rows = logits[held_labels != 4]
    torch.testing.assert_close(found.margins, subject.margins(rows, torch.full((len(rows),), 4)), rtol=0, atol=0)
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


# Curvature


def test_second_moment_is_the_mean_change_of_the_logits() -> None:
    """The mean of ‖ΔW h‖² over samples is tr(ΔW Σ ΔWᵀ)."""
    generator = torch.Generator().manual_seed(0)
    h, delta = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((30, 5), (4, 5)))
    seen = sum(float((delta @ row).square().sum()) for row in h) / 30
    assert float(torch.trace(delta @ subject.second_moment(h) @ delta.T)) == pytest.approx(seen, rel=1e-12)


def test_class_curvature_is_the_mean_hessian_of_cross_entropy_in_the_logits() -> None:
    """C averages diag(p) − p pᵀ over samples."""
    P = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1)
    expected = torch.stack([torch.diag(p) - torch.outer(p, p) for p in P]).mean(0)
    torch.testing.assert_close(subject.class_curvature(P), expected, rtol=0, atol=1e-14)


def test_damped_factor_reports_the_condition_of_what_it_factorises() -> None:
    """L Lᵀ = M + λ mean(diag M) I, and the condition number is that matrix's own."""
    h = torch.randn(30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moment = subject.second_moment(h)
    damped = moment + 0.05 * moment.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    factor = subject.damped_factor(moment, 0.05)
    torch.testing.assert_close(factor.cholesky @ factor.cholesky.T, damped, rtol=1e-12, atol=1e-14)
    assert factor.condition == pytest.approx(float(torch.linalg.cond(damped)), rel=1e-9)
    torch.testing.assert_close(factor.inverse @ factor.cholesky, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_singular_curvature_without_damping_is_refused() -> None:
    """The class factor is singular by construction; undamped it has no inverse, and the message says what to raise."""
    with pytest.raises(ImuError, match="not positive definite with damping 0; raise the damping"):
        subject.damped_factor(torch.zeros(3, 3, dtype=torch.float64), 0.0)


# The solve


@pytest.mark.parametrize("class_factor", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_one_linearisation_is_the_brute_force_damped_least_squares(
    case: Case, weighted: bool, class_factor: bool
) -> None:
    """ΔW minimises ‖Ω^½(J ΔW − (t − φ))‖² + r ΔWᵀ(C̃ ⊗ Σ̃)ΔW with explicit Jacobians from autograd, stacked and solved."""
    problem = problem_of(case, class_factor=class_factor, weighted=weighted)
    rho = 3.0  # large enough that the full step is taken
    J, root = jacobian_of(problem, problem.head), problem.weights.sqrt()
    gap = problem.targets - subject.margins(problem.features @ problem.head.T, problem.labels)
    ridge = rho * float((problem.weights * kernel_of(problem, problem.head).diagonal()).mean())
    penalty = math.sqrt(ridge) * torch.linalg.cholesky(metric_of(problem)).T
    stacked = torch.cat([root[:, None] * J, penalty])
    right = torch.cat([root * gap, gap.new_zeros(len(penalty))])
    expected = torch.linalg.lstsq(stacked, right[:, None], driver="gelsd").solution.view_as(problem.head)
    found = subject.solve(problem, rho, form="dual", linearisations=1).head - problem.head
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("class_factor", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_dual_blocked_and_primal_agree(case: Case, weighted: bool, class_factor: bool) -> None:
    """Three ways to solve one system: heads and strengths are equal to 1e-8."""
    problem = problem_of(case, class_factor=class_factor, weighted=weighted)
    dual, blocked, primal = (
        subject.solve(problem, 0.3, form=form, linearisations=4, tolerance=0.0, cg_tolerance=1e-13)
        for form in ("dual", "blocked", "primal")
    )
    for other in (blocked, primal):
        torch.testing.assert_close(other.head, dual.head, rtol=1e-8, atol=1e-8 * float(dual.head.abs().max()))
        size = max(float(dual.strengths.abs().max()), 1e-12)
        torch.testing.assert_close(other.strengths, dual.strengths, rtol=1e-8, atol=1e-8 * size)


@pytest.mark.parametrize("case", [Case(40, 10, 7, True, 3.0), Case(7, 10, 7, False, 25.0)], ids=str)
def test_the_end_is_a_stationary_point_of_the_stated_objective(case: Case) -> None:
    """Re-linearised to the end, the gradient of r tr(C̃ΔWΣ̃ΔWᵀ) + Σω(φ − t)² by autograd is 0 beside its start."""
    problem = problem_of(case, class_factor=True, weighted=True)
    solution = subject.solve(problem, 0.3, **EXACT)
    assert solution.converged
    metric, ridge = metric_of(problem), 0.3 * problem.scale

    def slope(head):
        leaf = head.clone().requires_grad_(True)
        change = (leaf - problem.head).reshape(-1)
        error = subject.margins(problem.features @ leaf.T, problem.labels) - problem.targets
        (ridge * change @ metric @ change + (problem.weights * error.square()).sum()).backward()
        return leaf.grad.norm()

    assert float(slope(solution.head)) < 1e-8 * float(slope(problem.head))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_change_is_the_sum_of_what_the_samples_push(case: Case) -> None:
    """The whole ΔW, not its last increment, is Σ_i α_i C̃⁻¹B_i (Σ̃⁻¹h_i)ᵀ with the gradients of the last linearisation."""
    problem = problem_of(case, class_factor=True)
    before = subject.solve(problem, 3.0, linearisations=2).head
    solution = subject.solve(problem, 3.0, linearisations=1, start=before, form="dual")
    pushed = jacobian_of(problem, before).T @ solution.strengths
    expected = torch.linalg.solve(metric_of(problem), pushed).view_as(problem.head)
    change = solution.head - problem.head
    torch.testing.assert_close(change, expected, rtol=1e-8, atol=1e-10 * max(1.0, float(change.abs().max())))


@pytest.mark.parametrize("form", ["dual", "blocked", "primal"])
def test_permuting_samples_permutes_strengths(form: subject.Form) -> None:
    """A strength belongs to a sample, not to a row, and the head does not change."""
    case = Case(40, 10, 7, True, 3.0)
    problem = problem_of(case)
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moment = problem.feature_factor.cholesky @ problem.feature_factor.cholesky.T
    shuffled, straight = (
        subject.prepare(problem.features[i], problem.labels[i], problem.head, problem.targets[i], moment, damping=0.0)
        for i in (rows, torch.arange(40))
    )
    options = {"form": form, "linearisations": 3, "tolerance": 0.0, "cg_tolerance": 1e-12}
    one, other = subject.solve(straight, 0.3, **options), subject.solve(shuffled, 0.3, **options)
    torch.testing.assert_close(other.strengths, one.strengths[rows], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(other.head, one.head, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("form", ["dual", "blocked", "primal"])
def test_duplicated_samples_share_their_strength(form: subject.Form) -> None:
    """D_f given twice, at twice the ρ: every copy has half the strength, the head is the same, copies are equal."""
    case = Case(40, 10, 7, True, 3.0)
    once = problem_of(case)
    moment = once.feature_factor.cholesky @ once.feature_factor.cholesky.T
    twice = subject.prepare(
        once.features.repeat(2, 1), once.labels.repeat(2), once.head, once.targets.repeat(2), moment, damping=0.0
    )
    one = subject.solve(once, 0.3, form=form, **EXACT)
    two = subject.solve(twice, 0.6, form=form, **EXACT)
    torch.testing.assert_close(two.head, one.head, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(two.strengths[:40], two.strengths[40:], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(two.strengths[:40] * 2, one.strengths, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("class_factor", [False, True])
def test_with_little_damping_every_margin_meets_its_target(class_factor: bool) -> None:
    """Below capacity, ρ → 0: all margins are at their targets, the pushed ones and those that were there already."""
    case = Case(20, 10, 12, True, 8.0)
    h, head, labels = case.make()
    reached = subject.margins(h @ head.T, labels)
    targets = reached - 2.0
    targets[::2] = reached[::2]
    problem = problem_of(case, class_factor=class_factor, targets=targets)
    solution = subject.solve(problem, 1e-10, linearisations=100, tolerance=1e-4)
    assert solution.converged
    torch.testing.assert_close(solution.margins, targets, rtol=0, atol=1e-6)
    torch.testing.assert_close(solution.margins[::2], reached[::2], rtol=0, atol=1e-6)
    assert solution.residuals[0] > 1 > 1e-6 > solution.residuals[-1]


def test_a_sample_that_is_held_is_a_constraint_and_not_left_out() -> None:
    """Leaving the samples at their target out of the system moves their margins; keeping them in holds them."""
    case = Case(20, 10, 12, True, 8.0)
    h, head, labels = case.make()
    reached = subject.margins(h @ head.T, labels)
    targets = torch.where(torch.arange(20) % 2 == 0, reached, reached - 2.0)
    held = problem_of(case, targets=targets)
    moment = held.feature_factor.cholesky @ held.feature_factor.cholesky.T
    alone = subject.prepare(h[1::2], labels[1::2], head, targets[1::2], moment, damping=0.0)
    with_them = subject.solve(held, 1e-10, **EXACT).head
    without = subject.solve(alone, 1e-10, **EXACT).head
    drift = [(subject.margins(h[::2] @ w.T, labels[::2]) - reached[::2]).abs().max() for w in (with_them, without)]
    assert float(drift[0]) < 1e-6
    assert float(drift[1]) > 0.1


def test_nothing_to_push_leaves_the_head_as_it_is() -> None:
    """Targets equal to the margins: no strength, no change, converged."""
    case = Case(7, 10, 7, True, 3.0)
    h, head, labels = case.make()
    solution = subject.solve(problem_of(case, targets=subject.margins(h @ head.T, labels)), 0.1)
    assert torch.equal(solution.head, head)
    assert solution.converged
    assert float(solution.strengths.abs().max()) == 0


def test_less_damping_comes_nearer_and_changes_more() -> None:
    """Along falling ρ the weighted error falls and the change in the metric grows, strictly."""
    problem = problem_of(Case(40, 10, 7, True, 8.0), weighted=True)
    metric, errors, changes = metric_of(problem), [], []
    for rho in (10.0, 1.0, 0.1, 0.01):
        solution = subject.solve(problem, rho, **EXACT)
        change = (solution.head - problem.head).reshape(-1)
        errors.append(float((problem.weights * (solution.margins - problem.targets).square()).sum()))
        changes.append(float(change @ metric @ change))
    assert errors == sorted(errors, reverse=True)
    assert changes == sorted(changes)


def test_the_objective_never_rises_where_full_steps_would_diverge() -> None:
    """At little damping and far targets full Gauss–Newton steps overshoot; the line search keeps every step downhill."""
    case = Case(40, 10, 7, True, 25.0)
    h, head, labels = case.make()
    targets = subject.margins(h @ head.T, labels) - 20
    problem, rho = problem_of(case, targets=targets), 1e-3
    metric = metric_of(problem)

    def objective(w):
        change = (w - head).reshape(-1)
        error = subject.margins(h @ w.T, labels) - targets
        return float(error.square().sum() + rho * problem.scale * change @ metric @ change)

    J = jacobian_of(problem, head)
    full = torch.linalg.solve(J.T @ J + rho * problem.scale * metric, J.T @ torch.full((40,), -20.0).double())
    assert objective(head + full.view_as(head)) > objective(head)
    values = [objective(subject.solve(problem, rho, linearisations=k, tolerance=0.0).head) for k in range(1, 8)]
    assert values[0] < objective(head)
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(values))


def test_a_warm_start_does_not_change_the_answer() -> None:
    """ΔW is solved for as a whole from the original head: starting at another ρ's solution ends at the same head."""
    problem = problem_of(Case(40, 10, 7, True, 8.0))
    cold = subject.solve(problem, 0.1, **EXACT)
    warm = subject.solve(problem, 0.1, start=subject.solve(problem, 1.0).head, **EXACT)
    torch.testing.assert_close(warm.head, cold.head, rtol=1e-8, atol=1e-9)


def test_too_few_linearisations_are_said() -> None:
    """One step on far targets is not converged; many are, and the residuals have one entry more than steps."""
    problem = problem_of(Case(40, 10, 7, True, 25.0))
    short, long = (subject.solve(problem, 0.01, linearisations=k) for k in (1, 100))
    assert not short.converged
    assert len(short.residuals) == 2
    assert long.converged
    assert long.residuals[-1] < long.residuals[0]


def test_beyond_capacity_the_distance_is_reported() -> None:
    """More margins than a head can set: the residual stays away from 0 at any ρ; capacity is the Jacobian's rank."""
    case = Case(300, 3, 4, True, 8.0)
    h, head, labels = case.make()
    targets = subject.margins(h @ head.T, labels)
    targets = targets - 3 * torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = problem_of(case, targets=targets)
    assert problem.capacity == int(torch.linalg.matrix_rank(jacobian_of(problem, head)))
    assert subject.solve(problem, 1e-6, linearisations=50).residuals[-1] > 0.3


def test_condition_is_that_of_the_metric() -> None:
    """The reported number is the condition of C̃ ⊗ Σ̃."""
    problem = problem_of(Case(7, 10, 7, True, 3.0), class_factor=True)
    assert problem.condition == pytest.approx(float(torch.linalg.cond(metric_of(problem))), rel=1e-6)


@pytest.mark.parametrize(
    ("samples", "unknowns", "form"),
    [(37, 650, "dual"), (5000, 650, "primal"), (5000, 5130, "blocked"), (50_000, 5130, "blocked"), (650, 650, "dual")],
)
def test_form_follows_size(samples: int, unknowns: int, form: str) -> None:
    """Whichever of samples and unknowns is small is solved directly; where neither is, conjugate gradients."""
    assert subject.choose_form(samples, unknowns) == form


def test_wrong_use_is_refused_and_says_where() -> None:
    """Rows that do not belong together, a non-finite row, a head without margins, weights and ρ out of range."""
    case = Case(7, 10, 7, True, 3.0)
    h, head, labels = case.make()
    moment, targets = subject.second_moment(h), subject.margins(h @ head.T, labels) - 1
    spoilt = h.clone()
    spoilt[4, 2] = math.nan
    with pytest.raises(ImuError, match="row 4: features not finite"):
        subject.prepare(spoilt, labels, head, targets, moment)
    with pytest.raises(ImuError, match="7 features, 7 labels, 6 targets"):
        subject.prepare(h, labels, head, targets[:6], moment)
    with pytest.raises(ImuError, match="one output"):
        subject.prepare(h, labels, head[:1], targets, moment)
    with pytest.raises(ImuError, match="weights below 0, or all 0"):
        subject.prepare(h, labels, head, targets, moment, weights=-torch.ones(7))
    problem = subject.prepare(h, labels, head, targets, moment)
    for rho in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ImuError, match="not a damping"):
            subject.solve(problem, rho)


# The path


def test_path_closes_in_on_the_largest_rho_that_meets_the_target() -> None:
    """Every step is yielded with its verdict; the chosen one meets the target, a little more damping does not."""
    problem = problem_of(Case(40, 10, 7, True, 8.0))
    wanted = 0.5 * float((problem.targets - subject.margins(problem.features @ problem.head.T, problem.labels)).norm())

    def look(solution: subject.Solution) -> subject.Verdict:
        return "met" if float((problem.targets - solution.margins).norm()) <= wanted else "more"

    steps = list(subject.path(problem, look, bisections=8))
    chosen = subject.chosen(steps)
    assert chosen is not None
    assert chosen.verdict == "met"
    more = [step.solution.rho for step in steps if step.verdict == "more"]
    assert chosen.solution.rho < min(more) < chosen.solution.rho * 1.02
    again = subject.solve(problem, chosen.solution.rho * 1.05, linearisations=50)
    assert look(again) == "more"


def test_path_stays_within_the_budget() -> None:
    """Where the budget is spent before the target is met, the smallest ρ within it is chosen, refined the same way."""
    problem = problem_of(Case(40, 10, 7, True, 8.0))

    def look(solution: subject.Solution) -> subject.Verdict:
        return "spent" if float((solution.head - problem.head).norm()) > 0.3 * float(problem.head.norm()) else "more"

    chosen = subject.chosen(list(subject.path(problem, look, bisections=8)))
    assert chosen is not None
    assert chosen.verdict == "more"
    assert 0.29 < float((chosen.solution.head - problem.head).norm() / problem.head.norm()) <= 0.3


def test_path_finds_a_target_between_budget_and_grid() -> None:
    """A grid point that overspends hides a target met at a larger ρ: the bisection finds it."""
    problem = problem_of(Case(40, 10, 7, True, 8.0))

    def look(solution: subject.Solution) -> subject.Verdict:
        return "more" if solution.rho > 2.0 else "met" if solution.rho > 1.5 else "spent"

    chosen = subject.chosen(list(subject.path(problem, look, rhos=(10.0, 1.0))))
    assert chosen is not None
    assert chosen.verdict == "met"


def test_path_ends() -> None:
    """It stops at once where the first step is enough or too much, and walks the grid once where nothing happens."""
    problem = problem_of(Case(7, 10, 7, True, 3.0))
    assert len(list(subject.path(problem, lambda _: "met"))) == 1
    assert subject.chosen(subject.path(problem, lambda _: "spent")) is None
    walked = [step.solution.rho for step in subject.path(problem, lambda _: "more")]
    assert walked == sorted(subject.RHO_PATH, reverse=True)


# Influence made visible


@pytest.mark.parametrize("rows_at_once", [1, 16, 512])
def test_kernel_rows_are_the_largest_entries_of_the_explicit_kernel(rows_at_once: int) -> None:
    """K_ii, and for every sample the others by |K_ij α_j| with its sign, from the kernel formed with autograd."""
    problem = problem_of(Case(40, 10, 7, True, 3.0), class_factor=True)
    solution = subject.solve(problem, 0.3)
    found = subject.kernel_rows(problem, solution.strengths, top=4, rows_at_once=rows_at_once)
    kernel = kernel_of(problem, problem.head)
    torch.testing.assert_close(found.self_influence, kernel.diagonal(), rtol=1e-9, atol=1e-12)
    effect = (kernel * solution.strengths).fill_diagonal_(0.0)
    for row in range(40):
        expected = effect[row].abs().argsort(descending=True)[:4]
        assert found.movers[row].tolist() == expected.tolist()
        torch.testing.assert_close(found.moved[row], effect[row, expected], rtol=1e-8, atol=1e-12)


def test_kernel_rows_of_one_sample_name_no_other() -> None:
    """A single sample is moved by itself alone."""
    problem = problem_of(Case(1, 10, 7, True, 3.0))
    assert subject.kernel_rows(problem, torch.ones(1, dtype=torch.float64)).movers.shape == (1, 0)


@pytest.mark.slow
def test_five_thousand_samples_take_under_thirty_seconds() -> None:
    """Three values of ρ at n = 5,000, d = 512, c = 10, without the n × n kernel, within a minute of processor time."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 512, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 10, (5000,), generator=generator)
    h = torch.relu(0.35 * centres[labels] + torch.randn(5000, 512, generator=generator, dtype=torch.float64))
    h, head = (torch.cat([x, x.new_ones(len(x), 1)], 1) for x in (h, 0.35 * centres))
    targets = subject.margins(h @ head.T, labels) - 2
    began = time.process_time()
    problem = subject.prepare(
        h, labels, head, targets, subject.second_moment(h), weights=subject.error_weights(targets)
    )
    assert {subject.solve(problem, rho).form for rho in (10.0, 1.0, 0.1)} == {"blocked"}
    assert time.process_time() - began < 60  # two cores
