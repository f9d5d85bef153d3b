"""Laws of the ascent, on random heads: where it stops, what it moves, what it keeps."""

import pytest
import torch
from cases import Case

from imu_cli.errors import ImuError
from imu_cli.influence import closed_form
from imu_cli.linear import objective
from imu_cli.unlearning import ascent
from imu_cli.unlearning.ascent import NormalisedStep, Objective, Outcome, StochasticSteps
from imu_cli.unlearning.targets import Limits, looker

CASE = Case(40, 10, 7, True, 8.0)


def setting(forgotten=None, rows=None):
    """H, W and labels with a class objective, as float64."""
    h, head, labels = CASE.make()
    labels = (h @ head.T).argmax(dim=1)
    shared = None if forgotten is None else torch.isin(torch.arange(10), torch.tensor(forgotten))
    members = objective.Members(labels, 10, shared)
    moving = torch.ones(10, dtype=torch.bool) if rows is None else rows
    return h, head, labels, Objective(h, members, moving, closed_form.uniform(len(h)))


def loss_by_softmax(logits, members):
    """−log P_K by softmax, for autograd."""
    return -(logits.softmax(dim=1) * members).sum(dim=1).log()


def run(head, update, look, limits, rounded=lambda w: w, last="max_steps") -> Outcome:
    *_, outcome = ascent.ascend(head, update, look, limits, rounded, last=last)
    return outcome


@pytest.mark.parametrize("length", [0.01, 0.05, 0.4])
def test_stops_at_the_target_and_not_beyond(length: float) -> None:
    """The run ends at the target whatever the step: one sample fewer right would not have been needed."""
    h, head, labels, problem = setting()
    look = looker(h, problem.members, head, None)
    outcome = run(head, NormalisedStep(problem, length * float(head.norm())), look, Limits(0.5, 1000))
    assert outcome.reason == "target"
    assert outcome.reached
    assert outcome.end.forget <= 0.5
    just_before = head + (outcome.head - head) * (1 - 1e-3)
    assert outcome.end.forget >= 0.5 - 2 / 40
    assert look(just_before).forget >= outcome.end.forget


def test_only_the_forgotten_rows_move() -> None:
    """With --rows forgotten every other row, and so every kept class's logit, is bit-identical."""
    rows = torch.zeros(10, dtype=torch.bool)
    rows[[2, 5]] = True
    h, head, labels, problem = setting([2, 5], rows)
    look = looker(h, problem.members, head, None)
    outcome = run(head, NormalisedStep(problem, 0.02 * float(head.norm())), look, Limits(0.0, 200))
    assert torch.equal(outcome.head[~rows], head[~rows])
    assert not torch.equal(outcome.head[rows], head[rows])


def test_features_that_are_not_negative_only_lower_the_forgotten_logits() -> None:
    """With features ≥ 0 a forgotten class's logit falls on every sample, so no kept sample can be lost to it."""
    rows = torch.zeros(10, dtype=torch.bool)
    rows[[2, 5]] = True
    h, head, _, problem = setting([2, 5], rows)
    look = looker(h, problem.members, head, None)
    outcome = run(head, NormalisedStep(problem, 0.02 * float(head.norm())), look, Limits(0.0, 50))
    unseen = torch.rand(500, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert bool((unseen @ (outcome.head - head).T <= 0).all())


def test_head_change_budget_is_kept_and_used() -> None:
    """Without a target the head moves as far as allowed, and not further."""
    h, head, labels, problem = setting()
    look = looker(h, problem.members, head, None)
    outcome = run(
        head, NormalisedStep(problem, 0.03 * float(head.norm())), look, Limits(None, 100, max_head_change=0.02)
    )
    assert (outcome.reason, outcome.reached) == ("max_head_change", None)
    assert outcome.end.head_change == pytest.approx(0.02, rel=1e-5)
    assert outcome.end.head_change <= 0.02


def test_budget_wins_over_a_target_beyond_it() -> None:
    """A target that lies beyond a budget is not reached; the run stops at the budget and says so."""
    h, head, labels, problem = setting()
    look = looker(h, problem.members, head, None)
    outcome = run(
        head, NormalisedStep(problem, 0.5 * float(head.norm())), look, Limits(0.0, 100, max_head_change=0.001)
    )
    assert (outcome.reason, outcome.reached) == ("max_head_change", False)


def test_zero_weight_is_an_absent_row() -> None:
    """A sample of weight 0 changes nothing: the run equals the one without it, bit for bit in direction."""
    h, head, labels, problem = setting()
    weights = closed_form.uniform(40)
    weights[30:] = 0
    with_zeros = Objective(h, problem.members, problem.rows, weights)
    without = Objective(h[:30], problem.members[:30], problem.rows, weights[:30])
    torch.testing.assert_close(with_zeros.at(head)[0], without.at(head)[0], rtol=1e-12, atol=1e-15)


def test_gradient_is_that_of_the_weighted_loss() -> None:
    """The closed-form gradient is autograd's of Σ w ℓ / Σ w, for several forgotten classes too."""
    h, head, labels, problem = setting([1, 2])
    problem.weights = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaf = head.clone().requires_grad_(True)
    loss = (problem.weights * loss_by_softmax(h @ leaf.T, problem.members[:])).sum() / problem.weights.sum()
    loss.backward()
    gradient, value = problem.at(head)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-9, atol=1e-12)
    assert value == pytest.approx(float(loss.detach()), rel=1e-12)


