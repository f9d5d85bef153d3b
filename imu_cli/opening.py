"""Everything a command opens before it computes: checkpoint, model, preprocessing, class names, forget set, features."""

import hashlib
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import __version__, architecture, cache, ecosystems, features, influence, objective, options, preprocess
from .architecture import Loaded
from .checkpoint import Checkpoint, open_checkpoint
from .config import ForgetConfig, ModelConfig
from .dataset import ClassNames, ImageSet, class_names, in_model_ids, overlap
from .errors import ImuError, InvalidRowsError
from .events import Events
from .head import Head, find_head
from .layout import file_hash, model_hash
from .manifest import ForgetSet, load_forget, open_source, peek
from .preprocess import Preprocessing
from .record import Decade, Environment, FileHash, ForgetInfo, HeadInfo, HeldOutInfo, OptionValue, Record, ScoreInfo
from .sidecar import Said


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


@dataclass
class Opened:
    """A model that was loaded, its head found and replayed, and a forget set that was validated against it."""

    config: ForgetConfig
    checkpoint: Checkpoint
    loaded: Loaded
    model: nn.Module
    device: torch.device
    preprocess: Preprocessing
    preprocess_source: str
    head: Head
    outside_sha256: str
    classes: ClassNames
    forget: ForgetSet
    data: ImageSet | None
    events: Events
    clock: Clock
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Tell the user now, and keep it for the result."""
        self.notes.append(text)
        self.events.note(text)

    def features_of(self, images: ImageSet, what: str) -> Tensor:
        """H (n, d+1) float64 of a set of images, from one pass of the backbone."""
        return self.homogeneous(self.extract(images, what), images)

    def homogeneous(self, rows: Tensor, images: ImageSet) -> Tensor:
        """Features (n, d) as H (n, d+1) float64, on the device where that has float64.

        Raises:
            ImuError: a row is not finite; names the image.
        """
        finite = torch.isfinite(rows).all(dim=1)
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            raise ImuError(f"{images.where(bad)}: its features are not finite; check the image and the model's weights")
        return objective.homogeneous(rows.to(self.math_device), self.head.bias)

    @property
    def math_device(self) -> torch.device:
        """Where the head's float64 arithmetic runs: CUDA has float64, Apple's GPU does not."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def extract(self, images: ImageSet, what: str) -> Tensor:
        """Features (n, d) float32 of a set of images, from one pass of the backbone."""
        with self.clock.timed(f"features of {what}"), self.events.track(f"features, {what}", len(images)) as advance:
            found = features.extract(
                self.model,
                self.head,
                images,
                self.preprocess,
                device=self.device,
                batch_size=self.config.batch_size,
                progress=advance,
            )
        self.head = replace(self.head, replay_error=max(self.head.replay_error, found.replay_error))
        return found.rows

    def matrix(self) -> Tensor:
        """W (c, d+1) float64 where the head's arithmetic runs."""
        return self.head.matrix.to(self.math_device)

    def labels(self) -> Tensor:
        """Labels of the forget set (n,), in the model's ids."""
        return torch.tensor(list(self.forget.images.labels), dtype=torch.int64, device=self.math_device)


def load_model(path: Path, config: ModelConfig, known: Said | None = None) -> tuple[Checkpoint, Loaded]:
    """The checkpoint and the model it fits into, loaded strictly; ``known`` is what a record says of it."""
    checkpoint = open_checkpoint(path)
    return checkpoint, architecture.load(checkpoint, config.arch, config.arch_arg, known)


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
    clock = Clock()
    if not config.forget:
        raise ImuError("--forget: not given; name a forget.csv, a folder with --label, or a selector such as class=cat")
    influence.Damping.parse(config.damping)
    with clock.timed("loading"):
        checkpoint, loaded = load_model(path, config, known)
        said = [*([] if known is None else [known]), *loaded.said]
        steps, steps_source = preprocess.find(config.preprocess, [(item.preprocess, item.source) for item in said])
        device = features.pick_device(config.device)
        model = features.prepare(loaded.model, device)
        data = open_source(config.data, "data") if config.data else None
        stdin = BytesIO(sys.stdin.buffer.read()) if config.forget == ["-"] else None
        images = peek(config.forget, data, features.PROBE, stdin)
        probe = features.batch(images, range(len(images)), steps, device)
        features.refuse_if_random(model, probe)
        head = find_head(model, probe, checkpoint, loaded.prefix, config.head)
        classes = names_of_classes(config, said, data, head.classes)
        forget = load_forget(config.forget, data, config.label, classes, stdin)
    opened = Opened(
        config=config,
        checkpoint=checkpoint,
        loaded=loaded,
        model=model,
        device=device,
        preprocess=steps,
        preprocess_source=steps_source,
        head=head,
        outside_sha256=checkpoint.outside_hash(set(head.tensors)),
        classes=classes,
        forget=forget,
        data=data,
        events=events,
        clock=clock,
    )
    for warning in (*checkpoint.layout.notes, *(data.notes if data else ()), *forget.notes):
        opened.note(warning)
    return opened


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
    return hashlib.sha256(repr(list(zip(images.names, images.labels, strict=True))).encode()).hexdigest()


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


def _cache_fields(opened: Opened) -> dict[str, Any]:
    return {
        "samples": opened.forget.sha256,
        "backbone": opened.outside_sha256,
        "head_module": opened.head.module,
        "architecture": opened.loaded.architecture.described(),
        "preprocess": opened.preprocess.described(),
        "dtype": "float32",
        "model": opened.checkpoint.path.name or opened.checkpoint.path.resolve().name,
    }


