"""The linear system of matched unlearning: curvature factors, whitening, checks."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.linear.margins import margin_gradients
from imu_cli.linear.rows import Rows, blocks

DAMPING = 0.01
CLASS_DAMPING = 0.1


# Curvature


def second_moment(features: Rows) -> Tensor:
    """Σ = HᵀH / m (d+1, d+1) of H (m, d+1): what ΔW changes on average, since E‖ΔW h‖² = tr(ΔW Σ ΔWᵀ)."""
    width = features.shape[1]
    total = torch.zeros(width, width, dtype=torch.float64, device=features.device)
    for rows in blocks(len(features), width):
        part = features[rows].to(torch.float64)
        total.addmm_(part.T, part)
    return total / len(features)


def class_curvature(probabilities: Tensor) -> Tensor:
    """C = diag(p̄) − PᵀP/m (c, c), the class factor of K-FAC (Martens and Grosse 2015); P (m, c).

    It is singular (P sums to 1), so it is always damped.
    """
    P = probabilities.to(torch.float64)
    return torch.diag(P.mean(dim=0)) - P.T @ P / len(P)


@dataclass(frozen=True)
class Factor:
    """Cholesky factor L of a damped second moment M + λ mean(diag M) I = L Lᵀ, and its condition number."""

    cholesky: Tensor
    condition: float

    @cached_property
    def inverse(self) -> Tensor:
        """L⁻¹."""
        identity = torch.eye(len(self.cholesky), dtype=torch.float64, device=self.cholesky.device)
        inverse: Tensor = torch.linalg.solve_triangular(self.cholesky, identity, upper=False)
        return inverse


def damped_factor(moment: Tensor, damping: float) -> Factor:
    """Factorise M + λ mean(diag M) I.

    Raises:
        ImuError: the damped matrix is not positive definite in float64.
    """
    ridge = damping * moment.diagonal().mean()
    damped = moment + ridge * torch.eye(len(moment), dtype=torch.float64, device=moment.device)
    cholesky, failed = torch.linalg.cholesky_ex(damped)
    if int(failed) or not bool(torch.isfinite(cholesky).all()):
        raise ImuError(f"curvature: not positive definite with damping {damping:g}; raise the damping")
    spectrum = torch.linalg.eigvalsh(damped)
    return Factor(cholesky, float(spectrum[-1] / spectrum[0]))


# The system


@dataclass(frozen=True)
class Problem:
    """What is to be matched, with the metric that measures side effects; see ``prepare``."""

    features: Tensor
    labels: Tensor
    head: Tensor
    targets: Tensor
    weights: Tensor
    feature_factor: Factor
    class_factor: Factor

    @property
    def capacity(self) -> int:
        """(c − 1)(d + 1), the number of margins that a head can set freely: every row of B sums to 0."""
        return (self.head.shape[0] - 1) * self.head.shape[1]

    @property
    def condition(self) -> float:
        """Condition number of Σ̃ ⊗ C̃."""
        return self.feature_factor.condition * self.class_factor.condition

    @cached_property
    def whitened(self) -> Tensor:
        """U = H L⁻ᵀ (n, d+1)."""
        return self.features @ self.feature_factor.inverse.T

    @cached_property
    def gram(self) -> Tensor:
        """U Uᵀ (n, n); only the dual form reads it."""
        return self.whitened @ self.whitened.T

    @cached_property
    def scale(self) -> float:
        """mean(ω diag K) at the original head: what ρ is relative to."""
        V = self.whiten(margin_gradients(self.features @ self.head.T, self.labels))
        return float((self.weights * V.square().sum(dim=1) * self.whitened.square().sum(dim=1)).mean())

    def aimed_at(self, targets: Tensor) -> "Problem":
        """The same system with other targets; what does not depend on them is not computed again."""
        made = replace(self, targets=targets)
        kept = ("whitened", "gram", "scale")
        made.__dict__.update({name: self.__dict__[name] for name in kept if name in self.__dict__})
        return made

    def whiten(self, gradients: Tensor) -> Tensor:
        """V = B R⁻ᵀ (n, c)."""
        return gradients @ self.class_factor.inverse.T

    def unwhiten(self, change: Tensor) -> Tensor:
        """ΔW = R⁻ᵀ D L⁻¹ (c, d+1)."""
        return self.class_factor.inverse.T @ change @ self.feature_factor.inverse


def _check(features: Tensor, labels: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> None:
    if len(features) == 0 or len({len(features), len(labels), len(targets), len(weights)}) != 1:
        raise ImuError(
            f"matched: {len(features)} features, {len(labels)} labels, {len(targets)} targets and {len(weights)} "
            "weights; give one of each per forget sample, and at least one sample"
        )
    if len(head) < 2:
        raise ImuError("matched: the head has one output, so there is no margin; matched needs two classes or more")
    for name, rows in (("features", features), ("targets", targets[:, None]), ("weights", weights[:, None])):
        bad = (~torch.isfinite(rows).all(dim=1)).nonzero()
        if len(bad):
            raise ImuError(f"matched, row {int(bad[0])}: {name} not finite; check the sample and the model's weights")
    if bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise ImuError(
            "matched: weights below 0, or all 0; give each margin a weight from 0, and some of them above it"
        )


def prepare(
    features: Tensor,
    labels: Tensor,
    head: Tensor,
    targets: Tensor,
    moment: Tensor,
    *,
    damping: float = DAMPING,
    curvature: Tensor | None = None,
    weights: Tensor | None = None,
) -> Problem:
    """Check the rows and factorise the metric once; ``solve`` and ``path`` reuse it for every ρ.

    Args:
        features: H (n, d+1) of the forget samples.
        labels: The label whose margin is to be lowered (n,).
        head: W (c, d+1).
        targets: t (n,), see ``coupled_targets``.
        moment: Σ (d+1, d+1), see ``second_moment``.
        damping: λ of Σ̃ = Σ + λ mean(diag Σ) I.
        curvature: C (c, c), see ``class_curvature``; the identity if None.
        weights: ω (n,) from 0, see ``error_weights``; 1 if None.

    Raises:
        ImuError: rows that do not belong together or are not finite, or a metric that is not positive definite.
    """
    H, W, t = (tensor.to(torch.float64) for tensor in (features, head, targets))
    weights = torch.ones_like(t) if weights is None else weights.to(t)
    _check(H, labels, W, t, weights)
    identity = torch.eye(len(W), dtype=torch.float64, device=W.device)
    class_factor = damped_factor(identity, 0.0) if curvature is None else damped_factor(curvature, CLASS_DAMPING)
    return Problem(H, labels, W, t, weights, damped_factor(moment.to(t), damping), class_factor)
