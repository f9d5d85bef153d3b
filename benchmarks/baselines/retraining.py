"""Retraining from scratch without what has to go: what every method is held against.

    θ = argmin mean_R ℓ(x, y) + decay, from a new start

Needs all retain data, and as much time as training did. The retrained networks of ../shared are read, not trained here; for wrong labels,
where only the last stage was trained, it is trained again on what stays by the same recipe (``compare_cases.wrong_labels``).
"""

EPOCHS = 24
"""Of the retrained networks (../shared/README.md)."""


def images(retain: int, epochs: int = EPOCHS) -> int:
    """Images that went forward to train on so many."""
    return retain * epochs
