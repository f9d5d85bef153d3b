"""``imu unlearn`` of embedding models: what is written, told and refused, and that nobody is named."""

import json
from collections.abc import Sequence
from pathlib import Path

import crowd
import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from imu_cli.cli import main
from imu_cli.records import json_files
from imu_cli.records.record import Record

UNLEARN = ["unlearn", "model.safetensors", "--config", "imu.yaml", "--forget", "forget.csv", "-o", "out.safetensors"]
UNSEEN = ["--reference", "market1501:people"]
FAR = ["--max-drop", "1", "--learning-rate", "0.03"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """People, and a model that draws the images of those who are to be forgotten together."""
    folder = crowd.make(tmp_path_factory.mktemp("crowd"))
    means = []
    for person in crowd.FORGOTTEN:
        files = sorted((folder / "people/bounding_box_train").glob(f"{person}_*.jpg"))
        pixels = np.stack([np.asarray(Image.open(file), np.float32).reshape(64) for file in files])
        means.append((pixels.mean(0) / 255 - 0.5) / 0.25)
    drawn = torch.from_numpy(np.stack(means)) * 0.2
    noise = torch.randn(3, 64, generator=torch.Generator().manual_seed(3)) * 0.2
    save_file({"1.weight": torch.cat([drawn, noise])}, folder / "model.safetensors")
    return folder


@pytest.fixture
def people(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """A copy of them to work in, the current folder."""
    monkeypatch.chdir(crowd.copied(made, tmp_path))
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], command: Sequence[str], code: int = 2) -> str:
    """What a command says on standard error."""
    found = main(list(command))
    said = capsys.readouterr().err
    assert found == code, said
    return said


