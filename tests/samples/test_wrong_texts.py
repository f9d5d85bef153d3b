"""Lists of texts that are wrong: each kind has a message with its line and a remedy, and nothing of the texts is in it."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imu_cli.cli import main
from imu_cli.errors import InvalidRowsError
from imu_cli.samples.classes import ClassNames
from imu_cli.samples.column_names import ColumnNames
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images.stores import Pixels
from imu_cli.samples.manifest import load_forget, open_source
from imu_cli.samples.selectors import select_rows

MOODS = ClassNames(2, ("bad", "good"), "the model")
SECRET = "my number is 0151"
"""Stands in every text and never in a message."""
GOOD = f"text,label\n{SECRET} one,good\n"


def zipped(text: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("xl/sheet1.xml", text)
    return out.getvalue()


# name: (file name, bytes, --columns, what is said; {F} is the file as it was named)
WRONG: dict[str, tuple[str, bytes | str, str | None, str]] = {
    "an empty file": ("f.csv", "", None, "{F}: holds no rows; list at least one sample below the header"),
    "blank lines": ("f.jsonl", "\n \n\n", None, "{F}: holds no rows; list at least one sample"),
    "a header alone": ("f.csv", "text,label\n", None, "{F}: holds no rows; list at least one sample below the header"),
    "an empty text": ("f.csv", GOOD + ",bad\nx,bad\n", None, "{F}:3: the text is empty; write it, or take the row out"),
    "a text of spaces": ("f.csv", GOOD + '" \u00a0\n",bad\n', None, "{F}:3: the text is empty; write it"),
    "an empty second of a pair": (
        "f.csv", f"text,text_pair,label\n{SECRET},,good\n", None, "{F}:2: the text_pair is empty; write it",
    ),
    "a label that is no class": (
        "f.csv", GOOD + f"{SECRET},godo\n", None, "{F}:3: label 'godo' is not a class of this model (did you mean 'good'?)",
    ),
    "a text in the column of labels": (
        "f.csv", f"label,text\n{SECRET} and my street is long and has many numbers,good\n", None,
        "{F}:2: label of 60 characters is not a class of this model; its classes are bad, good",
    ),
    "an id beyond the classes": ("f.csv", GOOD + f"{SECRET},2\n", None, "{F}:3: label 2 is out of range; the model's ids are 0 to 1"),
    "a missing label": (
        "f.csv", GOOD + f"{SECRET},\n", None,
        "{F}:3: the label is missing: no --data is given that could know it; write the class's name or id",
    ),
    "no label at all": (
        "f.csv", f"text\n{SECRET}\n", None,
        "{F}: the class of 1 texts is not known: no --data is given that could know it; give a label column or --label CLASS",
    ),
    "a weight of nothing": ("f.csv", f"text,label,weight\n{SECRET},good,0\n", None, "{F}:2: weight '0' is not a number > 0"),
    "a true label that is no class": (
        "f.csv", f"text,label,true_label\n{SECRET},good,bda\n", None, "{F}:2: label 'bda' is not a class of this model (did you mean 'bad'?)",
    ),
    "columns of other names": (
        "f.csv", f"utterance,intent\n{SECRET} one,good\n{SECRET} two,good\n", None,
        "(utterance, intent), and no text; add --columns text=utterance,label=intent",
    ),
    "names that say nothing": (
        "f.csv", f"a,b,c\n1,{SECRET} one,good\n2,{SECRET} two,good\n3,{SECRET} three,bad\n", None,
        "(a, b, c), and no text; add --columns text=b,label=c",
    ),
    "a pair of other names": (
        "f.tsv", f"index\tpremise\thypothesis\n1\t{SECRET}\tx\n", None,
        "{F}: has an index column, which counts rows of --data; "
        "give --data, or if it holds texts add --columns text=premise,text_pair=hypothesis",
    ),
    "pairs of other names": (
        "f.tsv", f"premise\thypothesis\tgold_label\n{SECRET}\tx\tgood\n", None,
        "add --columns text=premise,text_pair=hypothesis,label=gold_label",
    ),
    "a misspelt column": ("f.csv", f"txt,label\n{SECRET},good\n", None, "(txt, label), and no text; add --columns text=txt"),
    "no header": (
        "f.csv", f"{SECRET} and it is written here one,good\n{SECRET} two,good\n{SECRET} three,bad\n", None,
        "(2 fields, and the first line looks like a row, not a header), and no text; add --columns text=1,label=2",
    ),
    "a column that is not there": (
        "f.csv", f"text,category\n{SECRET},good\n", "label=categori",
        "{F}: has no column 'categori', which --columns names as its label (did you mean 'category'?); it has text, category",
    ),
    "a position beyond the row": (
        "f.csv", f"1,{SECRET}\n", "label=1,text=3", "{F}:1: --columns: text=3, and the first row has 2 fields; count from 1",
    ),
    "a header twice": ("f.csv", f"text,label,text\n{SECRET},good,x\n", None, "{F}:1: column 'text' stands twice in the header; remove one"),
    "a field too many": (
        "f.csv", GOOD + f"{SECRET}, and more,bad\n", None, "{F}:3: has 3 fields, the header 2; quote fields that hold ','",
    ),
    "a field too few": (
        "f.csv", GOOD + f"{SECRET}\nrest of it,bad\n", None,
        "{F}:3: has 1 fields, the header 2: 'label' is not among them; quote texts that hold line ends, or fill the row in",
    ),
    "a quote inside quotes": (
        "f.csv", GOOD + f'"he said "{SECRET}" to me",bad\n', None, "{F}:3: cannot be split into fields (',' expected after",
    ),
    "an unclosed quote": (
        "f.csv", GOOD + f'"{SECRET},bad\nx,good\n', None,
        "{F}:3: cannot be split into fields (unexpected end of data); a quote that opens there is not closed",
    ),
    "a gigantic field": (
        "f.csv", GOOD + f'"{SECRET}{"x" * 140_000}",bad\n', None,
        "{F}:3: cannot be split into fields (field larger than field limit (131072)); a quote that opens there is not closed, or a text",
    ),
    "semicolons": ("f.csv", f"text;label\n{SECRET};good\n", None, "{F}:1: the header looks separated by ';' or tabs; use commas"),
    "tabs in a .csv": ("f.csv", f"text\tlabel\n{SECRET}\tgood\n", None, "{F}:1: the header looks separated by ';' or tabs; use commas, or name"),
    "commas in a .tsv": ("f.tsv", f"text,label\n{SECRET},good\n", None, "{F}:1: the header looks separated by commas or ';'; use tabs, or name"),
    "UTF-16": ("f.csv", GOOD.encode("utf-16"), None, "{F}: is UTF-16; save it as UTF-8, such as with iconv -f UTF-16 -t UTF-8 {F} > OUT"),
    "UTF-16 without its mark": ("f.csv", GOOD.encode("utf-16-le"), None, "{F}: is UTF-16LE; save it as UTF-8, such as with iconv"),
    "UTF-32": ("f.csv", GOOD.encode("utf-32"), None, "{F}: is UTF-32; save it as UTF-8"),
    "Latin-1": (
        "f.csv", (GOOD + "schön,bad\n").encode("latin-1"), None,
        "{F}:3: not UTF-8 (byte 0xf6), probably Latin-1 (ISO-8859-1); save it as UTF-8, such as with iconv -f ISO-8859-1 -t UTF-8 {F}",
    ),
    "Windows-1252": (
        "f.csv", (GOOD + "it’s “so”,bad\n").encode("cp1252"), None, "{F}:3: not UTF-8 (byte 0x92), probably Windows-1252; save it as UTF-8",
    ),
    "a cut character": ("f.csv", GOOD.encode() + "x🙂".encode()[:-1], None, "{F}:3: not UTF-8 (byte 0xf0)"),
    "JSON lines called .csv": (
        "f.csv", json.dumps({"label": "good", "text": SECRET}), None, "{F}:1: begins as JSON lines do; name the file .jsonl",
    ),
    "a table called .jsonl": (
        "f.jsonl", GOOD, None, "{F}: no line of it is a JSON object; name it as what it is, such as .csv or .tsv, or write one object a line",
    ),
    "objects over several lines": (
        "f.jsonl", (json.dumps({"text": SECRET, "label": "good"}, indent=1) + "\n") * 2, None,
        "{F}: its objects go over several lines; write one object a line (jq -c . {F} > OUT.jsonl)",
    ),
    "a web page": ("f.csv", f"<!DOCTYPE html>\n<html>{SECRET}</html>", None, "{F}: is a web page, not a list; download the file itself"),
    "nothing but NULs": ("f.jsonl", b"\0" * 300, None, "{F}: is nothing but NULs, not a list; it was not written to its end, copy it again"),
    "a NUL": ("f.csv", GOOD + f"{SECRET}\0,bad\n", None, "{F}:3: the text holds a NUL, which no text does; export the file again"),
    "a NUL in JSON": (
        "f.jsonl", json.dumps({"text": SECRET + "\0", "label": "good"}), None, "{F}:1: no JSON object of plain values ('text' holds a NUL)",
    ),
    "half a character": (
        "f.jsonl", json.dumps({"text": SECRET + "\ud83d", "label": "good"}), None,
        "{F}:1: no JSON object of plain values ('text' holds half a character (a lone surrogate)); write one object a line",
    ),
    "a line that is no object": (
        "f.jsonl", json.dumps({"text": SECRET, "label": "good"}) + f'\n"{SECRET}"\n', None,
        "{F}:2: no JSON object of plain values (a str); write one object a line",
    ),
    "a broken line": (
        "f.jsonl", json.dumps({"text": SECRET, "label": "good"}) + f'\n{{"text": "{SECRET}", "label": go}}\n', None,
        "{F}:2: no JSON object of plain values (Expecting value at character 40); write one object a line",
    ),
    "a key twice": (
        "f.jsonl", f'{{"text": "{SECRET}", "text": "b", "label": "good"}}', None,
        "{F}:1: no JSON object of plain values (the key 'text' stands twice); write one object a line",
    ),
    "a key twice in other letters": (
        "f.jsonl", f'{{"text": "{SECRET}", "Text": "b", "label": "good"}}', None, "(the key 'text' stands twice)",
    ),
    "a list of objects": (
        "f.json", json.dumps([{"text": SECRET, "label": "good"}]), None,
        "{F}: is one JSON list, not lines of objects; write one object a line (jq -c '.[]' {F} > OUT.jsonl)",
    ),
    "an object of lists": (
        "f.json", json.dumps({"train": [[SECRET, "good"]] * 2, "val": []}, indent=1), None,
        "{F}: is one JSON object with 'train', 'val', not lines of samples; write each list of it as lines of objects",
    ),
    "line ends of CR in JSON": (
        "f.jsonl", f'{{"text": "{SECRET}", "label": "good"}}\r{{"text": "b", "label": "good"}}\r', None,
        "{F}: its lines end in CR alone; write it with LF",
    ),
    "a number for a text": (
        "f.jsonl", '{"text": 4711, "label": "good"}', None, "{F}:1: 'text' is a number, not a text; write it in quotes, or take the row out",
    ),
    "null for a text": ("f.jsonl", '{"text": null, "label": "good"}', None, "{F}:1: 'text' is null, not a text; write it"),
    "a list for a text": ("f.jsonl", json.dumps({"text": [SECRET], "label": "good"}), None, "{F}:1: 'text' is a list, not a text"),
    "an object for a text": ("f.jsonl", json.dumps({"text": {"en": SECRET}, "label": "good"}), None, "{F}:1: 'text' is an object, not a text"),
    "several labels": ("f.jsonl", json.dumps({"text": SECRET, "label": ["x"]}), None, "{F}:1: no JSON object of plain values ('label' is"),
    "a .gz": ("f.csv.gz", gzip.compress(GOOD.encode()), None, "{F}: is packed with gzip, not a list; unpack it: gzip -dk {F}"),
    "a .gz of another name": ("f.csv", gzip.compress(GOOD.encode()), None, "{F}: is packed with gzip, not a list; unpack it"),
    "an .xlsx": ("f.xlsx", zipped(GOOD), None, "{F}: is a zip archive, as .xlsx, .ods and .zip are, not a list; unpack it, or save"),
    "a .parquet": ("f.parquet", b"PAR1\x15\x04", None, "{F}: is a Parquet file, not a list; write it as JSON lines: pandas.read_parquet({F})"),
    "an .arrow": ("f.arrow", b"ARROW1\0\0", None, "{F}: is an Arrow file, not a list; write it as JSON lines"),
    "a pickle": ("f.pkl", b"\x80\x04\x95", None, "{F}: is a pickle, not a list; write it as CSV: a pickle can run code"),
    "a Git LFS pointer": ("f.csv", b"version https://git-lfs.github.com/spec/v1\n", None, "{F}: is a Git LFS pointer, not a list; get it"),
    "a .txt": ("f.txt", SECRET, None, "{F}: no kind of list; name it .csv, .tsv or .jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_list_is_refused_with_its_line_and_a_remedy(tmp_path: Path, kind: str) -> None:
    """And with nothing of anybody's text."""
    name, content, columns, said = WRONG[kind]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    message = refusal(lambda: load_forget(str(path), None, None, MOODS, names=ColumnNames.parse(columns)))
    assert said.replace("{F}", str(path)) in message
    assert ";" in message or "did you mean" in message or "ids are 0 to 1" in message or "classes are" in message
    assert "0151" not in message


