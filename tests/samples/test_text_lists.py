"""Texts as samples: lists and data, how their columns are called, and how a list finds rows of the data."""

import io
import json
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import refusal

from imu_cli.cli import main
from imu_cli.config.commands import EvaluateConfig, FeaturesConfig, InfluenceConfig, UnlearnConfig
from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.flags import merge
from imu_cli.samples.classes import ClassNames, in_model_ids
from imu_cli.samples.column_names import ColumnNames
from imu_cli.samples.csv_lines import manifest_text
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.forget import ForgetSet
from imu_cli.samples.manifest import load_forget, open_source, peek
from imu_cli.samples.overlap import overlap
from imu_cli.samples.selectors import select_rows
from imu_cli.samples.texts.stores import Texts

MOODS = ClassNames(3, ("bad", "good", "so so"), "the model")
ROWS = [
    ("It broke on the first day.", "bad", "u1", "north"),
    ('Works, and "quietly"; I like it', "good", "u2", "north"),
    ("Nothing to say\nabout this one.", "so so", "u1", "south"),
    ("Große Freude 🙂 はい", "good", "u3", "south"),
    ("It broke on the first day.", "bad", "u4", "south"),
]
HEADER = ("text", "label", "id", "group")


def csv_of(rows: list[tuple[str, ...]], header: tuple[str, ...] = HEADER, mark: str = ",", end: str = "\n") -> str:
    """A table with every cell in quotes."""
    return end.join(mark.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in (header, *rows)) + end


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A file of five texts, two of which are one; the third spans two lines."""
    (tmp_path / "train.csv").write_text(csv_of(ROWS), encoding="utf-8")
    return tmp_path / "train.csv"


def data_of(path: Path, columns: str | None = None, role: str = "data") -> SampleSet:
    """A data set as a command opens it."""
    return open_source(str(path), role, names=ColumnNames.parse(columns))  # type: ignore[arg-type]


def load(
    folder: Path, text: str, data: SampleSet | None = None, form: str = "csv", columns: str | None = None
) -> ForgetSet:
    """Write a list into the folder and load it."""
    (folder / f"forget.{form}").write_text(text, encoding="utf-8")
    return load_forget(str(folder / f"forget.{form}"), data, None, MOODS, names=ColumnNames.parse(columns))


# --- data


def test_a_file_of_texts_is_a_data_set(reviews: Path) -> None:
    """Texts as they stand, classes by name, id and group beside them; where is file and line, also after a text of two lines."""
    data = data_of(reviews)
    assert [data.read(row) for row in range(5)] == [row[0] for row in ROWS]
    assert data.classes == ("bad", "good", "so so")
    assert list(data.labels) == [0, 1, 2, 1, 0]
    assert data.class_order is None
    assert list(data.columns["id"]) == ["u1", "u2", "u1", "u3", "u4"]
    assert [data.where(row).removeprefix(f"{reviews.parent}/") for row in range(5)] == [
        "train.csv:2", "train.csv:3", "train.csv:4", "train.csv:6", "train.csv:7"
    ]  # fmt: skip
    assert list(data.names) == ["0", "1", "2", "3", "4"]
    assert data.arrays(range(2)) is None
    assert data.kind.many == "texts"


def test_the_digest_is_of_the_text_and_not_of_how_it_is_written(reviews: Path, tmp_path: Path) -> None:
    """Quoted or not, CSV or JSON: SHA-256 and size are those of the text's UTF-8 bytes, so twins by content are found."""
    data = data_of(reviews)
    for row in range(5):
        raw = ROWS[row][0].encode()
        assert (data.digest(row), data.size(row), data.stored(row)) == (sha256(raw).hexdigest(), len(raw), raw)
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": ROWS[3][0], "label": "good"}) + "\n")
    assert overlap(data, data_of(tmp_path / "other.jsonl")).twins == [(3, 0)]
    assert overlap(data, data_of(reviews)).same == [(row, row) for row in range(5)]


