import gzip
import importlib
import os
import pickle
import runpy
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.images.arrays import DIGITS, FASHION
from imu_cli.samples.images.folders import open_flat, open_folder
from imu_cli.samples.sources import Role, open_named

PETS = ("cat", "dog", "hen")


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """(height, width) or (height, width, 3)."""
    return np.asarray(image)


def picture(number: int) -> Image.Image:
    """An image that no other number gives."""
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8))


def tree(root: Path, *names: str) -> Path:
    """Write picture 0, 1, 2... under these names."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(root / name)
    return root


def by_torchvision(root: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """(path, class id) of every row, and the classes, as ImageFolder has them."""
    from torchvision.datasets import ImageFolder

    found = ImageFolder(str(root), loader=str, allow_empty=True)
    return found.samples, found.classes


def rows(images: SampleSet) -> list[tuple[str, int]]:
    """(path, class id) of every row of ours."""
    assert images.root is not None
    return [(str(images.root / name), label) for name, label in zip(images.names, images.labels, strict=True)]


# --- folders


def test_a_class_folder_has_torchvisions_order(tmp_path: Path) -> None:
    """Classes sort as strings, folders within a class by their whole path ('a-b' before 'a/b'), files by name."""
    root = tree(
        tmp_path, "10/a.png", "2/a.png", "Zebra/b.PNG", "Zebra/a.jpeg", "ant/a/x.png", "ant/a-b/x.png",
        "ant/a/b/x.png", "ant/z.png", "ant/B.webp", "ant/_.bmp", "ä/é.png", " /q.png",
    )  # fmt: skip
    (root / "ant" / "notes.txt").write_text("no image")
    (root / "stray.png").write_bytes(b"beside the classes")
    images = open_folder(root)
    samples, classes = by_torchvision(root)
    assert rows(images) == samples
    assert images.classes == tuple(classes)
    assert images.class_order == "class folders sorted as strings"
    assert len(images.notes) == 2
    assert "1 files are left out, their extension is not an image's (ant/notes.txt)" in images.notes[0]
    assert "1 images beside the class folders are left out" in images.notes[1]


NAME = st.text("ab-.Z1 ", min_size=1, max_size=3).filter(lambda name: set(name) - {"."})


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.lists(st.lists(NAME, min_size=1, max_size=3), min_size=1, max_size=8))
def test_any_tree_has_torchvisions_order(tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]]) -> None:
    """Whatever the names and depths, rows and class ids are ImageFolder's."""
    root = tmp_path_factory.mktemp("tree")
    for path in paths:
        file = root.joinpath("class " + path[0], *path[1:], "x.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    images = open_folder(root)
    samples, classes = by_torchvision(root)
    assert rows(images) == samples
    assert images.classes == tuple(classes)


def test_rows_read_as_their_files(tmp_path: Path) -> None:
    """Row by row: the image, the path it names and the label of its folder."""
    images = open_folder(tree(tmp_path, "cat/1.png", "cat/2.png", "dog/1.png"))
    for row, number in ((0, 0), (1, 1), (2, 2)):
        assert np.array_equal(pixels(images.read(row)), pixels(picture(number)))
    assert list(images.names) == ["cat/1.png", "cat/2.png", "dog/1.png"]
    assert list(images.labels) == [0, 0, 1]


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    """ImageFolder follows them; the link's location is the file it leads to, so that an overlap is seen."""
    root = tree(tmp_path / "data", "cat/1.png", "dog/1.png")
    (root / "dog" / "0.png").symlink_to(root / "cat" / "1.png")
    (root / "hen").symlink_to("cat")
    images = open_folder(root)
    assert rows(images) == by_torchvision(root)[0]
    assert list(images.names) == ["cat/1.png", "dog/0.png", "dog/1.png", "hen/1.png"]
    assert images.location(1) == images.location(3) == images.location(0) == str((root / "cat/1.png").resolve())
    assert np.array_equal(pixels(images.read(3)), pixels(picture(0)))


def test_a_link_to_the_folder_itself_is_no_leaving(tmp_path: Path) -> None:
    """The root may be named through a link; locations are the same either way."""
    root = tree(tmp_path / "data", "cat/1.png")
    (tmp_path / "link").symlink_to(root)
    assert open_folder(tmp_path / "link").location(0) == open_folder(root).location(0)


def test_links_that_leave_break_or_circle_are_refused_together(tmp_path: Path) -> None:
    """Five bad links, five problems, each naming its path; a link that is no image does not matter."""
    root = tree(tmp_path / "data", "cat/1.png")
    secret = tree(tmp_path / "data2", "secret/1.png") / "secret"
    (root / "cat" / "out.png").symlink_to(secret / "1.png")
    (root / "cat" / "broken.png").symlink_to("nowhere.png")
    (root / "cat" / "self.png").symlink_to("self.png")
    (root / "cat" / "up").symlink_to("..")
    (root / "dog").symlink_to(secret)
    (root / "cat" / "readme").symlink_to("/etc/hostname")
    with pytest.raises(InvalidRowsError) as caught:
        open_folder(root)
    said = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 5
    for part in (
        "cat/out.png: is a link to",
        "cat/broken.png: is a broken",
        "cat/self.png: is a broken",
        "cat/up: is",
        "dog: is",
    ):
        assert f"{root}/{part}" in said


def test_a_pipe_in_a_folder_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """Opening a named pipe would hang for ever."""
    root = tree(tmp_path, "cat/1.png")
    os.mkfifo(root / "cat" / "2.png")
    with pytest.raises(InvalidRowsError, match=r"2\.png: .*no regular file"):
        open_folder(root)


def test_a_folder_of_images_has_unknown_labels(tmp_path: Path) -> None:
    """Photos without sub-folders are a set all the same, sorted by name, with no classes."""
    root = tree(tmp_path, "b.png", "a.jpg")
    images = open_folder(root)
    assert (images.names, images.labels, images.classes) == (["a.jpg", "b.png"], [UNKNOWN] * 2, None)
    (root / "empty").mkdir()
    assert open_folder(root).classes is None


def test_a_flat_reading_takes_every_depth(tmp_path: Path) -> None:
    """Under --label, sub-folders are no classes: every image below the folder counts."""
    images = open_flat(tree(tmp_path, "b.png", "2019/a.png", "2019/summer/c.png"))
    assert list(images.names) == ["b.png", "2019/a.png", "2019/summer/c.png"]
    assert set(images.labels) == {UNKNOWN}


def test_hidden_folders_without_images_are_no_classes(tmp_path: Path) -> None:
    """.ipynb_checkpoints does not shift the ids; an empty class folder keeps its own."""
    root = tree(tmp_path, "cat/1.png", "hen/1.png")
    for name in (".ipynb_checkpoints", "dog"):
        (root / name).mkdir()
    images = open_folder(root)
    assert images.classes == PETS
    assert list(images.labels) == [0, 2]


def test_splits_are_not_classes(tmp_path: Path) -> None:
    """The folder above train and test is named by mistake: the message says which to name."""
    root = tree(tmp_path, "train/cat/1.png", "test/cat/1.png")
    with pytest.raises(ImuError, match=rf"holds splits \(test, train\), not classes; name one, such as {root}/test"):
        open_folder(root)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """Trains and buses are classes, and so is a lone folder train of images."""
    assert open_folder(tree(tmp_path / "a", "bus/1.png", "train/old/1.png")).classes == ("bus", "train")
    assert open_folder(tree(tmp_path / "b", "train/1.png")).classes == ("train",)


def test_an_empty_or_missing_folder_says_what_to_name(tmp_path: Path) -> None:
    """No image, no folder, a file instead, or torchvision's files without the scheme."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImuError, match=r"empty: holds no image \(\.jpg .*name the folder that holds the class folders"):
        open_folder(tmp_path / "empty")
    with pytest.raises(ImuError, match="none: no such folder"):
        open_folder(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ImuError, match="is a file, not a folder"):
        open_folder(tmp_path / "file")
    (tmp_path / "tv" / "cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(ImuError, match=f"did you mean cifar10:{tmp_path}/tv"):
        open_folder(tmp_path / "tv")


# --- CIFAR


def write_cifar10(root: Path, each: int = 3, protocol: int = 4) -> NDArray[np.uint8]:
    """Small batches in the official layout; the pixels (train, then test) are returned."""
    home = root / "cifar-10-batches-py"
    home.mkdir(parents=True)
    drawn = np.random.default_rng(1).integers(0, 256, (6 * each, 3072), dtype=np.uint8)
    for part, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        labels = [(part + i) % 10 for i in range(each)]
        batch = {"data": drawn[part * each : (part + 1) * each], "labels": labels, "filenames": ["x.png"] * each}
        (home / name).write_bytes(pickle.dumps(batch, protocol))
    names = [f"class{i}" for i in range(10)]
    (home / "batches.meta").write_bytes(pickle.dumps({"label_names": names, "num_vis": 3072}, protocol))
    return drawn


def unchecked(kind: str) -> Any:
    """A data set of torchvision without the check of MD5 sums."""
    from torchvision import datasets

    return type(kind, (getattr(datasets, kind),), {"_check_integrity": lambda self: True, "_load_meta": load_meta})


def load_meta(self: Any) -> None:
    """What torchvision's own does, without the check."""
    with open(os.path.join(self.root, self.base_folder, self.meta["filename"]), "rb") as file:
        self.classes = pickle.load(file)[self.meta["key"]]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_is_what_torchvision_reads(tmp_path: Path, protocol: int, split: str) -> None:
    """Images, labels and class names in the same order, whatever pickle protocol wrote the batches."""
    write_cifar10(tmp_path, protocol=protocol)
    theirs = unchecked("CIFAR10")(tmp_path, train=split == "train")
    ours = open_named(f"cifar10:{tmp_path}#{split}", "data")
    assert np.array_equal([pixels(ours.read(row)) for row in range(len(ours))], theirs.data)
    assert list(ours.labels) == theirs.targets
    assert ours.classes == tuple(theirs.classes)
    assert ours.names[2] == "2"
    assert ours.location(2) == f"cifar10:{tmp_path.resolve()}/cifar-10-batches-py#{split}:2"


def test_batches_of_python_2_are_read(tmp_path: Path) -> None:
    """The published files were pickled by Python 2: the array's bytes stand in them as text."""
    batch = write_cifar10(tmp_path)
    home, raw = tmp_path / "cifar-10-batches-py", batch[15:].tobytes()

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def string(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    old = (
        b"\x80\x02}(" + text(b"data") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + text(b"b") + b"\x87R(K\x01K\x03M\x00\x0c\x86cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        + b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + string(raw) + b"tb"
        + text(b"labels") + b"](K\x01K\x02K\x03eu."
    )  # fmt: skip
    assert np.array_equal(pickle.loads(old, encoding="latin1")["data"], batch[15:])
    (home / "test_batch").write_bytes(old)
    images = open_named(f"cifar10:{home}", "test")
    assert list(images.labels) == [1, 2, 3]
    assert np.array_equal(pixels(images.read(1)), batch[16].reshape(3, 32, 32).transpose(1, 2, 0))


class Evil:
    """What a hostile batch would run."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("call", [os.mkdir, eval, getattr, np.load, np.fromfile, np.ndarray.tofile])
def test_a_batch_that_wants_to_run_code_is_refused(tmp_path: Path, call: Any) -> None:
    """No name but those of plain arrays is looked up, numpy's own loaders included; nothing is run."""
    write_cifar10(tmp_path)
    mark = tmp_path / "was-here"
    arguments = (f"__import__('os').mkdir({str(mark)!r})",) if call is eval else (str(mark),)
    bad = pickle.dumps({"data": Evil(call, *arguments), "labels": []})
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(bad)
    with pytest.raises(ImuError, match=r"data_batch_2 is no batch of images .*get the file again"):
        open_named(f"cifar10:{tmp_path}", "data")
    assert not mark.exists()


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), cut=st.booleans())
def test_a_damaged_batch_is_read_or_an_error_that_names_it(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cut: bool
) -> None:
    """Cut or spoilt pickles raise nothing but an ImuError."""
    root = tmp_path_factory.mktemp("cifar")
    write_cifar10(root, each=1)
    file = root / "cifar-10-batches-py" / "test_batch"
    content, generator = bytearray(file.read_bytes()), np.random.default_rng(seed)
    if cut:
        content = content[: generator.integers(0, len(content))]
    else:
        content[generator.integers(0, 150)] = generator.integers(0, 256)
    file.write_bytes(content)
    message = refusal(lambda: open_named(f"cifar10:{root}", "test"))
    assert message == "" or message.startswith(f"cifar10:{root}: ")


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "2 images and 1 labels"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, "row 0 has label 10, classes are 0 to 9"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]}, "row 0 has label 'cat'"),
        ({"data": np.zeros((1, 3072), np.int32), "labels": [1]}, "no uint8 array 'data'"),
        ({"data": np.zeros((1, 28), np.uint8), "labels": [1]}, "no uint8 array 'data'"),
        ({"data": np.array([None]), "labels": [1]}, "something other than whole numbers"),
        ({"labels": [1]}, "no uint8 array 'data'"),
        ({"data": np.zeros((1, 3072), np.uint8)}, "no list 'labels'"),
        ([1, 2], "holds a list, not a batch"),
    ],
)
def test_a_batch_of_another_shape_is_refused(tmp_path: Path, batch: Any, said: str) -> None:
    """Each way in which a pickle is no CIFAR batch has its own words."""
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(ImuError, match=said):
        open_named(f"cifar10:{tmp_path}", "test")


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    """One file of five, or all of them."""
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(ImuError, match="data_batch_4 is missing; nothing is downloaded"):
        open_named(f"cifar10:{tmp_path}", "data")
    with pytest.raises(ImuError, match=r"found no data_batch_1 in .*cifar-10-batches-py; nothing is downloaded"):
        open_named(f"cifar10:{tmp_path}/elsewhere", "data")


