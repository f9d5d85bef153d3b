"""From a checkpoint and an architecture's name to a model: strict loading, metadata, factories, prefixes, no downloads."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from imu_cli.errors import ImuError
from imu_cli.models.architecture import load, parse_arguments, read_said
from imu_cli.models.checkpoint import open_checkpoint
from imu_cli.models.factories import resolve
from imu_cli.models.sidecar import Said

CODE = """
from torch import nn

def net(num_classes=3, width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 36, num_classes))

def fixed():
    return net(5)

class Net(nn.Sequential):
    def __init__(self, num_classes=3):
        super().__init__(*net(num_classes))

def nothing():
    return None
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's own factories, the current one."""
    (tmp_path / "own.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def net(num_classes: int = 3, width: int = 4) -> nn.Sequential:
    """The user's network, with random weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 36, num_classes)
    )


def save(path: Path, values: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """The tensors in a file."""
    save_file(values, path, metadata=metadata)
    return path


def assert_loaded(model: nn.Module, values: dict[str, Tensor]) -> None:
    """The model holds exactly these values, in eval() mode and without gradients."""
    state = model.state_dict()
    assert set(state) == set(values)
    for name, tensor in state.items():
        assert torch.equal(tensor, values[name].to(tensor.dtype)), name
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_number_of_classes_is_read_off_the_file(tmp_path: Path) -> None:
    """A ResNet-18 with 10 classes loads as torchvision:resnet18 without --arch-arg, bit by bit, and says that it has 10."""
    values = models.resnet18(num_classes=10).state_dict()
    found = load(open_checkpoint(save(tmp_path / "m.safetensors", values)), "torchvision:resnet18")
    assert_loaded(found.model, values)
    assert found.architecture.described() == {
        "name": "torchvision:resnet18", "source": "--arch", "arguments": {"num_classes": 10}, "code": None,
    }  # fmt: skip
    assert not found.architecture.runs_code


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_other_torchvision_models_load_too(tmp_path: Path, name: str) -> None:
    """Whatever the last layer is called, and be it a convolution, its size is read off the file."""
    values = models.get_model(name, num_classes=7).state_dict()
    found = load(open_checkpoint(save(tmp_path / "m.safetensors", values)), f"torchvision:{name}")
    assert_loaded(found.model, values)
    assert found.architecture.arguments == {"num_classes": 7}


def test_given_arguments_win_over_the_file(here: Path) -> None:
    """A num_classes that was given is not replaced by the file's: the mismatch is shown instead."""
    checkpoint = open_checkpoint(save(here / "m.safetensors", net(7).state_dict()))
    with pytest.raises(ImuError, match=r"misshapen: .*3\.bias is \(7,\) in the file, \(4,\) in the architecture"):
        load(checkpoint, "own.py:net", ["num_classes=4"])
    assert load(checkpoint, "own.py:net").architecture.arguments == {"num_classes": 7}


def test_a_wrong_architecture_is_described_in_full(here: Path) -> None:
    """Missing, unexpected and misshapen tensors are all listed in one message, and the options to check are named."""
    values = net(3, width=8).state_dict()
    values["extra.weight"] = values.pop("0.bias")
    with pytest.raises(ImuError) as caught:
        load(open_checkpoint(save(here / "m.safetensors", values)), "own.py:net")
    said = str(caught.value)
    assert "missing: 0.bias; " in said
    assert "unexpected: extra.weight; " in said
    assert "3.weight is (3, 288) in the file, (3, 144) in the architecture" in said
    assert "3.bias" not in said
    assert "m.safetensors" in said
    assert "--arch" in said


def test_long_lists_are_cut(tmp_path: Path) -> None:
    """A wholly different network names the first tensors and counts the others, instead of filling the screen."""
    checkpoint = open_checkpoint(save(tmp_path / "m.safetensors", net().state_dict()))
    expected = len([name for name in models.mobilenet_v3_small().state_dict() if "num_batches" not in name])
    with pytest.raises(ImuError, match=rf"missing: .*, \+{expected - 8} more; unexpected: 0\.bias"):
        load(checkpoint, "torchvision:mobilenet_v3_small")


def test_files_without_batch_counters_load(here: Path) -> None:
    """Files older than PyTorch 0.4.1 have no num_batches_tracked; eval() does not use it, so they load."""
    values = net().state_dict()
    counter = values.pop("1.num_batches_tracked")
    found = load(open_checkpoint(save(here / "m.safetensors", values)), "own.py:net")
    assert_loaded(found.model, {**values, "1.num_batches_tracked": torch.zeros_like(counter)})


def test_any_other_missing_tensor_is_refused(here: Path) -> None:
    """Loading is strict: not one tensor may be missing or too many."""
    values = net().state_dict()
    for name in set(values) - {"1.num_batches_tracked"}:
        less = {key: value for key, value in values.items() if key != name}
        with pytest.raises(ImuError, match=f"missing: {name}"):
            load(open_checkpoint(save(here / "m.safetensors", less)), "own.py:net")
        more = {**values, f"{name}_ema": torch.zeros(1)}
        with pytest.raises(ImuError, match=f"unexpected: {name}_ema"):
            load(open_checkpoint(save(here / "m.safetensors", more)), "own.py:net")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "3.bias"])
