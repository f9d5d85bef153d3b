import io
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from conftest import refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.samples.classes import ClassNames, class_names, in_model_ids, mapped
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.images.stores import Files, Pixels
from imu_cli.samples.overlap import overlap
from imu_cli.samples.selectors import is_selector, select_rows

PETS = ("cat", "dog", "hen")


def colour(number: int, form: str = "PNG", size: int = 6) -> bytes:
    """An image that no other number gives."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """(height, width) or (height, width, 3)."""
    return np.asarray(image)


def folder(root: Path, contents: dict[str, bytes], labels: list[int] | None = None) -> SampleSet:
    """Write the files and make an image set of them, in that order."""
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    store = Files(root.resolve(), str(root), list(contents))
    given_labels = [UNKNOWN] * len(contents) if labels is None else labels
    return SampleSet(str(root), list(contents), given_labels, None, store, range(len(contents)))


def array(n: int, labels: list[int] | None = None, classes: tuple[str, ...] | None = PETS, **more: object) -> SampleSet:
    """An image set of random pixels, labelled 0, 1, 2, 0, 1... unless said otherwise."""
    values = np.random.default_rng(n).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    labels = [row % 3 for row in range(n)] if labels is None else labels
    names = [str(row) for row in range(n)]
    return SampleSet("toy", names, labels, classes, Pixels("toy:/t#train", values), range(n), **more)  # type: ignore[arg-type]


def models(*names: str) -> ClassNames:
    """Classes that the model itself names."""
    return ClassNames(len(names), names, "the model")


def test_a_row_of_files_reads_as_pillow_reads_the_file(tmp_path: Path) -> None:
    """A lossless file gives its pixels; the digest is of the file's bytes, and location and where name the file."""
    images = folder(tmp_path, {"a/x.png": colour(1), "b.png": colour(2)})
    assert len(images) == 2
    assert np.array_equal(pixels(images.read(0)), pixels(Image.open(tmp_path / "a/x.png")))
    assert images.stored(1) == colour(2)
    assert images.digest(1) == sha256(colour(2)).hexdigest()
    assert images.location(0) == str((tmp_path / "a/x.png").resolve())
    assert images.where(0) == f"{tmp_path}/a/x.png"


def test_a_row_of_an_array_reads_as_its_pixels() -> None:
    """Grey arrays give mode L and colour arrays RGB; the digest is of the pixels, the location names the index."""
    grey = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    images = SampleSet("toy", ["0", "1"], [0, 1], None, Pixels("mnist:/d#test", grey), range(2))
    assert images.read(1).mode == "L"
    assert np.array_equal(pixels(images.read(1)), grey[1])
    assert images.digest(1) == sha256(bytes(range(16, 32))).hexdigest()
    assert images.location(1) == "mnist:/d#test:1"
    assert array(3).read(2).mode == "RGB"


def test_a_transposed_array_stores_the_same_bytes_as_a_plain_one() -> None:
    """CIFAR's rows are views with channels first in memory: neither bytes nor pixels depend on that."""
    plain = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    view = np.ascontiguousarray(plain.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    sets = [SampleSet("toy", [""] * 5, [0] * 5, None, Pixels("toy", values), range(5)) for values in (plain, view)]
    assert sets[0].digests() == sets[1].digests()
    assert np.array_equal(pixels(sets[1].read(3)), plain[3])


def test_a_subset_keeps_everything_of_its_rows(tmp_path: Path) -> None:
    """Names, labels, columns, origins and images move together, rows may repeat, and a subset of a subset holds."""
    images = array(6, columns={"id": list("abcdef")}, origins=[f"l:{row}" for row in range(6)])
    part = images.subset([5, 0, 5]).subset([2, 1])
    assert (part.names, part.labels, part.columns["id"]) == (["5", "0"], [2, 0], ["f", "a"])
    assert part.where(0) == "l:5: toy:/t#train:5"
    assert np.array_equal(pixels(part.read(0)), pixels(images.read(5)))
    assert part.digest(1) == images.digest(0)


def test_digests_are_computed_once_and_shared_with_subsets(tmp_path: Path) -> None:
    """After a file is gone its digest is still known to every subset of the set that has seen it."""
    images = folder(tmp_path, {"a.png": colour(1), "b.png": colour(2)})
    before = images.digests()
    (tmp_path / "b.png").unlink()
    assert images.subset([1]).digest(0) == before[1]


def test_many_threads_read_what_one_reads(tmp_path: Path) -> None:
    """Reading and hashing from eight threads gives what a loop gives."""
    images = folder(tmp_path, {f"{i}.png": colour(i) for i in range(60)})
    rows = list(range(60)) * 3
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda row: images.read(row).tobytes(), rows))
    assert read == [Image.open(tmp_path / f"{row}.png").tobytes() for row in rows]
    assert images.digests(rows) == [sha256(colour(row)).hexdigest() for row in rows]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF"])