def test_cifar100_has_fine_labels_and_a_coarse_column(tmp_path: Path) -> None:
    """Labels are torchvision's, and each row knows its coarse class by name."""
    home = tmp_path / "cifar-100-python"
    home.mkdir()
    fine, coarse = [f"fine{i}" for i in range(100)], [f"coarse{i}" for i in range(20)]
    (home / "meta").write_bytes(pickle.dumps({"fine_label_names": fine, "coarse_label_names": coarse}))
    for seed, split in enumerate(("train", "test")):
        data = np.random.default_rng(seed).integers(0, 256, (4, 3072), dtype=np.uint8)
        batch = {"data": data, "fine_labels": [7, 99, 0, 7], "coarse_labels": [1, 19, 4, 1]}
        (home / split).write_bytes(pickle.dumps(batch))
    for split in ("train", "test"):
        theirs = unchecked("CIFAR100")(tmp_path, train=split == "train")
        ours = open_named(f"cifar100:{tmp_path}#{split}", "data")
        assert np.array_equal([pixels(ours.read(row)) for row in range(4)], theirs.data)
        assert (list(ours.labels), ours.classes) == (theirs.targets, tuple(theirs.classes))
        assert ours.columns["coarse"] == ["coarse1", "coarse19", "coarse4", "coarse1"]
    batch = {"data": data, "fine_labels": [0] * 4, "coarse_labels": [20] * 4}
    (home / "train").write_bytes(pickle.dumps(batch))
    with pytest.raises(ImuError, match="coarse labels beyond its 20 names"):
        open_named(f"cifar100:{tmp_path}", "data")


