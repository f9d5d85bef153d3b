"""``imu evaluate`` of embedding models: what is measured, written, drawn and refused, and that nobody is named unasked."""

import importlib.util
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import crowd
import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score, roc_auc_score

from imu_cli.cli import main
from imu_cli.commands import demo_places
from imu_cli.records import json_files

PLAIN = ["evaluate", "model.safetensors", "--config", "imu.yaml", "--test", "market1501:people"]
EVALUATE = [*PLAIN, "--forget", "forget.csv"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The people, once."""
    return crowd.make(tmp_path_factory.mktemp("crowd"))


@pytest.fixture
def people(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """A copy of them to work in, the current folder."""
    monkeypatch.chdir(crowd.copied(made, tmp_path))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> tuple[dict, dict[str, dict]]:
    """The evaluation that is written, and its metrics by name."""
    assert main([*EVALUATE, "-q", *options]) == code, capsys.readouterr().err
    found = json.loads(Path("model.evaluation.json").read_text(encoding="utf-8"))
    return found, {item["name"]: item for item in found["metrics"]}


def told(capsys: pytest.CaptureFixture[str], command: Sequence[str], code: int = 2) -> str:
    """The message of a command that ends with an error."""
    assert main(list(command)) == code
    return capsys.readouterr().err


def seen(files: Sequence[Path], model: str) -> np.ndarray:
    """Directions (n, 6) of the images, without imu."""
    pixels = np.stack([np.asarray(Image.open(file), np.float64) for file in files]) / 255
    vectors = (pixels.reshape(len(files), 64) - 0.5) / 0.25 @ load_file(model)["1.weight"].double().numpy().T
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def person_camera(file: Path) -> tuple[str, str]:
    match = re.match(r"(-?\d+)_c(\d)", file.name)
    assert match
    return match[1], match[2]


def slow_map(queries: Sequence[Path], gallery: Sequence[Path], model: str) -> float:
    """MAP by scikit-learn, query by query."""
    ours, theirs = seen(queries, model), seen(gallery, model)
    found = []
    for row, file in enumerate(queries):
        person, camera = person_camera(file)
        kept = [
            at
            for at, other in enumerate(gallery)
            if person_camera(other)[0] != "-1" and person_camera(other) != (person, camera)
        ]
        right = [person_camera(gallery[at])[0] == person for at in kept]
        if any(right):
            found.append(average_precision_score(right, theirs[kept] @ ours[row]))
    return float(np.mean(found))


def similar_pairs(files: Sequence[Path], model: str) -> list[float]:
    """Similarity of every two images of one person on two cameras."""
    directions, told = seen(files, model), [person_camera(file) for file in files]
    return [
        float(directions[a] @ directions[b])
        for a in range(len(files))
        for b in range(a + 1, len(files))
        if told[a][0] == told[b][0] not in ("-1", "0000") and told[a][1] != told[b][1]
    ]


def test_the_numbers_are_those_of_slow_and_obvious_code(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MAP of forgotten, kept and unseen people, and the AUC, before and after, as scikit-learn has them from the files."""
    found, metrics = run(capsys, "--original", "other.safetensors")
    train = sorted(Path("people/bounding_box_train").iterdir())
    test = sorted(Path("people/bounding_box_test").iterdir())
    query = sorted(Path("people/query").iterdir())
    forget = [file for file in train if person_camera(file)[0] in crowd.FORGOTTEN]
    kept = [file for file in train if file not in forget]
    for model, key in (("model.safetensors", "value"), ("other.safetensors", "before")):
        for name, queries, gallery in (("forget", forget, train), ("retain", kept, train), ("test", query, test)):
            assert metrics[f"{name}.map"][key] == pytest.approx(slow_map(queries, gallery, model), abs=1e-6), name
        ours, theirs = similar_pairs(forget, model), similar_pairs([*test, *query], model)
        expected = roc_auc_score([1] * len(ours) + [0] * len(theirs), ours + theirs)
        assert metrics["people.auc"][key] == pytest.approx(expected, abs=1e-6)
        assert metrics["forget.similarity"][key] == pytest.approx(np.mean(ours), abs=1e-6)
    assert (metrics["forget.map"]["n"], metrics["test.map"]["n"]) == (18, 6)
    drop = metrics["test.map"]["before"] - metrics["test.map"]["value"]
    assert metrics["test.map_drop"]["value"] == pytest.approx(drop)
    assert found["changed"] == ["1.weight"]
    assert metrics["drift.test"]["value"] > 0
    assert all(item["interval"] or item["missing"] or item["census"] for item in metrics.values())


def test_nobody_is_named_unless_asked_for(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No id stands in the file, in no report and not on the terminal, by list or by selector; --by id names them."""
    names = re.compile("|".join(rf"\b{name}\b|{name}_c" for name in crowd.FORGOTTEN))
    for forget in (["--forget", "forget.csv"], ["--forget", f"id={','.join(crowd.FORGOTTEN)}"]):
        assert main([*PLAIN, *forget, "--original", "other.safetensors"]) == 0
        shown = capsys.readouterr()
        assert main(["report", "model.evaluation.json", "--html", "a.html", "--markdown", "a.md"]) == 0
        for text in (
            shown.out,
            shown.err,
            *(Path(name).read_text() for name in ("model.evaluation.json", "a.html", "a.md")),
        ):
            assert not names.search(text)
    found, _ = run(capsys, "--by", "id", "--original", "other.safetensors")
    assert [row["name"] for row in found["per_person"]] == list(crowd.FORGOTTEN)
    assert all(row["n"] == 6 and row["after"] is not None and row["auc"] is not None for row in found["per_person"])


def test_the_file_is_what_its_schema_says_and_is_read_again(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON Schema accepts it, imu report renders it in every form, and an edited one is refused."""
    run(
        capsys,
        "--original",
        "other.safetensors",
        "--retrained",
        "other.safetensors",
        "--reference-model",
        "other.safetensors",
    )
    plain = json.loads(Path("model.evaluation.json").read_text())
    jsonschema.Draft202012Validator(json_files.schema()).validate(plain)
    capsys.readouterr()
    for form in ("table", "json", "csv", "markdown"):
        assert main(["report", "model.evaluation.json", "--format", form]) == 0
        assert "people.auc" in capsys.readouterr().out
    assert main(["report", "model.evaluation.json", "model.evaluation.json"]) == 0
    assert "Side by side" in capsys.readouterr().out
    assert main(["report", "model.evaluation.json", "--html", "-"]) == 0
    page = capsys.readouterr().out
    assert "Similarity of two images of one person" in page
    assert "<script" not in page
    Path("model.evaluation.json").write_text(json.dumps({**plain, "per_person": [{"name": 3}]}))
    assert "per_person" in told(capsys, ["report", "model.evaluation.json"])


def test_requirements_are_judged(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gates on people's metrics pass and fail, JUnit has the verdicts; gates of classifiers are refused there too."""
    run(
        capsys,
        "--original",
        "model.safetensors",
        "--require",
        "test.map_drop<=0.01",
        "--require-on",
        "value",
        "--junit",
        "j.xml",
    )
    assert 'failures="0"' in Path("j.xml").read_text()
    run(capsys, "--require", "forget.map<=0.001", "--junit", "j.xml", code=3)
    assert "<failure" in Path("j.xml").read_text()
    error = told(capsys, [*EVALUATE, "-q", "--require", "forget.accuracy<=0.1", "--junit", "j.xml"])
    assert "forget.accuracy is no metric of an embedding model" in error
    assert "refused" in Path("j.xml").read_text()


def test_pictures_of_people_only_when_asked_for(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--samples writes a page that its owner alone may read: queries of each person in turn, ten images before and after."""
    run(capsys, "--original", "other.safetensors")
    assert not list(people.glob("*.html"))
    run(capsys, "--original", "other.safetensors", "--samples", "4")
    page = Path("model.samples.html")
    assert os.stat(page).st_mode & 0o777 == 0o600
    text = page.read_text()
    assert text.count("<h2>Query") == 4
    assert text.count("<figure") == 4 * 2 * 10
    assert "the person" in text
    page.write_text("mine")
    assert "--samples" in told(capsys, [*EVALUATE, "-q", "--samples", "1"])


def test_the_summary_tells_an_untouched_model(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that is its own original is not forgotten, nor known to be, and it is said that nothing differs."""
    found, metrics = run(capsys, "--original", "model.safetensors")
    assert metrics["people.auc_drop"]["value"] == 0
    assert "Nothing differs from the original: this model was not unlearned." in found["summary"]
    assert found["summary"].startswith(("NOT ", "DAMAGE"))


def test_images_of_the_forgotten_that_stay_are_told(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list that leaves out some images of a person says so: they are remembered as long as those stay."""
    lines = Path("forget.csv").read_text().splitlines()
    Path("forget.csv").write_text("\n".join(lines[:-2]) + "\n")
    found, _ = run(capsys)
    assert any("2 images of forgotten people are not in the forget list" in note for note in found["notes"])
    assert not found["forget"]["whole"]
    assert "2 images of these people stay" in found["summary"]


def test_people_of_the_training_data_are_not_unseen(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ids that stand in both are left out of --test with their number; a test set of nobody else is an error, as are forget samples in it."""
    for shot in range(2):
        Image.new("L", (8, 8), 40 + shot).save(f"people/bounding_box_test/0005_c3s1_{shot:06d}_00.jpg", "PNG")
    found, _ = run(capsys)
    assert any("2 images of 1 people" in note for note in found["notes"])
    same = [*EVALUATE, "--test", "market1501:people#train"]
    assert "held-out data must not hold forget samples" in told(capsys, same)
    for file in Path("people/query").iterdir():
        file.unlink()
    for file in Path("people/bounding_box_test").iterdir():
        if not file.name.startswith("0005"):
            file.unlink()
    assert "nobody is left of it whom the training data do not hold too" in told(capsys, EVALUATE)


def test_other_commands_and_options(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Features of an embedding model are its embeddings; options and models of the other kind are refused with what to do."""
    go = ["--config", "imu.yaml", "-q"]
    assert (
        main(["features", "model.safetensors", *go, "--data", "market1501:people#test", "-o", "all.safetensors"]) == 0
    )
    made = load_file("all.safetensors")["features"]
    files = [Path("people", name) for name in sorted(os.listdir("people/bounding_box_test"))]
    assert made.shape == (38, 6)
    files = sorted(Path("people/query").iterdir()) + sorted(Path("people/bounding_box_test").iterdir())
    directions = torch.nn.functional.normalize(made.double(), dim=1).numpy()
    assert np.abs(directions - seen(files, "model.safetensors")).max() < 1e-5
    assert "--scenario: is for classifiers" in told(capsys, [*EVALUATE, "-q", "--scenario", "class"])
    assert "--head fc: an embedding model has none" in told(capsys, [*EVALUATE, "-q", "--head", "fc"])
    wrong = told(capsys, [*EVALUATE, "-q", "--task", "classification", "--embedding", "1"])
    assert "--embedding 1: is for --task embedding" in wrong
    assert "has no id '9'" in told(capsys, [*PLAIN, "-q", "--forget", "id=9"])
    assert "did you mean '0001'?" in told(capsys, [*PLAIN, "-q", "--forget", "id=1"])
    Path("embed.py").write_text(crowd.FACTORY.replace("bias=False)", "bias=False), nn.Tanh()"))
    guessed = told(capsys, [*EVALUATE, "-q", "--task", "auto"], 4)
    assert "if the model has no classes and returns embeddings, add --task embedding" in guessed
    save_file({"1.weight": torch.zeros(6, 64)}, "zero.safetensors")
    assert "0 for every image that was tried" in told(capsys, ["evaluate", "zero.safetensors", *EVALUATE[2:], "-q"])


def test_influence_is_what_ties_a_person_together(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each image's mean similarity to its person's others is the obvious one, and what exceeds unseen people by rank adds up."""
    command = ["influence", *PLAIN[1:], "--forget", "forget.csv", "-q"]
    assert main([*command, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    forget = [Path("people", row["path"]) for row in found["rows"]]
    directions, whom = seen(forget, "model.safetensors"), [person_camera(file) for file in forget]
    for row in range(len(forget)):
        others = [at for at in range(len(forget)) if whom[at][0] == whom[row][0] and whom[at][1] != whom[row][1]]
        assert found["rows"][row]["pairs"] == len(others)
        expected = np.mean([directions[row] @ directions[at] for at in others])
        assert found["rows"][row]["similarity"] == pytest.approx(expected, abs=1e-6)
    # Each pair stands in the rows of both of its images.
    total = sum(row["excess"] * row["pairs"] for row in found["rows"]) / sum(row["pairs"] for row in found["rows"])
    assert found["excess"] == pytest.approx(total)
    assert found["excess"] >= 0
    assert main(command) == 0
    assert "tie their person together most" in capsys.readouterr().out
    assert main([*command, "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(forget)
    assert "--kernel: is for classifiers" in told(capsys, [*command, "--kernel"])
    assert "--test: not given" in told(capsys, ["influence", *PLAIN[1:4], "--forget", "forget.csv", "-q"])


def test_inspect_tells_the_embedding(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Imu inspect says how many numbers, and proposes the flags that were given."""
    given = ["--config", "imu.yaml"]
    assert main(["inspect", "model.safetensors", *given, "--embedding", "1"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "6 numbers, 1; on 4 images of noise" in out
    assert "--embedding 1" in out.partition("next:")[2]
    assert main(["inspect", "model.safetensors", *given, "--embedding", "2"]) == 0
    assert "NOT KNOWN: --embedding 2: the model has no such module" in " ".join(capsys.readouterr().out.split())


# The demo


def test_places_are_seen_again(one_thread: None) -> None:
    """The demo's images come from the photographs by the seed: as many of every place and camera, the two cameras unlike each other."""
    found = demo_places.sightings(0)
    assert len(found) == (demo_places.TRAINED + demo_places.UNSEEN) * len(demo_places.CASTS) * demo_places.SHOTS
    assert all(one.pixels.shape == (32, 32, 3) for one in found)
    again = demo_places.sightings(0)
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(found, again, strict=True))
    red = [np.mean([one.pixels[..., 0].mean() for one in found if one.camera == camera]) for camera in (1, 2)]
    assert red[0] > red[1] + 10


@pytest.mark.slow
def test_the_demo_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``imu demo --task embedding`` shows a model that knows its places, and unlearns twelve of them."""
    assert main(["demo", str(tmp_path / "d"), "--task", "embedding"]) == 0
    assert "As far as these people show" in capsys.readouterr().out
    found = {
        item["name"]: item for item in json.loads((tmp_path / "d/unlearned.evaluation.json").read_text())["metrics"]
    }
    assert found["people.auc"]["before"] > 0.85
    assert found["people.auc"]["interval"]["high"] < found["people.auc"]["before"]
    assert main(["demo", str(tmp_path / "d"), "--task", "embedding"]) == 2
    assert main(["demo", str(tmp_path / "d"), "--task", "embedding", "--force"]) == 0


# The real weights

FIGURES = {
    "before": {"people.auc": 0.920, "retain_people.auc": 0.736, "forget.map": 0.9996, "retain.map": 0.9965, "test.map": 0.603,
               "forget.similarity": 0.906, "retain.similarity": 0.865, "test.similarity": 0.812},
    "value": {"people.auc": 0.744, "retain_people.auc": 0.601, "forget.map": 0.9637, "retain.map": 0.9939, "test.map": 0.675,
              "forget.similarity": 0.886, "retain.similarity": 0.865, "test.similarity": 0.837, "reference.people.auc": 0.645,
              "reference.map.forget": 0.8658},
}  # fmt: skip
"""The table of ../shared/reid/README.md: a model that knows 16 people, and one retrained without eight of them."""


@pytest.fixture
def osnet() -> Path:
    """OSNet's file, of an unpacked torchreid 0.2.5 that TORCHREID names or that is installed; it is not ours to carry."""
    named = os.environ.get("TORCHREID")
    spec = importlib.util.find_spec("torchreid") if named is None else None
    roots = (
        [Path(named)] if named else [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    )
    for root in roots:
        for path in (root / "models/osnet.py", root / "reid/models/osnet.py", root / "torchreid/reid/models/osnet.py"):
            if path.is_file():
                return path
    pytest.skip("TORCHREID names no unpacked torchreid (pip download --no-deps --no-binary=:all: torchreid==0.2.5)")


@pytest.mark.slow
@pytest.mark.shared
def test_the_figures_of_the_page_come_out(
    shared: Path, osnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every number of the table, to its last digit, from the real weights and crops."""
    monkeypatch.chdir(tmp_path)
    reid = shared / "reid"
    Path("steps.yaml").write_text(
        "{size: [256, 128], interpolation: bilinear, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], mode: RGB}"
    )
    eight = "id=0003,0007,0013,0019,0023,0027,0035,0041"
    built = ["--arch", f"{osnet}:osnet_x0_25", "--arch-arg", "num_classes=1", "--arch-arg", "pretrained=false"]
    given = ["--preprocess", "steps.yaml", "--task", "embedding", "--data", f"mars:{reid}/mini_mars"]
    others = [
        "--original",
        f"{reid}/osnet_x0_25_mars16.safetensors",
        "--reference-model",
        f"{reid}/osnet_x0_25_msmt17.safetensors",
    ]
    command = ["evaluate", f"{reid}/osnet_x0_25_mars8.safetensors", *built, *given, *others, "--forget", eight, "-q"]
    assert main([*command, "--test", f"mars:{reid}/mini_mars", "-o", "out.json"]) == 0
    found = {item["name"]: item for item in json.loads(Path("out.json").read_text())["metrics"]}
    for key, figures in FIGURES.items():
        for name, figure in figures.items():
            digits = 4 if figure > 0.95 or name == "reference.map.forget" else 3
            assert round(found[name][key], digits) == figure, (key, name)


@pytest.mark.slow
@pytest.mark.shared
def test_eight_people_are_forgotten(
    shared: Path, osnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are as alike as for models that never saw them, and nobody is found worse for it (benchmarks/quality_people.py)."""
    monkeypatch.chdir(tmp_path)
    reid = shared / "reid"
    Path("steps.yaml").write_text(
        "{size: [256, 128], interpolation: bilinear, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], mode: RGB}"
    )
    given = ["--arch", f"{osnet}:osnet_x0_25", "--arch-arg", "num_classes=1", "--arch-arg", "pretrained=false", "--task", "embedding",
             "--preprocess", "steps.yaml", "--data", f"mars:{reid}/mini_mars", "--test", f"mars:{reid}/mini_mars",
             "--forget", "id=0003,0007,0013,0019,0023,0027,0035,0041", "-q"]  # fmt: skip
    before = ["--reference-model", f"{reid}/osnet_x0_25_msmt17.safetensors"]
    assert main(["unlearn", f"{reid}/osnet_x0_25_mars16.safetensors", *given, *before, "-o", "out.safetensors"]) == 0
    gates = ["people.auc<=0.8", "forget.map>=0.95", "retain.map_drop<=0.005", "test.map_drop<=0.01"]
    required = [word for gate in gates for word in ("--require", gate)]
    assert main(["evaluate", "out.safetensors", *given, *required, "--require-on", "value"]) == 0
