"""Logits of many words by blocks: statistics and residuals are those of float64's dense tensors, whatever the blocks."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear import vocabulary
from imu_cli.linear.vocabulary import Words

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scaled": {"scale": 0.25},
    "capped": {"scale": 1.5, "cap": 4.0},
}


@dataclass(frozen=True)
class Rows:
    """Tokens to be predicted."""

    features: Tensor
    targets: Tensor


def made(kind: str, n: int = 37, words: int = 53, width: int = 7, spread: float = 2.0) -> tuple[Rows, Words]:
    draws = torch.Generator().manual_seed(3)
    head = Words(torch.randn(words, width + ("bias" in KINDS[kind]), generator=draws) * spread, **KINDS[kind])
    rows = Rows(torch.randn(n, width, generator=draws), torch.randint(words, (n,), generator=draws))
    rows.targets[:5] = vocabulary.logits_of(rows.features[:5], head).argmax(dim=1)  # some are predicted
    return rows, head


def dense(rows: Rows, head: Words, pushed: Tensor | None = None) -> Tensor:
    """Logits (n, V) in float64, as their definition has them; ``pushed`` is W h."""
    h = rows.features.double()
    h = torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], dim=1) if head.bias else h
    u = h @ head.matrix.double().T if pushed is None else pushed
    return head.scale * u if head.cap is None else head.cap * torch.tanh(head.scale * u / head.cap)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numbers", [40, 300, 1 << 24])
def test_statistics_are_the_definitions(monkeypatch: pytest.MonkeyPatch, kind: str, numbers: int) -> None:
    """Every column equals what dense float64 tensors give, with blocks of one token and with one of all; float32 to 1e-4."""
    monkeypatch.setattr(vocabulary, "NUMBERS_AT_ONCE", numbers)
    rows, head = made(kind)
    z = dense(rows, head)
    log_p, at = z.log_softmax(dim=1), rows.targets[:, None]
    mean = (log_p.exp() * log_p).sum(dim=1)
    h = rows.features.double()
    h = torch.cat([h, torch.ones(len(h), 1, dtype=h.dtype)], dim=1) if head.bias else h
    u = (h @ head.matrix.double().T).requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(dense(rows, head, u), rows.targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, [u])
    expected = {
        "loss": -log_p.gather(1, at).squeeze(1),
        "margin": z.gather(1, at).squeeze(1) - z.scatter(1, at, float("-inf")).logsumexp(dim=1),
        "mean": mean,
        "deviation": (log_p.exp() * (log_p - mean[:, None]).square()).sum(dim=1).sqrt(),
        "own": z.gather(1, at).squeeze(1),
        "energy": gradient.square().sum(dim=1),
    }
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        found = vocabulary.statistics(rows, head, dtype)
        assert torch.equal(found.hit, z.argmax(dim=1) == rows.targets)
        assert found.hit[:5].all()
        for name, values in expected.items():
            torch.testing.assert_close(getattr(found, name), values, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numbers", [40, 1 << 24])
def test_residuals_are_the_gradient(monkeypatch: pytest.MonkeyPatch, kind: str, numbers: int) -> None:
    """∂ℓ/∂(W h) by blocks of words is what autograd gives in float64, to 1e-9."""
    monkeypatch.setattr(vocabulary, "NUMBERS_AT_ONCE", numbers)
    rows, head = made(kind)
    h = vocabulary.homogeneous(rows.features, head, torch.float64)
    u = (h @ head.matrix.double().T).requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(dense(rows, head, u), rows.targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, [u])
    seen = vocabulary.statistics(rows, head, torch.float64)
    parts = list(vocabulary.residuals(rows, head, seen, torch.float64))
    assert [part.start for part, _ in parts[1:]] == [part.stop for part, _ in parts[:-1]]
    torch.testing.assert_close(torch.cat([a for _, a in parts], dim=1), gradient, rtol=1e-9, atol=1e-12)


def test_a_token_known_by_heart_has_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a margin of 40, where 1 − p is below float64's rounding, loss and residual are still exp(−40)."""
    head = Words(torch.tensor([[40.0], [0.0]]))
    rows = Rows(torch.ones(1, 1), torch.tensor([0]))
    seen = vocabulary.statistics(rows, head)
    assert float(seen.loss) == pytest.approx(4.248354e-18, rel=1e-5)
    ((_, a),) = vocabulary.residuals(rows, head, seen)
    assert a[0].tolist() == pytest.approx([-4.248354e-18, 4.248354e-18], rel=1e-5)


def test_what_is_no_vocabulary_is_refused() -> None:
    """One word has no margin; a token beyond the words, and numbers that are none, are named."""
    rows, head = made("plain")
    with pytest.raises(ImuError, match="one word only"):
        vocabulary.statistics(rows, Words(head.matrix[:1]))
    with pytest.raises(ImuError, match="token 53 is beyond the head's 53 words"):
        vocabulary.statistics(Rows(rows.features, rows.targets.clone().fill_(53)), head)
    broken = rows.features.clone()
    broken[4, 0] = float("nan")
    with pytest.raises(ImuError, match="token 4 are not finite"):
        vocabulary.statistics(Rows(broken, rows.targets), head)
