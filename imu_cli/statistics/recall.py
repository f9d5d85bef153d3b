"""What a language model can still say of a record, from what it says of each token of the answer.

ℓ is the mean cross-entropy of an answer's tokens, its end token included. What is said word by word is counted on the answer's own
tokens, without the end token: that a text is over is no part of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear.vocabulary import TokenStatistics
from imu_cli.statistics import bootstrap
from imu_cli.statistics.intervals import Estimate

LEAST_SHARE = 0.4
"""Share of an answer's least likely tokens that min-k % and min-k++ look at."""
LEAST_DEVIATION = 1e-6
"""What the deviation of log p is taken to be at least: a token that is known by heart has almost none."""


@dataclass(frozen=True, eq=False)
class Recalled:
    """What a model says of n answers, all (n,) and float64.

    Attributes:
        loss: ℓ, nats a token.
        exact: share of the answer's tokens that have the largest logit.
        extraction: 1 − k/|y|, k the shortest prefix of the answer after which every token has the largest logit; 0 where the last has not.
        rare: mean log p of the least likely tokens (min-k %).
        rare_standardised: the same of (log p − its mean over the words) / its deviation (min-k++; Zhang et al., ICLR 2025).
    """

    loss: Tensor
    exact: Tensor
    extraction: Tensor
    rare: Tensor
    rare_standardised: Tensor

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def probability(self) -> Tensor:
        """exp(−ℓ), the geometric mean of the tokens' probabilities (n,)."""
        return (-self.loss).exp()

    def only(self, rows: Tensor) -> "Recalled":
        """Some of them, by their numbers or a mask."""
        return Recalled(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def of(seen: TokenStatistics, records: Tensor, ends: Tensor, n: int) -> Recalled:
    """What is said of each of n answers.

    Args:
        seen: what the head says of every token (N,).
        records: which answer each token belongs to (N,), ascending.
        ends: which tokens say that an answer is over (N,).
        n: answers.

    Raises:
        ImuError: an answer without a token of its own.
    """
    records, loss = records.cpu(), seen.loss.cpu()
    total, exact, extraction = by_answer(loss, seen.hit.cpu(), records, ends.cpu(), n)
    standard = (-loss - seen.mean.cpu()) / seen.deviation.cpu().clamp_min(LEAST_DEVIATION)
    counts = torch.bincount(records, minlength=n).tolist()
    return Recalled(
        loss=total,
        exact=exact,
        extraction=extraction,
        rare=_least(-loss, counts),
        rare_standardised=_least(standard, counts),
    )


def by_answer(loss: Tensor, hit: Tensor, records: Tensor, ends: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """``loss``, ``exact`` and ``extraction`` of ``Recalled`` (n,), where the tokens are.

    Args:
        loss: cross-entropy of every token (N,).
        hit: whether it has the largest logit (N,).
        records, ends, n: as for ``of``.

    Raises:
        ImuError: an answer without a token of its own.
    """
    own, every = torch.bincount(records[~ends], minlength=n), torch.bincount(records, minlength=n)
    if bool((own == 0).any()):
        raise ImuError(f"recall: answer {int((own == 0).nonzero()[0])} has no token; take it out")
    none = torch.zeros(n, dtype=torch.float64, device=loss.device)
    total = none.index_add(0, records, loss.double())
    right = none.index_add(0, records[~ends], hit[~ends].double())
    return total / every, right / own, _extraction(hit[~ends], records[~ends], own)


def joined(parts: Sequence[Recalled]) -> Recalled:
    """Answers of several portions, one after the other."""
    return Recalled(*(torch.cat([getattr(part, name) for part in parts]) for name in Recalled.__dataclass_fields__))


def _extraction(hit: Tensor, records: Tensor, own: Tensor) -> Tensor:
    """1 − k/|y|: what follows the last token that is wrong, as a share of the answer."""
    place = torch.arange(len(hit), device=hit.device) - (own.cumsum(0) - own)[records]
    wrong = torch.where(hit, 0, place + 1)  # the prefix that a wrong token asks for
    prefix = torch.zeros(len(own), dtype=torch.int64, device=hit.device).scatter_reduce_(0, records, wrong, "amax")
    return 1 - prefix.double() / own


def _least(values: Tensor, counts: Sequence[int]) -> Tensor:
    """The mean of each answer's lowest values, at least one of them."""
    return torch.stack(
        [part.sort().values[: max(1, int(LEAST_SHARE * len(part)))].mean() for part in values.split(list(counts))]
    )


# --- membership


def membership(recalled: Recalled, sizes: Tensor, reference: Tensor | None) -> Mapping[str, Tensor]:
    """Scores by which an attacker tells what a model was trained on, by name, each (n,): the higher, the likelier.

    Args:
        recalled: what the model says of n answers.
        sizes: bytes of each answer under zlib (n,).
        reference: ℓ under a model that never saw them (n,), where there is one.
    """
    found = {
        "loss": -recalled.loss,
        "zlib": -recalled.loss / sizes,
        "min_k": recalled.rare,
        "min_k_plus": recalled.rare_standardised,
    }
    return found if reference is None else {**found, "reference": reference - recalled.loss}


# --- means over records


def mean(values: Tensor, seed: int = 0, what: str = "records") -> Estimate:
    """Mean over records (n,) of shares, records resampled."""
    return bootstrap.mean(values.double().cpu(), what, seed)


def mean_loss(values: Tensor, seed: int = 0, what: str = "records") -> Estimate:
    """Mean over records (n,) of a number without an upper end, records resampled; no interval where all are equal."""
    values = values.double().cpu()
    if bool((values == values[0]).all()):
        return Estimate(float(values[0]), None, None, len(values), f"all {len(values)} {what} alike: no interval")
    return bootstrap.ratio(values, torch.ones_like(values), what, seed)


def fall(before: Tensor, after: Tensor, seed: int = 0, what: str = "records") -> Estimate:
    """Mean of ``before − after`` of the same records (n,), shares both, resampled in pairs."""
    return bootstrap.difference(before.double().cpu(), after.double().cpu(), what, seed)


def gap(ours: Tensor, theirs: Tensor, seed: int = 0) -> Estimate:
    """Mean of one set of records (n,) less that of another (m,), shares both, each resampled by itself."""
    first, second = ours.double().cpu(), theirs.double().cpu()
    value = float(first.mean() - second.mean())
    ends = [mean(first, seed), mean(second, seed + 1)]
    low = [0.0 if end.low is None else end.value - end.low for end in ends]
    high = [0.0 if end.high is None else end.high - end.value for end in ends]
    # MOVER: the limits of each side by themselves, put together (Zou, Psychological Methods 12, 2007).
    made = Estimate(
        value,
        value - (low[0] ** 2 + high[1] ** 2) ** 0.5,
        value + (high[0] ** 2 + low[1] ** 2) ** 0.5,
        len(first),
        f"{ends[0].method}, against {len(second)}, MOVER",
    )
    return replace(made, low=max(-1.0, made.low or 0.0), high=min(1.0, made.high or 0.0))
