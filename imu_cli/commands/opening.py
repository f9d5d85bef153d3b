"""Everything a command opens before it computes: checkpoint, model, preprocessing, class names, forget set, features."""

import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from imu_cli import __version__, options
from imu_cli.config.commands import ForgetConfig, ModelConfig
from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.events import Events
from imu_cli.features import cache, memory, origin
from imu_cli.features import engine as features
from imu_cli.features.engine import Engine, Seen
from imu_cli.influence import closed_form
from imu_cli.linear.rows import Mapped, Rows, refuse_not_finite
from imu_cli.models import architecture, libraries
from imu_cli.models.architecture import Loaded
from imu_cli.models.checkpoint import Checkpoint, open_checkpoint
from imu_cli.models.head import Head, find_head, named_head
from imu_cli.models.layout import file_hash, model_hash
from imu_cli.models.sidecar import Said
from imu_cli.records.record import Environment, FileHash, ForgetInfo, HeadInfo, HeldOutInfo, OptionValue, Record
from imu_cli.samples import vectors as featurefile
from imu_cli.samples.columns import as_array
from imu_cli.samples.dataset import ClassNames, ImageSet, class_names, in_model_ids, is_selector, overlap
from imu_cli.samples.images import preprocessing
from imu_cli.samples.images.preprocessing import Preprocessing
from imu_cli.samples.manifest import ForgetSet, load_forget, open_source, peek
from imu_cli.samples.vectors import Vectors

EVERYTHING = ["index=:"]
"""The selector of every row of a data set."""


@dataclass
class Clock:
    """Seconds spent in each stage, for the record."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that the context takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 4)


@dataclass(frozen=True)
class Network:
    """The model with the weights it was given, on its device, what images go through before it, and a few that did.

    ``preprocess_source`` says who knew the preprocessing; ``probe`` is a preprocessed batch.
    """

    loaded: Loaded
    model: nn.Module
    preprocess: Preprocessing
    preprocess_source: str
    probe: Tensor


@dataclass(frozen=True)
class Taken:
    """Where the forget set's features came from, ``model``, ``cache`` or a file, and what they take: in memory, or streamed."""

    source: str
    streamed: bool
    bytes: int


