import io
import json
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from conftest import refusal
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.samples.classes import ClassNames
from imu_cli.samples.csv_lines import manifest_text, write_manifest
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.forget import ForgetSet
from imu_cli.samples.images.folders import open_folder
from imu_cli.samples.images.stores import Files, Pixels
from imu_cli.samples.manifest import load_forget, open_source, peek
from imu_cli.samples.overlap import overlap
from imu_cli.samples.selectors import select_rows

PETS = ClassNames(3, ("cat", "dog", "hen"), "the model")
NAMELESS = ClassNames(3, None, "not known")


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """(height, width) or (height, width, 3)."""
    return np.asarray(image)


def draw(path: Path, number: int) -> None:
    """Write an image that no other number gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Class folders cat, dog and hen with three different images each, at pets/CLASS/NUMBER.png."""
    for label, name in enumerate(("cat", "dog", "hen")):
        for number in range(3):
            draw(tmp_path / "pets" / name / f"{number}.png", 10 * label + number)
    return tmp_path / "pets"


def array(labels: list[int], classes: tuple[str, ...] | None = PETS.names) -> SampleSet:
    """A data set without files."""
    values = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4, 3), dtype=np.uint8)
    names = [str(row) for row in range(len(labels))]
    return SampleSet("toy", names, labels, classes, Pixels("toy:/t#train", values), range(len(labels)))


def load(
    folder: Path,
    text: str | bytes,
    data: SampleSet | None = None,
    classes: ClassNames = PETS,
    form: str = "csv",
    label: str | None = None,
) -> ForgetSet:
    """Write a list into the folder and load it."""
    path = folder / f"forget.{form}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_forget(str(path), data, label, classes)


def problems(
    folder: Path, text: str | bytes, data: SampleSet | None = None, classes: ClassNames = PETS, form: str = "csv"
) -> list[str]:
    """What is said of a wrong list, without the folder it lies in."""
    with pytest.raises(InvalidRowsError) as caught:
        load(folder, text, data, classes, form)
    return [text.replace(f"{folder}/", "") for text in caught.value.problems]


# --- lists that are right


@pytest.mark.parametrize("column", ["file_name", "path", "filepath", "image", " File_Name "])
def test_a_list_of_files_is_read_in_its_order(pets: Path, column: str) -> None:
    """Rows keep their order, labels are names or ids, where names line and file, and each alias will do."""
    forget = load(pets, f"{column},label\nhen/1.png,hen\ncat/0.png,0\n./cat//2.png, cat\n")
    assert list(forget.samples.names) == ["hen/1.png", "cat/0.png", "cat/2.png"]
    assert list(forget.labels) == [2, 0, 0]
    assert forget.lines == (2, 3, 4)
    assert forget.where(1) == f"{pets}/forget.csv:3: {pets}/cat/0.png"
    assert np.array_equal(pixels(forget.samples.read(0)), pixels(Image.open(pets / "hen/1.png")))
    assert forget.whole_classes is None
    assert (forget.notes, forget.duplicates, forget.weights, forget.ids) == ((), (), None, None)


def test_the_optional_columns_are_kept(pets: Path) -> None:
    """id, group and reason as text, weight as number (1 where empty), true_label as a class (UNKNOWN where empty)."""
    forget = load(
        pets,
        "file_name,label,id,group,weight,reason,true_label\n"
        "cat/0.png,dog,4711,a,0.5,asked,cat\n"
        "cat/1.png,dog,,b,,\"wrong, \nvery\",\n",
    )  # fmt: skip
    assert forget.ids == ["4711", ""]
    assert forget.groups == ["a", "b"]
    assert forget.reasons == ["asked", "wrong, \nvery"]
    assert forget.weights == (0.5, 1.0)
    assert forget.true_labels == (0, UNKNOWN)


def test_csv_tsv_jsonl_and_standard_input_say_the_same(pets: Path) -> None:
    """One forget set in four forms: the same rows, labels, ids and content hash."""
    rows = [("cat/0.png", "cat", "7"), ("hen/2.png", "2", "")]
    header = ("file_name", "label", "id")
    csv = "".join(",".join(row) + "\r\n" for row in (header, *rows))
    tsv = "\ufeff" + "".join("\t".join(row) + "\n" for row in (header, *rows))
    jsonl = "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n\n" for row in rows)
    ints = '{"file_name": "cat/0.png", "label": 0, "id": 7}\n{"label": 2, "file_name": "hen/2.png", "id": null}'
    sets = [
        load(pets, text, form=form) for text, form in ((csv, "csv"), (tsv, "tsv"), (jsonl, "jsonl"), (ints, "jsonl"))
    ]
    data = open_folder(pets)
    sets += [load_forget("-", data, None, PETS, io.BytesIO(text.encode())) for text in (csv, tsv, jsonl, ints)]
    assert {(tuple(one.samples.names), tuple(one.labels), tuple(one.ids or ()), one.sha256) for one in sets} == {
        (("cat/0.png", "hen/2.png"), (0, 2), ("7", ""), sets[0].sha256)
    }
    assert sets[4].where(1) == f"stdin:3: {pets}/hen/2.png"
    assert sets[0].manifest_sha256 == sha256(csv.encode()).hexdigest()
    assert sets[0].manifest == pets / "forget.csv"
    assert sets[4].manifest is None


