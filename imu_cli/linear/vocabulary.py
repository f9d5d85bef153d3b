"""The head of a language model over many tokens: logits of up to 256,000 words, by blocks of bounded memory.

Symbols as in docs/method.md, a row for every token that is predicted: h (n, d) what enters the head, W (V, d+1) the head
with a bias as last column where there is one, y (n,) the tokens. Of u = W h the logits are

    z = cap · tanh(scale · u / cap)         or  z = scale · u  without a cap

as Gemma's and Cohere's are; most models have neither. P = softmax(z), A = P − onehot(y). Neither is ever held as a whole.
Logits are float32 unless float64 is asked for; what is summed over words is summed in float64.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from imu_cli import signals
from imu_cli.errors import ImuError

NUMBERS_AT_ONCE = 1 << 24
"""Logits of a block: 64 MB in float32. With what is made of them a block takes about five times that."""


class Vocabulary(Protocol):
    """A head with a row for every word."""

    @property
    def matrix(self) -> Tensor:
        """W (V, d), or (V, d+1) with the bias as last column."""

    @property
    def bias(self) -> bool:
        """Whether the last column of W is a bias."""

    @property
    def scale(self) -> float:
        """What W h is multiplied by; 1 for most models."""

    @property
    def cap(self) -> float | None:
        """What logits stay below in size, by a tanh; None for most models."""


@dataclass(frozen=True)
class Words:
    """A head with a row for every word, by its values alone."""

    matrix: Tensor
    bias: bool = False
    scale: float = 1.0
    cap: float | None = None


class Tokens(Protocol):
    """Tokens that are predicted: what enters the head for each (n, d), and which token it is (n,)."""

    @property
    def features(self) -> Tensor:
        """What enters the head, (n, d)."""

    @property
    def targets(self) -> Tensor:
        """The tokens y, (n,) int64."""


@dataclass(frozen=True, eq=False)
class TokenStatistics:
    """What the head says of every token, all (n,) and float64 but ``hit``.

    Attributes:
        loss: −log p_y, exact also where p_y is nearly 1.
        margin: φ = z_y − logsumexp_{j≠y} z_j, the log-odds of the token.
        hit: whether the token has the largest logit (bool).
        mean, deviation: mean and standard deviation of log p over the words, under p.
        own: z_y.
        energy: Σ_k (∂ℓ/∂u_k)², the squared length of the loss's gradient with respect to W h.
    """

    loss: Tensor
    margin: Tensor
    hit: Tensor
    mean: Tensor
    deviation: Tensor
    own: Tensor
    energy: Tensor

    def __len__(self) -> int:
        return len(self.loss)


def logits_of(
    features: Tensor, head: Vocabulary, words: slice = slice(None), dtype: torch.dtype = torch.float32
) -> Tensor:
    """Logits z (n, k) of some tokens (n, d) and some words."""
    rows, h = head.matrix[words].to(features.device, dtype), features.to(dtype)
    width = rows.shape[1] - head.bias
    made = torch.addmm(rows[:, -1], h, rows[:, :width].T) if head.bias else h @ rows.T
    if head.cap is not None:
        return made.mul_(head.scale / head.cap).tanh_().mul_(head.cap)
    return made if head.scale == 1 else made.mul_(head.scale)


def slopes(logits: Tensor, head: Vocabulary) -> Tensor | float:
    """∂z/∂u, of the shape of the logits z, or one number for all of them where there is no cap."""
    return head.scale if head.cap is None else (logits / head.cap).square_().neg_().add_(1).mul_(head.scale)


def blocks(features: Tensor, head: Vocabulary, dtype: torch.dtype = torch.float32) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive tokens and their logits over all words, (b, V).

    The logits are the caller's: they may be overwritten. A signal ends the run between blocks.

    Args:
        features: what enters the head (n, d), in any floating dtype.
        head: the head, on any device.
        dtype: what logits are computed in.
    """
    rows = max(1, NUMBERS_AT_ONCE // max(1, len(head.matrix)))
    # Moved once for all blocks, and not for each.
    moved = Words(head.matrix.to(features.device, dtype), head.bias, head.scale, head.cap)
    for start in range(0, len(features), rows):
        signals.check()
        part = slice(start, min(start + rows, len(features)))
        yield part, logits_of(features[part], moved, dtype=dtype)


def statistics(rows: Tokens, head: Vocabulary, dtype: torch.dtype = torch.float32) -> TokenStatistics:
    """Loss, margin and the like of every token, by one pass over blocks of logits.

    Raises:
        ImuError: the head has one word only, a token is not among its words, or logits are not finite.
    """
    n, words = len(rows.targets), len(head.matrix)
    if words < 2:
        raise ImuError("head: has one word only, and so no margin; a language model's head has many")
    outside = (rows.targets < 0) | (rows.targets >= words)
    if bool(outside.any()):
        raise ImuError(
            f"tokens: token {int(rows.targets[outside][0])} is beyond the head's {words} words; the tokenizer is another model's"
        )
    columns = [torch.empty(n, dtype=torch.float64, device=rows.features.device) for _ in range(6)]
    hit = torch.empty(n, dtype=torch.bool, device=rows.features.device)
    for part, logits in blocks(rows.features, head, dtype):
        hit[part], *found = _statistics(logits, rows.targets[part].to(logits.device), head)
        for column, values in zip(columns, found, strict=True):
            column[part] = values
    loss, margin, mean, deviation, own, energy = columns
    if not bool(torch.isfinite(margin).all()):
        bad = int((~torch.isfinite(margin)).nonzero()[0])
        raise ImuError(f"tokens: logits of token {bad} are not finite; check the model's weights")
    return TokenStatistics(loss, margin, hit, mean, deviation, own, energy)


def _statistics(logits: Tensor, targets: Tensor, head: Vocabulary) -> tuple[Tensor, ...]:
    """The columns of ``TokenStatistics`` for a block of logits, which are overwritten; ``hit`` first."""
    at = targets[:, None]
    own, hit = logits.gather(1, at), logits.argmax(dim=1) == targets
    slope = slopes(logits, head)
    top = logits.scatter_(1, at, float("-inf")).amax(dim=1, keepdim=True)
    below = logits.scatter_(1, at, top).sub_(top)
    odds = below.exp().scatter_(1, at, 0.0)  # of the other words, beside the largest of them
    total = odds.sum(dim=1, dtype=torch.float64)
    weighed = odds * below
    first = weighed.sum(dim=1, dtype=torch.float64) / total
    second = weighed.mul_(below).sum(dim=1, dtype=torch.float64) / total
    energy = odds.mul_(slope).square_().sum(dim=1, dtype=torch.float64) / total.square()
    wide_own, wide_top = own.squeeze(1).double(), top.squeeze(1).double()
    margin = wide_own - wide_top - total.log()
    loss, share, rest = nn.functional.softplus(-margin), margin.sigmoid(), (-margin).sigmoid()
    others = first + wide_top - wide_own - loss  # mean of log p over the other words
    mean = rest * others - share * loss
    variance = rest * (second - first.square()).clamp(min=0) + share * rest * (others + loss).square()
    own_slope = slope.gather(1, at).squeeze(1).double() if isinstance(slope, Tensor) else slope
    return hit, loss, margin, mean, variance.sqrt(), wide_own, rest.square() * (energy + own_slope**2)


def residuals(
    rows: Tokens, head: Vocabulary, seen: TokenStatistics, dtype: torch.dtype = torch.float32, *, unit: float = 1.0
) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive words and ∂ℓ/∂u of every token for them, (n, k): A, times ∂z/∂u where there is a scale or a cap.

    What is summed over tokens for each word, such as a Fisher diagonal, is never needed for more words than these.

    Args:
        rows: the tokens.
        head: the head.
        seen: what ``statistics`` said of them.
        dtype: what the residuals are computed in.
        unit: what they are divided by: residuals of tokens that are known by heart have squares beyond float32.
    """
    n, words = len(rows.targets), len(head.matrix)
    step = max(1, NUMBERS_AT_ONCE // max(1, n))
    targets = rows.targets.to(rows.features.device)
    normaliser = (seen.own + seen.loss + math.log(unit)).to(dtype)[:, None]
    rest = (-seen.margin).sigmoid().div_(unit).to(dtype)
    for start in range(0, words, step):
        signals.check()
        part = slice(start, min(start + step, words))
        logits = logits_of(rows.features, head, part, dtype)
        slope = slopes(logits, head)
        made = logits.sub_(normaliser).exp_()
        inside = ((targets >= part.start) & (targets < part.stop)).nonzero().squeeze(1)
        made[inside, targets[inside] - part.start] = -rest[inside]
        yield part, made.mul_(slope) if isinstance(slope, Tensor) or slope != 1 else made


def homogeneous(features: Tensor, head: Vocabulary, dtype: torch.dtype = torch.float32) -> Tensor:
    """What enters the head, (n, d+1) with a column of ones where the head has a bias; (n, d) as it is otherwise."""
    wide = features.to(dtype)
    return nn.functional.pad(wide, (0, 1), value=1.0) if head.bias else wide
