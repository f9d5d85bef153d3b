"""Data sets' own files as their authors publish them: columns, quoting, encodings. Rows are written after their documentation."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import refusal

from imu_cli.samples.classes import ClassNames, in_model_ids
from imu_cli.samples.column_names import ColumnNames
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.manifest import load_forget, open_source


def read(path: Path, columns: str | None = None) -> SampleSet:
    return open_source(str(path), "data", names=ColumnNames.parse(columns))


def written(folder: Path, name: str, text: str | bytes) -> Path:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def test_banking77(shared: Path) -> None:
    """All 10,003 texts as Python's csv has them, some over several lines; the 500 by index; an intent is a whole class."""
    file = shared / "data" / "banking77" / "train.csv"
    if not file.is_file():
        pytest.skip("../shared/data/banking77 is not here")
    said = refusal(lambda: read(file))
    assert said == f"{file}: has no label column (it has text, category); add --columns label=category"
    names = ColumnNames.parse("label=category")
    data = open_source(str(file), "data", names=names)
    with file.open(newline="", encoding="utf-8") as rows:
        expected = list(csv.DictReader(rows))
    assert [data.read(row) for row in range(len(data))] == [row["text"] for row in expected]
    assert [data.class_text(label) for label in data.labels] == [row["category"] for row in expected]
    assert (len(data), len(data.classes or ()), data.notes) == (10_003, 77, ())
    lines = file.read_bytes().split(b"\n")
    for row in range(0, len(data), 97):
        at = int(data.where(row).rpartition(":")[2])
        assert lines[at - 1].decode().lstrip('"').startswith(data.read(row).split("\n")[0].replace('"', '""'))
    classes = ClassNames(77, tuple(sorted(data.classes or ())), "the model")
    forget = load_forget(str(file.parent / "random500.csv"), data, None, classes, names=names)
    assert (len(forget), forget.samples.store is data.store, forget.whole_classes) == (500, True, False)
    whole = load_forget("class=card_arrival", data, None, classes, names=names)
    assert (len(whole), whole.whole_classes) == (Counter(row["category"] for row in expected)["card_arrival"], True)
    test = open_source(str(file.parent / "test.csv"), "test", data, names=names)
    assert len(in_model_ids(test, classes)) == 3_080


def test_ag_news(tmp_path: Path) -> None:
    """``train.csv``: no header, three quoted columns (class from 1, title, description), quotes doubled, line ends as two characters."""
    file = written(
        tmp_path,
        "train.csv",
        '"3","Wall St. Bears Claw Back Into the Black (Reuters)","Reuters - Short-sellers, Wall Street\'s dwindling\\band of ultra-cynics."\n'
        '"4","Saturn\'s moons","AP - ""Two"" new moons\\nwere found & named; more #39;to come#39;."\n'
        '"1","Vote today","AP - Polls opened, and they close at eight."\n"2","Cup final","AP - It ended in a draw, again."\n',
    )
    said = refusal(lambda: read(file))
    assert "(3 fields, and the first line looks like a row, not a header)" in said
    assert said.endswith("add --columns text=3")
    data = read(file, "text=3,label=1")
    assert data.read(1) == 'AP - "Two" new moons\\nwere found & named; more #39;to come#39;.'
    world = ClassNames(4, ("World", "Sports", "Business", "Sci/Tech"), "the model")
    assert "label 4 is out of range; the model's ids are 0 to 3; its labels count from 1" in refusal(
        lambda: in_model_ids(data, world)
    )


def test_sst2_and_mrpc_of_glue(tmp_path: Path) -> None:
    """Tables that know no quoting: a quote is a character, and a row is a line, also where quotes would pair up over lines."""
    file = written(
        tmp_path,
        "train.tsv",
        "sentence\tlabel\nhide new secretions from the parental units \t0\n`` good '' , it says \t1\n",
    )
    data = read(file, "text=sentence")
    assert [data.read(0), data.read(1)] == ["hide new secretions from the parental units ", "`` good '' , it says "]
    rows = [
        (
            "1",
            "702876",
            "702977",
            'Amrozi accused his brother , whom he called " the witness " .',
            '"Referring to him only as such , he went on .',
        ),
        ("0", "2108705", "2108831", "\"Yucaipa owned Dominick 's before selling it .", 'It bought it in 1995 ."'),
    ]
    mrpc = written(
        tmp_path,
        "msr_paraphrase_train.tsv",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n" + "".join("\t".join(row) + "\r\n" for row in rows),
    )
    assert "--columns 'text=#1 string,text_pair=#2 string" in refusal(lambda: read(mrpc))
    pairs = read(mrpc, "text=#1 String,text_pair=#2 String,label=Quality")
    assert [pairs.read(row) for row in range(2)] == [row[3:] for row in rows]
    assert list(pairs.labels) == [1, 0]
    assert any("its quotes are read as characters" in note for note in pairs.notes)


