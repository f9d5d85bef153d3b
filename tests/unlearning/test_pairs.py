"""The demoted teacher on pairs: targets, the loss and its gradients over processes, batches, the stop rule, going on."""

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imu_cli.statistics import quantiles, retrieval, same_person
from imu_cli.statistics.retrieval import NO_CAMERA, Sightings
from imu_cli.unlearning.demotion import pairs
from imu_cli.unlearning.demotion.loop import Trained
from imu_cli.unlearning.demotion.pairs import Aim, Images, PairTraining, Schedule

FORGOTTEN, UNSEEN, EACH, PIXELS, SIZE = 3, 6, 6, 20, 8


def crowd(people: int, spread: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (n, PIXELS) of people, whom they show and by which of two cameras."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(people, PIXELS, generator=generator)
    whose = torch.arange(people).repeat_interleave(EACH)
    x = patterns[whose] + spread * torch.randn(len(whose), PIXELS, generator=generator)
    return x, whose, torch.arange(len(whose)) % 2


def sides(net: nn.Module) -> tuple[Images, Images, Images]:
    """Forgotten people, who are nearly alike on all their images, anchored ones and other unseen ones."""
    made = []
    for at, (people, spread) in enumerate(((FORGOTTEN, 0.3), (UNSEEN, 1.0), (UNSEEN, 1.0))):
        x, whose, cameras = crowd(people, spread, at)
        with torch.no_grad():
            directions = retrieval.directions(net(x))
        seen = Sightings(directions, whose + 100 * at, cameras, torch.arange(len(x)) + 1000 * at)
        made.append(Images(lambda rows, x=x: net(x[rows]), seen))
    return made[0], made[1], made[2]


def work(aim: float = 0.7, net: nn.Module | None = None, **more: Any) -> PairTraining:
    """A small network that is to forget."""
    torch.manual_seed(0)
    net = net or nn.Sequential(nn.Linear(PIXELS, 32), nn.ReLU(), nn.Linear(32, SIZE))
    forgotten, anchor, unseen = sides(net)
    ours, theirs = same_person.pairs(forgotten.seen), same_person.pairs(unseen.seen)
    assert ours is not None
    assert theirs is not None
    by_rank = quantiles.rank_map(ours.similar(forgotten.seen.directions), theirs.similar(unseen.seen.directions))
    schedule = Schedule(batches=60, forget=12, anchor=12, people=3, **more.pop("schedule", {}))
    queries = torch.zeros(len(unseen.seen), dtype=torch.bool)
    target = Aim(forgotten.seen.directions, by_rank, aim, "by rank")
    drop = more.pop("max_drop", 1.0)
    return PairTraining(
        dict(net.named_parameters()), forgotten, anchor, unseen, target, drop, schedule, queries, **more
    )


def end(made: PairTraining) -> Trained:
    """What a training ends with."""
    return next(item for item in made.train() if isinstance(item, Trained))


def test_only_pairs_of_one_forgotten_person_on_two_cameras_have_another_target() -> None:
    """Those are never to be more alike than they are; all other pairs keep their similarity."""
    made = work()
    rows, anchored = torch.tensor([0, 1, 2, 6, 7]), made.anchor.seen.of(torch.tensor([0, 1, 6]))  # type: ignore[union-attr]
    targets, less = made.wanted(rows, anchored)
    seen = made.forgotten.seen.of(rows)
    every = torch.cat([seen.directions, anchored.directions])
    kept = every @ every.T
    expected = torch.zeros(8, 8, dtype=torch.bool)
    for one, other in ((0, 1), (1, 2), (3, 4)):
        expected[one, other] = expected[other, one] = True
    assert torch.equal(less, expected)
    assert torch.equal(targets[~less], kept[~less])
    assert bool((targets[less] <= kept[less]).all())
    assert float((kept - targets)[less].min()) > 0


def test_a_person_seen_by_one_camera_is_forgotten_by_any_two_images() -> None:
    """Where cameras are not known any two images count too."""
    made = work()
    seen = made.forgotten.seen
    one_camera = replace(seen, cameras=torch.where(seen.people == 0, 0, seen.cameras))
    assert pairs.alone(one_camera) == [0]
    assert pairs.alone(replace(seen, cameras=torch.full_like(seen.cameras, NO_CAMERA))) == []
    made.forgotten = Images(made.forgotten.run, one_camera)
    made.__post_init__()
    _, less = made.wanted(torch.tensor([0, 1, 2, 6, 8]), seen.of(torch.zeros(0, dtype=torch.int64)))
    assert bool(less[:3, :3][~torch.eye(3, dtype=torch.bool)].all())
    assert not bool(less[3, 4])


def test_a_map_by_rank_gives_one_spread_the_other_ones_values() -> None:
    """Medians go to medians, order stays, ends are not left."""
    generator = torch.Generator().manual_seed(0)
    one, other = (
        torch.rand(500, generator=generator).double(),
        torch.rand(300, generator=generator).double() * 0.2 + 0.5,
    )
    found = quantiles.rank_map(one, other)
    assert float(found(one.median())) == pytest.approx(float(other.median()), abs=0.01)
    ordered = found(one.sort().values)
    assert bool((ordered.diff() >= 0).all())
    assert float(found(torch.tensor(-3.0))) == pytest.approx(float(other.min()))
    assert float(found(torch.tensor(3.0))) == pytest.approx(float(other.max()))
    assert float((torch.minimum(found(one), one) - same_person.by_rank(one, other)).abs().max()) < 0.01
    assert found(one.view(50, 10)).shape == (50, 10)


def test_gradients_are_those_of_the_loss() -> None:
    """Embeddings are put side by side first, and what the loss says of each goes back to what made it."""
    made = work()
    batch = made.batches(torch.Generator().manual_seed(0)).take()
    found, loss = made.gradients(batch, None)
    assert made.anchor is not None
    f = torch.cat([made.forgotten.run(batch.rows), made.anchor.run(batch.anchored)])
    whole = made.loss(f, batch.rows, made.anchor.seen.of(batch.anchored))
    expected = torch.autograd.grad(whole, list(made.parameters.values()))
    assert loss == pytest.approx(float(whole.detach()), rel=1e-6)
    for gradient, value in zip(found.values(), expected, strict=True):
        assert torch.allclose(gradient, value, rtol=1e-4, atol=1e-7)


class Group:
    """Processes as threads, which add up."""

    def __init__(self, count: int) -> None:
        self.barrier, self.given = threading.Barrier(count), [[] for _ in range(count)]

    def rank(self, at: int) -> dict[str, Any]:
        """Share and join of one of them."""
        count = len(self.given)

        def join(tensors: list[Tensor]) -> None:
            self.given[at] = [tensor.clone() for tensor in tensors]
            self.barrier.wait()
            for place, tensor in enumerate(tensors):
                tensor.copy_(sum(given[place] for given in self.given))  # type: ignore[arg-type]
            self.barrier.wait()

        return {"share": lambda rows: rows[at::count], "join": join}


def test_two_processes_find_what_one_does() -> None:
    """Each runs half of the images of a batch and of a look; sums in another order differ by rounding."""
    alone = work()
    batch = alone.batches(torch.Generator().manual_seed(0)).take()
    expected, loss = alone.gradients(batch, None)
    group, found = Group(2), {}
    made = [work(**group.rank(at)) for at in range(2)]  # not in the threads, which share one source of random numbers

    def run(at: int) -> None:
        found[at] = (made[at].gradients(batch, None), made[at].look()[0])

    ran = [threading.Thread(target=run, args=(at,)) for at in range(2)]
    for thread in ran:
        thread.start()
    for thread in ran:
        thread.join(30)
    for (gradients, own), look in found.values():
        assert own == pytest.approx(loss, rel=1e-5)
        assert look.auc == pytest.approx(alone.look()[0].auc, abs=1e-9)
        for name, value in expected.items():
            assert torch.allclose(gradients[name], value, rtol=1e-3, atol=1e-6)
    assert len(found) == 2


def test_batches_show_several_images_of_several_people() -> None:
    """No image twice, of every person at least two, and all images come before any comes again."""
    made = work()
    batches = made.batches(torch.Generator().manual_seed(0))
    rows = torch.cat([batches.take().rows for _ in range(2)])
    assert len(rows.unique()) == FORGOTTEN * EACH
    whose = made.forgotten.seen.people
    first = made.batches(torch.Generator().manual_seed(1)).take().rows
    assert len(first.unique()) == len(first) == 12
    assert torch.bincount(whose[first]).tolist() == [4, 4, 4]


def test_the_run_ends_where_the_auc_just_meets_the_aim() -> None:
    """Not further: the last step is interpolated, and what is kept looks as the last look says."""
    made = work(aim=0.7)
    start = made.original()[0]
    found = end(made)
    last = found.looks[-1][1]
    assert start.auc is not None
    assert last.auc is not None
    assert start.auc > 0.8
    assert (found.reason, found.reached) == ("target", True)
    assert 0.66 < last.auc <= 0.7 + 1e-6
    assert last.similarity < start.similarity
    assert made.look()[0] == last
    assert last.map is not None


def test_a_budget_ends_the_run_before_unseen_people_are_lost() -> None:
    """Of the way back to the original as much is kept as the fall of their mAP allows."""
    made = work(aim=0.0, max_drop=0.0, schedule={"learning_rate": 0.02, "beta": 0.0})
    found = end(made)
    assert found.looks[-2][1].test_drop is not None
    assert found.looks[-2][1].test_drop > 0
    assert found.reason == "max_drop"
    assert found.fraction < 1
    assert found.looks[-1][1].test_drop <= 1e-6
    assert found.reached is False


def test_an_interrupted_run_ends_with_the_same_bytes() -> None:
    """From any of its looks on."""
    kept: list[Any] = []

    def save(tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
        kept.append(({name: tensor.clone() for name, tensor in tensors.items()}, said))

    whole = end(work(aim=0.0, save=save))
    again = end(work(aim=0.0, state=kept[3]))
    assert len(kept) > 4
    assert all(torch.equal(whole.weights[name], again.weights[name]) for name in whole.weights)
    assert again.looks == whole.looks