def test_published_loop_equals_torch_sgd() -> None:
    """SGD with momentum, weight decay and the L1 term is torch's own optimiser on the published loss, step by step."""
    h, head, labels, problem = setting()
    problem.weights = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    update = StochasticSteps(
        problem, learning_rate=0.01, momentum=0.9, weight_decay=5e-4, l1=0.2, minibatch=None,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    ours = head
    leaf = head.clone().requires_grad_(True)
    sgd = torch.optim.SGD([leaf], lr=0.01, momentum=0.9, weight_decay=5e-4)
    for _ in range(5):
        ours, _ = update(ours)
        sgd.zero_grad()
        ascended = (problem.weights * loss_by_softmax(h @ leaf.T, problem.members[:])).sum() / problem.weights.sum()
        (-ascended + 0.2 * leaf.abs().sum()).backward()
        sgd.step()
    torch.testing.assert_close(ours, leaf.detach(), rtol=1e-10, atol=1e-12)


def test_minibatches_cover_each_epoch_once_and_follow_the_seed() -> None:
    """Each epoch sees every sample of positive weight once; the same seed gives the same batches."""
    h, head, labels, problem = setting()
    problem.weights[5] = 0

    def batches():
        update = StochasticSteps(
            problem, learning_rate=0.01, momentum=0, weight_decay=0, l1=0, minibatch=16,
            generator=torch.Generator().manual_seed(7),
        )  # fmt: skip
        return [update._next_batch(head) for _ in range(update.steps_per_epoch())]

    seen = torch.cat(batches())
    assert sorted(seen.tolist()) == [row for row in range(40) if row != 5]
    assert torch.equal(seen, torch.cat(batches()))


def test_weights_made_anew_may_leave_nothing_of_a_batch() -> None:
    """A batch drawn before the weights changed, and without any now, is passed over; no weight at all is an error."""
    h, head, labels, problem = setting()
    live = torch.zeros(40, dtype=torch.float64)
    live[7] = 1

    def weigh(_: torch.Tensor) -> torch.Tensor:
        return live

    update = StochasticSteps(
        problem, learning_rate=0.01, momentum=0, weight_decay=0, l1=0, minibatch=4,
        generator=torch.Generator().manual_seed(7), reweigh=weigh,
    )  # fmt: skip
    update.batches = [torch.arange(4), torch.arange(4, 8), torch.arange(8, 12)]
    for _ in range(3):
        head, loss = update(head)
        assert bool(head.isfinite().all())
    live = torch.zeros_like(live)
    with pytest.raises(ImuError, match="no sample has a weight above 0"):
        update(head)


def test_vanished_gradient_is_an_error() -> None:
    """Where float64 has no direction left, the run says so rather than dividing by zero."""
    h = torch.tensor([[1.0]], dtype=torch.float64)
    head = torch.tensor([[1e6], [-1e6]], dtype=torch.float64)
    problem = Objective(h, torch.tensor([[True, False]]), torch.tensor([True, True]), closed_form.uniform(1))
    with pytest.raises(ImuError, match="gradient on the forget set is zero"):
        NormalisedStep(problem, 1.0)(head)


def test_runaway_learning_rate_is_an_error() -> None:
    """A head that overflows is refused at its step."""
    h, head, labels, problem = setting()
    update = StochasticSteps(
        problem, learning_rate=1e308, momentum=0.9, weight_decay=10.0, l1=0, minibatch=None,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    with pytest.raises(ImuError, match=r"step \d+: the head is not finite"):
        run(head, update, looker(h, problem.members, head, None), Limits(None, 50))


def test_target_is_met_by_the_rounded_head() -> None:
    """What is looked at and returned is the head as bfloat16 holds it, so the file meets what the run promised."""
    h, head, labels, problem = setting()

    def rounded(w):
        return w.to(torch.bfloat16).double()

    look = looker(h, problem.members, head, None)
    outcome = run(rounded(head), NormalisedStep(problem, 0.05 * float(head.norm())), look, Limits(0.4, 500), rounded)
    assert torch.equal(rounded(outcome.head), outcome.head)
    assert look(outcome.head).forget <= 0.4
