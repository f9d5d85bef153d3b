"""What a file or a folder is that was named as a model and is none, from names and first bytes: no torch, and nothing is run.

An advice is only as good as the file that it names: an optimiser's state, a pointer of Git LFS, one shard of several and an
adapter are told from weights before anything is proposed.
"""

import pickletools
import re
import zipfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from imu_cli.errors import ImuError, RefusedError

PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".tar")
WEIGHTS = ".safetensors"
PICKLE_INDEX = ".bin.index.json"
"""Ends the name of the index that transformers wrote beside sharded pickles."""
PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.)")
"""In the name of a shard: its number and how many there are."""
SCAN = 20_000_000
"""Bytes of a pickle that are looked at for its first words."""

TRAINERS: Sequence[tuple[str, str]] = (
    (r"optim(izer)?([_-]?\d+)?\.\w+$|\w*_optim_states\.", "an optimiser's state"),
    (r"(lr_)?scheduler([_-]?\d+)?\.\w+$", "a learning-rate schedule"),
    (r"(grad_|amp_)?scaler\.\w+$", "a gradient scaler's state"),
    (r"rng_state|random_states", "states of random number generators"),
    (r"training_args\.|train_args\.", "the trainer's arguments"),
    (r"sampler([_-]?\d+)?\.\w+$|dl_state_dict", "a data loader's state"),
)
"""Files that trainers write beside a model, by the start of their names."""
FOREIGN = {".h5": "TensorFlow", ".msgpack": "JAX", ".onnx": "ONNX", ".gguf": "llama.cpp", ".tflite": "TensorFlow Lite"}
"""Endings of weights that other programs read."""
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model"
ADAPTER_PREFIX = "base_model.model."
"""What peft puts before every name of an adapter's tensors."""

CACHE = "models--"
"""Start of a model's folder in the Hugging Face cache."""

POINTERS: Sequence[tuple[bytes, str]] = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer"),
    (b"# xet version", "a Git Xet pointer"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
)
"""Starts of text files that stand where weights should."""


def is_part(name: str) -> bool:
    """Whether a file's name is that of one shard of several."""
    found = PART.search(name)
    return found is not None and int(found[2]) > 1


def refuse_pointer(path: Path) -> None:
    """Refuse a text file that stands in for weights that were not fetched.

    Raises:
        ImuError: with what it is; other files, and those that cannot be read, pass.
    """
    try:
        with path.open("rb") as file:
            start = file.read(200)
    except OSError:
        return
    for mark, what in POINTERS:
        if start.lstrip().lower().startswith(mark):
            size = re.search(rb"^size (\d{1,18})\s*$", start, re.MULTILINE)
            text = f", text in place of {int(size[1]):,} bytes of weights" if size else ", and no weights"
            raise ImuError(f"{path}: {what}{text}; fetch the file itself (git lfs pull, or download it again)")


def of_trainer(path: Path) -> str | None:
    """What a file that lies beside a model is, from its name, else from the first words of its pickle; None for what may be a model."""
    by_name = next((what for start, what in TRAINERS if re.match(start, path.name)), None)
    return by_name or _of_words(_first_words(path))


def _first_words(path: Path, most: int = 40) -> list[str]:
    """The first texts in a torch.save archive's pickle, read as data; [] where it is no such archive, or a link to elsewhere."""
    if path.is_symlink():
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            inner = next((item for item in archive.infolist() if item.filename.endswith("data.pkl")), None)
            if inner is None or inner.file_size > SCAN:
                return []
            raw = archive.read(inner)
        words = (word for code, word, _ in pickletools.genops(raw) if "UNICODE" in code.name and isinstance(word, str))
        return list(islice(words, most))
    except Exception:  # noqa: BLE001 a file that is no archive, or a broken one, has no words; its reader will say so
        return []


def _of_words(words: Sequence[str]) -> str | None:
    if words[:1] in (["state"], ["param_groups"]) and not {"state_dict", "model"} & set(words):
        return "an optimiser's state"
    return "a learning-rate schedule" if {"_last_lr", "_step_count"} <= set(words[:20]) else None


def refuse_adapter(path: Path, names: Sequence[str]) -> None:
    """Refuse the tensors of a LoRA or other adapter, which hold changes to another model's weights.

    Raises:
        RefusedError: with how to make one model of both.
    """
    if path.name.startswith(ADAPTER) or (names and all(name.startswith(ADAPTER_PREFIX) for name in names)):
        raise RefusedError(adapter_message(path))