def test_an_image_cut_short_is_an_error_that_names_it(tmp_path: Path, form: str) -> None:
    """Whichever format, half a file is refused with its path, and nothing but an ImuError is raised at any length."""
    whole = colour(3, form, size=16)
    for length in {0, 1, 10, len(whole) // 4, len(whole) // 2, len(whole) * 3 // 4}:
        images = folder(tmp_path, {"cut.png": whole[:length]})
        with pytest.raises(ImuError, match=r"cut\.png: .*(truncated|not an image)"):
            images.read(0)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=st.sampled_from(["PNG", "JPEG", "TIFF", "WEBP", "GIF"]), seed=st.integers(0, 2**32 - 1))
def test_spoilt_bytes_decode_or_are_an_error_that_names_the_file(tmp_path: Path, form: str, seed: int) -> None:
    """Random damage never raises anything but an ImuError, whatever Pillow's decoders do."""
    generator = np.random.default_rng(seed)
    content = bytearray(colour(4, form, size=16))
    for at in generator.integers(0, len(content), 6):
        content[at] = generator.integers(0, 256)
    images = folder(tmp_path, {"spoilt.png": bytes(content)})
    message = refusal(lambda: images.read(0))
    assert message == "" or "spoilt.png" in message


def test_a_zip_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """A PNG of 60,000 x 60,000 pixels in a few bytes is refused by its header, with its name."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")
    with pytest.raises(ImuError, match=r"bomb\.png: too many pixels"):
        folder(tmp_path, {"bomb.png": bomb}).read(0)


def test_what_is_no_image_format_of_ours_is_not_opened(tmp_path: Path) -> None:
    """PostScript under an image's name never reaches Ghostscript, and plain text is no image."""
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/x) (w) file\n%%EOF\n"
    for content in (script, b"hello", b""):
        with pytest.raises(ImuError, match=r"x\.png: not an image"):
            folder(tmp_path, {"x.png": content}).read(0)


def test_a_file_that_is_gone_is_an_error_that_names_line_and_file(tmp_path: Path) -> None:
    """Reading, hashing and asking for the size all say which line of the manifest and which file."""
    images = folder(tmp_path, {"a.png": colour(1)})
    images = SampleSet("f", ["a.png"], [0], None, images.store, [0], origins=["forget.csv:17"])
    (tmp_path / "a.png").unlink()
    for ask in (images.read, images.digest, images.size):
        with pytest.raises(ImuError, match=r"^forget\.csv:17: .*a\.png: "):
            ask(0)


def test_labels_are_names_or_ids_of_the_model() -> None:
    """A name gives its place in the model's list, an id itself; anything else is refused with the nearest name."""
    classes = models(*PETS)
    assert [classes.parse(text) for text in ("dog", "0", "2")] == [1, 0, 2]
    assert [classes.name(number) for number in range(3)] == list(PETS)
    for wrong, said in {
        "dgo": r"label 'dgo' is not a class of this model \(did you mean 'dog'\?\)",
        "CAT": "did you mean 'cat'",
        "3": "label 3 is out of range; the model's ids are 0 to 2",
        "-1": "label -1 is out of range",
        "2.0": "label '2.0' is not a class",
        "²": "is not a class",
        "9" * 40: "is not a class",
        "": "is not a class",
    }.items():
        with pytest.raises(ImuError, match=said):
            classes.parse(wrong)


