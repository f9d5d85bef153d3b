"""Safetensors files: what is refused on opening, and that writing changes the given tensors' bytes and nothing else."""

import json
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from imu_cli.errors import ImuError, RefusedError
from imu_cli.files.outputs import refuse_output
from imu_cli.files.writing import together
from imu_cli.models.checkpoint import Checkpoint, open_checkpoint, patch, to_bytes

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
HEAD = {"fc.weight", "fc.bias"}


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A backbone in several dtypes around a head in one; names and dtypes sort differently, as the format stores them."""
    random = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=random),
        "fc.bias": torch.randn(5, generator=random).to(dtype),
        "fc.weight": torch.randn(5, 4, generator=random).to(dtype),
        "z.running_mean": torch.randn(4, generator=random, dtype=torch.float64),
        "z.steps": torch.tensor(7),
    }


def written(path: Path, values: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Checkpoint:
    """The tensors in a file, opened."""
    save_file(values, path, metadata=metadata)
    return open_checkpoint(path)


def header(data: bytes) -> tuple[int, dict[str, dict[str, list[int]]]]:
    """Where the data start, and the header, read from the format's definition alone."""
    length = int.from_bytes(data[:8], "little")
    return 8 + length, json.loads(data[8 : 8 + length])


def raw(tensor: Tensor) -> bytes:
    """A tensor's bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_patch_changes_the_given_tensors_bytes_and_nothing_else(tmp_path: Path, dtype: torch.dtype) -> None:
    """The patched file is the old one, byte for byte, with the new tensors' bytes in the places of the old ones.

    So names, dtypes, their order, the metadata and the size are kept; new values are rounded to the file's dtype.
    """
    source = written(tmp_path / "a.safetensors", tensors(dtype), {"b": "2", "a": "1"})
    random = torch.Generator().manual_seed(1)
    new = {
        "fc.weight": torch.randn(5, 4, generator=random, dtype=torch.float64),
        "fc.bias": torch.randn(5, generator=random, dtype=torch.float64),
    }
    patch(source, new, tmp_path / "b.safetensors")
    expected = bytearray(source.path.read_bytes())
    start, entries = header(bytes(expected))
    for name, tensor in new.items():
        low, high = entries[name]["data_offsets"]
        expected[start + low : start + high] = raw(tensor.to(dtype))
    assert (tmp_path / "b.safetensors").read_bytes() == bytes(expected)
    assert bytes(expected) != source.path.read_bytes()


def test_patching_a_transposed_view_writes_rows_in_order(tmp_path: Path) -> None:
    """A tensor that is not contiguous in memory is written row by row, as the format wants."""
    source = written(tmp_path / "a.safetensors", tensors())
    turned = torch.arange(20.0).reshape(4, 5).T
    patch(source, {"fc.weight": turned}, tmp_path / "b.safetensors")
    assert torch.equal(open_checkpoint(tmp_path / "b.safetensors").tensor("fc.weight"), turned)


@pytest.mark.parametrize("shape", [(5, 3), (5, 5), (6, 4)], ids=str)
def test_a_tensor_of_another_size_is_not_written(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Too few or too many values for the tensor's place in the file are noticed."""
    source = written(tmp_path / "a.safetensors", tensors())
    with pytest.raises(ImuError):
        patch(source, {"fc.weight": torch.ones(shape)}, tmp_path / "b.safetensors")


def test_a_file_that_changed_since_it_was_opened_is_not_patched(tmp_path: Path) -> None:
    """Scores belong to the weights that were read: if a training run has saved over them since, nothing is written."""
    source = written(tmp_path / "a.safetensors", tensors())
    changed = tensors()
    changed["conv.weight"] += 1
    save_file(changed, source.path)
    with pytest.raises(ImuError, match="has changed since it was opened"):
        patch(source, {"fc.bias": torch.zeros(5)}, tmp_path / "b.safetensors")


def test_one_tensor_is_read_as_the_file_holds_it(tmp_path: Path) -> None:
    """``tensor`` and ``tensors`` give the same bits, in the file's dtypes."""
    values = tensors(torch.bfloat16)
    source = written(tmp_path / "a.safetensors", values)
    for name, tensor in source.tensors().items():
        assert tensor.dtype == source.tensor(name).dtype == values[name].dtype
        assert raw(tensor) == raw(source.tensor(name)) == raw(values[name])


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Sets the umask; it is put back afterwards."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077], ids=oct)
def test_new_files_get_the_mode_the_umask_asks_for(tmp_path: Path, mask: int, umask: Callable[[int], int]) -> None:
    """A file is as readable as any other that the user makes, whatever mode a temporary file has; the umask stays."""
    umask(mask)
    with together(tmp_path / "a", replaced=partial(refuse_output, source=None, force=True)) as (temporary,):
        temporary.write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask
    assert umask(mask) == mask


