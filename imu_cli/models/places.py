"""The demo's embedding model: a small convolutional network for 32x32 colour images. ``imu demo`` copies this file beside its checkpoint."""

from torch import nn


def places_net(size: int = 32, width: int = 16) -> nn.Sequential:
    """(n, 3, 32, 32) images to (n, size) vectors, which are compared by their angle."""
    layers: list[nn.Module] = []
    for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 16, size))
