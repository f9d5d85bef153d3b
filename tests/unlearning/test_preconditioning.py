"""Steps that leave alone what anchored samples have in common: against the formula by hand, and in a training."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from imu_cli.unlearning.demotion.preconditioning import Bend, bends
from imu_cli.unlearning.demotion.update import RelativeAdam

GAMMA = 0.3


class Conv1D(nn.Module):
    """A linear layer as the library of GPT-2 has it: its weight is (in, out)."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.nf = made
        self.weight = nn.Parameter(torch.randn(given, made))

    def forward(self, x: Tensor) -> Tensor:
        """(…, out)."""
        return x @ self.weight


def by_hand(rows: Tensor, gamma: float) -> Tensor:
    """(I + C / (γ m))⁻¹ in float64."""
    moment = rows.double().T @ rows.double() / len(rows)
    return torch.linalg.inv(torch.eye(len(moment), dtype=torch.float64) + moment / (gamma * moment.diagonal().mean()))


def found(model: nn.Module, x: Tensor, at_once: int = 4) -> dict[str, Bend]:
    """Bends of all of a model's weights by some inputs."""
    moving = dict(model.named_parameters())
    return bends(model, moving, lambda rows: model(x[rows]), len(x), at_once, GAMMA)


def flat(rows: Tensor) -> Tensor:
    """What enters a linear layer as it is."""
    return rows.flatten(0, -2)


def patches(convolution: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """Its patches, cut out one by one."""

    def cut(images: Tensor) -> Tensor:
        (height, width), (down, right) = convolution.kernel_size, convolution.stride
        padded = nn.functional.pad(images, (1, 1, 1, 1))
        return torch.stack(
            [
                image[:, top : top + height, left : left + width].flatten()
                for image in padded
                for top in range(0, padded.shape[2] - height + 1, down)
                for left in range(0, padded.shape[3] - width + 1, right)
            ]
        )

    return cut


@pytest.mark.parametrize("kind", ["linear", "tokens", "inputs first", "convolution"])
def test_the_map_is_the_formula(kind: str) -> None:
    """Every kind of layer, in parts that are not all as large; a step keeps its length."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    layer, shape, rows_of = {
        "linear": (nn.Linear(6, 4), (9, 6), flat),
        "tokens": (nn.Linear(6, 4, bias=False), (9, 7, 6), flat),
        "inputs first": (Conv1D(6, 4), (9, 7, 6), flat),
        "convolution": (convolution, (9, 3, 7, 7), patches(convolution)),
    }[kind]
    assert isinstance(layer, nn.Module)
    x = torch.randn(shape) * torch.linspace(0.1, 3, shape[-1]) + 1
    made = found(nn.Sequential(layer), x)
    assert set(made) == {"0.weight"}
    expected = by_hand(rows_of(x), GAMMA)
    assert torch.allclose(made["0.weight"].matrix.double(), expected, atol=1e-5)
    step = torch.randn_like(layer.weight)
    turned = made["0.weight"](step)
    wide = step.flatten(1).double()
    wanted = expected @ wide if kind == "inputs first" else wide @ expected
    wanted *= wide.norm() / wanted.norm()
    assert turned.shape == step.shape
    assert torch.allclose(turned.flatten(1).double(), wanted, atol=1e-5)


def test_layers_that_are_given_the_same_are_summed_once() -> None:
    """Two layers side by side have the very same map, and one behind them its own."""

    class Sides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.behind = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.behind(self.left(x) + self.right(x))

    torch.manual_seed(0)
    made = found(Sides(), torch.randn(10, 4))
    assert made["left.weight"].matrix is made["right.weight"].matrix
    assert not torch.allclose(made["behind.weight"].matrix, made["left.weight"].matrix)


def test_what_multiplies_nothing_takes_plain_steps() -> None:
    """Normalisations, embeddings, convolutions by groups, and layers that never run."""
    torch.manual_seed(0)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.norm, self.apart = nn.Embedding(9, 4), nn.LayerNorm(4), nn.Conv2d(4, 4, 1, groups=4)
            self.never = nn.Linear(4, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.apart(self.norm(self.words(ids)).transpose(1, 2)[..., None])

    assert found(Odd(), torch.randint(0, 9, (8, 5))) == {}


def test_a_step_beside_the_anchor_says_less_about_it() -> None:
    """A regression that is to change its answer on one input: what anchored inputs are answered changes less, at the same change."""
    torch.manual_seed(0)
    x = torch.randn(200, 12) @ torch.randn(12, 12) + 2
    own = 3 * torch.randn(1, 12)
    changes = []
    for with_bends in (False, True):
        torch.manual_seed(1)
        layer = nn.Sequential(nn.Linear(12, 3, bias=False))
        made = found(layer, x) if with_bends else {}
        parameters, before = dict(layer.named_parameters()), layer(x).detach()
        update, start = RelativeAdam(parameters, bends=made), layer(own).detach()
        for _ in range(1000):
            gap = layer(own) - (start + 1)
            if float(gap.detach().abs().max()) < 0.05:
                break
            gradient = torch.autograd.grad(gap.square().sum(), list(parameters.values()))
            update(dict(zip(parameters, gradient, strict=True)), 0.003)
        assert float((layer(own) - start - 1).detach().abs().max()) < 0.05
        changes.append(float((layer(x).detach() - before).square().mean().sqrt()))
    assert changes[1] < 0.8 * changes[0]


def test_sums_are_float32_under_autocast() -> None:
    """bfloat16 of the pass is none of the sums."""
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(50, 6).to(torch.bfloat16).float()
    with torch.autocast("cpu", torch.bfloat16):
        made = found(layer, x)
    assert torch.allclose(made["0.weight"].matrix.double(), by_hand(x, GAMMA), atol=1e-5)
