"""ROUGE-L recall: the longest common subsequence of stemmed words, as a share of the true answer's (rouge-score, as TOFU uses it)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imu_cli.errors import ImuError


def scorer() -> Any:
    """What counts; the package is imported here.

    Raises:
        ImuError: it is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImuError("--generate: needs the package rouge-score; pip install 'imu-cli[hf]'") from error
    return RougeScorer(["rougeL"], use_stemmer=True)


def recall(truths: Sequence[str], written: Sequence[str]) -> Tensor:
    """Recall of what was written (n,) of each true answer.

    Raises:
        ImuError: rouge-score is not installed.
    """
    counts = scorer()
    values = [counts.score(truth, text)["rougeL"].recall for truth, text in zip(truths, written, strict=True)]
    return torch.tensor(values, dtype=torch.float64)