@pytest.mark.shared
@pytest.mark.slow
def test_the_shared_cifar10_unpacks_to_the_same_images_either_way(shared: Path, tmp_path: Path) -> None:
    """Batches and class folders written by unpack_cifar10.py hold the same pixels, labels and class names."""
    unpack = runpy.run_path(str(shared / "data" / "unpack_cifar10.py"))
    unpack["write_torchvision"](tmp_path)
    unpack["write_png"](tmp_path, {"train": 40, "test": 40})
    for split in ("train", "test"):
        arrays, files = open_named(f"cifar10:{tmp_path}#{split}", "data"), open_folder(tmp_path / split)
        assert len(arrays) == {"train": 50_000, "test": 10_000}[split]
        assert arrays.classes == files.classes
        for row, name in enumerate(files.names):
            index = int(Path(name).stem)
            assert np.array_equal(pixels(files.read(row)), pixels(arrays.read(index)))
            assert files.labels[row] == arrays.labels[index]


# --- idx files


def write_idx(root: Path, folder: str, packed: bool = False) -> Path:
    """The four files of MNIST or Fashion-MNIST, with 12 and 5 images; their folder is returned."""
    home = root / folder / "raw"
    home.mkdir(parents=True)
    for seed, (split, n) in enumerate((("train", 12), ("t10k", 5))):
        drawn = np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        images = bytes([0, 0, 8, 3]) + np.array([n, 28, 28], ">u4").tobytes() + drawn.tobytes()
        labels = bytes([0, 0, 8, 1]) + np.array([n], ">u4").tobytes() + bytes(i % 10 for i in range(n))
        for name, content in ((f"{split}-images-idx3-ubyte", images), (f"{split}-labels-idx1-ubyte", labels)):
            path = home / (name + ".gz" * packed)
            path.write_bytes(gzip.compress(content) if packed else content)
    return home


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("scheme", "kind", "classes"), [("mnist", "MNIST", DIGITS), ("fashion-mnist", "FashionMNIST", FASHION)]
)
def test_idx_files_are_what_torchvision_reads(
    tmp_path: Path, split: str, scheme: str, kind: str, classes: tuple[str, ...]
) -> None:
    """Grey images and labels as torchvision has them, packed or not, by its root or by the folder itself."""
    from torchvision import datasets

    home = write_idx(tmp_path / "plain", kind)
    packed = write_idx(tmp_path / "packed", kind, packed=True)
    theirs = getattr(datasets, kind)(tmp_path / "plain", train=split == "train")
    for place in (tmp_path / "plain", home, home.parent, tmp_path / "packed", packed):
        ours = open_named(f"{scheme}:{place}#{split}", "data")
        assert np.array_equal([pixels(ours.read(row)) for row in range(len(ours))], theirs.data.numpy())
        assert list(ours.labels) == theirs.targets.tolist()
        assert ours.classes == classes
        assert ours.read(0).mode == "L"
    if scheme == "fashion-mnist":
        assert classes == tuple(theirs.classes)
    else:
        assert [name[0] for name in theirs.classes] == list(classes)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda content: content[:-1], "truncated or has bytes too many"),
        (lambda content: content + b"x", "truncated or has bytes too many"),
        (lambda content: content[:9], "no idx file|cannot be read"),
        (lambda content: b"", "no idx file"),
        (lambda content: b"\0\0\x0d\3" + content[4:], "no idx file of 3 dimensions"),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "truncated|cannot be read"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_idx_file_is_an_error_that_names_it(tmp_path: Path, spoil: Any, said: str, packed: bool) -> None:
    """Short, long, empty, of floats, or with sizes that no disk holds."""
    home = write_idx(tmp_path, "MNIST", packed)
    path = home / ("train-images-idx3-ubyte" + ".gz" * packed)
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    path.write_bytes(gzip.compress(spoil(content)) if packed else spoil(content))
    with pytest.raises(ImuError, match=f"train-images-idx3-ubyte.*({said})"):
        open_named(f"mnist:{tmp_path}", "data")