def test_texts_in_the_column_of_labels_are_no_names(tmp_path: Path) -> None:
    """Neither where none of them is a class of the model, nor where a class of the data is looked for."""
    (tmp_path / "d.csv").write_text(f"text,label\ngood,{SECRET} and you know it\nbad,{SECRET} and I know it\n")
    data = open_source(str(tmp_path / "d.csv"), "data")
    said = refusal(lambda: load_forget("index=0", data, None, MOODS))
    assert (
        "its classes (one of 33 characters, one of 31 characters) are other names than the model's ('bad', 'good', from the model)"
        in said
    )
    said += refusal(lambda: select_rows(data, ["class=fine"]))
    assert "0151" not in said


def as_data(path: Path) -> Callable[[], object]:
    return lambda: open_source(str(path), "data")


@pytest.mark.parametrize(
    "kind", [kind for kind in WRONG if not any(word in kind for word in ("label", "weight", "id beyond"))]
)
def test_wrong_data_is_refused_as_a_wrong_list_is(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by a command, with exit code 2 and nothing written."""
    name, content, columns, _ = WRONG[kind]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    option = ["--columns", columns] if columns else []
    assert main(["select", "index=0", "--data", str(path), "-o", str(tmp_path / "out.csv"), *option]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"imu: {path}")
    assert "0151" not in said
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """In the order of lines, whatever found it."""
    (tmp_path / "f.csv").write_text(
        f'text,label,weight\n,good,1\n{SECRET},goood,1\n"a"b,good,1\n{SECRET} 2,bad,-1\n{SECRET} 3\n{SECRET} 4,,1\n{SECRET},a,b,c\n'
    )
    with pytest.raises(InvalidRowsError) as caught:
        load_forget(str(tmp_path / "f.csv"), None, None, MOODS)
    lines = [int(text.removeprefix(f"{tmp_path}/f.csv:").split(":")[0]) for text in caught.value.problems]
    assert lines == sorted(lines)
    assert set(lines) == {2, 3, 4, 5, 6, 7, 8}


def test_data_without_labels_says_which_column_has_them(tmp_path: Path) -> None:
    """Where one looks like it; else they are not known, and that is told where they are needed."""
    (tmp_path / "train.csv").write_text("text,category\none text,good\nanother text,good\n")
    assert refusal(as_data(tmp_path / "train.csv")) == (
        f"{tmp_path}/train.csv: has no label column (it has text, category); add --columns label=category"
    )
    (tmp_path / "bare.csv").write_text("text\none text\nanother text\n")
    assert len(open_source(str(tmp_path / "bare.csv"), "data")) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "text\nOne  TEXT\n",
            ":2: no row of {D} has exactly this text ({D}:2 has it but for capitals or spaces); correct it",
        ),
        (f"text\n{SECRET}\n", ":2: no row of {D} has exactly this text; correct it, or take the row out"),
        ("text,text_pair\none text,b\n", ": holds pairs, and {D} single texts; name its rows by index, or give both"),
        ("id\n4712\n", ":2: no row of {D} has the id '4712' (did you mean '4711'?); correct it"),
        ("id,label\n,good\n", ":2: the id is empty; write it, or take the row out"),
        ("index\n2\n", ":2: index 2 is out of range; {D} has the rows 0 to 1"),
        (
            "index,text\n0,another text\n",
            ":2: its text is not that of row 0 of {D} ({D}:2); correct one, or leave the text out",
        ),
        ("file_name,label\na.png,good\n", ": names files, and {D} holds texts; name its rows by index, id or text"),
        ("label\ngood\n", ": has neither a file_name nor an index column in its header (label), and no text"),
    ],
)
def test_a_list_that_points_to_nothing_in_the_data_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """With the line, and the data's line that may have been meant."""
    data, path = tmp_path / "train.csv", tmp_path / "f.csv"
    data.write_text("text,label,id\none text,good,4711\nanother text,bad,1\n")
    path.write_text(text)
    message = refusal(lambda: load_forget(str(path), open_source(str(data), "data"), None, MOODS))
    assert message.startswith(str(path) + said.replace("{D}", str(data)))


def test_texts_do_not_point_into_images(tmp_path: Path) -> None:
    """A list of texts with a data set of images is said to be one; a list of ids without data asks for it."""
    images = SampleSet(
        "toy", ["0", "1"], [0, 1], MOODS.names, Pixels("toy", np.zeros((2, 4, 4, 3), np.uint8)), range(2)
    )
    (tmp_path / "f.csv").write_text(GOOD)
    said = refusal(lambda: load_forget(str(tmp_path / "f.csv"), images, None, MOODS))
    assert "f.csv: holds texts, and toy does not; give the texts' own --data, or leave it out" in said
    (tmp_path / "f.csv").write_text("id\n5\n")
    said = refusal(lambda: load_forget(str(tmp_path / "f.csv"), None, None, MOODS))
    assert "f.csv: names rows of --data by their id; give --data" in said
    said = refusal(lambda: load_forget(str(tmp_path / "f.csv"), images, None, MOODS))
    assert "f.csv: names rows by id, and toy has no column of that name" in said


def test_ids_beside_texts_of_another_name(tmp_path: Path) -> None:
    """A data set's ids point into nothing; a test list's do not stand for rows of ``--data`` where it likely has texts of its own."""
    (tmp_path / "data.csv").write_text("text,label,id\nsome words of mine,good,1\nand more of them here,bad,2\n")
    (tmp_path / "test.csv").write_text("utterance,category,id\nother words of mine,good,1\nand others of them,bad,2\n")
    said = refusal(lambda: open_source(str(tmp_path / "test.csv"), "data"))
    assert "--columns text=utterance,label=category" in said
    assert "by their id" not in said
    data = open_source(str(tmp_path / "data.csv"), "data")
    said = refusal(lambda: open_source(str(tmp_path / "test.csv"), "test", data))
    assert "would name rows of" in said
    assert "add --columns text=utterance,label=category, else leave those columns out" in said
    (tmp_path / "test.csv").write_text("id\n2\n")
    assert [*open_source(str(tmp_path / "test.csv"), "test", data).names] == ["1"]


def test_a_folder_of_lists_is_no_list(tmp_path: Path) -> None:
    """The list in it is proposed."""
    (tmp_path / "train.csv").write_text(GOOD)
    assert refusal(as_data(tmp_path)).endswith(f"; did you mean {tmp_path}/train.csv?")


@pytest.mark.parametrize("content", ["{}", "{}\n{}\n", "{ }\n\n{}"])
def test_objects_that_hold_nothing(content: str, tmp_path: Path) -> None:
    """One message for the file, and no rows."""
    path = tmp_path / "f.jsonl"
    path.write_text(content)
    with pytest.raises(InvalidRowsError, match=r"f\.jsonl: its objects are empty; write what each sample is"):
        open_source(str(path), "data")


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=60), st.text('text,label id"0;{}:[]\t\r1\n\0é', max_size=60).map(lambda text: text.encode())
    ),
    columns=st.sampled_from([None, "text=2,label=1", "text=a,label=b", "text=text,text_pair=label"]),
)
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_any_bytes_are_texts_or_an_error(tmp_path: Path, content: bytes, columns: str | None, form: str) -> None:
    """Nothing in a list raises anything but an ImuError with a message, alone or with data."""
    data, path, names = tmp_path / "d.csv", tmp_path / f"f.{form}", ColumnNames.parse(columns)
    data.write_text("text,label,id\none text,good,4711\nanother text,bad,1\n")
    for prefix in (
        b"",
        b"text,label\na,good\n",
        b"id\n",
        b"text\tlabel\na\tgood\n",
        b'{"text": "a", "label": "good"}\n',
    ):
        path.write_bytes(prefix + content)
        for points in (None, open_source(str(data), "data")):
            message = refusal(partial(load_forget, str(path), points, None, MOODS, None, names))
            assert message == "" or message.startswith(str(path))
        message = refusal(partial(open_source, str(path), "data", None, None, names))
        assert message == "" or message.startswith(str(path))
