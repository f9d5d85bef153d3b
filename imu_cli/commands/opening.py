"""Everything a command opens before it computes: checkpoint, model, preprocessing, class names, forget set, features."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TypeVar

from imu_cli.commands import preparing
from imu_cli.config.shared import ForgetConfig, ModelConfig
from imu_cli.errors import ImuError, RefusedError
from imu_cli.events import Events, Log
from imu_cli.features import engine as engine_module
from imu_cli.features import origin
from imu_cli.features.session import Network, Run, Session
from imu_cli.files import memory, streams
from imu_cli.files.reading import environment_number
from imu_cli.influence import closed_form
from imu_cli.models import architecture, embedding, language, sidecar
from imu_cli.models.architecture import Loaded
from imu_cli.models.checkpoint import Checkpoint, open_checkpoint
from imu_cli.models.head_search import find_head, named_head
from imu_cli.models.sidecar import Said
from imu_cli.samples import asked, vectors
from imu_cli.samples.classes import ClassNames, class_names
from imu_cli.samples.column_names import ColumnNames
from imu_cli.samples.dataset import RECORDS, TEXTS, WORDS, SampleSet
from imu_cli.samples.manifest import load_forget, open_source, peek
from imu_cli.samples.vectors import Vectors

Config = TypeVar("Config", bound=ForgetConfig)

TORCHRUN = "torchrun sets it, start imu with it or unset it"
EVERYTHING = ["index=:"]
"""The selector of every row of a data set."""


def load_model(
    path: Path, config: ModelConfig, known: Said | None = None, checkpoint: Checkpoint | None = None
) -> tuple[Checkpoint, Loaded]:
    """The checkpoint, opened unless it is already, and the model it fits into, loaded strictly; ``known`` is a record's word."""
    checkpoint = checkpoint or open_checkpoint(path)
    return checkpoint, architecture.load(
        checkpoint, config.arch, config.arch_arg, known, strip_prefix=config.strip_prefix, leave_out=config.leave_out
    )


def with_features(config: Config) -> Config:
    """The config with ``--features FILE`` as what it stands for: the data set, and without ``--forget`` all of it.

    Raises:
        ImuError: ``--data`` is given too.
    """
    if config.features is None:
        return config
    if config.data not in (None, config.features):
        raise ImuError(f"--features {config.features}: stands in place of --data; leave one of them out")
    if not vectors.is_features(config.features):
        raise ImuError(f"--features {config.features}: not a .safetensors file; imu features writes one")
    return replace(config, data=config.features, forget=config.forget or EVERYTHING)


def run_of(config: ForgetConfig) -> Run:
    """How features are computed, as the options say."""
    most = None if config.max_memory is None else memory.parse(config.max_memory)
    return Run(config.batch_size, config.precision, most, config.seed)


def open_all(
    path: Path, config: ForgetConfig, events: Events, known: Said | None = None, checkpoint: Checkpoint | None = None
) -> Session:
    """Open and validate everything that the commands share; nothing is written.

    Args:
        path: the model.
        config: options, as ``with_features`` leaves them.
        events: hears what goes on.
        known: what a record that describes this very model says of it, believed before the model's files.
        checkpoint: the model, where it is open already.

    Raises:
        ImuError: whatever is wrong with model, options or data, as early as it can be known.
        RefusedError: the checkpoint cannot be handled.
    """
    log = Log(events)
    if not config.forget:
        raise ImuError("--forget: not given; name a forget.csv, a folder with --label, or a selector such as class=cat")
    closed_form.Damping.parse(config.damping)
    names, run = ColumnNames.parse(config.columns), run_of(config)
    on_features = config.data is not None and vectors.is_features(config.data)
    with log.timed("loading"):
        opened = (_open_on_features if on_features else _open_on_samples)(path, checkpoint, config, known, run, log)
    opened.columns = names
    data = opened.data
    loaded = opened.network.loaded.notes if opened.network else ()
    for warning in (*opened.checkpoint.layout.notes, *loaded, *(data.notes if data else ()), *opened.forget.notes):
        opened.note(warning)
    return opened


