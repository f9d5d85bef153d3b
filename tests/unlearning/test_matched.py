import math
import time
from itertools import pairwise

import pytest
import torch
from cases import CASES, Case

from imu_cli.errors import ImuError
from imu_cli.linear import margins
from imu_cli.unlearning.matched import kernel as kernel_module
from imu_cli.unlearning.matched import path, solvers
from imu_cli.unlearning.matched import problem as problem_module

SMALL = [case for case in CASES if case.c <= 10]
EXACT = {"linearisations": 200, "tolerance": 1e-12, "cg_tolerance": 1e-10}


def problem_of(
    case: Case, *, class_factor: bool = False, weighted: bool = False, targets=None
) -> problem_module.Problem:
    h, head, labels = case.make()
    held_h, held_labels, held_logits = case.unseen()
    reached = margins.margins(h @ head.T, labels)
    if targets is None:
        targets = margins.coupled_targets(reached, margins.margins(held_logits, held_labels))
    return problem_module.prepare(
        h,
        labels,
        head,
        targets,
        problem_module.second_moment(held_h),
        curvature=problem_module.class_curvature(held_logits.softmax(1)) if class_factor else None,
        weights=margins.error_weights(targets, 3.0) if weighted else None,
    )


def metric_of(problem: problem_module.Problem) -> torch.Tensor:
    """C̃ ⊗ Σ̃ over the flattened head, from the Cholesky factors multiplied out."""
    sigma = problem.feature_factor.cholesky @ problem.feature_factor.cholesky.T
    classes = problem.class_factor.cholesky @ problem.class_factor.cholesky.T
    return torch.kron(classes.contiguous(), sigma.contiguous())


def jacobian_of(problem: problem_module.Problem, head: torch.Tensor) -> torch.Tensor:
    """Explicit ∂φ/∂W (n, c(d+1)) by autograd."""

    def of_head(flat):
        return margins.margins(problem.features @ flat.view_as(head).T, problem.labels)

    return torch.autograd.functional.jacobian(of_head, head.reshape(-1))


def kernel_of(problem: problem_module.Problem, head: torch.Tensor) -> torch.Tensor:
    """K = J (C̃ ⊗ Σ̃)⁻¹ Jᵀ, explicitly."""
    J = jacobian_of(problem, head)
    return J @ torch.linalg.solve(metric_of(problem), J.T)


# Curvature


def test_second_moment_is_the_mean_change_of_the_logits() -> None:
    """The mean of ‖ΔW h‖² over samples is tr(ΔW Σ ΔWᵀ)."""
    generator = torch.Generator().manual_seed(0)
    h, delta = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((30, 5), (4, 5)))
    seen = sum(float((delta @ row).square().sum()) for row in h) / 30
    assert float(torch.trace(delta @ problem_module.second_moment(h) @ delta.T)) == pytest.approx(seen, rel=1e-12)


def test_class_curvature_is_the_mean_hessian_of_cross_entropy_in_the_logits() -> None:
    """C averages diag(p) − p pᵀ over samples."""
    P = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1)
    expected = torch.stack([torch.diag(p) - torch.outer(p, p) for p in P]).mean(0)
    torch.testing.assert_close(problem_module.class_curvature(P), expected, rtol=0, atol=1e-14)