def test_a_torn_gzip_or_a_missing_file_is_named(tmp_path: Path) -> None:
    """Half a .gz, no .gz at all, and no file."""
    home = write_idx(tmp_path, "MNIST", packed=True)
    labels = home / "t10k-labels-idx1-ubyte.gz"
    for content in (labels.read_bytes()[:20], b"plain text"):
        labels.write_bytes(content)
        with pytest.raises(ImuError, match=r"t10k-labels-idx1-ubyte\.gz cannot be read"):
            open_named(f"mnist:{tmp_path}", "test")
    labels.unlink()
    with pytest.raises(ImuError, match=r"t10k-labels-idx1-ubyte is missing \(\.gz will do\)"):
        open_named(f"mnist:{tmp_path}", "test")


# --- SVHN


def write_svhn(root: Path, split: str, n: int = 7) -> None:
    """A .mat file of SVHN with the labels 4, 5, 6 and so on to 10."""
    from scipy.io import savemat

    drawn = np.random.default_rng(n).integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    savemat(root / f"{split}_32x32.mat", {"X": drawn, "y": np.arange(4, 4 + n, dtype=np.uint8).reshape(-1, 1)})


@pytest.mark.parametrize("split", ["train", "test", "extra"])
def test_svhn_is_what_torchvision_reads(tmp_path: Path, split: str) -> None:
    """Images and labels in its order, with the stored 10 as the digit 0."""
    write_svhn(tmp_path, split)
    theirs = unchecked("SVHN")(str(tmp_path), split=split)
    ours = open_named(f"svhn:{tmp_path}#{split}", "data")
    assert np.array_equal([pixels(ours.read(row)) for row in range(7)], theirs.data.transpose(0, 2, 3, 1))
    assert list(ours.labels) == theirs.labels.tolist() == [4, 5, 6, 7, 8, 9, 0]


