"""Linear layers laid out for oneDNN give the same features, and leave the model as it is."""

import copy

import pytest
import torch
from torch import Tensor, nn

from imu_cli.features import engine, prepacking

CLOSE = 1e-5
"""Products of 96 float32 terms in another order of summation, relative to the largest."""


class Texts(nn.Module):
    """Wide enough to be laid out: embedding, two linear layers, one used twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 64)
        self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 64, bias=False)
        self.narrow = nn.Linear(64, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.table(input_ids)
        for _ in range(2):
            h = h + self.down(self.up(h).relu())
        made: Tensor = self.head(self.narrow(h.mean(dim=1)))
        return made


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Texts:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(prepacking, "_suits", lambda: True)
    torch.manual_seed(0)
    return Texts().eval()


def test_same_features_by_weights_that_are_the_models_own(model: Texts) -> None:
    before = copy.deepcopy(model.state_dict())
    ids = torch.randint(50, (7, 12))

    made, laid_out = prepacking.prepacked(model, "head")

    assert laid_out == 2
    assert isinstance(made.get_submodule("up"), prepacking.PrepackedLinear)
    assert type(model.up) is type(made.get_submodule("narrow")) is nn.Linear
    assert all(made.get_parameter(name) is parameter for name, parameter in model.named_parameters())
    with torch.inference_mode():
        expected, found = model(ids), made(ids)
    assert float((expected - found).abs().max()) <= CLOSE * float(expected.abs().max())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_where_gradients_are_wanted_it_is_the_layer_that_it_was(model: Texts) -> None:
    made, _ = prepacking.prepacked(model, "head")
    ids = torch.randint(50, (3, 4))

    assert torch.equal(made(ids), model(ids))
    made(ids).sum().backward()

    assert model.up.weight.grad is not None
    assert bool(model.up.weight.grad.any())


def test_the_engine_takes_it_in_float32_alone(model: Texts) -> None:
    probe = torch.randint(50, (2, 6))

    assert isinstance(engine.engine(model, "head", probe).model.get_submodule("up"), prepacking.PrepackedLinear)
    assert engine.engine(model, "head", probe, precision="bfloat16").model is model


def test_weights_that_were_changed_since_are_seen(model: Texts) -> None:
    """A layer whose weights moved is the layer that it was, with the weights as they are."""
    made, _ = prepacking.prepacked(model, "head")
    ids = torch.randint(50, (3, 4))
    with torch.no_grad():
        model.up.weight.mul_(2)
        expected = model(ids)
        # One layer is still by oneDNN.
        torch.testing.assert_close(made(ids), expected, rtol=CLOSE, atol=CLOSE * float(expected.abs().max()))


class Own(Texts):
    """Own code that keeps its head in a closure: a copy runs the layers of the model that it was copied from."""

    def __init__(self) -> None:
        super().__init__()
        self.last = lambda h: self.head(self.narrow(h))

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.table(input_ids)
        made: Tensor = self.last(h + self.down(self.up(h)).mean(dim=1, keepdim=True))[:, 0]
        return made


def test_a_copy_that_does_not_run_is_not_taken(model: Texts) -> None:
    """The engine then runs the model itself; what was folded before stays folded."""
    own = Own().eval()
    found = engine.engine(own, "head", torch.randint(50, (2, 6)))
    assert found.model is own
    assert found.prepacked == 0
    assert engine.engine(model, "head", torch.randint(50, (2, 6))).prepacked == 2


def test_folded_and_laid_out(model: Texts) -> None:
    """Both, in one copy."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 64), nn.Linear(64, 5)
    ).eval()
    found = engine.engine(net, "4", torch.randn(2, 3, 8, 8))
    assert (found.folded, found.prepacked) == (1, 1)


def test_nested_tensors_go_the_usual_way(model: Texts) -> None:
    """OneDNN takes none."""
    layer = prepacking.PrepackedLinear(model.up)
    given = torch.nested.nested_tensor([torch.randn(2, 64), torch.randn(3, 64)], layout=torch.jagged)
    with torch.inference_mode():
        assert torch.equal(layer(given).unbind()[0], model.up(given).unbind()[0])


@pytest.mark.parametrize("why", ["processor", "too many", "hook", "no operators"])
def test_left_as_it_is(why: str, model: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "processor":
        monkeypatch.setattr(prepacking, "_suits", lambda: False)
    elif why == "too many":
        monkeypatch.setattr(prepacking, "MOST", 2 * 64 * 96 * 4 - 1)
    elif why == "hook":
        for layer in (model.up, model.down):
            layer.register_forward_hook(lambda *_: None)
    else:
        monkeypatch.setattr(prepacking, "PrepackedLinear", None)

    assert prepacking.prepacked(model, "head") == (model, 0)


@pytest.mark.parametrize(
    ("machine", "told", "suits"),
    [
        ("x86_64", "vendor_id\t: AuthenticAMD\n", True),
        ("x86_64", "vendor_id\t: GenuineIntel\n", False),
        ("aarch64", "", False),
    ],
)
def test_which_processors(machine: str, told: str, suits: bool, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(prepacking, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)

    assert prepacking._suits.__wrapped__() is (suits and torch.backends.mkldnn.is_available())