def test_weights_that_are_not_finite_are_refused(here: Path, name: str, value: float) -> None:
    """One NaN or infinity anywhere, buffers too, is refused with the tensor's name."""
    values = net().state_dict()
    values[name].view(-1)[-1] = value
    with pytest.raises(ImuError, match=rf"not finite .* in {name};"):
        load(open_checkpoint(save(here / "m.safetensors", values)), "own.py:net")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_files_in_other_dtypes_compute_with_their_values(here: Path, dtype: torch.dtype) -> None:
    """A file in another dtype loads: the model computes in its own dtype with the values the file holds."""
    values = {k: v.to(dtype) if v.is_floating_point() else v for k, v in net().state_dict().items()}
    found = load(open_checkpoint(save(here / "m.safetensors", values)), "own.py:net")
    assert_loaded(found.model, values)
    assert found.model.get_parameter("3.weight").dtype == torch.float32


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_are_stripped(here: Path, prefix: str) -> None:
    """What DistributedDataParallel, torch.compile or a trainer put before the names is stripped, and remembered."""
    values = net(6).state_dict()
    path = save(here / "m.safetensors", {prefix + name: tensor for name, tensor in values.items()})
    found = load(open_checkpoint(path), "own.py:net")
    assert_loaded(found.model, values)
    assert found.prefix == prefix
    assert found.architecture.arguments == {"num_classes": 6}