def adapter_message(path: Path) -> str:
    """What to do with an adapter."""
    return (
        f"{path}: an adapter (LoRA or another of peft), changes to another model's weights; make one model of both where it was "
        "trained: peft's model.merge_and_unload().save_pretrained('merged')"
    )


def pickled(files: Sequence[Path]) -> list[Path]:
    """Which of a folder's files hold a pickled model: an index alone where there is one, else pickles that are not a trainer's.

    Shards without an index are all of them.
    """
    indices = [path for path in files if path.name.endswith(PICKLE_INDEX)]
    if len(indices) == 1:
        return indices
    found = sorted(path for path in files if path.suffix in PICKLES and path.is_file() and of_trainer(path) is None)
    named = [path for path in found if path.name == "pytorch_model.bin"]
    return named or found


def refuse_folder(folder: Path, files: Sequence[Path]) -> None:
    """Say what a folder without a .safetensors file is.

    Raises:
        RefusedError: it holds pickles, or an adapter.
        ImuError: it holds no model.
    """
    names = {path.name for path in files}
    found = pickled(files)
    if ADAPTER_CONFIG in names and all(path.name.startswith(ADAPTER) for path in found):
        raise RefusedError(adapter_message(folder))
    if found:
        raise RefusedError(_pickles(folder, found))
    others = [
        f"{path.name} ({what})" for path in sorted(files) if path.suffix in PICKLES and (what := of_trainer(path))
    ]
    others += [f"{path.name} ({FOREIGN[path.suffix]})" for path in sorted(files) if path.suffix in FOREIGN]
    inner = sorted(
        path.name for path in files if path.is_dir() and path.name.startswith(("checkpoint", "epoch", "step"))
    )
    if inner:
        raise ImuError(f"{folder}: a folder of checkpoints, {', '.join(inner[:5])}; name one of them")
    if others:
        raise ImuError(
            f"{folder}: a folder without PyTorch weights; it holds {', '.join(others[:5])}; save the model there as safetensors "
            "(model.save_pretrained(folder))"
        )
    raise ImuError(f"{folder}: a folder without a .safetensors file; name a checkpoint, or a folder that has one")


def _pickles(folder: Path, found: Sequence[Path]) -> str:
    whole = _target(folder / f"model{WEIGHTS}")
    if len(found) == 1 or all(is_part(path.name) for path in found):
        one = (
            found[0]
            if len(found) == 1 and not is_part(found[0].name) and not found[0].name.endswith(PICKLE_INDEX)
            else folder
        )
        return pickle_message(one, whole)
    names = ", ".join(path.name for path in found[:5])
    return f"{folder}: holds pickles only, {names}; convert the one that is the model: imu convert {found[0]} {whole}"


def pickle_message(path: Path, target: Path) -> str:
    """The advice for a pickle, or a folder of shards of one: what it is, and the line to run."""
    what = (
        "pickles, which can run code when they are read"
        if path.is_dir()
        else "a pickle, which can run code when it is read"
    )
    return f"{path}: {what}; convert without running any: imu convert {path} {target}"


def pickle_advice(path: Path) -> str:
    """What to do with a file that is a pickle: convert it, its folder, or another file."""
    if path.name.startswith(ADAPTER):
        return adapter_message(path)
    what = of_trainer(path)
    if what is not None:
        return f"{path}: {what}, no model; name the file with the model's weights"
    if is_part(path.name):
        return f"{path}: one shard of several of a pickled model; convert its folder: imu convert {path.parent} model{WEIGHTS}"
    target = path.with_suffix(WEIGHTS)
    return pickle_message(path, _target(target if target != path else path.with_name(f"{path.stem}.new{WEIGHTS}")))


def in_cache(output: Path) -> bool:
    """Whether a file would lie in a model's folder of the Hugging Face cache, and be pruned with it."""
    where = output.parent.resolve()
    return any(folder.name.startswith(CACHE) and (folder / "blobs").is_dir() for folder in (where, *where.parents))


def _target(path: Path) -> Path:
    """Where an advice lets a file be written: beside the model, but for the Hugging Face cache, in the current folder."""
    return Path(path.name) if in_cache(path) else path