def test_the_content_hash_is_of_names_labels_and_bytes_in_order(pets: Path) -> None:
    """Another order, label, name or content gives another hash; another spelling of the list does not."""
    base = load(pets, "file_name,label\ncat/0.png,cat\ndog/0.png,dog\n").sha256
    assert load(pets, "label,id,file_name\n0,x,./cat/0.png\n1,y,dog/0.png\n").sha256 == base
    others = [
        load(pets, "file_name,label\ndog/0.png,dog\ncat/0.png,cat\n").sha256,
        load(pets, "file_name,label\ncat/0.png,cat\ndog/0.png,hen\n").sha256,
        load(pets, "file_name,label\ncat/0.png,cat\ndog/1.png,dog\n").sha256,
    ]
    draw(pets / "dog/0.png", 99)
    others.append(load(pets, "file_name,label\ncat/0.png,cat\ndog/0.png,dog\n").sha256)
    assert len({base, *others}) == 5


def test_names_are_relative_to_the_data_set_or_else_to_the_list(pets: Path, tmp_path: Path) -> None:
    """With --data the list may lie anywhere, and a label the list does not give is the data set's."""
    (tmp_path / "lists").mkdir()
    forget = load(tmp_path / "lists", "file_name\ndog/1.png\n", open_folder(pets))
    assert list(forget.labels) == [1]
    assert problems(tmp_path / "lists", "file_name,label\ndog/1.png,dog\n") == [
        "forget.csv:2: dog/1.png is missing; correct the name or take the row out"
    ]
    said = problems(pets, "file_name\npets.csv\nforget.csv\n", open_folder(pets / "dog"))
    assert "forget.csv exists; names are relative to --data if that is given" in said[1]


def test_an_index_is_a_row_of_the_data_set(pets: Path) -> None:
    """For arrays and folders alike, with the data set's label unless the list gives another."""
    forget = load(pets, "index,label\n4,\n0,hen\n", array([0, 1, 2, 0, 1]))
    assert list(forget.samples.names) == ["4", "0"]
    assert list(forget.labels) == [1, 2]
    assert forget.samples.location(0) == "toy:/t#train:4"
    assert load(pets, "index\n5\n", open_folder(pets)).samples.names == ["dog/2.png"]


def test_labels_map_through_the_models_classes(pets: Path) -> None:
    """The data set's own numbering is of no interest: with the model's names, cat of a two-class folder is id 2."""
    classes = ClassNames(4, ("hen", "cow", "cat", "dog"), "the model")
    forget = load(pets, "file_name,label\ncat/0.png,\nhen/0.png,hen\ndog/1.png,3\n", open_folder(pets), classes)
    assert list(forget.labels) == [2, 0, 3]


def test_relabelled_rows_are_taken_and_counted(pets: Path) -> None:
    """Mislabelled data is listed with the label it was trained on: accepted, noted, counted."""
    forget = load(pets, "file_name,label\ncat/0.png,dog\ncat/1.png,cat\ncat/2.png,1\n", open_folder(pets))
    assert list(forget.labels) == [1, 0, 1]
    assert forget.relabelled == 2
    assert "2 labels differ from those of --data; the list's are used" in forget.notes[0]


def test_repeated_rows_are_a_note_and_count(pets: Path) -> None:
    """The same file, or a copy of it, with the same label: kept, each named, and summed up in one note."""
    (pets / "cat/copy.png").write_bytes((pets / "cat/0.png").read_bytes())
    forget = load(pets, "file_name,label\ncat/0.png,0\ncat/1.png,0\ncat/copy.png,0\n./cat/0.png,0\n")
    assert len(forget) == 4
    assert [text.split(": ")[0][-4:] for text in forget.duplicates] == ["sv:4", "sv:5"]
    assert f"the same image as {pets}/forget.csv:2" in forget.duplicates[1]
    assert len(forget.notes) == 1
    assert "2 rows repeat an image and its label; each counts" in forget.notes[0]


def test_unknown_columns_are_one_note_with_the_nearest_names(pets: Path) -> None:
    """A misspelt weight is not silently no weight."""
    forget = load(pets, "file_name,label,wieght,colour\ncat/0.png,cat,2,red\n")
    assert len(forget.notes) == 1
    assert "'wieght' (did you mean 'weight'?), 'colour'" in forget.notes[0]


def test_a_name_that_reads_as_another_id_is_noted(pets: Path) -> None:
    """Classes 0, 1, 10 sort as strings: label 10 is the class named so, and the note says so."""
    classes = ClassNames(3, ("0", "1", "10"), "the model")
    assert load(pets, "file_name,label\ncat/0.png,1\n", classes=classes).notes == ()
    forget = load(pets, "file_name,label\ncat/0.png,10\n", classes=classes)
    assert list(forget.labels) == [2]
    assert "label 10 is read as the class named '10' (id 2)" in forget.notes[0]


def test_spreadsheets_are_read(pets: Path) -> None:
    """A byte order mark, CRLF, rows of empty cells and trailing cells left out are what Excel writes."""
    forget = load(pets, b'\xef\xbb\xbffile_name,label,id\r\n\r\ncat/0.png,cat\r\n,,\r\n"dog/0.png","dog",5\r\n')
    assert forget.lines == (3, 5)
    assert forget.ids == ["", "5"]


