"""Lists of words: what files of sentences look like and call their columns, what is wrong with them, and what is said of it."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import small_texts
from small_words import opened

from imu_cli.cli import main
from imu_cli.errors import ImuError
from imu_cli.samples.column_names import ColumnNames
from imu_cli.samples.manifest import open_source

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_lists_name_sentences_and_words(words_folder: Path) -> None:
    """By index, by id, by a word's two numbers, and by the sentences themselves; the selector counts sentences."""
    rows = [json.loads(line) for line in Path("sentences.jsonl").read_text().splitlines()]
    at = next(number for number, row in enumerate(rows) if len(row["tokens"]) > 2)
    many = len(rows[at]["tokens"])

    def named(forget: list[str], text: str = "") -> list[str]:
        if text:
            Path(forget[0]).write_text(text)
        return list(opened(forget).forget.samples.names)

    whole = [f"{at}:{word}" for word in range(many)]
    assert named([f"index={at}"]) == named([f"id=s{at}"]) == whole
    assert named(["list.csv"], f"index\n{at}\n") == whole
    assert named(["list.csv"], f"id\ns{at}\n") == whole
    assert named(["list.csv"], f"index\n{at}:2\n") == [f"{at}:2"]
    assert (
        named(["list.jsonl"], json.dumps({"tokens": rows[at]["tokens"], "tags": rows[at]["ner_tags"]}) + "\n") == whole
    )
    assert main(["select", "--data", "sentences.jsonl", "class=B-PER", "-o", "people.csv"]) == 0
    tags = [
        (number, word) for number, row in enumerate(rows) for word, tag in enumerate(row["ner_tags"]) if tag == "B-PER"
    ]
    assert named(["people.csv"]) == [f"{number}:{word}" for number, word in tags]


