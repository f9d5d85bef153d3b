"""Kinds of layers that libraries have beside torch's own."""

from torch import nn


def is_conv1d(layer: nn.Module) -> bool:
    """Whether a layer is a linear one whose weight is (in, out), as transformers has GPT-2's."""
    return type(layer).__name__ == "Conv1D"