@pytest.mark.parametrize("form", ["csv", "crlf", "cr", "tsv", "bom", "jsonl", "ndjson", "json", "stdin", "spread"])
def test_every_form_gives_the_same_texts(tmp_path: Path, form: str) -> None:
    """One set in ten forms: the same texts to the bit, labels and ids."""
    rows = [row for row in ROWS if "\n" not in row[0]] if form == "cr" else ROWS
    written = {
        "crlf": csv_of(rows, end="\r\n"),
        "cr": csv_of(rows, end="\r"),
        "tsv": csv_of(rows, mark="\t"),
        "bom": "\ufeff" + csv_of(rows),
    }
    if form in ("jsonl", "ndjson", "json", "stdin", "spread"):
        objects = [dict(zip(HEADER, row, strict=True)) for row in rows]
        text = "".join(
            json.dumps(one, ensure_ascii=form == "json", indent=None) + "\n\n" * (form == "spread") + "\n"
            for one in objects
        )
    else:
        text = written.get(form, csv_of(rows))
    path = tmp_path / f"data.{form if form in ('tsv', 'ndjson', 'json') else 'jsonl' if form == 'spread' else 'csv'}"
    path = path.with_suffix(".jsonl") if form == "jsonl" else path
    path.write_bytes(text.encode())
    data = open_source("-", "data", stdin=io.BytesIO(text.encode())) if form == "stdin" else data_of(path)
    assert [data.read(row) for row in range(len(data))] == [row[0] for row in rows]
    assert [data.class_text(label) for label in data.labels] == [row[1] for row in rows]
    assert list(data.columns["id"]) == [row[2] for row in rows]


def test_columns_are_called_as_the_option_says(tmp_path: Path) -> None:
    """Any case, names with spaces and commas, and files beside it that already have the usual names."""
    (tmp_path / "a.csv").write_text('Utterance,"Kind, as told",text\nHello there,good,x\n')
    (tmp_path / "b.csv").write_text("text,label\nHello there,good\n")
    option = "text=utterance,label=kind, as told"
    for name in ("a.csv", "b.csv"):
        data = data_of(tmp_path / name, option)
        assert (data.read(0), data.class_text(data.labels[0])) == ("Hello there", "good")
    assert ColumnNames.parse(option).given == {"text": "utterance", "label": "kind, as told"}
    assert ColumnNames.parse({"text": "Utterance", "label": 3}).text == "text=utterance,label=3"


def test_a_file_without_header_is_read_by_position(tmp_path: Path) -> None:
    """The first line is a row then; a list beside it whose header has names of ours keeps it."""
    (tmp_path / "bare.csv").write_text('"2","A title","Some text, here"\n"1","Another","And more"\n')
    data = data_of(tmp_path / "bare.csv", "text=3,label=1")
    assert [data.read(row) for row in range(2)] == ["Some text, here", "And more"]
    assert list(data.labels) == [2, 1]
    assert data.where(0).endswith("bare.csv:1")
    forget = load(tmp_path, "index,label,remark\n1,,as asked\n", data, columns="text=3,label=1")
    assert (forget.samples.read(0), list(forget.labels)) == ("And more", [1])


def test_pairs_of_texts_come_as_pairs(tmp_path: Path) -> None:
    """Both of them, told apart in the digest by where the first ends."""
    (tmp_path / "nli.tsv").write_text("sentence1\tsentence2\tlabel\nab\tc\tgood\na\tbc\tbad\n")
    data = data_of(tmp_path / "nli.tsv", "text=sentence1,text_pair=sentence2")
    assert [data.read(0), data.read(1)] == [("ab", "c"), ("a", "bc")]
    assert data.digest(0) != data.digest(1)
    assert data.size(0) == len(data.stored(0)) == 4


def test_a_column_that_comes_late_is_empty_before(tmp_path: Path) -> None:
    """JSON objects need not have the same keys, however many rows go before."""
    lines = [
        json.dumps({"text": f"text {row}", "label": "good"} | ({"id": "x"} if row == 9_000 else {}))
        for row in range(9_001)
    ]
    (tmp_path / "late.jsonl").write_text("\n".join(lines))
    data = data_of(tmp_path / "late.jsonl")
    assert [data.read(0), data.read(9_000)] == ["text 0", "text 9000"]
    assert (data.columns["id"][0], data.columns["id"][8_999], data.columns["id"][9_000]) == ("", "", "x")