def test_a_damaged_or_missing_mat_file_is_named(tmp_path: Path) -> None:
    """Half a file, another variable, and none."""
    write_svhn(tmp_path, "train")
    path = tmp_path / "train_32x32.mat"
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], content.replace(b"X", b"Z", 1), b""):
        path.write_bytes(broken)
        with pytest.raises(ImuError, match=r"train_32x32\.mat cannot be read"):
            open_named(f"svhn:{tmp_path}", "data")
    with pytest.raises(ImuError, match=r"found no test_32x32\.mat"):
        open_named(f"svhn:{tmp_path}", "test")


# --- by name


def test_the_role_or_the_spec_says_which_split(tmp_path: Path) -> None:
    """--test takes the test split, the others train; #train and #test win over that."""
    write_cifar10(tmp_path)
    roles: tuple[Role, ...] = ("data", "retain", "test")
    ends = ("", "#train", "#test")
    sizes = {end: [len(open_named(f"cifar10:{tmp_path}{end}", role)) for role in roles] for end in ends}
    assert sizes == {"": [15, 15, 3], "#train": [15, 15, 15], "#test": [3, 3, 3]}
    with pytest.raises(ImuError, match="no split 'val'; write #train or #test"):
        open_named(f"cifar10:{tmp_path}#val", "data")