@dataclass
class Opened:
    """A model that was opened, its head found and replayed, and a forget set that was validated against it.

    ``network`` runs on images; it is None where the forget samples come as features from a file, ``vectors``.
    """

    config: ForgetConfig
    checkpoint: Checkpoint
    network: Network | None
    vectors: Vectors | None
    device: torch.device
    head: Head
    outside_sha256: str
    classes: ClassNames
    forget: ForgetSet
    data: ImageSet | None
    events: Events
    clock: Clock
    notes: list[str] = field(default_factory=list)
    taken: Taken | None = None

    def note(self, text: str) -> None:
        """Tell the user now, and keep it for the result; once."""
        if text not in self.notes:
            self.notes.append(text)
            self.events.note(text)

    @cached_property
    def engine(self) -> Engine:
        """The model as it runs over many images."""
        assert self.network is not None, "features from a file need no engine"
        return features.engine(
            self.network.model, self.head.module, self.network.probe,
            batch_size=self.config.batch_size, precision=self.config.precision,
        )  # fmt: skip

    def described(self) -> dict[str, Any]:
        """Architecture and preprocessing as they stand in records: the model's own, or what the features' file says."""
        if self.network is not None:
            return {
                "architecture": self.network.loaded.architecture.described(),
                "preprocess": self.network.preprocess.described(),
                "preprocess_source": self.network.preprocess_source,
            }
        assert self.vectors is not None
        said, shown = self.vectors.said, self.vectors.shown
        unknown: dict[str, Any] = {"name": "not known", "source": shown, "arguments": {}, "code": None}
        given = said.get("architecture")
        return {
            "architecture": given if isinstance(given, dict) and set(given) == set(unknown) else unknown,
            "preprocess": dict(said.get("preprocess") or {}),
            "preprocess_source": shown,
        }

    @property
    def precision(self) -> str:
        """What the features of the forget set were, or are, computed in."""
        return self.config.precision if self.vectors is None else str(self.vectors.said.get("precision", "not known"))

    @property
    def math_device(self) -> torch.device:
        """Where the head's float64 arithmetic runs: CUDA has float64, Apple's GPU does not."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def features_of(self, images: ImageSet, what: str, *, narrow: bool = False) -> Rows:
        """H (n, d+1) float64 of a set: from one pass of the backbone, or from the file of features that it is.

        Held in memory where that takes no more than ``--max-memory``, else read by rows from a file. ``narrow``: for what
        goes over the rows a few times, made from the float32 features that are held, or from the file.

        Raises:
            ImuError: features are not finite or not this model's, or images come where there is no model to run.
        """
        if isinstance(images.store, Vectors):
            return self._from_file(images.store, images, narrow)
        if self.network is None:
            raise ImuError(
                f"{images.source}: images, where the forget samples are features of {self.config.data}; "
                "extract them too (imu features), or give the forget samples as images"
            )
        n = len(images)
        if self._fits(n, narrow):
            made = features.gather(self.stream(images, what), n, self.head, narrow=narrow)
            if narrow:
                return Mapped(made, self.head.bias, self.math_device, resident=True)
            return made.to(self.math_device)
        self.note(
            f"features of {what}: {self._bytes(n, narrow) / 1e9:.3g} GB do not fit --max-memory, they are streamed from a file"
        )
        shape = (n, self.head.matrix.shape[1] - self.head.bias)
        with cache.scratch("set IMU_CACHE_DIR to a folder with room, or raise --max-memory") as path:
            featurefile.write(path, shape, (seen.rows for seen in self.stream(images, what)))
            # The mapping holds on to the file when its name is gone: nothing of it is left behind.
            return Mapped(load_file(path)["features"], self.head.bias, self.math_device)

    def stream(self, images: ImageSet, what: str, rows: Sequence[int] | None = None) -> Iterator[Seen]:
        """One pass of the backbone over a set, timed, batch by batch."""
        network, total = self.network, len(images) if rows is None else len(rows)
        assert network is not None
        with self.clock.timed(f"features of {what}"), self.events.track(f"features, {what}", total) as advance:
            for seen in features.stream(self.engine, self.head, images, network.preprocess, rows):
                self.head = seen.head
                yield seen
                advance(len(seen.rows))

    def _bytes(self, n: int, narrow: bool) -> int:
        return (4 if narrow else 8) * n * self.head.matrix.shape[1]

    def _fits(self, n: int, narrow: bool) -> bool:
        return self._bytes(n, narrow) <= memory.limit(self.config.max_memory)

    def read(self, found: Tensor, images: ImageSet, order: Tensor | None = None, *, narrow: bool = False) -> Rows:
        """H of a set whose features (N, d) lie in a file, all of them or those of ``order``.

        Held in memory where there is room, unless ``narrow``.

        Raises:
            ImuError: a row is not finite; names the image.
        """
        mapped = Mapped(found, self.head.bias, self.math_device, order)
        h = mapped.held() if not narrow and self._fits(len(mapped), narrow) else mapped
        refuse_not_finite(h, images.where)
        return h

    def _from_file(self, store: Vectors, images: ImageSet, narrow: bool) -> Rows:
        with self.clock.timed("reading features"):
            self.head = origin.require(store, self.head, self.outside_sha256, self.note)
            whole = images.positions == range(store.entry.shape[0])
            order = None if whole else torch.tensor(as_array(images.positions))
            return self.read(store.mapped(), images, order, narrow=narrow)

    def matrix(self) -> Tensor:
        """W (c, d+1) float64 where the head's arithmetic runs."""
        return self.head.matrix.to(self.math_device)

    def labels(self, images: ImageSet | None = None) -> Tensor:
        """Labels (n,) of the forget set, or of another set in the model's ids, where the head's arithmetic runs."""
        labelled = self.forget.images if images is None else images
        return torch.tensor(as_array(labelled.labels), device=self.math_device)


def load_model(path: Path, config: ModelConfig, known: Said | None = None) -> tuple[Checkpoint, Loaded]:
    """The checkpoint and the model it fits into, loaded strictly; ``known`` is what a record says of it."""
    checkpoint = open_checkpoint(path)
    return checkpoint, architecture.load(checkpoint, config.arch, config.arch_arg, known)


def with_features(config: ForgetConfig) -> ForgetConfig:
    """The config with ``--features FILE`` as what it stands for: the data set, and without ``--forget`` all of it.

    Raises:
        ImuError: ``--data`` is given too.
    """
    if config.features is None:
        return config
    if config.data not in (None, config.features):
        raise ImuError(f"--features {config.features}: stands in place of --data; leave one of them out")
    if not featurefile.is_features(config.features):
        raise ImuError(f"--features {config.features}: not a .safetensors file; imu features writes one")
    return replace(config, data=config.features, forget=config.forget or EVERYTHING)