# --- lists that are wrong


def test_all_problems_are_said_at_once_in_the_order_of_lines(pets: Path) -> None:
    """Seven rows wrong in seven ways: seven problems, by physical line, though they are found at different times."""
    said = problems(
        pets,
        "file_name,label,weight,reason\n"
        "cat/0.png,dgo,1,\n"
        'cat/1.png,cat,1,"two\nlines"\n'
        "cat/9.png,cat,1,\n"
        "../secret.png,cat,1,\n"
        "dog/0.png,dog,-1,\n"
        "cat/1.png,dog,1,\n"
        "hen/0.png,7,1,\n"
        "hen/1.png,,1,\n",
    )
    assert said == [
        "forget.csv:2: label 'dgo' is not a class of this model (did you mean 'dog'?)",
        "forget.csv:5: cat/9.png is missing; correct the name or take the row out",
        f"forget.csv:6: '../secret.png' may leave the folder ('..'); write it relative to {pets}",
        "forget.csv:7: weight '-1' is not a number > 0; to leave a row out, remove it",
        "forget.csv:8: the same image has another label at forget.csv:3: cat/1.png",
        "forget.csv:9: label 7 is out of range; the model's ids are 0 to 2",
        "forget.csv:10: the label is missing: no --data is given that could know it; write the class's name or id",
    ]


def test_twenty_problems_are_shown_and_the_rest_counted(pets: Path) -> None:
    """Of 50 wrong rows the message shows 20 and says +30 more; the error keeps all."""
    with pytest.raises(InvalidRowsError) as caught:
        load(pets, "file_name,label\n" + "cat/0.png,dgo\n" * 50)
    assert len(caught.value.problems) == 50
    assert str(caught.value).splitlines()[20] == "+30 more"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/etc/passwd", "is an absolute path"),
        ("C:\\cats\\1.png", "is an absolute path"),
        ("cat/../../x.png", r"may leave the folder \('..'\)"),
        ("cat/../dog/0.png", r"may leave the folder \('..'\)"),
        ("link.png", "link.png' is a link to .*secret.png, outside"),
        ("linked/secret.png", "linked/secret.png' is a link to .*secret.png, outside"),
        ("broken.png", "is missing"),
        ("loop.png", "is missing"),
        ("cat", "cat is a folder, not an image"),
        (".", "is a folder, not an image"),
        ("pipe.png", "is no regular file"),
        ("cat/0.png\0.png", "holds a NUL"),
        ("cat\\0.png", "is missing; write / between folder names"),
        ("x" * 5000, "is missing"),
        ("   ", "the file name is empty"),
    ],
)
@pytest.mark.parametrize("with_data", [False, True])
def test_a_name_that_is_no_image_inside_the_folder_is_refused(
    pets: Path, name: str, said: str, with_data: bool
) -> None:
    """Neither dots nor links nor absolute paths lead out, and what is no regular file is named as such."""
    draw(pets.parent / "outside" / "secret.png", 50)
    data = open_folder(pets) if with_data else None
    (pets / "link.png").symlink_to(pets.parent / "outside" / "secret.png")
    (pets / "linked").symlink_to(pets.parent / "outside")
    (pets / "broken.png").symlink_to("nowhere")
    (pets / "loop.png").symlink_to("loop.png")
    os.mkfifo(pets / "pipe.png")
    found = problems(pets, json.dumps({"file_name": name, "label": "cat"}), data, form="jsonl")
    assert len(found) == 1
    assert found[0].startswith("forget.jsonl:1: ")
    with pytest.raises(InvalidRowsError, match=said):
        load(pets, json.dumps({"file_name": name, "label": "cat"}), data, form="jsonl")


def test_a_link_inside_the_folder_is_the_image_it_leads_to(pets: Path) -> None:
    """It is found in the data set, has its label, and with another label it is the same image twice."""
    data = open_folder(pets)
    (pets / "alias.png").symlink_to("dog/1.png")
    assert load(pets, "file_name\nalias.png\n", data).samples.names == ["dog/1.png"]
    assert load(pets, "file_name,label\nalias.png,dog\n").samples.location(0) == str((pets / "dog/1.png").resolve())
    assert len(problems(pets, "file_name,label\nalias.png,dog\ndog/1.png,cat\n")) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "forget.csv: holds no rows"),
        ("\n\n", "forget.csv: holds no rows"),
        ("file_name,label\n", "forget.csv: holds no rows"),
        ("label\ncat\n", "forget.csv: has neither a file_name nor an index column in its header (label)"),
        ("cat/0.png,cat\ncat/1.png,cat\n", "forget.csv: has neither a file_name nor an index column"),
        ("filename,label\ncat/0.png,cat\n", "(did you mean 'file_name'?)"),
        ("file_name,index,label\ncat/0.png,0,cat\n", "forget.csv: has the columns file_name, index; keep exactly one"),
        ("path,image,label\ncat/0.png,cat/0.png,cat\n", "has the columns path, image; keep exactly one"),
        ("file_name,label,label\ncat/0.png,cat,dog\n", "forget.csv:1: column 'label' stands twice"),
        ("index,label\n0,cat\n", "forget.csv: has an index column, which counts rows of --data; give --data"),
        ("file_name;label\ncat/0.png;cat\n", "forget.csv:1: the header looks separated by ';' or tabs"),
        ("file_name,label\ncat/0.png,cat,dog\n", "forget.csv:2: has 3 fields, the header 2"),
        ('file_name,label\n"cat/0.png,cat\ncat/1.png,cat\n', "forget.csv:2: cannot be split into fields"),
        ("file_name\ncat/0.png\ncat/1.png\n", "the class of 2 images is not known: no --data is given"),
    ],
)
def test_a_list_of_another_shape_is_refused(pets: Path, text: str, said: str) -> None:
    """Empty, headless, without or with two locators, separated otherwise, with an unclosed quote: each is named."""
    assert any(said in problem for problem in problems(pets, text))


