"""The demoted teacher: what is to be said, the step, the feature term, and a training that stops where it should."""

import copy
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from imu_cli import signals
from imu_cli.errors import ImuError, StoppedError
from imu_cli.linear import margins
from imu_cli.unlearning import scenario
from imu_cli.unlearning.demotion import features, loop, teacher, training
from imu_cli.unlearning.demotion.loop import Trained
from imu_cli.unlearning.demotion.training import Anchor, Batch, Forgotten, Schedule, Training, Unseen
from imu_cli.unlearning.demotion.update import LEAST, RelativeAdam
from imu_cli.unlearning.targets import Limits

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 4


# What is to be said


def some_logits(n: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, CLASSES, dtype=torch.float64) * 3, torch.arange(n) % CLASSES


def test_the_demoted_teachers_margin_is_the_target() -> None:
    """Exactly, above and below what it was; the other classes keep their proportions, and it is a distribution."""
    z, y = some_logits()
    wanted = torch.tensor([-9.0, -1.0, 0.0, 0.5, 2.0, 30.0], dtype=torch.float64)
    log_q = teacher.demoted(z, y, wanted)
    torch.testing.assert_close(margins.margins(log_q, y), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_q.exp().sum(dim=1), torch.ones(6, dtype=torch.float64))
    for row in range(6):
        others = [k for k in range(CLASSES) if k != int(y[row])]
        gaps = log_q[row, others] - z[row, others]
        torch.testing.assert_close(gaps, gaps[:1].expand(3), rtol=0, atol=1e-12)


def test_a_target_that_is_the_margin_changes_nothing() -> None:
    """Then the teacher says what the model says."""
    z, y = some_logits()
    torch.testing.assert_close(
        teacher.demoted(z.float(), y, margins.margins(z, y)), z.log_softmax(dim=1), rtol=0, atol=1e-6
    )


def test_the_mask_leaves_the_kept_classes_in_proportion() -> None:
    """Forgotten classes get nothing, the others what the softmax without them gives."""
    z, _ = some_logits()
    q = teacher.masked(z, (1, 3)).exp()
    assert torch.equal(q[:, [1, 3]], torch.zeros(6, 2, dtype=torch.float64))
    torch.testing.assert_close(q[:, [0, 2]], z[:, [0, 2]].softmax(dim=1))
    assert bool(torch.isfinite(z).all())


def test_the_divergence_is_torchs() -> None:
    """KL of each row, with classes that q gives nothing, and a gradient without NaN."""
    z, y = some_logits()
    p = torch.randn(6, CLASSES, dtype=torch.float64, requires_grad=True)
    for log_q in (teacher.demoted(z, y, torch.zeros(6)), teacher.masked(z, (1, 3))):
        found = teacher.divergence(log_q, p)
        wanted = functional.kl_div(p.log_softmax(dim=1), log_q.exp(), reduction="none").sum(dim=1)
        torch.testing.assert_close(found, wanted)
        (gradient,) = torch.autograd.grad(found.sum(), p)
        torch.testing.assert_close(gradient, p.detach().softmax(dim=1) - log_q.exp())
    assert float(teacher.divergence(z.log_softmax(dim=1), z).abs().max()) < 1e-12


# The step


def signs(*shape: int) -> nn.Parameter:
    """Weights of size 1 each, so that a step is Adam's own."""
    return nn.Parameter(torch.randint(0, 2, shape).float() * 2 - 1)


def test_where_sizes_are_one_the_step_is_adams() -> None:
    """Twenty steps with torch's own Adam beside it, learning rates that fall, gradients that are clipped now and then."""
    torch.manual_seed(0)
    mine = {"a.weight": signs(5, 4), "a.bias": signs(5), "b.weight": signs(3)}
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in mine.values()]
    update = RelativeAdam(mine, clip=4.0)
    adam = torch.optim.Adam(theirs, lr=1.0)
    for step in range(20):
        given = [torch.randn_like(parameter) * (0.1 + step % 3) for parameter in theirs]
        for parameter, gradient in zip(theirs, given, strict=True):
            parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 4.0)
        adam.param_groups[0]["lr"] = 0.01 / (1 + step)
        adam.step()
        update(dict(zip(mine, given, strict=True)), 0.01 / (1 + step))
    for parameter, other in zip(mine.values(), theirs, strict=True):
        torch.testing.assert_close(parameter, other)