@dataclass(frozen=True)
class _Given:
    """The data set and standard input, if named, the first few samples of the forget list, and what columns are called."""

    data: SampleSet | None
    stdin: BytesIO | None
    few: SampleSet
    names: ColumnNames


def _read_data(config: ForgetConfig) -> _Given:
    names = ColumnNames.parse(config.columns)
    if config.data == "-" and config.forget == ["-"]:
        raise ImuError("--data -: the forget list is what standard input holds; name a file")
    data = open_source(config.data, "data", names=names) if config.data else None
    stdin = BytesIO(streams.from_stdin()) if config.forget == ["-"] else None
    return _Given(data, stdin, peek(config.forget, data, engine_module.TRIED, stdin, names), names)


def _open_on_samples(
    path: Path, checkpoint: Checkpoint | None, config: ForgetConfig, known: Said | None, run: Run, log: Log
) -> Session:
    checkpoint, loaded = load_model(path, config, known, checkpoint)
    embeds = is_embedding(config, loaded)
    said = [*([] if known is None else [known]), *loaded.said]
    given = None if loaded.takes == "image" else _read_data(config)
    takes = takes_of(config, loaded, given.few if given is not None else None)
    step = preparing.find(takes, config, loaded, checkpoint.folder, said, run.max_memory)
    device = engine_module.pick_device(config.device, environment_number("LOCAL_RANK", 0, 0, 4095, TORCHRUN))
    engine_module.refuse_precision(config.precision, device)
    model = engine_module.prepare(loaded.model, device)
    given = given or _read_data(config)
    preparing.refuse_other_kind(takes, given.few, path)
    probe = engine_module.probe_of(given.few, step.made, device)
    if embeds:
        engine_module.refuse_if_random(model, probe, embedding.output(config.embedding or embedding.OUTPUT))
        head = embedding.find_embedding(model, probe, config.embedding)
        forget, data, people = asked.forgotten_people(config.forget, given.data, config.label, given.stdin, given.names)
        network = Network(loaded, model, step.made, step.source, probe)
        return Session(
            run, checkpoint, network, None, device, head, checkpoint.outside_hash(set()), people, forget, data, log
        )
    if takes == "record":
        engine_module.refuse_if_random(model, probe, language.logits)
        head = language.find_head(model, probe, checkpoint, loaded, config.head)
        forget = asked.forgotten_records(config.forget, given.data, config.label, given.stdin, given.names)
        network = Network(loaded, model, step.made, step.source, probe)
        outside = checkpoint.outside_hash(set(head.tensors) & set(checkpoint.entries))
        data = None if given.data is None else asked.unlabelled(given.data)
        return Session(run, checkpoint, network, None, device, head, outside, asked.NO_CLASSES, forget, data, log)
    engine_module.refuse_if_random(model, probe)
    engine_module.refuse_if_padding_counts(model, probe, step.made)
    try:
        head = find_head(model, probe, checkpoint, loaded.prefix, config.head)
    except RefusedError as error:
        if "camera" not in given.few.columns:
            raise
        raise RefusedError(
            f"{error}; if the model has no classes and returns embeddings, add --task embedding"
        ) from error
    classes = names_of_classes(config, said, given.data, head.classes)
    _ask_for_order(classes, given.data, loaded.architecture.name)
    forget = load_forget(config.forget, given.data, config.label, classes, given.stdin, given.names)
    network = Network(loaded, model, step.made, step.source, probe)
    outside = checkpoint.outside_hash(set(head.tensors))
    return Session(run, checkpoint, network, None, device, head, outside, classes, forget, given.data, log)


def takes_of(config: ModelConfig, loaded: Loaded, few: SampleSet | None) -> preparing.Takes:
    """What a model takes: as its library says, else by ``--task``, else by the samples that are given.

    Raises:
        ImuError: ``--task`` contradicts the library.
    """
    if config.task == "language":
        if loaded.takes not in (None, "record"):
            raise ImuError(
                f"--task language: {loaded.architecture.name} is {type(loaded.model).__name__}, which writes no text; leave the option out"
            )
        return "record"
    if config.task == "classification" and loaded.takes == "record":
        raise ImuError(
            f"--task classification: {loaded.architecture.name} is {type(loaded.model).__name__}, which writes text and has no classes; "
            "leave the option out"
        )
    if loaded.takes is not None:
        return loaded.takes
    if few is not None and few.kind is RECORDS:
        return "record"
    if few is not None and few.kind is WORDS:
        return "word"
    return "text" if few is not None and few.kind is TEXTS else "image"


