import pytest
import torch

from imu_cli.events import Log
from imu_cli.linear import margins
from imu_cli.unlearning import methods, scenario, targets
from imu_cli.unlearning.matched import fit as subject
from imu_cli.unlearning.matched import problem as problem_module
from imu_cli.unlearning.matched import solvers
from imu_cli.unlearning.procedure import Classifier, Forgetting, Procedure
from imu_cli.unlearning.scenario import Plan
from imu_cli.unlearning.targets import Comparison, HeldOut, Limits


class Fitted:
    """A head that knows its forget samples better than unseen ones: labels partly random, fitted by logistic regression."""

    def __init__(self, n: int = 30, c: int = 4, d: int = 40, m: int = 600, kind: str = "sample") -> None:
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(c, d, generator=generator, dtype=torch.float64)

        def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
            labels = torch.arange(count) % c
            h = centres[labels] + 2.5 * torch.randn(count, d, generator=generator, dtype=torch.float64)
            return torch.cat([h, h.new_ones(count, 1)], dim=1), labels

        self.h, self.labels = draw(n)
        others, other_labels = draw(60)
        held, held_labels = draw(m)
        self.true_labels = self.labels
        if kind == "mislabelled":
            self.labels = (self.labels + 1) % c
        x, y = torch.cat([self.h, others]), torch.cat([self.labels, other_labels])
        head = torch.zeros(c, d + 1, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([head], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            value = torch.nn.functional.cross_entropy(x @ head.T, y) + 1e-3 * head.square().sum()
            value.backward()
            return value

        optimiser.step(loss)
        self.head = head.detach()
        self.plan: Plan = scenario.plan(kind, "test", self.labels, c, "auto")  # type: ignore[arg-type]
        self.held: HeldOut = targets.held_out(held, held_labels, self.plan.forgotten)
        hits = int(((self.h @ self.head.T).argmax(1) == self.labels).sum())
        self.unseen = Comparison(self.plan, self.labels, self.true_labels, self.held)
        goal, _ = targets.target(self.plan, None, self.unseen, self.head, hits, n)
        assert goal is not None
        self.goal = goal

    def aim(
        self, goal: float | None = None, *, by_accuracy: bool = False, max_auc: float | None = 0.51, held: bool = True
    ):
        return subject.aim(
            self.h, self.labels, self.head, self.goal if goal is None else goal, self.unseen if held else None,
            kind=self.plan.kind, by_accuracy=by_accuracy, max_auc=max_auc,
        )  # fmt: skip

    def problem(self, aim: subject.Aim) -> problem_module.Problem:
        return subject.prepare(self.h, self.labels, self.head, aim.targets, self.held, damping=0.01, class_factor=True)

    def run(self, aim: subject.Aim, *, goal: float | None = None, drop: float | None = None, rho: float | None = None):
        look = targets.looker(self.h, self.plan.members, self.head, self.held)
        limits = Limits(self.goal if goal is None else goal, 1000, None, drop)
        *points, last = subject.run(self.problem(aim), aim, look, limits, lambda head: head, rho)
        assert isinstance(last, subject.Matched)
        return points, last


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return Fitted()


def test_targets_follow_the_held_out_margins_of_the_head_that_results(fitted: Fitted) -> None:
    """At the end each target is the held-out margin of its rank under the final head: a fixed point."""
    aim = fitted.aim()
    found = solvers.solve(fitted.problem(aim), 1e-3, linearisations=100, tolerance=1e-10, retarget=aim.retarget)
    assert found.converged
    logits = fitted.held.h @ found.head.T
    theirs = margins.margins(logits, fitted.held.labels)
    phi = margins.margins(fitted.h @ fitted.head.T, fitted.labels)
    wanted = margins.coupled_targets(phi, theirs, margins.class_match(fitted.labels, fitted.held.labels))
    torch.testing.assert_close(found.targets, wanted, rtol=0, atol=1e-6)
    still = margins.margins(fitted.held.h @ fitted.head.T, fitted.held.labels)
    assert float((theirs - still).abs().max()) > 0.01  # they did move, so the targets had to


def test_the_largest_strength_that_looks_unseen_is_chosen(fitted: Fitted) -> None:
    """Accuracy on the forget set and the membership AUC are both met, and a larger ρ on the path misses one of them."""
    points, last = fitted.run(fitted.aim())
    assert last.details.auc_before is not None
    assert last.details.auc_before > 0.7
    assert last.outcome.reason == "target"
    assert last.details.auc is not None
    assert last.details.auc <= 0.51
    assert last.outcome.end.forget <= fitted.goal
    larger = [point for point in points if point.rho > last.details.rho]
    assert larger
    assert all(point.auc > 0.51 or point.look.forget > fitted.goal for point in larger if point.auc is not None)


def test_without_the_auc_the_share_alone_decides(fitted: Fitted) -> None:
    """--max-auc 1 stops at a larger ρ, at the accuracy of unseen samples but with margins that tell."""
    _, alone = fitted.run(fitted.aim(max_auc=1.0))
    _, both = fitted.run(fitted.aim())
    assert alone.outcome.end.forget <= fitted.goal
    assert alone.details.rho > both.details.rho
    assert alone.details.auc is not None
    assert both.details.auc is not None
    assert alone.details.auc > both.details.auc


def test_a_budget_ends_the_path_before_the_auc(fitted: Fitted) -> None:
    """Where --max-drop does not allow it, what is nearest within the budget is chosen, and the reason names the budget."""
    _, free = fitted.run(fitted.aim())
    allowed = (free.outcome.end.test_drop or 0) / 2
    assert allowed > 0
    _, last = fitted.run(fitted.aim(), drop=allowed)
    assert last.outcome.reason == "max_drop"
    assert last.outcome.end.test_drop is not None
    assert last.outcome.end.test_drop <= allowed
    assert last.details.rho > free.details.rho


def test_the_user_s_number_above_the_held_out_level_uses_held_out_margins(fitted: Fitted) -> None:
    """--until between the original's and unseen samples' accuracy: margins go towards the unseen ones, and stop there."""
    between = (1 + fitted.goal) / 2
    aim = fitted.aim(between, by_accuracy=True)
    assert aim.how == "held-out margins, by rank"
    assert aim.retarget is None
    assert aim.max_auc is None
    _, last = fitted.run(aim, goal=between)
    assert fitted.goal < last.outcome.end.forget <= between


def test_the_user_s_number_below_the_held_out_level_shifts_every_margin(fitted: Fitted) -> None:
    """Less than unseen samples reach cannot come from their margins: one constant is subtracted from all."""
    aim = fitted.aim(fitted.goal / 2, by_accuracy=True)
    assert aim.how == "a constant shift of all margins"
    assert aim.retarget is None
    phi = margins.margins(fitted.h @ fitted.head.T, fitted.labels)
    assert float((phi - aim.targets).std()) == pytest.approx(0, abs=1e-9)
    points, last = fitted.run(aim, goal=fitted.goal / 2)
    assert last.outcome.end.forget <= fitted.goal / 2
    assert all(point.auc is not None for point in points)  # held-out data still say how far it went


def test_without_held_out_data_there_is_no_auc(fitted: Fitted) -> None:
    """Nothing to compare with: the AUC is not measured."""
    aim = fitted.aim(0.5, by_accuracy=True, held=False)
    assert aim.unseen is None
    points, last = fitted.run(aim, goal=0.5)
    assert {point.auc for point in points} == {None}
    assert (last.details.auc, last.details.auc_before) == (None, None)


def test_a_given_rho_is_solved_for_once(fitted: Fitted) -> None:
    """--rho: one point, whatever it reaches."""
    points, last = fitted.run(fitted.aim(), rho=1.0)
    assert [point.rho for point in points] == [1.0]
    assert last.outcome.reason in ("rho", "target")


def test_wrong_labels_are_compared_with_held_out_confusions() -> None:
    """Mislabelled: margins of the wrong label come down to those that unseen samples of the true class have for it."""
    case = Fitted(n=24, kind="mislabelled")
    _, last = case.run(case.aim())
    assert last.details.auc_before is not None
    assert last.details.auc is not None
    assert last.details.auc_before > 0.8
    assert last.details.auc <= 0.51
    right = ((case.h @ last.outcome.head.T).argmax(1) == case.true_labels).double().mean()
    assert float(right) > 0.3  # four classes, and nobody told the solver the true ones' margins


def test_whole_classes_are_not_aimed_at_their_held_out_margins() -> None:
    """Unseen samples of the class are still recognised: --method matched shifts margins to the class target instead."""
    case = Fitted()
    plan = scenario.plan("class", "test", torch.zeros(6, dtype=torch.int64), 4, "auto")
    rows = case.labels == 0
    held = targets.held_out(case.held.h, case.held.labels, plan.forgotten)
    aim = subject.aim(
        case.h[rows],
        case.labels[rows],
        case.head,
        0.005,
        Comparison(plan, case.labels[rows], None, held),
        kind="class",
        by_accuracy=False,
        max_auc=0.51,
    )
    assert aim.retarget is None
    assert aim.max_auc is None


def test_beyond_capacity_targets_stay(fitted: Fitted) -> None:
    """More samples than margins that the head can set: targets that follow the head would run ahead of what can come."""
    head, most = fitted.head[:, :5], 3 * 5  # four features and a bias, four classes
    h, labels = fitted.h[:, :5], fitted.labels
    held = targets.held_out(fitted.held.h[:, :5], fitted.held.labels, ())
    for n, follows in ((most, True), (most + 1, False)):
        plan = scenario.plan("sample", "test", labels[:n], 4, "auto")
        made = subject.aim(
            h[:n],
            labels[:n],
            head,
            0.5,
            Comparison(plan, labels[:n], None, held),
            kind="sample",
            by_accuracy=False,
            max_auc=0.51,
        )
        assert (made.retarget is not None) is follows
        assert made.max_auc == 0.51


def test_beyond_capacity_it_is_said_what_can_hold_more(fitted: Fitted) -> None:
    """The note names the scope that moves layers below the head; within the head's capacity there is none."""
    h, head = fitted.h[:, :5], fitted.head[:, :5]
    held = targets.held_out(fitted.held.h[:, :5], fitted.held.labels, ())
    for n, told in ((15, False), (16, True)):
        labels, log = fitted.labels[:n], Log()
        plan = scenario.plan("sample", "test", labels, 4, "auto")
        forgetting = Forgetting(h[:n], labels, None, None, lambda: pytest.fail("no scores are needed"))
        classifier = Classifier(head, lambda matrix: matrix)
        asked = Procedure(method="matched", until=0.3)
        methods.run(methods.prepare(forgetting, classifier, plan, held, asked, log))
        notes = [note for note in log.notes if "margins this head can set freely" in note]
        assert bool(notes) is told, log.notes
        assert all(note.startswith("16 samples are more than the 15 ") for note in notes)
        assert all(note.endswith("layers below the head can hold more: --scope last-block") for note in notes)
