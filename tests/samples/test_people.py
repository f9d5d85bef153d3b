"""Whom images show: Market-1501 and MARS by their files' names, lists by id, folders by person; junk, distractors, queries, cameras."""

from pathlib import Path

import numpy as np
import pytest
from conftest import refusal
from PIL import Image

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.files import paths
from imu_cli.samples import people
from imu_cli.samples.csv_lines import manifest_text
from imu_cli.samples.manifest import load_forget, open_source
from imu_cli.samples.people import Register
from imu_cli.samples.selectors import select_rows


def images(folder: Path, *names: str) -> Path:
    """Tiny images of these names, each of its own colour."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 4), (number, 0, 0)).save(folder / name, "PNG")
    return folder


@pytest.fixture
def market(tmp_path: Path) -> Path:
    """A Market-1501 of seven images."""
    return images(
        tmp_path / "market",
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0007_c2s3_071002_01.jpg",
        "bounding_box_test/-1_c3s1_000001_00.jpg",
        "bounding_box_test/0000_c2s1_000002_00.jpg",
        "bounding_box_test/0004_c1s6_016996_02.jpg",
        "query/0004_c2s3_059152_00.jpg",
        "query/0004_c12s3_059152_00.jpg",
    )


def test_market_1501_is_read_by_its_names(market: Path) -> None:
    """The test split is gallery and queries, junk and distractors known; the train split the people of its folder."""
    test = open_source(f"market1501:{market}", "test")
    assert test.classes == ("0004",)
    assert sorted(test.columns["role"]) == ["", "distractor", "junk", "query", "query"]
    assert sorted(test.columns["camera"]) == ["1", "12", "2", "2", "3"]
    train = open_source(f"market1501:{market}", "data")
    assert [train.class_text(label) for label in train.labels] == ["0002", "0007"]
    only = open_source(f"market1501:{market}#query", "data")
    assert list(only.columns["role"]) == ["query", "query"]
    assert len(open_source(f"market1501:{market / 'query'}", "data")) == 2


def test_mars_is_read_by_its_names(tmp_path: Path) -> None:
    """Person, camera and tracklet of each frame; 00-1 is junk, 0000 a distractor."""
    folder = images(
        tmp_path / "mars",
        "bbox_test/0003/0003C4T0003F001.jpg",
        "bbox_test/00-1/00-1C1T0001F001.jpg",
        "bbox_test/0000/0000C2T0001F001.jpg",
        "bbox_train/0005/0005C1T0002F010.jpg",
    )
    test = open_source(f"mars:{folder}#bbox_test", "data")
    told = dict(zip(test.columns["id"], test.columns["role"], strict=True))
    assert told == {"0003": "", "00-1": "junk", "0000": "distractor"}
    row = list(test.columns["id"]).index("0003")
    assert (test.columns["camera"][row], test.columns["tracklet"][row]) == ("4", "0003")
    assert open_source(f"mars:{folder}", "data").classes == ("0005",)


def test_what_is_not_named_so_is_said_at_once(market: Path) -> None:
    """Every file whose name says nobody is a line of the message; a split that is not there, or not known, an error."""
    images(market, "query/portrait.png", "query/group.png")
    with pytest.raises(InvalidRowsError) as caught:
        open_source(f"market1501:{market}", "test")
    assert "portrait.png" in str(caught.value)
    assert "group.png" in str(caught.value)
    with pytest.raises(ImuError, match="no split 'valid'"):
        open_source(f"market1501:{market}#valid", "test")
    (market / "bounding_box_train").rename(market / "elsewhere")
    with pytest.raises(ImuError, match="has no folder bounding_box_train"):
        open_source(f"market1501:{market}", "data")


def test_selectors_by_person_and_camera(market: Path) -> None:
    """``id=`` and ``camera=`` select rows; an id that lacks its zeros is told with them."""
    test = open_source(f"market1501:{market}", "test")
    assert len(select_rows(test, ["id=0004"])) == 3
    assert len(select_rows(test, ["camera=2"])) == 2
    assert "did you mean '0004'?" in refusal(lambda: select_rows(test, ["id=4"]))


def test_a_list_with_ids_and_cameras(market: Path, tmp_path: Path) -> None:
    """A manifest tells people and cameras, with or without a data set behind it, and labels are not asked for."""
    data = people.with_people(open_source(f"market1501:{market}", "data"))
    listed = tmp_path / "forget.csv"
    listed.write_text("file_name,id,camera\nbounding_box_train/0002_c1s1_000451_03.jpg,0002,1\n")
    forget = load_forget(str(listed), data, None, people.names_of([data]), column="id")
    assert forget.whole_classes
    assert [data.classes[label] for label in forget.labels] == ["0002"]  # type: ignore[index]
    alone = people.with_people(open_source(str(listed), "forget", data))
    assert alone.classes == ("0002",)
    listed.write_text("file_name,id\nbounding_box_train/0002_c1s1_000451_03.jpg,2\n")
    told = refusal(lambda: load_forget(str(listed), data, None, people.names_of([data]), column="id"))
    assert f"{listed}:2: id '2' is nobody's" in told
    assert "did you mean '0002'?" in told


def test_a_folder_a_person(tmp_path: Path) -> None:
    """Class folders are people; a set that says nobody is an error with what would."""
    folder = images(tmp_path / "faces", "ann/1.png", "ann/2.png", "bob/1.png")
    assert people.with_people(open_source(str(folder), "data")).classes == ("ann", "bob")
    flat = images(tmp_path / "flat", "1.png", "2.png")
    assert "does not say whom its images show" in refusal(lambda: people.with_people(open_source(str(flat), "data")))


def test_numbers_are_the_same_in_every_set(market: Path) -> None:
    """One person, camera or file has one number in all sets; junk, distractors and strangers have those that are asked for."""
    test, train = (people.with_people(open_source(f"market1501:{market}", role)) for role in ("test", "data"))  # type: ignore[arg-type]
    register = Register(people.names_of([test, train]))
    numbers = register.people_of(test, -1, -2)
    assert sorted(numbers) == [-2, -1, 1, 1, 1]
    assert sorted(register.people_of(train, -1, -2)) == [0, 2]
    one = register.cameras_of(train, -1)
    other = dict(zip(test.columns["camera"], register.cameras_of(test, -1), strict=True))
    assert other["1"] == one[0]
    assert np.array_equal(register.images_of(test), register.images_of(test))
    assert not set(register.images_of(train)) & set(register.images_of(test))
    assert people.queries_of(test).sum() == 2


def test_selected_people_are_a_list_that_is_read_again(market: Path, tmp_path: Path) -> None:
    """``imu select id=…`` writes id and camera, and reading the list gives the same people."""
    data = people.with_people(open_source(f"market1501:{market}", "data"))
    listed = tmp_path / "forget.csv"
    listed.write_text(manifest_text(data, select_rows(data, ["id=0007"])))
    assert listed.read_text().splitlines()[0] == "file_name,label,id,camera"
    assert len(load_forget(str(listed), data, None, people.names_of([data]), column="id")) == 1


def test_the_names_of_data_sets_move_with_their_files(tmp_path: Path) -> None:
    """A record holds a data set's path relative to itself, whatever split is named."""
    for spec in ("mars:crops#bbox_test", "market1501:m#query", "svhn:s#extra"):
        moved = paths.relative_to(spec, "data", tmp_path)
        assert paths.placed(moved, "data", tmp_path) == spec
        assert moved.endswith("#" + spec.partition("#")[2])


def test_the_real_crops(shared: Path) -> None:
    """../shared/reid: 16 people of 597 images to train on, 16 others of 622 images, 96 crops of Market-1501."""
    for spec, n, count in (
        (f"mars:{shared}/reid/mini_mars#train", 597, 16),
        (f"mars:{shared}/reid/mini_mars#test", 622, 16),
        (f"market1501:{shared}/reid/mini_market1501#train", 32, 16),
    ):
        found = people.with_people(open_source(spec, "data"))
        assert (len(found), len(found.classes or ())) == (n, count)
