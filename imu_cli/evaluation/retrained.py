"""How far a model is from one that was retrained without D_f, from the logits (n, c) of both on the same samples.

Two trainings of one recipe differ as well, in their random choices: no gap here has to be 0 for D_f to be forgotten.
Compare with ``*.before``, the original's gap, and with a second retraining where there is one.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear.rows import Outputs, by_rows
from imu_cli.statistics import clustered
from imu_cli.statistics.clustered import Clusters
from imu_cli.statistics.intervals import Estimate, flips
from imu_cli.statistics.intervals import census as counted
from imu_cli.statistics.metrics import accuracy_of, predictions

ROUNDING = 1e-14


def accuracy_gap(
    right: Tensor, right_retrained: Tensor, *, census: bool = False, clusters: Clusters = None
) -> Estimate:
    """``retrained.accuracy_gap.*``: accuracy of the model less that of the retrained one, on the same rows; target 0.

    Both are (n,) bool, what counts as right or, for D_f in the class scenario, as still predicted. Above 0 on D_f:
    remembered; below: over-unlearned. Tango's interval for paired outcomes, none for the census D_f.
    """
    if census:
        lost, won = flips(right, right_retrained)
        return counted((lost - won) / max(len(right), 1), len(right))
    return clustered.paired_difference(right, right_retrained, clusters)


def average_gap(gaps: list[Estimate]) -> float:
    """``retrained.average_gap``: mean of |accuracy gap| over the splits that were given; lower is better.

    The "Avg. Gap" of SalUn (Fan et al., ICLR 2024) without its MIA column, whose direction papers do not agree on.
    """
    return sum(abs(gap.value) for gap in gaps) / len(gaps)


def churn(logits: Outputs, retrained: Outputs, *, census: bool = False, clusters: Clusters = None) -> Estimate:
    """``retrained.churn``: share of samples that the two models predict differently; lower is better.

    Milani Fard et al., *Launch and iterate: reducing prediction churn* (NeurIPS 2016).
    """
    same_rows(logits, retrained)
    return accuracy_of(predictions(logits) != predictions(retrained), census=census, clusters=clusters)


def kl(logits: Outputs, retrained: Outputs) -> Tensor:
    """KL(retrained ‖ model) = Σ_j q_j log(q_j/p_j) per row (n,), nats, q the retrained model's softmax; 0 where alike."""
    same_rows(logits, retrained)

    def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
        return (log_q.exp() * (log_q - log_p)).sum(1)

    return _rounded(_each(logits, retrained, divergence))


def js(logits: Outputs, retrained: Outputs) -> Tensor:
    """Jensen-Shannon divergence ½ KL(p ‖ m) + ½ KL(q ‖ m), m = (p + q)/2, per row (n,), nats; 0 to log 2."""
    same_rows(logits, retrained)

    def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        halves = [(side.exp() * (side - log_m)).sum(1) / 2 for side in (log_p, log_q)]
        return halves[0] + halves[1]

    return _rounded(_each(logits, retrained, divergence))


def _each(logits: Outputs, retrained: Outputs, divergence: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A divergence of each row (n,) from the log-probabilities (k, c) of both models, block by block."""
    return by_rows(
        logits,
        lambda found, rows: divergence(found.double().log_softmax(1), retrained[rows].double().log_softmax(1)),
    )


def histogram_tv(logits: Outputs, retrained: Outputs) -> float:
    """``retrained.tv``: ½ Σ_k |share predicted as k − the same share of the retrained model|; 0 to 1, lower is better."""
    same_rows(logits, retrained)
    counts = [torch.bincount(predictions(z), minlength=z.shape[1]).double() / len(z) for z in (logits, retrained)]
    return float((counts[0] - counts[1]).abs().sum()) / 2


def closer(logits: Outputs, original: Outputs, retrained: Outputs) -> Estimate:
    """``retrained.closer``: share of D_f whose output is nearer (in JS) to the retrained model than to the original.

    A census; higher is better. A sample that neither model changed (equal distances) counts as not nearer.
    """
    return accuracy_of(js(logits, retrained) < js(logits, original), census=True)


def _rounded(divergence: Tensor) -> Tensor:
    """Terms of both signs leave a little more or less than 0 where the outputs are alike: it is rounding, and becomes 0."""
    return torch.where(divergence < ROUNDING, 0.0, divergence)


def same_rows(logits: Outputs, retrained: Outputs) -> None:
    """Refuse logits that are not of the same samples and classes.

    Raises:
        ImuError: shapes differ, or there are no rows.
    """
    if logits.shape != retrained.shape or len(logits) == 0:
        raise ImuError(
            f"--retrained: logits {tuple(retrained.shape)} against {tuple(logits.shape)}; give a model of the same "
            "classes, and at least one sample"
        )
