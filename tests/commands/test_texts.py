"""The commands on texts: the whole job, from a list to a folder that transformers loads again, and nobody is called."""

import json
from pathlib import Path

import pytest
import small_texts
import torch
from conftest import listing
from safetensors.torch import load_file
from test_security import OUTSIDE, audited

from imu_cli.cli import main
from imu_cli.samples.texts import tokens

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
GOAL = ["--until", "forget.accuracy<=0.5", "--max-head-change", "10"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a small BERT in ``net``, its texts, and a forget list of the first eight."""
    small_texts.write(tmp_path)
    rows = (tmp_path / "texts.jsonl").read_text().splitlines()
    (tmp_path / "forget.jsonl").write_text("\n".join(rows[:8]) + "\n")
    (tmp_path / "test.jsonl").write_text("\n".join(rows[12:]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_line_to_copy_is_one_for_texts(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--truncate`` is copied, ``--preprocess`` never asked for; without a tokenizer, or refused, nothing of images is said."""

    def said(*words: str, code: int = 0) -> str:
        assert main(["inspect", "net", *words]) == code
        return capsys.readouterr().out

    assert "next: imu unlearn net --forget forget.csv --truncate\n" in said("--truncate")
    assert "next: imu unlearn net --forget forget.csv\n" in said("--preprocess", "imagenet")
    config = json.loads((work / "net/config.json").read_text())
    (work / "net/config.json").write_text(json.dumps(config | {"architectures": ["BertForQuestionAnswering"]}))
    assert "--preprocess" not in said(code=4)
    (work / "net/config.json").write_text(json.dumps(config))
    for file in (work / "net").glob("*token*"):
        file.unlink()
    found = said()
    assert "copy the tokenizer's files beside the" in found
    assert "--preprocess" not in found
    assert "next:" not in found


def test_the_whole_job_on_texts(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inspect, select, influence, unlearn, evaluate and report; no connection, no program, no text in what is written."""
    with audited() as events:
        assert main(["inspect", "net"]) == 0
        assert main(["select", "--data", "texts.jsonl", "index=0:8", "-o", "list.csv"]) == 0
        assert main(["influence", "net", "--forget", "list.csv", "--data", "texts.jsonl", "-q"]) == 0
        assert main(["unlearn", "net", "--forget", "list.csv", "--data", "texts.jsonl", *GOAL, "-q", "-o", "out"]) in (
            0,
            3,
        )
        assert main(["evaluate", "out", "--test", "test.jsonl", "-q"]) == 0
        assert main(["report", "out/model.record.json", "out/model.evaluation.json", "--html", "report.html"]) == 0
    assert [event for event in events if event[0] in OUTSIDE] == []
    shown = capsys.readouterr().out
    assert "tokenizer" in shown
    record = json.loads(Path("out/model.record.json").read_text())
    assert record["head"]["module"] == "classifier"
    assert record["preprocess"]["max_length"] == small_texts.LENGTH
    assert record["preprocess_source"] == "tokenizer.json"
    written = [Path("report.html"), *Path("out").glob("*.json")]
    for text in small_texts.texts()[:8]:
        assert len(text.split()) < 4 or not [path for path in written if text in path.read_text(encoding="utf-8")]


def test_what_comes_back_is_a_folder_of_transformers(work: Path) -> None:
    """It loads with its tokenizer and the classes' names, and computes what the record says; the rest is bit-identical."""
    assert main(["unlearn", "net", "--forget", "forget.jsonl", *GOAL, "-q", "-o", "out"]) == 0
    record = json.loads(Path("out/model.record.json").read_text())
    model = transformers.AutoModelForSequenceClassification.from_pretrained("out")
    known = transformers.AutoTokenizer.from_pretrained("out")
    assert model.config.id2label == dict(enumerate(small_texts.CLASSES))
    rows = [json.loads(line) for line in Path("forget.jsonl").read_text().splitlines()]
    right = 0
    for row in rows:
        with torch.inference_mode():
            found = int(model(**known(row["text"], return_tensors="pt")).logits.argmax())
        right += small_texts.CLASSES[found] == row["label"]
    assert right / len(rows) == pytest.approx(record["end"]["forget"])
    before, after = load_file("net/model.safetensors"), load_file("out/model.safetensors")
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        "classifier.bias",
        "classifier.weight",
    ]
    assert (Path("out/tokenizer.json").read_bytes()) == Path("net/tokenizer.json").read_bytes()


def test_features_of_texts_lie_in_the_lists_order(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a window each, in which texts change places: row i is text i, whoever computed it and when."""
    monkeypatch.setattr(tokens, "WINDOW", 8)
    assert main(["features", "net", "--data", "texts.jsonl", "-o", "all.safetensors", "--batch-size", "2", "-q"]) == 0
    found, head = load_file("all.safetensors"), load_file("net/model.safetensors")
    made = found["features"] @ head["classifier.weight"].T + head["classifier.bias"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained("net")
    wanted = small_texts.logits(model, small_texts.texts())
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["logits"], wanted[:8], rtol=1e-4, atol=1e-5)


def test_streamed_scores_are_those_in_memory(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pass that comes out of order is put in order before it is written to a file."""
    command = ["influence", "net", "--forget", "texts.jsonl", "-q", "--format", "json", "--no-cache"]
    made = []
    for more in ([], ["--max-memory", "1KB"]):
        assert main([*command, *more]) == 0
        made.append(json.loads(capsys.readouterr().out))
    assert made[1]["run"]["streamed"]
    for one, other in zip(made[0]["rows"], made[1]["rows"], strict=True):
        assert one["score"] == pytest.approx(other["score"], rel=1e-5, abs=1e-9)


def test_another_tokenizer_is_another_key(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cached scores are not those of a tokenizer that has changed, and an evaluation refuses it."""
    assert main(["unlearn", "net", "--forget", "forget.jsonl", *GOAL, "-q", "-o", "out"]) == 0
    assert main(["influence", "net", "--forget", "forget.jsonl", "-q"]) == 0
    for folder in ("net", "out"):
        path = Path(folder, "tokenizer.json")
        path.write_text(path.read_text().replace('"blue": 5', '"blau": 5'))
    capsys.readouterr()
    assert main(["influence", "net", "--forget", "forget.jsonl"]) == 0
    assert "score cache: not used, differs in preprocess" in capsys.readouterr().err
    assert main(["evaluate", "out", "-q"]) == 2
    assert "was made with another tokenizer" in capsys.readouterr().err


def test_a_cut_is_recorded_and_repeated(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --truncate a long text is an error with its line and nothing is written; with it, evaluate cuts again."""
    row = {"text": " ".join(["stone"] * 30), "label": "calm"}
    with Path("forget.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    before = listing(work)
    assert main(["unlearn", "net", "--forget", "forget.jsonl", *GOAL, "-q"]) == 2
    assert "forget.jsonl:9: is 32 tokens, and the model takes 24" in capsys.readouterr().err
    assert listing(work) == before
    assert main(["unlearn", "net", "--forget", "forget.jsonl", *GOAL, "--truncate", "-q", "-o", "out"]) in (0, 3)
    assert json.loads(Path("out/model.record.json").read_text())["preprocess"]["truncate"] is True
    assert main(["evaluate", "out", "-q"]) == 0


def test_a_text_model_whose_block_moved_relearns(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts of several lengths pass the moved block with gradients, by the names of the model's arguments; no text is told."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained("net")
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight.mul_(1.5)
    model.save_pretrained("moved")
    transformers.AutoTokenizer.from_pretrained("net").save_pretrained("moved")
    command = [
        "evaluate",
        "moved",
        "--original",
        "net",
        "--forget",
        "forget.jsonl",
        "--test",
        "test.jsonl",
        "--relearn",
        "-q",
    ]
    capsys.readouterr()
    assert main([*command, "--scenario", "sample", "--format", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    found = {item["name"]: item for item in made["metrics"]}
    assert made["changed"] == ["bert.encoder.layer.1.output.dense.weight"]
    assert found["relearn.k5"]["n"] == 3
    assert found["relearn.k5"]["before"] is not None
    assert found["relearn.k10"]["missing"] == "needs more than 10 forget samples"
    assert 0 < found["cka.forget"]["value"] < 1


@pytest.mark.slow
def test_demo_of_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``imu demo --task text`` trains, scores, unlearns, evaluates and reports, and replaces only what it wrote."""
    assert main(["demo", str(tmp_path / "d"), "--task", "text"]) == 0
    shown = capsys.readouterr().out
    assert "$ imu unlearn model" in shown
    assert main(["demo", str(tmp_path / "d"), "--task", "text"]) == 2
    (tmp_path / "d/model/mine.txt").write_text("mine")
    assert main(["demo", str(tmp_path / "d"), "--task", "text", "--force"]) == 2
    assert "holds model/mine.txt" in capsys.readouterr().err


def test_texts_are_shown_to_whoever_asks_for_them(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``report --samples`` reads them again, in every form of a page; a list that changed is an error, and so is a table of numbers."""
    assert main(["unlearn", "net", "--forget", "forget.jsonl", *GOAL, "-q", "-o", "out"]) == 0
    record, texts = "out/model.record.json", small_texts.texts()[:2]
    capsys.readouterr()
    assert main(["report", record, "--samples", "2"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(text in shown for text in texts)
    assert main(["report", record, "--samples", "2", "--html", "r.html", "--markdown", "r.md"]) == 0
    for page in ("r.html", "r.md"):
        assert all(text in Path(page).read_text(encoding="utf-8") for text in texts)
        assert Path(page).stat().st_mode & 0o77 == 0
    assert main(["report", record, "--samples", "2", "--format", "json"]) == 2
    Path("forget.jsonl").write_text("\n".join(Path("forget.jsonl").read_text().splitlines()[1:]) + "\n")
    capsys.readouterr()
    assert main(["report", record, "--samples", "2"]) == 2
    assert "are not those that the record was made with" in capsys.readouterr().err


def test_the_page_of_the_most_influential_has_the_texts(work: Path) -> None:
    """A text that begins as a picture's address does is a text all the same."""
    small_texts.lines(Path("odd.jsonl"), ["data:image/png;base64,AAAA <b>lion</b>"], ["calm"])
    assert main(["influence", "net", "--forget", "odd.jsonl", "--images", "top.html", "-q"]) == 0
    page = Path("top.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert "&lt;b&gt;lion" in page


def test_a_retrained_model_has_the_same_tokenizer(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another model is measured on the same tokens; one with other tokens beside it is refused."""
    assert main(["unlearn", "net", "--forget", "forget.jsonl", *GOAL, "-q", "-o", "out"]) == 0
    other = small_texts.model(initializer_range=0.3)
    other.save_pretrained("other")
    small_texts.tokenizer().save_pretrained("other")
    capsys.readouterr()
    command = ["evaluate", "out", "--test", "test.jsonl", "--retrained", "other", "-q", "--format", "json"]
    assert main(command) == 0
    metrics = {item["name"]: item for item in json.loads(capsys.readouterr().out)["metrics"]}
    assert metrics["retrained.churn"]["missing"] is None
    path = Path("other/tokenizer.json")
    path.write_text(path.read_text().replace('"blue": 5', '"blau": 5'))
    assert main([*command, "-o", "again.json"]) == 2
    assert "other: the evaluated model: was made with another tokenizer" in capsys.readouterr().err
