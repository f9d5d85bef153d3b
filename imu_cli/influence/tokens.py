"""Influence of every token that is to be forgotten, in closed form: ``closed_form`` for a head of up to 256,000 words.

A token is a sample and its gradient the outer product A_i ⊗ h_i, as there. Scores are sums over words,

    s_i = −Σ_k A_ik (v_k · h_i),    v_k = ḡ_k ⊘ (F_k + λ),    F_k = Σ_i A_ik² h_i² / n,    ḡ_k = Σ_i A_ik h_i / n

and each word's part needs that word's rows of F and ḡ alone: neither these (V, d+1) nor A (n, V) is ever held. One pass over
the logits by blocks of tokens normalises them, a second by blocks of words does all the rest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.events import Advance
from imu_cli.influence.closed_form import Damping
from imu_cli.linear import vocabulary
from imu_cli.linear.vocabulary import Tokens, TokenStatistics, Vocabulary

ROWS_AT_ONCE = 4096
"""Tokens whose products are summed in the logits' dtype before they are added up in float64."""


@dataclass(frozen=True, eq=False)
class TokenInfluence:
    """Scores (n,) float64 of n tokens, with what they were computed from.

    ``seen`` is what the head says of them; λ and the mean of the Fisher diagonal are numbers, as in ``closed_form.Influence``.
    """

    scores: Tensor
    seen: TokenStatistics
    damping: float
    mean_fisher: float

    @property
    def confidence(self) -> Tensor:
        """Probability of each token (n,)."""
        return self.seen.loss.neg().exp()


def influence(
    rows: Tokens,
    head: Vocabulary,
    damping: Damping,
    dtype: torch.dtype = torch.float32,
    advance: Advance = lambda words: None,
) -> TokenInfluence:
    """Influence score of each token; those of a record are summed by ``by_record``.

    Five products of size (n, d) by (d, V), in blocks whose memory grows with neither n V nor V d.

    Args:
        rows: the tokens: features (n, d), targets (n,).
        head: W (V, d+1).
        damping: λ; relative to the mean of F over all words.
        dtype: of the products; sums over tokens and words are float64 in any case.
        advance: told of the words that are done.

    Raises:
        ImuError: no token, a score is not finite, a relative damping has nothing to be relative to, or what ``statistics`` refuses.
    """
    n = len(rows.targets)
    if n == 0:
        raise ImuError("influence: no token to score; the completions are empty")
    seen = vocabulary.statistics(rows, head, dtype)
    mean_fisher = _mean_fisher(rows, head, seen)
    lam = damping.absolute(mean_fisher)
    # In units of the largest residual: squares of what is known by heart would be 0 in float32. Scores do not know of it.
    unit = max(float((-seen.margin).sigmoid().max()), torch.finfo(torch.float64).tiny)
    scores = torch.zeros_like(seen.loss)
    for words, a in vocabulary.residuals(rows, head, seen, dtype, unit=unit):
        _add_up(scores, rows, head, a, lam / unit**2)
        advance(words.stop - words.start)
    if not bool(torch.isfinite(scores).all()):
        bad = int((~torch.isfinite(scores)).nonzero()[0])
        raise ImuError(f"influence, token {bad}: the score is not finite; raise --damping (λ is {lam:g})")
    return TokenInfluence(scores, seen, lam, mean_fisher)


def _mean_fisher(rows: Tokens, head: Vocabulary, seen: TokenStatistics) -> float:
    """Mean of F over words and features: Σ_i ‖A_i‖² ‖h_i‖² / (n V (d+1)), which needs no F."""
    total = 0.0
    for part in _parts(len(seen)):
        h = vocabulary.homogeneous(rows.features[part], head)
        total += float((seen.energy[part] * h.square().sum(dim=1, dtype=torch.float64)).sum())
    return total / (len(seen) * head.matrix.numel())


def _add_up(scores: Tensor, rows: Tokens, head: Vocabulary, a: Tensor, damping: float) -> None:
    """Add what some words bring to every token's score; a is A (n, k) of these words."""
    n, k = a.shape
    width = rows.features.shape[1] + head.bias
    fisher, gradient = (torch.zeros(k, width, dtype=torch.float64, device=a.device) for _ in range(2))
    for part in _parts(n):
        h = vocabulary.homogeneous(rows.features[part], head, a.dtype)
        gradient += a[part].T @ h
        fisher += a[part].square().T @ h.square()
    along = gradient.div_(n).div_(fisher.div_(n).add_(damping))
    largest = float(along.abs().max())
    if largest == 0:
        return
    narrow = along.div_(largest).to(a.dtype)
    for part in _parts(n):
        h = vocabulary.homogeneous(rows.features[part], head, a.dtype)
        scores[part] -= (a[part] @ narrow).mul_(h).sum(dim=1, dtype=torch.float64).mul_(largest)


def _parts(n: int) -> list[slice]:
    return [slice(start, min(start + ROWS_AT_ONCE, n)) for start in range(0, n, ROWS_AT_ONCE)]


def by_record(values: Tensor, records: Tensor, count: int) -> Tensor:
    """Sums (count,) float64 of the tokens of each record.

    Of scores: the score of the record's summed gradient, since a score is linear in the gradient that it is of.

    Args:
        values: of tokens (n,).
        records: the record (n,) that each belongs to, below ``count``.
        count: how many records there are.
    """
    made = torch.zeros(count, dtype=torch.float64, device=values.device)
    return made.index_add_(0, records.to(values.device), values.to(torch.float64))
