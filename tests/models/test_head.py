"""The head: found by running the model, proved by replaying its logits, refused where something else acts on them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from imu_cli.errors import ImuError, RefusedError
from imu_cli.models.checkpoint import open_checkpoint, patch
from imu_cli.models.head import Head, logits_of, tapped
from imu_cli.models.head_search import find_head
from imu_cli.models.replay import check_replay, replay_error

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


pytestmark = pytest.mark.usefixtures("one_thread")


def images(n: int = 4, size: int = 32) -> Tensor:
    """Random images (n, 3, size, size)."""
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def find(model: nn.Module, folder: Path, path: str | None = None, size: int = 32, prefix: str = "") -> Head:
    """The head of a model whose weights lie in a file."""
    # Tied weights stand in the file once for each name, as most tools write them.
    values = {prefix + name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(values, folder / "m.safetensors")
    return find_head(model.eval(), images(size=size), open_checkpoint(folder / "m.safetensors"), prefix, path)


def small_vit() -> Any:
    return models.VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)


def named(name: str) -> Callable[[], nn.Module]:
    return partial(models.get_model, name, weights=None, num_classes=10)


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "resnet18": (named("resnet18"), "fc"),
    "mobilenet_v3_small": (named("mobilenet_v3_small"), "classifier.3"),
    "shufflenet_v2_x0_5": (named("shufflenet_v2_x0_5"), "fc"),
    "mnasnet0_5": (named("mnasnet0_5"), "classifier.1"),
    "densenet121": (named("densenet121"), "classifier"),
    "efficientnet_b0": (named("efficientnet_b0"), "classifier.1"),
    "a small vision transformer": (small_vit, "heads.head"),
}

LARGE: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "convnext_tiny": (named("convnext_tiny"), "classifier.2", 32),
    "swin_t": (named("swin_t"), "head", 32),
    "vgg11": (named("vgg11"), "classifier.6", 32),
    "alexnet": (named("alexnet"), "classifier.6", 64),
    "vit_b_16": (named("vit_b_16"), "heads.head", 224),
}


def assert_is_the_head(model: nn.Module, head: Head, module: str, size: int) -> None:
    """The named layer, with its weights, and a change of one of its rows is a change of that logit alone."""
    layer = model.get_submodule(module)
    assert isinstance(layer, nn.Linear)
    assert (head.module, head.classes, head.bias) == (module, 10, True)
    assert head.tensors == (f"{module}.weight", f"{module}.bias")
    assert torch.equal(head.matrix[:, :-1], layer.weight.detach().double())
    assert torch.equal(head.matrix[:, -1], layer.bias.detach().double())
    assert head.replay_error < 1e-5
    with torch.no_grad():
        before = model(images(size=size))
        layer.weight[3] += 1
        layer.bias[3] += 1
        after = model(images(size=size))
    changed = (before != after).any(dim=0)
    assert changed.tolist() == [row == 3 for row in range(10)]


@pytest.mark.parametrize("name", MODELS)
def test_heads_of_known_models_are_found(tmp_path: Path, name: str) -> None:
    """The last linear layer of each family is found without being told, whatever it is called, and replays its logits."""
    make, module = MODELS[name]
    torch.manual_seed(0)
    model = make()
    assert_is_the_head(model, find(model, tmp_path), module, 32)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_heads_of_large_models_are_found(tmp_path: Path, name: str) -> None:
    """The same for families that only come large."""
    make, module, size = LARGE[name]
    torch.manual_seed(0)
    model = make()
    assert_is_the_head(model, find(model, tmp_path, size=size), module, size)


class Net(nn.Module):
    """8 features of an image, not negative, and a linear head on them; what variants do differently is in ``logits``."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 8, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(8, 10, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.backbone(x))

    def logits(self, h: Tensor) -> Tensor:
        return self.fc(h)  # type: ignore[no-any-return]


class Softmax(Net):
    """Probabilities instead of logits."""

    def logits(self, h: Tensor) -> Tensor:
        return super().logits(h).softmax(dim=1)


class LogSoftmax(Net):
    """Log-probabilities: the same predictions, other numbers."""

    def logits(self, h: Tensor) -> Tensor:
        return super().logits(h).log_softmax(dim=1)


class Temperature(Net):
    """Logits divided by a constant."""

    def logits(self, h: Tensor) -> Tensor:
        return super().logits(h) / 1.5


class Capped(Net):
    """Logits that saturate."""

    def logits(self, h: Tensor) -> Tensor:
        return 0.3 * torch.tanh(super().logits(h) / 0.3)