def test_people_come_to_look_unseen(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their pairs are no more alike than unseen people's; one tensor differs, the record is whole and names nobody."""
    assert main([*UNLEARN, *UNSEEN, *FAR, "--quiet"]) == 0, capsys.readouterr().err
    text = Path("out.record.json").read_text(encoding="utf-8")
    record = json_files.read(Path("out.record.json"))
    assert isinstance(record, Record)
    jsonschema.validate(json.loads(text), Record.model_json_schema(by_alias=True))
    assert record.start.auc is not None
    assert record.end.auc is not None
    assert record.target.auc == pytest.approx(0.53)
    assert record.start.auc > 0.6
    assert record.end.auc <= 0.53
    assert (record.reached, record.reason, record.method, record.scenario) == (True, "target", "demoted", "person")
    assert record.changed == ["1.weight"]
    assert not torch.equal(load_file("out.safetensors")["1.weight"], load_file("model.safetensors")["1.weight"])
    assert record.scope is not None
    assert record.scope.given == "last-block"
    assert record.embedding is not None
    assert record.embedding.size == 6
    assert record.classes is None
    assert not any(name in text for name in crowd.FORGOTTEN)
    shown = main(["report", "out.record.json", "--html", "out.html"])
    assert shown == 0
    assert "membership AUC" in capsys.readouterr().out


def test_evaluate_goes_on_from_the_record(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The original, the forget list and the reference model come from it; people who chose are left out of --test."""
    command = [
        *UNLEARN,
        "--test",
        "market1501:people",
        "--reference-model",
        "other.safetensors",
        "--max-auc",
        "0.6",
        *FAR,
    ]
    assert main([*command, "-q"]) in (0, 3)
    record = json_files.read(Path("out.record.json"))
    assert isinstance(record, Record)
    assert record.target.auc == 0.6
    assert record.held_out is not None
    assert record.held_out.option == "test"
    evaluate = ["evaluate", "out.safetensors", "--config", "imu.yaml", "--test", "market1501:people"]
    said = told(capsys, evaluate, 0)
    assert "show people whom the unlearning chose by, and are left out" in said
    found = json.loads(Path("out.evaluation.json").read_text())
    assert found["record"]["path"] == "out.record.json"
    assert found["original"]["path"] == "model.safetensors"
    assert found["reference_model"]["path"] == "other.safetensors"
    assert found["changed"] == ["1.weight"]
    metrics = {item["name"]: item for item in found["metrics"]}
    assert metrics["people.auc"]["before"] is not None
    assert metrics["test.map"]["n"] < 36


def test_a_record_of_named_people_needs_them_again(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Selectors that name people are left out of it, and evaluate says so."""
    named = ["id=0001,0002,0003" if word == "forget.csv" else word for word in UNLEARN]
    assert main([*named, *UNSEEN, *FAR, "-q"]) in (0, 3)
    text = Path("out.record.json").read_text()
    assert "0001" not in text
    evaluate = ["evaluate", "out.safetensors", "--config", "imu.yaml", "--test", "market1501:people"]
    assert "the record leaves out whom" in told(capsys, evaluate)
    told(capsys, [*evaluate, "--forget", "id=0001,0002,0003"], 0)


def test_the_same_seed_gives_the_same_file(people: Path) -> None:
    """And another seed another one."""
    weights = []
    for seed in ("0", "0", "1"):
        assert main([*UNLEARN, *UNSEEN, *FAR, "--force", "-q", "--seed", seed, "--batches", "10"]) in (0, 3)
        weights.append(load_file("out.safetensors")["1.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_second_run_is_told_of_the_first(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The record links to that of the run before; the file it began with stays as it was."""
    assert main([*UNLEARN, *UNSEEN, *FAR, "-q"]) == 0
    first = Path("out.safetensors").read_bytes()
    again = ["unlearn", "out.safetensors", "--config", "imu.yaml", "--forget", "id=0004", "-o", "twice.safetensors"]
    said = told(capsys, [*again, *UNSEEN, *FAR, "--max-auc", "0.5"], 0)
    assert "was already unlearned (18 samples)" in said
    record = json_files.read(Path("twice.record.json"))
    assert isinstance(record, Record)
    assert record.previous is not None
    assert record.previous.n == 18
    assert Path("out.safetensors").read_bytes() == first


def test_an_anchor_needs_no_names(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All unseen people say when it is enough then; people who are to be forgotten hold nobody."""
    images = [
        f"people/bounding_box_train/{name}"
        for name in sorted(p.name for p in Path("people/bounding_box_train").glob("0004*"))
    ]
    Path("anchor.csv").write_text("\n".join(["file_name", *images]) + "\n")
    main([*UNLEARN, *UNSEEN, *FAR, "--anchor", "anchor.csv", "--batches", "5", "-q"])
    record = json_files.read(Path("out.record.json"))
    assert isinstance(record, Record)
    assert record.scope is not None
    assert record.scope.anchor == 6
    assert record.scope.unseen > 30
    mine = ["people/bounding_box_train/0001_c1s1_000000_00.jpg"]
    Path("anchor.csv").write_text("\n".join(["file_name", *mine]) + "\n")
    assert "stands in --anchor" in told(capsys, [*UNLEARN, *UNSEEN, "--anchor", "anchor.csv", "--force"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "--test: not given"),
        ([*UNSEEN, "--scope", "head"], "--scope head: an embedding model has none"),
        ([*UNSEEN, "--method", "matched"], "--method matched: is for classifiers"),
        ([*UNSEEN, "--until", "forget.accuracy<=0.5"], "--until: is for classifiers"),
        ([*UNSEEN, "--rows", "all"], "--rows: is for classifiers"),
        ([*UNSEEN, "--scope", "nowhere"], "matches no module"),
        ([*UNSEEN, "--reference-model", "none.safetensors"], "none.safetensors"),
        ([*UNSEEN, "--max-auc", "0.99"], "nothing to forget here"),
    ],
)
def test_what_cannot_be_is_refused(
    people: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    """Before anything is written."""
    before = sorted(path.name for path in people.iterdir())
    assert says in told(capsys, [*UNLEARN, *more])
    assert sorted(path.name for path in people.iterdir() if path.name != "__pycache__") == [
        name for name in before if name != "__pycache__"
    ]


def test_people_of_one_camera_only_are_refused(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing says how alike they are beside others; a list without cameras counts any two images."""
    lines = Path("forget.csv").read_text().splitlines()
    one = [lines[0], *(line for line in lines[1:] if "_c1" in line)]
    Path("forget.csv").write_text("\n".join(one) + "\n")
    assert "nobody has two images on two cameras" in told(capsys, [*UNLEARN, *UNSEEN])
    assert not Path("out.safetensors").exists()