def link(folder: Path) -> Path:
    (folder / "link").symlink_to("model.safetensors")
    return folder / "link"


def link_to_link(folder: Path) -> Path:
    (folder / "second").symlink_to(link(folder))
    return folder / "second"


def hard_link(folder: Path) -> Path:
    os.link(folder / "model.safetensors", folder / "hard")
    return folder / "hard"


def roundabout(folder: Path) -> Path:
    (folder / "sub").mkdir()
    return folder / "sub" / ".." / "model.safetensors"


def linked_folder(folder: Path) -> Path:
    (folder / "same").symlink_to(folder)
    return folder / "same" / "model.safetensors"


@pytest.mark.parametrize(
    "way", [link, link_to_link, hard_link, roundabout, linked_folder], ids=lambda way: way.__name__
)
@pytest.mark.parametrize("force", [False, True])
def test_the_input_is_never_the_output(tmp_path: Path, way: Callable[[Path], Path], force: bool) -> None:
    """However the input is named as output, it is refused, also with --force."""
    source = written(tmp_path / "model.safetensors", tensors())
    with pytest.raises(ImuError, match="is the input"):
        refuse_output(way(tmp_path), source.path, force)


def test_outputs_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    """A file in the way, also a link to nothing, needs --force; a folder, or a missing one, is refused with it too."""
    source = written(tmp_path / "model.safetensors", tensors())
    (tmp_path / "old").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("old", "dangling"):
        with pytest.raises(ImuError, match="exists; choose another"):
            refuse_output(tmp_path / name, source.path, force=False)
        refuse_output(tmp_path / name, source.path, force=True)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImuError, match="a folder"):
        refuse_output(tmp_path / "folder", source.path, force=True)
    with pytest.raises(ImuError, match="no such folder"):
        refuse_output(tmp_path / "missing" / "out", source.path, force=True)
    refuse_output(tmp_path / "new", source.path, force=False)


def contents(folder: Path) -> dict[str, str | None]:
    """What lies in a folder, by name; None for what is no file."""
    return {path.name: path.read_text() if path.is_file() else None for path in folder.iterdir()}


def write_both(folder: Path, error: BaseException | None = None) -> None:
    """New contents for ``a`` and ``b``, or an exception once they are written."""
    with together(folder / "a", folder / "b", replaced=partial(refuse_output, source=None, force=True)) as (a, b):
        a.write_text("new a")
        b.write_text("new b")
        if error is not None:
            raise error