class DroppingBefore(Net):
    """Dropout of features that ignores eval()."""

    def logits(self, h: Tensor) -> Tensor:
        return super().logits(functional.dropout(h, 0.5, training=True))


class DroppingAfter(Net):
    """Dropout of logits that ignores eval()."""

    def logits(self, h: Tensor) -> Tensor:
        return functional.dropout(super().logits(h), 0.5, training=True)


class Permuted(Net):
    """Classes in another order than the head's rows."""

    def logits(self, h: Tensor) -> Tensor:
        return super().logits(h).flip(1)


class Averaged(Net):
    """The mean of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(8, 10)

    def logits(self, h: Tensor) -> Tensor:
        return (self.fc(h) + self.second(h)) / 2  # type: ignore[no-any-return]


class Residual(Net):
    """Something that is no linear layer is added to the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.Conv2d(8, 10, 1)

    def logits(self, h: Tensor) -> Tensor:
        return self.fc(h) + self.skip(h[:, :, None, None]).flatten(1)  # type: ignore[no-any-return]


class Twice(Net):
    """The head runs on two views of the features."""

    def logits(self, h: Tensor) -> Tensor:
        return self.fc(h) + self.fc(h.roll(1, 1))  # type: ignore[no-any-return]


class TwiceButOnceCounts(Net):
    """The head runs twice and one result is thrown away."""

    def logits(self, h: Tensor) -> Tensor:
        self.fc(h.roll(1, 1))
        return self.fc(h)  # type: ignore[no-any-return]


class Square(Net):
    """As many classes as features, so that layers can be tied."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.fc = nn.Linear(8, 8), nn.Linear(8, 8)

    def logits(self, h: Tensor) -> Tensor:
        return self.fc(torch.relu(self.hidden(h)))  # type: ignore[no-any-return]


class TiedWeight(Square):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.fc.weight = self.hidden.weight


class TiedBias(Square):
    """One bias for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc.bias = self.hidden.bias


class TiedView(Square):
    """Two parameters on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.fc.weight = nn.Parameter(self.hidden.weight.detach())


class NoLinear(Net):
    """A head that is no layer: a product with a parameter."""

    def logits(self, h: Tensor) -> Tensor:
        return h @ self.table

    def __init__(self) -> None:
        super().__init__()
        del self.fc
        self.table = nn.Parameter(torch.randn(8, 10))


class Convolution(Net):
    """A 1x1 convolution on pooled features as head."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.fc = nn.Conv2d(8, 10, 1, bias=bias)  # type: ignore[assignment]

    def logits(self, h: Tensor) -> Tensor:
        return self.fc(h[:, :, None, None]).flatten(1)  # type: ignore[no-any-return]


class EveryPlace(Net):
    """A 1x1 convolution on every place of the image, and the logits are pooled afterwards, as in SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(8, 10, 1)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        places: Tensor = self.backbone[:2](x)
        return torch.relu(self.fc(places)).mean(dim=(2, 3))


class Rectified(Convolution):
    """The same where one place is all there is."""

    def logits(self, h: Tensor) -> Tensor:
        return torch.relu(super().logits(h))


class Normed(Net):
    """A weight that is computed from two others."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.fc)


class PerPatch(Net):
    """The head runs on every place of the image, and the logits are averaged afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        places: Tensor = self.backbone[:2](x)
        return self.fc(places.flatten(2).transpose(1, 2)).mean(dim=1)  # type: ignore[no-any-return]


class Segmenting(Net):
    """Logits with a third dimension."""

    def logits(self, h: Tensor) -> Tensor:
        return super().logits(h)[:, :, None]


class Pair(Net):
    """A tuple instead of logits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x), x  # type: ignore[return-value]