@pytest.mark.parametrize(
    ("arch", "classes"), [("own.py:net", 5), ("own.py:fixed", 5), ("own.py:Net", 8), ("own:net", 9), ("pkg.own:Net", 2)]
)
def test_factories(here: Path, arch: str, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function or class in a file or an importable module; num_classes is passed exactly where it is taken."""
    (here / "pkg").mkdir()
    (here / "pkg" / "__init__.py").touch()
    (here / "pkg" / "own.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(here))
    values = net(classes).state_dict()
    found = load(open_checkpoint(save(here / "m.safetensors", values)), arch)
    assert_loaded(found.model, values)
    assert found.architecture.arguments == ({} if arch.endswith("fixed") else {"num_classes": classes})
    is_file = ".py" in arch
    assert found.architecture.code_sha256 == (hashlib.sha256(CODE.encode()).hexdigest() if is_file else None)
    assert found.architecture.runs_code


def test_a_factory_file_may_define_dataclasses_and_import_lazily(here: Path) -> None:
    """A user's file behaves as any module does: dataclasses with postponed annotations find their module."""
    (here / "own.py").write_text(
        "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass Size:\n    width: int = 4\n"
        + CODE.replace("width=4", "width=Size().width")
    )
    values = net(3).state_dict()
    assert_loaded(load(open_checkpoint(save(here / "m.safetensors", values)), "own.py:net").model, values)


def test_arguments_reach_the_factory(here: Path) -> None:
    """--arch-arg width=8 builds the wider network, with a number."""
    values = net(3, width=8).state_dict()
    found = load(open_checkpoint(save(here / "m.safetensors", values)), "own.py:net", ["width=8"])
    assert_loaded(found.model, values)
    assert found.architecture.arguments == {"width": 8}


BROKEN = {
    "no colon": (
        "resnet18",
        "give torchvision:NAME, timm:NAME, hf: (with config.json beside the weights), file.py:factory",
    ),
    "no factory": ("own.py:", "give torchvision:NAME"),
    "no file": ("other.py:net", "no such file"),
    "no such function": ("own.py:nets", "did you mean 'net'"),
    "not a module": ("own.py:nothing", "returned a NoneType, not a torch.nn.Module"),
    "raises on import": ("raises.py:net", "cannot be imported (ValueError: on import)"),
    "module raises on import": ("raises:net", "cannot be imported (ValueError: on import)"),
    "no module": ("no_such_package.net:f", "cannot be imported"),
    "relative module": (".own:net", "cannot be imported"),
    "dots": ("..:net", "cannot be imported"),
    "not Python": ("text.py:net", "cannot be imported (SyntaxError"),
    "unknown registry": ("https://x:net", "neither a registry, a .py file nor a module"),
    "unknown model": ("torchvision:resnet", "torchvision has no such model (did you mean 'resnet"),
    "ends the process": ("exits.py:net", "cannot be imported (SystemExit: 0)"),
    "factory ends the process": ("own.py:leaves", "the factory failed (SystemExit: need a GPU)"),
    "argument unknown": ("own.py:fixed", "the factory failed (TypeError"),
    "torch says where it was": ("own.py:overflows", "the factory failed (ValueError: too large); see"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_user_gets_wrong_about_a_factory(here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mistake in --arch, and whatever the user's own code raises, is one message that names the option."""
    (here / "raises.py").write_text("raise ValueError('on import')\n")
    (here / "text.py").write_text("this is no Python\n")
    (here / "exits.py").write_text("raise SystemExit(0)\n")
    with (here / "own.py").open("a") as file:
        file.write("\n\ndef leaves(**_):\n    raise SystemExit('need a GPU')\n")
        file.write(
            "def overflows(**_):\n    raise ValueError('too large\\nException raised from x.cpp:1\\nframe #0: x')\n"
        )
    monkeypatch.syspath_prepend(str(here))
    arch, said = BROKEN[name]
    checkpoint = open_checkpoint(save(here / "m.safetensors", net().state_dict()))
    with pytest.raises(ImuError) as caught:
        load(checkpoint, arch, ["width=4"] if name == "argument unknown" else [])
    assert said in str(caught.value)
    assert f"--arch {arch.rpartition(':')[0]}" in str(caught.value)


def metadata(path: Path, **said: object) -> Path:
    """A checkpoint of the network whose metadata key ``imu`` says this."""
    return save(path, net(5).state_dict(), {"format": "pt", "imu": json.dumps(said)})


def test_metadata_name_a_registrys_model(tmp_path: Path) -> None:
    """The safetensors metadata key ``imu`` is enough to load a torchvision model; its source is said to be the metadata."""
    values = models.mobilenet_v3_small(num_classes=4).state_dict()
    said = {"arch": "torchvision:mobilenet_v3_small", "preprocess": "imagenet", "classes": ["a", "b", "c", "d"]}
    checkpoint = open_checkpoint(save(tmp_path / "m.safetensors", values, {"imu": json.dumps(said)}))
    found = load(checkpoint, None)
    assert_loaded(found.model, values)
    assert found.architecture.source == "metadata"
    assert read_said(checkpoint) == [
        Said("metadata", said["arch"], {}, said["preprocess"], tuple(said["classes"]))  # type: ignore[arg-type]
    ]


def test_who_decides_the_architecture(here: Path) -> None:
    """--arch wins over a record, which describes this very model, the record over the metadata; else --arch is asked for."""
    plain = open_checkpoint(save(here / "plain.safetensors", net(5).state_dict()))
    said = open_checkpoint(metadata(here / "said.safetensors", arch="torchvision:resnet18"))
    assert load(said, "own.py:net").architecture.source == "--arch"
    with pytest.raises(ImuError, match="does not fit the architecture"):
        load(said, None)
    recorded = Said("model.record.json", "own.py:net")
    assert load(said, None, fallback=recorded).architecture.source == "model.record.json"
    assert load(plain, None, fallback=recorded).architecture.source == "model.record.json"
    with pytest.raises(
        ImuError,
        match=r"its architecture is not known; no architecture .* with its default arguments, fits .* --arch file\.py:factory",
    ):
        load(plain, None)


@pytest.mark.parametrize(
    "arch", ["evil.py:net", "evil:net", "./evil.py:net", "os:system", "torchvision.models:resnet18"]
)
def test_a_checkpoint_cannot_name_code(here: Path, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata that name a file or module are refused, and what they name is not run."""
    (here / "evil.py").write_text(f"open({str(here / 'ran')!r}, 'w')\n" + CODE)
    monkeypatch.syspath_prepend(str(here))
    checkpoint = open_checkpoint(metadata(here / "m.safetensors", arch=arch))
    for chosen in (None, "own.py:net"):
        with pytest.raises(ImuError, match="a checkpoint may not name code, give --arch"):
            load(checkpoint, chosen)
    assert not (here / "ran").exists()


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '"torchvision:resnet18"', "3", '{"arch": 3}', '{"arch": ["torchvision:resnet18"]}', '{"preprocess": [1]}',
     '{"preprocess": 5}', '{"classes": 10}', '{"classes": [1, 2]}', '{"classes": {"cat": 0}}'],
)  # fmt: skip
def test_metadata_of_the_wrong_kind_are_refused(tmp_path: Path, text: str) -> None:
    """What stands under the key ``imu`` is not trusted to be what it should be: the file and the key are named."""
    path = save(tmp_path / "m.safetensors", net().state_dict(), {"imu": text})
    with pytest.raises(ImuError, match=r"m\.safetensors: metadata key 'imu'"):
        read_said(open_checkpoint(path))


def test_files_without_the_key_say_nothing(tmp_path: Path) -> None:
    """Other metadata are not looked at."""
    path = save(tmp_path / "m.safetensors", net().state_dict(), {"format": "pt", "arch": "evil.py:net"})
    assert read_said(open_checkpoint(path)) == []


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are built without weights: torch's download folder stays empty, and --arch-arg cannot ask for weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    values = models.squeezenet1_1(num_classes=3).state_dict()
    checkpoint = open_checkpoint(save(tmp_path / "m.safetensors", values))
    load(checkpoint, "torchvision:squeezenet1_1")
    with pytest.raises(ImuError, match="would read other weights"):
        load(checkpoint, "torchvision:squeezenet1_1", ["weights=DEFAULT"])
    assert not (tmp_path / "torch").exists()


@pytest.mark.slow
def test_backbones_of_detectors_are_not_downloaded_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segmentation models ask for pretrained backbones by default; here they are built without."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    factory, _ = resolve("torchvision:lraspp_mobilenet_v3_large")
    assert isinstance(factory(num_classes=2), nn.Module)
    assert not (tmp_path / "torch").exists()


names = st.from_regex(r"[a-z][a-z_0-9]*", fullmatch=True)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts


@given(st.dictionaries(names, scalars | st.lists(scalars, max_size=3), max_size=4))
def test_arguments_written_as_json_come_back(values: dict[str, object]) -> None:
    """Any number, text, truth value or list given as JSON is what the factory gets, a number like 1e-07 too."""
    assert parse_arguments([f"{name}={json.dumps(value)}" for name, value in values.items()]) == values


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), ("0.5", 0.5), ("1e-3", 0.001), ("-2E5", -2e5), ("true", True), ("null", None), ("gelu", "gelu"),
     ("a=b", "a=b"), ("[1, 2]", [1, 2]), ("'1e-3'", "1e-3"), ("2020-01-01", "2020-01-01"), ("{a: 1}", {"a": 1})],
)  # fmt: skip
def test_arguments_as_people_type_them(text: str, value: object) -> None:
    """Values are YAML scalars, with 1e-3 a number, which plain YAML takes for text, and dates text."""
    found = parse_arguments([f"key={text}"])
    assert found == {"key": value}
    assert type(found["key"]) is type(value)


@pytest.mark.parametrize("pair", ["width", "=3", "a b=3", "2=3", "", "x=[1", "x=a: b: c", "x={", "x='a"])
def test_arguments_that_make_no_sense(pair: str) -> None:
    """No key, no sign, or a value that is not YAML: the option is named."""
    with pytest.raises(ImuError, match="--arch-arg"):
        parse_arguments([pair])
