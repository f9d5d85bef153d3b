"""Which tensors of a file are the model's: words before the names, trainers' own tensors, two sets, and the options for both."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from imu_cli.cli import main
from imu_cli.commands import convert as converting
from imu_cli.errors import ImuError
from imu_cli.models import candidates, names
from imu_cli.models.checkpoint import differing, open_checkpoint
from imu_cli.records.json_files import read
from imu_cli.records.record import Record

MODEL = {"conv.weight": (4, 3, 3, 3), "bn.num_batches_tracked": (), "fc.weight": (5, 4), "fc.bias": (5,)}
CONFIG = ["--config", "imu.yaml"]


def put(prefix: str, shapes: dict[str, tuple[int, ...]] = MODEL) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in shapes.items()}


@given(st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), max_size=4))
def test_any_words_before_all_names_are_read_over(words: list[str]) -> None:
    """Whatever stands before the names is found, and what the file's tensors are called in the model is the model's own names."""
    prefix = "".join(f"{word}." for word in words)
    found = names.find(put(prefix), MODEL, "f")
    assert found == names.Naming(prefix)
    assert {found.own(name) for name in put(prefix)} == set(MODEL)


@pytest.mark.parametrize(
    "beside",
    ["criterion.weight", "loss_fn.pos_weight", "n_averaged", "step", "global_step", "train_acc.tp", "val_metrics.auroc.preds",
     "module.n_averaged", "loss.weight"],
)  # fmt: skip
def test_trainers_own_tensors_are_left_out_by_name(beside: str) -> None:
    """Losses, metrics and counters beside the model are left out, and listed."""
    found = names.find({**put("module."), beside: (5,)}, MODEL, "f")
    assert found == names.Naming("module.", (beside,))


@pytest.mark.parametrize("beside", ["head.weight", "teacher.fc.weight", "neck.weight", "model.extra.weight"])
def test_other_tensors_are_never_left_out_unasked(beside: str) -> None:
    """What may be a part of the classifier that the architecture lacks stays, to be refused as unexpected."""
    assert names.find({**put("model."), beside: (5,)}, MODEL, "f").left_out == ()
    assert names.find({**put("model."), beside: (5,)}, MODEL, "f", leave_out=[beside]).left_out == (beside,)


def test_a_model_that_has_such_a_name_keeps_it() -> None:
    """A tensor that the architecture knows is loaded, whatever it is called."""
    shapes = {**MODEL, "step": (1,)}
    assert names.find(put("net.", shapes), shapes, "f").left_out == ()


@pytest.mark.parametrize(("one", "other"), [("model.", "ema_model."), ("", "ema."), ("student.", "teacher.")])
def test_two_sets_that_fit_ask(one: str, other: str) -> None:
    """A model and its average are two models: the message names the options, and each of them decides."""
    both = {**put(one), **put(other)}
    with pytest.raises(ImuError, match="several sets of tensors that fit the architecture") as caught:
        names.find(both, MODEL, "f")
    assert "--leave-out" in str(caught.value)
    assert names.find(both, MODEL, "f", leave_out=[other.removesuffix(".")]).prefix == one
    rest = {name for name in both if not name.startswith(other)}
    assert names.find(both, MODEL, "f", strip_prefix=other, leave_out=sorted(rest)).prefix == other


def test_shapes_decide_between_two_sets() -> None:
    """Of two sets with the same names, the one whose shapes fit is the model."""
    small = dict.fromkeys(MODEL, (1,))
    assert names.find({**put("a."), **put("b.", small)}, MODEL, "f").prefix == "a."


def test_options_that_mean_nothing_are_errors() -> None:
    """A prefix or a name that no tensor has, a name that two would have, and nothing left, are told with what is there."""
    for options, said in (
        (
            {"strip_prefix": "nets."},
            r"--strip-prefix nets\.: no tensor's name in f starts with it; they share 'module\.'",
        ),
        ({"leave_out": ["ema"]}, r"--leave-out ema: no tensor of f has such a name; it has module\.bn"),
        ({"leave_out": ["module"]}, "leaves none of the tensors"),
    ):
        with pytest.raises(ImuError, match=said):
            names.find(put("module."), MODEL, "f", **options)  # type: ignore[arg-type]
    with pytest.raises(ImuError, match=r"two tensors of f would have the same name, 'fc\.bias'"):
        names.find({**put("module."), "fc.bias": (5,)}, MODEL, "f")


def test_candidates_are_found_behind_any_word() -> None:
    """The index of architectures is asked with the names as a model would have them."""
    from torchvision import models

    shapes = {
        f"student.net.{name}": tuple(value.shape) for name, value in models.resnet18(num_classes=3).state_dict().items()
    }
    assert "torchvision:resnet18" in candidates.find(shapes)


WRITTEN: dict[str, tuple[Any, list[str]]] = {
    "Lightning": (lambda s, e: {f"net.{k}": v for k, v in s.items()}, []),
    "DDP, compile, module": (lambda s, e: {f"module._orig_mod.model.{k}": v for k, v in s.items()}, []),
    "SWA": (lambda s, e: {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in s.items()}}, []),
    "criterion": (lambda s, e: {"criterion.weight": torch.ones(10), **{f"model.{k}": v for k, v in s.items()}}, []),
    "EMA": (
        lambda s, e: {"step": torch.tensor(5), **{f"model.{k}": v for k, v in s.items()}, **{f"ema_model.{k}": v for k, v in e.items()}},
        ["--strip-prefix", "model.", "--leave-out", "ema_model"],
    ),
    "half wrapped": (lambda s, e: {("" if k < "3" else "module.") + k: v for k, v in s.items()}, ["--strip-prefix", "module."]),
    "teacher": (lambda s, e: {**s, "teacher.head.weight": torch.ones(3, 3)}, ["--leave-out", "teacher.*"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_unlearned_with_every_other_byte_and_evaluated_by_the_record(job: Path, name: str) -> None:
    """The model in a trainer's file is unlearned as it is alone; every tensor outside the head stays, and evaluate needs no flag again."""
    plain = load_file("model.safetensors")
    average = {key: torch.zeros_like(value) for key, value in plain.items()}
    make, options = WRITTEN[name]
    save_file(make(plain, average), "t.safetensors")
    go = [*CONFIG, "--forget", "class=3", "--quiet"]
    assert main(["unlearn", "model.safetensors", *go, "-o", "alone.safetensors"]) in (0, 3)
    assert main(["unlearn", "t.safetensors", *go, *options, "-o", "u.safetensors"]) in (0, 3)
    record = read(Path("u.record.json"))
    assert isinstance(record, Record)
    before, after = open_checkpoint(Path("t.safetensors")), open_checkpoint(Path("u.safetensors"))
    assert set(differing(before, after)) == set(record.changed)
    alone, there = load_file("alone.safetensors"), load_file("u.safetensors")
    assert all(torch.equal(there[file], alone[file[-len(own) :]]) for file in record.changed for own in ("8.weight", "8.bias") if
               file.endswith(own))  # fmt: skip
    if options:
        assert main(["evaluate", "u.safetensors", *CONFIG, "--quiet"]) == 0