def test_without_names_only_ids_are_labels() -> None:
    """A model whose class names nobody knows takes ids, and a name is refused with what to do."""
    classes = ClassNames(3, None, "not known")
    assert classes.parse("2") == 2
    assert classes.name(2) == "2"
    with pytest.raises(ImuError, match="not known; give ids, or --classes FILE"):
        classes.parse("cat")


def test_a_name_wins_over_an_id_that_reads_the_same() -> None:
    """Folders 0, 1, 10, 2 sort as strings: '10' is the class of that name, id 2, and is known to be ambiguous."""
    classes = models("0", "1", "10", "2")
    assert classes.parse("10") == 2
    assert [text for text in ("0", "1", "10", "2", "3") if classes.ambiguous(text)] == ["10", "2"]


def test_a_name_of_two_classes_needs_the_id() -> None:
    """ImageNet has two cranes: the name alone is refused, the id is taken."""
    classes = models("crane", "hen", "crane")
    assert classes.parse("2") == 2
    with pytest.raises(ImuError, match=r"name of the classes \[0, 2\]; give the id"):
        classes.parse("crane")


def test_class_names_come_from_the_file_then_the_model_then_a_data_set(tmp_path: Path) -> None:
    """--classes wins over the model's own names, those over a data set's, and the winner is named."""
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfant\r\nbee\r\ncow\r\n\n")
    data = array(3, class_order="class folders sorted as strings")
    found = class_names(tmp_path / "names.txt", list(PETS), [data], 3)
    assert (found.names, found.source) == (("ant", "bee", "cow"), f"--classes {tmp_path / 'names.txt'}")
    assert class_names(None, ["x", "y", "z"], [data], 3, "config.json") == ClassNames(3, ("x", "y", "z"), "config.json")
    assert class_names(None, None, [data], 3) == ClassNames(3, PETS, "toy (class folders sorted as strings)")


def test_data_sets_of_another_number_of_classes_or_without_an_order_name_nothing() -> None:
    """Three folders do not name ten classes, and the names in a manifest have no order that a model could share."""
    ordered, listed = array(3, class_order="folders"), array(3)
    assert class_names(None, None, [ordered], 10).names is None
    assert class_names(None, None, [listed], 3).names is None
    assert class_names(None, None, [listed, ordered], 3).names == PETS


def test_placeholders_of_a_model_are_no_names() -> None:
    """The transformers library writes LABEL_0, LABEL_1 where nobody gave names; those do not hide the data set's."""
    data = array(3, class_order="folders")
    assert class_names(None, ["LABEL_0", "LABEL_1", "LABEL_2"], [data], 3).names == PETS


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"a\nb\n", "has 2 names; the model has 3"), (b"a\n\nb\n", ":2: an empty line"), (b"\xff\n", "not UTF-8")],
)
def test_a_wrong_file_of_names_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    """Too few names, an empty line in the midst, or another encoding: each says what to mend."""
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(ImuError, match=said):
        class_names(tmp_path / "names.txt", None, [], 3)
    with pytest.raises(ImuError, match="cannot be read"):
        class_names(tmp_path / "none.txt", None, [], 3)
    with pytest.raises(ImuError, match="names 2 classes, the head has 3"):
        class_names(None, ["a", "b"], [], 3)


def test_a_source_with_fewer_classes_is_mapped_by_name_not_renumbered() -> None:
    """A folder of hens and dogs keeps the model's ids 2 and 1, though its own are 1 and 0."""
    images = array(4, labels=[1, 0, 1, 0], classes=("dog", "hen"))
    assert list(in_model_ids(images, models(*PETS)).labels) == [2, 1, 2, 1]
    assert in_model_ids(images, models(*PETS)).classes == PETS