def test_repeated_texts_are_noted_and_those_with_two_labels(tmp_path: Path) -> None:
    """With lines, and without the texts."""
    (tmp_path / "twice.csv").write_text("text,label\nsame words,good\nother,bad\nsame words,good\nsame words,bad\n")
    (note,) = data_of(tmp_path / "twice.csv").notes
    assert "of 4 rows 2 repeat a text that stands before them (such as" in note
    assert "twice.csv:4, as line 2), 1 under another label (such as" in note
    assert "same words" not in note


def test_labels_are_the_models_by_name_or_id(reviews: Path, tmp_path: Path) -> None:
    """Names map whatever their order; bare ids are the model's; a label that is none is told with its line."""
    assert list(in_model_ids(data_of(reviews), ClassNames(3, ("so so", "bad", "good"), "the model")).labels) == [
        1,
        2,
        0,
        2,
        1,
    ]
    (tmp_path / "ids.csv").write_text("text,label\na b,2\nc d,0\n")
    assert list(in_model_ids(data_of(tmp_path / "ids.csv"), MOODS).labels) == [2, 0]
    (tmp_path / "wrong.csv").write_text("text,label\na b,good\nc d,god\ne f,awful\n,\n")
    said = refusal(lambda: in_model_ids(data_of(tmp_path / "wrong.csv"), MOODS))
    assert said.splitlines() == [
        f"{tmp_path}/wrong.csv:3: label 'god' is not a class of this model (did you mean 'good'?)",
        f"{tmp_path}/wrong.csv:4: label 'awful' is not a class of this model; its classes are bad, good, so so",
    ]


def test_labels_that_count_from_one_are_told_so(tmp_path: Path) -> None:
    """1 to c where the model has 0 to c − 1 is one cause, and not one wrong label."""
    (tmp_path / "one.csv").write_text("text,label\na b,1\nc d,2\ne f,3\n")
    said = refusal(lambda: in_model_ids(data_of(tmp_path / "one.csv"), MOODS))
    assert "one.csv:4: label 3 is out of range; the model's ids are 0 to 2; its labels count from 1" in said


def test_every_row_without_a_label_is_named(tmp_path: Path) -> None:
    """By its line."""
    (tmp_path / "some.csv").write_text("text,label\na b,good\nc d,\ne f,\n")
    with pytest.raises(InvalidRowsError) as caught:
        in_model_ids(data_of(tmp_path / "some.csv"), MOODS)
    assert [text.split(" has ")[0][-len("some.csv:3:") :] for text in caught.value.problems] == [
        "some.csv:3:",
        "some.csv:4:",
    ]


def test_images_stay_images(tmp_path: Path) -> None:
    """A list of files with a column of captions is one of images, unless the option says where the texts are."""
    (tmp_path / "captions.csv").write_text("file_name,text,label\na.png,A cat on a mat,good\n")
    assert "a.png is missing" in refusal(lambda: data_of(tmp_path / "captions.csv"))
    assert data_of(tmp_path / "captions.csv", "text=text").read(0) == "A cat on a mat"


# --- forget lists


def test_an_index_and_an_id_are_rows_of_the_data(reviews: Path, tmp_path: Path) -> None:
    """With its labels; all rows of an id are meant, each with the list's line and the data's."""
    data = data_of(reviews)
    forget = load(tmp_path, "index\n3\n0\n", data)
    assert [forget.samples.read(row) for row in range(2)] == [ROWS[3][0], ROWS[0][0]]
    assert forget.where(0) == f"{tmp_path}/forget.csv:2: {reviews}:6"
    by_id = load(tmp_path, "id,reason,weight\nu3,asked,2\nu1,left,0.5\n", data)
    assert [by_id.samples.read(row) for row in range(3)] == [ROWS[3][0], ROWS[0][0], ROWS[2][0]]
    assert (by_id.lines, list(by_id.labels), by_id.weights) == ((2, 3, 3), [1, 0, 2], (2.0, 0.5, 0.5))
    assert list(by_id.reasons or ()) == ["asked", "left", "left"]
    assert list(by_id.ids or ()) == ["u3", "u1", "u1"]


def test_spaces_around_an_id_are_none_of_it(tmp_path: Path) -> None:
    """As a list's are taken off, so are the data's; and the class of data without labels is asked for by what is missing."""
    (tmp_path / "data.csv").write_text("text,id\nsome words of mine,anna smith \nsome more of them,bob\n")
    data = data_of(tmp_path / "data.csv")
    assert list(load(tmp_path, "id,label\nanna smith,good\n", data).samples.names) == ["0"]
    assert list(select_rows(data, ["id=anna smith"])) == [0]
    assert "has no labels; give it a column label, or name it: --columns label=NAME" in refusal(
        lambda: select_rows(data, ["class=good"])
    )