def _open_on_features(
    path: Path, checkpoint: Checkpoint | None, config: ForgetConfig, known: Said | None, run: Run, log: Log
) -> Session:
    """The head alone, from the file: the backbone has run elsewhere, and its architecture need not be known."""
    checkpoint, given = checkpoint or open_checkpoint(path), _read_data(config)
    store = given.few.store
    if not isinstance(store, Vectors):
        raise ImuError(
            f"--forget {' '.join(config.forget)}: names {given.few.kind.many}, and {config.data} holds features; name rows of it, or leave "
            "--data out and name their data set"
        )
    preparing.refuse_for_records(config, f"{config.data} holds features")
    if store.said.get("task") == "embedding":
        raise ImuError(
            f"{config.data}: holds embeddings of a model without classes; name the images, which every model has to see"
        )
    named = config.head or str(store.said["head"])
    sidecar.refuse_other_heads(checkpoint.folder)
    head = named_head(checkpoint, named, "--head" if config.head else store.shown, config.strip_prefix)
    said = [*([] if known is None else [known]), Said(store.shown, classes=given.few.classes)]
    classes = names_of_classes(config, said, None, head.classes)
    forget = load_forget(config.forget, given.data, config.label, classes, given.stdin, given.names)
    device = engine_module.pick_device(config.device)
    outside = checkpoint.outside_hash(set(head.tensors))
    forget = origin.settled(forget, store)
    return Session(run, checkpoint, None, store, device, head, outside, classes, forget, given.data, log)


def _ask_for_order(classes: ClassNames, data: SampleSet | None, arch: str) -> None:
    """Class folders have an order of their own only if libraries agree on it: torchvision sorts them as strings, timm naturally.

    Raises:
        ImuError: a timm model whose class names come from folders that the two sort differently; nobody says which was used.
    """
    if data is None or data.class_order is None or classes.names is None or classes.names is not data.classes:
        return
    natural = tuple(sorted(classes.names, key=_naturally))
    if arch.startswith("timm:") and natural != classes.names:
        at = next(row for row, name in enumerate(natural) if name != classes.names[row])
        raise ImuError(
            f"class names: not known to this timm model, and the folders of {data.source} have two orders: as strings (torchvision: "
            f"output {at} is {classes.names[at]!r}) and naturally (timm: output {at} is {natural[at]!r}); say which one it was trained "
            "in with --classes FILE, one name a line in the order of the outputs"
        )


def _naturally(name: str) -> list[tuple[bool, int, str]]:
    """The key by which timm sorts class folders: numbers in it count as numbers, and case does not count."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def is_embedding(config: ModelConfig, loaded: Loaded) -> bool:
    """Whether a model is taken for one without classes: ``--task``, else ``--embedding``, else what its files say.

    Raises:
        ImuError: options that contradict each other.
    """
    if config.task == "classification" and config.embedding is not None:
        raise ImuError(f"--embedding {config.embedding}: is for --task embedding; leave one of them out")
    if config.task == "language" and config.embedding is not None:
        raise ImuError(f"--embedding {config.embedding}: is for --task embedding; leave one of them out")
    if config.task in ("classification", "language") or (config.task == "auto" and config.embedding is None):
        embeds = config.task == "auto" and embedding.is_said(loaded)
    else:
        embeds = True
    if embeds and config.head is not None:
        raise ImuError(
            f"--head {config.head}: an embedding model has none; leave it out, or name a module with --embedding"
        )
    return embeds


def names_of_classes(config: ModelConfig, said: Sequence[Said], data: SampleSet | None, count: int) -> ClassNames:
    """The class names by the sources' order: ``--classes``, a record, the model's files, a data set of all classes."""
    named = Path(config.classes) if config.classes else None
    by = next((item for item in said if item.classes or "classes" in item.wrong), None)
    if named is None and by is not None:
        by.refuse("classes")
    return class_names(
        named, None if by is None else by.classes, [data] if data else [], count, "" if by is None else by.source
    )
