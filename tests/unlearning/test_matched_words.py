"""Matched unlearning of tokens: the sparse dual is the small dense solver's answer, and its memory knows no V."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear import few_words, margins, vocabulary
from imu_cli.linear.vocabulary import Words
from imu_cli.unlearning.matched import problem as dense
from imu_cli.unlearning.matched import solvers, words

KINDS: dict[str, dict[str, Any]] = {"plain": {}, "bias": {"bias": True}, "capped": {"scale": 1.5, "cap": 9.0}}


class Rows(NamedTuple):
    """Tokens to be predicted."""

    features: Tensor
    targets: Tensor


class Case(NamedTuple):
    """Tokens that are known, unseen ones, their head, and what margins are to become."""

    rows: Rows
    unseen: Rows
    head: Words
    targets: Tensor


def made(kind: str = "plain", n: int = 24, v: int = 60, width: int = 9) -> Case:
    draws = torch.Generator().manual_seed(7)
    head = Words(torch.randn(v, width + ("bias" in KINDS[kind]), generator=draws), **KINDS[kind])
    features, others = (torch.randn(size, width, generator=draws) for size in (n, 80))
    known = vocabulary.logits_of(features, head).argmax(dim=1)
    said = vocabulary.logits_of(others, head).softmax(dim=1)
    unseen = Rows(others, torch.multinomial(said, 1, generator=draws).squeeze(1))
    phi = vocabulary.statistics(Rows(features, known), head, torch.float64).margin
    return Case(Rows(features, known), unseen, head, phi - 2 * torch.rand(n, generator=draws, dtype=torch.float64))


def problem_of(case: Case, **options: Any) -> words.WordProblem:
    moment = words.second_moment(case.unseen, case.head)
    return words.prepare(case.rows, case.head, case.targets, moment, **options)


@pytest.mark.parametrize("kind", ["plain", "bias"])
@pytest.mark.parametrize("rho", [1.0, 1e-2])
def test_with_all_words_it_is_the_dense_solvers_answer(kind: str, rho: float) -> None:
    """Where every word takes part and products are float64, margins and head are those of the n × n dual."""
    case = made(kind)
    h = vocabulary.homogeneous(case.rows.features, case.head, torch.float64)
    moment = words.second_moment(case.unseen, case.head)
    system = dense.prepare(
        h, case.rows.targets, case.head.matrix.double(), case.targets, moment,
        weights=margins.error_weights(case.targets),
    )  # fmt: skip
    expected = solvers.solve(system, rho, form="dual", linearisations=8, tolerance=1e-6)
    mine = problem_of(case, keep=59, dtype=torch.float64)
    assert mine.scale == pytest.approx(system.scale, rel=1e-9)
    assert mine.left_out == pytest.approx(0, abs=1e-7)
    found = words.solve(mine, rho, linearisations=8, tolerance=1e-6, near=1e-6)
    torch.testing.assert_close(found.seen.margins, expected.margins, rtol=1e-4, atol=1e-4)
    change = torch.zeros_like(expected.head)
    change[mine.part.words] = found.change
    torch.testing.assert_close(change, expected.head - case.head.matrix.double(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_few_words_margins_come_to_their_targets(kind: str) -> None:
    """With four other words a token, in float32: margins are the head's own, near their targets, and other rows stay."""
    case = made(kind)
    mine = problem_of(case, keep=4)
    assert 0 < mine.left_out < 0.5
    found = words.solve(mine, 1e-4)
    assert len(mine.part.words) < 60
    moved = Words(case.head.matrix.clone(), **KINDS[kind])
    moved.matrix[mine.part.words] += found.change
    now = vocabulary.statistics(case.rows, moved, torch.float64)
    torch.testing.assert_close(found.seen.margins, now.margin, rtol=0, atol=1e-3)
    assert torch.equal(found.seen.hit, now.hit)
    before = float((case.targets - mine.original.margins).abs().mean())
    assert float((now.margin - case.targets).abs().mean()) < 0.1 * before


def test_less_damping_comes_nearer_at_more_change() -> None:
    """Along ρ margins come nearer their targets, and what unseen tokens see changes more."""
    case = made(n=60)
    mine = problem_of(case, keep=8)
    moment = words.second_moment(case.unseen, case.head).float()
    start, missed, cost = None, [], []
    for rho in (10.0, 1.0, 0.1):
        start = words.solve(mine, rho, start=start)
        missed.append(start.residuals[-1])
        cost.append(float(((start.change @ moment) * start.change).sum()))
    assert missed == sorted(missed, reverse=True)
    assert cost == sorted(cost)


def test_targets_may_follow_unseen_tokens() -> None:
    """Targets taken anew are those of the head that results."""
    case = made()
    mine = problem_of(case, keep=59)
    unseen = few_words.part_of(case.unseen, case.head, mine.part.words)

    def coupled(change: Tensor) -> Tensor:
        return margins.coupled_targets(mine.original.margins, unseen.seen(change).margins)

    found = words.solve(mine, 1e-3, retarget=coupled, linearisations=10)
    torch.testing.assert_close(found.targets, coupled(found.change), rtol=0, atol=0.05)
    assert float((found.seen.margins - found.targets).square().mean().sqrt()) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_take_no_part_are_summed_once(kind: str) -> None:
    """Margins and hits of any tokens are the whole head's, also of tokens that take no part."""
    case = made(kind)
    some = torch.arange(3, 60, 5)
    part = few_words.part_of(case.unseen, case.head, some, torch.float64)
    draws = torch.Generator().manual_seed(1)
    change = torch.randn(len(some), case.head.matrix.shape[1], generator=draws, dtype=torch.float64)
    moved = Words(case.head.matrix.double(), **KINDS[kind])
    moved.matrix[some] += change
    now = vocabulary.statistics(case.unseen, moved, torch.float64)
    seen = part.seen(change, dtype=torch.float64)
    torch.testing.assert_close(seen.margins, now.margin, rtol=1e-9, atol=1e-9)
    assert torch.equal(seen.hit, now.hit)


def test_what_cannot_be_matched_is_an_error() -> None:
    """Targets that are no numbers or not one a token, and a ρ that is no damping."""
    case = made()
    with pytest.raises(ImuError, match="one target a token"):
        problem_of(case._replace(targets=case.targets[:3]))
    with pytest.raises(ImuError, match="token 2: its target is not finite"):
        problem_of(case._replace(targets=case.targets.index_fill(0, torch.tensor(2), float("nan"))))
    with pytest.raises(ImuError, match="not a damping"):
        words.solve(problem_of(case), 0.0)