def test_a_step_is_a_share_of_a_layers_size() -> None:
    """Weights ten times as large move ten times as far; a bias moves in units of its layer's weight; zeros move a little."""
    torch.manual_seed(0)
    given = torch.randn(4, 3)
    moved = {}
    for size in (1.0, 10.0):
        made = {"a.weight": nn.Parameter(signs(4, 3).detach() * size), "a.bias": nn.Parameter(torch.zeros(4))}
        before = {name: parameter.detach().clone() for name, parameter in made.items()}
        RelativeAdam(made)({"a.weight": given, "a.bias": given[:, 0].clone()}, 0.02)
        moved[size] = {name: made[name].detach() - before[name] for name in made}
    for name in ("a.weight", "a.bias"):
        torch.testing.assert_close(moved[10.0][name], 10 * moved[1.0][name], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moved[1.0]["a.weight"].abs(), torch.full((4, 3), 0.02), rtol=1e-3, atol=0)
    nothing = {"z.weight": nn.Parameter(torch.zeros(4, 3))}
    RelativeAdam(nothing)({"z.weight": given}, 0.02)
    torch.testing.assert_close(nothing["z.weight"].detach().abs(), torch.full((4, 3), 0.02 * LEAST), rtol=1e-3, atol=0)


def test_a_restored_update_goes_on_as_if_nothing_had_been() -> None:
    """Bit for bit, also where the weights' sizes have changed since the start."""
    torch.manual_seed(0)
    given = [{"a.weight": torch.randn(4, 3)} for _ in range(6)]
    whole = {"a.weight": signs(4, 3)}
    half = {"a.weight": nn.Parameter(whole["a.weight"].detach().clone())}
    update = RelativeAdam(whole)
    for gradients in given:
        update(gradients, 0.5)
    first = RelativeAdam(half)
    for gradients in given[:3]:
        first(gradients, 0.5)
    second = RelativeAdam(half)
    second.restore(first.state())
    for gradients in given[3:]:
        second(gradients, 0.5)
    assert torch.equal(whole["a.weight"], half["a.weight"])


# The feature term


def test_the_feature_term_is_its_formula() -> None:
    """Sums over samples and features, one at a time; a kept class that the anchor does not show plays no part."""
    torch.manual_seed(0)
    d, weight = 3, 0.7
    anchor, own = torch.randn(12, d), torch.tensor([0, 2] * 6)
    of = features.kept(anchor, own, CLASSES)
    assert of.there.tolist() == [True, False, True, False]
    f, log_q = torch.randn(5, d), teacher.masked(torch.randn(5, CLASSES), (1,))
    mean = [anchor[own == k].mean(dim=0) if bool((own == k).any()) else None for k in range(CLASSES)]
    v = sum(float(anchor[:, j].var(correction=0)) for j in range(d)) / d
    away = []
    for row in range(5):
        q = [float(log_q[row, k].exp()) if mean[k] is not None else 0.0 for k in range(CLASSES)]
        mixed = sum((q[k] / sum(q) * mean[k] for k in (0, 2)), torch.zeros(d))  # type: ignore[operator]
        away.append(f[row] - mixed)
    first = sum(float(one.square().sum()) for one in away) / (5 * d * v)
    kept = [anchor[row] - mean[int(own[row])] for row in range(12)]  # type: ignore[operator]
    gap = sum(torch.outer(one, one) for one in away) / 5 - sum(torch.outer(one, one) for one in kept) / 12
    second = float(gap.square().sum()) / (d * v**2)  # type: ignore[union-attr]
    assert float(features.spread(f, log_q, anchor, own, of, weight)) == pytest.approx(first + weight * second, rel=1e-5)
    assert float(features.spread(f, log_q, anchor, own, of, 0.0)) == pytest.approx(first, rel=1e-5)