@pytest.mark.parametrize(
    "line", ["[1]", "{", '{"file_name": ["a"]}', '{"label": true}', "7", "[" * 5000, '{"index": ' + "9" * 5000 + "}"]
)
def test_a_line_that_is_no_plain_object_is_named(pets: Path, line: str) -> None:
    """Each bad line of a .jsonl is a problem of its own, and the rows beside it are checked all the same."""
    good = '{"file_name": "cat/0.png", "label": "cat"}'
    said = problems(pets, f"{good}\n\n{line}\n" + good.replace("cat/0", "cat/9"), form="jsonl")
    assert len(said) == 2
    assert said[0].startswith("forget.jsonl:3: no JSON object of plain values")
    assert said[1].startswith("forget.jsonl:4: cat/9.png is missing")


@pytest.mark.parametrize("text", ["5", "-1", "1.0", "x", "", "9" * 30, "٣"])
def test_an_index_out_of_range_is_refused(pets: Path, text: str) -> None:
    """Neither from behind nor beyond the end, and whole numbers only; with the rows that there are."""
    said = problems(pets, f"index,label\n0,cat\n{text},cat\n", array([0, 1, 2, 0, 1]))
    assert len(said) == 1
    quoted = f"forget.csv:3: index {text}" if text in ("5", "-1") else f"forget.csv:3: index '{text}'"
    assert said[0].startswith(quoted if text else "forget.csv:3: the index is empty; write it")


@pytest.mark.parametrize("weight", ["0", "-0.5", "nan", "inf", "heavy", "1e999"])
def test_a_weight_is_a_finite_number_above_zero(pets: Path, weight: str) -> None:
    """Everything else is refused with its line."""
    said = problems(pets, f"file_name,label,weight\ncat/0.png,cat,1e-3\ncat/1.png,cat,{weight}\n")
    assert said == [f"forget.csv:3: weight '{weight}' is not a number > 0; to leave a row out, remove it"]


def test_a_row_with_a_wrong_label_is_no_contradiction_to_others(pets: Path) -> None:
    """One mistake is one problem: the image stands twice, but the first label is none at all."""
    said = problems(pets, "file_name,label\ncat/0.png,dgo\ncat/0.png,cat\n")
    assert said == ["forget.csv:2: label 'dgo' is not a class of this model (did you mean 'dog'?)"]


def test_a_wrong_true_label_is_refused_as_a_wrong_label_is(pets: Path) -> None:
    """Both columns speak of the model's classes."""
    said = problems(pets, "file_name,label,true_label\ncat/0.png,cat,dgo\n")
    assert said == ["forget.csv:2: label 'dgo' is not a class of this model (did you mean 'dog'?)"]


def test_encodings_other_than_utf_8_are_refused_with_the_line(pets: Path) -> None:
    """Latin-1 with the line of its first odd byte, UTF-16 by its mark."""
    with pytest.raises(
        ImuError, match=r"forget\.csv:3: not UTF-8 \(byte 0xe4\), probably Latin-1 .*; save it as UTF-8"
    ):
        load(pets, "file_name,label\ncat/0.png,cat\nkätzchen.png,cat\n".encode("latin1"))
    with pytest.raises(ImuError, match="is UTF-16; save it as UTF-8"):
        load(pets, "file_name,label\n".encode("utf-16"))


def test_a_label_the_data_set_knows_but_the_model_does_not_is_explained(pets: Path) -> None:
    """A missing label cannot be taken over if its class is none of the model's, or the model's names are unknown."""
    data = open_folder(pets)
    classes = ClassNames(3, ("cat", "dog", "cow"), "the model")
    said = problems(pets, "file_name\ncat/0.png\nhen/0.png\n", data, classes)
    assert len(said) == 1
    assert said[0].startswith("forget.csv:3: the label is missing: ")
    assert "label 'hen' is not a class of this model" in said[0]
    assert (
        "the model's class names are not known; give ids" in problems(pets, "file_name\ncat/0.png\n", data, NAMELESS)[0]
    )
    assert list(load(pets, "file_name,label\ncat/0.png,2\n", data, NAMELESS).labels) == [2]


