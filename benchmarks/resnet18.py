"""A ResNet-18 for 32 x 32 images with random weights and a fitted head: for measuring speed, and for nothing else.

The size of network that the cost figures of ../shared/spec/measurements.md were taken on. Training one takes hours on two
cores, so its convolutions are random; batch norm is calibrated so that activations have the spread they have in a trained
network, and the head is fitted to the features of some training images so that there is something to unlearn. How long a
pass takes does not depend on the weights. How accurate it is, before or after unlearning, means nothing.

This file is also what ``--arch`` names: ``benchmarks/resnet18.py:cifar_resnet18``. Modules that only benchmarks have are
therefore imported where they are used.
"""

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet

CLASSES, SEED = 10, 0
CALIBRATED, FITTED, BATCH = 512, 2_000, 128
RIDGE, GAIN = 1e-2, 10.0
"""Damping of the head's least squares, times the mean diagonal; and what the fitted one-hot logits are multiplied by."""


def cifar_resnet18() -> ResNet:
    """A ResNet-18 of torchvision with a 3 x 3 stem and no max-pooling: (n, 3, 32, 32) images to (n, 10) logits."""
    model = torchvision.models.resnet18(num_classes=CLASSES)
    model.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def training_images(rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Some of CIFAR-10's training images (n, 3, 32, 32), decoded and normalised by the tool's own code, and labels (n,)."""
    import common

    from imu_cli.features import engine
    from imu_cli.samples.images import preprocessing
    from imu_cli.samples.manifest import open_source

    source = open_source(common.batches(), "data")
    steps, _ = preprocessing.find(common.PREPROCESS, [])
    labels = torch.tensor([source.labels[row] for row in rows], dtype=torch.int64)
    return engine.batch(source, rows, steps, torch.device("cpu")), labels


def checkpoint() -> Path:
    """The network's safetensors file, made once a machine."""
    import common

    made_by = (
        inspect.getsource(part) for part in (cifar_resnet18, training_images, _calibrate, _features, _fit, _make)
    )
    said = f"{[*made_by, CLASSES, SEED, CALIBRATED, FITTED, BATCH, RIDGE, GAIN, torch.__version__]}"
    path = common.scratch() / f"resnet18-{hashlib.sha256(said.encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        common.console.print("making a ResNet-18 with random weights (once a machine)", style="dim")
        _make(path)
    return path


def _make(path: Path) -> None:
    from safetensors.torch import save_file

    images, labels = training_images(range(FITTED))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = cifar_resnet18().to(memory_format=torch.channels_last)
    with torch.no_grad():
        _calibrate(model, images[:CALIBRATED])
        accuracy = _fit(model.fc, _features(model, images), labels)
    # A head at chance would leave nothing to unlearn; half of its training images is far above it.
    assert accuracy > 0.5, f"the fitted head is right on {accuracy:.1%} of its training images"
    part = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, part)
    part.replace(path)


def _norms(model: ResNet) -> Iterator[nn.BatchNorm2d]:
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def _calibrate(model: ResNet, images: Tensor) -> None:
    """Batch-norm statistics as the mean over some batches, so that evaluation mode normalises what it meets."""
    for norm in _norms(model):
        norm.momentum = None
    model.train()
    for part in images.split(BATCH):
        model(part)
    model.eval()


def _features(model: ResNet, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.fc.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for part in images.split(BATCH):
        model(part)
    handle.remove()
    return torch.cat(seen)


def _fit(head: nn.Linear, features: Tensor, labels: Tensor) -> float:
    """Ridge regression of one-hot labels on the features, multiplied so that softmax is sure of it; share that is right."""
    h = features.double()
    wanted = nn.functional.one_hot(labels, CLASSES).double()
    centre, level = h.mean(0), wanted.mean(0)
    gram = (h - centre).T @ (h - centre)
    damped = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = GAIN * torch.linalg.solve(damped, (h - centre).T @ (wanted - level)).T
    head.weight.copy_(weight)
    head.bias.copy_(GAIN * level - weight @ centre)
    return float((head(features).argmax(dim=1) == labels).double().mean())
