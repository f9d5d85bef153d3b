"""Scores of a forget set with where they came from, and what they look like in numbers."""

from dataclasses import dataclass

from torch import Tensor

from imu_cli.influence import closed_form
from imu_cli.records.parts import Decade, PrecisionError, ScoreInfo


@dataclass(frozen=True)
class Scored:
    """Scores (n,), confidences (n,) and predictions-right (n,) of the forget set, and where they came from."""

    scores: Tensor
    confidence: Tensor
    right: Tensor
    damping: float
    mean_fisher: float
    from_cache: bool
    entry: str | None
    precision_error: PrecisionError | None = None


def computed(found: closed_form.Influence, entry: str | None = None, error: PrecisionError | None = None) -> Scored:
    """Scores as they were just computed."""
    return Scored(found.scores, found.confidence, found.right, found.damping, found.mean_fisher, False, entry, error)


def described(scored: Scored, selection: closed_form.Selection) -> ScoreInfo:
    """Scores in numbers, for records."""
    points = {"min": 0.0, "1 %": 0.01, "median": 0.5, "99 %": 0.99, "max": 1.0}
    ordered = scored.scores.sort().values
    at = {name: float(ordered[round(q * (len(ordered) - 1))]) for name, q in points.items()}
    return ScoreInfo(
        negative=selection.negative,
        kept=selection.kept,
        damping=scored.damping,
        mean_fisher=scored.mean_fisher,
        quantiles=at,
        from_cache=scored.from_cache,
        precision_error=scored.precision_error,
        decades=[Decade(power=power, count=count) for power, count in closed_form.decades(scored.scores)],
    )