def test_twins_with_two_labels_are_a_note_and_one_file_with_two_is_refused(pets: Path) -> None:
    """Real data sets hold identical images under two labels; what a selector takes, the list that it writes is taken, too."""
    (pets / "hen/copy.png").write_bytes((pets / "cat/0.png").read_bytes())
    said = problems(pets, "file_name,label\ncat/0.png,cat\ncat/0.png,hen\n")
    assert said == ["forget.csv:3: the same image has another label at forget.csv:2: cat/0.png"]
    forget = load_forget("class=cat,hen", open_folder(pets), None, PETS)
    assert len(forget) == 7
    assert forget.notes == ("class=cat,hen: 1 images have a copy with another label",)
    data = open_folder(pets)
    for text in ("file_name,label\ncat/0.png,cat\nhen/copy.png,hen\n", "file_name\ncat/0.png\nhen/copy.png\n"):
        (said,) = load(pets, text, data).notes
        assert said.endswith("forget.csv: 1 images have a copy with another label")
    written = load(pets, manifest_text(data, select_rows(data, ["class=cat,hen"])), data)
    assert list(written.labels) == list(forget.labels)


def test_a_twin_that_stays_in_the_data_set_is_said(pets: Path) -> None:
    """A sample is not forgotten while its twin is remembered; where both are listed, or no data set is given, nothing is said."""
    (pets / "cat/twin.png").write_bytes((pets / "cat/0.png").read_bytes())
    data = open_folder(pets)
    (said,) = load(pets, "file_name\ncat/0.png\ncat/1.png\n", data).notes
    assert "forget.csv: 1 forget samples have a twin (the same bytes) among the rows of --data that stay" in said
    assert not any("have a twin" in note for note in load(pets, "file_name\ncat/0.png\ncat/twin.png\n", data).notes)
    assert not any("have a twin" in note for note in load(pets, "file_name,label\ncat/0.png,cat\n").notes)


def test_an_unreadable_or_missing_list_is_an_error(pets: Path) -> None:
    """A list that is not there, one that is a folder, or a file of another kind: each says what to name."""
    with pytest.raises(ImuError, match=r"none\.csv: cannot be read \(No such file"):
        load_forget(str(pets / "none.csv"), None, None, PETS)
    (pets / "list.txt").touch()
    with pytest.raises(ImuError, match=r"list\.txt: no kind of list; name it \.csv"):
        load_forget(str(pets / "list.txt"), None, None, PETS)
    with pytest.raises(ImuError, match="nothing: no such folder"):
        load_forget(str(pets / "nothing"), None, None, PETS)


# --- physical lines

CELL = st.text(st.sampled_from('ab",\n\r;é \t'), max_size=6)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    reasons=st.lists(CELL, min_size=1, max_size=8),
    blanks=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    wrong=st.integers(0, 7),
    end=st.sampled_from(["\n", "\r\n"]),
    form=st.sampled_from(["csv", "tsv"]),
)
def test_the_line_of_a_problem_is_the_one_an_editor_shows(
    pets: Path, reasons: list[str], blanks: list[int], wrong: int, end: str, form: str
) -> None:
    """Quoted cells may hold line ends, and lines may be empty: the number still is that of the row's first line."""
    # Tabs and line ends in one quoted cell can look like rows of a table that knows no quoting.
    assume(form == "csv" or not any("\t" in reason and set("\r\n") & set(reason) for reason in reasons))
    mark, lines = {"csv": ",", "tsv": "\t"}[form], 1
    wrong %= len(reasons)
    text, expected = mark.join(("reason", "index", "label")) + end, []
    for row, reason in enumerate(reasons):
        text += end * blanks[row]
        lines = text.replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1
        expected.append(lines)
        quoted = '"' + reason.replace('"', '""') + '"'
        text += mark.join((quoted, str(row), "dgo" if row == wrong else "cat")) + end
    data = array([0] * 8)
    said = problems(pets, text, data, form=form)
    assert said == [f"forget.{form}:{expected[wrong]}: label 'dgo' is not a class of this model (did you mean 'dog'?)"]
    right = load(pets, text.replace("dgo", "cat"), data, form=form)
    assert right.lines == tuple(expected)
    assert right.reasons == reasons


def test_a_line_separator_inside_a_json_string_is_no_line(pets: Path) -> None:
    """U+2028 and U+0085 stand in JSON strings as they are; only a newline ends a line."""
    rows = [
        {"file_name": "cat/0.png", "label": "cat", "reason": "a\u2028b\u0085c"},
        {"file_name": "cat/1.png", "label": "dgo"},
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert problems(pets, text, form="jsonl")[0].startswith("forget.jsonl:2: label 'dgo'")


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=80), st.text('file_name,index label\n"0;{}:[]\t\r1', max_size=60).map(str.encode)
    )
)
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_any_bytes_are_a_list_or_an_error(pets: Path, content: bytes, form: str) -> None:
    """Nothing in a list raises anything but an ImuError with a message."""
    for prefix in (b"", b"index,label\n0,cat\n", b'{"index": 0, "label": "cat"}\n'):
        (pets / f"forget.{form}").write_bytes(prefix + content)
        message = refusal(lambda: load_forget(str(pets / f"forget.{form}"), array([0] * 3), None, PETS))
        assert message == "" or message.startswith(str(pets / f"forget.{form}"))


