"""The demoted teacher on completions: its loss and gradients, how records are judged, and what training does."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli.linear.vocabulary import Words
from imu_cli.unlearning.demotion import completions, loop
from imu_cli.unlearning.demotion.completions import KNEE, Aim, Completed, CompletionTraining, Schedule

WORDS, WIDTH = 23, 6


def loss_of(z: Tensor, old: Tensor, y: Tensor, t: Tensor, share: Tensor, others: float) -> Tensor:
    """The loss as docs/method.md writes it, with autograd's own functions."""
    rest = torch.zeros_like(z).scatter(1, y, -math.inf)
    phi = z.gather(1, y) - (z + rest).logsumexp(dim=1, keepdim=True)
    log_p, log_q = (z + rest).log_softmax(dim=1), (old + rest).log_softmax(dim=1)
    kept = torch.where(rest == 0, log_q.exp() * (log_q - log_p), 0).sum(dim=1, keepdim=True)
    q, p = t.sigmoid(), phi.sigmoid()
    pull = nn.functional.huber_loss(phi, t, reduction="none", delta=KNEE) / KNEE
    pull = pull + q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    return (share * (pull + others * kept)).sum()


def test_the_gradient_is_that_of_the_loss() -> None:
    """The closed form of both parts equals autograd's, in float64 to rounding."""
    torch.manual_seed(0)
    z, old = torch.randn(9, WORDS, dtype=torch.float64, requires_grad=True), torch.randn(9, WORDS, dtype=torch.float64)
    y, share = torch.randint(0, WORDS, (9, 1)), torch.rand(9, 1, dtype=torch.float64)
    t = torch.randn(9, 1, dtype=torch.float64) * 4 - 5  # on both sides of the knee
    expected = loss_of(z, old, y, t, share, 0.7)
    (slopes,) = torch.autograd.grad(expected, z)
    found, made = completions._demoted(z.detach().clone(), old.clone(), y, t, share, 0.7)
    assert math.isclose(found, float(expected.detach()), rel_tol=1e-12)
    assert torch.allclose(made, slopes, rtol=0, atol=1e-13)

    held = (share * (old.softmax(1) * (old.log_softmax(1) - z.log_softmax(1))).sum(1, keepdim=True)).sum()
    (slopes,) = torch.autograd.grad(held, z)
    found, made = completions._held(z.detach().clone(), old.clone(), share)
    assert math.isclose(found, float(held.detach()), rel_tol=1e-12)
    assert torch.allclose(made, slopes, rtol=0, atol=1e-14)


def test_the_teacher_is_the_optimum() -> None:
    """Where the log-odds are the target and the other words keep their proportions, loss and gradient are 0."""
    torch.manual_seed(1)
    old, y = torch.randn(4, WORDS, dtype=torch.float64), torch.randint(0, WORDS, (4, 1))
    t = torch.full((4, 1), -3.0, dtype=torch.float64)
    rest = old.scatter(1, y, -math.inf).logsumexp(dim=1, keepdim=True)
    z = old.scatter(1, y, t + rest)
    found, made = completions._demoted(z, old.clone(), y, t, torch.ones(4, 1, dtype=torch.float64), 1.0)
    assert abs(found) < 1e-14
    assert float(made.abs().max()) < 1e-14


