"""The published update of a language model, corrected: scores, weights and gradients are those of autograd on the whole loss."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from imu_cli.influence.closed_form import Damping
from imu_cli.linear.vocabulary import Words
from imu_cli.unlearning.demotion import loop
from imu_cli.unlearning.demotion.completions import Aim, Completed, Schedule
from imu_cli.unlearning.demotion.published import Published, PublishedUpdate, scores

RECORDS, TOKENS, WORDS, WIDTH = 6, 4, 11, 5


def made(**given: float) -> tuple[PublishedUpdate, nn.Linear, Callable[[], Tensor]]:
    """An update of a layer below a head; the layer, and the records' mean losses (n,) under it, differentiable."""
    draws = torch.Generator().manual_seed(2)
    below, head = torch.randn(RECORDS * TOKENS, 3, generator=draws), torch.randn(WORDS, WIDTH, generator=draws)
    layer = nn.Linear(3, WIDTH)
    nn.init.normal_(layer.weight, generator=draws)
    nn.init.normal_(layer.bias, generator=draws)
    records = torch.arange(RECORDS).repeat_interleave(TOKENS)
    targets = torch.randint(WORDS, (RECORDS * TOKENS,), generator=draws)

    def places(rows: Tensor) -> Tensor:
        return (rows[:, None] * TOKENS + torch.arange(TOKENS)).flatten()

    def losses() -> Tensor:
        logits = layer(below) @ head.T
        return nn.functional.cross_entropy(logits, targets, reduction="none").view(RECORDS, TOKENS).mean(dim=1)

    features = layer(below).detach()
    of = Completed(lambda rows: layer(below[places(rows)]), features, targets, records, records < 0, places)
    how = Published(
        **{"epochs": 2, "weight_decay": 0.0, "l1": 0.02, "keep": 1.0, "clip_quantile": 0.93, **given},
        damping=Damping(0.01),
    )  # type: ignore[arg-type]
    work = PublishedUpdate(
        dict(layer.named_parameters()), Words(head), "", of, None, None, Aim(None, None, None, ""), 1.0,
        Schedule(forget=4, learning_rate=1e-3), torch.ones(RECORDS), published=how,
    )  # fmt: skip
    return work, layer, losses


def gradients(layer: nn.Linear, losses: Callable[[], Tensor]) -> list[list[Tensor]]:
    return [list(torch.autograd.grad(loss, layer.parameters(), retain_graph=True)) for loss in losses()]


def test_gradients_scores_and_step_are_autograds() -> None:
    """A record's gradient is that of its mean loss; the batch's step is the gradient of −Σ w ℓ / Σ w + α ‖θ‖₁."""
    work, layer, losses = made()
    each = gradients(layer, losses)
    rows = torch.tensor([0, 2, 3, 5])
    for row in rows.tolist():
        for mine, theirs in zip(work.gradient_of(torch.tensor(row)), each[row], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    g = torch.stack([torch.cat([part.flatten() for part in each[row]]) for row in rows.tolist()]).double()
    expected = -(g @ (g.mean(0) / (g.square().mean(0) + 0.01)))
    found = scores([each[row] for row in rows.tolist()], Damping(0.01))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    weights = torch.where(expected < 0, expected.abs().sqrt(), 0.0)
    kept = weights[weights > 0]
    weights = weights.clamp(max=float(torch.quantile(kept, 0.93)))
    torch.testing.assert_close(work.weigh(found), weights, rtol=1e-6, atol=1e-9)
    loss = -(weights * losses()[rows]).sum() / weights.sum() + 0.02 * sum(p.abs().sum() for p in layer.parameters())
    for mine, theirs in zip(work.ascent(rows), torch.autograd.grad(loss, list(layer.parameters())), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_it_runs_its_epochs_and_aims_at_nothing() -> None:
    """Two epochs of two batches, a look after each; the losses of the records rise, and no target is claimed."""
    work, _, losses = made(l1=0.0)
    before = float(losses().detach().mean())
    *looks, ended = list(work.train())
    assert isinstance(ended, loop.Trained)
    assert [step for step, _ in looks] == [0, 2, 4]  # type: ignore[misc]
    assert (ended.reason, ended.reached, ended.steps) == ("epochs", None, work.length())
    assert float(losses().detach().mean()) > before
    assert math.isclose(ended.looks[-1][1].loss, float(losses().detach().mean()), rel_tol=1e-5)


def test_a_batch_without_negative_scores_moves_by_l1_alone() -> None:
    """Nothing is ascended where no score is negative, and it is counted."""
    work, layer, _ = made()
    work.weigh = lambda found: torch.zeros_like(found)  # type: ignore[method-assign]
    step = work.ascent(torch.tensor([1, 4]))
    for mine, parameter in zip(step, layer.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.02 * parameter.detach().sign())
    assert work.skipped == 1


def test_a_single_record_is_its_own_mean() -> None:
    """The score of a record alone is −g²/(g² + λ) summed: negative, so that it is ascended."""
    work, layer, losses = made()
    (first, *_) = gradients(layer, losses)
    found = scores([first], Damping(0.01))
    expected = -sum(float((g.double() ** 2 / (g.double() ** 2 + 0.01)).sum()) for g in first)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert float(work.weigh(found)) > 0