def _samples(opened: Opened) -> Iterator[dict[str, Any]]:
    images = opened.forget.images
    for row, digest in enumerate(images.digests()):
        yield {"name": images.names[row], "label": opened.classes.name(images.labels[row]), "digest": digest}


def forget_features(opened: Opened) -> Tensor:
    """H (n, d+1) float64 of the forget set: from the feature cache if asked for and there, else from one pass."""
    fields = _cache_fields(opened)
    if opened.config.cache_features:
        found = cache.find("features", fields)
        if found.tensors is not None:
            return opened.homogeneous(found.tensors["features"], opened.forget.images)
        if found.why:
            opened.note(f"feature cache: {found.why}")
    rows = opened.extract(opened.forget.images, "forget")
    if opened.config.cache_features:
        cache.write("features", fields, _samples(opened), {"features": rows})
        opened.note(
            "features of the forget samples, which are personal data, were cached; imu cache rm --forget removes them"
        )
    return opened.homogeneous(rows, opened.forget.images)


@dataclass(frozen=True)
class Scored:
    """Scores (n,), confidences (n,) and predictions-right (n,) of the forget set, and where they came from."""

    scores: Tensor
    confidence: Tensor
    right: Tensor
    damping: float
    mean_fisher: float
    from_cache: bool
    entry: str | None


def _score_fields(opened: Opened) -> dict[str, Any]:
    return {**_cache_fields(opened), "head": _matrix_hash(opened.head), "damping": opened.config.damping}


def _matrix_hash(head: Head) -> str:
    return hashlib.sha256(head.matrix.contiguous().numpy().tobytes()).hexdigest()


def cached_scores(opened: Opened) -> Scored | None:
    """Scores from the cache, if it is to be used and holds exactly these."""
    if not opened.config.cache:
        return None
    fields = _score_fields(opened)
    found = cache.find("scores", fields)
    if found.tensors is None:
        if found.why:
            opened.note(f"score cache: not used, {found.why}")
        return None
    t = {name: tensor.to(opened.math_device) for name, tensor in found.tensors.items()}
    path = str(cache.folder() / f"scores-{cache.key_of('scores', fields)}.json")
    return Scored(
        t["scores"], t["confidence"], t["right"].bool(), float(t["damping"]), float(t["mean_fisher"]), True, path
    )


def score(h: Tensor, labels: Tensor, head: Tensor, damping: influence.Damping) -> Scored:
    """Scores in closed form of samples H (n, d+1) under a head W (c, d+1)."""
    logits, members = h @ head.T, objective.one_hot(labels, len(head))
    found = influence.influence(h, objective.residual(logits, members), damping)
    confidence = torch.exp(-objective.losses(logits, members))
    right = logits.argmax(dim=1) == labels
    return Scored(found.scores, confidence, right, found.damping, found.mean_fisher, False, None)


def compute_scores(opened: Opened, h: Tensor) -> Scored:
    """Scores in closed form from the features, written to the cache unless that is turned off."""
    with opened.clock.timed("scores"):
        found = score(h, opened.labels(), opened.matrix(), influence.Damping.parse(opened.config.damping))
    entry = None
    if opened.config.cache:
        tensors = {
            "scores": found.scores,
            "confidence": found.confidence,
            "right": found.right.to(torch.uint8),
            "damping": torch.tensor([found.damping], dtype=torch.float64),
            "mean_fisher": torch.tensor([found.mean_fisher], dtype=torch.float64),
        }
        with opened.clock.timed("cache"):
            on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            entry = str(cache.write("scores", _score_fields(opened), _samples(opened), on_cpu))
    return replace(found, entry=entry)


def sample_weights(opened: Opened) -> Tensor | None:
    """The manifest's ``weight`` column (n,), or None."""
    given = opened.forget.weights
    return None if given is None else torch.tensor(list(given), dtype=torch.float64, device=opened.math_device)


def score_info(scored: Scored, selection: influence.Selection) -> ScoreInfo:
    """Scores in numbers, for records."""
    points = {"min": 0.0, "1 %": 0.01, "median": 0.5, "99 %": 0.99, "max": 1.0}
    ordered = scored.scores.sort().values
    at = {name: float(ordered[round(q * (len(ordered) - 1))]) for name, q in points.items()}
    return ScoreInfo(
        negative=selection.negative,
        kept=selection.kept,
        damping=scored.damping,
        mean_fisher=scored.mean_fisher,
        quantiles=at,
        from_cache=scored.from_cache,
        decades=[Decade(power=power, count=count) for power, count in influence.decades(scored.scores)],
    )


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
    manifest = Path(config.forget[0])
    return ForgetInfo(
        given=options.relative_to(config.forget, "forget", folder),
        label=config.label,
        data=options.relative_to(config.data, "data", folder),
        n=len(forget.images),
        per_class=counts,
        whole_classes=bool(forget.whole_classes),
        sha256=forget.sha256,
        manifest=file_hash_of(manifest, folder) if manifest.is_file() else None,
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
        torchvision=ecosystems.torchvision_version(),
        platform=f"{platform.system()} {platform.machine()}",
        device=name,
    )


def read_record(path: Path, sha256: str | None = None) -> Record | None:
    """The record that lies beside a model, or in its folder, and describes these very weights; None where there is none.

    ``sha256`` is the model's hash where it is known already.
    """
    from . import record

    beside = record.beside(path, "record")
    if not beside.is_file():
        return None
    found = record.read(beside)
    return found if isinstance(found, Record) and found.after.sha256 == (sha256 or model_hash(path)) else None