class Small(nn.Module):
    """Features of every token that move: a table, and a layer on it."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.given = torch.randn(tokens, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)


def side(model: Small, counts: list[int], first: int) -> Completed:
    """Records of so many tokens each, from the ``first`` token of the table on; the last token of each is the end."""
    sizes = torch.tensor(counts)
    starts = sizes.cumsum(0) - sizes
    targets = torch.randint(1, WORDS, (int(sizes.sum()),))
    ends = torch.zeros(len(targets), dtype=torch.bool)
    ends[sizes.cumsum(0) - 1] = True

    def places(rows: Tensor) -> Tensor:
        return torch.cat([torch.arange(int(starts[row]), int(starts[row] + sizes[row])) for row in rows.tolist()])

    def run(rows: Tensor) -> Tensor:
        return model.layer(model.given[first + places(rows)])

    record = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    with torch.no_grad():
        features = run(torch.arange(len(sizes)))
    return Completed(run, features, targets, record, ends, places, sizes)


def training(seed: int = 0, moving_head: bool = False, **given: Any) -> CompletionTraining:
    """Four forgotten and six unseen records under a model that knows the former."""
    torch.manual_seed(seed)
    model, head = Small(60), nn.Parameter(torch.randn(WORDS, WIDTH))
    forgotten, unseen = side(model, [5, 3, 4, 6], 0), side(model, [4, 5, 3, 6, 4, 5], 20)
    optimizer = torch.optim.Adam([model.given.requires_grad_(True)], 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(forgotten.run(torch.arange(4)) @ head.detach().T, forgotten.targets).backward()
        optimizer.step()
    model.given.requires_grad_(False)
    forgotten, unseen = (replace(one, features=one.run(torch.arange(one.n)).detach()) for one in (forgotten, unseen))
    parameters = {"layer.weight": model.layer.weight, "layer.bias": model.layer.bias}
    if moving_head:
        parameters["head.weight"] = head
    aim = Aim(None, None, None, "unseen records by rank")
    schedule = Schedule(**{"batches": 60, "forget": 4, "anchor": 6, "at_once": 2, "learning_rate": 0.05, **given})
    return CompletionTraining(
        parameters, Words(head.detach().clone()), "head.weight" if moving_head else "", forgotten, unseen, unseen, aim, 1.0, schedule,
        torch.ones(4),
    )  # fmt: skip


def test_records_are_judged_as_one_would_by_hand() -> None:
    """Share of right tokens without the end, extraction strength by its definition, and mean cross-entropy, record by record."""
    work = training()
    of = work.forgotten
    logits = (of.features @ work.head.matrix.T).double()
    found = completions.judged(of.features, of, work.head)
    for record in range(of.n):
        own = of.records == record
        right = (logits[own].argmax(dim=1) == of.targets[own])[~of.ends[own]].tolist()
        strength = next((1 - start / len(right) for start in range(len(right)) if all(right[start:])), 0.0)
        assert math.isclose(float(found.memorized[record]), sum(right) / len(right))
        assert math.isclose(float(found.extraction[record]), strength)
        loss = nn.functional.cross_entropy(logits[own], of.targets[own])
        # float32 logits of size 10 and their sums in two orders.
        assert math.isclose(float(found.loss[record]), float(loss), rel_tol=1e-4, abs_tol=1e-5)


def test_gradients_are_those_of_the_whole_loss() -> None:
    """Through the network and through the head where it moves; portions that run together, and lengths, do not matter."""
    for at_once in (1, 3, 10):
        work = training(moving_head=True, at_once=at_once)
        wanted = work.targets(work.original()[1])
        batch = completions._Batch(torch.arange(4), torch.arange(6))
        made, loss = work.gradients(batch, wanted)
        head = work.parameters["head.weight"]
        total = torch.zeros(())
        for of, part in ((work.forgotten, "forget"), (work.anchor, "anchor")):
            assert of is not None
            z, old = of.run(torch.arange(of.n)) @ head.T, of.features @ work.head.matrix.T
            share = torch.full((len(of.targets), 1), 1 / len(of.targets))
            if part == "forget":
                total = total + loss_of(z, old, of.targets[:, None], wanted[:, None].float(), share, 1.0)
            else:
                total = (
                    total
                    + (share * (old.softmax(1) * (old.log_softmax(1) - z.log_softmax(1))).sum(1, keepdim=True)).sum()
                )
        expected = torch.autograd.grad(total, list(work.parameters.values()))
        assert math.isclose(loss, float(total.detach()), rel_tol=1e-4)
        for gradient, found in zip(expected, made.values(), strict=True):
            # float32: sums over 18 and 27 tokens in two orders.
            assert torch.allclose(found, gradient, rtol=1e-3, atol=1e-5)


def test_of_a_draw_the_rest_is_free() -> None:
    """A token that was less likely than not asks for its own log-odds alone; one that was likelier holds the rest too."""
    work = training(moving_head=True)
    with torch.no_grad():
        work.parameters["head.weight"].add_(0.3 * torch.randn_like(work.parameters["head.weight"]))
    head = work.parameters["head.weight"]
    for likely in (True, False):
        work.phi = torch.full_like(work.phi, 2.0 if likely else -2.0)
        wanted = torch.full_like(work.phi, -3.0)
        made, _ = work.gradients(completions._Batch(torch.arange(4), None), wanted)
        of = work.forgotten
        z, old = of.run(torch.arange(of.n)) @ head.T, of.features @ work.head.matrix.T
        share = torch.full((len(of.targets), 1), 1 / len(of.targets))
        total = loss_of(z, old, of.targets[:, None], wanted[:, None].float(), share, float(likely))
        for gradient, found in zip(
            torch.autograd.grad(total, list(work.parameters.values())), made.values(), strict=True
        ):
            # float32: sums over 18 tokens in two orders.
            assert torch.allclose(found, gradient, rtol=1e-3, atol=1e-5)


def test_targets_are_lower_where_the_run_would_not_get_there() -> None:
    """At a look from which its pace does not suffice, by twice what is missing; less again where it went too far; the same after a pause."""
    work = training(batches=100)
    work.aim = replace(work.aim, by_loss=True, loss=2.0)

    def look(loss: float) -> completions.Look:
        return completions.Look(0.5, 0.1, loss, 0.1)

    looks = [(0, look(0.0)), (20, look(1.0))]
    work.follow(looks)
    assert work.lower == 0.0, "as far again in each of four looks is enough"
    looks.append((40, look(1.1)))
    work.follow(looks)
    assert math.isclose(work.lower, 2 * 0.9)
    wanted = work.targets(work.before.margins if work.before else None)
    work.lower = 0.0
    plain = work.targets(work.before.margins if work.before else None)
    falls = plain < work.phi
    assert bool(falls.any())
    assert torch.allclose(wanted, torch.where(falls, plain - 2 * 0.9, plain))
    looks.append((60, look(2.5)))
    work.follow(looks)
    assert math.isclose(work.lower, 2 * (0.9 - 0.5))
    work.follow(looks)
    assert math.isclose(work.lower, 2 * (0.9 - 0.5)), "it follows the looks, not the times that it is asked"


def ended(work: CompletionTraining) -> loop.Trained[completions.Look]:
    """What a training ends with."""
    *_, last = work.train()
    assert isinstance(last, loop.Trained)
    return last


def test_training_goes_down_to_its_level_and_no_further() -> None:
    """The share of right tokens of forgotten records falls to the level, and the run ends there."""
    work = training()
    work.aim = Aim(None, 0.45, 1.0, "a level")
    found = ended(work)
    start, end = found.looks[0][1], found.looks[-1][1]
    assert start.forget > 0.7
    assert found.reason == "target"
    assert 0.1 <= end.forget <= 0.45 + 0.002  # a token of four short records is a large step
    assert end.loss > start.loss


def test_what_is_no_longer_memorised_may_still_be_likelier() -> None:
    """By loss, a run goes on until forgotten records are no likelier than the aim, or than unseen ones; else memorisation ends it."""
    look = completions.Look(
        forget=0.3, extraction=0.05, loss=2.0, head_change=0.1, unseen=0.3, unseen_extraction=0.05, unseen_loss=3.0
    )
    follows = Aim(None, None, None, "unseen records by rank", (0.0, 0.0, 0.1))
    assert follows.met(look)
    assert not replace(follows, by_loss=True).met(look)
    assert replace(follows, by_loss=True).met(replace(look, loss=2.91))
    fixed = Aim(torch.zeros(1), 0.3, 0.05, "a reference model", (0.0, 0.0, 0.1), loss=2.05, by_loss=True)
    assert fixed.met(look)
    assert not fixed.met(replace(look, loss=1.9))
    assert not fixed.met(replace(look, forget=0.4))


def test_targets_say_what_loss_they_are() -> None:
    """The mean cross-entropy of records whose tokens have some log-odds, over tokens of a record first."""
    of = training().forgotten
    margin = torch.linspace(-3, 3, len(of.targets))
    by_hand = [nn.functional.softplus(-margin[of.records == row]).mean() for row in range(of.n)]
    assert torch.allclose(completions.losses(of, margin).float(), torch.stack(by_hand))


def test_the_same_seed_gives_the_same_weights() -> None:
    """Same seed and plan: the same bits."""
    one, other = ended(training()), ended(training())
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_targets_are_never_above_what_is_known() -> None:
    """A token that is less likely than an unseen one of its rank stays where it is."""
    work = training()
    wanted = work.targets(work.original()[1])
    assert bool((wanted <= work.phi).all())
    fixed = CompletionTraining(**{**vars_of(work), "aim": Aim(torch.full_like(work.phi, -2.0), 0.1, 0.1, "reference")})
    wanted = fixed.targets(None)
    lower = work.phi > -2.0
    assert torch.equal(wanted[~lower], work.phi[~lower])
    assert bool((wanted[lower] == -2.0 - fixed.aim.beyond).all())


def vars_of(work: CompletionTraining) -> dict[str, Any]:
    """What it was made of."""
    names = (
        "parameters",
        "head",
        "moving_head",
        "forgotten",
        "anchor",
        "unseen",
        "aim",
        "max_drop",
        "schedule",
        "weights",
    )
    return {name: getattr(work, name) for name in names}
