"""The commands on token classifiers: a word is a sample, a sentence runs once, and what is wrong with a list is said with its line."""

import json
import re
from pathlib import Path

import numpy as np
import oracles
import pytest
import small_texts
import small_words
import torch
from safetensors.torch import load_file
from small_words import opened
from test_security import OUTSIDE, audited

from imu_cli.cli import main
from imu_cli.commands import held_out, opening, reuse, scope
from imu_cli.config.commands import InfluenceConfig
from imu_cli.events import Silent
from imu_cli.features.cut import KeptWords
from imu_cli.models import scopes
from imu_cli.models.batches import WORDS, Batch, count, first, halves
from imu_cli.samples import vectors
from imu_cli.samples.manifest import open_source
from imu_cli.samples.texts.sentences import clusters, sentences

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
GOAL = ["--until", "forget.accuracy<=0.5", "--max-head-change", "10"]


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert", "GPT2", "Llama"])
def test_features_of_words_are_the_librarys_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Each word's features times the head are the library's logits at its first token, its sentence alone."""
    more = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48} if kind == "DistilBert" else {}
    model = small_words.write(tmp_path, kind, **more)
    monkeypatch.chdir(tmp_path)
    session = opened(["index=:"])
    h = session.features_of(session.forget.samples, "forget")[:]
    wanted = small_words.logits(model, small_words.sentences()).double()
    torch.testing.assert_close(h @ session.matrix().T, wanted, rtol=1e-4, atol=1e-5)


def test_scores_of_words_are_those_of_autograd(words_folder: Path) -> None:
    """Closed-form scores are what per-word gradients by autograd give, to float64's precision."""
    session = opened(["index=:"], damping="0.01")
    config = InfluenceConfig(forget=["index=:"], data="sentences.jsonl", cache=False, damping="0.01")
    h = session.features_of(session.forget.samples, "forget")
    found = reuse.compute_scores(session, config, h).scores
    wanted = oracles.influence(session.matrix(), h[:], session.labels(), 0.01)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_sentence_runs_once(words_folder: Path) -> None:
    """However many of its words are asked for, a batch holds it once; and words of several tokens are read at their first one."""
    session = opened(["index=0:4"])
    network, samples = session.network, session.forget.samples
    assert network is not None
    batch = network.preprocess.together(samples, range(len(samples)))
    assert isinstance(batch, dict)
    assert len(batch["input_ids"]) == 4 < count(batch) == len(samples)
    seen = sum(
        len(batch["input_ids"]) for _, batch in network.preprocess.batches(samples, 2) if isinstance(batch, dict)
    )
    assert seen == 4


def test_parts_of_a_batch_of_words(words_folder: Path) -> None:
    """The first words come with their sentences alone, and two halves hold all words between them."""
    session = opened(["index=0:4"])
    network, samples = session.network, session.forget.samples
    assert network is not None
    whole = network.preprocess.together(samples, range(len(samples)))

    def words(batch: Batch) -> list[list[int]]:
        assert isinstance(batch, dict)
        return [[*batch["input_ids"][row].tolist(), token] for row, token in batch[WORDS].tolist()]

    assert words(first(whole, 3)) == words(whole)[:3]
    assert [row for part in halves(whole) for row in words(part)] == words(whole)
    assert len(first(whole, 1)["input_ids"]) == 1  # type: ignore[call-overload]