BAD = {
    "lengths": ('{"tokens": ["a", "b"], "tags": ["O"]}', "has 2 words and 1 tags"),
    "no list": ('{"tokens": "a b", "tags": ["O", "O"]}', "tokens is no list of words"),
    "no words": ('{"tokens": [], "tags": []}', "tokens holds no words"),
    "an empty word": ('{"tokens": ["a", " "], "tags": ["O", "O"]}', "word 2 of its tokens is empty"),
    "a number": ('{"tokens": ["a", 3], "tags": ["O", "O"]}', "word 2 of its tokens is no text"),
    "a truth": ('{"tokens": ["a"], "tags": [true]}', "the tag of word 1 is neither a class's name nor its id"),
    "no tags": ('{"tokens": ["a"], "tags": null}', "tags is no list of classes"),
    "a NUL": ('{"tokens": ["a\\u0000"], "tags": ["O"]}', "holds a NUL"),
    "no class": ('{"tokens": ["a"], "tags": ["B-DOG"]}', "label 'B-DOG' is not a class"),
    "half a character": ('{"tokens": ["\\ud800"], "tags": ["O"]}', "holds half a character"),
    "tags called label": ('{"tokens": ["a"], "label": ["O"]}', "--columns tags=label"),
    "a truth for each": ('{"tokens": ["a"], "tags": ["O"], "true_label": ["O"]}', "index 17:3, label, true_label"),
    "beyond the ids": ('{"tokens": ["a"], "tags": [7]}', "label 7 is out of range"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_said_with_its_line(words_folder: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """Before anything is written."""
    row, words = BAD[kind]
    Path("bad.jsonl").write_text('{"tokens": ["lion"], "tags": ["O"]}\n' + row + "\n")
    assert main(["unlearn", "net", "--forget", "bad.jsonl", "-q"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "bad.jsonl:2" in said
    assert not Path("net.unlearned").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("index\n99\n", "index 99 is out of range; sentences.jsonl has the sentences 0 to 23"),
        ("index\n0:40\n", "has no word with a class there"),
        ("index\n1:2:3\n", "neither a sentence's number nor a word's"),
        ("id\ns99\n", "no row of sentences.jsonl has the id 's99'"),
        ("text,label\nblue lion,O\n", "holds texts, and sentences.jsonl does not"),
    ],
)
def test_lists_that_name_no_word(words_folder: Path, capsys: pytest.CaptureFixture[str], text: str, words: str) -> None:
    """Each with what there is."""
    Path("list.csv").write_text(text)
    assert main(["unlearn", "net", "--forget", "list.csv", "--data", "sentences.jsonl", "-q"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_other_kinds_are_refused(words_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts for a token classifier, sentences for a text classifier, and sentences that are too long."""
    Path("texts.jsonl").write_text('{"text": "blue lion", "label": "O"}\n')
    assert main(["unlearn", "net", "--forget", "texts.jsonl", "-q"]) == 2
    assert "is a classifier of words" in capsys.readouterr().err
    long = {"tokens": ["lion"] * 40, "tags": ["O"] * 40}
    Path("long.jsonl").write_text(json.dumps(long) + "\n")
    assert main(["unlearn", "net", "--forget", "long.jsonl", "-q"]) == 2
    assert "is 42 tokens, and the model takes 24" in capsys.readouterr().err
    assert main(["unlearn", "net", "--forget", "long.jsonl", "-q", "--truncate"]) == 2
    assert "is beyond what the model takes" in capsys.readouterr().err
    other = Path("other")
    other.mkdir()
    small_texts.write(other)
    assert main(["unlearn", "other/net", "--forget", "forget.jsonl", "-q"]) == 2
    assert "holds words, and net is a classifier of texts" in capsys.readouterr().err


PUBLISHED = {
    "CoNLL-2003": ("-DOCSTART- -X- O O\n\nAnna NNP I-NP B-PER\nlives VBZ I-VP O\n\nRome NNP I-NP B-LOC\n", ""),
    "WNUT 2017": ("Anna\tB-PER\nlives\tO\n\t\nRome\tB-LOC\n", ""),
    "GermEval 2014": (
        "# http://example.org/1 [2009-10-17]\n1\tAnna\tB-PER\tO\n2\tlives\tO\tO\n\n# x\n1\tRome\tB-LOC\tO\n",
        "tokens=2,tags=3",
    ),
    "CoNLL-U": (
        "# sent_id = 1\n1-2\tAnnas\t_\t_\t_\t_\t_\t_\t_\t_\n1\tAnna\tAnna\tB-PER\t_\t_\t_\t_\t_\t_\n"
        "2\tlives\tlive\tO\t_\t_\t_\t_\t_\t_\n2.1\tat\tat\tO\t_\t_\t_\t_\t_\t_\n\n1\tRome\tRome\tB-LOC\t_\t_\t_\t_\t_\t_\n",
        "tokens=2,tags=4",
    ),
    "with Windows' line ends": ("Anna B-PER\r\nlives O\r\n\r\nRome B-LOC\r\n\r\n", ""),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_as_their_authors_publish_them(tmp_path: Path, name: str) -> None:
    """Written after each data set's documentation: the same two sentences come out."""
    text, columns = PUBLISHED[name]
    (tmp_path / "train.conll").write_bytes(text.encode())
    samples = open_source(str(tmp_path / "train.conll"), "data", names=ColumnNames.parse(columns or None))
    assert [samples.read(row).sentence for row in range(3)] == [("Anna", "lives"), ("Anna", "lives"), ("Rome",)]
    assert [samples.class_text(label) for label in samples.labels] == ["B-PER", "O", "B-LOC"]
    assert list(samples.names) == ["0:0", "0:1", "1:0"]


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("Anna B-PER\nlives\n", "", "a.conll:2: has a word and no tag"),
        ("1\tAnna\tB-PER\n2\tlives\n", "tokens=2,tags=3", "a.conll:2: has 2 fields, and --columns names field 3"),
        ("Anna\0 B-PER\n", "", "a.conll:1: holds a NUL"),
        ("\n\n", "", "a.conll: holds no rows"),
        ("Anna\nlives\n", "", "has no tags"),
        ("Anna NNP B-PER\nlives O\n", "", "a.conll:2: has 2 fields, and the lines before it 3; correct it"),
        ("Anna B-PER\rlives O\r\r", "", "a.conll: its lines end in CR alone; write it with LF"),
    ],
)
def test_lines_of_words_that_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, columns: str, words: str
) -> None:
    """With the physical line."""
    monkeypatch.chdir(tmp_path)
    Path("a.conll").write_text(text)
    with pytest.raises(ImuError, match=re.escape(words)):
        open_source("a.conll", "test", names=ColumnNames.parse(columns or None))


def test_universal_dependencies_are_known_by_their_name(tmp_path: Path) -> None:
    """The word is the second field and its part of speech the fourth, without ``--columns``."""
    (tmp_path / "a.conllu").write_text(
        "1\tAnna\tAnna\tPROPN\tNNP\t_\t2\tnsubj\t_\t_\n2\tlives\tlive\tVERB\t_\t_\t0\troot\t_\t_\n"
    )
    samples = open_source(str(tmp_path / "a.conllu"), "data")
    assert [samples.class_text(label) for label in samples.labels] == ["PROPN", "VERB"]


def test_words_come_by_standard_input(
    words_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no name says what it is, the first line does, which ends with a tag."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"lion NN B-PER\nblue NN O\n")))
    assert main(["influence", "net", "--forget", "-", "--format", "csv", "-q", "--no-cache"]) == 0
    assert capsys.readouterr().out.count("\n0:") == 2


NAMES = {
    ("words", "labels"): "--columns tokens=words,tags=labels",
    ("sentence", "pos_tags"): "--columns tokens=sentence,tags=pos_tags",
    ("tokens", "ner"): "--columns tags=ner",
    (
        "text",
        "ner",
    ): "f.jsonl: 'text' is a list in every row; if it holds the words of sentences, add --columns tokens=text,tags=ner",
    ("a", "b"): "--columns tokens=a,tags=b",
}


@pytest.mark.parametrize("names", NAMES)
def test_columns_of_words_are_proposed(
    words_folder: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, str]
) -> None:
    """Whatever a file calls them, in one line that says nothing else, for lists and for data, of one row and of several."""
    rows = [json.loads(row) for row in Path("sentences.jsonl").read_text().splitlines()[:4]]
    for many in (1, 4):
        made = [json.dumps({names[0]: row["tokens"], names[1]: row["ner_tags"]}) for row in rows[:many]]
        Path("f.jsonl").write_text("\n".join(made) + "\n")
        for given in (["--forget", "f.jsonl"], ["--data", "f.jsonl", "--forget", "index=0"]):
            assert main(["influence", "net", *given, "-q"]) == 2
            said = capsys.readouterr().err.splitlines()
            assert len(said) == 1
            assert NAMES[names] in said[0]


def test_ids_without_data_are_one_problem(words_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And where the list has words of its own under other names, both ways out are said."""
    Path("f.csv").write_text("id\n4711\n")
    assert main(["influence", "net", "--forget", "f.csv", "-q"]) == 2
    assert capsys.readouterr().err == "imu: f.csv: names rows of --data by their id; give --data\n"
    Path("f.jsonl").write_text('{"id": 1, "words": ["lion", "blue"], "ner": ["O", "O"]}\n')
    assert main(["influence", "net", "--forget", "f.jsonl", "-q"]) == 2
    assert capsys.readouterr().err.endswith(
        "give --data, or if it holds samples of its own add --columns tokens=words,tags=ner\n"
    )


def test_no_word_with_a_class(words_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list in which every tag is −100 is refused, and so is one without tags, each with what to do."""
    Path("none.jsonl").write_text('{"tokens": ["lion"], "tags": [-100]}\n')
    assert main(["influence", "net", "--forget", "none.jsonl", "-q"]) == 2
    assert "no word of it has a class" in capsys.readouterr().err
    Path("bare.jsonl").write_text('{"tokens": ["lion"]}\n')
    assert main(["influence", "net", "--forget", "bare.jsonl", "-q"]) == 2
    said = capsys.readouterr().err
    assert "bare.jsonl: has no tags (it has tokens); write the class of each word, or name their column" in said
    assert "give --data that has these sentences" in said


def test_a_sentence_is_one_in_every_kind_of_file(words_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However its JSON is spaced and escaped; columns beside it do not make a text of it, and one that is not there is said once."""
    row = {"tokens": ["größer", "lion", "zoo"], "ner_tags": ["O", "B-PER", "O"], "text": "größer lion zoo"}
    Path("data.jsonl").write_text(json.dumps(row) + "\n")
    cells = [json.dumps(row[name], separators=(",", ":")).replace('"', '""') for name in ("tokens", "ner_tags")]
    Path("list.csv").write_text('tokens,tags\n"{}","{}"\n'.format(*cells))
    Path("list.conll").write_text("größer O\nlion B-PER\nzoo O\n")
    data = open_source("data.jsonl", "data")
    for name in ("list.csv", "list.conll"):
        listed = open_source(name, "test")
        assert listed.digest_bytes().tolist() == data.digest_bytes().tolist()
    Path("other.conll").write_text("blue O\nlion O\n")
    assert main(["influence", "net", "--forget", "other.conll", "--data", "sentences.jsonl", "-q"]) == 2
    assert capsys.readouterr().err.count("has no such sentence") == 1


def test_columns_are_for_every_file(words_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Held-out data and anchors that call them otherwise are read beside a list that has the usual names."""
    rows = [json.loads(row) for row in Path("sentences.jsonl").read_text().splitlines()]
    for name, some in (("test.jsonl", rows[12:]), ("anchor.jsonl", rows[8:12])):
        made = [json.dumps({"words": row["tokens"], "ner": row["ner_tags"]}) for row in some]
        Path(name).write_text("\n".join(made) + "\n")
    command = [
        "unlearn",
        "net",
        "--forget",
        "forget.jsonl",
        "--test",
        "test.jsonl",
        "--anchor",
        "anchor.jsonl",
        "-q",
        "--scope",
        "last-block",
    ]
    assert main(
        [*command, "--batches", "1", "--until", "forget.accuracy<=0.999", "--columns", "tokens=words,tags=ner"]
    ) in (0, 3)
    capsys.readouterr()
    rows = [json.dumps({"tokens": row["tokens"], "tags": row["ner_tags"]}) for row in rows[12:]]
    Path("test.jsonl").write_text("\n".join(rows) + "\n")
    Path("texts.jsonl").write_text('{"text": "blue lion", "label": "O"}\n')
    for option in ("--test", "--reference", "--anchor"):
        given = [
            *command,
            "--anchor",
            "test.jsonl",
            "-o",
            "other",
            "--until",
            "forget.accuracy<=0.999",
            option,
            "texts.jsonl",
        ]
        assert main(given) == 2
        assert "texts.jsonl: holds texts, and net is a classifier of words" in capsys.readouterr().err
    assert not Path("other").exists()


def test_tags_beside_tags_are_told(tmp_path: Path) -> None:
    """A file may have both columns: ``tags`` are read, and a note says that the others are not."""
    (tmp_path / "a.jsonl").write_text('{"tokens": ["lion"], "tags": ["O"], "ner_tags": ["B-PER"], "text": "lion"}\n')
    samples = open_source(str(tmp_path / "a.jsonl"), "data")
    assert samples.class_text(samples.labels[0]) == "O"
    assert samples.notes[0].endswith("ignored columns that have no meaning here: 'ner_tags'")