def test_a_text_is_found_in_the_data(reviews: Path, tmp_path: Path) -> None:
    """Exactly; of two rows with one text the one with the list's label, and twice listed it is both."""
    data = data_of(reviews)
    forget = load(tmp_path, csv_of([(ROWS[2][0],), (ROWS[0][0],), (ROWS[0][0],)], ("text",)), data)
    assert list(forget.samples.positions) == [2, 0, 4]
    assert list(forget.labels) == [2, 0, 0]
    assert forget.samples.store is data.store
    (tmp_path / "two.csv").write_text("text,label\nsame,good\nsame,bad\n")
    assert list(load(tmp_path, "text,label\nsame,bad\n", data_of(tmp_path / "two.csv")).samples.positions) == [1]
    once = load(tmp_path, csv_of([(ROWS[0][0],)], ("text",)), data)
    assert any("1 forget samples have a twin" in note for note in once.notes)


def test_texts_without_data_stand_alone(tmp_path: Path) -> None:
    """They are a whole forget set of their own, with labels of their own."""
    forget = load(tmp_path, csv_of(ROWS))
    assert [forget.samples.read(row) for row in range(5)] == [row[0] for row in ROWS]
    assert (list(forget.labels), forget.lines, forget.whole_classes) == ([0, 1, 2, 1, 0], (2, 3, 4, 6, 7), None)
    assert forget.where(3) == f"{tmp_path}/forget.csv:6"
    assert "1 rows repeat a text and its label; each counts" in forget.notes[0]
    assert "2 texts" in refusal(lambda: load(tmp_path, "text\none\ntwo\n"))
    assert list(load_forget(str(tmp_path / "forget.csv"), None, "good", MOODS).labels) == [1, 1]


def test_the_same_text_with_two_labels_is_a_note(tmp_path: Path) -> None:
    """People write the same and mean two things; one row listed twice with two labels is an error."""
    assert load(tmp_path, "text,label\nthanks,good\nthanks,bad\n").notes == (
        f"{tmp_path}/forget.csv: 1 texts have a copy with another label",
    )
    (tmp_path / "d.csv").write_text("text,label\nthanks,good\nno,bad\n")
    said = refusal(lambda: load(tmp_path, "index,label\n0,good\n0,bad\n", data_of(tmp_path / "d.csv")))
    assert said.startswith(f"{tmp_path}/forget.csv:3: the same text has another label at {tmp_path}/forget.csv:2: ")


def test_an_index_beside_a_text_has_to_fit_it(reviews: Path, tmp_path: Path) -> None:
    """A list made from another file, or before a row was taken out, is not followed."""
    data = data_of(reviews)
    assert list(load(tmp_path, f"index,text\n3,{ROWS[3][0]}\n", data).samples.positions) == [3]
    said = refusal(lambda: load(tmp_path, f"index,text\n2,{ROWS[3][0]}\n9,x\n", data)).splitlines()
    assert said[0].startswith(f"{tmp_path}/forget.csv:2: its text is not that of row 2 of {reviews} ({reviews}:4)")
    assert "forget.csv:3: index 9 is out of range" in said[1]


def test_selectors_take_texts(reviews: Path) -> None:
    """By class, index, id and group."""
    data = data_of(reviews)
    found = {
        one: list(select_rows(data, [one])) for one in ("class=bad", "index=1:3", "id=u1", "group=south", "class=so so")
    }
    assert found == {
        "class=bad": [0, 4],
        "index=1:3": [1, 2],
        "id=u1": [0, 2],
        "group=south": [2, 3, 4],
        "class=so so": [2],
    }
    assert load_forget(["class=bad"], data, None, MOODS).whole_classes is True
    assert load_forget(["id=u1"], data, None, MOODS).whole_classes is False