# --- whole classes


def test_whole_classes_are_proven_by_the_data_set(pets: Path) -> None:
    """Every row of every label listed, no more and no less; without --data nobody knows."""
    data = open_folder(pets)
    cats = "".join(f"cat/{i}.png\n" for i in range(3))
    assert load(pets, "file_name\n" + cats, data).whole_classes is True
    assert load(pets, "file_name\n" + cats + "dog/0.png\n", data).whole_classes is False
    assert load(pets, "file_name\ncat/0.png\ncat/2.png\n", data).whole_classes is False
    assert load(pets, "file_name\ncat/0.png\ncat/2.png\ncat/2.png\n", data).whole_classes is False
    assert load(pets, "file_name,label\n" + cats.replace("\n", ",cat\n")).whole_classes is None
    assert load_forget(["class=cat", "class=hen"], data, None, PETS).whole_classes is True
    assert load_forget("index=0:2", data, None, PETS).whole_classes is False
    assert load_forget("index=0:3", data, None, PETS).whole_classes is True


def test_copies_of_all_rows_of_a_class_are_the_whole_class(pets: Path, tmp_path: Path) -> None:
    """A forget folder beside the data set that holds the same images by content is the class; one short is not."""
    data = open_folder(pets)
    for number in range(3):
        (tmp_path / "gone").mkdir(exist_ok=True)
        (tmp_path / "gone" / f"x{number}.png").write_bytes((pets / "dog" / f"{number}.png").read_bytes())
    assert load_forget(str(tmp_path / "gone"), data, "dog", PETS).whole_classes is True
    draw(tmp_path / "gone" / "x1.png", 71)
    assert load_forget(str(tmp_path / "gone"), data, "dog", PETS).whole_classes is False
    (tmp_path / "gone" / "x1.png").unlink()
    assert load_forget(str(tmp_path / "gone"), data, "dog", PETS).whole_classes is False


def test_a_label_without_any_row_in_the_data_set_is_no_whole_class(pets: Path, tmp_path: Path) -> None:
    """Nothing listed of nothing is not proof: the data set must hold the class."""
    draw(tmp_path / "anna" / "1.png", 70)
    classes = ClassNames(4, ("cat", "dog", "hen", "anna"), "the model")
    assert load_forget(str(tmp_path / "anna"), open_folder(pets), "anna", classes).whole_classes is False


# --- folders and selectors


def test_a_folder_of_photos_takes_the_label_it_is_given(tmp_path: Path) -> None:
    """All images at any depth, whatever the sub-folders are called, and other files are noted."""
    for number, name in enumerate(("b.png", "2019/a.png", "cat/c.png")):
        draw(tmp_path / "anna" / name, number)
    (tmp_path / "anna" / "d.heic").touch()
    forget = load_forget(str(tmp_path / "anna"), None, "dog", PETS)
    assert list(forget.samples.names) == ["b.png", "2019/a.png", "cat/c.png"]
    assert list(forget.labels) == [1, 1, 1]
    assert (forget.lines, forget.manifest, forget.whole_classes) == (None, None, None)
    assert forget.description == f"{tmp_path}/anna as dog"
    assert "d.heic" in forget.notes[0]
    with pytest.raises(ImuError, match="--label: label 'dgo' is not a class"):
        load_forget(str(tmp_path / "anna"), None, "dgo", PETS)


def test_a_folder_with_class_folders_is_mapped_by_name(pets: Path, tmp_path: Path) -> None:
    """Two of three classes: dog and hen stay 1 and 2; a class that the model lacks is refused."""
    for name in ("hen", "dog"):
        draw(tmp_path / "gone" / name / "1.png", 5 + len(name) * ord(name[0]))
    assert list(load_forget(str(tmp_path / "gone"), None, None, PETS).labels) == [1, 2]
    draw(tmp_path / "gone" / "cow" / "1.png", 80)
    with pytest.raises(InvalidRowsError, match="label 'cow' is not a class of this model"):
        load_forget(str(tmp_path / "gone"), None, None, PETS)


def test_a_part_of_the_data_set_knows_its_labels(pets: Path, tmp_path: Path) -> None:
    """--forget train/hen --data train needs no label; a folder that nobody knows does, in one sentence."""
    data = open_folder(pets)
    forget = load_forget(str(pets / "hen"), data, None, PETS)
    assert list(forget.labels) == [2, 2, 2]
    assert forget.whole_classes is True
    for number in range(3):
        draw(tmp_path / "new" / f"{number}.png", 90 + number)
    with pytest.raises(
        InvalidRowsError, match=r"^.*new: the class of 3 images is not known: .*does not know it; give --label"
    ) as caught:
        load_forget(str(tmp_path / "new"), data, None, PETS)
    assert len(caught.value.problems) == 1


def test_a_label_for_a_list_is_for_one_without_labels(pets: Path) -> None:
    """--label fills a list that has none; with labels in the list the two contradict each other."""
    assert list(load(pets, "file_name\ncat/0.png\ndog/0.png\n", label="hen").labels) == [2, 2]
    assert list(load(pets, "file_name,label\ncat/0.png,\n", label="hen").labels) == [2]
    with pytest.raises(ImuError, match="has labels of its own; remove --label"):
        load(pets, "file_name,label\ncat/0.png,\ndog/0.png,dog\n", label="hen")


