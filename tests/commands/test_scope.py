"""``unlearn --scope``: the file differs in the moved tensors alone, the record says by how much, and a run can be stopped."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import small_texts
import torch
from conftest import listing
from plans import assert_close_rows
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_library_folders import sharded_vit, vit_logits
from test_sidecar import CLASSES, picture
from torch import Tensor

from imu_cli import signals
from imu_cli.cli import main
from imu_cli.commands import resuming
from imu_cli.errors import ImuError
from imu_cli.features import cache
from imu_cli.models import checkpoint
from imu_cli.models.checkpoint import open_checkpoint, same_bits

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = ["model.safetensors", "--config", "imu.yaml"]
CLASS = ["--forget", "class=3"]
SAMPLES = ["--forget", "forget.csv"]
BLOCK = ["--scope", "last-block"]


@pytest.fixture
def here(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The digits model with eight images a class, of which three are listed, and others that were never seen."""
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    data = (tmp_path / "imu.yaml").read_text().split("data: ")[1].strip()
    rows = [f"{label}/{sorted((Path(data) / str(label)).iterdir())[0].name},{label}" for label in (0, 4, 7)]
    Path("forget.csv").write_text("file_name,label\n" + "\n".join(rows) + "\n")
    return Path(data)


@pytest.fixture
def unseen(digits: Path) -> str:
    """Images of the digits that the model was not trained on, nine of each."""
    folder = Path("unseen")
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for image in sorted((digits / "data/test" / str(label)).iterdir())[:9]:
            shutil.copy(image, folder / str(label))
    return "unseen"


def run(capsys: pytest.CaptureFixture[str], *command: str, code: int | None = 0) -> tuple[str, str]:
    """What a command printed on stdout and on stderr; ``None`` for a code that says whether a target was met."""
    found = main(list(command))
    shown = capsys.readouterr()
    assert found == code or (code is None and found in (0, 3)), shown.err
    return shown.out, shown.err


def unlearn(
    capsys: pytest.CaptureFixture[str], *more: str, model: str = COMMON[0], config: bool = True
) -> dict[str, Any]:
    """The record of ``imu unlearn``, whether it met its target or not."""
    known = ["--config", "imu.yaml"] if config else []
    made: dict[str, Any] = json.loads(
        run(capsys, "unlearn", model, *known, "--format", "json", "-q", *more, code=None)[0]
    )
    return made


def changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """Names of tensors whose bytes differ."""
    assert one.keys() == other.keys()
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in one.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in other.items()
    }
    return {name for name, tensor in one.items() if not same_bits(tensor, other[name])}


def check_record(made: dict[str, Any], before: Path, after: Path) -> set[str]:
    """Changed tensors with their relative changes, the hash of the rest, and of the file; the names."""
    one, other = load_file(before), load_file(after)
    names = changed(one, other)
    assert set(made["changed"]) == names
    assert made["unchanged"] == len(one) - len(names)
    assert {item["name"] for item in made["scope"]["tensors"]} == names
    for item in made["scope"]["tensors"]:
        was, now = one[item["name"]].double(), other[item["name"]].double()
        if bool(was.any()):
            assert item["change"] == pytest.approx(float((now - was).norm() / was.norm()), rel=1e-9)
        else:
            assert item["change"] is None
    for path in (before, after):
        assert open_checkpoint(path).outside_hash(names) == made["outside_sha256"]
    assert open_checkpoint(after).sha256 == made["after"]["sha256"]
    return names


