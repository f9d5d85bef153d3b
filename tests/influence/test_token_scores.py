"""Influence of tokens in closed form: autograd's, whatever the blocks, and exact per record."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.influence import closed_form, tokens
from imu_cli.influence.closed_form import Damping
from imu_cli.linear import vocabulary
from imu_cli.linear.vocabulary import Words

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.25},
    "capped": {"scale": 1.5, "cap": 6.0},
}
ABSOLUTE = Damping(0.01)


class Rows(NamedTuple):
    """Tokens to be predicted, of three records."""

    features: Tensor
    targets: Tensor
    records: Tensor


def made(
    kind: str = "plain", words: int = 1000, n: int = 23, width: int = 6, spread: float = 2.0
) -> tuple[Rows, Words]:
    draws = torch.Generator().manual_seed(5)
    head = Words(torch.randn(words, width + ("bias" in KINDS[kind]), generator=draws) * spread, **KINDS[kind])
    features = torch.randn(n, width, generator=draws)
    targets = torch.randint(words, (n,), generator=draws)
    targets[::2] = vocabulary.logits_of(features, head).argmax(dim=1)[::2]  # half of them are known
    return Rows(features, targets, torch.arange(n) * 3 // n), head


def gradients(rows: Rows, head: Words) -> Tensor:
    """Per-token gradients (n, V, d+1) by float64 autograd."""

    def loss(w: Tensor, h: Tensor, y: Tensor) -> Tensor:
        u = head.scale * (w @ h)
        z = u if head.cap is None else head.cap * torch.tanh(u / head.cap)
        others = torch.where(torch.arange(len(z)) == y, float("-inf"), z)
        return torch.nn.functional.softplus(torch.logsumexp(others, 0) - z.gather(0, y.reshape(1)).squeeze(0))

    h = vocabulary.homogeneous(rows.features, head, torch.float64)
    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(head.matrix.double(), h, rows.targets)


def expected(g: Tensor, lam: float) -> Tensor:
    return -(g * (g.mean(0) / (g.square().mean(0) + lam))).sum(dim=(1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_autograd_per_token(kind: str) -> None:
    """At V = 1,000 the closed form is batch-size-1 float64 autograd to 1e-9, with bias, scale and cap."""
    rows, head = made(kind)
    g = gradients(rows, head)
    found = tokens.influence(rows, head, ABSOLUTE, torch.float64)
    torch.testing.assert_close(found.scores, expected(g, 0.01), rtol=1e-9, atol=1e-300)
    assert found.mean_fisher == pytest.approx(float(g.square().mean()), rel=1e-6)


def test_scores_are_those_of_a_classifier() -> None:
    """The same rows as samples of an image classifier have the same scores: one definition."""
    rows, head = made("bias")
    h = vocabulary.homogeneous(rows.features, head, torch.float64)
    same = closed_form.influence(h, rows.targets, head.matrix.double(), ABSOLUTE)
    found = tokens.influence(rows, head, ABSOLUTE, torch.float64)
    torch.testing.assert_close(found.scores, same.scores, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.confidence, same.confidence, rtol=1e-9, atol=0)
    assert torch.equal(found.seen.hit, same.right)


@pytest.mark.parametrize("numbers", [50, 3_000])
def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    """Blocks of two words, of three tokens, or all at once: the same scores; in float32 they stay near those of float64."""
    rows, head = made(words=211)
    whole = tokens.influence(rows, head, ABSOLUTE, torch.float64)
    monkeypatch.setattr(vocabulary, "NUMBERS_AT_ONCE", numbers)
    monkeypatch.setattr(tokens, "ROWS_AT_ONCE", 7)
    done: list[int] = []
    parts = tokens.influence(rows, head, ABSOLUTE, torch.float64, done.append)
    torch.testing.assert_close(parts.scores, whole.scores, rtol=1e-11, atol=0)
    assert sum(done) == 211
    assert len(done) > 1
    assert torch.equal(rows.features, made(words=211)[0].features)
    narrow = tokens.influence(rows, head, ABSOLUTE)
    torch.testing.assert_close(narrow.scores, whole.scores, rtol=1e-4, atol=1e-6 * float(whole.scores.abs().max()))


def test_a_records_score_is_that_of_its_summed_gradient() -> None:
    """Summed over a record's tokens, scores are −(Σ g_i) · v, and all of them together lose nothing."""
    rows, head = made()
    g = gradients(rows, head)
    along = g.mean(0) / (g.square().mean(0) + 0.01)
    summed = torch.stack([g[rows.records == record].sum(0) for record in range(3)])
    scores = tokens.influence(rows, head, ABSOLUTE, torch.float64).scores
    found = tokens.by_record(scores, rows.records, 4)
    torch.testing.assert_close(found[:3], -(summed * along).sum(dim=(1, 2)), rtol=1e-9, atol=0)
    assert found[3] == 0


def test_a_damping_relative_to_the_fisher() -> None:
    """``relative:0.1`` is a tenth of the mean of F, found without F."""
    rows, head = made(words=100)
    g = gradients(rows, head)
    found = tokens.influence(rows, head, Damping(0.1, relative=True), torch.float64)
    lam = 0.1 * float(g.square().mean())
    torch.testing.assert_close(found.scores, expected(g, lam), rtol=1e-6, atol=0)


@pytest.mark.parametrize("damping", [ABSOLUTE, Damping(0.1, relative=True)])
def test_tokens_known_by_heart_keep_their_scores_in_float32(damping: Damping) -> None:
    """At margins of about 60 squared residuals are beyond float32's smallest number; scores still are those of float64."""
    rows, head = made(words=40)
    best = vocabulary.logits_of(rows.features, head).argmax(dim=1)
    strong = Words(head.matrix * 1.0)
    strong.matrix[best] += 6 * torch.nn.functional.normalize(rows.features, dim=1)
    steep = Words(strong.matrix * 8)
    known = Rows(rows.features, vocabulary.logits_of(rows.features, steep).argmax(dim=1), rows.records)
    wide = tokens.influence(known, steep, damping, torch.float64)
    assert float(wide.seen.margin.median()) > 40
    narrow = tokens.influence(known, steep, damping)
    torch.testing.assert_close(narrow.scores, wide.scores, rtol=1e-3, atol=1e-5 * float(wide.scores.abs().max()))


def test_nothing_to_score_is_an_error() -> None:
    """No token at all is said."""
    _, head = made(words=10)
    with pytest.raises(ImuError, match="no token to score"):
        tokens.influence(Rows(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64), torch.zeros(0)), head, ABSOLUTE)