def test_what_is_left_out_is_told(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything that is not loaded is listed, by unlearn and by inspect; what may be the classifier's is refused with the option."""
    plain = load_file("model.safetensors")
    save_file({**{f"model.{k}": v for k, v in plain.items()}, "criterion.weight": torch.ones(10), "ema.a": plain["8.bias"].clone(),
               "ema.b": plain["8.bias"].clone()}, "t.safetensors")  # fmt: skip
    assert main(["inspect", "t.safetensors", *CONFIG]) == 0
    assert "add --leave-out ema; else" in " ".join(capsys.readouterr().out.split())
    assert main(["inspect", "t.safetensors", *CONFIG, "--leave-out", "ema"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "not loaded, no part of the classifier: criterion.weight, ema.* (2); kept on writing" in shown
    assert "--leave-out ema" in shown[shown.index("next:") :]
    assert main(["influence", "t.safetensors", *CONFIG, "--forget", "class=3", "--leave-out", "ema"]) == 0
    assert "criterion.weight, ema.* (2)" in capsys.readouterr().err


def test_features_of_a_wrapped_model_find_its_head(job: Path) -> None:
    """A head named in a file of features is found behind what is before every name, and else behind the prefix that is given."""
    plain = load_file("model.safetensors")
    save_file({f"student.{k}": v for k, v in plain.items()}, "t.safetensors")
    assert main(["features", "t.safetensors", *CONFIG, "--forget", "class=3", "-o", "f.safetensors", "--quiet"]) == 0
    assert main(["influence", "t.safetensors", "--features", "f.safetensors", "--quiet"]) == 0
    save_file({**{f"student.{k}": v for k, v in plain.items()}, "teacher.a": torch.ones(2)}, "two.safetensors")
    go = ["--strip-prefix", "student.", "--leave-out", "teacher"]
    assert (
        main(["features", "two.safetensors", *CONFIG, *go, "--forget", "class=3", "-o", "g.safetensors", "--quiet"])
        == 0
    )
    assert main(["influence", "two.safetensors", "--features", "g.safetensors", "--quiet"]) == 2
    assert main(["influence", "two.safetensors", "--features", "g.safetensors", "--quiet", *go]) == 0


def convert(path: Path, found: Any, **options: Any) -> tuple[converting.Converted, dict[str, Tensor]]:
    torch.save(found, path)
    made = converting.run(path, path.with_suffix(".safetensors"), force=True, **options)
    return made, load_file(made.output)


def test_convert_has_the_same_rules(job: Path) -> None:
    """What conversion keeps, loading reads; the same options leave the same tensors out, and all of them are listed."""
    plain = load_file("model.safetensors")
    both = {
        **{f"net.{k}": v for k, v in plain.items()},
        "n_averaged": torch.tensor(3),
        "ema_net.8.bias": plain["8.bias"] + 1,
    }
    made, back = convert(job / "in.pth", {"state_dict": both})
    assert set(back) == set(both)
    assert any("kept: n_averaged" in note and "--leave-out n_averaged" in note for note in made.notes)
    made, back = convert(job / "in.pth", both, strip_prefix="net.", leave_out=["n_averaged", "ema_net"])
    assert set(back) == set(plain)
    assert "left out: ema_net.8.bias, n_averaged" in made.notes
    with pytest.raises(ImuError, match="--leave-out ema: no tensor"):
        convert(job / "in.pth", both, leave_out=["ema"])


def test_convert_checks_an_architecture_by_the_rules_of_loading(tmp_path: Path) -> None:
    """With --arch, a wrapped ResNet with its loss is converted and fits; its arguments stand in the metadata and are used."""
    from torchvision import models

    state = models.resnet18(num_classes=4).state_dict()
    found = {**{f"module.model.{k}": v for k, v in state.items()}, "module.criterion.weight": torch.ones(4)}
    made, _ = convert(tmp_path / "in.pth", found, arch="torchvision:resnet18", arch_arg=["num_classes=4"])
    said = json.loads(open_checkpoint(made.output).metadata["imu"])
    assert said == {"arch": "torchvision:resnet18", "arguments": {"num_classes": 4}}
    with pytest.raises(ImuError, match="--arch-arg: only with --arch"):
        convert(tmp_path / "in.pth", found, arch_arg=["num_classes=4"])


def test_keys_that_lead_to_parts_of_one_model(tmp_path: Path) -> None:
    """A backbone and a head under one key are one model with --key of that key; tuples and lists of pairs are read too."""
    parts = {"checkpoint": {"student": {"backbone": {"w": torch.ones(2)}, "head": {"w": torch.ones(3)}}}}
    with pytest.raises(ImuError, match=r"--key checkpoint\.student for all of them as one model"):
        convert(tmp_path / "in.pth", parts)
    _, back = convert(tmp_path / "in.pth", parts, key="checkpoint.student")
    assert {name: len(value) for name, value in back.items()} == {"backbone.w": 2, "head.w": 3}
    for found in (({"a.w": torch.ones(2)}, {"epoch": 3}), [("a.w", torch.ones(2))]):
        assert set(convert(tmp_path / "in.pth", found)[1]) == {"a.w"}
