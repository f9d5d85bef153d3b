"""The demo's model: a small convolutional network for 8x8 grey images. ``imu demo`` copies this file beside its checkpoint."""

from torch import nn


def digits_net(num_classes: int = 10, width: int = 16) -> nn.Sequential:
    """(n, 1, 8, 8) images to (n, num_classes) logits; 8·width features, not negative, enter the linear head."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 16, 8 * width),
        nn.ReLU(),
        nn.Linear(8 * width, num_classes),
    )