def test_damped_factor_reports_the_condition_of_what_it_factorises() -> None:
    """L Lᵀ = M + λ mean(diag M) I, and the condition number is that matrix's own."""
    h = torch.randn(30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moment = problem_module.second_moment(h)
    damped = moment + 0.05 * moment.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    factor = problem_module.damped_factor(moment, 0.05)
    torch.testing.assert_close(factor.cholesky @ factor.cholesky.T, damped, rtol=1e-12, atol=1e-14)
    assert factor.condition == pytest.approx(float(torch.linalg.cond(damped)), rel=1e-9)
    torch.testing.assert_close(factor.inverse @ factor.cholesky, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_singular_curvature_without_damping_is_refused() -> None:
    """The class factor is singular by construction; undamped it has no inverse, and the message says what to raise."""
    with pytest.raises(ImuError, match="not positive definite with damping 0; raise the damping"):
        problem_module.damped_factor(torch.zeros(3, 3, dtype=torch.float64), 0.0)


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
    gap = problem.targets - margins.margins(problem.features @ problem.head.T, problem.labels)
    ridge = rho * float((problem.weights * kernel_of(problem, problem.head).diagonal()).mean())
    penalty = math.sqrt(ridge) * torch.linalg.cholesky(metric_of(problem)).T
    stacked = torch.cat([root[:, None] * J, penalty])
    right = torch.cat([root * gap, gap.new_zeros(len(penalty))])
    expected = torch.linalg.lstsq(stacked, right[:, None], driver="gelsd").solution.view_as(problem.head)
    found = solvers.solve(problem, rho, form="dual", linearisations=1).head - problem.head
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("class_factor", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_dual_blocked_and_primal_agree(case: Case, weighted: bool, class_factor: bool) -> None:
    """Three ways to solve one system: heads and strengths are equal to 1e-8."""
    problem = problem_of(case, class_factor=class_factor, weighted=weighted)
    dual, blocked, primal = (
        solvers.solve(problem, 0.3, form=form, linearisations=4, tolerance=0.0, cg_tolerance=1e-13)
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
    solution = solvers.solve(problem, 0.3, **EXACT)
    assert solution.converged
    metric, ridge = metric_of(problem), 0.3 * problem.scale

    def slope(head):
        leaf = head.clone().requires_grad_(True)
        change = (leaf - problem.head).reshape(-1)
        error = margins.margins(problem.features @ leaf.T, problem.labels) - problem.targets
        (ridge * change @ metric @ change + (problem.weights * error.square()).sum()).backward()
        return leaf.grad.norm()

    assert float(slope(solution.head)) < 1e-8 * float(slope(problem.head))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_change_is_the_sum_of_what_the_samples_push(case: Case) -> None:
    """The whole ΔW, not its last increment, is Σ_i α_i C̃⁻¹B_i (Σ̃⁻¹h_i)ᵀ with the gradients of the last linearisation."""
    problem = problem_of(case, class_factor=True)
    before = solvers.solve(problem, 3.0, linearisations=2).head
    solution = solvers.solve(problem, 3.0, linearisations=1, start=before, form="dual")
    pushed = jacobian_of(problem, before).T @ solution.strengths
    expected = torch.linalg.solve(metric_of(problem), pushed).view_as(problem.head)
    change = solution.head - problem.head
    torch.testing.assert_close(change, expected, rtol=1e-8, atol=1e-10 * max(1.0, float(change.abs().max())))


@pytest.mark.parametrize("form", ["dual", "blocked", "primal"])
def test_permuting_samples_permutes_strengths(form: solvers.Form) -> None:
    """A strength belongs to a sample, not to a row, and the head does not change."""
    case = Case(40, 10, 7, True, 3.0)
    problem = problem_of(case)
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moment = problem.feature_factor.cholesky @ problem.feature_factor.cholesky.T
    shuffled, straight = (
        problem_module.prepare(
            problem.features[i], problem.labels[i], problem.head, problem.targets[i], moment, damping=0.0
        )
        for i in (rows, torch.arange(40))
    )
    options = {"form": form, "linearisations": 3, "tolerance": 0.0, "cg_tolerance": 1e-12}
    one, other = solvers.solve(straight, 0.3, **options), solvers.solve(shuffled, 0.3, **options)
    torch.testing.assert_close(other.strengths, one.strengths[rows], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(other.head, one.head, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("form", ["dual", "blocked", "primal"])
def test_duplicated_samples_share_their_strength(form: solvers.Form) -> None:
    """D_f given twice, at twice the ρ: every copy has half the strength, the head is the same, copies are equal."""
    case = Case(40, 10, 7, True, 3.0)
    once = problem_of(case)
    moment = once.feature_factor.cholesky @ once.feature_factor.cholesky.T
    twice = problem_module.prepare(
        once.features.repeat(2, 1), once.labels.repeat(2), once.head, once.targets.repeat(2), moment, damping=0.0
    )
    one = solvers.solve(once, 0.3, form=form, **EXACT)
    two = solvers.solve(twice, 0.6, form=form, **EXACT)
    torch.testing.assert_close(two.head, one.head, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(two.strengths[:40], two.strengths[40:], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(two.strengths[:40] * 2, one.strengths, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("class_factor", [False, True])
def test_with_little_damping_every_margin_meets_its_target(class_factor: bool) -> None:
    """Below capacity, ρ → 0: all margins are at their targets, the pushed ones and those that were there already."""
    case = Case(20, 10, 12, True, 8.0)
    h, head, labels = case.make()
    reached = margins.margins(h @ head.T, labels)
    targets = reached - 2.0
    targets[::2] = reached[::2]
    problem = problem_of(case, class_factor=class_factor, targets=targets)
    solution = solvers.solve(problem, 1e-10, linearisations=100, tolerance=1e-4)
    assert solution.converged
    torch.testing.assert_close(solution.margins, targets, rtol=0, atol=1e-6)
    torch.testing.assert_close(solution.margins[::2], reached[::2], rtol=0, atol=1e-6)
    assert solution.residuals[0] > 1 > 1e-6 > solution.residuals[-1]


def test_a_sample_that_is_held_is_a_constraint_and_not_left_out() -> None:
    """Leaving the samples at their target out of the system moves their margins; keeping them in holds them."""
    case = Case(20, 10, 12, True, 8.0)
    h, head, labels = case.make()
    reached = margins.margins(h @ head.T, labels)
    targets = torch.where(torch.arange(20) % 2 == 0, reached, reached - 2.0)
    held = problem_of(case, targets=targets)
    moment = held.feature_factor.cholesky @ held.feature_factor.cholesky.T
    alone = problem_module.prepare(h[1::2], labels[1::2], head, targets[1::2], moment, damping=0.0)
    with_them = solvers.solve(held, 1e-10, **EXACT).head
    without = solvers.solve(alone, 1e-10, **EXACT).head
    drift = [(margins.margins(h[::2] @ w.T, labels[::2]) - reached[::2]).abs().max() for w in (with_them, without)]
    assert float(drift[0]) < 1e-6
    assert float(drift[1]) > 0.1


def test_nothing_to_push_leaves_the_head_as_it_is() -> None:
    """Targets equal to the margins: no strength, no change, converged."""
    case = Case(7, 10, 7, True, 3.0)
    h, head, labels = case.make()
    solution = solvers.solve(problem_of(case, targets=margins.margins(h @ head.T, labels)), 0.1)
    assert torch.equal(solution.head, head)
    assert solution.converged
    assert float(solution.strengths.abs().max()) == 0


def test_less_damping_comes_nearer_and_changes_more() -> None:
    """Along falling ρ the weighted error falls and the change in the metric grows, strictly."""
    problem = problem_of(Case(40, 10, 7, True, 8.0), weighted=True)
    metric, errors, changes = metric_of(problem), [], []
    for rho in (10.0, 1.0, 0.1, 0.01):
        solution = solvers.solve(problem, rho, **EXACT)
        change = (solution.head - problem.head).reshape(-1)
        errors.append(float((problem.weights * (solution.margins - problem.targets).square()).sum()))
        changes.append(float(change @ metric @ change))
    assert errors == sorted(errors, reverse=True)
    assert changes == sorted(changes)


def test_the_objective_never_rises_where_full_steps_would_diverge() -> None:
    """At little damping and far targets full Gauss–Newton steps overshoot; the line search keeps every step downhill."""
    case = Case(40, 10, 7, True, 25.0)
    h, head, labels = case.make()
    targets = margins.margins(h @ head.T, labels) - 20
    problem, rho = problem_of(case, targets=targets), 1e-3
    metric = metric_of(problem)

    def objective(w):
        change = (w - head).reshape(-1)
        error = margins.margins(h @ w.T, labels) - targets
        return float(error.square().sum() + rho * problem.scale * change @ metric @ change)

    J = jacobian_of(problem, head)
    full = torch.linalg.solve(J.T @ J + rho * problem.scale * metric, J.T @ torch.full((40,), -20.0).double())
    assert objective(head + full.view_as(head)) > objective(head)
    values = [objective(solvers.solve(problem, rho, linearisations=k, tolerance=0.0).head) for k in range(1, 8)]
    assert values[0] < objective(head)
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(values))


def test_a_warm_start_does_not_change_the_answer() -> None:
    """ΔW is solved for as a whole from the original head: starting at another ρ's solution ends at the same head."""
    problem = problem_of(Case(40, 10, 7, True, 8.0))
    cold = solvers.solve(problem, 0.1, **EXACT)
    warm = solvers.solve(problem, 0.1, start=solvers.solve(problem, 1.0).head, **EXACT)
    torch.testing.assert_close(warm.head, cold.head, rtol=1e-8, atol=1e-9)


def test_too_few_linearisations_are_said() -> None:
    """One step on far targets is not converged; many are, and the residuals have one entry more than steps."""
    problem = problem_of(Case(40, 10, 7, True, 25.0))
    short, long = (solvers.solve(problem, 0.01, linearisations=k) for k in (1, 100))
    assert not short.converged
    assert len(short.residuals) == 2
    assert long.converged
    assert long.residuals[-1] < long.residuals[0]


def test_beyond_capacity_the_distance_is_reported() -> None:
    """More margins than a head can set: the residual stays away from 0 at any ρ; capacity is the Jacobian's rank."""
    case = Case(300, 3, 4, True, 8.0)
    h, head, labels = case.make()
    targets = margins.margins(h @ head.T, labels)
    targets = targets - 3 * torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = problem_of(case, targets=targets)
    assert problem.capacity == int(torch.linalg.matrix_rank(jacobian_of(problem, head)))
    assert solvers.solve(problem, 1e-6, linearisations=50).residuals[-1] > 0.3


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
    assert solvers.choose_form(samples, unknowns) == form


def test_wrong_use_is_refused_and_says_where() -> None:
    """Rows that do not belong together, a non-finite row, a head without margins, weights and ρ out of range."""
    case = Case(7, 10, 7, True, 3.0)
    h, head, labels = case.make()
    moment, targets = problem_module.second_moment(h), margins.margins(h @ head.T, labels) - 1
    spoilt = h.clone()
    spoilt[4, 2] = math.nan
    with pytest.raises(ImuError, match="row 4: features not finite"):
        problem_module.prepare(spoilt, labels, head, targets, moment)
    with pytest.raises(ImuError, match="7 features, 7 labels, 6 targets"):
        problem_module.prepare(h, labels, head, targets[:6], moment)
    with pytest.raises(ImuError, match="one output"):
        problem_module.prepare(h, labels, head[:1], targets, moment)
    with pytest.raises(ImuError, match="weights below 0, or all 0"):
        problem_module.prepare(h, labels, head, targets, moment, weights=-torch.ones(7))
    problem = problem_module.prepare(h, labels, head, targets, moment)
    for rho in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ImuError, match="not a damping"):
            solvers.solve(problem, rho)


# The path


def test_path_closes_in_on_the_largest_rho_that_meets_the_target() -> None:
    """Every step is yielded with its verdict; the chosen one meets the target, a little more damping does not."""
    problem = problem_of(Case(40, 10, 7, True, 8.0))
    wanted = 0.5 * float((problem.targets - margins.margins(problem.features @ problem.head.T, problem.labels)).norm())

    def look(solution: solvers.Solution) -> path.Verdict:
        return "met" if float((problem.targets - solution.margins).norm()) <= wanted else "more"

    steps = list(path.path(problem, look, bisections=8))
    chosen = path.chosen(steps)
    assert chosen is not None
    assert chosen.verdict == "met"
    more = [step.solution.rho for step in steps if step.verdict == "more"]
    assert chosen.solution.rho < min(more) < chosen.solution.rho * 1.02
    again = solvers.solve(problem, chosen.solution.rho * 1.05, linearisations=50)
    assert look(again) == "more"


def test_path_stays_within_the_budget() -> None:
    """Where the budget is spent before the target is met, the smallest ρ within it is chosen, refined the same way."""
    problem = problem_of(Case(40, 10, 7, True, 8.0))

    def look(solution: solvers.Solution) -> path.Verdict:
        return "spent" if float((solution.head - problem.head).norm()) > 0.3 * float(problem.head.norm()) else "more"

    chosen = path.chosen(list(path.path(problem, look, bisections=8)))
    assert chosen is not None
    assert chosen.verdict == "more"
    assert 0.29 < float((chosen.solution.head - problem.head).norm() / problem.head.norm()) <= 0.3


def test_path_finds_a_target_between_budget_and_grid() -> None:
    """A grid point that overspends hides a target met at a larger ρ: the bisection finds it."""
    problem = problem_of(Case(40, 10, 7, True, 8.0))

    def look(solution: solvers.Solution) -> path.Verdict:
        return "more" if solution.rho > 2.0 else "met" if solution.rho > 1.5 else "spent"

    chosen = path.chosen(list(path.path(problem, look, rhos=(10.0, 1.0))))
    assert chosen is not None
    assert chosen.verdict == "met"


def test_path_ends() -> None:
    """It stops at once where the first step is enough or too much, and walks the grid once where nothing happens."""
    problem = problem_of(Case(7, 10, 7, True, 3.0))
    assert len(list(path.path(problem, lambda _: "met"))) == 1
    assert path.chosen(path.path(problem, lambda _: "spent")) is None
    walked = [step.solution.rho for step in path.path(problem, lambda _: "more")]
    assert walked == sorted(path.RHO_PATH, reverse=True)


# Influence made visible


@pytest.mark.parametrize("rows_at_once", [1, 16, 512])
def test_kernel_rows_are_the_largest_entries_of_the_explicit_kernel(rows_at_once: int) -> None:
    """K_ii, and for every sample the others by |K_ij α_j| with its sign, from the kernel formed with autograd."""
    problem = problem_of(Case(40, 10, 7, True, 3.0), class_factor=True)
    solution = solvers.solve(problem, 0.3)
    found = kernel_module.kernel_rows(problem, solution.strengths, top=4, rows_at_once=rows_at_once)
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
    assert kernel_module.kernel_rows(problem, torch.ones(1, dtype=torch.float64)).movers.shape == (1, 0)


@pytest.mark.slow
def test_five_thousand_samples_take_under_thirty_seconds() -> None:
    """Three values of ρ at n = 5,000, d = 512, c = 10, without the n × n kernel, within a minute of processor time."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 512, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 10, (5000,), generator=generator)
    h = torch.relu(0.35 * centres[labels] + torch.randn(5000, 512, generator=generator, dtype=torch.float64))
    h, head = (torch.cat([x, x.new_ones(len(x), 1)], 1) for x in (h, 0.35 * centres))
    targets = margins.margins(h @ head.T, labels) - 2
    began = time.process_time()
    problem = problem_module.prepare(
        h, labels, head, targets, problem_module.second_moment(h), weights=margins.error_weights(targets)
    )
    assert {solvers.solve(problem, rho).form for rho in (10.0, 1.0, 0.1)} == {"blocked"}
    assert time.process_time() - began < 60  # two cores