def test_a_glob_without_the_head_leaves_the_head(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the tensors that the scope names differ in the file; the record has each with its change."""
    made = unlearn(capsys, *CLASS, "--scope", "6", "--batches", "12", "-o", "out.safetensors")
    assert check_record(made, Path("model.safetensors"), Path("out.safetensors")) == {"6.weight", "6.bias"}
    scope = made["scope"]
    assert (scope["given"], scope["modules"], scope["cut"]) == ("6", ["6"], "5")
    assert scope["weights"] == 512 * 128 + 128
    assert (made["method"], scope["weighting"], scope["anchor"]) == ("demoted", "uniform", 0)
    assert made["start"]["forget"] == 1
    assert made["start"]["head_change"] == 0 < made["end"]["head_change"]
    assert scope["passes"] > 1
    with safe_open("out.safetensors", framework="pt") as file, safe_open("model.safetensors", framework="pt") as old:
        assert file.metadata() == old.metadata()


def test_a_whole_class_by_the_last_block_and_what_is_said_of_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The target is met, evaluate counts in the file what the record has, and the report tells of it."""
    _, told = run(capsys, "unlearn", *COMMON, *CLASS, *BLOCK, "-o", "out.safetensors")
    assert "note: scope last-block: 6, 8: 66,954 weights of 2 layers move; buffers, and everything else, stay" in told
    assert "note: no anchor: add --anchor DATA" in told
    made = json.loads(Path("out.record.json").read_text())
    assert made["reached"] is True
    names = check_record(made, Path("model.safetensors"), Path("out.safetensors"))
    assert names == {"6.weight", "6.bias", "8.weight", "8.bias"}
    out, _ = run(capsys, "evaluate", "out.safetensors", "--config", "imu.yaml", "--format", "json")
    found = {item["name"]: item["value"] for item in json.loads(out)["metrics"]}
    assert found["forget.accuracy"] == made["end"]["forget"]
    shown, _ = run(capsys, "report", "out.record.json", "out.evaluation.json")
    assert "6, 8" in shown


def test_samples_with_unseen_ones_that_anchor_and_guard(
    here: Path, unseen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unseen samples that are few do both; the trajectory has the numbers that matter, and the same command gives the same bytes."""
    command = [*SAMPLES, *BLOCK, "--reference", unseen, "--batches", "20", "--force", "-o", "out.safetensors"]
    made = unlearn(capsys, *command)
    check_record(made, Path("model.safetensors"), Path("out.safetensors"))
    assert (made["scope"]["anchor"], made["scope"]["unseen"]) == (90, 90)
    assert made["trajectory"][0]["step"] == 0
    assert all(look["auc"] is not None and look["unseen"] is not None for look in made["trajectory"])
    assert made["end"]["test_drop"] <= 0.01
    first = Path("out.safetensors").read_bytes()
    again = unlearn(capsys, *command)
    assert Path("out.safetensors").read_bytes() == first
    assert again["trajectory"] == made["trajectory"]


def test_two_parts_hold_every_class_and_share_no_sample(
    here: Path, digits: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is enough: a fifth of each class gives targets, the others are anchored; --anchor has its own."""
    from imu_cli.commands import scope

    monkeypatch.setattr(scope, "FEW", 100)
    test = str(digits / "data/test")
    made = unlearn(capsys, *SAMPLES, *BLOCK, "--reference", test, "--batches", "2", "-o", "a.safetensors")
    parts = made["scope"]["anchor"], made["scope"]["unseen"]
    assert sum(parts) == made["held_out"]["used"] == 450
    assert parts[1] == pytest.approx(90, abs=5)
    assert made["end"]["unseen"] is not None


def test_an_anchor_needs_no_labels(here: Path, unseen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of images alone, with a share to come down to; the weights column weighs, and influence does."""
    Path("flat").mkdir()
    for at, image in enumerate(sorted(Path(unseen).rglob("*.png"))):
        shutil.copy(image, Path("flat") / f"{at}.png")
    until = [
        "--until",
        "forget.accuracy<=0.4",
        "--anchor",
        "flat",
        "--batches",
        "20",
        "--force",
        "-o",
        "out.safetensors",
    ]
    made = unlearn(capsys, *SAMPLES, *BLOCK, *until)
    assert (made["scope"]["anchor"], made["scope"]["unseen"]) == (90, 0)
    plain = Path("out.safetensors").read_bytes()
    lines = Path("forget.csv").read_text().splitlines()
    weighed = [f"{lines[0]},weight", *(f"{line},{weight}" for line, weight in zip(lines[1:], (1, 5, 1), strict=True))]
    Path("weighed.csv").write_text("\n".join(weighed))
    unlearn(capsys, "--forget", "weighed.csv", *BLOCK, *until)
    assert Path("out.safetensors").read_bytes() != plain
    made = unlearn(capsys, *SAMPLES, *BLOCK, *until, "--weights", "influence")
    assert made["scope"]["weighting"] == "influence"
    assert Path("out.safetensors").read_bytes() != plain


def test_wrong_labels_at_depth(here: Path, unseen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Samples that are seen as another digit come to be taken for it as rarely as unseen ones."""
    lines = Path("forget.csv").read_text().splitlines()
    tensors = load_file("model.safetensors")
    tensors["8.bias"][5] += 40  # a model that takes everything for a five
    save_file(tensors, "model.safetensors")
    Path("wrong.csv").write_text(
        "file_name,label,true_label\n"
        + "\n".join(f"{line.split(',')[0]},5,{line.split(',')[1]}" for line in lines[1:])
        + "\n"
    )
    until = ["--until", "forget.accuracy<=0.4", "--scenario", "mislabelled"]
    made = unlearn(
        capsys,
        "--forget",
        "wrong.csv",
        *BLOCK,
        *until,
        "--reference",
        unseen,
        "--max-drop",
        "1",
        "-o",
        "out.safetensors",
    )
    assert made["scenario"] == "mislabelled"
    assert made["start"]["forget"] == 1
    assert made["end"]["forget"] <= 0.4


@pytest.mark.parametrize("size", ["1", "2"])
def test_one_sample_and_batches_of_one(here: Path, unseen: str, capsys: pytest.CaptureFixture[str], size: str) -> None:
    """One forget sample, samples that run one at a time: the part below the cut still runs once."""
    Path("one.csv").write_text("\n".join(Path("forget.csv").read_text().splitlines()[:2]) + "\n")
    more = ["--batches", "4", "--batch-size", size, "-o", "out.safetensors", "--minibatch", "3"]
    until = ["--until", "forget.accuracy<=0", "--anchor", unseen]
    made = unlearn(capsys, "--forget", "one.csv", *BLOCK, *until, *more)
    assert made["scope"]["cut"] == "5"
    check_record(made, Path("model.safetensors"), Path("out.safetensors"))


# Files


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_files(here: Path, capsys: pytest.CaptureFixture[str], dtype: torch.dtype) -> None:
    """Moved tensors come back in their dtype, and the share that is recorded is that of the file."""
    tensors = load_file("model.safetensors")
    save_file({k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}, "half.safetensors")
    made = unlearn(capsys, *CLASS, *BLOCK, "-o", "out.safetensors", model="half.safetensors")
    names = check_record(made, Path("half.safetensors"), Path("out.safetensors"))
    assert names == {"6.weight", "6.bias", "8.weight", "8.bias"}
    out, _ = run(capsys, "evaluate", "out.safetensors", "--config", "imu.yaml", "--format", "json")
    found = {item["name"]: item["value"] for item in json.loads(out)["metrics"]}
    assert found["forget.accuracy"] == made["end"]["forget"] == made["trajectory"][-1]["forget"]
    assert made["reached"] == (made["end"]["forget"] + made["end"]["near"] <= made["target"]["value"])


def test_bfloat16_arithmetic(here: Path, unseen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On the CPU, with float32 weights: the moved ones are written in float32, and more precisely than bfloat16 has them."""
    made = unlearn(
        capsys, *SAMPLES, *BLOCK, "--reference", unseen, "--device", "cpu", "--precision", "bfloat16", "--batches", "4",
        "-o", "out.safetensors",
    )  # fmt: skip
    check_record(made, Path("model.safetensors"), Path("out.safetensors"))
    weight = load_file("out.safetensors")["6.weight"]
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.bfloat16().float())


def sorted_pictures(folder: Path) -> str:
    """Six pictures in folders of the classes that the model gives them; a class that it gives some."""
    images = [picture(seed) for seed in range(6)]
    found = vit_logits(folder, images).argmax(dim=1).tolist()
    for at, (image, number) in enumerate(zip(images, found, strict=True)):
        (Path("data") / CLASSES[number]).mkdir(parents=True, exist_ok=True)
        image.save(Path("data") / CLASSES[number] / f"{at}.png")
    return CLASSES[found[0]]


def test_of_a_sharded_folder_the_shards_with_moved_tensors_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All other files are the same bytes, the index too, and transformers loads the result."""
    import transformers

    monkeypatch.chdir(tmp_path)
    sharded_vit(Path("net"))
    name = sorted_pictures(Path("net"))
    more = ["--data", "data", "--batches", "3", "--scenario", "class"]
    made = unlearn(capsys, "--forget", f"class={name}", "--scope", "*.mlp.*", *more, model="net", config=False)
    out = Path("net.unlearned")
    index = json.loads(Path("net/model.safetensors.index.json").read_text())["weight_map"]
    assert made["changed"]
    assert len(made["changed"]) == 4, "weights and biases of two layers, which the file calls intermediate and output"
    assert all(".intermediate." in tensor or ".layer.0.output." in tensor for tensor in made["changed"])
    touched = {index[tensor] for tensor in made["changed"]}
    assert 0 < len(touched) < len(set(index.values()))
    for path in sorted(Path("net").iterdir()):
        same = path.read_bytes() == (out / path.name).read_bytes()
        assert same == (path.name not in touched), path.name
    after = transformers.AutoModelForImageClassification.from_pretrained(out, local_files_only=True).state_dict()
    before = transformers.AutoModelForImageClassification.from_pretrained("net", local_files_only=True).state_dict()
    assert sum(not torch.equal(after[name], before[name]) for name in before) == len(made["changed"])


def test_a_library_that_renames_on_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tensors keep their old names in the file (LayerNorm.gamma), and move under them."""
    monkeypatch.chdir(tmp_path)
    small_texts.write(Path(), count=12)
    file = Path("net/model.safetensors")
    with safe_open(file, framework="pt") as old:
        said = old.metadata()
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, said)
    made = unlearn(
        capsys, "--forget", "index=0:3", "--data", "texts.jsonl", "--scope", "bert.encoder.layer.1.*", "--batches", "3",
        "--scenario", "sample", "--until", "forget.accuracy<=0", model="net", config=False,
    )  # fmt: skip
    names = check_record(made, file, Path("net.unlearned/model.safetensors"))
    assert "bert.encoder.layer.1.output.LayerNorm.gamma" in names
    assert all(name.startswith("bert.encoder.layer.1.") for name in names)


TIED = """
from torch import nn

def net():
    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    made[3].weight = made[1].weight
    return made
"""


def own_code(name: str, code: str) -> list[str]:
    """A file of code and a checkpoint of its network, which takes everything for a four; what unlearns the listed as such."""
    Path(f"{name}.py").write_text(code)
    space: dict[str, Any] = {}
    exec(code, space)
    torch.manual_seed(0)
    state = space["net"]().state_dict()
    state["5.bias"][4] += 9
    save_file({key: tensor.clone() for key, tensor in state.items()}, f"{name}.safetensors")
    lines = [f"{line.split(',')[0]},4" for line in Path("forget.csv").read_text().splitlines()[1:]]
    Path("fours.csv").write_text("file_name,label\n" + "\n".join(lines) + "\n")
    more = ["--until", "forget.accuracy<=0", "--batches", "2", "-o", "out.safetensors"]
    return ["--forget", "fours.csv", "--arch", f"{name}.py:net", "--scenario", "sample", *more]


@pytest.mark.parametrize("scope", ["3", "1"])
def test_a_tied_weight_moves_under_both_of_its_names(
    here: Path, capsys: pytest.CaptureFixture[str], scope: str
) -> None:
    """A file that has it twice has it twice the same afterwards, whichever layer was named."""
    made = unlearn(capsys, *own_code("tied", TIED), "--scope", scope, model="tied.safetensors")
    assert made["scope"]["weights"] == 64 * 64 + 64
    names = check_record(made, Path("tied.safetensors"), Path("out.safetensors"))
    assert names == {"1.weight", "3.weight", f"{scope}.bias"}
    after = load_file("out.safetensors")
    assert torch.equal(after["1.weight"], after["3.weight"])


def test_a_weight_that_is_computed_stays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Spectral normalisation makes a weight of another one: that one is no layer's own and stays; the bias beside it moves."""
    computed = TIED.replace(
        "    made[3].weight = made[1].weight\n", "    nn.utils.parametrizations.spectral_norm(made[3])\n"
    )
    made = unlearn(capsys, *own_code("spectral", computed), "--scope", "3", model="spectral.safetensors")
    assert check_record(made, Path("spectral.safetensors"), Path("out.safetensors")) == {"3.bias"}


# What is refused


REFUSED: dict[str, tuple[list[str], str]] = {
    "rows": (["--rows", "all"], "--rows: options of the head alone; leave out, or use --scope head"),
    "preset": (["--preset", "paper"], "options of the head alone"),
    "reweight": (["--reweight", "step"], "--reweight: "),
    "steps of the ascent": (
        ["--step", "0.1", "--max-steps", "9"], "--step, --max-steps: options of the head alone; leave out, or use --scope head; --batches"),
    "SGD": (
        ["--learning-rate", "0.1", "--momentum", "0.9", "--weight-decay", "0.1", "--l1", "0.1", "--epochs", "2"],
        "--momentum, --weight-decay, --l1, --epochs: options of the head alone"),
    "ρ": (["--rho", "1"], "--rho: "),
    "matched's": (["--sigma-damping", "0.1", "--no-class-factor"], "--sigma-damping, --no-class-factor: "),
    "change of the head": (["--max-head-change", "0.1"], "--max-head-change: "),
    "share kept": (["--keep", "0.5"], "--keep: "),
    "the ascent": (["--method", "imu"], "--method imu: changes the head alone; leave it out, or use --scope head"),
    "matched": (["--method", "matched"], "--method matched: changes the head alone"),
    "no such layer": (["--scope", "layer4.*"], "layer4.* matches no module; there are 0, 2, 3, 6, 8; write last-block"),
    "an activation": (["--scope", "7"], "7 matches 7, which has no weights that move"),
    "an empty scope": (["--scope", ""], "--scope: is empty"),
    "no anchor there": (["--anchor", "nowhere"], "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_a_deeper_scope_is_refused(here: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """By the option's name, and nothing is written."""
    more, expected = REFUSED[name]
    before = listing(Path())
    until = ["--until", "forget.accuracy<=0.4"]
    scope = [] if "--scope" in more else BLOCK
    _, told = run(capsys, "unlearn", *COMMON, *SAMPLES, *until, *scope, *more, "-o", "out.safetensors", code=2)
    assert expected in told
    assert listing(Path()) == before


@pytest.mark.parametrize(
    "more",
    [
        ["--anchor", "unseen"],
        ["--beta", "2"],
        ["--batches", "9"],
        ["--no-feature-term"],
        ["--resume"],
        ["--method", "demoted"],
    ],
)
def test_what_says_nothing_to_the_head_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    """An option of deeper scopes beside the head alone would do nothing: it names the scope that it is for."""
    before = listing(Path())
    _, told = run(capsys, "unlearn", *COMMON, *CLASS, *more, "-o", "out.safetensors", code=2)
    assert more[0] in told
    assert "--scope last-block" in told
    assert listing(Path()) == before


def test_samples_without_a_target_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing says how far they are to go."""
    _, told = run(capsys, "unlearn", *COMMON, *SAMPLES, *BLOCK, "-o", "out.safetensors", code=2)
    assert "add --test DATA, --reference DATA or --until 'forget.accuracy<=X'" in told
    assert not Path("out.safetensors").exists()


def test_a_forget_sample_in_the_anchor_is_an_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the lines of both lists, all of them at once."""
    lines = Path("forget.csv").read_text().splitlines()
    others = sorted((here / "1").iterdir())
    Path("anchor.csv").write_text("\n".join([lines[0], f"1/{others[0].name},1", lines[3], lines[1]]) + "\n")
    before = listing(Path())
    more = ["--until", "forget.accuracy<=0.4", "--anchor", "anchor.csv", "-o", "out.safetensors"]
    _, told = run(capsys, "unlearn", *COMMON, *SAMPLES, *BLOCK, *more, code=2)
    assert "forget.csv:2: " in told
    assert "also stands in --anchor as anchor.csv:4: " in told
    assert "forget.csv:4: " in told
    assert "also stands in --anchor as anchor.csv:3: " in told
    assert listing(Path()) == before


def test_twins_of_forget_samples_are_not_anchored(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same bytes under another name are left out, and an anchor of nothing else is an error."""
    Path("twins").mkdir()
    for at, line in enumerate(Path("forget.csv").read_text().splitlines()[1:]):
        shutil.copy(here / line.split(",")[0], Path("twins") / f"{at}.png")
    more = ["--until", "forget.accuracy<=0.4", "--anchor", "twins", "--batches", "2", "-o", "out.safetensors"]
    _, told = run(capsys, "unlearn", *COMMON, *SAMPLES, *BLOCK, *more, code=2)
    assert "--anchor twins: nothing is left of it without twins of the forget samples" in told
    shutil.copy(sorted((here / "1").iterdir())[0], "twins")
    assert unlearn(capsys, *SAMPLES, *BLOCK, *more)["scope"]["anchor"] == 1


def test_what_judges_is_not_anchored(here: Path, unseen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an anchor that is --test itself, the half that is left for evaluate is left out; one half is there to choose by."""
    until = ["--until", "forget.accuracy<=0.4"]
    more = ["--test", unseen, "--anchor", unseen, *until, "--batches", "2", "-o", "out.safetensors"]
    _, told = run(capsys, "unlearn", *COMMON, *SAMPLES, *BLOCK, *more, code=None)
    assert f"--anchor {unseen}: 45 of its 90 samples are in the half of --test that is left for evaluate" in told
    made = json.loads(Path("out.record.json").read_text())
    assert (made["scope"]["anchor"], made["scope"]["unseen"]) == (45, 45)


def test_a_folder_that_numbers_its_own_classes_is_an_anchor_without_labels(
    here: Path, unseen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its fourth class is not the model's class 3, and stays anchored."""
    for name, digit in zip("abcd", (0, 1, 2, 7), strict=True):
        shutil.copytree(Path(unseen) / str(digit), Path("own") / name)
    Path("flat").mkdir()
    for image in Path("own").rglob("*.png"):
        shutil.copy(image, Path("flat") / f"{image.parent.name}-{image.name}")
    made = []
    for anchor in ("own", "flat"):
        unlearn(capsys, *CLASS, *BLOCK, "--anchor", anchor, "--batches", "4", "--force", "-o", "out.safetensors")
        made.append(Path("out.safetensors").read_bytes())
    assert made[0] == made[1]


def test_an_anchor_of_the_classes_that_go_is_an_error(
    here: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of it can be held."""
    _, told = run(
        capsys,
        "unlearn",
        *COMMON,
        *CLASS,
        *BLOCK,
        "--anchor",
        str(digits / "data/test/3"),
        "-o",
        "out.safetensors",
        code=2,
    )
    assert "--anchor: holds nothing but the classes that go" in told
    assert not Path("out.safetensors").exists()


def test_features_from_a_file_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are those of the network before: nothing below the head can move."""
    run(capsys, "features", *COMMON, "-o", "train.safetensors", "-q")
    _, told = run(
        capsys,
        "unlearn",
        "model.safetensors",
        "--features",
        "train.safetensors",
        *CLASS,
        *BLOCK,
        "-o",
        "out.safetensors",
        code=2,
    )
    assert "--scope last-block: layers below the head move, and features from a file are what those gave before" in told
    assert not Path("out.safetensors").exists()


# Stopped, gone on with, shared


STATE = "training-*.safetensors"


def stopped_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Somebody presses Ctrl-C while the number-th state is kept; every look keeps one."""
    monkeypatch.setattr(resuming, "APART", 0.0)
    saved: list[int] = []
    save = resuming.Progress.save

    def counted(self: resuming.Progress, *given: Any) -> None:
        save(self, *given)
        saved.append(1)
        if len(saved) == number:
            signals._noted.append(signal.SIGINT)

    monkeypatch.setattr(resuming.Progress, "save", counted)


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    here: Path, unseen: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C keeps nothing half and says how to go on; --resume ends with the bytes of a run that nobody stopped."""
    command = ["unlearn", *COMMON, *SAMPLES, *BLOCK, "--reference", unseen, "--batches", "12", "-o"]
    run(capsys, *command, "whole.safetensors", code=None)
    before = listing(Path())
    with monkeypatch.context() as patch:
        patch.setattr(signals, "_noted", [])
        stopped_at(patch, 3)
        _, told = run(capsys, *command, "out.safetensors", code=130)
    assert "the same command with --resume goes on from its last look" in told
    assert told.endswith("imu: interrupted; no output was written\n")
    assert listing(Path()) == before
    (state,) = cache.folder().glob(STATE)
    assert state.stat().st_mode & 0o777 == 0o600
    with safe_open(state, framework="pt") as file:
        held = json.dumps(file.metadata()) + "".join(file.keys())
    assert not any(name in held for name in (".png", "forget.csv", "unseen/"))
    _, told = run(capsys, *command, "out.safetensors", "--resume", code=None)
    assert "note: going on from step 3 of an earlier run" in told
    assert Path("out.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert list(cache.folder().glob(STATE)) == []
    one, other = (json.loads(Path(f"{name}.record.json").read_text()) for name in ("whole", "out"))
    assert one["trajectory"] == other["trajectory"]


def test_a_state_outlives_a_disk_that_is_full(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model cannot be written, what was trained is not lost."""

    def full(*_: object) -> None:
        raise ImuError("the disk is full")

    command = ["unlearn", *COMMON, *CLASS, *BLOCK, "--batches", "12", "-o", "out.safetensors"]
    monkeypatch.setattr(resuming, "APART", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "patch", full)
        run(capsys, *command, code=2)
    assert not Path("out.safetensors").exists()
    assert len(list(cache.folder().glob(STATE))) == 1
    _, told = run(capsys, *command, "--resume", code=None)
    assert "note: going on from step" in told
    assert Path("out.safetensors").exists()
    assert list(cache.folder().glob(STATE)) == []


def test_a_state_that_cannot_be_kept_ends_no_run(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once."""
    tried: list[int] = []

    def full(*_: object, **__: object) -> None:
        tried.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(resuming, "APART", 0.0)
    monkeypatch.setattr(resuming, "save_file", full)
    _, told = run(capsys, "unlearn", *COMMON, *CLASS, *BLOCK, "--batches", "12", "-o", "out.safetensors", code=None)
    assert told.count("the run goes on, and cannot be resumed from here") == len(tried) == 1
    assert Path("out.safetensors").exists()


def test_a_state_of_other_options_is_not_gone_on_with(
    here: Path, unseen: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another seed, another β: begun anew, and it is said; a damaged state is an error that names the file."""
    command = ["unlearn", *COMMON, *SAMPLES, *BLOCK, "--reference", unseen, "--batches", "12", "-o", "out.safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr(signals, "_noted", [])
        stopped_at(patch, 1)
        run(capsys, *command, code=130)
    (state,) = cache.folder().glob(STATE)
    _, told = run(capsys, *command, "--resume", "--beta", "2", code=None)
    assert "--resume: no interrupted run with this model, these data and options; begun anew" in told
    assert state.exists()
    state.write_bytes(b"nothing of the kind")
    _, told = run(capsys, *command, "--resume", "--force", code=2)
    assert f"{state}: cannot be read" in told


INTERRUPTED = """
import sys
from imu_cli import __main__
from imu_cli.commands import resuming
resuming.APART = 0.0
__main__.main()
"""


@pytest.mark.slow
def test_sigint_in_the_middle_then_resume(here: Path, unseen: str) -> None:
    """A process that is sent SIGINT ends with 130 and leaves no file; the next one goes on to the bytes of an uninterrupted run."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = ["unlearn", *COMMON, *SAMPLES, *BLOCK, "--reference", unseen, "--batches", "1200", "-o"]
    launch = [sys.executable, "-c", INTERRUPTED, *command]
    subprocess.run([*launch, "whole.safetensors"], env=environment, check=False, capture_output=True)
    before = listing(Path())
    with subprocess.Popen([*launch, "out.safetensors"], env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not list(cache.folder().glob(STATE)):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert listing(Path()) == before
    ended = subprocess.run(
        [*launch, "out.safetensors", "--resume"], env=environment, check=False, capture_output=True, text=True
    )
    assert "going on from step" in ended.stderr
    assert Path("out.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [CLASS, SAMPLES], ids=["class", "sample"])
def test_two_processes_of_torchrun_give_what_one_gives(
    here: Path, unseen: str, capsys: pytest.CaptureFixture[str], kind: list[str]
) -> None:
    """But for rounding: the moved tensors, the trajectory, and one file, written by the first."""
    command = ["unlearn", *COMMON, *kind, *BLOCK, "--reference", unseen, "--batches", "10", "-o"]
    run(capsys, *command, "one.safetensors", code=None)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "imu_cli"]
    ended = subprocess.run(
        [*launch, *command, "two.safetensors"], check=False, capture_output=True, text=True, timeout=240
    )
    assert "wrote two.safetensors" in ended.stderr, ended.stderr
    one, two = load_file("one.safetensors"), load_file("two.safetensors")
    assert changed(load_file("model.safetensors"), two) == changed(load_file("model.safetensors"), one)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4 * float(tensor.abs().max()))
    looks = [json.loads(Path(f"{name}.record.json").read_text())["trajectory"] for name in ("one", "two")]
    assert_close_rows(looks[1], looks[0])


def test_torchrun_is_refused_for_the_head_alone(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The closed form needs one process."""
    from imu_cli.commands import processes

    monkeypatch.setattr(processes, "ranks", lambda *_: _two())
    _, told = run(capsys, "unlearn", *COMMON, *CLASS, "-o", "out.safetensors", code=2)
    assert "torchrun: the head alone needs one process; start imu without it, or name a deeper --scope" in told


def test_a_classifier_is_not_dealt_out(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--shard`` is for language models, at any scope."""
    from imu_cli.commands import processes

    monkeypatch.setattr(processes, "ranks", lambda *_: _two())
    for more in (BLOCK, []):
        _, told = run(capsys, "unlearn", *COMMON, *CLASS, *more, "--shard", "-o", "out.safetensors", code=2)
        assert "--shard: is for language models, whose blocks are dealt out" in told


def _two() -> Any:
    import contextlib

    from imu_cli.commands.processes import Ranks

    return contextlib.nullcontext(Ranks(0, 2))