def test_a_folder_is_named_with_or_without_its_scheme(tmp_path: Path) -> None:
    """imagefolder:DIR and DIR are one; a folder whose name holds a colon is a folder."""
    root = tree(tmp_path / "a:b#test", "cat/1.png")
    assert list(open_named(f"imagefolder:{root}", "test").names) == open_named(str(root), "data").names == ["cat/1.png"]


def test_unknown_schemes_and_splits_of_folders_say_what_to_write(tmp_path: Path) -> None:
    """A misspelt scheme is answered with the nearest, a split of a folder with the folder to name."""
    with pytest.raises(
        ImuError, match=r"no kind of data 'cifar' \(did you mean 'cifar10'\?\); known are imagefolder, "
    ):
        open_named("cifar:somewhere", "data")
    root = tree(tmp_path, "cat/1.png")
    with pytest.raises(ImuError, match="a folder of images has no splits"):
        open_named(f"{root}#train", "data")


@pytest.mark.slow
def test_a_class_folder_of_fifty_thousand_files_is_listed_in_under_a_second(tmp_path: Path) -> None:
    """Listing costs no look at any file: 50,000 names take far less than a second."""
    (tmp_path / "cat").mkdir()
    for number in range(50_000):
        os.close(os.open(tmp_path / "cat" / f"{number:05d}.png", os.O_CREAT | os.O_WRONLY))
    start = time.perf_counter()
    assert len(open_folder(tmp_path)) == 50_000
    assert time.perf_counter() - start < 1


