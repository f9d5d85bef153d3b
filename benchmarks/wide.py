"""A classifier with a wide head that remembers its training data, trained here: 512 features, 10,000 CIFAR-10 images.

The ResNet-20 of ../shared has 64 features and hardly tells its training images from others (AUC 0.53). This one is
trained without augmentation until it knows all its training images (about 100 % against 72 % on test images), so that
there is something to forget: membership AUC about 0.7. Training draws from one seed; it takes some minutes, once a machine.
"""

import hashlib
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path

import common
import numpy as np
import torch
from common import Cifar
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imu_cli.linear.rows import homogeneous
from imu_cli.models.head import Head
from imu_cli.samples.manifest import open_source

IMAGES, FEATURES, EPOCHS, BATCH, RATE, SEED = 10_000, 512, 15, 128, 0.1, 0


class Wide(nn.Module):
    """Four 3 x 3 convolutions with batch norm, pooled to 512 features, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, FEATURES)
        layers: list[nn.Module] = []
        for number, (wide, out) in enumerate(itertools.pairwise(widths), 1):
            layers += [nn.Conv2d(wide, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            layers.append(nn.MaxPool2d(2) if number < len(widths) - 1 else nn.AdaptiveAvgPool2d(1))
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.fc = nn.Linear(FEATURES, len(common.CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 10)."""
        logits: Tensor = self.fc(self.body(images))
        return logits


def _images(role: str) -> tuple[Tensor, Tensor]:
    source = open_source(common.batches(), role)  # type: ignore[arg-type]
    pixels = np.stack([np.asarray(source.read(row)) for row in range(len(source))])
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.25)
    return scaled, torch.tensor(list(source.labels), dtype=torch.int64)


def _batches(generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(EPOCHS):
        yield from torch.randperm(IMAGES, generator=generator).split(BATCH)


def _train(images: Tensor, labels: Tensor) -> Wide:
    torch.manual_seed(SEED)
    model = Wide().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(model.parameters(), RATE / 2, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=EPOCHS * -(-IMAGES // BATCH))
    for batch in _batches(torch.Generator().manual_seed(SEED)):
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def _make(path: Path) -> None:
    common.console.print("training a classifier with a wide head (once a machine, some minutes)", style="dim")
    found: dict[str, Tensor] = {}
    (train, labels), (test, test_labels) = _images("data"), _images("test")
    model = _train(train[:IMAGES].contiguous(memory_format=torch.channels_last), labels[:IMAGES])
    with torch.inference_mode():
        for name, images in (("train", train), ("test", test)):
            found[name] = torch.cat([model.body(part) for part in images.split(500)])
    found |= {"train_labels": labels, "test_labels": test_labels}
    found |= {"weight": model.fc.weight.detach(), "bias": model.fc.bias.detach()}
    part = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, part)
    part.replace(path)


def wide(images: int = IMAGES) -> Cifar:
    """The head with its features of the 10,000 images it was trained on (or of more of CIFAR-10's) and of the test images."""
    made_by = (inspect.getsource(part) for part in (Wide, _images, _batches, _train))
    said = f"{[*made_by, IMAGES, FEATURES, EPOCHS, BATCH, RATE, SEED, torch.__version__]}"
    path = common.scratch() / f"wide-{hashlib.sha256(said.encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        _make(path)
    found = load_file(path)
    matrix = torch.cat([found["weight"], found["bias"][:, None]], dim=1).to(torch.float64)
    head = Head("fc", matrix, ("fc.weight", "fc.bias"), "F32", "F32", "benchmark", 0.0)
    train, test = (homogeneous(rows, bias=True) for rows in (found["train"][:images], found["test"]))
    return Cifar(head, train, found["train_labels"][:images], test, found["test_labels"])