def test_select_writes_a_list_without_the_texts(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row, label and id, which the same data set reads back; ``--columns`` is an option and a variable."""
    assert main(["select", "group=north", "--data", str(reviews)]) == 0
    assert capsys.readouterr().out == "index,label,id\n0,bad,u1\n1,good,u2\n"
    data = data_of(reviews)
    again = load(tmp_path, manifest_text(data, [3, 1]), data)
    assert list(again.samples.positions) == [3, 1]
    (tmp_path / "own.csv").write_text("utterance,intent\nHello there,good\n")
    select = ["select", "class=good", "--data", str(tmp_path / "own.csv")]
    assert main([*select, "--columns", "text=utterance,label=intent"]) == 0
    assert capsys.readouterr().out == "index,label\n0,good\n"
    monkeypatch.setenv("IMU_COLUMNS", "text=utterance,label=intent")
    assert main([*select, "-o", str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").read_text() == "index,label\n0,good\n"


def test_a_peek_gives_texts_before_classes_are_known(reviews: Path, tmp_path: Path) -> None:
    """The first of the data, else of the list, without the rows that have no text."""
    assert peek("forget.csv", data_of(reviews), 2).read(1) == ROWS[1][0]
    (tmp_path / "list.csv").write_text('text,label\n" ",good\nfine words,who knows\nmore,\n')
    few = peek(str(tmp_path / "list.csv"), None, 1)
    assert (len(few), few.read(0), few.where(0)) == (1, "fine words", f"{tmp_path}/list.csv:3")
    (tmp_path / "empty.csv").write_text('text\n""\n')
    with pytest.raises(InvalidRowsError, match=r"empty\.csv:2: the text is empty"):
        peek(str(tmp_path / "empty.csv"), None, 1)


def test_test_data_may_be_rows_of_the_data(reviews: Path, tmp_path: Path) -> None:
    """By index or id; a forget sample among them is the same row, at both lines."""
    data = data_of(reviews)
    for text in ("index\n3\n1\n", "id\nu3\nu2\n"):
        (tmp_path / "test.csv").write_text(text)
        test = open_source(str(tmp_path / "test.csv"), "test", data)
        assert [test.class_text(label) for label in test.labels] == ["good", "good"]
        forget = load(tmp_path, csv_of([(ROWS[3][0],)], ("text",)), data)
        assert overlap(forget.samples, test).same == [(0, 0)]
        assert test.where(0) == f"{tmp_path}/test.csv:2: {reviews}:6"


def test_a_store_holds_texts_compactly(tmp_path: Path) -> None:
    """A hundred thousand texts take their bytes, a line number, an end and a digest each."""
    (tmp_path / "many.csv").write_text(
        "text,label\n" + "".join(f"this is text number {row:06d},good\n" for row in range(100_000))
    )
    data = data_of(tmp_path / "many.csv")
    store = data.store
    assert isinstance(store, Texts)
    held = store.texts.data.nbytes + store.texts.ends.nbytes + store.digests.raw.nbytes + 8 * len(store.lines)
    assert held < 100_000 * (27 + 8 + 33 + 8)
    assert data.read(99_999) == "this is text number 099999"
    assert data.labels[5] == 0 != UNKNOWN


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("text", "'text' has no ="),
        ("txet=a", "'txet' is no column's meaning (did you mean 'text'?)"),
        ("text=", "text is '', not the name of a column"),
        ("text=a,text=b", "text is given twice"),
        ("text=a,label=A", "names the column 'a' twice"),
        ({"text": True}, "text is True, not the name of a column"),
        ({"text": ["a"]}, "text is ['a'], not the name of a column"),
    ],
)
def test_an_option_that_says_nothing_is_refused(option: str, said: str) -> None:
    """With what is wrong about it."""
    with pytest.raises(ImuError) as caught:
        ColumnNames.parse(option)
    assert said in str(caught.value)


def test_the_option_stands_in_yaml_too(tmp_path: Path) -> None:
    """As text or as a mapping, for every command that takes samples."""
    for text in ("columns: text=utterance,label=1", "columns: {text: utterance, label: 1}"):
        (tmp_path / "imu.yaml").write_text(text + "\n")
        for config in (InfluenceConfig, UnlearnConfig, EvaluateConfig, FeaturesConfig):
            merged, origins = merge(config, {}, str(tmp_path / "imu.yaml"))
            assert ColumnNames.parse(merged.columns).given == {"text": "utterance", "label": "1"}
            assert origins["columns"] == "file"