def test_a_source_of_bare_ids_is_taken_as_the_models() -> None:
    """Numbers need no names; one beyond the model's classes is refused."""
    assert list(in_model_ids(array(3, classes=None), models(*PETS)).labels) == [0, 1, 2]
    with pytest.raises(InvalidRowsError, match="toy: label 3 is out of range"):
        in_model_ids(array(2, labels=[0, 3], classes=None), models(*PETS))


def test_all_classes_that_the_model_lacks_are_named_at_once() -> None:
    """Unknown names and rows without a label are refused together; a class without rows is nobody's business."""
    images = array(4, labels=[0, 1, 2, UNKNOWN], classes=("cat", "dgo", "hnn", "unused"))
    with pytest.raises(InvalidRowsError) as caught:
        in_model_ids(images, models(*PETS))
    said = caught.value.problems
    assert len(said) == 3
    assert "'dgo' is not a class of this model (did you mean 'dog'?)" in said[0]
    assert "has no label" in said[2]
    assert list(mapped(images, models(*PETS))[0]) == [0, UNKNOWN, UNKNOWN, UNKNOWN]


@pytest.mark.parametrize(
    ("selectors", "rows"),
    [
        (["class=dog"], [1, 4]),
        (["class=1"], [1, 4]),
        (["class=hen,cat"], [0, 2, 3, 5]),
        (["class=hen", "class=cat"], [0, 2, 3, 5]),
        (["index=0:3"], [0, 1, 2]),
        (["index=:"], [0, 1, 2, 3, 4, 5]),
        (["index=4,1,4"], [4, 1]),
        (["index=-2:"], [4, 5]),
        (["index=::2"], [0, 2, 4]),
        (["index=5:1:-2", "index=0"], [5, 3, 0]),
        (["id=4711"], [0, 3]),
        (["id=b,4711"], [0, 1, 3]),
        (["id=c, d"], [2]),
    ],
)
def test_selectors_name_rows(selectors: list[str], rows: list[int]) -> None:
    """Classes by name or id, python's slices, comma lists and repetition, ids; a name with a comma is one name."""
    images = array(6, columns={"id": ["4711", "b", "c, d", "4711", "e", "f"]})
    assert list(select_rows(images, selectors)) == rows


def test_class_selectors_speak_of_the_models_classes_where_these_are_known() -> None:
    """With the model's names, ids in a selector are the model's, not the data set's own."""
    images = array(4, labels=[1, 0, 1, 0], classes=("dog", "hen"))
    assert list(select_rows(images, ["class=1"], models(*PETS))) == [1, 3]
    assert list(select_rows(images, ["class=1"])) == [0, 2]


@pytest.mark.parametrize(
    ("selectors", "said"),
    [
        (["class=dgo"], r"class=dgo: label 'dgo' is not a class .*did you mean 'dog'"),
        (["class="], "class=: names nothing"),
        (["index=6"], "6 is out of range; rows are 0 to 5"),
        (["index=-1"], "-1 is out of range"),
        (["index=0:7"], "0:7 is out of range"),
        (["index=0:3:0"], "step"),
        (["index=3:3"], "selects no row of toy"),
        (["index=1.5"], "neither a row number nor a slice"),
        (["index=1,,2"], "'' is neither"),
        (["id=4712"], r"toy has no id '4712' \(did you mean '4711'\?\)"),
        (["coarse=fish"], "toy has no 'coarse'; it needs --data cifar100"),
        (["class=cat", "index=0:2"], "different kinds"),
        (["colour=red"], "no selector; write class=…"),
        ([], "no selector"),
    ],
)
def test_a_selector_that_selects_nothing_is_an_error(selectors: list[str], said: str) -> None:
    """Nothing is cut short in silence: each mistake is named with what to do."""
    with pytest.raises(ImuError, match=said):
        select_rows(array(6, columns={"id": ["4711", *"bcdef"]}), selectors)