def test_the_feature_term_is_nothing_where_features_are_where_they_should_be() -> None:
    """At the kept classes' means in the teacher's mix, without the second term."""
    torch.manual_seed(0)
    anchor, own = torch.randn(12, 3), torch.arange(12) % 3
    of = features.kept(anchor, own, CLASSES)
    log_q = teacher.masked(torch.randn(5, CLASSES), (3,))
    at = log_q.exp().float() @ of.means
    assert float(features.spread(at, log_q, anchor, own, of, 0.0)) < 1e-10


# The training


@dataclass
class World:
    """A small network that remembers its training samples, those samples, and unseen ones."""

    net: nn.Sequential
    x: Tensor
    y: Tensor
    unseen: Tensor
    unseen_y: Tensor
    states: list[tuple[dict[str, Tensor], dict[str, Any]]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def copied(self) -> "World":
        """With a network of its own."""
        return replace(self, net=copy.deepcopy(self.net), states=[], told=[])


@pytest.fixture(scope="module")
def trained() -> World:
    """160 samples of four classes that overlap, all of them learnt by heart."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        centres = 1.3 * torch.randn(CLASSES, 8)

        def draw(n: int) -> tuple[Tensor, Tensor]:
            y = torch.arange(n) % CLASSES
            return centres[y] + torch.randn(n, 8), y

        x, y = draw(160)
        unseen, unseen_y = draw(240)
        net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, CLASSES))
        adam = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(300):
            adam.zero_grad()
            functional.cross_entropy(net(x), y).backward()
            adam.step()
    torch.set_num_threads(before)
    return World(net.eval(), x, y, unseen, unseen_y)


def run_of(net: nn.Sequential, x: Tensor) -> training.Run:
    def run(rows: Tensor) -> tuple[Tensor, Tensor]:
        h = net[:2](x[rows])
        return h, net[2](h)

    return run


def logits(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        made: Tensor = net(x).double()
    return made


def work(
    world: World, *, n: int = 24, kind: str = "sample", limits: dict[str, Any] | None = None, anchored: bool = True,
    blended: bool = False, more: dict[str, Any] | None = None, **schedule: Any,
) -> Training:  # fmt: skip
    """A training that forgets the first n samples, or those of class 0; the unseen ones are half anchor, half guard."""
    net = world.net
    rows = torch.arange(n) if kind == "sample" else (world.y == 0).nonzero().squeeze(1)
    x, y = world.x[rows], world.y[rows]
    plan = scenario.plan(kind, "test", y, CLASSES, "auto")  # type: ignore[arg-type]
    a, a_y, b, b_y = world.unseen[:120], world.unseen_y[:120], world.unseen[120:], world.unseen_y[120:]
    if kind == "class":
        a = a[a_y != 0]
    z = logits(net, x)
    hits = int((z.argmax(dim=1) == y).sum())
    goal = 0.005 if kind == "class" else float((logits(net, b).argmax(dim=1) == b_y).double().mean())
    kept = b_y != 0 if kind == "class" else torch.ones(len(b), dtype=torch.bool)
    said = Limits(goal, 1000, follows=kind == "sample", n=len(x), hits=hits, m=int(kept.sum()))

    def mixed(mine: Tensor, theirs: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        h = net[:2](a[theirs].lerp(a[mine], share[:, None]))
        return h, net[2](h)

    with torch.no_grad():
        anchor = Anchor(run_of(net, a), logits(net, a), net[:2](a), mixed if blended else None)
    made = Training(
        dict(net.named_parameters()), plan, Forgotten(run_of(net, x), z, y, None, torch.ones(len(x), dtype=torch.float64)),
        anchor if anchored else None, Unseen(run_of(net, b), logits(net, b), b_y, kept), replace(said, **(limits or {})),
        Schedule(**{"batches": 60, "forget": 16, "anchor": 32, "learning_rate": 0.01, **schedule}), **(more or {}),
    )  # fmt: skip
    made.told = world.told.append

    def save(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
        world.states.append(({name: tensor.clone() for name, tensor in tensors.items()}, copy.deepcopy(said)))

    made.save = save
    return made


def end(made: Training) -> Trained:
    """What the training comes to."""
    *_, last = made.train()
    assert isinstance(last, Trained)
    return last


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_forget_samples_come_to_look_unseen(trained: World) -> None:
    """The share falls to what unseen samples reach, the AUC with it, and the anchor keeps accuracy."""
    world = trained.copied()
    made = work(world, batches=200)
    found = end(made)
    start, last = found.looks[0][1], found.looks[-1][1]
    assert start.forget == 1.0
    assert start.auc is not None
    assert last.auc is not None
    assert last.auc < start.auc
    assert (found.reason, found.reached) == ("target", True)
    assert made.limits.share_met(last)
    assert found.steps < 200
    assert same(found.weights, loop.copied(made.parameters))
    assert last.test_drop is not None
    assert last.test_drop <= 0.05


def test_the_last_step_is_interpolated(trained: World) -> None:
    """Between the last two looks the first point that meets the target, to a part in 64; a little before it does not."""
    world = trained.copied()
    made = work(world, batches=200, looks=4)
    found = end(made)
    assert found.reason == "target"
    previous = {name: world.states[-1][0][f"weights.{name}"] for name in made.parameters}
    assert 0 < found.fraction <= 1
    now = {name: previous[name] + (value - previous[name]) / found.fraction for name, value in found.weights.items()}
    assert made.met(made.look()[0])
    before = max(0.0, found.fraction - 2 / 64)
    loop.put(made.parameters, {name: torch.lerp(previous[name], now[name], before) for name in now})
    assert not made.met(made.look()[0])
    assert found.looks[-1][0] == found.looks[-2][0] or found.fraction == 1


def test_a_schedule_that_ends_before_the_target(trained: World) -> None:
    """It says that steps ran out, and what it came to is the last look."""
    found = end(work(trained.copied(), batches=3, learning_rate=1e-4))
    assert (found.reason, found.reached, found.steps, found.fraction) == ("max_steps", False, 3, 1.0)


def test_a_budget_that_is_spent_walks_back(trained: World) -> None:
    """The weights are as far on the way to the end as the budget allows, and a little further they are beyond it."""
    made = work(trained.copied(), limits={"max_head_change": 0.02})
    found = end(made)
    assert found.reason == "max_head_change"
    assert 0 < found.fraction < 1
    last = found.looks[-1][1]
    assert 0.01 < last.head_change <= 0.02
    loop.put(made.parameters, {
        name: made.start[name] + (value - made.start[name]) * (1 + 2 / 64 / found.fraction)
        for name, value in found.weights.items()
    })  # fmt: skip
    assert made.limits.exceeded(made.look()[0]) == "max_head_change"


def test_the_accuracy_of_unseen_samples_is_guarded(trained: World) -> None:
    """No look at the end has fallen further than allowed, however hard it is pushed."""
    made = work(
        trained.copied(), limits={"max_drop": 0.0, "target": 0.0, "follows": False}, anchored=False, learning_rate=0.02
    )
    made.fixed = made.phi - 12
    found = end(made)
    assert (found.reason, found.reached) == ("max_drop", False)
    drop = found.looks[-1][1].test_drop
    assert drop is not None
    assert drop <= 0


def test_a_run_that_goes_astray_begins_again_at_half_the_rate(trained: World) -> None:
    """From the original weights; what it came to does not depend on what was tried before."""
    world = trained.copied()
    made = work(world, learning_rate=3.0, batches=10, limits={"target": 0.0, "follows": False})
    found = end(made)
    assert world.told
    assert all("begun again at half the learning rate" in told for told in world.told)
    assert found.learning_rate == 3.0 / 2 ** len(world.told)
    again = end(
        work(trained.copied(), learning_rate=found.learning_rate, batches=10, limits={"target": 0.0, "follows": False})
    )
    assert again.looks[0] == found.looks[0]


def test_a_run_that_is_astray_at_every_rate_is_an_error(trained: World) -> None:
    """Numbers that are none at whatever rate: it says so, and how far it went down."""
    world = trained.copied()
    made = work(world)
    made.forgotten.run = lambda rows: (
        world.x[rows],
        made.parameters["2.bias"] * torch.full((len(rows), CLASSES), math.nan),
    )
    with pytest.raises(ImuError, match=r"loses what it knows at every learning rate down to 0\.000625"):
        list(made.train())
    assert len(world.told) == loop.HALVINGS


def test_the_same_seed_gives_the_same_bytes(trained: World) -> None:
    """Weights and looks; another seed draws other batches."""
    one, other = (end(work(trained.copied(), batches=10, blended=True)) for _ in range(2))
    assert same(one.weights, other.weights)
    assert one.looks == other.looks
    assert not same(one.weights, end(work(trained.copied(), batches=10, blended=True, seed=1)).weights)


@pytest.mark.parametrize("kind", ["sample", "class"])
def test_a_run_that_goes_on_from_a_look_ends_with_the_same_bytes(trained: World, kind: str) -> None:
    """From every state that was kept: weights, looks and costs are those of the run that nobody interrupted."""
    more: dict[str, Any] = {
        "kind": kind,
        "batches": 12,
        "looks": 4,
        "blended": True,
        "limits": {"target": 0.0, "follows": False},
    }
    if kind == "class":
        more |= {"attraction": 1.0, "covariance": 0.1}
    world = trained.copied()
    whole = work(world, **more)
    wanted = end(whole)
    assert len(world.states) == 3
    for state in world.states:
        made = work(trained.copied(), more={"state": state}, **more)
        found = end(made)
        assert same(found.weights, wanted.weights)
        assert found.looks == wanted.looks
        assert made.spent == whole.spent + len(made.forgotten.labels) + 120, "one more look, to go on from"


def test_portions_change_nothing_but_rounding(trained: World) -> None:
    """Samples run together five at a time, or all at once."""
    few, all_of_them = (end(work(trained.copied(), batches=10, blended=True, at_once=size)) for size in (5, 256))
    for name, value in few.weights.items():
        torch.testing.assert_close(value, all_of_them.weights[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["sample", "class"])
def test_texts_of_about_one_length_run_together_and_change_nothing_but_rounding(trained: World, kind: str) -> None:
    """What rows say of themselves goes back to their places: the same end in any order, and portions by falling length."""
    ends, seen = [], list[Tensor]()
    for long in (False, True):
        made = work(trained.copied(), kind=kind, batches=6, at_once=5, attraction=float(kind == "class"))
        if long:
            run = made.forgotten.run
            of = torch.arange(len(made.forgotten.labels)) * 7 % 11
            made.forgotten.lengths = of
            made.forgotten.run = lambda rows, run=run: (seen.append(rows), run(rows))[1]  # type: ignore[misc]
            assert made.anchor is not None
            made.anchor.lengths = torch.arange(len(made.anchor.logits)) * 5 % 13
        ends.append(end(made))
    for name, value in ends[0].weights.items():
        torch.testing.assert_close(ends[1].weights[name], value, rtol=1e-3, atol=1e-4)
    assert all(len(rows) <= 5 and bool((of[rows].diff() <= 0).all()) for rows in seen)
    assert max(int(of[rows].max() - of[rows].min()) for rows in seen) < 10


class Group:
    """Two processes, as threads: they wait for each other at every sum."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=20)
        self.given: list[list[Tensor]] = [[], []]

    def rank(self, number: int) -> dict[str, Any]:
        """What this one takes, and how it adds up."""

        def join(tensors: list[Tensor]) -> None:
            self.given[number] = [tensor.clone() for tensor in tensors]
            self.barrier.wait()
            sums = [one + other for one, other in zip(*self.given, strict=True)]
            self.barrier.wait()
            for tensor, total in zip(tensors, sums, strict=True):
                tensor.copy_(total)

        return {"share": lambda rows: rows[number::2], "join": join}


def both(attempts: list[Callable[[], Any]]) -> list[Any]:
    """What two threads came to."""
    found: list[Any] = [None, None]

    def attempt(number: int) -> None:
        torch.set_num_threads(1)
        try:
            found[number] = attempts[number]()
        except BaseException as error:  # noqa: BLE001 shown by the test
            found[number] = error

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("kind", ["sample", "class"])
def test_two_processes_come_to_what_one_does(trained: World, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs half of every batch and of every look; both end with one process's weights, but for rounding."""
    monkeypatch.setattr(signals, "check", lambda: None)
    more: dict[str, Any] = {"kind": kind, "batches": 10, "blended": True}
    if kind == "class":
        more |= {"attraction": 1.0, "covariance": 0.1}
    wanted = end(work(trained.copied(), **more))
    group = Group()
    made = [work(trained.copied(), more=group.rank(number), **more) for number in range(2)]
    one, other = both([lambda: end(made[0]), lambda: end(made[1])])
    assert isinstance(one, Trained), one
    assert isinstance(other, Trained), other
    assert same(one.weights, other.weights)
    assert one.looks == other.looks
    for name, value in wanted.weights.items():
        torch.testing.assert_close(one.weights[name], value, rtol=1e-3, atol=1e-4)
    assert [step for step, _ in one.looks] == [step for step, _ in wanted.looks]


def test_a_loss_that_is_no_number_in_one_process_is_none_in_both(
    trained: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or one would begin again while the other goes on, and they would wait for each other for ever."""
    monkeypatch.setattr(signals, "check", lambda: None)
    group = Group()
    made = [work(trained.copied(), more=group.rank(number), anchored=False) for number in range(2)]
    made[0].forgotten.run = lambda rows: (
        rows,
        made[0].parameters["2.bias"] * torch.full((len(rows), CLASSES), math.nan),
    )
    rows = torch.arange(8)
    found = both([lambda one=one: one.gradients(Batch(rows), one.phi - 1)[1] for one in made])  # type: ignore[misc]
    assert [math.isfinite(loss) for loss in found] == [False, False]


def test_a_class_goes(trained: World) -> None:
    """The mask, with the anchor: its samples are never given its name, and others keep theirs."""
    found = end(work(trained.copied(), kind="class", batches=200))
    last = found.looks[-1][1]
    assert (found.reason, found.reached, found.targets) == ("target", True, "the mask")
    assert last.forget <= 0.005
    assert last.auc is None
    assert last.test_drop is not None
    assert last.test_drop <= 0.1


def test_with_the_feature_term_the_schedule_is_gone_through(trained: World) -> None:
    """Features come closer to the kept classes' means than without it; looks do not say how far, so nothing stops early."""
    away = {}
    for attraction in (0.0, 1.0):
        world = trained.copied()
        made = work(world, kind="class", batches=120, attraction=attraction, covariance=0.1 * attraction)
        found = end(made)
        assert (found.steps == 120) == bool(attraction)
        rows = torch.arange(len(made.forgotten.labels))
        assert made.anchor is not None
        given = made.anchor.logits.clone()
        given[:, 0] = -math.inf
        of = features.kept(made.anchor.features, given.argmax(dim=1), CLASSES)
        with torch.no_grad():
            h, z = made.forgotten.run(rows)
        away[attraction] = float(
            features.spread(h, made.teacher(rows, None, z), made.anchor.features, given.argmax(dim=1), of, 0.0)
        )
    assert away[1.0] < 0.8 * away[0.0]


def test_fixed_targets_stay(trained: World) -> None:
    """A share that the user names: every look has the same targets, whatever unseen samples do."""
    made = work(trained.copied(), limits={"target": 0.5, "follows": False}, batches=200)
    made.fixed = made.phi - float(made.phi.median()) - 1
    assert made.targets(made.look()[1]) is made.fixed
    found = end(made)
    assert (found.reason, found.reached, found.targets) == ("target", True, "fixed")
    assert found.looks[-1][1].forget <= 0.5


def test_targets_are_never_above_what_a_sample_has(trained: World) -> None:
    """By rank, under the network as it is at the look."""
    made = work(trained.copied())
    wanted = made.targets(made.look()[1])
    assert wanted is not None
    assert bool((wanted <= made.phi + 1e-9).all())
    assert bool((wanted[made.phi.argsort()].diff() >= -1e-9).all())
    with torch.no_grad():
        made.parameters["2.weight"].mul_(0.5)
    now = made.targets(made.look()[1])
    assert now is not None
    assert float((now - wanted).abs().max()) > 0.1


def test_a_weight_of_nothing_is_no_sample(trained: World) -> None:
    """Gradients are those of the other samples alone, by their weights."""
    made = work(trained.copied(), anchored=False)
    rows, wanted = torch.arange(6), made.phi - 2
    made.forgotten.weights = torch.tensor([1.0, 3.0, 0.0, 2.0, 0.0, 1.0] + [1.0] * 18, dtype=torch.float64)
    found, _ = made.gradients(Batch(rows), wanted)
    kept, _ = made.gradients(Batch(torch.tensor([0, 1, 3, 5])), wanted)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, kept[name])


def test_a_batch_without_weights_is_a_batch_without_forget_samples(trained: World) -> None:
    """Its loss is the anchor's, and a number."""
    made = work(trained.copied())
    made.forgotten.weights = torch.zeros(24, dtype=torch.float64)
    found, loss = made.gradients(Batch(torch.arange(6), torch.arange(7)), made.phi - 2)
    assert math.isfinite(loss)
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())


def test_the_gradient_is_that_of_the_formula(trained: World) -> None:
    """Σ w KL(q‖p)/Σ w + β · mean KL(p₀‖p) by torch's own functions, in one piece."""
    world = trained.copied()
    made = work(world, at_once=3, beta=1.7)
    assert made.anchor is not None
    made.forgotten.weights = torch.rand(24, dtype=torch.float64) + 0.5
    with torch.no_grad():
        made.parameters["2.weight"].add_(0.05)
    rows, anchored, wanted = torch.tensor([3, 1, 9, 20]), torch.arange(7), made.phi - 2
    found, loss = made.gradients(Batch(rows, anchored), wanted)
    w = made.forgotten.weights[rows].float()
    q = teacher.demoted(made.forgotten.logits[rows], made.forgotten.labels[rows], wanted[rows]).exp().float()
    p = made.forgotten.run(rows)[1].log_softmax(dim=1)
    first = (w / w.sum() * functional.kl_div(p, q, reduction="none").sum(dim=1)).sum()
    p0 = made.anchor.logits[anchored].softmax(dim=1).float()
    second = functional.kl_div(made.anchor.run(anchored)[1].log_softmax(dim=1), p0, reduction="batchmean")
    whole = first + 1.7 * second
    assert loss == pytest.approx(whole.item(), rel=1e-4)
    for gradient, expected in zip(
        found.values(), torch.autograd.grad(whole, list(made.parameters.values())), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_mixtures_are_held_to_what_the_original_says_of_them(trained: World) -> None:
    """The gradient of the anchor's term is 0 at the start, and the weights that move are put back."""
    made = work(trained.copied(), blended=True)
    anchored, others = torch.arange(12), (torch.arange(12, 24), torch.rand(12))
    made.forgotten.weights = torch.full_like(made.forgotten.weights, 1e-30)
    rows = torch.arange(2)
    gradients, _ = made.gradients(Batch(rows, anchored, others), made.phi)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) < 1e-6
    with torch.no_grad():
        made.parameters["0.weight"].mul_(1.2)
    before = loop.copied(made.parameters)
    gradients, _ = made.gradients(Batch(rows, anchored, others), made.phi)
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-4
    assert same(before, loop.copied(made.parameters))


def test_every_row_comes_once_before_any_comes_again() -> None:
    """In batches that do not divide their number, and in batches that are larger."""
    order = loop.Order(10, torch.Generator().manual_seed(0))
    drawn = torch.cat([order.take(4) for _ in range(5)])
    assert drawn[:10].sort().values.tolist() == drawn[10:].sort().values.tolist() == list(range(10))
    assert order.take(25).bincount(minlength=10).tolist().count(2) == 5


def test_shares_are_drawn_from_a_beta_distribution() -> None:
    """Mean ½ and variance 1/(4(2α + 1)), the same for the same seed."""
    drawn = training._shares(0.3, 20_000, torch.Generator().manual_seed(0)).double()
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(drawn.var()) == pytest.approx(1 / (4 * 1.6), abs=0.005)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1


def test_a_stop_leaves_the_training_at_once(trained: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every portion asks whether somebody pressed Ctrl-C."""
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 7:
            raise StoppedError("stopped")

    made = work(trained.copied())
    monkeypatch.setattr(signals, "check", check)
    with pytest.raises(StoppedError):
        list(made.train())


def test_what_is_looked_at_is_what_the_file_will_hold(trained: World) -> None:
    """In half precision, by the weights' names: the last look is that of the rounded weights, and it meets the target."""

    def to_file(name: str, value: Tensor) -> Tensor:
        return value.to(torch.bfloat16).float() if name == "0.weight" else value

    made = work(trained.copied(), batches=200, more={"to_file": to_file})
    found = end(made)
    assert (found.reason, found.reached) == ("target", True)
    assert torch.equal(found.weights["0.weight"], to_file("0.weight", found.weights["0.weight"]))
    assert not torch.equal(found.weights["2.weight"], to_file("0.weight", found.weights["2.weight"]))
    assert same(found.weights, loop.copied(made.parameters))
    assert made.look()[0] == found.looks[-1][1]


def test_a_target_that_a_file_cannot_hold_is_not_met(trained: World) -> None:
    """Where the file's values are those of the original, training goes on to its end and says so."""
    made = work(trained.copied(), batches=40, learning_rate=0.02)
    made.to_file = lambda name, _: made.start[name]
    found = end(made)
    assert (found.reason, found.reached, found.steps) == ("max_steps", False, 40)
    assert same(found.weights, made.start)


def test_steps_follow_the_number_of_samples() -> None:
    """More samples, more steps; a number that is given is kept."""
    lengths = [Schedule().length(n) for n in (1, 100, 5000)]
    assert lengths == sorted(set(lengths))
    assert Schedule(batches=7).length(5000) == 7


def test_the_teacher_of_a_wrong_label_is_the_network_itself(trained: World) -> None:
    """What the original says beside a wrong label was learnt with it: the label alone is held down, never up, the others keep their odds."""
    made = work(trained.copied(), kind="mislabelled")
    rows = torch.arange(6)
    labels = made.forgotten.labels[rows]
    torch.manual_seed(0)
    now = torch.randn(6, CLASSES, dtype=torch.float64)
    phi = margins.margins(now, labels)
    wanted = torch.zeros(len(made.forgotten.labels), dtype=torch.float64)
    wanted[rows] = torch.where(torch.arange(6) < 3, phi - 2, phi + 2)
    log_q = made.teacher(rows, wanted, now)
    torch.testing.assert_close(margins.margins(log_q, labels), torch.minimum(phi, wanted[rows]), rtol=1e-9, atol=1e-9)
    beside = torch.ones(6, CLASSES, dtype=torch.bool).scatter_(1, labels[:, None], False)
    odds = (log_q - now)[beside].view(6, -1)
    torch.testing.assert_close(odds, odds[:, :1].expand_as(odds), rtol=0, atol=1e-9)
    assert not torch.equal(made.forgotten.logits[rows], now)
