"""How much of what makes D_f distinguishable is left in the features: the information difference index of arXiv 2405.17878.

The paper adds I(Z; Y) up over layers, Y saying whether a sample belongs to D_f, and estimates each term by InfoNCE with the
remaining layers as critic. Here Z is what enters the head alone, where that critic is a linear classifier, and the estimate is
the cross-fitted bound of one: log 2 less its loss on samples that it was not fitted on, in nats.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.evaluation.feature_attacks import FOLDS, Chosen
from imu_cli.statistics import clustered
from imu_cli.statistics.clustered import Clusters, some
from imu_cli.statistics.intervals import Estimate, NotMeasured

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""C of scikit-learn's logistic regression on standardised features: the best on a part that is held back for this. Wide
features (2,048 of 4,000 samples) would lose two nats where there is nothing to know, were they always fitted closely."""
RESAMPLES = 1000


def balanced(chosen: Chosen) -> Chosen:
    """As many samples of one side as of the other, evenly from what was drawn, so that a guess loses log 2."""
    few = min(len(chosen.forget), len(chosen.pool))
    kept = [torch.linspace(0, len(side) - 1, few).round().long() for side in (chosen.forget, chosen.pool)]
    rows = torch.cat([kept[0], len(chosen.forget) + kept[1]])
    clusters = some(chosen.clusters, rows)
    return Chosen(chosen.forget[kept[0]], chosen.pool[kept[1]], chosen.labels[rows], chosen.folds[rows], clusters)


def gained(h: Tensor, chosen: Chosen) -> Tensor:
    """What a linear classifier of the other parts says about each sample's side, log 2 + log q(y | h), (n,) nats.

    Its mean is a lower bound of I(Z; Y) in expectation, and the information that a linear classifier can use.

    Args:
        h: (n, d) float64 of balanced samples.
        chosen: what the rows are.
    """
    found = torch.empty(len(h), dtype=torch.float64)
    for fold in range(FOLDS):
        fitted, held = chosen.folds != fold, chosen.folds == (fold + 1) % FOLDS
        tried = {c: float(_gained(h, chosen, fitted & ~held, held, c).mean()) for c in STRENGTHS}
        best = max(tried, key=lambda c: tried[c])
        found[~fitted] = _gained(h, chosen, fitted, ~fitted, best)
    return found


def _gained(h: Tensor, chosen: Chosen, fitted: Tensor, asked: Tensor, strength: float) -> Tensor:
    """What a fit on some samples says about others (k,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    signals.check()
    sides = chosen.members
    scaler, model = StandardScaler().fit(h[fitted].numpy()), LogisticRegression(C=strength, max_iter=1000)
    model.fit(scaler.transform(h[fitted].numpy()), sides[fitted].numpy())
    said = torch.from_numpy(model.decision_function(scaler.transform(h[asked].numpy())))
    return math.log(2) + torch.nn.functional.logsigmoid(torch.where(sides[asked], said, -said))


@dataclass(frozen=True)
class Index:
    """The index, and the mean information in nats of the three models that it is made of."""

    index: Estimate | NotMeasured
    after: float
    before: float
    retrained: float


def difference_index(
    after: Tensor,
    before: Tensor,
    retrained: Tensor,
    generator: torch.Generator,
    confidence: float = 0.95,
    clusters: Clusters = None,
) -> Index:
    """``retrained.idi``: (I_after − I_retrained) / (I_original − I_retrained); 0: as after retraining, 1: nothing went.

    Below 0 the features know less than the retrained model's, above 1 more than the original's. Not measured where the
    original does not surely know more than the retrained model: then there is no distance to have gone.
    Interval: bootstrap over samples (over clusters, where there are such) of the paired terms, the fits as they are.

    Args:
        after: (n,) of ``gained`` for the model at hand, and the other two on the same samples.
        before: (n,) of the original.
        retrained: (n,) of the retrained model.
        generator: of the resamples.
        confidence: two-sided level.
        clusters: (n,), where samples come in such.
    """
    means = [float(found.mean()) for found in (after, before, retrained)]
    left, whole = after - retrained, before - retrained
    n, quantiles = len(after), torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    drawn = torch.empty(RESAMPLES, 2, dtype=torch.float64)
    both, units = torch.stack([left, whole], dim=1), n
    if clusters is not None:
        both = torch.stack([clustered.sums(part, clusters) for part in (left, whole)], dim=1)
        units = len(both)
    for at in range(RESAMPLES):
        drawn[at] = both[torch.randint(units, (units,), generator=generator)].mean(0)
    least = float(drawn[:, 1].quantile(quantiles[0]))
    if least <= 0:
        why = f"the original's features tell D_f apart no better than the retrained model's ({means[1]:.3f} and {means[2]:.3f} nats)"
        return Index(NotMeasured(why), *means)
    low, high = (drawn[:, 0] / drawn[:, 1]).quantile(quantiles).tolist()
    value = float(left.mean() / whole.mean())
    what = "samples" if clusters is None else f"{units} {clustered.WHAT}"
    method = f"bootstrap over {what}, {100 * confidence:g} %"
    return Index(Estimate(value, low, high, n, method), *means)
