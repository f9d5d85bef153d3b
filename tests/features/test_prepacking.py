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