def open_all(path: Path, config: ForgetConfig, events: Events, known: Said | None = None) -> Opened:
    """Open and validate everything that the commands share; nothing is written.

    Args:
        path: the model.
        config: options.
        events: hears what goes on.
        known: what a record that describes this very model says of it, believed before the model's files.

    Raises:
        ImuError: whatever is wrong with model, options or data, as early as it can be known.
        RefusedError: the checkpoint cannot be handled.
    """
    clock, config = Clock(), with_features(config)
    if not config.forget:
        raise ImuError("--forget: not given; name a forget.csv, a folder with --label, or a selector such as class=cat")
    closed_form.Damping.parse(config.damping)
    if config.max_memory is not None:
        memory.parse(config.max_memory)
    on_features = config.data is not None and featurefile.is_features(config.data)
    with clock.timed("loading"):
        opened = (_open_on_features if on_features else _open_on_images)(path, config, events, known, clock)
    data = opened.data
    for warning in (*opened.checkpoint.layout.notes, *(data.notes if data else ()), *opened.forget.notes):
        opened.note(warning)
    return opened


@dataclass(frozen=True)
class _Given:
    """The data set and standard input, if named, and the first few samples of the forget list."""

    data: ImageSet | None
    stdin: BytesIO | None
    few: ImageSet


def _read_data(config: ForgetConfig) -> _Given:
    data = open_source(config.data, "data") if config.data else None
    stdin = BytesIO(sys.stdin.buffer.read()) if config.forget == ["-"] else None
    return _Given(data, stdin, peek(config.forget, data, features.PROBE, stdin))


def _open_on_images(path: Path, config: ForgetConfig, events: Events, known: Said | None, clock: Clock) -> Opened:
    checkpoint, loaded = load_model(path, config, known)
    said = [*([] if known is None else [known]), *loaded.said]
    steps, steps_source = preprocessing.find(config.preprocess, [(item.preprocess, item.source) for item in said])
    device = features.pick_device(config.device, int(os.environ.get("LOCAL_RANK", "0")))
    model = features.prepare(loaded.model, device)
    given = _read_data(config)
    probe = features.batch(given.few, range(len(given.few)), steps, device)
    features.refuse_if_random(model, probe)
    head = find_head(model, probe, checkpoint, loaded.prefix, config.head)
    classes = names_of_classes(config, said, given.data, head.classes)
    forget = load_forget(config.forget, given.data, config.label, classes, given.stdin)
    network = Network(loaded, model, steps, steps_source, probe)
    outside = checkpoint.outside_hash(set(head.tensors))
    return Opened(config, checkpoint, network, None, device, head, outside, classes, forget, given.data, events, clock)


def _open_on_features(path: Path, config: ForgetConfig, events: Events, known: Said | None, clock: Clock) -> Opened:
    """The head alone, from the file: the backbone has run elsewhere, and its architecture need not be known."""
    checkpoint, given = open_checkpoint(path), _read_data(config)
    store = given.few.store
    if not isinstance(store, Vectors):
        raise ImuError(
            f"--forget {' '.join(config.forget)}: names images, and {config.data} holds features; name rows of it, or leave "
            "--data out and name the images' data set"
        )
    named = config.head or str(store.said["head"])
    head = named_head(checkpoint, named, "--head" if config.head else store.shown)
    said = [*([] if known is None else [known]), Said(store.shown, classes=given.few.classes)]
    classes = names_of_classes(config, said, None, head.classes)
    forget = load_forget(config.forget, given.data, config.label, classes, given.stdin)
    device = features.pick_device(config.device)
    outside = checkpoint.outside_hash(set(head.tensors))
    forget = origin.settled(forget, store)
    return Opened(config, checkpoint, None, store, device, head, outside, classes, forget, given.data, events, clock)


def names_of_classes(config: ModelConfig, said: Sequence[Said], data: ImageSet | None, count: int) -> ClassNames:
    """The class names by the sources' order: ``--classes``, a record, the model's files, a data set of all classes."""
    named = Path(config.classes) if config.classes else None
    by = next((item for item in said if item.classes), None)
    return class_names(
        named, None if by is None else by.classes, [data] if data else [], count, "" if by is None else by.source
    )


