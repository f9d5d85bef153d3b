"""Where an unlearned model goes: a file with its record beside it, or a folder with its record in it, whole or not at all.

A folder carries along what describes the model, and nothing that could hold the weights as they were.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from imu_cli.errors import ImuError
from imu_cli.files import outputs, writing
from imu_cli.files.outputs import refuse_output
from imu_cli.models import kinds
from imu_cli.models.kinds import WEIGHTS
from imu_cli.models.layout import Layout, inside, main_file, stem
from imu_cli.models.sidecar import CONFIG
from imu_cli.records import json_files, record

CARRIED = (".json", ".jinja", ".txt", ".md", ".yaml", ".yml")
CARRIED_NAMES = ("LICENSE", "LICENCE", "NOTICE", "README")
MAX_CARRIED = 10_000_000
"""Bytes of a config, a list of labels, a tokenizer or a model card; weights in text form are larger."""
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "merges.txt",
)
MAX_TOKENIZER = 100_000_000
"""Bytes of a tokenizer of 256,000 words, which is larger than any other file that describes a model."""
OWN = (".record.json", ".evaluation.json")
"""Endings of what the tool wrote about the model that it read; the new model gets its own."""


@dataclass(frozen=True)
class Destination:
    """The new model, a file or a folder, and its record.

    For a folder, ``carried`` are the files that go with it and ``left`` those that do not; for a file, ``left`` is the
    config beside the input, if the output goes elsewhere.
    """

    output: Path
    record: Path
    is_folder: bool
    carried: tuple[Path, ...] = ()
    left: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """What a user should know of the files that are not weights."""
        if not self.left:
            return []
        if not self.is_folder:
            return [
                f"{self.left[0]} is not copied to {self.output.parent}; with the folder as MODEL it is carried along"
            ]
        return [
            f"left behind: {', '.join(self.left)}; only small text files that describe the model are carried into "
            f"{self.output}, since others may hold the weights as they were"
        ]


def choose(layout: Layout, output: str | None, force: bool) -> Destination:
    """Where the result goes, refused before any work if it cannot go there.

    Raises:
        ImuError: it is the input, exists, or cannot be created, or would come to lie in the Hugging Face cache unasked.
    """
    if layout.is_folder:
        return _folder(layout, output, force)
    main = layout.main
    path = Path(output) if output else main.with_name(f"{main.stem}.unlearned{main.suffix}")
    outputs.found(path)
    if output is None:
        refuse_cache(path, layout.model)
    config = main.with_name(CONFIG)
    elsewhere = path.parent.resolve() != main.parent.resolve()
    left = (str(config),) if elsewhere and config.is_file() else ()
    made = Destination(path, path.with_name(f"{stem(path)}.record.json"), is_folder=False, left=left)
    for file in (made.output, made.record):
        refuse_output(file, main, force)
    return made


def refuse_cache(output: Path, model: Path) -> None:
    """Ask where a result goes that would lie in the Hugging Face cache, from which it would be pruned with the model.

    Raises:
        ImuError: nobody named that place, and it lies in the cache.
    """
    if kinds.in_cache(output):
        raise ImuError(
            f"{model}: lies in the Hugging Face cache, where {output.name} would be pruned with it; say where it goes with --output"
        )


def _folder(layout: Layout, output: str | None, force: bool) -> Destination:
    source = layout.folder if layout.folder.name not in ("", "..") else layout.folder.resolve()
    path = Path(output) if output else source.with_name(f"{source.name}.unlearned")
    if output is None:
        refuse_cache(path, layout.model)
    carried, left = _sidecars(layout)
    made = Destination(path, path / f"{stem(layout.main)}.record.json", True, tuple(carried), tuple(left))
    there = outputs.found(path)
    outputs.refuse_source(path, source)
    if path.name.endswith(WEIGHTS) and not path.is_dir():
        raise ImuError(f"{path}: named as a file, and {layout.model} is written as a folder; name one as --output")
    if path.is_symlink() or there == "file":
        raise ImuError(f"{path}: exists and is not a folder; choose another --output")
    refuse_foreign(made, layout, force)
    return made


def refuse_foreign(made: Destination, layout: Layout, force: bool) -> None:
    """Refuse to replace a folder that holds anything but an earlier result under the same names; an empty one is free.

    Raises:
        ImuError: ``--force`` is missing, or would not be enough.
    """
    there = sorted(path.name for path in made.output.iterdir()) if made.output.is_dir() else []
    if there and not force:
        raise ImuError(f"{made.output}: exists; choose another --output, or --force to replace it")
    evaluation = f"{stem(layout.main)}.evaluation.json"
    ours = {path.name for path in (*layout.files, *made.carried, made.record)} | {evaluation}
    foreign = [name for name in there if name not in ours or not (made.output / name).is_file()]
    if foreign:
        raise ImuError(
            f"{made.output}: holds {foreign[0]}{f' and {len(foreign) - 1} more' if len(foreign) > 1 else ''}, which an "
            "unlearning of this model does not write, so --force does not replace it; choose another --output"
        )
    if there and not _is_result(made.record):
        raise ImuError(
            f"{made.output}: holds a model without a record of its unlearning, so --force does not replace it; choose "
            "another --output"
        )


def _is_result(path: Path) -> bool:
    try:
        return isinstance(json_files.read(path), record.Record)
    except ImuError:
        return False


def _sidecars(layout: Layout) -> tuple[list[Path], list[str]]:
    """Files beside the weights that describe the model, and the names of everything else."""
    weights = {file.name for file in layout.files}
    carried, left = [], []
    for path in sorted(layout.folder.iterdir()):
        if path.name in weights or path.name.endswith(OWN):
            continue
        if _describes(layout.folder, path):
            carried.append(path)
        else:
            left.append(path.name + ("/" if path.is_dir() else ""))
    return carried, left


def _describes(folder: Path, path: Path) -> bool:
    tokenizer = path.name in TOKENIZERS
    small_text = path.suffix.lower() in CARRIED or path.name.upper().startswith(CARRIED_NAMES)
    if not (small_text or tokenizer) or path.name.endswith(".index.json"):  # an index of weights that are not carried
        return False
    try:
        return inside(folder, path.name).stat().st_size <= (MAX_TOKENIZER if tokenizer else MAX_CARRIED)
    except ImuError:
        return False


@contextmanager
def opened(made: Destination, layout: Layout, force: bool) -> Iterator[tuple[Path, Path]]:
    """Where to write the weights (a file, or a folder with the sidecars in it) and the record, until they take their place.

    Both appear at the end, or after any exception neither does.

    Raises:
        ImuError: cannot be written, or something else has come into their place meanwhile.
    """
    if not made.is_folder:
        replaced = partial(refuse_output, source=layout.main, force=True) if force else writing.nothing
        with writing.together(made.output, made.record, replaced=replaced) as (weights, text):
            yield weights, text
        return
    with writing.folder(made.output, lambda _: refuse_foreign(made, layout, force)) as temporary:
        for path in made.carried:
            shutil.copyfile(path, temporary / path.name)
        yield temporary, temporary / made.record.name


def beside(model: Path, kind: Literal["record", "evaluation"]) -> Path:
    """Where the record or evaluation of a model lies: ``<stem>.record.json`` beside its file, or in its folder."""
    main = main_file(model)
    return main.with_name(f"{stem(main)}.{kind}.json")