def test_the_whole_job_on_words(words_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inspect to report, whoever calls: no connection, no program, no sentence in what is written; the folder loads again."""
    with audited() as events:
        assert main(["inspect", "net"]) == 0
        assert main(["select", "--data", "sentences.jsonl", "index=0:8", "-o", "list.csv"]) == 0
        assert main(["influence", "net", "--forget", "list.csv", "--data", "sentences.jsonl", "-q"]) == 0
        made = ["unlearn", "net", "--forget", "list.csv", "--data", "sentences.jsonl", *GOAL, "-q", "-o", "out"]
        assert main(made) in (0, 3)
        assert main(["evaluate", "out", "--test", "test.jsonl", "-q"]) == 0
        capsys.readouterr()
        assert main(["report", "out/model.record.json", "--samples", "2"]) == 0
    assert [event for event in events if event[0] in OUTSIDE] == []
    assert "▸" in capsys.readouterr().out
    for text in small_texts.texts()[:8]:
        written = [Path("list.csv"), *Path("out").glob("*.json")]
        assert len(text.split()) < 4 or not [path for path in written if text in path.read_text(encoding="utf-8")]
    record = json.loads(Path("out/model.record.json").read_text())
    model = transformers.AutoModelForTokenClassification.from_pretrained("out")
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    rows = [json.loads(line) for line in Path("forget.jsonl").read_text().splitlines()]
    found = small_words.logits(model, [row["tokens"] for row in rows], tokenizer).argmax(dim=1).tolist()
    tags = [tag for row in rows for tag in row["ner_tags"]]
    right = sum(small_words.CLASSES[one] == tag for one, tag in zip(found, tags, strict=True))
    assert record["forget"]["n"] == len(tags)
    assert right / len(tags) == pytest.approx(record["end"]["forget"])
    before, after = load_file("net/model.safetensors"), load_file("out/model.safetensors")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["classifier.bias", "classifier.weight"]


def test_the_part_above_the_cut_gives_words_too(words_folder: Path) -> None:
    """What is kept is kept by sentence; any words of it, in any order, have the whole network's features and logits."""
    session = opened(["index=0:6"])
    network, samples = session.network, session.forget.samples
    assert network is not None
    upper = scope.upper_part(
        session, network, scopes.find(network.model, network.probe, "last-block", session.head.module)
    )
    assert upper.cut.module
    kept = upper.keep(samples, 4, 2**30, lambda: words_folder, lambda _: None)
    assert isinstance(kept, KeptWords)
    assert len(kept.sentences) == 6 < len(kept) == len(samples)
    rows = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        h, z = upper(kept, rows)
        wanted_h, wanted_z = session.plainly(len(samples))
    torch.testing.assert_close(z, wanted_z[rows], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(h, wanted_h[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["Bert", "Llama"])
def test_the_last_block_forgets_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Its weights move and what is evaluated is what was written; the blocks below stay as they are."""
    small_words.write(tmp_path, kind)
    monkeypatch.chdir(tmp_path)
    rows = Path("sentences.jsonl").read_text().splitlines()
    Path("test.jsonl").write_text("\n".join(rows[12:]) + "\n")
    command = [
        "unlearn",
        "net",
        "--forget",
        "index=0:4",
        "--data",
        "sentences.jsonl",
        "--test",
        "test.jsonl",
        "-q",
        "-o",
        "out",
    ]
    assert main([*command, "--scope", "last-block", "--batches", "8", *GOAL[:2], "--device", "cpu"]) in (0, 3)
    before, after = load_file("net/model.safetensors"), load_file("out/model.safetensors")
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    changed = {found[1] for name in moved if (found := re.search(r"layers?\.(\d+)\.", name))}
    assert changed == {"1"}
    assert main(["evaluate", "out", "--test", "test.jsonl", "-q"]) == 0


def test_words_of_a_sentence_are_not_parted(words_folder: Path) -> None:
    """Neither the half of the held-out data that chooses nor the part that gives targets shares a sentence with the rest."""
    samples = open_source("sentences.jsonl", "test")
    of = sentences(samples)
    assert of is not None
    chosen = held_out.half(samples, 3)
    parts = held_out.two_parts(samples, 0.3, 3)
    for one in (chosen, parts[0]):
        rest = sorted(set(range(len(samples))) - set(one))
        assert one
        assert rest
        assert not {of[row] for row in one} & {of[row] for row in rest}
    assert sorted(parts[0] + parts[1]) == list(range(len(samples)))


def test_intervals_go_by_sentences(words_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What n counts and what intervals go by is said; every interval of samples names its sentences."""
    forget = ["--forget", "forget.jsonl", "--data", "sentences.jsonl"]
    rows = Path("sentences.jsonl").read_text().splitlines()
    Path("retain.jsonl").write_text("\n".join(rows[8:12]) + "\n")
    assert main(["unlearn", "net", *forget, *GOAL, "-q", "-o", "out"]) in (0, 3)
    given = ["evaluate", "out", "--test", "test.jsonl", "--retain", "retain.jsonl", "--relearn", "--format", "json"]
    capsys.readouterr()
    assert main(given) == 0
    found = json.loads(capsys.readouterr().out)
    assert any("n counts words; intervals go by sentences" in note for note in found["notes"])
    methods = {item["name"]: item["interval"]["method"] for item in found["metrics"] if item["interval"]}
    counted = {name: re.search(r"(\d+)(?: and (\d+))? sentences", method) for name, method in methods.items()}
    assert {name for name, each in counted.items() if each is None} <= {name for name in methods if "relearn" in name}
    assert counted["test.accuracy"] is not None
    assert counted["test.accuracy"][1] == "12"
    assert counted["mia.auc"] is not None
    assert counted["mia.auc"].groups() == ("8", "12")
    by_name = {item["name"]: item for item in found["metrics"]}
    words = sum(len(json.loads(row)["tokens"]) for row in Path("test.jsonl").read_text().splitlines())
    assert by_name["test.accuracy"]["n"] == words > 12


def test_words_know_their_sentence_in_whatever_file(words_folder: Path) -> None:
    """The same sentence has one number in two files, and twice in one; others have others; texts have none."""
    rows = Path("sentences.jsonl").read_text().splitlines()
    Path("other.jsonl").write_text("\n".join([rows[3], rows[5], rows[3]]) + "\n")
    whole, other = (open_source(f"{name}.jsonl", "test") for name in ("sentences", "other"))
    mine, theirs, of = clusters(whole), clusters(other), sentences(whole)
    assert mine is not None
    assert theirs is not None
    assert of is not None
    assert len(set(mine.tolist())) == 24
    assert set(theirs.tolist()) == {*mine[of == 3].tolist(), *mine[of == 5].tolist()}
    assert (mine[of == 3] == mine[of == 3][0]).all()
    assert len(set(theirs.tolist())) == 2
    Path("texts.jsonl").write_text(json.dumps({"text": "blue lamp", "label": "O"}) + "\n")
    assert clusters(open_source("texts.jsonl", "test")) is None


def test_words_without_a_class_are_no_samples(words_folder: Path) -> None:
    """The tag −100 leaves a word in its sentence and out of the set; ids of classes are read as names are."""
    ids = {name: number for number, name in enumerate(small_words.CLASSES)}
    row = json.loads(Path("sentences.jsonl").read_text().splitlines()[1])
    plain = [ids[tag] for tag in row["ner_tags"]]
    plain[0] = -100
    Path("some.jsonl").write_text(json.dumps({"words": row["tokens"], "classes": plain}) + "\n")
    command = [
        "influence",
        "net",
        "--forget",
        "some.jsonl",
        "--columns",
        "tokens=words,tags=classes",
        "--no-cache",
        "-q",
    ]
    assert main([*command, "--format", "json"]) == 0


def test_scores_go_back_in_as_a_list(words_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ``influence --format csv`` calls words (``1:2``) names the same words in a forget list; rows of texts too."""
    assert (
        main(["influence", "net", "--forget", "index=0:2", "--data", "sentences.jsonl", "--format", "csv", "-q"]) == 0
    )
    lines = [line.rsplit(",", 2)[0] for line in capsys.readouterr().out.splitlines()]  # but weights, of which 0 is none
    Path("scores.csv").write_text("\n".join(lines) + "\n")
    assert list(opened(["scores.csv"]).forget.samples.names) == list(opened(["index=0:2"]).forget.samples.names)
    Path("texts.csv").write_text("text,label\nblue lion,O\nred lion,O\n")
    data = open_source("texts.csv", "data")
    Path("list.csv").write_text("id,path,label\n1,1,O\n")
    assert list(open_source("list.csv", "test", data).names) == ["1"]


def test_the_page_shows_words_in_their_sentence(words_folder: Path) -> None:
    """The word between marks, as the report has it."""
    command = ["influence", "net", "--forget", "index=0", "--data", "sentences.jsonl", "-q", "--no-cache"]
    assert main([*command, "--images", "page.html"]) == 0
    words = json.loads(Path("sentences.jsonl").read_text().splitlines()[0])["tokens"]
    assert " ".join([f"▸{words[0]}◂", *words[1:]]) in Path("page.html").read_text(encoding="utf-8")


def test_features_of_words_know_their_sentences(words_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lists and selectors name sentences and words of a file of features as of the sentences; none of them is parted."""
    assert main(["features", "net", "--data", "sentences.jsonl", "-o", "all.safetensors", "-q"]) == 0
    words, rows = open_source("sentences.jsonl", "data"), open_source("all.safetensors", "data")
    assert held_out.half(rows, 3) == held_out.half(words, 3)
    of, own = clusters(rows), sentences(words)
    assert of is not None
    assert own is not None
    assert len(set(zip(of.tolist(), own.tolist(), strict=True))) == len(set(of.tolist())) == 24
    copied = Path("sentences.jsonl").read_text().splitlines()
    Path("other.jsonl").write_text("\n".join([copied[3], copied[5], copied[3]]) + "\n")
    assert main(["features", "net", "--data", "other.jsonl", "-o", "other.safetensors", "-q"]) == 0
    other, theirs = (clusters(open_source(f"other.{kind}", "data")) for kind in ("safetensors", "jsonl"))
    known = clusters(words)
    assert other is not None
    assert theirs is not None
    assert known is not None
    assert other.tolist() == theirs.tolist()
    assert of.tolist() == known.tolist()
    Path("list.csv").write_text("index\n4:0\n2\n")
    for spec in ("index=3", "list.csv"):
        names = [
            list(opening.open_all(Path("net"), opening.with_features(config), Silent()).forget.samples.names)
            for config in (
                InfluenceConfig(forget=[spec], data="sentences.jsonl", cache=False),
                InfluenceConfig(forget=[spec], features="all.safetensors", cache=False),
            )
        ]
        assert names[0] == names[1]
    assert main(["select", "--data", "all.safetensors", "index=99"]) == 2
    assert "sentences are 0 to 23" in capsys.readouterr().err
    assert main(["select", "--data", "all.safetensors", "index=5:2"]) == 2
    assert "one word of a sentence is named in a list" in " ".join(capsys.readouterr().err.split())


def test_a_file_without_digests_is_one_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another path, or a link, it has the same sentences; another file has others."""
    monkeypatch.chdir(tmp_path)
    columns = {"labels": np.zeros(6, np.int64), "word": np.array([[at // 2, at % 2] for at in range(6)])}
    for name in ("one", "two"):
        vectors.write(Path(f"{name}.safetensors"), (6, 3), [torch.ones(6, 3)], columns, {"head": "fc"})
    Path("link.safetensors").symlink_to("one.safetensors")
    names = ["one.safetensors", str(tmp_path / "one.safetensors"), "link.safetensors", "two.safetensors"]
    found = [clusters(open_source(name, "data")) for name in names]
    numbers = [[] if each is None else each.tolist() for each in found]
    assert len(set(numbers[0])) == 3
    assert numbers[0] == numbers[1] == numbers[2]
    assert not set(numbers[0]) & set(numbers[3])


def test_all_words_without_a_token_are_named(words_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each by its line and number; a sentence that is too long is named once."""
    Path("long.jsonl").write_text(json.dumps({"tokens": ["lion"] * 40, "tags": ["O"] * 40}) + "\n")
    assert main(["influence", "net", "--forget", "long.jsonl", "-q"]) == 2
    assert capsys.readouterr().err.count("is 42 tokens") == 1
    assert main(["influence", "net", "--forget", "long.jsonl", "-q", "--truncate"]) == 2
    said = capsys.readouterr().err
    assert said.count("is beyond what the model takes") == 18
    assert "long.jsonl:1, word 40" in said
