"""Tokens under a head of which some words' rows change: what the others bring to a margin stays, and is summed once.

Symbols as in ``vocabulary``. T are the words that take part, Δ (T, d+1) the change of their rows of W. The gradient of a
token's margin φ with respect to W h, B_i = e_y − softmax_{j≠y}(z_i), is taken at the token itself and at its largest other
words only: a matrix of a few entries a row, where whole rows of n tokens would be (n, V).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imu_cli.linear import vocabulary
from imu_cli.linear.vocabulary import Tokens, Vocabulary, Words


class Few(NamedTuple):
    """A matrix (n, T) with a few entries a row: ``columns`` (n, k) and ``values`` (n, k); a column twice in a row counts twice."""

    columns: Tensor
    values: Tensor

    def times(self, dense: Tensor) -> Tensor:
        """The product (n, d) with a dense (T, d)."""
        values = self.values.to(dense.dtype)
        return nn.functional.embedding_bag(self.columns, dense, per_sample_weights=values, mode="sum")

    def squares(self) -> Tensor:
        """Σ_k B_ik² of every row (n,); columns that stand twice are not joined."""
        return self.values.double().square().sum(dim=1)

    def turned(self, columns: int) -> "Turned":
        """Its transpose, for products."""
        flat = self.columns.flatten()
        order = flat.argsort(stable=True)
        starts = torch.searchsorted(flat[order], torch.arange(columns, device=flat.device))
        return Turned(order // self.columns.shape[1], self.values.flatten()[order], starts)


class Turned(NamedTuple):
    """The transpose (T, n) of a ``Few``: the rows of its entries in the order of its columns, their values, and where each column begins."""

    rows: Tensor
    values: Tensor
    starts: Tensor

    def times(self, dense: Tensor) -> Tensor:
        """The product (T, d) with a dense (n, d)."""
        values = self.values.to(dense.dtype)
        return nn.functional.embedding_bag(self.rows, dense, self.starts, per_sample_weights=values, mode="sum")


class Seen(NamedTuple):
    """What a head says of tokens: margins φ (n,) float64, whether each is the largest logit (n,), and B where it was asked for."""

    margins: Tensor
    hit: Tensor
    gradient: Few | None


class Rest(NamedTuple):
    """What the words that take no part bring to each token (n,) float64: their logsumexp, the largest logit, and the token's own.

    ``own`` is −inf where the token takes part itself; the token is not in the other two.
    """

    logsumexp: Tensor
    largest: Tensor
    own: Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """Tokens with what does not change of them: the words T that take part (sorted), and what the others bring.

    Attributes:
        rows: features (n, d) and targets (n,).
        head: the original.
        words: T.
        at: the place of each token in T (n,); −1 where it takes no part.
        rest: of the words that take no part.
    """

    rows: Tokens
    head: Vocabulary
    words: Tensor
    at: Tensor
    rest: Rest

    def matrix(self, change: Tensor | None = None) -> Tensor:
        """Rows of W for T, with Δ (T, d+1) added."""
        given = self.head.matrix[self.words.to(self.head.matrix.device)]
        return given if change is None else given.to(change) + change

    def seen(self, change: Tensor | None, keep: int = 0, dtype: torch.dtype = torch.float32) -> Seen:
        """Margins, hits and, with ``keep`` other words a row, B under the head that Δ (T, d+1) makes.

        Raises:
            ValueError: a gradient of tokens that take no part.
        """
        if keep and bool((self.at < 0).any()):
            raise ValueError("gradients are of tokens that take part")
        n, keep = len(self.rows.targets), min(keep, len(self.words) - 1)
        margins = torch.empty(n, dtype=torch.float64, device=self.at.device)
        hit = torch.empty(n, dtype=torch.bool, device=self.at.device)
        columns = torch.empty(n, keep + 1, dtype=torch.int64, device=self.at.device)
        values = torch.empty(n, keep + 1, dtype=dtype, device=self.at.device)
        some = Words(self.matrix(change), self.head.bias, self.head.scale, self.head.cap)
        for part, logits in vocabulary.blocks(self.rows.features, some, dtype):
            at, rest = self.at[part], Rest(*(column[part] for column in self.rest))
            inside = (at >= 0).nonzero().squeeze(1)
            own = rest.own.clone()
            own[inside] = logits[inside, at[inside]].double()
            slope = vocabulary.slopes(logits, self.head) if keep else 1.0
            logits[inside, at[inside]] = float("-inf")
            others = torch.logaddexp(_logsumexp(logits), rest.logsumexp)
            margins[part] = own - others
            hit[part] = own >= torch.maximum(logits.amax(dim=1).double(), rest.largest)
            if keep:
                found = logits.topk(keep, dim=1)
                columns[part] = torch.cat([at[:, None], found.indices], dim=1)
                share = (found.values.double() - others[:, None]).exp().neg()
                part_values = torch.cat([torch.ones_like(share[:, :1]), share], dim=1)
                steep = slope.gather(1, columns[part]) if isinstance(slope, Tensor) else slope
                values[part] = (part_values * steep).to(dtype)
        return Seen(margins, hit, Few(columns, values) if keep else None)


def _logsumexp(logits: Tensor) -> Tensor:
    """Logsumexp (n,) of finite logits or −inf, summed in float64."""
    top = logits.amax(dim=1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
    return (logits - top).exp_().sum(dim=1, dtype=torch.float64).log() + top.squeeze(1).double()


def largest_others(
    rows: Tokens, head: Vocabulary, keep: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Of every token its ``keep`` largest other words (n, k), and what is left out of B by taking these alone.

    The latter (n,) is the length of the part left out beside the length of B, from 0 to 1.
    """
    n, keep = len(rows.targets), min(keep, len(head.matrix) - 1)
    found = torch.empty(n, keep, dtype=torch.int64, device=rows.features.device)
    left = torch.empty(n, dtype=torch.float64, device=rows.features.device)
    for part, logits in vocabulary.blocks(rows.features, head, dtype):
        logits.scatter_(1, rows.targets[part].to(logits.device)[:, None], float("-inf"))
        top = logits.topk(keep, dim=1)
        found[part] = top.indices
        odds = logits.sub_(top.values[:, :1]).exp_()
        total = odds.sum(dim=1, dtype=torch.float64).square()
        kept = odds.gather(1, top.indices).double().square().sum(dim=1) / total
        whole = odds.square_().sum(dim=1, dtype=torch.float64) / total
        left[part] = ((whole - kept).clamp(min=0) / (1 + whole)).sqrt()
    return found, left


