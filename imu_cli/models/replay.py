"""The replay check: the head's own product with its input has to be what the model returns."""

from dataclasses import replace

import torch
from torch import Tensor

from imu_cli.errors import RefusedError
from imu_cli.models import diagnosis
from imu_cli.models.head import PRECISIONS, TF32_TOLERANCE, Head

REPLAY_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest error of the replayed logits, relative to the largest logit, by the dtype that the backbone computes in."""


def replay_error(features: Tensor, matrix: Tensor, bias: bool, logits: Tensor) -> float:
    """Largest |h Wᵀ + b − logits|, relative to the largest |logit|, over a batch; 0 of a head without rows."""
    if not logits.numel():
        return 0.0
    h, wide = features.to(torch.float64), logits.to(torch.float64)
    weight = matrix.to(h.device)
    replayed = h @ weight[:, :-1].T + weight[:, -1] if bias else h @ weight.T
    scale = max(float(wide.abs().max()), 1e-30)
    return float((replayed - wide).abs().max()) / scale


def replay_tolerance(dtype: torch.dtype, precision: str = "float32") -> float:
    """Largest error of the replayed logits of this dtype, from a backbone that computes in ``precision``."""
    allowed = REPLAY_TOLERANCE.get(dtype, REPLAY_TOLERANCE[torch.float32])
    return max(allowed, TF32_TOLERANCE) if precision == "tf32" else allowed


def tolerance_in(precision: str) -> float:
    """The same by the name of what the backbone computes in; float32's where the name is not known."""
    return replay_tolerance(PRECISIONS.get(precision, torch.float32), precision)


def check_replay(
    head: Head, error: float, dtype: torch.dtype, why: str = diagnosis.UNKNOWN, precision: str = "float32"
) -> Head:
    """The head with the larger of its replay errors, of logits of this dtype from a backbone that computes in ``precision``.

    Raises:
        RefusedError: the head's own product with its input is not what the model returns; ``why`` is the reason.
    """
    allowed = replay_tolerance(dtype, precision)
    if not error <= allowed:
        raise RefusedError(
            f"head {head.module}: the replay check failed, h Wᵀ + b differs from the model's logits by {error:.2g} of "
            f"the largest logit (allowed: {allowed:g}); {why}"
        )
    return replace(head, replay_error=max(head.replay_error, error))