# --- what a file claims is held against what it has


class _Asks:
    """Pickles to numpy's own names, with a number of bytes where the bytes belong."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __reduce__(self) -> Any:
        home = "numpy._core" if int(np.__version__.partition(".")[0]) > 1 else "numpy.core"
        return importlib.import_module(f"{home}.numeric")._frombuffer, (
            self.count,
            np.dtype(np.uint8),
            (self.count // 3072, 3072),
            "C",
        )


def test_a_batch_that_asks_for_memory(tmp_path: Path) -> None:
    """An array whose bytes are a number would be so many zeros: sixty bytes that take ten gigabytes."""
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps({"data": _Asks(3072 * 3_000_000), "labels": [0]}))
    with pytest.raises(ImuError, match="an array without its bytes"):
        open_named(f"cifar10:{tmp_path}#test", "data")


@pytest.mark.parametrize("odd", ["bomb", "digits", "text"])
def test_a_label_that_would_fill_the_message(tmp_path: Path, odd: str) -> None:
    """Nested references, thousands of digits and long texts are cut where they are shown."""
    bomb: Any = [0]
    for _ in range(60):
        bomb = [bomb, bomb]
    label = {"bomb": bomb, "digits": 10**6000, "text": "x" * 10**6}[odd]
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps({**batch, "labels": [label, *batch["labels"][1:]]}))
    with pytest.raises(ImuError, match="row 0 has label") as caught:
        open_named(f"cifar10:{tmp_path}#test", "data")
    assert len(str(caught.value)) < 1000


def test_names_of_classes_that_are_none(tmp_path: Path) -> None:
    """Lists among the names, and a list of coarse labels that is too short."""
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "batches.meta"
    path.write_bytes(pickle.dumps({"label_names": [["a"], *list("bcdefghij")]}))
    with pytest.raises(ImuError, match="names that are no text"):
        open_named(f"cifar10:{tmp_path}#test", "data")
    home = tmp_path / "cifar-100-python"
    home.mkdir()
    rows = np.zeros((3, 3072), np.uint8)
    (home / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a", "b"], "coarse_label_names": ["c"]}))
    (home / "test").write_bytes(pickle.dumps({"data": rows, "fine_labels": [0, 1, 1], "coarse_labels": [0, 0]}))
    with pytest.raises(ImuError, match="3 images and 2 coarse labels"):
        open_named(f"cifar100:{tmp_path}#test", "data")


@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_file_that_promises_what_it_has_not(tmp_path: Path, packed: bool) -> None:
    """Four hundred million images in a few bytes are refused before they are read, or room is made for them."""
    home = write_idx(tmp_path, "MNIST", packed)
    path = home / ("train-images-idx3-ubyte" + ".gz" * packed)
    content = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in (400_000_000, 28, 28))
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ImuError, match="promises 313,600,000,000 bytes and has"):
        open_named(f"mnist:{tmp_path}", "data")