def half(images: ImageSet, seed: int) -> list[int]:
    """A random half of the rows, sorted, drawn by the seed: what an unlearning may choose by."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return sorted(order[: (len(images) + 1) // 2].tolist())


def rows_hash(images: ImageSet) -> str:
    """SHA-256 over names and labels of the rows, in order."""
    summed, between = hashlib.sha256(b"["), ""
    for pair in zip(images.names, images.labels, strict=True):
        summed.update(f"{between}{pair!r}".encode())
        between = ", "
    summed.update(b"]")
    return summed.hexdigest()


def reference_of(opened: Opened, test: str | None, reference: str | None) -> tuple[ImageSet, HeldOutInfo] | None:
    """The held-out samples that a run chooses by, ``--reference`` or a random half of ``--test``; None with neither."""
    given = reference or test
    option: Literal["test", "reference"] = "reference" if reference else "test"
    if given is None:
        return None
    images = held_out(opened, given, f"--{option}")
    whole = len(images)
    if option == "test":
        images = images.subset(half(images, opened.config.seed))
        opened.note(
            f"--test {given}: a random half ({len(images)} of {whole}, seed {opened.config.seed}) sets target and guard; "
            "the other half is left for evaluate"
        )
    info = HeldOutInfo(
        given=given, option=option, n=whole, used=len(images), seed=opened.config.seed, sha256=rows_hash(images)
    )  # fmt: skip
    return images, info


def held_out(opened: Opened, spec: str, option: str = "--test") -> ImageSet:
    """The held-out set in the model's ids.

    Raises:
        ImuError: a class the model does not have, or forget samples stand in it.
    """
    images = in_model_ids(open_source(spec, "test", opened.data), opened.classes)
    shared = overlap(opened.forget.images, images)
    if shared:
        raise InvalidRowsError(
            [
                f"{opened.forget.images.where(mine)}: also stands in {option} as {images.where(theirs)}; "
                "held-out data must not hold forget samples"
                for mine, theirs in shared
            ]
        )
    return images


def retained(opened: Opened, spec: str) -> ImageSet:
    """The ``--retain`` set in the model's ids, without the forget samples in it."""
    images = in_model_ids(open_source(spec, "retain", opened.data), opened.classes)
    inside = {theirs for _, theirs in overlap(opened.forget.images, images)}
    if inside:
        opened.note(f"--retain {spec}: {len(inside)} of its {len(images)} samples are forget samples and are left out")
        images = images.subset([row for row in range(len(images)) if row not in inside])
    if len(images) == 0:
        raise ImuError(f"--retain {spec}: nothing is left of it without the forget samples")
    return images


def head_info(head: Head) -> HeadInfo:
    """The head, for records."""
    return HeadInfo(
        module=head.module,
        tensors=list(head.tensors),
        dtype=head.dtype,
        classes=head.classes,
        features=head.matrix.shape[1] - head.bias,
        bias=head.bias,
        source=head.source,
        replay_error=head.replay_error,
    )


def forget_info(opened: Opened, folder: Path) -> ForgetInfo:
    """The forget set without naming a sample; paths relative to ``folder``."""
    config, forget = opened.config, opened.forget
    counts: dict[str, int] = {}
    for label in forget.images.labels:
        name = opened.classes.name(label)
        counts[name] = counts.get(name, 0) + 1
    listed = not is_selector(config.forget[0])
    manifest = Path(config.forget[0] if listed else "")
    return ForgetInfo(
        given=options.relative_to(config.forget, "forget", folder),
        label=config.label,
        data=options.relative_to(config.data, "data", folder),
        n=len(forget.images),
        per_class=counts,
        whole_classes=bool(forget.whole_classes),
        sha256=forget.sha256,
        manifest=file_hash_of(manifest, folder) if listed and manifest.is_file() else None,
        relabelled=forget.relabelled,
    )


def model_hash_of(checkpoint: Checkpoint, folder: Path) -> FileHash:
    """Path relative to ``folder`` and the one hash of a model."""
    return FileHash(path=model_path(checkpoint.path, folder), sha256=checkpoint.sha256)


def model_path(path: Path, folder: Path) -> str:
    """Path of a model relative to ``folder``; one that *is* the folder is ``../name``, so that reports have a name."""
    relative: str = options.relative_to(str(path), "file", folder)
    return f"../{path.resolve().name}" if relative == "." else relative


def file_hash_of(path: Path, folder: Path) -> FileHash:
    """Path relative to ``folder`` and SHA-256 of a file."""
    return FileHash(path=options.relative_to(str(path), "file", folder), sha256=file_hash(path))


def option_values(config: ForgetConfig, origins: Mapping[str, str], folder: Path) -> dict[str, OptionValue]:
    """Every option with its origin; paths relative to ``folder``, so that a record can be moved with its files."""
    found = {}
    for name, kind in options.path_kinds(type(config)).items():
        value = getattr(config, name)
        value = options.relative_to(value, kind, folder) if kind else value
        found[name] = OptionValue(value=value, origin=origins.get(name, "default"))
    return found


def environment(device: torch.device) -> Environment:
    """Versions and device of this run."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads"
    )
    return Environment(
        imu=__version__,
        python=sys.version.split()[0],
        torch=str(torch.__version__),
        torchvision=libraries.torchvision_version(),
        platform=f"{platform.system()} {platform.machine()}",
        device=name,
    )


def read_record(path: Path, sha256: str | None = None) -> Record | None:
    """The record that lies beside a model, or in its folder, and describes these very weights; None where there is none.

    ``sha256`` is the model's hash where it is known already.
    """
    from imu_cli.records import record

    beside = record.beside(path, "record")
    if not beside.is_file():
        return None
    found = record.read(beside)
    return found if isinstance(found, Record) and found.after.sha256 == (sha256 or model_hash(path)) else None