def test_cola_and_the_sms_spam_collection(tmp_path: Path) -> None:
    """Tables without header: columns by position."""
    cola = written(
        tmp_path,
        "train.tsv",
        "gj04\t1\t\tOur friends won't buy this analysis.\ngj04\t0\t*\tOne more \"pseudo and I'm giving up.\n",
    )
    data = read(cola, "text=4,label=2")
    assert [data.read(row) for row in range(2)] == [
        "Our friends won't buy this analysis.",
        "One more \"pseudo and I'm giving up.",
    ]
    sms = written(
        tmp_path,
        "sms.tsv",
        'ham\tOk lar... Joking wif u oni...\nspam\tFree entry in 2 a wkly comp to win £100, txt "WIN"\n',
    )
    data = read(sms, "label=1,text=2")
    assert [data.class_text(label) for label in data.labels] == ["ham", "spam"]


def test_snli_and_massive(tmp_path: Path) -> None:
    """JSON lines with lists and objects in columns that are not asked for."""
    snli = {
        "annotator_labels": ["neutral", "entailment"], "captionID": "3416050480.jpg#4", "gold_label": "neutral", "pairID": "3416050480.jpg#4r1n",
        "sentence1": "A person on a horse jumps over a broken down airplane.", "sentence2": "A person is training his horse.",
    }  # fmt: skip
    file = written(tmp_path, "snli_1.0_train.jsonl", json.dumps(snli) + "\n" + json.dumps(snli | {"gold_label": "-"}))
    assert "add --columns text=sentence1,text_pair=sentence2,label=gold_label" in refusal(lambda: read(file))
    data = read(file, "text=sentence1,text_pair=sentence2,label=gold_label,id=pairid")
    assert data.read(0) == (snli["sentence1"], snli["sentence2"])
    assert data.columns["id"][0] == "3416050480.jpg#4r1n"
    said = refusal(lambda: in_model_ids(data, ClassNames(3, ("entailment", "neutral", "contradiction"), "the model")))
    assert said.startswith(f"{file}:2: label '-' is not a class of this model")
    massive = {
        "id": "1", "locale": "de-DE", "partition": "train", "scenario": "alarm", "intent": "alarm_set", "utt": "weck mich um fünf uhr",
        "annot_utt": "weck mich um [time : fünf uhr]", "worker_id": "8", "judgments": [{"worker_id": "27", "intent_score": 1}],
    }  # fmt: skip
    file = written(tmp_path, "de-DE.jsonl", json.dumps(massive, ensure_ascii=False) + "\n")
    assert "add --columns text=utt,label=intent" in refusal(lambda: read(file))
    data = read(file, "text=utt,label=intent,group=worker_id")
    assert (data.read(0), data.columns["group"][0], data.columns["id"][0]) == ("weck mich um fünf uhr", "8", "1")


def test_clinc150_is_told_what_to_do(tmp_path: Path) -> None:
    """``data_full.json`` is one object of lists of pairs."""
    whole = {"oos_val": [["set a warning for when my bank account starts running low", "oos"]] * 2, "val": []}
    file = written(tmp_path, "data_full.json", json.dumps(whole, indent=2))
    said = refusal(lambda: read(file))
    assert said.startswith(
        f"{file}: is one JSON object with 'oos_val', 'val', not lines of samples; write each list of it as lines"
    )


def test_sentiment140_and_trec_are_told_their_encoding(tmp_path: Path) -> None:
    """Latin-1, without header; converted as the message says, it is read by position. TREC's .label is no table."""
    raw = '"0","1467810369","Mon Apr 06 22:19:45 PDT 2009","NO_QUERY","_TheSpecialOne_","@x ya, café - that\'s a ""bummer"""\n'.encode(
        "latin-1"
    )
    file = written(tmp_path, "training.1600000.processed.noemoticon.csv", raw)
    said = refusal(lambda: read(file, "label=1,id=2,text=6,group=5"))
    assert said.startswith(
        f"{file}:1: not UTF-8 (byte 0xe9), probably Latin-1 (ISO-8859-1); save it as UTF-8, such as with iconv -f ISO-8859-1"
    )
    data = read(written(tmp_path, "out.csv", raw.decode("latin-1")), "label=1,id=2,text=6,group=5")
    assert (data.read(0), data.columns["group"][0]) == ('@x ya, café - that\'s a "bummer"', "_TheSpecialOne_")
    trec = written(tmp_path, "train_5500.label", "DESC:manner How did serfdom develop in and then leave Russia ?\n")
    assert refusal(lambda: read(trec)) == (
        f"{trec}: is a file, not a folder; name a folder of images, a .csv, .tsv, .jsonl or .conll, or cifar10:DIR and the like"
    )