def test_selectors_take_rows_and_labels_of_the_data_set(pets: Path) -> None:
    """class=, index= and repetition; without --data, or with --label, they make no sense."""
    data = open_folder(pets)
    forget = load_forget(["class=hen", "class=cat"], data, None, PETS)
    assert list(forget.labels) == [0, 0, 0, 2, 2, 2]
    assert forget.description == "class=hen class=cat"
    assert list(load_forget(["index=7,0"], data, None, PETS).labels) == [2, 0]
    with pytest.raises(ImuError, match="class=hen: selects rows of --data; give --data"):
        load_forget("class=hen", None, None, PETS)
    with pytest.raises(ImuError, match="--label dog: selectors take the labels of --data"):
        load_forget("class=hen", data, "dog", PETS)
    with pytest.raises(InvalidRowsError) as caught:
        load_forget("index=:", data, None, NAMELESS)
    assert len(caught.value.problems) == 3
    assert caught.value.problems[0] == (
        f"index=:: the class of 3 images is not known: {pets}: label 'cat': "
        "the model's class names are not known; give ids, or --classes FILE"
    )


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ([], "nothing is named"),
        (["a.csv", "b.csv"], "only selectors can be repeated"),
        (["class=cat", "a.csv"], "only selectors can be repeated"),
        (["clas=cat"], r"no selector 'clas' \(did you mean 'class'\?\)"),
    ],
)
def test_what_cannot_be_forgotten_together_is_refused(pets: Path, spec: list[str], said: str) -> None:
    """One list, one folder or any number of selectors."""
    with pytest.raises(ImuError, match=said):
        load_forget(spec, open_folder(pets), None, PETS)


def test_an_array_data_set_is_selected_and_forgotten() -> None:
    """Without any file: rows of the array, its labels, whole classes and all."""
    forget = load_forget("class=dog", array([0, 1, 2, 0, 1]), None, PETS)
    assert (list(forget.samples.names), list(forget.labels), forget.whole_classes) == (["1", "4"], [1, 1], True)


# --- before the classes are known


def test_a_peek_needs_no_classes_and_can_be_followed_by_the_whole(pets: Path) -> None:
    """The first images that can be found, whatever the labels; standard input is still there afterwards."""
    text = b"file_name,label\nno.png,cat\ncat/0.png,nonsense\ncat/1.png,cat\ncat/2.png,cat\n"
    (pets / "forget.csv").write_bytes(text)
    assert peek(str(pets / "forget.csv"), None, 2).names == ["cat/0.png", "cat/1.png"]
    assert peek([str(pets / "cat")], None, 2).names == ["0.png", "1.png"]
    assert list(peek(str(pets), None, 99).names) == open_folder(pets).names
    assert peek("class=dog", open_folder(pets), 4).names == open_folder(pets).names[:4]
    with pytest.raises(ImuError, match="class=dog: selects rows of --data"):
        peek("class=dog", None, 4)
    (pets / "forget.csv").write_bytes(b"file_name,label\nno.png,cat\n")
    with pytest.raises(InvalidRowsError, match=r"forget\.csv:2: .*no\.png is missing"):
        peek(str(pets / "forget.csv"), None, 2)