def part_of(rows: Tokens, head: Vocabulary, words: Tensor, dtype: torch.dtype = torch.float32) -> Part:
    """Tokens with what the words that take no part bring to them, by one pass over their logits.

    Args:
        rows: the tokens.
        head: the original.
        words: T, sorted, each once.
        dtype: of the logits.
    """
    n, device = len(rows.targets), rows.features.device
    words, targets = words.to(device), rows.targets.to(device)
    place = torch.searchsorted(words, targets).clamp(max=len(words) - 1)
    at = torch.where(words[place] == targets, place, -1)
    nothing = torch.full((n,), float("-inf"), dtype=torch.float64, device=device)
    rest = Rest(nothing.clone(), nothing.clone(), nothing.clone())
    if len(words) == len(head.matrix):
        return Part(rows, head, words, at, rest)
    for part, logits in vocabulary.blocks(rows.features, head, dtype):
        here = targets[part]
        outside = (at[part] < 0).nonzero().squeeze(1)
        rest.own[part.start + outside] = logits[outside, here[outside]].double()
        logits.index_fill_(1, words, float("-inf"))
        logits.scatter_(1, here[:, None], float("-inf"))
        rest.largest[part] = logits.amax(dim=1).double()
        rest.logsumexp[part] = _logsumexp(logits)
    return Part(rows, head, words, at, rest)