REFUSED: dict[type[Net], tuple[str, str]] = {
    Softmax: ("replay check failed", "returns the softmax of fc"),
    LogSoftmax: ("replay check failed", "returns the log_softmax of fc"),
    Rectified: ("replay check failed", "returns the relu of fc"),
    Temperature: ("replay check failed", "the logits are 0.667 × fc (a temperature)"),
    Capped: ("replay check failed", "something acts after or beside"),
    DroppingBefore: ("replay check failed", ""),
    DroppingAfter: ("replay check failed", "something acts after or beside"),
    Permuted: ("replay check failed", "something acts after or beside"),
    Averaged: ("replay check failed", "the logits are 0.5 × fc + 0.5 × second, a distilled or double head"),
    Residual: ("replay check failed", "the logits are 1 × fc + 1 × skip, a distilled or double head"),
    Twice: ("runs 2 times", "name another"),
    TwiceButOnceCounts: ("runs 2 times", "name another"),
    TiedWeight: ("tied to hidden.weight", ""),
    TiedBias: ("tied to hidden.bias", ""),
    TiedView: ("tied to hidden.weight", ""),
    NoLinear: ("no linear layer or 1x1 convolution with 10 outputs", "as a layer of its own"),
    PerPatch: ("on inputs of shape (4, 49, 8)", "pooled afterwards"),
    EveryPlace: ("on inputs of shape (4, 8, 7, 7)", "pooled afterwards"),
    Normed: ("fc.weight: is not in the file", "fc.parametrizations.weight.original0"),
    Segmenting: ("returned (4, 10, 1), not one (samples, classes) tensor of logits", "a factory of your own"),
    Pair: ("returned a tuple of (4, 10), (4, 3, 32, 32), not one", "a factory of your own"),
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_heads_that_are_not_the_whole_truth_are_refused(tmp_path: Path, kind: type[Net]) -> None:
    """Where the logits are not h Wᵀ + b of one layer used once and untied, the model is refused with exit code 4."""
    with pytest.raises(RefusedError) as caught:
        find(kind(), tmp_path)
    for said in REFUSED[kind]:
        assert said in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("kind", [Net, Square], ids=lambda kind: kind.__name__)
def test_the_same_models_without_the_fault_are_accepted(tmp_path: Path, kind: type[Net]) -> None:
    """It is the fault that is refused: the networks that the refused ones are made of are found to have their head."""
    head = find(kind(), tmp_path)
    assert head.module == "fc"
    assert head.replay_error < 1e-6


class Auxiliary(Net):
    """A second head runs after the first and is not returned."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(8, 10)

    def logits(self, h: Tensor) -> Tensor:
        made: Tensor = self.fc(h)
        self.aux(h)
        return made


def test_a_head_can_be_named(tmp_path: Path) -> None:
    """Where the last layer that runs is not the head, the refusal says to use --head, and --head finds and proves it."""
    with pytest.raises(RefusedError, match="the logits are the output of fc; add --head fc"):
        find(Auxiliary(), tmp_path)
    head = find(Auxiliary(), tmp_path, "fc")
    assert (head.module, head.source) == ("fc", "--head")
    with pytest.raises(RefusedError, match="replay check failed"):
        find(Auxiliary(), tmp_path, "aux")


@pytest.mark.parametrize("path", ["backbone", "backbone.0", "fc.weight", "head", ""])
def test_a_wrong_name_is_answered_with_the_right_ones(tmp_path: Path, path: str) -> None:
    """--head with something that is no linear layer lists those there are."""
    with pytest.raises(ImuError, match="not a linear layer of this model; it has fc, aux"):
        find(Auxiliary(), tmp_path, path)


def test_a_hidden_layer_is_not_taken_for_the_head(tmp_path: Path) -> None:
    """--head with a layer that runs earlier fails its replay."""
    with pytest.raises(RefusedError, match="replay check failed"):
        find(Square(), tmp_path, "hidden")


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_on_pooled_features_is_a_linear_head(tmp_path: Path, bias: bool) -> None:
    """Its weight (c, d, 1, 1) is the matrix, and is given back in the file's shape."""
    model = Convolution(bias)
    head = find(model, tmp_path)
    weight = model.fc.weight.detach().double()
    assert (head.module, head.bias, head.matrix.shape) == ("fc", bias, (10, 8 + bias))
    assert torch.equal(head.matrix[:, :8], weight[:, :, 0, 0])
    assert {name: tuple(part.shape) for name, part in head.parts(head.matrix).items()} == {
        "fc.weight": (10, 8, 1, 1), **({"fc.bias": (10,)} if bias else {}),
    }  # fmt: skip
    assert head.replay_error < 1e-6


class Hinted(Auxiliary):
    """The last layer that runs is not the head, and the model says which is, as timm's do."""

    pretrained_cfg: ClassVar = {"classifier": "fc"}


class HintedWithTwo(Hinted):
    """A distilled model of timm's names both its heads."""

    pretrained_cfg: ClassVar = {"classifier": ("fc", "aux")}

    def logits(self, h: Tensor) -> Tensor:
        return (self.fc(h) + self.aux(h)) / 2  # type: ignore[no-any-return]


class HintedWrongly(Net):
    """The hint names a layer that does not run."""

    pretrained_cfg: ClassVar = {"classifier": "last_linear"}


class Transformers(Auxiliary):
    """The last layer that runs is not the head, which has the name that transformers' classifiers share."""

    class config:  # noqa: N801
        """Has what transformers' configurations have."""

        model_type = "vit"

    def __init__(self) -> None:
        super().__init__()
        self.classifier = self.fc
        del self.fc

    def logits(self, h: Tensor) -> Tensor:
        made: Tensor = self.classifier(h)
        self.aux(h)
        return made


def test_what_the_library_says_of_its_head_comes_before_the_last_layer(tmp_path: Path) -> None:
    """The names that timm and transformers give are taken where they fit, and replayed like any other; the source is told."""
    for kind, module, source in (
        (Hinted, "fc", "timm's pretrained_cfg"),
        (HintedWrongly, "fc", "last linear layer that runs"),
        (Transformers, "classifier", "transformers' name for it"),
    ):
        head = find(kind(), tmp_path)
        assert (head.module, head.source) == (module, source)
    with pytest.raises(RefusedError, match=r"0\.5 × fc \+ 0\.5 × aux, a distilled or double head"):
        find(HintedWithTwo(), tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_scripted_and_quantised_models_are_refused_with_the_reason(tmp_path: Path) -> None:
    """TorchScript's layers cannot be watched and quantised weights cannot take a step: both are said."""
    save_file(Net().state_dict(), tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(RefusedError, match="scripted or traced"):
        find_head(torch.jit.trace(Net().eval(), images()), images(), checkpoint, "")
    quantised = torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear}, torch.qint8)
    with pytest.raises(RefusedError, match="fc is quantised"):
        find_head(quantised, images(), checkpoint, "")


def test_prefixed_names(tmp_path: Path) -> None:
    """The head's tensors are named as in the file, with the prefix that wrappers put there."""
    assert find(Net(), tmp_path, prefix="module.").tensors == ("module.fc.weight", "module.fc.bias")


def test_a_head_without_bias(tmp_path: Path) -> None:
    """Without a bias the matrix has no last column for it, and one tensor is written."""
    model = Net(bias=False)
    head = find(model, tmp_path)
    assert (head.bias, head.bias_dtype, head.tensors) == (False, "", ("fc.weight",))
    assert torch.equal(head.matrix, model.fc.weight.detach().double())
    assert list(head.parts(head.matrix)) == ["fc.weight"]
    assert torch.equal(head.rounded(head.matrix), head.matrix)


def test_a_weight_in_a_dtype_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A head that the file holds in 8 bits is refused: imu would have to guess how it is scaled."""
    model = Net()
    values = {**model.state_dict(), "fc.weight": model.fc.weight.detach().to(torch.float8_e4m3fn)}
    save_file(values, tmp_path / "m.safetensors")
    with pytest.raises(RefusedError, match="is F8_E4M3 in the file"):
        find_head(model.eval(), images(), open_checkpoint(tmp_path / "m.safetensors"), "")


@dataclass
class Stored:
    """A model whose head lies in a file in other dtypes than it computes in."""

    model: Net
    path: Path
    head: Head


def stored(folder: Path, weight: torch.dtype, bias: torch.dtype | None) -> Stored:
    """The file, and the model loaded from it: its float32 weights are the file's values as near as float32 comes."""
    model = Net(bias=bias is not None)
    values = dict(model.state_dict())
    # Values that float32 cannot hold, so that reading them through the model would be noticed.
    values["fc.weight"] = (values["fc.weight"].double() * (1 + 1e-9)).to(weight)
    if bias is not None:
        values["fc.bias"] = (values["fc.bias"].double() * (1 + 1e-9)).to(bias)
    save_file(values, folder / "m.safetensors")
    model.load_state_dict(values)
    return Stored(model, folder / "m.safetensors", find_again(model, folder / "m.safetensors"))


def find_again(model: Net, path: Path) -> Head:
    """The head as this file holds it."""
    return find_head(model.eval(), images(), open_checkpoint(path), "")


@pytest.mark.parametrize("weight", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [*DTYPES, None], ids=str)
def test_rows_that_do_not_move_are_written_back_bit_by_bit(
    tmp_path: Path, weight: torch.dtype, bias: torch.dtype | None
) -> None:
    """The matrix is what the file holds, not what the model rounded it to: written back, it is the same file."""
    made = stored(tmp_path, weight, bias)
    assert torch.equal(made.head.rounded(made.head.matrix), made.head.matrix)
    patch(open_checkpoint(made.path), made.head.parts(made.head.matrix), tmp_path / "n.safetensors")
    assert (tmp_path / "n.safetensors").read_bytes() == made.path.read_bytes()


@pytest.mark.parametrize("weight", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [*DTYPES, None], ids=str)
def test_rounded_is_what_the_file_will_hold(tmp_path: Path, weight: torch.dtype, bias: torch.dtype | None) -> None:
    """``rounded`` gives exactly the values that a checkpoint written from the matrix computes with; twice is once."""
    made = stored(tmp_path, weight, bias)
    random = torch.Generator().manual_seed(1)
    moved = made.head.matrix + 0.01 * torch.randn(made.head.matrix.shape, generator=random, dtype=torch.float64)
    rounded = made.head.rounded(moved)
    assert torch.equal(made.head.rounded(rounded), rounded)
    assert rounded.dtype == torch.float64
    target = tmp_path / "n.safetensors"
    patch(open_checkpoint(made.path), made.head.parts(moved), target)
    made.model.load_state_dict(open_checkpoint(target).tensors())
    assert torch.equal(find_again(made.model, target).matrix, rounded)
    weights = rounded[:, :8]
    assert torch.equal(weights, moved[:, :8]) == (weight == torch.float64)


@pytest.mark.parametrize("bias", [True, False])
def test_parts_and_with_matrix(tmp_path: Path, bias: bool) -> None:
    """The file's tensors put side by side are the matrix again; another matrix leaves everything else as it is."""
    head = find(Net(bias), tmp_path)
    parts = head.parts(head.matrix)
    assert torch.equal(torch.cat([part.reshape(10, -1) for part in parts.values()], dim=1), head.matrix)
    other = head.with_matrix(head.matrix + 1)
    assert torch.equal(other.matrix, head.matrix + 1)
    assert (other.module, other.tensors, other.dtype) == (head.module, head.tensors, head.dtype)


@pytest.mark.parametrize("bias", [True, False])
def test_the_replay_error_is_relative_to_the_largest_logit(bias: bool) -> None:
    """The error is the largest difference over all images and classes, divided by the largest logit."""
    random = torch.Generator().manual_seed(0)
    h = torch.randn(6, 4, generator=random)
    w = torch.randn(3, 4 + bias, generator=random, dtype=torch.float64)
    logits = h.double() @ w[:, :4].T + (w[:, 4] if bias else 0)
    assert replay_error(h, w, bias, logits) < 1e-15
    spoilt = logits.clone()
    spoilt[5, 2] += 0.25
    worst = 0.25 / max(abs(float(value)) for row in spoilt for value in row)
    assert replay_error(h, w, bias, spoilt) == pytest.approx(worst, rel=1e-12)


def test_the_largest_replay_error_is_kept_and_nan_never_passes(tmp_path: Path) -> None:
    """Over several batches the worst error is remembered; NaN counts as a failure, not as small."""
    head = check_replay(find(Net(), tmp_path), 3e-5, torch.float32)
    assert check_replay(head, 1e-5, torch.float32).replay_error == 3e-5
    assert check_replay(head, 1e-3, torch.bfloat16).replay_error == 1e-3
    for error, dtype in (
        (1e-3, torch.float32),
        (1e-7, torch.float64),
        (float("nan"), torch.bfloat16),
        (float("inf"), torch.float16),
    ):
        with pytest.raises(RefusedError, match="replay check failed"):
            check_replay(head, error, dtype)


def test_images_whose_features_are_not_finite_do_not_decide(tmp_path: Path) -> None:
    """One broken image among those that the head is found with is passed over; if all are broken, that is said."""
    model = Net().eval()
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    some = images()
    some[2] = float("nan")
    assert find_head(model, some, checkpoint, "").replay_error < 1e-6
    with pytest.raises(ImuError, match="not finite for any sample that was tried"):
        find_head(model, torch.full_like(some, float("nan")), checkpoint, "")


def test_logits_in_an_output_object(tmp_path: Path) -> None:
    """Models that return an object with a ``logits`` field, or a dict with that key, are understood; others are described."""

    @dataclass
    class Output:
        logits: Tensor

    assert torch.equal(logits_of(Output(torch.ones(2, 3))), torch.ones(2, 3))
    assert torch.equal(logits_of({"logits": torch.ones(2, 3), "loss": None}), torch.ones(2, 3))
    with pytest.raises(RefusedError, match="returned a dict with out, aux, not one"):
        logits_of({"out": torch.ones(2, 3), "aux": torch.ones(2, 3)})


def test_finding_leaves_no_hooks_behind(tmp_path: Path) -> None:
    """After finding, and after an exception inside, the model runs as it did before: no hook stays on any layer."""
    model = Averaged()
    with pytest.raises(RefusedError):
        find(model, tmp_path)
    with pytest.raises(KeyError), tapped(model.fc):
        raise KeyError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