def test_what_reads_as_a_selector() -> None:
    """The four kinds do; a path does not, and ./class=x is how a file of that name is meant."""
    assert [is_selector(text) for text in ("class=cat", "index=0:5", "id=", "coarse=x")] == [True] * 4
    assert [is_selector(text) for text in ("./class=cat", "forget.csv", "class", "-", "klass=cat")] == [False] * 5


def slow_overlap(a: SampleSet, b: SampleSet) -> tuple[set[int], set[int]]:
    """Rows on either side that have a partner, by comparing all pairs byte by byte."""
    same = [
        (i, j)
        for i in range(len(a))
        for j in range(len(b))
        if a.location(i) == b.location(j) or a.stored(i) == b.stored(j)
    ]
    return {i for i, _ in same}, {j for _, j in same}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    left=st.lists(st.integers(0, 11), max_size=8),
    right=st.lists(st.integers(0, 11), max_size=8),
    contents=st.lists(st.integers(0, 4), min_size=12, max_size=12),
)
def test_overlap_finds_every_row_that_a_comparison_of_all_pairs_finds(
    tmp_path: Path, left: list[int], right: list[int], contents: list[int]
) -> None:
    """By location or by bytes, with copies on either side, and each pair it names is a pair."""
    images = folder(tmp_path, {f"{i}.png": colour(content, size=4 + content % 2) for i, content in enumerate(contents)})
    a = images.subset(left)
    again = SampleSet(
        "again", images.names, images.labels, None, Files(tmp_path.resolve(), "again", images.names), range(12)
    )
    b = again.subset(right)
    a.store.digests.known[:] = False
    found = overlap(a, b)
    pairs = [*found.same, *found.twins]
    assert ({i for i, _ in pairs}, {j for _, j in pairs}) == slow_overlap(a, b)
    assert all(a.location(i) == b.location(j) for i, j in found.same)
    assert all(a.location(i) != b.location(j) and a.stored(i) == b.stored(j) for i, j in found.twins)
    assert len(pairs) == len(set(pairs)) <= 2 * (len(left) + len(right))


def test_copies_do_not_multiply_out(tmp_path: Path) -> None:
    """Forty equal images on either side give a number of pairs that grows with 40, not with 1,600."""
    a = folder(tmp_path / "a", {f"{i}.png": colour(1) for i in range(40)})
    b = folder(tmp_path / "b", {f"{i}.png": colour(1) for i in range(40)})
    found = overlap(a, b)
    pairs = [*found.same, *found.twins]
    assert {i for i, _ in pairs} == {j for _, j in pairs} == set(range(40))
    assert len(pairs) <= 80


def test_every_forget_sample_with_a_twin_beside_it_is_counted(tmp_path: Path) -> None:
    """Of three equal files two are to be forgotten, whichever: both have a twin that stays."""
    data = folder(tmp_path, {f"{i}.png": colour(1) for i in range(3)})
    for rows in ([0, 1], [0, 2], [1, 2]):
        found = overlap(data.subset(rows), data)
        stays = ({0, 1, 2} - set(rows)).pop()
        assert found.same == [(i, row) for i, row in enumerate(rows)]
        assert found.twins == [(0, stays), (1, stays)]


def test_rows_of_two_splits_with_one_index_do_not_overlap() -> None:
    """Row 3 of train is not row 3 of test, unless the pixels are the same."""
    values = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)
    other = values[::-1].copy()
    other[0] += 1
    a = SampleSet("a", list("0123"), [0] * 4, None, Pixels("c:/d#train", values), range(4))
    b = SampleSet("b", list("0123"), [0] * 4, None, Pixels("c:/d#test", other), range(4))
    assert overlap(a, b).same == []
    assert overlap(a, b).twins == [(0, 3), (1, 2), (2, 1)]


def test_the_data_side_imports_no_torch() -> None:
    """Both imu select and the check of a manifest start without torch, torchvision, scipy or sklearn."""
    code = (
        "import sys, imu_cli.samples.manifest, imu_cli.samples.sources, imu_cli.samples.dataset;"
        "print([name for name in ('torch', 'torchvision', 'scipy', 'sklearn') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
