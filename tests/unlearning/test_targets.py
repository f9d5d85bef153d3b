"""Target and look: counts meet bounds as counts, rounding decides nothing, the target follows the head that results."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.events import Log
from imu_cli.influence import scores
from imu_cli.influence.closed_form import Damping, influence
from imu_cli.linear.objective import Members, counts_in
from imu_cli.statistics import counts
from imu_cli.unlearning import messages, methods, scenario, targets
from imu_cli.unlearning import procedure as procedure_module
from imu_cli.unlearning.procedure import Classifier, Forgetting, Matching, Procedure
from imu_cli.unlearning.targets import Comparison, Limits, Look


@given(n=st.integers(1, 100_000), data=st.data())
def test_a_count_meets_its_own_share_and_the_next_one_does_not(n: int, data: st.DataObject) -> None:
    """Whatever binary fractions make of k/n: k of n is within k/n, k + 1 of n is not."""
    k = data.draw(st.integers(0, n - 1))
    assert counts.share_at_most(k / n, n, k / n)
    assert not counts.share_at_most((k + 1) / n, n, k / n)


def test_fifty_of_five_thousand_are_one_percent() -> None:
    """0.9194 − 0.9094 is 0.010000000000000009 in binary fractions, and exactly --max-drop 0.01 of 5,000 samples."""
    drop = 4597 / 5000 - 4547 / 5000
    assert drop > 0.01
    limits = Limits(0.5, 10, max_drop=0.01, m=5000)
    assert limits.exceeded(Look(0.9, 0.0, drop)) is None
    assert limits.exceeded(Look(0.9, 0.0, 4597 / 5000 - 4546 / 5000)) == "max_drop"


def test_a_sample_at_the_edge_is_neither_remembered_nor_counted_as_forgotten() -> None:
    """Gaps of 1e-3 on either side of the boundary and margins of 1e-2: both stand in the way of the target."""
    h = torch.tensor([[1.0], [1.0], [1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    head = torch.tensor([[1.0], [1.0 - 1e-3], [0.0]], dtype=torch.float64)  # predicts 0; 1 is near, 2 is not
    assert counts_in(h, head, Members(labels, 3), 0.0) == (1, 0)
    assert counts_in(h, head, Members(labels, 3), 1e-2) == (1, 1)
    look = targets.looker(h, Members(labels, 3), head, None, margin=1e-2)(head)
    assert (look.forget, look.near) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert not Limits(1 / 3, 10, n=3).met(look)
    assert Limits(2 / 3, 10, n=3).met(look)


def test_the_target_follows_what_unseen_samples_do_under_the_head() -> None:
    """A head that ruins unseen samples too meets no target by that: what is allowed falls with them."""
    limits = Limits(0.9, 10, follows=True, n=100, hits=100)
    assert limits.met(Look(0.9, 0.0, unseen=0.9))
    assert not limits.met(Look(0.9, 0.0, unseen=0.7))
    assert limits.met(Look(0.7, 0.0, unseen=0.7))


def test_the_worst_class_is_guarded_where_that_is_asked_for() -> None:
    """Half of one class of twenty is lost while accuracy falls by 2.5 %."""
    labels = torch.arange(200) % 20
    before, after = torch.ones(200, dtype=torch.bool), (labels != 3) | (torch.arange(200) < 100)
    worst = targets.worst_fall(before, after, labels)
    assert worst == pytest.approx(0.5)
    look = Look(0.5, 0.0, 0.025, class_drop=worst)
    assert Limits(0.1, 10, max_drop=0.05).exceeded(look) is None
    assert Limits(0.1, 10, max_drop=0.05, max_class_drop=0.4).exceeded(look) == "max_class_drop"
    assert Limits(0.1, 10, max_drop=0.05, max_class_drop=0.5).exceeded(look) is None


class Remembered:
    """A head that is right on everything, and surer of its forget samples than of unseen ones."""

    def __init__(self, n: int = 6, m: int = 300, sure: float = 3.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.head = torch.eye(3, 60, dtype=torch.float64)

        def draw(count: int, size: float) -> tuple[Tensor, Tensor]:
            labels = torch.arange(count) % 3
            h = 0.3 * torch.randn(count, 60, generator=generator, dtype=torch.float64)
            h[torch.arange(count), labels] += size + torch.rand(count, generator=generator, dtype=torch.float64)
            return h, labels

        self.h, self.labels = draw(n, sure)
        held, held_labels = draw(m, 2.0)
        self.held = targets.held_out(held, held_labels, ())
        self.plan = scenario.plan("sample", "test", self.labels, 3, "auto")

    def job(self, procedure: Procedure) -> procedure_module.Job:
        scored = scores.computed(influence(self.h, self.labels, self.head, Damping(0.01)))
        given = Forgetting(self.h, self.labels, None, None, lambda: scored)
        job = methods.prepare(given, Classifier(self.head, lambda head: head), self.plan, self.held, procedure, Log())
        messages.tell_start(job, proven_classes=True)
        return job


@pytest.mark.parametrize("method", ["auto", "matched"])
def test_where_accuracy_says_nothing_the_margins_are_the_target(method: str) -> None:
    """All are right, as unseen samples are, and remembered by their margins: matched goes to those of unseen ones."""
    known = Remembered()
    job = known.job(Procedure(method=method, max_drop=0.05))  # type: ignore[arg-type]
    assert job.limits.max_auc is not None
    assert any("accuracy has nothing to say here" in note for note in job.log.notes)
    outcome = methods.run(job).outcome
    assert outcome.start.auc is not None
    assert outcome.start.auc > 0.8
    assert outcome.reached
    assert outcome.end.auc is not None
    assert outcome.end.auc <= job.limits.max_auc + 1e-6
    assert Comparison(known.plan, known.labels, None, known.held).auc(known.h, outcome.head) == outcome.end.auc


def test_the_ascent_looks_at_margins_too_where_accuracy_says_nothing() -> None:
    """An explicit --method imu is obeyed: it goes down until the AUC is that of unseen samples, or a budget ends it."""
    job = Remembered().job(Procedure(method="imu", max_drop=0.05))
    outcome = methods.run(job).outcome
    assert outcome.start.auc is not None
    assert outcome.end.auc is not None
    assert outcome.end.auc < outcome.start.auc
    assert outcome.reached == (outcome.reason == "target")


def test_one_sample_goes_as_far_as_one_can_be_seen_to_go() -> None:
    """The AUC of one sample among m unseen ones moves in steps of 1/m: half a step beyond 0.5 is all that can be asked."""
    known = Remembered(n=1)
    job = known.job(Procedure(max_drop=0.05))
    unseen = int((known.held.labels == 0).sum())
    assert job.limits.max_auc == pytest.approx(max(0.51, 0.5 + 0.5 / unseen))
    assert methods.run(job).outcome.reached


def test_what_looks_unseen_by_accuracy_and_margins_is_an_error_that_says_so() -> None:
    """And an explicit ρ is obeyed all the same."""
    alike = Remembered(n=60, sure=2.0)
    with pytest.raises(ImuError, match=r"looks like unseen samples already, by accuracy .* and by its margins .*AUC"):
        alike.job(Procedure(matching=Matching(max_auc=0.6)))
    job = alike.job(Procedure(method="matched", matching=Matching(max_auc=0.6, rho=1.0)))
    assert methods.run(job).outcome.reason in ("rho", "target")


def test_a_level_that_is_met_already_is_called_what_it_is() -> None:
    """--until is the user's own, and a class that is not recognised is another thing: no untrue causes are listed."""
    known = Remembered()
    with pytest.raises(ImuError, match="--until: already met before the first step"):
        known.job(Procedure(until=1.0))
    known.plan = scenario.plan("class", "test", torch.zeros(2, dtype=torch.int64), 3, "auto")
    known.h, known.labels = known.h[[1, 2]], torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ImuError, match="does not predict these classes on their own samples"):
        known.job(Procedure())