def test_together_replaces_all(tmp_path: Path) -> None:
    """At the end every output holds what was written to its temporary file, and nothing else is left in the folder."""
    (tmp_path / "a").write_text("old")
    with together(tmp_path / "a", tmp_path / "b", replaced=partial(refuse_output, source=None, force=True)) as (a, b):
        a.write_text("new a")
        b.write_text("new b")
        assert (tmp_path / "a").read_text() == "old"
    assert contents(tmp_path) == {"a": "new a", "b": "new b"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_any_exception_leaves_everything_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    """Whatever is raised on the way comes through, the outputs are untouched, and no temporary file stays."""
    (tmp_path / "a").write_text("old")
    with pytest.raises(error):
        write_both(tmp_path, error())
    assert contents(tmp_path) == {"a": "old"}


@pytest.mark.parametrize("before", [{}, {"a": "old"}], ids=["new", "existing"])
def test_an_output_that_cannot_be_replaced_undoes_the_others(tmp_path: Path, before: dict[str, str]) -> None:
    """If the second file cannot take its place, the first is as it was before: none or all."""
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_text("in the way")
    with pytest.raises(ImuError, match="b: a folder"):
        write_both(tmp_path)
    assert contents(tmp_path) == {**before, "b": None}
    assert contents(tmp_path / "b") == {"x": "in the way"}


def test_a_link_in_the_outputs_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """What an output's link points to is left alone; undone, the link is a link again."""
    (tmp_path / "real").write_text("mine")
    (tmp_path / "a").symlink_to("real")
    (tmp_path / "b").mkdir()
    with pytest.raises(ImuError, match="b: a folder"):
        write_both(tmp_path)
    assert (tmp_path / "a").is_symlink()
    with together(tmp_path / "a", replaced=partial(refuse_output, source=None, force=True)) as (a,):
        a.write_text("new")
    assert contents(tmp_path) == {"real": "mine", "a": "new", "b": None}
    assert not (tmp_path / "a").is_symlink()


def test_a_missing_folder_is_an_imu_error(tmp_path: Path) -> None:
    """What the operating system refuses is said in one line, and the first temporary file is gone again."""
    with (
        pytest.raises(ImuError, match="nothing was written"),
        together(tmp_path / "a", tmp_path / "no" / "b"),
    ):
        pass
    assert contents(tmp_path) == {}


PREFIXED = [
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.module.",
    "model.model.",
]


@pytest.mark.parametrize("prefix", PREFIXED)
@pytest.mark.parametrize(
    "names", [("fc.weight", "conv.weight"), ("model.fc.weight",), ("module.weight", "fc.weight")], ids=str
)
def test_wrappers_prefixes_are_found(tmp_path: Path, prefix: str, names: tuple[str, ...]) -> None:
    """What wrappers put before every name is found, nested too, also where a model's own names start like a prefix."""
    source = written(tmp_path / "a.safetensors", {prefix + name: torch.ones(1) for name in names})
    assert source.prefix(set(names)) == prefix


def test_an_unknown_prefix_is_none(tmp_path: Path) -> None:
    """Words that no known wrapper explains are a prefix where they are before every name, and else none."""
    source = written(tmp_path / "a.safetensors", {"student.fc.weight": torch.ones(1), "student.a": torch.ones(1)})
    assert source.prefix({"fc.weight"}) == "student."
    source = written(tmp_path / "b.safetensors", {"features.fc.weight": torch.ones(1), "head.weight": torch.ones(1)})
    assert source.prefix({"fc.weight"}) == ""


def test_the_outside_hash_notices_any_bit_outside_the_head_and_none_inside(tmp_path: Path) -> None:
    """Flipping one bit of a tensor changes the hash exactly if the tensor is not in the head."""
    path = tmp_path / "a.safetensors"
    source = written(path, tensors())
    data, before = path.read_bytes(), source.outside_hash(HEAD)
    for name, entry in source.entries.items():
        for place in range(entry.start, entry.end, 5):
            flipped = bytearray(data)
            flipped[place] ^= 1 << place % 8
            path.write_bytes(flipped)
            assert (source.outside_hash(HEAD) == before) == (name in HEAD), (name, place)


def test_the_outside_hash_notices_names_dtypes_and_shapes(tmp_path: Path) -> None:
    """Equal bytes under another name, dtype or shape are another backbone; another head or other metadata are not."""
    base = {"a": torch.zeros(2, 3, dtype=torch.float16), "fc.weight": torch.zeros(3, 3)}
    same = {"fc.weight": torch.ones(7), "fc.bias": torch.ones(2), "a": base["a"]}
    others = [
        {**base, "b": torch.zeros(0)},
        {"b": base["a"], "fc.weight": base["fc.weight"]},
        {**base, "a": torch.zeros(2, 3, dtype=torch.bfloat16)},
        {**base, "a": torch.zeros(3, 2, dtype=torch.float16)},
    ]
    before = written(tmp_path / "0", base).outside_hash(HEAD)
    assert written(tmp_path / "1", same, {"k": "v"}).outside_hash(HEAD) == before
    hashes = [written(tmp_path / "2", other).outside_hash(HEAD) for other in others]
    assert len({before, *hashes}) == 5


def test_every_proper_beginning_of_a_file_is_refused(tmp_path: Path) -> None:
    """Wherever a download or a copy breaks off, the file is refused in one line."""
    source = written(tmp_path / "a.safetensors", tensors())
    data, cut = source.path.read_bytes(), tmp_path / "b.safetensors"
    for length in (*range(0, len(data), 3), len(data) - 1):
        cut.write_bytes(data[:length])
        with pytest.raises(ImuError, match=r"b\.safetensors"):
            open_checkpoint(cut)


def test_any_changed_byte_of_the_header_is_read_or_refused(tmp_path: Path) -> None:
    """A damaged header either still describes tensors that can be read, or is an error of ours: never a traceback."""
    source = written(tmp_path / "a.safetensors", tensors(), {"k": "v"})
    data, spoilt = source.path.read_bytes(), tmp_path / "b.safetensors"
    refused = 0
    for place in range(header(data)[0]):
        for flip in (0x01, 0x80):
            damaged = bytearray(data)
            damaged[place] ^= flip
            spoilt.write_bytes(damaged)
            try:
                open_checkpoint(spoilt).tensors()
            except ImuError:
                refused += 1
    assert refused > 100


def file_of(text: str | bytes, size: int) -> bytes:
    """A file with this header and ``size`` zero bytes of data."""
    said = text.encode() if isinstance(text, str) else text
    return len(said).to_bytes(8, "little") + said + bytes(size)


F32 = '"dtype":"F32","shape":[2]'

BAD = {
    "empty": b"",
    "text": b"this is not a checkpoint, it is prose of some length",
    "header of 2^40 bytes": (2**40).to_bytes(8, "little") + b"{}",
    "header of 2^64 - 1 bytes": b"\xff" * 8 + b"{}",
    "header longer than the file": (100).to_bytes(8, "little") + b"{}",
    "header is not JSON": file_of("{fc.weight: 3}", 8),
    "header is not UTF-8": file_of(b'{"\xff":{' + F32.encode() + b',"data_offsets":[0,8]}}', 8),
    "header is a list": file_of("[1, 2]", 0),
    "overlapping": file_of(f'{{"a":{{{F32},"data_offsets":[0,8]}},"b":{{{F32},"data_offsets":[4,12]}}}}', 12),
    "same place twice": file_of(f'{{"a":{{{F32},"data_offsets":[0,8]}},"b":{{{F32},"data_offsets":[0,8]}}}}', 8),
    "a hole": file_of(f'{{"a":{{{F32},"data_offsets":[0,8]}},"b":{{{F32},"data_offsets":[12,20]}}}}', 20),
    "beyond the end": file_of(f'{{"a":{{{F32},"data_offsets":[0,8]}}}}', 4),
    "bytes left over": file_of(f'{{"a":{{{F32},"data_offsets":[0,8]}}}}', 12),
    "backwards": file_of(f'{{"a":{{{F32},"data_offsets":[8,0]}}}}', 8),
    "negative": file_of(f'{{"a":{{{F32},"data_offsets":[-8,0]}}}}', 8),
    "shape and bytes differ": file_of('{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', 8),
    "huge shape": file_of('{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,8]}}', 8),
    "unknown dtype": file_of('{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}', 8),
    "no offsets": file_of(f'{{"a":{{{F32}}}}}', 8),
    "a key twice": file_of(f'{{"a":{{{F32},"data_offsets":[0,8]}},"a":{{{F32},"data_offsets":[0,8]}}}}', 8),
    "nested 100,000 deep": file_of('{"a":' * 100_000 + "1" + "}" * 100_000, 0),
    "metadata is a number": file_of(f'{{"__metadata__":3,"a":{{{F32},"data_offsets":[0,8]}}}}', 8),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(tmp_path: Path, name: str) -> None:
    """What is not a whole, consistent safetensors file is an ImuError that names the file, and reads no further."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(BAD[name])
    with pytest.raises(ImuError, match=r"bad\.safetensors") as caught:
        open_checkpoint(path)
    assert caught.value.exit_code == 2


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    """No file, or a folder, is said as such."""
    with pytest.raises(ImuError, match="no such file"):
        open_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(ImuError, match=r"a folder without a \.safetensors file"):
        open_checkpoint(tmp_path)


def torch_zip(path: Path) -> None:
    torch.save(tensors(), path)


def torch_legacy(path: Path) -> None:
    torch.save(tensors(), path, _use_new_zipfile_serialization=False)


def pickled(protocol: int, path: Path) -> None:
    path.write_bytes(pickle.dumps({"fc.weight": [1.0] * 1000}, protocol))


PICKLERS: dict[str, Callable[[Path], None]] = {
    "torch.save": torch_zip,
    "torch.save, legacy": torch_legacy,
    **{f"pickle protocol {protocol}": partial(pickled, protocol) for protocol in (2, 3, 4, 5)},
}


@pytest.mark.parametrize("name", PICKLERS)
def test_pickles_are_told_by_their_content(tmp_path: Path, name: str) -> None:
    """A pickle called .safetensors is still a pickle: refused with exit code 4, and never unpickled."""
    path = tmp_path / "model.safetensors"
    PICKLERS[name](path)
    with pytest.raises(RefusedError, match="a pickle") as caught:
        open_checkpoint(path)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".pkl", ".tar"])
def test_pickles_are_told_by_their_suffix(tmp_path: Path, suffix: str) -> None:
    """Whatever is in it, a file named as a pickle is refused as one."""
    save_file(tensors(), tmp_path / f"model{suffix}")
    with pytest.raises(RefusedError, match="a pickle"):
        open_checkpoint(tmp_path / f"model{suffix}")


def test_no_safetensors_file_is_taken_for_a_pickle(tmp_path: Path) -> None:
    """Headers of 640, 896, 1152 and 1408 bytes begin like pickles of protocols 2 to 5, and are none."""
    path, met = tmp_path / "a.safetensors", set()
    for length in range(480, 1500, 8):
        source = written(path, {"a": torch.zeros(1)}, {"note": "x" * (length - 88)})
        assert source.metadata["note"] == "x" * (length - 88)
        met.add(path.read_bytes()[:2])
    assert {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"} <= met


def test_a_tensor_in_channels_last_order_is_written_row_by_row() -> None:
    """Of a kernel of one pixel torch says that both orders are contiguous, and its last stride is not 1."""
    plain = torch.arange(12.0).view(4, 3, 1, 1)
    turned = torch.empty_strided((4, 3, 1, 1), (3, 1, 3, 3)).copy_(plain)
    assert turned.is_contiguous()
    assert to_bytes(turned, "F32") == plain.numpy().tobytes()