def test_standard_input_is_read_once_for_both_looks(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peek and the loading see the same rows of a stream that can be read only once."""
    monkeypatch.chdir(pets)
    stream = io.BytesIO(b"file_name,label\ncat/0.png,cat\ndog/0.png,dog\n")
    assert len(peek("-", None, 16, stream)) == 2
    assert list(load_forget("-", None, None, PETS, stream).labels) == [0, 1]
    assert open_source("-", "data", stdin=stream).names == ["cat/0.png", "dog/0.png"]
    assert load_forget("-", None, None, PETS, stream).where(1) == "stdin:3: dog/0.png"


# --- lists as data sets


def test_a_list_is_a_data_set(pets: Path) -> None:
    """Names sorted as strings, ids kept for selectors, and no order of classes that a model could take over."""
    (pets / "all.csv").write_text("file_name,label,id\nhen/0.png,hen,7\ncat/0.png,cat,8\ncat/1.png,,7\n")
    data = open_source(str(pets / "all.csv"), "data")
    assert data.classes == ("cat", "hen")
    assert list(data.labels) == [1, 0, UNKNOWN]
    assert data.class_order is None
    assert list(select_rows(data, ["id=7"])) == [0, 2]
    assert load_forget("id=8", data, None, PETS).ids == ["8"]
    assert list(load_forget("class=hen", data, None, PETS).labels) == [2]
    assert data.where(0) == f"{pets}/all.csv:2: {pets}/hen/0.png"


def test_a_list_of_ids_is_a_data_set_without_names(pets: Path) -> None:
    """Bare numbers are the model's ids as they are."""
    (pets / "all.tsv").write_text("image\tlabel\nhen/0.png\t2\ncat/0.png\t0\n")
    data = open_source(str(pets / "all.tsv"), "data")
    assert (list(data.labels), data.classes) == ([2, 0], None)


def test_a_list_of_what_to_retain_points_into_the_data_set(pets: Path) -> None:
    """An index counts rows of --data; names are below the list's own folder, whatever the list is for, else below --data's."""
    lists = pets.parent / "lists"
    draw(lists / "hen" / "0.png", 60)
    (lists / "rest.csv").write_text("index\n1\n2\n")
    (lists / "names.csv").write_text("file_name,label\nhen/0.png,hen\n")
    data = open_folder(pets)
    kept = open_source(str(lists / "rest.csv"), "retain", data)
    assert (kept.names, kept.classes) == (["cat/1.png", "cat/2.png"], ("cat",))
    assert overlap(kept, data).same == [(0, 1), (1, 2)]
    for role in ("retain", "test"):
        assert open_source(str(lists / "names.csv"), role, data).location(0) == str((lists / "hen/0.png").resolve())
    (lists / "hen/0.png").unlink()
    for role in ("retain", "test"):
        assert open_source(str(lists / "names.csv"), role, data).location(0) == data.location(6)
    with pytest.raises(InvalidRowsError, match="counts rows of --data; give --data"):
        open_source(str(lists / "rest.csv"), "retain")


def test_a_wrong_list_of_data_is_refused_with_its_lines(pets: Path) -> None:
    """The same checks as for a forget list, and folders and schemes pass through."""
    (pets / "all.csv").write_text("file_name,label\nhen/0.png,hen\nhen/9.png,hen\n")
    with pytest.raises(InvalidRowsError, match=r"all\.csv:3: .*9\.png is missing"):
        open_source(str(pets / "all.csv"), "test")
    assert len(open_source(str(pets), "test")) == 9


# --- writing

FILE = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: (
        name not in (".", "..") and name.strip() and len(name.encode()) < 200 and not name[1:].startswith(":\\")
    )
)
CLASS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5).filter(
    lambda name: name == name.strip() != ""
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(FILE, min_size=1, max_size=6, unique=True),
    classes=st.lists(CLASS, min_size=1, max_size=4, unique=True),
    form=st.sampled_from(["csv", "tsv", "jsonl"]),
    order=st.randoms(use_true_random=False),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], classes: list[str], form: str, order: object
) -> None:
    """Whatever files and classes are called: the same rows in the same order with the same labels and ids."""
    root = tmp_path_factory.mktemp("data")
    for number, name in enumerate(names):
        (root / name).write_bytes(b"%d" % number)
    labels = [number % len(classes) for number in range(len(names))]
    ids = [f"p{number}" for number in range(len(names))]
    store = Files(root.resolve(), str(root), names)
    data = SampleSet(str(root), names, labels, tuple(classes), store, range(len(names)), columns={"id": ids})
    rows = list(range(len(names)))
    order.shuffle(rows)  # type: ignore[attr-defined]
    out = tmp_path_factory.mktemp("out") / f"forget.{form}"
    write_manifest(data, rows, out)
    forget = load_forget(str(out), data, None, ClassNames(len(classes), tuple(classes), "the model"))
    assert list(forget.samples.names) == [names[row] for row in rows]
    assert list(forget.labels) == [labels[row] for row in rows]
    assert forget.ids == [ids[row] for row in rows]


def test_rows_of_an_array_are_written_by_index() -> None:
    """index, label by name where there are names and by id where not; a row without a label leaves it empty."""
    assert manifest_text(array([0, 1, 2]), [2, 0]) == "index,label\n2,hen\n0,cat\n"
    assert manifest_text(array([0, 1, UNKNOWN], None), [2, 1]) == "index,label\n2,\n1,1\n"


def test_a_list_is_written_whole_or_not_at_all(pets: Path, tmp_path: Path) -> None:
    """It never replaces a file unasked, follows the umask, and leaves nothing beside it."""
    data, out = open_folder(pets), tmp_path / "out" / "forget.csv"
    out.parent.mkdir()
    old = os.umask(0o027)
    try:
        write_manifest(data, [0], out)
    finally:
        os.umask(old)
    assert out.stat().st_mode & 0o777 == 0o640
    assert out.read_text() == "file_name,label\ncat/0.png,cat\n"
    with pytest.raises(ImuError, match="exists; choose another --output, or --force"):
        write_manifest(data, [1], out)
    write_manifest(data, [1], out, force=True)
    assert out.read_text() == "file_name,label\ncat/1.png,cat\n"
    assert [path.name for path in out.parent.iterdir()] == ["forget.csv"]
    with pytest.raises(ImuError, match="no such folder"):
        write_manifest(data, [1], tmp_path / "none" / "forget.csv")
    with pytest.raises(ImuError, match="no kind of list"):
        write_manifest(data, [1], tmp_path / "forget.txt")


def test_a_file_name_that_is_not_utf_8_cannot_be_written(tmp_path: Path) -> None:
    """The message names the list and the file; nothing is left behind."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / os.fsdecode(b"k\xe4tzchen.png")).write_bytes(b"x")
    (tmp_path / "out").mkdir()
    with pytest.raises(ImuError, match=r"forget\.csv: a file name is not UTF-8 .*tzchen"):
        write_manifest(open_folder(tmp_path), [0], tmp_path / "out" / "forget.csv")
    assert list((tmp_path / "out").iterdir()) == []
